"The trajectory widget: what travels and how large it is, its arrays, traits from Python, what it refuses, its page"
import base64, json, re, subprocess, sys
import numpy as np, pytest
from sparsenb.core import UnknownName
from sparsenb.dynamics import Dynamics
from sparsenb.trajectory import Trajectory
from sparsenb.widgets.trajectory_plot import encoded, kind_of

def plain(P=3, S=10, D=2, **kw):
    g = np.random.default_rng(0)
    return Trajectory('t', np.arange(S)*100, {f'p{i}': g.normal(size=(S, D)) for i in range(P)}, [f'd{i}' for i in range(D)], **kw)

def told(w, *wants):
    "What the page is sent when it asks"
    sent = []
    w.send = lambda m, b=(): sent.append((m, *map(bytes, b)))
    for k in wants: w._told(dict(want=list(k)))
    return sent

def state(html): return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])


def test_arrays():
    t = plain(colours=dict(p1=np.arange(10.)), events=(('p2', 300, 'x'),), marks=dict(m=(1, 2)))
    w = t.plot(curves=dict(loss=np.arange(10)/7, acc=dict(p0=np.arange(10.))))
    np.testing.assert_array_equal(np.frombuffer(w.places, '<f4').reshape(3, 10, 2), t.array.astype('f4'))
    np.testing.assert_array_equal(np.frombuffer(w.marks, '<f4'), [1, 2])
    s = np.frombuffer(w.signal, '<f4').reshape(3, 10)
    np.testing.assert_array_equal(s[1], np.arange(10)); assert np.isnan(s[[0, 2]]).all()
    c = np.frombuffer(w.curves, '<f4').reshape(4, 10)
    np.testing.assert_array_equal(c[:2], np.stack([np.arange(10)/7, np.arange(10)]).astype('f4')); assert np.isnan(c[2:]).all()
    assert w.facts['events']==[[2, 3, 'x']] and w.facts['curves']==[['loss', 1], ['acc', 3]] and w.curve=='loss' and w.colour=='signal'
    assert t.plot(curves=Dynamics('d', t.steps, dict(a=np.zeros(10)), '')).curve=='a' and plain().plot().curve=='d0'

@pytest.mark.parametrize('D,dims', [(1, [-1, 0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_dimensions(D, dims): assert plain(D=D).plot().dims==dims

def test_outputs_travel_one_at_a_time():
    "200 checkpoints of 20 classes: what is sent at first does not grow with pictures, and a picture costs its bytes"
    t = plain(20, 200, 3)
    big = {k: np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3)).astype(np.uint8) for k in t.paths}
    w = t.plot(payload=big)
    first = sum(len(v) if isinstance(v, bytes) else len(json.dumps(v)) for v in (getattr(w, k) for k in 'facts places marks signal curves'.split()))
    assert len(w.places)==20*200*3*4 and first<52_000
    (m,b), = told(w, (3, 7))
    assert m==dict(made=[3, 7], kind='image', shape=[1, 16, 16, 3]) and b==big['p3'][7].tobytes()
    assert told(w, (99, 0), (0, 999))==[]
    np.testing.assert_array_equal(w.made('p3', 700), big['p3'][7])

def test_kinds_of_output():
    assert encoded('é')==('text', [1], 'é'.encode()) and json.loads(encoded(['a', '\ud800'])[2])==['a', '\ufffd']
    assert np.frombuffer(encoded(np.array([5, 2**31]))[2], '<u4').tolist()==[5, 2**31]
    assert [kind_of(x) for x in (None, '', ['a'], [], (1, 2), np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4, 1), np.uint8))]==['none', 'text', 'tokens', 'features', 'features', 'image', 'image']
    with pytest.raises(ValueError, match='12 MB, 8 MB at most'): plain().plot(payload=dict(p0=[None]*9+[np.zeros((4, 1000, 1000, 3), np.uint8)]))
    for x in (np.zeros((4, 4)), [-1], [1.5], np.zeros((4, 4, 2), np.uint8), {}, [2**32]):
        with pytest.raises(ValueError, match='a text, a list of tokens'): kind_of(x)

