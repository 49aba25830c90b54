"""
The borrowed eyes of latent models: two frozen image autoencoders, 8 x 8 pixels to one latent of 4 numbers.

    SD-VAE   AutoencoderKL of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752), 83,653,863 parameters:
             z = 0.18215 * mean of encoder(x), x = decoder(z / 0.18215); the encoder gives a std, too
    TAESD    its distillation by O. Boer Bohan (2023), 2,445,063 parameters and a tenth of the FLOPs; no std,
             and its latents need no factor, because it was taught the scaled ones

    codec = load('taesd')                     or 'sd', or the path of such weights
    z = encode(codec, frames)                 frames (..., H, W, 3) uint8 -> (..., 4, H/8, W/8)
    frames = decode(codec, z)                 -> (..., H, W, 3) float32 in 0..255, not rounded

We store the mean, where the published runs draw: meta.json of the data says how large the std was. Both nets
speak of pixels in [-1, 1] and overshoot, so we clamp. All runs in float32, whatever autocast and TF32 say:
bfloat16 moved a pixel by 12 of 255 and more where we looked.

Modules carry the names of the published files (diffusers' AutoencoderKL and AutoencoderTiny); `published`
brings the three other layouts that are about into these. Nothing here is trained.
"""
import hashlib
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

import checkpoint

SIDE = 8            # px per latent
CHUNK = 16          # frames at a time; fixed, because another number gives results that are 3e-6 apart,
AREA = 256 * 256    # but fewer where a frame has more pixels than this, because memory is finite
FILE = 'diffusion_pytorch_model.safetensors'
SOURCES = {         # name: repository and revision on the hub, sha256, bytes of FILE
    'sd': ('stabilityai/sd-vae-ft-mse', '31f26fdeee1355a5c34592e401dd41e45d25a493',
           'a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815', 334_643_276),
    'taesd': ('madebyollin/taesd', '614f76814bbe30edbe2e627ace1c2234c81a2c0e',
              'db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549', 9_793_292)}
HALVES = 'taesd_encoder', 'taesd_decoder'      # how TAESD's own two files begin


# ---- SD-VAE ----

def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, channels, out):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if self.conv_shortcut else x)


class Attention(nn.Module):
    """One head over all places of the picture."""

    def __init__(self, channels):
        super().__init__()
        self.group_norm = norm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        y = self.group_norm(x).flatten(2).transpose(1, 2)            # (N, H W, C)
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.to_out[0](y).transpose(1, 2).view(x.shape)


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels)])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels) for _ in range(2)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Sampler(nn.Module):
    """Halves or doubles the sides."""

    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x):
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))                 # right and below only: so it was trained
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


class Stage(nn.Module):
    """Some blocks of one resolution, then, but in the last stage, a change of it. change: down | up | ''"""

    def __init__(self, channels, out, blocks, change):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(out if i else channels, out) for i in range(blocks)])
        if change:
            setattr(self, f'{change}samplers', nn.ModuleList([Sampler(out, change == 'down')]))
        self.change = change

    def forward(self, x):
        for block in self.resnets:
            x = block(x)
        return getattr(self, f'{self.change}samplers')[0](x) if self.change else x


