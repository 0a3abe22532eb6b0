"Checkpoints: what stays, what another version wrote, what is damaged, and disks that are full or closed"
import contextlib, errno, json, os, shutil, tempfile, time, warnings
from pathlib import Path
from types import SimpleNamespace as N
import pytest, torch
import sparsenb.core as core, sparsenb.train as train
from sparsenb.core import dictionaries
from sparsenb.dictionary import load_dictionary
from sparsenb.many import fit_many
from sparsenb.train import fit
from killing import Children
from test_train import At, data, interrupt, same, topk

torch.set_num_threads(1)
plan = dict(n_tokens=60*64, batch_size=64, checkpoint_every=10, log_every=7)
def go(path=None, d=None, **kw):
    d = d or topk()
    return fit(d, data(), path=path, **{**plan, **kw})
def halt(path, step=45, **kw):
    with pytest.raises(KeyboardInterrupt): go(path, callbacks=[At(step, interrupt)], **kw)
def steps(paths): return [int(p.name[5:]) for p in paths]

@pytest.fixture(scope='module')
def whole():
    d = topk(); go(d=d)
    return d

@pytest.fixture
def cut(tmp_path):
    "A run that was broken at step 45, with checkpoints of steps 30 and 40"
    halt(tmp_path/'run')
    return tmp_path/'run'

def rewrite(folder, seal=True, **kw):
    "Change run.json of a checkpoint, with a checksum that fits"
    meta = json.loads((folder/'run.json').read_text()) | kw
    old = meta.pop('seal')
    core.write_json(folder/'run.json', meta | dict(seal=train._seal(meta) if seal else old))

def reshape(folder, change):
    "Change the tensors of a checkpoint, with checksums that fit"
    state = train.load_file(folder/'state.safetensors')
    change(state)
    train.save_file(state, folder/'state.safetensors')
    rewrite(folder, crc32=core.crc32(folder/'state.safetensors'))

# ---- milestones ----

def test_milestones_stay_and_open_as_dictionaries(tmp_path, whole):
    x,d,seen = data(),topk(),{}
    watch = [At(s, lambda s=s: seen.update({s: {k: v.clone() for k,v in d.state_dict().items()}})) for s in (5, 20, 33)]
    run = go(tmp_path, d, milestones=[33, 5, 20, 5, 60], callbacks=watch)
    same(whole, d) # writing them changes nothing
    assert steps(run.milestones)==[5, 20, 33, 60] and steps(run.checkpoints)==[5, 20, 33, 50, 60]
    for s in (5, 20, 33):
        m = run.milestone(s)
        assert not m.training and m.cfg==d.cfg and m.provenance['steps']==s and m.provenance['training']['batch_size']==64 and m.n_seen==64*s
        for k,v in m.state_dict().items(): assert torch.equal(v, seen[s][k]), (s, k)
    assert torch.equal(run.milestone(60).encode(x), load_dictionary(tmp_path/'final').encode(x)) and d.training
    with pytest.raises(ValueError, match='no milestone at step 50: there are 5, 20, 33, 60'): run.milestone(50)
    run = go(tmp_path) # they stay though this call does not name them
    assert steps(run.milestones)==[5, 20, 33, 60]
    (run.milestones[1]/'run.json').unlink()
    with pytest.raises(ValueError, match='step-00000020 is damaged'): run.milestone(20)

def test_milestones_and_resume(tmp_path, whole):
    "Broken after some were written; the next call asks for others"
    halt(tmp_path, milestones=[4, 12, 40])
    d = topk()
    with pytest.warns(UserWarning, match=r'no checkpoint of step 2, 25 was kept, and .* goes on from step 40'): run = go(tmp_path, d, milestones=[2, 25, 30, 51])
    same(whole, d)
    assert steps(run.milestones)==[4, 12, 30, 40, 51] # that of step 30 was still there
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        go(tmp_path, milestones=[4, 51])

