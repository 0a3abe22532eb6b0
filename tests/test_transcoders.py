"Sparse map, transcoder and skip transcoder: known directions, exact attributions, refusals"
import pytest, torch
from sparsenb.core import dictionaries, testbeds as beds
from sparsenb.dictionary import load_dictionary
from sparsenb.train import fit

torch.set_num_threads(1)
exact = dict(rtol=0, atol=0)

# ---- the testbed ----

def test_the_map_is_what_it_says_and_repeats():
    bed = beds['sparse_map'](n_features=40, d_in=12, d_out=7, k=2, linear=.5, batch_size=30, seed=3)
    x,y,f = bed.sample(500)
    assert x.shape==(500, 12) and y.shape==(500, 7) and ((f>0).sum(1)==2).all() and f[f>0].min()>=.5 and f.max()<=1.5
    torch.testing.assert_close(x, f@bed.read); torch.testing.assert_close(y, f@bed.write + x@bed.linear)
    a,b = ([next(it) for it in map(iter, bed.data)] for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], x[:30])
    both = bed.sample(30, bed.generator(1)) # the two sides belong together row by row
    assert torch.equal(a[0], both.x) and torch.equal(a[1], both.y)

def test_the_score_knows_the_truth_and_only_counts_what_fires():
    bed = beds['sparse_map'](k=1, low=1., high=1.)
    d = dictionaries['topk'](32, 64, d_out=32, k=1)
    with torch.no_grad(): d.W_dec.copy_(bed.write); d.W_enc.copy_(bed.read.t())
    e = bed.score(d)
    for k in ('mmcs', 'read', 'recovered_0.9', 'precision', 'recall'): assert abs(e[k].value-1)<1e-5, e # one at a time: reading along the direction is right
    assert e['fvu'].value<1e-4 and e['l0'].value==1 and d.training
    with torch.no_grad(): d.b_enc[:32] = -10 # the first half is never used, though its rows are right
    assert bed.score(d)['recovered_0.9'].value==.5 and bed.score(d)['recall'].value<.6

def test_the_score_refuses_what_does_not_fit():
    bed = beds['sparse_map']()
    with pytest.raises(ValueError, match='from width 32 to d_out=32 was expected, got one of width 32 that rebuilds its input'): bed.score(dictionaries['topk'](32, 64))
    with pytest.raises(ValueError, match='got 16 to 32'): bed.score(dictionaries['topk'](16, 64, d_out=32))
    with pytest.raises(ValueError, match='k must be in 1..n_features=64, got 0'): beds['sparse_map'](k=0)
    with pytest.raises(ValueError, match='got low=2, high=1'): beds['sparse_map'](low=2, high=1)

# ---- transcoders ----

@pytest.mark.parametrize('name', ['transcoder', 'skip_transcoder'])
def test_attributions_sum_to_the_reading(name):
    "Features, bias and skip path make up a later feature's pre-activation, to 1e-4, in the user's units"
    g = torch.Generator().manual_seed(0)
    d,later = dictionaries[name](16, 64, d_out=12, k=5),dictionaries['transcoder'](12, 32, d_out=12, k=3, seed=1)
    with torch.no_grad():
        for m in (d, later):
            m.scale.fill_(.3); m.scale_out.fill_(2.)
            for nm,p in m.named_parameters():
                if nm!='W_enc' and nm!='W_dec': p.normal_(generator=g)
    x = torch.randn(4, 25, 16, generator=g)
    v = later.reads(7)
    parts,rest = d.attribute(x, v)
    assert parts.val.shape==(4, 25, 5) and rest.shape==(4, 25)
    torch.testing.assert_close(parts.val.sum(-1) + rest + later.b_enc[7], later.pre_acts(d(x))[...,7], rtol=0, atol=1e-4)
    skip = d.skip(x)@v if name=='skip_transcoder' else 0
    torch.testing.assert_close(rest, d.b_dec/d.scale_out@v + skip + torch.zeros(4, 25), rtol=0, atol=1e-4)
    i = parts.idx[0,0,0]
    torch.testing.assert_close(parts.val[0,0,0], d.codes(x).val[0,0,0]*(d.writes(i)@v))
    with pytest.raises(ValueError, match=r'a direction of width 12 expected, got shape \(16,\)'): d.attribute(x, torch.zeros(16))

