"""
Recordings of robots in the LeRobot format, v2.0, v2.1 or v3.0: states and actions; videos come in a later release.
    python data/lerobot/prepare.py --src=../g1_lerobot --out=data/lerobot_g1 --val=85-99 --group arm=0-13:rad

    v2.x   a file per episode        data/chunk-000/episode_000007.parquet       lengths in meta/episodes.jsonl
    v3.0   many episodes per file    data/chunk-000/file-000.parquet             who is where in meta/episodes/

A row is a frame: state[t] is measured, action[t] is taken at frame t. Nothing is missing after the last frame: its
action was sent to the robot and is kept. `layout` knows where an episode lies and `episode` reads it; the rest of the
file asks which entries of the state belong together (groups) and which of them the actions command (q_index).
"""
import hashlib
import json
import re
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.writer import common, flags, write  # noqa: E402

VERSIONS = 'v2.0', 'v2.1', 'v3.0'
PLACE = 'data/chunk_index', 'data/file_index'                  # columns of meta/episodes that name the file (v3.0)


def records(path):
    """The objects of a .json (one) or .jsonl (one per line) file."""
    try: text = path.read_text()
    except OSError as e: sys.exit(f'{path}: {e.strerror}; --src wants a LeRobot folder, the one with meta/ and data/')
    try: return [json.loads(part) for part in ([text] if path.suffix == '.json' else text.splitlines())]
    except ValueError as e: sys.exit(f'{path} is damaged: {e}')


