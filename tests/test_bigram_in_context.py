"Bigrams in context: texts are what they say, memories written by hand recall all, random ones are at chance, and training finds them in an order"
import numpy as np, pytest, torch
from sparsenb.core import analyses, testbeds
from sparsenb.recorder import Checkpoints
from sparsenb.testbeds.bigram_in_context import BigramInContext, bigrams_of, memories, recalls, times

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
tiny = dict(vocab=8, triggers=2, length=10, d_model=16, n_steps=12, n_checkpoints=4, batch_size=8)

@pytest.mark.parametrize('fixed', [True, False])
def test_texts_are_what_they_say(fixed):
    bed = testbeds['bigram_in_context'](fixed=fixed, vocab=20)
    ids,after,count = bed.sample(400)
    torch.testing.assert_close(ids[:,1:], after[:,:-1], **exact)
    used = set()
    for row,nxt,c in zip(ids.tolist(), after.tolist(), count.tolist()):
        out,n = {},{}
        for t,u,k in zip(row, nxt, c):
            if not k: assert t not in n; continue
            n[t] = n.get(t, 0)+1
            assert k==n[t] and out.setdefault(t, u)==u!=t
        assert row[0] not in n and len(n)<=bed.triggers; used |= set(n)
    assert used==set(bed.candidates.tolist()) if fixed else len(used)>15
    if fixed: assert bed.frequency[bed.candidates].min()>=bed.frequency[bed.others].max()
    free = count==0
    seen = torch.zeros(20, 20).index_put_((ids[free], after[free]), torch.ones(()), accumulate=True)
    n = seen.sum(1, keepdim=True)
    assert ((seen/n-bed.table).abs()*n.sqrt())[n[:,0]>50].max()<2.5 # five standard errors

def test_the_same_each_time_and_the_recorder_sees_it(tmp_path):
    before = torch.get_rng_state()
    a,b,c = (BigramInContext(**tiny|kw).train() for kw in ({}, {}, dict(seed=1)))
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'
    rec = BigramInContext(**tiny).train(Checkpoints(tmp_path))
    assert list(a)==rec.steps==[0, 1, 5, 12] and rec[5].loss>0
    for k in a[12]: torch.testing.assert_close(a[12][k], b[12][k], **exact); torch.testing.assert_close(rec.tensor(k, 12), a[12][k], **exact)
    moved = {k for k in a[12] if not torch.equal(a[0][k], a[12][k])}
    assert moved=={'first.k.weight', 'second.k.weight', 'second.o.weight', 'ff.weight'} and not torch.equal(a[12]['ff.weight'], c[12]['ff.weight'])
    head = BigramInContext('in_context', **tiny|dict(batch_size=32)).train()
    assert not head[12]['ff.weight'].any() and head[12]['second.o.weight'].any()

def random_memories(bed):
    net,g = bed.build(),torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad: p.copy_(torch.randn(p.shape, generator=g)/bed.d_model**.5)
    return net

def test_memories_by_hand_recall_all_and_random_ones_nothing():
    "Near-orthonormal vectors: 65 tokens in 256 dimensions, as in the paper; every token can be a trigger, so chance is 1/65 for each"
    bed = BigramInContext(vocab=65, triggers=5, d_model=256, fixed=False)
    got = recalls(bed.by_hand(), bed.table)
    assert all(got[k]==1 for k in (*memories, 'W_F')) and got['bigram KL']<1e-3
    chance = recalls(random_memories(bed), bed.table)
    assert max(chance[k] for k in (*memories, 'W_F'))<.1 and chance['bigram KL']>.5
    net = bed.by_hand()
    with torch.no_grad(): # half of the pairs are forgotten
        P = net.pos; net.first.k.weight.copy_(sum(torch.outer(P[i+1], P[i]) for i in range(0, 62, 2)))
    assert recalls(net, bed.table)['W_K1']==pytest.approx(31/63, abs=.08)

