"""
The LeRobot format, v2.0, v2.1 and v3.0: where an episode lies, and what its rows say.

    v2.x   a file per episode        data/chunk-000/episode_000007.parquet     lengths in meta/episodes.jsonl
    v3.0   many episodes per file    data/chunk-000/file-000.parquet           who is where in meta/episodes/

A camera of dtype video is a column of info.json without one in the parquet files: its pictures lie in mp4s.
One of dtype image has its column there, a PNG in every row.

Whatever a set says is checked, and what is wrong with it is one line that names the file. `layout` knows
where an episode lies, `films` where the videos of one camera do, `episode` reads both.
"""
import io
import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np

from data.video import decoded, picture, resize, told

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


def read(path, columns=None, **only):
    """
    Columns (None: all) of a parquet file as a pyarrow table. Row groups without what `only` asks for stay on
    disk.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        sys.exit("LeRobot data need: pip install -e '.[lerobot]'")
    try:
        there = pq.read_schema(path).names
        for c in columns or ():
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
    """(video file, its first frame) of every episode. camera: a column of dtype video."""
    info, files = layout(src)
    v3, start = info['codebase_version'] == 'v3.0', f'videos/{camera}/from_timestamp'
    rows = rows_v3(src, f'videos/{camera}', start) if v3 else rows_v2(src, info)
    try:
        found = [rows[i] | {'video_key': camera} for i in range(len(files))]
        firsts = [round(row.get(start, 0) * info['fps']) for row in found]
        return list(zip([place(src, info, 'video_path', row) for row in found], firsts))
    except (KeyError, TypeError, ValueError) as e:
        sys.exit(f'{src}/meta does not tell where the videos of {camera} are ({e}); fetch it again')


def features(info):
    """The columns of info.json: {name: what it says of it}."""
    found = info['features']
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        sys.exit('meta/info.json: features are no objects; fetch it again')
    return found


def width(info, column):
    """How many numbers info.json promises in every row of the column."""
    names = [k for k, v in features(info).items() if v.get('dtype') not in ('video', 'image')]
    if column not in names:
        sys.exit(f'meta/info.json has no column {column}; there are {", ".join(names)}')
    shape = info['features'][column].get('shape')
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        sys.exit(f'{column} has shape {shape} per frame; we want one dimension')
    return shape[0]


def cameras(info):
    """{name: column} of what films, in the order of info.json. observation.images.NAME is called NAME."""
    columns = [k for k, v in features(info).items() if v.get('dtype') in ('video', 'image')]
    names = [re.sub(r'observation\.(images\.)?', '', column) for column in columns]
    names = [re.sub(r'[^\w.]', '_', name) for name in names]            # they become names of files
    twice = [column for name, column in zip(names, columns) if names.count(name) > 1]
    if twice:
        sys.exit(f'meta/info.json: {" and ".join(twice)} would have one name here; rename one of them')
    return dict(zip(names, columns))


def view(info, column):
    """(height, width) of a camera's pictures, and why we cannot keep them, in words, or ''."""
    feature = info['features'][column]
    shape, names = feature.get('shape'), feature.get('names')
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        sys.exit(f'meta/info.json: {column} has the shape {shape}; want height, width and colours')
    axes = [0, 1, 2] if shape[2] == 3 else [1, 2, 0]               # unless it says which is which
    if isinstance(names, list) and len(names) == 3 and 'height' in names and 'width' in names:
        axes = [names.index('height'), names.index('width')]
        axes += {0, 1, 2} - {*axes}
    H, W, C = (shape[axis] for axis in axes)
    notes = [x for x in (feature, feature.get('info'), feature.get('video_info')) if isinstance(x, dict)]
    if any(value and key.endswith('is_depth_map') for note in notes for key, value in note.items()):
        return (H, W), 'is a depth map'
    return (H, W), '' if C == 3 else f'has {C} channels'


