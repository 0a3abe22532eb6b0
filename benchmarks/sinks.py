"The map of sinks in a real browser: milliseconds from a click to the drawn pattern, bytes of the first payload and of a head; 144 heads of a random GPT-2 that reads 1,024 tokens"
import json, os, statistics, subprocess, sys, tempfile, time
from _common import own_options, report
import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def random_gpt2():
    "A model with random weights, of 144 heads and a context of 1,024; token ids for it"
    import torch; torch.set_num_threads(1)
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    m = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=192, n_layer=12, n_head=12, n_positions=1024, bos_token_id=0, eos_token_id=0)).eval()
    return m, torch.randint(1, 512, (1, 1024), generator=torch.Generator().manual_seed(0))

CASE = '''
import json, sys
sys.path.insert(0, {browser!r})
from test_dashboard import SENT
from test_sinks import SWITCH, side_closed

def test_latency(notebook):
    nb = notebook(["import sys; sys.path.insert(0, {here!r}); from sinks import random_gpt2; gpt2,ids = random_gpt2(); from sparsenb.sinks import sinks", "w = sinks(gpt2, ids, at=(0,)).map(layer=0, head=0)\\nw"], size=(1400, 1000))
    side_closed(nb); nb.run_all(300)
    nb.wait_for_function("document.querySelector('.snb-sinks')?.dataset.head?.endsWith(',0,0')", timeout=60_000)
    nb.python(SENT)
    first = int(nb.python('payload()'))
    new,again = nb.evaluate(SWITCH, {n}),nb.evaluate(SWITCH, {n}) # the same heads: the second time the page has them
    open({out!r}, 'w').write(json.dumps(dict(new=new, again=again, payload=first, tile=int(nb.python("from sparsenb.widgets.sink_map import tile; len(tile(w.sinks, 0, 0)[1])")))))
'''

def measured(n, folder):
    "Switches in JupyterLab, with the fixtures of the browser tests"
    out,case = folder/'took.json',ROOT/'tests'/'browser'/'test_bench_sinks.py' # beside its fixtures, for as long as it runs
    try:
        case.write_text(CASE.format(browser=str(case.parent), here=str(ROOT/'benchmarks'), out=str(out), n=n))
        r = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', case], cwd=ROOT, capture_output=True, text=True)
    finally: case.unlink(missing_ok=True)
    if not out.exists(): sys.exit(r.stdout[-3000:])
    got = json.loads(out.read_text())
    times = {f'{k}_{s}_ms': f(sorted(got[k])) for k in ('new', 'again') for s,f in (('median', statistics.median), ('p95', lambda v: v[int(.95*len(v))]), ('largest', lambda v: v[-1]))}
    return dict(heads=144, tokens=1024, switches=n)|times|dict(load=os.getloadavg()[0], payload_kB=got['payload']/1e3, tile_kB=got['tile']/1e3)

def sizes():
    "Reading, in process seconds on one thread, and all tiles of 144 heads and 256 tokens"
    from sparsenb.widgets.sink_map import leaf, tile
    from sparsenb.sinks import sinks
    m,ids = random_gpt2()
    t = time.process_time(); s = sinks(m, ids[:,:256], at=(0,)); took = time.process_time()-t
    heads = [(l, h) for l in s.layers for h in range(s.heads)]
    t = time.process_time(); total = sum(len(tile(s, *at)[1]) for at in heads); each = (time.process_time()-t)/len(heads)
    t = time.process_time(); page = s.static(most=10**7).html(); made = time.process_time()-t
    return dict(read_256_s=took, tile_256_ms=1e3*each, tiles_144x256_MB=total/1e6, leaf_256_kB=sum(len(v) if isinstance(v, bytes) else len(json.dumps(v)) for v in leaf(s).values())/1e3, static_144x256_MB=len(page)/1e6, static_s=made)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__); p.add_argument('--switches', type=int, default=40)
    a,rest = own_options(p)
    with tempfile.TemporaryDirectory() as d: report('sinks', measured(a.switches, Path(d))|sizes(), rest)
