"Choosing data, searching, counting and remembering by features: the cards' values, dense computations of the same, closed forms"
import itertools, math
import numpy as np, pytest, torch
from scipy.sparse import csr_array
from sparsenb.core import UnknownName, analyses, dictionaries
from sparsenb.analyses.feature_richness import rarefied
from sparsenb.analyses.mona import generalised_jaccard, pooled_features
from sparsenb.analyses.retrieval import InvertedIndex
from sparsenb.analyses.verbatim_memory import list_trials, repeat_surprisal

torch.set_num_threads(1)

def rare(n, F, share=.1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n, F))*(rng.random((n, F))<share)

# ---- MONA ----

def test_generalised_jaccard():
    assert generalised_jaccard([1, 2, 0], [2, 1, 1]).item()==pytest.approx(.4, abs=1e-12)
    x,y = rare(30, 50),rare(1, 50, .3, 1)[0]
    assert generalised_jaccard(x, y)==pytest.approx(np.minimum(x, y).sum(1)/np.maximum(x, y).sum(1))
    assert np.array_equal(generalised_jaccard(x, y), generalised_jaccard(csr_array(x), y))
    assert generalised_jaccard(x, x[3])[3]==pytest.approx(1) and generalised_jaccard(3*x[3], x[3]).item()==pytest.approx(1/3)  # not scale-invariant
    assert generalised_jaccard([0., 0.], [0, 0]).item()==1
    with pytest.raises(ValueError, match='0 and more'): generalised_jaccard([-1, 2], [1, 1])
    with pytest.raises(ValueError, match='prototype of 2 features'): generalised_jaccard([1, 2], [1, 2, 3])

@pytest.mark.parametrize('pool', ['mean', 'sum', 'max'])
def test_pooling_is_that_of_dense_codes(pool):
    sae,g = dictionaries['topk'](16, 64, k=4),torch.Generator().manual_seed(0)
    x,of = torch.randn(200, 16, generator=g),np.random.default_rng(0).permutation(np.r_[np.arange(20), np.random.default_rng(1).integers(0, 20, 180)])
    f = sae.encode(x).detach().numpy()
    want = np.stack([dict(mean=f[of==i].mean(0), sum=f[of==i].sum(0), max=f[of==i].max(0))[pool] for i in range(20)])
    assert pooled_features(sae, x, of, pool, batch_size=33).toarray()==pytest.approx(want, abs=1e-5)
    kept = pooled_features(sae, x, of, pool, top=5).toarray()
    assert ((kept>0).sum(1)<=5).all() and kept.max(1)==pytest.approx(want.max(1), abs=1e-5)
    for bad,said in ((dict(texts=of[:5]), '200 tokens need'), (dict(texts=of+1), 'text 0 has no tokens')):
        with pytest.raises(ValueError, match=said): pooled_features(sae, x, **bad)

def test_selection_finds_the_task_and_nothing_where_there_is_none():
    rng = np.random.default_rng(0)
    wanted,texts = rng.permutation(1000)<100,rare(1000, 80)
    texts[:,:3] += 2*wanted[:,None]*rng.exponential(size=(1000, 3))
    examples = rare(20, 80, seed=1); examples[:,:3] += 2
    s = analyses['mona'](csr_array(texts), examples)
    assert len(s.chosen)==100 and wanted[s.chosen].mean()>.6 and (np.diff(s.scores[s.chosen])<=0).all()
    assert abs(np.random.default_rng(1).permutation(wanted)[s.chosen].mean()-.1)<.1
    rows = s.curve(wanted).rows
    assert rows[-1][2][0]==pytest.approx(.1) and rows[-1][3]==1 and rows[3][2][0]==pytest.approx(wanted[s.chosen].mean())
    with pytest.raises(ValueError, match='above 0 and up to 1'): analyses['mona'](texts, examples, 0)
    with pytest.raises(ValueError, match='samples have 80 features, examples 9'): analyses['mona'](texts, examples[:,:9])

