"""Concept space of the blurred circles over colour signals and seeds (one thread; about a minute a run): writes concept_shapes.json and concept_shapes.svg

    sparsenb bench concept_shapes --seeds 3

Asked of each run: when each concept is learned by the trained class that has it alone, and by the withheld class; near which trained class the withheld
path turns; from which step the withheld class comes when asked naively, by a pushed prompt, or by a shift inside, and whether that passes the controls
of hidden_capability. Means over seeds, ± the half width of the 95 % t interval; a time that was never reached counts as such and is no number.
"""
from _common import machine, note, own_options, report
import argparse, json, math, re, statistics
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776} # of the mean of so many seeds

def one(a, colour, seed):
    "One training and what was read from it, as numbers"
    from sparsenb.core import testbeds
    bed = testbeds['concept_shapes'](colour=colour, size=a.size, n_steps=a.n_steps, seed=seed)
    run = bed.train()
    s,c,held = bed.concept_space(run, a.n),bed.capability(run, alphas=a.alphas, n=a.n),bed.withheld
    ph = s.phases(held)
    short = lambda v: [round(float(x), 3) for x in v]
    return dict(colour=colour, size=a.size, seed=seed, signals=bed.signals(), steps=s.steps.tolist(), concepts=s.concepts, paths={k: [short(c) for c in s[k].T] for k in s.classes},
        trained=bed.times(s), withheld=bed.times(s, held), corner=ph.corner, detour=ph.detour, angle=ph.turn and ph.turn.angle, step=ph.turn and int(s.steps[ph.turn.index]),
        ways=c.times, by_gain=c.gain_times, verdicts=c.verdicts, controls=c.controls, progress={k: short(c.space.progress[:,i].min(1)) for i,k in enumerate(c.space.classes)})

def mean(v):
    "Mean and half width, and of how many"
    v = [x for x in v if x is not None]
    return '–' if not v else f'{statistics.mean(v):.4g}'+(f' ± {T95[len(v)]*statistics.stdev(v)/math.sqrt(len(v)):.2g}' if len(v) in T95 else '')+f' (n={len(v)})'

def first(r, kind):
    "The earliest step at which ways of one kind work"
    t = [v for k,v in r['ways'].items() if v is not None and k.startswith(kind)]
    return min(t, default=None)

def figures(runs):
    "What is claimed, and in how many runs it is so"
    out = dict(runs=len(runs), seeds=len({r['seed'] for r in runs}), n_steps=max(r['steps'][-1] for r in runs))
    by = {c: [r for r in runs if r['colour']==c] for c in sorted({r['colour'] for r in runs})}
    for c,rs in by.items():
        out |= {f'colour_{c:g}_signals': ', '.join(f'{k} {v:.2f}' for k,v in rs[0]['signals'].items()),
            **{f'colour_{c:g}_{k}_learned': mean([r['trained'][k] for r in rs]) for k in rs[0]['trained']}, **{f'colour_{c:g}_{k}_learned_withheld': mean([r['withheld'][k] for r in rs]) for k in rs[0]['withheld']},
            f'colour_{c:g}_turns_near': ', '.join(str(r['corner']) for r in rs), f'colour_{c:g}_detour': mean([r['detour'] for r in rs]),
            f'colour_{c:g}_naive': mean([first(r, 'naive') for r in rs]), f'colour_{c:g}_shift_inside': mean([first(r, 'over: mix') for r in rs]), f'colour_{c:g}_over_prompt': mean([min((t for t in (first(r, 'over: colour'), first(r, 'over: size')) if t is not None), default=None) for r in rs]),
            f'colour_{c:g}_pass_controls': sum('hidden' in r['verdicts'].values() for r in rs)}
    pairs = [(p['trained']['colour'], q['trained']['colour']) for s in {r['seed'] for r in runs} for p in runs for q in runs if p['seed']==q['seed']==s and p['colour']>q['colour']]
    strong = lambda r: max(r['signals'], key=r['signals'].get)
    out['colour_earlier_at_higher_signal'] = f"{sum(a is not None and (b is None or a<b) for a,b in pairs)} of {len(pairs)} pairs"
    never = math.inf
    out['stronger_learned_first'] = f"{sum((r['trained'][strong(r)] or never)<min(v or never for k,v in r['trained'].items() if k!=strong(r)) for r in runs)} of {len(runs)}"
    out['turns_near_the_stronger'] = f"{sum(r['corner']==dict(colour='10', size='01')[strong(r)] for r in runs)} of {len(runs)}"
    early = lambda r,kind: first(r, kind) is not None and (first(r, 'naive') is None or first(r, kind)<first(r, 'naive'))
    return out|{'shift_inside_before_naive': f"{sum(early(r, 'over: mix') for r in runs)} of {len(runs)}", 'over_prompt_before_naive': f"{sum(early(r, 'over: colour') or early(r, 'over: size') for r in runs)} of {len(runs)}", 'controls_passed': f"{sum('hidden' in r['verdicts'].values() for r in runs)} of {len(runs)}"}

