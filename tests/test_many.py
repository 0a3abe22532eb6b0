"Several dictionaries from one reading: each to the bits of `fit` alone, exact resume, failures that stay where they are"
import shutil
import pytest, torch
import sparsenb.train as train
from sparsenb.core import dictionaries
from sparsenb.dictionary import load_dictionary
from sparsenb.many import fit_many
from sparsenb.store import ActivationStore
from sparsenb.train import Callback, EarlyStop, Progress, fit
from killing import killed_once
from test_train import At, Store, data, interrupt, same

torch.set_num_threads(1)
kinds = dict(topk=dict(k=4), batch_topk=dict(k=4), relu={}, matryoshka=dict(k=4, n_sampled=3), pca=dict(n_fit=1024), codebook=dict(k=2, replace_every=7))
def make(**kw): return [dictionaries[n](8, 32, **{**dict(dead_after=2000), **k}, **kw) for n,k in kinds.items()]
def few(): return [dictionaries['topk'](8, 32, k=4), dictionaries['matryoshka'](8, 24, k=3, n_sampled=3), dictionaries['topk'](8, 16, k=2, seed=5)]
plan = dict(n_tokens=60*64, batch_size=64, checkpoint_every=10, log_every=7)
def rows(run): return [{k: v for k,v in r.items() if k!='activations_per_second'} for r in run.rows]

def test_each_ends_at_the_bits_of_fit_alone(tmp_path):
    "Also two that draw from the generator side by side, and one at another learning rate"
    lrs = [None, 1e-3, None, None, None, None, None]
    many,alone = make()+[dictionaries['matryoshka'](8, 24, k=3, n_sampled=3)],make()+[dictionaries['matryoshka'](8, 24, k=3, n_sampled=3)]
    before = torch.get_rng_state()
    runs = fit_many(many, data(), 200*64, 64, lr=lrs, path=tmp_path, log_every=20)
    assert torch.equal(before, torch.get_rng_state())
    for a,b,lr,run in zip(many, alone, lrs, runs):
        one = fit(b, data(), 200*64, 64, lr=lr, log_every=20)
        same(b, a)
        same(b, load_dictionary(run.path/'final'))
        assert rows(one)==rows(run) and run.stopped is None and run.step==200 and a.training
    assert [r.name for r in runs]==[p.name for p in sorted(tmp_path.iterdir())]==['00-topk','01-batch_topk','02-relu','03-matryoshka','04-pca','05-codebook','06-matryoshka']

def test_what_draws_really_draws():
    "The exactness above means something only if the generator matters"
    a,b = (dictionaries['matryoshka'](8, 24, k=3, n_sampled=3) for _ in range(2))
    class Draw(Callback):
        def after_step(self, run, out): torch.rand(1)
    fit(a, data(), **plan); fit(b, data(), **plan, callbacks=[Draw()])
    assert not torch.equal(a.W_dec, b.W_dec)

@pytest.mark.parametrize('kind', ['store','numpy','list','once','own'])
def test_any_data(kind, tmp_path):
    x = data()
    give = lambda: dict(store=lambda: ActivationStore.open(tmp_path) if tmp_path.joinpath('manifest.jsonl').exists() else ActivationStore.from_rows(tmp_path, x),
                        numpy=x.numpy, list=lambda: list(x.split(100)), once=lambda: (b for _ in range(9) for b in x.split(37)), own=lambda: Store(x))[kind]()
    many,alone = few(),few()
    fit_many(many, give(), **plan)
    for a,b in zip(many, alone): fit(b, give(), **plan); same(a, b)

def test_pairs():
    x,y = data(),data(d=5, seed=1)
    mk = lambda: [dictionaries[n](8, 32, d_out=5, **kw) for n,kw in (('topk', dict(k=4)), ('relu', {}), ('transcoder', {}))]
    many,alone = mk(),mk()
    fit_many(many, (x, y), **plan)
    for a,b in zip(many, alone): fit(b, (x, y), **plan); same(a, b)

