"Two and four processes must train what one would: the same weights, from a divided batch or a divided dictionary, also after one of them was killed"
import json, os, random, shutil, signal, subprocess, sys, tempfile, time, warnings
from datetime import timedelta
from pathlib import Path
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sparsenb.core import dictionaries
from sparsenb.dictionary import load_dictionary
from sparsenb.parallel import _PartSource
from sparsenb.ranks import Ranks, traffic, undivided
from sparsenb.store import ActivationStore
from sparsenb.train import Callback, Progress, StoreSource, fit
from killing import Children

D,M,B,STEPS = 32,512,64,20


# What the processes do

def data(n=2048, d=D, seed=3):
    "Rows made of a few of 96 directions each"
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 96, generator=g)*(torch.rand(n, 96, generator=g)<.08))@torch.randn(96, d, generator=g)

def train(name, mesh, x=None, cfg=None, **kw):
    d = dictionaries[name](D, cfg.pop('d_sae', M) if cfg else M, **(cfg or {}))
    kw = dict(lr=3e-3, seed=0, log_every=5) | kw
    return d,fit(d, data() if x is None else x, STEPS*B, B, mesh=mesh, **kw)

def off(a, b):
    "Largest difference between two dictionaries, buffers included"
    a,b = a.state_dict(),b.state_dict()
    return max((v.double()-b[k].double()).abs().max().item() for k,v in a.items())

CFG = {'topk': dict(k=8, k_aux=4, dead_after=300), 'batch_topk': dict(k=8, k_aux=4, dead_after=300), 'transcoder': dict(k=8, k_aux=4, dead_after=300, d_out=24), 'random_features': dict(k=8)}

def against_one(name, meshes, rank, **kw):
    "For each mesh: difference from one process, how far that one moved, the dead features both logged"
    x,out = (data(), data(d=24)) if name=='transcoder' else data(), {}
    got = {str(m): train(name, m, x, {**CFG[name]}, **kw) for m in meshes}
    if rank: return
    one,run = train(name, False, x, {**CFG[name]}, **kw)
    for m,(d,r) in got.items():
        same = {k: abs(r.history[k]-run.history[k]).max().item() for k in ('loss','l0','fvu','dead')}
        out[m] = dict(off=off(d, one), moved=(one.W_dec-type(one)(**one.cfg).W_dec).abs().max().item(), dead=run.history['dead'].max().item(), engine=r.engine.name, log=same, sent=dict(r.ranks.sent), calls=dict(r.ranks.calls))
    return out

def told(f):
    "The message of the error that `f` ends with"
    try: f()
    except Exception as e: return f'{type(e).__name__}: {e}'

class Dies(Callback):
    def __init__(self, at): self.at = at
    def after_step(self, run, out):
        if run.step==self.at: raise InterruptedError('as planned')

def broken(folder, mesh):
    "A training that ends in the middle, its newest checkpoint at step 10"
    return told(lambda: train('topk', mesh, cfg={**CFG['topk']}, path=folder, checkpoint_every=5, callbacks=[Dies(13)]))

def refusals(r, folder):
    "Name -> the error of each rank, and whether the disk is as it was"
    def one(nm, name='topk', mesh='features', x=None, cfg=None, there=(), **kw):
        p = folder/f'refused {nm}'
        if there and not r: (p/there).mkdir(parents=True)
        dist.barrier()
        before = sorted(p.rglob('*'))
        said = [None]*2
        dist.all_gather_object(said, told(lambda: train(name, mesh, x, cfg, path=p, **kw)))
        return said, sorted(p.rglob('*'))==before
    x = data()
    nan = x.clone(); nan[0,0] = float('nan')
    return dict(d_sae=one('d_sae', cfg=dict(d_sae=511)), batch=told(lambda: fit(dictionaries['relu'](D, M), x, 6300, 63, mesh='rows')), mesh=one('mesh', mesh=dict(rows=3)), word=one('word', mesh='columns'),
        data=one('data', x=x+r), lr=one('lr', lr=[1e-3, 2e-3][r]), seed=one('seed', cfg=dict(seed=r)), path=one('path', there='.tmp-4x1-step-00000010'), plain=one('plain', there='step-00000010'),
        method=one('method', 'matryoshka'), solved=one('solved', 'pca', 'rows', cfg=dict(d_sae=16)), norm=one('norm', 'monet', 'rows', cfg=dict(d_sae=64)), alone=one('alone', x=nan if r else x),
        engine=one('engine', engine='bf16'), milestones=one('milestones', milestones=[[5], [6]][r]), aux=one('aux', 'atoms', 'rows', cfg=dict(d_sae=64, k_aux=8, k=4, aux_coef=1.)))

