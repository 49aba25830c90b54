"""
act.py and diffusion_policy.py beside LeRobot 0.4.4; a table on stdout, the same as JSON in bench/results/.

    python bench/versus_lerobot.py --src=PATH                all of it; PATH: a LeRobot set, v2.1, with videos
    python bench/versus_lerobot.py --parts=import,sampler    what needs no LeRobot

step      a training step: forward and backward pass; clip and optimizer; both
chunk     ACT: what is seen once -> a chunk of actions
loader    a batch of ACT's windows with pictures as they were filmed: LeRobot decodes mp4s, by PyAV, we read
          memmaps. Files are warm, both give the same pixels
import    a fresh process that imports our file, against one that imports torch, and one LeRobot's ACT
sampler   Diffusion Policy from keypoints, preset cpu: ten calls of DDIM against a hundred of DDPM

On a CPU these are seconds of the CPU, because other work makes a clock lie. All take turns; `ratio` is the
median of other / ours within a repetition, so above 1 we are faster; low and high are its extremes. Both have
the same weights and see the same batch, and before anything is timed losses, gradients, chunks and pixels are
compared: `difference`, relative to their norms. We normalise within the time, LeRobot before it. How to get
LeRobot: bench/upstream.py.
"""
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import count
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import torch

import act
import contract
import diffusion_policy
from bench import timing, upstream
from data.video import sides

parts = ('step', 'chunk', 'loader', 'import', 'sampler')
src = ''                      # loader: a LeRobot set, v2.1, some of whose episodes have videos
episodes = 6                  # loader: at most; 0.9 MB a frame of 480x640, twice while they are written
batch = 8                     # samples per step, windows per batch
act_sizes = ('96x128', '240x320')     # step, chunk: pictures of ACT, height x width
dp_sizes = ('96x96',)         # step: pictures of Diffusion Policy
down_dims = (128, 256, 512)   # step: its U-Net; as published: (512, 1024, 2048)
modes = ('auto',)             # step: eager | compiled; auto = eager, on cuda compiled too
reps = 11                     # timed repetitions
seed = 0                      # of weights and data
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/versus_lerobot_<device>.json

PARTS, THEIRS = parts, ('step', 'chunk', 'loader')       # THEIRS: nothing without LeRobot
TOLERANCE, GRADIENT = 1e-5, 1e-3          # float32: largest difference, relative; GRADIENT: of one
ROBOT = dict(cameras=('top',), state_dim=26, action_dim=26)
ACT = dict(chunk_size=50, n_action_steps=50, dim_model=256, n_heads=4, dim_feedforward=1024,
           n_encoder_layers=4, n_decoder_layers=1, use_vae=True, n_vae_encoder_layers=4, latent_dim=32,
           kl_weight=10.0)
DP = dict(n_obs_steps=2, horizon=16, n_action_steps=8, noise_scheduler_type='DDPM', num_train_timesteps=100)


# ---- the same thing twice ----

def pair(M, size, n, dropout=0.1):
    """Ours and theirs with the same weights, and the same n samples for each; one ends before its chunk."""
    arguments = ACT | {'dropout': dropout} if M is act else DP | {'down_dims': tuple(down_dims)}
    height, width = sides(size)
    # LeRobot 0.4.4 counts padding as errors of 0
    cfg = M.Config(padding='zeros', height=height, width=width, **ROBOT, **arguments)
    torch.manual_seed(seed)
    ours, data = timing.randomise(contract.attempt(M, M.Model, cfg)), M.example(cfg, n)
    data['mask'][0, data['mask'].shape[1] // 2:] = False
    theirs = upstream.Theirs(ours, arguments)
    return ours, theirs, data, theirs.renamed(ours, data)


def apart(a, b, what, least=1e-6, most=TOLERANCE):
    """How far a is from b, relative to the norm of b, or to `least`; more than `most` ends in one line."""
    difference = ((a - b).norm() / b.norm().clamp(min=least)).item()
    if not difference <= most:
        sys.exit(f'{what}: ours and the other are not the same, they differ by {difference:.1g}; nothing was '
                 'timed')
    return difference


def learnt(model, data):
    """Loss, and {parameter: gradient}, with the random numbers of `seed`."""
    torch.manual_seed(seed)
    loss = model.train()(data)['loss']
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in getattr(model, 'inner', model).named_parameters()}


