"Stores elsewhere: fetched whole, checked, cached within a limit, read by several, and nothing on the network without a URL"
import multiprocessing, os, shutil, sys, zlib
import fsspec, pytest, torch
from fsspec.implementations.memory import MemoryFileSystem
from pathlib import Path
from sparsenb.core import UnknownName
from sparsenb.remote import Remote
from sparsenb.store import ActivationStore

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def store(tmp_path_factory):
    x = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    return ActivationStore.from_rows(tmp_path_factory.mktemp('s')/'acts', x, tok=torch.arange(5000)%50, pos=torch.arange(5000)%10, shard_rows=500)

@pytest.fixture(params=['memory', 'file'])
def url(request, store, tmp_path):
    u = 'memory://bucket/acts' if request.param=='memory' else f'file://{tmp_path}/far/acts'
    store.upload(u)
    yield u
    if request.param=='memory': fsspec.filesystem('memory').rm('/bucket', recursive=True)

def same(a, b):
    assert a.fingerprint==b.fingerprint and len(a)==len(b) and torch.equal(a.mean, b.mean)
    for x,y in zip(a.batches(300, n_tokens=6000, seed=2), b.batches(300, n_tokens=6000, seed=2)): assert torch.equal(x, y)
    for r,s in zip(a.rows(700), b.rows(700)): assert torch.equal(r.x, s.x) and torch.equal(r.tok, s.tok) and torch.equal(r.doc, s.doc)
    assert a.context(1234)==b.context(1234) and a.sinks.tolist()==b.sinks.tolist() and (a.segments==b.segments).all()

def test_a_remote_store_is_the_store(store, url, tmp_path):
    far = ActivationStore.open(url, site='rows', cache=tmp_path/'cache')
    assert not list((tmp_path/'cache').rglob('*.safetensors'))  # nothing was read yet
    same(far, store)
    assert len(list((tmp_path/'cache').rglob('*.safetensors')))==10 and url in repr(far)

def test_the_settings_cache(store, url, tmp_path, monkeypatch):
    monkeypatch.setenv('SPARSENB_CACHE', str(tmp_path/'mine'))
    next(ActivationStore.open(url).rows())
    assert list((tmp_path/'mine'/'remote').rglob('00000.safetensors'))

class Faulty(MemoryFileSystem):
    "Memory that sometimes gives less than it has, other bytes, or an error; counts what is read"
    protocol,cachable = 'faulty',False
    faults,reads = [],[]
    @classmethod
    def _strip_protocol(cls, path): return MemoryFileSystem._strip_protocol(path.replace('faulty://', 'memory://'))
    def open(self, path, mode='rb', **kw):
        f = super().open(path, mode, **kw)
        if 'r' not in mode or 'manifest' in path: return f
        Faulty.reads.append(path.rsplit('/')[-1])
        fault = Faulty.faults.pop(0) if Faulty.faults else None
        raw = f.read()
        if fault=='short': raw = raw[:-100]
        if fault=='other': raw = raw[:-9]+bytes(9)
        if fault=='error': raise OSError('connection reset')
        import io
        return io.BytesIO(raw)

@pytest.fixture
def faulty(store, tmp_path):
    fsspec.register_implementation('faulty', Faulty, clobber=True)
    store.upload('memory://faults/acts')
    Faulty.faults,Faulty.reads = [],[]
    yield ActivationStore.open('faulty://faults/acts', cache=tmp_path/'cache')
    fsspec.filesystem('memory').rm('/faults', recursive=True)

@pytest.mark.parametrize('fault', ['short', 'other', 'error'])
def test_a_broken_download_is_fetched_once_more(store, faulty, fault):
    Faulty.faults = [fault]
    assert torch.equal(next(faulty.rows(100)).x, next(store.rows(100)).x)
    assert Faulty.reads==['00000.safetensors']*2

@pytest.mark.parametrize('fault,says', [('short', r'came damaged twice: [\d,]+ bytes with checksum'), ('other', 'came damaged twice'), ('error', 'came damaged twice.*connection reset')])
def test_twice_broken_is_one_clear_error(faulty, tmp_path, fault, says):
    Faulty.faults = [fault]*2
    with pytest.raises(ValueError, match=rf'faulty://faults/acts/00000.safetensors {says}'): next(faulty.rows(100))
    assert len(Faulty.reads)==2
    assert not [p for p in (tmp_path/'cache').rglob('*') if p.is_file() and p.name!='manifest.jsonl']  # nothing bad is kept
    next(faulty.rows(100))  # and when the line is good again, it works

def test_what_is_cached_is_not_fetched_again_unless_damaged(store, faulty, tmp_path):
    next(faulty.rows(600))
    again = ActivationStore.open('faulty://faults/acts', cache=tmp_path/'cache')
    next(again.rows(600))
    assert Faulty.reads==['00000.safetensors', '00001.safetensors']
    f = next((tmp_path/'cache').rglob('00001.safetensors'))
    b = bytearray(f.read_bytes()); b[-5] ^= 1; f.write_bytes(b)
    same(ActivationStore.open('faulty://faults/acts', cache=tmp_path/'cache'), store)
    assert Faulty.reads.count('00001.safetensors')==2

