"""Other tools' dictionary files: what they saved is read to their numbers, what is written comes back, what is damaged is refused.

fixtures/formats/write.py let the peers save their files; `python tests/test_formats.py FOLDER [N]` writes ours for their own loaders to read, and fuzzes N times.
"""
import base64, io, json, os, random, shutil, sys, warnings, zipfile, zlib
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file
from sparsenb.convert import convert, read_dictionary, sniff, write_dictionary
from sparsenb.core import UnknownName, dictionaries, formats
from damaging import damaged

torch.set_num_threads(1)
PEERS = ('dictionary_learning','gemma_scope','overcomplete','sae_lens','sparsify')
HERE = Path(__file__).parent/'fixtures'/'formats'
CASES = [(p, c) for p in PEERS for c in json.loads((HERE/f'{p}.json').read_text())['cases']]
case_of = lambda peer, name: next(c for p,c in CASES if (p, c['name'])==(peer, name))
ids = [f"{p}-{c['name']}" for p,c in CASES]
quiet = pytest.mark.filterwarnings('ignore:(activations shorter|features are written)')
near = lambda a,b,tol: torch.testing.assert_close(a.detach(), torch.as_tensor(b).detach(), rtol=tol, atol=tol)

def unpack(case, folder):
    "A peer's files on disk; the path to read"
    folder.mkdir(parents=True, exist_ok=True)
    for n,b in case['files'].items(): (folder/n).write_bytes(zlib.decompress(base64.b64decode(b)))
    return folder/'sae.pt' if 'sae.pt' in case['files'] else folder


# What the peers saved

def test_every_peer_is_there():
    assert {p for p,_ in CASES}=={*PEERS} and len(CASES)>=35
    assert {*formats}=={*PEERS, 'sparsenb', 'openai', 'plt', 'clt'}

@quiet
@pytest.mark.parametrize('peer,case', CASES, ids=ids)
def test_their_files_give_their_numbers(peer, case, tmp_path):
    "Recognised, and features and reconstruction to 1e-5"
    path = unpack(case, tmp_path/'theirs')
    assert sniff(path)==peer
    d,x = read_dictionary(path, **case['how']),torch.tensor(case['x'])
    near(d.encode(x), case['f'], 1e-5); near(d(x), case['x_hat'], 1e-5)
    assert (torch.tensor(case['f'])!=0).any() and (torch.tensor(case['f'])==0).any()
    assert not d.training and d.provenance['format']==peer
    d.save(tmp_path/'own') # the provenance can be written too
    near(read_dictionary(tmp_path/'own')(x), d(x), 0)

@quiet
@pytest.mark.parametrize('peer,case', [pc for pc in CASES if pc[0]!='gemma_scope'], ids=[i for i in ids if 'gemma' not in i])
def test_their_files_written_again(peer, case, tmp_path):
    d = read_dictionary(unpack(case, tmp_path/'theirs'), **case['how'])
    path = tmp_path/('again.pt' if peer=='overcomplete' else 'again')
    write_dictionary(d, path, peer)
    back,x = read_dictionary(path),torch.tensor(case['x'])
    near(back.encode(x), case['f'], 1e-5); near(back(x), case['x_hat'], 1e-5)
    assert back.cfg==d.cfg and back.name==d.name

def test_places_have_our_names(tmp_path):
    for peer,name in (('sae_lens', 'topk-True'), ('dictionary_learning', 'AutoEncoderTopK-2')):
        d = read_dictionary(unpack(case_of(peer, name), tmp_path/peer))
        assert d.provenance['site']==dict(sae_lens='resid_post.2', dictionary_learning='resid_post.3')[peer] and 'pythia-70m' in d.provenance['model_name']
    convert(tmp_path/'sae_lens', tmp_path/'dl', 'dictionary_learning')
    convert(tmp_path/'dl', tmp_path/'sl', 'sae_lens')
    assert json.loads((tmp_path/'dl/config.json').read_text())['trainer']['submodule_name']=='resid_post_layer_2'
    assert json.loads((tmp_path/'sl/cfg.json').read_text())['metadata']['hook_name']=='blocks.2.hook_resid_post'

