"Interchange interventions: closed forms, exact inverses, planted variables that are found, random networks that must not be mistaken for them, bad pairs refused"
import numpy as np, pytest, torch
from torch import nn
from sparsenb.analyses.das import Alignment, Coupling, Identity, Interchange, Rotation, alignments, counterfactual, equality_network, exchanged, hierarchical_equality, hits, redrawn
from sparsenb.core import UnknownName, analyses
from sparsenb.hooks import capture
from sparsenb.models import load_model
from sparsenb.scores import Score

torch.set_num_threads(1)
das = analyses['das']

class Both(nn.Module):
    "State = R [z1, z2, noise]; answers whether both bits are set, exactly"
    def __init__(self, seed, d=8):
        super().__init__()
        self.hidden = nn.Linear(d, d, bias=False); self.hidden.weight.data = Rotation(d, seed).weight.detach().float()
    def forward(self, x):
        both = (self.hidden(x)@self.hidden.weight)[:,:2].min(1).values-.5
        return torch.stack([-both, both], 1)*8

def bits(n, seed, d=8):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, d, generator=g); x[...,:2] = torch.randint(2, (2, n, 2), generator=g).float()
    k = torch.randint(2, (n,), generator=g)
    return Interchange(x[0], x[1], k, torch.where(torch.arange(2)==k[:,None], x[1,:,:2], x[0,:,:2]).prod(1).long())

class True_(nn.Module):
    "The rotation back"
    def __init__(self, m): super().__init__(); self.R = m.hidden.weight.detach()
    def forward(self, h): return h@self.R
    def inverse(self, y): return y@self.R.T

def iia(m, data, phi, size=1):
    m = load_model(m)
    return hits(m, data, capture(m, data.source, 'hidden')['hidden'], 'hidden', phi, size).mean()

def test_the_true_rotation_is_never_wrong_and_neurons_do_as_doing_nothing_does():
    data,neurons = bits(4000, 1),[]
    for seed in range(8):
        m = Both(seed)
        assert iia(m, data, True_(m))==1
        neurons.append(iia(m, data, Identity(8)))
    assert .69<np.mean(neurons)<.78 and max(neurons)<.85         # .754 for one such rotation
    assert abs(iia(m, data, None)-.75)<.03                       # a bit from elsewhere changes the answer in a quarter of pairs

def test_a_rotation_is_learned_and_told_from_a_random_network():
    a = das(Both(0), bits(2000, 1), bits(1000, 2), 'hidden', ('identity', 'rotation'), size=1, steps=250, points=3, seed=3)
    s = a['rotation']
    assert s['network'].value>=.99 and a.stands_out('rotation') and not a.stands_out('identity')
    for k in ('random network', 'sources dealt anew'): assert s[k].value<.85
    assert s['network'].lo<=s['network'].value<=s['network'].hi and s['network'].n==1000

@pytest.fixture(scope='module')
def equality():
    train,test = hierarchical_equality(6000)
    net,fresh = equality_network(train)
    return net,fresh,test,das(net, train, test, '1', ('rotation', 'coupling'), random=fresh, steps=800, points=3, seed=0)

def test_couplings_reach_a_high_accuracy_on_a_random_network(equality):
    "The warning of Sutter et al.; the network that is never trained answers at chance, and a rotation finds nothing in it"
    net,fresh,test,a = equality
    x = test.source; y = ((x[:,0]==x[:,1])==(x[:,2]==x[:,3])).long()
    assert (net(x).argmax(1)==y).float().mean()>.95 and (fresh(x).argmax(1)==y).float().mean()<.65
    assert a['coupling']['random network'].value>.8 and a['coupling']['network'].value>.9
    assert not a.stands_out('coupling')                          # however much better the trained network does
    assert a['rotation']['random network'].value<.62 and a['coupling']['sources dealt anew'].value<.62

def test_the_view_shows_the_random_network_beside_the_honest_one(equality):
    a = equality[-1]; t = a.table()
    assert t.columns==('map', 'network', 'random network', 'sources dealt anew', 'nothing exchanged', 'stands out')
    assert [r[0] for r in t.rows]==['rotation', 'coupling'] and all(len(c)==3 for r in t.rows for c in r[1:5])
    assert set(a.lines().series)=={f'{m}, {n}' for m in ('rotation', 'coupling') for n in ('network', 'random network')}
    assert 'random network' in a._repr_html_()

def test_what_stands_out():
    s = lambda v, w=.01: Score(v, v-w, v+w, 1000, 0, 'iia/1')
    def out(net, rand, dealt=.5): return Alignment('x', dict(rotation=dict(zip(('network', 'random network', 'sources dealt anew'), map(s, (net, rand, dealt))))), s(.5), np.arange(2), {}, {}, '').stands_out('rotation')
    assert out(.9, .5) and out(.9, .69) and not out(.9, .71) and not out(.9, .5, .895) and not out(.51, .5)

def test_inputs_of_held_out_pairs_are_new():
    train,test = hierarchical_equality(500)
    rows = lambda d: {tuple(r) for x in (d.base, d.source) for r in x.tolist()}
    assert not rows(train)&rows(test)
    for d in (train, test):
        z = lambda x: torch.stack([x[:,0]==x[:,1], x[:,2]==x[:,3]], 1)
        new = torch.where(torch.arange(2)==d.variable[:,None], z(d.source), z(d.base))
        assert (d.label==(new[:,0]==new[:,1])).all()

# ---- maps ----