def test_a_damaged_milestone_is_made_again(tmp_path):
    halt(tmp_path, milestones=[40])
    (tmp_path/'step-00000040'/'state.safetensors').unlink()
    with pytest.warns(UserWarning, match='is damaged'): run = go(tmp_path)
    assert steps(run.milestones)==[40] and run.milestone(40).n_seen==64*40

def test_a_logarithmic_schedule(tmp_path):
    fresh = topk()
    run = go(tmp_path, milestones='log')
    assert steps(run.milestones)==[0, 1, 2, 4, 8, 16, 32, 60]
    fresh.init_from(train.TensorSource(data(), 64, 0, 8).stats)
    same(fresh, run.milestone(0))
    assert train._schedule('log', 64, 'x')=={0, 1, 2, 4, 8, 16, 32, 64} and train._schedule('log', 1, 'x')=={0, 1} and train._schedule(None, 9, None)==set()

def test_milestones_of_several(tmp_path):
    mk = lambda: [topk(), dictionaries['matryoshka'](8, 24, k=3, n_sampled=3)]
    ds = mk(); runs = fit_many(ds, data(), **plan, path=tmp_path, milestones=[3, 20])
    for d,run in zip(ds, runs):
        alone = dictionaries[d.name](**d.cfg); fit(alone, data(), **plan); same(alone, d)
        assert steps(run.milestones)==[3, 20] and run.milestone(3).name==d.name
    with pytest.raises(ValueError, match='a path'): fit_many(mk(), data(), **plan, milestones=[3])

@pytest.mark.parametrize('bad,match', [([61], "each 0 to 60; got 61"), ([-1], 'got -1'), ([1.5], r'got 1\.5'), (7, 'a list of steps.*got 7'), ('linear', "'log' or a list of steps.*got 'linear'"), ([True], 'got True')])
def test_milestones_that_cannot_be(tmp_path, bad, match):
    d = topk()
    with pytest.raises(ValueError, match=match): go(tmp_path/'run', d, milestones=bad)
    assert d.n_seen==0 and not (tmp_path/'run').exists()
    with pytest.raises(ValueError, match='milestones are checkpoints: give a path'): go(milestones='log')

# ---- another version ----

def test_a_checkpoint_of_another_version_is_read_and_noted(cut, whole):
    for p in cut.glob('step-*'): rewrite(p, version='0.0.9', versions={'0': 'sparsenb 0.0.9, torch 2.0, cpu'})
    d = topk(); run = go(cut, d)
    same(whole, d)
    now = train._here(d)
    assert load_dictionary(cut/'final').provenance['versions']=={'0': 'sparsenb 0.0.9, torch 2.0, cpu', '40': now}
    go(cut)
    assert json.loads((run.checkpoints[-1]/'run.json').read_text())['versions']=={'0': 'sparsenb 0.0.9, torch 2.0, cpu', '40': now}
    assert whole.provenance['versions']=={'0': now} and 'torch' in now and core.__name__.split('.')[0] in now

def test_another_format_is_refused_and_left_as_it_is(cut):
    newest = cut/'step-00000040'
    for kw,match in ((dict(format=99, version='9.9'), r'step-00000040 was written by sparsenb 9\.9 in checkpoint format 99; this is sparsenb .*, format 1: finish the run with that version, or choose another path'),):
        rewrite(newest, **kw)
        before = {p: p.read_bytes() for p in cut.rglob('*') if p.is_file()}
        with pytest.raises(ValueError, match=match): go(cut)
        assert before=={p: p.read_bytes() for p in cut.rglob('*') if p.is_file()}
    meta = json.loads((newest/'run.json').read_text())
    for k in ('format','version','seal'): del meta[k] # as it was before there was a format
    core.write_json(newest/'run.json', meta)
    with pytest.raises(ValueError, match=r'an older one.* in checkpoint format 0'): go(cut)

