"""data/lerobot: v2 and v3 trees land number by number, the real set too; what is wrong is one line."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, one_line, script

from data import writer
from data.lerobot import prepare as lerobot
from data.lerobot import reader

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')

PREPARE = 'data/lerobot/prepare.py'
G1 = os.path.join(SHARED, 'data', 'g1_lerobot')
LENGTHS = 5, 3, 9, 4, 6, 2
rng = np.random.default_rng(0)
EPISODES = [(rng.normal(size=(T, 4)).astype(np.float32), rng.normal(size=(T, 3)).astype(np.float32))
            for T in LENGTHS]
V2 = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
V3 = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
FILM2 = 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
FILM3 = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
TOP = 'observation.images.top'


def rows(i, state, action, kind='fixed'):
    """Episode i as a table; its columns of numbers as fixed-size lists, plain lists or lists of doubles."""
    value = pa.float64() if kind == 'double' else pa.float32()
    T = len(state)

    def column(x):
        return pa.array(x.tolist(), pa.list_(value, x.shape[1]) if kind == 'fixed' else pa.list_(value))
    return pa.table({'observation.state': column(state), 'action': column(action),
                     'timestamp': pa.array(np.arange(T, dtype=np.float32)),
                     'frame_index': pa.array(np.arange(T)),
                     'episode_index': pa.array(np.full(T, i)), 'reward': pa.array(state[:, 0])})


def save(table, path, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **kw)


def inform(root, **change):
    """Write meta/info.json, or change entries of the one that is there."""
    path = root / 'meta' / 'info.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    info = json.loads(path.read_text()) if path.exists() else {
        'robot_type': 'toy', 'total_episodes': len(EPISODES), 'fps': 20, 'chunks_size': 4, 'features': {
            'observation.state': {'dtype': 'float32', 'shape': [4], 'names': {'motors': [*'abcd']}},
            'action': {'dtype': 'float32', 'shape': [3], 'names': [['d', 'a', 'b']]},
            'reward': {'dtype': 'float32', 'shape': [1], 'names': None},
            'observation.images.top': {'dtype': 'video', 'shape': [8, 8, 3]}}}
    path.write_text(json.dumps({k: v for k, v in (info | change).items() if v is not None}))


def v2(root, kind='fixed'):
    inform(root, codebase_version='v2.1', data_path=V2)
    for i, e in enumerate(EPISODES):
        save(rows(i, *e, kind), root / V2.format(episode_chunk=i // 4, episode_index=i))
    lines = [json.dumps({'episode_index': i, 'tasks': ['x'], 'length': T}) for i, T in enumerate(LENGTHS)]
    (root / 'meta' / 'episodes.jsonl').write_text('\n'.join(lines) + '\n')
    return root


def v3(root, kind='fixed'):
    """Episodes 2, 0, 4 in the first file, 5, 1, 3 in the second; frames shuffled, three to a row group."""
    inform(root, codebase_version='v3.0', data_path=V3)
    for k, members in enumerate([(2, 0, 4), (5, 1, 3)]):
        table = pa.concat_tables([rows(i, *EPISODES[i], kind) for i in members])
        table = table.take(np.random.default_rng(k).permutation(len(table)))
        save(table, root / V3.format(chunk_index=0, file_index=k), row_group_size=3)
        save(pa.table({'episode_index': members, 'length': [LENGTHS[i] for i in members],
                       'data/chunk_index': [0] * 3, 'data/file_index': [k] * 3}),
             root / 'meta' / 'episodes' / 'chunk-000' / f'file-{k:03d}.parquet')
    return root


def prepare(root, out, *flags, **kw):
    reader.layout.cache_clear()                                # a process of its own would know nothing yet
    return script(PREPARE, f'--src={root}', f'--out={out}', '--workers=1', *flags, **kw)


def arrays(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*.npy')}


def meta_of(out): return json.loads((out / 'meta.json').read_text())


@pytest.mark.parametrize('make', [v2, v3])
@pytest.mark.parametrize('kind', ['fixed', 'plain', 'double'])
def test_values_land_exactly(tmp_path, make, kind):
    printed, _ = prepare(make(tmp_path / 'src', kind), tmp_path / 'out', '--val=1-2')
    assert 'q_index: by name' in printed
    for split, members in ('train', (0, 3, 4, 5)), ('val', (1, 2)):
        for k, key in enumerate(('state', 'action')):
            x = np.load(tmp_path / 'out' / split / f'{key}.npy')
            want = np.concatenate([EPISODES[i][k] for i in members])
            assert x.dtype == np.float32 and np.array_equal(x, want)
        ends = np.cumsum([LENGTHS[i] for i in members])
        assert np.array_equal(np.load(tmp_path / 'out' / split / 'episodes.npy')[:, 1], ends)


def test_both_layouts_give_the_same_bytes(tmp_path):
    for make in v2, v3:
        prepare(make(tmp_path / make.__name__), tmp_path / f'{make.__name__}_out', '--val=0.3')
    assert len(arrays(tmp_path / 'v2_out')) == 6
    assert arrays(tmp_path / 'v2_out') == arrays(tmp_path / 'v3_out')
    inform(tmp_path / 'v2', codebase_version='v2.0')
    prepare(tmp_path / 'v2', tmp_path / 'v20_out', '--val=0.3')
    assert arrays(tmp_path / 'v2_out') == arrays(tmp_path / 'v20_out')


def test_workers_and_limit(tmp_path):
    """One process or two, the same bytes. A worker takes 8 episodes at a time, so this set is longer."""
    src = v2(tmp_path / 'src')
    lines = []
    for i in range(20):
        e = EPISODES[i % 6]
        save(rows(i, *e), src / V2.format(episode_chunk=i // 4, episode_index=i))
        lines.append(json.dumps({'episode_index': i, 'length': len(e[0])}))
    (src / 'meta' / 'episodes.jsonl').write_text('\n'.join(lines))
    inform(src, total_episodes=20)
    command = [sys.executable, PREPARE, f'--src={src}', '--val=3-5', '--workers=2']
    two = subprocess.run([*command, f'--out={tmp_path}/two'], cwd=ROOT, text=True, capture_output=True)
    assert two.returncode == 0, two.stderr
    prepare(src, tmp_path / 'one', '--val=3-5')
    for same in arrays, meta_of: assert same(tmp_path / 'one') == same(tmp_path / 'two')
    (src / V2.format(episode_chunk=4, episode_index=17)).unlink()
    broken = subprocess.run([*command, f'--out={tmp_path}/three'], cwd=ROOT, text=True, capture_output=True)
    assert broken.returncode == 1 and 'episode_000017.parquet is missing' in broken.stderr
    assert 'Traceback' not in broken.stderr                     # out of a worker, too, it is one line
    prepare(src, tmp_path / 'few', '--val=3-5', '--limit=12')   # what --limit leaves out need not be there
    assert meta_of(tmp_path / 'few')['counts']['train']['episodes'] == 9


def test_meta(tmp_path):
    flags = '--val=0-0', '--group', 'arm=0-1,3:rad', '--group', 'hand=2'
    prepare(v2(tmp_path / 'src'), tmp_path / 'out', *flags)
    meta = meta_of(tmp_path / 'out')
    assert meta['q_index'] == [3, 0, 1] == meta['facts']['q_index']
    assert (meta['facts']['state_dim'], meta['facts']['action_dim'], meta['fps']) == (4, 3, 20)
    assert meta['groups'] == {'arm': {'dims': [0, 1, 3], 'unit': 'rad'}, 'hand': {'dims': [2], 'unit': ''}}
    assert (meta['state_names'], meta['action_names']) == (['a', 'b', 'c', 'd'], ['d', 'a', 'b'])
    assert meta['source'] == 'src: toy, LeRobot v2.1' and meta['units']['state'] == 'arm rad'
    assert '--group=arm=0-1,3:rad --group=hand=2' in meta['command']
    everything = np.concatenate([a for _, a in EPISODES[1:]]).astype(np.float64)
    assert np.allclose(meta['stats']['action']['mean'], everything.mean(0), rtol=1e-12)    # the last one too
    change = np.concatenate([a - s[:, [3, 0, 1]] for s, a in EPISODES[1:]]).astype(np.float64)
    assert np.allclose(meta['stats']['delta_action']['mean'], change.mean(0), atol=1e-6)


def test_columns_and_q_index(tmp_path):
    src = v2(tmp_path / 'src')
    prepare(src, tmp_path / 'a', '--state=reward', '--q_index=0,0,0', '--val=0')     # a plain float: width 1
    assert np.array_equal(np.load(tmp_path / 'a' / 'train' / 'state.npy')[:5, 0], EPISODES[0][0][:, 0])
    assert meta_of(tmp_path / 'a')['q_index'] == [0, 0, 0]
    assert meta_of(tmp_path / 'a')['groups'] == {'state': {'dims': [0], 'unit': ''}}
    printed, _ = prepare(src, tmp_path / 'b', '--state=action', '--action=observation.state')
    assert 'delta actions are not available' in printed                    # no state has the name c
    prepare(src, tmp_path / 'c', '--q_index=none')
    for meta in meta_of(tmp_path / 'b'), meta_of(tmp_path / 'c'):
        assert 'q_index' not in meta
        assert 'delta_state' in meta['stats'] and 'delta_action' not in meta['stats']


def test_relative_actions(tmp_path):
    src = v2(tmp_path / 'src')
    prepare(src, tmp_path / 'a', '--relative', '--val=0')
    wanted = np.concatenate([a - s[:, [3, 0, 1]] for s, a in EPISODES])          # d, a, b of a, b, c, d
    assert np.array_equal(np.load(tmp_path / 'a' / 'train' / 'action.npy'), wanted)
    meta = meta_of(tmp_path / 'a')
    assert 'q_index' not in meta and 'delta_action' not in meta['stats'] and '--relative' in meta['command']
    _, err = prepare(src, tmp_path / 'b', '--relative', '--q_index=none', code=1)
    assert '--relative: which state does each action command?' in err and not (tmp_path / 'b').exists()


@pytest.mark.parametrize('names, found', [
    (['a', 'b'], ['a', 'b']), ([['a', 'b']], ['a', 'b']), ({'motors': ['a', 'b']}, ['a', 'b']),
    ({'left': ['a'], 'right': ['b']}, ['a', 'b']), (None, []), (['a'], []), ({'a': 0, 'b': 1}, [])])
def test_names(names, found): assert lerobot.entries(names, 2) == found


def test_indices():
    assert lerobot.indices('0-2,5', 6, '') == [0, 1, 2, 5] and lerobot.indices('3', 4, '') == [3]
    for text in '', 'a', '1-', '4', '2-1', '-1':
        with pytest.raises(SystemExit): lerobot.indices(text, 4, '--x')


# ---- what is wrong takes one line ----

FIRST, THIRD = V2.format(episode_chunk=0, episode_index=0), V2.format(episode_chunk=0, episode_index=2)


def table(i, state=None, action=None, frames=None):
    """Episode i with something else in it."""
    t = rows(i, EPISODES[i][0] if state is None else state, EPISODES[i][1] if action is None else action)
    if frames is None: return t
    return t.set_column(t.column_names.index('frame_index'), 'frame_index', pa.array(frames))


def spoil(i, what):
    """A copy of state or action i with one NaN."""
    x = EPISODES[i][what].copy()
    x[1, 0] = np.nan
    return x


def episodes(src, numbers):
    lines = [json.dumps({'episode_index': i, 'length': LENGTHS[i % 6]}) for i in numbers]
    (src / 'meta' / 'episodes.jsonl').write_text('\n'.join(lines))


def cut(path): path.write_bytes(path.read_bytes()[:-20])


def ragged(src):
    t = table(2)
    state = pa.array([[1.0]] + [[1.0, 2.0]] * 8, pa.list_(pa.float32()))
    save(t.set_column(0, 'observation.state', state), src / THIRD)


BAD = {     # name: (what is done to the good tree, flags, what the line says)
    'folder': (lambda s: (s / 'meta' / 'info.json').unlink(), [], 'info.json: No such file'),
    'json': (lambda s: (s / 'meta' / 'info.json').write_text('{"a'), [], 'info.json is damaged'),
    'version': (lambda s: inform(s, codebase_version='v1.6'), [],
                'codebase_version is v1.6; we read v2.0, v2.1, v3.0'),
    'fps': (lambda s: inform(s, fps=None), [], "lacks 'fps or features'"),
    'entry': (lambda s: inform(s, data_path=None), [], "lacks 'data_path'"),
    'list': (lambda s: (s / 'meta' / 'episodes.jsonl').unlink(), [], 'episodes.jsonl: No such file'),
    'missing': (lambda s: (s / THIRD).unlink(), [], 'episode_000002.parquet is missing'),
    'cut': (lambda s: cut(s / THIRD), [], 'episode_000002.parquet cannot be read'),
    'nothing': (lambda s: (s / THIRD).write_bytes(b''), [], 'episode_000002.parquet cannot be read'),
    'column': (lambda s: 0, ['--state=stat'], 'no column stat; there are observation.state, action, reward'),
    'camera': (lambda s: 0, ['--state=observation.images.top'],
               'no column observation.images.top; there are'),
    'file': (lambda s: save(table(2).drop(['action']), s / THIRD), [],
             'episode_000002.parquet has no column action; there are observation.state, timestamp'),
    'nan': (lambda s: save(table(2, spoil(2, 0)), s / THIRD), [],
            'state of episode 2 is not finite at frame 1'),
    'nan action': (lambda s: save(table(2, None, spoil(2, 1)), s / THIRD), [],
                   'action of episode 2 is not finite'),
    'width': (lambda s: save(table(2, EPISODES[2][0][:, :3]), s / THIRD), [],
              'is 3 wide; meta/info.json says 4'),
    'ragged': (ragged, [], 'observation.state of episode 2 is no table of numbers'),
    'empty': (lambda s: save(table(2).slice(0, 0), s / THIRD), [],
              'holds 0 rows of episode 2; meta/episodes says 9'),
    'short': (lambda s: save(table(2).slice(0, 8), s / THIRD), [],
              'holds 8 rows of episode 2; meta/episodes says 9'),
    'number': (lambda s: save(table(1), s / THIRD), [], 'holds 0 rows of episode 2'),
    'frames': (lambda s: save(table(2, frames=[0, 1, 2, 3, 4, 5, 6, 7, 9]), s / THIRD), [],
               'missing or there twice'),
    'gap': (lambda s: episodes(s, [0, 1, 2, 4, 5, 6]), [], 'they differ in [3, 6]'),
    'count': (lambda s: inform(s, total_episodes=8), [],
              'counts 8 episodes, meta/episodes 6; they differ in [6, 7]'),
    'none': (lambda s: (inform(s, total_episodes=0), episodes(s, [])), [], 'counts 0 episodes'),
    'group': (lambda s: 0, ['--group=arm'], 'want NAME=ENTRIES:UNIT'),
    'outside': (lambda s: 0, ['--group=arm=0-4:rad'], '--group=arm=0-4:rad: the state has the entries 0-3'),
    'twice': (lambda s: 0, ['--group=arm=0-2:rad', '--group=hand=2-3'],
              '--group=hand=2-3: entries [2] are in twice'),
    'name': (lambda s: 0, ['--group=arm=0', '--group=arm=1'], 'there is a group arm already'),
    'binary': (lambda s: (s / 'meta' / 'info.json').write_bytes(b'\xff\x00'), [], 'info.json is damaged'),
    'a list': (lambda s: (s / 'meta' / 'info.json').write_text('[]'), [], 'it holds a list, no object'),
    'lines': (lambda s: (s / 'meta' / 'episodes.jsonl').write_text('3'), [], 'it holds a int, no object'),
    'chunks': (lambda s: inform(s, chunks_size=0), [], 'chunks_size is 0; want a whole number, 1 or more'),
    'chunks text': (lambda s: inform(s, chunks_size='4'), [], "chunks_size is '4'; want a whole number"),
    'total': (lambda s: inform(s, total_episodes=2.5), [], 'total_episodes is 2.5; want a whole number'),
    'too many': (lambda s: inform(s, total_episodes=10**12), [], 'counts 1000000000000 episodes'),
    'pattern': (lambda s: inform(s, data_path='data/{0}'), [], "data_path = 'data/{0}' cannot be filled in"),
    'pattern number': (lambda s: inform(s, data_path=7), [], 'data_path = 7 cannot be filled in'),
    'features': (lambda s: inform(s, features=[1]), [], 'features are no objects'),
    'shape': (lambda s: inform(s, features={'observation.state': {'dtype': 'float32'}}), [],
              'observation.state has shape None per frame'),
    'speed': (lambda s: inform(s, fps='fast'), [], "info: fps = 'fast': want frames per second, above 0"),
    'q_index': (lambda s: 0, ['--q_index=0-1'], '--q_index=0-1: 2 entries for 3 actions'),
    'q_index state': (lambda s: 0, ['--q_index=2-4'], '--q_index=2-4: the state has the entries 0-3')}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_line(tmp_path, name):
    change, flags, says = BAD[name]
    src = v2(tmp_path / 'src')
    change(src)
    _, err = prepare(src, tmp_path / 'out', '--val=1-2', *flags, code=1)
    line = [x for x in err.splitlines() if says in x]
    assert len(line) == 1 and 'Traceback' not in err and not (tmp_path / 'out').exists(), err


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    """Root may read everything, so we say no in its place."""
    src = v2(tmp_path / 'src')

    def deny(path, *_, **__): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(Path, 'read_text', deny)
    assert 'info.json: Permission denied; --src wants' in prepare(src, tmp_path / 'out', code=1)[1]
    monkeypatch.undo()
    monkeypatch.setattr(pq, 'read_table', deny)
    _, err = prepare(src, tmp_path / 'out', code=1)
    assert 'episode_000000.parquet cannot be read' in err and 'Traceback' not in err


def test_shards_of_other_files_are_not_used(tmp_path, monkeypatch):
    """Stopped, then one source file is fetched anew: nothing of the run before may stay."""
    src = v2(tmp_path / 'src')
    with monkeypatch.context() as m:
        m.setattr(writer, 'assemble', lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert 'stopped' in prepare(src, tmp_path / 'out', '--val=0', code=1)[1]
    before = {p.parent.name for p in (tmp_path / 'out.tmp').rglob('*.npz')}
    assert len(before) == 1
    save(table(2, EPISODES[2][0] + 1), src / THIRD)
    prepare(src, tmp_path / 'out', '--val=0')
    rows = np.load(tmp_path / 'out' / 'train' / 'state.npy')[8:17]
    assert np.array_equal(rows, EPISODES[2][0] + 1)


def test_no_path_of_this_machine(tmp_path):
    prepare(v2(tmp_path / 'src'), tmp_path / 'out', '--val=0')
    assert str(tmp_path) not in (tmp_path / 'out' / 'meta.json').read_text()
    assert ' --src=src ' in meta_of(tmp_path / 'out')['command']


def test_bad_v3(tmp_path):
    src = v3(tmp_path / 'src')
    second = src / V3.format(chunk_index=0, file_index=1)
    whole = second.read_bytes()
    cut(second)
    assert 'file-001.parquet cannot be read' in prepare(src, tmp_path / 'out', code=1)[1]
    second.write_bytes(whole)
    keep = pq.read_table(second)
    pq.write_table(keep.filter(pa.array(keep['episode_index'].to_numpy() != 3)), second)
    assert 'holds 0 rows of episode 3; meta/episodes says 4' in prepare(src, tmp_path / 'out', code=1)[1]
    (src / 'meta' / 'episodes' / 'chunk-000' / 'file-001.parquet').unlink()
    assert 'they differ in [1, 3, 5]' in prepare(src, tmp_path / 'out', code=1)[1]


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    _, err = prepare(v2(tmp_path), tmp_path / 'out', code=1)
    assert "LeRobot data need: pip install -e '.[lerobot]'" in err
    script(PREPARE, '--help')


@pytest.mark.skipif(not os.path.isdir(G1), reason='the Unitree G1 set is not here')
def test_unitree_g1(tmp_path):
    prepare(G1, tmp_path / 'g1', '--val=85-99', '--group', 'arm=0-13:rad', '--group', 'hand=14-25:1')
    meta = meta_of(tmp_path / 'g1')
    assert meta['counts'] == {'train': {'episodes': 85, 'frames': 31040},
                              'val': {'episodes': 15, 'frames': 4925}}
    assert meta['q_index'] == list(range(26)) and meta['fps'] == 30
    for split, first in ('train', 0), ('val', 85):
        source = pq.read_table(f'{G1}/data/chunk-000/episode_{first:06d}.parquet')
        spans = np.load(tmp_path / 'g1' / split / 'episodes.npy')
        for key, column in ('state', 'observation.state'), ('action', 'action'):
            x, first_episode = np.load(tmp_path / 'g1' / split / f'{key}.npy'), source[column].to_pylist()
            assert x.shape[1] == 26 and np.array_equal(x[:spans[0, 1]], np.array(first_episode, np.float32))
    assert (np.diff(spans) - 2).sum() == 4895
    s = np.load(tmp_path / 'g1' / 'val' / 'state.npy').astype(np.float64)
    copy = np.mean([((s[a + 2:b] - s[a + 1:b - 1])**2).sum() for a, b in spans]) * len(spans) / 4895 / 26
    assert np.isclose(copy, 6.03e-5, rtol=1e-3)         # the yardstick of dynamics models on this set


# ---- pictures ----

def pictures(i, T):
    """Episode i as T frames (T, 24, 32, 3): its left half tells the frame, its right half the episode."""
    x = np.zeros((T, 24, 32, 3), np.uint8)
    x[:, :, :16], x[:, :, 16:] = 20 + 20 * np.arange(T)[:, None, None, None], 40 * i
    return x


def encode(path, frames):
    """20 frames per second, as info.json says; the tests of data/clips look closer at this."""
    av = pytest.importorskip('av')
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264' if 'libx264' in av.codecs_available else 'mpeg4', rate=20)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = 'yuv420p', 10_000_000
        for x in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        container.mux(stream.encode())


def filmed(root, make=v2):
    """The tree with a film: one per episode, or episodes 3 4 5 in the first file and 0 1 2 in the second."""
    make(root)
    if make is v2:
        inform(root, video_path=FILM2)
        for i, T in enumerate(LENGTHS):
            encode(root / FILM2.format(episode_chunk=i // 4, video_key=TOP, episode_index=i), pictures(i, T))
        return root
    inform(root, video_path=FILM3)
    where = {}
    for k, members in enumerate([(3, 4, 5), (0, 1, 2)]):
        for n, i in enumerate(members):
            where[i] = 0, k, sum(LENGTHS[j] for j in members[:n]) / 20
        film = np.concatenate([pictures(i, LENGTHS[i]) for i in members])
        encode(root / FILM3.format(chunk_index=0, video_key=TOP, file_index=k), film)
    for path in root.glob('meta/episodes/*/*.parquet'):
        t = pq.read_table(path, partitioning=None)
        for n, name in enumerate(('chunk_index', 'file_index', 'from_timestamp')):
            column = [where[i][n] for i in t['episode_index'].to_pylist()]
            t = t.append_column(f'videos/{TOP}/{name}', pa.array(column))
        pq.write_table(t, path)
    return root


@pytest.mark.parametrize('make', [v2, v3])
def test_frames_land_beside_their_rows(tmp_path, make):
    flags = f'--video={TOP}', '--size=1x2', '--val=0'
    prepare(filmed(tmp_path / 'src', make), tmp_path / 'out', *flags)
    video = np.load(tmp_path / 'out' / 'train' / 'video.npy')
    want = np.concatenate([pictures(i, T)[:, :1, 8::16] for i, T in enumerate(LENGTHS)])
    assert video.shape == want.shape and abs(video.astype(int) - want).max() < 9
    prepare(tmp_path / 'src', tmp_path / 'some', *flags, '--episodes=0,2-3,5', '--limit=3')
    some = {key: np.load(tmp_path / 'some' / 'train' / f'{key}.npy') for key in ('video', 'state')}
    ends = np.cumsum([0, *LENGTHS])
    rows = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in (0, 2, 3)])
    assert np.array_equal(some['video'], video[rows])
    assert np.array_equal(some['state'], np.load(tmp_path / 'out' / 'train' / 'state.npy')[rows])
    meta = meta_of(tmp_path / 'some')
    assert meta['facts']['input'] == 'video'
    assert f'--video={TOP} --size=1x2 --episodes=0,2-3,5' in meta['command']


def film_of(i): return FILM2.format(episode_chunk=i // 4, video_key=TOP, episode_index=i)


BAD_FILMS = {      # name: (what is done to the good tree, flags, what the line says)
    'camera': (lambda s: 0, ['--video=top'], f'--video=top: no such camera; there are {TOP}'),
    'no camera': (lambda s: inform(s, features={k: {'dtype': 'float32', 'shape': [n]} for k, n in
                                                (('observation.state', 4), ('action', 3))}), [],
                  'no such camera; there are no videos'),
    'missing': (lambda s: (s / film_of(2)).unlink(), [],
                'episode_000002.mp4 is missing; fetch it, or name the episodes that are there: --episodes='),
    'cut': (lambda s: (s / film_of(2)).write_bytes((s / film_of(2)).read_bytes()[:-400]), [], 'episode 2: '),
    'text': (lambda s: (s / film_of(2)).write_text('no film'), [], 'episode_000002.mp4 cannot be decoded'),
    'own number': (lambda s: (s / film_of(4)).write_text('no film'), ['--episodes=0,4'], 'episode 4: '),
    'short': (lambda s: encode(s / film_of(2), pictures(2, 8)), [],
              'episode_000002.mp4 holds 8 frames of episode 2; its table has 9 rows'),
    'long': (lambda s: encode(s / film_of(2), pictures(2, 11)), [], 'holds 11 frames of episode 2; its'),
    'rate': (lambda s: inform(s, fps=25), [], 'episode 0: '),
    'pattern': (lambda s: inform(s, video_path='{nothing}'), [], "does not tell where the videos of"),
    'no pattern': (lambda s: inform(s, video_path=None), [], "does not tell where the videos of"),
    'episodes': (lambda s: 0, ['--episodes=4-6'], '--episodes=4-6: the set has the episodes 0-5'),
    'episodes twice': (lambda s: 0, ['--episodes=1,0-2'], '--episodes=1,0-2: some are in twice'),
    'episodes text': (lambda s: 0, ['--episodes=all'], '--episodes=all: want numbers and ranges'),
    'size': (lambda s: 0, ['--size=big'], '--size=big: want 32')}


@pytest.mark.parametrize('name', BAD_FILMS)
def test_bad_films_are_one_line(tmp_path, name):
    change, flags, says = BAD_FILMS[name]
    src = filmed(tmp_path / 'src')
    change(src)
    _, err = prepare(src, tmp_path / 'out', '--val=0', f'--video={TOP}', *flags, code=1)
    assert says in one_line(err) and not (tmp_path / 'out').exists()


def test_no_columns_for_the_film(tmp_path):
    """A v3 set whose meta/episodes do not say where the film is; and --size without a camera."""
    inform(v3(tmp_path / 'src'), video_path=FILM3)
    _, err = prepare(tmp_path / 'src', tmp_path / 'out', f'--video={TOP}', code=1)
    assert f'has no column videos/{TOP}/chunk_index; there are' in one_line(err)
    assert '--size=9: of what?' in prepare(tmp_path / 'src', tmp_path / 'out', '--size=9', code=1)[1]


@pytest.mark.skipif(not os.path.exists(G1), reason='needs ../shared')
def test_the_films_of_the_real_set(tmp_path):
    """Six files of a Unitree G1, AV1 at 30 Hz: as many frames as rows everywhere, and one read to its end."""
    from data.video import probe
    info, files = reader.layout(G1)
    camera = 'observation.images.cam_high'
    for i in 1, 2, 4, 5, 7, 8:
        film, first = reader.films(G1, camera)[i]
        assert probe(film) == (files[i][1], 30, (480, 640)) and first == 0
    prepare(G1, tmp_path / 'out', f'--video={camera}', '--episodes=2', '--val=0', '--size=24x32')
    video = np.load(tmp_path / 'out' / 'train' / 'video.npy')
    assert video.shape == (343, 24, 32, 3) and 60 < video.mean() < 200
    change = abs(np.diff(video.astype(int), axis=0)).mean((1, 2, 3))
    assert change.max() < 20 and change.mean() > 0.1                   # it moves, and never jumps
