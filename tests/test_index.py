"FeatureIndex against a slow dense reference, killed and resumed, damaged, and with hostile text"
import errno, json, os, signal, subprocess, sys, textwrap
from types import SimpleNamespace
import numpy as np, pytest, torch
from sparsenb.index import FeatureIndex, VERSION

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
    from sparsenb.index import _together
    on = np.random.default_rng(0).random((200, 30))<.2
    row,f = np.nonzero(on)
    for a,b in zip(_together(row, f, 30, 5), _together(row, f, 30, 5, at_once=50)): assert (a==b).all()

def test_interrupted_build_continues_where_it_was(tmp_path, made):
    first,second = Codes(),Codes()
    with pytest.raises(InterruptedError): build(tmp_path/'a', Store(broken_at=320), first)
    with pytest.raises(ValueError, match=r'unfinished \(320 of 700 tokens\)'): FeatureIndex.open(tmp_path/'a')
    for f in (tmp_path/'a'/'partial').glob('codes-*.bin'): f.write_bytes(f.read_bytes()+b'torn by the kill')
    ix = build(tmp_path/'a', dictionary=second)
    assert (first.seen, second.seen)==(320, 380) and columns(ix.path)==columns(made.path) and not (ix.path/'partial').exists()

def test_killed_process_loses_a_chunk_at_most(tmp_path, made):
    code = f'''
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch; torch.set_num_threads(1)
        from test_index import *
        build(__import__('pathlib').Path({str(tmp_path/'a')!r}), dictionary=Codes(kill_at=256), cap=300)'''
    p = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], env=os.environ|dict(OMP_NUM_THREADS='1'), capture_output=True, text=True)
    assert p.returncode==-signal.SIGKILL, p.stderr
    d = Codes()
    assert columns(build(tmp_path/'a', dictionary=d, cap=300).path)==columns(made.path) and d.seen==700-256

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
                       (dict(context=(-1, 3)), 'context must be two'), (dict(dictionary=SimpleNamespace(d_in=13, d_sae=12, fingerprint='x')), 'width 13.*12 wide')):
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
    assert ix.logits(0)[0]==[] and ix.top(0)[0].tokens[0].startswith('<') and 'no model' in ix.info['no_logits'] and ix.card(0).up is None
    assert 'decoder row has 6 numbers' in build(tmp_path/'b', model=Model(texts, d_model=5)).info['no_logits']

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
