"""
NanoWM: a video world model that imagines what the camera will see if the robot takes these actions.

Paper: "Nano World Models", arXiv 2605.23993 (2026). Its parts: diffusion transformer (Peebles & Xie 2022),
diffusion forcing (Chen et al. 2024: every frame has its own noise level), v-prediction (Salimans & Ho 2022),
zero terminal SNR (Lin et al. 2023), min-SNR weights (Hang et al. 2023).

    train    x_t = alpha_t x0 + sigma_t eps      t (B, T), drawn per frame: all mixes of clean and noisy occur
             loss = w(t) |net(x_t, t, action) - target|^2
             target: v = alpha eps - sigma x0 | x0 | eps | x0 - eps (flow)
    sample   a matrix says which frame goes from which level to which; rows are steps, columns are frames:
             x0_hat, eps_hat from net;  x <- alpha' x0_hat + sigma' eps_hat    (DDIM; for flow it is Euler)

Shapes: x (B, T, C, H, W) is T frames, latents or pixels. t (B, T) is their noise levels: timesteps - 1 is
pure noise, 0 nearly clean, -1 clean. action (B, T, k*A): action[:, i] is taken at frame i, and folds
into one the k = frame_skip recorded actions of A numbers that lead to frame i + 1. P patches per frame, D
numbers per token; N futures of K new frames. Attention in time is causal, all else works inside one frame.

Read first `Model.forward` (training), then `Model.denoise` and `Model.rollout` (dreaming), then `Block`.
Where we depart from the authors' code (our defaults still are its published settings):
- cross_attention: they start gate and projection at zero, so neither learns; we zero the projection only.
- modulation is computed once per frame, not per patch: the same numbers, 15 (adaln: 26) % fewer FLOPs.
- fewer frames and rectangles work. `p_noise`, `context_t`, `context_loss`, `skip`, `change_weight`,
  `neighbours` and a `history_level` of -1 are ours, for short runs and small data.
To reach (published): 158,598,160 parameters (B/2, 7-D actions); RT-1 23.07 dB in 50k steps, 24.36 in 300k.
"""
import math
import sys
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F

import checkpoint
from muon import Muon

EVAL = ('video', 'plan')            # protocols that understand this model
PAD = False         # training windows never leave the episode
SAMPLING = ('history_level', 'sampling', 'sample_steps', 'eta')     # only rollout reads them
BIAS = 4.0          # look_at_neighbours: large against what a patch contributes to its q and k, about 1
INJECTIONS = ('additive', 'adaln_fuse', 'adaln', 'film', 'cross_attention')    # one more needs code in Block


@dataclass
class Config:
    # data: all but the last three come from the dataset
    input: str = 'latent'         # 'latent' (VAE codes) | 'video' (uint8 pixels)
    height: int = 32              # of the latent or the picture
    width: int = 32               # may differ from height
    channels: int = 4             # 4 for SD latents, 3 for pixels
    action_dim: int = 7           # numbers per recorded action
    frame_skip: int = 1           # recorded frames, and recorded actions, per model frame
    num_frames: int = 4           # longest window the model can see, in model frames
    n_context: int = 1            # true frames before the first target, in training and in eval and sample
    # network
    depth: int = 12               # blocks; even ones attend in space, odd ones in time
    hidden: int = 768             # token width
    heads: int = 12               # attention heads, hidden // heads wide
    patch: int = 2                # side of a square patch
    injection: str = 'additive'   # action enters by: additive | adaln_fuse | adaln | film | cross_attention
    neighbours: float = 0.0       # gain of q, k with which heads in space start on a neighbour; 0 = published
    # training: what the noise levels are, how they are drawn, how errors count
    pred: str = 'v'               # the network predicts: v | x | eps | flow
    schedule: str = 'cosine'      # cosine | linear; flow has its own straight line
    ztsnr: bool = True            # rescale so that the last level is pure noise; not with eps
    timesteps: int = 1000         # number of noise levels
    t_sampling: str = 'logit_normal'  # how training draws t: logit_normal | uniform
    snr_gamma: float = 5.0        # min-SNR clamp of the loss weight; 0 = no weight
    snr_form: str = 'published'   # published: eps-form for all targets, frames averaged | paper: per target
    p_noise: float = 0.0          # share of targets at the last level, where sampling starts; 0 = published
    context_t: int = 0            # context trains at t ~ U{0..context_t}; -1 clean; 0 like others, published
    context_loss: bool = True     # context frames count in the loss; True = published
    skip: bool = False            # with pred = x: predict the change against the newest context frame
    change_weight: float = 0.0    # what differs from that frame counts 1 + this many times; 0 = published
    muon: float = 0.0             # lr of Muon for the blocks' matrices, in multiples of lr; 0 = published
    # sampling: may differ from what it was in training
    history_level: float = 0.02   # context is re-noised to t = level * (timesteps - 1); -1 = context_t // 2
    sampling: str = 'sequential'  # full_sequence | pyramid | sequential; the same for one new frame a window
    sample_steps: int = 250       # denoising steps per frame
    eta: float = 0.0              # fresh noise per step, from 0 = none (DDIM) to 1 = ancestral; 0 with flow


PRESETS = {
    'tiny': Config(               # for tests and lesson zero
        height=8, width=8, action_dim=3, num_frames=3, depth=4, hidden=32, heads=2, sample_steps=2),
    'cpu': Config(                # config/minihack_wm_cpu.py on its data
        input='video', height=36, width=36, channels=3, action_dim=4, num_frames=2, depth=4, hidden=96,
        heads=4, neighbours=2.0, patch=4, pred='x', t_sampling='uniform', snr_gamma=0.0, p_noise=0.9,
        context_t=-1, context_loss=False, skip=True, change_weight=20.0, muon=5.0, history_level=-1.0,
        sample_steps=1),
    'full': Config(),             # the published main run, B/2
    'S': Config(depth=12, hidden=384, heads=6),
    'B': Config(depth=12, hidden=768, heads=12),
    'L': Config(depth=24, hidden=1024, heads=16)}


