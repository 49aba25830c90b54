"""
Judge a checkpoint by the evaluator its model understands: one JSON line on stdout, progress on stderr.

    python eval.py --ckpt=out/minihack_wm_cpu                 video: the frames right after the context
    python eval.py --ckpt=out/minihack_wm_cpu --horizon=8     a longer dream; `curve` has every step

Read `video`. Scores mean little alone, so the same clips are also scored for two predictors: `copy` repeats the last
context frame, and `shuffled` is the model itself under the actions of another clip, with the same noise. A world model
that does not beat the second has not learned what actions do.
"""
import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import checkpoint
from configurator import configure
from data.loader import Store
from metrics import bootstrap, psnr, ssim

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
ema = True                    # averaged weights where the checkpoint has them
protocol = ''                 # video; '' = the model's first evaluator
n_clips = 512                 # fixed windows of the val split, drawn by seed; fewer if there are fewer
n_context = 0                 # true frames given; 0 = the model's n_context
horizon = 0                   # frames to predict; 0 = num_frames - n_context
sample_steps = 0              # denoising steps per frame; 0 = the model's
sampling = ''                 # scheduling matrix; '' = the model's
batch_size = 64               # clips per forward
seed = 42                     # of clips, noise and bootstrap
device = 'auto'               # auto = cuda if there is one, else cpu
out = ''                      # also write the JSON line to this file


def video(model, folder, n_clips=512, n_context=0, horizon=0, sample_steps=0, sampling='', batch_size=64, seed=42,
          rank=0, world=1, quiet=True):
    """
    Predict `horizon` frames after `n_context` true ones; score only those, against the raw frames of the val split.
      psnr, ssim      mean over frames (the published definition); *_copy, *_shuffled: the two other predictors
      psnr_moving     10 log10(1 / MSE), MSE pooled over the frames that differ from the last context frame, unrounded;
                      still frames would drown the rest, because copying scores 80 dB on them; None if nothing moves
      gain_*          psnr_moving minus that of the other predictor, in dB
      *_ci            95 % interval, bootstrap over episodes
      curve           psnr_moving of all three predictors, and the share of moving frames, for each predicted step
    Batches are dealt out to the ranks; the result does not depend on how many there are.
    """
    cfg = model.cfg
    if cfg.input != 'video':
        sys.exit(f'video protocol: this model dreams {cfg.input}s; decoding them to pixels needs vae.py, not there yet')
    k, n_context = cfg.frame_skip, n_context or cfg.n_context
    horizon = horizon or cfg.num_frames - n_context
    if horizon < 1:
        sys.exit(f'n_context = {n_context} leaves none of num_frames = {cfg.num_frames} to predict; set --horizon')
    one_window = n_context + horizon <= cfg.num_frames           # then predict all frames together, as training did
    stride = horizon if one_window else 1
    length = n_context + horizon
    store = Store(folder, 'val', {'video': range(0, length * k, k), 'action': range(0, (length - 1) * k)})
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(len(store), min(n_clips, len(store)), replace=False))
    if len(ids) < 2:
        sys.exit(f'{folder}/val holds one window of {(length - 1) * k + 1} frames; to shuffle actions takes two')
    cycle = rng.permutation(len(ids))            # clip cycle[i] gets the actions of cycle[i+1], so none gets its own
    donor = np.empty_like(ids)
    donor[cycle] = ids[np.roll(cycle, -1)]

    rows = []                                                    # (clip, horizon, column) of squared errors, dB, ssim
    starts = range(0, len(ids), batch_size)
    for i in tqdm(starts[rank::world], desc='eval video', disable=quiet or rank > 0, leave=False):
        clips, others = store.windows_at(ids[i:i + batch_size]), store.windows_at(donor[i:i + batch_size])
        truth = clips['video'].to(model.alpha.device)            # (B, length, H, W, C) uint8
        action, wrong = (c['action'].to(truth.device).view(len(truth), length - 1, -1) for c in (clips, others))
        context = {'video': truth[:, :n_context], 'action': action[:, :n_context - 1]}
        future = torch.stack([action, wrong], 1)[:, :, n_context - 1:]                           # (B, 2, horizon, k*A)
        generator = torch.Generator(truth.device).manual_seed(seed * 1_000_003 + i)
        dream = model.rollout(context, future, stride=stride, sampling=sampling, sample_steps=sample_steps,
                              generator=generator)['video'] / 255                            # (B, 2, horizon, H, W, C)
        last, truth = truth[:, n_context - 1:n_context] / 255, truth[:, n_context:] / 255
        moving = (truth != last).flatten(2).any(2)               # (B, horizon)
        columns = [moving.float()]
        for guess in (dream[:, 0], last.expand_as(truth), dream[:, 1]):
            columns += [(guess - truth).pow(2).flatten(2).mean(2), psnr(guess, truth), ssim(guess, truth)]
        rows.append((i, torch.stack(columns, -1).double().cpu().numpy()))
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, rows)
        rows = sum(parts, [])
    rows = np.concatenate([r for _, r in sorted(rows, key=lambda r: r[0])])
    return summary(rows, store.locate(ids)[0], seed) | dict(
        n_clips=len(ids), n_context=n_context, horizon=horizon, sample_steps=sample_steps or cfg.sample_steps,
        sampling=sampling or cfg.sampling, batch_size=batch_size, seed=seed)


