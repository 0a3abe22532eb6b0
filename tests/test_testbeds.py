"Testbeds: their data are what they say, their scores know the truth from what is not"
import itertools, json
import numpy as np, pytest, torch
import torch.nn.functional as F
from sparsenb.core import dictionaries, testbeds
from sparsenb.dictionary import Codes

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)

def written(features, bias):
    "A dictionary whose features are given: ReLU above `-bias`"
    sae = dictionaries['relu'](features.shape[1], len(features))
    with torch.no_grad(): sae.W_dec.copy_(features); sae.W_enc.copy_(features.t()); sae.b_enc.fill_(bias)
    return sae

@pytest.fixture(params=['superposition', 'tree', 'correlated', 'records'])
def bed(request): return testbeds[request.param]()

def test_same_seed_same_bits_and_scores_on_rows_never_trained_on(bed):
    make = type(bed)
    rows = lambda b: torch.cat(list(itertools.islice(b, 2)))
    torch.testing.assert_close(rows(bed), rows(make()), **exact)
    torch.testing.assert_close(bed.sample(100).x, make().sample(100).x, **exact)
    other = make(seed=1)
    assert not torch.equal(other.features, bed.features) and not torch.equal(rows(other), rows(bed))
    seen = {r.numpy().tobytes() for r in rows(bed)}
    assert not any(r.numpy().tobytes() in seen for r in bed.sample(600).x if r.any())
    before = torch.get_rng_state()
    rows(bed), bed.sample(10)
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'

def test_rows_are_sums_of_features(bed):
    b = bed.sample(500)
    torch.testing.assert_close(b.x, b.f@bed.features)
    torch.testing.assert_close(bed.features.norm(dim=1), torch.ones(len(bed.features)))
    noisy = type(bed)(noise=.3).sample(5000)
    assert abs((noisy.x-noisy.f@bed.features).std()-.3)<.01

def test_no_dictionary_starts_at_the_truth():
    "The same seed and shape must not mean the same random directions"
    for seed in (0, 1, 5):
        bed = testbeds['superposition'](seed=seed)
        cos = bed.features@dictionaries['topk'](64, 128, k=4, seed=seed).W_dec.detach().t()
        assert cos.max()<.7

def test_superposition_frequencies_and_strengths():
    p = torch.linspace(.01, .2, 128)
    f = testbeds['superposition'](p=p, low=1, high=2).sample(40_000).f
    assert ((f>0).float().mean(0)-p).abs().max()<.012
    on = f[f>0]
    assert 1<=on.min()<1.01 and 1.99<on.max()<=2 and abs(on.mean()-1.5)<.01

def test_oracle_counts_support_by_hand():
    "Two true features, three learned: one right, one between, one that never fires and so cannot count"
    from sparsenb.testbeds.superposition import Sample, oracle
    features = torch.eye(2)
    f = torch.tensor([[1., 0], [0, 1], [1, 1], [0, 0]])
    class Claims:
        W_dec = torch.tensor([[2., 0], [1, 1], [0, 1]])
        def codes(self, x): return Codes(torch.tensor([[0, 1]]*4), torch.tensor([[1., 0], [1, 1], [1, 0], [0, 0]]))
    s = oracle(Sample(f@features, f), features, Claims(), torch.tensor([3, 1, 0]), at=(.7, .9))
    assert s['mmcs'].value==pytest.approx((1+.5**.5)/2) and s['recovered_0.7'].value==1 and s['recovered_0.9'].value==.5
    # feature 0 fires in rows 0, 1, 2 and is there in 0 and 2; the one between stands for the first of its equals, 0, absent in row 1
    assert s['precision'].value==pytest.approx(2/4)
    # true 0 in rows 0, 2: noticed twice; true 1 in rows 1, 2: its nearest, the one between, fires in 1 alone
    assert s['recall'].value==pytest.approx(3/4)

