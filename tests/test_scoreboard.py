"Scoreboard and fronts: L0 really is matched, a killed board goes on, a failing method is a row, same seed same bits"
import csv, json, os, re, signal, subprocess, sys, time
import numpy as np, pytest, torch
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple
from sparsenb.core import UnknownName, dictionaries, testbeds
from sparsenb.fronts import fronts
from sparsenb.metrics import evaluate
from sparsenb.matching import entry, knob, next_value, over_seeds, search, target_l0, trial
from sparsenb.scoreboard import Scoreboard, scoreboard

torch.set_num_threads(1)
quick = dict(steps=12, batch_size=64)
untimed = lambda rows: [{k: v for k,v in r.items() if 'seconds' not in k} for r in rows]

class Breaks(dictionaries['topk']):
    "Raises on the second seed"
    name = 'breaks'
    def step(self, x, y=None):
        if self.cfg['seed']==1: raise FloatingPointError('loss is nan')
        return super().step(x, y)

class Plain(dictionaries['relu']):
    "Nothing to set its L0 with"
    name,sparsity = 'plain',None

class Rows(NamedTuple): x:torch.Tensor

class Untold:
    "Rows without a truth, only to be rebuilt"
    name = 'untold'
    def __init__(self, seed=0): self.seed = seed
    def sample(self, n): return Rows(torch.randn(n, 6, generator=torch.Generator().manual_seed(self.seed+10)))
    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed+20)
        while True: yield torch.randn(64, 6, generator=g)
    def score(self, d): return evaluate(d, self.sample(500).x, n_tokens=None, n_boot=50, seed=self.seed, progress=False)

# ---- the interval ----

def test_interval_closed_form():
    v = [.5, .7, .9, .6]
    m,lo,hi = over_seeds(v)
    half = 3.182446305284263*np.std(v, ddof=1)/2
    assert m==pytest.approx(.675) and lo==pytest.approx(m-half) and hi==pytest.approx(m+half)
    m,lo,hi = over_seeds([.3, None])
    assert m==.3 and lo!=lo and hi!=hi

def test_interval_holds_the_truth_as_often_as_it_says():
    x = np.random.default_rng(0).normal(2, 1, (4000, 3))
    inside = np.mean([lo<=2<=hi for _,lo,hi in map(over_seeds, x)])
    assert abs(inside-.95)<.015

# ---- matching ----

@pytest.mark.parametrize('sign,law', [(-1, lambda v: 30*v**-.7), (-1, lambda v: 128/(1+(v/.3)**3)), (+1, lambda v: min(128, 40*v**1.4)), (-1, lambda v: 0 if v>2 else 9/v)])
def test_search_meets_the_target(sign, law):
    seen = []
    def run(v): seen.append(v); return law(v)
    v = search(run, 1., 4.5, sign, .05)
    assert abs(law(v)/4.5-1)<.1 and len(seen)<=5

def test_next_value_stays_near_what_is_known():
    assert next_value([], 4, 2., -1)==2
    assert next_value([(1., 100.), (2., 99.9)], 4, 1., -1)<=2*8+1e-9
    assert 1<next_value([(1., 8.), (4., 2.)], 4, 1., -1)<4

def test_knob_reads_the_class_and_refuses_nonsense():
    assert knob(dictionaries['topk'])==('k', 1, 32, True) and knob(dictionaries['relu'])[:2]==('l1_coef', -1) and knob(Plain) is None
    class Odd(dictionaries['topk']): sparsity = ('kk', 1)
    with pytest.raises(TypeError, match="names 'kk'"): knob(Odd)
    class Method(dictionaries['topk']):
        def sparsity(self): pass
    with pytest.raises(TypeError, match='should be'): knob(Method)
    for name in dictionaries: knob(dictionaries[name])

