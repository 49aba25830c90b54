"""
From "one episode as a function of its number" to a data folder; every prepare.py ends in one call of `write`.

    episode(i) -> {key: (T, ...) array}     picklable; its random numbers come from (seed, i) and nothing else
    write(out, episode, n, ...)             -> out/{train,val}/<key>.npy and episodes.npy (E, 2), out/meta.json
    keys      'video' (T, H, W, C) uint8, 'action' (T, A) float32, 'state' (T, S) float32, 'latent' (T, C, h, w), ...
    action    row t is taken at frame t and leads to frame t + 1; the last row leads nowhere and is zero (see `padded`)

Workers compute SHARD episodes at a time into <out>.tmp/, so a stopped run goes on where it was. Then one process
streams the shards, in episode order, into the final arrays, and one rename makes the folder appear. The bytes depend on
the command alone, not on the number of workers nor on an interruption. While it runs, the disk holds the data twice.
"""
import argparse
import fcntl
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

SHARD = 8         # episodes per temporary file: what an interruption may cost each worker


def flags(doc, out, val='0.1'):
    """ArgumentParser with the flags of every prepare.py. Add your own, then `write(..., **common(args, __file__))`."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default=out, help=f'folder to make (default {out})')
    p.add_argument('--seed', type=int, default=0, help='another seed is another set (default 0)')
    p.add_argument('--val', default=val, help=f'validation episodes: a share, 0.1, or a range, 85-99 (default {val})')
    p.add_argument('--workers', type=int, default=os.cpu_count(), help='processes (default: all cores)')
    p.add_argument('--limit', type=int, default=0, help='at most this many episodes (default 0: all)')
    return p


def common(args, file):
    """What `write` wants to know of the flags; `command` spells out all of them that change a byte."""
    told = {k: v for k, v in vars(args).items() if k not in ('out', 'workers') and v is not False}
    told = ' '.join(f'--{k}' if v is True else f'--{k}={v}' for k, v in told.items())
    file = '/'.join(Path(file).resolve().parts[-3:])
    return {k: getattr(args, k) for k in ('seed', 'val', 'workers', 'limit')} | {'command': f'python {file} {told}'}


def split(n, val, seed):
    """Validation mask (n,) bool over whole episodes. val: a share in [0, 1), drawn with the seed, or 'first-last'."""
    mask, span = np.zeros(n, bool), re.fullmatch(r'(\d+)-(\d+)', str(val))
    if span:
        a, b = int(span[1]), int(span[2])
        if not a <= b < n: sys.exit(f'--val={val}: episodes are 0-{n - 1}; use a range inside, or a share like 0.1')
        mask[a:b + 1] = True
    else:
        share = float(val) if re.fullmatch(r'\d*\.?\d+', str(val)) else -1
        if not 0 <= share < 1: sys.exit(f'--val={val}: want a share in [0, 1) like 0.1, or a range like 85-99')
        mask[np.random.default_rng([seed, n]).permutation(n)[:max(round(share * n), int(share > 0))]] = True
    if mask.all(): sys.exit(f'--val={val} of {n} episodes leaves none to train on; hold out fewer')
    return mask


def statistics(x, binary=None):
    """x (N, D) -> {mean, std, min, max, q01, q99}: D floats each. Columns `binary` keep mean 0, std 1."""
    x = x.astype(np.float64)
    s = {k: getattr(x, k)(0) for k in ('mean', 'std', 'min', 'max')}
    s['q01'], s['q99'] = np.quantile(x, [0.01, 0.99], axis=0)
    s['std'][s['min'] == s['max']] = 1     # a constant column divided by its rounding error would be noise times 1e16
    if binary is not None: s['mean'][binary], s['std'][binary] = 0, 1
    return {k: v.tolist() for k, v in s.items()}


def differences(state, action, spans, q_index, padded):
    """What robots are modelled by, within episodes: s' - s, a - a_prev, and a - q, q the states that a commands."""
    state, action = state.astype(np.float64), action.astype(np.float64)
    if q_index is not None and (len(q_index) != action.shape[1] or not {*q_index} <= {*range(state.shape[1])}):
        sys.exit(f'q_index = {q_index}: want {action.shape[1]} state entries, one per action, of {state.shape[1]}')
    last = np.isin(np.arange(len(state)), spans[:, 1] - 1)                           # rows with no row after them
    first, real = np.isin(np.arange(len(state)), spans[:, 0]), ~(last & padded)      # real: not a padding action
    d = {'delta_state': np.diff(state, axis=0)[~last[:-1]], 'delta_prev': np.diff(action, axis=0)[(~first & real)[1:]]}
    if q_index is not None: d['delta_action'] = (action - state[:, q_index])[real]
    return {key: x for key, x in d.items() if len(x)}


