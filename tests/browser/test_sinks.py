"The map of sinks used as a person does: heads, tokens, sinks taken out, an image, a prompt of one's own; live in JupyterLab, and from the disk with no network"
import json, statistics
from functools import partial
import numpy as np, pytest, torch
from sparsenb.models import load_model
from sparsenb.sinks import sinks
from toy_index import HOSTILE
from asking import says as asked

S = '.snb-sinks'
TEXT = 'def area(radius):\n    """The area of a circle."""\n    return math.pi*radius**2\n\n\ndef main(argv):\n    for name in argv[1:]:\n        with open(name) as f:\n            print(name, len(f.read()))\n'
LIVE = f'''import sys; sys.path.insert(0, {{tests!r}})
import json, torch; torch.set_num_threads(1)
from sparsenb.sinks import sinks
from sparsenb.models import load_model
m = load_model('stdlib-4l')
w = sinks(m, [{TEXT!r}, 'import os\\nfor name in os.listdir("."):\\n    print(name)\\n']).map(layer=0, head=1)
w'''
SWITCH = """async n => {
    const root = document.querySelector('.snb-sinks'), cells = [...root.querySelectorAll('.snb-hc')], out = []
    for (let i = 0; i < n; i++) {
        const was = root.dataset.head, c = cells[(i * 5 + 3) % cells.length], t = performance.now()
        c.click()
        while (root.dataset.head === was) { if (performance.now() - t > 10000) throw new Error('the head did not change'); await new Promise(requestAnimationFrame) }
        await new Promise(requestAnimationFrame)
        out.push(performance.now() - t)
    }
    return out
}"""

@pytest.fixture(autouse=True, scope='module')
def one_thread(): torch.set_num_threads(1)

def side_closed(nb): nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
def heat(p): return p.evaluate("[...document.querySelectorAll('.snb-sinks .snb-grid .k')].map(k => parseFloat(k.style.getPropertyValue('--v')) || 0)")
def shown(p): return p.inner_text(f'{S} .snb-n')
def wait_head(p, l, h): p.wait_for_function("want => document.querySelector('.snb-sinks').dataset.head?.endsWith(want) && !document.querySelector('.snb-sinks[aria-busy]')", arg=f',{l},{h}')
def painted(p, css): return p.evaluate("c => { const e = document.querySelector(c); return [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data].reduce((a, v, i) => (a*31+v)%1000003, 0) }", css)
def expected(v): return [0 if x==0 else round(8+72*min(1, x/v.max())) for x in v.tolist()]
def agrees(got, want): return len(got)==len(want) and all(abs(a-b)<=1 for a,b in zip(got, want))