def test_a_function_is_asked_once_and_its_errors_are_said():
    asked = []
    def make(p, s):
        asked.append((p, s))
        if s==200: raise RuntimeError('out of memory')
        return 'x'
    w = plain().plot(payload=make)
    assert asked==[] and w.still().source and asked==[] # a picture in the notebook calls nothing
    assert [m.get('error', m.get('kind')) for m,*_ in told(w, (0, 1), (0, 1), (0, 2))]==['text', 'text', 'RuntimeError: out of memory']
    assert asked==[('p0', 100), ('p0', 200)]

def test_texts_of_the_trajectory_itself():
    w = plain(payload=dict(p0=[f's{i}' for i in range(10)], p1='all')).plot()
    assert (w.made('p0', 300), w.made('p1', 300), w.made('p2', 300))==('s3', 'all', None)
    with pytest.raises(ValueError, match='no outputs are attached'): plain().plot().made()

def test_traits():
    w = plain(groups=dict(p0='a', p1='b', p2='b')).plot(payload=lambda p, s: f'{p} {s}')
    assert (w.step, w.path, w.chosen, w.stretch)==(900, 'p0', (), None)
    w.chosen = ['p1', 700, 500]
    assert w.chosen==('p1', 500, 700) and w.stretch['made']==['p1 500', 'p1 600', 'p1 700']
    np.testing.assert_array_equal(w.stretch['points'], w.trajectory['p1'][5:8])
    w.step,w.hidden = 300.,['b']
    assert w.step==300 and isinstance(w.step, int)
    for k,v,e,words in (('step', 310, ValueError, 'nearest: 300'), ('step', 'x', ValueError, 'a step is a number'), ('path', 'p9', UnknownName, 'did you mean'), ('chosen', ('p1', 0), ValueError, 'first step, last step'),
        ('chosen', ('p1', 0, 5), ValueError, 'no step 5'), ('hidden', ['c'], UnknownName, 'group'), ('colour', 'stp', UnknownName, "'step'"), ('dims', [0, 0], ValueError, 'different dimensions'), ('dims', [0, 2], ValueError, 'below 2'), ('curve', 'los', UnknownName, 'curve')):
        with pytest.raises(e, match=re.escape(words)): setattr(w, k, v)

@pytest.mark.parametrize('kw,words', [(dict(curves=dict(loss=[1, 2])), 'one value for each of 10 steps'), (dict(curves=dict(a=dict(p9=np.zeros(10)))), 'p9'), (dict(curves=dict(a=dict(p0=np.zeros(3)))), 'one value for each of 10 steps'), (dict(payload=dict(p0=['a'])), 'one output for each of 10 steps'),
    (dict(payload=dict(q=['a']*10)), "'q'"), (dict(payload=dict(p0=np.zeros((10, 4, 4)))), "payload of 'p0', step 0"), (dict(payload='x'), 'a dict from paths'), (dict(stp=0), "'step'"), (dict(step=7), 'no step 7')])
def test_bad_input(kw, words):
    with pytest.raises((ValueError, UnknownName), match=re.escape(words)): plain().plot(**kw)

def test_page():
    t = plain(2, 65)
    w = t.plot(payload={k: np.zeros((65, 4, 4, 3), np.uint8) for k in t.paths}, step=300)
    s = state(w.static().source)
    assert {(int(p), int(i)) for p,v in s['held'].items() for i in v}=={(p, i) for p in range(2) for i in range(65)} and 'holds' not in s['state']['facts']['caption']
    s = state(w.static(most=20*88).source)
    kept = {p: sorted(map(int, v)) for p,v in s['held'].items()}
    assert sum(map(len, kept.values()))==20 and '3' in s['held']['0'] and max(np.diff(kept['1']))<=16 and kept['1'][0]==0 and kept['1'][-1]==64 # both ends, evenly between
    assert 'holds 20 outputs' in s['state']['facts']['caption']
    assert s['state']['step']==300 and base64.b64decode(s['state']['places']['b64'])==w.places
    assert 'text/html' in w._repr_mimebundle_()[0]

def test_unknown_points_and_one_step():
    t = Trajectory('t', [5], dict(a=[[1., 2]], b=[[np.nan, np.nan]]), ('x', 'y'))
    assert '<section' in t.static().source and t.plot().step==5

def test_the_trajectory_knows_neither_torch_nor_widgets():
    code = "import sys, sparsenb.trajectory; print(*(m for m in sys.modules if m in ('torch', 'anywidget', 'sparsenb.views', 'sparsenb.widgets.trajectory_plot')))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()==''
