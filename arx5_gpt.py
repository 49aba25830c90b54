"""
ARX5-GPT: a GPT that predicts what a robot arm will do under commands. A token per time step, an ensemble per matmul.

Model: nanoGPT's blocks (Radford et al. 2019; github.com/karpathy/nanoGPT) over numbers instead of words. Its place: a
dynamics model like that of PETS (Chua et al. 2018, arXiv 1805.12114: ensemble, delta targets) with the 32 frames of
history of the Robotic World Model (Li et al. 2025, arXiv 2501.10100). The question: absolute numbers or differences?

    token    x_t = W_in [norm(s_t); norm(a_t - o_a)] + wpe_t    o_a = 0 (absolute) | q_t (delta) | a_{t-1} (delta_prev)
    target   y_t = norm(s_{t+1} - o_s)                          o_s = 0 (absolute) | s_t (delta, residual)
    loss     mean |net(x_0..x_t) - y_t|^2 over all t, dims and windows; summed over the members of the ensemble
    roll out s_{t+1} = o_s + denorm(net(...)), fed back; every member goes on from its own prediction

norm is z-scoring with the train split's statistics of its argument; only residual divides by the std of s, not s' - s.
So the loss of delta is in another unit than those of absolute and residual, and one step says little about a hundred:
physical units, rolled out, compare them, see `dynamics` in eval.py. `velocity` adds s_t - s_{t-1} to the token.

Shapes: E members, B windows, T frames (<= history), S state, A action, C hidden; q = state[q_index], the entries that
the action commands; N candidate futures of K steps in a rollout. action[t] is taken at frame t and leads to frame t+1.
Weights are stacked, (E, in, out), under nanoGPT's keys; `member(i)` is its plain blocks, with in_proj and head in place
of wte and lm_head.

Read first `Model.action_frame` and `state_frame` (the whole question), then `forward`, then `rollout`.

Ours, where the card of the published runs (500k steps; their code was not found) is silent: delta = a_t - q_t, every
position trained, warm-up, weight decay 0.1, per-member clipping, `residual`, `unroll`, the two conventions of noise.
It should reach: 10,673,678 parameters per member. Published losses, on data that we do not have, each in its own unit:
A (absolute, absolute) 0.0982, B (absolute, delta) 0.4244, C (delta, absolute) 0.0764, D (delta, delta) 0.2282.
"""
import hashlib
import json
import math
import os
import shutil
import sys
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import checkpoint

EVAL = ('dynamics', 'plan')   # evaluators of eval.py that understand this model
PAD = False                   # training windows never leave the episode


@dataclass
class Config:
    state_dim: int = 14           # numbers per state; the dataset decides
    action_dim: int = 7           # numbers per action; the dataset decides
    q_index: tuple = ()           # state entry that each action commands; the dataset decides; `delta` needs it
    fps: float = 50.0             # frames per second of the data; the dataset decides
    depth: int = 6                # blocks
    heads: int = 12               # attention heads, hidden // heads wide
    hidden: int = 384             # token width
    history: int = 32             # longest window, frames
    members: int = 2              # of the ensemble; batch_size counts windows over all of them
    bias: bool = True             # in linear layers and layer norms
    action_repr: str = 'delta'    # action as the network sees it: absolute | delta (a - q) | delta_prev (a - a_prev)
    state_pred: str = 'delta'     # what it predicts: absolute | delta | residual
    noise: float = 0.0            # context noise, in std of the state; training only; published 0.05
    noise_steps: int = 50_000     # linear ramp of the noise from 0
    noise_target: str = 'clean'   # differences count from the state: clean | corrective (as the network saw it)
    unroll: int = 1               # passes over a window; from the second on, states are predictions of the one before
    velocity: bool = False        # also show s_t - s_{t-1} to the network: for robots that do not measure velocities
    chunk: int = 16               # rollout: new frames per window; 1 = exact sliding window, more reuse keys and values


