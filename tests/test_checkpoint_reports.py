"Features of dictionaries over checkpoints, all measures of one training, and the two reports over them"
import re
import numpy as np, pytest, torch
from sparsenb.analyses.features_over_checkpoints import chance_cosine, dictionaries_of, partners
from sparsenb.analyses.learning_dynamics import acts_of, labelled_texts, marked, neuron_alignment, observed
from sparsenb.core import UnknownName, analyses, dictionaries, testbeds, view
from sparsenb.models import load_model
from sparsenb.recorder import Checkpoints
from sparsenb.report import parameters, run_report

torch.set_num_threads(1)
features,dynamics = analyses['features_over_checkpoints'],analyses['learning_dynamics']
def normal(*shape, seed=0): return np.random.default_rng(seed).normal(size=shape)
def unit(W): return W/np.linalg.norm(W, axis=-1, keepdims=True)
def turned(w, degrees, seed=5):
    p = normal(*w.shape, seed=seed); p = unit(p-(p*w).sum(1, keepdims=True)*w)
    return np.cos(np.radians(degrees))*w+np.sin(np.radians(degrees))*p

# ---- features over checkpoints ----

def planted():
    """Four checkpoints of 64 dimensions, orthogonal features shuffled and scaled at each: 0–9 stay, 10–12 turn by 20 degrees at each,
    13–16 die after the second, 17–21 are born at the third, 22–23 are there at the second alone"""
    q,rng = np.linalg.qr(normal(64, 64))[0],np.random.default_rng(1)
    side = q[40:43] # what 10–12 turn to
    out,where = {},{}
    for t in range(4):
        names = [*range(13), *(range(13, 17) if t<2 else range(17, 22)), *((22, 23) if t==1 else ())]
        W = q[names].copy(); a = np.radians(20*t); W[10:13] = np.cos(a)*q[10:13]+np.sin(a)*side
        order = rng.permutation(len(names))
        out[10*t],where[t] = (W*rng.uniform(.5, 3, (len(names), 1)))[order],np.array(names)[order]
    return out,where

def test_planted_births_deaths_and_drifts():
    W,where = planted()
    f = features(W, bar=.5)
    nan = [np.nan]
    for k,want in {'in use': [17, 19, 18, 18], 'matched': nan+[17, 13, 18], 'drifting': nan+[0, 0, 0], 'born': nan+[2, 5, 0], 'dead': nan+[0, 6, 0]}.items(): np.testing.assert_array_equal(f[k], want, err_msg=k)
    got = {int(where[p.first][p.rows[0]]): p for p in f.paths}
    assert sorted(got)==list(range(24))
    for i,p in got.items(): # every row of a path is the feature that was planted
        assert {int(where[p.first+k][r]) for k,r in enumerate(p.rows)}=={i}
        assert p.fate==('steady' if i<10 else 'drifting' if i<13 else 'dead' if i<17 else 'born' if i<22 else 'born and dead')
        assert p.drift==pytest.approx(.5 if 10<=i<13 else 1) and len(p.cosines)==len(p.rows)-1 # cos 60°
        assert p.cosines==pytest.approx([np.cos(np.radians(20)) if 10<=i<13 else 1]*len(p.cosines))
    assert [len(f.of(w)) for w in ('steady', 'drifting', 'born', 'dead')]==[10, 3, 7, 6]
    assert features(W, bar=.5, steady=.95)['drifting'][1:].tolist()==[3, 3, 3] and features(W, bar=.99)['dead'][1:].tolist()==[3, 9, 3]
    assert all(v.html() for v in f.views()) and f.fates().column('fate')[:2]==('steady', 'drifting')
    first = features([torch.tensor(w) for w in W.values()], bar=.5)
    np.testing.assert_array_equal(first['born'], f['born'])

def test_the_bar_is_that_of_chance():
    "Dictionaries that share nothing: hardly any partners; also where all directions have a common mean, which would pass a bar of even directions"
    A,B = normal(200, 32),normal(200, 32, seed=1)
    for shift in (0, 3*normal(1, 32, seed=2)/32**.5):
        a,b = A+shift,B+shift
        bar = chance_cosine(a, b)
        assert len(partners(a, b, bar)[0])<=10, bar # 1 in 100 by the nearest; one to one fewer
    assert len(partners(A+4*np.eye(32)[0], B+4*np.eye(32)[0], chance_cosine(A, B))[0])>20 # the even bar
    assert chance_cosine(np.eye(2), np.array([[1., 0]]), .75, 20_000)==pytest.approx(.5**.5, abs=.03) # the angle is even: within 45 degrees in a quarter of the draws
    i,j,c = partners(np.array([[1., 0], [.9, .4]]), np.array([[1., .1], [-1, 0]]), .2)
    assert (i.tolist(), j.tolist())==([0], [0]) and c[0]==pytest.approx(1.01**-.5) # the sum decides, and the second is left alone

