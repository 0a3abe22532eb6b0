"Unlearning: which features, what clamping does to an activation, costs against the model run by hand, silent features, units"
from types import SimpleNamespace as NS
import numpy as np, pytest, torch
from scipy.sparse import csr_matrix
from sparsenb.core import UnknownName, dictionaries, evaluations
from sparsenb.corpus import load_corpus
from sparsenb.evaluations.unlearning import Clamp, _texts, chosen, levels, losses
from sparsenb.hooks import edited
from sparsenb.labels import label_tokens
from sparsenb.models import load_model
from sparsenb.scores import Case
from sparsenb.store import ActivationStore
from planted import silent

torch.set_num_threads(1)
WHOLE = [(d.name, d.text) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(20))]

@pytest.fixture(scope='module')
def case(tmp_path_factory):
    model = load_model('stdlib-4l', device='cpu')
    texts = load_corpus([(n, t[:1500]) for n,t in WHOLE])
    store = ActivationStore.collect(model, texts, site='resid_post.2', n_tokens=5000, path=tmp_path_factory.mktemp('s')/'acts', seq_len=96, progress=False)
    return Case(known(model, store), store, model, (), 0, .95, 100)

def known(model, store):
    "A dictionary with a feature along the mean difference of docstrings and code, and one along its opposite"
    y = label_tokens(model, store, 'docstring', texts=WHOLE)['docstring']
    x = next(store.rows(100_000)).x.double()
    v = x[y].mean(0)-x[~y].mean(0); v /= v.norm()
    at = (x@v).numpy()
    d = dictionaries['relu'](store.d_in, 4)
    with torch.no_grad():
        W = torch.stack([v, -v, torch.zeros_like(v), torch.zeros_like(v)]).float()
        d.W_enc.copy_(W.T); d.W_dec.copy_(W); d.b_dec.zero_()
        d.b_enc.copy_(torch.tensor([-np.quantile(at[~y], .9), -1e6, -1e6, -1e6]))
    return d

SOME = dict(n=(1,), strengths=(2., 8.), retain_density=.2, allowed=.2, n_sequences=8, texts=WHOLE)
def run(case, **kw): return evaluations['unlearning'](case, **dict(SOME, **kw))
def values(part): return {k: s.value for k,s in part.scores.items()}

def test_a_feature_of_docstrings_costs_docstrings(case):
    part = run(case)
    v = values(part)
    print({k: str(s) for k,s in part.scores.items()})
    assert v['unlearning_features']==1 and v['unlearning_forget']>max(2*v['unlearning_retain'], .05) and part.scores['unlearning_forget'].n>100
    assert 'damage, not forgetting' in part.doubts['unlearning_forget'] and 'nothing was clamped' not in part.doubts['unlearning_forget']

def test_nothing_to_clamp_costs_nothing(case):
    for part in (run(case._replace(dictionary=silent(known(case.model, case.store)))), run(case, strengths=(8.,), allowed=-1.), run(case, retain_density=0.)):
        v = values(part)
        assert v['unlearning_forget']==v['unlearning_retain']==v['unlearning_random_forget']==v['unlearning_features']==0 and 'nothing was clamped' in part.doubts['unlearning_forget']

def test_chance_draws_other_features(case):
    "There is one feature that fires: none is left to be drawn"
    part = run(case)
    assert values(part)['unlearning_features']==1 and values(part)['unlearning_random_forget']==values(part)['unlearning_random_retain']==0
    assert '0 of the other features that fire' in part.about['unlearning_random_forget']

def test_units_of_features_do_not_matter(case):
    d = known(case.model, case.store)
    with torch.no_grad(): d.W_enc *= 10; d.b_enc *= 10; d.W_dec /= 10
    a,b = values(run(case)),values(run(case._replace(dictionary=d)))
    for k in a: assert a[k]==pytest.approx(b[k], abs=1e-4), k

def test_costs_are_those_of_the_model_run_by_hand(case):
    store,model = case.store,case.model
    texts = _texts(store, np.arange(len(store)), 5, 0)
    tok = next(store.rows(100_000)).tok.numpy()
    base,rows = losses(case, texts, None)
    assert (tok[rows]==np.concatenate([t.ids[1:] for t in texts])).all()
    c = Clamp(case.dictionary, [0], [-3.])
    got,_ = losses(case, texts, c, batch_size=2)
    W = case.dictionary.W_enc[:,0].detach(); b = case.dictionary.b_enc[0].item()
    for t in texts:
        ids = torch.tensor([t.ids])
        def fn(x):
            f = (x@W+b).relu()
            new = x+torch.where(f>0, -3.-f, 0.)[...,None]*case.dictionary.W_dec[0].detach()
            return torch.where((ids==model.bos_id)[...,None], x, new)
        for want,edits in ((base, {}), (got, {store.site: fn})):
            with edited(model, edits): lp = model.logits(ids)[0,:-1].float().log_softmax(-1)
            loss = -lp.gather(-1, ids[0,1:,None])[:,0].numpy()
            np.testing.assert_allclose(want[np.isin(rows, t.row+np.arange(1, len(t.ids)))], loss, atol=2e-3)
    assert np.abs(got-base).max()>.1

def test_a_clamped_activation():
    d = dictionaries['topk'](6, 12, k=3, seed=0)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    f = d.encode(x)
    j = int((f!=0).flatten(0, 1).sum(0).argmax())
    g = f.clone(); g[...,j] = torch.where(f[...,j]!=0, -2., 0.)
    torch.testing.assert_close(Clamp(d, [j], [-2.])(x), x+d.decode(g)-d.decode(f), atol=1e-5, rtol=1e-4)
    assert Clamp(d, [], [])(x) is x

def test_which_features():
    f = csr_matrix(np.array([[1., 0, 2, 1], [1, 1, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5]]))
    y = np.array([True, True, False, False, False])
    assert chosen(f, y, ~y, 9, .4).tolist()==[0, 1, 2, 3] and chosen(f, y, ~y, 9, .3).tolist()==[0, 2] and chosen(f, y, ~y, 1, .3).tolist()==[0]
    assert levels(f, y).tolist()==[1, 1, 2, 1] and levels(f, ~y).tolist()==[0, 3, 0, 5]

def test_what_makes_no_sense_is_refused(case):
    with pytest.raises(UnknownName, match="did you mean 'comment'"): run(case, forget='coment')
    with pytest.raises(ValueError, match='whole numbers of at least 1'): run(case, n=(0,))
    with pytest.raises(ValueError, match='numbers of at least 0'): run(case, strengths=(-1.,))
    with pytest.raises(ValueError, match="no token is 'brackets>=40'"): run(case, forget='brackets>=40')
    with pytest.raises(ValueError, match='none of the 1 rows to choose features on is docstring: take more than n_rows=1'): run(case, n_rows=1)
    with pytest.raises(ValueError, match='take more than n_sequences=1'): run(case, n_sequences=1)
    with pytest.raises(ValueError, match='its .whole'): run(case._replace(store=NS(whole=case.store)))
    with pytest.raises(ValueError, match='adding up directions'): run(case._replace(dictionary=dictionaries['relu'](case.store.d_in, 8, d_out=4)))
