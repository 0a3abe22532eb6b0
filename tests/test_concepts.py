"Concept space, learned times, turns, trajectories and the controls of hidden capability: closed forms, known generators, bad input"
import numpy as np, pytest, torch
from torch import nn
from sparsenb.concepts import ConceptSpace, Prompt, Shifted, concept_signal, concept_space, learned_time, tokens_after
from sparsenb.core import UnknownName, analyses
from sparsenb.recorder import Checkpoints
from sparsenb.trajectory import Event, Trajectory, bends, smooth, through_layers, trajectory, turning_points

torch.set_num_threads(1)
def normal(*shape, seed=0): return np.random.default_rng(seed).normal(size=shape)

# ---- learned time, smoothing, turns ----

def test_the_window_opens_at_the_index_returned():
    acc = [.5, .95, .8, .91, .92, .93]
    assert learned_time(acc, sigma=0)==3 and learned_time(acc, range(0, 60, 10), sigma=0)==30 and learned_time(acc, sigma=0, run=4) is None and learned_time(acc, sigma=0, run=1)==1
    assert learned_time([.9]*5, sigma=0) is None and learned_time([.91]*3, sigma=0)==0 # above, not at
    from scipy.ndimage import binary_erosion
    centre = int(np.flatnonzero(binary_erosion(np.array(acc)>.9, np.ones(3)))[0])
    assert centre==learned_time(acc, sigma=0)+1 # what the paper's code returns
    late = np.r_[np.zeros(20), np.ones(20)]
    assert learned_time(late, sigma=1.5)>20 # smoothing moves a jump by the checkpoints that .9 of it takes
    for kw,said in ((dict(accuracy=[.5, np.nan]), 'with NaN'), (dict(accuracy=[[.5]]), 'got shape'), (dict(accuracy=[.5], run=0), 'run is a whole number'), (dict(accuracy=[.5], steps=[1, 2]), '1 accuracies, but 2 steps'), (dict(accuracy=[.5], sigma=-1), 'sigma is')):
        with pytest.raises(ValueError, match=said): learned_time(**kw)

def test_smoothing_is_scipys():
    from scipy.ndimage import gaussian_filter1d
    x = normal(30, 2)
    np.testing.assert_array_equal(smooth(x, 1.5), gaussian_filter1d(x, 1.5, axis=0)); np.testing.assert_array_equal(smooth(x, 0), x)

@pytest.mark.parametrize('radius', [.5, 3.])
def test_a_circle_has_the_curvature_of_its_radius_however_fast_it_is_gone(radius):
    t = 1.5*np.pi*np.linspace(0, 1, 400)**2
    _,bend,h = bends(radius*np.c_[np.cos(t), np.sin(t)], reach=.1, jitter=0)
    assert np.nanmedian(np.radians(bend)/h)==pytest.approx(1/radius, rel=.02) and np.nanmax(bend)==pytest.approx(np.nanmin(bend), rel=.05)

