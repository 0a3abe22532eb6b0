"""Whether quick is as good: FVU and dead features of TopK on a real model's activations, three seeds, ours on two paths beside sparsify and dictionary_learning (one thread; about half an hour for 2 million activations each); --keep writes quality.json

    sparsenb bench quality --python /some/env/bin/python --n-tokens 20000000

Every arm reads the same batches in the same order, scaled so that E||x||^2 is the width, and has the same number of features, k, batch and peak
learning rate: that of our recipe. It rises over the first 3 % of the steps and falls to zero over the last 20 % for ours and dictionary_learning; the
schedule of sparsify's Adam begins to fall as soon as it has risen. `sparsify_own` and `dictionary_learning_own`, to be asked for with --arms, are their
defaults instead. Nobody has an auxiliary loss before `dead_after` activations: ours counts to 1 million, dictionary_learning to 10 million, sparsify has
none. Scores are pooled over rows of text that was not trained on: squared error over squared distance from their mean, and the share of features that
none of them uses. Finished trainings lie in a folder; a stopped call goes on there. The peers need an environment that has them, see peers.py.
"""
from _common import machine, note, own_options, report
import argparse, contextlib, itertools, json, statistics, sys, time, zlib
from datetime import date
from pathlib import Path

ARMS = ('torch', 'best', 'sparsify', 'dictionary_learning', 'sparsify_own', 'dictionary_learning_own')

def ours(a, store, seed, path, folder):
    "Train on one path; what rebuilds rows and says which features they use, and the seconds of its steps"
    from sparsenb.all import dictionaries, fit
    d = dictionaries['topk'](store.d_in, a.d_sae, k=a.k, seed=seed)
    run = fit(d, store, a.n_tokens, a.batch, seed=seed, path=folder, engine=path)
    def rebuilt(x):
        c = d.codes(x)
        return d.decode_codes(c), c.idx[c.val>0]
    t = run.timing
    return rebuilt, t['seconds']-t['data']-t['checkpoints']

