"One crosscoder for all checkpoints: norms and fates by hand, planted features, no change, beside matching, in the report"
import re
import numpy as np, pytest, torch
from sparsenb.analyses.features_over_checkpoints import FATES, agreement, crosscoder_of, crosscoder_paths, dictionaries_of
from sparsenb.core import analyses, dictionaries, testbeds
from sparsenb.report import parameters, run_report

torch.set_num_threads(1)
matching = analyses['features_over_checkpoints']
def normal(*shape, seed=0): return np.random.default_rng(seed).normal(size=shape)

# ---- what is read from a crosscoder, by hand ----

UNITS = 3.,.5,20.,1.
def by_hand(dead=()):
    "A crosscoder of four sites, two wide, with the norms and angles in the table; each site has a unit of its own"
    norm = [[1, 1, 1, 1], [0, 0, 2, 2], [1, .5, .1, .1], [.1, 1, 1, .1], [1, .2, .2, .2], [1, 1, 1, 1], [.01, 1, .01, 1], [0, 0, 3, 3]]
    angle = [[0, 0, 0, 0], [0, 0, 5, 5], [0, 10, 0, 0], [0, 0, 0, 0], [0, 10, 20, 25], [0, 30, 60, 90], [0, 0, 0, 0], [0, 0, 0, 90]]
    norm,a = np.array(norm, float),np.radians(np.array(angle, float))
    parts = norm[...,None]*np.stack([np.cos(a), np.sin(a)], -1) # (8, 4, 2), in the sites' units
    cc = dictionaries['crosscoder'](8, 8, widths=[2]*4, k=1, seed=0)
    with torch.no_grad():
        cc.W_dec.copy_(torch.tensor((parts/np.array(UNITS)[:,None]).reshape(8, 8)))
        cc.site_unit.copy_(torch.tensor(UNITS)); cc.W_enc.zero_(); cc.b_enc.zero_(); cc.b_dec.zero_()
    cc.idle[list(dead)] = cc.dead_after+1
    return cc,norm,{10*t: normal(50, 2, seed=t) for t in range(4)}

def test_norms_relative_norms_and_fates_by_hand():
    cc,norm,acts = by_hand()
    c = crosscoder_paths(cc, acts)
    np.testing.assert_allclose(c['norms'], norm, atol=1e-6)
    np.testing.assert_allclose(c['relative'], norm/(norm+norm.max(1, keepdims=True)), atol=1e-6)
    assert [p.fate for p in c.paths]==['steady', 'born', 'dead', 'born and dead', 'steady', 'drifting', 'born', 'born, drifting']
    assert [(p.first, p.last) for p in c.paths]==[(0, 3), (2, 3), (0, 1), (1, 2), (0, 3), (0, 3), (1, 3), (2, 3)] # 6 is gone for one checkpoint alone
    turns = c.paths[5]
    assert turns.cosines==pytest.approx([.75**.5]*3) and turns.drift==pytest.approx(0, abs=1e-6) and turns.rows==(5,)*4
    want = {'in use': [4, 6, 7, 6], 'matched': [3, 4, 4], 'drifting': [1, 1, 2], 'born': [2, 2, 0], 'dead': [0, 1, 1]} # 2 and 4 turn too little
    for k,v in want.items(): assert c[k][np.isfinite(c[k])].tolist()==v, k
    assert np.allclose(c['FVU'], 1, atol=1e-6) # it reads nothing
    assert all(v.html() for v in c.views()) and c.more[0].rows[-1]=='4: steady' and c.of('drifting')==[c.paths[5], c.paths[7]]

def test_the_bars_are_where_they_are_said_to_be():
    cc,_,acts = by_hand()
    fates = lambda **kw: [p.fate for p in crosscoder_paths(cc, acts, **kw).paths]
    assert fates(absent=.25)[4]=='dead' and fates(absent=.0999)[4]=='steady' # .2 of the strongest: a relative norm of 1/6
    assert fates(absent=1/11-1e-4)[3]=='steady' and fates(absent=1/11+1e-4)[3]=='born and dead'
    assert fates(steady=-.1)[5]=='steady' and fates(steady=.95)[4]=='drifting' # cos 25° = .906
    few = crosscoder_paths(by_hand(dead=[0, 5])[0], acts)
    assert [p.rows[0] for p in few.paths]==[1, 2, 3, 4, 6, 7] and np.isnan(few['norms'][[0, 5]]).all() and few['in use'][0]==2

def test_refused_by_the_crosscoder():
    cc,_,acts = by_hand()
    for a,kw,said in ((dict(list(acts.items())[:3]), {}, '3 sites of 2 dimensions was expected, got one with 2, 2, 2, 2'), ({0: acts[0]}, {}, 'two checkpoints'), (acts, dict(absent=.5), 'absent is a relative norm'), (acts, dict(steady=2), 'steady a cosine')):
        with pytest.raises(ValueError, match=said): crosscoder_paths(cc, a, **kw)
    with pytest.raises(ValueError, match='step 1 has shape'): crosscoder_of({0: normal(9, 3), 1: normal(8, 3)})

# ---- both roads told beside each other ----

