"Activation sparsity: closed forms of CETT, thresholds, WINA against every choice of inputs, experts counted by hand, interventions on real models"
from itertools import combinations
import numpy as np, pytest, torch
from sparsenb.analyses.activation_sparsity import _edits, activation_sparsity, cett, cut, left_out, losses, threshold
from sparsenb.analyses.expert_usage import entropy_share, expert_usage
from sparsenb.analyses.wina import edits, kept_inputs, linear_maps, wina
from sparsenb.hooks import edited
from sparsenb.models import load_model

torch.set_num_threads(1)
def gen(seed=0): return torch.Generator().manual_seed(seed)
IDS = torch.randint(2, 400, (6, 24), generator=gen(1))

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

def gpt(act='relu'):
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    return load_model(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=400, n_positions=32, activation_function=act, bos_token_id=0, eos_token_id=0)).eval())

@pytest.mark.parametrize('seed', range(5))
def test_cett_is_nothing_at_zero_all_at_the_end_and_rises(seed):
    a,W = torch.randn(200, 300, generator=gen(seed)).relu(),torch.randn(300, 24, generator=gen(seed+9))
    size = (a*W.norm(dim=1)).max().item()
    c = cett(a, W, np.linspace(0, size, 20))
    assert c[0]==0 and c[-1]==pytest.approx(1, abs=1e-5) and (np.diff(c)>-.002).all(), 'the norm of a sum: it may fall by a hair before it ends at 1'
    right = cett(a[:,:24], torch.linalg.qr(W[:24])[0], np.linspace(0, size, 20))
    assert (np.diff(right)>=0).all(), 'where neurons write at right angles it never falls'
    assert left_out(a, W, 0)[0]==pytest.approx(float((a==0).float().mean()), abs=1e-6)==pytest.approx(.5, abs=.01)
    assert cett(10*a, W, 10*np.array([1., 3]))==pytest.approx(cett(a, W, [1., 3]), rel=1e-4), 'units'
    turn = torch.linalg.qr(torch.randn(24, 24, generator=gen(seed)))[0]
    assert cett(a, W@turn, [1., 3])==pytest.approx(cett(a, W, [1., 3]), rel=1e-4), 'axes'

def test_cett_by_hand():
    a,W = torch.tensor([[1., -2, 3], [0, 1, 0], [0, 0, 0]]),torch.tensor([[1., 0], [0, 1], [2, 0]])
    # sizes 1, 2, 6 and 0, 1, 0; the last row writes nothing and does not count
    want = lambda *e: pytest.approx(np.mean(e), abs=1e-6)
    assert cett(a, W, 1)[0]==want(1/np.hypot(7, 2), 1) and cett(a, W, 2)[0]==want(np.hypot(1, 2)/np.hypot(7, 2), 1) and cett(a, W, .5)[0]==0
    both = torch.tensor([[1., -1, 1.]]),torch.tensor([[1., 0], [1., 0], [0, 5]])
    assert cett(*both, 1)[0]==0, 'the norm of the sum: these two cancel'

def test_thresholds_hit_their_error():
    a,W = torch.randn(256, 400, generator=gen(2)),torch.randn(400, 32, generator=gen(3))
    for t in (.1, .3, .6):
        e = threshold(a, W, t)
        assert cett(a, W, e)[0]<=t<=cett(a, W, e*1.02)[0]+.005
    assert threshold(a, W, 0)==0 and left_out(a, W, threshold(a, W, 1))[0]==pytest.approx(.99, abs=.002)

def test_what_is_cut():
    t = torch.tensor([[4., -1, 2, 3], [0, 5, -6, 1]])
    assert cut('topk', None, keep=1)(t).tolist()==[[4, 0, 0, 0], [0, 0, -6, 0]]
    assert cut('fat', None, 2.)(t).tolist()==[[4, 0, 0, 3], [0, 5, -6, 0]]
    assert cut('cett', torch.tensor([1., 9, 1, 0]), 3.)(t).tolist()==[[4, -1, 0, 0], [0, 5, -6, 0]]
    assert (cut('random', None, keep=2, seed=1)(torch.ones(50, 4)).sum(1)==2).all()
    with pytest.raises(ValueError, match="way must be one of cett, fat, topk, random, got 'top'"): cut('top', None)

@pytest.mark.parametrize('d', [27, 28, 56])
def test_one_threshold_for_all_layers_leaves_out_the_share_asked_for(d):
    "Also where the width is a multiple of 7, and neurons of one remainder are the larger ones"
    acts = {0: torch.rand(40, 50, d, generator=gen(0))*(1+torch.arange(d)%7)}
    f = _edits('fat', acts, {0: torch.ones(d, 3)}, share=.5)['mlp_act.0']
    assert float((f(acts[0])==0).float().mean())==pytest.approx(.5, abs=.02)

def test_costs_of_changes(model):
    m = model
    base = losses(m, IDS, {})
    assert base.shape==(6, 23) and np.allclose(base, losses(m, IDS, {'mlp_act.0': lambda t: t}, batch_size=4), atol=1e-5)
    ids = IDS.clone(); ids[:,0] = m.bos_id
    gone = losses(m, ids, {'mlp_act.1': torch.zeros_like})-losses(m, ids, {})
    assert np.abs(gone[:,0]).max()<1e-6<np.abs(gone[:,1:]).max(), 'the first token stays as it is'

