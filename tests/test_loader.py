"""Store and Prefetch: windows keep to their episode, batches depend on (seed, step), damage is one line."""
import copy
import json
import os
import shutil
import sys
import threading
import time
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.loader import Prefetch, Store, how_to_make, identity, read_meta, simulator
from data.writer import write

WINDOWS = {'video': range(0, 6, 2), 'action': range(0, 6)}


@pytest.fixture
def folder(data_dir): return os.path.join(data_dir, 'tiny_pixels')


@pytest.fixture
def broken(folder, tmp_path):
    """A copy to damage."""
    shutil.copytree(folder, tmp_path / 'tiny_pixels')
    return str(tmp_path / 'tiny_pixels')


def numbered(i, lengths, padded):
    """Episode i: every row says where it lies, so that no two rows are alike."""
    T = lengths[i]
    state = np.stack([np.full(T, i), np.arange(T)], 1).astype(np.float32)
    action = state + 1
    if padded: action[-1] = 0
    return {'state': state, 'action': action}


def numbered_folder(folder, lengths, padded=('action',), val=0):
    write(folder, partial(numbered, lengths=lengths, padded=padded), len(lengths), seed=0, val=val, workers=1,
          command='tests', info={'fps': 1}, padded=padded)
    return str(folder)


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12).filter(lambda x: max(x) > 1)
offsets = st.builds(lambda first, count, skip: range(first, first + count * skip, skip),
                    st.integers(-4, 4), st.integers(1, 5), st.integers(1, 3))


@settings(deadline=None, max_examples=40)
@given(lengths, offsets, offsets)
def test_windows_are_exactly_those_inside_episodes(lengths, states, actions):
    """pad=False: every start from which all rows lie in one episode, in order, and no other."""
    windows, lo, hi = {'state': states, 'action': actions}, min(*states, *actions), max(*states, *actions)
    naive = [(e, t) for e, T in enumerate(lengths) for t in range(-lo, T - hi)]
    with TemporaryDirectory() as place:
        folder = numbered_folder(os.path.join(place, 'set'), lengths)
        if not naive:
            says('a window spans', 'use fewer frames (knobs)',
                 call=lambda: Store(folder, 'train', windows, hint='knobs'))
            return
        store = Store(folder, 'train', windows)
        assert len(store) == len(naive)
        batch = store.windows_at(np.arange(len(store)))
        assert set(batch) == {'state', 'action', 'index'}
        for i, (e, t) in enumerate(naive):
            assert batch['state'][i].tolist() == [[e, t + k] for k in states]
            assert batch['action'][i].tolist() == [
                [0, 0] if t + k == lengths[e] - 1 else [e + 1, t + k + 1] for k in actions]


@settings(deadline=None, max_examples=40)
@example([2, 3], range(1), range(2), False, 3)
@given(lengths, offsets, offsets, st.booleans(), st.integers(0, 5))
def test_padded_windows_repeat_the_edge(lengths, states, actions, padded, drop):
    """
    pad=True: one window per frame with a real action but for the last `drop`, so none of a shorter episode;
    every row is the clamped one of a naive loop. Where all are shorter: one line.
    """
    windows = {'state': states, 'action': actions}
    real = [T - 1 if padded else T for T in lengths]                       # frames that have an action
    naive = [(e, t) for e in range(len(lengths)) for t in range(real[e] - drop)]
    with TemporaryDirectory() as place:
        folder = numbered_folder(os.path.join(place, 'set'), lengths, ('action',) if padded else ())
        if not naive:
            says(f'{drop} more after it (drop_n_last_frames); want {drop + 1 + padded} frames or more',
                 call=lambda: Store(folder, 'train', windows, pad=True, drop=drop))
            return
        store = Store(folder, 'train', windows, pad=True, drop=drop)
        assert len(store) == len(naive)
        episode, row = store.locate(np.arange(len(store)))
        assert list(zip(episode, row - store.episodes[episode, 0])) == naive       # offset 0 is the frame
        for held in False, True:
            if held: store.to('cpu')
            batch = store.windows_at(np.arange(len(store)))
            assert batch['mask'].dtype == torch.bool and batch['mask'].shape == (len(naive), len(actions))
            for i, (e, t) in enumerate(naive):
                for j, k in enumerate(states):
                    assert batch['state'][i, j].tolist() == [e, min(max(t + k, 0), lengths[e] - 1)]
                for j, k in enumerate(actions):
                    nearest = min(max(t + k, 0), real[e] - 1)
                    assert batch['action'][i, j].tolist() == [e + 1, nearest + 1]
                    assert batch['mask'][i, j] == (nearest == t + k)


