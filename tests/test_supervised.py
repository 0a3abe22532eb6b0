"Evaluation beside supervised codes: the codes on additive data and against least squares, dictionaries whose values are known on a model that is exactly additive, and a trained one on the bundled task"
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch import nn
from sparsenb.core import UnknownName, dictionaries, evaluations, testbeds
from sparsenb.dictionary import load_dictionary
from sparsenb.evaluations.supervised import agnostic, aware, compared, f1_of, rows_of, united
from sparsenb.metrics import evaluate
from sparsenb.models import load_model
from sparsenb.scores import Case
from sparsenb.store import ActivationStore
from sparsenb.supervised import as_dictionary, explained, one_hots, supervised_codes
from sparsenb.train import fit

torch.set_num_threads(1)
SIZES = dict(first=5, second=5)

# ---- codes ----

def additive(agreement, seed, n=4000, d=16):
    "Two attributes of five values, activations their exact sum; and the same with another value of the first"
    g = torch.Generator().manual_seed(seed)
    U,W = torch.randn(2, 5, d, generator=g, dtype=torch.float64)
    a,b = torch.randint(5, (2, n), generator=g)
    b = torch.where(torch.rand(n, generator=g)<agreement, a, b)
    new = (a+torch.randint(1, 5, (n,), generator=g))%5
    return U[a]+W[b], torch.stack([a, b], 1), U[new]+W[b], torch.stack([new, b], 1)

def both(agreement, seed):
    x,v,x_new,v_new = additive(agreement, seed)
    return {h: (explained(x, c(v)), explained(x_new, c.edited(x, v, v_new))) for h in ('mean', 'mse') for c in [supervised_codes(x, v, SIZES, h)]}

def test_mse_codes_are_exact_where_attributes_go_together_and_mean_codes_are_not():
    alone,together = [both(0, s) for s in range(5)],[both(.5, s) for s in range(5)]
    assert all(.998<r['mean'][0]<1 and r['mse'][0]>1-1e-12 for r in alone)
    assert all(.70<r['mean'][0]<.82 and r['mse'][0]>1-1e-12 and r['mse'][1]>1-1e-12 for r in together)
    assert abs(np.mean([r['mean'][0] for r in together])-.76)<.02
    assert abs(np.mean([r['mean'][1] for r in together])-.70)<.03

def test_mean_codes_count_what_goes_together_twice():
    "Ten vectors at right angles, the second attribute the first in half the rows: each mean code holds half of the other's vector, so a quarter of the variance is lost"
    a = torch.arange(5).repeat_interleave(10)
    b = torch.where(torch.arange(50)%10<5, a, torch.arange(50)%5) # every pair once more
    v,E = torch.stack([a, b], 1),torch.eye(10, dtype=torch.float64)
    x = E[a]+E[5+b]
    c = supervised_codes(x, v, SIZES, 'mean')
    assert explained(x, c(v))==pytest.approx(.75) and explained(x, supervised_codes(x, v, SIZES)(v))==pytest.approx(1)
    want = E[:5]-E[:5].mean(0)+.5*(E[5:]-E[5:].mean(0))
    torch.testing.assert_close(c.u['first'], want)

