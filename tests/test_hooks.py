"What hooks leave behind: nothing, in number and in memory, also when the body raises"
import gc
import pytest, torch
from sparsenb.core import UnknownName
from sparsenb.hooks import ablate, add, capture, edited, patch, replaced
from sparsenb.models import load_model

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

def hooks(m): return sum(len(x._forward_hooks)+len(x._forward_pre_hooks)+len(x._backward_hooks) for x in m.module.modules())
def tensors():
    gc.collect()
    return sum(o.numel()*o.element_size() for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))

@pytest.mark.parametrize('fails', [False, True])
def test_nothing_is_left(model, fails):
    ids,mask = model.tokens('def f(x):\n    return x+1\n'*8)
    def body():
        with replaced(model, 'resid_post.1', lambda x: x*.5), edited(model, {'pattern.2': ablate(heads=1), 'resid_mid.0': add(torch.ones(256))}):
            model.logits(ids); capture(model, ids, ['pattern.3', 'resid_post.3'])
            if fails: raise ZeroDivisionError
    def once():
        try: body()
        except ZeroDivisionError: pass
    once(); before = hooks(model), tensors(), model.module.config._attn_implementation
    for _ in range(5): once()
    assert (hooks(model), tensors(), model.module.config._attn_implementation)==before and before[0]==0

def test_an_error_inside_the_forward_pass_leaves_nothing(model):
    ids,_ = model.tokens('import os')
    def bad(t): raise RuntimeError('mine')
    with pytest.raises(RuntimeError, match='mine'), edited(model, {'resid_post.0': bad}): model.logits(ids)
    assert hooks(model)==0

def test_nothing_runs_for_an_unknown_site(model):
    with pytest.raises(UnknownName, match="did you mean 'resid_post.2'"):
        with edited(model, {'resid_pst.2': ablate()}): raise AssertionError('entered')
    with pytest.raises(UnknownName): capture(model, 'import os', ['resid_post.2', 'nonsense'])
    assert hooks(model)==0

def test_capture_stops_after_the_deepest_site(model):
    ran = []
    h = model.module.model.layers[2].register_forward_hook(lambda *a: ran.append(1))
    capture(model, 'import os', ['resid_post.1', 'resid_pre.0'])
    h.remove()
    assert ran==[]

def test_selection_of_positions_heads_and_rows(model):
    ids,_ = model.tokens(['def f(x): return x', 'def g(y): return y'])
    z = capture(model, ids, 'z.1')['z.1']
    got = {}
    with edited(model, {'z.1': ablate(positions=[2,-1], heads=3, batch=1)}), edited(model, {'z.1': lambda t: got.__setitem__('z', t.clone())}): model.logits(ids)
    want = z.clone(); want[1,2,3] = 0; want[1,-1,3] = 0
    torch.testing.assert_close(got['z'], want, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r'positions \[99\] outside'), edited(model, {'z.1': ablate(positions=99)}): model.logits(ids)

def test_mean_and_resample(model):
    ids,_ = model.tokens(['def f(x): return x', 'def g(y): return y'])
    x = capture(model, ids, 'resid_post.1')['resid_post.1']
    for edit,want in ((ablate('mean'), x.mean((0,1)).expand_as(x)), (ablate('resample'), x.flip(0))):
        got = {}
        with edited(model, {'resid_post.1': edit}), edited(model, {'resid_pre.2': lambda t: got.__setitem__('x', t.clone())}): model.logits(ids)
        torch.testing.assert_close(got['x'], want, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match='at least two rows'), edited(model, {'resid_post.1': ablate('resample')}): model.logits(ids[:1])

def test_patching_everything_makes_the_runs_equal(model):
    a,_ = model.tokens('def f(x): return x'); b,_ = model.tokens('def g(y): return y')
    src = capture(model, b, 'resid_post.0')['resid_post.0']
    with edited(model, {'resid_post.0': patch(src)}): torch.testing.assert_close(model.logits(a), model.logits(b), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='the source run has shape'), edited(model, {'resid_post.0': patch(src[:,1:])}): model.logits(a)

