"Edits by mean differences, of recurrent states and of weights, detectors carried across models: closed forms, planted behaviours, controls that do nothing, the model left as it was"
import numpy as np, pytest, torch
from torch import nn
from sparsenb.analyses.caa import mean_difference, state_added
from sparsenb.analyses.gradient_correction import correction
from sparsenb.analyses.subspace_alignment import principal_angles, principal_directions
from sparsenb.analyses.task_vectors import TaskVector, applied, block_of, fit_scales, moved, scaled
from sparsenb.analyses.truthful_decoding import Detector, falsehood_detector, write
from sparsenb.core import UnknownName, analyses
from sparsenb.hooks import add, edited
from sparsenb.models import load_model

torch.set_num_threads(1)
caa,task_vectors,subspace_alignment,truthful_decoding,gradient_correction = (analyses[k] for k in ('caa', 'task_vectors', 'subspace_alignment', 'truthful_decoding', 'gradient_correction'))
def normal(*s, seed=0): return torch.randn(*s, generator=torch.Generator().manual_seed(seed))
def same(a, b): return all(x.equal(y) for x,y in zip(a.values(), b.values())) and a.keys()==b.keys()
def state(m): return {k: v.clone() for k,v in m.state_dict().items()}

# ---- mean differences ----

def build(d=16, seed=0):
    "Inputs pass through as they are; class 0 reads coordinate 0, all else is noise"
    m = nn.Sequential(nn.Identity(), nn.Linear(d, 3, bias=False))
    m[1].weight.data = normal(3, d, seed=seed)*0; m[1].weight.data[0,0] = 1.
    return m

def pairs(n=60, d=16, gap=1., seed=1):
    x = normal(2, n, d, seed=seed); x[0,:,0] += gap; x[1,:,0] -= gap
    return x[0],x[1]

def test_states_at_plus_and_minus_u_give_2u():
    u = normal(1, 16)
    torch.testing.assert_close(mean_difference(build(), u.expand(7, -1), -u.expand(7, -1), '0'), 2*u[0])

def test_a_planted_direction_is_found_and_its_effect_on_other_pairs_is_its_length():
    plus,minus = pairs()
    r = caa(build(), plus, minus, '0', (0, 1), multipliers=(-2, -1, 1, 2), seed=0)
    v = r.vector
    assert abs(float(v[0])-2)<.6
    np.testing.assert_allclose(r['mean difference'][:,0], np.array([-2, -1, 1, 2])*float(v[0]), rtol=1e-4) # the model is linear
    assert (np.abs(r['random'][:,0])<np.abs(r['mean difference'][:,0])).all() and (np.abs(r['sides swapped by coin'][:,0])<np.abs(r['mean difference'][:,0])).all()
    assert '30 held-out pairs' in r.table().caption and 'made from 30 pairs' in r.caption
    assert r.lines().series.keys()==r.effects.keys() and 'mean difference' in r._repr_html_()

def test_swapping_plus_and_minus_turns_the_vector_round():
    plus,minus = pairs()
    a,b = (caa(build(), *p, '0', (0, 1), multipliers=(1,), seed=0) for p in ((plus, minus), (minus, plus)))
    torch.testing.assert_close(a.vector, -b.vector)
    np.testing.assert_allclose(a['mean difference'][:,0], -b['mean difference'][:,0], rtol=1e-5)

def test_the_vector_is_an_edit():
    plus,minus = pairs(); m = build()
    r = caa(m, plus, minus, '0', (0, 1), multipliers=(1,), seed=0)
    with edited(m, {'0': r.edit(2.)}): y = m(plus)
    torch.testing.assert_close(y, m(plus+2*r.vector))
    assert not any(x._forward_hooks for x in m.modules())

def test_texts_of_unequal_length_are_read_at_their_own_last_token():
    m = load_model('stdlib-4l')
    texts,other = ['def a(', 'class Reader:\n    def close('],['for i in', 'while True: x =']
    each = [mean_difference(m, [a], [b], 'resid_post.1') for a,b in zip(texts, other)]
    torch.testing.assert_close(mean_difference(m, texts, other, 'resid_post.1'), sum(each)/2)

