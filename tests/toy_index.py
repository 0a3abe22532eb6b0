"A small index in memory with the interface of FeatureIndex: some words of the standard library, and hostile text"
import re, textwrap
import numpy as np
from sparsenb.views import Card, Histogram, Table, Tokens

HOSTILE = ('</script>', '<img src=x onerror="window.pwned=1">', '<style>*{display:none}</style>', '&lt;b&gt;', '\u202egnp.exe', '\u2066x\u2069', 'a\u200bb', '\x00\x07\x1b[31m', '"\'`', '👩‍🔬🏳️‍🌈',
    'שלום', '\ud800', '', '${window.pwned=1}', '</textarea></title></template>', '<svg onload=window.pwned=1>', 'javascript:window.pwned=1', '\n\t\r')


class ToyIndex:
    name,site = 'topk','resid_post.2'

    def __init__(self, d_sae=300, hostile=False, n_tokens=1_000_000):
        text = textwrap.__doc__+textwrap.TextWrapper.__doc__+re.__doc__
        self.words = HOSTILE if hostile else re.findall(r' ?\w+|\n *|[^\w\s]+| +', text)
        self.kinds = HOSTILE if hostile else sorted({w for w in self.words if w.strip()})
        self.n_tokens,self.d_sae = n_tokens,d_sae
        r = np.random.default_rng(0)
        self.density = 10**r.uniform(-5, -1, d_sae)
        self.alive = np.arange(d_sae)%17!=13
        self.density[~self.alive] = 0
        self.sink_features = self.alive&(np.arange(d_sae)%50==1)
        self.max_act = np.where(self.alive, r.uniform(2, 20, d_sae), 0.)
        if hostile: self.name,self.site = HOSTILE[1]+HOSTILE[4],HOSTILE[0]

    def __len__(self): return self.d_sae
    def title(self, i): return self.kinds[i*7%len(self.kinds)] if self.alive[i] else 'dead'
    def search(self, text='', n=50, density=None):
        lo,hi = density or (0, 1)
        if text.strip().isdigit(): return [i for i in [int(text)] if i<self.d_sae and lo<=self.density[i]<=hi]
        return [i for i in range(self.d_sae) if text.strip() in self.title(i) and lo<=self.density[i]<=hi][:n] if text.strip() or density else []

    def has(self, panel): return panel!='effects'
    def why(self, panel): return '' if self.has(panel) else 'dictionary and model not attached: `index.attach(dictionary, model)`'
    def map(self): return np.random.default_rng(1).normal(size=(self.d_sae, 2)).astype(np.float32)
    def logit_histogram(self, i): return np.linspace(-2, 2, 41, dtype=np.float32), np.random.default_rng(i).binomial(40, .5, 40)
    def similar(self, i, by='decoder', n=10):
        r = np.random.default_rng([i, ('decoder', 'encoder', 'co_activation', 'correlation').index(by)])
        return r.choice(np.delete(np.arange(self.d_sae), i), n, replace=False).astype(np.int32), np.sort(r.random(n).astype(np.float32))[::-1]
    def alignment(self, i, to='alignment'):
        c = np.sort(np.random.default_rng(i).uniform(.1, .9, 5).astype(np.float32))[::-1]
        return np.arange(5, dtype=np.int32)+i, c*(-1)**np.arange(5), c/40

    def _group(self, i, title, caption, top, n, seed):
        r = np.random.default_rng([i, seed])
        at = [j for j,w in enumerate(self.words) if w==self.title(i)]
        rows,values,peaks = [],[],[]
        for k in range(n):
            p = at[k%len(at)]
            lo,hi = max(0, p-20),min(len(self.words), p+14)
            v = np.where(r.random(hi-lo)<.18, r.exponential(.25, hi-lo).clip(0, .8), 0)*top
            v[p-lo] = top*(1-.03*k)
            rows.append(tuple(self.words[lo:hi])); values.append(v); peaks.append(p-lo)
        return Tokens(title, tuple(rows), tuple(values), labels=tuple(f'{v[p]:.3g}' for v,p in zip(values, peaks)), peaks=tuple(peaks), vmax=float(self.max_act[i]), caption=caption)

    def card(self, i):
        if not 0<=i<self.d_sae: raise IndexError(f'feature {i}')
        r,top,d,live = np.random.default_rng(i),float(self.max_act[i]),float(self.density[i]),bool(self.alive[i])
        about = lambda sign: Table('effects', ('token', 'effect'), [(' '*(j%2)+self.kinds[(i*3+j*5+(sign<0))%len(self.kinds)], sign*float(2-.2*j)) for j in range(8)], tokens=('token',), signed=True)
        groups = (self._group(i, 'Top', 'top 12 of 4,201 active tokens', top, 12, 0),
            *(self._group(i, f'{top*(9-g)/10:.3g} to {top*(10-g)/10:.3g}', f'3 drawn from group {g+1} of 10', top*(9.5-g)/10, 3, g+1) for g in range(10))) if live else ()
        near = [(int(j), self.title(int(j)), .41-.04*k, by) for by in ('decoder cosine', 'fire together') for k,j in enumerate(r.integers(0, self.d_sae, 5))]
        se = (d*(1-d)/self.n_tokens)**.5
        stats = [('% of tokens active', 100*d, 100*max(0, d-2*se), 100*(d+2*se), f'n = {self.n_tokens:,}')]
        if live: stats += [('largest activation', top), ('mean when active', top/5), ('nearest decoder cosine', .41, None, None, f'feature {near[0][0]}')]
        h = Histogram('Activation, when active', np.linspace(0, top or 1, 37), np.floor(900*np.exp(-np.arange(36)/9))*live)
        return Card(i, self.title(i), tuple(stats), h, about(1), about(-1), groups, Table('Nearest features', ('feature', 'about', 'value', 'by'), near, tokens=('about',)),
            '' if live else f'Dead: not active on any of {self.n_tokens:,} tokens; more text may wake it.')
