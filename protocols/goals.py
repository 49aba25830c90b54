"""
Can one act with dreams? The goal is a picture; cem.py looks for moves whose dream ends like it; then they are
made, blindly, in the live world. What counts is where one stands at the END, by the world's own state, which
no planner below sees unless its name says so.

    pixel, scales           the planner in the model, with one of two costs, see `price`
    other                   the same with the goal of another task: moving well, to the wrong place
    simulator_pixel, ..     the same planner and costs with the world itself in the model's place
    simulator_distance      the same with the true straight-line distance as its cost
    no_move, recorded       no planner: stand still, which never wins because no task starts near enough to
                            its goal; do what was done in another recorded window
    straight                no model: go towards the goal as the crow flies, from the true places

success: the share that ends near enough, with its Wilson interval, of all tasks and of the nearer and farther
half of them. All rows play the same tasks. The world: Tasks in data/<name>/env.py.
"""
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import cem
from data.loader import Store, simulator
from metrics import wilson
from protocols import common

BLURS = 0.0, 1.5, 3.0, 6.0           # px, std; 0 = none
COSTS = 'pixel', 'scales'
OWN = {'n_clips': 50, 'horizon': 5, 'n_samples': 64, 'n_iters': 6}     # where the keys say 0


def windows(cfg, keys, M):
    """One window is as long as a plan: frames, and all moves between them."""
    k = cfg.frame_skip
    span = keys.horizon * k + 1
    return {cfg.input: range(0, span, k), 'state': range(span), 'action': range(span - 1)}


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, quiet=True):
    """Every rank does all the work. keys: those of plan.py, with OWN in place of zeros."""
    cfg, M = model.cfg, common.file_of(model)
    store = Store(folder, 'val', windows(cfg, keys, M), hint='horizon')
    common.fits(cfg, store)
    live = simulator(store.meta)
    if not hasattr(live, 'Tasks'):
        sys.exit(f'plan protocol: {folder}/meta.json names no world (env) that has Tasks; plan on '
                 'wall_pixels, made anew if it is older')
    device = common.device_of(model)
    tasks = live.Tasks(store, keys.family, keys.n_clips, keys.horizon, cfg.frame_skip, keys.seed, device)
    imagined = {'': lambda context, action: model.rollout(
        {key: context[key] for key in (cfg.input, 'action')}, action, chunk=keys.futures_at_once,
        generator=torch.Generator(device).manual_seed(keys.seed)), 'simulator_': tasks.simulator.rollout}
    plans, seconds = dict(tasks.rivals), {}
    todo = [(who + cost, who, cost) for who in imagined for cost in COSTS]
    todo += [('other', '', 'scales'), ('simulator_distance', 'simulator_', 'distance')]
    for name, who, cost in tqdm(todo, desc='plan', disable=quiet or rank > 0 or None, leave=False):
        began = time.time()
        wanted = tasks.goal.roll(1, 0) if name == 'other' else tasks.goal
        asked = price(cost, keys.frame, cfg.input, tasks.start, wanted, tasks.distance)
        plans[name] = search(imagined[who], tasks, asked, keys)
        seconds[name] = (time.time() - began) / len(wanted)
    result = {}
    for name, plan in plans.items():
        error = tasks.error(tasks.carry_out(plan))
        result |= rates(name, tasks.success(error), tasks.away)
        result[f'error_{name}'] = float(np.median(error))
    result |= {f'seconds_per_plan_{name}': value for name, value in seconds.items()}
    return common.plain(result | dict(
        family=tasks.family, n_clips=len(tasks.away), horizon=keys.horizon, frame=keys.frame,
        n_samples=keys.n_samples, n_iters=keys.n_iters, n_elites=keys.n_elites, n_keep=keys.n_keep,
        n_proposals=keys.n_proposals, seed=keys.seed))


def search(rollout, tasks, cost, keys):
    """Commands (B, K, A) that should lead to the goals."""
    generator = torch.Generator(tasks.low.device).manual_seed(keys.seed)
    return cem.plan(lambda context, plan: rollout(context, tasks.commands(plan)), tasks.start, cost,
                    keys.horizon, tasks.low, tasks.high, n_samples=keys.n_samples, n_iters=keys.n_iters,
                    n_elites=keys.n_elites, n_keep=keys.n_keep, generator=generator,
                    proposals=tasks.proposals(keys.n_proposals) if keys.n_proposals else None)


