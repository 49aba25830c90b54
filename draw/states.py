"""
Pictures of numbers.

    arms       a robot that knows its looks: the truth, each prediction drawn over the truth, and a clock
    curves     a robot that does not: commanded entries of the state, true and predicted
"""
import sys
from functools import partial

import numpy as np
from tqdm import tqdm

from data.loader import simulator
from draw.common import PAPER, blow_up, check_size, dream, gif, progress, words, write

HEADER, GAP = 26, 4           # px
PANELS = 12                   # at most so many curves below one another


# ---- a robot that knows its looks ----

def every_nth(fps, wanted):
    """
    Show every n-th frame: about `wanted` pictures per second, none for less than 20 ms: browsers make it 100.
    """
    return max(1, round(fps / wanted), int(np.ceil(fps * 0.02 - 1e-9)))


def arms(path, model, context, action, truth, meta, versus=(), names=('predicted',), chunk=1, fps=0, scale=0):
    """
    Columns: the truth, then over it the dream of each model of `versus` and of `model`; a row for each clip;
    below, a clock. names: of all these runs, in this order. context, action (B, 1, K, A), truth (B, K, S):
    what a rollout wants and should give. chunk 1 is the exact sliding window. fps 0: 25 pictures per second;
    the robot moves at its true speed whatever they are. A scale of 1 is a robot of 80 px, 0 is 3.
    """
    models, side = [*versus, model], 80 * (scale or 3)
    given, true = context['state'].cpu().numpy(), truth.cpu().numpy()
    every = every_nth(meta['fps'], fps or 25)
    check_size(side, len(models) + 1, len(true), (given.shape[1] + true.shape[1]) // every + 1)
    dreams = [dream(m, context, action, 'state', chunk=chunk, progress=progress) for m in models]
    dreams = [new['state'][:, 0] for new in dreams]
    looks = partial(simulator(meta).draw, side=side)
    frames = stage(looks, given, true, dreams, titles(models, names), meta['fps'], every)
    gif(path, frames, every / meta['fps'])


def titles(models, names):
    """What to write above each: how it counts actions and states, where that tells them apart, or its run."""
    kinds = []
    for model, name in zip(models, names):
        known = hasattr(model.cfg, 'action_repr') and hasattr(model.cfg, 'state_pred')
        kinds.append(f'{model.cfg.action_repr} actions, {model.cfg.state_pred} targets' if known else name)
    return kinds if len(set(kinds)) == len(kinds) else list(names)


def stage(looks, given, truth, dreams, labels, fps, every):
    """
    given (B, H, S), truth and each of dreams (B, K, S) -> frames (T, h, w, 3), each for every / fps seconds.
    looks is the robot's own drawing, (states, ghost=) -> pictures. The last true frame is one of them: there
    the clock stands at 0.
    """
    H, K = given.shape[1], truth.shape[1]
    shown = np.arange((H - 1) % every, H + K, every)
    rows = []
    for b in tqdm(range(len(given)), desc='draw', leave=False, disable=None):
        true = np.concatenate([given[b], truth[b]])[shown]
        ghosts = [np.concatenate([given[b], new[b]])[shown] for new in dreams]
        rows.append([looks(true)] + [looks(true, ghost=ghost) for ghost in ghosts])
    side = rows[0][0].shape[2]
    heads = np.concatenate([words(text, HEADER, side + GAP) for text in ('truth', *labels)], 1)
    frames = []
    for i, t in enumerate(shown):
        picture = [heads]
        for row in rows:
            cells = [framed(cell[i], t < H) for cell in row]
            picture.append(np.concatenate(cells, 1))
        seconds = (t - H + 1) / fps
        clock = 'the models are shown this' if t < H else f'{seconds:.2f} s after the last true frame'
        picture.append(words(clock, HEADER, heads.shape[1]))
        frames.append(np.concatenate(picture))
    return np.stack(frames)


def framed(frame, given):
    """Paper to the right and below; a green edge if the models were given this."""
    return np.pad(blow_up(frame, 1, given), ((0, GAP), (0, GAP), (0, 0)), constant_values=PAPER[0])


# ---- curves ----

def figure(width=1, height=1):
    """An empty matplotlib figure, inches. Not by pyplot: no window system, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("curves need: pip install -e '.[plot]'")
    return Figure(figsize=(width, height), layout='constrained')


def spread(indices):
    """At most PANELS of them, evenly."""
    return indices[::-(-len(indices) // PANELS)]


def curves(path, model, context, action, truth, meta, chunk=1):
    """
    One clip as a PNG: commanded entries of the state, true and predicted; two std of the ensemble around,
    where there is one. context, action (1, 1, K, A) and truth (1, K, S): as a rollout wants them.
    """
    new = {key: value[0, 0] for key, value in dream(model, context, action, 'state', chunk=chunk).items()}
    given = context['state'][0].cpu().numpy()
    true = np.concatenate([given, truth[0].cpu().numpy()])
    H, K, fps = len(given), len(new['state']), meta['fps']
    unit = {d: g['unit'] for g in meta.get('groups', {}).values() for d in g['dims']}
    names = meta.get('state_names') or meta.get('joint_names') or []
    commanded = meta.get('q_index') or []
    shown = spread(commanded or list(range(true.shape[1])))
    members = f', {model.cfg.members} members' if 'state_std' in new and hasattr(model.cfg, 'members') else ''
    paper, panels = sheet(len(shown), 2)
    past, future = np.arange(-H, 0) / fps, np.arange(K) / fps        # seconds; 0 = the first predicted frame
    for panel, (i, d) in zip(panels, enumerate(shown)):
        mean = new['state'][:, d]
        panel.axvspan(past[0], -1 / fps, color='0.93')
        if d in commanded:                               # a command is given one frame before it shows
            wanted = action[0, 0, :, commanded.index(d)].cpu()
            panel.plot(future - 1 / fps, wanted, ':', color='0.5', label='command')
        if 'state_std' in new:
            std = new['state_std'][:, d]
            panel.fill_between(future, mean - 2 * std, mean + 2 * std, color='tab:orange', alpha=0.35, lw=0)
        panel.plot(future, mean, color='tab:orange', lw=2.5, label=f'predicted{members}')
        panel.plot(np.concatenate([past, future]), true[:, d], color='black', lw=1, label='true')
        name = names[d] if d < len(names) else f'state {d}'
        panel.set_ylabel(f'{name} [{unit.get(d, "")}]')
        if i == 0:
            panel.legend(fontsize='small')
    paper.supxlabel('seconds of open-loop prediction; grey: what the model was shown')
    write(path, lambda name: paper.savefig(name, dpi=110))


def sheet(n, columns):
    """-> figure, n panels in rows of `columns`, left to right."""
    rows = -(-n // columns)
    paper = figure(6 * columns, 2.2 * max(rows, 2))
    panels = paper.subplots(rows, columns, sharex='col', squeeze=False).flatten()
    for panel in panels[n:]:
        panel.axis('off')
    return paper, panels[:n]
