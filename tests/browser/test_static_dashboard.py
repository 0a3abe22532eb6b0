"Reports and pages with a feature browser, opened from the disk with the network blocked: choose, search, drag, switch views; nothing is asked for"
import re
import numpy as np
import pytest
from sparsenb.notes import Notes
from sparsenb.static import static_browser
from sparsenb.views import page
from toy_index import HOSTILE, ToyIndex


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    "The report of a small run with notes: (file, index)"
    from sparsenb.all import ActivationStore, FeatureIndex, dictionaries, fit, load_corpus, load_model, run_report
    d = tmp_path_factory.mktemp('report')
    model = load_model('stdlib-4l')
    store = ActivationStore.collect(model, load_corpus('stdlib'), site='resid_post.2', n_tokens=12_000, path=d/'acts')
    sae = dictionaries['topk'](store.d_in, 256, k=8)
    fit(sae, store, n_tokens=40_960, path=d/'train')
    index = FeatureIndex.build(sae, store, model, path=d/'index')
    sae.save(d/'dictionary', provenance=dict(model=model.name, revision=model.revision, index=str(d/'index'), run=str(d/'train')))
    notes = Notes(d/'notes.jsonl')
    most = np.argsort(-index.density, kind='stable')[:100].tolist()
    notes.set(most[3], label='a name of ours', bookmark=True, note='looks like <b>indentation</b>')
    out = run_report('feature_dashboard', dict(dictionary=str(d/'dictionary'), by='density', n=100, notes=str(notes.path)), d/'report.html')
    return out, index, most


def asked(p):
    "Load the page again with every request but its own refused; what was asked for"
    seen = []
    def refuse(route):
        if route.request.url==p.url: route.continue_()
        else: seen.append(route.request.url); route.abort()
    p.page.route('**/*', refuse)
    p.reload()
    return seen

shown = lambda p: int(p.locator('[data-card]').get_attribute('data-card'))
listed = lambda p: [int(x) for x in p.evaluate("[...document.querySelectorAll('.snb-st-row')].map(r => r.dataset.id)")]
rows = lambda p: p.locator('.snb-grid .snb-x').count()


def test_a_report_responds_without_kernel_or_network(static, report):
    out,index,most = report
    assert out.stat().st_size<5_000_000
    p = static(out); seen = asked(p)
    assert p.locator('.snb-st').count()==1 and listed(p)==most and shown(p)==most[0]
    p.get_by_role('button', name='next feature').click(); assert shown(p)==most[1]
    p.locator('.snb-st-row').nth(7).click(); assert shown(p)==most[7]
    p.keyboard.press('ArrowDown'); assert shown(p)==most[8]
    p.keyboard.press('ArrowLeft'); assert shown(p)==most[7]
    assert str(index.n_active[most[7]]) in p.locator('.snb-s').inner_text().replace(',', '')
    got = p.evaluate("[...document.querySelectorAll('.snb-grid .snb-x')].map(x => [...x.querySelectorAll('.k')].length)")
    assert got==[len(e.tokens) for e in index.top(most[7])]
    p.shot('static_report', full_page=True)
    # the model that the dictionary names comes with the package: what the feature does is told at the strongest example
    p.locator('.snb-grid .snb-x').first.locator('.k.p').first.click()
    alone = type(index).open(index.path).attach(index._live['dictionary'], index._live['model']) # without the store, as the report has it
    x = alone.effects(most[7], alone.top(most[7])[0], n=3)
    said = p.locator('.snb-effect').inner_text().replace('\u2212', '-')
    of = lambda what: [float(v) for v in re.findall(r' ([+-][\d.]+)', re.search(what+'.*', said)[0])]
    assert (of('it raises'), of('it lowers'))==(pytest.approx([v for _,v in x.up], abs=.02), pytest.approx([v for _,v in x.down], abs=.02))
    assert 'No token follows' in said if x.loss!=x.loss else abs(float(re.search(r'goes from ([\d.]+)', said)[1])-x.loss)<.01
    p.get_by_role('button', name='examples: By quantile').click()
    assert rows(p)==sum(len(index.examples(most[7], g)) for g in range(10)) and p.locator('.snb-grid .snb-q').count()==10
    middle = p.evaluate("[...document.querySelectorAll('.snb-x.stacked .peak')].map(e => { const b = e.getBoundingClientRect(), r = e.parentElement.getBoundingClientRect(); return (b.left-r.left)/(r.width-b.width) })")
    assert len(middle)==rows(p) and max(middle)-min(middle)<.01 # peaks stand under one another: before and after share the rest of a row 1.6 to 1
    p.get_by_role('button', name='view: Snippet').click()
    assert max(p.evaluate("[...document.querySelectorAll('.snb-grid .snb-x')].map(x => x.querySelectorAll('.k').length)"))<=9
    p.shot('static_snippets', full_page=True)
    p.get_by_role('button', name='view: Full').click(); assert p.locator('.snb-live.breaks').count()==1
    assert (p.fetched, p.complaints, seen)==([], [], [])


