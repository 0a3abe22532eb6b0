"Sink rows and massive channels of a store: found exactly where they were planted, left out bit for bit, and told by an index"
import json, multiprocessing, os, random, signal
import numpy as np, pytest, torch
from functools import partial
from types import SimpleNamespace
from sparsenb import shards, sinkvalue, store as st, writer
from sparsenb.core import UnknownName, dictionaries
from sparsenb.index import FeatureIndex
from sparsenb.models import load_model
from sparsenb.sinkvalue import phi, tau_of
from sparsenb.store import ActivationStore
from test_store import TEXT, files, how, tiny

torch.set_num_threads(1)
NEWLINE,BOS = 5,9  # channels that mark them
fork = multiprocessing.get_context('fork')

def all_of(s, *cols, chunk=97):
    got = list(s.rows(chunk))
    assert [r.start for r in got]==list(range(0, len(s), chunk)) and all(len(r.x)==chunk for r in got[:-1])
    out = [torch.cat([getattr(r, c) for r in got]) for c in cols or ('x',)]
    return out if cols else out[0]

def planted():
    "A GPT-2 with random weights, whose BOS and newline have a channel each that outweighs all"
    m = tiny(d=256, layers=1)
    newline = m.tokenizer('\n', add_special_tokens=False)['input_ids'][0]
    with torch.no_grad():
        m.module.transformer.wte.weight[newline,NEWLINE] = 100
        m.module.transformer.wte.weight[256,BOS] = 100
    return load_model(m.module, tokenizer=m.tokenizer, name='planted'), newline

def kw(path, **more): return how(path, skip_bos=False)|more

@pytest.fixture(scope='module')
def model(): return planted()

@pytest.fixture(scope='module')
def whole(model, tmp_path_factory): return ActivationStore.collect(model[0], TEXT, **kw(tmp_path_factory.mktemp('s')/'acts'))

def noise(n=4000, d=256, seed=0): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope='module')
def quiet(tmp_path_factory):
    "Rows with a sink at the beginning of each segment whose norm is that of the others"
    x = noise()
    x[::40] *= .05; x[::40,33] = -16
    return x, ActivationStore.from_rows(tmp_path_factory.mktemp('q')/'acts', x, tok=torch.arange(4000)%7, pos=torch.arange(4000)%40, dtype='float32', shard_rows=1500)

# -- what is found ----------------------------------------------------------------------------------------------------


def test_planted_sinks_are_found_exactly(model, whole):
    tok,pos = all_of(whole, 'tok', 'pos')
    want = (tok==256)|(tok==model[1])
    assert whole.sink_channels==(NEWLINE, BOS) and whole.sink_rows().tolist()==want.nonzero().flatten().tolist()
    assert ((pos==0)==(tok==256)).all() and whole.sink_rows(dims=[BOS]).tolist()==(pos==0).nonzero().flatten().tolist()
    first = all_of(ActivationStore.collect(model[0], TEXT, **kw(whole.path.parent/'no-bos', skip_bos=True)), 'tok')[0]
    later = ActivationStore.open(whole.path.parent/'no-bos')
    assert later.sink_channels==(NEWLINE,) and later.sink_rows().tolist()==(first==model[1]).nonzero().flatten().tolist()  # none begins a segment

def test_described(model, whole):
    t = whole.describe()
    v,said = (dict(zip(t.column('quantity'), t.column(c))) for c in ('value', 'remark'))
    tok, = all_of(whole, 'tok')
    n_bos,n_new = int((tok==256).sum()),int((tok==model[1]).sum())
    assert v['massive channels']==2 and v['sink rows by value']==n_bos+n_new and v['share of the sink rows']==(n_bos+n_new)/len(whole)
    for part in (f"'\\n' at position", f"'<s>' at position 0 ({n_bos})", 'φ above 5:'): assert part in said['sink rows by value'], part
    assert f'{NEWLINE} (' in said['massive channels'] and f'{BOS} (' in said['massive channels'] and 'sample' not in str(t.rows)

