"Crosscoder: known shared and exclusive features, the step against plain autograd, units, stores side by side"
import numpy as np, pytest, torch
import torch.nn.functional as F
from sparsenb.core import UnknownName, dictionaries
from sparsenb.dictionary import Codes, Stats, load_dictionary
from sparsenb.dictionaries.crosscoder import beside
from sparsenb.metrics import evaluate
from sparsenb.store import ActivationStore
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
forms = dict(batch_topk=dict(k=4), topk=dict(activation='topk', k=4), relu=dict(activation='relu', l1_coef=1.))

def data(n=600, seed=0):
    "Two sites, 8 and 5 wide, the second 40 times larger"
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 20, generator=g).relu()@torch.cat([torch.randn(20, 8, generator=torch.Generator().manual_seed(5)), 40*torch.randn(20, 5, generator=torch.Generator().manual_seed(6))], 1)+3

def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)

@pytest.fixture(params=forms)
def make(request):
    def make(**kw):
        cc = dictionaries['crosscoder'](13, 64, **dict(widths=(8, 5), seed=0) | forms[request.param] | kw)
        cc.init_from(stats(data()))
        return cc
    make.form = request.param
    return make

# ---- units ----

def test_each_site_has_its_own_unit(make):
    cc,x = make(),data()
    torch.testing.assert_close(torch.stack([s.square().sum(1).mean() for s in cc.scaled(x).split((8, 5), 1)]), torch.tensor([8., 5.]), rtol=1e-4, atol=0)
    assert len({round(v, 6) for v in cc.site_scale.tolist()})==2 and cc.site(0).scale>20*cc.site(1).scale

