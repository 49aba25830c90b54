"""
pi0.py and smolvla.py beside what they save, and beside LeRobot; a table on stdout, the same as JSON in
bench/results/.

    python bench/versus_vla.py                        on a CPU: the numbers that hold without LeRobot
    python bench/versus_vla.py --what=step,lerobot    some of it
    python bench/versus_vla.py --what=gpu             on a GPU; --preset=tiny --device=cpu only walks through

act            SmolVLA: a chunk of actions; the cache, against looking and reading again in each of ten steps
step           SmolVLA: a fine-tuning step by default; against the variant whose state is a token among those
               of pictures and text, so that all of the VLM is remembered; and from stored image tokens
lerobot        the same step and chunk, against LeRobot 0.4.4 with the same weights (bench/upstream.py)
checkpointing  pi0 at an eighth of its widths: gradient_checkpointing, the time of a step and what it saves
load           the peak of memory of a fresh process that loads full weights and reads them through once
import         a fresh process that imports our file, against one that imports torch
gpu            pi0 and pi0.5 with three cameras, SmolVLA with two: a chunk eager, compiled, as a CUDA graph,
               against the floor and LeRobot's, if there (0.4.4 has pi0 only with a transformers of its own);
               a step against its floor (so `ratio` is 1 / MFU), and its memory

`ratio` is the median of ours / other within a repetition, low and high are its extremes, `most` is what we
want of it. What is compared takes turns, has the same weights, sees the same batch and gives the same numbers
up to `difference`, or nothing is timed. On a CPU it is in float32, and seconds are those of the CPU.
"""
import os
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import torch

import pi0
import smolvla
from bench import timing, upstream, vla_files, vla_gpu
from bench.versus_lerobot import apart, import_times
from bench.vla_gpu import drawn

what = ('act', 'step', 'checkpointing', 'load', 'import')            # and lerobot, gpu
preset = 'full'               # a name in PRESETS of both model files
batch = 1                     # samples per step
reps = 5                      # timed repetitions
seed = 0                      # of weights and data
device = 'auto'               # gpu: auto = cuda if there is one, else cpu; all others run on the CPU
dtype = 'auto'                # gpu: float32 | bfloat16 (autocast; acting: weights too); auto = that on cuda
threads = 1                   # CPU threads
peak_flops = 0.0              # gpu: FLOP/s of the device; 0 = its data sheet's
bandwidth = 0.0               # gpu: bytes/s of its memory; 0 = its data sheet's
out = ''                      # JSON; '' = bench/results/versus_vla_<what>_<device>.json

USUAL, TASK = what, 'pick up the red cube'
EIGHTH = dict(paligemma_variant='256x18x2048x8x1x32', action_expert_variant='128x18x512x8x1x32',
              vision_variant='144x27x538x16x14', vocab_size=257152 // 8)


# ---- the same model in other ways ----

def fine_tuned(**over):
    """SmolVLA's Config as it is fine-tuned by default; every number is real, as LeRobot's loss takes them."""
    cfg = smolvla.PRESETS[preset]
    return replace(cfg, train_expert_only=True, freeze_vision_encoder=True, draws=1, tasks=(TASK,),
                   action_dim=cfg.max_action_dim, **over)


class Uncached(smolvla.Model):
    """Looks and reads again in every step."""

    def encode(self, batch):
        return batch, batch['state']                     # act counts the rows of the second

    def velocity(self, x, t, cache):
        return super().velocity(x, t, super().encode(cache[0]))


class Together(torch.nn.Module):
    """In the place of smolvla.Stack: pictures and text wait for the state, and all go through at once."""

    def __init__(self, stack):
        super().__init__()
        self.layers = stack.layers

    def forward(self, x, real, cache=None, answer=False):
        if cache is None:
            return None, (x, real)
        x, real, kept = torch.cat([cache[0], x], 1), torch.cat([cache[1], real], 1), []
        sees = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        sees[:-1, -1] = False                            # nothing but the state sees the state
        turn = smolvla.rotation(real.cumsum(1) - 1, self.layers[0].d)
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, turn, None, real[:, None, None] & sees, i < len(self.layers) - 1)
            kept.append(kv)
        return None, (kept, real)


