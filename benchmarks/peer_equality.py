"""Write what other people's dictionaries compute on small given weights, as numbers, for tests/test_peers.py.

Run in a throwaway environment that holds one peer (none is a dependency, and no environment holds all):
    python -m venv /tmp/p && /tmp/p/bin/pip install sae-lens        # or dictionary-learning, eai-sparsify, overcomplete
    /tmp/p/bin/python benchmarks/peer_equality.py sae_lens
"""
import importlib.metadata, json, sys
from pathlib import Path
import torch
import torch.nn.functional as F

OUT = Path(__file__).parent.parent/'tests'/'fixtures'/'peers'
D_IN,D_SAE,D_OUT,N,K = 6,14,5,9,3
packages = dict(sae_lens='sae-lens', dictionary_learning='dictionary-learning', sparsify='eai-sparsify', overcomplete='overcomplete')

def given(seed=0):
    "Weights and rows that every case starts from, rounded so that the file holds them exactly"
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g).mul(1000).round().div(1000)
    unit = F.normalize(r(D_SAE, D_IN), dim=1)
    return dict(W_enc=r(D_IN, D_SAE), b_enc=.3*r(D_SAE), W_dec=unit, b_dec=.5*r(D_IN), x=2*r(N, D_IN), theta=.3+.2*r(D_SAE).abs(), r_mag=.3*r(D_SAE),
                b_gate=.2*r(D_SAE), b_mag=.2*r(D_SAE), W_out=r(D_SAE, D_OUT), b_out=r(D_OUT), W_skip=.4*r(D_IN, D_OUT), y=r(N, D_OUT))

def case(method, cfg, weights, x, f, x_hat, **more):
    "One comparison: what to build, what it holds, what it must give"
    plain = lambda t: t.detach().double().tolist() if torch.is_tensor(t) else t
    return dict(method=method, cfg=cfg, weights={k: plain(v) for k,v in weights.items()}, x=plain(x), f=plain(f), x_hat=plain(x_hat), more={k: plain(v) for k,v in more.items()})

def put(module, **weights):
    "Copy weights into a peer's parameters and buffers, by dotted name"
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for k,v in weights.items(): state[k.replace('__', '.')].copy_(v)
    return module

four = lambda g,**kw: dict(W_enc=g['W_enc'], b_enc=g['b_enc'], W_dec=g['W_dec'], b_dec=g['b_dec']) | kw

def sae_lens(g):
    from sae_lens.saes import batchtopk_sae,gated_sae,jumprelu_sae,matching_pursuit_sae,standard_sae,topk_sae,transcoder
    size,out,x = dict(d_in=D_IN, d_sae=D_SAE),[],g['x']
    def add(method, sae, cfg, weights, **more):
        f = sae.encode(x)
        out.append(case(method, cfg, weights, x, f.to_dense(), sae.decode(f), **more))
    sub = dict(apply_b_dec_to_input=True)
    add('relu', put(standard_sae.StandardSAE(standard_sae.StandardSAEConfig(**size, **sub)), **four(g)), {}, four(g))
    add('topk', put(topk_sae.TopKSAE(topk_sae.TopKSAEConfig(**size, **sub, k=K)), **four(g)), dict(k=K), four(g))
    add('jumprelu', put(jumprelu_sae.JumpReLUSAE(jumprelu_sae.JumpReLUSAEConfig(**size, apply_b_dec_to_input=False)), **four(g), threshold=g['theta']), {}, four(g, log_threshold=g['theta'].log()))
    gate = dict(b_gate=g['b_gate'], r_mag=g['r_mag'], b_mag=g['b_mag'])
    add('gated', put(gated_sae.GatedSAE(gated_sae.GatedSAEConfig(**size, **sub)), W_enc=g['W_enc'], W_dec=g['W_dec'], b_dec=g['b_dec'], **gate), {},
        dict(W_enc=g['W_enc'], W_dec=g['W_dec'], b_dec=g['b_dec'], b_enc=g['b_gate'], r_mag=g['r_mag'], b_mag=g['b_mag']))
    mp = matching_pursuit_sae.MatchingPursuitSAE(matching_pursuit_sae.MatchingPursuitSAEConfig(**size, **sub, residual_threshold=.3, max_iterations=5))
    add('matching_pursuit', put(mp, W_dec=g['W_dec'], b_dec=0*g['b_dec']), dict(steps=5, threshold=.3), dict(W_enc=g['W_dec'].t(), W_dec=g['W_dec']))
    b = put(batchtopk_sae.BatchTopKTrainingSAE(batchtopk_sae.BatchTopKTrainingSAEConfig(**size, **sub, k=K)), **four(g))
    f,_ = b.encode_with_hidden_pre(x)
    out.append(case('batch_topk', dict(k=K), four(g), x, f.to_dense(), b.decode(f), batch=True))
    t = put(transcoder.SkipTranscoder(transcoder.SkipTranscoderConfig(**size, d_out=D_OUT, apply_b_dec_to_input=False)), W_enc=g['W_enc'], b_enc=g['b_enc'], W_dec=g['W_out'], b_dec=g['b_out'], W_skip=g['W_skip'].t())
    y,f = t.forward_with_activations(x)
    out.append(case('skip_transcoder', dict(d_out=D_OUT, k=D_SAE), dict(W_enc=g['W_enc'], b_enc=g['b_enc'], W_dec=g['W_out'], b_dec=g['b_out'], W_skip=g['W_skip']), x, f, y))
    return out

