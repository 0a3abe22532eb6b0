"Training: exact resume after SIGKILL, checkpoints, logs, callbacks, and what is refused"
import csv, errno, sys
import numpy as np, pytest, torch
import sparsenb.train as train
from pathlib import Path
from killing import killed_once
from sparsenb.core import dictionaries
from sparsenb.dictionary import Dictionary, load_dictionary
from sparsenb.train import Callback, EarlyStop, Progress, fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)

def data(n=2000, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(n, 12, generator=g).relu()@torch.randn(12, d, generator=g)
def topk(**kw): return dictionaries['topk'](8, 32, **{**dict(k=4, dead_after=2000), **kw})
def same(a, b):
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)

class At(Callback):
    "Do something after one step"
    def __init__(self, step, do): self.step,self.do = step,do
    def after_step(self, run, out):
        if run.step==self.step: self.do()
def interrupt(): raise KeyboardInterrupt

class Store:
    "What `fit` needs of an activation store"
    site,fingerprint,model_name,revision = 'resid_post.1','abc','toy','1'
    def __init__(self, x): self.x,self.d_in,self.mean,self.scale = x,x.shape[1],x.mean(0),(x.shape[1]/x.square().sum(1).mean()).sqrt().item()
    def __len__(self): return len(self.x)
    def batches(self, batch_size, n_tokens=None, seed=0, start=0, device='cpu'):
        while True:
            g = torch.Generator().manual_seed(1000*seed+start)
            yield self.x[torch.randint(len(self.x), (batch_size,), generator=g)].to(device)
            start += 1

# ---- exact resume ----

def test_sigkill_and_the_same_call_end_at_the_bits_of_an_unbroken_run(tmp_path):
    whole = topk()
    run = fit(whole, data(), 300*64, 64, path=tmp_path/'whole', checkpoint_every=20, log_every=7)
    killed_once('test_train', 'torch.set_num_threads(1); fit(topk(), data(), n_tokens=300*64, batch_size=64, path=sys.argv[1], checkpoint_every=20, log_every=7, callbacks=[At(s, lambda s=s: print(s, flush=True)) for s in range(0, 301, 5)])', tmp_path/'broken', (10, 280))
    same(whole, load_dictionary(tmp_path/'broken'/'final'))
    ours,theirs = (train.load_file(tmp_path/n/'step-00000300'/'state.safetensors') for n in ('whole','broken'))
    assert ours.keys()==theirs.keys() and any(k.endswith('exp_avg_sq') for k in ours)
    for k in ours: torch.testing.assert_close(ours[k], theirs[k], **exact, msg=k)
    rows = [[{k: v for k,v in r.items() if k!='activations_per_second'} for r in csv.DictReader(open(tmp_path/n/'log.csv'))] for n in ('whole','broken')]
    assert rows[0]==rows[1] and [int(r['step']) for r in rows[0]]==[*range(7, 300, 7), 300]
    assert sorted(p.name for p in (tmp_path/'broken').iterdir())==['final','log.csv','step-00000280','step-00000300']

def test_a_finished_run_is_not_trained_again(tmp_path):
    a = topk(); fit(a, data(), 64*30, 64, path=tmp_path)
    seen = []
    b = topk(); run = fit(b, data(), 64*30, 64, path=tmp_path, callbacks=[At(1, lambda: seen.append(1))])
    same(a, b)
    assert not seen and run.step==30 and len(run.history['loss'])==30

def test_other_settings_on_the_same_path_are_refused(tmp_path):
    d = topk(); fit(d, data(), 64*30, 64, path=tmp_path)
    for kw,what in ((dict(seed=1), 'seed: 0 there, 1 now'), (dict(lr=1e-3), 'lr: '), (dict(n_tokens=64*40), 'n_tokens: 1920 there, 2560 now')):
        with pytest.raises(ValueError, match=what): fit(topk(), data(), path=tmp_path, **{**dict(n_tokens=64*30, batch_size=64), **kw})
    with pytest.raises(ValueError, match="'k': 4.*'k': 5"): fit(topk(k=5), data(), 64*30, 64, path=tmp_path)
    with pytest.raises(ValueError, match='data: '): fit(topk(), data(seed=1), 64*30, 64, path=tmp_path)
    same(d, load_dictionary(tmp_path/'final'))

