"Lenses: closed forms, planted maps and memories, the model's own answer in the last row on every architecture, what cannot be read is refused"
import json
import numpy as np, pytest, torch
from torch import nn
from sparsenb.analyses.class_lens import identifiability
from sparsenb.analyses.embedding_space import gain, head_weights, mlp_weights, top_pairs
from sparsenb.analyses.feed_forward_memories import agreement, triggers
from sparsenb.analyses.latent_language import apart, first_tokens, masses
from sparsenb.analyses.linear_jump import Products, early_exit, jump_scores
from sparsenb.analyses.tuned_lens import fit_lens, lens_step
from sparsenb.core import UnknownName, analyses
from sparsenb.hooks import capture
from sparsenb.readout import AffineLens, Contexts, Lens, Readout, contexts, load_lens, readout_of, residuals
from sparsenb.lenses import fitted, lens, lens_scores, read, statistics
from sparsenb.models import bundled, load_model

torch.set_num_threads(1)
tiny = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100)

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

@pytest.fixture(scope='module')
def bridge():
    from transformer_lens.model_bridge import TransformerBridge
    return lambda: TransformerBridge.boot_transformers(str(bundled()['stdlib-4l']), device='cpu')

def uneven(m):
    "Norms whose gains and biases are not trivial: a norm left out or applied twice would show"
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for n,p in m.named_parameters():
            if p.ndim==1: p.copy_(torch.rand(p.shape, generator=g)+.5 if 'weight' in n else .3*torch.randn(p.shape, generator=g))
    return m.eval()

def build(kind, **kw):
    import transformers as tf
    c,ids = tiny|kw,dict(bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return uneven(dict(
            gpt2=lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=c['hidden_size'], n_layer=c['num_hidden_layers'], n_head=4, vocab_size=c['vocab_size'], n_positions=64, **ids)),
            gpt2_untied=lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, tie_word_embeddings=False, **ids)),
            llama=lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**c, num_key_value_heads=2, max_position_embeddings=64)),
            gpt_neox=lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**c)),
            mlm=lambda: tf.BertForMaskedLM(tf.BertConfig(**c)),
            bert=lambda: tf.BertModel(tf.BertConfig(**c)),
            vit=lambda: tf.ViTForImageClassification(tf.ViTConfig(**{k: v for k,v in c.items() if k!='vocab_size'}, image_size=8, patch_size=2, num_channels=1, num_labels=5)))[kind]())

