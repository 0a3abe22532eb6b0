"The machine and its model: what is drawn, learned once and kept, scored against oracles that know the machine"
import copy, itertools, math
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from sparsenb.core import dictionaries, settings, testbeds
from sparsenb.dictionary import Codes

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
small = dict(base=4, edges=3, d_model=32, n_heads=2, d_mlp=6, transitions=6, n_steps=350) # 16 states, 12 neurons
gen = lambda seed=0: torch.Generator().manual_seed(seed)

@pytest.fixture(scope='module')
def bed(): return testbeds['tokfsm'](**small)

class Knows(nn.Module):
    "The machine's own chances, as logits; `out` may be another machine's"
    def __init__(self, bed, out): super().__init__(); self.bed,self.p = bed,torch.zeros(bed.n_states, bed.base, bed.base).view(bed.n_states, -1).scatter_(1, out, 1/out.shape[1]).view(bed.n_states, bed.base, bed.base)
    def forward(self, ids):
        b,n = self.bed.base,ids.shape[1]
        logits = torch.zeros(*ids.shape, b+1)
        for t in range(n):
            if t<2: q = torch.full((len(ids), b), 1/b)
            elif t%2==0: q = self.p[ids[:,t-1]*b+ids[:,t]].sum(2)
            else:
                joint = self.p[ids[:,t-2]*b+ids[:,t-1], ids[:,t]]
                q = joint/joint.sum(1, keepdim=True).clamp_min(1e-9)
            logits[:,t,:b] = q.clamp_min(1e-9).log(); logits[:,t,b] = -30
        return logits

# ---- the machine ----

def test_building_costs_nothing_and_repeats():
    before = torch.get_rng_state()
    a,b,c = testbeds['tokfsm'](),testbeds['tokfsm'](),testbeds['tokfsm'](seed=1)
    assert torch.equal(a.out, b.out) and not torch.equal(a.out, c.out) and a._model is None
    assert a.out.shape==(100, 10) and all(len(set(r))==10 for r in a.out.tolist()) and a.net['d_mlp']*a.net['n_layers']<a.n_states
    ids,states = a.walks(200, a.generator(5))
    assert ids.shape==(200, 25) and (ids[:,0]==10).all() and ids[:,1:].max()==9
    assert torch.equal(ids[:,1::2]*10+ids[:,2::2], states) and (a.out[states[:,:-1]]==states[:,1:,None]).any(2).all()
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'
    with pytest.raises(ValueError, match='edges must be in 1..base²=16, got 17'): testbeds['tokfsm'](base=4, edges=17)

def test_edges_are_equally_likely(bed):
    _,s = bed.walks(4000, gen())
    pairs = torch.zeros(16, 16).index_put_((s[:,:-1].flatten(), s[:,1:].flatten()), torch.tensor(1.), accumulate=True)
    p = (pairs/pairs.sum(1, keepdim=True)).gather(1, bed.out)
    assert (p-1/3).abs().max()<.06

# ---- the measures, against what they must be ----

def test_a_model_that_is_the_machine_scores_one(bed):
    knows,(ids,s) = Knows(bed, bed.out),bed.walks(300, gen(1))
    p = bed.next_states(knows, ids)
    torch.testing.assert_close(p, torch.zeros(300, 16).scatter_(1, bed.out[s[:,-1]], 1/3), rtol=0, atol=1e-5)
    assert bed.known(p, s[:,-1]).mean()==1
    other = Knows(bed, testbeds['tokfsm'](**small|dict(seed=5)).out)
    assert abs(bed.known(bed.next_states(other, ids), s[:,-1]).mean()-3/16)<.12, 'another machine: chance'

def test_divergence_at_its_known_points():
    from sparsenb.testbeds.tokfsm import js
    p,q = torch.tensor([[.5, .5, 0], [1, 0, 0], [.5, .5, 0]]),torch.tensor([[.5, .5, 0], [0, 1, 0], [1, 0, 0]])
    got = js(p, q)
    assert got[0]==0 and got[1]==pytest.approx(1)
    m = np.array([.75, .25]); kl = lambda a: sum(x*math.log2(x/y) for x,y in zip(a, m) if x)
    assert got[2]==pytest.approx((kl([.5, .5])+kl([1, 0]))/2, abs=1e-6)

def test_best_units_by_hand():
    from sparsenb.testbeds.tokfsm import best_neurons, best_units, hits
    truth = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2]), 3).float()
    on = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 1, 0]]).bool()
    unit = best_units(on, truth)
    assert unit.tolist()==[0, 1, 2] or unit.tolist()==[0, 3, 2]  # for state 1: precision 1, recall 1/2, against 1/2 and 1: both F1 2/3
    hit,fired,there = hits(on[:,torch.tensor([0, 1, 2])], truth)
    assert hit.tolist()==[2, 1, 2] and fired.tolist()==[3, 1, 2] and there.tolist()==[2, 2, 2]
    act = torch.tensor([[3., 0], [2, 5], [1, 4], [0, 3], [-1, 0], [-2, 0]])
    who,least = best_neurons(act, truth)
    assert who[0]==0 and least[0]==2 and who[1]==1 and least[1]==3

def test_exchange_of_the_whole_stream_is_reading_the_other(bed):
    "At the last layer's output nothing else is left; at no site nothing happens"
    module = bed.build().eval()
    (a,_),(b,_) = bed.walks(40, gen(2), 3),bed.walks(40, gen(3), 3)
    torch.testing.assert_close(bed.exchanged(module, {'blocks.1': nn.Identity()}, a, b), bed.next_states(module, b))
    torch.testing.assert_close(bed.exchanged(module, {}, a, b), bed.next_states(module, a))

