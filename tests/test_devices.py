"A device is believed only where it agrees with the processor; deterministic algorithms come and go with their block"
import os, subprocess, sys
import pytest, torch
import sparsenb.devices as devices
from sparsenb.core import dictionaries
from sparsenb.devices import deterministic, ensure, ops, parity, tolerances
from sparsenb.train import fit

torch.set_num_threads(1)

@pytest.fixture
def fake(monkeypatch):
    "A device called mps that is really the processor, and a table of operations to break"
    monkeypatch.setattr(devices, '_move', lambda t, device, dtype: t.to(dtype) if t.is_floating_point() else t)
    monkeypatch.setattr(devices, '_believed', set())
    monkeypatch.setattr(devices, 'ops', dict(ops))
    def spoil(name, how): devices.ops[name] = lambda t: how(ops[name](t)) if t['x'].dtype!=torch.float64 else ops[name](t)
    return spoil

def zero_one(y): y = y.contiguous().clone(); y.view(-1)[y.abs().argmax()] = 0; return y
def nan_one(y): y = y.contiguous().clone(); y.view(-1)[0] = float('nan'); return y

@pytest.mark.parametrize('dtype', tolerances)
def test_the_processor_agrees_with_itself(dtype):
    p = parity('cpu', dtype)
    assert not p.wrong and len(p.rows)==len(ops) and all(r[1] is not None for r in p.rows)
    assert p.table().column('operation')==tuple(ops) and 'none wrong' in repr(p)

def test_what_training_and_capture_compute_is_covered():
    assert {'linear','matmul','addmm','topk','bag','bag_grad','scatter','gather','index_add','layer_norm','softmax','attention','adam','casts'}<=set(ops)

@pytest.mark.parametrize('name', list(ops))
@pytest.mark.parametrize('how', [zero_one, nan_one, lambda y: y*1.1, lambda y: y.flip(0)], ids=['entry lost','nan','10 % off','order'])
def test_each_wrong_operation_is_seen(fake, name, how):
    fake(name, how)
    with pytest.raises(RuntimeError, match=f"device 'mps' computes wrongly in float32: {name} differs by"): ensure('mps')
    assert not devices._believed

def test_a_right_device_is_tested_once(fake, monkeypatch):
    calls = []
    real = devices.parity
    monkeypatch.setattr(devices, 'parity', lambda *a: calls.append(a) or real(*a))
    for _ in range(3): ensure('mps')
    ensure('mps', torch.bfloat16)
    assert len(calls)==2
    ensure('cpu'); ensure(torch.device('cpu'), 'float16')
    assert len(calls)==2 # the processor is the measure: nothing is computed

def test_who_knows_better_may_go_on(fake):
    fake('matmul', lambda y: y+1)
    with pytest.raises(RuntimeError, match='matmul differs by .* check=False'): ensure('mps')
    ensure('mps', check=False)
    ensure('mps'); ensure('mps', 'float16')

def test_an_operation_that_is_missing_is_noted_and_all_missing_is_refused(fake, monkeypatch):
    def no(t): raise NotImplementedError('aten::_embedding_bag is not there')
    real = devices.ops['bag']
    monkeypatch.setitem(devices.ops, 'bag', lambda t: no(t) if t['x'].dtype!=torch.float64 else real(t))
    p = parity('mps')
    assert not p.wrong and next(r for r in p.rows if r[0]=='bag')[1] is None and 'not there' in repr(p)
    ensure('mps')
    for k in devices.ops: monkeypatch.setitem(devices.ops, k, no)
    with pytest.raises(RuntimeError, match='computes nothing in bfloat16'): ensure('mps', 'bfloat16')

def test_an_unknown_dtype_names_the_valid_ones():
    with pytest.raises(KeyError, match='float16'): parity('cpu', 'flaot16')

def test_nothing_of_the_generator_is_used():
    g = torch.get_rng_state(); parity(); assert torch.equal(g, torch.get_rng_state())


# The same bits again

def now(): return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.benchmark,
                   torch.backends.cudnn.deterministic, os.environ.get('CUBLAS_WORKSPACE_CONFIG'))

def test_two_runs_agree_bit_for_bit():
    x = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    out = []
    for name in ('topk','batch_topk','relu'):
        for _ in range(2):
            d = dictionaries[name](16, 64, **({} if name=='relu' else dict(k=4)))
            with deterministic(): run = fit(d, x, 256*30, 256)
            out.append((d.state_dict(), run.history['loss'].tolist()))
    for a,b in zip(out[::2], out[1::2]):
        assert a[1]==b[1] and all(torch.equal(v, b[0][k]) for k,v in a[0].items())

@pytest.mark.parametrize('env', [None, ':16:8', ':0:0'])
@pytest.mark.parametrize('warn', [False, True])
def test_what_was_set_is_set_again(monkeypatch, env, warn):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    if env: monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', env)
    torch.use_deterministic_algorithms(warn, warn_only=warn)
    try:
        was = now()
        with pytest.raises(ZeroDivisionError):
            with deterministic(warn_only=not warn):
                assert now()==(True, not warn, False, True, ':16:8' if env==':16:8' else ':4096:8')
                with deterministic(): assert now()[1] is False
                assert now()[1] is (not warn)
                1/0
        assert now()==was
    finally: torch.use_deterministic_algorithms(False)

def test_memory_that_was_not_written_shows():
    with deterministic(): assert torch.empty(100).isnan().all()

def test_importing_it_is_light():
    code = "import sys; import sparsenb.devices; print(','.join(m for m in ('sklearn','plotly','transformer_lens','numba','triton') if m in sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip()==''
