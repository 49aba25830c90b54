"""
Does a dynamics model know what commands do? Roll a robot's state forward, open loop under the recorded
actions, after n_context true frames; errors in physical units. <n> below is each of `horizons`, <group> each
group of meta.json.

    rmse_<group>_h<n>       n frames after the context, over windows and the group's dims; *_ci over episodes
    median_*, p95_*         of the windows' own rms errors: an RMSE may be a few windows that ran away
    rmse_*_single           an ensemble's members alone: the mean of their RMSEs; *_members has each
    diverged                share of windows in which something measured in rad was ever off by more than 0.5
    one_step_sigma          MSE of the next state in std of the state, mean over dims
    one_step_mse(_<group>)  the same in raw units; on all val frames from the third of an episode on, or
                            (every_frame=False) on the clips only; *_ci over episodes
    minus_best_<name>       this number of the model (RMSE where no other word stands before the group) minus
                            that of the best rival, best_<name>; *_ci paired, over episodes
    own_loss                the training loss per member, without noise, on val windows, in the unit of its
                            target
    spearman_h<n>           rank correlation of the ensemble's disagreement with its error
    chunked                 the model with cached keys and values, and its rms distance to the exact sliding
                            window
    baselines               the same numbers of predictors without a network, see predictors.py

A model needs no more than rollout(context, action) -> {'state'}; what only an ensemble or only a cache has is
reported where it is there. (A model with action_repr = delta_prev spends one of the true frames on the action
before it.)
"""
import sys
from dataclasses import dataclass

import numpy as np
import torch

from data.loader import Store
from draw import states
from draw.common import check_out
from protocols import common, predictors, scores
from protocols.least_squares import PRODUCT_LAGS

HINT = 'horizons, n_context'
show = scores.show


@dataclass
class Keys:
    n_clips: int = 256            # fixed windows of the val split, drawn by seed
    n_context: int = 0            # true frames given; 0 = as many as a training window shows, but at least 4
    horizons: tuple = (1, 10, 50, 100)   # frames after the context at which errors are reported
    lags: tuple = (1, 4)          # histories of the rivals by least squares, frames; at most n_context
    products: bool = True         # one more rival: 4 frames and products of pairs, where q_index is known
    ridge: tuple = ()             # histories of the rivals with a penalty, such as 16; at most n_context
    every_frame: bool = True      # one-step errors on every val frame; False = on the clips, for large models
    png: str = ''                 # also draw one clip, true and predicted, into this file (extra: plot)
    batch_size: int = 64          # clips per forward
    seed: int = 42                # of clips and bootstrap


# ---- before the work ----

def context_frames(cfg, keys, M):
    """
    By default no fewer than the simplest rivals want: a model that reads one frame may ignore the others.
    """
    return keys.n_context or max(PRODUCT_LAGS, len(M.windows(cfg)['state']) - 1)


def windows(cfg, keys, M):
    """The frames of one clip; refuses keys that make no sense."""
    common.at_least('dynamics', keys, n_clips=1, n_context=0, horizons=1, lags=1, ridge=1, batch_size=1,
                    seed=0)
    n_context = context_frames(cfg, keys, M)
    if n_context < 2:
        sys.exit(f'dynamics protocol: n_context = {n_context}: velocities and past commands take two frames, '
                 'set --n_context=2')
    if not keys.horizons:
        sys.exit('dynamics protocol: horizons = (): name at least one, such as --horizons=1,10')
    frames = {'lags': max(keys.lags, default=0), 'ridge': max(keys.ridge, default=0),
              'products': PRODUCT_LAGS if keys.products else 0}
    for name, wanted in frames.items():
        if wanted > n_context:                               # edge padding would make fools of them
            sys.exit(f'dynamics protocol: {name} = {getattr(keys, name)}: least squares over {wanted} '
                     f'frames, but n_context = {n_context}; set --n_context={wanted}, or smaller lags and '
                     '--products=False')
    K = max(keys.horizons)
    return {'state': range(n_context + K), 'action': range(n_context + K - 1)}


# ---- the measure ----

