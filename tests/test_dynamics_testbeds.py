"Networks whose learning is known: closed forms, directions from the start alone, frequencies, and what each score says"
import numpy as np, pytest, torch
from sparsenb.core import UnknownName, testbeds
from sparsenb.recorder import Checkpoints

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
quick = dict(linear_concepts=dict(n_steps=40, every=20), early_alignment=dict(n_steps=40, every=20), unequal_features=dict(n_steps=40, every=20, width=16), modular_addition=dict(n_steps=40, every=20, p=7, width=16))
beds = pytest.mark.parametrize('name', quick)

# ---- what all have in common ----

@beds
def test_from_no_arguments_the_same_each_time_without_the_global_generator(name, tmp_path):
    make = lambda **kw: testbeds[name](**(quick[name]|kw))
    testbeds[name]()
    before = torch.get_rng_state()
    a,b,c = make().train(),make().train(),make(seed=1).train()
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'
    assert list(a)==[0, 20, 40]
    for s in a:
        for k in a[s]: torch.testing.assert_close(a[s][k], b[s][k], **exact)
    assert any(not torch.equal(a[40][k], c[40][k]) for k in a[40])
    rec = make().train(Checkpoints(tmp_path)) # the recorder sees what memory kept
    assert rec.steps==[0, 20, 40] and rec[20].loss>0
    for k in a[40]: torch.testing.assert_close(rec.tensor(k, 40), a[40][k], **exact)
    own = {k: v.clone() for k,v in make().build().state_dict().items()} if name!='early_alignment' else dict(make().build())
    for k in own: torch.testing.assert_close(a[0][k], own[k].detach(), **exact)

@beds
def test_scores_say_what_they_are(name):
    bed = testbeds[name](**quick[name])
    e = bed.score(seeds=2) if name=='linear_concepts' else bed.score(dynamics=bed.dynamics(n_rows=40, neighbours=5)) if name=='modular_addition' else bed.score()
    assert len(e)>=3 or name=='linear_concepts'
    for k,s in e.items(): assert k in e.about and s.version and s.seed==0 and s.n>0
    assert e._repr_html_() and repr(e)

# ---- linear_concepts ----

def test_linear_learning_times_are_the_closed_form():
    bed = testbeds['linear_concepts']()
    assert list(bed.times().values())==pytest.approx([4.552, 8.410], abs=5e-4)
    e = bed.score(seeds=2)
    assert e['error'].value<.02 and e['order'].value==1 and e['ratio'].value==pytest.approx(8.410/4.552, rel=.02)
    other = testbeds['linear_concepts'](signals=(.7, .9), a0=.01)
    assert other.measured()==pytest.approx(other.times(), rel=.02)

def test_the_stronger_concept_is_learned_first():
    "Ten unequal runs: five seeds, both assignments"
    from sparsenb.testbeds.linear_concepts import LinearConcepts
    a,b = (LinearConcepts('mlp', s).score(seeds=5) for s in ((1., .4), (.4, 1.)))
    assert a['order'].value==b['order'].value==1 and min(a['ratio'].value, b['ratio'].value)>=1.4, (a, b)

def test_the_lead_of_an_over_prompt_is_gain_and_is_called_so():
    for seed in range(3):
        bed = testbeds['linear_concepts']('mlp', (1., .4), seed=seed)
        c = bed.capability()
        assert c.times['over: both']<c.times['naive'] and not c.controls['over: both']['more than gain'] and c['over: both']=='gain'
        assert 'hidden' not in c.verdicts.values() and all(v['unlearned fails'] for v in c.controls.values()) and c.table().rows

def test_linear_concepts_refuses():
    make = testbeds['linear_concepts']
    for kw,said in ((dict(signals=(1.,)), 'two strengths'), (dict(signals=(1., -1.)), 'two strengths'), (dict(d=1), '2 dimensions')):
        with pytest.raises(ValueError, match=said): make(**kw)
    with pytest.raises(UnknownName, match="did you mean 'mlp'"): make('mlpp')
    with pytest.raises(ValueError, match='no concept is to be learned first'): make(signals=(1., 1.)).score()

# ---- early_alignment ----

