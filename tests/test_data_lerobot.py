"""data/lerobot: v2 and v3 trees land number by number, the real set too; what is wrong is one line."""
import io
import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, one_line, script
from PIL import Image

from data import writer
from data.lerobot import prepare as lerobot
from data.lerobot import reader
from data.loader import Store

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
            'observation.images.top': {'dtype': 'video', 'shape': [24, 32, 3]}}}
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


def encode(path, frames, times=None):
    """20 frames per second, as info.json says; the tests of data/clips look closer at this."""
    av = pytest.importorskip('av')
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264' if 'libx264' in av.codecs_available else 'mpeg4', rate=20)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = 'yuv420p', 10_000_000
        for t, x in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(x, format='rgb24')
            picture.pts, picture.time_base = times[t] if times else t, Fraction(1, 20)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def join(path, films, fps=20):
    """Films behind one another in one file, and nothing encoded anew: what LeRobot's converter makes."""
    av = pytest.importorskip('av')
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as out:
        stream, before = None, 0
        for film in films:
            with av.open(str(film)) as container:
                source = container.streams.video[0]
                stream = stream or out.add_stream_from_template(source, opaque=True)
                shift = before / fps / source.time_base
                for packet in [packet for packet in container.demux(source) if packet.dts is not None]:
                    packet.pts, packet.dts = round(packet.pts + shift), round(packet.dts + shift)
                    packet.stream = stream
                    out.mux(packet)
                before += source.frames


def filmed(root, make=v2, joined=False):
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
        film = root / FILM3.format(chunk_index=0, video_key=TOP, file_index=k)
        if not joined:
            encode(film, np.concatenate([pictures(i, LENGTHS[i]) for i in members]))
            continue
        for i in members: encode(root / f'{i}.mp4', pictures(i, LENGTHS[i]))
        join(film, [root / f'{i}.mp4' for i in members])
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
                'episode_000002.mp4 is missing; fetch it, or keep the episodes that are there: --episodes='),
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


# ---- several cameras ----

WRIST, DEPTH = 'observation.images.left.wrist', 'observation.images.depth'
CELL = pa.struct({'bytes': pa.binary(), 'path': pa.string()})
TASKS = ['open', 'shut']


def noise(i, t): return np.random.default_rng([i, t]).integers(0, 256, (24, 32, 3), np.uint8)


def cell(i, t, x=None):
    """A row of a column of PNG: every other one is a file of the folder."""
    file = io.BytesIO()
    Image.fromarray(noise(i, t) if x is None else x).save(file, 'png')
    return {'bytes': None if t % 2 else file.getvalue(), 'path': f'images/{i}_{t}.png'}


def equip(root, path, change=lambda i, t, row: row, kind=CELL):
    """The parquet file `path` with a column of PNG, and one of tasks; change: what becomes of a row's PNG."""
    t = pq.read_table(path, partitioning=None)
    where = [*zip(t['episode_index'].to_pylist(), t['frame_index'].to_pylist())]
    t = t.append_column(WRIST, pa.array([change(i, k, cell(i, k)) for i, k in where], kind))
    (root / 'images').mkdir(exist_ok=True)
    for i, k in where:
        if k % 2: Image.fromarray(noise(i, k)).save(root / f'images/{i}_{k}.png')
    save(t.append_column('task_index', pa.array([i % 2 for i, _ in where])), path, row_group_size=3)


def describe(root, **change):
    """The features of info.json: three cameras and what was there; change: {camera: entries}."""
    known = json.loads((root / 'meta' / 'info.json').read_text())['features']
    hwc = {'names': ['height', 'width', 'channel']}
    chw = {'names': ['channel', 'height', 'width']}
    seen, deep = {'info': {'video.is_depth_map': False}}, {'info': {'is_depth_map': True}}
    cams = {'top': (TOP, {'dtype': 'video', 'shape': [24, 32, 3]} | hwc | seen),
            'wrist': (WRIST, {'dtype': 'image', 'shape': [3, 24, 32]} | chw),
            'depth': (DEPTH, {'dtype': 'video', 'shape': [24, 32, 3]} | hwc | deep)}
    inform(root, features=known | {'task_index': {'dtype': 'int64', 'shape': [1], 'names': None}} |
           {column: feature | change.get(name, {}) for name, (column, feature) in cams.items()})


