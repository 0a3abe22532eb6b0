"""OpenAI's autoencoders, circuit-tracer's transcoders (per layer, across layers) and attribution graphs: their numbers by their definitions in NumPy, round trips, refusals, damage.

`python tests/test_more_formats.py FOLDER N` reads N damaged inputs of each.
"""
import collections, io, json, os, random, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load, load_file, save, save_file
from sparsenb.convert import convert, read_dictionary, sniff, write_dictionary
from sparsenb.core import dictionaries, formats
from sparsenb.formats.openai import layer_norm
from sparsenb.formats.plt import write_layers, yaml_fields
from sparsenb.graphs import check_graph, error_node, export_graph, feature_node, feature_number, logit_node, read_graph, token_node
from damaging import damaged

torch.set_num_threads(1)
near = lambda a,b,tol=1e-5: torch.testing.assert_close(torch.as_tensor(a).detach().float(), torch.as_tensor(b).detach().float(), rtol=tol, atol=tol)
relu = lambda a: np.maximum(a, 0)

def numbers(*shape, seed=0):
    "Numbers without a generator, the same everywhere, about as large as normal ones"
    return (1.5*np.sin(1+np.arange(np.prod(shape, dtype=int))*(1.37+.11*seed)+seed)).reshape(shape).astype('float32')

D,N,L = 5,12,3
x = numbers(30, D, seed=9)


# OpenAI

def openai_state(k=None, d=D, n=N):
    "The entries of their `Autoencoder.state_dict()`, in their order"
    t = {p: torch.tensor(numbers(*s, seed=i)) for i,(p,s) in enumerate({'pre_bias': (d,), 'latent_bias': (n,), 'encoder.weight': (n, d), 'decoder.weight': (d, n)}.items())}
    stats = dict(stats_last_nonzero=torch.arange(n), latents_activation_frequency=torch.ones(n), latents_mean_square=torch.zeros(n))
    own = dict(activation='TopK', activation_state_dict=collections.OrderedDict(k=k, postact_fn='ReLU')) if k else dict(activation='ReLU', activation_state_dict=collections.OrderedDict())
    return collections.OrderedDict({'pre_bias': t['pre_bias'], 'latent_bias': t['latent_bias'], **stats, 'encoder.weight': t['encoder.weight'], 'decoder.weight': t['decoder.weight'], **own})

def openai_forward(s, x, k=None):
    "Latents and reconstruction by their code's definition: TopK means LN before and its inverse after"
    w = {n: v.numpy() for n,v in s.items() if torch.is_tensor(v)}
    mu = x.mean(1, keepdims=True) if k else 0
    std = (x-mu).std(1, ddof=1, keepdims=True) if k else 1
    z = ((x-mu)/(std+1e-5) if k else x) - w['pre_bias']
    pre = z@w['encoder.weight'].T + w['latent_bias']
    f = relu(np.where(pre>=np.sort(pre, 1)[:,[-(k or pre.shape[1])]], pre, 0))
    return f, (f@w['decoder.weight'].T + w['pre_bias'])*std + mu

def test_openai_relu_is_their_function(tmp_path):
    s = openai_state()
    torch.save(s, tmp_path/'0.pt')
    d,(f,y) = read_dictionary(tmp_path/'0.pt'),openai_forward(s, x)
    assert sniff(tmp_path/'0.pt')=='openai' and d.name=='relu' and not d.training and (f==0).any() and (f>0).any()
    near(d.encode(torch.tensor(x)), f); near(d(torch.tensor(x)), y)
    torch.save({k: v for k,v in s.items() if 'activation' not in k and 'latents' not in k}, tmp_path/'1.pt') # their loader takes ReLU where nothing is said
    near(read_dictionary(tmp_path/'1.pt')(torch.tensor(x)), y)

def test_openai_files_are_written_again_and_others_kept(tmp_path):
    a,b = (dictionaries['relu'](D, N, seed=s) for s in (0, 1))
    for d in (a, b): write_dictionary(d, tmp_path/'a.pt', 'openai')
    assert torch.equal(read_dictionary(tmp_path/'a.pt').W_enc, b.W_enc)
    for p,was in ((tmp_path/'a.json', '{"other": 1}'), (tmp_path/'a.pt', 'mine')):
        own = p.read_bytes(); p.write_text(was)
        with pytest.raises(FileExistsError, match=f'{p.name} is there already'): write_dictionary(a, tmp_path/'a.pt', 'openai')
        assert p.read_text()==was
        p.write_bytes(own)