# ---- resume ----

@pytest.mark.parametrize('which,step', [(0, 30), (1, 30), (2, 37)])
def test_an_interrupt_between_dictionaries_leaves_them_at_different_steps_and_the_same_call_levels_them(tmp_path, which, step):
    "At a step of checkpoints the first dictionaries have theirs and the others have not"
    whole = few(); fit_many(whole, data(), **plan)
    cut = [[], [], []]; cut[which] = [At(step, interrupt)]
    with pytest.raises(KeyboardInterrupt): fit_many(few(), data(), **plan, path=tmp_path, callbacks=cut)
    newest = [sorted(p.glob('step-*'))[-1].name for p in sorted(tmp_path.iterdir())]
    assert newest==['step-000000'+('30' if i<which or step>30 else '20') for i in range(3)]
    first,seen = [],[]
    class Watch(Callback):
        def before_fit(self, run): first.append(run.step)
        def after_step(self, run, out): seen.append(run.step)
    again = few(); runs = fit_many(again, data(), **plan, path=tmp_path, callbacks=[Watch()])
    for a,b in zip(whole, again): same(a, b)
    assert first==[int(n[-2:]) for n in newest] and len(seen)==sum(60-f for f in first) and seen==sorted(seen)
    assert all([r['step'] for r in run.rows]==[*range(7, 60, 7), 60] for run in runs)

def test_sigkill_and_the_same_call_end_at_the_bits_of_an_unbroken_run(tmp_path):
    whole = few(); fit_many(whole, data(), 300*64, 64, path=tmp_path/'whole', checkpoint_every=10, log_every=7)
    killed_once('test_many', 'fit_many(few(), data(), 300*64, 64, path=sys.argv[1], checkpoint_every=10, log_every=7, callbacks=[At(s, lambda s=s: print(s, flush=True)) for s in range(0, 301, 5)])', tmp_path/'broken', (10, 280))
    for w,n in zip(whole, ('00-topk','01-matryoshka','02-topk')):
        same(w, load_dictionary(tmp_path/'broken'/n/'final'))
        ours,theirs = (train.load_file(tmp_path/d/n/'step-00000300'/'state.safetensors') for d in ('whole','broken'))
        assert ours.keys()==theirs.keys()
        for k in ours: torch.testing.assert_close(ours[k], theirs[k], rtol=0, atol=0, msg=k)
    assert not list((tmp_path/'broken').rglob('.tmp-*'))

def test_damage_and_additions_cost_only_what_they_touch(tmp_path):
    "One whose newest checkpoint is damaged falls back alone; a dictionary added at the end is trained alone"
    whole = few(); fit_many(whole, data(), **plan, path=tmp_path)
    (tmp_path/'01-matryoshka'/'step-00000060'/'run.json').write_text('{')
    extra = [dictionaries['relu'](8, 16) for _ in range(2)]
    fit(extra[0], data(), **plan)
    steps = {}
    class Count(Callback):
        def after_step(self, run, out): steps[run.name] = steps.get(run.name, 0)+1
    again = few()
    with pytest.warns(UserWarning, match='01-matryoshka/step-00000060 is damaged'): fit_many([*again, extra[1]], data(), **plan, path=tmp_path, callbacks=[Count()])
    for a,b in zip([*whole, extra[0]], [*again, extra[1]]): same(a, b)
    assert steps=={'01-matryoshka': 10, '03-relu': 60}

# ---- failures ----

