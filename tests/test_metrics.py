"Metrics: closed forms, independence of batches, splicing against a reference by hand, coverage of the intervals, errors"
import dataclasses, json, math
from types import SimpleNamespace
import numpy as np, pytest, torch
import torch.nn.functional as F
from sparsenb.core import dictionaries, UnknownName
from sparsenb.hooks import capture, edited
from sparsenb import core
from sparsenb.metrics import bootstrap, evaluate, wilson
from sparsenb.scores import Part, Score, evaluation
from sparsenb.models import load_model

torch.set_num_threads(1)
SITE = 'resid_post.0'

def axes(d, write=1., b_dec=None):
    "Features e and -e for every axis: rebuilds `write * x + b_dec`"
    m,I = dictionaries['relu'](d, 2*d),torch.eye(d)
    with torch.no_grad():
        m.W_enc.copy_(torch.cat([I, -I]).T); m.W_dec.copy_(write*torch.cat([I, -I]))
        m.b_dec.copy_(torch.zeros(d) if b_dec is None else b_dec)
    return m

def topk(d=16, d_sae=64, k=4, seed=0): return dictionaries['topk'](d, d_sae, k=k, seed=seed)
def score(m, store, *a, **kw): return evaluate(m, store, *a, progress=False, **({'n_boot': 200}|kw))
def values(e): return {k: s.value for k,s in e.items()}
def recorded(m, seen):
    "Have a dictionary note how many rows it is given at a time"
    codes = m.codes
    m.codes = lambda x: (seen.append(x.reshape(-1, x.shape[-1]).shape[0]), codes(x))[1]
    return m

class Rows(SimpleNamespace): pass

class Store:
    "What evaluation asks of a store, held in memory"
    site,sites,corpus,split = SITE,[SITE],'toy','held-out'
    def __init__(self, x, doc=None, model=None, seqs=()):
        self.x,self.doc,self.seqs,self.d_in,self.mean = x,doc,list(seqs),x.shape[1],x.mean(0)
        self.model_name,self.revision = (model.name, model.revision) if model else ('none', 'none')
    def __len__(self): return len(self.x)
    def rows(self, chunk, start=0):
        for i in range(start, len(self.x), chunk): yield Rows(x=self.x[i:i+chunk], doc=None if self.doc is None else self.doc[i:i+chunk], start=i)
    def sequences(self, batch_size, n_tokens=None, seed=None):
        order = range(len(self.seqs)) if seed is None else np.random.default_rng(seed).permutation(len(self.seqs))
        for i in range(0, len(order), batch_size):
            part = [self.seqs[j] for j in order[i:i+batch_size]]
            ids = torch.full((len(part), max(map(len, part))), 1); mask = torch.zeros_like(ids).bool()
            for j,s in enumerate(part): ids[j,:len(s)] = s; mask[j,:len(s)] = True
            yield ids,mask

@pytest.fixture(scope='module')
def x(): return torch.randn(6000, 16, generator=torch.Generator().manual_seed(0))*torch.linspace(.5, 2, 16) + torch.linspace(-1, 1, 16)

@pytest.fixture(scope='module')
def spliced():
    "A tiny model whose layers matter, and a store of 12 sequences of unequal length that begin with its first token"
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, initializer_range=.4, bos_token_id=0, eos_token_id=0))
    model = load_model(gpt, tokenizer=SimpleNamespace(bos_token_id=0, pad_token_id=1, cls_token_id=None), name='toy')
    seqs = [torch.cat([torch.tensor([0]), torch.randint(2, 40, (n,))]) for n in (3, 20, 7, 15, 9, 30, 4, 12, 1, 25, 18, 6)]
    x = torch.cat([capture(model, s[None], SITE)[SITE][0,1:] for s in seqs])
    return model, Store(x, None, model, seqs)

# ---- closed forms

def test_identity(x):
    e = score(axes(16), x)
    assert e['fvu'].value==pytest.approx(0, abs=1e-12) and e['cosine'].value==pytest.approx(1) and e['shrinkage'].value==pytest.approx(1)
    assert e['l0'].value==pytest.approx(16)

