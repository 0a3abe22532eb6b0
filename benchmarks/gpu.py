"""One training step on a CUDA card: Triton kernels and torch against the bare encoder product (2,304 wide, 65,536 features, k 64, batch 8,192)

Nobody has run this on a card yet. Arms take turns in one process; times are wall-clock, with the card waited for before and after each call; a ratio is the
median over rounds of the quotient within a round. fp32 products are computed without TF32 unless an arm's name says so. All arms see the same batches.
"""
from _common import interleaved, own_options, ratio, report
import argparse, itertools, statistics, sys, time
import torch
from _arms import build, data, own

def clock()->float:
    "The time when the card has done all that was asked of it"
    torch.cuda.synchronize()
    return time.perf_counter()

def at(precision, f):
    "`f`, with fp32 products computed in `precision`"
    def g(): torch.backends.cuda.matmul.fp32_precision = precision; return f()
    return g

def products(x, W)->dict:
    "The encoder's product alone"
    out,xl,Wl,low = x.new_empty(len(x), len(W)),x.bfloat16(),W.bfloat16(),torch.empty(len(x), len(W), dtype=torch.bfloat16, device=x.device)
    bare = lambda: torch.mm(x, W.t(), out=out)
    return dict(product=at('ieee', bare), product_tf32=at('tf32', bare), product_bf16=lambda: torch.mm(xl, Wl.t(), out=low))

def step(path, d, m, k, batches, device, losses, name):
    "A training's next step"
    one,count = own(build('topk', d, m, k, batches).to(device), path),itertools.count()
    there = [x.to(device) for x,_ in batches]
    def f(): losses[name] = one(there[next(count)%len(there)]).loss.detach()
    return f

if __name__=='__main__':
    p = argparse.ArgumentParser('gpu')
    p.add_argument('--size', type=int, nargs=4, default=[2304, 65536, 64, 8192], metavar=('D', 'M', 'K', 'B'), help='width, features, k, batch')
    p.add_argument('--rounds', type=int, default=20)
    a,rest = own_options(p)
    if not torch.cuda.is_available(): sys.exit('gpu: there is no CUDA card here')
    (d,m,k,n),losses = a.size,{}
    batches = data('topk', d, n)
    W = torch.nn.functional.normalize(torch.randn(m, d, device='cuda'), dim=1)
    steps = dict(torch=at('ieee', step('torch', d, m, k, batches, 'cuda', losses, 'torch')), triton=at('ieee', step('triton', d, m, k, batches, 'cuda', losses, 'triton')),
                 triton_tf32=at('tf32', step('triton', d, m, k, batches, 'cuda', losses, 'triton_tf32')))
    t = interleaved(products(batches[0][0].cuda(), W) | steps, a.rounds, clock)
    report('gpu', dict(card=torch.cuda.get_device_name(), size=' '.join(map(str, a.size)), ratio_to_product=ratio(t, 'triton', 'product'), ratio_to_product_tf32=ratio(t, 'triton_tf32', 'product_tf32'),
        ratio_to_product_bf16=ratio(t, 'triton_tf32', 'product_bf16'), speedup_over_torch=ratio(t, 'torch', 'triton'), loss_difference=abs(losses['triton']/losses['torch']-1).item(),
        peak_gigabytes=torch.cuda.max_memory_allocated()/1e9, activations_per_second=round(n/statistics.median(t['triton']))) | {f'seconds_{q}': statistics.median(v) for q,v in t.items()}, rest)
