"Views and widgets without a browser: shapes refused, numbers exact, nothing hostile becomes markup"
import ast, html.parser, re, xml.dom.minidom
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
import numpy as np, pytest
from sparsenb.core import UnknownName, view, widgets
from sparsenb.charts import Heatmap, Scatter, kinds as charts
from sparsenb.static import static_browser
from sparsenb.views import Card, Histogram, Html, Lines, Table, Tokens, _ticks, headed, kinds, neighbour_groups, page, show_number, visible
from toy_index import HOSTILE, ToyIndex

BAD = '\x00\x07\x1b\u202e\u2066\u200b\ud800'
ALLOWED = set('section style div table thead tbody tr th td small svg text line path rect title b span i form label input aside button select option script html head meta body main h1 h2 p g circle'.split())


class Reader(html.parser.HTMLParser):
    "Collects tags, attributes and text; script and style bodies apart"
    def __init__(self, source):
        super().__init__(); self.tags,self.attrs,self.text,self.stack = [],[],[],[]
        self.feed(source); self.close()
    def handle_starttag(self, tag, attrs): self.tags.append(tag); self.attrs += [(tag, *a) for a in attrs]; self.stack.append(tag)
    def handle_endtag(self, tag): self.stack = self.stack[:len(self.stack)-1-self.stack[::-1].index(tag)] if tag in self.stack else self.stack
    def handle_data(self, s):
        if not self.stack or self.stack[-1] not in ('script', 'style'): self.text.append(s)


def harmless(source):
    "The text of a fragment, after checking that it has only our tags and attributes and no unseen character"
    r = Reader(source)
    assert set(r.tags)<=ALLOWED, set(r.tags)-ALLOWED
    bad = [a for a in r.attrs if a[1].startswith('on') or a[1] in ('src', 'href', 'srcdoc', 'action')]
    assert not bad, bad
    assert not [c for c in BAD if c in source]
    source.encode('utf-8')
    return ''.join(r.text)


def hostile_views():
    t,n = HOSTILE,len(HOSTILE)
    yield Table(t[0], t, [t, tuple(range(n))], caption=t[1])
    yield Table(t[1], ('a', t[0]), [(t[4], 1.), (t[7], -2.)], tokens=('a',), signed=True)
    yield Lines(t[1], [1, 2, 3], {s: [1, np.nan, i] for i,s in enumerate(t)}, x_label=t[0], y_label=t[4], caption=t[2])
    yield Histogram(t[1], [0, 1, 2], [3, 4], x_label=t[0], caption=t[15])
    yield Tokens(t[1], (t, t[::-1]), (np.linspace(-1, 1, n), np.zeros(n)), labels=(t[1], t[0]), peaks=(0, 1), caption=t[2])
    yield Scatter(t[1], np.arange(n), np.arange(n), group=t, text=t[::-1], lines={t[1]: [(0, 0), (1, 1)]}, x_label=t[0], y_label=t[4], caption=t[2])
    yield Heatmap(t[1], np.eye(n), t, t[::-1], row_label=t[0], col_label=t[4], caption=t[2])
    yield ToyIndex(hostile=True).card(1)
    yield static_browser(ToyIndex(hostile=True), range(n), t[1])


@pytest.mark.parametrize('v', [*hostile_views()], ids=lambda v: type(v).__name__)
def test_hostile_text_stays_text(v):
    text = harmless(v.html())
    for s in ('</script>', '<img src=x onerror="window.pwned=1">'): assert s in text or isinstance(v, (Lines, Histogram, Scatter, Heatmap)), s
    assert harmless(v._repr_html_())
    if hasattr(v, 'svg'): xml.dom.minidom.parseString(v.svg(300))  # valid XML on its own


def test_page_is_offline_whole_and_safe(tmp_path):
    doc = page(HOSTILE[0]+HOSTILE[1], [f'# {HOSTILE[1]}\n\n{HOSTILE[0]}', *hostile_views()], tmp_path/'p.html')
    assert (tmp_path/'p.html').read_text(encoding='utf-8')==doc
    assert HOSTILE[1] in harmless(doc)
    assert doc.count('<style')==2 and doc.count('</script>')==2  # the page's sheet and the browser's; its numbers and its script
    code = ''.join(re.findall(r'<(?:style|script)>.*?</(?:style|script)>', doc, re.S))  # tags and attributes were looked at above
    assert "default-src 'none'" in doc and not re.search(r'url\(|@import|fetch\(|import\(|XMLHttp|https?:', code)


