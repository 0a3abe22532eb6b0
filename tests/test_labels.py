"Labels of Python text: against Python's tokenizer, parser and symbol table, and against labels written by hand"
import ast, builtins, io, keyword, symtable, sysconfig, tokenize
from pathlib import Path
from types import SimpleNamespace as NS
import numpy as np, pytest, torch
from sparsenb.core import UnknownName
from sparsenb.corpus import load_corpus
from sparsenb.labels import Labels, all_labels, code_labels, label_tokens, labels_at, task_label
from sparsenb.models import load_model
from sparsenb.store import ActivationStore

torch.set_num_threads(1)
LIB = Path(sysconfig.get_paths()['stdlib'])
FILES = ('textwrap.py', 'heapq.py', 'dataclasses.py', 'contextlib.py', 'json/decoder.py', 'keyword.py', 'enum.py', 'graphlib.py')

def source(name):
    with tokenize.open(LIB/name) as f: return f.read()

def picked(text, l, mask): return ''.join(c for c,m in zip(text, mask) if m)

@pytest.fixture(scope='module')
def model(): return load_model('stdlib-4l', device='cpu')

def by_tokenizer(text):
    "Type, brackets and indent of each character, the slow and plain way: every character looked at for every token"
    lines = text.split('\n')
    where = {}
    n = 0
    for i,l in enumerate(lines, 1):
        for c in range(len(l)+1): where[i,c] = n; n += 1
    where = {k: min(v, len(text)) for k,v in where.items()}
    string,comment,name,word = (set() for _ in range(4))
    brackets,level,deep,opened = [0]*len(text),{},0,[]
    f = 0
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        span = range(where.get(t.start, len(text)), where.get(t.end, len(text)))
        kind = tokenize.tok_name[t.type]
        if kind in ('FSTRING_START',): f += 1; begin = span.start if f==1 else begin
        elif kind=='FSTRING_END':
            f -= 1
            if not f: string |= {*range(begin, span.stop)}
        elif f: continue
        elif kind=='STRING': string |= {*span}
        elif kind=='COMMENT': comment |= {*span}
        elif kind=='NAME': (word if keyword.iskeyword(t.string) else name).update(span)
        elif kind=='INDENT': deep += 1
        elif kind=='DEDENT': deep -= 1
        elif kind=='OP' and t.string in tuple('([{'): opened.append(span.start)
        elif kind=='OP' and t.string in tuple(')]}'):
            for i in range(opened.pop(), span.stop): brackets[i] += 1
        if kind not in ('INDENT', 'DEDENT', 'NL', 'NEWLINE', 'ENDMARKER', 'COMMENT'): level[t.start[0]] = deep
    return string,comment,name,word,brackets,level

@pytest.mark.parametrize('file', FILES)
def test_every_character_is_what_the_tokenizer_says(file):
    text = source(file)
    l,(string,comment,name,word,brackets,level) = code_labels(text),by_tokenizer(text)
    assert l.known.all() and len(l)==len(text) and not l.why
    for label,want in (('string', string), ('comment', comment)): assert {*np.flatnonzero(l[label])}==want
    for kind,want in (('string', string), ('comment', comment), ('name', name), ('keyword', word)): assert {*np.flatnonzero(l.where(f'type={kind}'))}==want
    assert l['brackets'].tolist()==brackets
    line = np.r_[0, np.cumsum([c=='\n' for c in text])[:-1]]+1
    begin = {}
    for i,k in enumerate(line): begin.setdefault(k, i)
    assert l['column'].tolist()==[i-begin[k] for i,k in enumerate(line)]
    for k,d in level.items(): assert l['indent'][begin[k]]==d
    assert {c for c,k in zip(text, l['type']) if k in ('space', 'indent')}<=set(' \t\f')
    assert all(text[i]=='\n' for i in np.flatnonzero(l.where('type=newline')))
    assert ((l['kind']!='')==l.where('type=name')).all()

