"""
Play real NetHack levels and keep what the player saw.
    python data/minihack/prepare.py                       what surrounds the player, for a world model
    python data/minihack/prepare.py --level=boulders      a room seen whole, for a world model
    python data/minihack/prepare.py --oracle              a teacher's games, for a planner

Around the player: purpose and chance, mixed in a proportion of its own for every episode: on purpose the
player walks to a cell that it has drawn, by chance it makes a random move. The staircase down ends a game, so
it is avoided until the move `home`, and from then on every purpose leads there. So all episodes have enough
frames to cut windows from, and some do end at the staircase. Read `episode` first; levels are in pixels.py.

A room seen whole: the player looks for boulders, because chance meets few of them (boulders.py).

Planner: map, surroundings and action of every step that a teacher took (oracles.py), on the levels that a
planner trains on. What it lost is played again on another level, unless --keep_lost.
"""
import sys
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.minihack import boulders, env, play  # noqa: E402
from data.minihack import pixels as nethack  # noqa: E402
from data.minihack.oracles import ORACLES  # noqa: E402
from data.writer import at_least, common, flags, write  # noqa: E402

BLIND = 0.15      # of the random moves may run into a wall: that nothing moves then is worth knowing too
PATIENCE = 3      # moves in a row that changed nothing before we want something else (a locked door, say)

environment = cache(nethack.make_env)     # one per worker; a seeded level forgets what was played before


def errand(cells, here, home, been, obs, rng):
    """A cell to walk to, or None. home: the staircase down if there is a way; else any cell but that."""
    stairs = nethack.find(obs, nethack.DOWN)
    near = nethack.routes(cells, here, avoid=stairs)
    if home and stairs & near.keys():
        return min(stairs & near.keys())
    goals = [c for c in near if c != here and c not in stairs]
    dark = np.pad(obs['glyphs'] == nethack.UNKNOWN, 1)               # dark[y:y+3, x:x+3] surrounds (y, x)
    edge = [(y, x) for y, x in goals if (y, x) not in been and dark[y:y + 3, x:x + 3].any()]
    marks = stairs | nethack.find(obs, nethack.UP)
    marks = [(y, x) for y, x in goals if any(abs(y - v) < 2 and abs(x - u) < 2 for v, u in marks)]
    goals = [edge, marks, marks, goals][rng.integers(4)] or goals    # plain floor in view would teach nothing
    return goals[rng.integers(len(goals))] if goals else None


def wander(cells, here, avoid, rng):
    """A random move: mostly to a cell one can stand on, sometimes blindly, never to a cell of `avoid`."""
    moves = [m for m, (dy, dx) in enumerate(nethack.DELTAS) if (here[0] + dy, here[1] + dx) not in avoid]
    free = [m for m, to in nethack.neighbours(cells, here) if to not in avoid]
    if free and rng.random() >= BLIND:
        moves = free
    return moves[rng.integers(len(moves))]