def test_live(notebook, root):
    "Pick a head and a token, take sinks out, by mouse, by keys and from a cell; type a prompt; twenty heads of the bundled model"
    nb = notebook([LIVE.format(tests=str(root/'tests'))], size=(1400, 1000))
    side_closed(nb); nb.run_all(200)
    nb.wait_for_selector(f'{S} .snb-hc[aria-selected]'); wait_head(nb, 0, 1)
    row = lambda: np.array(json.loads(nb.python("print(json.dumps((w.pattern[w.token] if w.token>=0 else w.sinks.received(w.layer, w.head, w.prompt, w.exclude)).tolist()))")))
    says = partial(asked, nb)
    assert shown(nb)=='Layer 0 · head 1' and nb.locator(f'{S} .snb-hc').count()==16
    assert agrees(heat(nb), expected(row()))
    nb.click(f'{S} .snb-hc[data-l="2"][data-h="0"]'); wait_head(nb, 2, 0)          # a head, by mouse
    says('w.layer, w.head', '(2, 0)')
    nb.keyboard.press('ArrowRight'); wait_head(nb, 2, 1)                              # … by keys
    nb.keyboard.press('ArrowUp'); wait_head(nb, 1, 1); says('w.layer, w.head', '(1, 1)')
    nb.python('w.layer, w.head = 0, 2'); wait_head(nb, 0, 2)                          # … from a cell
    assert shown(nb)=='Layer 0 · head 2' and nb.get_attribute(f'{S} .snb-hc[aria-selected]', 'aria-label').startswith('layer 0, head 2:')
    nb.click(f'{S} .snb-grid .k >> nth=20'); says('w.token', '20')                    # a token
    assert agrees(heat(nb), expected(row())) and nb.locator(f'{S} .snb-grid .k.sel').count()==1 and nb.locator(f'{S} .snb-grid .k.sink').count()>=1
    was = painted(nb, f'{S} .snb-plane canvas')
    nb.click(f'{S} button:has-text("Without sinks")'); says('w.exclude', 'True')      # its sinks taken out
    assert agrees(heat(nb), expected(row())) and heat(nb)[0]==0 and painted(nb, f'{S} .snb-plane canvas')!=was
    nb.evaluate(f"document.querySelector('{S}').scrollIntoView()"); nb.mouse.move(5, 600); nb.wait_for_timeout(200); nb.shot('sinks_live')
    nb.focus(f'{S} .snb-plane canvas'); nb.keyboard.press('ArrowDown'); says('w.token', '21')
    nb.keyboard.press('ArrowRight'); assert '(21) to' in nb.inner_text(f'{S} .snb-plane ~ .snb-read')
    nb.keyboard.press('e'); says('w.exclude', 'False'); nb.keyboard.press('Escape'); says('w.token', '-1')
    nb.select_option(f'{S} select', '1'); says('w.prompt, len(w.words)', '(1, 19)')   # the other prompt
    nb.wait_for_function("document.querySelectorAll('.snb-sinks .snb-grid .k').length===19"); wait_head(nb, 0, 2)
    nb.click(f'{S} button:has-text("First token")'); says('w.score', "'first'")
    nb.click(f'{S} textarea'); nb.keyboard.type('x = [1, 2]'); nb.keyboard.press('Enter'); nb.keyboard.type('print(x)')
    nb.wait_for_function("[...document.querySelectorAll('.snb-sinks .snb-grid .k')].map(k => k.textContent).join('')==='<|bos|>x = [1, 2]↵print(x)'")
    wait_head(nb, 0, 2); says('w.text', repr('x = [1, 2]\nprint(x)')); assert 'tokens read in' in nb.inner_text(f'{S} [aria-live]')
    assert agrees(heat(nb), expected(row()))
    nb.fill(f'{S} textarea', ''); nb.keyboard.press('Tab'); nb.wait_for_function("document.querySelectorAll('.snb-sinks .snb-grid .k').length>50"); wait_head(nb, 0, 2)
    took = nb.evaluate(SWITCH, 20)
    print(f'20 heads: median {statistics.median(took):.0f} ms, largest {max(took):.0f} ms')
    nb.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"); nb.wait_for_function("document.body.dataset.jpThemeLight==='false'")
    nb.set_viewport_size(dict(width=700, height=1500)); nb.wait_for_timeout(500)
    assert nb.evaluate(f"(() => {{ const a = document.querySelector('{S}'); return a.scrollWidth-a.clientWidth }})()")<=1
    nb.evaluate(f"document.querySelector('{S}').scrollIntoView()"); nb.wait_for_timeout(200); nb.shot('sinks_dark_narrow')
    nb.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})"); nb.wait_for_function("document.body.dataset.jpThemeLight==='true'")
    assert nb.fetched==[] and nb.complaints==[]


def written(tmp_path, fragment, name='map.html'):
    "A page with a map in it"
    f = tmp_path/name
    f.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>map</title><body>{fragment}</body></html>', encoding='utf-8')
    return f

def test_static_from_the_disk(static, tmp_path):
    "Head, token, exclusion; what was left out is said; nothing is fetched"
    s = sinks(load_model('stdlib-4l'), [TEXT, 'import os\n'])
    p = static(written(tmp_path, s.static(layer=0, head=1, most=30_000).html()), size=(1280, 800))
    wait_head(p, 0, 1)
    assert p.locator(f'{S} textarea').is_hidden() and agrees(heat(p), expected(s.received(0, 1)))
    assert 'This page holds' in p.inner_text(f'{S} > .snb-c') and f'{s.epsilon:g}' in p.inner_text(f'{S} > .snb-c')
    p.click(f'{S} .snb-hc[data-l="0"][data-h="3"]'); wait_head(p, 0, 3)
    p.click(f'{S} .snb-grid .k >> nth=30')
    assert agrees(heat(p), expected(s.pattern(0, 3)[30]))
    p.focus(f'{S} .snb-grid .k.sel'); p.keyboard.press('e')
    assert agrees(heat(p), expected(s.pattern(0, 3, exclude=True)[30])) and p.get_attribute(f'{S} button:has-text("Without sinks")', 'aria-pressed')=='true'
    p.shot('sinks_static', full_page=True)
    p.click(f'{S} .snb-grid .k >> nth=0')
    assert 'Every token it sees is a sink: nothing is left.' in p.inner_text(f'{S} .snb-pair')
    kept = p.evaluate("Object.keys(JSON.parse(document.querySelector('.snb-sinks-page > script').textContent).tiles)")
    l,h = next((l, h) for l in s.layers for h in range(4) if f'0,{l},{h}' not in kept)
    p.click(f'{S} .snb-hc[data-l="{l}"][data-h="{h}"]')
    p.wait_for_function("document.querySelector('.snb-sinks .snb-pair').textContent.includes('left out of this page')")
    p.click(f'{S} .snb-hc[data-l="0"][data-h="1"]'); wait_head(p, 0, 1); assert 'left out' not in p.inner_text(f'{S} .snb-pair')
    p.set_viewport_size(dict(width=600, height=900)); p.wait_for_timeout(300)
    assert p.evaluate('document.documentElement.scrollWidth')<=600
    p.shot('sinks_static_narrow', full_page=True)
    assert p.fetched==[] and p.complaints==[]