def test_score_knows_truth_from_chance(bed):
    true,chance = bed.score(written(bed.features, -.5)),bed.score(dictionaries['relu'](bed.features.shape[1], len(bed.features)))
    assert true['mmcs'].value>.9999 and true['recovered_0.9'].value==1 and true['recall'].value>.8
    assert chance['mmcs'].value<.65 and chance['recovered_0.8'].value<.2 and chance['precision'].value<.5
    for k,s in true.items(): assert s.lo<=s.value+1e-6 and s.value<=s.hi+1e-6 and s.n==8192 and k in true.about, k
    assert true.to_dict()==bed.score(written(bed.features, -.5)).to_dict(), 'the same call, the same numbers'

def test_features_that_never_fire_do_not_count(bed):
    sae = written(bed.features, -.5)
    with torch.no_grad(): sae.b_enc[0] = -100.
    s = bed.score(sae)
    assert s['dead'].value==1/len(bed.features) and s['recovered_0.9'].value==1-1/len(bed.features)

def test_tree_frequencies_and_angles():
    bed = testbeds['tree']()
    f = bed.sample(60_000).f!=0
    rate = f.float().mean(0)
    assert (rate[bed.parents]-.2).abs().max()<.008 and (rate[bed.singletons]-.05).abs().max()<.005 and (rate[bed.children]-.04).abs().max()<.005
    assert (f[:,bed.children]<=f[:,bed.parents][:,bed.parent_of]).all() and (f[:,bed.children].sum(1)<=1).all() and (f[:,:11].sum(1)==1).all()
    assert abs(f.sum(1).float().mean()-1.36)<.01
    torch.testing.assert_close(bed.features@bed.features.t(), torch.eye(20), rtol=0, atol=1e-5)
    want = torch.eye(20)
    for s in (slice(0, 11), slice(11, 14), slice(14, 17), slice(17, 20)): want[s,s] = torch.full_like(want[s,s], .1).fill_diagonal_(1)
    bed = testbeds['tree'](correlated=True)
    torch.testing.assert_close(bed.features@bed.features.t(), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='at least 20 dimensions, got d=19'): testbeds['tree'](d=19)

@pytest.mark.parametrize('correlated', [False, True])
def test_leak_is_that_of_the_features_written(correlated):
    "Children mixed with a known share of their parents"
    bed = testbeds['tree'](correlated=correlated)
    for a in (0., .3, .6):
        W = bed.features.clone()
        W[bed.children] = F.normalize(W[bed.children]+a*W[bed.parent_of], dim=1)
        s = bed.score(written(W[torch.randperm(20, generator=torch.Generator().manual_seed(0))], -.1))
        assert s['leak'].value==pytest.approx(a/(1+a*a)**.5, abs=1e-4) and s['children'].value==pytest.approx(1/(1+a*a)**.5, abs=1e-4)
        assert s['parents'].value>.9999 and s['singletons'].value>.9999

def test_tree_scores_a_dictionary_with_too_few_features():
    bed = testbeds['tree']()
    s = bed.score(written(bed.features[:11], -.1))
    assert s['parents'].value>.9999 and s['children'].value==0

def test_every_score_holds_the_common_names():
    "What a testbed with true directions says of any dictionary"
    want = {'mmcs', 'recovered_0.8', 'recovered_0.9', 'precision', 'recall', 'shrinkage', 'fvu', 'l0', 'dead'}
    for name in ('superposition', 'tree', 'sparse_map', 'correlated', 'records'):
        bed = testbeds[name]()
        d,(n,width) = bed.sample(1).x.shape[1],bed.features.shape
        s = bed.score(dictionaries['topk'](d, n, k=4, **(dict(d_out=width) if hasattr(bed, 'data') else {})), n=500)
        assert want<=set(s) and want<=set(s.about) and all(v.n==500 and v.seed==0 and v.version for v in s.values()), (name, want-set(s))
    assert 'leak' in testbeds['tree']().score(dictionaries['topk'](20, 20, k=2), n=500)

# ---- sparse_map ----

