"Seconds to `import sparsenb` in a fresh process, beyond an empty Python; and what it brings in"
from _common import report
import statistics, subprocess, sys, time

def seconds(code):
    t = time.perf_counter(); subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter()-t

empty,ours = [],[]
for _ in range(7): empty.append(seconds('pass')); ours.append(seconds('import sparsenb, sparsenb.core'))
heavy = subprocess.run([sys.executable, '-c', "import sys, sparsenb, sparsenb.core; print(len({'torch','transformers','transformer_lens','plotly','ipywidgets','numpy'} & set(sys.modules)))"], capture_output=True, text=True).stdout
report('import_time', dict(import_seconds=statistics.median(ours)-statistics.median(empty), process_seconds=statistics.median(ours), heavy_packages_imported=int(heavy)))