def test_a_range_is_dragged_over_the_histogram(static, report):
    out,index,most = report
    p = static(out); seen = asked(p)
    s = p.locator('svg.snb-drag'); s.scroll_into_view_if_needed(); box = s.bounding_box()
    at = lambda share: box['x']+box['width']*(4+share*292)/300
    p.mouse.move(at(.5), box['y']+30); p.mouse.down(); p.mouse.move(at(.6), box['y']+30); p.mouse.move(at(.9), box['y']+30); p.mouse.up()
    lo,hi = (float(v) for v in p.evaluate("[...document.querySelectorAll('.snb-st-range input')].map(i => i.value)"))
    top = float(index.max_act[most[0]])
    assert abs(lo-.5*top)<.02*top and abs(hi-.9*top)<.02*top
    peaks = {(e.row, e.value) for e in index.top(most[0])+[e for g in range(10) for e in index.examples(most[0], g)] if lo<=e.value<=hi}
    values = [float(v) for v in p.evaluate("[...document.querySelectorAll('.snb-grid .snb-x b')].map(b => b.textContent)")]
    assert values and abs(rows(p)-len(peaks))<=1 and values==sorted(values, reverse=True)
    p.shot('static_range', full_page=True)
    p.locator('.snb-st-range input').first.fill('0'); p.keyboard.press('Tab'); assert rows(p)>=len(values)  # the same by keyboard
    assert (p.fetched, p.complaints, seen)==([], [], [])


def test_search_order_and_notes(static, report):
    out,index,most = report
    p = static(out); seen = asked(p)
    p.fill('.snb-st-l input', 'name of ours'); p.wait_for_function("document.querySelectorAll('.snb-st-row').length===1")
    assert shown(p)==most[3] and '★' in p.locator('.snb-n').inner_text() and p.locator('.snb-said').inner_text()=='looks like <b>indentation</b>'
    p.fill('.snb-st-l input', f'#{most[50]}'); p.wait_for_function(f"document.querySelector('.snb-st-row').dataset.id==='{most[50]}'"); assert shown(p)==most[50]
    p.fill('.snb-st-l input', 'nothing like it at all'); p.wait_for_function("document.querySelectorAll('.snb-st-row').length===0")
    p.keyboard.press('Escape'); assert listed(p)==most
    p.select_option('.snb-st-l select', 'by number'); assert listed(p)==sorted(most)
    p.select_option('.snb-st-l select', 'strongest'); assert listed(p)==sorted(most, key=lambda i: (-float(index.max_act[i]), most.index(i)))
    p.select_option('.snb-st-l select', 'bookmarked first'); assert listed(p)[0]==most[3]
    near = p.locator('.snb-st-r button'); j = int(near.first.inner_text()); near.first.click(); assert shown(p)==j
    assert (p.fetched, p.complaints, seen)==([], [], [])


def test_hover_and_keys_in_the_examples(static, report):
    out,index,most = report
    p = static(out)
    e = index.top(most[0])[0]
    p.locator('.snb-grid .snb-x').first.locator('.k').nth(e.peak).hover()
    said = p.locator('.snb-read').inner_text()
    assert f'position {e.peak}' in said and f'{e.value:.4g}'[:4] in said
    p.locator('.snb-grid .k').first.focus(); p.keyboard.press('ArrowRight'); p.keyboard.press('Enter')
    assert p.evaluate("document.querySelector('.snb-grid .k.sel').dataset.at")=='0,1' and shown(p)==most[0]
    assert p.evaluate("[...document.querySelectorAll('.snb-st button, .snb-st input, .snb-st select, .snb-st [role=listbox], .snb-st svg')].filter(e => !(e.getAttribute('aria-label') || e.textContent || e.closest('label'))).length")==0
    assert (p.fetched, p.complaints)==([], [])


def test_hostile_text_is_text_everywhere(static, tmp_path):
    x,n = ToyIndex(40, hostile=True),Notes(tmp_path/'n.jsonl')
    for i,h in enumerate(HOSTILE): n.set(i, label=f'x{h}', note=f'y{h}', bookmark=True)
    page(HOSTILE[0], [static_browser(x, range(18), HOSTILE[1], notes=n), static_browser(ToyIndex(40, hostile=True), range(18, 30))], tmp_path/'p.html')
    p = static(tmp_path/'p.html'); seen = asked(p)
    assert p.locator('.snb-st').count()==2
    one = p.locator('.snb-st').first
    for i in range(18):
        one.locator('.snb-st-row').nth(i).click()
        for name in ('examples: By quantile', 'view: Full', 'examples: Top', 'view: Stacked'): one.get_by_role('button', name=name).click()
        one.locator('.snb-grid .peak .k').first.hover() if one.locator('.snb-grid .peak .k').count() else None
    p.wait_for_timeout(200)
    assert p.evaluate('window.pwned') is None and p.evaluate("document.querySelectorAll('img, .snb-st script, .snb-st style, svg[onload]').length")==0
    assert not p.evaluate("/[\\u202a-\\u202e\\u2066-\\u2069\\x07]/.test(document.body.innerText)")
    p.shot('static_hostile')
    assert (p.fetched, p.complaints, seen)==([], [], [])