def test_dictionaries_leave_out_what_is_dead():
    d = dictionaries['topk'](16, 40, k=4, seed=0)
    d.idle[:7] = d.dead_after+1
    f = features({0: d, 1: d})
    assert f['in use'].tolist()==[33, 33] and f['matched'][1]==33 and min(p.rows[0] for p in f.paths)==7
    W = d.W_dec.detach()
    alive = {0: np.arange(40)<30, 1: np.arange(40)<20}
    assert features({0: W, 1: W}, alive)['dead'][1]==10
    for args,said in ((([W],), 'two checkpoints'), (([W, W[:,:3]],), 'step 1 has directions of 3 dimensions, step 0 of 16'), (([W, 0*W],), 'step 1: no feature is in use'), (([W, W], {0: alive[0]}), 'alive, step 1: bool of shape'), (([W, W], None, 2.), 'steady is a cosine'), (({0: W, 1: np.full((3, 16), np.nan)},), 'decoder, step 1')):
        with pytest.raises(ValueError, match=said): features(*args)
    with pytest.raises(ValueError, match="'steady', 'drifting', 'born' or 'dead'"): f.of('lost')

def test_trained_dictionaries_find_what_was_born():
    "Six true features, then six more: the dictionary of the second checkpoint has the first six still"
    true = np.linalg.qr(normal(24, 24))[0][:12]
    def rows(n, seed): r = np.random.default_rng(seed); return ((r.random((1500, 12))<.15)*(.5+r.random((1500, 12))))[:,:n]@true[:n]
    made,twin = dictionaries_of({0: rows(6, 1), 10: rows(12, 2)}, d_sae=14, k=2, n_tokens=40_000, seed=0, twin=True)
    best = lambda d,t: (unit(d.W_dec.detach().numpy())@t.T).max(0)
    assert (best(made[0], true[:6])>.9).sum()>=5 and (best(made[10], true)>.9).sum()>=9 and (best(twin, true)>.9).sum()>=9
    f = features(made)
    assert f['matched'][1]>=4 and f['born'][1]>=3
    assert not torch.equal(made[10].W_dec, twin.W_dec)

# ---- all measures of one training ----

def test_what_is_not_given_is_said():
    a = {s: normal(80, 5, seed=s) for s in (0, 5, 9)}
    r = dynamics(a)
    assert {m for m,_ in r.parts}=={'cka', 'intrinsic_dimension', 'von_neumann_entropy', 'diffusion_entropy'}
    assert r.left_out['neural_collapse', 'activations']=='needs labels: one class for each row' and 'loss as a function' in r.left_out['objective_dimension', '–'] and 'features: name' in r.left_out['v_information', 'activations']
    assert all(why in r.missing().html() for why in ('needs dictionaries', 'needs neurons')) and all(v.html() for v in r.views())
    with pytest.raises(UnknownName, match='v_information: needs features'): r['v_information']
    few = dynamics({'small': {0: a[0][:4]}, 'large': {0: a[0]}}, which=['intrinsic_dimension'])
    assert list(few.parts)==[('intrinsic_dimension', 'large')] and '4 different points in 5 dimensions' in few.left_out['intrinsic_dimension', 'small']
    for kw in (dict(which=['cak']), dict(options=dict(cak={}))):
        with pytest.raises(UnknownName, match="did you mean 'cka'"): dynamics(a, **kw)

