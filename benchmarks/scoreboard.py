"Every dictionary on every testbed at the testbed's own L0, three seeds (two processes of one thread; about half an hour); --keep writes scoreboard.json"
from _common import machine, report
import argparse, json, time
from datetime import date
from pathlib import Path
from sparsenb.core import settings, write_text
from sparsenb.matching import over_seeds
from sparsenb.scoreboard import scoreboard

p = argparse.ArgumentParser('scoreboard')
p.add_argument('--steps', type=int, default=600, help='of training, for each cell')
p.add_argument('--seeds', type=int, default=3)
p.add_argument('--workers', type=int, default=2, help='processes of one thread')
p.add_argument('--dictionaries', nargs='*', default=[], help='all unless given'); p.add_argument('--testbeds', nargs='*', default=[], help='all unless given')
p.add_argument('--folder', type=Path, default=settings().cache/'bench-scoreboard', help='where finished cells lie: a stopped run goes on there; change it, or empty it, after a change of a method')
p.add_argument('--retry', action='store_true', help='do failed cells again')
a,rest = p.parse_known_args()

t = time.perf_counter()
board = scoreboard(a.dictionaries, a.testbeds, a.seeds, path=a.folder, steps=a.steps, background=True, workers=a.workers, retry=a.retry).wait()
minutes = (time.perf_counter()-t)/60
rows = board.rows()
SCORES = ('mmcs','recovered_0.9','recovered_rare','leak','precision','recall','infom','fvu','dead','l0')

def mean(rs, k): return [None if v!=v else float(f'{v:.4g}') for v in over_seeds([r.get(k) for r in rs])]
def pair(rs):
    "One line of the table: what, matched or not, then mean, low and high of each score"
    errors = sorted({r['error'] for r in rs if r['error']})
    return dict(dictionary=rs[0]['dictionary'], testbed=rs[0]['testbed'], matched=rs[0]['matched'], target_l0=mean(rs, 'target_l0')[0], **{k: mean(rs, k) for k in SCORES if mean(rs, k)[0] is not None},
                seconds=mean(rs, 'seconds')[0], searched=rs[0]['search_trainings'], **(dict(errors=errors) if errors else {}))

pairs = {}
for r in rows: pairs.setdefault((r['testbed'], r['dictionary']), []).append(r)
lines = [pair(rs) for rs in pairs.values()]
if '--keep' in rest: # one pair a line, so that changes can be read
    head = dict(machine=machine(), date=date.today().isoformat(), steps=a.steps, seeds=board.plan['seeds'], interval='95 % t over seeds', tolerance=board.plan['tolerance'])
    write_text(Path(__file__).parent/'scoreboard.json', json.dumps(head)[:-1]+', "pairs": [\n'+',\n'.join(map(json.dumps, lines))+'\n]}\n')
best = {b: max((l for l in lines if l['testbed']==b and l['matched'] and 'mmcs' in l), key=lambda l: l['mmcs'][0], default=None) for b in sorted({l['testbed'] for l in lines})}
report('scoreboard', dict(cells=len(rows), failed=sum(bool(r['error']) for r in rows), matched_pairs=sum(l['matched'] for l in lines), pairs=len(lines), minutes=minutes,
    training_minutes=sum(r['seconds'] or 0 for r in rows)/60, **{f'best_mmcs_{b}': f"{l['dictionary']} {l['mmcs'][0]:.3f}" for b,l in best.items() if l}), rest)
