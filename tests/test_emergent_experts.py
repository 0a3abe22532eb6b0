"Groups of neurons: planted groups are found and asked, shares and routers by hand, groups by chance as the null, all groups at work change nothing"
import numpy as np, pytest, torch
from scipy.linalg import hadamard
from sparsenb.analyses.emergent_experts import balanced_groups, emergent_experts, routers, said, working
from sparsenb.models import load_model

torch.set_num_threads(1)
def same_parts(a, b): return len({*zip(a, b)})==len({*a})==len({*b})

@pytest.mark.parametrize('seed', range(6))
def test_planted_groups_are_found(seed):
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(8), 12))
    keys = rng.normal(size=(8, 32))[truth]+.3*rng.normal(size=(96, 32))
    got = balanced_groups(keys*rng.uniform(.2, 5, (96, 1)), 8, seed)
    assert same_parts(truth, got), 'lengths of keys do not matter'
    assert (got==balanced_groups(keys, 8, seed)).all()

def test_groups_are_of_equal_size_whatever_the_keys():
    rng = np.random.default_rng(0)
    lopsided = np.r_[np.tile([1., 0, 0], (20, 1)), rng.normal(size=(3, 3))]
    for n in (1, 2, 5, 7, 23): assert np.ptp(np.bincount(balanced_groups(lopsided, n), minlength=n))<=(23%n>0)
    assert np.bincount(balanced_groups(np.zeros((6, 2)), 3)).tolist()==[2, 2, 2]
    for n in (0, 24):
        with pytest.raises(ValueError, match=f'23 neurons fall into 1 to 23 groups, got n_groups={n}'): balanced_groups(lopsided, n)

def test_shares_by_hand():
    a,w,g = torch.tensor([[1., -2, 0, 3], [0, 0, 0, 0]]),torch.tensor([2., 1, 9, 1]),[0, 1, 1, 0]
    torch.testing.assert_close(said(a, w, g), torch.tensor([[5/7, 2/7], [0, 0]]))
    torch.testing.assert_close(said(7*a, w/3, g)[0], torch.tensor([5/7, 2/7]), msg='units')
    assert routers(torch.tensor([[1., 0], [0, 4], [0, 2], [3, 0]]), g).tolist()==[[2, 0], [0, 3]]

def test_what_works():
    gen = torch.Generator().manual_seed(0)
    a,x,keys,g = torch.randn(3, 5, 12, generator=gen),torch.randn(3, 5, 6, generator=gen),torch.randn(12, 6, generator=gen),np.arange(12)%4
    for way in ('strongest', 'asked', 'chance'):
        see,act = working(way, 2, keys, torch.ones(12), g, seed=1)
        assert see(x) is x
        on = (act(a)!=0).float()@torch.nn.functional.one_hot(torch.tensor(g)).float()
        assert ((on==0)|(on==3)).all() and (on.sum(-1)==6).all(), 'whole groups, two of them'
        want = dict(strongest=said(a, torch.ones(12), g), asked=x@routers(keys, g).T).get(way)
        if want is not None: assert ((on>0)==torch.zeros_like(want).scatter(-1, want.topk(2, -1).indices, 1.).bool()).all()
    assert (working('asked', 4, keys, torch.ones(12), g)[0](x) is x) and torch.equal(working('strongest', 4, keys, torch.ones(12), g)[1](a), a)
    for kw,said_ in (((('best', 1)), 'way must be one of strongest, asked, chance'), (('asked', 5), '1 to 4 groups can work, got k=5'), (('asked', 0), 'got k=0')):
        with pytest.raises(ValueError, match=said_): working(*kw, keys, torch.ones(12), g)