def equipped(root, make=v2):
    """`filmed`, and beside it a camera that keeps PNG, one that sees depth, and two tasks."""
    filmed(root, make, joined=True)
    for path in root.glob('data/*/*.parquet'): equip(root, path)
    describe(root)
    if make is v2:
        lines = [json.dumps({'task_index': i, 'task': TASKS[i]}) for i in (1, 0)]
        (root / 'meta' / 'tasks.jsonl').write_text('\n'.join(lines) + '\n')
    else:
        told = pa.table({'task_index': [1, 0], '__index_level_0__': TASKS[::-1]})
        save(told, root / 'meta' / 'tasks.parquet')
    return root


def npy(out, key, split='train'): return np.load(out / split / f'{key}.npy')


@pytest.mark.parametrize('make', [v2, v3])
def test_cameras_land_beside_their_rows(tmp_path, make):
    src, out = equipped(tmp_path / 'src', make), tmp_path / 'out'
    printed, _ = prepare(src, out, '--cameras=all', '--val=2')
    assert '--cameras=all: depth is a depth map, we leave it out' in printed
    for split, members in ('train', (0, 1, 3, 4, 5)), ('val', (2,)):
        top, wrist, task = (npy(out, key, split) for key in ('image.top', 'image.left.wrist', 'task'))
        where = [(i, t) for i in members for t in range(LENGTHS[i])]
        want = np.concatenate([pictures(i, LENGTHS[i]) for i in members]).transpose(0, 3, 1, 2)
        assert top.dtype == np.uint8 and top.shape == want.shape
        assert abs(top[..., [8, 24]].astype(int) - want[..., [8, 24]]).max() < 9
        assert np.array_equal(wrist, [noise(i, t).transpose(2, 0, 1) for i, t in where])
        assert task.dtype == np.int32 and task.tolist() == [i % 2 for i, _ in where]
    meta = meta_of(out)
    assert meta['tasks'] == TASKS and '--cameras=all' in meta['command']
    assert meta['facts'] | {'cameras': ['top', 'left.wrist'], 'height': 24, 'width': 32} == meta['facts']
    assert 'input' not in meta['facts']                        # there is no `video` for a world model
    store = Store(str(out), 'train', {'task': range(1), 'image.top': range(-1, 1)})
    assert store.windows_at([0])['task'].shape == (1, 1)


def test_both_layouts_give_the_same_pictures(tmp_path):
    """A file per episode, or three episodes in one that was not encoded anew."""
    for make in v2, v3:
        src = equipped(tmp_path / make.__name__, make)
        prepare(src, tmp_path / f'{make.__name__}_out', '--cameras=all', '--val=0.3', '--size=9x7')
    assert len(arrays(tmp_path / 'v2_out')) == 12
    assert npy(tmp_path / 'v2_out', 'image.top').shape[1:] == (3, 9, 7)
    assert arrays(tmp_path / 'v2_out') == arrays(tmp_path / 'v3_out')
    (src / 'meta' / 'tasks.parquet').unlink()
    tasks = [json.dumps({'task_index': i, 'task': task}) for i, task in enumerate(TASKS)]
    (src / 'meta' / 'tasks.jsonl').write_text('\n'.join(tasks))             # as its documentation has it
    prepare(src, tmp_path / 'again', '--cameras=top,left.wrist', '--val=0.3', '--size=9x7')
    assert arrays(tmp_path / 'v2_out') == arrays(tmp_path / 'again')
    assert meta_of(tmp_path / 'again')['tasks'] == TASKS == meta_of(tmp_path / 'v3_out')['tasks']


def test_some_cameras_in_the_order_asked_for(tmp_path):
    src = equipped(tmp_path / 'src')
    prepare(src, tmp_path / 'all', '--cameras=all', '--val=0', '--size=9x7')
    prepare(src, tmp_path / 'two', f'--cameras={WRIST},top', '--val=0', '--size=9x7', '--episodes=2-4')
    assert meta_of(tmp_path / 'two')['facts']['cameras'] == ['left.wrist', 'top']
    rows = slice(sum(LENGTHS[:2]), sum(LENGTHS[:5]))
    for key in 'image.top', 'image.left.wrist', 'task', 'state':
        assert np.array_equal(npy(tmp_path / 'two', key), npy(tmp_path / 'all', key)[rows])
    prepare(src, tmp_path / 'one', '--cameras=top', '--val=0')
    assert not (tmp_path / 'one' / 'train' / 'image.left.wrist.npy').exists()
    inform(src, features={'observation.image' if key == TOP else key: feature for key, feature in
                          json.loads((src / 'meta' / 'info.json').read_text())['features'].items()})
    (src / 'videos' / 'chunk-000' / TOP).rename(src / 'videos' / 'chunk-000' / 'observation.image')
    prepare(src, tmp_path / 'image', '--cameras=image', '--val=0', '--episodes=0-3')
    assert np.array_equal(npy(tmp_path / 'image', 'image.image'), npy(tmp_path / 'one', 'image.top')[:21])