def test_turns_are_found_where_the_path_bends_also_after_waiting():
    legs = [np.linspace([0, 0], [1, 0], 15), np.tile([[1., 0]], (12, 1)), np.linspace([1, 0], [1, 1], 15), np.tile([[1., 1]], (9, 1))]
    for noise in (0, .004):
        p = np.concatenate(legs)+noise*normal(51, 2)
        t, = turning_points(p)
        assert 10<=t.index<=27 and np.abs(t.point-[1, 0]).max()<.15 and 60<t.angle<=91, (noise, t)
    assert turning_points(np.linspace([0, 0], [1, 1], 30)) == [] and turning_points(np.zeros((9, 2)))==[] and turning_points(np.eye(2))==[]
    z = np.concatenate([np.linspace(a, b, 15) for a,b in (((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (2, 1)))])
    assert sorted(t.index for t in turning_points(z))==pytest.approx([14, 29], abs=4)
    with pytest.raises(ValueError, match='NaN'): turning_points(np.full((5, 2), np.nan))

# ---- concept signal and space ----

def test_signals_of_known_generators():
    M = torch.tensor([[3., 0, 4], [0, .5, 0]])
    s = concept_signal(lambda z: (z@M), torch.rand(5, 2), ('a', 'b'))
    assert s['a']==pytest.approx([5]*5) and s['b']==pytest.approx([.5]*5)
    z = torch.tensor([[1., 2.]])
    s = concept_signal(lambda z: torch.stack([z[:,0]**2, z[:,0]*z[:,1]], 1), z)
    assert s['concept 0']==pytest.approx([8**.5]) and s['concept 1']==pytest.approx([1.])
    assert concept_signal(lambda z: (z@M>1).int(), torch.zeros(2, 2), delta=1.)['concept 0']==pytest.approx([2**.5]*2)
    for kw,said in ((dict(z=torch.ones(3)), r'\(n, n_concepts\)'), (dict(z=torch.ones(1, 2), names=['a']), '1 names'), (dict(z=torch.ones(1, 2), delta=0), 'change of 0')):
        with pytest.raises(ValueError, match=said): concept_signal(lambda z: z, **kw)

class Drawer(nn.Module):
    "Gives a concept once its gain has grown; noise is the caller's"
    def __init__(self): super().__init__(); self.gain,self.embed = nn.Parameter(torch.zeros(2)),nn.Identity()
    def forward(self, z): return self.embed(z)*self.gain
gains = {s: dict(gain=torch.tensor([min(1., s/300), min(1., s/900)])) for s in range(0, 1501, 100)}
read = dict(colour=lambda x: x[:,0], size=lambda x: x[:,1])
asked = {'00': ([0., 0.], (0, 0)), '10': ([1., 0.], (1, 0)), '11': ([1., 1.], (1, 1), False)}
def drawn(**kw): return concept_space(**(dict(model=Drawer(), concepts=('colour', 'size'), classifiers=read, prompts=asked, checkpoints=gains, n=3, seed=0)|kw))

def test_a_generator_in_concept_space(tmp_path):
    s = drawn()
    assert s['11']==pytest.approx(np.stack([gains[k]['gain'].numpy() for k in gains])) and s.train.tolist()==[True, True, False]
    assert s.learned('11', 'colour', 'progress', sigma=0)==300 and s.learned('11', 'size', 'progress', sigma=0)==900 and s.learned('11', of='progress', sigma=0)==900
    assert s.learned('11', 'colour', sigma=0)==200 # on its side of ½
    rec = Checkpoints(tmp_path)
    for k,w in gains.items(): rec(k, w)
    model = Drawer(); model.gain.data += 7; model.train()
    t = drawn(model=model, checkpoints=Checkpoints.open(tmp_path))
    np.testing.assert_array_equal(t.coordinates, s.coordinates)
    assert model.gain.tolist()==[7, 7] and model.training # its own weights again
    assert [type(v).__name__ for v in s.views()]==['Table', 'Scatter', 'Lines', 'Lines'] and all(v.html() for v in s.views()) and s.dynamics()['11: size'][-1]==1
    assert s.trajectory().groups=={'00': 'trained on', '10': 'trained on', '11': 'never seen'} and Event('11', learned_time(np.arange(16)>=5, s.steps), 'learned') in s.trajectory().events
    one = drawn(checkpoints=None)
    assert one.steps.tolist()==[0] and one['00'].shape==(1, 2)

def test_noise_is_the_same_at_every_checkpoint_and_errors_are_standard_errors():
    noisy = lambda m, ask, n, g: m(torch.tensor(ask).expand(n, -1))+.3*torch.randn(n, 2, generator=g)
    s = drawn(generate=noisy, n=400)
    np.testing.assert_allclose(np.diff(s['11']-np.stack([gains[k]['gain'].numpy() for k in gains]), axis=0), 0, atol=1e-6)
    assert s.error==pytest.approx(.3/20, rel=.15)
    np.testing.assert_array_equal(s.coordinates, drawn(generate=noisy, n=400).coordinates)

def test_tokens_are_a_form_too():
    "A model that copies what it is asked for, once it has learned to"
    class Copies(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(()))
        def forward(self, ids): return torch.nn.functional.one_hot(ids[:,:1].expand_as(ids), 6)*self.w + torch.nn.functional.one_hot(torch.zeros_like(ids)+5, 6)*.55
    s = concept_space(Copies(), ['red'], dict(red=lambda ids: (ids==1).float().mean(1)), dict(red=(torch.tensor([1, 3]), (1,)), other=(torch.tensor([2, 3]), (0,))), {k: dict(w=torch.tensor(k/10)) for k in range(10)}, tokens_after(4), 2, 0)
    assert s['red'][:,0].tolist()==[0]*6+[1]*4 and not s['other'].any()
    g = torch.Generator().manual_seed(0)
    assert tokens_after(3, 1.)(Copies(), torch.tensor([1, 3]), 5, g).shape==(5, 3)

def test_phases_name_the_corner_and_straight_paths_have_none():
    walk = np.r_[np.linspace([.1, .1], [.95, .1], 14), np.linspace([.95, .2], [1, 1], 14), np.ones((8, 2))]
    still = lambda *t: np.tile(np.array(t, float), (36, 1))
    def made(last):
        c = np.stack([still(0, 0), still(0, 1), still(1, 0), last], 1)
        return ConceptSpace('', np.arange(36)*10, ('00', '01', '10', '11'), ('a', 'b'), c, c, c.min(2), np.array([(0, 0), (0, 1), (1, 0), (1, 1)], float), np.array([True]*3+[False]), 0*c)
    p = made(walk).phases('11')
    assert p.corner=='10' and 110<=p.turn.index*10<=170 and p.memorisation[1]==p.generalisation[0] and .35<p.detour<.5
    assert made(walk[:,::-1]).phases('11').corner=='01'
    q = made(np.linspace([0, 0], [1, 1], 36)).phases('11')
    assert q.turn is None and q.memorisation is None and q.detour<.01

@pytest.mark.parametrize('kw,said', [(dict(classifiers=dict(colour=read['colour'])), "no classifier for concept 'size': there are 'colour'"), (dict(prompts={}), 'one at least'), (dict(prompts={'a': ([0., 0.], (1,))}), 'a target of 0 or 1 for each of colour, size'),
    (dict(prompts={'a': ([0., 0.], (1, 2))}), 'a target of 0 or 1'), (dict(checkpoints={}), 'one at least was expected'), (dict(checkpoints={0: None}), 'nothing at step 0'), (dict(checkpoints={5: dict(gain=torch.zeros(3))}), 'checkpoint of step 5 does not fit'),
    (dict(checkpoints={5: dict(gian=torch.zeros(2))}), 'does not fit'), (dict(classifiers=dict(colour=lambda x: x, size=read['size'])), r"'colour': one number for each of 3 outputs was expected, got shape \(3, 2\)"), (dict(classifiers=dict(colour=lambda x: x[:,0]/0, size=read['size'])), 'NaN or infinity')])
def test_bad_input_is_refused_and_the_model_is_as_it_was(kw, said):
    model = Drawer(); model.gain.data += 7
    with pytest.raises(ValueError, match=said): drawn(model=model, **kw)
    assert model.gain.tolist()==[7, 7] and not model.embed._forward_hooks

def test_names_that_are_not_there():
    s = drawn()
    for f in (lambda: s['12'], lambda: s.learned('11', 'colur'), lambda: s.learned('11', of='progres'), lambda: drawn(prompts={'a': (Shifted([0., 0.], 'embd', ([1., 0.],), ([0., 0.],)), (1, 0))})):
        with pytest.raises(UnknownName, match='did you mean'): f()

# ---- hidden capability ----

def test_a_shift_inside_is_the_mean_difference():
    s = drawn(checkpoints={0: dict(gain=torch.ones(2))}, prompts={'a': (Shifted([0., .5], 'embed', ([1., 0.], [3., 0.]), ([1., 1.],), .5), (1, 0))})
    assert s['a'][0]==pytest.approx([.5*(2-1), .5+.5*(0-1)])

def capable(kind, **kw):
    class G(nn.Module):
        def __init__(self): super().__init__(); self.embed,self.s = nn.Identity(),nn.Parameter(torch.zeros(()))
        def forward(self, z):
            h = self.embed(z)
            if kind=='plain': return h*self.s
            done = (self.s>.15).float() if kind=='hidden' else 1.
            other = (1+(h[:,1]-1).clamp_min(0)*2 if kind=='drags' else h[:,0])*done
            return torch.stack([other if kind=='drags' else other.clamp(0, 1), ((h[:,1]-1+(self.s>.75).float())*3).clamp(0, 1)*done], 1)
    return analyses['hidden_capability'](G(), ('colour', 'size'), read, [1., 1.], (1, 1), **(dict(over=dict(big=([1., 1.5], ['size'])), checkpoints={k: dict(s=torch.tensor(k/1000)) for k in range(0, 1401, 100)}, n=2, seed=0)|kw))

def test_hidden_capability_is_told_from_gain_drag_and_what_was_always_there():
    h = capable('hidden', latent=dict(embed=([[1., 1.]], [[1., 0.]], ['size'])), alphas=(.5,))
    assert h.times['naive']==800 and h.times['over: big']==200 and set(h.verdicts.values())=={'hidden'} and len(h.verdicts)==2
    assert h.table().rows and h._repr_html_() and all(v.html() for v in h.views())
    p = capable('plain', over=dict(both=([1.5, 1.5], ['colour', 'size'])))
    assert p['over: both']=='gain' and p.times['over: both']<p.times['naive'] and p.times['over: both']>=p.gain_times['over: both'] and not p.controls['over: both']['others stay']
    d = capable('drags')
    assert not d.controls['over: big']['others stay'] and d['over: big']=='not controlled'
    a = capable('always')
    assert not a.controls['over: big']['unlearned fails'] and a['over: big']=='not controlled'
    with pytest.raises(ValueError, match='nothing to compare with'): capable('plain', over=None)
    with pytest.raises(UnknownName, match="did you mean 'size'"): capable('plain', over=dict(a=([1., 2.], ['sizes'])))
    with pytest.raises(ValueError, match='pushes no concept'): capable('plain', over=dict(a=([1., 2.], [])))

# ---- trajectories ----

def test_paths_are_projections():
    u,v = np.linalg.qr(normal(16, 2))[0].T
    acts = {l: np.stack([l*u, (3-l)*u+l*v]) for l in range(4)}
    t = trajectory(acts, dict(colour=2*u, size=v), ['a', 'b'], groups=dict(a='x'), events=(('a', 2, 'here'),), step_label='layer')
    np.testing.assert_allclose(t.array, [np.c_[range(4), [0]*4], np.c_[[3, 2, 1, 0], range(4)]], atol=1e-12)
    np.testing.assert_allclose(trajectory(torch.tensor(np.stack([*acts.values()])), dict(a=u, b=u+v), how='coordinates')['1'], np.c_[[3, 1, -1, -3], range(4)], atol=1e-12)
    np.testing.assert_allclose(trajectory({1: acts[1]}, dict(a=u), how='cosine')['1'], [[2/5**.5]], atol=1e-12)
    np.testing.assert_allclose(trajectory(acts, dict(a=u), centre=u)['0'][:,0], np.arange(4)-1, atol=1e-12)
    from sparsenb.core import dictionaries, probes
    sae = dictionaries['topk'](16, 32, k=2)
    f = trajectory(acts, (sae, [3, 7]))
    w = sae.W_dec.detach().double().numpy()[3]
    np.testing.assert_allclose(f['0'][:,0], np.arange(4)*(u@w)/np.linalg.norm(w), atol=1e-6); assert f.axes==('feature 3', 'feature 7')
    x,y = normal(60, 16),np.arange(60)%2; x += 6*y[:,None]*u
    assert abs(trajectory(acts, dict(probe=probes['mean_difference'](seed=0).fit(x, y)))['0'][3,0])>2.5
    assert t.plane().numbers()['colour'].shape==(9,) and len(t.over_steps())==2 and len(t.table().rows)==8 and 'Trajectory' in repr(t) and t._repr_html_()

def test_principal_components_are_sklearns():
    from sklearn.decomposition import PCA
    x = normal(5, 6, 8)
    t = trajectory(x, 'pca', dims=3)
    want = PCA(3).fit(x.reshape(-1, 8)).transform(x.reshape(-1, 8)).reshape(5, 6, 3)
    np.testing.assert_allclose(np.abs(t.array.transpose(1, 0, 2)), np.abs(want), atol=1e-9)

def test_tokens_through_layers_of_a_model():
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)).eval()
    ids = torch.randint(1, 50, (1, 5))
    t = through_layers(gpt, ids, dict(e3=np.eye(16)[3]), positions=[-1, 0])
    from sparsenb.hooks import capture
    got = capture(gpt, ids, ['resid_pre.0', 'resid_post.0', 'resid_post.1'])
    np.testing.assert_allclose(t['4'][:,0], [got[s][0,-1,3] for s in got], rtol=1e-6)
    assert list(t.paths)==['4', '0'] and t.payload['0']==('resid_pre.0', 'resid_post.0', 'resid_post.1') and t.step_label=='layer'
    for kw,said in ((dict(positions=[9]), 'positions are 0 to 4'), (dict(sites=['pattern.0', 'resid_post.0']), 'sites of one width')):
        with pytest.raises((ValueError), match=said): through_layers(gpt, ids, dict(e3=np.eye(16)[3]), **kw)