def test_mse_codes_predict_as_linear_regression_does():
    "Noise, three attributes that go together, a value that never occurs"
    from sklearn.linear_model import LinearRegression
    g,sizes = torch.Generator().manual_seed(3),dict(a=4, b=6, c=2)
    a = torch.randint(4, (300,), generator=g)
    v = torch.stack([a, (a+torch.randint(2, (300,), generator=g))%5, (a>1).long()], 1) # b never 5; c is told by a
    x = torch.randn(300, 7, generator=g, dtype=torch.float64)+torch.randn(4, 7, generator=g, dtype=torch.float64)[a]
    c,H = supervised_codes(x, v, sizes),one_hots(v, sizes).numpy()
    np.testing.assert_allclose(c(v).numpy(), LinearRegression().fit(H, x.numpy()).predict(H), atol=1e-9)
    assert not c.u['b'][5].any() and H.shape==(300, 12) and np.linalg.matrix_rank(H)<9
    for i,(k,u) in enumerate(c.u.items()): torch.testing.assert_close(u[v[:,i]].mean(0), torch.zeros(7, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(c(v).mean(0), x.mean(0))

def test_what_codes_refuse():
    x,v,*_ = additive(0, 0, n=50)
    with pytest.raises(UnknownName, match="did you mean 'mse'"): supervised_codes(x, v, SIZES, 'mes')
    with pytest.raises(ValueError, match='values of second must be in 0..4'): supervised_codes(x, v+torch.tensor([0, 1]), SIZES)
    with pytest.raises(ValueError, match=r'a column for each of first, second; got torch.int64 of shape \(50, 1\)'): supervised_codes(x, v[:,:1], SIZES)
    with pytest.raises(ValueError, match='whole numbers'): supervised_codes(x, v.float(), SIZES)
    with pytest.raises(ValueError, match='a row for each of 50 rows'): supervised_codes(x[:40], v, SIZES)
    x[3,2] = float('nan')
    with pytest.raises(ValueError, match='1 of 50 rows are not finite'): supervised_codes(x, v, SIZES)

# ---- features by hand ----

def test_f1_of_features_that_never_fire_is_worse_than_none():
    y = np.arange(8)<4
    on = np.stack([y, y&(np.arange(8)<2), ~y, np.zeros(8, bool)], 1)
    f = f1_of(on, np.stack([y, np.zeros(8, bool)], 1))
    assert f[0].tolist()==pytest.approx([1, 2/3, 0, -np.inf]) and (f[1]==-np.inf).all()
    assert united(on, y)==[0] and united(on[:,2:], y)==[] and united(on[:,:0], y)==[]
    assert united(np.stack([y&(np.arange(8)<2), y&(np.arange(8)>=2)], 1), y, rise=.4)==[0]

def test_greedy_edits_are_the_best_of_all_for_one_feature():
    "Every exchange tried, and every second one that goes with the first"
    g = np.random.default_rng(0)
    W,f,f_new = g.normal(size=(9, 5)),np.maximum(g.normal(size=(40, 9)), 0),np.maximum(g.normal(size=(40, 9)), 0)
    gap = g.normal(size=(40, 5))
    got = agnostic(f, f_new, W, gap, 1).delta
    moves = (f_new-f)[:,:,None]*W
    free = lambda j,i: [m for m in range(9) if m!=j and not (f[i,m] and f[i,j] or f_new[i,m] and f_new[i,j])] # one away, one added
    for i in range(40):
        away = lambda m: ((gap[i]-m)**2).sum()
        j = min(range(9), key=lambda j: away(moves[i,j]))
        best = np.zeros(5)
        if away(moves[i,j])<away(best): best = min([moves[i,j]]+[moves[i,j]+moves[i,m] for m in free(j, i)], key=away)
        np.testing.assert_allclose(got[i], best, atol=1e-9)

def test_edits_take_no_more_than_k_and_none_that_never_fired():
    W,f = np.eye(6),np.array([[1., 2, 3, 0, 0, 0]])
    tell = np.array([[.1, .3, -np.inf, .9, .9, .9]])
    c = aware(f, f, W, tell, tell, 1)
    assert (c.delta==0).all() and c.size[0]==pytest.approx(4/14)
    assert aware(f, 0*f, W, tell, tell, 5).delta.tolist()==[[-1, -2, 0, 0, 0, 0]]
    assert np.isnan(aware(0*f, f, W, tell, tell, 2).size[0])

# ---- a model that is exactly additive ----

class Additive(nn.Module):
    "The site `hidden` is a sum of a vector for each value, at right angles; IO is said where S is odd and Pos 0, else one of two other words"
    def __init__(self, bed, d=40):
        super().__init__()
        self.bed,n,V = bed,34,len(bed.words)
        self.hidden,self.head = nn.Linear(n, d, bias=False),nn.Linear(d, V, bias=False)
        Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)))[0]
        size = torch.tensor([3.]*16+[2.]*16+[1.]*2)
        say = torch.zeros(V, n)
        say[V-16:,:16] = 4*torch.eye(16)
        say[8,16:32] = 6.*(torch.arange(16)%2==0); say[9,33] = 9.
        with torch.no_grad():
            self.hidden.weight.copy_((Q[:n]*size[:,None]).T); self.head.weight.copy_(say/size@Q[:n])
    def forward(self, ids, attention_mask=None, use_cache=False):
        a,b,s = (ids[:,i]-15 for i in (4, 6, 15))
        v = torch.stack([torch.where(a==s, b, a), s, (a==s).long()], 1)
        return self.head(self.hidden(one_hots(v, self.bed.attributes).float()[:,None].expand(-1, ids.shape[1], -1)))

