"Plans: bytes against what a run takes, the caller's things untouched, refusals that say what fits, and the forecast of dead features"
import json, math, os, shutil, subprocess, sys
import pytest, torch
from pathlib import Path
from sparsenb.core import dictionaries
from sparsenb.corpus import load_corpus
from sparsenb.outlook import plan_evaluate, plan_index
from sparsenb.planner import Forecast, Peak, dead_forecast, forecast_table, plan, plan_collect
from sparsenb.store import ActivationStore
from sparsenb.train import fit

torch.set_num_threads(1)

def rows(n=6000, d=32, seed=0): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
def topk(d=32, m=256, **kw): return dictionaries['topk'](d, m, **{**dict(k=4), **kw})
def state(d): return {k: v.clone() for k,v in d.state_dict().items()}

@pytest.fixture(scope='module')
def store(tmp_path_factory): return ActivationStore.from_rows(tmp_path_factory.mktemp('acts')/'s', rows(40_000, 256)+1, dtype='bfloat16')


# What is predicted

def test_parts_follow_from_shapes(tmp_path):
    d = topk()
    p = plan(d, rows(), 64_000, 640, path=tmp_path/'run', index=True, calibrate=0)
    n = 4*sum(q.numel() for q in d.parameters())
    held = sum(v.numel()*v.element_size() for v in d.state_dict().values())
    assert (p['weights'].memory,p['gradient'].memory,p['moments'].memory)==(held, 4*(256+32), 2*n)
    assert plan(d, rows(), 64_000, 640, grad_clip=1., calibrate=0)['gradient'].memory==n # the dense path writes them out
    assert p['data'].memory==4*6000*32 and p['checkpoints'].disk==3*(held+2*n) and p['result'].disk==held
    assert p['index pass'].disk==12*6000*4+12*6000 and p['index pass'].left==0 and 500<p['columns'].disk/256<1000 and p.memory-p.more==held+4*6000*32
    assert p.seconds is None and 'not tried' in p['steps'].note and not (tmp_path/'run').exists() and not any(tmp_path.iterdir())

def test_the_table_has_a_row_for_each_part():
    p = plan(topk(), rows(), 64_000, 640, calibrate=.1)
    t = p.table()
    assert t.column('part')==(*(q.name for q in p.parts), 'in all', 'with the process') and 'gamma' in t.caption and 'moments' in repr(p) and '<table' in p._repr_html_()
    assert p.seconds==pytest.approx(sum(q.seconds or 0 for q in p.parts)) and p['steps'].seconds>0

@pytest.mark.parametrize('name,kw', [('topk', dict(k=4)), ('batch_topk', dict(k=4)), ('relu', {}), ('matching_pursuit', {})])
def test_planning_leaves_everything_as_it_was(name, kw, store):
    "Weights, buffers, mode, generators, tile, the tensor, the order of the store: to the bit; and the run after it is the run without it"
    x = rows()
    for data,d_in in ((x, 32), (store, 256)):
        make = lambda: dictionaries[name](d_in, 64, **kw)
        d,gen = make().train(False),torch.get_rng_state()
        before,keep = state(d),x.clone()
        plan(d, data, 6400, 256, calibrate=.02)
        assert all(torch.equal(v, before[k]) for k,v in d.state_dict().items()) and d.state_dict().keys()==before.keys()
        assert torch.equal(torch.get_rng_state(), gen) and torch.equal(x, keep) and not d.training and all(p.grad is None for p in d.parameters())
        other = make()
        for e in (d, other): fit(e, data, 256*6, 256)
        assert all(torch.equal(v, other.state_dict()[k]) for k,v in d.state_dict().items())

def test_an_iterator_loses_nothing():
    it = iter(rows().split(100))
    p = plan(topk(), it, 6400, 256, calibrate=.05)
    assert 'tried on random rows' in p['steps'].note and torch.equal(next(it), rows()[:100])

def test_what_cannot_be_tried_says_why():
    assert 'solved, not trained' in plan(dictionaries['pca'](32, 16), rows(), 6400, 256)['steps'].note
    with pytest.raises(ValueError, match='100 rows, a batch needs 256'): plan(topk(), rows(100), 6400, 256)
    p = plan(topk(d_out=8), (rows(), rows(d=8)), 6400, 256, calibrate=.05)
    assert p.seconds>0 and [q.name for q in p.parts].count('data')==2

measured = '''
import json, sys, torch; torch.set_num_threads(1)
from sparsenb.core import dictionaries; from sparsenb.store import ActivationStore; from sparsenb.train import fit; from sparsenb.planner import *
(acts,name,m,batch,steps,path),planned = json.loads(sys.argv[1]),sys.argv[2]=='plan'
d,store = dictionaries[name](256, m),ActivationStore.open(acts)
if planned: p = plan(d, store, batch*steps, batch, path=path, calibrate=.5); print(p.peak, p.left)
else:
    before = resident()
    with Peak() as peak: fit(d, store, batch*steps, batch, path=path)
    print(before+peak.bytes, 0)
'''