@pytest.mark.parametrize('file', FILES)
def test_docstrings_are_those_that_python_finds(file):
    text = source(file)
    l,tree,lines = code_labels(text),ast.parse(text),text.split('\n')
    n = 0
    found = np.zeros(len(text), bool)
    for x in ast.walk(tree):
        if isinstance(x, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (doc := ast.get_docstring(x, clean=False)) is not None:
            v = x.body[0].value
            a,b = (sum(len(s)+1 for s in lines[:i-1])+len(lines[i-1].encode()[:c].decode()) for i,c in ((v.lineno, v.col_offset), (v.end_lineno, v.end_col_offset)))
            assert l['docstring'][a:b].all() and ast.literal_eval(text[a:b])==doc
            found[a:b] = True; n += 1
    assert n>=(file!='graphlib.py') and (l['docstring']==found).all()

@pytest.mark.parametrize('file', FILES[:5])
def test_nodes_against_every_node_tried_at_a_sample_of_characters(file):
    text = source(file)
    l,lines = code_labels(text, ('depth', 'node')),text.split('\n')
    spans = []
    def walk(x, d):
        if hasattr(x, 'lineno'):
            d += 1
            spans.append(((x.lineno, x.col_offset), (x.end_lineno, x.end_col_offset), d, type(x).__name__))
        if not isinstance(x, ast.JoinedStr):
            for c in ast.iter_child_nodes(x): walk(c, d)
    walk(ast.parse(text), 0)
    at = np.random.default_rng(0).choice(len(text), 150, replace=False)
    for i in at:
        line = text.count('\n', 0, i)+1
        here = line,len(text[text.rfind('\n', 0, i)+1:i].encode())
        depth,node = max(((d, n) for a,b,d,n in spans if a<=here<b), default=(0, 'Module'))
        assert (l['depth'][i], l['node'][i])==(depth, node)

@pytest.mark.parametrize('file', FILES)
def test_names_against_the_symbol_table(file):
    "Every parameter, import, local and global that a function reads: as `symtable`, which compiles, says"
    text = source(file)
    l,lines = code_labels(text, ('kind',)),np.cumsum([0]+[len(s)+1 for s in text.split('\n')])
    kind,tables = l['kind'],{}
    def collect(t):
        if t.get_type()=='function': tables.setdefault((t.get_name(), t.get_lineno()), []).append(t)
        for c in t.get_children(): collect(c)
    top = symtable.symtable(text, file, 'exec')
    collect(top)
    checked = 0
    for f in ast.walk(ast.parse(text)):
        if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        first = min([f.lineno]+[d.lineno for d in f.decorator_list])
        t = tables.get((f.name, f.lineno)) or tables.get((f.name, first))
        assert t and len(t)==1, f.name
        todo = list(f.body)
        while todo: # the function's own names: nothing of functions, classes and comprehensions inside
            x = todo.pop()
            if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.JoinedStr)): continue
            todo += ast.iter_child_nodes(x)
            if not isinstance(x, ast.Name): continue
            got,s = kind[lines[x.lineno-1]+len(text.split('\n')[x.lineno-1].encode()[:x.col_offset].decode())],t[0].lookup(x.id)
            if s.is_parameter(): assert got=='parameter', x.id
            elif s.is_imported(): assert got=='import'
            elif s.is_local(): assert got in ('local', 'function', 'class'), (x.id, got)
            elif s.is_global():
                g = top.lookup(x.id) if x.id in top.get_identifiers() else None
                own = g is not None and (g.is_assigned() or g.is_imported() or g.is_namespace())
                assert got==('builtin' if hasattr(builtins, x.id) else 'other') if not own else got in ('global', 'import', 'function', 'class'), (x.id, got)
            else: assert s.is_free() and got in ('local', 'parameter', 'function', 'class', 'import'), (x.id, got)
            checked += 1
    assert checked or file=='keyword.py'

BY_HAND = '''"Module."
import os.path as p, sys
from re import match as m
LIMIT = 10
@cache(size=LIMIT)
class Box(Base):
    """Class
    over two lines."""
    lid = None
    async def open(self, *args, key: int = LIMIT, **kw) -> str:
        'Function.'
        'not a docstring'
        global LIMIT
        for i, a in enumerate(args): # each
            LIMIT += kw[a][(i)]
        try: pass
        except OSError as e: print(e)
        return f"{key!r} {{}} ({a})" + p.sep + str(e)
g = lambda n: [n*y for y in range(n) if (z := y)]
'''

