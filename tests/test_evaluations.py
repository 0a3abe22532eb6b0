"Evaluations: what every one of them keeps to, and each one's known values"
import inspect, re
from types import SimpleNamespace as NS
import pytest, torch
from few_pages import few_pages
from sparsenb.core import dictionaries, evaluations
from sparsenb.metrics import evaluate
from sparsenb.scores import Case, options_of

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def case(tmp_path_factory):
    "The bundled model, a few pages of its own kind of text, two dictionaries hardly trained"
    model,store = few_pages(tmp_path_factory.mktemp('s'), 4000)
    a,b = (dictionaries['topk'](store.d_in, 128, k=8, seed=s) for s in (0, 1))
    return Case(a, store, model, (b,), 0, .95, 100)

@pytest.mark.parametrize('name', [*evaluations])
def test_every_evaluation_keeps_its_word(case, name, tmp_path):
    f = evaluations[name]
    assert f.version>=1 and f.__doc__ and options_of(f, {})=={}
    e = [evaluate(case.dictionary, case.store, case.model, also=[name], others=case.others, n_tokens=500, n_sequences=2, n_boot=50, keep=keep, progress=False) for keep in (tmp_path, tmp_path, False)]
    assert e[1].kept[-1]==name and name not in e[2].kept
    own = {k for k in e[0] if k not in evaluate(case.dictionary, case.store, n_tokens=500, n_boot=2, keep=False, progress=False) and not k.startswith(('ce_', 'kl_'))}
    assert own, 'it reports nothing of its own'
    for k in own:
        s = [x[k] for x in e]
        assert str(s[0])==str(s[1])==str(s[2]), 'measured again it is another number'
        assert s[0].version.startswith(f'{k}/') and s[0].n>0 and s[0].unit and e[0].about[k]
        assert not s[0].lo>s[0].value and not s[0].value>s[0].hi
    assert e[0].table().html() and name in e[0].seconds

def test_stability_of_the_same_and_of_shuffled_features():
    g = torch.Generator().manual_seed(1)
    W = torch.randn(60, 32, generator=g)
    def found(*others, **kw): return {k: s.value for k,s in evaluations['stability'](Case(NS(W_dec=W), None, None, tuple(NS(W_dec=o) for o in others)), **kw).scores.items()}
    same = found(W[torch.randperm(60, generator=g)]*3)
    assert same['mcs']==pytest.approx(1, abs=1e-6) and same['mcs_one_to_one']==pytest.approx(1, abs=1e-6) and same['found_again']==1
    assert .3<same['mcs_random']<.6
    half = torch.cat([W[:30], torch.randn(30, 32, generator=g)])
    assert found(half)['found_again']==.5 and found(half, W)['found_again']==.75
    assert found(-W)['found_again']<.2 # a feature that points the other way is another feature
    assert 'mcs_one_to_one' not in found(W, assign=False)
    with pytest.raises(ValueError, match='at most 8,192 features, got 60 and 9,000'): found(torch.randn(9000, 32), assign=True)

def test_several_other_seeds_do_not_make_features_many():
    "Drawn are features: four times the same other dictionary says no more than once"
    g = torch.Generator().manual_seed(3)
    W = torch.randn(80, 16, generator=g)
    o = W+.5*torch.randn(80, 16, generator=g)
    def scores(*others): return evaluations['stability'](Case(NS(W_dec=W), None, None, tuple(NS(W_dec=w) for w in others))).scores
    once,often = scores(o),scores(o, o, o, o)
    for k in ('mcs', 'mcs_one_to_one'): assert (often[k].value, often[k].lo, often[k].hi)==pytest.approx((once[k].value, once[k].lo, once[k].hi), abs=1e-9), k
    few = scores(o[:30], o[:30])['mcs_one_to_one'] # most features have no partner
    assert few.lo<few.value<few.hi and few.value==pytest.approx(scores(o[:30])['mcs_one_to_one'].value)

@pytest.mark.parametrize('name', [n for n in evaluations if evaluations[n].__module__.startswith('sparsenb.evaluations.')])
def test_what_is_kept_is_measured_again_when_its_parts_change(name):
    "All that an evaluation is made of is among `uses`"
    f = evaluations[name]
    text = inspect.getsource(inspect.getmodule(f))
    parts = {f'sparsenb.{m}' for m in re.findall(r'^from \.\.(\w+) import', text, re.M)}-{'sparsenb.core', 'sparsenb.scores'}
    parts |= {f'sparsenb.{k}.{n}' for k,n in re.findall(r"\b(analyses|probes)\['(\w+)'\]", text)}
    if re.search(r'^from \.\.tasks import .*\bsides\b', text, re.M): parts |= {'sparsenb.probing', 'sparsenb.labels', 'sparsenb.syntax'} # of which it is made
    assert parts<={*f.uses}, parts-{*f.uses}

def test_assignment_against_every_permutation():
    from itertools import permutations
    from sparsenb.evaluations.stability import assigned_cosines, unit
    g = torch.Generator().manual_seed(2)
    A,B = torch.randn(6, 4, generator=g),torch.randn(6, 4, generator=g)
    c = (unit(A)@unit(B).T).numpy()
    assert assigned_cosines(A, B).sum().item()==pytest.approx(max(sum(c[i,j] for i,j in enumerate(p)) for p in permutations(range(6))), abs=1e-5)