def test_each_result_is_the_measure_itself():
    y = np.arange(90)%3
    a = {s: normal(90, 6, seed=s)+s*np.eye(6)[y] for s in (0, 2, 4)}
    z = dict(size=normal(90), kind=np.array(['a', 'b', 'c'])[y])
    W = {s: normal(4, 6, seed=s) for s in a}
    def loss(t): return (t-1).square().sum()
    r = dynamics(a, y, z, decoder=normal(6, 3), neurons=W, objective=(loss, torch.zeros(6)), dims=[2, 6], dictionaries=W, options=dict(diffusion_entropy=dict(repeats=2)), seed=3)
    assert list(r.left_out)==[('neural_collapse, NC3 and NC4', 'all')]
    np.testing.assert_array_equal(r['diffusion_entropy']['information with labels'], analyses['diffusion_entropy'](a, y, repeats=2, seed=3)['information with labels'])
    np.testing.assert_array_equal(r['von_neumann_entropy']['entropy'], analyses['von_neumann_entropy'](a)['entropy'])
    np.testing.assert_array_equal(r['latent_relevance']['relevance'], analyses['latent_relevance'](a, normal(6, 3), seed=3)['relevance'])
    np.testing.assert_array_equal(r['neural_collapse']['NC1'], analyses['neural_collapse'](a, y)['NC1'])
    cols = np.stack([z['size'], y==0, y==1, y==2], 1).astype(float)
    np.testing.assert_array_equal(r['v_information']['information'], analyses['v_information'](a, cols, seed=3)['information'])
    assert r['objective_dimension']['dimension']==6 and r['variance_explained']['kind'][-1]>.5
    row = r.table().column('curve').index('NC1'); nc = r['neural_collapse']['NC1']
    half = next(s for s,v in zip(a, nc) if abs(v-nc[0])>=abs(nc[-1]-nc[0])/2)
    assert (r.table().column('first')[row], r.table().column('last')[row], r.table().column('half of the way at')[row])==(nc[0], nc[-1], half)

def test_events_are_upright_lines():
    l = view('Lines', 't', np.array([0., 10, 20]), dict(a=np.array([1., 2, 3])))
    m = marked(l, dict(learned=15, lost=None))
    assert [*m.series]==['a', 'learned'] and m.x[3:].tolist()==[15, 15] and m.series['learned'][3:].tolist()==pytest.approx([1, 3.2]) and 'learned' in m.svg()
    np.testing.assert_array_equal(m.series['a'][:3], [1, 2, 3]); assert np.isnan(m.series['a'][3:]).all()
    assert marked(l, dict(lost=None)) is l

def test_alignment_of_neurons():
    W = {0: np.array([[0., 1], [1, 0]]), 5: np.array([[1., 1], [2, 0]])}
    assert neuron_alignment(W)['alignment'].tolist()==pytest.approx([(.5**.5+1)/2, 1])
    assert neuron_alignment(W, [[1., 0], [0, 0]])['alignment'].tolist()==pytest.approx([0, .5**.5])
    for D,said in ((np.zeros((2, 2)), 'no neuron'), (np.ones((3, 2)), 'shape')):
        with pytest.raises(ValueError, match=said): neuron_alignment(W, D)

@pytest.mark.parametrize('name,settings', [('unequal_features', dict(n_steps=40, every=20, width=32)), ('early_alignment', dict(n_steps=40, every=20)), ('modular_addition', dict(p=11, width=32, n_steps=40, every=20))])
def test_testbeds_give_what_measures_need(name, settings, tmp_path):
    "From memory and from a folder alike"
    bed = testbeds[name](**settings)
    got,d = observed(bed, bed.train(), 90)
    rec = Checkpoints(tmp_path/'run'); bed.train(rec)
    again,_ = observed(bed, Checkpoints.open(tmp_path/'run'), 90)
    assert [*got['acts']]==[*again['acts']] and d.steps.tolist()==[0, 20, 40]
    for k,a in got['acts'].items():
        for s in a: np.testing.assert_array_equal(a[s], again['acts'][k][s])
    assert {*got['events']}=={*again['events']} and len(got['labels'])==len(next(iter(got['acts'].values()))[0])
    if 'objective' in got:
        loss,start = got['objective']
        assert loss(start).isfinite() and loss(start*1.1)!=loss(start)

def test_a_testbed_without_checkpoints():
    with pytest.raises(UnknownName, match='modular_addition'): observed(testbeds['superposition'](), {})

# ---- a language model ----

@pytest.fixture(scope='module')
def written(tmp_path_factory):
    "Three checkpoints of the bundled model: blocks drawn anew, half way, as shipped"
    m = load_model('stdlib-4l', device='cpu', dtype='float32')
    own = {k: v.clone() for k,v in m.module.state_dict().items()}
    g = torch.Generator().manual_seed(0)
    start = {k: v.std()*torch.randn(v.shape, generator=g) if '.layers.' in k and v.ndim==2 else v for k,v in own.items()}
    rec = Checkpoints(tmp_path_factory.mktemp('run')/'run')
    for s,t in ((0, 0.), (50, .5), (100, 1.)): rec(s, {k: (start[k]*(1-t)+own[k]*t if start[k] is not own[k] else v).contiguous() for k,v in own.items() if k!='lm_head.weight'}, loss=2-t, event='half way' if s==50 else None)
    return m,own,rec

