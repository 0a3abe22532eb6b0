"Every neuron of a layer by itself: all regressions at once against scikit-learn's, one fit at a time; and a probe of many labels at once"
import argparse
from _common import interleaved, note, own_options, ratio, report
import numpy as np

def rows(n_tokens):
    "Activations of an MLP layer of the bundled model on Python text, and which tokens are inside brackets"
    from sparsenb.corpus import load_corpus
    from sparsenb.models import load_model
    from sparsenb.probe_sweep import _labelled, _read, _segments
    from types import SimpleNamespace
    m = load_model('stdlib-4l', device='cpu')
    parts = _segments(m, load_corpus('stdlib'), n_tokens, 128, 0)
    x = _read(m, parts, ['mlp_act.2'], 16, SimpleNamespace(update=lambda n: None))['mlp_act.2']
    l,_ = _labelled(m, parts, ('brackets', 'docstring', 'type'))
    return x[l.known],{t: l.where(t)[l.known] for t in ('brackets>=1', 'docstring', 'type=keyword')}

def one_at_a_time(x, y, new, y_new, tol): # as the paper's program: columns scaled, a fit and a score each
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    mean,width = x.mean(0),10*np.maximum(x.std(0), 1e-3)
    x,new,out = (x-mean)/width,(new-mean)/width,np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        est = LogisticRegression(class_weight='balanced', tol=tol, max_iter=1000).fit(x[:,j:j+1], y)
        out[j] = f1_score(y_new, est.predict(new[:,j:j+1]), zero_division=0)
    return out

def same_order(a, b): # of F1, and whether the best ten are the same
    from scipy.stats import spearmanr
    first = lambda v: np.argsort(-v, kind='stable')[:10].tolist()
    return dict(rank_correlation=float(spearmanr(a, b)[0]), most_apart=float(np.abs(a-b).max()), first_ten_equal=first(a)==first(b))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__); p.add_argument('--tokens', type=int, default=5000); p.add_argument('--rounds', type=int, default=5)
    a,rest = own_options(p)
    import torch; torch.set_num_threads(1)
    from sparsenb.core import probes
    from sparsenb.probes.k_sparse_probe import each_alone
    x,tasks = rows(a.tokens)
    cut,y = int(.7*len(x)),tasks['brackets>=1']
    fit,new = x[:cut].astype(np.float64),x[cut:].astype(np.float64)
    note(f'{fit.shape[0]:,} rows to fit, {len(new):,} to score, {fit.shape[1]:,} neurons')
    at_once = lambda: each_alone(fit, y[:cut]).rates(new, y[cut:])['f1']
    loop = lambda tol: one_at_a_time(fit, y[:cut], new, y[cut:], tol)
    order = same_order(loop(1e-10), at_once()) # where scikit-learn, too, goes to the minimum
    neurons = interleaved(dict(one=lambda: loop(1e-4), all=at_once), a.rounds)
    rng = np.random.default_rng(0)
    ys = [np.asarray(t[:cut], int) for t in tasks.values()]
    ys += [rng.permutation(v) for v in ys for _ in range(4)]
    sparse = probes['k_sparse_probe'](k=8, seed=0)
    many = interleaved(dict(one=lambda: [sparse.solve(fit, v) for v in ys], all=lambda: sparse.solve_many(fit, ys)), a.rounds)
    report('probes', dict(rows=cut, neurons=x.shape[1], sklearn_s=float(np.median(neurons['one'])), at_once_s=float(np.median(neurons['all'])), neurons_ratio=ratio(neurons, 'one', 'all'), **order,
        labels=len(ys), k_sparse_8_ratio=ratio(many, 'one', 'all'), rounds=a.rounds), rest)
