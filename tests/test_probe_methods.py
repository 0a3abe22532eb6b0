"Probes of several tokens, of pairs, of trees, with a hidden layer; patterns; many labels at once against one at a time"
import ast
import numpy as np, pytest, torch
from sparsenb.core import probes
from sparsenb.corpus import load_corpus
from sparsenb.models import load_model
from sparsenb.probe import Probe, two_sided
from sparsenb.probe_sweep import untrained
from sparsenb.probes.k_sparse_probe import Alone, each_alone, many, rankings
from sparsenb.probes.moment import moments
from sparsenb.probes.structural import code_examples
from sparsenb.trees import Heights, Tree, binary, functions_of, heights, joined, nodes_of, python_tree, unbinary

torch.set_num_threads(1)
quick = dict(code=False, shuffles=0, n_boot=50)

# ---- moments (card D5) ----

def examples(n, rng, rho=.8, tokens=64):
    y = rng.integers(0, 2, n)
    a,b = rng.normal(size=(2, n, tokens))
    return np.stack([a, np.where(y, rho, -rho)[:,None]*a+(1-rho**2)**.5*b], -1),y

def test_covariance_tells_what_the_mean_does_not():
    "The card: .565 on 200 examples of one seed, a coin's; and 1.00. The mean of eight seeds is a coin within .04"
    first = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        (x, y),(new, y_new) = examples(400, rng),examples(200, rng)
        assert probes['moment']().fit(x, y).score(new, y_new, **quick)['accuracy'].value==1
        first.append(probes['logistic']().fit(x.mean(1), y).score(new.mean(1), y_new, **quick)['accuracy'].value)
    assert np.mean(first)==pytest.approx(.5, abs=.04) and max(first)<.62, first

def test_moments_are_centred_channel_by_channel():
    x = np.random.default_rng(0).normal(size=(5, 9, 4))
    want = np.stack([np.cov(e.T, bias=True)[np.triu_indices(4)] for e in x])
    assert moments(x)==pytest.approx(want) and moments(x+np.arange(4)*100)==pytest.approx(want), 'a mean of a channel adds nothing'
    two = moments(x, 2).reshape(5, 2, 2)
    assert two==pytest.approx(np.stack([np.cov(e.T, bias=True)[:2,2:] for e in x]))
    assert moments(x, 4).shape==(5, 3)

def test_moment_says_what_does_not_fit():
    x,y = examples(50, np.random.default_rng(0))
    with pytest.raises(ValueError, match='n_groups=3'): probes['moment'](n_groups=3).fit(x, y)
    with pytest.raises(ValueError, match='cannot be put'): probes['moment'](n_channels=2, n_groups=4)
    p = probes['moment']().fit(x, y)
    with pytest.raises(ValueError, match=r'fitted to activations \(n, tokens, d\), these are \(n, d\)'): p(x[:,0])
    with pytest.raises(ValueError, match='were fitted on'): p.score(x[:9], y[:9])
    with pytest.raises(ValueError, match=r'\(n, d\) or \(n, tokens, d\)'): p(x[None])
    assert p(x[:,:32]).shape==(50,), 'examples may have other numbers of tokens'
    with pytest.raises(ValueError, match=r'got shape \(50, 64, 2\)'): probes['logistic']().fit(x, y)

# ---- contrast ----

def test_exclusive_or_is_read_by_a_hidden_layer_and_by_products():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 6))
    y = (x[:,0]>0)^(x[:,1]>0)
    got = {n: probes[n]().fit(x[:1000], y[:1000]).score(x[1000:], y[1000:], **quick)['accuracy'].value for n in ('logistic', 'mlp', 'bilinear')}
    assert got['logistic']<.6 and got['mlp']>.88 and got['bilinear']>.88, got

def test_pairs_that_match():
    rng = np.random.default_rng(1)
    x,v = rng.normal(size=(2000, 2, 8)),rng.normal(size=8)
    y = (x@v).prod(1)>0
    assert probes['bilinear']().fit(x[:1400], y[:1400]).score(x[1400:], y[1400:], **quick)['accuracy'].value>.9
    with pytest.raises(ValueError, match='pairs are'): probes['bilinear']().fit(x.reshape(-1, 4, 4), np.repeat(y, 1)[:2000])
    for n,kw in (('mlp', dict(hidden=0)), ('mlp', dict(C=0)), ('bilinear', dict(rank=1.5)), ('moment', dict(n_channels=0)), ('structural', dict(epochs=0))):
        with pytest.raises(ValueError, match='must be'): probes[n](**kw)

