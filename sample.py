"""
Dream: load a world model, let it imagine what recorded actions do, and write a moving picture.

    python sample.py --ckpt=out/minihack_wm_cpu                       -> out/minihack_wm_cpu/samples/step_....gif
    python sample.py --ckpt=out/minihack_wm_cpu --length=40 --n_clips=4 --out=dream.gif
    python sample.py --ckpt=out/minihack_wm_cpu --out=dream.png       a film strip, for paper
    python sample.py --ckpt=out/arx5_cpu                              a robot arm: the dream drawn over the truth
    python sample.py --ckpt=out/arx5_cpu --out=arm.png                curves with the ensemble's band (extra: plot)

Every column is one clip of the validation split. Video: the truth above, the action in the middle, the dream below. A
green edge marks the true frames that the model was given; after them it sees only the actions and its own frames.
"""
import importlib
import os
import sys

import imageio.v3 as imageio
import numpy as np
import torch
from tqdm import tqdm

import checkpoint
from configurator import configure
from data.loader import Store, read_meta

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
ema = True                    # averaged weights where the checkpoint has them
n_clips = 6                   # columns of the picture
length = 0                    # frames to dream; 0: video 16, robot states 150
n_context = 0                 # true frames given; 0 = the model's n_context (video), history (states)
sample_steps = 0              # video: denoising steps per frame; 0 = the model's
sampling = ''                 # video: scheduling matrix; '' = the model's
stride = 1                    # video: new frames per window
split = 'val'                 # val | train
seed = 0                      # of clips and noise
fps = 0                       # of the GIF; 0: video 4, states 25
scale = 0                     # video: screen pixels per pixel; 0 = frames about 112 wide
device = 'auto'               # auto = cuda if there is one, else cpu
out = ''                      # .gif or .png; '' = samples/<step>.gif in the run's folder (curves: .png)

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


def choose(store, n, seed):
    """Ids of one random window in each of n random episodes."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(store))
    firsts = np.unique(store.locate(shuffled)[0], return_index=True)[1]
    return shuffled[rng.permutation(firsts)[:n]]


def strips(model, folder, device):
    """Video: dream, then draw -> one (T, h, w, 3) per clip."""
    cfg = model.cfg
    if cfg.input != 'video':
        sys.exit(f'this model dreams {cfg.input}s; decoding them to pixels needs vae.py, which is not there yet')
    k, given = cfg.frame_skip, n_context or cfg.n_context
    T = given + (length or 16)
    store = Store(folder, split, {'video': range(0, T * k, k), 'action': range(0, (T - 1) * k)})
    batch = {key: value.to(device) for key, value in store.windows_at(choose(store, n_clips, seed)).items()}
    generator = torch.Generator(device).manual_seed(seed)
    dreamed = dream(model, batch, given, stride, sample_steps, sampling, generator).cpu().numpy()
    truth, action = batch['video'].cpu().numpy(), batch['action'].cpu().numpy().reshape(len(dreamed), T - 1, -1)
    arrows = store.meta.get('action_arrows')
    pixels = scale or max(1, round(112 / cfg.width))
    return [picture(truth[i], dreamed[i], action[i], None if arrows is None else np.array(arrows), given, pixels)
            for i in tqdm(range(len(truth)), desc='draw', leave=False)]


# ---- robot states ----

def recorded(model, folder, n, device):
    """-> context, action (n, 1, K, A), true states after the context (n, K, S), meta.json: what a rollout wants."""
    given, K = n_context or model.cfg.history, length or 150
    store = Store(folder, split, {'state': range(given + K), 'action': range(given + K - 1)})
    batch = {key: value.to(device) for key, value in store.windows_at(choose(store, n, seed)).items()}
    context = {'state': batch['state'][:, :given], 'action': batch['action'][:, :given - 1]}
    return context, batch['action'][:, None, given - 1:], batch['state'][:, given:], store.meta


def arms(model, folder, device):
    """The robot's own drawing, by its env.py: truth above; dream over truth below -> (T, h, w, 3) per clip."""
    context, action, truth, meta = recorded(model, folder, n_clips, device)
    env = importlib.import_module(meta['env'])
    new = model.rollout(context, action, chunk=1, progress=lambda r: tqdm(r, desc='dream', leave=False))['state'][:, 0]
    every = max(1, round(meta['fps'] / (fps or 25)))
    clips = []
    for i in tqdm(range(len(truth)), desc='draw', leave=False):
        given = context['state'][i].cpu().numpy()
        true, dreamed = (np.concatenate([given, x[i].cpu().numpy()])[::every] for x in (truth, new))
        frames = np.concatenate([env.draw(true), env.draw(true, ghost=dreamed)], 1)
        clips.append(np.stack([blow_up(frame, 1, t * every < len(given)) for t, frame in enumerate(frames)]))
    return clips