def check(cfg):
    """Stop before an impossible model is built, with the numbers and the way out."""
    choices = {'action_repr': ('absolute', 'delta', 'delta_prev'), 'state_pred': ('absolute', 'delta', 'residual'),
               'noise_target': ('clean', 'corrective')}
    for key, allowed in choices.items():
        assert getattr(cfg, key) in allowed, f'{key} = {getattr(cfg, key)!r}: choose one of {", ".join(allowed)}'
    for key, low, high in (('members', 1, math.inf), ('depth', 1, math.inf), ('history', 1, math.inf),
                           ('noise', 0, math.inf), ('noise_steps', 1, math.inf), ('unroll', 1, cfg.history),
                           ('chunk', 1, math.inf), ('heads', 1, cfg.hidden)):
        assert low <= getattr(cfg, key) <= high, f'{key} = {getattr(cfg, key)}: must lie in {low}..{high}'
    assert cfg.hidden % cfg.heads == 0, f'hidden = {cfg.hidden}: no multiple of heads = {cfg.heads}'
    if cfg.action_repr == 'delta':
        assert cfg.q_index, "action_repr = 'delta' is a - q, but the dataset's meta.json has no q_index (which state " \
            'entry each action commands); make the data with it, or use --action_repr=absolute'
        assert len(cfg.q_index) == cfg.action_dim and {*cfg.q_index} <= {*range(cfg.state_dim)}, \
            f'q_index = {cfg.q_index}: want {cfg.action_dim} entries (one per action) below state_dim = {cfg.state_dim}'


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    first = -1 if cfg.action_repr == 'delta_prev' else 0
    return {'state': range(cfg.history + 1), 'action': range(first, cfg.history)}


# ---- layers: E networks side by side, x (E, B, T, features) ----

class Linear(nn.Module):
    """E matrices in one batched product: on a GPU one launch for all members (layer norms take one each)."""

    def __init__(self, members, n_in, n_out, bias, std=0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, n_in, n_out) * std)
        self.bias = nn.Parameter(torch.zeros(members, 1, n_out)) if bias else None

    def forward(self, x):
        y = x.reshape(len(x), -1, x.shape[-1])                       # (E, B*T, in)
        y = torch.bmm(y, self.weight) if self.bias is None else torch.baddbmm(self.bias, y, self.weight)
        return y.view(*x.shape[:-1], -1)                             # (E, B, T, out)


class LayerNorm(nn.Module):
    def __init__(self, members, dim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, dim))
        self.bias = nn.Parameter(torch.zeros(members, dim)) if bias else None

    def forward(self, x):
        bias = [None] * len(x) if self.bias is None else self.bias   # member by member: cheaper than gains by hand
        return torch.stack([F.layer_norm(y, y.shape[-1:], *own, 1e-5) for y, *own in zip(x, self.weight, bias)])


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.c_attn = Linear(cfg.members, cfg.hidden, 3 * cfg.hidden, cfg.bias)
        self.c_proj = Linear(cfg.members, cfg.hidden, cfg.hidden, cfg.bias, 0.02 / math.sqrt(2 * cfg.depth))

    def forward(self, x, past=None):
        """x (E, B, T, C); past = (k, v) of earlier tokens -> output (E, B, T, C), (k, v) of all tokens so far."""
        E, B, T, C = x.shape
        q, k, v = (y.reshape(E * B, T, self.heads, -1).transpose(1, 2)             # each (E*B, nh, T, hs): members
                   for y in self.c_attn(x).split(C, -1))                           # are just more windows here
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = causal_attention(q, k, v).transpose(1, 2).reshape(E, B, T, C)
        return self.c_proj(y), (k, v)


