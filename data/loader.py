"""
Data folders -> batches.

`Store` cuts windows out of the episodes of a folder; no window mixes two of them. data/layout.py says what
lies in such a folder, and reads its meta.json. Whatever a file says is checked before it is used.

    pad=False    world models: whole windows only; sample i is the i-th window that fits into an episode
    pad=True     policies: one window per frame with a real action, but for the last `drop` of an episode;
                 rows outside the episode repeat the row at its edge, and `mask` (B, T) bool, T =
                 len(windows['action']), is True where an action is real

Episodes may also be made during the training (DAgger): `store.add` takes them, behind those of the folder or
without any folder; the oldest are forgotten. Then a batch also depends on what was added before.

Offset 0 is frame t itself. Batch `step` is a pure function of (seed, step): `store.batch(17, ...)` is batch
17, today and in a notebook. Rank r takes every world-th row of it from r on. So resuming needs no loader
state, and any number of GPUs sees the same data.
"""
import hashlib
import math
import os
import queue
import sys
import threading

import numpy as np
import torch
import torch.distributed as dist

from data.layout import check_episodes, check_task, how_to_make, how_to_remake, identity, read_meta, simulator

__all__ = ['Prefetch', 'Store', 'how_to_make', 'identity', 'read_meta', 'simulator']


