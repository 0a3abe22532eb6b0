"""Triton's kernels give what torch gives, in Triton's interpreter, and compile for cards that are not here

The interpreter must be chosen before triton is imported, and whoever imported it first has chosen: so the tests that run kernels do so in one child process, on this same file.
"""
import math, os, re, subprocess, sys, tempfile
import pytest, torch
import torch.nn.functional as F
pytest.importorskip('triton')
from sparsenb.kernels import TorchKernels
from sparsenb.triton_kernels import TritonKernels

INTERPRETED = os.environ.get('TRITON_INTERPRET')=='1'
def inside(f): return f if INTERPRETED else None # a test of the child
def outside(f): return None if INTERPRETED else f
def child(*args, **env): return subprocess.run([sys.executable, *args], capture_output=True, text=True, env={k: v for k,v in os.environ.items() if k!='TRITON_INTERPRET'}|env)

@outside
def test_in_the_interpreter():
    r = child('-m', 'pytest', '-p', 'no:cacheprovider', __file__, TRITON_INTERPRET='1')
    ran = re.search(r'(\d+) passed', r.stdout)
    assert r.returncode==0 and ran and int(ran[1])>50 and 'skipped' not in r.stdout, r.stdout[-6000:]+r.stderr[-2000:]

@outside
def test_compile_for_cards():
    "Every kernel, with the arguments that it is launched with, down to machine code; none keeps numbers outside its registers"
    from sparsenb import triton_kernels
    with tempfile.TemporaryDirectory() as d: r = child(os.path.join(os.path.dirname(__file__), 'triton_compile.py'), TRITON_CACHE_DIR=d)
    assert r.returncode==0, r.stdout+r.stderr[-4000:]
    done = {tuple(l.split()) for l in r.stdout.splitlines()}
    kernels = {'_maxima', '_candidates', '_decode', '_dots', '_decode_error', '_share', '_gather', '_adam_rows', '_adam_unit'}
    assert kernels<={n for n in dir(triton_kernels)} and done=={(n, cc) for n in kernels for cc in ('80', '90')}

@outside
def test_a_tensor_on_the_processor_is_refused():
    K,(x,W,bias) = TritonKernels(),problem(6, 20, 4)
    with pytest.raises(ValueError, match=r"W must be a torch.float32 tensor \(any, any\) on a CUDA card, got torch.float32 \(20, 4\) on cpu; on a processor take path='torch' or path='numba'"): K.topk(x, W, bias, 3)
    idx,val = codes(6, 20, 3)
    for f in (lambda: K.decode(idx, val, W), lambda: K.dots(x, W, idx), lambda: K.decode_error(idx, val, W, x[0], x), lambda: K.by_feature(idx, 20), lambda: next(K.tiles(x, W, bias)),
              lambda: K.gather(x, val, TorchKernels().by_feature(idx, 20)), lambda: K.adam_rows(W, W.clone(), W.clone(), [], .1, (.9, .999), 1e-8, 1)):
        with pytest.raises(ValueError, match='on a CUDA card, got .* on cpu'): f()

@outside
def test_without_triton_the_error_says_how_to_get_it():
    r = child('-c', "import sys; sys.modules['triton'] = None\ntry: import sparsenb.triton_kernels\nexcept ImportError as e: print(e)")
    assert "pip install 'sparsenb[triton]'" in r.stdout, r.stderr


def gen(seed=0): return torch.Generator().manual_seed(seed)
def problem(n, m, d, seed=0):
    g = gen(seed)
    return torch.randn(n, d, generator=g), F.normalize(torch.randn(m, d, generator=g), dim=1), .1*torch.randn(m, generator=g)
def codes(n, m, k, seed=1):
    "Values with zeros and negative ones"
    g = gen(seed)
    val = torch.randn(n, k, generator=g); val[torch.rand(n, k, generator=g)<.3] = 0
    return torch.rand(n, m, generator=g).topk(k).indices, val
def dense(idx, val, m): return val.new_zeros(len(idx), m).scatter_add(1, idx, val)
def distinct(idx): return all(len(set(r))==len(r) for r in idx.tolist())
def close(a, b): torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-5)

SIZES = [(13, 64, 40, 5), (5, 32, 129, 5), (1, 1, 1, 1), (0, 40, 5, 3), (3, 20, 17, 20), (2, 60, 300, 19), (4, 41, 8, 2)] # n, m, d, k
sizes = pytest.mark.parametrize('n,m,d,k', SIZES)
halves = pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])


# The k largest

def agrees(val, idx, z, k):
    assert val.dtype==torch.float32 and idx.dtype==torch.long and val.shape==idx.shape==(len(z), k)
    assert torch.equal(val.sort().values, z.topk(k).values.sort().values) and torch.equal(z.gather(1, idx), val) and distinct(idx)

