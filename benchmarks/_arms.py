"The training steps that are timed: ours on each path, the same method with dense codes by autograd, and the bare products; `python _arms.py '{...}'` measures one of them alone"
from _common import interleaved, peak_since, resident
import json, statistics, subprocess, sys, time
import torch, torch.nn.functional as F
from torch.nn import Parameter
from sparsenb.core import dictionaries
from sparsenb.dictionary import Stats
from sparsenb.engine import Optimiser, kernels_for

torch.set_num_threads(1)
PATHS = ('torch', 'numba', 'bf16', 'int8')
METHODS = 'topk batch_topk jumprelu matryoshka transcoder crosscoder'.split()

def missing(path:str)->str:
    "Why a path cannot be taken here; empty if it can"
    try: kernels_for(path)
    except ImportError as e: return str(e)
    return ''

def superposition(n, d, n_batches=2, seed=0, l0=20, power=.8, noise=.02):
    "Batches (n, d): sums of about `l0` of 4d directions, whose frequency falls as rank**-power and whose strength is exponential; E||x||^2 = d"
    g = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(4*d, d, generator=g), dim=1)
    often = torch.arange(1, 4*d+1).float().pow(-power)
    often = (often*l0/often.sum()).clamp(max=1)
    def batch():
        f = (torch.rand(n, 4*d, generator=g)<often)*(.5+torch.empty(n, 4*d).exponential_(2, generator=g))
        return f@features + noise*torch.randn(n, d, generator=g)
    xs = [batch() for _ in range(n_batches)]
    factor = (d/xs[0].square().sum(1).mean()).sqrt()
    return [x*factor for x in xs]

def data(method, d, n, n_batches=2)->list:
    "Pairs of what is read and what is written; the second is None where a method rebuilds its input"
    xs = superposition(n, d, n_batches)
    if method!='transcoder': return [(x, None) for x in xs]
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]
    return [(x, (x@turn).contiguous()) for x in xs]

def stats(x):
    "What `fit` would tell a dictionary of these rows"
    return Stats(x.mean(0), float((x.shape[1]/x.square().sum(1).mean()).sqrt()), x[:1024])