def test_shares_are_those_computed_by_hand(quiet):
    x,s = quiet
    assert s.sink_channels==(33,) and s.sink_rows().tolist()==list(range(0, 4000, 40)) and not len(s.sinks)
    v,X = s._by_value(),x.double()
    (c,) = v['channels']
    spread = (X-X.mean(0)).square()
    on = torch.arange(4000)%40==0
    assert c['channel']==33 and c['above']==100 and c['max']==16 and v['whole'] and v['rows']==4000 and v['sinks']['rows']==4000
    assert c['variance']==pytest.approx(float(spread[:,33].sum()/spread.sum()), rel=1e-9) and c['sq_norm']==pytest.approx(float(X[:,33].square().sum()/X.square().sum()), rel=1e-9)
    assert v['sinks']['n']==100 and v['sinks']['variance']==pytest.approx(float(spread[on].sum()/spread.sum()), rel=1e-9) and v['sinks']['sq_norm']==pytest.approx(float(X[on].square().sum()/X.square().sum()), rel=1e-9)
    assert c['median']==pytest.approx(float(x.abs().median()), rel=.02)  # of 1,024 rows a shard

def test_words_come_from_a_model_where_one_is_at_hand(model, tmp_path):
    x = noise(900, 64); x[::30,2] = 500
    s = ActivationStore.from_rows(tmp_path/'a', x, tok=torch.full((900,), model[1]), pos=torch.arange(900)%30)
    assert f"'{model[1]}' at position 0 (30)" in str(s.describe().rows) and "'\\\\n' at position 0 (30)" in str(s.describe(model[0]).rows)

@pytest.mark.parametrize('x', [noise(3000, 256), noise(3000, 64)*torch.logspace(0, 2, 64), noise(3000, 256)+40*torch.eye(256)[3], noise(3000, 64)*noise(3000, 1, 1).exp()], ids=['noise', 'stretched', 'offset', 'uneven'])
def test_no_sinks_are_seen_where_there_are_none(tmp_path, x):
    "Also where channels differ a hundredfold, one is large on all rows, or rows differ in norm"
    s = ActivationStore.from_rows(tmp_path/'a', x, pos=torch.arange(3000)%30)
    assert s.sink_channels==() and len(s.select('mask'))==3000
    assert 'none marks few rows' in str(s.describe().rows)

def test_the_encoders_sink_is_its_first_token(minilm, tmp_path):
    "As the analysis of its attention finds: channel 99, at [CLS] alone; its norm is smaller than that of other rows"
    m = load_model(str(minilm), device='cpu')
    s = ActivationStore.collect(m, [t for _,t in TEXT], 'resid_post.2', path=tmp_path/'a', seq_len=32, skip_bos=False, progress=False)
    tok, = all_of(s, 'tok')
    assert s.sink_channels==(99,) and s.sink_rows().tolist()==(tok==m.bos_id).nonzero().flatten().tolist()==s.segments[:-1].tolist() and not len(s.sinks)
    assert "'[CLS]' at position 0" in str(s.describe().rows)

def without_tallies(path):
    "Make a store one of before tallies were kept"
    lines = [shards._unpack(l) for l in (path/'manifest.jsonl').read_bytes().splitlines()]
    for l in lines:
        l.pop('sinks', None)
        for v in l['sites'].values() if l['kind']=='final' else (): v.pop('value', None)
    (path/'manifest.jsonl').write_bytes(b''.join(map(shards._pack, lines)))
    return ActivationStore.open(path)

