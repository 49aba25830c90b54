"""
Goals given as a picture, in the NetHack rooms of boulders.py: what protocols/goals.py wants of a world.

    Simulator      the game itself with the interface of a world model
    Tasks          see Tasks in data/wall/env.py for what each name means

A goal is a picture of the same room a few moves later. In `walk` the player stands 2 to 4 steps away and all
else is in its place; in `push` it has pushed a boulder, too. A task is done where the true picture is the
goal's, boulders included: whoever pushes one on the way to `walk` has failed, and often cannot undo it.
"""
from collections import deque

import numpy as np
import torch

from data.minihack.boulders import BOULDER, GROUND, NAMES, PLAYER, level_file, look, picture, wander, watch
from data.minihack.env import DELTAS

AWAY = 2, 3, 4                           # moves from the start to a goal


class Simulator:
    """
    The game cannot be copied, so a future is played from the seed of its level on, with all moves before it.
    What was seen on the way is kept, because a search comes back to the same moves again and again.
    """

    def __init__(self, fixed, levels):
        self.fixed, self.levels, self.seen = fixed, levels, {}   # levels: [(seed, moves before the start)]

    def map(self, task, moves):
        """(rows, cols) int: what the game draws after these moves (numbers) of a task."""
        if (task, moves) not in self.seen:
            seed, before = self.levels[task]
            self.fixed.start(seed)
            for done in range(-len(before), len(moves) + 1):
                if done >= 0:
                    self.seen[task, moves[:done]] = self.fixed.glyphs()
                if done < len(moves) and not self.fixed.env.over:    # after a death nothing changes
                    self.fixed.env.step((*before, *moves)[done + len(before)])
        return self.seen[task, moves]

    def rollout(self, context, action, noise=None, **kw):
        """
        context['task'] (B,) numbers of levels, context['made'] (B, m, A) moves since their start; action
        (B, N, K, A); moves are one-hot, and a row of zeros is none -> state (B, N, K, rows cols) what the
        game draws, video (B, N, K, H, W, 3) float32, 0..255.
        """
        B, N, K, _ = action.shape
        rows, cols = self.fixed.box[2:]
        maps = np.empty((B, N, K, rows, cols), int)
        for b, (task, made) in enumerate(zip(context['task'].tolist(), context['made'])):
            past = numbers(made)
            for n in range(N):
                for k in reversed(range(K)):                         # the longest first: it passes the others
                    maps[b, n, k] = self.map(task, past + numbers(action[b, n, :k + 1]))
        made = {'state': maps.reshape(B, N, K, rows * cols), 'video': picture(maps)}
        return {key: torch.from_numpy(value).float().to(action.device) for key, value in made.items()}


def numbers(moves):
    """(K, A) one-hot rows -> a tuple of numbers; rows of zeros are left out."""
    return tuple(move.index(1.0) for move in moves.tolist() if any(move))