@pytest.mark.parametrize('seed', [0, 1])
def test_neurons_turn_before_the_loss_falls(seed):
    bed = testbeds['early_alignment'](seed=seed)
    s = bed.score()
    assert s['ratio'].value>1.3 and s['at_start'].value<.7 and s['before_fall'].value>.95 and s['final_loss'].value<.05, s

def test_alignment_needs_a_small_start_and_directions_come_from_it_alone():
    large = testbeds['early_alignment'](scale=1., n_steps=400).score()
    assert large['before_fall'].value<.9, large
    bed = testbeds['early_alignment']()
    D,there = bed.features()
    x,y = bed.points; net = bed.build()
    j = int(there.nonzero()[0])
    by_hand = sum(abs(float(y[k]))*x[k] for k in range(len(y)) if net['w'][j]@x[k]>0 and net['a'][j]*y[k]>0)
    torch.testing.assert_close(D[j], by_hand/by_hand.norm())
    tr = bed.neurons({0: dict(net), 1: dict(net)})
    assert tr.array.shape==(int(there.sum()), 2, 2) and tr.plane().html()

# ---- unequal_features ----

@pytest.mark.parametrize('seed', [0, 1, 2])
def test_both_are_learned_and_the_linear_one_takes_many_times_the_room(seed):
    "Just when both are right; the paper shows .55 against .05"
    e = testbeds['unequal_features'](seed=seed).score()
    assert min(e['accuracy_linear'].value, e['accuracy_xor'].value)>.98 and e['ratio'].value>4 and e['share_linear'].lo>2*e['share_xor'].hi, e

def test_the_room_evens_out_with_confidence():
    "Trained on, the ratio falls: it says when one looked"
    bed = testbeds['unequal_features'](stop=None, every=500, n_steps=2000)
    ratio = (lambda d: d['linear']/d['xor'])(bed.dynamics()[1])
    assert ratio[-1]<3.5 and (np.diff(ratio[2:])<0).all(), ratio

def test_unequal_features_stops_when_both_are_learned_and_refuses():
    bed = testbeds['unequal_features']()
    run = bed.train()
    acc = bed.dynamics(run)[0]
    assert max(run)<bed.n_steps and max(run)%bed.every==0 and acc['xor'][0]<.6 and (acc['xor'][-3:]>.97).all() and acc['xor'][-4]<.995
    for kw,said in ((dict(start=0), 'size above 0'), (dict(stop=1.), 'between 0 and 1'), (dict(n_bits=2), '3 bits')):
        with pytest.raises(ValueError, match=said): testbeds['unequal_features'](**kw)

# ---- modular_addition ----

@pytest.fixture(scope='module')
def grokked():
    bed = testbeds['modular_addition']()
    return bed,bed.dynamics()

def test_it_groks(grokked):
    from sparsenb.testbeds.modular_addition import purity
    bed,d = grokked
    e = bed.score(dynamics=d)
    assert e['memorised'].value*3<e['grokked'].value<bed.n_steps and e['test_accuracy'].value>.98, e
    i,j = (int(np.flatnonzero(d.steps==e[k].value)[0]) for k in ('memorised', 'grokked'))
    assert d['test accuracy'][i]<.3 and d['restricted loss'][j]<.5 and e['purity'].value>.5>3*purity(bed.build().Ea.detach()).mean(), e
    half = (i+j)//2
    assert d['restricted loss'][half]<d['test loss'][half] and e['dimension_after'].value<e['dimension_before'].value, e
    f = bed.figure(d)
    assert f"all pairs at step {int(e['grokked'].value)}" in f.caption and set(f.series)=={'train loss', 'test loss', 'restricted loss', 'local dimension'} and f.html()

def test_modular_addition_refuses_and_splits():
    for kw,said in ((dict(p=51), 'p is a prime'), (dict(share=1.), 'between 0 and 1')):
        with pytest.raises(ValueError, match=said): testbeds['modular_addition'](**kw)
    q = testbeds['modular_addition'](p=11).sample()
    assert int(q.train.sum())==round(.4*121) and ((q.a+q.b)%11==q.y).all() and len({*zip(q.a.tolist(), q.b.tolist())})==121
