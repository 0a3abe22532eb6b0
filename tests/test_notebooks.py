"Every notebook runs: those of the package under nbdev, templates and examples under papermill"
import os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
rel = lambda p: p.relative_to(ROOT).as_posix()
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAGES = sorted([*ROOT.glob('sparsenb/templates/*.ipynb'), *ROOT.glob('examples/*.ipynb')])
# Small values for whichever of these parameters a page declares: the work is the same, there is less of it.
FAST = dict(n_tokens=6_000, train_tokens=20_000, eval_tokens=2_000, n_sequences=4, d_sae=256, k=8, batch_size=512, dictionaries=['topk', 'relu'], testbeds=['superposition', 'tree'], steps=20, l0s=[8], workers=0)

@pytest.mark.parametrize('path', NBS, ids=rel)
def test_nbdev(path):
    "Its lessons hold, and it leaves nothing behind"
    before = set(os.listdir(path.parent))
    r = subprocess.run([Path(sys.executable).with_name('nbdev-test'), path, '--n-workers', '0', '--do-print'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode==0, (r.stdout+r.stderr)[-4000:]
    assert path.name in r.stdout+r.stderr, 'nbdev-test did not run it'
    left = {n for n in set(os.listdir(path.parent))-before if not n.endswith(('.ipynb', '.ipynb_checkpoints'))}
    assert left==set(), 'a lesson wrote beside its notebook'

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A folder to work in, where a small run of the demo lies as runs/demo"
    from sparsenb.demo import demo
    d = tmp_path_factory.mktemp('project')
    demo(d/'runs/demo', n_tokens=20_000, d_sae=256, k=8, train_tokens=40_960, held_out=5_000)
    return d

@pytest.mark.parametrize('path', PAGES, ids=rel)
def test_papermill(path, project):
    "Runs in a folder without a checkout, with smaller numbers"
    import nbformat, papermill as pm
    declared = pm.inspect_notebook(str(path))
    out = project/f'{path.parent.name}-{path.name}'
    pm.execute_notebook(str(path), str(out), parameters={k: v for k,v in FAST.items() if k in declared}, kernel_name='python3', language='python', cwd=str(project),
        progress_bar=False, execution_timeout=600, store_widget_state=False)
    assert any(c.get('outputs') for c in nbformat.read(out, as_version=4).cells), 'nothing to see'

@pytest.mark.parametrize('path', [p for p in NBS if p.parent.name in ('nbs', 'widgets')], ids=rel) # methods have neither widgets nor bars
def test_papermill_of_the_package(path, tmp_path):
    "In a real kernel as well, where the widgets and bars of a notebook are live"
    import papermill as pm
    pm.execute_notebook(str(path), str(tmp_path/path.name), kernel_name='python3', language='python', cwd=str(tmp_path), progress_bar=False, execution_timeout=600, store_widget_state=False)

def test_there_is_something_to_run(): assert NBS and PAGES
