"Relevance of latent axes and von Neumann entropy: closed forms, invariances, batches, checkpoints"
import numpy as np, pytest, torch
from sparsenb.analyses.cka import effective_rank, proportional_rank
from sparsenb.analyses.latent_relevance import precisions, relevant, squared_slopes
from sparsenb.analyses.von_neumann_entropy import Moments, share_bits, spectrum
from sparsenb.core import analyses, dictionaries

torch.set_num_threads(1)
entropy,relevance = analyses['von_neumann_entropy'],analyses['latent_relevance']
def normal(*shape, seed=0): return np.random.default_rng(seed).normal(size=shape)
def turn(d, seed=0): return np.linalg.qr(normal(d, d, seed=seed))[0]
def white(n, d, seed=0):
    "Rows whose covariance is the identity, exactly"
    x = normal(n, d, seed=seed); return np.linalg.qr(x-x.mean(0))[0]*(n-1)**.5

# ---- von Neumann entropy ----

@pytest.mark.parametrize('sd,bits', [(np.ones(8), 3), (np.ones(5), np.log2(5)), ([1, 0, 0, 0], 0), ([2, 2, 0], 1), (3**.5*np.r_[1, 0, 0]+np.r_[0, 1, 0], .811278124), (.5**np.arange(20), 1.081704)])
def test_closed_forms_of_entropy(sd, bits):
    "Also turned, moved and on any scale; the last has shares 3/4, 3/16, ...: log2(4/3)·(1/3)+... = (log2 4)/3+log2(4/3)"
    sd = np.asarray(sd, float)
    x = white(300, len(sd))*sd
    got = entropy({0: x, 1: x@turn(len(sd)), 2: 1e-9*x, 3: 1e7*x+12})['entropy']
    np.testing.assert_allclose(got[:3], bits, atol=2e-6); assert got[3]==pytest.approx(bits, abs=1e-5)

def test_directions_are_the_effective_rank_of_squares():
    for seed in range(5):
        x = normal(200, 12, seed=seed)@np.diag(np.random.default_rng(seed).random(12)**2)@turn(12)
        s = np.linalg.svd(x-x.mean(0), compute_uv=False)
        d = entropy(x)['directions'][0]
        assert d==pytest.approx(effective_rank(s**2), rel=1e-9) and d<effective_rank(s)
    x = white(200, 12)@np.diag([2.]*5+[0]*7) # all that are not 0 alike: the two ranks are one
    s = np.linalg.svd(x, compute_uv=False)
    assert entropy(x)['directions'][0]==pytest.approx(5)==pytest.approx(effective_rank(s))==pytest.approx(12*proportional_rank(x))

def test_batches_give_the_same_entropy_far_from_the_origin():
    x = normal(997, 10)*np.geomspace(1, 1e-3, 10)+1e4
    whole = Moments().add(x)
    for cut in ([1, 2], [500], list(range(1, 997))):
        m = Moments()
        for part in np.split(x, cut): m.add(part)
        assert m.n==997 and share_bits(spectrum(m.covariance))==pytest.approx(share_bits(spectrum(whole.covariance)), abs=1e-6)
    np.testing.assert_allclose(m.covariance, np.cov((x-1e4).T), atol=1e-8)
    near = entropy({5: x-1e4})['entropy'][0]
    assert entropy({5: m})['entropy'][0]==pytest.approx(near, abs=1e-5) and entropy({0: whole, 5: m}).steps.tolist()==[0, 5]
    squares = (x.astype(np.float32)**2).mean(0)-x.astype(np.float32).mean(0)**2 # what sums of squares would say
    assert not np.allclose(squares, x.var(0), rtol=.5, atol=0)

def test_a_sample_is_short_by_pages_bits():
    n,d = 2000,100
    got = entropy(normal(n, d))['entropy'][0]
    assert got==pytest.approx(np.log2(d)-d/(2*n*np.log(2)), abs=2e-3)
    assert 'Fewer than ten rows' in entropy(normal(500, d)).caption and 'Fewer rows than columns' in entropy(normal(50, d)).caption and 'ewer' not in entropy(normal(n, d)).caption