def ids_of(n=2, T=10, V=100, seed=0): return torch.randint(3, V, (n, T), generator=torch.Generator().manual_seed(seed))
def normal(*s, seed=0): return torch.randn(*s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

# ---- the end of a model ----

@pytest.mark.parametrize('kind', ['gpt2', 'gpt2_untied', 'llama', 'gpt_neox', 'mlm'])
def test_the_last_row_is_the_models_own_answer(kind):
    m = load_model(build(kind)); x = ids_of()
    with torch.no_grad(): mine = readout_of(m)(residuals(m, x)[-1])
    torch.testing.assert_close(mine, m.logits(x), atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('fold', [False, True])
def test_through_a_bridge(model, bridge, fold):
    "Also where TransformerLens has folded the norms' gains and centred the weights"
    b = bridge()
    if fold: b.enable_compatibility_mode(disable_warnings=True)
    m,x = load_model(b),ids_of(V=8000)
    r = readout_of(m)
    with torch.no_grad(): mine = r(residuals(m, x)[-1])
    torch.testing.assert_close(mine, m.logits(x), atol=1e-5, rtol=1e-5)
    a,c = (read(z, x[:1]) for z in (m, model))
    np.testing.assert_array_equal(a.top[:,:,0], c.top[:,:,0])
    np.testing.assert_allclose(a.kl, c.kl, atol=2e-3)

def test_the_norm_is_applied_once():
    m = load_model(build('gpt2')); r = readout_of(m)
    h = residuals(m, ids_of())[-1]
    with torch.no_grad(): assert not torch.allclose(r(r.norm(h)), m.logits(ids_of()), atol=.1) and not torch.allclose(r.head(h), m.logits(ids_of()), atol=.1)

def test_a_model_whose_logits_are_changed_afterwards_is_refused():
    m = build('gpt2')
    def cap(mod, args, out): out.logits = 3*torch.tanh(out.logits/3)
    m.register_forward_hook(cap)
    with pytest.raises(ValueError, match='something else comes between or after'): readout_of(m)

def test_models_without_an_unembedding_are_refused():
    for f in (readout_of, lambda m: lens(m, ids_of(1)), analyses['logit_lens'], analyses['tuned_lens'], analyses['embedding_space']):
        with pytest.raises(ValueError, match='has no unembedding'): f(build('bert'))
    with pytest.raises(ValueError, match='no residual stream'): readout_of(nn.Linear(3, 3))

# ---- what a lens reads ----

def test_a_reading_agrees_with_the_definitions(model):
    x = read(model, 'for i in range(3):\n    print(i)', n=5)
    ids = torch.tensor(x.ids[None]); m = model.module
    h = capture(model, ids, ['resid_pre.0', 'resid_post.1'])
    with torch.no_grad(): mine = [m.lm_head(m.model.norm(h[k]))[0].double().log_softmax(-1) for k in ('resid_pre.0', 'resid_post.1')]
    final = model.logits(ids)[0].double().log_softmax(-1)
    for row,p in ((0, mine[0]), (2, mine[1])):
        np.testing.assert_array_equal(x.top[row,:,0], p.argmax(-1))
        np.testing.assert_allclose(x.kl[row], (final.exp()*(final-p)).sum(-1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(x.entropy[row], -(p.exp()*p).sum(-1), rtol=1e-3, atol=1e-4)
        for t in range(len(x.ids)-1): assert x.rank[row,t]==1+int((p[t]>p[t,x.ids[t+1]]).sum())
    assert (x.kl[-1]==0).all() and (x.rank[:,-1]==0).all() and all(x.names[i] is not None for i in np.unique(x.top))

def test_statistics_at_known_points():
    p,q = torch.tensor([.7, .2, .1]).log(),torch.tensor([.2, .3, .5]).log()
    s = statistics(p, q, torch.tensor(2))
    assert float(s['kl'])==pytest.approx(sum(b*np.log(b/a) for a,b in zip((.7, .2, .1), (.2, .3, .5))), rel=1e-5)
    assert (int(s['rank']), float(s['agrees']))==(3, 0) and float(s['surprisal'])==pytest.approx(-np.log(.1), rel=1e-5)
    assert int(statistics(p, q, torch.tensor(-1))['rank'])==0

def test_layers_may_be_chosen_and_one_is_enough():
    m = load_model(build('gpt2', num_hidden_layers=1))
    v = lens(m, ids_of(1))
    assert v.layers==['embed', '0'] and v.reading.kl[1].max()==0
    assert read(m, ids_of(1), layers=[0]).layers==(0,) and read(m, ids_of(1), layers=[-1]).kl.min()>0
    with pytest.raises(ValueError, match=r'layers are -1 .* to 0, got \[3\]'): lens(m, ids_of(1), layers=[3])

def test_scores_do_not_depend_on_the_batch(model):
    c = contexts(model, n_tokens=256, length=32, split='held-out')
    a,b = (lens_scores(model, c, [Lens()], batch_size=k)['logit'] for k in (1, 5))
    for k in a: np.testing.assert_allclose(np.array(a[k]), np.array(b[k]), rtol=1e-4, atol=1e-6)
    assert a['kl'][0][-1]==0 and (a['kl'][1]<=a['kl'][0]+1e-9).all()

def test_fitted_and_scored_text_differ(model):
    a,b = (contexts(model, split=s, n_tokens=4096, length=64) for s in ('train', 'held-out'))
    assert not {tuple(r) for r in a.ids.tolist()}&{tuple(r) for r in b.ids.tolist()}
    x = ids_of(20)
    a,b = (contexts(model, x, split=s) for s in ('train', 'held-out'))
    assert (len(a.ids), len(b.ids))==(16, 4) and not set(a.docs)&set(b.docs)

# ---- tuned lens ----

def test_at_zero_it_is_the_logit_lens(model):
    "To 1e-6 and, in fact, to the bit"
    x = 'import os\nfor name in os.listdir():'
    a,b = read(model, x),read(model, x, AffineLens(4, 256))
    for k in ('kl', 'entropy', 'prob'): np.testing.assert_allclose(getattr(a, k), getattr(b, k), atol=1e-6, rtol=0)

def test_an_affine_target_is_read_exactly():
    "Card E8: KL from about one nat to below 1e-12, in float64"
    norm,head = nn.LayerNorm(10).double(),nn.Linear(10, 30, bias=False).double()
    head.weight.data = normal(30, 10, seed=1)
    h = normal(200, 10, seed=2); end = h+.18*h@normal(10, 10, seed=3).T+.3*normal(10, seed=4)
    f = AffineLens(1, 10).double()
    kl = fit_lens(f, Readout(norm, head), lambda i: torch.stack([h, end]), 1500, lr=.02)[:,0]
    assert kl[0]==pytest.approx(.92, abs=.1)
    last = float(lens_step(f, Readout(norm, head), torch.stack([h, end]))[0])
    print(f'KL {kl[0]:.3f} -> {last:.1e}')
    assert last<1e-12

def test_gradients_are_those_of_the_divergence():
    norm,head = nn.LayerNorm(6).double(),nn.Linear(6, 9, bias=False).double()
    h = normal(3, 20, 6)
    f = AffineLens(2, 6).double()
    with torch.no_grad(): f.weight.copy_(.1*normal(2, 6, 6, seed=5))
    lens_step(f, Readout(norm, head), h)
    w,b = (p.detach().clone().requires_grad_() for p in (f.weight, f.bias))
    lp = lambda x: head(norm(x)).log_softmax(-1)
    loss = sum((lp(h[-1]).exp()*(lp(h[-1])-lp(h[i]+h[i]@w[i].T+b[i]))).sum(-1).mean() for i in range(2))
    for mine,want in zip((f.weight.grad, f.bias.grad), torch.autograd.grad(loss, (w, b))): torch.testing.assert_close(mine, want)
    assert head.weight.grad is None and norm.weight.grad is None

@pytest.fixture(scope='module')
def tuned(model, tmp_path_factory): return analyses['tuned_lens'](model, steps=25, length=64, n_tokens=8192, test_tokens=2048, lr=3e-3, seed=0, path=tmp_path_factory.mktemp('tuned')/'lens', save_every=10), tmp_path_factory

def test_it_is_nearer_to_the_answer_at_every_layer_on_held_out_text(tuned):
    t,_ = tuned
    print(t.table())
    assert (t['kl, tuned'][:-1]<t['kl, logit'][:-1]).all() and t['kl, tuned'][-1]==0

def test_it_is_kept_and_taken_up(tuned, model, tmp_path):
    t,_ = tuned
    t.lens.save(tmp_path/'lens')
    back = load_lens(tmp_path/'lens')
    assert torch.equal(back.weight, t.lens.weight) and back.about==t.lens.about and back.about['step']==25
    assert read(model, 'x = 1', fitted(model, tmp_path/'lens')).kind=='tuned'
    w = tmp_path/'lens'/'weights.safetensors'; raw = bytearray(w.read_bytes()); raw[-1] ^= 1; w.write_bytes(raw)
    with pytest.raises(ValueError, match='damaged'): load_lens(tmp_path/'lens')
    with pytest.raises(FileNotFoundError, match='no lens in'): load_lens(tmp_path)

def test_a_run_goes_on_to_the_same_bits(model, tmp_path, monkeypatch):
    kw = dict(steps=5, length=16, batch_size=2, n_tokens=160, test_tokens=0, seed=3)
    whole = analyses['tuned_lens'](model, **kw).lens
    real,left = AffineLens.save,[2]
    def save(self, *a):
        real(self, *a); left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
    monkeypatch.setattr(AffineLens, 'save', save)
    with pytest.raises(KeyboardInterrupt): analyses['tuned_lens'](model, **kw, path=tmp_path/'l', save_every=1)
    monkeypatch.undo()
    assert json.loads((tmp_path/'l'/'cfg.json').read_text())['about']['step']==2
    again = analyses['tuned_lens'](model, **kw, path=tmp_path/'l').lens
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
    with pytest.raises(ValueError, match='seed 3, not 4'): analyses['tuned_lens'](model, **{**kw, 'seed': 4}, path=tmp_path/'l')

def test_a_lens_by_name_is_fitted_once(model, tmp_path, monkeypatch):
    "The cache is asked first, by the model's weights"
    real,calls = analyses['tuned_lens'],[]
    def small(m):
        calls.append(m)
        return real(m, steps=1, length=16, batch_size=1, n_tokens=32, test_tokens=0, seed=0)
    monkeypatch.setenv('SPARSENB_CACHE', str(tmp_path)); monkeypatch.setitem(analyses._here, 'tuned_lens', small)
    a,b = (fitted(model, 'tuned') for _ in range(2))
    assert len(calls)==1 and torch.equal(a.weight, b.weight) and (tmp_path/'lenses'/f'{model.revision}-tuned'/'cfg.json').is_file()

# ---- linear jump ----

def test_a_linear_map_is_found():
    "Card E7: h_L = A h, D=20, 300 to fit and 200 to test, V=50"
    A,U,h = normal(20, 20, seed=1),nn.Linear(20, 50, bias=False).double(),normal(500, 20, seed=2)
    U.weight.data = normal(50, 20, seed=3)
    h = torch.stack([h, h@A.T])
    fit,test = Products(2, 20),Products(2, 20)
    for a in range(0, 300, 70): fit.add(h[:,a:min(a+70, 300)])   # in batches
    test.add(h[:,300:])
    M = fit.map(0, 1)
    torch.testing.assert_close(M, A, atol=1e-8, rtol=0)
    torch.testing.assert_close(test.r2(M, 0, 1), torch.ones(20, dtype=torch.float64), atol=1e-9, rtol=0)
    mat,same = (jump_scores(Readout(None, U), h[:,300:], m) for m in ([M], None))
    print('id P@1', float(same['P@1'][0].mean()))
    assert mat['P@1'][0].mean()==1 and same['P@1'][0].mean()<.1
    assert (same['P@10'][0]>=same['P@5'][0]).all() and mat['surprisal'][0].mean()<same['surprisal'][0].mean()

def test_r2_is_that_of_the_definition():
    h = normal(3, 100, 6, seed=1); h[2] += h[0]
    p = Products(3, 6); p.add(h)
    A = normal(6, 6, seed=2)
    want = 1-(h[0]@A.T-h[2]).square().sum(0)/(h[2]-h[2].mean(0)).square().sum(0)
    torch.testing.assert_close(p.r2(A, 0, 2), want)
    best = p.map(0, 2)
    torch.testing.assert_close(best.T, torch.linalg.lstsq(h[0], h[2]).solution)

def test_early_exit_leaves_at_the_first_sure_row():
    margin,right = np.array([[.1, .95], [.6, .2], [.3, .99]]),np.array([[0, 0], [1, 1], [1, 1]])
    at,kept = early_exit(margin, right, .5)
    assert at.tolist()==[1, 0] and kept.tolist()==[True, False]
    assert early_exit(margin, right, 2.)[0].tolist()==[2, 2]

def test_jumps_on_a_model(model):
    j = analyses['linear_jump'](model, n_tokens=10_000, test_tokens=1_500, length=24, positions=8, seed=0)
    print(j.table())
    assert (j['P@1, mat'][:3]>j['P@1, id'][:3]).all() and j['P@1, mat'][-1]==1
    x = read(model, 'import os', j.lens)
    assert x.kind=='jump' and x.kl[-1].max()==0
    with pytest.raises(ValueError, match='too few to fit maps of width 256'): analyses['linear_jump'](model, n_tokens=200, test_tokens=100)

# ---- class lens ----

def test_identifiability_at_known_points():
    z = torch.arange(1000.).flip(0)
    assert float(identifiability(z, torch.tensor(0)))==1 and float(identifiability(z, torch.tensor(999)))==pytest.approx(.001)
    assert float(identifiability(z.expand(1000, -1), torch.arange(1000)).mean())==pytest.approx(.5005)

def test_class_lens_on_a_vit():
    m = build('vit'); x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)); y = torch.tensor([0, 1, 2, 3, 4, 0])
    c = analyses['class_lens'](m, x, y, seed=0)
    with torch.no_grad(): logits = m(x).logits
    np.testing.assert_allclose(c['r'][-1,:,0], identifiability(logits, y), atol=1e-6)
    np.testing.assert_allclose(c['p'][-1,:,0], logits.softmax(-1).gather(1, y[:,None])[:,0], atol=1e-5)
    assert c['r'].shape==(3, 6, 17) and np.isnan(c['change rate'][0])
    assert c['change rate'][1]==pytest.approx((c['p'][1,:,1:]>c['p'][0,:,1:]).mean())
    for bad,say in (([0]*5, 'one label for each'), ([0]*5+[9], 'labels are 0 to 4')):
        with pytest.raises(ValueError, match=say): analyses['class_lens'](m, x, bad)

# ---- latent language ----

def test_masses_and_overlap():
    p = torch.tensor([.6, .3, .1])
    assert [float(v) for v in masses(p, apart(dict(en=[0], zh=[1]))[0]).values()]==pytest.approx([.6, .3])
    g,left = apart(dict(en=[0, 2], zh=[1, 2]))
    assert left==[2] and [float(v) for v in masses(p, g).values()]==pytest.approx([.6, .3])
    with pytest.raises(ValueError, match="group 'zh' has no token of its own"): apart(dict(en=[0, 2], zh=[2]))

def test_groups_of_the_bundled_model(model):
    for i in first_tokens(model, 'return'): assert 'return'.startswith(model.token_text([i])[0].strip())
    a = analyses['latent_language'](model, ['x = ', 'def f('], [dict(a=['self'], b=['return']), dict(a=['None'], b=['return'])], seed=0)
    assert a['mass'].shape==(2, 5, 2)
    ids = model.tokens(['x = ', 'def f('])
    p = model.logits(*ids).softmax(-1)[1, int(ids[1][1].sum())-1]
    assert a['mass'][0,-1,1]==pytest.approx(float(p[sorted(first_tokens(model, 'None'))].sum()), abs=1e-5)
    with pytest.raises(ValueError, match='same names of groups'): analyses['latent_language'](model, ['a', 'b'], [dict(a='x'), dict(b='x')])
    with pytest.raises(ValueError, match='holds 512'): analyses['latent_language'](model, ['x = 1\n'*600], dict(a='x', b='y'))

# ---- weights and memories ----

def bigram(V=24, shuffle=False):
    "A GPT-2 whose layer is a table: neuron a answers to token a, and writes the token that always follows it"
    import transformers as tf
    g = torch.Generator().manual_seed(0)
    m = tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=V, n_layer=1, n_head=2, n_inner=V, vocab_size=V, n_positions=32, bos_token_id=0, eos_token_id=0)).eval()
    nxt = (torch.arange(V)+torch.randint(1, V, (1,), generator=g))%V
    E = torch.linalg.qr(torch.randn(V, V, generator=g))[0]
    with torch.no_grad():
        for n,p in m.named_parameters(): p.copy_(torch.ones_like(p) if n.endswith(('ln_1.weight', 'ln_2.weight', 'ln_f.weight')) else torch.zeros_like(p))
        m.transformer.wte.weight.copy_(E)
        b = m.transformer.h[0].mlp
        b.c_fc.weight.copy_(E.T); b.c_proj.weight.copy_(E[nxt][torch.randperm(V, generator=g)] if shuffle else E[nxt])
    start = torch.randint(0, V, (30, 1), generator=g)
    ids = (start+torch.arange(12)*(int(nxt[0])))%V
    return m,ids,nxt

