"Figures, numbers and Neuronpedia's batches: whole, exact, and hostile text is text"
import csv, io, json, re, struct, sys, zlib
import xml.etree.ElementTree as ET
import numpy as np
import pytest
from sparsenb.core import UnknownName, view
from sparsenb.export import export_figure, export_neuronpedia, export_numbers, figure_svg
from sparsenb.static import static_browser, static_sections
from toy_index import HOSTILE, ToyIndex

SVG = '{http://www.w3.org/2000/svg}'
def drawn(path): return [t.text for t in ET.parse(path).getroot().iter(SVG+'text')]

VIEWS = dict(lines=lambda: view('Lines', 'l', [1, 2, 3], {'a': [.1, np.nan, .3], 'b': [1, 2, 3]}), histogram=lambda: view('Histogram', 'h', [0, 1, 3], [5, 2]), heatmap=lambda: view('Heatmap', 'm', [[.1, .2], [.3, np.nan]], ['r', 's'], ['c', 'd']),
    scatter=lambda: view('Scatter', 's', [1., 2.], [3., 4.], group=['u', 'v'], lines={'g': [[0, 0], [1, 1]]}), table=lambda: view('Table', 't', ('token', 'v'), ((' a', .25), ('b', (1., .5, 2.))), tokens=('token',)),
    tokens=lambda: view('Tokens', 'x', (('a', ' b'), ('c',)), ([0, 1.5], [-.1]), labels=('1', '2'), peaks=(1, 0)), card=lambda: ToyIndex().card(3), dead=lambda: ToyIndex().card(13))

@pytest.mark.parametrize('kind', VIEWS)
def test_every_view_becomes_a_figure_that_is_well_formed_and_fetches_nothing(tmp_path, kind):
    v = VIEWS[kind]()
    root = ET.parse(p := export_figure(v, tmp_path/'f.svg')).getroot()
    assert root.tag==SVG+'svg' and list(root.iter(SVG+'text')) and not re.search(r'href|<script|foreignObject|url\(', p.read_text())
    x,y,w,h = map(float, root.get('viewBox').split())
    assert (x, y)==(-12, -12) and (float(root.get('width')), float(root.get('height')))==(w, h) and 100<w<2000 and 30<h<2000

def test_a_card_shows_what_it_holds(tmp_path):
    c = ToyIndex().card(3)
    said = ' '.join(drawn(export_figure(c, tmp_path/'c.svg'))).replace('\u00a0', ' ')
    for s in (str(c.feature), c.up.rows[0][0].strip(), c.examples[0].labels[0], str(c.neighbours.rows[0][0]), '% '.strip(), 'n = 1,000,000', 'Raises these next tokens'): assert s in said
    assert figure_svg(c, most=3).count('<rect')<figure_svg(c, most=12).count('<rect')

def test_colour_is_the_value(tmp_path):
    v = view('Tokens', 'x', (('aa', 'b', 'c'),), ([2., -1., 0.],))
    rects = [r for r in ET.parse(export_figure(v, tmp_path/'f.svg')).getroot().iter(SVG+'rect') if r.get('fill-opacity')]
    assert [(r.get('fill-opacity'), r.get('width')) for r in rects]==[('0.80', '13.2'), ('0.44', '6.6')] and rects[0].get('fill')!=rects[1].get('fill')

def test_hostile_text_is_text_in_a_figure(tmp_path):
    more = (*HOSTILE, '\ufffe\uffff', ']]>', '--><!--')
    t = view('Tokens', HOSTILE[0], (more,), ([1.]*len(more),), labels=(HOSTILE[1],), caption=HOSTILE[2])
    for v in (t, view('Table', HOSTILE[1], HOSTILE, [HOSTILE]), ToyIndex(40, hostile=True).card(0)):
        root = ET.parse(export_figure(v, tmp_path/'f.svg', most=40)).getroot()
        assert {e.tag.removeprefix(SVG) for e in root.iter()}<={'svg', 'g', 'rect', 'text', 'line', 'path', 'title', 'circle'}
        assert not [k for e in root.iter() for k in e.keys() if k.startswith('on')]
    assert '</script>' in drawn(export_figure(t, tmp_path/'f.svg'))

