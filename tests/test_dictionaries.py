"Contracts of every registered dictionary; TopK and ReLU against plain autograd and known ground truth"
import copy, errno, itertools, json
import numpy as np, pytest, torch
from types import SimpleNamespace
import torch.nn.functional as F
from sparsenb.core import UnknownName, dictionaries
from sparsenb.dictionary import Codes, Dictionary, Pattern, Stats, geometric_median, grouped_topk, load_dictionary, sparse_decode, sparse_encode
from sparsenb.train import fit

torch.set_num_threads(1)
D_IN,D_SAE = 8,32
exact = dict(rtol=0, atol=0)

def data(n=512, d=D_IN, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 5 + 3*torch.randn(n, 12, generator=g).relu()@torch.randn(12, d, generator=g)

def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)

@pytest.fixture(params=dictionaries.names())
def make(request):
    "A constructor of the method, with the data's scale and mean already set"
    def make(d_out=None, seed=0, **kw):
        d = dictionaries[request.param](D_IN, D_SAE, d_out=d_out, seed=seed, **kw)
        d.init_from(stats(data()), *([stats(data(d=d_out, seed=1))] if d_out else []))
        return d
    make.cls = dictionaries[request.param]
    return make

# ---- the contract ----

def test_builds_from_two_numbers_and_its_cfg(make):
    a = make.cls(D_IN, D_SAE)
    b = make.cls(**a.cfg)
    assert a.cfg==b.cfg and make.cls.name in dictionaries
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)
    other = make.cls(D_IN, D_SAE, seed=1)
    assert torch.equal(other.W_dec, a.W_dec)!=make.cls.random_start

def test_says_which_argument_sets_how_many_features_are_used(make):
    if make.cls.sparsity is None: return
    name,sign = make.cls.sparsity
    assert name in make.cls(D_IN, D_SAE).cfg and sign in (1, -1)

def test_weights_have_the_agreed_shapes(make):
    d = make()
    assert d.W_enc.shape==(D_IN, D_SAE) and d.W_enc.t().is_contiguous() and d.W_dec.shape==(D_SAE, D_IN)
    assert d.b_enc.shape==(D_SAE,) and d.b_dec.shape==(D_IN,) and copy.deepcopy(d).W_enc.t().is_contiguous()

def test_dense_and_sparse_forms_agree(make):
    d,x = make().eval(),data(6).view(2, 3, D_IN)
    f,c = d.encode(x),d.codes(x)
    assert f.shape==(2, 3, D_SAE) and c.idx.dtype==torch.int64 and c.idx.shape==c.val.shape
    torch.testing.assert_close(c.dense(D_SAE), f)
    torch.testing.assert_close(d.decode(f), d(x))
    torch.testing.assert_close(d.decode_codes(c), d(x))

def test_step(make):
    d,x = make(),data(64)
    out = d.step(x)
    assert out.x_hat.shape==x.shape and not out.x_hat.requires_grad and not out.codes.val.requires_grad
    mse = ((out.x_hat-x)*d.scale).square().sum(1).mean()
    torch.testing.assert_close(out.parts['mse'], mse, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.parts['l0'].float(), out.codes.l0().mean())
    torch.testing.assert_close(d.decode_codes(out.codes), out.x_hat, rtol=1e-4, atol=1e-4)
    assert list(d.step(x).parts)==list(out.parts)

def test_gradients_reach_what_is_trained(make):
    "Those of both matrices are not zero; what is frozen has none; where all is frozen the loss is a plain number"
    d = make()
    out = d.step(data(64))
    assert out.loss.ndim==0 and out.loss.requires_grad==any(p.requires_grad for p in d.parameters())
    if out.loss.requires_grad: out.loss.backward()
    for n,p in d.named_parameters():
        if p.requires_grad: assert p.grad is not None and p.grad.isfinite().all() and (p.grad.abs().sum()>0 or n not in ('W_enc', 'W_dec')), n
        else: assert p.grad is None, n

