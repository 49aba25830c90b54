"""
What the benchmarks share: a clock, one training step as train.py does it, random data, tables and JSON.

    clock = Clock('auto', 'auto', reps=7)
    clock.times({'a': step_a, 'b': step_b})         # {name: seconds of each repetition}; the two take turns

Ratios are taken within a repetition: a busy machine slows both ways alike, and a median forgets outliers.
"""
import io
import json
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from statistics import median

import torch

import checkpoint
from configurator import Owner
from logger import peak_of
from protocols.common import try_output

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LR, DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0     # of every timed optimizer; any would do
WARM_UP = 2                                              # untimed calls: allocation, compilation, caches
EPISODES = 8                                             # of a random data folder


class Clock:
    """Times steps on one device in one precision. A device or dtype that is not there ends in one line."""

    def __init__(self, device='auto', dtype='auto', reps=7):
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:          # torch says it at length
            sys.exit(f'device = {device}: {str(error).splitlines()[0]}')
        self.device = device
        self.on_cuda = device.startswith('cuda')
        if dtype == 'auto':
            dtype = 'bfloat16' if self.on_cuda else 'float32'
        if dtype not in ('float32', 'bfloat16'):
            sys.exit(f'dtype = {dtype}: choose from float32, bfloat16')
        if reps < 1:
            sys.exit(f'reps = {reps}: must be at least 1')
        self.dtype = dtype
        self.reps = reps
        self.now = time.perf_counter                     # seconds; process_time counts those of the CPU

    def autocast(self):
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.dtype == 'bfloat16')

    def wait(self):
        """Until the device has done what it was asked for."""
        if self.on_cuda:
            torch.cuda.synchronize()

    def timed(self, step):
        """Seconds of one call, the device's queue included."""
        self.wait()
        start = self.now()
        step()
        self.wait()
        return self.now() - start

    def times(self, steps):
        """{name: step} -> {name: seconds of each repetition}, taking turns, after one untimed call each."""
        for step in steps.values():
            self.timed(step)
        took = {name: [] for name in steps}
        for _ in range(self.reps):
            for name, step in steps.items():
                took[name].append(self.timed(step))
        return took

    def medians(self, steps):
        """{name: step} -> {name: median seconds}."""
        return {name: median(seconds) for name, seconds in self.times(steps).items()}

    def name(self):
        """What the device is called: that of the GPU, or of the processor."""
        if self.on_cuda:
            return torch.cuda.get_device_name(self.device)
        try:
            with open('/proc/cpuinfo') as f:
                return next(line.split(': ')[1].strip() for line in f if 'model name' in line)
        except (OSError, StopIteration):
            return 'cpu'

    def rates(self, seconds, samples, flops):
        """The columns that follow from the time of a step, its samples and the FLOPs of its matmuls."""
        peak = peak_of(self.name()) if self.on_cuda else 0
        return {'ms': seconds * 1e3, 'samples_per_s': samples / seconds, 'tflops': flops / seconds / 1e12,
                'mfu': flops / seconds / peak if peak else None}

    def fed(self, fetch, make_step, steps):
        """
        Steps that take their batches from a Prefetch thread, as in train.py. fetch(i) -> batch i on the host;
        make_step(next_batch) -> a step. -> seconds per step, and the seconds of it spent waiting for a batch.
        """
        from data.loader import Prefetch
        depth, waits = 4, []
        batches = Prefetch(fetch, 0, self.device, depth)

        def next_batch():
            start = time.perf_counter()
            batch = batches.next()
            waits.append(time.perf_counter() - start)
            return batch

        try:
            step = make_step(next_batch)
            for _ in range(depth + WARM_UP):                     # what was fetched ahead proves nothing
                self.timed(step)
            waits.clear()
            took = sum(self.timed(step) for _ in range(steps))
        finally:
            batches.close()
        return took / steps, sum(waits) / steps


def ratios(a, b):
    """What way a took of what b took, repetition by repetition."""
    return [x / y for x, y in zip(a, b)]


def train_step(model, data, clock, optimizer=None):
    """A whole optimizer step, as in train.py. data: a batch, or a function that returns the next one."""
    optimizer = optimizer or model.configure_optimizers(LR, DECAY, BETAS)
    params = [p for p in model.parameters() if p.requires_grad]

    def step():
        batch = data() if callable(data) else data
        with clock.autocast():
            loss = model(batch)['loss']
        loss.backward()
        if hasattr(model, 'clip_grad'):
            model.clip_grad(CLIP)
        else:
            torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


PHASES = 'forward', 'backward', 'fwd+bwd', 'clip+optimizer', 'step'      # of what `phased` tells apart


