"Features indexed a minute, bytes a feature, milliseconds to read one, peak memory: dictionaries of 4,096 and 16,384 features over 1M tokens of the bundled model"
import json, os, subprocess, sys, time
from _common import report
import statistics, tempfile, threading
from pathlib import Path
import numpy as np, torch
from sparsenb.core import dictionaries, settings
from sparsenb.dictionary import load_dictionary
from sparsenb.index import FeatureIndex
from sparsenb.models import load_model
from sparsenb.store import ActivationStore
from sparsenb.train import fit

SITE,TOKENS,STEPS = 'resid_post.2', 1_000_000, {4096: 300, 16_384: 100}  # steps of 4,096 activations: enough for realistic codes

def prepared(d_sae):
    "The model, its activations, and a briefly trained dictionary; kept in the cache"
    d,m = settings().cache/'bench-index',load_model('stdlib-4l')
    store = ActivationStore.collect(m, 'stdlib', SITE, n_tokens=TOKENS, path=d/'acts')
    f = d/f'topk-{d_sae}'
    if not f.exists():
        sae = dictionaries['topk'](store.d_in, d_sae, k=32, seed=0)
        fit(sae, store, n_tokens=4096*STEPS[d_sae], batch_size=4096, seed=0)
        sae.save(f)
    return m, store, load_dictionary(f)

def resident():
    "MB of this process that are not mapped files"
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))/1e3

def warm_ms(read, ids):
    "Median milliseconds of one thread to read a feature that was read before"
    for i in ids: read(i)
    out = []
    for i in ids: t = time.thread_time(); read(i); out.append(1e3*(time.thread_time()-t))
    return statistics.median(out)

def measured(d_sae, n_tokens):
    "One index, built in this process"
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    m,store,sae = prepared(d_sae)
    with torch.no_grad(): sae.codes(next(store.rows(8192)).x)  # the quickest product is found once for a machine
    before,most,done = resident(),[0.],[]
    def watch():
        while not done: most[0] = max(most[0], resident()); time.sleep(.02)
    t = threading.Thread(target=watch); t.start()
    with tempfile.TemporaryDirectory() as d:
        cpu,wall = time.process_time(),time.perf_counter()
        ix = FeatureIndex.build(sae, store, m, path=Path(d)/'ix', n_tokens=n_tokens)
        cpu,wall = time.process_time()-cpu,time.perf_counter()-wall
        done.append(1); t.join()
        ids = np.random.default_rng(0).choice(np.flatnonzero(ix.alive), 200, replace=False).tolist()
        return dict(cpu_s=cpu, wall_s=wall, features_a_minute_two_cores=60*d_sae/(cpu/2), kB_a_feature=sum(n for n,_ in ix.info['files'].values())/d_sae/1e3, examples_a_feature=float(np.diff(ix._col('at_ex')).mean()),
                    active_a_token=float(ix.n_active.sum()/ix.n_tokens), dead=float((~ix.alive).mean()), card_ms=warm_ms(ix.card, ids), raw_ms=warm_ms(ix.raw, ids), peak_MB=most[0]-before)

def child(*args):
    r = subprocess.run([sys.executable, __file__, 'one', *map(str, args)], capture_output=True, text=True, env=os.environ|dict(SPARSENB_PROGRESS='off'))
    if r.returncode: sys.exit(r.stderr)
    return json.loads(r.stdout.splitlines()[-1])

if __name__=='__main__':
    if sys.argv[1:2]==['one']: print(json.dumps(measured(*map(int, sys.argv[2:])))); sys.exit()
    out = {}
    for d in STEPS: out |= {f'{k}_{d}': v for k,v in child(d, TOKENS).items()}
    out['peak_MB_4096_quarter_of_the_text'] = child(4096, TOKENS//4)['peak_MB']
    report('index', out|dict(tokens=TOKENS, threads=int(os.environ['OMP_NUM_THREADS'])))
