"Monet: both forms and deletion against a loop over all experts, router statistics, read-outs, a place in a model"
import numpy as np, pytest, torch
from statistics import NormalDist
from sparsenb.core import UnknownName, dictionaries
from sparsenb.dictionary import Stats, load_dictionary
from sparsenb.hooks import capture, edited, replaced
from sparsenb.models import load_model
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
forms = {'hd': 20, 'vd': 40} # d_sae of 5 halves and 4 hidden units

def data(n=400, d=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 + 3*torch.randn(n, 12, generator=g).relu()@torch.randn(12, d, generator=torch.Generator().manual_seed(9+d))

def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)

@pytest.fixture(params=forms)
def make(request):
    def make(d_out=6, noise=True, **kw):
        m = dictionaries['monet'](7, forms[request.param], **dict(d_out=d_out, form=request.param, n_experts=5, n_heads=2, topk=2, seed=1) | kw)
        m.init_from(stats(data()), *([stats(data(d=d_out, seed=1))] if d_out else []))
        if noise:
            g = torch.Generator().manual_seed(3)
            with torch.no_grad(): m.b_enc += torch.randn(m.d_sae, generator=g); m.b_dec += torch.randn(m.d_out, generator=g)
            m._settle()
            m.logit_mean.copy_(.1*torch.randn(2, m.n_heads, generator=g)); m.logit_var.fill_(.7)
        return m
    make.form = request.param
    return make

# ---- the definition ----

def router(m, x):
    "Weights of the halves, number by number, by the running statistics"
    E,out = m.n_experts,[]
    top = NormalDist().inv_cdf(1-m.topk/E)
    for kind in (0, 1):
        W = m.W_route.view(2, m.n_heads, E, m.d_in)[kind]
        for row in x:
            for h in range(m.n_heads):
                z = W[h]@((row-m.mean)*m.scale)
                normed = (z-m.logit_mean[kind,h])/(m.logit_var[kind,h]+1e-5).sqrt()
                cut = min(top, normed.max().item())
                w = torch.tensor([z[i].exp().item() if normed[i]>=cut else 0. for i in range(E)])
                out.append(w/w.sum())
    return torch.stack(out).view(2, len(x), m.n_heads, E)

@torch.no_grad()
def brute(m, x, gone=()):
    "Each expert's own two matrices and bias, built from the halves, one activation and expert at a time"
    E,q = m.n_experts,m.expert_dim//(1 if m.form=='hd' else 2)
    relu2,g,half = lambda z: z.clamp_min(0)**2, router(m, x), m.d_out//2
    block = lambda b,i: slice((b*E+i)*q, (b*E+i+1)*q)
    U,b,V = m.W_enc.t(),m.b_enc,m.W_dec
    y = m.b_dec.expand(len(x), -1).clone()
    for n,row in enumerate(x*m.scale):
        for i in range(E):
            for j in range(E):
                if (i, j) in gone: continue
                if m.form=='hd': # the last unit of a half is its bias
                    h = relu2(U[block(0, i)][:-1]@row + b[block(0, i)][:-1])
                    out = V[block(0, j)][:-1].t()@h + V[block(0, j)][-1]
                else:
                    u,w = relu2(U[block(0, i)][:-1]@row + b[block(0, i)][:-1]),relu2(U[block(1, j)]@row + b[block(1, j)])
                    top = V[block(0, i)][:-1].t()@u + V[block(1, i)].t()@w + V[block(0, i)][-1]
                    low = V[block(2, j)][:-1].t()@u + V[block(3, j)].t()@w + V[block(2, j)][-1]
                    out = torch.cat([top[:half], low[half:]])
                y[n] += sum(g[0,n,h,i]*g[1,n,h,j] for h in range(m.n_heads))*out
    return y/m.scale_out

