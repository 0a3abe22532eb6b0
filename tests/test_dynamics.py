"Measures over checkpoints: closed forms, scikit-learn and scipy, plain second computations, bad input"
import numpy as np, pytest, torch
from sparsenb.core import UnknownName, analyses
from sparsenb.dynamics import Dynamics, checkpoints, classes

torch.set_num_threads(1)
cka,intrinsic_dimension,diffusion_entropy,neural_collapse,v_information,variance_explained,objective_dimension = (analyses[k] for k in
    ('cka', 'intrinsic_dimension', 'diffusion_entropy', 'neural_collapse', 'v_information', 'variance_explained', 'objective_dimension'))
def normal(*shape, seed=0): return np.random.default_rng(seed).normal(size=shape)

def over_steps():
    "Each measure of checkpoints alone, ready to call"
    y,z = np.arange(60)%3,normal(60, 4)[:,0]+.5*normal(60, seed=9)
    return dict(cka=cka, intrinsic_dimension=intrinsic_dimension, diffusion_entropy=lambda a: diffusion_entropy(a, y), neural_collapse=lambda a: neural_collapse(a, y),
        v_information=lambda a: v_information(a, z), variance_explained=lambda a: variance_explained(a, dict(z=z)))
measures = pytest.mark.parametrize('name', over_steps())

# ---- what all have in common ----

@measures
def test_one_input_serves_all(name):
    "Dict in any order, list, tensor, one array; the same numbers, views that draw, steps in order"
    f,a,b = over_steps()[name],normal(60, 4),normal(60, 4, seed=1)
    r = f({200: b, 100: a})
    assert isinstance(r, Dynamics) and r.steps.tolist()==[100, 200]
    kinds = [type(v).__name__ for v in r.views()]
    assert kinds[0]=='Lines' and 'Table' in kinds and all(v.html() for v in r.views()) and r._repr_html_() and repr(r)
    assert r.table().column('step')==(100, 200) and '/1' in r.caption and ' rows' in r.caption
    for other in ([a, b], [torch.tensor(a), torch.tensor(b)], np.stack([a, b])):
        for k,v in f(other).curves.items(): np.testing.assert_array_equal(v, r[k])
    assert f(a).steps.tolist()==[0] and f(torch.tensor(a)).views()

@measures
def test_bad_checkpoints_are_refused(name):
    f,a = over_steps()[name],normal(60, 4)
    bad = a.copy(); bad[7, 2] = np.nan
    for given,said in (({0: a, 5: a[:30]}, r'step 5 has shape \(30, 4\), step 0 has \(60, 4\)'), ({0: a, 5: a[:,:3]}, 'step 5 has shape'), ({0: a, 5: None, 7: None}, 'nothing at step 5, 7'),
        ({0: a, 5: bad}, 'step 5: 1 of 60 rows .* the first is row 7'), ({}, 'got none'), ([], 'got none'), ({float('nan'): a}, 'steps are numbers'), ([a[0]], 'rows and columns'), ({1: [['x']*4]}, 'numbers was expected'), (5, 'got int'), (None, 'got NoneType')):
        with pytest.raises(ValueError, match=said): f(given)

@pytest.mark.parametrize('f', [lambda a, y: diffusion_entropy(a, y), lambda a, y: neural_collapse(a, y)])
def test_labels_that_do_not_match_are_refused(f):
    a = normal(60, 4)
    for y,said in ((np.arange(59)%3, 'each of 60 rows'), (np.zeros(60), 'two classes or more'), (np.where(np.arange(60)<2, np.nan, np.arange(60)%2), '2 of 60 are NaN'), (np.zeros((60, 1)), 'each of 60 rows'), (np.array([1, 'a', None]*20, object), 'of one kind')):
        with pytest.raises(ValueError, match=said): f(a, y)

