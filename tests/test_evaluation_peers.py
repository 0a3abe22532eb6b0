"Definitions of other people's metrics, as benchmarks/evaluation_peers.py recomputes them: closed forms on planted reconstructions, ours where they agree, runs by our hooks; and the table that was kept. No peer is needed"
import importlib.util, json, math, sys
from pathlib import Path
import pytest, torch
from sparsenb.core import dictionaries
from sparsenb.metrics import evaluate
from sparsenb.models import load_model
from sparsenb.store import ActivationStore

torch.set_num_threads(1)
BENCH = Path(__file__).parents[1]/'benchmarks'
gen = lambda seed=0: torch.Generator().manual_seed(seed)

@pytest.fixture(scope='module')
def bench():
    "The script as a module"
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location('evaluation_peers', BENCH/'evaluation_peers.py')
        m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    finally: sys.path.remove(str(BENCH))
    return m

@pytest.mark.parametrize('shift', [0., 3.])
def test_a_planted_reconstruction(bench, shift):
    "x̂ = .8 x + a constant"
    x = torch.randn(600, 12, generator=gen()).double()+1
    got = bench.of_rows(x, .8*x+shift, torch.ones(600, 4), 200)
    var = (x-x.mean(0)).square().sum()
    assert got['centred']==pytest.approx(.96, abs=1e-9), 'a constant error costs nothing there'
    assert got['pooled']==pytest.approx(1-float((.2*x-shift).square().sum()/var)) and got['squared']==pytest.approx(float((.2*x-shift).square().sum()/600))
    if shift: assert got['pooled']<got['centred']-1; return
    assert [got[k] for k in ('cosine', 'norm_ratio', 'bias_by_batch')]==pytest.approx([1, .8, .8]) and got['distance']==pytest.approx(float(.2*x.norm(dim=1).mean()))

def test_rows_near_the_mean_count_most(bench):
    x = torch.tensor([[1., 0], [-1, 0], [0, 10], [0, -10]]).double() # the batch mean is 0
    got = bench.of_rows(x, x+torch.tensor([.5, 0]).double(), torch.ones(4, 1), 4)
    assert got['by_row']==pytest.approx(1-(.25+.25+.0025+.0025)/4) and got['pooled']==pytest.approx(1-4*.25/202)
    same = torch.nn.functional.normalize(torch.randn(50, 6, generator=gen()).double(), dim=1)
    sphere = torch.cat([same, -same])
    got = bench.of_rows(sphere, .7*sphere, torch.ones(100, 1), 100)
    assert got['by_row']==pytest.approx(got['pooled'])==pytest.approx(.91), 'at one distance from the mean all count alike'

def test_batches(bench):
    x = torch.tensor([[2., 0], [0, 2], [1, 0], [0, 1]]).double()
    x_hat = x*torch.tensor([[.5], [.5], [1], [1]]).double()
    assert bench.of_rows(x, x_hat, torch.ones(4, 1), 2)['bias_by_batch']==pytest.approx(.75) and bench.of_rows(x, x_hat, torch.ones(4, 1), 4)['bias_by_batch']==pytest.approx(4/6)
    assert bench.of_rows(x, x_hat, torch.ones(4, 1), 2)['centred']==pytest.approx((.75+1)/2)

def test_features(bench):
    f = torch.tensor([[0, 2., 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 5, 1, 0]])
    got = bench.of_rows(torch.randn(4, 3, generator=gen()), torch.randn(4, 3, generator=gen(1)), f, 2)
    assert (got['l0'], got['l1'], got['dead'], got['dead_first'], got['density'])==(1.25, 10/4, .5, .75, .625)

def test_ours_where_the_definitions_agree(bench):
    x = torch.randn(500, 16, generator=gen())*torch.arange(1, 17)+2
    d = dictionaries['topk'](16, 64, k=5, seed=1).eval()
    with torch.no_grad(): f = d.encode(x); got = bench.of_rows(x, d.decode(f), f, 500)
    e = evaluate(d, x, n_tokens=None, n_boot=20, progress=False)
    for mine,theirs in dict(l0='l0', cosine='cosine', norm_ratio='norm_ratio', dead='dead', density='density', shrinkage='bias_by_batch').items(): assert e[mine].value==pytest.approx(got[theirs], rel=1e-5), mine
    assert 1-e['fvu'].value==pytest.approx(got['pooled'], rel=1e-5)