def test_book_keeping_only_while_training(make):
    d,x = make(dead_after=100),data(64)
    out = d.step(x)
    fired = out.codes.dense(D_SAE).ne(0).any(0)
    assert d.n_seen==64 and (d.idle[fired]==0).all() and (d.idle[~fired]==64).all()
    d.step(x); assert torch.equal(d.dead, ~fired)
    d.eval().step(x); assert d.n_seen==128

def test_fold_is_the_same_dictionary(make):
    d,x = make().eval(),data(64)
    g = d.fold()
    assert d.scale!=1 and g.scale==1
    torch.testing.assert_close(g.encode(x), d.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(g(x), d(x), rtol=1e-4, atol=1e-4)

def test_save_and_load(make, tmp_path):
    d = make(seed=3); d.step(data(64))
    back = load_dictionary(d.save(tmp_path/'d', dict(site='resid_post.1')))
    for (n,p),q in zip(d.state_dict().items(), back.state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)
    assert back.cfg==d.cfg and back.provenance==dict(site='resid_post.1') and not back.training and back.W_enc.t().is_contiguous()
    d.save(tmp_path/'d') # over itself
    assert sorted(p.name for p in (tmp_path/'d').iterdir())==['cfg.json','weights.safetensors'] and [p.name for p in tmp_path.iterdir()]==['d']

def test_reads_one_activation_and_writes_another(make):
    d,x,y = make(d_out=5),data(64),data(64, 5, seed=1)
    out = d.step(x, y)
    assert out.x_hat.shape==y.shape and d(x).shape==y.shape
    torch.testing.assert_close(out.parts['mse'], ((out.x_hat-y)*d.scale_out).square().sum(1).mean(), rtol=1e-4, atol=1e-5)
    x = data(64, seed=7) # not the rows of the step: a threshold taken from them would stand exactly on one
    torch.testing.assert_close(d.eval().fold()(x), d(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='y is needed'): d.step(x)
    with pytest.raises(ValueError, match='y is not used'): make().step(x, x)

def test_wrong_arguments_say_what_was_expected(make):
    d = make()
    for call in (d.encode, d.codes, d, d.step):
        with pytest.raises(ValueError, match=r'width 8 expected, got shape \(2, 7\)'): call(torch.zeros(2, 7))
    with pytest.raises(ValueError, match='d_sae must be a whole number of at least 1, got 0'): make.cls(D_IN, 0)
    with pytest.raises(ValueError, match='d_in must be a whole number of at least 1, got 2.5'): make.cls(2.5, D_SAE)
    with pytest.raises(TypeError, match='depth'): make.cls(D_IN, D_SAE, depth=2)

def test_learns_and_resumes(make, tmp_path):
    "Through `fit`: the method's own loss falls (or is 0 from the start), what is frozen stays, and a run broken between two checkpoints ends at the bits of an unbroken one"
    from sparsenb.train import Callback
    class Break(Callback):
        def after_step(self, run, out):
            if run.step==87: raise KeyboardInterrupt
    def train(path, **kw):
        d = make.cls(D_IN, D_SAE, dead_after=2000)
        return d,fit(d, data(2000), 120*128, 128, lr=3e-3, path=path, checkpoint_every=25, log_every=10, **kw)
    a,run = train(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', callbacks=[Break()])
    b,again = train(tmp_path/'b')
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)
    fresh = make.cls(D_IN, D_SAE); fresh.init_from(stats(data(2000)))
    assert a.step(data(2000)).loss<=.95*fresh.step(data(2000)).loss and (run.history['loss']==again.history['loss']).all()

# ---- bad input, the same for every method ----

def untouched(d, before):
    assert d.n_seen==0
    for (n,p),q in zip(d.state_dict().items(), before.values()): torch.testing.assert_close(p, q, **exact, msg=n)

def test_data_that_teach_nothing_are_refused_before_anything_changes(make, tmp_path):
    d = make.cls(D_IN, D_SAE)
    before = copy.deepcopy(d.state_dict())
    one_nan,one_inf = data(),data().half()
    one_nan[77,3],one_inf[78,4] = float('nan'),7e4
    for x,why in ((torch.zeros(512, D_IN), 'all 512 rows looked at are zero; there is nothing to learn'), (torch.full((512, D_IN), 3.3), 'all 512 rows looked at are equal'),
                  (one_nan, 'row 77, dimension 3 is nan; 1 of 512 rows'), (one_inf, 'row 78, dimension 4 is inf; 1 of 512 rows')):
        with pytest.raises(ValueError, match=why): fit(d, x, 640, 64, path=tmp_path/'run')
        untouched(d, before)
    assert not list((tmp_path/'run').glob('*'))

def short(make, x, seed=0, **kw):
    "A run of 20 steps, its numbers sane"
    d = make.cls(D_IN, D_SAE, seed=seed, **kw)
    run = fit(d, x, 20*64, 64, lr=1e-3)
    assert all(v.isfinite().all() for v in d.state_dict().values()) and all(np.isfinite(v).all() for v in run.history.values()) and (run.history['fvu']>=0).all()
    assert d(x).isfinite().all() and d.codes(x).val.isfinite().all()
    return d

@pytest.mark.filterwarnings('ignore:.*before it had converged')
def test_dimensions_that_never_move_and_rows_that_repeat(make):
    still = data()
    still[:,2],still[:,5] = 0.,7.
    short(make, still)
    short(make, data(5).repeat(60, 1))

@pytest.mark.filterwarnings('ignore:.*before it had converged')
def test_halves_with_a_massive_channel_are_read_as_floats(make):
    "One channel near the largest float16, whose square is none: the same weights and features as from float32"
    x = data().half()
    x[:,3] = 5e4 + 1e4*torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    a,b = short(make, x),short(make, x.float())
    assert x.max()>5.9e4
    for (n,p),q in zip(a.state_dict().items(), b.state_dict().values()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=n)
    torch.testing.assert_close(a.encode(x), a.encode(x.float()), **exact)
    torch.testing.assert_close(a.codes(x).dense(D_SAE), a.encode(x))

@pytest.mark.filterwarnings('ignore:.*before it had converged')
def test_more_places_than_features_that_want_one(make):
    "The argument that sets L0 at as many as there are features, and hardly a feature above 0: what is left is empty, not broken"
    if make.cls.sparsity not in (('k', 1), ('steps', 1)): return
    places = {make.cls.sparsity[0]: D_SAE}
    short(make, data(), **places)
    d,x = make(**places).eval(),data(64)
    with torch.no_grad(): d.b_enc[1:] -= 1e4
    c = d.codes(x)
    torch.testing.assert_close(c.dense(D_SAE), d.encode(x))
    assert c.val.isfinite().all() and d.train().step(x).x_hat.isfinite().all()
    if isinstance(d, dictionaries['topk']):
        assert (c.l0()<=1).all() and (c.val>=0).all()
        with torch.no_grad(): d.b_enc -= 1e4
        torch.testing.assert_close(d.decode_codes(d.codes(x)), (d.b_dec/d.scale_out).expand(64, -1))

def test_unknown_and_damaged(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'topk'"): dictionaries['topkk']
    with pytest.raises(FileNotFoundError, match='no dictionary in'): load_dictionary(tmp_path)
    w = dictionaries['topk'](8, 16, k=2).save(tmp_path/'d')/'weights.safetensors'
    b = bytearray(w.read_bytes()); b[-3] ^= 1; w.write_bytes(b)
    with pytest.raises(ValueError, match='weights.safetensors is damaged'): load_dictionary(tmp_path/'d')
    w.write_bytes(b[:-40])
    with pytest.raises(ValueError, match='is damaged'): load_dictionary(tmp_path/'d')
    w.unlink()
    with pytest.raises(FileNotFoundError, match='is missing'): load_dictionary(tmp_path/'d')
    (tmp_path/'d'/'cfg.json').write_text('{"format":')
    with pytest.raises(ValueError, match='cfg.json is damaged'): load_dictionary(tmp_path/'d')
    cfg = dictionaries['topk'](8, 16, k=2).save(tmp_path/'e')/'cfg.json'
    good = json.loads(cfg.read_text())
    cfg.write_text(json.dumps({k: v for k,v in good.items() if k!='crc32'}))
    with pytest.raises(ValueError, match='cfg.json is damaged: it has no crc32'): load_dictionary(tmp_path/'e')
    cfg.write_text(json.dumps(good | dict(cfg=good['cfg']|dict(d_sae=12))))
    with pytest.raises(ValueError, match='cfg.json is altered'): load_dictionary(tmp_path/'e')

def test_save_says_where_it_cannot_write(tmp_path, monkeypatch):
    d = dictionaries['topk'](8, 16, k=2)
    (tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError, match='a folder was expected'): d.save(tmp_path/'file'/'d')
    monkeypatch.setattr('shutil.disk_usage', lambda p: SimpleNamespace(free=100))
    with pytest.raises(OSError, match='100 B free, .* are needed') as e: d.save(tmp_path/'d')
    assert e.value.errno==errno.ENOSPC and [p.name for p in tmp_path.iterdir()]==['file']

def test_numbers_of_numpy_are_numbers(tmp_path):
    d = dictionaries['topk'](np.int64(8), np.int32(16), k=np.int64(2))
    assert {type(v) for k,v in d.cfg.items() if k in ('d_in','d_sae','k')}=={int} and load_dictionary(d.save(tmp_path/'d')).cfg==d.cfg

# ---- the sparse machinery ----

@pytest.mark.parametrize('m,k', [(4096,32), (1000,7), (96,1), (33,33), (64,40), (17,3)])
def test_grouped_topk_is_exact(m, k):
    z = torch.randn(40, m, generator=torch.Generator().manual_seed(0))
    z[20:] = z[20:].mul(2).round() # many ties
    val,idx = grouped_topk(z, k)
    torch.testing.assert_close(val.sort().values, z.topk(k).values.sort().values, **exact)
    torch.testing.assert_close(z.gather(1, idx), val, **exact)
    assert all(len(set(r))==k for r in idx.tolist())

def test_sparse_gradients_are_those_of_the_dense_graph():
    "Values, weights, bias and input, with a loss on the codes too"
    g = torch.Generator().manual_seed(0)
    x,W,b,D = (torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True) for s in ((37,6), (6,50), (50,), (50,5)))
    def select(z):
        v,i = z.topk(7)
        return v.relu(), i
    pattern,val = sparse_encode(x, W, b, select, torch.empty(10, 50, dtype=torch.float64))
    y = sparse_decode(pattern, val, D)
    f = torch.zeros(37, 50, dtype=torch.float64).scatter(1, pattern.idx, 1.)*(x@W+b).relu()
    torch.testing.assert_close(y, f@D)
    loss = lambda y,f: y.pow(3).sum() + f.square().sum()
    for a,c in zip(torch.autograd.grad(loss(y, val), (x,W,b,D)), torch.autograd.grad(loss(f@D, f), (x,W,b,D))): torch.testing.assert_close(a, c)

def test_geometric_median_stays_with_the_majority():
    x = torch.cat([torch.zeros(60, 3), torch.full((40, 3), 1e6)])
    assert geometric_median(x).norm()<1e3<x.mean(0).norm()

# ---- TopK ----

def test_topk_equals_dense_autograd():
    "Fifty steps with dead features and AuxK: loss to 1e-5, weights to 1e-4 of plain autograd with the same Adam"
    sae = dictionaries['topk'](32, 512, k=8, dead_after=2000)
    xs = [F.normalize(torch.randn(256, 64, generator=torch.Generator().manual_seed(s)).relu()@torch.randn(64, 32, generator=torch.Generator().manual_seed(9)), dim=1)*6 for s in range(50)]
    W = {n: p.detach().clone().requires_grad_() for n,p in sae.named_parameters()}
    ours,dense = [torch.optim.Adam(p, lr=1e-3, fused=True) for p in (sae.parameters(), W.values())]
    revived = 0
    for x in xs:
        dead = sae.dead.clone(); revived += dead.sum().item()
        out = sae.step(x); ours.zero_grad(); out.loss.backward(); sae.before_step(); ours.step(); sae.after_step()

        pre = (x-W['b_dec'])@W['W_enc'] + W['b_enc']
        v,i = pre.topk(8)
        residual = x - (Codes(i, v.relu()).dense(512)@W['W_dec'] + W['b_dec'])
        loss = residual.square().sum(1).mean()
        if dead.any(): # the aux part does not train b_dec
            z = ((x-W['b_dec'].detach())@W['W_enc']+W['b_enc']).relu().masked_fill(~dead, 0)
            v,i = z.topk(sae.k_aux); e = residual.detach()
            loss = loss + (Codes(i, v).dense(512)@W['W_dec']-e).square().sum()/(e-e.mean(0)).square().sum()/32
        dense.zero_grad(); loss.backward()
        with torch.no_grad():
            D = W['W_dec']; D.grad -= (D.grad*D).sum(1, keepdim=True)*D
            dense.step(); D /= D.norm(dim=1, keepdim=True)
    assert revived>0
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=0)
    for n,p in sae.named_parameters(): torch.testing.assert_close(p, W[n], rtol=0, atol=1e-4, msg=n)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(512))