def test_a_relu_model_loses_nothing_by_its_zeros():
    r = activation_sparsity(gpt(), IDS, p=.001, n_tokens=200, tol=.05, seed=0)
    zero = 1-r['nonzero'].value
    assert .3<zero<.7 and r['sparsity'].value>=zero-1e-6 and r['ce_cett'].value<=np.log1p(.001)+1e-9
    assert (np.diff(r.shares)>=0).all() and r.shares[0]==pytest.approx(zero, abs=1e-6)
    smooth = activation_sparsity(gpt('gelu'), IDS, p=.001, n_tokens=200, tol=.05, seed=0)
    assert smooth['nonzero'].value>.999 and smooth.shares[0]<.001
    with pytest.raises(ValueError, match='above 0'): activation_sparsity(gpt(), IDS, p=0)
    with pytest.raises(ValueError, match='layers are 0 to 1'): activation_sparsity(gpt(), IDS, layers=[2])

def test_the_bundled_model(model):
    r = activation_sparsity(model, layers=(1, 2), n_tokens=256, length=32, tol=.1, seed=0)
    print(r)
    assert r['ce_cett'].value<=np.log(1.01)+1e-9 and r['ce_random'].value>3*abs(r['ce_cett'].value) and r['ce_topk'].value<r['ce_random'].value
    for s in r.scores.values(): assert s.lo<=s.value<=s.hi and s.n==8*31
    for v in r.views(): assert v.html()

def test_wina_is_the_best_choice_for_orthogonal_columns():
    g = gen(4)
    W = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]*torch.rand(8, generator=g)
    norms = W.norm(dim=0)
    for x in torch.randn(20, 8, generator=g):
        def error(on): z = x.clone(); z[list(on)] = 0; return float((W@z).norm())
        best = min(combinations(range(8), 3), key=error)
        assert set(kept_inputs(x, 3/8, norms).nonzero()[:,0].tolist())=={*best}

def test_wina_is_better_than_size_where_columns_are_unequal():
    "At 70 % sparsity; with columns of equal length both are the same"
    g = gen(5)
    x,W = torch.randn(1000, 256, generator=g),torch.randn(128, 256, generator=g)
    def errors(W):
        norms = W.norm(dim=0)
        return [float(((x-z)@W.T).square().sum()/(x@W.T).square().sum()) for z in (kept_inputs(x, .3, norms), kept_inputs(x, .3))]
    by_product,by_size = errors(W*torch.arange(1, 257)**-1.)
    assert by_product<by_size/2 and by_product<.03
    same = errors(W/W.norm(dim=0))
    assert same[0]==pytest.approx(same[1], rel=1e-4)

def test_inputs_of_a_model(model):
    maps = linear_maps(model)
    assert len(maps)==28 and maps['model.layers.0.mlp.down_proj:in'].shape==(1024,) and all(s.endswith(':in') for s in maps)
    w = model.module.model.layers[1].self_attn.o_proj.weight
    torch.testing.assert_close(maps['model.layers.1.self_attn.o_proj:in'], w.detach().norm(dim=0))
    g = gpt()
    torch.testing.assert_close(linear_maps(g)['transformer.h.0.mlp.c_proj:in'], g.module.transformer.h[0].mlp.c_proj.weight.detach().norm(dim=1))
    with edited(model, edits(maps, 'wina', 1.)): same = model.logits(IDS)
    torch.testing.assert_close(same, model.logits(IDS))
    with pytest.raises(ValueError, match="got 'tael'"): edits(maps, 'tael', .5)

def test_fewer_inputs_cost_more(model):
    r = wina(model, keep=(.2, .6, 1.), n_tokens=256, length=64, seed=0)
    print(r)
    for w in ('wina', 'teal', 'random'): assert r[w][0]>r[w][1]>r[w][2]-1e-4 and abs(r[w][2])<1e-4
    assert r['wina'][1]<r['random'][1]/2 and r['teal'][1]<r['random'][1]/2
    for v in r.views(): assert v.html()

def test_experts_are_counted():
    from transformers import MixtralConfig, MixtralForCausalLM
    torch.manual_seed(0)
    moe = MixtralForCausalLM(MixtralConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=400, num_local_experts=4, num_experts_per_tok=2, bos_token_id=None)).eval()
    r = expert_usage(moe, IDS, seed=0, batch_size=4)
    with torch.no_grad(): z = moe(IDS, output_router_logits=True).router_logits
    for l,g in enumerate(z):
        want = [sum(e in sorted(range(4), key=lambda i: -row[i])[:2] for row in g.tolist()) for e in range(4)]
        assert r.counts[l].tolist()==want
    assert r.n==6*24 and (r.counts.sum(1)==2*r.n).all() and (r.surety[:,1]<=r.surety[:,0]).all()
    with torch.no_grad():
        gate = moe.model.layers[0].mlp.gate.weight
        gate.zero_()
    assert expert_usage(moe, IDS, seed=0).surety[0,0]==pytest.approx(1, abs=1e-6)
    assert expert_usage(moe, IDS, k=1, seed=0).unused[0]==.75, 'equal logits: the same expert always'
    for v in r.views(): assert v.html()
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
    some = Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=400, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, shared_expert_intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1], bos_token_id=None)).eval()
    assert expert_usage(some, IDS, seed=0).layers==(0, 2), 'layers without experts keep their numbers'
    assert entropy_share([1, 0])==0 and entropy_share([.5, .5])==1
    with pytest.raises(ValueError, match='no experts that could be counted'): expert_usage(gpt(), IDS)