def tasks(src):
    """The texts of the tasks, by their numbers. v3.0 keeps them in a parquet file, often as its index."""
    path = Path(src, 'meta', 'tasks.parquet')
    if path.exists():
        rows = read(path).to_pylist()
    else:
        path = path.with_suffix('.jsonl')
        rows = records(path)
    texts = {row['task_index']: row.get('task', row.get('__index_level_0__')) for row in rows
             if type(row.get('task_index')) is int}
    if {*texts} != {*range(len(rows))} or not all(isinstance(text, str) for text in texts.values()):
        sys.exit(f'{path}: want a text `task` for each task_index, 0, 1, ...; fetch it again')
    return [texts[i] for i in range(len(texts))]


def still(cell, src, name):
    """A picture as a parquet file holds it: {bytes, path}, a PNG or where one lies in the folder."""
    data, path = (cell.get(key) for key in ('bytes', 'path')) if isinstance(cell, dict) else (None, None)
    if isinstance(data, bytes):
        return picture(io.BytesIO(data), name)
    if not isinstance(path, str) or Path(path).is_absolute() or '..' in Path(path).parts:
        raise ValueError(f'{name} is no picture, nor does it name a file of this folder')
    return picture(Path(src, path))


def pictures(i, src, column, size, table, order):
    """Episode i through one camera: the file, and its pictures one by one, (H, W, 3) uint8, resized."""
    info, files = layout(src)
    path, T = files[i]
    if info['features'][column]['dtype'] == 'image':
        cells = ((t, table[column][int(row)].as_py()) for t, row in enumerate(order))
        return path, (resize(still(cell, src, f'{path}: {column} of frame {t}'), size) for t, cell in cells)
    film, first = films(src, column)[i]
    # a file of its own (v2.x) is read to its end: it must not hold more frames than there are rows either
    count = T if info['codebase_version'] == 'v3.0' else 0
    return film, decoded(film, size, first, count, info['fps'])


def watch(i, src, key, column, size, table, order):
    """What it sees, in one array: (T, H, W, 3) for `video`, else a plane per colour, (T, 3, H, W)."""
    info, files = layout(src)
    T, shape, n = files[i][1], size or view(info, column)[0], 0
    flat = key == 'video'
    x = np.empty((T, *shape, 3) if flat else (T, 3, *shape), np.uint8)
    file, seen = pictures(i, src, column, size, table, order)
    try:
        for n, one in enumerate(seen, 1):
            if one.shape[:2] != shape:
                raise ValueError(f'{file} shows {column} in {told(one.shape)}, meta/info.json says '
                                 f'{told(shape)}; --size={told(shape)} makes it so')
            if n <= T:
                x[n - 1] = one if flat else one.transpose(2, 0, 1)
    except ValueError as e:
        sys.exit(f'episode {i}: {e}')
    if n != T:
        sys.exit(f'{file} holds {n} frames of episode {i}; its table has {T} rows')
    return x


def episode(k, src, state, action, seen, size, chosen, relative=None, n_tasks=0):
    """
    Episode chosen[k]: {'state': (T, S), 'action': (T, A)} float32. seen {key: column of a camera}: pictures
    besides, uint8, see `watch`. n_tasks > 0: `task` (T,) int32, below it. relative: the entries of the state
    from which the action shall be measured. What is wrong with the set ends the run.
    """
    i, (info, files) = chosen[k], layout(src)
    path, T = files[i]
    more = [column for column in seen.values() if info['features'][column]['dtype'] == 'image']
    more += ['task_index'] if n_tasks else []
    table = read(path, ['frame_index', state, action, *more], filters=[('episode_index', '=', i)])
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
    for key, column in seen.items():
        arrays[key] = watch(i, src, key, column, size, table, order)
    if n_tasks:
        task = table['task_index'].to_numpy()[order]
        if task.dtype.kind != 'i' or not ((0 <= task) & (task < n_tasks)).all():
            sys.exit(f'{path}: task_index of episode {i} is none of the {n_tasks} of meta/tasks')
        arrays['task'] = task.astype(np.int32)
    return arrays
