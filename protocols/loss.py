"""
What every model understands: the mean of each scalar that forward returns, in eval mode, over windows of the
val split. Noise is drawn from the seed and the place of the batch, so two checkpoints are compared under the
same draws. It judges models whose EVAL is empty, and others when asked; a loss alone says little about
behaviour.
"""
import sys
from dataclasses import dataclass

import numpy as np
import torch

from contract import edges
from data.loader import Store
from protocols import common

HINT = 'num_frames, history, frame_skip'
EDGES = True


@dataclass
class Keys:
    n_clips: int = 1024           # fixed windows of the val split, drawn by seed; 0 = all
    batch_size: int = 64          # windows per forward
    seed: int = 42                # of windows and noise


def windows(cfg, keys, M):
    """A training window; refuses keys that make no sense."""
    common.at_least('loss', keys, n_clips=0, batch_size=1, seed=0)
    return M.windows(cfg)


@torch.no_grad()
def evaluate(model, folder, keys, rank=0, world=1, quiet=True):
    """Batches are dealt out to the ranks; the result does not depend on how many there are."""
    M, device = common.file_of(model), common.device_of(model)
    store = Store(folder, 'val', windows(model.cfg, keys, M), hint=HINT, **edges(M, model.cfg))
    common.fits(model.cfg, store)
    ids = common.draw(store, keys.n_clips or len(store), np.random.default_rng(keys.seed))
    rows = []
    for i, own in common.share(ids, keys.batch_size, rank, world, 'eval loss', quiet):
        batch = {key: value.to(device) for key, value in store.windows_at(own).items()}
        with torch.random.fork_rng():                        # training goes on afterwards, with its own noise
            torch.manual_seed(keys.seed * 1_000_003 + i)
            out = model(batch)
        rows.append((i, len(own), {name: float(value) for name, value in out.items()}))
    rows = sorted(common.gather(rows, world))                # sums in one order, whoever did the work
    means = {name: sum(n * out[name] for _, n, out in rows) / len(ids) for name in rows[0][2]}
    return common.plain(means | dict(n_clips=len(ids), batch_size=keys.batch_size, seed=keys.seed))


def show(result):
    for name, value in result.items():
        if isinstance(value, float):
            print(f'{name:>20} {value:.6g}', file=sys.stderr)
