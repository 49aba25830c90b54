"""data/writer.py: the same bytes however they were made, nothing half-written, statistics of real rows."""
import ast
import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, finish
from hypothesis import given, settings
from hypothesis import strategies as st

from data import writer

N = 21            # two whole shards and a short one


def toy(i, seed=0):
    """Episode i: 2..6 frames; state column 1 never changes, action column 1 is 0 or 1."""
    rng = np.random.default_rng([seed, i])
    T = 2 + i % 5
    action = np.stack([rng.normal(size=T), rng.integers(2, size=T)], 1).astype(np.float32)
    action[-1] = 0
    return {'video': rng.integers(0, 256, (T, 4, 5, 3), np.uint8), 'action': action,
            'state': np.stack([rng.normal(i, 1, T), np.full(T, 0.1)], 1).astype(np.float32)}


def change(key, how):
    """A way to spoil an episode: one array replaced by how(array)."""
    return lambda e: e | {key: how(e[key])}


BAD = {         # what is wrong with episode 11, how it comes about, and what the line says
    'nan': (change('state', lambda x: x * np.float32('nan')), 'state holds a value that is not finite'),
    'double': (change('state', lambda x: x.astype(float)), 'state is float64; want float32'),
    'integers': (change('action', lambda x: x.astype(int)), 'action is int64; want float32'),
    'floats': (change('video', lambda x: (x / 255).astype(np.float32)),
               'video is float32; want uint8; a float picture in 0..1 is np.rint(255 * x).astype(np.uint8)'),
    'grey': (change('video', lambda x: x[..., 0]), 'video has the shape (3, 4, 5); want (T, H, W, C), where'),
    'picture': (change('video', lambda x: x[0]), 'video has the shape (4, 5, 3); want (T, H, W, C)'),
    'planes': (change('video', lambda x: x.transpose(0, 3, 1, 2)),
               'video has the shape (3, 3, 4, 5); want (T, H, W, C), colours last'),
    'flat': (change('action', lambda x: x[:, 0]), 'action has the shape (3,); want (T, A)'),
    'deep': (change('state', lambda x: x[None]), 'state has the shape (1, 3, 2); want (T, S)'),
    'last': (change('action', lambda x: x + 1),
             'the last action leads nowhere and must be zero, got [1.0, 1.0]'),
    'length': (change('video', lambda x: x[:-1]),
               "keys differ in length: {'video': 2, 'action': 3, 'state': 3}"),
    'empty': (lambda e: {k: v[:0] for k, v in e.items()}, 'video is empty'),
    'nothing': (lambda e: {}, 'it holds nothing'),
    'name': (lambda e: e | {'frames': e['video']}, "no model reads 'frames'; the keys are video, latent,"),
    'path': (lambda e: e | {'image.a/b': e['video']}, "no model reads 'image.a/b'"),
    'camera': (lambda e: e | {'image.top': e['video']},
               'image.top has the shape (3, 4, 5, 3); want (T, 3, H, W)')}
MIXED = {       # wrong only beside the first episode
    'size': (change('video', lambda x: x[:, :3]), "it has [('video', 'uint8 [3, 5, 3]')], the first episode"),
    'width': (change('state', lambda x: x[:, :1]), "it has [('state', 'float32 [1]')], the first episode"),
    'more': (lambda e: e | {'pose': e['state']}, "it has [('pose', 'float32 [2]')], the first episode []"),
    'less': (lambda e: {k: e[k] for k in ('video', 'action')}, "it has [], the first episode [('state'")}


def bad(i, what, at=11):
    """A toy episode; number `at` (11 has 3 frames) is wrong in the way `what` says."""
    e = toy(i)
    if i == at and what == 'raise': raise ValueError('boom')
    return (BAD | MIXED)[what][0](e) if i == at else e


def last(i):
    """A toy episode whose last action was recorded too."""
    return change('action', lambda x: x + 1)(toy(i))


def make(out, episode=toy, n=N, **over):
    """`write` with everything given; returns {relative path: bytes} of the folder."""
    kw = {'seed': 0, 'val': 0.2, 'workers': 1, 'command': 'python toy.py', 'info': {'fps': 5, 'units': {}}}
    writer.write(out, episode, n, **{**kw, **over})
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()}


