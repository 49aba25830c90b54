"""
From "one episode as a function of its number" to a data folder; every prepare.py ends in one call of `write`.

    episode(i) -> {key: (T, ...) array}    picklable; its random numbers come from (seed, i) and nothing else
    write(out, episode, n, ...)            -> out/{train,val}/<key>.npy and episodes.npy (E, 2), out/meta.json
    keys      'video' (T, H, W, C) uint8, 'action' (T, A) float32, 'state' (T, S) float32, ... (layout.py)
    action    row t is taken at frame t and leads to frame t + 1; the last row leads nowhere and is zero,
              unless padded=() says that it was recorded too

    info      what meta.json shall say of the data; fps is a must, the others where they make sense
        source, revision    where the data come from, and which version of that
        fps                 frames per second, for pictures and clocks
        units               {key: text}
        state_names, action_names, joint_names      texts for plots, one per entry
        action_arrows       [[right, down], ...], one per entry of the action: how to draw it onto the picture
        q_index             robots: which entry of the state each entry of the action commands
        groups              robots: {name: {dims, unit, rate_of}}: entries of the state that share a unit, for
                            errors are reported per group; rate_of names the group whose rate of change it is
        env, contact        'data.<name>.env', the simulator that made the data; whether its contacts were on
        level               NetHack: which level, for whoever plays it again
        action_kind         'box' or 'onehot', for planners
        play_keys           {letter: action}, for play.py
        tiles               {px, names, agent, pixels} of what the picture is made of, for the scores of tiles
        facts               {name: value} for fields of that name in a model's Config; sizes, fps and q_index
                            are among them by themselves
        latent              {vae, kind, sha256, scale, size, resize, posterior_std}: added here with --vae
        features            {weights, sha256}: which network made `features.<camera>`
        tasks, held_out, clips, dt, decimation, mjcf_sha256, anything else    is kept in meta.json for people

Workers compute a shard of episodes at a time into <out>.tmp/, so a stopped run goes on where it was. Then one
process streams the shards, in episode order, into the final arrays, and one rename makes the folder appear.
The bytes depend on the command alone, not on the number of workers nor on an interruption. While it runs, the
disk holds the data twice.
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
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import polite_exit
from data import latents
from data.layout import FACTS, check_episode, check_info, form
from data.statistics import all_statistics, differences, statistics

__all__ = ['at_least', 'common', 'differences', 'flags', 'split', 'statistics', 'write']

SHARD = 8         # episodes per temporary file, at most: what an interruption may cost each worker
MOST = 256 << 20  # bytes of one, if all episodes were like the first: a worker holds it up to twice


# ---- the command line ----

def flags(doc, out, val='0.1', size=True):
    """
    ArgumentParser with the flags of every prepare.py; its results go to `write` through `common`. size=False
    for a prepare.py that has a --size of its own.
    """
    if threading.current_thread() is threading.main_thread():
        polite_exit()                          # until `write` takes over: Ctrl-C is one line, no traceback
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default=out, help=f'folder to make (default {out})')
    p.add_argument('--seed', type=int, default=0, help='another seed is another set (default 0)')
    p.add_argument('--val', default=val,
                   help=f'episodes to validate on: a share, 0.1, or which: 5, 85-99, 3,17 (default {val})')
    p.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes (default: all cores)')
    p.add_argument('--limit', type=int, default=0, help='at most this many episodes (default 0: all)')
    p.add_argument('--vae', default=False, help='also store latents: sd | taesd | PATH of weights (vae.py); '
                   'then videos are kept to validate only (default none)')
    if size:
        p.add_argument('--size', type=int, default=False, help='make videos so many pixels square; without '
                       '--vae no live world is left to plan in (default: as they are)')
    return p


def at_least(args, **least):
    """Exit with one line if a flag is below what it must be at least: at_least(args, frames=2)."""
    for name, value in least.items():
        if getattr(args, name) < value:
            sys.exit(f'--{name}={getattr(args, name)}: want {value} or more')


def common(args, file):
    """What `write` wants to know of the flags; `command` spells out all of them that change a byte."""
    told = []
    for key, value in vars(args).items():
        if key in ('out', 'workers') or value is False:                # False: not given
            continue
        if key in ('src', 'vae', 'features'):
            value = Path(value).resolve().name         # where it lies on this machine is nobody's business
        told.append(f'--{key}' if value is True else f'--{key}={value}')
    file = '/'.join(Path(file).resolve().parts[-3:])
    known = {key: getattr(args, key) for key in ('seed', 'val', 'workers', 'limit')}
    if args.vae == '':
        sys.exit('--vae=: want sd, taesd or the path of weights; leave it out for pixels')
    if args.vae and args.vae != 'none':
        known['vae'] = args.vae
    if type(getattr(args, 'size', '')) is int:         # a prepare.py of its own way with sizes has text here
        at_least(args, size=1)
        known['size'] = args.size
    return known | {'command': f'python {file} {" ".join(told)}'}


def split(n, val, seed):
    """
    Which of n episodes validate, (n,) bool. val: a share in [0, 1), drawn by seed, 'first-last', a number but
    0, or several of these with commas between.
    """
    mask, parts = np.zeros(n, bool), str(val).split(',')
    if all(re.fullmatch(r'\d+(-\d+)?', part) for part in parts) and str(val) != '0':
        for part in parts:
            first, last = int(part.split('-')[0]), int(part.split('-')[-1])
            if not first <= last < n:
                sys.exit(f'--val={val}: episodes are 0-{n - 1}; use some of them, or a share like 0.1')
            mask[first:last + 1] = True
    else:
        share = float(val) if re.fullmatch(r'\d*\.?\d+', str(val)) else -1
        if not 0 <= share < 1:
            sys.exit(f'--val={val}: want a share in [0, 1) like 0.1, or episodes like 5, 85-99 or 3,17')
        count = max(round(share * n), int(share > 0))
        mask[np.random.default_rng([seed, n]).permutation(n)[:count]] = True
    if mask.all():
        sys.exit(f'--val={val} of {n} episodes leaves none to train on; hold out fewer')
    return mask


# ---- episodes into shards ----

def play(episode, i, padded, like=None):
    """episode(i) as arrays, checked. An error in it is named after i, and the traceback of its cause travels
    along; data that would train wrongly, and in silence, end the run in one line."""
    try:
        arrays = {key: np.asarray(value) for key, value in episode(i).items()}
    except Exception as e:
        raise RuntimeError(f'episode {i}: {type(e).__name__}: {e}') from e
    try:
        check_episode(arrays, padded, like)
    except ValueError as e:
        sys.exit(f'episode {i}: {e}')
    return arrays


def compute(episode, first, last, path, padded, like, with_video):
    """
    Worker: episodes first..last-1 into one .npz, which has its name only when whole. Returns how many.
    with_video (last - first,): whose video is kept.
    """
    episodes = [play(episode, i, padded, like) for i in range(first, last)]
    lengths = [len(next(iter(e.values()))) for e in episodes]
    arrays = {}
    for key in episodes[0]:
        kept = [e[key] for e, keep in zip(episodes, with_video) if keep or key != 'video']
        if kept:
            arrays[f'key.{key}'] = np.concatenate(kept) if len(kept) > 1 else kept[0]
    with open(path.with_suffix('.part'), 'wb') as f:
        np.savez(f, T=lengths, **arrays)
        f.flush()
        os.fsync(f.fileno())               # a name on the disk before its bytes would be a damaged shard
    os.replace(path.with_suffix('.part'), path)
    return last - first


def orphan(counter, threads):
    """Worker start: it gets a number and a share of the cores, and no worker outlives its parent."""
    with counter.get_lock():
        latents.WORKER[0] = counter.value
        counter.value += 1
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))           # torch, where it comes, comes later
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def run(jobs, workers, bar):
    """`compute` every job. Workers are spawned: half a simulator copied by fork fails in ways unheard of."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            bar.update(compute(*job))
        return
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context('spawn')
    share = spawn.Value('i', 0), max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(min(workers, len(jobs)), spawn, orphan, share) as pool:
        # Ctrl-C reaches the whole process group, but the parent decides: workers inherit that it is blocked
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(compute, *job) for job in jobs]
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for done in as_completed(futures):
                bar.update(done.result())
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()         # what is under way may take minutes; whole shards are kept
            raise