def test_each_kind_names_its_numbers():
    card = ToyIndex().card(3)
    for v in (card, card.histogram, card.up, card.examples[0], Lines('l', [1, 2], {'a': [3, 4]}), Scatter('s', [1], [2]), Heatmap('h', [[1]], 'a', 'b')):
        assert v.numbers() and all(isinstance(a, np.ndarray) for a in v.numbers().values())
    assert {'histogram.counts', 'up.token', 'down.effect', 'examples.0.value', 'neighbours.feature'}<=set(card.numbers())
    assert sorted(kinds)==['Card', 'Histogram', 'Lines', 'Table', 'Tokens'] and sorted(charts)==['Heatmap', 'Scatter']
    with pytest.raises(UnknownName, match="did you mean 'Tokens'"): view('Token', 't', (), ())

def test_a_guide_has_the_colour_of_the_group_it_is_named_after():
    svg = Scatter('s', [0, 1, 2], [0, 1, 2], group='abb', lines=dict(b=[(0, 0), (1, 1)], c=[(0, 1), (1, 0)])).svg()
    assert [m for m in re.findall(r'stroke-dasharray="4 3" class="s(.)"', svg)]==['1', '3']


@pytest.mark.parametrize('make,message', [
    (lambda: Table('t', ('a',), [(1, 2)]), r"'t': row 0 has 2 cells, the table has 1 columns \(a\)"),
    (lambda: Table('t', ('a',), [((1, 2),)]), r'\(value, low, high\), got \(1, 2\)'),
    (lambda: Lines('l', [1, 2], {'a': [1]}), "series 'a' has 1 values, x has 2"),
    (lambda: Lines('l', [[1, 2]], {}), r'x must have 1 dimension, got shape \(1, 2\)'),
    (lambda: Scatter('s', [1, 2], [1]), "'s': x has 2 values, y has 1"),
    (lambda: Scatter('s', [1], [1], group='ab'), '2 groups for 1 points'),
    (lambda: Scatter('s', [1], [1], lines={'a': [(1, 2, 3)]}), r"line 'a' must have shape \(m, 2\), got \(1, 3\)"),
    (lambda: Heatmap('h', [[1, 2]], 'a', 'b'), r'z has shape \(1, 2\), there are 1 rows and 1 columns'),
    (lambda: Heatmap('h', [[1]], 'a', 'b', lo=3, hi=2), 'lo=3.0 is above hi=2.0'),
    (lambda: Histogram('h', [0, 1], [1, 2]), '2 counts need 3 edges, got 2'),
    (lambda: Histogram('h', [0, 0], [1]), 'edges must rise'),
    (lambda: Histogram('h', [0, 1], [-1]), 'negative'),
    (lambda: Tokens('k', (('a', 'b'),), ([1],)), 'row 0 has 2 tokens but 1 values'),
    (lambda: Tokens('k', (('a',),), ([1],), peaks=(1,)), 'peak 1 is outside row 0 of 1 tokens'),
    (lambda: Tokens('k', (('a',),), ([1],), labels=('x', 'y')), '2 labels for 1 rows'),
    (lambda: Card(1, 'c', (), 'h', None, None, ()), 'histogram must be a Histogram or None, got str'),
    (lambda: Card(1, 'c', (), None, None, None, (3,)), 'examples must be Tokens, got int'),
])
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_views_do_not_change_after_they_are_made():
    counts = np.array([1., 2.])
    h = Histogram('h', [0, 1, 2], counts)
    counts[0] = 9
    assert h.counts[0]==1
    with pytest.raises(ValueError): h.counts[0] = 5
    with pytest.raises(FrozenInstanceError): h.title = 'x'


