"The view of syntax trees: what it is sent, what it says of nodes, texts that cannot be read, its page"
import json, re
import numpy as np, pytest, torch
from types import SimpleNamespace
from sparsenb.core import UnknownName, probes, widgets
from sparsenb.corpus import load_corpus
from sparsenb.models import load_model
from sparsenb.probes.structural import code_examples, tree_reader
from sparsenb.trees import Tree, functions_of, nodes_of, unbinary

torch.set_num_threads(1)
SITES = 'embed', 'resid_post.2'

@pytest.fixture(scope='module')
def fitted():
    "A reader with two probes, texts they have not seen, and the scores of the probes themselves on those"
    m,f = load_model('stdlib-4l'),[(f'{i}', t) for i,(_,t) in enumerate(functions_of(load_corpus('stdlib'), n=70, most=250))]
    e = code_examples(m, f, SITES)
    own = {s: probes['structural'](rank=16, epochs=4, lr=.01, seed=0).fit(e.x[s][:40], e.trees[:40]) for s in SITES}
    texts = [t for t in f if t[0] in set(e.names[40:])][:20]
    return tree_reader(m, own), texts, own, e

def made(leaves, true, **said):
    "A reader of one text"
    def read(text):
        if 'bad' in text: compile(text, '', 'exec')
        return SimpleNamespace(text=text, leaves=leaves, true=true, said=said, scores={k: (.5, .75) for k in said})
    return read
AB = made(np.array([[0, 1], [2, 3]]), Tree('X', (0, 1)), layer=Tree('Y', (Tree('Z', (0,)), 1)))

def test_a_reading_is_what_the_probes_say(fitted):
    "Trees, scores and leaves of each text are those of the probe on its own"
    reader,texts,own,e = fitted
    for name,text in texts[:6]:
        i,r = e.names.index(name),reader(text)
        assert nodes_of(unbinary(r.true))==nodes_of(e.trees[i]) and [text[a:b].strip() for a,b in r.leaves]==[text[a:b] for a,b in r.leaves]
        assert ''.join(''.join(text[a:b] for a,b in r.leaves).split())==''.join(text.split())  # these hold no comments
        for s,p in own.items():
            found,true = nodes_of(p([e.x[s][i]])[0]),nodes_of(e.trees[i])
            assert r.scores[s][0]==pytest.approx(2*(found&true).total()/(found.total()+true.total()))
    with pytest.raises(SyntaxError): reader('def f(:')
    with pytest.raises(ValueError, match='two leaves'): reader('x')
    with pytest.raises(ValueError, match='tokens, stdlib-4l reads'): reader('x = 1\n'*4000)
    with pytest.raises(ValueError, match="probe of 'embed' was not fitted"): tree_reader(None, dict(embed=probes['structural']()))

def test_what_travels(fitted):
    "Numbers give the trees back; twenty snippets stay small"
    reader,texts,_,_ = fitted
    w = widgets['tree_view'](reader, texts)
    size = len(json.dumps([{k: v for k,v in g.items() if not isinstance(v, bytes)} for g in w.given]))+sum(len(v) for g in w.given for v in g.values() if isinstance(v, bytes))
    assert len(texts)==20 and size<40_000  # five layers in less than 100 kB
    for (_,text),g in zip(texts, w.given):
        r,flat = reader(text),np.frombuffer(g['nodes'], '<u2').reshape(-1, 3)
        for t,part in zip((r.true, *r.said.values()), np.split(flat, np.cumsum(g['sizes'])[:-1])): assert sorted((g['labels'][l], a, b) for l,a,b in part.tolist())==sorted(nodes_of(t).elements())
    assert w.layer==SITES[int(w.scores.mean(0).argmax())] and w.table().columns[1:]==SITES
    wide = widgets['tree_view'](made(np.array([[1, 2], [3, 4]]), Tree('X', (0, 1)), a=Tree('X', (0, 1))), ['😀b cd'])
    assert np.frombuffer(wide.given[0]['leaves'], '<u4').tolist()==[2, 3, 4, 5]  # a script counts the face twice

def test_traits():
    w = widgets['tree_view'](AB, dict(one='a b', two='c d').items(), node=[1, 0])
    assert w.picked==dict(tree='probe', label='Y', text='a b', first=0, last=1, other='its tokens')
    w.node = [1, 1]; assert w.picked['other']=='neither' and w.picked['text']=='a'
    w.snippet = 1; assert w.node==[] and w.picked is None and w.reading.text=='c d'
    w.text = 'x\nbad ('; assert w.error.startswith('Python cannot read it, line 2: ') and w.typed=={} and w.reading is None
    w.text = 'e f'; assert w.error=='' and w.typed['text']=='e f' and w.said.startswith('2 tokens') and w.version==2
    w.text = ''; assert w.typed=={} and w.reading.text=='c d'
    for k,v,said in (('node', [0, 1], 'node \\[0, 1\\] does not exist'), ('snippet', 2, 'there are 0 to 1'), ('layer', 'layr', "did you mean 'layer'")):
        with pytest.raises((ValueError, UnknownName), match=said): setattr(w, k, v)
    with pytest.raises(UnknownName, match="did you mean 'snippet'"): widgets['tree_view'](AB, ['a b'], snipet=0)
    with pytest.raises(ValueError, match='one text at least'): widgets['tree_view'](AB, [])
    with pytest.raises(TypeError, match='a function from a text to a reading .* got NoneType'): widgets['tree_view'](None, ['a b'])

def test_its_page_holds_text_as_text():
    evil = '</script><img src=x onerror=window.pwned=1>'
    html = widgets['tree_view'](made(np.array([[0, 2], [2, 9]]), Tree(evil, (0, 1)), **{evil: Tree('X', (0, 1))}), [(evil, evil)]).static().html()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])
    assert data['given'][0]['text']==evil and data['layers']==[evil] and '<img' not in html and html.count('</script>')==2 and 'http' not in html.replace('http-equiv', '')
