"""
Variants of nanowm.py against each other; a table on stdout, the same as JSON in bench/results/.

    python bench/versus_nanowm.py             modulation per frame (ours) vs per patch (the original's way)

Forward and backward pass, in turn; `ratio` is the median of frame / patch within a repetition. Both ways have
the same weights, and their outputs are compared before anything is timed. The floor: at S/2, 4 frames,
modulation per patch costs 15 % of the FLOPs with additive actions and 26 % with adaln, so 0.85 and 0.74 are
what FLOPs say.
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
import nanowm
from bench import timing

preset = 'S'                  # a name in nanowm.PRESETS; its Config can be set by flag, like --num_frames=16
injections = ('additive', 'adaln')    # Config.injection, one row each
batch = 1                     # samples per step
reps = 7                      # timed repetitions per variant
seed = 0                      # of weights and data
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/versus_nanowm_<preset>_<device>.json

TOLERANCE = 1e-4              # float32: what the outputs of the two ways may differ by


def owners(wanted):
    """nanowm's Config at the preset owns the other keys, but for the two that are set here."""
    yield timing.preset_of(nanowm, wanted, without=('input', 'injection'))


class PerPatchBlock(nanowm.Block):
    """The same block with the condition repeated for every patch before the modulation of temporal blocks."""

    def forward(self, x, c, e, rope, past=None):
        if self.time:
            c, e = (y.expand(-1, -1, x.shape[2], -1) for y in (c, e))
        return super().forward(x, c, e, rope, past)


def per_patch(model):
    """A copy of the model, same weights, that modulates per patch."""
    other = nanowm.Model(model.cfg).to(model.alpha.device)
    other.load_state_dict(model.state_dict())
    for block in other.blocks:
        block.__class__ = PerPatchBlock
    return other


def latents(cfg, n, device):
    """A batch with its own t and noise, so that both ways see the same."""
    shape = n, cfg.num_frames, cfg.channels, cfg.height, cfg.width
    return timing.to({'latent': torch.randn(shape), 'noise': torch.randn(shape),
                      'action': torch.randn(n, cfg.num_frames * cfg.frame_skip, cfg.action_dim),
                      't': torch.randint(cfg.timesteps, (n, cfg.num_frames))}, device)


def backward(model, data, clock):
    """Forward and backward pass, without an optimizer: that costs both ways the same."""
    def step():
        model.zero_grad(set_to_none=True)
        with clock.autocast():
            loss = model(data)['loss']
        loss.backward()
    return step


def modulation_row(cfg, clock, n):
    """Per frame against per patch, for one Config."""
    model = contract.attempt(nanowm, nanowm.Model, cfg)
    ours = timing.randomise(model.to(clock.device))
    theirs, data = per_patch(ours), latents(cfg, n, clock.device)
    with torch.no_grad():
        action = ours.fold_action(data['action'])
        outputs = [way.net(data['latent'], data['t'], action) for way in (ours, theirs)]
    difference = (outputs[0] - outputs[1]).abs().max().item()
    if not difference <= TOLERANCE:
        sys.exit(f'per frame and per patch are not the same function: they differ by {difference:.2g}, more '
                 f'than {TOLERANCE}; nothing was timed')
    took = clock.times({'frame': backward(ours, data, clock), 'patch': backward(theirs, data, clock)})
    ratios = timing.ratios(took['frame'], took['patch'])
    return dict(injection=cfg.injection, frames=cfg.num_frames, batch=n,
                per_frame_ms=median(took['frame']) * 1e3, per_patch_ms=median(took['patch']) * 1e3,
                ratio=median(ratios), difference=difference, ratios=ratios)


def main():
    config, _ = configure(globals(), owners=owners)
    known = nanowm.INJECTIONS
    unknown = [name for name in injections if name not in known]
    if unknown or not injections:
        sys.exit(f'injections = {", ".join(unknown)}: choose from {", ".join(known)}')
    if batch < 1 or threads < 1:
        sys.exit(f'batch = {batch}, threads = {threads}: must be at least 1')
    clock = timing.Clock(device, dtype, reps)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    cfg = nanowm.Config(**{field.name: config[field.name] for field in fields(nanowm.Config)
                           if field.name not in ('input', 'injection')})
    path = timing.result_path(out, f'versus_nanowm_{preset}', clock)
    rows = []
    for name in injections:
        rows.append(modulation_row(replace(cfg, input='latent', injection=name), clock, batch))
    timing.finish(path, 'versus_nanowm', rows, clock, hide=('ratios',), dtype=clock.dtype, preset=preset)


if __name__ == '__main__':
    timing.stoppable(main)