@pytest.mark.parametrize('change, said', [
    (dict(minus=normal(3, 16)), '60 with, 3 without'), (dict(multipliers=(1, float('nan'))), 'finite numbers'), (dict(multipliers=()), 'finite numbers'),
    (dict(test=1.), 'between 0 and 1'), (dict(measure=lambda y: y.mean()), 'one number for each'), (dict(site='1', measure=lambda y: y), 'one number for each')])
def test_bad_pairs_are_refused(change, said):
    plus,minus = pairs()
    with pytest.raises(ValueError, match=said): caa(build(), **(dict(plus=plus, minus=minus, site='0', measure=(0, 1))|change))

def test_an_unknown_site_is_refused():
    with pytest.raises(UnknownName, match='unknown site'): caa(build(), *pairs(), 'zero', (0, 1))

# ---- recurrent states ----

class Reader(nn.Module):
    def __init__(self, cls, layers=1, batch_first=True):
        super().__init__()
        with torch.random.fork_rng(): torch.manual_seed(0); self.rnn,self.head = cls(3, 5, layers, batch_first=batch_first),nn.Linear(5, 2)
    def forward(self, x): return self.head(self.rnn(x)[0])

@pytest.mark.parametrize('cls', [nn.RNN, nn.GRU])
def test_a_steered_state_is_that_of_a_loop_written_out(cls):
    m,x,v = Reader(cls).eval(),normal(2, 6, 3),normal(5, seed=3)
    cell = {nn.RNN: nn.RNNCell, nn.GRU: nn.GRUCell}[cls](3, 5)
    cell.load_state_dict({k[:-3]: w for k,w in m.rnn.state_dict().items()})
    for at in (0, 2, 5):
        h,out = torch.zeros(2, 5),[]
        for t in range(6): h = cell(x[:,t], h)+(1.5*v if t==at else 0); out.append(h)
        with state_added(m, 'rnn', v, 1.5, at): y = m(x)
        torch.testing.assert_close(y, m.head(torch.stack(out, 1)))
    assert not m.rnn._forward_hooks

def test_only_the_named_layer_is_steered_and_time_may_come_first():
    m,x,v = Reader(nn.GRU, 2, False).eval(),normal(6, 2, 3),normal(5, seed=3)
    with state_added(m, 'rnn', v, 1., 5, layer=0): y,_ = m.rnn(x)
    torch.testing.assert_close(y, m.rnn(x)[0])           # the last step of the last layer was made before the change
    with state_added(m, 'rnn', v, 1., 3, layer=0): y,_ = m.rnn(x)
    plain = m.rnn(x)[0]
    torch.testing.assert_close(y[:4], plain[:4]); assert (y[4:]-plain[4:]).abs().max()>1e-3

def test_an_output_edit_does_not_carry_on_and_a_state_edit_does():
    m,x,v = Reader(nn.GRU).eval(),normal(2, 6, 3),normal(5, seed=3)
    plain = m(x)
    with edited(m, {'rnn': add(v, 1., positions=2)}): y = m(x)
    torch.testing.assert_close(y[:,3:], plain[:,3:])
    with state_added(m, 'rnn', v, 1., 2): z = m(x)
    torch.testing.assert_close(z[:,2], y[:,2]); assert (z[:,3:]-plain[:,3:]).abs().max()>1e-2

def test_the_mean_difference_of_a_recurrent_state_steers():
    "The network sums its inputs; the sign of the sum is its answer"
    m = Reader(nn.RNN); m.rnn = nn.RNN(3, 5, nonlinearity='relu', batch_first=True)
    with torch.no_grad():
        for p in m.rnn.parameters(): p.zero_()
        m.rnn.weight_hh_l0.copy_(torch.eye(5)); m.rnn.weight_ih_l0[0,0] = 1; m.rnn.weight_ih_l0[1,0] = -1  # what is positive, what is negative
        m.head.weight.zero_(); m.head.bias.zero_(); m.head.weight[0,:2] = torch.tensor([1., -1.])
    x = normal(40, 6, 3)*.1
    plus,minus = x.clone(),x.clone(); plus[:,0,0] += 3; minus[:,0,0] -= 3
    r = caa(m, plus, minus, 'rnn', (0, 1), multipliers=(-1, 1), seed=0)
    assert r['mean difference'][1,1]>4 and r['mean difference'][0,2]<-4
    with state_added(m, 'rnn', r.vector, 1., 2): y = m(minus)[:,-1]
    assert float((y[:,0]>y[:,1]).float().mean())>.9

