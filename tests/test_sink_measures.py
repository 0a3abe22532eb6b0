"Attention sinks: closed forms, patterns by hand, planted sinks found in a model, what cannot be read is refused"
import numpy as np, pytest, torch
from sparsenb.analyses.massive_activations import kurtosis, massive
from sparsenb.analyses.sink_profile import kind_of
from sparsenb.analyses.sink_rate import rates
from sparsenb.analyses.sink_value import phi, tau_of
from sparsenb.analyses.sinks_of import column_means, is_causal, uniform
from sparsenb.core import analyses
from sparsenb.hooks import capture
from sparsenb.models import load_model

torch.set_num_threads(1)
sinks_of,sink_rate,sink_value,sink_profile,massive_activations = (analyses[k] for k in ('sinks_of','sink_rate','sink_value','sink_profile','massive_activations'))
ALL = (sinks_of, sink_rate, sink_value, sink_profile, massive_activations)
CODE = ['def area(width, height):\n    """Area of a rectangle"""\n    return width*height\n', 'import os\nfor name in os.listdir("."):\n    print(name)\n']
PROSE = ['The quick brown fox jumps over the lazy dog. It was not amused.', 'Interest rates rose by a quarter point.', 'Whether it rains or not, we shall walk to the harbour and back.']

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

@pytest.fixture(scope='module')
def encoder(minilm): return load_model(str(minilm), device='cpu')

def llama(d=16, kv=1, n_ctx=64, seed=0, **kw):
    "A small Llama with random weights"
    from transformers import LlamaConfig, LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=d, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=kv, max_position_embeddings=n_ctx, **kw)).eval()

def ids_of(n=3, T=40, seed=0): return torch.randint(3, 40, (n, T), generator=torch.Generator().manual_seed(seed))
def H(n): return sum(1/i for i in range(1, n+1))

# ---- closed forms ----

def test_column_means_of_even_attention():
    even = torch.tril(torch.ones(1, 1, 4, 4))/torch.arange(1, 5)[:,None]
    np.testing.assert_allclose(column_means(even)[0,0], [25/48, 13/36, 7/24, 1/4], rtol=1e-6)
    np.testing.assert_allclose(column_means(torch.full((1, 2, 4, 4), .25))[0,1], [.25]*4)
    for T,first in ((4, .521), (9, .314), (10, .293), (64, .0741)):
        assert uniform(T)[0]==pytest.approx(H(T)/T) and uniform(T)[0]==pytest.approx(first, abs=5e-4)
    assert uniform(5, causal=False).tolist()==[.2]*5

def test_the_mean_is_over_the_queries_that_see_the_key():
    "The last key is seen once: dividing by T instead would give 1/T of it"
    eye = torch.eye(6)[None,None]
    assert column_means(eye)[0,0].tolist()==pytest.approx([1/(6-k) for k in range(6)])
    assert column_means(eye, causal=False)[0,0].tolist()==pytest.approx([1/6]*6)

def test_an_analytic_sink_head():
    "One key ahead by ln 63: A = 63/(62+i), mean .694"
    s = torch.zeros(64, 64, dtype=torch.float64); s[:,0] = np.log(63)
    A = s.masked_fill(~torch.tril(torch.ones(64, 64)).bool(), -torch.inf).softmax(-1)
    np.testing.assert_allclose(A[:,0], [63/(62+i) for i in range(1, 65)], rtol=1e-9)
    a = column_means(A[None,None])
    assert float(a[0,0,0])==pytest.approx(63/64*(H(126)-H(62)), rel=1e-5) and float(a[0,0,0])==pytest.approx(.694, abs=5e-4)
    r = rates(a[:,None].numpy(), .3)[0,0]
    assert r[0]==1 and not r[1:].any()
    assert rates(a[:,None].numpy(), .7)[0,0,0]==0

def test_rates_count_prompts_that_reach_a_position():
    a = np.array([[[[.5, .1, np.nan]]], [[[.2, .6, .4]]]])
    assert rates(a, .3)[0,0].tolist()==[.5, .5, 1.]