def test_a_hidden_layer_learns_more_of_what_means_nothing():
    "Words of a few dimensions: the control task is easier with products of them"
    rng = np.random.default_rng(0)
    words,types = rng.normal(size=(60, 6)),rng.integers(0, 60, 1500)
    x = words[types]+.01*rng.normal(size=(1500, 6))
    y = x[:,0]>0
    c = {n: probes[n](**kw).fit(x[:1000], y[:1000], types=types[:1000]).score(x[1000:], y[1000:], types=types[1000:], **quick) for n,kw in (('logistic', {}), ('mlp', dict(C=10.)))}
    assert c['mlp']['control_accuracy'].value>c['logistic']['control_accuracy'].value+.1 and c['mlp']['selectivity'].value<c['logistic']['selectivity'].value

# ---- patterns (S305) ----

def test_the_pattern_is_the_signal_and_the_direction_the_filter():
    "x = signal*a + distractor*b, uncorrelated exactly: weights are orthogonal to b, the pattern is a"
    rng = np.random.default_rng(0)
    y = np.tile([-1., 1.], 500)
    e = rng.normal(size=1000); e -= e.mean()+y*(e@y)/1000
    a,b = rng.normal(size=(2, 5))
    x = np.outer(y, a)+3*np.outer(e, b)
    class Exact(Probe):
        "Least squares"
        name,max_classes = 'exact',2
        def solve(self, x, y): return two_sided(np.linalg.pinv(x-x.mean(0))@(y-y.mean()), 0.)
    p = Exact().fit(x, y)
    assert abs(p.direction@torch.from_numpy(b).float())<1e-4 and p.pattern.numpy()==pytest.approx(a/np.linalg.norm(a), abs=1e-4)
    assert abs(p.direction@p.pattern)<.999
    three = np.arange(1000)%3
    assert probes['nearest_mean']().fit(x, three).pattern.shape==(3, 5)
    r = probes['ridge'](alpha=1e-6).fit(x, y)
    assert r.pattern.numpy()==pytest.approx(a/np.linalg.norm(a), abs=1e-3)
    with pytest.raises(AttributeError, match='not fitted'): probes['ridge']().pattern

# ---- many at once ----

@pytest.fixture(scope='module')
def labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 48))
    x[:,5] = x[:,5].clip(0); x[:,7] = 2.
    return x,[((x[:,rng.choice(48, 4, replace=False)].sum(1)+rng.normal(size=1200))>s).astype(int) for s in (0, .5, 1, 2)]

@pytest.mark.parametrize('name, kw', [('logistic', {}), ('logistic', dict(C=.01)), ('k_sparse_probe', dict(k=3)), ('mean_difference', {}), ('nearest_mean', {})])
def test_labels_at_once_are_labels_one_by_one(labels, name, kw):
    x,ys = labels
    p = probes[name](seed=0, **kw)
    for a,y in zip(p.solve_many(x, ys), ys):
        one = p.solve(x, y)(x)
        assert np.abs(a(x)-one).max()<.01*np.ptp(one) # scikit-learn stops a little before the minimum

def test_ridge_at_once_chooses_a_penalty_for_each(labels):
    x,ys = labels
    T = [y[:,None]*1. for y in ys]+[np.random.default_rng(1).normal(size=(1200, 1))]
    p = probes['ridge']()
    for a,t in zip(p.solve_many(x, T), T): assert a(x)==pytest.approx(p.solve(x, t)(x), abs=1e-6)

@pytest.mark.parametrize('ranking', many)
def test_rankings_at_once_are_those_one_by_one(labels, ranking):
    x,ys = labels
    p = probes['k_sparse_probe'](k=4, ranking=ranking, seed=0)
    for a,y in zip(p.solve_many(x, ys), ys):
        b = p.solve(x, y)
        assert set(a.support)==set(b.support) and (ranking=='telescopic' or a.support.tolist()==b.support.tolist())
        assert a.weight==pytest.approx(b.weight, abs=5e-3)

def test_nearest_neighbours_in_sorted_columns_are_scikit_learns(labels):
    x,ys = labels
    some = x[:,[0, 1, 2, 3, 4, 6]]
    a,b = many['mutual_information'](some, np.stack(ys)==1, 0),np.stack([rankings['mutual_information'](some, y, seed=0) for y in ys])
    assert a==pytest.approx(b, abs=1e-8) and a.max()>.05
    rare = np.zeros((1, 1200), bool); rare[0,:3] = True
    assert many['mutual_information'](some, rare, 0).shape==(1, 6)

