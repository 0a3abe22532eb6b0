"Absorption and splitting: rows by hand, planted absorbers, dictionaries of known value, turned and scaled activations, the bundled model"
import numpy as np, pytest, torch
from scipy.sparse import csr_matrix
from sparsenb.core import UnknownName, dictionaries, evaluations
from sparsenb.evaluations.absorption import Limits, absorbed, class_of, main_features
from sparsenb.labels import types
from sparsenb.models import load_model
from sparsenb.tasks import sides
from planted import Planted, silent

torch.set_num_threads(1)
CLASSES = [t for t in types if t!='continuation']
OP = CLASSES.index('operator')

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

@pytest.fixture(scope='module')
def p(model, tmp_path_factory):
    "A direction for each type of token, and two for some operators: about 4 % of them, and about a third"
    def columns(l, tok):
        kinds = [l.where(f'type={t}') for t in CLASSES]
        ids,n = np.unique(tok[kinds[OP]], return_counts=True)
        share = n/n.sum()
        few = ids[np.abs(share-.035).argmin()]
        order = np.argsort(-share)
        many = ids[order[:int(np.searchsorted(share[order].cumsum(), .3))+1]]
        many = many[many!=few]
        return kinds+[kinds[OP]&(tok==few), kinds[OP]&np.isin(tok, many)]
    return Planted(model, tmp_path_factory.mktemp('p'), columns)

def run(p, d, x=None, name='planted', **kw): return evaluations['absorption'](p.case(d, x, name), **dict(dict(family='type', texts=p.texts), **kw))
def value(p, d, **kw): return {k: s.value for k,s in run(p, d, **kw).scores.items()}

def with_absorber(p, which):
    "The true dictionary, but `operator` keeps silent where `which` is there, whose feature says both"
    enc,dec = p.V[:p.m].copy(),p.V[:p.m].copy()
    enc[OP] -= 2*p.V[which]
    dec[which] += p.V[OP]
    for i in range(len(CLASSES), p.m):
        if i!=which: enc[i] = -enc[i] # never fires
    return p.dictionary(enc, dec)

def test_rows(p):
    few,many = (p.y[:,i].sum()/p.y[:,OP].sum() for i in (len(CLASSES), len(CLASSES)+1))
    assert .01<few<.06 and .2<many<.6 and (p.y[:,:len(CLASSES)].sum(1)==1).mean()>.98

def test_the_true_dictionary_absorbs_nothing(p):
    v = value(p, p.true())
    assert v['absorption_full']==v['absorption_fraction']==0 and v['split_features']==1 and v['absorption_probe_f1']>.999

@pytest.mark.parametrize('nr', [0, 1])
def test_a_planted_absorber_absorbs_its_share(p, nr):
    which = len(CLASSES)+nr
    rise = (.03, .5)[nr] # a third of a class gone is otherwise a split
    part = run(p, with_absorber(p, which), rise=rise)
    s = sides(p.case(p.true()), ('type',), p.texts)
    want = p.y[s.test,which].sum()/p.y[s.test,OP].sum()
    n = int(part.scores['absorption_full'].unit.split()[-2])
    assert part.scores['absorption_full'].value==pytest.approx(want/n, rel=1e-6) and want>.005
    assert part.scores['absorption_fraction'].value==pytest.approx(want/n, rel=1e-6)
    assert part.scores['split_features'].value==1

def test_what_is_large_enough_is_a_split(p):
    which = len(CLASSES)+1
    v = value(p, with_absorber(p, which))
    assert v['absorption_full']==0 and v['split_features']>1

def test_silent_and_dense_dictionaries_absorb_nothing(p):
    assert value(p, silent(p.true()))['absorption_fraction']==0
    d = dictionaries['identity'](p.x.shape[1], p.x.shape[1])
    part = run(p, d)
    assert part.scores['absorption_full'].value==0 and 'fire on everything' in part.doubts['absorption_full']

