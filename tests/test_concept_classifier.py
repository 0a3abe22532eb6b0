"A classifier of blurred circles: trained, recorded, and read by probes beside its untrained copy"
import numpy as np, pytest, torch
from sparsenb.core import UnknownName, testbeds
from sparsenb.recorder import Checkpoints
from sparsenb.testbeds.concept_classifier import ConceptClassifier

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    bed = testbeds['concept_classifier'](n_steps=120, n_checkpoints=16)
    bed.train(Checkpoints(f := tmp_path_factory.mktemp('run')/'run'))
    return bed,Checkpoints.open(f)

def test_it_never_sees_the_withheld_class():
    bed = ConceptClassifier()
    s = next(iter(bed))
    assert not ((s.z>.5).all(1)).any() and set(bed.labels(s).tolist())=={0, 1, 2} and bed.build()(s.x).shape==(32, 3)
    with pytest.raises(ValueError): bed.labels(bed.sample(4, classes=['11'])) # no class of its own

def test_the_same_each_time_and_the_recorder_sees_it(tmp_path):
    make = lambda **kw: ConceptClassifier(**dict(n_steps=9, n_checkpoints=4)|kw)
    before = torch.get_rng_state()
    a,b,c = make().train(),make().train(),make(seed=1).train()
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'
    rec = make().train(Checkpoints(tmp_path))
    assert list(a)==rec.steps==[0, 1, 4, 9]
    for k in a[9]: torch.testing.assert_close(a[9][k], b[9][k], **exact); torch.testing.assert_close(rec.tensor(k, 9), a[9][k], **exact)
    assert not torch.equal(a[9]['out.weight'], c[9]['out.weight'])
    for k,v in make().build().state_dict().items(): torch.testing.assert_close(a[0][k], v, **exact)

def test_both_concepts_come_to_be_read(trained):
    bed,rec = trained
    space = bed.concept_space(rec, n=1200)
    assert space.train.tolist()==[True]*3+[False] and space.steps.tolist()==rec.steps
    a = bed.accuracies(space)
    for c in bed.concepts:
        assert a[c][-1]>.9>.8>a[f'{c}, untrained'][-1]==a[c][0]
    t = bed.times(space)
    assert t['colour'] is not None and t['colour']<120
    tr = bed.trajectory(space)
    assert set(tr.paths)=={*bed.classes, 'all', 'untrained'} and np.ptp(tr['untrained'], 0).max()==0 and tr.groups['11']=='never seen' and ('all', t['colour'], 'colour can be read') in tr.events
    page = tr.plot(curves=a, path='11').static().html()
    assert 'never seen' in page and space.trajectory().plot().static().html()
    with pytest.raises(UnknownName): bed.concept_space(rec, probe='logistics')

def test_what_cannot_be_seen_cannot_be_read(trained):
    "Colours that hardly differ under this noise: probes stay near chance on rows they were not fitted on"
    bed = ConceptClassifier(colour=.01, n_steps=20, n_checkpoints=4)
    a = bed.accuracies(bed.concept_space(bed.train(), n=800))
    assert abs(a['colour'][-1]-.5)<.1 and bed.times(bed.concept_space({0: bed.build().state_dict()}, n=400))==dict(colour=None, size=None)

def test_scores_say_what_they_are():
    e = ConceptClassifier(n_steps=20, n_checkpoints=5).score(seeds=2, n=400)
    assert set(e)==set(e.about) and e['first'].value in (0, .5, 1, .25, .75) and e['colour'].unit=='2 of 2 runs' and e._repr_html_()