def test_shares_of_runs(bench):
    t = lambda *rows: torch.tensor(rows).double()
    ce = dict(clean=t([1., 2], [3, 4]), kept=t([2., 2], [4, 6]), all=t([2., 3], [4, 6]), zero=t([5., 6], [5, 8]))
    kl = dict(kept=t([0., 1, 2], [0, 1, 4]), all=t([3., 1, 2], [1, 1, 4]), zero=t([8., 8, 8], [8, 8, 8]))
    got = bench.of_runs(ce, kl, 1)
    assert (got['ce_clean'], got['ce_spliced'], got['ce_zero'], got['ce_recovered'])==(3, 4, 7, .75) and got['kl_spliced']==2 and got['kl_recovered']==.75
    assert (got['ce_clean_all'], got['ce_spliced_all'], got['ce_zero_all'])==(2.5, 3.75, 6) and got['ce_recovered_all']==pytest.approx(2.25/3.5) and got['kl_spliced_all']==2
    assert got['ce_recovered_by_batch']==pytest.approx(((5.5-2.5)/(5.5-1.5)+(6.5-5)/(6.5-3.5))/2), 'a mean of shares is not the share of means'

def test_runs_are_those_of_the_evaluation(bench, tmp_path):
    model = load_model('stdlib-4l', device='cpu')
    texts,ids = bench.pieces(model, 4, 24)
    assert len(texts)==4 and ids.shape==(4, 24) and (model.tokens(texts)[0]==ids).all()
    store = ActivationStore.collect(model, texts, site='resid_post.2', path=tmp_path/'s', seq_len=24, dtype='float32', shuffle=False, progress=False)
    d = dictionaries['topk'](256, 64, k=8, seed=0).eval()
    with torch.no_grad(): ce,kl = bench.runs(d, model, 'resid_post.2', ids, 2)
    e = evaluate(d, store, model, n_tokens=None, n_sequences=4, keep=False, n_boot=20, progress=False)
    for mine,theirs in (('ce_clean', ce['clean']), ('ce_spliced', ce['kept']), ('kl_spliced', kl['kept'][:,:-1])): assert e[mine].value==pytest.approx(float(theirs.mean()), rel=1e-4), mine
    assert float((ce['zero']-math.log(8192)).abs().max())<1e-4, 'nothing anywhere: uniform logits'
    assert e['ce_zero'].value>float(ce['zero'].mean())+.1 and float((ce['all']-ce['kept']).abs().max())>1e-3 and not float(kl['kept'][:,0].abs().max())
    with torch.no_grad(): ce,kl = bench.runs(dictionaries['identity'](256, 512).eval(), model, 'resid_post.2', ids, 4)
    got = bench.of_runs(ce, kl, 4)
    assert [got[k] for k in ('ce_recovered', 'ce_recovered_all', 'kl_recovered', 'kl_recovered_all')]==pytest.approx([1]*4, abs=1e-4)

def test_the_last_column_can_fail(bench):
    x = torch.randn(40, 6, generator=gen())
    r = bench.of_rows(x, .9*x, (x>0).float(), 20)
    s = bench.of_runs({k: torch.rand(4, 5, generator=gen(i)) for i,k in enumerate(('clean', 'kept', 'all', 'zero'))}, {k: torch.rand(4, 6, generator=gen(i+9)) for i,k in enumerate(('kept', 'all', 'zero'))}, 2)
    sl,all_ = ({k: v for k,v in r.items()}|{k: s[f'{k}{end}'] for k in ('ce_clean', 'ce_spliced', 'ce_zero', 'ce_recovered', 'kl_spliced', 'kl_zero', 'kl_recovered')}|dict(bias=r['bias_by_batch']) for end in ('', '_all'))
    dl = all_|dict(ce_recovered=s['ce_recovered_by_batch'])
    ours = dict(l0=0, cosine=0, norm_ratio=0, fvu=0, shrinkage=0, dead=0, density=0, ce_clean=0, ce_spliced=0, ce_zero=0, ce_recovered=0, kl_spliced=0, kl_zero=0, kl_recovered=0)
    rows = bench.lined_up(ours, r, s, sl, all_, dl)
    assert {w['unexplained'] for w in rows}=={0} and len(bench.shown(rows).splitlines())>len(rows)
    off = {w['metric'] for w in bench.lined_up(ours, r, s, sl|dict(cosine=sl['cosine']+.01), all_, dl|dict(ce_recovered=0.)) if w['unexplained']>1e-3}
    assert off=={'cosine', 'CE recovered'}

def test_the_table_that_was_kept():
    "Nothing is left unexplained, and what needs no explanation agrees"
    t = json.loads((BENCH/'evaluation_peers.json').read_text())
    assert len(t['metrics'])>=20 and {'machine', 'date', 'rows', 'seed'}<={*t}
    for w in t['metrics']:
        came = [(w[p], w[f'{p}_by_us']) for p in ('sae_lens', 'dictionary_learning') if w[p] is not None]
        assert came and max(abs(a-b) for a,b in came)==w['unexplained']<1e-4, w['metric']
        if w['ours'] is not None: assert max(abs(a-w['ours']) for a,_ in came)==w['difference']
        assert w['why'] or w['difference']<1e-4, w['metric']