def asked(runs, colour):
    "How near each way of asking comes, over steps: the pushes of the weaker concept at one colour"
    from sparsenb.charts import Scatter
    import numpy as np
    mine = [r for r in runs if r['colour']==colour]
    weak,steps = min(mine[0]['signals'], key=mine[0]['signals'].get),mine[0]['steps']
    ways = {w.removeprefix('over: '): np.mean([r['progress'][w] for r in mine], 0) for w in mine[0]['progress'] if w=='naive' or weak in w}
    return f"Asked for the withheld class, colour signal {mine[0]['signals']['colour']:.1f} (mean of {len(mine)} seeds)", Scatter('', *zip(*[(s, v) for c in ways.values() for s,v in zip(steps[1::2], c[1::2])]), group=[w for w,c in ways.items() for _ in c[1::2]],
        lines={w: np.stack([steps[1:], c[1:]], 1) for w,c in ways.items()}, x_label='step', y_label='nearness of what is furthest off', log_x=True)

def picture(runs, width=480, top=26):
    "Paths of the withheld class, learned times by signal, and ways of asking over steps"
    from sparsenb.charts import Scatter
    from sparsenb.trajectory import smooth
    import numpy as np
    at = [(f"{r['signals']['colour']:.1f}/{r['seed']}", smooth(np.array(r['paths']['11']).T, 1.), f"colour signal {r['signals']['colour']:.1f}") for r in sorted(runs, key=lambda r: r['colour'])]
    dots = [(*q, g) for _,p,g in at for q in p[::3]]+[(x, y, 'trained classes') for x,y in ((0, 0), (0, 1), (1, 0))]+[(1, 1, 'withheld class')]
    paths = Scatter('', *zip(*[d[:2] for d in dots]), group=[d[2] for d in dots], lines={n: p for n,p,_ in at}, x_label='colour: red to blue', y_label='size: large to small')
    t = [(r['signals']['colour'], max(v, 1), f'{k}, {who}') for r in runs for who,of in (('trained', 'trained'), ('withheld', 'withheld')) for k,v in r[of].items() if v is not None]
    times = Scatter('', *zip(*[x[:2] for x in t]), group=[x[2] for x in t], x_label='colour signal', y_label='step', log_x=True, log_y=True)
    colours = sorted({r['colour'] for r in runs})
    size = statistics.mean(r['signals']['size'] for r in runs)
    panels = [(f'The withheld class, signal of colour/seed; signal of size {size:.1f}', paths), ('When a concept is learned', times), asked(runs, colours[0]), asked(runs, colours[-1])]
    parts,y,tall = [],0,0
    for i,(title,v) in enumerate(panels):
        head,body = v.svg(width).split('>', 1)
        w,high = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head).groups())
        x = i%2*(width+20)
        parts.append(f'<text x="{x}" y="{y+16}" font-family="sans-serif" font-size="13" font-weight="600" fill="#888">{title}</text>'+re.sub(r' (width|height)="[^"]*"', '', head).replace('<svg', f'<svg x="{x}" y="{y+top}" width="{width}" height="{high*width/w:g}"', 1)+'>'+body)
        tall = max(high*width/w, tall) if i%2 else high*width/w
        y += (tall+top+16)*(i%2)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2*width+20} {y:g}" width="{2*width+20}">\n'+'\n'.join(parts)+'\n</svg>\n'

def main(a, rest):
    import os, torch
    os.environ.setdefault('SPARSENB_PROGRESS', 'off'); torch.set_num_threads(1)
    f = a.out/'concept_shapes.json'
    runs = json.loads(f.read_text())['runs'] if a.resume and f.exists() else []
    for colour in a.colours:
        for seed in range(a.seeds):
            if any(r['colour']==colour and r['seed']==seed for r in runs): continue
            runs.append(one(a, colour, seed)); r = runs[-1]
            note(f"colour {colour:g}, seed {seed}: trained {r['trained']}, withheld {r['withheld']}, turns near {r['corner']}, ends at {[c[-1] for c in r['paths']['11']]}; {r['ways']}")
            f.write_text(json.dumps(dict(machine=machine(), date=date.today().isoformat(), runs=runs), indent=None, separators=(',', ':')).replace('{"colour":', '\n{"colour":')+'\n')
    (a.out/'concept_shapes.svg').write_text(picture(runs))
    report('concept_shapes', figures(runs), rest)

if __name__=='__main__':
    p = argparse.ArgumentParser('concept_shapes', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--colours', type=float, nargs='+', default=[.1, .3, .8], help='differences of red and blue'); p.add_argument('--size', type=float, default=.2); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--n-steps', type=int, default=1200); p.add_argument('--alphas', type=float, nargs='+', default=[.5, 1.], help='strengths of the shift inside'); p.add_argument('--n', type=int, default=16, help='pictures of each class or way at each checkpoint')
    p.add_argument('--resume', action='store_true', help='keep the runs that are in concept_shapes.json'); p.add_argument('--out', type=Path, default=HERE, help='folder of concept_shapes.json and concept_shapes.svg')
    main(*own_options(p))