def test_folders_of_before_have_a_padding_action(tmp_path):
    """Without the entry `padded` the last action is taken for padding, as it was."""
    folder = numbered_folder(tmp_path / 'set', [4, 2])
    meta = read_meta(folder)
    assert meta['padded'] == ['action']
    del meta['padded']
    (tmp_path / 'set' / 'meta.json').write_text(json.dumps(meta))
    store = Store(folder, 'train', {'action': range(3)}, pad=True)
    assert len(store) == 4 and store.windows_at(np.array([2]))['mask'].tolist() == [[True, False, False]]


def test_padding_wants_actions(folder, tmp_path):
    alone = numbered_folder(tmp_path / 'set', [5, 1], val='1-1')
    says('set/val: no frame of 1 episodes has a real action',
         call=lambda: Store(alone, 'val', {'action': range(2)}, pad=True))
    says("want 'action' in windows(cfg)", call=lambda: Store(folder, 'train', {'video': range(2)}, pad=True))


def test_batch_holds_what_the_files_hold(folder):
    store = Store(folder, 'train', WINDOWS)
    video = np.load(os.path.join(folder, 'train', 'video.npy'))
    action = np.load(os.path.join(folder, 'train', 'action.npy'))
    ids = np.array([0, 5, len(store) - 1])
    batch = store.windows_at(ids)
    for i, (episode, row) in enumerate(zip(*store.locate(ids))):
        assert store.episodes[episode, 0] <= row and row + 6 <= store.episodes[episode, 1]
        assert np.array_equal(batch['video'][i], video[[row, row + 2, row + 4]])
        assert np.array_equal(batch['action'][i], action[row:row + 6])
    assert batch['index'].tolist() == ids.tolist() and batch['video'].dtype == torch.uint8


def test_batches_are_pure_and_shared_out(folder):
    store = Store(folder, 'train', WINDOWS)
    a, b = store.batch(17, 8, seed=3), Store(folder, 'train', WINDOWS).batch(17, 8, seed=3)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a['index'], store.batch(18, 8, seed=3)['index'])
    assert not torch.equal(a['index'], store.batch(17, 8, seed=4)['index'])
    for rank in range(2):
        assert torch.equal(store.batch(17, 8, 3, rank, 2)['action'], a['action'][rank::2])


def test_a_store_on_the_device_gives_the_same_batches(folder, broken):
    """`to` reads each key once; from then on the files may go. The same bytes, types and windows."""
    there, held = Store(folder, 'train', WINDOWS), Store(broken, 'train', WINDOWS)
    assert held.to('cpu') is held and held.held.keys() == WINDOWS.keys()
    assert held.nbytes == sum(value.numel() * value.element_size() for value in held.held.values())
    shutil.rmtree(broken)
    for step in range(3):
        for rank, world in ((0, 1), (1, 2)):
            a, b = (store.batch(step, 6, 3, rank, world) for store in (there, held))
            assert a.keys() == b.keys()
            for key in a: assert torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype, key
    a, b = (store.windows_at(np.array([0, len(there) - 1])) for store in (there, held))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_every_window_is_drawn(folder):
    store = Store(folder, 'val', WINDOWS)
    seen = np.concatenate([store.ids(step, 16, 0) for step in range(60)])
    assert set(seen) == set(range(len(store)))


def test_prefetch_keeps_order_and_raises_here():
    def fetch(step):
        if step == 7: raise ValueError('batch 7 is broken')
        return {'x': torch.tensor([step])}
    batches = Prefetch(fetch, 3, 'cpu')
    assert [batches.next()['x'].item() for _ in range(4)] == [3, 4, 5, 6]
    with pytest.raises(ValueError, match='batch 7'): batches.next()
    batches.close()


def test_prefetch_closes_although_a_fetch_hangs():
    hangs, started = threading.Event(), threading.Event()

    def fetch(step):
        started.set()
        hangs.wait(20)
    batches = Prefetch(fetch, 0, 'cpu')
    started.wait(20)
    before = time.monotonic()
    batches.close()
    assert time.monotonic() - before < 2
    hangs.set()


