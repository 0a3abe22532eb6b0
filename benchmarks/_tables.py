"Writes the tables of README.md between their markers, and the pictures, from scoreboard.json and fronts.json: python benchmarks/_tables.py"
import json, re
from pathlib import Path
from sparsenb.charts import Heatmap, Scatter

HERE = Path(__file__).parent
ORDER = 'superposition correlated records tree stretched sparse_map tokfsm factors digits'.split()

def interval(v, digits=2): return '' if v is None or v[0] is None else f'{v[0]:.{digits}f}' + ('' if v[1] is None else f' ± {(v[2]-v[1])/2:.{digits}f}')
def rows(*cells): return '\n'.join('| '+' | '.join(map(str, r))+' |' for r in cells)
def lines(head, body): return rows(head, ['---']+['---:']*(len(head)-1), *body)

def board():
    "MMCS where there are true directions, FVU everywhere; a star where the L0 is not the testbed's"
    info = json.loads((HERE/'scoreboard.json').read_text())
    at = {(p['dictionary'], p['testbed']): p for p in info['pairs']}
    beds = [b for b in ORDER if any(k[1]==b for k in at)]
    with_truth = [b for b in beds if any('mmcs' in p for k,p in at.items() if k[1]==b)]
    mean = lambda d,b,s: at[d,b][s][0] if s in at.get((d, b), {}) else float('nan')
    order = sorted({k[0] for k in at}, key=lambda d: (-sum(m for b in with_truth if (m := mean(d, b, 'mmcs'))==m), d))
    def cell(d, b, s):
        p = at.get((d, b), {})
        if p.get('errors'): return 'refused'
        return '–' if s not in p else interval(p[s]) + ('' if p['matched'] else f"\\* (L0 {p['l0'][0]:.3g})" if 'l0' in p else '\\*')
    target = lambda b: f"{b} (L0 {next(p['target_l0'] for k,p in at.items() if k[1]==b and p.get('target_l0')):.3g})"
    out = []
    for s,title,bs in (('mmcs', 'MMCS: mean over true features of the largest cosine with a learned one', with_truth), ('fvu', 'FVU: share of the variance missed', beds)):
        out.append(f"**{title}**\n\n" + lines(['', *map(target, bs)], [[d, *(cell(d, b, s) for b in bs)] for d in order]))
    seconds = {d: [p['seconds'][0] if isinstance(p['seconds'], list) else p['seconds'] for k,p in at.items() if k[0]==d and p.get('seconds')] for d in order}
    star = lambda d: d + (' *' if any(not at[d, b]['matched'] for b in with_truth if (d, b) in at) else '')
    (HERE/'scoreboard.svg').write_text(Heatmap('MMCS', [[mean(d, b, 'mmcs') for b in with_truth] for d in order], [star(d) for d in order], with_truth, row_label='MMCS, mean of seeds (* on some testbed at another L0)', lo=0, hi=1).svg(760)+'\n')
    head = f"{info['steps']} steps, {len(info['seeds'])} seeds, {info['interval']} (the half width stands behind ±); {info['machine']}, {info['date']}. L0 within {info['tolerance']:.0%} of the truth, else \\*."
    cost = lines(['', 'seconds a training'], [[d, f'{sum(v)/len(v):.1f}'] for d,v in seconds.items() if v])
    return head+'\n\n'+'\n\n'.join(out), cost

def real():
    "Every point on the bundled model"
    info = json.loads((HERE/'fronts.json').read_text())
    ok = [p for p in info['points'] if not p['error']]
    body = sorted(ok, key=lambda p: (p['dictionary'], p['l0'][0]))
    t = lines(['', 'setting', 'L0', 'FVU', 'CE recovered', 'dead', 'seconds'], [[p['dictionary'], f"{p['argument']} {p['value']}" if p['argument'] else '', f"{p['l0'][0]:.1f}", interval(p['fvu'], 3), interval(p['ce_recovered'], 3), f"{p['dead'][0]:.1%}", f"{p['seconds']:.0f}"] for p in body])
    ok = [p for p in ok if 4<=p['l0'][0]<=250 and p['dictionary'] not in ('transcoder', 'skip_transcoder', 'crosscoder')] # others are too far off, or another by name
    names = sorted({p['dictionary'] for p in ok})
    fronts = {n: sorted((p['l0'][0], p['fvu'][0]) for p in ok if p['dictionary']==n) for n in names}
    (HERE/'fronts.svg').write_text(Scatter('FVU over L0', [p['l0'][0] for p in ok], [p['fvu'][0] for p in ok], group=[p['dictionary'] for p in ok], lines={n: l for n,l in fronts.items() if len(l)>2}, x_label='L0', y_label='FVU', log_x=True, log_y=True).svg(760)+'\n')
    return f"{info['where']}, {info['d_sae']:,} features, {info['n_tokens']:,} activations of training, seed {info['seed']}; scores on {info['eval_tokens']:,} held-out rows, CE on {info['n_sequences']} sequences; {info['machine']}, {info['date']}.\n\n{t}"

if __name__=='__main__':
    page = (HERE/'README.md').read_text()
    table,cost = board()
    for nm,text in dict(scoreboard=table, cost=cost, fronts=real()).items():
        page,n = re.subn(rf'(<!-- {nm} -->\n).*?(<!-- end -->)', lambda m: f'{m[1]}{text}\n{m[2]}', page, flags=re.S)
        assert n==1, f'README.md has {n} places for {nm}'
    (HERE/'README.md').write_text(page)
