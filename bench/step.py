"""
How fast is a model? Every model of the contract; a table on stdout, the same as JSON in bench/results/.

    python bench/step.py --model=nanowm --preset=S --num_frames=16   an optimizer step; on a GPU compiled, too
    python bench/step.py --model=arx5_gpt --what=rollout             imagined frames a second (policies: .act)
    python bench/step.py --model=nanowm --what=rollout               the same beside samplers without a cache
    python bench/step.py --model=arx5_gpt --what=loader              share of a step spent waiting for data
    python bench/step.py --model=arx5_gpt --what=gpu                 eager, compiled, CUDA graph; launches
    python bench/step.py --preset=S --vae=taesd --batch=1            latents off the disk, or encoded anew

Keys of the model's Config start from the preset and can be set by flag, like --num_frames above; weights and
data are random, because speed does not depend on the numbers. Modes are timed in turn, repetition by
repetition, so that a busy machine slows all of them; medians are shown. The floor: FLOPs of the matmuls
(flops_per_sample) over the device's peak.
"""
import inspect
import os
import sys
import tempfile
from dataclasses import asdict, fields
from itertools import product

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import torch

import contract
from bench import timing
from bench.plain import WALKS, by_hand, passes

model = 'nanowm'              # a model file of the repository
what = 'step'                 # step | rollout | loader | gpu
preset = 'cpu'                # a name in the model's PRESETS
modes = ('auto',)             # eager | compiled | graph; auto = eager, on cuda compiled too, --what=gpu all
batch = 4                     # samples per step, or clips of a rollout
candidates = 1                # rollout: futures per clip
rollout_frames = 16           # rollout: frames to imagine
rollout_context = 0           # rollout: frames that are given; 0 = a whole window less one
rollout_history = 0           # rollout: its argument `history`, where it has one; 0 = the model's choice
rollout_stride = 0            # rollout: its argument `stride`, where it has one; 0 = the model's choice
walks = WALKS                 # rollout of a model that denoises: which samplers of bench/plain.py
vae = ''                      # step: also with this codec in the loop: sd | taesd | PATH (encoding.py)
loader_steps = 20             # timed steps of --what=loader
reps = 7                      # timed repetitions per mode
seed = 0                      # of weights and data
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/step_<model>_<what>_<preset>_<device>.json

MODES = ('eager', 'compiled', 'graph')


def owners(wanted):
    """The Config of the model that is asked for, at its preset, owns the other keys."""
    name = str(wanted['model'])
    M = contract.load(name)
    missing = contract.defects(M, whole=True)
    if missing:
        sys.exit(f'{name}.py is no model yet: {"; ".join(missing)}; see contract.py')
    yield timing.preset_of(M, wanted)


def build(M, cfg, clock, mode='eager'):
    """A fresh model on the device; an impossible Config ends in one line."""
    net = contract.attempt(M, M.Model, cfg)
    net.to(clock.device).train()
    if mode == 'compiled':
        net.compile(dynamic=False)                       # as train.py does; the optimizer stays eager
    return net


def example(M, cfg, clock, n):
    return timing.to(M.example(cfg, n), clock.device)


# ---- one optimizer step ----

def graphed(step, optimizer=None):
    """
    The whole step captured once and replayed: one launch. New samples would be copied into the batch, in
    place, and lr is baked in; to change it, make it a tensor.
    """
    for group in optimizer.param_groups if optimizer else ():
        if 'capturable' in group:
            group['capturable'] = True
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):                        # lazy initialisation must not be recorded
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):                        # it begins without gradients and ends without
        step()
    return graph.replay