def test_bars_have_the_height_of_their_counts():
    doc = xml.dom.minidom.parseString(Histogram('h', [0, 1, 2, 4], [10, 5, 0]).svg(400, 116))
    bars = doc.getElementsByTagName('rect')
    assert len(bars)==2  # an empty bin draws nothing
    a,b = (float(r.getAttribute('height')) for r in bars)
    assert a==pytest.approx(2*b, abs=.11)
    assert bars[1].getElementsByTagName('title')[0].firstChild.data=='1 to 2: 5'


def test_lines_break_at_gaps_and_keep_extremes():
    y = np.sin(np.linspace(0, 30, 50_000)); y[31_234] = 40; y[20_000:20_100] = np.nan
    svg = Lines('l', np.arange(50_000), {'y': y}).svg(300)
    d = xml.dom.minidom.parseString(svg).getElementsByTagName('path')[0].getAttribute('d')
    assert d.count('M')==2 and len(svg)<40_000
    ys = [float(p.split(',')[1]) for p in re.split('[ML]', d) if p]
    assert sum(v<20 for v in ys)==1  # the one spike is not lost
    assert 'No points' in Lines('l', [1], {'y': [np.nan]}).html()
    assert 'No points' in Lines('l', [1], {'y': [-1]}, log_y=True).html()