def test_one_camera_of_png_for_a_world_model(tmp_path):
    prepare(equipped(tmp_path / 'src'), tmp_path / 'out', f'--video={WRIST}', '--size=24x32', '--val=0')
    assert np.array_equal(npy(tmp_path / 'out', 'video')[5:8], [noise(1, t) for t in range(3)])
    assert not (tmp_path / 'out' / 'train' / 'task.npy').exists()
    assert meta_of(tmp_path / 'out')['facts']['input'] == 'video'


@pytest.mark.parametrize('shape, names, seen', [
    ([4, 5, 3], None, ((4, 5), '')), ([3, 4, 5], None, ((4, 5), '')), ([3, 5, 3], None, ((3, 5), '')),
    ([3, 5, 3], ['channels', 'height', 'width'], ((5, 3), '')),
    ([5, 4, 3], ['width', 'height', 'channel'], ((4, 5), '')), ([3, 4, 5], ['rgb', 'h', 'w'], ((4, 5), '')),
    ([4, 5, 1], ['height', 'width', 'channel'], ((4, 5), 'has 1 channels')),
    ([4, 4, 5], ['channels', 'height', 'width'], ((4, 5), 'has 4 channels'))])
def test_which_side_is_which(shape, names, seen):
    said = {'dtype': 'video', 'shape': shape, 'names': names}
    assert reader.view({'features': {TOP: said}}, TOP) == seen
    assert reader.view({'features': {TOP: said | {'video_info': {'video.is_depth_map': True}}}}, TOP)[1]


def png_of_2(change, kind=CELL):
    """Something else in the column of PNG of episode 2, frame 4."""
    def spoil(src):
        save(rows(2, *EPISODES[2]), src / THIRD)
        equip(src, src / THIRD, lambda i, t, row: change(row) if t == 4 else row, kind)
    return spoil


def tasked(src, numbers):
    t = pq.read_table(src / THIRD)
    save(t.set_column(t.column_names.index('task_index'), 'task_index', pa.array(numbers)), src / THIRD)


def retold(text): return lambda s: (s / 'meta' / 'tasks.jsonl').write_text(text)


def deep(row): return {'bytes': png(np.zeros((24, 32), np.uint16)), 'path': None}


def png(x):
    file = io.BytesIO()
    Image.fromarray(x).save(file, 'png')
    return file.getvalue()


