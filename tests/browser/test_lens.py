"The lens in JupyterLab, used as a person does: type, point, pick, change the colour; and on a page from the disk"
import pytest
from asking import says

PROMPT = 'def area(radius):\n    return'
START = "import torch; torch.set_num_threads(1)\nfrom sparsenb.readout import AffineLens\nfrom sparsenb.lenses import lens\nfrom sparsenb.models import load_model\nm = load_model('stdlib-4l')\nother = AffineLens(4, 256, 'tuned')\nother.bias.data.normal_(std=.2, generator=torch.Generator().manual_seed(0))"
HOSTILE = 'x = "<img src=x onerror=boom()>" # \u202e<script>boom()</script>\n\ty = """&amp;"""'
CELL = '.snb-lens td[data-at="{},{}"]'

def theme(nb, name): nb.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", f'JupyterLab {name}')
def heats(page): return page.evaluate("[...document.querySelectorAll('.snb-lens td[data-at]')].map(c => parseInt(c.style.getPropertyValue('--v')))")
def wide(page): return page.evaluate("(() => { const a = document.querySelector('.snb-lens'); return a.scrollWidth-a.clientWidth })()")


def test_a_text_is_read_as_it_is_typed(notebook):
    nb = notebook([START, f"v = lens(m, {PROMPT!r}, ['logit', other])\nv"], size=(1200, 900))
    nb.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    nb.run_all(120)
    nb.wait_for_selector('.snb-lens td[data-at]')
    T = int(nb.python('len(v.words)'))
    assert nb.locator('.snb-lens td[data-at]').count()==5*T
    assert nb.locator('.snb-lens .snb-lens-l .r').count()==10
    # point at a cell: its ten likeliest tokens, without the kernel
    want = nb.python(f'print(*(round(float(p), 4) for p in v.reading.prob[1,3]))').split()
    nb.hover(CELL.format(1, 3))
    assert 'after layer 0' in nb.inner_text('.snb-lens .snb-side .snb-q')
    got = nb.evaluate("[...document.querySelectorAll('.snb-lens .snb-lens-l em')].map(e => e.textContent)")
    assert [float(g.replace('<', '')) for g in got]==pytest.approx([float(w) for w in want], abs=1.1e-4)
    # pick it: a trait; then by keys
    nb.click(CELL.format(1, 3)); says(nb, 'v.cell', '[0, 3]')
    assert nb.python("v.picked['token']==v.words[3]")=='True'
    for key in ('ArrowDown', 'ArrowRight', 'Enter'): nb.keyboard.press(key)
    says(nb, 'v.cell', '[1, 4]')
    nb.wait_for_selector(CELL.format(2, 4)+'.sel')
    nb.keyboard.press('Escape'); says(nb, 'v.cell', '[]')
    nb.python('v.cell = [2, 1]'); nb.wait_for_selector(CELL.format(3, 1)+'.sel')
    # colours
    prob = heats(nb)
    assert prob==pytest.approx([75*float(x) for x in nb.python('print(*v.reading.prob[...,0].ravel())').split()], abs=.51)
    nb.click('.snb-lens button:has-text("KL")')
    nb.wait_for_selector('.snb-lens-b button[aria-pressed=true]:has-text("KL")')
    kl = heats(nb)
    assert kl!=prob and max(kl[:T])==75 and kl[-T:]==[0]*T   # the last row is the model itself
    says(nb, 'v.colour', "'KL'")
    nb.click('.snb-lens button:has-text("rank of next")'); nb.wait_for_selector('.snb-lens-b button[aria-pressed=true]:has-text("rank")')
    assert heats(nb)[T-1]==0 and nb.inner_text(CELL.format(0, T-1)+' small')=='–'
    nb.click('.snb-lens button:has-text("probability")')
    # another lens: the last row stays
    last = "[...document.querySelectorAll('.snb-lens tbody tr:nth-child(5) td b')].map(b => b.textContent).join('|')"
    first = last.replace('nth-child(5)', 'nth-child(2)')
    was = nb.evaluate(last),nb.evaluate(first)
    nb.click('.snb-lens button:has-text("tuned")'); nb.wait_for_function("document.querySelector('.snb-lens .snb-h').textContent.startsWith('Tuned lens')")
    assert nb.evaluate(last)==was[0] and nb.evaluate(first)!=was[1]
    nb.click('.snb-lens button:has-text("logit")')
    # typing: from the last key to the cells on the page, the pause for typing included
    area = nb.locator('.snb-lens textarea'); area.click(); nb.keyboard.press('Control+End')
    nb.evaluate("""() => {
        const area = document.querySelector('.snb-lens textarea'), grid = document.querySelector('.snb-lens-t'); window.took = []; let t = 0
        area.addEventListener('input', () => t = performance.now(), true)
        new MutationObserver(() => { if (t) { window.took.push(performance.now()-t); t = 0 } }).observe(grid, {childList: true})
    }""")
    for k,c in enumerate(' pi*r'):
        nb.keyboard.type(c); nb.wait_for_function(f'window.took.length==={k+1}')
    print('ms from key to cells:', [round(t) for t in nb.evaluate('window.took')], '; kernel:', nb.inner_text('.snb-lens [aria-live]'))
    says(nb, 'v.text', repr(PROMPT+' pi*r'))
    assert nb.python("''.join(v.words[1:])")==repr(PROMPT+' pi*r')
    nb.hover(CELL.format(2, 6))
    nb.evaluate("document.querySelector('.snb-lens').scrollIntoView()"); nb.shot('lens')
    # dark, narrow
    theme(nb, 'Dark'); nb.wait_for_function("document.body.dataset.jpThemeLight==='false'")
    nb.set_viewport_size(dict(width=700, height=1000)); nb.wait_for_timeout(400)
    assert wide(nb)<=1
    nb.evaluate("document.querySelector('.snb-lens').scrollIntoView()"); nb.shot('lens_dark_narrow')
    theme(nb, 'Light'); nb.wait_for_function("document.body.dataset.jpThemeLight==='true'")
    # what cannot be read says so, and the panel goes on
    nb.python("v.text = 'x = 1\\n'*600")
    nb.wait_for_function("document.querySelector('.snb-lens .snb-wrong').textContent.includes('the context of stdlib-4l holds 512')")
    nb.python(f'v.text = {HOSTILE!r}'); nb.wait_for_selector('.snb-lens td[data-at]')
    assert nb.locator('.snb-lens :is(img, script)').count()==0
    assert nb.fetched==[] and nb.complaints==[]


