"Compiled kernels give what dense torch gives; screens are watched; threads change no bit"
import math, subprocess, sys, warnings
import pytest, torch
import torch.nn.functional as F
pytest.importorskip('numba')
from sparsenb.numba_kernels import NumbaKernels

def plain(x, W, out): return torch.mm(x, W.t(), out=out)
def gen(seed=0): return torch.Generator().manual_seed(seed)
def problem(n, m, d, seed=0):
    g = gen(seed)
    return torch.randn(n, d, generator=g), F.normalize(torch.randn(m, d, generator=g), dim=1), .1*torch.randn(m, generator=g)
def dense(idx, val, m): return val.new_zeros(len(idx), m).scatter_add(1, idx, val)
def distinct(idx): return all(len(set(r))==len(r) for r in idx.tolist())

SIZES = [(7, 40, 5, 3), (1, 1, 1, 1), (0, 40, 5, 3), (3, 50, 17, 50), (300, 999, 33, 7), (5, 20, 6, 19), (600, 4096, 768, 32)] # n, m, d, k
sizes = pytest.mark.parametrize('n,m,d,k', SIZES)

@pytest.fixture
def K(): return NumbaKernels(product=plain)

@pytest.fixture
def codes():
    "Values with zeros and negative ones, as `topk` without ReLU and padding give them"
    def f(n, m, k, seed=1):
        g = gen(seed)
        val = torch.randn(n, k, generator=g); val[torch.rand(n, k, generator=g)<.3] = 0
        return torch.rand(n, m, generator=g).topk(k).indices, val
    return f


# The k largest

@sizes
def test_topk_is_exact(K, n, m, d, k):
    x,W,bias = problem(n, m, d)
    val,idx = K.topk(x, W, bias, k)
    rows = 512 if m<=8192 else 256 # the same parts, else a product may round otherwise
    z = torch.cat([plain(xs, W, torch.empty(len(xs), m)) for xs in x.split(rows)]) + bias if n else x@W.t()
    assert val.dtype==torch.float32 and idx.dtype==torch.long and idx.shape==val.shape==(n, k)
    assert torch.equal(val.sort().values, z.topk(k).values.sort().values)
    assert torch.equal(z.gather(1, idx), val) and distinct(idx)

def test_topk_keeps_negative_values_and_takes_a_buffer(K):
    x,W,bias = problem(30, 64, 8)
    z = x@W.t() + (bias-100)
    val,idx = K.topk(x, W, bias-100, 5, torch.empty(7, 64))
    torch.testing.assert_close(val.sort().values, z.topk(5).values.sort().values)
    assert (val<0).all()