def build(method, d, m, k, batches, seed=0):
    "A dictionary at its start, in the data's units; jumprelu's threshold is set so that about k features pass"
    how = dict(transcoder=dict(k=k, d_out=d), crosscoder=dict(k=k, widths=[d//2, d-d//2]), jumprelu={}).get(method, dict(k=k))
    x,y = batches[0]
    def made(**more):
        t = dictionaries[method](d, m, seed=seed, **how, **more)
        t.init_from(stats(x), None if y is None else stats(y))
        return t.train()
    if method!='jumprelu': return made()
    with torch.no_grad(): z = made().pre_acts(x[:256]).flatten()
    return made(threshold=z.topk(256*k).values[-1].item())

def own(dictionary, path):
    "One step of `dictionary` on `path`, as a function of what is read and written; it gives what `step` gave"
    r = dictionary.recipe()
    opt = Optimiser(dictionary, lr=r['lr'], betas=r['betas'], eps=r['eps'], path=path)
    def step(x, y=None):
        opt.zero_grad()
        out = dictionary.step(x, y)
        out.loss.backward(); dictionary.before_step(); opt.step(); dictionary.after_step()
        return out
    return step

class Dense:
    "A method's step as its formula says it, with dense codes, by torch's autograd and fused Adam, with the decoder's rows at length 1; it starts where the dictionary stands"
    def __init__(self, method, dictionary):
        d = self.of = dictionary
        self.method,self.rebuilds = method,d.rebuilds
        self.W_enc,self.b_enc,self.W_dec,self.b_dec = (Parameter(w.detach().clone(memory_format=torch.contiguous_format)) for w in (d.W_enc.t(), d.b_enc, d.W_dec, d.b_dec))
        self.theta = [Parameter(d.log_threshold.detach().clone())] if method=='jumprelu' else []
        r = d.recipe()
        self.opt = torch.optim.Adam([self.W_enc, self.b_enc, self.W_dec, self.b_dec, *self.theta], lr=r['lr'], betas=r['betas'], eps=r['eps'], fused=True)

    def scaled(self, x, y):
        "What is read, not centred, and the target, both in the dictionary's units"
        t = self.of.inputs(x, y)[1]
        return (t if self.rebuilds else self.of.scaled(x)), t

    def codes(self, z):
        "All features of each row, and how many passed where that is paid for"
        k,n = getattr(self.of, 'k', None),len(z)
        if self.method=='jumprelu': return sys.modules['sparsenb.dictionaries.jumprelu'].jump(z, self.theta[0].exp(), self.of.width)
        if self.method in ('topk', 'transcoder'):
            val,idx = z.topk(k, dim=-1, sorted=False)
            return torch.zeros_like(z).scatter(-1, idx, val.relu()), None
        f = z.relu().flatten()
        val,idx = f.topk(n*k, sorted=False)
        return torch.zeros_like(f).scatter(0, idx, val).view_as(z), None

    def loss(self, x, t):
        "Squared error and what else the method minimises while no feature is dead"
        z = F.linear(x-self.b_dec if self.rebuilds and self.method!='jumprelu' else x, self.W_enc, self.b_enc)
        f,on = self.codes(z)
        error = lambda x_hat: (x_hat-t).square().sum()/len(t)
        if self.method=='matryoshka':
            x_hat,errors,lo = self.b_dec,[],0
            for hi in self.of.prefixes: x_hat = x_hat+f[:,lo:hi]@self.W_dec[lo:hi]; errors.append(error(x_hat)); lo = hi
            return sum(errors)/len(errors)
        loss = error(f@self.W_dec+self.b_dec)
        return loss if on is None else loss + self.of.l0_coef*on.sum()/len(t)

    def step(self, x, t):
        loss = self.loss(x, t)
        self.opt.zero_grad(); loss.backward()
        with torch.no_grad(): self.W_dec.grad -= (self.W_dec.grad*self.W_dec).sum(1, keepdim=True)*self.W_dec
        self.opt.step()
        with torch.no_grad(): self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        return loss.detach()

def stepper(method, path, dictionary, batches):
    "The arm of one path, 'dense' among them: takes the number of the step, gives the loss"
    if path!='dense':
        f = own(dictionary, path)
        return lambda i: f(*batches[i%len(batches)]).loss.detach()
    ref = Dense(method, dictionary)
    pairs = [ref.scaled(*b) for b in batches]
    return lambda i: ref.step(*pairs[i%len(pairs)])

def products(x, W)->dict:
    "Encoder products `x @ W.T` into a tensor that is there: torch's own, oneDNN's where its rounding is that of fp32, bf16 and int8 where torch has them"
    out,low,whole = (torch.empty(len(x), len(W), dtype=t) for t in (torch.float32, torch.bfloat16, torch.int32))
    xb,Wb = x.bfloat16(),W.bfloat16()
    xi,Wi = (t.div(t.abs().amax(1, keepdim=True)).mul(127).round().to(torch.int8) for t in (x, W))
    switch = torch.backends.mkldnn.matmul # named after bf16, and on a processor without bf16 units for matrices only a choice of library
    def default(a=x, b=W, o=out): return torch.mm(a, b.T, out=o)
    def onednn(a=x, b=W, o=out):
        before,switch.fp32_precision = switch.fp32_precision,'bf16'
        try: return torch.mm(a, b.T, out=o)
        finally: switch.fp32_precision = before
    def error(f):
        a,b = x[:64],W[:512]
        return (f(a, b, torch.empty(len(a), len(b))).double()-a.double()@b.double().T).abs().max().item()
    def works(f):
        try: f(); return f is not onednn or error(onednn)<=4*error(default)
        except (RuntimeError, AttributeError): return False
    every = dict(product=default, product_onednn=onednn, product_bf16=lambda: torch.mm(xb, Wb.T, out=low), product_int8=lambda: torch._int_mm(xi, Wi.T, out=whole))
    return {n: f for n,f in every.items() if works(f)}

def alone(path, method, d, m, k, n, rounds=5)->dict:
    "One arm in this process: seconds of a step and of torch's own product, and bytes in memory beyond data and libraries at the worst moment"
    small = data(method, 32, 256, 1)
    stepper(method, path, build(method, 32, 512, 8, small), small)(0) # libraries and compiled code are there before anything is counted
    batches = data(method, d, n)
    before = resident(); peak_since(True)
    t = build(method, d, m, k, batches)
    size = 12*sum(p.numel() for p in t.parameters())
    step,times = stepper(method, path, t, batches),[]
    if path=='dense': del t.W_enc,t.W_dec # its copies are trained
    for i in range(rounds+2): # two to get warm
        at = time.process_time(); step(i); times.append(time.process_time()-at)
    peak = peak_since()-before
    W = F.normalize(torch.randn(m, d), dim=1); out = torch.empty(n, m); x = batches[0][0]
    bare = interleaved(dict(product=lambda: torch.mm(x, W.T, out=out)), min(rounds, 3))['product']
    return dict(path=path, method=method, d_in=d, d_sae=m, k=k, batch=n, seconds=statistics.median(times[2:]), product=statistics.median(bare), peak=peak, weights_and_moments=size)

def in_a_child(**how)->dict:
    "`alone` in a fresh process; raises RuntimeError with its last line if it fails"
    r = subprocess.run([sys.executable, __file__, json.dumps(how)], capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f"{how}: {(r.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(r.stdout.splitlines()[-1])

if __name__=='__main__': print(json.dumps(alone(**json.loads(sys.argv[1]))))
