"Testbeds: their data are what they say, their scores know the truth from what is not"
import itertools
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

@pytest.fixture(params=['superposition', 'tree'])
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
    x,f = bed.sample(500)
    torch.testing.assert_close(x, f@bed.features)
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

def test_assignment_is_scipys():
    from sparsenb.testbeds.tree import assign
    linear_sum_assignment = pytest.importorskip('scipy.optimize').linear_sum_assignment
    rng = np.random.default_rng(0)
    for n,m in ((1,1), (7,7), (20,20), (20,64), (33,40)):
        for gain in (rng.normal(size=(n, m)), rng.integers(0, 3, (n, m)).astype(float)): # the second with many ties
            a,b = assign(gain),linear_sum_assignment(gain, maximize=True)[1]
            assert len(set(a))==n and gain[range(n),a].sum()==pytest.approx(gain[range(n),b].sum())
    with pytest.raises(ValueError, match='must be finite'): assign(np.array([[np.nan]]))
