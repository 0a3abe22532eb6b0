"Effect and cost of steering against passes written out, pairs that fit, and the report from its parameters to its page"
import numpy as np, pytest, torch
from pathlib import Path
from sparsenb.analyses.dose import contrast, pairs_of
from sparsenb.core import UnknownName, analyses, dictionaries
from sparsenb.hooks import add, capture, edited
from sparsenb.models import load_model
from sparsenb.report import run_report

torch.set_num_threads(1)
SITE = 'resid_post.1'
PLUS,MINUS = ['def f(x):\n  return x\n', 'def g(x, y):\n  return y+x\n', 'class A:\n  b = 1\n', 'if x:\n  y = 2\n'],['def f(x):\n    return x\n', 'def g(x, y):\n    return y+x\n', 'class A:\n    b = 1\n', 'if x:\n    y = 2\n']

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l')

def nats(m, text, begin):
    ids = m.tokens(text)[0]; y = m.logits(ids)[0].log_softmax(-1)
    return -float(np.mean([float(y[i-1,ids[0,i]]) for i in range(begin, ids.shape[1])]))

def test_pairs_begin_alike(model):
    p = pairs_of(model, PLUS, MINUS)
    for i,b in enumerate(p.begin.tolist()):
        assert p.plus[0][i,:b].equal(p.minus[0][i,:b]) and p.plus[0][i,b]!=p.minus[0][i,b]
    for bad in ((PLUS[:1], [PLUS[0]]), (['def f('], ['def f(x'])):
        with pytest.raises(ValueError, match='neither be the beginning'): pairs_of(model, *bad)
    with pytest.raises(ValueError, match='got 2 and 1'): pairs_of(model, PLUS[:2], MINUS[:1])
    with pytest.raises(ValueError, match='got 0 and 0'): pairs_of(model, [], [])

def test_the_vector_is_the_mean_difference_from_where_texts_differ(model):
    p = pairs_of(model, PLUS, MINUS); rows = []
    for side in (PLUS, MINUS): rows.append(torch.cat([capture(model, t, SITE)[SITE][0,b:] for t,b in zip(side, p.begin.tolist())]).mean(0))
    torch.testing.assert_close(contrast(model, p, SITE), rows[0]-rows[1], atol=1e-4, rtol=1e-4)

def test_effect_and_cost_are_those_of_passes_written_out(model):
    p = pairs_of(model, PLUS, MINUS); v = contrast(model, p, SITE)
    text = model.tokens(['import os\nimport sys\nfrom pathlib import Path\n', 'x = [i for i in range(10)]\nprint(x, sum(x))\n'])[0][:,:10]
    r = analyses['dose'](model, SITE, dict(vector=v, same=lambda h,s: h+s*v, few=[v, -v], nothing=lambda h,s: h), p, text, (1., 2.), seed=0)
    prefer = lambda: np.mean([nats(model, b, i)-nats(model, a, i) for a,b,i in zip(PLUS, MINUS, p.begin.tolist())])
    loss = lambda: np.mean([float(torch.nn.functional.cross_entropy(model.logits(t[None])[0,:-1], t[1:])) for t in text])
    assert r.plain==pytest.approx((prefer(), loss()), abs=1e-4)
    for i,s in enumerate((1., 2.)):
        with edited(model, {SITE: add(v, s)}): now = prefer(),loss()
        assert r['vector'][i,0]==pytest.approx(now[0]-r.plain[0], abs=1e-4) and r.costs['vector'][i,0]==pytest.approx(now[1]-r.plain[1], abs=1e-4)
    np.testing.assert_allclose(r['same'], r['vector'], atol=1e-6)
    assert not r['nothing'].any() and not r.costs['nothing'].any()
    assert (r['few'][:,1]<=r['few'][:,0]).all() and r['few'][0,2]==pytest.approx(r['vector'][0,0])
    assert r.best(-99.).rows[0][1]=='none' and r.best(99.).rows[0][1]==(1., 2.)[int(r['vector'][:,0].argmax())]
    with pytest.raises(UnknownName, match='unknown way'): r['vectr']
    with pytest.raises(UnknownName, match='unknown curve'): r.curve('costs')

def test_texts_are_what_the_model_writes_and_marks_where_they_differ(model):
    p = pairs_of(model, PLUS, MINUS); v = torch.zeros(256); v[3] = 60.
    r = analyses['dose'](model, SITE, dict(vector=v), p, model.tokens('import os\nimport sys\n')[0], (1.,), prompts=['def area(r):'], n_new=8, seed=0)
    own,(label,tokens,marks) = r.texts['def area(r):']['vector']
    assert ''.join(own[1])==model.generate('def area(r):', 8) and not own[2].any() and label=='×1'
    with edited(model, {SITE: add(v)}): assert ''.join(tokens)==model.generate('def area(r):', 8)
    assert [bool(c) for c in marks]==[i>=len(own[1]) or t!=own[1][i] for i,t in enumerate(tokens)] and marks.any()
    assert len(r.writing())==1 and 'as it is' in r.writing()[0].html()

def test_bad_doses_are_refused(model):
    p,text = pairs_of(model, PLUS, MINUS),model.tokens('import os\n')[0]; v = torch.zeros(256)
    for change,said in ((dict(ways={}), 'at least one way'), (dict(strengths=(0., 1.)), 'none of them 0'), (dict(strengths=()), 'at least one way and finite')):
        with pytest.raises(ValueError, match=said): analyses['dose'](model, **(dict(site=SITE, ways=dict(v=v), pairs=p, text=text)|change))
    with pytest.raises(UnknownName, match='unknown way'): analyses['dose'](model, SITE, dict(v=v), p, text, write=['w'])
    with pytest.raises(UnknownName, match='unknown site'): analyses['dose'](model, 'resid_pst.1', dict(v=v), p, text)

def test_the_report(tmp_path):
    dictionaries['topk'](256, 64, k=4, seed=0).save(tmp_path/'topk')
    small = dict(n_pairs=8, strengths=[1.], draws=2, steps=4, n_text=3, length=24, n_new=4, prompts=['def f(x):'], dictionary=str(tmp_path/'topk'), feature=5)
    html = Path(run_report('steering', small, tmp_path/'s.html')).read_text()
    assert all(w in html for w in ('Wanted effect', 'Cost on ordinary text', 'Effect against cost', 'as it is', 'adapter', 'random', 'feature 5', 'Best within')) and ('It steers.' in html or 'no more than random' in html or 'At no strength' in html)
