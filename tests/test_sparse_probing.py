"Sparse probing: planted features, labels that mean nothing, tables and intervals by hand, and a real model"
import sysconfig, tokenize
from pathlib import Path
import numpy as np, pytest, torch
from scipy.sparse import csr_matrix
from sparsenb.core import UnknownName, dictionaries, evaluations
from sparsenb.corpus import load_corpus
from sparsenb.evaluations.sparse_probing import balanced, best_columns, rates, said, tables, task_rows
from sparsenb.tasks import features
from sparsenb.labels import Labels, label_tokens
from sparsenb.models import load_model
from sparsenb.scores import Case
from sparsenb.store import ActivationStore

torch.set_num_threads(1)
LIB = Path(sysconfig.get_paths()['stdlib'])
NAMES = ('textwrap.py', 'heapq.py', 'bisect.py', 'queue.py', 'sched.py', 'shelve.py', 'fnmatch.py', 'glob.py')
D,D_SAE = 16,40

def source(name):
    with tokenize.open(LIB/name) as f: return f.read()[:4000]

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

@pytest.fixture(scope='module')
def planted(model, tmp_path_factory):
    "Activations in which docstrings have a direction, spread over all dimensions, and nothing else has; a dictionary whose feature 13 reads it"
    texts = [(n, source(n)) for n in NAMES]
    ids = [model.tokenizer(t, add_special_tokens=False)['input_ids'] for _,t in texts]
    whole = [(n, open(LIB/n, encoding='utf-8').read()) for n in NAMES]
    doc = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    pos = np.concatenate([np.arange(len(i)) for i in ids])
    g = torch.Generator().manual_seed(3)
    v = torch.ones(D)/D**.5
    noise = 3*torch.randn(len(doc), D, generator=g)
    noise -= (noise@v)[:,None]*v
    path = tmp_path_factory.mktemp('planted')
    def store(name, x): return ActivationStore.from_rows(path/name, x, np.concatenate(ids), pos, doc, NAMES, dtype='float32')
    blank = store('blank', noise)
    l = label_tokens(model, blank, 'docstring', texts=whole)
    y = torch.from_numpy(l['docstring'])
    d = dictionaries['relu'](D, D_SAE)
    with torch.no_grad():
        W = torch.randn(D, D_SAE, generator=g)
        W -= v[:,None]*(v@W)[None]
        W[:,13] = v
        d.W_enc.copy_(W); d.W_dec.copy_(W.T/W.T.norm(dim=1, keepdim=True)); d.b_enc.zero_(); d.b_dec.zero_()
    return d,store('planted', noise+4*y[:,None]*v),blank,whole,l

def probe(d, store, model, seed=0, n_boot=200, **kw): return evaluations['sparse_probing'](Case(d, store, model, (), seed, .95, n_boot), **kw)

def test_a_planted_feature_is_found_alone(planted, model):
    d,store,_,whole,l = planted
    assert l.known.mean()>.99
    p = probe(d, store, model, tasks=('docstring',), texts=whole).scores
    assert p['probe_k1'].value==p['probe_k1_docstring'].value==p['probe_k1_f1'].value==p['probe_k5'].value==p['probe_full'].value==1
    assert p['probe_raw_k1'].value<.75<p['probe_raw_k5'].value+.15, 'one dimension has a quarter of the direction'
    assert p['probe_raw_k1'].value<p['probe_raw_k5'].value<1 and p['probe_k1'].n>200
    with torch.no_grad():
        x = next(store.rows(100_000)).x
        assert best_columns(features(d, x), l['docstring'], 1).tolist()==[13]

def test_without_it_all_is_chance(planted, model):
    d,_,blank,whole,_ = planted
    p = probe(d, blank, model, tasks=('docstring', 'type=keyword', 'brackets>=1'), texts=whole).scores
    for k,s in p.items():
        if not k.endswith('_f1') and s.n>800: assert abs(s.value-.5)<.07, k
    assert abs(p['probe_full'].value-.5)<.05 and abs(p['probe_k1'].value-.5)<.05

def test_shuffled_labels_are_chance_even_where_the_feature_is(planted, model):
    d,store,_,whole,_ = planted
    p = probe(d, store, model, tasks='docstring', texts=whole, k=(1, 5), shuffles=8).scores
    assert p['probe_k5'].value==1 and abs(p['probe_shuffled_k5'].value-.5)<.2
    assert 'probe_shuffled_k1' not in probe(d, store, model, tasks='docstring', texts=whole, k=1, shuffles=0).scores

def test_tasks_without_rows_are_told(planted, model):
    d,store,_,whole,_ = planted
    p = probe(d, store, model, tasks=('docstring', 'brackets>=40'), texts=whole, k=1)
    assert 'brackets>=40' in p.doubts['probe_k1'] and 'probe_k1_brackets>=40' not in p.scores and '1 task' in p.scores['probe_k1'].unit and '1 tasks' not in p.scores['probe_k1'].unit
    assert not probe(d, store, model, tasks='docstring', texts=whole, k=1).doubts
    with pytest.raises(ValueError, match='no task has 20 rows of each class'): probe(d, store, model, tasks=('brackets>=40',), texts=whole)

