"""
pi0 and pi0.5 on a GPU, for bench/versus_vla.py: a chunk of actions against the least that it can cost, and a
training step. Weights are drawn; a step has them in float32, acting in the dtype of the clock.
"""
import sys
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pi0
from bench import step as stepping
from bench import timing
from bench.versus_lerobot import apart
from logger import peak_of

# bytes/s of the memory, from the data sheets; the first name that occurs wins
BANDWIDTH = {'H100': 3.35e12, 'H200': 4.8e12, 'A100': 2.04e12, 'L40S': 0.864e12, 'RTX 4090': 1.01e12}
NEAR = 5e-2                   # chunks of two ways differ by less, relative to their norm


def drawn(M, cfg, n):
    """A batch of n samples with its noise and times."""
    noise = torch.randn(n, cfg.chunk_size, cfg.max_action_dim)
    return M.example(cfg, n) | {'noise': noise, 't': torch.rand(n)}


def rates(clock, flops, bandwidth):
    """FLOP/s and bytes/s of the device: what is said, or those of its data sheet."""
    name = clock.name()
    flops = flops or peak_of(name)
    bandwidth = bandwidth or next((rate for part, rate in BANDWIDTH.items() if part in name), 0)
    if not flops or not bandwidth:
        sys.exit(f'gpu: nothing is known of {name}; say --peak_flops=FLOP/s and --bandwidth=bytes/s')
    return flops, bandwidth


def least(cfg):
    """
    What a chunk costs at least: (FLOPs, bytes) of `encode`, and of all steps. FLOPs of matmuls as torch counts
    them; every weight is read once, those of the expert in every step, in 16 bit.
    """
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
    return [*zip(work, (once, each * cfg.num_inference_steps))]


def ways(model, data, clock, modes):
    """
    {name: a way to a chunk}, all with the same weights. A graph holds `encode` and `sample`: `act` looks at
    numbers of the task on the host, and draws noise there.
    """
    found = {}
    for mode in modes:
        other = timing.like(model, pi0.Model).eval()
        if mode == 'compiled':
            other.encode, other.velocity = (torch.compile(f, dynamic=False)
                                            for f in (other.encode, other.velocity))

        def chunk(other=other):
            with torch.no_grad(), clock.autocast():
                x = other.sample(other.encode(data), data['noise'])
                return other.unnormalise(x[..., :other.cfg.action_dim], 'action')
        found[mode] = chunk
        if clock.on_cuda:
            kept = {}
            replay = stepping.graphed(lambda chunk=chunk, kept=kept: kept.update(chunk=chunk()))
            found[f'{mode}, graph'] = lambda replay=replay, kept=kept: (replay(), kept['chunk'])[1]
    return found


def fresh(cfg, clock):
    """A model that is drawn where it will live."""
    with torch.device(clock.device):
        return pi0.Model(cfg).to(clock.device)


def act_rows(name, cfg, clock, modes, flops, bandwidth):
    model, data = fresh(cfg, clock).eval(), timing.to(drawn(pi0, cfg, 1), clock.device)
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, clock.dtype))
    parts, found = least(cfg), ways(model, data, clock, modes)
    floor = sum(max(work / flops, read / bandwidth) for work, read in parts)
    work, read = map(sum, zip(*parts))
    first = next(iter(found.values()))()
    differences = {way: apart(chunk(), first, f'{name}, {way}', most=NEAR) for way, chunk in found.items()}
    return [timing.compared(
        'gpu', f'{name} act, {way}, weights {clock.dtype}', took,
        f'floor: {work / 1e12:.3g} TFLOP, {read / 1e9:.3g} GB', [floor] * len(took),
        3 if way == 'compiled, graph' else None, differences[way]) for way, took in clock.times(found).items()]


def step_of(cfg, clock, mode, n):
    """A training step -> seconds of each repetition, [GiB at its peak, on a GPU]; None: there is no room."""
    try:
        model, data = fresh(cfg, clock).train(), timing.to(drawn(pi0, cfg, n), clock.device)
        if mode == 'compiled':
            model.compile(dynamic=False)
        step = timing.train_step(model, data, clock)
        if clock.on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        took = clock.times({'step': step})['step']
        return took, [torch.cuda.max_memory_allocated() / 2 ** 30] if clock.on_cuda else []
    except torch.OutOfMemoryError:
        return None


def training_rows(name, cfg, clock, modes, n, flops):
    """ratio: 1 / MFU, for the floor counts what is computed again no second time."""
    table = []
    with torch.device('meta'):
        floor = n * pi0.Model(cfg).flops_per_sample() / flops
    for mode in modes:
        memory = []
        for again, how in (False, 'all kept'), (True, 'recomputed'):
            case = f'{name} step, {mode}, {how}, batch {n}'
            done = step_of(replace(cfg, gradient_checkpointing=again), clock, mode, n)
            if done is None:
                print(f'{case}: the memory does not suffice')
                continue
            took, peak = done
            table.append(timing.compared('gpu', case, took, 'floor: matmuls', [floor] * len(took)))
            memory += [peak] if peak else []
        if len(memory) == 2:
            table.append(timing.compared('gpu', f'{name} step, {mode}, memory, recomputed', memory[1],
                                         'all kept', memory[0], unit='GiB'))
    return table


def rows(cfg, clock, n, flops, bandwidth):
    flops, bandwidth = rates(clock, flops, bandwidth)
    table, modes = [], ('eager', 'compiled') if clock.on_cuda else ('eager',)
    for pi05, name in (False, 'pi0'), (True, 'pi05'):
        # a small model's prompt is too short for numbers; 0: as published
        cfg = replace(cfg, pi05=pi05, tokenizer_max_length=64 if cfg.tokenizer_max_length else 0)
        table += act_rows(name, cfg, clock, modes, flops, bandwidth)
        table += training_rows(name, cfg, clock, modes, n, flops)
    return table