def test_l0_is_that_of_the_truth(tmp_path):
    "A number is set, a weight is found; without either the L0 is shown and marked"
    b = scoreboard(['topk', 'relu', Plain, ('topk', dict(k=9))], ['superposition'], path=tmp_path, steps=250, batch_size=256)
    rows = {(r['dictionary'], r['seed']): r for r in b.rows()}
    assert len(rows)==12 and not any(r['error'] for r in rows.values())
    for nm in ('topk', 'relu'):
        assert rows[nm,0]['matched'] and abs(np.mean([rows[nm,s]['l0_ratio'] for s in range(3)])-1)<=.1, [rows[nm,s]['l0_ratio'] for s in range(3)]
    assert rows['topk',0]['value']==4 and rows['topk',0]['how']=='set' and rows['relu',0]['how']=='searched' and 1<=rows['relu',0]['search_trainings']<=5
    assert len({rows['relu',s]['value'] for s in range(3)})==1
    assert rows['plain',0]['how']=='none' and rows['topk(k=9)',0]['how']=='given' and rows['topk(k=9)',0]['value']==9
    t = b.table('mmcs')
    shown = dict((r[0], r[1]) for r in t.rows)
    assert isinstance(shown['topk'], tuple) and isinstance(shown['relu'], tuple)
    for nm in ('plain', 'topk(k=9)'): # never hidden
        assert not rows[nm,0]['matched'] and f"L0 {np.mean([rows[nm,s]['l0'] for s in range(3)]):.3g}" in shown[nm]
    assert shown['topk']==pytest.approx(over_seeds([rows['topk',s]['mmcs'] for s in range(3)])) and '2 of 4 pairs' in t.caption
    assert 'plain *' in b.picture('mmcs').rows and b.picture('l0_ratio').z[0,0]==pytest.approx(np.mean([rows['topk',s]['l0_ratio'] for s in range(3)]))
    assert b.cost().rows[1][6]==rows['relu',0]['search_trainings']
    trained = json.loads(b.file('cells', b.jobs[1]).read_text())
    assert any(trained['train_l0']==s['l0'] for s in trained['trials']), 'seed 0 of a searched method is what the search trained'

def test_pairs_are_met_through_d_out(tmp_path):
    b = scoreboard(['topk'], ['sparse_map'], path=tmp_path, **quick)
    assert not any(r['error'] for r in b.rows()) and {'read', 'mmcs'}<=set(b.scores())

def test_rows_that_are_scored_are_not_trained_on(monkeypatch, tmp_path):
    bed,seen = testbeds['superposition'],[]
    real = dictionaries['topk'].step
    monkeypatch.setattr(dictionaries['topk'], 'step', lambda self, x, y=None: (seen.append(x.clone()), real(self, x, y))[1])
    job = dict(dictionary=entry(('topk', dict(k=4)), dictionaries), testbed=entry('superposition', testbeds), seed=3, expansion=1., **quick)
    trial(job)
    trained = {r.numpy().tobytes() for x in seen for r in x}
    scored = bed(seed=3).sample(8192).x
    assert len(seen)==12 and not any(r.numpy().tobytes() in trained for r in scored if r.any())
    assert seen[0][0].numpy().tobytes()==next(iter(bed(seed=3)))[0].numpy().tobytes()

def test_a_testbed_without_a_truth_is_met_at_the_l0_that_is_given(tmp_path):
    b = scoreboard(['topk'], [Untold], path=tmp_path, l0=3, **quick)
    assert target_l0(entry(Untold, testbeds)) is None
    for r in b.rows(): assert r['error'] is None and r['value']==3 and r['target_l0']==3 and r['matched']
    assert b.cells[0]['d_sae']==24 and 'mmcs' not in b.scores() and '3 of 3' in b._repr_html_()

# ---- plans ----

def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    p = tmp_path/'b'
    for kw,kind,msg in ((dict(dictionaries=['topkk']), UnknownName, "did you mean 'topk'"), (dict(testbeds=['tre']), UnknownName, "did you mean 'tree'"), (dict(seeds=2), ValueError, 'at least 3'), (dict(seeds=[1, 1, 2]), ValueError, 'at least 3'),
                        (dict(dictionaries=['topk', 'topk']), ValueError, 'twice'), (dict(dictionaries='topk'), TypeError, 'a list of dictionaries'), (dict(dictionaries=[('topk', dict(k=torch.tensor(3)))]), ValueError, 'must be numbers'),
                        (dict(testbeds=[dictionaries['topk']]), ValueError, 'does not fit'), (dict(steps=0), ValueError, 'steps'), (dict(tolerance=0), ValueError, 'tolerance'), (dict(background=True, executor=1), ValueError, 'not both')):
        with pytest.raises(kind, match=msg): scoreboard(**(dict(dictionaries=['topk'], testbeds=['tree'], path=p)|kw))
        assert not p.exists()
    monkeypatch.setattr(Plain, '__module__', '__main__')
    monkeypatch.setattr(sys.modules['__main__'], 'Plain', Plain, raising=False)
    with pytest.raises(ValueError, match='plain: defined in this notebook or script'): scoreboard([Plain], ['tree'], path=p, background=True)
    assert not p.exists()
    with pytest.raises(FileNotFoundError, match='no scoreboard in'): Scoreboard.open(tmp_path)