def dictionary_learning(g):
    from dictionary_learning.dictionary import AutoEncoder,GatedAutoEncoder,JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    x,theirs,out = g['x'],dict(encoder__weight=g['W_enc'].t(), encoder__bias=g['b_enc'], decoder__weight=g['W_dec'].t()),[]
    def add(method, d, cfg, weights, **how):
        f = d.encode(x, **how)
        out.append(case(method, cfg, weights, x, f, d.decode(f), batch='use_threshold' in how and not how['use_threshold']))
    add('relu', put(AutoEncoder(D_IN, D_SAE), **theirs, bias=g['b_dec']), {}, four(g))
    add('topk', put(AutoEncoderTopK(D_IN, D_SAE, K), **theirs, b_dec=g['b_dec']), dict(k=K), four(g))
    b = put(BatchTopKSAE(D_IN, D_SAE, K), **theirs, b_dec=g['b_dec'], threshold=torch.tensor(.7))
    add('batch_topk', b, dict(k=K), four(g, threshold=torch.tensor(.7)), use_threshold=True)
    add('batch_topk', b, dict(k=K), four(g), use_threshold=False)
    m = put(MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [3, 4, 7]), **four(g), threshold=torch.tensor(.7))
    add('matryoshka', m, dict(k=K, prefixes=[3, 7]), four(g, threshold=torch.tensor(.7)), use_threshold=True)
    add('gated', put(GatedAutoEncoder(D_IN, D_SAE), encoder__weight=g['W_enc'].t(), decoder__weight=g['W_dec'].t(), decoder_bias=g['b_dec'], r_mag=g['r_mag'], gate_bias=g['b_gate'], mag_bias=g['b_mag']), {},
        dict(W_enc=g['W_enc'], W_dec=g['W_dec'], b_dec=g['b_dec'], b_enc=g['b_gate'], r_mag=g['r_mag'], b_mag=g['b_mag']))
    add('jumprelu', put(JumpReluAutoEncoder(D_IN, D_SAE), **four(g), threshold=g['theta']), {}, four(g, log_threshold=g['theta'].log()))
    return out