def registry(r):
    "Every method by rows: the difference from one process, or why it was refused"
    out,x = {},data(1024)
    for name in dictionaries:
        a,b = (dictionaries[name](D, 64, seed=0, dead_after=300) for _ in range(2))
        kw = dict(n_tokens=STEPS*32, batch_size=32, seed=0, lr=1e-3)
        try: fit(b, x, mesh='rows', **kw)
        except ValueError as e: out[name] = str(e); continue
        if not r: fit(a, x, mesh=False, **kw); out[name] = off(a, b)
    return out

def stored(r, folder):
    "From a store: what the ranks read, and what it leads to"
    store = ActivationStore.open(folder/'acts')
    class Part: n,at = dict(rows=2),dict(rows=r)
    mine = next(_PartSource(StoreSource(store, B, 0, D, 'cpu'), Part).batches(7))
    all_ = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(all_, mine.contiguous())
    d,_ = train('topk', 'rows', store, {**CFG['topk']})
    if not r: return torch.equal(torch.cat(all_), next(StoreSource(store, B, 0, D, 'cpu').batches(7))), off(d, train('topk', False, store, {**CFG['topk']})[0])

def kept(r, folder):
    "For each mesh: which checkpoints stay, which are milestones, and how far one of them is from that of one process"
    out = {}
    for m in ('rows', 'features'):
        d,run = train('topk', m, cfg={**CFG['topk']}, path=folder/f'kept {m}', checkpoint_every=5, milestones=[0, 7, 10])
        if r: continue
        _,one = train('topk', False, cfg={**CFG['topk']}, path=folder/f'kept {m} by one', checkpoint_every=5, milestones=[7])
        a,b = run.milestone(7),one.milestone(7)
        out[m] = dict(steps=[int(p.name[5:]) for p in run.checkpoints], kept=[int(p.name[5:]) for p in run.milestones], off=off(a, b), moved=off(a, d), last=off(run.milestone(10), d), about=[a.provenance['steps'], a.training, type(a).__name__], lost=told(lambda: run.milestone(5)))
    return out

def skipped(r):
    "Two batches of 75 with a number that is not finite, in rows of different ranks"
    x,out = list(data(75*B).split(B)),{}
    x[70],x[72] = x[70].clone(),x[72].clone(); x[70][5,2] = float('nan'); x[72][40,3] = float('inf')
    def go(mesh, most, engine='auto'):
        d = dictionaries['topk'](D, M, **CFG['topk'])
        return d,fit(d, x, 75*B, B, lr=3e-3, seed=0, log_every=1, mesh=mesh, max_skipped=most, engine=engine)
    for m,engine in (('rows', 'auto'), ('rows', 'dense'), ('features', 'auto')):
        d,run = go(m, 2, engine)
        said = [None]*2
        dist.all_gather_object(said, [told(lambda: go(m, most, engine)) for most in (0, 1)])
        if not r:
            one,alone = go(False, 2)
            out[f'{m} {engine}'] = dict(off=off(d, one), n=[run.skipped, alone.skipped, run.step, d.n_seen.item()], rows=[r['step'] for r in run.rows]==[r['step'] for r in alone.rows], log=run.rows[-1]['skipped'], provenance=d.provenance['skipped'], said=said)
    return out

class Rootless(dictionaries['topk']):
    "TopK with an infinite gradient after step 11, where rank 1 trains"
    name = 'rootless'
    def step(self, x, y=None):
        out,b = super().step(x, y),self.b_enc
        return out._replace(loss=out.loss+(b-b.detach()).abs().sqrt().sum()) if round(self.progress*STEPS)==11 and (not dist.is_initialized() or dist.get_rank() or self.alone) else out
    alone = False

def gradient(r):
    "A gradient that is infinite on one rank alone is passed over on both"
    def go(mesh):
        d = Rootless(D, M, **CFG['topk']); d.alone = mesh is False
        return d,fit(d, data(), STEPS*B, B, lr=3e-3, seed=0, mesh=mesh, max_skipped=1)
    d,run = go('rows')
    if not r: return off(d, go(False)[0]), run.skipped