def test_results_check_themselves():
    with pytest.raises(ValueError, match="'a' has shape"): Dynamics('x', np.arange(3), dict(a=np.zeros(2)), '')
    with pytest.raises(UnknownName, match="did you mean 'activations: CKA'"): cka(normal(9, 2))['activation: CKA']
    assert [*checkpoints({3: normal(4, 2), 1.5: normal(4, 2)})]==[1.5, 3] and classes(['b', 'a', 'b'], 3)[1].tolist()==['a', 'b']
    with pytest.raises(ValueError, match='each class needs 2 rows'): classes([0, 0, 1], 3, 2)

@measures
def test_the_same_seed_gives_the_same_numbers(name):
    f,a = over_steps()[name],[normal(60, 4), normal(60, 4, seed=1)]
    one,two = f(a),f(a)
    for k in one.curves: np.testing.assert_array_equal(one[k], two[k])

# ---- CKA and effective rank ----

def test_cka_and_rank_at_known_points():
    from sparsenb.analyses.cka import effective_rank, linear_cka, proportional_rank
    q = normal(200, 2); q = np.linalg.qr(q-q.mean(0))[0]
    assert linear_cka(q, q[:,:1])==pytest.approx(.5**.5, abs=1e-12)
    assert [proportional_rank(np.diag(s)) for s in ([1., 1, 1, 1], [1., 0, 0, 0])]==pytest.approx([1, .25], abs=1e-12)
    assert proportional_rank(np.diag([3., 1]))==pytest.approx(np.exp(-.75*np.log(.75)-.25*np.log(.25))/2, abs=1e-12)==pytest.approx(.8774, abs=5e-5)
    assert np.isnan(effective_rank(np.zeros(3))) and np.isnan(linear_cka(np.full((9, 2), .3), normal(9, 2)))

def test_cka_is_that_of_centred_kernels():
    "The Gram form, with scikit-learn's centring; it does not mind turns, scales and shifts"
    from sklearn.preprocessing import KernelCenterer
    from sparsenb.analyses.cka import linear_cka
    x,y = normal(80, 5)+3,np.tanh(normal(80, 5))@normal(5, 7, seed=2)-1
    K,L = (KernelCenterer().fit_transform(a@a.T) for a in (x, y))
    assert linear_cka(x, y)==pytest.approx((K*L).sum()/np.sqrt((K*K).sum()*(L*L).sum()), rel=1e-10)
    turn = np.linalg.qr(normal(7, 7, seed=3))[0]
    assert linear_cka(x, 1e-8*y@turn+5)==pytest.approx(linear_cka(x, y), rel=1e-6)
    with pytest.raises(ValueError, match='same rows'): linear_cka(x, y[:9])

def test_components_and_weights():
    from scipy.stats import entropy
    acts = {s: normal(100, 8, seed=s) for s in (0, 10, 20)}
    low = {s: normal(8, 3, seed=s)@normal(3, 8, seed=s+1) for s in acts}
    r = cka({'head': acts, 'mlp': {s: a+1 for s,a in acts.items()}}, weights=dict(head=low), rank=dict(head=3))
    s = np.linalg.svd(low[10], compute_uv=False)[:3]
    assert r['head: rank of weights'][1]==pytest.approx(np.exp(entropy(s/s.sum()))/3, rel=1e-9) and r['cka'].shape==(2, 3)
    np.testing.assert_allclose(r['head: CKA'], r['mlp: CKA'], rtol=1e-9); assert r['head: CKA'][-1]==pytest.approx(1)
    s = np.linalg.svd(acts[0]-acts[0].mean(0), compute_uv=False)
    assert r['head: rank'][0]==pytest.approx(np.exp(entropy(s/s.sum()))/8, rel=1e-9)
    assert cka(acts, to=0)['activations: CKA'][0]==pytest.approx(1) and 'CKA is too high' in cka(normal(5, 4)).caption and 'too high' not in r.caption
    for kw,said in ((dict(to=15), 'no checkpoint at step 15; there are 0, 10, 20'), (dict(weights={0: low[0]}), 'weights of .* are at steps'), (dict(weights=low, rank=dict(haed=3)), 'ranks are said for haed'), (dict(weights=low, rank=dict(weights=9)), 'a rank from 1 to 8')):
        with pytest.raises(ValueError, match=said): cka(acts, **kw)
    with pytest.raises(ValueError, match="'b' has steps"): cka(dict(a=acts, b={0: acts[0]}))

