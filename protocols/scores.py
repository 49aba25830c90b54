"""
Errors of predicted states -> the numbers that protocols/dynamics.py reports and shows; its docstring says
what each means. An error is prediction minus truth, (clips, K, S) of K predicted frames, in data units.
"""
import sys

import numpy as np

from metrics import bootstrap, spearman
from protocols.common import minus_best


def rms(x):
    return np.sqrt((x ** 2).mean())


def own_rms(error, dims):
    """error (..., S) -> (...), over these dims."""
    return np.sqrt((error[..., dims] ** 2).mean(-1))


def horizon_table(error, groups, horizons):
    """error (clips, K, S) -> {name: number}"""
    table = {}
    for name, group in groups.items():
        own = own_rms(error, group['dims'])                          # (clips, K)
        for h in horizons:
            at_h = own[:, h - 1]
            table[f'rmse_{name}_h{h}'] = rms(at_h)
            table[f'median_{name}_h{h}'] = np.median(at_h)
            table[f'p95_{name}_h{h}'] = np.quantile(at_h, 0.95)
    angles = [d for group in groups.values() if group['unit'] == 'rad' for d in group['dims']]
    ran_away = ~(np.abs(error[:, :, angles]) <= 0.5).all((1, 2))     # nan too
    return table | {'diverged': ran_away.mean() if angles else np.nan}


def horizon_intervals(errors, others, groups, horizons, episode, seed):
    """Of the model's RMSEs; then how far RMSEs and medians are from those of the best rivals."""
    names = [(name, h) for name in groups for h in horizons]
    own = {who: np.stack([own_rms(errors[who][:, h - 1], groups[name]['dims']) for name, h in names], -1)
           for who in ('model', *others)}                            # (clips, names) each
    square = {who: x ** 2 for who, x in own.items()}
    low, high = bootstrap(square['model'], episode, lambda s: np.sqrt(s.mean(0)), seed=seed)
    result = {f'rmse_{name}_h{h}_ci': [low[i], high[i]] for i, (name, h) in enumerate(names)}

    def rmse(who, clips):
        return np.sqrt(square[who][clips].mean(0))

    def median(who, clips):
        return np.median(own[who][clips], 0)
    result |= minus_best(rmse, others, [f'{name}_h{h}' for name, h in names], episode, seed)
    return result | minus_best(median, others, [f'median_{name}_h{h}' for name, h in names], episode, seed)


def one_step_table(square, sigma, groups):
    """square (S,): mean squared error of the next state."""
    table = {'one_step_sigma': (square / sigma ** 2).mean(), 'one_step_mse': square.mean()}
    return table | {f'one_step_mse_{name}': square[group['dims']].mean() for name, group in groups.items()}


def one_step_intervals(sums, counts, others, sigma, groups, seed):
    """
    sums {who: (episodes, S)} and counts (episodes,): squared errors. Episodes are drawn, with all their
    frames.
    """
    def score(who, drawn):
        square = sums[who][drawn].sum(0) / counts[drawn].sum()
        return np.array(list(one_step_table(square, sigma, groups).values()))
    names, every = list(one_step_table(sigma, sigma, groups)), np.arange(len(counts))
    low, high = bootstrap(every, every, lambda drawn: score('model', drawn), seed=seed)
    result = {f'{name}_ci': [low[i], high[i]] for i, name in enumerate(names)}
    return result | minus_best(score, others, names, every, seed)


def on_clips(errors, episode):
    """The same from the first frames of the clips. errors {name: (clips, S)}, episode (clips,)."""
    _, place, counts = np.unique(episode, return_inverse=True, return_counts=True)
    sums = {}
    for name, error in errors.items():
        sums[name] = np.zeros((len(counts), error.shape[1]))
        np.add.at(sums[name], place, error ** 2)
    return sums, counts


def ensemble(error, extras, sigma, groups, horizons, cfg):
    """What only an ensemble has: does its disagreement know its error, and how good is a member alone?"""
    result = {}
    if 'disagreement' in extras and getattr(cfg, 'members', 2) > 1:
        for h in horizons:
            size = np.sqrt(((error[:, h - 1] / sigma) ** 2).mean(-1))
            result[f'spearman_h{h}'] = spearman(extras['disagreement'][:, h - 1], size)
    if 'each' in extras and extras['each'].shape[1] > 1:
        for name, group in groups.items():
            own = own_rms(extras['each'], group['dims'])             # (clips, E, K)
            for h in horizons:
                members = [rms(member[:, h - 1]) for member in own.transpose(1, 0, 2)]
                result[f'rmse_{name}_h{h}_single'] = np.mean(members)
                result[f'rmse_{name}_h{h}_members'] = members
    return result


def cached(errors, groups, horizons, cfg):
    """
    How far reused keys and values lead away from the exact window. distance_h<n> mixes the units of all
    groups.
    """
    h = max(horizons)
    apart = errors['chunked'][:, h - 1] - errors['model'][:, h - 1]
    table = {'chunk': min(cfg.chunk, cfg.history), f'distance_h{h}': rms(apart)}
    return table | {f'distance_{name}_h{h}': rms(apart[:, group['dims']]) for name, group in groups.items()}


# ---- for people ----

def show(result):
    """The first group's errors, model and rivals side by side, and how sure we are of the difference."""
    group, unit = next(iter(result['units'].items()))
    horizons = result['horizons']
    rows = {'model': result} | ({'model, cached': result['chunked']} if 'chunked' in result else {})
    width = max(map(len, [*rows, *result['baselines']])) + 1

    def line(title, cells):
        print(f'{title:>{width}}' + ''.join(f'{cell:>21}' for cell in cells), file=sys.stderr)

    def number(x, digits=4):
        return '-' if x is None else f'{x:.{digits}g}'               # None: not a number
    print(f'RMSE of {group} [{unit}] n frames ahead (median of the windows); share of windows that ran away',
          file=sys.stderr)
    line('n =', [*horizons, 'away'])
    for name, row in (rows | result['baselines']).items():
        keys = [f'{group}_h{h}' for h in horizons]
        cells = [f'{number(row[f"rmse_{key}"])} ({number(row[f"median_{key}"], 2)})' for key in keys]
        line(name, [*cells, number(row['diverged'])])
    print('RMSE of the model minus that of the best other row, 95 % interval over episodes:', file=sys.stderr)
    for h in horizons:
        key = f'{group}_h{h}'
        low, high = (number(x, 2) for x in result[f'minus_best_{key}_ci'])
        print(f'{h:>{width}}  {number(result[f"minus_best_{key}"], 2)} ({low} to {high}) against '
              f'{result[f"best_{key}"]}', file=sys.stderr)
