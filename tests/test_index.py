"FeatureIndex against a slow dense reference, killed and resumed, damaged, and with hostile text"
import errno, json, os, signal, subprocess, sys, textwrap
from types import SimpleNamespace
import numpy as np, pytest, torch
from sparsenb.index import Directions, FeatureIndex, VERSION

CONTEXT = (5, 3)

class Store:
    "Rows of random features in documents of several segments; a token 0 without a row begins each segment"
    site,model_name,revision,fingerprint,d_in = 'resid_post.1','toy','r1','store1',12
    def __init__(self, n=700, seed=0, vocab=40, broken_at=None):
        g,self.broken_at = np.random.default_rng(seed),broken_at
        # few distinct values, so that ties are everywhere; feature 9 is dead, 10 fires once, 11 always
        f = np.where(g.random((n, 12))<np.linspace(.02, .5, 12), g.integers(1, 6, (n, 12))/4, 0).astype(np.float32)
        f[:,9],f[:,10] = 0,0
        f[n//2,10],f[:,11] = 3,g.integers(1, 9, n)/8
        self.f,self.tok = f,g.integers(1, vocab, n)
        self.below = -(g.random((n, 12))<.1).astype(np.float32)  # values below zero are not active
        self.pos,self.doc,self.seg = (np.zeros(n, int) for _ in range(3))
        a = s = 0
        while a<n:
            m = int(g.integers(1, 20))
            self.pos[a:a+m],self.doc[a:a+m],self.seg[a:a+m] = np.arange(1, m+1)[:n-a],s//3,s
            a,s = a+m,s+1

    def __len__(self): return len(self.f)
    def rows(self, chunk=8192, start=0):
        for a in range(start, len(self), chunk):
            if self.broken_at is not None and a>=self.broken_at: raise InterruptedError('unplugged')
            s = slice(a, a+chunk)
            yield SimpleNamespace(x=torch.from_numpy(np.where(self.f[s]==0, self.below[s], self.f[s])), tok=torch.from_numpy(self.tok[s]), pos=torch.from_numpy(self.pos[s]), doc=torch.from_numpy(self.doc[s]), start=a)
    def sequences(self, batch_size): yield np.r_[0, self.tok[self.seg==0]][None], None
    def window(self, row, left, right): # what the model saw around a row
        rows = np.flatnonzero(self.seg==self.seg[row])
        ids,at = np.r_[0, self.tok[rows]], int(np.flatnonzero(rows==row)[0])+1
        lo = max(0, at-left)
        return ids[lo:at+right+1], at-lo
    def doc_name(self, i): return f'doc{i}'

class Codes:
    "Hands the store's features on, padded as a sparse code is; counts the rows it saw"
    name,d_in,d_sae,fingerprint = 'toy',12,12,'dict1'
    def __init__(self, d_out=6, seed=0, kill_at=None):
        self.W_dec,self.seen,self.kill_at = torch.randn(12, d_out, generator=torch.Generator().manual_seed(seed)),0,kill_at
    def codes(self, x):
        if self.kill_at is not None and self.seen>=self.kill_at: os.kill(os.getpid(), signal.SIGKILL)
        self.seen += len(x)
        val,idx = x.sort(dim=1, descending=True)
        idx[val==0] = 0
        return SimpleNamespace(idx=idx, val=val)

class Model:
    name,revision = 'toy','r1'
    def __init__(self, texts, d_model=6): self.texts,self.tokenizer,self.unembed_weight = texts,texts,torch.randn(len(texts), d_model, generator=torch.Generator().manual_seed(7))
    def token_text(self, ids): return [self.texts[i] for i in ids]

texts = [f't{i}' for i in range(40)]
def build(path, store=None, dictionary=None, model='given', **kw):
    return FeatureIndex.build(dictionary or Codes(), store or Store(), Model(texts) if model=='given' else model, path=path, **dict(n_top=7, n_quantiles=4, n_per_quantile=3, context=CONTEXT, chunk=64, n_bins=5)|kw)

def columns(path): return {p.name: p.read_bytes() for p in sorted(path.glob('*.npy'))}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return build(tmp_path_factory.mktemp('ix')/'a', cap=300)

def ranked(f): # rows by rank: strongest first, of equal ones the earlier
    rows = np.flatnonzero(f>0)
    return rows[np.argsort(-f[rows], kind='stable')]

def test_statistics_are_exact(made):
    s = Store()
    for i in range(12):
        f,v = s.f[:,i],np.sort(s.f[s.f[:,i]>0, i])
        assert made.n_active[i]==len(v) and made.density[i]==len(v)/700
        lo,hi = made.density_interval(i)
        assert lo<=made.density[i]<=hi and hi-lo<.08
        edges,counts = made.histogram(i)
        if not len(v):
            assert made.max_act[i]==made.mean_act[i]==0 and not made.alive[i] and not counts.any() and np.isnan(made.quantiles(i)).all()
            continue
        assert made.max_act[i]==v[-1] and made.mean_act[i]==pytest.approx(v.mean(dtype=float), rel=1e-12)
        assert (counts==np.histogram(v, edges)[0]).all() and edges[0]==0 and edges[-1]==v[-1] and np.allclose(np.diff(edges), v[-1]/5)
        assert (made.quantiles(i)==np.quantile(v, np.arange(5)/4, method='inverted_cdf')).all()

def same_window(s, e, i, rank):
    ids,at = s.window(e.row, *CONTEXT)
    rows = e.row-at+np.arange(len(ids))
    real = (rows>=0)&(s.seg[np.maximum(rows, 0)]==s.seg[e.row]) # the first may be the token without a row
    want = np.where(real, s.f[np.maximum(rows, 0), i], 0)
    assert e.tokens==[f't{t}' for t in ids] and e.peak==at and e.doc==f'doc{s.doc[e.row]}'
    assert (e.values==want).all() and (e.ranks==[rank.get(r, -1) if ok else -1 for r,ok in zip(rows, real)]).all()

def test_examples_ranks_and_context_are_exact(made):
    s = Store()
    for i in range(12):
        rows = ranked(s.f[:,i])
        rank = {r: k for k,r in enumerate(rows)}
        top = made.top(i)
        assert [e.row for e in top]==rows[:7].tolist() and [e.rank for e in top]==list(range(len(top)))
        for g in range(4):
            own,ex = rows[len(rows)*g//4:len(rows)*(g+1)//4],made.examples(i, g)
            assert len(ex)==min(3, len(own)) and len({e.row for e in ex})==len(ex) and {e.row for e in ex}<=set(own.tolist())
            assert [e.rank for e in ex]==sorted(e.rank for e in ex)
            lo,hi = made.bounds(i, g)
            if len(own): assert (lo, hi)==(s.f[own,i].min(), s.f[own,i].max())
            else: assert np.isnan(lo) and np.isnan(hi)
            for e in ex: same_window(s, e, i, rank)
        for e in top: same_window(s, e, i, rank)
    assert any(e.tokens[0]=='t0' for e in made.top(11)+made.examples(11, 3)+made.examples(11, 2)), 'no window reaches the beginning of a segment'

def test_random_access_agrees_with_a_window_of_one(tmp_path):
    ix = build(tmp_path/'a', context=(0, 0))
    assert all(len(e.tokens)==1 and e.peak==0 for i in range(12) for e in ix.top(i))

def test_draws_depend_on_the_seed_only(tmp_path, made):
    want = columns(made.path)
    assert columns(build(tmp_path/'a', chunk=700).path)==want            # one chunk, one bucket
    assert columns(build(tmp_path/'b', chunk=13, cap=20).path)==want     # many, and features larger than `cap`
    other = build(tmp_path/'c', seed=1)
    assert [e.row for e in other.top(11)]==[e.row for e in made.top(11)] and [e.row for e in other.examples(11, 2)]!=[e.row for e in made.examples(11, 2)]

def test_drawn_examples_cover_their_group(tmp_path):
    rows = ranked(Store().f[:,11])[:175]  # the strongest quarter of feature 11
    drawn = [e.row for k in range(6) for e in build(tmp_path/str(k), seed=k, n_top=1).examples(11, 0)]
    at = np.array([rows.tolist().index(r) for r in drawn])
    assert len(drawn)==18 and abs(at.mean()-87)<15 and len(set(drawn))>12

def test_effects_neighbours_and_partners(made):
    W,U,on = Codes().W_dec,Model(texts).unembed_weight,Store().f>0
    y = (W@U.T).numpy()
    c = torch.nn.functional.cosine_similarity(W[:,None], W[None], dim=-1).fill_diagonal_(-2).numpy()
    on = on[:630]  # the last tenth is held out, for correlations
    both = (on.T.astype(float)@on)
    share = both/np.maximum(on.sum(0)[:,None]+on.sum(0)-both, 1)*(both>=3)
    np.fill_diagonal(share, 0)
    for i in range(12):
        up,u,down,d = made.logits(i)
        assert up==[f't{t}' for t in np.argsort(-y[i])[:10]] and down==[f't{t}' for t in np.argsort(y[i])[:10]]
        assert np.allclose(u, np.sort(y[i])[::-1][:10], atol=1e-5) and np.allclose(d, np.sort(y[i])[:10], atol=1e-5)
        j,v = made.neighbours(i)
        assert j.tolist()==np.argsort(-c[i])[:10].tolist() and np.allclose(v, np.sort(c[i])[::-1][:10], atol=1e-6)
        j,v = made.partners(i)
        assert np.allclose(v, np.sort(share[i])[::-1][:len(v)], atol=1e-6) and len(v)==min(10, (share[i]>0).sum()) and np.allclose(share[i,j], v)

def test_partners_are_counted_in_blocks():
    from sparsenb.relations import _correlated, _together
    on = np.random.default_rng(0).random((200, 30))<.2
    row,f = np.nonzero(on)
    for a,b in zip(_together(row, f, 30, 5), _together(row, f, 30, 5, at_once=50)): assert (a==b).all()
    v = np.random.default_rng(1).random(len(row))
    for a,b in zip(_correlated(row, f, v, 200, 30, 5), _correlated(row, f, v, 200, 30, 5, at_once=50)): assert (a==b).all()

def test_correlations_are_pearson_on_the_held_out_rows(made):
    f,on = np.maximum(Store().f[630:], 0),Store().f[630:]>0
    both = on.T.astype(int)@on
    with np.errstate(invalid='ignore'): r = np.where(both>=3, np.corrcoef(f.T.astype(float)), -2)
    np.fill_diagonal(r, -2)
    r = np.nan_to_num(r, nan=-2)
    for i in range(12):
        j,v = made.similar(i, 'correlation')
        assert len(v)==(r[i]>-2).sum().clip(max=10) and np.allclose(v, np.sort(r[i])[::-1][:len(v)], atol=1e-6) and np.allclose(r[i,j], v, atol=1e-6)
    assert len(made.similar(11, 'correlation')[0])>5

def test_logit_histograms_and_alignment(made):
    W = Codes().W_dec
    y = (W@Model(texts).unembed_weight.T).numpy()
    for i in range(12):
        edges,counts = made.logit_histogram(i)
        assert counts.sum()==40 and len(counts)==5 and np.allclose(edges[[0,-1]], [y[i].min(), y[i].max()], atol=1e-5) and abs(counts-np.histogram(y[i], edges)[0]).sum()<=2
        ids,cos,share = made.alignment(i)
        w = (W[i]/W[i].norm()).numpy()
        want = np.argsort(-abs(w))[:5]
        assert ids.tolist()==want.tolist() and np.allclose(cos, w[want], atol=1e-6) and np.allclose(share, (abs(w)/abs(w).sum())[want], atol=1e-6)
    p,w = made.map(),torch.nn.functional.normalize(W, dim=1).numpy()
    s = np.linalg.svd(w-w.mean(0))[1]
    assert p.shape==(12, 2) and np.allclose(np.linalg.norm(p, axis=0), s[:2], rtol=1e-4)

def test_missing_panels_say_why(tmp_path, made):
    assert all(made.has(k) for k in ('logits','logit_histogram','decoder','co_activation','correlation','alignment','map')) and not made.has('encoder') and not made.has('neurons')
    assert made.why('encoder')=='toy has no encoder weights' and 'no neurons of toy' in made.why('neurons') and made.why('logits')=='' and not made.similar(0, 'encoder')[0].size and not made.alignment(0, 'neurons')[0].size
    ix = build(tmp_path/'a', model=None, n_tokens=9)
    assert ix.why('logit_histogram')==ix.why('logits')=='no model was given when the index was built' and ix.logit_histogram(0)[1].size==0
    assert ix.why('correlation')=='9 tokens are too few to hold some out' and ix.similar(0, 'correlation')[0].size==0
    for call in (lambda: made.has('colour'), lambda: made.similar(0, 'colour'), lambda: made.alignment(0, 'colour')):
        with pytest.raises(KeyError, match="unknown .* 'colour'"): call()

def test_interrupted_build_continues_where_it_was(tmp_path, made):
    first,second = Codes(),Codes()
    with pytest.raises(InterruptedError): build(tmp_path/'a', Store(broken_at=320), first)
    with pytest.raises(ValueError, match=r'unfinished \(320 of 700 tokens\)'): FeatureIndex.open(tmp_path/'a')
    for f in (tmp_path/'a'/'partial').glob('codes-*.bin'): f.write_bytes(f.read_bytes()+b'torn by the kill')
    ix = build(tmp_path/'a', dictionary=second)
    assert (first.seen, second.seen)==(64+320, 380) and columns(ix.path)==columns(made.path) and not (ix.path/'partial').exists()

def test_killed_process_loses_a_chunk_at_most(tmp_path, made):
    code = f'''
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch; torch.set_num_threads(1)
        from test_index import *
        build(__import__('pathlib').Path({str(tmp_path/'a')!r}), dictionary=Codes(kill_at=256), cap=300)'''
    p = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], env=os.environ|dict(OMP_NUM_THREADS='1'), capture_output=True, text=True)
    assert p.returncode==-signal.SIGKILL, p.stderr
    d = Codes()
    assert columns(build(tmp_path/'a', dictionary=d, cap=300).path)==columns(made.path) and d.seen in (700-192, 700-128) # the chunk before may still have been on its way to the disk

