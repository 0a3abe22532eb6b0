"InfoMEC against known codes and scikit-learn; the testbeds of known sources and of digits"
import itertools
import numpy as np, pytest, torch
import torch.nn.functional as F
from sparsenb.core import analyses, dictionaries, testbeds

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
infomec = analyses['infomec']
def values(m): return [s.value for s in m.scores.values()]

# ---- InfoMEC ----

@pytest.mark.parametrize('seed', [0, 1, 2])
def test_codes_with_known_scores(seed):
    "Three sources of four values, 4000 rows: modularity, explicitness, compactness"
    s = np.random.default_rng(seed).integers(0, 4, (4000, 3))
    codes = dict(identity=s, dead=np.c_[s, np.zeros(4000)], twice=np.c_[s, s], merged=np.c_[s[:,0]*4+s[:,1], s[:,2]])
    known = dict(identity=(1, 1, 1), dead=(1, 1, 1), twice=(1, 1, .4), merged=(.625, 1, 1))
    for k,z in codes.items(): assert values(infomec(z, s, n_boot=0))==pytest.approx(known[k], abs=.01), k
    m,e,c = values(infomec((s+s[:,[1,2,0]])%4, s, n_boot=0)) # pairwise sums: every latent is independent of every source, chance alone makes shares unequal
    assert m<.3 and abs(e)<.01 and c<.3

def test_modularity_of_nothing_is_not_0():
    "Means of ten seeds: one share is always the largest, in sums that are independent of each source and in noise"
    got = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        s = rng.integers(0, 4, (4000, 3))
        got.append([infomec(z, s, n_boot=0).infom.value for z in ((s+s[:,[1,2,0]])%4, rng.integers(0, 4, (4000, 3)))])
    sums,noise = np.mean(got, 0)
    assert .08<sums<.18 and .14<noise<.28, (sums, noise)

def test_information_is_that_of_scikit_learn():
    from sklearn.feature_selection import mutual_info_classif
    from sklearn.metrics import mutual_info_score
    from sparsenb.analyses.infomec import information, table_information
    rng = np.random.default_rng(0)
    s = rng.integers(0, 5, (1000, 2))
    z = np.c_[s.sum(1), rng.integers(0, 7, 1000), s[:,0]]
    for a,b in itertools.product(s.T, z.T): assert table_information(a, b)==pytest.approx(mutual_info_score(a, b), abs=1e-12)
    w = rng.integers(0, 3, 1000)
    assert table_information(s[:,0], z[:,0], w.astype(float))==pytest.approx(mutual_info_score(np.repeat(s[:,0], w), np.repeat(z[:,0], w)), abs=1e-12)
    x = z+rng.normal(size=z.shape)
    want = np.array([mutual_info_classif(x, a, n_neighbors=10, random_state=3)/mutual_info_score(a, a) for a in s.T])
    np.testing.assert_allclose(information(s, x, False, 3), want, rtol=1e-9)

@pytest.mark.parametrize('discrete', [True, False])
def test_explicitness_is_that_of_scikit_learn(discrete):
    "Also for classes of unequal size, with the baseline fitted to zeros"
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    rng = np.random.default_rng(0)
    s = rng.choice(3, (2000, 2), p=[.6, .3, .1])
    z = (s+rng.integers(0, 2, s.shape))%3 if discrete else s+rng.normal(size=s.shape)
    def loss(X, y): return log_loss(y, LogisticRegression(C=np.inf, class_weight='balanced', max_iter=1000).fit(X, y).predict_proba(X))
    X = OneHotEncoder().fit_transform(z) if discrete else StandardScaler().fit_transform(z)
    want = np.mean([1-loss(X, y)/loss(np.zeros((2000, 2)), y) for y in s.T])
    assert infomec(z, s, discrete, n_boot=0).infoe.value==pytest.approx(want, abs=1e-3)

def test_latents_that_do_not_move_are_left_out():
    rng = np.random.default_rng(0)
    s = rng.integers(0, 4, (800, 3))
    x = s+.01*rng.normal(size=s.shape)
    wide,narrow = np.c_[x, x[:,0]*.2],np.c_[x, x[:,0]*.02]
    assert infomec(wide, s).active.tolist()==[True]*4 and infomec(narrow, s).active.tolist()==[True]*3+[False]
    a,b,c = (infomec(z, s).infoc.value for z in (narrow, x, wide))
    assert abs(a-b)<.01 and c<b-.1
    assert infomec(np.c_[s, np.full(800, 7)], s).active.tolist()==[True]*3+[False]
    still = infomec(np.zeros((800, 2)), s)
    assert np.isnan(still.infom.value) and abs(still.infoe.value)<1e-6 and not still.active.any()

