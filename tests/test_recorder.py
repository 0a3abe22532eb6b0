"Checkpoints along a training: what is written once, read alone, killed anywhere, started again, or came from others"
import json, os, warnings
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from killing import Children, seeded
from sparsenb.core import UnknownName
from sparsenb.recorder import Checkpoints, schedule_steps
from sparsenb.revisions import Revisions
from sparsenb.tensor_files import TensorFile, step_of

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)
def weights(step, n=3): return {f'layer.{i}': torch.full((4, 5), step*10.+i) for i in range(n)}
def same(rec, step, want):
    assert set(rec[step])==set(want)
    for k,t in want.items(): torch.testing.assert_close(rec.tensor(k, step), t, **exact)
def size(p): return sum(f.stat().st_size for f in Path(p).rglob('*') if f.is_file())

# ---- when ----

def test_schedules_are_the_formulas():
    assert schedule_steps('linear', 6, 1000)==[0, 200, 400, 600, 800, 1000]
    assert schedule_steps('quadratic', 60, 20_000, 500)==[round(500+19_500*(i/59)**2) for i in range(60)]
    assert schedule_steps('log', 4, 1000, 1)==[1, 10, 100, 1000] and schedule_steps('log', 5, 1000)==[0, 1, 10, 100, 1000]
    assert schedule_steps('log', 50, 16)==list(range(17)) # equal steps are one
    for kw,said in ((dict(n=1, n_steps=9), 'n is a whole number from 2, got 1'), (dict(n=5, n_steps=None), 'n_steps is a whole number from 1, got None'), (dict(n=5, n_steps=9, first=9), 'is not before n_steps')):
        with pytest.raises(ValueError, match=said): schedule_steps('linear', **kw)
    with pytest.raises(UnknownName, match="did you mean 'quadratic'"): schedule_steps('quadratc', 5, 9)

@pytest.mark.parametrize('stride', [1, 3, 7])
def test_a_step_of_the_schedule_is_taken_at_the_first_call_from_it_on(tmp_path, stride):
    rec = Checkpoints(tmp_path/'a', schedule='quadratic', n=6, n_steps=90)
    calls = range(1, 100, stride)
    for s in calls: rec(s, weights(s))
    assert rec.steps==sorted({next(c for c in calls if c>=s) for s in schedule_steps('quadratic', 6, 90)})
    rec = Checkpoints(tmp_path/'b', every=10)
    for s in calls: rec(s, weights(s))
    assert rec.steps==sorted({next(c for c in calls if c>=s) for s in range(0, calls[-1]+1, 10)})

def test_events_are_recorded_besides_and_asked_with_the_numbers(tmp_path):
    rec = Checkpoints(tmp_path, schedule=[0, 6], on=lambda step, m: m['acc']>.5 and step%2==1 and 'rises')
    for s in range(8): rec(s, weights(s), loss=torch.tensor(1/(s+1)), acc=s/7, bad=float('nan'))
    rec(8, weights(8), event='by hand', acc=0.)
    assert {s: c.event for s,c in rec.items()}=={0: None, 5: 'rises', 6: None, 7: 'rises', 8: 'by hand'}
    again = Checkpoints.open(tmp_path)
    assert again[5].loss==pytest.approx(1/6) and again[5].metrics['acc']==pytest.approx(5/7) and again[5].metrics['bad']!=again[5].metrics['bad'] and again[8].loss is None
    assert again.history()['loss'].shape==(5,) and again.table().column('event')==('', 'rises', '', 'rises', 'by hand') and again._repr_html_() and '5 steps, 0 to 8' in repr(again)
    only = Checkpoints(tmp_path/'only', on=lambda step, m: step==3)
    for s in range(8): only(s, weights(s))
    assert only.steps==[3] and only[3].event=='event'

# ---- what is written ----

def test_a_content_is_written_once(tmp_path):
    "Frozen layer, tied weights, a layer that comes back to what it was; bytes at most 1.1 of those that changed"
    torch.manual_seed(0)
    net = nn.ModuleDict(dict(a=nn.Linear(256, 512), frozen=nn.Linear(512, 512), b=nn.Linear(512, 256))); net['tied'] = net['b']
    first = net['a'].weight.detach().clone()
    per = sum(p.numel()*4 for k in 'ab' for p in net[k].parameters())
    rec = Checkpoints(tmp_path/'run')
    for s in range(50):
        with torch.no_grad():
            for k in 'ab':
                for p in net[k].parameters(): p.add_(.01)
        rec(s, net, loss=1.)
    changed = 50*per + sum(p.numel()*4 for p in net['frozen'].parameters())
    assert changed<=size(tmp_path/'run')<=1.1*changed
    with torch.no_grad():
        for p in net['a'].parameters(): p.copy_(p*0)
    rec(50, net)
    before = size(tmp_path/'run')
    rec(51, net)
    assert size(tmp_path/'run')-before<2000 and rec._lines[51]['file'] is None
    same(Checkpoints.open(tmp_path/'run'), 51, net.state_dict())
    f = load_file(tmp_path/'run'/'step-00000007.safetensors') # files that others can read
    assert set(f)=={'a.weight', 'a.bias', 'b.weight', 'b.bias'} and not torch.equal(f['a.weight'], first)

