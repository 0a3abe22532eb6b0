"Nested prefixes: one loss for features, embeddings and layers, and the views of what each cut is worth"
import functools
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from sparsenb.core import analyses, dictionaries, testbeds
from sparsenb.dictionaries.matryoshka import PrefixHead, nested_loss, sample_cuts
from sparsenb.dictionary import load_dictionary
from sparsenb.metrics import evaluate
from sparsenb.train import fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)

# ---- the loss ----

def test_nested_loss_by_hand():
    assert nested_loss(lambda m: m**2, (1, 2, 3))==14/3 and nested_loss(lambda m: m**2, (1, 2, 3), (3, 0, 1))==3
    assert nested_loss(lambda at: at[0]*at[1], [(2, 3), (4, 5)], (1, 3))==(6+60)/4
    asked = []
    nested_loss(lambda m: asked.append(m) or 1., (1, 2, 3), (1, 0, 1))
    assert asked==[1, 3] # what has no weight is not computed
    for bad in ((1, 1), (1, -1, 1), (0, 0, 0)):
        with pytest.raises(ValueError, match='3 weights of at least 0, not all 0, were expected'): nested_loss(lambda m: m, (1, 2, 3), bad)

def test_weighted_prefixes_of_a_dictionary(tmp_path):
    x,w = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)),(4., 1., .5)
    sae = dictionaries['matryoshka'](8, 20, k=3, prefixes=[2, 7], weights=w, k_aux=0)
    with torch.no_grad(): sae.b_dec.uniform_(-1, 1)
    out = sae.step(x); out.loss.backward()
    f = out.codes.dense(20)
    each = [(f[:,:m]@sae.W_dec[:m]+sae.b_dec-x).square().sum(1).mean() for m in (2, 7, 20)]
    torch.testing.assert_close(out.loss, sum(a*b for a,b in zip(w, each))/5.5)
    torch.testing.assert_close(out.parts['mse'], each[2].detach())
    W = sae.W_dec.detach().clone().requires_grad_() # the decoder's gradient is that of dense autograd
    (sum(a*(f[:,:m]@W[:m]+sae.b_dec.detach()-x).square().sum(1).mean() for a,m in zip(w, (2, 7, 20)))/5.5).backward()
    torch.testing.assert_close(sae.W_dec.grad, W.grad, rtol=1e-4, atol=1e-5)
    assert load_dictionary(sae.save(tmp_path/'d')).weights==list(w)
    make = dictionaries['matryoshka']
    with pytest.raises(ValueError, match='3 weights of at least 0'): make(8, 20, k=3, prefixes=[2, 7], weights=(1, 1))
    with pytest.raises(ValueError, match='weights belong to fixed prefixes'): make(8, 20, k=3, n_sampled=3, weights=(1, 1))

def test_all_weight_on_the_whole_is_batch_topk():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    a,b = dictionaries['matryoshka'](8, 16, k=3, prefixes=[4], weights=(0, 2)).step(x),dictionaries['batch_topk'](8, 16, k=3).step(x)
    torch.testing.assert_close(a.loss, b.loss)

def test_weight_moves_error_to_where_it_counts_less():
    "On the tree: nearly all weight on the three first features, and nearly none"
    bed = testbeds['tree']()
    def first_three(w):
        sae = dictionaries['matryoshka'](20, 20, k=2, prefixes=[3], weights=(w, 1-w))
        fit(sae, bed, 400*200, 200, lr=4e-3)
        return analyses['prefix_curve'](sae.eval(), bed.sample(4000).x, prefixes=(3, 20))['code']
    heavy,light = first_three(.9),first_three(.02)
    assert heavy[0]<light[0]-.03 and heavy[1]>light[1], (heavy, light)

# ---- the head ----

def test_head_loss_by_hand():
    g = torch.Generator().manual_seed(0)
    z,y = [torch.randn(50, 6, generator=g) for _ in range(2)],torch.randint(4, (50,), generator=g)
    for tied in (False, True):
        h = PrefixHead(6, 4, widths=(2, 3), n_layers=2, tied=tied, seed=1)
        with torch.no_grad(): h.b.normal_(generator=g)
        assert h.cuts==[(0,2), (0,3), (0,6), (1,2), (1,3), (1,6)]
        def one(l, m):
            i = 0 if tied else (2, 3, 6).index(m)
            return F.cross_entropy(z[l][:,:m]@h.W[l,i,:m]+h.b[l,i], y)
        torch.testing.assert_close(h.loss(z, y), sum(one(*c) for c in h.cuts)/6)
        torch.testing.assert_close(h.loss(z, y, [(1,6), (0,2)], (3, 1)), (3*one(1, 6)+one(0, 2))/4)
    alone = PrefixHead(6, 4, widths=(2,), seed=1)
    torch.testing.assert_close(alone.loss(z[0], y), alone.loss(z[:1], y), **exact)
    torch.testing.assert_close(alone(z[0], 2), alone(torch.cat([z[0][:,:2], torch.full((50, 4), 9.)], 1), 2), **exact) # what is cut off is not read
    with pytest.raises(ValueError, match='embeddings of 2 layers were expected, got 1'): h.loss(z[0], y)
    with pytest.raises(ValueError, match='a width among'): h(z, 4)
    with pytest.raises(ValueError, match='widths must rise'): PrefixHead(6, 4, widths=(3, 3))

