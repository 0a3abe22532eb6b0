"Blurred circles and their readers in closed form, a generator that learns them, runs on disk, pictures in trajectories, and the report"
import json, math, re
import numpy as np, pytest, torch
from sparsenb.concepts import concept_signal, concept_space
from sparsenb.core import UnknownName, testbeds
from sparsenb.testbeds.concept_shapes import ConceptShapes, blur, mask, paint, shown, wall
from sparsenb.trajectory import Trajectory

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
tiny = dict(n_steps=12, n_checkpoints=4, width=8, batch_size=16)
def places(n, seed=0): return 7+2*torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
def corners(c): return torch.tensor([[float(b) for b in k] for k in c])

# ---- pictures ----

@pytest.mark.parametrize('r', [1.5, 2.5, 4.])
def test_masks_have_the_area_of_the_closed_form_wherever_they_are(r):
    R,want = torch.full((40,), r),math.pi*(r*r+blur**2)
    assert mask(R, places(40), 16).sum((1, 2)).numpy()==pytest.approx(np.full(40, want), rel=2e-3)
    assert mask(R, places(40), 16, triangle=True).sum((1, 2)).numpy()==pytest.approx(np.full(40, want), rel=.03) # its inner edges are not smooth

def test_a_pixel_is_what_the_distance_says():
    bed = ConceptShapes(colour=.6, size=.3)
    x = bed.render(torch.tensor([[0., 0.], [1., 1.]]), torch.tensor([[8., 7.5], [8.3, 8.]]))
    r = .4*16*(.45+.15)
    inside = .5*(1+math.erf((r-math.hypot(8-3.5, 7.5-6.5))/blur/2**.5))
    assert x[0,6,3].tolist()==pytest.approx([wall+inside*(c-wall) for c in (.8, .2, .2)], abs=1e-5) # red, large: row 6, column 3
    assert x[1,0,0].tolist()==pytest.approx([wall]*3, abs=1e-5) and x[1,8,8].tolist()==pytest.approx([.2, .2, .8], abs=.03)

def test_triangles_point_up_and_signals_are_the_derivative():
    m = mask(torch.tensor([3.]), torch.tensor([[8., 8.]]), 16, True)[0]
    rows = m.sum(1)
    assert torch.equal(m, m.flip(1)) and rows[4]<rows[6]<rows[8]<rows[9]
    bed = ConceptShapes(colour=.4)
    z = corners(bed.trained)
    M = torch.stack([mask(torch.tensor([.4*16*(.45+.2*(.5-float(s)))]), torch.tensor([[8., 8.]]), 16)[0] for s in z[:,1]])
    want = .4*2**.5*M.square().sum((1, 2)).sqrt() # red falls and blue rises by .4
    got = concept_signal(bed.render, z, bed.concepts)
    assert got['colour']==pytest.approx(want.numpy(), rel=1e-4) and bed.signals()['colour']==pytest.approx(float(want.mean()), rel=1e-4)
    step = (bed.render(z+torch.tensor([0, 1e-2]))-bed.render(z-torch.tensor([0, 1e-2]))).flatten(1).norm(dim=1)/2e-2
    assert got['size']==pytest.approx(step.numpy(), rel=.01)

@pytest.mark.parametrize('kw,close', [(dict(), (1e-4, 1e-3)), (dict(colour=.1, size=.4), (1e-4, 5e-3)), (dict(k=32), (1e-4, 1e-3)), (dict(shape=1.), (.05, 1e-4, .03)), (dict(shape=.5, k=32), (.02, 1e-4, .01))])
def test_readers_are_exact_on_what_is_drawn(kw, close):
    bed = ConceptShapes(**kw)
    s = bed.sample(300)
    assert {tuple(r) for r in s.z.round().int().tolist()}=={tuple(map(int, c)) for c in bed.classes} # the withheld ones too
    clean = bed.read(bed.render(s.z, s.centre))
    for i,(c,e) in enumerate(zip(bed.concepts, close)):
        assert (clean[:,i]-s.z[:,i]).abs().max()<=e, c
        assert torch.equal(bed.classifiers()[c](s.x), bed.read(s.x)[:,i]) and (bed.read(s.x)[:,i]-s.z[:,i]).abs().max()<=e+.05, c

def test_readers_give_numbers_for_what_is_no_circle():
    bed = ConceptShapes(shape=1.)
    for x in (torch.full((2, 16, 16, 3), wall), torch.zeros(2, 16, 16, 3), torch.randn(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)), torch.full((2, 16, 16, 3), 5.)):
        z = bed.read(x)
        assert torch.isfinite(z).all() and z.abs().max()<=2