def test_zero_mean_and_half_dictionaries_have_the_scores_that_algebra_gives(x):
    mu = x.mean(0)
    off = (mu.square().sum()/(x-mu).square().sum(1).mean()).item()
    zero,mean,half = (score(m, x) for m in (axes(16, 0), axes(16, 0, mu), axes(16, .5)))
    assert zero['fvu'].value==pytest.approx(1+off, rel=1e-5) and zero['cosine'].value==0 and np.isnan(zero['shrinkage'].value)
    assert mean['fvu'].value==pytest.approx(1, rel=1e-5)
    assert half['shrinkage'].value==pytest.approx(.5) and half['fvu'].value==pytest.approx((1+off)/4, rel=1e-5) and half['cosine'].value==pytest.approx(1)

@pytest.mark.parametrize('factor', [10, .1])
def test_scores_do_not_depend_on_the_units_of_the_data(x, factor):
    a,b = values(score(topk(), x)),values(score(topk(), x*factor))
    assert a==pytest.approx(b, rel=1e-4) and .05<a['fvu']<1.5

def test_l0_dead_and_density_are_counts(x):
    m = topk()
    e = score(m, x)
    f = m.encode(x)!=0
    assert e['l0'].value==pytest.approx(f.float().sum(1).mean().item())
    np.testing.assert_array_equal(e.fired, f.sum(0).numpy())
    assert e.density.sum()==pytest.approx(e['l0'].value)
    with torch.no_grad(): m.b_enc[:10] = -1e4
    e = score(m, x)
    assert e['dead'].value==pytest.approx((f[:,10:].sum(0)==0).float().sum().item()/64+10/64) and e['dead'].n==6000
    assert (e['dead'].lo, e['dead'].hi)==pytest.approx(wilson(round(e['dead'].value*64), 64))

def test_features_of_a_token_are_counted_and_their_sparseness_is_hoyers(x):
    m = topk()
    e,f = score(m, x, batch_size=700),m.encode(x).detach().double()
    on = (f!=0).sum(1)
    np.testing.assert_array_equal(e.l0_counts, torch.bincount(on).numpy())
    assert e.l0_counts.sum()==6000 and e.l0s().numbers()
    some = f[on>0]
    assert e['hoyer'].value==pytest.approx(((8-some.abs().sum(1)/some.norm(dim=1))/7).mean().item())
    assert score(topk(k=1), x)['hoyer'].value==pytest.approx(1)
    assert score(axes(16, .5), x)['norm_ratio'].value==pytest.approx(.5) and score(axes(16, 0), x)['norm_ratio'].value==0
    none = topk()
    with torch.no_grad(): none.b_enc[:] = -1e4
    e = score(none, x)
    assert e.l0_counts.tolist()==[6000] and np.isnan(e['hoyer'].value)

# ---- pooling

def test_pooled_fvu_does_not_depend_on_the_batch_and_a_per_batch_one_would(x):
    m = topk()
    pooled = [score(m, x, batch_size=b)['fvu'] for b in (4, 64, 6000)]
    x_hat = m(x).detach()
    per_batch = [np.mean([((u-v).square().sum()/(u-u.mean(0)).square().sum()).item() for u,v in zip(x.split(b), x_hat.split(b))]) for b in (4, 64, 6000)]
    assert max(s.value for s in pooled)-min(s.value for s in pooled)<1e-6
    assert pooled[0].lo==pytest.approx(pooled[2].lo, abs=1e-6)
    assert per_batch[0]>1.1*per_batch[2] and per_batch[2]==pytest.approx(pooled[2].value, rel=1e-4)

def test_fvu_is_against_the_mean_of_the_data_set_not_of_the_sample(x):
    s = Store(x); s.mean = torch.zeros(16)
    assert score(axes(16, 0), s)['fvu'].value==pytest.approx(1)

def test_work_is_done_a_batch_at_a_time_and_the_mode_is_given_back(x):
    seen = []
    m = recorded(topk(), seen).train()
    codes,modes = m.codes,set()
    m.codes = lambda x: (modes.add(m.training), codes(x))[1]
    e = score(m, x, batch_size=500)
    assert max(seen)<=500 and sum(seen)==6000 and modes=={False} and m.training
    assert all(not isinstance(v, torch.Tensor) for v in vars(e).values())

