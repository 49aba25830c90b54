"""
How fast is a training step of NanoWM? A table on stdout, the same as JSON in bench/results/.

    python bench/step.py --compare=True                 modulation per frame (ours) vs per patch (the original's way)
    python bench/step.py --loader=True                  how much of a step is spent waiting for data
    python bench/step.py --sizes=S,B,L --frames=4,16    eager vs compiled; on a GPU in bf16, with MFU and memory

Variants are timed in turn, repetition by repetition, so that a busy machine slows all of them; medians are compared.
The floor: FLOPs of the matmuls over the device's peak. At S/2, 4 frames, modulation per patch costs 15 % of them with
additive actions and 26 % with adaln: 0.85 and 0.74 are the best ratios that --compare can show.
"""
import json
import os
import sys
import tempfile
import time
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np
import torch

import nanowm
from configurator import configure

sizes = ('S',)                # S | B | L, patch 2
frames = (4,)                 # frames per sample
batch = 1                     # samples per step
side = 32                     # of the square latents
injections = ('additive', 'adaln')    # for --compare
compare = False               # per-frame vs per-patch modulation, forward + backward
loader = False                # share of a step spent waiting for the prefetch thread
reps = 7                      # timed repetitions per variant
loader_steps = 20             # timed steps of --loader
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16; auto = bfloat16 on cuda
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/step_<what>_<device>.json

SIZES = {'S': dict(depth=12, hidden=384, heads=6), 'B': dict(depth=12, hidden=768, heads=12),
         'L': dict(depth=24, hidden=1024, heads=16)}
PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}          # dense bf16, data sheets


class PerPatchBlock(nanowm.Block):
    """The same block with the condition repeated for every patch before the modulation MLP of temporal blocks."""

    def forward(self, x, c, e, rope, past=None):
        if self.time:
            c, e = (y.expand(-1, -1, x.shape[2], -1) for y in (c, e))
        return super().forward(x, c, e, rope, past)


def per_patch(model):
    """A copy of the model, same weights, that modulates per patch."""
    other = nanowm.Model(model.cfg).to(model.alpha.device)
    other.load_state_dict(model.state_dict())
    for block in other.blocks: block.__class__ = PerPatchBlock
    return other


def randomise(model):
    """The zero output layers of a fresh model would hide every difference."""
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.02)
    return model


def make_batch(cfg, n, device):
    return {'latent': torch.randn(n, cfg.num_frames, cfg.channels, cfg.height, cfg.width, device=device),
            'action': torch.randn(n, cfg.num_frames, cfg.action_dim, device=device),
            't': torch.randint(cfg.timesteps, (n, cfg.num_frames), device=device),
            'noise': torch.randn(n, cfg.num_frames, cfg.channels, cfg.height, cfg.width, device=device)}


def timed(step):
    """Seconds of one call, the device's queue included."""
    if device.startswith('cuda'): torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.startswith('cuda'): torch.cuda.synchronize()
    return time.perf_counter() - start


def times(steps):
    """{name: step} -> {name: seconds of each repetition}, taking turns, after one untimed call each."""
    for step in steps.values(): timed(step)
    took = {name: [] for name in steps}
    for _ in range(reps):
        for name, step in steps.items(): took[name].append(timed(step))
    return took


def interleaved(steps):
    """{name: step} -> {name: median seconds}."""
    return {name: median(values) for name, values in times(steps).items()}


def autocast():
    return torch.autocast(device.split(':')[0], torch.bfloat16, enabled=dtype == 'bfloat16')


def backward(model, data):
    def step():
        model.zero_grad(set_to_none=True)
        with autocast(): loss = model(data)['loss']
        loss.backward()
    return step


def train_step(model, data):
    """data: a batch, or a function that returns the next one."""
    optimizer = model.configure_optimizers(1e-4, 0.01, (0.9, 0.999))

    def step():
        with autocast(): loss = model(data() if callable(data) else data)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def config_of(size, n, injection='additive'):
    return nanowm.Config(height=side, width=side, num_frames=n, injection=injection, **SIZES[size])


def compare_modulation(size, n, injection):
    cfg = config_of(size, n, injection)
    ours = randomise(nanowm.Model(cfg).to(device))
    theirs, data = per_patch(ours), make_batch(cfg, batch, device)
    with torch.no_grad():
        x, action = data['latent'], data['action']
        difference = (ours.net(x, data['t'], action) - theirs.net(x, data['t'], action)).abs().max().item()
    took = interleaved({'per frame': backward(ours, data), 'per patch': backward(theirs, data)})
    return dict(size=size, frames=n, batch=batch, injection=injection, per_frame_ms=took['per frame'] * 1e3,
                per_patch_ms=took['per patch'] * 1e3, ratio=took['per frame'] / took['per patch'],
                difference=difference)


