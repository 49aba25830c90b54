"""
A room seen whole and from a fixed point: trees stop the player, boulders can be pushed.

    fixed = Fixed('data/minihack/boulders.des', shadows=False)     a level file, watched
    obs = fixed.start(seed)                       the same seed: the same level and dice, whatever was played
    fixed.frame()                                 (4 rows, 4 cols, 3) uint8, one NetHack tile per 4 x 4 pixels

In the picture around the player (pixels.py) the player never moves and what scrolls in was never seen. Here
nothing is hidden: the next frame follows from this one and the move. Two things would break that, so we draw
them as lit floor: what the player remembers but does not see right now (`shadows` keeps it as NetHack draws
it, darker), and the staircase that the player arrived by, because it shows only once the player has left it.
"""
import sys
from collections import deque
from functools import cache
from pathlib import Path

import numpy as np

from data.minihack.env import ACTIONS, CMAP, DELTAS, FLOOR, UP, check_des, make_env
from data.minihack.pixels import TILE, tiles

HERE = Path(__file__).parent
DARK = CMAP + 20                         # floor that is remembered, out of sight
TREE, WATER, BOULDER = CMAP + 18, CMAP + 32, 2353
PLAYER, MONK = 333, 'mon-hum-neu'        # of all roles the one that stands out most against the floor
NAMES = {PLAYER: 'player', FLOOR: 'floor', TREE: 'tree', BOULDER: 'boulder', WATER: 'water', DARK: 'shadow'}
WALLS = range(CMAP + 1, CMAP + 12)
GROUND = FLOOR, DARK
# How often; each is asked in this order, and only if none before it has decided.
PUSH = 0.6                               # the player pushes a boulder that gives way
STUCK = 0.4                              # it pushes one that does not, because these are rare
STOP = 0.3                               # it runs against whatever stops it
SEEK = 0.5                               # it takes a step towards a boulder that gives way
KEEP = 0.6                               # it goes on in the direction of its last move


def level_file(level, water=False):
    """The path of a level by name, or of a .des file, which is compiled to see whether it can be."""
    if water and level != 'boulders':
        sys.exit(f'--water: only --level=boulders knows how; write water into {level} yourself')
    path = HERE / f'boulders{"_water" if water else ""}.des' if level == 'boulders' else Path(level)
    check_des(str(path))
    return str(path)


class Fixed:
    """A level file and the rectangle inside its walls, which must be the same for every seed."""

    def __init__(self, path, shadows=False):
        self.path, self.shadows, self.box = path, shadows, None
        self.env = make_env(path, cap=10**9, character=MONK)

    def start(self, seed):
        obs, _ = self.env.reset(seed=seed)
        box = inside(obs['glyphs'])
        if box is None or (self.box or box) != box:
            sys.exit(f'{self.path}, seed {seed}: this is not the level that the file describes, or it has no '
                     'walls around one rectangle; want a premapped and lit one like boulders.des')
        self.box = box
        strange = set(np.unique(self.glyphs()).tolist()) - NAMES.keys()
        if strange:
            sys.exit(f'{self.path}, seed {seed}: it shows glyphs {sorted(strange)}; want floor, trees, '
                     'boulders and water alone, because an episode ends where anything else is seen')
        return obs

    def glyphs(self):
        """(rows, cols) int: what NetHack draws in there now."""
        y, x, rows, cols = self.box
        seen = self.env.screen[y:y + rows, x:x + cols].copy()
        seen[seen == UP] = FLOOR
        if not self.shadows:
            seen[seen == DARK] = FLOOR
        return seen

    def frame(self):
        return picture(self.glyphs())

    def player(self):
        """The player's cell (y, x) in the picture."""
        y, x = self.env.position()
        return y - self.box[0], x - self.box[1]


def picture(glyphs):
    """(..., rows, cols) -> (..., 4 rows, 4 cols, 3) uint8."""
    drawn = np.swapaxes(tiles()[glyphs], -4, -3)                     # (..., rows, 4, cols, 4, 3)
    return drawn.reshape(*glyphs.shape[:-2], glyphs.shape[-2] * TILE, glyphs.shape[-1] * TILE, 3)


def inside(glyphs):
    """The rectangle within the walls: (y, x, rows, cols); None where walls make no closed rectangle."""
    wall = np.isin(glyphs, WALLS)
    y, x = np.nonzero(glyphs != CMAP)                                # all that is no solid rock
    if len(y) == 0:
        return None
    top, bottom, left, right = y.min(), y.max(), x.min(), x.max()
    room = wall[top:bottom + 1, left:right + 1]
    closed = room[0].all() and room[-1].all() and room[:, 0].all() and room[:, -1].all()
    if not closed or min(room.shape) < 3:
        return None
    return int(top) + 1, int(left) + 1, int(bottom - top) - 1, int(right - left) - 1