killer = """
import os, random, signal, sys, time; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from test_index import *
rnd = random.Random({seed})
at,left = [], 10
for attempt in range(200):
    pid = os.fork()
    if not pid:
        build(Path({path!r}), chunk=9, cap=300)
        os._exit(0)
    time.sleep(rnd.random()*.8)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    finished = os.WIFEXITED(status)
    p = Path({path!r})/'partial'/'pass.json'
    at.append('done' if finished else json.loads(p.read_text())['row'] if p.exists() else 0)
    left -= not finished
    if finished or not left: break
print(json.dumps(at))
"""
def test_ten_kills_at_random_times_change_nothing(tmp_path, made):
    seed,kills,tries = int.from_bytes(os.urandom(2), 'big'),[],0
    while sum(k!='done' for k in kills)<10: # a build that got through is begun anew, and killed again
        p = subprocess.run([sys.executable, '-c', killer.format(tests=os.path.dirname(__file__), seed=seed+tries, path=str(tmp_path/str(tries)))], env=os.environ|dict(OMP_NUM_THREADS='1', SPARSENB_PROGRESS='off'), capture_output=True, text=True)
        assert p.returncode==0, (seed, p.stderr)
        kills,tries = kills+json.loads(p.stdout),tries+1
    print('seed', seed, 'killed at rows', kills)
    for k in range(tries): assert columns(build(tmp_path/str(k), chunk=9, cap=300).path)==columns(made.path), (seed, kills)

