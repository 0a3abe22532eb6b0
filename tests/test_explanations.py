"Explanations and their scores: closed forms, rules that are planted and found, held-out text that stays held out, a file that survives a kill, hostile text"
import copy, json, pickle, random, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from sparsenb import explanations as ex
from sparsenb.core import UnknownName, explainers, read_json, widgets
from sparsenb.explanations import Answers, Record, explained, restored
from sparsenb.export import export_neuronpedia, figure_svg, numbers_text
from sparsenb.functions import find, grid, nmse, planted, same_strings, text_contexts, unit_test
from sparsenb.index import FeatureIndex
from sparsenb.judging import auroc, detection, embedding, encoder, fuzzing, intruder, marks, mask_iou, pmi, rates, scored, simulation, written
from sparsenb.labels import label_tokens
from sparsenb.models import load_model
from sparsenb.rules import Context, Rule
from sparsenb.static import static_browser
from sparsenb.store import ActivationStore
from toy_index import HOSTILE

torch.set_num_threads(1)
value = lambda s, k: s[k].value

def contexts(words, on='aeiou'): return [Context(tuple(w), np.array([float(c in on) for c in w]), doc=w) for w in words]
ACTIVE,SILENT = contexts(('hello', 'audio', 'tree', 'moon', 'idea', 'queue')),contexts(('rhythm', 'lynx', 'myth', 'nymph', 'crypt', 'gypsy'))
VOWEL = Rule('words', list('aeiou'))


# Closed forms

def test_an_oracle_gets_1_and_who_always_says_yes_a_half():
    for f,name in ((detection, 'detection'), (fuzzing, 'fuzzing')):
        run,said = f(VOWEL, ACTIVE, SILENT),f('vowels', ACTIVE, SILENT, judge=lambda q: 'Yes')
        assert value(run, name)==value(run, f'{name}.f1')==1 and (run[name].lo, run[name].hi)==(1, 1)
        assert (value(said, name), value(said, f'{name}.tpr'), value(said, f'{name}.tnr'))==(.5, 1, 0)
        assert run[name].n==12 and run[name].version==f'{name}/1' and run[name].unit=='12 texts'
    assert value(simulation(VOWEL, ACTIVE, SILENT), 'simulation')==1 and value(simulation(Rule('any'), ACTIVE, SILENT), 'simulation')==0
    assert value(intruder(VOWEL, ACTIVE, SILENT), 'intruder')==1 and value(intruder(Rule('any'), ACTIVE, SILENT), 'intruder')==pytest.approx(.2)
    assert value(unit_test(VOWEL, ACTIVE, SILENT), 'unit_test')==1 and value(unit_test(Rule('any'), ACTIVE, SILENT), 'unit_test')==pytest.approx(1/3)

def test_rules_are_copied_and_sent_elsewhere():
    for r in (Rule('word', 'self', .5), VOWEL, Rule('position', 2), Rule('any')):
        for c in (copy.deepcopy(r), pickle.loads(pickle.dumps(r))):
            assert c==r and c.cfg==r.cfg and c.words==r.words and c.predict(ACTIVE[0]).tolist()==r.predict(ACTIVE[0]).tolist()

def test_rates_are_those_of_the_table():
    truth,said = [1]*6+[0]*4,[1, 1, 1, 1, 0, None, 1, 0, 0, None]
    r = rates(truth, said)
    assert (value(r, 'detection.tpr'), value(r, 'detection.tnr'))==pytest.approx((4/5, 2/3))
    assert value(r, 'detection')==pytest.approx((4/5+2/3)/2) and value(r, 'detection.f1')==pytest.approx(2*4/(5+5))
    assert r['detection'].n==8 and r['detection'].unit.endswith('2 answers not understood')
    with pytest.raises(ValueError, match='contexts with the feature and without it'): rates([1, 1], [1, 0])