def test_sparse_map_shrinkage_and_dead_are_of_what_is_written():
    bed = testbeds['sparse_map'](k=1, low=1., high=1.)
    d = dictionaries['topk'](32, 80, d_out=32, k=1)
    with torch.no_grad(): d.W_enc[:,64:] = 0; d.b_enc[64:] = -1; d.W_dec[:64] = bed.write; d.W_enc[:,:64] = bed.read.t()
    s = bed.score(d)
    assert s['shrinkage'].value==pytest.approx(1, abs=1e-5) and s['dead'].value==pytest.approx(16/80) and s['cosine'].value==pytest.approx(1, abs=1e-4)
    with torch.no_grad(): d.W_dec *= .5
    assert bed.score(d)['shrinkage'].value==pytest.approx(.5, abs=1e-5) and bed.score(d)['fvu'].value==pytest.approx(.25, abs=.01)

# ---- correlated ----

@pytest.mark.parametrize('kw', [dict(), dict(frequencies='halves', ratio=20/3, l0=11.5), dict(frequencies='equal', block=8, correlation=.6), dict(correlation=0.), dict(n_features=30, d=20, block=7, correlation=1., l0=3.)])
def test_correlated_frequencies_and_correlations_are_those_asked_for(kw):
    bed = testbeds['correlated'](**kw)
    n,ratio = 40_000,1 if kw.get('frequencies')=='equal' else kw.get('ratio', 20)
    f = bed.sample(n).f
    there,p = (f>0).double(),bed.p.double()
    assert p.sum().item()==pytest.approx(kw.get('l0', 4.), rel=1e-5) and (p[0]/p[-1]).item()==pytest.approx(ratio, rel=1e-4) and (p.diff()<=1e-7).all()
    want,sd = bed.correlations().double(),(p*(1-p)).sqrt()
    both = want*sd*sd[:,None] + p*p[:,None] # probability of every two together, on the diagonal of one
    z = (there.T@there-n*both)/(n*both*(1-both)).sqrt()
    assert z[n*both>10].abs().max()<5.5 and z.diagonal().abs().max()<4.5
    got = torch.corrcoef(there.T)
    rho = kw.get('correlation', .3)
    block = kw.get('block', 4)
    if ratio==1: torch.testing.assert_close(want[0,1:block], torch.full((block-1,), rho).double(), rtol=0, atol=1e-5)
    assert (want[0,block:]==0).all() and abs(got[0,1:block].mean()-want[0,1:block].mean())<.02
    if rho==1: assert ((there[:,1:block]<=there[:,:block-1])|(there[:,:block-1]==1)).all() # the rarer only with the more frequent
    on = f[f>0]
    assert on.min()>=.5 and on.max()<=1.5

def test_correlated_thirds_say_who_is_missed():
    bed = testbeds['correlated'](n_features=12, d=12, l0=2., ratio=4)
    W = bed.features.clone()
    W[[5, 8, 9]] = F.normalize(torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), dim=1) # one of the middle third, two of the rare
    s = bed.score(written(W, -.3))
    assert [s[f'recovered_{k}'].value for k in ('frequent', 'middle', 'rare')]==[1, .75, .5]
    with pytest.raises(ValueError, match='would have a probability of'): testbeds['correlated'](n_features=8, l0=4., ratio=100)
    with pytest.raises(ValueError, match='ratio is the largest probability over the smallest'): testbeds['correlated'](ratio=.5)
    with pytest.raises(KeyError, match="did you mean 'halves'"): testbeds['correlated'](frequencies='halve')

# ---- records ----

def test_binding_is_orthogonal_and_unbinding_gives_it_back():
    bed = testbeds['records']()
    for M in bed.keys.values(): torch.testing.assert_close(M@M.T, torch.eye(48), rtol=0, atol=1e-5)
    for (path,v),direction in zip(bed.pairs, bed.features):
        by_hand = bed.values[v]
        for k in reversed(path): by_hand = bed.keys[k]@by_hand
        torch.testing.assert_close(direction, by_hand, rtol=0, atol=1e-5)
        torch.testing.assert_close(bed.unbind(path, direction), bed.values[v], rtol=0, atol=1e-5)
        torch.testing.assert_close(bed.unbind('.'.join(path), direction), bed.values[v], rtol=0, atol=1e-5)
    v = bed.values['Rome']
    assert F.cosine_similarity(bed.bind('home.city', v), bed.bind('city.home', v), dim=0)<.6 # order counts
    same = [i for i,(p,w) in enumerate(bed.pairs) if w=='owl']
    assert len(same)==2 and (bed.features[same[0]]@bed.features[same[1]]).abs()<.6 # one value under two keys: two directions

