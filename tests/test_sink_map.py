"The map of sinks: its numbers against rows computed by hand, its bytes, what it refuses, its page and its report"
import base64, json, math, re
import numpy as np, pytest, torch
from sparsenb.core import UnknownName, analyses, widgets
from sparsenb.hooks import capture
from sparsenb.models import load_model
from sparsenb.sinks import excluded, pack, sinks, unpack
from sparsenb.widgets.sink_map import leaf, page, tile

torch.set_num_threads(1)
CODE = ['def area(width, height):\n    """Area of a rectangle"""\n    return width*height\n', 'import os\nfor name in os.listdir("."):\n    print(name)\n']

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

@pytest.fixture(scope='module')
def read(model): return sinks(model, CODE)

def gpt2(layers=12, heads=12, d=48, n_ctx=256, seed=0):
    "A small GPT-2 with many heads and random weights"
    from transformers import GPT2Config, GPT2LMHeadModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=d, n_layer=layers, n_head=heads, n_inner=16, n_positions=n_ctx, bos_token_id=0, eos_token_id=0, attn_pdrop=0., embd_pdrop=0., resid_pdrop=0.)).eval()

def vit(patch=8, seed=0):
    "A small ViT whose attention is not flat"
    from transformers import ViTConfig, ViTModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        v = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=patch), add_pooling_layer=False).eval()
        for n,p in v.named_parameters():
            if 'q_proj.weight' in n or 'k_proj.weight' in n: p.data *= 30
    return v

# ---- patterns ----

def by_hand(p, on):
    "Rows without some columns, renormalised one by one in float64; zeros where nothing is left"
    out = np.zeros(p.shape)
    for i,row in enumerate(p.astype(np.float64)):
        left = [0 if on[j] else row[j] for j in range(len(row))]
        if sum(left)>0: out[i] = np.array(left)/sum(left)
    return out

