"Trajectories walked along as a person does: slider, play, a stretch, groups, keys; live in JupyterLab, and from the disk with no network"
import json, statistics, sys, time
import numpy as np, pytest
from sparsenb.trajectory import Trajectory
from sparsenb.views import page as html_page
from toy_index import HOSTILE
from asking import says

S = '.snb-tp'
MAKE = '''
import numpy as np
from sparsenb.trajectory import Trajectory
def classes(P=20, S=200, D=3, seed=0):
    "Classes that leave one corner for others, on two runs"
    g,s = np.random.default_rng(seed),np.linspace(0, 1, S)[:,None]
    return {f'class {p:02d}': g.normal(0, .08, D)+g.integers(0, 2, D)/(1+np.exp(-g.uniform(10, 25, D)*(s-g.uniform(.3, .7, D))))+.003*g.normal(size=(S, D)).cumsum(0) for p in range(P)}
def made(path, step):
    x = np.zeros((16, 16, 3), np.uint8); x[...,0],x[...,1],x[...,2] = step//50,int(path[-2:]),7
    return x
paths = classes()
t = Trajectory('Twenty classes', np.arange(200)*50, paths, ('colour', 'size', 'shape'), 'by hand, seed 0', {k: f'run {1+i//10}' for i,k in enumerate(paths)},
    {k: np.linspace(i/20, 1, 200) for i,k in enumerate(paths)}, (('class 03', 5000, 'learned'), ('class 12', 6000, 'learned')), marks={'red, big, round': (0, 0, 0), 'blue, small, square': (1, 1, 1)})
CURVES = dict(loss=2*np.exp(-np.arange(200)/50), accuracy={k: np.linspace(0, 1, 200)**(1+i/5) for i,k in enumerate(paths)})
'''
LIVE = MAKE+"asked = []\ndef watched(p, s): asked.append((p, s)); return made(p, s)\nw = t.plot(curves=CURVES, payload=watched, signal='concept signal', step=5000, path='class 13', dims=[0, 1])\nw"
PIXEL = f"(() => {{ const c = document.querySelector('{S} .snb-tp-m canvas'); return c ? [...c.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3) : null }})()"
CURSOR = f"(() => {{ const c = document.querySelector('{S} .snb-tp-o canvas'), u = document.querySelector('{S} input[type=range]').value, x = c.width/c.clientWidth*(46+u*(c.clientWidth-62)); return Math.max(...c.getContext('2d').getImageData(Math.round(x)-2, 12, 4, 1).data.filter((_, i) => i%4 === 0)) }})()"
FRAMES = """async seconds => { const out = []; let was = performance.now(); const end = was+1000*seconds
    while (was < end) { await new Promise(requestAnimationFrame); const now = performance.now(); out.push(now-was); was = now } return out }"""

@pytest.fixture(autouse=True)
def helpers(root):
    if str(root/'tests') not in sys.path: sys.path.insert(0, str(root/'tests'))

def chosen(nb, name, a, b, within, seconds=20):
    "The kernel comes to know this stretch; its last step"
    end = time.monotonic()+seconds
    ok = lambda c: len(c)==3 and c[0]==name and abs(c[1]-a)<=within and abs(c[2]-b)<=within
    while not ok(c := json.loads(nb.python('import json; print(json.dumps(w.chosen))'))) and time.monotonic()<end: time.sleep(.1)
    assert ok(c), c
    return c[2]
def made_is(p, step, path): p.wait_for_function(f"want => String({PIXEL}) === want", arg=f'{step//50},{path},7')
def painted(p, css=f'{S} .snb-tp-l canvas'): return p.evaluate("async c => { await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame); const e = document.querySelector(c); return [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data].reduce((a, v, i) => (a*31+v)%1000003, 0) }", css)
def slide(p, u):
    "Put the slider's thumb at a share of its way, by mouse"
    e = p.locator(f'{S} input[type=range]'); e.scroll_into_view_if_needed(); b = e.bounding_box()
    p.mouse.click(b['x']+8+u*(b['width']-16), b['y']+b['height']/2)
def brush(p, a, b):
    "Drag over the curve from one share of the steps to another"
    e = p.locator(f'{S} .snb-tp-o canvas'); e.scroll_into_view_if_needed(); c = e.bounding_box()
    x = lambda u: c['x']+46+u*(c['width']-62)
    p.mouse.move(x(a), c['y']+40); p.mouse.down(); p.mouse.move(x((a+b)/2), c['y']+45); p.mouse.move(x(b), c['y']+40); p.mouse.up()
def on_plane(p, t, name, i):
    "Where a point lies on the page, from the plane's own scale: all paths and marks, and 4 % around them"
    c = p.locator(f'{S} .snb-tp-l canvas').bounding_box()
    pts = np.concatenate([t.array[...,:2].reshape(-1, 2), *(np.array([m[:2]]) for m in t.marks.values())])
    lo,hi = pts.min(0),pts.max(0); lo,hi = lo-.04*(hi-lo),hi+.04*(hi-lo)
    x,y = (t[name][i,:2]-lo)/(hi-lo)
    return c['x']+46+x*(c['width']-62), c['y']+c['height']-34-y*(c['height']-46)
