"""
PushT: 206 human demonstrations of pushing a T onto its mark, as Diffusion Policy published them.
    python data/pusht/prepare.py                             downloads them (31 MB)
    python data/pusht/prepare.py --src=pusht_cchi_v7_replay.zarr          a folder, a .zip or a .tar of it

The set is a Zarr store, version 2: a folder per array, with files of 161 rows each that Blosc has compressed.
We read it file by file, compare sha256 of all that was decoded, and write a row per frame at 10 Hz:

    image.top (3, 96, 96)    what a camera above sees
    state (2,)               the disc, px of a world of 512; y is down
    env_state (18,)          nine points of the T, px: only a simulator knows them
    pose (5,)                disc, T and its angle, as recorded: for tests and pictures, no model reads it
    action (2,)              where the mouse was, px; the disc is pulled there. The last one is real, too

Episodes 18, 90, 134 and 157 validate, as published. Read `rows` first; the simulator is in env.py.
"""
import hashlib
import json
import os
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.writer import common, flags, write  # noqa: E402

URL = 'https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip'
DOWNLOAD = Path(__file__).resolve().parents[1] / 'pusht_download' / 'pusht.zip'
N, EPISODES = 25_650, 206
ARRAYS = {       # shape of a row, what we keep it as, sha256 of all rows in that dtype
    'data/img': ((96, 96, 3), 'uint8', '65dd40b1f0e3ccceb65db847224c4d85e922174c7a3e98c1cd5f3d84cb272700'),
    'data/state': ((5,), 'float32', 'dcdc539bfdba9fc01cba8d2fe91cc580539ec046a88b0ffbe91be5511948d4dc'),
    'data/action': ((2,), 'float32', '6691b085749144b8db1aede97a80fb380afd08953fcd03660b441d0ffe9d6a8f'),
    'data/keypoint': ((9, 2), 'float32', '2419980734c1d41050f8fbf7513031e6e784168bafbe42bcec81fdebe44c6611'),
    'meta/episode_ends': ((), 'int64', '82db02e667c59a83fedb211ab9b84182591b75009df1385210d5235197f93d72')}
VAL = 18, 90, 134, 157           # default_rng(42).choice(206, 4), as published
DAMAGE = RuntimeError, ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError


# ---- the store: files of a folder or an archive ----

@cache
def archive(src):
    """-> read(name of a file in the store) -> bytes; KeyError where there is no such file."""
    try:
        return opened(src)
    except DAMAGE as error:
        sys.exit(f'--src={src}: is damaged ({error}); copy or download it again')


def opened(src):
    path, mark = Path(src), 'meta/episode_ends/.zarray'
    if path.is_dir():
        names = [top / mark for top in (path, *path.glob('*.zarr'), *path.glob('*/*.zarr'))]
        names = [name for name in names if name.is_file()]

        def read(name):
            try:
                return (names[0].parents[2] / name).read_bytes()
            except FileNotFoundError:
                raise KeyError(name) from None
    elif zipfile.is_zipfile(path):
        file = zipfile.ZipFile(path)
        names = [name for name in file.namelist() if name.endswith(mark)]
        read = lambda name: file.read(names[0].removesuffix(mark) + name)
    elif path.is_file() and tarfile.is_tarfile(path):
        file = tarfile.open(path)
        members = {member.name: member for member in file if member.isfile()}
        names = [name for name in members if name.endswith(mark)]
        read = lambda name: file.extractfile(members[names[0].removesuffix(mark) + name]).read()
    else:
        sys.exit(f'--src={src}: want the folder pusht_cchi_v7_replay.zarr, or a .zip or .tar of it')
    if len(names) != 1:
        sys.exit(f'--src={src}: holds {len(names)} Zarr stores with {mark}, want the one of PushT')
    return read


@cache
def header(src, array):
    """Rows of an array, rows per file and dtype; one line where it is another kind of array than we read."""
    shape, *_ = ARRAYS[array]
    try:
        said = json.loads(archive(src)(f'{array}/.zarray'))
    except KeyError:
        sys.exit(f'--src={src}: the store has no array {array}')
    except DAMAGE as error:
        sys.exit(f'--src={src}: {array}/.zarray is damaged ({error})')
    try:
        known = said['zarr_format'] == 2 and said['order'] == 'C' and not said['filters']
        known = known and said['compressor']['id'] == 'blosc' and said['shape'][1:] == list(shape)
        whole = said['chunks'][1:] == list(shape)        # a file holds whole rows
        found = said['shape'][0], said['chunks'][0], np.dtype(said['dtype'])
    except (KeyError, TypeError, IndexError):
        known = False
    if not known or not whole:
        sys.exit(f'--src={src}: {array} is no Zarr 2 array of rows {list(shape)}, whole in their files, in C '
                 'order, behind Blosc')
    return found


@lru_cache(maxsize=8)
def piece(src, array, number):
    """File `number` of an array, decoded: (rows, ...). A missing file would be zeros to Zarr; not to us."""
    try:
        from numcodecs.blosc import decompress
    except ImportError:
        sys.exit("PushT's recordings need: pip install -e '.[pusht]'")
    shape, keep, _ = ARRAYS[array]
    n, per_file, dtype = header(src, array)
    name = f'{array}/{".".join([str(number)] + ["0"] * len(shape))}'
    try:
        data = np.frombuffer(decompress(archive(src)(name)), dtype)
    except KeyError:
        sys.exit(f'--src={src}: {name} is missing; copy or download the store again')
    except DAMAGE as error:
        sys.exit(f'--src={src}: {name} is damaged ({error}); copy or download the store again')
    if data.size != per_file * int(np.prod(shape)):
        sys.exit(f'--src={src}: {name} holds {data.size} numbers, want {per_file} rows of {list(shape)}; '
                 'copy or download the store again')
    return data.reshape(per_file, *shape)[:n - number * per_file].astype(keep)