@pytest.mark.parametrize('kw,said', [(dict(acts={0: normal(2, 16)}), '2 principal components need more than 2 different points'), (dict(acts={0: normal(9, 2)}, dims=3), 'as many dimensions at least'), (dict(acts={0: normal(9, 2)}, dims=0), 'dims is a whole number'),
    (dict(on=dict(a=np.ones(3))), "'a' has 3 dimensions, the activations have 4"), (dict(on=dict(a=np.zeros(4))), "'a' is zero"), (dict(on={}), 'got none'), (dict(on=np.ones((2, 4)), how='coordinates'), '2 directions that span 1'), (dict(names=['a']), 'a different name for each of 9'),
    (dict(acts={0: normal(9, 4), 5: normal(8, 4)}), 'step 5 has shape'), (dict(acts={0: normal(9, 4), 5: None}), 'nothing at step 5'), (dict(events=(('0', 3, 'x'),)), 'no step 3; nearest: 1'), (dict(payload={'0': ['a']}), 'one for each of 2 steps')])
def test_bad_trajectories_are_refused(kw, said):
    with pytest.raises(ValueError, match=said): trajectory(**(dict(acts={0: normal(9, 4), 1: normal(9, 4, seed=1)})|kw))

def test_unknown_names_of_trajectories():
    a = {0: normal(9, 4), 1: normal(9, 4, seed=1)}
    for f in (lambda: trajectory(a, 'pcs'), lambda: trajectory(a, how='dots'), lambda: trajectory(a, names=list('abcdefghi'), groups=dict(z='x')), lambda: trajectory(a)['01'], lambda: trajectory(a).plane('x', 1)):
        with pytest.raises(UnknownName): f()

# ---- probes ----

def test_probes_give_a_space():
    bits = np.random.default_rng(0).integers(0, 2, (400, 2))
    acts = {s: normal(400, 8, seed=s) + 6*min(1, s/200)*bits[:,:1]*np.eye(8)[0] + 6*max(0, s-300)/300*bits[:,1:]*np.eye(8)[1] for s in range(0, 701, 50)}
    s = analyses['concept_probes'](acts, dict(easy=bits[:,0], late=torch.tensor(bits[:,1])), train=['00', '01', '10'], seed=0)
    assert s.classes==('00', '01', '10', '11') and s.train.tolist()==[True]*3+[False] and s.learned('11', 'easy')<200<s.learned('11', 'late') and s.trajectory().plane().html()
    for kw,said in ((dict(labels={}), 'one at least'), (dict(labels=dict(a=np.zeros(400))), '0 or 1, and both'), (dict(labels=dict(a=bits[:9,0])), 'each of 400 rows')):
        with pytest.raises(ValueError, match=said): analyses['concept_probes'](acts, **kw)
    with pytest.raises(UnknownName, match='unknown class'): analyses['concept_probes'](acts, dict(a=bits[:,0]), train=['2'])