class Inside(smolvla.Model):
    """The state runs through the VLM with pictures and text."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.vlm = Together(self.vlm)


@torch.no_grad()
def stored(model, data):
    """The batch with image tokens in the place of pictures, as prepare.py --features stores them."""
    tokens = model.image_tokens(model.look(data)[0])
    rest = {key: x for key, x in data.items() if not key.startswith('image.')}
    return rest | {f'features.{camera}': x[:, None].half() for camera, x in zip(model.cfg.cameras, tokens)}


def same_step(case, models, batches, names=str, most=1e-4):
    """The largest difference of losses and gradients of two models, or exit. names: ours -> the other's."""
    losses = [model.train()(data)['loss'] for model, data in zip(models, batches)]
    for model, loss in zip(models, losses):
        model.zero_grad(set_to_none=True)
        loss.backward()
    ours, other = (dict(getattr(model, 'inner', model).named_parameters()) for model in models)
    grads = {key: (p.grad, other[names(key)].grad) for key, p in ours.items() if p.requires_grad}
    least = max(b.norm().item() for _, b in grads.values()) / 1e3        # one that is 0 but for rounding
    return max(apart(*losses, f'{case}, loss', most=most), *(
        apart(a, b, f'{case}, gradient of {key}', least, 10 * most) for key, (a, b) in grads.items()))


# ---- on a CPU ----

def act_rows(clock):
    model = smolvla.Model(fine_tuned()).eval()
    data, ways = drawn(smolvla, model.cfg, 1), {'ours': model, 'other': timing.like(model, Uncached).eval()}

    def answer(way): return way.act(data, [torch.Generator().manual_seed(seed)])
    difference = apart(*map(answer, ways.values()), 'act')
    took = clock.times({name: partial(answer, way) for name, way in ways.items()})
    return [timing.compared('act', 'cached', took['ours'], 'uncached', took['other'], 0.2, difference)]


def phases_of(clock, pairs):
    """{name: (model, batch)} -> {name: {phase: seconds of each repetition}}, steps in turn."""
    took, steps = {name: [] for name in pairs}, {}
    for name, (model, data) in pairs.items():
        theirs = getattr(model, 'optimizer', None)       # LeRobot's, with its settings
        optimizer = theirs() if theirs else model.configure_optimizers(timing.LR, timing.DECAY, timing.BETAS)
        model.zero_grad(set_to_none=True)
        steps[name] = timing.phased(model.train(), data, optimizer, clock, took[name])
    clock.times(steps)
    return {name: dict(zip(timing.PHASES, zip(*seconds[1:]))) for name, seconds in took.items()}


def step_rows(clock):
    model = smolvla.Model(fine_tuned())
    data = drawn(smolvla, model.cfg, batch)
    ways = {'ours': (model, data), 'inside': (timing.like(model, Inside), data),
            'stored': (timing.like(model, smolvla.Model), stored(model, data))}
    apart_by = {name: same_step(name, *zip(ways['ours'], ways[name]), most=most)
                for name, most in (('inside', 1e-4), ('stored', 1e-2))}              # 16 bits
    took = phases_of(clock, ways)
    pairs = (('state apart', 'ours', 'inside the prefix', 'inside', 'inside', 'backward', 0.6),
             ('stored image tokens', 'stored', 'pixels', 'ours', 'stored', 'step', 0.4))
    return [timing.compared('step', f'{case}, {phase}', took[a][phase], against, took[b][phase],
                            most if phase == wanted else None, apart_by[which])
            for case, a, against, b, which, wanted, most in pairs for phase in timing.PHASES]


def lerobot_rows(clock):
    model = smolvla.Model(fine_tuned())
    with torch.no_grad():                                # it numbers the rows of patches 0, 0, 1, ... 30
        model.vision.position.weight.zero_()
    theirs, data = upstream.TheirVLA(model), drawn(smolvla, model.cfg, batch)
    other = theirs.renamed(model, data)
    model.eval()

    @torch.no_grad()
    def ours(): return model.sample(model.encode(data), data['noise'])
    difference = apart(ours(), theirs.act(other), 'lerobot, act', most=1e-4)
    took = clock.times({'ours': ours, 'theirs': partial(theirs.act, other)})
    rows = [timing.compared('lerobot', 'act', took['ours'], 'LeRobot', took['theirs'], difference=difference)]
    difference = same_step('lerobot', (model, theirs), (data, other), smolvla.published)
    took = phases_of(clock, {'ours': (model, data), 'theirs': (theirs, other)})
    return rows + [timing.compared('lerobot', phase, took['ours'][phase], 'LeRobot', took['theirs'][phase],
                                   0.85 if phase == 'step' else None, difference) for phase in timing.PHASES]


