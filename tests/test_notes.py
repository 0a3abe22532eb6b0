"Notes: nothing is lost between two processes, a merge or a damaged line; the latest statement counts"
import json, os, random, subprocess, sys
import pytest
from sparsenb.notes import Notes

PROGRAM = '''
import sys, warnings
from sparsenb.notes import Notes
warnings.simplefilter('error')
path,who,n = sys.argv[1], sys.argv[2], int(sys.argv[3])
notes = Notes(path, author=who)
print('ready', flush=True); sys.stdin.readline()
for i in range(n):
    notes.set(i*2+(who=='b'), label=f'{who} {i}', note=f'said by {who}', bookmark=i%3==0)
    notes.set(100_000, label=f'{who} {i}')   # both about the same
'''

def test_two_processes_lose_nothing(tmp_path):
    n,path = 150,tmp_path/'notes.jsonl'
    ps = [subprocess.Popen([sys.executable, '-c', PROGRAM, path, who, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for who in 'ab']
    for p in ps: assert p.stdout.readline()=='ready\n'
    for p in ps: p.stdin.write('go\n'); p.stdin.flush()
    assert [p.wait(60) for p in ps]==[0, 0]
    for p in ps: p.stdin.close(); p.stdout.close()
    lines = [json.loads(l) for l in path.read_text().splitlines()]
    notes = Notes(path)
    assert notes.damaged==[] and len(lines)==2*(2*n+n//3)+2*n
    for who in 'ab':
        for i in range(n):
            f = i*2+(who=='b')
            assert (notes.label(f), notes.note(f), notes.bookmarked(f))==(f'{who} {i}', f'said by {who}', i%3==0)
    same = [l for l in lines if l['feature']==100_000]
    assert [l['time'] for l in same]==sorted(l['time'] for l in same) and len({l['time'] for l in same})==2*n
    assert notes.label(100_000)==same[-1]['value'] and {l['author'] for l in same}=={'a', 'b'}

def test_a_kill_in_the_middle_costs_at_most_what_was_being_said(tmp_path):
    seed = random.randrange(10**6); r = random.Random(seed)
    for k in range(3):
        path = tmp_path/f'{k}.jsonl'
        p = subprocess.Popen([sys.executable, '-c', PROGRAM, path, 'a', '100000'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline()=='ready\n'
        p.stdin.write('go\n'); p.stdin.flush()
        while not path.exists() or path.stat().st_size<r.randrange(2_000, 40_000): assert p.poll() is None
        p.kill(); p.wait(); p.stdin.close(); p.stdout.close()
        notes = Notes(path)
        notes.set(1, label='after the kill')
        assert notes.damaged==[], f'seed {seed}'
        assert Notes(path).label(1)=='after the kill' and Notes(path).label(0)=='a 0', f'seed {seed}'

def test_what_was_said_is_there_the_next_time(tmp_path):
    a = Notes(tmp_path/'n.jsonl')
    a.set(3, label=' docstring ', note='fires inside """'); a.set(3, bookmark=True); a.set(5, bookmark=True); a.set(5, bookmark=False)
    b = Notes(tmp_path/'n.jsonl')
    assert (b.label(3), b.note(3), b.bookmarked(3), b.bookmarked(5), b.label(4), b.note(4))==('docstring', 'fires inside """', True, False, '', '')
    assert b.bookmarks()==[3] and b.labels()=={3: 'docstring'} and b.features()==[3] and len(b)==1
    a.set(3, label='')
    assert b.changed() and b.label(3)=='' and not b.changed() and not a.changed()

def test_saying_the_same_again_writes_nothing(tmp_path):
    n = Notes(tmp_path/'n.jsonl')
    n.set(1, label='x'); was = n.path.read_bytes()
    n.set(1, label='x'); n.set(1); n.set(2, label='', bookmark=False)
    assert n.path.read_bytes()==was

def test_each_line_says_who_and_when(tmp_path):
    n = Notes(tmp_path/'n.jsonl', author='Ada'); n.set(1, label='x')
    o = json.loads(n.path.read_text())
    assert (o['feature'], o['field'], o['value'], o['author'], set(o))==(1, 'label', 'x', 'Ada', {'feature', 'field', 'value', 'time', 'author'})
    Notes(tmp_path/'m.jsonl').set(1, label='x')
    assert set(json.loads((tmp_path/'m.jsonl').read_text()))=={'feature', 'field', 'value', 'time'}

def test_branches_merge_by_keeping_the_lines_of_both(tmp_path):
    "As git does with merge=union; the order of the lines does not matter"
    base = Notes(tmp_path/'base'); base.set(1, label='old'); base.set(2, label='kept')
    lines = base.path.read_bytes()
    ours,theirs = Notes(tmp_path/'ours'),Notes(tmp_path/'theirs')
    for n in (ours, theirs): n.path.write_bytes(lines); n.changed()
    ours.set(1, label='ours'); ours.set(3, label='three'); theirs.set(1, label='theirs, later')
    new = [n.path.read_bytes()[len(lines):] for n in (ours, theirs)]
    for i,both in enumerate((new, new[::-1])):
        (tmp_path/f'm{i}').write_bytes(lines+b''.join(both))
        m = Notes(tmp_path/f'm{i}')
        assert m.labels()=={1: 'theirs, later', 2: 'kept', 3: 'three'} and m.damaged==[]

def test_git_merges_with_union(tmp_path):
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=x', '-c', 'user.email=x', *a], cwd=tmp_path, check=True, capture_output=True)
    try: git('init', '-q', '-b', 'main')
    except FileNotFoundError: pytest.skip('no git here')
    (tmp_path/'.gitattributes').write_text('notes.jsonl merge=union\n')
    n = Notes(tmp_path/'notes.jsonl'); n.set(1, label='old')
    git('add', '.'); git('commit', '-qm', 'a'); git('checkout', '-qb', 'b')
    n.set(1, label='of the branch'); n.set(2, note='branch'); git('commit', '-qam', 'b'); git('checkout', '-q', 'main')
    assert n.changed() and n.label(1)=='old'
    n.set(1, label='of main, said last'); git('commit', '-qam', 'c'); git('merge', '-q', 'b')
    assert n.changed() and (n.label(1), n.note(2), n.damaged)==('of main, said last', 'branch', [])

def test_a_clock_that_runs_behind_does_not_lose_the_newest(tmp_path):
    n = Notes(tmp_path/'n.jsonl')
    n.path.write_text(json.dumps(dict(feature=1, field='label', value='from the future', time='2999-01-01T00:00:00.000000+00:00'))+'\n')
    for v in ('a', 'b', 'c'): n.set(1, label=v)
    m = Notes(n.path)
    assert m.label(1)=='c' and json.loads(n.path.read_text().splitlines()[-1])['time']=='2999-01-01T00:00:00.000003+00:00'

DAMAGED = ('{"feature": 1, "field": "lab', '[1, 2]', '<<<<<<< ours', '{"feature": "1", "field": "label", "value": "x", "time": ""}', '{"feature": 1, "field": "colour", "value": "x", "time": ""}',
    '{"feature": 1, "field": ["label"], "value": "x", "time": ""}', '{"feature": 1, "field": "bookmark", "value": "yes", "time": ""}', '{"feature": true, "field": "label", "value": "x", "time": ""}', '{"feature": 1, "field": "label", "value": "x"}', '\udcff\udcfe', '['*100_000)

@pytest.mark.parametrize('bad', DAMAGED, ids=lambda b: b[:12].encode('ascii', 'replace').decode())
def test_a_damaged_line_is_named_and_skipped(tmp_path, bad):
    n = Notes(tmp_path/'n.jsonl'); n.set(1, label='before')
    with open(n.path, 'ab') as f: f.write(bad.encode('utf-8', 'surrogateescape')+b'\n\n')
    with pytest.warns(UserWarning, match='n.jsonl: 1 damaged line skipped: line 2'): assert n.changed()
    was = n.path.read_bytes()
    n.set(2, label='after')
    assert n.labels()=={1: 'before', 2: 'after'} and [k for k,_ in n.damaged]==[2] and n.path.read_bytes().startswith(was)

def test_a_line_cut_short_does_not_swallow_the_next(tmp_path):
    n = Notes(tmp_path/'n.jsonl'); n.set(1, label='before')
    with open(n.path, 'ab') as f: f.write(b'{"feature": 2, "fie')
    with pytest.warns(UserWarning, match='line 2'): n.set(3, label='after')
    with pytest.warns(UserWarning, match='line 2'): m = Notes(n.path)
    assert m.labels()=={1: 'before', 3: 'after'} and len(m.damaged)==1

def test_search(tmp_path):
    n = Notes(tmp_path/'n.jsonl')
    n.set(9, note='Docstring, mostly'); n.set(4, label='in a DOCSTRING', note='docstring'); n.set(2, bookmark=True); n.set(7, label='straße')
    assert n.search('docstring')==[4, 9] and n.search('STRASSE')==[7] and n.search('nothing')==[] and n.search()==[2, 4, 7, 9]==n.features()

def test_hostile_text_survives(tmp_path):
    from toy_index import HOSTILE
    n = Notes(tmp_path/'n.jsonl')
    for i,h in enumerate(HOSTILE): n.set(i, label='x'+h+'x', note='\u2028'+h+'x')
    m = Notes(n.path)
    assert [m.label(i) for i in range(len(HOSTILE))]==['x'+h+'x' for h in HOSTILE] and m.damaged==[] and len(n.path.read_bytes().split(b'\n'))==2*len(HOSTILE)+1

def test_what_cannot_be_said(tmp_path):
    n = Notes(tmp_path/'n.jsonl')
    for i,kw,e,why in ((-1, dict(label='x'), ValueError, 'from 0'), (1.5, dict(label='x'), TypeError, 'whole number'), (True, dict(label='x'), TypeError, 'whole number'), (1, dict(label=3), TypeError, 'label must be str, got 3'), (1, dict(bookmark='yes'), TypeError, 'bookmark must be bool')):
        with pytest.raises(e, match=why): n.set(i, **kw)
    assert not n.path.exists()
    with pytest.raises(IsADirectoryError, match='the path of a file was expected'): Notes(tmp_path)
    import numpy as np
    n.set(np.int64(3), label='of an array'); assert n.label(np.int32(3))=='of an array'

def test_a_file_put_in_its_place_is_noticed(tmp_path):
    n = Notes(tmp_path/'n.jsonl'); n.set(1, label='old')
    other = Notes(tmp_path/'o.jsonl'); other.set(1, label='new')
    os.replace(other.path, n.path)
    assert n.changed() and n.label(1)=='new'
    n.path.unlink(); assert n.changed() and n.label(1)=='' and len(n)==0
