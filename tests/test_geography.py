"Moran's I against the card and against esda; probes of places against closed forms and on the real encoder; the map and the report"
import numpy as np, pytest, torch
from pathlib import Path
from sparsenb.analyses.morans_i import corrected, local_moran, moran, neighbour_weights
from sparsenb.analyses.space_probe import folds_of, great_circle, name_vectors, predicted
from sparsenb.core import UnknownName, analyses, dictionaries, probes, widgets
from sparsenb.report import run_report
from sparsenb.tables import load_table

torch.set_num_threads(1)

# ---- Moran's I ----

ESDA_V,ESDA_U,ESDA_FOUND = 0.874149497648,-0.045198040649,73
ESDA_LOCAL = [0.514951995704, 0.589008566625, 0.953022529917, 2.298663207769, -0.099181767271, 0.000268497365, 0.519959613955, 1.168477297257]

def torus(n):
    i = np.arange(n)
    ring = np.isin((i[:,None]-i)%n, (1, n-1))
    return np.kron(ring, np.eye(n))+np.kron(np.eye(n), ring)

def test_the_values_of_the_card():
    i = np.arange(8)
    assert moran(((i[:,None]+i)%2).ravel(), torus(8))==pytest.approx(-1, abs=1e-12)
    assert moran(np.repeat(i<4, 8), torus(8))==pytest.approx(.75, abs=1e-12)
    chain = np.eye(5, k=1)+np.eye(5, k=-1)
    assert moran([1, 2, 3, 4, 5], chain/chain.sum(1, keepdims=True))==pytest.approx(.6, abs=1e-12)
    assert np.isnan(moran(np.ones(64), torus(8)))

def cities(n=120):
    "Places of the table and two columns in closed form: one that comes in regions, one that does not"
    t = load_table('places')
    p,i = np.stack([t['latitude'], t['longitude']], 1)[:n],np.arange(n)
    return p,np.sin(np.radians(2*p[:,0]))+.5*np.cos(np.radians(p[:,1]))+.3*np.cos(2.4*i),np.cos(2.4*i)

def test_against_numbers_of_esda():
    "Computed with esda 2.9.0 and libpysal 4.14.1: KNN(k=8, distance_metric='arc'), transform 'r', Moran, Moran_Local with 9,999 permutations"
    p,v,u = cities()
    W = neighbour_weights(p, 8)
    assert moran(np.stack([v, u], 1), W)==pytest.approx([ESDA_V, ESDA_U], abs=1e-9)
    l = local_moran(v, W, 999, seed=0)
    assert l.I[::15]*119/120==pytest.approx(ESDA_LOCAL, abs=1e-9)  # esda divides by n-1
    assert abs(int((l.p<.01).sum())-ESDA_FOUND)<=12 and l.I.mean()==pytest.approx(ESDA_V, abs=1e-9)

def test_against_esda_itself():
    "The same where the package is installed"
    pytest.importorskip('esda'); weights = pytest.importorskip('libpysal.weights')
    from esda.moran import Moran, Moran_Local
    p,v,u = cities()
    w = weights.KNN(p[:,::-1], k=8, distance_metric='arc', radius=6371.); w.transform = 'r'
    W = neighbour_weights(p, 8)
    assert all(sorted(w.neighbors[i])==sorted(W.indices[W.indptr[i]:W.indptr[i+1]].tolist()) for i in range(len(p)))
    for x in (v, u): assert moran(x, W)==pytest.approx(Moran(x, w, permutations=0).I, abs=1e-9)
    theirs,ours = Moran_Local(v, w, permutations=9999, seed=0),local_moran(v, W, 9999, seed=0)
    assert ours.I*119/120==pytest.approx(theirs.Is, abs=1e-9) and abs(ours.p-theirs.p_sim).max()<.03

def test_the_permutation_test_is_calibrated():
    "Of columns without regions a share p has p-values below p; corrected, next to none is found"
    p,_,_ = cities(80)
    m = analyses['morans_i'](p, np.random.default_rng(0).normal(size=(80, 300)), permutations=199, seed=1)
    assert abs((m.p<=.1).mean()-.1)<.06 and (m.q<.05).sum()<=1 and abs(np.mean(m.I)+1/79)<.02 and len(m.found())==0