def test_the_same_each_time_and_withheld_in_every_batch():
    before = torch.get_rng_state()
    a,b = ConceptShapes(),ConceptShapes()
    for i,x,y in zip(range(3), a, b):
        torch.testing.assert_close(x.x, y.x, **exact); assert not (x.z.round()==1).all(1).any(), 'class 11 was shown'
    assert not torch.equal(next(iter(a)).x, next(iter(ConceptShapes(seed=1))).x) and torch.equal(a.sample(4).x, b.sample(4).x)
    p,q,o = a.build().state_dict(),b.build().state_dict(),ConceptShapes(seed=1).build().state_dict()
    assert all(torch.equal(p[k], q[k]) for k in p) and not torch.equal(p['mix.1.weight'], o['mix.1.weight'])
    assert torch.equal(before, torch.get_rng_state()), 'the global generator was used'
    three = ConceptShapes(shape=1.)
    assert three.trained==('000', '001', '010', '100') and three.withheld=='111' and three.build().embed.weight.shape[1]==3

def test_refuses_what_cannot_be_drawn():
    for kw,said in ((dict(colour=0), 'colour is a distance'), (dict(colour=.9), 'at most 0.8'), (dict(size=0), 'size is a distance'), (dict(shape=2), 'shape is a distance'), (dict(k=10), 'multiple of 4'), (dict(shape=1., size=.5), 'the largest triangle reaches')):
        with pytest.raises(ValueError, match=said): ConceptShapes(**kw)
    assert testbeds['concept_shapes'] is ConceptShapes

# ---- learning ----

def heard(colour, size): # what prompts make of colour and of size, mean over the second half of a short training
    bed = ConceptShapes(colour=colour, size=size, n_steps=150, n_checkpoints=16, batch_size=32)
    run = bed.train()
    s = bed.concept_space(run, 8)
    assert s.train.tolist()==[True]*3+[False] and list(run)==bed.schedule and s.title.startswith('colour × size, strengths colour')
    gap = lambda c,i: np.abs(s[c][:,i]-s['00'][:,i])[8:].mean()
    return gap('10', 0),gap('01', 1),s,bed

def test_the_stronger_concept_is_heard_first_whichever_it_is():
    c,z,s,bed = heard(.8, .1) # signals 5.3 and 2
    assert c>.4 and c>1.3*z, (c, z)
    c,z,s,bed = heard(.1, .4) # .75 and 5.3
    assert z>.6 and z>2.5*c, (c, z)
    t = bed.times(s)
    assert t['colour'] is None and bed.times(s, '11')['colour'] is None and bed.times(s, sigma=0, threshold=-9)=={'colour': 0, 'size': 0}

def test_a_run_is_written_and_opened_again(tmp_path):
    r = ConceptShapes(**tiny).run(tmp_path/'r', n=3, seed=5)
    assert r.bed.seed==5 and r.checkpoints.steps==r.bed.schedule and np.isfinite(r.checkpoints.history()['loss']).all()
    bed,rec = ConceptShapes.opened(tmp_path/'r')
    assert bed.cfg==r.bed.cfg
    np.testing.assert_array_equal(bed.concept_space(rec, 3).coordinates, r.space.coordinates)
    memory = r.bed.train()
    for k,v in memory[bed.schedule[-1]].items(): torch.testing.assert_close(rec.tensor(k, bed.schedule[-1]), v, **exact)
    ways = r.capability
    assert set(ways.pushed.values())=={('colour',), ('size',)} and len(ways.verdicts)==6 and ways.naive=='naive'
    e = r.bed.score([r, r])
    assert e['detour'].n==2 and all(k in e.about for k,_ in e.items())
    with pytest.raises(FileNotFoundError): ConceptShapes.opened(tmp_path/'no')
    (tmp_path/'r'/'concept_shapes.json').unlink()
    with pytest.raises(ValueError, match='not written by a run'): ConceptShapes.opened(tmp_path/'r')

def test_a_shift_inside_is_not_an_over_prompt():
    bed = ConceptShapes(**tiny)
    net,g = bed.build(),lambda: torch.Generator().manual_seed(0)
    with torch.no_grad(): net.last.weight.mul_(100)
    cap = bed.capability({0: net.state_dict()}, n=2, alphas=(0., 1.))
    way = lambda w: cap.space[w][0]
    assert way('over: mix + 0 × colour')==pytest.approx(way('naive'), abs=1e-6) # no shift
    a,b = paint(net, [1.5, 1.], 2, g()),paint(net, [1., 1.], 2, g())
    assert (a-b).abs().max()>1e-4 and np.abs(way('over: mix + 1 × colour')-way('over: colour 1.5')).max()>1e-6