def test_what_is_no_figure_is_refused(tmp_path):
    for name in ('a.gif', 'a.pdf', 'a'):
        with pytest.raises(ValueError, match='figures are written as .svg or .png'): export_figure(VIEWS['lines'](), tmp_path/name)
    for v in (3, view, object()):
        with pytest.raises(TypeError, match='a card, a table, texts or a chart was expected'): export_figure(v, tmp_path/'a.svg')
        with pytest.raises(TypeError, match='a view was expected'): export_numbers(v, tmp_path/'a.csv')
    with pytest.raises(ValueError, match='.csv or .json'): export_numbers(VIEWS['lines'](), tmp_path/'a.txt')
    assert list(tmp_path.iterdir())==[]

def pixels(path):
    "Width, height and the bytes of the picture, unpacked"
    b = path.read_bytes()
    assert b[:8]==b'\x89PNG\r\n\x1a\n'
    at,data = 8,b''
    while at<len(b):
        n,kind = struct.unpack('>I4s', b[at:at+8]); at += 8
        if kind==b'IHDR': size = struct.unpack('>II', b[at:at+8])
        if kind==b'IDAT': data += b[at:at+n]
        at += n+4
    return (*size, zlib.decompress(data))

@pytest.mark.parametrize('kind', VIEWS)
def test_every_view_becomes_a_picture_of_the_size_asked_for(tmp_path, kind):
    pytest.importorskip('resvg_py')
    v = VIEWS[kind]()
    root = ET.parse(v.save(tmp_path/'f.svg', width=700)).getroot()
    for scale in (1, 2.5):
        w,h,data = pixels(v.save(tmp_path/'f.png', width=700, scale=scale))
        assert abs(w-scale*float(root.get('width')))<=1 and abs(h-scale*float(root.get('height')))<=1
        assert len(set(data))>20 # letters have edges of every grey

def test_letters_are_drawn_and_a_narrow_card_is_narrow(tmp_path):
    pytest.importorskip('resvg_py')
    get = lambda *a, **kw: pixels(view('Tokens', *a).save(tmp_path/'t.png', scale=1, **kw))
    blank,said,other = (get('', ((t,),), ([0.],)) for t in (' ', 'W', 'i'))
    assert len({d for *_,d in (blank, said, other)})==3
    c = ToyIndex().card(3)
    assert pixels(c.save(tmp_path/'a.png', width=600, scale=1))[0]<pixels(c.save(tmp_path/'b.png', width=1200, scale=1))[0]==1224

def test_a_picture_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    for scale in (0, -1, 1e6, float('nan')):
        with pytest.raises((ValueError, ImportError), match='scale = |sparsenb.png'): VIEWS['lines']().save(tmp_path/'a.png', scale=scale)
    monkeypatch.setitem(sys.modules, 'resvg_py', None)
    with pytest.raises(ImportError, match=r'pip install sparsenb\[png\]'): VIEWS['card']().save(tmp_path/'a.png')
    assert list(tmp_path.iterdir())==[]

def test_a_view_is_saved_as_its_name_says(tmp_path):
    v = VIEWS['histogram']()
    assert v.save(tmp_path/'n.csv').read_bytes()==export_numbers(v, tmp_path/'m.csv').read_bytes() and json.loads(v.save(tmp_path/'n.json').read_text())['kind']=='Histogram'
    assert v.save(tmp_path/'n.svg', width=500).read_text()==export_figure(v, tmp_path/'m.svg', 500).read_text()

def rows(path): return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline='')))

def test_numbers_as_csv_are_exact(tmp_path):
    get = lambda k: rows(export_numbers(VIEWS[k](), tmp_path/'n.csv'))
    assert get('lines')==[['x', 'a', 'b'], ['1.0', '0.1', '1.0'], ['2.0', '', '2.0'], ['3.0', '0.3', '3.0']]
    assert get('histogram')==[['left', 'right', 'count'], ['0.0', '1.0', '5.0'], ['1.0', '3.0', '2.0']]
    assert get('heatmap')==[['rows', 'cols', 'value'], ['r', 'c', '0.1'], ['r', 'd', '0.2'], ['s', 'c', '0.3'], ['s', 'd', '']]
    assert get('table')==[['token', 'v', 'v.low', 'v.high'], [' a', '0.25', '', ''], ['b', '1.0', '0.5', '2.0']]
    assert get('tokens')==[['row', 'position', 'token', 'value'], ['0', '0', 'a', '0.0'], ['0', '1', ' b', '1.5'], ['1', '0', 'c', '-0.1']]
    assert get('scatter')[0]==['panel', 'row', 'column', 'value'] and ['line g', '1', '0', '1.0'] in get('scatter')
    c,long = VIEWS['card'](),get('card')
    at = {(p, r): v for p,r,_,v in long[1:]}
    for i,e in enumerate(c.histogram.edges): assert float(at['histogram.edges', str(i)])==e
    x = VIEWS['lines']().x*np.pi
    got = rows(export_numbers(view('Lines', 'l', x, {'a': x/7}), tmp_path/'n.csv'))
    assert [[float(v) for v in r] for r in got[1:]]==[[a, b] for a,b in zip(x, x/7)]

