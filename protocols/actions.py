"""
A policy beside recordings, for data without a simulator: does it want what the demonstrators did? It looks
at a frame of the val split; what it wants is compared with the n_action actions that were recorded from there
on; then it looks again: closed loop, but that the robot goes where it went. Long chunks leave few looks, so
an episode is passed more than once, from its first frame and from others on, with a look in about every
`stride` frames, all passes together. None where training begins no chunk (drop_n_last_frames).

    l1_sigma            mean |wanted - recorded|, in std of the action in the train split; entries that never
                        change there are left out
    rmse_<group>        in the unit of the group. Groups are those of meta.json, of the states that actions
                        command (q_index); without that, or where one group holds them all, `action`
    *_ci                95 % interval over episodes
    minus_best_<name>   this number of the model minus that of the best rival, best_<name>; *_ci paired
    curve               l1_sigma of the first action after a look, of the second, ...
    baselines           the same numbers of hold, mean, ridge and last_action, see recorded.py; the last knows
                        what no policy sees, so it is no rival in minus_best
    misled              the same numbers of the model itself, with the same noise: `wrong_sentence`, where it
                        reads one of several, and `blind`, where it sees; see recorded.py. Who does not listen
                        scores there exactly as before
    <name>_minus_model_l1_sigma     what that costs; *_ci paired

A smoke signal: a policy that drifts off has small errors here, and one that does the same in another way has
large ones.
"""
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from contract import edges
from data.loader import Store, read_meta
from metrics import bootstrap
from protocols import common
from protocols.recorded import TOLD, misled_by, n_action, players, replay

HINT = ''
EDGES = True
QUICK = {'misled': False}     # while it trains
MISLED = {'wrong_sentence': 'told another sentence', 'blind': 'shown pictures of another moment'}


@dataclass
class Keys:
    episodes: int = 64            # of the val split, drawn by seed; 0 = all
    stride: int = 10              # frames from look to look, all passes together; 1 = a look at every frame
    at_once: int = 16             # passes in one batch
    misled: bool = True           # also under a wrong sentence, and other pictures: up to thrice the time
    seed: int = 42                # of the episodes, of what is random in acting, of the bootstrap


def windows(cfg, keys, M):
    """What the policy sees, the action before, those that it gives. Refuses keys that make no sense."""
    common.at_least('actions', keys, episodes=0, stride=1, at_once=1, seed=0)
    if not M.PAD:
        sys.exit(f'actions protocol: {M.__name__}.PAD = False, but a policy is asked from the first frame of '
                 'an episode to the last; set PAD = True')
    return M.windows(cfg) | {'action': range(-1, n_action(M, cfg))}


# ---- the measure ----

