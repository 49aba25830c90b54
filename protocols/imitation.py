"""
How far what a policy wants is from what the demonstrators did, on recorded observations: no simulator needed.

    train_action_mse_error      on a fixed batch of training windows, in squared units of the action
    val_action_rmse             on windows of the val split, the root of it
    hold_rmse                   there, of a robot that is told to stay where it is
    nearest_rmse, linear_rmse   there, of the players below

Only the actions that would be carried out count, and only real ones, not what pads the end of an episode. A
smoke signal: a policy that drifts off has small errors here.

Where the data hold `env_state`, the demonstrations also make two players without a network, and
protocols/env.py lets them play:

    nearest     does what a demonstrator did when all that was seen was most like what is seen now
    linear      ridge regression from what is seen to the actions, these relative to where the robot is

They see the numbers of `env_state` and `state`, even where the model must make do with a picture.
"""
import functools
import os

import numpy as np
import torch

from contract import edges
from data.loader import Store, read_meta
from protocols import common
from protocols.least_squares import solve

TRAIN, VAL, BATCH = 64, 512, 64           # windows
NUMBERS = 'env_state', 'state'            # what players see
PENALTY = 1e-4  # of the ridge: points of a rigid thing depend on each other, and differ by rounding only


def commanded(model, folder):
    """
    Which entries of the state the actions are targets for; None where they are none, or where there is no
    such folder: a policy may have travelled without its data.
    """
    if not folder or not os.path.exists(os.path.join(folder, 'meta.json')):
        return None
    meta = read_meta(folder)
    return meta['facts'].get('q_index') if 'state' in common.file_of(model).windows(model.cfg) else None


def errors(model, folder, seed=0):
    """{name: number}; nothing where `commanded` finds nothing, or without a val split."""
    M, device, q_index = common.file_of(model), common.device_of(model), commanded(model, folder)
    if q_index is None or 'val/state.npy' not in read_meta(folder)['files']:
        return {}
    windows, found, others = M.windows(model.cfg), {}, players(model, folder)
    windows = windows | {'action': range(model.cfg.n_action)}
    if others:
        windows = windows | dict.fromkeys(NUMBERS, windows['state'])
    for split, n in ('train', TRAIN), ('val', VAL):
        store = Store(folder, split, windows, **edges(M, model.cfg))
        ids = common.draw(store, n, np.random.default_rng(seed))
        squares = {}
        for i in range(0, len(ids), BATCH):
            batch = {key: x.to(device) for key, x in store.windows_at(ids[i:i + BATCH]).items()}
            generators = [torch.Generator().manual_seed(int(number)) for number in ids[i:i + BATCH]]
            wanted = {'model': model.act(batch, generators=generators),
                      'hold': batch['state'][:, -1:, q_index].expand_as(batch['action'])}
            wanted |= {who: act(batch).to(device) for who, act in others.items()}
            for who, guess in wanted.items():
                error = (guess - batch['action']).square()[batch['mask']]
                squares.setdefault(who, []).append(error.double().cpu())
        found[split] = {who: torch.cat(rows).mean().item() for who, rows in squares.items()}
    result = {'train_action_mse_error': found['train']['model'],
              'val_action_rmse': found['val'].pop('model') ** 0.5}
    return result | {f'{who}_rmse': square ** 0.5 for who, square in found['val'].items()}


def players(model, folder):
    """{who: act(obs) -> (B, n_action, A)}, fitted to the train split; {} where the data hold no numbers."""
    q_index = commanded(model, folder)
    if q_index is None or 'train/env_state.npy' not in read_meta(folder)['files']:
        return {}
    M, cfg = common.file_of(model), model.cfg
    seen = M.windows(cfg)['state']
    return fitted(folder, tuple(q_index), seen, cfg.n_action, tuple(edges(M, cfg).items()))


@functools.cache                                         # train.py asks every time it evaluates
def fitted(folder, q_index, seen, n_action, edges):
    windows = dict.fromkeys(NUMBERS, seen) | {'action': range(n_action)}
    store = Store(folder, 'train', windows, **dict(edges))
    shown = common.finite(store, np.arange(len(store)))

    def numbers(obs):
        return torch.cat([obs[key].double().cpu().flatten(1) for key in NUMBERS], 1)

    def here(obs):
        return obs['state'][:, -1:, list(q_index)].double().cpu()              # (B, 1, A)

    def with_one(x):
        return torch.cat([x, torch.ones_like(x[:, :1])], 1)
    known, target = numbers(shown), (shown['action'] - here(shown)).flatten(1)
    rows = torch.cat([with_one(known), target], 1)
    weights = solve(rows.T @ rows, known.shape[1], target.shape[1], PENALTY)

    def nearest(obs):
        return shown['action'][torch.cdist(numbers(obs), known).argmin(1)]

    def linear(obs):
        moves = with_one(numbers(obs)) @ weights
        return (moves.view(len(moves), n_action, -1) + here(obs)).float()
    return {'nearest': nearest, 'linear': linear}