def eager_and_compiled(size, n):
    cfg, rows, memory, steps = config_of(size, n), [], {}, {}
    data, on_cuda = make_batch(cfg, batch, device), device.startswith('cuda')
    for name in ('eager', 'compiled'):
        if on_cuda: torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_cuda else 0         # the other variant's weights and optimizer
        model = nanowm.Model(cfg).to(device)
        if name == 'compiled': model.compile(dynamic=False)
        steps[name] = train_step(model, data)
        for _ in range(2): timed(steps[name])
        memory[name] = (torch.cuda.max_memory_allocated() - before) / 2 ** 30 if on_cuda else None
    flops, took = batch * model.flops_per_sample(), interleaved(steps)
    peak = next((p for name, p in PEAK.items() if name in device_name()), 0)
    for name, seconds in took.items():
        rows.append(dict(size=size, frames=n, batch=batch, mode=name, dtype=dtype, ms=seconds * 1e3,
                         samples_per_s=batch / seconds, tflops=flops / seconds / 1e12,
                         mfu=flops / seconds / peak if peak else None, memory_gib=memory[name]))
    return rows


def waiting_for_data(size, n):
    """Train from a folder of float16 latents through Store and Prefetch, as train.py does."""
    from data.loader import Store
    from data.writer import write
    cfg = config_of(size, n)
    with tempfile.TemporaryDirectory() as folder:
        write(folder + '/set', random_episode, 16, seed=0, val='0.1', workers=1, command='bench/step.py',
              info={'source': 'noise', 'revision': '', 'fps': 1, 'units': {}})
        store = Store(folder + '/set', 'train', nanowm.windows(cfg))
        took, waited = fed(lambda step: store.batch(step, batch, 0),
                           lambda data: train_step(nanowm.Model(cfg).to(device), data))
    return dict(size=size, frames=n, batch=batch, ms=took * 1e3, waited_ms=waited * 1e3, in_model=1 - waited / took)


def fed(fetch, make_step):
    """make_step(source of batches) -> a step; Prefetch calls fetch(i). Seconds per step, and of these waited for it."""
    from data.loader import Prefetch
    depth, waits = 4, []
    batches = Prefetch(fetch, 0, device, depth)

    def next_batch():
        start = time.perf_counter()
        item = batches.next()
        waits.append(time.perf_counter() - start)
        return item
    step = make_step(next_batch)
    for _ in range(depth + 2): timed(step)                   # what was fetched ahead proves nothing
    waits.clear()
    took = sum(timed(step) for _ in range(loader_steps))
    batches.close()
    return took / loader_steps, sum(waits) / loader_steps


def random_episode(i):
    rng = np.random.default_rng(i)
    action = rng.standard_normal((64, 7), dtype=np.float32)
    action[-1] = 0
    return {'latent': rng.standard_normal((64, 4, 32, 32), dtype=np.float32).astype(np.float16), 'action': action}


def device_name():
    if device.startswith('cuda'): return torch.cuda.get_device_name()
    try:
        with open('/proc/cpuinfo') as f: return next(line.split(': ')[1].strip() for line in f if 'model name' in line)
    except (OSError, StopIteration):
        return 'cpu'


def table(rows):
    """List of flat dicts -> aligned lines."""
    def cell(v): return f'{v:.4g}' if isinstance(v, float) else '-' if v is None else str(v)
    cells = [list(rows[0])] + [[cell(v) for v in row.values()] for row in rows]
    width = [max(map(len, column)) for column in zip(*cells)]
    return '\n'.join('  '.join(c.rjust(w) for c, w in zip(line, width)) for line in cells)


def save(out, script, what, rows, **keys):
    """The table as JSON, whole or not at all; out = '': bench/results/<script>_<what>_<device>.json."""
    kind = next((word for word in device_name().split() if word in ('H100', 'H200', 'A100')), device.split(':')[0])
    out = out or os.path.join(ROOT, 'bench', 'results', f'{script}_{what}_{kind.lower()}.json')
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out + '.tmp', 'w') as f:
        json.dump(dict(command=' '.join([f'python bench/{script}.py', *sys.argv[1:]]), device=device_name(), **keys,
                       torch=torch.__version__, rows=rows), f, indent=1)
    os.replace(out + '.tmp', out)


if __name__ == '__main__':
    config = configure(globals())
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    dtype = ('bfloat16' if device.startswith('cuda') else 'float32') if dtype == 'auto' else dtype
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = []
    for size in sizes:
        for n in frames:
            if compare: rows += [compare_modulation(size, n, injection) for injection in injections]
            elif loader: rows.append(waiting_for_data(size, n))
            else: rows += eager_and_compiled(size, n)
    what = 'compare' if compare else 'loader' if loader else 'train'
    save(out, 'step', what, rows, dtype=dtype, threads=threads, reps=reps)
    print(table(rows))