def rows(src, array, start, end):
    """Rows start..end-1 of an array."""
    _, per_file, _ = header(src, array)
    first, last = start // per_file, (end - 1) // per_file
    found = np.concatenate([piece(src, array, number) for number in range(first, last + 1)])
    return found[start - first * per_file:end - first * per_file]


def check(src):
    """All of it against the sha256 of the published set: one line about the first array that differs."""
    total = sum(header(src, array)[0] for array in ARRAYS)
    bar = tqdm(total=total, desc='check', unit=' rows', disable=None, leave=False)
    for array, (_, _, known) in ARRAYS.items():
        n, per_file, _ = header(src, array)
        sha = hashlib.sha256()
        for number in range(-(-n // per_file)):
            data = piece(src, array, number)
            sha.update(data.tobytes())
            bar.update(len(data))
        if sha.hexdigest() != known:
            sys.exit(f'--src={src}: {array} is not that of the published set (sha256 '
                     f'{sha.hexdigest()[:12]}..., want {known[:12]}...); copy or download the store again')
    bar.close()


# ---- episodes ----

def episode(i, src, chosen):
    """Episode chosen[i], as data/layout.py wants it."""
    ends = rows(src, 'meta/episode_ends', 0, EPISODES)
    number = chosen[i]
    start, end = int(ends[number - 1]) if number else 0, int(ends[number])
    pose, action = (rows(src, array, start, end) for array in ('data/state', 'data/action'))
    # `check` has compared all bytes; this is for a set of somebody else's, read with these functions
    bad = ~(np.isfinite(action) & (action >= 0) & (action <= 512)).all(1)
    if bad.any():
        t = int(bad.argmax())
        raise ValueError(f'action {action[t].tolist()} at frame {t} is off the board; want 0 to 512 px')
    return {'image.top': rows(src, 'data/img', start, end).transpose(0, 3, 1, 2).copy(),
            'state': pose[:, :2].copy(), 'pose': pose, 'action': action,
            'env_state': rows(src, 'data/keypoint', start, end).reshape(-1, 18)}


def draw(n):
    """The numbers of the n training episodes that the published sampler draws, in order; 0: all 202."""
    training = np.setdiff1d(np.arange(EPISODES), VAL)
    if n:
        training = np.sort(np.random.default_rng(42).choice(training, n, replace=False))
    return [int(number) for number in training]


def download(url, path):
    """Into `path`, under another name until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(part, 'wb') as file:
            total = int(answer.headers.get('Content-Length', 0))
            bar = tqdm(total=total, desc=path.name, unit='B', unit_scale=True, disable=None)
            while data := answer.read(1 << 20):
                file.write(data)
                bar.update(len(data))
            bar.close()
            if total and file.tell() != total:
                raise OSError(f'the connection broke after {file.tell()} of {total} bytes')
    except OSError as error:
        part.unlink(missing_ok=True)
        sys.exit(f'{url}: {error}; download it some other way and give --src=pusht.zip')
    os.replace(part, path)


def main():
    p = flags(__doc__, out='data/pusht_image', val=','.join(map(str, VAL)))
    p.add_argument('--src', help='the Zarr store, a .zip or a .tar of it (default: download)')
    p.add_argument('--max_episodes', type=int, default=0,
                   help='training episodes; 90 is the published draw (default 0: all 202)')
    args = p.parse_args()
    if not 0 <= args.max_episodes <= EPISODES - len(VAL):
        sys.exit(f'--max_episodes={args.max_episodes}: want 1 to {EPISODES - len(VAL)}, or 0 for all')
    published = args.val == p.get_default('val')
    if args.max_episodes and not published:
        sys.exit(f'--val={args.val}: the published draw of --max_episodes goes with the published --val')
    chosen = sorted({*draw(args.max_episodes), *VAL})    # all of them without --max_episodes: i is episode i
    args.src = src = str(Path(args.src or DOWNLOAD).resolve())
    if not Path(args.out).exists():                      # else `write` refuses, and nothing is to be done
        if Path(src) == DOWNLOAD and not DOWNLOAD.exists():
            download(URL, DOWNLOAD)
        if not Path(src).exists():
            sys.exit(f'--src={src}: not there; want the folder pusht_cchi_v7_replay.zarr, or a .zip or .tar '
                     'of it')
        check(src)
    given = common(args, __file__)
    if published:
        n = min(args.limit or len(chosen), len(chosen))
        # places in `chosen`; where --limit leaves none of them, any tenth will do
        given['val'] = ','.join(f'{i}-{i}' for i in range(n) if chosen[i] in VAL) or '0.1'
    info = {'source': "PushT, human demonstrations of Diffusion Policy (arXiv 2303.04137)",
            'revision': f'pusht_cchi_v7_replay, actions with sha256 {ARRAYS["data/action"][2]}',
            'fps': 10, 'env': 'data.pusht.env', 'action_names': ['x', 'y'], 'state_names': ['x', 'y'],
            'q_index': [0, 1],
            'units': {'image.top': '0-255', 'pose': 'px, px, px, px, rad',
                      **{key: 'px; x right, y down' for key in ('state', 'env_state', 'action')}},
            'facts': {'env_state_dim': 18, 'image_size': 96}}
    write(args.out, partial(episode, src=src, chosen=chosen), len(chosen), info=info, padded=(), **given)


if __name__ == '__main__':
    main()
