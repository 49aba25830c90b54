"""
Judge a checkpoint by the evaluator its model understands: one JSON line on stdout, progress on stderr.

    python eval.py --ckpt=out/minihack_wm_cpu                 video: the frames right after the context
    python eval.py --ckpt=out/minihack_wm_cpu --horizon=8     a longer dream; `curve` has every step
    python eval.py --ckpt=out/arx5_cpu --png=arm.png          dynamics: open loop, in radians, beside simple predictors
    python eval.py --ckpt=out/arx5_cpu --protocol=plan        drive the simulated arm by planning in the model

Read the function of your protocol. Scores mean little alone, so the same clips are also scored for predictors that
anybody could have written: repeat the last frame, obey the command, least squares. A video model is also scored under
the actions of another clip, with the same noise: if it does not beat that, it has not learned what actions do.
"""
import functools
import importlib
import inspect
import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import cem
import checkpoint
from configurator import configure
from data.loader import Store
from metrics import bootstrap, psnr, spearman, ssim

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
ema = True                    # averaged weights where the checkpoint has them
protocol = ''                 # video | dynamics | plan; '' = the model's first evaluator
n_clips = 0                   # fixed windows of the val split, drawn by seed; 0: video 512, dynamics 256, plan 16
n_context = 0                 # true frames given; 0 = the model's n_context (video), history (dynamics)
horizon = 0                   # frames to predict; 0 = num_frames - n_context (video), 50 (plan)
sample_steps = 0              # video: denoising steps per frame; 0 = the model's
sampling = ''                 # video: scheduling matrix; '' = the model's
lags = (1, 4)                 # dynamics: histories of the least-squares predictors, frames
every_frame = True            # dynamics: one-step errors on every val frame; False = on the clips, for large models
png = ''                      # dynamics: also draw one clip, true and predicted, into this file (extra: plot)
knots = 2                     # plan: commands that are planned, interpolated in between
n_samples = 128               # plan: futures per round
n_iters = 12                  # plan: rounds
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
    rows = np.concatenate([r for _, r in sorted(gather(rows, world), key=lambda r: r[0])])
    return summary(rows, store.locate(ids)[0], seed) | dict(
        n_clips=len(ids), n_context=n_context, horizon=horizon, sample_steps=sample_steps or cfg.sample_steps,
        sampling=sampling or cfg.sampling, batch_size=batch_size, seed=seed)


def overview(result):
    """`dynamics` for people, on stderr: the first group's RMSE, model and predictors side by side."""
    group, unit = next(iter(result['units'].items()))
    print(f'RMSE of {group} [{unit}] n frames ahead; share of windows that ran away', file=sys.stderr)
    print(f'{"n =":>18}' + ''.join(f'{h:>10}' for h in HORIZONS), file=sys.stderr)
    for name, row in ({'model': result, 'model, cached': result['chunked']} | result['baselines']).items():
        cells = [row[f'rmse_{group}_h{h}'] for h in HORIZONS] + [row['diverged']]                # None: not a number
        print(f'{name:>18}' + ''.join(f'{"-" if x is None else f"{x:.4g}":>10}' for x in cells), file=sys.stderr)


def gather(rows, world):
    """The lists of all ranks as one."""
    if world == 1: return rows
    parts = [None] * world
    dist.all_gather_object(parts, rows)
    return sum(parts, [])


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
    return x if isinstance(x, int | str) else float(x) if np.isfinite(x) else None


HORIZONS = 1, 10, 50, 100     # frames after the context at which `dynamics` reports