def sparsify(g):
    from sparsify.sparse_coder import SparseCoder
    from sparsify.config import SparseCoderConfig
    x,out = g['x'],[]
    for method,multi in (('topk', False), ('topk', True)): # its AuxK divides by another variance than the paper's, so no feature is dead here
        s = put(SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, multi_topk=multi)), encoder__weight=g['W_enc'].t(), encoder__bias=g['b_enc'], W_dec=g['W_dec'], b_dec=g['b_dec'])
        o = s(x)
        top = s.encode(x)
        f = torch.zeros(N, D_SAE).scatter(1, top.top_indices, top.top_acts)
        variance = (x-x.mean(0)).square().sum()
        loss = (o.fvu + o.multi_topk_fvu/8)*variance/N
        grads = dict(zip(('W_enc','b_enc','W_dec'), torch.autograd.grad(loss, (s.encoder.weight, s.encoder.bias, s.W_dec))))
        if multi: del grads['W_enc'],grads['b_enc'] # its fused encoder drops the gradient of this term
        out.append(case(method, dict(k=K) | (dict(multi_coef=1/8) if multi else {}), four(g), x, f, o.sae_out if not multi else s.decode(top.top_acts, top.top_indices), loss=loss,
                        grads={k: (v.t() if k=='W_enc' else v).double().tolist() for k,v in grads.items()}))
    t = put(SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, transcode=True, skip_connection=True)), encoder__weight=g['W_enc'].t(), encoder__bias=g['b_enc'])
    if t.W_dec.shape[1]==D_IN: # it writes as many dimensions as it reads
        W_skip,b_out = torch.cat([g['W_skip'], g['b_enc'][:D_IN,None]], 1),g['b_dec']
        put(t, W_dec=g['W_dec'], b_dec=b_out, W_skip=W_skip.t())
        top = t.encode(x)
        out.append(case('skip_transcoder', dict(d_out=D_IN, k=K), dict(W_enc=g['W_enc'], b_enc=g['b_enc'], W_dec=g['W_dec'], b_dec=b_out, W_skip=W_skip), x, torch.zeros(N, D_SAE).scatter(1, top.top_indices, top.top_acts), t(x).sae_out))
    return out

def overcomplete(g):
    from overcomplete.sae import BatchTopKSAE,JumpSAE,MpSAE,SAE,TopKSAE
    from overcomplete.sae.modules import TieableEncoder
    x,out = g['x'],[]
    four_ = dict(W_enc=g['W_enc'], b_enc=g['b_enc'], W_dec=g['W_dec'])
    def build(cls, **kw):
        e = TieableEncoder(D_IN, D_SAE, bias=True, weight_init=g['W_enc'].t())
        put(e, bias=g['b_enc'])
        return put(cls(D_IN, D_SAE, encoder_module=e, dictionary_params=dict(normalization='identity'), **kw), dictionary___weights=g['W_dec'])
    def add(method, s, cfg, weights=four_, **more):
        _,f = s.encode(x)
        out.append(case(method, cfg, weights, x, f, s.decode(f), **more))
    add('relu', build(SAE), {})
    add('topk', build(TopKSAE, top_k=K), dict(k=K))
    add('batch_topk', build(BatchTopKSAE, top_k=K*N), dict(k=K), batch=True)
    # an atom chosen twice ends our pursuit (as the method's own repository does) and not theirs: three steps have none
    mp = put(MpSAE(D_IN, D_SAE, k=3, dictionary_params=dict(normalization='identity')), dictionary___weights=g['W_dec'])
    add('matching_pursuit', mp, dict(steps=3, threshold=0.), dict(W_enc=g['W_dec'].t(), W_dec=g['W_dec']))
    return out

if __name__=='__main__':
    peer = sys.argv[1] if len(sys.argv)==2 else ''
    if peer not in packages: sys.exit(f"one peer was expected, of {', '.join(packages)}")
    torch.set_num_threads(1)
    cases = globals()[peer](given())
    OUT.mkdir(parents=True, exist_ok=True)
    info = dict(peer=packages[peer], version=importlib.metadata.version(packages[peer]), cases=cases)
    round_ = lambda v: [round_(i) for i in v] if isinstance(v, list) else {k: round_(i) for k,i in v.items()} if isinstance(v, dict) else float(f'{v:.9g}') if isinstance(v, float) else v
    (OUT/f'{peer}.json').write_text(json.dumps(round_(info), separators=(',', ':'))+'\n')
    print(f"{peer} {info['version']}: {len(cases)} cases, {(OUT/f'{peer}.json').stat().st_size/1e3:.0f} kB")