class Tasks:
    OWN = {'n_clips': 50, 'horizon': 4, 'n_samples': 24, 'n_iters': 3, 'n_elites': 6, 'n_keep': 0,
           'n_proposals': 0, 'frame': 'cheapest'}
    FAMILIES = 'walk', 'push'
    looks, pace = 8, 1                   # after each move one looks again
    low = high = None

    def __init__(self, store, family, n, horizon, skip, seed, device):
        self.family, self.ways = family or self.FAMILIES[0], store.meta['facts']['action_dim']
        if self.family not in self.FAMILIES:
            raise ValueError(f'family = {family!r}: these rooms have {", ".join(self.FAMILIES)}')
        if skip != 1:
            raise ValueError(f'frame_skip = {skip}: here each move is looked at; want a model with 1')
        if n < 2:
            raise ValueError(f'n_clips = {n}: want 2 or more, because goals are exchanged')
        level = store.meta['level']
        fixed = watch(level_file(level['name'], level['water']), level['shadows'])
        levels, starts, goals, away = [], [], [], []
        i = 2**31                        # beyond the numbers of recorded episodes, so other rooms are drawn
        while len(levels) < n:
            if i - 2**31 > 100 * n:
                raise ValueError(f'family = {self.family!r}: {len(levels)} tasks in {100 * n} rooms of '
                                 f'{level["name"]}; want rooms where more can be done')
            rng = np.random.default_rng([seed, i])
            i += 1
            found = task(fixed, self.family, self.ways, rng)
            if found:
                for held, part in zip((levels, starts, goals, away), found):
                    held.append(part)

        def there(x):
            return torch.as_tensor(np.array(x), dtype=torch.float32, device=device)
        self.simulator, self.away = Simulator(fixed, levels), np.array(away)
        self.nothing = there(np.zeros((n, 0, self.ways)))
        self.start = self.seen(starts, torch.arange(n, device=device), self.nothing)
        self.goal, self.where = there(picture(np.array(goals))), there(goals).flatten(1)
        self.goals = goals
        chance = np.random.default_rng([seed, 1]).integers(self.ways, size=(n, self.looks))
        self.rivals = {'random': there(np.eye(self.ways)[chance]),
                       'straight': there([straight(*pair, self.ways, self.looks)
                                          for pair in zip(starts, goals)])}

    def seen(self, maps, task, made):
        maps = torch.from_numpy(np.array(maps)).to(made.device)
        video = torch.from_numpy(picture(maps.cpu().numpy())).to(made.device).float()
        return {'video': video[:, None], 'state': maps.float().flatten(1)[:, None], 'task': task,
                'made': made, 'action': made[:, :0]}

    def commands(self, plan):
        return plan

    def after(self, made):
        """Who has the goal before it stops: later moves are not made."""
        made, maps = made.clone(), []
        for task, moves in enumerate(made):
            for k in range(len(moves) + 1):
                here = self.simulator.map(task, numbers(moves[:k]))
                if np.array_equal(here, self.goals[task]):
                    moves[k:] = 0
            maps.append(here)
        return self.seen(maps, self.start['task'], made)

    def distance(self, state, where):
        """Steps from the player to where it should be, without obstacles, and boulders out of their place."""
        where = where.view(len(where), *[1] * (state.dim() - 2), -1)
        cols = self.simulator.fixed.box[3]
        a, b = ((x == PLAYER).float().argmax(-1) for x in (state, where))
        dy, dx = (a // cols - b // cols).abs(), (a % cols - b % cols).abs()
        steps = dy + dx if self.ways == 4 else torch.maximum(dy, dx)
        return steps + ((where == BOULDER) & (state != BOULDER)).sum(-1).float()

    def error(self, seen):
        """How many cells differ from the goal's."""
        return (seen['state'][:, -1] != self.where).sum(-1).cpu().numpy()

    def success(self, error):
        return error == 0


def task(fixed, family, ways, rng):
    """-> (seed, moves before the start), map at the start, map of the goal, moves between; None: no luck."""
    seed, before = int(rng.integers(2**31)), []
    fixed.start(seed)
    for _ in range(12):                  # away from the staircase, which nobody sees
        last = before[-1] if before else None
        before.append(int(wander(fixed.glyphs(), fixed.player(), last, ways, rng)))
        if fixed.env.over:
            return None
        fixed.env.step(before[-1])
    start = fixed.glyphs()
    if family == 'walk':
        moves = path(start, fixed.player(), int(rng.choice(AWAY)), ways, rng)
    else:
        moves = [None] * int(rng.choice(AWAY))
    for i, move in enumerate(moves):
        if move is None:
            last = moves[i - 1] if i else None
            moves[i] = move = int(wander(fixed.glyphs(), fixed.player(), last, ways, rng))
        if not fixed.env.over:
            fixed.env.step(move)
    goal = fixed.glyphs()
    pushed = ((start == BOULDER) != (goal == BOULDER)).any()
    ordinary = set(np.unique([start, goal]).tolist()) <= NAMES.keys() and not fixed.env.over
    if not moves or not ordinary or (start == goal).all() or pushed != (family == 'push'):
        return None
    return (seed, tuple(before)), start, goal, len(moves)


def path(glyphs, at, length, ways, rng):
    """Moves of a shortest path over free ground to a cell so far away, drawn by chance; [] if none is."""
    ways_to, queue = {tuple(at): []}, deque([tuple(at)])
    while queue:
        y, x = queue.popleft()
        for move, (dy, dx) in enumerate(DELTAS[:ways]):
            cell = y + dy, x + dx
            if cell not in ways_to and look(glyphs, (y, x), dy, dx, 1) in GROUND:
                ways_to[cell] = [*ways_to[y, x], move]
                queue.append(cell)
    ends = [moves for moves in ways_to.values() if len(moves) == length]
    return ends[rng.integers(len(ends))] if ends else []


def straight(start, goal, ways, length):
    """Moves straight to where the goal shows the player, whatever stands in the way; zeros once there."""
    (y, x), (end_y, end_x) = (np.argwhere(glyphs == PLAYER)[0] for glyphs in (start, goal))
    moves = np.zeros((length, ways))
    for row in moves:
        dy, dx = np.sign(end_y - y), np.sign(end_x - x)
        if ways == 4 and dy:
            dx = 0
        if dy or dx:
            row[DELTAS.index((dy, dx))] = 1
        y, x = y + dy, x + dx
    return moves