def causal_attention(q, k, v):  # same as nanowm.py
    """The N queries are the last N of the M keys; each sees itself and what came before."""
    N, M = q.shape[2], k.shape[2]
    if N == M:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(N, M, dtype=torch.bool, device=q.device).tril(M - N)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c_fc = Linear(cfg.members, cfg.hidden, 4 * cfg.hidden, cfg.bias)
        self.c_proj = Linear(cfg.members, 4 * cfg.hidden, cfg.hidden, cfg.bias, 0.02 / math.sqrt(2 * cfg.depth))

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
        self.transformer = nn.ModuleDict({                           # nanoGPT's names
            'wpe': Positions(cfg),
            'h': nn.ModuleList([Block(cfg) for _ in range(cfg.depth)]),
            'ln_f': LayerNorm(cfg.members, cfg.hidden, cfg.bias)})
        self.head = Linear(cfg.members, cfg.hidden, cfg.state_dim, True)
        # train-split statistics; train.py fills them from meta.json, the checkpoint keeps them
        for name, dim in STATISTICS:
            self.register_buffer(f'{name}_mean', torch.zeros(getattr(cfg, dim)))
            self.register_buffer(f'{name}_std', torch.ones(getattr(cfg, dim)))
        self.register_buffer('q_index', torch.tensor(cfg.q_index, dtype=torch.long), persistent=False)

    def net(self, x, past=None):
        """
        The networks alone. Tokens x (E, B, T, S+A), normalised -> predictions (E, B, T, S), one for each prefix.
        past: keys and values of the tokens before x, a list with (k, v) per block, or [] when there are none; then
        returns (predictions, the same list with x's appended).
        """
        start = past[0][0].shape[2] if past else 0
        T = start + x.shape[2]
        assert T <= self.cfg.history, f'{T} frames in a window of history = {self.cfg.history}; shorten it'
        with torch.autocast(x.device.type, enabled=False):           # bf16 would round a joint by more than it moves
            x, new = self.in_proj(x.float()) + self.transformer.wpe.weight[:, None, start:T], []
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
            return self.action_mean, floor(self.action_std)
        if self.cfg.action_repr == 'delta':                          # what a position controller turns into torque
            return state.index_select(-1, self.q_index) + self.delta_action_mean, floor(self.delta_action_std)
        return previous + self.delta_prev_mean, floor(self.delta_prev_std)

    def state_frame(self, state):
        """Origin and scale of the target: s' = origin + scale * net. state (..., S) is the one before s'."""
        if self.cfg.state_pred == 'absolute':
            return self.state_mean, floor(self.state_std)
        if self.cfg.state_pred == 'delta':
            return state + self.delta_state_mean, floor(self.delta_state_std)
        return state, floor(self.state_std)                          # residual

    def tokens(self, state, action, previous=None, earlier=None):
        """
        state (..., T, S), action (..., T, A) and the actions before (delta_prev only), data units -> (..., T, S+A);
        with `velocity` S more. earlier (..., 1, S): the state before the first; a window knows of none.
        """
        origin, scale = self.action_frame(state, previous)
        x = [(state - self.state_mean) / floor(self.state_std), (action - origin) / scale]
        if self.cfg.velocity:
            both = torch.cat([state[..., :1, :] if earlier is None else earlier, state], -2)
            x.append(both.diff(dim=-2) / floor(self.delta_state_std))
        return torch.cat(x, -1)

    # ---- training ----

    def forward(self, batch):
        """batch: state (B, T+1, S), action (B, T, A), delta_prev: one row more in front; step for the noise ramp."""
        cfg = self.cfg
        state, action = self.deal(batch['state']), self.deal(batch['action'])        # (E, B', T+1, S), (E, B', T, A)
        previous = None
        if cfg.action_repr == 'delta_prev':
            previous, action = action[:, :, :-1], action[:, :, 1:]
        now, then = state[:, :, :-1], state[:, :, 1:]
        seen = self.add_noise(now, batch.get('step'))
        losses = []
        for i in range(cfg.unroll if self.training else 1):
            out = self.net(self.tokens(seen, action, previous))
            corrective = i > 0 or cfg.noise_target == 'corrective'   # an own prediction is to be pulled back, always
            origin, scale = self.state_frame(seen if corrective else now)
            losses.append((out - (then - origin) / scale).square().mean((1, 2, 3)))  # (E,)
            if i + 1 < cfg.unroll:                                   # frame 0 stays, the others become predictions
                guess = self.predict(seen, out)[:, :, :-1].detach()
                seen = torch.cat([now[:, :, :1], guess], 2)
        loss = torch.stack(losses).mean(0)
        # the sum gives each member the gradient it would have alone; loss_member is one member, one pass
        return {'loss': loss.sum(), 'loss_member': losses[0].mean().detach()}

    def deal(self, x):
        """(B, ...) -> (E, B', ...): training deals contiguous parts to the members, else every member sees all."""
        x, E = x.float(), self.cfg.members
        if not self.training:
            return x.expand(E, *x.shape)
        assert len(x) % E == 0, f'{len(x)} windows for {E} members: make the batch a multiple of members'
        return x.view(E, -1, *x.shape[1:])

    def add_noise(self, state, step=None):
        """Context noise on what the network sees. A delta action is taken from there too: it would give q away."""
        if not self.training or self.cfg.noise == 0:
            return state
        ramp = 1.0 if step is None else (step / self.cfg.noise_steps).clamp(max=1)   # at rest without a step
        return state + torch.randn_like(state) * floor(self.state_std) * self.cfg.noise * ramp

    def predict(self, state, out):
        """The network's output at a state -> the next state, data units."""
        origin, scale = self.state_frame(state)
        return origin + scale * out

    # ---- imagining ----

    @torch.no_grad()
    def rollout(self, context, action, noise=None, chunk=0, progress=iter):
        """
        K steps of N candidate futures, open loop. context: state (B, H, S) and action (B, H-1, A) between its frames;
        action (B, N, K, A): action[:, :, 0] is taken at the last context frame. -> state (B, N, K, S), the mean of the
        members; state_std, their unbiased std; disagreement (B, N, K) = rms over S of state_std / std of the data.
        A window's positions are absolute, so it cannot slide under cached keys: the cache starts anew every `chunk`
        frames from the last history - chunk + 1. With chunk = 1 that is the exact sliding window; both agree while
        context + steps <= history. noise is part of the contract and unused: nothing is drawn here.
        """
        (B, N, K, _), E, history = action.shape, self.cfg.members, self.cfg.history
        chunk = chunk or min(self.cfg.chunk, history)
        assert 1 <= chunk <= history, f'chunk = {chunk}: must lie in 1..history = {history}'

        def spread(x):                                               # (B, ...) -> (B*N, ...)
            return x.float()[:, None].expand(-1, N, *x.shape[1:]).flatten(0, 1)
        given, previous = spread(context['state']), None
        action = torch.cat([spread(context['action']), action.float().flatten(0, 1)], 1)         # (B*N, H-1+K, A)
        if self.cfg.action_repr == 'delta_prev':                     # the first frame has no action before it
            given, previous, action = given[:, 1:], action[:, :-1], action[:, 1:]
        H = given.shape[1]
        assert H > 0, 'no context left: delta_prev needs two frames of context, the others one'
        s = given.new_empty(E, B * N, H + K, given.shape[-1])        # (E, B*N, frames, S): each member its own future
        s[:, :, :H] = given
        cache = []
        for k in progress(range(K)):
            last, lo = H + k, H + k - 1                              # frames known; first of those to feed
            if not cache or cache[0][0].shape[2] == history:         # a new window: one of `keep` frames is good for
                # history - keep + 1 predictions, which should be `chunk`, or as many as are left
                keep = min(last, history, max(history - chunk, history - (K - k)) + 1)
                cache, lo = [], last - keep
            now = s[:, :, lo:last]
            inputs = [x[:, lo:last].expand(E, -1, -1, -1) if x is not None else None for x in (action, previous)]
            earlier = s[:, :, lo - 1:lo] if cache else None
            out, cache = self.net(self.tokens(now, *inputs, earlier), cache)
            s[:, :, last] = self.predict(now[:, :, -1], out[:, :, -1])
        new = s[:, :, H:].unflatten(1, (B, N))                       # (E, B, N, K, S)
        std = new.std(0) if E > 1 else torch.zeros_like(new[0])
        return {'state': new.mean(0), 'state_std': std,
                'disagreement': (std / floor(self.state_std)).square().mean(-1).sqrt()}

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW; matrices and positions decay, biases and gains do not. By name: stacked, all have two axes or more."""
        flat = [p for name, p in self.named_parameters() if name.endswith('bias') or '.ln_' in name]
        deep = [p for name, p in self.named_parameters() if not (name.endswith('bias') or '.ln_' in name)]
        groups = [{'params': deep, 'weight_decay': weight_decay}, {'params': flat, 'weight_decay': 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    def clip_grad(self, max_norm):
        """Every member by its own norm: one norm for all would let a bad batch of one slow the others."""
        norms = []
        for e in range(self.cfg.members):
            grads = [p.grad[e] for p in self.parameters()]
            norms.append(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
            if max_norm: torch._foreach_mul_(grads, (max_norm / (norms[-1] + 1e-6)).clamp(max=1))
        return {'norm': torch.stack(norms).mean()}

    def flops_per_sample(self):
        """
        Matmul FLOPs of one window through one member, forward + backward = 3 x forward. Per token: 12 C^2 weights and
        2 C per attended token in each block, (S + A) C in (`velocity`: S more), C S out.
        """
        cfg, C, T = self.cfg, self.cfg.hidden, self.cfg.history
        token = cfg.depth * (12 * C * C + 2 * C * T) + ((2 + cfg.velocity) * cfg.state_dim + cfg.action_dim) * C
        return cfg.unroll * 3 * 2 * T * token

    # ---- one member as a plain nanoGPT; the published layout ----

    def member(self, i):
        """State dict of member i alone, nanoGPT's keys and shapes: Linear weights are (out, in)."""
        return {key: p[i].squeeze(0) if key.endswith('bias') else p[i].T if is_matrix(key) else p[i]
                for key, p in ((key, p.detach()) for key, p in self.named_parameters())}

    def load_member(self, i, weights):
        """The inverse of `member`."""
        own = self.member(i)
        shapes, theirs = ({k: list(v.shape) for k, v in w.items()} for w in (own, weights))
        wrong = [key for key in sorted({*own, *weights}) if shapes.get(key) != theirs.get(key)]
        if wrong:
            sys.exit(f'member {i}: {wrong[0]} is missing, unknown or of another shape ({len(wrong)} such keys); '
                     'the weights belong to another Config')
        for key, p in self.named_parameters():
            value = weights[key].to(p)
            p.data[i] = (value.T if is_matrix(key) else value).view(p.data[i].shape)

    @classmethod
    def from_pretrained(cls, src, **over):
        """Our out_dir or step folder, or the published layout: a folder with params/. over: Config fields to set."""
        if not os.path.isdir(os.path.join(src, 'params')):
            assert not over, f'{over}: a run of ours is loaded as it was trained'
            return checkpoint.load(src)[0]
        saved = checkpoint.read(src, 'params/params.pt')
        stats = checkpoint.read(src, 'params/normalization_stats.json')
        absent = {'model_state_dict', 'model_args', 'action_representation', 'state_prediction_mode'} - saved.keys()
        if absent:
            sys.exit(f'{src}/params/params.pt lacks {", ".join(sorted(absent))}: not written by arx5_gpt.py export')
        for key in ('action_representation', 'state_prediction_mode'):
            if stats.get(key) != saved[key]:
                sys.exit(f'{src}: normalization_stats.json says {key} = {stats.get(key)}, params.pt says {saved[key]}; '
                         'they belong to different checkpoints')
        try:
            model = cls(Config(**saved['model_args'] | over))
        except TypeError as error:                                   # a Config field that came or went since
            sys.exit(f'{src}/params/params.pt does not fit arx5_gpt.py: {error}')
        for name, buffer in model.named_buffers():
            if name == 'q_index': continue
            if len(stats.get(name, ())) != len(buffer):
                sys.exit(f'{src}/params/normalization_stats.json: {name} has {len(stats.get(name, ()))} numbers, the '
                         f'checkpoint wants {len(buffer)}; take the file that was exported with it')
            buffer.copy_(torch.tensor(stats[name]))
        for i in range(model.cfg.members):
            own = f'members.{i}.'
            model.load_member(i, {k[len(own):]: v for k, v in saved['model_state_dict'].items() if k.startswith(own)})
        return model.eval()