@pytest.mark.parametrize('kind', VIEWS)
def test_numbers_as_json_are_those_of_the_view(tmp_path, kind):
    v = VIEWS[kind]()
    o = json.loads(export_numbers(v, tmp_path/'n.json').read_text(), parse_constant=pytest.fail)
    assert (o['kind'], o['title'], set(o['numbers']))==(type(v).__name__, v.title, set(v.numbers()))
    for k,a in v.numbers().items():
        a,b = np.asarray(a),o['numbers'][k]
        assert np.shape(b)==a.shape
        if a.dtype.kind in 'fiu': np.testing.assert_array_equal(np.array(b, float), a.astype(float))

def test_hostile_text_in_numbers(tmp_path):
    t = view('Tokens', HOSTILE[1], (HOSTILE,), ([1.]*len(HOSTILE),))
    assert json.loads(export_numbers(t, tmp_path/'n.json').read_text())['numbers']['token']==list(HOSTILE)
    got = rows(export_numbers(t, tmp_path/'n.csv'))
    assert [r[2] for r in got[1:]]==[h.encode('utf-8', 'backslashreplace').decode() for h in HOSTILE]


# Neuronpedia. The names are those of SAEDashboard 0.8: NeuronpediaDashboardBatch, …Feature and …Activation, `to_dict`.

BATCH = {'model_id': str, 'layer': int, 'sae_set': str, 'sae_id_suffix': (str, type(None)), 'features': list}
FEATURE = {'feature_index': int, 'neuron_alignment_indices': [int], 'neuron_alignment_values': [float], 'neuron_alignment_l1': [float], 'correlated_neurons_indices': [int], 'correlated_neurons_l1': [float], 'correlated_neurons_pearson': [float],
    'correlated_features_indices': [int], 'correlated_features_l1': [float], 'correlated_features_pearson': [float], 'neg_str': [str], 'neg_values': [float], 'pos_str': [str], 'pos_values': [float], 'frac_nonzero': float,
    'freq_hist_data_bar_values': [float], 'freq_hist_data_bar_heights': [int], 'logits_hist_data_bar_heights': [int], 'logits_hist_data_bar_values': [float], 'n_prompts_total': int, 'n_tokens_in_prompt': int, 'dataset': str,
    'decoder_weights_dist': [float], 'activations': list, 'vector': [float]}
ACTIVATION = {'bin_min': (int, float), 'bin_max': float, 'bin_contains': (int, float), 'tokens': [str], 'values': [float], 'qualifying_token_index': int}

def fits(o, schema):
    assert set(o)==set(schema)
    for k,t in schema.items():
        if isinstance(t, list): assert isinstance(o[k], list) and all(type(v) is t[0] for v in o[k]), k
        else: assert isinstance(o[k], t) and not isinstance(o[k], bool), k

@pytest.fixture(scope='module')
def indexed(tmp_path_factory):
    "A small real index of the bundled model, and its dictionary"
    from sparsenb.core import dictionaries
    from sparsenb.corpus import load_corpus
    from sparsenb.index import FeatureIndex
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    d = tmp_path_factory.mktemp('indexed')
    model = load_model('stdlib-4l')
    store = ActivationStore.collect(model, load_corpus('stdlib'), site='resid_post.2', n_tokens=4_000, path=d/'acts')
    sae = dictionaries['topk'](store.d_in, 256, k=8)
    return FeatureIndex.build(sae, store, model, path=d/'index'), sae

