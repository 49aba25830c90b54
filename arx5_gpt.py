"""
ARX5-GPT: a GPT that predicts what a robot arm will do. A token per time step, an ensemble per matmul.

nanoGPT's blocks (Radford et al. 2019; github.com/karpathy/nanoGPT) over numbers instead of words; a dynamics
model like PETS (Chua et al. 2018, arXiv 1805.12114: ensemble, delta targets) with the 32 frames of history of
the Robotic World Model (Li et al. 2025, arXiv 2501.10100). The question: absolute numbers or differences?

    token    x_t = W_in [norm(s_t); norm(a_t - o_a)] + wpe_t
             o_a = 0 (absolute) | q_t (delta) | a_{t-1} (delta_prev)
    target   y_t = norm(s_{t+1} - o_s)
             o_s = 0 (absolute) | s_t (delta, residual)
    loss     mean |net(x_0..x_t) - y_t|^2 over all t, dims and windows; summed over the members
    roll out s_{t+1} = o_s + denorm(net(...)), fed back; every member goes on from its own prediction

norm is z-scoring with the train split's statistics of its argument; only residual divides by the std of s,
not of s' - s. So the loss of delta is in another unit than those of absolute and residual, and one step says
little about a hundred. What compares them is a rollout, in physical units: protocols/dynamics.py.

Shapes: E members, B windows, T frames (<= history), S state, A action, C hidden; q = state[q_index], the
entries that the action commands. In a rollout: H frames of context, N candidate futures of K steps. action[t]
is taken at frame t and leads to frame t+1. Weights are stacked, (E, in, out), under nanoGPT's keys;
`member(e)` is one member's plain blocks, with in_proj and head in place of wte and lm_head.

Read first `Model.action_frame` and `state_frame` (the whole question), then `forward`, then `rollout`.

Ours, where the card of the published runs (500k steps; their code was not found) is silent: delta is a_t -
q_t, every position trained, warm-up, weight decay 0.1, per-member clipping, `residual`, `velocity`, `unroll`,
the two conventions of noise. It should reach 10,673,678 parameters per member. Published losses, on data that
we do not have, each in its own unit, (action, state): A (absolute, absolute) 0.0982, B (absolute, delta)
0.4244, C (delta, absolute) 0.0764, D (delta, delta) 0.2282.
"""
import math
import os
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import checkpoint

EVAL = ('dynamics', 'plan')   # protocols that understand this model; the first is the default
PAD = False                   # training windows never leave the episode
SAMPLING = ('chunk',)         # fields of the Config that only a rollout reads


@dataclass
class Config:
    # the data; meta.json of the dataset decides these four
    state_dim: int = 14           # numbers per state
    action_dim: int = 7           # numbers per action
    q_index: tuple = ()           # state entry that each action commands; action_repr = 'delta' needs it
    fps: float = 50.0             # frames per second
    # the network
    depth: int = 6                # blocks
    heads: int = 12               # attention heads, hidden // heads wide
    hidden: int = 384             # token width
    history: int = 32             # longest window, frames
    members: int = 2              # of the ensemble; batch_size counts windows over all of them
    bias: bool = True             # in linear layers and layer norms
    action_repr: str = 'delta'    # as the network sees it: absolute | delta (a - q) | delta_prev (a - a_prev)
    state_pred: str = 'delta'     # what the network predicts: absolute | delta | residual
    velocity: bool = False        # also show s_t - s_{t-1}: for robots that do not measure velocities
    # training
    noise: float = 0.0            # context noise, in std of the state; published 0.05
    noise_steps: int = 50_000     # steps of the noise's linear ramp from 0
    noise_target: str = 'clean'   # differences count from: clean (the state) | corrective (state + noise)
    unroll: int = 1               # passes over a window, 1..history; each sees the predictions of the last
    # sampling
    chunk: int = 16               # new frames per window, at least 1; 1 = sliding window, more reuse a cache