@pytest.mark.parametrize('name', ['transcoder', 'skip_transcoder'])
def test_pairs_that_do_not_fit_are_refused(name):
    x,y = torch.randn(600, 8),torch.randn(600, 5)
    d = dictionaries[name](8, 16, d_out=5, k=2)
    before = {k: v.clone() for k,v in d.state_dict().items()}
    for bad,match in ((x, r'give a pair \(x, y\)'), ((x, y[:-1]), 'x has 600 rows, y has 599'), ((y, x), 'x has width 5, the dictionary expects 8'), ((x, x), 'y has width 8, the dictionary expects 5'),
                      ((x, y*0), 'y: all 600 rows looked at are zero'), ((x, y, y), 'got 3 data sets')):
        with pytest.raises(ValueError, match=match): fit(d, bad, 512, 256)
    with pytest.raises(ValueError, match='targets of width 5 expected'): d.step(x, x)
    assert all(torch.equal(v, before[k]) for k,v in d.state_dict().items())

def test_transcoder_finds_the_known_map():
    "What is written is found; the encoder is another direction, because what is read overlaps"
    bed = beds['sparse_map']()
    d = dictionaries['transcoder'](32, 96, d_out=32, k=3, dead_after=10_000)
    fit(d, bed.data, 1200*512, 512, lr=1e-2)
    e = bed.score(d)
    assert e['mmcs'].value>=.98 and e['recovered_0.9'].value>=.98 and e['fvu'].value<.08 and e['recall'].value>.9 and .55<e['read'].value<.8, e

def test_half_the_learning_rate_where_it_writes_another_activation():
    lr = lambda name, **kw: dictionaries[name](32, 64, **kw).recipe()['lr']
    for name in ('transcoder', 'skip_transcoder'): assert lr(name, d_out=32)==lr('topk')/2 and lr(name)==lr('topk')

# ---- skip ----

def test_skip_starts_at_zero_and_keeps_the_contract_with_it():
    "Loss, gradient, folding and saving when the path is no longer zero"
    g = torch.Generator().manual_seed(0)
    x,y = 3*torch.randn(300, 8, generator=g),torch.randn(300, 5, generator=g)
    d,plain = (dictionaries[n](8, 32, d_out=5, k=4) for n in ('skip_transcoder', 'transcoder'))
    assert d.W_skip.shape==(8, 5) and not d.W_skip.any() and not hasattr(dictionaries['skip_transcoder'](8, 32), 'W_skip')
    torch.testing.assert_close(d.step(x, y).loss, plain.step(x, y).loss, **exact)
    with torch.no_grad(): d.scale.fill_(.4); d.scale_out.fill_(1.7); d.W_skip.normal_(generator=g)
    out = d.step(x, y)
    torch.testing.assert_close(out.x_hat, d(x)); torch.testing.assert_close(out.parts['mse'], ((out.x_hat-y)*1.7).square().sum(1).mean())
    out.loss.backward()
    torch.testing.assert_close(d.W_skip.grad, 2*.4*1.7*x.t()@(out.x_hat-y)/300, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d.fold()(x), d(x), rtol=1e-4, atol=1e-4)

def test_skip_path_survives_a_broken_run_and_saving(tmp_path):
    from sparsenb.train import Callback
    class Break(Callback):
        def after_step(self, run, out):
            if run.step==33: raise KeyboardInterrupt
    bed = beds['sparse_map'](linear=1.).sample(4000)
    def train(path, **kw):
        d = dictionaries['skip_transcoder'](32, 64, d_out=32, k=3)
        fit(d, (bed.x, bed.y), 60*128, 128, path=path, checkpoint_every=10, **kw)
        return d
    a = train(tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', callbacks=[Break()])
    b = train(tmp_path/'b')
    for (n,p),q,r in zip(a.state_dict().items(), b.state_dict().values(), load_dictionary(tmp_path/'a'/'final').state_dict().values()):
        torch.testing.assert_close(p, q, **exact, msg=n); torch.testing.assert_close(p, r, **exact, msg=n)
    assert a.W_skip.any()

def test_skip_takes_what_a_matrix_can_do():
    "The same number of codes, much less error where the map is partly linear; the plain transcoder has no such path"
    bed = beds['sparse_map'](linear=1.)
    def fvu(name):
        d = dictionaries[name](32, 64, d_out=32, k=2, dead_after=25_000)
        fit(d, bed.data, 400*512, 512, lr=4e-3)
        return bed.score(d)['fvu'].value
    plain,skip = fvu('transcoder'),fvu('skip_transcoder')
    assert skip<.5*plain and skip<.15, (plain, skip)