def wide(p): return p.evaluate(f"(() => {{ const a = document.querySelector('{S}'); return a.scrollWidth-a.clientWidth }})()")
def trajectory():
    d = {}; exec(MAKE, d)
    return d['t'],d['CURVES'],d['made']


def test_live(notebook):
    "Walk, play, choose and overlay; every trait reads on both sides; only what is looked at is sent"
    nb = notebook([LIVE], size=(1250, 1350))
    nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    nb.run_all(120); nb.wait_for_selector(f'{S} .snb-tp-m canvas')
    t,_,_ = trajectory()
    made_is(nb, 5000, 13); says(nb, 'asked', "[('class 13', 5000)]")
    # slider by mouse, keys, and from a cell
    slide(nb, .25); made_is(nb, 2500, 13); says(nb, 'w.step', '2500')
    nb.keyboard.press('ArrowRight'); made_is(nb, 2550, 13); says(nb, 'w.step', '2550')
    was = painted(nb); nb.python('w.step = 7500'); made_is(nb, 7500, 13); assert painted(nb)!=was
    assert nb.get_attribute(f'{S} input[type=range]', 'aria-valuetext')=='step 7,500' and abs(float(nb.input_value(f'{S} input[type=range]'))-7500/9950)<1e-3
    nb.keyboard.press('ArrowDown'); says(nb, 'w.path', "'class 14'"); made_is(nb, 7500, 14)
    nb.python("w.path = 'class 13'"); made_is(nb, 7500, 13)
    # a stretch: along the path itself, over the curve, by keys, from a cell
    for i in (90, 100, 110, 120): nb.mouse.move(*on_plane(nb, t, 'class 13', i)); (nb.mouse.down() if i==90 else None)
    nb.mouse.up()
    chosen(nb, 'class 13', 4500, 6000, 150)
    brush(nb, .2, .4)
    b = chosen(nb, 'class 13', .2*9950, .4*9950, 60)
    nb.wait_for_function(f"() => document.querySelectorAll('{S} .snb-tp-t canvas').length === 6")
    assert nb.python("len(w.stretch['made'])==len(w.stretch['points'])==round((w.chosen[2]-w.chosen[1])/50)+1")=='True'
    nb.click(f'{S} .snb-tp-t button >> nth=5'); made_is(nb, b, 13)
    nb.keyboard.press('Escape'); says(nb, 'w.chosen', '()')
    nb.python("w.chosen = ('class 13', 1000, 2000)"); nb.wait_for_function(f"() => document.querySelector('{S} .snb-tp-s').innerText.includes('21 checkpoints')")
    # groups over each other, colours, dimensions
    was = painted(nb); nb.click(f'{S} .snb-tp-g button >> nth=0'); says(nb, 'w.hidden', "['run 1']"); now = painted(nb); assert now!=was
    nb.click(f'{S} .snb-tp-g button >> nth=1'); says(nb, 'w.hidden', "['run 1', 'run 2']"); nb.python('w.hidden = []')
    nb.wait_for_function(f"() => [...document.querySelectorAll('{S} .snb-tp-g button')].every(b => b.ariaPressed === 'true')"); assert painted(nb)==was
    nb.click(f'{S} .snb-tp-h button:has-text("group")'); says(nb, 'w.colour', "'group'"); assert painted(nb)!=was
    nb.click(f'{S} .snb-tp-d button:has-text("3-D")'); says(nb, 'w.dims', '[0, 1, 2]'); was = painted(nb)
    c = nb.locator(f'{S} .snb-tp-l canvas').bounding_box()
    nb.mouse.move(c['x']+20, c['y']+20); nb.mouse.down(); nb.mouse.move(c['x']+120, c['y']+60); nb.mouse.up(); assert painted(nb)!=was
    nb.select_option(f'{S} .snb-tp-o select', 'accuracy'); says(nb, 'w.curve', "'accuracy'")
    # play by the space bar: 20 paths of 200 checkpoints
    nb.python("w.colour, w.step = 'signal', 0"); nb.focus(f'{S} .snb-tp-l canvas'); nb.keyboard.press(' ')
    gaps = nb.evaluate(FRAMES, 3); nb.keyboard.press(' ')
    at = int(nb.inner_text(f'{S} .snb-tp-v').split()[1].replace(',', '')); assert 500<=at<=9950; says(nb, 'w.step', str(at))
    print(f'play, live, 20 paths of 200 checkpoints in 3-D: median {statistics.median(gaps):.0f} ms between frames, 95 % {np.quantile(gaps, .95):.0f} ms')
    time.sleep(.4); says(nb, 'w.step', str(at))
    nb.evaluate(f"document.querySelector('{S}').scrollIntoView()"); nb.shot('trajectory'); assert nb.evaluate(CURSOR)<120
    nb.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", 'JupyterLab Dark'); nb.wait_for_function("document.body.dataset.jpThemeLight==='false'")
    nb.wait_for_function(f"want => {CURSOR} > want", arg=180); nb.wait_for_selector('#jupyterlab-splash', state='detached'); nb.shot('trajectory_dark') # its lines are light
    assert nb.fetched==[] and nb.complaints==[]