@torch.no_grad()
def moves_to(model, meta, start, goal, seed):
    """For play.py: actions (lists of A numbers) whose dream ends like the goal (1, H, W, C), or passes it."""
    k, onehot = model.cfg.frame_skip, meta['action_kind'] == 'onehot'
    cost = price('scales', 'cheapest' if onehot else 'last', 'video', start, goal)
    draw = torch.Generator(goal.device).manual_seed(seed)

    def rollout(context, action):
        noise = torch.Generator(goal.device).manual_seed(seed)
        return model.rollout(context, action.repeat(1, 1, 1, k), generator=noise)
    if onehot:
        plan = cem.choose(rollout, start, cost, 6, model.cfg.action_dim, n_samples=64, generator=draw)
    else:
        far = np.abs(list(meta['play_keys'].values())).max(0)
        plan = cem.plan(rollout, start, cost, OWN['horizon'], -far, far, n_samples=64, generator=draw)
    return plan[0].tolist()


def price(cost, frame, key, start, goal, distance=None):
    """
    -> cost(future) (B, N) of futures (B, N, K, ...): how much their last frame, or the frame of the path that
    does so most, looks like the goal (B, H, W, C). start: the context of the futures.
    pixel       mean squared error. It is constant once two dots no longer overlap, so it gives no direction
    scales      the same of blurred pictures, divided by that of the start, summed over BLURS
    distance    the world's own, in a straight line, of its true state: for a simulator
    """
    def near(future):
        if cost == 'distance':
            return distance(future['state'])                         # (B, N, K)
        frames, first = future[key], start[key][:, -1].float()
        total = 0
        for sigma in BLURS if cost == 'scales' else BLURS[:1]:
            apart = error(blur(frames, sigma), blur(goal, sigma)[:, None, None])
            if cost == 'scales':
                at_start = error(blur(first, sigma), blur(goal, sigma)).clamp(min=1e-6)
                apart = apart / at_start[:, None, None]
            total = total + apart
        return total
    return lambda future: near(future)[..., -1] if frame == 'last' else near(future).amin(-1)


def error(a, b):
    """Mean squared error of pictures (..., H, W, C)."""
    return (a - b).square().mean((-1, -2, -3))


def blur(frames, sigma):
    """Gaussian blur of (..., H, W, C), first along H, then along W; beyond the edge is 0."""
    if not sigma:
        return frames
    reach = int(3 * sigma + 0.5)
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=frames.device) ** 2 / (2 * sigma ** 2))
    weights = weights / weights.sum()
    *_, H, W, C = frames.shape
    x = frames.reshape(-1, H, W, C).permute(0, 3, 1, 2).reshape(-1, 1, H, W)
    x = F.conv2d(x, weights.view(1, 1, -1, 1), padding=(reach, 0))
    x = F.conv2d(x, weights.view(1, 1, 1, -1), padding=(0, reach))
    return x.view(-1, C, H, W).permute(0, 2, 3, 1).reshape(frames.shape)


def rates(name, won, away):
    """Success of a row with its interval; and of the tasks that start nearer and farther than the median."""
    near = away <= np.median(away)
    return {f'success_{name}': won.mean(), f'success_{name}_ci': wilson(int(won.sum()), len(won)),
            f'success_{name}_near_half': won[near].mean(),
            f'success_{name}_far_half': won[~near].mean() if (~near).any() else None}


def show(result):
    print(f'{result["family"]}: {result["n_clips"]} goals given as a picture; share reached at the end, its '
          '95 % interval, nearer and farther half, median distance', file=sys.stderr)
    for key in result:
        if key.startswith('success_') and f'{key}_ci' in result:
            name, (low, high) = key.removeprefix('success_'), result[f'{key}_ci']
            halves = result[f'{key}_near_half'], result[f'{key}_far_half']
            halves = ' '.join('     -' if half is None else f'{half:>6.0%}' for half in halves)
            print(f'{name:>20} {result[key]:>6.0%}  {low:>4.0%} to {high:>4.0%} {halves} '
                  f'{result["error_" + name]:>8.3g}', file=sys.stderr)