def test_turning_and_scaling_change_nothing(p):
    which = len(CLASSES)
    a = with_absorber(p, which)
    want = value(p, a)
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(p.x.shape[1],)*2))[0]
    with torch.no_grad():
        b = with_absorber(p, which)
        t = torch.as_tensor(turn, dtype=torch.float32)
        b.W_enc.copy_(t.T@a.W_enc/10); b.W_dec.copy_(10*a.W_dec@t)
    got = value(p, b, x=10*p.x@turn, name='turned')
    for k in want: assert got[k]==pytest.approx(want[k], abs=1e-6), k

def test_rows_by_hand():
    W = np.eye(3); W[1] = (.06, np.sqrt(1-.06**2), 0)
    f = csr_matrix(np.array([[0, 10., 0], [0, 5, 0], [0, 0, 9], [0, 10, 0]]))
    along = np.array([1., 1, 1, -1])
    got = absorbed(f, along, W, np.array([3., 0, 0]), [0])
    assert got[:,0].tolist()==[1, 0, 0, 0] and got[:,1].tolist()==[0, 0, 0, 0], 'aligned enough for one, not for several'
    assert absorbed(f, along, W, np.array([3., 0, 0]), [0], Limits(full_cos=.07))[:,0].sum()==0
    assert absorbed(f, along, W, np.array([3., 0, 0]), [0], Limits(share=.2))[:,0].tolist()==[1, 1, 0, 0]
    one = absorbed(csr_matrix(np.full((1, 5), .2)), np.array([1.]), np.eye(5)[[0]*5], np.eye(5)[0], [0])
    assert one[0].tolist()==[0, pytest.approx(.6/.8)], 'three absorbers of four at most'

def test_features_of_a_class():
    rng = np.random.default_rng(0)
    y = rng.random(2000)<.3
    half = rng.random(2000)<.5
    f = csr_matrix(np.c_[rng.random(2000)<.1, y&half, y&~half, y&(rng.random(2000)<.02)].astype(float))
    assert sorted(main_features(f, y))==[1, 2]
    assert main_features(csr_matrix(np.c_[np.zeros(2000), y]), y).tolist()==[1]
    assert len(main_features(csr_matrix(np.zeros((2000, 4))), y))==1

def test_letters_are_those_of_names(p, model):
    c,names = class_of(p.labels, p.tok, model, 'letter')
    words = [t.strip() for t in model.token_text(p.tok)]
    is_name = p.labels.where('type=name')
    assert len(names)==26 and not (c[~is_name]>=0).any() and (c>=0).sum()>300
    assert all(words[i][0].lower()==names[c[i]] for i in np.flatnonzero(c>=0))

def test_rows_at_the_end_without_a_label(p):
    "The store is read in blocks of 8,192 rows; the last block holds no row that is labelled"
    assert len(p.tok)>8192>(p.doc<6).sum()
    with pytest.raises(ValueError, match="no class of 'letter' has 2 rows on both sides and a probe with F1 1.1: a "): run(p, p.true(), family='letter', least=2, probe_f1=1.1, texts=p.texts[:6])

def test_what_makes_no_sense_is_refused(p):
    with pytest.raises(UnknownName, match="did you mean 'letter'"): run(p, p.true(), family='leter')
    with pytest.raises(ValueError, match='no class of .type. has 9999 rows'): run(p, p.true(), least=9999)
    with pytest.raises(ValueError, match='adding up directions'): run(p, dictionaries['relu'](p.x.shape[1], 50, d_out=7))

def test_letters_of_the_bundled_model(model, tmp_path):
    "Interval, count and doubts of a real dictionary that nobody trained"
    from sparsenb.corpus import load_corpus
    from sparsenb.store import ActivationStore
    from sparsenb.scores import Case
    texts = [(d.name, d.text[:2500]) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(24))]
    store = ActivationStore.collect(model, texts, site='resid_post.0', n_tokens=9000, path=tmp_path/'acts', seq_len=96, progress=False)
    part = evaluations['absorption'](Case(dictionaries['topk'](store.d_in, 256, k=16, seed=0), store, model, (), 0, .95, 100))
    s = part.scores['absorption_full']
    print({k: str(v) for k,v in part.scores.items()}, part.doubts)
    assert 0<=s.lo<=s.value<=s.hi<=1 and s.n>100 and 'unseen documents' in s.unit and part.scores['absorption_probe_f1'].value>.6
    assert 'SAEBench asks for 20 classes' in part.doubts['absorption_full']