def test_openai_topk_is_refused_or_their_function(tmp_path):
    s = openai_state(3)
    path = tmp_path/'gpt2-small'/'resid_delta_mlp_v5_32k'/'autoencoders'/'6.pt'
    path.parent.mkdir(parents=True); torch.save(s, path)
    with pytest.raises(ValueError, match='spread first, which no weights can do. Read with normalized=True .-p normalized 1'): read_dictionary(path)
    d,(f,y) = read_dictionary(path, normalized=True),openai_forward(s, x, 3)
    z,mean,std = layer_norm(torch.tensor(x))
    near(d.encode(z), f); near(d(z)*std+mean, y)
    assert (d.provenance['site'], d.provenance['model_name'], d.provenance['normalized'])==('mlp_out.6', 'gpt2', 'layer_norm')
    torch.save(s | {'activation.k': 3, 'activation.postact_fn': 'ReLU'}, path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        near(read_dictionary(path, normalized=True)(z), d(z), 0)
    torch.save(s | {'activation.k': 4}, path)
    with pytest.raises(ValueError, match="activation.k is '4', which does not agree"): read_dictionary(path, normalized=True)
    write_dictionary(d, tmp_path/'again.pt', 'openai')
    again = torch.load(tmp_path/'again.pt', weights_only=True)
    assert [*again]==[*s] and again['activation_state_dict']==dict(k=3, postact_fn='ReLU')
    for k in ('pre_bias','latent_bias','encoder.weight','decoder.weight'): assert torch.equal(again[k], s[k])
    back = read_dictionary(tmp_path/'again.pt', normalized=True)
    assert back.cfg==d.cfg and torch.equal(back(z), d(z)) and back.provenance['site']=='mlp_out.6'
    with pytest.raises(ValueError, match='normalises the input of every TopK'): write_dictionary(dictionaries['topk'](D, N, k=3), tmp_path/'b.pt', 'openai')
    with pytest.raises(ValueError, match='writes another activation'): write_dictionary(dictionaries['relu'](D, N, d_out=D), tmp_path/'b.pt', 'openai')
    assert sorted(p.name for p in tmp_path.iterdir())==['again.json', 'again.pt', 'gpt2-small']

@pytest.mark.parametrize('change,why', [(dict(activation='Identity'), "'Identity' has no form here"), (dict(activation_state_dict=dict(k=3, postact_fn='Identity')), 'keeps no negative value'), (dict(activation_state_dict=dict(k=0, postact_fn='ReLU')), 'whole number'),
    (dict(activation_state_dict=dict(k=99, postact_fn='ReLU')), 'k must be a whole number in 1..d_sae=12'), ({'decoder.weight': torch.zeros(N, D)}, r'decoder.weight has shape \(12, 5\), \(5, 12\)'), (dict(pre_bias=torch.full((D,), float('nan'))), 'pre_bias holds NaN'),
    ({'decoder.weight': None}, 'neither|expected were'), (dict(stats_last_nonzero=torch.zeros(2)), 'stats_last_nonzero'), (dict(extra=torch.zeros(2)), 'expected were'), (dict(activation_state_dict=dict(k=[1], postact_fn='ReLU')), 'nor a plain setting'), (dict(activation_state_dict=dict(k=1<<900, postact_fn='ReLU')), 'k must be a whole number')])
def test_openai_what_cannot_be_read(change, why, tmp_path):
    torch.save(openai_state(3) | change, tmp_path/'a.pt')
    with pytest.raises(ValueError, match=why) as e: read_dictionary(tmp_path/'a.pt', 'openai', normalized=True)
    assert 'a.pt' in str(e.value) and len(str(e.value))<1000

class Trap:
    "Runs on being unpickled"
    ran = []
    def __reduce__(self): return (Trap.ran.append, (1,))

def test_openai_no_code_is_run(tmp_path):
    Trap.ran = []
    for o in (openai_state() | dict(activation=Trap()), Trap(), torch.nn.Linear(2, 2), os.system):
        torch.save(o, tmp_path/'a.pt')
        with pytest.raises(ValueError, match='pickled object.*refused'): read_dictionary(tmp_path/'a.pt', 'openai')
    deep = []
    for _ in range(60): deep = [deep, deep] # as text it would fill the memory
    torch.save(openai_state() | dict(activation=deep), tmp_path/'a.pt')
    with pytest.raises(ValueError, match='nor a plain setting'): read_dictionary(tmp_path/'a.pt', 'openai')
    assert Trap.ran==[]

def test_openai_unknown_settings_are_kept_and_named(tmp_path):
    torch.save(openai_state() | dict(new_thing='x'), tmp_path/'a.pt')
    with pytest.warns(UserWarning, match='a.pt.*new_thing'): d = read_dictionary(tmp_path/'a.pt')
    assert d.provenance['fields']==dict(new_thing='x')


# Per-layer transcoders

def plt_layer(l=0, threshold=False, skip=False):
    w = {k: torch.tensor(numbers(*s, seed=i+7*l)) for i,(k,s) in enumerate(dict(W_enc=(N, D), W_dec=(N, D), b_enc=(N,), b_dec=(D,)).items())}
    return w | ({'activation_function.threshold': torch.tensor(abs(numbers(N, seed=5)))} if threshold else {}) | (dict(W_skip=torch.tensor(numbers(D, D, seed=6+l))) if skip else {})

def plt_forward(w, x, k=None):
    w = {n: v.numpy() for n,v in w.items()}
    pre = x@w['W_enc'].T + w['b_enc']
    theta = w.get('activation_function.threshold', 0)
    if k: theta = np.sort(pre, 1)[:,[-k-1]] # theirs keeps the k largest whatever their sign
    f = pre*(pre>theta)
    return f, f@w['W_dec'] + w['b_dec'] + (x@w['W_skip'].T if 'W_skip' in w else 0)

CONFIG = 'model_name: gpt2\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n'

@pytest.mark.parametrize('kw,method', [({}, 'relu'), (dict(threshold=True), 'jumprelu'), (dict(skip=True), 'skip_transcoder')])
def test_plt_is_their_function(kw, method, tmp_path):
    for l in (0, 1): save_file(plt_layer(l, **kw), tmp_path/f'layer_{l}.safetensors')
    (tmp_path/'config.yaml').write_text(CONFIG)
    assert sniff(tmp_path)==sniff(tmp_path/'layer_1.safetensors')=='plt'
    with pytest.raises(ValueError, match='holds 2 layers, 0 to 1: say which'): read_dictionary(tmp_path)
    for l in (0, 1):
        d,(f,y) = read_dictionary(tmp_path, layer=l),plt_forward(plt_layer(l, **kw), x)
        near(d.encode(torch.tensor(x)), f); near(d(torch.tensor(x)), y)
        assert d.name==method and (d.provenance['site'], d.provenance['site_out'], d.provenance['model_name'])==(f'mlp_in.{l}', f'mlp_out.{l}', 'gpt2') and (f==0).any() and (f>0).any()
    near(read_dictionary(tmp_path/'layer_0.safetensors')(torch.tensor(x)), plt_forward(plt_layer(0, **kw), x)[1])
    for n,form in (('again', 'plt'), ('lens', 'sae_lens')):
        write_dictionary(d, tmp_path/n, form)
        near(read_dictionary(tmp_path/n)(torch.tensor(x)), y)
    back = read_dictionary(tmp_path/'again')
    assert {p.name for p in (tmp_path/'again').iterdir()}=={'config.yaml', 'layer_1.safetensors'} and back.cfg==d.cfg and back.provenance['site_out']=='mlp_out.1'
    for k,v in load_file(tmp_path/'again'/'layer_1.safetensors').items(): near(v, plt_layer(1, **kw)[k], 1e-6)
    said = yaml_fields(tmp_path/'again'/'config.yaml').left
    assert said==dict(model_name='gpt2', model_kind='transcoder_set', feature_input_hook='mlp.hook_in', feature_output_hook='hook_mlp_out') | ({} if 'threshold' in kw else dict(activation='relu'))

def test_plt_half_precision_and_topk(tmp_path):
    w = {k: v.bfloat16() for k,v in plt_layer().items()}
    save_file(w, tmp_path/'layer_0.safetensors')
    near(read_dictionary(tmp_path)(torch.tensor(x)), plt_forward({k: v.float() for k,v in w.items()}, x)[1])
    (tmp_path/'config.yaml').write_text(CONFIG+'activation: topk\nk: 3\n')
    with pytest.raises(ValueError, match='whatever their sign.*positive=True'): read_dictionary(tmp_path)
    d = read_dictionary(tmp_path, positive=True)
    f,y = plt_forward({k: v.float() for k,v in w.items()}, x, 3)
    same = (f>=0).all(1)
    assert d.name=='transcoder' and d.k==3 and same.sum()>20
    near(d(torch.tensor(x))[same], y[same])
    with pytest.raises(ValueError, match='keeps k=3 of 12'): write_dictionary(d, tmp_path/'b', 'plt')
    save_file(w | dict(k=torch.tensor(4)), tmp_path/'layer_0.safetensors') # as their own writer notes it
    with pytest.raises(ValueError, match='does not agree with 3'): read_dictionary(tmp_path, positive=True)
    (tmp_path/'config.yaml').write_text(CONFIG)
    assert read_dictionary(tmp_path, positive=True).k==4

METHODS = dict(relu={}, jumprelu={}, batch_topk=dict(k=4), matryoshka=dict(k=4, prefixes=[4, 9]), topk=dict(k=N), transcoder=dict(k=N), skip_transcoder=dict(k=N))
def trained(method, seed=0, **kw):
    d = dictionaries[method](D, N, d_out=D, seed=seed, **kw).eval()
    with torch.no_grad():
        for i,(k,p) in enumerate(d.named_parameters()): p.copy_(torch.tensor(numbers(*p.shape, seed=i+seed)))
        if method in ('batch_topk','matryoshka'): d.threshold.fill_(.6)
    d.scale.fill_(1.7); d.scale_out.fill_(.6)
    d.provenance = dict(model_name='stdlib-4l', site=f'resid_mid.{seed}', site_out=f'mlp_out.{seed}', training=dict(lr=.1))
    return d

@pytest.mark.parametrize('method', METHODS)
def test_plt_there_and_back(method, tmp_path):
    ds = [trained(method, s, **METHODS[method]) for s in (0, 1)]
    write_layers(ds, tmp_path/'a')
    assert [p.name for p in tmp_path.iterdir()]==['a']
    for l,d in enumerate(ds):
        back,t = read_dictionary(tmp_path/'a', layer=l),torch.tensor(x)
        for a,b in ((back.encode(t), d.encode(t)), (back(t), d(t))): near(a, b, 2e-6*max(1, b.abs().max().item()))
        assert back.cfg==d.cfg and back.name==d.name and back.provenance['training']==dict(lr=.1) and (d.encode(t)==0).any()
    convert(tmp_path/'a', tmp_path/'lens', 'sae_lens', layer=1)
    near(read_dictionary(tmp_path/'lens')(t), d(t), 2e-5)

def test_plt_what_cannot_be_held(tmp_path):
    for d,why in ((dictionaries['relu'](D, N), 'rebuilds its input'), (dictionaries['relu'](D, N, d_out=3), 'reads 5 and writes 3'), (dictionaries['gated'](D, N, d_out=D), 'no form for'), (dictionaries['transcoder'](D, N, d_out=D, k=3), 'keeps k=3 of 12')):
        with pytest.raises(ValueError, match=why): write_dictionary(d, tmp_path/'a', 'plt')
    with pytest.raises(ValueError, match='one size was expected'): write_layers([trained('relu'), dictionaries['relu'](D, 7, d_out=D)], tmp_path/'a')
    with pytest.raises(ValueError, match='at least one'): write_layers([], tmp_path/'a')
    with pytest.warns(UserWarning, match='needs to know where'): write_dictionary(dictionaries['relu'](D, N, d_out=D), tmp_path/'b', 'plt')
    with pytest.raises(FileExistsError, match='choose another'): write_layers([trained('relu')], tmp_path/'b', first=1)
    assert [p.name for p in tmp_path.iterdir()]==['b']

@pytest.mark.parametrize('change,config,why', [(dict(W_enc=torch.zeros(D, N)), '', 'was expected'), (dict(b_enc=torch.full((N,), float('inf'))), '', 'b_enc holds NaN or infinity'), (dict(W_skip=torch.zeros(D, D)), 'activation: jump_relu', 'no thresholds'), (dict(other=torch.zeros(1)), '', 'expected were'),
    ({'activation_function.threshold': torch.full((N,), -1.)}, '', 'below 0'), ({'activation_function.threshold': torch.zeros(N), 'W_skip': torch.zeros(D, D)}, '', 'no dictionary here has both'), ({}, 'activation: gelu', "'gelu' has no form"), ({}, 'activation: topk', 'no k'),
    ({}, 'model_kind: cross_layer_transcoder', 'transcoder_set was expected'), ({}, 'transcoders: ["hf://a/b/c.npz"]', 'lie elsewhere'), (dict(k=torch.tensor(0)), '', 'at least 1'), ({}, 'a: &b [1]\nc: *b', 'aliases'), ({}, 'a: !!python/object/apply:os.system ["touch ran"]', 'could not determine a constructor'),
    ({}, 'a: '+'['*20_000, 'config.yaml'), ({}, 'x: '+'y'*70_000, '65536'), ({}, 'a: {b: [}', 'YAML'), ({}, '[1, 2]', 'no object'), ({}, 'k: 0x'+'f'*9000, 'config.yaml')])
def test_plt_what_cannot_be_read(change, config, why, tmp_path):
    save_file(plt_layer() | change, tmp_path/'layer_0.safetensors')
    (tmp_path/'config.yaml').write_text(config or CONFIG)
    with pytest.raises(ValueError, match=why) as e: read_dictionary(tmp_path, 'plt')
    assert tmp_path.name in str(e.value) and len(str(e.value))<1000 and not os.path.exists('ran')

def test_plt_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match='no plt dictionary'): read_dictionary(tmp_path, 'plt')
    save_file(plt_layer(), tmp_path/'layer_2.safetensors')
    assert read_dictionary(tmp_path).provenance['layer']==2
    with pytest.raises(ValueError, match="no layer 0; it has 2"): read_dictionary(tmp_path, layer=0)
    with pytest.raises(ValueError, match="no layer '2'"): read_dictionary(tmp_path, layer='2')
    (tmp_path/'config.yaml').write_text('feature_output_hook: mlp.hook_out\nnew_thing: 2020-01-01\n')
    with pytest.warns(UserWarning, match='new_thing'): d = read_dictionary(tmp_path)
    assert d.provenance['fields']==dict(new_thing='2020-01-01') and d.provenance['feature_output_hook']=='mlp.hook_out' and 'site_out' not in d.provenance
    with pytest.warns(UserWarning, match='needs to know where'): write_dictionary(d, tmp_path/'b', 'plt')
    back = read_dictionary(tmp_path/'b'/'layer_2.safetensors') # a place without a name here keeps theirs
    assert back.provenance['feature_output_hook']=='mlp.hook_out' and back.provenance['layer']==2
    (tmp_path/'config.yaml').unlink(); os.mkfifo(tmp_path/'config.yaml')
    with pytest.raises(ValueError, match='not a file'): read_dictionary(tmp_path)


