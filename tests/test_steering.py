"Steering and prompts: planted truths, closed forms, the same with and without a cache, programs that run, panels without a browser"
import html.parser, itertools, json
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pytest, torch
from sparsenb.core import UnknownName, dictionaries, widgets
from sparsenb.dictionary import Codes
from sparsenb.hooks import capture, edited
from sparsenb.models import bundled, load_model
from sparsenb.prompts import _at_least, prompt_features, shared_features
from sparsenb.steering import Change, Steering, changes_of
from toy_index import HOSTILE

SITE,TEXT = 'resid_post.2','def area(radius):\n    return'

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

def made(name='topk', d_sae=256, **kw):
    d = dictionaries[name](256, d_sae, **kw).eval()
    d.scale.fill_(.5); d.scale_out.fill_(.5)
    with torch.no_grad(): d.b_dec += torch.randn(256, generator=torch.Generator().manual_seed(1))
    d.provenance = dict(site=SITE)
    return d

@pytest.fixture(scope='module')
def sae(): return made(k=8)

@pytest.fixture(scope='module')
def steer(model, sae): return Steering(model, sae)

@pytest.fixture(scope='module')
def i(model, sae): return prompt_features(model, sae, SITE, TEXT).at(-1)[0][0]

def reference(model, d, ids, changes, site=SITE):
    "Logits with x + decode(changed codes) - decode(codes) at the site, from dense codes"
    x = capture(model, ids, site)[site]
    f = d.encode(x).detach(); g = f.clone()
    for c in changes:
        at = list(range(1, ids.shape[1])) if c.positions is None else [p for p in c.positions if p]
        g[:,at,c.feature] = dict(clamp=torch.full_like(g[:,at,c.feature], c.strength or 0.), add=g[:,at,c.feature]+(c.strength or 0.), scale=g[:,at,c.feature]*(c.strength or 0.), ablate=torch.zeros_like(g[:,at,c.feature]))[c.kind]
    with torch.no_grad(): move = d.decode(g)-d.decode(f)
    with edited(model, {site: lambda t: t+move}): return model.logits(ids)

def close(a, b, tol=2e-4): assert float((a-b).abs().max())<=tol*float(b.abs().max()), float((a-b).abs().max())


@pytest.mark.parametrize('name', ['topk', 'relu', 'batch_topk', 'jumprelu', 'gated', 'matryoshka', 'gba', 'pca', 'codebook', 'matching_pursuit'])
def test_every_kind_is_the_formula_with_the_error_kept(model, name):
    d = made(name, d_sae=256)
    ids,_ = model.tokens(TEXT)
    a,b = [f for f,_ in prompt_features(model, d, SITE, TEXT).at(-1, 2)] if name!='relu' else (3, 9)
    s = Steering(model, d)
    for changes in ([Change(a, 'clamp', 30.)], [Change(a, 'add', -12.5)], [Change(a, 'scale', 3.)], [Change(a, 'ablate')], [Change(a, 'scale', 2.), Change(b, 'clamp', 15.), Change(a, 'add', 4., (2, 5))]):
        with s.steered(changes): got = model.logits(ids)
        close(got, reference(model, d, ids, changes))

def test_what_changes_nothing_changes_no_bit(model, steer, i):
    ids,_ = model.tokens(TEXT)
    plain = model.logits(ids)
    for edit in ((i, 'scale', 1.), (i, 'add', 0.), (i, 'clamp', 99., 0)): # the model's first token is left alone
        with steer.steered(edit): assert model.logits(ids).equal(plain)
    with Steering(model, steer.dictionary, special='change').steered((i, 'clamp', 99., 0)): assert not model.logits(ids).equal(plain)
    assert model.logits(ids).equal(plain)