def theirs(a, store, seed, arm):
    "The same with a peer's step"
    import torch
    from peers import dictionary_learning, sparsify
    from sparsenb.all import dictionaries
    steps,name = a.n_tokens//a.batch,arm.removesuffix('_own')
    r = dictionaries['topk'](store.d_in, a.d_sae, k=a.k).recipe()
    equal = not arm.endswith('_own')
    warmup = round(r['warmup']*steps) if equal else min(1000, steps//10)
    how = dict(steps=steps, lr=r['lr'] if equal else None, warmup=warmup, seed=seed)
    if name=='sparsify': step = sparsify(store.d_in, a.d_sae, a.k, a.batch, optimizer='adam' if equal else 'signum', **how)
    else: step = dictionary_learning(store.d_in, a.d_sae, a.k, a.batch, decay_start=round((1-r['decay'])*steps) if equal else None, **how)
    scale,seconds = float(store.scale),0.
    with contextlib.closing(store.batches(a.batch, seed=seed, start=0)) as it:
        for x in itertools.islice(it, steps):
            at = time.perf_counter(); step(x.float()*scale); seconds += time.perf_counter()-at
    if hasattr(getattr(step, 'optimizer', None), 'eval'): step.optimizer.eval() # schedule-free weights are averages
    @torch.no_grad()
    def rebuilt(x):
        if name=='sparsify': out = step.model(x*scale); return out.sae_out/scale, out.latent_indices[out.latent_acts>0]
        f = step.model.encode(x*scale)
        return step.model.decode(f)/scale, f.nonzero()[:,1]
    return rebuilt, seconds

def scores(rebuilt, rows, d_sae)->dict:
    "Pooled FVU and the share of features that no row uses"
    import torch
    mean,error,spread,used = rows.mean(0),0.,0.,torch.zeros(d_sae, dtype=torch.bool)
    with torch.no_grad():
        for x in rows.split(2048):
            x_hat,features = rebuilt(x)
            error += (x-x_hat).double().square().sum().item(); spread += (x-mean).double().square().sum().item()
            used[features] = True
    return dict(fvu=error/spread, dead=1-used.float().mean().item())

def training(a, store, rows, arm, seed)->dict:
    "One training and its scores, from its file or made now"
    from sparsenb.core import read_json, write_json
    path = dict(torch='torch', best=a.best).get(arm)
    key = zlib.crc32(json.dumps([1, arm, path, seed, a.site, a.d_sae, a.k, a.batch, a.n_tokens, len(rows), store.fingerprint]).encode())
    f = a.folder/f'{arm}-{seed}-{key:08x}.json'
    if not f.exists():
        rebuilt,seconds = ours(a, store, seed, path, a.folder/f.stem) if path else theirs(a, store, seed, arm)
        write_json(f, dict(arm=arm, seed=seed, seconds=seconds)|scores(rebuilt, rows, a.d_sae))
        note(f'{arm}, seed {seed}: {json.dumps(read_json(f))}')
    return read_json(f)

def main(a, rest):
    import torch
    from sparsenb.all import ActivationStore, load_corpus, load_model
    from _arms import missing
    torch.set_num_threads(1)
    model = load_model('stdlib-4l')
    a.folder.mkdir(parents=True, exist_ok=True)
    store = ActivationStore.collect(model, load_corpus('stdlib'), site=a.site, n_tokens=a.stored, path=a.folder/f'acts-{a.site}-{a.stored}')
    held = ActivationStore.collect(model, load_corpus('stdlib', 'held-out'), site=a.site, n_tokens=a.eval_tokens, path=a.folder/f'held-out-{a.site}-{a.eval_tokens}')
    with contextlib.closing(held.batches(len(held), seed=0)) as it: rows = next(it).float()
    done,absent = [],{}
    for seed,arm in itertools.product(range(a.seeds), a.arms): # all arms of a seed first
        if arm in absent: continue
        if arm in ('torch', 'best') and (why := missing(a.best if arm=='best' else 'torch')): absent[arm] = why; note(f'skipped: {arm}, {why}'); continue
        try: done.append(training(a, store, rows, arm, seed))
        except ImportError as e: absent[arm] = str(e); note(f'skipped: {arm}, {e}')
    plan = dict(site=a.site, d_sae=a.d_sae, k=a.k, batch=a.batch, n_tokens=a.n_tokens, eval_tokens=len(rows), seeds=a.seeds, best=a.best)
    if '--keep' in rest:
        head = dict(machine=machine(), date=date.today().isoformat(), **plan)
        (Path(__file__).parent/'quality.json').write_text(json.dumps(head)[:-1]+', "trainings": [\n'+',\n'.join(map(json.dumps, done))+'\n]}\n')
    out = dict(plan)
    for arm in dict.fromkeys(r['arm'] for r in done):
        mine = [r for r in done if r['arm']==arm]
        out |= {f'{k}_{arm}': statistics.mean(r[k] for r in mine) for k in ('fvu', 'dead', 'seconds')} | {f'fvu_spread_{arm}': max(r['fvu'] for r in mine)-min(r['fvu'] for r in mine)}
    report('quality', out, rest)

if __name__=='__main__':
    p = argparse.ArgumentParser('quality', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--site', default='resid_post.2'); p.add_argument('--d-sae', type=int, default=4096); p.add_argument('--k', type=int, default=32); p.add_argument('--batch', type=int, default=4096)
    p.add_argument('--n-tokens', type=int, default=2_000_000, help='activations of training, for each arm and seed')
    p.add_argument('--stored', type=int, default=1_000_000, help='different activations among them'); p.add_argument('--eval-tokens', type=int, default=65_536)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--arms', type=lambda s: s.split(','), default=list(ARMS[:4]), help=f"of {', '.join(ARMS)}")
    p.add_argument('--best', default='int8', help='the path of the arm `best`')
    p.add_argument('--folder', type=Path, help="where finished trainings lie; bench-quality in the settings' cache unless given")
    p.add_argument('--python', help='of an environment that has the peers'); p.add_argument('--here', action='store_true', help='in this environment, with the peers it has')
    a,rest = own_options(p)
    if wrong := [x for x in a.arms if x not in ARMS]: p.error(f"no arm {wrong[0]!r}; there are {', '.join(ARMS)}")
    if a.python and not a.here:
        from peers import run_in
        sys.exit(run_in(a.python, sys.argv[1:], __file__))
    from sparsenb.core import settings
    a.folder = a.folder or settings().cache/'bench-quality'
    main(a, rest)