# Cross-layer transcoders

def clt_files(folder, threshold=False, skip=False, n=L):
    folder.mkdir(parents=True, exist_ok=True)
    w = {}
    for i in range(n):
        enc = dict(W_enc=(N, D), b_enc=(N,), b_dec=(D,)) | (dict(threshold=(N,)) if threshold else {}) | (dict(W_skip=(D, D)) if skip else {})
        enc = {f'{k}_{i}': torch.tensor(abs(a) if k=='threshold' else a) for j,(k,s) in enumerate(enc.items()) for a in [numbers(*s, seed=3*i+j)]}
        dec = {f'W_dec_{i}': torch.tensor(numbers(N, n-i, D, seed=2*i+1))}
        save_file(enc, folder/f'W_enc_{i}.safetensors'); save_file(dec, folder/f'W_dec_{i}.safetensors')
        w |= enc | dec
    (folder/'config.yaml').write_text('model_name: gpt2\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n')
    return {k: v.numpy() for k,v in w.items()}

def clt_forward(w, x): # x (rows, layers, d)
    "By the definition: a feature writes its own and all later layers"
    n = x.shape[1]
    pre = [x[:,i]@w[f'W_enc_{i}'].T + w[f'b_enc_{i}'] for i in range(n)]
    f = [p*(p>w.get(f'threshold_{i}', 0)) for i,p in enumerate(pre)]
    y = [w[f'b_dec_{j}'] + (x[:,j]@w[f'W_skip_{j}'] if f'W_skip_{j}' in w else 0) + sum(np.einsum('rn,nd->rd', f[i], w[f'W_dec_{i}'][:,j-i]) for i in range(j+1)) for j in range(n)]
    return np.stack(f, 1), np.stack(y, 1)

