"""
The LeRobot format, v2.0, v2.1 and v3.0: where an episode lies, and what its rows say.

    v2.x   a file per episode        data/chunk-000/episode_000007.parquet     lengths in meta/episodes.jsonl
    v3.0   many episodes per file    data/chunk-000/file-000.parquet           who is where in meta/episodes/

Whatever a set says is checked, and what is wrong with it is one line that names the file. `layout` knows
where an episode lies, `films` where the pictures of one camera do, `episode` reads both.
"""
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

from data.video import frames

VERSIONS = 'v2.0', 'v2.1', 'v3.0'


def records(path):
    """The objects of a .json (one) or .jsonl (one per line) file."""
    try:
        text = path.read_text()
        found = [json.loads(part) for part in ([text] if path.suffix == '.json' else text.splitlines())]
    except OSError as e:
        sys.exit(f'{path}: {e.strerror}; --src wants a LeRobot folder, the one with meta/ and data/')
    except (ValueError, RecursionError) as e:          # no text, or no JSON
        sys.exit(f'{path} is damaged: {e}')
    for record in found:
        if not isinstance(record, dict):
            sys.exit(f'{path} is damaged: it holds a {type(record).__name__}, no object')
    return found


def read(path, columns, **only):
    """Columns of a parquet file as a pyarrow table. Row groups without what `only` asks for stay on disk."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        sys.exit("LeRobot data need: pip install -e '.[lerobot]'")
    try:
        there = pq.read_schema(path).names
        for c in columns:
            if c not in there:
                sys.exit(f'{path} has no column {c}; there are {", ".join(there)}')
        return pq.read_table(path, columns=columns, partitioning=None, **only)
    except FileNotFoundError:
        sys.exit(f'{path} is missing; fetch it, or take fewer episodes with --limit')
    except (OSError, pa.ArrowException) as e:
        sys.exit(f'{path} cannot be read, fetch it again ({str(e).splitlines()[0]})')


def number(record, key, where, least=0):
    """A whole number of a record, or exit."""
    value = record[key]
    if type(value) is not int or value < least:
        sys.exit(f'{where}: {key} is {value!r}; want a whole number, {least} or more')
    return value


@cache                                                 # once per worker
def layout(src):
    """What the folder says of itself: info.json as a dict, and (file, length) of every episode."""
    path = Path(src, 'meta', 'info.json')
    info, = records(path)
    version = info.get('codebase_version')
    if version not in VERSIONS:
        sys.exit(f'{src}: codebase_version is {version}; we read {", ".join(VERSIONS)}')
    try:
        if not {'fps', 'features'} <= info.keys():
            raise KeyError('fps or features')
        n = number(info, 'total_episodes', path)
        rows = rows_v3(src) if version == 'v3.0' else rows_v2(src, info)
        wrong = sorted(rows.keys() ^ set(range(n))) if n < 10**8 else [n - 1]
        if wrong or n < 1:
            sys.exit(f'{src}: info.json counts {n} episodes, meta/episodes {len(rows)}; they differ in '
                     f'{wrong[:5]}')
        files = [place(src, info, 'data_path', rows[i]) for i in range(n)]
        lengths = [number(rows[i], 'length', f'{src}/meta, episode {i}') for i in range(n)]
    except KeyError as e:
        sys.exit(f'{src}/meta lacks {e}, which a {version} set has')
    return info, list(zip(files, lengths))


def rows_v2(src, info):
    """{episode: what fills the holes of data_path, and its length}. A folder holds `chunks_size` episodes."""
    chunk = number(info, 'chunks_size', Path(src, 'meta', 'info.json'), least=1)
    where = Path(src, 'meta', 'episodes.jsonl')
    rows = [(number(row, 'episode_index', where), row) for row in records(where)]
    return {i: {'episode_chunk': i // chunk, **row} for i, row in rows}


def rows_v3(src, what='data', *more):
    """The same for many episodes per file. what: 'data', or 'videos/<camera>'; more: columns besides."""
    rows, where = {}, [f'{what}/chunk_index', f'{what}/file_index']
    for path in sorted(Path(src).glob('meta/episodes/*/*.parquet')):
        for row in read(path, [*where, 'episode_index', 'length', *more]).to_pylist():
            rows[row['episode_index']] = row | {key.split('/')[-1]: row[key] for key in where}
    return rows


def place(src, info, key, row):
    """The file of an episode: data_path or video_path of info.json with its holes filled."""
    try:
        return Path(src, info[key].format(**row))
    except (AttributeError, IndexError, TypeError, ValueError) as e:
        sys.exit(f'{src}/meta/info.json: {key} = {info[key]!r} cannot be filled in ({e})')


@cache
def films(src, camera):
    """(video file, its first frame) of every episode."""
    info, files = layout(src)
    cameras = [name for name, feature in info['features'].items() if feature.get('dtype') == 'video']
    if camera not in cameras:
        sys.exit(f'--video={camera}: no such camera; there are {", ".join(cameras) or "no videos"}')
    v3, start = info['codebase_version'] == 'v3.0', f'videos/{camera}/from_timestamp'
    rows = rows_v3(src, f'videos/{camera}', start) if v3 else rows_v2(src, info)
    try:
        found = [rows[i] | {'video_key': camera} for i in range(len(files))]
        firsts = [round(row.get(start, 0) * info['fps']) for row in found]
        return list(zip([place(src, info, 'video_path', row) for row in found], firsts))
    except (KeyError, TypeError, ValueError) as e:
        sys.exit(f'{src}/meta does not tell where the videos of {camera} are ({e}); fetch it again')


def width(info, column):
    """How many numbers info.json promises in every row of the column."""
    features = info['features']
    if not isinstance(features, dict) or not all(isinstance(v, dict) for v in features.values()):
        sys.exit('meta/info.json: features are no objects; fetch it again')
    names = [k for k, v in features.items() if v.get('dtype') not in ('video', 'image')]
    if column not in names:
        sys.exit(f'meta/info.json has no column {column}; there are {", ".join(names)}')
    shape = features[column].get('shape')
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        sys.exit(f'{column} has shape {shape} per frame; we want one dimension')
    return shape[0]


def episode(k, src, state, action, camera, size, chosen, relative=None):
    """Episode chosen[k]: {'state': (T, S), 'action': (T, A)} float32, with a camera also 'video'
    (T, H, W, 3) uint8. relative: the entries of the state from which the action shall be measured. What is
    wrong with the set ends the run."""
    i, (info, files) = chosen[k], layout(src)
    path, T = files[i]
    table = read(path, ['frame_index', state, action], filters=[('episode_index', '=', i)])
    frame = table['frame_index'].to_numpy()
    order = np.argsort(frame)
    if len(frame) != T or T == 0:
        sys.exit(f'{path} holds {len(frame)} rows of episode {i}; meta/episodes says {T}')
    if (np.diff(frame[order]) != 1).any():
        sys.exit(f'{path}: frames of episode {i} are missing or there twice')
    arrays = {}
    for key, column in ('state', state), ('action', action):
        try:
            x = np.array(table[column].to_pylist(), np.float32)[order]
            x = x.reshape(T, -1)                       # a plain float: width 1
        except (TypeError, ValueError):
            sys.exit(f'{path}: {column} of episode {i} is no table of numbers')
        want, bad = width(info, column), np.flatnonzero(~np.isfinite(x).all(1))
        if x.shape[1] != want:
            sys.exit(f'{path}: {column} is {x.shape[1]} wide; meta/info.json says {want}')
        if len(bad):
            sys.exit(f'{path}: {column} of episode {i} is not finite at frame {frame[order][bad[0]]}')
        arrays[key] = x
    if relative is not None:
        arrays['action'] = arrays['action'] - arrays['state'][:, relative]
    if camera:
        film, first = films(src, camera)[i]
        # a file of its own (v2.x) is read to its end: it must not hold more frames than there are rows either
        count = T if info['codebase_version'] == 'v3.0' else 0
        try:
            arrays['video'] = frames(film, size, first, count, info['fps'])
        except ValueError as e:
            sys.exit(f'episode {i}: {e}')
        if len(arrays['video']) != T:
            sys.exit(f'{film} holds {len(arrays["video"])} frames of episode {i}; its table has {T} rows')
    return arrays