@torch.no_grad()
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Batches of passes are dealt out to the ranks; the result does not depend on how many there are."""
    M, cfg, meta = common.file_of(model), model.cfg, read_meta(folder)
    frames = windows(cfg, keys, M)
    if 'val/state.npy' in meta['files']:                     # rivals see it, whatever the policy looks at
        frames = {'state': range(1)} | frames
    store = Store(folder, 'val', frames, hint=HINT, **edges(M, cfg))
    common.fits(cfg, store)
    sigma, groups = sigma_of(meta, folder), groups_of(meta)
    others = players(store, tuple(edges(M, cfg).items()))
    changes = misled_by(store, edges(M, cfg), keys.seed) if keys.misled else {}
    passes, rows = passes_of(store, keys), []
    for i, own in common.share(passes, keys.at_once, rank, world, 'eval actions', quiet):
        rows.append((i, *compared(model, changes, others, store, own, sigma, groups, keys.seed)))
    rows = sorted(common.gather(rows, world), key=lambda row: row[0])    # sums in one order
    sums = {who: np.concatenate([row[1][who] for row in rows]) for who in rows[0][1]}
    counts = np.concatenate([row[2] for row in rows])                    # (passes, n)

    with np.errstate(invalid='ignore'):                      # no episode may be as long as a chunk
        curve = {who: (x[..., 0].sum(0) / counts.sum(0)).tolist() for who, x in sums.items()}
    names = ['l1_sigma', *(f'rmse_{name}' for name in groups)]
    tables, result = tabled({who: x.sum(1) for who, x in sums.items()}, counts.sum(1), names, passes[:, 0],
                            keys.seed, changes)
    if changes:
        result['misled'] = {who: tables.pop(who) for who in changes}
    told = dict(units={name: group['unit'] for name, group in groups.items()}, n_action=counts.shape[1],
                n_episodes=len(np.unique(passes[:, 0])), n_targets=int(counts.sum()), seed=keys.seed)
    return common.plain(tables.pop('model') | result | {'curve': curve, 'baselines': tables} | told)


def passes_of(store, keys):
    """(passes, 2): the episode, and the frame of the first look. At least one look in each."""
    n = store.windows['action'].stop
    many = max(1, round(n / keys.stride))
    there = np.flatnonzero(store.per_episode)
    episodes = there[common.draw(there, keys.episodes or len(there), np.random.default_rng(keys.seed))]
    return np.array([(e, i * n // many) for e in episodes for i in range(many)
                     if i * n // many < store.per_episode[e]])


def compared(model, changes, others, store, passes, sigma, groups, seed):
    """
    -> {who: (passes, n, names)}: |error| in sigma and squared errors of each group, means over entries,
    summed over looks; and (passes, n), how many recorded actions they are of. changes: ways to mislead it.
    """
    shape = len(passes), store.windows['action'].stop
    sums = {who: np.zeros((*shape, 1 + len(groups))) for who in ('model', *changes, *others)}
    counts, moves = np.zeros(shape), np.isfinite(sigma)
    for led, change in ({'model': None} | changes).items():          # each anew, for it may remember
        for _, live, batch, wanted in replay(model, store, *passes.T, seed, change=change):
            truth, real = batch['action'][:, 1:].double(), batch['mask'][:, 1:].numpy()
            if wanted.shape != truth.shape:
                raise ValueError(f'{common.file_of(model).__name__}.Model.act gave {tuple(wanted.shape)}, '
                                 f'want {tuple(truth.shape)}: episodes, actions, their entries')
            guesses = {led: wanted}
            if led == 'model':
                counts[live] += real
                guesses |= {who: act(batch) for who, act in others.items()}
            for who, guess in guesses.items():
                error = (guess.double() - truth).numpy()
                parts = [np.abs(error / sigma)[..., moves].mean(-1)]
                parts += [np.square(error[..., group['dims']]).mean(-1) for group in groups.values()]
                sums[who][live] += np.where(real[..., None], np.stack(parts, -1), 0)
    return sums, counts


def tabled(sums, counts, names, episode, seed, changes=()):
    """
    {who: (passes, names)}, (passes,) -> {who: {name: number or interval}}; the model minus the best, and each
    of the changes minus the model.
    """
    def score(who, drawn):
        mean = sums[who][drawn].sum(0) / counts[drawn].sum()
        return np.concatenate([mean[:1], np.sqrt(mean[1:])])
    tables, every = {}, np.arange(len(counts))
    for who in sums:
        low, high = bootstrap(every, episode, partial(score, who), seed=seed)
        tables[who] = dict(zip(names, score(who, every)))
        tables[who] |= {f'{name}_ci': [low[i], high[i]] for i, name in enumerate(names)}
    rivals = [who for who in sums if who not in ('model', TOLD, *changes)]
    result = common.minus_best(score, rivals, names, episode, seed)
    for who in changes:
        def cost(drawn, who=who):
            return score(who, drawn)[0] - score('model', drawn)[0]
        result[f'{who}_minus_model_l1_sigma'] = cost(every)
        result[f'{who}_minus_model_l1_sigma_ci'] = [*bootstrap(every, episode, cost, seed=seed)]
    return tables, result


def sigma_of(meta, folder):
    """Std of each entry of the action in the train split; infinite where it does not change there."""
    stats = meta['stats'].get('action', {name: [] for name in ('std', 'min', 'max')})
    std, low, high = (np.array(stats[name], float) for name in ('std', 'min', 'max'))
    moves = (high > low) & (std > 1e-6 * np.maximum(np.abs(low), np.abs(high)))
    if not moves.any():
        sys.exit(f'actions protocol: no action in {folder}/train is a number that changes; --protocol=loss '
                 'judges without')
    return np.where(moves, std, np.inf)


def groups_of(meta):
    """{name: {dims, unit}} of the entries of the action."""
    A, q, units = meta['facts']['action_dim'], meta['facts'].get('q_index') or [], meta.get('units')
    found = {name: {'dims': [i for i, entry in enumerate(q) if entry in group['dims']], 'unit': group['unit']}
             for name, group in (meta.get('groups') or {}).items()}
    found = {name: group for name, group in found.items() if group['dims']}
    rest = sorted(set(range(A)) - {i for group in found.values() for i in group['dims']})
    if len(found) + bool(rest) < 2:
        told = units.get('action', '') if isinstance(units, dict) else ''
        return {'action': {'dims': list(range(A)), 'unit': next((g['unit'] for g in found.values()), told)}}
    return found | ({'other': {'dims': rest, 'unit': ''}} if rest else {})


# ---- for people ----

def show(result):
    """The model and its rivals side by side, and how sure we are of the difference."""
    units, n = result['units'], result['n_action']
    steps = sorted({1, (n + 1) // 2, n})

    def number(x, digits=4):
        return '-' if x is None else f'{x:.{digits}g}'           # None: not a number

    def line(who, l1, ci, *cells):
        print(f'{who:>14}{l1:>10}  {ci:<15}' + ''.join(f'{cell:>14}' for cell in cells), file=sys.stderr)
    print(f'{result["n_episodes"]} episodes, {n} actions after each look: mean |error| in std of the action, '
          'its interval\nover episodes; RMSE of each group; mean |error| of single actions after a look',
          file=sys.stderr)
    line('', 'L1 [std]', '95 % interval', *(f'{name} [{unit}]' for name, unit in units.items()),
         *(f'{step}. [std]' for step in steps))
    one = result['n_episodes'] == 1                      # without an interval over episodes
    misled = result.get('misled', {})
    for who, row in ({'model': result} | misled | result['baselines']).items():
        line(who + '*' * (who == TOLD), number(row['l1_sigma']),
             'one episode' if one else ' to '.join(number(x, 3) for x in row['l1_sigma_ci']),
             *(number(row[f'rmse_{name}']) for name in units),
             *(number(result['curve'][who][step - 1]) for step in steps))
    low, high = (number(x, 2) for x in result['minus_best_l1_sigma_ci'])
    sure = '' if one else f' ({low} to {high})'
    print(f'* knows the action before, which no policy sees. L1 of the model minus that of '
          f'{result["best_l1_sigma"]}: {number(result["minus_best_l1_sigma"], 2)}{sure}', file=sys.stderr)
    for who in misled:
        cost, (low, high) = (result[f'{who}_minus_model_l1_sigma{end}'] for end in ('', '_ci'))
        sure = '' if one else f' ({number(low, 2)} to {number(high, 2)})'
        print(f'{who}, {MISLED[who]}: L1 minus that of the model {number(cost, 2)}{sure}', file=sys.stderr)
