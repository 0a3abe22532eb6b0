"The atlas of probes: its numbers, the tokens along directions, traits, what it refuses, its page and its report"
import base64, json, re
import numpy as np, pytest, torch
from toy_sweep import TASKS, toy_sweep
from sparsenb.core import UnknownName, widgets
from sparsenb.hooks import capture
from sparsenb.models import load_model
from sparsenb.probe_sweep import ProbeSweep
from sparsenb.widgets.probe_atlas import facts_of, opening

torch.set_num_threads(1)
TEXT = '"""Areas of shapes."""\ndef area(width, height):\n    """Area of a rectangle"""\n    return width*height\n\nclass Shape(list):\n    def __len__(self): return max(1, sum([len(x) for x in (self, ())]))\n'*6

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')
@pytest.fixture(scope='module')
def sweep(): return toy_sweep()
@pytest.fixture(scope='module')
def found(model, sweep, tmp_path_factory): return sweep.indexes(model, TEXT, 200, tmp_path_factory.mktemp('i'), n_top=3, n_quantiles=2, n_per_quantile=1, context=(4, 2))
def state(html): return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])


def test_every_score_is_where_it_belongs(sweep):
    facts,raw = facts_of(sweep)
    a = np.frombuffer(raw, '<f4').reshape(3, 2, 3, 3, len(facts['metrics']), 3)
    n = 0
    for (l, s, t, p),scores in sweep.items():
        for m,v in scores.items():
            np.testing.assert_array_equal(a[sweep.layers.index(l), sweep.sites.index(s), TASKS.index(t), sweep.probes.index(p), facts['metrics'].index(m)], np.array([v.value, v.lo, v.hi], '<f4')); n += 1
    assert np.isfinite(a[...,0]).sum()==n and facts['counts']==[False, False, True] and facts['probes']==[['logistic', False, 'accuracy'], ['mlp', False, 'accuracy'], ['ridge', True, 'r2']]
    json.dumps(facts, allow_nan=False)

def test_a_sweep_of_a_large_model_travels_in_a_megabyte():
    s = toy_sweep(tuple(range(48)), ('resid_post', 'attn_out', 'mlp_out'), tuple(f't{i}' for i in range(20)), d=2)
    facts,raw = facts_of(s)
    assert len(raw)==48*3*20*3*len(facts['metrics'])*12<1.1e6 and len(json.dumps(facts))<3000

def test_a_feature_of_the_index_is_the_distance_to_the_boundary(model, sweep, found):
    "Values of the index against activations of the model, read by hand: of two classes and of a number"
    ids,_ = model.tokens(TEXT, max_len=64)
    for key in ((2, 'resid_post', 'docstring', 'logistic'), (2, 'resid_post', 'brackets', 'ridge'), (None, 'embed', TASKS[0], 'logistic')):
        x = capture(model, ids, [name := 'embed' if key[0] is None else 'resid_post.2'])[name].flatten(2)[0].double().numpy()
        r = sweep.readings[key]
        w,b = (r['weight'][0], r['bias'][0]) if len(r['weight'])==1 else (r['weight'][1]-r['weight'][0], r['bias'][1]-r['bias'][0])
        _,D = sweep.features(*key[:2])
        i = sweep.indexed(found)[key][1]
        np.testing.assert_allclose(D.codes(torch.from_numpy(x).float()).val[:,i].numpy(), np.maximum((x@w+b)/np.linalg.norm(w), 0), atol=1e-4)
        np.testing.assert_allclose(D.W_dec[i].numpy(), sweep.direction(*key).numpy(), atol=1e-6)

def test_indexes_are_told_by_their_directions(sweep, found, tmp_path):
    assert [*found]==['embed', 'resid_post.0', 'resid_post.2'] and len(sweep.indexed(found))==len(sweep.readings)==9
    sweep.save(tmp_path/'s')
    again = ProbeSweep.load(tmp_path/'s')
    one = again.indexed(found['resid_post.2'])
    assert {k[:2] for k in one}=={(2, 'resid_post')} and sweep.indexed(None)=={} and all(i.title(n)==f'{k[2]} · {k[3]}' for k,(i,n) in one.items())
    with pytest.raises(ValueError, match="not an index of this sweep's probes at embed"): toy_sweep(seed=1).indexed(found)
    with pytest.raises(UnknownName, match='resid_post.2'): toy_sweep(layers=(0,)).indexed(found['resid_post.2'])

def test_a_probe_without_a_direction_stays_asleep():
    s = toy_sweep(layers=(0,), sites=('resid_post',))
    k = (0, 'resid_post', 'docstring', 'logistic')
    s.readings[k] = dict(weight=np.zeros((2, 256)), bias=np.array([-1., 1.]), pattern=np.zeros(256))
    keys,D = s.features(0, 'resid_post')
    assert torch.isfinite(D.W_dec).all() and keys[1]==k