def test_a_page_from_the_disk(static, tmp_path):
    "Slider, play, stretch and groups without a kernel; narrow; how long a frame takes"
    t,curves,made = trajectory()
    w = t.plot(curves=curves, payload=made, signal='concept signal', step=5000, path='class 13', dims=[0, 1])
    html_page('Trajectory', [w.static(most=3_200_000)], tmp_path/'t.html')
    p = static(tmp_path/'t.html', size=(1100, 900))
    assert p.locator(S).count()==1; made_is(p, 5000, 13)
    slide(p, .5); p.keyboard.press('Home'); made_is(p, 0, 13)
    p.click(f'{S} button[aria-label^=play]'); p.wait_for_function(f"() => Number(document.querySelector('{S} .snb-tp-v').textContent.split(' ')[1].replace(',', '')) >= 500", timeout=15000); p.keyboard.press('End')
    assert p.inner_text(f'{S} .snb-tp-v').startswith('step 9,950') and p.get_attribute(f'{S} .snb-tp-k button', 'aria-label').startswith('play'); made_is(p, 9950, 13)
    brush(p, .1, .3); p.wait_for_function(f"() => document.querySelectorAll('{S} .snb-tp-t canvas').length === 6")
    was = painted(p); p.click(f'{S} .snb-tp-g button >> nth=0'); assert painted(p)!=was; p.click(f'{S} .snb-tp-g button >> nth=0'); assert painted(p)==was
    p.click(f'{S} .snb-tp-d button:has-text("3-D")'); p.focus(f'{S} .snb-tp-l canvas')
    took = p.evaluate("""async css => { const c = document.querySelector(css), out = [], sum = []
        for (let i = 0; i < 40; i++) { await new Promise(requestAnimationFrame); const t = performance.now(); c.dispatchEvent(new KeyboardEvent('keydown', {key: i % 2 ? 'ArrowLeft' : 'ArrowRight', shiftKey: true, bubbles: true})); await new Promise(requestAnimationFrame); await new Promise(r => { const m = new MessageChannel(); m.port1.onmessage = r; m.port2.postMessage(0) }); out.push(performance.now()-t) }
        return out }""", f'{S} .snb-tp-l canvas')
    p.keyboard.press('Home'); p.keyboard.press(' '); gaps = p.evaluate(FRAMES, 3); p.keyboard.press(' ')
    print(f'page, 20 paths of 200 checkpoints in 3-D: a turn is drawn in {statistics.median(took):.0f} ms (95 % {np.quantile(took, .95):.0f}); playing, {statistics.median(gaps):.0f} ms between frames (95 % {np.quantile(gaps, .95):.0f})')
    p.shot('trajectory_static')
    p.set_viewport_size(dict(width=600, height=1150)); p.wait_for_timeout(200); p.shot('trajectory_narrow'); assert wide(p)<=1
    p.emulate_media(color_scheme='dark'); p.wait_for_timeout(200); p.shot('trajectory_dark_narrow')
    assert p.fetched==[] and p.complaints==[]


def test_names_from_others_stay_text(static, tmp_path):
    g,names = np.random.default_rng(0),[h for h in HOSTILE if h]
    t = Trajectory(names[1], np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 1024]), {k: g.normal(size=(10, 2)).cumsum(0) for k in names}, names[:2], names[2], {k: names[-1-i] for i,k in enumerate(names)}, events=((names[0], 4, names[1]),), marks={names[5]: (0, 0)}, step_label=names[3])
    w = t.plot(curves={names[0]: np.arange(10)}, payload={names[0]: [names[i] for i in range(10)], names[1]: [names[:3]]*10}, signal=names[2], step=1)
    html_page('x', [w.static()], tmp_path/'t.html')
    p = static(tmp_path/'t.html', size=(600, 1300))
    p.wait_for_selector(f'{S} .snb-tp-x'); assert p.inner_text(f'{S} .snb-tp-x')==names[1]
    p.focus(f'{S} .snb-tp-l canvas'); p.keyboard.press('ArrowDown'); p.wait_for_selector(f'{S} .snb-tp-x .k')
    assert p.locator(f'{S} .snb-tp-x .k').all_inner_texts()==names[:3]
    assert p.locator(f'{S} :is(img, script, style)').count()==0 and p.evaluate('window.pwned')is None and wide(p)<=1
    assert p.fetched==[] and p.complaints==[]