def test_heads_side_by_side(tmp_path):
    "SAELens' form for the heads' outputs, from its files and from ours"
    path = unpack(case_of('sae_lens', 'topk-True'), tmp_path/'a')
    form = lambda p: json.loads((p/'cfg.json').read_text())['reshape_activations']
    edit(path, 'cfg.json', reshape_activations='hook_z', metadata=dict(sae_lens_version='6.0.0', hook_name='blocks.1.attn.hook_z'))
    d = read_dictionary(path)
    write_dictionary(d, tmp_path/'b', 'sae_lens')
    edit(path, 'cfg.json', reshape_activations='none')
    write_dictionary(read_dictionary(path), tmp_path/'c', 'sae_lens')
    d.provenance = dict(site='z.1')
    write_dictionary(d, tmp_path/'d', 'sae_lens')
    assert [form(tmp_path/n) for n in 'bcd']==['hook_z', 'none', 'hook_z']


# What we write

def trained(name, scale=1.7, **kw):
    "A dictionary with numbers in every weight, and a data scale"
    d,g = dictionaries[name](6, 16, seed=3, **kw),torch.Generator().manual_seed(5)
    with torch.no_grad():
        for k in ('b_enc','b_dec','r_mag','b_mag','W_skip'):
            if hasattr(d, k) and not (name=='matching_pursuit'): getattr(d, k).copy_(.3*torch.randn(getattr(d, k).shape, generator=g))
        if name!='matching_pursuit': d.W_enc += .1*torch.randn(d.W_enc.shape, generator=g); d.W_dec *= 1+torch.rand(16, 1, generator=g)
        if hasattr(d, 'log_threshold'): d.log_threshold.copy_(torch.randn(16, generator=g).mul(.3)-1)
        if hasattr(d, 'threshold') and torch.is_tensor(d.threshold): d.threshold.fill_(.6)
    d.scale.fill_(scale); d.scale_out.fill_(scale if d.rebuilds else .6)
    d.provenance = dict(model_name='stdlib-4l', site='resid_post.2', training=dict(lr=.1))
    return d.eval()

METHODS = dict(relu={}, topk=dict(k=4), jumprelu={}, gated={}, batch_topk=dict(k=4), matryoshka=dict(k=4, prefixes=[4, 9]), matching_pursuit=dict(steps=3, threshold=0.), skip_transcoder=dict(k=4), transcoder=dict(k=4))
WRITTEN = [(f, m, kw) for f,ms in dict(sae_lens=('relu','topk','jumprelu','gated','batch_topk','matryoshka','matching_pursuit','transcoder','skip_transcoder'), sparsify=('relu','topk','transcoder','skip_transcoder'),
    dictionary_learning=('relu','topk','batch_topk','matryoshka','gated','jumprelu','transcoder'), overcomplete=('relu','topk','jumprelu'), sparsenb=tuple(METHODS)).items() for m in ms for kw in [METHODS[m]]]
WRITTEN += [('sae_lens', m, dict(d_out=5) | kw) for m,kw in dict(relu={}, jumprelu={}, topk=dict(k=16), transcoder=dict(k=16), skip_transcoder=dict(k=16), batch_topk=dict(k=3)).items()]
WRITTEN += [('sparsify', m, dict(d_out=6) | kw) for m,kw in dict(relu={}, topk=dict(k=3), transcoder=dict(k=4), skip_transcoder=dict(k=4)).items()]
written_ids = [f"{f}-{m}{'-cross' if 'd_out' in kw else ''}" for f,m,kw in WRITTEN]

def ours(format, method, kw):
    d = trained(method, **kw, **(dict(scale=1.) if method=='matching_pursuit' else {}))
    if format=='overcomplete': d.b_dec.data.zero_()
    return d, torch.randn(40, 6, generator=torch.Generator().manual_seed(9))

