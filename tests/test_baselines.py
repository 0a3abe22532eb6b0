"Baselines against scikit-learn's own transforms, and the gathering of rows that fits them"
import subprocess, sys, warnings
import numpy as np, pytest, torch
import torch.nn.functional as F
from sparsenb.core import dictionaries, testbeds
from sparsenb.dictionary import Stats, load_dictionary
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
close = dict(rtol=1e-5, atol=1e-5)
FITTED = ('pca', 'ica', 'nmf', 'kmeans')

def data(n=1500, d=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 5 + 3*torch.randn(n, 9, generator=g).relu()@torch.randn(9, d, generator=g) + .1*torch.randn(n, d, generator=g)
def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)

def solved(name, x, *args, y=None, **kw):
    "The method fitted to these rows in this order, and the rows as its estimator saw them"
    d = dictionaries[name](x.shape[1], *args, d_out=None if y is None else y.shape[1], **kw)
    d.init_from(stats(x), *([stats(y)] if y is not None else []))
    d.step(x, y); d.after_fit()
    assert d.n_fitted==len(x) or name=='identity'
    return d.eval(),(x*d.scale).double().numpy()

def same(ours, theirs, **kw): torch.testing.assert_close(ours.double(), torch.as_tensor(theirs).double(), **(kw or close))
def fvu(x_hat, x): return float(((x_hat-x)**2).sum()/((x-x.mean(0))**2).sum())

# ---- scikit-learn's numbers ----

@pytest.mark.parametrize('n', [3, 6])
def test_pca_is_scikit_learns(n):
    from sklearn.decomposition import PCA
    d,x = solved('pca', data(), n)
    est = PCA(n).fit(x)
    same(d.encode(data()), est.transform(x))
    same(d(data())*d.scale, est.inverse_transform(est.transform(x)))
    new = data(seed=1)
    same(d.encode(new), est.transform((new*d.scale).double().numpy()))

def test_k_of_an_orthonormal_frame_are_the_best_k():
    d,_ = solved('pca', data(), 6, k=2)
    x = data(50, seed=1)
    f = solved('pca', data(), 6)[0].encode(x)
    kept = d.codes(x)
    assert (kept.l0()==2).all() and (kept.val<0).any()
    same(kept.dense(6), f*(f.abs()>=f.abs().topk(2).values[:,-1:]))
    errors = torch.stack([(d.decode(f*F.one_hot(torch.tensor(p), 6).sum(0))-x).square().sum(1) for p in torch.combinations(torch.arange(6)).tolist()])
    same((d(x)-x).square().sum(1), errors.amin(0), rtol=1e-3, atol=1e-3)

def test_ica_is_scikit_learns():
    from sklearn.decomposition import FastICA
    d,x = solved('ica', data(), 6, max_iter=500)
    est = FastICA(6, whiten='unit-variance', max_iter=500, random_state=0).fit(x)
    assert d.converged
    same(d.encode(data()), est.transform(x), rtol=1e-5, atol=2e-5)
    same(d(data())*d.scale, est.inverse_transform(est.transform(x)))

@pytest.mark.parametrize('n,d', [(4, 6), (6, 6), (40, 10)])
def test_nmf_is_scikit_learns(n, d):
    "The same factors after the same number of iterations, and the same end; 40 features are two blocks"
    from sklearn.decomposition import NMF
    from sparsenb.dictionaries.nmf import factorise
    x = (data(d=d)-data(d=d).amin(0)).double()
    for max_iter in (3, 60):
        f,H,converged = factorise(x, n, max_iter, seed=1)
        est = NMF(n, init='random', max_iter=max_iter, random_state=1)
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); theirs = est.fit_transform(x.numpy())
        same(f, theirs, rtol=1e-7, atol=1e-7); same(H, est.components_, rtol=1e-7, atol=1e-7)
        assert not converged
    loose = NMF(n, init='random', max_iter=500, random_state=1, tol=.02).fit(x.numpy())
    f,H,converged = factorise(x, n, 500, seed=1, tol=.02)
    assert converged and loose.n_iter_<500
    same(H, loose.components_, rtol=1e-7, atol=1e-7)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('n', [4, 6])
def test_nmf_rebuilds_as_scikit_learns(n):
    "Its encoder is a solver of its own: the error is the same to 1 %; what is decoded is the same to the rounding of float32 in 200 iterations"
    from sklearn.decomposition import NMF
    d,x = solved('nmf', data(), n)
    low = x.min(0)
    est = NMF(n, init='random', max_iter=200, random_state=0).fit(x-low)
    f = est.transform(x-low)
    same(d.decode(torch.from_numpy(f).float())*d.scale, est.inverse_transform(f)+low, rtol=0, atol=2e-4)
    ours,theirs = fvu((d(data())*d.scale).double().numpy(), x),fvu(est.inverse_transform(f)+low, x)
    assert ours<=theirs*1.01 and theirs>1e-3, (ours, theirs)
    assert (d.encode(data())>=0).all() and (d.W_dec>=0).all()