def test_bad_states_are_refused():
    m,v,x = Reader(nn.GRU),normal(5),normal(2, 6, 3)
    with pytest.raises(TypeError, match='RNN or GRU, is Linear'):
        with state_added(m, 'head', v): pass
    with pytest.raises(ValueError, match=r'direction of \(5,\)'):
        with state_added(m, 'rnn', v[:3]): pass
    with pytest.raises(ValueError, match='layer 1 of 1'):
        with state_added(m, 'rnn', v, layer=1): pass
    with pytest.raises(ValueError, match='step 6 of a sequence of 6'):
        with state_added(m, 'rnn', v, at=6): m(x)
    assert not m.rnn._forward_hooks

# ---- task vectors ----

def net(seed): # two blocks and a head
    with torch.random.fork_rng(): torch.manual_seed(seed); return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

def test_scale_one_is_the_tuned_network_and_zero_is_the_base():
    a,b,x = net(0),net(1),normal(5, 4)
    v,was = TaskVector.of(a, b),state(a)
    with applied(a, v): torch.testing.assert_close(a(x), b(x))
    with applied(a, v, 0.): assert a(x).equal(net(0)(x))
    with applied(a, v): c = TaskVector.of(net(0), a)
    assert same(state(a), was) and abs(c.cosine(v)-1)<1e-6

def test_arithmetic():
    a,v,w = net(0),TaskVector.of(net(0), net(1)),TaskVector.of(net(0), net(2))
    assert (v-v).norm==0 and abs((2*v).norm-2*v.norm)<1e-4 and abs((-v).cosine(v)+1)<1e-9 and np.isnan((v-v).cosine(v))
    for k,t in (v+.5*w).deltas.items(): torch.testing.assert_close(t, v.deltas[k]+.5*w.deltas[k])
    assert moved(a, v, 1.)['0.weight'].data_ptr()!=a[0].weight.data_ptr()

def test_blocks_go_by_their_own_scales():
    a,b = net(0),net(1)
    v = scaled(TaskVector.of(a, b), {'0': 1.})
    with applied(a, v): torch.testing.assert_close(a[0].weight, b[0].weight); assert a[2].weight.equal(net(0)[2].weight)
    assert [block_of(k) for k in ('transformer.h.11.attn.c_attn.weight', 'transformer.wte.weight', 'scale')]==['transformer.h.11', 'transformer.wte', 'scale']

def test_the_callers_tensors_are_never_written_to_also_when_the_block_fails():
    a = net(0); own,was,grad = dict(a.named_parameters()),state(a),torch.ones(6, 4)
    a[0].weight.grad = grad
    v = TaskVector.of(a, net(1))
    with pytest.raises(ZeroDivisionError):
        with applied(a, v):
            with torch.no_grad(): a[0].weight.zero_()
            1/0
    assert all(p is own[k] for k,p in a.named_parameters()) and same(state(a), was) and a[0].weight.grad is grad

def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self): super().__init__(); self.embed,self.head = nn.Embedding(5, 3),nn.Linear(3, 5, bias=False); self.head.weight = self.embed.weight
        def forward(self, x): return self.head(self.embed(x))
    m = Tied(); v = TaskVector.of(m, {'embed.weight': m.embed.weight+1})
    with applied(m, v): assert m.head.weight is m.embed.weight
    assert m.head.weight is m.embed.weight and len(v.deltas)==1

