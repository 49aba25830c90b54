"""
iMF policy: improved MeanFlow, so that one call of the network makes a whole chunk of actions; and beside it,
with the same network, the flow matching and the diffusion that it wants to replace.

Improved Mean Flows (Geng et al. 2025, arXiv 2512.02012), on the PushT task and with the conditioning of
Diffusion Policy's transformer (Chi et al. 2023, arXiv 2303.04137). x is a chunk of actions, e Gaussian noise:

    z_t = (1 - t) x + t e                  t = 1 is noise; dz/dt = e - x, and v(z, t) = E[e - x | z_t]
    u(z_t, r, t) = 1/(t - r) int_r^t v     the average velocity from r to t: one step x = z_1 - u(z_1, 0, 1)
    v = u + (t - r) du/dt                  differentiate (t - r) u: the MeanFlow identity
    du/dt = v u_z + u_t                    a Jacobian-vector product: u along (v, 0, 1) of (z, r, t); this v
                                           is a second head of the network, asked at r = t
    loss                                   |u + (t - r) sg(du/dt) - (e - x)|^2 and |v - (e - x)|^2, sums over
                                           a chunk, each divided by sg(itself + 0.01)
    sampler                                z <- z - (t_i - t_i+1) u(z, t_i+1, t_i), K steps from 1 to 0

    flow      the network is v: r = t everywhere, t uniform, squared error; Euler steps
    ddpm      the network guesses the noise of 100 steps; all of them (DDPM), or fewer (DDIM)

The network: T = 10 noisy actions attend causally to each other, and to a memory of times and of two
observations. Shapes: B chunks, T actions, C = n_embd, A = 2; state (B, 2, 2) and env_state (B, 2, 18) or
image.top (B, 2, 3, 96, 96). The first of the T actions is that of the observation before; 1..8 are carried
out. Read first `imf_loss` and `along`, then `Model.sample`. With pictures, at 256 x 6, the transformer has
6,869,252 parameters (flow, ddpm 6,868,482), the encoder 11,197,088. To reach, from pictures: a
test_mean_score of 0.78 at the best checkpoint, 0.66 on average over the last ten, published for Diffusion
Policy's transformer (8 layers, 90 demonstrations) after 100 calls. What we measured, in minutes and from
keypoints, is in docs/imf_policy.md: one call gained from the division of the loss, or from the times; of
du/dt, taken by the difference, no gain was seen.

Kept of Diffusion Policy, though one may ask why:
    - actions attend causally, though a chunk is made at once;
    - the first action sees only the first observation;
    - the two pictures of a pair are cropped at different places;
    - padded actions are targets (loss_on_pad).
Mended:
    - dropout is 0, because another mask in du/dt is another function;
    - validation is in eval mode: theirs kept dropout and random crops;
    - a random crop can reach the last row and column: theirs never did.
Left out of improved MeanFlow, or changed:
    - no guidance, because there is no policy without an observation;
    - the network is told t beside t - r, the paper's only t - r;
    - two linear heads on one trunk, the paper has two branches of eight blocks;
    - heads start small, the paper's at zero.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import vision

EVAL = ('env', 'actions')     # protocols that understand it; the first that the data serve is the default
PAD = True                    # windows reach beyond the ends of an episode, whose edges repeat
SIMULATOR = 'pusht'           # data/<name>/env.py: where it acts
SAMPLING = ('steps',)
FEATURES = 64                 # of a picture


@dataclass
class Config:
    objective: str = 'imf'        # imf | flow | ddpm
    obs: str = 'image'            # image | keypoints: nine points of the T, which only a simulator knows
    # the network
    n_embd: int = 256             # token width
    n_head: int = 4               # attention heads
    n_layer: int = 6              # decoder blocks
    init_std: float = 0.02        # of the transformer's linear weights; 0: 1 / sqrt(inputs), if narrow
    dropout: float = 0.0          # in the blocks, and of attention weights; published 0.3
    crop: int = 76                # px, above 32; at random in training, else the middle of the picture
    # the chunk
    horizon: int = 10             # actions, T
    n_obs: int = 2                # observations, the last is now
    n_action: int = 8             # actions carried out before it looks again
    drop_n_last_frames: int = 1   # at the end of an episode, where no chunk begins; T - n_action - n_obs + 1
    loss_on_pad: bool = True      # beyond the ends of an episode its first or last action is a target
    # time and noise
    p_mean: float = -0.4          # imf: t and r are two draws of sigmoid(p_mean + p_std n), t the larger
    p_std: float = 1.0            # imf: spread of those draws
    r_equals_t: float = 0.5       # imf: share of the rows of a batch with r = t, the first ones; 1: all
    norm_eps: float = 0.01        # imf: error / (sg(error) + norm_eps), error summed over a chunk
    derivative: str = 'jvp'       # imf: jvp, exact | difference, central: what torch.compile can trace
    time_scale: float = 10.0      # imf, flow: multiplies times, or sinusoids would hardly tell them apart
    num_train_steps: int = 100    # ddpm: of noise
    # sampling
    steps: int = 0                # calls of the network per chunk; 0: imf 1, flow 10, ddpm num_train_steps
    # training
    encoder_weight_decay: float = 1e-6       # of the picture's encoder, all tensors
    # the data
    action_dim: int = 2           # px of a world of 512
    state_dim: int = 2            # the agent, px
    env_state_dim: int = 18       # keypoints, px
    image_size: int = 96          # px


PRESETS = {
    'tiny': Config(obs='keypoints', n_embd=32, n_layer=2),
    'cpu': Config(obs='keypoints', n_embd=64, n_layer=3),
    'full': Config()}


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    choices = {'objective': ('imf', 'flow', 'ddpm'), 'obs': ('image', 'keypoints'),
               'derivative': ('jvp', 'difference')}
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: must be one of {", ".join(allowed)}')
    for key in ('n_embd', 'n_head', 'n_layer', 'crop', 'horizon', 'n_obs', 'n_action', 'num_train_steps',
                'action_dim', 'state_dim', 'env_state_dim', 'image_size'):
        if getattr(cfg, key) < 1:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be at least 1')
    if not 0 <= cfg.dropout < 1:
        raise ValueError(f'dropout = {cfg.dropout}: must lie in 0..1, below 1')
    if not 0 <= cfg.r_equals_t <= 1:
        raise ValueError(f'r_equals_t = {cfg.r_equals_t}: must lie in 0..1')
    for key in ('p_std', 'norm_eps', 'time_scale'):
        if not 0 < getattr(cfg, key) < math.inf:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be above 0, and finite')
    for key in ('init_std', 'drop_n_last_frames', 'encoder_weight_decay'):
        if not 0 <= getattr(cfg, key) < math.inf:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be 0 or more, and finite')
    if not math.isfinite(cfg.p_mean):
        raise ValueError(f'p_mean = {cfg.p_mean}: must be finite')
    if cfg.n_embd % cfg.n_head or cfg.n_embd % 2 or cfg.n_embd < 4:
        raise ValueError(f'n_embd = {cfg.n_embd}: must be even, 4 or more, and a multiple of n_head = '
                         f'{cfg.n_head}')
    if cfg.n_obs - 1 + cfg.n_action > cfg.horizon:
        raise ValueError(f'horizon = {cfg.horizon}: n_obs - 1 past and n_action = {cfg.n_action} actions do '
                         'not fit into it')
    if cfg.obs == 'image' and not 32 < cfg.crop <= cfg.image_size:
        raise ValueError(f'crop = {cfg.crop}: must lie in 33..image_size = {cfg.image_size}; of 32 px the '
                         'encoder has a single cell, in which nothing can be found')
    if cfg.objective == 'imf' and cfg.dropout > 0 and cfg.derivative == 'difference':
        raise ValueError(f'dropout = {cfg.dropout}: both sides of a difference need the same network; set it '
                         'to 0, or derivative = jvp')
    calls_of(cfg, cfg.steps)


def calls_of(cfg, steps):
    """How often the network is called for a chunk; ValueError where the objective has no such sampler."""
    K = cfg.num_train_steps
    if steps < 0:
        raise ValueError(f'steps = {steps}: must be 0 or more')
    if cfg.objective == 'ddpm' and steps and K % steps:
        raise ValueError(f'steps = {steps}: ddpm wants a divisor of num_train_steps = {K}, or 0, which is '
                         f'{K}')
    return steps or {'imf': 1, 'flow': 10, 'ddpm': K}[cfg.objective]


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    seen = range(1 - cfg.n_obs, 1)
    return {'image.top' if cfg.obs == 'image' else 'env_state': seen, 'state': seen,
            'action': range(1 - cfg.n_obs, cfg.horizon + 1 - cfg.n_obs)}


def example(cfg, batch_size):
    """A random batch with all that forward wants; positions in 0..1, the range of fresh statistics."""
    B = batch_size
    batch = {'state': torch.rand(B, cfg.n_obs, cfg.state_dim), 'mask': torch.ones(B, cfg.horizon, dtype=bool),
             'action': torch.rand(B, cfg.horizon, cfg.action_dim)}
    if cfg.obs == 'image':
        shape = B, cfg.n_obs, 3, cfg.image_size, cfg.image_size
        batch['image.top'] = torch.randint(0, 256, shape, dtype=torch.uint8)
    else:
        batch['env_state'] = torch.rand(B, cfg.n_obs, cfg.env_state_dim)
    return batch


# ---- improved MeanFlow ----

@torch.compiler.disable       # torch.compile cannot trace forward derivatives, so it leaves this call out
def along(u, z, r, t, v):
    """du/dt at (z, r, t), moving with the velocity v: the JVP of u along (v, 0, 1). Exact, forward mode."""
    return torch.func.jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[1]


def along_difference(u, z, r, t, v, delta=1e-2):
    """
    The same by a central difference, both sides in one batch. A smaller delta would lose float32's digits; of
    bfloat16 even this one leaves none. t + delta may pass 1, and t - delta may pass r where t - r, by which
    the result is multiplied, is below delta: the network is smooth there.
    """
    both = torch.cat([z + delta * v, z - delta * v]), torch.cat([r, r]), torch.cat([t + delta, t - delta])
    ahead, behind = u(*both).chunk(2)
    return (ahead - behind) / (2 * delta)


def interpolate(x, e, t):
    """z_t (B, T, A) between the data x and the noise e; t (B,)."""
    t = t[:, None, None]
    return (1 - t) * x + t * e


def still(B, cfg):
    """How many rows of a batch have r = t: the first ones. draw_times and imf_loss both rely on it."""
    return round(cfg.r_equals_t * B)


def draw_times(B, cfg, device):
    """r <= t, (B,) each, logit-normal. As published t is the larger of two draws where r = t, too."""
    pair = (cfg.p_mean + cfg.p_std * torch.randn(2, B, device=device)).sigmoid()
    r, t = pair.min(0).values, pair.max(0).values
    r = torch.where(torch.arange(B, device=device) < still(B, cfg), t, r)
    return r, t


def imf_loss(uv, x, e, r, t, cfg, weight):
    """
    uv(z, r, t, rows) -> u, v (B, T, A) of those rows of the batch; weight (B, T, 1) of each action's error.
    -> loss, and the mean squared errors of u + (t - r) du/dt and of v
    """
    z, target = interpolate(x, e, t), e - x
    u, v = uv(z, r, t, slice(None))
    # where r = t the factor t - r is 0, so du/dt is not needed there
    # rows by their number, because a mask would make the host wait for the GPU to know how many there are
    moving = torch.arange(still(len(x), cfg), len(x), device=x.device)
    change = torch.zeros_like(u)
    if len(moving):
        change[moving] = du_dt(uv, z[moving], r[moving], t[moving], moving, cfg.derivative).to(u.dtype)
    compound = u + (t - r)[:, None, None] * change
    errors = [((guess - target).square() * weight).sum((1, 2)) for guess in (compound, v)]     # (B,) each
    loss = sum((error / (error.detach() + cfg.norm_eps)).mean() for error in errors)
    n = weight.sum().clamp(min=1) * x.shape[2]
    return loss, *(error.detach().sum() / n for error in errors)


@torch.no_grad()
def du_dt(uv, z, r, t, rows, how):
    """sg(du/dt) of these rows: the tangent is the network's own v at r = t, not e - x, which is noisier."""
    _, v = uv(z, t, t, rows)
    if how == 'jvp':
        return along(lambda *at: uv(*at, rows)[0], z, r, t, v)
    with torch.autocast(z.device.type, enabled=False):
        return along_difference(lambda *at: uv(*at, rows.repeat(2))[0], z, r, t, v.to(z.dtype))