@pytest.mark.parametrize('grid', [[(3, None)], [(1, [(0, 5), (5, 12)])], [(2, [(0, 1), (1, 9), (9, 12)])]], ids=['rows', 'features', 'both'])
def test_parts_merge_to_the_same_bits(tmp_path, made, grid):
    (n,ranges),d = grid[0],Codes()
    parts = [build(tmp_path/f'{r}-{k}', dictionary=d, part=(r, n), features=f, cap=300) for r in range(n) for k,f in enumerate(ranges or [None])]
    ix = FeatureIndex.merge(parts[::-1], tmp_path/'all', cap=100)
    assert columns(ix.path)==columns(made.path) and ix.info==made.info and ix.verify() and FeatureIndex.merge(parts, tmp_path/'all').path==ix.path
    assert d.seen==len(ranges or [0])*(700+n*64) and all(p.is_dir() for p in parts) # every pass also read the first chunk, for the bounds
    with pytest.raises(ValueError, match='is a part of an index'): FeatureIndex.open(parts[0])
    assert build(parts[0], part=(0, n), features=(ranges or [None])[0], cap=300)==parts[0]

def test_parts_of_text_without_a_tokenizer(tmp_path):
    parts = [build(tmp_path/str(r), model=None, part=(r, 2)) for r in range(2)]
    assert columns(FeatureIndex.merge(parts, tmp_path/'all').path)==columns(build(tmp_path/'one', model=None).path)

