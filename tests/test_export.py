"Figures, numbers and Neuronpedia's batches: whole, exact, and hostile text is text"
import csv, io, json, re
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
    for name in ('a.png', 'a.pdf', 'a'):
        with pytest.raises(ValueError, match='figures are written as .svg'): export_figure(VIEWS['lines'](), tmp_path/name)
    for v in (3, view, object()):
        with pytest.raises(TypeError, match='a card, a table, texts or a chart was expected'): export_figure(v, tmp_path/'a.svg')
        with pytest.raises(TypeError, match='a view was expected'): export_numbers(v, tmp_path/'a.csv')
    with pytest.raises(ValueError, match='.csv or .json'): export_numbers(VIEWS['lines'](), tmp_path/'a.txt')
    assert list(tmp_path.iterdir())==[]

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
    from sparsenb.all import ActivationStore, FeatureIndex, dictionaries, load_corpus, load_model
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
    h = static_browser(index, ids).html()
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

def test_sections_are_chosen(indexed):
    index,_ = indexed
    for s,keys in dict(histogram={'histogram'}, effects={'up', 'down', 'effects'}, neighbours={'near'}, examples={'ids', 'groups', 'values'}).items():
        f = data(static_browser(index, [1], sections=[s]).html())['features'][0]
        assert keys<=set(f)
        f = data(static_browser(index, [1], sections=[k for k in static_sections if k!=s]).html())['features'][0]
        assert not keys&set(f)
    with pytest.raises(UnknownName, match="did you mean 'examples'"): static_browser(index, [1], sections=['exampels'])
    assert 'nothing to show' in static_browser(index, []).html()

def test_no_token_ends_the_block():
    x = ToyIndex(40, hostile=True)
    h = static_browser(x, range(18)).html()
    assert h.count('<script')==h.count('</script>')==2 and '<img' not in h
    assert set(HOSTILE)<=set(data(h)['texts'])
