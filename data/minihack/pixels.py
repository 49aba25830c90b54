"""
NetHack as a world model sees it: MiniHack's environment on a seeded level, its picture, a way to a cell.

    env = make_env('room')               gymnasium.Env; actions 0..7 are the compass moves of MOVES
    obs = start(env, seed)               the same seed: the same level and dice, whatever was played before
    frame(obs, tiles())                  (4 crop, 4 crop, 3) uint8: the tiles around the agent in the middle
    routes(world(obs), goal)             from every cell the first move of a shortest way to the goal

Cells are (y, x), as in obs['glyphs'] (21, 79). minihack is imported inside the functions: a test that only
looks at the tables should not pay for it.
"""
import warnings
from collections import deque
from functools import cache

import numpy as np

from data.minihack.env import ACTIONS, CMAP, DELTAS, DOORS, DOWN, FLOOR, UP

__all__ = ['DELTAS', 'DOORS', 'DOWN', 'FLOOR', 'LEVELS', 'MOVES', 'UNKNOWN', 'UP', 'find', 'frame',
           'make_env', 'neighbours', 'position', 'routes', 'start', 'tiles', 'world']

LEVELS = {'room': 'MiniHack-Room-Random-15x15-v0', 'mazewalk': 'MiniHack-MazeWalk-9x9-v0',
          'corridor': 'MiniHack-Corridor-R2-v0'}
MOVES = dict(zip(ACTIONS, DELTAS))       # name: (dy, dx)
TILE = 4                                 # px per tile; NetHack's own are 16

# Glyphs, not characters, decide where one can walk: an open door is drawn '-' or '|', like a wall.
UNKNOWN = CMAP
WALKABLE = np.zeros(5977, bool)                           # by glyph
WALKABLE[[*DOORS]] = True
WALKABLE[[CMAP + k for k in (12, 19, 20, 21, 22, 23, 24)]] = True      # doorway, floor, corridor, stairs


def make_env(level='room', crop=7):
    """A MiniHack level; observations glyphs (21, 79), glyphs_crop (crop, crop), blstats (27,)."""
    assert crop % 2 == 1, f'crop {crop} has no middle tile for the agent; use an odd number like {crop + 1}'
    with warnings.catch_warnings():      # minihack imports pkg_resources, which says at length that it is old
        warnings.simplefilter('ignore')
        import gymnasium
        import minihack  # noqa: F401    (its import registers the levels)
    return gymnasium.make(LEVELS[level], disable_env_checker=True, obs_crop_h=crop, obs_crop_w=crop,
                          observation_keys=('glyphs', 'glyphs_crop', 'blstats'),
                          obs_crop_pad=UNKNOWN,      # beyond the map is rock, not glyph 0, which is an ant
                          fix_moon_phase=True)       # a full moon tonight is luck, and luck is other dice


def start(env, seed):
    """First observation of level `seed`. `reset(seed=...)` alone would not do: NetHack rolls its own dice."""
    env.unwrapped.seed(core=seed, disp=seed, reseed=False)
    return env.reset()[0]


@cache
def tiles(size=TILE):
    """(glyphs, size, size, 3) uint8: NetHack's 16 px tiles, every block of pixels replaced by its mean."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from minihack.tiles.glyph_mapper import GlyphMapper
    from nle.nethack import MAX_GLYPH
    mapper = GlyphMapper()
    full = np.stack([mapper.glyph_id_to_rgb(g) for g in range(MAX_GLYPH)])      # (G, 16, 16, 3)
    full = full.astype(np.uint16)
    k = full.shape[1] // size
    blocks = full.reshape(-1, size, k, size, k, 3).sum((2, 4))
    return ((blocks + k * k // 2) // (k * k)).astype(np.uint8)       # rounded; integers are the same anywhere


def frame(obs, table):
    """obs -> (4 crop, 4 crop, 3) uint8. Drawing shrunken tiles shrinks the drawing, at 1/16 of the work."""
    x = table[obs['glyphs_crop']]                                    # (h, w, 4, 4, 3)
    h, w = x.shape[:2]
    return x.transpose(0, 2, 1, 3, 4).reshape(h * TILE, w * TILE, 3)


def position(obs):
    """The agent's cell. Asked of NetHack: '@' is also how other humans look."""
    return int(obs['blstats'][1]), int(obs['blstats'][0])


def find(obs, glyph):
    """The set of cells that show this glyph."""
    y, x = np.nonzero(obs['glyphs'] == glyph)
    return set(zip(y.tolist(), x.tolist()))


def world(obs):
    """What is known of the level: {cell: glyph} where one can stand. Under the agent we suppose floor."""
    y, x = np.nonzero(WALKABLE[obs['glyphs']])
    cells = zip(y.tolist(), x.tolist())
    return dict(zip(cells, obs['glyphs'][y, x].tolist())) | {position(obs): FLOOR}


def neighbours(cells, at):
    """[(move, cell)] one step away from `at`."""
    steps = DELTAS[:4] if cells[at] in DOORS else DELTAS
    return [(m, to) for m, (dy, dx) in enumerate(steps)
            if (to := (at[0] + dy, at[1] + dx)) in cells and (m < 4 or cells[to] not in DOORS)]


def routes(cells, goal, avoid=()):
    """{cell: first move of a shortest way from there to goal}, where one does not cross `avoid`."""
    first, queue = {goal: None}, deque([goal])
    while queue:
        at = queue.popleft()
        if at in avoid and at != goal:
            continue                                     # a way may begin there, but not go through
        for move, to in neighbours(cells, at):
            if to not in first:
                first[to] = move ^ 2                     # the way back: N - S, E - W, NE - SW, SE - NW
                queue.append(to)
    return first