def test_prefetch_passes_on_an_exit_and_closes_when_full():
    def leave(step): raise SystemExit('one line')
    batches = Prefetch(leave, 0, 'cpu')
    with pytest.raises(SystemExit, match='one line'): batches.next()
    full = Prefetch(lambda step: {'x': torch.zeros(1)}, 0, 'cpu', depth=2)
    time.sleep(0.2)
    full.close()
    assert not full.thread.is_alive()


# ---- folders that are not as they should be: one line, the file, the way out ----

def says(*words, call):
    with pytest.raises(SystemExit) as stop: call()
    text = str(stop.value)
    assert '\n' not in text
    for word in words: assert word in text, text


def test_missing_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says('data/wall_pixels/meta.json not found',
         'make it: python data/wall/prepare.py --out=data/wall_pixels',
         call=lambda: read_meta('data/wall_pixels/'))


@pytest.mark.parametrize('folder, command', [
    ('somewhere/minihack_pixels', 'minihack/prepare.py --out=somewhere/minihack_pixels'),
    ('data/minihack_boulders_water',
     'minihack/prepare.py --level=boulders --water --out=data/minihack_boulders_water'),
    ('data/arx5_contact_full', 'arx5/prepare.py --contact --full --out=data/arx5_contact_full'),
    ('data/arx5_default/', 'arx5/prepare.py --out=data/arx5_default/'),
    ('data/lerobot_g1', 'lerobot/prepare.py --src=PATH --out=data/lerobot_g1; with --cameras=all --size=HxW '
     'for policies that see'),
    ('data/lerobot_g1video', 'lerobot/prepare.py --src=PATH --video=CAMERA --out=data/lerobot_g1video'),
    ('data/lerobot_g1cam', 'lerobot/prepare.py --src=PATH --cameras=all --out=data/lerobot_g1cam'),
    ('data/clips_size', 'clips/prepare.py --src=PATH --out=data/clips_size'),          # --size wants a value
    ('data/wall', 'wall/prepare.py')])                     # the folder of the code, which has a default
def test_how_to_make_it(folder, command):
    assert how_to_make(folder) == f'make it: python data/{command}'


def test_how_to_make_through_a_link(tmp_path):
    (tmp_path / 'disk').mkdir()
    os.symlink(tmp_path / 'disk' / 'wall_pixels', tmp_path / 'mine')
    assert how_to_make(f'{tmp_path}/mine') == f'make it: python data/wall/prepare.py --out={tmp_path}/mine'


def test_how_to_make_one_of_a_lerobot_set(tmp_path):
    (tmp_path / 'Parts' / 'meta').mkdir(parents=True)
    (tmp_path / 'Parts' / 'meta' / 'info.json').touch()
    assert (f'prepare.py --src={tmp_path}/Parts --cameras=all --out=data/lerobot_parts makes one of ours'
            in how_to_make(f'{tmp_path}/Parts'))


def test_data_is_not_part_of_the_name(tmp_path):
    (tmp_path / 'data' / 'mine').mkdir(parents=True)
    (tmp_path / 'data' / 'mine' / 'meta.json').touch()
    assert how_to_make(f'{tmp_path}/data/data/mine') == 'did you mean --dataset=mine?'


def test_how_to_make_what_nobody_makes():
    assert 'no prepare.py makes nosuch_pixels yet' in how_to_make('data/nosuch_pixels')
    assert '--vae=sd --size=256 --out=data/wall_sd' in how_to_make('data/wall_sd')
    assert 'no prepare.py makes pusht_sd yet' in how_to_make('data/pusht_sd')        # its data hold no video
    assert '--vae=taesd --size=64 --out=data/wall_taesd_64' in how_to_make('data/wall_taesd_64')


def test_unfinished_folder(tmp_path):
    (tmp_path / 'wall_pixels.tmp').mkdir()
    says('not finished, run again: python data/wall/prepare.py',
         call=lambda: read_meta(f'{tmp_path}/wall_pixels'))


def test_damaged_meta(broken):
    with open(os.path.join(broken, 'meta.json'), 'r+') as f: f.truncate(100)
    says('meta.json is damaged', 'delete', call=lambda: read_meta(broken))


def test_truncated_array(broken):
    with open(os.path.join(broken, 'train', 'video.npy'), 'r+') as f: f.truncate(5000)
    says('train/video.npy is truncated', 'delete', call=lambda: Store(broken, 'train', WINDOWS))


def test_missing_array(broken):
    os.remove(os.path.join(broken, 'train', 'action.npy'))
    says('train/action.npy is missing', call=lambda: Store(broken, 'train', WINDOWS))


