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
gpu            pi0 and pi0.5, three cameras: a chunk eager, compiled and as a CUDA graph, against the floor; a
               step against its floor (so `ratio` is 1 / MFU), and its memory

`ratio` is the median of ours / other within a repetition, low and high are its extremes, `most` is what the
issue asks for. What is compared takes turns, has the same weights and sees the same batch, and gives the same
numbers up to `difference`, or nothing is timed. On a CPU seconds are those of the CPU.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
import pi0
import smolvla
import words
from bench import step as stepping
from bench import timing, upstream
from bench.versus_lerobot import apart, import_times
from logger import peak_of

what = ('act', 'step', 'checkpointing', 'load', 'import')            # and lerobot, gpu
preset = 'full'               # a name in PRESETS of both model files
batch = 1                     # samples per step
reps = 5                      # timed repetitions
seed = 0                      # of weights and data
device = 'auto'               # auto = cuda if there is one, else cpu; all but gpu want cpu
dtype = 'auto'                # float32 | bfloat16 (autocast; gpu: weights too while acting)
threads = 1                   # CPU threads
peak_flops = 0.0              # gpu: FLOP/s of the device; 0 = its data sheet's
bandwidth = 0.0               # gpu: bytes/s of its memory; 0 = its data sheet's
out = ''                      # JSON; '' = bench/results/versus_vla_<what>_<device>.json