def test_rows_must_sum_to_one():
    with pytest.raises(ValueError, match='one is off by 0.5'): column_means(torch.eye(4)[None,None]/2)
    np.testing.assert_allclose(column_means(torch.eye(4)[None,None]/2, normalise=True), column_means(torch.eye(4)[None,None]))

@pytest.mark.parametrize('d', [64, 384])
def test_sink_value_of_one_channel_is_the_root_of_the_width(d):
    x = torch.zeros(3, d); x[0,5] = 2000; x[1] = 1; x[2,6] = 2000
    assert phi(x, [5]).tolist()==pytest.approx([d**.5, 1, 0], rel=1e-5)
    assert phi(x, [5, 6])[2]==pytest.approx(d**.5, rel=1e-5)
    noise = torch.randn(500, d, generator=torch.Generator().manual_seed(0))
    assert phi(noise, range(d)).max()<d**.5

def test_thresholds_scale_with_width():
    assert [tau_of(d) for d in (64, 256, 4096, 5120)]==[2.5, 5, 20, 20]
    assert all(tau_of(d)<d**.5 for d in (16, 64, 384, 4096, 16384))

def test_a_planted_massive_coordinate_is_found_alone():
    h = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    assert not len(massive(h))
    h[0,5] = 2000
    assert massive(h).tolist()==[[0, 5]] and massive(h, ratio=1e4).tolist()==[] and massive(h, least=3000).tolist()==[]
    assert massive(h/1000).tolist()==[] and massive(h/1000, least=0).tolist()==[[0, 5]]  # the ratio is free of scale, the 100 is not
    assert float(kurtosis(torch.eye(64)[5]))==pytest.approx((64**2-3*64+3)/63)

def test_kinds_of_tokens():
    assert [kind_of(w, s) for w,s in (('[SEP]', True), ('\n\n', False), (').', False), ('', False), (' x', False), ('7', False))]==['special','delimiter','delimiter','delimiter','word','word']

# ---- patterns by hand ----

