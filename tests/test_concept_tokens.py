"Pictures of tokens: what is drawn, readers, signals, and a transformer that learns to write them"
import numpy as np, pytest, torch
from sparsenb.core import testbeds
from sparsenb.recorder import Checkpoints
from sparsenb.testbeds.concept_tokens import ConceptTokens

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
tiny = dict(n_steps=4, every=2, width=16, batch_size=8)

def test_pictures_and_signals_by_hand():
    bed = ConceptTokens(painted=2)
    assert bed.picture((1, 1, 1), (1, 2)).tolist()==[[0]*6, [0, 0, 0, 2, 0, 0], [0, 0, 2, 3, 3, 0], [0, 0, 0, 3, 0, 0], [0]*6, [0]*6]
    assert int((bed.picture((0, 0, 0))>0).sum())==25 and int((bed.picture((1, 0, 0))>0).sum())==21
    for p in (1, 3, 5): assert ConceptTokens(painted=p).signals()['colour']==p
    s = bed.signals()
    assert s['size']>=12>s['shape']>=4

@pytest.mark.parametrize('kw', [dict(), dict(painted=1), dict(k=8)])
def test_readers_are_exact(kw):
    bed = ConceptTokens(**kw)
    s = bed.sample(150)
    assert {''.join(map(str, r)) for r in s.z.tolist()}==set(bed.classes)
    torch.testing.assert_close(bed.read(s.ids[:,4:]), s.z.float(), **exact)
    assert bed.read(torch.zeros(2, bed.k**2, dtype=torch.long)).tolist()==[[.5, .5, .5]]*2 # nothing drawn
    g = torch.Generator().manual_seed(0)
    z = bed.read(torch.randint(4, (50, bed.k**2), generator=g))
    assert torch.isfinite(z).all() and bed.shown(s.ids[:,4:]).shape==(4, bed.k, bed.k, 3)

def test_the_same_each_time_without_the_global_generator(tmp_path):
    before = torch.get_rng_state()
    a,b,c = (ConceptTokens(**tiny, **kw).train() for kw in ({}, {}, dict(seed=1)))
    assert torch.equal(before, torch.get_rng_state()) and list(a)==[0, 2, 4]
    for k in a[4]: torch.testing.assert_close(a[4][k], b[4][k], **exact)
    assert not torch.equal(a[4]['head.weight'], c[4]['head.weight'])
    rec = ConceptTokens(**tiny).train(Checkpoints(tmp_path))
    for k in a[4]: torch.testing.assert_close(rec.tensor(k, 4), a[4][k], **exact)
    assert all(z.sum()<2 for z in next(iter(ConceptTokens())).z) # withheld in every batch
    for kw,said in ((dict(painted=6), '1 to 5'), (dict(painted=0), '1 to 5'), (dict(k=4), 'k=5 at least')):
        with pytest.raises(ValueError, match=said): ConceptTokens(**kw)
    with pytest.raises(ValueError, match='leaves 6 × 6 pixels'): ConceptTokens().picture((0, 0, 1), (4, 0))
    assert testbeds['concept_tokens'] is ConceptTokens

def test_it_writes_only_after_what_came_before():
    net = ConceptTokens().build()
    ids = ConceptTokens().sample(2).ids
    other = ids.clone(); other[:,20:] = 1
    with torch.no_grad(): torch.testing.assert_close(net(ids)[:,:20], net(other)[:,:20])

def test_size_is_learned_before_one_pixel_of_colour():
    bed = ConceptTokens(painted=1, n_steps=100, every=10)
    s = bed.concept_space(n=6, classes=('000', '001', '010', '011'))
    assert s.train.tolist()==[True]*3+[False] and s.made['011'][-1].shape==(4, 6, 6, 3)
    gap = lambda c,i: np.abs(s[c][:,i]-s['000'][:,i]) # what a prompt makes of a concept
    half = lambda g: next((k for k in range(len(g)-1) if (g[k:k+2]>.5).all()), len(g))
    assert half(gap('001', 2))<len(s.steps) and half(gap('001', 2))<=half(gap('010', 1)), (gap('001', 2), gap('010', 1))
