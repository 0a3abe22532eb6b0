"The atlas of probes, the trees they read and the map of places as a person uses them; live in JupyterLab, and from the disk with no network"
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


# ---- syntax trees ----

T = '.snb-tv'
TREES = """import sys; sys.path.insert(0, {tests!r})
from toy_trees import toy_trees
w = toy_trees(['a = f(b)', 'if x:\\n    y'])
w"""
def brackets(p): return p.locator(f'{T} .node').count()
def dark(nb, size):
    nb.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", 'JupyterLab Dark'); nb.wait_for_function("document.body.dataset.jpThemeLight==='false'")
    nb.wait_for_selector('#jupyterlab-splash', state='detached')
    if size: nb.set_viewport_size(size)
    nb.wait_for_timeout(300)
def overflow(p, css): return p.evaluate("c => Math.max(...[...document.querySelectorAll(c)].map(a => a.scrollWidth-a.clientWidth))", css)

PLACES = """from sparsenb.core import widgets
from sparsenb.tables import load_table
t = load_table('places')
import numpy as np
g = widgets['geo_map'](t['latitude'], t['longitude'], np.abs(t['latitude']), 'Where they are', text=t['name'], region=t['country'], to=np.stack([t['latitude']*.8, t['longitude']*.8], 1), label='degrees', caption='Every place')
g"""

def test_trees_and_places_live(notebook, root):
    "Snippets, layers, nodes and a text of one's own; places by box, lasso, country, keys, and from a cell"
    nb = notebook([TREES.format(tests=str(root/'tests')), PLACES], size=(1250, 1000))
    nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    nb.run_all(120); nb.wait_for_selector(f'{T} .node'); nb.wait_for_selector('.snb-gm svg g[data-i]')
    n = brackets(nb)
    nb.select_option(f'{T} select', '1'); says(nb, 'w.snippet, w.node', '(1, [])'); nb.select_option(f'{T} select', '0'); nb.wait_for_function(f"n => document.querySelectorAll('{T} .node').length===n", arg=n)
    nb.focus(f'{T} .snb-tv-o'); nb.keyboard.press('ArrowRight'); says(nb, 'w.node', '[0, 0]'); nb.keyboard.press('ArrowRight'); says(nb, "w.node[0], w.picked['text']", "(0, 'a')")
    nb.keyboard.press('ArrowRight'); says(nb, "w.picked['tree'], w.picked['text']", "('probe', 'a')")  # across the text
    nb.keyboard.press('['); says(nb, 'w.layer', "'early'"); assert nb.locator(f'{T} .snb-tv-k [aria-pressed=true]').inner_text().startswith('early')
    nb.click(f'{T} .snb-tv-x .k >> text=b'); says(nb, "w.picked['text']", "'b'")
    nb.click(f'{T} button:has-text("Python’s nodes")'); says(nb, 'w.binary, w.node', '(False, [])'); nb.wait_for_function(f"n => document.querySelectorAll('{T} .node').length<n", arg=n); nb.click(f'{T} button:has-text("binary")')
    nb.fill(f'{T} textarea', 'x = ('); nb.wait_for_function(f"document.querySelector('{T} .snb-wrong').innerText.startsWith('Python cannot read it, line 1')"); assert nb.locator(f'{T} .snb-split').is_hidden()
    nb.fill(f'{T} textarea', 'x = (1)'); nb.wait_for_function(f"document.querySelector('{T} .snb-tv-x').innerText==='x = (1)' && document.querySelector('{T} .snb-wrong').hidden"); says(nb, 'w.reading.text', "'x = (1)'")
    nb.fill(f'{T} textarea', ''); nb.keyboard.press('Tab'); nb.wait_for_function(f"document.querySelector('{T} .snb-tv-x').innerText==='a = f(b)'")
    # places
    nb.evaluate("document.querySelector('.snb-gm').scrollIntoView()"); nb.wait_for_timeout(300); b = nb.locator('.snb-gm svg').bounding_box()
    drag(nb, b, [(.46, .1), (.56, .3)]); nb.wait_for_selector('.snb-gm-t tr >> nth=3')
    says(nb, "len(g.selected)>20 and 'Paris' in g.selected and 'Tokyo' not in g.selected and all(35<t['latitude'][i]<75 for i in g.rows)", 'True')
    nb.click('.snb-gm button:has-text("lasso")'); says(nb, 'g.lasso', 'True'); nb.wait_for_selector('.snb-gm button:has-text("lasso")[aria-pressed=true]')
    drag(nb, b, [(.85, .3), (.98, .3), (.98, .55), (.85, .3)]); says(nb, "'Tokyo' in g.selected, 'Paris' in g.selected", '(True, False)')
    nb.shot('places')
    nb.select_option('.snb-gm select', label='Kenya'); says(nb, "len(g.rows)>1 and all(t['country'][i]=='Kenya' for i in g.rows)", 'True')
    nb.python("g.selected = ['Oslo']"); nb.wait_for_function("document.querySelector('.snb-gm-t').innerText.includes('Oslo')"); assert nb.locator('.snb-gm-t tr').count()==2
    nb.focus('.snb-gm svg'); nb.keyboard.press('ArrowRight'); nb.wait_for_function("!document.querySelector('.snb-gm-t').innerText.includes('Oslo')"); says(nb, "len(g.selected), float(t['longitude'][g.rows[0]])>10.8", '(1, True)')
    nb.keyboard.press('Escape'); says(nb, 'g.selected', '[]')
    nb.evaluate(f"document.querySelector('{T}').scrollIntoView()"); nb.python('w.node = [0, 2]'); nb.wait_for_selector(f'{T} .node.kept'); nb.shot('trees')
    dark(nb, dict(width=640, height=1300)); nb.shot('trees_dark_narrow'); assert overflow(nb, f'{T}, .snb-gm')<=1
    assert nb.fetched==[] and nb.complaints==[]