def test_exact_supports_at_once():
    "Card D1: the sign of neuron 7, of 3+9+20+40, among 512"
    x = np.random.default_rng(0).normal(size=(4000, 512))
    ys = [(x[:2800,7]>0).astype(int),(x[:2800,[3, 9, 20, 40]].sum(1)>0).astype(int)]
    for ranking in ('mean_difference', 'f_statistic', 'omp', 'l1', 'telescopic', 'mutual_information'):
        if ranking in ('l1', 'telescopic', 'mutual_information'): x = x[:,:96] # these take longer
        four = probes['k_sparse_probe'](k=4, ranking=ranking, seed=0).solve_many(x[:2800], ys)
        assert 7 in four[0].support and set(four[1].support)=={3, 9, 20, 40}, ranking
        f = (four[1](x[2800:])[:,1]>0)==(x[2800:,[3, 9, 20, 40]].sum(1)>0)
        assert f.mean()>.97

def test_each_neuron_alone_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score, matthews_corrcoef
    rng = np.random.default_rng(0)
    x = rng.standard_t(4, size=(1500, 24)); x[:,3] = 1.; x[:,4] = (x[:,4]>2)*9.
    y = x[:,:3].sum(1)+rng.normal(size=1500)>2
    a = each_alone(x[:1000], y[:1000])
    r,width = a.rates(x[1000:], y[1000:]),10*np.maximum(x[:1000].std(0), 1e-3)
    for j in range(24):
        z = (x[:,j:j+1]-x[:1000,j].mean())/width[j]
        est = LogisticRegression(class_weight='balanced', tol=1e-10, max_iter=1000).fit(z[:1000], y[:1000])
        assert a.weight[j]*width[j]==pytest.approx(est.coef_[0,0], abs=1e-4), j
        if j!=3: assert r['f1'][j]==pytest.approx(f1_score(y[1000:], est.predict(z[1000:])), abs=.006) and r['mcc'][j]==pytest.approx(matthews_corrcoef(y[1000:], est.predict(z[1000:])), abs=.01)
    wide,yes = rng.normal(size=(60, 2100)),rng.random(60)>.5 # more neurons than are looked at together
    r = Alone(np.ones(2100), np.full(2100, .2)).rates(wide.astype(np.float32), yes)
    assert r['accuracy']==pytest.approx(((wide+.2>0)==yes[:,None]).mean(0)) and r['recall']==pytest.approx((wide[yes]+.2>0).mean(0))
    with pytest.raises(ValueError, match='two classes'): each_alone(x, np.ones(1500))
    with pytest.raises(ValueError, match='were expected, got'): each_alone(x, y[:9])

# ---- trees (card D3) ----

def test_trees_are_heights_of_neighbours_and_back():
    t = Tree('root', (Tree('L', (0, 1)), Tree('R', (2, 3))))
    h = heights(t)
    assert h.d.tolist()==[1, 2, 1] and h.c==('L', 'root', 'R') and h.u==('',)*4 and joined(h)==t
    assert heights(Tree('', (0, Tree('', (Tree('', (1, 2)), 3))))).d.tolist()==[3, 1, 2]
    assert joined(Heights(np.array([1, 1]), ('a', 'b'), ('', '', '')))==Tree('a', (0, Tree('b', (1, 2)))), 'of equal heights the first'
    assert nodes_of(Tree('a', (Tree('b', (0,)), 1)))=={('a', 0, 1): 1, ('b', 0, 0): 1}

def test_random_trees_survive():
    rng = np.random.default_rng(0)
    def grown(a, b):
        if b-a==1: return a if rng.random()<.5 else Tree('leaf', (a,))
        cuts = np.unique(np.r_[a, rng.integers(a, b, rng.integers(1, 5)), b]).tolist()
        if len(cuts)<3: return Tree('one', (grown(a, b),)) if rng.random()<.3 else grown(a, b)
        return Tree(str(rng.integers(4)), tuple(grown(i, j) for i,j in zip(cuts, cuts[1:])))
    for _ in range(200):
        t = grown(0, int(rng.integers(2, 12)))
        b = binary(t)
        assert joined(heights(b))==b and unbinary(b)==t