def wander(glyphs, at, last, ways, rng):
    """The next move, one of so many ways. Chance meets few boulders, so we seek them; never into water."""
    free, push, stop = [], [], {}                                    # stop: {what is in the way: moves}
    for move, (dy, dx) in enumerate(DELTAS[:ways]):
        ahead, beyond = look(glyphs, at, dy, dx, 1), look(glyphs, at, dy, dx, 2)
        if ahead == BOULDER and beyond in (*GROUND, WATER):
            push.append(move)
        elif ahead in GROUND:
            free.append(move)
        elif ahead != WATER:
            stop.setdefault(ahead, []).append(move)
    if push and rng.random() < PUSH:
        return push[rng.integers(len(push))]
    if BOULDER in stop and rng.random() < STUCK:
        return stop[BOULDER][rng.integers(len(stop[BOULDER]))]
    if stop and rng.random() < STOP:
        kinds = list(stop)                                           # walls, trees, boulders
        some = stop[kinds[rng.integers(len(kinds))]]
        return some[rng.integers(len(some))]
    if not free:
        some = push + sum(stop.values(), []) or [0]                  # water all around: it crawls out again
        return some[rng.integers(len(some))]
    if rng.random() < SEEK:
        far = distance(glyphs, ways)
        nearer = [m for m in free if look(far, at, *DELTAS[m], 1) < far[at]]
        if nearer:
            return nearer[rng.integers(len(nearer))]
    if last in free and rng.random() < KEEP:
        return last
    return free[rng.integers(len(free))]


def distance(glyphs, ways):
    """(rows, cols): how many moves it is to a cell from where one can push a boulder; 999 if no way leads."""
    far = np.full(glyphs.shape, 999)
    queue = deque()
    for y, x in np.argwhere(glyphs == BOULDER):
        for dy, dx in DELTAS[:ways]:
            stand, beyond = look(glyphs, (y, x), -dy, -dx, 1), look(glyphs, (y, x), dy, dx, 1)
            if stand in (*GROUND, PLAYER) and beyond in (*GROUND, WATER):
                far[y - dy, x - dx] = 0
                queue.append((y - dy, x - dx))
    while queue:
        y, x = queue.popleft()
        for dy, dx in DELTAS[:ways]:
            if look(glyphs, (y, x), dy, dx, 1) in (*GROUND, PLAYER) and far[y + dy, x + dx] == 999:
                far[y + dy, x + dx] = far[y, x] + 1
                queue.append((y + dy, x + dx))
    return far


def look(glyphs, at, dy, dx, steps):
    """What is some steps away on a map (rows, cols), None beyond the walls."""
    y, x = at[0] + steps * dy, at[1] + steps * dx
    return glyphs[y, x] if 0 <= y < glyphs.shape[0] and 0 <= x < glyphs.shape[1] else None


watch = cache(Fixed)                     # one per worker; a seeded level forgets what was played before


def episode(i, seed, path, moves, shadows, diagonal):
    """Episode i: {'video': (T, 4 rows, 4 cols, 3) uint8, 'action': (T, 4 or 8) one-hot}, T <= moves + 1."""
    ways = 8 if diagonal else 4                                      # N E S W come first
    rng, level = np.random.default_rng([seed, i]), watch(path, shadows)
    level.start(int(rng.integers(2**31)))
    arrived, last = level.player(), None
    for _ in range(9):                   # not filmed, because the player may have arrived on top of a boulder
        if level.player() == arrived:
            last = int(wander(level.glyphs(), level.player(), last, ways, rng))
            level.env.step(last)
    video, action = [level.frame()], []
    while len(action) < moves:
        last = int(wander(level.glyphs(), level.player(), last, ways, rng))
        _, _, over, cut, _ = level.env.step(last)
        strange = set(np.unique(level.glyphs()).tolist()) - NAMES.keys()
        if over or cut or strange:
            break                        # the game is over, or a monster came: drop this move and its frame
        video.append(level.frame())
        action.append(last)
    onehot = np.zeros((len(video), ways), np.float32)
    onehot[np.arange(len(action)), action] = 1     # the last row stays zero: it leads nowhere
    return {'video': np.stack(video), 'action': onehot}


class Live:
    """The game itself for play.py: .reset(seed) and .step(one-hot move) -> (H, W, 3) uint8, the picture."""

    def __init__(self, name, water, shadows):
        self.fixed = watch(level_file(name, water), shadows)

    def reset(self, seed):
        rng = np.random.default_rng(seed)
        self.fixed.start(int(rng.integers(2**31)))
        last = None
        for _ in range(12):              # away from the staircase, which nobody sees
            last = int(wander(self.fixed.glyphs(), self.fixed.player(), last, 4, rng))
            self.fixed.env.step(last)
        return self.fixed.frame()

    def step(self, action):
        if not self.fixed.env.over:      # after a death nothing changes
            self.fixed.env.step(int(np.argmax(action)))
        return self.fixed.frame()


def about(level, shadows, water, diagonal):
    """What meta.json says of such pictures; `tiles` is for the scores of protocols/video.py."""
    shown = [g for g in NAMES if (g != WATER or water) and (g != DARK or shadows)]
    ways = 8 if diagonal else 4
    units = {'video': f'0-255; {TILE} px per tile, the whole room', 'action': 'one-hot compass move'}
    return {'units': units,
            'action_names': list(ACTIONS[:ways]), 'action_arrows': [[dx, dy] for dy, dx in DELTAS[:ways]],
            'env': 'data.minihack.env', 'level': level, 'action_kind': 'onehot',
            'play_keys': {key: np.eye(ways)[i].tolist() for i, key in enumerate('kljhunby'[:ways])},
            'tiles': {'px': TILE, 'names': [NAMES[g] for g in shown], 'agent': 'player',
                      'pixels': [tiles()[g].tolist() for g in shown]}}