def test_an_added_feature_in_the_last_layer_is_closed_form(model):
    "Planted: the feature writes the unembedding of ' return', so its token rises as the norm and the unembedding say"
    d = made(k=4); word = model.tokens(' return')[0][0,-1]
    d.provenance = dict(site='resid_post.3')
    with torch.no_grad(): d.W_dec[7] = torch.nn.functional.normalize(model.unembed_weight[word], dim=0)
    ids,_ = model.tokens('x = 1\n')
    x = capture(model, ids, 'resid_post.3')['resid_post.3'][0,-1]
    r = Steering(model, d).sweep('x = 1\n', (7, 'add'), [0, 10, 60])
    for s,y in zip(r.strengths, r.after):
        with torch.no_grad(): want = model.unembed_weight@model.module.model.norm(x+s*d.W_dec[7]/d.scale_out)
        close(torch.tensor(y), want)
    assert model.token_text([r.after[2].argmax()])==[' return'] and r.kl[0]<1e-9<r.kl[1]<r.kl[2] and r.place()==2
    p,q = r.probabilities
    assert np.isclose(q[2, word], torch.tensor(r.after[2]).softmax(0)[word], rtol=1e-4)
    assert np.isclose(r.kl[2], torch.nn.functional.kl_div(torch.tensor(r.after[2]).log_softmax(0), torch.tensor(r.before).log_softmax(0), log_target=True, reduction='sum'), rtol=1e-3)
    assert r.movers(60).rows[0][0]==' return' and r.movers(60, by='logit').column('token')[0]==' return' and ' return' in r.curve().series

def test_a_feature_that_is_not_active_is_ablated_to_no_effect(model, steer):
    idle = next(k for k in range(256) if not prompt_features(model, steer.dictionary, SITE, TEXT).values(k).any())
    r = steer.sweep(TEXT, (idle, 'ablate'))
    t = r.movers(n=5)
    assert (r.after[0]==r.before).all() and r.kl[0]==0 and not r.values.any() and t.column('probability before')==tuple(sorted(r.probabilities[0])[:-6:-1])

def greedy(model, ids, n):
    for _ in range(n): ids = torch.cat([ids, model.logits(ids)[:,-1:].argmax(-1)], 1)
    return ids

@pytest.mark.parametrize('positions', [None, (3,), (-1, 2)])
def test_texts_are_those_of_a_model_without_a_cache(model, steer, i, positions):
    "With a cache the model sees one token at a time: positions must still be those of the prompt"
    ids,_ = model.tokens(TEXT)
    r = steer.sweep(TEXT, Change(i, 'clamp', positions=positions), [60.], max_new_tokens=8)
    with steer.steered([replace(c, strength=60.) for c in r.changes]): out = greedy(model, ids, 8)
    assert r.texts[0]==model.tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True) and r.text_before==model.generate(TEXT, 8)
    if positions is None: assert r.texts[0]!=r.text_before

def test_sampling_is_seeded_and_leaves_the_generator_alone(steer, i):
    state = torch.get_rng_state()
    a,b,c = (steer.sweep(TEXT, (i, 'clamp'), [0, 20], 8, temperature=1.2, seed=s) for s in (4, 4, 5))
    assert torch.get_rng_state().equal(state) and a.texts==b.texts and a.text_before==b.text_before!=c.text_before

def test_sites_with_heads_and_bridges(model):
    d = made(k=4); d.provenance = {}
    ids,_ = model.tokens(TEXT)
    with Steering(model, d, 'z.1').steered((5, 'clamp', 40.)): got = model.logits(ids)
    x = capture(model, ids, 'z.1')['z.1']
    f = d.encode(x.flatten(2)).detach(); g = f.clone(); g[:,1:,5] = 40
    with torch.no_grad(): move = (d.decode(g)-d.decode(f)).view_as(x)
    with edited(model, {'z.1': lambda t: t+move}): close(got, model.logits(ids))
    TransformerBridge = pytest.importorskip('transformer_lens.model_bridge').TransformerBridge
    b = load_model(TransformerBridge.boot_transformers(str(bundled()['stdlib-4l']), device='cpu'))
    one,two = (Steering(m, d, SITE).sweep(TEXT, (5, 'clamp', None, (2,)), [40.], 6) for m in (model, b))
    close(torch.tensor(two.after), torch.tensor(one.after), 1e-3)
    assert two.texts==one.texts