def test_array_of_another_set(broken):
    np.save(os.path.join(broken, 'train', 'action.npy'), np.zeros((192, 3), np.float32))
    says('train/action.npy is float32 [192, 3]', 'meta.json says float32 [192, 2]',
         call=lambda: Store(broken, 'train', WINDOWS))


def test_key_that_the_set_does_not_have(folder):
    says('knows no train/latent.npy', 'train/video.npy',
         call=lambda: Store(folder, 'train', {'latent': range(4)}))


def test_window_longer_than_any_episode(folder):
    says('spans 13 frames', 'has 12', call=lambda: Store(folder, 'train', {'video': range(13)}))


@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    """A set with everything that meta.json can hold: 5 states, 2 actions."""
    def episode(i):
        rng = np.random.default_rng(i)
        action = rng.normal(size=(6, 2)).astype(np.float32)
        action[-1] = 0
        video = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
        return {'video': video, 'action': action, 'state': rng.normal(size=(6, 3)).astype(np.float32),
                'image.top': video.transpose(0, 3, 1, 2)}
    folder = tmp_path_factory.mktemp('robot') / 'robot'
    groups = {'joint': {'dims': [0, 1], 'unit': 'rad'},
              'speed': {'dims': [2], 'unit': '', 'rate_of': 'joint'}}
    write(folder, episode, 6, seed=0, val='1-2', workers=1, command='tests',
          info={'fps': 5, 'q_index': [0, 1], 'groups': groups, 'action_arrows': [[1, 0], [0, 1]],
                'facts': {'cameras': ['top']}})
    return folder


def put(*path):
    """Change one entry of a meta.json: put('facts', 'fps', 3)(meta)."""
    def change(meta):
        at = meta
        for key in path[:-2]: at = at[key]
        at[path[-2]] = path[-1]
    return change


def drop(*path):
    def change(meta):
        at = meta
        for key in path[:-1]: at = at[key]
        del at[path[-1]]
    return change


nan = float('nan')
BAD_META = [                   # what is done to a good one, what the line says
    (drop('facts'), 'facts is missing'), (drop('files'), 'files is missing'),
    (drop('stats'), 'stats is missing'), (put('facts', []), 'facts is missing or no object'),
    (drop('fps'), 'fps = None'), (put('fps', 0), 'fps = 0'),
    (put('fps', '5'), "fps = '5'"), (put('fps', nan), 'fps = nan'), (put('facts', 'fps', -1), 'fps = -1'),
    (put('padded', 'action'), "padded = 'action'"),
    (put('facts', 'input', 'sound'), "input = 'sound'"),
    (put('facts', 'action_dim', 3), 'action_dim = [3], but train/action.npy is [24, 2]'),
    (drop('facts', 'action_dim'), 'action_dim = [None]'),
    (put('facts', 'state_dim', '3'), "state_dim = ['3']"),
    (put('facts', 'height', 5), 'height, width, channels = [5, 5, 3]'),
    (drop('facts', 'width'), '[4, None, 3]'),
    (put('facts', 'channels', 1), 'channels = [4, 5, 1]'),
    (put('facts', 'cameras', ['top', 'left']), "cameras = ['top', 'left']; want the <name> of each train/im"),
    (put('facts', 'cameras', 'top'), "cameras = 'top'"),
    (put('files', 'train/image.top.npy', 'shape', [24, 3, 4, 9]), '[4, 5], but train/image.top.npy is'),
    (put('files', '../x.npy', {}), "'../x.npy' is not <split>/<key>.npy"),
    (put('files', 'train/action.npy', 7), 'train/action.npy has no shape'),
    (put('files', 'train/action.npy', 'shape', [-1, 2]), 'has the shape [-1, 2]'),
    (drop('files', 'train/action.npy', 'bytes'), 'no size in bytes'),
    (drop('files', 'train/action.npy', 'sha256'), 'no sha256'), (put('files', {}), 'no train/episodes.npy'),
    (drop('files', 'val/episodes.npy'), 'no val/episodes.npy'),
    (drop('stats', 'action'), 'stats: action is missing'), (put('stats', 'state', 3), 'state is no object'),
    (drop('stats', 'action', 'q99'), 'action has no q99'),
    (put('stats', 'action', 'mean', [0.0]), 'action has 1 numbers of mean; want 2'),
    (put('stats', 'delta_state', 'std', [1.0] * 4), 'delta_state has 4 numbers of std; want 3'),
    (put('stats', 'action', 'mean', [0.0, nan]), 'mean of action is [0.0, nan]'),
    (put('stats', 'action', 'max', [0.0, 10**400]), 'max of action is'),
    (put('stats', 'action', 'std', [1.0, 0.0]), 'std of action is [1.0, 0.0]; want it above 0'),
    (put('stats', 'state', 'std', [1.0, 1.0, -2.0]), 'want it above 0'),
    (put('q_index', [0, 3]), 'q_index = [0, 3]: want 2 entries (one per action) below state_dim = 3'),
    (put('facts', 'q_index', [0]), 'q_index = [0]: want 2'), (put('q_index', 'ab'), "q_index = 'ab'"),
    (put('q_index', [0, 1.0]), 'q_index = [0, 1.0]'), (put('groups', [1]), 'groups = [1]'),
    (put('groups', 'joint', 3), 'joint = 3'),
    (put('groups', 'joint', 'dims', [0, 9]), 'dims of joint = [0, 9]'),
    (put('groups', 'joint', 'dims', []), 'dims of joint = []'),
    (drop('groups', 'joint', 'unit'), 'has no unit'),
    (put('groups', 'speed', 'dims', [1]), 'entries [1] are in twice'),
    (put('groups', 'speed', 'rate_of', 'x'), "rate_of 'x', which is no group"),
    (put('groups', 'speed', 'rate_of', [1]), 'which is no group'),
    (put('action_arrows', [[1, 0]]), 'action_arrows = [[1, 0]]'),
    (put('action_arrows', 'up'), "arrows = 'up'"),
    (put('action_arrows', [[1, 0], [0, 'x']]), "[0, 'x']]")]