class Store:
    """
    Windows of one split of a data folder; sample id i is the i-th of them, counted episode by episode.

    windows    {key: range of frame offsets} of the model file; offsets may be negative and may differ per key
    pad, drop  False: whole windows only; True: one per frame with a real action, but for the last `drop` of
               them (see the top of this file)
    hint       the keys a user can turn down where no episode is long enough
    capacity   windows at most, with those of the folder, once episodes are added; 0 = no limit
    folder     None: there are only the episodes that are added
    """

    def __init__(self, folder, split, windows, pad=False,
                 hint='num_frames, history, frame_skip, n_context, length', capacity=0, drop=0):
        self.folder, self.split, self.windows, self.pad, self.drop = folder, split, windows, pad, drop
        self.capacity, self.added = capacity, {}               # {key: rows of the episodes that were added}
        self.games = np.zeros((0, 0), np.int64)                # see `add`
        self.forgotten = 0                                     # windows of the oldest added episode
        self.held = {}                                         # see `to`
        self.meta = {'files': {}, 'stats': {}, 'facts': {}, 'padded': []}
        self.episodes, self.nbytes, self.frames = np.zeros((0, 2), np.int64), 0, 0
        if folder is not None:
            self.look_into(folder, split)
        self.fixed = len(self.episodes)                        # of the folder
        self.count(None if folder is None else hint)

    def look_into(self, folder, split):
        """The arrays of the folder, checked against its meta.json."""
        self.meta = read_meta(folder)
        arrays = {key: self.open(key) for key in self.windows}      # complain now, not at step 0
        self.nbytes = sum(x.nbytes for x in arrays.values())
        self.episodes, key = np.array(self.open('episodes')), 'episodes'       # (E, 2)
        try:
            check_episodes(self.episodes, {key: len(x) for key, x in arrays.items()})
            if 'task' in arrays:
                key = 'task'
                check_task(arrays[key], self.meta.get('tasks'))
        except ValueError as error:
            sys.exit(f'{folder}/{split}/{key}.npy: {error}; {how_to_remake(folder)}')
        self.frames = min(len(x) for x in arrays.values())

    def count(self, hint):
        """Windows per episode. Exits if there are none, unless hint is None: then some may still be added."""
        lengths = self.episodes[:, 1] - self.episodes[:, 0]
        where = f'{self.folder}/{self.split}'
        self.padded = set(self.meta.get('padded', ['action']))         # their last row is no data
        if self.pad:
            if 'action' not in self.windows:
                sys.exit("PAD = True: want 'action' in windows(cfg), because `mask` lies on its range")
            self.first = 0                                     # the first window is that of frame 0
            spare = ('action' in self.padded) + self.drop      # frames where none begins
            per_episode = np.maximum(lengths - spare, 0)
            why = (f'{where}: no frame of {len(lengths)} episodes has a real action'
                   + f' and {self.drop} more after it (drop_n_last_frames)' * bool(self.drop)
                   + f'; want {spare + 1} frames or more')
        else:
            self.first = min(min(offsets) for offsets in self.windows.values())     # it begins with row 0
            span = max(max(offsets) for offsets in self.windows.values()) - self.first + 1
            per_episode = np.maximum(lengths - span + 1, 0)
            why = (f'{where}: a window spans {span} frames, the longest of {len(lengths)} episodes has '
                   f'{lengths.max(initial=0)}; use fewer frames ({hint})')
        self.shift = np.zeros(len(lengths), np.int64)          # windows at the start that are forgotten
        if len(lengths) > self.fixed:
            self.shift[self.fixed] = self.forgotten
        self.per_episode = per_episode - self.shift
        self.ends = self.per_episode.cumsum()                  # windows up to, with, episode e
        if len(self) == 0 and hint is not None:
            sys.exit(why)

    def __len__(self):
        return int(self.ends[-1]) if len(self.ends) else 0

    def open(self, key):
        """The memmap of one key; opened anew per batch: its pages count as ours until it is closed."""
        name = f'{self.split}/{key}.npy'
        path, files = os.path.join(self.folder, name), self.meta['files']
        if name not in files:
            if self.split == 'val' and not any(file.startswith('val/') for file in files):
                sys.exit(f'{self.folder} has no val split: delete it and make it again, with --val=0.1')
            if name == 'train/video.npy' and 'train/latent.npy' in files:
                sys.exit(f'{self.folder}/train holds latents and no pictures (--vae); only val has both')
            sys.exit(f'{self.folder}/meta.json knows no {name}, only {", ".join(files)}; is it the right '
                     'dataset?')
        want = files[name]
        try:
            size = os.path.getsize(path)
            array = np.lib.format.open_memmap(path, mode='r')
        except FileNotFoundError:
            sys.exit(f'{path} is missing; {how_to_remake(self.folder)}')
        except OSError as error:
            sys.exit(f'{path}: {error.strerror or error}; make it readable or use another dataset')
        except Exception:                                      # numpy has many words for a damaged header
            array = None
        if array is not None and (list(array.shape) != want['shape'] or str(array.dtype) != want['dtype']):
            sys.exit(f'{path} is {array.dtype} {list(array.shape)}, meta.json says {want["dtype"]} '
                     f'{want["shape"]}; {how_to_remake(self.folder)}')
        if array is None or size != want['bytes']:
            sys.exit(f'{path} is truncated or damaged ({size} bytes, meta.json says {want["bytes"]}); '
                     f'{how_to_remake(self.folder)}')
        return array

    def verify(self):
        """Read every file of the folder, of all splits; exit with one line if one is not what was written."""
        for name, entry in self.meta['files'].items():
            path, sha = os.path.join(self.folder, name), hashlib.sha256()
            try:
                with open(path, 'rb') as f:
                    while piece := f.read(1 << 20):
                        sha.update(piece)
            except OSError as error:
                sys.exit(f'{path}: {error.strerror}; {how_to_remake(self.folder)}')
            if sha.hexdigest() != entry['sha256']:
                sys.exit(f'{path} is not what was written: sha256 {sha.hexdigest()[:12]}..., meta.json '
                         f'says {entry["sha256"][:12]}...; {how_to_remake(self.folder)}')

    def locate(self, ids):
        """Sample ids (B,) -> episode (B,) and the row of frame offset 0 (B,)."""
        episode = np.searchsorted(self.ends, ids, side='right')
        before = np.where(episode > 0, self.ends[episode - 1], 0)
        return episode, self.episodes[episode, 0] + self.shift[episode] + (ids - before) - self.first

    def windows_at(self, ids):
        """Sample ids (B,) -> {key: (B, len(range), ...)}, `mask` if pad, and `index` (B,), torch tensors."""
        batch = {}
        episode, rows = self.locate(ids)
        for key, offsets in self.windows.items():
            where = rows[:, None] + np.asarray(offsets)        # (B, T)
            if self.pad:
                first, end = self.episodes[episode].T[:, :, None]      # (B, 1) each
                last = end - 1 - (key in self.padded)
                if key == 'action':
                    batch['mask'] = torch.from_numpy((first <= where) & (where <= last))
                where = where.clip(first, last)
            batch[key] = self.rows(key, where)
        return batch | {'index': torch.from_numpy(np.asarray(ids, dtype=np.int64))}

    def rows(self, key, where):
        """Rows (B, T) of one key -> (B, T, ...), from the device if `to` put it there, else from the file."""
        if key in self.held and not self.added:
            return self.held[key][torch.from_numpy(where).to(self.held[key].device)]
        if not self.added:
            return torch.from_numpy(self.open(key)[where])
        new, old = self.added[key], where < self.frames
        rows = np.empty((*where.shape, *new.shape[1:]), new.dtype)
        rows[~old] = new[where[~old] - self.frames]
        if old.any():
            rows[old] = self.open(key)[where[old]]
        return torch.from_numpy(rows)

    def to(self, device):
        """Copy the split to the device once; batches are then gathered there, and only row numbers travel."""
        self.held = {key: torch.from_numpy(np.array(self.open(key))).to(device) for key in self.windows}
        return self

    # ---- episodes that are made during the training ----

    def add(self, games):
        """
        games: this rank's [(number, row, episode)]. row: whole numbers to remember in `table`, or None.
        episode: {key: (T, ...)}, or None where there is nothing to learn. Every rank must call it, because
        the lists are gathered; then all hold the same games, in the order of their numbers. The oldest
        windows are forgotten when there are more than `capacity`. -> the rows of all ranks, (n, columns).
        """
        if dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, games)
            games = sum(parts, [])
        games = sorted(games, key=lambda game: game[0])
        rows = np.array([row for _, row, _ in games if row is not None], np.int64)
        if len(rows):
            self.games = np.concatenate([self.games, rows]) if len(self.games) else rows
        self.append([episode for *_, episode in games if episode is not None])
        return rows

    def append(self, episodes):
        """Episodes {key: (T, ...)} behind those that are there; then forget what is too much."""
        for episode in episodes:
            T = self.length_of(episode)
            end = self.episodes[-1, 1] if len(self.episodes) else 0
            self.episodes = np.concatenate([self.episodes, [[end, end + T]]])
        if episodes:
            for key in self.windows:
                before = [self.added[key]] if key in self.added else []
                self.added[key] = np.concatenate(before + [episode[key] for episode in episodes])
        self.count(None)
        much = len(self) - self.capacity if self.capacity else 0
        if much <= 0 or len(self.episodes) == self.fixed:
            return
        online = self.per_episode[self.fixed:].cumsum()
        gone = int(np.searchsorted(online, much, side='right'))        # whole episodes
        rest = much - (int(online[gone - 1]) if gone else 0)
        self.forgotten = rest + (0 if gone else self.forgotten)
        if gone:
            frames = int(self.episodes[self.fixed + gone - 1, 1]) - self.frames
            self.added = {key: rows[frames:].copy() for key, rows in self.added.items()}
            online = self.episodes[self.fixed + gone:] - frames
            self.episodes = np.concatenate([self.episodes[:self.fixed], online])
        self.count(None)

    def length_of(self, episode):
        """T of an episode that is to be added; ValueError where it does not look like those before."""
        lengths = {key: len(episode[key]) for key in self.windows if key in episode}
        if len(lengths) < len(self.windows) or len({*lengths.values()}) > 1 or 0 in lengths.values():
            raise ValueError(f'store.add: want rows of {", ".join(self.windows)}, as many of each; '
                             f'got {lengths}')
        for key, rows in self.added.items():
            if rows.dtype != episode[key].dtype or rows.shape[1:] != episode[key].shape[1:]:
                raise ValueError(f'store.add: {key} is {episode[key].dtype} {list(episode[key].shape[1:])}, '
                                 f'before it was {rows.dtype} {list(rows.shape[1:])}')
        return lengths.popitem()[1]

    def table(self, columns):
        """The rows of all games so far, (n, columns): what a `refresh` remembers."""
        if len(self.games) == 0:
            return np.zeros((0, len(columns)), np.int64)
        assert self.games.shape[1] == len(columns), f'{len(columns)} columns of {self.games.shape[1]}'
        return self.games

    def state(self):
        """What was added, as tensors: for a checkpoint."""
        arrays = {f'rows.{key}': rows for key, rows in self.added.items()}
        arrays |= {'episodes': self.episodes[self.fixed:] - self.frames, 'games': self.games,
                   'forgotten': np.array([self.forgotten])}
        return {key: torch.from_numpy(x) for key, x in arrays.items()}

    def restore(self, state, source):
        """The same from a checkpoint's file, `source`; one line if it does not hold together."""
        arrays = {key: x.numpy() for key, x in state.items()}
        try:
            self.added = {key: arrays[f'rows.{key}'] for key in self.windows if f'rows.{key}' in arrays}
            self.games, self.forgotten = arrays['games'], int(arrays['forgotten'][0])
            if len(arrays['episodes']):
                check_episodes(arrays['episodes'], {key: len(self.added[key]) for key in self.windows})
            self.episodes = np.concatenate([self.episodes[:self.fixed], arrays['episodes'] + self.frames])
        except (KeyError, ValueError) as error:
            sys.exit(f'{source} is damaged ({error}); take another checkpoint of this run')
        self.count(None)

    def ids(self, step, batch_size, seed, rank=0, world=1):
        """Which windows batch `step` holds: drawn for the whole batch, then this rank's rows."""
        return np.random.default_rng([seed, step]).integers(len(self), size=batch_size)[rank::world]

    def batch(self, step, batch_size, seed, rank=0, world=1):
        """Batch `step`: the windows at its ids."""
        return self.windows_at(self.ids(step, batch_size, seed, rank, world))


class Prefetch:
    """
    A daemon thread calls fetch(start), fetch(start + 1), ..., without `end` (None: for ever), at most `depth`
    batches ahead of `next`, which must not be asked for more.
    """

    def __init__(self, fetch, start, device, depth=4, end=None):
        self.end = math.inf if end is None else end
        self.device, self.queue, self.stop = torch.device(device), queue.Queue(depth), threading.Event()
        self.thread = threading.Thread(target=self.work, args=(fetch, start), daemon=True)
        self.thread.start()

    def work(self, fetch, step):
        item = None
        while step < self.end and not self.stop.is_set() and not isinstance(item, BaseException):
            try:
                item = fetch(step)
                if self.device.type == 'cuda':
                    item = {key: v if v.is_cuda else v.pin_memory() for key, v in item.items()}
            except BaseException as error:            # SystemExit too: it must end the run, not this thread
                item = error
            step += 1
            while not self.stop.is_set():             # a put that waits for ever could not be stopped
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
        """Stop the thread. One that hangs in a slow disk is left behind: a daemon ends with its process."""
        self.stop.set()
        self.thread.join(timeout=1.5)