def check(cfg):
    """Stop before an impossible model is built: a ValueError of one line, with the value and the way out."""
    for field in fields(cfg):
        value, wanted = getattr(cfg, field.name), type(field.default)
        if type(value) is not wanted and (type(value), wanted) != (int, float):
            raise ValueError(f'{field.name} = {value!r}: must be of type {wanted.__name__}')
    choices = {'input': ('latent', 'video'), 'injection': INJECTIONS, 'pred': ('v', 'x', 'eps', 'flow'),
               'schedule': ('cosine', 'linear'), 't_sampling': ('logit_normal', 'uniform'),
               'snr_form': ('published', 'paper'), 'sampling': ('full_sequence', 'pyramid', 'sequential')}
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: choose one of {", ".join(allowed)}')
    sizes = ('height', 'width', 'channels', 'action_dim', 'frame_skip', 'hidden', 'heads', 'patch')
    limits = dict.fromkeys(sizes, (1, math.inf)) | {
        'num_frames': (2, math.inf), 'n_context': (1, cfg.num_frames - 1), 'depth': (2, math.inf),
        'timesteps': (2, math.inf), 'sample_steps': (1, cfg.timesteps), 'context_t': (-1, cfg.timesteps - 1),
        'p_noise': (0, 1), 'snr_gamma': (0, 1e6), 'history_level': (-1, 1), 'eta': (0, 1),
        'change_weight': (0, 1e6), 'neighbours': (0, 10), 'muon': (0, 1e6)}
    for key, (low, high) in limits.items():
        if not low <= getattr(cfg, key) <= high:                     # written so that nan is refused, too
            raise ValueError(f'{key} = {getattr(cfg, key)}: must lie in {low}..{high}')
    if -1 < cfg.history_level < 0:
        raise ValueError(f'history_level = {cfg.history_level}: must lie in 0..1 or be -1')
    for side in ('height', 'width'):
        if getattr(cfg, side) % cfg.patch:
            raise ValueError(f'{side} = {getattr(cfg, side)}: must be a multiple of patch = {cfg.patch}')
    if cfg.hidden % (4 * cfg.heads):
        raise ValueError(f'hidden = {cfg.hidden}: must be a multiple of 4 * heads = {4 * cfg.heads}, '
                         '2-D RoPE quarters a head')
    if cfg.depth % 2:
        raise ValueError(f'depth = {cfg.depth}: blocks come in space/time pairs, make it even')
    if cfg.pred == 'eps' and cfg.ztsnr:
        raise ValueError('pred = eps divides by alpha, which ztsnr makes 0 at the last level; '
                         'set ztsnr = False (published: schedule = linear)')
    if cfg.snr_form == 'paper' and cfg.p_noise > 0 and cfg.snr_gamma > 0 and cfg.pred in ('v', 'x'):
        raise ValueError(f'p_noise = {cfg.p_noise}: must be 0 with snr_form = paper, which gives pure noise '
                         'a weight near 0 (1e-8 with ztsnr) and so silences p_noise; or set snr_gamma = 0')
    if cfg.context_t < 0 and cfg.history_level != -1:
        raise ValueError(f'history_level = {cfg.history_level}: must be -1 with context_t = -1, because '
                         'training never showed another context than a clean one')
    if cfg.context_t < 0 and cfg.context_loss and cfg.pred != 'x':
        raise ValueError(f'context_loss = True: must be False with context_t = -1 and pred = {cfg.pred}, '
                         'because a clean frame does not tell which noise was drawn for it')
    if cfg.skip and cfg.pred != 'x':
        raise ValueError(f'skip = True: must be False with pred = {cfg.pred}, because only an estimate of x '
                         'can be a change of x; or set pred = x')
    if cfg.eta > 0 and cfg.pred == 'flow':
        raise ValueError(f'eta = {cfg.eta}: must be 0 with pred = flow, because how much noise a step may '
                         'add follows from alpha^2 + sigma^2 = 1, which a straight line does not keep')


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    check(cfg)                                                       # because train.py asks before it builds
    k, T = cfg.frame_skip, cfg.num_frames
    return {cfg.input: range(0, T * k, k), 'action': range(0, T * k)}


def example(cfg, batch_size):
    """A random batch as the loader gives it: frames as Model.encode wants them, action (B, T*k, A)."""
    B, T, C, H, W = batch_size, cfg.num_frames, cfg.channels, cfg.height, cfg.width
    if cfg.input == 'video':
        frames = torch.randint(256, (B, T, H, W, C), dtype=torch.uint8)
    else:
        frames = torch.randn(B, T, C, H, W)
    return {cfg.input: frames, 'action': torch.randn(B, T * cfg.frame_skip, cfg.action_dim)}


# ---- the math: pure functions, no state ----

def noise_schedule(pred, schedule, ztsnr, timesteps):
    """
    alpha, sigma (timesteps + 1,) float32: entry t + 1 belongs to level t, entry 0 to t = -1, the clean frame.
    In float64, because 1 - alpha^2 loses three digits near t = 0 otherwise; on the CPU, for meta models, too.
    """
    u = torch.arange(timesteps + 1, dtype=torch.float64, device='cpu') / timesteps       # (t + 1) / timesteps
    if pred == 'flow':
        return (1 - u).float(), u.float()                            # the straight line, clean at t = -1
    if schedule == 'cosine':                                         # Nichol & Dhariwal 2021
        curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - curve[1:] / curve[:-1]                            # (timesteps,)
    elif schedule == 'linear':                                       # Ho et al. 2020
        beta = torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64, device='cpu') * (1000 / timesteps)
    else:
        raise ValueError(f'schedule = {schedule!r}: no such curve here')
    alpha = (1 - beta.clamp(max=0.999)).cumprod(0).sqrt()            # (timesteps,) sqrt(alpha_bar)
    if ztsnr:                                                        # shift the last to 0, keep the first
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha = torch.cat([torch.ones_like(alpha[:1]), alpha])
    return alpha.float(), (1 - alpha ** 2).clamp(min=0).sqrt().float()