# ---- the model that is trained ----

def test_the_machine_is_learned(bed):
    s = bed.score()
    assert s['state_accuracy'].value>=.95 and s['first_transition'].value>=.95
    best = (math.log(16)+5*math.log(3))/12
    assert best-.02<s['loss'].value<best+.08
    assert s['neuron_precision'].value<.9, 'fewer neurons than states: no neuron for each'
    assert s.to_dict()==bed.score().to_dict()

def test_learned_once_and_kept(bed, monkeypatch):
    want = copy.deepcopy(bed.model.module.state_dict())
    path = settings().cache/'tokfsm'
    assert len(list(path.iterdir()))==1
    again = testbeds['tokfsm'](**small)
    monkeypatch.setattr(type(bed), 'learn', lambda *a: pytest.fail('trained again'))
    for (k,v),w in zip(again.model.module.state_dict().items(), want.values()): torch.testing.assert_close(v, w, **exact, msg=k)
    with pytest.raises(pytest.fail.Exception, match='trained again'): testbeds['tokfsm'](**small|dict(n_steps=351)).model

def test_same_network_from_the_same_arguments(tmp_path, monkeypatch):
    tiny,got = small|dict(n_steps=15),[]
    for d in 'ab':
        monkeypatch.setenv('SPARSENB_CACHE', str(tmp_path/d))
        torch.manual_seed(ord(d)) # whatever state the global generator is in
        got.append(testbeds['tokfsm'](**tiny).model.module.state_dict())
    for k in got[0]: torch.testing.assert_close(got[0][k], got[1][k], **exact, msg=k)
    next((tmp_path/'a'/'tokfsm').iterdir()).write_bytes(b'not weights')
    monkeypatch.setenv('SPARSENB_CACHE', str(tmp_path/'a'))
    with pytest.warns(UserWarning, match='is damaged .* trained again'): again = testbeds['tokfsm'](**tiny).model.module.state_dict()
    for k in got[0]: torch.testing.assert_close(got[0][k], again[k], **exact, msg=k)

def test_rows_and_truth(bed):
    a,b = bed.sample(500),testbeds['tokfsm'](**small).sample(500)
    torch.testing.assert_close(a.x, b.x, **exact)
    assert a.x.shape==(500, 32) and a.f.shape==(500, 16) and (a.f.sum(1)==1).all()
    first = list(itertools.islice(bed, 2))
    assert first[0].shape==(bed.batch_size, 32) and torch.equal(first[0], next(iter(bed))) and not torch.equal(first[0], first[1])
    assert bed.features.shape==(16, 32) and torch.allclose(bed.features.norm(dim=1), torch.ones(16))

class Told(nn.Module):
    "A dictionary that is told the state of each row of the score, and writes that state's mean"
    name,d_in,d_sae,rebuilds = 'told',32,16,True
    def __init__(self, bed, n=8192, wrong=0.):
        super().__init__()
        x,f = bed.sample(n)
        self.W_dec = nn.Parameter(f.t()@x/f.sum(0)[:,None])
        said = torch.where(torch.rand(n, generator=gen())<wrong, torch.randint(16, (n,), generator=gen(1)), f.argmax(1))
        self.state = {r.numpy().tobytes(): s for r,s in zip(x, said.tolist())}
    def codes(self, x):
        idx = torch.tensor([[self.state[r.numpy().tobytes()]] for r in x])
        return Codes(idx, torch.ones(idx.shape))
    def decode_codes(self, c): return self.W_dec[c.idx[:,0]]

def test_score_knows_truth_from_chance(bed):
    true,half,chance = bed.score(Told(bed)),bed.score(Told(bed, wrong=.5)),bed.score(dictionaries['codebook'](32, 16, k=1))
    assert true['precision'].value==true['recall'].value==true['l0'].value==1 and true['dead'].value==0
    for k in ('precision', 'recall'): assert abs(half[k].value-(.5+.5/16))<.02, k
    assert chance['precision'].value<.5 and chance['fvu'].value>true['fvu'].value
    x,f = bed.sample(8192)
    within = (x-(f@(f.t()@x/f.sum(0)[:,None]))).square().sum()/(x-x.mean(0)).square().sum()
    assert true['fvu'].value==pytest.approx(within.item(), rel=1e-4)
    for k,s in true.items(): assert s.lo<=s.value+1e-6 and s.value<=s.hi+1e-6 and k in true.about, k
    with pytest.raises(ValueError, match='width'): bed.score(dictionaries['codebook'](31, 16, k=1))

def test_a_model_on_codes_keeps_the_machine(bed):
    "Model and codebooks at both attentions, trained together: states survive, codes beat neurons, and inserted codes act"
    from sparsenb.dictionaries.codebook import finetune
    was = copy.deepcopy(bed.model.module.state_dict())
    module = copy.deepcopy(bed.model.module)
    books = {s: dictionaries['codebook'](32, 128, k=1, replace_every=50) for s in ('blocks.0.attn', 'blocks.1.attn')}
    g = bed.generator(9)
    finetune(module, books, (bed.walks(128, g).ids for _ in range(250)), lr=2e-3)
    s = bed.score(books, model=module)
    assert s['state_accuracy'].value>=.9 and s['code_precision'].value>s['neuron_precision'].value+.2
    assert s['js_inserted'].value<.6*s['js_before'].value and s['js_own'].value<.1
    for k,v in bed.model.module.state_dict().items(): torch.testing.assert_close(v, was[k], **exact, msg='the testbed\'s own model was changed')