@pytest.fixture(scope='module')
def bed(): return testbeds['indirect_argument']()

@pytest.fixture(scope='module')
def planted(bed):
    "The model, a function that evaluates on it, prompts to fit on, and the dictionary of its codes"
    m = load_model(Additive(bed).eval(), tokenizer=bed.tokenizer())
    case = lambda d: Case(d, SimpleNamespace(site='hidden'), m, (), 0, .95, 100)
    def run(d, **kw): return evaluations['supervised'](case(d), **dict(dict(n_fit=600, n_test=200), **kw))
    rows = rows_of(case(None), bed, bed.draw(600, bed.generator('supervised fit 0'))) # the prompts it will be fitted on
    v = rows.values[:,:3]
    return SimpleNamespace(model=m, run=run, x=rows.x, v=v, codes=supervised_codes(rows.x, v, bed.attributes), case=case)

def true(p): return as_dictionary(p.codes, p.x, p.v)
def of(part): return {k.removeprefix('supervised_'): s.value for k,s in part.scores.items()}

def test_a_feature_for_each_value_does_all_that_the_codes_do(planted):
    part = planted.run(true(planted), k=1)
    v = of(part)
    for k in ('solved', 'f1_IO', 'f1_S', 'f1_Pos', 'split_IO', 'split_S', 'split_Pos', 'moved_aware', 'moved_agnostic', 'moved_mse', 'edit_aware', 'edit_mse'): assert v[k]==1, k
    for k in ('sufficiency', 'sufficiency_signed', 'necessity', 'necessity_signed', 'r2', 'r2_mse', 'sufficiency_mse', 'necessity_mse'): assert v[k]==pytest.approx(1, abs=1e-3), k
    assert v['occlusion']==0 and 'IO, S, Pos in order' in part.about['supervised_occlusion']
    assert .2<v['edit_nothing']<.6 and v['used_Pos']==1 and .1<v['used_S']<.5 and .1<v['used_IO']<.4
    for a in ('IO', 'S', 'Pos'): assert v[f'edit_size_aware_{a}']==pytest.approx(v[f'edit_size_mse_{a}'], abs=1e-3) and v[f'edit_aware_{a}']==1
    assert sum(v[f'edit_size_mse_{a}'] for a in ('IO', 'S', 'Pos'))==pytest.approx(1)
    for k,s in part.scores.items(): assert s.n>0 and s.version==f'{k}/1' and (s.lo!=s.lo or s.lo<=s.value<=s.hi), k

def test_neurons_rebuild_all_and_edit_like_the_truth_when_all_may_be_taken(planted):
    d = dictionaries['identity'](40, 40)
    v = of(planted.run(d, k=40))
    for k in ('sufficiency', 'necessity', 'r2'): assert v[k]==pytest.approx(1, abs=1e-4), k
    assert v['edit_agnostic']==v['moved_agnostic']==v['edit_aware']==1 and v['edit_size_agnostic']<=1+1e-6
    few = of(planted.run(d, k=1))
    assert few['moved_agnostic']<.8 and few['sufficiency']==v['sufficiency'] and few['f1_IO']<.5