@pytest.mark.parametrize('change, words', BAD_META, ids=[words for _, words in BAD_META])
def test_bad_meta(robot, tmp_path, change, words):
    meta = copy.deepcopy(read_meta(robot))
    change(meta)
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    says(f'{tmp_path}/meta.json is damaged (', words, f'delete {tmp_path}, then',
         call=lambda: read_meta(str(tmp_path)))


@pytest.mark.parametrize('content, words', [
    (b'\x93NUMPY\xff\x00', 'is damaged'), (b'', 'is damaged'), (b'[1, 2]', 'it holds a list'),
    (b'null', 'it holds a NoneType'), (b'{"fps": ', 'is damaged'), (b'[' * 100000, 'is damaged')])
def test_meta_that_is_none(tmp_path, content, words):
    (tmp_path / 'meta.json').write_bytes(content)
    says('meta.json', words, call=lambda: read_meta(str(tmp_path)))


def test_a_dataset_that_is_a_file(tmp_path):
    (tmp_path / 'wall_pixels').write_text('')
    says('is a file, no data folder', call=lambda: read_meta(f'{tmp_path}/wall_pixels'))
    (tmp_path / 'meta.json').mkdir()
    says('Is a directory', call=lambda: read_meta(str(tmp_path)))


def test_files_that_may_not_be_read(broken, monkeypatch):
    """Root may read everything, so we say no in its place."""
    def refuse(path, *rest, **kw): raise PermissionError(13, 'Permission denied', str(path))
    for what in 'builtins.open', 'os.path.getsize':
        with monkeypatch.context() as m:
            store = Store(broken, 'train', WINDOWS)
            m.setattr(what, refuse)
            says('Permission denied; make it readable', call=lambda: Store(broken, 'train', WINDOWS))
            if what == 'builtins.open': says('video.npy: Permission denied', call=store.verify)


@pytest.mark.parametrize('episodes, words', [
    (np.arange(16), 'it is int64 [16]'), (np.zeros((2, 3), int), 'it is int64 [2, 3]'),
    (np.array([[0.0, 12.0]]), 'it is float64 [1, 2]'), (np.zeros((0, 2), int), 'it is int64 [0, 2]'),
    (np.array([[0, 12], [180, 193]]), 'want 0 <= start < end <= 192'),
    (np.array([[-12, 0]]), 'want 0 <= start'),
    (np.array([[12, 12]]), 'want 0 <= start'), (np.array([[24, 12]]), 'want 0 <= start'),
    (np.array([[12, 24], [0, 13]]), 'row [12] belongs to two episodes'),
    (np.array([[0, 12], [0, 12]]), 'row [0] belongs to two episodes')])