# ---- intrinsic dimension ----

def cube(d, n, seed): # even points in d of ten dimensions
    return np.random.default_rng(seed).random((n, d))@np.linalg.qr(normal(10, d, seed=seed))[0].T

@pytest.mark.parametrize('d', [1, 2, 5])
def test_dimension_of_cubes(d):
    "Within 15 %: every seed of the global estimates, the mean over seeds of the local one, which at d=5 alone comes down to 4.15"
    r = intrinsic_dimension({s: cube(d, 1500, s) for s in range(6)}, n_anchors=100)
    slope = intrinsic_dimension({s: cube(d, 1500, s) for s in range(6)}, n_anchors=1, method='fit')
    assert (abs(r['global']/d-1)<.15).all() and (abs(slope['global']/d-1)<.15).all()
    assert abs(r['local, mean'].mean()/d-1)<.15 and (abs(r['local, mean']/d-1)<.2).all() and len(r['local'][0])==100
    lo,hi = r.bounds['global'].T
    assert ((lo<r['global'])&(r['global']<hi)).all() and not slope.bounds

def test_neighbours_are_those_of_scikit_learn():
    "Far from the origin too, where products lose all digits"
    from sklearn.neighbors import NearestNeighbors
    from sparsenb.analyses.intrinsic_dimension import local_dimensions, log_ratios, two_nn
    x = normal(700, 6)
    r,near = NearestNeighbors(n_neighbors=41, algorithm='kd_tree').fit(x).kneighbors(x)
    want = np.log(r[:,2]/r[:,1])
    np.testing.assert_allclose(log_ratios(x), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(log_ratios(x+1e6), want, rtol=1e-4, atol=1e-7)
    assert two_nn(want)==pytest.approx(699/want.sum())
    F,m = np.arange(1, 631)/701,np.sort(want)[:630]
    assert two_nn(want, 'fit')==pytest.approx(np.linalg.lstsq(m[:,None], -np.log(1-F), rcond=None)[0][0])
    one = [NearestNeighbors(n_neighbors=3).fit(x[i]).kneighbors(x[i])[0] for i in near[:5]]
    np.testing.assert_allclose(local_dimensions(x, range(5), 40), [40/np.log(r[:,2]/r[:,1]).sum() for r in one], rtol=1e-9)

def test_intervals_of_the_dimension_hold():
    "Ratios drawn independently: 95 % of 400 intervals, give or take"
    from sparsenb.analyses.intrinsic_dimension import two_nn_interval
    rng = np.random.default_rng(0)
    hit = [lo<4<hi for lo,hi in (two_nn_interval(rng.exponential(1/4, 200)) for _ in range(400))]
    assert .92<np.mean(hit)<.98

def test_copies_ties_and_few_points():
    x = cube(2, 400, 0)
    r,plain = intrinsic_dimension(np.repeat(x, 3, 0)),intrinsic_dimension(x)
    assert r['points'][0]==400 and r['global'][0]==pytest.approx(plain['global'][0], rel=1e-12)
    for a,said in ((x[:9], '9 different points in 10 dimensions'), (np.repeat(x[:9], 4, 0), '9 different points in 10'), (np.ones((30, 3)), '1 different points'), (np.array([(i, j) for i in range(6) for j in range(6)]), 'equally far from every point')):
        with pytest.raises(ValueError, match=f'step 0: .*{said}'): intrinsic_dimension(a)
    for kw,said in ((dict(method='ml'), "'mle', or 'fit'|'mle' or 'fit'"), (dict(neighbours=400), 'from 3 to 399 neighbours'), (dict(n_rows=0), 'n_rows is a whole number')):
        with pytest.raises(ValueError, match=said): intrinsic_dimension(x, **kw)

# ---- diffusion spectral entropy ----

def test_entropy_at_known_points():
    two = np.repeat([[0., 0], [50, 0]], 32, 0)+1e-9*normal(64, 2)
    assert diffusion_entropy(100*np.eye(64), bandwidth=1)['entropy'][0]==pytest.approx(6, abs=1e-9)
    assert diffusion_entropy(np.ones((64, 3)), bandwidth=1)['entropy'][0]==pytest.approx(0, abs=1e-9)
    r = diffusion_entropy(two, np.repeat(['a', 'b'], 32), bandwidth=1)
    assert (r['entropy'][0], r['information with labels'][0])==pytest.approx((1, 1), abs=1e-6)
    assert abs(diffusion_entropy(two, np.arange(64)%2, bandwidth=1)['information with labels'][0])<1e-6
    assert diffusion_entropy(normal(256, 16), bandwidth=10)['entropy'][0]==pytest.approx(1.25, abs=.05)

@pytest.mark.parametrize('t', [1, 3])
def test_entropy_is_that_of_the_random_walk(t):
    "Eigenvalues of the rows-sum-to-one matrix by scipy, distances by scipy, entropy by scipy"
    from scipy.linalg import eigvals
    from scipy.spatial.distance import pdist, squareform
    from scipy.stats import entropy
    x = normal(90, 3)+7
    sigma = np.median(pdist(x))/2
    G = np.exp(-squareform(pdist(x))**2/2/sigma**2)
    lam = np.abs(eigvals(G/G.sum(1, keepdims=True)))**t
    r = diffusion_entropy(x, t=t)
    assert r['bandwidth'][0]==pytest.approx(sigma) and r['entropy'][0]==pytest.approx(entropy(lam, base=2), rel=1e-9)

def test_the_bandwidth_is_one_for_all_steps_unless_said():
    x = normal(120, 4)
    one,each = diffusion_entropy([x, x/3]),diffusion_entropy([x, x/3], bandwidth='each')
    assert one['entropy'][1]<one['entropy'][0]-1 and each['entropy'][1]==pytest.approx(each['entropy'][0], abs=1e-9)
    assert 'half the median distance, the same at all steps' in one.caption and 'of each step' in each.caption
    y,many = np.arange(120)%4,diffusion_entropy(x, np.arange(120)%4, n_rows=60)
    assert len(many['rows'])==60 and '60 of 120 rows' in many.caption
    for kw,said in ((dict(bandwidth=0), 'bandwidth is None'), (dict(bandwidth='all'), 'bandwidth is None'), (dict(t=0), 'a time above 0'), (dict(n_rows=2.5), 'n_rows is a whole number')):
        with pytest.raises(ValueError, match=said): diffusion_entropy(x, y, **kw)
    with pytest.raises(ValueError, match='step 1: no bandwidth'): diffusion_entropy([x, np.ones_like(x)], bandwidth='each')

# ---- neural collapse ----

def simplex(C, d):
    M = np.eye(C, d)-np.pad(np.full((C, C), 1/C), ((0, 0), (0, d-C)))
    return M/np.linalg.norm(M, axis=1, keepdims=True)

@pytest.mark.parametrize('C', [2, 4, 7])
@pytest.mark.parametrize('shift', [0, 5.])
def test_collapse_of_a_simplex(C, shift):
    "Scatter σ² in every direction: NC1 = σ²(C-1)²/C, the rest 0 where the last layer is the means"
    d,s = C+3,.05
    M = simplex(C, d)
    noise = s*d**.5*np.r_[np.eye(d), -np.eye(d)]
    h,y = (M[:,None]+noise).reshape(-1, d)+shift,np.repeat(np.arange(C), 2*d)
    r = neural_collapse(h, y, (3*M, -3*M@np.full(d, shift)))
    assert r['NC1'][0]==pytest.approx(s*s*(C-1)**2/C, rel=1e-9) and (C!=4 or r['NC1'][0]==pytest.approx(2.25*s*s, rel=1e-9))
    assert [r[k][0] for k in ('NC2 norms', 'NC2 angles', 'NC3', 'NC4')]==pytest.approx([0]*4, abs=1e-12)
    assert [*neural_collapse(h, y).curves]==['NC1', 'NC2 norms', 'NC2 angles']

def test_collapse_is_that_of_the_matrices():
    "Covariances by numpy, inverse by numpy, nearest means by scikit-learn"
    from sklearn.neighbors import NearestCentroid
    h,y = normal(300, 9)+normal(5, 9, seed=1)[np.arange(300)%5],np.arange(300)%5
    W,b = normal(5, 9, seed=2),normal(5, seed=3)
    r = neural_collapse({7: h}, y, {7: (torch.tensor(W), torch.tensor(b))})
    mu = np.stack([h[y==c].mean(0) for c in range(5)]); M = mu-mu.mean(0)
    S_W,S_B = sum(np.cov(h[y==c].T, bias=True) for c in range(5))/5,M.T@M/5
    assert r['NC1'][0]==pytest.approx(np.trace(S_W@np.linalg.pinv(S_B, rcond=1e-10))/5, rel=1e-8)
    n,cos = np.linalg.norm(M, axis=1),np.corrcoef(np.r_[M.T, -M.T].T) # each row beside its negative: its mean is 0, so that correlations are cosines
    assert r['NC2 norms'][0]==pytest.approx(n.std()/n.mean()) and r['NC2 angles'][0]==pytest.approx(np.abs(cos[np.triu_indices(5, 1)]+.25).mean())
    assert r['NC3'][0]==pytest.approx(2-2*(W*M).sum()/np.linalg.norm(W)/np.linalg.norm(M))
    assert r['NC4'][0]==(NearestCentroid().fit(h, y).predict(h)!=(h@W.T+b).argmax(1)).mean()
    for head,said in (({7: W[:4]}, 'last layer, step 7: weights'), ({8: W}, 'no last layer at step 7; there are 8'), ({7: (W, b[:3])}, 'and a bias'), ({7: W*np.nan}, 'NaN'), (5, 'last layer: .* got int')):
        with pytest.raises(ValueError, match=said): neural_collapse({7: h}, y, head)
    with pytest.raises(ValueError, match='5 classes stand as a simplex in 4'): neural_collapse(h[:,:3], y)
    assert np.isnan(neural_collapse(np.ones((10, 3)), np.arange(10)%2)['NC1'][0])

# ---- V-information ----

def test_a_feature_of_the_last_two_of_four_layers():
    z = normal(4000)
    layers = [normal(4000, 6, seed=i+1) for i in range(4)]
    for i in (2, 3): layers[i] = np.c_[layers[i][:,:5], layers[i]@np.ones(6)+z, layers[i][:,5]] # z is linear in it, exactly
    r = v_information(dict(zip('abcd', layers)), z, over='layer')
    assert r['complexity'][0]==pytest.approx(.5, abs=.002) and r['information'][2:,0]==pytest.approx([1, 1]) and (r['information']>=0).all()
    lo,hi = r['complexity, interval'][0]
    assert lo<=r['complexity'][0]<=hi and r.more[0].rows[0][2]=='c' and 'layers a, b, c, d' in r.caption

def test_information_is_the_score_of_scikit_learn():
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score
    from sparsenb.analyses.v_information import split_rows
    x,z = normal(300, 5),normal(300, 3, seed=1)+2
    z[:,:2] += x[:,:2]
    r = v_information([x, x[:,::-1]], z, seed=4)
    fit,held = split_rows(300, .3, 4)
    want = r2_score(z[held], LinearRegression().fit(x[fit], z[fit]).predict(x[held]), multioutput='raw_values').clip(0)
    np.testing.assert_allclose(r['information'][0], want, rtol=1e-9, atol=1e-12); np.testing.assert_allclose(r['time to decode'], 1-want, rtol=1e-9)
    np.testing.assert_allclose(v_information([x], z, seed=4)['information'], v_information([x*1e6], z*1e-6, seed=4)['information'], rtol=1e-6, atol=1e-9)
    lo,hi = r.bounds['mean'].T; assert (lo<r['mean']).all() and (r['mean']<hi).all()
    assert not v_information(x, z, n_boot=0).bounds
    for kw,said in ((dict(over='epoch'), "'step' or 'layer'"), (dict(test=1), 'share of the rows'), (dict(names=['a']), '1 names for 3'), (dict(ridge=-1), 'ridge')):
        with pytest.raises(ValueError, match=said): v_information(x, z, **kw)
    for given,said in ((z[:9], 'features of 300 rows were expected, got 9'), (z*np.nan, 'NaN'), (np.ones(300), "feature '0' does not vary")):
        with pytest.raises(ValueError, match=said): v_information(x, given)
    with pytest.raises(ValueError, match='layer b has 9 rows, layer a has 300'): v_information(dict(a=x, b=x[:9]), z, over='layer')

# ---- variance explained ----

@pytest.mark.parametrize('ratio', ['sum', 'row'])
def test_two_features_of_known_share(ratio):
    "φ = 2f₁u+f₂v on all combinations: four fifths and one fifth"
    f = np.random.default_rng(0).integers(0, 2, (6000, 2))*2-1.
    q = np.linalg.qr(normal(6, 2))[0]
    r = variance_explained({0: f@q.T, 10: (f*[2, 1])@q.T}, dict(one=f[:,0], two=f[:,1]>0), ratio=ratio, n_boot=0)
    assert (r['one'][1], r['two'][1])==pytest.approx((.8, .2), abs=.01)
    assert (r['one'][0], r['two'][0])==pytest.approx((.2, .2), abs=.01) # by the final squares
    own = variance_explained([f@q.T, (f*[2, 1])@q.T], dict(one=f[:,0], two=f[:,1]), ratio=ratio, of='own', n_boot=0)
    assert (own['one'][0], own['two'][0])==pytest.approx((.5, .5), abs=.01)

def test_shares_on_all_combinations_are_exact():
    from sparsenb.analyses.variance_explained import residual_squares
    f = np.array([(a, b) for a in (-1., 1) for b in (-1., 1)]); q = np.linalg.qr(normal(6, 2))[0]; x = (f*[2, 1])@q.T
    for j,want in ((0, .8), (1, .2)):
        left,total = residual_squares(f[:,[j]], x, np.arange(4), np.arange(4))
        assert (1-left.sum()/total.sum(), (1-left/total).mean())==pytest.approx((want, want), abs=1e-12)

def test_shares_are_those_of_scikit_learn():
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import OneHotEncoder
    x,c = normal(400, 7),np.arange(400)%5
    x += normal(5, 7, seed=1)[c]
    r = variance_explained(x, dict(c=c), categories=('c',), seed=2)
    held = r['held']; fit = np.setdiff1d(np.arange(400), held)
    one = OneHotEncoder().fit_transform(c[:,None]).toarray()
    err = np.square(x[held]-LinearRegression().fit(one[fit], x[fit]).predict(one[held])).sum()
    assert r['c'][0]==pytest.approx(1-err/np.square(x[held]-x[fit].mean(0)).sum(), rel=1e-9)
    lo,hi = r.bounds['c'][0]; assert lo<r['c'][0]<hi
    assert r['c'][0]>variance_explained(x, dict(c=c), seed=2)['c'][0]+.1 # the numbers 0 to 4 on a line say less
    for features,said in ((dict(c=c[:9]), "feature 'c': one value for each of 400"), (dict(c=c*0), 'one value alone'), (dict(c=np.where(c>0, c, np.nan)), 'NaN'), (dict(c=np.array([1, 'a']*200, object)), 'of one kind'), ({}, 'dict from names'), ([c], 'dict from names')):
        with pytest.raises(ValueError, match=said): variance_explained(x, features)
    for kw,said in ((dict(ratio='mean'), "'sum' or 'row'"), (dict(of='first'), "'final' or 'own'"), (dict(categories=('d',)), 'no feature named d'), (dict(test=0), 'leaves two of 400')):
        with pytest.raises(ValueError, match=said): variance_explained(x, dict(c=c), **kw)
    with pytest.raises(ValueError, match='final step are at their mean'): variance_explained([x, x*0], dict(c=c))

# ---- dimension of an objective ----

groups = torch.arange(1, 11).double()
def sums(t): return (t.view(10, 100).sum(1)-groups).square().sum()

@pytest.mark.parametrize('projection', ['dense', 'fastfood'])
def test_ten_numbers_need_ten_directions(projection):
    from sparsenb.analyses.objective_dimension import dense_map, fastfood_map
    make,start = dict(dense=dense_map, fastfood=fastfood_map)[projection],torch.zeros(1000).double()
    r = objective_dimension(sums, start, (4, 8, 9, 10), projection, reach=1-1e-6, seeds=3, seed=0)
    assert r['dimension']==10 and (r['losses'][:3]>1e-2).all() and (r['losses'][3]<1e-25).all()
    assert r.steps.tolist()==[4, 8, 9, 10] and r.table().column('directions')==(4, 8, 9, 10) and r.views()[0].html()
    for i,d in enumerate(r.steps): # least squares says what can be reached in each
        for j in range(3):
            A = torch.stack([make(1000, int(d), j)(e) for e in torch.eye(int(d)).double()], 1).view(10, 100, -1).sum(1)
            best = np.linalg.lstsq(A.numpy(), groups.numpy(), rcond=None)[0]
            assert r['losses'][i,j]==pytest.approx(np.square(A.numpy()@best-groups.numpy()).sum(), rel=1e-6, abs=1e-20)

def test_maps():
    from scipy.linalg import hadamard as H
    from sparsenb.analyses.objective_dimension import dense_map, fastfood_map, hadamard
    np.testing.assert_allclose(hadamard(torch.eye(16).double()), H(16)/4, atol=1e-12)
    with pytest.raises(ValueError, match='power of two'): hadamard(torch.ones(6))
    for make,D,slack in ((dense_map, 1000, 1e-12), (fastfood_map, 1024, 1e-12), (fastfood_map, 1000, .05)):
        P = torch.stack([make(D, 12, 3)(e) for e in torch.eye(12).double()], 1)
        assert ((P.norm(dim=0)-1).abs()<=slack).all() and torch.linalg.matrix_rank(P)==12
        assert ((P.t()@P-torch.eye(12)).abs()<.2).all() and not torch.equal(P[:,0], make(D, 12, 4)(torch.eye(12).double()[0]))

def test_own_score_and_own_training():
    "A score that counts groups reached, in 32 bits, with another minimiser; not reached says so"
    start,calls = torch.zeros(1000),[]
    def count(t): return ((t.view(10, 100).sum(1)-groups.float()).abs()<.1).sum()/10
    def steps(f, eta):
        from sparsenb.analyses.objective_dimension import lbfgs
        calls.append(len(eta)); return lbfgs(f, eta, 100)
    r = objective_dimension(sums, start, (5, 20), score=count, floor=0, full=1, minimise=steps, seed=1)
    assert calls==[5, 20] and r['dimension']==20 and r['performance'][1,0]==1
    assert np.isnan(objective_dimension(sums, start, (2,), seed=1)['dimension']) and 'is not reached' in objective_dimension(sums, start, (2,), seed=1).caption

def test_bad_objectives_are_refused():
    start = torch.zeros(1000).double()
    for kw,said in ((dict(dims=(0, 2)), 'at least 1 to at most 1000'), (dict(dims=(3, 2)), 'that rise'), (dict(dims=(1001,)), 'at most 1000'), (dict(dims=()), 'whole numbers'), (dict(start=start.long()), 'finite floats'), (dict(start=start*float('nan')), 'finite floats'),
        (dict(start=start.view(10, 100)), 'one vector'), (dict(projection='sparse'), "'dense' or 'fastfood'"), (dict(reach=0), 'reach is a share'), (dict(seeds=0), 'seeds is how many'), (dict(loss=lambda t: t), 'a loss is one number'),
        (dict(loss=lambda t: t.sum()*float('nan')), 'performance at the start is nan'), (dict(full=-400.), 'there is no way')):
        with pytest.raises(ValueError, match=said): objective_dimension(**{**dict(loss=sums, start=start, dims=(2,)), **kw})