@pytest.mark.parametrize('format,method,kw', WRITTEN, ids=written_ids)
def test_there_and_back(format, method, kw, tmp_path):
    "The same outputs to 1e-6 of their size, the same cfg, the data's provenance; nothing else was left"
    d,x = ours(format, method, kw)
    path = tmp_path/('a.pt' if format=='overcomplete' else 'a')
    before = {k: v.clone() for k,v in d.state_dict().items()}
    write_dictionary(d, path, format)
    assert all(torch.equal(v, before[k]) for k,v in d.state_dict().items()), 'writing changed the dictionary'
    assert sniff(path)==format
    back = read_dictionary(path)
    for a,b in ((back.encode(x), d.encode(x)), (back(x), d(x))): near(a, b, 1e-6*max(1, b.abs().max().item()))
    assert (d.encode(x)!=0).any() and ((d.encode(x)==0).any() or kw.get('k')==16)
    assert back.cfg==d.cfg and back.name==d.name and back.provenance['training']==dict(lr=.1) and back.provenance['site']=='resid_post.2'
    assert sorted(p.name for p in tmp_path.iterdir())==(['a.json', 'a.pt'] if format=='overcomplete' else ['a'])

def test_a_pursuit_with_a_data_scale(tmp_path):
    "One matrix for both uses leaves no room for the scale: the features are in the data's units, which a warning says"
    d,x = trained('matching_pursuit', steps=3, threshold=.2),3*torch.randn(40, 6, generator=torch.Generator().manual_seed(9))
    with pytest.warns(UserWarning, match='0.5882 times'), pytest.warns(UserWarning, match='activations shorter than'): write_dictionary(d, tmp_path/'a', 'sae_lens')
    with pytest.warns(UserWarning, match='activations shorter than'): back = read_dictionary(tmp_path/'a')
    near(back.encode(x)*1.7, d.encode(x), 1e-5); near(back(x), d(x), 1e-5)

@pytest.mark.parametrize('format,method,kw,why', [('sparsify', 'jumprelu', {}, 'no form for'), ('sparsify', 'transcoder', dict(k=4, d_out=5), 'as many dimensions'), ('sae_lens', 'k_sparse', dict(k=4), 'no form for'),
    ('sae_lens', 'transcoder', dict(k=4, d_out=5), 'keep every positive feature'), ('sae_lens', 'gated', dict(d_out=5), 'no gated'), ('dictionary_learning', 'topk', dict(k=4, d_out=5), 'writes another activation'),
    ('overcomplete', 'topk', dict(k=4), 'b_dec is not zero'), ('gemma_scope', 'jumprelu', {}, 'only read'), ('overcomplete', 'batch_topk', dict(k=4), 'no form for')])
def test_what_cannot_be_held_is_refused(format, method, kw, why, tmp_path):
    with pytest.raises(ValueError, match=why): write_dictionary(trained(method, **kw), tmp_path/'a.pt', format)
    assert [*tmp_path.iterdir()]==[]

@pytest.mark.parametrize('format', ['sae_lens', 'sparsify', 'dictionary_learning', 'overcomplete', 'sparsenb'])
def test_nothing_is_lost_or_left_half_written(format, tmp_path, monkeypatch):
    d,path = ours(format, 'topk', dict(k=4))[0],tmp_path/'a.pt'
    if format!='overcomplete':
        path.mkdir(); (path/'thesis.tex').write_text('x')
    else: path.write_text('x')
    with pytest.raises(FileExistsError, match='choose another'): write_dictionary(d, path, format)
    assert (path if format=='overcomplete' else path/'thesis.tex').read_text()=='x'
    with pytest.raises(ValueError, match='Dictionary was expected'): write_dictionary(torch.nn.Linear(2, 2), tmp_path/'b.pt', format)
    if format!='sparsenb':
        d.W_enc.data[0,0] = float('nan')
        with pytest.raises(ValueError, match='NaN'): write_dictionary(d, tmp_path/'b.pt', format)
        d.W_enc.data[0,0] = 1.
    import sparsenb.core as core
    def full(*a): raise OSError(28, 'no space left')
    monkeypatch.setattr(core, 'fsync', full)
    with pytest.raises(OSError, match='no space'): write_dictionary(d, tmp_path/'b.pt', format)
    assert [p.name for p in tmp_path.iterdir()]==['a.pt']


# What the settings say