# ---- diffusion: DDPM (arXiv 2006.11239) and DDIM (arXiv 2010.02502), cosine schedule (arXiv 2102.09672) ----

def alpha_bars(K):
    """alpha_bar (K,) float64, the share of the signal's variance after each of K steps."""
    def level(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - level((k + 1) / K) / level(k / K), 0.999) for k in range(K)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def add_noise(x, e, alpha_bar):
    """x after some steps of noise; alpha_bar (B,)."""
    a = alpha_bar[:, None, None]
    return a.sqrt() * x + (1 - a).sqrt() * e


def ddpm_step(z, eps, noisy, cleaner, noise):
    """
    A step of the ancestral sampler, from alpha_bar = noisy to the next larger one. The guess of x is clamped
    to [-1, 1], the variance is the smaller of the two that Ho et al. name.
    """
    alpha = noisy / cleaner
    x = ((z - (1 - noisy) ** 0.5 * eps) / noisy ** 0.5).clamp(-1, 1)
    mean = cleaner ** 0.5 * (1 - alpha) / (1 - noisy) * x + alpha ** 0.5 * (1 - cleaner) / (1 - noisy) * z
    return mean + ((1 - cleaner) / (1 - noisy) * (1 - alpha)) ** 0.5 * noise


def ddim_step(z, eps, noisy, cleaner):
    """DDIM with eta = 0, between any two alpha_bars: the clamped guess of x, and eps as it was guessed."""
    x = ((z - (1 - noisy) ** 0.5 * eps) / noisy ** 0.5).clamp(-1, 1)
    return cleaner ** 0.5 * x + (1 - cleaner) ** 0.5 * eps


