"Methods on data whose features are known: what each must find, and what sets it apart"
import functools
import pytest, torch
from sparsenb.core import dictionaries, testbeds
from sparsenb.dictionary import Codes
from sparsenb.kernels import torch_kernels
from sparsenb.train import Callback, fit

torch.set_num_threads(1)

def trained(name, bed, steps, lr=4e-3, **kw):
    d,n = bed.features.shape[1],len(bed.features)
    sae = dictionaries[name](d, n, **kw)
    fit(sae, bed, steps*bed.batch_size, bed.batch_size, lr=lr)
    return sae.eval()

@functools.cache
def g1(name, steps=1500, **kw):
    "A dictionary trained on 128 features in 64 dimensions, 4 of them in a row on average, and its scores"
    bed = testbeds['superposition']()
    sae = trained(name, bed, steps, **kw)
    return sae, {k: s.value for k,s in bed.score(sae).items()}

# ---- BatchTopK ----

@pytest.mark.parametrize('name', ['topk', 'batch_topk'])
def test_the_k_largest_find_the_features(name):
    _,s = g1(name, k=4, dead_after=10_000)
    assert s['mmcs']>=.99 and s['recovered_0.9']>=.97 and abs(s['l0']-4)<.15 and abs(s['shrinkage']-1)<.01, s
    assert abs(s['fvu']-dict(topk=.132, batch_topk=.063)[name])<.012, s

def test_batch_topk_has_half_of_topks_error():
    "One row at a time: the number of features varies, and only TopK pays for it"
    batch,s = g1('batch_topk', k=4, dead_after=10_000)
    _,t = g1('topk', k=4, dead_after=10_000)
    x = testbeds['superposition']().sample(1024).x
    alone = torch.cat([batch(r[None]) for r in x]).detach()
    fvu = ((x-alone).square().sum()/(x-x.mean(0)).square().sum()).item()
    assert fvu<=.6*t['fvu'] and abs(fvu-s['fvu'])<.01, (fvu, t['fvu'])

def test_batch_topk_codes_do_not_depend_on_the_company():
    sae,_ = g1('batch_topk', k=4, dead_after=10_000)
    x = testbeds['superposition']().sample(300).x
    whole,alone = sae.encode(x),torch.cat([sae.encode(r[None]) for r in x])
    near = (sae.pre_acts(x)-sae.threshold).abs()<1e-5 # there rounding may decide
    torch.testing.assert_close(whole.masked_fill(near, 0), alone.masked_fill(near, 0), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.train().encode(x), whole, rtol=0, atol=0)
    sae.eval()

@pytest.mark.parametrize('n,m,k', [(64,512,4), (7,33,33), (50,64,3), (1,100,5), (128,1000,2)])
def test_the_largest_of_a_batch_are_exact(n, m, k):
    z = torch.randn(n, m, generator=torch.Generator().manual_seed(0))
    for z in (z, z-10, z+10*(torch.arange(n)==0)[:,None], 0*z): # ordinary; none positive; one row with all; zeros
        val,idx = torch_kernels.batch_topk(z, torch.eye(m), torch.zeros(m), k)
        f = z.relu().flatten()
        want = f*(f>=f.topk(n*k).values[-1])
        assert torch.equal(Codes(idx, val).dense(m).flatten(), want)
        assert all(len(u := r[v>0].tolist())==len(set(u)) for r,v in zip(idx, val)) and (val>0).sum()<=max(n*k, (f==f.max()).sum())

def test_threshold_is_the_running_mean_of_what_just_stayed():
    sae = dictionaries['batch_topk'](8, 32, k=3, threshold_decay=.75)
    g,want,n = torch.Generator().manual_seed(0),0.,0
    for n in range(1, 9):
        out = sae.step(torch.randn(64, 8, generator=g))
        least = out.codes.val[out.codes.val>0].min().item()
        want += (least-want)*max(1/n, .25)
        assert sae.threshold.item()==pytest.approx(want, rel=1e-5)
    sae.eval().step(torch.randn(64, 8, generator=g))
    assert sae.threshold.item()==pytest.approx(want, rel=1e-5)
    assert (sae.codes(torch.randn(500, 8, generator=g)).val!=0).sum(1).unique().numel()>3

# ---- who shrinks ----

@pytest.mark.parametrize('name,kw', [('topk', dict(k=4, dead_after=10_000)), ('batch_topk', dict(k=4, dead_after=10_000)), ('jumprelu', dict(l0_coef=1.5)), ('gated', dict(l1_coef=2.))])
def test_strengths_are_kept(name, kw):
    s = g1(name, **kw)[1]
    assert abs(s['shrinkage']-1)<.015, s