def same_step(what, ours, theirs, data, their_data):
    """Largest difference of the losses and of the gradients, or exit."""
    (loss, grads), (their_loss, their_grads) = learnt(ours, data), learnt(theirs, their_data)
    # one that is 0 but for rounding, like that of a bias before a softmax, is measured by what others are;
    # and where a ReLU sees 0 but for rounding, one of the two may let a gradient through
    least = max(grad.norm().item() for grad in their_grads.values()) / 1e3
    return max(apart(loss, their_loss, f'{what}, loss'), *(
        apart(grads[key], grad, f'{what}, gradient of {key}', least, GRADIENT)
        for key, grad in their_grads.items()))


def same_batch(ours, theirs, name, camera):
    """Pixels, numbers and masks of two batches are equal, or exit."""
    pairs = {name: (ours[name][:, 0], (theirs[camera] * 255).round()),
             'state': (ours['state'][:, 0], theirs['observation.state']),
             'action': (ours['action'], theirs['action']), 'mask': (ours['mask'], ~theirs['action_is_pad'])}
    wrong = [key for key, (a, b) in pairs.items() if not torch.equal(a.float(), b.float())]
    if wrong:
        sys.exit(f"loader: ours and LeRobot's are not the same, they differ in {', '.join(wrong)}; nothing "
                 'was timed')


# ---- rows ----

def row(part, case, ours, other, against='LeRobot', difference=None):
    """Seconds of each repetition, of ours and of the other."""
    ratios = timing.ratios(other, ours)
    return dict(part=part, case=case, against=against, ours_ms=median(ours) * 1e3,
                other_ms=median(other) * 1e3, ratio=median(ratios), low=min(ratios), high=max(ratios),
                difference=difference, ratios=ratios)


def step_rows(clock):
    rows = []
    for M, size in [(act, size) for size in act_sizes] + [(diffusion_policy, size) for size in dp_sizes]:
        what = f'{M.__name__} {size}'
        difference = same_step(what, *pair(M, size, batch, dropout=0.0))
        for mode in modes:
            ours, theirs, data, their_data = pair(M, size, batch)
            for model in ours, theirs:
                model.to(clock.device).train()
                if mode == 'compiled':
                    model.compile(dynamic=False)         # as train.py does; the optimizer stays eager
            fused, took, their_took = ours.configure_optimizers(timing.LR, timing.DECAY, timing.BETAS), [], []
            data, their_data = (timing.to(x, clock.device) for x in (data, their_data))
            clock.times({'ours': timing.phased(ours, data, fused, clock, took),
                         'theirs': timing.phased(theirs, their_data, theirs.optimizer(), clock, their_took)})
            # the first warms up; forward and backward alone are left out
            for phase, a, b in [*zip(timing.PHASES, zip(*took[1:]), zip(*their_took[1:]))][2:]:
                rows.append(row('step', f'{what}, {mode}, {phase}', a, b, difference=difference))
    return rows


def chunk_rows(clock):
    def timed(answer, seen):
        with clock.autocast():
            answer(seen)
    rows = []
    for size in act_sizes:
        ours, theirs, *both = pair(act, size, 1)
        answers = ours.eval().act, theirs.eval().policy.predict_action_chunk
        difference = apart(*(answer(seen) for answer, seen in zip(answers, both)), f'act {size}, chunk')
        for model in ours, theirs:
            model.to(clock.device)
        seen = [timing.to(data, clock.device) for data in both]
        took = clock.times({i: partial(timed, answers[i], seen[i]) for i in range(2)})
        rows.append(row('chunk', f'act {size}', took[0], took[1], difference=difference))
    return rows


def loader_rows(clock):
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):             # what they say of themselves is no row of our table
            store, name, dataset, camera = upstream.both_sets(src, episodes, ACT['chunk_size'], folder)

        def ours(i):
            return store.batch(i, batch, seed)

        def theirs(i):
            return torch.utils.data.default_collate([dataset[int(id)] for id in store.ids(i, batch, seed)])
        for i in range(2):
            same_batch(ours(i), theirs(i), name, camera)
        a, b = count(), count()
        took = clock.times({'ours': lambda: ours(next(a)), 'theirs': lambda: theirs(next(b))})
    size = 'x'.join(map(str, store.meta['keys'][name]['shape'][1:]))
    return [row('loader', f'act {size}', took['ours'], took['theirs'], difference=0.0)]