def test_older_stores_are_read_by_a_sample(tmp_path, monkeypatch, quiet):
    x = noise(40_000, 64); x[::50] *= .05; x[::50,7] = 8
    s = ActivationStore.from_rows(tmp_path/'a', x, pos=torch.arange(40_000)%50, dtype='float32', shard_rows=9000)
    said = lambda s: [r for r in s.describe().rows if r[0]!='massive channels']  # its median is that of pieces
    told = said(s)
    old = without_tallies(s.path)
    assert old.fingerprint==s.fingerprint and said(old)==told and old._by_value()['whole']  # all rows fit into a sample
    monkeypatch.setattr(sinkvalue, '_sample', partial(sinkvalue._sample, most=1))
    old = without_tallies(s.path)
    n = old._by_value()['rows']
    assert 10_000<n<20_000 and old.sink_channels==(7,) and f'sample of {n:,} rows' in str(old.describe().rows)
    assert (old.sink_rows()==s.sink_rows()).all()  # reading is never by a sample

@pytest.mark.parametrize('dtype,fingerprint', [('bfloat16', '65b8726da8fc6ebee233b85af2ab1bf6'), ('int8', 'bcb59b885d7be6e6452acf95a8d92a3a')])
def test_fingerprints_are_those_of_before(tmp_path, dtype, fingerprint):
    x = (torch.arange(3000*8)%251-125).view(3000, 8).float(); x[7] *= 100
    assert ActivationStore.from_rows(tmp_path/'a', x, tok=torch.arange(3000)%50, pos=torch.arange(3000)%10, shard_rows=1000, dtype=dtype).fingerprint==fingerprint

# -- reading without them ---------------------------------------------------------------------------------------------

def same_rows(a, b):
    for p,q in zip(all_of(a, 'x', 'tok', 'pos', 'doc'), b): assert torch.equal(p, q)

@pytest.mark.parametrize('dtype,by', [('bfloat16', 'value'), ('int8', 'value'), ('float32', 'norm')])
def test_masked_is_filtered_afterwards(tmp_path, dtype, by):
    "Bit for bit: rows, statistics, and every epoch of batches; across shards and windows of the mixing"
    n,d = 70_000,64
    x = noise(n, d)
    rng = np.random.default_rng(0)
    bad = np.sort(rng.choice(n, 900, replace=False)); bad = np.union1d(bad, np.arange(30_000, 30_400))
    x[:,11].clamp_(-.5, .5)  # noise alone is above τ in a channel of 64
    x[bad,11] = 2500.
    s = ActivationStore.from_rows(tmp_path/'a', x, tok=torch.arange(n)%991, pos=torch.arange(n)%100, doc=torch.arange(n)//35_000, dtype=dtype, shard_rows=9000)
    rows = list(all_of(s, 'x', 'tok', 'pos', 'doc', chunk=8192))
    on = torch.ones(n, dtype=torch.bool); on[torch.from_numpy(bad)] = False
    assert s.sink_rows(by).tolist()==bad.tolist()
    m,o = s.select('mask', by=by),s.select('only', by=by)
    for v,w in ((m, on), (o, ~on)):
        assert len(v)==int(w.sum())
        same_rows(v, [c[w] for c in rows])
        X = rows[0][w].double()
        torch.testing.assert_close(v.mean.double(), X.mean(0), atol=1e-6, rtol=1e-6); torch.testing.assert_close(v.std.double(), X.std(0, correction=0), atol=1e-6, rtol=1e-6)
        key = lambda t: t[(t.double()@torch.logspace(0, 1, d, dtype=torch.float64)).argsort()]
        b = torch.cat(list(v.batches(700, n_tokens=2*len(v)+1, seed=3)))
        for e in (b[:len(v)], b[len(v):2*len(v)]): assert torch.equal(key(e), key(rows[0][w]))
        assert not torch.equal(b[:len(v)], b[len(v):2*len(v)])
    assert torch.equal(next(m.batches(700, seed=3, start=120)), list(m.batches(700, n_tokens=121*700, seed=3))[120])  # begins anywhere, in the second epoch too
    assert m.context(50)==s.context(int(np.flatnonzero(on.numpy())[50])) and m.doc_name(1)==s.doc_name(1)
    assert len({s.fingerprint, m.fingerprint, o.fingerprint})==3 and s.select('mask', by=by).fingerprint==m.fingerprint

def test_with_nothing_to_leave_out_the_batches_are_the_same(quiet):
    x,s = quiet
    m = s.select('mask', by='norm')
    assert len(m)==len(s)
    for a,b in zip(s.batches(300, n_tokens=9000, seed=1), m.batches(300, n_tokens=9000, seed=1)): assert torch.equal(a, b)
    assert s.select('keep') is s

def test_a_site_lends_its_sinks_to_another(model, tmp_path):
    s = ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'a', site=['resid_post.0', 'mlp_out.0']))
    m = s['resid_post.0'].select()
    other = m['mlp_out.0']
    rows = np.setdiff1d(np.arange(len(s)), s['resid_post.0'].sink_rows())
    assert torch.equal(all_of(other), all_of(s['mlp_out.0'])[rows]) and torch.equal(all_of(other, 'tok')[0], all_of(m, 'tok')[0])
    fitted = dictionaries['topk'](256, 512, k=4, d_out=256)
    from sparsenb.train import fit
    fit(fitted, (m, other), 1024, 128, seed=0)

