"Lengths of codes and activations: the bounds, the choice by matched lengths, the plot, and what training with it gives"
import numpy as np, pytest, torch
import torch.nn.functional as F
from sparsenb.core import analyses, dictionaries, testbeds
from sparsenb.dictionary import Codes
from sparsenb.train import fit
from sparsenb.analyses.zf_plot import coherence
from sparsenb.dictionaries.top_afa import norm_matched

torch.set_num_threads(1)
make,zf_plot = dictionaries['top_afa'],analyses['zf_plot']

class Truth:
    "A dictionary that gives the codes it was told"
    name,rebuilds = 'truth',True
    def __init__(self, f, D, b): self.f,self.W_dec,self.b_dec,self.d_sae,self.at = f,D,b,len(D),0
    def codes(self, x):
        self.at += len(x)
        return Codes.trimmed(self.f[self.at-len(x):self.at])
    def decode_codes(self, c): return c.dense(self.d_sae)@self.W_dec + self.b_dec

def known(h=512, d=128, n=4000, active=10, seed=0):
    "Sparse codes, atoms and what they make; strengths .5 to 1.5"
    g = torch.Generator().manual_seed(1000+seed)
    D = F.normalize(torch.randn(h, d, generator=g, dtype=torch.float64), dim=1)
    f = (torch.rand(n, h, generator=g)<active/h)*(.5+torch.rand(n, h, generator=g))
    return f.double(), D

# ---- the bounds ----

def bounds(f, D, b):
    "The plot's arrays for known codes, with the measured ε, after checking every row against all bounds"
    zf = zf_plot(Truth(f, D, b), f@D+b, n=len(f), seed=0)
    atoms = torch.cat([D, b[None]]) if b.norm()>0 else D
    e = max(coherence(atoms), (F.normalize(atoms, dim=1)@F.normalize(atoms, dim=1).t()).fill_diagonal_(0).abs().max().item()) # to the last bit
    h,z,s = len(atoms),zf.z**2,zf.f**2
    slack = 1+1e-9
    assert (z/(1+e*(h-1))<=s*slack).all()
    assert e*(h-1)>=1 or (s<=z/(1-e*(h-1))*slack).all()
    tight,loose = e*(zf.f1**2-s),e*(zf.l0+(b.norm()>0).item()-1).clip(0)*s
    assert (np.abs(z-s)<=tight*slack+1e-9).all() and (tight<=loose*slack+1e-9).all()
    assert (zf.epsilon_lbo<=e*slack).all() and (zf.gap()<=e*slack).all() and (zf.epsilon_lbo<=zf.gap()*slack+1e-12).all()
    return zf, e, e*(h-1)

def test_bounds_hold_on_every_row_of_known_codes():
    f,D = known()
    for b in (torch.zeros(128, dtype=torch.float64), D[0]-D[1]):
        zf,e,c = bounds(f, D, b)
        assert .3<e<1 and c>1 and (zf.l0>0).mean()>.999 # crowded atoms: the plain upper bound says nothing, the tighter one does
        assert np.median(zf.gap())>50*np.median(zf.epsilon_lbo)

def test_both_plain_bounds_say_something_for_nearly_orthogonal_atoms():
    g = torch.Generator().manual_seed(1000)
    Q = torch.linalg.qr(torch.randn(128, 128, generator=g, dtype=torch.float64))[0]
    D = F.normalize(Q[:64] + .0008*torch.randn(64, 128, generator=g, dtype=torch.float64), dim=1)
    f = known(64)[0]
    zf,e,c = bounds(f, D, torch.zeros(128, dtype=torch.float64))
    assert .05<c<1 and zf.within(c).all() and not zf.within(c/1e4).all()

def test_a_violation_is_seen():
    "Codes of the wrong rows: the lengths then need larger cosines than there are"
    f,D = known()
    zf = zf_plot(Truth(f.roll(1, 0), D, torch.zeros(128, dtype=torch.float64)), f@D, n=len(f), seed=0)
    assert (zf.gap()<=coherence(D)*(1+1e-9)).all() # the reconstruction still obeys
    assert (np.abs(zf.z**2-zf.f**2)>coherence(D)*(zf.f1**2-zf.f**2)).any()

# ---- the choice ----

