"""
Diffusion Policy: a chunk of actions is drawn out of noise by a U-Net along time, which is told what was seen.

Chi et al. 2023, arXiv 2303.04137, as LeRobot builds it: its names of arguments and of parameters (without the
leading `diffusion.`), its defaults up to version 0.5. x is a chunk of actions, e Gaussian noise:

    training    z_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) e,    t one of 100 levels
                loss: mean of |net(z_t, t, seen) - e|^2
                with prediction_type sample the network guesses x instead of e
    sampling    from z = e, t falling to 0: the network's guess of x, clamped to [-1, 1], then
    DDPM        z <- a mean of that x and z, and fresh noise: 100 calls of the network
    DDIM        z <- sqrt(alpha_bar_next) x + sqrt(1 - alpha_bar_next) e: nothing is drawn on the way, and
                few calls will do, such as 10 (num_inference_steps)

    picture (3, H, W) -> ResNet-18 -> softmax over places: where 32 things are -> linear, ReLU: 64 numbers
    seen: state and pictures, or keypoints, of the last n_obs_steps observations in one row (B, G)
    U-Net: (B, A, T) -> T/2 -> T/4 and back, with skips; (t, seen) scale and shift every block (FiLM)

Shapes: B chunks, T = horizon actions, A = action_dim, n = n_obs_steps. state (B, n, S), image.<camera>
(B, n, 3, H, W) uint8, env_state (B, n, E), mask (B, T), False where an action lies beyond the ends of its
episode. The first of the T actions is that of the first observation; n_action_steps are carried out, from
that of the last observation on. Read first `ResidualBlock` and `UNet.forward`, then `Model.forward` and
`Model.sample`. With PushT's camera, state and action it has 262,709,026 parameters. To reach from its
pictures: 63.8 % success, published by LeRobot.

Kept of LeRobot, though one may ask why:
    - the scale of FiLM is the layer's output, not 1 + it;
    - the skip of the first stage is never used, as the way back has a stage less;
    - the last block has 8 groups, whatever n_groups says;
    - padded actions are targets, unless do_mask_loss_for_padding.
Otherwise than LeRobot:
    - each picture is cropped at a place of its own, theirs a whole batch at one;
    - a number that was constant in the data becomes -1 always; theirs divides its distance to it by 1e-8.
With BatchNorm (use_group_norm = False) the running statistics are those of the raw weights, not of averaged
ones (EMA). In training it normalises over a micro-batch, and a mean without padded actions is one over a
micro-batch too: with either, the training depends on how a batch is split over ranks and passes.
"""
import math
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import checkpoint
import vision

EVAL = ('env', 'actions')     # protocols that understand it; the first that the data serve is the default
PAD = True                    # windows reach beyond the ends of an episode, whose edges repeat
SAMPLING = ('n_action_steps', 'noise_scheduler_type', 'num_inference_steps', 'clip_sample',
            'clip_sample_range')
INITIAL = ('pretrained_backbone_weights',)               # where a training starts; not needed later