def test_an_image_before_and_after(static, tmp_path):
    "Text behind an image that is not square: the heat of the last token, another by a click, sinks framed; the numbers are those of the pattern"
    y,x = np.mgrid[:60,:100]
    picture = np.stack([(x*2.5), y*4, 128+100*np.sin(x/9)], -1).clip(0, 255).astype(np.uint8); picture[20:40,40:80] = (230, 60, 30)
    ids = torch.randint(300, 8000, (1, 41), generator=torch.Generator().manual_seed(3)); ids[0,0] = 0
    s = sinks(load_model('stdlib-4l'), ids, image=(1, 3, 5), picture=picture, at=(0, 7), words=['<bos>', *(f'{r},{c}' for r in range(3) for c in range(5)), *'what is in the red box, in one word ?'[:25]])
    p = static(written(tmp_path, s.static(layer=1, head=1).html()), size=(1280, 900))
    wait_head(p, 1, 1)
    said = lambda: p.evaluate("[...document.querySelectorAll('.snb-frames > div > .snb-c')].map(e => e.textContent)")
    def right(q):
        for k,(text,exclude) in enumerate(zip(said(), (False, True))):
            got,want = float(text.split(':')[1].split('%')[0]),100*s.over(1, 1, q, exclude=exclude).sum()
            assert abs(got-want)<.2+.005*want, (text, want)
            assert str(p.evaluate("k => document.querySelectorAll('.snb-frames canvas')[k].getAttribute('aria-label')", k)).startswith(text)
    assert p.locator(f'{S} .snb-grid .k.sel').get_attribute('data-at')=='0,40'
    right(40); before = [painted(p, f'{S} .snb-frames > div:nth-child({k}) canvas') for k in (1, 2)]
    assert before[0]!=before[1]
    p.shot('sinks_image', full_page=True)
    p.click(f'{S} .snb-grid .k >> nth=30'); right(30)
    assert [painted(p, f'{S} .snb-frames > div:nth-child({k}) canvas') for k in (1, 2)]!=before
    b = p.locator(f'{S} .snb-frames canvas').first.bounding_box()
    p.mouse.click(b['x']+b['width']*.5, b['y']+b['height']*.85)                       # the patch in row 2, column 2
    assert p.locator(f'{S} .snb-grid .k.sel').get_attribute('data-at')=='0,13'; right(13)
    p.keyboard.press('ArrowUp') if p.evaluate("document.activeElement.tagName")=='CANVAS' else p.focus(f'{S} .snb-frames canvas') or p.keyboard.press('ArrowUp')
    assert p.locator(f'{S} .snb-grid .k.sel').get_attribute('data-at')=='0,8'; right(8)
    assert p.fetched==[] and p.complaints==[]

def test_hostile_tokens_are_text(static, tmp_path):
    n = len(HOSTILE)
    s = sinks(load_model('stdlib-4l', name='<img src=x onerror=window.pwned=1>'), torch.arange(300, 300+n)[None], words=list(HOSTILE))
    p = static(written(tmp_path, s.static().html()))
    p.wait_for_selector(f'{S} .snb-hc[aria-selected]')
    for k in range(n): p.click(f'{S} .snb-grid .k >> nth={k}', force=True) if p.locator(f'{S} .snb-grid .k >> nth={k}').is_visible() else None
    p.hover(f'{S} .snb-plane canvas'); p.hover(f'{S} svg >> nth=1')
    assert p.evaluate('window.pwned') is None and p.locator(f'{S} img, {S} iframe, {S} script, {S} style').count()==0
    assert '</script>' in p.inner_text(f'{S} .snb-grid') and '<img src=x' in p.inner_text(f'{S} > .snb-b')
    assert p.fetched==[] and p.complaints==[]
