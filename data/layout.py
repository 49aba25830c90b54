"""
What a data folder looks like, and one clear line for each way in which it can look otherwise.

    <folder>/{train,val}/<key>.npy       a row per frame, one episode after the other; keys are those of KEYS
    <folder>/{train,val}/episodes.npy    (E, 2) int64, the rows [start, end) of each episode
    <folder>/meta.json                   what prepare.py tells (`info` in data/writer.py), and

        facts               {name: value}: what fills the fields of the same name in a model's Config
        stats               {key: {mean, std, min, max, q01, q99}} of the train split, a number per entry
        padded              keys whose last row of an episode is no data but zero; others are real to the end
        files               {<split>/<key>.npy: {shape, dtype, bytes, sha256}}
        keys                {key: {shape, dtype}} of one frame
        counts, command     episodes and frames per split; how it was made

The checks raise ValueError with one line. Who calls them knows which file or episode it was, and the way out.
"""
import hashlib
import importlib
import json
import os
import re
import sys
from fnmatch import fnmatchcase

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
INTEGERS = 'uint8 int8 int16 int32 int64'
KEYS = {                                               # axes and dtypes; '...' is as many axes as you like
    'video': ('T, H, W, C', 'uint8'),                  # 0 to 255; models scale it themselves
    'latent': ('T, C, H, W', 'float16 float32'),
    'action': ('T, A', 'float32 uint8'),               # discrete ones: one-hot, or uint8 ids
    'state': ('T, S', 'float32'),                      # what the robot itself measures
    'env_state': ('T, S', 'float32'),                  # what only a simulator knows
    'pose': ('T, P', 'float32'),
    'image.<name>': ('T, 3, H, W', 'uint8'),           # one per camera
    'features.<name>': ('T, N, W', 'float16 float32'),             # or what a frozen network made of it
    'glyphs*': ('T, H, W', INTEGERS),
    'local': ('T, H, W', INTEGERS),                    # the part of glyphs around the player
    'tokens': ('T, ...', INTEGERS),
    'mask': ('T, ...', 'bool uint8'),
    'task': ('T, ...', INTEGERS)}
FACTS = {                                              # what Config calls the sizes of one frame
    'latent': ('channels', 'height', 'width'),
    'video': ('height', 'width', 'channels'),
    'action': ('action_dim',),
    'state': ('state_dim',)}
MOMENTS = 'mean', 'std', 'min', 'max', 'q01', 'q99'


def want(true, line):
    if not true:
        raise ValueError(line)


def finite(x):
    """Is x a plain number that fits into float32: no nan, no infinity?"""
    return type(x) in (int, float) and abs(x) < 3e38


def entries(x, below):
    """Is x a list of one or more whole numbers in [0, below)?"""
    if not isinstance(x, list) or not isinstance(below, int):
        return False
    return len(x) > 0 and all(type(i) is int and 0 <= i < below for i in x)


# ---- reading ----

def read_meta(folder):
    """meta.json of a data folder, checked, or exit with one line: what is wrong, and the way out."""
    path = os.path.join(folder, 'meta.json')
    try:
        with open(path) as f:
            meta = json.load(f)
        check_meta(meta)
    except FileNotFoundError:
        sys.exit(f'{path} not found; {how_to_make(folder)}')
    except NotADirectoryError:
        sys.exit(f'{folder} is a file, no data folder; {how_to_make(folder)}')
    except OSError as error:
        sys.exit(f'{path}: {error.strerror}; make it readable or use another dataset')
    except (ValueError, RecursionError) as error:              # binary, cut short, or what check_meta says
        sys.exit(f'{path} is damaged ({str(error)[:300]}); {how_to_remake(folder)}')
    return meta


