"Recurrent states: edits against loops written out, a planted state steered both ways, corrected states counted before they are corrected; answers about pictures under a detector"
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from sparsenb.analyses.state_steering import _vector
from sparsenb.analyses.truthful_decoding import Detector, write
from sparsenb.core import UnknownName, analyses, testbeds as beds
from sparsenb.recurrent import CharModel, bracket_depth, characters, fit_chars, recurrent_states, state_edited, windows
from sparsenb.shapes import ids_of

torch.set_num_threads(1)
state_steering,state_recoding,truthful_decoding = (analyses[k] for k in ('state_steering', 'state_recoding', 'truthful_decoding'))
def normal(*s, seed=0): return torch.randn(*s, generator=torch.Generator().manual_seed(seed))

class Reader(nn.Module):
    def __init__(self, cls=nn.LSTM, layers=1, batch_first=True):
        super().__init__()
        with torch.random.fork_rng([]): torch.manual_seed(0); self.rnn,self.head = cls(3, 5, layers, batch_first=batch_first),nn.Linear(5, 2)
    def forward(self, x): return self.head(self.rnn(x)[0])

# ---- edits of a state ----

@pytest.mark.parametrize('what', ['hidden', 'cell'])
@pytest.mark.parametrize('at', [None, 0, (1, 4), 5])
def test_an_edit_of_an_lstm_is_a_loop_written_out(what, at):
    m,x,v = Reader().eval(),normal(2, 6, 3),normal(5, seed=3)
    cell = nn.LSTMCell(3, 5); cell.load_state_dict({k[:-3]: w for k,w in m.rnn.state_dict().items()})
    h = c = torch.zeros(2, 5); out,on = [],range(6) if at is None else {at} if isinstance(at, int) else at
    for t in range(6):
        h,c = cell(x[:,t], (h, c))
        if t in on: h,c = (h*.5+v, c) if what=='hidden' else (h, c*.5+v)
        out.append(h)
    with state_edited(m, 'rnn', lambda s,t: s*.5+v, what, at): y,last = m.rnn(x)
    torch.testing.assert_close(y, torch.stack(out, 1)); torch.testing.assert_close(last, (h[None], c[None]))
    assert not m.rnn._forward_hooks

@pytest.mark.parametrize('cls', [nn.RNN, nn.GRU, nn.LSTM])
def test_reading_states_is_the_output_and_changes_nothing(cls):
    m,x = Reader(cls, 2).eval(),normal(2, 6, 3)
    torch.testing.assert_close(recurrent_states(m, x, 'rnn'), m.rnn(x)[0])
    with state_edited(m, 'rnn', lambda s,t: None): torch.testing.assert_close(m(x), m(x))
    first = recurrent_states(m, x, 'rnn', layer=0)
    assert (first-recurrent_states(m, x, 'rnn')).abs().max()>1e-3
    assert m.training is False

def test_time_may_come_first_and_gradients_pass():
    a,b,x,v = Reader(batch_first=True),Reader(batch_first=False),normal(2, 6, 3),normal(5).requires_grad_()
    with state_edited(a, 'rnn', lambda s,t: s+v, 'cell', 2): y = a(x)
    with state_edited(b, 'rnn', lambda s,t: s+v, 'cell', 2): z = b(x.transpose(0, 1))
    torch.testing.assert_close(y, z.transpose(0, 1))
    assert torch.autograd.grad(y[:,3:].sum(), v)[0].any()

def test_states_that_are_not_there_are_refused():
    m,x = Reader(nn.GRU),normal(2, 6, 3)
    for call,error,said in ((lambda: recurrent_states(m, x, 'head'), TypeError, 'LSTM, RNN or GRU, is Linear'), (lambda: recurrent_states(m, x, 'rnn', 'cell'), UnknownName, "unknown state 'cell'"),
                            (lambda: recurrent_states(m, x, 'rnn', layer=2), ValueError, 'layer 2 of 1'), (lambda: recurrent_states(m, x, 'rn'), UnknownName, 'unknown site')):
        with pytest.raises(error, match=said): call()
    with pytest.raises(ValueError, match='bidirectional'): recurrent_states(nn.ModuleDict(dict(r=nn.LSTM(3, 4, bidirectional=True))), x, 'r')
    with pytest.raises(ValueError, match='step 6 of a sequence of 6'):
        with state_edited(m, 'rnn', lambda s,t: s, at=(1, 6)): m(x)
    with pytest.raises(ValueError, match='step -1 of'):
        with state_edited(m, 'rnn', lambda s,t: s, at=-1): m(x)
    assert not m.rnn._forward_hooks

