"""
What does the stacked ensemble of arx5_gpt.py cost, and how fast does it dream? A table on stdout, as JSON in
bench/results/.

    python bench/versus_arx5_gpt.py --dtypes=float32,bfloat16    an optimizer step against a loop of members
    python bench/versus_arx5_gpt.py --what=rollout --preset=cpu  frames per second: exact, cached, MuJoCo's
    python bench/versus_arx5_gpt.py --what=rollout --ckpt=out/arx5_cpu      the same with trained weights

The plain way is what most of us write first: one nanoGPT per member, each stepped after the other. Both ways
get the same weights and windows; outputs, losses and the weights after one step are compared before anything
is timed. They take turns, and `ratio` is the median of stacked / loop within a repetition. The floor: FLOPs
of the matmuls (flops_per_sample), at the rate of one large matmul alone. What a step costs on a GPU compiled
or as a CUDA graph, and what waiting for data costs: bench/step.py.
"""
import os
import sys
from dataclasses import fields
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import arx5_gpt
import checkpoint
import contract
from bench import timing

what = 'step'                 # step | rollout
preset = 'full'               # a name in arx5_gpt.PRESETS; its Config can be set by flag, like --members=5
dtypes = ('auto',)            # float32 | bfloat16 (autocast); auto = bfloat16 on cuda, else float32
batch = 0                     # windows per step, all members together; 0 = 128 at preset full, else 64
candidates = 0                # trajectories of a rollout; 0 = 256, at preset full on a CPU 8
frames = 50                   # of a rollout, after a whole history of context
ckpt = ''                     # rollout: a trained run instead of the preset; context from its validation data
reps = 7                      # timed repetitions per variant
seed = 0                      # of weights, windows and commands
device = 'auto'               # auto = cuda if there is one, else cpu
threads = 1                   # CPU threads
out = ''                      # JSON; '' = bench/results/versus_arx5_gpt_<what>_<preset>_<device>.json

TOLERANCE = 1e-5              # float32: what the two ways may differ by


def owners(wanted):
    """arx5_gpt's Config at the preset owns the other keys; those of a trained run stand in its checkpoint."""
    yield timing.preset_of(arx5_gpt, wanted)


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
        self.ln_1 = nn.LayerNorm(C, bias=cfg.bias)
        self.attn = Attention(cfg)
        self.ln_2 = nn.LayerNorm(C, bias=cfg.bias)
        self.mlp = nn.ModuleDict({
            'c_fc': nn.Linear(C, 4 * C, cfg.bias),
            'c_proj': nn.Linear(4 * C, C, cfg.bias)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class Member(nn.Module):
    """Member i of a stacked model as a network of its own, with its weights."""

    def __init__(self, model, i):
        super().__init__()
        cfg = model.cfg
        width = (2 if cfg.velocity else 1) * cfg.state_dim + cfg.action_dim
        self.in_proj = nn.Linear(width, cfg.hidden)
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
        for block in self.transformer.h:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.transformer.ln_f(x.float()))

    def optimizer(self):
        """The same two groups as the stacked model's."""
        groups = [{'params': [], 'weight_decay': timing.DECAY}, {'params': [], 'weight_decay': 0.0}]
        for name, p in self.named_parameters():
            still = name.endswith('bias') or '.ln_' in name
            groups[still]['params'].append(p)
        return torch.optim.AdamW(groups, lr=timing.LR, betas=timing.BETAS, fused=True)


def member_loss(model, net, state, action):
    """What arx5_gpt.Model.forward does for one member, with the model's statistics and arithmetic on them."""
    now, then = state[:, :-1], state[:, 1:]
    out = net(model.tokens(now, action)).float()
    origin, scale = model.state_frame(now)
    return (out - (then - origin) / scale).square().mean()


# ---- one optimizer step, both ways ----

def loop_step(model, nets, data, clock):
    """The same step, member after member, each with its windows, its clip and its optimizer."""
    optimizers = [net.optimizer() for net in nets]
    states, actions = model.deal(data['state']), model.deal(data['action'])

    def step():
        for net, optimizer, state, action in zip(nets, optimizers, states, actions):
            with clock.autocast():
                loss = member_loss(model, net, state, action)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), timing.CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return step


