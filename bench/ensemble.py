"""
What does the stacked ensemble of arx5_gpt.py cost, and how fast does it dream? A table on stdout, as JSON in
bench/results/.

    python bench/ensemble.py --dtypes=float32,bfloat16      a whole optimizer step against a loop of plain members
    python bench/ensemble.py --what=rollout --sizes=cpu     frames per second: exact, cached, and those of MuJoCo
    python bench/ensemble.py --what=rollout --ckpt=out/arx5_cpu      the same with trained weights
    python bench/ensemble.py --what=loader --sizes=cpu,full          how much of a step is spent waiting for data
    python bench/ensemble.py --what=gpu                     loop, eager, compiled, CUDA graph, and kernel launches

The plain way is what most of us write first: one nanoGPT per member, each stepped after the other. Both ways get the
same weights and windows; outputs, losses and the weights after one step are compared before anything is timed. They
take turns, repetition by repetition, and `ratio` is the median of stacked / loop within a repetition, so that a busy
machine slows both. The floor: FLOPs of the matmuls (flops_per_sample), at the rate of one large matmul alone.
"""
import copy
import math
import os
import sys
import tempfile
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import arx5_gpt
import checkpoint
from bench import step as timing
from configurator import configure

what = 'step'                 # step | rollout | loader | gpu
sizes = ('full',)             # full = depth 6, 12 heads, hidden 384, 128 windows; cpu = 2, 4, 64, 64 windows
dtypes = ('auto',)            # float32 | bfloat16 (autocast); auto = bfloat16 on cuda, else float32
members = 2                   # of the ensemble
batch = 0                     # windows per step, all members together; 0 = the size's
candidates = 0                # trajectories of a rollout; 0 = 256, of the full size on a CPU 8
frames = 50                   # of a rollout, after a whole history of context
ckpt = ''                     # rollout: a trained run instead of `sizes`; context from its validation data
reps = 7                      # timed repetitions per variant
loader_steps = 20             # timed steps of --what=loader
seed = 0                      # of weights, windows and commands
device = 'auto'               # auto = cuda if there is one, else cpu
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/ensemble_<what>[_trained]_<device>.json

SIZES = {'full': (128, dict(depth=6, heads=12, hidden=384)), 'cpu': (64, dict(depth=2, heads=4, hidden=64))}
LR, DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0             # as published
TOLERANCE = 1e-5              # float32: what the two ways may differ by


# ---- the plain way: nanoGPT's blocks, one network per member ----