def of_two(r, folder):
    yield 'topk', against_one('topk', ('rows', 'features'), r)
    yield 'dense', against_one('topk', ('rows', 'features'), r, engine='dense')
    yield 'kept', kept(r, folder)
    yield 'skipped', skipped(r)
    yield 'gradient', gradient(r)
    yield 'batch_topk', against_one('batch_topk', ('rows', 'features'), r)
    yield 'transcoder', against_one('transcoder', ('rows', 'features'), r)
    yield 'clip', against_one('topk', ('rows', 'features'), r, grad_clip=1e-7)
    yield 'random_features', against_one('random_features', ('rows', 'features'), r)
    yield 'broken', broken(folder/'broken', 'features')
    yield 'registry', registry(r)
    yield 'stored', stored(r, folder)
    yield 'refused', refusals(r, folder)

def of_four(r, folder):
    grids = ('features', dict(rows=2, features=2))
    for name in ('topk', 'batch_topk'): yield name, against_one(name, grids, r)
    Ranks.factor = 1.
    for name in ('topk', 'batch_topk'): yield f'tight {name}', against_one(name, grids[:1], r)
    Ranks.factor = 2.
    yield 'went on', [train('topk', m, cfg={**CFG['topk']}, path=folder/f'went on {i}', checkpoint_every=5)[1].step for i,m in enumerate(grids)]

def process(r, n, folder, what):
    torch.set_num_threads(1); warnings.simplefilter('ignore')
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet{n}', rank=r, world_size=n, timeout=timedelta(seconds=300))
    for name,o in globals()[what](r, Path(folder)):
        if not r: (Path(folder)/f'{n} {name}.json').write_text(json.dumps(o))
    dist.barrier(); dist.destroy_process_group()

def world(n, folder, what):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('GLOO_SOCKET_IFNAME', 'lo')
        mp.start_processes(process, (n, str(folder), what), nprocs=n, start_method='spawn')
    return {p.stem[2:]: json.loads(p.read_text()) for p in folder.glob(f'{n} *.json')}

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    f = tmp_path_factory.mktemp('ranks')
    ActivationStore.from_rows(f/'acts', data())
    return f

@pytest.fixture(scope='module')
def two(folder): return world(2, folder, 'of_two')

@pytest.fixture(scope='module')
def four(folder, two):
    for i in range(2): shutil.copytree(folder/'broken', folder/f'went on {i}')
    return world(4, folder, 'of_four')

@pytest.fixture(scope='module')
def one(): return train('topk', False, cfg={**CFG['topk']})[0]


# Equal to one process

def check(got, bar):
    assert got['moved']>.02 and got['dead']>0, 'nothing was learned, or nothing was ever dead: the comparison says little'
    assert got['off']<=bar
    for k,v in got['log'].items(): assert v<=1e-4, k

NAMES = ('topk', 'batch_topk', 'transcoder')

@pytest.mark.parametrize('name', NAMES)
def test_two_ranks_that_divide_the_batch_train_what_one_process_would(two, name): check(two[name]['rows'], 1e-6)

@pytest.mark.parametrize('name', NAMES)
def test_two_ranks_that_divide_the_features_train_what_one_process_would(two, name): check(two[name]['features'], 1e-5)

def test_no_gradient_is_whole_unless_it_must_be(two):
    "The path `torch` on each rank, and `dense` where it is asked for or clipping needs it: the same weights, and the same bytes"
    assert {g['engine'] for n in NAMES for g in two[n].values()}=={'torch'} and {g['engine'] for n in ('dense','clip') for g in two[n].values()}=={'dense'}
    check(two['dense']['rows'], 1e-6); check(two['dense']['features'], 1e-5)
    assert two['dense']['rows']['sent']['gradients']==two['topk']['rows']['sent']['gradients']

@pytest.mark.parametrize('how', ['rows auto', 'rows dense', 'features auto'])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(two, how):
    got = two['skipped'][how]
    assert got['off']<=(1e-6 if 'rows' in how else 1e-5) and got['n']==[2, 2, 75, 73*B] and got['rows'] and got['log']==got['provenance']==2
    for rank,(none,one) in enumerate(got['said']):
        assert 'FloatingPointError: loss is nan at step 71' in none and 'at step 73, after 1 skipped steps (max_skipped=1)' in one
        if 'rows' in how: assert ('row 5, dimension 2' in none)==(rank==0) and ("another rank's rows gave it" in none)==(rank==1)