def maker(folder):
    """The command that makes a data folder, or ''. data/<name>/prepare.py makes data/<name>_<variant>."""
    for place in (folder, os.path.realpath(folder)):           # a link may have a name of its own
        words = os.path.basename(os.path.normpath(place)).split('_')
        for end in range(len(words), 0, -1):                   # the longest <name> first
            name, variant = '_'.join(words[:end]), words[end:]
            prepare = os.path.join(HERE, name, 'prepare.py')
            if not os.path.exists(prepare):
                continue
            with open(prepare) as f:
                text = f.read()
            # only flags that stand alone: lerobot_video is no --video, which wants a camera
            alone = "action='store_true'", "nargs='?'"
            flags = [f'--{word}' for word in variant if any(f"'--{word}', {how}" in text for how in alone)]
            if 'oracle' in variant and 'bfs5' in variant:              # its value, not a flag of its own
                flags[flags.index('--oracle')] = '--oracle=bfs5'
            if 'boulders' in variant:                                  # a value as well
                flags.insert(0, '--level=boulders')
            codec = [word for word in variant if word in ('sd', 'taesd')]
            if codec and "'video'" not in text and "'--video'" not in text:
                continue                                               # there is nothing to encode
            flags += [f'--vae={word}' for word in codec]
            sizes = [word for word in variant if word.isdigit()]
            if 'sd' in variant:                                        # the published models see 256 px
                sizes = sizes or ['256']
            flags += [f'--size={size}' for size in sizes]
            if "'--src', required" in text:
                flags.append('--src=PATH')
            for word, flag in ('video', '--video=CAMERA'), ('cam', '--cameras=all'):
                if f"'{flag.partition('=')[0]}'" in text and any(word in part for part in variant):
                    flags.append(flag)
            if variant:                                        # without one, `folder` is where the code lies
                flags.append(f'--out={folder}')
            return ' '.join([f'python data/{name}/prepare.py', *flags])
    return ''


def how_to_make(folder):
    """What to do about a data folder that is not there, in words."""
    command, name = maker(folder), os.path.basename(os.path.normpath(folder))
    above = os.path.dirname(os.path.dirname(os.path.normpath(folder)))
    if os.path.exists(os.path.join(folder, 'meta', 'info.json')):
        return (f'that is a LeRobot set; python data/lerobot/prepare.py --src={folder} --cameras=all '
                f'--out=data/lerobot_{name.lower()} makes one of ours, then --dataset=lerobot_{name.lower()}')
    if os.path.exists(os.path.join(above, name, 'meta.json')):
        return f'did you mean --dataset={name}?'
    if not command:
        return (f'no prepare.py makes {name} yet: train on another set (--dataset=wall_pixels), write this '
                'folder with data/writer.py, or, from a LeRobot set, make data/lerobot_NAME with '
                'data/lerobot/prepare.py')
    if 'data/lerobot/' in command and '--video' not in command and '--cameras' not in command:
        command += '; with --cameras=all --size=HxW for policies that see'
    begun = os.path.exists(os.path.normpath(folder) + '.tmp')
    return f'{"it was not finished, run again" if begun else "make it"}: {command}'


def how_to_remake(folder):
    """What to do about a damaged data folder, in words."""
    return f'delete {folder}, then make it again: {maker(folder) or "write it with data/writer.py"}'