@dataclass
class Config:
    obs: str = 'image'            # image | keypoints: env_state, which only a simulator knows | state alone
    # what is seen
    n_obs_steps: int = 2          # observations, the last is now
    vision_backbone: str = 'resnet18'        # resnet18
    pretrained_backbone_weights: str = ''    # '' | file of ResNet-18 | ResNet18_Weights.IMAGENET1K_V1
    resize_shape: tuple = ()      # px, (height, width); (): as the pictures are
    crop_ratio: float = 1.0       # share of each side that the crop leaves; used only with resize_shape
    crop_shape: tuple = ()        # px, (height, width), (): no crop; ignored with resize_shape
    crop_is_random: bool = True   # in training; else from the middle
    use_group_norm: bool = True   # else BatchNorm, with which ImageNet's weights go
    spatial_softmax_num_keypoints: int = 32  # that the encoder of a picture points to
    use_separate_rgb_encoder_per_camera: bool = False    # else one for all
    # the chunk
    horizon: int = 16             # actions, T; a multiple of 2^stages, as LeRobot wants it
    n_action_steps: int = 8       # actions carried out before it looks again
    drop_n_last_frames: int = 7   # at the end of an episode: none of them is `now` in a sample
    # the U-Net
    down_dims: tuple = (512, 1024, 2048)     # channels of each stage
    kernel_size: int = 5          # actions that a convolution sees
    n_groups: int = 8             # of GroupNorm
    diffusion_step_embed_dim: int = 128      # width of the time's embedding
    use_film_scale_modulation: bool = True   # scale and shift; else shift alone
    # noise
    num_train_timesteps: int = 100           # levels
    beta_schedule: str = 'squaredcos_cap_v2'  # squaredcos_cap_v2: cosine | linear
    beta_start: float = 0.0001    # linear: the first level's share of new noise
    beta_end: float = 0.02        # linear: the last one's
    prediction_type: str = 'epsilon'         # epsilon: the network guesses the noise | sample: the actions
    # sampling
    noise_scheduler_type: str = 'DDPM'       # DDPM | DDIM
    num_inference_steps: int = 0  # calls of the network per chunk, best a divisor of the levels; 0: all
    clip_sample: bool = True      # clamp each guess of the actions
    clip_sample_range: float = 1.0           # to minus and plus this
    # loss
    do_mask_loss_for_padding: bool = False   # what lies beyond the ends of an episode is no target
    padding: str = 'skip'         # then: skip | zeros, counted as errors of 0 (LeRobot <= 0.5)
    # the data
    cameras: tuple = ('top',)     # image.<camera>; their order counts
    height: int = 96              # px
    width: int = 96               # px
    action_dim: int = 2           # units of the data
    state_dim: int = 2            # units of the data
    env_state_dim: int = 18       # units of the data

    # what protocols/env.py asks of every policy
    n_obs = property(lambda self: self.n_obs_steps)
    n_action = property(lambda self: self.n_action_steps)


PRESETS = {
    'tiny': Config(obs='keypoints', down_dims=(16, 32), n_groups=4, diffusion_step_embed_dim=32),
    'cpu': Config(obs='keypoints', down_dims=(32, 64, 128), noise_scheduler_type='DDIM',
                  num_inference_steps=10),
    'full': Config()}


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    choices = {'obs': ('image', 'keypoints', 'state'), 'vision_backbone': ('resnet18',),
               'beta_schedule': ('squaredcos_cap_v2', 'linear'), 'prediction_type': ('epsilon', 'sample'),
               'noise_scheduler_type': ('DDPM', 'DDIM'), 'padding': ('skip', 'zeros')}
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: must be one of {", ".join(allowed)}')
    for key, value in vars(cfg).items():
        least = 0 if key in ('drop_n_last_frames', 'num_inference_steps') else 1
        if type(value) is int and value < least:
            raise ValueError(f'{key} = {value}: must be at least {least}')
    highest = {'crop_ratio': 1, 'clip_sample_range': math.inf, 'beta_start': cfg.beta_end, 'beta_end': 0.999}
    for key, high in highest.items():
        if not 0 < getattr(cfg, key) <= high:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be above 0, and at most {high}')
    if cfg.num_inference_steps > cfg.num_train_timesteps:
        raise ValueError(f'num_inference_steps = {cfg.num_inference_steps}: must be at most '
                         f'num_train_timesteps = {cfg.num_train_timesteps}')
    check_network(cfg)
    if cfg.obs == 'image':
        check_pictures(cfg)


