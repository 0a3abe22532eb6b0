"Intervals: a 95 % interval holds the truth in 92 to 98 of 100 simulations, for every kind that is offered, and where it does not"
from types import SimpleNamespace as NS
import numpy as np, pytest
from sparsenb.metrics import _feature_scores
from sparsenb.scores import bootstrap, paired, wilson
from sparsenb.tasks import by_documents

N = 1500

def covered(interval, truth, seed=0, n=N):
    rng = np.random.default_rng(seed)
    got = np.array([interval(rng, i) for i in range(n)])
    return float(((got[:,0]<=truth)&(truth<=got[:,1])).mean())

def documents(rng, n):
    "Sums over documents of unequal length, whose means differ; the mean of all is 1"
    size,mean = rng.integers(20, 200, n),rng.normal(1, .5, n)
    return mean*size+rng.normal(size=n)*np.sqrt(size), size

def shares(rng, n):
    "Right answers in documents of unequal length and difficulty; a quarter of all"
    size = rng.integers(20, 200, n)
    return rng.binomial(size, rng.beta(2, 6, n)), size

@pytest.mark.parametrize('n', [10, 30, 100, 1000])
def test_wilson_over_all_shares(n):
    rng = np.random.default_rng(n)
    p = rng.random(20_000)
    lo,hi = wilson(rng.binomial(n, p), np.full(len(p), n))
    assert .94<((lo<=p)&(p<=hi)).mean()<.965

@pytest.mark.parametrize('n,p', [(30, .1), (30, .5), (100, .02), (100, .3), (1000, .01), (1000, .5)])
def test_wilson_at_one_share(n, p):
    k = np.random.default_rng(0).binomial(n, p, 20_000)
    lo,hi = wilson(k, np.full(len(k), n))
    assert .92<((lo<=p)&(p<=hi)).mean()<.98

@pytest.mark.parametrize('level', [.8, .99])
def test_other_levels(level):
    p = np.random.default_rng(1).random(20_000)
    lo,hi = wilson(np.random.default_rng(2).binomial(200, p), np.full(len(p), 200), level)
    assert abs(((lo<=p)&(p<=hi)).mean()-level)<.02
    assert abs(covered(lambda r, i: bootstrap(r.normal(size=40), None, 400, i, level), 0)-level)<.03

@pytest.mark.parametrize('n', [10, 20, 50])
def test_means(n): assert .92<covered(lambda r, i: bootstrap(r.normal(size=n), None, 400, i), 0)<.98

@pytest.mark.parametrize('n', [40, 100])
def test_means_of_skewed_units(n): assert .92<covered(lambda r, i: bootstrap(r.exponential(size=n), None, 400, i), 1)<.98

@pytest.mark.parametrize('n', [10, 20, 50])
def test_quotients_of_sums(n): assert .92<covered(lambda r, i: bootstrap(*documents(r, n), 400, i), 1)<.98

@pytest.mark.parametrize('n', [30, 60])
def test_shares_in_documents(n):
    assert .92<covered(lambda r, i: bootstrap(*shares(r, n), 400, i), .25)<.98
    case = lambda i: NS(seed=i, level=.95, n_boot=400)
    assert .92<covered(lambda r, i: by_documents(np.stack(shares(r, n), 1), lambda t: t[:,0]/t[:,1], case(i))[1:], .25)<.98

@pytest.mark.parametrize('n', [20, 100, 1000])
def test_the_median_density(n):
    "Order statistics: features are drawn from a log-normal whose median is one in a hundred"
    def interval(r, i): s = _feature_scores(np.round(np.exp(r.normal(size=n))*1e6).astype(np.int64)+1, 100_000_000, 0, .95)['density']; return s.lo,s.hi
    assert .92<covered(interval, .01)<.98

# ---- few units: closed form

FEW = [3, 5, 8, 12, 19, 39]

@pytest.mark.parametrize('n', FEW)
def test_means_of_few_units(n):
    for truth,draw in ((0, lambda r: r.normal(size=n)), (.5, lambda r: r.random(n)), (1, lambda r: r.exponential(size=n)), (2, lambda r: r.gamma(2, size=n))):
        assert .92<covered(lambda r, i: bootstrap(draw(r)), truth)<.985, truth # uniform: .978 with 12

@pytest.mark.parametrize('n', FEW)
def test_quotients_of_few_units(n):
    assert .92<covered(lambda r, i: bootstrap(*documents(r, n)), 1)<.98
    assert .92<covered(lambda r, i: bootstrap(*shares(r, n)), .25)<.98

@pytest.mark.parametrize('n', [8, 60])
def test_paired_differences(n):
    "Two measures of the same documents, .2 apart in truth; one of them skewed"
    def interval(r, i):
        num,size = documents(r, n)
        return paired((num+size*.2*r.exponential(size=n), size), (num, size), 400, i)
    assert .92<covered(interval, .2)<.98

@pytest.mark.parametrize('level', [.8, .99])
def test_few_units_at_other_levels(level): assert level-.02<covered(lambda r, i: bootstrap(r.normal(size=8), level=level), 0)<min(.9999, level+.05)

def test_two_units_give_students_interval_and_one_none():
    assert .92<covered(lambda r, i: bootstrap(r.normal(size=2)), 0)<.98
    assert bootstrap([1, 2])==pytest.approx((1.5-6.3531, 1.5+6.3531), abs=1e-4) # 12.7062 of .5
    assert np.isnan(bootstrap([1.])).all() and np.isnan(paired(([1.], None), ([2.], None))).all()

def test_units_that_hardly_differ_and_numbers_that_are_none():
    assert bootstrap([3.]*5)==(3, 3) and bootstrap([0]*5)==(0, 0) and paired(([1, 2, 3], None), ([0, 1, 2], None))==(1, 1)
    assert np.isnan(bootstrap([1, np.nan, 2])).all() and np.isnan(bootstrap([1, 2, 3], [0, 0, 0])).all()
    for n in (39, 40): # where the method changes, the interval hardly does
        v = np.random.default_rng(n).normal(size=n)
        lo,hi = bootstrap(v)
        assert hi-lo==pytest.approx(2*2.02*v.std(ddof=1)/n**.5, rel=.15)
    lo,hi = bootstrap(np.exp(np.random.default_rng(0).normal(size=8)))
    a,b = bootstrap(-np.exp(np.random.default_rng(0).normal(size=8)))
    assert (-b, -a)==pytest.approx((lo, hi)) # turned round, the same
