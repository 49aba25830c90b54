"""
NanoWM: a video world model that imagines what the camera will see if the robot takes these actions.

Paper: "Nano World Models", arXiv 2605.23993 (2026). Its parts: diffusion transformer (Peebles & Xie 2022), diffusion
forcing (Chen et al. 2024: every frame has its own noise level), v-prediction (Salimans & Ho 2022), zero terminal SNR
(Lin et al. 2023), min-SNR weights (Hang et al. 2023).

    train    x_t = alpha_t x0 + sigma_t eps      t (B, F) is drawn per frame: all mixes of clean and noisy frames occur
             loss = w(t) |net(x_t, t, a) - target|^2     target v = alpha eps - sigma x0 | x0 | eps | x0 - eps (flow)
    sample   a matrix says which frame goes from which level to which in each step; rows are steps, columns are frames:
             x0_hat, eps_hat from net;  x <- alpha' x0_hat + sigma' eps_hat      (DDIM; for flow this line is Euler)

Shapes: x (B, F, C, H, W) latents or pixels; t (B, F); action (B, F, k*A), k raw actions of A numbers per model frame;
P = (H/p)(W/p) patches of a frame; h hidden width, nh heads, hs head width. (In code the number of frames is n: F is
torch's.) action[:, f] is taken at frame f and leads to frame f+1. Temporal attention is causal and all else works
inside one frame, so frame f never sees frames after it.

Read first `Model.forward` (training), then `Model.denoise` and `Model.rollout` (dreaming), then `Block` (the network).

Where we depart from the authors' code (our defaults still are its published settings):
- cross_attention: they start gate and projection at zero, so neither ever gets a gradient; we zero the projection only.
- modulation is computed once per frame and broadcast to its patches: the same numbers, 15 (adaln: 26) % fewer FLOPs.
- 1..num_frames frames and rectangular grids work; `p_noise`, `context_t`, `context_loss` are ours, for short runs.
It should reach (published): 158,598,160 parameters at B/2 with 7-D actions; RT-1 23.07 dB in 50k steps, 24.36 in 300k.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

EVAL = ('video',)   # evaluators of eval.py that understand this model
PAD = False         # training windows never leave the episode


@dataclass
class Config:
    input: str = 'latent'         # 'latent' (VAE codes) | 'video' (uint8 pixels); the dataset decides
    height: int = 32              # of the latent or the picture
    width: int = 32               # may differ from height
    channels: int = 4             # 4 for SD latents, 3 for pixels
    action_dim: int = 7           # numbers per raw action
    frame_skip: int = 1           # raw frames (and raw actions) per model frame, k
    num_frames: int = 4           # longest window the model can see
    n_context: int = 1            # leading frames that are given when sampling; training: see p_noise to context_loss
    depth: int = 12               # blocks; even ones attend in space, odd ones in time
    hidden: int = 768             # token width
    heads: int = 12               # attention heads, hidden // heads wide
    patch: int = 2                # side of a square patch
    injection: str = 'additive'   # action enters by: additive | adaln_fuse | adaln | film | cross_attention
    pred: str = 'v'               # the network predicts: v | x | eps | flow
    schedule: str = 'cosine'      # cosine | linear; flow has its own straight line
    ztsnr: bool = True            # rescale so that t = T-1 is pure noise; not with eps
    timesteps: int = 1000         # T
    t_sampling: str = 'logit_normal'  # how training draws t: logit_normal | uniform
    snr_gamma: float = 5.0        # min-SNR clamp of the loss weight; 0 = no weight
    snr_form: str = 'published'   # published: eps-form for every target, mean over frames | paper: per target and frame
    p_noise: float = 0.0          # share of target frames trained at t = T-1, where sampling starts; 0 = published
    context_t: int = 0            # context frames train at t ~ U{0..context_t}; 0 = like all others (published)
    context_loss: bool = True     # context frames count in the loss; True = published
    history_level: float = 0.02   # context is re-noised to t = level * (T-1) when sampling; -1 = context_t // 2
    sampling: str = 'sequential'  # scheduling matrix: full_sequence | pyramid | sequential
    sample_steps: int = 250       # denoising steps per frame


def check(cfg):
    """Stop before an impossible model is built, with the numbers and the way out."""
    choices = {'input': ('latent', 'video'), 'pred': ('v', 'x', 'eps', 'flow'), 'schedule': ('cosine', 'linear'),
               'injection': ('additive', 'adaln_fuse', 'adaln', 'film', 'cross_attention'),
               't_sampling': ('logit_normal', 'uniform'), 'snr_form': ('published', 'paper'),
               'sampling': ('full_sequence', 'pyramid', 'sequential')}
    for key, allowed in choices.items():
        assert getattr(cfg, key) in allowed, f'{key} = {getattr(cfg, key)!r}: choose one of {", ".join(allowed)}'
    for key, low, high in (('n_context', 1, cfg.num_frames - 1), ('sample_steps', 1, cfg.timesteps), ('p_noise', 0, 1),
                           ('context_t', 0, cfg.timesteps - 1), ('history_level', -1, 1), ('frame_skip', 1, math.inf)):
        assert low <= getattr(cfg, key) <= high, f'{key} = {getattr(cfg, key)}: must lie in {low}..{high}'
    for side in ('height', 'width'):
        assert getattr(cfg, side) % cfg.patch == 0, f'{side} = {getattr(cfg, side)}: no multiple of patch = {cfg.patch}'
    assert cfg.hidden % (4 * cfg.heads) == 0, \
        f'hidden = {cfg.hidden}: must be a multiple of 4 * heads = {4 * cfg.heads}, 2-D RoPE quarters a head'
    assert cfg.depth % 2 == 0, f'depth = {cfg.depth}: blocks come in space/time pairs, make it even'
    assert not (cfg.pred == 'eps' and cfg.ztsnr), \
        'pred = eps divides by alpha, which ztsnr makes 0 at t = T-1; set ztsnr = False (published: schedule = linear)'


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    k, n = cfg.frame_skip, cfg.num_frames
    return {cfg.input: range(0, n * k, k), 'action': range(0, n * k)}


# ---- the math: pure functions, no state ----

def noise_schedule(pred, schedule, ztsnr, T):
    """
    alpha, sigma (T + 1,) float32: entry t + 1 belongs to level t, entry 0 to t = -1, the clean frame (1 and 0).
    Computed in float64: 1 - alpha^2 loses three digits near t = 0 otherwise.
    """
    u = torch.arange(T + 1, dtype=torch.float64, device='cpu') / T   # (T+1,) = (t+1)/T; real numbers on meta models too
    if pred == 'flow':
        return (1 - u).float(), u.float()                            # the straight line, clean at t = -1
    if schedule == 'cosine':                                         # Nichol & Dhariwal 2021
        f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - f[1:] / f[:-1]                                    # (T,)
    else:                                                            # linear, Ho et al. 2020
        beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64, device='cpu') * (1000 / T)
    s = (1 - beta.clamp(max=0.999)).cumprod(0).sqrt()                # (T,) sqrt(alpha_bar)
    if ztsnr:                                                        # shift the last to 0, keep the first
        s = (s - s[-1]) * s[0] / (s[0] - s[-1])
    alpha = torch.cat([torch.ones_like(s[:1]), s])
    return alpha.float(), (1 - alpha ** 2).clamp(min=0).sqrt().float()


def target_of(pred, x0, eps, alpha, sigma):
    """What the network is asked for; all tensors broadcast to x0."""
    return {'v': alpha * eps - sigma * x0, 'x': x0, 'eps': eps, 'flow': x0 - eps}[pred]


def estimates(pred, out, x, alpha, sigma):
    """The network's output -> (x0_hat, eps_hat). The floor under alpha is the published one; eps divides by alpha."""
    if pred == 'flow':
        return x + sigma * out, x - alpha * out
    floor = alpha.clamp(min=1e-4)
    x0 = {'v': alpha * x - sigma * out, 'x': out, 'eps': (x - sigma * out) / floor}[pred]
    return x0, (x - floor * x0) / sigma.clamp(min=1e-8)