def test_brackets_of_python():
    assert bracket_depth('a[f(1)]\n"(" # (\n').tolist()==[0, 1, 1, 2, 2, 1, 0]+[0]*9
    for text in ('def f(x,\n      y):\n\x0c\n    return {"a": (x, [y])}\n', 'x = 1\r\ny = (2)\r\n'):
        d = bracket_depth(text)
        assert len(d)==len(text) and d[-1]==0 and d.max()>0
        for i,c in enumerate(text):
            if c in '([{': assert d[i]==d[i-1]+1
            elif c in ')]}': assert d[i]==d[i-1]-1
            elif i: assert d[i]==d[i-1]

# ---- steering a state ----

class Keeper(nn.Module):
    "Unit 0 keeps whether 1 was read; answer 1 is its logit"
    def __init__(self):
        super().__init__()
        self.embed,self.rnn,self.head = nn.Embedding(3, 2),nn.RNN(2, 6, nonlinearity='relu', batch_first=True),nn.Linear(6, 2)
        with torch.no_grad():
            for p in self.parameters(): p.zero_()
            self.embed.weight[1,0] = 1; self.rnn.weight_ih_l0[0,0] = 1; self.rnn.weight_hh_l0.copy_(torch.eye(6)); self.head.weight[1,0] = 1.
    def forward(self, x): return self.head(self.rnn(self.embed(x))[0])

def kept(n=60, T=12):
    x = torch.zeros(n, T, dtype=torch.long); x[::2,2] = 1
    return x,(x==1).cumsum(1)>0

