"Sites and hooks on every supported architecture, made small and random from their configurations"
import pytest, torch
from torch import nn
from sparsenb.core import UnknownName
from sparsenb.sites import SiteMap, verify, hooking, run, example

small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100)

def build(kind):
    import transformers as tf
    torch.manual_seed(0)
    ids = dict(bos_token_id=0, eos_token_id=0)
    return dict(
        gpt2=lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, **ids)),
        gpt2_base=lambda: tf.GPT2Model(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, **ids)),
        llama=lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**small)),
        qwen2=lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**small, num_key_value_heads=2)),
        gpt_neox=lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**small)),
        gpt_neox_sequential=lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**small, use_parallel_residual=False)),
        bert=lambda: tf.BertModel(tf.BertConfig(**small)),
        vit=lambda: tf.ViTForImageClassification(tf.ViTConfig(**{k:v for k,v in small.items() if k!='vocab_size'}, image_size=8, patch_size=2, num_channels=1)),
    )[kind]()

kinds = ['gpt2', 'gpt2_base', 'llama', 'qwen2', 'gpt_neox', 'gpt_neox_sequential', 'bert', 'vit']
everything = {'resid_pre', 'resid_mid', 'resid_post', 'attn_out', 'mlp_in', 'mlp_out', 'mlp_act', 'z', 'q', 'k', 'v', 'pattern'}

@pytest.fixture(scope='module', params=kinds)
def model(request):
    m = build(request.param)
    return request.param, m

def grab(sites, names, x):
    got = {}
    with torch.no_grad(), hooking(sites, {n: (lambda t,n=n: got.__setitem__(n, t.clone())) for n in names}): run(sites.module, x)
    return got

def test_identities(model):
    kind,m = model
    s = SiteMap(m); errs = verify(s)
    assert s.refused=={} and len(errs)>=4 and max(errs.values())<1e-5, errs
    have = {n.split('.')[0] for n in s.names()}-{'embed'}
    assert have==everything-({'resid_mid'} if kind=='gpt_neox' else set())

def test_training_mode_and_attention_come_back(model):
    _,m = model
    m.train(); m.config._attn_implementation
    before = m.config._attn_implementation, [x.training for x in m.modules()]
    verify(SiteMap(m))
    assert (m.config._attn_implementation, [x.training for x in m.modules()])==before
    m.eval()

def test_edit_of_each_site_changes_the_output_and_the_identity_does_not(model):
    "An edit that returns its tensor unchanged must not move the output, a large one must"
    kind,m = model
    m.eval(); s = SiteMap(m); verify(s); x = example(m)
    last = f'resid_post.{s.n_layers-1}'
    base = grab(s, [last], x)[last]
    for name in [f'{k}.0' for k in everything if f'{k}.0' in s]:
        for fn,moves in ((lambda t: t.clone(), False), (lambda t: t*0, True)):
            got = {}
            with torch.no_grad(), hooking(s, {name: fn}, edit=True), hooking(s, {last: lambda t: got.__setitem__('x', t.clone())}): run(m, x)
            d = float((got['x']-base).abs().max())
            assert (d>1e-5) if moves else (d<2e-6), (kind, name, moves, d)

def test_edit_of_resid_mid_reaches_the_skip_connection():
    m = build('gpt2').eval(); s = SiteMap(m); x = example(m); v = torch.randn(32)
    plain = grab(s, ['resid_mid.0', 'resid_post.0'], x)
    got = {}
    with torch.no_grad(), hooking(s, {'resid_mid.0': lambda t: t+v}, edit=True), hooking(s, {n: (lambda t,n=n: got.__setitem__(n, t.clone())) for n in ('resid_mid.0', 'mlp_out.0', 'resid_post.0')}): run(m, x)
    torch.testing.assert_close(got['resid_mid.0'], plain['resid_mid.0']+v, atol=1e-5, rtol=0)
    torch.testing.assert_close(got['resid_post.0'], got['resid_mid.0']+got['mlp_out.0'], atol=1e-5, rtol=0)

def test_edit_of_one_head_of_a_fused_projection_leaves_the_others():
    m = build('gpt_neox').eval(); s = SiteMap(m); x = example(m)
    def zero(t): t = t.clone(); t[..., 2, :] = 0; return t
    got = {}
    with torch.no_grad(), hooking(s, {'v.0': zero}, edit=True), hooking(s, {'z.0': lambda t: got.__setitem__('z', t.clone())}): run(m, x)
    plain = grab(s, ['z.0'], x)['z.0']
    assert got['z'][..., 2, :].abs().max()==0 and plain[..., 2, :].abs().max()>0
    torch.testing.assert_close(got['z'][..., [0,1,3], :], plain[..., [0,1,3], :])