def test_parts_that_do_not_fit(tmp_path):
    a,b = (build(tmp_path/str(r), part=(r, 2)) for r in range(2))
    lo,other,seeded = build(tmp_path/'lo', features=(0, 4)),build(tmp_path/'c', part=(1, 3)),build(tmp_path/'s', part=(1, 2), seed=9)
    for parts,message in (([a], 'tokens 384 to 700 are in no part'), ([b], 'leave a gap: tokens 0 to 384'), ([a, other], 'leave a gap|overlap'), ([a, a, b], 'overlap: features 0 to 12'), ([lo], 'features 4 to 12.*are in no part'),
                          ([a, seeded], 'seed = 9'), ([], 'no parts'), ([tmp_path], 'holds no finished part')):
        with pytest.raises(ValueError, match=message): FeatureIndex.merge(parts, tmp_path/'x')
    assert not (tmp_path/'x').exists()
    for kw,message in ((dict(part=(2, 2)), r'part must be \(r, n\)'), (dict(features=(3, 13)), 'features must be'), (dict(names=['a']), '1 names for 12')):
        with pytest.raises(ValueError, match=message): build(tmp_path/'y', **kw)
    f = next((b/'partial').glob('codes-*.bin')); f.write_bytes(f.read_bytes()[:-1]+b'\x01')
    with pytest.raises(ValueError, match='is damaged'): FeatureIndex.merge([a, b], tmp_path/'x')
    f = a/'near_cos.npy'; f.write_bytes(f.read_bytes()[:-1]+b'\x01')
    with pytest.raises(ValueError, match='near_cos.npy is damaged'): FeatureIndex.merge([a, b], tmp_path/'x')

def test_damaged_or_foreign_partial_is_refused(tmp_path):
    with pytest.raises(InterruptedError): build(tmp_path/'a', Store(broken_at=320))
    other = Codes()
    other.fingerprint = 'dict2'
    with pytest.raises(ValueError, match='dictionary dict1 over store store1.*dictionary dict2 over store store1'): build(tmp_path/'a', dictionary=other)
    f = tmp_path/'a'/'partial'/'codes-000.bin'
    f.write_bytes(b'\x01'+f.read_bytes()[1:])
    with pytest.raises(ValueError, match='codes-000.bin is damaged'): build(tmp_path/'a')

def test_finished_index_is_reused_and_guarded(tmp_path):
    a = build(tmp_path/'a')
    d,before = Codes(),{p.name: p.stat().st_mtime_ns for p in a.path.iterdir()}
    assert build(tmp_path/'a', dictionary=d).path==a.path and d.seen==0 and {p.name: p.stat().st_mtime_ns for p in a.path.iterdir()}==before
    s = Store()
    s.fingerprint = 'store2'
    with pytest.raises(ValueError, match='dictionary dict1 over store store1.*over store store2'): build(tmp_path/'a', s)
    with pytest.raises(ValueError, match=r'n_top = 7 \(asked for: 8\)'): build(tmp_path/'a', n_top=8)

def test_default_path_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv('SPARSENB_CACHE', str(tmp_path))
    d = Codes()
    assert build(None).path==build(None, dictionary=d).path and d.seen==0

@pytest.mark.parametrize('harm, message', [
    (lambda p: (p/'tok.npy').write_bytes((p/'tok.npy').read_bytes()[:-2]), r'tok.npy is damaged.*expected'),
    (lambda p: (p/'hist.npy').unlink(), 'hist.npy is damaged: it is missing'),
    (lambda p: (p/'index.json').write_text(json.dumps(json.loads((p/'index.json').read_text())|dict(version=VERSION+1))), f'version {VERSION+1}; this sparsenb reads version {VERSION}'),
    (lambda p: (p/'index.json').write_text(json.dumps({k: v for k,v in json.loads((p/'index.json').read_text()).items() if k!='missing'})), 'index.json is damaged: it has no missing'),
    (lambda p: (p/'index.json').write_text('[]'), 'index.json is damaged'),
    (lambda p: (p/'index.json').write_text('{'), 'index.json is damaged')])
def test_a_harmed_index_says_so(tmp_path, harm, message):
    harm(build(tmp_path/'a').path)
    with pytest.raises(ValueError, match=message): FeatureIndex.open(tmp_path/'a')

