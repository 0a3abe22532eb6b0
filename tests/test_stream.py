"Activations straight from the model: the same rows as a store's, any batch from anywhere, exact resume, well mixed"
import itertools, random
from types import SimpleNamespace as N
import numpy as np, pytest, torch
import sparsenb.stream as stream, sparsenb.train as train
from sparsenb.core import dictionaries
from sparsenb.corpus import load_corpus
from sparsenb.dictionary import load_dictionary
from sparsenb.many import fit_many
from sparsenb.store import ActivationStore, _Segment, _segments
from sparsenb.stream import LiveStream, _endless, _Pool
from sparsenb.train import Callback, fit
from killing import killed_once
from test_train import At, interrupt, same

torch.set_num_threads(1)
SITE = 'resid_post.1'
text = load_corpus([(d.name, d.text[:1200]) for d in itertools.islice(load_corpus('stdlib'), 12)])
def live(site=SITE, **kw): return LiveStream('stdlib-4l', text, site, **{**dict(pool=1024, mix=30, seq_len=48, batch_size=4), **kw})
def topk(**kw): return dictionaries['topk'](256, 64, **{**dict(k=8, dead_after=2000), **kw})
plan = dict(n_tokens=60*64, batch_size=64, checkpoint_every=10, log_every=7)

@pytest.fixture
def inputs(monkeypatch):
    "Tokens of each input the model has read"
    seen,real = [],stream._batch_columns
    def count(model, batch, *args):
        seen.append(sum(len(s.ids) for s in batch))
        return real(model, batch, *args)
    monkeypatch.setattr(stream, '_batch_columns', count)
    return seen

# ---- which rows ----

@pytest.mark.parametrize('skip_bos', [True, False])
def test_rows_are_those_that_collect_stores(tmp_path, skip_bos):
    "Each row of the stream is a row of the store, and in an epoch each of the store's rows comes once; the last bits depend on a row's neighbours in the model's input"
    store = ActivationStore.collect('stdlib-4l', text, SITE, path=tmp_path, seq_len=48, skip_bos=skip_bos, dtype='float32', progress=False)
    all_rows,s = next(store.rows(len(store))),live(skip_bos=skip_bos, pool=len(store), dtype='float32', batch_size=1)
    pool = _Pool(s, 0); pool._fill(); pool._load()
    n = len(pool.rows)
    assert len(store)<=n<len(store)+48 # the first epoch, and at most a piece of the next
    x,y = pool.x[SITE][:n],all_rows.x
    assert sum(len(c[0].ids)+(not skip_bos) for c in itertools.islice(pool.chunks.values(), len(store.segments)-1))==len(store)
    x = x[:len(store)] # places were given in the order of the inputs
    near = torch.cdist(x, y).argmin(1)
    torch.testing.assert_close(x, y[near], rtol=1e-3, atol=1e-3)
    equal = torch.cdist(x[near.unique(return_counts=True)[1].argmax()][None], y).min()
    assert equal<1e-2
    # each segment of the store once
    seg = lambda l: sorted(tuple(int(i) for i in s.ids) for s in l)
    ours = [c[0] for c in itertools.islice(pool.chunks.values(), len(store.segments)-1)]
    assert seg(ours)==seg(_segments(s.model, text, 48, None))

def test_an_epoch_after_the_other_in_another_order():
    s = live(mix=1000)
    n = sum(1 for _ in _segments(s.model, text, 48, None))
    it = _endless(s.model, text, 48, 0, 1000)
    a,b = ([(x.doc, x.at, tuple(x.ids.tolist())) for x in itertools.islice(it, n)] for _ in range(2))
    key = lambda l: sorted(t[2] for t in l)
    assert key(a)==key(b) and [t[2] for t in a]!=[t[2] for t in b]
    c = [tuple(x.ids.tolist()) for x in itertools.islice(_endless(s.model, text, 48, 1, 1000), n)]
    assert sorted(c)==key(a) and c!=[t[2] for t in a]

def test_rounding_is_the_stores():
    a,b = (next(live(dtype=t).batches(64, seed=0)) for t in ('bfloat16','float32'))
    assert a.dtype==b.dtype==torch.float32 and torch.equal(b.bfloat16().float(), a) and not torch.equal(a, b)

# ---- which batch ----

