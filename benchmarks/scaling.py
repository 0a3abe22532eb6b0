"""Seconds and peak memory of a TopK training step as width, features, k and batch grow, one at a time around 256, 4,096, 32 and 4,096 (one thread, a process for each point); writes scaling.json and scaling.svg

Each point is a process of its own: libraries and compiled code are warmed on a small dictionary first, then a full one is trained for a few steps.
Seconds are process time, the median of the steps after the second; memory is the most that was held beyond libraries and data, so it contains weights
and Adam's moments. The dense reference ends where it would take too long. An exponent is the slope of log seconds over log size along all points.
scaling.json is written after each point; the same call goes on where it was broken, as long as machine, versions and rounds are the same. All points
together take some eight minutes of processor time.
"""
from _common import machine, note, own_options, report
import argparse, json, math, os, re
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
BASE = dict(d=256, m=4096, k=32, n=4096)
GROWN = dict(d=[64, 256, 1024], m=[1024, 4096, 16384, 65536], k=[8, 32, 128], n=[1024, 4096, 16384])
NAMES = dict(d='width of activations', m='features', k='k', n='rows in a batch')

FIGURES = ('seconds', 'product', 'peak', 'weights_and_moments')

def kept(file, head)->dict: # (path, d, m, k, n) -> figures
    "What an earlier call measured in the same circumstances"
    try: old = json.loads(file.read_text())
    except (OSError, ValueError): return {}
    if any(old.get(k)!=v for k,v in head.items() if k!='date'): note(f'{file} was measured otherwise, and is begun anew'); return {}
    return {(r['path'], *(BASE|{r['grown']: r['size']}).values()): {k: r[k] for k in FIGURES} for r in old['points']}

def write(file, head, rows):
    digits = lambda v: float(f'{v:.4g}') if isinstance(v, float) else v
    file.parent.mkdir(parents=True, exist_ok=True)
    tmp = file.with_suffix('.tmp')
    tmp.write_text(json.dumps(head)[:-1]+', "points": [\n'+',\n'.join(json.dumps({k: digits(v) for k,v in r.items()}) for r in rows)+'\n]}\n')
    os.replace(tmp, file)

def points(grown, paths, most_dense, rounds, known, done)->list[dict]:
    "One row for each path and size; what is `known` already, or shared by several dimensions, is not measured again. `done` is called with the rows after each"
    from _arms import in_a_child, missing
    for p in paths:
        if why := missing(p): note(f'skipped: {p}, {why}')
    paths,out = [p for p in paths if not missing(p)],[]
    for dim,sizes in grown.items():
        for v in sizes:
            for p in paths:
                how = BASE|{dim: v}
                if p=='dense' and how['d']*how['m']*how['n']>most_dense: continue
                key = (p, *how.values())
                if key not in known:
                    try: known[key] = {k: v for k,v in in_a_child(path=p, method='topk', rounds=rounds, **how).items() if k in FIGURES}
                    except RuntimeError as e: note(f'{p} at {how}: {e}'); continue
                    note(f"{p:<6} {how}: {known[key]['seconds']:.3f} s, {known[key]['peak']/2**20:.0f} MiB")
                    done(out+[dict(grown=dim, size=v, path=p)|known[key]])
                out.append(dict(grown=dim, size=v, path=p)|known[key])
    return out

def slope(rows, value)->float:
    "Least-squares slope of log value over log size"
    x,y = ([math.log(v) for v in c] for c in zip(*((r['size'], r[value]) for r in rows)))
    mx,my = sum(x)/len(x),sum(y)/len(y)
    return sum((a-mx)*(b-my) for a,b in zip(x, y))/sum((a-mx)**2 for a in x)

def picture(rows, width=360)->str:
    "Seconds on the left, memory on the right, a row for each dimension, as one SVG"
    from sparsenb.charts import Scatter
    parts,height = [],0
    for dim in dict.fromkeys(r['grown'] for r in rows):
        top = height
        for col,(value,unit,label) in enumerate((('seconds', 1, 'seconds a step'), ('peak', 2**20, 'MiB beyond the data'))):
            mine = [r for r in rows if r['grown']==dim]
            lines = {p: [(r['size'], r[value]/unit) for r in mine if r['path']==p] for p in dict.fromkeys(r['path'] for r in mine)}
            svg = Scatter(NAMES[dim], [r['size'] for r in mine], [r[value]/unit for r in mine], group=[r['path'] for r in mine], lines=lines, x_label=NAMES[dim], y_label=label, log_x=True, log_y=True).svg(width)
            head,body = svg.split('>', 1)
            high = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', head)[1])
            parts.append(re.sub(r' (width|height)="[^"]*"', '', head).replace('<svg', f'<svg x="{col*width}" y="{top}" width="{width}" height="{high:g}"', 1)+'>'+body); height = max(height, top+high)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2*width} {height:g}" width="{2*width}">\n'+'\n'.join(parts)+'\n</svg>\n'

if __name__=='__main__':
    p = argparse.ArgumentParser('scaling')
    p.add_argument('--paths', type=lambda s: s.split(','), default=['torch', 'numba', 'dense'])
    p.add_argument('--dims', type=lambda s: s.split(','), default=list(GROWN), help=f"of {', '.join(f'{k} ({v})' for k,v in NAMES.items())}")
    p.add_argument('--most', type=float, default=math.inf, help='largest size of each dimension')
    p.add_argument('--most-dense', type=float, default=2e10, help='width times features times rows up to which the dense reference is run')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out', type=Path, default=HERE, help='folder of scaling.json and scaling.svg')
    a,rest = own_options(p)
    head = dict(machine=machine(), date=date.today().isoformat(), versions={k: version(k) for k in ('sparsenb', 'torch', 'numpy')}, base=BASE, rounds=a.rounds)
    file = a.out/'scaling.json'
    rows = points({k: [v for v in GROWN[k] if v<=a.most] for k in a.dims}, a.paths, a.most_dense, a.rounds, kept(file, head), lambda rows: write(file, head, rows))
    write(file, head, rows)
    (a.out/'scaling.svg').write_text(picture(rows))
    out = dict(points=len(rows))
    for dim in a.dims:
        for path in dict.fromkeys(r['path'] for r in rows):
            mine = [r for r in rows if r['grown']==dim and r['path']==path]
            if len(mine)>1: out |= {f'{value}_exponent_{dim}_{path}': slope(mine, value) for value in ('seconds', 'peak')}
    report('scaling', out, rest)
