"A sweep of probes made by hand: scores that are known, directions through the bundled model's width"
import numpy as np
from sparsenb.probe_sweep import ProbeSweep
from sparsenb.scores import Score

TASKS = ('</script><img src=x onerror="window.pwned=1">', 'docstring', 'brackets')

def toy_sweep(layers=(0, 2), sites=('embed', 'resid_post'), tasks=TASKS, d=256, seed=0):
    "The last task is a count; the score of a cell is told by its place: .5 + .04 layer + .02 task + .01 probe"
    g,scores,readings = np.random.default_rng(seed),{},{}
    def score(name, v): return Score(float(v), float(v)-.05, float(v)+.03, 400, 0, f'{name}/1', '9 groups')
    for l,s in [(None, 'embed')]*('embed' in sites)+[(l, s) for s in sites if s!='embed' for l in layers]:
        for t,task in enumerate(tasks):
            count = t==len(tasks)-1
            for p,name in enumerate(('logistic', 'mlp', 'ridge')):
                if count!=(name=='ridge'): continue
                v,h = .5+.04*(l or 0)+.02*t+.01*p,'r2' if count else 'accuracy'
                scores[l,s,task,name] = {h: score(h, v), f'control_{h}': score('c', .6), 'selectivity': score('selectivity', v-.6), f'untrained_{h}': score('u', .4), 'above_untrained': score('a', v-.4)}|({} if count else dict(codelength=Score(90., float('nan'), float('nan'), 400, 0, 'codelength/1')))
                w,b = g.normal(size=d)/16,g.normal()
                if name!='mlp': readings[l,s,task,name] = dict(weight=w[None] if count else np.stack([-w, w])/2, bias=np.array([b]) if count else np.array([-b, b])/2, pattern=w/np.linalg.norm(w))
    every = tuple(l for l in (None, *layers) if l is not None or 'embed' in sites)
    return ProbeSweep('stdlib-4l', every, tuple(sites), tuple(tasks), ('logistic', 'mlp', 'ridge'), scores, readings, dict(classes={t: None if t==tasks[-1] else [False, True] for t in tasks}, probes=dict(logistic=dict(seed=0), mlp=dict(seed=0), ridge=dict(seed=0)), n_test=400, test_docs=9, seed=0), np.arange(4))