def ddim_step(x0, eps, alpha, sigma, alpha_next, sigma_next, eta=0.0, z=None):
    """One step of Song et al. 2020, eq. 12. eta = 0 is deterministic (all of flow), 1 ancestral with fresh noise z."""
    if eta == 0:
        return alpha_next * x0 + sigma_next * eps
    s = eta * sigma_next / sigma.clamp(min=1e-8) * (1 - (alpha / alpha_next.clamp(min=1e-4)) ** 2).clamp(min=0).sqrt()
    return alpha_next * x0 + (sigma_next ** 2 - s ** 2).clamp(min=0).sqrt() * eps + s * z


def snr_weight(form, pred, alpha, sigma, gamma):
    """Min-SNR weight (B, F). `published` uses the eps form for all targets; `paper` is Hang et al. 2023, per target."""
    if gamma == 0 or pred == 'flow':
        return torch.ones_like(alpha)
    snr = (alpha ** 2 / (sigma ** 2).clamp(min=1e-12)).clamp(min=1e-8)
    clamped = snr.clamp(max=gamma)
    if form == 'published' or pred == 'eps':
        return clamped / snr
    return clamped / (snr + 1) if pred == 'v' else clamped


def scheduling_matrix(mode, n, steps, T):
    """
    Levels t of n new frames, (rows, n) int64, -1 = clean. Row to row is one network call. Column k runs down the same
    grid T-1 ... -1, but starts k * delay rows later: delay 0 denoises all frames at once, 1 makes a staircase
    (pyramid), `steps` finishes a frame before the next begins. sequential, n = 2, steps = 2, T = 1000:
    [999 999] [499 999] [-1 999] [-1 499] [-1 -1]
    """
    delays = {'full_sequence': 0, 'pyramid': 1, 'sequential': steps}
    assert mode in delays, f'sampling = {mode!r}: choose one of {", ".join(delays)}'
    assert 1 <= steps <= T, f'sample_steps = {steps}: must lie in 1..timesteps = {T}'
    delay = delays[mode]
    done = torch.arange(steps + delay * (n - 1) + 1)[:, None] - delay * torch.arange(n)     # steps behind each frame
    return (steps - done).clamp(0, steps) * T // steps - 1


