"Collecting that is killed at random, alone and by ranks, and writers that meet: the same files at the end, or one clear error"
import json, multiprocessing, os, random, signal, socket, subprocess, sys, time
import pytest, torch
from pathlib import Path
from sparsenb import shards, store as st, writer
from sparsenb.locks import Lock, _began
from sparsenb.store import ActivationStore
from test_store import TEXT, all_rows, files, how, model, tiny  # noqa: F401

torch.set_num_threads(1)
LONG = [(n, t*3) for n,t in TEXT]
fork = multiprocessing.get_context('fork')

def kw(path, **more): return how(path, shard_rows=300, **more)

@pytest.fixture(scope='module')
def whole(model, tmp_path_factory): return ActivationStore.collect(model, LONG, **kw(tmp_path_factory.mktemp('w')/'acts'))

def work(path, rank=0, world=1, slow=0.):
    "Collect in a process of its own, in which running the model, writing a column and adding a line take their time"
    def later(owner, name, s):
        real = getattr(owner, name)
        def f(*a, **k): time.sleep(s); return real(*a, **k)
        setattr(owner, name, f)
    for owner,name,s in ((st, 'capture', slow), (shards, '_bytes', slow/5), (writer, '_pack', slow)): later(owner, name, s)
    torch.set_num_threads(1)
    ActivationStore.collect(tiny(), LONG, **kw(path), rank=rank, world=world)

def start(*args, **kws):
    p = fork.Process(target=work, args=args, kwargs=kws); p.start()
    return p

def kill(p):
    p.kill(); p.join()
    return p.exitcode==-signal.SIGKILL

def ends(p): p.join(120); assert p.exitcode==0

def same(path, whole):
    s = ActivationStore.open(path)
    assert s.fingerprint==whole.fingerprint and files(path)==files(whole.path)  # every byte, and nothing left over
    for a,b in zip(s.batches(500, n_tokens=5000, seed=1), whole.batches(500, n_tokens=5000, seed=1)): assert torch.equal(a, b)

def test_twenty_kills_then_the_same_bits(whole, tmp_path):
    "Killed at random times, most while shards and manifest are being written; then once more, to the end"
    seed = random.SystemRandom().randrange(1<<30)
    rnd,kills = random.Random(seed),[]
    for i in range(24):
        p = start(tmp_path/f'acts{i%2}', slow=.02)
        time.sleep(.1+rnd.random()*.3)
        kills.append(kill(p) and len(list((tmp_path/f'acts{i%2}').glob('*.safetensors'))))
    assert sum(k is not False for k in kills)>=20, f'{kills} (seed {seed})'
    for i in range(2):
        ends(start(tmp_path/f'acts{i}'))
        try: same(tmp_path/f'acts{i}', whole)
        except AssertionError: print('seed', seed); raise

@pytest.mark.parametrize('world', [1, 2, 3])
def test_ranks_make_the_same_store(whole, tmp_path, world):
    for p in [start(tmp_path/'acts', r, world, slow=.002) for r in range(world)]: ends(p)
    same(tmp_path/'acts', whole)

def test_killed_ranks_and_another_world(whole, tmp_path):
    "Three begin, are killed at different times; two go on, one is killed; one alone finishes"
    seed = random.SystemRandom().randrange(1<<30)
    rnd,kills,path = random.Random(seed),0,tmp_path/'acts'
    for world in (3, 3, 2):
        ps = [start(path, r, world, slow=.04) for r in range(world)]
        for p in ps[1:]:
            time.sleep(.15+rnd.random()*.3)
            kills += kill(p)
        if world==3: kills += kill(ps[0])
        else: ends(ps[0])
    assert kills>=5, seed
    with pytest.raises((ValueError, FileNotFoundError), match='unfinished|no store'): ActivationStore.open(path)
    ends(start(path))
    try: same(path, whole)
    except AssertionError: print('seed', seed); raise

def test_each_rank_makes_its_shards_and_the_last_finishes(model, whole, tmp_path):
    assert ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank=1, world=2) is None
    made = sorted(int(p.stem) for p in (tmp_path/'a').glob('*.safetensors'))
    n = -(-len(whole)//300)
    assert made==list(range(1, n, 2)) and (tmp_path/'a'/'manifest-0001.jsonl').exists()
    with pytest.raises(ValueError, match='is unfinished: [1-9]'): ActivationStore.open(tmp_path/'a')
    assert ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank=1, world=2) is None  # nothing is left for it
    s = ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank=0, world=2)
    assert s.fingerprint==whole.fingerprint
    same(tmp_path/'a', whole)

def test_the_model_runs_for_a_ranks_own_shards(model, whole, tmp_path, monkeypatch):
    calls,real = [],st.capture
    monkeypatch.setattr(st, 'capture', lambda *a, **k: calls.append(1) or real(*a, **k))
    for r in (0, 1): ActivationStore.collect(model, LONG, **kw(tmp_path/'a', n_tokens=3000), rank=r, world=2)
    both = len(calls); calls.clear()
    ActivationStore.collect(model, LONG, **kw(tmp_path/'b', n_tokens=3000))
    assert files(tmp_path/'a')==files(tmp_path/'b')
    assert both<=len(calls)+10  # an input that reaches into two of the ten shards is run twice

