"""
Can one act with dreams? The goal is a picture; cem.py looks for moves whose dream ends like it; then they are
made in the live world. What counts is where one stands at the END of a budget of moves, by the world's own
state, which no planner below sees unless its name says so.

    pixel, scales           the planner in the model, with one of two costs, see `price`
    other                   the same with the goal of another task: moving well, to the wrong place
    simulator_pixel, ..     the same planner and costs with the world itself in the model's place
    simulator_distance      the same with the world's true distance as its cost
    all others              no planner, the world's own `rivals`: made blindly, but some see true places

    success_<row>           the share that is there at the end, with its Wilson interval, and of the nearer
                            and farther half of the tasks; error_<row>: the median of the world's own error
    gain_over_<row>         success of `scales` minus that of the row, task by task, and its interval
    seconds_per_plan_<row>  of the whole row, the world's own time and pictures included, over its searches

All rows play the same tasks. A world says how often one may look: Wall's plans are carried out blindly; in
NetHack one looks again after each move, and whatever the row, it stops when the true picture is the goal's.
Wall's `near` tasks are windows of which some overlap, so its intervals are a bit too narrow. A model of
latents compares latents, of the world's pictures resized and encoded as its data were; where the world takes
its place, pixels are compared. The worlds are Tasks in data/<name>/env.py; how to write one stands in Wall's.
"""
import sys
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import cem
from data.latents import resize
from data.loader import Store, simulator
from metrics import bootstrap, wilson
from protocols import common
from vae import decode, encode

BLURS = 0.0, 1.5, 3.0, 6.0           # px, std; 0 = none
COSTS = 'pixel', 'scales'
FRAMES = 'last', 'cheapest'
NOT_GIVEN = {'n_keep': -1, 'n_proposals': -1}         # of other keys 0 or ''
AT_ONCE = 64                         # windows that a CPU imagines together: their numbers fit its caches


def windows(cfg):
    """What the model reads of the data to be judged on: one move. The tasks cut their own windows."""
    return {cfg.input: range(0, cfg.frame_skip + 1, cfg.frame_skip), 'action': range(cfg.frame_skip)}