def test_trees_of_the_standard_library_survive():
    "Every function: leaves in order, as many nodes as Python's parser has with a place, through heights and back"
    fs = functions_of(load_corpus('stdlib', split='held-out'), n=150, most=1500)
    for name,text in fs:
        t,_ = python_tree(text)
        b = binary(t)
        assert unbinary(joined(heights(b)))==t, name
        def leaves(t): return [t] if isinstance(t, int) else [l for k in t.children for l in leaves(k)]
        assert leaves(t)==list(range(len(leaves(t)))), name
        if 'f"' not in text and "f'" not in text: assert nodes_of(t).total()==1+sum(hasattr(x, 'lineno') for x in ast.walk(ast.parse(text))), name
    with pytest.raises(ValueError, match='two leaves'): python_tree('x')
    with pytest.raises(SyntaxError): python_tree('def (')

def test_leaves_that_share_a_token_are_one():
    t,tok = python_tree('f(a)+b', [[0, 1], [1, 3], [3, 6]])
    assert tok==[(0, 0), (1, 1), (2, 2)] and repr(t)=='(Module (Expr (BinOp (Call (Name 0) 1) 2)))'
    with pytest.raises(ValueError, match='no token holds'): python_tree('f(a)', [[0, 1]])

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

def test_syntax_on_the_bundled_model_by_layer_against_an_untrained_copy(model):
    "Tree F1 on unseen functions, by layer; an untrained copy mixes tokens, too, and gains nothing by it"
    fs = functions_of(load_corpus('stdlib'), n=200)
    f1 = {}
    for kind,m in dict(trained=model, untrained=untrained(model)).items():
        e = code_examples(m, fs, ['embed', 'resid_post.1', 'resid_post.3'])
        n = int(.75*len(e.trees))
        for site in e.x:
            p = probes['structural'](epochs=12, lr=.01, seed=0).fit(e.x[site][:n], e.trees[:n], rows=np.arange(n))
            s = p.score(e.x[site][n:], e.trees[n:], rows=np.arange(n, len(e.trees)), shuffles=0, n_boot=0)
            f1[kind,site] = s['f1'].value
    print({k: round(v, 3) for k,v in f1.items()})
    assert f1['trained','resid_post.3']>f1['trained','embed']+.04 and f1['trained','resid_post.1']>f1['trained','embed']+.02
    for site in ('resid_post.1', 'resid_post.3'): assert f1['trained',site]>f1['untrained',site]+.04

def test_trees_score_with_their_controls(model):
    e = code_examples(model, functions_of(load_corpus('stdlib', split='held-out'), n=90), ['resid_post.2'])
    x,t,types,n = e.x['resid_post.2'],e.trees,e.types,60
    p = probes['structural'](epochs=12, lr=.01, seed=0).fit(x[:n], t[:n], types=types[:n])
    s = p.score(x[n:], t[n:], types=types[n:], n_boot=100)
    assert {'f1', 'unlabelled_f1', 'label_accuracy', 'branching_f1', 'shuffled_f1', 'control_f1', 'selectivity'}=={*s} and 'f1' in s._repr_html_()
    assert s['f1'].lo<s['f1'].value<s['f1'].hi and s['f1'].value>max(s['branching_f1'].hi, s['shuffled_f1'].value) and s['selectivity'].value==pytest.approx(s['f1'].value-s['control_f1'].value)
    B = p.subspace
    assert B.shape==(256, 64) and (B.T@B-torch.eye(64)).abs().max()<1e-4
    q = probes['structural'](**p.cfg).fit(x[:n], t[:n])
    assert torch.equal(q.reader.B, p.reader.B)
    before = p.reader.B
    for a,b,kw,say in ((x[:5], t[:4], {}, '5 examples need 5 trees'), (x[:5], t[1:6], {}, 'its tree has'), ([x[0][:1]], t[:1], {}, 'two leaves or more'), (x[:1], t[:1], {}, 'needs 2 examples or more'),
        ([np.ones_like(a) for a in x[:5]], t[:5], {}, 'the same vector'), (x[:5], t[:5], dict(types=types[1:6]), 'its types has')):
        with pytest.raises(ValueError, match=say): p.fit(a, b, **kw)
        assert p.reader.B is before
    with pytest.raises(ValueError, match='were fitted on, the first is row 2'): p.score([*x[n:n+2], x[3]], [*t[n:n+2], t[3]])
    with pytest.raises(ValueError, match='fitted to width'): p([a[:,:9] for a in x])
    with pytest.raises(ValueError, match='call fit'): probes['structural']()(x)
    with pytest.raises(AttributeError, match='is not linear'): p.direction
    said = p(x[n:n+1])[0]
    assert nodes_of(said).total()>3