@pytest.mark.parametrize('name', alignments)
@pytest.mark.parametrize('d', [2, 7, 16])
def test_there_and_back(name, d):
    phi,g = alignments[name](d),torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in phi.parameters(): p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype)*.4)
    h = torch.randn(100, d, generator=g, dtype=torch.float64)
    assert (phi.inverse(phi(h))-h).abs().max()<1e-8
    if name=='rotation': torch.testing.assert_close(phi(h).norm(dim=1), h.norm(dim=1))
    if name=='coupling': assert (phi(h[:50])+phi(h[50:])-phi(h[:50]+h[50:])-phi(h[:1]*0)).abs().max()>.1   # not affine

def test_an_exchange_touches_the_variables_coordinates_only():
    g = torch.Generator().manual_seed(0)
    b,s,k = torch.randn(6, 8, generator=g),torch.randn(6, 8, generator=g),torch.tensor([0, 1, 0, 1, 1, 0])
    new = exchanged(Identity(8), b, s, k, 3)
    for r,v in enumerate(k.tolist()):
        own = slice(3*v, 3*v+3); keep = [i for i in range(8) if not 3*v<=i<3*v+3]
        assert new[r,own].equal(s[r,own]) and new[r,keep].equal(b[r,keep])
    for cls in (Rotation, Coupling): torch.testing.assert_close(exchanged(cls(8).float(), b, b, k, 4), b)

def test_couplings_begin_as_their_rotation():
    h = torch.randn(5, 6, dtype=torch.float64)
    assert Coupling(6, 3)(h).equal(Rotation(6, 3)(h))

# ---- the model ----

def test_the_model_is_left_alone_and_the_seed_decides():
    m = Both(0); m.train(); was,grad = m.hidden.weight.detach().clone(),torch.ones(8, 8); m.hidden.weight.grad = grad.clone()
    a,b = (das(m, bits(200, 1), bits(100, 2), 'hidden', 'rotation', size=1, steps=5, points=2, seed=7) for _ in range(2))
    assert m.hidden.weight.equal(was) and m.hidden.weight.grad.equal(grad) and m.training and not m.hidden._forward_hooks
    assert a.scores==b.scores and a.maps['rotation'].turn.equal(b.maps['rotation'].turn)
    r = redrawn(m, 0)
    assert not r.hidden.weight.equal(was) and abs(float(r.hidden.weight.detach().std()/was.std())-1)<.3 and m.hidden.weight.equal(was)

def test_a_network_in_half_precision_is_read():
    data = bits(300, 1)._replace(label=torch.zeros(300, dtype=torch.long))
    data,m = data._replace(base=data.base.bfloat16(), source=data.source.bfloat16()),Both(0).bfloat16()
    a = das(m, data, data, 'hidden', ('identity', 'rotation', 'coupling'), size=1, steps=2, points=2, seed=0)
    assert all(p.dtype==torch.float32 for p in a.maps['rotation'].parameters()) and m.hidden.weight.dtype==torch.bfloat16
    states = capture(m, data.source, 'hidden')['hidden'].float()
    net = load_model(m)
    out = counterfactual(net, data, states, 'hidden', a.maps['identity'], 1)
    assert out.dtype==torch.bfloat16 and not out.equal(counterfactual(net, data, states, 'hidden', None, 1))

def test_a_sequence_is_exchanged_at_one_position():
    m = load_model('stdlib-4l')
    ids = torch.randint(3, 8000, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    data = Interchange(ids[0], ids[1], torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    h = capture(m, ids[1], 'resid_post.3')['resid_post.3'][:,-1]
    with torch.no_grad():
        y = counterfactual(m, data, h, 'resid_post.3', Identity(256), 256)
        torch.testing.assert_close(y, m.logits(ids[1])[:,-1])
        y = counterfactual(m, data, h, 'resid_post.3', Identity(256), 256, position=2)
        torch.testing.assert_close(y, m.logits(ids[0])[:,-1])
    a = das(m, data, data, 'resid_post.3', 'rotation', steps=1, points=2, seed=0)
    assert a['rotation']['network'].n==3

# ---- bad input ----

@pytest.mark.parametrize('change, error, said', [
    (dict(site='hiden'), UnknownName, "did you mean 'hidden"), (dict(maps='rotatoin'), UnknownName, "did you mean 'rotation'"), (dict(maps=()), ValueError, 'at least one map'),
    (dict(size=5), ValueError, 'size from 1 to 4'), (dict(steps=0), ValueError, '1 step'), (dict(train=torch.ones(3)), TypeError, 'Interchange'),
    (dict(test=bits(9, 2)._replace(label=torch.ones(8).long())), ValueError, '9, 9, 9, 8'), (dict(test=bits(9, 2)._replace(label=torch.ones(9))), ValueError, 'test.label must hold one whole number'),
    (dict(test=bits(9, 2)._replace(label=torch.full((9,), 2))), ValueError, 'label 2 of a model with 2 answers'), (dict(test=bits(9, 2)._replace(base=torch.ones(9, 7))), ValueError, r'shape \(9, 7\)')])
def test_bad_pairs_are_refused(change, error, said):
    with pytest.raises(error, match=said): das(**(dict(model=Both(0), train=bits(9, 1), test=bits(9, 2), site='hidden', steps=2, points=2)|change))

def test_texts_must_be_of_equal_length():
    d = Interchange(['a b', 'a'], ['c', 'd'], torch.tensor([0, 0]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match='equal length in tokens'): das('stdlib-4l', d, d, 'resid_post.1', 'identity')