def test_batches_have_the_fields_of_the_format(indexed, tmp_path):
    index,sae = indexed
    fs = export_neuronpedia(index, range(12), tmp_path, sae_set='res-try', batch=5, dictionary=sae, n_prompts_total=20, n_tokens_in_prompt=200, dataset='stdlib')
    assert [f.name for f in fs]==['batch-0.json', 'batch-1.json', 'batch-2.json']==sorted(p.name for p in tmp_path.iterdir())
    all = []
    for f in fs:
        o = json.loads(f.read_text(encoding='utf-8'), parse_constant=pytest.fail)
        fits(o, BATCH); assert (o['model_id'], o['layer'], o['sae_set'])==('stdlib-4l', 2, 'res-try')
        for x in o['features']:
            fits(x, FEATURE)
            for a in x['activations']: fits(a, ACTIVATION)
        all += o['features']
    assert [x['feature_index'] for x in all]==list(range(12)) and any(x['activations'] for x in all)
    assert {(x['n_prompts_total'], x['n_tokens_in_prompt'], x['dataset']) for x in all}=={(20, 200, 'stdlib')}

# What Neuronpedia's own converter (`process_data`, which makes its upload of batch files) reads of a batch: names it takes by subscript must be there, and what it computes of them must be possible.

CONVERTED = dict(batch=('model_id', 'layer', 'sae_id_suffix', 'features'), activation=('tokens', 'values', 'bin_contains', 'bin_max', 'bin_min', 'qualifying_token_index'),
    feature=('feature_index', 'neuron_alignment_indices', 'neuron_alignment_values', 'neuron_alignment_l1', 'correlated_neurons_indices', 'correlated_neurons_pearson', 'correlated_neurons_l1', 'correlated_features_indices',
        'correlated_features_pearson', 'correlated_features_l1', 'neg_str', 'neg_values', 'pos_str', 'pos_values', 'frac_nonzero', 'freq_hist_data_bar_heights', 'freq_hist_data_bar_values', 'logits_hist_data_bar_heights',
        'logits_hist_data_bar_values', 'decoder_weights_dist', 'activations'))
TOGETHER = (('neuron_alignment_indices', 'neuron_alignment_values', 'neuron_alignment_l1'), ('correlated_neurons_indices', 'correlated_neurons_pearson', 'correlated_neurons_l1'), ('correlated_features_indices', 'correlated_features_pearson', 'correlated_features_l1'),
    ('neg_str', 'neg_values'), ('pos_str', 'pos_values'), ('freq_hist_data_bar_heights', 'freq_hist_data_bar_values'), ('logits_hist_data_bar_heights', 'logits_hist_data_bar_values')) # arrays drawn side by side

def converted(batch, source_set):
    "The rows of its two tables, made the way it makes them"
    for k in CONVERTED['batch']: batch[k]
    source = f"{batch['layer']}-{source_set}"+(f"__{batch['sae_id_suffix']}" if batch['sae_id_suffix'] else '')
    features,activations = [],[]
    for f in batch['features']:
        for k in CONVERTED['feature']: f[k]
        for group in TOGETHER: assert len({len(f[k]) for k in group})==1, group
        values = [a['values'] for a in f['activations']]
        for a in f['activations']:
            for k in CONVERTED['activation']: a[k]
            assert len(a['tokens'])==len(a['values']) and 0<=a['qualifying_token_index']<len(a['values'])
            activations.append((source, f['feature_index'], max(a['values']), a['values'].index(max(a['values'])), min(a['values'])))
        features.append((source, f['feature_index'], len(f.get('vector', []))>0, max((max(v) for v in values), default=0)))
    return features, activations

def test_batches_pass_through_neuronpedias_converter(indexed, tmp_path):
    index,sae = indexed
    f, = export_neuronpedia(index, range(20), tmp_path, sae_id_suffix='v2', dictionary=sae)
    features,activations = converted(json.loads(f.read_text(encoding='utf-8')), 'res-try')
    assert [x[:3] for x in features]==[('2-res-try__v2', i, True) for i in range(20)] and [x[3] for x in features]==pytest.approx(index.max_act[:20].tolist(), abs=1e-5)
    assert len(activations)==sum(len(index._all(i)) for i in range(20)) and all(hi>0<=lo for *_,hi,_,lo in activations)
    tops = [a for x in json.loads(f.read_text(encoding='utf-8'))['features'] for a in x['activations'] if (a['bin_min'], a['bin_contains'])==(-1, -1)] # how the top group is told from the others
    assert len(tops)==sum(len(index.top(i)) for i in range(20))

