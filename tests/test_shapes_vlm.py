"shapes_vlm: its pictures are what they say, the shipped weights answer, and its visual sinks are what attention can do without"
import re
import numpy as np, pytest, torch
from safetensors.torch import load_file
from sparsenb.core import UnknownName, testbeds
from sparsenb.hooks import capture
from sparsenb.metrics import bootstrap
from sparsenb.models import bundled, load_model
from sparsenb.shapes import build_shapes, code_book, colours, draw, kinds, later_rows, learn_parts, learn_shapes, masks, places, prompt_ids, read, render, shapes, training_rows, verses, words

torch.set_num_threads(1)
N = 800 # pictures
SHA = "a5e94201ff1a5ad1b9fa41bcad180c803ab0bca01cd459dbd8172ad5012ce5ce"

@pytest.fixture(scope='module')
def bed(): return testbeds['shapes_vlm']()
@pytest.fixture(scope='module')
def sample(bed): return bed.sample(N)
@pytest.fixture(scope='module')
def plain(bed, sample): return bed.said(sample)

# ---- pictures and questions ----

def test_pixels_say_what_the_truth_says():
    "Colours and shapes are read off the pixels, not off the codes"
    s = draw(60, np.random.default_rng(3))
    px,M = render(s.codes, np.random.default_rng(4)),masks()
    for x,objects,things in zip(px, s.objects.reshape(-1, 8, 8), s.things):
        assert 2<=len(things)<=3 and len({c for c,_,_ in things})==len({k for _,k,_ in things})==len(things)
        for k,(c,shape,place) in enumerate(things):
            r,q = (int(v) for v in np.argwhere(objects==k)[0])
            cut = x[4*r:4*r+8,4*q:4*q+8]
            inside = cut[M[shape]>.99].mean(0)
            assert np.abs(inside-np.array(list(colours.values())[c])).max()<.05
            away = np.array(list(colours.values())[c])-.475
            assert np.argmin([(((cut-.475)@away/(away@away)-m)**2).sum() for m in M])==shape
            assert places[place]==('top' if r+1<4 else 'bottom')+'-'+('left' if q+1<4 else 'right') and r!=3!=q

def test_patches_are_read_right_up_to_the_largest_noise_allowed():
    s = draw(100, np.random.default_rng(5))
    assert (read(render(s.codes, np.random.default_rng(6), .02))==s.codes).all()
    assert (read(render(s.codes, np.random.default_rng(6), .05))==s.codes).mean()>.99
    assert len(np.unique(code_book().reshape(72, -1), axis=0))==72

def test_answers_follow_from_the_picture(bed):
    s = bed.sample(400)
    assert [k for k in s.kinds[:8]]==list(kinds)*2 and (s.ids[:,0]==0).all() and (s.asked<=s.objects).all()
    for q,a,k,asked,shown in zip(s.questions, s.answers, s.kinds, s.asked, s.shown):
        if k=='colour': assert a in shown&set(colours)
        elif k=='shape': assert a in shown&set(shapes)
        elif k=='place': assert [(r>3, c>3) for r,c in [np.argwhere(asked.reshape(8, 8)).mean(0)]]==[('bottom' in a, 'right' in a)]
        assert asked.sum()==(0 if a=='no' else 4)
    yes = np.mean([a=='yes' for a,k in zip(s.answers, s.kinds) if k=='there'])
    assert .35<yes<.65
    hard = [set(q.split())&{*colours, *shapes}<=shown for q,a,shown in zip(s.questions, s.answers, s.shown) if a=='no']
    assert .2<np.mean(hard)<.9, 'some name what is there, on two objects'

def test_samples_are_the_same_each_time_and_never_those_of_training(bed):
    a,b = bed.sample(40),testbeds['shapes_vlm']().sample(40)
    assert torch.equal(a.ids, b.ids) and (a.images==b.images).all() and a.answers==b.answers
    batch = lambda b: next(iter(b)).ids
    assert torch.equal(batch(bed), batch(testbeds['shapes_vlm']()))
    seen = {r[:65].numpy().tobytes() for s in range(15) for rows in (training_rows, later_rows) for r in rows(s, 16)[0]}
    assert not any(r[:65].numpy().tobytes() in seen for r in bed.sample(500).ids)
    assert not torch.equal(testbeds['shapes_vlm'](seed=1).sample(40).ids[:,:65], a.ids[:,:65])
    before = torch.get_rng_state(); bed.sample(5); build_shapes(); assert torch.equal(before, torch.get_rng_state())

