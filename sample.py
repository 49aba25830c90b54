"""
Dream: load a world model, let it imagine what recorded actions do, and write a moving picture.

    python sample.py --ckpt=out/minihack_wm_cpu                       -> out/minihack_wm_cpu/samples/step_....gif
    python sample.py --ckpt=out/minihack_wm_cpu --length=40 --n_clips=4 --out=dream.gif
    python sample.py --ckpt=out/minihack_wm_cpu --out=dream.png       a film strip, for paper

Every column is one clip of the validation split: the truth above, the action in the middle, the dream below. A green
edge marks the true frames that the model was given; after them it sees only the actions and its own frames.
"""
import os
import sys

import imageio.v3 as imageio
import numpy as np
import torch
from tqdm import tqdm

import checkpoint
from configurator import configure
from data.loader import Store

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
ema = True                    # averaged weights where the checkpoint has them
n_clips = 6                   # columns of the picture
length = 16                   # frames to dream
n_context = 0                 # true frames given; 0 = the model's n_context
sample_steps = 0              # denoising steps per frame; 0 = the model's
sampling = ''                 # scheduling matrix; '' = the model's
stride = 1                    # new frames per window
split = 'val'                 # val | train
seed = 0                      # of clips and noise
fps = 4                       # of the GIF
scale = 0                     # screen pixels per pixel; 0 = frames about 112 wide
device = 'auto'               # auto = cuda if there is one, else cpu
out = ''                      # .gif or .png; '' = samples/<step>.gif in the run's folder

GREEN, INK, PAPER = (60, 180, 75), (250, 250, 250), (24, 24, 28)


def dream(model, batch, n_context, stride, sample_steps, sampling, generator):
    """batch: video (B, T, H, W, C) uint8 of k-spaced frames, action (B, (T-1)*k, A) -> video (B, T, ...) uint8."""
    action = batch['action'].view(len(batch['video']), batch['video'].shape[1] - 1, -1)
    context = {'video': batch['video'][:, :n_context], 'action': action[:, :n_context - 1]}
    future = action[:, None, n_context - 1:]                                             # (B, 1, K, k*A)
    new = model.rollout(context, future, stride=stride, sample_steps=sample_steps, sampling=sampling,
                        generator=generator, progress=lambda r: tqdm(r, desc='dream', leave=False))['video'][:, 0]
    return torch.cat([context['video'], new.round().to(torch.uint8)], 1)


def draw_action(action, arrows, height, width):
    """One folded action (k*A,) -> (height, width, 3): an arrow if meta.json knows directions, else a bar per entry."""
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    y, x = np.mgrid[:height, :width]
    if arrows is not None:
        right, down = action.reshape(-1, len(arrows)).sum(0) @ arrows                    # (A,) @ (A, 2)
        norm, cy, cx, r = np.hypot(right, down), (height - 1) / 2, (width - 1) / 2, height * 0.42
        if norm < 1e-6:
            canvas[np.hypot(y - cy, x - cx) < r / 4] = INK
            return canvas
        along = ((x - cx) * right + (y - cy) * down) / norm / r                          # -1 tail .. 1 tip
        aside = np.abs((x - cx) * down - (y - cy) * right) / norm / r
        canvas[((along > -1) & (along < 0.3) & (aside < 0.15)) | ((along >= 0.2) & (aside < (1 - along) * 0.7))] = INK
        return canvas
    step, mid = width / len(action), height / 2
    for i, a in enumerate(np.clip(action, -1, 1)):
        inside = (x >= i * step + 1) & (x < (i + 1) * step - 1) & (np.minimum(0, -a) * mid <= y - mid)
        canvas[inside & (y - mid <= max(0.5, np.maximum(0, -a) * mid))] = INK
    return canvas


def blow_up(frame, scale, edge):
    """(H, W, C) -> (H*scale, W*scale, 3); a coloured edge if `edge`."""
    big = frame.repeat(scale, 0).repeat(scale, 1)
    big = np.broadcast_to(big, (*big.shape[:2], 3)).copy()
    if edge: big[:2], big[-2:], big[:, :2], big[:, -2:] = GREEN, GREEN, GREEN, GREEN
    return big


def picture(truth, dreamed, action, arrows, n_context, scale):
    """One clip: (T, H, W, C) twice and (T-1, k*A) -> frames (T, h, w, 3)."""
    frames = []
    for t in range(len(truth)):
        top, bottom = blow_up(truth[t], scale, t < n_context), blow_up(dreamed[t], scale, t < n_context)
        bar = np.full((max(16, top.shape[0] // 4), top.shape[1], 3), PAPER, np.uint8)
        if t > 0: bar = draw_action(action[t - 1], arrows, *bar.shape[:2])               # what led to this frame
        frames.append(np.pad(np.concatenate([top, bar, bottom]), ((4, 4), (4, 4), (0, 0)), constant_values=PAPER[0]))
    return np.stack(frames)


if __name__ == '__main__':
    config = configure(globals())
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    model, meta = checkpoint.load(ckpt, ema, which, device)
    device = model.alpha.device                                                          # where `auto` put it
    cfg = model.cfg
    if cfg.input != 'video':
        sys.exit(f'this model dreams {cfg.input}s; decoding them to pixels needs vae.py, which is not there yet')
    run = os.path.dirname(os.path.normpath(checkpoint.find(ckpt, which)))
    out = out or os.path.join(run, 'samples', checkpoint.step_name(meta['step']) + '.gif')
    if not out.endswith(('.gif', '.png')):
        sys.exit(f'--out={out}: write a .gif (moving) or a .png (film strip)')
    if min(length, n_clips, stride) < 1:
        sys.exit(f'{length=}, {n_clips=}, {stride=}: each must be at least 1')
    n_context, k = n_context or cfg.n_context, cfg.frame_skip
    T = n_context + length
    folder = os.path.join(meta['config']['data_dir'], meta['config']['dataset'])
    store = Store(folder, split, {'video': range(0, T * k, k), 'action': range(0, (T - 1) * k)})
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(store))
    firsts = np.unique(store.locate(shuffled)[0], return_index=True)[1]                  # one random clip per episode
    ids = shuffled[rng.permutation(firsts)[:n_clips]]
    batch = {key: value.to(device) for key, value in store.windows_at(ids).items()}
    generator = torch.Generator(device).manual_seed(seed)
    try:
        dreamed = dream(model, batch, n_context, stride, sample_steps, sampling, generator).cpu().numpy()
    except AssertionError as error:                      # an impossible key; the assert says which and why
        sys.exit(f'cannot dream: {error}')
    truth, action = batch['video'].cpu().numpy(), batch['action'].cpu().numpy().reshape(len(ids), T - 1, -1)
    arrows = store.meta.get('action_arrows')
    scale = scale or max(1, round(112 / cfg.width))
    clips = [picture(truth[i], dreamed[i], action[i], None if arrows is None else np.array(arrows), n_context, scale)
             for i in tqdm(range(len(ids)), desc='draw', leave=False)]
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    part = os.path.splitext(out)[0] + '.part' + os.path.splitext(out)[1]                 # renamed when whole
    if out.endswith('.gif'):
        imageio.imwrite(part, np.concatenate(clips, 2), duration=1000 / fps, loop=0)
    else:
        imageio.imwrite(part, np.concatenate([np.concatenate(list(clip), 1) for clip in clips]))
    os.replace(part, out)
    print(f'{out}: {len(ids)} clips, {n_context} true frames, {length} dreamed; truth above, dream below')