def test_a_table_of_bigrams_agrees():
    m,ids,nxt = bigram()
    f = analyses['feed_forward_memories'](m, ids, top=5, seed=0)
    assert f.agree.all() and (f.rank==1).all() and f.best[0].tolist()==nxt.tolist()
    at = f.text.ids[torch.tensor(f.piece[0]), torch.tensor(f.position[0])]
    assert (at==torch.arange(24)[:,None]).all()       # every trigger of neuron a ends in a
    assert f.shuffled[0]<4/24
    s = analyses['feed_forward_memories'](bigram(shuffle=True)[0], ids, top=5, seed=0)
    assert s.agree.mean()<4/24

def test_shuffled_values_agree_by_chance():
    U,nxt,g = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)),torch.arange(50).roll(7),torch.Generator().manual_seed(1)
    got = [float(agreement(U[nxt][torch.randperm(50, generator=g)], U, nxt)[0].float().mean()) for _ in range(500)]
    assert np.mean(got)==pytest.approx(1/50, abs=4*(1/50/500)**.5)  # one hit a drawing on average, Poisson

def test_triggers_are_the_largest_of_all(model):
    c = contexts(model, n_tokens=640, length=32, split='train')
    v,p,t = triggers(model, c, (1,), top=6, batch_size=3)
    act = capture(model, c.ids, 'mlp_act.1')['mlp_act.1'][:,1:-1]   # not the first token, nor the last, which nothing follows
    torch.testing.assert_close(v[0], act.flatten(0, 1).T.topk(6).values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(act[p[0,:,0], t[0,:,0]-1, torch.arange(act.shape[-1])], v[0,:,0], atol=1e-5, rtol=1e-5)

def test_values_that_are_embeddings_point_to_their_tokens():
    m,_,nxt = bigram()
    s = analyses['embedding_space'](m)
    assert s.values(0, [7], 3).rows[0][1].split()[0]==str(int(nxt[7])) and s.keys(0, [7], 3).rows[0][1].split()[0]=='7'
    with torch.no_grad(): m.transformer.h[0].mlp.c_proj.weight[0] = m.transformer.wte.weight[7]
    assert analyses['embedding_space'](m).values(0, [0], 3).rows[0][1].split()[0]=='7'

@pytest.mark.parametrize('kind', ['gpt2', 'llama', 'gpt_neox'])
def test_weights_are_those_that_are_used(kind):
    "Heads: q, k, v and z from the normed stream, but for biases; neurons: the layer's output from its activations"
    m = load_model(build(kind)); x = ids_of()
    with torch.no_grad():
        for n,p in m.module.named_parameters():
            if p.ndim==1 and n.endswith('bias'): p.zero_()
    c = capture(m, x, ['mlp_in.1', 'mlp_act.1', 'mlp_out.1', 'z.1', 'attn_out.1', 'resid_pre.1', 'v.1'])
    _,values = mlp_weights(m, 1)
    torch.testing.assert_close(c['mlp_act.1']@values, c['mlp_out.1'], atol=1e-4, rtol=1e-4)
    w = head_weights(m, 1)
    torch.testing.assert_close(torch.einsum('nthd,hdm->ntm', c['z.1'], w['o']), c['attn_out.1'], atol=1e-4, rtol=1e-4)
    block = m.module.get_submodule(m.sites['resid_post.1'].path)
    norm = getattr(block, 'ln_1', None) or block.input_layernorm
    with torch.no_grad(): v = torch.einsum('ntm,hmd->nthd', norm(c['resid_pre.1']), w['v'])
    torch.testing.assert_close(v, c['v.1'].repeat_interleave(v.shape[2]//c['v.1'].shape[2], 2), atol=1e-4, rtol=1e-4)
    g = gain(norm, 32)
    torch.testing.assert_close(g, norm.weight.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head_weights(m, 1, fold=True)['q'], w['q']*g[:,None], atol=1e-4, rtol=1e-4)

def test_weights_through_a_bridge(model, bridge):
    b = load_model(bridge())
    for l in (0, 3):
        (k,v),(k2,v2) = mlp_weights(model, l),mlp_weights(b, l)
        assert set(k)==set(k2)=={'gate', 'up'}
        torch.testing.assert_close(v, v2); torch.testing.assert_close(k['gate'], k2['gate'])
        for n,a in head_weights(model, l, True).items(): torch.testing.assert_close(a, head_weights(b, l, True)[n], atol=1e-5, rtol=1e-4)

def test_pairs_are_exact_and_pass_over_blocks():
    g = torch.Generator().manual_seed(0)
    a,b = torch.randn(500, 8, generator=g)*torch.rand(500, 1, generator=g)**4,torch.randn(400, 8, generator=g)
    v,i,j = top_pairs(a, b, 30, block=32)
    want = (a@b.T).flatten().topk(30)
    torch.testing.assert_close(v, want.values)
    assert set((i*400+j).tolist())==set(want.indices.tolist())

# ---- bad input ----

def test_unknown_names_are_told_the_nearest(model):
    with pytest.raises(UnknownName, match="unknown lens 'tunned'; did you mean 'tuned'"): lens(model, 'x', 'tunned')
    with pytest.raises(TypeError, match='a lens, its name or its folder'): lens(model, 'x', 3)
    with pytest.raises(ValueError, match='fitted to 2 layers of width 8, stdlib-4l has 4 of width 256'): lens(model, 'x', AffineLens(2, 8))

def test_what_cannot_be_read(model):
    with pytest.raises(ValueError, match='the text has 1201 tokens|the text has .* tokens, the context of stdlib-4l holds 512'): read(model, 'x = 1\n'*600)
    with pytest.raises(ValueError, match='one text'): read(model, ids_of(2))
    with pytest.raises(ValueError, match='empty'): read(model, '')
    with pytest.raises(ValueError, match='no document of the corpus has 64 tokens'): contexts(model, ['x = 1'], length=64)
    with pytest.raises(ValueError, match=r'must be in 0\.\.8191'): read(model, torch.tensor([[9000]]))
    v = lens(model, 'x = 1\n'*600)
    assert 'holds 512' in v.error and v.reading is None and v.picked is None and 'holds 512' in v.static().html()
    v.text = 'x'; assert not v.error and len(v.words)==2

def test_a_lens_of_other_weights_says_so(model):
    assert 'other weights' in read(model, 'x', AffineLens(4, 256, 'tuned', dict(model='m', revision='00000000'))).note

# ---- the report ----

def test_the_report_holds_its_parts(tmp_path):
    from sparsenb.report import run_report
    AffineLens(4, 256, 'mine').save(tmp_path/'mine')
    html = run_report('lens', dict(n_tokens=512, length=32, prompts=['import os'], kind=str(tmp_path/'mine'), layers=[0, 3]), tmp_path/'r.html').read_text()
    assert 'KL to the final distribution' in html and html.count('snb-lens-page')>=1 and 'kl, mine' in html