def test_a_collapse_to_a_point_has_no_entropy():
    e = entropy({0: normal(50, 4), 10: np.full((50, 4), .7)})
    assert np.isnan(e['entropy'][1]) and 'the same at step 10' in e.caption and all(v.html() for v in e.views())

def test_refused_by_entropy():
    for bad,said in (({0: normal(9, 3), 1: normal(9, 2)}, 'step 1 has shape'), ({0: Moments().add(normal(9, 3)), 1: Moments().add(normal(8, 3))}, '9 x 3 at step 0, 8 x 3 at step 1'), ({0: Moments().add(normal(1, 3))}, 'two rows'), (normal(1, 3), '2 rows')):
        with pytest.raises(ValueError, match=said): entropy(bad)
    with pytest.raises(ValueError, match='3 dimensions were expected, got 2'): Moments().add(normal(4, 3)).add(normal(4, 2))
    for C,said in ((np.ones((2, 3)), 'shape'), (np.array([[1., 2], [0, 1]]), 'symmetric'), (-np.eye(2), 'below 0')):
        with pytest.raises(ValueError, match=said): spectrum(C)

# ---- relevance of latent axes ----

def ppca(q=3, L=8, d=12, n=3000, noise=.2, seed=0):
    "Data with q directions in noise; decoder, means and variances of probabilistic PCA's maximum likelihood with L axes"
    from sklearn.decomposition import PCA
    g = np.random.default_rng(seed)
    x = g.normal(size=(n, q))*np.linspace(3, 2, q)@turn(d, seed)[:q]+noise*g.normal(size=(n, d))+5
    p = PCA(L).fit(x)
    lam,s2 = p.explained_variance_,p.noise_variance_
    return x,p,np.sqrt(lam-s2)[:,None]*p.components_,(x-x.mean(0))@p.components_.T*np.sqrt(lam-s2)/lam,np.broadcast_to(s2/lam, (n, L)),lam,s2

@pytest.mark.parametrize('q,L,d,seed', [(3, 8, 12, 0), (5, 15, 20, 1), (1, 6, 8, 2), (4, 4, 10, 3)])
def test_probabilistic_pca_in_closed_form(q, L, d, seed):
    from sklearn.decomposition import PCA
    x,p,W,mu,s2,lam,noise = ppca(q, L, d, seed=seed)
    r = relevance(mu, W, s2)
    n = len(x)
    np.testing.assert_allclose(r['variances'][0], 1-noise/lam+n/(n-1)*noise/lam, rtol=1e-9) # the standard prior
    np.testing.assert_allclose(r['relevance'][0], (lam-noise)*r['variances'][0], rtol=1e-9)
    means = relevance(mu, W)
    np.testing.assert_allclose(means['relevance'][0], (lam-noise)**2/lam, rtol=1e-9)
    assert r['relevant axes'][0]==means['relevant axes'][0]==q==PCA('mle').fit(x).n_components_
    assert relevance(mu, variances=s2)['relevant axes'][0]==L # without the decoder every axis looks alike
    assert r.bounds['relevant axes'][0].tolist()==[q, q]
    np.testing.assert_allclose(W@W.T, np.diag(lam-noise), atol=1e-9); assert p.score(x)==pytest.approx(PCA(L).fit(x).score(x))

def test_relevance_has_no_unit_but_it_has_axes():
    _,_,W,mu,s2,*_ = ppca()
    c = np.geomspace(1e-3, 1e3, 8)
    a,b = relevance(mu, W, s2),relevance(mu*c, W/c[:,None], s2*c**2)
    np.testing.assert_allclose(a['relevance'], b['relevance'], rtol=1e-9); assert relevance(mu*c)['relevant axes'][0]<relevance(mu)['relevant axes'][0]
    R = turn(8, 4)
    assert relevance(mu@R, R.T@W)['relevant axes'][0]>3==relevance(mu, W)['relevant axes'][0]
    assert entropy(mu@R@(R.T@W))['entropy'][0]==pytest.approx(entropy(mu@W)['entropy'][0], abs=1e-9)

