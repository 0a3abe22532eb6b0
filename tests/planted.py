"Activations whose directions are exact labels of Python text, and dictionaries that read them: what metrics of dictionaries must say of these is known"
import sysconfig, tokenize
from pathlib import Path
import numpy as np, torch
from sparsenb.core import dictionaries
from sparsenb.labels import label_tokens
from sparsenb.scores import Case
from sparsenb.store import ActivationStore

LIB = Path(sysconfig.get_paths()['stdlib'])
NAMES = ('textwrap.py', 'heapq.py', 'bisect.py', 'queue.py', 'sched.py', 'shelve.py', 'fnmatch.py', 'glob.py')
NOISE,SPARE = 12,20 # dimensions that mean nothing, features that read them

def source(name):
    with tokenize.open(LIB/name) as f: return f.read()

class Planted:
    "Labels of some pages of Python, a direction for each column of `columns(labels, tok)`, 4 long, in noise at right angles to all"
    def __init__(self, model, path, columns, seed=3):
        self.model,self.path,self.texts = model,Path(path),[(n, source(n)) for n in NAMES]
        ids = [model.tokenizer(t[:4000], add_special_tokens=False)['input_ids'] for _,t in self.texts]
        self.tok = np.concatenate(ids)
        self.doc = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
        self.pos = np.concatenate([np.arange(len(i)) for i in ids])
        self.labels = label_tokens(model, self._store('blank', np.zeros((len(self.tok), 1), np.float32)), texts=self.texts)
        self.y = np.stack(columns(self.labels, self.tok), 1) # bool [n, m]
        m,g = self.y.shape[1],np.random.default_rng(seed)
        self.V = np.linalg.qr(g.normal(size=(m+NOISE, m+NOISE)))[0] # rows 0..m mean something
        self.x = 4*self.y@self.V[:m] + g.normal(size=(len(self.y), NOISE))@self.V[m:]
        self.m,self.rng = m,g

    def _store(self, name, x): return ActivationStore.from_rows(self.path/name, torch.as_tensor(x, dtype=torch.float32), self.tok, self.pos, self.doc, NAMES, dtype='float32')
    def dictionary(self, enc, dec, scale=1.):
        "A ReLU dictionary with these rows of reading and writing, and some that read noise"
        d = dictionaries['relu'](self.x.shape[1], len(enc)+SPARE)
        junk = np.random.default_rng(5).normal(size=(SPARE, NOISE))@self.V[self.m:]
        junk /= np.linalg.norm(junk, axis=1, keepdims=True)
        with torch.no_grad():
            d.W_enc.copy_(torch.as_tensor(np.concatenate([enc, junk]).T)); d.W_dec.copy_(torch.as_tensor(np.concatenate([dec, junk])))
            d.b_enc.zero_(); d.b_dec.zero_()
        return d
    def true(self): return self.dictionary(self.V[:self.m], self.V[:self.m])
    def case(self, d, x=None, name='planted', seed=0, n_boot=100):
        f = self.path/name
        s = ActivationStore.open(f) if f.exists() else self._store(name, self.x if x is None else x)
        return Case(d, s, self.model, (), seed, .95, n_boot)

def silent(d):
    "The same dictionary, none of its features ever firing"
    with torch.no_grad(): d.b_enc.fill_(-1e6)
    return d
