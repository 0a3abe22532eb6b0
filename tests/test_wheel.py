"The wheel holds everything, and works where there is no checkout"
import json, os, shutil, subprocess, sys, sysconfig, venv, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
PKG = ROOT/'sparsenb'

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, so that the checkout stays as it is"
    d = tmp_path_factory.mktemp('build')
    for f in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/f, d)
    shutil.copytree(PKG, d/'sparsenb', ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.tmp-*'))
    r = subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', d/'dist', d], capture_output=True, text=True)
    assert r.returncode==0, (r.stdout+r.stderr)[-3000:]
    return next((d/'dist').glob('*.whl'))

@pytest.fixture(scope='module')
def away(wheel, tmp_path_factory):
    "Run a program of a new environment, in an empty folder: the wheel is installed there, its dependencies are borrowed from this environment, the checkout is not"
    d = tmp_path_factory.mktemp('away')
    venv.create(d/'env', with_pip=False, symlinks=True)
    env = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'SPARSENB_CACHE')} | dict(HOME=str(d), SPARSENB_CACHE=str(d/'cache'))
    r = subprocess.run([sys.executable, '-m', 'pip', '--python', d/'env/bin/python', '--disable-pip-version-check', 'install', '-q', '--no-deps', '--no-index', wheel], capture_output=True, text=True)
    assert r.returncode==0, (r.stdout+r.stderr)[-3000:]
    site = next((d/'env').glob('lib/python*/site-packages'))
    # its own .pth files, such as that of an editable install, are not read when a folder comes in this way
    (site/'borrowed.pth').write_text('\n'.join(dict.fromkeys(sysconfig.get_path(k) for k in ('purelib', 'platlib')))+'\n')
    (d/'empty').mkdir()
    def run(program, *args):
        r = subprocess.run([d/'env/bin'/program, *args], cwd=d/'empty', env=env, capture_output=True, text=True)
        assert r.returncode==0, (r.stdout+r.stderr)[-3000:]
        return r.stdout
    return run

def test_holds_everything(wheel):
    "Modules of all folders, assets, templates, weights, licence; nothing else"
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith('/')}
    info = next(n.split('/')[0] for n in inside if '.dist-info/' in n)
    here = {p.relative_to(ROOT).as_posix() for p in PKG.rglob('*') if p.is_file() and not {'__pycache__', '.ipynb_checkpoints'}&set(p.parts) and not any(q.startswith('.tmp-') for q in p.parts)}
    assert {n for n in inside if not n.startswith(info)}==here
    assert f'{info}/licenses/LICENSE' in inside and f'{info}/entry_points.txt' in inside

def test_is_small(wheel): assert wheel.stat().st_size<=40_000_000

def test_imports_from_its_own_place(away):
    where,*names = away('python', '-c', "import sparsenb; from sparsenb.core import families; print(sparsenb.__file__); [print(f, *r) for f,r in families.items()]").split('\n')
    assert str(ROOT) not in where.split('/env/')[0] and '/env/' in where
    from sparsenb.core import families
    assert [l for l in names if l]==[' '.join([f, *r]) for f,r in families.items()]

def test_everything_a_notebook_wants_is_there(away):
    away('python', '-c', "from sparsenb.core import families; from sparsenb.all import *; [r[n] for r in families.values() for n in r]; load_model, load_corpus, fit, evaluate")

def test_the_command_line(away):
    from sparsenb.core import dictionaries
    got = json.loads(away('sparsenb', 'list', 'dictionaries', '--json'))
    assert [o['name'] for o in got]==dictionaries.names() and all(o['summary'] for o in got)

@pytest.mark.parametrize('name', sorted(p.parent.name for p in PKG.glob('weights/*/config.json')))
def test_bundled_models_open(away, name):
    code = f"from sparsenb.models import load_model; m = load_model({name!r}); ids,mask = m.tokens(['import os'], 16); print(m.name, *m.logits(ids, mask).shape)"
    assert away('python', '-c', code).split()[0]==name