def test_an_empty_list_is_everything(monkeypatch, tmp_path):
    monkeypatch.setattr(Scoreboard, 'work', lambda self: None)
    b = scoreboard(path=tmp_path)
    assert [e['label'] for e in b.plan['dictionaries']]==dictionaries.names()
    assert {'superposition', 'tree', 'sparse_map'}<={e['label'] for e in b.plan['testbeds']}<=set(testbeds.names()) and len(b.jobs)==3*len(b.plan['dictionaries'])*len(b.plan['testbeds'])
    assert b.status()['done']==0 and b.table('mmcs').rows and '0 of' in repr(b)

# ---- running ----

def test_same_seed_same_bits_wherever_it_runs(tmp_path):
    "Here, in a process of the background, and through an executor"
    ask = [['topk', 'k_sparse'], ['superposition', 'tree']]
    here = scoreboard(*ask, path=tmp_path/'a', **quick)
    away = scoreboard(*ask, path=tmp_path/'b', background=True, workers=2, **quick)
    assert away.wait(300) is away and away.busy()==[] and away.status()['done']==12
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as e: there = scoreboard(*ask, path=tmp_path/'c', executor=e, **quick)
    assert len(here.rows())==12 and untimed(here.rows())==untimed(away.rows())==untimed(there.rows())
    assert len({r['mmcs'] for r in here.rows()})==12
    with pytest.raises(TypeError, match='threads'): scoreboard(*ask, path=tmp_path/'d', executor=ThreadPoolExecutor(1), **quick)

def test_a_killed_board_goes_on_and_ends_with_the_same_rows(tmp_path):
    ask = [['topk', 'relu'], ['superposition']]
    whole = scoreboard(*ask, path=tmp_path/'a', **quick)
    code = f"from sparsenb.scoreboard import scoreboard; scoreboard({ask[0]}, {ask[1]}, path={str(tmp_path/'b')!r}, **{quick})"
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ|dict(OMP_NUM_THREADS='1'))
    t0 = time.monotonic()
    while not list((tmp_path/'b').glob('cells/[!.]*.json')) and p.poll() is None and time.monotonic()-t0<200: time.sleep(.005)
    p.send_signal(signal.SIGKILL); p.wait()
    b = Scoreboard.open(tmp_path/'b')
    left = len(b.missing())
    assert 0<left<6, 'it was not killed in the middle'
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path/'b').rglob('cells/topk*.json')}
    (tmp_path/'b'/'cells'/'.tmp-1-topk').write_text('{') # what a writer that was killed may leave
    again = scoreboard(*ask, path=tmp_path/'b', **quick)
    assert untimed(again.rows())==untimed(whole.rows()) and all(f.stat().st_mtime_ns==t for f,t in kept.items())

def test_workers_that_die_are_noticed(tmp_path):
    b = scoreboard(['topk'], ['superposition'], path=tmp_path, steps=100_000, background=True)
    assert b.busy()==[0]
    with pytest.raises(TimeoutError, match='3 of 3 cells are missing'): b.wait(.2)
    os.kill(b._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match='no worker is left, and 3 of 3'): b.wait()
    b.start()
    other = scoreboard(['topk'], ['superposition'], path=tmp_path, background=True, **quick) # another plan in the same folder does not wait for the first
    assert other.wait(300).status()['done']==3 and b.busy()==[0]
    b.stop()
    assert b.busy()==[] and b.status()['done']==0

