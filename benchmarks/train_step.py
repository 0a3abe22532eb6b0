"""One training step on each path, against dense autograd and the bare encoder product (768 wide, 16,384 features, k 32, batch 4,096, one thread; about three minutes)

Arms take turns in one process; a ratio is the median over rounds of the quotient within a round. Times are process time of one thread. A path is held
against the product that it rests on: exact paths against the quickest product with the rounding of fp32, the bf16 screen against the bf16 product, the
int8 screen against torch's default product. All arms start at the same weights and see the same batches, and their losses are compared at the end: they
compute the same thing. Peak memory is read in a child process for each path.
"""
from _common import interleaved, note, own_options, ratio, report
import argparse, itertools, statistics
import torch, torch.nn.functional as F
from _arms import METHODS, PATHS, build, data, in_a_child, missing, products, stepper

def arms(method, paths, d, m, k, batches):
    "path -> its step, and the last loss of each"
    losses = {}
    def arm(path):
        step,count = stepper(method, path, build(method, d, m, k, batches), batches),itertools.count()
        def one(): losses[path] = step(next(count))
        return one
    return {p: arm(p) for p in paths}, losses

def memory(method, paths, d, m, k, n)->dict:
    "Peak of a training beyond its data, in units of parameters and moments"
    out = {}
    for p in paths:
        try: r = in_a_child(path=p, method=method, d=d, m=m, k=k, n=n, rounds=1); out[f'peak_memory_{p}'] = r['peak']/r['weights_and_moments']
        except (RuntimeError, OSError) as e: note(f'no peak memory of {p}: {e}')
    return out

def ratios(t, paths)->dict:
    "Every path against its own product, and the best against all"
    exact = min((n for n in ('product', 'product_onednn') if n in t), key=lambda n: statistics.median(t[n]))
    against = dict(torch=('ratio_torch_path', exact), numba=('ratio_numba_fp32', exact), bf16=('ratio_bf16_screen', 'product_bf16'), int8=('ratio_int8_screen', 'product'))
    best = min(paths, key=lambda p: statistics.median(t[p]))
    out = dict(path=best, ratio_to_bare_encoder=ratio(t, best, 'product'), ratio_to_best_product=ratio(t, best, exact))
    if 'dense' in t: out |= dict(speedup_over_dense_autograd=ratio(t, 'dense', best), **({'torch_path_over_dense_autograd': ratio(t, 'dense', 'torch')} if 'torch' in paths else {}))
    return out | {nm: ratio(t, p, q) for p,(nm,q) in against.items() if p in paths and q in t}

if __name__=='__main__':
    p = argparse.ArgumentParser('train_step')
    p.add_argument('--size', type=int, nargs=4, default=[768, 16384, 32, 4096], metavar=('D', 'M', 'K', 'B'), help='width, features, k, batch')
    p.add_argument('--method', default='topk', choices=METHODS)
    p.add_argument('--paths', type=lambda s: s.split(','), default=list(PATHS), help=f"of {','.join(PATHS)}")
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--no-dense', action='store_true', help='leave out the dense reference'); p.add_argument('--no-memory', action='store_true', help='do not measure memory')
    p.add_argument('--peers', action='store_true', help="their steps too; for a Python that has them, see peers.py")
    a,rest = own_options(p)
    d,m,k,n = a.size
    if wrong := [x for x in a.paths if x not in PATHS]: p.error(f"no path {wrong[0]!r}; there are {', '.join(PATHS)}")
    if a.peers and a.method!='topk': p.error('the peers run topk')
    for x in a.paths:
        if why := missing(x): note(f'skipped: {x}, {why}')
    paths = [x for x in a.paths if not missing(x)]
    if not paths: p.error('no path is left')
    batches = data(a.method, d, n)
    x = batches[0][0]
    mine,losses = arms(a.method, paths+['dense']*(not a.no_dense), d, m, k, batches)
    theirs = {}
    if a.peers:
        from peers import peer_steps
        theirs = peer_steps(d, m, k, [b[0] for b in batches])
    t = interleaved({**products(x, F.normalize(torch.randn(m, d, generator=torch.Generator().manual_seed(2)), dim=1)), **mine, **theirs}, a.rounds)
    out = dict(method=a.method, size=' '.join(map(str, a.size))) | ratios(t, paths)
    out |= {f'speedup_over_{q}': ratio(t, q, out['path']) for q in theirs}
    seen = [v.item() for v in losses.values()]
    out |= dict(largest_loss_difference=(max(seen)-min(seen))/abs(seen[0]), activations_per_second=round(n/statistics.median(t[out['path']])))
    if not a.no_memory: out |= memory(a.method, paths, d, m, k, n)
    report('train_step', out | {f'seconds_{q}': statistics.median(v) for q,v in t.items()}, rest)