def test_a_snippet_labelled_by_hand():
    text = BY_HAND
    l = code_labels(text)
    at = text.index
    assert picked(text, l, l['docstring'])=='"Module.""""Class\n    over two lines."""\'Function.\''
    assert picked(text, l, l['comment'])=='# each'
    assert picked(text, l, l['string']&~l['docstring'])=='\'not a docstring\'f"{key!r} {{}} ({a})"'
    kind = lambda s, skip=0: l['kind'][at(s)+skip]
    want = [('os', 0, 'import'), ('path', 0, 'import'), ('as p', 3, 'import'), ('sys', 0, 'import'), ('re imp', 0, 'import'), ('match', 0, 'import'), ('LIMIT =', 0, 'global'), ('cache', 0, 'other'),
        ('size=', 0, 'argument'), ('Box', 0, 'class'), ('Base', 0, 'other'), ('lid', 0, 'attribute'), ('open', 0, 'function'), ('self', 0, 'parameter'), ('args', 0, 'parameter'), ('key:', 0, 'parameter'),
        ('int ', 0, 'builtin'), ('kw)', 0, 'parameter'), ('str:', 0, 'builtin'), ('i, a', 0, 'local'), ('enumerate', 0, 'builtin'), ('args):', 0, 'parameter'), ('LIMIT +=', 0, 'global'), ('global LIMIT', 7, 'global'),
        ('kw[', 0, 'parameter'), ('(i)', 1, 'local'), ('OSError', 0, 'builtin'), ('as e', 3, 'local'), ('(e)', 1, 'local'), ('p.sep', 0, 'import'), ('.sep', 1, 'attribute'), ('g = ', 0, 'global'),
        ('lambda n', 7, 'parameter'), ('n*y', 0, 'parameter'), ('n*y', 2, 'local'), ('for y', 4, 'local'), ('(z', 1, 'local')]
    assert [(s, kind(s, d)) for s,d,_ in want]==[(s, k) for s,_,k in want]
    depth = lambda s, skip=0: l['brackets'][at(s)+skip]
    assert [depth('kw[a]', i) for i in range(10)]==[0, 0, 1, 1, 1, 1, 2, 2, 2, 1] and depth(']\n')==1 and depth('({a})')==0 and depth('LIMIT)', 5)==1 and depth('class')==0
    assert [l['indent'][at(s)] for s in ('"Module', '@cache', 'lid', "'Function", '# each', 'LIMIT +=', 'g =')]==[0, 0, 1, 2, 2, 3, 0]
    assert l['column'][at('lid')]==4 and l['column'][at('over')]==4
    assert [l['node'][at(s)] for s in ('import os', 'cache', '@', 'key:', 'class', 'f"', 'n*y', '10', 'pass')]==['Import', 'Name', 'Module', 'arg', 'ClassDef', 'JoinedStr', 'Name', 'Constant', 'Pass']
    assert l['depth'][at('class')]==1 and l['depth'][at('lid')]==3 and l['depth'][at('@')]==0
    assert l['type'][at('    lid')]=='indent' and l['type'][at('    over')]=='string' and l['type'][at(' = None')]=='space' and l['type'][at('10')]=='number' and l['type'][at('->')]=='operator'

def test_brackets_in_strings_and_comments_do_not_count():
    text = 'f(["(", # [[\n  {1: (2)}])\nx'
    assert code_labels(text)['brackets'].tolist()==[0, 1]+[2]*13+[3, 3, 3, 3, 4, 4, 4, 3, 2, 1, 0, 0]

def test_continuations_unicode_and_line_ends():
    text = 'é = "∑" + \\\n  ß # ü(\nx = 1\\\n\n'
    l = code_labels(text)
    assert picked(text, l, l['string'])=='"∑"' and picked(text, l, l['comment'])=='# ü(' and picked(text, l, l.where('type=continuation'))=='\\\n\\\n'
    assert l['node'][text.index('ß')]=='Name' and l['kind'][text.index('ß')]=='other' and l['kind'][0]=='global'
    for end in ('\r\n', '\r'):
        t = 'if x:\n    "a" # b\n    y\n'.replace('\n', end)
        m = code_labels(t)
        assert m.known.all() and picked(t, m, m['string'])=='"a"' and picked(t, m, m['comment'])=='# b' and m['node'][t.index('y')]=='Name' and m['column'][t.index('y')]==4
    assert len(code_labels(''))==0 and code_labels('x').known.all()