def test_records_are_what_their_vectors_hold():
    bed = testbeds['records'](low=1., high=1., d=1024)
    b = bed.sample(300)
    torch.testing.assert_close(b.x, b.f@bed.features)
    def paths(r, above=()):
        return {x for k,v in r.items() for x in (paths(v, (*above, k)) if isinstance(v, dict) else [((*above, k), v)])}
    for r,f in zip(b.records, b.f): assert paths(r)=={bed.pairs[i] for i in f.nonzero()[:,0].tolist()} and json.loads(json.dumps(r))==r
    rate = torch.tensor([[(p in {q for q,_ in paths(r)}) for p in bed.paths] for r in b.records]).float().mean(0)
    assert (rate-.5).abs().max()<.12 and bed.read(b.x, .5)==b.records # enough room: unbinding reads every record exactly
    small = testbeds['records'](low=1., high=1.)
    b = small.sample(300)
    assert sum(r==q for r,q in zip(small.read(b.x, .5), b.records))<150 # and without it does not

def test_records_scores_by_hand():
    "Three keys; a dictionary that says one pair too many, one that says a pair twice, one that knows all"
    bed = testbeds['records'](schema=dict(a=['x', 'y'], b=['x', 'y'], c=dict(a=['z'])), d=16, low=1., high=1.)
    assert [('.'.join(p), v) for p,v in bed.pairs]==[('a','x'), ('a','y'), ('b','x'), ('b','y'), ('c.a','z')]
    exact = torch.linalg.pinv(bed.features) # reads the five strengths exactly
    def says(rows, W_enc, bias):
        d = dictionaries['relu'](16, len(rows))
        with torch.no_grad(): d.W_dec.copy_(rows); d.W_enc.copy_(W_enc); d.b_enc.copy_(bias)
        return bed.score(d)
    half = torch.full((5,), -.5)
    s = says(bed.features, exact, half)
    assert s['exact'].value==s['pair_precision'].value==s['pair_recall'].value==1
    always = half.clone(); always[4] = .5
    s,f = says(bed.features, exact, always),bed.sample(8192).f>0
    assert s['pair_recall'].value==1 and s['exact'].value==pytest.approx(f[:,4].float().mean().item()) and s['pair_precision'].value==pytest.approx((f.sum()/(f[:,:4].sum()+8192)).item())
    twice = torch.cat([bed.features, bed.features[:1]])
    s = says(twice, torch.cat([exact, exact[:,:1]], 1), torch.full((6,), -.5))
    assert s['exact'].value==1 and s['l0'].value>f.sum(1).float().mean()
    away = bed.features.clone(); away[4] = torch.linalg.svd(bed.features)[2][-1] # a direction that stands for no pair says nothing
    s = says(away, exact, half)
    assert s['pair_precision'].value==1 and s['pair_recall'].value==pytest.approx((f[:,:4].sum()/f.sum()).item())

def test_records_refuse_what_they_cannot_write():
    make = testbeds['records']
    for bad in (dict(a='x'), dict(a=[]), dict(a={}), dict(a=['x', 'x']), dict(a=dict(b=[1]))):
        with pytest.raises(ValueError, match='must hold different strings, or keys with such'): make(schema=bad)
    with pytest.raises(KeyError, match="unknown key 'hom'; did you mean 'home'"): make().unbind('hom.city', torch.zeros(48))

def test_a_dictionary_learns_the_records():
    "What is bound to what, in fewer dimensions than pairs: told far better than by the truth and a threshold"
    from sparsenb.train import fit
    bed = testbeds['records']()
    sae = dictionaries['batch_topk'](48, 68, k=4, dead_after=10_000)
    fit(sae, bed, 1000*512, 512, lr=4e-3)
    s,t = bed.score(sae),bed.score(written(bed.features, -.5))
    assert s['recovered_0.9'].value>.95 and s['exact'].value>.6 and s['pair_precision'].value>.9 and t['exact'].value<.3, s
