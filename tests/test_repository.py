"The repository holds together: settings, exports, notebooks, directions of import, what is shipped"
import ast, configparser, json, re, shutil, subprocess, sys, tomllib
from pathlib import Path
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PKG = ROOT/'sparsenb'
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAGES = sorted([*PKG.glob('templates/*.ipynb'), *ROOT.glob('examples/*.ipynb')])
SOURCES = sorted(p for p in PKG.rglob('*.py') if '__pycache__' not in p.parts)
BY_HAND = {'__init__.py', 'all.py'}  # everything else under sparsenb/ is exported from a notebook

toml = tomllib.loads((ROOT/'pyproject.toml').read_text())
ini = configparser.ConfigParser(interpolation=None)
ini.read(ROOT/'settings.ini')
rel = lambda p: p.relative_to(ROOT).as_posix()
ids = lambda ps: [rel(p) for p in ps]

def python(code, cwd=ROOT):
    r = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-2000:]
    return r.stdout.strip()

def names(reqs): return {Requirement(r).name.lower().replace('_', '-') for r in reqs}


# Settings

def test_the_two_configurations_agree():
    "settings.ini is read by nbdev 2 and pyproject.toml by nbdev 3: they must say the same"
    import sparsenb
    d,p,n = ini['DEFAULT'], toml['project'], toml['tool']['nbdev']
    assert sparsenb.__version__==d['version']
    assert (PKG/'__init__.py').read_text()==f'__version__ = "{d["version"]}"\n'
    assert p['name']==d['repo']==d['lib_name']==n['lib_name']
    for k in ('lib_path', 'nbs_path', 'tst_flags'): assert n[k]==d[k], k
    assert str(n['recursive'])==d['recursive']
    assert n['allowed_cell_metadata_keys']==d['allowed_cell_metadata_keys'].split()
    assert p['requires-python'].startswith(f">={d['min_python']},")
    assert p['description']==d['description'] and ' '.join(p['keywords'])==d['keywords']
    assert [a['name'] for a in p['authors']]==[d['author']]
    assert p['license']=='Apache-2.0' and d['license']=='apache2'
    assert names(d['requirements'].split())==names(p['dependencies'])

def test_settings_of_the_environment_are_the_defaults_and_documented():
    from sparsenb.core import settings, Settings
    own = Settings()
    keys = {k for k in ini['sparsenb'] if k not in ini.defaults()}
    assert keys==set(own.__dict__)
    text = (ROOT/'settings.ini').read_text().partition('[sparsenb]')[2]
    for k in keys: assert re.search(rf'^# {k}: .+\n{k} = ', text, re.M), f'{k} is not explained above its line'
    with pytest.MonkeyPatch.context() as m:
        m.delenv('SPARSENB_CACHE')
        assert settings(ROOT).replace(reports=own.reports)==own and settings(ROOT).reports==ROOT/own.reports

def test_pins_fit_what_is_asked_for():
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().split('\n') if l and not l.startswith('#'))
    have = {k.lower().replace('_', '-'): v for k,v in pins.items()}
    assert not any('+' in v for v in pins.values()), 'a local version fits one build only'
    asked = [*toml['project']['dependencies'], *(r for rs in toml['project']['optional-dependencies'].values() for r in rs)]
    for r in map(Requirement, asked):
        v = have.get(r.name.lower().replace('_', '-'))
        assert v and r.specifier.contains(v), f'{r} against {v}'


# Notebooks and what is exported from them

def test_modules_are_what_the_notebooks_export(tmp_path):
    "Exporting into an empty place gives the same set of files, byte for byte; nothing else is there"
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/f, tmp_path)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (tmp_path/'sparsenb').mkdir(); shutil.copy(PKG/'__init__.py', tmp_path/'sparsenb')
    r = subprocess.run([Path(sys.executable).with_name('nbdev-export')], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-2000:]
    new = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.glob('sparsenb/**/*.py')}
    old = {rel(p): p.read_bytes() for p in SOURCES}
    by_hand = {f'sparsenb/{f}' for f in BY_HAND}
    assert sorted(old.keys()-new.keys()-by_hand)==[], 'no notebook exports these: delete them'
    assert sorted(new.keys()-old.keys())==[], 'run nbdev-export'
    assert [k for k in new if new[k]!=old[k]]==[], 'edited by hand, or the notebook was not exported: nbdev-update or nbdev-export'

def test_cleaning_changes_nothing(tmp_path):
    "What `nbdev-clean` would do has been done"
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/f, tmp_path)
    for p in (*NBS, *PAGES):
        q = tmp_path/rel(p); q.parent.mkdir(parents=True, exist_ok=True); shutil.copy(p, q)
    subprocess.run([Path(sys.executable).with_name('nbdev-clean')], cwd=tmp_path, check=True, capture_output=True)
    for d in {tmp_path/rel(p.parent) for p in PAGES}:
        subprocess.run([Path(sys.executable).with_name('nbdev-clean'), '--fname', d], cwd=tmp_path, check=True, capture_output=True)
    assert [rel(p) for p in (*NBS, *PAGES) if p.read_bytes()!=(tmp_path/rel(p)).read_bytes()]==[], 'run nbdev-clean on these'

