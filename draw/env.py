"""
A planner in its simulator: the episode as the simulator draws it, and below it the plan, as it is filled in
(`model.plans`) and carried out.
"""
import numpy as np
import torch
from tqdm import tqdm

from draw.common import GREEN, INK, PAPER, arrow, blank, gif, words

CELL, ACROSS = 26, 16         # px of an action in the picture of a plan, actions per line
AMBER = (230, 160, 50)


def episode(path, model, world_file, name, seed, length=0, fps=0, scale=0):
    """
    One episode on environment `name`; length: steps at most. The pictures of the episode are cut to the part
    that is ever drawn, and enlarged to some 420 px, or by `scale`. fps: steps per second.
    """
    env, = world_file.environments([name], **world_file.options(model.cfg))
    steps, won = play(model, env, seed, length or env.cap)
    pictures = [picture for picture, *_ in steps]
    ever = np.max([picture.max(-1) for picture in pictures], 0) > 40
    (top, bottom), (left, right) = (extent(ever.any(axis)) for axis in (1, 0))
    wide = max(1, right - left)
    scale = scale or max(1, round(420 / wide))
    frames = []
    for picture, plan, done in tqdm(steps, desc='draw', leave=False, disable=None):
        seen = picture[top:bottom, left:right].repeat(scale, 0).repeat(scale, 1)
        frames.append(page(seen, plan, done, world_file.ACTIONS, world_file.DELTAS, model))
    end = words(f'{name.removesuffix("-v0")}: {"won" if won else "not won"} in {env.steps} steps', 24,
                frames[0].shape[1])
    last = np.concatenate([end, frames[-1][24:]])
    gif(path, np.stack([*frames, *[last] * (2 * (fps or 6))]), 1 / (fps or 6))
    return won, env.steps


def play(model, env, seed, length):
    """-> [(picture, plan (L,), actions of it that were carried out)], and whether it was won."""
    obs, _ = env.reset(seed=seed)
    generator, steps = torch.Generator().manual_seed(seed), []
    cfg = model.cfg
    while True:
        batch = {key: torch.from_numpy(value)[None, None] for key, value in obs.items()}
        picture = env.render()
        for plan in model.plans(batch, cfg.sampler, cfg.diffusion_steps_eval, [generator]):
            plan = plan[0].tolist()
            steps.append((picture, plan, 0))
        for i, action in enumerate(plan[:cfg.replan_every]):
            obs, _, terminated, truncated, info = env.step(action)
            steps.append((env.render(), plan, i + 1))
            if terminated or truncated or env.steps >= length:
                return steps, info['won']


def extent(line):
    """First and one past the last True, with a margin."""
    there = np.flatnonzero(line)
    if len(there) == 0:
        return 0, len(line)
    return max(0, there[0] - 8), min(len(line), there[-1] + 9)


def page(seen, plan, done, names, deltas, model):
    """The world above, the plan below: open positions are dots, what was carried out is dim."""
    L, width = len(plan), max(seen.shape[1], ACROSS * CELL)
    mask = len(names)                                    # the token of an open position
    cells = [cell(None if a == mask else a, names, deltas, i, done, model.cfg.replan_every)
             for i, a in enumerate(plan)]
    cells += [blank(CELL, CELL)] * (-L % ACROSS)
    lines = [np.concatenate(cells[i:i + ACROSS], 1) for i in range(0, len(cells), ACROSS)]
    open_ = sum(a == mask for a in plan)
    title = words(f'denoising, {open_} of {L} open' if done == 0 else f'step {done} of the plan', 24, width)
    rows = [title, seen, blank(8, width), *lines]
    return np.concatenate([np.concatenate([row, blank(len(row), width - row.shape[1])], 1) for row in rows])


def cell(action, names, deltas, i, done, replan_every):
    """One action of the plan."""
    if action is None:
        tile = blank(CELL, CELL)
        tile[CELL // 2 - 1:CELL // 2 + 1, CELL // 2 - 1:CELL // 2 + 1] = INK
    elif action < len(deltas):
        dy, dx = deltas[action]
        tile = arrow(dx, dy, CELL, CELL)
    else:
        tile = words(names[action][:2].lower(), CELL, CELL, 11)
    if i < done:
        tile = (tile // 3 + np.array(PAPER) * 2 // 3).astype(np.uint8)
    if done and i == done - 1:
        tile[:2], tile[-2:], tile[:, :2], tile[:, -2:] = AMBER, AMBER, AMBER, AMBER
    if i == replan_every - 1:                            # here a new plan is made
        tile[:, -2:] = GREEN
    return tile