class Half(nn.Module):
    """
    Encoder or decoder. widths: channels of its stages, in the order in which they run; blocks: per stage.
    """

    def __init__(self, inputs, outputs, widths, blocks, change):
        super().__init__()
        first, last = widths[0], widths[-1]
        self.conv_in = nn.Conv2d(inputs, first, 3, padding=1)
        stages = [Stage(widths[max(0, i - 1)], width, blocks, change if i < len(widths) - 1 else '')
                  for i, width in enumerate(widths)]
        setattr(self, f'{change}_blocks', nn.ModuleList(stages))
        self.mid_block = Middle(last if change == 'down' else first)
        self.conv_norm_out = norm(last)
        self.conv_out = nn.Conv2d(last, outputs, 3, padding=1)
        self.change = change

    def forward(self, x):
        stages = [*getattr(self, f'{self.change}_blocks')]
        # attention is where the picture is smallest: at the encoder's end, at the decoder's beginning
        order = [*stages, self.mid_block] if self.change == 'down' else [self.mid_block, *stages]
        x = self.conv_in(x)
        for stage in order:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    kind = 'AutoencoderKL'

    def __init__(self, widths=(128, 256, 512, 512), blocks=2, channels=4, scale=0.18215):
        super().__init__()
        self.scale = scale
        self.encoder = Half(3, 2 * channels, widths, blocks, 'down')
        self.decoder = Half(channels, 3, widths[::-1], blocks + 1, 'up')
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def posterior(self, x):
        """Pixels (N, 3, H, W) in [-1, 1] -> mean and std (N, 4, H/8, W/8) of the latent, unscaled."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return mean, (log_variance.clamp(-30, 20) / 2).exp()

    def latents(self, x):
        """-> latents in the stored scale, and their std."""
        mean, std = self.posterior(x)
        return mean * self.scale, std * self.scale

    def pixels(self, z):
        return self.decoder(self.post_quant_conv(z / self.scale))


# ---- TAESD ----

class TinyBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x):
        return F.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), TinyBlock(width))
        for _ in range(3):
            self.layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            for _ in range(3):
                self.layers.append(TinyBlock(width))
        self.layers.append(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x):
        return self.layers((x + 1) / 2)                              # it was trained on [0, 1]


class TinyDecoder(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        for _ in range(3):
            for _ in range(3):
                self.layers.append(TinyBlock(width))
            self.layers.append(nn.Upsample(scale_factor=2))
            self.layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.layers.append(TinyBlock(width))
        self.layers.append(nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z):
        z = 3 * torch.tanh(z / 3)                                    # reins in latents that cannot be
        return self.layers(z) * 2 - 1


class AutoencoderTiny(nn.Module):
    kind, scale = 'AutoencoderTiny', 1.0

    def __init__(self, channels=4, width=64):
        super().__init__()
        self.encoder = TinyEncoder(channels, width)
        self.decoder = TinyDecoder(channels, width)

    def latents(self, x):
        return self.encoder(x), None

    def pixels(self, z):
        return self.decoder(z)


# ---- frames <-> latents ----

def check_sides(height, width):
    """ValueError for pictures that the three halvings would cut or pad in silence."""
    if height % SIDE or width % SIDE:
        raise ValueError(f'pictures of {height}x{width}: both sides must be multiples of {SIDE}; resize them')


@torch.no_grad()
def encode(codec, frames, with_std=False):
    """
    frames (..., H, W, 3) uint8 -> latents (..., 4, H/8, W/8) float32, on the codec's device. with_std: and
    the mean std of the posterior, or None where there is no posterior.
    """
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(f'frames are {frames.dtype} {tuple(frames.shape)}: want uint8 (..., H, W, 3)')
    check_sides(*frames.shape[-3:-1])
    device, z, stds = device_of(codec), [], []
    for chunk in frames.reshape(-1, *frames.shape[-3:]).split(at_once(*frames.shape[-3:-1])):
        with in_float32(device):
            x = chunk.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            mean, std = codec.latents(x)
        z.append(mean)
        if std is not None:
            stds.append(std.flatten())
    z = torch.cat(z)
    z = z.view(*frames.shape[:-3], *z.shape[1:])
    return (z, torch.cat(stds).mean().item() if stds else None) if with_std else z


@torch.no_grad()
def decode(codec, z):
    """Latents (..., 4, h, w) in the stored scale -> frames (..., 8 h, 8 w, 3) float32, 0..255."""
    device, frames = device_of(codec), []
    height, width = z.shape[-2:]
    for chunk in z.reshape(-1, *z.shape[-3:]).split(at_once(height * SIDE, width * SIDE)):
        with in_float32(device):
            x = codec.pixels(chunk.to(device).float())
        frames.append(((x.permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255))
    frames = torch.cat(frames)
    return frames.view(*z.shape[:-3], *frames.shape[1:])


def at_once(height, width):
    return max(1, min(CHUNK, CHUNK * AREA // (height * width)))


@contextmanager
def in_float32(device):
    """Neither autocast nor TF32, which train.py switches on, for what is computed inside."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = dict(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic)
    torch.set_float32_matmul_precision('highest')
    try:
        with torch.autocast(device.type, enabled=False), cudnn.flags(**kept, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def device_of(codec):
    return next(codec.parameters()).device


# ---- files ----

def load(src):
    """
    'sd', 'taesd' (downloaded once), or the path of weights: a .safetensors, one of TAESD's two files, or a
    folder with either -> the codec, float32 on the CPU. The keys tell which it is, and how large.
    codec.sha256 is that of the numbers as float32, whatever layout they came in.
    """
    weights, folder = read(src)
    try:
        weights = {key: x.float() for key, x in published(weights).items()}
        codec = build(weights, folder)
    except KeyError as error:
        sys.exit(f'vae = {src}: its weights lack {error.args[0]}; want those of SD-VAE or TAESD')
    except ValueError as error:
        sys.exit(f'vae = {src}: {error}')
    checkpoint.fill(codec, weights, f'vae = {src}')
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(weights[key].contiguous().numpy().tobytes())
    codec.sha256 = digest.hexdigest()
    return codec.eval().requires_grad_(False)


def read(src):
    """-> {key: tensor}, the folder where they lie."""
    path = Path(fetched(src) if src in SOURCES else src).expanduser()
    if path.is_dir():
        there = sorted([*path.glob('diffusion_pytorch_model*.safetensors'), *path.glob(f'{HALVES[0]}*')])
        if not there:
            sys.exit(f'vae = {src}: this folder holds neither diffusion_pytorch_model*.safetensors nor '
                     f'{HALVES[0]}*.safetensors and {HALVES[1]}*.safetensors')
        if len(there) > 1:
            sys.exit(f'vae = {src}: which of {", ".join(file.name for file in there)}? Give its path')
        path = there[0]
    names = {half: path.name.replace(own, half) for own in HALVES for half in HALVES if own in path.name}
    if not names:
        return tensors(path), path.parent
    weights = {}
    for half, name in names.items():
        prefix = half.removeprefix('taesd_')
        weights |= {f'{prefix}.{key}': x for key, x in tensors(path.with_name(name)).items()}
    return weights, path.parent


def fetched(src):
    """The file of one revision, so that everybody's latents are the same."""
    repository, revision, sha256, size = SOURCES[src]
    try:
        return checkpoint.hub(repository, FILE, revision, sha256, size)
    except SystemExit as problem:
        sys.exit(f'{problem.code}; or --vae=PATH of weights that are here')


def tensors(path):
    if not path.exists():
        sys.exit(f"vae: {path} is not there; give 'sd', 'taesd', a .safetensors file or a folder that holds "
                 'one (of TAESD both encoder and decoder)')
    try:
        return load_file(path)
    except Exception as error:                           # one for each kind of damage
        sys.exit(f'vae: cannot read {path}: {checkpoint.reason_of(error)}; copy or download it again')


def build(weights, folder):
    """The net whose shapes these are, with weights still to come; ValueError for one of another kind."""
    if 'encoder.layers.0.weight' in weights:
        last = max(key for key in weights if re.fullmatch(r'encoder\.layers\.\d\d\.bias', key))
        return AutoencoderTiny(len(weights[last]), len(weights['encoder.layers.0.weight']))
    widths = []
    while (key := f'encoder.down_blocks.{len(widths)}.resnets.0.conv1.weight') in weights:
        widths.append(len(weights[key]))
    if not widths:
        raise KeyError('encoder.down_blocks.0 and encoder.layers.0')
    if len(widths) != 4 or any(width % 32 for width in widths):
        raise ValueError(f'its stages are {widths} wide; want four, multiples of 32, for 8 px to a latent')
    blocks = sum(bool(re.fullmatch(r'encoder\.down_blocks\.0\.resnets\.\d\.conv1\.weight', key))
                 for key in weights)
    return AutoencoderKL(tuple(widths), blocks, len(weights['post_quant_conv.weight']), factor(folder))


def factor(folder):
    """By which latents are scaled: only a config.json beside the weights knows another one."""
    path = folder / 'config.json'
    if not path.exists():
        return 0.18215
    try:
        told = json.loads(path.read_text())
        scale = float(told.get('scaling_factor', 0.18215))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'cannot read {path}: {checkpoint.reason_of(error)}') from None
    strange = [key for key in ('shift_factor', 'latents_mean') if told.get(key)]
    if strange:
        raise ValueError(f'{path} asks for {", ".join(strange)}, which we do not have')
    return scale


