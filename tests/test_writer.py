"""data/writer.py: the same bytes however they were made, nothing half-written, statistics of what they should be of."""
import errno
import fcntl
import hashlib
import json
from functools import partial

import numpy as np
import pytest
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


def bad(i, what):
    """A toy episode; number 11 is wrong in the way `what` says."""
    e = toy(i)
    if i == 11 and what == 'raise': raise ValueError('boom')
    if i == 11 and what == 'nan': e['state'][0] = np.nan
    if i == 11 and what == 'float64': e['state'] = e['state'].astype(np.float64)
    if i == 11 and what == 'last': e['action'][-1] = 1
    if i == 11 and what == 'length': e['video'] = e['video'][:-1]
    if i >= 8 and what == 'shape': e['video'] = e['video'][:, :3]
    return e


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
        assert all(same(e, toy(i)) for e, i in zip(episodes, np.flatnonzero(want)))      # in order, whole, in one split
        spans = np.load(tmp_path / 'set' / split / 'episodes.npy')
        assert spans.dtype == np.int64 and spans[0, 0] == 0 and (spans[1:, 0] == spans[:-1, 1]).all()
        assert meta['counts'][split] == {'episodes': len(episodes), 'frames': len(keys['video'])}
        assert keys['video'].flags.c_contiguous
    assert meta['facts'] == {'input': 'video', 'height': 4, 'width': 5, 'channels': 3, 'action_dim': 2, 'state_dim': 2,
                             'fps': 5}
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
    """From now on `compute` fails after so many shards; returns the list of first episodes it was asked for."""
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


@pytest.mark.parametrize('other', [{'seed': 1, 'episode': partial(toy, seed=1)}, {'n': 20}, {'command': 'toy.py -x'}])
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


@pytest.mark.parametrize('what, message', [
    ('nan', 'episode 11: .*state holds a value that is not finite'), ('float64', 'episode 11: .*state is float64'),
    ('last', 'episode 11: .*last action leads nowhere'), ('length', 'episode 11: .*differ in length')])
def test_bad_episodes_are_refused(tmp_path, what, message):
    with pytest.raises(RuntimeError, match=message): make(tmp_path / 'set', partial(bad, what=what))
    assert not (tmp_path / 'set').exists()


def test_episodes_must_look_alike(tmp_path):
    with pytest.raises(AssertionError, match='video changes at episode 8'):
        make(tmp_path / 'set', partial(bad, what='shape'))
    assert not (tmp_path / 'set').exists()


def test_existing_folder_is_left_alone(tmp_path, capsys):
    files = make(tmp_path / 'set')
    for command, code in ('python toy.py', 0), ('python toy.py -x', 1):
        with pytest.raises(SystemExit) as e: make(tmp_path / 'set', command=command)
        assert e.value.code == code and 'delete it, or use --out' in capsys.readouterr().out
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    with pytest.raises(SystemExit) as e: make(tmp_path / 'mine')
    assert e.value.code == 1 and [p.name for p in (tmp_path / 'mine').iterdir()] == ['thesis.txt']
    assert {str(p.relative_to(tmp_path / 'set')) for p in (tmp_path / 'set').rglob('*.*')} == set(files)


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
    assert np.flatnonzero(writer.split(100, '3-3', 7)).tolist() == [3]


@pytest.mark.parametrize('val', ['85-100', '9-3', '1.0', '-0.1', 'all', '0-99', '1.2.3', ''])
def test_val_refused(val):
    with pytest.raises(SystemExit, match='--val'): writer.split(100, val, 0)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 300), share=st.floats(0.001, 0.5), seed=st.integers(0, 2**31))
def test_val_share(n, share, seed):
    mask = writer.split(n, f'{share:.6f}', seed)
    assert mask.sum() == max(round(round(share, 6) * n), 1) and (mask == writer.split(n, f'{share:.6f}', seed)).all()


def test_val_depends_on_seed():
    assert (writer.split(100, 0.1, 0) != writer.split(100, 0.1, 1)).any()


def test_statistics_are_of_real_training_rows(tmp_path):
    files = make(tmp_path / 'set', binary={'action': [1]}, val='15-20')      # toy's state grows with the episode number
    stats = json.loads(files['meta.json'])['stats']
    assert set(stats) == {'action', 'state', 'delta_state', 'delta_prev'}    # no q_index: nobody knows a - q
    rows = np.concatenate([toy(i)['action'][:-1, 0] for i in range(15)]).astype(np.float64)     # no padding
    state = np.concatenate([toy(i)['state'][:, 0] for i in range(15)]).astype(np.float64)
    for key, x in ('action', rows), ('state', state):
        want = {'mean': x.mean(), 'std': x.std(), 'min': x.min(), 'max': x.max(),
                'q01': np.quantile(x, 0.01), 'q99': np.quantile(x, 0.99)}
        assert {k: v[0] for k, v in stats[key].items()} == pytest.approx(want, rel=1e-12)
    assert stats['action']['mean'][1] == 0 and stats['action']['std'][1] == 1 and stats['action']['max'][1] == 1
    assert stats['state']['std'][1] == 1 and stats['state']['mean'][1] == pytest.approx(0.1, rel=1e-6)


def test_kept_last_actions_count(tmp_path):
    """Policy data has a real action at its last frame: padded=() stores it and measures it."""
    files = make(tmp_path / 'set', partial(bad, what='last'), n=12, padded=(), val=0)
    rows = np.concatenate([bad(i, 'last')['action'] for i in range(12)]).astype(np.float64)
    assert json.loads(files['meta.json'])['stats']['action']['mean'] == pytest.approx(rows.mean(0).tolist(), rel=1e-12)


def test_latent_facts(tmp_path):
    def latent(i): return {'latent': np.zeros((3, 4, 8, 9), np.float16)}
    facts = json.loads(make(tmp_path / 'set', latent, val=0)['meta.json'])['facts']
    assert facts == {'input': 'latent', 'channels': 4, 'height': 8, 'width': 9, 'fps': 5}


def test_flags():
    p = writer.flags('doc', out='data/toy_pixels', val='0.2')
    p.add_argument('--pixels', action='store_true')
    p.add_argument('--raw', action='store_true')
    args = p.parse_args(['--out=/else/where', '--workers=3', '--seed=4', '--pixels'])
    kw = writer.common(args, '/some/where/data/toy/prepare.py')
    assert kw == {'seed': 4, 'val': '0.2', 'workers': 3, 'limit': 0,
                  'command': 'python data/toy/prepare.py --seed=4 --val=0.2 --limit=0 --pixels'}
