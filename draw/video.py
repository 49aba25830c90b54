"""
Pictures of dreamed videos; each function asks the model and writes one file.

    strips     recorded commands: the truth above, what was done in the middle, the dream below
    film       the same on paper, time to the right
    futures    one true frame, then a column for each command that is held down

All take what a rollout wants and should give: context, action (B, 1, K, k*A), truth (B, K, H, W, C), and
meta.json of the data. stride: new frames per window; fps 0: 4 pictures per second; scale: screen pixels per
pixel, 0 makes a frame about 112 wide. A model of latents comes as protocols.common.Decoded, and its context
holds `video`, too.
"""
import sys

import numpy as np
import torch
from tqdm import tqdm

from draw.common import PAPER, arrow, bars, blank, blow_up, check_size, dream, gif, png, progress, words

HEADER, FOOTER, GAP = 46, 22, 12              # px


def imagine(model, context, action, seed, stride):
    """-> video (B, N, K, H, W, C) uint8."""
    generator = torch.Generator(action.device).manual_seed(seed)
    new = dream(model, context, action, 'video', stride=stride, generator=generator, progress=progress)
    return new['video'].round().astype(np.uint8)


def screen(width):
    """Screen pixels per pixel for a frame of about 112."""
    return max(1, round(112 / width))


# ---- recorded commands ----

def strips(path, model, context, action, truth, meta, seed=0, stride=1, fps=0, scale=0):
    width = context['video'].shape[-2]
    scale = scale or screen(width)
    check_size(width * scale, len(truth), 3, context['video'].shape[1] + truth.shape[1])
    clips = pictures(model, context, action, truth, meta, seed, stride, scale)
    gif(path, np.concatenate(clips, 2), 1 / (fps or 4))


def film(path, model, context, action, truth, meta, seed=0, stride=1, scale=0):
    width = context['video'].shape[-2]
    scale = scale or screen(width)
    check_size(width * scale, context['video'].shape[1] + truth.shape[1], 3 * len(truth))
    clips = pictures(model, context, action, truth, meta, seed, stride, scale)
    png(path, np.concatenate([np.concatenate(list(clip), 1) for clip in clips]))


def pictures(model, context, action, truth, meta, seed, stride, scale):
    """-> frames (T, h, w, 3) of each clip."""
    new = imagine(model, context, action, seed, stride)[:, 0]
    given = context['video'].cpu().numpy()
    true = np.concatenate([given, truth.cpu().numpy()], 1)                               # (B, T, H, W, C)
    dreamed = np.concatenate([given, new], 1)
    done = torch.cat([context['action'], action[:, 0]], 1).cpu().numpy()                 # (B, T-1, k*A)
    arrows, full = arrow_table(meta), full_scale(meta['stats']['action'])
    return [strip(*clip, arrows, full, given.shape[1], scale)
            for clip in tqdm(list(zip(true, dreamed, done)), desc='draw', leave=False, disable=None)]