def load(out, split):
    """{key: array} and the list of episodes, each {key: array}, of one split."""
    spans = np.load(out / split / 'episodes.npy')
    keys = {p.stem: np.load(p) for p in (out / split).glob('*.npy') if p.stem != 'episodes'}
    return keys, [{k: v[a:b] for k, v in keys.items()} for a, b in spans]


def same(a, b): return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_layout_and_meta(tmp_path):
    files = make(tmp_path / 'set', info={'fps': 5, 'source': 'toy', 'action_names': ['a', 'b']})
    meta = json.loads(files['meta.json'])
    mask = writer.split(N, 0.2, 0)
    for split, want in ('train', ~mask), ('val', mask):
        keys, episodes = load(tmp_path / 'set', split)
        assert len(episodes) == want.sum()
        # in order, whole, in one split
        assert all(same(e, toy(i)) for e, i in zip(episodes, np.flatnonzero(want)))
        spans = np.load(tmp_path / 'set' / split / 'episodes.npy')
        assert spans.dtype == np.int64 and spans[0, 0] == 0 and (spans[1:, 0] == spans[:-1, 1]).all()
        assert meta['counts'][split] == {'episodes': len(episodes), 'frames': len(keys['video'])}
        assert keys['video'].flags.c_contiguous
    assert meta['facts'] == {'input': 'video', 'height': 4, 'width': 5, 'channels': 3, 'action_dim': 2,
                             'state_dim': 2, 'fps': 5}
    assert meta['keys']['video'] == {'shape': [4, 5, 3], 'dtype': 'uint8'}
    assert meta['source'] == 'toy' and meta['action_names'] == ['a', 'b'] and meta['fps'] == 5
    assert set(meta['files']) == set(files) - {'meta.json'}
    for name, entry in meta['files'].items():
        x = np.load(tmp_path / 'set' / name)
        assert entry == {'shape': list(x.shape), 'dtype': str(x.dtype), 'bytes': len(files[name]),
                         'sha256': hashlib.sha256(files[name]).hexdigest()}
    assert not (tmp_path / 'set.tmp').exists() and str(tmp_path) not in files['meta.json'].decode()


def test_same_bytes_for_two_workers(tmp_path):
    assert make(tmp_path / 'one', workers=1) == make(tmp_path / 'two', workers=2)


def stop_after(monkeypatch, shards, error=KeyboardInterrupt):
    """From now on `compute` fails after so many shards; returns the first episodes it was asked for."""
    asked, compute = [], writer.compute

    def limited(episode, first, *rest):
        if len(asked) == shards: raise error
        asked.append(first)
        return compute(episode, first, *rest)
    monkeypatch.setattr(writer, 'compute', limited)
    return asked


def test_resume_after_interrupt(tmp_path, monkeypatch):
    out, want = tmp_path / 'set', make(tmp_path / 'want')
    with monkeypatch.context() as m:
        stop_after(m, 2)
        with pytest.raises(SystemExit, match='stopped.*same command goes on'): make(out)
    assert not out.exists()
    (shards,) = {p.parent for p in (tmp_path / 'set.tmp').rglob('*.npz')}
    (shards / '0000016.part').write_bytes(b'half a shard')
    (tmp_path / 'set.tmp' / 'whole' / 'train').mkdir(parents=True)      # as after a kill while assembling
    asked = stop_after(monkeypatch, 99)
    assert make(out) == want
    assert asked == [16]                   # the first two shards were not made again


@pytest.mark.parametrize('most, shards', [(1, range(21)), (400, range(0, 21, 2)), (10**6, (0, 8, 16))])
def test_shards_are_bounded_in_bytes(tmp_path, monkeypatch, most, shards):
    """Episode 0 has 2 frames, 76 bytes each. Large ones go alone; nobody sees it in what comes out."""
    want = make(tmp_path / 'want')
    monkeypatch.setattr(writer, 'MOST', most)
    with monkeypatch.context() as m:
        begun = stop_after(m, 2)
        with pytest.raises(SystemExit, match='stopped'): make(tmp_path / 'set')
    with monkeypatch.context() as m:
        rest = stop_after(m, 99)
        assert make(tmp_path / 'set') == want
    assert begun + rest == [*shards]
    assert make(tmp_path / 'two', workers=2) == want