def rotated(t, theta=10000.):
    "Rotary positions on (n, T, heads, d): halves of the vector are the two coordinates"
    d,T = t.shape[-1],t.shape[1]
    a = np.arange(T)[:,None]*theta**(-np.arange(0, d, 2)/d)
    c,s = (np.concatenate([f(a)]*2, 1)[None,:,None] for f in (np.cos, np.sin))
    return t*c+np.concatenate([-t[...,d//2:], t[...,:d//2]], -1)*s

def softmax(s):
    e = np.exp(s-s.max(-1, keepdims=True))
    return e/e.sum(-1, keepdims=True)

def by_hand(got, l, mask, rotary, causal):
    q,k = (got[f'{x}.{l}'].double().numpy() for x in 'qk')
    if rotary: q,k = rotated(q),rotated(k)
    s = np.einsum('nqhd,nkhd->nhqk', q, k)/q.shape[-1]**.5
    T = s.shape[-1]
    if causal: s = np.where(np.tril(np.ones((T, T), bool)), s, -np.inf)
    return softmax(np.where(mask.numpy()[:,None,None], s, -np.inf))

@pytest.mark.parametrize('which', ['model', 'encoder'])
def test_patterns_and_alpha_by_hand(which, request):
    "softmax(q·k) from captured queries and keys, rotated by hand where the model rotates them, against the patterns and α that are read"
    m,causal = request.getfixturevalue(which),which=='model'
    texts = CODE if causal else PROSE
    L = range(m.n_layers)
    got = capture(m, texts, [f'{k}.{l}' for k in ('q','k','v','pattern') for l in L])
    reading,mask = sinks_of(m, texts),got.mask
    assert reading.causal==causal and not mask.all() and reading.mask.tolist()==mask.tolist()
    for l in L:
        A = by_hand(got, l, mask, causal, causal)
        P = got[f'pattern.{l}'].double().numpy()
        real = np.broadcast_to(mask.numpy()[:,None,:,None], P.shape)  # rows of padding mean nothing
        assert np.abs(A-P)[real].max()<1e-5
        np.testing.assert_allclose(P.sum(-1)[real[...,0]], 1, atol=1e-5)
        for i,T in enumerate(mask.sum(1).tolist()):
            a = np.stack([A[i,:,(k if causal else 0):T,k].mean(-1) for k in range(T)], -1)
            np.testing.assert_allclose(reading.alpha[i,l,:,:T], a, atol=1e-5)
            assert np.isnan(reading.alpha[i,l,:,T:]).all()
            for s,norms in (('k', reading.k_norm), ('v', reading.v_norm)): np.testing.assert_allclose(norms[i,l,:,:T].T, np.linalg.norm(got[f'{s}.{l}'][i,:T], axis=-1), rtol=1e-4)

def test_without_rotation_the_patterns_differ(model):
    "The check above can fail"
    got = capture(model, CODE, ['q.0','k.0','pattern.0'])
    assert np.abs(by_hand(got, 0, got.mask, False, True)-got['pattern.0'].numpy())[0].max()>.1

@pytest.mark.parametrize('which', ['model', 'encoder'])
def test_padding_and_batches_change_nothing(which, request):
    m = request.getfixturevalue(which)
    texts = CODE+['x = 1\n'] if which=='model' else PROSE
    all_,one = sinks_of(m, texts),sinks_of(m, texts, batch_size=1)
    np.testing.assert_allclose(all_.alpha, one.alpha, atol=1e-5)
    for i,t in enumerate(texts):
        alone = sinks_of(m, t)
        T = alone.alpha.shape[-1]
        np.testing.assert_allclose(all_.alpha[i,...,:T], alone.alpha[0], atol=1e-5)
        np.testing.assert_allclose(all_.v_norm[i,...,:T], alone.v_norm[0], rtol=1e-4)
        assert all_.words[i]==alone.words[0] and all_.lengths[i]==T

# ---- planted in a model ----

@pytest.mark.parametrize('T', [4, 9, 40])
def test_even_attention_through_a_model(T):
    "Queries of nothing: α is H_T/T for every head, and four tokens make two false sinks"
    m = llama()
    with torch.no_grad():
        for b in m.model.layers: b.self_attn.q_proj.weight.zero_()
    r = sink_rate(m, ids_of(T=T), seed=0)
    np.testing.assert_allclose(r.reading.alpha, np.broadcast_to(uniform(T), r.reading.alpha.shape), atol=1e-5)
    assert float(r)==(T<10) and ('too short to tell a sink' in r.table().caption)==(T<10)
    assert r.by_position().tolist()==(uniform(T)>.3).tolist()

def planted(T=40):
    "A model whose token 3 has channel 5 alone, a key that everyone wants and no value; nothing is written to the residual stream"
    m = llama(d=64)
    with torch.no_grad():
        E = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)); E[:,5] = 0; E[3] = 0; E[3,5] = 2000
        E[:,7] = torch.where(torch.arange(40)==3, 0., 3.)  # what a query reads
        m.model.embed_tokens.weight.copy_(E)
        for b in m.model.layers:
            a = b.self_attn
            for w in (a.q_proj, a.k_proj, a.o_proj, b.mlp.down_proj): w.weight.zero_()
            for h in (0, 32): a.q_proj.weight[h+31,7] = 6  # the slowest rotation: it hardly turns
            a.k_proj.weight[31,5] = 1; a.v_proj.weight[:,5] = 0
    ids = ids_of(T=T).clamp_min(4); ids[:,0] = 3
    return m, ids

def test_a_planted_sink_is_found_by_every_measure():
    m,ids = planted()
    ids[1,20] = 3  # and once later
    x = massive_activations(m, ids)
    at = {(0,0), (1,0), (1,20), (2,0)}
    assert set(x.found)=={(i, s, t, 5) for i,t in at for s in range(3)} and x.channels()=={5: 12}
    assert set(x.channel[...,0].ravel())=={5} and (x.value[...,0]==2000).all() and x.ratios.min()>1000
    v = sink_value(m, ids)
    assert v.dims==(5,) and v.tau==2.5 and {(i, t) for i,_,t in np.argwhere(v.sinks)}==at
    np.testing.assert_allclose(v.phi[:,:,0], 8, rtol=1e-5)
    on,off = v.attention().T
    assert (on>.4).all() and (off<.1).all()
    p = sink_profile(v.reading if v.reading.v_norm is not None else sinks_of(m, ids))
    assert (p.score>.6).all() and (p.ratio('v')<1e-5).all()
    (s,) = p.beyond()
    assert (s.word, s.count, s.of, s.heads)==('3', 1, 1, 4) and s.value<1e-5
    r = sink_rate(m, ids)
    assert float(r)==1 and (r.by_head()==1).all() and r.by_position()[1:30].max()==pytest.approx(1/3)  # position 21 in one prompt of three

def test_sets_to_the_mean_change_nothing_over_copies():
    "A massive coordinate acts as a constant: over identical texts its mean is itself"
    m,ids = planted()
    h = capture(m, ids[:1].repeat(4, 1), 'resid_post.0')['resid_post.0']
    new = h.clone()
    for t,c in massive(h[0]).tolist(): new[:,t,c] = h[:,t,c].mean()
    assert torch.equal(new, h)

def test_grouped_heads_share_their_norms():
    r = sinks_of(llama(kv=1), ids_of())
    assert r.alpha.shape==(3, 2, 2, 40) and r.v_norm.shape==(3, 2, 1, 40)
    p = sink_profile(r)
    assert p.ratio('v').shape==p.score.shape==(2, 2) and (p.ratio('v')[:,0]==p.ratio('v')[:,1]).all()

# ---- what the two models show ----

def texts(n, size=900):
    from sparsenb.corpus import load_corpus
    return [d.text[:size] for d,_ in zip((d for d in load_corpus('stdlib', 'held-out') if len(d.text)>2000), range(n))]

def test_the_bundled_model_rests_on_its_first_token(model):
    t = texts(8)
    r = sink_rate(model, t, length=64, seed=0)
    assert r.by_head().shape==(4, 4) and (r.by_head()[0]==1).all() and .3<float(r)<.6
    s = r.score()
    assert s.lo<=s.value<=s.hi and s.n==8 and s.version=='sink_rate_1^0.3/1' and s.value==pytest.approx(r.by_position()[0])
    assert [float(r.score(epsilon=e)) for e in (.1, .2, .3, .5)]==sorted((float(r.score(epsilon=e)) for e in (.1, .2, .3, .5)), reverse=True)
    p = sink_profile(model, t, length=64)
    assert p.ratio('v')[0].max()<.7 and (p.sinks[...,57:]==0).all() and len(p.views())==6 and all('<svg' in v.html() or 'snb' in v.html() for v in p.views())
    assert massive_activations(model, t, length=64).found==()
    with pytest.raises(ValueError, match='no channel brings the first token of stdlib-4l above tau=5'): sink_value(model, t, length=64)

def test_the_encoder_rests_on_cls_through_one_channel(encoder):
    t = texts(4, 300)
    v = sink_value(encoder, t, seed=0)
    assert v.dims==(99,) and v.tau==pytest.approx(20*(384/4096)**.5) and v.sinks[...,0].all() and not v.sinks[...,1:].any()
    assert (v.phi[:,1:5,0]>.95*384**.5).all()
    on,off = v.attention().T
    assert (on[1:5]>.3).all() and (off[1:5]<.02).all()
    p = sink_profile(encoder, t)
    assert not p.reading.causal and np.median(p.ratio('v')[1:5])<.05 and {'special','delimiter','word'}==set(p.shares())
    x = massive_activations(encoder, t)
    assert set(x.channel[...,0].ravel())=={99} and x.found==() and (np.nanmax(x.kurtosis, -1)[:,1:5]>200).all()
    assert all(w[0]=='[CLS]' for w in x.words) and len(v.views())==3 and all(w.html() for w in (*v.views(), *x.views()))

# ---- what cannot be read ----

@pytest.mark.parametrize('measure', ALL)
def test_unfit_prompts_are_refused(measure, model):
    with pytest.raises(ValueError, match=r'prompt 1 has 1 token: all its attention rests on itself'): measure(model, torch.tensor([[0, 5], [0, 1]]), torch.tensor([[True, True], [True, False]]))
    with pytest.raises(ValueError, match=r'prompt 0 has 513 tokens, the context of stdlib-4l holds 512'): measure(model, torch.zeros(1, 513, dtype=torch.long))
    with pytest.raises(ValueError, match=r'prompt 1 has \d+ tokens, the context of stdlib-4l holds 512'): measure(model, ['x', 'x = 1\n'*600])
    with pytest.raises(ValueError, match='length=64 were asked of each'): measure(model, CODE, length=64)
    with pytest.raises(ValueError, match='length must be at least 2'): measure(model, CODE, length=1)
    with pytest.raises(ValueError, match='an empty list'): measure(model, [])
    with pytest.raises(ValueError, match='padding must stand on the right'): measure(model, torch.zeros(1, 3, dtype=torch.long), torch.tensor([[False, True, True]]))
    with pytest.raises(ValueError, match=r'text or token ids int64 \(n, T\) were expected, got Tensor torch.float32 \(2, 3\)'): measure(model, torch.zeros(2, 3))

def test_one_token_after_the_first_token_is_enough(model):
    assert sinks_of(model, 'x').lengths.tolist()==[2]  # the model's first token is put before it

@pytest.mark.parametrize('measure', ALL[:-1])
def test_a_model_without_attention_is_refused(measure):
    m = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 40))
    with pytest.raises(ValueError, match='Sequential exposes no (attention layers|pattern)'): measure(m, ids_of())