USUAL, TASK = what, 'pick up the red cube'
EIGHTH = dict(paligemma_variant='256x18x2048x8x1x32', action_expert_variant='128x18x512x8x1x32',
              vision_variant='144x27x538x16x14', vocab_size=257152 // 8)
# bytes/s of the memory, from the data sheets; the first name that occurs wins
BANDWIDTH = {'H100': 3.35e12, 'H200': 4.8e12, 'A100': 2.04e12, 'L40S': 0.864e12, 'RTX 4090': 1.01e12}


def row(part, case, ours, against, other, most=None, difference=None, unit='s'):
    """ours, other: what each repetition took."""
    ratios = timing.ratios(ours, other)
    return dict(part=part, case=case, against=against, unit=unit, ours=median(ours), other=median(other),
                ratio=median(ratios), low=min(ratios), high=max(ratios), most=most, difference=difference,
                ratios=ratios)


# ---- the same model in other ways ----

def fine_tuned(**over):
    """SmolVLA's Config as it is fine-tuned by default; every number is real, as LeRobot's loss takes them."""
    cfg = smolvla.PRESETS[preset]
    return replace(cfg, train_expert_only=True, freeze_vision_encoder=True, draws=1, tasks=(TASK,),
                   action_dim=cfg.max_action_dim, **over)


def like(model, kind, cfg=None):
    """A `kind` of model that has the very weights of this one."""
    with torch.device('meta'):
        other = kind(cfg or model.cfg)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def drawn(M, cfg, n=0):
    """A batch with its noise and times."""
    n = n or batch
    return M.example(cfg, n) | {'noise': torch.randn(n, cfg.chunk_size, cfg.max_action_dim), 't': torch.rand(n)}


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


class Stored(smolvla.Model):
    """Image tokens come with the batch, as features.<camera> (B, 1, 64, 960) in 16 bit."""

    def look(self, batch):
        seen = [batch[f'features.{camera}'][:, -1].float() for camera in self.cfg.cameras]
        return seen, [torch.ones_like(x[:, 0, 0], dtype=torch.bool) for x in seen]

    def prefix(self, seen, there, tokens, real):
        scale = self.embed_tokens.embedding_dim ** 0.5
        real = torch.cat([torch.ones_like(x[..., 0], dtype=torch.bool) for x in seen] + [real], 1)
        return scale * torch.cat([*seen, self.embed_tokens(tokens)], 1), real


@torch.no_grad()
def features(model, data):
    """What would be stored of the pictures: image tokens, before the scale."""
    tokens = model.projector(smolvla.shuffled(model.vision(torch.cat(model.look(data)[0])),
                                              model.cfg.scale_factor))
    rows = tokens.chunk(len(model.cfg.cameras))
    return {f'features.{camera}': x[:, None].half() for camera, x in zip(model.cfg.cameras, rows)}


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
    data, ways = drawn(smolvla, model.cfg, 1), {'ours': model, 'other': like(model, Uncached).eval()}

    def answer(way): return way.act(data, [torch.Generator().manual_seed(seed)])
    difference = apart(*map(answer, ways.values()), 'act')
    took = clock.times({name: partial(answer, way) for name, way in ways.items()})
    return [row('act', 'cached', took['ours'], 'uncached', took['other'], 0.2, difference)]


def phases_of(clock, pairs):
    """{name: (model, batch)} -> {name: {phase: seconds of each repetition}}, steps in turn."""
    took = {name: [] for name in pairs}
    steps = {}
    for name, (model, data) in pairs.items():
        inner = getattr(model, 'optimizer', None)        # LeRobot's own
        optimizer = inner() if inner else model.configure_optimizers(timing.LR, timing.DECAY, timing.BETAS)
        model.zero_grad(set_to_none=True)
        steps[name] = timing.phased(model.train(), data, optimizer, clock, took[name])
    clock.times(steps)
    return {name: dict(zip(timing.PHASES, zip(*seconds[1:]))) for name, seconds in took.items()}


def step_rows(clock):
    model = smolvla.Model(fine_tuned())
    data = drawn(smolvla, model.cfg)
    tokens = data | features(model, data)
    ways = {'ours': (model, data), 'inside': (like(model, Inside), data), 'stored': (like(model, Stored), tokens)}
    apart_by = {name: same_step(name, *zip(ways['ours'], ways[name]), most=most)
                for name, most in (('inside', 1e-4), ('stored', 1e-2))}              # 16 bits
    took = phases_of(clock, ways)
    rows = [row('step', f'state apart, {phase}', took['ours'][phase], 'inside the prefix',
                took['inside'][phase], 0.6 if phase == 'backward' else None, apart_by['inside'])
            for phase in timing.PHASES]
    return rows + [row('step', f'stored image tokens, {phase}', took['stored'][phase], 'pixels',
                       took['ours'][phase], 0.4 if phase == 'step' else None, apart_by['stored'])
                   for phase in timing.PHASES]


def lerobot_rows(clock):
    model = smolvla.Model(fine_tuned())
    with torch.no_grad():                                # it numbers the rows of patches 0, 0, 1, ... 30
        model.vision.position.weight.zero_()
    theirs, data = upstream.TheirVLA(model), drawn(smolvla, model.cfg)
    batches = {'LeRobot, as many tokens': theirs.renamed(model, data),
               'LeRobot, without padding': theirs.renamed(model, data, longest=True)}
    model.eval()

    @torch.no_grad()
    def ours(): return model.sample(model.encode(data), data['noise'])
    acts = {name: partial(theirs.act, rows) for name, rows in batches.items()}
    chunk = ours()
    difference = max(apart(chunk, act(), 'lerobot, act', most=1e-4) for act in acts.values())
    took = clock.times({'ours': ours} | acts)
    rows = [row('lerobot', 'act', took['ours'], name, took[name], None, difference) for name in acts]
    difference = max(same_step('lerobot', (model, theirs), (data, other), smolvla.published)
                     for other in batches.values())
    took = phases_of(clock, {'ours': (model, data)} | {name: (theirs, x) for name, x in batches.items()})
    return rows + [row('lerobot', phase, took['ours'][phase], name, took[name][phase],
                       0.85 if phase == 'step' else None, difference)
                   for name in batches for phase in timing.PHASES]


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


def checkpointing_rows(clock):
    small = EIGHTH if preset == 'full' else {}
    cfg = replace(pi0.PRESETS[preset], cameras=('a', 'b', 'c'), draws=1, tasks=(TASK,), **small)
    plain = pi0.Model(cfg)
    ways = {'ours': like(plain, pi0.Model, replace(cfg, gradient_checkpointing=True)), 'other': plain}
    data = drawn(pi0, cfg)
    difference = same_step('checkpointing', ways.values(), (data, data), most=0)
    saved = [saved_bytes(model, data) for model in ways.values()]
    took = phases_of(clock, {name: (model, data) for name, model in ways.items()})
    return [row('checkpointing', 'saved', saved[:1], 'all kept', saved[1:], 0.1, difference, 'bytes')] + [
        row('checkpointing', phase, took['ours'][phase], 'all kept', took['other'][phase],
            1.5 if phase == 'fwd+bwd' else None, difference) for phase in timing.PHASES]


LOADING = '''
import torch, checkpoint, smolvla
torch.set_num_threads(1)
def told(key): return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if key in line)
before = told('VmRSS')
{line}
sum(x.float().sum() for x in model.parameters())         # a mapped file is in memory once it was read
print(told('VmHWM') - before, sum(x.nbytes for x in model.parameters()))
'''
KEPT = {f'{key}_{name}' for key in ('state', 'action') for name in ('mean', 'std')}


def published_folder(folder, model, kind):
    """As LeRobot saves a SmolVLA, without statistics; all weights are of this kind."""
    def feature(type_, *shape): return {'type': type_, 'shape': shape}
    cfg = model.cfg
    seen = {f'observation.images.{name}': feature('VISUAL', 3, cfg.height, cfg.width) for name in cfg.cameras}
    said = {key: value for key, value in asdict(cfg).items() if key not in ('tasks', 'cameras', 'tokenizer')}
    said |= {'type': 'smolvla', 'resize_imgs_with_padding': cfg.image_resolution,
             'input_features': seen | {'observation.state': feature('STATE', cfg.state_dim)},
             'output_features': {'action': feature('ACTION', cfg.action_dim)}}
    os.makedirs(folder)
    checkpoint.write_text(f'{folder}/config.json', json.dumps(said))
    weights = {smolvla.published(key): x.detach() for key, x in model.named_parameters()}
    weights |= {key: torch.zeros(shape) for key, shape in smolvla.dead(cfg).items()}
    save_file({f'model.{key}': x.to(kind) for key, x in weights.items()}, f'{folder}/model.safetensors')


def load_rows(clock):
    if not os.path.exists('/proc/self/status'):
        sys.exit('load: wants Linux, whose /proc tells the peak of a process')
    rows, cfg = [], fine_tuned()
    with tempfile.TemporaryDirectory() as folder:
        model = smolvla.Model(cfg)
        published_folder(f'{folder}/float32', model, torch.float32)
        published_folder(f'{folder}/bfloat16', model, torch.bfloat16)
        meta = dict(step=1, model='smolvla', model_config=asdict(cfg), config={}, data_sha='')
        checkpoint.save(f'{folder}/run', 1, model.state_dict(), None, {}, meta)
        del model
        cases = {f'from_pretrained, {kind}': f"model = smolvla.Model.from_pretrained('{folder}/{kind}', None)"
                 for kind in ('float32', 'bfloat16')}
        cases['a run of ours'] = f"model, _ = checkpoint.load('{folder}/run')"
        for name, tokenizer in ('float32', words.SAVED), ('run', ''):
            cases[f'init_from, {name}'] = (f'model = smolvla.{replace(cfg, tokenizer=tokenizer)!r}\n'
                                           'model = smolvla.Model(model)\n'
                                           f"checkpoint.start_from(model, smolvla, '{folder}/{name}', {KEPT})")
        for case, line in cases.items():
            command = [sys.executable, '-c', LOADING.format(line=line)]
            said = [subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
                    for _ in range(clock.reps)]
            peak, weights = zip(*[map(int, line.split()) for line in said])
            rows.append(row('load', case, peak, 'weights', weights, 1.3, unit='bytes'))
    return rows


def import_rows(clock):
    names = 'pi0', 'smolvla'
    took = import_times(clock, names, '' if upstream.lacking_vla() else 'smolvla')
    rows = [row('import', name, took[name], 'torch', took['torch'], 1.5) for name in names]
    return rows + [row('import', 'smolvla', took['smolvla'], 'LeRobot', took['LeRobot'])
                   for _ in range('LeRobot' in took)]


# ---- on a GPU ----

def least(cfg, clock):
    """
    What a chunk costs at least -> seconds, in words. The matmuls at the peak of the device, or all weights
    read once and those of the expert in every step, in 16 bit: whichever takes longer.
    """
    name = clock.name()
    flops = peak_flops or peak_of(name)
    rate = bandwidth or next((rate for part, rate in BANDWIDTH.items() if part in name), 0)
    if not flops or not rate:
        sys.exit(f'gpu: nothing is known of {name}; say --peak_flops=FLOP/s and --bandwidth=bytes/s')
    with torch.device('meta'):
        model = pi0.Model(cfg).to('meta')
        data = drawn(pi0, cfg, 1)
    work = []

    def counted(f, *args):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            answer = f(*args)
        work.append(counter.get_total_flops())
        return answer
    counted(model.sample, counted(model.encode, data), data['noise'])
    size = {name: 2 * sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    once = sum(size[name] for name in ('vision', 'projector', 'vlm'))
    each = sum(n for name, n in size.items() if name.startswith(('expert', 'action', 'time')))
    read = once, each * cfg.num_inference_steps
    return (sum(max(a / flops, b / rate) for a, b in zip(work, read)), flops,
            f'floor of {sum(work) / 1e12:.3g} TFLOP, {sum(read) / 1e9:.3g} GB')


def chunk_ways(model, data, clock, modes):
    """{name: a way to a chunk}; all have the same weights. encode and sample are captured, for act waits."""
    ways = {}
    for mode in modes:
        other = like(model, pi0.Model).eval()
        if mode == 'compiled':
            other.encode, other.velocity = (torch.compile(f, dynamic=False)
                                            for f in (other.encode, other.velocity))

        def chunk(other=other):
            with torch.no_grad(), clock.autocast():
                return other.unnormalise(other.sample(other.encode(data), data['noise'])
                                         [..., :other.cfg.action_dim], 'action')
        ways[mode] = chunk
        if clock.on_cuda:
            kept = {}
            replay = stepping.graphed(lambda chunk=chunk, kept=kept: kept.update(chunk=chunk()))
            ways[f'{mode}, CUDA graph'] = lambda replay=replay, kept=kept: (replay(), kept['chunk'])[1]
    return ways


def fresh(cfg, clock):
    """A model that is drawn where it will live."""
    with torch.device(clock.device):
        return pi0.Model(cfg).to(clock.device)


def chunk_rows(name, cfg, clock, modes):
    model, data = fresh(cfg, clock).eval(), timing.to(drawn(pi0, cfg, 1), clock.device)
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, clock.dtype))
    seconds, _, words_ = least(cfg, clock)
    ways = chunk_ways(model, data, clock, modes)
    differences = [apart(way(), ways[modes[0]](), f'{name}, {mode}', most=5e-2) for mode, way in ways.items()]
    return [row('gpu', f'{name} act, {mode}, weights {clock.dtype}', seen, words_, [seconds] * len(seen),
                3 if 'graph' in mode and 'compiled' in mode else None, difference)
            for (mode, seen), difference in zip(clock.times(ways).items(), differences)]


