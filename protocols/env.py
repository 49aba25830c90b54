"""
Closed loop: does the policy do the job? It acts in the simulator until the episode ends, on published levels:
NetHack's seeds come from the names (see `seed_of`), so that a training meets one of them by chance only.

    win             share of the episodes that were won, mean over the environments; win_<suite> over a suite
    win_<name>      of one environment
    envs            per environment: win with its 95 % interval (Wilson: lo, hi) and n; mean steps, of all
                    episodes and of those that were won; mean reward (NetHack: the shaped one); the cap;
                    `rivals`, the wins of simple players on the same levels, those that the simulator
                    names and those of protocols/imitation.py; minus_best, the model minus the best of them
                    there, with a paired 95 % interval

PushT is also scored: an episode by its best reward, of which `rivals` and minus_best then speak.

    test_mean_score     the mean; per environment `score`, with its 95 % interval score_ci, and the median
    sim_max_reward_<seed>    of each episode
    clipped         share of the actions that were outside of the board
    and, where the dataset of the training is at hand, what protocols/imitation.py says

    calls_per_action    calls of the network, per action carried out; where the model tells
    ms_per_action, ms_per_action_p99    of .act on one observation at a time: median and 99 % of `timed` calls

A policy acts in chunks: it is asked again when the actions that it gave are carried out. Episodes are played
many at once; what is random in one of them does not depend on the others.
"""
import importlib
import sys
import time
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.loader import read_meta, simulator
from data.rollout import rollout, stacked
from metrics import bootstrap, wilson
from protocols import common, imitation

HINT = ''


@dataclass
class Keys:
    envs: str = 'all'  # suites of the simulator (NetHack: id, ood, all) and names, with commas between
    des: str = ''                 # NetHack: level files instead, with commas between
    episodes: int = 50            # per environment
    at_once: int = 25             # episodes in one batch
    seed: int = 0                 # of the levels; 0 = the published ones: NetHack 42, PushT 100000
    timed: int = 20               # calls of .act on one observation, to tell how long they take


def windows(cfg, keys, M):
    """
    None: what is judged is played. Refuses keys that make no sense, and names that the simulator lacks.
    """
    common.at_least('env', keys, episodes=1, at_once=1, seed=0, timed=0)
    if hasattr(M, 'SIMULATOR'):                          # else the dataset names it, and `evaluate` asks it
        chosen(importlib.import_module(f'data.{M.SIMULATOR}.env'), keys)


def simulator_of(M, folder):
    """The simulator that judges a model file's policies, with the data of its training, or one line."""
    if hasattr(M, 'SIMULATOR'):
        return importlib.import_module(f'data.{M.SIMULATOR}.env')
    world_file = simulator(read_meta(folder)) if folder else None
    if world_file is None:
        other = 'actions' if 'actions' in M.EVAL else 'loss'
        sys.exit(f'neither {folder}/meta.json (env) nor {M.__name__}.SIMULATOR names a simulator to act in; '
                 f'eval.py --protocol={other} needs none')
    return world_file


def chosen(world_file, keys):
    """The environments that are wanted, each known to the simulator."""
    if keys.des:
        names = keys.des.split(',')
    else:
        names = [name for part in keys.envs.split(',') for name in world_file.SUITES.get(part, [part])]
    for name in names:
        world_file.check_name(name)
    titles = [title(name) for name in names]
    twice = [name for name in titles if titles.count(name) > 1]
    if twice:
        sys.exit(f'env protocol: {twice[0]} is there twice; one of each name')
    return names


def title(name):
    """What an environment is called in the results: a level file by its name alone."""
    return Path(name).stem if name.endswith('.des') else name


