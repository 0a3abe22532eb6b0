"Every path of a training step against gradients written out and torch's Adam, on activations of real models"
import importlib.util, json
import pytest, torch
from sparsenb.core import dictionaries, settings, UnknownName
from sparsenb.engine import Optimiser, choose, paths
from sparsenb.kernels import keep_largest, measure_products, product, products, quickest_product, torch_kernels
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
NUMBA = importlib.util.find_spec('numba') is not None
fast = ['torch', *(pytest.param(p, marks=pytest.mark.skipif(not NUMBA, reason="needs numba: pip install 'sparsenb[cpu]'")) for p in ('numba', 'bf16', 'int8'))]

@pytest.fixture(scope='module')
def bundled():
    "Activations of the bundled model, (8192, 256)"
    from sparsenb.corpus import load_corpus
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    import tempfile
    with tempfile.TemporaryDirectory() as f:
        s = ActivationStore.collect(load_model('stdlib-4l', device='cpu'), load_corpus('stdlib'), 'resid_post.2', 8192, path=f'{f}/acts')
        return s.rows(torch.arange(8192).numpy()).x.float().clone() if hasattr(s.rows(torch.arange(2).numpy()), 'x') else next(s.batches(8192))

@pytest.fixture(scope='module')
def encoder(minilm):
    "Activations of the real MiniLM encoder, (some, 384), with its massive channels"
    from sparsenb.corpus import load_corpus
    from sparsenb.hooks import capture
    from sparsenb.models import load_model
    import itertools
    m = load_model(str(minilm), device='cpu')
    texts = [t[:400] for t in itertools.islice((d.text if hasattr(d, 'text') else d for d in load_corpus('stdlib')), 40)]
    rows = []
    for t in texts:
        ids = torch.tensor([m.tokenizer.encode(t).ids[:96] if hasattr(m.tokenizer.encode(t), 'ids') else m.tokenizer.encode(t)[:96]])
        rows.append(capture(m, ids, 'resid_post.4', torch.ones_like(ids, dtype=torch.bool))['resid_post.4'].reshape(-1, 384))
    return torch.cat(rows).float()

def train(d, x, path, steps=50, size=512, y=None, lr=3e-4, chosen=None):
    "Losses, weights and the choices made in `steps`; `chosen` are choices to make"
    from sparsenb.dictionary import Stats
    stats = lambda t: Stats(t.mean(0), (t.shape[1]/t.square().sum(1).mean().item())**.5, t[:1024])
    d.train(); torch.manual_seed(0); losses,choices = [],[]
    d.init_from(*(stats(t) for t in (x, y) if t is not None))
    opt = Optimiser(d, lr=lr, path=path)
    for i in range(steps):
        rows = torch.arange(i*size, (i+1)*size)%len(x)
        d.progress,d.chosen = i/steps,chosen and chosen[i]
        opt.zero_grad()
        out = d.step(x[rows], None if y is None else y[rows])
        out.loss.backward(); d.before_step(); opt.step(); d.after_step()
        losses.append(out.loss.item()); choices.append(out.codes.idx)
    if d.name not in ('jumprelu', 'top_afa'): assert not any(p.grad is not None for p in opt.by_rows) # those two begin densely
    opt.close()
    return torch.tensor(losses, dtype=torch.float64), {n: p.detach().clone() for n,p in d.named_parameters()}, choices

class Plain(dictionaries['topk']):
    "TopK computed densely, by autograd alone, with choices that were made elsewhere and must be the k largest up to rounding"
    name = 'plain'
    def step(self, x, y=None):
        from sparsenb.dictionary import Codes, Step
        _,y = self.inputs(x, y)
        z = (y-self.b_dec)@self.W_enc + self.b_enc
        val = z.gather(1, self.chosen)
        assert (val.amin(1)-z.topk(self.k, dim=1).values[:,-1]).min()>=-1e-5*z.abs().max() and all(len(set(r))==self.k for r in self.chosen[:9].tolist())
        f = torch.zeros_like(z).scatter(1, self.chosen, val.relu())
        mse = (f@self.W_dec+self.b_dec-y).square().sum()/len(y)
        return Step(mse, Codes(self.chosen, val.detach()), y, dict(mse=mse.detach(), l0=mse.detach()))