@pytest.mark.parametrize('guess', [1, 7, 600])
def test_choice_is_that_of_sorting_whole_rows(guess):
    f,D = known(n=500)
    f[0] = 0
    g,length = f.square(),(f@D).norm(dim=1)
    top,order = g.sort(1, descending=True)
    want = ((top.cumsum(1).sqrt()-length[:,None]).abs().argmin(1)+1).minimum((f>0).sum(1)).clamp_min(1)
    idx,k = norm_matched(g, length, guess)
    assert torch.equal(k, want) and idx.shape==(500, int(want.max()))
    torch.testing.assert_close(g.gather(1, idx), top[:,:idx.shape[1]], rtol=0, atol=0)

def test_true_codes_lose_a_feature_in_ten():
    "Matching lengths over true codes: fewer than are there, and exactly right in over half of the rows"
    f,D = known(n=20_000)
    k = norm_matched(f.square(), (f@D).norm(dim=1))[1]
    true = (f>0).sum(1)
    assert abs(true.double().mean()-10)<.1 and 8.7<k.double().mean()<9.3 and .5<(k==true).double().mean()<.7

def test_choice_uses_the_decoders_lengths_and_the_centred_input():
    sae = make(8, 24, seed=3).double().eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad(): sae.W_dec *= .5+torch.rand(24, 1, generator=g); sae.b_dec.uniform_(-1, 1, generator=g); sae.scale.fill_(2.)
    x = torch.randn(200, 8, generator=g, dtype=torch.float64)
    xc = 2*x-sae.b_dec
    a = (xc@sae.W_enc).relu()
    size = a*sae.W_dec.norm(dim=1)
    for row,n,s,f in zip(a, xc.norm(dim=1), size, sae.encode(x)):
        order = s.argsort(descending=True)
        k = (s[order].square().cumsum(0).sqrt()-n).abs().argmin()+1
        torch.testing.assert_close(f, torch.zeros_like(row).index_put((order[:k],), row[order[:k]]))

def test_loss_by_hand():
    "Squared error, AuxK off, and the lengths with x as it is: in the mean over dimensions this is the published loss"
    sae = make(8, 24, seed=3, afa_coef=.25, k_aux=0).train()
    with torch.no_grad(): sae.b_dec.uniform_(-1, 1)
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    out = sae.step(x)
    f = out.codes.dense(24)
    want = (f@sae.W_dec+sae.b_dec-x).square().mean() + .25*(f.norm(dim=1)-x.norm(dim=1)).square().mean()
    torch.testing.assert_close(out.loss, 8*want)

def test_sparse_and_dense_steps_agree():
    g = torch.Generator().manual_seed(0)
    x,got = torch.randn(300, 16, generator=g),[]
    sae = make(16, 256, seed=3, dead_after=10).train()
    for crowd in (256, 1):
        sae.crowd.fill_(crowd); sae.idle.zero_(); sae.idle[:40] = 1000; sae.zero_grad() # AuxK takes part
        out = sae.step(x); out.loss.backward()
        got.append([p.grad.clone() for p in sae.parameters()]+[out.loss.detach(), out.x_hat, out.codes.dense(256), *out.parts.values()])
    for a,b in zip(*got): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert out.parts['aux']>0

@pytest.mark.parametrize('x', [torch.zeros(32, 8), torch.ones(32, 8), torch.full((32, 8), -1e4)])
def test_degenerate_data_give_finite_steps(x):
    sae = make(8, 32, seed=3)
    out = sae.step(x); out.loss.backward()
    assert out.loss.isfinite() and all(p.grad.isfinite().all() for p in sae.parameters())
    assert sae.codes(x[:0]).val.shape[0]==0 and sae.encode(x[:0]).shape==(0, 32)

def test_refuses():
    for kw,why in ((dict(afa_coef=-1), 'afa_coef must be at least 0, got -1'), (dict(k_aux=33), 'k_aux must be in 0..d_sae=32, got 33')):
        with pytest.raises(ValueError, match=why): make(8, 32, **kw)

def test_training_matches_lengths_and_is_not_sparse():
    "At the published weight, on four features a row: rebuilt well, as long as it should be, through twenty times as many features, none of them true"
    bed = testbeds['superposition']()
    sae = make(64, 128)
    run = fit(sae, bed, 500*512, 512)
    s = {k: v.value for k,v in bed.score(sae.eval()).items()}
    assert s['fvu']<.06 and abs(s['shrinkage']-1)<.02 and s['dead']==0 and run.history['afa'][-1]<.6*run.history['afa'][0], s
    assert s['l0']>40 and s['recovered_0.8']<.05, s