@pytest.mark.parametrize('path', (*NBS, *PAGES), ids=ids((*NBS, *PAGES)))
def test_notebook_is_fit_to_keep(path):
    "Small, in the form with cell ids, without traces of the machine that ran it"
    raw = path.read_bytes()
    assert len(raw)<=150_000, f'{len(raw):,} bytes'
    nb = json.loads(raw)
    assert (nb['nbformat'], nb['nbformat_minor'])>=(4, 5)
    assert set(nb['metadata'])<={'kernelspec', 'language_info', 'jupytext'}, 'widget state or other metadata'
    cells = nb['cells']
    assert 0<len(cells)<=100 and len({c['id'] for c in cells})==len(cells)
    assert cells[0]['cell_type']=='markdown' and ''.join(cells[0]['source']).startswith('# ')
    for c in cells:
        assert set(c['metadata'])<={'tags'}, c['metadata']
        assert c.get('execution_count') is None
        for o in c.get('outputs', ()):
            assert o.get('execution_count') is None and o['output_type']!='error'
            assert len(json.dumps(o))<=60_000, f"an output of {len(json.dumps(o)):,} bytes in cell {c['id']}"
            assert 'application/vnd.jupyter.widget-view+json' not in o.get('data', {}), 'a widget without its state shows nothing'
            assert not (m := re.search(r'/(home|root|Users|work|tmp)/[\w.-]+', json.dumps(o))), f'a path of some machine: {m[0]}'

def test_reports_can_be_told_parameters():
    "papermill finds them by a tag on their cell, which cleaning must leave alone"
    from sparsenb.report import parameters, templates
    assert templates() and all(parameters(t) for t in templates())


# Directions of import

def notebook_of(path):
    "The notebook a module is exported from, as 'nbs/…', or None"
    m = re.search(r'^# AUTOGENERATED! .*File to edit: (?:\.\./)+(.+\.ipynb)\.$', path.read_text(), re.M)
    return m and m[1]

def place(path):
    "('spine', number), ('family', name), or None for what is written by hand"
    nb = notebook_of(path)
    if nb is None: return None
    nb = nb.removeprefix('nbs/')
    if m := re.match(r'(\d\d)_\w+\.ipynb$', nb): return 'spine', int(m[1])
    return 'family', nb.split('/')[0]

def module(path): return '.'.join(('sparsenb', *path.relative_to(PKG).with_suffix('').parts))
MODULES = {module(p): p for p in SOURCES if p.name not in ('__init__.py', '_modidx.py')}

def imported(path):
    "Every module a file imports, at the top or inside a function, also by `import_module('…')`, as absolute names"
    package = module(path).split('.')[:-1]
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join(package[:len(package)-n.level+1]+([n.module] if n.module else [])) if n.level else n.module
            yield base
            yield from (f'{base}.{a.name}' for a in n.names)  # `from . import core` names a module
        elif isinstance(n, ast.Call) and getattr(n.func, 'attr', getattr(n.func, 'id', ''))in('import_module', '__import__'):
            if n.args and isinstance(n.args[0], ast.Constant): yield n.args[0].value

def allowed(me, it):
    "Whether a module in place `me` may import one in place `it`"
    if it is None: return False  # what is written by hand stands above everything
    if it[0]=='spine': return me[0]=='family' or it[1]<me[1]
    return False  # families are reached through their registries

@pytest.mark.parametrize('me,it,ok', [(('spine',20),('spine',10),True), (('spine',20),('spine',20),False), (('spine',20),('spine',30),False), (('spine',90),('family','widgets'),False),
    (('family','widgets'),('spine',80),True), (('family','analyses'),('family','probes'),False), (('family','probes'),('family','probes'),False), (('spine',20),None,False)])
def test_directions(me, it, ok): assert allowed(me, it)==ok

def test_imports_are_read(tmp_path):
    f = PKG/'dictionaries'/'x.py'
    got = imported(type('P', (), dict(relative_to=f.relative_to, read_text=lambda s: "from ..core import a\nfrom . import topk\ndef f():\n import plotly.express\n importlib.import_module('sparsenb.views')"))())
    assert {'sparsenb.core', 'sparsenb.dictionaries.topk', 'plotly.express', 'sparsenb.views'}<=set(got)

