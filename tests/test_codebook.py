"Codebooks: the gradient that goes straight through, replacement of unused codes, codes in a model, found and forced"
import copy
import pytest, torch
import torch.nn.functional as F
from torch import nn
from sparsenb.core import UnknownName, dictionaries
from sparsenb.dictionary import Stats
from sparsenb.hooks import edited, replaced
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
Codebook = dictionaries['codebook']
gen = lambda seed=0: torch.Generator().manual_seed(seed)

def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)
def data(n=512, d=8, seed=0): return 2 + 3*torch.randn(n, d, generator=gen(seed))

def made(d_out=None, **kw):
    b = Codebook(8, 32, d_out=d_out, **kw)
    b.init_from(stats(data()), *([stats(data(d=d_out, seed=1))] if d_out else []))
    return b

# ---- what it computes ----

@pytest.mark.parametrize('combine', ['mean', 'sum'])
@pytest.mark.parametrize('layer_norm', [True, False])
def test_the_nearest_by_cosine(combine, layer_norm):
    "Codes and output against the definition, written out with torch's own LayerNorm"
    b,x = made(k=3, combine=combine, layer_norm=layer_norm),data(200, seed=3)
    u = F.layer_norm(x*b.scale, (8,), b.gain, b.shift) if layer_norm else x*b.scale
    idx = F.cosine_similarity(u[:,None], b.W_dec[None], dim=2).topk(3, dim=1).indices
    o = b.W_dec[idx].mean(1) if combine=='mean' else b.W_dec[idx].sum(1)
    torch.testing.assert_close(b.codes(x).idx.sort(1).values, idx.sort(1).values, **exact)
    torch.testing.assert_close(b(x), o/b.scale)
    assert b.codes(x).val.unique().tolist()==[1 if combine=='sum' else pytest.approx(1/3)]
    torch.testing.assert_close(b.W_enc, F.normalize(b.W_dec, dim=1).t())
    assert not b.W_enc.requires_grad and 'W_enc' not in dict(b.named_parameters())

@pytest.mark.parametrize('kw', [dict(), dict(layer_norm=False), dict(combine='sum'), dict(d_out=5), dict(d_out=5, layer_norm=False, combine='sum')])
def test_fold_in_every_variant(kw):
    b,x = made(k=2, **kw).eval(),data(300, seed=4)
    f = b.fold()
    torch.testing.assert_close(f(x), b(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(f.encode(x), b.encode(x))
    torch.testing.assert_close(b.decode(b.encode(x)), b(x), rtol=1e-4, atol=1e-4)
    assert (f.scale, f.scale_out)==(1, 1) and b.scale!=1
    if not kw.get('d_out'): # its own loss in a model: the same share of what it stands for
        (a,la),(c,lc) = b.through(x),f.through(x)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4); torch.testing.assert_close(la/b.scale**2, lc, rtol=1e-3, atol=1e-6)

def test_refuses():
    with pytest.raises(ValueError, match='k must be a whole number in 1..d_sae=32, got 33'): Codebook(8, 32, k=33)
    with pytest.raises(ValueError, match="combine must be 'mean' or 'sum', got 'max'"): Codebook(8, 32, combine='max')
    with pytest.raises(ValueError, match='replace_every must be at least 0, got -1'): Codebook(8, 32, replace_every=-1)

# ---- gradients ----

def test_input_gradient_is_the_upstream_one():
    "To the bit, without the normalisation; with it, what LayerNorm makes of it"
    x,up = data(64, seed=5).requires_grad_(),torch.randn(64, 8, generator=gen(6))
    b = Codebook(8, 32, k=2, layer_norm=False) # scale 1: in the user's units
    for call in (b, lambda x: b.through(x)[0]):
        torch.testing.assert_close(torch.autograd.grad(call(x), x, up)[0], up, **exact)
    b = made(k=2)
    u = F.layer_norm(x*b.scale, (8,), b.gain, b.shift)/b.scale
    for a,c in zip(torch.autograd.grad(b(x), (x, b.gain, b.shift), up), torch.autograd.grad(u, (x, b.gain, b.shift), up)): torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('combine', ['mean', 'sum'])
def test_code_gradient_is_that_of_task_and_own_loss(combine):
    "Against the formula by hand and against plain autograd on the dense codes"
    b,x = made(k=3, combine=combine).double(),data(100, seed=7).double()
    target = torch.randn(100, 8, generator=gen(8), dtype=torch.float64)
    out,own = b.through(x)
    ((out-target).pow(4).sum() + own).backward()
    f,u = b.encode(x).detach(),b.read(x*b.scale).detach()
    o = f@b.W_dec.detach()
    hand = f.t()@(4*(o/b.scale-target).pow(3)/b.scale + 2*(o-u)/100)
    W = b.W_dec.detach().clone().requires_grad_()
    (((f@W)/b.scale-target).pow(4).sum() + (f@W-u).square().sum()/100).backward()
    torch.testing.assert_close(b.W_dec.grad, hand); torch.testing.assert_close(b.W_dec.grad, W.grad)
    b.zero_grad(); b.through(x)[1].backward()
    assert b.gain.grad is None or not b.gain.grad.any(), 'its own loss moves codes alone'

def test_gradient_crosses_replaced():
    "Through `replaced` the task's gradient reaches the layers before the codebook, and the codes"
    torch.manual_seed(0)
    net,b = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)),made(k=2)
    x = torch.randn(10, 4)
    with replaced(net, '0', b): net(x).square().sum().backward()
    assert net[0].weight.grad.abs().sum()>0 and b.W_dec.grad.abs().sum()>0 and b.gain.grad.abs().sum()>0