def test_matrices_that_are_given_stay_as_they_are():
    "Zeros that are stored, and entries below what counts, are not taken out of the caller's matrix"
    x = csr_array((np.array([.5, 0., 3., .7]), np.array([0, 1, 3, 2]), np.array([0, 2, 3, 4])), shape=(3, 5))
    own = x.copy()
    r = analyses['feature_richness'](dict(a=x), above=1., n_boot=2)
    assert r.every==dict(a=1)
    InvertedIndex(x, idf=True).search(x[[0]]); analyses['retrieval'](x, k=1); analyses['mona'](x, x[[0]], .5)
    for k in ('data', 'indices', 'indptr'): assert np.array_equal(getattr(x, k), getattr(own, k)), k
    twice = csr_array((np.array([1., 2., 3.]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))  # an entry in two parts
    assert InvertedIndex(twice).scores([0, 3., 0])[1]==pytest.approx([1.])

@pytest.mark.parametrize('pool', ['mean', 'max'])
def test_pooling_of_a_dictionary_in_half_precision(pool):
    sae,x = dictionaries['topk'](16, 64, k=4).bfloat16(),torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    of = [0, 0, 0, 1, 1, 1]
    f = sae.encode(x).detach().float().numpy().reshape(2, 3, 64)
    assert pooled_features(sae, x.bfloat16(), of, pool).toarray()==pytest.approx(dict(mean=f.mean(1), max=f.max(1))[pool], abs=.05)

# ---- retrieval ----

@pytest.mark.parametrize('by', ['cosine', 'dot', 'jaccard'])
@pytest.mark.parametrize('idf', [False, True])
def test_search_is_exact(by, idf):
    x,q = rare(300, 120, .05),rare(10, 120, .05, 1)
    ix = InvertedIndex(csr_array(x), idf)
    w = np.log(300/np.maximum((x>0).sum(0), 1)) if idf else np.ones(120)
    X = x*w
    for v in q:
        V = v*w
        full = dict(dot=X@V, cosine=X@V/(np.linalg.norm(X, axis=1)*np.linalg.norm(V)+1e-300), jaccard=np.minimum(X, V).sum(1)/np.maximum(X, V).sum(1))[by]
        rows,scores = ix.search(v, 5, by)
        best = np.sort(full)[::-1][:5]
        assert scores==pytest.approx(best[:len(scores)], abs=1e-9) and full[rows]==pytest.approx(scores, abs=1e-9) and (len(rows)==5 or (best[len(rows):]==0).all())
        assert ix.scores(v)[2]==(x[:,v>0]>0).sum()  # nothing but the lists of the query's features is read
    assert len(ix.search(np.zeros(120))[0])==0

def test_retrieval_by_label():
    kind = np.repeat(np.arange(10), 20)
    x = rare(200, 300, .01); x[np.arange(200),kind] += 2
    r = analyses['retrieval'](x, k=10, labels=kind)
    assert r.precision.mean()>.9 and r.chance==pytest.approx(19/199) and all(i not in rows for i,rows in enumerate(r.rows)) and r.read<.1
    dealt = analyses['retrieval'](x, k=10, labels=np.random.default_rng(0).permutation(kind))
    assert abs(dealt.precision.mean()-r.chance)<.05
    asked = analyses['retrieval'](InvertedIndex(x), x[:7], k=3, by='jaccard')
    assert all(s[0]==pytest.approx(1) and len(s)==3 for s in asked.scores) and np.isnan(asked.precision).all() and 'same label' not in asked.table().columns
    for kw,said in ((dict(labels=kind[:3]), 'labels of all 200 rows'), (dict(queries=x[:2], labels=kind), 'all 2 queries'), (dict(queries=x[:2,:5]), 'query of 300 features')):
        with pytest.raises(ValueError, match=said): analyses['retrieval'](x, **kw)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match='k is a whole number from 1'): analyses['retrieval'](x, k=k, labels=kind)

# ---- richness ----

def test_rarefaction_is_the_mean_over_all_choices():
    f = rare(7, 12, .25)>0
    for n in range(8): assert rarefied(f.sum(0), 7, n)==pytest.approx(np.mean([f[list(c)].any(0).sum() for c in itertools.combinations(range(7), n)]), abs=1e-9)
    with pytest.raises(ValueError, match='n=8'): rarefied(f.sum(0), 7, 8)