def strip(truth, dreamed, action, arrows, full, n_context, scale):
    """
    One clip: (T, H, W, C) twice and (T-1, k*A) -> frames (T, h, w, 3). A green edge: it was given.
    """
    frames = []
    for t in range(len(truth)):
        top, bottom = (blow_up(video[t], scale, t < n_context) for video in (truth, dreamed))
        height, width = max(16, top.shape[0] // 4), top.shape[1]
        between = blank(height, width)
        if t > 0:                                        # what led to this frame
            between = draw_action(action[t - 1], arrows, full, height, width)
        frame = np.concatenate([top, between, bottom])
        frames.append(np.pad(frame, ((4, 4), (4, 4), (0, 0)), constant_values=PAPER[0]))
    return np.stack(frames)


def draw_action(action, arrows, full, height, width):
    """One folded action (k*A,) -> (height, width, 3): an arrow if meta.json knows directions, or bars."""
    if arrows is not None:
        return arrow(*(action.reshape(-1, len(arrows)).sum(0) @ arrows), height, width)  # (A,) @ (A, 2)
    return bars(action / np.resize(full, len(action)), height, width)


def full_scale(stats):
    """
    meta.json's statistics of the action -> (A,): what a bar of full height stands for. Three std, because a
    robot may move by hundredths and would leave no trace on a scale of 1; less where data never go that far.
    """
    std, low, high = (np.array(stats[name], float) for name in ('std', 'min', 'max'))
    full = np.minimum(3 * std, np.maximum(np.abs(low), np.abs(high)))
    return np.where(full > 0, full, 1)


def arrow_table(meta):
    """meta.json's action_arrows (A, 2): right and down of each entry of the action; None if it has none."""
    arrows = meta.get('action_arrows')
    return None if arrows is None else np.array(arrows, float)


# ---- commands that are held down ----

def futures(path, model, context, action, truth, meta,
            futures=4, length=16, seed=0, stride=1, fps=0, scale=0):
    """
    `futures` dreams of `length` frames leave from the last true frame of each clip. Nothing but the command
    tells them apart, because rollout gives all of them the same noise. The recorded action is ignored.
    """
    held, arrows, labels = held_commands(meta, futures)
    width = context['video'].shape[-2]
    scale = scale or screen(width)
    check_size(width * scale, futures + 1.5, len(action) + 0.5, length + 1)
    k = action.shape[-1] // held.shape[1]                                                # raw actions a frame
    held = torch.tensor(np.tile(held, k)).to(action)                                     # (N, k*A)
    held = held[None, :, None].expand(len(action), -1, length, -1)
    new = imagine(model, context, held, seed, stride)
    given = context['video'].cpu().numpy()
    gif(path, fan(given[:, -1], new, arrows, labels, scale, given.shape[1]), 1 / (fps or 4))


def held_commands(meta, n):
    """
    n commands to hold down -> actions (n, A) in data units, arrows (n, 2) or None, labels. Keys, which are
    down or not: the first n that point to different sides. Other numbers: to and fro along each axis by 1.5
    std, inside what the data show.
    """
    stats, names, arrows = meta['stats']['action'], meta.get('action_names'), arrow_table(meta)
    mean, std, low, high = (np.array(stats[name], float) for name in ('mean', 'std', 'min', 'max'))
    numbers = [f'action {i}' for i in range(len(mean))]
    if (mean == 0).all() and (std == 1).all() and (low == 0).all() and (high == 1).all():    # such are keys
        actions = np.eye(len(mean))
        labels = [f'hold {name}' for name in names] if names else numbers
    else:
        actions = np.stack([np.diag(1.5 * std), np.diag(-1.5 * std)], 1)                 # (A, 2, A)
        actions = actions.reshape(-1, len(mean)).clip(low, high)                         # +x, -x, +y, -y, ...
        labels = [f'hold {sign}{name}' for name in names or numbers for sign in '+-']
    chosen, pointing = range(len(actions)), None
    if arrows is not None:
        pointing = actions @ arrows                                                      # (commands, 2)
        labels = [f'hold {side(p)}' if side(p) else 'stand still' for p in pointing]
        chosen = [i for i, label in enumerate(labels) if label not in labels[:i]]
    if len(chosen) < n:
        sys.exit(f'--futures={n}: these data know {len(chosen)} commands that differ')
    chosen = list(chosen[:n])
    return actions[chosen], None if pointing is None else pointing[chosen], [labels[i] for i in chosen]


def side(pointing):
    """(right, down) -> 'up', 'down left', ...; '' for nowhere."""
    right, down = np.round(pointing / max(np.abs(pointing).max(), 1e-9))
    vertical = {-1: 'up', 0: '', 1: 'down'}[down]
    horizontal = {-1: 'left', 0: '', 1: 'right'}[right]
    return f'{vertical} {horizontal}'.strip()


def fan(given, dreamed, arrows, labels, scale, n_context):
    """
    given (B, H, W, C): the last true frame of each clip; dreamed (B, N, K, H, W, C) under N held-down
    commands -> frames (K + 1, h, w, 3): a row for each clip, left its true frame, then the N futures
    that leave from it.
    """
    (B, N, K), width = dreamed.shape[:3], given.shape[2] * scale
    heads = [header('one true frame' if n_context == 1 else f'last of {n_context} true frames', width)]
    heads += [header(labels[i], width, None if arrows is None else arrows[i]) for i in range(N)]
    frames = []
    for t in range(K + 1):
        rows = [beside(heads)]
        for b in range(B):
            now = given[b:b + 1].repeat(N, 0) if t == 0 else dreamed[b, :, t - 1]        # (N, H, W, C)
            cells = [blow_up(given[b], scale, True)] + [blow_up(frame, scale, t == 0) for frame in now]
            rows += [beside(cells), blank(GAP // 2, rows[0].shape[1])]
        count = 'here all futures begin' if t == 0 else f'imagined frame {t} of {K}'
        rows.append(words(count, FOOTER, rows[0].shape[1]))
        frames.append(np.concatenate(rows))
    return np.stack(frames)


def header(text, width, pointing=None):
    """The head of a column: an arrow where there is a direction, words below."""
    top = blank(HEADER - FOOTER, width)
    if pointing is not None:
        top = np.concatenate([blank(4, width), arrow(*pointing, HEADER - FOOTER - 4, width)])
    return np.concatenate([top, words(text, FOOTER, width)])


def beside(cells):
    """Cells of one height, left to right; a wider gap after the first, which is the true one."""
    height = len(cells[0])
    row = [blank(height, GAP), cells[0], blank(height, GAP)]
    for cell in cells[1:]:
        row += [cell, blank(height, GAP // 2)]
    return np.concatenate(row, 1)
