"A program that is killed at a step it prints, and then run to its end"
import os, random, signal, subprocess, sys, textwrap, time
from pathlib import Path

def killed_once(module, call, folder, between):
    "Run `call`, whose callback prints steps, in a process that is killed at a random step in `between`; then once more, to the end"
    code = textwrap.dedent(f'''
        import sys; sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
        from {module} import *
        {call}
    ''')
    rnd,kills = random.Random(),0
    for at in (rnd.randrange(*between), None):
        p = subprocess.Popen([sys.executable, '-c', code, str(folder)], stdout=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
        for line in p.stdout:
            if at and int(line)>=at:
                time.sleep(rnd.random()*.02) # anywhere: in a step, or while a checkpoint or the log is being written
                p.send_signal(signal.SIGKILL); kills += 1
                break
        p.wait(); p.stdout.close()
    assert kills==1 and p.returncode==0