BAD_CAMERAS = {      # name: (what is done to the good tree, flags, what the line says)
    'unknown': (lambda s: 0, ['--cameras=top,front'],
                "--cameras=top,front: no camera 'front'; there are top, left.wrist, depth"),
    'empty': (lambda s: 0, ['--cameras='], "--cameras=: no camera ''; there are top, left.wrist, depth"),
    'none': (lambda s: inform(s, features={k: {'dtype': 'float32', 'shape': [n]} for k, n in
                                           (('observation.state', 4), ('action', 3))}), [],
             '--cameras=all: the set has no camera that sees three colours'),
    'twice': (lambda s: 0, [f'--cameras=top,{TOP}'], 'top is in twice'),
    'video': (lambda s: 0, [f'--video={TOP}'], '--video and --cameras: want one of them'),
    'depth': (lambda s: 0, ['--cameras=top,depth'], 'depth is a depth map; we keep pictures of three'),
    'grey': (lambda s: describe(s, top={'shape': [24, 32, 1]}), ['--cameras=top'], 'top has 1 channels; we'),
    'shape': (lambda s: describe(s, top={'shape': [24, 32]}), [], f'{TOP} has the shape [24, 32]; want'),
    'sizes': (lambda s: describe(s, wrist={'shape': [3, 12, 48]}), [],
              '--cameras: top is 24x32, left.wrist 12x48; want one size, like --size=12x48'),
    'other size': (lambda s: describe(s, top={'shape': [12, 48, 3]}, wrist={'shape': [3, 12, 48]}), [],
                   'in 24x32, meta/info.json says 12x48; --size=12x48 makes it so'),
    'size': (lambda s: 0, ['--size=big'], '--size=big: want 32'),
    'names': (lambda s: describe(s) or inform(s, features=json.loads((s / 'meta' / 'info.json').read_text())[
              'features'] | {'top': {'dtype': 'image', 'shape': [24, 32, 3]}}), [],
              'observation.images.top and top would have one name here; rename one'),
    'missing': (lambda s: (s / film_of(2)).unlink(), [],
                'episode_000002.mp4 is missing; fetch it, or keep the episodes that are there: --episodes='),
    'cut': (lambda s: (s / film_of(2)).write_bytes((s / film_of(2)).read_bytes()[:-400]), [], 'episode 2: '),
    'short': (lambda s: encode(s / film_of(2), pictures(2, 8)), [],
              'episode_000002.mp4 holds 8 frames of episode 2; its table has 9 rows'),
    'long': (lambda s: encode(s / film_of(2), pictures(2, 11)), [], 'holds 11 frames of episode 2; its'),
    'gap': (lambda s: encode(s / film_of(2), pictures(2, 9), [0, 1, 2, 3, 4, 6, 7, 8, 9]), [],
            'episode_000002.mp4: frame 5 is damaged, missing or there twice'),
    'no column': (lambda s: save(rows(2, *EPISODES[2]), s / THIRD), [],
                  f'episode_000002.parquet has no column {WRIST}; there are'),
    'png': (png_of_2(lambda row: {'bytes': b'no picture', 'path': None}), [],
            f'{WRIST} of frame 4 cannot be read (no PNG or JPEG)'),
    'png cut': (png_of_2(lambda row: {'bytes': row['bytes'][:999], 'path': None}), [],
                f'{WRIST} of frame 4 cannot be read'),
    'png deep': (png_of_2(deep), [], 'of frame 4 has more than 8 bits per colour'),
    'png size': (png_of_2(lambda row: {'bytes': png(np.zeros((8, 9, 3), np.uint8)), 'path': None}), [],
                 f'shows {WRIST} in 8x9, meta/info.json says 24x32; --size=24x32'),
    'png nowhere': (png_of_2(lambda row: {'bytes': None, 'path': 'images/gone.png'}), [],
                    'images/gone.png cannot be read ('),
    'png no path': (png_of_2(lambda row: {'bytes': None, 'path': None}), [], 'of frame 4 is no picture, nor'),
    'png nothing': (png_of_2(lambda row: None), [], 'of frame 4 is no picture, nor does it name a file'),
    'png outside': (png_of_2(lambda row: {'bytes': None, 'path': '../src/images/2_1.png'}), [],
                    'of frame 4 is no picture, nor does it name a file of this folder'),
    'png absolute': (png_of_2(lambda row: {'bytes': None, 'path': '/etc/2_1.png'}), [],
                     'of frame 4 is no picture, nor does it name a file of this folder'),
    'no task': (lambda s: tasked(s, [0] * 8 + [2]), [],
                'task_index of episode 2 is none of the 2 of meta/tasks'),
    'half a task': (lambda s: tasked(s, [0.5] * 9), [], 'task_index of episode 2 is none of the 2'),
    'task unknown': (lambda s: tasked(s, [None] * 9), [], 'task_index of episode 2 is none of the 2'),
    'no tasks': (lambda s: (s / 'meta' / 'tasks.jsonl').unlink(), [], 'tasks.jsonl: No such file'),
    'tasks': (retold('{"task_index": 1, "task": "a"}'), [], 'want a text `task` for each task_index, 0, 1,'),
    'tasks twice': (retold('{"task_index": 0, "task": "a"}\n' * 2), [], 'want a text `task` for each'),
    'tasks odd': (retold('{"task_index": [0], "task": "a"}'), [], 'want a text `task` for each'),
    'task text': (retold('{"task_index": 0, "task": 7}'), [], 'want a text `task` for each task_index')}


@pytest.mark.parametrize('name', BAD_CAMERAS)
def test_bad_cameras_are_one_line(tmp_path, name):
    change, flags, says = BAD_CAMERAS[name]
    src = equipped(tmp_path / 'src')
    change(src)
    _, err = prepare(src, tmp_path / 'out', '--val=0', '--cameras=all', *flags, code=1)
    assert says in one_line(err) and not (tmp_path / 'out').exists()


def test_a_film_of_many_that_is_cut(tmp_path):
    src = equipped(tmp_path / 'src', v3)
    film = src / FILM3.format(chunk_index=0, video_key=TOP, file_index=1)
    encode(film, np.concatenate([pictures(i, LENGTHS[i]) for i in (0, 1, 2)])[:-2])
    _, err = prepare(src, tmp_path / 'out', '--cameras=top', '--val=0', code=1)
    assert 'file-001.mp4 ends after 15 frames, want 17; was it cut short?' in one_line(err)


