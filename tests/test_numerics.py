"Small types and massive channels: from the model to the evaluation, held to what float32 gives; and steps that are not finite"
import copy, csv, math
import pytest, torch
from sparsenb.core import dictionaries
from sparsenb.dictionary import load_dictionary
from sparsenb.metrics import evaluate
from sparsenb.models import load_model
from sparsenb.store import ActivationStore
from sparsenb.train import Callback, fit

torch.set_num_threads(1)
TEXTS = [f'def f{i}(x):\n    "Return x plus {i}."\n    return x+{i}\n\n'*12 for i in range(24)]
SMALL = dict(bfloat16=torch.bfloat16, float16=torch.float16)

def massive(model, size, channel=7, layer=1):
    "A copy of a model in which one channel of resid_post.`layer` is about `size` at every token"
    m = copy.deepcopy(model.module)
    mlp = m.model.layers[layer].mlp.down_proj
    mlp.bias = torch.nn.Parameter(torch.zeros(mlp.out_features, dtype=mlp.weight.dtype))
    with torch.no_grad(): mlp.bias[channel] = size
    return load_model(m, tokenizer=model.tokenizer, name='massive')

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', dtype='float32', device='cpu')

def collect(m, path, **kw): return ActivationStore.collect(m, TEXTS, kw.pop('site', 'resid_post.1'), path=path, progress=False, shuffle=False, **kw)
def all_rows(s): return torch.cat([r.x for r in s.rows()])


# Stores

@pytest.mark.parametrize('dtype,eps', [('float32', 0.), ('bfloat16', 2**-8), ('float16', 2**-11)])
@pytest.mark.parametrize('size', [1e3, 6e4])
def test_a_massive_channel_is_stored_to_the_types_last_digit(model, tmp_path, dtype, eps, size):
    "Each number is the float32 one, rounded; mean, scale and gamma follow from what is stored"
    m = massive(model, size)
    exact,s = all_rows(collect(m, tmp_path/'exact', dtype='float32')),collect(m, tmp_path/dtype, dtype=dtype)
    x = all_rows(s)
    assert exact[:,7].abs().max()>.98*size and torch.equal(x, exact.to(getattr(torch, dtype)).float())
    assert ((x-exact).abs()<=eps*exact.abs()+2**-25).all()
    torch.testing.assert_close(s.mean, x.double().mean(0).float(), rtol=1e-6, atol=1e-6*size)
    assert s.gamma>20 and s.scale==pytest.approx(math.sqrt(256/x.double().square().sum(1).mean().item()), rel=1e-6)

def test_what_float16_cannot_hold_is_refused_with_site_dimension_and_remedy(model, tmp_path):
    "7e4 is above 65504: nothing is stored; bfloat16 and float32 hold it"
    m = massive(model, 7e4)
    with pytest.raises(ValueError, match=r'resid_post\.1.*dimension 7.*too large for float16|too large for float16.*resid_post\.1.*dimension 7') as e: collect(m, tmp_path/'a', dtype='float16')
    assert 'bfloat16' in str(e.value) and not (tmp_path/'a').exists()
    for dtype in ('bfloat16', 'float32'): assert all_rows(collect(m, tmp_path/dtype, dtype=dtype))[:,7].mean()==pytest.approx(7e4, rel=.01)

def test_a_model_that_overflows_in_float16_is_told_so(model, tmp_path):
    "The sum inside the model is infinite before anything is stored"
    m = massive(model, 65_000.)
    half = load_model(copy.deepcopy(m.module).half(), tokenizer=model.tokenizer, name='half')
    with torch.no_grad(): half.module.model.layers[2].mlp.down_proj.bias = torch.nn.Parameter(torch.full((256,), 65_000., dtype=torch.float16))
    with pytest.raises(ValueError, match=r'(infinity|NaN) at site resid_post\.2.*dimension \d+.*bfloat16'): collect(half, tmp_path/'a', dtype='bfloat16', site='resid_post.2')
    assert not (tmp_path/'a').exists()

@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_rows_given_are_held_to_the_same(tmp_path, dtype):
    x = torch.randn(50, 4); x[13,2] = 7e4
    if dtype=='bfloat16': assert ActivationStore.from_rows(tmp_path/'s', x, dtype=dtype).mean[2]==pytest.approx(1400, rel=.01); return
    with pytest.raises(ValueError, match='row 13.*dimension 2.*bfloat16'): ActivationStore.from_rows(tmp_path/'s', x, dtype=dtype)

@pytest.mark.parametrize('dtype', list(SMALL))
def test_a_model_in_a_small_type_gives_nearly_the_same_activations(model, tmp_path, dtype):
    "Relative difference of each row to the float32 model's: at most 5 % in bfloat16, 1 % in float16 (reached: see the assertion's message)"
    small = load_model(copy.deepcopy(model.module).to(SMALL[dtype]), tokenizer=model.tokenizer, name='small')
    a,b = (all_rows(collect(m, tmp_path/n, dtype='float32')) for m,n in ((model, 'a'), (small, 'b')))
    off = ((a-b).norm(dim=1)/a.norm(dim=1)).max().item()
    assert off<(.05 if dtype=='bfloat16' else .01), off