class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.c_attn = nn.Linear(cfg.hidden, 3 * cfg.hidden, cfg.bias)
        self.c_proj = nn.Linear(cfg.hidden, cfg.hidden, cfg.bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.c_attn(x).split(C, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C = cfg.hidden
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=cfg.bias), nn.LayerNorm(C, bias=cfg.bias)
        self.attn = Attention(cfg)
        self.mlp = nn.ModuleDict({'c_fc': nn.Linear(C, 4 * C, cfg.bias), 'c_proj': nn.Linear(4 * C, C, cfg.bias)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class Member(nn.Module):
    """Member i of a stacked model as a network of its own, with its weights."""

    def __init__(self, model, i):
        super().__init__()
        cfg = model.cfg
        self.in_proj = nn.Linear(cfg.state_dim + cfg.action_dim, cfg.hidden)
        self.transformer = nn.ModuleDict({
            'wpe': nn.Embedding(cfg.history, cfg.hidden),
            'h': nn.ModuleList([Block(cfg) for _ in range(cfg.depth)]),
            'ln_f': nn.LayerNorm(cfg.hidden, bias=cfg.bias)})
        self.head = nn.Linear(cfg.hidden, cfg.state_dim)
        self.load_state_dict(model.member(i))
        self.to(model.state_mean.device)

    def forward(self, x):
        """Tokens x (B, T, S+A) -> (B, T, S)."""
        with torch.autocast(x.device.type, enabled=False):           # in float32, as the stacked model
            x = self.in_proj(x.float()) + self.transformer.wpe.weight[:x.shape[1]]
        for block in self.transformer.h: x = block(x)
        with torch.autocast(x.device.type, enabled=False): return self.head(self.transformer.ln_f(x.float()))

    def optimizer(self):
        """The same two groups as the stacked model's."""
        flat = {name: name.endswith('bias') or '.ln_' in name for name, _ in self.named_parameters()}
        groups = [{'params': [p for name, p in self.named_parameters() if flat[name] == still],
                   'weight_decay': 0.0 if still else DECAY} for still in (False, True)]
        return torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)


def member_loss(model, net, state, action):
    """What arx5_gpt.Model.forward does for one member; the model lends its statistics and its arithmetic on them."""
    now, then = state[:, :-1], state[:, 1:]
    out = net(model.tokens(now, action)).float()
    origin, scale = model.state_frame(now)
    return (out - (then - origin) / scale).square().mean()


# ---- one optimizer step, both ways ----

def stacked_step(model, data, optimizer=None):
    """data: a batch, or a function that returns the next one. What train.py does in a step."""
    optimizer = optimizer or model.configure_optimizers(LR, DECAY, BETAS)

    def step():
        with timing.autocast(): loss = model(data() if callable(data) else data)['loss']
        loss.backward()
        model.clip_grad(CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def loop_step(model, nets, data):
    """The same step, member after member, each with its windows, its clip and its optimizer."""
    optimizers = [net.optimizer() for net in nets]
    parts = [(model.deal(data['state'])[i], model.deal(data['action'])[i]) for i in range(len(nets))]

    def step():
        for net, optimizer, (state, action) in zip(nets, optimizers, parts):
            with timing.autocast(): loss = member_loss(model, net, state, action)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return step


def build(size):
    """-> a fresh model in training mode on the device, and a batch of noise for it."""
    n, shape = SIZES[size]
    cfg, n = arx5_gpt.Config(members=members, q_index=tuple(range(7)), **shape), batch or n
    if n % members: sys.exit(f'batch = {n}: make it a multiple of members = {members}')
    data = {'state': torch.randn(n, cfg.history + 1, cfg.state_dim, device=device),
            'action': torch.randn(n, cfg.history, cfg.action_dim, device=device)}
    return arx5_gpt.Model(cfg).to(device).train(), data


@torch.no_grad()
def differences(model, nets, data):
    """Largest difference of outputs and of losses between the two ways."""
    state, action = model.deal(data['state']), model.deal(data['action'])
    tokens = model.tokens(state[:, :, :-1], action)
    with timing.autocast():
        ours, theirs = model.net(tokens), torch.stack([net(x) for net, x in zip(nets, tokens)])
        losses = sum(member_loss(model, net, s, a) for net, s, a in zip(nets, state, action))
        loss = model(data)['loss']
    return {'outputs_differ': (ours - theirs).abs().max().item(), 'losses_differ': (loss - losses).abs().item()}


def weights_differ(model, nets):
    """
    Largest difference of weights, after a step. The bias of the keys is left out: it adds the same to all scores of a
    query, so its gradient is rounding alone, and Adam's first step makes a whole lr of the sign of anything.
    """
    worst, C = 0.0, model.cfg.hidden
    for i, net in enumerate(nets):
        theirs = net.state_dict()
        for key, p in model.member(i).items():
            apart = (p - theirs[key]).abs()
            if key.endswith('c_attn.bias'): apart[C:2 * C] = 0
            worst = max(worst, apart.max().item())
    return worst


def equal(model, nets, data, ways):
    """Compare before and after one step of each way; stop if float32 shows that they are two different functions."""
    apart = differences(model, nets, data)
    for step in ways.values(): step()
    apart['weights_differ'] = weights_differ(model, nets)
    worst = max(apart, key=apart.get)
    if timing.dtype == 'float32' and not max(apart.values()) <= TOLERANCE:
        sys.exit(f'stacked and loop are not the same function: {worst} by {apart[worst]:.2g}, more than {TOLERANCE}; '
                 'nothing was timed')
    return apart


def matmul(model, data):
    """One product as large as the MLP's of a member, in the dtype that the model multiplies in; and its FLOPs."""
    rows, C = data['action'].shape[0] // members * model.cfg.history, model.cfg.hidden
    x, w = (torch.randn(shape, device=device, dtype=getattr(torch, timing.dtype)) for shape in ((rows, C), (C, 4 * C)))
    return lambda: x @ w, 2 * rows * C * 4 * C


def step_rows(size):
    model, data = build(size)
    nets = [Member(model, i) for i in range(members)]
    ways = {'stacked': stacked_step(model, data), 'loop': loop_step(model, nets, data)}
    apart = equal(model, nets, data, ways)
    product, product_flops = matmul(model, data)
    took = timing.times(ways | {'matmul': product})
    ratios = [a / b for a, b in zip(took['stacked'], took['loop'])]
    flops = len(data['state']) * model.flops_per_sample()
    return [dict(size=size, dtype=timing.dtype, windows=len(data['state']),
                 stacked_ms=median(took['stacked']) * 1e3, loop_ms=median(took['loop']) * 1e3, ratio=median(ratios),
                 gflops=flops / median(took['stacked']) / 1e9,
                 matmul_gflops=product_flops / median(took['matmul']) / 1e9,
                 **apart, ratios=ratios)]


# ---- imagined frames per second ----

def trained():
    """The run that ckpt names, a context and commands from its validation data, and what really happened then."""
    from data.loader import Store
    model, meta = checkpoint.load(ckpt, device=device)
    if meta['model'] != 'arx5_gpt': sys.exit(f'{ckpt} holds a {meta["model"]}; rollouts here are those of arx5_gpt')
    H, n = model.cfg.history, candidates or 256
    store = Store(os.path.join(meta['config']['data_dir'], meta['config']['dataset']), 'val',
                  {'state': range(H + frames), 'action': range(H + frames - 1)})
    data = {key: value.to(device) for key, value in store.batch(0, n, seed).items()}
    return model, data['state'], data['action']


def untrained(size):
    """Random weights and noise: speed does not depend on the numbers."""
    model, _ = build(size)
    H, n = model.cfg.history, candidates or (8 if size == 'full' and not device.startswith('cuda') else 256)
    state = torch.randn(n, H + frames, model.cfg.state_dim, device=device)
    return model.eval(), state, torch.randn(n, H + frames - 1, model.cfg.action_dim, device=device)


def mujoco_ways(n):
    """{name: n arms under safe commands for as many frames}, on one thread and on all; {} without MuJoCo."""
    from data.arx5 import env
    try: env.mujoco()
    except SystemExit as missing:
        print(f'rows of MuJoCo left out: {missing}')
        return {}
    action = np.stack([env.references(np.random.default_rng([seed, i]), frames) for i in range(n)])    # (n, K, 7)
    start = np.concatenate([action[:, 0], np.zeros_like(action[:, 0])], 1)                             # at rest
    return {('mujoco', k): lambda k=k: env.simulate(start, action, threads=k) for k in sorted({1, os.cpu_count()})}


def rollout_rows(size):
    model, state, action = trained() if ckpt else untrained(size)
    (n, H), sigma = (len(state), model.cfg.history), arx5_gpt.floor(model.state_std)
    context, future, results = {'state': state[:, :H], 'action': action[:, :H - 1]}, action[:, None, H - 1:], {}

    def way(name, chunk):
        def roll():
            with timing.autocast(): results[name] = model.rollout(context, future, chunk=chunk)['state'][:, 0]
        return roll
    ways = {('exact', threads): way('exact', 1), ('cached', threads): way('cached', model.cfg.chunk)} | mujoco_ways(n)
    took = {key: median(seconds) for key, seconds in timing.times(ways).items()}

    def rms(a, b): return ((a - b) / sigma).square().mean().sqrt().item()
    rows = [dict(size='ckpt' if ckpt else size, way=name, dtype='float64' if name == 'mujoco' else timing.dtype,
                 threads=k, trajectories=n, frames=frames, seconds=seconds, frames_per_s=n * frames / seconds,
                 from_exact=None, from_data=None) for (name, k), seconds in took.items()]
    for row in rows[:2]:                                             # rms over all frames, in std of the state
        row['from_exact'] = rms(results[row['way']], results['exact'])
        if ckpt: row['from_data'] = rms(results[row['way']], state[:, H:])
    return rows


# ---- waiting for data ----

def random_episode(i):
    """The shape of data/arx5: 1000 frames of 14 and 7 numbers."""
    rng = np.random.default_rng(i)
    action = rng.standard_normal((1000, 7), dtype=np.float32)
    action[-1] = 0
    return {'state': rng.standard_normal((1000, 14), dtype=np.float32), 'action': action}


def loader_rows(size):
    """Steps fed by Store and Prefetch as in train.py, from the disk and from memory (data_on_device)."""
    from data.loader import Store
    from data.writer import write
    rows, (model, noise) = [], build(size)
    n = len(noise['state'])
    with tempfile.TemporaryDirectory() as folder:
        write(folder + '/set', random_episode, 144, seed=seed, val='0.111', workers=1, command='bench/ensemble.py',
              info={'source': 'noise', 'revision': '', 'fps': 50, 'units': {}})
        for held in (False, True):
            store = Store(folder + '/set', 'train', arx5_gpt.windows(model.cfg))
            if held: store.to(device)
            took, waited = timing.fed(lambda i, store=store: store.batch(i, n, seed),
                                      lambda data: stacked_step(model, data))
            rows.append(dict(size=size, dtype=timing.dtype, windows=n, data_on_device=held, ms=took * 1e3,
                             waited_ms=waited * 1e3, waited=waited / took))
    return rows


# ---- on a GPU ----

def graphed(model, data):
    """The whole step captured once and replayed: one launch. New windows would be copied into `data`, in place."""
    optimizer = model.configure_optimizers(LR, DECAY, BETAS)         # lr is baked in; to change it, make it a tensor
    for group in optimizer.param_groups: group['capturable'] = True
    step, side, graph = stacked_step(model, data, optimizer), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):                                    # lazy initialisation must not be recorded
        for _ in range(3): step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph): step()                             # it begins without gradients and ends without
    return graph.replay


def launches(step):
    """How often a step asks the GPU for something: kernels, or one whole graph."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(e.count for e in profiler.key_averages() if e.key.startswith('cu') and 'Launch' in e.key)


def gpu_rows(size):
    if not device.startswith('cuda'): sys.exit(f'--what=gpu wants a CUDA device, not device = {device}')
    model, data = build(size)
    compiled = copy.deepcopy(model)
    compiled.compile(dynamic=False)                                  # as train.py does; the optimizer stays eager
    ways = {'loop': loop_step(model, [Member(model, i) for i in range(members)], data),
            'eager': stacked_step(copy.deepcopy(model), data), 'compiled': stacked_step(compiled, data),
            'graph': graphed(copy.deepcopy(model), data)}
    for way in ways.values():
        for _ in range(2): timing.timed(way)
    took = {name: median(seconds) for name, seconds in timing.times(ways).items()}
    flops, n = len(data['state']) * model.flops_per_sample(), len(data['state'])
    peak = next((p for name, p in timing.PEAK.items() if name in timing.device_name()), math.nan)
    return [dict(size=size, way=name, dtype=timing.dtype, windows=n, ms=seconds * 1e3, windows_per_s=n / seconds,
                 tflops=flops / seconds / 1e12, mfu=None if math.isnan(peak) else flops / seconds / peak,
                 launches=launches(ways[name])) for name, seconds in took.items()]


ROWS = {'step': step_rows, 'rollout': rollout_rows, 'loader': loader_rows, 'gpu': gpu_rows}


def measure():
    """All sizes and dtypes -> the rows of the table."""
    timing.device, timing.reps, timing.loader_steps = device, reps, loader_steps     # its helpers read their globals
    rows = []
    for size in ('ckpt',) if ckpt else sizes:
        for timing.dtype in dtypes:
            torch.manual_seed(seed)
            rows += ROWS[what](size)
    return rows


if __name__ == '__main__':
    config = configure(globals())
    device = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    dtypes = [('bfloat16' if device.startswith('cuda') else 'float32') if d == 'auto' else d for d in dtypes]
    for key, given, allowed in (('what', [what], ROWS), ('sizes', sizes, SIZES),
                                ('dtypes', dtypes, ('float32', 'bfloat16'))):
        if set(given) - set(allowed): sys.exit(f'{key} = {", ".join(given)}: choose from {", ".join(allowed)}')
    if ckpt and what != 'rollout': sys.exit(f'ckpt = {ckpt!r} is for --what=rollout, not for {what}')
    torch.set_num_threads(threads)
    rows = measure()
    timing.save(out, 'ensemble', what + '_trained' * bool(ckpt), rows, threads=threads, reps=reps)
    print(timing.table([{k: v for k, v in row.items() if k != 'ratios'} for row in rows]))