def drag(p, b, path):
    at = [(b['x']+x*b['width'], b['y']+y*b['height']) for x,y in path]
    p.mouse.move(*at[0]); p.mouse.down()
    for q in at[1:]: p.mouse.move(*q, steps=4)
    p.mouse.up()

def test_trees_and_places_from_the_disk(static, tmp_path):
    "The same on a page without a kernel; hostile names stay text; narrow and dark"
    import numpy as np
    from sparsenb.core import widgets
    from toy_trees import toy_trees
    evil = '</script><img src=x onerror=window.pwned=1>'
    w = toy_trees(['a = f(b)', f'x = {evil!r}'], layers=('early', evil)); w.layer = 'early'
    g = widgets['geo_map']([48.9, 51.5, 35.7], [2.3, -.1, 139.7], [1., 2, np.nan], evil, text=['Paris', 'London', evil], region=['France', 'England', evil], to=[[40, 0], [50, 10], [30, 100]], label='error in km')
    html_page('Trees and places', [w.static(), g.static()], tmp_path/'p.html')
    p = static(tmp_path/'p.html', size=(1100, 1100))
    p.wait_for_selector(f'{T} .node'); assert p.locator(f'{T} textarea').is_hidden()
    p.hover(f'{T} .node >> nth=1', position=dict(x=14, y=10)); assert 'Python' in p.inner_text(f'{T} .snb-tv-f') and p.locator(f'{T} .snb-tv-x .on').count()>0
    p.select_option(f'{T} select', '1'); p.click(f'{T} .snb-tv-k button >> nth=1'); assert evil in p.inner_text(f'{T} .snb-tv-x') and evil in p.inner_text(f'{T} .snb-tv-h')
    p.focus(f'{T} .snb-tv-o'); p.keyboard.press('ArrowDown'); assert p.locator(f'{T} .node.kept').count()==1
    p.keyboard.press('Escape'); assert p.locator(f'{T} .node.kept').count()==0
    drag(p, p.locator('.snb-gm svg').bounding_box(), [(.45, .05), (.56, .5)])
    assert p.inner_text('.snb-gm-t').split('\n')[1].split('\t')==['London', 'England', '51.5° N, 0.1° W', '50.0° N, 10.0° E', '2'] and p.locator('.snb-gm-t tr').count()==3
    assert '2 of 3 places · mean error in km 1.5' in p.inner_text('.snb-gm-b'); p.shot('places_static')
    p.select_option('.snb-gm select', label=evil); assert evil in p.inner_text('.snb-gm-t') and p.locator('.snb-gm-t tr').count()==2
    p.click('.snb-gm-s button'); assert p.locator('.snb-gm-t').is_hidden()
    p.focus('.snb-gm svg'); p.keyboard.press('ArrowRight'); assert 'Paris' in p.inner_text('.snb-gm-t'); p.keyboard.press('Escape'); assert p.locator('.snb-gm-t').is_hidden()
    assert p.locator(':is(.snb-gm, .snb-tv) :is(img, script, style, link)').count()==0 and p.evaluate('window.pwned') is None
    p.set_viewport_size(dict(width=600, height=1300)); p.wait_for_timeout(200); assert overflow(p, f'{T}, .snb-gm')<=1; p.shot('trees_narrow')
    p.emulate_media(color_scheme='dark'); p.wait_for_timeout(200); p.shot('trees_static_dark_narrow')
    assert p.fetched==[] and p.complaints==[]


def test_what_is_painted_follows_a_theme_that_comes_late(static, tmp_path):
    "JupyterLab names a theme at once and brings its colours seconds later"
    from sparsenb.panels import asset
    (tmp_path/'p.html').write_text(f'<!doctype html><body data-jp-theme-light="true"><div id="r" style="color:var(--ink,red)"></div><script>{asset("parts.js")}\nlet seen = []; const r = document.getElementById("r"), stop = on_theme(r, () => seen.push(getComputedStyle(r).color))</script></body>')
    p = static(tmp_path/'p.html')
    p.evaluate("document.body.dataset.jpThemeLight = 'false'"); p.wait_for_function('seen.length===1'); p.wait_for_timeout(250)
    p.evaluate("document.documentElement.style.setProperty('--ink', 'rgb(1, 2, 3)')"); p.wait_for_function("seen.at(-1)==='rgb(1, 2, 3)'")
    p.emulate_media(color_scheme='dark'); p.wait_for_function('seen.length===3')
    p.evaluate("stop(); document.body.dataset.jpThemeLight = 'true'; document.documentElement.style.setProperty('--ink', 'blue')"); p.wait_for_timeout(300)
    assert p.evaluate('seen.length')==3 and p.complaints==[]