def test_silent_features_do_nothing(planted):
    d = true(planted)
    with torch.no_grad(): d.b_enc.fill_(-1e6)
    part = planted.run(d)
    v = of(part)
    for k in ('sufficiency', 'necessity', 'r2'): assert abs(v[k])<.02, k
    for k in ('moved_aware', 'moved_agnostic', 'f1_IO', 'f1_S', 'f1_Pos', 'f1_union_S', 'split_IO', 'split_Pos', 'occlusion'): assert v[k]==0, k
    assert v['edit_aware']==v['edit_agnostic']==v['edit_nothing'] and v['moved_mse']==1 and np.isnan(v['edit_size_aware'])

def test_answers_turned_round_look_good_without_a_sign(planted):
    "A reconstruction on the other side of the mean: the absolute ratio is 1, the signed one -1, and it is said"
    d = dictionaries['identity'](40, 40)
    with torch.no_grad(): d.W_dec.neg_(); d.b_dec.copy_(2*planted.codes.mean); d.b_enc.copy_(2*planted.codes.mean) # the encoder reads x less b_dec
    part = planted.run(d)
    v = of(part)
    assert v['sufficiency']==pytest.approx(1, abs=1e-3) and v['sufficiency_signed']==pytest.approx(-1, abs=1e-3) and v['r2']<-2.9
    assert v['necessity']==pytest.approx(v['necessity_signed'])==pytest.approx(-1, abs=1e-3) or v['necessity_signed']==pytest.approx(-1, abs=1e-3)
    assert 'turned round' in part.doubts['supervised_sufficiency'] and 'supervised_sufficiency_mse' not in part.doubts

def test_an_attribute_that_larger_ones_hide_is_occluded(planted):
    d = true(planted)
    with torch.no_grad(): d.b_enc[16:32] = -1e6
    part = planted.run(d)
    v = of(part)
    assert v['f1_IO']==1 and v['f1_S']<.2 and v['occlusion']>.9 and v['edit_aware_S']<1 and v['edit_mse_S']==1
    with torch.no_grad(): d.b_enc[:32] = -1e6 # now what is left has the smallest codes
    assert of(planted.run(d))['occlusion']<.02
    only = planted.run(d, matters=.99)
    assert np.isnan(of(only)['occlusion']) and '1 of 3 attributes' in only.doubts['supervised_occlusion']

