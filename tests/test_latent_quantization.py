"Latent quantisation: nearest values, the straight-through loss, AdamW's decay under `fit`, folding through its layers, sources taken apart"
import itertools
import pytest, torch
import torch.nn.functional as F
from sparsenb.core import dictionaries, testbeds
from sparsenb.dictionary import Stats, load_dictionary
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
QLAE = dictionaries['latent_quantization']
exact = dict(rtol=0, atol=0)
gen = lambda seed=0: torch.Generator().manual_seed(seed)
def data(n=512, d=8, seed=0): return 2+torch.randn(n, d, generator=gen(seed))@torch.randn(d, d, generator=gen(9))
def stats(x): return Stats(x.mean(0), (x.shape[1]/x.square().sum(1).mean()).sqrt().item(), x)

def stirred(**kw):
    "A dictionary whose added layers and values are no longer what they start as"
    d = QLAE(8, 6, **kw)
    d.init_from(stats(data()), *([stats(data(d=kw['d_out'], seed=1))] if 'd_out' in kw else []))
    with torch.no_grad():
        for i,p in enumerate(d.parameters()):
            p.add_(.1*torch.randn(p.shape, generator=gen(i)))
    return d

@pytest.mark.parametrize('n_values', [2, 3, 10])
def test_nearest_value_is_the_nearest(n_values):
    from sparsenb.dictionaries.latent_quantization import nearest_value
    z,v = 2*torch.randn(300, 5, generator=gen()),torch.randn(5, n_values, generator=gen(1))
    q = nearest_value(z, v)
    torch.testing.assert_close((q-z).abs(), (z[:,:,None]-v).abs().amin(2), **exact)
    assert (q[:,:,None]==v).any(2).all()

def test_every_latent_has_one_of_its_values():
    d,x = stirred().eval(),data()
    f = d.encode(x)
    assert (f[:,:,None]==d.values).any(2).all() and d.codes(x).l0().eq(6).all() and d.sparsity is None

@pytest.mark.parametrize('kw', [{}, dict(hidden=5), dict(d_out=3), dict(n_values=0, hidden=5)])
def test_loss_and_gradients_are_those_written_out(kw):
    d,x = stirred(**kw),data(64)
    y = data(64, 3, seed=1) if 'd_out' in kw else None
    d.step(x, y).loss.backward()
    W = {n: p.detach().clone().requires_grad_() for n,p in d.named_parameters()}
    def layer(h, nm): return h + (h@W[f'{nm}.down'].t()+W[f'{nm}.bend']).relu()@W[f'{nm}.up'].t()+W[f'{nm}.rest'] if d.cfg['hidden'] else h
    xs = x*d.scale
    z = layer(xs if y is not None else xs-W['b_dec'].detach(), 'before')@W['W_enc'] + W['b_enc']
    if d.cfg['n_values']:
        at = (z[:,:,None]-W['values']).abs().argmin(2)
        q = W['values'].expand(64, *W['values'].shape).gather(2, at[:,:,None])[:,:,0]
    else: q = z
    x_hat = layer((z+(q-z).detach())@W['W_dec']+W['b_dec'], 'after')
    target = xs if y is None else y*d.scale_out
    loss = (x_hat-target).square().sum(1).mean() + d.d_out*.01*((z.detach()-q).square().mean()+(z-q.detach()).square().mean())
    loss.backward()
    torch.testing.assert_close(d.step(x, y).loss, loss)
    for n,p in d.named_parameters():
        torch.testing.assert_close(p.grad, W[n].grad, rtol=1e-4, atol=1e-5, msg=n)

def test_fit_decays_as_adamw_does():
    "Through `fit`, with a learning rate that rises and falls, against torch's AdamW on the same batches"
    x,kw = data(),dict(seed=3, hidden=4, weight_decay=2.)
    ours,theirs = QLAE(8, 6, **kw),QLAE(8, 6, **kw)
    xs,lrs = [],[]
    class Watch(Callback):
        def after_step(self, run, out): lrs.append(run.lr)
    batches = [x[i*32:(i+1)*32] for i in range(16)]*4
    fit(ours, batches, 64*32, 32, lr=3e-3, warmup=.2, decay=.5, seed=0, callbacks=[Watch()])
    theirs.init_from(Stats(ours.mean, ours.scale.item(), torch.cat(batches*2)[:4096]))
    matrix = lambda n,p: p.ndim==2 and n!='values'
    opt = torch.optim.AdamW([dict(params=[p for n,p in theirs.named_parameters() if matrix(n, p)==m], weight_decay=2.*m) for m in (True, False)], eps=1e-8)
    for b,lr in zip(batches, lrs, strict=True):
        for group in opt.param_groups: group['lr'] = lr
        opt.zero_grad(); theirs.step(b).loss.backward()
        for p in theirs.parameters(): p.grad.clamp_(-8, 8)
        opt.step()
    assert len(set(lrs))>30
    for (n,p),q in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=n)