def test_the_oldest_leave_a_full_cache(store, faulty, tmp_path):
    size = max(s['bytes'] for s in store._shards.shards)
    with pytest.warns(UserWarning, match='shuffled reading mixes up to 64 shards'): far = ActivationStore.open('faulty://faults/acts', cache=tmp_path/'cache', cache_bytes=3*size+10)
    held = lambda: sorted(p.name for p in (tmp_path/'cache').rglob('*.safetensors'))
    for r in far.rows(500): assert len(held())<=3
    assert held()==['00007.safetensors', '00008.safetensors', '00009.safetensors'] and len(Faulty.reads)==10
    assert len(far._shards._open)<=3
    same(far, store)  # by fetching again

def test_a_cache_below_one_shard(store, url, tmp_path):
    with pytest.raises(ValueError, match='a cache of 1 kB is smaller than one shard of .* kB: raise cache_bytes'): ActivationStore.open(url, cache=tmp_path/'c', cache_bytes='1kB')
    with pytest.raises(ValueError, match='a size such as 4GB'): ActivationStore.open(url, cache=tmp_path/'c', cache_bytes='many')

def _read(url, cache, limit, seed, q):
    torch.set_num_threads(1)
    import warnings; warnings.simplefilter('ignore')
    s = ActivationStore.open(url, cache=cache, cache_bytes=limit)
    q.put([float(b.double().sum()) for b in s.batches(500, n_tokens=5000, seed=seed)])

def test_readers_of_one_cache_do_not_disturb_each_other(store, tmp_path):
    "Three processes, a cache that holds less than they read"
    url,size = f'file://{tmp_path}/far',max(s['bytes'] for s in store._shards.shards)
    store.upload(url)
    ctx = multiprocessing.get_context('fork'); q = ctx.Queue()
    ps = [ctx.Process(target=_read, args=(url, tmp_path/'cache', 2*size+10, 1, q)) for _ in range(3)]
    for p in ps: p.start()
    got = [q.get(timeout=60) for _ in ps]
    for p in ps: p.join(60); assert p.exitcode==0
    want = [float(b.double().sum()) for b in store.batches(500, n_tokens=5000, seed=1)]
    assert got==[want]*3

def test_a_missing_shard_or_store(store, url, tmp_path):
    fs,root = fsspec.core.url_to_fs(url)
    far = ActivationStore.open(url, cache=tmp_path/'cache')
    fs.rm(f'{root}/00003.safetensors')
    with pytest.raises(ValueError, match='is damaged: shard 00003.safetensors is missing'): list(far.rows())
    fs.rm(f'{root}/manifest.jsonl')
    with pytest.raises(FileNotFoundError, match=f'{url} holds no store'): ActivationStore.open(url, cache=tmp_path/'cache')

def test_upload_ends_with_the_manifest(store, tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem
    url,real = f'file://{tmp_path}/far',LocalFileSystem.put_file
    def breaks(self, a, b, *args, **kw):
        if b.endswith('00006.safetensors'): raise OSError('connection reset')
        return real(self, a, b, *args, **kw)
    monkeypatch.setattr(LocalFileSystem, 'put_file', breaks)
    with pytest.raises(OSError, match='connection reset'): store.upload(url)
    with pytest.raises(FileNotFoundError, match='holds no store'): ActivationStore.open(url, cache=tmp_path/'c')
    monkeypatch.undo()
    store.upload(url); store.upload(url)
    same(ActivationStore.open(url, cache=tmp_path/'c'), store)
    same(ActivationStore.open(f'{tmp_path}/far'), store)  # the same files
    other = ActivationStore.from_rows(tmp_path/'o', torch.randn(10, 2))
    with pytest.raises(FileExistsError, match='holds another store'): other.upload(url)
    ActivationStore.open(url, cache=tmp_path/'c2').upload(f'file://{tmp_path}/third')
    same(ActivationStore.open(f'{tmp_path}/third'), store)

def test_protocols_that_are_not_there(store):
    with pytest.raises(ImportError, match='s3://b/a: the protocol s3 needs the package s3fs: pip install s3fs'): ActivationStore.open('s3://b/a')
    with pytest.raises(ImportError, match='needs the package gcsfs'): store.upload('gs://b/a')
    with pytest.raises(UnknownName, match="unknown protocol 'memmory'; did you mean 'memory'"): ActivationStore.open('memmory://b/a')

def test_a_store_on_disk_does_without_fsspec(store):
    import subprocess
    code = f"import sys; sys.modules['fsspec'] = None\nimport sparsenb.remote, sparsenb.acts\nprint(len(sparsenb.acts.ActivationStore.open({str(store.path)!r})))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout=='5000\n'