STATISTICS = (('state', 'state_dim'), ('action', 'action_dim'), ('delta_action', 'action_dim'),      # a - q
              ('delta_prev', 'action_dim'), ('delta_state', 'state_dim'))                    # a - a_prev, s' - s
LABELS = {('absolute', 'absolute'): 'cfgA', ('absolute', 'delta'): 'cfgB', ('delta', 'absolute'): 'cfgC',
          ('delta', 'delta'): 'cfgD'}                                # (action, state) of the published runs


def floor(std):
    """A dimension that hardly moves must not divide by nothing."""
    return std.clamp(min=1e-6)


def is_matrix(key):
    """Linear weights are kept (in, out) and published (out, in); positions and gains have no such order."""
    return key.endswith('weight') and 'wpe' not in key and 'ln_' not in key


def export(run, out):
    """A run's best checkpoint -> out/params/params.pt and normalization_stats.json, keys as published; its sha256."""
    if os.path.exists(out):
        sys.exit(f'{out} is there already; delete it, or choose another folder')
    model, meta = checkpoint.load(run, which='best' if checkpoint.pointer(run, 'best') else 'latest')
    if meta['model'] != 'arx5_gpt': sys.exit(f'{run} holds a {meta["model"]}; only arx5_gpt has this layout')
    cfg, saved = model.cfg, meta['metrics'].get('val/loss')          # the sum over members
    labels = {'action_representation': cfg.action_repr, 'state_prediction_mode': cfg.state_pred}
    params = labels | {
        'model_state_dict': {f'members.{i}.{k}': v.contiguous() for i in range(cfg.members)
                             for k, v in model.member(i).items()},
        'best_val_loss': saved and saved / cfg.members, 'best_step': meta['step'], 'global_step': meta['step'],
        'config_label': LABELS.get((cfg.action_repr, cfg.state_pred), f'{cfg.action_repr}_{cfg.state_pred}'),
        'model_args': asdict(cfg), 'config': meta['config']}
    stats = {name: b.tolist() for name, b in model.named_buffers() if name != 'q_index'}
    stats |= labels | {'dt': 1 / cfg.fps, 'history': cfg.history}
    tmp = out.rstrip('/') + '.tmp'
    shutil.rmtree(tmp, ignore_errors=True)
    os.makedirs(os.path.join(tmp, 'params'))
    torch.save(params, os.path.join(tmp, 'params', 'params.pt'))     # the zip holds the file's name: rename the folder
    checkpoint.write_text(os.path.join(tmp, 'params', 'normalization_stats.json'), json.dumps(stats, indent=1) + '\n')
    os.replace(tmp, out)
    return published_sha256(out)