def test_a_failing_dictionary_is_a_row(tmp_path):
    b = scoreboard([Breaks, 'topk'], ['superposition'], path=tmp_path, **quick)
    rows = [r for r in b.rows() if r['dictionary']=='breaks']
    assert [r['error'] for r in rows]==[None, 'FloatingPointError: loss is nan', None] and b.status()==dict(cells=6, done=6, failed=1, trials=0, workers=0)
    assert '2 of 3 seeds' in b.table('mmcs').rows[0][1] and b.cost().rows[0][1:3]==(2, 1) and 'FloatingPointError' in b.table().html()
    good = {p: p.stat().st_mtime_ns for p in tmp_path.glob('cells/*') if not json.loads(p.read_text())['error']}
    again = scoreboard([Breaks, 'topk'], ['superposition'], path=tmp_path, retry=True, **quick)
    assert again.status()['failed']==1 and all(p.stat().st_mtime_ns==t for p,t in good.items())
    with pytest.raises(UnknownName, match="did you mean 'mmcs'"): b.table('mcs')

def test_files(tmp_path):
    b = scoreboard(['topk'], ['tree'], path=tmp_path/'b', **quick)
    rows = list(csv.DictReader(b.to_csv(tmp_path/'x.csv').open()))
    assert [float(r['mmcs']) for r in rows]==[r['mmcs'] for r in b.rows()]
    o = json.loads(b.to_json(tmp_path/'x.json').read_text())
    assert o['plan']==b.plan and o['rows']==b.rows() and Scoreboard.open(tmp_path/'b').rows()==b.rows()
    assert 'mmcs' in b._repr_html_() and b.table().column('testbed')==('tree',)*3

# ---- fronts ----

def test_fronts(tmp_path, monkeypatch):
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    m = load_model('stdlib-4l', device='cpu')
    docs = [f'def f{i}(x):\n    "Add {i}"\n    return x + {i}\n'*3 for i in range(60)]
    acts,other = (ActivationStore.collect(m, docs[i::2], site='resid_post.2', n_tokens=1200, path=tmp_path/str(i)) for i in range(2))
    small = dict(l0s=(4, 8), d_sae=64, n_tokens=2048, batch_size=256, eval_tokens=500, n_sequences=4, seed=0, path=tmp_path/'f')
    a = fronts([Breaks, 'topk', 'relu'], acts, m, other, **(small|dict(seed=1)))
    rows = a.rows()
    assert [r['error'] for r in rows[:2]]==['FloatingPointError: loss is nan']*2
    assert [r['value'] for r in rows[2:4]]==[4, 8] and all(0<r['fvu']<1.5 and 'ce_recovered' in r and 0<=r['dead']<=1 for r in rows[2:]) and rows[2]['l0']<rows[3]['l0']<=8
    assert 2<=len(rows[4:])<=3 and len(a.table().rows)==len(rows) and len(a.picture('ce_recovered').x)==len(rows)-2
    monkeypatch.setattr('sparsenb.fronts.fit', None) # nothing is trained anew
    assert fronts([Breaks, 'topk', 'relu'], acts, m, other, **(small|dict(seed=1))).points==a.points
    with pytest.raises(ValueError, match='rows that are trained on'): fronts(['topk'], acts, m, acts, **small)
    with pytest.raises(UnknownName, match="did you mean 'fvu'"): a.picture('fvuu')

# ---- the report ----

def test_report_runs_what_is_missing_and_opens_the_rest(tmp_path, monkeypatch):
    from sparsenb.report import run_report
    monkeypatch.chdir(tmp_path)
    params = dict(dictionaries=['topk', 'k_sparse'], testbeds=['superposition', 'tree'], steps=12, workers=0, n_tokens=3000, train_tokens=2048, d_sae=64, l0s=[4, 8], batch_size=256, eval_tokens=500, n_sequences=2)
    there = scoreboard(['k_sparse'], ['superposition', 'tree'], path='runs/scoreboard', steps=12)
    was = {p: p.stat().st_mtime_ns for p in (there.file('cells', j) for j in there.jobs)}
    html = run_report('dictionary_scoreboard', params, tmp_path/'r.html').read_text()
    assert len(was)==6 and all(p.stat().st_mtime_ns==t for p,t in was.items())
    assert len(list((tmp_path/'runs/scoreboard/cells').glob('*.json')))==12 and len(list((tmp_path/'runs/scoreboard/fronts').glob('*.json')))==4
    for said in ('mmcs by dictionary and testbed', 'What it cost', 'ce_recovered of resid_post.2', 'Every cell', '12 of 12 cells'): assert said in html, said
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
