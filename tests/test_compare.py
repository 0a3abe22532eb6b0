"Several dictionaries on the same text: paired differences, their intervals and what may be said of them"
import numpy as np, pytest, torch
from scipy import stats
from few_pages import few_pages
from sparsenb import core
from sparsenb.compare import _p, apart, compare, holm
from sparsenb.core import UnknownName, dictionaries
from sparsenb.scores import Part, Score, bootstrap, evaluation, paired
from sparsenb.train import fit

torch.set_num_threads(1)
quiet = dict(progress=False, n_boot=200)

def axes(last=1., d=8):
    "Rebuilds all axes but the last, and `last` of that"
    m,I,w = dictionaries['relu'](d, 2*d),torch.eye(d),torch.ones(d)
    w[-1] = last
    with torch.no_grad(): m.W_enc.copy_(torch.cat([I, -I]).T); m.W_dec.copy_(torch.cat([I, -I])*w); m.b_enc.zero_(); m.b_dec.zero_()
    return m

@pytest.fixture(scope='module')
def x():
    "Rows whose last axis is longer on some pages than on others"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=g)
    x[:,-1] *= 3*torch.rand(100, 1, generator=g).expand(100, 40).reshape(-1)
    return x

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    "The bundled model, a few pages, an untrained dictionary and one trained a little"
    model,store = few_pages(tmp_path_factory.mktemp('s'), 3000)
    a,b = (dictionaries['topk'](store.d_in, 128, k=8, seed=0) for _ in range(2))
    run = fit(b, store, n_tokens=64*256, batch_size=256, seed=0, path=tmp_path_factory.mktemp('run')/'train')
    return model,store,a,run

# ---- closed forms

def test_identical_dictionaries_differ_by_exactly_nothing(x):
    c = compare([axes(), axes(), axes()], x, **quiet)
    assert [*c.evaluations]==['relu', 'relu 2', 'relu 3'] and c.against=='relu'
    for (k,n),d in c.differences.items():
        assert d.value==0 and d.lo<=0<=d.hi and c.mark(k, n) in ('', 'same'), k
        assert d.paired==(k not in ('dead', 'density')) and ((d.lo, d.hi)==(0, 0) and np.isnan(d.p) and np.isnan(d.holm) if d.paired else d.p==1 and d.unit.startswith('not paired: ')), k
    assert 'corrected for 4 differences' in c.table().caption and 'score the same' not in c.forest().html()

def test_a_difference_is_that_of_the_scores_and_its_interval_that_of_the_units(x):
    c = compare(dict(a=axes(0.), b=axes(.1), c=axes(.3)), x, against='b', **quiet)
    for n,sign in (('a', 1), ('c', -1)):
        d = c['fvu',n]
        assert d.value==c.scores['fvu',n].value-c.scores['fvu','b'].value and np.sign(d.lo)==np.sign(d.hi)==sign
        u,v = (c.evaluations[k][0].units['fvu'] for k in (n, 'b'))
        assert (d.lo, d.hi)==paired(u, v, 200, c.scores['fvu','b'].seed) and u.shape==(2, 100) and d.unit=='pairs of 100 blocks of up to 40 rows'
    assert c.mark('fvu', 'a')=='worse **' and c.mark('fvu', 'c')=='better **' and c.mark('shrinkage', 'c').endswith('er **')
    with pytest.raises(UnknownName, match="unknown score 'fuv'; did you mean 'fvu'"): c['fuv','a']
    with pytest.raises(UnknownName, match="unknown dictionary 'b'"): c['fvu','b']

def test_pairing_narrows_the_interval(x):
    c = compare(dict(a=axes(0.), b=axes(.02)), x, **quiet)
    a,b,d = c.scores['fvu','a'],c.scores['fvu','b'],c['fvu','b']
    lo,hi = apart((b.value, b.lo, b.hi), (a.value, a.lo, a.hi))
    assert lo<0<hi and d.hi<0 and d.hi-d.lo<.1*(hi-lo)

def test_without_pairs_the_interval_is_put_together_from_both():
    rng = np.random.default_rng(0)
    def once():
        v = [rng.normal(m, s, 30) for m,s in ((1, 1), (0, 2))]
        return apart(*((a.mean(), *bootstrap(a)) for a in v))
    got = np.array([once() for _ in range(800)])
    assert .92<((got[:,0]<=1)&(1<=got[:,1])).mean()<.98
    assert apart((.5, .4, .6), (.2, .2, .2))==pytest.approx((.2, .4)) # one of them known