@pytest.mark.parametrize('size', [64, 100, 700])
def test_a_batch_depends_on_seed_and_number_alone(size):
    "However it is come to: in turn, from a new start, within the first pool, at a filling, far on, where a batch is larger than half a pool"
    s = live()
    steps = range(3400//size+1)
    turn = [b for b in s.batches(size, n_tokens=size*len(steps), seed=3)]
    assert len(turn)==len(steps) and all(b.shape==(size, 256) for b in turn)
    for i in (*random.Random(0).sample(steps, min(4, len(steps))), 512//size, steps[-1]):
        got = list(itertools.islice(live().batches(size, seed=3, start=i), 2))
        assert torch.equal(got[0], turn[i]) and (i+1>=len(turn) or torch.equal(got[1], turn[i+1]))
    assert not torch.equal(turn[0], next(s.batches(size, seed=4)))

def test_a_new_start_runs_the_model_for_what_waits_and_no_more(inputs):
    s = live()
    it = s.batches(64, seed=0)
    for _ in range(120): next(it)
    whole = sum(inputs); inputs.clear()
    it.close()
    next(s.batches(64, seed=0, start=119))
    assert sum(inputs)<=2*s.pool<whole/3

def test_an_interrupt_within_a_batch_loses_nothing(monkeypatch):
    want = list(live().batches(64, n_tokens=40*64, seed=0))
    s,real,calls = live(),stream._batch_columns,itertools.count()
    def stop(*args):
        if next(calls)==12: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(stream, '_batch_columns', stop)
    got = []
    with pytest.raises(KeyboardInterrupt):
        for i in range(40): got.append(s._at(64, 0, i)[SITE])
    for i in range(len(got), 40): got.append(s._at(64, 0, i)[SITE])
    assert all(torch.equal(a, b) for a,b in zip(want, got))

def test_memory_is_one_pool_whatever_is_read():
    s = live()
    pool = _Pool(s, 0)
    x = pool.x[SITE]
    most = 0
    for _ in range(100):
        pool.take(64)
        most = max(most, len(pool.rows)+sum(len(b)*48 for b in pool.chunks.values())*2//256) # rows, and the tokens of 8 bytes that could be run again
        used = pool.rows['slot'][pool.given:]
        assert len({*used.tolist()})==len(used) and not {*used.tolist()} & {*pool.free.tolist()}
    assert pool.x[SITE] is x and len(x)==1024+4*48 and most<len(x)+200

# ---- fit ----

def test_fit_and_its_statistics(tmp_path):
    s = live()
    src = s.source(64, 0, 256, 'cpu')
    st = src.stats
    x = torch.cat([b for b in itertools.islice(s.batches(64, seed=0), 200)])
    assert st.sample.shape==(1024, 256)
    assert (st.mean-x.mean(0)).norm()<.25*x.mean(0).norm() and abs(st.scale/(256/x.square().sum(1).mean()).sqrt().item()-1)<.1
    d = topk(); run = fit(d, s, **plan, path=tmp_path)
    assert run.step==60 and run.history['fvu'][-1]<run.history['fvu'][0] and s._shared=={}
    p = load_dictionary(tmp_path/'final').provenance
    assert p['model_name']=='stdlib-4l' and p['site']==SITE and p['corpus']=='given' and p['fingerprint']==s.fingerprint

def test_an_interrupted_run_goes_on_to_the_bits_of_an_unbroken_one(tmp_path, inputs):
    whole = topk(); fit(whole, live(), **plan)
    n = sum(inputs)
    with pytest.raises(KeyboardInterrupt): fit(topk(), live(), **plan, path=tmp_path, callbacks=[At(47, interrupt)])
    inputs.clear()
    again = topk(); fit(again, live(), **plan, path=tmp_path)
    same(whole, again)
    assert sum(inputs)<n # statistics are not computed again
    with pytest.raises(ValueError, match='data: '): fit(topk(), live(pool=2048), **plan, path=tmp_path)
    with pytest.raises(ValueError, match='data: '): fit(topk(), live(mix=31), **plan, path=tmp_path)

def test_sigkill_and_the_same_call_end_at_the_bits_of_an_unbroken_run(tmp_path):
    whole = topk(); fit(whole, live(), 100*64, 64, path=tmp_path/'whole', checkpoint_every=10, log_every=7)
    killed_once('test_stream', 'fit(topk(), live(), 100*64, 64, path=sys.argv[1], checkpoint_every=10, log_every=7, callbacks=[At(s, lambda s=s: print(s, flush=True)) for s in range(0, 101, 2)])', tmp_path/'broken', (10, 90))
    same(whole, load_dictionary(tmp_path/'broken'/'final'))
    ours,theirs = (train.load_file(tmp_path/n/'step-00000100'/'state.safetensors') for n in ('whole','broken'))
    for k in ours: torch.testing.assert_close(ours[k], theirs[k], rtol=0, atol=0, msg=k)

def test_fit_many_reads_once_and_each_ends_as_alone(tmp_path, inputs):
    mk = lambda: [topk(), topk(k=4), dictionaries['matryoshka'](256, 48, k=4, n_sampled=3)]
    many = mk(); fit_many(many, live(), **plan)
    once = sum(inputs); inputs.clear()
    for a,b in zip(many, mk()): fit(b, live(), **plan); same(a, b)
    assert sum(inputs)==3*once
    with pytest.raises(KeyboardInterrupt): fit_many(mk(), live(), **plan, path=tmp_path, callbacks=[[], [At(30, interrupt)], []])
    again = mk(); fit_many(again, live(), **plan, path=tmp_path)
    for a,b in zip(many, again): same(a, b)

def test_two_sites_are_a_pair_read_once(tmp_path, inputs):
    sites = ('mlp_in.1','mlp_out.1')
    mk = lambda: dictionaries['transcoder'](256, 64, d_out=256)
    a = mk(); fit(a, live(sites), **plan)
    n = sum(inputs); inputs.clear()
    s,b = live(sites),mk()
    fit(b, (s[sites[0]], s[sites[1]]), **plan); same(a, b)
    assert sum(inputs)==n
    with pytest.raises(KeyboardInterrupt): fit(mk(), live(sites), **plan, path=tmp_path, callbacks=[At(47, interrupt)])
    c = mk(); fit(c, live(sites), **plan, path=tmp_path); same(a, c)
    x,y = (next(s[k].batches(64, seed=0)) for k in sites)
    solo = next(live(sites[0]).batches(64, seed=0))
    assert torch.equal(x, solo) and not torch.equal(x, y)

# ---- mixing ----

def test_batch_means_vary_little_more_than_those_of_independent_rows(monkeypatch):
    "Segments of 255 rows, batches of a 64th of the pool: a row meets 255*200/19200-1 = 1.7 others of its segment, so the variance is 1+1.7*rho times that of independent rows (1.13 at the 0.08 of the bundled model); by chance alone it would be more"
    rho,d,g = .2,200,torch.Generator().manual_seed(0)
    def rows(model, batch, sites, dtype, skip_bos):
        n = sum(len(s.ids) for s in batch)
        own = torch.randn(len(batch), d, generator=g).repeat_interleave(torch.tensor([len(s.ids) for s in batch]), 0)
        return {sites[0]: rho**.5*own + (1-rho)**.5*torch.randn(n, d, generator=g)}
    monkeypatch.setattr(stream, '_batch_columns', rows)
    s = N(model=N(bos_id=None, tokenizer=lambda text, **kw: {'input_ids': [0]*255*1000}), mix=1, pool=12_800, text=[N(name='a', text='')],
          header=dict(batch_size=1, seq_len=255, dtype='float32', sites=dict(x=d), bos_id=None, skip_bos=False))
    def inflation(pool): return np.mean([200*pool.take(200)['x'].mean(0).square().mean().item() for _ in range(400)])
    got = inflation(_Pool(s, 0).skip(12_800))
    assert abs(got-(1+rho*1.66))<.08
    class Chance(_Pool): # filled when half empty, drawn at random
        def _fill(self):
            super()._fill()
            rest = np.random.default_rng(self.n_chunks).permutation(len(self.rows))
            self.rows = self.rows[rest]
    assert inflation(Chance(s, 0).skip(12_800))>got+.08

# ---- refused ----

def test_what_is_refused(monkeypatch):
    with pytest.raises(KeyError, match="resid_post.1"): live('resid_post.l')
    with pytest.raises(KeyError, match=f"unknown site 'embed'.*{SITE}"): live()['embed']
    with pytest.raises(ValueError, match='pool must be a whole number of at least 2, got 1'): live(pool=1)
    with pytest.raises(ValueError, match='seq_len must be at least 2'): live(seq_len=1)
    with pytest.raises(ValueError, match='has width 256, the dictionary expects 8'): fit(dictionaries['topk'](8, 16, k=2), live(), 640, 64)
    two = live(('mlp_in.1','mlp_out.1'))
    with pytest.raises(ValueError, match=r"several sites, mlp_in.1, mlp_out.1: choose one"): fit(topk(), two, 640, 64)
    with pytest.raises(ValueError, match='give a pair'): fit(dictionaries['transcoder'](256, 32, d_out=256), two['mlp_in.1'], 640, 64)
    with pytest.raises(ValueError, match='batch_size must be at least 1'): live().batches(0)
    with pytest.raises(ValueError, match='start must be at least 0'): live().batches(8, start=-1)
    monkeypatch.setenv('SPARSENB_MEMORY', '400kB')
    with pytest.raises(MemoryError, match='a pool of 1,024 rows needs .* the budget is 400 kB: take a smaller pool'): live()

def test_text_without_tokens_is_told_of(monkeypatch):
    s = live()
    s.model = N(bos_id=0, pad_id=1, tokenizer=lambda *a, **k: {'input_ids': []})
    with pytest.raises(ValueError, match='has no text: 12 documents gave no token'): next(s.batches(8))

def test_a_model_that_gives_nan_is_refused_with_its_place(monkeypatch, tmp_path):
    import sparsenb.store as store
    real = store.capture
    def nan(*args, **kw):
        out = real(*args, **kw)
        out[SITE][0,3,5] = float('nan')
        return out
    monkeypatch.setattr(store, 'capture', nan)
    d = topk()
    with pytest.raises(ValueError, match=rf"gave NaN at site {SITE}, dimension 5: document '.*', position 3"): fit(d, live(), 640, 64)
    assert d.n_seen==0
