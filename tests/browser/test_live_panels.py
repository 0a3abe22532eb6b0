"The live panels in JupyterLab, used as a person does: type a prompt, click tokens and features, steer, copy the code"
import json
import pytest
from asking import says

START = '''import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from toy_index import HOSTILE
from sparsenb.core import dictionaries, widgets
from sparsenb.index import FeatureIndex
from sparsenb.models import load_model
from sparsenb.store import ActivationStore
from sparsenb.train import fit
m = load_model('stdlib-4l')
acts = ActivationStore.collect(m, 'stdlib', site='resid_post.2', n_tokens=30_000, path='acts')
sae = dictionaries['topk'](256, 512, k=12)
fit(sae, acts, n_tokens=4096*30, path='train'); sae.eval()
sae.provenance = dict(site='resid_post.2')
sae.save('sae')
index = FeatureIndex.build(sae, acts, m, path='index')'''
PROMPT = 'def area(radius):\n    return'
TOKENS = "[...document.querySelectorAll('.snb-prompt .k')].map(k => k.textContent).join('')"

@pytest.fixture
def start(root): return START.format(tests=str(root/'tests'))

def side_closed(nb): nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
def theme(nb, name): nb.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", f'JupyterLab {name}')



def dark_and_narrow(nb, panel, height, name):
    "A picture in the dark theme at 700 pixels, where nothing may reach over the edge; then light again"
    theme(nb, 'Dark'); nb.wait_for_function("document.body.dataset.jpThemeLight==='false'")
    nb.set_viewport_size(dict(width=700, height=height)); nb.wait_for_timeout(500)
    assert nb.evaluate("c => { const a = document.querySelector(c); return a.scrollWidth-a.clientWidth }", panel)<=1
    nb.evaluate("c => document.querySelector(c).scrollIntoView()", panel); nb.wait_for_timeout(200)
    nb.shot(name)
    theme(nb, 'Light'); nb.wait_for_function("document.body.dataset.jpThemeLight==='true'")