@pytest.mark.parametrize('name', [n for n in MODULES if n!='sparsenb.all'])
def test_imports_point_down(name):
    "The spine imports lower numbers, families import the spine, and nobody another family"
    me = place(MODULES[name])
    assert me, f'{name} is exported from no notebook'
    ours = {m for m in imported(MODULES[name]) if m in MODULES and m!=name}
    if name=='sparsenb.core': ours -= {'sparsenb.views'}  # `view` is the one late look-up that others use
    assert [m for m in sorted(ours) if not allowed(me, place(MODULES[m]))]==[]
    if me==('spine', 80) or me==('family', 'widgets'): assert not [m for m in imported(MODULES[name]) if m.split('.')[0]=='torch'], 'views and widgets know no torch'


# What an import costs

HEAVY = ('transformer_lens', 'transformers', 'plotly', 'datasets', 'pandas', 'IPython', 'ipywidgets')

def test_import_is_light():
    code = f"import time, sys; t = time.perf_counter(); import sparsenb; print(time.perf_counter()-t, *(m for m in sys.modules if m in {('torch', 'numpy', *HEAVY)}))"
    runs = [python(code).split() for _ in range(3)]
    assert min(float(r[0]) for r in runs)<.5
    assert runs[0][1:]==[], 'imported along'

def test_views_and_widgets_load_without_torch():
    mods = [n for n in MODULES if n=='sparsenb.views' or n.startswith('sparsenb.widgets.')]
    assert mods
    assert python(f"import sys, {', '.join(mods)}; print('torch' in sys.modules)")=='False'

def test_the_spine_loads_without_the_heavy_libraries():
    "They are imported where they are used"
    mods = [n for n,p in MODULES.items() if n not in ('sparsenb.all', 'sparsenb.numba_loops', 'sparsenb.numba_kernels', 'sparsenb.triton_kernels') and place(p)[0]=='spine'] # the last three are of extras
    assert python(f"import sys, {', '.join(mods)}; print(*sorted(m for m in sys.modules if m in {HEAVY}))")==''


# What is shipped

HOST = re.compile(r"""(?:https?:|(?<=["'(=]))//(?:[a-z0-9-]+\.)+[a-z]{2,}""", re.I)
NAMESPACES = ('http://www.w3.org',)  # names, not addresses: nothing is fetched from them

def test_nothing_shipped_names_a_host():
    "Pages and widgets must work with no network"
    shipped = [p for d in ('assets', 'templates') for p in (PKG/d).rglob('*') if p.is_file()]
    assert shipped
    assert {rel(p): h for p in (*shipped, *SOURCES) if (h := [m for m in HOST.findall(p.read_text()) if m not in NAMESPACES and 'arxiv.org' not in m])}=={}

def test_setting_up_names_no_registry():
    "Where packages come from is the machine's business"
    for f in ('Makefile', '.ci/setup', '.ci/run', '.ci/docs/build.py', '.ci/docs/conf.py', 'pyproject.toml', 'constraints.txt', 'settings.ini'):
        assert not (m := re.search(r'https?://|index-url|pypi\.|pythonhosted|npmjs|conda\.', (ROOT/f).read_text())), f'{f}: {m[0]}'

@pytest.mark.parametrize('path', SOURCES+sorted(ROOT.glob('benchmarks/*.py')), ids=rel)
def test_files_are_read_as_data(path):
    "Nothing that a file holds is ever executed"
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            came = [getattr(n, 'module', None) or '', *(a.name for a in n.names)]
            assert not {c.split('.')[0] for c in came}&{'pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'marshal'}, f'line {n.lineno}'
        if isinstance(n, ast.Call):
            f,kw = ast.unparse(n.func), {k.arg: ast.unparse(k.value) for k in n.keywords}
            if f=='torch.load': assert kw.get('weights_only')=='True', f'line {n.lineno}: torch.load without weights_only=True'
            assert f not in ('eval', 'exec', 'pickle.load', 'pickle.loads') and kw.get('allow_pickle')!='True', f'line {n.lineno}: {f}'

def test_the_top_level_is_the_agreed_one():
    r = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode or not r.stdout: pytest.skip('not a git checkout')
    top = {l.split('/')[0] for l in r.stdout.split('\n') if l}
    assert top<={'settings.ini', 'nbs', 'sparsenb', 'tests', 'examples', 'benchmarks', 'README.md', 'CHANGELOG.md', 'Makefile', 'constraints.txt', 'pyproject.toml', 'LICENSE', '.ci', '.gitignore', '.gitattributes'}
    tracked = r.stdout.split('\n')
    assert not [f for f in tracked if f.endswith(('.pyc', '.pt', '.pkl', '.bin')) or f.startswith(('runs/', '_docs/', '_proc/'))]

def test_files_of_tests_have_names_of_their_own():
    "They are no packages, so pytest takes two files of one name for one module and reads neither"
    names = [p.name for p in (ROOT/'tests').rglob('test_*.py')]
    assert sorted(n for n in {*names} if names.count(n)>1)==[]