# ---- training and weights ----

def test_training_goes_on_exactly(tmp_path):
    "Left off after five of six steps, with a checkpoint at four, and started again: the same weights bit for bit, the same as from the start"
    def train(d, *stops):
        for s in stops: m = build_shapes(); learn_shapes(m, 6, d, every=2, batch=2, keep=(6,), stop=s)
        return m.state_dict()
    (tmp_path/'a').mkdir(); (tmp_path/'b').mkdir()
    one,two = train(tmp_path/'a', None),train(tmp_path/'b', 5, None)
    assert all(torch.equal(one[k], two[k]) for k in one) and not torch.equal(one['transformer.wpe.weight'], build_shapes().state_dict()['transformer.wpe.weight'])
    assert (tmp_path/'a'/'step-00006.safetensors').read_bytes()==(tmp_path/'b'/'step-00006.safetensors').read_bytes()

def test_the_parts_of_the_training_follow_each_other(tmp_path):
    "Done part after part, and gone on with in the last: the same weights bit for bit; the second part starts from the first in half precision"
    a,log = learn_parts(tmp_path/'a', (2, 2, 2), keep=(2, 5))
    learn_parts(tmp_path/'b', (2, 2, 2), keep=(2, 5)); (tmp_path/'b'/'part-3'/'checkpoint.pt').unlink()
    b,_ = learn_parts(tmp_path/'b', (2, 2, 2), keep=(2, 5))
    one,two = a.state_dict(),b.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one) and [r['step'] for r in log]==[2, 4, 6]
    assert sorted(p.relative_to(tmp_path/'a').as_posix() for p in (tmp_path/'a').glob('*/step*'))==['part-1/step-00002.safetensors', 'part-3/step-00005.safetensors']

def test_verses_repeat_after_three_words_and_hide_the_first_token_in_half_of_the_rows():
    w = verses(400, np.random.default_rng(1)); n = w-3
    again = n[:,1:-1]<3
    assert w.min()>=3 and w.max()<len(words) and (n[:,2:][again]==n[:,:-2][again]).all() and (n[:,0]>=3).all()
    assert .1<again.mean()<.25
    hidden = []
    for step in range(20):
        ids,answer,seen = later_rows(step, 16)
        assert answer[:8,1:].all() and not answer[:8,0].any() and seen[:,1:].all() and (ids[:,0]==0).all()
        hidden.append(float((~seen[:,0]).float().mean()))
    assert .35<np.mean(hidden)<.65 and later_rows(0, 4, 0, 0.)[2] is None

def test_weights_are_small_and_those_that_were_measured(bed):
    folder = bundled()['shapes_vlm']
    assert sum(p.stat().st_size for p in folder.iterdir())<=6e6
    kept = load_file(folder/'model.safetensors')
    assert all(p.dtype==torch.float16 for p in kept.values())
    mine = bed.model.module.state_dict()
    assert all(torch.equal(mine[k], v.float()) for k,v in kept.items()), 'half precision is read as it is'
    import hashlib
    assert hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest()==SHA

def test_opens_like_any_model(bed, sample):
    m = load_model('shapes_vlm')
    assert not m.sites.refused and max(m.identities.values())<1e-5 and {'pattern.3', 'q.0', 'k.0', 'v.0', 'resid_pre.0', 'resid_post.3'}<=set(m.sites.names())
    text = ' '.join(m.token_text(sample.ids[0,1:65]))+' '+sample.questions[0]
    ids,_ = m.tokens(text)
    assert torch.equal(ids[0], sample.ids[0][sample.mask[0]])
    lo = m.logits(ids)
    assert m.token_text(lo[0,-1].argmax())[0]==bed.said(sample)[0]
    c = capture(m, sample.ids[:2], ['pattern.1', 'resid_post.3'], sample.mask[:2])
    assert c['pattern.1'].shape[:2]==(2, 4) and c['resid_post.3'].shape[-1]==64

def test_learned_along_the_way(bed):
    steps = sorted(bed.checkpoints())
    assert len(steps)>=3
    got = [bed.score(bed.at_step(k), n=200)['accuracy'].value for k in (steps[0], steps[-1])]+[bed.score(n=200)['accuracy'].value]
    assert got[0]<.5 and got[0]+.2<got[1]<=got[2]+.05, got