def agree(a, b, loss=1e-5, weights=1e-4):
    assert ((a[0]-b[0]).abs()/b[0]).max()<=loss, (a[0]/b[0]-1).abs().max()
    for n in b[1]: torch.testing.assert_close(a[1][n], b[1][n], rtol=0, atol=weights, msg=lambda m: f'{n}: {m}')

# ---- equality ----

@pytest.mark.parametrize('path', fast)
@pytest.mark.parametrize('data', ['bundled', 'encoder'])
def test_fifty_steps_are_those_of_dense_autograd(path, data, request):
    x = request.getfixturevalue(data)
    d = x.shape[1]
    make = lambda c: c(d, 8*d, k=16, k_aux=0, seed=0)
    got = train(make(dictionaries['topk']), x, path)
    agree(got, train(make(Plain), x, 'dense', chosen=got[2])) # where two features tie, two libraries' own products already decide differently

methods = dict(topk=dict(k=8, dead_after=2000), batch_topk=dict(k=8, dead_after=2000), matryoshka=dict(k=8, prefixes=[64, 300], dead_after=2000),
               jumprelu=dict(), top_afa=dict(), multi=dict(k=8, multi_k=32, multi_coef=.1))

@pytest.mark.parametrize('path', fast)
@pytest.mark.parametrize('name', methods)
def test_every_method_takes_the_same_steps_on_every_path(path, name, bundled):
    cls = dictionaries['topk' if name=='multi' else name]
    make = lambda: cls(256, 1024, seed=0, **methods[name])
    got,want = (train(make(), bundled, p, steps=5 if name=='top_afa' else 30) for p in (path, 'dense')) # top-AFA cuts where rounding decides: its ways part early
    agree(got, want, 2e-5, 2e-4)

@pytest.mark.parametrize('path', fast)
def test_thresholds_learn_from_what_they_held_back(path, bundled):
    "Places in the window below a threshold carry a gradient though their strength is 0"
    make = lambda: dictionaries['jumprelu'](256, 1024, seed=0, threshold=2., width=1.)
    got,want = (train(make(), bundled, p, steps=15, lr=3e-3) for p in (path, 'dense'))
    agree(got, want, 2e-5, 2e-4)
    assert (got[1]['log_threshold']-torch.tensor(2.).log()).abs().max()>.01

@pytest.mark.parametrize('path', fast)
@pytest.mark.parametrize('name', ['transcoder', 'skip_transcoder', 'crosscoder'])
def test_what_writes_another_activation_takes_the_same_steps(path, name, bundled):
    y = bundled@torch.randn(256, 96, generator=torch.Generator().manual_seed(1))
    make = lambda: dictionaries[name](256, 1024, d_out=96, seed=0, k=8, dead_after=2000)
    agree(train(make(), bundled, path, steps=30, y=y), train(make(), bundled, 'dense', steps=30, y=y), 2e-5, 2e-4)

def test_auxk_revives_the_same_features_without_gradient_arrays(bundled):
    "Most features are dead at once, so that AuxK carries most of the gradient"
    make = lambda: dictionaries['topk'](256, 1024, seed=0, k=4, dead_after=256)
    got,want = (train(make(), bundled, p, steps=40) for p in ('torch', 'dense'))
    agree(got, want, 2e-5, 2e-4)