def seed_of(name, episode, seed):
    """The seed of level number `episode` of an environment; as published, so that the same are played."""
    return seed + zlib.crc32(f'{name}:{episode}'.encode()) % 2**31


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Batches of episodes are dealt out to the ranks."""
    world_file = simulator_of(common.file_of(model), folder)
    recorded = imitation.errors(model, folder)           # first: what is wrong with the data is said at once
    names, jobs = chosen(world_file, keys), []
    seed, rule = keys.seed or getattr(world_file, 'SEED', 42), getattr(world_file, 'seed_of', seed_of)
    for name in names:
        for i in range(0, keys.episodes, keys.at_once):
            last = min(i + keys.at_once, keys.episodes)
            jobs.append((name, [rule(title(name), episode, seed) for episode in range(i, last)]))
    played, options = [], world_file.options(model.cfg, shaped=True)
    measure, history = getattr(world_file, 'SCORE', 'won'), getattr(model.cfg, 'n_obs', 1)
    rivals = rivals_of(world_file.__name__) | {
        who: imitator(act, world_file.__name__, history, measure)
        for who, act in imitation.players(model, folder).items()}
    bar = tqdm(total=len(names) * keys.episodes, desc='eval env', leave=False,
               disable=quiet or rank > 0 or None)
    for name, seeds in jobs[rank::world]:
        envs = world_file.environments([name] * len(seeds), **options)
        games = rollout(envs, seeds, lambda obs, generators: model.act(obs, generators=generators), history)
        for env, game, level in zip(envs, games, seeds):
            row = [names.index(name), game['won'], len(game['actions']), float(game['reward']), env.cap]
            row += [play(name, level) for play in rivals.values()]
            played.append([*row, getattr(env, 'clipped', 0), float(game[measure]), level])
        bar.update(len(seeds) * world)
    bar.close()
    rows = np.array(sorted(common.gather(played, world)), float)     # sums in one order, whoever did the work
    table = {title(name): scores(rows[rows[:, 0] == i], list(rivals), measure)
             for i, name in enumerate(names)}
    result = {'win': np.mean([row['win'] for row in table.values()])}
    if measure != 'won':
        result['test_mean_score'] = np.mean([row['score'] for row in table.values()])
        by_seed = rows[rows[:, -1].argsort(kind='stable')]
        result |= {f'sim_max_reward_{int(level)}': score for *_, score, level in by_seed}
        result['clipped'] = rows[:, -3].sum() / rows[:, 2].sum()
    result |= recorded
    if keys.timed:
        result |= latency(model, world_file.environments(names[:1], **options)[0], seed, history, keys.timed)
    for suite, members in world_file.SUITES.items():
        if set(members) < set(names):                    # over all that was played it would be `win` again
            result[f'win_{suite}'] = np.mean([table[name]['win'] for name in members])
    result |= {f'win_{name}': row['win'] for name, row in table.items()}
    return common.plain(result | dict(envs=table, episodes=keys.episodes, seed=seed))


@cache
def rivals_of(world_file):
    """{who: (name, seed) -> score}. A training asks again and again for the same levels: play each once."""
    world_file = sys.modules[world_file]
    players = world_file.rivals() if hasattr(world_file, 'rivals') else {}
    return {who: cache(play) for who, play in players.items()}


@cache
def imitator(act, world_file, history, measure):
    """The same of a player that learned from demonstrations; it sees what the simulator shows by default."""
    @cache
    def play(name, seed):
        envs = sys.modules[world_file].environments([name])
        game, = rollout(envs, [seed], lambda obs, generators: act(obs), history)
        return float(game[measure])
    return play


def latency(model, env, seed, history, times):
    """How long .act takes on one observation, per action, after a call to warm up."""
    obs = stacked([[env.reset(seed=seed)[0]] * history])
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        n = model.act(obs).cpu().shape[1]                # on a GPU this waits for it
        took.append(1e3 * (time.perf_counter() - began) / n)
    found = {'ms_per_action': np.median(took[1:]), 'ms_per_action_p99': np.quantile(took[1:], 0.99)}
    return found | ({'calls_per_action': model.calls / n} if hasattr(model, 'calls') else {})


def scores(rows, rivals, measure):
    """
    rows (n, 8 + rivals) of one environment: which, won, steps, reward, cap; the score of each rival; clipped
    actions, score, seed.
    """
    won, n, score = rows[:, 1] > 0, len(rows), rows[:, -2]
    low, high = wilson(int(won.sum()), n)
    row = {'win': won.mean(), 'lo': low, 'hi': high, 'n': n, 'steps': rows[:, 2].mean(),
           'steps_won': rows[won, 2].mean() if won.any() else np.nan, 'reward': rows[:, 3].mean(),
           'cap': int(rows[0, 4])}
    if measure != 'won':
        low, high = bootstrap(score, np.arange(n), np.mean)
        row |= {'score': score.mean(), 'score_ci': [low, high], 'score_median': np.median(score)}
    if rivals:
        theirs = rows[:, 5:-3].mean(0)
        gap = score - rows[:, 5 + theirs.argmax()]
        low, high = bootstrap(gap, np.arange(n), np.mean)
        row |= {'rivals': dict(zip(rivals, theirs)), 'minus_best': gap.mean(), 'minus_best_ci': [low, high]}
    return row


def show(result):
    others = [*next(iter(result['envs'].values())).get('rivals', {})]
    head = ''.join(f' {who:>8}' for who in others)
    if 'test_mean_score' in result:
        head = f' {"score":>8}{head}'
    print(f'{"environment":>34} {"win":>6}  95 % interval  {"steps":>6} {"of wins":>8} {"cap":>5}{head}',
          file=sys.stderr)
    for name, row in result['envs'].items():
        won = '-' if row['steps_won'] is None else f'{row["steps_won"]:.1f}'
        theirs = ''.join(f' {row["rivals"][who]:>8.1%}' for who in others)
        if 'score' in row:
            theirs = f' {row["score"]:>8.3f}' + ''.join(f' {row["rivals"][who]:>8.3f}' for who in others)
        print(f'{name:>34} {row["win"]:>6.1%}  {row["lo"]:.1%} to {row["hi"]:.1%}  {row["steps"]:>6.1f} '
              f'{won:>8} {row["cap"]:>5}{theirs}', file=sys.stderr)