@torch.no_grad()
@np.errstate(over='ignore', invalid='ignore')       # a rival that blows up is a result, too
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Batches are dealt out to the ranks; the result does not depend on how many there are."""
    M = common.file_of(model)
    store = Store(folder, 'val', windows(model.cfg, keys, M), hint=HINT)
    common.fits(model.cfg, store)
    meta, horizons = store.meta, sorted(set(keys.horizons))
    sigma = np.float32(meta['stats']['state']['std']).astype(float)  # rounded as in the buffers of models
    groups = meta.get('groups') or {'state': {'dims': list(range(len(sigma))), 'unit': ''}}
    rng, device = np.random.default_rng(keys.seed), common.device_of(model)
    n_context = context_frames(model.cfg, keys, M)
    ids = common.draw(store, keys.n_clips, rng)
    episode = store.locate(ids)[0]
    if keys.png and rank == 0:                               # first, so that nothing is lost if it fails
        check_out(keys.png, ('.png',), 'png')
        states.curves(keys.png, model, *common.cut(store, ids[:1], n_context, device), meta)

    others = predictors.rivals(folder, meta, keys.lags, keys.products, keys.ridge)
    errors, extras = roll_out(model, others, store, ids, n_context, keys, rank, world, quiet)
    tables = {who: scores.horizon_table(error, groups, horizons) for who, error in errors.items()}
    if keys.every_frame:
        judged = others | {'model': exact(model)}
        sums, counts = one_step(judged, store, n_context, device, 4 * keys.batch_size, rank, world, quiet)
    else:
        sums, counts = scores.on_clips({who: errors[who][:, 0] for who in ('model', *others)}, episode)
    for name in sums:
        tables[name] |= scores.one_step_table(sums[name].sum(0) / counts.sum(), sigma, groups)

    result, chunked = tables.pop('model'), tables.pop('chunked', None)
    result |= scores.horizon_intervals(errors, list(others), groups, horizons, episode, keys.seed)
    result |= scores.one_step_intervals(sums, counts, list(others), sigma, groups, keys.seed)
    result |= scores.ensemble(errors['model'], extras, sigma, groups, horizons, model.cfg)
    result['own_loss'] = own_loss(model, M, folder, 4 * keys.n_clips, keys.batch_size, rng)
    if chunked:
        result['chunked'] = chunked | scores.cached(errors, groups, horizons, model.cfg)
    told = dict(units={name: group['unit'] for name, group in groups.items()}, n_clips=len(ids),
                n_targets=int(counts.sum()), n_episodes=len(set(episode.tolist())), n_context=n_context,
                horizons=horizons, seed=keys.seed)
    return common.plain(result | {'baselines': tables} | told)


def wishes(model, **options):
    """Those of the options that its rollout knows."""
    return {name: value for name, value in options.items() if common.takes(model.rollout, name)}


def exact(model):
    """The model as a predictor, without shortcuts: with chunk=1 its window slides by single frames."""
    options = wishes(model, chunk=1)
    return lambda context, action: model.rollout(context, action, **options)['state'][:, 0]


def roll_out(model, others, store, ids, n_context, keys, rank, world, quiet):
    """
    Everybody's errors on every clip -> {name: (clips, K, S)}, and where the model gives them {'disagreement':
    (clips, K), 'each': (clips, E, K, S)}, the errors of the members alone.
    """
    device, rows, options = common.device_of(model), [], wishes(model, chunk=1, each=True)
    for i, own in common.share(ids, keys.batch_size, rank, world, 'eval dynamics', quiet):
        context, action, truth = common.cut(store, own, n_context, device)
        dream = model.rollout(context, action, **options)
        guesses, extras = {'model': dream['state'][:, 0]}, {}
        if 'chunk' in options:
            guesses['chunked'] = model.rollout(context, action)['state'][:, 0]
        guesses |= {name: predict(context, action) for name, predict in others.items()}
        errors = {name: (guess.double() - truth).cpu().numpy() for name, guess in guesses.items()}
        if 'disagreement' in dream:
            extras['disagreement'] = dream['disagreement'][:, 0].cpu().numpy()
        if 'state_each' in dream:
            each = dream['state_each'][:, :, 0].transpose(0, 1).double()             # (B, E, K, S)
            extras['each'] = (each - truth[:, None]).cpu().numpy()
        rows.append((i, errors, extras))
    rows = sorted(common.gather(rows, world), key=lambda row: row[0])
    return tuple({name: np.concatenate([row[part][name] for row in rows]) for name in rows[0][part]}
                 for part in (1, 2))


def one_step(everybody, store, n_context, device, batch_size, rank, world, quiet):
    """
    {name: predictor} -> {name: squared errors of the next state, summed over each val episode (episodes, S)},
    targets per episode. Contexts are short where episodes begin.
    """
    jobs = []
    for n in range(2, n_context + 1):
        short = Store(store.folder, 'val', {'state': range(n + 1), 'action': range(n)}, hint=HINT)
        ids = np.arange(len(short))
        if n < n_context:                                            # the first window of each episode
            ids = ids[np.unique(short.locate(ids)[0], return_index=True)[1]]
        jobs += [(short, n, ids[i:i + batch_size]) for i in range(0, len(ids), batch_size)]
    E, S = len(store.episodes), store.meta['keys']['state']['shape'][0]
    sums, counts = {name: np.zeros((E, S)) for name in everybody}, np.zeros(E)
    for _, own in common.share(np.arange(len(jobs)), 1, rank, world, 'one step', quiet):
        short, n, ids = jobs[own[0]]
        context, action, truth = common.cut(short, ids, n, device)
        episode = short.locate(ids)[0]
        np.add.at(counts, episode, 1)
        for name, predict in everybody.items():
            error = (predict(context, action).double() - truth)[:, 0]
            np.add.at(sums[name], episode, error.square().cpu().numpy())
    parts = common.gather([(sums, counts)], world)
    counts = sum(part[1] for part in parts)
    there = counts > 0                                               # an episode of two frames has no target
    return {name: sum(part[0][name] for part in parts)[there] for name in everybody}, counts[there]


def own_loss(model, M, folder, n, batch_size, rng):
    store = Store(folder, 'val', M.windows(model.cfg), pad=getattr(M, 'PAD', False), hint=HINT)
    ids, total, device = common.draw(store, n, rng), 0.0, common.device_of(model)
    for i in range(0, len(ids), batch_size):
        own = ids[i:i + batch_size]
        out = model({key: value.to(device) for key, value in store.windows_at(own).items()})
        total += out.get('loss_per_member', out['loss']).item() * len(own)
    return total / len(ids)