def test_layers_and_states_that_do_not_exist(model):
    with pytest.raises(ValueError, match='exposes no pattern.7'): sink_rate(model, CODE, layers=[0, 7])
    with pytest.raises(ValueError, match='exposes no resid_pre.0'): massive_activations(torch.nn.Sequential(torch.nn.Embedding(40, 8)), ids_of())

def test_refused_sites_say_why():
    m = load_model(llama())
    m.sites.refused['pattern.1'] = 'patterns sum to 1 fails'
    with pytest.raises(ValueError, match='exposes no pattern.1.*patterns sum to 1 fails'): sinks_of(m, ids_of())
    assert sinks_of(m, ids_of(), layers=[0]).layers==(0,)

def test_all_tokens_sinks_is_an_error(model):
    with pytest.raises(ValueError, match=r'all \d+ tokens of prompt 0 are sinks at layer 0 with tau=0.5'): sink_value(model, CODE, dims=range(256), tau=.5)
    with pytest.raises(ValueError, match=r'all 40 tokens of prompt 0 are sinks of head 0 in layer 0 with epsilon=0: evenly spread attention already gives 0.107'): sink_profile(llama(), ids_of(), epsilon=0)
    with pytest.raises(ValueError, match='no token after the first is seen by min_queries=8'): sink_profile(model, 'import os')