def test_matches_and_f_strings_in_f_strings():
    text = 'match cmd:\n    case Point(x=0, y=[q, *rest]) | {"k": v, **more}: f(q, rest, more, v)\n    case other: f"{f\'{other}\'}" "b"\n'
    l = code_labels(text)
    assert [l['kind'][text.index(s)] for s in ('match', 'cmd', 'Point', 'x=', 'y=', 'q,', 'rest]', 'v,', 'more}', 'other:')]==['other', 'other', 'other', 'attribute', 'attribute', 'global', 'global', 'global', 'global', 'global']
    assert picked(text, l, l['string'])=='"k"f"{f\'{other}\'}""b"'

def test_f_strings_as_newer_pythons_take_them_apart(monkeypatch):
    from sparsenb.syntax import _literals
    for k,v in (('FSTRING_START', 901), ('FSTRING_MIDDLE', 902), ('FSTRING_END', 903)): monkeypatch.setattr(tokenize, k, v, raising=False)
    inner = [(901, "f'", 5, 7), (tokenize.NAME, 'x', 8, 9), (903, "'", 10, 11)]
    got = _literals([(tokenize.NAME, 'y', 0, 1), (901, 'f"', 2, 4), (tokenize.OP, '{', 4, 5), *inner, (tokenize.OP, '}', 11, 12), (903, '"', 12, 13), (tokenize.NAME, 'z', 14, 15)])
    assert [(t, a, b) for t,_,a,b in got]==[(tokenize.NAME, 0, 1), (tokenize.STRING, 2, 13), (tokenize.NAME, 14, 15)]

@pytest.mark.parametrize('text', ['def f(:', 'x = (1', '"open', 'x\x00', '"\ud800"', 'if x:\ny', '('*300+')'*300])
def test_what_python_cannot_read_is_not_known(text):
    l = code_labels(text)
    assert len(l)==len(text) and not l.known.any() and 'Python cannot read it' in l.why['']
    assert not l['string'].any() and (l['brackets']==-1).all() and set(l['type'])=={''} and not l.where('brackets<3').any()

def test_a_token_is_what_its_first_solid_character_is():
    text = 'f( "a")\n    # b'
    l = labels_at(text, [(0, 2), (2, 5), (5, 7), (7, 12), (7, 13), (3, 3)])
    assert l['type'].tolist()==['name', 'string', 'string', 'newline', 'comment', ''] and l.known.tolist()==[True]*5+[False]
    assert l['brackets'].tolist()==[0, 1, 1, 0, 0, -1]

def test_what_does_not_fit_is_refused():
    l = code_labels('x = 1')
    with pytest.raises(ValueError, match='labels of 5 characters were given for a text of 3'): labels_at('x=1', [(0, 1)], l)
    with pytest.raises(ValueError, match='token 1 is said to be characters 1 to 9 of a text of 5'): labels_at('x = 1', [(0, 1), (1, 9)], l)
    with pytest.raises(ValueError, match="'comment' has 4 values, 3 were expected"): Labels(dict(comment=np.zeros(4, bool)), np.ones(3, bool))
    with pytest.raises(UnknownName, match="did you mean 'docstring'"): code_labels('x', ('docstrings',))
    with pytest.raises(UnknownName, match="did you mean 'parameter'"): l.where('kind=paramter')
    with pytest.raises(ValueError, match="'type=indent'"): l.where('type')
    with pytest.raises(ValueError, match='yes or no'): l.where('string=1')
    with pytest.raises(ValueError, match='whole number'): l.where('indent>=x')
    with pytest.raises(ValueError, match='compared by = or !='): l.where('type>name')
    with pytest.raises(TypeError, match='got bytes'): code_labels(b'x')
    assert task_label('brackets >= 2')=='brackets'
    with pytest.raises(UnknownName): task_label('bracket>=2')

