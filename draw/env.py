"""
Who acts, in the simulator.

    episode     a planner: the world, and below it the plan as it is filled in (`model.plans`), carried out
    side        policies beside each other from the same start, and in the picture where each wants to go
    sentences   one policy from the same start, told several sentences
"""
import time
from collections import deque

import numpy as np
import torch
from tqdm import tqdm

from data.rollout import stacked
from draw.common import GREEN, INK, PAPER, arrow, blank, gif, words

PANEL = 256                   # px of a picture beside others
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


# ---- policies beside each other ----

def side(path, models, world_file, name, seed, length=0, fps=0):
    """
    models [(title, model)], each from the start `seed`; who is done first waits. Beside a lonely one that can
    call its network more often (`.act(obs, steps=...)`) it is drawn again, with as many calls as diffusion
    would take. length: steps at most. fps: steps per second. -> their best rewards
    """
    runs = [acted(title, model, {}, world_file, name, seed, length) for title, model in models]
    model = models[0][1]
    many = getattr(model.cfg, 'num_train_steps', 0)
    if len(runs) == 1 and many > getattr(model, 'calls', many):
        runs.append(acted('the same', model, {'steps': many}, world_file, name, seed, length))
    film(path, runs, len(runs), fps or 2 * world_file.FPS)
    return [best for _, best in runs]


def sentences(path, model, world_file, seed, length=0, fps=0):
    """The sentences that the world knows about the board `seed`, two in a row. -> their rewards"""
    told = world_file.askable(seed)
    runs = [acted(f'"{sentence}"' + ', never trained' * new, model, {}, world_file, sentence, seed, length,
                  brief=True) for sentence, new in told.items()]
    film(path, runs, 2, fps or world_file.FPS)
    return {sentence: best for sentence, (_, best) in zip(told, runs)}


def film(path, runs, across, fps):
    """runs [(frames, _)], so many in a row; who is done first waits, and all of them at the end."""
    rows = []
    for i in range(max(len(frames) for frames, _ in runs)):
        panels = [frames[min(i, len(frames) - 1)] for frames, _ in runs]
        rows.append(np.concatenate([np.concatenate(panels[k:k + across], 1)
                                    for k in range(0, len(panels), across)]))
    gif(path, np.stack([*rows, *rows[-1:] * fps]), 1 / fps)


def acted(title, model, how, world_file, name, seed, length, brief=False):
    """-> a frame per step, the best reward. how: keywords of .act. brief: nothing but the title above."""
    env, = world_file.environments([name], **world_file.options(model.cfg))
    n_obs = getattr(model.cfg, 'n_obs', 1)
    past = deque([env.reset(seed=seed)[0]] * n_obs, n_obs)
    generator, frames, best, over = torch.Generator().manual_seed(seed), [], 0.0, False
    bar = tqdm(total=length or env.cap, desc=title, leave=False, disable=None)
    while not over:
        began = time.perf_counter()
        chunk = model.act(stacked([past]), generators=[generator], **how)[0].cpu().numpy()
        took = 1e3 * (time.perf_counter() - began) / len(chunk)
        places = world_file.way(env, chunk) if hasattr(world_file, 'way') else chunk
        calls = f', {model.calls} call{"s" * (model.calls > 1)}' if hasattr(model, 'calls') else ''
        for i, action in enumerate(chunk):
            obs, reward, terminated, truncated, _ = env.step(action)
            past.append(obs)
            best = max(best, reward)
            text = title if brief else f'{title}{calls}, {took:.1f} ms per action | best {best:.2f}'
            frames.append(np.concatenate([words(text, 24, PANEL), targets(env.render(), places, i)]))
            bar.update()
            over = terminated or truncated or env.steps >= (length or env.cap)
            if over:
                break
    bar.close()
    return frames, best


def targets(picture, chunk, done):
    """A picture (S, S, 3) with the targets of a chunk (n, 2) px in it, those that are done hollow."""
    from PIL import Image, ImageDraw
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    points = [tuple(map(float, point)) for point in chunk]
    draw.line(points, AMBER, 3)
    for i, (x, y) in enumerate(points):
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=AMBER if i > done else None, outline=AMBER, width=2)
    return np.asarray(image.resize((PANEL, PANEL), Image.Resampling.BILINEAR))