def test_what_comes_in_regions_is_found():
    p,v,_ = cities()
    f = np.maximum(np.random.default_rng(0).normal(size=(120, 30))-.5, 0)
    f[:,4],f[:,9],f[:,11] = np.maximum(v, 0),0,np.arange(120)==3
    m = analyses['morans_i'](p, f, seed=0)
    assert m.found().tolist()==[4] and np.isnan(m.I[[9, 11]]).all() and m.active[11]==1 and '28 of 30 columns tested' in m.caption
    assert np.array_equal(m.p, analyses['morans_i'](p, f, seed=0).p, equal_nan=True) and m.table(names=np.arange(120)).rows[0][0]==4
    l = m.local(4)
    assert {*l.kind}<={'', 'high–high', 'low–low', 'high–low', 'low–high'} and m.values[l.kind=='high–high',4].min()>m.values[:,4].mean()
    assert (m.local(4, correct='bh').kind!='').sum()<=(l.kind!='').sum() and '<svg' in m.map(4).html()+m.clusters(4).html()
    flat = analyses['morans_i'](p, f, sphere=False, permutations=9, seed=0)
    for bad,said in ((lambda: flat.clusters(4), 'lie in a plane'), (lambda: analyses['morans_i'](p, f[:5]), '120 places need as many rows'), (lambda: analyses['morans_i'](p[:,::-1]+100, f), 'in this order'),
                     (lambda: neighbour_weights(p, 120), 'k must be in 1..119'), (lambda: local_moran(np.ones(120), m.W), 'not all the same')):
        with pytest.raises(ValueError, match=said): bad()
    with pytest.raises(UnknownName, match="did you mean 'bonferroni'"): corrected([.1], 'bonferoni')

def test_a_trained_dictionary_has_regions_that_random_weights_do_not():
    "Four regions and forty names' own directions in 24 dimensions: features of a trained dictionary come in regions, beside random weights and places dealt anew"
    from sparsenb.train import fit
    g = torch.Generator().manual_seed(0)
    at = np.stack([np.linspace(-60, 60, 160), np.tile(np.linspace(-100, 100, 16), 10)], 1)
    region = (at[:,0]>0)*2+(at[:,1]>0)
    own = torch.randn(44, 24, generator=g); own /= own.norm(dim=1, keepdim=True)
    x = lambda: own[torch.from_numpy(region)]+own[4+torch.randint(40, (160,), generator=g)]+.05*torch.randn(160, 24, generator=g)
    data = torch.cat([x() for _ in range(40)])
    sae,random = (dictionaries['topk'](24, 48, k=2, seed=s) for s in (1, 2))
    fit(sae, data, n_tokens=150_000, batch_size=256, seed=1); random.b_dec.data = data.mean(0)
    with torch.no_grad(): f,r = (d.codes(data[:160]).dense(48).numpy() for d in (sae, random))
    m = analyses['morans_i'](at, f, permutations=199, seed=0)
    others = {'random weights': analyses['morans_i'](at, r, permutations=199, seed=0), 'places dealt anew': analyses['morans_i'](at[np.random.default_rng(0).permutation(160)], f, permutations=199, seed=0)}
    t = m.beside(others, 'features')
    assert [row[0] for row in t.rows]==['features', *others] and t.rows[0][2]==len(m.found())>=2 and [row[2] for row in t.rows[1:]]==[0, 0]
    assert np.nanmax(m.I)>np.nanmax(others['random weights'].I)+.2
    on = m.values[:,int(np.nanargmax(m.I))]>0
    assert max((region[on]==k).mean() for k in range(4))>.9

def test_neighbours_on_the_globe_and_at_one_place():
    p = np.array([[0., 179.9], [0, -179.9], [0, 175], [80, 0], [80, 180], [-60, 0]])
    near = neighbour_weights(p, 1)
    assert near.indices.tolist()[:5]==[1, 0, 0, 4, 3]
    many = neighbour_weights(np.r_[np.zeros((5, 2)), [[1., 1]]], 2)
    assert (many.diagonal()==0).all() and np.allclose(many.sum(1), 1) and (np.diff(many.indptr)==2).all()

# ---- probes ----