def edit(path, file, **fields):
    o = json.loads((path/file).read_text())
    for k,v in fields.items(): o.pop(k) if v is ... else o.__setitem__(k, v)
    (path/file).write_text(json.dumps(o))

@pytest.mark.parametrize('fields,why', [(dict(normalize_activations='layer_norm'), "normalize_activations is 'layer_norm': each activation is scaled"), (dict(normalize_activations='expected_average_only_in'), 'not in the file'),
    (dict(normalize_activations='constant_norm_rescale'), 'its own length'), (dict(normalize_activations='covariance_whitening'), 'matrices are not'), (dict(normalize_activations=[1]), 'not known'),
    (dict(architecture='temporal'), 'has no form here. Those that have: standard, topk'), (dict(d_sae=12), r'has shape \(5, 11\), \(5, 12\) was expected'), (dict(k=...), "no field 'k'"), (dict(k=2.5), 'whole number'), (dict(k=0), 'whole number'),
    (dict(k=99), 'k must be a whole number in 1..d_sae=11'), (dict(apply_b_dec_to_input='yes'), 'true or false'), (dict(metadata=3), 'an object'), (dict(reshape_activations='x'), 'none or hook_z')])
def test_sae_lens_settings_that_cannot_be_met(fields, why, tmp_path):
    path = unpack(case_of('sae_lens', 'topk-True'), tmp_path/'a')
    edit(path, 'cfg.json', **fields)
    with pytest.raises(ValueError, match=why) as e: read_dictionary(path)
    assert str(path) in str(e.value)

@pytest.mark.parametrize('peer,name,file,fields,why', [('sparsify', 'topk', 'cfg.json', dict(activation='groupmax'), 'topk was expected'), ('sparsify', 'topk', 'cfg.json', dict(num_latents=-1), 'whole number'),
    ('sparsify', 'topk', 'cfg.json', dict(skip_connection=True), 'expected were'), ('dictionary_learning', 'AutoEncoderTopK-2', 'config.json', dict(trainer=...), "no field 'trainer'"),
    ('dictionary_learning', 'AutoEncoderTopK-2', 'config.json', dict(trainer=dict(dict_class='IdentityDict')), 'has no form here'), ('dictionary_learning', 'AutoEncoderTopK-2', 'config.json', dict(trainer=dict(dict_class='AutoEncoderTopK', k=2)), 'config.json says 2'),
    ('dictionary_learning', 'AutoEncoderTopK-2', 'config.json', dict(trainer=dict(dict_class='JumpReluAutoEncoder')), 'expected were'),
    ('sae_lens', 'matching_pursuit-zero', 'cfg.json', dict(stop_on_duplicate_support=False), 'ends when a feature comes again'), ('sae_lens', 'matching_pursuit-unused', 'cfg.json', dict(apply_b_dec_to_input=True), 'b_dec is subtracted'),
    ('sae_lens', 'matching_pursuit-zero', 'cfg.json', dict(max_iterations=50), 'at most d_sae')])
def test_settings_that_cannot_be_met(peer, name, file, fields, why, tmp_path):
    path = unpack(case_of(peer, name), tmp_path/'a')
    edit(path, file, **fields)
    with pytest.raises(ValueError, match=why): read_dictionary(path)

def test_unknown_fields_are_kept_and_named(tmp_path):
    for peer,name,file in (('sae_lens', 'topk-True', 'cfg.json'), ('sparsify', 'topk', 'cfg.json'), ('dictionary_learning', 'AutoEncoderTopK-2', 'config.json')):
        path = unpack(case_of(peer, name), tmp_path/peer)
        edit(path, file, new_thing=dict(a=float('nan')))
        with pytest.warns(UserWarning, match=f'{file}.*new_thing'): d = read_dictionary(path)
        assert d.provenance['fields']['new_thing']==dict(a='NaN')
        d.save(tmp_path/f'{peer}-own')