def test_types_shapes_and_views_come_back(tmp_path):
    w = torch.randn(6, 4)
    ts = dict(t=w.t(), half=w[:3], rest=w[3:], b=torch.tensor(True), h=torch.randn(3).half(), bf=torch.randn(2, 2).bfloat16(), i=torch.arange(5), u8=torch.arange(3, dtype=torch.uint8), none=torch.empty(0, 3), c=torch.randn(2, dtype=torch.complex64), d=torch.randn(1, dtype=torch.float64))
    Checkpoints(tmp_path)(0, ts)
    same(Checkpoints.open(tmp_path), 0, {k: t.contiguous() for k,t in ts.items()})

def test_one_tensor_is_read_without_the_rest(tmp_path):
    "Counted by the system: the list of names, the header, the tensor"
    rec = Checkpoints(tmp_path)
    big = {f'w{i}': torch.randn(512, 256)+i for i in range(20)} # 10 MB
    for s in range(3): rec(s, {k: t+s for k,t in big.items()})
    rec = Checkpoints.open(tmp_path)
    def read(): return int(Path('/proc/self/io').read_text().split()[1])
    rec.tensor('w3', 0)
    a = read(); t = rec.tensor('w7', 1); used = read()-a
    torch.testing.assert_close(t, big['w7']+1, **exact)
    own = 512*256*4
    assert own<=used<own+8000 and rec.bytes_read<2*own+8000
    a = read(); assert rec[2].shape('w0')==(512, 256) and read()-a<8000

def test_a_module_gets_a_step_back(tmp_path):
    torch.manual_seed(0)
    net,rec = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),Checkpoints(tmp_path)
    want = {}
    for s in range(3):
        net(torch.randn(8, 3)+s); want[s] = {k: v.clone() for k,v in net.state_dict().items()}
        rec(s, net)
    for s in (1, 0, 2):
        assert rec.load(s, net) is net
        for k,v in net.state_dict().items(): torch.testing.assert_close(v, want[s][k], **exact)
    assert list(rec.series('1.running_mean'))==[0, 1, 2] and rec.series('0.bias', [2])[2].shape==(4,)
    before = {k: v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"step 1 does not fit this Sequential \(unknown here: .*'1.running_mean'.*'0.weight' was shape \[5, 3\], is shape \[4, 3\]"): rec.load(1, nn.Sequential(nn.Linear(3, 5)))
    for k,v in net.state_dict().items(): torch.testing.assert_close(v, before[k], **exact)

def test_a_training_of_a_dictionary_is_recorded(tmp_path):
    from sparsenb.core import dictionaries, testbeds
    from sparsenb.train import fit
    sae,rec = dictionaries['topk'](64, 128, k=4),Checkpoints(tmp_path, schedule='log', n=5, n_steps=30)
    start = sae.W_dec.detach().clone()
    fit(sae, testbeds['superposition'](), 30*64, 64, callbacks=[rec])
    assert rec.steps==schedule_steps('log', 5, 30) and rec[30].loss<rec[1].loss
    torch.testing.assert_close(rec.tensor('W_dec', 0), start, **exact); torch.testing.assert_close(rec.tensor('W_dec', 30), sae.W_dec.detach(), **exact)

# ---- killed, started again ----

loop = '''
import torch, warnings
from sparsenb.recorder import Checkpoints
torch.set_num_threads(1)
def train(folder, resume=True, n=60):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)); net[1].requires_grad_(False)
    warnings.simplefilter('ignore')
    rec,start = Checkpoints(folder, every=2),0
    if resume and len(rec): start = rec.steps[-1]; rec.load(start, net)
    for step in range(start, n+1):
        rec(step, net, loss=1/(step+1)); print(step, flush=True)
        with torch.no_grad(): net[0].weight.mul_(.99).add_(.001*(step%7)); net[0].bias.add_(1)
'''