def test_coefficients_of_a_mixture_are_found_block_by_block():
    "Learned on inputs that the check does not use"
    a,v,w = net(0),TaskVector.of(net(0), net(1)),TaskVector.of(net(0), net(2))
    v,w = v*.5,w*.5
    goal = net(0); goal.load_state_dict(moved(a, scaled(v, {'0': .8, '2': .2})+scaled(w, {'0': -.3, '2': .6})))
    was = state(a)
    found = fit_scales(a, dict(v=v, w=w), [normal(256, 4)], lambda call, x: (call(x)-goal(x)).pow(2).mean(), steps=500)
    for n,b,c in (('v', '0', .8), ('v', '2', .2), ('w', '0', -.3), ('w', '2', .6)): assert abs(found[n][b]-c)<.05, (n, b, found)
    assert same(state(a), was) and a[0].weight.grad is None

def test_the_curve_runs_from_the_base_to_the_task():
    a,b,x = net(0),net(1),normal(200, 4)
    t = task_vectors(a, dict(one=b, two=net(2)), lambda m: (m.module(x)-b(x)).pow(2).sum(1), scales=(0, .5, 1), seed=0)
    e = t['one'][:,0]
    assert e[0]>e[1]>e[2] and e[2]<1e-8 and (t['one'][0]==t['two'][0]).all()
    assert t['two'][2,1]>1e-3 and set(t.values)=={'one', 'two', 'sum'}
    z = t.cosines().z
    np.testing.assert_allclose(np.diag(z), 1, atol=1e-6); assert len(t.table().rows)==3

def test_bad_networks_are_refused():
    a = net(0)
    with pytest.raises(ValueError, match="only one has '2.bias'"): TaskVector.of(a, {k: v for k,v in a.state_dict().items() if k!='2.bias'})
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(6, 4\) in the base, \(6, 5\)"): TaskVector.of(a, state(a)|{'0.weight': torch.zeros(6, 5)})
    with pytest.raises(UnknownName, match='unknown block'): scaled(TaskVector.of(a, net(1)), {'3': 1.})
    with pytest.raises(ValueError, match='no weight'): moved(a, TaskVector({'x.weight': torch.zeros(1)}))
    with pytest.raises(ValueError, match='no tuned network'): task_vectors(a, {}, lambda m: torch.ones(3))
    with pytest.raises(ValueError, match='one number for each example'): task_vectors(a, dict(b=net(1)), lambda m: torch.ones(3, 2))
    with pytest.raises(ValueError, match='at least one vector'): fit_scales(a, {}, [1], None)
    with pytest.raises(ValueError, match='the loss is nan'): fit_scales(a, dict(v=TaskVector.of(a, net(1))), [normal(4, 4)], lambda call, x: call(x).sum()*float('nan'), steps=1)

# ---- subspaces ----

def states(n, seed, d=40):
    "Truth moves four directions of different variance"
    rng = np.random.default_rng(seed); y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d))*.3; x[:,:4] += rng.normal(size=(n, 4))*[2, 1.7, 1.4, 1.1]+np.outer(2*y-1, [1.2, 1.1, 1.3, .9])
    return x,y

def test_alignment_undoes_order_and_sign_of_the_principal_directions():
    (xs,ys),(xt,yt) = states(600, 0),states(600, 1)
    P,Q = principal_directions(xs, 4),principal_directions(xt, 4)
    want = subspace_alignment(xs, ys, xt, yt, bases=(P, Q), seed=0)
    for order,sign in (([2, 0, 3, 1], [-1, 1, 1, -1]), ([3, 2, 1, 0], [-1, -1, -1, -1])):
        r = subspace_alignment(torch.tensor(xs), torch.tensor(ys), xt, yt, bases=(P, Q[:,order]*sign), seed=0)
        assert abs(r['aligned'][0]-want['aligned'][0])<1e-3 and abs(r['aligned'][0]-r['raw'][0])<.02
        assert r['unaligned'][0]<r['aligned'][0]-.1 and r.overlap>.8 and not r.doubt
        assert r.tpr['aligned'][0]>.5 and r.tpr['aligned'][1]<r.tpr['aligned'][0]<r.tpr['aligned'][2]

def test_a_rotation_of_the_states_is_not_undone_and_said_to_be_in_doubt():
    (xs,ys),(xt,yt) = states(600, 0),states(600, 1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]
    r = subspace_alignment(xs, ys, xt@turn, yt, seed=0)
    assert r.overlap<.2 and 'arbitrary' in r.doubt and 'arbitrary' in r.table().caption and r.angles.min()>40