def test_a_sample_has_the_size_asked_for_and_comes_from_all_over(x):
    big = Store(torch.cat([x*0+i for i in range(5)])+x.repeat(5, 1))
    a,b,c = (score(topk(), big, n_tokens=7000, seed=s) for s in (0, 0, 1))
    assert a['l0'].n==7000 and values(a)==values(b) and a['fvu']==b['fvu'] and a['fvu'].value!=c['fvu'].value
    first = score(topk(), big.x[:7000])['cosine'].value
    assert abs(a['cosine'].value-score(topk(), big, n_tokens=None)['cosine'].value)<abs(first-score(topk(), big, n_tokens=None)['cosine'].value)

# ---- splicing

def test_identity_recovers_all_and_zero_recovers_nothing(spliced):
    model,store = spliced
    one,none,mean = score(axes(16), store, model),score(axes(16, 0), store, model),score(axes(16, 0, store.mean), store, model, baseline='mean')
    assert one['ce_recovered'].value==pytest.approx(1, abs=1e-5) and one['kl_recovered'].value==pytest.approx(1, abs=1e-5)
    assert one['ce_spliced'].value==pytest.approx(one['ce_clean'].value, abs=1e-5)
    assert none['ce_recovered'].value==0 and none['kl_recovered'].value==0 and none['kl_zero'].value>.1
    assert mean['ce_recovered'].value==pytest.approx(0, abs=1e-5) and mean['ce_mean'].value!=pytest.approx(none['ce_zero'].value, abs=1e-3)

def test_a_baseline_that_is_worse_than_a_guess_is_doubted(spliced, monkeypatch):
    "A guess among the model's words costs the logarithm of their number; what is recovered from more than that flatters"
    model,store = spliced
    e = score(topk(), store, model)
    costs = lambda guess: monkeypatch.setattr(type(model), 'unembed_weight', torch.zeros(guess, 1))
    words = math.exp(e['ce_zero'].value)
    costs(int(.8*words)); flatters = score(topk(), store, model)
    assert 'more than a uniform guess' in flatters.doubts['ce_recovered'] and flatters.scores==e.scores
    costs(int(1.3*words)+1); assert not score(topk(), store, model).doubts
    assert not score(topk(), store).doubts

def test_splicing_equals_a_reference_that_runs_each_sequence_alone(spliced):
    model,store = spliced
    m,sums = topk(),np.zeros(6)
    def put(fn):  # all positions but the first
        return {SITE: lambda t: torch.cat([t[:,:1], fn(t[:,1:])], 1)}
    for s in store.seqs:
        clean = model.logits(s[None])[0,:-1]
        runs = [clean]
        for fn in (lambda t: m(t).detach(), torch.zeros_like):
            with edited(model, put(fn)): runs.append(model.logits(s[None])[0,:-1])
        kl = [F.kl_div(r.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction='sum').item() for r in runs]
        sums += [len(s)-1, *(F.cross_entropy(r, s[1:], reduction='sum').item() for r in runs), *kl[1:]]
    n,clean,sp,zero,kl_sp,kl_zero = sums
    e = score(m, store, model)
    expected = dict(ce_clean=clean/n, ce_spliced=sp/n, ce_zero=zero/n, kl_spliced=kl_sp/n, kl_zero=kl_zero/n,
                    ce_recovered=(zero-sp)/(zero-clean), kl_recovered=1-kl_sp/kl_zero)
    assert {k: e[k].value for k in expected}==pytest.approx(expected, rel=1e-4)
    assert e['ce_clean'].n==n==sum(len(s)-1 for s in store.seqs)

def test_resampled_activations_are_those_of_other_tokens_whatever_runs_beside_them(spliced):
    model,store = spliced
    seen = []
    def see(mod, args, kwargs): seen.append((args[0] if args else kwargs['hidden_states']).clone())
    h = model.module.transformer.h[1].register_forward_pre_hook(see, with_kwargs=True)
    try: a = score(topk(), store, model, baseline='resample', sequence_batch=12)
    finally: h.remove()
    rows = {tuple(r) for r in store.x.numpy().round(5).tolist()}
    *_,clean,_,drawn = seen
    moved = (drawn!=clean).any(-1)
    assert moved.float().mean()>.3 and {tuple(r) for r in drawn[moved].numpy().round(5).tolist()}<=rows
    b = score(topk(), store, model, baseline='resample', sequence_batch=1)
    assert values(a)==pytest.approx(values(b), rel=1e-5) and a['kl_resample'].value>.05
    assert score(axes(16), store, model, baseline='resample')['ce_recovered'].value==pytest.approx(1, abs=1e-5)
    assert score(topk(), store, model, baseline='resample', seed=1)['ce_resample'].value!=a['ce_resample'].value