@pytest.mark.parametrize('change,match', [
    (lambda s: s.update({'model.gamma': s.pop('model.b_enc')}), 'missing there: model.b_enc; unknown here: model.gamma'),
    (lambda s: s.update({'model.b_enc': torch.zeros(5)}), r'model.b_enc: \[5\] there, \[32\] now'),
    (lambda s: s.pop('adam.b_enc.exp_avg_sq'), 'missing there: adam.b_enc.exp_avg_sq'),
    (lambda s: s.update({'adam.W_enc.max_exp_avg_sq': torch.zeros(3)}), 'unknown here: adam.W_enc.max_exp_avg_sq'),
    (lambda s: s.pop('window'), 'missing there: window'),
    (lambda s: s.update({'loader.at': torch.zeros(3)}), 'unknown here: loader'),
    (lambda s: s.update({'engine.guess': torch.zeros(3)}), 'unknown here: engine')])
def test_other_names_or_shapes_are_told_with_the_version_that_wrote_them(cut, change, match, monkeypatch):
    newest = cut/'step-00000040'
    reshape(newest, change)
    rewrite(newest, version='0.0.9')
    d = topk()
    if 'engine' in match: monkeypatch.setattr(train, 'hasattr', lambda o, k: k!='load_extra_state' and hasattr(o, k), raising=False)
    with pytest.raises(ValueError, match=rf'step-00000040 was written by sparsenb 0\.0\.9 in checkpoint format 1; .*\({match}\); finish the run with that version'): go(cut, d)
    assert d.n_seen==0 and newest.exists() and not (cut/'final').exists()

def test_other_trained_parameters_are_refused(cut):
    d = topk(); d.W_dec.requires_grad_(False)
    with pytest.raises(ValueError, match=r"unknown here: adam\.W_dec\.exp_avg, .*trained: \[.*'W_dec'.*\] there"): go(cut, d)

def test_state_of_an_engine_is_kept():
    "An optimiser may have more to remember than torch's: whatever `extra_state` gives comes back through `load_extra_state`"
    class Opt(torch.optim.Adam):
        probes = torch.tensor([3, 4])
        def extra_state(self): return dict(probes=self.probes)
        def load_extra_state(self, state): self.got = state
    d = topk()
    trained = lambda d: [p for p in d.parameters() if p.requires_grad]
    run = N(dictionary=d, opt=Opt(trained(d)), window=torch.ones(3))
    d.step(data(64)).loss.backward(); run.opt.step()
    state = train._state(run)
    e = topk(); again = N(dictionary=e, opt=Opt(trained(e)), window=None)
    train._restore(again, state)
    assert torch.equal(again.opt.got['probes'], Opt.probes) and [*again.opt.got]==['probes'] and torch.equal(again.window, run.window)
    same(d, e)
    for p,q in zip(trained(d), trained(e)):
        assert again.opt.state[q].keys()==run.opt.state[p].keys()
        for k,v in run.opt.state[p].items():
            w = again.opt.state[q][k]
            assert torch.equal(v, w) and v.dtype==w.dtype and v.stride()==w.stride() and w.data_ptr()!=v.data_ptr()

# ---- damage ----

def harmed(path):
    "Which damages there are, by name: what each does to a checkpoint's folder"
    w,j = path/'state.safetensors',path/'run.json'
    def flip(p, at):
        b = bytearray(p.read_bytes()); b[int(len(b)*at)] ^= 1; p.write_bytes(b)
    def digit():
        t = j.read_text(); j.write_text(t.replace('"step": 40', '"step": 41', 1))
    return dict(no_state=w.unlink, no_run=j.unlink, empty=lambda: (w.unlink(), j.unlink()), cut_run=lambda: j.write_text(j.read_text()[:-40]), cut_state=lambda: os.truncate(w, w.stat().st_size-100),
                no_bytes=lambda: os.truncate(w, 0), head=lambda: flip(w, .001), middle=lambda: flip(w, .5), tail=lambda: flip(w, .9999), digit=digit,
                settings=lambda: rewrite(path, seal=False, settings={}), list=lambda: j.write_text('[1, 2]'), bytes=lambda: j.write_bytes(b'\xff\xfe'))