def test_p_is_below_5_percent_just_where_the_interval_leaves_0_out():
    for n in (6, 12):
        v = np.r_[-np.arange(1., n//2+1), np.arange(1., n//2+1)]+2 # symmetric about 2: Student's t
        lo,hi = bootstrap(v)
        assert _p(v.mean(), lo, hi, n-1, .95)==pytest.approx(stats.ttest_1samp(v, 0).pvalue, abs=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(100):
        d,a,b = rng.normal(),*rng.exponential(size=2)
        assert (_p(d, d-a, d+b, 7, .95)<.05)==(not d-a<=0<=d+b)
    assert np.isnan(_p(0, 0, 0, 7, .95)) and _p(1, 1, 1, 7, .95)==0 and np.isnan(_p(1, float('nan'), 2, 7, .95))

def test_holm_keeps_the_chance_of_any_false_claim():
    rng = np.random.default_rng(0)
    false = np.mean([(holm(rng.random(20))<.05).any() for _ in range(2000)])
    assert .03<false<.07 and np.mean([(rng.random(20)<.05).any() for _ in range(500)])>.5
    np.testing.assert_allclose(holm([.01, .02, .03, .5]), [.04, .06, .06, .5])
    np.testing.assert_array_equal(holm([.02, float('nan')]), [.02, float('nan')])
    assert len(holm([]))==0

# ---- seeds

def test_lists_are_seeds_and_seeds_are_the_units(x):
    own = {n: [axes(w+.01*i) for i in range(4)] for n,w in (('a', .1), ('b', .3))}
    c = compare(own, x, **quiet)
    v = {n: np.array([e['fvu'].value for e in c.evaluations[n]]) for n in own}
    d = c['fvu','b']
    assert d.paired and d.unit=='4 pairs of seeds' and d.value==pytest.approx((v['b']-v['a']).mean()) and (d.lo, d.hi)==bootstrap(v['b']-v['a'])
    assert c.scores['fvu','a'].unit=='4 seeds' and c.scores['fvu','a'].value==pytest.approx(v['a'].mean()) and c['dead','b'].paired
    d = compare(own|dict(b=own['b'][:3]), x, **quiet)['fvu','b']
    assert not d.paired and d.unit=='not paired: 3 seeds' and d.hi<0
    with pytest.raises(ValueError, match=r'seeds are units only where every name has two or more: got a: 4, b: 1'): compare(own|dict(b=axes()), x)

# ---- with a model, from disk, kept

def test_a_trained_dictionary_is_found_better_as_object_run_or_folder(real, tmp_path):
    model,store,a,run = real
    a.save(tmp_path/'plain'); run.dictionary.save(tmp_path/'trained'/'dictionary')
    how = dict(n_sequences=12, also=['decoder_geometry'], **quiet)
    c = compare([a, run], store, model, keep=tmp_path/'kept', **how)
    assert [*c.evaluations]==['topk', 'topk 2']
    for k in ('fvu', 'ce_recovered', 'kl_recovered'): assert c[k,'topk 2'].paired and c.mark(k, 'topk 2')=='better **', k
    assert c['kl_recovered','topk 2'].unit=='pairs of 12 sequences' and c.mark('ce_clean', 'topk 2')=='same' and c['ce_zero','topk 2'].value==0
    assert not c['geometry_cosine','topk 2'].paired and any(k.startswith('geometry_q_star') for k in c.doubts)
    again = compare([str(tmp_path/'plain'), tmp_path/'trained'/'dictionary'], store, model, keep=tmp_path/'kept', **how)
    assert [*again.evaluations]==['plain', 'trained'] and all(e[0].kept==('core', 'splice', 'decoder_geometry') for e in again.evaluations.values())
    np.testing.assert_array_equal([d[:3] for d in again.differences.values()], [d[:3] for d in c.differences.values()])
    t = c.table(['fvu', 'geometry_q_star'])
    assert t.rows[3][3] not in ('', '–') and t.rows[3][4]=='', 'a value without an interval'
    assert t.column('metric')==('fvu', '', 'geometry_q_star†', '') and 'read with care' in t.caption and t.columns[3]=='less topk'
    assert c.forest(['fvu', 'ce_recovered']).html().count('<svg')==2 and 'stroke-dasharray' in c.forest(['dead']).html()
    assert 'fvu' in repr(c) and '<svg' in c._repr_html_()
    with pytest.raises(UnknownName, match="did you mean 'fvu'"): c.table(['fuv'])

def test_unequal_l0_is_said(real):
    model,store,a,_ = real
    c = compare({'k8': a, 'k16': dictionaries['topk'](store.d_in, 128, k=16)}, store, keep=False, **quiet)
    assert 'l0 is not the same (k8 8, k16 16)' in c.table().caption

@pytest.fixture
def own():
    @evaluation()
    def per_text(case, whole=True, wrong=False, width=1., n=6):
        v = case.dictionary.W_dec.detach().abs().mean(1)[-n:].double().numpy()+np.arange(n)
        s = {'per_text': Score(float(v.mean()), *(v.mean()+width*(np.array(bootstrap(v))-v.mean())), n, case.seed, 'per_text/1', f'{n} texts')}
        return Part(s, {'per_text': 'nothing'}, {}, {'other' if wrong else 'per_text': np.stack([v, np.ones(n)])} if whole else {})
    core.evaluations._here['per_text'] = per_text
    yield
    for k in ('per_text', 'test_compare'): core.evaluations._here.pop(k, None) # it is registered under its module's name too

def test_evaluations_that_keep_their_units_are_paired(x, own):
    a,b = axes(),axes(.5)
    c = compare([a, b], x, also={'per_text': {}}, **quiet)
    d = c['per_text','relu 2']
    assert d.value==pytest.approx(-.5/8/6) and d.paired and d.unit=='pairs of 6 texts' and d.hi-d.lo<.1*(c.scores['per_text','relu'].hi-c.scores['per_text','relu'].lo)
    assert not compare([a, b], x, also={'per_text': dict(whole=False)}, **quiet)['per_text','relu 2'].paired
    for how,says in ((dict(width=0), 'not paired, no interval of its own: 6 texts'), (dict(n=4, width=1e-3), 'not paired, too few to tell: 4 texts')):
        c = compare([a, axes(3.)], x, also={'per_text': dict(whole=False)|how}, **quiet)
        assert c['per_text','relu 2'].unit==says and c['per_text','relu 2'].value and not c.mark('per_text', 'relu 2') and np.isnan(c['per_text','relu 2'].p)
    with pytest.raises(ValueError, match='per_text: other is not both a score and explained'): compare([a, b], x, also={'per_text': dict(wrong=True)}, **quiet)

# ---- what is refused, and hostile names

def test_what_does_not_fit_is_refused_before_anything_is_measured(x, real, tmp_path):
    def never(*a, **kw): raise AssertionError('measured')
    a = axes(); a.codes = never
    for bad,says in (([a], 'two or more dictionaries are needed to compare, got 1'), (a, 'got 1'), ({}, 'got 0'), ([a, 3], 'int: a dictionary, a Run or a folder was expected, got int'),
        ([a, axes(d=4)], 'relu 2: the dictionary reads width 4'), ({'x': a, 'y': []}, 'got x: 1, y: 0')):
        with pytest.raises(ValueError, match=says): compare(bad, x, **quiet)
    with pytest.raises(FileNotFoundError, match='does not exist'): compare([a, tmp_path/'none'], x, **quiet)
    with pytest.raises(UnknownName, match="unknown option of evaluate 'n_token'; did you mean 'n_tokens'"): compare([a, axes()], x, n_token=3)
    with pytest.raises(UnknownName, match="did you mean 'against'"): compare([a, axes()], x, agaist='relu')
    with pytest.raises(UnknownName, match="unknown dictionary 'rely'; did you mean 'relu'"): compare([a, axes()], x, against='rely')
    model,store,_,_ = real
    with pytest.raises(ValueError, match='relu: the dictionary reads width 8'): compare([axes(), axes()], store, model, **quiet)

def test_names_are_text(x):
    c = compare({'<script>alert(1)</script>': axes(), '"><img onerror=x>': axes(.5)}, x, **quiet)
    assert '<script>alert' not in c._repr_html_() and '<img' not in c._repr_html_()