xs = numbers(30, L, D, seed=4)

@pytest.mark.parametrize('kw,method', [({}, 'crosscoder'), (dict(threshold=True), 'jumprelu'), (dict(skip=True), 'skip_transcoder')])
def test_clt_is_their_function(kw, method, tmp_path):
    w = clt_files(tmp_path/'a', **kw)
    assert sniff(tmp_path/'a')=='clt'
    d,t,(f,y) = read_dictionary(tmp_path/'a'),torch.tensor(xs).flatten(1),clt_forward(w, xs)
    near(d.encode(t).view(30, L, N), f); near(d(t).view(30, L, D), y, 2e-5)
    assert d.name==method and (f==0).any() and (f>0).any() and (d.provenance['site'], d.provenance['site_out'])==('resid_mid.0 | resid_mid.1 | resid_mid.2', 'mlp_out.0 | mlp_out.1 | mlp_out.2')
    ones = [read_dictionary(tmp_path/'a', layer=i) for i in range(L)]
    for i,o in enumerate(ones):
        near(o.encode(torch.tensor(xs[:,i])), f[:,i])
        assert o.d_out==(L-i)*D and o.provenance['site']==f'resid_mid.{i}' and o.provenance['site_out'].startswith(f'mlp_out.{i}')
        with pytest.raises(ValueError, match=f'this is layer {i} of a cross-layer transcoder'): write_dictionary(o, tmp_path/'c', 'clt')
    near(sum(torch.nn.functional.pad(o(torch.tensor(xs[:,i])), (i*D, 0)) for i,o in enumerate(ones)).view(30, L, D), y, 2e-5)
    write_dictionary(d, tmp_path/'b', 'clt')
    for p in (tmp_path/'a').glob('*.safetensors'):
        for k,v in load_file(tmp_path/'b'/p.name).items(): near(v, w[k], 1e-6)
    assert {p.name for p in (tmp_path/'b').iterdir()}=={p.name for p in (tmp_path/'a').iterdir()} and yaml_fields(tmp_path/'b'/'config.yaml').left==yaml_fields(tmp_path/'a'/'config.yaml').left
    back = read_dictionary(tmp_path/'b')
    assert back.cfg==d.cfg and back.name==d.name and sorted(p.name for p in tmp_path.iterdir())==['a', 'b']
    near(back(t), d(t), 1e-5)