def dynamics(model, folder, n_clips=256, n_context=0, lags=(1, 4), every_frame=True, png='', batch_size=64, seed=42,
             rank=0, world=1, quiet=True):
    """
    Roll a robot's state forward, open loop under the recorded actions, after n_context true frames; in physical units.
      rmse_<group>_h<n>   n frames after the context, over windows and the group's dims; *_ci over episodes
      median_*, p95_*     of the windows' own rms errors: an RMSE may be a few windows that ran away
      diverged            share of windows in which something measured in rad was ever off by more than 0.5
      one_step_sigma      MSE of the next state in std of the state, mean over dims; one_step_mse(_<group>): raw units;
                          on all val frames from the third of an episode on, or (every_frame=False) on the clips only
      own_loss            the training loss per member (one pass, no noise) on val windows, in the unit of its target
      spearman_h50        rank correlation of the ensemble's disagreement with its error
      chunked             the model with cached keys and values, and its rms distance to the exact sliding window
      baselines           the same for predictors without a network, see `simple` and `least_squares`
    (A model with action_repr = delta_prev spends one of the true frames on the action before it.)
    """
    if png:
        from sample import curves, figure
        if not png.endswith('.png'): sys.exit(f'--png={png}: want a name that ends in .png')
        figure()                                                     # no matplotlib: say so before the work
    n_context = n_context or model.cfg.history
    assert n_context >= 2, f'n_context = {n_context}: velocities and past commands take two frames, set --n_context=2'
    assert min(lags, default=1) >= 1, f'lags = {lags}: least squares want at least one frame each'
    K = max(HORIZONS)
    store = Store(folder, 'val', {'state': range(n_context + K), 'action': range(n_context + K - 1)})
    fits(model.cfg, store)
    meta, sigma, device = store.meta, model.state_std.double().cpu().numpy(), model.state_std.device
    groups = meta.get('groups') or {'state': {'dims': list(range(model.cfg.state_dim)), 'unit': ''}}
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(len(store), min(n_clips, len(store)), replace=False))
    others = simple(meta) | {f'least_squares_{n}': least_squares(folder, n) for n in lags}

    rows, starts = [], range(0, len(ids), batch_size)
    for i in tqdm(starts[rank::world], desc='eval dynamics', disable=quiet or rank > 0, leave=False):
        context, action, truth = cut(store, ids[i:i + batch_size], n_context, device)
        dream = model.rollout(context, action, chunk=1)
        guesses = {'model': dream['state'][:, 0], 'chunked': model.rollout(context, action)['state'][:, 0]}
        guesses |= {name: f(context, action) for name, f in others.items()}
        errors = {name: (guess.double() - truth).cpu().numpy() for name, guess in guesses.items()}
        rows.append((i, errors, dream['disagreement'][:, 0, 50 - 1].cpu().numpy()))
    rows = sorted(gather(rows, world), key=lambda row: row[0])
    errors = {name: np.concatenate([row[1][name] for row in rows]) for name in rows[0][1]}       # (clips, K, S) each
    tables = {name: horizon_table(e, groups) for name, e in errors.items()}
    if every_frame:
        judged = others | {'model': lambda c, a: model.rollout(c, a, chunk=1)['state'][:, 0]}
        squares, n = one_step(judged, folder, n_context, device, 4 * batch_size, rank, world, quiet)
    else:
        squares, n = {name: (e[:, 0] ** 2).mean(0) for name, e in errors.items() if name != 'chunked'}, len(ids)
    for name, square in squares.items(): tables[name] |= one_step_table(square, sigma, groups)

    result, chunked, episode = tables.pop('model'), tables.pop('chunked'), store.locate(ids)[0]
    chunked |= {'chunk': min(model.cfg.chunk, model.cfg.history),
                'distance_h100': rms(errors['chunked'][:, -1] - errors['model'][:, -1])}
    names = [(name, h) for name in groups for h in HORIZONS]
    square = np.stack([(errors['model'][:, h - 1, groups[name]['dims']] ** 2).mean(-1) for name, h in names], -1)
    low, high = bootstrap(square, episode, lambda s: np.sqrt(s.mean(0)), seed=seed)              # (clips, names)
    result |= {f'rmse_{name}_h{h}_ci': [low[i], high[i]] for i, (name, h) in enumerate(names)}
    result['own_loss'] = own_loss(model, folder, 4 * n_clips, batch_size, device, rng)
    if model.cfg.members > 1:
        doubt = np.concatenate([row[2] for row in rows])
        result['spearman_h50'] = spearman(doubt, np.sqrt(((errors['model'][:, 50 - 1] / sigma) ** 2).mean(-1)))
    if png and rank == 0:
        curves(png, model, *cut(store, ids[:1], n_context, device), meta)
    return plain(result | dict(baselines=tables, chunked=chunked, units={k: g['unit'] for k, g in groups.items()},
                               n_clips=len(ids), n_targets=n, n_episodes=len(set(episode.tolist())),
                               n_context=n_context, seed=seed))


def fits(cfg, store):
    for key in ('state_dim', 'action_dim'):
        if store.meta['facts'].get(key) != getattr(cfg, key):
            sys.exit(f'{store.folder} has {key} = {store.meta["facts"].get(key)}, the model was trained with '
                     f'{getattr(cfg, key)}: they do not belong together')