@pytest.mark.parametrize('harm', ['flip', 'cut', 'json', 'missing'])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, harm):
    whole = topk(); fit(whole, data(), 64*60, 64, checkpoint_every=10)
    with pytest.raises(KeyboardInterrupt): fit(topk(), data(), 64*60, 64, path=tmp_path, checkpoint_every=10, callbacks=[At(45, interrupt)])
    newest = tmp_path/'step-00000040'
    w,b = newest/'state.safetensors',bytearray((newest/'state.safetensors').read_bytes())
    if harm=='flip': b[len(b)//2] ^= 1; w.write_bytes(b)
    elif harm=='cut': w.write_bytes(b[:-100])
    elif harm=='json': (newest/'run.json').write_text('{"step": 40,')
    else: w.unlink()
    (tmp_path/'.tmp-99-step-00000050').mkdir()
    d,first = topk(),[]
    class First(Callback):
        def before_fit(self, run): first.append(run.step)
    with pytest.warns(UserWarning, match='step-00000040 is damaged and was removed'): fit(d, data(), 64*60, 64, path=tmp_path, checkpoint_every=10, callbacks=[First()])
    same(whole, d)
    assert first==[30] and not list(tmp_path.glob('.tmp-*'))

@pytest.mark.filterwarnings('ignore:.*was not written')
def test_full_disk_does_not_stop_training_or_harm_what_was_saved(tmp_path, monkeypatch):
    whole = topk(); fit(whole, data(), 64*60, 64)
    real = train.save_file
    def full(tensors, path):
        Path(path).write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')
    d = topk()
    with pytest.warns(UserWarning, match='checkpoint of step 30 was not written .*No space left.*last good checkpoint in .* is step-00000020'):
        fit(d, data(), 64*60, 64, path=tmp_path, checkpoint_every=10, callbacks=[At(25, lambda: monkeypatch.setattr(train, 'save_file', full))])
    same(whole, d)
    assert [p.name for p in sorted(tmp_path.glob('*step*'))]==['step-00000010','step-00000020'] and not list(tmp_path.glob('.tmp-*'))
    monkeypatch.setattr(train, 'save_file', real)
    again = topk(); fit(again, data(), 64*60, 64, path=tmp_path, checkpoint_every=10)
    same(whole, again)

def test_folder_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path/'file').write_text('')
    d,seen = topk(),[]
    with pytest.raises(NotADirectoryError, match='a folder was expected'): fit(d, data(), 640, 64, path=tmp_path/'file'/'run')
    assert d.n_seen==0

# ---- numbers ----

def test_history_holds_the_pooled_numbers():
    "One window over all steps: FVU against the data set's mean, loss and L0 as means, all recomputed here"
    x,outs = data(),[]
    class Keep(Callback):
        def after_step(self, run, out): outs.append(out)
    d = topk()
    run = fit(d, Store(x), 64*20, 64, log_every=20, callbacks=[Keep()])
    xs = torch.stack([b for b,_ in zip(Store(x).batches(64), range(20))])
    hats = torch.stack([o.x_hat for o in outs])
    h = run.history
    np.testing.assert_allclose(h['fvu'], [((xs-hats).square().sum()/(xs-x.mean(0)).square().sum()).item()], rtol=1e-4)
    np.testing.assert_allclose(h['loss'], [np.mean([o.loss.item() for o in outs])], rtol=1e-5)
    np.testing.assert_allclose(h['l0'], [np.mean([o.codes.l0().mean().item() for o in outs])], rtol=1e-5)
    assert h['step'].tolist()==[20] and h['activations'].tolist()==[1280] and h['activations_per_second'][0]>0 and 0<=h['dead'][0]<=1