def build(cfg, clock, n):
    """-> a fresh model in training mode on the device, and n windows of noise for it."""
    model = contract.attempt(arx5_gpt, arx5_gpt.Model, cfg)
    if n % cfg.members:
        sys.exit(f'batch = {n}: make it a multiple of members = {cfg.members}')
    return model.to(clock.device).train(), timing.to(arx5_gpt.example(cfg, n), clock.device)


@torch.no_grad()
def differences(model, nets, data, clock):
    """Largest difference of outputs and of losses between the two ways."""
    state, action = model.deal(data['state']), model.deal(data['action'])
    tokens = model.tokens(state[:, :, :-1], action)
    with clock.autocast():
        ours = model.net(tokens)
        theirs = torch.stack([net(x) for net, x in zip(nets, tokens)])
        losses = sum(member_loss(model, net, s, a) for net, s, a in zip(nets, state, action))
        loss = model(data)['loss']
    return {'outputs_differ': (ours - theirs).abs().max().item(),
            'losses_differ': (loss - losses).abs().item()}


def weights_differ(model, nets):
    """
    Largest difference of weights, after a step. The bias of the keys is left out: it adds the same to all
    scores of a query, so its gradient is rounding alone, and Adam's first step makes a whole lr of any sign.
    """
    worst, C = 0.0, model.cfg.hidden
    for i, net in enumerate(nets):
        theirs = net.state_dict()
        for key, p in model.member(i).items():
            apart = (p - theirs[key]).abs()
            if key.endswith('c_attn.bias'):
                apart[C:2 * C] = 0
            worst = max(worst, apart.max().item())
    return worst


def equal(model, nets, data, ways, clock):
    """Compare before and after one step of each way; stop if float32 shows two different functions."""
    apart = differences(model, nets, data, clock)
    for step in ways.values():
        step()
    apart['weights_differ'] = weights_differ(model, nets)
    worst = max(apart, key=apart.get)
    if clock.dtype == 'float32' and not max(apart.values()) <= TOLERANCE:
        sys.exit(f'stacked and loop are not the same function: {worst} by {apart[worst]:.2g}, more than '
                 f'{TOLERANCE}; nothing was timed')
    return apart


def matmul(cfg, clock, n):
    """A product as large as that in a member's MLP, in the dtype that the model uses; and its FLOPs."""
    rows, C = n // cfg.members * cfg.history, cfg.hidden
    kind = dict(device=clock.device, dtype=getattr(torch, clock.dtype))
    x, w = torch.randn(rows, C, **kind), torch.randn(C, 4 * C, **kind)
    return lambda: x @ w, 2 * rows * C * 4 * C


def step_rows(cfg, clock, n):
    """Stacked against loop, one row."""
    model, data = build(cfg, clock, n)
    nets = [Member(model, i) for i in range(cfg.members)]
    ways = {'stacked': timing.train_step(model, data, clock), 'loop': loop_step(model, nets, data, clock)}
    apart = equal(model, nets, data, ways, clock)
    product, product_flops = matmul(cfg, clock, n)
    took = clock.times(ways | {'matmul': product})
    seconds = {name: median(values) for name, values in took.items()}
    ratios = timing.ratios(took['stacked'], took['loop'])
    return [dict(dtype=clock.dtype, windows=n, stacked_ms=seconds['stacked'] * 1e3,
                 loop_ms=seconds['loop'] * 1e3, ratio=median(ratios),
                 gflops=n * model.flops_per_sample() / seconds['stacked'] / 1e9,
                 matmul_gflops=product_flops / seconds['matmul'] / 1e9, **apart, ratios=ratios)]


# ---- imagined frames per second ----

def trained(path, clock, n, K):
    """
    A run, and n windows of its validation data -> model, state (n, H + K, S), action (n, H + K - 1, A): the
    first H frames are context, the others are what really happened then.
    """
    from data.loader import Store
    model, meta = checkpoint.load(path, device=clock.device)
    if meta['model'] != 'arx5_gpt':
        sys.exit(f'{path} holds a {meta["model"]}; rollouts here are those of arx5_gpt')
    H = model.cfg.history
    folder = os.path.join(meta['config']['data_dir'], meta['config']['dataset'])
    store = Store(folder, 'val', {'state': range(H + K), 'action': range(H + K - 1)}, hint='frames')
    data = timing.to(store.batch(0, n, seed), clock.device)
    return model, data['state'], data['action']


