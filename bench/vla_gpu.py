"""
pi0, pi0.5 and SmolVLA on a GPU, for bench/versus_vla.py: a chunk of actions against the least that it can
cost, and a training step. Weights are drawn; a step has them in float32, acting in the dtype of the clock.
"""
import gc
import sys
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import smolvla
from bench import step as stepping
from bench import timing, upstream
from bench.versus_lerobot import apart
from logger import peak_of

# bytes/s of the memory, from the data sheets; the first name that occurs wins
BANDWIDTH = {'H100': 3.35e12, 'H200': 4.8e12, 'A100': 2.04e12, 'L40S': 8.64e11, 'RTX 4090': 1.01e12}
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


def least(M, cfg):
    """
    What a chunk costs at least: (FLOPs, bytes) of `encode`, and of all steps. FLOPs are those of matmuls, as
    torch counts them; every weight is read once, those of the expert in every step, in 16 bit.
    """
    with torch.device('meta'):
        model = M.Model(cfg).to('meta')
        data = drawn(M, cfg, 1)

    def counted(f, *args):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            answer = f(*args)
        return counter.get_total_flops(), answer
    looking, cache = counted(model.encode, data)
    step, _ = counted(model.velocity, data['noise'], data['t'], cache)

    def size(parts): return 2 * sum(p.numel() for part in parts for p in part.parameters())
    acting = 'expert', 'action', 'time'
    each = size(part for name, part in model.named_children() if name.startswith(acting))
    across = size(part for layer in model.expert.layers if getattr(layer, 'cross', False)
                  for part in (layer.k_proj, layer.v_proj))          # of SmolVLA: of what is seen
    each, once = each - across, size((model.vision, model.projector, model.vlm)) + across
    n = getattr(cfg, M.SAMPLING[1])                      # calls of the expert
    return [(looking, once), (n * step, n * each)]


def ways(M, model, data, clock, modes):
    """
    {name: a way to a chunk}, all with the same weights. A graph holds `encode` and `sample`: `act` looks at
    numbers of the task on the host, and draws noise there.
    """
    found = {}
    for mode in modes:
        other = timing.like(model, M.Model).eval()
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


def theirs(model, data, clock):
    """A chunk of LeRobot's, with our weights."""
    policy = upstream.TheirVLA(model).to(clock.device, getattr(torch, clock.dtype)).eval()
    batch = policy.renamed(model, data)

    def chunk():
        with torch.no_grad(), clock.autocast():
            return policy.act(batch)
    return chunk


def fresh(M, cfg, clock):
    """A model that is drawn where it will live."""
    with torch.device(clock.device):
        return M.Model(cfg).to(clock.device)


def act_rows(name, M, cfg, clock, modes, flops, bandwidth):
    model, data = fresh(M, cfg, clock).eval(), timing.to(drawn(M, cfg, 1), clock.device)
    for p in model.parameters():
        if p.ndim > 1:                                   # norms are computed in float32
            p.data = p.data.to(getattr(torch, clock.dtype))
    parts, found = least(M, cfg), ways(M, model, data, clock, modes)
    if M is smolvla and not upstream.lacking_vla():
        found['LeRobot'] = theirs(model, data, clock)
    floor = sum(max(work / flops, read / bandwidth) for work, read in parts)
    work, read = map(sum, zip(*parts))
    against = f'floor: {work / 1e12:.3g} TFLOP, {read / 1e9:.3g} GB'
    first = next(iter(found.values()))()
    apart_by = {way: apart(chunk(), first, f'{name}, {way}', most=NEAR) for way, chunk in found.items()}
    took = clock.times(found)

    def row(way, other, seconds, most):
        return timing.compared('gpu', f'{name} act, {way}, weights {clock.dtype}', took[way], other, seconds,
                               most if way == 'compiled, graph' else None, apart_by[way])
    rows = [row(way, against, [floor] * clock.reps, 3) for way in took]
    return rows + [row(way, 'LeRobot', took['LeRobot'], 0.5) for way in took
                   if 'LeRobot' in took and way != 'LeRobot']


def step_of(M, cfg, clock, mode, n):
    """A training step -> seconds of each repetition, [GiB at its peak, on a GPU]; None: there is no room."""
    gc.collect()                                         # what a compiled model leaves behind
    try:
        model, data = fresh(M, cfg, clock).train(), timing.to(drawn(M, cfg, n), clock.device)
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


def training_rows(name, M, cfg, clock, modes, n, flops):
    """ratio: 1 / MFU, for the floor counts what is computed again no second time."""
    table = []
    with torch.device('meta'):
        floor = n * M.Model(cfg).flops_per_sample() / flops
    for mode in modes:
        memory = []
        for again, how in (False, 'all kept'), (True, 'recomputed'):
            case = f'{name} step, {mode}, {how}, batch {n}'
            done = step_of(M, replace(cfg, gradient_checkpointing=again), clock, mode, n)
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


def rows(models, clock, n, flops, bandwidth):
    """models: {name: (its file, Config)}; a step has n samples."""
    flops, bandwidth = rates(clock, flops, bandwidth)
    table, modes = [], ('eager', 'compiled') if clock.on_cuda else ('eager',)
    for name, (M, cfg) in models.items():
        table += act_rows(name, M, cfg, clock, modes, flops, bandwidth)
        table += training_rows(name, M, cfg, clock, modes, n, flops)
    return table
