"k_sparse and matching pursuit: against plain autograd, against their definitions, and on known ground truth"
import pytest, torch
import torch.nn.functional as F
from sparsenb.core import dictionaries, testbeds as beds
from sparsenb.dictionary import Codes, Stats, load_dictionary
from sparsenb.dictionaries.matching_pursuit import pursue
from sparsenb.train import fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)

def data(n, d=8, seed=0): return 2 + torch.randn(n, 12, generator=torch.Generator().manual_seed(seed)).relu()@torch.randn(12, d, generator=torch.Generator().manual_seed(9))
def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)

# ---- both: one matrix in two tensors ----

@pytest.mark.parametrize('name', ['k_sparse', 'matching_pursuit'])
def test_the_tie_survives_training_folding_and_saving(name, tmp_path):
    d,x = dictionaries[name](8, 32),data(4096)
    fit(d, x, 50*256, 256)
    torch.testing.assert_close(d.W_enc.t(), d.W_dec, **exact)
    folded = load_dictionary(d.fold().save(tmp_path/'d')).train()
    assert folded.scale==1 and abs(folded.tie-1)>.01
    torch.testing.assert_close(folded(x), d(x), rtol=1e-3, atol=1e-3)
    folded.step(x).loss.backward()
    torch.testing.assert_close(folded.W_enc.t(), folded.tie*folded.W_dec, rtol=1e-5, atol=1e-6)
    folded.before_step(); assert folded.W_enc.grad is None
    with torch.no_grad(): folded.W_dec += .01*torch.randn(32, 8)
    folded.after_step()
    torch.testing.assert_close(folded.W_enc.t(), folded.tie*folded.W_dec, **exact) # trained on after folding, it stays tied

@pytest.mark.parametrize('name', ['k_sparse', 'matching_pursuit'])
def test_with_another_output_nothing_is_tied(name):
    d,x = dictionaries[name](8, 32, d_out=5),data(4096)
    run = fit(d, (x, x[:,:5]*2), 300*256, 256, lr=3e-3)
    assert not torch.allclose(d.W_enc.t()[:,:5], d.W_dec) and run.history['fvu'][-1]<.2, run

# ---- k_sparse ----

def test_k_sparse_keeps_negative_values_and_the_k_largest():
    d,x = dictionaries['k_sparse'](8, 16, k=12),data(50)
    z = d.pre_acts(x)
    v,i = z.topk(12)
    assert (v<0).any()
    torch.testing.assert_close(d.encode(x), Codes(i, v).dense(16))

def test_k_sparse_support_at_test_time_and_at_the_start():
    d,x = dictionaries['k_sparse'](8, 32, k=3, alpha=2.5, k_start=20),data(256)
    places = lambda: d.codes(x).idx.shape[1]
    d.progress = 0.; assert places()==20 and d.step(x).parts['l0']==20
    d.progress = .9; assert places()==3
    assert d.eval().codes(x).idx.shape[1]==8 # round(7.5) to even
    for kw,match in ((dict(k=0), 'k must be a whole number in 1..d_sae=32, got 0'), (dict(k=True), 'got True'), (dict(k=33), 'got 33'), (dict(k=8, alpha=.5), 'alpha must be at least 1'),
                     (dict(k=8, alpha=4.5), 'alpha[*]k at most d_sae=32, got 4.5'), (dict(k=8, k_start=7), 'k_start must be at least k=8, got 7'), (dict(k=8, k_start=40), 'k_start must be a whole number in 1..d_sae=32, got 40')):
        with pytest.raises(ValueError, match=match): dictionaries['k_sparse'](8, 32, **kw)

def test_k_sparse_finds_the_true_features():
    "Narrowing support finds them (.989 here, .975 without); a wider one at test time rebuilds better, far too wide worse again"
    bed = beds['superposition']()
    d = dictionaries['k_sparse'](64, 128, k=4, k_start=16)
    fit(d, bed, 1200*512, 512, lr=4e-3)
    d.eval(); e = bed.score(d)
    assert e['mmcs'].value>=.97 and e['recovered_0.9'].value>=.94 and abs(e['l0'].value-3.95)<.05 and e['dead'].value==0, e
    d.alpha = 1.5; wider = bed.score(d)['fvu'].value
    d.alpha = 3.; widest = bed.score(d)['fvu'].value
    assert wider<.92*e['fvu'].value<widest, (e['fvu'].value, wider, widest)

# ---- matching pursuit ----