def saved_bytes(model, data):
    """A forward pass -> bytes that it keeps for the gradient, without weights and what comes in."""
    known = {x.untyped_storage().data_ptr() for x in (*model.state_dict().values(), *data.values())}
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(data)['loss']                       # it keeps them alive: no two share an address
    del loss
    return sum(n for at, n in kept.items() if at not in known)


def three_cameras(**over):
    """pi0's Config, as published, with three cameras and one task."""
    return replace(pi0.PRESETS[preset], cameras=('a', 'b', 'c'), draws=1, tasks=(TASK,), **over)


def checkpointing_rows(clock):
    cfg = three_cameras(**EIGHTH if preset == 'full' else {})
    plain = pi0.Model(cfg)
    ways = {'ours': timing.like(plain, pi0.Model, replace(cfg, gradient_checkpointing=True)), 'other': plain}
    data = drawn(pi0, cfg, batch)
    difference = same_step('checkpointing', ways.values(), (data, data), most=0)
    saved = [saved_bytes(model, data) for model in ways.values()]
    took = phases_of(clock, {name: (model, data) for name, model in ways.items()})

    def against(case, ours, other, most=None, unit='s'):
        return timing.compared('checkpointing', case, ours, 'all kept', other, most, difference, unit)
    rows = [against(phase, took['ours'][phase], took['other'][phase], 1.5 if phase == 'fwd+bwd' else None)
            for phase in timing.PHASES]
    return rows + [against('saved for backward', saved[:1], saved[1:], 0.1, 'bytes')]


def import_rows(clock):
    took = import_times(clock, ('pi0', 'smolvla'), '' if upstream.lacking_vla() else 'smolvla')
    pairs = ('pi0', 'torch', 1.5), ('smolvla', 'torch', 1.5), ('smolvla', 'LeRobot', None)
    return [timing.compared('import', name, took[name], other, took[other], most)
            for name, other, most in pairs if other in took]


def gpu_rows(clock):
    # a prompt with numbers does not fit where a small model reads
    room = {} if preset == 'full' else {'tokenizer_max_length': 64}
    models = {'pi0': (pi0, three_cameras()), 'pi05': (pi0, three_cameras(pi05=True, **room)),
              'smolvla': (smolvla, fine_tuned(cameras=('a', 'b')))}
    return vla_gpu.rows(models, clock, batch, peak_flops, bandwidth)


ROWS = {'act': act_rows, 'step': step_rows, 'lerobot': lerobot_rows, 'checkpointing': checkpointing_rows,
        'load': lambda clock: vla_files.rows(fine_tuned(), clock), 'import': import_rows, 'gpu': gpu_rows}


def main():
    configure(globals())
    unknown = [part for part in what if part not in ROWS]
    if unknown or not what:
        sys.exit(f'what = {", ".join(unknown)}: choose from {", ".join(ROWS)}')
    if batch < 1 or threads < 1 or preset not in smolvla.PRESETS:
        sys.exit(f'preset = {preset}, batch = {batch}, threads = {threads}: want one of '
                 f'{", ".join(smolvla.PRESETS)}, at least 1, and at least 1')
    if 'gpu' in what and len(what) > 1:
        sys.exit('gpu: only alone, the rest is timed on the CPU')
    clock = timing.Clock(*(device, dtype) if 'gpu' in what else ('cpu', 'float32'), reps)
    clock.now = time.perf_counter if clock.on_cuda else time.process_time
    if 'lerobot' in what and (why := upstream.lacking_vla()):
        sys.exit(f'lerobot: LeRobot {upstream.VERSION} cannot be imported ({why}); the top of '
                 'bench/upstream.py says how to install it')
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)                       # as in train.py
    rows, name = [], '_'.join(['versus_vla', *(what if {*what} != {*USUAL} else ())])
    path = timing.result_path(out, name, clock)
    for part in what:
        torch.manual_seed(seed)
        rows += ROWS[part](clock)
    beside = {'lerobot', 'import', 'gpu'} & {*what} and not upstream.lacking_vla()
    packages = ('lerobot', 'transformers') if beside else ()
    timing.finish(path, 'versus_vla', rows, clock, hide=('ratios',), dtype=clock.dtype, preset=preset,
                  batch=batch, packages={name: version(name) for name in packages})
    for x in rows:
        if x['most'] and x['ratio'] > x['most']:
            print(f'missed: {x["part"]}, {x["case"]}, {x["ratio"]:.3g}; wanted {x["most"]}')


if __name__ == '__main__':
    timing.stoppable(main)
