"""Store and Prefetch: windows stay inside episodes, a batch is a function of (seed, step), bad folders get one line."""
import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Prefetch, Store, how_to_make, read_meta

WINDOWS = {'video': range(0, 6, 2), 'action': range(0, 6)}


@pytest.fixture
def folder(data_dir): return os.path.join(data_dir, 'tiny_pixels')


@pytest.fixture
def broken(folder, tmp_path):
    """A copy to damage."""
    shutil.copytree(folder, tmp_path / 'tiny_pixels')
    return str(tmp_path / 'tiny_pixels')


def fake_store(lengths, windows):
    """A Store over made-up episodes, without files."""
    store = Store.__new__(Store)
    ends = np.cumsum(lengths)
    store.episodes, store.windows = np.stack([ends - lengths, ends], 1), windows
    store.first = min(min(r) for r in windows.values())
    span = max(max(r) for r in windows.values()) - store.first + 1
    store.ends = np.maximum(np.array(lengths) - span + 1, 0).cumsum()
    return store


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(-2, 2), st.integers(1, 5), st.integers(1, 3))
@settings(deadline=None)
def test_windows_are_exactly_those_inside_episodes(lengths, first, count, skip):
    windows = {'video': range(0, count * skip, skip), 'action': range(first, first + 3)}
    store = fake_store(lengths, windows)
    lo, hi = min(0, first), max((count - 1) * skip, first + 2)
    naive = [(e, start) for e, (a, b) in enumerate(store.episodes) for start in range(a - lo, b - hi)]
    assert len(store) == len(naive)
    if naive:
        episode, row = store.locate(np.arange(len(store)))
        assert list(zip(episode, row)) == naive


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
    says('data/wall_pixels/meta.json not found', 'make it: python data/wall/prepare.py --out=data/wall_pixels',
         call=lambda: read_meta('data/wall_pixels/'))


def test_how_to_make():
    made = how_to_make('somewhere/minihack_pixels')
    assert made == 'make it: python data/minihack/prepare.py --pixels --out=somewhere/minihack_pixels'
    assert 'no prepare.py makes nosuch_pixels yet' in how_to_make('data/nosuch_pixels')
    assert 'no prepare.py makes wall_sd yet' in how_to_make('data/wall_sd')        # latents: not yet


def test_unfinished_folder(tmp_path):
    (tmp_path / 'wall_pixels.tmp').mkdir()
    says('not finished, run again: python data/wall/prepare.py', call=lambda: read_meta(f'{tmp_path}/wall_pixels'))


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
    says('knows no train/latent.npy', 'train/video.npy', call=lambda: Store(folder, 'train', {'latent': range(4)}))


def test_window_longer_than_any_episode(folder):
    says('spans 13 frames', 'has 12', call=lambda: Store(folder, 'train', {'video': range(13)}))


def test_changed_between_two_batches(broken):
    """The memmap is opened per batch, so a file that breaks during a run is noticed."""
    store = Store(broken, 'train', WINDOWS)
    store.batch(0, 4, 0)
    os.remove(os.path.join(broken, 'train', 'video.npy'))
    says('video.npy is missing', call=lambda: store.batch(1, 4, 0))


def test_meta_is_plain_json(folder):
    meta = read_meta(folder)
    assert json.loads(json.dumps(meta)) == meta and meta['facts']['input'] == 'video'