def in_a_process(args, what):
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', measured, json.dumps(args), what], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert r.returncode==0, r.stderr[-2000:]
    return map(float, r.stdout.split()[-2:])

@pytest.mark.skipif(sys.platform!='linux', reason='reads /proc')
@pytest.mark.parametrize('name,m,batch,steps,saved', [('topk', 8192, 2048, 8, False), ('topk', 2048, 4096, 8, True), ('batch_topk', 2048, 2048, 8, False)])
def test_bytes_are_those_of_the_run(name, m, batch, steps, saved, store, tmp_path):
    "Peak resident memory of a fresh process that trains is at most a quarter above what another one planned and at most a third below, its disk within 5 %"
    args = [str(store.path), name, m, batch, steps, str(tmp_path/'run') if saved else None]
    peak,left = in_a_process(args, 'plan')
    assert not any(tmp_path.iterdir())
    actual,_ = in_a_process(args, 'run')
    assert -1/3<actual/peak-1<.25, (actual, peak)  # from -17 to +1 % where this was written; allocators and libraries of other machines differ
    if saved: assert abs(sum(f.stat().st_size for f in (tmp_path/'run').rglob('*') if f.is_file())/left-1)<.05


# Refusals

def test_memory_that_is_not_there_is_refused_with_what_fits(monkeypatch):
    x,d = rows(20_000, 64),topk(64, 16_384)
    need = plan(d, x, 64_000, 4096, calibrate=0).memory
    monkeypatch.setenv('SPARSENB_MEMORY', str(int(.6*need)))
    p = plan(d, x, 64_000, 4096)
    assert p.seconds is None and 'no room for a copy' in p['steps'].note
    with pytest.raises(MemoryError, match=r'largest part is (moments|tile) .*d_sae=[\d_]+') as e: p.check()
    m = int(str(e.value).split('d_sae=')[1].split()[0].rstrip(';,'))
    assert plan(topk(64, m), x, 64_000, 4096, calibrate=0).check().memory<=.6*need
    with pytest.raises(MemoryError): plan(topk(64, int(1.2*m)), x, 64_000, 4096, calibrate=0).check()

def test_a_batch_that_is_too_large_is_refused_with_one_that_fits(monkeypatch):
    x,d = rows(200_000, 64),topk(64, 128)
    monkeypatch.setenv('SPARSENB_MEMORY', '300MB')
    with pytest.raises(MemoryError, match='largest part is batch .*; batch_size=') as e: plan(d, x, 400_000, 150_000, calibrate=0).check()
    b = int(str(e.value).split('batch_size=')[1].split()[0].rstrip(';,'))
    assert plan(d, x, 400_000, b, calibrate=0).check() and 0<b<150_000

def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    p = plan(topk(), rows(), 6400, 256, path=tmp_path/'a'/'run', calibrate=0)
    assert p.check() is p
    monkeypatch.setattr(shutil, 'disk_usage', lambda f: shutil._ntuple_diskusage(10**9, 10**9-1000, 1000))
    with pytest.raises(OSError, match='has 1 kB free: its largest part is checkpoints'): p.check()
    assert not (tmp_path/'a').exists()


# Predicted against actual

def test_forecast_is_kept_and_shown(tmp_path):
    d,said = topk(),[]
    p = plan(d, rows(), 64_000, 640, path=tmp_path/'run', calibrate=.1)
    run = fit(d, rows(), 64_000, 640, path=tmp_path/'run', callbacks=[Forecast(p, show=lambda t: said.append(t.title))])
    f = run.forecast
    assert said==[p.title, 'Predicted and actual'] and f['finished']
    on_disk = sum(q.stat().st_size for q in (tmp_path/'run').rglob('*') if q.is_file())
    assert f['actual']['disk']==on_disk and f['predicted']['disk']==p.left==pytest.approx(2/3*p['checkpoints'].disk+p['result'].disk)
    assert forecast_table(f).column('what')==('seconds','cpu','memory','disk')

def test_the_peak_ends_with_an_exception():
    with pytest.raises(KeyError):
        with Peak() as p:
            x = torch.ones(5_000_000)
            raise KeyError
    assert not p._thread.is_alive()
    if sys.platform=='linux': assert 15e6<p.bytes<40e6


# Stores

@pytest.mark.parametrize('dtype,sites', [('bfloat16', 'resid_post.1'), ('float32', ['resid_post.0','mlp_out.1'])])
def test_a_store_is_as_large_as_planned(dtype, sites, tmp_path):
    texts = [f'def f{i}(x):\n    return x+{i}\n\n'*40 for i in range(40)]
    p = plan_collect('stdlib-4l', texts, sites, n_tokens=9000, path=tmp_path/'acts', dtype=dtype, shard_rows=4096, calibrate=.2)
    assert not any(tmp_path.iterdir()) and p.seconds>0
    ActivationStore.collect('stdlib-4l', texts, sites, n_tokens=9000, path=tmp_path/'acts', dtype=dtype, shard_rows=4096, progress=False)
    size = sum(f.stat().st_size for f in (tmp_path/'acts').iterdir())
    assert abs(size/p['store'].disk-1)<.05
    whole = plan_collect('stdlib-4l', texts, sites, path=tmp_path/'acts2', dtype=dtype, calibrate=0)
    n = len(ActivationStore.collect('stdlib-4l', texts, sites, path=tmp_path/'acts2', dtype=dtype, progress=False))
    assert whole.seconds is None and abs(int(whole['store'].note.split()[0].replace(',', ''))/n-1)<.15