def test_killed_at_any_moment_the_set_is_whole(tmp_path):
    "24 kills: while a temporary file is there and at random; every step that is told reads back; the end is that of an unbroken run"
    rnd,names = seeded(),{}
    exec(loop, names); names['train'](tmp_path/'whole')
    whole,seen = Checkpoints.open(tmp_path/'whole'),[]
    def check(folder):
        if not (folder/'checkpoints.jsonl').exists(): return
        rec = Checkpoints.open(folder)
        assert rec.steps[:len(seen)]==seen, 'a step that was there is gone'
        seen[:] = rec.steps
        for s in rec: same(rec, s, whole[s])
    with Children('os', first=loop) as c:
        for n,resume in enumerate(i%2==0 for i in range(40)):
            if c.kills>=22: break
            folder = tmp_path/str(n); seen.clear(); folder.mkdir()
            for i in range(4): # killed at most so often, then to the end
                c.run(f"train({str(folder)!r}, {resume})", **(dict(sight=folder) if i%2==0 else dict(lines=rnd.randrange(1, 12 if resume else 40), pause=rnd.random()*.01)))
                check(folder)
            c.run(f"train({str(folder)!r}, {resume})"); check(folder)
            assert seen==whole.steps and abs(size(folder)-size(tmp_path/'whole'))<400 # of a lock that was never let go
    assert c.kills>=20, c.kills

def test_every_cut_of_the_list_is_a_set(tmp_path):
    "The line of the last step cut at each byte: the step before is the newest, and the next writer goes on"
    rec = Checkpoints(tmp_path)
    for s in range(3): rec(s, weights(s, 1))
    f = tmp_path/'checkpoints.jsonl'
    raw = f.read_bytes(); last = raw[:-1].rindex(b'\n')+1
    for at in range(last, len(raw), 17):
        f.write_bytes(raw[:at])
        rec = Checkpoints(tmp_path)
        assert rec.steps==[0, 1]
        same(rec, 1, weights(1, 1))
        rec(2, weights(2, 1)); assert f.read_bytes()==raw
    f.write_bytes(raw.replace(b'"step": 1', b'"step": 7', 1))
    with pytest.raises(ValueError, match='line 3 does not match its checksum'): Checkpoints(tmp_path)

def test_a_run_that_starts_again_says_what_it_does(tmp_path):
    def run(at, what=weights, **kw):
        rec = Checkpoints(tmp_path/'run', every=2, **kw)
        for s in at: rec(s, what(s))
        return rec
    other = lambda s: weights(s+.5)
    run(range(9)); before = size(tmp_path/'run')
    with pytest.warns(UserWarning, match='has steps up to 8, this run is at step 2: steps that are there are compared with it'): rec = run(range(2, 13))
    assert rec.steps==[0, 2, 4, 6, 8, 10, 12]
    with warnings.catch_warnings():
        warnings.simplefilter('error'); run(range(12, 15))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"step 4 with other values \('layer.0' differs\): this is another run.*again='replace'"): run(range(4, 15), other)
    with pytest.warns(UserWarning, match='stay as they are'): rec = run(range(4, 17), other, again='keep')
    assert rec.steps==list(range(0, 17, 2)); same(rec, 4, weights(4)); same(rec, 16, other(16))
    with pytest.warns(UserWarning, match='the 7 from there on are dropped'): rec = run(range(4, 9), other, again='replace')
    for rec in (rec, Checkpoints.open(tmp_path/'run')):
        assert rec.steps==[0, 2, 4, 6, 8]
        for s in rec: same(rec, s, other(s) if s>=4 else weights(s))
    assert len([*(tmp_path/'run').glob('step-*')])==5
    assert run([20], lambda s: weights(0))._lines[20]['file'] is None
    with pytest.warns(UserWarning): rec = run([6], again='replace') # what a dropped step wrote and a step before it needs would stay
    assert rec.steps==[0, 2, 4, 6]; same(rec, 6, weights(6))

def test_a_dropped_step_leaves_what_others_need(tmp_path):
    rec = Checkpoints(tmp_path)
    rec(0, weights(0)); rec(10, weights(10))
    with pytest.warns(UserWarning, match='compared'): rec(5, weights(10)) # lies in the file of step 10
    with pytest.warns(UserWarning, match='dropped'): Checkpoints(tmp_path, again='replace')(10, weights(11))
    rec = Checkpoints.open(tmp_path)
    same(rec, 5, weights(10)); same(rec, 10, weights(11)); assert sorted(p.name for p in tmp_path.glob('step-*'))==['step-00000000.safetensors', 'step-00000010-2.safetensors', 'step-00000010.safetensors']