def test_a_map_is_read_and_what_is_no_map_is_not():
    rng = np.random.default_rng(0)
    y = np.stack([rng.uniform(-60, 60, 300), rng.uniform(-150, 150, 300)], 1)
    x = (y/100)@rng.normal(size=(2, 24))+.01*rng.normal(size=(300, 24))
    s = analyses['space_probe'](x, dict(latitude=y[:,0], longitude=y[:,1]), np.arange(300)//10, folds=5, seed=0, n_boot=100)
    true,dealt = s.scores['activations','block','true'],s.scores['activations','block','shuffled']
    assert true['r2'].value>.99 and true['proximity_error'].value<.01 and true['km'].value<200
    assert dealt['r2'].value<.1 and abs(dealt['proximity_error'].value-.5)<.1
    assert s.map().svg().count('<line')>300 and s.best()=='activations' and s.lines().numbers()
    year = analyses['space_probe'](x, dict(year=y[:,1]), n_boot=50, seed=0)
    assert set(year.scores['activations','random','true'])=={'r2', 'spearman', 'mae'} and year.scores['activations','random','true']['spearman'].value>.99
    for kw,said in ((dict(targets={}), 'a dict from names'), (dict(texts=['a']), '300 rows need 300 texts, got 1'), (dict(groups=np.zeros(300)), 'two blocks'), (dict(folds=1), 'two folds')):
        with pytest.raises(ValueError, match=said): analyses['space_probe'](**dict(acts=x, targets=dict(a=y[:,0]))|kw)

def test_every_row_is_predicted_without_itself_and_blocks_stay_whole():
    g = np.repeat(np.arange(12), 5)
    f = folds_of(60, 4, 0, g)
    assert all(len(set(f[g==k]))==1 for k in range(12)) and set(f)==set(range(4)) and len(set(folds_of(60, None, 0, g)))==12
    x,y = np.random.default_rng(0).normal(size=(60, 6)),np.random.default_rng(1).normal(size=(60, 1))
    out = predicted(x, y, f, lambda: probes['ridge'](alpha=1.))
    other = y.copy(); other[f==2] += 100
    again = predicted(x, other, f, lambda: probes['ridge'](alpha=1.))
    assert np.array_equal(out[f==2], again[f==2]) and not np.allclose(out[f==1], again[f==1])
    assert great_circle([[0, 0]], [[0, 180]]).item()==pytest.approx(np.pi*6371) and great_circle([[90, 0]], [[90, 77]]).item()==pytest.approx(0, abs=1e-6)

def test_neurons_are_measured_where_they_were_not_chosen():
    rng = np.random.default_rng(0)
    y,x = rng.normal(size=400),rng.normal(size=(400, 200))
    x[:,17] += 2*y
    W = rng.normal(size=(200, 32))
    s = analyses['space_neurons'](x, dict(a=y), np.arange(400)//4, W, W[17], seed=0, n_boot=200)
    assert s.chosen['a'][0]==17 and s.scores['a'][0].lo>.7 and s.cosines[0,17]==pytest.approx(1) and abs(s.dealt['a'])<.25
    assert abs(s.first[0,s.chosen['a'][1]])>abs(s.second[0]).mean() and abs(s.scores['a'][1].value)<.25  # the second best was luck
    none = analyses['space_neurons'](rng.normal(size=(400, 200)), dict(a=y), seed=0, n_boot=0)
    assert abs(none.scores['a'][0].value)<.25
    with pytest.raises(ValueError, match='k must be in 1..200'): analyses['space_neurons'](x, dict(a=y), k=0)

def test_dealt_targets_stay_alike_within_a_block():
    "Neurons that know countries, but not where they lie: what the control finds is as large as what the search finds"
    from sparsenb.analyses.space_neurons import _dealt
    y,of = np.arange(9.),np.array([0, 1, 2, 2, 1, 0, 2, 1, 2])
    z = _dealt(y, of, np.random.default_rng(3))
    homes = [set(of[z[of==k].astype(int)]) for k in range(3)]
    assert all(len(h)==1 for h in homes) and len(set.union(*homes))==3
    assert sorted(_dealt(y, np.arange(9), np.random.default_rng(3)))==y.tolist(), 'blocks of one row: any order'
    found,control = [],[]
    for s in range(8):
        r = np.random.default_rng(s)
        g = np.repeat(np.arange(60), r.integers(2, 14, 60))
        lat,x = r.normal(size=60)[g]*20+r.normal(size=len(g))*3,r.normal(size=(60, 100))[g]+.3*r.normal(size=(len(g), 100))
        n = analyses['space_neurons'](x, dict(lat=lat), g, k=1, seed=s, n_boot=0)
        found.append(abs(n.scores['lat'][0].value)); control.append(n.dealt['lat'])
    print(np.mean(found), np.mean(control))
    assert np.mean(control)>.6*np.mean(found) and np.mean(control)>.09

def test_minilm_holds_a_map_that_letters_do_not(minilm):
    "Latitude and longitude from the last layer, whole countries held out: beside shuffled places, characters and a random split"
    from sparsenb.models import load_model
    t = load_table('places')
    x = name_vectors(load_model(str(minilm), device='cpu'), t['name'], 'resid_post.5', 'mean')
    s = analyses['space_probe'](x, dict(latitude=t['latitude'], longitude=t['longitude']), t['country'], t['name'], folds=6, seed=0, n_boot=200)
    r2 = {k: v['r2'].value for k,v in s.scores.items()}
    model,letters = r2['resid_post.5','block','true'],r2['characters','block','true']
    assert model>.25 and s.scores['resid_post.5','block','true']['r2'].lo>.15 and letters<.17 and model>letters+.1 and abs(r2['resid_post.5','block','shuffled'])<.05
    assert r2['resid_post.5','random','true']>model
    assert s.scores['resid_post.5','block','true']['proximity_error'].value<.35 and s.scores['characters','block','true']['km'].value>s.scores['resid_post.5','block','true']['km'].value+300
    m = analyses['morans_i'](np.stack([t['latitude'], t['longitude']], 1), x['resid_post.5'][:,:64], permutations=199, seed=0)
    assert (m.q<.05).sum()>20 and .1<np.nanmax(m.I)<.6

# ---- map and report ----

def test_the_map_checks_what_it_is_given_and_shows_text_as_text():
    G = widgets['geo_map']
    m = G([10, -20, 0], [0, 170, -170], [1., -2, np.nan], 'Three', text=['<script>alert(1)</script>', 'b', 'c'], to=[[0, 0]]*3, signed=True)
    s = m.svg(400)
    assert s.count('<circle')==3 and '<script' not in m.html() and 'fill="none"' in s and (m.lo, m.hi)==(-2, 2) and set(m.numbers())=={'latitude', 'longitude', 'value', 'text', 'to'}
    assert 'No places to draw' in G([], []).html() and '°' in s and 'legend' not in G([1], [1]).svg()
    for a,kw,said in ((([100], [0]), {}, 'latitude within'), (([0, 1], [0]), {}, '2 latitudes and 1'), (([0], [0], [1, 2]), {}, '2 values for 1'), (([0], [0]), dict(to=[[1, 2, 3]]), 'lines lead to'), (([0], [0], [3.]), dict(lo=5), 'is above')):
        with pytest.raises(ValueError, match=said): G(*a, **kw)

def test_places_are_chosen_by_name_and_by_number():
    w = widgets['geo_map']([10, -20, 0], [0, 170, -170], [1., -2, np.nan], text=['a', 'b', 'a'], region=['x', 'x', 'y'], to=[[0, 0]]*3, label='km', selected=['b'])
    assert w.rows==[1] and w.table().rows==(('b', -20., 170., 'x', 0., 0., -2.),) and w.table().columns[-1]=='km'
    w.selected = ['a']; assert w.rows==[0, 2]  # two places of one name
    w.rows = [2, 2]; assert w.rows==[2] and w.selected==['a']
    w.rows = []; assert w.selected==[] and len(w.table().rows)==3 and set(w.numbers())=={'latitude', 'longitude', 'value', 'to', 'text', 'region'}
    with pytest.raises(UnknownName, match="'c'"): w.selected = ['c']
    with pytest.raises(ValueError, match='there are 3'): w.rows = [3]
    with pytest.raises(ValueError, match='2 region for 3'): widgets['geo_map']([0, 1, 2], [0, 1, 2], region=['a', 'b'])
    assert widgets['geo_map']([0], [0]).names==['place 0']
    evil = '</script><script>alert(1)</script>'
    html = widgets['geo_map']([0], [0], title=evil, text=[evil], region=[evil], caption=evil, label=evil).static().html()
    assert html.count('</script>')==2 and '<script>alert' not in html

def test_the_report(tmp_path, minilm):
    "A dictionary that is trained there"
    out = run_report('geography', dict(layers=[5], n_places=90, permutations=99, n_maps=1, n_features=32, n_train=5_000), tmp_path/'geo.html')
    html = Path(out).read_text()
    assert all(w in html for w in ('Places', 'Regions', 'Times', 'high–high', 'characters', 'shuffled', 'Clusters of column', 'Feature ', 'random weights', 'places dealt anew')) and html.count('60°N')>=3

def test_the_report_of_a_saved_dictionary(tmp_path, minilm):
    dictionaries['topk'](384, 64, k=4, seed=0).save(tmp_path/'topk')
    html = Path(run_report('geography', dict(layers=[5], n_places=60, permutations=9, n_maps=1, dictionary=str(tmp_path/'topk'), times=''), tmp_path/'geo.html')).read_text()
    assert 'features of resid_post.5' in html and 'channels' in html and 'Times' not in html