def episode(i, seed, level, crop, moves):
    """Episode i: {'video': (T, 4 crop, 4 crop, 3) uint8, 'action': (T, 8) one-hot}, T <= moves + 1."""
    rng, env, table = np.random.default_rng([seed, i]), environment(level, crop), nethack.tiles()
    obs = nethack.start(env, int(rng.integers(2**31)))
    chance, home = rng.random(), int(rng.integers(moves // 2, moves + 1))
    video, action, been = [nethack.frame(obs, table)], [], set()
    goal, way, known, idle = None, {}, None, 0
    while len(action) < moves:
        here, cells, late = nethack.position(obs), nethack.world(obs), len(action) >= home
        stairs = nethack.find(obs, nethack.DOWN)
        been.add(here)
        move = None
        if rng.random() >= chance:
            if goal not in cells or goal == here or idle >= PATIENCE or (late and goal not in stairs):
                goal, way, idle = errand(cells, here, late, been, obs, rng), {}, 0
            if goal and (here not in way or known != cells.keys()):
                way, known = nethack.routes(cells, goal, avoid=stairs), cells.keys()
            move = way.get(here)
        if move is None:
            move = wander(cells, here, set() if late else stairs, rng)

        obs, _, terminated, truncated, _ = env.step(move)
        if terminated or truncated:
            break                                  # the game is over: no frame follows this move, drop it
        idle = idle + 1 if nethack.position(obs) == here else 0
        video.append(nethack.frame(obs, table))
        action.append(move)
    onehot = np.zeros((len(video), len(nethack.DELTAS)), np.float32)
    onehot[np.arange(len(action)), action] = 1     # the last row stays zero: it leads nowhere
    return {'video': np.stack(video), 'action': onehot}


TRIES = 500       # games that a teacher may lose in a row

# The three kinds of data: flags that each of them takes, and what they are if they are not given.
PIXELS = {'level': 'room', 'crop': 7, 'episodes': 640, 'moves': 47}
WHOLE = {'level': 'boulders', 'episodes': 640, 'moves': 47, 'diagonal': False, 'shadows': False,
         'water': False}
GAMES = {'episodes_per_env': 500, 'oracle': 'explore', 'envs': ','.join(env.ID), 'memory': False,
         'keep_lost': False}


def game(i, seed, oracle, envs, memory, keep_lost):
    """Game i: glyphs (T, 21, 79), local (T, 9, 9), action (T, 1) and task (T,), the number of its level."""
    names = envs.split(',')
    level = i % len(names)                               # so that --limit has some of every kind
    for again in range(TRIES):
        rng = np.random.default_rng([seed, i, again])
        lesson, won = play.lesson(names[level], int(rng.integers(2**31)), oracle, rng, memory=memory)
        if won or keep_lost:
            return lesson | {'task': np.full(len(lesson['action']), level, np.int32)}
    sys.exit(f'{oracle} lost {TRIES} games of {names[level]} in a row; --keep_lost takes them')


def make_games(args):
    """A planner's data."""
    at_least(args, episodes_per_env=1)
    if args.oracle not in ORACLES:
        sys.exit(f'--oracle={args.oracle}: choose one of {", ".join(ORACLES)}')
    names = args.envs.split(',')
    for name in names:
        env.check_name(name)
    info = {'source': f'games of {args.oracle} in NetHack, by {Path(__file__).name}', 'revision': revision(),
            'fps': 6, 'units': {'glyphs': "NetHack's ids", 'action': ' '.join(env.ACTIONS)}, 'tasks': names,
            'env': 'data.minihack.env',
            'facts': {'envs': names, 'oracle': args.oracle, 'memory': args.memory}}
    given = {key: getattr(args, key) for key in GAMES if key != 'episodes_per_env'}
    write(args.out, partial(game, seed=args.seed, **given), args.episodes_per_env * len(names), info=info,
          padded=(), **common(args, __file__))


def make_pixels(args):
    """A world model's data, around the player."""
    at_least(args, episodes=1, moves=1, crop=1)
    if args.crop % 2 == 0:
        sys.exit(f'--crop={args.crop}: the agent is in the middle tile; use an odd number')
    units = {'video': '0-255; 4 px per tile, agent in the middle', 'action': 'one-hot compass move'}
    info = {'source': f'{nethack.LEVELS[args.level]}, played in NetHack by {Path(__file__).name}',
            'revision': revision(), 'fps': 6, 'units': units,
            'action_names': list(nethack.MOVES), 'action_arrows': [[dx, dy] for dy, dx in nethack.DELTAS]}
    played = partial(episode, seed=args.seed, level=args.level, crop=args.crop, moves=args.moves)
    write(args.out, played, args.episodes, info=info, binary={'action': slice(None)},
          **common(args, __file__))


def make_whole(args):
    """A world model's data, of a room seen whole."""
    at_least(args, episodes=1, moves=1)
    path = boulders.level_file(args.level, args.water)
    source = f'{Path(path).name}, played in NetHack by {Path(__file__).name}'
    water = args.water or args.level != 'boulders'       # because a level of one's own may hold some
    level = {'name': args.level, 'water': args.water, 'shadows': args.shadows}
    about = boulders.about(level, args.shadows, water, args.diagonal)
    info = {'source': source, 'revision': revision(), 'fps': 6, **about}
    played = partial(boulders.episode, seed=args.seed, path=path, moves=args.moves, shadows=args.shadows,
                     diagonal=args.diagonal)
    write(args.out, played, args.episodes, info=info, binary={'action': slice(None)},
          **common(args, __file__))


def revision():
    return ', '.join(f'{name} {version(name)}' for name in ('minihack', 'nle'))


def kind_of(args, parser):
    """Which data the flags ask for: what makes them, their flags. Refuses a flag of another kind."""
    told = [key for key in vars(args) if getattr(args, key) is not None]
    whole = args.level == 'boulders' or str(args.level).endswith('.des')
    if whole:
        make, ours, because = make_whole, WHOLE, f'--level={args.level}'
    elif GAMES.keys() & set(told):
        make, ours, because = make_games, GAMES, '--' + next(key for key in told if key in GAMES)
    else:
        make, ours, because = make_pixels, PIXELS, f'--level={args.level or PIXELS["level"]}'
        if args.level not in (None, *nethack.LEVELS):
            parser.error(f'{because}: choose {", ".join(nethack.LEVELS)}, boulders or a .des file')
    for key in (PIXELS | WHOLE | GAMES).keys() - ours.keys():
        if key in told:
            parser.error(f'--{key} makes no sense with {because}')
        delattr(args, key)
    for key, default in ours.items():
        if getattr(args, key) is None:
            setattr(args, key, default)
    return make


def folder(args, make):
    """data/minihack_<what it is>, from the flags."""
    if make is make_pixels:
        parts = ['pixels']
    elif make is make_whole:
        told = [flag for flag in ('diagonal', 'shadows', 'water') if getattr(args, flag)]
        parts = [Path(args.level).stem, *told]
    else:
        parts = ['oracle'] + [args.oracle] * (args.oracle != 'explore') + ['memory'] * args.memory
    return '_'.join(['data/minihack', *parts])


def main():
    p = flags(__doc__, out='data/minihack_pixels, minihack_boulders or minihack_oracle')
    p.set_defaults(out=None)
    pixels, games = p.add_argument_group('for a world model'), p.add_argument_group('for a planner')
    pixels.add_argument('--level', help=f'{", ".join(nethack.LEVELS)}: what surrounds the player; boulders '
                        'or a .des file: a room seen whole (default room)')
    pixels.add_argument('--crop', type=int, help='tiles to a side, odd; 4 px each (default 7: 28 px)')
    pixels.add_argument('--episodes', type=int, help='how many (default 640)')
    pixels.add_argument('--moves', type=int, help='at most, of an episode; frames are one more (default 47)')
    pixels.add_argument('--diagonal', action='store_true', default=None, help='of a room seen whole: eight '
                        'moves, not four')
    pixels.add_argument('--shadows', action='store_true', default=None, help='of a room seen whole: darken '
                        'what the player does not see right now')
    pixels.add_argument('--water', action='store_true', default=None, help='boulders: pools swallow them')
    games.add_argument('--episodes_per_env', type=int, help='games per level (default 500)')
    games.add_argument('--oracle', nargs='?', const='explore', help=f'the teacher: {" | ".join(ORACLES)} '
                       '(default explore)')
    games.add_argument('--envs', help='levels, with commas between (default: the four of training)')
    games.add_argument('--memory', action='store_true', default=None, help='mark where the player has been')
    games.add_argument('--keep_lost', action='store_true', default=None, help='also games that were lost')
    args = p.parse_args()
    make = kind_of(args, p)
    if args.out is None:
        args.out = folder(args, make)
    make(args)


if __name__ == '__main__':
    main()