def test_cuts_are_drawn_as_in_the_paper():
    "The last layer and another, the whole width and another: everything comes up, the whole always"
    torch.manual_seed(0)
    many = [sample_cuts(4, (2, 4, 8)) for _ in range(300)]
    assert all(len(c)==4 and (3, 8) in c and len({l for l,_ in c})==len({m for _,m in c})==2 for c in many)
    assert {at for c in many for at in c}=={(l, m) for l in range(4) for m in (2, 4, 8)}
    assert sample_cuts(1, (5,))==[(0, 5)]

def test_head_reads_a_dictionarys_codes():
    "The gradient reaches the encoder, and for a prefix only its features"
    sae,y = dictionaries['matryoshka'](8, 16, k=4),torch.tensor([0, 1, 2, 1])
    PrefixHead(16, 3, widths=(4,)).loss(sae.encode(torch.randn(4, 8, generator=torch.Generator().manual_seed(0))), y, [(0, 4)]).backward()
    assert sae.W_enc.grad[:,:4].any() and not sae.W_enc.grad[:,4:].any()

# ---- digits ----

@functools.cache
def digits():
    from sklearn.datasets import load_digits
    d = load_digits()
    return torch.tensor(d.data).float()/16, torch.tensor(d.target)

class Deep(nn.Module):
    "An embedding of 16 columns from each of several layers"
    def __init__(self, n_layers, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 16), *(nn.Linear(16, 16) for _ in range(n_layers-1))])
    def forward(self, x):
        x,out = self.layers[0](x),[]
        for layer in self.layers[1:]: x = layer(x.relu()); out.append(x)
        return out

def learnt(n_layers, seed, cuts, steps=250):
    "Embeddings of all digits after training on the rows that the probes learn from too; `cuts` draws those of a batch"
    x,y = digits()
    part = torch.tensor(np.random.default_rng(seed).permutation(len(x))[round(.3*len(x)):])
    net,head,g = Deep(n_layers, seed),PrefixHead(16, 10, n_layers=n_layers, seed=seed),torch.Generator().manual_seed(seed)
    opt = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(steps):
        at = part[torch.randint(len(part), (128,), generator=g)]
        opt.zero_grad(); head.loss(net(x[at]), y[at], cuts(head)).backward(); opt.step()
    with torch.no_grad(): return net(x)

@pytest.mark.parametrize('seed', [0, 1, 2])
def test_short_prefixes_of_a_nested_embedding_beat_those_of_a_plain_one(seed):
    codes = dict(plain=learnt(1, seed, lambda h: [(0, 16)])[0], nested=learnt(1, seed, lambda h: None)[0])
    c = analyses['prefix_curve'](codes, labels=digits()[1], prefixes=(1, 2, 4, 16), seed=seed)
    gain = c['nested']-c['plain']
    assert gain[0]>.08 and gain[1]>.1 and gain[2]>.02 and abs(gain[3])<.03 and c['nested'][1]>.75, c

@functools.cache
def deep(seed):
    "Three layers: prefixes of the last one alone, all cuts in both directions, four of them drawn for each batch"
    torch.manual_seed(seed)
    return [learnt(3, seed, cuts) for cuts in (lambda h: [(2, m) for m in h.widths], lambda h: None, lambda h: sample_cuts(3, h.widths))]

def test_two_dimensions_make_early_layers_useful():
    "The first layer, cut to 2 and 4 columns, gains; the whole of the last one loses nothing"
    one,both,drawn = np.array([[analyses['layer_grid'](z, labels=digits()[1], widths=(2, 4, 16), seed=s).values for z in deep(s)] for s in range(3)]).swapaxes(0, 1) # seed, layer, width
    assert (both[:,0,0]>one[:,0,0]+.06).all() and (both[:,0,1]>one[:,0,1]+.01).all() and both[:,2,2].mean()>one[:,2,2].mean()-.02, (one, both)
    assert drawn[:,0,0].mean()>one[:,0,0].mean()+.06 and drawn[:,0,1].mean()>one[:,0,1].mean()+.02, (one, drawn)