def phased(model, data, optimizer, clock, took):
    """A training step as in train.py; `took` gets the seconds of each of its PHASES."""
    def step():
        start = clock.now()
        with clock.autocast():
            loss = model(data)['loss']
        clock.wait()
        forward = clock.now()
        loss.backward()
        clock.wait()
        backward = clock.now()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.wait()
        end = clock.now()
        took.append((forward - start, backward - forward, backward - start, end - backward, end - start))
    params = [p for p in model.parameters() if p.requires_grad]
    return step


def randomise(model, std=0.02):
    """Leave the start: the zero output layers of a fresh model would hide every difference."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * std)
    return model


def preset_of(M, wanted, without=()):
    """For configure(): the Config of model file M at the preset that is asked for owns the other keys."""
    at = str(wanted['preset'])
    if at not in M.PRESETS:
        sys.exit(f'preset = {at!r}: {M.__name__} has {", ".join(M.PRESETS)}')
    keys = {key: value for key, value in vars(M.PRESETS[at]).items() if key not in without}
    return Owner(f'{M.__name__}.Config, preset {at}', keys, M.__file__)


def like(model, kind, cfg=None):
    """A `kind` of model that has the very weights of this one, in the same memory."""
    with torch.device('meta'):
        other = kind(cfg or model.cfg)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def to(batch, device):
    return {key: value.to(device) for key, value in batch.items()}


def stoppable(main):
    """Run main(); Ctrl-C and SIGTERM clean up and end in one line."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('stopped; nothing was saved')


# ---- data of the shape that a model wants ----

def random_episode(M, cfg, frames, i):
    """`frames` rows of every key of the model's windows, cut from as many examples as that takes."""
    keys = M.windows(cfg)
    fewest = min(len(offsets) for offsets in keys.values())
    with torch.random.fork_rng(devices=[]):              # the same episode whatever was drawn before it
        torch.manual_seed(i)
        batch = M.example(cfg, -(-frames // fewest))
    rows = {key: batch[key].flatten(0, 1)[:frames] for key in keys}
    if 'latent' in rows:
        rows['latent'] = rows['latent'].half()                   # as on disk
    if 'action' in rows:
        rows['action'][-1] = 0                                   # leads nowhere
    return {key: value.numpy() for key, value in rows.items()}


def write_folder(folder, M, cfg):
    """A data folder of random episodes, a few windows long."""
    from data.writer import write
    offsets = [offset for key in M.windows(cfg).values() for offset in key]
    frames = max(64, 4 * (max(offsets) - min(offsets) + 1))
    info = {'source': 'noise', 'revision': '', 'fps': 1, 'units': {}}
    with redirect_stdout(io.StringIO()):                 # what it says about itself is no row of our table
        write(folder, partial(random_episode, M, cfg, frames), EPISODES, seed=0, val='0.125', workers=1,
              command='bench', info=info)


# ---- what comes out ----

def compared(part, case, ours, against, other, most=None, difference=None, unit='s'):
    """
    A row of `ours` against `other`, what each repetition took. most: the ratio that is wanted; difference:
    how far their results are apart.
    """
    shares = ratios(ours, other)
    return dict(part=part, case=case, against=against, unit=unit, ours=median(ours), other=median(other),
                ratio=median(shares), low=min(shares), high=max(shares), most=most, difference=difference,
                ratios=shares)


def table(rows):
    """List of flat dicts -> aligned lines."""
    def cell(value):
        if value is None:
            return '-'
        return f'{value:.4g}' if isinstance(value, float) else str(value)

    cells = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
    width = [max(map(len, column)) for column in zip(*cells)]
    return '\n'.join('  '.join(text.rjust(w) for text, w in zip(line, width)) for line in cells)


def result_path(out, name, clock):
    """
    Where the JSON will lie; out = '': bench/results/<name>_<device>.json. Tried before anything is timed,
    because an hour of measuring must not end in "permission denied".
    """
    kind = next((word for word in clock.name().split() if word in ('A100', 'H100', 'H200')), clock.device)
    kind = kind.partition(':')[0].lower()
    path = out or os.path.join(ROOT, 'bench', 'results', f'{name}_{kind}.json')
    try_output('out', path)
    return path


def finish(path, script, rows, clock, hide=(), **facts):
    """Print the table, then save it with what one must know to repeat it, whole or not at all."""
    print(table([{key: value for key, value in row.items() if key not in hide} for row in rows]))
    command = ' '.join([f'python bench/{script}.py', *sys.argv[1:]])
    result = dict(command=command, device=clock.name(), threads=torch.get_num_threads(), reps=clock.reps,
                  torch=torch.__version__, **facts, rows=rows)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        checkpoint.write_text(path, json.dumps(result, indent=1) + '\n')
    except OSError as error:
        sys.exit(f'cannot write {path}: {error.strerror}; the table above is all there is')