@pytest.mark.parametrize('m', [1, 2, 15, 16, 17, 63, 1000, 4097])
def test_every_k(K, m):
    z = torch.randn(9, m, generator=gen(m))
    for k in sorted({1, 2, 3, m//3, m//2, m-1, m}&set(range(1, m+1))):
        val,idx = K.grouped_topk(z, k)
        assert torch.equal(val.sort().values, z.topk(k).values.sort().values) and torch.equal(z.gather(1, idx), val) and distinct(idx), k

@pytest.mark.parametrize('levels', [1, 2, 5])
def test_ties(K, levels):
    z = torch.randint(levels, (40, 700), generator=gen()).float()-1
    val,idx = K.grouped_topk(z, 21)
    assert torch.equal(val.sort().values, z.topk(21).values.sort().values) and torch.equal(z.gather(1, idx), val) and distinct(idx)

def test_infinities_and_zeros_of_both_signs(K):
    z = torch.randn(6, 500, generator=gen())
    z[0,:490] = -math.inf; z[1] = -math.inf; z[2,7] = math.inf; z[3] = 0; z[3,::2] = -0.; z[4] = math.inf; z[5] *= 1e-41 # subnormal
    for k in (3, 25):
        val,idx = K.grouped_topk(z, k)
        assert torch.equal(val.sort().values, z.topk(k).values.sort().values) and torch.equal(z.gather(1, idx), val) and distinct(idx)

def test_nan_is_the_smallest(K):
    z = torch.randn(4, 300, generator=gen())
    z[0,::3] = math.nan; z[1] = math.nan; z[2,:295] = math.nan
    val,idx = K.grouped_topk(z, 11)
    numbers = lambda i: z[i][~z[i].isnan()]
    assert torch.equal(val[0].sort().values, numbers(0).topk(11).values.sort().values)
    assert val[1].isnan().all() and val[2].isnan().sum()==6 and torch.equal(val[2][~val[2].isnan()].sort().values, numbers(2).sort().values)
    assert torch.equal(val[3].sort().values, z[3].topk(11).values.sort().values)
    assert distinct(idx)

@sizes
@pytest.mark.parametrize('vector', [False, True])
def test_above(K, n, m, d, k, vector):
    x,W,bias = problem(n, m, d)
    floor = torch.rand(m, generator=gen(3)) if vector else .5
    rows = 512 if m<=8192 else 256
    z = torch.cat([plain(xs, W, torch.empty(len(xs), m)) for xs in x.split(rows)]) + bias if n else x@W.t()
    start,idx,val = K.above(x, W, bias, floor)
    on = z>floor
    assert torch.equal(start, torch.cat([torch.zeros(1, dtype=torch.long), on.sum(1).cumsum(0)]))
    assert torch.equal(idx, on.nonzero()[:,1]) and torch.equal(val, z[on])
    assert K.above(x, W, bias, floor, most=int(on.sum())) is not None
    if on.any(): assert K.above(x, W, bias, floor, most=int(on.sum())-1) is None


@pytest.mark.parametrize('guess', [0., .5, 1., 1.1, 3.])
@pytest.mark.parametrize('case', ['plain', 'ties', 'negative', 'one row'])
def test_the_largest_of_a_batch_whatever_the_guess(K, case, guess):
    "`guess` is in units of the smallest that stays"
    x,W,bias = problem(60, 700, 16)
    if case=='ties': x,W,bias = x.round(),torch.randn(700, 16, generator=gen(8)).round(),bias*0
    if case=='negative': bias = bias-100
    if case=='one row': x[3] *= 50
    z = (plain(x, W, torch.empty(60, 700))+bias).relu().flatten()
    cut = z.topk(60*9).values[-1]
    val,idx = K.batch_topk(x, W, bias, 9, guess=guess*max(cut.item(), .01))
    got,want = dense(idx, val, 700).flatten(),z*(z>=cut)*(z>0)
    assert torch.equal(got>0, want>0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5) # rows looked at again are another product

# Rows

@sizes
def test_rows(K, codes, n, m, d, k):
    y,W,_ = problem(n, m, d)
    idx,val = codes(n, m, k)
    b = torch.randn(d, generator=gen(5))
    f = dense(idx, val, m).double()
    close = lambda a,b: torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-4*math.sqrt(k*d)/20)
    close(K.decode(idx, val, W), f@W.double())
    close(K.dots(y, W, idx), (y.double()@W.double().t()).gather(1, idx))
    close(K.dots(y, W, idx, val), (y.double()@W.double().t()).gather(1, idx)*(val!=0))
    r,dval = K.decode_error(idx, val, W, b, y)
    close(r, f@W.double()+b-y)
    close(dval, (r.double()@W.double().t()).gather(1, idx)*(val!=0))
    assert (dval[val==0]==0).all()

@sizes
@pytest.mark.parametrize('sparse', [False, True])
def test_by_feature_and_gather(K, codes, n, m, d, k, sparse):
    rows,_,_ = problem(n, m, d)
    idx,val = codes(n, m, k)
    order,row,start = places = K.by_feature(idx, m, val if sparse else None)
    feature,true = idx.reshape(-1).sort(stable=True)
    if sparse: on = val.reshape(-1)[true]!=0; feature,true = feature[on],true[on]
    assert torch.equal(order, true) and torch.equal(row, true//k)
    assert torch.equal(start, torch.searchsorted(feature, torch.arange(m+1)))
    full = dense(idx, val, m).double().t()@rows.double()
    for w in (val, val.reshape(-1)): torch.testing.assert_close(K.gather(rows, w, places), full.float(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(K.gather(rows, val, places, m//3, m//2), full.float()[m//3:m//2], rtol=1e-5, atol=1e-4)

def test_a_row_that_is_nan_stays_out_of_what_does_not_use_it(K):
    W = torch.ones(4, 3); W[2] = math.nan
    assert torch.equal(K.decode(torch.tensor([[2, 1]]), torch.tensor([[0., 2.]]), W), torch.full((1, 3), 2.))


# Adam

CASES = [(50, 7, j, u, e) for j in (0, 1, 2, 3) for u in (False, True) for e in (False, True)] + [(4096, 768, 2, False, False), (4096, 768, 1, True, True)]
@pytest.mark.parametrize('m,d,n_jobs,unit,extra', CASES)
def test_adam(K, codes, m, d, n_jobs, unit, extra):
    "Twenty steps of torch's fused Adam, with the gradient held whole"
    n,k,lr,betas,eps = 64,5,1e-3,(.9, .99),1e-8
    _,W,_ = problem(1, m, d)
    W_enc,mean,square = torch.nn.Parameter(W.clone().t()),torch.zeros(m, d),torch.zeros(m, d) # laid out as a dictionary's encoder
    theirs = torch.nn.Parameter(W.clone())
    opt = torch.optim.Adam([theirs], lr=lr, betas=betas, eps=eps, fused=True)
    for step in range(1, 21):
        jobs,grad = [],torch.zeros(m, d)
        for j in range(n_jobs):
            idx,val = codes(n, m, k, 100*step+j)
            rows = torch.randn(n, d, generator=gen(1000*step+j))
            jobs.append((rows, val, K.by_feature(idx, m, val))); grad += dense(idx, val, m).t()@rows
        more = None
        if extra:
            more = torch.randint(m, (9,), generator=gen(step)),torch.randn(9, d, generator=gen(step))
            grad.index_add_(0, *more)
        if unit: grad -= (grad*theirs.detach()).sum(1, keepdim=True)*theirs.detach()
        theirs.grad = grad; opt.step()
        if unit: theirs.data /= theirs.data.norm(dim=1, keepdim=True)
        K.adam_rows(W_enc.t(), mean, square, jobs, lr, betas, eps, step, unit=unit, extra=more)
    ours,s = W_enc.detach().t(),opt.state[theirs]
    for a,b in ((ours, theirs.detach()), (mean, s['exp_avg']), (square, s['exp_avg_sq'])): assert (a-b).norm()<=1e-6*b.norm(), (a-b).norm()/b.norm()
    if unit: torch.testing.assert_close(ours.norm(dim=1), torch.ones(m))
    if n_jobs or extra: assert (ours-W).norm()>1e-3

# Screens

def massive(n=500, m=4096, d=96, seed=0):
    "Data with one dimension 300 times as wide as the others and one with a large mean"
    x,W,bias = problem(n, m, d, seed)
    x[:,3] *= 300; x[:,7] += 300
    return x, W, bias

def recall(val, x, W, bias, k):
    z = (x.double()@W.double().t()+bias).float()
    return (val>=z.topk(k).values[:,-1:]-1e-5*z.abs().max()).float().mean().item()

@pytest.mark.parametrize('screen', ['bf16', 'int8'])
@pytest.mark.parametrize('make', [problem, massive])
def test_a_screen_finds_them_all(screen, make):
    x,W,bias = make(500, 4096, 96)
    K = NumbaKernels(screen, probe_rows=500, product=plain)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        val,idx = K.topk(x, W, bias, 32)
    assert K.screen==screen
    assert recall(val, x, W, bias, 32)==1 and distinct(idx)
    exact = (x.double()@W.double().t()+bias).gather(1, idx).float()
    torch.testing.assert_close(val, exact, rtol=1e-5, atol=1e-5*exact.abs().max().item())

@pytest.mark.parametrize('screen,levels', [('int8', 2), ('bf16', 1)])
def test_falls_back_where_features_are_alike(screen, levels):
    "No row is sure, so every call is exact; ten calls later no screen is left"
    x,_,_ = problem(64, 1, 32)
    g = gen(2)
    W,bias = torch.randn(1, 32, generator=g)+1e-5*torch.randn(1000, 32, generator=g),torch.zeros(1000)
    K,true = NumbaKernels(screen, probe_every=2, product=plain),NumbaKernels(product=plain).topk(x, W, bias, 10)[0].sort().values
    with pytest.warns(UserWarning, match='screen left 100% of the rows in doubt') as said:
        for _ in range(10): assert torch.equal(K.topk(x, W, bias, 10)[0].sort().values, true)
    assert len(said)==levels and K.screen=='fp32'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        K.topk(x, W, bias, 10)

def _all_sure(v, low, cand, bias, error, k, val, idx, sure, t, nt):
    from sparsenb.numba_loops import _keep_each
    _keep_each(v, low, cand, bias, error, k, val, idx, sure, t, nt)
    sure[:] = True

@pytest.mark.parametrize('screen', ['bf16', 'int8'])
def test_rows_in_doubt_are_chosen_exactly(screen, monkeypatch):
    "Rows along one of 300 near copies of a feature, among plain rows: the screen cannot rank the copies, and says which rows these are"
    g = gen(4)
    W = F.normalize(torch.randn(2000, 64, generator=g), dim=1)
    W[:300] = W[0]+1e-4*torch.randn(300, 64, generator=g)
    x,bias = torch.randn(400, 64, generator=g),torch.zeros(2000)
    x[5::40] = 9*W[0]+.1*x[5::40]
    x[8] = 0
    K = NumbaKernels(screen, probe_every=1<<40, product=plain); K.calls = 1 # no probe
    val,idx = K.topk(x, W, bias, 10)
    want = NumbaKernels(product=plain).topk(x, W, bias, 10)[0]
    assert .02<K.doubt<.3 and distinct(idx)
    torch.testing.assert_close(val.sort().values, want.sort().values, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr('sparsenb.numba_kernels._keep_each', _all_sure)
    K.calls = 1
    lost = K.topk(x, W, bias, 10)[0][5::40]
    assert (lost.sort().values-want[5::40].sort().values).abs().max()>1e-5 # without the second look

@pytest.mark.parametrize('screen', ['bf16', 'int8'])
@pytest.mark.parametrize('where', ['x', 'W'])
@pytest.mark.parametrize('what', [math.nan, math.inf])
def test_nothing_is_screened_beside_nan_or_infinity(screen, where, what):
    x,W,bias = problem(50, 999, 20)
    (x if where=='x' else W)[7,3] = what
    K = NumbaKernels(screen, product=plain)
    a,b = K.topk(x, W, bias, 10),NumbaKernels(product=plain).topk(x, W, bias, 10)
    assert torch.equal(a[0], b[0]) or torch.equal(a[0].nan_to_num(), b[0].nan_to_num())
    assert torch.equal(a[1], b[1])

def test_candidates_follow_the_rows_in_doubt():
    K = NumbaKernels('int8')
    for doubt,widen in ((.1, 1.8), (.02, 1.8), (0., 1.764), (.5, 2.646)):
        K._follow(doubt)
        assert K.widen==pytest.approx(widen)
    for _ in range(100): K._follow(0.)
    assert K.widen==1.1 and K.screen=='int8'
    for _ in range(20): K._follow(.2)
    assert K.widen==4 and K.screen=='int8'
    with pytest.warns(UserWarning, match='the int8 screen left 40% of the rows in doubt with four candidates for each place: bf16'): K._follow(.4)
    assert (K.screen,K.widen)==('bf16', 1.25)

def test_a_probe_that_finds_a_miss_looks_again(monkeypatch):
    x,W,bias = problem(64, 1000, 16)
    K,misses = NumbaKernels('bf16', product=plain),[.01, .01, 0]
    monkeypatch.setattr(K, '_missed', lambda *a: misses.pop(0))
    K.topk(x, W, bias, 5)
    assert not misses and K.widen>2.25*1.25*.97 and K.screen=='bf16'

def test_widens_where_that_is_enough():
    "Thirty features that int8 cannot tell apart stand out: 3.4 candidates for each of ten places hold them all"
    g = gen(4)
    W = F.normalize(torch.randn(600, 64, generator=g), dim=1)
    W[:30] = W[0]+2e-4*torch.randn(30, 64, generator=g)
    x = 5*W[:1]+.1*torch.randn(64, 64, generator=g)
    K = NumbaKernels('int8', product=plain)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        val,_ = K.topk(x, W, torch.zeros(600), 10)
    assert K.screen=='int8' and 1.5<K.widen<4
    assert recall(val, x, W, torch.zeros(600), 10)==1

def test_probes_are_as_rare_as_asked(monkeypatch):
    x,W,bias = problem(64, 1000, 16)
    K,seen = NumbaKernels('bf16', probe_every=3, product=plain),[]
    real = K._missed
    monkeypatch.setattr(K, '_missed', lambda *a: seen.append(K.calls) or real(*a))
    for _ in range(7): K.topk(x, W, bias, 5)
    assert seen==[1, 4, 7]

@pytest.mark.parametrize('screen', ['fp32', 'bf16', 'int8'])
def test_a_state_goes_on_bit_for_bit(screen):
    "Stopped after any call and taken up elsewhere, also where the screen widens later"
    good,(x,_,bias) = problem(64, 1000, 32),problem(64, 1000, 32)
    alike = good[1][:1]+1e-5*torch.randn(1000, 32, generator=gen(9))
    Ws = [good[1], good[1], alike, good[1], alike]
    def go(K, Ws): return [K.topk(x, W, bias*0, 10) for W in Ws]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = go(K := NumbaKernels(screen, probe_every=2, product=plain), Ws)
        for cut in range(1, 5):
            a = NumbaKernels(screen, probe_every=2, product=plain); go(a, Ws[:cut])
            b = NumbaKernels(screen, probe_every=2, product=plain); b.load_state({k: v.clone() for k,v in a.state().items()})
            for p,q in zip(whole[cut:], go(b, Ws[cut:])): assert torch.equal(p[0], q[0]) and torch.equal(p[1], q[1])
            assert all(torch.equal(b.state()[k], v) for k,v in K.state().items())
    with pytest.raises(ValueError, match='a state has calls, screen, widen, got nothing'): K.load_state({})


# Threads

@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

@pytest.mark.parametrize('n,m,d,k', [(301, 1003, 37, 9), (600, 4096, 768, 32)])
def test_threads_change_no_bit(threads, codes, n, m, d, k):
    numba = sys.modules['numba']
    if numba.config.NUMBA_NUM_THREADS<2: pytest.skip('one core')
    def everything():
        x,W,bias = problem(n, m, d); y = x.flip(0)
        idx,val = codes(n, m, k)
        def product(x, W, out): # the kernels are compared, not the library's product
            before = torch.get_num_threads(); torch.set_num_threads(1)
            try: return plain(x, W, out)
            finally: torch.set_num_threads(before)
        K = NumbaKernels(product=product)
        places = K.by_feature(idx, m, val)
        mean,square = torch.zeros(m, d),torch.zeros(m, d)
        K.adam_rows(W2 := W.clone(), mean, square, [(x, val, places), (y, val, places)], 1e-3, (.9, .999), 1e-8, 1, unit=True)
        screened = [t for s in ('bf16', 'int8') for t in NumbaKernels(s, product=product).topk(x, W, bias, k)]
        return [*K.topk(x, W, bias, k), *K.above(x, W, bias, .3), K.decode(idx, val, W), K.dots(x, W, idx), *K.decode_error(idx, val, W, x[0], y), *places, K.gather(x, val, places), W2, mean, square, *screened]
    threads(1); one = everything()
    threads(2); two = everything()
    assert all(torch.equal(a, b) for a,b in zip(one, two)) and len(one)==len(two)


# What is refused

def bad(match): return pytest.raises(ValueError, match=match)

def test_wrong_input_is_named(K, codes):
    x,W,bias = problem(6, 20, 4)
    idx,val = codes(6, 20, 3)
    with bad(r'x must be a torch.float32 tensor \(any, 4\) on cpu, got torch.float64 \(6, 4\) on cpu'): K.topk(x.double(), W, bias, 3)
    with bad(r'x must be .* \(any, 4\) on cpu, got .* \(6, 3\)'): K.topk(x[:,:3], W, bias, 3)
    with bad(r'bias must be .* \(20\) on cpu, got .* \(19,\)'): K.topk(x, W, bias[1:], 3)
    with bad(r'W must be .* got None'): K.topk(x, None, bias, 3)
    for k in (0, 21, 2.5, True):
        with bad(rf'k must be a whole number in 1..20, got {k!r}'): K.topk(x, W, bias, k)
        with bad(r'k must be a whole number in 1..20'): K.grouped_topk(x@W.t(), k)
    with bad(r'idx must be a torch.int64 tensor \(any, any\) on cpu, got torch.int32'): K.decode(idx.int(), val, W)
    with bad(r'val must be .* \(6, 3\) on cpu, got .* \(6, 2\)'): K.decode(idx, val[:,:2], W)
    for wrong in (20, -1):
        with bad(r'idx must hold features in 0..19, got'): K.decode(idx.clone().fill_(wrong), val, W)
    with bad(r'y must be .* \(6, 4\) on cpu, got .* \(5, 4\)'): K.decode_error(idx, val, W, W[0], x[:5])
    with bad(r'floor must be .* \(20\) on cpu, got .* \(3,\)'): K.above(x, W, bias, torch.zeros(3))
    places = K.by_feature(idx, 20)
    with bad('places belong to other rows and weights'): K.gather(x[:2], val, places)
    with bad('places belong to other rows and weights'): K.gather(x, val[:2], places)
    with bad(r'features from a to b must lie in 0..20, got 5..21'): K.gather(x, val, places, 5, 21)
    adam = lambda W, mean, step=1: K.adam_rows(W, mean, torch.zeros(20, 4), [(x, val, places)], .1, (.9, .999), 1e-8, step)
    with bad(r'W must be a contiguous torch.float32 tensor \(20, 4\) on cpu, got non-contiguous'): adam(torch.zeros(4, 20).t(), torch.zeros(20, 4))
    with bad(r'mean must be a contiguous .* \(20, 4\) on cpu, got .* \(4, 20\)'): adam(W, torch.zeros(4, 20))
    with bad('step counts from 1, got 0'): adam(W, torch.zeros(20, 4), 0)
    with bad("screen must be one of 'int8', 'bf16', 'fp32', got 'fp8'"): NumbaKernels('fp8')
    with bad('widen must be in 1..4, got 9'): NumbaKernels('int8', widen=9)
    with bad('whole number'): NumbaKernels(probe_every=0)

def test_without_numba_the_error_says_how_to_get_it():
    code = "import sys; sys.modules['numba'] = None\ntry: import sparsenb.numba_kernels\nexcept ImportError as e: print(e)"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "pip install 'sparsenb[cpu]'" in r.stdout, r.stderr