def test_topk_never_makes_the_dense_matrix():
    "No tensor of batch x d_sae outlives a tile, forward or backward"
    sae = dictionaries['topk'](16, 8192, k=4)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t): out = sae.step(torch.randn(2048, 16))
    out.loss.backward()
    assert max(sizes)<=max(16*8192, 2048*16) and sae.tile().shape[0]<2048

def test_topk_refuses_k_out_of_range():
    for k in (0, 33, 2.5, True):
        with pytest.raises(ValueError, match=f'k must be a whole number in 1..d_sae=32, got {k}'): dictionaries['topk'](8, 32, k=k)
    with pytest.raises(ValueError, match='k_aux must be in 0..d_sae=32, got 40'): dictionaries['topk'](8, 32, k=4, k_aux=40)

# ---- known ground truth: 128 features in 64 dimensions, each active with p = 4/128 ----

class G1:
    def __init__(self, seed=0, batch=512):
        self.seed,self.batch = seed,batch
        self.D = F.normalize(torch.randn(128, 64, generator=torch.Generator().manual_seed(100)), dim=1)
    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        while True: yield (torch.rand(self.batch, 128, generator=g)<4/128).float()*(torch.rand(self.batch, 128, generator=g)+.5)@self.D

@torch.no_grad()
def scores(sae):
    x = next(iter(G1(seed=99, batch=8192)))
    f,cos = sae.encode(x),(G1().D@F.normalize(sae.W_dec, dim=1).t()).amax(1)
    x_hat = sae.decode(f)
    return dict(mmcs=cos.mean().item(), found=(cos>.9).float().mean().item(), fvu=((x-x_hat).square().sum()/(x-x.mean(0)).square().sum()).item(),
                l0=(f>0).float().sum(1).mean().item(), alive=(f>0).any(0).float().mean().item(), shrink=(x_hat.square().sum()/(x*x_hat).sum()).item())

