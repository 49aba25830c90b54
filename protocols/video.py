"""
Does a world model know what happens next? Predict `horizon` frames after `n_context` true ones; score only
those, against the raw frames of the val split.

    psnr, ssim      mean over frames (the published definition); *_copy, *_shuffled: the two other predictors.
                    Others on demand: LPIPS, FID, KID, FVD (looks.py)
    psnr_moving     10 log10(1 / MSE), MSE pooled over the frames that differ from the last context frame,
                    unrounded; still frames would drown the rest, because copying scores 80 dB on them; None
                    if nothing moves
    psnr_moving_pixels  the same, pooled over the pixels that differ from the last context frame: with a real
                    camera every frame moves, and most of it stands still
    gain_over_*     psnr_moving minus that of the other predictor, in dB; gain_pixels_over_*: of moving pixels
    tile_*          shares of tiles that are right, in worlds that are made of tiles (tiles.py)
    *_ci            95 % interval, bootstrap over episodes; --by=window over windows, which overlap and so
                    make it too narrow, for sets of a few long episodes
    curve           for each predicted step psnr_moving of all, the share of moving frames, and tile_*

The two other predictors: `copy` repeats the last context frame; `shuffled` is the model itself under the
actions of another clip, with the same noise. Who does not beat that has not learned what actions do. Models
of latents have two more rows, because their codec costs something, too: `ceiling` is the true frames, encoded
and decoded, and `copy_codec` is `copy`, likewise.
"""
import sys
from dataclasses import dataclass

import numpy as np
import torch

from data.loader import Store
from metrics import bootstrap
from protocols import common, looks, tiles

HINT = 'horizon, n_context'
# who is judged: what people call it, and the end of its keys
SUFFIXES = {'model': '', 'copy': '_copy', 'shuffled': '_shuffled', 'ceiling': '_ceiling',
            'copy_codec': '_copy_codec'}


@dataclass
class Keys:
    n_clips: int = 512            # fixed windows of the val split, drawn by seed; at least 2
    n_context: int = 0            # true frames given; 0 = the model's n_context
    horizon: int = 0              # frames to predict; 0 = num_frames - n_context; for more, windows slide
    batch_size: int = 64          # clips per forward
    seed: int = 42                # of clips, noise and bootstrap
    by: str = 'episode'           # what the bootstrap draws: episode | window
    scores: tuple = ('psnr', 'ssim')  # of psnr ssim lpips_alex lpips_vgg lpips_squeeze fid kid fvd
    vae: str = ''                 # latents: their codec, sd | taesd | PATH; '' = the one that meta.json names


def mse(pred, target):
    """Mean squared error of each frame. (..., H, W, C) -> (...)"""
    return (pred - target).square().flatten(-3).mean(-1)


def input_of(cfg):
    return getattr(cfg, 'input', 'video')


def lengths(cfg, keys, M):
    """-> frames given, frames predicted, raw frames per model frame, new frames per window of the model."""
    k = getattr(cfg, 'frame_skip', 1)
    num_frames = len(M.windows(cfg)[input_of(cfg)])
    n_context = keys.n_context or getattr(cfg, 'n_context', 1)
    horizon = keys.horizon or num_frames - n_context
    if horizon < 1:
        sys.exit(f'video protocol: n_context = {n_context} leaves none of num_frames = {num_frames} to '
                 'predict; set --horizon')
    one_window = n_context + horizon <= num_frames           # then all together, as in training
    return n_context, horizon, k, horizon if one_window else 1