def test_two_writers_are_refused(tmp_path):
    a,b = Checkpoints(tmp_path),Checkpoints(tmp_path)
    a(0, weights(0))
    with pytest.raises(RuntimeError, match='was written by another program'): b(1, weights(1))
    with Checkpoints(tmp_path) as c:
        c(1, weights(1))
        with pytest.raises(RuntimeError, match='another process is writing'): Checkpoints(tmp_path)(2, weights(2))
    assert Checkpoints.open(tmp_path).steps==[0, 1] and not [*tmp_path.glob('*.lock')]

def test_a_disk_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    rec = Checkpoints(tmp_path)
    rec(0, weights(0))
    with monkeypatch.context() as m:
        m.setattr('sparsenb.recorder.write_tensors', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
        with pytest.warns(UserWarning, match='step 1 was not recorded .*No space left.*newest checkpoint in .* is that of step 0'): assert not rec(1, weights(1))
    assert rec(2, weights(2)) and Checkpoints.open(tmp_path).steps==[0, 2]
    (tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError): Checkpoints(tmp_path/'file')(0, weights(0))

# ---- bad input ----

def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path):
    rec = Checkpoints(tmp_path)
    for model,said in ((5, 'a module or a dict of tensors'), ({}, 'one without tensors'), (dict(a=1.), "'a' holds float"), (dict(a=torch.eye(2).to_sparse()), 'cannot hold')):
        with pytest.raises(ValueError, match=said): rec(0, model)
    for step in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match='a step is a whole number'): rec(step, weights(0))
    with pytest.raises(ValueError, match='acc is a number, got str'): rec(0, weights(0), acc='x')
    with pytest.raises(ValueError, match='loss is a number, got Tensor'): rec(0, weights(0), loss=torch.ones(2))
    assert size(tmp_path)==0
    rec(0, weights(0))
    before = size(tmp_path)
    for model,said in ((weights(1, 2), "missing: 'layer.2'"), (weights(1, 4), "new: 'layer.3'"), (weights(1)|{'layer.1': torch.zeros(5, 5)}, r"'layer.1' was F32 \[4, 5\], is F32 \[5, 5\]"), (weights(1)|{'layer.0': torch.zeros(4, 5).half()}, r'is F16 \[4, 5\]')):
        with pytest.raises(ValueError, match=f'step 1: this model has other tensors than the one recorded .*{said}'): rec(1, model)
    assert size(tmp_path)==before
    for kw,said in ((dict(every=0), 'every is a whole number'), (dict(every=3, schedule=[1]), 'not both'), (dict(schedule='log'), 'n is a whole number')):
        with pytest.raises(ValueError, match=said): Checkpoints(tmp_path, **kw)
    with pytest.raises(UnknownName, match="did you mean 'replace'"): Checkpoints(tmp_path, again='replac')

def test_steps_and_names_that_are_not_there(tmp_path):
    rec = Checkpoints(tmp_path)
    for s in (0, 100, 300): rec(s, weights(s))
    for step,said in ((130, 'no step 130; nearest: 100 and 300. There are 3, 0 to 300'), (900, 'nearest: 300'), (-5, 'nearest: 0'), ('x', 'steps are numbers')):
        with pytest.raises(UnknownName, match=said): rec[step]
    with pytest.raises(UnknownName, match="did you mean 'layer"): rec.tensor('layr.1', 100)
    with pytest.raises(UnknownName, match='no step 7'): rec.series('layer.1', [0, 7])
    with pytest.raises(FileNotFoundError, match='is no folder'): Checkpoints.open(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='holds no checkpoints'): (tmp_path/'empty').mkdir() or Checkpoints.open(tmp_path/'empty')
    (tmp_path/'step-00000100.safetensors').unlink()
    rec = Checkpoints.open(tmp_path)
    same(rec, 300, weights(300))
    with pytest.raises(ValueError, match='step-00000100.safetensors is missing'): rec.tensor('layer.0', 100)
    f = tmp_path/'step-00000300.safetensors'
    raw = bytearray(f.read_bytes()); raw[-3] ^= 1; f.write_bytes(raw)
    with pytest.raises(ValueError, match='is altered'): {k: rec.tensor(k, 300) for k in rec[300]}