def test_the_card_is_the_dashboards(sweep, found):
    w = sweep.atlas(found, task='docstring', layer=0, site='resid_post', probe='logistic')
    index,i = sweep.indexed(found)[0, 'resid_post', 'docstring', 'logistic']
    card = widgets['feature_card'](index, i)
    assert w.head==card.head and w.data==card.data and w.why=='' and card.head['title']=='docstring · logistic'
    was = w.version
    w.task,w.probe = 'brackets','ridge'
    assert w.head['title']=='brackets · ridge' and w.version==was+2 # brackets by logistic lies between
    w.probe = 'mlp'; assert w.head=={} and w.why=='No probe was fitted here.'
    w.task = 'docstring'; assert 'mlp is not linear' in w.why
    w.layer = None; assert w.why=='No probe was fitted here.'
    assert 'No text was read' in sweep.atlas().why

def test_what_the_card_asks(sweep, found):
    w = sweep.atlas(found, task='docstring', layer=2, site='resid_post', probe='logistic')
    sent = []
    w.send = lambda m, b=(): sent.append(m)
    w._told(dict(card=dict(numbers='json'))); w._told(dict(card=dict(look=[0, 2]))); w._told(dict(card=dict(step=1))); w._told(dict(step=1))
    assert len(sent)==2 and json.loads(sent[0]['text'])['title']=='docstring · logistic' and sent[1]['effect']['at']==[0, 2] and sent[1]['version']==w.version

def test_what_is_shown_first(sweep):
    assert opening(sweep)==(2, 'resid_post', TASKS[0], 'logistic') and opening(sweep, task='brackets')==(2, 'resid_post', 'brackets', 'ridge') and opening(sweep, layer=0, probe='mlp')==(0, 'resid_post', TASKS[0], 'mlp')
    w = sweep.atlas(layer=np.int64(0), site='resid_post'); assert type(w.layer) is int
    w = sweep.atlas(site='embed', layer=None, metric='selectivity')
    assert (w.layer, w.site, w.metric, w.key)==(None, 'embed', 'selectivity', (None, 'embed', TASKS[0], 'logistic'))

@pytest.mark.parametrize('kw,error,says', [(dict(task='docstrng'), UnknownName, "did you mean 'docstring'"), (dict(layer=1), ValueError, 'layer must be one of None, 0, 2, got 1'), (dict(site='resid_pst'), UnknownName, 'resid_post'),
    (dict(probe='logistics'), UnknownName, 'logistic'), (dict(metric='acuracy'), UnknownName, 'accuracy'), (dict(color='x'), UnknownName, 'trait')])
def test_what_was_not_swept_is_refused(sweep, kw, error, says):
    with pytest.raises(error, match=re.escape(says)): sweep.atlas(**kw)
    if 'color' not in kw:
        w = sweep.atlas()
        with pytest.raises(error, match=re.escape(says)): setattr(w, *next(iter(kw.items())))

def test_the_page_holds_it_all_or_says_what_not(sweep, found):
    w = sweep.atlas(found, task='docstring', layer=2, site='resid_post', probe='logistic')
    html = w.static().source
    d = state(html)
    assert len(d['cards'])==len(d['found'])==9 and d['why']['less']=='' and base64.b64decode(d['scores'])==w.scores and next(iter(d['cards']))=='2,1,1,0'
    head,data = d['cards']['2,1,1,0']
    assert base64.b64decode(data)==w.data and head==json.loads(json.dumps(w.head))|dict(effects=False)
    assert '<img' not in html.replace('\\u003cimg', '') and not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
    size = len(json.dumps(w.head))+len(w.data)
    few = state(w.static(most=int(1.5*size)).source)
    assert list(few['cards'])==['2,1,1,0'] and 'tokens of 1 of 9 directions' in few['why']['less'] and state(w.static(most=0).source)['cards']=={}
    assert len(w.still().source)<len(html)+10

def test_the_report_runs_small(tmp_path):
    from sparsenb.report import parameters, run_report
    assert all(p['help'] for p in parameters('probe_atlas').values())
    out = run_report('probe_atlas', dict(tasks=['docstring', 'brackets'], layers=[0, 3], sites=['resid_post'], probes=['mean_difference', 'ridge'], n_tokens=2000, index_tokens=300, n_boot=10, least=3), tmp_path/'o.html')
    html = out.read_text()
    for words in ('Where each task is read best', 'snb-pa-page', 'All scores', r'docstring \u00b7 mean_difference', r'brackets \u00b7 ridge'): assert words in html, words
    assert len(html)<1_000_000 and not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