def test_learning_rate_rises_holds_and_falls():
    lr = [train._lr(s, 100, 1., .1, .2) for s in range(100)]
    np.testing.assert_allclose(lr[:10], np.arange(1, 11)/10)
    assert lr[10:80]==[1.]*70
    np.testing.assert_allclose(lr[80:], np.arange(20, 0, -1)/20)
    run = fit(topk(), data(), 64*100, 64, lr=.01, warmup=.1, decay=.2, log_every=1)
    np.testing.assert_allclose(run.history['lr'], np.array(lr)*.01)

def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    a,b,c = topk(),topk(),topk()
    for d,s in ((a,0), (b,0), (c,1)): fit(d, data(), 64*20, 64, seed=s)
    same(a, b)
    assert not torch.equal(a.W_dec, c.W_dec) and torch.equal(before, torch.get_rng_state())

def test_adam_is_torchs_adam():
    "Weights laid out feature by feature: fused Adam on the transposed view equals the plain one"
    W = torch.randn(30, 20)
    a,b = W.clone().t().requires_grad_(),W.t().contiguous().requires_grad_()
    A,B = torch.optim.Adam([a], lr=.1, fused=True),torch.optim.Adam([b], lr=.1, foreach=False)
    for s in range(5):
        a.grad = torch.randn(30, 20, generator=torch.Generator().manual_seed(s)).t(); b.grad = a.grad.contiguous()
        A.step(); B.step()
    torch.testing.assert_close(a, b)

class Still(dictionaries['topk']):
    "TopK with some of its parameters frozen; counts what training calls"
    name = 'still'
    def __init__(self, *args, frozen=('W_dec',), **kw):
        super().__init__(*args, **kw)
        self.calls,self.frozen = [],frozen
        for n,p in self.named_parameters(): p.requires_grad_(n not in frozen)
    def before_step(self): self.calls.append('before_step')
    def after_step(self): self.calls.append('after_step')
    def after_fit(self): self.calls.append('after_fit')

def test_only_what_has_a_gradient_is_trained(tmp_path):
    make = lambda **kw: Still(8, 32, k=4, k_aux=0, **kw)
    a,start = make(),make()
    fit(a, data(), 64*30, 64, path=tmp_path/'a', checkpoint_every=10)
    assert torch.equal(a.W_dec, start.W_dec) and not torch.equal(a.W_enc, start.W_enc) and a.calls==['before_step','after_step']*30+['after_fit']
    saved = train.load_file(tmp_path/'a'/'step-00000030'/'state.safetensors')
    assert sorted(k for k in saved if k.startswith('adam.') and 'exp_avg_sq' in k)==[f'adam.{n}.exp_avg_sq' for n in ('W_enc','b_dec','b_enc')]
    with pytest.raises(KeyboardInterrupt): fit(make(), data(), 64*30, 64, path=tmp_path/'b', checkpoint_every=10, callbacks=[At(17, interrupt)])
    b = make(); fit(b, data(), 64*30, 64, path=tmp_path/'b', checkpoint_every=10)
    same(a, b)

def test_a_method_without_gradients_runs_through_the_same_loop(tmp_path):
    every = ('W_enc','b_enc','W_dec','b_dec')
    d,fresh = (Still(8, 32, k=4, k_aux=0, frozen=every) for _ in range(2))
    run = fit(d, data(), 64*30, 64, lr=.1, path=tmp_path, checkpoint_every=10)
    assert d.calls==['after_step']*30+['after_fit'] and d.n_seen==64*30 and torch.equal(d.W_enc, fresh.W_enc) and (run.history['lr']==0).all()
    assert not any(k.startswith('adam.') for k in train.load_file(run.checkpoints[-1]/'state.safetensors'))
    again = Still(8, 32, k=4, k_aux=0, frozen=every)
    assert fit(again, data(), 64*30, 64, lr=.1, path=tmp_path, checkpoint_every=10).step==30
    same(d, again)