def check_network(cfg):
    stages = len(cfg.down_dims)
    if not stages or any(n < 1 or n % cfg.n_groups for n in cfg.down_dims) or cfg.down_dims[0] % 8:
        raise ValueError(f'down_dims = {cfg.down_dims}: want widths that are multiples of n_groups = '
                         f'{cfg.n_groups}, the first one of 8 too')
    if cfg.kernel_size % 2 == 0:
        raise ValueError(f'kernel_size = {cfg.kernel_size}: must be odd, or a chunk would change its length')
    if cfg.diffusion_step_embed_dim % 2 or cfg.diffusion_step_embed_dim < 4:
        raise ValueError(f'diffusion_step_embed_dim = {cfg.diffusion_step_embed_dim}: want 4, 6, ...')
    if cfg.horizon % 2 ** stages:
        raise ValueError(f'horizon = {cfg.horizon}: must be a multiple of 2^stages = {2 ** stages}, a stage '
                         f'for each of down_dims = {cfg.down_dims}')
    if cfg.n_obs_steps - 1 + cfg.n_action_steps > cfg.horizon:
        raise ValueError(f'n_action_steps = {cfg.n_action_steps}: with n_obs_steps - 1 past actions they do '
                         f'not fit into horizon = {cfg.horizon}')


def check_pictures(cfg):
    if len({*cfg.cameras}) < max(1, len(cfg.cameras)):
        raise ValueError(f'cameras = {cfg.cameras}: want one or more, each once; without: obs = state')
    for key in ('resize_shape', 'crop_shape'):
        shape = getattr(cfg, key)
        if shape and (len(shape) != 2 or min(shape) < 1):
            raise ValueError(f'{key} = {shape}: want (height, width) in px, or ()')
    resized, cropped = views(cfg)
    if min(cropped) < 1:
        raise ValueError(f'crop_ratio = {cfg.crop_ratio}: of {resized[0]} x {resized[1]} px nothing is left')
    if cropped[0] > resized[0] or cropped[1] > resized[1]:
        raise ValueError(f'crop_shape = {cropped}: larger than the pictures, {resized[0]} x {resized[1]}')


def views(cfg):
    """(height, width) of a picture after resizing, and after the crop: what the encoder sees."""
    size = tuple(cfg.resize_shape) or (cfg.height, cfg.width)
    if cfg.resize_shape:                                 # then LeRobot crops by the ratio, else by the shape
        return size, tuple(int(n * cfg.crop_ratio) for n in size)
    return size, tuple(cfg.crop_shape) or size


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    keys = {'image': [f'image.{camera}' for camera in cfg.cameras], 'keypoints': ['env_state'], 'state': []}
    seen = dict.fromkeys([*keys.get(cfg.obs, []), 'state'], range(1 - cfg.n_obs_steps, 1))
    return seen | {'action': range(1 - cfg.n_obs_steps, cfg.horizon + 1 - cfg.n_obs_steps)}


def example(cfg, batch_size):
    """A random batch with all that forward wants; positions in 0..1, the range of fresh statistics."""
    batch = {'mask': torch.ones(batch_size, cfg.horizon, dtype=bool)}
    for key, offsets in windows(cfg).items():
        if key.startswith('image.'):
            shape = batch_size, len(offsets), 3, cfg.height, cfg.width
            batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
        else:
            batch[key] = torch.rand(batch_size, len(offsets), getattr(cfg, f'{key}_dim'))
    return batch


# ---- diffusion: DDPM (arXiv 2006.11239), DDIM (arXiv 2010.02502), cosine schedule (arXiv 2102.09672) ----

