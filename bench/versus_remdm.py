"""
Variants of remdm.py against each other; a table on stdout, the same as JSON in bench/results/.

    python bench/versus_remdm.py              a training step, ours against torch.nn.TransformerEncoder

The reference has the same weights in torch's own encoder, as the published planner has it, and maps in the
memory format that PyTorch starts with. Forward and backward pass, in turn; `ratio` is the median of ours /
reference within a repetition. Outputs are compared before anything is timed.
"""
import os
import sys
from dataclasses import fields, replace
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import torch

import contract
import remdm
from bench import timing
from bench.versus_nanowm import backward

preset = 'cpu'                # a name in remdm.PRESETS; its Config can be set by flag, like --n_layer=4
batch = 64                    # windows per step
reps = 7                      # timed repetitions per variant
seed = 0                      # of weights and data
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/versus_remdm_<preset>_<device>.json

TOLERANCE = 1e-4              # float32: what the outputs of the two ways may differ by


def owners(wanted):
    """remdm's Config at the preset owns the other keys."""
    yield timing.preset_of(remdm, wanted)


class Reference(remdm.Model):
    """The same network around torch's encoder."""

    def __init__(self, cfg):
        super().__init__(cfg)
        C = cfg.n_embd
        layer = torch.nn.TransformerEncoderLayer(C, cfg.n_head, 4 * C, cfg.dropout, 'gelu', batch_first=True,
                                                 norm_first=True)
        self.transformer = torch.nn.TransformerEncoder(layer, cfg.n_layer, enable_nested_tensor=False)

    def denoise(self, seen, z, row):
        x = self.action_emb(z) + self.timestep_emb(row)[:, None] + self.pos_emb.weight
        return self.head(self.transformer(torch.cat([seen, x], 1))[:, -z.shape[1]:])


def row(cfg, clock, n):
    ours = contract.attempt(remdm, remdm.Model, cfg).to(clock.device)
    theirs = Reference(replace(cfg, channels_last=False)).to(clock.device)
    theirs.load_state_dict(ours.state_dict())
    data = remdm.example(cfg, n) | {'t': torch.rand(n), 'noise': torch.rand(n, cfg.seq_len)}
    data = timing.to(data, clock.device)
    with torch.no_grad():
        losses = [model(data)['loss'].item() for model in (ours, theirs)]
    difference = abs(losses[0] - losses[1])
    if not difference <= TOLERANCE:
        sys.exit(f'ours and the reference are not the same function: losses {losses}; nothing was timed')
    took = clock.times({'ours': backward(ours, data, clock), 'reference': backward(theirs, data, clock)})
    ratios = timing.ratios(took['ours'], took['reference'])
    return dict(preset=preset, batch=n, ours_ms=median(took['ours']) * 1e3,
                reference_ms=median(took['reference']) * 1e3, ratio=median(ratios), difference=difference,
                ratios=ratios)


def main():
    config, _ = configure(globals(), owners=owners)
    if batch < 1 or threads < 1:
        sys.exit(f'batch = {batch}, threads = {threads}: must be at least 1')
    clock = timing.Clock(device, dtype, reps)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)                       # as in train.py
    cfg = remdm.Config(**{field.name: config[field.name] for field in fields(remdm.Config)})
    path = timing.result_path(out, f'versus_remdm_{preset}', clock)
    timing.finish(path, 'versus_remdm', [row(cfg, clock, batch)], clock, hide=('ratios',), dtype=clock.dtype)


if __name__ == '__main__':
    timing.stoppable(main)