PRESETS = {
    'tiny': Config(state_dim=5, action_dim=3, q_index=(4, 0, 2), depth=2, hidden=32, heads=2, history=6,
                   chunk=3),
    'cpu': Config(q_index=tuple(range(7)), depth=2, hidden=64, heads=4),     # config/arx5_cpu.py
    'full': Config(q_index=tuple(range(7)))}            # config/arx5_cfgD.py, as published


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    choices = {'action_repr': ('absolute', 'delta', 'delta_prev'),
               'state_pred': ('absolute', 'delta', 'residual'),
               'noise_target': ('clean', 'corrective')}
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: must be one of {", ".join(allowed)}')
    for key in ('state_dim', 'action_dim', 'depth', 'heads', 'hidden', 'history', 'members', 'noise_steps',
                'unroll', 'chunk'):
        value = getattr(cfg, key)
        if value < 1:
            raise ValueError(f'{key} = {value}: must be at least 1')
    if not 0 < cfg.fps < math.inf:
        raise ValueError(f'fps = {cfg.fps}: must be a positive number')
    if not 0 <= cfg.noise < math.inf:                   # nan is in no interval, so it ends up here too
        raise ValueError(f'noise = {cfg.noise}: must be 0 (off) or a positive number')
    if cfg.hidden % cfg.heads:
        raise ValueError(f'hidden = {cfg.hidden}: must be a multiple of heads = {cfg.heads}')
    if cfg.unroll > cfg.history:                        # by then every frame but the first is a prediction
        raise ValueError(f'unroll = {cfg.unroll}: must be at most history = {cfg.history}')
    if cfg.action_repr == 'delta' and not cfg.q_index:           # it is a - q, so every action needs its q
        raise ValueError("q_index = (): must name the state entry of each action if action_repr = 'delta'; "
                         'make the data with q_index, or use --action_repr=absolute')
    if cfg.action_repr == 'delta' and (len(cfg.q_index) != cfg.action_dim
                                       or not set(cfg.q_index) <= set(range(cfg.state_dim))):
        raise ValueError(f'q_index = {cfg.q_index}: must have {cfg.action_dim} entries, one per action, each '
                         f'below state_dim = {cfg.state_dim}')


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    first = -1 if cfg.action_repr == 'delta_prev' else 0    # a - a_prev needs the action before the window
    return {'state': range(cfg.history + 1), 'action': range(first, cfg.history)}


def example(cfg, batch_size):
    """A random batch with all that forward wants. For training batch_size is a multiple of members."""
    return {key: torch.randn(batch_size, len(offsets), getattr(cfg, f'{key}_dim'))
            for key, offsets in windows(cfg).items()}


STATISTICS = {                    # buffers *_mean and *_std: the field of the Config that is their length
    'state': 'state_dim',
    'action': 'action_dim',
    'delta_action': 'action_dim',                       # a - q
    'delta_prev': 'action_dim',                         # a - a_prev
    'delta_state': 'state_dim'}                         # s' - s


def safe_std(std):
    """At least 1e-6, because a dimension that hardly moves must not divide by nothing."""
    return std.clamp(min=1e-6)


# ---- layers: E networks side by side, x (E, B, T, features) ----

class Linear(nn.Module):
    """E matrices in one batched product: on a GPU one launch for all members (layer norms take one each)."""

    def __init__(self, members, n_in, n_out, bias, std=0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, n_in, n_out) * std)
        self.bias = nn.Parameter(torch.zeros(members, 1, n_out)) if bias else None

    def forward(self, x):
        y = x.reshape(len(x), -1, x.shape[-1])          # (E, B*T, in)
        if self.bias is None:
            y = torch.bmm(y, self.weight)
        else:
            y = torch.baddbmm(self.bias, y, self.weight)
        return y.view(*x.shape[:-1], -1)                # (E, B, T, out)


class LayerNorm(nn.Module):
    """Member by member: cheaper than one normalisation for all with gains and biases applied by hand."""

    def __init__(self, members, dim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, dim))
        self.bias = nn.Parameter(torch.zeros(members, dim)) if bias else None

    def forward(self, x):
        bias = [None] * len(x) if self.bias is None else self.bias
        normed = [F.layer_norm(y, y.shape[-1:], own_gain, own_bias, 1e-5)
                  for y, own_gain, own_bias in zip(x, self.weight, bias)]
        return torch.stack(normed)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.c_attn = Linear(cfg.members, cfg.hidden, 3 * cfg.hidden, cfg.bias)
        # smaller, as in GPT-2: every block adds twice to the residual stream, which would grow with depth
        self.c_proj = Linear(cfg.members, cfg.hidden, cfg.hidden, cfg.bias, 0.02 / math.sqrt(2 * cfg.depth))

    def forward(self, x, past=None):
        """x (E, B, T, C), past = (key, value) of the tokens before -> (E, B, T, C), (key, value) so far."""
        E, B, T, C = x.shape
        # members are just more windows here, because attention has no weights of its own
        query, key, value = (y.reshape(E * B, T, self.heads, -1).transpose(1, 2)
                             for y in self.c_attn(x).split(C, -1))       # each (E*B, heads, T, C / heads)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        y = causal_attention(query, key, value).transpose(1, 2).reshape(E, B, T, C)
        return self.c_proj(y), (key, value)