def test_errors_of_the_space():
    bed = ConceptShapes(**tiny)
    net,read = bed.build(),bed.classifiers()
    prompts = {c: bed.asked(c) for c in bed.classes}
    ask = lambda **kw: concept_space(**(dict(model=net, concepts=bed.concepts, classifiers=read, prompts=prompts, generate=paint, n=2)|kw))
    with pytest.raises(ValueError, match="no classifier for concept 'size': there are 'colour'"): ask(classifiers=dict(colour=read['colour']))
    with pytest.raises(ValueError, match='nothing at step 5; leave missing steps out'): ask(checkpoints={0: net.state_dict(), 5: None})
    with pytest.raises(ValueError, match='does not fit the model'): ask(checkpoints={0: ConceptShapes(**(tiny|dict(width=12))).build().state_dict()})
    with pytest.raises(ValueError, match="classifier of 'colour': one number for each of 2 outputs"): ask(classifiers=read|dict(colour=bed.read))
    s = ask(show=shown)
    assert s.made['00'][0].shape==(2, 16, 16, 3) and s.made['00'][0].dtype==np.uint8 and not ask().made
    with pytest.raises(UnknownName, match='prompt class'): bed.times(s, '21')

def test_the_run_that_comes_with_the_package(tmp_path):
    bed,rec = ConceptShapes.opened()
    assert rec.steps==bed.schedule and sum(p.stat().st_size for p in rec.path.iterdir())<=2e6
    s = bed.concept_space(rec, 8)
    for c in bed.trained: assert np.abs(s[c][-1]-[int(b) for b in c]).max()<.15, s[c][-1]
    with pytest.raises(UnknownName, match='no step 3; nearest'): rec[3]
    ConceptShapes.bundle(tmp_path/'b', **(tiny|dict(n_checkpoints=3)))
    b,r = ConceptShapes.opened(tmp_path/'b')
    assert b.width==8 and r.steps==b.schedule and r.tensor('mix.1.weight', 0).dtype==torch.float16 and 'small blue was never shown' in (tmp_path/'b'/'README.md').read_text()

# ---- pictures in a trajectory ----

def path(**kw): return Trajectory('t', [0, 5, 9], dict(a=np.arange(6.).reshape(3, 2), b=np.zeros((3, 2))), ('x', 'y'), **kw)

def test_pictures_belong_to_points():
    import base64
    rng = np.random.default_rng(0)
    one,many = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8),[rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8), None, np.zeros((6, 5), np.uint8)]
    t = path(payload=dict(a=one, b=many))
    w = t.plot(step=5)
    np.testing.assert_array_equal(w.made('a', 5), one[1]); np.testing.assert_array_equal(w.made('b', 0), many[0]); assert w.made('b', 5) is None
    html = t.static(step=9).html()
    held = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1].replace(r'\u003c', '<'))['held']
    kind,shape,raw = held['0']['1']
    assert (kind, shape)==('image', [1, 8, 8, 3]) and base64.b64decode(raw)==one[1].tobytes()
    assert held['1']['0'][1]==[2, 4, 4, 3] and held['1']['2'][1]==[1, 6, 5, 1] and '1' not in held['1'] # nothing was kept there
    assert t.plane().text[:3]==('a, step 0', 'a, step 5', 'a, step 9') # no pictures in words
    words = path(payload=dict(a=('p', 'q', ['r', 's']), b='all')).plane().text
    assert words[:4]==('a, step 0: p', 'a, step 5: q', 'a, step 9: r s', 'b, step 0: all')

@pytest.mark.parametrize('payload,said', [(np.zeros((3, 8, 8, 3)), "payload of 'a', step 0: .*float64"), (np.zeros((2, 8, 8, 3), np.uint8), "'a': one for each of 3 steps was expected, got 2"), (np.zeros((3, 8, 8, 2), np.uint8), 'uint8, shape'),
    (['x', 'y'], 'one for each of 3 steps was expected, got 2'), (7, 'got int'), ([np.zeros((1000, 3000, 3), np.uint8)]*3, '8 MB at most')])
def test_what_is_no_output_is_refused(payload, said):
    with pytest.raises(ValueError, match=said): path(payload=dict(a=payload))

# ---- the report ----

def test_the_report_runs_on_a_small_training(tmp_path):
    from sparsenb.report import parameters, run_report
    assert all(p['help'] for p in parameters('concept_trajectories').values())
    out = run_report('concept_trajectories', dict(run='train', n_steps=24, n_checkpoints=5, n=3, alphas=[1.]), tmp_path/'o.html')
    html = out.read_text()
    for word in ('When each concept is learned', 'Turning points', 'Ways to ask for naive', 'Paths'): assert word in html, word
    blocks = [json.loads(b) for b in re.findall(r'<script type="application/json">(\{"state".*?)</script>', html, re.S)]
    assert [b['held']['0']['0'][:2] for b in blocks]==[['image', [3, 16, 16, 3]]]*2 # panels of pictures, at every step
    assert blocks[0]['state']['path']=='11' and blocks[0]['state']['facts']['steps'][-1]==24 and all(len(v)==5 for b in blocks for v in b['held'].values())
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