def test_jumprelu_goes_from_dense_to_sparse_without_a_jump(bundled):
    "Thresholds start where a sixth of all places passes; the batch at which it turns sparse differs from the dense one by rounding alone"
    def run(few):
        d = dictionaries['jumprelu'](256, 1024, seed=0, l0_coef=3., threshold=1.2)
        seen = []
        near = d.near
        d.near = lambda x, theta: seen.append(found := near(x, theta) if few else None) or found
        return train(d, bundled, 'torch', steps=60, lr=3e-3), [f is not None for f in seen]
    (got,turns),(want,_) = run(True),run(False)
    assert True in turns and False in turns, turns
    agree(got, want, 1e-4, 2e-3)

# ---- the choice ----

def test_clipping_and_own_gradients_take_the_dense_path():
    d = dictionaries['topk'](8, 16, k=2)
    assert choose(d, grad_clip=1.)==('dense', 'grad_clip needs the whole gradient') and choose(d).name=='torch'
    assert choose(dictionaries['k_sparse'](8, 16, k=2)).name=='dense' and 'handles its own gradients' in str(choose(dictionaries['k_sparse'](8, 16, k=2)))
    with pytest.raises(ValueError, match="needs the whole gradient, which the path 'torch' never holds"): choose(d, path='torch', grad_clip=1.)
    with pytest.raises(ValueError, match='k_sparse handles its own gradients'): choose(dictionaries['k_sparse'](8, 16, k=2), path='torch')
    with pytest.raises(UnknownName, match="'torhc'.*torch"): choose(d, path='torhc')
    with pytest.raises(ValueError, match="'triton' is for a CUDA card.*cpu"): choose(d, path='triton')
    assert set(paths)>={'dense', 'torch', 'numba', 'bf16', 'int8', 'triton'}

def test_long_runs_are_compiled_for_and_short_ones_not():
    d = dictionaries['topk'](256, 4096)
    assert choose(d, 4096, 10).name=='torch'
    assert choose(d, 4096, 5000).name==('numba' if NUMBA else 'torch')

@pytest.mark.skipif(NUMBA, reason='numba is there')
def test_a_path_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(ImportError, match=r"pip install 'sparsenb\[cpu\]'"): choose(dictionaries['topk'](8, 16), path='numba')

def test_fit_says_which_path_it_took(tmp_path):
    x = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    run = fit(dictionaries['topk'](16, 64, k=4), x, 4096, 256, path=tmp_path/'a')
    assert run.settings['engine']=='torch' and 'on path torch' in run.summary()
    run = fit(dictionaries['topk'](16, 64, k=4), x, 4096, 256, grad_clip=1.)
    assert run.settings['engine']=='dense' and 'grad_clip needs the whole gradient' in run.summary()
    with pytest.raises(ValueError, match='engine: torch there, dense now'): fit(dictionaries['topk'](16, 64, k=4), x, 4096, 256, path=tmp_path/'a', engine='dense')

def test_nothing_stays_on_the_weights_after_a_fit_that_fails():
    class Stop(Callback):
        def after_step(self, run, out): raise RuntimeError('enough')
    x,d = torch.randn(2048, 16),dictionaries['topk'](16, 64, k=4)
    with pytest.raises(RuntimeError, match='enough'): fit(d, x, 4096, 256, callbacks=[Stop()])
    assert not any(k in p.__dict__ for p in d.parameters() for k in ('jobs', 'extra', 'kernels'))
    d.step(x[:64]).loss.backward()
    assert d.W_dec.grad is not None and d.W_enc.grad is not None

@pytest.mark.parametrize('path', fast[1:])
def test_a_screened_run_resumes_to_the_bit(path, tmp_path):
    class Stop(Callback):
        def __init__(self, at): self.at = at
        def after_step(self, run, out):
            if run.step==self.at: raise KeyboardInterrupt
    x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0))
    def go(folder, *stops):
        for at in (*stops, None):
            d = dictionaries['topk'](32, 256, k=8, seed=0)
            try: fit(d, x, 60*128, 128, path=folder, checkpoint_every=7, engine=path, callbacks=[Stop(at)] if at else [])
            except KeyboardInterrupt: pass
        return d
    a,b = go(tmp_path/'a'),go(tmp_path/'b', 19, 44)
    for (n,p),q in zip(a.named_parameters(), b.parameters()): assert torch.equal(p, q), n