# ---- codes that are not used ----

def clusters(n=10_000, seed=0):
    g = gen(seed)
    C,y = torch.randn(64, 16, generator=g),torch.randint(64, (n,), generator=g)
    return C[y] + .3*torch.randn(n, 16, generator=g),y

def purity(b, x, y):
    idx = b.eval().codes(x).idx[:,0]
    table = torch.zeros(64, 64).index_put_((idx, y), torch.ones(len(x)), accumulate=True)
    return int((table.sum(1)>0).sum()),(table.amax(1).sum()/len(x)).item()

def test_clusters_are_found():
    x,y = clusters()
    b = Codebook(16, 64, k=1, replace_every=100)
    fit(b, x, 1000*256, 256)
    used,p = purity(b, x, y)
    assert used==64 and p>=.85, (used, p)

def test_replacement_brings_codes_back():
    "Three quarters of the codes start where no data are: they stay unused without replacement, and all are used with it"
    x,y = clusters()
    def train(every):
        b = Codebook(16, 64, k=1, replace_every=every)
        b.init_from(stats(x)); b.n_seen += 1 # so that `fit` does not place codes anew
        with torch.no_grad(): b.W_dec[16:] = b.W_dec[:1]*torch.linspace(1.1, 2, 48)[:,None] # on one ray: all but one tie behind the first
        fit(b, x, 600*256, 256)
        return purity(b, x, y)
    (a,pa),(b,pb) = train(0),train(100)
    assert a<=24 and pa<.4 and b==64 and pb>=.8, (a, pa, b, pb)

def test_replacement_takes_rows_of_the_batch_at_the_right_step():
    b,x = made(k=1, replace_every=3).train(),data(64, seed=9)
    with torch.no_grad(): b.W_dec[5:] = -1000*x.mean(0)
    before = b.W_dec.detach().clone()
    for _ in range(3): b.step(x)
    assert torch.equal(b.W_dec, before) and not b.used.all()
    lost = ~b.used
    b.step(x)
    rows = {tuple(r.tolist()) for r in x*b.scale}
    assert all(tuple(r.tolist()) in rows for r in b.W_dec[lost]) and torch.equal(b.W_dec[~lost], before[~lost])
    now = b.W_dec.detach().clone()
    for _ in range(7): b.eval().step(x)
    assert torch.equal(b.W_dec, now) and b.steps==4, 'only training counts'

