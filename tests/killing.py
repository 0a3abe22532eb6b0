"Programs that are killed at random or chosen moments, and run again until they end"
import contextlib, os, random, re, signal, subprocess, sys, textwrap, time, traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent

def seeded(seed=None):
    "A generator for moments; its seed is printed, which pytest shows on failure, and KILL_SEED sets it"
    seed = int(os.environ.get('KILL_SEED', seed if seed is not None else random.SystemRandom().randrange(2**31)))
    print(f'KILL_SEED={seed}')
    return random.Random(seed)

def _python(code, *args, **kw):
    code = f'import sys; sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE)!r}]\n' + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1', 'HF_DEACTIVATE_ASYNC_LOAD':'1'}, **kw) # threads that load a model fail now and then in a forked child (torch: invalid thread pool)

def killed_once(module, call, folder, between):
    "Run `call`, whose callback prints steps, in a process that is killed at a random step in `between`; then once more, to the end"
    rnd,kills = seeded(),0
    for at in (rnd.randrange(*between), None):
        p = _python(f'from {module} import *\n{call}', folder)
        for line in p.stdout:
            if at and int(line)>=at:
                time.sleep(rnd.random()*.02) # anywhere: in a step, or while a checkpoint or the log is being written
                p.send_signal(signal.SIGKILL); kills += 1
                break
        p.wait(); p.stdout.close()
    assert kills==1 and p.returncode==0

def serve(names):
    "Fork a child for each line of code on the standard input; tell its number, and its end"
    for line in sys.stdin:
        if not (pid := os.fork()):
            print('pid', os.getpid(), flush=True)
            try: exec(line, names)
            except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        print('end', os.waitstatus_to_exitcode(status), flush=True)

class Children:
    "Runs code in children of a process that has imported a module: each begins within milliseconds, alone in its process as if freshly started"
    def __init__(self, module,
        first='pass', # code that is run before the first child, for what is slow to import
    ): self.kills,self.module,self.first = 0,module,first

    def __enter__(self):
        self.p = _python(f'from {self.module} import *\n{self.first}\nfrom killing import serve\nserve(globals())', stdin=subprocess.PIPE)
        return self

    def __exit__(self, *_):
        self.p.stdin.close(); self.p.wait(); self.p.stdout.close()

    def run(self, call,  # one line of code; what it prints are its signs of life
        lines=None,      # kill it after so many
        pause=0.,        # and so many seconds
        sight=None,      # or as soon as a file or folder that waits for its name is seen in this folder; a lock's is not meant
    )->list:             # what it printed; None if it was killed
        "Run `call` to its end or its death; AssertionError if it fails by itself"
        self.p.stdin.write(call+'\n'); self.p.stdin.flush()
        pid,said = int(self.p.stdout.readline().split()[1]),[]
        def kill():
            with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        if sight: self._watch(sight, pid, kill)
        while True:
            if lines is not None and len(said)>=lines: time.sleep(pause); kill(); lines = None
            line = self.p.stdout.readline()
            if line.startswith('end'): break
            said.append(line.strip())
        status = int(line.split()[1])
        assert status in (0, -signal.SIGKILL), f'{call} ended with {status}'
        self.kills += status!=0
        return said if status==0 else None

    def _watch(self, folder, pid, kill):
        while True:
            with contextlib.suppress(FileNotFoundError):
                if any(re.match(r'\.tmp-\d+-', e.name) for e in os.scandir(folder)): return kill()
            try: os.kill(pid, 0)
            except ProcessLookupError: return

    def until_done(self, call, rnd, kills, lines=(1, 40), pause=.02, between=None)->list: # what the last one printed
        "Kill `call` at random so many times, then let it end; `between` is called after each kill and gives the code to go on with"
        done = 0
        while done<kills:
            said = self.run(call, rnd.randrange(*lines), rnd.random()*pause)
            if said is not None: return said # it was faster
            done += 1
            if between: call = between(call)
        return self.run(call)