# ---- the network, smallest piece first ----

def timestep_embedding(t, dim=256):
    """Sinusoids of integer levels t (...) -> (..., dim), cosines first."""
    freq = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t[..., None].float() * freq
    return torch.cat([angle.cos(), angle.sin()], -1)


def rope_angles(position, n):
    """n rotation angles for each position (N,) -> (N, n)."""
    return position[:, None].float() * 10000 ** (-torch.arange(n) / n)


def apply_rope(x, table):
    """Rotate the first half of the head against the second. x (..., N, hs); table (2, N, hs/2): cos, sin."""
    cos, sin = table.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


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
        """x (B, N, h); past = (k, v) of earlier tokens -> output (B, N, h) and the rotated (k, v) of these N tokens."""
        B, N, h = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)   # each (B, nh, N, hs)
        q, k = apply_rope(self.q_norm(q), rope), apply_rope(self.k_norm(k), rope)
        new = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = causal_attention(q, k, v) if causal else F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, N, h)), new


def causal_attention(q, k, v):
    """The N queries are the last N of the M keys; each sees itself and what came before."""
    N, M = q.shape[2], k.shape[2]
    if N == M:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.ones(N, M, dtype=torch.bool, device=q.device).tril(M - N)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class CrossAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.heads
        self.q = nn.Linear(cfg.hidden, cfg.hidden)
        self.kv = nn.Linear(cfg.hidden, 2 * cfg.hidden)
        self.proj = nn.Linear(cfg.hidden, cfg.hidden)

    def forward(self, x, context, causal):
        """x (B, N, h) looks at context (B, M, h): no positions, no qk-norm."""
        B, N, h = x.shape
        q = self.q(x).view(B, N, self.heads, -1).transpose(1, 2)                                  # (B, nh, N, hs)
        k, v = self.kv(context).view(B, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)   # (B, nh, M, hs)
        y = causal_attention(q, k, v) if causal else F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, N, h))