# Training

def data(n=6000, d=16, massive=0.):
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(n, 40, generator=g)<.1)*torch.rand(n, 40, generator=g)@torch.nn.functional.normalize(torch.randn(40, d, generator=g), dim=1)
    x[:,3] += massive
    return x

def trained(x, steps=150, **kw):
    d = dictionaries['topk'](x.shape[1], 64, k=4)
    return d,fit(d, x, 256*steps, 256, **kw)

@pytest.mark.parametrize('name', ['topk', 'batch_topk', 'relu', 'jumprelu', 'gated'])
@pytest.mark.parametrize('dtype', list(SMALL))
def test_training_on_small_types_is_training_on_their_values(dtype, name):
    "A tensor in bfloat16 or float16 trains to the bits that the same numbers in float32 give"
    x,out = data().to(SMALL[dtype]),[]
    for t in (x, x.float()):
        d = dictionaries[name](16, 64)
        run = fit(d, t, 256*20, 256)
        out.append((d.state_dict(), run.history['fvu'][-1]))
    tol = dict(rtol=1e-4, atol=1e-5) # the mean and the scale are sums over all rows, made in either type's own way
    for k,v in out[0][0].items(): torch.testing.assert_close(v.float(), out[1][0][k].float(), **tol, msg=k)
    assert out[0][1]==pytest.approx(out[1][1], rel=1e-3)

@pytest.mark.parametrize('dtype', list(SMALL))
def test_rounded_data_train_as_well(dtype):
    "FVU on the float32 data within 2 % of its own value"
    x = data()
    fvu = []
    for t in (x, x.to(SMALL[dtype])):
        d,_ = trained(t)
        with torch.no_grad(): fvu.append(((d(x)-x).square().sum()/(x-x.mean(0)).square().sum()).item())
    assert fvu[1]==pytest.approx(fvu[0], rel=.02), fvu

@pytest.mark.parametrize('size', [1e3, 3e4, 7e4])
def test_a_massive_constant_channel_does_not_break_training(size):
    "float32: everything stays finite, and the rest of the data is still learned"
    x = data(massive=size)
    d,run = trained(x)
    assert all(p.isfinite().all() for p in d.parameters()) and all(math.isfinite(v) for v in run.history['loss'])
    with torch.no_grad(): y = d(x)
    assert y.isfinite().all() and (y[:,3].mean()/x[:,3].mean()).item()==pytest.approx(1, abs=1e-2)

def test_a_float16_tensor_that_overflowed_is_refused_with_its_place():
    x = data(massive=7e4).half()
    with pytest.raises(ValueError, match=r'row 0, dimension 3 is inf; 6000 of 6000 rows'): trained(x)

@pytest.mark.parametrize('dtype', list(SMALL))
def test_statistics_of_a_massive_channel_do_not_overflow(dtype):
    "Sums of squares of 6e4 are far above what float16 holds: mean and scale come out as in float32"
    x = data(massive=6e4).to(SMALL[dtype])
    a,b = (dictionaries['topk'](16, 64, k=4) for _ in range(2))
    fit(a, x, 256, 256); fit(b, x.float(), 256, 256)
    assert a.scale.item()==pytest.approx(b.scale.item(), rel=1e-4) and a.scale.isfinite()
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-3, atol=1e-3)


# Evaluation

@pytest.mark.parametrize('dtype', list(SMALL))
def test_evaluation_agrees_between_types(model, tmp_path, dtype):
    "FVU and L0 of one dictionary over a store in a small type, within 1 % of those over float32; CE of a model in it within .05 nats"
    exact,small = (collect(model, tmp_path/n, dtype=n) for n in ('float32', dtype))
    d = dictionaries['topk'](256, 512, k=8)
    fit(d, exact, 256*40, 256)
    a,b = (evaluate(d, s, model) for s in (exact, small))
    for k in ('fvu','l0'): assert b[k].value==pytest.approx(a[k].value, rel=.01), k
    m = load_model(copy.deepcopy(model.module).to(SMALL[dtype]), tokenizer=model.tokenizer, name='small')
    c = evaluate(d, collect(m, tmp_path/'own', dtype=dtype), m)
    assert c['fvu'].value==pytest.approx(a['fvu'].value, rel=.05) and math.isfinite(c['ce_recovered'].value)
    assert c['ce_recovered'].value==pytest.approx(a['ce_recovered'].value, abs=.05)


# Steps that are not finite

def stream(bad, n=100, what=float('nan')):
    "Batches of 64 of which some hold a number that is none"
    for i in range(n):
        b = data(64, 8)+torch.randn(64, 8, generator=torch.Generator().manual_seed(i))
        if i in bad: b[5,2] = what
        yield b