def whole(shard):
    """Is this file there and undamaged? A power cut may have left half of one under its name."""
    if not shard.exists():
        return False
    try:
        with zipfile.ZipFile(shard) as z:
            if z.testzip() is None:        # reads everything, and compares checksums
                return True
    except PermissionError:
        raise
    except Exception:                      # zipfile has many words for a damaged file
        pass
    print(f'{shard} is damaged; its episodes are made again', file=sys.stderr)
    shard.unlink()
    return False


# ---- shards into a folder ----

def save(path, shape, dtype, pieces):
    """Stream arrays into one .npy of this shape, hashing on the way. Returns its entry in meta.json."""
    head, sha = io.BytesIO(), hashlib.sha256()
    np.lib.format.write_array_header_1_0(head, {'descr': dtype.str, 'fortran_order': False, 'shape': shape})
    with open(path, 'wb') as f:        # no memmap: on a full disk it dies of SIGBUS without a word
        for data in itertools.chain([head.getvalue()], (np.ascontiguousarray(x).data for x in pieces)):
            sha.update(data)
            f.write(data)
    size = path.stat().st_size
    return {'shape': list(shape), 'dtype': str(dtype), 'bytes': size, 'sha256': sha.hexdigest()}


def load(shard, key):
    with np.load(shard) as z:
        return z[key]