# ---- data ----

def test_stores_tensors_streams_and_pairs():
    x,y = data(),data(d=5, seed=1)
    for d in (x, x.numpy(), x.bfloat16(), Store(x), list(x.split(100)), (b for b in x.split(37))):
        run = fit(topk(), d, 64*20, 64)
        assert run.step==20 and run.history['fvu'][-1]<1, type(d)
    for pair in ((x, y), (list(x.split(100)), list(y.split(90))), (Store(x), Store(y))):
        assert fit(topk(d_out=5), pair, 64*20, 64).step==20
    run = fit(topk(), (b for b in x.split(50)), 64*1000, 64)
    assert run.step==31 and 'the data ended after 1,984' in run.summary()

def test_pairs_stay_together():
    "y is a function of x, so a transcoder can learn it only if the rows belong together"
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    run = fit(dictionaries['topk'](8, 32, d_out=8, k=16), (x, -2*x), 64*600, 64, lr=5e-3)
    assert run.history['fvu'][-1]<.2

def test_data_that_cannot_be_learned_from():
    x = data()
    def bad(match, d=None, sae=None, error=ValueError, **kw):
        sae = sae or topk()
        with pytest.raises(error, match=match): fit(sae, x if d is None else d, **{**dict(n_tokens=640, batch_size=64), **kw})
        assert sae.n_seen==0
    nan = x.clone(); nan[1234,5] = float('nan')
    bad('row 1234, dimension 5 is nan; 1 of 2000 rows', nan)
    bad('rows looked at are zero', torch.zeros(100, 8))
    bad('rows looked at are equal', torch.ones(100, 8))
    bad('rows looked at are equal', torch.full((100_000, 8), 3.3))
    hidden = torch.full((2000, 8), 5e4); hidden[:,1:] = .01*data()[:,1:]
    assert fit(topk(), hidden, 640, 64).step==10 # one enormous constant channel does not hide what moves in the others
    bad('rows looked at are zero', [torch.zeros(100, 8)])
    bad('has width 8, the dictionary expects 6', sae=dictionaries['topk'](6, 16, k=4))
    bad('the store of resid_post.1 has width 5, the dictionary expects 8', Store(data(d=5)))
    bad('the store of resid_post.1 has width 9, the dictionary expects 8', Store(data(d=9)))
    bad('has 10 rows, a batch needs 64', x[:10])
    bad('holds fewer than 64 rows', (b for b in [x[:10]]))
    bad('n_tokens=63 is less than one batch of 64', n_tokens=63)
    bad('batch_size must be a whole number', batch_size=0)
    bad(r'activations \(n, 8\) expected, got shape \(2000, 2, 4\)', x.view(2000, 2, 4))
    bad('an iterable of batches was expected, got int', 3, error=TypeError)
    bad('give one data set, not a pair', (x, x))
    bad('give a pair', sae=topk(d_out=5))
    bad("the data is 'acts': open it first", 'acts', error=TypeError)
    bad('decay is a share of the run, 0 to 1, got 5', decay=5)
    with pytest.raises(TypeError, match='a dictionary was expected'): fit(dictionaries['topk'], x, 640, 64)
    bad('x has 2000 rows, y has 1999', (x, data(1999, 5)), topk(d_out=5))