def target_of(pred, x0, eps, alpha, sigma):
    """What the network is asked for; all tensors broadcast to x0."""
    return {'v': alpha * eps - sigma * x0, 'x': x0, 'eps': eps, 'flow': x0 - eps}[pred]


def estimates(pred, out, x, alpha, sigma):
    """The network's output -> (x0_hat, eps_hat). The floor under alpha is published; eps divides by alpha."""
    if pred == 'flow':
        return x + sigma * out, x - alpha * out
    floor = alpha.clamp(min=1e-4)
    x0 = {'v': alpha * x - sigma * out, 'x': out, 'eps': (x - sigma * out) / floor}[pred]
    return x0, (x - floor * x0) / sigma.clamp(min=1e-8)


def ddim_step(x0, eps, alpha, sigma, alpha_next, sigma_next, eta=0.0, z=None):
    """Song et al. 2020, eq. 12: eta = 0 is deterministic, 1 ancestral; z is fresh noise."""
    if eta == 0:
        return alpha_next * x0 + sigma_next * eps
    share = (1 - (alpha / alpha_next.clamp(min=1e-4)) ** 2).clamp(min=0).sqrt()
    fresh = eta * sigma_next / sigma.clamp(min=1e-8) * share
    return alpha_next * x0 + (sigma_next ** 2 - fresh ** 2).clamp(min=0).sqrt() * eps + fresh * z


def snr_weight(form, pred, alpha, sigma, gamma):
    """
    Min-SNR weight (B, T) of squared errors, SNR = (alpha / sigma)^2. Hang et al. 2023: that of x0 counts
    min(SNR, gamma) times. That of v is SNR + 1 times as large, that of eps SNR times, so `paper` divides:
        x: min(SNR, gamma)      v: min(SNR, gamma) / (SNR + 1)      eps: min(SNR, gamma) / SNR
    `published` is the form of eps for all targets, because the authors' code does so: 1 at pure noise, where
    `paper` is 0 for v and x.
    """
    if gamma == 0 or pred == 'flow':
        return torch.ones_like(alpha)
    snr = (alpha ** 2 / (sigma ** 2).clamp(min=1e-12)).clamp(min=1e-8)
    clamped = snr.clamp(max=gamma)
    paper = {'x': clamped, 'v': clamped / (snr + 1), 'eps': clamped / snr}
    return {'published': paper['eps'], 'paper': paper[pred]}[form]


def change_map(x0, guess, newest):
    """
    How much each place differs from the newest context frame, (B, T, 1, H, W) in 0..1: in truth or in the
    network's guess of x0, whichever is more. With the truth alone it would cost next to nothing to move what
    should stand still. 0.3 in model units, 38 of 255 grey levels, counts in full: more than the noise of
    a camera.
    """
    change = torch.maximum((x0 - newest).abs(), (guess.detach() - newest).abs())
    return (change.amax(2, keepdim=True) / 0.3).clamp(max=1)


def scheduling_matrix(mode, T, steps, timesteps):
    """
    Levels of T new frames, (rows, T) int64, -1 = clean. Row to row is one network call. Each column runs down
    the grid timesteps - 1 ... -1, `delay` rows after the one before: 0 denoises all frames at once, 1 makes a
    staircase (pyramid), `steps` finishes a frame before the next begins. With T = 1 nothing is delayed, so
    all modes are the same. sequential, T = 2, steps = 2, timesteps = 1000:
    [999 999] [499 999] [-1 999] [-1 499] [-1 -1]
    """
    assert 1 <= steps <= timesteps, f'sample_steps = {steps}: must lie in 1..timesteps = {timesteps}'
    delay = {'full_sequence': 0, 'pyramid': 1, 'sequential': steps}[mode]
    done = torch.arange(steps + delay * (T - 1) + 1)[:, None] - delay * torch.arange(T)   # steps taken
    return (steps - done).clamp(0, steps) * timesteps // steps - 1


# ---- the network, smallest piece first ----

def timestep_embedding(t, dim=256):
    """Sinusoids of integer levels t (...) -> (..., dim), cosines first."""
    freq = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t[..., None].float() * freq
    return torch.cat([angle.cos(), angle.sin()], -1)


def rope_angles(position, count):
    """`count` rotation angles for each position (L,) -> (L, count)."""
    return position[:, None].float() * 10000 ** (-torch.arange(count) / count)


