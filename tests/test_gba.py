"Group bias adaptation: its rule, its gradients, and ground truth with the control that shows what a good reconstruction does not prove"
import functools
import pytest, torch
import torch.nn.functional as F
from sparsenb.core import dictionaries, testbeds
from sparsenb.train import fit

torch.set_num_threads(1)
make = dictionaries['gba']

class Equal(testbeds['superposition']):
    "Three of 128 features in 42 dimensions in every row, equally strong; rows of length 1"
    name = 'equal'
    def __init__(self, seed=0): super().__init__(n_features=128, d=42, batch_size=256, seed=seed)
    def strengths(self, n, g):
        f = torch.zeros(n, 128).scatter_(1, torch.rand(n, 128, generator=g).topk(3, dim=1).indices, 1.)
        return f/(f@self.features).norm(dim=1, keepdim=True)

@functools.cache
def trained(steps=6000, seed=0, **kw):
    bed = Equal(seed)
    sae = make(42, 256, seed=seed, **kw)
    fit(sae, bed, steps*256, 256)
    return sae.eval(), {k: s.value for k,s in bed.score(sae).items()}

# ---- ground truth, and its control ----

def test_features_are_found():
    "6000 steps of 256 rows; about 25 s"
    sae,s = trained()
    assert s['recovered_0.8']>=.95 and s['mmcs']>=.93 and s['l0']<12 and abs(s['shrinkage']-1)<.02, s

def test_without_adaptation_none_is_found_though_the_data_are_rebuilt():
    "The same training with biases that stay: the error is next to nothing and no feature is one of the true ones; about 25 s"
    sae,s = trained(gamma_down=0., gamma_up=0.)
    assert s['fvu']<.01 and s['recovered_0.8']<=.05 and s['mmcs']<.55, s
    assert (sae.b_enc==0).all() and s['fvu']<trained()[1]['fvu'] # the better reconstruction is the one that found nothing

def test_features_fire_about_as_often_as_they_may():
    sae,_ = trained()
    often = (sae.encode(Equal().sample(8192).x)>0).double().mean(0)
    group = torch.stack([often[sae.group==k].mean() for k in range(10)])
    assert (often<=2.5*sae.target+.005).double().mean()>.95 and often.mean()<=sae.target.mean()

# ---- the rule ----

def test_rule_by_hand():
    "Too often, dead, in between, at the floor, at 0; group means over what fired alone"
    sae = make(4, 6, p_max=.5, p_min=.1, n_groups=2, gamma_down=.1, gamma_up=.2, floor=1.)
    assert sae.target.tolist()==pytest.approx([.5]*3+[.1]*3)
    sae.b_enc.copy_(torch.tensor([-1., -1., -.5, -1.95, -.1, -1.]))
    y = -torch.ones(10, 6)
    y[:6,0],y[:2,1],y[:1,3] = 2.,torch.tensor([1., 5.]),3. # shares .6, .2, 0, .1, 0, 0
    y[:2,3] = torch.tensor([3., 1.])                       # .2
    sae.measure(y[:5], y[:5]>0); sae.measure(y[5:], y[5:]>0); sae.adapt()
    want = [-1-.1*2, -1., -.5+.2*3.5, -2., 0., -1+.2*3]    # r of the first group 2 and 5, of the second 3; the floor is -2
    want[2] = min(0., want[2]); want[4] = min(0., -.1+.2*3)
    assert sae.b_enc.tolist()==pytest.approx(want)
    assert sae.rows==0 and (sae.peak==0).all() and (sae.fired==0).all()

def test_when_it_adapts():
    sae,at = make(8, 32, every=7, early_every=3, early_steps=10, seed=3).train(),[]
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for i in range(1, 30):
        was = sae.b_enc.clone()
        sae.step(x).loss.backward(); sae.before_step(); sae.after_step(); sae.zero_grad()
        if not torch.equal(was, sae.b_enc): at.append(i)
    assert at==[3, 6, 9, 14, 21, 28]
    was = sae.eval().b_enc.clone(); sae.step(x); assert sae.rows==64 and torch.equal(was, sae.b_enc) # step 29 is in the buffer, evaluation is not