def test_principal_angles_of_known_planes():
    a,b = np.eye(5)[:,:2],np.stack([np.eye(5)[0], np.cos(.3)*np.eye(5)[1]+np.sin(.3)*np.eye(5)[2]], 1)
    np.testing.assert_allclose(principal_angles(a, b), [0, np.degrees(.3)], atol=1e-5)
    assert np.allclose(principal_angles(a, np.eye(5)[:,3:]), 90)

@pytest.mark.parametrize('change, said', [(dict(target=np.ones((600, 9))), '40 dimensions, target states 9'), (dict(target_y=np.ones(600)), 'both labels'), (dict(source_y=np.ones(5)), 'one label for each'),
    (dict(k=41), 'k must be in 1..40'), (dict(fpr=0), 'between 0 and 1'), (dict(bases=(np.ones((40, 4)),)*2), 'orthonormal'), (dict(source=np.full((600, 40), np.nan)), 'finite states')])
def test_bad_states_of_detectors_are_refused(change, said):
    (xs,ys),(xt,yt) = states(600, 0),states(600, 1)
    with pytest.raises(ValueError, match=said): subspace_alignment(**(dict(source=xs, source_y=ys, target=xt, target_y=yt)|change))

# ---- writing under a detector ----

class Liar(nn.Module):
    "After subject s (0 to 7) comes 8+s, which is true, or 16+s, which is false and for the liars slightly likelier; then any next subject. The last coordinate of the state tells"
    def __init__(self, lies=(0, 2, 3, 6)):
        super().__init__()
        E,W = torch.zeros(24, 25),torch.full((24, 25), -9.)
        E[:,:24] = torch.eye(24)*3; E[16:,24] = 1.
        for s in range(8): W[8+s,s] = 4.; W[16+s,s] = 4.5 if s in lies else 2.; W[(s+1)%8,8+s] = W[(s+1)%8,16+s] = 5.
        W[:,24] = 0.
        self.embed,self.head = nn.Embedding.from_pretrained(E),nn.Linear(25, 24, bias=False); self.head.weight.data = W
    def forward(self, ids): return self.head(self.embed(ids))

eye = Detector(torch.eye(25)[24], .5)
starts = [torch.tensor([s]) for s in range(8)]

def test_planted_falsehoods_are_not_written_and_all_else_is():
    m = Liar()
    assert write(m, starts[0], 8, 'embed', None).ids.tolist()==[16, 1, 9, 2, 18, 3, 19, 4]
    w = write(m, starts[0], 8, 'embed', eye)
    assert w.ids.tolist()==[8, 1, 9, 2, 10, 3, 11, 4] and (w.flagged, w.changed)==(3, 3)
    assert write(Liar(()), starts[0], 8, 'embed', eye).changed==0
    assert not m.embed._forward_hooks and m.training

def test_where_all_are_flagged_the_least_flagged_is_taken():
    m = Liar()
    w = write(m, starts[0], 2, 'embed', lambda h: 1+h[:,24], tries=2)
    assert w.ids[0]==8 and w.flagged==2 and write(m, starts[0], 2, 'embed', eye, tries=1).ids.tolist()==[16, 1]

def test_a_fitted_detector_beats_a_coin():
    m,g = Liar(),torch.Generator().manual_seed(0)
    ids = torch.randint(24, (300,), generator=g)
    fitted = falsehood_detector(m.embed(ids)+.1*torch.randn(300, 25, generator=g), ids>=16, .01)
    r = truthful_decoding(m, starts, fitted, 'embed', lambda p, new: new>=16, n=16, seed=0)
    assert abs(r['as it is'][0]-.25)<1e-9 and r['detector'][0]==0 and r['coin'][1]>0
    assert r.changed['detector'][0]==.25 and .1<r.changed['coin'][0]<.4 and r.changed['as it is'][0]==0