def test_clt_of_a_trained_crosscoder_is_none(tmp_path):
    d = dictionaries['crosscoder'](L*D, L*N, d_out=L*D, widths=[D]*L, widths_out=[D]*L, activation='relu')
    with pytest.raises(ValueError, match='what layer 0 reads reaches others'): write_dictionary(d, tmp_path/'a', 'clt')
    for bad,why in ((dictionaries['crosscoder'](L*D, L*N, widths=[D]*L, activation='relu'), 'reads and writes as many'), (dictionaries['crosscoder'](L*D, 10, k=4, d_out=L*D, widths=[D]*L, widths_out=[D]*L, activation='relu'), 'has 10 features'),
                    (dictionaries['crosscoder'](L*D, L*N, d_out=L*D, widths=[D]*L, widths_out=[D]*L), 'keeps every positive'), (dictionaries['relu'](D, N, d_out=D), 'how many layers')):
        with pytest.raises(ValueError, match=why): write_dictionary(bad, tmp_path/'a', 'clt')
    assert [*tmp_path.iterdir()]==[]

def test_clt_with_data_scales(tmp_path):
    "The factors of each site are in the files"
    clt_files(tmp_path/'a')
    d,t = read_dictionary(tmp_path/'a'),torch.tensor(xs).flatten(1)
    d.scale.fill_(1.3); d.scale_out.fill_(.7); d.site_scale.copy_(torch.tensor([1., 2, 3]).repeat_interleave(D)); d.site_scale_out.copy_(torch.tensor([.5, 1, 4]).repeat_interleave(D))
    write_dictionary(d, tmp_path/'b', 'clt')
    near(read_dictionary(tmp_path/'b')(t), d(t), 1e-4)