def test_batches_hold_the_values_of_the_index(indexed, tmp_path):
    index,sae = indexed
    on = np.flatnonzero(index.alive)[:6].tolist()
    dead = np.flatnonzero(~index.alive)[:1].tolist()
    f, = export_neuronpedia(index, on+dead, tmp_path, dictionary=sae)
    for x in json.loads(f.read_text(encoding='utf-8'))['features']:
        i = x['feature_index']
        up,uv,down,dv = index.logits(i)
        assert x['pos_str']==up and x['neg_str']==down and np.allclose(x['pos_values'], uv, atol=1e-5) and np.allclose(x['neg_values'], dv, atol=1e-5)
        assert x['frac_nonzero']==index.n_active[i]/index.n_tokens
        assert np.allclose(x['vector'], sae.W_dec[i].detach(), atol=1e-7)
        assert np.allclose(x['neuron_alignment_values'], index.alignment(i)[1], atol=1e-5) and len(x['neuron_alignment_indices'])==len(x['neuron_alignment_l1'])>0
        assert sum(x['logits_hist_data_bar_heights'])==index.logit_histogram(i)[1].sum()>1000 and len(x['logits_hist_data_bar_values'])==len(x['logits_hist_data_bar_heights'])
        if i in dead: assert (x['activations'], x['freq_hist_data_bar_heights'], x['frac_nonzero'])==([], [], 0.); continue
        assert sum(x['freq_hist_data_bar_heights'])==index.n_active[i]
        edges,_ = index.histogram(i); assert np.allclose(x['freq_hist_data_bar_values'], (edges[1:]+edges[:-1])/2, atol=1e-5)
        top = [a for a in x['activations'] if a['bin_contains']==-1]
        assert [a['tokens'] for a in top]==[e.tokens for e in index.top(i)] and top[0]['values'][top[0]['qualifying_token_index']]==pytest.approx(index.max_act[i], abs=1e-5)==top[0]['bin_max']
        for g in range(10):
            lo,hi = index.bounds(i, g)
            mine = [a for a in x['activations'] if a['bin_contains']==.1 and abs(a['bin_min']-lo)<1e-5 and abs(a['bin_max']-hi)<1e-5]
            for a,e in zip(mine, index.examples(i, g), strict=True) if len({index.bounds(i, k) for k in range(10)})==10 else (): assert np.allclose(a['values'], e.values, atol=1e-5)

def test_batches_are_refused_before_anything_is_written(indexed, tmp_path):
    index,_ = indexed
    with pytest.raises(ValueError, match='not in 0..255'): export_neuronpedia(index, [3, 256], tmp_path/'a')
    with pytest.raises(ValueError, match='batch must be'): export_neuronpedia(index, [3], tmp_path/'a', batch=0)
    assert not (tmp_path/'a').exists()
    export_neuronpedia(index, [3], tmp_path/'a')
    with pytest.raises(FileExistsError, match='holds batches already'): export_neuronpedia(index, [4], tmp_path/'a')


# The static browser: what its page holds (how it behaves is tested in a browser)

def data(html): return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])

def test_a_hundred_features_fit_five_megabytes(indexed):
    index,_ = indexed
    ids = np.flatnonzero(index.alive)[:100].tolist()
    h = static_browser(index, ids, ablated=0).html()
    assert len(ids)==100 and len(h.encode())<2_000_000
    assert [f['id'] for f in data(h)['features']]==ids

def test_its_numbers_are_those_of_the_card(indexed):
    import base64
    index,_ = indexed
    i = int(np.argmax(index.n_active))
    d = data(static_browser(index, [i]).html()); f,c = d['features'][0],index.card(i)
    get = lambda k,t: np.frombuffer(base64.b64decode(f[k]), t)
    ids,lengths = get('ids', '<u2'),get('lengths', '<u2')
    values = np.zeros(len(ids), np.float32); values[get('at', '<u4')] = get('values', '<f4')
    at = np.cumsum(lengths)[:-1]
    want = [(r, v) for g in c.examples for r,v in zip(g.rows, g.values)]
    assert [tuple(d['texts'][t] for t in s) for s in np.split(ids, at)]==[r for r,_ in want]
    for s,(_,v) in zip(np.split(values, at), want): np.testing.assert_array_equal(s, v.astype(np.float32))
    assert f['histogram']['counts']==c.histogram.counts.astype(int).tolist() and [s[:2] for s in f['stats']]==[[s[0], s[1]] for s in c.stats]
    assert [t for t,_ in f['near']][:2]==['Decoder cosine', 'Encoder cosine']