def untrained(cfg, clock, n, K):
    """The same with random weights and noise: speed does not depend on the numbers."""
    model = contract.attempt(arx5_gpt, arx5_gpt.Model, cfg)
    state = torch.randn(n, cfg.history + K, cfg.state_dim, device=clock.device)
    action = torch.randn(n, cfg.history + K - 1, cfg.action_dim, device=clock.device)
    return model.to(clock.device).eval(), state, action


def mujoco_ways(n, K):
    """{name: n arms under safe commands for K frames}, on one thread and on all; {} without MuJoCo."""
    from data.arx5 import commands, env
    try:
        env.mujoco()
    except SystemExit as missing:
        print(f'rows of MuJoCo left out: {missing}')
        return {}
    rngs = [np.random.default_rng([seed, i]) for i in range(n)]
    action = np.stack([commands.references(rng, K) for rng in rngs])               # (n, K, 7)
    start = np.concatenate([action[:, 0], np.zeros_like(action[:, 0])], 1)         # at rest

    def way(k):
        return lambda: env.simulate(start, action, threads=k)
    return {('mujoco', k): way(k) for k in sorted({1, os.cpu_count()})}


def rollout_rows(model, state, action, clock, K, real):
    """
    Rows for exact, cached and MuJoCo. state, action as of `trained`; real: they are data, so that the
    distance to what happened means something. from_exact, from_data: rms over all frames, in std of the
    state.
    """
    n, H, results = len(state), model.cfg.history, {}
    sigma = model.state_std.clamp(min=1e-6)
    context = {'state': state[:, :H], 'action': action[:, :H - 1]}
    future = action[:, None, H - 1:]

    def way(name, chunk):
        def roll():
            with clock.autocast():
                results[name] = model.rollout(context, future, chunk=chunk)['state'][:, 0]
        return roll

    def rms(a, b):
        return ((a - b) / sigma).square().mean().sqrt().item()

    ways = {('exact', threads): way('exact', 1), ('cached', threads): way('cached', model.cfg.chunk)}
    rows = []
    for (name, k), seconds in clock.medians(ways | mujoco_ways(n, K)).items():
        ours = name in results
        rows.append(dict(way=name, dtype=clock.dtype if ours else 'float64', threads=k, trajectories=n,
                         frames=K, seconds=seconds, frames_per_s=n * K / seconds,
                         from_exact=rms(results[name], results['exact']) if ours else None,
                         from_data=rms(results[name], state[:, H:]) if ours and real else None))
    return rows


def measure(cfg, clock):
    """The rows of one dtype."""
    full = preset == 'full'
    torch.manual_seed(seed)
    if what == 'step':
        return step_rows(cfg, clock, batch or (128 if full else 64))
    if ckpt:
        return rollout_rows(*trained(ckpt, clock, candidates or 256, frames), clock, frames, real=True)
    n = candidates or (8 if full and not clock.on_cuda else 256)
    return rollout_rows(*untrained(cfg, clock, n, frames), clock, frames, real=False)


def main():
    config, _ = configure(globals(), owners=owners)
    if what not in ('step', 'rollout'):
        sys.exit(f'what = {what!r}: choose from step, rollout (bench/step.py has loader and gpu)')
    if ckpt and what != 'rollout':
        sys.exit(f'ckpt = {ckpt!r} is for --what=rollout, not for {what}')
    for key, least in (('batch', 0), ('candidates', 0), ('frames', 1), ('threads', 1)):
        if config[key] < least:
            sys.exit(f'{key} = {config[key]}: must be at least {least}')
    clocks = [timing.Clock(device, dtype, reps) for dtype in dtypes]
    torch.set_num_threads(threads)
    cfg = arx5_gpt.Config(**{field.name: config[field.name] for field in fields(arx5_gpt.Config)})
    name = f'versus_arx5_gpt_{what}_{"trained" if ckpt else preset}'
    if what == 'step' and (cfg.noise or cfg.unroll > 1 or cfg.action_repr == 'delta_prev'):
        sys.exit('noise, unroll > 1 and action_repr = delta_prev: the loop of plain members has none of them')
    path = timing.result_path(out, name, clocks[0])
    rows = []
    for clock in clocks:
        rows += measure(cfg, clock)
    timing.finish(path, 'versus_arx5_gpt', rows, clocks[0], hide=('ratios',), preset=preset, ckpt=ckpt)


if __name__ == '__main__':
    timing.stoppable(main)
