"The card of a dictionary: one page, the same for all, small"
import re
import pytest
from sparsenb.core import read_json
from sparsenb.report import ReportError, parameters, run_report

HEADS = ['What it is', 'Training', 'Reconstruction and behaviour', 'Distributions', 'Evaluations', 'To be read with care', 'Beside others', 'Features']
tiny = dict(n_tokens=4000, n_sequences=6, n_boot=100, n_features=2, train_tokens=12_288, d_sae=128, k=8, evaluations=[['decoder_geometry', {'n_tokens': 2000}]])

@pytest.fixture(scope='module')
def cards(tmp_path_factory):
    "A dictionary trained by the report, and one of twice the L0 beside it: (folder, html, html, files there after the first)"
    d = tmp_path_factory.mktemp('card')
    first = run_report('dictionary_card', tiny|dict(folder=str(d/'w')), d/'a.html')
    there = {p: p.stat().st_mtime_ns for p in (d/'w').rglob('*') if p.suffix in ('.safetensors', '.npy', '.json')}
    second = run_report('dictionary_card', tiny|dict(folder=str(d/'w'), k=16, compare_to=[str(next((d/'w').glob('topk-*'))/'dictionary')]), d/'b.html')
    return d,first.read_text(),second.read_text(),there

def heads(html): return re.findall(r'<h2>([^<]*)</h2>', html)

def test_every_card_has_the_same_order_and_axes(cards):
    _,a,b,_ = cards
    assert heads(a)==[h for h in HEADS if h!='Beside others'] and heads(b)==HEADS
    for title in ('Variance unexplained', 'Features active', 'Dead features, share', 'Density of features', 'Nearest other feature', 'Shrinkage'):
        ends = []
        for page in (a, b):
            svg = page[page.index(f'>{title}</div><svg'):]; svg = svg[:svg.index('</svg>')]
            ends.append(re.findall(r'<text[^>]*>([−\d.]+)</text>', svg))
        assert ends[0]==ends[1] and len(ends[0])>4, title

def test_it_says_what_the_dictionary_is_and_how_good(cards):
    d,a,b,_ = cards
    for said in ('W_enc 256 × 128', 'k 8', 'resid_post.2 of stdlib-4l', '12,288 activations', 'gamma', 'ce_recovered', 'kl_mean', 'geometry_cosine', 'intervals rest on few units: 6 sequences', 'dead: a feature that fires once in'): assert said in a, said
    info = read_json(next((d/'w').glob('topk-128-8-*'))/'dictionary'/'cfg.json')
    assert info['provenance']['site']=='resid_post.2' and a.count('class="snb-card')==2
    assert 'less topk-128-16' in b and 'l0 is not the same' in b and 'pairs of 6 sequences' in b and 'The same for all: ce_clean, ce_mean, kl_mean' in b
    assert re.search(r'<td class="">(better|worse|higher|lower) \*\*</td>', b)

def test_it_is_offline_and_small(cards):
    for page in cards[1:3]: assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', page) and len(page)<1.5e6

def test_what_was_measured_for_one_card_is_read_by_the_next(cards):
    d,there = cards[0],cards[3]
    scores = [p for p in there if p.parent.name=='scores']
    assert len(scores)==3 and len([*(d/'w'/'scores').iterdir()])==6 # core, splice, decoder_geometry of each
    assert [p for p,t in there.items() if p.stat().st_mtime_ns!=t]==[]

def test_what_cannot_be_is_said(cards):
    d,w = cards[0],str(cards[0]/'w')
    with pytest.raises(ReportError, match="unknown evaluation 'decoder_geometri'; did you mean 'decoder_geometry'"): run_report('dictionary_card', dict(folder=w, evaluations=['decoder_geometri']), d/'x.html')
    assert all(p['help'] for p in parameters('dictionary_card').values())