def launches(step):
    """How often a step asks the GPU for something: kernels, or one whole graph."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    return sum(event.count for event in events if event.key.startswith('cu') and 'Launch' in event.key)


def ready(M, cfg, clock, mode, data):
    """-> the step of one mode, warmed up; or None, with a line that says why, where it cannot be captured."""
    net = build(M, cfg, clock, mode)
    optimizer = net.configure_optimizers(timing.LR, timing.DECAY, timing.BETAS)
    step = timing.train_step(net, data, clock, optimizer)
    if mode == 'graph':
        try:
            step = graphed(step, optimizer)
        except RuntimeError as error:                    # something in the step waits for the GPU
            print(f'graph left out: {str(error).splitlines()[0]}')
            return None
    try:
        for _ in range(timing.WARM_UP):
            clock.timed(step)
    except (AssertionError, ValueError) as error:        # e.g. a batch that no ensemble can share
        sys.exit(f'{M.__name__} with {len(next(iter(data.values())))} samples: {error}')
    return step


def step_rows(M, cfg, clock, modes, n, count_launches=False):
    """A row per mode. Memory is the peak of its step, without what the modes before it still hold."""
    if vae:
        from bench import encoding
        return encoding.rows(M, cfg, clock, modes[-1], n, vae, build, seed)
    data, steps, memory = example(M, cfg, clock, n), {}, {}
    for mode in modes:
        if clock.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        step = ready(M, cfg, clock, mode, data)
        if step is None:
            continue
        steps[mode] = step
        memory[mode] = (torch.cuda.max_memory_allocated() - before) / 2 ** 30 if clock.on_cuda else None
    flops = n * build(M, cfg, clock).flops_per_sample()
    rows = []
    for mode, seconds in clock.medians(steps).items():
        row = dict(mode=mode, dtype=clock.dtype, batch=n, **clock.rates(seconds, n, flops))
        row['memory_gib'] = memory[mode]
        if count_launches:
            row['launches'] = launches(steps[mode])
        rows.append(row)
    return rows


# ---- imagining and acting ----

def random_actions(M, cfg, n, rows):
    """(n, rows, k*A): what `example` calls an action, k raw ones (frame_skip) folded into a row."""
    k = getattr(cfg, 'frame_skip', 1)
    pieces, length = [], 0
    while length < max(1, rows) * k:
        pieces.append(M.example(cfg, n)['action'])
        length += pieces[-1].shape[1]
    width = k * pieces[0].shape[-1]
    return torch.cat(pieces, 1)[:, :rows * k].reshape(n, rows, width)


def rollout_input(M, cfg, n, futures, frames, given=0):
    """-> a context of `given` frames (0 = those of an example but one), actions of n x futures x frames."""
    batch = M.example(cfg, n)
    seen = {key: batch[key] for key in M.windows(cfg) if key != 'action'}
    most = min(value.shape[1] for value in seen.values())
    given = given or max(1, most - 1)
    if not 1 <= given <= most:
        sys.exit(f'rollout_context = {given}: a window of {M.__name__} has 1..{most} frames')
    context = {key: value[:, :given] for key, value in seen.items()}
    context['action'] = random_actions(M, cfg, n, given - 1)
    return context, random_actions(M, cfg, n * futures, frames).unflatten(0, (n, futures))


def dreamer(M, net, clock, n):
    """What --what=rollout times for a world model, with the flags above; and how many frames it imagines."""
    extra = {'history': rollout_history, 'stride': rollout_stride}
    extra = {key: value for key, value in extra.items() if value}
    for key, value in extra.items():
        if key not in inspect.signature(net.rollout).parameters:
            sys.exit(f'rollout_{key} = {value}: the rollout of {M.__name__} takes no {key}')
    context, action = rollout_input(M, net.cfg, n, candidates, rollout_frames, rollout_context)
    context, action = timing.to(context, clock.device), action.to(clock.device)

    def dream():
        with clock.autocast():
            return net.rollout(context, action, **extra)
    return dream, n * candidates * rollout_frames


def actor(M, net, clock, n):
    """What it times for a policy: an answer to a new observation, none out of a queue of actions."""
    data = example(M, net.cfg, clock, n)
    obs = {key: data[key] for key in M.windows(net.cfg) if key != 'action'}

    def act():
        if hasattr(net, 'reset'):
            net.reset()
        with clock.autocast():
            return net.act(obs)
    return act, n


def rollout_rows(M, cfg, clock, modes, n):
    """A row per mode: frames per second of a rollout, or answers per second of a policy."""
    task = dreamer if hasattr(M.Model, 'rollout') else actor
    if not hasattr(M.Model, 'rollout') and not hasattr(M.Model, 'act'):
        sys.exit(f'{M.__name__}.Model has neither rollout nor act; there is nothing to time')
    by_walk = task is dreamer and hasattr(M.Model, 'denoise')
    ways, counts, more, dreams = {}, {}, {}, {}
    for way in product(modes, walks if by_walk else ('',)):
        mode, walk = way
        if mode == 'graph':
            sys.exit('modes = graph: rollouts are timed eager or compiled')
        torch.manual_seed(seed)                          # all modes dream of the same
        net = timing.randomise(build(M, cfg, clock)).eval()
        if mode == 'compiled':
            net.net = torch.compile(net.net)             # rollout and act call it; windows grow: not static
        if walk:
            by_hand(net, walk)
        ways[way], counts[way] = task(M, net, clock, n)
        try:
            if walk:                                     # this warms up, too
                frames, dreams[way] = passes(net, ways[way], seed)
            for _ in range(timing.WARM_UP if clock.on_cuda or not walk else 0):
                clock.timed(ways[way])
        except (AssertionError, ValueError) as error:    # e.g. more history than the model can see
            sys.exit(f'{M.__name__}: {error}')
        if walk:
            truth = dreams[modes[0], 'cached']
            error = (dreams[way] - truth).abs().max() / max(1.0, truth.abs().max())
            more[way] = {'walk': walk, 'frame_forwards': frames, 'differs': error.item()}
    unit = 'frames' if task is dreamer else 'answers'
    medians = clock.medians(ways)
    rows = [{'mode': way[0], **more.get(way, {}), 'dtype': clock.dtype, 'batch': n, unit: counts[way],
             'ms': seconds * 1e3, f'{unit}_per_s': counts[way] / seconds} for way, seconds in medians.items()]
    for row in rows:
        if 'walk' in row:
            row['ratio'] = row['ms'] / 1e3 / medians[row['mode'], 'cached']
    return rows


# ---- waiting for data ----

def loader_rows(M, cfg, clock, modes, n):
    """Steps fed by Store and Prefetch as in train.py, from the disk and from memory (data_on_device)."""
    from data.loader import Store
    mode, rows = [mode for mode in modes if mode != 'graph'][-1], []
    with tempfile.TemporaryDirectory() as folder:
        timing.write_folder(os.path.join(folder, 'set'), M, cfg)
        for held in (False, True):
            store = Store(os.path.join(folder, 'set'), 'train', M.windows(cfg), **contract.edges(M, cfg))
            if held:
                store.to(clock.device)
            net = build(M, cfg, clock, mode)
            took, waited = clock.fed(lambda i, store=store: store.batch(i, n, seed),
                                     lambda data, net=net: timing.train_step(net, data, clock), loader_steps)
            rows.append(dict(mode=mode, dtype=clock.dtype, batch=n, data_on_device=held, ms=took * 1e3,
                             waited_ms=waited * 1e3, waited=waited / took))
    return rows


def gpu_rows(M, cfg, clock, modes, n):
    if not clock.on_cuda:
        sys.exit(f'--what=gpu wants a CUDA device, not device = {clock.device}')
    return step_rows(M, cfg, clock, modes, n, count_launches=True)


ROWS = {'step': step_rows, 'rollout': rollout_rows, 'loader': loader_rows, 'gpu': gpu_rows}


def modes_for(what, asked, clock):
    """The modes that `auto` means on this device, or those that were asked for."""
    if asked == ('auto',):
        if not clock.on_cuda:
            return ('eager',)
        return MODES if what == 'gpu' else ('eager', 'compiled')
    unknown = [mode for mode in asked if mode not in MODES]
    if unknown or not asked:
        sys.exit(f'modes = {", ".join(unknown)}: choose from {", ".join(MODES)}')
    if 'graph' in asked and not clock.on_cuda:
        sys.exit(f'modes = graph: wants a CUDA device, not device = {clock.device}')
    return tuple(asked)


def main():
    config, changed = configure(globals(), owners=owners)
    if vae and what != 'step':
        sys.exit(f'vae = {vae}: goes with --what=step, not with {what}')
    if what not in ROWS:
        sys.exit(f'what = {what!r}: choose from {", ".join(ROWS)}')
    for key in ('batch', 'candidates', 'rollout_frames', 'loader_steps', 'threads'):
        if config[key] < 1:
            sys.exit(f'{key} = {config[key]}: must be at least 1')
    if walks[:1] != ('cached',) or set(walks) - set(WALKS):
        sys.exit(f'walks = {",".join(walks)}: want cached, beside it any of {", ".join(WALKS[1:])}')
    clock = timing.Clock(device, dtype, reps)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    M = contract.load(model)
    cfg = M.Config(**{field.name: config[field.name] for field in fields(M.Config)})
    ours = [f'{key}={config[key]}' for key in changed if hasattr(cfg, key)]      # two settings, two files
    kind = [os.path.splitext(os.path.basename(vae))[0]] if vae else []
    path = timing.result_path(out, '_'.join(['step', model, what, preset, *kind, *ours]), clock)
    rows = ROWS[what](M, cfg, clock, modes_for(what, modes, clock), batch)
    timing.finish(path, 'step', rows, clock, model=model, preset=preset, model_config=asdict(cfg))


if __name__ == '__main__':
    timing.stoppable(main)
