"TPP and SCR: known values of planted, silent and shared features, rows by hand, turned and scaled activations, the bundled model"
import numpy as np, pytest, torch
from scipy.sparse import csr_matrix
from sparsenb.core import UnknownName, dictionaries, evaluations
from sparsenb.evaluations.scr import answers, cells, misled
from sparsenb.evaluations.tpp import effects, parts, strongest, without
from sparsenb.models import load_model
from sparsenb.scores import Case
from sparsenb.store import ActivationStore
from sparsenb.tasks import sides
from planted import Planted, silent

torch.set_num_threads(1)
TASKS = ('type=name', 'type=keyword', 'type=operator', 'type=newline')
WANT,WRONG = 'type=name','indent>=2'

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

@pytest.fixture(scope='module')
def p(model, tmp_path_factory): return Planted(model, tmp_path_factory.mktemp('p'), lambda l, tok: [l.where(t) for t in TASKS])

@pytest.fixture(scope='module')
def two(model, tmp_path_factory):
    "Yes and no of two labels have a direction each; the second pair is longer"
    def columns(l, tok): a,b = l.where(WANT),l.where(WRONG); return [a, ~a, b, ~b]
    q = Planted(model, tmp_path_factory.mktemp('q'), columns)
    q.x += 4*q.y[:,2:]@q.V[2:4]
    return q

def tpp(p, d, x=None, name='planted', **kw): return evaluations['tpp'](p.case(d, x, name), **dict(dict(tasks=TASKS, n=(1, 3), texts=p.texts), **kw))
def scr(q, d, x=None, name='planted', **kw): return evaluations['scr'](q.case(d, x, name), **dict(dict(pairs=(WANT, WRONG), n=(1, 2, 5), texts=q.texts), **kw))
def values(part): return {k: s.value for k,s in part.scores.items()}

def turned(d, turn, scale=10.):
    t = torch.as_tensor(turn, dtype=torch.float32)
    e = dictionaries['relu'](d.d_in, d.d_sae)
    with torch.no_grad(): e.W_enc.copy_(t.T@d.W_enc/scale); e.W_dec.copy_(scale*d.W_dec@t); e.b_enc.copy_(d.b_enc); e.b_dec.copy_(scale*d.b_dec@t)
    return e

def test_tpp_of_a_feature_for_each_class_is_the_probes_accuracy_less_a_half(p):
    v = values(tpp(p, p.true()))
    assert v['tpp_probes']>.999 and v['tpp_intended_n1']==pytest.approx(v['tpp_probes']-.5, abs=1e-9)
    assert v['tpp_n1']==pytest.approx(v['tpp_intended_n1']-v['tpp_unintended_n1']) and abs(v['tpp_unintended_n1'])<.12

def test_tpp_without_interference_is_exact(model, tmp_path):
    "Labels of other kinds that exclude each other in nothing: the feature of one does next to nothing to the others"
    tasks = ('type=name', 'brackets>=1', 'indent>=2')
    q = Planted(model, tmp_path, lambda l, tok: [l.where(t) for t in tasks])
    v = values(tpp(q, q.true(), tasks=tasks, n=(1,)))
    assert v['tpp_n1']==pytest.approx(.5, abs=.02) and abs(v['tpp_unintended_n1'])<.02

def test_tpp_of_features_that_do_nothing_or_everything(p):
    zero = values(tpp(p, silent(p.true())))
    assert zero['tpp_n1']==zero['tpp_n3']==zero['tpp_intended_n3']==0
    both = p.dictionary(p.V[:p.m].sum(0)[None], p.V[:p.m].sum(0)[None]) # one feature says any of the four
    assert abs(values(tpp(p, both))['tpp_n1'])<.35<values(tpp(p, p.true()))['tpp_n1']

def test_tpp_does_not_see_axes_and_units(p):
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(p.x.shape[1],)*2))[0]
    a,b = values(tpp(p, p.true())),values(tpp(p, turned(p.true(), turn), 10*p.x@turn, 'turned'))
    for k in a: assert a[k]==pytest.approx(b[k], abs=.003), k

def test_effects_by_hand():
    f = csr_matrix(np.array([[1., 0, 4], [3, 0, 0], [0, 2, 0], [0, 0, 2]]))
    W,w,y = np.array([[1., 0], [5, 0], [0, 1]]),np.array([2., -1]),np.array([True, True, False, False])
    assert effects(f, y, W, w).tolist()==[4, 0, -1] and strongest(effects(f, y, W, w), 3).tolist()==[0]
    np.testing.assert_allclose(without(np.ones(4), f, W, w, [0, 2]), 1-f.toarray()[:,[0, 2]]@(W[[0, 2]]@w))
    T = np.zeros((1, 3, 2, 2)); T[...,1] = 10
    T[0,:,:,0] = [[9, 8], [5, 7], [9, 6]]
    acc,own,other = parts(T)
    assert acc[0]==pytest.approx(.85) and own[0]==pytest.approx((.4+.2)/2) and other[0]==pytest.approx((.1+0)/2)

