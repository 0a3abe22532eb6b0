"RAVEL: pairs, masks by every subset, dictionaries of known value, turned and scaled activations, the bundled model"
from itertools import product
import numpy as np, pytest, torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from sparsenb.core import UnknownName, dictionaries, evaluations
from sparsenb.evaluations.ravel import Swaps, mask, pairs
from sparsenb.models import load_model
from sparsenb.scores import Case
from sparsenb.store import ActivationStore
from planted import Planted, silent

torch.set_num_threads(1)
TASKS = ('type=name', 'brackets>=1', 'indent>=2')

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

@pytest.fixture(scope='module')
def p(model, tmp_path_factory): return Planted(model, tmp_path_factory.mktemp('p'), lambda l, tok: [l.where(t) for t in TASKS])

def run(p, d, x=None, name='planted', **kw): return evaluations['ravel'](p.case(d, x, name), **dict(dict(tasks=TASKS, n_pairs=200, texts=p.texts), **kw))
def values(part): return {k: s.value for k,s in part.scores.items()}

def test_a_feature_for_each_attribute_scores_one(p):
    part = run(p, p.true())
    v = values(part)
    assert v['ravel']==v['ravel_cause']==v['ravel_isolation']==1 and v['ravel_all']==.5 and v['ravel_line']>.95
    assert 1<=v['ravel_features']<4 and 'not the model' in part.doubts['ravel'] and '6 ordered pairs' in part.scores['ravel'].unit

def test_silent_features_cause_nothing_and_isolate_all(p):
    v = values(run(p, silent(p.true())))
    assert v['ravel_cause']==0 and v['ravel_isolation']==1 and v['ravel']==v['ravel_all']==.5 and v['ravel_features']==0

def test_one_feature_for_all_attributes_scores_a_half(p):
    both = p.dictionary(p.V[:p.m].sum(0)[None], p.V[:p.m].sum(0)[None])
    v = values(run(p, both))
    assert .3<v['ravel']<.75

def test_neurons_are_worse_than_the_truth_and_all_of_them_are_a_half(p):
    v = values(run(p, dictionaries['identity'](p.x.shape[1], p.x.shape[1])))
    assert v['ravel_all']==.5 and .5<=v['ravel']<1

def test_it_does_not_see_axes_and_units(p):
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(p.x.shape[1],)*2))[0]
    d = p.dictionary(p.V[:2], p.V[:2]) # the third attribute has no feature
    e = dictionaries['relu'](d.d_in, d.d_sae)
    t = torch.as_tensor(turn, dtype=torch.float32)
    with torch.no_grad(): e.W_enc.copy_(t.T@d.W_enc/10); e.W_dec.copy_(10*d.W_dec@t); e.b_enc.zero_(); e.b_dec.zero_()
    a,b = values(run(p, d)),values(run(p, e, 10*p.x@turn, 'turned'))
    assert .5<a['ravel']<.95
    for k in ('ravel', 'ravel_cause', 'ravel_isolation', 'ravel_all', 'ravel_line'): assert a[k]==pytest.approx(b[k], abs=.02), k

def test_the_mask_is_the_best_of_all(seed=0):
    g = torch.Generator().manual_seed(seed)
    delta,base = torch.randn(200, 6, generator=g),torch.randn(200, generator=g)
    cause = Swaps(base, torch.tensor([3., 0, 0, .2, -2, 0]), base<0)
    isolate = Swaps(base, torch.tensor([0., 3, 0, .2, 2, 2]), base>0)
    delta = delta.abs()*torch.where(base<0, 1., -1.)[:,None] # every feature that helps, helps always
    def loss(m): return sum(bce(s.base+delta@(torch.tensor(m, dtype=torch.float32)*s.does), s.to.float()).item() for s in (cause, isolate))
    best = min(product((0, 1), repeat=6), key=lambda m: (round(loss(m), 6), sum(m)))
    got = mask([delta], [cause], [isolate])
    assert tuple(got.astype(int))==best==(1, 0, 0, *best[3:]) and not got[2], 'feature 2 changes nothing'

def test_pairs_differ_in_both():
    rng = np.random.default_rng(0)
    a,b = rng.random(500)<.2,rng.random(500)<.5
    q = pairs(np.arange(100, 500), a, b, 80, 5, rng)
    assert len(q.base)==80 and (a[q.base]==q.a).all() and (a[q.source]==~q.a).all() and (b[q.source]==~q.b).all() and q.base.min()>=100
    assert [((q.a==i)&(q.b==j)).sum() for i in (0, 1) for j in (0, 1)]==[20]*4

def test_what_makes_no_sense_is_refused(p):
    with pytest.raises(UnknownName, match="did you mean 'brackets'"): run(p, p.true(), tasks=('type=name', 'bracket>=1'))
    with pytest.raises(ValueError, match='2 or more different'): run(p, p.true(), tasks=('string',))
    with pytest.raises(ValueError, match='no two attributes have 10 rows'): run(p, p.true(), tasks=('type=name', 'type=keyword'))
    part = run(p, p.true(), tasks=TASKS+('brackets>=40',))
    assert 'brackets>=40' in part.doubts['ravel'] and values(part)['ravel']==1

def test_on_the_bundled_model(model, tmp_path):
    from sparsenb.corpus import load_corpus
    texts = [(d.name, d.text[:1500]) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(24))]
    store = ActivationStore.collect(model, texts, site='resid_post.2', n_tokens=5000, path=tmp_path/'acts', seq_len=96, progress=False)
    part = evaluations['ravel'](Case(dictionaries['topk'](store.d_in, 256, k=16, seed=0), store, model, (), 0, .95, 100))
    print({k: str(s) for k,s in part.scores.items()}, part.doubts['ravel'])
    for k,s in part.scores.items(): assert not s.lo>s.value and not s.value>s.hi and s.n>100 and part.about[k]
    assert .4<part.scores['ravel'].value<1 and part.scores['ravel_line'].value>.6