def test_training_and_scores_see_no_sink(whole):
    from sparsenb.metrics import evaluate
    from sparsenb.train import fit
    calm = whole.select()
    assert calm.stats['norms']['max']<5<50<whole.stats['norms']['max'] and calm.scale>10*whole.scale
    d = dictionaries['topk'](256, 512, k=4)
    run = fit(d, calm, 4*len(calm), 128, seed=0)
    assert run.settings['data']==[calm.fingerprint] and evaluate(d, calm, n_tokens=None, progress=False)['fvu'].n==len(calm)

# -- collecting -------------------------------------------------------------------------------------------------------

def test_collecting_masked_is_a_way_of_reading(model, whole, tmp_path):
    m = ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'a', sinks='mask'))
    w = whole.select()
    assert files(m.path)==files(whole.path) and m.fingerprint==w.fingerprint
    same_rows(m, all_of(w, 'x', 'tok', 'pos', 'doc'))
    o = ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'a', sinks='only'))  # the same store, found finished
    assert len(o)+len(m)==len(whole) and (all_of(o, 'tok')[0].unique()==torch.tensor(sorted([256, model[1]]))).all()
    for a,b in zip(m.sequences(4), whole.sequences(4)): assert torch.equal(a[0], b[0])  # what the model saw stays whole

def work(path, at, rank=0, world=1):
    "Collect in a process that is killed at the `at`-th run of the model"
    real,left = st.capture,[at]
    def capture(*a, **k):
        left[0] -= 1
        if left[0]<0: os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    st.capture = capture
    torch.set_num_threads(1)
    ActivationStore.collect(planted()[0], TEXT, **kw(path, sinks='mask'), rank=rank, world=world)

def test_kills_and_ranks_change_nothing(model, whole, tmp_path):
    seed = random.SystemRandom().randrange(1<<30)
    rnd,killed = random.Random(seed),0
    for world,ranks in ((2, (0, 1)), (1, (0,)), (3, (2, 0))):
        for r in ranks:
            p = fork.Process(target=work, args=(tmp_path/'a', rnd.randrange(4, 9), r, world)); p.start(); p.join(60)
            killed += p.exitcode==-signal.SIGKILL
    assert killed>=2, seed
    m = ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'a', sinks='mask'))
    try: assert files(m.path)==files(whole.path) and m.fingerprint==whole.select().fingerprint
    except AssertionError: print('seed', seed); raise
    same_rows(m, all_of(whole.select(), 'x', 'tok', 'pos', 'doc'))
    for r in (1, 2): assert ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'b', sinks='mask'), rank=r, world=3) is None
    m = ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'b', sinks='mask'), rank=0, world=3)
    assert files(m.path)==files(whole.path) and torch.equal(next(m.batches(64, seed=2)), next(whole.select().batches(64, seed=2)))