def test_a_note_that_does_not_fit_is_not_used(tmp_path):
    d,x = ours('sae_lens', 'topk', dict(k=4))
    write_dictionary(d, tmp_path/'a', 'sae_lens')
    edit(tmp_path/'a', 'cfg.json', d_sae=16, k=2)
    with pytest.warns(UserWarning, match="its note on 'topk' does not agree"): back = read_dictionary(tmp_path/'a')
    assert back.cfg['k']==2 and (back.encode(x)!=0).sum(1).max()<=2
    edit(tmp_path/'a', 'cfg.json', k=4, metadata=dict(sae_lens_version='6.0.0', sparsenb=dict(dictionary='gated', cfg={})))
    with pytest.warns(UserWarning, match="its note on 'gated' does not agree"): back = read_dictionary(tmp_path/'a')
    near(back(x), d(x), 1e-5)
    edit(tmp_path/'a', 'cfg.json', metadata=dict(sae_lens_version='6.0.0', sparsenb=dict(dictionary='topk', cfg=dict(d_in=6, d_sae=16, d_out=None, k=4, seed=1<<80))))
    with pytest.raises(ValueError, match='do not make a dictionary'): read_dictionary(tmp_path/'a')

def test_sae_lens_before_version_6(tmp_path):
    case = case_of('sae_lens', 'topk-True')
    path = unpack(case, tmp_path/'a')
    (path/'cfg.json').write_text(json.dumps(dict(d_in=5, d_sae=11, hook_point='blocks.2.hook_resid_post', model_name='gpt2', activation_fn_str='topk', activation_fn_kwargs=dict(k=3), normalize_activations=False, apply_b_dec_to_input=True, sae_lens_version='3.1.0', finetuning_scaling_factor=False)))
    d = read_dictionary(path)
    near(d(torch.tensor(case['x'])), case['x_hat'], 1e-5)
    assert d.name=='topk' and d.provenance['site']=='resid_post.2'
    w = load_file(path/'sae_weights.safetensors')
    save_file(w | dict(scaling_factor=torch.ones(11)), path/'sae_weights.safetensors')
    near(read_dictionary(path)(torch.tensor(case['x'])), case['x_hat'], 1e-5)
    save_file(w | dict(scaling_factor=torch.full((11,), 2.)), path/'sae_weights.safetensors')
    with pytest.raises(ValueError, match='scaling_factor'): read_dictionary(path)


# What is not what it should be

class Trap:
    "Runs on being unpickled"
    ran = []
    def __reduce__(self): return (Trap.ran.append, (1,))

@pytest.mark.parametrize('peer,name,file', [('dictionary_learning', 'AutoEncoderTopK-2', 'ae.pt'), ('overcomplete', 'TopKSAE-l2-linear', 'sae.pt')])
def test_no_code_in_a_file_is_run(peer, name, file, tmp_path):
    case = case_of(peer, name)
    path,Trap.ran = unpack(case, tmp_path/'a'),[]
    for o in (dict(W_enc=Trap()), Trap(), torch.nn.Linear(2, 2), os.system):
        torch.save(o, tmp_path/'a'/file)
        with pytest.raises(ValueError, match='pickled object.*refused') as e: read_dictionary(path, peer, **case['how'])
        assert file in str(e.value)
    torch.save(dict(a=torch.zeros(2)), tmp_path/'a'/file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match='not an archive'): read_dictionary(path, peer, **case['how'])
    for o in ([torch.zeros(1)], dict(a=1), {1: torch.zeros(1)}):
        torch.save(o, tmp_path/'a'/file)
        with pytest.raises(ValueError, match='state_dict'): read_dictionary(path, peer, **case['how'])
    big = torch.as_strided(torch.zeros(1), (1<<20, 1<<20), (0, 0))
    torch.save({'encoder.weight': big, 'dictionary._weights': big}, tmp_path/'a'/file)
    with pytest.raises(ValueError, match='no plain tensor'): read_dictionary(path, peer, **case['how'])
    assert Trap.ran==[]

