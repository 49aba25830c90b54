"""
How far what a policy wants is from what the demonstrators did, on recorded observations: no simulator needed.

    train_action_mse_error      on a fixed batch of training windows, in squared units of the action
    val_action_rmse             on windows of the val split, the root of it
    hold_rmse                   there, of a robot that is told to stay where it is

Only the actions that would be carried out count, and only real ones, not what pads the end of an episode. A
smoke signal: a policy that drifts off has small errors here.
"""
import os

import numpy as np
import torch

from contract import edges
from data.loader import Store, read_meta
from protocols import common

TRAIN, VAL, BATCH = 64, 512, 64           # windows


def errors(model, folder, seed=0):
    """
    {name: number}. Nothing where there is no such folder (a policy may have travelled without its data), no
    val split in it, or where actions are no targets for the state.
    """
    M, device = common.file_of(model), common.device_of(model)
    windows = M.windows(model.cfg)
    if not folder or not os.path.exists(os.path.join(folder, 'meta.json')):
        return {}
    meta = read_meta(folder)
    q_index = meta['facts'].get('q_index')
    if 'state' not in windows or q_index is None or 'val/state.npy' not in meta['files']:
        return {}
    found = {}
    for split, n in ('train', TRAIN), ('val', VAL):
        store = Store(folder, split, windows | {'action': range(model.cfg.n_action)}, **edges(M, model.cfg))
        ids = common.draw(store, n, np.random.default_rng(seed))
        ours, hold = [], []
        for i in range(0, len(ids), BATCH):
            batch = {key: x.to(device) for key, x in store.windows_at(ids[i:i + BATCH]).items()}
            generators = [torch.Generator().manual_seed(int(number)) for number in ids[i:i + BATCH]]
            wanted = model.act(batch, generators=generators)
            stay = batch['state'][:, -1:, q_index].expand_as(wanted)
            for guess, rows in (wanted, ours), (stay, hold):
                rows.append((guess - batch['action']).square()[batch['mask']].double().cpu())
        found[split] = [torch.cat(rows).mean().item() for rows in (ours, hold)]
    return {'train_action_mse_error': found['train'][0], 'val_action_rmse': found['val'][0] ** 0.5,
            'hold_rmse': found['val'][1] ** 0.5}