def test_resumes_exactly_across_replacements(tmp_path):
    class Break(Callback):
        def after_step(self, run, out):
            if run.step==47: raise KeyboardInterrupt
    x = data(2000, seed=1)
    def train(path, **kw):
        b = Codebook(8, 128, k=1, replace_every=10) # more codes than rows of a batch: some go unused all the time
        return b,fit(b, x, 80*64, 64, path=path, checkpoint_every=15, **kw)
    a,run = train(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', callbacks=[Break()])
    b,again = train(tmp_path/'b')
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)
    assert (run.history['loss']==again.history['loss']).all() and a.steps==80

def test_pairs_of_codes_learn_a_map():
    "With d_out: keys follow x, codes write y"
    x = clusters()[0]
    y = (x@torch.randn(16, 6, generator=gen(2))).relu()
    b = Codebook(16, 64, d_out=6, k=1)
    run = fit(b, (x, y), 600*256, 256)
    assert run.rows[-1]['fvu']<.35 and run.rows[-1]['keys']<.5*16, run.rows[-1]

# ---- in a model ----

def next_of(i): return (5*i+3)%16
def texts(n, g, length=9):
    ids = [torch.randint(16, (n,), generator=g)]
    for _ in range(length-1): ids.append(next_of(ids[-1]))
    return torch.stack(ids, 1)
def hooks(m): return sum(len(x._forward_hooks)+len(x._forward_pre_hooks) for x in m.modules())

@pytest.fixture(scope='module')
def tuned():
    torch.manual_seed(0)
    g,net = gen(),nn.Sequential(nn.Embedding(16, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 16))
    was = copy.deepcopy(net.state_dict())
    books = {'1': Codebook(12, 24, k=1, replace_every=20)}
    from sparsenb.dictionaries.codebook import finetune
    log = finetune(net, books, (texts(64, g) for _ in range(300)), lr=1e-2)
    return net,books,log,was,g

def test_model_and_codes_learn_together(tuned):
    net,books,log,was,g = tuned
    ids = texts(200, g)
    with edited(net, books): right = (net(ids).argmax(-1)==next_of(ids)).float().mean()
    assert right>.99 and log[-1]['task']<.1*log[0]['task'] and len(log)==300
    assert all(not torch.equal(v, was[k]) for k,v in net.state_dict().items()), 'the model was trained too'
    assert hooks(net)==0 and books['1'].steps==300 and books['1'].n_seen==300*64*8

def test_first_codes_are_what_the_model_holds():
    "Rows of the site as it is without codebooks, although the training runs on them"
    from sparsenb.dictionaries.codebook import finetune
    torch.manual_seed(0)
    net,b,ids = nn.Sequential(nn.Embedding(16, 12), nn.Linear(12, 16)),Codebook(12, 16, k=1),texts(8, gen())
    rows = net[0](ids).detach().flatten(0, 1)
    finetune(net, {'0': b}, [ids], lr=0.)
    gap = (b.W_dec.detach()[:,None]-rows*b.scale).norm(dim=2).amin(1)
    assert gap.max()<1e-5 and b.used.any()

def test_finetune_repeats_and_leaves_the_global_generator(tuned):
    from sparsenb.dictionaries.codebook import finetune
    def once():
        torch.manual_seed(0)
        net,books = nn.Sequential(nn.Embedding(16, 12), nn.Linear(12, 16)),{'0': Codebook(12, 40, k=1, replace_every=5)}
        before = torch.get_rng_state()
        log = finetune(net, books, (texts(8, g) for g in map(gen, range(30))), seed=3)
        assert torch.equal(before, torch.get_rng_state())
        return log,books['0'].W_dec.detach()
    (a,Wa),(b,Wb) = once(),once()
    assert a==b and torch.equal(Wa, Wb)

def test_inserted_refuses_and_cleans_up(tuned):
    from sparsenb.dictionaries.codebook import finetune, inserted
    net,books,*_ = tuned
    with pytest.raises(ValueError, match=r"for '1' writes another activation \(d_out=5\)"), inserted(net, {'1': Codebook(12, 24, d_out=5)}): pass
    with pytest.raises(UnknownName), inserted(net, {'9': books['1']}): pass
    bad = copy.deepcopy(net)
    with torch.no_grad(): bad[3].bias[0] = float('nan')
    with pytest.raises(FloatingPointError, match='the loss is nan of the task'): finetune(bad, {'1': copy.deepcopy(books['1'])}, [texts(4, gen())])
    assert hooks(net)==hooks(bad)==0