# ---- the plot ----

def test_two_rows_by_hand():
    sae = dictionaries['relu'](3, 2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[.5, 0], [0, .5], [0, 0]])); sae.W_dec.copy_(torch.tensor([[2., 0, 0], [0, 2, 0]])); sae.b_dec.copy_(torch.tensor([0., 0, 1]))
    x = torch.tensor([[6., 8, 1], [0, -3, 4]]) # codes (3, 4) and (0, 0); f̃ = (6, 8, 1) and (0, 0, 1)
    zf = zf_plot(sae, x, seed=0)
    np.testing.assert_allclose(np.stack([zf.z, zf.f, zf.z_hat, zf.f1, zf.l0]), [[101**.5, 5], [101**.5, 1], [101**.5, 1], [15, 1], [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(zf.epsilon_lbo, [0, 24], atol=1e-5)
    np.testing.assert_allclose(zf.gap(), 0, atol=1e-5)
    assert zf.within(.25).tolist()==[True, False] and zf.within(30).all()
    p = zf.plot()
    assert set(p.lines)=={'0', '+0.25', '−0.25', '+0.5', '−0.5', '+1'} # the other line of 1 stands upright
    for k,l in p.lines.items():
        slope = (1/(1+float(k.replace('−', '-'))))**.5
        np.testing.assert_allclose(l, [[0, 0], [101**.5, 101**.5*slope]], rtol=1e-6)
    np.testing.assert_allclose(p.numbers()['‖z‖'], zf.z); np.testing.assert_allclose(p.numbers()['‖f̃‖'], zf.f)
    assert '50% within ±0.25' in p.caption and '<svg' in zf._repr_html_() and len(zf.table().rows)==4

@pytest.mark.parametrize('name', dictionaries.names())
def test_plot_of_any_dictionary(name):
    "Lengths in the user's units, those of dense codes; a folded dictionary has the same"
    g = torch.Generator().manual_seed(0)
    x = 3*torch.randn(400, 8, generator=g)
    sae = dictionaries[name](8, 32, seed=3)
    fit(sae, x, 10*100, 100)
    sae.eval(); zf = zf_plot(sae, x, n=100, seed=1)
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:100]
    with torch.no_grad(): f,x_hat = sae.encode(x[rows]),sae(x[rows])
    W,b = sae.W_dec.detach()/sae.scale_out,sae.b_dec.detach()/sae.scale_out
    size = torch.cat([f.abs()*W.norm(dim=1), b.norm().expand(100, 1)], 1)
    for got,want in ((zf.z, x[rows].norm(dim=1)), (zf.f, size.norm(dim=1)), (zf.f1, size.sum(1)), (zf.z_hat, x_hat.norm(dim=1)), (zf.l0, (f!=0).sum(1))):
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-4, atol=1e-4)
    folded = zf_plot(sae.fold(), x, n=100, seed=1)
    np.testing.assert_allclose(folded.f, zf.f, rtol=1e-3, atol=1e-3)

def test_plot_refuses_what_does_not_fit():
    sae,x = dictionaries['topk'](8, 32, k=4),torch.zeros(5, 8)
    with pytest.raises(ValueError, match='give activations, not a pair'): zf_plot(sae, (x, x))
    with pytest.raises(ValueError, match=r'a pair \(x, y\) is needed'): zf_plot(dictionaries['topk'](8, 32, d_out=5), x)
    with pytest.raises(ValueError, match='x has 5 rows, y has 4'): zf_plot(dictionaries['topk'](8, 32, d_out=5), (x, torch.zeros(4, 5)))
    with pytest.raises(ValueError, match='no activations'): zf_plot(sae, x[:0])
    with pytest.raises(ValueError, match='c must be above 0'): zf_plot(sae, x, c=(0,))
    with pytest.raises(ValueError, match='width 8 expected'): zf_plot(sae, torch.zeros(5, 7))
    y = torch.randn(5, 5)
    assert np.allclose(np.sort(zf_plot(dictionaries['topk'](8, 32, d_out=5), (x, y)).z), y.norm(dim=1).sort().values)
