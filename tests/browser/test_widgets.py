"The widgets in JupyterLab: what is clicked reaches the kernel, what the kernel sets is drawn, hostile text stays text"
import pytest
from sparsenb.static import static_browser
from sparsenb.views import Lines, Table, page
from toy_index import HOSTILE, ToyIndex
from asking import says

START = '''import sys; sys.path.insert(0, {tests!r})
from toy_index import HOSTILE, ToyIndex
from sparsenb.core import widgets
from sparsenb.views import Tokens'''

SHOWN = "() => document.querySelector('.snb-browser .snb-n')?.firstChild.textContent"
def side_closed(nb): nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
def theme(nb, name): nb.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", f'JupyterLab {name}')

@pytest.fixture
def start(root): return START.format(tests=str(root/'tests'))


def test_themes_and_narrow_cells(notebook, start):
    nb = notebook([start, "b = widgets['feature_browser'](ToyIndex(), feature=31)\nb"], size=(1000, 1300))
    side_closed(nb)
    nb.run_all(120)
    nb.wait_for_selector('.snb-browser .snb-grid .k.p')
    ink = lambda: nb.evaluate("(() => { const rgb = s => s.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0); const g = e => getComputedStyle(document.querySelector(e)); return [rgb(g('.snb-app').backgroundColor), rgb(g('.snb-n').color)] })()")
    paper,text = ink()
    assert paper>700 and text<200
    theme(nb, 'Dark')
    nb.wait_for_function("document.body.dataset.jpThemeLight==='false'"); nb.wait_for_timeout(500)
    nb.shot('feature_browser_dark')
    paper,text = ink()
    assert paper<200 and text>600
    nb.set_viewport_size(dict(width=700, height=1300))
    nb.wait_for_function("getComputedStyle(document.querySelector('.snb-app')).gridTemplateColumns.split(' ').length===1")
    assert nb.evaluate("(() => { const a = document.querySelector('.snb-app'); return a.scrollWidth-a.clientWidth })()")<=1
    nb.shot('feature_browser_dark_narrow')
    theme(nb, 'Light')  # settings are the server's, and other tests look at it too
    nb.wait_for_function("document.body.dataset.jpThemeLight==='true'")



def test_tokens_are_chosen_by_mouse_and_keys(notebook, start):
    nb = notebook([start, "w = widgets['tokens'](Tokens('t', (('a', ' b', 'c'), ('d', '\\n')), ([1, 2, 0], [-4, 1]), peaks=(1, 0)))\nw"])
    nb.run_all(60)
    nb.wait_for_selector('.snb-grid .k.p')
    assert nb.evaluate("[...document.querySelectorAll('.snb-grid .k')].map(k => [k.className, k.style.getPropertyValue('--v')])")==[['k h', '26%'], ['k h p', '44%'], ['k', ''], ['k n p', '80%'], ['k h', '26%']]
    nb.click('.snb-grid .k >> nth=1')
    nb.wait_for_selector('.k.sel')
    says(nb, 'w.selected, w.chosen()', "([0, 1], (' b', 2.0))")
    for key in ('ArrowRight', 'ArrowRight', 'Enter'): nb.keyboard.press(key)
    nb.wait_for_function("document.querySelector('.k.sel')?.dataset.at==='1,0'")
    says(nb, 'w.selected', '[1, 0]')
    assert nb.get_attribute('.k.sel', 'aria-label')=='d · position 0 · −4'
    nb.hover('.snb-grid .k >> nth=4')
    says(nb, 'w.hovered', '[1, 1]')
    assert nb.get_attribute('.snb-grid .k >> nth=4', 'title')=='↵ · position 1 · 1'
    place = lambda: nb.evaluate("[...document.querySelectorAll('.snb-grid .k')].map(k => k.getBoundingClientRect().x)")
    before = place()
    nb.python('w.recolour([[0, 0, 9], [3, 3]])')
    nb.wait_for_function("document.querySelectorAll('.snb-grid .k')[2].style.getPropertyValue('--v')==='80%'")
    assert place()==before  # nothing moves
    nb.python('w.selected = [0, 0]')
    nb.wait_for_function("document.querySelector('.k.sel')?.dataset.at==='0,0'")


def test_hostile_text_is_text_in_the_widgets(notebook, start):
    nb = notebook([start, "w = widgets['tokens'](Tokens(HOSTILE[1], (HOSTILE,), (range(len(HOSTILE)),), labels=(HOSTILE[0],), caption=HOSTILE[15]))\nw",
        "b = widgets['feature_browser'](ToyIndex(40, hostile=True), feature=1)\nb", 'b.card(2)', 'b.static(range(6))'], size=(1300, 1200))
    nb.run_all(120)
    nb.wait_for_selector('.snb-browser .snb-grid .k.p', state='attached')
    for i in (2, 3, 9): nb.python(f'b.feature = {i}'); nb.wait_for_function(f"({SHOWN})()==='{i}'")
    nb.wait_for_timeout(500)
    assert nb.evaluate('window.pwned')is None
    assert nb.evaluate("document.querySelectorAll('.snb img, .snb script, .snb svg[onload], .snb .k *:not(i)').length")==0
    texts = nb.evaluate("[...document.querySelector('.snb-grid').querySelectorAll('.k')].map(k => k.textContent)")
    assert texts[:4]==list(HOSTILE[:4])
    assert texts[4]==r'\u202egnp.exe' and texts[7]==r'\x00\x07\x1b[31m' and texts[9]==HOSTILE[9] and texts[11]=='�' and texts[12]=='∅' and texts[17]=='↵⇥␍'
    assert not nb.evaluate("/[\\u202a-\\u202e\\u2066-\\u2069\\x07]/.test(document.querySelector('.jp-Notebook').innerText)")
    assert nb.fetched==[] and nb.complaints==[]
    nb.shot('hostile')


def test_hostile_text_is_text_on_a_page(static, tmp_path):
    x = ToyIndex(40, hostile=True)
    page(HOSTILE[0]+HOSTILE[1], [HOSTILE[1], Table(HOSTILE[1], HOSTILE, [HOSTILE], caption=HOSTILE[15]), Lines(HOSTILE[1], [0, 1], {h: [0, i] for i,h in enumerate(HOSTILE)}), static_browser(x, range(18), HOSTILE[0])], tmp_path/'p.html')
    p = static(tmp_path/'p.html')
    for i in range(18): p.keyboard.press('ArrowRight')
    p.wait_for_timeout(300)
    assert p.evaluate('window.pwned') is None and p.evaluate("document.querySelectorAll('img').length")==0
    assert p.title()==HOSTILE[0]+HOSTILE[1] and p.evaluate("document.querySelectorAll('td')[1].textContent")==HOSTILE[1]
    assert p.fetched==[] and p.complaints==[]