# -- refused ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('more,error,match', [
    (dict(sinks='mak'), UnknownName, "unknown sinks 'mak'; did you mean 'mask'"), (dict(sinks='mask', sink_by='vlue'), UnknownName, "did you mean 'value'"),
    (dict(sinks='mask', sink_tau=20), ValueError, r'below √256 = 16, the largest sink value there can be, got 20'), (dict(sinks='mask', sink_tau=0), ValueError, 'tau must be above 0'),
    (dict(sinks='mask', sink_dims=[256]), ValueError, r'channels in 0..255, got \[256\]'), (dict(sinks='mask', sink_by='norm', sink_tau=2), ValueError, 'by norm a sink is above 100 times'),
    (dict(sinks='only', site=['resid_post.0', 'mlp_out.0']), ValueError, 'sinks are told at one site')])
def test_bad_arguments_leave_nothing(model, tmp_path, more, error, match):
    with pytest.raises(error, match=match): ActivationStore.collect(model[0], TEXT, **kw(tmp_path/'acts', **more))
    assert not (tmp_path/'acts').exists()

def test_what_cannot_be_selected(whole, tmp_path):
    x = torch.zeros(50, 64); x[:,3] = 1
    s = ActivationStore.from_rows(tmp_path/'a', x)
    with pytest.raises(ValueError, match=r'all 50 rows of rows in .* are sinks \(value above tau=2.5 in channels 3\): nothing is left'): s.select('mask', dims=[3])
    with pytest.raises(ValueError, match='no row of rows in .* is a sink .*none is massive'): s.select('only')
    with pytest.raises(ValueError, match='no row .*norm above 100 times the median'): s.select('only', by='norm')
    with pytest.raises(ValueError, match='select from .whole'): whole.select().select()
    with pytest.raises(ValueError, match='upload the whole store'): whole.select().upload('memory://x')
    with pytest.raises(IndexError, match='rows were selected'): whole.select('only').context(10**6)
    narrow = ActivationStore.from_rows(tmp_path/'n', noise(50, 8))
    with pytest.raises(ValueError, match='8 channels; with fewer than 64 noise is above tau=0.884'): narrow.select()
    assert 'nothing is concluded' in str(narrow.describe().rows) and len(narrow.select(dims=[0], tau=2.5))<=50

# -- in an index ------------------------------------------------------------------------------------------------------

class Known:
    "Feature 0 answers to sinks and little else, 1 to all rows, 2 to what is no sink, 3 to half sinks, 4 to nothing; the others are channels"
    name,d_in,d_sae,fingerprint = 'known',256,262,'cafe'
    def __init__(self, kill_at=None):
        self.W_dec = torch.zeros(262, 256); self.W_dec[6:,:] = torch.eye(256); self.W_dec[:6,0] = 1
        self.kill_at,self.seen = kill_at,0
    def codes(self, x):
        if self.kill_at is not None and self.seen>=self.kill_at: os.kill(os.getpid(), signal.SIGKILL)
        self.seen += len(x)
        sink = x[:,[NEWLINE, BOS]].abs().amax(1)>20
        some = (x[:,0]*1e4).long()%40==0
        f = torch.zeros(len(x), 262)
        f[:,0] = torch.where(sink, x[:,NEWLINE].abs()+x[:,BOS].abs(), some*.5)
        f[:,1] = 1+x[:,3].abs(); f[:,2] = torch.where(sink, 0, x[:,4].abs()+.1)
        f[:,6:] = x.relu()
        val,idx = f.sort(dim=1, descending=True, stable=True)
        return SimpleNamespace(val=val, idx=idx)

def build(store, path, dictionary=None, **more): return FeatureIndex.build(dictionary or Known(), store, path=path, n_top=3, n_quantiles=2, n_per_quantile=1, context=(3, 1), n_bins=4, chunk=64, **more)

@pytest.fixture(scope='module')
def index(whole, tmp_path_factory): return build(whole, tmp_path_factory.mktemp('ix')/'a')