# ---- layers: Diffusion Policy's transformer; attention by hand: fused ones have no forward derivative ----

def sinusoid(t, C):
    """Times (...) -> (..., C): sines, then cosines, of frequencies from 1 down to 1e-4."""
    half = C // 2
    frequency = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, device=t.device, dtype=t.dtype))
    angle = t[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class Attention(nn.Module):
    """Queries (B, T, C) look at memory (B, S, C) where open (T, S)."""

    def __init__(self, cfg):
        super().__init__()
        C = cfg.n_embd
        self.n_head, self.dropout = cfg.n_head, cfg.dropout
        self.query, self.key_value, self.out = nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)

    def forward(self, x, memory, open_):
        B, T, C = x.shape
        def heads(y): return y.view(B, y.shape[1], self.n_head, -1).transpose(1, 2)      # (B, heads, ., C/h)
        q, (k, v) = heads(self.query(x)), (heads(y) for y in self.key_value(memory).chunk(2, -1))
        scores = q @ k.transpose(2, 3) * (C // self.n_head) ** -0.5
        p = scores.masked_fill(~open_, -math.inf).softmax(-1)                            # (B, heads, T, S)
        y = F.dropout(p, self.dropout, self.training) @ v
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C = cfg.n_embd
        self.self_attn, self.cross_attn = Attention(cfg), Attention(cfg)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(C), nn.LayerNorm(C), nn.LayerNorm(C)
        self.linear1, self.linear2 = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x, memory, causal, open_):
        y = self.norm1(x)
        x = x + self.drop(self.self_attn(y, y, causal))
        x = x + self.drop(self.cross_attn(self.norm2(x), memory, open_))
        return x + self.drop(self.linear2(self.drop(F.gelu(self.linear1(self.norm3(x))))))