def test_only_l1_shrinks():
    s = g1('relu', l1_coef=.384)[1]
    assert s['shrinkage']<.97 and s['mmcs']>=.98 and s['l0']>8, s

# ---- Multi-TopK ----

def test_multi_topk_is_dense_autograds():
    "Twenty steps of L(k) + L(4k)/8 through sparse codes, and by plain autograd: the same losses and weights"
    g = torch.Generator().manual_seed(0)
    M,sae = torch.randn(16, 16, generator=g),dictionaries['topk'](16, 64, k=3, multi_coef=1/8)
    assert sae.multi_k==12
    W = {n: p.detach().clone().requires_grad_() for n,p in sae.named_parameters()}
    ours,dense = (torch.optim.Adam(p, lr=1e-3) for p in (sae.parameters(), W.values()))
    for _ in range(20):
        x = torch.randn(200, 16, generator=g)@M
        out = sae.step(x)
        ours.zero_grad(); out.loss.backward(); sae.before_step(); ours.step(); sae.after_step()
        z = (x-W['b_dec'])@W['W_enc'] + W['b_enc']
        def error(k):
            v,i = z.topk(k)
            return (Codes(i, v.relu()).dense(64)@W['W_dec'] + W['b_dec'] - x).square().sum(1).mean()
        short,long = error(3),error(12)
        dense.zero_grad(); (short+long/8).backward()
        torch.testing.assert_close(out.loss, short+long/8); torch.testing.assert_close(out.parts['mse'], short.detach()); torch.testing.assert_close(out.parts['multi'], long.detach())
        assert out.codes.idx.shape==(200, 3)
        with torch.no_grad():
            D = W['W_dec']; D.grad -= (D.grad*D).sum(1, keepdim=True)*D
            dense.step(); D /= D.norm(dim=1, keepdim=True)
    for n,p in sae.named_parameters(): torch.testing.assert_close(p, W[n], rtol=0, atol=1e-4)

def test_multi_topk_is_progressive():
    "Given four times the places, plain TopK gets worse and Multi-TopK better; at k they differ little"
    fvu = {}
    for name,kw in (('plain', {}), ('multi', dict(multi_coef=1/8))):
        sae,s = g1('topk', 800, k=4, dead_after=10_000, **kw)
        more = dictionaries['topk'](**sae.cfg|dict(k=16)); more.load_state_dict(sae.state_dict())
        fvu[name] = s['fvu'],testbeds['superposition']().score(more)['fvu'].value
        assert s['mmcs']>.98, s
    assert fvu['plain'][1]>1.2*fvu['plain'][0] and fvu['multi'][1]<.55*fvu['plain'][1] and fvu['multi'][1]<fvu['multi'][0]<1.1*fvu['plain'][0], fvu

def test_multi_topk_settings(tmp_path):
    from sparsenb.dictionary import load_dictionary
    make = dictionaries['topk']
    assert 'multi_k' not in make(8, 32, k=4).cfg and make(8, 32, k=10, multi_coef=.1).multi_k==32
    sae = make(8, 32, k=4, multi_k=9, multi_coef=.1)
    back = load_dictionary(sae.save(tmp_path/'d'))
    assert (back.multi_k, back.multi_coef, back.cfg)==(9, .1, sae.cfg)
    for bad in (4, 33, 5.5):
        with pytest.raises(ValueError, match='multi_k must be a whole number above k=4 and at most d_sae=32'): make(8, 32, k=4, multi_k=bad, multi_coef=.1)
    with pytest.raises(ValueError, match='above k=32'): make(8, 32, k=32, multi_coef=.1)
    with pytest.raises(ValueError, match='multi_coef must be at least 0, got -1'): make(8, 32, k=4, multi_coef=-1)

# ---- L1 on the tree ----

class TowardsL0(Callback):
    "Moves the penalty's weight a little after every step until as many features are used as are there"
    def __init__(self, target): self.target = target
    def after_step(self, run, out): run.dictionary.l1_coef *= 1.01 if out.parts['l0']>self.target else .99

@pytest.mark.parametrize('seed', [0, 1, 2])
def test_l1_leaks_parents_into_children(seed):
    "At the true sparsity (1.36) a penalty on the sum prefers one mixed feature to two: matching pursuit's leak is at most .02"
    bed = testbeds['tree'](seed=seed)
    sae = dictionaries['relu'](20, 20, seed=seed, l1_coef=.1)
    fit(sae, bed, 1500*200, 200, lr=4e-3, callbacks=[TowardsL0(1.4)])
    s = bed.score(sae)
    assert s['leak'].value>=.4 and 1.3<s['l0'].value<1.5 and s['fvu'].value<.15, s

# ---- JumpReLU ----