def test_the_first_shard_may_come_last(tmp_path, monkeypatch):
    """Workers finish in any order: without it the first episode says again how many there are in one."""
    want = make(tmp_path / 'want')
    monkeypatch.setattr(writer, 'MOST', 400)
    with monkeypatch.context() as m:
        stop_after(m, 3)
        with pytest.raises(SystemExit): make(tmp_path / 'set')
    next((tmp_path / 'set.tmp').rglob('0000000.npz')).unlink()
    asked = stop_after(monkeypatch, 99)
    assert make(tmp_path / 'set') == want and asked == [0, *range(6, 21, 2)]


@pytest.mark.parametrize('other', [{'seed': 1, 'episode': partial(toy, seed=1)}, {'n': 20},
                                   {'command': 'toy.py -x'}, {'sources': [('a.parquet', 7, 8)]}])
def test_other_settings_do_not_reuse_shards(tmp_path, monkeypatch, other):
    want = make(tmp_path / 'want', **other)
    with monkeypatch.context() as m:
        stop_after(m, 2)
        with pytest.raises(SystemExit): make(tmp_path / 'set')
    asked = stop_after(monkeypatch, 99)
    assert make(tmp_path / 'set', **other) == want and asked == [0, 8, 16]


def test_disk_full(tmp_path, monkeypatch):
    want, save = make(tmp_path / 'want'), writer.save

    def full(path, *rest):
        if path.name == 'state.npy': raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        return save(path, *rest)
    with monkeypatch.context() as m:
        m.setattr(writer, 'save', full)
        with pytest.raises(SystemExit, match='No space left on device'): make(tmp_path / 'set')
    assert not (tmp_path / 'set').exists()
    assert make(tmp_path / 'set') == want


def test_failing_worker_names_its_episode(tmp_path):
    with pytest.raises(RuntimeError, match='episode 11: ValueError: boom') as e:
        make(tmp_path / 'set', partial(bad, what='raise'), workers=2)
    assert 'in bad' in str(e.value.__cause__)          # the traceback of the worker came along
    assert not (tmp_path / 'set').exists()


def refused(tmp_path, words, *, code=1, **kw):
    """`make` ends in one line, which says `words`, and nothing is there afterwards but what was before."""
    before = {p for p in tmp_path.rglob('*') if 'set.tmp' not in str(p)}
    with pytest.raises(SystemExit) as stop: make(**{'out': tmp_path / 'set'} | kw)
    assert words in str(stop.value) and '\n' not in str(stop.value), stop.value
    assert before == {p for p in tmp_path.rglob('*') if 'set.tmp' not in str(p)}


@pytest.mark.parametrize('what', BAD | MIXED)
def test_bad_episodes_are_refused(tmp_path, what):
    refused(tmp_path, f'episode 11: {(BAD | MIXED)[what][1]}', episode=partial(bad, what=what))


@pytest.mark.parametrize('what', BAD)
def test_the_first_episode_is_looked_at_before_the_work(tmp_path, monkeypatch, what):
    monkeypatch.setattr(writer, 'run', lambda *_: pytest.fail('the work has begun'))
    words = BAD[what][1].replace('3, ', '2, ', 1).replace(': 3', ': 2').replace("'video': 2", "'video': 1")
    with pytest.raises(SystemExit) as stop: make(tmp_path / 'set', partial(bad, what=what, at=0))
    assert str(stop.value).startswith('episode 0: ') and words.split(' (')[0].split(':')[0] in str(stop.value)


def test_later_episodes_must_look_like_those_kept(tmp_path, monkeypatch):
    """Also if the first episode was made in the run before."""
    with monkeypatch.context() as m:
        stop_after(m, 1)
        with pytest.raises(SystemExit, match='stopped'): make(tmp_path / 'set', partial(bad, what='size'))
    refused(tmp_path, 'episode 11: it has', episode=partial(bad, what='size'))


