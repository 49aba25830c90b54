"""
The next state as a linear function of the last frames, fitted to the train split and rolled out on its own
predictions. Three of the rivals in predictors.py: plain, with products of pairs, with a penalty.
"""
import functools
import sys

import numpy as np
import torch

from data.loader import Store
from protocols.common import finite

PRODUCT_LAGS = 4                         # frames of the one with products
HELD_OUT = 5                             # every fifth train episode chooses the ridge
STRENGTHS = np.logspace(-8, 1, 19)       # of the ridge; features are in std
ROUNDING = 1e-12                         # a penalty that only keeps equal features apart


def features(state, action, lags, q_index=None):
    """
    state (B, n, S) and action (B, n, A) float64, n >= lags -> (B, lags*S + lags*A + 1), the last `lags`
    frames and a one; with q_index also the products of all pairs, squares too, of the S + A numbers (s, a -
    q) of the newest frame. For an arm that measures positions and velocities these are (q, v, a - q): what
    its forces are made of.
    """
    parts = [state[:, -lags:].flatten(1), action[:, -lags:].flatten(1), torch.ones_like(state[:, -1, :1])]
    if q_index is not None:
        now = state[:, -1]
        z = torch.cat([now, action[:, -1] - now[:, list(q_index)]], 1)
        i, j = torch.triu_indices(z.shape[1], z.shape[1])
        parts.append(z[:, i] * z[:, j])
    return torch.cat(parts, 1)


def gathered(store, ids, lags, q_index, add, total=None):
    """total = add(total, rows) over all rows [features, next state], some at a time."""
    chunk = 50_000 if q_index is None else 10_000
    for part in np.array_split(ids, len(ids) // chunk + 1):
        rows = {key: value.double() for key, value in finite(store, part).items()}
        x = features(rows['state'][:, :-1], rows['action'], lags, q_index)
        total = add(total, torch.cat([x, rows['state'][:, -1]], 1))
    return total


def train_windows(folder, lags):
    """-> store, ids of all windows, S, A"""
    store = Store(folder, 'train', {'state': range(lags + 1), 'action': range(lags)}, hint='lags, ridge')
    return store, np.arange(len(store)), *(store.meta['keys'][key]['shape'][0] for key in ('state', 'action'))


def triangle(R, rows):
    """
    R of the QR decomposition of all rows so far: R'R is the sum of row'row, and no digit is lost to squares.
    """
    return torch.linalg.qr(rows if R is None else torch.cat([R, rows]), mode='r')[1]


def gram(G, rows):
    """
    The sum of row'row itself: eight times faster, exact enough once features are in std, and easy to take
    apart.
    """
    return rows.T @ rows if G is None else G + rows.T @ rows


def fewer_lags(G, lags, n, S, A):
    """The part of a Gram matrix that belongs to the newest n of its lags, and the place of the ones in it."""
    states, actions, rest = np.split(np.arange(len(G)), [lags * S, lags * (S + A)])
    keep = np.concatenate([states[(lags - n) * S:], actions[(lags - n) * A:], rest])
    return G[np.ix_(keep, keep)], n * (S + A)


def solve(G, one, S, strength):
    """
    W (features, S) minimising mean |x W - y|^2 + strength |W|^2, the penalty over features in std and without
    their means, so that it treats all alike. G: Gram matrix of [x, y]; x[one] = 1; y (S,).
    """
    n = G[one, one]
    mean = G[one] / n
    C = G / n - mean[:, None] * mean                                 # covariances of [x, y]
    std = C.diagonal().clamp(min=0).sqrt()
    # a constant says nothing: its weight is to be 0
    std = torch.where(std > 1e-9 * mean.abs(), std, torch.inf)[:-S]
    penalty = strength * torch.eye(len(std), dtype=G.dtype)
    W = torch.linalg.solve(C[:-S, :-S] / (std[:, None] * std) + penalty, C[:-S, -S:] / std[:, None])
    W = W / std[:, None]
    W[one] = mean[-S:] - mean[:-S] @ W
    return W


def linear(weights, q_index=None):
    """
    {frames: (features, S)} -> predictor. As many frames are read as the largest of the weights that fit
    wants. Where even the smallest wants more than there are, the first frame is taken to have been there
    always.
    """
    fewest, most = min(weights), max(weights)

    def predict(context, action):
        pad = max(0, fewest - context['state'].shape[1])
        state, past = (torch.cat([x[:, :1].repeat(1, pad, 1), x], 1).double()
                       for x in (context['state'], context['action']))
        action = torch.cat([past, action[:, 0]], 1)
        first = state.shape[1]
        for n in range(first, action.shape[1] + 1):                  # frames known so far
            lags = min(n, most)
            x = features(state, action[:, :n], lags, q_index)
            state = torch.cat([state, (x @ weights[lags].to(x.device))[:, None]], 1)
        return state[:, first:]
    return predict


@functools.cache                                                     # train.py asks every time it evaluates
def least_squares(folder, lags):
    """Without products and penalty."""
    store, ids, S, _ = train_windows(folder, lags)
    R = gathered(store, ids, lags, None, triangle)
    return linear({lags: torch.linalg.lstsq(R[:, :-S], R[:, -S:], driver='gelsd').solution})


@functools.cache
def least_squares_products(folder, lags):
    """With the products of the newest frame; where an episode begins, fits of fewer lags do the work."""
    store, ids, S, A = train_windows(folder, lags)
    q_index = tuple(store.meta['q_index'])
    G = gathered(store, ids, lags, q_index, gram)
    weights = {n: solve(*fewer_lags(G, lags, n, S, A), S, ROUNDING) for n in range(1, lags + 1)}
    return linear(weights, q_index)


@functools.cache
def least_squares_ridge(folder, lags):
    """
    With a penalty; every number of frames has a fit and a strength of its own, also where an episode begins.
    """
    store, ids, S, A = train_windows(folder, lags)
    held_out = chosen(store.locate(ids)[0])
    if not held_out.any():
        sys.exit(f'ridge = {lags}: {folder}/train holds fewer than {HELD_OUT} episodes of {lags + 1} frames; '
                 'none can be held out to choose the penalty')
    inside, outside = (gathered(store, part, lags, None, gram) for part in (ids[~held_out], ids[held_out]))
    weights = {}
    for n in range(1, lags + 1):
        fit, one = fewer_lags(inside, lags, n, S, A)
        judge, _ = fewer_lags(outside, lags, n, S, A)
        weights[n] = solve(fit + judge, one, S, choose_strength(fit, judge, one, S))
    return linear(weights)


def chosen(episode):
    """episode (windows,) -> mask (windows,): those of every HELD_OUT-th episode."""
    return np.isin(episode, np.unique(episode)[HELD_OUT - 1::HELD_OUT])


def choose_strength(fit, judge, one, S):
    """
    The penalty under which what is fitted to `fit` errs least on `judge`, both Gram matrices, in std of s'.
    """
    n = judge[one, one]
    variance = judge.diagonal()[-S:] / n - (judge[one, -S:] / n).square()
    errors = []
    for strength in STRENGTHS:
        W = torch.cat([solve(fit, one, S, strength), -torch.eye(S, dtype=fit.dtype)])
        square = ((judge @ W) * W).sum(0) / n                        # mean of |x W - y|^2, each dim of y
        errors.append((square / variance.clamp(min=1e-30)).mean().item())
    return STRENGTHS[int(np.argmin(errors))]