def test_clt_what_cannot_be_read(tmp_path, monkeypatch):
    a = tmp_path/'a'
    clt_files(a)
    whole = {p.name: p.read_bytes() for p in a.iterdir()}
    def broken(why, error=ValueError, **kw):
        with pytest.raises(error, match=why) as e: read_dictionary(a, 'clt', **kw)
        assert str(a) in str(e.value)
        for n,b in whole.items(): (a/n).write_bytes(b)
    broken("no layer 3; it has 0 to 2", layer=3); broken('no layer True', layer=True)
    (a/'W_enc_1.safetensors').unlink(); broken('one file for each of 0 to 1', FileNotFoundError)
    (a/'W_dec_2.safetensors').unlink(); broken('holds W_dec of layers 0, 1; one file for each of 0 to 2', FileNotFoundError)
    (a/'W_dec_1.safetensors').write_bytes(whole['W_dec_0.safetensors']); broken('W_dec_1.safetensors holds W_dec_0')
    (a/'W_enc_1.safetensors').write_bytes(whole['W_enc_1.safetensors'][:-9]); broken('W_enc_1.safetensors cannot be read')
    save_file(load_file(a/'W_enc_1.safetensors') | dict(threshold_1=torch.zeros(N)), a/'W_enc_1.safetensors'); broken('expected were')
    save_file(load_file(a/'W_dec_1.safetensors') | dict(W_dec_1=torch.full((N, 2, D), float('nan'))), a/'W_dec_1.safetensors'); broken('W_dec_1 holds NaN')
    for i in range(L): save_file(load_file(a/f'W_enc_{i}.safetensors') | {f'threshold_{i}': torch.full((N,), -1.)}, a/f'W_enc_{i}.safetensors')
    broken('below 0')
    (a/'config.yaml').write_text('model_kind: transcoder_set'); broken('cross_layer_transcoder was expected')
    monkeypatch.setenv('SPARSENB_MEMORY', '10kB')
    with pytest.raises(MemoryError, match='read one layer with layer='): read_dictionary(a)


# Attribution graphs

def small_graph():
    nodes = dict(word=token_node(50, 0, .1), more=token_node(7, 1), one=feature_node(0, 391, 0, 2.5, .4, 'a "label"'), other=feature_node(2, 14696, 1, 1.), rest=error_node(1, 0), out=logit_node(9, 1, ' </script>', .5, 3, True))
    return nodes, [('word', 'one', 1.5), ('one', 'rest', -2.), ('rest', 'other', .25), ('one', 'other', 3), ('other', 'out', 1e-3), ('more', 'out', 2.)]

def write_small(path, **kw):
    nodes,links = small_graph()
    return export_graph([*nodes.values()], [(nodes[a], nodes[b], w) for a,b,w in links], path, ['def', ' f'], 'gpt2-small', **kw)

def test_graph_names_and_numbers():
    "As in a graph that circuit-tracer wrote"
    assert [feature_number(l, f) for l,f in ((0, 391), (2, 14696), (3, 234), (25, 3681), (24, 11048))]==[77027, 108037647, 28437, 6872752, 61311176]
    for node,told in ((feature_node(2, 526, 3, 72.5, .45), dict(node_id='2_526_3', feature=140182, layer='2', ctx_idx=3, feature_type='cross layer transcoder', jsNodeId='2_526-0', clerp='', influence=.45, activation=72.5)),
            (error_node(18, 3, .39), dict(node_id='18_-1_3', feature=-1, layer='18', ctx_idx=3, feature_type='mlp reconstruction error', jsNodeId='18_-1-3', activation=None)),
            (token_node(236770, 1, .19), dict(node_id='E_236770_1', feature=1, layer='E', ctx_idx=1, feature_type='embedding', jsNodeId='E_236770-1')),
            (logit_node(236812, 3, '4', .328125, 26, True), dict(node_id='27_236812_3', feature=236812, layer='27', feature_type='logit', token_prob=.328125, is_target_logit=True, jsNodeId='L_236812-3', clerp='Output "4" (p=0.328)', influence=None))):
        assert {k: node[k] for k in told}==told and set(node)=={'node_id','feature','layer','ctx_idx','feature_type','token_prob','is_target_logit','run_idx','reverse_ctx_idx','jsNodeId','clerp','influence','activation'}

def test_graph_there_and_back(tmp_path):
    nodes,links = small_graph()
    path = write_small(tmp_path/'my-graph.json', pinned=[nodes['one'], '2_14696_1'], groups={'start': [nodes['one'], nodes['rest']]}, source_set='res-jb', node_threshold=.8, info=dict(creator_name='me'))
    g = read_graph(path)
    assert g==json.loads(path.read_text()) and g['nodes']==[*nodes.values()] and [(l['source'], l['target'], l['weight']) for l in g['links']]==[(nodes[a]['node_id'], nodes[b]['node_id'], w) for a,b,w in links]
    assert g['metadata']==dict(slug='my-graph', scan='gpt2-small', transcoder_list=[], prompt_tokens=['def', ' f'], prompt='def f', schema_version=1, info=dict(creator_name='me'), node_threshold=.8, feature_details=dict(neuronpedia_source_set='res-jb'))
    assert g['qParams']==dict(pinnedIds=['0_391_0', '2_14696_1'], supernodes=[['start', '0_391_0', '1_-1_0']], linkType='both', clickedId='', sg_pos='')
    t,n = torch.tensor(1.5),np.float32(.25)
    odd = export_graph([token_node(torch.tensor(3), 0), feature_node(0, np.int64(2), 0, t, n, 'half \ud800')], [('E_3_0', '0_2_0', t)], tmp_path/'odd.json', ['\ud83d'], 'm')
    assert read_graph(odd)['links'][0]['weight']==1.5 and read_graph(odd)['nodes'][1]['clerp']=='half \ufffd' and read_graph(odd)['nodes'][1]['influence']==.25

