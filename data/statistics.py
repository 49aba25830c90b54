"""
Statistics of the training split, by which models normalise; data/writer.py keeps them in meta.json.

Padding is no data and never enters. Sums are in float64: float32 loses digits over millions of rows.
"""
import sys

import numpy as np


def statistics(x, binary=None):
    """x (N, D) -> {mean, std, min, max, q01, q99}: D floats each. Columns `binary` keep mean 0, std 1."""
    x = x.astype(np.float64)
    s = {k: getattr(x, k)(0) for k in ('mean', 'std', 'min', 'max')}
    s['q01'], s['q99'] = np.quantile(x, [0.01, 0.99], axis=0)
    s['std'][s['min'] == s['max']] = 1     # else a constant would become noise times 1e16
    if binary is not None:
        s['mean'][binary], s['std'][binary] = 0, 1
    return {k: v.tolist() for k, v in s.items()}


def differences(state, action, spans, q_index, padded):
    """What robots are modelled by, within episodes: s' - s, a - a_prev, a - q (q: the states a commands)."""
    state, action = state.astype(np.float64), action.astype(np.float64)
    row = np.arange(len(state))
    first = np.isin(row, spans[:, 0])                  # no row before
    last = np.isin(row, spans[:, 1] - 1)               # no row after
    real = ~(last & padded)                            # the action is no padding
    d = {'delta_state': np.diff(state, axis=0)[~last[:-1]],
         'delta_prev': np.diff(action, axis=0)[(~first & real)[1:]]}
    if q_index is not None:
        d['delta_action'] = (action - state[:, q_index])[real]
    return {key: x for key, x in d.items() if len(x)}


def all_statistics(folder, like, q_index, binary, padded):
    """Statistics of the split in `folder`: of tables of floats, and of how states and actions change."""
    stats, spans = {}, np.load(folder / 'episodes.npy')
    for key, x in like.items():
        if x.ndim == 1 and x.dtype.kind == 'f':
            rows = np.load(folder / f'{key}.npy')
            if key in padded:
                rows = np.delete(rows, spans[:, 1] - 1, axis=0)
            if len(rows) == 0:
                sys.exit(f'no {key} of the train split is real: its episodes have one frame; want longer')
            stats[key] = statistics(rows, binary.get(key))
    if {'state', 'action'} <= like.keys():
        state, action = (np.load(folder / f'{key}.npy') for key in ('state', 'action'))
        for key, x in differences(state, action, spans, q_index, 'action' in padded).items():
            stats[key] = statistics(x)
    return stats
