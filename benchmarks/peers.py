"""The TopK training steps of SAELens, sparsify, dictionary_learning and Overcomplete beside ours, in one process (768 wide, 16,384 features, k 32, batch 4,096, one thread; about five minutes and a download)

    sparsenb bench peers                              makes a throwaway environment, runs there, removes it
    sparsenb bench peers --python /some/env/bin/python   uses that one

None of them is a dependency of ours. The environment sees this one's packages and holds pinned releases beside them, without theirs. A peer that
cannot be imported is skipped with a line that says why.

What is timed is each project's own training step, with its own defaults, on the same rows, in turns:

- sae_lens: `SAETrainer.step` on `TopKTrainingSAE`, all defaults: what its `fit` calls for each batch, logging off. `sae_lens_bf16` is the same with
  `autocast=True`, its quickest setting that runs on a processor (`use_sparse_activations=True` fails there in the backward pass).
- dictionary_learning: `TopKTrainer.update`, from its second step on (the first sets the bias).
- overcomplete: `train_sae` on one batch with `monitoring=0`, so that none of its statistics is timed; `TopKSAE` with its default encoder, which has a
  batch norm; criterion and Adam as in its README.
- sparsify: its trainer reads a transformer, so the lines of `Trainer.fit` that concern the coder are repeated here: unit rows, forward pass, fvu,
  backward pass, projection, optimiser, zeroing. `sparsify` has its default optimiser, sign descent made schedule-free; `sparsify_adam` its Adam, which is
  what all others use. Without Triton, as on every processor.

Ours is `train_step`: gradient, projection, Adam, unit rows, book-keeping of dead features. We do not clip the gradient's norm; sae_lens,
dictionary_learning and overcomplete do, and sparsify does not. Nothing is dead here, so no auxiliary loss is computed anywhere. The exact paths compute
what dense autograd and Adam compute (benchmarks/train_step.py holds their losses against each other).
"""
from _common import interleaved, note, own_options, ratio, report
import argparse, contextlib, importlib, importlib.util, io, itertools, os, statistics, subprocess, sys, sysconfig, tempfile, types
from pathlib import Path

PINS = ('sae-lens==6.54.12', 'eai-sparsify==1.3.3', 'dictionary-learning==0.1.0', 'overcomplete==0.3.0',
        'transformer-lens==3.9.0', 'better-abc==0.0.3', 'simple-parsing==0.1.9', 'docstring-parser==0.18.0', 'natsort==8.4.0', 'schedulefree==1.4.1', 'pillow==13.0.0') # the second line is what they import and ours lacks

def bare(package):
    "Let submodules of a package be imported without its __init__, which may want models and pictures"
    if package in sys.modules: return
    spec = importlib.util.find_spec(package)
    if spec is None: raise ModuleNotFoundError(f'No module named {package!r}')
    sys.modules[package] = m = types.ModuleType(package)
    m.__path__,m.__spec__ = list(spec.submodule_search_locations),spec

def sae_lens(d, m, k, n, autocast=False):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer
    trainer = SAETrainer(SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=n, lr_end=3e-5, autocast=autocast), TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=m, k=k)), iter(()))
    def step(x): trainer.step(x); trainer.n_training_steps += 1
    return step

def dictionary_learning(d, m, k, n, steps=100_000, lr=None, warmup=1000, decay_start=None, seed=0):
    bare('dictionary_learning')
    from dictionary_learning.trainers.top_k import TopKTrainer
    trainer,count = TopKTrainer(steps, d, m, k, 0, '', lr=lr, warmup_steps=warmup, decay_start=decay_start, seed=seed, device='cpu'),itertools.count()
    def step(x): trainer.update(next(count), x)
    step.model = trainer.ae
    return step

def overcomplete(d, m, k, n):
    import torch
    bare('overcomplete')
    from overcomplete.sae.topk_sae import TopKSAE
    from overcomplete.sae.train import train_sae
    sae = TopKSAE(d, nb_concepts=m, top_k=k)
    opt = torch.optim.Adam(sae.parameters(), lr=5e-4)
    def criterion(x, x_hat, pre_codes, codes, dictionary): return (x-x_hat).square().mean()
    return lambda x: train_sae(sae, [x], criterion, opt, nb_epochs=1, monitoring=0)

