"Other people's dictionaries on the same weights and rows; fixtures/peers/write.py wrote their numbers, no peer is needed here"
import json
from pathlib import Path
import pytest, torch
from sparsenb.core import dictionaries

torch.set_num_threads(1)
FILES = sorted((Path(__file__).parent/'fixtures'/'peers').glob('*.json'))
CASES = [(f.stem, c) for f in FILES for c in json.loads(f.read_text())['cases']]
near = dict(rtol=1e-5, atol=1e-5)

def ours(case):
    "Our dictionary with the given weights, in units where nothing is scaled"
    d_sae,d_in = len(case['weights']['W_dec']),len(case['x'][0])
    d,state = dictionaries[case['method']](d_in, d_sae, **case['cfg']),{k: torch.tensor(v) for k,v in case['weights'].items()}
    assert set(state)<=set(d.state_dict()), set(state)-set(d.state_dict())
    with torch.no_grad():
        for k,v in state.items(): d.state_dict()[k].copy_(v)
    return d, torch.tensor(case['x'])

def test_every_peer_is_there(): assert [f.stem for f in FILES]==['dictionary_learning','overcomplete','sae_lens','sparsify'] and len(CASES)>=20

@pytest.mark.parametrize('peer,case', CASES, ids=[f"{p}-{c['method']}-{i}" for i,(p,c) in enumerate(CASES)])
def test_same_weights_same_rows_same_numbers(peer, case):
    "Features and reconstruction to 1e-5; loss and gradients where the peer's are the same function"
    (d,x),more = ours(case),case['more']
    if more.get('batch'): # the training form: the k largest of this batch
        out = d.step(x)
        f,x_hat = out.codes.dense(d.d_sae),out.x_hat
    else:
        d.eval(); f,x_hat = d.encode(x),d(x)
    torch.testing.assert_close(f.detach(), torch.tensor(case['f']), **near)
    torch.testing.assert_close(x_hat.detach(), torch.tensor(case['x_hat']), **near)
    assert (torch.tensor(case['f'])!=0).any() and (torch.tensor(case['f'])==0).any()
    if 'loss' not in more: return
    out = d.train().step(x)
    out.loss.backward()
    torch.testing.assert_close(out.loss.detach(), torch.tensor(more['loss']), **near)
    for k,g in more['grads'].items(): torch.testing.assert_close(getattr(d, k).grad, torch.tensor(g), **near, msg=lambda m: f'{k}: {m}')
