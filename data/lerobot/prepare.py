"""
Recordings of robots in the LeRobot format: states and actions, and what cameras saw.
    python data/lerobot/prepare.py --src=../g1_lerobot --out=data/lerobot_g1 --val=85-99 --group arm=0-13:rad
    ... --out=data/lerobot_g1cam --cameras=all --size=96x128 --episodes=1,2,4,5,7,8           for policies
    ... --out=data/lerobot_g1tokens --cameras=all --features=pretrained/SmolVLM2-500M-Video-Instruct
    ... --out=data/lerobot_g1video --video=observation.images.cam_high --episodes=1,2,4,5,7,8 --relative

A row is a frame: state[t] is measured, action[t] is taken at frame t. Nothing is missing after the last
frame: its action was sent to the robot and is kept. reader.py reads the files; here we ask which entries of
the state belong together (groups), which of them the actions command (q_index), and which cameras to keep:
--video makes the `video` of world models, --cameras an `image.<name>` for each of a policy's cameras. With
--features=FOLDER, of a published smolvla or of SmolVLM2, that is a `features.<name>`: the image tokens that a
smolvla whose VLM has these weights, and stays frozen, would compute anew in each step (image_tokens.py).
"""
import hashlib
import re
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.latents import most_workers  # noqa: E402
from data.lerobot import image_tokens  # noqa: E402
from data.lerobot.reader import cameras, episode, features, films, layout, tasks, view, width  # noqa: E402
from data.video import sides, told  # noqa: E402
from data.writer import common, flags, write  # noqa: E402


def entries(names, n):
    """Names of the n entries of a column, or []. They come as ['a', ...], [['a', ...]] or {x: ['a', ...]}."""
    def flat(x):
        if isinstance(x, dict):
            x = list(x.values())
        return [name for part in x for name in flat(part)] if isinstance(x, list) else [x]
    names = flat(names)
    return names if len(names) == n and all(isinstance(name, str) for name in names) else []


def indices(text, n, flag, there='the state has the entries'):
    """'0-2,5' -> [0, 1, 2, 5], all of them below n."""
    if not re.fullmatch(r'\d+(-\d+)?(,\d+(-\d+)?)*', text):
        sys.exit(f'{flag}: want numbers and ranges, like 0-2,5')
    spans = [[int(x) for x in part.split('-')] for part in text.split(',')]
    if max(max(span) for span in spans) >= n or any(span[0] > span[-1] for span in spans):
        sys.exit(f'{flag}: {there} 0-{n - 1}')
    return [i for span in spans for i in range(span[0], span[-1] + 1)]


def grouped(texts, n):
    """['arm=0-13:rad', ...] -> {'arm': {'dims': [0, ..., 13], 'unit': 'rad'}, ...}; disjoint."""
    groups = {}
    for text in texts:
        m = re.fullmatch(r'(\w+)=([^:]*)(?::(.*))?', text)
        if not m:
            sys.exit(f'--group={text}: want NAME=ENTRIES:UNIT, like arm=0-13:rad')
        dims = indices(m[2], n, f'--group={text}')
        taken = sorted({i for g in groups.values() for i in g['dims']} & set(dims))
        if taken or len(set(dims)) < len(dims):
            sys.exit(f'--group={text}: entries {taken or dims} are in twice')
        if m[1] in groups:
            sys.exit(f'--group={text}: there is a group {m[1]} already')
        groups[m[1]] = {'dims': dims, 'unit': m[3] or ''}
    return groups or {'state': {'dims': list(range(n)), 'unit': ''}}


def commanded(flag, states, actions, S, A):
    """q_index: for every entry of the action the entry of the state it commands; None if nobody knows."""
    if flag == 'none':
        return None
    if flag:
        q_index = indices(flag, S, f'--q_index={flag}')
        if len(q_index) != A:
            sys.exit(f'--q_index={flag}: {len(q_index)} entries for {A} actions')
        return q_index
    if actions and len(set(states)) == len(states) and set(actions) <= set(states):
        print('q_index: by name; if actions are no targets for the states of the same name, --q_index=none')
        return [states.index(name) for name in actions]
    print('q_index: no state for every action name, so delta actions are not available; --q_index=0,1,... '
          'says which')


def kept(info, text):
    """--cameras: {name: column} of those that are named, in this order, or of all that see three colours."""
    there = cameras(info)
    names = {column: name for name, column in there.items()}
    wanted = there if text == 'all' else [names.get(part, part) for part in text.split(',')]
    found = {}
    for name in wanted:
        if name not in there:
            sys.exit(f'--cameras={text}: no camera {name!r}; there are {", ".join(there) or "none"}')
        if name in found:
            sys.exit(f'--cameras={text}: {name} is in twice')
        odd = view(info, there[name])[1]
        if odd and text == 'all':
            print(f'--cameras=all: {name} {odd}, we leave it out')
        elif odd:
            sys.exit(f'--cameras={text}: {name} {odd}; we keep pictures of three colours')
        else:
            found[name] = there[name]
    if not found:
        sys.exit(f'--cameras={text}: the set has no camera that sees three colours')
    return found


def one_size(info, found):
    """(height, width) of cameras {name: column}, who must agree."""
    shapes = {name: view(info, column)[0] for name, column in found.items()}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if other != shape:
            sys.exit(f'--cameras: {first} is {told(shape)}, {name} {told(other)}; want one size, like '
                     f'--size={told(min(shape, other))}')
    return shape