@pytest.mark.parametrize('kw,said', [(dict(dims=[256]), r'channels in 0..255, got \[256\]'), (dict(dims=[]), 'channels in 0..255'), (dict(dims=[1], top=1), 'either dims or top'), (dict(top=257), r'top must be in 0..256'),
    (dict(tau=20), r'below √256 = 16'), (dict(tau=0), 'tau must be above 0')])
def test_bad_channels_and_thresholds(model, kw, said):
    with pytest.raises(ValueError, match=said): sink_value(model, CODE, **kw)

def test_bad_arguments(model):
    for e in (-.1, 1, 30):
        with pytest.raises(ValueError, match='epsilon is a share'): sink_rate(model, CODE, epsilon=e)
        with pytest.raises(ValueError, match='epsilon is a share'): sink_profile(model, CODE, epsilon=e)
    r = sink_rate(model, CODE)
    with pytest.raises(ValueError, match='position 0 is outside'): r.by_head(0)
    with pytest.raises(ValueError, match='has no norms'): sink_profile(r.reading)
    with pytest.raises(ValueError, match=r"what must be 'k' or 'v', got 'q'"): sink_profile(model, CODE).norms('q')
    with pytest.raises(ValueError, match='k must be in 1..256, got 0'): massive_activations(model, CODE, k=0)
    with pytest.raises(ValueError, match='layer must be one of 0, 1, 2, 3, got 9'): sink_value(model, CODE, top=1).tokens(9)

def test_processed_weights_are_refused_by_massive_activations():
    m = load_model(llama())
    m.module._weights_processed = True
    with pytest.raises(ValueError, match='are processed'): massive_activations(m, ids_of())