@pytest.mark.parametrize('head', [b'', b'\x00'*8, b'\xff'*40, (10**9).to_bytes(8, 'little')+b'{}', (2).to_bytes(8, 'little')+b'[]', (2).to_bytes(8, 'little')+b'{x',
    *((len(h)).to_bytes(8, 'little')+h for h in (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b'{"a":{"dtype":"F9","shape":[0],"data_offsets":[0,0]}}', b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}', b'{"a":1}', b'['*3000))])
def test_files_that_lie_are_refused(tmp_path, head):
    (tmp_path/'a.safetensors').write_bytes(head)
    with pytest.raises(ValueError, match='damaged or no safetensors file'): TensorFile(tmp_path/'a.safetensors')

# ---- folders that others wrote ----

def published(folder, step, shards=1, index=True, n=4):
    folder.mkdir(parents=True)
    ts = {f'layer.{i}': torch.full((2, 3), step+i+0.) for i in range(n)}
    if shards==1: save_file(ts, folder/'model.safetensors'); return
    where = {k: f'model-{i%shards+1:05d}-of-{shards:05d}.safetensors' for i,k in enumerate(ts)}
    for f in set(where.values()): save_file({k: t for k,t in ts.items() if where[k]==f}, folder/f)
    if index: (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))

def test_revisions_open_as_checkpoints_do(tmp_path):
    for name,step,shards,index in (('step1000', 1000, 1, True), ('step0', 0, 2, True), ('checkpoint-512', 512, 3, False), ('stage1-step140000-tokens294B', 140000, 1, True), ('main', 5, 1, True)): published(tmp_path/name, step, shards, index)
    save_file({f'layer.{i}': torch.full((2, 3), 7.+i) for i in range(4)}, tmp_path/'step7.safetensors')
    (tmp_path/'logs').mkdir()
    rec = Checkpoints.open(tmp_path)
    assert isinstance(rec, Revisions) and rec.steps==[0, 7, 512, 1000, 140000] and rec.left_out==['main']
    assert {s: t[0,0].item() for s,t in rec.series('layer.2').items()}=={s: s+2. for s in rec}
    assert rec[512].loss is None and rec.table().column('step')==(0, 7, 512, 1000, 140000) and 'Revisions' in repr(rec)
    net = nn.ParameterDict({f'layer.{i}'.replace('.', '_'): nn.Parameter(torch.zeros(2, 3)) for i in range(4)})
    with pytest.raises(ValueError, match='missing there'): rec.load(7, net)
    published(tmp_path/'step2000', 2000, n=3)
    with pytest.raises(UnknownName, match="'layer.3' is not in step 2000.*it is in 5 of 6"): Checkpoints.open(tmp_path).series('layer.3')
    published(tmp_path/'step3000', 3000); save_file({'layer.1': torch.zeros(9)}, tmp_path/'step3000'/'model.safetensors')
    with pytest.raises(ValueError, match=r'shape \(2, 3\) at step 0, \(9,\) at step 3000'): Checkpoints.open(tmp_path).series('layer.1')
    published(tmp_path/'ckpt_7', 7)
    with pytest.raises(ValueError, match='are both step 7'): Checkpoints.open(tmp_path)

def test_a_hub_cache_opens_by_its_refs(tmp_path):
    (tmp_path/'refs').mkdir()
    for step,h in ((0, 'aa11'), (256, 'bb22')): published(tmp_path/'snapshots'/h, step, 2); (tmp_path/'refs'/f'step{step}').write_text(h)
    (tmp_path/'refs'/'main').write_text('bb22')
    rec = Checkpoints.open(tmp_path)
    assert rec.steps==[0, 256] and rec.tensor('layer.1', 256)[0,0]==257 and rec.left_out==['main']

def test_bad_indexes_are_refused(tmp_path):
    published(tmp_path/'step1', 1, 2)
    for text,said in (('{', 'is damaged'), ('{"weight_map": {"a": "../../x.safetensors"}}', 'not in its folder'), ('{"weight_map": {"a": "gone.safetensors"}}', 'not in its folder'), ('[]', 'is damaged')):
        (tmp_path/'step1'/'model.safetensors.index.json').write_text(text)
        with pytest.raises(ValueError, match=said): Checkpoints.open(tmp_path)[1]
    (tmp_path/'step1'/'model.safetensors.index.json').unlink(); save_file({'layer.1': torch.zeros(1)}, tmp_path/'step1'/'more.safetensors')
    with pytest.raises(ValueError, match='which one counts'): Checkpoints.open(tmp_path)[1]
    assert step_of('main') is None and step_of('00042')==42
    with pytest.raises(ValueError, match='several numbers'): step_of('v2-run7')