def test_agreement_by_hand():
    "Dictionaries that are the crosscoder's own parts tell the same, shuffled and on any scale; without two rows, two have no partner"
    T,n,d = 3,6,24
    W = np.linalg.qr(normal(d, d))[0][:n]
    there = np.array([[1, 1, 1]]*3+[[0, 1, 1], [0, 0, 1], [1, 0, 0]], float)
    cc = dictionaries['crosscoder'](T*d, n, widths=[d]*T, k=1, seed=0)
    with torch.no_grad(): cc.W_dec.copy_(torch.tensor((there[...,None]*W[:,None]).reshape(n, -1)))
    c = crosscoder_paths(cc, [normal(30, d, seed=t) for t in range(T)])
    order = np.random.default_rng(0).permutation(n)
    D = {t: 3*(W*there[:,[t]])[order] for t in range(T)}
    a = agreement(c, matching(D, bar=.5), D, bar=.5)
    assert a.counts[:,:-1].tolist()==np.diag([3, 0, 2, 1, 0]).tolist() and a.counts[:,-1].sum()==0 and a.share[0]==1 and .5<a.share[1]<1
    assert a.view().column('no partner')==(0,)*5 and FATES[2] in a.view().html()
    for t in range(T): D[t][order<2] = 0
    b = agreement(c, matching(D, bar=.5), D, bar=.5)
    assert b.counts[0].tolist()==[1, 0, 0, 0, 0, 2] and b.counts.sum()==6
    with pytest.raises(ValueError, match='the same steps were expected, got .0, 1, 2. of the crosscoder, .0, 1. of matching'): agreement(c, matching([D[0], D[1]], bar=.5), D)

# ---- features that are known ----

def test_known_features_stay_still_only_if_they_do():
    bed = testbeds['changing_features']()
    D = bed.features
    on = np.linalg.norm(D, axis=2)>0
    assert D.shape==(4, 22, 32) and (on[:,bed.fate=='steady'].all() and on[:,bed.fate=='drifting'].all()) and not on[0,bed.fate=='born'].any() and on[0,bed.fate=='dead'].all() and not on[-1,bed.fate=='dead'].any()
    assert (np.diff(on[:,bed.fate=='born'].astype(int), axis=0)>=0).all() and (np.diff(on[:,bed.fate=='dead'].astype(int), axis=0)<=0).all()
    np.testing.assert_array_equal(D[0][bed.fate=='steady'], D[3][bed.fate=='steady'])
    x = bed.sample(500)
    np.testing.assert_array_equal(x[300], testbeds['changing_features']().sample(500)[300])
    assert not np.array_equal(x[300], testbeds['changing_features'](seed=1).sample(500)[300])
    assert [x[s].std()/x[0].std() for s in (100, 200, 300)]==pytest.approx([2, 4, 8], rel=.15)
    for kw,said in ((dict(n_steps=1), 'two checkpoints'), (dict(stay=-1), 'numbers of features'), (dict(active=0), 'active=0')):
        with pytest.raises(ValueError, match=said): testbeds['changing_features'](**kw)
    with pytest.raises(ValueError, match='directions at 4 checkpoints were expected, got 3'): bed.right([], D[:3])

@pytest.fixture(scope='module')
def trained():
    "Features that turn by 70 degrees at each of three checkpoints"
    bed = testbeds['changing_features'](3, 24, 8, 3, 3, 3, degrees=70.)
    acts = bed.sample(5000)
    cc = crosscoder_of(acts, 24, 200_000, seed=0, k=2)
    made,_ = dictionaries_of(acts, 'batch_topk', 24, 100_000, seed=0, k=1)
    return bed,acts,cc,made

def test_a_crosscoder_recovers_planted_features(trained):
    bed,acts,cc,made = trained
    c = crosscoder_paths(cc, acts)
    e = bed.score(c.paths, c['directions'])
    assert e['precision'].value>=.6 and e['recall'].value>=.8, e # reaches .77 to .84 and .94 to 1 with other seeds
    for w in bed.fates: assert e[f'recall, {w}'].value>=.6, e
    assert (c['FVU']<.1).all()

def test_matching_cannot_follow_what_turns_far(trained):
    "It finds features that stay; those that turn die and are born"
    bed,acts,cc,made = trained
    f,c = matching(made, bar=.7),crosscoder_paths(cc, acts)
    W = [d.W_dec.detach() for d in made.values()]
    e = bed.score(f.paths, W)
    assert e['recall, steady'].value>=.5 and e['recall, drifting'].value==0, e
    a = agreement(c, f, made, bar=.7)
    assert a.counts.sum(1).tolist()==[sum(p.fate.removesuffix(', drifting')==w for p in c.paths) for w in FATES]
    assert a.counts[1].sum()>=2 and a.counts[1,:2].sum()<=1 and a.counts[0,0]>=4 and a.share[0]<1

def test_nothing_is_born_where_nothing_changes():
    acts = testbeds['changing_features'](3, 16, 14, 0, 0, 0).sample(3000)
    c = crosscoder_paths(crosscoder_of(acts, 16, 80_000, seed=0, k=1), acts)
    assert sum(p.fate=='steady' for p in c.paths)>=10 and len(c.of('born')+c.of('dead'))==0 and len(c.of('drifting'))<=1

# ---- in the report ----

def test_in_the_report(tmp_path):
    assert parameters('learning_dynamics')['crosscoder']['default']==0
    html = run_report('learning_dynamics', dict(settings=['p', 7, 'width', 16, 'n_steps', 60, 'every', 20, 'share', .8], n_rows=49, n_dictionaries=3, d_sae=16, dictionary_tokens=2000, crosscoder=20, k=2, measures=['features_over_checkpoints']), tmp_path/'o.html').read_text()
    for word in ('One crosscoder for all checkpoints', 'Relative decoder norm', 'Fates by crosscoder and by matching', 'no partner', 'share of variance not explained'): assert word in html, word
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