def test_factored_is_the_loop_over_all_experts(make):
    m,x = make().eval(),data(12)
    want = brute(m, x)
    torch.testing.assert_close((m(x)*m.scale_out).float(), want*m.scale_out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(m.decode_codes(m.codes(x)), m(x)); torch.testing.assert_close(m.fold()(x), m(x), rtol=1e-4, atol=1e-4)
    assert (router(m, x)==0).any(-1).float().mean()>.8 # some half is left out nearly everywhere, so the cut is part of what was compared

def test_deleted_experts_are_left_out_and_nothing_else(make):
    m,x = make().eval(),data(12)
    gone = [(0, 1), (3, 3), (4, 0), (2, 2)]
    less = m.without(gone)
    torch.testing.assert_close(less(x)*m.scale_out, brute(m, x, gone)*m.scale_out, rtol=1e-5, atol=1e-5)
    assert m.kept.all() and (less(x)-m(x)).abs().max()>1e-3
    for same in (m.without([5*i+j for i,j in gone]), m.without(~less.kept), m.without(gone[:2]).without(gone[2:])): torch.testing.assert_close(same(x), less(x), **exact)
    torch.testing.assert_close(m.without([])(x), m(x), **exact)
    none = m.without(torch.ones(5, 5, dtype=torch.bool))
    torch.testing.assert_close(none(x), (m.b_dec/m.scale_out).expand(12, -1)); assert not none.encode(x).any()
    from sparsenb.dictionaries import monet
    whole = less(x)
    with pytest.MonkeyPatch.context() as p:
        p.setattr(monet, '_rows', 50) # two rows at a time
        torch.testing.assert_close(less(x), whole)

def test_deletion_is_refused_where_it_makes_no_sense(make):
    m = make()
    for bad in ([(5, 0)], [25], [-1], [(0, -1)]):
        with pytest.raises(IndexError, match='experts must be within 5 by 5'): m.without(bad)
    for bad in (torch.ones(4, 5, dtype=torch.bool), [.5], [[1, 2, 3]]):
        with pytest.raises(ValueError, match='expected, got'): m.without(bad)

def test_deletion_is_saved(make, tmp_path):
    m,x = make().eval().without([(1, 1), (2, 0)]),data(5)
    back = load_dictionary(m.save(tmp_path/'m'))
    torch.testing.assert_close(back(x), m(x), **exact)
    assert (~back.kept).nonzero().tolist()==[[1, 1], [2, 0]]

# ---- training ----

def test_gradients_are_finite_and_what_must_stay_stays(make):
    m,x,y = make(noise=False),data(300),data(300, 6, seed=1)
    opt = torch.optim.Adam(m.parameters(), lr=1e-2)
    for _ in range(5):
        out = m.step(x, y); opt.zero_grad(); out.loss.backward(); m.before_step()
        assert all(p.grad.isfinite().all() for p in m.parameters()) and m.W_route.grad.abs().sum()>0
        opt.step(); m.after_step()
    always = m._always()
    assert always.sum()==m.n_experts*(1 if make.form=='hd' else 2) and not m.W_enc[:,always].any() and (m.b_enc[always]==1).all()
    if make.form=='vd': assert not m.W_dec[:20,3:].any() and not m.W_dec[20:,:3].any() and torch.equal(m.W_enc[:,:20], m.W_enc[:,20:]) and m.W_dec[:20,:3].any(1).all()
    torch.testing.assert_close(m.eval().step(x, y).x_hat, m(x), rtol=1e-4, atol=1e-4)

def test_gradient_is_that_of_finite_differences(make):
    "Where no half crosses the cut; in double precision"
    m = make().double().eval()
    x,y = data(40).double(),data(40, 6, seed=1).double()
    loss = m.step(x, y).loss
    loss.backward()
    g = torch.Generator().manual_seed(0)
    for n,p in m.named_parameters():
        v = torch.randn(p.shape, generator=g, dtype=torch.float64)*(p.grad!=0)
        a = []
        for e in (1e-6, -1e-6):
            with torch.no_grad(): p += e*v; a.append(m.step(x, y).loss.item()); p -= e*v
        assert abs((a[0]-a[1])/2e-6-(p.grad*v).sum().item())<1e-4*max(1, abs((p.grad*v).sum().item())), n

def test_loss_is_error_and_both_penalties(make):
    m,x,y = make(aux_coef=.3),data(200),data(200, 6, seed=1)
    out = m.step(x, y)
    torch.testing.assert_close(out.loss, out.parts['mse'] + .3*m.variance*(out.parts['uniformity']+out.parts['ambiguity']))
    E,one = m.n_experts,torch.eye(5)[torch.arange(200)%5][:,None].expand(-1, 2, -1)
    from sparsenb.dictionaries.monet import Routes
    u,a = m.aux(Routes(one, one, torch.stack([one, one], 1)))
    assert abs(u-np.log(5))<1e-5 and a==0 # every half equally often, each choice clear
    even = torch.full((200, 2, E), .2)
    u,a = m.aux(Routes(even, even, torch.stack([even, even], 1)))
    assert abs(u-np.log(5))<1e-5 and abs(a-.8)<1e-6
    assert m.aux(Routes(one[:1], one[:1], torch.stack([one[:1], one[:1]], 1)))[0]>np.log(5)+1

def test_running_statistics_serve_inference(make):
    "An output does not depend on the company in the batch; training does, and teaches the statistics"
    m = make(noise=False)
    for s in range(60): m.step(data(256, seed=s+10), data(256, 6, seed=s+10))
    z = (m.scaled(data(4000, seed=5))-m.mean*m.scale)@m.W_route.t()
    z = z.view(-1, 2, 2, 5)
    torch.testing.assert_close(m.logit_mean, z.mean((0, 3)), rtol=0, atol=.1); torch.testing.assert_close(m.logit_var, z.var((0, 3)), rtol=.15, atol=0)
    x,y = data(64),data(64, 6, seed=1)
    before = m.step(x, y).x_hat
    assert (before[:8]-m.step(x[:8], y[:8]).x_hat).abs().max()>1e-4
    m.eval()
    was = m.logit_mean.clone()
    torch.testing.assert_close(m(x)[:8], m(x[:8]), rtol=1e-5, atol=1e-5); torch.testing.assert_close(m(x[3]), m(x)[3], rtol=1e-5, atol=1e-5)
    assert torch.equal(was, m.logit_mean) and torch.equal(m.routing(x[:8]).dense(25), m.routing(x).dense(25)[:8])

def test_more_survive_where_topk_is_larger(make):
    x = data(200)
    l0 = [make(topk=k).eval().codes(x).l0().mean() for k in (.5, 1, 2, 4, 5)]
    assert l0==sorted(l0) and l0[0]<.8*l0[-1] and dictionaries['monet'].sparsity==('topk', +1)
    m = make(topk=5).eval() # all of them
    assert (m.routing(x).val>0).all() and m.routing(x).idx.shape==(200, 25)
    m = make(topk=1e-6).eval() # the largest alone
    assert (m.routing(x).l0()<=2).all() and (m.route(m.scaled(x)).g1.amax(-1)==1).all()

def test_resumes_to_the_bit(make, tmp_path):
    class Break(Callback):
        def after_step(self, run, out):
            if run.step==33: raise KeyboardInterrupt
    def train(path, **kw):
        m = make(noise=False)
        fit(m, (data(2000), data(2000, 6, seed=1)), 60*128, 128, path=path, checkpoint_every=10, **kw)
        return m
    a = train(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', callbacks=[Break()])
    b = train(tmp_path/'b')
    for (n,p),q,r in zip(a.state_dict().items(), b.state_dict().values(), load_dictionary(tmp_path/'a'/'final').state_dict().values()):
        torch.testing.assert_close(p, q, **exact, msg=n); torch.testing.assert_close(p, r, **exact, msg=n)

def test_rebuilds_its_input_without_d_out(make):
    m,x = make(d_out=None, noise=False),data(1000)
    start = m.step(x).parts['mse']
    fit(m, x, 300*100, 100)
    assert m.step(x).parts['mse']<.5*start
    torch.testing.assert_close(m.eval().fold()(x), m(x), rtol=1e-4, atol=1e-3)

# ---- sizes ----

def test_sizes_follow_from_the_number_of_features():
    M = dictionaries['monet']
    sizes = {(d, f): (m.n_experts, m.expert_dim) for d in (4, 12, 32, 96, 1024, 4096) for f in ('hd', 'vd') if (d, f) not in ((4, 'vd'), (12, 'vd')) for m in [M(8, d, form=f)]}
    assert sizes[32, 'hd']==(8, 4) and sizes[32, 'vd']==(4, 4) and sizes[4096, 'hd']==(512, 8) and sizes[1024, 'vd']==(64, 8) and sizes[4, 'hd']==(2, 2)
    m = M(8, 96, n_experts=12)
    assert m.expert_dim==8 and M(8, 96, expert_dim=4).n_experts==24 and m.cfg['expert_dim'] is None and M(**m.cfg).n_experts==12
    assert m.kept.shape==(12, 12) and M(8, 96, form='vd', n_experts=12).expert_dim==4
    for kw,match in ((dict(n_experts=5), r'd_sae=32 does not divide into n_experts=5, expert_dim=None: .* d_sae=32 does with expert_dim=8'), (dict(n_experts=32), 'expert_dim at least 2'), (dict(expert_dim=32), 'n_experts at least 2'), (dict(n_experts=4, expert_dim=4), 'does not divide'),
                     (dict(form='vd', expert_dim=2), 'even and at least 4'), (dict(n_experts=1), 'n_experts must be a whole number of at least 2, got 1'), (dict(expert_dim=2.), 'expert_dim must be'), (dict(n_heads=0), 'n_heads must be'),
                     (dict(topk=9), r'topk must be above 0 and at most n_experts=8, got 9'), (dict(topk=0), 'topk must be'), (dict(topk=True), 'topk must be'), (dict(aux_coef=-1), 'aux_coef must be at least 0')):
        with pytest.raises(ValueError, match=match): M(8, 32, **kw)
    for d,f in ((31, 'hd'), (12, 'vd'), (31, 'vd'), (2, 'hd')):
        with pytest.raises(ValueError, match=f'd_sae={d} does not divide into experts of 2 to 8 hidden units'): M(8, d, form=f)
    with pytest.raises(UnknownName, match="did you mean 'hd'"): M(8, 32, form='hdd')

# ---- who knows what ----

def test_routing_names_the_experts_that_were_asked(make):
    m,x = make().eval(),data(6).view(2, 3, 7)
    g = router(m, x.view(6, 7))
    c = m.routing(x)
    torch.testing.assert_close(c.dense(25).view(6, 5, 5), torch.einsum('nhi,nhj->nij', g[0], g[1]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(c.val.sum(-1), torch.full((2, 3), 2.)); assert all(len({*r[v>0].tolist()})==(v>0).sum() for r,v in zip(c.idx.view(6, -1), c.val.view(6, -1)))
    gone = m.without([(0, 0), (4, 2)])
    d = gone.routing(x).dense(25)
    assert not d[...,[0, 22]].any(); keep = torch.ones(25, dtype=torch.bool); keep[[0, 22]] = False
    torch.testing.assert_close(d[...,keep], c.dense(25)[...,keep])
    from sparsenb.dictionaries import monet
    with pytest.MonkeyPatch.context() as p:
        p.setattr(monet, '_rows', 50) # pieces of unequal width
        torch.testing.assert_close(m.routing(x).dense(25), c.dense(25))
    assert m.routing(x[:0]).idx.shape[:2]==(0, 3)

def test_knowledge_counts_mass_and_assigns_by_twice_the_runner_up(make):
    m = make().eval()
    domains = dict(a=data(300), b=-data(100, seed=2), c=data(50, seed=3)*torch.tensor([1., -1, 1, -1, 1, -1, 1]))
    k = m.knowledge(domains)
    for d,(nm,x) in enumerate(domains.items()): np.testing.assert_allclose(k.mass[d], m.routing(x).dense(25).double().mean(0).view(5, 5), rtol=1e-4, atol=1e-7)
    for i in range(5):
        for j in range(5):
            v = sorted(k.mass[:,i,j])
            assert k.owner[i,j]==(int(k.mass[:,i,j].argmax()) if v[-1]>0 and v[-1]>=2*v[-2] else -1)
    assert (k.of('b')==(k.owner==1)).all() and k.of('b').any() and k.n==(300, 100, 50)
    t = k.table()
    assert [r[0] for r in t.rows]==['a', 'b', 'c'] and all(abs(sum(r[3:])-1)<1e-6 for r in t.rows) and t.html()
    assert (m.knowledge(domains, factor=1e9).owner>=0).sum()<=(k.owner>=0).sum()
    with pytest.raises(UnknownName, match="did you mean"): k.of('aa')
    with pytest.raises(ValueError, match='two or more domains were expected, got a'): m.knowledge(dict(a=data(5)))
    with pytest.raises(ValueError, match="domain 'b' has no rows"): m.knowledge(dict(a=data(5), b=data(5)[:0]))
    assert m.train().knowledge(domains).mass.shape==(3, 5, 5) and m.training and m.logit_var[0,0]==k.mass.dtype.type(np.float32(.7)) # reading out teaches nothing

def test_experts_of_one_kind_of_data_can_be_taken_out():
    "Two kinds of rows with maps of their own: without the experts of one, that one is lost and the other is not"
    g = torch.Generator().manual_seed(4)
    A,B = torch.randn(8, 6, generator=g),torch.randn(8, 6, generator=g)
    x = torch.randn(8000, 16, generator=g)
    x[:4000,8:] = 0; x[4000:,:8] = 0
    y = torch.cat([x[:4000,:8].relu()@A, x[4000:,8:].relu()@B])
    m = dictionaries['monet'](16, 256, d_out=6, n_experts=32, n_heads=2, seed=0)
    fit(m, (x, y), 600*256, 256)
    m.eval()
    k = m.knowledge(dict(a=x[:4000], b=x[4000:]))
    fvu = lambda d,at: ((d(x[at])-y[at]).square().sum()/(y[at]-y[at].mean(0)).square().sum()).item()
    a,b = slice(0, 4000),slice(4000, None)
    less = m.without(k.of('a'))
    values = dict(a=fvu(m, a), b=fvu(m, b), a_without=fvu(less, a), b_without=fvu(less, b))
    assert values['a']<.3 and values['b']<.3 and values['a_without']>values['a']+.4 and values['b_without']<values['b']+.1, values

# ---- in a model ----

def test_stands_in_for_an_mlp():
    model = load_model('stdlib-4l')
    text = 'def add(a, b):\n    return a+b\n'
    acts = capture(model, text, ['mlp_in.2', 'mlp_out.2'])
    m = dictionaries['monet'](256, 64, d_out=256, n_experts=8, n_heads=2, seed=0).eval()
    less = m.without(np.eye(8, dtype=bool))
    for d in (m, less):
        with edited(model, d.edits('mlp_in.2', 'mlp_out.2')): got = capture(model, text, ['mlp_out.2', 'resid_post.2'])
        want = d(acts['mlp_in.2']).detach()
        torch.testing.assert_close(got['mlp_out.2'][:,1:], want[:,1:], rtol=1e-4, atol=1e-5); torch.testing.assert_close(got['mlp_out.2'][:,0], acts['mlp_out.2'][:,0])
    assert (m(acts['mlp_in.2'])-less(acts['mlp_in.2'])).abs().max()>1e-3
    with edited(model, m.edits('mlp_in.2', 'mlp_out.2', keep_first=False)): got = capture(model, text, 'mlp_out.2')
    torch.testing.assert_close(got['mlp_out.2'], m(acts['mlp_in.2']).detach(), rtol=1e-4, atol=1e-5)
    plain = capture(model, text, 'mlp_out.2')['mlp_out.2']
    torch.testing.assert_close(plain, acts['mlp_out.2'], **exact) # gone after the block
    one = dictionaries['monet'](256, 64, seed=0).eval().without([0])
    with replaced(model, 'resid_post.2', one): got = capture(model, text, 'resid_post.2')['resid_post.2']
    want = one(capture(model, text, 'resid_post.2')['resid_post.2']).detach()
    torch.testing.assert_close(got[:,1:], want[:,1:], rtol=1e-4, atol=1e-4)
