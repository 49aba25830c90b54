"""
A policy beside recordings, as a PNG: what was done, and what it would have done, under what was seen.
"""
import os

import numpy as np
import torch

from draw.common import finite, write
from draw.states import figure, spread
from protocols.actions import groups_of
from protocols.recorded import replay

FRAMES = 6                    # of a film, side by side
WIDTH, HEIGHT = 7, 1.4        # inches of a panel


def actions(path, model, store, ids, length=150, seed=0):
    """
    A column for each episode that holds one of ids: frames of the cameras, below them a row for each entry of
    the action. The policy looks at the first frame, answers, and looks again where its answer ends; the robot
    goes where it went. store: windows of the model, with `action`.
    """
    torch.manual_seed(seed)                              # for an act without generators
    episodes, meta = store.locate(ids)[0], store.meta
    fps = meta.get('fps') or 1
    names, groups = meta.get('action_names') or [], groups_of(meta)
    unit = {d: group['unit'] for group in groups.values() for d in group['dims']}
    shown, cameras = spread([d for group in groups.values() for d in group['dims']]), cameras_of(store)
    paper, panels = sheet(store, cameras, len(shown), len(episodes))
    for column, episode in zip(panels.T, episodes):
        first, end = store.episodes[episode]
        frames = min(length, end - first - ('action' in store.padded))
        done, answers = store.open('action')[first:first + frames], []
        for start, _, _, wanted in replay(model, store, np.array([episode]), np.zeros(1, int), seed, frames):
            finite(wanted)
            answers.append((start, wanted[0, :frames - start].numpy()))
        column[0].set_title(f'{store.split} episode {episode} of {name_of(store)}', fontsize='medium')
        times = (np.arange(FRAMES) + 0.5) * frames / FRAMES          # where the frames stand on the axis
        for camera, panel in zip(cameras, column):
            film(panel, store.open(camera)[first + times.astype(int)], times / fps, camera.split('.')[-1])
        for d, panel in zip(shown, column[len(cameras):]):
            for t in times if cameras else ():
                panel.axvline(t / fps, color='0.9', lw=1, zorder=0)
            chunks(panel, answers, d, fps)
            panel.plot(np.arange(frames) / fps, done[:, d], color='black', lw=1, label='recorded')
        column[-1].set_xlim(0, frames / fps)
        column[-1].set_xlabel('time [s]')
    for d, panel in zip(shown, panels[len(cameras):, 0]):
        name = names[d] if d < len(names) else f'action {d}'
        panel.set_ylabel(f'{name}\n[{unit[d]}]' if unit.get(d) else name, fontsize='small')
        at_least(panel, meta['stats'].get('action', {'std': [0] * (d + 1)})['std'][d])
    lines = panels[-1, 0].get_legend_handles_labels()
    paper.legend(*lines, loc='outside upper center', ncols=2)
    write(path, lambda name: paper.savefig(name, dpi=110))


def name_of(store):
    return os.path.basename(os.path.normpath(store.folder))


def cameras_of(store):
    """Keys of the pictures: those that the policy sees, or else the first that the data hold."""
    there = [name[len(store.split) + 1:-4] for name in store.meta['files'] if name.startswith(store.split)]
    films = [key for key in there if key == 'video' or key.startswith('image.')]
    return [key for key in films if key in store.windows] or films[:1]


def sheet(store, cameras, rows, columns):
    """-> figure, panels (cameras + rows, columns): those of films are as high as a frame."""
    heights = []
    for camera in cameras:
        high, wide = upright(store.open(camera)[:1]).shape[1:3]
        heights.append(0.85 * WIDTH / FRAMES * high / wide + 0.3)
    heights += [HEIGHT] * rows
    paper = figure(WIDTH * columns, sum(heights) + 0.8)
    ratios = {'height_ratios': heights}
    panels = paper.subplots(len(heights), columns, sharex='col', sharey='row', squeeze=False,
                            gridspec_kw=ratios)
    return paper, panels


def upright(frames):
    """(T, 3, H, W) or (T, H, W, C) -> (T, H, W, 3 or 1)"""
    frames = frames if frames.shape[1] > 4 else frames.transpose(0, 2, 3, 1)
    return frames[..., :3] if frames.shape[-1] > 2 else frames[..., :1]


def film(panel, frames, seconds, name):
    """Frames side by side, each above its time."""
    panel.axis('off')
    for i, (frame, t) in enumerate(zip(upright(frames), seconds)):
        inset = panel.inset_axes([i / FRAMES, 0, 0.97 / FRAMES, 1])
        inset.imshow(frame, cmap='gray', vmin=0, vmax=255)
        inset.set_title(f'{name} at {t:.1f} s' if i == 0 else f'{t:.1f} s', fontsize='x-small', pad=2)
        inset.axis('off')


def at_least(panel, std):
    """An axis of two std of the training data or more, or noise would look like a mistake."""
    low, high = panel.get_ylim()
    more = max(0, 2 * std - (high - low)) / 2
    panel.set_ylim(low - more, high + more)


def chunks(panel, answers, d, fps):
    """Answers (frame of the look, (n, A)): a dot and a line each; if n = 1 one line for all."""
    starts = [start / fps for start, _ in answers]
    if max(len(answer) for _, answer in answers) > 1:
        panel.plot(starts, [answer[0, d] for _, answer in answers], 'o', color='tab:orange', ms=4)
        parts = [np.append(answer[:, d], np.nan) for _, answer in answers]
        times = [np.arange(start, start + len(part)) / fps for (start, _), part in zip(answers, parts)]
        starts, values = np.concatenate(times), np.concatenate(parts)
    else:
        values = [answer[0, d] for _, answer in answers]
    label = 'policy: a look (dot), and what it wants until the next'
    panel.plot(starts, values, color='tab:orange', lw=2, label=label)