def test_altered_bytes_are_found_by_verify(tmp_path):
    p = build(tmp_path/'a').verify().path/'act_val.npy'
    p.write_bytes(p.read_bytes()[:-1]+b'\x7f')
    with pytest.raises(ValueError, match='act_val.npy is damaged: its checksum'): FeatureIndex.open(tmp_path/'a').verify()

def test_wrong_arguments_are_refused_before_work(tmp_path):
    bad = Store()
    bad.f[100,3] = np.nan
    for kw,message in ((dict(store=bad), r'feature 3 is nan at row 100'), (dict(n_tokens=701), 'the store has 700'), (dict(n_top=0), 'n_top must be at least 1'),
                       (dict(context=(-1, 3)), 'context must be two'), (dict(dictionary=SimpleNamespace(d_in=13, d_sae=12, fingerprint='x', codes=None)), 'width 13.*12 wide'), (dict(dictionary='runs/topk'), 'vectors of shape .* were expected, got str')):
        with pytest.raises((ValueError, FloatingPointError), match=message): build(tmp_path/message[:3], **kw)
    m = Model(texts)
    m.revision = 'r2'
    with pytest.raises(ValueError, match=r'toy \(r1\), not from toy \(r2\)'): build(tmp_path/'m', model=m)
    assert not (tmp_path/'m').exists()

@pytest.mark.parametrize('where', ['pass', 'columns'])
def test_a_full_disk_loses_nothing(tmp_path, made, monkeypatch, where):
    calls,true = [],dict(save=np.save, fsync=os.fsync)
    def full(*a, **kw):
        calls.append(a)
        if len(calls)<4: return true['save' if where=='columns' else 'fsync'](*a, **kw)
        raise OSError(errno.ENOSPC, 'No space left on device') if where=='pass' else OSError('40000 requested and 992 written')
    with monkeypatch.context() as m:
        m.setattr(*((np, 'save', full) if where=='columns' else (os, 'fsync', full)))
        with pytest.raises(OSError, match='no space left for .*free some and make the same call again') as e: build(tmp_path/'a')
    assert e.value.errno==errno.ENOSPC and not (tmp_path/'a'/'index.json').exists()
    assert columns(build(tmp_path/'a').path)==columns(made.path)

def test_wrong_questions(made):
    for call,kind,message in ((lambda: made.top(12), IndexError, 'feature 12 of an index of 12'), (lambda: made.top(-1), IndexError, 'feature -1'), (lambda: made.top(0, 8), ValueError, 'keeps 7.*n_top=8'),
                              (lambda: made.examples(0, 4), IndexError, 'group 4 of 4'), (lambda: made.neighbours(0, 11), ValueError, 'n_near=11')):
        with pytest.raises(kind, match=message): call()
    with pytest.raises(FileNotFoundError, match='holds no feature index'): FeatureIndex.open(made.path.parent)

def test_n_tokens_takes_the_first_rows(tmp_path):
    ix = build(tmp_path/'a', n_tokens=333)
    assert ix.n_tokens==333 and (ix.n_active==(Store().f[:333]>0).sum(0)).all() and max(e.row for e in ix.top(11))<333

def test_opens_without_model_and_says_why_there_are_no_effects(tmp_path):
    ix = build(tmp_path/'a', model=None)
    assert ix.logits(0)[0]==[] and ix.top(0)[0].tokens[0].startswith('<') and 'no model' in ix.why('logits') and ix.card(0).up is None
    assert 'decoder row has 6 numbers' in build(tmp_path/'b', model=Model(texts, d_model=5)).why('logits')

def test_cards_of_dead_rare_and_dense_features(made):
    assert made.note(9).startswith('Dead: not active on any of 700') and made.title(9)=='dead' and made.card(9).examples==()
    assert made.note(10).startswith('Active on one of 700') and len(made.card(10).examples)==2
    assert made.note(11).startswith('Dense: active on 100%') and made.note(0)==''
    for i in (0, 9, 10, 11): assert 'Active' in made.card(i).html() or 'active' in made.card(i).html()
    c = made.card(11)
    assert {e.vmax for e in c.examples}=={float(made.max_act[11])} and c.stats[0][1]==100 and c.histogram.counts.sum()==700

def test_all_dead(tmp_path):
    s = Store()
    s.f[:] = 0
    ix = FeatureIndex.open(build(tmp_path/'a', s).path)
    assert not ix.alive.any() and ix.top(3)==[] and ix.search('t3')!=None and ix.partners(3)[0].size==0 and ix.card(3).note.startswith('Dead')

def test_search(made):
    assert made.search('#3')==[3] and made.search(' 11 ')==[11] and made.search('#12')==made.search('')==made.search('no such token')==[]
    t = made.top(10)[0].tokens[made.top(10)[0].peak]
    assert made.search(t.upper()+' ')[0]==10
    for i in made.search(t): assert t in made.logits(i)[0] or any(e.tokens[e.peak]==t for e in made.top(i))
    assert len(made.search('t', n=5))==5

