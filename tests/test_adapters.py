"Adapters, prefixes and prompts as edits: the paper's identity, nothing changed at first, the model's weights never touched, closed forms"
import contextlib
import pytest, torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from sparsenb.adapters import Adapter, Prefix, Prompt, adapted, adapter, checksum, edits, fit_adapters, forms, frozen, moved_by, next_token_loss, prefix, room
from sparsenb.attention import attention_edits, key_bias
from sparsenb.core import UnknownName
from sparsenb.hooks import Edit, capture, edited
from sparsenb.models import load_model

torch.set_num_threads(1)

def tiny(kind):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if kind=='gpt2': return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=40, bos_token_id=0, eos_token_id=0, initializer_range=.3)).eval()
        return LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60, initializer_range=.3)).eval()

def ids(n=3, T=9, seed=0): return torch.randint(2, 60, (n, T), generator=torch.Generator().manual_seed(seed))
def drawn(a, size=1., seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in a.parameters(): p.normal_(0, size, generator=g)
    return a
def n_hooks(m): return sum(len(x._forward_hooks)+len(x._forward_pre_hooks) for x in m.modules())

# ---- the identity ----

def test_a_prefix_is_a_gated_parallel_adapter_in_closed_form():
    "softmax over keys of the prefix and the text = (1-λ) Attn + λ softmax(q P_k) P_v"
    g = torch.Generator().manual_seed(0); q,k,v = (torch.randn(2, 4, T, 8, generator=g) for T in (5, 7, 7))
    p = drawn(Prefix(0, 4, 8, n=3))
    wide = lambda t: t[None].expand(2, -1, -1, -1)
    scores = q@k.transpose(-1, -2)*8**-.5
    whole = (q@torch.cat([wide(p.k), k], 2).transpose(-1, -2)*8**-.5).softmax(-1)@torch.cat([wide(p.v), v], 2)
    lam,dh = p.gated(q, scores.logsumexp(-1))
    torch.testing.assert_close((1-lam[...,None])*(scores.softmax(-1)@v)+lam[...,None]*dh, whole, atol=1e-5, rtol=1e-5)
    assert .05<float(lam.detach().mean())<.95

@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
def test_a_prefix_in_a_model_is_keys_and_values_before_the_others(kind):
    m,x = load_model(tiny(kind)),ids(); mask = torch.ones_like(x).bool(); mask[1,6:] = False
    ps = [drawn(prefix(m, l, n=2), seed=l) for l in (0, 1)]
    with contextlib.ExitStack() as s:
        for p in ps:
            for i in range(2): s.enter_context(attention_edits(m, {p.layer: key_bias(p.k[None,:,i:i+1], p.v[None,:,i:i+1])}))
        want = m.logits(x, mask)
    with adapted(m, *ps): got = m.logits(x, mask)
    torch.testing.assert_close(got[mask], want[mask], atol=1e-5, rtol=1e-4)
    assert (got-m.logits(x, mask))[mask].abs().max()>.1 and n_hooks(m.module)==0

# ---- nothing at first ----

@pytest.mark.parametrize('kind', ['gpt2', 'llama'])
def test_new_adapters_change_nothing_bit_for_bit(kind):
    m,x = load_model(tiny(kind)),ids(); plain = m.logits(x)
    for site,reads in (('embed', None), ('resid_pre.1', None), ('attn_out.0', 'resid_pre.0'), ('mlp_out.1', 'mlp_in.1'), ('z.1', None), ('q.0', 'resid_pre.0'), ('v.1', 'resid_pre.1'), ('resid_post.1', None)):
        for form in forms:
            with adapted(m, adapter(m, site, reads, form=form, scale=7.)): assert m.logits(x).equal(plain), (site, form)

# ---- what they compute ----

def test_in_sequence_and_in_parallel():
    m,x = load_model(tiny('gpt2')),ids()
    a = drawn(adapter(m, 'mlp_out.0', 'mlp_in.0', r=3, scale=2.), .2)
    c = capture(m, x, ['mlp_in.0', 'mlp_out.0'])
    with adapted(m, a): got = capture(m, x, 'mlp_out.0')  # hooks of reading come after those of the block
    with edited(m, {'mlp_out.0': lambda t: c['mlp_out.0']+2*(torch.relu(c['mlp_in.0']@a.down+a.bias)@a.up)}): want = m.logits(x)
    with adapted(m, a): torch.testing.assert_close(m.logits(x), want)
    torch.testing.assert_close(got['mlp_out.0'], c['mlp_out.0']+2*a.delta(c['mlp_in.0']).detach())

def test_a_low_rank_update_of_an_output_is_one_of_the_weights():
    m,x = load_model(tiny('llama')),ids()
    a = drawn(adapter(m, 'q.1', 'model.layers.1.self_attn.q_proj:in', r=2, form='linear', scale=.5), .3)
    with adapted(m, a): got = m.logits(x)
    W = m.module.model.layers[1].self_attn.q_proj.weight; was = W.detach().clone()
    with torch.no_grad(): W += .5*(a.down@a.up).T
    torch.testing.assert_close(got, m.logits(x), atol=1e-4, rtol=1e-4)
    with torch.no_grad(): W.copy_(was)

@pytest.mark.parametrize('site', ['q.0', 'k.1', 'v.1'])
def test_parts_of_a_fused_projection_are_trained(site):
    m,x = load_model(tiny('gpt2')),ids(); a = drawn(adapter(m, site, 'resid_pre.'+site[-1], r=2), .2)
    with adapted(m, a): m.module(x).logits.log_softmax(-1)[...,3].mean().backward()
    assert a.up.grad.abs().max()>0 and a.down.grad.abs().max()>0

def test_one_is_an_edit_with_positions_and_several_act_in_turn():
    m,x = load_model(tiny('gpt2')),ids(); a,b = (drawn(adapter(m, 'resid_post.1', r=2, seed=s), .3, s) for s in (0, 1))
    with edited(m, {'resid_post.1': Edit(a, positions=(-1,))}): y = m.logits(x)
    torch.testing.assert_close(y[:,:-1], m.logits(x)[:,:-1]); assert (y[:,-1]-m.logits(x)[:,-1]).abs().max()>1e-2
    with adapted(m, a, b): y = m.logits(x)
    with edited(m, {'resid_post.1': lambda t: b(a(t))}): torch.testing.assert_close(y, m.logits(x))

def test_the_change_is_no_longer_than_allowed():
    a,x = drawn(Adapter('s', 6, r=4, most=.5)),torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    n = a.delta(x).norm(dim=-1)
    assert n.max()<=.5001 and (n>.499).any()
    free = Adapter('s', 6, r=4); free.load_state_dict(a.state_dict())
    short = free.delta(x).norm(dim=-1)<.5
    torch.testing.assert_close(a.delta(x)[short], free.delta(x)[short])

def test_a_prompt_takes_the_place_of_embeddings():
    m,x = load_model(tiny('gpt2')),ids(); p = Prompt(32, n=3)
    long = room(x, 3)
    assert long.shape==(3, 12) and long[:,4:].equal(x[:,1:]) and not long[:,1:4].any()
    with torch.no_grad(): p.vectors.copy_(m.module.transformer.wte.weight[[7, 8, 9]])
    real = long.clone(); real[:,1:4] = torch.tensor([7, 8, 9])
    with adapted(m, p): torch.testing.assert_close(m.logits(long), m.logits(real))
    with adapted(m, p): assert m.logits(long).equal(m.logits(real))
    with pytest.raises(ValueError, match='no room for 3'):
        with adapted(m, p): m.logits(x[:,:2])

# ---- learning ----

@pytest.mark.parametrize('make', [lambda m: adapter(m, 'resid_post.0', r=4), lambda m: adapter(m, 'mlp_out.1', 'mlp_in.1', scale=4.), lambda m: adapter(m, 'v.1', 'model.layers.1.self_attn.v_proj:in', form='linear'), lambda m: prefix(m, 1), lambda m: Prompt(32, 2)], ids=['sequential', 'parallel', 'low rank', 'prefix', 'prompt'])
def test_each_kind_learns_and_the_model_stays_as_it_was(make):
    m = load_model(tiny('llama')); x = ids(1).repeat(4, 1); was,a = {k: v.clone() for k,v in m.module.state_dict().items()},make(m)
    m.module.train()
    log = fit_adapters(m, a, [x], steps=25, lr=.03)
    assert log[-1]<log[0]-.05
    assert all(v.equal(was[k]) for k,v in m.module.state_dict().items()) and m.module.training
    assert all(p.grad is None and p.requires_grad for p in m.module.parameters()) and n_hooks(m.module)==0

def test_a_changed_weight_is_noticed():
    m = tiny('gpt2')
    with pytest.raises(RuntimeError, match='were changed'):
        with frozen(m): m.transformer.wte.weight.data[5,3] += 1e-3  # past autograd's own counters
    c = checksum(m); m.transformer.h[0].ln_1.bias.data[0] += 1e-6
    assert checksum(m)!=c
    a = Adapter('resid_post.0', 32)
    def bad(y, x): m.transformer.wte.weight.data += 1e-3; return next_token_loss(y, x)
    with pytest.raises(RuntimeError, match='were changed'): fit_adapters(m, a, [ids()], bad, steps=1)
    assert all(p.requires_grad for p in m.parameters())

def test_how_far_states_are_moved():
    m,x = load_model(tiny('gpt2')),ids(); v = torch.randn(32, generator=torch.Generator().manual_seed(3))
    class Shift(nn.Module):
        site = 'resid_post.0'
        def edits(self): return {self.site: lambda t: t+v}
    assert moved_by(m, Shift(), x)['resid_post.0']==pytest.approx(float(v.norm()), rel=1e-4)
    assert moved_by(m, adapter(m, 'resid_post.0'), x)=={'resid_post.0': 0.}

def test_what_cannot_be_is_refused():
    m,x = load_model(tiny('gpt2')),ids()
    with pytest.raises(UnknownName, match='unknown form'): Adapter('a', 4, form='relo')
    with pytest.raises(UnknownName, match='unknown site'): adapter(m, 'resid_pst.0')
    with pytest.raises(ValueError, match='bottleneck of at least 1'): Adapter('a', 4, r=0)
    with pytest.raises(ValueError, match='use adapted'): adapter(m, 'mlp_out.0', 'mlp_in.0')(torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match='needs the scores'):
        with edited(m, edits(prefix(m, 0))): m.logits(x)
    with pytest.raises(ValueError, match='was not reached before'):
        with adapted(m, adapter(m, 'mlp_out.0', 'mlp_in.1')): m.logits(x)
    with pytest.raises(ValueError, match='depends on no adapter'): fit_adapters(m, adapter(m, 'resid_post.0'), [x], lambda y, x: torch.tensor(1.))
    with pytest.raises(ValueError, match='at least one adapter'): fit_adapters(m, [], [x])
    with pytest.raises(ValueError, match='at step 0'): fit_adapters(m, drawn(adapter(m, 'resid_post.0')), [x], lambda y, x: y.logits.sum()*float('nan'))
    assert n_hooks(m.module)==0