@pytest.mark.parametrize('info, words', [
    ({}, 'info: fps = None'), ({'fps': 0}, 'info: fps = 0'),
    ({'fps': float('nan')}, 'info: Out of range float'),
    ({'fps': np.float32(3)}, 'info: Object of type float32 is not JSON serializable; want text, plain'),
    ({'fps': 5, 'q_index': [0]}, 'info: q_index = [0]: want 2 entries (one per action) below state_dim = 2'),
    ({'fps': 5, 'q_index': [0, 2]}, 'info: q_index = [0, 2]'),
    ({'fps': 5, 'q_index': 0}, 'info: q_index = 0'),
    ({'fps': 5, 'groups': {'a': {'dims': [2], 'unit': ''}}}, 'info: groups: dims of a = [2]'),
    ({'fps': 5, 'groups': {'a': {'dims': [0]}}}, 'info: groups: a has no unit'),
    ({'fps': 5, 'groups': {'a': {'dims': range(2), 'unit': 'm'}}}, 'info: Object of type range'),
    ({'fps': 5, 'action_arrows': [[1, 0]]}, 'info: action_arrows = [[1, 0]]')])
def test_info_is_checked_before_the_work(tmp_path, monkeypatch, info, words):
    monkeypatch.setattr(writer, 'run', lambda *_: pytest.fail('the work has begun'))
    refused(tmp_path, words, info=info)