def windows(cfg, keys, M):
    """The frames of one clip; refuses keys that make no sense."""
    common.at_least('video', keys, n_clips=2, n_context=0, horizon=0, batch_size=1, seed=0)
    if keys.by not in ('episode', 'window'):
        sys.exit(f'video protocol: by = {keys.by!r}: choose episode or window')
    looks.check(keys.scores)
    if keys.vae and input_of(cfg) != 'latent':
        sys.exit(f'video protocol: vae = {keys.vae}: this model dreams pixels, which need no codec')
    n_context, horizon, k, _ = lengths(cfg, keys, M)
    length = n_context + horizon
    frames = dict.fromkeys(('video', input_of(cfg)), range(0, length * k, k))
    return frames | {'action': range(0, (length - 1) * k)}


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Batches are dealt out to the ranks; the result does not depend on how many there are."""
    cfg, M = model.cfg, common.file_of(model)
    store = Store(folder, 'val', windows(cfg, keys, M), hint=HINT)
    common.fits(cfg, store)
    device = common.device_of(model)
    if input_of(cfg) == 'latent':
        model = common.Decoded(model, common.codec_of(store.meta, folder, keys.vae, device))
    n_context, horizon, _, stride = lengths(cfg, keys, M)
    rng = np.random.default_rng(keys.seed)
    ids = common.draw(store, keys.n_clips, rng)
    if len(ids) < 2:
        sys.exit(f'{folder}/val holds one window of {len(store.windows["action"]) + 1} frames; to shuffle '
                 'actions takes two')
    cycle = rng.permutation(len(ids))        # clip cycle[i] gets the actions of cycle[i+1], so none its own
    donor = np.empty_like(ids)
    donor[cycle] = ids[np.roll(cycle, -1)]

    size = store.meta['files']['val/video.npy']['shape'][1:]             # H, W, C
    weights, skipped = looks.rehearse(keys.scores, torch.zeros(1, horizon, *size, device=device))
    skipped = {name: why for part in common.gather([skipped], world) for name, why in part.items()}
    looks.tell(skipped, quiet or rank > 0)
    scores = [name for name in keys.scores if name not in skipped]       # the same on all ranks
    rows = []
    for i, own in common.share(ids, keys.batch_size, rank, world, 'eval video', quiet):
        clips, others = store.windows_at(own), store.windows_at(donor[i:i + keys.batch_size])
        given, guesses, truth = imagine(model, clips, others, n_context, stride, keys.seed * 1_000_003 + i)
        kept = columns(given, guesses, truth, scores, store.meta.get('tiles'))
        rows.append((i, kept, looks.features(guesses, truth, scores)))
    rows = sorted(common.gather(rows, world), key=lambda row: row[0])
    frames = {name: np.concatenate([row[1][name] for row in rows]) for name in rows[0][1]}
    episode = store.locate(ids)[0]
    result = summary(frames, episode if keys.by == 'episode' else np.arange(len(ids)), keys.seed)
    of_sets, failed = looks.set_scores(scores, [row[2] for row in rows], keys.seed)
    looks.tell(failed, quiet or rank > 0)
    result |= of_sets | {name + who: np.nan for name in skipped for who in predictors(frames)}
    result |= looks.facts(scores, weights, skipped | failed, *size[:2])
    result['n_episodes'] = len(set(episode.tolist()))
    told = {key: getattr(cfg, key) for key in ('sample_steps', 'sampling') if hasattr(cfg, key)}
    return common.plain(result | dict(n_clips=len(ids), n_context=n_context, horizon=horizon,
                                      batch_size=keys.batch_size, seed=keys.seed, by=keys.by) | told)


def imagine(model, clips, others, n_context, stride, seed):
    """
    clips and others: batches; others lend their actions only. -> in [0, 1]: the last context frame (B, 1, H,
    W, C), {suffix of the row's names: predicted frames (B, K, H, W, C)}, the true ones.
    """
    codec = getattr(model, 'codec', None)
    device = common.device_of(codec or model)
    truth = clips['video'].to(device)                        # (B, length, H, W, C) uint8
    own, wrong = (batch['action'].to(device).view(*truth.shape[:1], truth.shape[1] - 1, -1)
                  for batch in (clips, others))              # (B, length - 1, k*A)
    seen = clips[input_of(model.cfg)].to(device)             # truth, or its latents (B, length, C, h, w)
    context = {input_of(model.cfg): seen[:, :n_context], 'action': own[:, :n_context - 1]}
    future = torch.stack([own, wrong], 1)[:, :, n_context - 1:]                          # (B, 2, K, k*A)
    options = {'stride': stride, 'generator': torch.Generator(device).manual_seed(seed)}
    options = {name: value for name, value in options.items() if common.takes(model.rollout, name)}
    dream = model.rollout(context, future, **options)['video'] / 255                     # (B, 2, K, H, W, C)
    last, truth = truth[:, n_context - 1:n_context] / 255, truth[:, n_context:] / 255
    guesses = {'': dream[:, 0], '_copy': last.expand_as(truth), '_shuffled': dream[:, 1]}
    if codec:
        from vae import decode
        again = decode(codec, seen[:, n_context - 1:]) / 255
        guesses |= {'_ceiling': again[:, 1:], '_copy_codec': again[:, :1].expand_as(truth)}
    return last, guesses, truth


def columns(last, guesses, truth, scores, of_tiles=None):
    """
    What we keep of each predicted frame: {name: (B, K)}; `moving` is 1 where it differs from the last one
    given, `pixels` counts those that do, `square` sums their squared errors. scores: names, those of sets are
    left out; of_tiles: meta.json's `tiles`.
    """
    changed = (truth != last).any(-1)                        # (B, K, H, W)
    table = {'moving': changed.flatten(2).any(2), 'pixels': changed.flatten(2).sum(2)}
    for who, guess in guesses.items():
        table['mse' + who] = mse(guess, truth)
        table['square' + who] = ((guess - truth).square().mean(-1) * changed).flatten(2).sum(2)
    table |= looks.columns(guesses, truth, scores)
    if of_tiles:
        table |= tiles.columns(last, guesses, truth, of_tiles)
    return {name: column.double().cpu().numpy() for name, column in table.items()}


def predictors(frames):
    """Suffixes of the rows that `columns` kept; the first is the model's own, ''."""
    return [name.removeprefix('mse') for name in frames if name.startswith('mse')]


def pooled(frames, who, clips, steps=slice(None)):
    """dB of the squared error, pooled over the moving frames among these clips and steps."""
    moving = frames['moving'][clips, steps]
    return decibel((frames['mse' + who][clips, steps] * moving).sum(), moving.sum())


def pooled_pixels(frames, who, clips, steps=slice(None)):
    """The same over the moving pixels."""
    return decibel(frames['square' + who][clips, steps].sum(), frames['pixels'][clips, steps].sum())


def decibel(error, count):
    """PSNR of a sum of `count` squared errors; nan without any."""
    return -10 * np.log10(max(error / count, 1e-8)) if count else np.nan


def statistics(frames, clips):
    """{name: number} over these clips."""
    result, rows = {}, predictors(frames)
    for who in rows:
        for name in looks.FRAME_SCORES:
            if name in frames:                               # it was asked for, and could be computed
                result[name + who] = frames[name + who][clips].mean()
        result['psnr_moving' + who] = pooled(frames, who, clips)
        result['psnr_moving_pixels' + who] = pooled_pixels(frames, who, clips)
        if 'tiles_changed' in frames:
            result |= tiles.scores(frames, who, clips)
    for who in rows[1:]:
        result['gain_over' + who] = result['psnr_moving'] - result['psnr_moving' + who]
        result['gain_pixels_over' + who] = (result['psnr_moving_pixels']
                                            - result['psnr_moving_pixels' + who])
    return result


def summary(frames, group, seed):
    """
    frames: what `columns` gives, {name: (clips, K)}; group (clips,): what is drawn together by the bootstrap.
    -> numbers, intervals, curves
    """
    every = np.arange(len(group))
    result = statistics(frames, every)

    def numbers(clips):
        return np.array(list(statistics(frames, clips).values()))
    low, high = bootstrap(every, group, numbers, seed=seed)
    for i, name in enumerate(list(result)):
        result[name + '_ci'] = [low[i], high[i]]
    steps = range(frames['moving'].shape[1])
    curve = {who.strip('_') or 'model': [pooled(frames, who, every, slice(h, h + 1)) for h in steps]
             for who in predictors(frames)}
    curve['moving'] = [frames['moving'][:, h].mean() for h in steps]
    if 'tiles_changed' in frames:
        each = [{name: x for who in predictors(frames)
                 for name, x in tiles.scores(frames, who, every, slice(h, h + 1)).items()} for h in steps]
        curve |= {name: [scores[name] for scores in each] for name in each[0]}
    return result | dict(curve=curve, n_moving=int(frames['moving'].sum()))


def show(result):
    """psnr_moving of the predictors, in dB, and what the model gains over the others; other scores."""
    print(f'PSNR of the frames that move, dB, and its 95 % interval over {result["by"]}s', file=sys.stderr)
    rows = {title: f'psnr_moving{who}' for title, who in SUFFIXES.items()}
    rows |= {f'gain over {who}': f'gain_over_{who}' for who in ('copy', 'shuffled', 'ceiling')}
    rows = {title: key for title, key in rows.items() if key in result}
    for title, key in rows.items():
        cells = [result[key], *result[key + '_ci']]
        value, low, high = ('-' if x is None else f'{x:.2f}' for x in cells)
        print(f'{title:>20} {value:>7} ({low} to {high})', file=sys.stderr)
    looks.show(result, SUFFIXES)
    if 'tile_agent' in result:
        print('share of frames with the agent where it should be, per step, model/shuffled:', file=sys.stderr)
        pairs = zip(result['curve']['tile_agent'], result['curve']['tile_agent_shuffled'])
        print('  '.join(f'{own:.2f}/{other:.2f}' for own, other in pairs), file=sys.stderr)