# same as nanowm.py
def causal_attention(q, k, v):
    """The L queries are the last L of the M keys; each sees itself and what came before."""
    L, M = q.shape[2], k.shape[2]
    if L == M:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(L, M, dtype=torch.bool, device=q.device).tril(M - L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        wide = 4 * cfg.hidden
        self.c_fc = Linear(cfg.members, cfg.hidden, wide, cfg.bias)
        self.c_proj = Linear(cfg.members, wide, cfg.hidden, cfg.bias, 0.02 / math.sqrt(2 * cfg.depth))

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.ln_1 = LayerNorm(cfg.members, cfg.hidden, cfg.bias)
        self.attn = Attention(cfg)
        self.ln_2 = LayerNorm(cfg.members, cfg.hidden, cfg.bias)
        self.mlp = MLP(cfg)

    def forward(self, x, past=None):
        y, kv = self.attn(self.ln_1(x), past)
        x = x + y
        return x + self.mlp(self.ln_2(x)), kv


class Positions(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cfg.members, cfg.history, cfg.hidden) * 0.02)     # (E, T, C)


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg = cfg
        inputs = cfg.state_dim * (1 + cfg.velocity) + cfg.action_dim
        self.in_proj = Linear(cfg.members, inputs, cfg.hidden, True)
        self.transformer = nn.ModuleDict({              # nanoGPT's names
            'wpe': Positions(cfg),
            'h': nn.ModuleList([Block(cfg) for _ in range(cfg.depth)]),
            'ln_f': LayerNorm(cfg.members, cfg.hidden, cfg.bias)})
        self.head = Linear(cfg.members, cfg.hidden, cfg.state_dim, True)
        # buffers, because a checkpoint must act alone: train.py fills them from meta.json, and they are saved
        for name, dim in STATISTICS.items():
            self.register_buffer(f'{name}_mean', torch.zeros(getattr(cfg, dim)))
            self.register_buffer(f'{name}_std', torch.ones(getattr(cfg, dim)))
        self.register_buffer('q_index', torch.tensor(cfg.q_index, dtype=torch.long), persistent=False)

    def net(self, x, past=None):
        """
        The networks alone. Tokens x (E, B, T, S+A), normalised -> predictions (E, B, T, S), one per prefix.
        past: keys and values of the tokens before x, a list with a pair per block, or [] when there are none;
        then returns (predictions, the same list with x's appended).
        """
        start = past[0][0].shape[2] if past else 0
        T = start + x.shape[2]
        assert T <= self.cfg.history, f'{T} frames in a window of history = {self.cfg.history}; shorten it'
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round a joint by more than it moves
            x = self.in_proj(x.float()) + self.transformer.wpe.weight[:, None, start:T]
        new = []
        for i, block in enumerate(self.transformer.h):
            x, kv = block(x, past[i] if past else None)
            new.append(kv)
        with torch.autocast(x.device.type, enabled=False):
            out = self.head(self.transformer.ln_f(x.float()))
        return out if past is None else (out, new)

    # ---- absolute or delta: where numbers are counted from, and in what unit ----

    def action_frame(self, state, previous):
        """Origin and scale of the action's input. state (..., S) as the network sees it, noise and all."""
        if self.cfg.action_repr == 'absolute':
            return self.action_mean, safe_std(self.action_std)
        if self.cfg.action_repr == 'delta':             # what a position controller makes torque of
            commanded = state.index_select(-1, self.q_index)
            return commanded + self.delta_action_mean, safe_std(self.delta_action_std)
        return previous + self.delta_prev_mean, safe_std(self.delta_prev_std)

    def state_frame(self, state):
        """Origin and scale of the target: s' = origin + scale * net. state (..., S) is the one before s'."""
        if self.cfg.state_pred == 'absolute':
            return self.state_mean, safe_std(self.state_std)
        if self.cfg.state_pred == 'delta':
            return state + self.delta_state_mean, safe_std(self.delta_state_std)
        return state, safe_std(self.state_std)          # residual

    def tokens(self, state, action, previous=None, earlier=None):
        """
        state (..., T, S) and action (..., T, A), data units -> (..., T, S+A), with `velocity` (..., T, 2S+A).
        previous (..., T, A): the actions before, only for delta_prev. earlier (..., 1, S): the state before
        the first one, only for `velocity` under a cache; a window knows of none, so its first velocity is 0.
        """
        origin, scale = self.action_frame(state, previous)
        x = [(state - self.state_mean) / safe_std(self.state_std), (action - origin) / scale]
        if self.cfg.velocity:
            both = torch.cat([state[..., :1, :] if earlier is None else earlier, state], -2)
            x.append(both.diff(dim=-2) / safe_std(self.delta_state_std))
        return torch.cat(x, -1)

    # ---- training ----

    def forward(self, batch):
        """
        batch: state (B, T+1, S), action (B, T, A) or, for delta_prev, (B, 1+T, A), and step for the ramp of
        noise -> loss, and detached loss_per_member.
        """
        cfg = self.cfg
        state, action = self.deal(batch['state']), self.deal(batch['action'])        # (E, B/E, ...)
        previous = None
        if cfg.action_repr == 'delta_prev':
            previous, action = action[:, :, :-1], action[:, :, 1:]
        now, then = state[:, :, :-1], state[:, :, 1:]
        seen = self.add_noise(now, batch.get('step'))
        passes = cfg.unroll if self.training else 1
        losses = []
        for i in range(passes):
            out = self.net(self.tokens(seen, action, previous))
            # from the second pass on always corrective: an own prediction is to be pulled back to the truth
            corrective = i > 0 or cfg.noise_target == 'corrective'
            origin, scale = self.state_frame(seen if corrective else now)
            losses.append((out - (then - origin) / scale).square().mean((1, 2, 3)))  # (E,)
            if i + 1 < passes:
                # detached, because a prediction is to be an input here, not a path for gradients
                guess = self.predict(seen, out)[:, :, :-1].detach()
                seen = torch.cat([now[:, :, :1], guess], 2)    # nobody predicted frame 0: it stays
        loss = torch.stack(losses).mean(0).sum()        # passes averaged, members summed
        # Summed, because members share no weight: each gets the gradient that it would get alone. Per member
        # is what ensembles of different size, and the published runs, can be compared by.
        return {'loss': loss, 'loss_per_member': loss.detach() / cfg.members}

    def deal(self, x):
        """(B, ...) -> training: (E, B/E, ...), contiguous parts; else (E, B, ...), every member sees all."""
        x, E = x.float(), self.cfg.members
        if not self.training:
            return x.expand(E, *x.shape)
        assert len(x) % E == 0, f'{len(x)} windows for {E} members: make the batch a multiple of members'
        return x.view(E, -1, *x.shape[1:])

    def add_noise(self, state, step=None):
        """Noise on what the network sees. A delta action counts from there too, or it would give q away."""
        if not self.training or self.cfg.noise == 0:
            return state
        ramp = 1.0 if step is None else (step / self.cfg.noise_steps).clamp(max=1)      # no step: at rest
        return state + torch.randn_like(state) * safe_std(self.state_std) * self.cfg.noise * ramp

    def predict(self, state, out):
        """The network's output at a state -> the next state, data units."""
        origin, scale = self.state_frame(state)
        return origin + scale * out

    # ---- imagining ----

    @torch.no_grad()
    def rollout(self, context, action, noise=None, chunk=0, each=False, progress=iter):
        """
        K steps of N candidate futures, open loop. context: state (B, H, S) and action (B, H-1, A) between its
        frames; action (B, N, K, A): action[:, :, 0] is taken at the last context frame.
        -> state (B, N, K, S), the mean of the members; state_std, their unbiased std; disagreement (B, N, K),
        the rms over S of state_std / std of the data; each=True: state_each (E, B, N, K, S), every member's
        own.

        A window's positions are absolute, so it cannot slide under cached keys: after `chunk` new frames (0:
        the Config's) the cache starts anew from the last history - chunk + 1. With chunk = 1 that is the
        exact sliding window; both agree while context + steps <= history. noise is part of the contract and
        unused.
        """
        B, N, K, _ = action.shape
        E, history = self.cfg.members, self.cfg.history
        chunk = chunk or min(self.cfg.chunk, history)
        assert 1 <= chunk <= history, f'chunk = {chunk}: must lie in 1..history = {history}'
        given, action, previous = self.flatten_futures(context, action)
        H = given.shape[1]
        states = given.new_empty(E, B * N, H + K, given.shape[-1])     # each member its own
        states[:, :, :H] = given
        cache = []
        for known in progress(range(H, H + K)):         # frames that we have; we predict frame `known`
            first = known - 1                           # from where to feed: the newest is enough ...
            if not cache or cache[0][0].shape[2] == history:     # ... unless a new window begins
                # One that begins with n frames is full after history - n + 1 predictions. We want `chunk` of
                # them, or as many as are left to do: the more frames at its start, the better it knows.
                wanted = min(chunk, H + K - known)
                first = max(0, known - (history - wanted + 1))
                cache = []
            inputs = [x if x is None else x[:, first:known].expand(E, -1, -1, -1) for x in (action, previous)]
            earlier = states[:, :, first - 1:first] if cache else None
            now = states[:, :, first:known]
            out, cache = self.net(self.tokens(now, *inputs, earlier), cache)
            states[:, :, known] = self.predict(now[:, :, -1], out[:, :, -1])
        new = states[:, :, H:].unflatten(1, (B, N))     # (E, B, N, K, S)
        std = new.std(0) if E > 1 else torch.zeros_like(new[0])
        disagreement = (std / safe_std(self.state_std)).square().mean(-1).sqrt()
        future = {'state': new.mean(0), 'state_std': std, 'disagreement': disagreement}
        return future | {'state_each': new} if each else future

    def flatten_futures(self, context, action):
        """-> states (B*N, H, S), actions (B*N, H-1+K, A) and, for delta_prev, those before, else None."""
        N = action.shape[1]

        def spread(x):                                  # (B, ...) -> (B*N, ...)
            return x.float()[:, None].expand(-1, N, *x.shape[1:]).flatten(0, 1)
        given, previous = spread(context['state']), None
        action = torch.cat([spread(context['action']), action.float().flatten(0, 1)], 1)
        if self.cfg.action_repr == 'delta_prev':        # no action before the first frame: we lose it
            given, previous, action = given[:, 1:], action[:, :-1], action[:, 1:]
        assert given.shape[1], 'no context left: delta_prev needs two frames of context, the others one'
        return given, action, previous

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW; matrices and positions decay, biases and gains do not."""
        decays, spared = [], []
        for name, p in self.named_parameters():         # by name, because stacked even a bias has two axes
            (spared if name.endswith('bias') or '.ln_' in name else decays).append(p)
        groups = [{'params': decays, 'weight_decay': weight_decay}, {'params': spared, 'weight_decay': 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    def clip_grad(self, max_norm):
        """Every member by its own norm: one norm for all would let a bad batch of one slow the others."""
        norms = []
        for e in range(self.cfg.members):
            grads = [p.grad[e] for p in self.parameters()]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            norms.append(norm)
            if max_norm:                                # 0 only measures
                torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1))
        return {'norm': torch.stack(norms).mean()}

    def flops_per_sample(self):
        """
        Matmul FLOPs of one window through one member, forward + backward = 3 x forward. Per token: 12 C^2
        weights and 2 C per attended token in each block, (S + A) C in (`velocity`: S more), C S out.
        """
        cfg, C, T = self.cfg, self.cfg.hidden, self.cfg.history
        ends = ((2 + cfg.velocity) * cfg.state_dim + cfg.action_dim) * C
        token = cfg.depth * (12 * C * C + 2 * C * T) + ends
        return cfg.unroll * 3 * 2 * T * token

    # ---- one member as a plain nanoGPT ----

    def member(self, e):
        """State dict of member e alone, nanoGPT's keys and shapes: Linear weights are (out, in)."""
        weights = {}
        for key, p in self.named_parameters():
            own = p.detach()[e]
            if key.endswith('bias'):
                own = own.squeeze(0)
            elif is_matrix(key):
                own = own.T
            weights[key] = own
        return weights

    @classmethod
    def from_pretrained(cls, src, **over):
        """Our out_dir or step folder, or a folder in the published layout. over: fields of the Config."""
        if not os.path.isdir(os.path.join(src, 'params')):
            return checkpoint.load(src, **over)[0]
        import arx5_export  # here, because it imports this file
        return arx5_export.load(src, **over)


def is_matrix(key):
    """Linear weights are stacked (in, out), nanoGPT's are (out, in); positions and gains know no order."""
    return key.endswith('weight') and 'wpe' not in key and 'ln_' not in key


if __name__ == '__main__':                              # lesson zero: the whole life of a model in seconds
    if sys.argv[1:]:
        sys.exit('python arx5_gpt.py takes no flags: train.py trains, arx5_export.py exports')
    torch.manual_seed(0)
    model = Model(PRESETS['cpu'])
    count = sum(p.numel() for p in model.parameters())
    print(f'{count:,} parameters, {model.flops_per_sample() / 1e6:.1f} MFLOP per window')
    batch = example(model.cfg, batch_size=4)
    out = model(batch)
    out['loss'].backward()
    print(f"loss {out['loss'].item():.4f} | norm of the gradient {model.clip_grad(1.0)['norm'].item():.4f}")
    context = {'state': batch['state'][:, :8], 'action': batch['action'][:, :7]}
    future = model.rollout(context, torch.randn(4, 5, 6, 7))
    print('5 futures of 6 steps', {key: tuple(value.shape) for key, value in future.items()})