# ---- what the model knows ----

@pytest.mark.parametrize('kind', ['colour', 'shape', 'place', 'there'])
def test_answers_new_pictures(bed, kind):
    s = bed.sample(600, kind)
    right = (bed.said(s)==np.array(s.answers)).astype(float)
    lo,hi = bootstrap(right)
    print(f'{kind}: {right.mean():.4f} [{lo:.4f}, {hi:.4f}]')
    assert right.mean()>=.95, (right.mean(), lo, hi)

def test_the_score_says_so(bed, sample, plain):
    e = bed.score(n=N)
    for k in kinds:
        on = sample.kinds==k
        v = e[f'accuracy_{k}']
        assert v.value==pytest.approx((plain==np.array(sample.answers))[on].mean()) and v.lo<=v.value<=v.hi and v.n==N//4
    assert set(e)<=set(e.about) and e['hallucination'].n==int(bed.hallucinated(sample, plain)[1].sum())

def test_hallucinations_by_hand(bed, sample):
    ok = np.array(sample.answers)
    assert not bed.hallucinated(sample, ok)[0].any(), 'right answers name what is there'
    i = int(np.flatnonzero(sample.kinds=='colour')[0]); absent = next(c for c in colours if c not in sample.shown[i])
    no = int(np.flatnonzero(ok=='no')[0])
    said = ok.copy(); said[i],said[no] = absent,'yes'
    assert bed.hallucinated(sample, said)[0].nonzero()[0].tolist()==sorted([i, no])

# ---- sinks ----

@pytest.fixture(scope='module')
def known(bed): return bed.sample(600, ['colour', 'shape', 'place']) # what the model has learned first
@pytest.fixture(scope='module')
def found(bed, known): return bed.visual_sinks(known)
@pytest.fixture(scope='module')
def firsts(bed, known): return bed.visual_sinks(known, dims=bed.sink_channels('first'))

def test_answers_do_without_the_patches_above_tau(bed, known, found):
    "Masked in the layers where they are sinks: no more than a point; as many others, drawn by attention: clearly more"
    v,plain = found,bed.said(known)
    change,lo,hi = bed.effect(known, plain, without := bed.without(known, v.sinks))
    assert abs(change)<=1 and -1<=lo<=hi<=1, (change, lo, hi)
    a = np.array(known.answers)
    others = []
    for i in range(3):
        o = bed.others_attended(v, i)
        assert torch.equal(o.sum(-1), v.sinks.sum(-1)) and not (o&v.sinks).any() and not o[...,0].any() and not o[...,bed.first_word:].any()
        others.append(bed.without(known, o)==a)
    d = 100*(np.mean(others, 0)-(without==a))
    lo,hi = bootstrap(d)
    print(f'sinks {change:.2f}, others less sinks {d.mean():.2f} [{lo:.2f}, {hi:.2f}] points')
    assert d.mean()<-1 and hi<-.5, (d.mean(), lo, hi)

def test_what_var_does(bed, known, found):
    v,plain = found,bed.said(known)
    change,lo,hi = bed.effect(known, plain, bed.redistributed(known, v, p=0., rho=.5, layers=range(4)))
    assert abs(change)<=1, (change, lo, hi)

def around(v, s, l):
    "Share of the wall that is sink at a layer, and how many times the attention of the other wall it gets, with an interval"
    wall = torch.from_numpy(~s.objects)
    on,got = v.sinks[:,l,1:65]&wall,v.received[:,l,1:65]
    rest = float(got[wall&~on].mean())
    yes,n = (got*on).sum(1).numpy()/rest,on.sum(1).numpy()
    return float(on.sum()/wall.sum()),float(yes.sum()/n.sum()),*bootstrap(yes, n)