@pytest.mark.parametrize('harm', [*harmed(Path('.'))])
def test_each_damage_costs_one_checkpoint(cut, whole, harm):
    harmed(cut/'step-00000040')[harm]()
    d,begun = topk(),[]
    class First(train.Callback):
        def before_fit(self, run): begun.append(run.step)
    with pytest.warns(UserWarning, match='step-00000040 is damaged and was removed .*an older checkpoint is used'): go(cut, d, callbacks=[First()])
    same(whole, d)
    assert begun==[30]

def test_when_all_are_damaged_the_training_begins_anew_and_says_so(cut, whole):
    for p in cut.glob('step-*'): (p/'run.json').write_text('{')
    d = topk()
    with pytest.warns(UserWarning) as told: go(cut, d)
    same(whole, d)
    assert 'step-00000030 is damaged' in str(told[1].message) and 'there is no other, so the training begins anew' in str(told[1].message)

def test_a_disk_that_cannot_be_read_deletes_nothing(cut, monkeypatch):
    def closed(path): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    with monkeypatch.context() as m:
        m.setattr(train, 'crc32', closed)
        with pytest.raises(PermissionError, match='state.safetensors'): go(cut)
    assert steps(sorted(cut.glob('step-*')))==[30, 40]

def test_litter_of_killed_writers_goes(cut, whole):
    (cut/'.tmp-77-step-00000050').mkdir(); (cut/'.tmp-77-step-00000050'/'state.safetensors').write_bytes(b'half')
    (cut/'.tmp-77-log.csv').write_text('step'); (cut/'.tmp-x').write_text('')
    (cut/'log.csv').unlink()
    (cut/'notes.txt').write_text('mine')
    d = topk(); go(cut, d)
    same(whole, d)
    assert sorted(p.name for p in cut.iterdir())==['final','log.csv','notes.txt','step-00000050','step-00000060']

def test_a_log_that_was_lost_or_ran_ahead_is_put_right(cut, tmp_path):
    go(tmp_path/'b')
    want = [l.rsplit(',', 1)[0] for l in open(tmp_path/'b'/'log.csv')]
    go(cut)
    (cut/'log.csv').unlink()
    go(cut) # already at its end
    assert [l.rsplit(',', 1)[0] for l in open(cut/'log.csv')]==want

def test_checkpoints_of_a_mesh_are_not_taken_for_damaged_ones(cut):
    newest = cut/'step-00000040'
    (newest/'run.json').rename(newest/'mesh.json'); (cut/'.tmp-2x1-step-00000050').mkdir()
    with pytest.raises(ValueError, match='step-00000040 was written by a training on a mesh of processes'): go(cut, mesh=False)
    assert newest.exists() and (cut/'.tmp-2x1-step-00000050').exists()

# ---- disks that are full or closed ----