def test_topk_finds_the_true_features():
    sae = dictionaries['topk'](64, 128, k=4, dead_after=10_000)
    fit(sae, G1(), 1500*512, 512, lr=4e-3)
    s = scores(sae)
    assert s['mmcs']>=.99 and s['found']>=.97 and abs(s['fvu']-.132)<.012 and 3.7<s['l0']<=4 and abs(s['shrink']-1)<.01, s

def test_auxk_brings_features_back():
    def train(k_aux, steps):
        sae = dictionaries['topk'](64, 128, k=4, k_aux=k_aux, dead_after=50*512)
        with torch.no_grad(): sae.W_enc[:,64:] *= .01
        fit(sae, G1(), steps*512, 512, lr=4e-3)
        return scores(sae)
    off,on = train(0, 500),train(None, 1200)
    assert off['alive']<=.6 and off['found']<=.75, off
    assert on['alive']>=.98 and on['found']>=.9, on

def test_relu_shrinks():
    "Features are found, and the penalty shortens the reconstruction"
    sae = dictionaries['relu'](64, 128, l1_coef=.38)
    fit(sae, G1(), 1500*512, 512, lr=4e-3)
    s = scores(sae)
    assert s['mmcs']>=.97 and s['fvu']<.1 and .92<s['shrink']<.98, s
