"Capturing one site against a hand-written loop to that layer (stdlib-4l, 16 x 256 tokens, one thread)"
from _common import interleaved, ratio, report
import statistics, torch
from sparsenb.hooks import capture
from sparsenb.models import load_model

torch.set_num_threads(1)
m = load_model('stdlib-4l', device='cpu'); hf = m.module.model
ids = torch.randint(2, 8192, (16,256), generator=torch.Generator().manual_seed(0)); layer = 2
mask = torch.ones(ids.shape, dtype=torch.bool)

@torch.no_grad()
def bare():
    x = hf.embed_tokens(ids); pos = torch.arange(ids.shape[1])[None]; rot = hf.rotary_emb(x, pos)
    for block in hf.layers[:layer+1]: x = block(x, attention_mask=None, position_ids=pos, position_embeddings=rot)
    return x

@torch.no_grad()
def whole(): return m.module(ids, use_cache=False).logits

ours = lambda: capture(m, ids, f'resid_post.{layer}', mask)
torch.testing.assert_close(bare(), ours()[f'resid_post.{layer}'], atol=1e-4, rtol=1e-4)
t = interleaved(dict(bare=bare, capture=ours, whole=whole), rounds=15)
report('capture', dict(ratio_to_bare_forward=ratio(t, 'capture', 'bare'), ratio_of_whole_forward=ratio(t, 'whole', 'bare'), tokens_per_second=round(ids.numel()/statistics.median(t['capture'])), layer=layer))