class Encoder(nn.Module):
    """Pictures (N, 3, crop, crop) in [-1, 1] -> (N, 64)."""

    def __init__(self):
        super().__init__()
        self.resnet, self.points = vision.ResNet18(), vision.SpatialSoftmax(512, FEATURES // 2)
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        return F.relu(self.linear(self.points(self.resnet(x)).flatten(1)))


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg, C, A, T = cfg, cfg.n_embd, cfg.action_dim, cfg.horizon
        imf = cfg.objective == 'imf'
        self.n_times = 1 + imf                                       # t, and t - r
        self.input_emb, self.pos_emb = nn.Linear(A, C), nn.Parameter(torch.zeros(1, T, C))
        seen = cfg.state_dim + (FEATURES if cfg.obs == 'image' else cfg.env_state_dim)
        self.cond_obs_emb = nn.Linear(seen, C)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, self.n_times + cfg.n_obs, C))
        self.cond_mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.Mish(), nn.Linear(4 * C, C))
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.n_layer)])
        self.ln_f = nn.LayerNorm(C)
        self.head = nn.Linear(C, A)                                  # u; v of flow; the noise of ddpm
        if imf:
            self.head_v = nn.Linear(C, A)
        self.apply(self.initialise)
        nn.init.normal_(self.pos_emb, std=0.02)
        nn.init.normal_(self.cond_pos_emb, std=0.02)
        if cfg.obs == 'image':
            self.encoder = Encoder()                                 # after `apply`: it keeps torch's weights
        i, j = torch.arange(T)[:, None], torch.arange(self.n_times + cfg.n_obs)
        # an action sees itself and those before it
        self.register_buffer('causal', i >= i.T, persistent=False)
        # of the memory it sees all times, and observation k from action k on
        self.register_buffer('open', i >= j - self.n_times, persistent=False)
        self.register_buffer('alpha_bar', alpha_bars(cfg.num_train_steps).float(), persistent=False)
        for key in [key for key in windows(cfg) if key != 'image.top']:
            n = getattr(cfg, f'{key}_dim')
            self.register_buffer(f'{key}_min', torch.zeros(n))       # of the training data, from meta.json
            self.register_buffer(f'{key}_max', torch.ones(n))

    def initialise(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.cfg.init_std or module.in_features ** -0.5)
            nn.init.zeros_(module.bias)

    # ---- units ----

    def scale(self, key):
        """Of the affine map that takes a key from [min, max] to [-1, 1]: factor and offset, (n,) each."""
        low, high = getattr(self, f'{key}_min'), getattr(self, f'{key}_max')
        flat = high - low < 1e-4                                     # a constant becomes 0
        factor = 2 / torch.where(flat, 2, high - low)
        return factor, torch.where(flat, -low, -1 - factor * low)

    def normalise(self, batch, key):
        factor, offset = self.scale(key)
        return batch[key].float() * factor + offset

    def unnormalise(self, action):
        factor, offset = self.scale('action')
        return (action - offset) / factor

    # ---- the network ----

    def encode(self, batch):
        """What is seen, once per chunk: (B, n_obs, features)."""
        state = self.normalise(batch, 'state')
        if self.cfg.obs == 'keypoints':
            return torch.cat([self.normalise(batch, 'env_state'), state], -1)
        image = batch['image.top']
        B, n = image.shape[:2]
        size = self.cfg.image_size
        assert image.dtype == torch.uint8 and image.shape[2:] == (3, size, size), \
            f'image.top is {image.dtype} {tuple(image.shape[2:])}, want uint8 (3, {size}, {size})'
        x = vision.crop(image.flatten(0, 1), self.cfg.crop, random=self.training).float() / 127.5 - 1
        return torch.cat([self.encoder(x).view(B, n, -1).to(state.dtype), state], -1)

    def net(self, z, times, seen):
        """
        Noisy actions z (B, T, A), times (B, 1 or 2), what is seen (B, n_obs, features) -> (B, T, A) of each
        head.
        """
        memory = torch.cat([sinusoid(times, self.cfg.n_embd), self.cond_obs_emb(seen)], 1)
        memory = self.cond_mlp(memory + self.cond_pos_emb)
        x = self.input_emb(z) + self.pos_emb
        for block in self.blocks:
            x = block(x, memory, self.causal, self.open)
        x = self.ln_f(x)
        return (self.head(x), self.head_v(x)) if self.cfg.objective == 'imf' else (self.head(x),)

    def uv(self, z, r, t, seen):
        """imf: u(z, r, t) and v, (B, T, A) each. With r = t both are velocities at t."""
        return self.net(z, torch.stack([t, t - r], 1) * self.cfg.time_scale, seen)

    def velocity(self, z, t, seen):
        """flow: v(z, t)."""
        return self.net(z, t[:, None] * self.cfg.time_scale, seen)[0]

    def forward(self, batch):
        """
        {'loss': scalar with grad}, and of imf two mean squared errors to log: mse_u of u + (t - r) du/dt, and
        mse_v. Noise, times t and for imf r, (B,) each, are drawn here. A batch may bring them: noise like the
        actions, ddpm's t in whole numbers, and imf's r equal to t in the rows that `still` counts. In eval
        mode imf's loss is mse_u, because a loss that is divided by itself hardly moves.
        """
        cfg, x = self.cfg, self.normalise(batch, 'action')
        B, device, seen = len(x), x.device, self.encode(batch)
        e = batch['noise'] if 'noise' in batch else torch.randn_like(x)
        weight = torch.ones_like(x[..., :1])
        if not cfg.loss_on_pad:
            weight = batch['mask'][..., None].to(x.dtype)
        if cfg.objective == 'imf':
            r, t = (batch['r'], batch['t']) if 't' in batch else draw_times(B, cfg, device)
            loss, of_u, of_v = imf_loss(lambda z, r, t, rows: self.uv(z, r, t, seen[rows]), x, e, r, t, cfg,
                                        weight)
            return {'loss': loss if self.training else of_u, 'mse_u': of_u, 'mse_v': of_v}
        if cfg.objective == 'flow':
            t = batch['t'] if 't' in batch else torch.rand(B, device=device)
            guess, target = self.velocity(interpolate(x, e, t), t, seen), e - x
        else:
            t = batch['t'] if 't' in batch else torch.randint(0, cfg.num_train_steps, (B,), device=device)
            z = add_noise(x, e, self.alpha_bar[t])
            guess, target = self.net(z, t[:, None].to(x.dtype), seen)[0], e
        error = (guess - target).square() * weight
        return {'loss': error.sum() / (weight.sum().clamp(min=1) * x.shape[2])}

    # ---- acting ----

    @torch.no_grad()
    def sample(self, seen, steps, noise):
        """
        What is seen (B, n_obs, features) -> chunks (B, T, A) in [-1, 1] or so. noise(k) -> (B, T, A): the
        start for k = 0, what DDPM adds for k = 1, 2, ...
        """
        cfg, z, B = self.cfg, noise(0), len(seen)
        self.calls = steps
        if cfg.objective == 'ddpm':
            return self.denoise(z, seen, steps, noise)
        times = torch.linspace(1, 0, steps + 1, device=z.device)
        for t, r in zip(times[:-1], times[1:]):
            now = t.expand(B)
            # r_equals_t = 1 teaches velocities only: flow matching with the weights and times of imf
            then = now if cfg.r_equals_t == 1 else r.expand(B)
            if cfg.objective == 'imf':
                u = self.uv(z, then, now, seen)[0]
            else:
                u = self.velocity(z, now, seen)
            z = z - (t - r) * u
        return z

    def denoise(self, z, seen, steps, noise):
        """
        ddpm. steps = K, all of them: DDPM, with fresh noise. Fewer: DDIM over t = K - K/steps, ..., K/steps,
        0 ("leading", as published), without. Its first t is below K - 1 though z is pure noise; with one step
        it is 0, where next to nothing is taken away, so one step returns noise.
        """
        K = self.cfg.num_train_steps
        stride, alpha_bar = K // steps, [*self.alpha_bar.tolist(), 1.0]          # [-1]: no noise is left
        for k, t in enumerate(reversed(range(0, K, stride))):
            eps = self.net(z, torch.full((len(z), 1), float(t), device=z.device), seen)[0]
            noisy, cleaner = alpha_bar[t], alpha_bar[t - stride if t >= stride else -1]
            if steps < K:
                z = ddim_step(z, eps, noisy, cleaner)
            else:
                z = ddpm_step(z, eps, noisy, cleaner, noise(k + 1) if t else 0.0)
        return z

    @torch.no_grad()
    def act(self, obs, steps=None, generators=None):
        """
        The actions that come next, (B, n_action, A) in px; in eval mode, because training crops at random.
        obs: the last n_obs observations, as in `windows`.
        steps: calls of the network, as cfg.steps, which None takes. generators: a torch.Generator per row, so
        that a row does not depend on the others; None: torch's own.
        """
        cfg = self.cfg
        steps = calls_of(cfg, cfg.steps if steps is None else steps)
        obs = {key: obs[key].to(self.pos_emb.device) for key in windows(cfg) if key != 'action'}
        seen = self.encode(obs)                          # once, because it does not change from call to call
        shape = cfg.horizon, cfg.action_dim

        def noise(k):
            drawn = [torch.randn(shape, generator=g) for g in generators or [None] * len(seen)]
            return torch.stack(drawn).to(seen.device)
        chunk = self.sample(seen, steps, noise)
        return self.unnormalise(chunk)[:, cfg.n_obs - 1:cfg.n_obs - 1 + cfg.n_action]

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW; decay for the matrices of the transformer, encoder_weight_decay for all of the encoder."""
        encoder, matrices, others = [], [], []
        for name, p in self.named_parameters():
            (encoder if name.startswith('encoder.') else matrices if p.ndim == 2 else others).append(p)
        groups = [{'params': matrices, 'weight_decay': weight_decay}, {'params': others, 'weight_decay': 0.0}]
        if encoder:
            groups.append({'params': encoder, 'weight_decay': self.cfg.encoder_weight_decay})
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample. A pass of the trunk: per action and block 28 C^2 of weights (4 of
        them the cross attention's query and output) and 4 C per attended token; per token of the memory 4 C^2
        a block, and its MLP once. imf adds, on the rows that move, a pass for v and du/dt, which costs two.
        """
        cfg, C, T = self.cfg, self.cfg.n_embd, self.cfg.horizon
        S = self.n_times + cfg.n_obs
        trunk = cfg.n_layer * (T * (28 * C * C + 4 * C * (T + S)) + S * 4 * C * C) + S * 16 * C * C
        passes = 3 + 3 * (1 - cfg.r_equals_t) * (cfg.objective == 'imf')
        picture = 0
        if cfg.obs == 'image':
            side = [-(-cfg.crop // k) for k in (2, 4, 8, 16, 32)]
            convs = side[0] ** 2 * 49 * 3 * 64 + side[1] ** 2 * 9 * 64 * 64 * 4
            for n, c in zip(side[2:], (128, 256, 512)):
                convs += n * n * (9 * c * c * 3.5 + c * c / 2)
            picture = 2 * cfg.n_obs * (convs + side[4] ** 2 * 512 * FEATURES // 2 + FEATURES ** 2)
        return passes * trunk + 3 * picture


if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    for objective in ('imf', 'flow', 'ddpm'):
        cfg = Config(obs='keypoints', n_embd=32, n_layer=2, objective=objective)
        model = Model(cfg)
        batch = example(cfg, batch_size=2)
        out = model(batch)
        out['loss'].backward()
        chunk = model.eval().act(batch)
        print(f'{objective}: {sum(p.numel() for p in model.parameters()):,} parameters | '
              f"loss {out['loss'].item():.4f} | {model.calls} calls -> actions {tuple(chunk.shape)}")