def checked(episode, i, padded):
    """episode(i); whatever is wrong with it is named after i, and the traceback of the cause travels along."""
    try:
        arrays = {k: np.asarray(v) for k, v in episode(i).items()}
        T = {k: len(v) for k, v in arrays.items()}
        assert len(set(T.values())) == 1 and min(T.values()) > 0, f'keys differ in length or are empty: {T}'
        for k, v in arrays.items():
            assert v.dtype.kind in 'biuf' and v.dtype != np.float64, f'{k} is {v.dtype}; want uint8, int or float32'
            assert v.dtype.kind != 'f' or np.isfinite(v).all(), f'{k} holds a value that is not finite'
            assert k not in padded or not v[-1].any(), f'the last {k} leads nowhere and must be zero, got {v[-1]}'
        return arrays
    except Exception as e:
        raise RuntimeError(f'episode {i}: {type(e).__name__}: {e}') from e


def compute(episode, first, last, path, padded):
    """Worker: episodes first..last-1 into one .npz, which has its name only when it is whole. Returns how many."""
    episodes = [checked(episode, i, padded) for i in range(first, last)]
    with open(path.with_suffix('.part'), 'wb') as f:
        np.savez(f, T=[len(next(iter(e.values()))) for e in episodes],
                 **{f'key.{k}': np.concatenate([e[k] for e in episodes], dtype=v.dtype, casting='no')
                    for k, v in episodes[0].items()})
    os.replace(path.with_suffix('.part'), path)
    return last - first