class Seen(Callback):
    "What the step left behind"
    def __init__(self): self.at = {}
    def after_step(self, run, out): self.at[run.step] = {k: v.clone() for k,v in run.dictionary.state_dict().items()}

@pytest.mark.parametrize('name', ['topk', 'batch_topk', 'relu', 'jumprelu'])
def test_a_step_that_is_not_finite_is_skipped_whole(name, tmp_path):
    "Weights and book-keeping after it are those before it; the log, the run and the result say how many there were"
    d,seen = dictionaries[name](8, 32),Seen()
    run = fit(d, stream({70, 71, 90}), 64*100, 64, max_skipped=3, log_every=10, path=tmp_path, callbacks=[seen])
    for s in (71, 72, 91): assert all(torch.equal(v, seen.at[s-1][k]) for k,v in seen.at[s].items()), s
    assert run.skipped==3 and run.step==100 and d.n_seen==97*64 and all(p.isfinite().all() for p in d.parameters())
    assert run.history['skipped'].tolist()==[0]*7+[2]*2+[3] and '3 steps skipped' in run.summary()
    assert [r['skipped'] for r in csv.DictReader(open(tmp_path/'log.csv'))][-1]=='3' and load_dictionary(tmp_path/'final').provenance['skipped']==3

def test_moments_stay_too():
    "One bad batch at the end of a run that is otherwise the same: Adam has moved 99 times in both"
    a,b = (dictionaries['topk'](8, 32, k=4) for _ in range(2))
    fit(a, stream({99}), 64*100, 64, max_skipped=1)
    class Stop(Callback):
        def after_step(self, run, out):
            if run.step==99: run.stop('here')
    fit(b, stream({}), 64*100, 64, callbacks=[Stop()])
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in a.state_dict().items())

def test_one_too_many_ends_the_run_with_its_place():
    with pytest.raises(FloatingPointError, match=r'loss is nan at step 91, after 2 skipped steps \(max_skipped=2\): the batch holds nan in x, row 5, dimension 2'):
        fit(dictionaries['topk'](8, 32, k=4), stream({70, 80, 90}), 64*100, 64, max_skipped=2)
    with pytest.raises(FloatingPointError, match='loss is nan at step 71: the batch'): fit(dictionaries['topk'](8, 32, k=4), stream({70}), 64*100, 64)
    with pytest.raises(ValueError, match='max_skipped must be a whole number'): fit(dictionaries['topk'](8, 32, k=4), data(d=8), 640, 64, max_skipped=-1)

class Spiky(dictionaries['topk']):
    "TopK whose gradient, but not whose loss, is infinite now and then"
    name = 'spiky'
    def step(self, x, y=None):
        out = super().step(x, y)
        self.steps = getattr(self, 'steps', 0)+1
        if self.steps not in (30, 50): return out
        b = self.b_dec
        return out._replace(loss=out.loss+((b-b.detach())*1e30*1e30).sum().nan_to_num(0, 0, 0)+(b-b.detach()).abs().sqrt().sum()) # the root's slope at 0

def test_a_gradient_that_is_not_finite_is_skipped_too():
    d = Spiky(8, 32, k=4)
    run = fit(d, stream({}), 64*100, 64, max_skipped=5)
    assert run.skipped==2 and all(p.isfinite().all() for p in d.parameters()) and d.n_seen==98*64

def test_a_skipped_window_and_a_resumed_run(tmp_path):
    "A window of which every step was skipped is not logged by itself; a run that is stopped and begun again ends at the same bits and count"
    bad = set(range(70, 82))
    whole = dictionaries['topk'](8, 32, k=4)
    run = fit(whole, list(stream({})), 64*100, 64, max_skipped=20)
    class Poison(Callback):
        "Make the weights' loss infinite for some steps, by the batch's place in the run"
        def after_step(self, run, out):
            if self.stop and run.step==75: raise KeyboardInterrupt
        def __init__(self, stop): self.stop = stop
    class Sick(dictionaries['topk']):
        name = 'sick'
        def step(self, x, y=None):
            out = super().step(x, y)
            return out._replace(loss=out.loss*float('nan')) if round(self.progress*100) in bad else out
    a,b = Sick(8, 32, k=4),Sick(8, 32, k=4)
    x = list(stream({}))
    one = fit(a, x, 64*100, 64, max_skipped=20, log_every=5, path=tmp_path/'a', checkpoint_every=10)
    with pytest.raises(KeyboardInterrupt): fit(b, x, 64*100, 64, max_skipped=20, log_every=5, path=tmp_path/'b', checkpoint_every=10, callbacks=[Poison(True)])
    two = fit(b, x, 64*100, 64, max_skipped=20, log_every=5, path=tmp_path/'b', checkpoint_every=10)
    assert one.skipped==two.skipped==12 and run.skipped==0 and one.history['step'].tolist()==[*range(5, 75, 5), 85, 90, 95, 100]
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in a.state_dict().items()) and one.history['loss'].tolist()==two.history['loss'].tolist()