def alpha_bars(cfg):
    """(K,) float64: the share of the signal's variance that 1, 2, ... K = num_train_timesteps steps leave."""
    K = cfg.num_train_timesteps

    def level(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    if cfg.beta_schedule == 'linear':
        betas = torch.linspace(cfg.beta_start, cfg.beta_end, K, dtype=torch.float64)
    else:
        betas = [min(1 - level((k + 1) / K) / level(k / K), 0.999) for k in range(K)]
    return (1 - torch.as_tensor(betas, dtype=torch.float64)).cumprod(0)


# same as imf_policy.py
def add_noise(x, e, alpha_bar):
    """x after some steps of noise; alpha_bar (B,)."""
    a = alpha_bar[:, None, None]
    return a.sqrt() * x + (1 - a).sqrt() * e


def real_mean(error, real, padding):
    """Mean of the errors (B, T, A) of real actions; real (B, T) is False beyond its ends."""
    error = error * real[..., None]
    if padding == 'zeros':
        return error.mean()
    return error.sum() / (real.sum().clamp(min=1) * error.shape[2])


def levels_of(cfg):
    """The levels t of the calls, falling, and their distance: of 100, 10 calls have 90, 80, ... 0, and 10."""
    n = cfg.num_inference_steps or cfg.num_train_timesteps
    stride = cfg.num_train_timesteps // n
    return [*reversed(range(0, n * stride, stride))], stride


def cleaned(z, guess, bar, cfg):
    """The network's guess at alpha_bar = bar -> the actions x that it means, clamped, and the noise e."""
    if cfg.prediction_type == 'epsilon':
        x, e = (z - (1 - bar) ** 0.5 * guess) / bar ** 0.5, guess
    else:
        x, e = guess, (z - bar ** 0.5 * guess) / (1 - bar) ** 0.5
    if cfg.clip_sample:                                  # bar starts near 0, and x with it far off
        x = x.clamp(-cfg.clip_sample_range, cfg.clip_sample_range)
    return x, e


def ddpm_step(z, x, bar, bar_next, noise):
    """A draw of q(z_next | z, x), the posterior; with beta tilde, the smaller variance of Ho et al."""
    alpha = bar / bar_next
    mean = bar_next ** 0.5 * (1 - alpha) / (1 - bar) * x + alpha ** 0.5 * (1 - bar_next) / (1 - bar) * z
    return mean + ((1 - bar_next) / (1 - bar) * (1 - alpha)) ** 0.5 * noise


def ddim_step(x, e, bar_next):
    """DDIM with eta = 0. e stays as it was guessed, also where x was clamped."""
    return bar_next ** 0.5 * x + (1 - bar_next) ** 0.5 * e


# ---- the U-Net ----

# same as imf_policy.py
def sinusoid(t, C):
    """Times (...) -> (..., C): sines, then cosines, of frequencies from 1 down to 1e-4."""
    half = C // 2
    frequency = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, device=t.device, dtype=t.dtype))
    angle = t[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


class ConvBlock(nn.Module):
    """(B, channels, T) -> (B, out, T)"""

    def __init__(self, channels, out, kernel, groups=8):
        super().__init__()
        conv = nn.Conv1d(channels, out, kernel, padding=kernel // 2)
        self.block = nn.Sequential(conv, nn.GroupNorm(groups, out), nn.Mish())

    def forward(self, x):
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; between them the condition (B, c) scales and shifts channels."""

    def __init__(self, cfg, channels, out, c):
        super().__init__()
        self.scales = cfg.use_film_scale_modulation
        self.conv1 = ConvBlock(channels, out, cfg.kernel_size, cfg.n_groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(c, out * (1 + self.scales)))
        self.conv2 = ConvBlock(out, out, cfg.kernel_size, cfg.n_groups)
        self.residual_conv = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x, condition):
        y, film = self.conv1(x), self.cond_encoder(condition)[..., None]         # (B, out or 2 out, 1)
        scale, shift = film.chunk(2, 1) if self.scales else (1, film)
        return self.conv2(scale * y + shift) + self.residual_conv(x)


class UNet(nn.Module):
    def __init__(self, cfg, G):
        super().__init__()
        self.width, dims = cfg.diffusion_step_embed_dim, cfg.down_dims
        wide, c = 4 * self.width, self.width + G
        # 0 keeps the others' numbers as in LeRobot's, where the sinusoid, without weights, is a layer
        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(), nn.Linear(self.width, wide), nn.Mish(), nn.Linear(wide, self.width))
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for channels, out in zip((cfg.action_dim, *dims), dims):
            last = len(self.down_modules) == len(dims) - 1
            self.down_modules.append(nn.ModuleList([
                ResidualBlock(cfg, channels, out, c), ResidualBlock(cfg, out, out, c),
                nn.Identity() if last else nn.Conv1d(out, out, 3, 2, 1)]))
        self.mid_modules = nn.ModuleList([ResidualBlock(cfg, dims[-1], dims[-1], c) for _ in range(2)])
        for out, channels in reversed([*zip(dims, dims[1:])]):
            self.up_modules.append(nn.ModuleList([
                ResidualBlock(cfg, 2 * channels, out, c), ResidualBlock(cfg, out, out, c),
                nn.ConvTranspose1d(out, out, 4, 2, 1)]))
        self.final_conv = nn.Sequential(ConvBlock(dims[0], dims[0], cfg.kernel_size),
                                        nn.Conv1d(dims[0], cfg.action_dim, 1))

    def forward(self, x, t, seen):
        """Noisy actions x (B, A, T), levels t (B,), what is seen (B, G) -> (B, A, T)."""
        time = self.diffusion_step_encoder(sinusoid(t.to(seen.dtype), self.width))
        condition = torch.cat([time, seen], -1)
        skips = []
        for block1, block2, halve in self.down_modules:
            x = block2(block1(x, condition), condition)
            skips.append(x)
            x = halve(x)
        for block in self.mid_modules:
            x = block(x, condition)
        for block1, block2, double in self.up_modules:
            x = block1(torch.cat([x, skips.pop()], 1), condition)    # the last first; that of stage 0 is left
            x = double(block2(x, condition))
        return self.final_conv(x)


# ---- what is seen ----

class Encoder(nn.Module):
    """Pictures (N, 3, H, W), normalised and cropped -> (N, 2 * points)."""

    def __init__(self, cfg):
        super().__init__()
        points, (H, W) = cfg.spatial_softmax_num_keypoints, views(cfg)[1]
        backbone = vision.Backbone(vision.norm if cfg.use_group_norm else nn.BatchNorm2d)
        if cfg.pretrained_backbone_weights:
            vision.imagenet(backbone, cfg.pretrained_backbone_weights)
        self.backbone = nn.Sequential(*backbone.children())          # its keys are numbers, as LeRobot's
        self.pool = vision.GridSoftmax(512, points, -(-H // 32), -(-W // 32))
        self.out = nn.Linear(2 * points, 2 * points)

    def forward(self, x):
        return F.relu(self.out(self.pool(self.backbone(x)).flatten(1)))


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg, pictures = cfg, len(cfg.cameras) if cfg.obs == 'image' else 0
        if pictures and cfg.use_separate_rgb_encoder_per_camera:
            self.rgb_encoder = nn.ModuleList([Encoder(cfg) for _ in cfg.cameras])
        elif pictures:
            self.rgb_encoder = Encoder(cfg)
        per_step = cfg.state_dim + pictures * 2 * cfg.spatial_softmax_num_keypoints
        per_step += cfg.env_state_dim * (cfg.obs == 'keypoints')
        self.G = cfg.n_obs_steps * per_step                          # numbers in what is seen
        self.unet = UNet(cfg, self.G)
        self.register_buffer('alpha_bar', alpha_bars(cfg).float(), persistent=False)
        for key in [key for key in windows(cfg) if not key.startswith('image.')]:
            n = getattr(cfg, f'{key}_dim')
            self.register_buffer(f'{key}_min', torch.zeros(n))       # of the training data, from meta.json
            self.register_buffer(f'{key}_max', torch.ones(n))
        if pictures:                                                 # ImageNet's, a row per camera
            for name, rgb in ('mean', (0.485, 0.456, 0.406)), ('std', (0.229, 0.224, 0.225)):
                self.register_buffer(f'image_{name}', torch.tensor(rgb).repeat(pictures, 1))

    # ---- units ----

    def normalise(self, batch, key):
        """[min, max] -> [-1, 1]; a number that was constant in the data -> -1."""
        low, high = getattr(self, f'{key}_min'), getattr(self, f'{key}_max')
        span = high - low
        return 2 * (batch[key].float() - low) / span.where(span > 0, math.inf) - 1

    def unnormalise(self, action):
        return (action + 1) / 2 * (self.action_max - self.action_min) + self.action_min

    def picture(self, batch, i):
        """Camera i, uint8 -> (B, n, 3, H, W): normalised, then resized, then cropped."""
        image, size = batch[f'image.{self.cfg.cameras[i]}'], (self.cfg.height, self.cfg.width)
        assert image.dtype == torch.uint8 and image.shape[2:] == (3, *size), \
            (f'image.{self.cfg.cameras[i]} is {image.dtype} {tuple(image.shape[2:])}, want uint8 '
             f'{(3, *size)}')
        mean, std = (x[i, :, None, None] for x in (self.image_mean, self.image_std))
        x = (image.flatten(0, 1).float() / 255 - mean) / (std + 1e-8)
        resized, cropped = views(self.cfg)
        if resized != size:
            x = F.interpolate(x, resized, mode='bilinear', antialias=True)
        if cropped != resized:                           # else nothing is drawn, as in LeRobot
            x = vision.crop(x, cropped, random=self.training and self.cfg.crop_is_random)
        return x.unflatten(0, image.shape[:2])

    # ---- the network ----

    def encode(self, batch):
        """What is seen, once per chunk, because it does not change from call to call: (B, G)."""
        seen = [self.normalise(batch, 'state')]                      # (B, n, S)
        if self.cfg.obs == 'image':
            seen.append(self.look(batch).to(seen[0].dtype))
        if self.cfg.obs == 'keypoints':
            seen.append(self.normalise(batch, 'env_state'))
        return torch.cat(seen, -1).flatten(1)

    def look(self, batch):
        """Features of all cameras, one after the other: (B, n, cameras * 2 * points)."""
        x = torch.stack([self.picture(batch, i) for i in range(len(self.cfg.cameras))], 2)
        B, n, cameras = x.shape[:3]
        if not self.cfg.use_separate_rgb_encoder_per_camera:
            return self.rgb_encoder(x.flatten(0, 2)).view(B, n, -1)
        features = [encode(x[:, :, i].flatten(0, 1)) for i, encode in enumerate(self.rgb_encoder)]
        return torch.cat(features, -1).view(B, n, -1)

    def net(self, z, t, seen):
        """Noisy actions z (B, T, A), levels t (B,), what is seen (B, G) -> the guess (B, T, A)."""
        return self.unet(z.transpose(1, 2), t, seen).transpose(1, 2)

    def forward(self, batch):
        """
        {'loss': scalar with grad}. Draws e, then t (B,) int64, in LeRobot's order, unless the batch brings
        them, as `noise` and `t`.
        """
        x, seen = self.normalise(batch, 'action'), self.encode(batch)
        e = batch['noise'] if 'noise' in batch else torch.randn_like(x)
        t = batch['t'] if 't' in batch else torch.randint(len(self.alpha_bar), (len(x),), device=x.device)
        guess = self.net(add_noise(x, e, self.alpha_bar[t]), t, seen)
        error = (guess - (e if self.cfg.prediction_type == 'epsilon' else x)).square()
        if not self.cfg.do_mask_loss_for_padding:
            return {'loss': error.mean()}
        return {'loss': real_mean(error, batch['mask'], self.cfg.padding)}

    # ---- acting ----

    @torch.no_grad()
    def sample(self, seen, z, noise):
        """seen (B, G), noise z (B, T, A), noise(t): what DDPM adds after level t -> actions (B, T, A)."""
        levels, stride = levels_of(self.cfg)
        alpha_bar = self.alpha_bar.tolist()
        self.calls = len(levels)
        for t in levels:
            guess = self.net(z, torch.full((len(z),), t, device=z.device), seen)
            bar, bar_next = alpha_bar[t], (alpha_bar[t - stride] if t else 1.0)
            x, e = cleaned(z, guess, bar, self.cfg)
            if self.cfg.noise_scheduler_type == 'DDIM':
                z = ddim_step(x, e, bar_next)
            else:
                z = ddpm_step(z, x, bar, bar_next, noise(t) if t else 0.0)
        return z

    @torch.no_grad()
    def act(self, obs, generators=None):
        """
        The actions that come next, (B, n_action_steps, A) in units of the data; call .eval() first, or
        pictures are cropped at random. obs: as in `windows`. generators: a torch.Generator per row, so that
        a row does not depend on the others; None: torch's own.
        """
        cfg, device = self.cfg, self.alpha_bar.device
        seen = self.encode({key: obs[key].to(device) for key in windows(cfg) if key != 'action'})
        shape = cfg.horizon, cfg.action_dim

        def noise(t):                                    # whatever t; who calls `sample` may bring its own
            drawn = [torch.randn(shape, generator=g) for g in generators or [None] * len(seen)]
            return torch.stack(drawn).to(device)
        chunk = self.sample(seen, noise(None), noise)
        return self.unnormalise(chunk)[:, cfg.n_obs_steps - 1:][:, :cfg.n_action_steps]

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """Adam, not AdamW, as LeRobot has it: the decay is part of the gradient."""
        return torch.optim.Adam(self.parameters(), lr=lr, weight_decay=weight_decay, betas=betas, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample: 6 x the weights of every layer, those of a convolution at each of
        its places, which are T / 2^s in stage s; and those of the pictures.
        """
        cfg, unet, T, last = self.cfg, self.unet, self.cfg.horizon, len(self.cfg.down_dims) - 1
        parts = [(unet.diffusion_step_encoder, 1), (unet.mid_modules, T >> last), (unet.final_conv, T)]
        for s, (block1, block2, halve) in enumerate(unet.down_modules):
            parts += [(block1, T >> s), (block2, T >> s), (halve, T >> s + 1)]
        parts += [(stage, T >> last - s) for s, stage in enumerate(unet.up_modules)]
        weights = [(p, places) for module, places in parts for p in module.parameters() if p.ndim > 1]
        total = 6 * sum(p.numel() * (places if p.ndim > 2 else 1) for p, places in weights)
        if cfg.obs == 'image':
            H, W = views(cfg)[1]
            points = 2 * 512 * cfg.spatial_softmax_num_keypoints * -(-H // 32) * -(-W // 32)
            total += 3 * cfg.n_obs_steps * len(cfg.cameras) * (vision.flops(H, W) + points)
        return total

    # ---- LeRobot's policies ----

    @classmethod
    def from_pretrained(cls, src, **over):
        """
        A run of ours, or a folder that LeRobot saved, of any version (checkpoint.read_lerobot) -> the model
        in eval mode, with its weights and statistics. A camera observation.images.NAME is image.NAME here.
        over: Config fields.
        """
        if checkpoint.is_run(src):
            return checkpoint.load(src, **over)[0]
        modes = {'VISUAL': 'MEAN_STD', 'STATE': 'MIN_MAX', 'ENV': 'MIN_MAX', 'ACTION': 'MIN_MAX'}
        config, weights, facts = checkpoint.read_lerobot(src, 'diffusion', {}, modes)
        kinds = {key: type(value) for key, value in vars(Config()).items() if key not in INITIAL}
        # what is null there is (), 0 or '' here
        said = {key: kind(config[key] or kind()) for key, kind in kinds.items() if key in config}
        try:
            model = cls(Config(**said | facts | over))
        except ValueError as error:
            sys.exit(f'{src}: {error}')
        checkpoint.fill(model, weights, src)
        return model.eval()


if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    cfg = Config(down_dims=(16, 32, 64), noise_scheduler_type='DDIM', num_inference_steps=10)
    model, batch = Model(cfg), example(cfg, batch_size=2)
    out = model(batch)
    out['loss'].backward()
    chunk = model.eval().act(batch)
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters | '
          f"loss {out['loss'].item():.4f} | {model.calls} calls -> actions {tuple(chunk.shape)}")
