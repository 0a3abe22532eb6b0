"The dashboard in a real browser: milliseconds from a key to the drawn card, bytes of the first payload; a dictionary of 16,384 features of the bundled model"
import json, os, statistics, subprocess, sys, tempfile
from _common import own_options, report
import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE,TOKENS,D_SAE = 'resid_post.2', 100_000, 16_384

def prepared(folder):
    "An index of a dictionary that is not trained: its codes are as many and as wide"
    from sparsenb.core import dictionaries
    from sparsenb.index import FeatureIndex
    from sparsenb.models import load_model
    from sparsenb.store import ActivationStore
    m = load_model('stdlib-4l')
    store = ActivationStore.collect(m, 'stdlib', SITE, n_tokens=TOKENS, path=folder/'acts')
    return FeatureIndex.build(dictionaries['topk'](store.d_in, D_SAE, k=32, seed=0), store, m, path=folder/'index')

CASE = '''
import json, sys
sys.path.insert(0, {browser!r})
from test_dashboard import FC, SENT, SWITCH, side_closed

def test_latency(notebook):
    nb = notebook(["from sparsenb.index import FeatureIndex; from sparsenb.core import widgets", "b = FeatureIndex.open({index!r}).dashboard()\\nb"], size=(1400, 1000))
    side_closed(nb); nb.run_all(300)
    nb.wait_for_selector(FC+' .k.p', state='attached')
    nb.python(SENT)
    first,widgets = int(nb.python('payload()')),int(nb.python('comms()'))
    nb.evaluate(SWITCH, 10)
    took = nb.evaluate(SWITCH, {n})
    open({out!r}, 'w').write(json.dumps(dict(took=took, payload=first, widgets=widgets, widgets_after=int(nb.python('comms()')))))
'''

def measured(n, folder):
    "Switches in JupyterLab, with the fixtures of the browser tests"
    index,out = prepared(folder),folder/'took.json'
    case = ROOT/'tests'/'browser'/'test_bench_dashboard.py' # beside its fixtures, for as long as it runs
    try:
        case.write_text(CASE.format(browser=str(case.parent), index=str(index.path), out=str(out), n=n))
        r = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', case], cwd=ROOT, capture_output=True, text=True)
    finally: case.unlink(missing_ok=True)
    if not out.exists(): sys.exit(r.stdout[-3000:])
    got = json.loads(out.read_text()); took = sorted(got.pop('took'))
    return dict(features=D_SAE, switches=n, median_ms=statistics.median(took), p95_ms=took[int(.95*n)], largest_ms=took[-1], load=os.getloadavg()[0], payload_kB=got['payload']/1e3, widgets=got['widgets'], widgets_after=got['widgets_after'])

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__); p.add_argument('--switches', type=int, default=50)
    a,rest = own_options(p)
    with tempfile.TemporaryDirectory() as d: report('dashboard', measured(a.switches, Path(d)), rest)