def test_narrow_and_dark(static, tmp_path):
    page('Features', [static_browser(ToyIndex(), range(30))], tmp_path/'p.html')
    p = static(tmp_path/'p.html', size=(420, 900))
    p.emulate_media(color_scheme='dark')
    assert p.evaluate('document.documentElement.scrollWidth<=innerWidth')
    p.locator('.snb-st-row').nth(2).click(); assert shown(p)==2 and p.locator('.snb-st-m').bounding_box()['width']>300
    p.shot('static_narrow', full_page=True)
    assert (p.fetched, p.complaints)==([], [])


def test_ranks_effects_map_and_export_without_a_kernel(static, tmp_path):
    import json, xml.etree.ElementTree as ET
    from sparsenb.core import dictionaries
    from sparsenb.corpus import load_corpus
    from sparsenb.index import FeatureIndex
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    model = load_model('stdlib-4l')
    store = ActivationStore.collect(model, load_corpus('stdlib'), site='resid_post.2', n_tokens=4_000, path=tmp_path/'acts')
    index = FeatureIndex.build(dictionaries['topk'](store.d_in, 128, k=8), store, model, path=tmp_path/'index')
    ids = np.argsort(-index.density, kind='stable')[5:17].tolist()
    page('Features', [static_browser(index, ids, ablated=2)], tmp_path/'p.html')
    p = static(tmp_path/'p.html'); seen = asked(p)
    e,x = index.top(ids[0])[0],index.effects(ids[0], index.top(ids[0])[0], n=3)
    k = p.locator('.snb-grid .snb-x').first.locator('.k').nth(e.peak); k.hover()
    said = p.locator('.snb-read').inner_text()
    assert f'rank 1 of {index.n_active[ids[0]]:,}' in said and 'it raises' in said and ('goes' in said or 'no token follows' in said)
    k.click(); told = p.locator('.snb-effect').inner_text()
    assert 'it lowers' in told and (f'{x.loss:.3g}'[:4] in told if x.loss==x.loss else 'No token follows' in told)
    p.shot('static_effect', full_page=True)
    p.get_by_role('button', name='view: Full').click(); p.locator('.snb-grid .snb-x').nth(3).locator('.k').first.click()
    assert 'was not computed' in p.locator('.snb-effect').inner_text(); p.get_by_role('button', name='view: Stacked').click()
    # the map: a dot is a feature of the page
    assert p.locator('.snb-st-map circle').count()==12 and p.locator('.snb-st-map circle.on').get_attribute('data-id')==str(ids[0])
    at = {i: (float(p.locator(f'.snb-st-map circle[data-id="{i}"]').get_attribute('cx')), float(p.locator(f'.snb-st-map circle[data-id="{i}"]').get_attribute('cy'))) for i in ids}
    alone = max(ids[1:], key=lambda i: min(np.hypot(at[i][0]-at[j][0], at[i][1]-at[j][1]) for j in ids if j!=i))
    box = p.locator('.snb-st-map svg').bounding_box()
    where = [box[a]+at[alone][k]/200*box['width'] for k,a in enumerate('xy')]
    p.mouse.move(*where); assert p.locator('.snb-st-tip').inner_text().startswith(f'{alone} · ')
    p.mouse.click(*where); assert shown(p)==alone and p.locator('.snb-st-map circle.on').get_attribute('data-id')==str(alone)
    p.locator('.snb-st-map svg').focus()
    for key in ('ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown'): p.keyboard.press(key)
    assert shown(p) in ids
    # export
    p.get_by_role('button', name='Export').click()
    def got(kind):
        with p.expect_download() as d: p.locator('.snb-export').get_by_role('button', name=f'Download {kind.upper()}').click()
        d.value.save_as(tmp_path/f'f.{kind}'); return (tmp_path/f'f.{kind}').read_bytes()
    i = shown(p); c = index.card(i)
    assert ET.fromstring(got('svg')).tag.endswith('svg') and got('png')[:4]==b'\x89PNG'
    n = json.loads(got('json'))['numbers']
    assert n['examples.0.token']==[t for r in c.examples[0].rows for t in r] and n['examples.0.rank'][:1]!=[None]
    for k,a in c.numbers().items():
        if k in n and k.split('.')[-1] in ('value', 'edges', 'counts', 'effect'): np.testing.assert_allclose(n[k], a.astype(float)[:len(n[k])], atol=1e-6, rtol=1e-5)
    assert got('csv').startswith(b'panel,row,column,value\r\n') and b'histogram.counts,39,,' in got('csv')
    p.shot('static_export', full_page=True)
    assert (p.fetched, p.complaints, seen)==([], [], [])