def published_sha256(folder):
    """cd folder && find params -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"""
    names = [os.path.relpath(os.path.join(top, file), folder) for top, _, files in
             os.walk(os.path.join(folder, 'params')) for file in files]
    lines = [f'{checkpoint.sha256(os.path.join(folder, name))}  {name}\n' for name in sorted(names, key=os.fsencode)]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


if __name__ == '__main__':
    if sys.argv[1:2] == ['export']:
        if len(sys.argv) != 4: sys.exit('python arx5_gpt.py export OUT_DIR checkpoints/cfgA')
        sys.exit(print(f'{sys.argv[3]}: sha256 {export(*sys.argv[2:])}'))
    if sys.argv[1:]: sys.exit('python arx5_gpt.py, or python arx5_gpt.py export OUT_DIR checkpoints/cfgA')
    torch.manual_seed(0)                                             # lesson zero: the whole life of a model in seconds
    model = Model(Config(depth=2, heads=2, hidden=32, q_index=tuple(range(7))))
    count = sum(p.numel() for p in model.parameters())
    print(f'{count:,} parameters, {model.flops_per_sample() / 1e6:.1f} MFLOP per window')
    batch = {'state': torch.randn(4, 33, 14), 'action': torch.randn(4, 32, 7)}
    out = model(batch)
    out['loss'].backward()
    print('loss', out['loss'].item(), '| norm of the gradient', model.clip_grad(1.0)['norm'].item())
    context = {'state': batch['state'][:, :8], 'action': batch['action'][:, :7]}
    future = model.rollout(context, torch.randn(4, 5, 6, 7))
    print('5 futures of 6 steps', tuple(future['state'].shape), 'disagreement', tuple(future['disagreement'].shape))