def cut(store, ids, n_context, device):
    """Windows -> context, action (B, 1, K, A), true states after the context (B, K, S) float64."""
    clips = {key: value.to(device) for key, value in finite(store, ids).items()}
    context = {'state': clips['state'][:, :n_context], 'action': clips['action'][:, :n_context - 1]}
    return context, clips['action'][:, None, n_context - 1:], clips['state'][:, n_context:].double()


def finite(store, ids):
    """The windows, or one line about a number in them that is none."""
    clips = store.windows_at(ids)
    for key in ('state', 'action'):
        bad = ~torch.isfinite(clips[key].flatten(1)).all(1)
        if bad.any():
            episode, row = (int(x[bad.nonzero()[0, 0]]) for x in store.locate(ids))
            sys.exit(f'{store.folder}/{store.split}/{key}.npy: a value soon after row {row}, in episode {episode}, is '
                     'not finite; make the data again')
    return clips


def own_loss(model, folder, n, batch_size, device, rng):
    store = Store(folder, 'val', sys.modules[type(model).__module__].windows(model.cfg))
    ids = np.sort(rng.choice(len(store), min(n, len(store)), replace=False))
    batches, total = [ids[i:i + batch_size] for i in range(0, len(ids), batch_size)], 0.0
    for batch in batches:
        with torch.no_grad(): out = model({key: value.to(device) for key, value in store.windows_at(batch).items()})
        total += out['loss_member'].item() * len(batch)
    return total / len(ids)


def rms(x): return np.sqrt((x ** 2).mean())


def horizon_table(error, groups):
    """error (clips, 100, S) -> {name_h: number}"""
    table = {}
    for name, group in groups.items():
        own = np.sqrt((error[:, :, group['dims']] ** 2).mean(-1))    # (clips, 100)
        for h in HORIZONS:
            table |= {f'rmse_{name}_h{h}': rms(own[:, h - 1]), f'median_{name}_h{h}': np.median(own[:, h - 1]),
                      f'p95_{name}_h{h}': np.quantile(own[:, h - 1], 0.95)}
    angles = [d for group in groups.values() if group['unit'] == 'rad' for d in group['dims']]
    ran_away = ~(np.abs(error[:, :, angles]) <= 0.5).all((1, 2))     # nan too
    return table | {'diverged': ran_away.mean() if angles else np.nan}


def one_step_table(square, sigma, groups):
    """square (S,): mean squared error of the next state."""
    return {'one_step_sigma': (square / sigma ** 2).mean(), 'one_step_mse': square.mean()} | \
        {f'one_step_mse_{name}': square[group['dims']].mean() for name, group in groups.items()}


def one_step(predictors, folder, n_context, device, batch_size, rank, world, quiet):
    """{name: predictor} -> {name: MSE of the next state (S,)}, of how many. Contexts are short where episodes begin."""
    jobs = []
    for n in range(2, n_context + 1):
        store = Store(folder, 'val', {'state': range(n + 1), 'action': range(n)})
        ids = np.arange(len(store))
        if n < n_context: ids = ids[np.unique(store.locate(ids)[0], return_index=True)[1]]       # first of each episode
        jobs += [(store, n, ids[i:i + batch_size]) for i in range(0, len(ids), batch_size)]
    sums, count = dict.fromkeys(predictors, 0.0), 0
    for store, n, ids in tqdm(jobs[rank::world], desc='one step', disable=quiet or rank > 0, leave=False):
        context, action, truth = cut(store, ids, n, device)
        for name, f in predictors.items():
            sums[name] = sums[name] + (f(context, action).double() - truth)[:, 0].square().sum(0).cpu().numpy()
        count += len(ids)
    parts = gather([(sums, count)], world)
    count = sum(part[1] for part in parts)
    return {name: sum(part[0][name] for part in parts) / count for name in predictors}, count