def test_shares_of_features_equal_brute_force(whole, index):
    x,on = all_of(whole),torch.zeros(len(whole), dtype=torch.bool)
    on[torch.from_numpy(whole.sink_rows())] = True
    c = Known().codes(x)
    f = torch.zeros(len(x), 262).scatter_(1, c.idx, c.val).double()
    n,mass = (f>0).sum(0),f.sum(0)
    live = n>0
    np.testing.assert_array_equal(index.sink_share[live], ((f>0)&on[:,None]).sum(0)[live].double()/n[live])
    np.testing.assert_allclose(index.sink_mass[live], (f*on[:,None]).sum(0)[live]/mass[live], rtol=1e-12)
    assert np.isnan(index.sink_share[~live.numpy()]).all() and not index.alive[4]
    assert index.info['sinks']==dict(channels=[NEWLINE, BOS], tau=5., rows=int(on.sum()))
    told = index.sink_features
    assert told[0] and not told[1] and not told[2] and not told[4] and .5<index.sink_share[0]<1 and index.sink_share[2]==0
    assert index.sink_share[1]==pytest.approx(float(on.float().mean()))  # a feature of all rows: by chance

def test_the_card_says_so_in_one_line(index, whole):
    share = f'{index.sink_share[0]:.0%}'.replace('%', ' %')
    (line,) = [s for s in index.card(0).stats if 'sink' in str(s)]
    assert line[1]+' '+line[0]==f'sink feature: {share} of its activations are on sink tokens' and f"{index.info['sinks']['rows']/len(whole):.2%}".replace('%', ' %')+' of all tokens are sinks' in line[4]
    assert not any('sink' in str(s) for i in (1, 2, 4) for s in index.card(i).stats)
    html = index.card(0).html()
    assert f'sink feature: {share}</b>of its activations are on sink tokens' in html and 'sink feature' not in index.card(1).html()
    from sparsenb.widgets.feature_card import described
    assert [s for s in described(index, 0)[0]['stats'] if s[0]==f'sink feature: {share}']

def test_parts_of_rows_and_features_merge_to_the_same(whole, index, tmp_path):
    parts = [build(whole, tmp_path/f'{r}{lo}', part=(r, 2), features=(lo, hi)) for r in (0, 1) for lo,hi in ((0, 30), (30, 262))]
    m = FeatureIndex.merge(parts, tmp_path/'whole')
    assert m.info['files']==index.info['files'] and m.info['sinks']==index.info['sinks'] and 'sink_n.npy' in m.info['files']

def test_an_index_that_is_killed_goes_on(whole, index, tmp_path):
    def begin(): torch.set_num_threads(1); build(whole, tmp_path/'a', Known(kill_at=300))
    p = fork.Process(target=begin); p.start(); p.join(60)
    assert p.exitcode==-signal.SIGKILL and (tmp_path/'a'/'partial'/'pass.json').exists()
    assert build(whole, tmp_path/'a').info['files']==index.info['files']

def test_indexes_without_sinks_open(whole, quiet, tmp_path, monkeypatch):
    "Those of before, begun or finished, and those of stores that have none"
    from sparsenb import index as making
    with monkeypatch.context() as m:
        m.setattr(making, '_sinks_of', lambda s: None)
        old = build(whole, tmp_path/'old')
        def begin(): torch.set_num_threads(1); build(whole, tmp_path/'begun', Known(kill_at=300))
        p = fork.Process(target=begin); p.start(); p.join(60)
        assert p.exitcode==-signal.SIGKILL
    begun = build(whole, tmp_path/'begun')  # by this version: still without, as it was begun
    for ix in (old, begun, build(whole.select(), tmp_path/'calm')):
        assert 'sink_n.npy' not in ix.info['files'] and 'sinks' not in ix.info and np.isnan(ix.sink_share).all() and not ix.sink_features.any()
        assert not any('sink' in str(s) for s in ix.card(0).stats)
    assert build(whole, tmp_path/'old').path==old.path and begun.info['files']==old.info['files']  # the same call finds it