def test_a_loss_that_is_no_number_stops_with_place_and_safety(tmp_path):
    def poisoned():
        for i in range(100):
            b = data(64, seed=i)
            if i==83: b[5,2] = float('nan')
            yield b
    d = topk()
    with pytest.raises(FloatingPointError, match=r'loss is nan at step 84: the batch holds nan in x, row 5, dimension 2 .*the last checkpoint is .*step-00000080'):
        fit(d, poisoned(), 64*100, 64, path=tmp_path, checkpoint_every=10)
    assert all(p.isfinite().all() for p in d.parameters())
    assert all(v.isfinite().all() for v in train.load_file(tmp_path/'step-00000080'/'state.safetensors').values())
    with pytest.raises(FloatingPointError, match='the weights have diverged.*nothing was saved'): fit(dictionaries['relu'](8, 32), data(), 64*200, 64, lr=1e30)

# ---- callbacks ----

def test_callbacks_run_in_order_and_always_end():
    seen = []
    class Say(Callback):
        def __init__(self, order): self.order = order
        def before_fit(self, run): seen.append(('before', self.order))
        def after_log(self, run, row): seen.append(('log', self.order))
        def after_fit(self, run): seen.append(('after', self.order))
    with pytest.raises(KeyboardInterrupt): fit(topk(), data(), 64*10, 64, log_every=2, callbacks=[Say(2), At(3, interrupt), Say(1)])
    assert seen==[('before',1), ('before',2), ('log',1), ('log',2), ('after',2), ('after',1)]

def test_early_stop_survives_a_resume(tmp_path):
    def go(path, **kw): return fit(topk(), data(), 64*400, 64, lr=1e-12, log_every=5, path=path, callbacks=[EarlyStop('fvu', patience=4, min_delta=.5), *kw.get('more', [])])
    a = go(tmp_path/'a')
    assert a.step==25 and 'fvu has not fallen' in a.stopped and load_dictionary(tmp_path/'a'/'final').n_seen==25*64
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', more=[At(18, interrupt)])
    assert go(tmp_path/'b').step==25 and go(tmp_path/'b').step==25
    with pytest.raises(KeyError, match="no 'fuv' in the log; there are step"): fit(topk(), data(), 64*40, 64, callbacks=[EarlyStop('fuv')])

def test_progress_changes_nothing_and_shows_its_numbers(monkeypatch, capsys):
    monkeypatch.setenv('SPARSENB_PROGRESS', 'text')
    a,b = topk(),topk()
    fit(a, data(), 64*50, 64); run = fit(b, data(), 64*50, 64, callbacks=[Progress()])
    same(a, b)
    err = capsys.readouterr().err
    assert 'training topk' in err and 'fvu=' in err and '100%' in err
    html = run._repr_html_()
    assert html.count('<svg')==4 and 'step 50 of 50 (done)' in html and 'step 50 of 50' in repr(run)

def test_provenance_is_saved(tmp_path):
    d = topk(); fit(d, Store(data()), 64*20, 64, path=tmp_path)
    p = load_dictionary(tmp_path/'final').provenance
    assert p['model_name']=='toy' and p['site']=='resid_post.1' and p['fingerprint']=='abc' and p['steps']==20 and p['training']['batch_size']==64
    assert d.training


def test_settings_give_seed_and_memory(monkeypatch):
    "SPARSENB_SEED is used where no seed is passed; a plan over SPARSENB_MEMORY is refused before anything runs"
    make = lambda **kw: dictionaries['topk'](8, 16, k=2, **kw)
    monkeypatch.setenv('SPARSENB_SEED', '7')
    assert make().cfg['seed']==7 and torch.equal(make().W_enc, make(seed=7).W_enc) and not torch.equal(make().W_enc, make(seed=0).W_enc)
    x = torch.randn(600, 8)
    a,b = make(),make()
    fit(a, x, n_tokens=2048, batch_size=128); fit(b, x, n_tokens=2048, batch_size=128, seed=7)
    assert torch.equal(a.W_dec, b.W_dec)
    monkeypatch.setenv('SPARSENB_MEMORY', '10kB')
    with pytest.raises(MemoryError, match=r'training 280 parameters .* the budget is 10 kB: take a smaller d_sae or batch_size'): fit(make(), x, n_tokens=2048, batch_size=128)
