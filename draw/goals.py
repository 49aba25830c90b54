"""
What a planner did, what it had imagined of it, and the goal: for protocols/goals.py.
"""
import numpy as np
import torch

from draw.common import blow_up, gif, words

ROWS, SIDE = 6, 120                   # tasks below each other; px of a picture, about


def draw(path, tasks, made, dreamed, end):
    """made (B, T, A) commands, dreamed (B, T, H, W, C) what was imagined of them; green: it was reached."""
    first, n = tasks.start['video'], min(ROWS, len(made))
    true = tasks.simulator.rollout(tasks.start, tasks.commands(made[:, None]))['video'][:, 0]
    there = tasks.success(tasks.error(end))
    world, dream = (torch.cat([first, frames], 1)[:n].round().byte().cpu().numpy()
                    for frames in (true, dreamed))                   # (n, T + 1, H, W, C)
    goal = tasks.goal[:n].byte().cpu().numpy()
    scale = max(1, SIDE // goal.shape[2])
    head = np.concatenate([words(text, 18, goal.shape[2] * scale) for text in ('world', 'dream', 'goal')], 1)
    frames = []
    for t in [*range(world.shape[1]), *[world.shape[1] - 1] * 3]:    # the end is shown for longer
        rows = [np.concatenate([blow_up(picture, scale, bool(there[i]))
                                for picture in (world[i, t], dream[i, t], goal[i])], 1) for i in range(n)]
        frames.append(np.concatenate([head, *rows]))
    gif(path, np.stack(frames), 0.5)