@pytest.mark.parametrize('change,why', [(lambda g: g.pop('links'), 'has no links'), (lambda g: g['metadata'].pop('scan'), 'metadata has no scan'), (lambda g: g['nodes'][2].update(feature='391'), "feature is '391', a whole number or null"), (lambda g: g['nodes'].append(g['nodes'][0]), "two nodes are named 'E_50_0'"),
    (lambda g: g['links'][0].update(source='0_0_0'), "no node '0_0_0'"), (lambda g: g['links'][0].update(weight=float('nan')), 'weight is .nan., a finite number'), (lambda g: g['links'][0].update(weight=10**400), 'a finite number'), (lambda g: g['nodes'][0].update(ctx_idx=2), "position 2 is not among the prompt's 2 tokens"),
    (lambda g: g['links'].append(dict(source='2_14696_1', target='0_391_0', weight=1.)), 'against the computation'), (lambda g: g['links'].append(dict(source='4_9_1', target='2_14696_1', weight=1.)), 'against the computation'), (lambda g: g['links'].append(dict(source='E_7_1', target='0_391_0', weight=1.)), 'against the computation'),
    (lambda g: g['qParams'].update(pinnedIds=['x']), "no node 'x'"), (lambda g: g['metadata']['prompt_tokens'].append(3), "'3' is no text"), (lambda g: g['nodes'][0].update(influence=True), 'a finite number or null'), (lambda g: g.update(nodes={}), 'a list was expected'), (lambda g: g['links'].__setitem__(0, 3), 'an object was expected')])
def test_graph_what_is_none(change, why, tmp_path):
    g = read_graph(write_small(tmp_path/'a.json'))
    change(g)
    with pytest.raises(ValueError, match=why): check_graph(g)

def test_graph_nothing_is_written_or_lost(tmp_path):
    node = token_node(1, 0)
    for kw,why in ((dict(slug='a b'), 'slug'), (dict(pinned=['x']), "no node 'x'"), (dict(links=[(node, 'x', 1.)]), "no node 'x'"), (dict(links=[(node, 1.)]), 'source, target, weight'), (dict(path=tmp_path/'a.txt'), 'ends in .json'), (dict(nodes=[3]), 'an object')):
        with pytest.raises(ValueError, match=why): export_graph(**dict(nodes=[node], links=[], path=tmp_path/'a.json', prompt_tokens=['a'], model='m') | kw)
    assert [*tmp_path.iterdir()]==[]
    write_small(tmp_path/'a.json')
    before = (tmp_path/'a.json').read_bytes()
    with pytest.raises(FileExistsError, match='choose another'): write_small(tmp_path/'a.json')
    assert (tmp_path/'a.json').read_bytes()==before
    with pytest.raises(FileNotFoundError, match='b.json'): read_graph(tmp_path/'b.json')


# The family

def test_formats_are_told_apart(tmp_path):
    torch.save(openai_state(), tmp_path/'0.pt')
    save_file(plt_layer(), (tmp_path/'plt').mkdir() or tmp_path/'plt'/'layer_0.safetensors')
    clt_files(tmp_path/'clt')
    for p,n in (('0.pt', 'openai'), ('plt', 'plt'), ('clt', 'clt')): assert [f for f in formats if formats[f].sniff(tmp_path/p)]==[n]
    for f in ('openai', 'plt', 'clt'):
        with pytest.raises(FileNotFoundError, match='does not exist'): read_dictionary(tmp_path/'none', f)

def test_the_command(tmp_path, capsys):
    from sparsenb.cli import main
    write_layers([trained('jumprelu', s) for s in (0, 1)], tmp_path/'a')
    main(['convert', str(tmp_path/'a'), str(tmp_path/'b'), '--to', 'sae_lens', '-p', 'layer', '1'])
    main(['convert', str(tmp_path/'b'), str(tmp_path/'c'), '--to', 'plt'])
    near(read_dictionary(tmp_path/'c')(torch.tensor(x)), trained('jumprelu', 1)(torch.tensor(x)), 2e-5)
    torch.save(openai_state(3), tmp_path/'6.pt')
    main(['convert', str(tmp_path/'6.pt'), str(tmp_path/'e'), '--to', 'sparsenb', '-p', 'normalized', '1'])
    assert read_dictionary(tmp_path/'e').provenance['normalized']=='layer_norm'
    for path,how in (('6.pt', 'normalized'), ('c', 'positive')):
        with pytest.raises(SystemExit): main(['convert', str(tmp_path/path), str(tmp_path/'f'), '--to', 'sparsenb', '-p', how, 'no'])
        assert f"{how} is True or False (1 or 0 in a command), got 'no'" in capsys.readouterr().err
    with pytest.raises(SystemExit): main(['convert', str(tmp_path/'a'), str(tmp_path/'d'), '--to', 'sae_lens'])
    assert 'say which with layer=' in capsys.readouterr().err and not (tmp_path/'d').exists()


# Damage

values = (None, True, False, 0, 1, -1, 2, 3, 10**9, 1<<70, 10**400, -.5, 1e300, float('inf'), float('nan'), '', 'x', [], [1], {}, dict(a=1), 'topk', 'relu', 'ReLU', 'TopK', 'E', '2')

