"""
Variants of imf_policy.py against each other; a table on stdout, the same as JSON in bench/results/.

    python bench/versus_imf_policy.py --what=step      a training step by objective, and three ways to du/dt
    python bench/versus_imf_policy.py --what=act       one call, ten or a hundred for a chunk of actions
    python bench/versus_imf_policy.py --what=env       steps of the simulator per second of CPU

step: forward and backward pass; `ratio` is to ddpm's, which has one head and one time. `naive` is the
objective as one would write it down, v, then u and du/dt of the whole batch in one jvp with its graph;
`difference` of the others is how far their gradient is from its. act: one observation; the encoder of what is
seen runs once whatever the number of calls. All take turns, ratios are taken within a repetition.
"""
import os
import sys
import time
from dataclasses import fields, replace
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import torch

import contract
import imf_policy
from bench import timing
from bench.versus_nanowm import backward

what = 'step'                 # step | act | env
preset = 'full'               # a name in imf_policy.PRESETS; its Config can be set by flag, as --n_layer=6
batch = 64                    # step: chunks
reps = 7                      # timed repetitions per variant
seed = 0                      # of weights and data
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/versus_imf_policy_<what>_<device>.json

TOLERANCE = 1e-3              # float32: of a gradient, relative to the largest entry of the tensor


def owners(wanted):
    """imf_policy's Config at the preset owns the other keys."""
    yield timing.preset_of(imf_policy, wanted)


class Naive(imf_policy.Model):
    """Improved MeanFlow without a thought of its price."""

    def forward(self, batch):
        x, e, r, t = self.normalise(batch, 'action'), batch['noise'], batch['r'], batch['t']
        seen, z = self.encode(batch), imf_policy.interpolate(x, e, t)
        with torch.no_grad():
            _, tangent = self.uv(z, t, t, seen)
        (u, v), (change, _) = torch.func.jvp(lambda z, r, t: self.uv(z, r, t, seen), (z, r, t),
                                             (tangent, torch.zeros_like(r), torch.ones_like(t)))
        compound = u + (t - r)[:, None, None] * change.detach()
        errors = [(guess - (e - x)).square().sum((1, 2)) for guess in (compound, v)]
        return {'loss': sum((error / (error.detach() + self.cfg.norm_eps)).mean() for error in errors)}


def gradients(model, data):
    model.zero_grad(set_to_none=True)
    model(data)['loss'].backward()
    return [p.grad.clone() for p in model.parameters()]


def step_rows(cfg, clock):
    variants = {'ddpm': imf_policy.Model(replace(cfg, objective='ddpm')),
                'flow': imf_policy.Model(replace(cfg, objective='flow')),
                'naive': Naive(replace(cfg, objective='imf'))}
    for how in ('jvp', 'difference'):
        variants[how] = imf_policy.Model(replace(cfg, objective='imf', derivative=how))
        variants[how].load_state_dict(variants['naive'].state_dict())
    data = imf_policy.example(cfg, batch) | {'noise': torch.randn(batch, cfg.horizon, cfg.action_dim)}
    r, t = imf_policy.draw_times(batch, cfg, 'cpu')
    levels = torch.randint(0, cfg.num_train_steps, (batch,))
    steps, apart = {}, {}
    for name, model in variants.items():
        times = {'t': levels} if name == 'ddpm' else {'t': t, 'r': r}
        rows = timing.to(data | times, clock.device)
        steps[name] = backward(model.to(clock.device), rows, clock)
        if name in ('naive', 'jvp', 'difference'):
            torch.manual_seed(seed)                      # else each would crop the pictures elsewhere
            apart[name] = gradients(model, rows)
    took, table = clock.times(steps), []
    for name in steps:
        apart_by = None
        if name in apart:
            apart_by = max(((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
                           for a, b in zip(apart[name], apart['naive']))
            if clock.dtype == 'float32' and not apart_by <= TOLERANCE:
                sys.exit(f'{name} and naive are not the same objective: gradients differ by {apart_by:.1g}')
        ratios = timing.ratios(took[name], took['ddpm'])
        table.append(dict(variant=name, size=f'{cfg.n_embd}x{cfg.n_layer}', obs=cfg.obs, batch=batch,
                          ms=median(took[name]) * 1e3, ratio=median(ratios), difference=apart_by,
                          ratios=ratios))
    return table


def act_rows(cfg, clock):
    obs = timing.to(imf_policy.example(cfg, 1), clock.device)
    imf, ddpm = (imf_policy.Model(replace(cfg, objective=objective, steps=1)).to(clock.device).eval()
                 for objective in ('imf', 'ddpm'))
    seen, z = imf.encode(obs), torch.randn(1, cfg.horizon, cfg.action_dim, device=clock.device)
    now = torch.ones(1, device=clock.device)

    def quiet(step):
        def run():
            with torch.no_grad(), clock.autocast():
                step()
        return run
    took = clock.times({
        'imf, 1 call': quiet(lambda: imf.act(obs, 1)), 'ddim, 10': quiet(lambda: ddpm.act(obs, 10)),
        'ddpm, 100': quiet(lambda: ddpm.act(obs, cfg.num_train_steps)),
        'encoder': quiet(lambda: imf.encode(obs)), 'one call': quiet(lambda: imf.uv(z, 0 * now, now, seen))})
    return [dict(variant=name, size=f'{cfg.n_embd}x{cfg.n_layer}', obs=cfg.obs, ms=median(seconds) * 1e3,
                 ratio=median(timing.ratios(seconds, took['imf, 1 call'])),
                 ratios=timing.ratios(seconds, took['imf, 1 call'])) for name, seconds in took.items()]


def env_rows(cfg, clock):
    import numpy as np

    from data.pusht import env
    board, rows = env.make_env(), []
    for name, step in ('state', board.advance), ('keypoints', board.step):
        rates = []
        for level in range(clock.reps):
            targets, n = np.random.default_rng(level).uniform(0, env.WORLD, (env.CAP, 2)), 0
            board.reset(seed=level)
            began = time.process_time()
            while not board.over:
                step(targets[n])
                n += 1
            rates.append(n / (time.process_time() - began))
        rows.append(dict(variant=name, steps_per_cpu_s=median(rates), rates=rates))
    return rows


def main():
    config, _ = configure(globals(), owners=owners)
    if batch < 2 or threads < 1 or what not in ('step', 'act', 'env'):
        sys.exit(f'what = {what!r}, batch = {batch}, threads = {threads}: want step, act or env, at least 2 '
                 'and 1')
    clock = timing.Clock(device, dtype, reps)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)                       # as in train.py
    cfg = imf_policy.Config(**{field.name: config[field.name] for field in fields(imf_policy.Config)})
    contract.attempt(imf_policy, imf_policy.check, cfg)
    path = timing.result_path(out, f'versus_imf_policy_{what}', clock)
    rows = {'step': step_rows, 'act': act_rows, 'env': env_rows}[what](cfg, clock)
    timing.finish(path, 'versus_imf_policy', rows, clock, hide=('ratios', 'rates'), dtype=clock.dtype)


if __name__ == '__main__':
    timing.stoppable(main)