def step_of(cfg, clock, mode):
    """A training step with float32 weights -> seconds of each repetition, GiB at its peak; None: no room."""
    model = step = None
    try:
        model, data = fresh(cfg, clock).train(), timing.to(drawn(pi0, cfg), clock.device)
        if mode == 'compiled':
            model.compile(dynamic=False)
        step = timing.train_step(model, data, clock)
        if clock.on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        took = clock.times({'step': step})['step']
        return took, [torch.cuda.max_memory_allocated() / 2 ** 30] * clock.on_cuda
    except torch.OutOfMemoryError:
        return None


def training_rows(name, cfg, clock, modes):
    rows, peak = [], least(cfg, clock)[1]
    with torch.device('meta'):
        floor = batch * pi0.Model(cfg).flops_per_sample() / peak
    for mode in modes:
        memory = []
        for again, how in (False, 'all kept'), (True, 'recomputed'):
            case = f'{name} step, {mode}, {how}, batch {batch}'
            done = step_of(replace(cfg, gradient_checkpointing=again), clock, mode)
            if done is None:
                print(f'{case}: the memory does not suffice')
                continue
            rows.append(row('gpu', case, done[0], 'matmuls at the peak', [floor] * len(done[0])))
            memory.append(done[1])
        if len(memory) == 2 and memory[0]:
            rows.append(row('gpu', f'{name} step, {mode}, memory, recomputed', memory[1], 'all kept', memory[0],
                            unit='GiB'))
    return rows