def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(two):
    difference,n = two['gradient']
    assert difference<=1e-6 and n==1

def test_features_that_are_not_trained_can_be_divided_too(two):
    for got in two['random_features'].values(): assert got['moved']==0 and got['off']<=1e-6

@pytest.mark.parametrize('name', ('topk', 'batch_topk'))
def test_four_ranks_train_what_one_process_would(four, name):
    for got in four[name].values(): check(got, 1e-5)

def test_gradients_are_clipped_by_the_norm_of_all_ranks(two):
    assert two['clip']['rows']['off']<=1e-6 and two['clip']['features']['off']<=1e-5
    assert abs(two['clip']['rows']['moved']-two['topk']['rows']['moved'])>1e-7, 'the clip must have had an effect'

@pytest.mark.parametrize('name', ('topk', 'batch_topk'))
def test_too_few_candidates_cost_a_second_exchange_and_nothing_else(four, name):
    what = dict(topk='candidates', batch_topk='cut')[name]
    tight,wide = four[f'tight {name}']['features'],four[name]['features']
    check(tight, 1e-5)
    assert tight['calls'][what]>STEPS and tight['sent'][what]!=wide['sent'][what]

REFUSED = ('atoms', 'gba', 'ica', 'identity', 'kmeans', 'monet', 'nmf', 'pca', 'top_afa')

def test_every_method_is_split_exactly_or_refused(two):
    "Two ranks, each with half the rows, for the whole registry"
    assert {*two['registry']}=={*dictionaries}
    for name,v in two['registry'].items():
        if name in REFUSED: assert v.startswith((f'{name} is solved', f'two steps of {name} on parts'))
        else: assert isinstance(v, float) and v<=1e-6, (name, v)

def test_ranks_read_together_what_one_process_reads(two):
    same,difference = two['stored']
    assert same and difference<=1e-6


# What goes over the wire

def test_bytes_are_those_of_the_formulas(two, four):
    for got,grid in ((two['topk'], dict(rows=2)), (two['topk'], dict(features=2)), (four['topk'], dict(features=4)), (four['topk'], dict(rows=2, features=2))):
        key = [*grid][0] if len(grid)==1 else str(grid)
        want = traffic(D, M, B, k=8, **grid)
        sent = got[key]['sent']
        for what,n in want.items():
            if grid.get('features')==4 and what=='candidates': assert n*STEPS<=sent[what]<=3*n*STEPS # room for half of k each: rows with more on one rank are done again, at worst all of them with k
            else: assert sent[what]==pytest.approx(n*STEPS, abs=STEPS), (key, what) # a byte is a whole number
        also = {*sent}-{*want}
        assert also<={'aux', 'log', 'whole'}

def test_dividing_features_is_cheaper_by_batch_over_dictionary():
    "2MD gradients twice, against BD of reconstruction twice: B/2M"
    at = dict(d_in=2304, d_sae=1<<20, batch_size=8192, k=64)
    by_features,by_rows = traffic(**at, features=8),traffic(**at, rows=8)
    assert by_features['recon']/by_rows['gradients']==pytest.approx(8192/(2*(1<<20)), rel=1e-3)
    assert by_features['candidates']==pytest.approx(8192*16*4*7, rel=1e-5)


# Checkpoints

def test_a_training_of_two_goes_on_with_four(two, four, folder, one):
    assert 'as planned' in two['broken'] and four['went on']==[STEPS]*2
    for i in range(2): assert off(load_dictionary(folder/f'went on {i}'/'final'), one)<=1e-5

def test_milestones_stay_and_open_whole(two):
    for got in two['kept'].values():
        assert got['steps']==[0, 7, 10, 15, 20] and got['kept']==[0, 7, 10] and got['about']==[7, False, 'TopK']
        assert got['off']<=1e-5 and got['moved']>.01 and got['last']>1e-3 and 'no milestone at step 5: there are 0, 7, 10' in got['lost']

def parted(path): fit(dictionaries['topk'](D, M, **CFG['topk']), data(), STEPS*B, B, lr=3e-3, seed=0, mesh='features', path=path, checkpoint_every=4, milestones=[8])