def test_pattern_edit_is_used():
    m = build('llama').eval(); s = SiteMap(m); x = example(m)
    eye = lambda t: torch.eye(t.shape[-1]).expand_as(t)
    got = {}
    with torch.no_grad(), hooking(s, {'pattern.0': eye}, edit=True), hooking(s, {n: (lambda t,n=n: got.__setitem__(n, t.clone())) for n in ('z.0','v.0')}): run(m, x)
    torch.testing.assert_close(got['z.0'], got['v.0'], atol=1e-6, rtol=0) # every position looks only at itself

def test_stop_ends_the_pass_early():
    m = build('llama').eval(); s = SiteMap(m); ran = []
    h = m.model.layers[1].register_forward_hook(lambda *a: ran.append(1))
    with torch.no_grad(), hooking(s, {'resid_post.0': lambda t: None}, stop=True): run(m, example(m))
    assert ran==[]
    run(m, example(m)); assert ran==[1]
    h.remove()

def n_hooks(m): return sum(len(x._forward_hooks)+len(x._forward_pre_hooks) for x in m.modules())

def test_hooks_are_gone_after_an_exception():
    m = build('bert'); s = SiteMap(m)
    with pytest.raises(ZeroDivisionError):
        with hooking(s, {n: (lambda t: None) for n in s.names()}, edit=True):
            assert n_hooks(m)>10
            1/0
    assert n_hooks(m)==0 and m.config._attn_implementation=='sdpa'

def test_plain_modules_by_path():
    m = nn.Sequential(nn.Linear(5,7), nn.ReLU(), nn.Linear(7,3)); s = SiteMap(m); x = torch.randn(4,5)
    got = grab(s, ['0:in', '1:out', '2'], x)
    torch.testing.assert_close(got['1:out'], m[0](x).relu()); torch.testing.assert_close(got['0:in'], x)
    with pytest.raises(UnknownName, match="unknown site '3:out'"): s['3:out']
    with pytest.raises(ValueError, match='does not say what it takes'): s.width('0:in')

def test_unknown_site_names_the_nearest():
    s = SiteMap(build('gpt2'))
    with pytest.raises(UnknownName, match="did you mean 'resid_post.1'"): s['resid_pots.1']
    with pytest.raises(UnknownName, match='resid_pre.0'): s['resid_pre.7']

def test_edit_must_keep_the_shape():
    m = build('gpt2').eval(); s = SiteMap(m)
    with pytest.raises(ValueError, match=r'must keep the shape \(2, 8, 32\), got \(2, 8, 31\)'), torch.no_grad(), hooking(s, {'resid_post.0': lambda t: t[..., 1:]}, edit=True): run(m, example(m))

@pytest.mark.parametrize('kind', ['gpt2', 'llama', 'gpt_neox', 'bert'])
def test_bridge(kind, tmp_path):
    "The same sites of the same model, read through a TransformerLens bridge and from transformers directly"
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, BertForMaskedLM, AutoModel
    from transformer_lens.model_bridge import TransformerBridge
    m = build(kind)
    if kind=='bert': m = BertForMaskedLM(m.config)
    m.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(100)}, unk_token='0')), bos_token='0', eos_token='0', pad_token='1').save_pretrained(tmp_path)
    b = TransformerBridge.boot_transformers(str(tmp_path), device='cpu')
    sb,sm = SiteMap(b),SiteMap(m.eval()); verify(sb); verify(sm)
    print(kind, sb, sb.refused)
    both = [n for n in sb.names() if n in sm.names()]
    assert {'resid_pre.0', 'resid_post.1', 'pattern.0', 'z.1', 'mlp_out.0'} <= set(both)
    x = example(m); gb,gm = grab(sb, both, x),grab(sm, both, x)
    for n in both: torch.testing.assert_close(gb[n].reshape(gm[n].shape), gm[n], atol=2e-5, rtol=1e-4, msg=lambda s,n=n: f'{kind} {n}: {s}')

def test_native_bridge():
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import native
    from transformer_lens.config import TransformerBridgeConfig
    b = TransformerBridge.boot_native(TransformerBridgeConfig(d_model=32, d_head=8, n_heads=4, n_layers=2, n_ctx=16, d_vocab=100, act_fn='gelu', normalization_type='LN', seed=0))
    s = SiteMap(b); errs = verify(s)
    assert {'resid_pre.0', 'resid_mid.0', 'resid_post.1', 'pattern.1'} <= set(s.names()) and not s.refused, (s, errs)