def test_decay_reaches_matrices_alone():
    "With no gradient to speak of, one step shrinks matrices by lr times decay and leaves biases and values"
    d = stirred(hidden=4)
    was = {n: p.detach().clone() for n,p in d.named_parameters()}
    opt = torch.optim.SGD(d.parameters(), lr=.01)
    for p in d.parameters(): p.grad = torch.zeros_like(p)
    d.lr = .01; d.before_step(); opt.step()
    for n,p in d.named_parameters(): torch.testing.assert_close(p, was[n]*(1-.001*(p.ndim==2 and n!='values')), msg=n)

def test_gradients_are_clipped_element_by_element():
    d = stirred()
    d.step(1000*data(64)).loss.backward()
    before = {n: p.grad.clone() for n,p in d.named_parameters()}
    d.before_step()
    for n,p in d.named_parameters(): torch.testing.assert_close(p.grad, before[n].clamp(-8, 8), **exact)
    assert max(g.abs().max() for g in before.values())>8

@pytest.mark.parametrize('kw', [dict(hidden=7), dict(hidden=7, d_out=3), dict(n_values=0), dict(n_values=3)])
def test_folds_and_saves_with_all_its_parts(kw, tmp_path):
    d,x = stirred(**kw).eval(),data()
    g = d.fold()
    assert d.scale!=1 and g.scale==1 and g.scale_out==1
    same = (d.encode(x)-g.encode(x)).abs()<1e-3
    assert same.float().mean()>.998 # a pre-activation midway between two values may go to the other
    rows = same.all(1)
    torch.testing.assert_close(g(x)[rows], d(x)[rows], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(d.decode_codes(d.codes(x)), d(x))
    back = load_dictionary(d.save(tmp_path/'d'))
    assert back.cfg==d.cfg
    torch.testing.assert_close(back(x), d(x), **exact)

def test_resumes_with_hidden_layers(tmp_path):
    class Break(Callback):
        def after_step(self, run, out):
            if run.step==33: raise KeyboardInterrupt
    def train(path, **kw):
        d = QLAE(8, 6, hidden=4)
        fit(d, data(), 60*64, 64, path=path, checkpoint_every=10, **kw)
        return d
    a = train(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', callbacks=[Break()])
    for (n,p),q in zip(a.state_dict().items(), train(tmp_path/'b').state_dict().values()): torch.testing.assert_close(p, q, **exact, msg=n)

def test_wrong_arguments():
    for kw,say in ((dict(n_values=1), 'at least 2, or 0'), (dict(n_values=2.5), 'whole number of at least 0'), (dict(hidden=-1), 'hidden must be'), (dict(coef=-1), 'coef and weight_decay')):
        with pytest.raises(ValueError, match=say): QLAE(8, 4, **kw)

@pytest.mark.parametrize('seed', [0, 1])
def test_quantisation_takes_sources_apart(seed):
    "Three sources of five values in six latents, 3000 steps: modularity well above the plain autoencoder's, also when its latents are cut into ten bins"
    bed = testbeds['factors'](seed=seed, batch_size=128)
    def train(n_values):
        d = QLAE(16, 6, seed=seed, n_values=n_values, hidden=64)
        fit(d, bed, 3000*128, 128)
        return d
    qlae,plain = train(10),train(0)
    a,b = (bed.infomec(d, 4000, n_boot=0) for d in (qlae, plain))
    assert a.discrete and not b.discrete
    assert a.infom.value>.8 and b.infom.value<.7 and a.infom.value>b.infom.value+.2
    assert a.infoe.value>.97 and b.infoe.value>.97
    truth = bed.sample(4000)
    z = plain.encode(truth.x).detach()
    binned = torch.stack([torch.bucketize(c.contiguous(), torch.linspace(c.min(), c.max(), 11)[1:-1]) for c in z.t()], 1)
    from sparsenb.core import analyses
    assert a.infom.value>analyses['infomec'](binned, truth.sources, n_boot=0).infom.value+.2
