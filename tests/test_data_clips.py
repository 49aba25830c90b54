"""data/clips and data/video.py: what was filmed lands frame by frame, and what is wrong is one line."""
import json
import os
import signal
from pathlib import Path

import imageio
import numpy as np
import pytest
from conftest import TINY, one_line, run, script
from PIL import Image

from data import video, writer
from data.clips import actions, reader

av = pytest.importorskip('av')

PREPARE = 'data/clips/prepare.py'
H264 = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
SIDE, T = 16, 9


def film(path, frames, rate=10, codec=H264, **options):
    """Encode frames (T, H, W, 3) uint8."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = 'yuv420p', 10_000_000
        for x in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        container.mux(stream.encode())
    return path


def grey(n, height=48, width=64):
    """n frames, each of one brightness of its own: 20, 25, 30, ..."""
    levels = np.arange(20, 20 + 5 * n, 5, np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (n, height, width, 3)).copy()


def square(i, length=T):
    """Clip i: a white square of 4 px on SIDE x SIDE black ones, and the moves (right, down) that steer it."""
    rng = np.random.default_rng(i)
    frames, moves = np.zeros((length, SIDE, SIDE, 3), np.uint8), rng.integers(-2, 3, (length, 2))
    x, y = rng.integers(0, SIDE - 3, 2)
    for t in range(length):
        frames[t, y:y + 4, x:x + 4] = 255
        x, y = np.clip((x, y) + moves[t], 0, SIDE - 4)
    return frames, moves


def table(path, rows, header='right,down'):
    lines = [header] if header else []
    path.write_text('\n'.join([*lines, *(','.join(map(str, row)) for row in rows)]) + '\n')


def folder(root, n=3, **kw):
    """n clips and their CSV."""
    root.mkdir()
    for i in range(n):
        frames, moves = square(i, **kw)
        film(root / f'clip_{i}.mp4', frames, **({'crf': '1'} if H264 == 'libx264' else {}))
        table(root / f'clip_{i}.csv', moves)
    return root


def prepare(src, out, *flags, **kw):
    return script(PREPARE, f'--src={src}', f'--out={out}', '--workers=1', '--val=0', *flags, **kw)


def arrays(out): return {path.stem: np.load(path) for path in (out / 'train').glob('*.npy')}


def meta_of(out): return json.loads((out / 'meta.json').read_text())


def all_bytes(out): return {path.name: path.read_bytes() for path in out.rglob('*.npy')}


# ---- data/video.py ----

@pytest.mark.parametrize('codec, options', [
    (H264, {}), (H264, {'bf': '3', 'g': '100'}), (H264, {'g': '4'}), ('mpeg4', {}), ('libvpx', {}),
    ('libvpx-vp9', {})])
def test_frames_come_in_order(tmp_path, codec, options):
    """Also if they are encoded out of order; by counting, by their times, and from the middle on."""
    if codec not in av.codecs_available:
        pytest.skip(f'this FFmpeg has no {codec}')
    path = film(tmp_path / ('a.webm' if 'vpx' in codec else 'a.mp4'), grey(40), codec=codec, **options)
    promised, fps, shape = video.probe(path)
    assert promised == (0 if 'vpx' in codec else 40) and (fps, shape) == (10, (48, 64))
    x = video.frames(path)
    assert x.shape == (40, 48, 64, 3) and x.dtype == np.uint8
    assert abs(x.mean((1, 2, 3)) - grey(40)[:, 0, 0, 0]).max() < 2.5            # half a step
    assert np.array_equal(video.frames(path, fps=10), x)
    for first, count in (1, 3), (25, 7), (39, 1):
        assert np.array_equal(video.frames(path, None, first, count, fps=10), x[first:first + count])


def test_colours(tmp_path):
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[:, :16, :16], frames[:, :16, 16:], frames[:, 16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    x = video.frames(film(tmp_path / 'a.mp4', frames), (2, 2))
    assert abs(x.astype(int) - frames[:, [[8, 8], [24, 24]], [[8, 24], [8, 24]]].astype(int)).max() < 12


def test_resize_is_the_mean_of_what_is_covered():
    x = np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8)
    mean = x.reshape(2, 3, 3, 4, 3).mean((1, 3))
    assert abs(video.resize(x, (2, 3)) - mean).max() <= 1
    assert video.resize(x, None) is x and video.resize(x, (6, 12)) is x
    art = np.kron(x[:, :, 0], np.ones((5, 5), np.uint8))[..., None].repeat(3, 2)
    assert np.array_equal(video.resize(art, (6, 12)), x[..., :1].repeat(3, 2))         # pixel art stays exact


@pytest.mark.parametrize('text, size', [('32', (32, 32)), ('24x32', (24, 32)), (False, None), (None, None)])
def test_sides(text, size): assert video.sides(text) == size


@pytest.mark.parametrize('text', ['0', '-3', 'x', '3x', '3x0', '3.5', '32x32x3', '99999'])
def test_bad_sides(text):
    with pytest.raises(SystemExit, match=f'--size={text}: want 32, or 24x32'): video.sides(text)


def test_frames_that_are_not_there(tmp_path):
    path = film(tmp_path / 'a.mp4', grey(20))
    for given, says in (({'fps': 20}, 'frame 1 is damaged, missing or there twice'),
                        ({'fps': 5}, 'frame 1 is damaged, missing or there twice'),
                        ({'first': 15, 'count': 6, 'fps': 10}, 'ends after 20 frames, want 21'),
                        ({'first': 30, 'count': 2, 'fps': 10}, 'ends after')):
        with pytest.raises(ValueError, match=f'^{path}.*{says}'): video.frames(path, **given)


def test_every_cut_is_noticed(tmp_path):
    """Wherever a file is cut, also while its index, at the front, is whole."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    with av.open(str(tmp_path / 'a.mp4'), 'w', options={'movflags': 'faststart'}) as container:
        stream = container.add_stream(H264, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, 'yuv420p'
        for x in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        container.mux(stream.encode())
    whole, path = (tmp_path / 'a.mp4').read_bytes(), tmp_path / 'cut.mp4'
    for share in 0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99:
        path.write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(ValueError, match=f'^{path} .*[^\n]$'): video.frames(path)


def test_without_av(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'av', None)
    with pytest.raises(SystemExit, match=r"videos need: pip install -e '.\[video\]'"): video.probe('a.mp4')


# ---- clips ----

def test_clips_land(tmp_path):
    printed, _ = prepare(folder(tmp_path / 'src'), tmp_path / 'out')
    x, meta = arrays(tmp_path / 'out'), meta_of(tmp_path / 'out')
    for i in range(3):
        frames, moves = square(i)
        here = slice(i * T, (i + 1) * T)
        assert abs(x['video'][here].astype(int) - frames).mean() < 3
        assert np.array_equal(x['action'][here][:-1], moves[:-1]) and not x['action'][here][-1].any()
    assert 'actions: right, down' in printed
    assert (meta['fps'], meta['action_names'], meta['padded']) == (10, ['right', 'down'], ['action'])
    assert meta['clips'] == ['clip_0', 'clip_1', 'clip_2'] and meta['facts']['action_dim'] == 2
    assert str(tmp_path) not in (tmp_path / 'out' / 'meta.json').read_text()


def test_one_row_less_and_other_kinds_of_tables(tmp_path):
    """T - 1 rows, NPY, no header, other separators, a mark at the front: all the same bytes."""
    prepare(folder(tmp_path / 'src'), tmp_path / 'want')
    src = folder(tmp_path / 'other')
    moves = [square(i)[1] for i in range(3)]
    (src / 'clip_0.csv').unlink()
    np.save(src / 'clip_0.npy', moves[0][:-1])
    table(src / 'clip_1.csv', moves[1], header=None)
    lines = [f'{right}; {down}' for right, down in moves[2]]
    (src / 'clip_2.csv').write_bytes(('\ufeff' + '\r\n'.join([*lines, '', ''])).encode())
    prepare(src, tmp_path / 'out')
    assert all_bytes(tmp_path / 'want') == all_bytes(tmp_path / 'out')
    assert meta_of(tmp_path / 'out')['action_names'] == ['0', '1']


@pytest.mark.parametrize('suffix', ['', '.mp4'])
def test_one_table_of_all_clips(tmp_path, suffix):
    prepare(folder(tmp_path / 'src'), tmp_path / 'want')
    src = folder(tmp_path / 'other')
    for path in src.glob('*.csv'): path.unlink()
    rows = [[right, f'clip_{i}{suffix}', down] for i in (2, 0, 1) for right, down in square(i)[1]]
    table(tmp_path / 'all.csv', [*rows, [0, 'gone', 0]], header='right,name,down')
    printed, _ = prepare(src, tmp_path / 'out', f'--actions={tmp_path}/all.csv', '--clip_column=name')
    assert all_bytes(tmp_path / 'want') == all_bytes(tmp_path / 'out')
    assert 'tells of 1 clips that are not among those read' in printed and 'like gone' in printed
    assert '--actions=all.csv' in meta_of(tmp_path / 'out')['command']


def test_columns_onehot_and_another_folder(tmp_path):
    src, there = folder(tmp_path / 'src', 2), tmp_path / 'there'
    there.mkdir()
    keys = [['up', 'down', 'up', 'stay', 'up', 'up', 'down', 'up', 'up'], ['up'] * 8]
    for i in range(2):
        rows = [(t, key, t % 3, t / 2) for t, key in enumerate(keys[i])]
        table(there / f'clip_{i}.csv', rows, 't,key,n,speed')
    prepare(src, tmp_path / 'out', f'--actions={there}', '--columns=speed,key,n', '--onehot=key,n')
    meta, action = meta_of(tmp_path / 'out'), arrays(tmp_path / 'out')['action']
    assert meta['action_names'] == ['speed', 'key=down', 'key=stay', 'key=up', 'n=0', 'n=1', 'n=2']
    assert action[1].tolist() == [0.5, 1, 0, 0, 0, 1, 0] and action[:8].sum() == 14 + 8 + 8
    assert not action[8].any()
    assert meta['stats']['action']['mean'][1:] == [0] * 6 and meta['stats']['action']['std'][1:] == [1] * 6
    assert meta['stats']['action']['mean'][0] > 0


def test_whole_numbers_are_sorted_as_numbers(tmp_path):
    np.save(tmp_path / 'a.npy', np.array([10., 2, 1, 10]))
    x, names, binary = actions.read(tmp_path, ['a'], onehot=['0'])
    assert names == ['0=1', '0=2', '0=10'] and binary == [0, 1, 2]
    assert x['a'].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]] and x['a'].dtype == np.float32