def summary(rows, episode, seed):
    """rows (clips, horizon, 10): moving, then squared error, dB, ssim of model, copy, shuffled; episode (clips,)."""
    def pooled(r, who):                                          # dB of the squared error pooled over moving frames
        moving = r[..., 0].sum()
        return -10 * np.log10(max((r[..., 1 + 3 * who] * r[..., 0]).sum() / moving, 1e-8)) if moving else np.nan

    def statistics(r):
        result = {}
        for who, name in enumerate(('', '_copy', '_shuffled')):
            result['psnr' + name], result['ssim' + name] = r[..., 2 + 3 * who].mean(), r[..., 3 + 3 * who].mean()
            result['psnr_moving' + name] = pooled(r, who)
        result['gain_over_copy'] = result['psnr_moving'] - result['psnr_moving_copy']
        result['gain_over_shuffled'] = result['psnr_moving'] - result['psnr_moving_shuffled']
        return result

    result = statistics(rows)
    low, high = bootstrap(rows, episode, lambda r: np.array(list(statistics(r).values())), seed=seed)
    for i, name in enumerate(list(result)):
        result[name + '_ci'] = [low[i], high[i]]
    steps = range(rows.shape[1])
    curve = {name: [pooled(rows[:, h:h + 1], who) for h in steps] for who, name in
             enumerate(('model', 'copy', 'shuffled'))}
    curve['moving'] = [rows[:, h, 0].mean() for h in steps]
    return plain(result | dict(curve=curve, n_moving=int(rows[..., 0].sum()), n_episodes=len(set(episode.tolist()))))


def plain(x):
    """Numpy numbers -> Python's, and None for nan, which JSON does not know."""
    if isinstance(x, dict): return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list): return [plain(value) for value in x]
    return x if isinstance(x, int) else float(x) if np.isfinite(x) else None


EVALUATORS = {'video': video}

if __name__ == '__main__':
    config = configure(globals())
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    if n_clips < 2 or batch_size < 1:
        sys.exit(f'{n_clips=}, {batch_size=}: want at least 2 clips (actions are shuffled among them), 1 per forward')
    model, meta = checkpoint.load(ckpt, ema, which, device)
    known = sys.modules[meta['model']].EVAL
    if protocol and protocol not in known:
        sys.exit(f'--protocol={protocol}: {meta["model"]} is judged by {", ".join(known)}')
    started, name = time.time(), protocol or known[0]
    folder = os.path.join(meta['config']['data_dir'], meta['config']['dataset'])
    if out:
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)      # complain before the work
    try:
        result = EVALUATORS[name](model, folder, n_clips=n_clips, n_context=n_context, horizon=horizon, seed=seed,
                                  sample_steps=sample_steps, sampling=sampling, batch_size=batch_size, quiet=False)
    except AssertionError as error:                      # an impossible key; the assert says which and why
        sys.exit(f'{name} protocol: {error}')
    source = dict(protocol=name, checkpoint=ckpt, step=meta['step'], ema=ema, dataset=meta['config']['dataset'],
                  data_sha=meta['data_sha'][:12])
    line = json.dumps(source | result | dict(seconds=round(time.time() - started, 1)))
    print(line)
    if out:
        checkpoint.write_text(out, line + '\n')