def test_the_first_token_and_padding_are_left_as_they_are(spliced):
    model,store = spliced
    runs = []
    def see(mod, args, kwargs): runs.append((args[0] if args else kwargs['hidden_states']).clone())
    h = model.module.transformer.h[1].register_forward_pre_hook(see, with_kwargs=True)  # what the replaced layer hands on
    try: score(topk(), store, model, sequence_batch=12)
    finally: h.remove()
    clean,*others = runs[-3:]
    lengths = torch.tensor(sorted(map(len, store.seqs)))
    kept = torch.arange(clean.shape[1])[None]>=lengths[:,None]; kept[:,0] = True
    assert clean.shape[:2]==kept.shape and kept.sum()>len(kept)
    for r in others: assert torch.equal(r[kept], clean[kept]) and not (r==clean).all(-1)[~kept].any()

def test_batch_mates_change_nothing(spliced):
    model,store = spliced
    a,b = (score(topk(), store, model, sequence_batch=k) for k in (1, 12))
    assert values(a)==pytest.approx(values(b), rel=1e-5, abs=1e-6)
    assert a['ce_recovered'].lo==pytest.approx(b['ce_recovered'].lo, rel=1e-5, abs=1e-5) and a['ce_recovered'].unit=='12 sequences'
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in model.module.modules())

def test_sequences_are_sampled_by_seed(spliced):
    model,store = spliced
    a,b,c = (score(topk(), store, model, n_sequences=5, seed=s, sequence_batch=k) for s,k in ((0, 2), (0, 5), (3, 2)))
    assert a['ce_clean'].value==pytest.approx(b['ce_clean'].value, rel=1e-5) and a['ce_clean'].unit=='5 sequences'
    assert a['ce_clean'].value!=pytest.approx(c['ce_clean'].value, rel=1e-3)

# ---- intervals

def test_wilson_is_the_textbook_interval():
    assert wilson(0, 10)==pytest.approx((0, .2775328), abs=1e-6) and wilson(10, 10)==pytest.approx((.7224672, 1), abs=1e-6)
    assert wilson(8, 10)==pytest.approx((.4901625, .9433178), abs=1e-6) and wilson(0, 0)==(0, 1)
    lo,hi = wilson(np.array([0, 5]), np.array([10, 10]), level=.99)
    assert lo.shape==(2,) and lo[0]==0 and hi[1]-lo[1]>wilson(5, 10)[1]-wilson(5, 10)[0]
    with pytest.raises(ValueError, match='0 <= k <= n, got k=11'): wilson(11, 10)
    with pytest.raises(ValueError, match='between 0 and 1, got 95'): wilson(1, 10, level=95)

def test_ninety_five_percent_intervals_hold_the_truth_that_often():
    rng,hit = np.random.default_rng(0),[]
    for i in range(300):  # 30 documents of unequal length; a quotient whose truth is 2
        n = rng.integers(5, 100, 30)
        den = n*rng.gamma(4, .25, 30); num = 2*den + n*rng.normal(0, .5, 30)
        lo,hi = bootstrap(num, den, n_boot=400, seed=i)
        hit.append(lo<=2<=hi)
    assert .90<=np.mean(hit)<=.99
    k = rng.binomial(60, .1, 2000)
    lo,hi = wilson(k, 60)
    assert .90<=((lo<=.1)&(.1<=hi)).mean()<=.99