def gpu_rows(clock):
    rows, modes = [], ('eager', 'compiled') if clock.on_cuda else ('eager',)
    for pi05, name in (False, 'pi0'), (True, 'pi05'):
        cfg = replace(pi0.PRESETS[preset], pi05=pi05, cameras=('a', 'b', 'c'), draws=1, tasks=(TASK,))
        if preset != 'full':                             # their prompts are too short for numbers
            cfg = replace(cfg, tokenizer_max_length=64)
        rows += chunk_rows(name, cfg, clock, modes) + training_rows(name, cfg, clock, modes)
    return rows


ROWS = {'act': act_rows, 'step': step_rows, 'lerobot': lerobot_rows, 'checkpointing': checkpointing_rows,
        'load': load_rows, 'import': import_rows, 'gpu': gpu_rows}


def main():
    configure(globals())
    unknown = [part for part in what if part not in ROWS]
    if unknown or not what:
        sys.exit(f'what = {", ".join(unknown)}: choose from {", ".join(ROWS)}')
    if batch < 1 or threads < 1 or preset not in smolvla.PRESETS:
        sys.exit(f'preset = {preset}, batch = {batch}, threads = {threads}: want one of '
                 f'{", ".join(smolvla.PRESETS)}, at least 1, and at least 1')
    clock = timing.Clock(device if {*what} == {'gpu'} else 'cpu', dtype, reps)
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
    packages = () if upstream.lacking_vla() else ('lerobot', 'transformers')
    timing.finish(path, 'versus_vla', rows, clock, hide=('ratios',), dtype=clock.dtype, preset=preset,
                  batch=batch, packages={name: version(name) for name in packages})
    for missed in rows:
        if missed['most'] and missed['ratio'] > missed['most']:
            print(f'missed: {missed["part"]}, {missed["case"]}: {missed["ratio"]:.3g}, wanted {missed["most"]}')


if __name__ == '__main__':
    timing.stoppable(main)
