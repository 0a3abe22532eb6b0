"Masks and information: intersections counted pixel by pixel, detectors on planted maps with nulls, masks drawn exactly, shapes matched by the trained network alone; MILAN's information in closed form and by a real model"
import numpy as np, pytest, torch
from sparsenb.analyses.network_dissection import drawn_masks, in_patches, matches, network_dissection, patch_features
from sparsenb.core import UnknownName, dictionaries, testbeds
from sparsenb.judging import information, likelihood_of, mask_iou, pmi, scored, scorers
from sparsenb.models import load_model
from sparsenb.rules import Context, Rule
from sparsenb.shapes import build_shapes, colours, read, render, shapes

torch.set_num_threads(1)

# ---- intersection over union ----

@pytest.mark.parametrize('H,W,h,w', [(8, 8, 4, 4), (9, 7, 4, 3), (5, 5, 5, 5), (32, 32, 8, 8)])
def test_matches_are_those_counted_pixel_by_pixel(H, W, h, w):
    rng = np.random.default_rng(H)
    strong,masks = rng.random((6, h, w, 5))<.3,rng.random((6, H, W, 3))<.4
    grown = strong[:,np.arange(H)*h//H][:,:,np.arange(W)*w//W]
    want = [[(grown[...,u]&masks[...,c]).sum()/(grown[...,u]|masks[...,c]).sum() for c in range(3)] for u in range(5)]
    parts = np.stack([in_patches(masks[...,c], h, w) for c in range(3)], -1)
    np.testing.assert_allclose(matches(strong, parts, in_patches(np.ones((1, H, W)), h, w)[0]), want, rtol=1e-6)

def test_one_unit_is_what_the_scorer_says():
    rng = np.random.default_rng(0)
    a,m = rng.random((40, 4, 4)),rng.random((40, 8, 8))<.3
    strong,parts = (a>=np.quantile(a, .9))[...,None],in_patches(m, 4, 4)[...,None]
    assert matches(strong, parts, np.full((4, 4), 4.))[0,0]==pytest.approx(mask_iou(a, m, .9)['iou'].value)

def planted(seed, n=60, noise=.3):
    "Maps of 8 units: two follow a concept's mask, the others are noise; concepts lie anywhere"
    rng = np.random.default_rng(seed)
    masks = {k: np.zeros((n, 16, 16), bool) for k in ('a', 'b', 'c')}
    for m in masks.values():
        for i,(r,c) in enumerate(2*rng.integers(0, 7, (n, 2))): m[i,r:r+4,c:c+4] = True # two by two patches of 64: .0625 of the area
    maps = noise*rng.random((n, 8, 8, 8))
    for u,k in ((2, 'a'), (5, 'c')): maps[...,u] += in_patches(masks[k], 8, 8)/4
    return maps, masks

@pytest.mark.parametrize('seed', range(4))
def test_planted_detectors_are_found_and_noise_is_not(seed):
    maps,masks = planted(seed)
    r = network_dissection(maps, masks, quantile=1-4/64, least=.2, seed=seed)
    assert sorted(r.detectors)==[2, 5] and [r.names[r.best[u]] for u in (2, 5)]==['a', 'c']
    assert (r.iou[[2, 5],0]>.9).all() and (r.control[[2, 5]]<.15).all() and np.delete(r.iou[:,0], [2, 5]).max()<.12
    assert r['detectors'].value==2/8 and r['concepts'].value==2/3 and r['iou'].value>.9 and r['detectors'].n==30

def test_place_alone_is_no_detector():
    "A unit and a concept that are always in one corner match well, and no better than with other pictures' masks"
    maps,m = np.zeros((40, 4, 4, 1)),np.zeros((40, 8, 8), bool)
    maps[:,:2,:2,0],m[:,:4,:4] = 1+np.random.default_rng(0).random((40, 2, 2)),True
    r = network_dissection(maps, dict(corner=m), quantile=.75, seed=0)
    assert r.iou[0,0]==1==r.control[0] and not len(r.detectors) and r['detectors'].value==0 and np.isnan(r['iou'].value)
    assert [type(v).__name__ for v in r.views()]==['Table', 'Table', 'Heatmap'] and len(r.table().rows)==0 and r.concepts().rows[0][1:]==(0, None, None)

def test_units_and_order_change_nothing():
    maps,masks = planted(0)
    r,s = (network_dissection(x, masks, quantile=.94, seed=1) for x in (maps, 7*maps[...,::-1]))
    np.testing.assert_allclose(r.iou[::-1,0], s.iou[:,0], atol=1e-9); assert (r.best[::-1]==s.best).all()
    assert not np.nan_to_num(network_dissection(-maps-1, masks, quantile=.94, seed=1).iou).any(), 'what is never above 0 is nowhere strong'

def test_what_does_not_fit():
    maps,masks = planted(0)
    for a,m,kw,said in ((maps[0], masks, {}, 'activations'), (maps*np.nan, masks, {}, 'finite'), (maps, {}, {}, 'no masks'), (maps, dict(a=masks['a'][:3]), {}, r"got 'a' \(3, 16, 16\)"), (maps, dict(a=masks['a'][:,:4]), {}, 'no coarser than the 8x8'),
                        (maps, masks, dict(quantile=1), 'between 0 and 1, got 1'), (maps, masks['a'], {}, 'masks are name -> bool')):
        with pytest.raises(ValueError, match=said): network_dissection(a, m, **kw)

# ---- pictures ----

@pytest.fixture(scope='module')
def bed(): return testbeds['shapes_vlm'](seed=5)

def test_masks_are_where_the_colour_is(bed):
    s = bed.sample(30)
    m,clean = drawn_masks(s.images),render(read(s.images))
    for k,c in colours.items(): # on the mask the colour weighs half or more, beside it the wall's grey
        near = np.abs(clean-c).max(-1)<=.5*np.abs(np.array(c)-.475).max()+1e-6
        assert (near[m[k]]).all() and not (m[k]&m['object']!=m[k]).any()
    got = m['object'].reshape(30, 8, 4, 8, 4).any((2, 4)).reshape(30, 64)
    assert (got==s.objects).all() and sum(m[k].astype(int) for k in shapes).max()==1

def test_shapes_are_matched_by_the_trained_network_alone(bed):
    s = bed.sample(160)
    m = drawn_masks(s.images)
    r = {n: network_dissection(patch_features(model, s.ids, 'embed', mask=s.mask), m, quantile=.98, seed=5) for n,model in dict(trained=bed.model, untrained=build_shapes(5).eval()).items()}
    best = {n: {c: max((x.iou[u,0] for u in x.detectors if x.names[x.best[u]]==c), default=0) for c in x.names} for n,x in r.items()}
    assert min(best['trained'][c] for c in (*shapes, *colours))>.12 and min(best['untrained'][c] for c in colours)>.2, 'colours are in the pixels'
    assert min(best['untrained'][c] for c in shapes)<.05 and np.mean([best['trained'][c] for c in shapes])>np.mean([best['untrained'][c] for c in shapes])+.08

def test_features_of_a_dictionary_on_patches(bed):
    s = bed.sample(4)
    d = dictionaries['topk'](64, 96, k=3).train()
    x = patch_features(bed.model, s.ids, 'resid_post.1', mask=s.mask)
    f = patch_features(bed.model, s.ids, 'resid_post.1', d, mask=s.mask)
    assert d.training and x.shape==(4, 8, 8, 64) and f.shape==(4, 8, 8, 96) and ((f>0).sum(-1)<=3).all()
    np.testing.assert_allclose(f[1,2,3], d.eval().encode(torch.tensor(x[1,2,3])).detach().numpy(), atol=1e-5)
    with pytest.raises(ValueError, match='needs 65 positions, got 9'): patch_features(bed.model, s.ids[:,:9], 'embed')

def test_patches_of_a_vision_transformer(bed):
    "Pixels in, patches after the class token: a unit that reads the red channel alone finds what is red"
    from transformers import ViTConfig, ViTModel
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=4), add_pooling_layer=False).eval()
    with torch.no_grad():
        p = vit.embeddings.patch_embeddings.projection
        p.weight[0] = torch.tensor([1., -1, -1])[:,None,None]; p.bias[0] = 0; vit.embeddings.position_embeddings.zero_()
    s = bed.sample(60)
    x = patch_features(vit, torch.tensor(s.images).permute(0, 3, 1, 2), 'resid_pre.0')
    m = drawn_masks(s.images)
    r = network_dissection(x, m, quantile=.98, seed=0)
    assert x.shape==(60, 8, 8, 16) and r.names[r.best[0]]=='red' and r.iou[0,0]>max(.25, 5*r.control[0]) and 0 in r.detectors