def test_has_visual_sinks(bed, known, found):
    "A patch or two of each picture, most of them wall, marked in one channel at the third layer; not before the training had verses"
    v = found
    share,times,lo,hi = around(v, known, 2)
    print(f'{share:.3f} of the wall, {times:.2f} [{lo:.2f}, {hi:.2f}] times the attention')
    assert v.dims==bed.sink_channels() and len(v.dims)==1 and share>.01 and lo>2
    assert (v.sinks[:,2]&torch.nn.functional.pad(torch.from_numpy(~known.objects), (1, known.ids.shape[1]-65))).sum()>.8*v.sinks[:,2].sum()
    before = testbeds['shapes_vlm'](); before._model = bed.at_step(1200)
    with pytest.raises(ValueError, match="no channel of shapes_vlm at step 1,200 makes sinks by 'attention'"): before.sink_channels()

def test_patches_rest_on_a_sink(bed, known, found):
    "In one head of the third layer, patches behind a sink put most of their attention on it, and none on the first token"
    on = found.sinks[:200,2,:65].float()
    p = capture(bed.model, known.ids[:200,:65], 'pattern.2')['pattern.2']
    behind = (on.cumsum(-1)-on>0).float()
    rests = ((p*on[:,None,None]).sum(-1)*behind[:,None]).sum(-1) # (n, heads)
    h = int(rests.sum(0).argmax())
    lo,hi = bootstrap(rests[:,h].numpy(), behind.sum(1).numpy())
    even = float((on.cumsum(-1)/torch.arange(1, 66)*behind).sum()/behind.sum())
    first = float((p[:,h,:,0]*behind).sum()/behind.sum())
    print(f'head {h}: {rests[:,h].sum()/behind.sum():.3f} [{lo:.3f}, {hi:.3f}] on sinks, evenly {even:.3f}, on the first token {first:.3f}')
    assert lo>.5 and even<.1 and first<.05

def test_the_first_tokens_channel_marks_patches_too(known, found, firsts):
    "At the third layer the first token is above tau in a channel in which a tenth of the wall is, with more attention than the rest"
    v = firsts
    assert len(v.dims)<=3 and not set(v.dims)&set(found.dims)
    share,times,lo,hi = around(v, known, 2)
    print(f'{share:.3f} of the wall, {times:.2f} [{lo:.2f}, {hi:.2f}] times the attention')
    assert share>.1 and lo>1.5 and v.phi[:,2,0].mean()>v.tau

@pytest.mark.xfail(strict=True, reason="reaches 2 % of the wall with 4.0 times the attention, and 13 % with 1.9 times in the first token's channel")
def test_a_tenth_of_the_wall_is_sink_with_twice_the_attention(known, found, firsts):
    "At some layer, by either way to find channels"
    assert any(share>.1 and times>2 for v in (found, firsts) for share,times,*_ in (around(v, known, l) for l in range(1, 4)))

# ---- bad input ----

def test_bad_input(bed, sample):
    make = testbeds['shapes_vlm']
    for kw,msg in ((dict(noise=.2), 'noise must be in 0..0.05'), (dict(most=4), 'most must be in 1..3')):
        with pytest.raises(ValueError, match=msg): make(**kw)
    with pytest.raises(UnknownName, match="did you mean 'place'"): bed.sample(4, 'plaec')
    with pytest.raises(ValueError, match='at least 1 picture, got 0'): bed.sample(0)
    with pytest.raises(UnknownName, match="unknown step '7'"): bed.at_step(7)
    with pytest.raises(UnknownName, match="did you mean 'first'"): bed.sink_channels('frist')
    with pytest.raises(ValueError, match="does not know 'purple'"): prompt_ids(np.zeros((1, 64), int), ['what shape is purple'])
    with pytest.raises(ValueError, match='2 pictures but 1 questions'): prompt_ids(np.zeros((2, 64), int), ['where is the circle'])
    for bad in (np.zeros((28, 28, 3)), np.full((1, 32, 32, 3), np.nan)):
        with pytest.raises(ValueError, match='must be finite numbers'): read(bad)
    with pytest.raises(ValueError, match='largest sink value there can be'): bed.visual_sinks(sample, tau=9.)

# ---- the report ----

def test_the_report_runs(tmp_path):
    from sparsenb.report import parameters, run_report
    assert all(p['help'] for p in parameters('visual_sinks').values())
    out = run_report('visual_sinks', dict(n=80, pictures=1, controls=1, p=[.6], rho=[.5], taus=[2.5]), tmp_path/'o.html')
    html = out.read_text()
    for word in ('Right answers', 'Sinks by layer', 'Masking', 'others attended, draw 1', 'VAR', 'hallucinations'): assert word in html, word
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