def first_frames(shard):
    """{key: the first frame in the shard, (1, ...)}, a copy, because a slice would keep all frames alive."""
    with np.load(shard) as z:
        return {name.removeprefix('key.'): z[name][:1].copy() for name in z.files if name != 'T'}


def pieces(shards, lengths, key, want, there):
    """
    One array (T, ...) per episode that is wanted, (n,) bool; one shard in memory at a time. there (n,) bool:
    which episodes have this key.
    """
    i = 0
    for shard, T in zip(shards, lengths):
        wanted, kept = want[i:i + len(T)], there[i:i + len(T)]
        if wanted.any():
            episodes = np.split(load(shard, f'key.{key}'), np.cumsum(T[kept])[:-1])
            yield from itertools.compress(episodes, wanted[kept])
        i += len(T)


def assemble(folder, shards, mask, info, binary, padded, with_video):
    """
    Shards, in order -> folder/{train,val}/*.npy and folder/meta.json. mask (n,): who validates;
    with_video (n,): whose video was kept.
    """
    lengths = [load(shard, 'T') for shard in shards]
    like = {}                              # one frame of each key, in the order of the first shard
    for shard in shards:
        like = {key: x[0] for key, x in first_frames(shard).items()} | like
        if 'video' in like or not with_video.any():
            break
    counts, files = {}, {}
    for name, want in {'train': ~mask, 'val': mask}.items():
        if not want.any():
            continue                       # --val=0: no such split, no such folder
        (folder / name).mkdir(parents=True)
        T = np.concatenate(lengths)[want]
        spans = np.stack([np.cumsum(T) - T, np.cumsum(T)], 1).astype(np.int64)
        counts[name] = {'episodes': len(T), 'frames': int(T.sum())}
        for key, x in like.items():
            there = with_video if key == 'video' else np.ones(len(mask), bool)
            if not there[want].any():
                continue                   # latents to train on go without their pictures
            file, shape = f'{name}/{key}.npy', (int(T.sum()), *x.shape)
            files[file] = save(folder / file, shape, x.dtype, pieces(shards, lengths, key, want, there))
        file = f'{name}/episodes.npy'
        files[file] = save(folder / file, spans.shape, spans.dtype, [spans])

    facts = {f'{key}_dim': len(like[key]) for key in ('action', 'state') if key in like}
    facts |= {key: info[key] for key in ('fps', 'q_index') if key in info}
    for key in ('video', 'latent'):        # where there are both, it is the latents that a model is for
        if key in like:
            facts |= {'input': key, **dict(zip(FACTS[key], like[key].shape))}
    meta = info | {
        'facts': facts | info.get('facts', {}), 'counts': counts,
        'stats': all_statistics(folder / 'train', like, info.get('q_index'), binary, padded), 'files': files,
        'keys': {key: {'shape': list(x.shape), 'dtype': str(x.dtype)} for key, x in like.items()},
        'padded': [key for key in padded if key in like]}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    return counts