def test_intervals_hold_the_value_and_narrow():
    rng = np.random.default_rng(0)
    s = rng.integers(0, 4, (8000, 3))
    z = np.where(rng.random(s.shape)<.5, s, s[:,[1,2,0]])
    wide = []
    for n in (500, 8000):
        m = infomec(z[:n], s[:n], seed=1)
        for v in m.scores.values(): assert v.lo<v.value<v.hi<=1 and v.n==n and v.seed==1
        wide.append([v.hi-v.lo for v in m.scores.values()])
    assert all(2.5<a/b<7 for a,b in zip(*wide)) # rows are sixteen times as many: a quarter
    assert values(infomec(z[:500], s[:500], seed=1))==values(infomec(z[:500], s[:500], seed=1, n_boot=0))
    assert np.isnan(infomec(s[:500]+rng.normal(size=(500, 3)), s[:500]).infom.lo)

def test_result_is_views_and_arrays():
    s = np.random.default_rng(0).integers(0, 4, (500, 2))
    m = infomec(torch.tensor(np.c_[s, 0*s[:,0]]), torch.tensor(s), names=('shape', '<colour>'))
    table,heat = m.views()
    assert table.column('metric')==('infom', 'infoe', 'infoc') and heat.z.shape==(2, 2) and heat.cols==('0', '1')
    assert m.R.shape==(2, 3) and m.R[0,0]==pytest.approx(1) and '<colour>' not in m._repr_html_()

def test_rows_that_do_not_fit():
    s = np.random.default_rng(0).integers(0, 4, (50, 2))
    for z,t,say in ((s[:9], s, r'got shapes \(9, 2\)'), (s[:,0], s, r'got shapes \(50,\)'), (s, s[:,:0], r'got shapes \(50, 2\) and \(50, 0\)'), (s, s*[1, 0], 'two values or more, there is one in source 1'), (np.where(s>2, np.nan, s), s, 'must be finite')):
        with pytest.raises(ValueError, match=say): infomec(z, t)
    with pytest.raises(ValueError, match='3 names for 2 sources'): infomec(s, s, names='abc')

# ---- both testbeds ----

@pytest.fixture(params=[('factors', {}), ('factors', dict(one_hot=True, nonlinear=0)), ('digits', dict(n_dims=4))], ids=['factors', 'one_hot', 'digits'])
def make(request): return lambda **kw: testbeds[request.param[0]](**request.param[1], **kw)

def test_same_seed_same_bits_and_scores_on_rows_never_trained_on(make):
    before,bed = torch.get_rng_state(),make()
    rows = lambda b: torch.cat(list(itertools.islice(b, 2)))
    torch.testing.assert_close(rows(bed), rows(make()), **exact)
    for a,b in zip(bed.sample(100), make().sample(100)): torch.testing.assert_close(a, b, **exact)
    assert not torch.equal(rows(make(seed=1)), rows(bed)) and rows(bed).shape[0]==2*bed.batch_size
    seen = {r.numpy().tobytes() for r in rows(bed)}
    assert not any(r.numpy().tobytes() in seen for r in bed.sample(600).x)
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'

def test_scores_say_what_they_rest_on(make):
    bed = make()
    d = bed.sample(1).x.shape[1]
    sae = dictionaries['topk'](d, 24, k=4)
    e = bed.score(sae, n=2048)
    for k,s in e.items(): assert s.n>=2048 and k in e.about and (s.lo!=s.lo or s.lo<=s.value+1e-6<=s.hi+2e-6), k
    assert {'fvu', 'l0', 'dead', 'shrinkage'}<=set(e) and e.to_dict()==bed.score(sae, n=2048).to_dict() and sae.training
    with pytest.raises(ValueError, match=f'width {d+1}'): bed.score(dictionaries['topk'](d+1, 24, k=4))

# ---- factors ----

def test_sources_are_uniform_and_independent():
    from sparsenb.analyses.infomec import table_information
    bed = testbeds['factors'](n_sources=4, n_values=3)
    t = bed.sample(20_000)
    assert (F.one_hot(t.sources, 3).float().mean(0)-1/3).abs().max()<.015
    s = t.sources.numpy()
    assert max(table_information(s[:,i], s[:,j]) for i,j in itertools.combinations(range(4), 2))<.001
    assert torch.equal(t.f.view(-1, 4, 3).argmax(2), t.sources) and abs((t.x-bed.mix(t.sources)).std()-.1)<.002

@pytest.mark.parametrize('kw', [dict(nonlinear=0), dict(nonlinear=.5), dict(nonlinear=.95), dict(one_hot=True, nonlinear=.5)])
def test_the_map_loses_nothing(kw):
    "Distances between any two combinations stay within 1 ± nonlinear, and the map is no line unless told so"
    bed = testbeds['factors'](**kw)
    s = torch.cartesian_prod(*[torch.arange(5)]*3)
    x,e = bed.mix(s),bed.nonlinear
    u = F.one_hot(s, 5).flatten(1).float() if bed.one_hot else (s-2)/2**.5
    ratio = (torch.pdist(x)/torch.pdist(u))
    assert ratio.min()>1-e-1e-4 and ratio.max()<1+e+1e-4
    line = torch.cat([F.one_hot(s, 5).flatten(1).float() if bed.one_hot else u, torch.ones(125, 1)], 1)
    left = (x-line@torch.linalg.lstsq(line, x, driver='gelsd').solution).norm()/(x-x.mean(0)).norm()
    assert (left<1e-5)==(e==0)