def published(weights):
    """Keys of any of the layouts -> those of our modules."""
    keys = {key.removeprefix('first_stage_model.'): x for key, x in weights.items()}
    if any(key.startswith('encoder.down.') for key in keys):
        return compvis({key: x for key, x in keys.items() if key.startswith(CODEC)})
    if 'encoder.0.weight' in keys:                       # TAESD's own: numbers start one later in the decoder
        return {re.sub(r'^(en|de)coder\.(\d+)', lambda m: f'{m[1]}coder.layers.{int(m[2]) - (m[1] == "de")}',
                       key): x for key, x in keys.items()}
    # as older versions of diffusers wrote them, and so the official file
    old = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
    return {re.sub(r'(attentions\.0\.)(query|key|value|proj_attn)\b', lambda m: m[1] + old[m[2]], key): x
            for key, x in keys.items()}


CODEC = 'encoder.', 'decoder.', 'quant_conv.', 'post_quant_conv.'
COMPVIS = (                                              # pattern, what it is called by us
    (r'encoder\.down\.(\d)\.block\.(\d)', r'encoder.down_blocks.\1.resnets.\2'),
    (r'encoder\.down\.(\d)\.downsample', r'encoder.down_blocks.\1.downsamplers.0'),
    (r'decoder\.up\.(\d)\.block\.(\d)', lambda m: f'decoder.up_blocks.{3 - int(m[1])}.resnets.{m[2]}'),
    (r'decoder\.up\.(\d)\.upsample', lambda m: f'decoder.up_blocks.{3 - int(m[1])}.upsamplers.0'),
    (r'mid\.block_(\d)', lambda m: f'mid_block.resnets.{int(m[1]) - 1}'),
    (r'mid\.attn_1\.norm', 'mid_block.attentions.0.group_norm'),
    (r'mid\.attn_1\.([qkv])\b', r'mid_block.attentions.0.to_\1'),
    (r'mid\.attn_1\.proj_out', 'mid_block.attentions.0.to_out.0'),
    (r'nin_shortcut', 'conv_shortcut'),
    (r'norm_out', 'conv_norm_out'))


def compvis(weights):
    """Names of the original code of Stable Diffusion; its attention had 1x1 convolutions for matrices."""
    renamed = {}
    for key, x in weights.items():
        for pattern, name in COMPVIS:
            key = re.sub(pattern, name, key)
        renamed[key] = x.flatten(1) if '.to_' in key and key.endswith('weight') else x
    return renamed
