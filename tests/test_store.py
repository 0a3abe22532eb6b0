"The store's contract: same bits however it was interrupted, nothing wrong stored or read, errors that say what came"
import contextlib, errno, gc, math, multiprocessing, os, shutil, signal, subprocess, sys, tempfile, threading, time
import numpy as np, pytest, torch
from pathlib import Path
from sparsenb import mixing, shards, store as st, writer
from sparsenb.core import UnknownName
from sparsenb.corpus import load_corpus
from sparsenb.hooks import capture
from sparsenb.models import load_model
from sparsenb.store import ActivationStore

torch.set_num_threads(1)
TEXT = [(f'{i:02d}.py', f'def f{i}(x):\n    return x + {i}\n'*(1+i%7)) for i in range(24)]

def tiny(seed=0, d=32, layers=2):
    "A GPT-2 with random weights that reads bytes"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    t = Tokenizer(models.BPE({c: i for i,c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    t.pre_tokenizer,t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>')
    torch.manual_seed(seed)
    cfg = GPT2Config(n_layer=layers, n_embd=d, n_head=2, n_positions=256, vocab_size=257, bos_token_id=256, eos_token_id=256)
    return load_model(GPT2LMHeadModel(cfg).eval(), tokenizer=tok, name=f'tiny-{seed}')

@pytest.fixture(scope='module')
def model(): return tiny()

def how(path, **kw): return dict(site='resid_post.0', path=path, seq_len=32, batch_size=4, shard_rows=200, progress=False) | kw

@pytest.fixture(scope='module')
def whole(model, tmp_path_factory):
    return ActivationStore.collect(model, TEXT, **how(tmp_path_factory.mktemp('s')/'acts'))

@pytest.fixture(scope='module')
def given(tmp_path_factory):
    x = torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0))
    return x, ActivationStore.from_rows(tmp_path_factory.mktemp('g')/'acts', x, dtype='float32', shard_rows=3000)

def files(path): return {p.name: p.read_bytes() for p in sorted(Path(path).iterdir())}

def all_rows(s): return torch.cat([r.x for r in s.rows(97)])

# -- what is stored ---------------------------------------------------------------------------------------------------

def test_rows_are_what_the_model_computes(model, whole):
    "Every row, against a forward pass over its own segment alone; no BOS, no padding, documents in one piece"
    tok,pos,doc = (torch.cat([getattr(r, k) for r in whole.rows(97)]) for k in ('tok','pos','doc'))
    x,starts = all_rows(whole),whole.segments
    assert len(x)==sum(len(t.encode()) for _,t in TEXT)==len(whole)
    texts,seen = dict(TEXT),[]
    for a,b in zip(starts, starts[1:]):
        assert pos[a:b].tolist()==list(range(1, b-a+1)) and len(doc[a:b].unique())==1
        ids = torch.tensor([[256]+tok[a:b].tolist()])
        want = capture(model, ids, 'resid_post.0')['resid_post.0'][0,1:]
        torch.testing.assert_close(x[a:b], want.bfloat16().float(), atol=.02, rtol=.02)
    for d in doc.unique_consecutive().tolist():
        name = whole.doc_name(d); seen.append(name)
        assert ''.join(model.token_text(tok[doc==d]))==texts[name]
    assert sorted(seen)==sorted(texts) and seen!=sorted(texts)  # all documents once, in shuffled order

def test_shards_are_plain_safetensors(whole):
    from safetensors.torch import load_file
    t = load_file(whole.path/'00001.safetensors')
    assert t['resid_post.0'].dtype==torch.bfloat16 and torch.equal(t['resid_post.0'][t['at']].float(), all_rows(whole)[200:400])
    assert not torch.equal(t['at'], torch.arange(200))  # written shuffled, all columns alike
    assert torch.equal(t['tok'][t['at']], torch.cat([r.tok for r in whole.rows(97)])[200:400])
    torch.testing.assert_close(t['norm:resid_post.0'], t['resid_post.0'].float().norm(dim=1))

def test_statistics(whole):
    x = all_rows(whole).double()
    torch.testing.assert_close(whole.mean.double(), x.mean(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whole.std.double(), x.std(0, correction=0), atol=1e-6, rtol=1e-6)
    assert (x*whole.scale).pow(2).sum(1).mean()==pytest.approx(whole.d_in, rel=1e-9)
    n = x.norm(dim=1).float().sort().values
    assert whole.stats['norms']==dict(median=float(n[(len(n)-1)//2]), p99=float(n[math.ceil(.99*len(n))-1]), max=float(n[-1]))

def test_offset_does_not_cancel(tmp_path):
    "Where the mean is 1e4 times the spread, float32 sums of squares would give nonsense"
    x = 1e4+torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    s = ActivationStore.from_rows(tmp_path/'a', x, dtype='float32', shard_rows=777)
    torch.testing.assert_close(s.std.double(), x.double().std(0, correction=0), atol=1e-7, rtol=1e-6)
    assert s.dead_warning=='high' and s.gamma==pytest.approx(1e4, rel=.05)

def test_n_tokens_is_exact_and_several_sites_are_one_pass(model, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(st, 'capture', lambda *a, **k: calls.append(1) or capture(*a, **k))
    s = ActivationStore.collect(model, TEXT, **how(tmp_path/'two', site=['resid_post.0', 'mlp_out.1'], n_tokens=333))
    assert len(s)==333 and len(calls)==-(-len(s.segments[:-1])//4)
    one = ActivationStore.collect(model, TEXT, **how(tmp_path/'one', n_tokens=333))
    assert one.fingerprint==s['resid_post.0'].fingerprint!=s['mlp_out.1'].fingerprint
    assert torch.equal(all_rows(one), all_rows(s['resid_post.0']))
    with pytest.raises(ValueError, match="several sites.*store\\['resid_post.0'\\]"): s.site
    with pytest.raises(UnknownName, match="did you mean 'mlp_out.1'"): s['mlp_out.2']

def test_head_sites_and_bos_row(model, tmp_path):
    s = ActivationStore.collect(model, TEXT, **how(tmp_path/'z', site='z.0', skip_bos=False))
    assert s.d_in==32 and next(s.rows()).tok[0]==256 and next(s.rows()).pos[0]==0
    ids,mask = next(s.sequences(4))
    assert (ids[:,0]==256).all() and not (ids[:,1:]==256)[mask[:,1:]].any()
    assert sum(int(m.sum()) for _,m in s.sequences(7))==len(s)

def test_sequences_are_the_inputs(whole, model):
    x,at = all_rows(whole),0
    for ids,mask in whole.sequences(4):
        got = capture(model, ids, 'resid_post.0', mask=mask)['resid_post.0']
        mask[:,0] = False
        n = int(mask.sum())
        assert torch.equal(got[mask].bfloat16().float(), x[at:at+n]); at += n  # the same batches: the same bits
    assert at==len(x)
    assert sum(int(m.sum())-len(m) for _,m in whole.sequences(2, n_tokens=50, seed=1))>=50

def test_context(whole):
    tok,starts = torch.cat([r.tok for r in whole.rows()]).tolist(),whole.segments
    for row in (0, 5, int(starts[1])-1, int(starts[1]), 199, 200, len(whole)-1):
        i = int(np.searchsorted(starts, row, side='right'))
        a,b = max(starts[i-1], row-6),min(starts[i], row+4)
        ids,at = whole.context(row, 6, 3)
        assert ids==tok[a:b] and ids[at]==tok[row]
    with pytest.raises(IndexError, match='does not exist'): whole.context(len(whole))

def test_special_tokens_in_text_are_text(model, tmp_path):
    s = ActivationStore.collect(model, ['a<s>b'], **how(tmp_path/'a'))
    assert 256 not in next(s.rows()).tok and len(s)==5

# -- interrupted ------------------------------------------------------------------------------------------------------

def _die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

def _child(path, where, n):
    "Collect and be killed, by nobody's leave, at the n-th visit to `where`"
    owner = dict(capture=st, _bytes=shards).get(where, writer)
    orig,left = getattr(owner, where),[n]
    def bomb(*a, **k):
        left[0] -= 1
        if left[0]<0: _die()
        return orig(*a, **k)
    setattr(owner, where, bomb)
    ActivationStore.collect(tiny(), TEXT, **how(path))

@pytest.mark.parametrize('where,n', [
    ('capture', 7),      # mid-shard, with rows in memory
    ('_bytes', 9),       # in the middle of writing a shard
    ('_pack', 3),        # shard renamed, manifest not yet told
    ('_sinks', 0)])      # everything stored, last line missing
def test_killed_and_resumed_is_the_same_store(whole, tmp_path, where, n):
    p = multiprocessing.get_context('fork').Process(target=_child, args=(tmp_path/'acts', where, n))
    p.start(); p.join(60)
    assert p.exitcode==-signal.SIGKILL
    with pytest.raises((ValueError, FileNotFoundError), match='unfinished|holds no store'): ActivationStore.open(tmp_path/'acts')
    s = ActivationStore.collect(tiny(), TEXT, **how(tmp_path/'acts'))
    assert s.fingerprint==whole.fingerprint
    assert files(s.path)==files(whole.path)  # every byte: shards, statistics, cursors, and nothing left over

def test_killed_by_another_process(whole, tmp_path):
    "The same from outside: a separate interpreter, SIGKILL as soon as two shards are there"
    code = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_store as t
from sparsenb import mixing, shards, store as st, writer
real = st.capture
st.capture = lambda *a, **k: time.sleep(.05) or real(*a, **k)
t.ActivationStore.collect(t.tiny(), t.TEXT, **t.how({str(tmp_path/'acts')!r}))
"""
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ|dict(OMP_NUM_THREADS='1'))
    try:
        while p.poll() is None and not (tmp_path/'acts'/'00001.safetensors').exists(): time.sleep(.02)
    finally: p.kill(); p.wait()
    assert p.returncode==-signal.SIGKILL
    assert ActivationStore.collect(tiny(), TEXT, **how(tmp_path/'acts')).fingerprint==whole.fingerprint

def test_finished_is_reused_without_the_model(model, whole, monkeypatch):
    monkeypatch.setattr(st, 'capture', _die)
    before = files(whole.path)
    assert ActivationStore.collect(model, TEXT, **how(whole.path)).fingerprint==whole.fingerprint
    assert files(whole.path)==before

def _full_disk(model, path, fill):
    with pytest.raises(OSError, match='rows are safe in it.*make the same call again') as e: ActivationStore.collect(model, TEXT, **how(path))
    assert e.value.errno==errno.ENOSPC
    assert not list(path.glob('.tmp-*'))
    with pytest.raises(ValueError, match='unfinished: [1-9]'): ActivationStore.open(path)
    fill()
    return ActivationStore.collect(model, TEXT, **how(path))

@pytest.mark.parametrize('where', ['_bytes', 'fsync'])
def test_disk_full_resumes(model, whole, tmp_path, monkeypatch, where):
    n = [0]
    def full(*_):
        n[0] += 1
        if n[0]>(12 if where=='_bytes' else 8): raise OSError(errno.ENOSPC, 'No space left on device')
        return orig(*_)
    owner = shards if where=='_bytes' else os
    orig = getattr(owner, where)
    monkeypatch.setattr(owner, where, full)
    s = _full_disk(model, tmp_path/'acts', monkeypatch.undo)
    assert files(s.path)==files(whole.path)

@pytest.mark.skipif(os.geteuid()!=0 or not shutil.which('mount'), reason='mounting needs root')
def test_disk_full_for_real(model, whole, tmp_path):
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', tmp_path], capture_output=True).returncode: pytest.skip('mounting is not allowed here')
    try:
        ballast = tmp_path/'ballast'; ballast.write_bytes(bytes(450_000))
        s = _full_disk(model, tmp_path/'acts', ballast.unlink)
        assert files(s.path)==files(whole.path)
        with pytest.raises(OSError, match='has .* free, .* are needed'): ActivationStore.collect(model, TEXT, **how(tmp_path/'more', n_tokens=1_000_000))
    finally: subprocess.run(['umount', tmp_path], check=True)

def test_given_rows_want_room_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: type('Usage', (), dict(free=100)))
    with pytest.raises(OSError, match=f'{tmp_path} has 100 B free') as e: ActivationStore.from_rows(tmp_path/'a', torch.randn(50, 4))
    assert e.value.errno==errno.ENOSPC and not list(tmp_path.iterdir())

def test_two_writers(model, tmp_path):
    h = st._header(model, load_corpus(TEXT), 'resid_post.0', None, 32, 4, 'bfloat16', 200, 0, True)
    with writer._Writer(tmp_path/'acts', h), pytest.raises(RuntimeError, match='another process is writing'):
        ActivationStore.collect(model, TEXT, **how(tmp_path/'acts'))

# -- refused ----------------------------------------------------------------------------------------------------------

def test_other_store_in_the_folder(model, whole):
    def says(m, text=TEXT, **kw):
        before = files(whole.path)
        with pytest.raises(ValueError, match=m): ActivationStore.collect(kw.pop('model', model), text, **how(whole.path, **kw))
        assert files(whole.path)==before
    says('holds another store: site is resid_post.0, asked for resid_post.1', site='resid_post.1')
    says(r'model is tiny-0 \(\w+\), asked for tiny-1', model=tiny(1))
    says('corpus is given .*asked for given', text=['other'])
    says('seq_len is 32, asked for 16; seed is 0, asked for 3', seq_len=16, seed=3)

def test_open_checks_model_and_site(whole, model):
    assert ActivationStore.open(whole.path, model=model, site='resid_post.0').site=='resid_post.0'
    with pytest.raises(ValueError, match=r"activations of model 'tiny-0' \(revision \w+\), not of 'tiny-1'"): ActivationStore.open(whole.path, model=tiny(1))
    with pytest.raises(UnknownName, match="unknown site 'resid_post.1'; did you mean 'resid_post.0'"): ActivationStore.open(whole.path, site='resid_post.1')

@pytest.mark.parametrize('kw,error,match', [
    (dict(site='resid_pst.0'), UnknownName, "did you mean 'resid_post.0'"),
    (dict(site=[]), ValueError, 'one or more different sites'),
    (dict(site=['mlp_out.0']*2), ValueError, 'one or more different sites'),
    (dict(site='pattern.0'), ValueError, 'one vector per token'),
    (dict(dtype='int4'), UnknownName, "unknown dtype 'int4'; did you mean 'int8'"),
    (dict(n_tokens=0), ValueError, 'n_tokens must be at least 1, got 0'),
    (dict(seq_len=1), ValueError, 'seq_len must be at least 2'),
    (dict(seq_len=999), ValueError, "at most 256, the context of 'tiny-0', got 999"),
    (dict(batch_size=0), ValueError, 'batch_size must be at least 1')])
def test_bad_arguments_leave_nothing(model, tmp_path, kw, error, match):
    with pytest.raises(error, match=match): ActivationStore.collect(model, TEXT, **how(tmp_path/'acts', **kw))
    assert not (tmp_path/'acts').exists()

def test_text_without_tokens(model, tmp_path):
    with pytest.raises(ValueError, match='holds no text'): ActivationStore.collect(model, ['', ''], **how(tmp_path/'acts'))
    assert not (tmp_path/'acts').exists()
    with pytest.warns(UserWarning, match='gave 3 rows, 10 were asked for'): assert len(ActivationStore.collect(model, ['abc'], **how(tmp_path/'b', n_tokens=10)))==3

def test_model_without_tokenizer(tmp_path):
    m = load_model(torch.nn.Sequential(torch.nn.Embedding(9, 4)))
    with pytest.raises(ValueError, match='has no tokenizer'): ActivationStore.collect(m, TEXT, **how(tmp_path/'acts', site='0'))

@pytest.mark.parametrize('value,dtype,match', [(math.nan, 'bfloat16', 'gave NaN'), (math.inf, 'bfloat16', 'gave infinity'), (1e6, 'float16', r'gave a value too large for float16 \(1e\+06; store bfloat16')])
def test_bad_numbers_are_refused(model, tmp_path, monkeypatch, value, dtype, match):
    n = [0]
    def bad(*a, **k):
        n[0] += 1
        out = capture(*a, **k)
        if n[0]==8: out['resid_post.0'][2,5,1] = value
        return out
    monkeypatch.setattr(st, 'capture', bad)
    with pytest.raises(ValueError, match=f"model 'tiny-0' {match}.* at site resid_post.0, dimension \\d+: document '\\d\\d.py', position 5 .* token \\d+; 1 of"): ActivationStore.collect(model, TEXT, **how(tmp_path/'acts', dtype=dtype))
    monkeypatch.undo()
    s = ActivationStore.collect(model, TEXT, **how(tmp_path/'acts', dtype=dtype))  # what was good was kept, and the rest follows
    assert len(s)==sum(len(t.encode()) for _,t in TEXT)

@pytest.mark.parametrize('x,match', [(torch.zeros(3), r'must be \[n, d\]'), (torch.zeros(0, 2), 'at least one row'), (torch.tensor([[0.], [math.nan]]), 'first of them row 1')])
def test_bad_rows(tmp_path, x, match):
    with pytest.raises(ValueError, match=match): ActivationStore.from_rows(tmp_path/'a', x)
    assert not (tmp_path/'a').exists()

def test_folder_not_writable(model, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError, match='a folder was expected'): ActivationStore.collect(model, TEXT, **how(tmp_path/'file'/'acts'))
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o555)
        with somebody(65534) if os.geteuid()==0 else contextlib.nullcontext(), pytest.raises(PermissionError, match=f'cannot write to {d}/acts'):  # root may write anywhere
            ActivationStore.collect(model, TEXT, **how(Path(d)/'acts'))
        os.chmod(d, 0o700)
        with somebody(65534) if os.geteuid()==0 else contextlib.nullcontext(), pytest.raises(PermissionError, match='cannot (read|write)'):
            os.geteuid()!=65534 and os.chmod(d, 0)
            ActivationStore.collect(model, TEXT, **how(Path(d)/'acts'))
        os.chmod(d, 0o700)

@contextlib.contextmanager
def somebody(uid):
    os.seteuid(uid)
    try: yield
    finally: os.seteuid(0)

# -- damaged ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def copy(whole, tmp_path): return Path(shutil.copytree(whole.path, tmp_path/'copy'))

def test_truncated_or_missing_shard(copy):
    f = copy/'00001.safetensors'
    f.write_bytes(f.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r'00001.safetensors is truncated or altered: [\d,]+ bytes, [\d,]+ were written'): ActivationStore.open(copy)
    f.unlink()
    with pytest.raises(ValueError, match='shard 00001.safetensors is missing'): ActivationStore.open(copy)

@pytest.mark.parametrize('read', [lambda s: list(s.rows()), lambda s: next(s.batches(8)), lambda s: s.sinks, lambda s: s.context(250)])
def test_altered_shard(copy, read):
    f = copy/'00001.safetensors'
    b = bytearray(f.read_bytes()); b[-9] ^= 4; f.write_bytes(b)
    s = ActivationStore.open(copy)
    with pytest.raises(ValueError, match='00001.safetensors is altered: its checksum is'): read(s)
    assert next(s.rows(100)).start==0  # the shards that are whole can still be read

def test_altered_manifest(copy):
    f = copy/'manifest.jsonl'
    lines = f.read_bytes().splitlines(keepends=True)
    f.write_bytes(b''.join([lines[0], lines[1].replace(b'"rows": 200', b'"rows": 100'), *lines[2:]]))
    with pytest.raises(ValueError, match='manifest.jsonl is altered: line 2'): ActivationStore.open(copy)
    f.unlink()
    with pytest.raises(FileNotFoundError, match='holds no store'): ActivationStore.open(copy)

def test_shards_without_manifest_are_not_overwritten(copy, model):
    (copy/'manifest.jsonl').unlink()
    with pytest.raises(ValueError, match='it has shards, but its manifest is empty or missing'): ActivationStore.collect(model, TEXT, **how(copy))
    assert (copy/'00001.safetensors').exists()

def test_torn_manifest_line_is_redone(copy, model, whole):
    f = copy/'manifest.jsonl'
    f.write_bytes(f.read_bytes()[:-40])
    assert ActivationStore.collect(model, TEXT, **how(copy)).fingerprint==whole.fingerprint
    assert files(copy)==files(whole.path)

# -- shuffled reading -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_memory_of_a_batch_serves_again_only_when_nothing_uses_it(dtype, tmp_path):
    "Whoever keeps a batch, a view of it or an array made of it keeps its numbers; who keeps none gets the same few places"
    x = torch.randn(6000, 8, generator=torch.Generator().manual_seed(3))
    s = ActivationStore.from_rows(tmp_path/'acts', x, dtype=dtype, shard_rows=2500)
    want = [b.clone() for b in s.batches(500, n_tokens=12_000, seed=1)]
    for keep in (lambda b: b, lambda b: b[3:].t(), lambda b: b.numpy()[::2], lambda b: memoryview(b.numpy()), lambda b: b.view(-1).unfold(0, 3, 2)):
        kept = [keep(b) for b in s.batches(500, n_tokens=12_000, seed=1)]
        for a,b in zip(kept, map(keep, want)): assert np.array_equal(np.asarray(a), np.asarray(b))
    places = {b.data_ptr() for b in s.batches(500, n_tokens=12_000, seed=1)}
    assert len(places)<=10 and len({b.data_ptr() for b in [*s.batches(500, n_tokens=12_000, seed=1)]})==24

def test_blocks_are_announced_before_they_are_read(tmp_path, monkeypatch):
    "Once each in an epoch, as whole blocks of the file, and none of a shard whose checksum is still to be taken"
    n = 2*65_536
    s = ActivationStore.from_rows(tmp_path/'acts', torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), dtype='bfloat16')
    r,said = mixing._Reader(s._shards, s.site, n, 4096, 0, 'cpu'),[]
    r.order = mixing._Order(n, 0, pool=65_536)
    monkeypatch.setattr(mixing, '_announce', lambda t: said.append((t.data_ptr(), len(t))))
    def told(i): # by threads, which are waited for here
        r(i)
        for t in threading.enumerate():
            if t.name=='announce': t.join()
    s._shards.announce(s.site, *r.order.cut(0, 0)); assert not said # both are checked first
    told(0); said.clear() # a thread may come to a shard that has been checked meanwhile
    for i in range(1, 2*n//4096): told(i)
    rows = {p for p,_ in said}
    assert all(m==1024 for _,m in said) and len(rows)==n//1024 and len(said)==2*n//1024 # half of the first epoch, all of the second, half of the third

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_blocks_come_from_the_file_that_was_checked(dtype, tmp_path, monkeypatch):
    "Read from the file; looked up in the mapping where the file is gone or another one has its name; a file cut short is an error, not zeros"
    n = 2*65_536
    s = ActivationStore.from_rows(tmp_path/'acts', torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), dtype=dtype)
    first,end = np.arange(0, n, 1024),np.arange(1024, n+1024, 1024)
    filled = []; real = mixing._fill
    monkeypatch.setattr(mixing, '_fill', lambda x, *a: filled.append(len(x)) or real(x, *a))
    with monkeypatch.context() as m:
        m.setattr(type(s._shards), '_file', lambda self, i: contextlib.nullcontext())
        want = {k: v.clone() for k,v in s._shards.blocks(s.site, first, end).items()}
    assert not filled
    def same(): got = s._shards.blocks(s.site, first, end); return all(torch.equal(got[k], v) for k,v in want.items())
    assert same() and filled==[1024]*128
    f = s.path/s._shards.shards[0]['file']
    f.rename(tmp_path/'away'); filled.clear()
    assert same() and filled==[1024]*64
    f.write_bytes(bytes(f.with_name(s._shards.shards[1]['file']).stat().st_size)); filled.clear()
    assert same() and filled==[1024]*64
    (tmp_path/'away').replace(f)
    assert same()
    if dtype!='int8': # whose scales are looked up in the mapping
        os.truncate(f, f.stat().st_size//2)
        with pytest.raises(ValueError, match=f'{f.name} is truncated'): s._shards.blocks(s.site, first, end)

def test_given_rows_are_not_copied_as_a_whole(tmp_path, monkeypatch):
    "Rows wait to be written a shard at a time, whatever they are an array of"
    x = np.random.default_rng(0).normal(size=(20_000, 4))
    np.save(tmp_path/'x.npy', x)
    s = ActivationStore.from_rows(tmp_path/'a', np.load(tmp_path/'x.npy', mmap_mode='c'), dtype='float32', shard_rows=6000)
    assert s.fingerprint==ActivationStore.from_rows(tmp_path/'b', torch.from_numpy(x).float(), dtype='float32', shard_rows=6000).fingerprint
    x[[4095, 4096, 19_999],1] = np.nan
    with pytest.raises(ValueError, match='in 3 of 20000 rows, the first of them row 4095, which is nan in dimension 1'): ActivationStore.from_rows(tmp_path/'c', x)
    assert not (tmp_path/'c').exists()
    with pytest.raises(ValueError, match=r'1 of 20000 rows, the first of them row 5, which is 1e\+06 in dimension 2; store bfloat16'):
        y = np.ones((20_000, 4)); y[5,2] = 1e6; ActivationStore.from_rows(tmp_path/'c', y, dtype='float16')

def test_norms_that_float32_does_not_hold_are_refused(tmp_path):
    "Finite rows all the same; rows whose sum alone is too large are taken"
    with pytest.raises(ValueError, match=r'the norm of an activation is 6e\+38, more than float32 holds'): ActivationStore.from_rows(tmp_path/'a', torch.full((10, 4), 3e38), dtype='float32')
    assert not (tmp_path/'a').exists()
    assert len(ActivationStore.from_rows(tmp_path/'b', torch.full((10, 4), 1e38), dtype='float32'))==10

def test_batches_are_a_function_of_seed_and_step(given):
    x,s = given
    assert torch.equal(torch.stack(list(s.batches(300, n_tokens=6000, seed=5)))[7:], torch.stack(list(s.batches(300, n_tokens=6000, seed=5, start=7))))
    assert not torch.equal(next(s.batches(300, seed=5)), next(s.batches(300, seed=6)))
    b = torch.cat(list(s.batches(700, n_tokens=20_000)))  # 29 batches: two epochs and a bit, the cuts across the ends of epochs and shards
    assert len(b)==29*700
    for e in (b[:10_000], b[10_000:20_000]): assert torch.equal(e[e[:,0].argsort()], x[x[:,0].argsort()])
    assert not torch.equal(b[:10_000], b[10_000:20_000])
    assert len(next(s.batches(25_000)))==25_000

def test_an_iterator_left_open_ends_in_silence(given):
    code = f"from sparsenb.store import ActivationStore\nit = ActivationStore.open({str(given[1].path)!r}).batches(8)\nfor _ in range(5): next(it)"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode==0 and r.stderr==''

def in_text(o, e, p, text):
    i,j,q = o.pool(e, p)
    return text[np.concatenate([*map(np.arange, i, j)])[q]]

def test_order_visits_every_row_once_an_epoch_whatever_the_sizes():
    for n,size,kw in ((1, 1, {}), (15, 4, dict(block=4, pool=8, window=6, ways=2)), (16, 16, dict(block=4, pool=8, window=16)), (1000, 37, dict(block=16, pool=64, window=100, ways=3)),
                      (1000, 100, dict(block=16, pool=256, window=90)), (1001, 7, {}), (70_000, 1000, {})):
        o,text = mixing._Order(n, seed=3, **kw),np.arange(n)
        got = np.concatenate([in_text(o, e, p, text)[a:b] for s in range(-(-3*n//size)) for e,p,a,b in o.pieces(s, size)])
        for e in range(3): assert sorted(got[e*n:(e+1)*n])==list(range(n))

def inflation(steps=1024, n=4_194_304, size=4096, rho=.3, shuffled=True, **kw):
    "Variance of batch means over that of independent rows, for rows sharing `rho` of their variance with their context of 256"
    rng,o,held,means = np.random.default_rng(0),mixing._Order(n, 0, **kw),{},[]
    c,text = rng.standard_normal((n//256, 8)),shards._mixed(0, n) if shuffled else np.arange(n)
    for s in range(steps):
        rows = []
        for e,p,a,b in o.pieces(s, size):
            if (e,p) not in held: held = {(e,p): in_text(o, e, p, text)}
            rows.append(held[e,p][a:b])
        means.append(math.sqrt(rho)*c[np.concatenate(rows)//256].mean(0)+math.sqrt((1-rho)/size)*rng.standard_normal(8))
    return np.var(means, axis=0).mean()*size

def test_mixing():
    assert .9<inflation()<=1.2
    assert inflation(steps=128, pool=4096, shuffled=False)>3  # blocks of text alone do not mix: the measure sees it
    assert inflation(steps=512, ways=4)>1.5  # nor do few windows at a time

def test_prefetch_thread_ends_with_the_iterator(given):
    threads = lambda: [t for t in threading.enumerate() if t.name.startswith('store')]
    for use in (lambda b: next(b), lambda b: list(b), lambda b: None):
        b = given[1].batches(100, n_tokens=2000)
        use(b)
        del b; gc.collect()
        assert not threads()

def test_reader_errors_reach_the_caller(copy):
    b = ActivationStore.open(copy).batches(50)
    (copy/'00000.safetensors').write_bytes(bytes((copy/'00000.safetensors').stat().st_size))
    with pytest.raises(ValueError, match='is altered'): next(b)

def test_rows_handed_out_are_copies(given):
    x,s = given
    r = next(s.rows()); r.x.zero_(); r.tok.fill_(7)
    assert torch.equal(next(s.rows()).x, x[:8192]) and not next(s.rows()).tok.any()

@pytest.mark.parametrize('kw', [dict(batch_size=0), dict(batch_size=4, start=-1)])
def test_bad_reading(given, kw):
    with pytest.raises(ValueError, match='must be at least'): given[1].batches(**kw)

@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_order_does_not_depend_on_shards(tmp_path, dtype):
    "Whole windows, several a shard, parts of one, and format 1, which lies in the order of the text: the same batches"
    x = torch.randn(150_000, 4, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    same,got = [],{}
    for n in (65_536, 131_072, 9_000, 65_000):
        s = ActivationStore.from_rows(tmp_path/str(n), x, dtype=dtype, shard_rows=n)
        got[n] = torch.cat(list(s.batches(50_000, n_tokens=200_000, seed=1)))
        torch.testing.assert_close(all_rows(s), x, atol=.05 if dtype=='int8' else 0, rtol=0)
    for v in got.values(): torch.testing.assert_close(v, got[65_536], atol=.1 if dtype=='int8' else 0, rtol=0)

def test_format_1_is_read_and_gone_on_with(model, whole, tmp_path, monkeypatch):
    "What an older version wrote: rows in the order of the text, no column `at`"
    real = st._header
    monkeypatch.setattr(st, '_header', lambda *a: real(*a)|dict(version=1))
    monkeypatch.setattr(st, 'capture', Stop(14))
    with pytest.raises(KeyboardInterrupt): ActivationStore.collect(model, TEXT, **how(tmp_path/'old'))
    monkeypatch.undo()
    s = ActivationStore.collect(model, TEXT, **how(tmp_path/'old'))
    assert s.header['version']==1 and 'at' not in s._shards.columns(len(s._shards.shards)-1)
    assert s.fingerprint==whole.fingerprint and torch.equal(all_rows(s), all_rows(whole))
    for a,b in zip(s.batches(100, n_tokens=6000), whole.batches(100, n_tokens=6000)): assert torch.equal(a, b)
    r = next(s.rows()); r.x.zero_()
    assert torch.equal(all_rows(s), all_rows(whole))

class Stop:
    "`capture` that is interrupted at its n-th call"
    def __init__(self, n): self.left = n
    def __call__(self, *a, **k):
        self.left -= 1
        if self.left<0: raise KeyboardInterrupt
        return capture(*a, **k)

# -- one byte a number ------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def heavy():
    "Activations of the bundled model, and the same with two massive dimensions"
    import itertools
    m = load_model('stdlib-4l')
    ids,mask = m.tokens([d.text[:2000] for d in itertools.islice(load_corpus('stdlib'), 12)])
    ids,mask = ids[:,:128],mask[:,:128].clone()
    x = capture(m, ids, 'resid_post.2', mask)['resid_post.2']
    mask[:,0] = False
    x = x[mask]
    big = x.clone(); big[:,3] += 300; big[:,77] -= 120
    return x, big

def test_int8_is_off_by_half_a_step(tmp_path, heavy):
    "Each number by half a step of its row at most; rows by less than 1 %, and massive dimensions do not drown the others"
    for name,x in zip(('plain', 'massive'), heavy):
        s = ActivationStore.from_rows(tmp_path/name, x, dtype='int8', shard_rows=500)
        y,e,at = all_rows(s),[],0
        for i,l in enumerate(s._shards.shards):
            c = s._shards.columns(i)
            step = c['scale:rows'][c['at'].long()][:,None]*c['smooth:rows']
            off = (y[at:at+l['rows']]-x[at:at+l['rows']]).abs()
            assert (off<=.5*step*(1+1e-5)+1e-6*x[at:at+l['rows']].abs()).all(); at += l['rows']
        rel,fvu = ((y-x).norm(dim=1)/x.norm(dim=1)).median(),(y-x).square().sum()/(x-x.mean(0)).square().sum()
        print(f'{name}: {rel:.5f} {fvu:.2e}')
        assert rel<.008 and fvu<(1.5e-4 if name=='plain' else 1.5e-3)
        torch.testing.assert_close(s.mean, x.double().mean(0).float(), atol=0, rtol=1e-6)  # of the rows as they came
        torch.testing.assert_close(s.std, x.double().std(0, correction=0).float(), atol=0, rtol=1e-6)
        f = s.path/'00000.safetensors'
        assert f.stat().st_size<500*(256+4*6)+4*256+2000

def test_int8_reads_as_float32_everywhere(model, whole, tmp_path):
    s = ActivationStore.collect(model, TEXT, **how(tmp_path/'b', dtype='int8'))
    exact = ActivationStore.collect(model, TEXT, **how(tmp_path/'f', dtype='float32'))
    assert s.dtype=='int8' and s.fingerprint!=exact.fingerprint and torch.equal(s.mean, exact.mean) and s.stats['norms']==exact.stats['norms']
    for a,b in ((all_rows(s), all_rows(exact)), (next(s.batches(300)), next(exact.batches(300)))):
        assert a.dtype==torch.float32 and (a-b).norm()<.01*b.norm()
    assert s.segments.tolist()==exact.segments.tolist() and s.context(250)==exact.context(250)
    from sparsenb.core import dictionaries
    from sparsenb.train import fit
    fit(dictionaries['topk'](32, 64, k=4), s, 1280, 128)

def test_int8_refuses_nan(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='x holds NaN.* row 2'): ActivationStore.from_rows(tmp_path/'a', torch.tensor([[1.], [2.], [math.nan]]), dtype='int8')
    def bad(*a, **k):
        out = capture(*a, **k); out['resid_post.0'][0,3,1] = math.nan
        return out
    monkeypatch.setattr(st, 'capture', bad)
    with pytest.raises(ValueError, match='gave NaN at site resid_post.0'): ActivationStore.collect(model, TEXT, **how(tmp_path/'b', dtype='int8'))
    z = ActivationStore.from_rows(tmp_path/'z', torch.zeros(5, 3), dtype='int8')
    assert not all_rows(z).any()

def test_a_store_narrower_than_the_dictionary(whole):
    from sparsenb.core import dictionaries
    from sparsenb.train import fit
    with pytest.raises(ValueError, match='32.*64|64.*32'): fit(dictionaries['topk'](64, 128, k=4), whole, 1280, 128)

# -- described --------------------------------------------------------------------------------------------------------

def test_sinks_and_describe(tmp_path):
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    x[[7, 1500]] *= 1e4
    s = ActivationStore.from_rows(tmp_path/'a', x, tok=torch.arange(3000)%50, pos=torch.arange(3000)%10, shard_rows=1000)
    assert s.sinks.tolist()==[7, 1500]
    t = s.describe()
    text = repr(t)+str(t.rows)
    for part in ('gamma', 'sink tokens', "'7' at position 7", "'0' at position 0", 'low', 'not a forecast'): assert part in text+t.caption, part
    v = dict(zip(t.column('quantity'), t.column('value')))
    assert v['sink tokens']==2 and v['gamma']==pytest.approx(float(s.mean.norm()/s.std.norm()), rel=1e-5)

# -- memory -----------------------------------------------------------------------------------------------------------

def test_memory_of_a_million_tokens(tmp_path):
    "1M tokens of a 256-wide site: below 1.5 GB resident, libraries included"
    code = f"""
import re, resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_store as t
text = [(str(i), ('x = %d\\n' % i)*4000) for i in range(40)]
s = t.ActivationStore.collect(t.tiny(d=256, layers=1), text, 'embed', n_tokens=1_000_000, path={str(tmp_path/'acts')!r}, progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss # on Linux a child inherits its parent's; the kernel's own mark of this program does not
if sys.platform=='linux': peak = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])
print(len(s), s.d_in, peak)
"""
    out = subprocess.run([sys.executable, '-c', code], env=os.environ|dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, check=True).stdout
    n,d,peak = map(int, out.split()[-3:])
    assert (n, d)==(1_000_000, 256) and peak*1024<1.5e9, f'{peak/1e6:.2f} GB'
    print(f'peak {peak/1e6:.2f} GB')