def sparsify(d, m, k, n, optimizer='signum', steps=100_000, lr=None, warmup=1000, seed=0):
    import torch
    os.environ['SPARSIFY_DISABLE_TRITON'] = '1'
    with contextlib.redirect_stdout(io.StringIO()): # it says which decoder it takes
        bare('sparsify')
        from sparsify.config import SparseCoderConfig
        from sparsify.sign_sgd import SignSGD
        from sparsify.sparse_coder import SparseCoder
    from schedulefree import ScheduleFreeWrapper
    from transformers import get_linear_schedule_with_warmup
    torch.manual_seed(seed)
    sae = SparseCoder(d, SparseCoderConfig(num_latents=m, k=k), dtype=torch.float32)
    if optimizer=='adam': opt = torch.optim.Adam([dict(params=sae.parameters(), lr=lr or 2e-4/(m/2**14)**.5)])
    else: opt = ScheduleFreeWrapper(SignSGD([dict(params=sae.parameters(), lr=lr or 5e-3/(m/2**14)**.5)]), momentum=.95); opt.train()
    schedule = get_linear_schedule_with_warmup(opt, warmup, steps) if optimizer=='adam' else None
    fired,first = torch.zeros(m, dtype=torch.bool),[True]
    def step(x):
        if first: sae.b_dec.data = x.mean(0); first.clear()
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, dead_mask=None, total_variance=(x-x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + 0.*out.auxk_loss + out.multi_topk_fvu/8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        opt.step(); opt.zero_grad()
        if schedule: schedule.step()
    step.model,step.optimizer = sae,opt
    return step

STEPS = dict(sae_lens=sae_lens, sae_lens_bf16=lambda *a: sae_lens(*a, autocast=True), dictionary_learning=dictionary_learning, overcomplete=overcomplete,
             sparsify=sparsify, sparsify_adam=lambda *a: sparsify(*a, optimizer='adam'))

def peer_steps(d, m, k, xs)->dict:
    "name -> one training step of a peer on the next of the batches `xs`; a line for those that cannot be imported"
    def arm(step):
        it = itertools.cycle(xs)
        return lambda: step(next(it))
    out = {}
    for nm,make in STEPS.items():
        try: out[nm] = arm(make(d, m, k, len(xs[0])))
        except ImportError as e: note(f'skipped: {nm}, {e}')
    return out

def make_environment(folder)->Path:
    "A new environment in `folder` that sees this one's packages; its Python"
    import venv
    venv.create(folder, with_pip=True)
    python = Path(folder)/('Scripts' if os.name=='nt' else 'bin')/Path(sys.executable).name
    at = subprocess.run([python, '-c', "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True).stdout.strip()
    (Path(at)/'ours.pth').write_text('\n'.join(dict.fromkeys(sysconfig.get_path(p) for p in ('purelib', 'platlib')))+'\n')
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', '--disable-pip-version-check', *PINS], check=True, stdout=sys.stderr)
    return python

def run_in(python, argv, script=__file__)->int:
    "A script of this folder in another environment; its exit status"
    root = Path(__file__).resolve().parent.parent
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')])), WANDB_MODE='disabled', PYTHONWARNINGS='ignore')
    return subprocess.run([str(python), script, '--here', *argv], env=env).returncode

def measure(a)->dict:
    "Seconds of every step, and each of theirs in units of our torch path and of our best one"
    from _arms import PATHS, data, missing
    from train_step import arms
    d,m,k,n = a.size
    for x in PATHS:
        if why := missing(x): note(f'skipped: {x}, {why}')
    batches = data('topk', d, n)
    mine,_ = arms('topk', [x for x in PATHS if not missing(x)], d, m, k, batches)
    theirs = peer_steps(d, m, k, [x for x,_ in batches])
    if not theirs: raise SystemExit('no peer could be imported: without --python an environment that has them is made')
    t = interleaved({**mine, **theirs}, a.rounds)
    best = min(mine, key=lambda p: statistics.median(t[p]))
    out = dict(size=' '.join(map(str, a.size)), path=best, peers=len({q.removesuffix('_bf16').removesuffix('_adam') for q in theirs}))
    for q in theirs: out |= {f'{q}_to_torch': ratio(t, q, 'torch'), f'{q}_to_best': ratio(t, q, best)}
    return out | {f'seconds_{q}': statistics.median(v) for q,v in t.items()}

if __name__=='__main__':
    p = argparse.ArgumentParser('peers', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', type=int, nargs=4, default=[768, 16384, 32, 4096], metavar=('D', 'M', 'K', 'B'), help='width, features, k, batch')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--python', help='of an environment that has the peers; a throwaway one unless given')
    p.add_argument('--here', action='store_true', help='in this environment, with the peers it has')
    a,rest = own_options(p)
    if a.here: report('peers', measure(a), rest)
    else:
        own = ['--size', *map(str, a.size), '--rounds', str(a.rounds), *rest]
        if a.python: sys.exit(run_in(a.python, own))
        with tempfile.TemporaryDirectory() as folder: status = run_in(make_environment(Path(folder)/'env'), own)
        sys.exit(status)