def test_what_makes_no_sense_is_refused(planted, model):
    d,store,_,whole,_ = planted
    with pytest.raises(UnknownName, match="did you mean 'comment'"): probe(d, store, model, tasks=('comments',), texts=whole)
    with pytest.raises(UnknownName, match="did you mean 'keyword'"): probe(d, store, model, tasks=('type=keywords',), texts=whole)
    with pytest.raises(ValueError, match='different tasks'): probe(d, store, model, tasks=('string', 'string'), texts=whole)
    for k in (0, (1, 17), (True,), (1.5,)):
        with pytest.raises(ValueError, match='whole numbers from 1 to 16'): probe(d, store, model, k=k if isinstance(k, tuple) else (k,), texts=whole)
    with pytest.raises(ValueError, match='1 documents could be labelled, at least 4 are needed: '): probe(d, store, model, texts=whole[:1])
    with pytest.raises(ValueError, match='pass the texts'): probe(d, store, model, texts=[('b', 'x = 1')])

def test_rows_of_a_task_are_balanced_and_of_other_documents():
    rng = np.random.default_rng(0)
    y,doc = rng.random(1000)<.1,np.arange(1000)//50
    l = Labels(dict(string=y), np.ones(1000, bool), doc=doc)
    fit,test = np.arange(0, 700),np.arange(700, 1000)
    t = task_rows(l, 'string', fit, test, 50, 500, 10, 0)
    assert len(t.fit)==100 and t.fit_y.sum()==50 and t.test_y.sum()*2==len(t.test)==2*y[700:].sum()
    assert (y[t.fit]==t.fit_y).all() and (y[t.test]==t.test_y).all() and not {*doc[t.fit]}&{*doc[t.test]} and len({*t.fit})==100
    assert task_rows(l, 'string', fit, test, 50, 500, 60, 0) is None
    one = Labels(dict(string=(doc==3)|(doc==17)), np.ones(1000, bool), doc=doc)
    assert task_rows(one, 'string', fit, test, 50, 500, 10, 0) is None, 'all of a class from one document'
    assert balanced(np.array([True, False, False]), 9, rng).tolist() in ([0, 1], [0, 2])

def test_columns_of_a_sparse_matrix_are_those_of_the_dense_one():
    rng = np.random.default_rng(1)
    x,y = rng.random((300, 20))*(rng.random((300, 20))<.2),rng.random(300)<.4
    gap = [abs(np.mean([x[i,j] for i in range(300) if y[i]])-np.mean([x[i,j] for i in range(300) if not y[i]])) for j in range(20)]
    want = sorted(range(20), key=lambda j: -gap[j])[:6]
    assert best_columns(x, y, 6).tolist()==best_columns(csr_matrix(x), y, 6).tolist()==want
    assert (said(x, y, x[:50], 3, 0)==said(csr_matrix(x), y, csr_matrix(x[:50]), 3, 0)).all()
    assert len(set(said(np.zeros((9, 2)), np.arange(9)>4, np.zeros((4, 2)), 1, 0)))==1, 'dead features say one thing of all'

@pytest.mark.parametrize('name', ['topk', 'batch_topk', 'gated'])
def test_features_are_the_dictionary_s_own(name):
    torch.manual_seed(2)
    d = dictionaries[name](12, 40).eval()
    x = torch.randn(50, 12)
    with torch.no_grad(): want = d.encode(x).numpy()
    np.testing.assert_allclose(features(d, x, 16).toarray(), want, atol=1e-6)

def test_rates_against_tables_written_out():
    rng = np.random.default_rng(2)
    y,s,of = rng.random(200)<.5,rng.random(200)<.6,rng.integers(0, 6, 200)
    T = tables(s, y, of, 6)
    for d in range(6):
        for a in (0, 1):
            for b in (0, 1): assert T[d,a,b]==sum((of==d)&(y==a)&(s==b))
    case = Case(None, None, None, (), 5, .95, 400)
    v,lo,hi = rates([T], 'accuracy', case)
    assert v==pytest.approx((s==y).mean()) and lo<v<hi
    f,*_ = rates([T], 'f1', case)
    assert f==pytest.approx(2*(s&y).sum()/(s.sum()+y.sum()))
    both,*_ = rates([T, tables(y, y, of, 6)], 'accuracy', case)
    assert both==pytest.approx((v+1)/2)
    drawn = []
    r = np.random.default_rng(9)
    for _ in range(4000):
        at = np.concatenate([np.flatnonzero(of==d) for d in r.integers(0, 6, 6)])
        drawn.append((s==y)[at].mean())
    many = rates([T], 'accuracy', case._replace(n_boot=4000))
    from sparsenb.scores import _tails
    np.testing.assert_allclose(many[1:], np.quantile(drawn, _tails(.95, 6)), atol=.012)
    assert np.isnan(rates([tables(s, y, of*0, 1)], 'accuracy', case)[1])
    np.testing.assert_allclose(tables(np.stack([s, ~s]), y, of, 6), (T+tables(~s, y, of, 6))/2)

def test_on_the_bundled_model(model, tmp_path):
    "What holds of any dictionary: a full probe knows nearly all, shuffled labels nothing, features something, more with more of them"
    texts = [(d.name, d.text[:1500]) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(24))]
    store = ActivationStore.collect(model, texts, site='resid_post.2', n_tokens=5000, path=tmp_path/'acts', seq_len=96, progress=False)
    d = dictionaries['topk'](store.d_in, 256, k=16, seed=0)
    p = probe(d, store, model, n_boot=100)
    s = {k: v.value for k,v in p.scores.items()}
    print({k: round(v, 3) for k,v in s.items()})
    assert not p.doubts and '6 tasks' in p.scores['probe_k1'].unit
    assert s['probe_full']>.85 and abs(s['probe_shuffled_k5']-.5)<.1
    assert .55<s['probe_k1']<s['probe_k5']<s['probe_full'] and .55<s['probe_raw_k1']<s['probe_raw_k5']<s['probe_full']
    assert s['probe_k1']==pytest.approx(np.mean([v for k,v in s.items() if k.startswith('probe_k1_') and k!='probe_k1_f1']))