def test_program_repeats_the_edit_in_a_fresh_namespace(tmp_path, model, sae, i):
    sae.save(tmp_path/'a "quoted" folder')
    for kw in (dict(), dict(special='change')):
        r = Steering(model, sae, **kw).sweep('x = """\\\n\'', [Change(i, 'clamp'), Change(3, 'add', 5.5, (-1, 2)), (9, 'ablate')], [5, 40], 5, temperature=.8, seed=3)
        for k,s in enumerate(r.strengths):
            names = {}
            exec(r.code(tmp_path/'a "quoted" folder', s), names)
            assert (names['logits'].numpy()==r.after[k]).all() and names['text']==r.texts[k]
    dictionaries['topk'](256, 256, k=8, seed=1).save(tmp_path/'other')
    with pytest.raises(AssertionError, match='another model or dictionary'): exec(r.code(tmp_path/'other'), {})
    own = load_model(model.module.__class__(model.module.config), tokenizer=model.tokenizer, name='mine'); own.module.config._name_or_path = ''
    try:
        with pytest.raises(ValueError, match="model 'mine'.*is not known"): replace(r, by=Steering(own, sae)).code(tmp_path)
    finally: own.module.config._name_or_path = str(bundled()['stdlib-4l'])

def test_errors_say_what_was_expected(model, sae, steer):
    for call,error,message in ((lambda: steer.sweep(TEXT, (256, 'clamp'), [1]), IndexError, 'feature 256 of a dictionary of 256: expected 0 to 255'),
            (lambda: steer.sweep(TEXT, (3, 'clmp'), [1]), UnknownName, "unknown kind of change 'clmp'; did you mean 'clamp'"),
            (lambda: steer.sweep(TEXT, (3., 'clamp'), [1]), ValueError, "a feature's number was expected, got 3.0"),
            (lambda: steer.sweep(TEXT, [], [1]), ValueError, 'no change was given'),
            (lambda: steer.sweep(TEXT, (3, 'add')), ValueError, 'strengths are missing'),
            (lambda: steer.sweep(TEXT, (3, 'ablate'), [1]), ValueError, 'strengths are not used'),
            (lambda: steer.sweep(TEXT, (3, 'add'), [np.nan]), ValueError, 'finite numbers'),
            (lambda: steer.sweep(TEXT, (3, 'add', None, 99), [1]), IndexError, 'position 99 of a prompt of'),
            (lambda: steer.sweep('', (3, 'add'), [1]), ValueError, 'is empty'),
            (lambda: steer.sweep('x '*600, (3, 'add'), [1]), ValueError, 'reads at most 512'),
            (lambda: steer.sweep(TEXT, (3, 'add'), [1, 2]).movers(3.), ValueError, 'strength 3.0 is not among 1, 2'),
            (lambda: Steering(model, sae, 'resid_post.1'), ValueError, 'was trained at resid_post.2, asked for was resid_post.1'),
            (lambda: Steering(model, dictionaries['topk'](64, 128, k=4), SITE), ValueError, 'reads 64 dimensions, site resid_post.2 of stdlib-4l has 256'),
            (lambda: Steering(model, dictionaries['topk'](256, 128, k=4)), ValueError, 'Pass site='),
            (lambda: Steering(model, dictionaries['topk'](256, 128, d_out=256, k=4), SITE), ValueError, 'rebuilds the activation'),
            (lambda: Steering(model, sae, 'resid_past.2'), UnknownName, "did you mean 'resid_post.2'"),
            (lambda: Steering(model, sae, special='kep'), UnknownName, "did you mean 'keep'"),
            (lambda: Steering(torch.nn.Sequential(torch.nn.Linear(256, 256)), sae, '0:out'), ValueError, 'has no vocabulary')):
        with pytest.raises(error, match=message): call()
    assert Steering(model, sae, 'resid_pre.3').site=='resid_pre.3' # the same tensor as the end of layer 2
    with pytest.raises(UnknownName, match='did you mean'): changes_of(dict(feature=1, kind='ablat'), 4)


# prompts

def test_prompt_features_are_the_codes_of_each_token(model, sae):
    texts = [TEXT, 'import os', 'x'*9+' = 3\n']
    for t,f in zip(texts, prompt_features(model, sae, SITE, texts)): # padded beside each other, or alone
        alone = prompt_features(model, sae, SITE, t)
        x = capture(model, t, SITE)[SITE][0,1:]
        dense = Codes(torch.tensor(f.idx), torch.tensor(f.val)).dense(256)
        close(dense, sae.encode(x).detach(), 1e-3)
        assert ''.join(f.tokens)==t and f.tokens==alone.tokens and len(f)==len(x) and not f.cut and np.allclose(f.val, alone.val, rtol=1e-3, atol=1e-4)
        assert (np.diff(np.abs(f.val))<=0).all() and (f.values(int(f.idx[1,0]))[1]==f.val[1,0])
        best = f.strongest(5)
        assert best[0][1]==f.val.max() and f.val[best[0][2]].max()==best[0][1] and len({b[0] for b in best})==5
    long = prompt_features(model, sae, SITE, 'x '*700)
    assert long.cut and len(long)==511
    with pytest.raises(ValueError, match='text 1 is empty'): prompt_features(model, sae, SITE, ['a', ''])
    with pytest.raises(ValueError, match='was trained at'): prompt_features(model, sae, 'resid_post.0', 'a')