def test_killed_while_joining(model, whole, tmp_path):
    "The joined manifest is there, the parts are not yet gone"
    for r in (1, 0): ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank=r, world=2)
    (tmp_path/'a'/'manifest-0001.jsonl').write_bytes((tmp_path/'a'/'manifest.jsonl').read_bytes()[:5000])
    assert ActivationStore.open(tmp_path/'a').fingerprint==whole.fingerprint
    assert ActivationStore.collect(model, LONG, **kw(tmp_path/'a')).fingerprint==whole.fingerprint
    same(tmp_path/'a', whole)

def test_rank_from_the_environment(model, whole, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='RANK and WORLD_SIZE is not set'): ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank='env')
    monkeypatch.setenv('RANK', '1'); monkeypatch.setenv('WORLD_SIZE', '2')
    assert ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank='env') is None
    monkeypatch.setenv('RANK', '0')
    assert ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank='env').fingerprint==whole.fingerprint

@pytest.mark.parametrize('rank,world,says', [(-1, 2, 'rank must be from 0 to 1 in a world of 2, got -1'), (2, 2, 'rank must be from 0 to 1'), (0, 0, 'world must be at least 1'), (.5, 2, 'rank must be a whole number'), (0, '2', 'world must be a whole number')])
def test_bad_ranks(model, tmp_path, rank, world, says):
    with pytest.raises(ValueError, match=says): ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank=rank, world=world)
    assert not (tmp_path/'a').exists()

def test_a_rank_with_other_arguments_is_refused(model, tmp_path):
    ActivationStore.collect(model, LONG, **kw(tmp_path/'a'), rank=1, world=2)
    before = files(tmp_path/'a')
    with pytest.raises(ValueError, match='holds another store: seq_len is 32, asked for 16'): ActivationStore.collect(model, LONG, **kw(tmp_path/'a')|dict(seq_len=16), rank=0, world=2)
    with pytest.raises(ValueError, match='holds another store: corpus is'): ActivationStore.collect(model, TEXT, **kw(tmp_path/'a'), rank=0, world=3)
    assert files(tmp_path/'a')==before

# -- writers that meet ------------------------------------------------------------------------------------------------

def until(what):
    end = time.time()+60
    while not what(): assert time.time()<end; time.sleep(.01)

def test_two_processes_cannot_write_one_store(model, whole, tmp_path):
    p = start(tmp_path/'acts', slow=.1)
    until((tmp_path/'acts'/'00000.safetensors').exists)
    for more in ({}, dict(rank=1, world=2)):
        with pytest.raises(RuntimeError, match=rf"another process is writing {tmp_path/'acts'}: process {p.pid} on {socket.gethostname()}, since 20.*; wait for it"):
            ActivationStore.collect(model, LONG, **kw(tmp_path/'acts'), **more)
    assert kill(p)
    assert (tmp_path/'acts'/'writer-0000.lock').exists()  # of a process that is no more: taken over
    ActivationStore.collect(model, LONG, **kw(tmp_path/'acts'))
    same(tmp_path/'acts', whole)

def test_of_many_at_once_one_writes(whole, tmp_path):
    "Six processes, started together on the lock of a dead one: one collects, five are told who does"
    assert kill(stale := start(tmp_path/'acts', slow=.2)) or stale
    ps = [start(tmp_path/'acts', slow=.01) for _ in range(6)]
    for p in ps: p.join(120)
    assert sum(p.exitcode==0 for p in ps)>=1 and all(p.exitcode in (0, 1) for p in ps)
    same(tmp_path/'acts', whole)

def test_whose_lock_is_stale(tmp_path):
    with Lock(tmp_path, 'writer') as l: me = json.loads(l.file.read_text())
    assert me['pid']==os.getpid() and me['began']==_began(os.getpid()) and me['host']==socket.gethostname()
    f = tmp_path/'writer.lock'
    def held(**kws):
        f.write_text(json.dumps(me|kws))
        try:
            with Lock(tmp_path, 'writer'): return False
        except RuntimeError: return True
        finally: f.unlink(missing_ok=True)
    parent = dict(pid=os.getppid(), began=_began(os.getppid()))
    assert held(**parent) and not held() and held(host='elsewhere', pid=1) and held(host='elsewhere', pid=2**22+1)
    assert not held(pid=2**22+1) and not held(began=me['began']-1)  # nobody has the number; somebody else has it now
    f.write_text('{'); assert Lock(tmp_path, 'writer').__enter__().__exit__() is None

@pytest.mark.parametrize('job,count', [('SLURM_JOB_ID','SLURM_RESTART_COUNT'), ('TORCHELASTIC_RUN_ID','TORCHELASTIC_RESTART_COUNT')])
def test_a_job_that_is_started_again_follows_its_earlier_start(job, count, tmp_path, monkeypatch):
    "On whatever machine that was; another job's, or one of the same start, stays"
    monkeypatch.setenv(job, '77'); monkeypatch.setenv(count, '1')
    with Lock(tmp_path, 'writer') as l: me = json.loads(l.file.read_text())
    assert me['starts'][f'{job} 77']==1
    def held(starts):
        (tmp_path/'writer.lock').write_text(json.dumps(me|dict(host='elsewhere', starts=starts)))
        try:
            with Lock(tmp_path, 'writer'): return False
        except RuntimeError: return True
    assert not held({f'{job} 77': 0}) and held({f'{job} 77': 1}) and held({f'{job} 78': 0}) and held({})