def spent():
    """CPU-seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_times(clock, names, policy):
    """{name: seconds of the CPU of each fresh process that imports it}; LeRobot: its policy, unless ''."""
    lines = {name: f'import {name}' for name in ('torch', *names)}
    if policy:
        lines['LeRobot'] = upstream.prelude() + f'import lerobot.policies.{policy}.modeling_{policy}'
    fresh = timing.Clock('cpu', 'float32', clock.reps)
    fresh.now, env = spent, os.environ | {'OMP_NUM_THREADS': str(torch.get_num_threads())}
    run = partial(subprocess.run, cwd=ROOT, env=env, check=True)
    return fresh.times({name: partial(run, [sys.executable, '-c', line]) for name, line in lines.items()})


def import_rows(clock):
    took = import_times(clock, ('act', 'diffusion_policy'), '' if upstream.lacking() else 'act')
    pairs = ('act', 'torch'), ('diffusion_policy', 'torch'), ('act', 'LeRobot')
    return [row('import', a, took[a], took[b], against=b) for a, b in pairs if b in took]


def sampler_rows(clock):
    cfg = diffusion_policy.PRESETS['cpu']
    ddim = diffusion_policy.Model(cfg)
    ddpm = diffusion_policy.Model(replace(cfg, noise_scheduler_type='DDPM', num_inference_steps=0))
    ddpm.load_state_dict(ddim.state_dict())
    seen = timing.to(diffusion_policy.example(cfg, 1), clock.device)

    def timed(model):
        with clock.autocast():
            model.act(seen)
    took = clock.times({model: partial(timed, model.to(clock.device).eval()) for model in (ddim, ddpm)})
    return [row('sampler', f'diffusion_policy, DDIM, {ddim.calls} calls', took[ddim], took[ddpm],
                against=f'DDPM, {ddpm.calls}')]


def main():
    global modes
    configure(globals())
    for key, chosen, known in ('parts', parts, PARTS), ('modes', modes, ('auto', 'eager', 'compiled')):
        unknown = [name for name in chosen if name not in known]
        if unknown or not chosen:
            sys.exit(f'{key} = {", ".join(unknown)}: choose from {", ".join(known)}')
    if batch < 1 or threads < 1 or episodes < 1:
        sys.exit(f'batch = {batch}, threads = {threads}, episodes = {episodes}: must be at least 1')
    if 'loader' in parts and not src:
        sys.exit('loader: --src=PATH says where a LeRobot set, v2.1, with videos lies; or leave it out: '
                 '--parts=step,chunk,import,sampler')
    clock = timing.Clock(device, dtype, reps)
    clock.now = time.perf_counter if clock.on_cuda else time.process_time
    if modes == ('auto',):
        modes = ('eager', 'compiled') if clock.on_cuda else ('eager',)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)                       # as in train.py
    with tempfile.TemporaryDirectory() as cache:
        os.environ['HF_HOME'] = cache                    # what LeRobot remembers of our sets ends with us
        why, rows = upstream.lacking(), []
        left = [part for part in parts if why and part in THEIRS]
        todo = [part for part in parts if part not in left]
        advice = (f'no {", ".join(left)}: LeRobot {upstream.VERSION} cannot be imported ({why}); the top of '
                  'bench/upstream.py says how to install it, in two commands')
        if not todo:
            sys.exit(advice)
        whole = {*todo} == {*PARTS}
        path = timing.result_path(out, '_'.join(['versus_lerobot'] + todo * (not whole)), clock)
        for part in todo:
            rows += {'step': step_rows, 'chunk': chunk_rows, 'loader': loader_rows, 'import': import_rows,
                     'sampler': sampler_rows}[part](clock)
    packages = () if why else ('lerobot', 'torchvision', 'av')
    timing.finish(path, 'versus_lerobot', rows, clock, hide=('ratios',), dtype=clock.dtype, batch=batch,
                  down_dims=down_dims, packages={name: version(name) for name in packages})
    if left:
        sys.exit(advice)


if __name__ == '__main__':
    timing.stoppable(main)
