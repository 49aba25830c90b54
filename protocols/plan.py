"""
Can one act with the model? Reach a goal by cross-entropy planning (cem.py) through it, then carry the plan
out, blindly, in the simulator. Start: a window of the val split. Goal: its state `horizon` frames later, so
it can be reached.

    success         share of goals that were reached; error: mean distance, both as the world's Task defines
                    them
    simulator       the same planner with the simulator in the model's place: no model error left
    other suffixes  plans that need no planner, the task's `rivals`, such as `hold`: the last command stays

What a command is, what it costs and when a goal is reached are the world's own business: Task in
data/<name>/env.py. All goals are planned at once: members x n_clips x n_samples windows in memory.
"""
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import cem
from data.loader import Store, simulator
from protocols import common

HINT = 'horizon'


@dataclass
class Keys:
    n_clips: int = 16             # goals: fixed windows of the val split, drawn by seed
    horizon: int = 50             # frames from start to goal
    knots: int = 2                # commands that are planned; the task fills the frames in between
    n_samples: int = 128          # futures per round
    n_iters: int = 12             # rounds
    n_elites: int = 0             # futures that the next round is drawn around; 0 = a tenth of n_samples
    seed: int = 42                # of goals and futures


def windows(cfg, keys, M):
    """From the first frame of the context to the goal; refuses keys that make no sense."""
    common.at_least('plan', keys, n_clips=1, horizon=1, knots=1, n_samples=2, n_iters=1, n_elites=0, seed=0)
    if not 2 <= elites(keys) <= keys.n_samples:
        sys.exit(f'plan protocol: n_elites = {keys.n_elites}: must lie in 2..n_samples = {keys.n_samples}')
    n_context = context_frames(cfg, M)
    return {'state': range(n_context + keys.horizon), 'action': range(n_context + keys.horizon - 1)}


def elites(keys):
    return keys.n_elites or max(2, keys.n_samples // 10)


def context_frames(cfg, M):
    """As many as a training window shows; two at least, because the plan goes on from the last command."""
    return max(2, len(M.windows(cfg)['state']) - 1)


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Every rank does all the work: the goals are few and are planned together."""
    M = common.file_of(model)
    store = Store(folder, 'val', windows(model.cfg, keys, M), hint=HINT)
    common.fits(model.cfg, store)
    world_file = simulator(store.meta)
    if not hasattr(world_file, 'Task'):
        sys.exit(f'plan protocol: {folder}/meta.json names no simulator (env) that has a Task; plan on '
                 'arx5_default')
    ids = common.draw(store, keys.n_clips, np.random.default_rng(keys.seed))
    start, _, truth = common.cut(store, ids, context_frames(model.cfg, M), common.device_of(model))
    task = world_file.Task(store.meta, start, truth[:, -1].float(), keys.horizon, keys.knots)

    def carry_out(knots):                                    # (B, knots, A) -> error (B,)
        return task.score(task.simulator.rollout(start, task.commands(knots[:, None])))

    result, errors = {}, {f'_{name}': carry_out(knots) for name, knots in task.rivals.items()}
    models = {'': model, '_simulator': task.simulator}
    for who, imagined in tqdm(models.items(), desc='plan', disable=quiet or rank > 0 or None, leave=False):
        began = time.time()
        knots = search(imagined, task, start, keys)
        result[f'planning_seconds{who}'] = time.time() - began
        errors[who] = carry_out(knots)
    for who, error in errors.items():
        result[f'success{who}'] = np.mean(task.success(error))
        result[f'error{who}'] = np.mean(error)
    return common.plain(result | dict(n_clips=len(ids), horizon=keys.horizon, knots=keys.knots,
                                      n_samples=keys.n_samples, n_iters=keys.n_iters, n_elites=elites(keys),
                                      seed=keys.seed))


def search(imagined, task, start, keys):
    """The knots (B, knots, A) whose imagined future is cheap. imagined: whoever has a rollout."""
    generator = torch.Generator(task.init.device).manual_seed(keys.seed)

    def rollout(context, knots):
        return imagined.rollout(context, task.commands(knots))
    return cem.plan(rollout, start, task.cost, keys.knots, task.low, task.high, n_samples=keys.n_samples,
                    n_iters=keys.n_iters, n_elites=elites(keys), init=task.init, generator=generator)


def show(result):
    print(f'goals {result["horizon"]} frames away: share reached, mean distance at the end', file=sys.stderr)
    for key in result:
        if key.startswith('success'):
            who = key[len('success'):]
            name = who.strip('_') or 'model'
            print(f'{name:>20} {result[key]:>6.1%} {result["error" + who]:>10.4g}', file=sys.stderr)