# ---- all of it ----

def refuse(out, seed, n, workers, limit, command):
    """Exit with one line, before any work, for flags and a folder that would fail later, or do harm."""
    if not 0 <= seed < 2**63:
        sys.exit(f'--seed={seed}: want a number from 0 to 2^63 - 1')
    if n < 1:
        sys.exit(f'--episodes={n}: want 1 or more')
    if workers < 1:
        sys.exit(f'--workers={workers}: want 1 or more')
    if limit < 0:
        sys.exit(f'--limit={limit}: want 1 or more, or 0 for all')
    if not out.name or out.name == '..':
        sys.exit(f'--out={out}: want the name of a new folder, like data/<name>_<variant>')
    code = [file for file in ('prepare.py', 'env.py') if (out / file).exists()]
    if code:
        sys.exit(f'--out={out}: this folder holds code ({code[0]}), a data folder never does; choose another '
                 f'name, like data/{out.name}_<variant>')
    if not os.path.lexists(out):
        return
    try:
        made = json.loads((out / 'meta.json').read_text()).get('command')
    except (OSError, ValueError, AttributeError):
        sys.exit(f'--out={out} is there already, and no data set that we made; choose another')
    print(f'{out} is there already (made by: {made}); to make it again delete it, or use --out')
    sys.exit(int(made != command))         # asking for the same set twice is no failure


def home(episode):
    """The folder of the file that defines `episode`: its code is part of what the bytes depend on."""
    module = sys.modules[getattr(episode, 'func', episode).__module__]
    if not hasattr(module, '__file__'):
        sys.exit(f'{episode} must come from a file, like data/<name>/prepare.py, for workers to find it')
    return Path(module.__file__).parent