@pytest.mark.parametrize('d_out', [None, 5])
def test_gradients_are_those_of_the_normalised_forward_pass(d_out):
    "Both paths, against plain autograd through the normalisation; the bias decides and adds nothing"
    g = torch.Generator().manual_seed(0)
    sae = make(8, 96, d_out, seed=3).double().eval()
    with torch.no_grad():
        sae.W_dec *= .5+torch.rand(96, 1, generator=g); sae.b_dec.uniform_(-1, 1, generator=g); sae.centre.uniform_(-1, 1, generator=g)
        sae.b_enc.uniform_(-2, -1, generator=g)
    sae.after_step() # directions of length 1 in double precision too
    x,y = torch.randn(50, 8, generator=g).double(),torch.randn(50, 5, generator=g).double() if d_out else None
    W,E,b = (p.detach().clone().requires_grad_() for p in (sae.W_dec, sae.W_enc, sae.b_dec))
    z = (x-(sae.centre if d_out else b))@(E/E.norm(dim=0) if d_out else F.normalize(W, dim=1).t())
    f = z*(z.detach()+sae.b_enc>0)
    loss = (f@W+b-(x if y is None else y)).square().sum(1).mean()
    loss.backward()
    for crowd in (96, 1):
        sae.crowd.fill_(crowd); sae.zero_grad()
        out = sae.step(x, y); out.loss.backward(); sae.before_step()
        torch.testing.assert_close(out.loss, loss)
        torch.testing.assert_close(sae.encode(x), f.detach())
        torch.testing.assert_close(sae.W_dec.grad, W.grad); torch.testing.assert_close(sae.b_dec.grad, b.grad)
        if d_out: torch.testing.assert_close(sae.W_enc.grad, E.grad)

def test_directions_stay_of_length_1_and_folding_keeps_training_tied():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    for d_out in (None, 5):
        sae = make(8, 32, d_out, seed=3)
        fit(sae, (x, x[:,:5]) if d_out else 3*x, 40*100, 100)
        torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(32))
    sae = make(8, 32, seed=3); fit(sae, 3*x, 40*100, 100)
    for d in (sae, sae.fold()):
        was = d.W_enc.clone(); d.after_step(); torch.testing.assert_close(d.W_enc.detach(), was.detach())

def test_more_may_fire_where_p_max_is_larger():
    bed,l0 = Equal(),[]
    for p in (.03, .1, .3):
        sae = make(42, 128, p_max=p, gamma_down=.05, gamma_up=.05)
        fit(sae, bed, 400*256, 256)
        l0.append(bed.score(sae, n=2000)['l0'].value)
    assert make.sparsity==('p_max', +1) and l0[0]<.7*l0[1]<.49*l0[2], l0

def test_refuses():
    for kw,why in ((dict(p_max=0), 'got p_min=0.0, p_max=0'), (dict(p_max=.1, p_min=.2), '0 < p_min <= p_max <= 1 was expected, got p_min=0.2, p_max=0.1'), (dict(p_max=2), 'p_max=2'),
                   (dict(n_groups=0), 'n_groups must be a whole number of at least 1, got 0'), (dict(every=2.5), 'every must be'), (dict(gamma_up=-1), 'gamma_up must be at least 0, got -1')):
        with pytest.raises(ValueError, match=why): make(8, 32, **kw)

@pytest.mark.parametrize('x', [torch.zeros(32, 8), torch.ones(32, 8)])
def test_degenerate_data_give_finite_steps(x):
    sae = make(8, 32, early_every=1)
    for _ in range(3): out = sae.step(x); out.loss.backward(); sae.before_step(); sae.after_step()
    assert out.loss.isfinite() and all(v.isfinite().all() for v in sae.state_dict().values())