def by_hand(x, D, steps, threshold):
    "One row, as the paper's algorithm is written; atoms of any length"
    r,f = x,torch.zeros(len(D), dtype=x.dtype)
    for _ in range(steps):
        s,j = (D@r).relu().max(0)
        if r.norm()<threshold or s==0: break
        again = bool(f[j]!=0)
        f,r = f + s*torch.eye(len(D), dtype=x.dtype)[j], r - s*D[j]
        if again: break
    return r,f

@pytest.mark.parametrize('steps,threshold', [(1, 0.), (6, 0.), (20, .4)])
def test_pursuit_and_its_gradient_are_those_of_the_unrolled_loop(steps, threshold):
    g = torch.Generator().manual_seed(0)
    x,D = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((40, 6), (20, 6)))
    x[7] = 0; D = (F.normalize(D, dim=1)*(.8+.3*torch.rand(20, 1, generator=g, dtype=torch.float64))).requires_grad_(); x.requires_grad_()
    r,val,idx = pursue(x, D.t(), D, steps, threshold, torch.empty(7, 20, dtype=torch.float64))
    R,f = (torch.stack(t) for t in zip(*(by_hand(a, D, steps, threshold) for a in x)))
    torch.testing.assert_close(r, R); torch.testing.assert_close(Codes(idx, val).dense(20), f)
    torch.testing.assert_close(Codes(idx, val).l0(), (f!=0).sum(1).float())
    loss = lambda r,f: r.square().sum() + f.pow(3).sum()
    for a,b in zip(torch.autograd.grad(loss(r, val), (x, D)), torch.autograd.grad(loss(R, f), (x, D))): torch.testing.assert_close(a, b)

def test_choosing_an_atom_again_adds_and_ends():
    "A short atom leaves half of what it explains: the second choice of it must not overwrite the first"
    x,D = torch.tensor([[4., 0, 0]]),torch.tensor([[.5, 0, 0], [0, 1, 0]])
    r,val,idx = pursue(x, D.t(), D, 8, 0., torch.empty(4, 2))
    torch.testing.assert_close(Codes(idx, val).dense(2), torch.tensor([[3.5, 0]])); torch.testing.assert_close(r, torch.tensor([[2.25, 0, 0]]))

def test_steps_are_chosen_when_it_is_used():
    d,x = dictionaries['matching_pursuit'](8, 32, steps=5),data(300)
    d.init_from(stats(x)); d.eval()
    error = [(d(x, steps=n)-x).square().sum().item() for n in (1, 2, 5, 16)]
    assert error==sorted(error, reverse=True) and error[3]<.5*error[0]
    for n in (1, 3, 9): assert d.codes(x, steps=n).idx.shape[1]<=n and torch.equal(d.codes(x, steps=9).idx[:,:1], d.codes(x, steps=n).idx[:,:1])
    assert torch.equal(d.codes(x).val, d.codes(x, steps=5).val) and torch.equal(d.codes(x[:1]).val[0].nonzero(), d.codes(x).val[0].nonzero()) # batch mates change nothing
    for n in (0, 33, 2.5):
        with pytest.raises(ValueError, match=f'steps must be a whole number in 1..d_sae=32, got {n}'): d.encode(x, steps=n)
    with pytest.raises(ValueError, match='threshold must be at least 0, got -1'): dictionaries['matching_pursuit'](8, 32, threshold=-1)

def test_nothing_to_explain_gives_empty_codes():
    d = dictionaries['matching_pursuit'](8, 32)
    assert d.codes(torch.zeros(3, 8)).val.count_nonzero()==0 and (d(torch.zeros(3, 8))==0).all()
    out = d.step(torch.zeros(3, 8)); out.loss.backward()
    assert out.parts['l0']==0 and d.W_dec.grad.count_nonzero()==0
    assert not {'b_enc', 'b_dec'}&{n for n,_ in d.named_parameters()} # no biases

@pytest.mark.parametrize('correlated', [False, True])
def test_matching_pursuit_recovers_the_tree(correlated):
    "Every level, no leak, and the true number of features although `steps` allows twenty"
    bed = beds['tree'](correlated=correlated)
    d = dictionaries['matching_pursuit'](20, 20, steps=20, threshold=.1)
    fit(d, bed, 1700*200, 200)
    e = bed.score(d)
    assert min(e[k].value for k in ('parents', 'children', 'singletons'))>=.99 and abs(e['leak'].value)<=.02 and abs(e['l0'].value-1.36)<=.05 and e['fvu'].value<1e-3, e
