"Killed with SIGKILL anywhere, the same call gives the bits of an unbroken run: training, indexing, evaluating"
import csv, json, os, shutil, signal, time
from pathlib import Path
import pytest, torch
import sparsenb.core as core, sparsenb.train as train
from killing import Children, seeded
from sparsenb.core import dictionaries
from sparsenb.corpus import load_corpus
from sparsenb.index import FeatureIndex
from sparsenb.many import fit_many
from sparsenb.metrics import evaluate
from sparsenb.models import load_model
from sparsenb.store import ActivationStore
from sparsenb.stream import LiveStream
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
SITE = 'resid_post.1'
text = [('a.py', 'def read(self, n):\n    """Return the next n bytes."""\n'*20), ('b.py', 'import os, sys\nfor p in sys.path: print(os.path.join(p, "x"))\n'*20)]

# ---- what is run, here and in children ----

def say(what): os.write(1, f'{what}\n'.encode())

class Say(Callback):
    def after_step(self, run, out): say(run.step)

class Quiet(Callback): pass

def data(n=2000, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(n, 12, generator=g).relu()@torch.randn(12, d, generator=g)

methods = dict(topk=dict(k=4), batch_topk=dict(k=4), matryoshka=dict(k=4, n_sampled=3), jumprelu={}, transcoder=dict(d_out=5), gba={}, codebook=dict(k=2, replace_every=7))
plan = dict(n_tokens=150*64, batch_size=64, checkpoint_every=6, log_every=7, milestones=[0, 50, 54])
def make(name, d=8, d_sae=32): return dictionaries[name](d, d_sae, **{**dict(dead_after=2000), **methods[name]})
def one(name, path, cb=Say): fit(make(name), (data(), data(d=5, seed=1)) if name=='transcoder' else data(), path=path, callbacks=[cb()], **plan)
def stored(store, path, cb=Say): fit(make('topk'), ActivationStore.open(store), path=path, callbacks=[cb()], **plan)
def three(path, cb=Say): fit_many([make(n) for n in ('topk','matryoshka','codebook')], data(), path=path, callbacks=[cb()], **plan)
def live(path, cb=Say):
    stream = LiveStream('stdlib-4l', load_corpus(text), SITE, pool=512, mix=30, seq_len=32, batch_size=4)
    fit(make('topk', 256, 64), stream, path=path, callbacks=[cb()], **{**plan, 'n_tokens': 80*64, 'milestones': None})

def index(store, path, chunk=23, loud=True):
    s = ActivationStore.open(store)
    d = dictionaries['topk'](s.d_in, 64, k=8)
    real = d.codes
    def codes(x):
        if loud: say(len(x)); time.sleep(.01) # else a quick machine is done before it can be killed often
        return real(x)
    d.codes = codes
    FeatureIndex.build(d, s, 'stdlib-4l', path=path, n_top=5, n_quantiles=3, n_per_quantile=2, context=(6, 3), chunk=chunk)

def scores(store, keep=False, dies=None):
    "Evaluate, keeping the parts in a folder; be killed when the dictionary is asked for codes for the time `dies`"
    s,asked = ActivationStore.open(store),[]
    d = dictionaries['topk'](s.d_in, 64, k=8)
    real = d.codes
    def codes(x):
        asked.append(len(x))
        if len(asked)==dies: die()
        return real(x)
    d.codes = codes
    e = evaluate(d, s, 'stdlib-4l', n_sequences=6, n_boot=50, batch_size=64, keep=keep, progress=False)
    return json.dumps(dict(scores=[[k, v.value, v.lo, v.hi, v.n] for k,v in e.scores.items()], asked=len(asked)))

# ---- what is compared ----

def files(folder): return {p.relative_to(folder).as_posix(): p for p in sorted(Path(folder).rglob('*')) if p.is_file()}
def log(path): return [{k: v for k,v in r.items() if k!='activations_per_second'} for r in csv.DictReader(open(path))]
def about(path):
    meta = json.loads(path.read_text())
    for r in meta['rows']: del r['activations_per_second']
    return {k: v for k,v in meta.items() if k not in ('timing','seal')}

def same_run(a, b):
    "Every file: weights, Adam's moments, dead counters, generators and the open window to the bit; history and settings; nothing left over"
    a,b = files(a),files(b)
    assert [*a]==[*b]
    for k,p in a.items():
        if p.name=='log.csv': assert log(p)==log(b[k])
        elif p.name=='run.json': assert about(p)==about(b[k])
        elif p.suffix=='.safetensors':
            x,y = train.load_file(p),train.load_file(b[k])
            assert x.keys()==y.keys()
            for n in x: assert x[n].dtype==y[n].dtype and torch.equal(x[n].view(torch.uint8) if x[n].ndim else x[n], y[n].view(torch.uint8) if y[n].ndim else y[n]), f'{k}: {n}'
        else: assert p.read_bytes()==b[k].read_bytes(), k
    assert any(k.endswith('state.safetensors') for k in a)

@pytest.fixture(scope='module')
def children():
    with Children('test_kills', "load_model('stdlib-4l')") as c:
        yield c
        print(f'{c.kills} SIGKILLs in all')

@pytest.fixture(scope='module')
def acts(tmp_path_factory):
    path = tmp_path_factory.mktemp('acts')/'store'
    ActivationStore.collect('stdlib-4l', text, SITE, path=path, seq_len=32, progress=False)
    return path

# ---- training ----

@pytest.mark.parametrize('name', methods)
def test_killed_at_random(name, tmp_path, children):
    one(name, tmp_path/'whole', Quiet)
    n = children.kills
    children.until_done(f'one({name!r}, {str(tmp_path/"broken")!r})', seeded(), 5)
    assert children.kills>n
    same_run(tmp_path/'whole', tmp_path/'broken')
    have = files(tmp_path/'broken')
    assert {k.split('/')[0] for k in have}=={'final','log.csv','step-00000000','step-00000050','step-00000054','step-00000144','step-00000150'}
    state = train.load_file(have['step-00000150/state.safetensors'])
    assert 'model.idle' in state and any(k.endswith('exp_avg_sq') for k in state)

def test_several_dictionaries_killed_at_random(tmp_path, children):
    three(tmp_path/'whole', Quiet)
    children.until_done(f'three({str(tmp_path/"broken")!r})', seeded(), 6, lines=(1, 120))
    same_run(tmp_path/'whole', tmp_path/'broken')

def test_a_live_stream_killed_at_random(tmp_path, children):
    live(tmp_path/'whole', Quiet)
    children.until_done(f'live({str(tmp_path/"broken")!r})', seeded(), 4)
    same_run(tmp_path/'whole', tmp_path/'broken')

def test_store_and_run_are_moved_between_the_kills(tmp_path, children):
    here = [0]
    def place(i): return [str(tmp_path/f'{w}{i}') for w in ('disk','run')]
    def code(): store,run = place(here[0]); return f'stored({store!r}, {run!r})'
    def move(_):
        for a,b in zip(place(here[0]), place(here[0]+1)): os.rename(a, b)
        here[0] += 1
        return code()
    ActivationStore.from_rows(place(0)[0], data())
    stored(place(0)[0], tmp_path/'whole', Quiet)
    Path(place(0)[1]).mkdir() # a kill may come before the child has made it
    children.until_done(code(), seeded(), 5, between=move)
    assert here[0]>=1
    same_run(tmp_path/'whole', place(here[0])[1])

# ---- while a checkpoint is being written ----

def linger():
    "From now on what is being written or deleted stays long enough to be seen"
    def late(f): return lambda *a, **kw: (time.sleep(.03), f(*a, **kw))
    os.replace,shutil.rmtree = late(os.replace),late(shutil.rmtree)

def test_killed_at_the_sight_of_a_temporary_file(tmp_path, children):
    "At most a checkpoint is lost for each, so each child is also given time to write some"
    one('topk', tmp_path/'whole', Quiet)
    run,rnd,torn = tmp_path/'broken',seeded(),0
    call = f'one("topk", {str(run)!r})'
    for _ in range(4):
        children.run(call, rnd.randrange(4, 16)) # on some way, the last not to the end
        children.run(f'linger(); {call}', sight=run)
        torn += any(run.glob('.tmp-*'))
    children.run(call)
    assert torn>=2
    same_run(tmp_path/'whole', run)

def die(): os.kill(os.getpid(), signal.SIGKILL)

def die_in(stage, at):
    "From now on be killed at a stage of writing or deleting the checkpoint of step `at`, or the result"
    save,write,replace,rmtree = train.save_file,train.write_json,os.replace,shutil.rmtree
    mine = lambda p: f'step-{at:08d}' in str(p)
    def save_file(state, path):
        if not mine(path): return save(state, path)
        if stage=='made': die()
        save(state, path)
        if stage=='half': os.truncate(path, os.path.getsize(path)//2)
        if stage in ('half','state'): die()
    def write_json(path, o):
        write(path, o)
        if stage=='json' and mine(path): die()
    def moved(src, dst):
        src,dst = Path(src),Path(dst)
        if stage=='log' and dst.name=='log.csv' and f'\n{at+2},' in src.read_text(): die()
        if stage=='named' and mine(src) and dst.name.startswith('step-'): die()
        if stage=='final' and dst.name=='final': die()
        replace(src, dst)
        if stage=='renamed' and mine(src) and dst.name.startswith('step-'): die()
        if stage=='aside' and mine(dst) and src.name.startswith('step-'): die()
        if stage=='result' and dst.name=='final': die()
    def delete(path, *a, **kw):
        if stage=='deleting' and mine(path) and Path(path).exists(): (Path(path)/'run.json').unlink(); die()
        rmtree(path, *a, **kw)
    train.save_file,train.write_json,os.replace,shutil.rmtree = save_file,write_json,moved,delete

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole')/'topk'
    one('topk', path, Quiet)
    return path

@pytest.mark.parametrize('stage', ['made','half','state','json','named','renamed','aside','deleting','log','final','result'])
def test_killed_at_each_stage_of_writing(stage, tmp_path, children, whole):
    "Also of deleting: what is half deleted is not taken for a checkpoint"
    path = tmp_path/'broken'
    call = f'one("topk", {str(path)!r})'
    assert children.run(f'die_in({stage!r}, 96); {call}') is None, 'it was not killed'
    left = [p.name for p in path.glob('.tmp-*')]
    assert bool(left)==(stage not in ('renamed','result')), left
    assert all((p/'run.json').is_file() and (p/'state.safetensors').is_file() for p in path.glob('step-*'))
    children.run(call)
    same_run(whole, path)

def test_killed_after_the_end(tmp_path, children, whole):
    "The same call again trains nothing; killed in it, nothing is lost"
    path = tmp_path/'done'
    shutil.copytree(whole, path)
    assert children.run(f'die_in("result", 0); one("topk", {str(path)!r})') is None
    assert children.run(f'one("topk", {str(path)!r})')==[]
    same_run(whole, path)

# ---- indexing and evaluating ----

def test_an_index_killed_at_random(tmp_path, children, acts):
    index(acts, tmp_path/'whole', chunk=11, loud=False) # so many parts that it is not done before it was killed ten times
    n,call = children.kills,f'index({str(acts)!r}, {str(tmp_path/"broken")!r}, chunk=11)'
    said = children.until_done(call, seeded(), 12, lines=(1, 6))
    rows = sum(1 for _ in said)
    assert children.kills-n>=10 and rows<len(ActivationStore.open(acts))/11
    a,b = files(tmp_path/'whole'),files(tmp_path/'broken')
    assert [*a]==[*b] and 'index.json' in a
    for k in a: assert a[k].read_bytes()==b[k].read_bytes(), k

def die_naming(name, before):
    "Be killed when a file gets its name, any file where it is None, just before or just after"
    replace = os.replace
    def moved(src, dst):
        mine = name in (None, Path(dst).name)
        if before and mine: die()
        replace(src, dst)
        if mine: die()
    os.replace = moved

@pytest.mark.parametrize('name,before', [('pass.json', True), ('pass.json', False), ('index.json', False), ('index.json', True)])
def test_an_index_killed_at_the_naming_of_its_files(name, before, tmp_path, children, acts):
    call = lambda where: f'index({str(acts)!r}, {str(tmp_path/where)!r}, chunk=200)'
    children.run(call('whole'))
    assert children.run(f'die_naming({name!r}, {before}); {call("broken")}') is None
    children.run(call('broken'))
    a,b = files(tmp_path/'whole'),files(tmp_path/'broken')
    assert [*a]==[*b] and all(a[k].read_bytes()==b[k].read_bytes() for k in a)

def test_a_scoring_killed_at_random(tmp_path, children, acts):
    "A part is kept as a whole or not at all; the same call finishes the rest and gives the same numbers; the store is untouched"
    before = {k: (p.read_bytes(), p.stat().st_mtime_ns) for k,p in files(acts).items()}
    whole,keep,rnd = json.loads(scores(acts)),tmp_path/'kept',seeded()
    call = lambda dies=None: f'say(scores({str(acts)!r}, {str(keep)!r}, {dies}))'
    last = whole['asked'] # within the splicing: the rest is asked within the core part
    assert last>10
    for dies in [rnd.randint(1, last-1) for _ in range(4)]:
        assert children.run(call(dies)) is None, f'it was not killed at {dies} of {last}'
        assert not files(tmp_path/'kept')
    assert children.run(call(last)) is None and len(files(keep))==1
    done = json.loads(children.run(call())[-1])
    assert done==dict(scores=whole['scores'], asked=1) and len(files(keep))==2
    assert json.loads(children.run(call())[-1])==dict(scores=whole['scores'], asked=0)
    assert {k: (p.read_bytes(), p.stat().st_mtime_ns) for k,p in files(acts).items()}==before

@pytest.mark.parametrize('before', [True, False])
def test_a_scoring_killed_at_the_naming_of_a_part(before, tmp_path, children, acts):
    "What was not named yet is made again, and what was cut off is not taken for a part"
    keep = tmp_path/'kept'
    call = f'say(scores({str(acts)!r}, {str(keep)!r}))'
    whole = json.loads(scores(acts))
    assert children.run(f'die_naming(None, {before}); {call}') is None
    named = [p for p in files(keep).values() if p.suffix=='.json' and not p.name.startswith('.')]
    assert len(named)==(not before)
    for p in files(keep).values(): os.truncate(p, p.stat().st_size//2)
    assert json.loads(children.run(call)[-1])==whole
    assert json.loads(children.run(call)[-1])==dict(whole, asked=0)