def test_forced_codes_decide(tuned):
    "Forcing the code of a token makes the model go on from it, where it is forced and nowhere else"
    from sparsenb.dictionaries.codebook import find_codes, force
    net,books,_,_,g = tuned
    ids,b = texts(50, g),books['1']
    with torch.no_grad(): x = net[1](net[0](ids))
    with edited(net, books): plain = net(ids)
    for token in (0, 7):
        t = find_codes(b, x, ids==token)
        assert t.column('precision')[0]==1 and t.column('recall')[0]>.5
        with edited(net, {'1': force(b, t.column('code')[0], positions=[2, -1], batch=range(10))}): got = net(ids)
        on = torch.zeros(ids.shape, dtype=torch.bool); on[:10,2] = on[:10,-1] = True
        assert (got.argmax(-1)[on]==next_of(token)).all() and torch.equal(got[~on], plain[~on])

def test_forced_codes_are_among_the_chosen():
    from sparsenb.dictionaries.codebook import force
    b,x = made(k=4),data(40, seed=2)
    own,ids = b.codes(x).idx,torch.tensor([3, 17])
    idx = b.pick(b.read(b.scaled(x)), ids).idx
    assert ((idx==3).sum(1)==1).all() and ((idx==17).sum(1)==1).all()
    rest = [set(r)-{3, 17} for r in idx.tolist()]
    assert all(len(r)==2 and r<=set(o) for r,o in zip(rest, own.tolist())), 'the other places go to the nearest'
    torch.testing.assert_close(force(b, ids).fn(x), b.W_dec[idx].mean(1)/b.scale)
    for bad,msg in (([1, 2, 3, 4, 5], r'1..k=4 codes can be forced, got 5'), ([], 'got 0'), ([32], r'codes are numbered 0..31, got \[32\]')):
        with pytest.raises(ValueError, match=msg): force(b, bad)

def test_find_codes_counts_by_hand():
    from sparsenb.dictionaries.codebook import find_codes
    class Claims: # codes of six positions, two each
        k,d_sae = 2,5
        def codes(self, x): return (torch.tensor([[0, 1], [0, 2], [0, 3], [1, 3], [1, 4], [0, 4]]), None)
    Claims.codes = lambda self, x: type('C', (), dict(idx=torch.tensor([[0, 1], [0, 2], [0, 3], [1, 3], [1, 4], [0, 4]])))
    t = find_codes(Claims(), None, torch.tensor([1, 1, 0, 0, 0, 0]).bool())
    got = {r[0]: (r[1][0], r[2][0], r[4]) for r in t.rows}
    assert got=={0: (.5, 1., 4), 2: (1., .5, 1), 1: (pytest.approx(1/3), .5, 3)} and [r[0] for r in t.rows][-1]==1
    with pytest.raises(ValueError, match='none of 6 positions matches'): find_codes(Claims(), None, torch.zeros(6).bool())

def test_forced_while_a_language_model_generates():
    "At a site of the bundled model, with its key-value cache"
    from sparsenb.dictionaries.codebook import force, start_from
    from sparsenb.models import load_model
    model,b = load_model('stdlib-4l'),Codebook(256, 64, k=1)
    ids,_ = model.tokens('def read(path):\n    with open(path) as f: return f.read()\n'*4)
    start_from(model, {'resid_post.2': b}, ids)
    clean = model.generate('import os', max_new_tokens=6)
    with edited(model, {'resid_post.2': b.eval()}): on_codes = model.generate('import os', max_new_tokens=6)
    outs = []
    for c in (3, 40):
        with edited(model, {'resid_post.2': force(b, c)}): outs.append(model.generate('import os', max_new_tokens=6))
    assert outs[0]!=outs[1] and on_codes not in outs and model.generate('import os', max_new_tokens=6)==clean
