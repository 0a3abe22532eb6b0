"""Static dashboards side by side: SAEDashboard and ours, each of as many features of a dictionary of the same shape, over as many tokens of a model of the same shape.

SAEDashboard 0.8 needs another version of TransformerLens than we do, so it runs in an interpreter of its own: `--peer PYTHON`. There its own page and its Neuronpedia batch are written,
from a HookedSAETransformer with random weights and our tokenizer, a TopKSAE with random weights, and our token ids. Ours are the bundled model and a TopK dictionary whose directions are random.
Both encode, gather examples and write; loading models and imports are not timed. Ours indexes all features of the dictionary, theirs those of the page. Process time on one thread."""
import argparse, json, subprocess, sys, tempfile, time
from pathlib import Path
from _common import note, own_options, report

PEER = '''
import json, sys, time
import torch
torch.set_num_threads(1)
a = json.loads(sys.argv[1])
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast
from sae_lens import HookedSAETransformer, TopKSAE, TopKSAEConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_dashboard.data_writing_fns import save_feature_centric_vis
tok = PreTrainedTokenizerFast.from_pretrained(a['tokenizer'])
torch.manual_seed(0)
model = HookedSAETransformer(HookedTransformerConfig(n_layers=a['n_layers'], d_model=a['d_model'], n_heads=a['n_heads'], d_head=a['d_model']//a['n_heads'], d_mlp=4*a['d_model'], n_ctx=256, d_vocab=a['d_vocab'], act_fn='gelu', device='cpu', seed=0), tokenizer=tok)
sae = TopKSAE(TopKSAEConfig(d_in=a['d_model'], d_sae=a['d_sae'], k=a['k'], rescale_acts_by_decoder_norm=True, device='cpu'))
point = f"blocks.{a['layer']}.hook_resid_post"
sae.cfg.metadata.hook_name = point
t = time.process_time()
data = SaeVisRunner(SaeVisConfig(hook_point=point, features=list(range(a['n'])), minibatch_size_features=a['n'], minibatch_size_tokens=16, device='cpu')).run(encoder=sae, model=model, tokens=torch.load(a['ids'], weights_only=True))
data.model = model
t1 = time.process_time()
save_feature_centric_vis(data, a['out'])
w = time.process_time()-t1
seqs = [q for f in data.feature_data_dict.values() for g in f.sequence_data.seq_group_data for q in g.seq_data]
print(json.dumps(dict(build=t1-t, write=w, examples=len(seqs)/a['n'], tokens_shown=sum(len(q.token_ids) for q in seqs)/a['n'])))
'''

def inputs(n_tokens, folder):
    "The bundled model, and token ids of held-out modules in rows of 128"
    import torch
    from sparsenb.all import load_corpus, load_model
    model,rows = load_model('stdlib-4l'),[]
    for doc in load_corpus('stdlib', 'held-out'):
        ids = model.tokens(doc.text, max_len=10**9)[0][0]
        rows += [r for r in ids.split(128) if len(r)==128]
        if len(rows)*128>=n_tokens: break
    ids = torch.stack(rows)[:n_tokens//128]
    torch.save(ids, folder/'ids.pt'); model.tokenizer.save_pretrained(folder/'tokenizer')
    return model, ids

def ours(model, ids, n, d_sae, k, folder):
    "Seconds to read and index, seconds to write the page, its bytes"
    import numpy as np
    from sparsenb.all import FeatureIndex, dictionaries, load_corpus, settings
    from sparsenb.static import static_browser
    from sparsenb.views import page
    sae = dictionaries['topk'](model.d_model, d_sae, k=k)
    texts = [model.tokenizer.decode(r, skip_special_tokens=True) for r in ids]
    t = time.process_time()
    index = FeatureIndex.build(sae, load_corpus(texts), model, path=folder/'index', site='resid_post.2', seq_len=128)
    t1 = time.process_time()
    ids = np.flatnonzero(index.alive)[:n]
    page('Features', [static_browser(index, ids)], folder/'ours.html')
    w,rows = time.process_time()-t1,[r for i in ids for g in index.card(i).examples for r in g.rows]
    return dict(build=t1-t, write=w, examples=len(rows)/n, tokens_shown=sum(map(len, rows))/n, tokens=index.n_tokens)

def hosts(path):
    "Addresses that a page names in its scripts and links, as a count"
    import re
    return len(set(re.findall(r'(?:src|href)="(https?://[^"]+)"', Path(path).read_text(encoding='utf-8', errors='replace'))))

def main(argv=None):
    p = argparse.ArgumentParser('dashboard_peers', description=__doc__)
    p.add_argument('--peer', help='a Python that has sae-dashboard 0.8'); p.add_argument('--features', type=int, default=100); p.add_argument('--tokens', type=int, default=20_000)
    a,rest = own_options(p, argv)
    d_sae,k,out = 1024,16,{}
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        model,ids = inputs(a.tokens, d)
        r = ours(model, ids, a.features, d_sae, k, d)
        out |= {f'ours_{key}': v for key,v in r.items()} | dict(ours_bytes_per_feature=(d/'ours.html').stat().st_size/a.features, ours_addresses=hosts(d/'ours.html'))
        if a.peer:
            said = dict(tokenizer=str(d/'tokenizer'), ids=str(d/'ids.pt'), out=str(d/'peer.html'), n=a.features, d_sae=d_sae, k=k, d_model=model.d_model, n_layers=model.n_layers, n_heads=model.n_heads, d_vocab=len(model.tokenizer), layer=2)
            r = subprocess.run([a.peer, '-c', PEER, json.dumps(said)], capture_output=True, text=True)
            if r.returncode: note(r.stderr[-3000:]); out['peer'] = 'failed: '+r.stderr.strip().splitlines()[-1]
            else: out |= {f'peer_{key}': v for key,v in json.loads(r.stdout.strip().splitlines()[-1]).items()} | dict(peer_tokens=ids.numel(), peer_bytes_per_feature=(d/'peer.html').stat().st_size/a.features, peer_addresses=hosts(d/'peer.html'))
        else: out['peer'] = 'not run: pass --peer PYTHON'
    report('dashboard_peers', dict(features=a.features, d_sae=d_sae, k=k, **out), rest)

if __name__=='__main__': main()
