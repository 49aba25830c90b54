"""
Can one act with the model? Reach a goal by cross-entropy planning (cem.py) through it, then carry the plan
out, blindly, in the simulator. Start: a window of the val split. Goal: its state `horizon` frames later, so
it can be reached.

    success         share of goals that were reached; error: mean distance, both as the world's Task defines
                    them
    simulator       the same planner with the simulator in the model's place: no model error left
    other suffixes  plans that need no planner, the task's `rivals`, such as `hold`: the last command stays

Goals of a model that sees pictures are pictures: protocols/goals.py. Below, goals are states.

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
from draw.common import check_out
from protocols import common, goals

HINT = 'horizon'


# where the keys are not given, and goals are states
OWN = {'n_clips': 16, 'horizon': 50, 'n_samples': 128, 'n_iters': 12, 'n_keep': 0, 'n_proposals': 0}


@dataclass
class Keys:
    n_clips: int = 0              # goals, drawn by seed; 0 = 16 states or 50 pictures
    horizon: int = 0              # frames of a plan, of the model's own; 0 = 50, of pictures the world's own
    knots: int = 2                # states: commands that are planned; the task fills the frames in between
    n_samples: int = 0            # futures per round; 0 = 128, of pictures what the world says
    n_iters: int = 0              # rounds; 0 = 12, of pictures what the world says
    n_elites: int = 0             # futures that the next round is drawn around; 0 = the world's, or a tenth
    seed: int = 42                # of goals and futures
    # of pictures alone
    family: str = ''              # Wall: near | far | door, boulders: walk | push; '' = the first
    frame: str = ''               # which imagined frame shall look like the goal: last | cheapest
    n_keep: int = -1              # elites that take part in the next round, too; -1 = what the world says
    n_proposals: int = -1         # recorded plans among the futures of the first round; -1 the same
    futures_at_once: int = 0      # futures of a goal that are imagined at a time; 0 = all, on a CPU few
    vae: str = ''                 # latents: their codec, sd | taesd | PATH; '' = the one that meta.json names
    gif: str = ''                 # a file to draw some tasks to: what was done, what was imagined, the goal


PICTURES = {'family': '', 'frame': '', 'n_keep': -1, 'n_proposals': -1, 'futures_at_once': 0, 'vae': '',
            'gif': ''}


def windows(cfg, keys, M):
    """From the first frame of the context to the goal; refuses keys that make no sense."""
    common.at_least('plan', keys, n_clips=0, horizon=0, knots=1, n_samples=0, n_iters=0, n_elites=0, seed=0,
                    n_keep=-1, n_proposals=-1, futures_at_once=0)
    if M.EVAL[0] == 'video':
        if keys.knots != Keys.knots:
            sys.exit('plan protocol: knots: only where goals are states')
        if keys.gif:
            check_out(keys.gif, ('.gif',), 'gif')
        return goals.windows(cfg)
    given = [key for key, value in PICTURES.items() if getattr(keys, key) != value]
    if given:
        sys.exit(f'plan protocol: {", ".join(given)}: only where goals are pictures')
    keys, n_context = goals.filled(keys, OWN), context_frames(cfg, M)
    return {'state': range(n_context + keys.horizon), 'action': range(n_context + keys.horizon - 1)}


def context_frames(cfg, M):
    """As many as a training window shows; two at least, because the plan goes on from the last command."""
    return max(2, len(M.windows(cfg)['state']) - 1)


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Every rank does all the work: the goals are few and are planned together."""
    M = common.file_of(model)
    span = windows(model.cfg, keys, M)
    if M.EVAL[0] == 'video':
        return goals.evaluate(model, folder, keys, rank, quiet)
    keys = goals.filled(keys, OWN)
    store = Store(folder, 'val', span, hint=HINT)
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
                                      n_samples=keys.n_samples, n_iters=keys.n_iters, n_elites=keys.n_elites,
                                      seed=keys.seed))


def search(imagined, task, start, keys):
    """The knots (B, knots, A) whose imagined future is cheap. imagined: whoever has a rollout."""
    generator = torch.Generator(task.init.device).manual_seed(keys.seed)

    def rollout(context, knots):
        return imagined.rollout(context, task.commands(knots))
    return cem.plan(rollout, start, task.cost, keys.knots, task.low, task.high, n_samples=keys.n_samples,
                    n_iters=keys.n_iters, n_elites=keys.n_elites, init=task.init, generator=generator)


def show(result):
    if 'family' in result:
        return goals.show(result)
    print(f'goals {result["horizon"]} frames away: share reached, mean distance at the end', file=sys.stderr)
    for key in result:
        if key.startswith('success'):
            who = key[len('success'):]
            name = who.strip('_') or 'model'
            print(f'{name:>20} {result[key]:>6.1%} {result["error" + who]:>10.4g}', file=sys.stderr)