def test_a_loss_that_is_no_number_stops_its_own_run(tmp_path):
    ds = [dictionaries['relu'](8, 16) for _ in range(3)]
    with pytest.warns(UserWarning, match=r'01-relu was stopped: loss is .* at step .*the weights have diverged.*last checkpoint is .*01-relu'):
        runs = fit_many(ds, data(), 60*64, 64, lr=[1e-3, 1e30, 1e-3], path=tmp_path)
    assert 'loss is' in runs[1].stopped and 'stopped: loss is' in runs[1].summary() and runs[1].step<60 and not (tmp_path/'01-relu'/'final').exists()
    alone = dictionaries['relu'](8, 16); fit(alone, data(), 60*64, 64, lr=1e-3)
    for i in (0, 2): same(alone, ds[i]); assert (runs[i].step, runs[i].stopped)==(60, None) and (tmp_path/f'{i:02d}-relu'/'final').exists()

def test_data_that_turn_bad_stop_all():
    def poisoned():
        for i in range(100):
            b = data(64, seed=i)
            if i==83: b[5,2] = float('nan')
            yield b
    with pytest.warns(UserWarning, match='the batch holds nan in x, row 5, dimension 2'): runs = fit_many(few(), poisoned(), 64*100, 64)
    assert [r.step for r in runs]==[83]*3 and all('at step 84' in r.stopped for r in runs)