def test_bad_episodes(broken, episodes, words):
    """As a file that meta.json describes rightly: only what it says is wrong."""
    path = os.path.join(broken, 'train', 'episodes.npy')
    np.save(path, episodes)
    meta = read_meta(broken)
    meta['files']['train/episodes.npy'] |= {'shape': list(episodes.shape), 'dtype': str(episodes.dtype),
                                            'bytes': os.path.getsize(path)}
    with open(os.path.join(broken, 'meta.json'), 'w') as f: json.dump(meta, f)
    says('train/episodes.npy', words, call=lambda: Store(broken, 'train', WINDOWS))


def test_keys_of_other_lengths(broken):
    path = os.path.join(broken, 'train', 'action.npy')
    np.save(path, np.load(path)[:-1])
    meta = read_meta(broken)
    meta['files']['train/action.npy'] |= {'shape': [191, 2], 'bytes': os.path.getsize(path)}
    with open(os.path.join(broken, 'meta.json'), 'w') as f: json.dump(meta, f)
    says('keys differ in length', call=lambda: Store(broken, 'train', WINDOWS))


def test_any_damage_of_a_header_is_one_line(broken):
    """Random bytes in the first 128: numpy raises errors of several kinds, we say one line or read on."""
    path, rng = os.path.join(broken, 'train', 'action.npy'), np.random.default_rng(0)
    with open(path, 'rb') as f: whole = f.read()
    store, refused = Store(broken, 'train', WINDOWS), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(0, 128, 2): damaged[at] = rng.integers(256)
        with open(path, 'wb') as f: f.write(damaged)
        try:
            assert store.open('action').shape == (192, 2)
        except SystemExit as stop:
            assert 'train/action.npy is' in stop.code and '\n' not in stop.code
            refused += 1
    assert refused > 150
    with open(path, 'ab') as f: f.write(b'more')
    with open(path, 'r+b') as f: f.write(whole)
    says('is truncated or damaged', call=lambda: store.open('action'))


def test_verify(broken):
    store = Store(broken, 'train', WINDOWS)
    store.verify()
    with open(os.path.join(broken, 'val', 'video.npy'), 'r+b') as f:      # the other split counts too
        f.seek(5000)
        f.write(b'\x01')
    says('val/video.npy is not what was written', 'delete', call=store.verify)


def test_identity(folder, robot, tmp_path):
    """Of the bytes and the facts; not of the command, the folder or the time."""
    meta = read_meta(folder)
    assert identity(meta) == identity(meta | {'command': 'x', 'source': 'y', 'padded': []})
    assert identity(meta) == identity(json.loads(json.dumps(meta, sort_keys=True)))
    assert identity(meta) != identity(meta | {'facts': meta['facts'] | {'fps': 9}})
    other = copy.deepcopy(meta)
    other['files']['val/action.npy']['sha256'] = 'f' * 64
    assert len({identity(meta), identity(other), identity(read_meta(robot))}) == 3


def test_simulator(tmp_path, monkeypatch):
    """Only an env.py of ours; a data folder that comes with code does not get it run."""
    from data.minihack import env
    assert simulator({'env': 'data.minihack.env'}) is env and simulator({}) is None
    (tmp_path / 'env.py').write_text('raise RuntimeError("was run")')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('data.evil.env', 'env', 'data.arx5.evil', 'os', 'data..env', 'data.arx5/../x.env', 7, [], '',
                 'out.data.arx5.env', 'data.lerobot.env'):                # it has no simulator
        says('meta.json: env = ', "want 'data.<name>.env'", call=lambda name=name: simulator({'env': name}))
    from data import layout
    (tmp_path / 'evil').mkdir()
    for file in 'env.py', 'meta.json': (tmp_path / 'evil' / file).write_text('raise RuntimeError("was run")')
    monkeypatch.setattr(layout, 'HERE', str(tmp_path))
    says("env = 'data.evil.env'", call=lambda: simulator({'env': 'data.evil.env'}))
    assert 'data.evil' not in sys.modules


def test_changed_between_two_batches(broken):
    """The memmap is opened per batch, so a file that breaks during a run is noticed."""
    store = Store(broken, 'train', WINDOWS)
    store.batch(0, 4, 0)
    os.remove(os.path.join(broken, 'train', 'video.npy'))
    says('video.npy is missing', call=lambda: store.batch(1, 4, 0))


def test_meta_is_plain_json(folder):
    meta = read_meta(folder)
    assert json.loads(json.dumps(meta)) == meta and meta['facts']['input'] == 'video'