def test_highlights_in_negatives_are_never_active():
    r = np.random.default_rng(0)
    act = [Context(('x',)*20, r.random(20)*(r.random(20)<.3)) for _ in range(20)]
    neg = [Context(('x',)*20, np.where(r.random(20)<.5, r.random(20)*.1, 0)) for _ in range(20)]  # low, but not all 0
    on = marks(act, neg, seed=3)
    mean = np.ceil(np.mean([m.sum() for m in on[:20]]))
    for c,m in zip(act, on): assert (m==((c.values>=.3*c.values.max())&(c.values>0))).all()
    for c,m in zip(neg, on[20:]): assert (c.values[m]==0).all() and m.sum()==min(mean, (c.values==0).sum())
    assert all((a==b).all() for a,b in zip(on, marks(act, neg, seed=3))) and any((a!=b).any() for a,b in zip(on, marks(act, neg, seed=4)))
    assert written(Context(('a', 'b', 'c', 'd'), np.zeros(4)), [1, 0, 1, 1])=='<<a>>b<<cd>>'

def test_simulation_is_pearson_over_all_tokens():
    r = np.random.default_rng(1)
    cs = [Context(tuple('abcdef'), r.random(6), doc=str(i)) for i in range(8)]
    said = [r.integers(0, 11, 6) for _ in cs]
    answers = iter([' '.join(map(str, s)) for s in said[:-1]]+['I cannot say'])
    s = simulation('x', cs, [], judge=lambda q: next(answers))['simulation']
    assert s.value==pytest.approx(np.corrcoef(np.concatenate(said[:-1]), np.concatenate([c.values for c in cs[:-1]]))[0,1])
    assert s.n==7 and '1 answers not understood' in s.unit and s.lo<s.value<s.hi

def test_auroc_against_its_definition():
    r = np.random.default_rng(2)
    y,s,w = r.random(30)<.4,r.integers(0, 6, 30),r.integers(0, 3, (4, 30))
    for row in range(4):
        pairs = [(w[row,i]*w[row,j], 1. if s[i]>s[j] else .5*(s[i]==s[j])) for i in np.flatnonzero(y) for j in np.flatnonzero(~y)]
        assert auroc(y, s, w)[row]==pytest.approx(sum(a*b for a,b in pairs)/sum(a for a,_ in pairs))

def test_milan_takes_what_gains_most():
    given,prior = np.log([.5, .4]),np.log([.9, .01])
    assert pmi(given, prior)==pytest.approx([-.672, .005], abs=1e-3)
    assert (pmi(given, prior).argmax(), pmi(given, prior, 0).argmax())==(1, 0)