def figure(width=1, height=1):
    """An empty matplotlib figure, inches. Not by pyplot: no window system, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("curves need: pip install -e '.[plot]'")
    return Figure(figsize=(width, height), layout='constrained')


def curves(path, model, context, action, truth, meta):
    """One clip as a PNG: commanded entries of the state, true and predicted, with two std of the ensemble around."""
    new = {key: value[0, 0].cpu().numpy() for key, value in model.rollout(context, action, chunk=1).items()}
    H, K, fps_ = context['state'].shape[1], len(new['state']), meta['fps']
    true = np.concatenate([context['state'][0].cpu().numpy(), truth[0].cpu().numpy()])
    unit = {d: g['unit'] for g in meta.get('groups', {}).values() for d in g['dims']}
    names = meta.get('state_names') or meta.get('joint_names') or []
    shown = meta.get('q_index') or list(range(true.shape[1]))
    shown = shown[::-(-len(shown) // 12)]                            # at most 12 panels, spread over all entries
    paper = figure(12, 2.2 * -(-len(shown) // 2))
    past, future = np.arange(-H, 0) / fps_, np.arange(K) / fps_      # seconds; 0 = the first predicted frame
    panels = paper.subplots(-(-len(shown) // 2), 2, sharex=True).flatten()
    for panel in panels[len(shown):]: panel.axis('off')
    for panel, (i, d) in zip(panels, enumerate(shown)):
        mean, std = new['state'][:, d], new['state_std'][:, d]
        panel.axvspan(past[0], -1 / fps_, color='0.93')
        if d in meta.get('q_index', ()):                             # a command is given one frame before it shows
            wanted = action[0, 0, :, meta['q_index'].index(d)].cpu()
            panel.plot(future - 1 / fps_, wanted, ':', color='0.5', label='command')
        panel.fill_between(future, mean - 2 * std, mean + 2 * std, color='tab:orange', alpha=0.35, lw=0)
        panel.plot(future, mean, color='tab:orange', lw=2.5, label=f'predicted, {model.cfg.members} members')
        panel.plot(np.concatenate([past, future]), true[:, d], color='black', lw=1, label='true')
        panel.set_ylabel(f'{names[d] if d < len(names) else f"state {d}"} [{unit.get(d, "")}]')
        if i == 0: panel.legend(fontsize='small')
    paper.supxlabel('seconds of open-loop prediction; grey: what the model was shown')
    write(path, lambda part: paper.savefig(part, dpi=110))


def write(path, save):
    """save(temporary name), renamed when whole."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = os.path.splitext(path)[0] + '.part' + os.path.splitext(path)[1]
    save(part)
    os.replace(part, path)


if __name__ == '__main__':
    config = configure(globals())
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    model, meta = checkpoint.load(ckpt, ema, which, device)
    device = next(model.parameters()).device                                             # where `auto` put it
    folder = os.path.join(meta['config']['data_dir'], meta['config']['dataset'])
    states = 'dynamics' in sys.modules[meta['model']].EVAL
    can_draw = not states or 'env' in read_meta(folder)                                  # a robot that knows its looks
    run = os.path.dirname(os.path.normpath(checkpoint.find(ckpt, which)))
    kind = '.gif' if can_draw else '.png'
    out = out or os.path.join(run, 'samples', checkpoint.step_name(meta['step']) + kind)
    if not out.endswith(('.gif', '.png')) or (out.endswith('.gif') and not can_draw):
        sys.exit(f'--out={out}: write a .png (film strip, curves)' + ' or a .gif (moving)' * can_draw)
    if min(n_clips, stride) < 1 or min(length, n_context, fps, seed) < 0:
        sys.exit(f'{n_clips=}, {stride=}: at least 1; {length=}, {n_context=}, {fps=}, {seed=}: at least 0')
    try:
        if states and out.endswith('.png'):
            curves(out, model, *recorded(model, folder, 1, device))
            sys.exit(print(f'{out}: one clip, true and predicted'))
        clips = (arms if states else strips)(model, folder, device)
    except AssertionError as error:                      # an impossible key; the assert says which and why
        sys.exit(f'cannot dream: {error}')
    if out.endswith('.gif'):
        speed = 1000 / (fps or (25 if states else 4))
        write(out, lambda part: imageio.imwrite(part, np.concatenate(clips, 2), duration=speed, loop=0))
    else:
        write(out, lambda part: imageio.imwrite(part, np.concatenate([np.concatenate(list(c), 1) for c in clips])))
    given, new = n_context or (model.cfg.history if states else model.cfg.n_context), length or (150 if states else 16)
    print(f'{out}: {len(clips)} clips, {given} true frames, {new} dreamed; truth above, dream below')
