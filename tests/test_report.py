"Reports, the demo and the command line, small"
import json, os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from sparsenb.core import UnknownName
from sparsenb.report import ReportError, check_parameters, find_template, parameters, run_report, templates

def page(path, *cells):
    nb = new_notebook(cells=[new_code_cell("n: int = 3  # how many\nshare: float = .5\nword: str = 'a'\non: bool = False\npick: list = []", metadata=dict(tags=['parameters'])), *map(new_code_cell, cells)])
    nbformat.write(nb, path)
    return path

def test_bundled_templates_declare_typed_parameters_with_help():
    assert {'quickstart', 'feature_dashboard'} <= set(templates())
    for name in templates():
        for k,p in parameters(name).items(): assert p['help'] and p['type'] in ('int','float','str','bool','list'), (name, k, p)

def test_parameters_are_checked_before_anything_runs(tmp_path):
    p = page(tmp_path/'p.ipynb', "open('ran', 'w')")
    good = check_parameters(p, dict(n='1_000', share='0.25', on='true', pick='[1, 2]', word='7'))
    assert good==dict(n=1000, share=.25, on=True, pick=[1,2], word='7')
    for bad,msg in ((dict(n='x'), "parameter n: int was expected, got 'x' (str)"), (dict(n=True), 'int was expected'), (dict(on='maybe'), 'bool was expected'), (dict(pick='3'), 'list was expected'), (dict(share='half'), 'float was expected')):
        with pytest.raises(ValueError, match=re.escape(msg)): run_report(p, bad, tmp_path/'o.html')
    with pytest.raises(UnknownName, match="unknown parameter 'wrd'; did you mean 'word'"): run_report(p, dict(wrd=1), tmp_path/'o.html')
    with pytest.raises(UnknownName, match="did you mean 'quickstart'"): run_report('quickstrt')
    with pytest.raises(ValueError, match='must end in .html'): run_report(p, out=tmp_path/'o.pdf')
    assert not (tmp_path/'o.html').exists() and not Path('ran').exists()

def test_a_failing_cell_keeps_the_notebook_and_the_earlier_html(tmp_path):
    p,out = page(tmp_path/'p.ipynb', "assert n<5, 'n is too large'"), tmp_path/'o.html'
    run_report(p, out=out); was = out.read_bytes()
    with pytest.raises(ReportError, match='AssertionError: n is too large') as e: run_report(p, dict(n=7), out)
    assert out.read_bytes()==was and 'n is too large' in e.value.notebook.read_text()

def test_reports_side_by_side_leave_the_environment_alone(tmp_path, monkeypatch):
    "Each kernel sets its own: what one report puts back, another must not have taken for the user's"
    for k in ('SPARSENB_PROGRESS', 'PLOTLY_RENDERER'): monkeypatch.delenv(k, raising=False)
    was = dict(os.environ)
    cell = "import os, time; time.sleep(.2*n); print(f'[{os.environ[\"SPARSENB_PROGRESS\"]} {os.environ[\"PLOTLY_RENDERER\"]}]')"
    with ThreadPoolExecutor(3) as ex: outs = list(ex.map(lambda n: run_report(page(tmp_path/f'p{n}.ipynb', cell), dict(n=n), tmp_path/f'o{n}.html'), range(1, 4)))
    assert all('[off plotly_mimetype+notebook]' in o.read_text() for o in outs)
    assert {k: v for k,v in os.environ.items() if k!='PYTEST_CURRENT_TEST'}=={k: v for k,v in was.items() if k!='PYTEST_CURRENT_TEST'}

def test_html_is_offline_and_hostile_text_is_text(tmp_path):
    from toy_index import HOSTILE
    cell = f"from sparsenb.core import view\nview('Tokens', 'hostile', ({tuple(HOSTILE)!r},), ([1.]*{len(HOSTILE)},))"
    out = run_report(page(tmp_path/'p.ipynb', cell), out=tmp_path/'o.html'); html = out.read_text()
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html) and '@import' not in html
    assert not re.search(r'<img[^>]+onerror', html)
    assert '&lt;/script&gt;' in html

@pytest.mark.skipif(not hasattr(os, 'geteuid') , reason='POSIX permissions')
def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError, match='a folder was expected'): run_report(page(tmp_path/'p.ipynb'), out=tmp_path/'file'/'o.html')

cli = lambda *a, **kw: subprocess.run([sys.executable, '-c', 'from sparsenb.cli import main; main()', *a], capture_output=True, text=True, **kw)

def test_command_line_lists_and_refuses():
    r = cli('list', 'dictionaries', '--json'); rows = json.loads(r.stdout)
    assert {'name': 'topk', 'summary': next(o['summary'] for o in rows if o['name']=='topk')} in rows and all(o['summary'] for o in rows)
    for family in ('widgets', 'reports', 'models', 'corpora'): assert json.loads(cli('list', family, '--json').stdout), family
    r = cli('list', 'dictionary')
    assert r.returncode==2 and r.stdout=='' and r.stderr.count('\n')==1 and "did you mean 'dictionaries'" in r.stderr
    r = cli('report', 'feature_dashboard', '-p', 'dictionry', 'x')
    assert r.returncode==2 and "did you mean 'dictionary'" in r.stderr
    r = cli('report', 'feature_dashboard', '-p', 'dictionary', '/nowhere', '--out', os.devnull+'.html')
    assert r.returncode in (1,2) and 'Traceback' not in r.stderr

def test_lab_passes_its_arguments_on():
    r = cli('lab', '--version')
    assert r.returncode==0 and r.stdout.strip().startswith('4.'), r
    assert cli('list', 'dictionaries', '--jsn').returncode==2

def test_list_needs_no_heavy_import():
    code = "import sys; from sparsenb.cli import main; main(['list','dictionaries']); assert not {'torch','plotly','transformers'}&set(sys.modules), 'heavy'"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode==0, r.stderr

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    from sparsenb.demo import demo
    d = tmp_path_factory.mktemp('demo'); kw = dict(n_tokens=12_000, d_sae=256, k=8, train_tokens=20_480, held_out=4_000)
    return d, kw, demo(d, **kw)

def test_demo_leaves_its_report_and_summary(small):
    d,kw,s = small
    assert json.loads((d/'summary.json').read_text())==json.loads(json.dumps(s))
    assert {'model','site','n_tokens','d_sae','k','l0','fvu','ce_recovered','dead_fraction','seconds','activations_per_second','peak_memory'} <= set(s)
    assert s['n_tokens']==12_000 and s['train_tokens']>=20_480 and s['k']==8 and 0<s['l0']<=8 and 0<s['fvu']<1 and 0<s['ce_recovered']<1 and s['peak_memory']>1e8
    html = (d/'report.html').read_text()
    assert 'ce_recovered' in html and 'class="snb snb-static"' in html and len(html)<5e6
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)

def test_demo_a_second_time_reuses_everything(small):
    d,kw,s = small
    from sparsenb.demo import demo
    files = {p: p.stat().st_mtime_ns for p in [*(d/'acts').rglob('*.safetensors'), *(d/'index').glob('*.npy')]}
    again = demo(d, **kw)
    assert all(p.stat().st_mtime_ns==t for p,t in files.items())
    assert {k: again[k] for k in ('l0','fvu','ce_recovered','dead_fraction','seconds')}=={k: s[k] for k in ('l0','fvu','ce_recovered','dead_fraction','seconds')}