@pytest.mark.parametrize('obs', ['image', 'state'])
@pytest.mark.parametrize('model', ['act', 'diffusion_policy'])
def test_policies_train_on_it(tmp_path, obs, model):
    """What the data say of cameras fills the Config; a policy that sees none trains on them as well."""
    small = {'act': ['--chunk_size=4', '--n_action_steps=4', '--dim_model=32', '--n_heads=2', '--dropout=0',
                     '--dim_feedforward=32', '--n_encoder_layers=1', '--n_vae_encoder_layers=1'],
             'diffusion_policy': ['--horizon=4', '--n_action_steps=2', '--down_dims=16,32', '--n_groups=4',
                                  '--diffusion_step_embed_dim=16', '--drop_n_last_frames=0']}[model]
    prepare(equipped(tmp_path / 'src'), tmp_path / 'toy', '--cameras=all', '--val=2')
    train = ['train.py', f'--model={model}', f'--obs={obs}', '--dataset=toy', f'--data_dir={tmp_path}',
             f'--out_dir={tmp_path}/run', '--batch_size=3', '--val_batches=1', '--device=cpu', *small]
    script(*train, '--max_steps=2')
    said, _ = script(*train, '--max_steps=3', '--resume=True')
    assert 'step 3/3' in said and np.isfinite(last_loss(tmp_path))
    meta = json.loads((tmp_path / 'run' / 'step_0000003' / 'meta.json').read_text())
    saw = {'cameras': ['top', 'left.wrist'], 'height': 24, 'width': 32, 'action_dim': 3, 'state_dim': 4}
    assert meta['model_config'] | saw == meta['model_config']
    assert '--cameras' in script(*train, '--cameras=top', code=2)[1]            # the data decide that


@pytest.mark.parametrize('config, dataset', [('g1_act_cpu', 'lerobot_g1cam'), ('g1_act_state', 'lerobot_g1')])
def test_configs_of_act(tmp_path, config, dataset):
    """As they are but for the steps; without data they say how to make them, with pictures or without."""
    train = ['train.py', f'config/{config}.py', f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/run',
             '--max_steps=2', '--val_batches=1', '--device=cpu']
    flags = '--cameras=all ' * (dataset == 'lerobot_g1cam')
    way = f'make it: python data/lerobot/prepare.py --src=PATH {flags}--out={tmp_path}/{dataset}'
    way += '' if flags else '; with --cameras=all --size=HxW for policies that see'
    assert one_line(script(*train, code=2)[1]) == f'{tmp_path}/{dataset}/meta.json not found; {way}'
    prepare(equipped(tmp_path / 'src'), tmp_path / dataset, *flags.split(), '--val=2')
    script(*train)
    assert np.isfinite(last_loss(tmp_path))


def last_loss(root):
    lines = [json.loads(line) for line in (root / 'run' / 'logs.json.txt').read_text().splitlines()]
    return [line['val/loss'] for line in lines if 'val/loss' in line][-1]


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


@pytest.mark.skipif(not os.path.exists(G1), reason='needs ../shared')
def test_real_films_in_one_file(tmp_path):
    """Two films of AV1, copied into one mp4 of a v3.0 set: every byte of what comes out is the same."""
    camera, members, root = 'observation.images.cam_high', (2, 4), tmp_path / 'v3'
    info, files = reader.layout(G1)
    tables = [pq.read_table(files[i][0], partitioning=None) for i in members]
    for k, t in enumerate(tables):
        at = t.column_names.index('episode_index')
        tables[k] = t.set_column(at, 'episode_index', pa.array([k] * len(t)))
    save(pa.concat_tables(tables), root / V3.format(chunk_index=0, file_index=0))
    lengths = [files[i][1] for i in members]
    start = {'from_timestamp': [0.0, lengths[0] / 30], 'chunk_index': [0, 0], 'file_index': [0, 0]}
    save(pa.table({'episode_index': [0, 1], 'length': lengths, 'data/chunk_index': [0, 0],
                   'data/file_index': [0, 0], **{f'videos/{camera}/{k}': x for k, x in start.items()}}),
         root / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet')
    save(pa.table({'task_index': [0], '__index_level_0__': ['x']}), root / 'meta' / 'tasks.parquet')
    inform(root, **info | {'codebase_version': 'v3.0', 'total_episodes': 2, 'data_path': V3,
                           'video_path': FILM3})
    join(root / FILM3.format(chunk_index=0, video_key=camera, file_index=0),
         [reader.films(G1, camera)[i][0] for i in members], fps=30)
    flags = '--cameras=cam_high', '--size=24x32', '--val=1'
    prepare(G1, tmp_path / 'a', *flags, '--episodes=2,4')
    prepare(root, tmp_path / 'b', *flags)
    assert arrays(tmp_path / 'a') == arrays(tmp_path / 'b') and len(arrays(tmp_path / 'a')) == 10