@inside
@sizes
@halves
def test_topk(n, m, d, k, dtype):
    x,W,bias = problem(n, m, d)
    x = x.to(dtype)
    for tile in (None, torch.empty(max(1, n), m)):
        z = next(TorchKernels().tiles(x.float(), W, bias)).clone()
        agrees(*TritonKernels().topk(x, W, bias, k, tile), z, k)
    assert torch.equal(torch.cat([z.clone() for z in TritonKernels().tiles(x, W, bias)]), z)

@inside
def test_topk_in_parts():
    x,W,bias = problem(30, 64, 8)
    val,idx = TritonKernels().topk(x, W, bias-100, 5, torch.empty(7, 64))
    close(val.sort().values, (x@W.t()+(bias-100)).topk(5).values.sort().values)
    assert (val<0).all() and distinct(idx)

def scan(z, k):
    from sparsenb.triton_kernels import _largest
    return _largest(z.clone(), torch.zeros(z.shape[1]), k)

@inside
@pytest.mark.parametrize('m', [64, 96, 1024, 1025])
def test_every_k(m):
    z = torch.randn(5, m, generator=gen(m))
    for k in (1, 2, 3, m//8, m-1, m): agrees(*scan(z, k), z, k)

@inside
@pytest.mark.parametrize('levels', [1, 2, 5])
def test_ties(levels):
    z = torch.randint(levels, (9, 512), generator=gen()).float()-1
    agrees(*scan(z, 21), z, 21)

@inside
def test_infinities_and_nan():
    z = torch.randn(5, 512, generator=gen())
    z[0,:500] = -math.inf; z[1] = -math.inf; z[2,7] = math.inf; z[3] = 0; z[3,::2] = -0.; z[4] = math.inf
    agrees(*scan(z, 21), z, 21)
    z = torch.randn(3, 512, generator=gen()); z[0,::100] = math.nan; z[1] = math.nan
    val,idx = scan(z, 21)
    assert val.isnan().sum(1).tolist()==[6, 21, 0] and distinct(idx)
    torch.testing.assert_close(val.sort().values, z.topk(21).values.sort().values, equal_nan=True, rtol=0, atol=0)

@inside
def test_what_stands_on_topk():
    "batch_topk and above, inherited"
    x,W,bias = problem(13, 64, 40)
    f,t = (dense(idx, val, 64) for val,idx in (K.batch_topk(x, W, bias, 5) for K in (TritonKernels(), TorchKernels())))
    assert torch.equal(f, t) and int((f>0).sum())==13*5
    for how in (dict(floor=.5), dict(floor=bias.abs(), most=700)):
        for a,b in zip(TritonKernels().above(x, W, bias, **how), TorchKernels().above(x, W, bias, **how)): assert torch.equal(a, b)


# Rows

@inside
@sizes
@halves
def test_rows(n, m, d, k, dtype):
    K,T,(y,W,_),(idx,val),b = TritonKernels(),TorchKernels(),problem(n, m, d),codes(n, m, k),torch.randn(d, generator=gen(5))
    y = y.to(dtype)
    close(K.decode(idx, val, W), T.decode(idx, val, W))
    close(K.dots(y, W, idx), T.dots(y.float(), W, idx))
    r,dots = T.decode_error(idx, val, W, b, y.float())
    for every in (False, True):
        ours,dval = K.decode_error(idx, val, W, b, y, every)
        close(ours, r); close(dval, dots if every else dots*(val!=0))
    f = dense(idx, val, m).double()
    close(K.decode(idx, val, W), f@W.double())

@inside
def test_rows_without_places():
    K,(y,W,_),none = TritonKernels(),problem(3, 20, 8),torch.zeros(3, 0, dtype=torch.long)
    assert K.dots(y, W, none).shape==(3, 0) and torch.equal(K.decode(none, none.float(), W), torch.zeros(3, 8))
    r,dots = K.decode_error(none, none.float(), W, y[0], y)
    assert torch.equal(r, y[0]-y) and dots.shape==(3, 0)

@inside
def test_a_row_that_is_nan_stays_out_of_what_does_not_use_it():
    W = torch.ones(4, 3); W[2] = math.nan
    assert torch.equal(TritonKernels().decode(torch.tensor([[2, 1]]), torch.tensor([[0., 2.]]), W), torch.full((1, 3), 2.))


# Features

@inside
@sizes
def test_by_feature(n, m, d, k):
    idx,val = codes(n, m, k)
    for v in (None, val):
        order,row,start = TritonKernels().by_feature(idx, m, v)
        feature,true = idx.reshape(-1).sort(stable=True)
        if v is not None: on = v.reshape(-1)[true]!=0; feature,true = feature[on],true[on]
        assert torch.equal(order[:start[-1]], true) and torch.equal(row, order//k) and torch.equal(start, torch.searchsorted(feature, torch.arange(m+1)))
        assert torch.equal(order.sort().values, torch.arange(n*k))

@inside
@sizes
@pytest.mark.parametrize('split,dtype', [(2, torch.float32), (1024, torch.bfloat16)])
def test_gather(n, m, d, k, split, dtype):
    K,(rows,_,_),(idx,val) = TritonKernels(split),problem(n, m, d),codes(n, m, k)
    rows = rows.to(dtype)
    true = dense(idx, val, m).t()@rows.float()
    close(K.gather(rows, val, K.by_feature(idx, m, val)), true)
    close(K.gather(rows, val.reshape(-1), K.by_feature(idx, m), m//3, m//2), true[m//3:m//2])
    close(K.gather(rows, val, TorchKernels().by_feature(idx, m, val), m//2), true[m//2:])

@inside
def test_places_not_in_use_count_for_nothing_whatever_their_weight():
    K,(rows,_,_),(idx,val) = TritonKernels(2),problem(13, 64, 40),codes(13, 64, 5)
    w = torch.randn(13, 5, generator=gen(7))
    close(K.gather(rows, w, K.by_feature(idx, 64, val)), dense(idx, w*(val!=0), 64).t()@rows)

@inside
@pytest.mark.parametrize('split', [1, 3, 4, 40, 41, 1000])
def test_a_feature_that_every_row_uses(split):
    "It is shared out; its neighbours, unused or used a little, are not; the same bits come twice"
    K,T,rows = TritonKernels(split),TorchKernels(),torch.randn(41, 40, generator=gen())
    idx = torch.stack([torch.full((41,), 9), torch.arange(41)%3+10, torch.full((41,), 19)], 1)
    w = torch.randn(41, 3, generator=gen(2))
    places = K.by_feature(idx, 20)
    ours = K.gather(rows, w, places)
    close(ours, T.gather(rows, w, T.by_feature(idx, 20)))
    assert torch.equal(ours, K.gather(rows, w, places)) and (ours[:9]==0).all()
    close(K.sums(idx, w, 20), T.sums(idx, w, 20))

@inside
def test_the_same_feature_twice_in_a_row():
    K,(rows,_,_),idx,w = TritonKernels(2),problem(9, 1, 40),torch.zeros(9, 4, dtype=torch.long),torch.randn(9, 4, generator=gen(3))
    close(K.gather(rows, w, K.by_feature(idx, 3)), dense(idx, w, 3).t()@rows)


# Adam

CASES = [(6, 40, j, u, e, 1024 if u==e else 3) for j in (0, 1, 3) for u in (False, True) for e in (False, True)] + [(3, 129, 2, True, True, 3), (2, 300, 1, False, False, 3), (1, 1, 1, False, False, 3)]
@inside
@pytest.mark.parametrize('m,d,n_jobs,unit,extra,split', CASES)
def test_adam(m, d, n_jobs, unit, extra, split):
    "Ten steps of torch's Adam, with the gradient held whole"
    n,k,lr,betas,eps = 13,min(m, 5),1e-2,(.9, .99),1e-8
    K,W = TritonKernels(split),problem(1, m, d)[1]
    ours,mean,square = torch.nn.Parameter(W.clone().t()),torch.zeros(m, d),torch.zeros(m, d) # laid out as a dictionary's encoder
    theirs = torch.nn.Parameter(W.clone())
    opt = torch.optim.Adam([theirs], lr=lr, betas=betas, eps=eps)
    for step in range(1, 11):
        jobs,grad = [],torch.zeros(m, d)
        for j in range(n_jobs):
            idx,val = codes(n, m, k, 100*step+j)
            rows = torch.randn(n, d, generator=gen(1000*step+j)).to(torch.bfloat16 if j==1 else torch.float32)
            jobs.append((rows, val, K.by_feature(idx, m, val))); grad += dense(idx, val, m).t()@rows.float()
        more = (torch.randint(m, (9,), generator=gen(step)), torch.randn(9, d, generator=gen(step))) if extra else None
        if extra: grad.index_add_(0, *more)
        if unit: grad -= (grad*theirs.detach()).sum(1, keepdim=True)*theirs.detach()
        theirs.grad = grad; opt.step()
        if unit: theirs.data /= theirs.data.norm(dim=1, keepdim=True)
        K.adam_rows(ours.t(), mean, square, jobs, lr, betas, eps, step, unit=unit, extra=more)
    s = opt.state[theirs]
    for a,b in ((ours.detach().t(), theirs.detach()), (mean, s['exp_avg']), (square, s['exp_avg_sq'])): assert (a-b).norm()<=1e-5*b.norm()
    if unit: torch.testing.assert_close(ours.detach().norm(dim=0), torch.ones(m))
    if n_jobs or extra: assert (ours.detach().t()-W).norm()>1e-3

@inside
@pytest.mark.parametrize('how', [dict(name='topk', k=3), dict(name='batch_topk', k=3), dict(name='transcoder', k=2, d_out=16)], ids=lambda h: ' '.join(map(str, h.values())))
def test_ten_steps_of_a_dictionary(how):
    "The whole step, through the optimiser that takes its kernels by the path's name"
    from sparsenb.core import dictionaries
    from sparsenb.engine import Optimiser
    how,out = dict(how),{}
    name = how.pop('name')
    for path in ('torch', 'triton'):
        d = dictionaries[name](24, 16, seed=3, **how).train()
        opt = Optimiser(d, lr=1e-2, path=path)
        assert opt.kernels.name==path
        for step in range(10):
            g = gen(step)
            x,y = torch.randn(13, 24, generator=g),torch.randn(13, 16, generator=g) if 'd_out' in how else None
            opt.zero_grad()
            d.step(x, y).loss.backward(); d.before_step(); opt.step(); d.after_step()
        opt.close()
        out[path] = {n: p.detach().clone() for n,p in d.named_parameters()}
    for n,p in out['torch'].items(): assert (out['triton'][n]-p).norm()<=1e-4*p.norm(), n


# What is refused

def bad(match): return pytest.raises(ValueError, match=match)

@inside
def test_wrong_input_is_named():
    K,(x,W,bias),(idx,val) = TritonKernels(),problem(6, 20, 4),codes(6, 20, 3)
    with bad(r'x must be a torch.float32 or torch.bfloat16 tensor \(any, 4\) on cpu, got torch.float64 \(6, 4\) on cpu'): K.topk(x.double(), W, bias, 3)
    with bad(r'W must be a torch.float32 tensor \(any, any\) on a CUDA card, got torch.bfloat16 \(20, 4\) on cpu'): K.topk(x, W.bfloat16(), bias, 3)
    with bad(r'x must be .* \(any, 4\) on cpu, got .* \(6, 3\)'): K.topk(x[:,:3], W, bias, 3)
    with bad(r'bias must be .* \(20\) on cpu, got .* \(19,\)'): K.topk(x, W, bias[1:], 3)
    with bad(r'tile must be a contiguous .* \(any, 20\) on cpu, got .* \(6, 19\)'): K.topk(x, W, bias, 3, torch.empty(6, 19))
    with bad(r'W must be .* got None'): K.topk(x, None, bias, 3)
    for k in (0, 21, 2.5, True):
        with bad(rf'k must be a whole number in 1..20, got {k!r}'): K.topk(x, W, bias, k)
    with bad(r'idx must be a torch.int64 tensor \(any, any\) on cpu, got torch.int32'): K.decode(idx.int(), val, W)
    with bad(r'val must be .* \(6, 3\) on cpu, got .* \(6, 2\)'): K.decode(idx, val[:,:2], W)
    with bad(r'val must be a torch.float32 tensor .* got torch.bfloat16'): K.decode(idx, val.bfloat16(), W)
    with bad(r'y must be .* \(6, 4\) on cpu, got .* \(5, 4\)'): K.decode_error(idx, val, W, W[0], x[:5])
    with bad(r'g must be .* \(6, 4\) on cpu, got torch.float16'): K.dots(x.half(), W, idx)
    places = K.by_feature(idx, 20)
    with bad(r'features from a to b must lie in 0..20, got 5..21'): K.gather(x, val, places, 5, 21)
    with bad(r'w must be .* got torch.float64'): K.gather(x, val.double(), places)
    adam = lambda W, mean, step=1: K.adam_rows(W, mean, torch.zeros(20, 4), [(x, val, places)], .1, (.9, .999), 1e-8, step)
    with bad(r'W must be a contiguous torch.float32 tensor \(any, any\) on a CUDA card, got non-contiguous'): adam(torch.zeros(4, 20).t(), torch.zeros(20, 4))
    with bad(r'mean must be a contiguous .* \(20, 4\) on cpu, got .* \(4, 20\)'): adam(W, torch.zeros(4, 20))
    with bad('step counts from 1, got 0'): adam(W, torch.zeros(20, 4), 0)
    for split in (0, 2.5, True):
        with bad(f'split must be a whole number from 1, got {split!r}'): TritonKernels(split)
