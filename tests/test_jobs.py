"One call over many items, on any executor: ordered, none lost, none silent"
import sys, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sparsenb import jobs
from sparsenb.core import UnknownName
from sparsenb.jobs import Failed, JobsFailed, RayExecutor, dask_executor, run_reports

def square(x): return x*x
def odd(x):
    if x%2: raise ValueError(f'{x} is odd')
    return x
def sweep(k):
    "What a sweep does: a small training, its last loss"
    import torch
    from sparsenb.core import dictionaries
    from sparsenb.train import fit
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    return fit(dictionaries['topk'](8, 32, k=k), x, n_tokens=640, batch_size=64, seed=0, mesh=False).rows[-1]['loss']

def here(): return None
def threads(): return ThreadPoolExecutor(2)
def processes(): return ProcessPoolExecutor(2, mp_context=get_context('spawn'))

@pytest.fixture(params=[here, threads, processes], ids=lambda f: f.__name__)
def executor(request):
    ex = request.param()
    yield ex
    if ex: ex.shutdown()

def test_results_come_in_order_whoever_runs_them(executor): assert jobs.map(square, range(20), executor)==[i*i for i in range(20)]

def test_a_failed_item_is_named_and_the_others_go_on(executor):
    got = jobs.map(odd, range(5), executor, errors='return')
    assert [g for g in got if not isinstance(g, Failed)]==[0, 2, 4]
    assert [(g.item, str(g.error), type(g.error)) for g in got if isinstance(g, Failed)]==[(1, '1 is odd', ValueError), (3, '3 is odd', ValueError)]
    assert 'in odd' in got[1].where and repr(got[1])=='Failed(1: ValueError: 1 is odd)'
    with pytest.raises(JobsFailed, match=r'2 of 5 failed:\n  Failed\(1: ValueError: 1 is odd\)\n  Failed\(3') as e: jobs.map(odd, range(5), executor)
    assert e.value.results[4]==4

def test_a_sweep_gives_the_same_in_other_processes():
    ks = [1, 2, 4]
    with processes() as ex: assert jobs.map(sweep, ks, ex)==jobs.map(sweep, ks)

def test_what_cannot_be_sent_fails_alone():
    with processes() as ex: got = jobs.map(square, [2, threading.Lock(), 3], ex, errors='return')
    assert got[0]==4 and got[2]==9 and isinstance(got[1], Failed) and 'pickle' in str(got[1].error)

def test_an_interrupt_stops_what_has_not_begun(monkeypatch):
    ran = []
    def slow(x): ran.append(x); time.sleep(.2)
    def interrupted(fs): raise KeyboardInterrupt
    monkeypatch.setattr(jobs, 'as_completed', interrupted)
    with ThreadPoolExecutor(1) as ex:
        with pytest.raises(KeyboardInterrupt): jobs.map(slow, range(50), ex)
    assert len(ran)<=2

def test_bad_arguments():
    with pytest.raises(ValueError, match="errors must be 'raise' or 'return', got 'ignore'"): jobs.map(square, [1], errors='ignore')
    assert jobs.map(square, [])==[]

def test_clusters_are_extras(monkeypatch):
    for module,make in (('ray', RayExecutor), ('distributed', dask_executor)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'sparsenb\[(ray|dask)\]'"): make()

class Ref:
    "As Ray's reference: it turns into a future"
    def __init__(self, future): self._future = future
    def future(self): return self._future

def test_ray_is_driven_through_its_references(monkeypatch):
    "Against a stand-in with the few calls of Ray that are used"
    pool,started = ThreadPoolExecutor(2),[]
    class Task:
        def __init__(self, f): self.f = f
        def options(self, **kw): started.append(kw); return self
        def remote(self, *a): return Ref(pool.submit(self.f, *a))
    fake = type(sys)('ray')
    fake.is_initialized,fake.init,fake.remote,fake.wait = lambda: False,lambda **kw: started.append('init'),Task,lambda refs, num_returns: [r.future().result() for r in refs if not r.future().exception()]
    monkeypatch.setitem(sys.modules, 'ray', fake)
    with RayExecutor(num_cpus=2) as ex: got = jobs.map(odd, [2, 3, 4], ex, errors='return')
    assert started==['init', dict(num_cpus=2)] and got[::2]==[2, 4] and isinstance(got[1], Failed)
    pool.shutdown()


# Reports

@pytest.fixture
def note(tmp_path):
    "A report that fails for layer 1"
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    cells = [new_markdown_cell('# layers'), new_code_cell('layer = 0', metadata=dict(tags=['parameters'])), new_code_cell("if layer==1: raise ValueError('no such layer')\nprint('this is layer', layer)")]
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), tmp_path/'layers.ipynb')
    return str(tmp_path/'layers.ipynb')

def test_reports_of_many_layers(note, tmp_path):
    with ThreadPoolExecutor(2) as ex: got = run_reports(note, [dict(layer=i) for i in range(3)], tmp_path/'out', ex, errors='return')
    assert [p.name for p in (got[0], got[2])]==['layer=0.html', 'layer=2.html']
    assert 'this is layer 2' in got[2].read_text()
    assert isinstance(got[1], Failed) and 'no such layer' in str(got[1].error) and got[1].item['params']==dict(layer=1)

def test_wrong_parameters_are_refused_before_the_first_report(note, tmp_path):
    with pytest.raises((UnknownName, ValueError), match='lair'): run_reports(note, [dict(layer=0), dict(lair=1)], tmp_path/'out')
    assert not (tmp_path/'out').exists()
