"What the benchmarks share: interleaved timing on one thread, and the results file"
import argparse, json, os, platform, statistics, sys, time
from datetime import date
from pathlib import Path

for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'): os.environ.setdefault(k, '1')
RESULTS = Path(__file__).parent/'results.jsonl'

def machine()->str:
    "The processor's name and the number of cores"
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '') if Path('/proc/cpuinfo').exists() else platform.processor()
    return f'{cpu or platform.machine()}, {os.cpu_count()} cores'

def interleaved(arms:dict, rounds:int=7, clock=time.process_time)->dict:
    "Seconds of each arm in each round; the arms take turns, so that a busy machine slows them alike"
    for f in arms.values(): f()  # warm
    out = {n: [] for n in arms}
    for _ in range(rounds):
        for n,f in arms.items():
            t = clock(); f(); out[n].append(clock()-t)
    return out

def ratio(times:dict, a:str, b:str)->float:
    "Median over the rounds of a/b"
    return statistics.median(x/y for x,y in zip(times[a], times[b]))

def note(text:str):
    "A line for the reader, where it does not disturb what is printed as JSON"
    print(text, file=sys.stderr, flush=True)

def own_options(p:argparse.ArgumentParser, argv=None)->tuple:
    "A script's own options, and those left for `report`; -h shows both"
    p.epilog = 'also: --json prints one object; --keep appends it to results.jsonl'
    return p.parse_known_args(argv)

def resident()->int:
    "Bytes of this process that are in memory now, after giving back what is free"
    import ctypes, gc, re
    gc.collect()
    try: ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError): pass # another C library
    return 1024*int(re.search(r'VmRSS:\s*(\d+)', Path('/proc/self/status').read_text())[1])

def peak_since(start:bool=False)->int:
    "Bytes in memory at most since the last call with `start`, which also forgets what was before; raises OSError where the system does not tell"
    import re
    if start: Path('/proc/self/clear_refs').write_text('5')
    return 1024*int(re.search(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[1])

def report(name:str, figures:dict, argv=None):
    "Print one table, or with --json one object; --keep appends it to results.jsonl with machine and date"
    p = argparse.ArgumentParser(name); p.add_argument('--json', action='store_true'); p.add_argument('--keep', action='store_true')
    a = p.parse_args(argv)
    figures = {k: (round(v, 4) if abs(v)>=.01 else float(f'{v:.3g}')) if isinstance(v, float) else v for k,v in figures.items()}
    if a.json: print(json.dumps(figures))
    else:
        print(f'{name} on {machine()}')
        for k,v in figures.items(): print(f'  {k:<36} {v}')
    if a.keep:
        with RESULTS.open('a') as f: f.write(json.dumps(dict(benchmark=name, machine=machine(), date=date.today().isoformat(), **figures))+'\n')