def test_richness_of_two_models():
    "The card's 22 and 3 features, and that more rows are no more richness"
    rng = np.random.default_rng(0)
    def model(own, n):
        f = np.zeros((n, 60)); f[np.arange(n),rng.integers(0, own, n)] = 1; f[np.arange(n),30+rng.integers(0, 30, n)] = 1
        return f
    topic = dict(a=range(30), b=range(30))
    r = analyses['feature_richness'](dict(a=model(22, 500), b=csr_array(model(3, 500))), topic, n_boot=100, seed=0)
    assert r.every==dict(a=22, b=3) and r.ratio['a']==pytest.approx(7.33, abs=.01) and r.doubts==()
    assert all(s.lo<=s.value+1e-9 and s.value<=s.hi+1e-9 for s in r.scores.values())
    same = analyses['feature_richness'](dict(a=model(30, 1000), b=model(30, 40)), topic, n_boot=50, seed=0)
    assert same.n==40 and abs(same.ratio['a']/same.ratio['b']-1)<.2 and same.every['a']>same.every['b']
    wide = analyses['feature_richness'](dict(a=np.ones((5, 4)), b=np.ones((5, 9))), n_boot=0)
    assert len(wide.doubts)==2 and 'Widths' in wide.table().caption
    with pytest.raises(ValueError, match='features 0..59'): analyses['feature_richness'](dict(a=model(3, 9)), dict(a=[60]))
    with pytest.raises(ValueError, match='for each of'): analyses['feature_richness'](dict(a=model(3, 9)), dict(b=[0]))

# ---- verbatim memory ----

def reader(kind, V=100):
    "A model of V nouns that copies the token of the first list, or guesses evenly among nouns, or half of both"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from sparsenb.models import load_model
    words = [f'w{i}' for i in range(V)]
    tk = Tokenizer(models.WordLevel({w: i for i,w in enumerate([*words, ',', '.', ':', 'list', 'again'])}, ':'))
    tk.pre_tokenizer = pre_tokenizers.Whitespace()
    class Reader(torch.nn.Module):
        def forward(self, ids, attention_mask=None):
            p = torch.zeros(*ids.shape, V+5); p[...,:V] = 1/V
            for t in range(8, ids.shape[1]-1):  # list : a , b , c . again : a , b , c .
                if kind!='unigram': p[:,t] = (.5 if kind=='half' else 0.)*p[:,t]+(.5 if kind=='half' else 1.)*torch.nn.functional.one_hot(ids[:,t-7], V+5)
            return p.clamp_min(1e-30).log()
    return load_model(Reader(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=tk, unk_token=':')),words

@pytest.mark.parametrize('kind,want', [('copy', 0), ('unigram', 100), ('half', 100*math.log(200/101)/math.log(100))])
def test_closed_forms_of_memory(kind, want):
    m,words = reader(kind)
    v = analyses['verbatim_memory'](m, words, n=20, before='list :', between='again :', seed=0)
    assert v.scores['repeat'].value==pytest.approx(want, abs=1e-4) and want==pytest.approx(dict(copy=0, unigram=100, half=14.84)[kind], abs=.005)
    assert v.words['repeat'][:,:3]==pytest.approx(math.log(100), abs=1e-4) and np.array_equal(v.words['repeat'][:,:3], v.words['novel'][:,:3])
    assert v.scores['novel'].value==pytest.approx(100, abs=1e-3) or v.scores['novel'].value>100

def test_lists_by_condition():
    words = [f'w{i}' for i in range(12)]
    got = {c: list_trials(words, 30, 4, c, seed=3) for c in ('repeat', 'permuted', 'novel')}
    read = {c: [[t[a:b] for a,b in s] for t,s in zip(*v)] for c,v in got.items()}
    for r,p,n in zip(*read.values()):
        assert r[:4]==p[:4]==n[:4]==r[4:] and p[4:]!=p[:4] and set(p[4:])==set(p[:4]) and not set(n[4:])&set(n[:4]) and len(set(r[:4]))==4
    assert repeat_surprisal([[1, 3]], [[1, 1]]).item()==50
    with pytest.raises(ValueError, match='twice as many'): list_trials(words[:5], 2)
    with pytest.raises(UnknownName, match="did you mean 'novel'"): list_trials(words, 2, condition='novell')

def test_words_beyond_the_context_are_refused():
    from sparsenb.analyses.verbatim_memory import word_surprisal
    from sparsenb.models import load_model
    m = load_model('stdlib-4l')
    with pytest.raises(ValueError, match='512 fit into the context'): word_surprisal(m, ['import os\n'*400], [[(7, 9)]])
    with pytest.raises(ValueError, match='stands for'): word_surprisal(m, ['import os'], [[(9, 9)]])