def test_chances_are_those_of_independent_draws():
    p = np.random.default_rng(0).random((4, 6))
    for m in range(7):
        want = [sum(np.prod([q if s else 1-q for q,s in zip(row, on)]) for on in itertools.product((0, 1), repeat=6) if sum(on)>=m) for row in p]
        assert np.allclose(_at_least(p, np.full(4, m)), want)

def test_a_planted_feature_leads_those_that_prompts_share():
    "Feature 0 is on every token, 1 is rare and on one token of each text, 2 rare and on most texts, 3 on one text"
    from sparsenb.prompts import PromptFeatures
    density,found = np.array([.9, .001, .001, .001, .3]),[]
    for k in range(5):
        idx = np.zeros((10, 3), int); val = np.zeros((10, 3), np.float32); val[:,0] = 1
        idx[4,1],val[4,1] = 1, 2.
        if k<4: idx[5,1],val[5,1] = 2, 2.
        if k==0: idx[6,1],val[6,1] = 3, 9.
        found.append(PromptFeatures(tuple('abcdefghij'), np.arange(10), idx, val))
    t = shared_features(found, density, 10_000)
    assert t.column('feature')==(1, 0) and t.column('texts')==(5, 5) and t.column('chance')[0]<1e-8 and t.column('chance')[1]>.999
    assert np.isclose(t.column('expected')[0], 5*(1-.999**10))
    assert shared_features(found, density, 10_000, .6).column('feature')==(1, 2, 0)
    assert 'Feature 4' in found[0].heat(4).html() and found[0].heat(1).peaks==(4,) # active nowhere; active once
    assert shared_features(found, np.zeros(5), 1000).column('chance')[0]>0 # never seen is not impossible
    with pytest.raises(ValueError, match='two or more'): shared_features(found[:1], density)
    with pytest.raises(ValueError, match='share above 0'): shared_features(found, density, least=0.)


# the panels, kernel side

class Index:
    name,site,model,n_tokens = 'toy',SITE,'stdlib-4l',10_000
    def __init__(self, model, dictionary, hostile=False):
        self._live = dict(model=model, dictionary=dictionary) if model else {}
        self.d_sae,self.hostile = 256,hostile
        self.max_act,self.density = np.full(256, 20.),np.full(256, .03)
    def __len__(self): return 256
    def title(self, i): return HOSTILE[i%len(HOSTILE)] if self.hostile else f' w{i}'
    def search(self, text, n=50): return [int(text)] if text.isdigit() and int(text)<256 else [i for i in range(256) if text.strip() in self.title(i)][:n]
    def why(self, panel): return '' if self._live else 'dictionary and model not attached: `index.attach(dictionary, model)`'

def test_live_prompt_reads_what_is_typed(model, sae):
    w = widgets['live_prompt'](Index(model, sae))
    assert w.rows==[] and w.version==0 and 'No prompt was typed' in w._repr_mimebundle_()[0]['text/html']
    w.text = TEXT
    f = w.found[0]
    assert ''.join(w.rows[0])==TEXT and w.feature==f.strongest(1)[0][0] and (np.frombuffer(w.values, '<f4')==f.values(w.feature)).all() and w.vmax>=20
    assert [r[0] for r in w.listed]==[b[0] for b in f.strongest(20)] and w.tops[0][3]==[[i, round(v, 4)] for i,v in f.at(3, 8)]
    other = w.tops[0][2][1][0]
    v = w.version
    w.feature = other
    assert w.version==v+1 and (np.frombuffer(w.values, '<f4')==f.values(other)).all() and w.about[str(other)]==f' w{other}'
    with pytest.raises(ValueError, match='holds 0 to 255'): w.feature = 256
    w.text = ''
    assert (w.rows, w.said, w.feature)==([], '', other)
    w.text = 'y '*700
    assert 'The text was cut: stdlib-4l reads 512 tokens.' in w.note
    w.index = Index(model, dictionaries['topk'](64, 64, k=2)); w.text = 'x'
    assert w.error.startswith('the dictionary reads 64') and w.rows==[]