def test_one_that_stops_early_leaves_the_others_going_and_survives_a_resume(tmp_path):
    go = lambda path, more=(): fit_many(ds:=few(), data(), 64*100, 64, log_every=5, path=path, lr=[1e-12, None, None], callbacks=[[EarlyStop('fvu', patience=4, min_delta=.5)], [], list(more)]) and ds
    whole = go(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', [At(68, interrupt)])
    for a,b in zip(whole, go(tmp_path/'b')): same(a, b)
    assert whole[0].n_seen==25*64 and whole[1].n_seen==100*64
    assert [load_dictionary(tmp_path/'b'/n/'final').n_seen//64 for n in ('00-topk','01-matryoshka','02-topk')]==[25, 100, 100]

def test_data_that_end():
    runs = fit_many(few(), (b for b in data().split(50)), 64*1000, 64)
    assert all(r.step==31 and 'the data ended after 1,984' in r.stopped for r in runs)

def test_what_is_refused_comes_before_anything_is_written(tmp_path, monkeypatch):
    x,topk = data(),lambda **kw: dictionaries['topk'](8, 16, **{**dict(k=2), **kw})
    def bad(match, ds, error=ValueError, d=x, **kw):
        with pytest.raises(error, match=match): fit_many(ds, d, **{**dict(n_tokens=640, batch_size=64, path=tmp_path/'runs'), **kw})
        assert not (tmp_path/'runs').exists() and all(getattr(e, 'n_seen', 0)==0 for e in ds)
    d = topk()
    bad('no dictionaries', [])
    bad('dictionary 1 is the same object', [d, d])
    bad('dictionary 1: a dictionary was expected', [d, 3], TypeError)
    bad('dictionary 1 .* other activations .* d_in 6 and 8', [d, dictionaries['topk'](6, 16, k=2)])
    bad('dictionary 1 .* d_out 8 and None', [d, topk(d_out=8)])
    bad('lr has 3 values for 2 dictionaries', [d, topk()], lr=[1, 2, 3])
    bad('callbacks has 1 values for 2', [d, topk()], callbacks=[[EarlyStop()]])
    bad('warmup is a share of the run, 0 to 1, got 2', [d, topk()], warmup=[.1, 2])
    bad('give one data set, not a pair', [d, topk()], d=(x, x))
    bad('the data has width 8, the dictionary expects 6', [dictionaries['topk'](6, 16, k=2)])
    monkeypatch.setenv('SPARSENB_MEMORY', '25kB')
    bad('training 2 dictionaries, 560 parameters .* the budget is 25 kB: take fewer dictionaries, a smaller d_sae', [d, topk()], MemoryError, batch_size=64)
    fit(topk(), x, 640, 64) # one alone fits

def test_max_skipped_of_all_and_of_each():
    "Batches with NaN are passed over by those that may; each ends at the bits of `fit` with the same number"
    def bad():
        for i in range(100):
            b = data(64, seed=i)
            if i in (70, 83): b[5,2] = float('nan')
            yield b
    ds = few()
    with pytest.warns(UserWarning, match=r'02-topk was stopped: loss is nan at step 84, after 1 skipped steps \(max_skipped=1\)'): runs = fit_many(ds, bad(), 64*100, 64, max_skipped=[2, 3, 1])
    assert [(r.skipped, r.step) for r in runs]==[(2, 100), (2, 100), (1, 83)]
    for d,e,r in list(zip(ds, few(), runs))[:2]: one = fit(e, bad(), 64*100, 64, max_skipped=2); same(e, d); assert rows(one)==rows(r)
    assert [r.skipped for r in fit_many(few(), bad(), 64*100, 64, max_skipped=2)]==[2]*3
    with pytest.raises(ValueError, match='max_skipped must be a whole number of at least 0, got -1'): fit_many(few(), data(), **plan, max_skipped=[1, -1, 1])

# ---- callbacks ----

def test_callbacks_of_all_and_of_each(monkeypatch, capsys):
    monkeypatch.setenv('SPARSENB_PROGRESS', 'text')
    seen = []
    class Say(Callback):
        def __init__(self, what): self.what = what
        def before_fit(self, run): seen.append((self.what, run.name))
        def after_fit(self, run): seen.append((self.what, 'end', run.name))
    ds = few(); fit_many(ds, data(), **plan, callbacks=[Say('all'), Progress()])
    names = ['00-topk','01-matryoshka','02-topk']
    assert seen[:3]==[('all', n) for n in names] and seen[3:]==[('all', 'end', n) for n in reversed(names)]
    err = capsys.readouterr().err
    assert all(f'training {n}' in err for n in names) and err.count('100%')>=3
    plain = few(); fit_many(plain, data(), **plan, callbacks=[[Say('a')], (), [Say('c')]])
    assert seen[6:8]==[('a', '00-topk'), ('c', '02-topk')]
    for a,b in zip(ds, plain): same(a, b)

def test_a_run_tells_its_own_time():
    "Each counts its steps and the reading it shares, so the speeds are those of dictionaries alone"
    runs = fit_many(few(), data(), **plan)
    assert all(0<r.timing['data']<r.timing['seconds'] and r.history['activations_per_second'].min()>0 for r in runs)
    assert len({r.timing['data'] for r in runs})==1

def test_one_that_cannot_begin_leaves_nothing_on_those_before_it(tmp_path):
    "The second run's folder holds another run: the first has begun already"
    x,make = torch.randn(512, 16, generator=torch.Generator().manual_seed(0)),lambda: dictionaries['topk'](16, 32, k=4)
    fit_many([make(), make()], x, 1024, 128, path=tmp_path)
    a = make()
    shutil.rmtree(tmp_path/'00-topk')
    with pytest.raises(ValueError, match='holds another run'): fit_many([a, make()], x, 1024, 128, path=tmp_path, lr=[1e-3, 2e-3])
    assert not any(k in p.__dict__ for p in a.parameters() for k in ('jobs', 'extra', 'kernels'))
    a.step(x[:64]).loss.backward()
    assert a.W_dec.grad is not None

def test_one_of_several_processes_is_told_what_to_call(monkeypatch):
    for m in ('rows', dict(rows=1)):
        with pytest.raises(ValueError, match=r'mesh=None or False was expected, got .*call fit\(\.\.\., mesh='): fit_many([dictionaries['topk'](16, 32, k=4)], torch.randn(512, 16), 1024, 128, mesh=m)
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert fit_many([dictionaries['topk'](16, 32, k=4)], torch.randn(512, 16), 1024, 128, mesh=False)[0].step==8
    with pytest.raises(ValueError, match='trains in one process.*call fit for each.*jobs.map'): fit_many([dictionaries['topk'](16, 32, k=4)], torch.randn(512, 16), 1024, 128)