def identity(meta):
    """Which data these are: a sha256 over those of all files and the facts, whatever folder and command."""
    files = {name: entry['sha256'] for name, entry in meta['files'].items()}
    text = json.dumps({'files': files, 'facts': meta['facts']}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def simulator(meta):
    """The module data/<name>/env.py that meta['env'] = 'data.<name>.env' names; None without such an entry.

    A data folder may come from anybody, so it names code of this repository only, and brings none along.
    """
    env = meta.get('env')
    if env is None:
        return None
    named = re.fullmatch(r'data\.([A-Za-z_]\w*)\.env', env) if isinstance(env, str) else None
    folder = os.path.join(HERE, named[1] if named else 'nowhere')
    code, data = (os.path.exists(os.path.join(folder, file)) for file in ('env.py', 'meta.json'))
    if not named or not code or data:
        sys.exit(f"meta.json: env = {env!r}; want 'data.<name>.env', a simulator data/<name>/env.py of ours")
    return importlib.import_module(env)


# ---- one episode, before it is written ----

def check_episode(arrays, padded, like=None):
    """arrays {key: (T, ...)} of one episode. like: `form` of the first one; all must look alike."""
    want(arrays, 'it holds nothing')
    for key, x in arrays.items():
        known = next((k for k in KEYS if fnmatchcase(key, k.replace('<name>', '*'))), None)
        want(known and re.fullmatch(r'[\w.]+', key),
             f'no model reads {key!r}; the keys are {", ".join(KEYS)}')
        axes, dtypes = KEYS[known]
        rank = len(axes.split(', '))
        want(x.ndim == rank or (axes.endswith('...') and x.ndim > 0),
             f'{key} has the shape {x.shape}; want ({axes}), where T counts frames')
        hint = '; a float picture in 0..1 is np.rint(255 * x).astype(np.uint8)' if dtypes == 'uint8' else ''
        want(str(x.dtype) in dtypes.split(), f'{key} is {x.dtype}; want {" or ".join(dtypes.split())}{hint}')
        want(x.size > 0, f'{key} is empty, {x.shape}')
        want(known != 'video' or x.shape[3] <= 4,
             f'{key} has the shape {x.shape}; want ({axes}), colours last')
        want(known != 'image.<name>' or x.shape[1] == 3, f'{key} has the shape {x.shape}; want ({axes})')
        want(x.dtype.kind != 'f' or np.isfinite(x).all(), f'{key} holds a value that is not finite')
        if key in padded and x[-1].any():
            raise ValueError(f'the last {key} leads nowhere and must be zero, got {x[-1].tolist()}; '
                             'if it was recorded and is real, write(..., padded=()) keeps it')
    frames = {key: len(x) for key, x in arrays.items()}
    want(len(set(frames.values())) == 1, f'keys differ in length: {frames}')
    if like is not None and form(arrays) != like:
        here, there = set(form(arrays).items()), set(like.items())
        raise ValueError(f'it has {sorted(here - there)}, the first episode {sorted(there - here)}')


def form(arrays):
    """{key: its dtype and the shape of one frame}."""
    return {key: f'{x.dtype} {list(x.shape[1:])}' for key, x in arrays.items()}


# ---- meta.json ----

def check_info(info, A, S):
    """What prepare.py tells of the data. A, S: the entries of action and state, None where there is none."""
    fps, q_index, arrows, groups = (info.get(key) for key in ('fps', 'q_index', 'action_arrows', 'groups'))
    want(finite(fps) and fps > 0, f'fps = {fps!r}: want frames per second, above 0')
    want(q_index is None or (entries(q_index, S) and len(q_index) == A),
         f'q_index = {q_index!r}: want {A} entries (one per action) below state_dim = {S}')
    if arrows is not None:
        pairs = isinstance(arrows, list) and all(isinstance(x, list) and len(x) == 2 for x in arrows)
        want(pairs and len(arrows) == A and all(finite(x) for pair in arrows for x in pair),
             f'action_arrows = {arrows!r}: want [right, down] for each of {A} actions')
    if groups is not None:
        check_groups(groups, S)
    kind, keys = info.get('action_kind'), info.get('play_keys', {})
    want(kind in (None, 'box', 'onehot'), f'action_kind = {kind!r}: want box or onehot')
    pressed = isinstance(keys, dict) and all(len(key) == 1 and key.isalpha() for key in keys)
    want(pressed and all(isinstance(x, list) and len(x) == A and all(map(finite, x)) for x in keys.values()),
         f'play_keys = {keys!r}: want {{a letter: {A} numbers of an action}}')
    tasks = info.get('tasks') or []
    want(isinstance(tasks, list) and all(isinstance(task, str) for task in tasks),
         f'tasks = {str(tasks)[:100]}: want a list of sentences')
    if info.get('tiles') is not None:
        check_tiles(info['tiles'])


def check_tiles(tiles):
    """What a picture made of tiles is made of: {px, names, agent, pixels}, see protocols/tiles.py."""
    want(isinstance(tiles, dict), f'tiles = {tiles!r}: want {{px, names, agent, pixels}}')
    px, names, agent = (tiles.get(key) for key in ('px', 'names', 'agent'))
    want(type(px) is int and px > 0, f'tiles: px = {px!r}; want pixels per side')
    want(isinstance(names, list) and all(isinstance(name, str) for name in names),
         f'tiles: names = {names!r}; want a list of texts')
    want(agent in names, f'tiles: agent = {agent!r}; want one of {", ".join(names)}')
    try:
        pixels = np.array(tiles.get('pixels'), np.uint8)
    except (TypeError, ValueError, OverflowError):
        pixels = np.zeros(0)
    want(pixels.ndim == 4 and pixels.shape[:3] == (len(names), px, px),
         f'tiles: pixels have the shape {list(pixels.shape)}; want [{len(names)}, {px}, {px}, C] of 0..255')


def check_groups(groups, S):
    """The groups of a state with S entries."""
    want(isinstance(groups, dict), f'groups = {groups!r}: want {{name: {{dims, unit}}}}')
    taken = []
    for name, group in groups.items():
        want(isinstance(group, dict), f'groups: {name} = {group!r}; want {{dims, unit}}')
        dims, rate_of = group.get('dims'), group.get('rate_of', name)
        want(entries(dims, S), f'groups: dims of {name} = {dims!r}; want entries of the state, below {S}')
        want(isinstance(group.get('unit'), str), f'groups: {name} has no unit; it may be an empty text')
        want(isinstance(rate_of, str) and rate_of in groups,
             f'groups: {name} is rate_of {rate_of!r}, which is no group')
        taken += dims
    twice = sorted({i for i in taken if taken.count(i) > 1})
    want(not twice, f'groups: entries {twice} are in twice')


def check_meta(meta):
    """A whole meta.json, as json.load gave it."""
    want(isinstance(meta, dict), f'it holds a {type(meta).__name__}, no object')
    for part in ('facts', 'files', 'stats'):
        want(isinstance(meta.get(part), dict), f'{part} is missing or no object')
    facts, files = meta['facts'], meta['files']
    padded = meta.get('padded', ['action'])            # what older folders, without the entry, meant
    want(isinstance(padded, list), f'padded = {padded!r}: want a list of keys')
    check_files(files, facts)
    A, S = facts.get('action_dim'), facts.get('state_dim')
    check_info(meta, A, S)
    if meta.get('tiles') is not None:
        px, sides = meta['tiles']['px'], [facts.get(side) for side in ('height', 'width')]
        want(all(type(side) is int and side % px == 0 for side in sides),
             f'tiles: px = {px} does not divide {sides}, height and width')
    check_info(meta | {key: facts[key] for key in ('fps', 'q_index') if key in facts}, A, S)
    for key, name in ('latent', 'vae'), ('features', 'weights'):
        maker = meta.get(key)
        if maker is not None:
            told = isinstance(maker, dict) and {type(maker.get(part)) for part in (name, 'sha256')} == {str}
            want(told, f'{key} = {maker!r}: want {{{name}, sha256, ..}}, what made them')
    check_stats(meta['stats'], files, A, S)


def check_files(files, facts):
    """Every file has its entry, and facts do not contradict them."""
    kind = facts.get('input')
    want(kind in ('video', 'latent', None), f'facts: input = {kind!r}; want video or latent')
    for name, entry in files.items():
        want(re.fullmatch(r'\w+/[\w.]+\.npy', name), f'files: {name!r} is not <split>/<key>.npy')
        split, key = name.removesuffix('.npy').split('/')
        want(f'{split}/episodes.npy' in files, f'files: there is no {split}/episodes.npy')
        want(isinstance(entry, dict), f'files: {name} has no shape, dtype, bytes and sha256')
        shape = entry.get('shape')
        want(isinstance(shape, list) and len(shape) > 0 and all(type(n) is int and n >= 0 for n in shape),
             f'files: {name} has the shape {shape!r}')
        want(type(entry.get('bytes')) is int, f'files: {name} has no size in bytes')
        for part in ('dtype', 'sha256'):
            want(isinstance(entry.get(part), str), f'files: {name} has no {part}')
        if key in ('action', 'state', kind):
            said = [facts.get(fact) for fact in FACTS[key]]
            want(said == shape[1:], f'facts: {", ".join(FACTS[key])} = {said}, but {name} is {shape}')
        if key.startswith('image.') and 'cameras' in facts:
            said = [facts.get('height'), facts.get('width')]
            want(shape[1:] == [3, *said], f'facts: height, width = {said}, but {name} is {shape}')
        if key.startswith('features.'):
            said = facts.get('features')
            want(shape[1:] == said, f'facts: features = {said}, but {name} is {shape}')
    want('train/episodes.npy' in files, 'files: there is no train/episodes.npy')
    cameras = facts.get('cameras', [])
    kind = 'features' if 'features' in facts else 'image'
    want(isinstance(cameras, list) and all(f'train/{kind}.{name}.npy' in files for name in cameras),
         f'facts: cameras = {cameras!r}; want the <name> of each train/{kind}.<name>.npy')


def check_stats(stats, files, A, S):
    """There is a statistic for every table of floats of the train split, with a number per entry."""
    width = {'delta_state': S, 'delta_prev': A, 'delta_action': A}
    for name, entry in files.items():
        split, key = name.removesuffix('.npy').split('/')
        table = len(entry['shape']) == 2 and entry['dtype'].startswith('float')
        if split == 'train' and table and key != 'episodes':
            want(key in stats, f'stats: {key} is missing')
            width[key] = entry['shape'][1]
    for key, moments in stats.items():
        want(isinstance(moments, dict), f'stats: {key} is no object')
        for moment in MOMENTS:
            x = moments.get(moment)
            want(isinstance(x, list), f'stats: {key} has no {moment}')
            want(len(x) == width.get(key, len(x)),
                 f'stats: {key} has {len(x)} numbers of {moment}; want {width.get(key)}')
            want(all(finite(number) for number in x), f'stats: {moment} of {key} is {x}')
        want(min(moments['std'], default=1) > 0, f'stats: std of {key} is {moments["std"]}; want it above 0')


# ---- the arrays ----

def check_task(task, tasks):
    """task.npy as an array; tasks, the sentences that it numbers. A wrong number would pick another one."""
    low, high = task.min(initial=0), task.max(initial=0)
    want(not tasks or 0 <= low <= high < len(tasks),
         f'it holds {low} to {high}; tasks of meta.json has the sentences 0 to {len(tasks or ()) - 1}')


def check_episodes(episodes, rows):
    """episodes.npy as an array. rows: {key: how many rows its file has}."""
    want(len(set(rows.values())) == 1, f'the keys differ in length, {rows}')
    N = min(rows.values())
    want(episodes.ndim == 2 and episodes.shape[1] == 2 and episodes.dtype.kind == 'i' and len(episodes) > 0,
         f'it is {episodes.dtype} {list(episodes.shape)}; want int64 [E, 2], rows [start, end) of episodes')
    start, end = episodes[np.argsort(episodes[:, 0], kind='stable')].T
    want((start < end).all() and start[0] >= 0 and end.max() <= N, f'want 0 <= start < end <= {N} everywhere')
    twice = start[1:][end[:-1] > start[1:]]
    want(len(twice) == 0, f'row {twice[:1].tolist()} belongs to two episodes')