def test_live_prompt_compares_lines_and_leads_a_browser(model, sae):
    other = SimpleNamespace(feature=3, observe=lambda f, name: setattr(other, 'told', f))
    w = widgets['live_prompt'](Index(model, sae), 'for i in range(3):\n\nfor j in range(4):\nfor k in range(5):', mode='Each line a prompt', browser=other)
    assert len(w.rows)==3 and w.labels==['1', '2', '3'] and other.feature==w.feature
    want = set.intersection(*(set(f.idx[f.val!=0].tolist()) for f in w.found))
    assert {r[0] for r in w.listed}==want and all(r[1].startswith('3 / ') and r[2]==1 for r in w.listed) and w.shared().column('feature')==tuple(r[0] for r in w.listed)
    w.share = 'most lines'
    assert {r[0] for r in w.listed}>=want and {r[1][0] for r in w.listed}=={'2', '3'}
    w.feature = w.listed[-1][0]
    assert other.feature==w.feature
    other.told(dict(new=17))
    assert w.feature==17
    w.text = 'one line'
    assert w.listed==[] and w.none.startswith('Two or more lines')

def test_steering_panel_runs_and_says_what_is_wrong(model, sae, tmp_path):
    sae.save(tmp_path/'sae')
    w = widgets['steering'](Index(model, sae), 5, TEXT, saved=tmp_path/'sae', max_tokens=4, steps=3)
    assert (w.low, w.high)==(0, 40) and w.tokens[0]=='<|bos|>' and ''.join(w.tokens[1:])==TEXT
    w._told(dict(run=True))
    r = w.result
    assert len(w.results)==3 and [x['strength'] for x in w.results]==['0', '20', '40'] and [x['text'] for x in w.results]==list(r.texts) and w.plain==r.text_before and w.curve.startswith('<svg')
    names = {}
    exec(w.results[2]['code'], names)
    assert (names['logits'].numpy()==r.after[2]).all()
    w.positions = [2]
    assert w.said.startswith('Changed since')
    w._told(dict(more=True)); w._told(dict(find='9', row=1))
    w.changes = [c|dict(kind='scale') for c in w.changes]
    assert (w.low, w.high)==(0, 2) and [c['feature'] for c in w.changes]==[5, 9]
    w.run()
    assert w.result.changes==(Change(5, 'scale', None, (2,)), Change(9, 'scale', None, (2,)))
    w._told(dict(find='256', row=0))
    assert 'a number from 0 to 255' in w.error and w.changes[0]['feature']==5
    w.prompt = ''; w.run()
    assert w.error=='Not run: the prompt is empty: type a text to continue' and not w.running
    bare = widgets['steering'](Index(model, sae), 5, TEXT); bare.run()
    assert bare.results[0]['code']=='' and 'saved=' in bare.no_code

def test_panels_without_a_model_say_what_to_do():
    p,s = (widgets[k](Index(None, None)) for k in ('live_prompt', 'steering'))
    p.text = 'x'; s.prompt = 'x'; s._told(dict(run=True))
    for w in (p, s):
        assert w.missing.endswith('dictionary and model not attached: `index.attach(dictionary, model)`') and 'index.attach' in w._repr_mimebundle_()[0]['text/html']

def test_hostile_text_stays_text_without_a_browser(model, sae):
    "What is sent is JSON; what stands on a page without a kernel is escaped"
    text = ''.join(t for t in HOSTILE if '\ud800' not in t)
    p = widgets['live_prompt'](Index(model, sae, hostile=True), text)
    s = widgets['steering'](Index(model, sae, hostile=True), 1, text, max_tokens=3, steps=2); s.run()
    class Reader(html.parser.HTMLParser):
        tags = set()
        def handle_starttag(self, tag, attrs): self.tags.add(tag); assert not [a for a,_ in attrs if a.startswith('on')]
    for w in (p, s):
        json.dumps({k: v for k,v in w.get_state().items() if not isinstance(v, (bytes, memoryview))}).encode()
        r = Reader(); r.feed(w.static().html())
        assert not r.tags&{'script', 'img', 'iframe', 'textarea'}