def test_a_page_from_the_disk(static, tmp_path):
    from sparsenb.lenses import lens
    v = lens('stdlib-4l', HOSTILE, colour='entropy')
    v.cell = [2, 3]
    path = tmp_path/'lens.html'
    path.write_text('<!doctype html><meta charset="utf-8"><title>x</title><style>body{margin:16px}@media (prefers-color-scheme:dark){body{background:#111}}</style>'+v.static().html(), encoding='utf-8')
    page = static(path, size=(1100, 620))
    assert page.locator('.snb-lens td[data-at]').count()==5*len(v.words) and page.locator('.snb-lens').count()==1
    assert page.locator('.snb-lens td.sel').get_attribute('data-at')=='3,3' and page.locator('.snb-lens :is(img, script)').count()==0
    assert page.locator('.snb-lens textarea').is_hidden()
    entropy = heats(page)
    page.click('.snb-lens button:has-text("probability")')
    assert heats(page)!=entropy and heats(page)==pytest.approx([75*float(p) for p in v.reading.prob[...,0].ravel()], abs=.51)
    page.hover(CELL.format(4, 2)); assert 'after layer 3' in page.inner_text('.snb-lens .snb-side .snb-q')
    page.click(CELL.format(0, 1)); assert page.locator('.snb-lens td.sel').get_attribute('data-at')=='0,1'
    page.shot('lens_static')
    page.emulate_media(color_scheme='dark'); page.set_viewport_size(dict(width=600, height=900)); page.shot('lens_static_dark_narrow')
    assert wide(page)<=1 and page.fetched==[] and page.complaints==[]


def test_the_report_page(static, tmp_path):
    from sparsenb.report import run_report
    path = run_report('lens', dict(n_tokens=1024, length=64, prompts=['import os\nfor name in os.']), tmp_path/'lens.html')
    page = static(path, size=(1200, 1900))
    page.wait_for_selector('.snb-lens td[data-at]')
    page.click('.snb-lens button:has-text("KL")'); page.wait_for_selector('.snb-lens-b button[aria-pressed=true]:has-text("KL")')
    page.shot('lens_report', full_page=True)
    assert page.fetched==[] and page.complaints==[]