# ---- MILAN's information ----

ON = [Context(tuple(w), np.array([float(x in 'aeiou') for x in w]), doc=w) for w in ('hello', 'audio', 'tree', 'moon')]
OFF = [Context(tuple(w), np.zeros(len(w)), doc=w) for w in ('rhythm', 'lynx', 'myth', 'nymph')]
TABLE = {'a letter': (-1., -1., -1.), 'a vowel': (-5., -1.5, -5.), 'a consonant': (-5., -6., -2.)} # log p alone, after an example, after a word without vowels

def told(prompts, text):
    "Log-probabilities of a table"
    return np.array([TABLE[text][0 if len(p)<60 else 1 if any(f'<<{v}' in p for v in 'aeiou') else 2] for p in prompts])

@pytest.mark.parametrize('lam', [0, .2, .5])
def test_information_in_closed_form(lam):
    for d,(alone,with_,without) in TABLE.items():
        r = information(d, ON, OFF, told, lam=lam)
        assert r['information'].value==pytest.approx(with_-lam*alone) and r['information.silent'].value==pytest.approx(without-lam*alone) and r['information'].n==4
    order = {l: max(TABLE, key=lambda d: information(d, ON, OFF, told, lam=l)['information'].value) for l in (0, .2)}
    assert order=={0: 'a letter', .2: 'a vowel'}, 'what is likely of anything wins where its own probability costs nothing'
    assert pmi(np.log([.5, .4]), np.log([.9, .01]))==pytest.approx([-.672, .005], abs=1e-3)