def test_points_and_cells_are_where_their_numbers_say():
    s = Scatter('s', [0, 1, 2, np.nan], [0, 2, 4, 1], group='aabb', log_x=False)
    at = np.array([[float(v) for v in m] for m in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3" class="f\d" fill="[^"]*" fill-opacity=".75"><title>', s.svg(400))])
    assert len(at)==3 and at[1]==pytest.approx((at[0]+at[2])/2, abs=.06) and at[0,0]<at[2,0] and at[0,1]>at[2,1]
    big = Scatter('s', np.arange(9000), np.arange(9000))
    assert big.svg().count('<circle')==3000 and '3,000 of 9,000 points are drawn' in big.html() and len(big.numbers()['x'])==9000
    h = Heatmap('h', [[0, .5], [1, np.nan]], 'ab', 'cd')
    assert re.findall(r'fill-opacity="([\d.]+)"><title>', h.svg())==['0.00', '0.38', '0.75', '0.00'] and '>0.50<' in h.svg()
    s = Heatmap('h', [[-2, 0, 1]], 'a', 'bcd', signed=True)
    assert re.findall(r'class="f(\d)" fill="[^"]*" fill-opacity="([\d.]+)"><title>', s.svg())==[('1', '0.75'), ('0', '0.00'), ('0', '0.38')] and (s.lo,s.hi)==(-2, 2)
    assert 'No points to draw' in Scatter('s', [np.nan], [1]).html() and 'No numbers to draw' in Heatmap('h', [[np.nan]], 'a', 'b').html()

def test_heat_is_in_proportion_and_the_same_over_a_card():
    k = Tokens('k', (('a', 'b', 'c', 'd'),), ([0, 2, -4, np.nan],))
    assert k.vmax==4 and 'class="k h" style=--v:44%' in k.html() and 'class="k n" style=--v:80%' in k.html()
    assert k.html().count('--v:')==2
    card = ToyIndex().card(3)
    weak = replace(card.examples[-1], vmax=None)
    assert weak.vmax<card.vmax
    strongest = lambda html: max(map(int, re.findall(r'--v:(\d+)%', html)))
    assert strongest(replace(card, examples=(card.examples[0], weak)).html().split('class="rest"')[1])<50


@pytest.mark.parametrize('v,s', [(0.1423, '0.1423'), (-3, '−3'), (1e-5, '1.00e−5'), (12345.6, '12,346'), (float('inf'), '∞'), (-float('inf'), '−∞'), (np.float32(.5), '0.5'), (np.int64(4201), '4,201'), (True, 'True')])
def test_numbers_to_read(v, s): assert show_number(v)==s

def test_columns_share_decimals_only_where_no_digit_is_lost():
    assert [r.split()[-1] for r in repr(Table('t', ('m', 'v'), [('a', 1.5), ('b', -2.25)])).split('\n')[2:]]==['1.50', '−2.25']
    assert '0.1423' in repr(Table('t', ('m', 'v'), [('L0', 32.), ('FVU', .1423)]))

@pytest.mark.parametrize('lo,hi,log', [(0, 1, False), (-3.3, 7, False), (1e-9, 2e-9, False), (5, 5, False), (1e-5, 1e3, True), (2., 3., True)])
def test_ticks_lie_inside(lo, hi, log):
    t = _ticks(lo, hi, 5, log)
    assert 1<=len(t)<=11 and all(lo-1e-12<=v<=hi+1e-12 for v in t) and t==sorted(set(t))

def test_visible_keeps_what_people_write():
    for s in ('naïve', '中文', '👩‍🔬', 'שלום', 'a b'): assert visible(s)==s

def test_a_card_without_news_says_so():
    text = harmless(ToyIndex().card(13).html())
    for s in ('Dead: not active on any of 1,000,000 tokens', 'Never active', 'No examples'): assert s in text
    assert 'without a model' in harmless(replace(ToyIndex().card(3), up=None).html())
    nothing = static_browser(ToyIndex(), [])
    assert isinstance(nothing, Html) and 'nothing to show' in nothing.html()

def test_neighbours_are_split_by_kind():
    a,b = neighbour_groups(ToyIndex().card(3))
    assert (a.title, b.title, a.columns)==('Decoder cosine', 'Fire together', ('feature', 'about', 'value'))
    assert headed(Tokens('1 to 2', (), (), caption='3 drawn')).title=='1 to 2 · 3 drawn'


def test_views_and_widgets_stay_light(root):
    for f in ('views.py', 'widgets/tokens.py', 'listing.py', 'panels.py', 'planes.py', 'static.py', 'widgets/feature_browser.py', 'widgets/feature_card.py', 'widgets/feature_list.py', 'widgets/feature_relatives.py', 'widgets/feature_map.py', 'widgets/feature_compare.py', 'widgets/live_prompt.py', 'widgets/steering.py'):
        tree = ast.parse((root/'sparsenb'/f).read_text())
        names = {n.name.split('.')[0] for x in tree.body if isinstance(x, ast.Import) for n in x.names} | {x.module.split('.')[0] for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) and x.module and not x.level}
        assert not names&{'torch', 'plotly', 'pandas', 'matplotlib'}, (f, names)
    own = (root/'sparsenb'/'assets').glob('*.*')
    for p in own: assert not re.search(r'https?://|innerHTML|insertAdjacentHTML|document\.write|\beval\(', p.read_text()), p


# widgets, kernel side

def test_tokens_widget_carries_values_exactly():
    w = widgets['tokens'](Tokens('t', (('a', '\ud800'), ('c',)), ([1, 2.5], [-3],)))
    assert np.frombuffer(w.values, '<f4').tolist()==[1, 2.5, -3] and w.vmax==3
    assert w.rows==[['a', '\ufffd'], ['c']]
    w.selected = [1, 0]
    assert w.chosen()==('c', -3.)
    v = w.version
    w.recolour([[0, 0], [7]])
    assert w.version==v+1 and w.vmax==7 and w.selected==[1, 0]
    w.show()
    assert w.rows==[] and w.selected==[] and w.chosen() is None

def test_browser_follows_its_feature():
    b = widgets['feature_browser'](ToyIndex())
    assert b.feature==0
    b._told(dict(choose=31))
    assert (b.feature, b.list.feature, b.view.feature, b.map.feature)==(31, 31, 31, 31) and b.view.head['groups']['-1']=='top 12 of 4,201 active tokens'
    b._told(dict(step=-1))
    assert b.feature==29  # 30 is dead and hidden
    b._told(dict(choose=10**9))
    assert b.feature==29
    with pytest.raises(ValueError, match='feature 300 does not exist: the index holds 0 to 299'): b.feature = 300
    b.group = 'By quantile'
    assert len(b.view.head['groups'])==11 and b.group==b.view.group
    b.chosen,b.group = [0., b.card().vmax/2], 'Chosen'
    assert b.view.chosen==b.chosen and b.view.group=='Chosen'
    b.feature = 40
    assert b.chosen==[] and b.group=='Top'

def test_a_card_carries_its_examples_exactly():
    x = ToyIndex(); c,w = x.card(31),widgets['feature_card'](x, 31)
    tok,n,peak,group = (w._column(k) for k in ('tok', 'ex_n_tok', 'ex_peak', 'ex_group'))
    rows = [r for e in c.examples for r in e.rows]
    assert [w.head['texts'][t] for t in tok]==[t for r in rows for t in r] and n.tolist()==[len(r) for r in rows]
    assert peak.tolist()==[p for e in c.examples for p in e.peaks] and group.tolist()==[g-1 for g,e in enumerate(c.examples) for _ in e.rows]
    for k,v in enumerate(v for e in c.examples for v in e.values):
        for j in (0, int(peak[k]), len(v)-1):
            w.selected = [k, j]
            assert w.token()==(rows[k][j], np.float32(v[j]))

def test_a_rectangle_of_the_map_narrows_the_list():
    x = ToyIndex(); b = widgets['feature_browser'](x); p = x.map()
    b.map.brush = [0., 0., 1., 1.]
    want = [i for i in range(300) if x.alive[i] and (p[i]>=0).all() and (p[i]<=1).all()]
    assert b._ids.tolist()==want and [r[0] for r in b.list.rows]==want and np.flatnonzero(np.frombuffer(b.map.lit, np.uint8)).tolist()==want and b.list.narrowed
    b.list.density = [.001, 1.]
    assert b._ids.tolist()==[i for i in want if x.density[i]>=.001]
    b._told(dict(free=True))
    assert not b.list.narrowed and b.map.brush==[]

def test_browser_searches_and_orders():
    x = ToyIndex(); b = widgets['feature_browser'](x, window=20)
    b.list.query = x.title(50).strip()
    assert 50 in b._ids and all(x.title(50).strip() in x.title(i) for i in b._ids)
    b.list.query = '13'
    assert b.feature==13 and b.view.head['empty'].startswith('Dead')
    b.list.query = '\u202e'
    assert b.list.rows==[] and b.list.empty==r"Nothing matches “\u202e”."
    b.list.query = ''
    b.list.order = 'strongest'
    assert b.list.rows[0][0]==x.max_act.argmax() and len(b.list.rows)==20
    b.feature = int(b._ids[150])  # the window follows
    assert b.feature in [r[0] for r in b.list.rows]
    b.list.kind = 'all'
    assert len(b._ids)==300
    b.list.kind = 'sinks'
    assert sorted(b._ids)==[1, 51, 101, 151, 201]
    x.sink_features = np.zeros(300, bool); b.list.kind = 'all'; b.list.kind = 'sinks'
    assert b.list.rows==[] and b.list.empty=='No feature is about sinks here.'
    b.list.kind = 'all'
    b.list.order = 'by name'
    names = [x.title(i).strip().lower() for i in b._ids]
    assert names==sorted(names)
    b.feature = 40; b.note(label='my own', bookmark=True)
    b.list.order = 'bookmarked first'
    assert b._ids[0]==40 and b.list.rows[0][1::2]==['my own', True]
    b.list.query = 'MY OW'
    assert b._ids.tolist()==[40]
    assert '<script' not in b._repr_mimebundle_()['text/html'] and 'snb-static' in b.static([7, 8]).html()

def test_an_index_of_dead_features_is_not_blank():
    x = ToyIndex(20); x.alive[:] = False; x.density[:] = 0; x.max_act[:] = 0
    b = widgets['feature_browser'](x)
    assert 'Every feature is dead' in b.list.empty and b.feature==0 and b.view.head['empty'].startswith('Dead')
    x.d_sae = 0
    with pytest.raises(ValueError, match='holds no features'): widgets['feature_browser'](x)

def test_turning_over_features_asks_for_one_card(monkeypatch):
    "No other feature is looked at, no search is made anew, the list and the map send nothing but what is chosen"
    x = ToyIndex(); b = widgets['feature_browser'](x); asked = []
    for name in ('card', 'search', 'map'):
        monkeypatch.setattr(x, name, lambda *a, real=getattr(x, name), name=name, **k: asked.append((name, *a[:1])) or real(*a, **k))
    sent = []
    for w in (b.list, b.map): w.observe(lambda c: sent.append(c['name']), type='change')
    for i in range(1, 10): b.feature = i
    assert asked==[('card', i) for i in range(1, 10)]
    assert set(sent)=={'feature'} and len(sent)<=2*9

def test_the_map_is_placed_by_umap_and_the_same_again():
    pytest.importorskip('umap')
    class Rows:
        def __init__(self, a): self.a = a
        detach = float = cpu = lambda self: self
        def numpy(self): return self.a
    x,r = ToyIndex(80),np.random.default_rng(0)
    x._live = dict(dictionary=type('D', (), dict(W_dec=Rows((np.eye(6)[np.arange(80)%2]+.1*r.normal(size=(80, 6))).astype(np.float32))))())
    m = widgets['feature_map'](x, by='umap')
    p = m._places
    assert np.isfinite(p).all() and (p==widgets['feature_map'](x, by='umap')._places).all() and not np.allclose(p, x.map())
    a,b = (p[x.alive&(np.arange(80)%2==k)] for k in (0, 1))
    apart = np.linalg.norm(a.mean(0)-b.mean(0))
    assert apart>2*max(np.linalg.norm(g-g.mean(0), axis=1).mean() for g in (a, b)) # the two bundles of directions lie apart
    assert (widgets['feature_map'](x, by='umap', seed=1)._places!=p).any()
    m.brush,m.by = [0., 0., 1., 1.],'pca'
    assert (m._places==x.map()).all() and m.brush==[] and m.error==''

def test_a_map_without_umap_or_dictionary_says_so(monkeypatch):
    import sys
    x = ToyIndex(40)
    with pytest.raises(ValueError, match=r'index.attach\(dictionary\)'): widgets['feature_map'](x, by='umap')
    x._live = dict(dictionary=type('D', (), dict(W_dec=type('W', (), {k: (lambda self: self) for k in ('detach', 'float', 'cpu')}|dict(numpy=lambda self: np.eye(40, dtype=np.float32)))()))())
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(ImportError, match=r'pip install sparsenb\[umap\]'): widgets['feature_map'](x, by='umap')
    with pytest.raises(UnknownName, match="did you mean 'pca'"): widgets['feature_map'](x, by='pcs')
    m = widgets['feature_map'](x)
    m.by = 'umap' # asked for on the page: said, and nothing else changes
    assert m.by=='pca' and 'sparsenb[umap]' in m.error and (m._places==x.map()).all()

def test_a_feature_from_elsewhere_is_in_the_window_or_named_as_missing():
    x = ToyIndex(5000); b = widgets['feature_browser'](x, window=60)
    for i in (4000, 4001, 12, 4999, 2500):
        b.feature = i
        assert i in [r[0] for r in b.list.rows] and b.list.feature==i
    b.feature = 13 # dead, and so not in the list
    assert 13 not in [r[0] for r in b.list.rows] and '13 is not among them' in b.list.count
    b.feature = 12
    assert 'not among' not in b.list.count
    b.list.query = x.title(12).strip(); b.feature = next(i for i in range(5000) if x.alive[i] and i not in b._ids)
    assert f'{b.feature} is not among them' in b.list.count

def test_the_card_gives_its_numbers_and_effects_to_the_page():
    from types import SimpleNamespace as Told
    from sparsenb.export import numbers_text
    class Live(ToyIndex):
        def has(self, panel): return True
        def top(self, i): return [f'top {k}' for k in range(12)]
        def effects(self, i, example, at, n): return Told(activation=2., next_token=' x', loss=1.25, loss_without=float('nan'), up=((' x', 1.5),), down=(), context='segment')
    x = Live(); w,sent = widgets['feature_card'](x, 31),[]
    w.send = sent.append
    w._asked(dict(numbers='csv')); w._asked(dict(numbers='json')); w._asked(dict(numbers='exe')); w._asked(dict(peek=[2, 5]))
    assert [s['text'] for s in sent[:2]]==[numbers_text(x.card(31), k) for k in ('csv', 'json')] and len(sent)==3
    assert (sent[2]['peek'], sent[2]['feature'], sent[2]['effect']['loss'], sent[2]['effect']['loss_without'])==([2, 5], 31, 1.25, None) and w.head['effects']
    assert w.selected==[] and w.effect=={}