def test_jumprelu_gradient_is_that_of_the_expectation():
    "Against central differences of the mean loss, within 2 %"
    from sparsenb.dictionaries.jumprelu import jump
    g = torch.Generator().manual_seed(0)
    z = .5*torch.randn(200_000, 1, generator=g).abs() + .1
    x = z + .1*torch.randn(z.shape, generator=g)
    def loss(t):
        f,on = jump(z, t, .04)
        return ((x-f).square() + .05*on).mean()
    t = torch.tensor([.4], requires_grad=True)
    loss(t).backward()
    central = (loss(t+.02)-loss(t-.02)).item()/.04
    assert abs(t.grad.item()/central-1)<.02 and abs(central-.146)<.005, (t.grad.item(), central)

def test_jumprelu_gradients_by_hand():
    "The window lies around z, also below the threshold; only the variant of 2025 sends it on to z"
    from sparsenb.dictionaries.jumprelu import jump
    z0 = torch.tensor([[.2], [.37], [.45], [.9]], dtype=torch.float64) # outside, inside below, inside above, outside
    for through in (False, True):
        z,theta = z0.clone().requires_grad_(),torch.tensor([.4], dtype=torch.float64, requires_grad=True)
        f,on = jump(z, theta, .2, through)
        assert f.flatten().tolist()==[0, 0, .45, .9] and on.flatten().tolist()==[0, 0, 1, 1]
        a,b = 3.,.7
        (a*f + b*on).sum().backward()
        at = torch.tensor([0, 1, 1, 0.])*(a*.4+b)/.2
        torch.testing.assert_close(theta.grad.float(), -at.sum()[None])
        torch.testing.assert_close(z.grad.flatten().float(), a*torch.tensor([0, 0, 1., 1]) + through*at)

@pytest.fixture(scope='module')
def jumprelu_score(): return g1('jumprelu', l0_coef=1.5)[1]

def test_jumprelu_comes_to_the_true_sparsity(jumprelu_score):
    "What it does reach; the next test is what it should"
    s = jumprelu_score
    assert s['mmcs']>=.96 and s['fvu']<=.105 and abs(s['l0']-4)<.4 and s['precision']>.87, s

@pytest.mark.xfail(strict=True, reason='from a random start MMCS .983, recovery .906, FVU .089: a local optimum, which a plain autograd version ends in as well (MMCS .96-.99 in 25 runs)')
def test_jumprelu_reaches_the_published_ground_truth(jumprelu_score):
    s = jumprelu_score
    assert s['mmcs']>=.99 and s['recovered_0.9']>=.97 and s['fvu']<=.07, s

def test_jumprelu_keeps_the_published_ground_truth():
    "Started at the truth it stays, with the published scores: the optimum is the right one, the way to it is not found"
    bed = testbeds['superposition']()
    sae = dictionaries['jumprelu'](64, 128, l0_coef=1.5)
    with torch.no_grad(): sae.W_dec.copy_(bed.features); sae.W_enc.copy_(bed.features.t())
    fit(sae, bed, 1500*512, 512, lr=4e-3)
    s = {k: v.value for k,v in bed.score(sae.eval()).items()}
    assert s['mmcs']>=.99 and s['recovered_0.9']>=.99 and s['fvu']<=.07 and abs(s['l0']-3.8)<.1 and abs(s['shrinkage']-1)<.01, s

def test_jumprelu_tanh_reaches_pre_activations_and_learns():
    x = testbeds['superposition']().sample(256).x
    kw = dict(width=2., threshold=.1, pre_coef=.1)
    def grads(**more):
        sae = dictionaries['jumprelu'](64, 128, **kw, **more); sae.progress = 1.
        sae.step(x).loss.backward()
        return sae
    assert not torch.allclose(grads(penalty='tanh', l0_coef=0.).b_enc.grad, grads(penalty='tanh', l0_coef=5.).b_enc.grad)
    torch.testing.assert_close(grads(l0_coef=0.).b_enc.grad, grads(l0_coef=5.).b_enc.grad) # a plain count leaves z alone
    _,s = g1('jumprelu', 800, penalty='tanh', width=2., threshold=.1, l0_coef=1.5, l0_warmup=1.)
    assert s['mmcs']>.85 and s['fvu']<.4 and abs(s['shrinkage']-1)<.02, s

# ---- Gated ----

def test_gated_finds_features_without_shrinking():
    _,s = g1('gated', l1_coef=2.)
    assert s['mmcs']>=.95 and s['recovered_0.9']>=.9 and s['fvu']<.09 and 5<s['l0']<16, s