@contextmanager
def stoppable():
    """SIGTERM is as good as Ctrl-C, and a second one of either does not disturb the way out."""
    def stop(number, frame):
        for s in signals:
            signal.signal(s, signal.SIG_IGN)
        raise KeyboardInterrupt
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {s: signal.signal(s, stop) for s in signals}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def make(out, tmp, episode, mask, workers, info, binary, padded, shards, describe):
    """
    All episodes into shards, and those into `out`. describe: None, or the entry `latent` of meta.json as a
    function of the first video. Returns the counts of meta.json.
    """
    n, begin = len(mask), shards / f'{0:07d}.npz'
    begun = whole(begin)
    # episode 0 is looked at before the work starts: most mistakes are in all of them, and all must look alike
    arrays = first_frames(begin) if begun and not describe else play(episode, 0, padded)
    if begun:
        size = len(load(begin, 'T'))
    else:
        size = max(1, min(SHARD, MOST // sum(x.nbytes for x in arrays.values())))
    files = {first: shards / f'{first:07d}.npz' for first in range(0, n, size)}
    todo = [first for first, file in files.items() if not (begun if first == 0 else whole(file))]
    A, S = (arrays[key].shape[1] if key in arrays else None for key in ('action', 'state'))
    try:
        check_info(info, A, S)
    except ValueError as e:
        sys.exit(f'info: {e}')
    with_video = mask if describe else np.ones(n, bool)
    if describe:
        info = info | {'latent': describe(arrays['video'])}
    jobs = [(episode, first, min(first + size, n), files[first], padded, form(arrays),
             with_video[first:first + size]) for first in todo]
    del arrays                             # of an hour of video they are large
    left = sum(job[2] - job[1] for job in jobs)
    with tqdm(total=n, initial=n - left, desc=str(out), disable=None) as bar:
        run(jobs, workers, bar)
    shutil.rmtree(tmp / 'whole', ignore_errors=True)
    counts = assemble(tmp / 'whole', list(files.values()), mask, info, binary, padded, with_video)
    os.rename(tmp / 'whole', out)          # all or nothing: nobody ever sees half a data folder
    return counts


def write(out, episode, n, *, seed, val, workers, command, info, limit=0, binary=None, padded=('action',),
          sources=(), vae='', size=0):
    """Make the data folder `out` of n episodes.

    info       dict for meta.json, see the top of this file
    binary     {key: columns} that are one-hot or 0/1
    padded     keys whose last row of an episode is padding (zero)
    sources    whatever else the bytes depend on, as plain values (sizes and times of files that are read)
    vae, size  what becomes of `video`, see data/latents.py

    A mistake of the user, a full disk, Ctrl-C and SIGTERM end in one line; an error inside episode(i) in
    RuntimeError with its number.
    """
    out = Path(out)
    try:
        info = json.loads(json.dumps({'command': command} | info, allow_nan=False))
    except (TypeError, ValueError) as e:
        sys.exit(f'info: {e}; want text, plain numbers, lists and dicts')
    refuse(out, seed, n, workers, limit, command)
    n = min(n, limit) if limit > 0 else n
    mask, tmp = split(n, val, seed), out.with_name(f'{out.name}.tmp')
    ours = [Path(__file__).with_name(name) for name in ('writer.py', 'layout.py', 'video.py', 'latents.py')]
    ours += sorted(home(episode).glob('*.py'))
    describe = None
    if size or vae:
        episode = partial(latents.shaped, episode=episode, size=size, weights=vae)
        # what draws the world at its own size, or looks for its tiles, cannot compare with these pictures
        info = {key: x for key, x in info.items() if not size or key != 'tiles' and (vae or key != 'env')}
    if vae:
        if out.name.endswith('_pixels'):
            sys.exit(f'--out={out}: it will hold latents (--vae); call it otherwise, like data/wall_taesd_64')
        if not mask.any():
            sys.exit(f'--val={val} with --vae: hold out an episode, because only those keep their pictures')
        name = vae if vae in ('sd', 'taesd') else Path(vae).resolve().name
        describe = partial(latents.about, vae, name, size)
        sources = [*sources, latents.codec(vae).sha256, mask.tolist()]       # these decide what is kept
        workers = latents.most_workers(workers)
        ours.append(Path(__file__).parents[1] / 'vae.py')
    # shards are used again only if the settings and the code (ours, and the folder of `episode`) are the same
    code = [p.read_text() for p in ours]
    key = repr([n, seed, SHARD, padded, info, sources, size, code])
    shards = tmp / hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        with stoppable():
            shards.mkdir(parents=True, exist_ok=True)
            with open(tmp / 'lock', 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                counts = make(out, tmp, episode, mask, workers, info, binary or {}, padded, shards, describe)
            shutil.rmtree(tmp)
    except BlockingIOError:
        sys.exit(f'{tmp}: another run is writing here; wait for it, or use --out')
    except KeyboardInterrupt:
        sys.exit(f'stopped; {tmp} keeps what is done, the same command goes on from there')
    except BrokenProcessPool:
        sys.exit('a worker was killed (out of memory?); go on with fewer: --workers=1')
    except OSError as e:
        sys.exit(f'{e.filename or tmp}: {e.strerror or e}; mend that or use --out; {tmp} keeps what is done')
    told = (f'{name} {c["episodes"]} episodes, {c["frames"]} frames' for name, c in counts.items())
    print(f'{out}: {", ".join(told)}')