def opened(known, buffer, T, causal):
    "A tile read from its description, as the page reads it: pattern with and without sinks, α, norms"
    taken,alpha = np.frombuffer(buffer, '<f2', 2*T).reshape(2, T).astype(np.float64)
    rest = np.frombuffer(buffer, np.uint8, offset=4*T)
    norms,both = rest[:2*T].reshape(2, T)/255*np.array(known['most'])[:,None],np.zeros((T, T))
    both[np.tril_indices(T) if causal else (np.arange(T).repeat(T), np.tile(np.arange(T), T))] = rest[2*T+-(-T//8):][:T*(T+1)//2 if causal else T*T]/255
    on = np.unpackbits(rest[2*T:2*T+-(-T//8)])[:T].astype(bool)
    return np.where(on, both, both*(1-taken)[:,None]),np.where(on, 0, both),alpha,norms

@pytest.mark.parametrize('which', ['text', 'several', 'image'])
def test_patterns_and_exclusion_by_hand(which, model):
    "Exact patterns from the model, rows renormalised one by one; bytes are within half a step of 1/255, on the page too"
    if which=='image': m = vit(); x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)); s = sinks(m, x, at=(0, 3, 7)); exact = capture(m, x, [f'pattern.{l}' for l in s.layers])
    else: s = sinks(model, CODE, **(dict(at=(0, 2, 5)) if which=='several' else {})); exact = capture(model, CODE, [f'pattern.{l}' for l in s.layers])
    assert s.sinks.any() and s.causal==(which!='image')
    worst = 0
    for i in range(len(s)):
        T = int(s.lengths[i])
        for l in s.layers:
            for h in range(s.heads):
                p,on = exact[f'pattern.{l}'][i,h,:T,:T].double().numpy(),s.sinks[i,l,h,:T]
                mine = by_hand(p, on)
                np.testing.assert_allclose(excluded(torch.tensor(p), torch.tensor(on)), mine, atol=1e-12)
                assert np.abs(s.pattern(l, h, i, exclude=True)-mine).max()<=1/510+1e-6
                assert np.abs(s.pattern(l, h, i)-p).max()<=1/510+1e-6
                shown,left,alpha,norms = opened(*tile(s, l, h, i), T, s.causal)
                assert np.abs(shown-p).max()<=1/510+1e-6 and np.abs(left-mine).max()<=1/510+1e-6
                np.testing.assert_allclose(alpha, s.alpha[i,l,h,:T], rtol=1e-3, atol=1e-7)
                kv = h*s.k_norm.shape[2]//s.heads
                for k,a in enumerate((s.k_norm, s.v_norm)): assert np.abs(norms[k]-a[i,l,kv,:T]).max()<=known_step(a[i,l,kv,:T])
                worst = max(worst, np.abs(shown-p).max())
    assert worst>1/1020  # the bound is not idle

def known_step(a): return a.max()/510*1.001

def test_rounding_before_exclusion_would_be_coarse():
    "A sink of 99%: the way not taken, renormalising bytes, is off by far more than half a step"
    p = np.tril(np.random.default_rng(0).random((40, 40))); p[:,0] = 99*p[:,1:].sum(1)+1e-9; p /= p.sum(1, keepdims=True)
    on = np.zeros(40, bool); on[0] = True
    assert np.abs(by_hand(np.rint(255*p)/255, on)-by_hand(p, on)).max()>.05

def test_packing():
    a = np.arange(2*25, dtype=np.uint8).reshape(2, 5, 5)
    assert pack(a, False).shape==(2, 25) and (unpack(pack(a, False), False)==a).all()
    assert pack(a, True).shape==(2, 15) and (unpack(pack(a, True), True)==np.tril(a)).all()

def test_the_map_agrees_with_the_measures(model, read):
    "One pass here, four there: α, norms, φ, the massive coordinates"
    r = analyses['sinks_of'](model, CODE)
    for k in ('alpha', 'k_norm', 'v_norm'): np.testing.assert_allclose(getattr(read, k), getattr(r, k), atol=1e-5)
    assert read.words==r.words and read.causal and read.layers==r.layers and (read.special==r.special).all()
    m = analyses['massive_activations'](model, CODE)
    for k in ('value', 'token', 'channel', 'median'): np.testing.assert_allclose(read.massive[k], getattr(m, k), rtol=1e-4)
    v = analyses['sink_value'](model, CODE, top=1)
    assert not read.passed and read.dims==v.dims and read.tau==v.tau
    np.testing.assert_allclose(read.phi, v.phi, rtol=1e-4)
    assert float(analyses['sink_rate'](read.reading))==float(analyses['sink_rate'](r))
    judged = (read.lengths[:,None]-np.arange(read.mask.shape[1])>=8)&read.mask; judged[:,0] = True
    with np.errstate(invalid='ignore'): assert (read.sinks==((read.alpha>.3)&judged[:,None,None])).all()
    assert {k for k in read.numbers()}>={'alpha', 'k_norm', 'v_norm', 'phi', 'sinks', 'massive.value', 'pattern.0', 'pattern.1'}

def test_channels_of_an_encoder_make_its_sinks(minilm):
    "[CLS] by φ in channel 99; a model that is not causal is read once more to find it, and naming it gives the same"
    m = load_model(str(minilm), device='cpu')
    t = ['The quick brown fox jumps over the lazy dog. It was not amused.', 'Interest rates rose by a quarter point.']
    s = sinks(m, t)
    assert s.passed and s.dims==(99,) and not s.causal and s.sinks[:,1:5,:,0].all()
    again = sinks(m, t, dims=[99], batch_size=1)
    assert (again.sinks==s.sinks).all() and all((a.astype(int)-b).max()<=1 for a,b in zip(again.patterns, s.patterns))

def test_batches_change_nothing(model, read):
    one = sinks(model, CODE, batch_size=1)
    np.testing.assert_allclose(one.alpha, read.alpha, atol=1e-5)
    assert (one.sinks==read.sinks).all() and all(np.abs(a.astype(int)-b).max()<=1 for a,b in zip(one.patterns, read.patterns))

def test_received_without_sinks(read):
    p = read.pattern(0, 1, exclude=True).astype(np.float64)
    live = p.sum(1)>0
    assert not live[0] and live[1:].all()
    want = [np.mean([p[i,k] for i in range(k, len(p)) if live[i]]) for k in range(len(p))]
    np.testing.assert_allclose(read.received(0, 1, exclude=True), want, atol=1e-6)
    assert (read.received(0, 1)==read.alpha[0,0,1,:read.lengths[0]]).all()

def test_all_tokens_sinks_leaves_nothing(model):
    "Documented: rows with nothing left are 0, in the arrays, in the tiles"
    s = sinks(model, CODE[1], at=range(19))
    assert s.lengths.tolist()==[19] and s.sinks.all()
    assert not s.pattern(0, 0, exclude=True).any() and not s.received(0, 0, exclude=True).any()
    np.testing.assert_allclose(s.pattern(0, 0).sum(1), 1, atol=19/510)
    assert page(s).html()

# ---- images ----

def test_an_image_model_lays_its_attention_over_the_picture():
    m,x = vit(),torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    s = sinks(m, x)
    assert s.image==(1, 4, 4) and s.words[0][:3]==('CLS', '0,0', '0,1') and s.ids is None and s.again is None and len(s.pictures)==2
    px = x[1].permute(1, 2, 0).numpy(); px = (px-px.min())/(px.max()-px.min())
    assert np.abs(s.pictures[1]/255-px).max()<=1/510+1e-6
    exact = capture(m, x, 'pattern.1')['pattern.1'][1,1].double().numpy()
    np.testing.assert_allclose(s.over(1, 1, 5, 1), exact[5,1:].reshape(4, 4), rtol=1e-3, atol=1e-6)
    named = sinks(m, x, at=(0, 3, 7)); on = np.isin(np.arange(17), (0, 3, 7)); mine = by_hand(exact, on)
    np.testing.assert_allclose(named.over(1, 1, 5, 1, exclude=True), mine[5,1:].reshape(4, 4), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(named.over(1, 1, None, 1, exclude=True), mine[:,1:].mean(0).reshape(4, 4), rtol=5e-3, atol=1e-5)
    np.testing.assert_allclose(named.over(1, 1, None, 1).ravel(), named.alpha[1,1,1,1:], rtol=2e-3, atol=1e-6)

def test_attention_too_thin_for_bytes_is_kept_over_an_image():
    "Nearly even attention on 800 tokens is below half a step of a byte for each patch: bytes say nothing, the image still tells its share"
    m,ids = gpt2(1, 2, 24, 800),torch.randint(1, 64, (1, 800), generator=torch.Generator().manual_seed(0))
    s = sinks(m, ids, image=(1, 20, 30), at=(0,))
    exact = capture(m, ids, 'pattern.0')['pattern.0'][0,1,799].double().numpy()
    assert exact.max()<1/510 and not s.pattern(0, 1)[799].any()
    np.testing.assert_allclose(s.over(0, 1, 799), exact[1:601].reshape(20, 30), rtol=1e-3)
    np.testing.assert_allclose(s.over(0, 1, 799, exclude=True), exact[1:601].reshape(20, 30)/(1-exact[0]), rtol=1e-3)

def test_grids_that_are_not_square_and_text_behind_an_image(model):
    wide = sinks(vit((8, 4)), torch.rand(1, 3, 32, 32))
    assert wide.image==(1, 4, 8) and wide.over(1, 0).shape==(4, 8)
    ids = torch.arange(3, 23)[None]
    s = sinks(model, ids, image=(1, 3, 5), picture=np.zeros((30, 50, 3), np.uint8), words=['<bos>', *(f'p{i}' for i in range(15)), 'what', 'is', 'it', '?'])
    assert s.image==(1, 3, 5) and s.words[0][-1]=='?' and s.pictures[0].shape==(30, 50, 3)
    w = s.map()
    assert w.token==19 and w.size==[30, 50] and bytes(w.picture)==bytes(30*50*3)
    assert sinks(model, ids, image=(1, 3, 5)).pictures==()

def test_a_dict_of_tensors_is_given_to_the_model_as_it_is(model, read):
    "What a model of images and text takes; here ids and their mask, so that the answer is known"
    ids,mask = model.tokens(CODE)
    s = sinks(model, dict(input_ids=ids, attention_mask=mask.long()), batch_size=1)
    np.testing.assert_allclose(s.alpha, read.alpha, atol=1e-5)
    assert s.words==read.words and (s.sinks==read.sinks).all() and s.again is None and len(s.map().words)==len(read.words[0])
    with pytest.raises(ValueError, match='end at 21, the input has 19 positions'): sinks(model, CODE, image=(1, 4, 5))  # the shorter one does not hold it

def test_a_large_picture_is_made_smaller(model):
    s = sinks(model, torch.arange(3, 23)[None], image=(1, 3, 5), picture=np.tile(np.linspace(0, 1, 1000)[None,:,None], (600, 1, 3)))
    assert max(s.pictures[0].shape)<=224 and abs(float(s.pictures[0].mean())/255-.5)<.01

# ---- bytes ----

def test_the_tiles_of_144_heads_and_256_tokens_fit_in_5_MB():
    "However many sinks there are; what is sent first is far below 1 MB"
    m,ids = gpt2(),torch.randint(1, 64, (1, 256), generator=torch.Generator().manual_seed(0))
    for at in (None, (0,), range(0, 256, 3)):
        s = sinks(m, ids, at=at)
        total = sum(len(b)+len(json.dumps(k)) for l in s.layers for h in range(12) for k,b in [tile(s, l, h)])
        first = sum(len(v) if isinstance(v, bytes) else len(json.dumps(v)) for v in leaf(s).values())
        print(f"{s.sinks[0].sum(-1).mean():.3g} sinks in a head: tiles {total:,} bytes, leaf {first:,}, one tile {len(tile(s, 0, 0)[1]):,}")
        assert total+first<=5_000_000 and first<=100_000

def test_the_first_state_of_the_widget_is_small():
    "1024 tokens of 144 heads: scores and words are sent, no pattern"
    s = sinks(gpt2(n_ctx=1024), torch.randint(1, 64, (1, 1024), generator=torch.Generator().manual_seed(0)), layers=[0, 11])
    w = s.map()
    state = w.get_state()
    size = sum(memoryview(v).nbytes if isinstance(v, (bytes, memoryview)) else len(json.dumps(v, default=str)) for v in state.values())
    print(f'{size:,} bytes at first, of which script and style {len(state["_esm"])+len(state["_css"]):,}; a tile {len(tile(s, 0, 0)[1]):,}')
    assert size<200_000

def test_a_page_is_bounded_and_says_what_it_left_out(read):
    block = lambda h: json.loads(re.search(r'<script type="application/json">(.*?)</script>', h, re.S)[1])
    all_ = block(page(read).html())
    assert len(all_['tiles'])==32 and all_['state']['facts']['less']==''
    html = page(read, layer=2, head=3, most=4000).html(); few = block(html)
    assert '2,3' in {k.partition(',')[2] for k in few['tiles']} and len(few['tiles'])<16 and re.match(r'This page holds \d+ of 32 patterns of 1 of 2 prompts', few['state']['facts']['less'])
    used = sum(len(base64.b64decode(t['b64'])) for t in few['tiles'].values())
    assert used<=4000 and not re.findall(r'(?:src|href)=|https?://', html)

# ---- the widget's state ----

def test_traits_are_checked_and_the_pattern_is_the_one_shown(read):
    w = read.map(layer=1, head=2, exclude=True, prompt=1, token=4)
    assert (w.layer, w.head, w.prompt, w.token, w.exclude)==(1, 2, 1, 4, True)
    assert (w.pattern==read.pattern(1, 2, 1, True)).all()
    for k,v,msg in (('layer', 9, 'layer must be one of 0, 1, 2, 3, got 9'), ('head', 4, r'head must be in 0..3'), ('prompt', 2, r'prompt must be in 0..1'), ('token', 99, r'token must be a position in 0..18')):
        with pytest.raises(ValueError, match=msg): setattr(w, k, v)
    w.prompt = 0; w.token = 20; w.prompt = 1
    assert w.token==-1 and len(w.words)==19   # the other prompt has no such token
    with pytest.raises(TypeError, match="no trait 'heat'"): read.map(heat=1)

def test_tiles_are_sent_for_the_prompt_that_is_open(read):
    w,sent = read.map(),[]
    w.send = lambda m, buffers=None: sent.append((m, buffers))
    w._told(dict(want=[w.version, 1, 2])); w._told(dict(want=[w.version-1, 1, 3])); w._told(dict(want=[w.version, 7, 0]))
    assert len(sent)==1 and sent[0][0]['tile']==[w.version, 1, 2] and sent[0][1][0]==tile(read, 1, 2, 0)[1]

def test_a_typed_prompt_is_read_and_errors_are_said(read):
    w = read.map(prompt=1)
    w.text = 'x = 1\ny = 2\n'
    assert w.prompt==0 and ''.join(w.words).endswith('y = 2\n') and w.error=='' and w.sinks is not read
    was = w.words
    w.text = 'x = 1\n'*600
    assert 'the context of stdlib-4l holds 512' in w.error and w.words==was
    w.text = ''
    assert w.sinks is read and w.error=='' and len(w.words)==read.lengths[0]
    image = sinks(vit(), torch.rand(1, 3, 32, 32)).map()
    image.text = 'a'
    assert 'takes no text here' in image.error and not image.facts['live']

def test_words_are_whole_and_may_be_anything(model):
    from toy_index import HOSTILE
    s = sinks(model, torch.arange(3, 3+len(HOSTILE))[None], words=list(HOSTILE))
    json.dumps(leaf(s)['words']).encode()
    html = page(s).html()
    assert html.count('</script>')==2 and '<img src=x' not in html and s.words[0]==tuple(HOSTILE)

# ---- what cannot be read ----

def test_bad_input(model):
    ids = torch.arange(3, 23)[None]
    for args,kw,msg in (
        ((torch.nn.Sequential(torch.nn.Embedding(40, 8)), ids), {}, 'Sequential exposes no attention layers'),
        ((model, torch.zeros(1, 1, dtype=torch.long)), {}, 'at least two tokens'),
        ((model, torch.zeros(1, 513, dtype=torch.long)), {}, 'the context of stdlib-4l holds 512'),
        ((model, 'x = 1\n'*600), {}, 'the context of stdlib-4l holds 512: cut it with length='),
        ((model, torch.zeros(2, 3)), {}, 'pixels'), ((model, {}), {}, 'a dict of tensors'), ((model, []), {}, 'an empty list'),
        ((model, ids), dict(epsilon=1), 'epsilon is a share'), ((model, ids), dict(tau=16.), r'below √256 = 16'), ((model, ids), dict(dims=[256]), r'channels in 0..255'), ((model, ids), dict(at=[20]), r'positions in 0..19'), ((model, ids), dict(at=[]), r'positions in 0..19'),
        ((model, ids), dict(image=(1, 4, 5)), r'image=\(1, 4, 5\): 4 × 5 cells from position 1 on end at 21, the input has 20 positions'), ((model, ids), dict(image=(1, 4)), 'first position, rows, columns'), ((model, ids), dict(image=(1, 0, 4)), 'first position, rows, columns'),
        ((vit(), torch.rand(1, 3, 32, 32)), dict(image=(1, 3, 5)), 'end at 16, the input has 17 positions'),
        ((vit(), torch.rand(1, 3, 32, 32)), dict(length=4), 'cuts token ids, not pixels'),
        ((model, ids), dict(picture=np.zeros((4, 4, 3))), 'a picture needs its grid'), ((model, ids), dict(image=(1, 2, 2), picture=np.zeros((4, 4, 4, 4))), r'shape \(height, width, 3\)|4 pictures'), ((model, ids), dict(image=(1, 2, 2), picture=np.full((4, 4, 3), 7.)), 'numbers from 0 to 1'),
        ((model, ids), dict(words=['a', 'b']), '2 words for the 20 positions of input 0')):
        with pytest.raises(ValueError, match=msg): sinks(*args, **kw)
    s = sinks(model, ids)
    for f,msg in ((lambda: s.pattern(4, 0), 'layer must be one of'), (lambda: s.pattern(0, 4), 'head must be in'), (lambda: s.over(0, 0), 'no image was described'), (lambda: s.score('x'), "'first' or 'best'"), (lambda: s.static(token=20), r'a position in 0..19'), (lambda: s.static(score='x'), "'first' or 'best'")):
        with pytest.raises(ValueError, match=msg): f()

def test_memory_is_asked_before_patterns_are_kept(model, monkeypatch):
    monkeypatch.setenv('SPARSENB_MEMORY', '1MB')
    with pytest.raises(MemoryError, match='take fewer inputs, layers= or length='): sinks(model, torch.randint(3, 99, (4, 512)))

# ---- the report ----

def test_the_report_runs_small(tmp_path):
    from sparsenb.report import run_report
    out = run_report('attention_sinks', dict(n_prompts=4, length=32, map_prompts=1), tmp_path/'sinks.html')
    html = out.read_text()
    for words in ('Sink rate', 'Mean attention on position 1', 'Massive activations', 'Sinks beyond the first token', 'Norm of values by position', 'snb-sinks-page'): assert words in html, words
    assert len(html)<3_000_000 and not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', html)