def test_no_array_larger_than_its_file(tmp_path):
    "A header that announces terabytes, and arrays of objects"
    def npz(header, data=b'\0'*8):
        f = io.BytesIO()
        np.lib.format.write_array_header_1_0(f, header)
        with zipfile.ZipFile(tmp_path/'params.npz', 'w') as z: z.writestr('W_enc.npy', f.getvalue()+data)
    npz(dict(descr='<f4', fortran_order=False, shape=(1<<40, 2)))
    with pytest.raises(ValueError, match='not of the size it announces'): read_dictionary(tmp_path, 'gemma_scope')
    npz(dict(descr='|O', fortran_order=False, shape=(1,)))
    with pytest.raises(ValueError, match='Python objects'): read_dictionary(tmp_path, 'gemma_scope')
    np.savez_compressed(tmp_path/'params.npz', W_enc=np.zeros(1_500_000_000//4, 'f4'))
    with pytest.raises(MemoryError, match='params.npz'): read_dictionary(tmp_path, 'gemma_scope')

def test_one_clear_error(tmp_path):
    case = case_of('sae_lens', 'standard-True')
    path = unpack(case, tmp_path/'a')
    w = path/'sae_weights.safetensors'
    for name in (*PEERS, 'sparsenb'):
        with pytest.raises(FileNotFoundError, match='does not exist'): read_dictionary(tmp_path/'none', name)
        if name not in ('overcomplete','sae_lens'):
            with pytest.raises(FileNotFoundError, match='expected|missing'): read_dictionary(path, name)
    with pytest.raises(FileNotFoundError, match='does not exist'): sniff(tmp_path/'none')
    with pytest.raises(ValueError, match='not a file'): read_dictionary(path, 'overcomplete')
    with pytest.raises(UnknownName, match="did you mean 'sae_lens'"): read_dictionary(path, 'saelens')
    with pytest.raises(ValueError, match="unexpected keyword argument 'top_k'"): read_dictionary(path, top_k=3)
    good = load_file(w)
    for change,why in ((dict(b_enc=torch.full((11,), float('nan'))), 'b_enc holds NaN'), (dict(b_enc=torch.zeros(11, dtype=torch.long)), 'floating-point'), (dict(extra=torch.zeros(1)), 'expected were')):
        save_file(good | change, w)
        with pytest.raises(ValueError, match=why) as e: read_dictionary(path)
        assert str(w) in str(e.value)
    w.unlink(); w.mkdir()
    with pytest.raises(ValueError, match='not a file'): read_dictionary(path, 'sae_lens')
    w.rmdir(); os.mkfifo(w)
    with pytest.raises(ValueError, match='not a file'): read_dictionary(path, 'sae_lens')
    for text in ('[1, 2]', '{"d_in": ', '['*100_000, '\xff', '', '{"d_in": '+'9'*10_000+'}'):
        (path/'cfg.json').write_text(text, encoding='latin-1')
        with pytest.raises(ValueError, match='cfg.json'): read_dictionary(path, 'sae_lens')

def test_sniffing(tmp_path):
    with pytest.raises(ValueError, match=r'no known format. Known: .*sparsify \(cfg.json \+ sae.safetensors\)'): sniff(tmp_path)
    path = unpack(case_of('sae_lens', 'standard-True'), tmp_path/'a')
    assert sniff(path/'cfg.json')==sniff(path/'sae_weights.safetensors')=='sae_lens'
    shutil.copy(path/'sae_weights.safetensors', path/'sae.safetensors')
    with pytest.raises(ValueError, match='may be sae_lens or sparsify'): sniff(path)
    assert read_dictionary(path, 'sae_lens').name=='relu'
    assert sniff(unpack(case_of('gemma_scope', 'jumprelu'), tmp_path/'g')/'params.npz')=='gemma_scope'
    (path/'sae.safetensors').unlink(); (path/'sae_weights.safetensors').write_bytes(b'')
    assert sniff(path)=='sae_lens', 'no weight is looked at'
    (tmp_path/'pipe').mkdir(); os.mkfifo(tmp_path/'pipe'/'params.npz')
    for p in (tmp_path/'pipe', tmp_path/'pipe'/'params.npz'): # must not wait for someone to write
        with pytest.raises(ValueError, match='no known format'): sniff(p)
    (tmp_path/'x.npz').write_bytes(b'PK\x03\x04 no archive'); (tmp_path/'x.pt').write_bytes(b'')
    for f in ('x.npz', 'x.pt'):
        with pytest.raises(ValueError, match='no known format'): sniff(tmp_path/f)

def test_what_a_state_dict_does_not_say(tmp_path):
    path = unpack(case_of('overcomplete', 'TopKSAE-l2-linear'), tmp_path/'a')
    with pytest.raises(ValueError, match="kind='SAE' or kind='TopKSAE'"): read_dictionary(path)
    with pytest.raises(ValueError, match='top_k='): read_dictionary(path, kind='TopKSAE')
    with pytest.raises(ValueError, match='has no form here. Those that have: SAE, TopKSAE, JumpSAE'): read_dictionary(path, kind='MpSAE')
    with pytest.raises(ValueError, match='expected was one of l2'): read_dictionary(path, kind='SAE', normalization='l3')
    with pytest.raises(ValueError, match='k must be a whole number'): read_dictionary(path, kind='TopKSAE', top_k=99)
    state = torch.load(path, weights_only=True)
    torch.save(state | {'encoder.final_block.1.weight': torch.ones(11)}, path)
    with pytest.raises(ValueError, match='only one linear layer'): read_dictionary(path, kind='SAE')

def test_the_command(tmp_path, capsys):
    from sparsenb.cli import main
    path = unpack(case_of('sae_lens', 'topk-True'), tmp_path/'a')
    edit(path, 'cfg.json', new_thing=1)
    main(['convert', str(path), str(tmp_path/'b'), '--to', 'dictionary_learning'])
    out,err = capsys.readouterr()
    assert out==f"{tmp_path/'b'}\n" and 'new_thing' in err and sniff(tmp_path/'b')=='dictionary_learning'
    for argv,why in (([str(path), str(tmp_path/'b'), '--to', 'sparsify'], 'is there already'), ([str(path), str(tmp_path/'c'), '--to', 'sparsfy'], "did you mean 'sparsify'"), ([str(tmp_path), str(tmp_path/'c'), '--to', 'sparsify'], 'no known format')):
        with pytest.raises(SystemExit) as e: main(['convert', *argv])
        assert e.value.code==2 and why in capsys.readouterr().err and not (tmp_path/'c').exists()
    o = unpack(case_of('overcomplete', 'TopKSAE-l2-linear'), tmp_path/'o')
    main(['convert', str(o), str(tmp_path/'d'), '--to', 'sae_lens', '-p', 'kind', 'TopKSAE', '-p', 'top_k', '3'])
    assert read_dictionary(tmp_path/'d').cfg['k']==3
    capsys.readouterr()
    main(['list', 'formats'])
    listed = capsys.readouterr().out
    assert all(f'{n} ' in listed for n in formats)


# Damage

FUZZED = dict(sae_lens='jumprelu-True', sparsify='skip_transcoder', dictionary_learning='MatryoshkaBatchTopKSAE-5', overcomplete='TopKSAE-l2-own', gemma_scope='jumprelu', sparsenb='')
values = (None, True, False, 0, 1, -1, 2, 3, 10**9, 1<<70, -.5, 1e300, float('inf'), float('nan'), '', 'x', [], [1], {}, dict(a=1), 'topk', 'hook_z', 'l1')

def damage(files, r): return damaged(files, r, lambda n, b, r: swapped_json(b, r) if n.endswith('.json') else swapped(n, b, r))

def swapped_json(b, r):
    "Another value, one field less, one more, at any depth"
    try: o = json.loads(b)
    except ValueError: return b
    at = o
    while isinstance(at, dict) and at:
        k = r.choice(sorted(at))
        if isinstance(at[k], dict) and at[k] and r.random()<.7: at = at[k]; continue
        if r.random()<.3: del at[k]
        elif r.random()<.2: at[r.choice(('x', *at))] = at.pop(k)
        else: at[k] = r.choice(values)
        break
    return json.dumps(o).encode()

def swapped(name, b, r):
    "A file that can be read, with names, shapes or numbers changed"
    t = _tensors(name, b)
    if not t or any(v.layout!=torch.strided for v in t.values()): return b
    k,g = r.choice(sorted(t)),r.randrange(8)
    if g==0: t[r.choice((*t, 'x'))] = t.pop(k)
    elif g==1: t.pop(k)
    elif g==2: t[k] = t[k].t().contiguous() if t[k].ndim==2 else t[k].reshape(-1)[:1]
    elif g==3: t[k] = torch.zeros(tuple(r.randrange(4) for _ in range(r.randrange(4))))
    elif g==4: t[k] = t[k].to(r.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)))
    elif g==5 and t[k].is_floating_point(): t[k] = t[k]*float(r.choice(('nan', 'inf', '0', '-1', '1e38')))
    elif g==6: t['x'] = t[k].clone()
    else: t[k] = t[k].to_sparse() if t[k].ndim and name.endswith('.pt') else torch.zeros_like(t[k])
    f = io.BytesIO()
    if name.endswith('.npz'): np.savez(f, **{k: v.numpy() for k,v in t.items()}); return f.getvalue()
    if name.endswith('.pt'): torch.save(t, f); return f.getvalue()
    from safetensors.torch import save
    return save({k: v.clone() for k,v in t.items()})

