"One TopK training step against dense autograd and against the bare encoder product (256 wide, 4,096 features, k 32, batch 4,096, one thread)"
from _common import interleaved, ratio, report
import statistics, torch, torch.nn.functional as F
from sparsenb.core import dictionaries

torch.set_num_threads(1)
d_in,d_sae,k,n = 256,4096,32,4096
g = torch.Generator().manual_seed(0); x = torch.randn(n, d_in, generator=g)

def optimizer(ps): return torch.optim.Adam(ps, lr=1e-4, fused=True)

sae = dictionaries['topk'](d_in, d_sae, k=k).train(); own = optimizer(sae.parameters())
def ours():
    out = sae.step(x); own.zero_grad(); out.loss.backward(); sae.before_step(); own.step(); sae.after_step()

W = F.normalize(torch.randn(d_sae, d_in, generator=g), dim=1)
We,Wd,be,bd = (torch.nn.Parameter(v.clone()) for v in (W, W, torch.zeros(d_sae), torch.zeros(d_in))); theirs = optimizer([We,Wd,be,bd])
def dense():
    pre = F.linear(x-bd, We, be); v,i = pre.topk(k, dim=-1)
    z = torch.zeros_like(pre).scatter(-1, i, v.relu())
    loss = (z@Wd+bd-x).pow(2).sum(-1).mean(); theirs.zero_grad(); loss.backward(); theirs.step()

@torch.no_grad()
def product(): return x@W.T

t = interleaved(dict(ours=ours, dense=dense, product=product))
report('train_step', dict(speedup_over_dense_autograd=ratio(t, 'dense', 'ours'), ratio_to_bare_encoder=ratio(t, 'ours', 'product'), activations_per_second=round(n/statistics.median(t['ours']))))