def test_information_among_the_scorers():
    assert scored('a vowel', ON, OFF, ('information',), likelihood=told)['information'].value==pytest.approx(-.5)
    assert {*scored(Rule('words', 'aeiou'), ON, OFF, ('detection', 'information'), likelihood=lambda p, t: -np.ones(len(p)))}>={'detection', 'information', 'information.silent'} and 'information' in scorers
    with pytest.raises(ValueError, match='needs likelihood='): scored('x', ON, OFF, ('information',))
    with pytest.raises(ValueError, match='9 log-probabilities, at most 0, were expected, got shape'): information('x', ON, OFF, lambda p, t: np.ones(9))
    with pytest.raises(UnknownName): scored('x', ON, OFF, ('informations',), likelihood=told)

def test_likelihood_of_a_real_model():
    m = load_model('stdlib-4l', device='cpu')
    f,text = likelihood_of(m),'return x'
    prompts = ['def f(x):', 'import os\n'*400]
    got = f(prompts, text)
    ids,said = m.tokens(prompts[0])[0],m.tokenizer(' '+text, add_special_tokens=False)['input_ids']
    total = 0.
    for t in said: # one at a time
        total += float(m.logits(ids)[0,-1].log_softmax(-1)[t]); ids = torch.cat([ids, torch.tensor([[t]])], 1)
    assert got[0]==pytest.approx(total, abs=1e-3) and np.isfinite(got[1]) and (got<0).all(), 'a prompt beyond the context loses its beginning'
    with pytest.raises(ValueError, match="does not fit the model's 512"): f(['x'], 'word '*600)