def damage(files, r): return damaged(files, r, lambda n, b, r: (swapped_fields if n.endswith(('.json', '.yaml')) else swapped_tensors)(n, b, r))

def swapped_fields(name, b, r):
    "Another value, one field less, one more, at any depth"
    try: o = json.loads(b) if name.endswith('.json') else dict(line.split(': ', 1) for line in b.decode().splitlines())
    except ValueError: return b
    at = o
    while isinstance(at, (dict, list)) and at:
        keys = sorted(at) if isinstance(at, dict) else range(len(at))
        k = r.choice(keys)
        if isinstance(at[k], (dict, list)) and at[k] and r.random()<.8: at = at[k]; continue
        if r.random()<.3: del at[k]
        elif isinstance(at, dict) and r.random()<.2: at[r.choice(('x', *at))] = at.pop(k)
        else: at[k] = r.choice(values)
        break
    return json.dumps(o).encode()

def swapped_tensors(name, b, r):
    "A file that can be read, with names, shapes, numbers or settings changed"
    try: t = dict(torch.load(io.BytesIO(b), weights_only=True)) if name.endswith('.pt') else load(b)
    except Exception: return b
    if not t: return b
    k,g = r.choice(sorted(t)),r.randrange(8)
    if not torch.is_tensor(t[k]): g = g%2 if g<4 else 8
    elif t[k].layout!=torch.strided: return b
    if g==0: t[r.choice((*t, 'x'))] = t.pop(k)
    elif g==1: t.pop(k)
    elif g==2: t[k] = t[k].t().contiguous() if t[k].ndim==2 else t[k].reshape(-1)[:1]
    elif g==3: t[k] = torch.zeros(tuple(r.randrange(4) for _ in range(r.randrange(4))))
    elif g==4: t[k] = t[k].to(r.choice((torch.float64, torch.float16, torch.int64, torch.bool)))
    elif g==5 and t[k].is_floating_point(): t[k] = t[k]*float(r.choice(('nan', 'inf', '0', '-1', '1e38')))
    elif g==6: t['x'] = t[k].clone()
    elif g==8: t[k] = r.choice((*values, dict(k=r.choice(values), postact_fn='ReLU')))
    else: t[k] = t[k].to_sparse() if t[k].ndim and name.endswith('.pt') else torch.zeros_like(t[k])
    if not name.endswith('.pt'): return save({k: v.clone() for k,v in t.items()})
    f = io.BytesIO(); torch.save(t, f)
    return f.getvalue()

def whole_files(kind, folder):
    "Undamaged input of a reader, and how it is read"
    folder.mkdir()
    if kind=='openai':
        torch.save(openai_state(3), folder/'6.pt'); (folder/'6.json').write_text('{"other": 1}')
        return lambda: read_dictionary(folder/'6.pt', 'openai', normalized=True)
    if kind=='plt':
        write_layers([trained('skip_transcoder', k=N)], folder)
        return lambda: read_dictionary(folder, 'plt', positive=True)
    if kind=='clt':
        clt_files(folder, threshold=True, n=2)
        return lambda: read_dictionary(folder, 'clt')
    write_small(folder/'g.json', pinned=['0_391_0'], node_threshold=.8)
    return lambda: read_graph(folder/'g.json')

def fuzz(kind, n, folder, seed=0):
    "Read n damaged inputs: how many were refused and how many could be read; anything else raises"
    read = whole_files(kind, folder)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        read()
    whole,r,count = {p.name: p.read_bytes() for p in sorted(folder.iterdir())},random.Random(f'{kind} {seed}'),dict(read=0, refused=0)
    for i in range(n):
        broken = damage(whole, r)
        for k,b in broken.items():
            if b!=whole[k]: (folder/k).write_bytes(b)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if i%100==0: [formats[f].sniff(p) for f in formats for p in (folder, *folder.iterdir())]
            try: d = read()
            except (ValueError, FileNotFoundError, MemoryError) as e:
                count['refused'] += 1
                assert len(str(e))<1500 and str(folder) in str(e), f'{kind}, seed {seed}, number {i}: {e}'
            except Exception as e: raise AssertionError(f"{kind}, seed {seed}, number {i}: {type(e).__name__}: {e}") from e
            else:
                count['read'] += 1
                if kind!='graph':
                    assert all(torch.isfinite(v).all() or k=='log_threshold' and not v.isnan().any() for k,v in d.named_parameters())
                    d(torch.zeros(2, d.d_in))
        for k,b in broken.items():
            if b!=whole[k]: (folder/k).write_bytes(whole[k])
    assert {p.name for p in folder.iterdir()}=={*whole}
    return count

KINDS = ('openai','plt','clt','graph')

@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files_are_refused(kind, tmp_path):
    "Byte flips, cuts, swapped names, shapes and fields: one of the errors promised, or a whole object of finite numbers"
    count = fuzz(kind, 2500, tmp_path/'damaged')
    assert count['refused']>800 and count['read']+count['refused']==2500

if __name__=='__main__':
    Path(sys.argv[1]).mkdir()
    for k in KINDS: print(k, fuzz(k, int(sys.argv[2]), Path(sys.argv[1])/f'fuzz-{k}', seed=1), flush=True)