def test_scr_of_a_feature_for_each_label_wins_all_back(two):
    part = scr(two, two.true())
    v = values(part)
    assert v['scr_clean']>.999 and v['scr_biased']<.6 and v['scr_n2']>.97 and v['scr_n1']<v['scr_n2']
    assert f'{WANT} without {WRONG}' in part.doubts['scr_n2'], 'the weaker label is the one to be wanted'

def test_scr_of_silent_features_is_zero_and_of_the_wrong_ones_no_gain(two):
    assert values(scr(two, silent(two.true())))['scr_n5']==0
    only = two.dictionary(two.V[:2], two.V[:2]) # knows the wanted label alone
    assert values(scr(two, only))['scr_n5']<.2

def test_one_feature_for_a_label_needs_its_mean(two):
    one = two.dictionary(two.V[2:3], two.V[2:3])
    q = Planted.__new__(Planted); q.__dict__ |= two.__dict__
    x = two.x - 8*two.y[:,3:4]*two.V[3]
    zero,mean = (values(scr(q, one, x, 'onesided', n=(1,), fill=f))['scr_n1'] for f in ('zero', 'mean'))
    assert mean>.9 and zero<.5

def test_scr_does_not_see_axes_and_units(two):
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(two.x.shape[1],)*2))[0]
    a,b = values(scr(two, two.true())),values(scr(two, turned(two.true(), turn), 10*two.x@turn, 'turned'))
    for k in a: assert a[k]==pytest.approx(b[k], abs=.01), k

def test_the_biased_probe_saw_no_row_that_disagrees():
    rng = np.random.default_rng(1)
    a,b = rng.random(200)<.5,rng.random(200)<.5
    x = rng.normal(size=(200, 4)); f = csr_matrix((200, 3))
    m = misled(x, f, a, b, np.zeros((3, 4)))
    x[a!=b] = 99
    assert np.allclose(misled(x, f, a, b, np.zeros((3, 4))).biased.w, m.biased.w) and not m.effect.any()
    assert (answers(m, x, f, np.zeros((3, 4)), (2,))[1:]==(m.biased(x)>0)).all()

def test_cells_are_balanced_and_of_other_documents(two):
    s = sides(two.case(two.true()), ('type', 'indent'), two.texts)
    c = cells(s, (WANT, WRONG), 60, 30, 10, 0)
    a,b = s.labels.where(WANT),s.labels.where(WRONG)
    assert [((a==i)&(b==j))[c.fit].sum() for i in (0, 1) for j in (0, 1)]==[60]*4 and len(c.test)==120
    assert not {*s.labels.doc[c.fit]}&{*s.labels.doc[c.test]}
    assert cells(s, (WANT, 'brackets>=1') if 'brackets' in s.labels.columns else (WANT, WANT), 60, 30, 10, 0) is None

def test_what_makes_no_sense_is_refused(p, two):
    d = p.true()
    with pytest.raises(UnknownName, match="did you mean 'keyword'"): tpp(p, d, tasks=('type=keywrd', 'comment'))
    with pytest.raises(ValueError, match='2 or more different tasks'): tpp(p, d, tasks=('comment', 'comment'))
    with pytest.raises(ValueError, match='two classes are needed'): tpp(p, d, tasks=('brackets>=40', 'type=name'))
    for n in (0, (True,), (), (1.5,)):
        with pytest.raises(ValueError, match='whole numbers of at least 1'): tpp(p, d, n=n)
        with pytest.raises(ValueError, match='whole numbers of at least 1'): scr(two, two.true(), n=n)
    with pytest.raises(ValueError, match='pairs of two different labels'): scr(two, two.true(), pairs=(('string', 'string'),))
    with pytest.raises(ValueError, match="'zero' or 'mean'"): scr(two, two.true(), fill='median')
    with pytest.raises(ValueError, match='no pair has 20 rows of each combination'): scr(two, two.true(), pairs=(('comment', 'docstring'),))
    with pytest.raises(ValueError, match='no pair misleads a probe by 0.9'): scr(two, two.true(), gain=.9)

def test_on_the_bundled_model(model, tmp_path):
    from sparsenb.corpus import load_corpus
    texts = [(d.name, d.text[:1500]) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(24))]
    store = ActivationStore.collect(model, texts, site='resid_post.2', n_tokens=5000, path=tmp_path/'acts', seq_len=96, progress=False)
    case = Case(dictionaries['topk'](store.d_in, 256, k=16, seed=0), store, model, (), 0, .95, 100)
    a,b = evaluations['tpp'](case),evaluations['scr'](case)
    print({k: str(s) for k,s in (a.scores|b.scores).items()}, b.doubts['scr_n2'])
    for part in (a, b):
        for k,s in part.scores.items(): assert s.lo<=s.value<=s.hi and s.n>100 and part.about[k], k
    assert a.scores['tpp_probes'].value>.8 and -.1<a.scores['tpp_n2'].value<.3 and 'not be what the model loses' in a.doubts['tpp_n2']
    assert b.scores['scr_clean'].value>b.scores['scr_biased'].value+.05