def apply_rope(x, table):
    """Turn the first half of a head against the second. x (..., L, head); table (2, L, head/2): cos, sin."""
    cos, sin = table.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = x.float()                                                # statistics in fp32, also under autocast
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.qkv = nn.Linear(cfg.hidden, 3 * cfg.hidden)
        self.proj = nn.Linear(cfg.hidden, cfg.hidden)
        self.q_norm = RMSNorm(cfg.hidden // cfg.heads)
        self.k_norm = RMSNorm(cfg.hidden // cfg.heads)

    def forward(self, x, rope, causal, past=None):
        """x (S, L, D): S sequences of L tokens; past: (k, v) of earlier ones -> like x, the (k, v) of x."""
        S, L, D = x.shape
        q, k, v = self.qkv(x).view(S, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)   # (S, heads, L, D/heads)
        q, k = apply_rope(self.q_norm(q), rope), apply_rope(self.k_norm(k), rope)
        new = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = causal_attention(q, k, v) if causal else F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(S, L, D)), new


def causal_attention(q, k, v):
    """The L queries are the last L of the M keys; each sees itself and what came before."""
    L, M = q.shape[2], k.shape[2]
    if L == M:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(L, M, dtype=torch.bool, device=q.device).tril(M - L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class CrossAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.q = nn.Linear(cfg.hidden, cfg.hidden)
        self.kv = nn.Linear(cfg.hidden, 2 * cfg.hidden)
        self.proj = nn.Linear(cfg.hidden, cfg.hidden)

    def forward(self, x, context, causal):
        """x (S, L, D) looks at context (S, M, D): no positions, no qk-norm."""
        S, L, D = x.shape
        M = context.shape[1]
        q = self.q(x).view(S, L, self.heads, -1).transpose(1, 2)                      # (S, heads, L, D/heads)
        k, v = self.kv(context).view(S, M, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (S, heads, M, D/heads)
        y = causal_attention(q, k, v) if causal else F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(S, L, D))


class SwiGLU(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.w1 = nn.Linear(cfg.hidden, 4 * cfg.hidden, bias=False)
        self.w2 = nn.Linear(cfg.hidden, 4 * cfg.hidden, bias=False)
        self.w3 = nn.Linear(4 * cfg.hidden, cfg.hidden, bias=False)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def modulation(hidden, count):
    """SiLU and the linear map from a condition to `count` vectors of width hidden."""
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden, count * hidden))


class Block(nn.Module):
    """One transformer block, over the patches of a frame (space) or over the frames of a patch (time)."""

    def __init__(self, cfg, time):
        super().__init__()
        self.time, self.injection = time, cfg.injection
        self.attn = Attention(cfg)
        self.mlp = SwiGLU(cfg)
        self.adaLN_modulation = modulation(cfg.hidden, 6)
        if cfg.injection in ('additive', 'adaln_fuse'):
            pass                             # these two add to what is there: no weights
        elif cfg.injection == 'adaln':
            self.action_adaLN_modulation = modulation(cfg.hidden, 6)
        elif cfg.injection == 'film':
            self.film_modulation = modulation(cfg.hidden, 2)
        elif cfg.injection == 'cross_attention':
            self.cross_attn = CrossAttention(cfg)
            self.cross_gate = nn.Parameter(torch.ones(cfg.hidden))
        else:                                # or it would train blind to the actions
            raise ValueError(f'injection = {cfg.injection!r}: in INJECTIONS, but Block has no code for it')

    def forward(self, x, c, e, rope, past=None):
        """
        x (B, T, P, D); c (B, T, 1, D) noise level; e (B, start+T, 1, D) the action that led to each frame of
        the window, the last T of them to those of x. -> x, the attention's (k, v). All but attention is per
        frame and broadcasts over P.
        """
        own = e[:, -x.shape[1]:]                                     # (B, T, 1, D)
        if self.injection == 'additive':
            x = x + own
        if self.injection == 'adaln_fuse':
            c = c + own
        mod = self.adaLN_modulation(c)                               # (B, T, 1, 6D)
        if self.injection == 'adaln':
            mod = mod + self.action_adaLN_modulation(own)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = mod.chunk(6, -1)    # _attention, _mlp
        y, new = self.attn(self.to_sequences(modulate(x, shift_a, scale_a)), rope, self.time, past)
        x = x + gate_a * self.to_frames(y, x)
        if self.injection == 'film':
            gamma, beta = self.film_modulation(own).chunk(2, -1)
            x = (1 + gamma) * x + beta
        x = x + gate_m * self.mlp(modulate(x, shift_m, scale_m))
        if self.injection == 'cross_attention':
            if self.time:
                context = self.to_sequences(e.expand(-1, -1, x.shape[2], -1))    # (B*P, start+T, D)
            else:
                context = own.flatten(0, 1)                                      # (B*T, 1, D): a single token
            y = self.cross_attn(self.to_sequences(modulate(x, 0, 0)), context, self.time)      # LayerNorm(x)
            x = x + self.cross_gate * self.to_frames(y, x)
        return x, new

    def to_sequences(self, x):                                   # (B, T, P, D) -> (B*P, T, D) or (B*T, P, D)
        return x.transpose(1, 2).flatten(0, 1) if self.time else x.flatten(0, 1)

    def to_frames(self, y, like):                                # and back to the shape of `like`
        B, T, P, D = like.shape
        return y.view(B, P, T, D).transpose(1, 2) if self.time else y.view(B, T, P, D)


class Embedder(nn.Module):
    """Linear-SiLU-Linear: for the sinusoids of t and for actions. A class because of the published keys."""

    def __init__(self, n_in, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x):
        return self.mlp(x)


class PatchEmbed(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.proj = nn.Conv2d(cfg.channels, cfg.hidden, cfg.patch, stride=cfg.patch)

    def forward(self, x):                                            # (B, T, C, H, W)
        y = self.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2)    # (B*T, P, D), row-major
        return y.view(*x.shape[:2], *y.shape[1:])


class FinalLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.linear = nn.Linear(cfg.hidden, cfg.patch ** 2 * cfg.channels)
        self.adaLN_modulation = modulation(cfg.hidden, 2)

    def forward(self, x, c):                                         # c: noise level only, never the action
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(modulate(x, shift, scale))


@torch.no_grad()
def look_at_neighbours(attn, sharpness):
    """
    A start for attention in space: head 0 looks at the patch above its own, the next to the right, below, to
    the left, and so on. RoPE turns q and k by their places, so what one knows before training, a bias, is
    enough to point from each place to the next: k is a constant, q the same turned by one step. What a patch
    needs to know of its neighbours is there as soon as the gates open; from scratch, that takes most of a
    short run. Two frequencies of each axis: the fastest tells neighbours apart, the next tells them from what
    is 2 pi patches away. Fewer than four heads leave directions out.
    """
    D = attn.proj.in_features
    head = D // attn.heads
    bias = attn.qkv.bias.view(3, attn.heads, head)                   # q, k, v
    for h in range(attn.heads):
        for axis, step in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)][h % 4]):      # down, right
            for f, angle in enumerate(step * rope_angles(torch.ones(1), head // 4)[0, :2]):
                i = axis * (head // 4) + f                           # rows turn the first quarter, see Model
                bias[1, h, i] = BIAS
                bias[0, h, i], bias[0, h, i + head // 2] = BIAS * angle.cos(), BIAS * angle.sin()
    for norm in (attn.q_norm, attn.k_norm):
        norm.weight.fill_(sharpness)


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg = cfg
        D, head = cfg.hidden, cfg.hidden // cfg.heads                # numbers per token, and per head of it
        rows, cols = cfg.height // cfg.patch, cfg.width // cfg.patch
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * cols, D))
        self.temp_embed = nn.Parameter(torch.zeros(1, cfg.num_frames, D))
        self.x_embedder = PatchEmbed(cfg)
        self.t_embedder = Embedder(256, D)
        self.action_embedder = Embedder(cfg.frame_skip * cfg.action_dim, D)
        self.blocks = nn.ModuleList([Block(cfg, time=i % 2 == 1) for i in range(cfg.depth)])
        self.final_layer = FinalLayer(cfg)
        # of recorded actions; train.py fills them from meta.json's train split, the checkpoint keeps them
        self.register_buffer('action_mean', torch.zeros(cfg.action_dim))
        self.register_buffer('action_std', torch.ones(cfg.action_dim))
        place = torch.arange(rows * cols)
        space = torch.cat([rope_angles(place // cols, head // 4), rope_angles(place % cols, head // 4)], 1)
        time = rope_angles(torch.arange(cfg.num_frames), head // 2)
        alpha, sigma = noise_schedule(cfg.pred, cfg.schedule, cfg.ztsnr, cfg.timesteps)
        for name, table in [('rope_space', torch.stack([space.cos(), space.sin()])),
                            ('rope_time', torch.stack([time.cos(), time.sin()])),
                            ('alpha', alpha), ('sigma', sigma)]:
            self.register_buffer(name, table, persistent=False)      # not saved: keys stay the published ones
        self.init_weights()

    def init_weights(self):
        """Zero modulation and output layer: at first blocks add nothing but the action, the output is 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        first, _, last = self.t_embedder.mlp
        for weight in (self.pos_embed, self.temp_embed, first.weight, last.weight):
            nn.init.normal_(weight, std=0.02)
        for name, module in self.named_modules():
            if name.endswith(('modulation.1', 'cross_attn.proj', 'final_layer.linear')):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        if self.cfg.neighbours > 0:
            for block in self.blocks[::2]:
                look_at_neighbours(block.attn, self.cfg.neighbours)

    def net(self, x, t, action, start=0, kv=None):
        """
        The network alone. x (B, T, C, H, W) are frames start..start+T-1 of a window, t (B, T) their levels.
        action (B, >= start+T-1, k*A), normalised, of the window from its frame 0 on; what is taken at the
        last frame or later is not looked at. -> (B, T, C, H, W).
        kv: temporal keys and values of the frames before `start`, a pair of (B*P, heads, frames, D/heads) per
        temporal block, or [] when there are none; then returns (output, the same list for these frames) for
        the caller to concatenate, as `denoise` does.
        """
        B, T = x.shape[:2]
        assert start + T <= self.cfg.num_frames, \
            f'frames {start}..{start + T - 1}, but num_frames = {self.cfg.num_frames}; shorten the window'
        assert action.shape[1] >= start + T - 1, \
            f'{action.shape[1]} actions for {start + T} frames; give one for each step between them'
        # e[:, i] embeds action[:, i-1], which led to frame i. e[:, 0] = 0, because a training sample does not
        # hold what was done before it; so a sampler must not show it, either
        e = self.action_embedder(action[:, :start + T - 1])
        e = F.pad(e, (0, 0, 1, 0))[:, :, None]                       # (B, start+T, 1, D)
        c = self.embed_level(t)[:, :, None]                          # (B, T, 1, D)
        x = self.x_embedder(x) + self.pos_embed                      # (B, T, P, D)
        rope_time, new = self.rope_time[:, start:start + T], []
        for i, block in enumerate(self.blocks):
            if i == 1:                                               # once, before the first block in time
                x = x + self.temp_embed[:, start:start + T, None]
            past = kv[i // 2] if kv and block.time else None
            x, pair = block(x, c, e, rope_time if block.time else self.rope_space, past)
            if block.time:
                new.append(pair)
        out = self.unpatchify(self.final_layer(x, c))
        return out if kv is None else (out, new)

    def embed_level(self, t):                        # (B, T) -> (B, T, D); nanowm_imf.py has its own
        return self.t_embedder(timestep_embedding(t))

    def unpatchify(self, x):                                     # (B, T, P, patch*patch*C) -> (B, T, C, H, W)
        B, T, _, _ = x.shape
        C, patch = self.cfg.channels, self.cfg.patch
        rows, cols = self.cfg.height // patch, self.cfg.width // patch
        x = x.view(B, T, rows, cols, patch, patch, C).permute(0, 1, 6, 2, 4, 3, 5)
        return x.reshape(B, T, C, rows * patch, cols * patch)

    # ---- data units <-> model units ----

    def encode(self, batch):
        """batch['latent'] (B, T, C, H, W), as it is, or batch['video'] (B, T, H, W, C), 0..255 -> [-1, 1]."""
        if self.cfg.input == 'latent':
            return batch['latent'].float()
        return batch['video'].float().permute(0, 1, 4, 2, 3) / 127.5 - 1

    def decode(self, x):
        """(..., C, H, W) -> latents as they are, or pixels (..., H, W, C) float32, 0..255, not rounded."""
        if self.cfg.input == 'latent':
            return x.float()
        return ((x.float().movedim(-3, -1) + 1) * 127.5).clamp(0, 255)

    def fold_action(self, action):
        """Actions in data units (B, T*k, A), or folded (B, T, k*A) -> normalised (B, T, k*A)."""
        A, folded = self.cfg.action_dim, self.cfg.frame_skip * self.cfg.action_dim
        assert action.shape[-1] in (A, folded), f'actions of {action.shape[-1]} numbers; give {A} or {folded}'
        B, T = action.shape[0], action[0].numel() // folded
        normal = (action.float().reshape(B, -1, A) - self.action_mean) / self.action_std
        return normal.reshape(B, T, folded)

    # ---- training ----

    def forward(self, batch):
        """batch: video or latent, action (B, T*k, A); t (B, T), noise (B, T, C, H, W) or we draw them."""
        x0 = self.encode(batch)
        t = batch['t'] if 't' in batch else self.draw_t(*x0.shape[:2])
        eps = batch['noise'] if 'noise' in batch else torch.randn_like(x0)
        loss, mse = self.loss(x0, self.fold_action(batch['action']), t, eps)
        return {'loss': loss.mean(), 'mse': mse.mean().detach()}

    def draw_t(self, B, T):
        """Noise levels (B, T) int64, independent per frame: this is diffusion forcing."""
        cfg, device, top = self.cfg, self.alpha.device, self.cfg.timesteps - 1
        if cfg.t_sampling == 'logit_normal':
            t = (torch.randn(B, T, device=device).sigmoid() * cfg.timesteps).long().clamp(max=top)
        elif cfg.t_sampling == 'uniform':
            t = torch.randint(cfg.timesteps, (B, T), device=device)
        else:
            raise ValueError(f't_sampling = {cfg.t_sampling!r}: no such draw here')
        target = torch.arange(T, device=device) >= cfg.n_context
        # sampling starts at `top`, but logit_normal draws that with probability 2.5e-12: in practice, never
        if cfg.p_noise > 0:
            t = torch.where(target & (torch.rand(B, T, device=device) < cfg.p_noise), top, t)
        if cfg.context_t > 0:    # because sampling shows a context that is nearly clean
            t = torch.where(target, t, torch.randint(cfg.context_t + 1, (B, T), device=device))
        if cfg.context_t < 0:    # or clean altogether
            t = torch.where(target, t, -1)
        return t

    def q_sample(self, x0, t, eps):
        """Noise clean frames to levels t (B, T)."""
        alpha, sigma = self.levels(t)
        return alpha * x0 + sigma * eps

    def levels(self, t):
        """alpha, sigma of levels t (...), -1 = clean, shaped to broadcast against frames (..., C, H, W)."""
        return self.alpha[t + 1][..., None, None, None], self.sigma[t + 1][..., None, None, None]

    def loss(self, x0, action, t, eps):
        """x0, eps (B, T, C, H, W); action (B, T, k*A) normalised; t (B, T) -> loss and plain mse, (B,)."""
        cfg = self.cfg
        alpha, sigma = self.levels(t)
        x = self.q_sample(x0, t, eps)
        out = self.net(x, t, action).float()
        newest = x0[:, cfg.n_context - 1:cfg.n_context]              # (B, 1, C, H, W), clean
        if cfg.skip:
            out = torch.cat([out[:, :cfg.n_context], out[:, cfg.n_context:] + newest], 1)
        square = (out - target_of(cfg.pred, x0, eps, alpha, sigma)).pow(2)
        mse = error = square.mean((2, 3, 4))                         # (B, T)
        if cfg.change_weight > 0:    # because in a still scene the loss hardly sees what moves
            change = change_map(x0, estimates(cfg.pred, out, x, alpha, sigma)[0], newest)
            error = (square * (1 + cfg.change_weight * change)).mean((2, 3, 4))
        weight = snr_weight(cfg.snr_form, cfg.pred, self.alpha[t + 1], self.sigma[t + 1], cfg.snr_gamma)
        if not cfg.context_loss:
            mse, error, weight = (y[:, cfg.n_context:] for y in (mse, error, weight))
        if cfg.snr_form == 'published':      # averages weights first: a frame's does not meet its own error
            return error.mean(1) * weight.mean(1), mse.mean(1)
        return (error * weight).mean(1), mse.mean(1)

    # ---- dreaming ----

    @torch.no_grad()
    def denoise(self, x, action, matrix, n_context, t_context=0, eta=0.0, generator=None,
                newest=None, N=1, kv=()):
        """
        Walk down a scheduling matrix (rows, T - n_context). x (B, T, C, H, W): n_context frames of context at
        level t_context, then noise; action (B, >= T-1, k*A) normalised. -> x, its noise turned into frames.
        newest (B, 1, C, H, W): the last context frame without the noise of t_context, for cfg.skip.
        N: every N clips in turn are futures of one clip, and share the noise that eta adds.
        kv: what `net` gives for the context alone, if that is known already.

        Time is causal and all else is per frame, so no frame depends on those after it. Frames that have not
        begun are left out; finished ones, and the context, pass once more and live on as keys and values.
        That once is not their last step, which still saw them noisy. The numbers are those of passing all.
        """
        if x.shape[1] != n_context + matrix.shape[1]:
            raise ValueError(f'{x.shape[1]} frames: want {n_context} of context + one for each of '
                             f'{matrix.shape[1]} columns')
        x, kv, done = x.clone(), list(kv), n_context if kv else 0    # done: frames that are in kv
        newest = x[:, n_context - 1:n_context] if newest is None else newest
        # once on the CPU, where asking which frames move waits for nothing, and once on the device
        matrix = F.pad(matrix.cpu(), (n_context, 0), value=-1)
        levels = matrix.to(x.device)
        # a finished frame (-1) is shown at t = 0, because training never shows a target at -1. It is not
        # noised to t_context: that is for context, where the errors of earlier windows pile up
        shown = torch.where(torch.arange(x.shape[1], device=x.device) < n_context, t_context, 0)
        for i, (now, then) in enumerate(zip(matrix[:-1], matrix[1:])):
            moved = now != then                                      # waiting and finished frames stay
            if not moved.any():
                continue
            first = (now >= 0).int().argmax().item()                 # all before it are finished
            end = moved.nonzero().max().item() + 1                   # nothing happens from here on
            t = torch.where(levels[i] < 0, shown, levels[i])[done:end]
            out, new = self.net(x[:, done:end], t.expand(len(x), -1), action[:, :end - 1], done, kv)
            if first > done:                                         # those in between are finished
                new = [[y[:, :, :first - done] for y in pair] for pair in new]
                kv = [[torch.cat(y, 2) for y in zip(*pairs)] for pairs in zip(kv, new)] or new
            out = out[:, first - done:].float()
            done = first
            if self.cfg.skip:
                out = out + newest
            alpha, sigma = self.levels(levels[i, done:end])
            x0, eps = estimates(self.cfg.pred, out, x[:, done:end], alpha, sigma)
            z = None
            if eta:
                # for all new frames, so that what is drawn does not depend on which of them pass
                shape = len(x) // N, x.shape[1] - n_context, *x.shape[2:]
                z = torch.randn(shape, generator=generator, device=x.device)
                z = z[:, done - n_context:end - n_context].repeat_interleave(N, 0)
            step = ddim_step(x0, eps, alpha, sigma, *self.levels(levels[i + 1, done:end]), eta, z)
            stays = (levels[i] == levels[i + 1])[done:end, None, None, None]
            x[:, done:end] = torch.where(stays, x[:, done:end], step)
        return x

    def context_level(self, history_level=None):
        """The t at which context is shown, by default cfg's; a negative level asks for context_t // 2."""
        level = self.cfg.history_level if history_level is None else history_level
        return self.cfg.context_t // 2 if level < 0 else round(level * (self.cfg.timesteps - 1))

    @torch.no_grad()
    def rollout(self, context, action, noise=None, renoise=None, history=0, stride=1, chunk=0, generator=None,
                progress=iter):
        """
        Imagine K frames for each of N futures by a window that starts afresh when it slides (`next_frames`
        says why); cfg's SAMPLING keys say how.
        context: T frames given, video (B, T, H, W, C) or latent (B, T, C, H, W), with action (B, T-1, k*A);
        action (B, N, K, k*A): action[:, :, 0] is taken at the last context frame. All in data units, and so
        is the result: {'video' or 'latent': the new frames (B, N, K, ...)}.
        history: frames of context per window; 0 = num_frames - stride, or what training showed with skip or
        with a clean context.
        stride: new frames per window; cfg.sampling is their order, so with 1 it changes nothing.
        noise (B, K, C, H, W), model units: what new frames start from, shared by the N futures, because only
        their actions shall tell them apart. renoise (B, T + K, C, H, W): what is added to a frame while it is
        context, at levels above 0. Both are drawn if they are not given.
        chunk: so many of the N futures at a time, because keys and values of all may not fit; 0 = all.
        progress: wraps the range of windows, e.g. in a tqdm bar.
        """
        cfg = self.cfg
        if not 1 <= stride < cfg.num_frames:
            raise ValueError(f'stride = {stride}: must lie in 1..{cfg.num_frames - 1}, below num_frames')
        fixed = cfg.skip or cfg.context_t < 0        # both know the context by its place in the window
        if fixed and stride + cfg.n_context > cfg.num_frames:
            raise ValueError(f'stride = {stride}: with skip or context_t = -1 a window also holds n_context '
                             f'= {cfg.n_context} frames of context, and no more than {cfg.num_frames} in all')
        history = history or (cfg.n_context if fixed else cfg.num_frames - stride)
        if not 1 <= history <= cfg.num_frames - stride:
            raise ValueError(f'history = {history}: must lie in 1..{cfg.num_frames - stride} at {stride = }')
        if fixed and history != cfg.n_context:
            raise ValueError(f'history = {history}: must be n_context = {cfg.n_context} with skip or '
                             'context_t = -1, as in training')
        if chunk < 0:
            raise ValueError(f'chunk = {chunk}: must be at least 1, or 0 for all futures at a time')
        x = self.encode(context)                                     # (B, T, C, H, W)
        B, given, *shape = x.shape
        N, K, folded = action.shape[1:]
        if fixed and given < cfg.n_context:
            raise ValueError(f'{given} frames of context: want n_context = {cfg.n_context} or more')
        if folded != cfg.frame_skip * cfg.action_dim:
            raise ValueError(f'actions of {folded} numbers: want {cfg.frame_skip * cfg.action_dim}, those of '
                             f'frame_skip = {cfg.frame_skip} moves in one')
        if context['action'].shape[1] != given - 1:
            raise ValueError(f'{context["action"].shape[1]} actions for a context of {given} frames; give '
                             f'the {given - 1} between them')
        draw = dict(generator=generator, device=x.device)
        noise = torch.randn(B, K, *shape, **draw) if noise is None else noise
        renoise = torch.randn(B, given + K, *shape, **draw) if renoise is None else renoise
        for name, y, length in (('noise', noise, K), ('renoise', renoise, given + K)):
            if y.shape != (B, length, *shape):
                raise ValueError(f'{name} of shape {tuple(y.shape)}: want {(B, length, *shape)}')
        past = context['action'][:, None].expand(-1, N, -1, -1)
        action = self.fold_action(torch.cat([past, action], 2).flatten(0, 1)).unflatten(0, (B, N))
        x = x[:, None].expand(B, N, *x.shape[1:])                    # (B, N, given, C, H, W)
        for done in progress(range(0, K, stride)):
            count, end = min(stride, K - done), given + done         # frames to make, frames there are
            start = max(0, end - history)
            # the action that led to the window's first frame is left out, as in training
            new = self.next_frames(x[:, :, start:], renoise[:, start:end], noise[:, done:done + count],
                                   action[:, :, start:end + count - 1], done == 0, chunk or N, generator)
            x = torch.cat([x, new], 2)
        return {cfg.input: self.decode(x[:, :, given:])}

    def next_frames(self, past, renoise, noise, action, shared, chunk, generator):
        """
        One window of N futures, of L frames of context and K new ones. past (B, N, L, C, H, W), renoise
        (B, L, ...) for it, noise (B, K, ...), action (B, N, L+K-1, k*A) -> the new frames (B, N, K, ...).
        shared: the futures still have the same past, as in the first window; it passes once per clip.
        chunk: futures per clip in one pass.

        A window that slid reuses nothing of the one before it: what was kept of its frames knew of frames
        that have left since; they have another temp_embed and rotation now, the first has lost its action,
        and finished frames have become context, shown at another level. (One that only grew does not,
        either, for the last of these reasons.)
        """
        cfg, (B, N, L), K = self.cfg, past.shape[:3], noise.shape[1]
        t, newest = self.context_level(), past[:, :, -1:]

        def spread(y, copies):                                       # (B, ...) -> (B*copies, ...)
            return y[:, None].expand(B, copies, *y.shape[1:]).flatten(0, 1)

        level = torch.full((B, L), t, device=past.device)
        if t > 0:                                                    # at 0 and at -1 it is shown clean
            past = self.q_sample(past, level[:, None], renoise[:, None])
        kv = self.net(past[:, 0], level, action[:, 0], kv=[])[1] if shared and N > 1 else []
        # eta's noise is drawn from a seed, because each chunk must draw the same
        seed = torch.randint(2**62, (), generator=generator, device=past.device).item() if cfg.eta else 0
        matrix = scheduling_matrix(cfg.sampling, K, cfg.sample_steps, cfg.timesteps)
        made = []
        for n in range(0, N, chunk):
            M = min(chunk, N - n)                                    # futures of each clip in this chunk
            context, actions, last = (y[:, n:n + M].flatten(0, 1) for y in (past, action, newest))
            known = [[spread(y.unflatten(0, (B, -1)), M).flatten(0, 1) for y in pair] for pair in kv]
            window = torch.cat([context, spread(noise, M)], 1)
            seeded = torch.Generator(past.device).manual_seed(seed)
            window = self.denoise(window, actions, matrix, L, t, cfg.eta, seeded, last, M, known)
            made.append(window[:, L:].unflatten(0, (B, M)))
        return torch.cat(made, 1)

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """
        AdamW; like the published runs it decays every tensor, norms and embeddings too. With cfg.muon the
        matrices of attention and MLP go by Muon; those of the modulation do not, because they map one vector
        per frame, not tokens.
        """
        setting = dict(lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        if self.cfg.muon == 0:
            return torch.optim.AdamW(self.parameters(), **setting)
        matrices = {name: p for name, p in self.named_parameters()
                    if name.startswith('blocks.') and p.ndim == 2 and 'modulation' not in name}
        stacked = {'qkv.weight': 3, 'cross_attn.kv.weight': 2}
        parts = [next((n for end, n in stacked.items() if name.endswith(end)), 1) for name in matrices]
        rest = [p for name, p in self.named_parameters() if name not in matrices]
        return Muon([{'params': rest}, {'params': [*matrices.values()], 'parts': parts,
                                        'lr_scale': self.cfg.muon}], **setting)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample, 3 x forward. Per token and block: 16 D^2 of weights (qkv 3, proj 1,
        MLP 12) and 2 D per attended token. Per frame and block: 6 D^2 of modulation. And the injection's.
        """
        cfg, D, T, P = self.cfg, self.cfg.hidden, self.cfg.num_frames, self.pos_embed.shape[1]
        inputs = cfg.frame_skip * cfg.action_dim
        pixels = cfg.patch ** 2 * cfg.channels
        token = cfg.depth * 16 * D * D + cfg.depth // 2 * 2 * D * (P + T) + 2 * pixels * D
        frame = cfg.depth * 6 * D * D + 2 * D * D + 256 * D + D * D + inputs * D + D * D
        if cfg.injection in ('adaln', 'film'):
            frame += cfg.depth * (6 if cfg.injection == 'adaln' else 2) * D * D
        if cfg.injection == 'cross_attention':               # kv per frame in space blocks, per token in time
            token += cfg.depth * 2 * D * D + cfg.depth // 2 * (2 * D * D + 2 * D * (1 + T))
            frame += cfg.depth // 2 * 2 * D * D
        return 3 * 2 * T * (P * token + frame)

    @classmethod
    def from_pretrained(cls, src, stats='', **over):
        """
        The authors' weights, whose keys are ours: user/name on the hub, a folder or .safetensors file with
        their config.yaml, or a Lightning .ckpt; or a run of ours. -> the model in eval mode.
        stats: how to normalise actions, which those files do not say: a data folder of ours, or the authors'
        {mean, std} as a .pt; None leaves it to the caller. over: fields of SAMPLING. What is missing, unknown
        or contradicts itself ends in one line that says so.
        """
        assert over.keys() <= {*SAMPLING}, f'{[*over]}: only {SAMPLING} can change after the training'
        src = str(src)
        if checkpoint.is_run(src):
            return checkpoint.load(src, **over)[0]
        import nanowm_published  # here, because it imports this file
        return nanowm_published.load(cls, src, stats, over)[0]


if __name__ == '__main__' and sys.argv[1:]:              # import SRC OUT_DIR DATASET
    import nanowm_published
    sys.exit(nanowm_published.command(sys.argv[1:]))

if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    cfg = PRESETS['tiny']
    model = Model(cfg)
    count = sum(p.numel() for p in model.parameters())
    print(f'{count:,} parameters, {model.flops_per_sample() / 1e6:.1f} MFLOP per sample')
    batch = example(cfg, batch_size=2)
    out = model(batch)
    out['loss'].backward()
    grad = model.final_layer.linear.weight.grad
    print(f"loss {out['loss'].item():.4f} | gradient of the output layer {grad.norm().item():.4f}")
    context = {'latent': batch['latent'][:, :1], 'action': batch['action'][:, :0]}
    dream = model.rollout(context, action=torch.randn(2, 5, 6, cfg.action_dim))['latent']
    print('6 dreamed frames of 5 futures for 2 clips', tuple(dream.shape))