def test_hostile_text_stays_text(tmp_path):
    hostile = ['</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '\u202eevil', '😀', '\ud83d', '"\\\n\0', '../../x']
    ix = build(tmp_path/'a', model=Model(hostile+texts[7:]))
    assert [FeatureIndex.open(ix.path).token(t) for t in range(7)]==hostile
    json.loads((ix.path/'index.json').read_text())
    out = ''.join(ix.card(i).html() for i in range(12))
    assert '<script>alert' not in out and '<img src=x' not in out and '&lt;/script&gt;' in out
    assert ix.search('<img src=x onerror=alert(1)>') and sorted(p.name for p in tmp_path.iterdir())==['a']

def test_a_real_store_model_and_dictionary(tmp_path):
    from sparsenb.core import dictionaries
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    model = load_model('stdlib-4l')
    words = [('a.py', 'def read(self, n):\n    """Return the next n bytes."""\n' * 12), ('b.py', 'import os, sys\nfor p in sys.path: print(os.path.join(p, "x"))\n' * 9)]
    store = ActivationStore.collect(model, words, 'resid_post.1', n_tokens=300, path=tmp_path/'s', seq_len=32, progress=False)
    d = dictionaries['topk'](store.d_in, d_sae=64, k=8)
    d.train()
    ix = FeatureIndex.build(d, store, 'stdlib-4l', path=tmp_path/'a', n_top=5, n_quantiles=2, n_per_quantile=2, context=(40, 40))
    r = next(store.rows(10_000))
    with torch.no_grad(): f = d.encode(r.x).numpy()
    assert d.training and ix.n_tokens==len(store) and (ix.n_active==(f>0).sum(0)).all() and np.allclose(ix.max_act, f.max(0))
    inputs = [[model.token_text(i[m])] for i,m in store.sequences(1)]  # a context of 40 shows the whole segment, as the model saw it
    for i in np.flatnonzero(ix.alive)[:20]:
        for e in ix.top(i):
            assert [e.tokens] in inputs and e.tokens[0]==model.token_text([model.bos_id])[0] and e.values[0]==0 and e.doc in ('a.py', 'b.py')
            assert np.allclose(e.values[1:], f[e.row-e.peak+1:e.row-e.peak+len(e.values), i], rtol=1e-5)
    y = (d.W_dec[0]@model.unembed_weight.T).detach()
    assert ix.logits(0)[0][0]==model.token_text([int(y.argmax())])[0] and np.isclose(ix.logits(0)[1][0], y.max().item(), rtol=1e-4)
    ix.dashboard()

def test_an_index_of_version_1_says_what_to_do(tmp_path):
    p = build(tmp_path/'a').path/'index.json'
    p.write_text(json.dumps(json.loads(p.read_text())|dict(version=1)))
    with pytest.raises(ValueError, match='feature index of version 1; this sparsenb reads version 2: build it again'): FeatureIndex.open(p.parent)

def test_what_a_kill_at_the_very_end_left_is_removed(tmp_path):
    ix = build(tmp_path/'a')
    (ix.path/'partial').mkdir(); (ix.path/'partial'/'tok.bin').write_bytes(b'x'); (ix.path/'.tmp-1-index.json').write_text('{')
    assert FeatureIndex.open(ix.path).alive.any() and {p.suffix for p in build(tmp_path/'a').path.iterdir()}=={'.npy','.json'} and not list(ix.path.glob('.tmp*'))

def test_search_by_density_name_and_text(tmp_path, made):
    d = made.density
    assert made.search(density=(.2, .6))==sorted(np.flatnonzero((d>=.2)&(d<=.6)), key=lambda i: -d[i]) and made.search('#0', density=(.9, 1))==[]
    with pytest.raises(ValueError, match='low at most high'): made.search(density=(1, 0))
    e = made.top(0)[0]
    words = ''.join(e.tokens[e.peak:e.peak+3])
    found = made.search(words.upper())
    assert 0 in found and all(any(words in ''.join(e.tokens) for e in made.top(i)) for i in found)
    assert sorted(found)==[i for i in range(12) if any(words in ''.join(e.tokens) for e in made.top(i))]
    ix = build(tmp_path/'a', names=[f'name {k}' for k in 'abcdefghijkl'])
    assert ix.title(9)=='name j' and ix.search('name c')[0]==2 and ix.card(9).title=='name j'

def test_raw_bytes_hold_every_example(made):
    for i in range(12):
        about,b = made.raw(i)
        a = {k: np.frombuffer(b, t, n, at) for k,(t,at,n) in about['columns'].items()}
        json.dumps(about)
        ex = made._all(i)
        assert all(at%8==0 for _,at,_ in about['columns'].values()) and len(a['ex_row'])==len(ex)
        t = v = 0
        for k,e in enumerate(ex):
            s,w = slice(t, t+int(a['ex_n_tok'][k])),slice(v, v+int(a['ex_n_act'][k]))
            values = np.zeros(len(e.tokens), np.float32); values[a['act_at'][w]] = a['act_val'][w]
            assert [about['texts'][j] for j in a['tok'][s]]==e.tokens and (values==e.values).all() and (a['ex_row'][k], a['ex_group'][k], a['ex_peak'][k], about['docs'][a['ex_doc'][k]])==(e.row, e.group, e.peak, e.doc)
            t,v = s.stop,w.stop

def test_plain_vectors(tmp_path):
    W = np.eye(12)[[0, 11]]*2
    ix = FeatureIndex.build(W, Store(), Model(texts, 12), path=tmp_path/'a', names=['first', 'last'])
    f = np.maximum(2*np.where(Store().f==0, Store().below, Store().f)[:,[0,11]], 0)
    assert (ix.n_active==(f>0).sum(0)).all() and np.allclose(ix.max_act, f.max(0)) and ix.title(1)=='last' and ix.name=='directions' and ix.has('encoder')
    d = Directions(W, b=1.)
    assert FeatureIndex.build(d, Store(), path=tmp_path/'b').n_active.tolist()==(f>1).sum(0).tolist()
    for bad,message in ((np.zeros((0, 3)), r'\(n, d\)'), (W[0], r'\(n, d\)'), (W*np.nan, 'NaN')):
        with pytest.raises(ValueError, match=message): FeatureIndex.build(bad, Store(), path=tmp_path/'c')
    with pytest.raises(ValueError, match='12 wide'): FeatureIndex.build(np.eye(5), Store(), path=tmp_path/'c')

def test_an_empty_dictionary_of_dead_features_has_cards(tmp_path):
    ix = FeatureIndex.build(-np.eye(12)[:3], Store(), path=tmp_path/'a')
    s = np.maximum(-np.where(Store().f==0, Store().below, Store().f)[:,:3], 0)
    assert (ix.n_active==(s>0).sum(0)).all()
    dead = FeatureIndex.build(Directions(np.eye(12)[:3], b=1e9), Store(), path=tmp_path/'b')
    assert not dead.alive.any() and [dead.title(i) for i in range(3)]==['dead']*3 and dead.search('t3')==[] and dead.raw(0)[0]['columns']['ex_row'][2]==0 and dead.card(0).note.startswith('Dead') and not dead.similar(1, 'correlation')[0].size

words = [('a.py', 'def read(self, n):\n    """Return the next n bytes."""\n' * 12), ('b.py', 'import os, sys\nfor p in sys.path: print(os.path.join(p, "x"))\n' * 9)]

def test_neurons_with_what_they_write(tmp_path):
    "The tokens that a neuron raises are those of its row of the output matrix, not of its place among the neurons"
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    m = load_model('stdlib-4l')
    s = ActivationStore.collect(m, words, site='mlp_act.2', n_tokens=300, path=tmp_path/'acts')
    W_out = m.module.model.layers[2].mlp.down_proj.weight.detach().T
    ix = FeatureIndex.build(Directions(torch.eye(s.d_in)[:8], write=W_out[:8]), s, m, path=tmp_path/'a')
    with pytest.raises(ValueError, match=r'write of shape \(8, d\)'): Directions(torch.eye(s.d_in)[:8], write=W_out)
    U = W_out[3]@m.unembed_weight.T.detach()
    assert ix.logits(3)[0][0]==m.token_text([int(U.argmax())])[0] and np.isclose(ix.logits(3)[1][0], U.max().item(), rtol=1e-4) and not ix.why('logits')

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    from sparsenb.core import dictionaries
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    model,d = load_model('stdlib-4l'),tmp_path_factory.mktemp('real')
    store = ActivationStore.collect(model, words, ['resid_post.1','mlp_act.1'], path=d/'s', seq_len=32, progress=False)
    sae = dictionaries['topk'](256, d_sae=64, k=8)
    return SimpleNamespace(model=model, store=store, sae=sae, index=FeatureIndex.build(sae, store['resid_post.1'], model, path=d/'a', context=(10, 4)))

def test_a_text_is_indexed_without_a_store(tmp_path, real):
    kw = dict(context=(10, 4), site='resid_post.1', seq_len=32)
    live = FeatureIndex.build(real.sae, words, real.model, path=tmp_path/'a', **kw)
    assert columns(live.path)==columns(real.index.path) and not list(tmp_path.rglob('*.safetensors')) and live.n_tokens==len(real.store)
    parts = [FeatureIndex.build(real.sae, words, real.model, path=tmp_path/str(r), part=(r, 2), chunk=100, **kw) for r in range(2)]
    whole = FeatureIndex.build(real.sae, words, real.model, path=tmp_path/'b', chunk=100, **kw)
    assert columns(FeatureIndex.merge(parts, tmp_path/'m').path)==columns(whole.path)
    with pytest.raises(ValueError, match='no model'): FeatureIndex.build(real.sae, words, path=tmp_path/'c')
    with pytest.raises(ValueError, match="which site.*site="): FeatureIndex.build(real.sae, words, real.model, path=tmp_path/'c')

def test_neurons_of_a_real_model(tmp_path, real):
    from sparsenb.core import dictionaries
    store = real.store['mlp_act.1']
    ix = FeatureIndex.build(dictionaries['identity'](store.d_in, store.d_in), store, real.model, path=tmp_path/'a')
    x = next(store.rows(10_000)).x.numpy()
    assert (ix.n_active==(x>0).sum(0)).all() and np.allclose(ix.max_act, np.maximum(x.max(0), 0), rtol=1e-5) and ix.alignment(7)[0][0]==7 and ix.alignment(7)[2][0]==1 and not ix.has('logits')
    assert real.index.has('neurons') and real.index.alignment(3, 'neurons')[0].max()<store.d_in
    out = real.model.sites._modules[real.model.sites['mlp_act.1'].path]
    W = out.weight.detach().T if isinstance(out, torch.nn.Linear) else out.weight.detach()
    c = torch.nn.functional.cosine_similarity(real.sae.W_dec[3][None], W).detach().numpy()
    ids,cos,share = real.index.alignment(3, 'neurons')
    assert ids.tolist()==np.argsort(-abs(c))[:5].tolist() and np.allclose(cos, c[ids], atol=1e-5) and np.allclose(share, abs(c[ids])/abs(c).sum(), atol=1e-5)

def test_effects_are_those_of_direct_ablation(real):
    from sparsenb.hooks import edited
    ix,m,sae = real.index,real.model,real.sae
    i = int(ix.density.argmax())
    e = ix.top(i)[0]
    got = ix.effects(i, e, n=4)
    s = real.store['resid_post.1']
    ids,p = s.context(e.row, 10**6, len(e.ids)-1-e.peak)
    ids,p = torch.tensor([[m.bos_id, *ids]]),p+1
    def without(t):
        f = sae.encode(t[0,p]).clone()
        error = t[0,p]-sae.decode(f)
        f[i] = 0
        t = t.clone(); t[0,p] = sae.decode(f)+error
        return t
    with torch.no_grad():
        y = m.logits(ids)[0,p]
        with edited(m, {'resid_post.1': without}): z = m.logits(ids)[0,p]
    assert got.context=='segment' and got.token==e.tokens[e.peak] and np.isclose(got.activation, e.value, rtol=2e-2) # the store holds bfloat16
    if p+1<ids.shape[1]: assert np.isclose(got.loss, -y.log_softmax(0)[ids[0,p+1]].item(), atol=1e-4) and np.isclose(got.loss_without, -z.log_softmax(0)[ids[0,p+1]].item(), atol=1e-4) and got.next_token==m.token_text([int(ids[0,p+1])])[0]
    assert np.allclose([v for _,v in got.up], (y-z).topk(4).values, atol=1e-4) and got.up[0][0]==m.token_text([int((y-z).argmax())])[0] and np.allclose([v for _,v in got.down], (y-z).topk(4, largest=False).values, atol=1e-4)
    assert abs(got.up[0][1])>1e-4 and len(got.down)==4

def test_live_panels_say_what_they_miss(real):
    ix = FeatureIndex.open(real.index.path)
    e = ix.top(int(ix.density.argmax()))[0]
    assert not ix.has('effects') and ix.card(0) and ix.search('n')
    for attach,missing in ((dict(), 'dictionary and model not attached'), (dict(model=real.model), 'dictionary not attached')):
        with pytest.raises(ValueError, match=f'effects need the model and the dictionary: {missing}'): ix.attach(**attach).effects(0, e)
    assert ix.attach(real.sae).effects(int(ix.density.argmax()), e).context=='window'
    with pytest.raises(IndexError, match='token 99'): ix.effects(0, e, at=99)
    other = type(real.sae)(256, d_sae=64, k=8, seed=5)
    with pytest.raises(ValueError, match='is of dictionary .* not of'): ix.attach(other)
    vectors = FeatureIndex.build(np.eye(256)[:2], real.store['resid_post.1'], real.model, path=ix.path.parent/'v')
    with pytest.raises(ValueError, match='rebuilds the activation'): vectors.effects(0, e)

def test_an_unfinished_index_of_another_version_is_refused(tmp_path):
    with pytest.raises(InterruptedError): build(tmp_path/'a', Store(broken_at=320))
    p = tmp_path/'a'/'partial'/'pass.json'
    p.write_text(json.dumps(dict(rows=320, made={})))
    for call in (lambda: build(tmp_path/'a'), lambda: FeatureIndex.open(tmp_path/'a')):
        with pytest.raises(ValueError, match='another version'): call()

def test_other_names_are_another_index(tmp_path):
    build(tmp_path/'a')
    with pytest.raises(ValueError, match='names = None'): build(tmp_path/'a', names=list('abcdefghijkl'))

def test_the_toy_index_of_the_widget_tests_answers_alike(made):
    from toy_index import ToyIndex
    toy = ToyIndex(40)
    def form(o): return tuple(map(form, o)) if isinstance(o, tuple) else (o.ndim, o.dtype.kind) if isinstance(o, np.ndarray) else [type(v) for v in o][:1] if isinstance(o, list) else type(o)
    for call in (lambda x: x.map(), lambda x: x.logit_histogram(0), lambda x: x.similar(11, 'decoder'), lambda x: x.similar(11, 'correlation', 5), lambda x: x.alignment(2), lambda x: x.has('map'), lambda x: x.why('map'),
                 lambda x: x.has('effects'), lambda x: x.search('3'), lambda x: x.search(density=(0, 1)), lambda x: x.title(0), lambda x: x.density, lambda x: x.max_act, lambda x: x.alive, len): assert form(call(toy))==form(call(made))
    assert toy.card(0).numbers().keys()>={'histogram.counts', 'up.effect', 'neighbours.value'} and made.card(0).numbers().keys()>={'histogram.counts', 'up.effect', 'neighbours.value'}

def test_two_checkpoints_side_by_side(tmp_path):
    "A feature's match in another index by decoder direction; indices of one name are told apart by their folders"
    W = np.eye(12)[[2, 5, 7]]
    a,b = FeatureIndex.build(W, Store(), path=tmp_path/'early'), FeatureIndex.build(W[[1, 2, 0]]+.1, Store(), path=tmp_path/'late')
    w = a.compare(0, b)
    assert (w.left, w.right)==(0, 2) and '(early)' in w.said.value and '(late)' in w.said.value
    w.left = 1
    assert w.right==0 and '(late)' not in a.compare(0, j=1).said.value
    with pytest.raises(ValueError, match='feature 3 does not exist'): a.compare(3, b)
