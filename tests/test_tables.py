"The bundled tables hold what they say: in range, without repeats, near where the time zone database puts them, balanced; and digits suit a vision transformer"
import zoneinfo
from pathlib import Path
import numpy as np, pytest, torch
from sparsenb.analyses.space_probe import great_circle
from sparsenb.core import UnknownName, probes
from sparsenb.tables import FactTable, digit_images, load_table, table_names

torch.set_num_threads(1)

def counts(a): return dict(zip(*(v.tolist() for v in np.unique(a, return_counts=True))))

def test_places_are_many_different_and_on_the_globe():
    t = load_table('places')
    assert t.n>=330 and len(set(t['country']))>=80 and len(set(t['name']))==t.n and set(t)=={'name', 'country', 'continent', 'latitude', 'longitude'}
    assert set(t['continent'])=={'Africa', 'Asia', 'Europe', 'North America', 'South America', 'Oceania'}
    assert (np.abs(t['latitude'])<=90).all() and (np.abs(t['longitude'])<=180).all() and len({*zip(t['latitude'], t['longitude'])})==t.n
    assert np.allclose(t['latitude'], t['latitude'].round(1)) and np.allclose(t['longitude'], t['longitude'].round(1))
    assert all(len(set(t['continent'][t['country']==c]))==1 for c in set(t['country']))
    assert all(n.isascii() and n==n.strip() for k in ('name', 'country') for n in t[k])

def test_the_cities_of_a_country_are_near_each_other():
    t = load_table('places')
    at = np.stack([t['latitude'], t['longitude']], 1)
    for c in set(t['country']):
        p = at[t['country']==c]
        far = np.stack([great_circle(np.broadcast_to(q, p.shape), p) for q in p])+np.eye(len(p))*1e9
        assert len(p)==1 or far.min(1).max()<2500, c  # Anchorage is the loneliest
    d = lambda a, b: great_circle(at[t['name']==a], at[t['name']==b]).item()
    for a,b,km in (('London', 'Paris', 344), ('Sydney', 'Melbourne', 714), ('New York', 'Los Angeles', 3936), ('Moscow', 'Vladivostok', 6418), ('Cairo', 'Nairobi', 3530)): assert d(a, b)==pytest.approx(km, rel=.02), (a, b)

def test_places_are_where_the_time_zone_database_puts_them():
    files = [p for d in zoneinfo.TZPATH if (p := Path(d)/'zone.tab').is_file()]
    if not files: pytest.skip('this system has no zone.tab')
    t,met = load_table('places'),0
    here = {n: (a, o) for n,a,o in zip(t['name'], t['latitude'], t['longitude'])}
    def degrees(s):
        sign,s = (-1 if s[0]=='-' else 1),s[1:]
        k = 2 if len(s) in (4, 6) else 3
        return sign*(int(s[:k])+int(s[k:k+2])/60+int(s[k+2:] or 0)/3600)
    for line in files[0].read_text().splitlines():
        if line.startswith('#'): continue
        _,where,zone = line.split('\t')[:3]
        cut = max(where.rfind('+'), where.rfind('-'))
        name = zone.split('/')[-1].replace('_', ' ')
        if name in here:
            met += 1
            assert np.allclose(here[name], (degrees(where[:cut]), degrees(where[cut:])), atol=.3), (name, here[name], where)
    assert met>100

def test_times_and_facts():
    t = load_table('times')
    assert t.n>=150 and len(set(t['name']))==t.n and set(t['kind'])=={'event', 'invention', 'work', 'person'} and t['year'].dtype==np.int64
    assert 1000<t['year'].min() and t['year'].max()<=2026 and len(set(t['year']//100))>=8
    years = dict(zip(t['name'].tolist(), t['year'].tolist()))
    assert (years['Fall of the Berlin Wall'], years['Isaac Newton'], years['Titanic film'])==(1989, 1643, 1997)
    f = load_table('facts')
    assert f.n>=200 and f['truth'].mean()==.5 and len(set(f['statement']))==f.n and set(f['truth'].tolist())=={0, 1}

def test_words_do_not_tell_which_statement_is_true():
    f = load_table('facts')
    for k in set(f['kind']):
        on = f['kind']==k
        bags = [counts(np.array([w for s in f['statement'][on&(f['truth']==v)] for w in s.rstrip('.').split()])) for v in (0, 1)]
        assert bags[0]==bags[1], k  # every word as often in false statements as in true ones
        assert set(counts(f['subject'][on]).values())=={2} and all(set(f['truth'][on&(f['subject']==s)].tolist())=={0, 1} for s in f['subject'][on])
    where = load_table('places')
    for s,v in zip(f['statement'][f['kind']=='capital'], f['truth'][f['kind']=='capital']):
        city,country = s.rstrip('.').split(' is the capital of ')
        assert (where['country'][where['name']==city].item()==country)==bool(v), s

def test_names_and_files(tmp_path):
    assert all(load_table(n).n for n in table_names)
    with pytest.raises(UnknownName, match="unknown table 'place'; did you mean 'places'.*the path of a .csv file"): load_table('place')
    p = tmp_path/'mine.csv'; p.write_text('name,n,x\n"a, b",1,.5\nc,2,1\n', encoding='utf-8')
    t = load_table(p)
    assert (t.name, t['name'].tolist(), t['n'].dtype.kind, t['x'].tolist())==('mine', ['a, b', 'c'], 'i', [.5, 1]) and t.take([1])['name'].tolist()==['c'] and '2 rows' in repr(t)
    with pytest.raises(ValueError, match='read-only'): t['n'][0] = 3
    with pytest.raises(UnknownName, match='column'): t['nme']
    p.write_text('a,b\n1\n')
    with pytest.raises(ValueError, match='line 2 has 1 values, the header names 2'): load_table(p)
    p.write_text('a,a\n1,2\n')
    with pytest.raises(ValueError, match='different names'): load_table(p)
    p.write_text('')
    with pytest.raises(ValueError, match='at least one row'): load_table(p)
    hostile = FactTable('t', dict(a=['<img src=x onerror=alert(1)>']))
    assert '<img' not in hostile._repr_html_()

def test_digits_in_a_vision_transformer():
    "An untrained network keeps enough of the picture in its patches for a linear probe; the labels belong to the pictures"
    import transformers as tf
    from sparsenb.hooks import capture
    from sparsenb.models import load_model
    x,y = digit_images(standard=True)
    assert abs(x.mean())<1e-4 and x.std()==pytest.approx(1, abs=1e-3) and x.shape==(1797, 1, 8, 8)
    torch.manual_seed(0)
    m = load_model(tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2, num_channels=1, num_labels=10)))
    h = capture(m, torch.from_numpy(x[:900]), 'resid_post.1')['resid_post.1'][:,1:].flatten(1).numpy()
    p = probes['nearest_mean']().fit(h[:600], y[:600])
    assert (p(h[600:])==y[600:900]).mean()>.6
    assert (probes['nearest_mean']().fit(h[:600], np.random.default_rng(0).permutation(y[:600]))(h[600:])==y[600:900]).mean()<.3