def test_a_prompt_is_read_as_it_is_typed(notebook, start):
    nb = notebook([start, "b = widgets['feature_browser'](index)\np = widgets['live_prompt'](index, browser=b)\np", 'b'], size=(1200, 1000))
    side_closed(nb)
    nb.run_all(200)
    area = nb.locator('.snb-prompt textarea')
    area.wait_for()
    assert 'Nothing is read yet' in nb.inner_text('.snb-prompt .snb-flist')
    area.click()
    nb.keyboard.type('def area(radius):'); nb.keyboard.press('Enter'); nb.keyboard.type('    return')
    nb.wait_for_function(f"{TOKENS}.replaceAll('↵', '')==='def area(radius):    return'")
    says(nb, 'p.text', repr(PROMPT))
    heat = "document.querySelectorAll('.snb-prompt .k.h').length"
    nb.wait_for_function(f'{heat} > 0')
    # latency: from the last key to the tokens on the page, the pause for typing included
    nb.evaluate("""() => {
        const area = document.querySelector('.snb-prompt textarea'), grid = document.querySelector('.snb-prompt .snb-grid'); window.took = []; let t = 0
        area.addEventListener('input', () => t = performance.now(), true)
        new MutationObserver(() => { if (t) { window.took.push(performance.now()-t); t = 0 } }).observe(grid, {childList: true, subtree: true})
    }""")
    for k,c in enumerate(' pi * ra'):
        nb.keyboard.type(c)
        nb.wait_for_function(f'window.took.length==={k+1}')
    print('ms from key to tokens:', [round(t) for t in nb.evaluate('window.took')], '; kernel:', nb.inner_text('.snb-prompt [aria-live]'))
    # a token, by mouse; then by keys
    nb.click('.snb-prompt .k >> nth=1')
    nb.wait_for_selector('.snb-prompt .k.sel')
    says(nb, 'p.token', '[0, 1]')
    assert nb.python('p.rows[0][1]').strip('\'"') in nb.inner_text('.snb-prompt .snb-side')
    want = nb.python("print(*(f for f,_ in p.found[0].at(1, 8)))").split()
    assert nb.evaluate("[...document.querySelectorAll('.snb-prompt .snb-fr')].map(b => b.dataset.id)")==want
    nb.click(f'.snb-prompt .snb-fr[data-id="{want[1]}"]')           # a feature: heat here, and the browser goes there
    nb.wait_for_function(f"document.querySelector('.snb-prompt .snb-fr[aria-pressed=true]')?.dataset.id==='{want[1]}'")
    nb.wait_for_function(f"document.querySelector('.snb-browser .snb-n')?.firstChild.textContent==='{want[1]}'")
    says(nb, 'p.feature, b.feature', f'({want[1]}, {want[1]})')
    values = json.loads(nb.python(f'print(p.found[0].values({want[1]}).tolist())'))
    assert nb.evaluate("[...document.querySelectorAll('.snb-prompt .k')].map(k => k.classList.contains('h'))")==[v>0 for v in values]
    nb.evaluate("document.querySelector('.snb-prompt').scrollIntoView()")
    nb.shot('live_prompt')
    nb.focus('.snb-prompt .k.sel')
    for key in ('ArrowRight', 'Enter'): nb.keyboard.press(key)
    says(nb, 'p.token', '[0, 2]')
    assert 'position 2' in nb.get_attribute('.snb-prompt .k.sel', 'aria-label')
    nb.keyboard.press('Escape')
    says(nb, 'p.token', '[]')
    nb.python('b.feature = 7')                                       # the browser leads, too
    nb.wait_for_function("/^Feature 7 ·/.test(document.querySelector('.snb-prompt .snb-split .snb-q').textContent)")
    # several lines
    nb.click('.snb-prompt button:has-text("Each line a prompt")')
    area.click(); nb.keyboard.press('Control+a')
    for line in ('for i in range(10):', 'for name in names:', 'for k, v in d.items():', 'while x < 3:'): nb.keyboard.type(line); nb.keyboard.press('Enter')
    nb.wait_for_function("document.querySelectorAll('.snb-prompt .snb-x').length===4")
    says(nb, 'len(p.found), p.labels', "(4, ['1', '2', '3', '4'])")
    nb.select_option('.snb-prompt .snb-side select', 'most lines')
    nb.wait_for_function("[...document.querySelectorAll('.snb-prompt .snb-fr em')].some(e => e.textContent.startsWith('3 / '))")
    first = nb.get_attribute('.snb-prompt .snb-fr', 'data-id')
    nb.click('.snb-prompt .snb-fr'); says(nb, 'p.feature', first)
    assert nb.python('p.shared().rows[0][0]')==first
    nb.evaluate("document.querySelector('.snb-prompt').scrollIntoView()"); nb.mouse.move(5, 500); nb.wait_for_timeout(200)
    nb.shot('live_prompt_lines')
    dark_and_narrow(nb, '.snb-prompt', 900, 'live_prompt_dark_narrow')
    assert nb.fetched==[] and nb.complaints==[]


