"Depth of a topic in two models whose features are known: how many fire, and what the answers lose without them (2508.21448)"
from types import SimpleNamespace
import pytest, torch
from torch import nn
from sparsenb.core import analyses, dictionaries
from sparsenb.hooks import capture
from sparsenb.models import load_model
from sparsenb.steering import Steering

D,TOPIC,REFUSE = 64,range(30),7
EYE = torch.eye(D)

class Model(nn.Module):
    "Each token shows one feature of the topic and one other; the answer is linear in them"
    def __init__(self, own, n_vocab):
        super().__init__()
        self.cfg = SimpleNamespace(vocab_size=n_vocab)
        g = torch.Generator().manual_seed(own)
        self.embed,self.block,self.unembed = nn.Embedding(n_vocab, D),nn.Identity(),nn.Linear(D, n_vocab, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(EYE[torch.arange(n_vocab)%own]*2+EYE[30+torch.randint(0, 34, (n_vocab,), generator=g)])
            self.unembed.weight.zero_()
            self.unembed.weight[REFUSE,:30] = 3.              # refusing is read from the topic alone
            self.unembed.weight[8:200,30:] = torch.rand(192, 34, generator=g)
            self.unembed.weight[200,:] = .5                   # one logit from both
    def forward(self, input_ids, **kw): return self.unembed(self.block(self.embed(input_ids)))

@pytest.fixture(scope='module')
def both():
    "name -> steering: the true features as a dictionary, on a model of 22 features of the topic and on one of 3"
    t,out = load_model('stdlib-4l').tokenizer,{}
    for name,own in dict(deep=22, shallow=3).items():
        d = dictionaries['topk'](D, D, k=2)
        with torch.no_grad(): d.W_enc.copy_(EYE); d.W_dec.copy_(EYE); d.b_enc.zero_(); d.b_dec.zero_()
        out[name] = Steering(load_model(Model(own, len(t)), tokenizer=t, name=name), d.eval(), 'block:out', special='change')
    return out

IDS = torch.arange(300, 940).view(4, 160)

def codes(s): return s.dictionary.encode(capture(s.model, IDS, s.site)[s.site]).detach().flatten(0, 1)

def test_richness_and_what_ablation_takes(both):
    f = {k: codes(s) for k,s in both.items()}
    r = analyses['feature_richness']({k: v.numpy() for k,v in f.items()}, {k: TOPIC for k in f}, n_boot=20, seed=0)
    assert r.every==dict(deep=22, shallow=3) and r.ratio['deep']==pytest.approx(22/3, abs=.01) and r.doubts==()
    for s,own in zip(both.values(), (22, 3)):
        gone = list(range(own//2+1))                         # some of the topic's features
        plain = s.model.logits(IDS)
        with s.steered([(i, 'ablate') for i in gone]): less = s.model.logits(IDS)
        W = s.model.module.unembed.weight.detach()
        took = codes(s)[:,gone]@s.dictionary.W_dec.detach()[gone]@W.T
        assert torch.allclose(plain-less, took.view_as(plain), atol=1e-5)
        touched = (W[:,gone]!=0).any(1)                       # only logits that read them change
        assert torch.equal(plain[...,~touched], less[...,~touched]) and touched.sum()==2
        refused = lambda y: int((y.argmax(-1)==REFUSE).sum())
        on = int((codes(s)[:,gone]>0).any(1).sum())
        assert refused(plain)==IDS.numel() and refused(less)==IDS.numel()-on and 0<on<IDS.numel()
        with s.steered([(i, 'ablate') for i in TOPIC]): assert refused(s.model.logits(IDS))==0
        assert torch.equal(s.model.logits(IDS), plain)
