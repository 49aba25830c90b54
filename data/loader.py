"""
Data folders -> batches.

A folder holds {train,val}/<key>.npy (one row per frame), {train,val}/episodes.npy (E, 2) with [start, end) rows, and
meta.json. `Store` cuts windows out of the episodes; a window never crosses from one episode into the next.

Batch `step` is a pure function of (seed, step): `store.batch(17, ...)` is batch 17, today and in a notebook. Rank r
takes every world-th row of it from r on. So resuming needs no loader state, and any number of GPUs sees the same data.
"""
import json
import os
import queue
import sys
import threading

import numpy as np
import torch


def read_meta(folder):
    """meta.json of a data folder, or exit with one line that says what is missing and how to make it."""
    path = os.path.join(folder, 'meta.json')
    try:
        with open(path) as f:
            return json.load(f)
    except FileNotFoundError:
        sys.exit(f'{path} not found; {how_to_make(folder)}')
    except json.JSONDecodeError as error:
        sys.exit(f'{path} is damaged ({error}); delete {folder}, then {how_to_make(folder)}')


def how_to_make(folder):
    """The command that makes a data folder; data/<name>_<variant> comes from data/<name>/prepare.py."""
    here, dataset = os.path.dirname(os.path.abspath(__file__)), os.path.basename(os.path.normpath(folder))
    name, _, variant = dataset.rpartition('_')
    prepare = os.path.join(here, name, 'prepare.py')
    if variant != 'sd' and os.path.exists(prepare):
        how = 'it was not finished, run again' if os.path.exists(folder.rstrip('/') + '.tmp') else 'make it'
        with open(prepare) as f: text = f.read()
        flag = f'--{variant} ' if f"'--{variant}'" in text else '--src=PATH ' if "'--src'" in text else ''
        return f'{how}: python data/{name}/prepare.py {flag}--out={folder}'
    return (f'no prepare.py makes {dataset} yet: train on another set (--dataset=wall_pixels) or write this folder '
            'in the layout that data/loader.py describes')


class Store:
    """
    Windows of one split. `windows` = {key: range of frame offsets} comes from the model file; offsets may be negative
    and may differ per key. Sample id i is the i-th window of the split, counted episode by episode.
    """

    def __init__(self, folder, split, windows):
        self.folder, self.split, self.windows = folder, split, windows
        self.meta = read_meta(folder)
        self.episodes = self.open('episodes')[:]                                       # (E, 2)
        self.nbytes = sum(self.open(key).nbytes for key in windows)                    # complain now, not at step 0
        self.held = {}                                                                 # see `to`
        self.first = min(min(r) for r in windows.values())
        length = max(max(r) for r in windows.values()) - self.first + 1                # frames a window spans
        per_episode = np.maximum(self.episodes[:, 1] - self.episodes[:, 0] - length + 1, 0)
        self.ends = per_episode.cumsum()                                               # windows up to, with, episode e
        if len(self) == 0:
            longest = (self.episodes[:, 1] - self.episodes[:, 0]).max(initial=0)
            sys.exit(f'{folder}/{split}: a window spans {length} frames, the longest of {len(self.episodes)} episodes '
                     f'has {longest}; use fewer frames (num_frames, history, frame_skip, n_context, length)')

    def __len__(self):
        return int(self.ends[-1]) if len(self.ends) else 0

    def open(self, key):
        """The memmap of one key; opened anew for each batch, because its pages count as ours until it is closed."""
        name = f'{self.split}/{key}.npy'
        path, files = os.path.join(self.folder, name), self.meta['files']
        remake = f'delete {self.folder}, then {how_to_make(self.folder)}'
        if name not in files:
            if self.split == 'val' and not any(file.startswith('val/') for file in files):
                sys.exit(f'{self.folder} has no val split: delete it and make it again, with --val=0.1')
            sys.exit(f'{self.folder}/meta.json knows no {name}, only {", ".join(files)}; is it the right dataset?')
        try:
            array = np.load(path, mmap_mode='r')
        except FileNotFoundError:
            sys.exit(f'{path} is missing; {remake}')
        except (ValueError, EOFError) as error:
            sys.exit(f'{path} is truncated or damaged ({error}); {remake}')
        expected = files[name]
        if list(array.shape) != list(expected['shape']) or str(array.dtype) != expected['dtype']:
            sys.exit(f'{path} is {array.dtype} {list(array.shape)}, meta.json says {expected["dtype"]} '
                     f'{list(expected["shape"])}; {remake}')
        return array

    def locate(self, ids):
        """Sample ids (B,) -> episode (B,) and the row of frame offset 0 (B,)."""
        episode = np.searchsorted(self.ends, ids, side='right')
        before = np.where(episode > 0, self.ends[episode - 1], 0)
        return episode, self.episodes[episode, 0] + (ids - before) - self.first

    def windows_at(self, ids):
        """Sample ids (B,) -> {key: (B, len(range), ...)} and `index` (B,), torch tensors."""
        rows = self.locate(ids)[1]
        batch = {key: self.rows(key, rows[:, None] + np.asarray(offsets)) for key, offsets in self.windows.items()}
        return batch | {'index': torch.from_numpy(np.asarray(ids, dtype=np.int64))}

    def rows(self, key, where):
        if key in self.held: return self.held[key][torch.from_numpy(where).to(self.held[key].device)]
        return torch.from_numpy(self.open(key)[where])

    def to(self, device):
        """Copy the split to the device once; batches are then gathered there, and only row numbers travel."""
        self.held = {key: torch.from_numpy(np.array(self.open(key))).to(device) for key in self.windows}
        return self

    def ids(self, step, batch_size, seed, rank=0, world=1):
        """Which windows batch `step` holds: drawn for the whole batch, then this rank's rows."""
        return np.random.default_rng([seed, step]).integers(len(self), size=batch_size)[rank::world]

    def batch(self, step, batch_size, seed, rank=0, world=1):
        return self.windows_at(self.ids(step, batch_size, seed, rank, world))


class Prefetch:
    """One daemon thread calls fetch(start), fetch(start + 1), ... and stays up to `depth` batches ahead of `next`."""

    def __init__(self, fetch, start, device, depth=4):
        self.device, self.queue, self.stop = torch.device(device), queue.Queue(depth), threading.Event()
        self.thread = threading.Thread(target=self.work, args=(fetch, start), daemon=True)
        self.thread.start()

    def work(self, fetch, step):
        item = None
        while not self.stop.is_set() and not isinstance(item, BaseException):
            try:
                item = fetch(step)
                if self.device.type == 'cuda':
                    item = {key: v if v.is_cuda else v.pin_memory() for key, v in item.items()}
            except BaseException as error:                    # SystemExit too: it must end the run, not this thread
                item = error
            step += 1
            while not self.stop.is_set():                     # a put that waits for ever could not be stopped
                try:
                    self.queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass

    def next(self):
        """The next batch on the device; an error of the thread is raised here."""
        item = self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return {key: value.to(self.device, non_blocking=True) for key, value in item.items()}

    def close(self):
        self.stop.set()
        self.thread.join()
