"""
How fast is NetHack here, how good are the teachers? A table on stdout, the same as JSON in bench/results/.

    python bench/levels.py --what=step        our step | the engine's own, same buffers | gym.make(...).step
    python bench/levels.py --what=collect     a teacher's games | the published way to collect them
    python bench/levels.py --what=rollout     a planner on 32 levels at once | on one after the other
    python bench/levels.py --what=teachers    games won by each teacher, on levels 0, 1, ... (see `seeds`)

All ways play the same levels and, with bfs5, the same actions; they are timed in turn, and ratios are taken
within a repetition. The published way builds an environment per game, asks it for every step with Gymnasium's
checks, cuts the surroundings out with np.pad, and searches with a list of cells per path.
"""
import os
import sys
import time
import warnings
from collections import deque
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import numpy as np
import torch

import remdm
from bench import timing
from data.minihack import env as E
from data.minihack import play
from data.minihack.oracles import ORACLES
from data.rollout import rollout
from metrics import wilson

what = 'step'                 # step | collect | rollout | teachers
games = 12                    # step, collect: levels per repetition
moves = 80                    # step: random moves per level
reps = 7                      # timed repetitions
seeds = 100                   # teachers: levels of each kind
threads = 1                   # CPU threads
seed = 0                      # of levels and moves
out = ''                      # JSON; '' = bench/results/levels_<what>_cpu.json

STEP = ('MiniHack-Corridor-R5-v0', 'MiniHack-Room-Random-15x15-v0')
COLLECT = ('MiniHack-Room-Random-15x15-v0', 'MiniHack-Corridor-R2-v0', 'MiniHack-MazeWalk-9x9-v0',
           'MiniHack-Corridor-R5-v0')


# ---- one step ----

def timed_moves(start, step):
    """Seconds and steps of random moves; resets are not counted."""
    took, n = 0.0, 0
    for level in range(games):
        actions = np.random.default_rng([seed, level]).integers(8, size=moves).tolist()
        start(level)
        before = time.perf_counter()
        for action in actions:
            n += 1
            if step(action):
                break
        took += time.perf_counter() - before
    return took / n


def three_ways(name):
    """
    The same game by our environment, by the engine with our five buffers, and by MiniHack's environment.
    """
    ours, bare = E.make_env(name), E.make_env(name)
    theirs = minihack(name)
    engine, keys, internal = bare.engine, bare.keys, bare.internal

    def engine_step(action):
        engine.step(keys[action])
        while internal[3]:                               # the game waits for a key, in all three ways
            engine.step(E.SPACE)
        return internal[4] or engine.done()

    def start_theirs(level):
        theirs.unwrapped.seed(core=level, disp=level, reseed=False)
        theirs.reset()
    return {'ours': (lambda level: ours.reset(seed=level), lambda action: ours.step(action)[2]),
            'engine': (lambda level: bare.reset(seed=level), engine_step),
            'gym': (start_theirs, lambda action: theirs.step(action)[2])}


def minihack(name):
    """As the published planner makes it."""
    import gymnasium
    E.register()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return gymnasium.make(name, observation_keys=('glyphs', 'chars'), fix_moon_phase=True)


def step_rows():
    for name in STEP:
        ways = three_ways(name)
        took = {way: [] for way in ways}
        for repetition in range(reps + 1):
            for way, (start, step) in ways.items():
                seconds = timed_moves(start, step)
                if repetition:                           # the first is for caches
                    took[way].append(seconds)
        row = {'level': name} | {f'{way}_us': median(took[way]) * 1e6 for way in ways}
        yield row | {'ours/engine': median(timing.ratios(took['ours'], took['engine'])),
                     'gym/ours': median(timing.ratios(took['gym'], took['ours']))}


# ---- a teacher's games ----

def published_bfs5(chars, rng):
    """The same decisions, each path a list that is copied when it grows."""
    height, width = chars.shape
    at = np.argwhere(chars == ord('@'))
    if len(at) == 0:
        return int(rng.integers(4))
    start, moves = tuple(at[0]), ((-1, 0), (0, 1), (1, 0), (0, -1))

    def beside(cell):
        for move, (dy, dx) in enumerate(moves):
            y, x = cell[0] + dy, cell[1] + dx
            if 0 <= y < height and 0 <= x < width:
                yield move, (y, x)
    if any(chars[cell] == ord('+') for _, cell in beside(start)):
        return 11
    queue, seen, reached = deque([(start, [])]), {start}, []
    while queue:
        cell, path = queue.popleft()
        if chars[cell] == ord('>'):
            return path[0]
        if path:
            reached.append((cell, path))
        for move, to in beside(cell):
            if to not in seen and chars[to] not in (32, 45, 124, 125, 43):
                seen.add(to)
                queue.append((to, path + [move]))
    edge = [path for cell, path in reached if any(chars[to] == ord(' ') for _, to in beside(cell))]
    if edge:
        return min(edge, key=len)[0]
    if reached:
        return max(reached, key=lambda pair: len(pair[1]))[1][0]
    return int(rng.integers(4))