def test_a_network_by_hand_does_the_task():
    bed = BigramInContext('in_context', vocab=65, triggers=5, d_model=384)
    s,again = bed.sample(60),bed.sample(60).count>1
    right = lambda net: float((net(s.ids).argmax(-1)==s.next)[again].double().mean())
    with torch.no_grad():
        hand = bed.by_hand()
        assert right(hand)>.98
        for part in (hand.first.k, hand.second.k, hand.second.o): # and needs all three
            w = part.weight.clone(); part.weight.zero_()
            assert right(hand)<.5
            part.weight.copy_(w)
        assert right(random_memories(bed))<.1

def test_training_finds_the_head(tmp_path):
    bed = BigramInContext('in_context', vocab=16, triggers=3, length=32, d_model=96, n_steps=120, n_checkpoints=20, lr=.05)
    rec = bed.train(Checkpoints(tmp_path/'run'))
    d = bed.dynamics(Checkpoints.open(tmp_path/'run'), 128)
    assert d['in-context accuracy'][-1]>.7>.25>d['in-context accuracy'][0] and d['in-context loss'][-1]<d['in-context loss'][0]/2, d
    t = times(d)
    assert t['W_O2']<t['W_K1'] and t['W_O2']<t['in-context accuracy'], t
    np.testing.assert_array_equal(d['W_K1'][0], 1/31) # all scores are 0, and the first comes first
    lo,hi = d.bounds['in-context accuracy'].T
    assert (lo<=d['in-context accuracy']).all() and (d['in-context accuracy']<=hi).all()
    assert not {'W_F', 'global accuracy', 'bigram KL'}&set(d.curves) # which the head alone does not learn
    f = bed.figure(d)
    assert {*memories, 'in-context accuracy', 'loss by first loss'}<=set(f.series) and f"W_O2 at step {t['W_O2']}" in f.caption and f.html()
    tr = bed.trajectory({'a': d, 'b': d})
    assert tr.array.shape==(2, len(rec), 4) and {e.label for e in tr.events}>={'W_O2', 'W_K1'} and tr.plot(curves=d).static()
    e = bed.score([d, d])
    assert e['in-context accuracy'].n==2 and set(e)==set(e.about) and e._repr_html_()
    from sparsenb.analyses.learning_dynamics import observed
    own,curves = observed(bed, rec)
    assert len(own['labels'])==len(bed.observed(rec)['labels']) and np.array_equal(curves['loss'], bed.dynamics(rec)['loss'])
    got = bed.observed(rec, 32)
    r = analyses['learning_dynamics'](**got, which=['cka'])
    assert r['cka'].steps.tolist()==rec.steps and len(got['labels'])==len(got['acts']['stream'][0])

def test_the_table_is_learned_beside_the_head():
    bed = BigramInContext(vocab=12, triggers=2, length=24, d_model=64, n_steps=60, n_checkpoints=8)
    d = bed.dynamics(n=128)
    assert d['global accuracy'][-1]>.5>.3>d['global accuracy'][0] and d['bigram KL'][-1]<d['bigram KL'][0] and set(bed.figure(d).series)>={'W_F', 'global accuracy'} and [*d.panels]==['cross-entropy and KL, nats', 'accuracy', 'recall']

def test_other_tables_and_what_is_refused():
    table,letters = bigrams_of('the cat sat on the mat')
    assert table[letters.index('h'), letters.index('e')]==pytest.approx((2+.1)/3) and torch.allclose(table.sum(1), torch.ones(10))
    bed = BigramInContext(table=table, triggers=2, length=16, d_model=16)
    assert bed.vocab==10 and bed.sample(5).ids.max()<10 and letters[int(bed.frequency.argmax())] in 't a'
    for kw,said in ((dict(task='context'), "'both' or 'in_context'"), (dict(triggers=32), 'triggers must be in 1..vocab-1=31'), (dict(length=3), 'at least 4'), (dict(table=torch.ones(3, 3), triggers=1), 'rows sum to 1'), (dict(table=torch.eye(3)[:2], triggers=1), 'shape')):
        with pytest.raises(ValueError, match=said): BigramInContext(**kw)
    with pytest.raises(ValueError, match='3 different characters'): bigrams_of('ab')