def die_in(stage):
    "From now on be killed while the checkpoint of step 4 is deleted, or that of step 16 is given its name"
    replace,rmtree = os.replace,shutil.rmtree
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def moved(a, b):
        if stage=='before' and Path(a).name=='step-00000004' or stage=='named' and Path(b).name=='step-00000016': die()
        replace(a, b)
        if stage=='aside' and Path(a).name=='step-00000004': die()
    def gone(path, *a, **k):
        if stage=='half' and Path(path).exists() and '00000004' in Path(path).name: (Path(path)/'mesh.json').unlink(); die()
        rmtree(path, *a, **k)
    os.replace,shutil.rmtree = moved,gone

@pytest.fixture(scope='module')
def children():
    with Children('test_parallel') as c: yield c

@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    parted(path := tmp_path_factory.mktemp('parted'))
    return path

@pytest.mark.parametrize('stage', ['before', 'aside', 'half', 'named'])
def test_killed_while_checkpoints_are_deleted(stage, children, unbroken, tmp_path):
    "Two and the milestones stay, no half of one is taken for a checkpoint, and the same call gives the same bits"
    assert children.run(f'die_in({stage!r}); parted({str(tmp_path)!r})') is None, 'it was not killed'
    assert (tmp_path/'fit.lock').exists() and all((p/'mesh.json').is_file() for p in tmp_path.glob('step-*'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', module='torch')
        parted(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir())==sorted(p.name for p in unbroken.iterdir())==['final', 'log.csv', 'step-00000008', 'step-00000016', 'step-00000020']
    for n in ('step-00000008', 'step-00000020'): assert pieces(tmp_path/n)==pieces(unbroken/n)
    assert (tmp_path/'final'/'weights.safetensors').read_bytes()==(unbroken/'final'/'weights.safetensors').read_bytes()

def test_a_second_training_at_the_same_path_is_refused(tmp_path):
    said = []
    class Second(Callback):
        def after_step(self, run, out):
            if run.step==7: said.extend(told(lambda: fit(dictionaries['topk'](D, M), data(), STEPS*B, B, mesh=m, path=tmp_path)) for m in ('features', False))
    train('topk', 'features', cfg={**CFG['topk']}, path=tmp_path, callbacks=[Second()])
    assert len(said)==2 and all('RuntimeError: another process is writing' in s for s in said), said
    assert not (tmp_path/'fit.lock').exists()

def test_the_bar_names_the_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('SPARSENB_PROGRESS', 'text')
    train('topk', 'features', cfg={**CFG['topk']}, callbacks=[Progress()])
    assert '(path torch)' in capsys.readouterr().err

@pytest.fixture
def copy(two, folder, tmp_path): return shutil.copytree(folder/'broken', tmp_path/'run')

def went_on(path, **kw): return train('topk', None, cfg={**CFG['topk']}, path=path, checkpoint_every=5, **kw)

def test_a_training_of_two_goes_on_with_one(copy, one):
    d,run = went_on(copy)
    assert run.step==STEPS and [r['step'] for r in run.rows]==[5, 10, 15, 20]
    assert off(d, one)<=1e-5
    assert off(load_dictionary(copy/'final'), d)==0
    assert [p.name for p in run.checkpoints]==['step-00000015', 'step-00000020']

def test_a_damaged_checkpoint_gives_way_to_the_one_before(copy, one):
    file = sorted((copy/'step-00000010').glob('*.safetensors'))[1]
    raw = bytearray(file.read_bytes()); raw[-5] ^= 1; file.write_bytes(raw)
    with pytest.warns(UserWarning, match=f'step-00000010 is damaged and was removed .the checksum of {file.name}'): d,_ = went_on(copy)
    assert off(d, one)<=1e-5

def test_checkpoints_of_another_training_are_refused(copy):
    with pytest.raises(ValueError, match='holds another run .lr: 0.003 there, 0.001 now'): went_on(copy, lr=1e-3)
    assert sorted(p.name for p in copy.glob('step-*'))==['step-00000005', 'step-00000010']

def test_no_file_of_a_checkpoint_can_be_executed(copy):
    assert {p.suffix for p in copy.rglob('*') if p.is_file()}<={'.safetensors', '.json', '.csv'}


# Refused, on all ranks, before anything is written

@pytest.mark.parametrize('case,words', [
    ('d_sae', 'd_sae=511 cannot be divided over 2'), ('mesh', 'needs 3 processes, there are 2'), ('word', "got 'columns'"), ('data', 'the ranks differ in data'), ('lr', 'the ranks differ in lr: rank 0 has 0.001, rank 1 has 0.002'),
    ('seed', 'the ranks differ in cfg'), ('path', 'half a checkpoint of another mesh'), ('plain', 'was written by one process'), ('method', 'matryoshka has its own errors'), ('solved', 'pca is solved'),
    ('norm', 'two steps of monet on parts'), ('engine', "the path 'bf16' is for one process"), ('milestones', 'the ranks differ in milestones: rank 0 has [5], rank 1 has [6]'), ('aux', 'two steps of atoms on parts')])
def test_refused(two, case, words):
    said,untouched = two['refused'][case]
    for s in said: assert s and s.startswith('ValueError') and words in s
    assert untouched

def test_a_batch_that_cannot_be_divided_is_refused(two): assert 'batch_size=63 cannot be divided over 2' in two['refused']['batch']

def test_one_rank_that_cannot_begin_stops_all(two):
    (zero,first),untouched = two['refused']['alone']
    assert 'RuntimeError: rank 1 could not begin: ValueError' in zero and 'NaN' in first and untouched

def test_what_can_be_divided_by_features():
    can = [n for n in dictionaries if not undivided(dictionaries[n](16, 64))]
    assert can==['batch_topk', 'random_features', 'topk', 'transcoder']
    assert 'chooses twice' in undivided(dictionaries['topk'](16, 64, k=4, multi_coef=.1))


# Under torchrun, with a rank that is killed

def pieces(checkpoint):
    "(name, offset) -> bytes, whichever rank wrote it"
    out = {}
    for f in checkpoint.glob('*.safetensors'):
        with safe_open(f, 'pt') as o: out |= {(k, tuple(json.loads(o.metadata()['DCP_SHARDING_INFO'])[k]['saved_offsets'])): o.get_tensor(k).numpy().tobytes() for k in o.keys()}
    return out

class Killed(Callback):
    "SIGKILL for rank 1 of the first start, after a step"
    def __init__(self, at): self.at = at
    def after_step(self, run, out):
        if run.step==self.at and os.environ['RANK']=='1' and os.environ['TORCHELASTIC_RESTART_COUNT']=='0': os.kill(os.getpid(), signal.SIGKILL)

def main(folder, at):
    "The script that torchrun starts: nothing in it knows of ranks"
    warnings.simplefilter('ignore')
    for name,callbacks in (('unbroken', []), ('killed', [Killed(int(at))])):
        d = dictionaries['batch_topk'](D, M, **CFG['batch_topk'])
        fit(d, data(), 40*B, B, lr=3e-3, seed=0, path=Path(folder)/name, checkpoint_every=10, callbacks=callbacks)
        (Path(folder)/f"{name} {os.environ['RANK']} {os.environ['TORCHELASTIC_RESTART_COUNT']}.said").write_text(str(off(d, load_dictionary(Path(folder)/name/'final'))))

def test_a_killed_rank_changes_no_bit(tmp_path):
    seed = int(time.time())
    at = random.Random(seed).randrange(11, 39)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'SPARSENB_PROGRESS': 'off', 'GLOO_SOCKET_IFNAME': 'lo'}
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--max-restarts', '1', '--monitor-interval', '0.1', __file__, str(tmp_path), str(at)]
    r = subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=120)
    assert r.returncode==0, f'seed {seed}, killed at {at}\n{r.stderr[-3000:]}'
    said = {tuple(p.stem.split()): float(p.read_text()) for p in tmp_path.glob('*.said')}
    assert {('killed', '0', '1'), ('killed', '1', '1')}<={*said} and not any(s[::2]==('killed', '0') for s in said), f'seed {seed}: the second start must have ended it'
    assert {*said.values()}=={0.}, 'every rank ends with the dictionary that was saved'
    a,b = (tmp_path/n for n in ('unbroken', 'killed'))
    assert (a/'final'/'weights.safetensors').read_bytes()==(b/'final'/'weights.safetensors').read_bytes(), f'seed {seed}, killed at {at}'
    one,other = (pieces(p/'step-00000040') for p in (a, b))
    assert one==other and ('adam.W_enc.exp_avg', (M//2, 0)) in one and ('rng.cpu', (0,)) in one, f'seed {seed}, killed at {at}: moments, counters, generator'
    rows = [json.loads((p/'step-00000040'/'mesh.json').read_text())['rows'] for p in (a, b)]
    assert [{k: v for k,v in r.items() if k!='activations_per_second'} for r in rows[0]]==[{k: v for k,v in r.items() if k!='activations_per_second'} for r in rows[1]]

if __name__=='__main__': main(*sys.argv[1:])