def test_a_value_split_in_two_is_counted(planted):
    "Each value of Pos by two features, one where IO is among the first eight names"
    t = true(planted)
    d = dictionaries['relu'](40, 36).requires_grad_(False)
    d.b_dec.copy_(t.b_dec); d.W_dec[:32] = t.W_dec[:32]; d.W_enc[:,:32] = t.W_enc[:,:32]; d.b_enc[:32] = t.b_enc[:32]
    for i in range(4):
        some = slice(0, 8) if i%2 else slice(8, 16)
        d.W_dec[32+i] = t.W_dec[32+i//2]
        d.W_enc[:,32+i] = t.W_enc[:,32+i//2]+t.W_enc[:,some].sum(1)
        d.b_enc[32+i] = t.b_enc[32+i//2]+t.b_enc[some].sum()+8-2 # readers are 1 and -1, so 8 of them add up to -6 or -8
    v = of(planted.run(d, k=1))
    assert v['split_Pos']==2 and v['split_IO']==v['split_S']==1 and v['f1_union_Pos']==1 and .6<v['f1_Pos']<.72 and v['f1_IO']==1
    assert v['sufficiency']==pytest.approx(1, abs=1e-3) and v['moved_aware']==1
    assert v['occlusion']==0 # what is split is not hidden

def test_the_codes_as_a_dictionary_keep_and_say_where_they_come_from(planted, tmp_path):
    d = true(planted)
    back = load_dictionary(d.save(tmp_path/'d'))
    torch.testing.assert_close(back.encode(planted.x), one_hots(planted.v, planted.codes.sizes).float(), atol=1e-3, rtol=0)
    assert back.provenance==dict(codes='mse', attributes=dict(IO=16, S=16, Pos=2)) and explained(planted.x, back(planted.x))>.9999

def test_what_the_evaluation_refuses(planted):
    d = true(planted)
    for k,v in (('k', 0), ('n_test', 2.5), ('n_fit', True)):
        with pytest.raises(ValueError, match=f'{k} must be a whole number of at least 1, got {v}'): planted.run(d, **{k: v})
    with pytest.raises(ValueError, match='matters must be between 0 and 1, got 5'): planted.run(d, matters=5)
    with pytest.raises(UnknownName, match="did you mean 'indirect_argument'"): planted.run(d, task='indirect_arguments')
    with pytest.raises(ValueError, match="'tree' has no attributes, draw, text, write"): planted.run(d, task='tree')
    other = load_model(nn.Sequential(planted.model.module).eval(), name='mute')
    with pytest.raises(ValueError, match="begins both with 'key' after 'def load"): rows_of(planted.case(d), testbeds['indirect_argument'](), torch.tensor([[1, 1, 0, 2, 0, 0]]))
    with pytest.raises(ValueError, match="'mute' has no tokenizer"): evaluations['supervised'](planted.case(d)._replace(model=other))
    with pytest.raises(ValueError, match='no scores of'): compared({})

# ---- the bundled task ----

def test_the_model_solves_the_task_in_both_orders_and_with_pairs_it_never_saw(bed):
    s = bed.score(n=600)
    for k in ('seen_solved', 'seen_solved_first', 'seen_solved_second', 'withheld_solved'): assert s[k].value>.99, k
    assert s['seen_accuracy'].value>.99 and s['withheld_accuracy'].value>.94
    fresh = bed.score(load_model(bed.build().eval()), n=300)
    assert fresh['seen_accuracy'].value<.2 and .3<fresh['seen_solved'].value<.7
    with pytest.raises(ValueError, match="a model of 31 tokens was expected, 'five' has 5"): bed.score(load_model(nn.Sequential(Additive(bed), nn.Linear(31, 5)).eval(), name='five'), n=10)

def test_prompts_are_what_they_say(bed):
    v = bed.draw(3000, bed.generator('x'))
    p = bed.write(v)
    assert len({*bed.words})==31 and (v[:,0]!=v[:,1]).all() and (v[:,3:4]!=v[:,:2]).all() and abs(v[:,2].double().mean()-.5)<.03
    for t,(io,s,pos,*_),ids in zip(bed.text(v[:50]), v[:50].tolist(), p.ids):
        w = t.split()
        assert w[3+2*pos]==bed.words[15+io] and w[5-2*pos]==w[14]==bed.words[15+s] and [bed.words[i] for i in ids[1:]]==w
    assert torch.equal(bed.model.tokens(bed.text(v[:20]))[0], p.ids[:20])
    trained = torch.cat([b.values for b,_ in zip(bed, range(20))])
    assert not bed.unseen[trained[:,0], trained[:,1]].any() and bed.unseen[v[:,0], v[:,1]].any() and 20<bed.unseen.sum()<55
    for i,a in enumerate(bed.attributes):
        new = bed.changed(v, a, bed.generator('y'))
        assert (new[:,i]!=v[:,i]).all() and (new!=v).sum()==len(v) and (new[:,0]!=new[:,1]).all() and (new[:,3:4]!=new[:,:2]).all()
    with pytest.raises(ValueError, match='attribute must be one of IO, S, Pos'): bed.changed(v, 'io', None)

def test_training_goes_the_right_way_and_is_the_same_each_time():
    "A few steps; the whole training takes half a minute and is what was bundled"
    make = lambda: testbeds['indirect_argument'](n_steps=12, d_model=16, n_layers=1, batch_size=16)
    a,b = make().model,make().model
    assert a.revision==b.revision and a.n_layers==1
    first = make(); ids = first.sample(200)
    loss = lambda m: float(torch.nn.functional.cross_entropy(m.logits(ids.ids)[:,-1], ids.right))
    assert loss(a)<loss(load_model(first.build().eval()))

@pytest.fixture(scope='module')
def trained(bed, tmp_path_factory):
    "A TopK dictionary of what the heads of the second layer write at the last token, scored"
    tmp = tmp_path_factory.mktemp('supervised')
    texts = [(f'{i}', t) for i,t in enumerate(bed.text(bed.draw(100, bed.generator('texts'))))]
    store = ActivationStore.collect(bed.model, texts, 'attn_out.1', path=tmp/'acts', seq_len=17, dtype='float32', progress=False)
    x = rows_of(Case(None, store, bed.model), bed, bed.draw(6000, bed.generator('training'))).x
    d = dictionaries['topk'](64, 128, k=4, seed=0)
    fit(d, x, 300_000, 512, path=tmp/'run')
    def run(d=d, **kw): return evaluate(d, store, bed.model, also=dict(supervised=dict(n_fit=1500)), n_sequences=4, n_boot=200, progress=False, keep=tmp/'kept', **kw)
    return SimpleNamespace(d=d, store=store, x=x, run=run, e=run())

def test_a_trained_dictionary_stands_beside_the_codes(trained, bed):
    v = {k.removeprefix('supervised_'): s.value for k,s in trained.e.items()}
    assert v['solved']>.99 and v['r2_mse']>.93 and v['r2_mse']>=v['r2_mean'] and v['r2']>.8
    for k in ('sufficiency_signed', 'sufficiency_signed_mse', 'necessity_signed_mse'): assert .8<v[k]<1.2, k
    assert v['moved_mse']>.8 and v['edit_nothing_IO']<.2 and v['used_IO']>.8 and v['used_Pos']<.05
    assert 0<v['moved_aware']<=1 and .3<v['moved_agnostic']<=1 and 0<v['f1_S']<.95 and v['f1_union_Pos']>=.4
    assert 'doing nothing succeeds' in trained.e.doubts['supervised_edit_mse'] and v['share_IO']>v['share_S']>v['share_Pos']
    assert trained.e.seconds['supervised']>0 and trained.e['supervised_moved_mse'].unit=='200 unseen prompts'

def test_scores_are_kept_and_the_same_again(trained):
    again = trained.run()
    assert 'supervised' in again.kept and again.to_dict()==trained.e.to_dict()
    assert 'supervised_solved' in trained.e.table().column('metric')

def test_the_codes_as_a_dictionary_read_the_bundled_model(trained, bed):
    "Told nothing, they find most values again; they steer, but less well than when they are told"
    rows = rows_of(Case(None, trained.store, bed.model), bed, bed.draw(1500, bed.generator('reading')))
    v = rows.values[:,:3]
    d = as_dictionary(supervised_codes(rows.x, v, bed.attributes), rows.x, v)
    s = {k.removeprefix('supervised_'): s.value for k,s in trained.run(d).items()}
    assert s['f1_IO']>.8 and s['f1_S']>.6 and .4<s['moved_aware']<s['moved_mse'] and s['split_IO']<1.2

def test_a_picture_of_it(trained):
    h = compared(trained.e)
    assert h.cols==('dictionary', 'mean codes', 'MSE codes') and 'R²' in h.rows and 'F1 of Pos' in h.rows
    z = dict(zip(h.rows, h.z))
    assert z['R²'].tolist()==[trained.e[f'supervised_r2{s}'].value for s in ('', '_mean', '_mse')] and np.isnan(z['F1 of S'][1:]).all()
    assert '<svg' in h.svg()