@pytest.fixture(scope='module')
def planted():
    "A model whose neurons are four groups in random order, each for the tokens of one kind; attention writes nothing"
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    m = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, activation_function='relu', bos_token_id=None, eos_token_id=None)).eval()
    centres,rng,truth = torch.tensor(hadamard(16)[1:5]).float(),np.random.default_rng(0),[]
    with torch.no_grad():
        m.transformer.wpe.weight.zero_(); m.transformer.wte.weight.copy_(centres.repeat(10, 1))
        for b in m.transformer.h:
            b.attn.c_proj.weight.zero_(); b.attn.c_proj.bias.zero_(); b.mlp.c_fc.bias.zero_()
            truth.append(rng.permutation(np.arange(64)%4))
            b.mlp.c_fc.weight.copy_((centres[truth[-1]]*torch.tensor(rng.uniform(.5, 1.5, (64, 1))).float()).T)
            b.mlp.c_proj.weight.copy_(.05*torch.randn(64, 4)@torch.tensor(hadamard(16)[5:9]).float()) # nothing that another group reads
    return load_model(m), truth

def test_a_model_that_is_one(planted):
    model,truth = planted
    ids = torch.randint(0, 40, (12, 20), generator=torch.Generator().manual_seed(1))
    r = emergent_experts(model, ids, n_groups=4, k=1, seed=0)
    assert all(same_parts(t, r.groups[l]) for l,t in enumerate(truth))
    assert r['strongest'].value==pytest.approx(1, abs=1e-5)==r['asked'].value and abs(r['ce_asked'].value)<1e-5 and abs(r['ce_strongest'].value)<1e-5
    assert r['strongest_by_chance'].value<.85 and r['asked_by_chance'].value<.85, 'groups by chance share a kind of token'
    assert r['asked'].n==12*20 and r['ce_asked'].n==12*19
    np.testing.assert_allclose(r.load.sum(1), 1, atol=1e-5); np.testing.assert_allclose(r.chosen.sum(1), 1, atol=1e-5)
    kind = ids%4
    for l in (0, 1): # a group is chosen as often as its kind of token comes
        share = np.sort([(kind==c).float().mean().item() for c in range(4)])
        np.testing.assert_allclose(np.sort(r.chosen[l]), share, atol=1e-5)

def test_all_groups_at_work_change_nothing():
    r = emergent_experts('stdlib-4l', torch.randint(2, 400, (4, 16), generator=torch.Generator().manual_seed(1)), n_groups=8, k=8, layers=(1, 3), seed=0)
    assert [r[k].value for k in ('strongest', 'asked', 'strongest_by_chance', 'asked_by_chance')]==pytest.approx([1]*4, abs=1e-5)
    assert max(abs(r[k].value) for k in r.scores if k.startswith('ce_'))<1e-5 and r.layers==(1, 3) and (r.chosen==1).all()

def test_few_groups_of_a_real_model():
    r = emergent_experts('stdlib-4l', n_groups=32, k=8, n_tokens=1024, length=64, seed=3)
    assert r['strongest'].value>r['strongest_by_chance'].value+.01 and r['asked'].value>r['asked_by_chance'].value+.01>8/32
    assert 0<r['ce_asked'].value<r['ce_chance'].value and r['ce_asked'].value<r['ce_asked_by_chance'].value
    table,layers,heat = r.views()
    assert len(table.rows)==10 and len(layers.rows)==4 and heat.z.shape==(4, 32) and '8 of 32 groups' in r.about and 'strongest' in repr(r)
    f = r.fires('x = [1, 2, 3]', layer=2, most=6)
    assert isinstance(f, type(heat)) and f.z.shape[1]==32 and len(f.z)<=6; np.testing.assert_allclose(f.z.sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match='layers with groups are 0, 1, 2, 3, got 7'): r.fires('x', layer=7)

def test_what_is_refused():
    for kw,said_ in ((dict(layers=(4,)), r'layers are 0 to 3, got \[4\]'), (dict(k=0), 'got k=0'), (dict(n_groups=4, k=5), 'k groups of 4 work, 1 to 4, got k=5'), (dict(n_groups=5000), '1024 neurons fall into 1 to 1024 groups, got n_groups=5000')):
        with pytest.raises(ValueError, match=said_): emergent_experts('stdlib-4l', n_tokens=128, length=32, **kw)