class SwiGLU(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.w1 = nn.Linear(cfg.hidden, 4 * cfg.hidden, bias=False)
        self.w2 = nn.Linear(cfg.hidden, 4 * cfg.hidden, bias=False)
        self.w3 = nn.Linear(4 * cfg.hidden, cfg.hidden, bias=False)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def modulation(hidden, n):
    """SiLU and the linear map from a condition to n vectors of width hidden."""
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden, n * hidden))


class Block(nn.Module):
    """One transformer block, over the patches of a frame (space) or over the frames of a patch (time)."""

    def __init__(self, cfg, time):
        super().__init__()
        self.time, self.injection = time, cfg.injection
        self.attn = Attention(cfg)
        self.mlp = SwiGLU(cfg)
        self.adaLN_modulation = modulation(cfg.hidden, 6)
        if cfg.injection == 'adaln':
            self.action_adaLN_modulation = modulation(cfg.hidden, 6)
        if cfg.injection == 'film':
            self.film_modulation = modulation(cfg.hidden, 2)
        if cfg.injection == 'cross_attention':
            self.cross_attn = CrossAttention(cfg)
            self.cross_gate = nn.Parameter(torch.ones(cfg.hidden))

    def forward(self, x, c, e, rope, past=None):
        """
        x (B, F, P, h); c (B, F, 1, h) noise level; e (B, F', 1, h) action that led to each frame, the last F of them
        belong to x. -> x and the attention's (k, v). Everything but attention is per frame and broadcasts over P.
        """
        a = e[:, -x.shape[1]:]                                       # (B, F, 1, h)
        if self.injection == 'additive':
            x = x + a
        if self.injection == 'adaln_fuse':
            c = c + a
        mod = self.adaLN_modulation(c)                               # (B, F, 1, 6h)
        if self.injection == 'adaln':
            mod = mod + self.action_adaLN_modulation(a)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = mod.chunk(6, -1)      # for attention, for the MLP
        y, new = self.attn(self.fold(modulate(x, shift_a, scale_a)), rope, self.time, past)
        x = x + gate_a * self.unfold(y, x)
        if self.injection == 'film':
            gamma, beta = self.film_modulation(a).chunk(2, -1)
            x = (1 + gamma) * x + beta
        x = x + gate_m * self.mlp(modulate(x, shift_m, scale_m))
        if self.injection == 'cross_attention':
            if self.time:
                context = self.fold(e.expand(-1, -1, x.shape[2], -1))                  # (B*P, F', h)
            else:
                context = a.flatten(0, 1)                                              # (B*F, 1, h): a single token
            y = self.cross_attn(self.fold(modulate(x, 0, 0)), context, self.time)      # 0, 0: a plain LayerNorm
            x = x + self.cross_gate * self.unfold(y, x)
        return x, new

    def fold(self, x):                                               # (B, F, P, h) -> sequences of patches or frames
        return x.transpose(1, 2).flatten(0, 1) if self.time else x.flatten(0, 1)

    def unfold(self, y, like):                                       # and back to the shape of `like`
        B, n, P, h = like.shape
        return y.view(B, P, n, h).transpose(1, 2) if self.time else y.view(B, n, P, h)


class Embedder(nn.Module):
    """Linear-SiLU-Linear: for the sinusoids of t and for the actions. A class for the sake of the published keys."""

    def __init__(self, n_in, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, x):
        return self.mlp(x)