def filled(keys, own):
    """The keys, with the world's own in place of those that are not given; refuses what cannot be."""
    own = {'n_elites': max(2, (keys.n_samples or own['n_samples']) // 10)} | own
    own = {key: value for key, value in own.items()
           if getattr(keys, key) == NOT_GIVEN.get(key, type(value)())}
    keys = replace(keys, **own)
    if keys.n_samples < 2:
        sys.exit(f'plan protocol: n_samples = {keys.n_samples}: must be at least 2')
    for key, low, upto, less in (('n_elites', 2, 'n_samples', 0), ('n_keep', 0, 'n_elites', 0),
                                 ('n_proposals', 0, 'n_samples', 1)):
        value, high = getattr(keys, key), getattr(keys, upto) - less
        if key in own:                                               # what nobody asked for is no mistake
            keys = replace(keys, **{key: min(value, high)})
        elif not low <= value <= high:
            sys.exit(f'plan protocol: {key} = {value}: must lie in {low}..{high}')
    return keys


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, quiet=True):
    """Every rank does all the work. keys: those of plan.py."""
    cfg = model.cfg
    if keys.vae and cfg.input != 'latent':
        sys.exit(f'plan protocol: vae = {keys.vae}: this model dreams pixels, which need no codec')
    store = Store(folder, 'val', windows(cfg))
    common.fits(cfg, store)
    live = simulator(store.meta)
    if not hasattr(live, 'Tasks'):
        sys.exit(f'plan protocol: {folder}/meta.json names no world (env) that has Tasks; plan on '
                 'wall_pixels or minihack_boulders, made anew if they are older, and without --size')
    keys = filled(keys, live.Tasks.OWN)
    if keys.frame not in FRAMES:
        sys.exit(f'plan protocol: frame = {keys.frame!r}: choose one of {", ".join(FRAMES)}')
    tasks = live.Tasks(store, keys.family, keys.n_clips, keys.horizon, cfg.frame_skip, keys.seed,
                       common.device_of(model))
    onehot = tasks.low is None
    if onehot != (store.meta.get('action_kind') == 'onehot'):
        sys.exit(f'plan protocol: {folder}/meta.json: action_kind = {store.meta.get("action_kind")!r}, but '
                 f'the world {store.meta["env"]} has {"one-hot actions" if onehot else "a box"}; make the '
                 'data anew')
    if onehot and (keys.n_keep or keys.n_proposals):
        sys.exit('plan protocol: n_keep, n_proposals: this world has one-hot actions, whose search '
                 '(cem.choose) knows neither; do not give them')
    eyes = Eyes(model, store, keys.vae, tasks)
    imagined = {'': dreams(model, keys), 'simulator_': tasks.simulator.rollout}
    made, seconds, film = dict(tasks.rivals), {}, None
    todo = [(who + cost, who, cost) for who in imagined for cost in COSTS]
    todo += [('other', '', 'scales'), ('simulator_distance', 'simulator_', 'distance')]
    for name, who, cost in tqdm(todo, desc='plan', disable=quiet or rank > 0 or None, leave=False):
        wanted = tasks.goal.roll(1, 0) if name == 'other' else tasks.goal
        looking = Eyes() if who else eyes
        made[name], seconds[name], dreamed = act(tasks, imagined[who], cost, wanted, keys, looking)
        if name == 'scales':
            film = dreamed
    ends = {name: tasks.after(moves) for name, moves in made.items()}
    if keys.gif and rank == 0:
        from draw.goals import draw  # here, because only pictures need imageio
        draw(keys.gif, tasks, made['scales'], film, ends['scales'])
    result, won = {}, {}
    for name, end in ends.items():
        error = tasks.error(end)
        won[name] = tasks.success(error)
        result |= rates(name, won[name], tasks.away)
        result[f'error_{name}'] = float(np.median(error))
    result |= gains(won, keys.seed)
    result |= {f'seconds_per_plan_{name}': value for name, value in seconds.items()}
    return common.plain(result | dict(
        family=tasks.family, n_clips=len(tasks.away), horizon=keys.horizon, looks=tasks.looks,
        frame=keys.frame, n_samples=keys.n_samples, n_iters=keys.n_iters, n_elites=keys.n_elites,
        n_keep=keys.n_keep, n_proposals=keys.n_proposals, seed=keys.seed))


class Eyes:
    """
    What a planner sees of the world's pictures (..., H, W, C) in 0..255: these, or their latents (..., h, w,
    C), channels last, because costs take them for pictures.
    """

    def __init__(self, model=None, store=None, vae='', tasks=None):
        self.codec, self.unit = None, 1.0                            # unit: places per pixel of the world
        if model and model.cfg.input == 'latent':
            self.codec = common.codec_of(store.meta, store.folder, vae, common.device_of(model))
            self.size, self.world = store.meta['latent']['size'], tasks.goal.shape[1:3]
            self.unit = model.cfg.height / self.world[0]

    def see(self, video):
        if self.codec is None:
            return video
        frames = video.round().byte().cpu().numpy()
        frames = resize(frames.reshape(-1, *frames.shape[-3:]), self.size)
        z = encode(self.codec, torch.from_numpy(frames)).to(video.device).movedim(-3, -1)
        return z.view(*video.shape[:-3], *z.shape[1:])

    def show(self, seen):
        """Back into pictures of the world's size."""
        if self.codec is None:
            return seen
        frames = decode(self.codec, seen.movedim(-1, -3)).movedim(-1, -3)
        small = F.interpolate(frames.flatten(0, -4), self.world, mode='area')
        return small.movedim(-3, -1).view(*seen.shape[:-3], *self.world, -1)


def dreams(model, keys):
    """rollout(context, actions) of the model, which of the context sees pictures and moves alone."""
    latent = model.cfg.input == 'latent'

    def rollout(context, action):
        noise = torch.Generator(action.device).manual_seed(keys.seed)
        video = context['video'].movedim(-1, -3) if latent else context['video']
        seen = {model.cfg.input: video, 'action': context['action']}
        chunk = keys.futures_at_once
        if not chunk and action.device.type == 'cpu':
            chunk = max(1, AT_ONCE // len(action))
        made = model.rollout(seen, action, chunk=chunk, generator=noise)[model.cfg.input]
        return {'video': made.movedim(-3, -1) if latent else made}
    return rollout


def act(tasks, rollout, cost, wanted, keys, eyes):
    """
    Look, plan, make the first `pace` moves of the plan, look again; who stands at the goal is done.
    -> the commands that were made (B, T, A), T <= looks * pace, 0 after the end; seconds per plan; what they
    were imagined to look like (B, T, H, W, C).
    """
    began, plans, context, wanted = time.time(), 0, tasks.start, eyes.see(wanted)
    made, film = tasks.nothing, []
    for look in range(tasks.looks):
        todo = (context['video'][:, -1] != tasks.goal).flatten(1).any(1)             # (B,)
        if not todo.any():
            break
        plans += int(todo.sum())
        seen = {key: value[todo] for key, value in context.items()}
        seen['video'] = eyes.see(seen['video'])
        asked = price(cost, keys.frame, seen, wanted[todo], tasks.where[todo], tasks.distance, eyes.unit)
        plan = search(rollout, tasks, seen, asked, keys, keys.seed + look)[:, :tasks.pace]
        step = plan.new_zeros(len(todo), *plan.shape[1:])
        step[todo] = plan
        made = torch.cat([made, step], 1)
        if keys.gif:
            shown = tasks.goal[:, None].repeat(1, tasks.pace, 1, 1, 1)
            shown[todo] = eyes.show(rollout(seen, tasks.commands(plan[:, None]))['video'][:, 0])
            film.append(shown)
        context = tasks.after(made)
    return made, (time.time() - began) / max(1, plans), torch.cat(film, 1) if film else None


def search(rollout, tasks, context, cost, keys, seed):
    """Commands (B, K, A) that should lead to the goals."""
    generator = torch.Generator(tasks.goal.device).manual_seed(seed)
    how = dict(n_samples=keys.n_samples, n_iters=keys.n_iters, n_elites=keys.n_elites, generator=generator)

    def imagine(context, plan):
        return rollout(context, tasks.commands(plan))
    if tasks.low is None:                                            # one-hot
        return cem.choose(imagine, context, cost, keys.horizon, tasks.nothing.shape[2], **how)
    given = None
    if keys.n_proposals:
        given = tasks.proposals(keys.n_proposals)                    # (P, K, A)
        given = given.expand(len(context['video']), *given.shape)
    return cem.plan(imagine, context, cost, keys.horizon, tasks.low, tasks.high, n_keep=keys.n_keep,
                    proposals=given, **how)


def price(cost, frame, start, goal, where=None, distance=None, unit=1.0):
    """
    -> cost(future) (B, N) of futures (B, N, K, ...): how much their last frame, or the frame of the path that
    does so most, looks like the goal (B, H, W, C). start: the context of the futures.
    pixel       mean squared error. It is constant once two dots no longer overlap, so it gives no direction
    scales      the same of blurred pictures, divided by that of the start, summed over BLURS; unit: how many
                places of these pictures a pixel of the world is
    distance    the world's own, of its true state, to the true state `where`: for a simulator
    """
    first, terms = start['video'][:, -1].float(), []
    for sigma in BLURS if cost == 'scales' else BLURS[:1]:
        target = blur(goal, sigma * unit)
        at_start = torch.ones(1)
        if cost == 'scales':
            at_start = error(blur(first, sigma * unit), target).clamp(min=1e-6)
        terms.append((sigma * unit, target[:, None, None], at_start.to(goal.device)[:, None, None]))

    def near(future):
        if frame == 'last':
            future = {key: value[:, :, -1:] for key, value in future.items()}
        if cost == 'distance':
            far = distance(future['state'], where)                   # (B, N, K)
        else:
            far = sum(error(blur(future['video'], sigma), target) / at_start
                      for sigma, target, at_start in terms)
        return far.amin(-1)
    return near


def error(a, b):
    """Mean squared error of pictures (..., H, W, C)."""
    return (a - b).square().mean((-1, -2, -3))


def blur(frames, sigma):
    """Gaussian blur of (..., H, W, C), first along H, then along W; beyond the edge is 0."""
    if not sigma:
        return frames
    reach = int(3 * sigma + 0.5)
    bell = torch.exp(-torch.arange(-reach, reach + 1) ** 2 / (2 * sigma ** 2)).sum()
    H, W, C = frames.shape[-3:]

    def along(length):                                               # as a matrix: faster than conv2d here
        away = torch.arange(length)[:, None] - torch.arange(length)
        weights = torch.exp(-away ** 2 / (2 * sigma ** 2)) / bell
        return torch.where(away.abs() <= reach, weights, 0).to(frames.device)
    x = along(H) @ frames.flatten(-2)                                # (..., H, W C)
    return (along(W) @ x.unflatten(-1, (W, C)).flatten(0, -3)).view(frames.shape)


def moves_to(model, meta, start, goal, seed, horizon, n_samples, n_iters):
    """
    For play.py: actions (lists of A numbers) whose dream ends like the goal (1, H, W, C), or passes it. A
    simpler search than that of `evaluate`: no elites are kept, nothing recorded is proposed.
    """
    k, onehot = model.cfg.frame_skip, meta['action_kind'] == 'onehot'
    cost = price('scales', 'cheapest' if onehot else 'last', start, goal)
    how = dict(n_samples=n_samples, n_iters=n_iters, n_elites=max(2, n_samples // 8),
               generator=torch.Generator(goal.device).manual_seed(seed))

    def rollout(context, action):
        noise = torch.Generator(goal.device).manual_seed(seed)
        return model.rollout(context, action.repeat(1, 1, 1, k), generator=noise)
    if onehot:
        plan = cem.choose(rollout, start, cost, horizon, model.cfg.action_dim, **how)
    else:
        far = np.abs(list(meta['play_keys'].values())).max(0)
        plan = cem.plan(rollout, start, cost, horizon, -far, far, **how)
    return plan[0].tolist()


def rates(name, won, away):
    """Success of a row with its interval; and of the tasks that start nearer and farther than the median."""
    near = away <= np.median(away)
    return {f'success_{name}': won.mean(), f'success_{name}_ci': wilson(int(won.sum()), len(won)),
            f'success_{name}_near_half': won[near].mean(),
            f'success_{name}_far_half': won[~near].mean() if (~near).any() else None}


def gains(won, seed):
    """How much more often `scales` is there than each other row, over the same tasks. won {row: (B,)}"""
    found = {}
    for name, other in won.items():
        if name != 'scales':
            more = won['scales'].astype(float) - other
            low, high = bootstrap(more, np.arange(len(more)), lambda x: x.mean(0), seed=seed)
            found |= {f'gain_over_{name}': more.mean(), f'gain_over_{name}_ci': [low, high]}
    return found


def show(result):
    print(f'{result["family"]}: {result["n_clips"]} goals given as a picture; share reached at the end, its '
          '95 % interval, nearer and farther half, median error', file=sys.stderr)
    for key in result:
        if key.startswith('success_') and f'{key}_ci' in result:
            name, (low, high) = key.removeprefix('success_'), result[f'{key}_ci']
            halves = result[f'{key}_near_half'], result[f'{key}_far_half']
            halves = ' '.join('     -' if half is None else f'{half:>6.0%}' for half in halves)
            print(f'{name:>20} {result[key]:>6.0%}  {low:>4.0%} to {high:>4.0%} {halves} '
                  f'{result["error_" + name]:>8.3g}', file=sys.stderr)