# ---- the views ----

def test_grid_numbers_are_those_of_direct_evaluation():
    from sklearn.linear_model import LogisticRegression
    zs,y = deep(0)[1],digits()[1].numpy()
    grid = analyses['layer_grid']({'a': zs[0], 'b': zs[2]}, labels=y, widths=(2, 16), seed=5)
    order = np.random.default_rng(5).permutation(len(y))
    held,train = order[:round(.3*len(y))],order[round(.3*len(y)):]
    for i,z in enumerate((zs[0], zs[2])):
        for j,m in enumerate((2, 16)):
            c = z.double().numpy()[:,:m]
            c = (c-c[train].mean(0))/c[train].std(0)
            want = LogisticRegression(max_iter=2000).fit(c[train], y[train]).score(c[held], y[held])
            s = grid.scores[i][j]
            assert s.value==pytest.approx(want, abs=1e-12) and s.lo<want<s.hi and s.n==len(held) and s.seed==5
    h = grid.heatmap()
    assert h.rows==('a', 'b') and h.cols==('2', '16') and np.array_equal(h.z, grid.values) and '<svg' in grid._repr_html_()

def test_curve_numbers_are_those_of_direct_evaluation():
    bed = testbeds['superposition']()
    sae = dictionaries['matryoshka'](64, 128, k=4)
    fit(sae, bed, 50*512, 512)
    x = 3*bed.sample(3000).x+1 # not the units it was trained in, and a mean
    c = analyses['prefix_curve']({'ours': sae, 'other': dictionaries['topk'](64, 128, k=4)}, x, prefixes=(4, 60, 128))
    for m,v,y in zip((4, 60, 128), c['ours'], sae.decode_prefixes(x, (4, 60, 128))):
        want = ((y-x).square().sum()/(x-x.mean(0)).square().sum()).item()
        assert v==pytest.approx(want, rel=1e-4)
    e = evaluate(sae, x, n_tokens=None, n_boot=2, progress=False)
    assert c['ours'][-1]==pytest.approx(e['fvu'].value, rel=1e-5) and sae.training
    v = c.lines()
    assert v.x.tolist()==[4, 60, 128] and set(v.series)=={'ours', 'other'} and np.array_equal(v.series['ours'], c['ours']) and '<svg' in c._repr_html_()
    grid = analyses['layer_grid']([sae, sae], [x, bed.sample(500).x], widths=(4, 128))
    assert grid.values[0]==pytest.approx(c['ours'][[0, 2]], rel=1e-6) and grid.layers==('0', '1')

def test_curve_of_a_dictionarys_codes_reads_labels():
    x,y = digits()
    sae = dictionaries['topk'](64, 32, k=8)
    fit(sae, x, 100*256, 256)
    c = analyses['prefix_curve'](sae, x, y, prefixes=(2, 32))
    f = sae.encode(x).detach()
    assert c['code'].tolist()==analyses['prefix_curve'](f, labels=y, prefixes=(2, 32))['code'].tolist() and c['code'][1]>.8

def test_views_refuse_what_does_not_fit():
    curve,grid = analyses['prefix_curve'],analyses['layer_grid']
    z,y = np.random.default_rng(0).normal(size=(30, 4)),np.arange(30)%3
    for kw,match in ((dict(of=z), 'labels are needed'), (dict(of=z, labels=y[:9]), r"'code' has 30 rows, labels have shape \(9,\)"), (dict(of=z, labels=y, prefixes=(2, 5)), 'at most the width 4, got'),
                     (dict(of=z, labels=y, test=1.), 'test is a share'), (dict(of=z[0], labels=y), r'an embedding is \(n, d\)'), (dict(of=dictionaries['topk'](4, 8, k=2), labels=y), 'pass x'),
                     (dict(of=dictionaries['topk'](4, 8, d_out=3, k=2), x=torch.tensor(z)), 'writes another activation'), (dict(of=np.where(z>1, np.nan, z), labels=y), 'is not finite')):
        with pytest.raises(ValueError, match=match): curve(**kw)
    with pytest.raises(ValueError, match='at least one layer'): grid([])
    with pytest.raises(ValueError, match='activations are of a, but the layers are 0'): grid([z], dict(a=z))
    with pytest.raises(ValueError, match='say to which widths'): grid([z, z[:,:2]], labels=y)
    assert curve(z, labels=y).prefixes.tolist()==[1, 2, 4] and grid([z], labels=y).widths.tolist()==[1, 2, 4]