def test_a_plan_of_a_store_refuses_what_collect_refuses(tmp_path):
    with pytest.raises(KeyError, match='resid_post'): plan_collect('stdlib-4l', ['some text'], 'resid_pots.1', 100, path=tmp_path)
    with pytest.raises(ValueError, match='seq_len'): plan_collect('stdlib-4l', ['some text'], 'resid_post.1', 100, path=tmp_path, seq_len=100_000)


# Indices and evaluations

def test_an_index_is_as_large_as_planned_and_compared(tmp_path):
    import sparsenb.index
    from sparsenb.reading import FeatureIndex
    texts = load_corpus([(d.name, d.text[:3000]) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(40))])
    s = ActivationStore.collect('stdlib-4l', texts, 'resid_post.1', 9000, tmp_path/'acts', progress=False)
    d,said = topk(256, 512, k=8),[]
    p = plan_index(d, s, 'stdlib-4l', tmp_path/'index', calibrate=4)  # time for every row: how many a short time allows is another number on every machine
    assert p.seconds>0 and p.cpu>0 and not (tmp_path/'index').exists()
    with p.against(show=said.append) as a: FeatureIndex.build(d, s, 'stdlib-4l', tmp_path/'index')
    f = a.forecast
    assert f['finished'] and abs(f['actual']['disk']/f['predicted']['disk']-1)<.1, f
    assert said[0].column('what')==('seconds','cpu','memory','disk')
    e = plan_evaluate(d, s, 'stdlib-4l', n_tokens=9000, n_sequences=16, n_boot=50)
    assert e['core'].cpu>0 and e['splice'].cpu>0 and 2048*512*4<e.memory<2**31 # one batch's dense codes are in it
    with pytest.raises(TypeError, match='n_topp is not planned'): plan_index(d, s, n_topp=3)
    with pytest.raises(ValueError, match='width 32'): plan_index(topk(), s)

def test_stages_of_an_index_count_once():
    "They follow each other: the plan holds the largest, and no more rows than are sorted at a time"
    from sparsenb.outlook import _stages
    held = _stages(topk(256, 512, k=8), None, 1e9, 16e6, 1e6)
    assert held['sorting']<=100e6*5 and held['pairs']==85*512**2+100e6 and held['weights']==8*512*256+8*512**2


# Dead features

class Uncentred(dictionaries['topk']):
    "TopK that starts with `b_dec` at zero"
    name = 'uncentred'
    def init_from(self, *stats):
        super().init_from(*stats)
        self.b_dec.data.zero_()

def planted(gamma, n=30_000, d=32, m=128, seed=0):
    "Sparse sums of directions, and a mean of the length that makes gamma"
    g = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    x = (torch.rand(n, m, generator=g)<.04)*torch.rand(n, m, generator=g)@W
    x = x-x.mean(0)
    return x+gamma*x.std(0).norm()*torch.nn.functional.normalize(torch.randn(d, generator=g), dim=0)

def test_gamma_ranks_the_dead_share_and_centring_is_the_remedy(tmp_path):
    "Without centring most features die at gamma 10 and none at 0.1; started at the median, as fit does, none die at either"
    share = {}
    for gamma in (.1, 10.):
        s = ActivationStore.from_rows(tmp_path/f'{gamma}', planted(gamma), dtype='float32')
        assert s.gamma==pytest.approx(gamma, rel=.02) and dead_forecast(s.gamma).level==s.dead_warning
        for cls in (Uncentred, dictionaries['topk']):
            run = fit(cls(32, 256, k=8, k_aux=0, dead_after=30_000), s, 512*300, 512)
            share[cls.name,gamma] = run.history['dead'][-1]
    assert share['uncentred',.1]<.05 and share['uncentred',10.]>.5, share
    assert share['topk',.1]<.05 and share['topk',10.]<.05, share

def test_levels_are_those_of_the_store():
    class S(ActivationStore):
        def __init__(self, g): self.g = g
        gamma = property(lambda s: s.g)
    for g in (0, .3, .5, 1, 1.999, 2, 50, math.inf): assert dead_forecast(g).level==S(g).dead_warning
    assert 'median' in dead_forecast(3).advice and '90%' in dead_forecast(3).advice
    for g in (-1, math.nan):
        with pytest.raises(ValueError, match='a ratio of norms'): dead_forecast(g)