def test_generated_text_is_the_models_own_without_flags():
    m = load_model('stdlib-4l'); ids = m.tokens('def area(')[0][0]
    out = m.module.generate(ids[None], do_sample=False, max_new_tokens=5, attention_mask=torch.ones(1, len(ids)).long(), pad_token_id=m.pad_id)
    assert write(m, ids, 5, 'resid_post.1', None).ids.tolist()==out[0,len(ids):].tolist()

def test_the_threshold_keeps_to_its_specificity():
    g = torch.Generator().manual_seed(1); y = torch.arange(1000)%10==0; h = torch.randn(1000, 5, generator=g)
    for fpr in (.01, .05, .2): assert abs(float((falsehood_detector(h, y, fpr)(h)[~y]>0).float().mean())-fpr)<.01

def test_bad_detectors_are_refused():
    m = Liar()
    with pytest.raises(ValueError, match='with 0 false'): falsehood_detector(torch.ones(4, 2), [0]*4)
    with pytest.raises(ValueError, match='fpr must be'): falsehood_detector(torch.eye(4), [0, 1, 0, 1], 1.)
    with pytest.raises(ValueError, match='one number for each of 4 states'): write(m, starts[0], 1, 'embed', lambda h: h)
    with pytest.raises(ValueError, match='at least 1 new token'): write(m, starts[0], 0, 'embed', eye)
    with pytest.raises(ValueError, match='no prompts'): truthful_decoding(m, [], eye, 'embed', lambda p, new: new>=16)
    with pytest.raises(ValueError, match='one answer for each of 3'): truthful_decoding(m, starts, eye, 'embed', lambda p, new: [True], n=3)
    with pytest.raises(UnknownName, match='unknown site'): truthful_decoding(m, starts, eye, 'embedd', lambda p, new: new>=16)

# ---- gradients of states ----

def test_a_linear_answer_is_corrected_along_its_weights():
    m,x = build(),normal(9, 16)
    d = correction(m, x, '0', lambda y: y[:,0], 4, .05)
    want = torch.zeros(9, 16); want[:,0] = .2*x.norm(dim=1)
    torch.testing.assert_close(d, want)

def test_a_recurrent_state_is_corrected_step_by_step_and_the_network_left_alone():
    m,x = Reader(nn.GRU),normal(60, 6, 3); m.train(); was = state(m)
    r = gradient_correction(m, x, 'rnn', lambda y: y[:,-1,0]-y[:,-1,1], judge=lambda y: y[:,0,0], steps=3, lr=.2, seed=0)
    s = r['objective']
    assert s['gradient'][1]>s['as it is'][2] and s['gradient'][0]>s['random direction'][0]
    assert not r.delta[:,:-1].any() and r['judge']['gradient']==r['judge']['as it is']  # only the last output is read by the objective
    assert same(state(m), was) and m.training and all(p.grad is None for p in m.parameters()) and not m.rnn._forward_hooks

def test_a_language_model_says_the_wanted_token():
    m = load_model('stdlib-4l'); ids = m.tokens('def area(radius):')[0]; want = 100
    r = gradient_correction(m, ids, 'resid_post.2', lambda y: y[:,-1].log_softmax(-1)[:,want], steps=8, lr=.2, seed=0)
    assert r['objective']['gradient'][0]>r['objective']['as it is'][0]+2 and r['objective']['gradient'][0]>r['objective']['random direction'][0]+2
    with edited(m, {'resid_post.2': r.edit()}): y = m.logits(ids)
    assert abs(float(y[0,-1].log_softmax(-1)[want])-r['objective']['gradient'][0])<1e-3

def test_bad_objectives_are_refused():
    m,x = build(),normal(4, 16)
    for of,said in ((lambda y: y[:,0].detach(), 'no gradient reaches'), (lambda y: y[:,1]*0, 'no gradient reaches'), (lambda y: y, 'one number for each of 4')):
        with pytest.raises(ValueError, match=said): gradient_correction(m, x, '0', of)
    with pytest.raises(ValueError, match='at least 1 step'): gradient_correction(m, x, '0', lambda y: y[:,0], steps=0)
    with pytest.raises(UnknownName, match='unknown site'): gradient_correction(m, x, 'zero', lambda y: y[:,0])