def test_weights_of_checkpoints_go_in_and_the_model_gets_its_own_back(written):
    m,own,rec = written
    ids,truth,known = labelled_texts(m, ['docstring', 'type'], n_tokens=64, length=32, seed=0)
    a = acts_of(m, rec, ids, ['resid_pre.0', 'resid_post.3'], heads=['z.1'])
    assert [*a]==['resid_pre.0', 'resid_post.3', *(f'head 1.{h}' for h in range(4))] and a['head 1.2'][0].shape==(62, 64)
    assert all(len(v)==62==len(known) for v in truth.values()) and known.mean()>.5
    np.testing.assert_array_equal(a['resid_pre.0'][0], a['resid_pre.0'][100]); assert np.abs(a['resid_post.3'][0]-a['resid_post.3'][100]).max()>.1
    from sparsenb.hooks import capture
    c = capture(m, ids, ['resid_post.3', 'z.1'])
    np.testing.assert_allclose(a['resid_post.3'][100], c['resid_post.3'][:,1:].flatten(0, 1), atol=1e-4)
    np.testing.assert_allclose(a['head 1.2'][100], c['z.1'][:,1:,2].flatten(0, 1), atol=1e-4)
    text = np.array(m.token_text(ids[0][1:])) # labels stand at their tokens
    at = [(t.strip(), k) for t,k,ok in zip(text, truth['type'], known) if ok and k not in ('string', 'comment')]
    assert at and all(k in ('name', 'keyword') for t,k in at if t.isidentifier()) and all(k in ('operator', 'newline') for t,k in at if t in ('(', ')', '=', ':'))
    for k,v in m.module.state_dict().items(): assert torch.equal(v, own[k]), k

def test_weights_that_do_not_fit(written, tmp_path):
    m,own,_ = written
    rec = Checkpoints(tmp_path/'odd'); rec(0, {'model.norm.weight': own['model.norm.weight']})
    with pytest.raises(ValueError, match='step 0 does not fit this LlamaForCausalLM: .* tensors are not there'): acts_of(m, rec, torch.ones(1, 4, dtype=int), ['resid_post.0'])
    for k,v in m.module.state_dict().items(): assert torch.equal(v, own[k]), k

# ---- the reports ----

def offline(html): return not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)

def test_learning_dynamics_of_modular_addition(tmp_path):
    assert all(p['help'] for p in parameters('learning_dynamics').values())
    out = run_report('learning_dynamics', dict(settings=['p', 11, 'width', 32, 'n_steps', 120, 'every', 20, 'share', .8], n_rows=120, n_dictionaries=3, d_sae=24, dictionary_tokens=3000, dims=[4]), tmp_path/'o.html')
    html = out.read_text()
    for word in ('Grokking', 'restricted loss', 'local dimension', 'train pairs known', 'All measures', 'nothing was left out', 'V-information', 'Neural collapse', 'NC4', 'Objective dimension', 'Fates of features', 'with different seeds'): assert word in html, word
    assert offline(html)

def test_learning_dynamics_of_a_language_model(written, tmp_path):
    out = run_report('learning_dynamics', dict(run=str(written[2].path), n_tokens=1300, n_rows=300, dictionary='', sites=['resid_post.0', 'resid_post.3']), tmp_path/'o.html')
    html = out.read_text()
    for word in ('What was recorded', 'half way: step 50', 'needs objective', 'needs dictionaries', 'needs neurons', 'need head', 'docstring', 'resid_post.3', 'Diffusion entropy', 'over the sites resid_post.0, resid_post.3'): assert word in html, word
    assert offline(html)

def test_layer_convergence(written, tmp_path):
    assert all(p['help'] for p in parameters('layer_convergence').values())
    out = run_report('layer_convergence', dict(run=str(written[2].path), n_tokens=900, threshold=.3), tmp_path/'o.html')
    html = out.read_text()
    for word in ('When each layer converges', 'head 3.3', 'resid_post.0', 'mlp_out: proportional effective rank', '3.mlp.down_proj', 'Step from which CKA stays at 0.3'): assert word in html, word
    assert offline(html) and 'at 0.3 or above from step' in html

def test_layer_convergence_of_the_bundled_checkpoints(tmp_path):
    html = run_report('layer_convergence', dict(n_tokens=300, heads=False, components=['resid_post'], weights=[]), tmp_path/'o.html').read_text()
    assert 'resid_post.3' in html and 'none was asked for' in html