def test_fold_is_exact_with_unequal_sites(make):
    cc,x = make(),data(64)
    cc.step(x); cc.eval()
    d = cc.fold()
    assert (d.scale==1) and (d.site_scale==1).all() and (d.site_scale_out==1).all()
    torch.testing.assert_close(d.encode(x), cc.encode(x), rtol=1e-4, atol=1e-4); torch.testing.assert_close(d(x), cc(x), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(d.norms(), cc.norms(), rtol=1e-4)
    for l in (0, 1): torch.testing.assert_close(d.decode_site(d.codes(x), l), cc.decode_site(cc.codes(x), l), rtol=1e-4, atol=1e-3)

def test_sites_are_parts_of_the_whole(make):
    cc,x = make().eval(),data(30).view(2, 15, 13)
    f = cc.encode(x)
    torch.testing.assert_close(torch.cat([cc.decode_site(f, l) for l in (0, -1)], -1), cc(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(cc.decode_codes(cc.codes(x)), cc.decode(f), rtol=1e-5, atol=1e-4)
    s = cc.site(1)
    assert s.W_enc.shape==(5, 64) and s.W_dec.shape==(64, 5) and s.W_dec.data_ptr()==cc.W_dec[:,8:].data_ptr()
    for bad in (2, -3, 1.5, True):
        with pytest.raises(IndexError, match='site must be a whole number in -2..1'): cc.site(bad)

def test_parts_say_how_good_each_site_is(make):
    cc,x = make(),data()
    out = cc.step(x)
    e,var = ((x-out.x_hat)*cc.scale*cc.site_scale).square().mean(0),((x-cc.mean)*cc.scale*cc.site_scale).square().mean(0)
    for l,at in ((0, slice(0, 8)), (1, slice(8, 13))): torch.testing.assert_close(out.parts[f'fvu_{l}'], e[at].sum()/var[at].sum(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out.parts['mse'], ((x-out.x_hat)*cc.scale).square().sum(1).mean())
    torch.testing.assert_close(cc.decode_codes(out.codes), out.x_hat, rtol=1e-4, atol=1e-3)
    assert list(out.parts)==list(cc.step(x).parts)

@pytest.mark.parametrize('form', forms)
def test_one_site_is_the_plain_dictionary(form):
    x,kw = data(),{k: v for k,v in forms[form].items() if k!='activation'}
    a,b = dictionaries['crosscoder'](13, 64, seed=0, **forms[form]),dictionaries[form](13, 64, seed=0, **kw)
    for d in (a, b): d.init_from(stats(x)); d.progress = .5
    torch.testing.assert_close(a.step(x).loss, b.step(x).loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(a(x), b(x)) if form!='batch_topk' else torch.testing.assert_close(a.threshold, b.threshold, rtol=2e-4, atol=0)
    assert a.recipe()==b.recipe()

# ---- the step ----

def dense(form, W, x, widths, cc):
    "The same objective written down plainly, on rows in the sites' units"
    z = ((x-W['b_dec'])@W['W_enc'] + W['b_enc']).relu()
    if form=='topk': f = torch.zeros_like(z).scatter(1, z.topk(4).indices, 1.)*z
    elif form=='batch_topk': f = z*(z>=z.flatten().topk(4*len(z)).values.min())
    else: f = z
    residual = x - (f@W['W_dec'] + W['b_dec'])
    loss = residual.square().sum(1).mean()
    if form=='relu': return loss + min(1, cc.progress/.05)*(f*sum(w.norm(dim=1) for w in W['W_dec'].split(widths, 1))).sum(1).mean()
    if cc.dead.any():
        z = ((x-W['b_dec'].detach())@W['W_enc']+W['b_enc']).relu().masked_fill(~cc.dead, 0)
        v,i = z.topk(cc.k_aux); e = residual.detach()
        loss = loss + cc.variance/32*(Codes(i, v).dense(64)@W['W_dec']-e).square().sum()/(e-e.mean(0)).square().sum()
    return loss

@pytest.mark.parametrize('form', forms)
def test_step_equals_dense_autograd(form):
    "Forty steps: loss to 1e-5, weights to 1e-4 of plain autograd with the same Adam; with dead features and AuxK where there is one"
    cc = dictionaries['crosscoder'](13, 64, widths=(8, 5), seed=0, dead_after=600, **forms[form])
    cc.init_from(stats(data()))
    with torch.no_grad(): cc.W_enc[:,::5] *= .01 # some that are never among the largest
    W = {n: p.detach().clone().requires_grad_() for n,p in cc.named_parameters()}
    ours,plain = [torch.optim.Adam(p, lr=1e-3, fused=True) for p in (cc.parameters(), W.values())]
    revived = 0
    for s in range(40):
        x,cc.progress = data(256, seed=s+1),s/100
        loss = dense(form, W, x*cc.scale*cc.site_scale, cc.widths, cc) # before the step, which counts the dead
        revived += cc.dead.sum().item()
        out = cc.step(x); ours.zero_grad(); out.loss.backward(); cc.before_step(); ours.step(); cc.after_step()
        plain.zero_grad(); loss.backward()
        with torch.no_grad():
            D = W['W_dec']
            if form!='relu': D.grad -= (D.grad*D).sum(1, keepdim=True)*D
            plain.step()
            if form!='relu': D /= D.norm(dim=1, keepdim=True)
    assert form=='relu' or revived>0
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=0)
    for n,p in cc.named_parameters(): torch.testing.assert_close(p, W[n], rtol=0, atol=1e-4, msg=n)

def test_topk_forms_make_no_dense_graph():
    cc = dictionaries['crosscoder'](16, 8192, widths=(8, 8), activation='topk', k=4)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t): cc.step(torch.randn(2048, 16)).loss.backward()
    assert max(sizes)<=max(16*8192, 2048*16)

def test_saved_resumed_and_rebuilt(make, tmp_path):
    "With sites of unequal scale: bits of an unbroken run, and of the saved file"
    class Break(Callback):
        def after_step(self, run, out):
            if run.step==33: raise KeyboardInterrupt
    def train(path, **kw):
        cc = dictionaries['crosscoder'](13, 64, widths=(8, 5), seed=0, dead_after=1500, **forms[make.form])
        return cc,fit(cc, data(2000), 60*128, 128, path=path, checkpoint_every=10, **kw)
    a,run = train(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', callbacks=[Break()])
    b,_ = train(tmp_path/'b')
    c = load_dictionary(tmp_path/'a'/'final')
    for (n,p),q,r in zip(a.state_dict().items(), b.state_dict().values(), c.state_dict().values()):
        torch.testing.assert_close(p, q, **exact, msg=n); torch.testing.assert_close(p, r, **exact, msg=n)
    assert c.cfg==a.cfg and c.widths==(8, 5) and 'fvu_1' in run.history and (c.site_scale!=1).any()

def test_other_sites_can_be_written():
    x,y = data(300),data(300, seed=3)
    cc = dictionaries['crosscoder'](8, 64, d_out=13, widths_out=(8, 5), k=4)
    cc.init_from(stats(x[:,:8]), stats(y))
    out = cc.step(x[:,:8], y)
    assert out.x_hat.shape==y.shape and {'fvu_0','fvu_1'}<={*out.parts} and cc.site(1).W_enc is None and cc.norms().shape==(64, 2)
    torch.testing.assert_close(cc.decode_codes(out.codes), out.x_hat, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(cc.eval().fold()(x[:,:8]), cc(x[:,:8]), rtol=1e-4, atol=1e-3)
    two = dictionaries['crosscoder'](13, 64, d_out=8, widths=(8, 5), k=4)
    two.init_from(stats(y), stats(x[:,:8]))
    out = two.step(y, x[:,:8])
    torch.testing.assert_close(two.decode_codes(out.codes), out.x_hat, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='writes other sites'): two.site_fvu(y)

def test_refusals():
    C = dictionaries['crosscoder']
    for kw,match in ((dict(widths=(8, 4)), r'widths \(8, 4\) sum to 12, but d_in=13'), (dict(widths=(8, 5.)), 'one for each site'), (dict(widths=(13, 0)), 'at least 1'), (dict(widths=()), 'one for each site'),
                     (dict(widths_out=(13,)), 'widths_out is for a dictionary with d_out'), (dict(l1_coef=-1), 'l1_coef must be at least 0'), (dict(l1_warmup=2), 'share of the training')):
        with pytest.raises(ValueError, match=match): C(13, 64, **kw)
    with pytest.raises(UnknownName, match="did you mean 'relu'"): C(13, 64, activation='relus')
    x = data(); x[:,8:] = 0
    with pytest.raises(ValueError, match='site 1 is zero in all 600 rows'): C(13, 64, widths=(8, 5)).init_from(stats(x))
    assert C.sparsity==('k', +1) and C(13, 64, activation='relu').sparsity==('l1_coef', -1)

# ---- what is known is found ----

class Sites:
    "64 features: 32 at both sites, 16 at each alone; 32 and 24 wide, the second 20 times larger"
    def __init__(self):
        g = torch.Generator().manual_seed(77)
        self.first,self.second = (F.normalize(torch.randn(64, d, generator=g), dim=1) for d in (32, 24))
        self.second[32:48] = 0; self.first[48:] = 0
    def __iter__(self):
        g = torch.Generator().manual_seed(78)
        while True:
            f = (torch.rand(512, 64, generator=g)<3/64)*(.5+torch.rand(512, 64, generator=g))
            yield torch.cat([f@self.first, 20*f@self.second], 1)

@pytest.mark.parametrize('kw', [dict(k=3), dict(activation='relu', l1_coef=.5)], ids=['batch_topk', 'relu'])
def test_shared_and_exclusive_features_are_told_apart(kw):
    bed = Sites()
    cc = dictionaries['crosscoder'](56, 80, widths=(32, 24), dead_after=20_000, **kw)
    fit(cc, bed, 1200*512, 512, lr=5e-3)
    live = ~cc.dead
    for l,truth in enumerate((bed.first, bed.second)):
        t = truth[truth.norm(dim=1)>0]
        cos = (t@F.normalize(cc.site(l).W_dec.detach(), dim=1).t()*live).amax(1)
        assert cos.mean()>=.98, (l, cos.mean())
    truth = F.normalize(torch.cat([bed.first, 20*bed.second], 1)*cc.scale*cc.site_scale, dim=1)
    share = cc.shares()[(truth@F.normalize(cc.W_dec.detach(), dim=1).t()*live).argmax(1), 1]
    near = abs(share[:32]-.5)<.1 # the L1 form takes a few shared features apart
    assert near.mean()>=(.85 if 'l1_coef' in kw else 1) and abs(np.median(share[:32])-.5)<.06 and (share[32:48]<.1).all() and (share[48:]>.9).all(), share.round(2)

# ---- views ----

def test_views_show_living_features():
    cc = dictionaries['crosscoder'](13, 64, widths=(8, 5), seed=0, k=4, dead_after=10)
    cc.idle[:10] = 11
    h = cc.sharing()
    assert h.counts.sum()==54 and '54 living features of 64' in h.caption and 'site 1' in h.title and h.html()
    np.testing.assert_allclose(cc.shares().sum(1), 1, rtol=1e-5)
    t = cc.norms_table(n=6)
    assert t.columns==('feature', 'site 0', 'site 1', 'strongest at') and len(t.rows)==6 and all(r[0]>=10 for r in t.rows) and t.html()
    assert [r[2]/(r[1]+r[2]) for r in t.rows]==sorted(r[2]/(r[1]+r[2]) for r in t.rows)
    assert [r[0] for r in cc.norms_table([3, 1]).rows]==[3, 1]
    with pytest.raises(IndexError, match='feature 64 does not exist'): cc.norms_table([64])
    cc.provenance['site'] = 'resid_post.1 | resid_post.2'
    assert cc.norms_table(n=2).columns[1:3]==('resid_post.1', 'resid_post.2') and 'resid_post.2' in cc.sharing().title
    cc.idle[:] = 11
    assert cc.sharing().counts.sum()==0 and cc.norms_table().rows==()

# ---- stores side by side ----

@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    tmp,x = tmp_path_factory.mktemp('stores'),data(1000)
    tok,pos,doc = torch.arange(1000)%50,torch.arange(1000)%10,torch.arange(1000)//100
    def store(name, x, tok=tok, pos=pos, site='here', **kw): return ActivationStore.from_rows(tmp/name, x, tok, pos, doc[:len(x)], site=site, dtype='float32', **kw)
    return store,x,tok,pos

def test_rows_of_several_stores_belong_together(stores):
    store,x,*_ = stores
    both = beside(store('a', x[:,:8], site='one'), store('b', x[:,8:], site='two', shard_rows=300))
    assert both.widths==(8, 5) and both.d_in==13 and len(both)==1000 and both.site=='one | two'
    torch.testing.assert_close(torch.cat([r.x for r in both.rows(300)]), x, **exact)
    torch.testing.assert_close(both.mean, x.mean(0)); assert abs(both.scale-stats(x).scale)<1e-5*both.scale
    there = {tuple(r) for r in x.tolist()}
    batches = [b for b in both.batches(128, n_tokens=1000, seed=4)]
    assert len(batches)==8 and all(tuple(r) in there for b in batches for r in b.tolist())
    later = both.batches(128, seed=4, start=5)
    torch.testing.assert_close(next(later), batches[5], **exact); later.close()
    cc = dictionaries['crosscoder'](13, 64, widths=both.widths, k=4)
    fit(cc, both, 4000, 200, seed=0)
    assert cc.provenance['site']=='one | two' and cc.site_names==['one', 'two'] and cc.provenance['fingerprint']==both.fingerprint
    e = evaluate(cc, both, progress=False)
    per = cc.site_fvu(both); total = [((x-x.mean(0))[:,s]).square().sum().item() for s in (slice(0, 8), slice(8, 13))]
    assert abs(sum(p.value*t for p,t in zip(per, total))/sum(total)-e['fvu'].value)<1e-4 and all(p.lo<=p.value<=p.hi and p.n==1000 for p in per)

def test_stores_that_do_not_match_are_refused(stores):
    store,x,tok,pos = stores
    a = store('c', x[:,:8])
    wrong = tok.clone(); wrong[700] = 49
    for other,match in ((store('d', x[:900], tok[:900], pos[:900]), 'rows: 1,000 there, 900 here'), (store('e', x, wrong), 'row 700 is token 0 there, 49 here'), (store('f', x, pos=torch.arange(1000)%20), 'row 10 is position 0 there, 10 here')):
        with pytest.raises(ValueError, match=match): beside(a, other)
    for key,word in (('corpus_fingerprint', 'corpus'), ('split', 'split'), ('seed', 'order'), ('skip_bos', 'skip_bos')):
        b = store(f'g{key}', x[:,8:])
        b.header[key] = True if key=='skip_bos' else 'other'
        with pytest.raises(ValueError, match=f'does not belong beside .*{word}: .* there, .*(other|True).* here'): beside(a, b)
    with pytest.raises(ValueError, match='two or more sites were expected, got here'): beside(a)
    with pytest.raises(ValueError, match='got none'): beside()
    with pytest.raises(TypeError, match='activation stores were expected, got Tensor'): beside(a, x)

def test_sites_of_one_pass_and_of_two_models(tmp_path):
    "A store of two sites stands for both; two stores of one text fit together, with model names where sites are called the same"
    text = ['def add(a, b): return a+b\n'*30, 'import os\nfor p in os.listdir(): print(p)\n'*30]
    collect = lambda name, site, **kw: ActivationStore.collect('stdlib-4l', text, site, 600, tmp_path/name, seq_len=64, progress=False, **kw)
    s = collect('a', ['resid_post.1', 'resid_post.2'])
    both = beside(s)
    assert both.names==['resid_post.1', 'resid_post.2'] and both.widths==(256, 256)
    torch.testing.assert_close(next(both.rows(50)).x[:,256:], next(s['resid_post.2'].rows(50)).x, **exact)
    again = beside(s['resid_post.1'], collect('b', 'resid_post.1'))
    assert again.names==['stdlib-4l:resid_post.1']*2 and torch.equal(*next(again.rows(50)).x.split(256, 1))
    with pytest.raises(ValueError, match='order: 0 there, 1 here'): beside(s, collect('c', 'resid_post.3', seed=1))
    with pytest.raises(ValueError, match='seq_len: 64 there, 32 here'): beside(s, ActivationStore.collect('stdlib-4l', text, 'resid_post.3', 600, tmp_path/'d', seq_len=32, progress=False))