@pytest.mark.parametrize('m,d', [(20, 30), (60, 30), (200, 50)])
def test_nmf_encodes_as_non_negative_least_squares(m, d):
    "To 1 % of the least error, on features and rows far above the corner, which nearly all point one way and differ in length"
    from scipy.optimize import nnls
    from sparsenb.dictionaries.nmf import nonnegative
    g = torch.Generator().manual_seed(m)
    H = (2+torch.randn(m, d, generator=g)).relu()*torch.rand(m, 1, generator=g).mul(4).exp()
    H[3] = 0
    x = 5+2*torch.randn(20, d, generator=g)
    f = nonnegative(x@H.t(), H, 100)
    best = np.array([nnls(H.double().numpy().T, row)[1] for row in x.double().numpy()])
    ours = (f.double()@H.double()-x).norm(dim=1).numpy()
    assert (f>=0).all() and not f[:,3].any() and f.isfinite().all()
    assert best.min()>.1 and (ours**2).sum()<1.01*(best**2).sum(), (ours**2).sum()/(best**2).sum()
    same(nonnegative((x@H.t()).view(4, 5, m), H, 100), f.view(4, 5, m), rtol=1e-3, atol=1e-4)

def test_kmeans_labels_are_scikit_learns():
    from sklearn.cluster import KMeans
    d,x = solved('kmeans', data(), 20)
    est = KMeans(20, n_init=1, max_iter=100, random_state=0).fit(x)
    new = data(seed=1)
    for ours,theirs in ((data(), x), (new, (new*d.scale).double().numpy())):
        c = d.codes(ours)
        assert (c.val==1).all() and c.idx[:,0].tolist()==est.predict(theirs).tolist()
        same(d(ours)*d.scale, est.cluster_centers_[est.predict(theirs)])

def test_identity_is_the_neurons():
    x = data()
    d = solved_identity(x)
    assert torch.equal(d.encode(x), F.pad(x*d.scale, (0, 2))) and d.step(x).loss==0
    k = solved_identity(x, k=2)
    top = x.abs().topk(2).indices
    same(k(x), torch.zeros_like(x).scatter(1, top, x.gather(1, top)))
    centred = solved_identity(x, k=2, centre=True)
    assert fvu(centred(x), x)<fvu(k(x), x)
    same(centred.b_dec/centred.scale, x.mean(0))
    with pytest.raises(ValueError, match='d_sae must be at least d_in=8, got 7'): dictionaries['identity'](8, 7)

def solved_identity(x, **kw):
    d = dictionaries['identity'](6, 8, **kw)
    fit(d, x, 1500, 500)
    assert len(d.rows)==0 and d.n_fitted==0 and not d.W_dec[6:].any()
    return d.eval()

@pytest.mark.parametrize('learn_encoder', [True, False])
def test_random_directions_stay(learn_encoder):
    d = dictionaries['random_features'](6, 32, k=4, learn_encoder=learn_encoder)
    enc,dec = d.W_enc.clone(),d.W_dec.clone()
    run = fit(d, data(), 60*128, 128)
    assert torch.equal(d.W_dec, dec) and torch.equal(d.W_enc, enc)!=learn_encoder and run.history['fvu'][-1]<run.history['fvu'][0]

# ---- reading one activation, writing another ----

def test_the_decoder_is_the_least_squares_map():
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LinearRegression
    x,y = data(),data(d=4, seed=2).square()
    pca,xs = solved('pca', x, 3, y=y)
    f = pca.encode(x).double().numpy()
    same(pca(x), LinearRegression().fit(f, y.double().numpy()).predict(f), rtol=1e-4, atol=1e-3)
    linear,_ = solved('identity', x, 6, y=y)
    same(linear(x), LinearRegression().fit(x.numpy(), y.numpy()).predict(x.numpy()), rtol=1e-3, atol=1e-2)
    km,xs = solved('kmeans', x, 5, y=y)
    labels = KMeans(5, n_init=1, max_iter=100, random_state=0).fit_predict(xs)
    same(km(x), np.stack([y.numpy()[labels==l].mean(0) for l in labels]), rtol=1e-4, atol=1e-3)

@pytest.mark.filterwarnings('ignore:.*before it had converged')
@pytest.mark.parametrize('name', [*FITTED, 'identity'])
@pytest.mark.parametrize('d_out', [None, 4])
def test_folding_what_is_fitted(name, d_out):
    x = data()
    d,_ = solved(name, x, 6, y=None if d_out is None else data(d=4, seed=2))
    g = d.fold()
    assert d.scale!=1 and g.scale==1
    same(g.encode(x), d.encode(x), rtol=1e-3, atol=1e-3)
    same(g(x), d(x), rtol=1e-3, atol=1e-3)

# ---- gathering ----

class Watch(Callback):
    "Rows kept and rows of the last fit, after each step"
    def __init__(self, stop=None): self.seen,self.at = [],stop
    def after_step(self, run, out):
        self.seen.append((len(run.dictionary.rows), run.dictionary.n_fitted.item()))
        if run.step==self.at: raise KeyboardInterrupt

