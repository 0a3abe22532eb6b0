"What the benchmarks share: interleaved timing on one thread, and the results file"
import argparse, json, os, platform, statistics, sys, time
from datetime import date
from pathlib import Path

for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
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

def report(name:str, figures:dict, argv=None):
    "Print one table, or with --json one object; --keep appends it to results.jsonl with machine and date"
    p = argparse.ArgumentParser(name); p.add_argument('--json', action='store_true'); p.add_argument('--keep', action='store_true')
    a = p.parse_args(argv)
    figures = {k: round(v, 4) if isinstance(v, float) else v for k,v in figures.items()}
    if a.json: print(json.dumps(figures))
    else:
        print(f'{name} on {machine()}')
        for k,v in figures.items(): print(f'  {k:<36} {v}')
    if a.keep:
        with RESULTS.open('a') as f: f.write(json.dumps(dict(benchmark=name, machine=machine(), date=date.today().isoformat(), **figures))+'\n')