def read(path, columns, **only):
    """Columns of a parquet file as a pyarrow table. Row groups without the rows that `only` asks for stay on disk."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError: sys.exit("LeRobot data need: pip install -e '.[lerobot]'")
    try:
        there = pq.read_schema(path).names
        for c in columns:
            if c not in there: sys.exit(f'{path} has no column {c}; there are {", ".join(there)}')
        return pq.read_table(path, columns=columns, partitioning=None, **only)
    except FileNotFoundError: sys.exit(f'{path} is missing; fetch it, or take fewer episodes with --limit')
    except (OSError, pa.ArrowException) as e:
        sys.exit(f'{path} cannot be read, fetch it again ({str(e).splitlines()[0]})')


@cache                                                         # once per worker
def layout(src):
    """What the folder says of itself: info.json as a dict, and (file, length) of every episode."""
    info, = records(Path(src, 'meta', 'info.json'))
    version = info.get('codebase_version')
    if version not in VERSIONS: sys.exit(f'{src}: codebase_version is {version}; we read {", ".join(VERSIONS)}')
    try:
        if not {'fps', 'features'} <= info.keys(): raise KeyError('fps or features')
        if version == 'v3.0':
            columns, found = [*PLACE, 'episode_index', 'length'], sorted(Path(src).glob('meta/episodes/*/*.parquet'))
            rows = [row for path in found for row in read(path, columns).to_pylist()]
            place = lambda row: {k.removeprefix('data/'): row[k] for k in PLACE}
        else:
            rows = records(Path(src, 'meta', 'episodes.jsonl'))
            place = lambda row: {'episode_chunk': row['episode_index'] // info['chunks_size'], **row}
        rows, n = {row['episode_index']: row for row in rows}, info['total_episodes']
        wrong = sorted(rows.keys() ^ set(range(n)))
        if wrong or n < 1:
            sys.exit(f'{src}: info.json counts {n} episodes, meta/episodes {len(rows)}; they differ in {wrong[:5]}')
        return info, [(Path(src, info['data_path'].format(**place(rows[i]))), rows[i]['length']) for i in range(n)]
    except KeyError as e: sys.exit(f'{src}/meta lacks {e}, which a {version} set has')


def width(info, column):
    """How many numbers info.json promises in every row of the column."""
    names = [k for k, v in info['features'].items() if v.get('dtype') not in ('video', 'image')]
    if column not in names: sys.exit(f'meta/info.json has no column {column}; there are {", ".join(names)}')
    shape = info['features'][column]['shape']
    if len(shape) != 1: sys.exit(f'{column} has shape {shape} per frame; we want one dimension')
    return shape[0]


def episode(i, src, state, action):
    """Episode i: {'state': (T, S), 'action': (T, A)} float32. A mistake in the set ends the run, workers included."""
    info, files = layout(src)
    path, T = files[i]
    table = read(path, ['frame_index', state, action], filters=[('episode_index', '=', i)])
    frame = table['frame_index'].to_numpy()
    order = np.argsort(frame)
    if len(frame) != T or T == 0: sys.exit(f'{path} holds {len(frame)} rows of episode {i}; meta/episodes says {T}')
    if (np.diff(frame[order]) != 1).any(): sys.exit(f'{path}: frames of episode {i} are missing or there twice')
    arrays = {}
    for key, column in ('state', state), ('action', action):
        try: x = np.array(table[column].to_pylist(), np.float32)[order].reshape(T, -1)     # a plain float: width 1
        except (TypeError, ValueError): sys.exit(f'{path}: {column} of episode {i} is no table of numbers')
        want, bad = width(info, column), np.flatnonzero(~np.isfinite(x).all(1))
        if x.shape[1] != want: sys.exit(f'{path}: {column} is {x.shape[1]} wide; meta/info.json says {want}')
        if len(bad): sys.exit(f'{path}: {column} of episode {i} is not finite at frame {frame[order][bad[0]]}')
        arrays[key] = x
    return arrays


def entries(names, n):
    """Names of the n entries of a column, or []. info.json has ['a', ...], [['a', ...]] or {'motors': ['a', ...]}."""
    def flat(x):
        if isinstance(x, dict): x = list(x.values())
        return [name for part in x for name in flat(part)] if isinstance(x, list) else [x]
    names = flat(names)
    return names if len(names) == n and all(isinstance(name, str) for name in names) else []


def indices(text, n, flag):
    """'0-2,5' -> [0, 1, 2, 5], all of them below n."""
    if not re.fullmatch(r'\d+(-\d+)?(,\d+(-\d+)?)*', text): sys.exit(f'{flag}: want entries of the state, like 0-2,5')
    spans = [[int(x) for x in part.split('-')] for part in text.split(',')]
    found = [i for span in spans for i in range(span[0], span[-1] + 1)]
    if not found or max(found) >= n: sys.exit(f'{flag}: the state has the entries 0-{n - 1}')
    return found


def grouped(texts, n):
    """['arm=0-13:rad', ...] -> {'arm': {'dims': [0, ..., 13], 'unit': 'rad'}, ...}; disjoint."""
    groups = {}
    for text in texts:
        m = re.fullmatch(r'(\w+)=([^:]*)(?::(.*))?', text)
        if not m: sys.exit(f'--group={text}: want NAME=ENTRIES:UNIT, like arm=0-13:rad')
        dims = indices(m[2], n, f'--group={text}')
        taken = sorted({i for g in groups.values() for i in g['dims']} & set(dims))
        if taken or len(set(dims)) < len(dims): sys.exit(f'--group={text}: entries {taken or dims} are in twice')
        if m[1] in groups: sys.exit(f'--group={text}: there is a group {m[1]} already')
        groups[m[1]] = {'dims': dims, 'unit': m[3] or ''}
    return groups or {'state': {'dims': list(range(n)), 'unit': ''}}


def commanded(flag, states, actions, S, A):
    """q_index: for every entry of the action the entry of the state that it commands; None if nobody knows."""
    if flag == 'none': return None
    if flag:
        q_index = indices(flag, S, f'--q_index={flag}')
        if len(q_index) != A: sys.exit(f'--q_index={flag}: {len(q_index)} entries for {A} actions')
        return q_index
    if actions and len(set(states)) == len(states) and set(actions) <= set(states):
        print('q_index: by name; if these actions are no targets for the states of the same name, --q_index=none')
        return [states.index(name) for name in actions]
    print('q_index: no state for every action name, so delta actions are not available; --q_index=0,1,... says which')


def main():
    p = flags(__doc__, out='data/lerobot_g1')
    p.add_argument('--src', required=True, help='folder of the LeRobot set, with meta/ and data/')
    p.add_argument('--state', default='observation.state', help='column (default observation.state)')
    p.add_argument('--action', default='action', help='column (default action)')
    p.add_argument('--group', action='append', default=[], help='NAME=ENTRIES:UNIT of the state; may come often')
    p.add_argument('--q_index', default=False, help='states that actions command: 0-25 | 0,1,2 | none; else by name')
    args = p.parse_args()
    info, files = layout(args.src)
    S, A = (width(info, column) for column in (args.state, args.action))
    states, actions = (entries(info['features'][c].get('names'), n) for c, n in ((args.state, S), (args.action, A)))
    groups, q_index = grouped(args.group, S), commanded(args.q_index, states, actions, S, A)
    units = ', '.join(f"{name} {g['unit']}" for name, g in groups.items() if g['unit'])
    src = Path(args.src).resolve()
    sha = hashlib.sha256((src / 'meta' / 'info.json').read_bytes()).hexdigest()
    about = {'source': f"{src.name}: {info.get('robot_type')}, LeRobot {info['codebase_version']}",
             'revision': f'meta/info.json with sha256 {sha}', 'fps': info['fps'],
             'units': {'state': units, 'action': units if q_index is not None else ''},
             'state_names': states, 'action_names': actions, 'groups': groups}
    if q_index is not None: about['q_index'] = q_index
    args.group = ' --group='.join(args.group) or False         # as one would type it again
    read_one = partial(episode, src=args.src, state=args.state, action=args.action)
    write(args.out, read_one, len(files), info=about, padded=(), **common(args, __file__))


if __name__ == '__main__':
    main()