# ---- the product ----

def test_the_quickest_product_is_exact_and_remembered(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x,W = torch.randn(64, 300, generator=g),torch.randn(500, 300, generator=g)
    before = torch.backends.mkldnn.matmul.fp32_precision
    got = product(x, W, torch.empty(64, 500))
    assert torch.backends.mkldnn.matmul.fp32_precision==before
    assert (got-x.double()@W.double().t()).abs().max()<1e-4
    monkeypatch.setenv('SPARSENB_CACHE', str(tmp_path))
    quickest_product.cache_clear()
    name = quickest_product()
    known = json.loads((tmp_path/'products.json').read_text())
    assert [*known.values()]==[name] and name in products
    other = next(n for n in products if n!=name)
    (tmp_path/'products.json').write_text(json.dumps({k: other for k in known}))
    quickest_product.cache_clear()
    assert quickest_product()==other # what was measured once is kept: a choice that changes would change bits
    quickest_product.cache_clear()
    (tmp_path/'products.json').write_text('{ nonsense')
    assert quickest_product() in products
    quickest_product.cache_clear()

def test_a_product_of_low_precision_is_no_candidate(monkeypatch):
    def rough(x, W, out): return out.copy_((x.bfloat16()@W.bfloat16().t()).float())
    monkeypatch.setitem(products, 'rough', rough)
    assert 'rough' not in measure_products(1)

def test_rows_that_keep_everything_are_looked_at_again():
    val,idx = torch.tensor([[5., 4.], [1., 0.], [3., 2.]]),torch.tensor([[0, 1], [2, 3], [4, 5]])
    best,at,full = keep_largest(val, idx, 4)
    assert best.tolist()==[[5, 4], [0, 0], [3, 2]] and full.tolist()==[True, False, True]
    g = torch.Generator().manual_seed(0)
    x,W = torch.randn(40, 12, generator=g),torch.randn(640, 12, generator=g)
    x[3] *= 50 # holds nearly all of the largest
    val,idx = torch_kernels.batch_topk(x, W, torch.zeros(640), 6)
    z = (x@W.t()).relu()
    assert (val>0).sum()==240 and torch.equal(torch.zeros_like(z).scatter_add(1, idx, val)>0, z>=z.flatten().topk(240).values[-1])
    assert (val[3]>0).sum()>200

def test_a_resumed_run_multiplies_as_it_began(tmp_path, monkeypatch):
    "A machine's choice may change between two calls; the bits of a run may not"
    import sparsenb.kernels as kernels
    def rough(x, W, out): return out.copy_((x.double()@W.double().t()).float()) # exact, with other last bits
    monkeypatch.setitem(products, 'other', rough)
    monkeypatch.setattr(kernels, '_told', [])
    class Stop(Callback):
        def after_step(self, run, out):
            if run.step==12: raise KeyboardInterrupt
    x = torch.randn(2048, 48, generator=torch.Generator().manual_seed(0))
    make = lambda: dictionaries['topk'](48, 128, k=6, seed=0)
    whole,broken = make(),make()
    fit(whole, x, 40*128, 128)
    with pytest.raises(KeyboardInterrupt): fit(make(), x, 40*128, 128, path=tmp_path/'a', checkpoint_every=5, callbacks=[Stop()])
    began = kernels.current_product()
    monkeypatch.setattr(kernels, '_told', ['other'])
    fit(broken, x, 40*128, 128, path=tmp_path/'a', checkpoint_every=5)
    assert kernels.current_product()==began
    for (n,p),q in zip(whole.named_parameters(), broken.parameters()): assert torch.equal(p, q), n