class PatchEmbed(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.proj = nn.Conv2d(cfg.channels, cfg.hidden, cfg.patch, stride=cfg.patch)

    def forward(self, x):                                            # (B, F, C, H, W)
        y = self.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2)    # (B*F, P, h), row-major
        return y.view(*x.shape[:2], *y.shape[1:])


class FinalLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.linear = nn.Linear(cfg.hidden, cfg.patch ** 2 * cfg.channels)
        self.adaLN_modulation = modulation(cfg.hidden, 2)

    def forward(self, x, c):                                         # c: noise level only, never the action
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(modulate(x, shift, scale))


# ---- the model ----

class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg = cfg
        h, hs = cfg.hidden, cfg.hidden // cfg.heads
        rows, cols = cfg.height // cfg.patch, cfg.width // cfg.patch
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * cols, h))
        self.temp_embed = nn.Parameter(torch.zeros(1, cfg.num_frames, h))
        self.x_embedder = PatchEmbed(cfg)
        self.t_embedder = Embedder(256, h)
        self.action_embedder = Embedder(cfg.frame_skip * cfg.action_dim, h)
        self.blocks = nn.ModuleList([Block(cfg, time=i % 2 == 1) for i in range(cfg.depth)])
        self.final_layer = FinalLayer(cfg)
        # train-split statistics of the raw action; train.py fills them from meta.json, the checkpoint keeps them
        self.register_buffer('action_mean', torch.zeros(cfg.action_dim))
        self.register_buffer('action_std', torch.ones(cfg.action_dim))
        patch = torch.arange(rows * cols)
        space = torch.cat([rope_angles(patch // cols, hs // 4), rope_angles(patch % cols, hs // 4)], 1)
        time = rope_angles(torch.arange(cfg.num_frames), hs // 2)
        alpha, sigma = noise_schedule(cfg.pred, cfg.schedule, cfg.ztsnr, cfg.timesteps)
        for name, table in [('rope_space', torch.stack([space.cos(), space.sin()])),
                            ('rope_time', torch.stack([time.cos(), time.sin()])),
                            ('alpha', alpha), ('sigma', sigma)]:
            self.register_buffer(name, table, persistent=False)      # not saved: keys stay the published ones
        self.init_weights()

    def init_weights(self):
        """Zero modulation and output layer: at first blocks add nothing (but the action), and the output is 0."""
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(m.weight.view(m.weight.shape[0], -1))
                if m.bias is not None: nn.init.zeros_(m.bias)
        for p in (self.pos_embed, self.temp_embed, self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight):
            nn.init.normal_(p, std=0.02)
        for name, m in self.named_modules():
            if name.endswith(('modulation.1', 'cross_attn.proj', 'final_layer.linear')):
                nn.init.zeros_(m.weight)
                nn.init.zeros_(m.bias)

    def net(self, x, t, action, start=0, kv=None):
        """
        The network alone. x (B, F, C, H, W) are frames start..start+F-1 of a window, t (B, F) their noise levels.
        action (B, >= start+F-1, k*A), normalised, of the window from its frame 0 on; what is taken at the last frame
        or later is not looked at. -> (B, F, C, H, W).
        kv: temporal keys and values of the frames before `start`, one (k, v) per temporal block, or [] when there are
        none; then returns (output, the same list for these frames) for the caller to concatenate. So a sampler can keep
        what finished frames computed; ours does not yet.
        """
        B, n = x.shape[:2]
        assert start + n <= self.cfg.num_frames, \
            f'frames {start}..{start + n - 1} in a window of num_frames = {self.cfg.num_frames}; shorten the window'
        assert action.shape[1] >= start + n - 1, \
            f'{action.shape[1]} actions for {start + n} frames; give one for each step between them'
        e = self.action_embedder(action[:, :start + n - 1])
        e = F.pad(e, (0, 0, 1, 0))[:, :, None]                       # (B, start+F, 1, h): e_f embeds a_{f-1}, e_0 = 0
        c = self.t_embedder(timestep_embedding(t))[:, :, None]       # (B, F, 1, h)
        x = self.x_embedder(x) + self.pos_embed                      # (B, F, P, h)
        rope_time, new = self.rope_time[:, start:start + n], []
        for i, block in enumerate(self.blocks):
            if i == 1:                                               # once, before the first block in time
                x = x + self.temp_embed[:, start:start + n, None]
            past = kv[i // 2] if kv and block.time else None
            x, pair = block(x, c, e, rope_time if block.time else self.rope_space, past)
            if block.time: new.append(pair)
        out = self.unpatchify(self.final_layer(x, c))
        return out if kv is None else (out, new)

    def unpatchify(self, x):                                         # (B, F, P, p*p*C) -> (B, F, C, H, W)
        B, n, _, _ = x.shape
        p, rows, cols = self.cfg.patch, self.cfg.height // self.cfg.patch, self.cfg.width // self.cfg.patch
        x = x.view(B, n, rows, cols, p, p, self.cfg.channels).permute(0, 1, 6, 2, 4, 3, 5)
        return x.reshape(B, n, self.cfg.channels, rows * p, cols * p)

    # ---- data units <-> model units ----

    def encode(self, batch):
        """batch['latent'] (B, F, C, h, w), as it is, or batch['video'] (B, F, H, W, C) uint8 or float -> [-1, 1]."""
        if self.cfg.input == 'latent':
            return batch['latent'].float()
        return batch['video'].float().permute(0, 1, 4, 2, 3) / 127.5 - 1

    def decode(self, x):
        """(..., C, H, W) -> latents as they are, or pixels (..., H, W, C) float32 in [0, 255], not rounded."""
        if self.cfg.input == 'latent':
            return x.float()
        return ((x.float().movedim(-3, -1) + 1) * 127.5).clamp(0, 255)

    def fold_action(self, action):
        """Raw actions (B, n*k, A) or already folded (B, n, k*A) -> normalised (B, n, k*A)."""
        A, kA = self.cfg.action_dim, self.cfg.frame_skip * self.cfg.action_dim
        assert action.shape[-1] in (A, kA), f'actions of {action.shape[-1]} numbers; give {A} (raw) or {kA} (folded)'
        B, n = action.shape[0], action[0].numel() // kA
        a = (action.float().reshape(B, -1, A) - self.action_mean) / self.action_std
        return a.reshape(B, n, kA)

    # ---- training ----

    def forward(self, batch):
        """batch: video or latent, action (B, F*k, A); t (B, F) and noise (B, F, C, H, W) are drawn unless given."""
        x0 = self.encode(batch)
        t = batch['t'] if 't' in batch else self.draw_t(*x0.shape[:2])
        eps = batch['noise'] if 'noise' in batch else torch.randn_like(x0)
        loss, mse = self.loss(x0, self.fold_action(batch['action']), t, eps)
        return {'loss': loss.mean(), 'mse': mse.mean().detach()}

    def draw_t(self, B, n):
        """Noise levels (B, n) int64, independent per frame: this is diffusion forcing."""
        cfg, T, device = self.cfg, self.cfg.timesteps, self.alpha.device
        if cfg.t_sampling == 'logit_normal':
            t = (torch.randn(B, n, device=device).sigmoid() * T).long().clamp(max=T - 1)
        else:
            t = torch.randint(T, (B, n), device=device)
        target = torch.arange(n, device=device) >= cfg.n_context
        if cfg.p_noise > 0:
            t = torch.where(target & (torch.rand(B, n, device=device) < cfg.p_noise), T - 1, t)
        if cfg.context_t > 0:
            t = torch.where(target, t, torch.randint(cfg.context_t + 1, (B, n), device=device))
        return t

    def q_sample(self, x0, t, eps):
        """Noise clean frames to levels t (B, F)."""
        alpha, sigma = self.levels(t)
        return alpha * x0 + sigma * eps

    def levels(self, t):
        """alpha, sigma of levels t (...), -1 = clean, shaped to broadcast against frames (..., C, H, W)."""
        return self.alpha[t + 1][..., None, None, None], self.sigma[t + 1][..., None, None, None]

    def loss(self, x0, action, t, eps):
        """x0, eps (B, F, C, H, W); action (B, F, k*A) normalised; t (B, F) -> weighted loss (B,), plain mse (B,)."""
        cfg = self.cfg
        alpha, sigma = self.levels(t)
        out = self.net(self.q_sample(x0, t, eps), t, action).float()
        error = (out - target_of(cfg.pred, x0, eps, alpha, sigma)).pow(2).mean((2, 3, 4))            # (B, F)
        weight = snr_weight(cfg.snr_form, cfg.pred, self.alpha[t + 1], self.sigma[t + 1], cfg.snr_gamma)
        if not cfg.context_loss:
            error, weight = error[:, cfg.n_context:], weight[:, cfg.n_context:]
        mse = error.mean(1)
        # the published loss averages the weights over frames first, so a frame's weight does not meet its own error
        return (mse * weight.mean(1) if cfg.snr_form == 'published' else (error * weight).mean(1)), mse

    # ---- dreaming ----

    @torch.no_grad()
    def denoise(self, x, action, rows, n_context, t_context=0, eta=0.0, generator=None):
        """
        Walk down a scheduling matrix. x (B, F, C, H, W): first n_context frames of context, already at level t_context,
        then pure noise; action (B, >= F-1, k*A) normalised; rows (R, F - n_context). -> x denoised, context as given.
        """
        assert x.shape[1] == n_context + rows.shape[1], \
            f'{x.shape[1]} frames, but {n_context} of context + {rows.shape[1]} columns of the scheduling matrix'
        rows = rows.to(x.device)
        level = torch.full((n_context,), t_context, device=x.device)
        for now, then in zip(rows[:-1], rows[1:]):
            t = torch.cat([level, now.clamp(min=0)]).expand(x.shape[0], -1)       # a finished frame is shown at t = 0
            out = self.net(x, t, action)[:, n_context:].float()
            new = x[:, n_context:]
            alpha, sigma = self.levels(now)
            x0, eps = estimates(self.cfg.pred, out, new, alpha, sigma)
            z = torch.randn(new.shape, generator=generator, device=x.device) if eta else None
            step = ddim_step(x0, eps, alpha, sigma, *self.levels(then), eta, z)
            moved = (now != then)[:, None, None, None]                            # waiting and finished frames stay
            x = torch.cat([x[:, :n_context], torch.where(moved, step, new)], 1)
        return x

    def context_level(self, history_level=None):
        """The level at which context is shown: history_level of T-1, or the middle of what training used."""
        level = self.cfg.history_level if history_level is None else history_level
        return self.cfg.context_t // 2 if level < 0 else round(level * (self.cfg.timesteps - 1))

    @torch.no_grad()
    def rollout(self, context, action, noise=None, history=0, stride=1, sampling='', sample_steps=0,
                history_level=None, eta=0.0, generator=None, progress=iter):
        """
        Imagine K frames for each of N candidate futures by a sliding window.
        context: video (B, H, h, w, C) or latent (B, H, C, h, w), with action (B, H-1, k*A) between these frames;
        action (B, N, K, k*A) raw: action[:, :, 0] is taken at the last context frame. -> the new frames (B, N, K, ...).
        history: frames of context per window (default num_frames - stride); stride: new frames per window.
        noise (B, K, C, h, w), model units: initial noise, shared by the N futures so that only actions tell them apart.
        progress: wraps the range of windows, e.g. in a tqdm bar.
        """
        cfg = self.cfg
        assert 1 <= stride < cfg.num_frames, f'stride = {stride}: must lie in 1..{cfg.num_frames - 1}, num_frames - 1'
        history = history or cfg.num_frames - stride
        assert 1 <= history <= cfg.num_frames - stride, \
            f'history {history} + stride {stride} frames, but the model sees num_frames = {cfg.num_frames}'
        x = self.encode(context)                                     # (B, H, C, h, w)
        B, H, *shape = x.shape
        N, K = action.shape[1:3]
        draw = dict(generator=generator, device=x.device)
        noise = torch.randn(B, K, *shape, **draw) if noise is None else noise
        renoise = torch.randn(B, H + K, *shape, **draw)              # one draw per frame, kept while it is context
        t = self.context_level(history_level)

        def spread(y):                                               # (B, ...) -> (B*N, ...)
            return y[:, None].expand(-1, N, *y.shape[1:]).flatten(0, 1)
        x, noise, renoise = spread(x), spread(noise), spread(renoise)
        a = self.fold_action(torch.cat([spread(context['action']), action.flatten(0, 1)], 1))      # (B*N, H-1+K, k*A)
        for first in progress(range(0, K, stride)):
            n, last = min(stride, K - first), x.shape[1]
            lo = max(0, last - history)
            past = x[:, lo:]
            if t > 0:                                                # t = 0: shown clean
                past = self.q_sample(past, torch.full(past.shape[:2], t, device=x.device), renoise[:, lo:last])
            rows = scheduling_matrix(sampling or cfg.sampling, n, sample_steps or cfg.sample_steps, cfg.timesteps)
            window = torch.cat([past, noise[:, first:first + n]], 1)
            # the action before the window is left out: training has none there either
            new = self.denoise(window, a[:, lo:last + n - 1], rows, last - lo, t, eta, generator)[:, last - lo:]
            x = torch.cat([x, new], 1)
        return {cfg.input: self.decode(x[:, H:]).unflatten(0, (B, N))}

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW; like the published runs it decays every tensor, norms and embeddings too."""
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of one training sample, forward + backward = 3 x forward. Per token and block: 16 h^2 weights (qkv
        3, proj 1, MLP 12) and 2 h per attended token. Per frame and block: 6 h^2 of modulation, plus the injection's.
        """
        cfg, h, n = self.cfg, self.cfg.hidden, self.cfg.num_frames
        P, kA = self.pos_embed.shape[1], self.cfg.frame_skip * self.cfg.action_dim
        pixel = cfg.patch ** 2 * cfg.channels
        token = cfg.depth * 16 * h * h + cfg.depth // 2 * 2 * h * (P + n) + 2 * pixel * h
        frame = cfg.depth * 6 * h * h + 2 * h * h + 256 * h + h * h + kA * h + h * h
        if cfg.injection in ('adaln', 'film'):
            frame += cfg.depth * (6 if cfg.injection == 'adaln' else 2) * h * h
        if cfg.injection == 'cross_attention':                       # kv per frame in space blocks, per token in time
            token += cfg.depth * 2 * h * h + cfg.depth // 2 * (2 * h * h + 2 * h * (1 + n))
            frame += cfg.depth // 2 * 2 * h * h
        return 3 * 2 * n * (P * token + frame)


if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    cfg = Config(height=8, width=12, hidden=64, depth=4, heads=2, num_frames=3, sample_steps=4)
    model = Model(cfg)
    count = sum(p.numel() for p in model.parameters())
    print(f'{count:,} parameters, {model.flops_per_sample() / 1e6:.1f} MFLOP per sample')
    batch = {'latent': torch.randn(2, 3, 4, 8, 12), 'action': torch.randn(2, 3, 7)}
    out = model(batch)
    out['loss'].backward()
    print('loss', out['loss'].item(), '| grad of the output layer', model.final_layer.linear.weight.grad.norm().item())
    context = {'latent': batch['latent'][:, :1], 'action': batch['action'][:, :0]}
    dream = model.rollout(context, torch.randn(2, 5, 6, 7))['latent']
    print('6 dreamed frames of 5 futures', tuple(dream.shape))