full = OSError(errno.ENOSPC, 'No space left on device')
def fill(monkeypatch, where):
    "From now on the disk is full for one kind of writing"
    real,write,save = os.replace,train.write_json,train.save_file
    def replace(a, b):
        if Path(b).name.startswith('step-'): raise full
        real(a, b)
    def half(state, path):
        save(state, path); os.truncate(path, os.path.getsize(path)//2)
        raise full
    def json_(path, o):
        Path(path).write_text('{"ste'); raise full
    how = dict(state=(train, 'save_file', half), json=(train, 'write_json', json_), name=(os, 'replace', replace), folder=(Path, 'mkdir', lambda *a, **k: (_ for _ in ()).throw(full)))
    monkeypatch.setattr(*how[where])

@pytest.mark.parametrize('where', ['state','json','name','folder'])
def test_a_full_disk_costs_checkpoints_only(tmp_path, whole, monkeypatch, where):
    "Full from step 25 on, free again from step 45 on: what was good stays, and the run ends as ever"
    d,kept = topk(),[]
    m = pytest.MonkeyPatch()
    def look(): kept.append((steps(sorted(tmp_path.glob('step-*'))), [train._read(p)[0]['step'] for p in sorted(tmp_path.glob('step-*'))])); m.undo()
    with pytest.warns(UserWarning) as told: go(tmp_path, d, callbacks=[At(25, lambda: fill(m, where)), At(45, look)])
    same(whole, d)
    assert kept==[([10, 20], [10, 20])] and not list(tmp_path.glob('.tmp-*'))
    said = [str(w.message) for w in told if 'checkpoint' in str(w.message)]
    assert [s.split(' was not')[0] for s in said]==['the checkpoint of step 30','the checkpoint of step 40'] and all('No space left' in s and 'training goes on, the last good checkpoint in' in s and s.endswith('is step-00000020') for s in said)
    assert steps(sorted(tmp_path.glob('step-*')))==[50, 60]
    same(whole, load_dictionary(tmp_path/'final'))

def test_a_disk_that_stays_full_is_told_of_at_the_end(tmp_path, whole, monkeypatch):
    def no(*a, **k): raise full
    d = topk()
    def fill_all():
        for what in ((train, 'save_file'), (train, 'write_json'), (os, 'replace'), (tempfile, 'mkstemp')): monkeypatch.setattr(*what, no)
    with pytest.warns(UserWarning) as told: go(tmp_path, d, callbacks=[At(25, fill_all)])
    same(whole, d)
    end = str(told[-1].message)
    assert 'the trained dictionary was not written' in end and 'no space left' in end and 'it is whole in memory, the last good checkpoint in' in end and end.endswith('is step-00000020')
    assert sorted(p.name for p in tmp_path.iterdir())==['log.csv','step-00000010','step-00000020'] and d.provenance['steps']==60
    with pytest.raises(OSError, match='no space left for'): go(tmp_path) # known before anything is computed
    monkeypatch.undo()
    again = topk(); go(tmp_path, again)
    same(whole, again); same(whole, load_dictionary(tmp_path/'final'))

def test_what_cannot_be_deleted_is_told_of_and_tried_again(tmp_path, whole):
    m,real,d = pytest.MonkeyPatch(),os.replace,topk()
    def keep(a, b):
        if Path(a).name.startswith('step-'): raise OSError(errno.EBUSY, 'Device or resource busy')
        real(a, b)
    with pytest.warns(UserWarning, match='step-00000000 was not deleted .*it will be tried again'): go(tmp_path, d, callbacks=[At(15, lambda: m.setattr(os, 'replace', keep)), At(45, m.undo)])
    same(whole, d)
    assert steps(sorted(tmp_path.glob('step-*')))==[50, 60]

@contextlib.contextmanager
def nobody(folder):
    "Without root's rights, where the tests have them"
    if os.getuid(): yield
    else:
        os.seteuid(65534)
        try: yield
        finally: os.seteuid(0)

@pytest.fixture
def open_to_all():
    "A folder that others may enter, as those of pytest may not"
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)

def test_a_folder_that_may_not_be_written(open_to_all, whole):
    run = open_to_all/'run'; run.mkdir(); run.chmod(0o555)
    d = topk()
    with nobody(run), pytest.raises(PermissionError, match=f'cannot write to {run}: Permission denied; choose another folder'): go(run, d)
    assert d.n_seen==0 and not [*run.iterdir()]
    run.chmod(0o777)
    with nobody(run), pytest.warns(UserWarning, match='checkpoint of step 30 was not written .*Permission denied.*training goes on'):
        def close():
            with as_owner(): run.chmod(0o555)
        go(run, d, callbacks=[At(25, close)])
    same(whole, d)
    assert steps(sorted(run.glob('step-*')))==[10, 20]
    run.chmod(0o755)

