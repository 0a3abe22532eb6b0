"""The store's files: writing, shuffled reading, raw reading of the same files, and mixing (256 wide, one thread)

Two floors are meant. From the disk: the same files read from beginning to end, by the clock; before each reading of either kind the system is told to
drop their pages (also the mapped ones), so both come from below the page cache, though a virtual disk's host may keep a cache of its own. Checksums are
taken before. From memory: processor seconds of both threads together, against what no shuffled reader of float32 batches can do without, which is to
read the files once, gather rows at random and turn them to float32. Arms take turns; ratios are medians over rounds of the quotient within a round.
`cold_over_raw_quickest` is the quotient of the quickest rounds: in a virtual machine memory that was just freed can cost its processor more than the
disk does, which comes and goes and hits both kinds of reading.
"""
from _common import report
import ctypes, math, mmap, os, statistics, tempfile, time
from pathlib import Path
import numpy as np, torch
from sparsenb.mixing import _Order
from sparsenb.shards import _mixed
from sparsenb.store import ActivationStore

torch.set_num_threads(1)
N,D,SIZE = 2_097_152,256,4096  # rows (nine pools; the filling of the first one waits for the disk), their width, rows of a batch

def forget(files, store=None):
    "Have the system drop files from its memory, so that the disk is read; what `store` has mapped of them, too"
    for t in (t for c in store._shards._open.values() for t in c.values()) if store else ():
        a = -(-t.data_ptr()//mmap.PAGESIZE)*mmap.PAGESIZE
        if t.data_ptr()+t.nbytes>a: ctypes.CDLL(None).madvise(ctypes.c_void_p(a), ctypes.c_size_t((t.data_ptr()+t.nbytes-a)//mmap.PAGESIZE*mmap.PAGESIZE), mmap.MADV_DONTNEED)
    for f in files:
        fd = os.open(f, os.O_RDONLY)
        os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)

def raw(files, clock=time.perf_counter)->float:
    "Seconds to read files from beginning to end"
    t,b = clock(),bytearray(1<<22)
    for f in files:
        with open(f, 'rb', buffering=0) as h:
            while h.readinto(b): pass
    return clock()-t

def shuffled(store, n=N, clock=time.perf_counter)->float:
    "Seconds to read an epoch of shuffled batches, as they come to a training"
    t = clock()
    for _ in store.batches(SIZE, n_tokens=n, seed=0): pass
    return clock()-t

def floor(files, dtype)->float:
    "Processor seconds of what an epoch cannot do without: a raw reading, a random gather of rows from a pool, float32"
    pool,order = torch.zeros(N//2, D, dtype=getattr(torch, dtype)),torch.randperm(N//2, generator=torch.Generator().manual_seed(0)).split(SIZE)
    few,out = torch.empty(SIZE, D, dtype=pool.dtype),torch.empty(SIZE, D)
    t = raw(files, time.process_time)
    begun = time.process_time()
    for at in (*order, *order): out.copy_(torch.index_select(pool, 0, at, out=few))
    return t+time.process_time()-begun

def written(x, files)->float:
    "Seconds to write as many bytes without a format, with fsync"
    t = time.perf_counter()
    for f in files:
        b = bytes(f.stat().st_size)
        with open(f.with_suffix('.raw'), 'wb') as h: h.write(b); h.flush(); os.fsync(h.fileno())
        f.with_suffix('.raw').unlink()
    return time.perf_counter()-t

def measured(x, dtype, folder, rounds=9)->dict:
    t = time.perf_counter()
    s = ActivationStore.from_rows(folder/dtype, x, dtype=dtype)
    write = time.perf_counter()-t
    files = sorted(s.path.glob('*.safetensors'))
    mb = sum(f.stat().st_size for f in files)/1e6
    shuffled(s)  # checksums are taken once
    cold,raw_cold,warm,least = [],[],[],[]
    for _ in range(rounds): warm.append(shuffled(s, clock=time.process_time)); least.append(floor(files, dtype))
    for r in range(rounds):
        for which in (('cold', 'raw'), ('raw', 'cold'))[r%2]: # in turn first: memory that the one before has just freed is quicker to get
            forget(files, s); cold.append(shuffled(s)) if which=='cold' else raw_cold.append(raw(files))
    m = statistics.median
    out = dict(MB=mb, write=mb/write, raw_write=mb/written(x, files), cold=mb/m(cold), raw_cold=mb/m(raw_cold), MB_per_processor_second=mb/m(warm), rows_per_processor_second=N/m(warm))
    return {f'{dtype}_{k}': round(float(v)) for k,v in out.items()} | {f'{dtype}_cold_over_raw': m(r/c for r,c in zip(raw_cold, cold)), f'{dtype}_cold_over_raw_quickest': min(raw_cold)/min(cold), f'{dtype}_processor_over_floor': m(w/f for w,f in zip(warm, least)), f'{dtype}_processor_over_raw_cold': m(r/w for r,w in zip(raw_cold, warm))}

def inflation(n=4_194_304, rho=.3, steps=1024)->float:
    "Variance of batch means over that of independent rows, for rows sharing `rho` of their variance with their context of 256"
    rng,o,text,held,means = np.random.default_rng(0),_Order(n, 0),_mixed(0, n),{},[]
    c = rng.standard_normal((n//256, 8))
    for s in range(steps):
        rows = []
        for e,p,a,b in o.pieces(s, SIZE):
            if (e,p) not in held: i,j,q = o.pool(e, p); held = {(e,p): text[np.concatenate([*map(np.arange, i, j)])[q]]}
            rows.append(held[e,p][a:b])
        means.append(math.sqrt(rho)*c[np.concatenate(rows)//256].mean(0)+math.sqrt((1-rho)/SIZE)*rng.standard_normal(8))
    return float(np.var(means, axis=0).mean()*SIZE)

if __name__=='__main__':
    figures = dict(rows=N, width=D)
    with tempfile.TemporaryDirectory() as d:
        x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
        for t in ('bfloat16', 'float32', 'int8'): figures |= measured(x, t, Path(d))
    report('store', figures|dict(inflation=inflation()))