def test_intervals_are_the_chi_squares_and_cover():
    from scipy.stats import chi2
    z = normal(40, 3)
    low,high = precisions(z).interval(.9).T
    np.testing.assert_allclose([low, high], [np.square(z-z.mean(0)).sum(0)/chi2.ppf(q, 39) for q in (.95, .05)], rtol=1e-9)
    inside = sum(((lo<4)&(4<hi)).sum() for s in range(200) for lo,hi in [precisions(2*normal(30, 5, seed=s)).interval().T])
    assert .92<inside/1000<.975
    p = precisions(z, prior=(3., 2.))
    np.testing.assert_allclose(p.variances, (2+np.square(z-z.mean(0)).sum(0)/2)/(3+39/2))
    few,many = relevance(normal(20, 12)*np.linspace(1, .05, 12), share=.9, n_rows=5),relevance(normal(20_000, 12)*np.linspace(1, .05, 12), share=.9, n_rows=5)
    assert np.ptp(few.bounds['relevant axes'][0])>=np.ptp(many.bounds['relevant axes'][0]) and np.ptp(few.bounds['relevant axes'][0])>=1

def test_slopes_of_a_network():
    "Against the full Jacobian, in the network's own precision, and of a dictionary"
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 9), torch.nn.Unflatten(1, (3, 3))).double()
    z = normal(12, 5)
    J = torch.stack([torch.autograd.functional.jacobian(lambda v: net(v[None])[0].flatten(), r) for r in torch.tensor(z)])
    np.testing.assert_allclose(squared_slopes(net, z), J.square().sum(1).mean(0).detach().numpy(), rtol=1e-9)
    assert all(p.grad is None for p in net.parameters())
    d = dictionaries['latent_quantization'](9, 5, n_values=0)
    np.testing.assert_allclose(squared_slopes(d, z), squared_slopes(d.W_dec, z), rtol=1e-4)

def test_over_checkpoints():
    "Axes that are given up one by one; a decoder for each step, or one for all; the rows drawn change nothing of a matrix"
    z,W = normal(500, 6),turn(6)
    acts = {10*i: z*np.r_[np.ones(6-i), np.full(i, 1e-2)] for i in range(5)}
    r = relevance(acts, W)
    assert r['relevant axes'].tolist()==[6, 5, 4, 3, 2] and r.steps.tolist()==[0, 10, 20, 30, 40]
    other = relevance(acts, {s: W*(1+s) for s in acts}, {s: np.zeros(z.shape) for s in acts}, n_rows=3, seed=9)
    np.testing.assert_array_equal(other['relevant axes'], r['relevant axes']); assert other['relevance'][1]==pytest.approx(121*r['relevance'][1])
    assert all(v.html() for v in r.views()) and r.more[0].z.shape==(6, 5) and r.more[0].z[:,-1].sum()==pytest.approx(1)
    np.testing.assert_array_equal(relevant([[3., 1, 1], [0, 5, 5]], .6), [[True, False, False], [False, True, True]])

def test_refused_by_relevance():
    z,W = normal(20, 4),normal(4, 6)
    for args,kw,said in (((z, W.T), {}, 'a row for each of 4 axes'), ((z, {1: W}), {}, 'decoder: nothing at step 0'), ((z, W, z[:,:2]**2), {}, 'shape \\(20, 2\\)'), ((z, W, -z**2), {}, 'one below 0'), ((z, W), dict(share=0), 'a share above 0'), ((z, W), dict(n_rows=0), 'n_rows is a whole number'), ((z, W), dict(prior=(-1, 0)), 'prior is two numbers'), ((z[:1], W), {}, '2 rows')):
        with pytest.raises(ValueError, match=said): relevance(*args, **kw)