@contextlib.contextmanager
def as_owner():
    if os.getuid(): yield
    else:
        os.seteuid(0)
        try: yield
        finally: os.seteuid(65534)

def test_timing_counts_the_steps_that_led_to_the_weights(cut):
    then = json.loads((cut/'step-00000040'/'run.json').read_text())['timing']
    run = go(cut)
    assert then['seconds']>0 and run.timing['seconds']>then['seconds'] and run.timing['data']>=then['data']

# ---- two at one path ----

def files_of(folder): return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def test_a_second_process_at_the_same_path_gets_one_error_and_a_dead_owner_is_followed(tmp_path, whole):
    path = tmp_path/'run'
    with Children('test_checkpoints') as c:
        call = f'go({str(path)!r}, callbacks=[At(s, lambda s=s: (os.write(1, b"on\\n"), time.sleep(9 if s==25 else 0))) for s in (15, 25)])'
        c.p.stdin.write(call+'\n'); c.p.stdin.flush()
        pid = int(c.p.stdout.readline().split()[1])
        for _ in range(2): assert c.p.stdout.readline()=='on\n'
        before,d = files_of(path),topk()
        for second in (lambda: go(path, d), lambda: fit(d, data(), path=path, mesh=False, **plan)):
            with pytest.raises(RuntimeError, match=rf'another process is writing {path}: process {pid} on .*choose another folder. If it is no more, delete fit.lock'): second()
        assert d.n_seen==0 and files_of(path)==before and path/'fit.lock' in before
        os.kill(pid, 9)
        assert c.p.stdout.readline().split()==['end', '-9']
    begun = []
    class First(train.Callback):
        def before_fit(self, run): begun.append(run.step)
    go(path, d, callbacks=[First()])
    same(whole, d)
    assert begun==[20] and not (path/'fit.lock').exists()

def test_fit_many_locks_the_folder_of_each(tmp_path):
    def second():
        with pytest.raises(RuntimeError, match='00-topk: process .* delete fit.lock'): fit_many([topk()], data(), **plan, path=tmp_path)
        with pytest.raises(RuntimeError, match='01-topk: process'): go(tmp_path/'01-topk')
    fit_many([topk(), topk(seed=1)], data(), **plan, path=tmp_path, callbacks=[[At(25, second)], []])
    assert not list(tmp_path.rglob('*.lock'))

def test_an_end_by_an_error_lifts_the_lock(tmp_path):
    halt(tmp_path); assert not (tmp_path/'fit.lock').exists()
    with pytest.raises(ValueError, match='holds another run'): go(tmp_path, lr=9.)
    assert not (tmp_path/'fit.lock').exists()
    go(tmp_path)

def test_a_lock_that_could_not_be_deleted_stops_others_only(tmp_path, monkeypatch):
    "Its process still lives, but no longer trains there"
    real = Path.unlink
    def unlink(p, *a, **k):
        if p.name=='fit.lock': raise OSError(errno.EROFS, 'Read-only file system')
        real(p, *a, **k)
    with monkeypatch.context() as m:
        go(tmp_path/'a', callbacks=[At(25, lambda: m.setattr(Path, 'unlink', unlink))])
    assert (tmp_path/'a'/'fit.lock').exists()
    go(tmp_path/'a')
    assert not (tmp_path/'a'/'fit.lock').exists()

def test_a_disk_without_links_has_locks_too(tmp_path, monkeypatch):
    def no(a, b): raise PermissionError(errno.EPERM, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', no)
    def second():
        with pytest.raises(RuntimeError, match='another process is writing'): go(tmp_path)
    go(tmp_path, callbacks=[At(25, second)])
    assert not list(tmp_path.glob('*.lock')) and not list(tmp_path.glob('.tmp-*'))