def test_gated_stops_both_gradients():
    "The gate's own losses leave decoder, its bias and the strengths alone; the shared direction feels them"
    sae = dictionaries['gated'](8, 24, l1_coef=3.); sae.progress = 1.
    with torch.no_grad(): sae.r_mag.uniform_(-.5, .5); sae.b_mag.uniform_(-.2, .2); sae.b_dec.uniform_(-1, 1)
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
    names = [n for n,_ in sae.named_parameters()]
    grads = lambda loss: dict(zip(names, torch.autograd.grad(loss, list(sae.parameters()))))
    pi = (x-sae.b_dec)@sae.W_enc
    f = (pi+sae.b_enc>0)*(sae.r_mag.exp()*pi+sae.b_mag).relu()
    rec = (f@sae.W_dec+sae.b_dec-x).square().sum()/128
    gate = (pi+sae.b_enc).relu()
    whole = rec + 3*gate.sum()/128 + (gate@sae.W_dec.detach()+sae.b_dec.detach()-x).square().sum()/128
    ours,want = grads(sae.step(x).loss),grads(whole)
    for n in names: torch.testing.assert_close(ours[n], want[n], rtol=1e-3, atol=1e-4, msg=n)

# ---- Matryoshka ----

def test_matryoshka_leaks_less_than_batch_topk():
    "Three data sets: parents stay out of their children's features, at a higher error"
    leak,fvu = ({n: [] for n in ('batch_topk', 'matryoshka')} for _ in range(2))
    for seed in range(3):
        bed = testbeds['tree'](seed=seed)
        for name,kw in (('batch_topk', {}), ('matryoshka', dict(prefixes=(3,)))):
            s = bed.score(trained(name, bed, 1200, k=2, seed=seed, **kw))
            leak[name].append(s['leak'].value); fvu[name].append(s['fvu'].value)
    mean = lambda v: sum(v)/len(v)
    assert mean(leak['matryoshka'])<=.05 and mean(leak['batch_topk'])>=mean(leak['matryoshka'])+.05, leak
    assert mean(fvu['batch_topk'])<mean(fvu['matryoshka'])<.08, fvu

def test_matryoshka_loss_is_the_mean_of_the_prefixes():
    sae = dictionaries['matryoshka'](8, 20, k=3, prefixes=[2, 7]).train()
    with torch.no_grad(): sae.b_dec.uniform_(-1, 1)
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    out = sae.step(x)
    f = out.codes.dense(20)
    want = sum((f[:,:m]@sae.W_dec[:m]+sae.b_dec-x).square().sum(1).mean() for m in (2, 7, 20))/3
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(out.parts['nested'], want.detach())
    sae.eval()
    for m,y in zip((2, 7, 20), sae.decode_prefixes(x)): torch.testing.assert_close(y, sae.decode(sae.encode(x)*(torch.arange(20)<m)))

def test_matryoshka_sampled_prefixes():
    from sparsenb.dictionaries.matryoshka import sample_prefixes
    torch.manual_seed(0)
    many = [sample_prefixes(1000, 1, .5)[0] for _ in range(4000)]
    assert min(many)==1 and max(many)<=1000
    for t in (10, 100): # P(m >= t) of a Pareto law of power .5 cut at 1000
        want = (t**-.5-1000**-.5)/(1-1000**-.5)
        assert abs(sum(m>=t for m in many)/4000-want)<.03
    bed = testbeds['superposition']()
    a,b = (dictionaries['matryoshka'](64, 128, k=4, n_sampled=4) for _ in range(2))
    for sae in (a, b): fit(sae, bed, 60*512, 512)
    torch.testing.assert_close(a.W_dec, b.W_dec, rtol=0, atol=0) # drawn from the generator that `fit` seeds

def test_matryoshka_refuses_prefixes_out_of_order():
    make = dictionaries['matryoshka']
    for bad in ([8, 4], [0, 4], [4, 4], [4, 17], [2.5]):
        with pytest.raises(ValueError, match='prefixes must be whole numbers that rise from at least 1 to at most d_sae=16'): make(8, 16, k=2, prefixes=bad)
    with pytest.raises(ValueError, match='not both'): make(8, 16, k=2, prefixes=[4], n_sampled=2)
    assert make(8, 16, k=2, prefixes=[4, 16]).prefixes==[4, 16] and make(8, 16, k=2).prefixes[-1]==16

# ---- data there is nothing in ----

@pytest.mark.parametrize('name', ['batch_topk', 'jumprelu', 'gated', 'matryoshka'])
def test_zeros_and_constants_give_finite_steps(name):
    for x in (torch.zeros(32, 8), torch.ones(32, 8)):
        sae = dictionaries[name](8, 32, **(dict(k=4) if 'k' in dictionaries[name](8, 32).cfg else {}))
        out = sae.step(x); out.loss.backward()
        assert out.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())
