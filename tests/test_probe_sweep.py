"A sweep of probes: planted labels, the scores of single probes, going on, saving, what is refused, the bundled model by layer"
import json
import numpy as np, pytest, torch
from sparsenb.core import UnknownName, probes
from sparsenb.corpus import load_corpus
from sparsenb.models import load_model
from sparsenb.probe_sweep import ProbeSweep, _fitted, _site, probe_sweep, untrained

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')
@pytest.fixture(scope='module')
def texts(): return [(d.name, d.text) for d,_ in zip(load_corpus('stdlib', split='held-out'), range(28))]
SMALL = dict(n_tokens=2600, n_boot=40, shuffles=1, progress=False, seed=0, least=5)

@pytest.fixture(scope='module')
def swept(model, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp('sweep')/'kept'
    return probe_sweep(model, texts, tasks=('docstring', 'brackets>=1', 'brackets'), layers=(0, 3), sites=('embed', 'resid_post'), path=path, **SMALL),path

def rows(n=900, d=12, seed=0):
    "Two tasks and a number planted in directions, rows of thirty documents, forty words that tell nothing"
    rng = np.random.default_rng(seed)
    ys = {t: (rng.random(n)<s, False) for t,s in (('a', .5), ('b', .2))}|dict(c=(rng.normal(size=n), True))
    x = rng.normal(size=(n, d)).astype(np.float32)
    for i,t in enumerate('abc'): x[:,i] += 3*ys[t][0]
    doc = np.arange(n)//30
    return x,ys,rng.integers(0, 40, n),doc

@pytest.mark.parametrize('name', [n for n in probes if probes[n].reads=='rows' and n not in ('mlp', 'bilinear', 'moment')])
def test_scores_are_those_of_a_probe_by_itself(name):
    "Fits done together, in torch or not, are the fits that `score` would have made"
    x,ys,tok,doc = rows()
    a,b = np.flatnonzero(doc<20),np.flatnonzero(doc>=20)
    kw = dict(k=2, seed=0) if name=='k_sparse_probe' else dict(seed=0)
    cfg = dict(n_boot=30, code=True, shuffles=2)
    got = _site(x, np.random.default_rng(1).normal(size=x.shape).astype(np.float32), ys, {name: kw}, (a, b), tok, doc, cfg)
    assert {t for t,_ in got}==({'c'} if name=='ridge' else {'a', 'b'})
    for (t,_),(s,r) in got.items():
        y = ys[t][0]
        p = probes[name](**kw).fit(x[a], y[a], rows=a, types=tok[a])
        want = p.score(x[b], y[b], rows=b, types=tok[b], groups=doc[b], shuffles=2, n_boot=30)
        assert {*want}|{f'untrained_{p.headline}', 'above_untrained'}=={*s}
        for k in want: assert s[k].value==pytest.approx(want[k].value, rel=.02, abs=.02) and s[k].n==want[k].n and s[k].unit==want[k].unit, (t, k)
        assert s['above_untrained'].lo>.2 and s['above_untrained'].value==pytest.approx(s[p.headline].value-s[f'untrained_{p.headline}'].value)
        assert r['weight'].shape[1]==12 and r['pattern'].shape==p.pattern.shape

def test_a_probe_is_itself_again_after_the_plan():
    x,ys,tok,doc = rows()
    p = probes['logistic'](seed=0)
    y = ys['a'][0]
    made = [(p, (x[:600], y[:600]), (x[600:], y[600:]))]
    _fitted(made, dict(fit={}, score=dict(n_boot=0)), dict(code=False, shuffles=0))
    assert 'solve' not in p.__dict__ and p.fit(x[:600], y[:600]).score(x[600:], y[600:], n_boot=0)['accuracy'].value>.85
    with pytest.raises(ValueError, match='two classes'): _fitted([(p, (x[:600], y[:600]*0), (x[600:], y[600:]))], dict(fit={}, score=dict(n_boot=0)), dict(code=False, shuffles=0))
    assert 'solve' not in p.__dict__

def test_non_linear_probes_are_scored_and_not_kept():
    x,ys,tok,doc = rows(400)
    got = _site(x, None, dict(a=ys['a']), {'mlp': dict(hidden=4, max_iter=20, seed=0)}, (np.arange(300), np.arange(300, 400)), tok, doc, dict(n_boot=10, code=False, shuffles=0))
    s,r = got['a','mlp']
    assert r is None and s['accuracy'].value>.8 and 'above_untrained' not in s

def test_the_result_holds_all_of_it(swept, model):
    s,_ = swept
    assert len(s)==3*(2*2+1) and s.layers==(None, 0, 3) and s.sites==('embed', 'resid_post')
    k = s[3,'resid_post','docstring','logistic']
    assert {'accuracy', 'balanced_accuracy', 'f1', 'mcc', 'pr_auc', 'selectivity', 'control_accuracy', 'shuffled_accuracy', 'untrained_accuracy', 'above_untrained', 'codelength', 'compression'}<=set(k)
    assert k['accuracy'].lo<k['accuracy'].value<k['accuracy'].hi and k['accuracy'].unit.endswith('groups')
    assert {'r2', 'selectivity', 'untrained_r2', 'shuffled_r2', 'mae'}<=set(s[None,'embed','brackets','ridge'])
    assert s.table().column('task').count('brackets')==3 and len(s.table(task='docstring', probe='logistic').rows)==3
    assert 'docstring' in s.heatmap('docstring', 'logistic').title and np.isfinite(s.heatmap('brackets', 'ridge').z[1][1:]).all()
    d,p = (s.direction(3, 'resid_post', 'docstring', 'logistic', pattern=v) for v in (False, True))
    assert d.shape==p.shape==(256,) and d.norm()==pytest.approx(1, abs=1e-5) and .01<d@p<.9999
    probe = s.probe(3, 'resid_post', 'docstring', 'logistic')
    x = np.random.default_rng(0).normal(size=(30, 256))
    assert probe(x).dtype==bool and torch.equal(probe.direction, d)
    with pytest.raises(ValueError, match='were fitted on'): probe.score(x, probe(x), rows=[*range(10**6, 10**6+29), int(s.rows[0])], code=False, shuffles=0)

def test_saved_and_loaded_bit_for_bit(swept, tmp_path):
    s,_ = swept
    s.save(tmp_path/'a')
    q = ProbeSweep.load(tmp_path/'a')
    assert sorted(f.name for f in (tmp_path/'a').iterdir())==['readings.safetensors', 'sweep.json']
    assert dict(q)==dict(s) and repr(q)==repr(s) and (q.rows==s.rows).all() and repr(q.table())==repr(s.table())
    for k,r in s.readings.items(): assert all(np.array_equal(r[n], q.readings[k][n]) for n in r)
    (tmp_path/'a'/'sweep.json').write_text(json.dumps(dict(model=1)))
    with pytest.raises(ValueError, match='holds no sweep'): ProbeSweep.load(tmp_path/'a')
    with pytest.raises(ValueError): ProbeSweep.load(tmp_path/'none')

def test_goes_on_where_it_stopped(swept, model, texts, tmp_path, monkeypatch):
    import shutil, sparsenb.probe_sweep as m
    s,path = swept
    assert sorted(f.name for f in path.iterdir())==['embed', 'resid_post.0', 'resid_post.3']
    shutil.copytree(path, tmp_path/'k'); shutil.rmtree(tmp_path/'k'/'resid_post.3')
    seen,own = [],m._site
    monkeypatch.setattr(m, '_site', lambda *a: seen.append(1) or own(*a))
    again = probe_sweep(model, texts, tasks=('docstring', 'brackets>=1', 'brackets'), layers=(0, 3), sites=('embed', 'resid_post'), path=tmp_path/'k', **SMALL)
    assert len(seen)==1 and dict(again)==dict(s), 'one site anew, with the same numbers'
    with pytest.raises(ValueError, match='holds a sweep with another tasks'): probe_sweep(model, texts, tasks='docstring', layers=(0, 3), path=path, **SMALL)
    with pytest.raises(ValueError, match='another seed|another probes, seed'): probe_sweep(model, texts, tasks=('docstring', 'brackets>=1', 'brackets'), layers=(0, 3), path=path, **SMALL|dict(seed=1))

def test_an_untrained_copy_is_as_wide_and_knows_nothing(model):
    before = {n: p.detach().clone() for n,p in model.module.named_parameters()}
    u = untrained(model, 3)
    for n,p in u.module.named_parameters():
        if p.ndim>1: assert not torch.equal(p, before[n]) and float(p.detach().std())==pytest.approx(float(before[n].detach().std()), rel=.05)
        else: assert torch.equal(p, before[n])
    assert all(torch.equal(p, before[n]) for n,p in model.module.named_parameters())
    v = untrained(model, 3)
    assert all(torch.equal(a, b) for a,b in zip(u.module.parameters(), v.module.parameters()))

@pytest.mark.parametrize('kw, error, say', [
    (dict(tasks='docstrng'), UnknownName, "did you mean 'docstring'"), (dict(tasks=()), ValueError, 'different tasks'), (dict(tasks='docstring', probes='logistik'), UnknownName, "did you mean 'logistic'"),
    (dict(tasks='docstring', probes='structural'), ValueError, 'reads trees'), (dict(tasks='docstring', probes='ridge'), ValueError, "add 'logistic'"), (dict(tasks='brackets', probes='logistic'), ValueError, "add 'ridge'"),
    (dict(tasks='docstring', layers=9), ValueError, 'layers are 0 to 3, got 9'), (dict(tasks='docstring', sites='resid_pst'), UnknownName, 'resid_p'), (dict(tasks='brackets>=40'), ValueError, 'rows of one class'),
    (dict(tasks='docstring', corpus=[('a', 'x = 1')]), ValueError, '1 documents were read'), (dict(tasks='docstring', corpus=[(str(i), 'def (') for i in range(9)]), ValueError, 'could be labelled, at least 4 are needed: Python cannot')])
def test_what_makes_no_sense_is_refused(model, texts, kw, error, say):
    with pytest.raises(error, match=say): probe_sweep(model, **dict(corpus=texts, layers=0)|SMALL|kw)

def test_brackets_and_docstrings_by_layer(model):
    "Words alone do not say whether a bracket is open: what the embedding knows of it is memory, what the last layers know is not"
    s = probe_sweep(model, 'stdlib', tasks=('docstring', 'brackets>=1'), layers=(0, 2, 3), sites=('embed', 'resid_post'), probes='logistic', n_tokens=6000, n_boot=50, progress=False, seed=0)
    v = lambda task, k: [float(s[l,'embed' if l is None else 'resid_post',task,'logistic'][k]) for l in s.layers]
    print({(t, k): np.round(v(t, k), 3).tolist() for t in s.tasks for k in ('accuracy', 'selectivity', 'above_untrained', 'compression')})
    sel,up = v('brackets>=1', 'selectivity'),v('brackets>=1', 'above_untrained')
    assert sel[0]<.05<sel[2] and sel[3]>.05 and up[2]>.08<up[3]
    assert v('docstring', 'selectivity')[2]>v('docstring', 'selectivity')[0]+.08 and v('docstring', 'compression')[2]>1.5
    for l in s.layers: assert abs(s[l,'embed' if l is None else 'resid_post','brackets>=1','logistic']['shuffled_accuracy'].value-.5)<.15