def told():
    """The keys that prepare.py tell in `info`: of dicts called info or about, or that about() returns."""
    keys = set()
    for path in [*Path(ROOT).glob('data/*/prepare.py'), Path(ROOT, 'data/minihack/boulders.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ('info', 'about')
            if named or isinstance(node, ast.Return) and path.stem == 'boulders':
                if isinstance(node.value, ast.Dict):
                    keys |= {key.value for key in node.value.keys if key is not None}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith('about['):
                keys.add(node.targets[0].slice.value)
    return keys


def test_the_docstring_lists_every_key_of_info():
    words = set(re.findall(r'\w+', writer.__doc__))
    assert {'fps', 'q_index', 'tiles', 'clips', 'groups', 'contact'} <= told()
    assert told() - words - {'video', 'action'} == set()           # boulders returns an episode, too


@pytest.mark.parametrize('flags, words', [
    ({'seed': -1}, '--seed=-1: want a number from 0'), ({'seed': 2**63}, '--seed=9223372036854775808: want'),
    ({'workers': 0}, '--workers=0: want 1 or more'), ({'workers': -2}, '--workers=-2: want 1'),
    ({'limit': -1}, '--limit=-1: want'), ({'n': 0}, '--episodes=0: want 1'),
    ({'n': -3}, '--episodes=-3: want 1'),
    ({'val': 'most'}, '--val=most: want'), ({'val': '20-21'}, '--val=20-21: episodes are 0-20'),
    ({'n': 1}, '--val=0.2 of 1 episodes leaves none'), ({'limit': 1}, '--val=0.2 of 1 episodes leaves none')])
def test_bad_flags_are_refused(tmp_path, flags, words):
    refused(tmp_path, words, **flags)
    assert not list(tmp_path.iterdir())


def test_bad_places_are_refused(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'clips' / 'prepare.py').write_text('')
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd' / 'meta.json').write_bytes(b'\xff\x00')
    for name, words in (('file/set', 'Not a directory; mend that or use --out'),
                        ('file', 'is there already, and no data set that we made'),
                        ('link', 'is there already, and no data set that we made'),
                        ('odd', 'is there already, and no data set that we made'),
                        ('clips', 'this folder holds code (prepare.py), a data folder never does; choose '
                                  'another name, like data/clips_<variant>'),
                        ('..', 'want the name of a new folder')):
        refused(tmp_path, words, out=tmp_path / name)
    for name in '', '/', '.':
        with pytest.raises(SystemExit, match='want the name of a new folder'): make(Path(name))
    code = Path(writer.__file__).parent / 'wall'
    with pytest.raises(SystemExit, match='this folder holds code') as stop: make(code)
    assert 'delete' not in str(stop.value)

    def deny(path, *_, **__): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(Path, 'mkdir', deny)               # root may write everywhere: we say no instead
    refused(tmp_path, 'Permission denied; mend that or use --out')


def test_existing_folder_is_left_alone(tmp_path, capsys):
    files = make(tmp_path / 'set')
    for command, code in ('python toy.py', 0), ('python toy.py -x', 1):
        with pytest.raises(SystemExit) as e: make(tmp_path / 'set', command=command)
        assert e.value.code == code and 'delete it, or use --out' in capsys.readouterr().out
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    refused(tmp_path, 'is there already, and no data set that we made; choose another', out=tmp_path / 'mine')
    assert {str(p.relative_to(tmp_path / 'set')) for p in (tmp_path / 'set').rglob('*.*')} == set(files)


# ---- interruptions ----

@pytest.mark.parametrize('damage', [
    lambda b: b'', lambda b: b[:len(b) // 2], lambda b: b[:-30], lambda b: bytes(len(b)),
    lambda b: b[:400] + bytes([b[400] ^ 1]) + b[401:], lambda b: b'PK' + b[4:]],
    ids=['empty', 'half', 'tail', 'zeros', 'bit', 'head'])
def test_damaged_shards_are_made_again(tmp_path, monkeypatch, capsys, damage):
    want = make(tmp_path / 'want')
    with monkeypatch.context() as m:
        stop_after(m, 2)
        with pytest.raises(SystemExit, match='stopped'): make(tmp_path / 'set')
    shard, = (tmp_path / 'set.tmp').rglob('0000008.npz')
    shard.write_bytes(damage(shard.read_bytes()))
    asked = stop_after(monkeypatch, 99)
    assert make(tmp_path / 'set') == want and asked == [8, 16]
    assert f'{shard} is damaged; its episodes are made again' in capsys.readouterr().err


def test_shards_are_on_the_disk_before_they_have_a_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda f: (done.append('fsync'), fsync(f)))
    monkeypatch.setattr(os, 'replace', lambda *paths: (done.append('name'), replace(*paths)))
    make(tmp_path / 'set')
    assert done == ['fsync', 'name'] * 3


def killed(i, number):
    if i == 9: os.kill(os.getpid(), number)
    return toy(i)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_one_line(tmp_path, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    refused(tmp_path, 'stopped; ', episode=partial(killed, number=number))
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [p.name for p in (tmp_path / 'set.tmp').rglob('*.npz')] == ['0000000.npz']


SLOW = """
import sys, time
sys.path.insert(0, '.')
import numpy as np
from data.writer import write
def episode(i):
    if i > 9: time.sleep(60)
    return {'state': np.zeros((2, 1), np.float32)}
if __name__ == '__main__':
    write(sys.argv[1], episode, 32, seed=0, val=0, workers=3, command='x', info={'fps': 1})
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_workers_end_within_two_seconds(tmp_path, number):
    """Ctrl-C reaches the whole process group, SIGTERM the parent. One line, and what is whole is kept."""
    (tmp_path / 'slow.py').write_text(SLOW)
    process = subprocess.Popen([sys.executable, tmp_path / 'slow.py', tmp_path / 'set'], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(600):
        if list(tmp_path.rglob('*.npz')): break
        time.sleep(0.1)
    before = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = finish(process, code=1)
    assert time.monotonic() - before < 2
    assert err.startswith('stopped; ') and err.count('\n') == 1, err
    assert [p.name for p in tmp_path.rglob('*.npz')] == ['0000000.npz'] and not (tmp_path / 'set').exists()


def test_others_may_read_the_files(tmp_path):
    before = os.umask(0o022)
    try: make(tmp_path / 'set')
    finally: os.umask(before)
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in (tmp_path / 'set').rglob('*'))


def test_two_runs_do_not_share_a_folder(tmp_path):
    (tmp_path / 'set.tmp').mkdir()
    with open(tmp_path / 'set.tmp' / 'lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match='another run is writing here'): make(tmp_path / 'set')
    make(tmp_path / 'set')


def test_limit(tmp_path):
    make(tmp_path / 'set', limit=5, val='1-1')
    assert all(same(e, toy(i)) for e, i in zip(load(tmp_path / 'set', 'train')[1], [0, 2, 3, 4], strict=True))
    make(tmp_path / 'more', limit=500, val=0)
    assert len(load(tmp_path / 'more', 'train')[1]) == N and not (tmp_path / 'more' / 'val').exists()


def test_val_range():
    assert np.flatnonzero(writer.split(100, '85-99', 0)).tolist() == list(range(85, 100))
    for val in '3-3', '3', 3: assert np.flatnonzero(writer.split(100, val, 7)).tolist() == [3]
    assert not writer.split(100, '0', 7).any()               # a share of nothing, not the first episode


@pytest.mark.parametrize('val', ['85-100', '100', '9-3', '1.0', '-0.1', 'all', '0-99', '1.2.3', ''])
def test_val_refused(val):
    with pytest.raises(SystemExit, match='--val'): writer.split(100, val, 0)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 300), share=st.floats(0.001, 0.5), seed=st.integers(0, 2**31))
def test_val_share(n, share, seed):
    mask = writer.split(n, f'{share:.6f}', seed)
    assert mask.sum() == max(round(round(share, 6) * n), 1)
    assert (mask == writer.split(n, f'{share:.6f}', seed)).all()


def test_val_depends_on_seed():
    assert (writer.split(100, 0.1, 0) != writer.split(100, 0.1, 1)).any()


def test_statistics_are_of_real_training_rows(tmp_path):
    # toy's state grows with the episode number
    files = make(tmp_path / 'set', binary={'action': [1]}, val='15-20')
    stats = json.loads(files['meta.json'])['stats']
    assert set(stats) == {'action', 'state', 'delta_state', 'delta_prev'}    # no q_index: nobody knows a - q
    rows = np.concatenate([toy(i)['action'][:-1, 0] for i in range(15)]).astype(np.float64)     # no padding
    state = np.concatenate([toy(i)['state'][:, 0] for i in range(15)]).astype(np.float64)
    for key, x in ('action', rows), ('state', state):
        want = {'mean': x.mean(), 'std': x.std(), 'min': x.min(), 'max': x.max(),
                'q01': np.quantile(x, 0.01), 'q99': np.quantile(x, 0.99)}
        assert {k: v[0] for k, v in stats[key].items()} == pytest.approx(want, rel=1e-12)
    assert [stats['action'][k][1] for k in ('mean', 'std', 'max')] == [0, 1, 1]
    assert stats['state']['std'][1] == 1 and stats['state']['mean'][1] == pytest.approx(0.1, rel=1e-6)


def test_kept_last_actions_count(tmp_path):
    """Policy data has a real action at its last frame: padded=() stores it and measures it."""
    meta = json.loads(make(tmp_path / 'set', last, n=12, padded=(), val=0)['meta.json'])
    rows = np.concatenate([last(i)['action'] for i in range(12)]).astype(np.float64)
    assert meta['stats']['action']['mean'] == pytest.approx(rows.mean(0).tolist(), rel=1e-12)
    assert meta['padded'] == []
    assert json.loads(make(tmp_path / 'other')['meta.json'])['padded'] == ['action']


def test_nothing_to_measure(tmp_path):
    """Episodes of one frame have no action that is real."""
    refused(tmp_path, 'no action of the train split is real',
            episode=lambda i: {k: v[-1:] for k, v in toy(i).items()})


def test_latent_facts(tmp_path):
    def latent(i): return {'latent': np.zeros((3, 4, 8, 9), np.float16)}
    facts = json.loads(make(tmp_path / 'set', latent, val=0)['meta.json'])['facts']
    assert facts == {'input': 'latent', 'channels': 4, 'height': 8, 'width': 9, 'fps': 5}


def test_where_the_source_lay_is_nobodys_business():
    p = writer.flags('doc', out='data/toy_pixels')
    p.add_argument('--src')
    args = p.parse_args(['--src=/home/me/sets/toy/'])
    assert writer.common(args, 'prepare.py')['command'].endswith(' --src=toy')


def test_at_least(capsys):
    p = writer.flags('doc', out='data/toy_pixels')
    p.add_argument('--frames', type=int)
    writer.at_least(p.parse_args(['--frames=2']), frames=2)
    with pytest.raises(SystemExit, match=r'^--frames=1: want 2 or more$'):
        writer.at_least(p.parse_args(['--frames=1']), frames=2)


def test_flags():
    p = writer.flags('doc', out='data/toy_pixels', val='0.2')
    p.add_argument('--pixels', action='store_true')
    p.add_argument('--raw', action='store_true')
    args = p.parse_args(['--out=/else/where', '--workers=3', '--seed=4', '--pixels'])
    kw = writer.common(args, '/some/where/data/toy/prepare.py')
    assert kw == {'seed': 4, 'val': '0.2', 'workers': 3, 'limit': 0,
                  'command': 'python data/toy/prepare.py --seed=4 --val=0.2 --limit=0 --pixels'}