def test_a_planted_state_is_found_and_steers_both_ways_as_long_as_it_is_kept():
    x,y = kept()
    r = state_steering(Keeper(), x, y, 'rnn', lambda o: o[:,1], at=5, multipliers=(-1, 1, 2), lags=4, seed=0)
    torch.testing.assert_close(r.vector, torch.tensor([1., 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(r['mean difference'], [[-1]*3, [1]*3, [2]*3], atol=1e-5)
    np.testing.assert_allclose(r.lasting['mean difference'][2], 2, atol=1e-5)
    assert (np.abs(r['random'][:,0])<np.abs(r['mean difference'][:,0])).all() and (r['random'][:,1]<=r['random'][:,2]).all()
    assert r.lines().series.keys()==r.effects.keys() and 'upwards on' in r.table().caption and 'random' in r._repr_html_()

def test_the_vector_of_steps_with_the_same_input():
    s,x = normal(4, 10, 3),torch.arange(40).view(4, 10)%2
    y = normal(4, 10, seed=2)>0
    want,total = torch.zeros(3),0
    for k in (0, 1):
        a,b = s[(x==k)&y],s[(x==k)&~y]; w = min(len(a), len(b)); want,total = want+w*(a.mean(0)-b.mean(0)),total+w
    torch.testing.assert_close(_vector(s, y, True, x), want/total)
    torch.testing.assert_close(_vector(s, y, False, x), s[y].mean(0)-s[~y].mean(0))

@pytest.mark.parametrize('change, said', [(dict(labels=torch.zeros(60, 11).bool()), 'labels for each step'), (dict(labels=torch.zeros(60, 12).bool()), 'with and without the property'), (dict(at=9), 'do not fit into texts of 12'),
    (dict(multipliers=(0.,)), 'none of them 0'), (dict(measure=lambda o: o), 'one number for each of'), (dict(draws=1), 'at least 2 random'), (dict(at=1, lags=2), 'lack|have the property')])
def test_bad_requests_are_refused(change, said):
    x,y = kept()
    with pytest.raises(ValueError, match=said): state_steering(Keeper(), **(dict(inputs=x, labels=y, site='rnn', measure=lambda o: o[:,1], lags=4, seed=0)|change))

def test_a_trained_lstm_keeps_an_open_parenthesis_in_its_cell():
    rng = np.random.default_rng(3); word = lambda: ''.join(rng.choice(list('abcde'), rng.integers(1, 4)))
    text = ''.join(f"{word()} {word()}({', '.join(word() for _ in range(rng.integers(1, 4)))}) {word()}\n" for _ in range(2000))
    ids,depth = characters(text),torch.from_numpy(bracket_depth(text)); net = CharModel(32, seed=3)
    log = fit_chars(net, ids, 200, lr=.01, seed=3)
    x,start = windows(ids, 200, 32, seed=4); opened = depth[start[:,None]+torch.arange(32)]>0
    r = state_steering(net, x, opened, 'rnn', lambda y: y.log_softmax(-1)[:,ord(')')], 'cell', lags=3, seed=0)
    assert log[-1]<.7*log[0] and r['mean difference'][3,1]>r['random'][3,0] and r['mean difference'][0,2]<r['random'][0,0]

# ---- correcting a state ----

def test_surprise_is_counted_before_the_state_is_corrected():
    "A network that forgets its state gains nothing from any correction"
    net = CharModel(16, 'RNN')
    with torch.no_grad(): net.rnn.weight_hh_l0.zero_()
    ids,_ = windows(characters('def f(x): return x+1\n'*20), 12, 20)
    r = state_recoding(net, ids, 'rnn', net.head, rates=(.5,), seed=0)
    assert r.plain[0]==pytest.approx(F.cross_entropy(net(ids[:,:-1]).flatten(0, 1), ids[:,1:].flatten()).item(), abs=1e-5)
    assert all(r[w,.5][0]==pytest.approx(0, abs=1e-6) for w in ('gradient', 'turned round', 'random direction'))

def test_where_the_answer_stays_the_same_the_gradient_helps():
    "A network that keeps its state and reads one letter again and again: what corrects this step corrects the next"
    net = CharModel(16, 'RNN', seed=1)
    with torch.no_grad(): net.rnn.weight_hh_l0.copy_(2*torch.eye(16)); net.rnn.weight_ih_l0.mul_(.1)
    x = torch.full((8, 20), 97)
    r = state_recoding(net, x, 'rnn', net.head, rates=(.1,), seed=0)
    assert r['gradient', .1][2]<0<r['turned round', .1][1] and r['gradient', .1][0]<r['random direction', .1][0]
    e = state_recoding(net, x, 'rnn', net.head, rates=(.1,), signal='entropy', seed=0)
    assert e['gradient', .1]!=r['gradient', .1] and e['random direction', .1]==r['random direction', .1]
    assert all(p.grad is None for p in net.parameters()) and not net.rnn._forward_hooks

def test_bad_corrections_are_refused():
    net,x = CharModel(8),torch.full((4, 9), 97)
    with pytest.raises(UnknownName, match='unknown signal'): state_recoding(net, x, 'rnn', net.head, signal='loss')
    with pytest.raises(ValueError, match='at least 3 steps'): state_recoding(net, x[:,:2], 'rnn', net.head)
    with pytest.raises(ValueError, match='rates above 0'): state_recoding(net, x, 'rnn', net.head, rates=(0.,))
    with pytest.raises(UnknownName, match="unknown cell"): CharModel(8, 'LSTMs')

# ---- answers about pictures ----

def test_a_detector_that_knows_the_truth_mends_every_answer_and_one_may_only_choose_among_some():
    bed = beds['shapes_vlm'](); yes,no = ids_of['yes'],ids_of['no']
    rng = np.random.default_rng(0); s = bed.sample(30, 'there', rng); ids = s.ids.clone()
    ids[:,1:65] = torch.where(torch.from_numpy(rng.random((30, 64))<.8), torch.from_numpy(rng.integers(ids_of['grey-0'], ids_of['grey-7']+1, (30, 64))), ids[:,1:65])
    site,right = 'resid_post.3',{tuple(i.tolist()): yes if a=='yes' else no for i,a in zip(ids, s.answers)}
    from sparsenb.hooks import capture
    false = [capture(bed.model, torch.cat([i, torch.tensor([yes+no-w])])[None], site)[site][0,-1] for i,w in zip(ids, right.values())]
    knows = lambda h: torch.tensor([1. if any(torch.allclose(r, f, atol=1e-4) for f in false) else -1. for r in h])
    r = truthful_decoding(bed.model, list(ids), knows, site, lambda p, new: new!=right[tuple(p.tolist())], n=1, tries=2, among=[yes, no], seed=0)
    assert r['as it is'][0]>.1 and r['detector'][0]==0 and r['coin'][0]>0
    assert set(torch.cat(r.texts['coin']).tolist())<={yes, no}
    second = bed.model.logits(ids)[:,-1].topk(2).indices
    assert ((second==yes)|(second==no)).all(1).float().mean()<.5  # why `among` is needed
    with pytest.raises(ValueError, match='to choose among'): write(bed.model, ids[0], 1, site, Detector(torch.zeros(64), 0.), among=[])