def _tensors(name, b):
    from safetensors.torch import load
    try:
        if name.endswith('.npz'): return {k: torch.from_numpy(np.atleast_1d(v)) for k,v in np.load(io.BytesIO(b), allow_pickle=False).items()}
        return dict(torch.load(io.BytesIO(b), weights_only=True)) if name.endswith('.pt') else load(b)
    except Exception: return {}

def fuzz(format, n, folder, seed=0):
    "Read n damaged dictionaries: how many were refused and how many could be read; anything else raises"
    case = case_of(format, FUZZED[format]) if FUZZED[format] else None
    if case: path = unpack(case, folder)
    else: path = folder; trained('topk', k=4).save(path)
    if format=='overcomplete': (folder/'sae.json').write_text(json.dumps(dict(top_k=3, normalization='l2') | {'class': 'TopKSAE'}))
    whole,r,count = {p.name: p.read_bytes() for p in sorted(folder.iterdir())},random.Random(f'{format} {seed}'),dict(read=0, refused=0)
    allowed = (ValueError, FileNotFoundError, MemoryError) + ((UnknownName,) if format=='sparsenb' else ())
    for i in range(n):
        broken = damage(whole, r)
        for k,b in broken.items(): (folder/k).write_bytes(b)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if i%50==0: [formats[f].sniff(path) for f in formats]
            try: d = read_dictionary(path, format)
            except allowed as e:
                count['refused'] += 1
                assert len(str(e))<1500 and (folder.name in str(e) or format=='sparsenb'), str(e)
                continue
            except Exception as e: raise AssertionError(f"{format}, seed {seed}, number {i}: {type(e).__name__}: {e}") from e
        count['read'] += 1
        assert all(torch.isfinite(v).all() or k=='log_threshold' and not v.isnan().any() for k,v in d.named_parameters())
        d(torch.zeros(2, d.d_in))
    assert {p.name for p in folder.iterdir()}=={*whole}
    return count

@pytest.mark.parametrize('format', sorted(FUZZED))
def test_damaged_files_are_refused(format, tmp_path):
    "Byte flips, cuts, swapped names, shapes and fields: one of the errors promised, or a whole dictionary of finite numbers"
    count = fuzz(format, 300, tmp_path/'damaged')
    assert count['refused']>100 and count['refused']+count['read']==300


def write_for_peers(folder):
    "Our files with what we compute from them, for `fixtures/formats/write.py PEER check FOLDER`"
    for format,method,kw in WRITTEN:
        if format=='sparsenb': continue
        d,x = ours(format, method, kw)
        path = folder/format/f"{method}{'-cross' if 'd_out' in kw else ''}"
        path.mkdir(parents=True)
        write_dictionary(d, path/'sae.pt' if format=='overcomplete' else path, format)
        Path(f'{path}.json').write_text(json.dumps(dict(x=x.tolist(), f=d.encode(x).tolist(), x_hat=d(x).tolist())))

if __name__=='__main__':
    write_for_peers(Path(sys.argv[1]))
    for f in sorted(FUZZED) if sys.argv[2:] else (): print(f, fuzz(f, int(sys.argv[2]), Path(sys.argv[1])/f'fuzz-{f}', seed=1), flush=True)