def test_tokens_of_texts(model):
    text = BY_HAND.replace('each', 'jedes é∑')
    l = label_tokens(model, [text, 'def f(:', '# só'])
    ids,o = (model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[k] for k in ('input_ids', 'offset_mapping'))
    assert (l.doc==0).sum()==len(ids) and set(l.why)=={'000001'} and not l.known[l.doc==1].any() and l['comment'][l.doc==2].all()
    chars = code_labels(text)
    for i,(a,b) in enumerate(o):
        solid = [j for j in range(a, b) if not text[j].isspace()] or [a]
        for k in all_labels: assert l[k][i]==chars[k][solid[0]]

@pytest.fixture(scope='module')
def texts(): return [('a.py', BY_HAND*3), ('bad.py', 'def f(:\n  x = 1\n'), ('textwrap.py', source('textwrap.py'))]

@pytest.mark.parametrize('skip_bos', [True, False])
def test_rows_of_a_store(model, texts, tmp_path, skip_bos):
    cut = [(n, t[:900]) for n,t in texts]
    store = ActivationStore.collect(model, cut, site='resid_post.1', path=tmp_path/'acts', seq_len=48, skip_bos=skip_bos, progress=False)
    l = label_tokens(model, store, texts=texts)
    rows = next(store.rows(100_000))
    assert len(l)==len(store) and l.doc.tolist()==rows.doc.tolist()
    bos = (rows.pos==0).numpy()&(not skip_bos)
    assert not l.known[bos].any() and bos.any()!=skip_bos
    for d,name in enumerate(store.doc_name(i) for i in range(3)):
        text = dict(texts)[name]
        at = np.flatnonzero((l.doc==d)&~bos)
        if name=='bad.py': assert not l.known[at].any() and 'SyntaxError' in l.why[name]; continue
        want = label_tokens(model, [text])
        same = l.known[at].sum()
        assert len(at)-same<=3, 'only the last tokens before the cut may differ'
        for k in all_labels: assert (l[k][at[:same]]==want[k][:same]).all()
    assert (label_tokens(model, store, 'node', texts=texts, n_tokens=70)['node']==l['node'][:70]).all()
    with pytest.raises(ValueError, match='pass the texts they came from'): label_tokens(model, store, texts=['x = 1'])

def test_another_text_of_the_same_name_is_not_believed(model, texts, tmp_path):
    store = ActivationStore.collect(model, texts, site='resid_post.1', path=tmp_path/'acts', seq_len=48, progress=False)
    other = [(n, t.replace('LIMIT = 10', 'LIMIT = 20', 1)) for n,t in texts]
    l = label_tokens(model, store, 'string', texts=other)
    d = next(i for i in range(3) if store.doc_name(i)=='a.py')
    known = l.known[l.doc==d]
    assert 20<known.sum()<60 and known[:known.sum()].all() and 'it is another text' in l.why['a.py'] and 'textwrap.py' not in l.why
    missing = label_tokens(model, store, 'string', texts=texts[:1])
    assert missing.why['textwrap.py']=='its text was not found' and missing.known.sum()==(l.doc==d).sum()

def test_rows_that_were_selected(model, texts, tmp_path):
    store = ActivationStore.collect(model, texts, site='resid_post.1', path=tmp_path/'acts', seq_len=48, progress=False)
    some = store.select('mask', dims=(0,), tau=1.)
    assert 0<len(some)<len(store)
    whole,l = label_tokens(model, store, texts=texts),label_tokens(model, some, texts=texts)
    at = np.setdiff1d(np.arange(len(store)), store.sink_rows(dims=(0,), tau=1.))
    for k in all_labels: assert (l[k]==whole[k][at]).all()
    assert (l.known==whole.known[at]).all() and len(l)==len(some)

def test_tokenizers_that_do_not_say_where_are_refused(model):
    with pytest.raises(ValueError, match='has no tokenizer'): label_tokens(NS(tokenizer=None, name='toy'), ['x'])
    with pytest.raises(ValueError, match='does not say where'): label_tokens(NS(tokenizer=NS(is_fast=False), name='toy'), ['x'])
    with pytest.raises(ValueError, match='are for a store'): label_tokens(model, ['x'], n_tokens=3)