def quiet():
    """Worker start. Ctrl-C reaches the whole process group, but the parent decides; and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def run(jobs, workers, bar):
    """`compute` every job. Workers are spawned: half a simulator copied by fork fails in ways that nobody can read."""
    if workers == 1 or len(jobs) < 2: return [bar.update(compute(*job)) for job in jobs]
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context('spawn'), quiet) as pool:
        try:
            for done in as_completed([pool.submit(compute, *job) for job in jobs]): bar.update(done.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)     # shards under way are finished, and kept
            raise


def save(path, shape, dtype, pieces):
    """Stream arrays into one .npy of this shape, hashing on the way. Returns its entry in meta.json."""
    head, sha = io.BytesIO(), hashlib.sha256()
    np.lib.format.write_array_header_1_0(head, {'descr': dtype.str, 'fortran_order': False, 'shape': shape})
    with open(path, 'wb') as f:            # plain writes: a memmap on a full disk dies of SIGBUS without a word
        for data in itertools.chain([head.getvalue()], (x.tobytes() for x in pieces)):
            sha.update(data)
            f.write(data)
    return {'shape': list(shape), 'dtype': str(dtype), 'bytes': path.stat().st_size, 'sha256': sha.hexdigest()}


def assemble(whole, shards, mask, info, binary, padded):
    """Shards, in order -> whole/{train,val}/*.npy and whole/meta.json. mask (n,): which episodes validate."""
    def read(shard, key):
        with np.load(shard) as z: return z[key]
    def pieces(key, want):                 # one array (T, ...) per wanted episode; one shard in memory at a time
        for shard, T, i in zip(shards, lengths, np.cumsum([0] + [len(x) for x in lengths])):
            if want[i:i + len(T)].any():
                x = read(shard, f'key.{key}')
                assert (x.dtype, x.shape[1:]) == (like[key].dtype, like[key].shape), f'{key} changes at episode {i}'
                yield from itertools.compress(np.split(x, np.cumsum(T)[:-1]), want[i:i + len(T)])
    lengths = [read(s, 'T') for s in shards]
    with np.load(shards[0]) as z: like = {k[4:]: z[k][0] for k in z.files if k != 'T'}     # one frame of each key
    counts, files, stats = {}, {}, {}
    for name, want in {'train': ~mask, 'val': mask}.items():
        if not want.any(): continue        # --val=0: no such split, no such folder
        (whole / name).mkdir(parents=True)
        T = np.concatenate(lengths)[want]
        spans = np.stack([np.cumsum(T) - T, np.cumsum(T)], 1).astype(np.int64)
        counts[name] = {'episodes': len(T), 'frames': int(T.sum())}
        for key, x in like.items():
            file = whole / name / f'{key}.npy'
            files[f'{name}/{key}.npy'] = save(file, (int(T.sum()), *x.shape), x.dtype, pieces(key, want))
            if name == 'train' and x.ndim == 1 and x.dtype.kind == 'f':
                rows = np.delete(np.load(file), spans[:, 1] - 1 if key in padded else [], axis=0)  # padding is no data
                stats[key] = statistics(rows, binary.get(key))
        files[f'{name}/episodes.npy'] = save(whole / name / 'episodes.npy', spans.shape, spans.dtype, [spans])
        if name == 'train' and {'state', 'action'} <= like.keys():
            changes = differences(*(np.load(whole / name / f'{k}.npy') for k in ('state', 'action')), spans,
                                  info.get('q_index'), 'action' in padded)
            stats |= {k: statistics(x) for k, x in changes.items()}

    facts = {f'{k}_dim': len(like[k]) for k in ('action', 'state') if k in like}     # they fill the model's Config
    facts |= {k: info[k] for k in ('fps', 'q_index') if k in info}
    for k, names in ('latent', ('channels', 'height', 'width')), ('video', ('height', 'width', 'channels')):
        if k in like: facts |= {'input': k, **dict(zip(names, like[k].shape))}
    meta = info | {'facts': facts | info.get('facts', {}), 'counts': counts, 'stats': stats, 'files': files,
                   'keys': {k: {'shape': list(x.shape), 'dtype': str(x.dtype)} for k, x in like.items()}}
    (whole / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    return counts


def write(out, episode, n, *, seed, val, workers, command, info, limit=0, binary=None, padded=('action',)):
    """Make the data folder `out` of n episodes. info: source, revision, fps, units, and any extra for meta.json.
    binary: {key: columns} that are one-hot or 0/1. padded: keys whose last row of an episode is padding (zero).
    A mistake of the user, a full disk and Ctrl-C end in one line; a failing episode in RuntimeError with its number."""
    out, n, info = Path(out), min(n, limit) if limit > 0 else n, {'command': command} | info
    if out.exists():
        meta = json.loads((out / 'meta.json').read_text()) if (out / 'meta.json').exists() else {}
        print(f"{out} is there already (made by: {meta.get('command')}); to make it again delete it, or use --out")
        sys.exit(meta.get('command') != command)     # asking for the same set twice is no failure
    mask, tmp = split(n, val, seed), out.with_name(f'{out.name}.tmp')
    # shards are used again only if the settings and the code (this file, and the folder of `episode`) are the same
    home = Path(sys.modules[getattr(episode, 'func', episode).__module__].__file__).parent
    code = [p.read_text() for p in [Path(__file__), *sorted(home.glob('*.py'))]]
    shards = tmp / hashlib.sha256(repr([n, seed, SHARD, padded, info, code]).encode()).hexdigest()[:16]
    shards.mkdir(parents=True, exist_ok=True)
    jobs = [(episode, a, min(a + SHARD, n), shards / f'{a:07d}.npz', padded) for a in range(0, n, SHARD)]
    with open(tmp / 'lock', 'w') as lock:
        try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: sys.exit(f'{tmp}: another run is writing here; wait for it, or use --out')
        todo = [job for job in jobs if not job[3].exists()]
        try:
            with tqdm(total=n, initial=n - sum(b - a for _, a, b, *_ in todo), desc=str(out), disable=None) as bar:
                run(todo, workers, bar)
            shutil.rmtree(tmp / 'whole', ignore_errors=True)
            counts = assemble(tmp / 'whole', [job[3] for job in jobs], mask, info, binary or {}, padded)
            os.rename(tmp / 'whole', out)  # all or nothing: nobody ever sees half a data folder
        except KeyboardInterrupt: sys.exit(f'stopped; {tmp} keeps what is done, the same command goes on from there')
        except BrokenProcessPool: sys.exit('a worker was killed (out of memory?); go on with fewer: --workers=1')
        except OSError as e: sys.exit(f'{e.filename or tmp}: {e.strerror}; then the same command goes on from {tmp}')
    shutil.rmtree(tmp)
    print(f'{out}: ' + ', '.join(f"{k} {c['episodes']} episodes, {c['frames']} frames" for k, c in counts.items()))