def watched(args, info):
    """--video, --cameras, --size -> {key: column of a camera}, (height, width) or None: as it is, facts."""
    if args.video is not False and args.cameras is not False:
        sys.exit('--video and --cameras: want one of them, --video for world models, --cameras for policies')
    if args.features is not False and args.cameras is False:
        sys.exit(f'--features={args.features}: of what? --cameras=all says which pictures to read')
    if args.cameras is not False:
        found, size = kept(info, args.cameras), sides(args.size)
        H, W = size or one_size(info, found)
        facts = {'cameras': [*found], 'height': H, 'width': W}
        return {f'image.{name}': column for name, column in found.items()}, size, facts
    if args.video is not False:
        columns = [*cameras(info).values()]
        if args.video not in columns:
            sys.exit(f'--video={args.video}: no such camera; there are {", ".join(columns) or "no videos"}')
        args.size = args.size or '32'
        return {'video': args.video}, sides(args.size), {}
    if args.size:
        sys.exit(f'--size={args.size}: of what? --video=CAMERA or --cameras=all says which pictures to read')
    return {}, None, {}


def sources(files):
    """
    {episode: [path]} -> name, size and time of each file: what was fetched anew must not be mixed with what
    was read before.
    """
    found, lost = [], {i: path for i, paths in files.items() for path in paths if not path.exists()}
    if lost:
        there = ','.join(str(i) for i in files if i not in lost)
        keep = f', or keep the episodes that are there: --episodes={there}' if there else ''
        sys.exit(f'{next(iter(lost.values()))} is missing; fetch it{keep}')
    for path in dict.fromkeys(path for paths in files.values() for path in paths):
        stat = path.stat()
        found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return found


def main():
    p = flags(__doc__, out='data/lerobot_g1', size=False)
    p.add_argument('--src', required=True, help='folder of the LeRobot set, with meta/ and data/')
    p.add_argument('--state', default='observation.state', help='column (default observation.state)')
    p.add_argument('--action', default='action', help='column (default action)')
    p.add_argument('--group', action='append', default=[], help='NAME=ENTRIES:UNIT of the state, often')
    p.add_argument('--q_index', default=False,
                   help='states that actions command: 0-25 | 0,1,2 | none (default: those of the same name)')
    p.add_argument('--relative', action='store_true',
                   help='keep action - state of what is commanded: how far to go from here')
    p.add_argument('--video', default=False, help='camera, a column like observation.images.cam_high')
    p.add_argument('--cameras', default=False, help='all, or some of them, like cam_high,cam_left')
    p.add_argument('--features', default=False,
                   help='folder of a smolvla or of SmolVLM2, for cameras: keep its image tokens, no pictures')
    p.add_argument('--size', default=False,
                   help='32, or 24x32, height x width (default: 32 of --video, --cameras as they are)')
    p.add_argument('--episodes', default=False, help='keep these, like 1,2,4-5; --val then counts the kept')
    args = p.parse_args()
    info, files = layout(args.src)
    chosen = list(range(len(files)))
    if args.episodes:
        chosen = indices(args.episodes, len(files), f'--episodes={args.episodes}', 'the set has the episodes')
    if len(set(chosen)) < len(chosen):
        sys.exit(f'--episodes={args.episodes}: some are in twice')
    S, A = (width(info, column) for column in (args.state, args.action))
    states, actions = (entries(info['features'][column].get('names'), n)
                       for column, n in ((args.state, S), (args.action, A)))
    seen, size, facts = watched(args, info)
    groups, q_index = grouped(args.group, S), commanded(args.q_index, states, actions, S, A)
    units = ', '.join(f"{name} {g['unit']}" for name, g in groups.items() if g['unit'])
    src = Path(args.src).resolve()
    sha = hashlib.sha256((src / 'meta' / 'info.json').read_bytes()).hexdigest()
    about = {'source': f"{src.name}: {info.get('robot_type')}, LeRobot {info['codebase_version']}",
             'revision': f'meta/info.json with sha256 {sha}', 'fps': info['fps'],
             'units': {'state': units, 'action': units if q_index is not None else ''},
             'state_names': states, 'action_names': actions, 'groups': groups}
    if args.relative and q_index is None:
        sys.exit('--relative: which state does each action command? --q_index=0,1,... says so')
    if q_index is not None and not args.relative:              # what is relative commands no state any more
        about['q_index'] = q_index
    if facts:
        about['facts'] = facts
    if args.cameras and 'task_index' in features(info):
        about['tasks'] = tasks(args.src)
    args.group = ' --group='.join(args.group) or False         # as one would type it again
    read_one = partial(episode, src=args.src, state=args.state, action=args.action, seen=seen, size=size,
                       chosen=chosen, relative=q_index if args.relative else None,
                       n_tasks=len(about.get('tasks', [])))
    wanted = chosen[:args.limit] if args.limit > 0 else chosen
    filmed = [column for column in seen.values() if features(info)[column]['dtype'] == 'video']
    options, code = common(args, __file__), []
    if args.features is not False:
        about['features'], about['facts']['features'] = image_tokens.about(args.features)
        read_one = partial(image_tokens.encoded, episode=read_one, src=args.features)
        options['workers'] = most_workers(args.workers)            # each has a network of its own
        code = [(Path(__file__).parents[2] / 'smolvla.py').read_text()]    # another may make other tokens
    read = {i: [files[i][0], *(films(args.src, column)[i][0] for column in filmed)] for i in wanted}
    write(args.out, read_one, len(chosen), info=about, padded=(),
          sources=[*sources(read), *code], **options)


if __name__ == '__main__':
    main()