def test_ranks_and_effects_are_those_of_the_index(indexed):
    import base64
    index,_ = indexed
    ids = np.argsort(-index.n_active)[3:6].tolist()
    d = data(static_browser(index, ids, ablated=4).html())
    for i,f in zip(ids, d['features']):
        get = lambda o, k, t: np.frombuffer(base64.b64decode(o[k]), t)
        es = index._all(i)
        assert get(f, 'ranks', '<u4').tolist()==[int(r) for e in es for r,v in zip(e.ranks, e.values) if v] and f['n']==index.n_active[i]
        g = f['gone']; n = g['up']+g['down']
        values,named,follow = get(g, 'values', '<f4').reshape(-1, n+2),get(g, 'named', '<u4').reshape(-1, n),get(g, 'next', '<i4')
        assert len(get(g, 'rows', '<u2'))==4
        for k,row in enumerate(get(g, 'rows', '<u2')):
            e = index.effects(i, es[row], n=3)
            if e.loss==e.loss: np.testing.assert_allclose(values[k,:2], [e.loss, e.loss_without], atol=1e-4); assert d['texts'][follow[k]]==e.next_token
            else: assert follow[k]==-1
            np.testing.assert_allclose(values[k,2:], [v for _,v in e.up+e.down], atol=1e-4) # the texts may stand otherwise where two effects are equal but for rounding
            assert {d['texts'][t] for t in named[k][:3]}&{t for t,_ in e.up} and g['context']==e.context
    assert 'gone' not in data(static_browser(index, ids, ablated=0).html())['features'][0]
    bare = type(index).open(index.path)
    assert 'gone' not in data(static_browser(bare, ids).html())['features'][0] and 'ranks' in data(static_browser(bare, ids).html())['features'][0]

def test_a_page_with_every_effect_fits_five_megabytes(indexed):
    "The effects of some features, and what those of a hundred would take"
    index,_ = indexed
    ids = np.flatnonzero(index.alive)[:100].tolist()
    size = lambda some, n: len(static_browser(index, some, ablated=n).html().encode())
    few = ids[:4]
    assert size(ids, 0)+25*(size(few, 1000)-size(few, 0))<5_000_000

def test_the_map_holds_the_places(indexed):
    import base64
    index,_ = indexed
    ids,on,p = [5, 9, 11],np.flatnonzero(index.alive),index.map().astype(float)
    m = data(static_browser(index, ids, ablated=0).html())['map']
    here,rest = (np.frombuffer(base64.b64decode(m[k]), '<u2').reshape(-1, 2) for k in ('here', 'rest'))
    lo,hi = p[on].min(0),p[on].max(0)
    np.testing.assert_allclose(here/65535, ((p[ids]-lo)/(hi-lo)).clip(0, 1), atol=1e-4)
    assert len(rest)==len(np.setdiff1d(on, ids)) and (m['by'], m['n'])==('pca', len(on))
    assert 'map' not in data(static_browser(index, ids, ablated=0, by='').html())

def test_sections_are_chosen(indexed):
    index,_ = indexed
    for s,keys in dict(histogram={'histogram'}, effects={'up', 'down', 'effects'}, neighbours={'near'}, examples={'ids', 'groups', 'values'}).items():
        f = data(static_browser(index, [1], ablated=0, sections=[s]).html())['features'][0]
        assert keys<=set(f)
        f = data(static_browser(index, [1], ablated=0, sections=[k for k in static_sections if k!=s]).html())['features'][0]
        assert not keys&set(f)
    with pytest.raises(UnknownName, match="did you mean 'examples'"): static_browser(index, [1], ablated=0, sections=['exampels'])
    assert 'nothing to show' in static_browser(index, []).html()

def test_no_token_ends_the_block():
    x = ToyIndex(40, hostile=True)
    h = static_browser(x, range(18)).html()
    assert h.count('<script')==h.count('</script>')==2 and '<img' not in h
    assert set(HOSTILE)<=set(data(h)['texts'])