def test_iou_of_boxes_and_of_other_pictures():
    a,m = np.zeros((6, 8, 8)),np.zeros((6, 8, 8), bool)
    for k in range(6): a[k,:4,:4],m[k,:4,2:6] = 1,True
    s = mask_iou(a, m, .5)
    assert value(s, 'iou')==pytest.approx(1/3)==value(s, 'iou.control')  # all masks are alike
    b = np.zeros((6, 4, 4)); n = np.zeros((6, 8, 8), bool)
    for k in range(6): b[k,k//2,k%2] = 1+k; n[k,2*(k//2):2*(k//2)+2,2*(k%2):2*(k%2)+2] = True
    s = mask_iou(b, n, .5)
    assert value(s, 'iou')==1 and .05<value(s, 'iou.control')<.4  # one in six is its own mask
    with pytest.raises(ValueError, match='active in none'): mask_iou(0*a, m)
    with pytest.raises(ValueError, match='of the same pictures'): mask_iou(a, m[:3])

def test_find_numbers_and_strings():
    f = lambda x: np.sin(x)+x**2
    assert nmse(f, f)==0 and nmse(f, lambda x: 0)==1 and nmse(f, lambda x: 1.3*f(x))==pytest.approx(.09) and nmse(f, lambda x: np.nan)==np.inf
    assert len(grid)==256 and (grid[0], grid[-1])==(-127.5, 127.5)
    assert same_strings(str.lower, str.casefold, ['A', 'ß', 'b']).value==pytest.approx(2/3)


# Judges

def test_judges_see_the_explanation_and_answer_through_one_door():
    seen = []
    class Oracle(Answers):
        def ask(self, q):
            seen.append(q)
            text = q.split('\n\n')[2]
            if 'Which is the one' in q: return str(next(k for k,t in enumerate(q.split('Text ')[1:], 1) if not set(t.split('\n')[1])&set('aeiou')))
            if 'between' in q: return '1' if any(c in 'aeiou' for c in text.split('<<', 1)[1].split('>>')[0]) else '0'
            return '1' if set(text)&set('aeiou') else '0'
    s = scored('letters such as these', ACTIVE, SILENT, ('detection', 'fuzzing', 'intruder'), judge=Oracle())
    assert all(value(s, k)==1 for k in ('detection', 'fuzzing', 'intruder')) and all('letters such as these' in q for q in seen)
    assert len(seen)==12+12+6
    # an explanation that can be run is judged all the same, where a judge is given
    assert value(detection(VOWEL, ACTIVE, SILENT, judge=lambda q: 'no'), 'detection')==.5

def test_what_nobody_can_answer():
    with pytest.raises(ValueError, match="nobody can say what 'vowels' predicts: pass judge="): scored('vowels', ACTIVE, SILENT)
    with pytest.raises(ValueError, match="not understood, the first is 'perhaps'"): detection('vowels', ACTIVE, SILENT, judge=lambda q: 'perhaps')
    with pytest.raises(ValueError, match='needs encode='): scored(VOWEL, ACTIVE, SILENT, ('embedding',))
    with pytest.raises(ValueError, match='one vector for each'): embedding('x', ACTIVE, SILENT, encode=lambda t: np.zeros((3, 2)))
    with pytest.raises(UnknownName, match="did you mean 'detection'"): scored(VOWEL, ACTIVE, SILENT, ('detecton',))
    with pytest.raises(ValueError, match='needs 4 contexts'): intruder(VOWEL, ACTIVE[:3], SILENT)

def test_minilm_tells_texts_apart(minilm):
    cats = ['The cat sleeps on the sofa.', 'Two kittens chase a mouse.', 'Our dog barks at the neighbour.', 'A puppy wags its tail.']
    banks = ['The bank raised its rates.', 'Inflation fell in March.', 'Shares closed lower today.', 'The treasury sold bonds.']
    one = lambda texts: [Context((t,), np.ones(1), doc=t) for t in texts]
    encode = encoder(minilm)
    v = encode(cats)
    assert np.abs(encoder(minilm, batch=2)(cats+banks[:1])[:4]-v).max()<1e-5  # neither the batch nor its order matters
    assert v.shape==(4, 384) and np.linalg.norm(v, axis=1)==pytest.approx(np.ones(4), abs=1e-5)
    assert value(embedding('animals that people keep at home', one(cats), one(banks), encode), 'embedding')>.9
    assert value(embedding('money and the economy', one(cats), one(banks), encode), 'embedding')<.3


# Back ends

def test_a_command_explains_and_judges():
    tell = explainers['command']([sys.executable, '-c', 'import sys; q = sys.stdin.read(); print("vowels" if "Example 1" in q else "yes")'])
    assert explained(tell, Record(0, ACTIVE, SILENT))=='vowels' and value(detection('vowels', ACTIVE[:2], SILENT[:2], tell), 'detection')==.5
    with pytest.raises(FileNotFoundError, match="there is no program 'no-such-thing'"): explainers['command']('no-such-thing')('x')
    with pytest.raises(TimeoutError, match='gave no answer in 0.3 s'): explainers['command'](['sleep', '9'], timeout=.3)('x')
    with pytest.raises(RuntimeError, match='failed with status 2: no luck'): explainers['command']([sys.executable, '-c', 'import sys; print("no luck", file=sys.stderr); sys.exit(2)'])('x')
    with pytest.raises(ValueError, match='explainer command returned an empty text for feature 4'): explained(explainers['command'](['true']), Record(4, ACTIVE, SILENT))
    evil = Record(0, [Context(tuple(HOSTILE), np.ones(len(HOSTILE)))], [])
    assert explained(explainers['command']([sys.executable, '-c', 'import sys; print(len(sys.stdin.buffer.read())>0)']), evil)=='True'

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

def test_a_local_model_answers_and_is_never_fetched(model, tmp_path):
    folder = Path(model.name) if Path(model.name).is_dir() else Path(sys.modules['sparsenb'].__file__).parent/'weights'/'stdlib-4l'
    m = explainers['local_model'](folder, max_new_tokens=6, device='cpu')
    assert m._model is None  # not before it is asked
    a = m('import os, ')
    assert a and '\n' not in a and a==explainers['local_model'](model, max_new_tokens=6)('import os, ')
    assert explainers['local_model'](model, max_new_tokens=4, beams=3)('def f(self):\n    return ')
    with pytest.raises(FileNotFoundError, match='nothing is fetched'): explainers['local_model']('gpt2')
    with pytest.raises(ValueError, match='Show fewer examples'): m('x = 1\n'*500)
    with pytest.raises(ValueError, match='at least 1'): explainers['local_model'](folder, beams=0)

@pytest.mark.parametrize('wrong,error,says', [(lambda r: 7, TypeError, 'returned int for feature 3: a text was expected'), (lambda r: None, TypeError, 'returned NoneType'), (lambda r: ' \n', ValueError, 'returned an empty text for feature 3')])
def test_what_is_no_explanation(wrong, error, says):
    with pytest.raises(error, match=says): explained(wrong, Record(3, ACTIVE, SILENT))

def test_a_record_as_a_question():
    q = Record(0, [Context(('def', ' area', '('), np.array([0, 2., .5])), Context((' a', 'b'), np.array([1., 0]))], []).prompt()
    assert 'def<< area>>(' in q and "' area': 10" in q and "'(': 2" not in q and '<< a>>b' in q and "' a': 5" in q


# Functions whose rule is known

def test_rules_find_functions_and_a_constant_does_not():
    some = text_contexts(n_per_text=12)
    rules,constant = find(explainers['rules'](), contexts=some),find(lambda r: Rule('any'), contexts=some)
    found = {k: (e.text.kind, e.text.value) for k,e in rules.items()}
    for k in ('docstring', 'comment', 'number', 'after def', 'parameter'): assert found[k]==(planted[k].kind, planted[k].value)
    for k in ('unit_test', 'detection', 'simulation'):
        r,c = rules.mean(k),constant.mean(k)
        assert r.lo>c.hi and c.value==pytest.approx(dict(unit_test=1/3, detection=.5, simulation=0)[k]) and r.n==len(planted)
    prose = find(lambda r: 'something', lambda q: '1', contexts=some)  # judged by who always says 1: chance
    assert set(prose['comment'].scores)=={'unit_test', 'detection', 'detection.f1', 'detection.tpr', 'detection.tnr'} and prose.mean('detection').value==.5 and abs(prose.mean('unit_test').value-1/3)<.15
    with pytest.raises(ValueError, match="'never' is active in too few"): find(explainers['rules'](), functions=dict(never=Rule('token', '\x00')), contexts=some)


# On an index

@pytest.fixture(scope='module')
def real(tmp_path_factory, model):
    "The bundled model's text with planted features, and a dictionary of its own activations: two indexes"
    from sparsenb.all import dictionaries, fit, load_corpus
    d = tmp_path_factory.mktemp('ex')
    store = ActivationStore.collect(model, load_corpus('stdlib'), site='resid_post.2', n_tokens=30_000, path=d/'acts', progress=False)
    l = label_tokens(model, store, ('docstring', 'type', 'kind'))
    x = torch.from_numpy(np.stack([l.where(t) for t in ('docstring', 'type=keyword', 'kind=parameter')]+[np.zeros(len(l), bool)], 1).astype(np.float32))
    x *= torch.rand(x.shape, generator=torch.Generator().manual_seed(0))+.5
    tok,pos,doc = (store._shards.span(k, 0, len(store)) for k in ('tok', 'pos', 'doc'))
    names = [store.doc_name(i) for i in range(int(doc.max())+1)]
    plain = ActivationStore.from_rows(d/'planted', x, tok, pos-int(pos[0]), doc, names=names)
    sae = dictionaries['topk'](store.d_in, 192, k=8)
    fit(sae, store, n_tokens=150_000, batch_size=512)
    return SimpleNamespace(planted=FeatureIndex.build(torch.eye(4), plain, model, path=d/'ip'), own=FeatureIndex.build(sae, store, model, path=d/'io'), store=store, folder=d)

def test_planted_features_get_their_rules(real):
    got = real.planted.explain()
    assert {i: (e.text.kind, e.text.value) for i,e in got.items()}=={0: ('label', 'docstring'), 1: ('label', 'type=keyword'), 2: ('label', 'kind=parameter')}
    assert got[0].text.startswith('inside a docstring (F1 ') and real.planted.explanation(0).text==got[0].text
    for e in got.values():
        assert e.text.f1==1 and all(e.scores[k].value==1 for k in ('detection', 'fuzzing')) and e.scores['simulation'].value>.9
    assert real.planted.search('docstring')[0]==0 and real.planted.search('a Python keyword')==[1]
    with pytest.raises(ValueError, match='feature 3 has no examples: it is dead'): real.planted.explain([3])
    back = restored(real.planted.explanation(1))
    assert isinstance(back, Rule) and back==got[1].text

def test_nothing_is_scored_on_what_it_was_explained_from(real):
    for by_doc in (False, True):
        t = ex._Text(real.own, 300, 0, None)
        t.by_doc = by_doc
        n = 0
        for i in np.flatnonzero(real.own.alive)[:40].tolist():
            try: record,active,silent = t.halves(i, 40, 50, 50, 'random')
            except ValueError: continue
            n += 1
            seen = {c.row+k for c in (*record.active, *record.silent) for k in range(len(c.tokens))}
            assert not seen&{c.row+k for c in (*active, *silent) for k in range(len(c.tokens))}
            if by_doc: assert not {c.doc for c in (*record.active, *record.silent)}&{c.doc for c in (*active, *silent)}
            assert all(c.values.max()>0 for c in (*record.active, *active))
            for c in (*record.silent, *silent):  # the dictionary itself says that it is silent there
                x = next(iter(real.store.rows(len(c.tokens), start=c.row))).x
                codes = real.own._live['dictionary'].codes(x)
                assert not ((codes.idx==i)&(codes.val>0)).any() and ''.join(c.tokens)==''.join(real.own.token(t) for t in real.store._shards.span('tok', c.row, c.row+len(c.tokens)).tolist())
        assert n>=10

def test_labels_of_contexts_are_those_of_the_whole_text(real):
    t = ex._Text(real.planted, 50, 0, None)
    for _,c in t.examples(0):
        assert c.labels.known.all() and (c.values>0).tolist()==c.labels.where('docstring').tolist()
    near = t.silent(0, 1, 20, 'neighbour', 0)
    assert len(near)==20 and all((c.values==0).all() for c in near)

def test_rules_beat_explanations_of_other_features(real):
    alive = np.flatnonzero(real.own.alive)[:48]
    own = real.own.explain(alive, keep=False)
    ids = list(own)
    other = dict(zip(ids, ids[1:]+ids[:1]))
    shuffled = real.own.explain(ids, explainer=lambda r: own[other[r.feature]].text, keep=False)
    assert len(own)>=20 and set(shuffled)==set(own)
    for k in ('detection', 'fuzzing', 'simulation'): assert own.mean(k).lo>shuffled.mean(k).hi, (k, str(own.mean(k)), str(shuffled.mean(k)))
    assert own.table().columns==('feature', 'explanation', 'by', 'detection', 'fuzzing', 'simulation', 'intruder')
    hard = real.own.explain(ids[:10], keep=False, hard='neighbour', scorers=('detection',))
    assert set(hard)<=set(ids) and set(hard[next(iter(hard))].scores)=={'detection', 'detection.f1', 'detection.tpr', 'detection.tnr'}

class Stops:
    "Explains everything alike, and is interrupted at one feature"
    name,cfg = 'stops',{}
    def __init__(self, at=None): self.at,self.asked = at,[]
    def __call__(self, r):
        if r.feature==self.at: raise KeyboardInterrupt
        self.asked.append(r.feature)
        return Rule('any')

def test_a_run_goes_on_where_it_stopped(real):
    first,then,last = Stops(2),Stops(),Stops()
    kw = dict(features=[0, 1, 2], scorers=('detection',))
    with pytest.raises(KeyboardInterrupt): real.planted.explain(explainer=first, **kw)
    got = real.planted.explain(explainer=then, **kw)
    assert (first.asked, then.asked, list(got))==([0, 1], [2], [0, 1, 2])
    assert [e.text for e in real.planted.explain(explainer=last, **kw).values()]==['on any token']*3 and last.asked==[]
    real.planted.explain(explainer=last, again=True, **kw); assert last.asked==[0, 1, 2]
    other = Stops(); real.planted.explain(explainer=other, seed=1, **kw); assert other.asked==[0, 1, 2]  # other settings
    assert FeatureIndex.open(real.planted.path).explanation(0).by=='stops'  # what was said last
    again = real.planted.explain(again=True)
    assert FeatureIndex.open(real.planted.path).verify().explanation(0)==again[0]._replace(text=str(again[0].text))

KILLED = """
import sys
from sparsenb.cards import Explanation
from sparsenb.explanations import _keep
from sparsenb.scores import Score
from pathlib import Path
print('ready', flush=True)
for i in range(10**6): _keep(Path(sys.argv[1]), i, Explanation('x'*200, 'me', {'detection': Score(.5, float('nan'), 1., 9, 0, 'detection/1', '3 texts')}))
"""
def test_a_kill_costs_at_most_the_line_being_written(real):
    seed = random.randrange(10**6); r = random.Random(seed)
    f = real.own.path/'explanations.jsonl'
    try:
        p = subprocess.Popen([sys.executable, '-c', KILLED, str(f)], stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline()=='ready\n'
        while not f.exists() or f.stat().st_size<r.randrange(2_000, 20_000): assert p.poll() is None
        p.kill(); p.wait(); p.stdout.close()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            there = [i for i,_ in real.own._explained()]
        assert there==list(range(len(there))) and len(there)>3, f'seed {seed}'
        with open(f, 'ab') as o: o.write(b'{"feature": 5, "text"')                    # cut short
        ex._keep(f, 1, ex.Explanation('after', 'me', {}))                               # begins a new line
        with open(f, 'ab') as o: o.write(b'<<<<<<< ours\n[]\n{"feature": true, "text": "x", "by": "", "scores": {}}\n{"feature": 2, "text": "x", "by": "", "scores": {"a": [1]}}\n')
        with pytest.warns(UserWarning, match='5 damaged lines skipped'): assert real.own.explanation(1).text=='after'
        assert np.isnan(real.own.explanation(0).scores['detection'].lo)
    finally: f.unlink()

def test_what_cannot_be_explained(real, model):
    with pytest.raises(ValueError, match='dictionary and store are not attached: `index.attach'): FeatureIndex.open(real.own.path).explain()
    with pytest.raises(IndexError, match='feature 400 of an index of 192'): real.own.explain([400])
    with pytest.raises(UnknownName, match="unknown scorer 'fuzz'"): real.own.explain([0], scorers=('fuzz',))
    with pytest.raises(ValueError, match="hard must be 'random' or 'neighbour'"): real.own.explain([0], hard='near')
    with pytest.raises(TypeError, match='returned float for feature'): real.planted.explain([0], explainer=lambda r: .5, keep=False)
    bare = FeatureIndex.build(torch.eye(4), ActivationStore.open(real.folder/'planted'), path=real.folder/'bare')
    with pytest.raises(ValueError, match='has no text: it was built without a model'): bare.explain()
    assert not (bare.path/'explanations.jsonl').exists()
    if real.own.alive.all(): return
    skipped = real.own.explain([int(np.flatnonzero(~real.own.alive)[0]), *np.flatnonzero(real.own.alive)[:6].tolist()], keep=False, scorers=('detection',)).skipped
    assert any('it is dead' in why for why in skipped.values())

EVIL = ''.join(HOSTILE)
@pytest.fixture
def said(real):
    "An index with an explanation of hostile text, and one of a rule"
    f = real.own.path/'explanations.jsonl'
    i,j = np.flatnonzero(real.own.alive)[:2].tolist()
    s = rates([1]*6+[0]*6, [1]*5+[0]*7)['detection']
    ex._keep(f, i, ex.Explanation(EVIL, HOSTILE[1], dict(detection=s, **{'detection.f1': s})))
    ex._keep(f, j, ex.Explanation('inside a docstring (F1 0.90)', 'rules', dict(detection=s, simulation=s)))
    yield real.own,i,j
    f.unlink()

def test_the_card_shows_what_was_said_and_its_scores(said, tmp_path):
    index,i,j = said
    c = index.card(j)
    assert c.note.endswith('Explained by rules: inside a docstring (F1 0.90)') and [s[0] for s in c.stats[-2:]]==['detection', 'simulation']
    assert c.stats[-2][1]==pytest.approx((5/6+1)/2) and c.stats[-2][2]<=c.stats[-2][1]<=c.stats[-2][3] and c.stats[-2][4]=='chance 0.5, n = 12'
    assert 'stats.detection' in numbers_text(c, 'csv') and 'inside a docstring' in figure_svg(c)
    live = widgets['feature_card'](index, j)
    assert live.head['said']==dict(text='inside a docstring (F1 0.90)', by='rules', n=2) and 'Explained' not in live.head['note'] and live.head['stats'][-2][2]=='detection, chance 0.5, n = 12'
    assert index.search('inside a doc')[0]==j
    b = widgets['feature_browser'](index)
    b.list.query = 'inside a docstring'
    assert b.feature==j
    f, = export_neuronpedia(index, [i, j, int(np.flatnonzero(index.alive)[2])], tmp_path)
    one,two,three = read_json(f)['features']
    assert two['explanations']==[dict(description='inside a docstring (F1 0.90)', explanationModelName='rules', typeName='sparsenb', scores=[dict(value=.91667, explanationScoreTypeName='eleuther_recall'), dict(value=.91667, explanationScoreTypeName='simulation')])]
    assert '</script>' in one['explanations'][0]['description'] and 'explanations' not in three

def test_hostile_explanations_are_text(said):
    index,i,j = said
    assert index.explanation(i).text==EVIL and '<script' not in index.card(i).html().split('</style>')[-1] and '<img' not in index.card(i).html()
    page = static_browser(index, [i, j], ablated=0, by='')
    assert page.source.count('</script>')==2 and '<img' not in page.source
    data = json.loads(page.source.split('<script type="application/json">')[1].split('</script>')[0])
    assert data['features'][1]['explained']==dict(text='inside a docstring (F1 0.90)', by='rules', n=2) and 'Explained' not in data['features'][1]['note']
    json.dumps(widgets['feature_card'](index, i).head).encode()  # no half surrogates: it can be sent
