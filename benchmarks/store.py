"The store's files: writing, shuffled reading, raw reading of the same files, and mixing (256 wide, one thread)"
from _common import report
import math, os, tempfile, time
from pathlib import Path
import numpy as np, torch
from sparsenb.mixing import _Order
from sparsenb.shards import _mixed
from sparsenb.store import ActivationStore

torch.set_num_threads(1)
N,D,SIZE = 524_288,256,4096  # rows, their width, rows of a batch

def forget(files):
    "Have the system drop files from its memory, so that the disk is read"
    for f in files:
        fd = os.open(f, os.O_RDONLY)
        os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)

def raw(files)->float:
    "Seconds to read files from beginning to end"
    t,b = time.perf_counter(),bytearray(1<<22)
    for f in files:
        with open(f, 'rb', buffering=0) as h:
            while h.readinto(b): pass
    return time.perf_counter()-t

def shuffled(store, n=N)->float:
    "Seconds to read an epoch of shuffled batches, as they come to a training"
    t = time.perf_counter()
    for _ in store.batches(SIZE, n_tokens=n, seed=0): pass
    return time.perf_counter()-t

def written(x, files)->float:
    "Seconds to write as many bytes without a format, with fsync"
    t = time.perf_counter()
    for f in files:
        b = bytes(f.stat().st_size)
        with open(f.with_suffix('.raw'), 'wb') as h: h.write(b); h.flush(); os.fsync(h.fileno())
        f.with_suffix('.raw').unlink()
    return time.perf_counter()-t

def measured(x, dtype, folder, rounds=2)->dict:
    t = time.perf_counter()
    s = ActivationStore.from_rows(folder/dtype, x, dtype=dtype)
    write = time.perf_counter()-t
    files = sorted(s.path.glob('*.safetensors'))
    mb = sum(f.stat().st_size for f in files)/1e6
    shuffled(s)  # checksums are taken once
    cold,warm,seq,seq_cold = [],[],[],[]
    for _ in range(rounds):
        forget(files); s._shards._open.clear(); fresh = ActivationStore.open(s.path); cold.append(shuffled(fresh))
        forget(files); seq_cold.append(raw(files))
        seq.append(raw(files)); warm.append(shuffled(s))
    out = dict(MB=mb, write=mb/write, raw_write=mb/written(x, files), cold=mb/np.median(cold), raw_cold=mb/np.median(seq_cold), warm=mb/np.median(warm), raw_warm=mb/np.median(seq), rows_per_second=N/np.median(warm))
    return {f'{dtype}_{k}': round(float(v)) for k,v in out.items()} | {f'{dtype}_cold_over_raw': float(np.median(np.array(seq_cold)/cold)), f'{dtype}_warm_over_raw_cold': float(np.median(seq_cold)/np.median(warm))}

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