def test_what_is_not_discrete(tmp_path):
    np.save(tmp_path / 'a.npy', np.arange(257))
    with pytest.raises(SystemExit, match="--onehot=0: 257 different entries, like '0'; want at most 256"):
        actions.read(tmp_path, ['a'], onehot=['0'])


@pytest.mark.parametrize('length', [8, 9, 10])
def test_skip_keeps_all_actions(tmp_path, length):
    src = folder(tmp_path / 'src', 2, length=length)
    prepare(src, tmp_path / 'whole')
    prepare(src, tmp_path / 'out', '--skip=3')
    whole, x, meta = arrays(tmp_path / 'whole'), arrays(tmp_path / 'out'), meta_of(tmp_path / 'out')
    kept = -(-length // 3)
    assert np.array_equal(x['video'][:kept], whole['video'][:length:3])
    for k in range(kept - 1):
        assert np.array_equal(x['action'][k], whole['action'][3 * k:3 * k + 3].ravel())
    assert not x['action'][kept - 1].any()
    assert meta['action_names'] == ['right+0', 'down+0', 'right+1', 'down+1', 'right+2', 'down+2']
    assert meta['fps'] == pytest.approx(10 / 3)


def test_no_actions(tmp_path):
    src = folder(tmp_path / 'src')
    for path in src.glob('*.csv'): path.unlink()
    printed, _ = prepare(src, tmp_path / 'out', '--skip=2')
    x = arrays(tmp_path / 'out')['action']
    assert x.shape == (3 * 5, 1) and not x.any() and 'actions: there are none' in printed


def test_pictures_and_gifs(tmp_path):
    """They are not compressed, so they land exactly; frame 10 comes after frame 2; size and limit."""
    src, (frames, _) = tmp_path / 'src', square(0, 12)
    other = frames + np.arange(12, dtype=np.uint8)[:, None, None, None]
    (src / 'b').mkdir(parents=True)
    for t, x in enumerate(frames): Image.fromarray(x).save(src / 'b' / f'frame_{t}.png')
    imageio.mimsave(src / 'a.gif', list(other), duration=50)
    (src / 'notes.txt').write_text('no clip')
    prepare(src, tmp_path / 'out')
    x, meta = arrays(tmp_path / 'out'), meta_of(tmp_path / 'out')
    assert np.array_equal(x['video'][12:], frames) and np.array_equal(x['video'][:12], other)
    assert meta['fps'] == 20 and meta['clips'] == ['a', 'b']
    said, _ = prepare(src, tmp_path / 'small', '--size=4x8', '--limit=1', '--fps=5')
    assert arrays(tmp_path / 'small')['video'].shape == (12, 4, 8, 3)
    assert meta_of(tmp_path / 'small')['fps'] == 5 and '--fps=5: the clips run at 20, and no frame' in said
    for path in src.glob('b/*.png'): Image.open(path).save(path.with_suffix('.jpg'), quality=95)
    for path in src.glob('b/*.png'): path.unlink()
    prepare(src, tmp_path / 'jpeg')
    assert abs(arrays(tmp_path / 'jpeg')['video'][12:].astype(int) - frames).mean() < 12


def test_workers(tmp_path):
    """One process or two: the same bytes. A worker takes 8 clips at a time."""
    src = folder(tmp_path / 'src', 10, length=4)
    prepare(src, tmp_path / 'one')
    run(PREPARE, f'--src={src}', f'--out={tmp_path}/two', '--workers=2', '--val=0')
    assert all_bytes(tmp_path / 'one') == all_bytes(tmp_path / 'two')
    assert meta_of(tmp_path / 'one') == meta_of(tmp_path / 'two')


def test_goes_on_but_never_with_other_files(tmp_path, monkeypatch):
    src = folder(tmp_path / 'src')
    with monkeypatch.context() as m:
        m.setattr(writer, 'assemble', lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert 'stopped' in prepare(src, tmp_path / 'out', code=1)[1]
    made = list(tmp_path.rglob('*.npz'))
    with monkeypatch.context() as m:                               # nothing changed: nothing is decoded again
        m.setattr(writer, 'assemble', lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert 'stopped' in prepare(src, tmp_path / 'out', code=1)[1]
    assert list(tmp_path.rglob('*.npz')) == made
    table(src / 'clip_1.csv', square(7)[1])
    film(src / 'clip_2.mp4', 255 - square(2)[0])
    prepare(src, tmp_path / 'out')
    x = arrays(tmp_path / 'out')
    assert np.array_equal(x['action'][T:2 * T - 1], square(7)[1][:-1]) and x['video'][2 * T:].mean() > 128


# ---- what is wrong takes one line ----

def cut(path): path.write_bytes(path.read_bytes()[:-300])


def rename(path, name): path.rename(path.with_name(name))


def spoil(src, cell, row=4):
    moves = square(1)[1].tolist()
    moves[row][1] = cell
    table(src / 'clip_1.csv', moves)


def picture_folder(src, change):
    (src / 'run').mkdir()
    for t in range(4): Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(src / 'run' / f'{t}.png')
    table(src / 'run.csv', np.zeros((4, 2)))
    change(src / 'run' / '2.png')


def cut_half(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])


def deepen(path): Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(path)


MOVES = square(1)[1]
BAD = {      # name: (what is done to the good folder of three clips, flags, what the line says)
    'nowhere': (lambda s: 0, ['--src=/nowhere'], '--src=/nowhere: want a folder of videos'),
    'empty': (lambda s: [p.unlink() for p in s.iterdir()], [], 'no clip (.mp4, .webm, .gif,'),
    'flat': (lambda s: [[p.unlink() for p in s.iterdir()], Image.new('RGB', (4, 4)).save(s / 'a.png')], [],
             '--src wants the folder above'),
    'cut': (lambda s: cut(s / 'clip_1.mp4'), [], 'clip_1: '),
    'nothing': (lambda s: (s / 'clip_1.mp4').write_bytes(b''), [], 'clip_1: '),
    'text': (lambda s: (s / 'clip_1.mp4').write_text('no video' * 99), [], 'cannot be decoded (Invalid data'),
    'twice': (lambda s: imageio.mimsave(s / 'clip_1.gif', list(square(1)[0])), [], 'have one name; rename'),
    'missing': (lambda s: (s / 'clip_1.csv').unlink(), [], 'clip_1.csv or .npy, there are neither'),
    'both': (lambda s: np.save(s / 'clip_1.npy', MOVES), [], 'clip_1.csv or .npy, there are both'),
    'longer': (lambda s: table(s / 'clip_1.csv', [*MOVES, (0, 0)]), [],
               'clip_1: 9 frames and 10 rows of actions; want 9 rows, or 8, because the last frame leads'),
    'shorter': (lambda s: table(s / 'clip_1.csv', MOVES[:-2]), [], 'clip_1: 9 frames and 7 rows of actions'),
    'longer film': (lambda s: film(s / 'clip_1.mp4', square(1, 12)[0]), [], 'clip_1: 12 frames and 9 rows'),
    'no promise': (lambda s: (film(s / 'clip_1.mkv', square(1, 12)[0]), (s / 'clip_1.mp4').unlink()), [],
                   'clip_1: 12 frames and 9 rows'),
    'one frame': (lambda s: (film(s / 'clip_1.mp4', square(1, 1)[0]), table(s / 'clip_1.csv', MOVES[:1])),
                  [], 'clip_1: 1 frames; want 2 or more'),
    'too short to skip': (lambda s: 0, ['--skip=9'], '9 frames; want 10 or more'),
    'column': (lambda s: 0, ['--columns=left'],
               'clip_0: its actions have no column left; there are right, down'),
    'column of one': (lambda s: table(s / 'clip_1.csv', MOVES, 'right,up'), ['--columns=down'],
                      'clip_1: its actions have no column down; there are right, up'),
    'other columns': (lambda s: table(s / 'clip_1.csv', MOVES, 'right,up'), [],
                      'clip_1: its actions have the columns right, up, those of clip_0 right, down'),
    'onehot': (lambda s: 0, ['--onehot=left'], '--onehot=left: no such column; there are right, down'),
    'onehot empty': (lambda s: spoil(s, ''), ['--onehot=down'], 'none of them empty'),
    'onehot part': (lambda s: spoil(s, 0.5), ['--onehot=down'], "different entries, like '0.5'; want at"),
    'no columns': (lambda s: [p.unlink() for p in s.glob('*.csv')], ['--columns=a'],
                   'there are no actions in'),
    'nan': (lambda s: spoil(s, 'nan'), [], "clip_1: down is 'nan' in row 5 of its actions, no number"),
    'inf': (lambda s: spoil(s, '1e99'), [], "clip_1: down is '1e99' in row 5"),
    'word': (lambda s: spoil(s, 'left'), [],
             "clip_1: down is 'left' in row 5 of its actions, no number; --onehot=down takes words"),
    'cell': (lambda s: spoil(s, ''), [], "clip_1: down is '' in row 5"),
    'ragged': (lambda s: spoil(s, '1,2'), [], 'clip_1.csv: row 5 has 3 entries, want 2: right, down'),
    'no rows': (lambda s: (s / 'clip_1.csv').write_text(''), [], 'clip_1.csv is empty'),
    'binary': (lambda s: (s / 'clip_1.csv').write_bytes(b'\xff\xfe\x00'), [], 'clip_1.csv cannot be read'),
    'same names': (lambda s: table(s / 'clip_1.csv', MOVES, 'a,a'), [], 'two columns have one name, a, a'),
    'npy': (lambda s: (rename(s / 'clip_1.csv', 'clip_1.npy')), [], 'clip_1.npy cannot be read'),
    'pickle': (lambda s: ((s / 'clip_1.csv').unlink(), np.save(s / 'clip_1.npy', np.array([{}]), True)), [],
               'clip_1.npy cannot be read'),
    'deep': (lambda s: ((s / 'clip_1.csv').unlink(), np.save(s / 'clip_1.npy', np.zeros((9, 2, 2)))), [],
             'clip_1.npy holds float64 [9, 2, 2]; want numbers'),
    'actions': (lambda s: 0, ['--actions=/nowhere'], '--actions=/nowhere: not there'),
    'no clip column': (lambda s: table(s.parent / 'all.csv', MOVES), ['--actions=ALL'],
                       'has no column clip; there are right, down'),
    'clip not in table': (lambda s: table(s.parent / 'all.csv', [('clip_0', 1)] * 9, 'clip,a'),
                          ['--actions=ALL'], 'clip_1: '),
    'sizes': (lambda s: film(s / 'clip_1.mp4', np.zeros((9, 32, 16, 3), np.uint8)), [],
              'clip_1: its frames are 32x16, those of clip_0 16x16; --size=32'),
    'rates': (lambda s: film(s / 'clip_1.mp4', square(1)[0], rate=30), [],
              'clip_1: it runs at 30 frames per second, clip_0 at 10'),
    'size': (lambda s: 0, ['--size=big'], '--size=big: want 32'),
    'fps': (lambda s: 0, ['--fps=0'], '--fps=0.0: want frames per second'),
    'skip': (lambda s: 0, ['--skip=0'], '--skip=0: want 1 or more'),
    'limit': (lambda s: 0, ['--limit=-1'], '--limit=-1: want'),
    'picture': (lambda s: picture_folder(s, cut_half), [], '2.png cannot be read'),
    'picture size': (lambda s: picture_folder(s, lambda p: Image.new('RGB', (8, 8)).save(p)), ['--size=8'],
                     'run: 2.png is 8x8, the pictures before are 16x16'),
    'deep picture': (lambda s: picture_folder(s, deepen), [], '2.png has more than 8 bits')}


@pytest.fixture(scope='module')
def good(tmp_path_factory): return folder(tmp_path_factory.mktemp('good') / 'src')


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_line(tmp_path, name, good):
    change, flags, says = BAD[name]
    src = tmp_path / 'src'
    src.mkdir()
    for path in good.iterdir(): (src / path.name).write_bytes(path.read_bytes())
    change(src)
    flags = [flag.replace('ALL', f'{tmp_path}/all.csv') for flag in flags]
    _, err = prepare(src, tmp_path / 'out', *flags, code=1)
    assert says in one_line(err) and not (tmp_path / 'out').exists(), err
    assert not list(tmp_path.rglob('*.npz'))               # nor a shard of it


def test_natural_order():
    names = ['frame_10.png', 'frame_2.png', 'frame_02.png', 'a.png', '7.png', '²_3.png']
    assert [p.name for p in sorted(map(Path, names), key=reader.natural)] == [
        '7.png', 'a.png', 'frame_02.png', 'frame_2.png', 'frame_10.png', '²_3.png']


# ---- all the way ----

def test_from_clips_to_a_gif(tmp_path):
    """Twenty clips and their CSV, prepared, trained on, and dreamed of."""
    prepare(folder(tmp_path / 'src', 20, length=12), tmp_path / 'clips_toy', '--size=16', '--val=0.2')
    tiny = [flag for flag in TINY if not flag.startswith('--num_frames')]
    run('train.py', '--dataset=clips_toy', f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/run',
        '--max_steps=3', '--num_frames=4', '--eval_every=3', *tiny)
    run('sample.py', f'--ckpt={tmp_path}/run', f'--out={tmp_path}/dream.gif', '--device=cpu', '--n_clips=2',
        '--length=6')
    with Image.open(tmp_path / 'dream.gif') as image:
        assert image.n_frames > 2