def published_game(name, level):
    """One game in a new environment -> its steps."""
    env, rng, steps = minihack(name), np.random.default_rng(level), 0
    env.unwrapped.seed(core=level, disp=level, reseed=False)
    obs, _ = env.reset()
    n, over, frames = env.action_space.n, False, []
    while not over and steps < min(500, env.unwrapped._max_episode_steps):
        y, x = np.argwhere(obs['chars'] == ord('@'))[0]
        local = np.pad(obs['glyphs'], 4, constant_values=13)[y:y + 9, x:x + 9]
        frames.append((local.copy(), obs['glyphs'].copy()))
        obs, _, over, *_ = env.step(published_bfs5(obs['chars'], rng) % n)
        steps += 1
    env.close()
    return steps


def our_game(name, level, teacher):
    """-> its steps."""
    rng = np.random.default_rng(level)
    lesson, _ = play.lesson(name, level, teacher, rng)
    return len(lesson['action'])


def collect_rows():
    for name in COLLECT:
        ways = {'bfs5': lambda level, name=name: our_game(name, level, 'bfs5'),
                'explore': lambda level, name=name: our_game(name, level, 'explore'),
                'published': lambda level, name=name: published_game(name, level)}
        took, steps = {way: [] for way in ways}, {}
        for repetition in range(reps + 1):
            for way, game in ways.items():
                before = time.perf_counter()
                steps[way] = sum(game(level) for level in range(games))
                if repetition:
                    took[way].append(time.perf_counter() - before)
        if steps['bfs5'] != steps['published']:
            sys.exit(f'{name}: {steps["bfs5"]} steps against {steps["published"]}: not the same games')
        row = {'level': name} | {f'{way}_steps_per_s': steps[way] / median(took[way]) for way in ways}
        row |= {f'{way}_games_per_s': games / median(took[way]) for way in ways}
        yield row | {'published/bfs5': median(timing.ratios(took['published'], took['bfs5']))}


# ---- a planner ----

def rollout_rows():
    torch.manual_seed(seed)
    model = remdm.Model(remdm.PRESETS['cpu']).eval()
    names, levels = ['MiniHack-MazeWalk-9x9-v0'] * 32, list(range(32))

    def act(obs, generators):
        return model.act(obs, sampler='greedy', steps=5)

    def together():
        return sum(len(game['actions']) for game in rollout(E.environments(names), levels, act))

    def alone():
        return sum(len(rollout(E.environments(names[:1]), [level], act)[0]['actions']) for level in levels)
    took, steps = {'together': [], 'alone': []}, {}
    for repetition in range(reps + 1):
        for way, play_all in (('together', together), ('alone', alone)):
            before = time.perf_counter()
            steps[way] = play_all()
            if repetition:
                took[way].append(time.perf_counter() - before)
    row = {'environments': 32} | {f'{way}_steps_per_s': steps[way] / median(took[way]) for way in took}
    yield row | {'alone/together': median(timing.ratios(took['alone'], took['together']))}


# ---- the teachers ----

def teachers_rows():
    """Every kind of level at the cap of 500 steps, the large maze at its own as well."""
    for name, cap in [*((name, 500) for name in E.SUITES['all']), (E.OOD[-1], 1000)]:
        for teacher in ORACLES:
            lengths, won = [], []
            for level in range(seeds):
                lesson, wins = play.lesson(name, level, teacher, np.random.default_rng(level), cap=cap)
                lengths.append(len(lesson['action']))
                won.append(wins)
            cap_there = E.environments([name], cap=cap, **ORACLES[teacher].NEEDS)[0].cap
            low, high = wilson(sum(won), seeds)
            of_wins = float(np.mean(np.array(lengths)[won])) if any(won) else None
            yield {'level': name, 'cap': cap_there, 'teacher': teacher, 'win': sum(won) / seeds, 'lo': low,
                   'hi': high, 'steps': float(np.mean(lengths)), 'steps_won': of_wins}


def main():
    configure(globals())
    kinds = {'step': step_rows, 'collect': collect_rows, 'rollout': rollout_rows, 'teachers': teachers_rows}
    if what not in kinds:
        sys.exit(f'what = {what!r}: choose from {", ".join(kinds)}')
    if min(games, moves, reps, seeds, threads) < 1:
        sys.exit('games, moves, reps, seeds, threads: must be at least 1')
    clock = timing.Clock('cpu', 'float32', reps)
    torch.set_num_threads(threads)
    path = timing.result_path(out, f'levels_{what}', clock)
    timing.finish(path, 'levels', list(kinds[what]()), clock, games=games, seeds=seeds)


if __name__ == '__main__':
    timing.stoppable(main)