def test_replaced_leaves_first_token_and_padding(model):
    ids,mask = model.tokens(['def f(x): return x', 'import'])
    clean = capture(model, ids, 'resid_post.1', mask)['resid_post.1']; got = {}
    with replaced(model, 'resid_post.1', torch.zeros_like), edited(model, {'resid_pre.2': lambda t: got.__setitem__('x', t.clone())}): model.logits(ids, mask)
    keep = (ids==model.bos_id)|(ids==model.pad_id)
    torch.testing.assert_close(got['x'][keep], clean[keep], atol=1e-5, rtol=1e-4)
    assert got['x'][~keep].abs().max()==0
    class Narrow:
        d_in = 64
        def __call__(self, x): return x
    with pytest.raises(ValueError, match='reads 64 dimensions, site resid_post.1 of stdlib-4l has 256'):
        with replaced(model, 'resid_post.1', Narrow()): pass

def test_generation_under_an_edit(model):
    plain = model.generate('import os\n', 8)
    with edited(model, {'resid_post.3': ablate()}): other = model.generate('import os\n', 8)
    assert model.generate('import os\n', 8)==plain!=other

def test_ids_outside_the_vocabulary(model):
    with pytest.raises(ValueError, match=r'token ids must be in 0..8191, got 3..9000'): capture(model, torch.tensor([[3,9000]]), 'resid_post.0')

def test_masks_and_integers_select_positions(model):
    ids,_ = model.tokens('def f(x): return x')
    def at(positions):
        got = {}
        with edited(model, {'resid_post.0': ablate(positions=positions)}), edited(model, {'resid_post.0': lambda t: got.__setitem__('x', t.clone())}): model.logits(ids)
        return (got['x'].abs().sum(-1)==0)[0].nonzero().flatten().tolist()
    import numpy as np
    m = torch.zeros(ids.shape[1], dtype=torch.bool); m[2] = m[4] = True
    assert at(m)==at([2,4])==at(np.array([2,4]))==at(range(2,5,2))==[2,4] and at(np.int64(3))==[3]
    with pytest.raises(TypeError, match='use range'): ablate(positions=slice(2))
    with pytest.raises(TypeError, match='whole numbers'): ablate(heads=[.5])

def test_a_capture_within_an_edit_sees_it_and_leaves_it_in_place(model):
    ids,_ = model.tokens('def f(x): return x')
    for site in ('pattern.1', 'z.1'):
        with edited(model, {site: ablate(heads=0)}):
            seen = capture(model, ids, site)[site]  # pattern [n, heads, T, T], z [n, T, heads, d_head]
            first = seen[:,0] if site=='pattern.1' else seen[:,:,0]
            assert not first.any() and seen.any()
            after = model.logits(ids)
        with edited(model, {site: ablate(heads=0)}): assert torch.equal(model.logits(ids), after)  # the capture did not end the edit
        assert not torch.equal(model.logits(ids), after)

def test_names_asked_for_are_the_keys():
    net = torch.nn.Sequential(torch.nn.Linear(3,4), torch.nn.ReLU())
    assert set(capture(net, torch.randn(2,3), ['1', '0:in']))=={'1', '0:in'}
    with pytest.raises(ValueError, match='an empty list'): capture(net, [], '1')

def test_a_transcoder_of_another_width_is_refused(model):
    class Wide:
        d_in,d_out = 256,64
        def __call__(self, x): return x[..., :64]
    with pytest.raises(ValueError, match='writes 64 dimensions, site resid_post.1 of stdlib-4l has 256'):
        with replaced(model, 'resid_post.1', Wide()): pass

def test_models_no_longer_used_are_freed():
    import weakref
    x = torch.randn(2,3); seen = []
    for _ in range(6):
        net = torch.nn.Sequential(torch.nn.Linear(3,4)); capture(net, x, '0'); seen.append(weakref.ref(net))
    del net; gc.collect()
    assert sum(r() is not None for r in seen)<=2