def test_when_it_fits_and_what_it_keeps():
    w = Watch()
    d = dictionaries['pca'](6, 3, n_fit=1000)
    fit(d, data(), 15*100, 100, callbacks=[w])
    assert w.seen==[(100, 100), (200, 100), (300, 100), (400, 400)] + [(n, 400) for n in range(500, 1000, 100)] + [(0, 1000)]*6
    short,x = dictionaries['pca'](6, 3),data()
    fit(short, x, 3*500, 500)
    assert short.n_fitted==1500 and len(short.rows)==0
    same(short(x), solved('pca', x, 3)[0](x), rtol=1e-4, atol=1e-4) # one epoch: all rows, in another order
    weights = short.W_dec.clone()
    fit(short, x, 1000, 500); assert torch.equal(short.W_dec, weights) # fewer rows than it has seen
    fit(short, data(2000, seed=1), 2000, 500)
    assert short.n_fitted==2000 and not torch.equal(short.W_dec, weights)

@pytest.mark.filterwarnings('ignore:.*before it had converged')
@pytest.mark.parametrize('name', FITTED)
def test_a_run_broken_while_gathering_ends_at_the_same_bits(name, tmp_path):
    def go(path, *cb):
        d = dictionaries[name](6, 8, d_out=4, n_fit=1100)
        fit(d, (data(), data(d=4, seed=2)), 15*100, 100, path=path, checkpoint_every=3, callbacks=cb)
        return d
    a = go(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'b', Watch(8))
    b = go(tmp_path/'b')
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)
    assert a.n_fitted==1100 and len(a.rows)==len(a.targets)==0
    final = load_dictionary(tmp_path/'b'/'final')
    same(final(data()), a(data()), **exact)

@pytest.mark.filterwarnings('ignore:.*before it had converged')
def test_what_is_saved_needs_no_estimator(tmp_path):
    "Loaded and used in a process that cannot import scikit-learn, which importing the methods does not do either; and it is small"
    for name in FITTED:
        d,_ = solved(name, data(), 6)
        d.save(tmp_path/name)
        assert (tmp_path/name/'weights.safetensors').stat().st_size<4000
        torch.save((data(), d(data())), tmp_path/name/'x.pt')
    code = f'''
import sys; sys.modules['sklearn'] = None
import torch; torch.set_num_threads(1)
from sparsenb.dictionary import load_dictionary
for name in {FITTED!r}:
    d = load_dictionary(r'{tmp_path}/'+name)
    x,out = torch.load(r'{tmp_path}/'+name+'/x.pt')
    torch.testing.assert_close(d(x), out, rtol=1e-6, atol=1e-6)
'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-1000:]

def test_fewer_directions_or_rows_than_features_leave_features_empty():
    flat = data(200, 2)@torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    d,_ = solved('ica', flat, 10)
    assert not d.W_dec[2:].any() and not d.encode(flat)[:,2:].any() and fvu(d(flat), flat)<1e-6
    few = data(7)
    km,_ = solved('kmeans', few, 10)
    assert not km.W_dec[7:].any() and sorted(km.codes(few).idx[:,0].tolist())==list(range(7)) and km.codes(data()).idx.max()<7
    same(km(few), few, rtol=1e-5, atol=1e-4)
    pca,_ = solved('pca', data(4), 10)
    assert pca.W_dec.any(1).sum()==4 and pca.W_enc.isfinite().all()

def test_the_rows_it_keeps_are_in_the_plan(monkeypatch):
    monkeypatch.setenv('SPARSENB_MEMORY', '100kB')
    fit(dictionaries['pca'](6, 3, n_fit=500), data(), 1000, 100)
    with pytest.raises(MemoryError, match='take a smaller d_sae or batch_size, or n_fit'): fit(dictionaries['pca'](6, 3, n_fit=5000), data(), 1000, 100)

def test_a_solver_that_gave_up_is_reported():
    with pytest.warns(UserWarning, match='ica: the solver ran out of iterations on 1,500 activations .*give a larger max_iter'): solved('ica', data(), 6, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit(dictionaries['ica'](6, 6, max_iter=500), data(), 1500, 100) # early fits that gave up are not news
    with pytest.raises(ValueError, match='n_fit must be at least 2, got 1'): dictionaries['pca'](8, 4, n_fit=1)
    with pytest.raises(ValueError, match="max_iter must be a whole number of at least 1, got 'many'"): dictionaries['kmeans'](8, 4, max_iter='many')

# ---- what they reach where the truth is known ----

def test_directions_of_topk_are_learned_and_those_of_the_control_are_not():
    "128 features in 64 dimensions, 300 steps: the control rebuilds, but points nowhere; two random sets of directions agree as much"
    bed = testbeds['superposition']()
    got = {}
    for name in ('topk', 'random_features'):
        d = dictionaries[name](64, 128, k=4)
        fit(d, bed, 300*512, 512)
        got[name] = {k: v.value for k,v in bed.score(d, n=2048).scores.items()}
    chance = (bed.features@F.normalize(torch.randn(128, 64, generator=torch.Generator().manual_seed(5)), dim=1).t()).amax(1).mean().item()
    assert got['topk']['mmcs']>.9 and abs(got['random_features']['mmcs']-chance)<.03 and got['topk']['fvu']<got['random_features']['fvu']<1, (got, chance)