def test_the_unit_of_an_interval_is_the_document_where_there_are_enough(x):
    doc = torch.arange(60).repeat_interleave(100)
    units = [score(topk(), s)['fvu'].unit for s in (Store(x, doc), Store(x, doc//6), Store(x), x)]
    assert units==['60 documents', '33 blocks of up to 256 rows', '24 blocks of up to 256 rows', '100 blocks of up to 60 rows']

def test_documents_in_clusters_widen_the_interval():
    g = torch.Generator().manual_seed(0)
    kind = torch.rand(60, 1, generator=g).repeat_interleave(100, 0)<.5  # half the documents lie along features, half do not
    m = topk()
    y = torch.where(kind, m.W_dec.detach()[torch.randint(64, (6000,), generator=g)], torch.randn(6000, 16, generator=g)*.25)
    a,b = score(m, Store(y, torch.arange(60).repeat_interleave(100))),score(m, y[torch.randperm(6000, generator=g)])
    assert a['cosine'].hi-a['cosine'].lo > 3*(b['cosine'].hi-b['cosine'].lo)

def test_one_unit_has_no_interval():
    assert np.isnan(bootstrap([1.], [2.])).all()
    with pytest.raises(ValueError, match=r'one sum per unit was expected, got shapes \(2,\) and \(3,\)'): bootstrap([1, 2], [1, 2, 3])

# ---- the result

def test_every_number_says_what_it_rests_on(spliced):
    model,store = spliced
    e = score(topk(), store, model, seed=5)
    assert set(e)=={'l0','fvu','cosine','shrinkage','norm_ratio','hoyer','density','dead','ce_recovered','kl_recovered','ce_clean','ce_spliced','ce_zero','kl_spliced','kl_zero'}
    for k,s in e.items():
        assert s.lo<=s.value<=s.hi and s.n>0 and s.seed==5 and s.version==f'{k}/{1 if k in ("density", "dead") else 2}' and s.unit
    assert float(e['fvu'])==e['fvu'].value and json.loads(json.dumps(e.to_dict()))['fvu']['n']==len(store)
    with pytest.raises(UnknownName, match="did you mean 'ce_recovered'"): e['ce_recoverd']
    with pytest.raises(dataclasses.FrozenInstanceError): e['fvu'].value = 0

def test_it_prints_as_an_aligned_table_and_draws_as_one(x):
    e = score(topk(), x)
    title,head,*rows = repr(e).splitlines()
    assert '64 features' in title and 'tokens' in head and len(rows)==len(e)
    at = head.index('tokens')+len('tokens')
    assert all(r[:at].endswith('6,000') for r in rows)
    html = e._repr_html_()
    assert 'fvu' in html and 'density' in html and e.densities().numbers()
    assert json.dumps(score(axes(16, 0), x).to_dict(), allow_nan=False)

# ---- kept results and further evaluations

@pytest.fixture
def asked(spliced):
    "The spliced store as one that has an identity, and a toy evaluation that says how often it ran"
    model,store = spliced
    ran = []
    @evaluation(needs=('model',))
    def toy(case, k=1, fail=False):
        ran.append(k)
        if fail: raise KeyboardInterrupt
        return Part({f'toy_{k}': Score(k/3, float('nan'), float('inf'), 7, case.seed, 'toy/1', 'one run')}, {f'toy_{k}': 'nothing'}, {f'toy_{k}': 'made up'})
    kept = Store(store.x, None, model, store.seqs); kept.fingerprint = 'abc'
    core.evaluations._here['toy'] = toy
    yield model,kept,ran
    for k in ('toy', 'test_metrics'): core.evaluations._here.pop(k, None)

def test_what_was_measured_is_read_and_any_change_measures_again(asked, tmp_path):
    model,store,ran = asked
    seen = []
    def again(d=None, **kw):
        seen.clear(); ran.clear()
        e = evaluate(recorded(d or topk(), seen), store, model, also=['toy'], keep=tmp_path, progress=False, n_boot=50, **kw)
        return e, bool(seen), len(ran)
    a,core_ran,n = again()
    assert core_ran and n==1 and not a.kept and a['toy_1'].hi==np.inf and 'Doubtful: made up' in a.table().html()
    b,core_ran,n = again()
    assert not core_ran and n==0 and b.kept==('core','splice','toy') and 'kept from before' in b.table().caption
    assert {k: tuple(map(str, dataclasses.astuple(s))) for k,s in a.items()}=={k: tuple(map(str, dataclasses.astuple(s))) for k,s in b.items()}
    np.testing.assert_array_equal(a.fired, b.fired); np.testing.assert_array_equal(a.l0_counts, b.l0_counts)
    assert again(batch_size=100)[1:]==(False, 0)        # memory only
    assert again(topk(seed=1))[1:]==(True, 1) and again(seed=3)[1:]==(True, 1) and again(level=.9)[1:]==(True, 1)
    assert again(baseline='mean')[0].kept==('core','toy') and again(n_tokens=50)[0].kept==('splice','toy')
    store.fingerprint = 'abd'
    assert again()[1:]==(True, 1)
    seen.clear(); evaluate(recorded(topk(), seen), store, keep=False, progress=False); assert seen

def test_a_stopped_evaluation_goes_on_with_what_is_missing(asked, tmp_path):
    model,store,ran = asked
    with pytest.raises(KeyboardInterrupt): evaluate(topk(), store, model, also=dict(toy=dict(fail=True)), keep=tmp_path, progress=False)
    assert evaluate(topk(), store, model, also=dict(toy=dict(k=2)), keep=tmp_path, progress=False).kept==('core','splice')

def test_evaluations_that_do_not_exist_or_lack_something_are_refused_before_anything_runs(asked, x):
    model,store,ran = asked
    seen = []
    m = recorded(topk(), seen)
    with pytest.raises(UnknownName, match="unknown evaluation 'toys'; did you mean 'toy'"): evaluate(m, store, model, also=['toys'], progress=False)
    with pytest.raises(UnknownName, match='unknown option of toy'): evaluate(m, store, model, also=dict(toy=dict(kk=2)), progress=False)
    with pytest.raises(ValueError, match="evaluation 'toy' needs a model"): evaluate(m, x, also=['toy'], progress=False)
    assert not seen and not ran

def test_all_are_those_that_have_what_they_need(asked, tmp_path):
    model,store,ran = asked
    core.evaluations._here['toy'].named_only = True
    e = evaluate(topk(), store, also='all', keep=False, progress=False, n_boot=20)
    assert 'decoder_geometry' in e.seconds and not {'stability', 'toy', 'sparse_probing'}&{*e.seconds} and not ran

# ---- errors

def test_what_does_not_fit_is_refused_before_anything_runs(x, spliced):
    model,store = spliced
    seen = []
    m = recorded(topk(), seen)
    other = load_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), name='other')
    with pytest.raises(ValueError, match="reads width 16, but 'resid_post.0' has width 8"): score(m, Store(x[:,:8]))
    with pytest.raises(ValueError, match="store is of model 'toy' .* this is 'other'"): score(m, store, other)
    elsewhere = Store(store.x, None, model, store.seqs); elsewhere.site = 'resid_post.7'
    with pytest.raises(UnknownName, match="unknown site 'resid_post.7'; did you mean 'resid_post.[01]'"): score(m, elsewhere, model)
    with pytest.raises(ValueError, match='no tokens'): score(m, Store(x[:0]))
    with pytest.raises(ValueError, match='no tokens'): score(m, x[:0])
    with pytest.raises(ValueError, match='splicing needs the tokens'): score(m, x, model)
    with pytest.raises(UnknownName, match="unknown baseline 'zeros'; did you mean 'zero'"): score(m, store, model, baseline='zeros')
    with pytest.raises(ValueError, match='n_tokens must be a whole number of at least 1, got 0'): score(m, x, n_tokens=0)
    with pytest.raises(ValueError, match=r'activations are \[n, d\], got shape \(16,\)'): score(m, x[0])
    with pytest.raises(ValueError, match='only dictionaries that rebuild their input'): score(dictionaries['topk'](16, 64, 16, k=4), x)
    assert not seen

def test_a_model_that_sees_what_comes_is_refused():
    from transformers import BertConfig, BertForMaskedLM, BertModel
    torch.manual_seed(0)
    c = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40, max_position_embeddings=32)
    seen = []
    m = recorded(topk(), seen)
    for cls,message in ((BertForMaskedLM, 'sees the tokens that come after'), (BertModel, 'no next-token logits')):
        model = load_model(cls(c), tokenizer=SimpleNamespace(bos_token_id=None, pad_token_id=1, cls_token_id=0), name='bert')
        store = Store(torch.randn(9, 16), None, model, [torch.tensor([0, 5, 6, 7])])
        with pytest.raises(ValueError, match=message): score(m, store, model)
    assert not seen

def test_a_number_that_is_not_finite_is_named(x, spliced):
    bad = x.clone(); bad[4321,3] = float('nan')
    with pytest.raises(ValueError, match='activation of row 4,321 is not finite'): score(topk(), bad)
    m = topk()
    with torch.no_grad(): m.W_dec[:] = float('inf')
    with pytest.raises(ValueError, match="dictionary's reconstruction of row 0 is not finite"): score(m, x)
    model,store = spliced
    with pytest.raises(ValueError, match='no tokens to predict'): score(topk(), Store(store.x, None, model, [torch.tensor([0])]), model)