def simple(meta):
    """Predictors that need no data: (context, action (B, 1, K, A)) -> (B, K, S)."""
    groups, q, fps = meta.get('groups', {}), meta.get('q_index'), meta['fps']
    rates = [(g['dims'], groups[g['rate_of']]['dims']) for g in groups.values() if 'rate_of' in g]  # velocity, position

    def persistence(context, action):
        return context['state'][:, -1:].repeat(1, action.shape[2], 1)

    def constant_velocity(context, action):
        last = context['state'][:, -1:]
        step = last - context['state'][:, -2:-1]                     # where no velocity is measured
        for velocity, position in rates: step[..., position], step[..., velocity] = last[..., velocity] / fps, 0
        return last + step * torch.arange(1, action.shape[2] + 1, device=step.device)[:, None]

    def obey(context, commands):                                     # commands (B, K+1, A), from the one before on
        state = context['state'][:, -1:].repeat(1, commands.shape[1] - 1, 1)
        state[..., q] = commands[:, 1:]
        for velocity, position in rates:
            for v, p in zip(velocity, position):                     # what nobody commands keeps its velocity
                if p in q: state[..., v] = commands.diff(dim=1)[..., q.index(p)] * fps
        return state

    def servo(context, action):                                      # q' = a: perfect obedience, no model
        return obey(context, torch.cat([context['action'][:, -1:], action[:, 0]], 1))

    def hold(context, action):                                       # the last command stays
        return obey(context, context['action'][:, -1:].repeat(1, action.shape[2] + 1, 1))

    found = {'persistence': persistence, 'constant_velocity': constant_velocity}
    return found | {'hold': hold, 'servo': servo} if q else found