def test_features_are_steered(notebook, start):
    nb = notebook([start, f"s = widgets['steering'](index, prompt={PROMPT!r}, saved='sae')\ns"], size=(1200, 1000))
    side_closed(nb)
    nb.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    nb.run_all(200)
    nb.wait_for_selector('.snb-steer .k')
    assert nb.locator('.snb-steer .snb-out').is_hidden()
    rare = nb.python("print(s._other())")
    nb.fill('.snb-steer .snb-change input', rare); nb.keyboard.press('Enter')
    says(nb, "s.changes[0]['feature']", rare)
    nb.fill('.snb-steer input[type=number] >> nth=1', '60'); nb.keyboard.press('Tab')  # to
    says(nb, 's.high', '60.0')
    nb.click('.snb-steer button:has-text("Run")')
    nb.wait_for_function("/strengths in/.test(document.querySelector('.snb-steer [aria-live]').textContent)", timeout=60_000)
    nb.wait_for_selector('.snb-steer .snb-curve svg')
    assert nb.python('len(s.result.strengths)')=='5' and nb.locator('.snb-steer tbody tr').count()==8
    r = json.loads(nb.python("import json; print(json.dumps([s.at, s.results, s.plain]))"))
    shown = lambda: nb.inner_text('.snb-steer .snb-texts > div:last-child .m').replace('↵', '').replace('\n', '')
    flat = lambda t: t.replace('\n', '')
    assert shown()==flat(r[1][r[0]]['text']) and r[1][0]['text']==r[2]
    nb.evaluate("document.querySelector('.snb-steer').scrollIntoView()"); nb.wait_for_timeout(200)
    nb.shot('steering')
    nb.focus('.snb-steer input[type=range]'); nb.keyboard.press('Home')                # strength 0 changes nothing ... by keys
    nb.wait_for_function("document.querySelector('.snb-steer .snb-out b').textContent==='0'")
    assert shown()==flat(r[1][0]['text'])
    says(nb, 's.at', '0')
    for _ in range(3): nb.keyboard.press('ArrowRight')
    nb.wait_for_function("document.querySelector('.snb-steer .snb-out b').textContent==='45'")
    nb.click('.snb-steer button:has-text("Copy code")')
    nb.wait_for_function("document.querySelector('.snb-steer .snb-out').textContent.includes('Copied.')")
    code = nb.evaluate('navigator.clipboard.readText()')
    assert code==r[1][3]['code']
    assert nb.python(code+"\nprint(bool((logits.numpy()==s.result.after[3]).all()), text==s.result.texts[3])")=='True True'
    # two features, at two tokens, taken away
    nb.click('.snb-steer button:has-text("Add a feature")')
    nb.wait_for_function("document.querySelectorAll('.snb-change').length===2")
    for k in (0, 1): nb.select_option(f'.snb-change >> nth={k} >> select', 'ablate')
    says(nb, "[c['kind'] for c in s.changes]", "['ablate', 'ablate']")
    assert nb.locator('.snb-steer .snb-setup input').first.is_hidden()
    nb.click('.snb-steer .k >> nth=2'); nb.keyboard.press('ArrowRight'); nb.keyboard.press('Enter')
    says(nb, 's.positions', '[2, 3]')
    nb.click('.snb-steer button:has-text("Run")')
    nb.wait_for_function("document.querySelector('.snb-steer .snb-out b').textContent==='ablated'", timeout=60_000)
    nb.evaluate("document.querySelector('.snb-steer').scrollIntoView()"); nb.wait_for_timeout(200)
    nb.shot('steering_ablated')
    assert nb.python('s.result.changes[1].positions')=='(2, 3)'
    nb.fill('.snb-change >> nth=0 >> input', 'zzzzqq'); nb.keyboard.press('Enter')      # nothing of that name
    nb.wait_for_function("/No feature is found/.test(document.querySelector('.snb-steer [role=alert]').textContent)")
    dark_and_narrow(nb, '.snb-steer', 1100, 'steering_dark_narrow')
    assert nb.fetched==[] and nb.complaints==[]


def test_hostile_text_and_missing_models(notebook, start):
    nb = notebook([start, "index.title = lambda i: HOSTILE[i%len(HOSTILE)]\ntext = ''.join(t for t in HOSTILE if t!=HOSTILE[11])\np = widgets['live_prompt'](index, text)\np",
        "s = widgets['steering'](index, 1, text, max_tokens=3, steps=2)\ns.run(); s", "bare = FeatureIndex.open(index.path)\nwidgets['live_prompt'](bare)", "widgets['steering'](bare)"], size=(1200, 1400))
    side_closed(nb)
    nb.run_all(200)
    nb.wait_for_selector('.snb-prompt .snb-fr'); nb.wait_for_selector('.snb-steer tbody tr')
    assert nb.evaluate('window.pwned') is None
    assert nb.locator('.snb-panel img, .snb-panel script, .snb-panel iframe, .snb-panel .snb-grid svg').count()==0
    assert '<script>' in nb.inner_text('.snb-prompt .snb-grid') or '</script>' in nb.inner_text('.snb-prompt .snb-grid')
    missing = nb.evaluate("[...document.querySelectorAll('.snb-panel [role=alert]')].map(e => e.textContent).filter(t => t.includes('index.attach'))")
    assert len(missing)==2
    assert 'saved=' in nb.inner_text('.snb-steer .snb-out')  # why there is no code
    nb.shot('live_panels_hostile', full_page=True)
    assert nb.fetched==[] and nb.complaints==[]
