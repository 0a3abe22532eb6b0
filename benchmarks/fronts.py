"L0 against FVU and recovered loss on the bundled model: every dictionary on 2M activations of resid_post.2, some at several L0 (one thread; about an hour and a half); --keep writes fronts.json"
from _common import machine, report
import argparse, json, time
from datetime import date
from pathlib import Path
from sparsenb.all import *
from sparsenb.core import settings, write_text

p = argparse.ArgumentParser('fronts')
p.add_argument('--site', default='resid_post.2')
p.add_argument('--d-sae', type=int, default=1024)
p.add_argument('--n-tokens', type=int, default=2_000_000, help='activations of training, for each point')
p.add_argument('--l0', type=int, default=32, help='of the table with every dictionary')
p.add_argument('--fronts', nargs='*', default='topk batch_topk k_sparse'.split(), help='dictionaries that are also trained at the other L0')
p.add_argument('--l0s', type=int, nargs='*', default=[8, 16, 32, 64])
p.add_argument('--without', nargs='*', default=[], help='dictionaries to leave out')
p.add_argument('--folder', type=Path, default=settings().cache/'bench-fronts', help='where finished points lie: a stopped run goes on there')
a,rest = p.parse_known_args()

model = load_model('stdlib-4l')
store = ActivationStore.collect(model, load_corpus('stdlib'), site=a.site, n_tokens=1_000_000, path=a.folder/'acts')
t = time.perf_counter()
kw = dict(d_sae=a.d_sae, n_tokens=a.n_tokens, path=a.folder)
slow = ['nmf', 'matching_pursuit'] # last
names = [n for n in dictionaries.names() if n not in slow]+slow
every = fronts([n for n in names if n not in a.without], store, model, l0s=[a.l0], **kw)
some = fronts(a.fronts, store, model, l0s=a.l0s, **kw) if a.fronts else None
seen,points = set(),[]
for q in every.points + (some.points if some else []):
    if (k := (q['dictionary'], q['value'])) not in seen: seen.add(k); points.append(q)
digits = lambda v: float(f'{v:.4g}') if isinstance(v, float) else v
if '--keep' in rest: # one point a line, so that changes can be read
    head = dict(machine=machine(), date=date.today().isoformat(), where=every.where, **every.plan)
    line = lambda q: dict(dictionary=q['dictionary'], argument=q['argument'], value=digits(q['value']), error=q['error'], seconds=digits(q.get('seconds')), dead_in_training=digits(q.get('dead_in_training')),
                          **{k: [digits(q['scores'][k][e]) for e in ('value','lo','hi')] for k in ('l0','fvu','ce_recovered','dead','shrinkage') if k in q.get('scores', {})})
    write_text(Path(__file__).parent/'fronts.json', json.dumps(head)[:-1]+', "points": [\n'+',\n'.join(json.dumps(line(q)) for q in points)+'\n]}\n')
ok = [q for q in points if not q['error']]
report('fronts', dict(points=len(points), failed=len(points)-len(ok), minutes=(time.perf_counter()-t)/60, training_minutes=sum(q['seconds'] for q in ok)/60, fvu_topk=next((q['scores']['fvu']['value'] for q in ok if q['dictionary']=='topk'), None)), rest)
