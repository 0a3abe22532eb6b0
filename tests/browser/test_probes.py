"The atlas of probes as a person uses it: cells, keys, tasks, the card of a direction; live in JupyterLab, and from the disk with no network"
import sys
import pytest
from sparsenb.views import page as html_page
from asking import says

S,C = '.snb-pa','.snb-pa-card .snb-fc'
TEXT = '"""Areas of shapes."""\ndef area(width, height):\n    """Area of a rectangle"""\n    return width*height\n\nclass Shape(list):\n    def __len__(self): return max(1, sum([len(x) for x in (self, ())]))\n'*6

@pytest.fixture(autouse=True)
def helpers(root):
    if str(root/'tests') not in sys.path: sys.path.insert(0, str(root/'tests'))

def at(p, *place): p.wait_for_function(f"want => document.querySelector('{S}')?.dataset.at === want", arg=','.join(map(str, place)))
def titled(p, want): p.wait_for_function(f"want => document.querySelector('{C} .snb-n')?.innerText.includes(want) && !document.querySelector('.snb-pa-card').hidden", arg=want)
def wide(p): return p.evaluate("Math.max(...[...document.querySelectorAll('.snb-pa, .snb-pa-card')].map(a => a.scrollWidth-a.clientWidth))")
def cell(layer, site): return f'{S} .snb-pa-c[data-at="{layer},{site}"]'


def test_live(notebook, root):
    nb = notebook([f"import sys, tempfile; sys.path.insert(0, {str(root/'tests')!r})\nfrom toy_sweep import toy_sweep\ns = toy_sweep()\nfound = s.indexes('stdlib-4l', {TEXT!r}, 200, tempfile.mkdtemp(), n_top=4, n_quantiles=2, n_per_quantile=1)",
        "w = s.atlas(found, task='docstring')\nw"], size=(1250, 1250))
    nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    nb.run_all(120); nb.wait_for_selector(f'{C} .snb-x .k')
    at(nb, 2, 1, 1, 0); titled(nb, 'docstring')
    # cells by mouse and keys, and from a cell of the notebook
    nb.click(cell(1, 1)); says(nb, 'w.key', "(0, 'resid_post', 'docstring', 'logistic')"); at(nb, 1, 1, 1, 0)
    nb.keyboard.press('ArrowLeft'); says(nb, 'w.layer', ''); assert 'read layer by layer' in nb.inner_text(f'{S} .snb-pa-r')
    nb.keyboard.press('ArrowUp'); says(nb, 'w.site', "'embed'"); nb.keyboard.press('End'); at(nb, 2, 0, 1, 0); assert 'see its cell in the first column' in nb.inner_text(f'{S} .snb-pa-r')
    nb.python("w.layer, w.site = 2, 'resid_post'"); at(nb, 2, 1, 1, 0); titled(nb, 'docstring')
    # a count takes a probe of numbers with it; colour
    nb.select_option(f'{S} select[aria-label=task]', '2'); says(nb, 'w.task, w.probe', "('brackets', 'ridge')"); titled(nb, 'brackets')
    nb.select_option(f'{S} select[aria-label=colour]', label='selectivity'); says(nb, 'w.metric', "'selectivity'")
    nb.select_option(f'{S} select[aria-label=task]', '1'); titled(nb, 'docstring'); says(nb, 'w.metric', "'selectivity'")
    nb.python("w.probe, w.metric = 'mlp', ''"); nb.wait_for_function("() => document.querySelector('.snb-pa-d').innerText.includes('is not linear')"); assert nb.is_hidden('.snb-pa-card')
    nb.python("w.probe = 'logistic'"); titled(nb, 'docstring')
    # the card answers: forms stay, a token asks the model
    nb.click(f'{C} button:has-text("Snippet")'); nb.click(cell(1, 1)); nb.wait_for_selector(f'{C} .snb-x.snippet'); at(nb, 1, 1, 1, 0); says(nb, 'w.layer', '0')
    nb.click(f'{C} .snb-x .k.p >> nth=0'); nb.wait_for_function(f"() => document.querySelector('{C} .snb-effect')?.innerText.length > 30 && !document.querySelector('{C} .snb-effect').innerText.includes('Asking')")
    nb.evaluate(f"document.querySelector('{S}').scrollIntoView()"); nb.shot('probes')
    nb.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", 'JupyterLab Dark'); nb.wait_for_function("document.body.dataset.jpThemeLight==='false'")
    nb.wait_for_selector('#jupyterlab-splash', state='detached'); nb.shot('probes_dark')
    assert wide(nb)<=1 and nb.fetched==[] and nb.complaints==[]


def test_a_page_from_the_disk(static, tmp_path):
    "Cells, tasks and cards without a kernel; names that look like markup stay text; narrow and dark"
    from toy_sweep import TASKS, toy_sweep
    s = toy_sweep()
    found = s.indexes('stdlib-4l', TEXT, 200, tmp_path/'i', n_top=4, n_quantiles=2, n_per_quantile=1)
    html_page('Probes', [s.atlas({k: v for k,v in found.items() if k!='resid_post.0'}).static()], tmp_path/'p.html')
    p = static(tmp_path/'p.html', size=(1100, 1000))
    at(p, 2, 1, 0, 0); titled(p, TASKS[0])
    assert p.inner_text(cell(2, 1)).split()==['0.58', '−0.02'] and TASKS[0] in p.inner_text(f'{S} .snb-pa-r')
    assert p.locator('.snb-pa-all :is(img, script, style, link)').count()==0 and p.evaluate('window.pwned') is None
    p.focus(cell(2, 1)); p.keyboard.press('ArrowLeft'); at(p, 1, 1, 0, 0); assert 'No text was read along this direction' in p.inner_text('.snb-pa-d') and p.is_hidden('.snb-pa-card')
    p.keyboard.press('ArrowLeft'); p.keyboard.press('ArrowUp'); at(p, 0, 0, 0, 0); titled(p, TASKS[0])
    p.select_option(f'{S} select[aria-label=task]', '2'); at(p, 0, 0, 2, 2); titled(p, 'brackets')
    p.select_option(f'{S} select[aria-label=probe]', '1'); at(p, 0, 0, 2, 2) # mlp reads no counts: the one that does stays
    p.click(f'{C} .snb-x .k.p >> nth=0'); assert 'a direction rebuilds no activation' in p.inner_text(f'{C} .snb-effect')
    p.select_option(f'{S} select[aria-label=task]', '1'); p.select_option(f'{S} select[aria-label=probe]', '1'); at(p, 0, 0, 1, 1); assert 'mlp is not linear' in p.inner_text('.snb-pa-d')
    p.select_option(f'{S} select[aria-label=probe]', '0'); p.click(cell(2, 1)); titled(p, 'docstring'); p.click(f'{C} .snb-open')
    assert p.locator(f'{C} .snb-export button').all_inner_texts()==['SVG', 'PNG']
    p.keyboard.press('Escape'); p.shot('probes_static')
    p.set_viewport_size(dict(width=600, height=1500)); p.wait_for_timeout(200); p.shot('probes_narrow'); assert wide(p)<=1
    p.emulate_media(color_scheme='dark'); p.wait_for_timeout(200); p.shot('probes_dark_narrow')
    assert p.fetched==[] and p.complaints==[]