@functools.cache                                                     # train.py asks every time it evaluates
def least_squares(folder, lags):
    """s' = W [s, a of the last `lags` frames; 1], fitted to the train split, rolled out on its own predictions."""
    store, R = Store(folder, 'train', {'state': range(lags + 1), 'action': range(lags)}), None
    for ids in np.array_split(np.arange(len(store)), len(store) // 50_000 + 1):
        rows = {key: value.double() for key, value in finite(store, ids).items()}
        x = [rows['state'][:, :-1].flatten(1), rows['action'].flatten(1), torch.ones(len(ids), 1).double()]
        table = torch.cat([*x, rows['state'][:, -1]], 1)
        R = torch.linalg.qr(table if R is None else torch.cat([R, table]), mode='r')[1]  # R'R: sum of row'row so far
    S = rows['state'].shape[-1]
    W = torch.linalg.lstsq(R[:, :-S], R[:, -S:], driver='gelsd').solution                    # (features, S)

    def predict(context, action):
        pad = max(0, lags - context['state'].shape[1])               # a short context: its first frame was always so
        state, past = (torch.cat([x[:, :1].repeat(1, pad, 1), x], 1).double() for x in
                       (context['state'], context['action']))
        acts, weights = torch.cat([past, action[:, 0]], 1), W.to(state.device)
        for _ in range(action.shape[2]):
            n = state.shape[1]
            x = [state[:, n - lags:].flatten(1), acts[:, n - lags:n].flatten(1), torch.ones_like(state[:, :1, 0])]
            state = torch.cat([state, (torch.cat(x, 1) @ weights)[:, None]], 1)
        return state[:, -action.shape[2]:]
    return predict


def plan(model, folder, n_clips=16, horizon=50, knots=2, n_samples=128, n_iters=12, seed=42, rank=0, world=1,
         quiet=True):
    """
    Drive the simulated robot to a pose by cross-entropy planning (cem.py) through the model. Start: a val window; goal:
    where its positions were `horizon` frames later, so it can be reached. CEM draws `knots` commands, in between they
    are interpolated, and no step is larger than any in the data. The plan is carried out blindly, in the simulator.
    All goals are planned at once: members x n_clips x n_samples windows in memory.
      success         share of goals with all positions in rad within 0.05 at the end; error: mean of the largest
      simulator       the same planner with the simulator in the model's place: no model error left
      hold, straight  no planning: the last command stays | the goal itself is the command
    """
    n_context = model.cfg.history
    store = Store(folder, 'val', {'state': range(n_context + horizon), 'action': range(n_context + horizon - 1)})
    fits(model.cfg, store)
    meta = store.meta
    if not {'env', 'q_index', 'groups'} <= meta.keys():
        sys.exit(f'plan protocol: {folder}/meta.json names no simulator (env, q_index, groups); plan on arx5_default')
    assert knots >= 1, f'knots = {knots}: a plan has at least one'
    robot = importlib.import_module(meta['env']).Simulator(contact=meta.get('contact', False))
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(len(store), min(n_clips, len(store)), replace=False))
    q = meta['q_index']
    judged = [i for i, d in enumerate(q) if any(d in g['dims'] and g['unit'] == 'rad' for g in meta['groups'].values())]
    assert judged, f'{folder}/meta.json: no commanded entry is measured in rad'
    context, _, truth = cut(store, ids, n_context, model.state_std.device)
    goal, last = truth[:, -1, q].float(), context['action'][:, -1]                               # (B, A) each
    low, high = (torch.tensor(meta['stats']['action'][k], device=goal.device) for k in ('min', 'max'))
    slow, fast = (torch.tensor(meta['stats']['delta_prev'][k], device=goal.device) for k in ('min', 'max'))

    def commands(knot):                                              # (B, N, knots, A) -> (B, N, horizon, A)
        now, all_ = last[:, None].expand(knot.shape[0], knot.shape[1], -1), []
        path = torch.cat([now[:, :, None], knot], 2)
        for t in (torch.arange(horizon, device=knot.device) + 1) / horizon * knot.shape[2]:
            i = min(int(t.ceil()) - 1, knot.shape[2] - 1)
            wanted = path[:, :, i] + (t - i) * (path[:, :, i + 1] - path[:, :, i])
            now = now + (wanted - now).clamp(slow, fast)
            all_.append(now)
        return torch.stack(all_, 2)

    def cost(future): return (future['state'][:, :, -1, q] - goal[:, None])[..., judged].square().mean(-1)

    def drive(knot):                                                 # knot (B, knots, A) -> largest error (B,)
        final = robot.rollout(context, commands(knot[:, None]))['state'][:, 0, -1, q].to(goal.device)
        return (final - goal)[:, judged].abs().amax(-1).cpu().numpy()

    start, result = last[:, None].expand(-1, knots, -1), {}
    errors = {'hold': drive(start), 'straight': drive(goal[:, None].expand(-1, knots, -1))}
    for name, world_model in tqdm({'': model, 'simulator': robot}.items(), desc='plan', disable=quiet or rank > 0):
        began, generator = time.time(), torch.Generator(goal.device).manual_seed(seed)
        knot = cem.plan(lambda c, k, w=world_model: w.rollout(c, commands(k)), context, cost, knots, low, high,
                        n_samples=n_samples, n_iters=n_iters, n_elites=max(2, n_samples // 10), init=start,
                        generator=generator)
        result[f'planning_seconds_{name}'.rstrip('_')], errors[name] = time.time() - began, drive(knot)
    for name, error in errors.items():
        result[f'success_{name}'.rstrip('_')] = (error < 0.05).mean()
        result[f'error_{name}'.rstrip('_')] = error.mean()
    return plain(result | dict(n_clips=len(ids), horizon=horizon, knots=knots, n_samples=n_samples, n_iters=n_iters,
                               seed=seed))


EVALUATORS = {'video': video, 'dynamics': dynamics, 'plan': plan}

if __name__ == '__main__':
    config = configure(globals())
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    if n_clips == 1 or min(n_clips, n_context, horizon, seed, batch_size - 1) < 0:
        sys.exit(f'{n_clips=}, {n_context=}, {horizon=}, {seed=}, {batch_size=}: want at least 2 clips (0 = default), '
                 '1 per forward, nothing negative')
    model, meta = checkpoint.load(ckpt, ema, which, device)
    known = sys.modules[meta['model']].EVAL
    if protocol and protocol not in known:
        sys.exit(f'--protocol={protocol}: {meta["model"]} is judged by {", ".join(known)}')
    started, name = time.time(), protocol or known[0]
    folder = os.path.join(meta['config']['data_dir'], meta['config']['dataset'])
    if out:
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)      # complain before the work
    takes = {who: inspect.signature(f).parameters.keys() for who, f in EVALUATORS.items()}
    asked = configure.changed.keys() & set().union(*takes.values())
    if asked - takes[name]:
        sys.exit(f'--{min(asked - takes[name])}: the {name} protocol has no such key')
    try:                                                 # keys at their default are the function's own business
        result = EVALUATORS[name](model, folder, quiet=False, **{key: config[key] for key in asked})
    except AssertionError as error:                      # an impossible key; the assert says which and why
        sys.exit(f'{name} protocol: {error}')
    data_sha = checkpoint.sha256(os.path.join(folder, 'meta.json'))
    if data_sha != meta['data_sha']: print(f'note: {folder} was made again since the training', file=sys.stderr)
    source = dict(protocol=name, checkpoint=ckpt, step=meta['step'], ema=ema, dataset=meta['config']['dataset'],
                  data_sha=data_sha[:12])
    if name == 'dynamics': overview(result)
    if png: print(f'wrote {png}', file=sys.stderr)
    line = json.dumps(source | result | dict(seconds=round(time.time() - started, 1)))
    print(line)
    if out:
        checkpoint.write_text(out, line + '\n')