def test_directions_only_where_there_are_some():
    bed = testbeds['factors'](one_hot=True, nonlinear=0)
    torch.testing.assert_close(bed.sample(500).f@bed.features, bed.mix(bed.sample(500).sources))
    sae = dictionaries['relu'](16, 15)
    with torch.no_grad(): sae.W_dec.copy_(bed.features); sae.W_enc.copy_(bed.features.t()); sae.b_enc.fill_(-.5)
    s,chance = bed.score(sae),bed.score(dictionaries['relu'](16, 15))
    assert s['mmcs'].value>.9999 and s['precision'].value>.99 and s['recall'].value>.99 and chance['mmcs'].value<.7
    assert s['infom'].value>.8 and s['infoe'].value>.98 and chance['infom'].value<.6
    for kw in ({}, dict(one_hot=True), dict(nonlinear=0)): assert testbeds['factors'](**kw).features is None
    assert 'mmcs' not in testbeds['factors']().score(dictionaries['topk'](16, 8, k=2), n=1024)

def test_factors_refuses():
    for kw,say in ((dict(d=2), 'at least as many dimensions, got d=2'), (dict(nonlinear=1), 'below 1, got 1'), (dict(n_values=1), 'two values or more')):
        with pytest.raises(ValueError, match=say): testbeds['factors'](**kw)

# ---- digits ----

@pytest.mark.parametrize('n,low,high', [(2, .5, .8), (16, .95, .995), (64, .9, .995)])
def test_digits_lie_in_clusters_that_touch(n, low, high):
    "Neighbours name the class of a new row, but not always; clouds fill all dimensions"
    from sklearn.neighbors import KNeighborsClassifier
    bed = testbeds['digits'](n)
    a,b = bed.sample(3000, bed.generator(1)),bed.sample(1500)
    assert bed.known_dim==n and a.x.shape==(3000, n) and bed.features is None
    assert low<KNeighborsClassifier(10).fit(a.x.numpy(), a.label.numpy()).score(b.x.numpy(), b.label.numpy())<high
    assert bed.clouds.sd.min()>.01 and torch.linalg.matrix_rank(a.x-a.x.mean(0))==n
    assert (a.label.bincount(minlength=10)/3000-.1).abs().max()<.02 and torch.equal(bed.clouds.label[a.image], a.label)

def test_rows_lie_around_their_image():
    bed = testbeds['digits'](8)
    t,c = bed.sample(40_000),bed.clouds
    z = (t.x-c.mean[t.image])/c.sd[t.image]
    assert z.mean(0).abs().max()<.02 and (z.std(0)-1).abs().max()<.02

def test_detectors_are_chosen_on_other_rows():
    "Five hundred features at random: the best of them is no better than chance on the rows it was not chosen on"
    from sparsenb.testbeds.digits import detectors
    g = torch.Generator().manual_seed(0)
    label,on = torch.randint(10, (2000,), generator=g),torch.rand(2000, 500, generator=g)<.1
    d = detectors(on, label)
    assert abs(d['precision'].mean()-.1)<.03 and abs(d['purity'].mean()-.1)<.01 and len(d['purity'])==500

def test_digits_know_detectors_from_chance():
    bed = testbeds['digits'](16)
    from sklearn.linear_model import LogisticRegression
    x,label,_ = (t.numpy() for t in bed.sample(3000, bed.generator(1)))
    planes = [LogisticRegression(max_iter=300).fit(x, label==c) for c in range(10)]
    told = dictionaries['relu'](16, 10)
    with torch.no_grad(): told.W_enc.copy_(torch.tensor(np.stack([p.coef_[0] for p in planes], 1))); told.b_enc.copy_(torch.tensor([p.intercept_[0] for p in planes]))
    told,chance = bed.score(told),bed.score(dictionaries['relu'](16, 10))
    assert min(told[k].value for k in ('precision', 'recall', 'purity'))>.85 and max(chance[k].value for k in ('precision', 'purity'))<.45
    always = bed.score(dictionaries['latent_quantization'](16, 10))
    assert abs(always['precision'].value-.1)<.01 and always['recall'].value==1 and abs(always['purity'].value-.1)<.02 and always['l0'].value==10

def test_digits_refuses():
    for n in (0, 65, 2.5, True):
        with pytest.raises(ValueError, match=f'1..64, got {n}'): testbeds['digits'](n)
