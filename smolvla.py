"""
SmolVLA: half of a small vision-language model looks and reads once; beside it a smaller transformer, the
action expert, turns noise into a chunk of actions in ten steps. By default the expert learns, and the small
layers of state, actions and time; the VLM does not.

Shukor et al. 2025, arXiv 2506.01844, as LeRobot builds it; published weights go in key by key (`KEYS`). a is
a chunk of actions, e Gaussian noise, t = 1 is noise, t = 0 data; `same as pi0.py` marks what is, to the word:

    training    x_t = t e + (1 - t) a,   t = 0.999 Beta(1.5, 1) + 0.001, so more often near the noise
                loss: mean of |velocity(x_t, t, cache) - (e - a)|^2 over real actions
    sampling    x = e;  for t = 1, 0.9, ... 0.1:  x <- x - 0.1 velocity(x, t, cache)

    pictures    a ViT's 32 x 32 patches, squares of 4 x 4 joined -> connector: 64 tokens, times sqrt(width)
    text        the VLM's embeddings, times sqrt(width)
    state       a linear layer: 1 token of the VLM
    actions     a linear layer of x_t, then an MLP with t: tokens of the expert

    who sees     pictures   text   state   actions
    pictures        x        x       .        .        the VLM: the first 16 of SmolLM2's 32 layers
    text            x        x       .        .
    state           x        x       x        .
    actions         x        x       x       past      the expert: 16 layers of width 720

In layers 0, 2, ... of the expert an action looks at the VLM's keys and values of that layer, at itself, and
at actions before it (`past`). In layers 1, 3, ... it looks at the VLM alone: its keys, RoPE and all, go
through a linear layer, its values through another, and the actions count their places from 0.

Pictures and text see nothing of what follows: `Model.encode` runs them through the VLM, then the state, and
keeps keys and values, those of layers 1, 3, ... in the expert's version. `Model.velocity` runs the actions
over these. With a frozen VLM backward needs its keys and values, and what the state's one token met.

Shapes: B samples, N tokens, T = chunk_size actions, 32 = max_action_dim numbers in each, zeros behind those
of the robot. image.<camera> (B, 1, 3, H, W) uint8, state (B, 1, S), task (B, 1) the number of a sentence,
action (B, T, A), mask (B, T) False beyond the end. In place of image.<camera> data may hold features.<camera>
(B, 1, 64, 960), the tokens that connector and ViT made of it (data/lerobot/prepare.py --features): these two
then do not run. Read first `Layer`, then `encode`, `velocity`, `forward`.

Checkpoint of the VLM says                      code does (LeRobot, here)
    RoPE of base 100,000                            10,000
    each token sees those before it                 the prefix sees all of itself
    a chat template, tokens around pictures         the sentence and a line break, nothing else
    32 layers                                       the first half
LeRobot up to 0.5 learns from actions beyond the end and from the zeros behind a robot's numbers, too. With
transformers 4.54 to 4.57 in float32 it numbers the rows of patches 0, 0, 1, ... 30; others, and we, 0 to 31.

Parameters, millions: vision 86, connector 12, VLM 195 (words 47), expert 98, the rest 2: 393,519,456, of
which 99,880,992 learn by default. A sample of two cameras costs 0.6 TFLOP to act on, with ten steps of the
expert, and 0.5 to train on, with one and its backward.
"""
import hashlib
import math
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute

import checkpoint
import words

EVAL = ('env', 'actions')     # protocols that understand it; the first that the data serve is the default
PAD = True                    # windows reach beyond the ends of an episode, whose edges repeat
SAMPLING = ('n_action_steps', 'num_steps')
META, ENTERED = True, ('act', 'across')  # built without memory, for a file's weights; methods for fsdp
INITIAL = {'tokenizer': words.SAVED}     # a checkpoint has its sentences in tokens
OWN = ('text', 'hashed')      # buffers that stay with weights from elsewhere
AGREE = {'hashed': words.KINDS}          # of these, what weights from elsewhere must have likewise
FORM = ('features',)          # what is stored of pictures: a trained model takes what the data at hand have
FIRST = '<|im_start|>', 1     # a token of SmolVLM2 and its number, by which its tokenizer is known
VLM = 'smolvlm'               # model_type in config.json of SmolVLM2's own folder
EYES = 'vision.', 'projector.'           # weights that turn pictures into tokens
MAY_BE_0 = 'empty_cameras', 'drop_n_last_frames'
POSITIVE = 'expert_width_multiplier', 'min_period', 'max_period'
SIZES = {
    # width, width of the MLP, heads, heads of keys, numbers in a head; num_vlm_layers is the depth
    'HuggingFaceTB/SmolVLM2-500M-Video-Instruct': (960, 2560, 15, 5, 64),
    # width, layers, width of the MLP, heads, px of a patch, patches on a side of its table of places
    'smolvlm2': (768, 12, 3072, 12, 16, 32)}


@dataclass
class Config:
    # the network: names of SIZES, or numbers in the order there, like 64x128x4x1x16
    vlm_model_name: str = 'HuggingFaceTB/SmolVLM2-500M-Video-Instruct'   # the VLM
    num_vlm_layers: int = 16      # of it that are used, and as many of the expert
    vision_variant: str = 'smolvlm2'         # its ViT
    scale_factor: int = 4         # patches on a side of what becomes one token
    vocab_size: int = 49280       # tokens that the VLM knows
    expert_width_multiplier: float = 0.75    # width of the expert / that of the VLM
    attention_mode: str = 'cross_attn'       # as above | self_attn: actions see each other in all layers
    self_attn_every_n_layers: int = 2        # cross_attn: only in every n-th, from 0 on
    # what is seen
    image_resolution: tuple = (512, 512)     # px, what pictures are scaled to; a square
    empty_cameras: int = 0        # LeRobot's masked pictures: they change nothing, so here none is computed
    tokenizer: str = ''           # tokenizer.json of SmolVLM2; '': words by a hash, to train from scratch
    tokenizer_max_length: int = 48           # tokens in a prompt
    max_state_dim: int = 32       # room for the state, filled up with zeros
    # the chunk
    chunk_size: int = 50          # actions, T
    n_action_steps: int = 50      # actions carried out before it looks again
    max_action_dim: int = 32      # room for an action, filled up with zeros
    drop_n_last_frames: int = 0   # at the end of an episode, where no chunk begins
    # time
    num_steps: int = 10           # calls of the expert per chunk
    min_period: float = 0.004     # of the sinusoids of t
    max_period: float = 4.0       # of the slowest
    # training
    draws: int = 1                # of noise and time per observation, which is encoded once; published: 1
    freeze_vision_encoder: bool = True       # the ViT keeps its weights
    train_expert_only: bool = True           # ViT, connector, embeddings and VLM keep theirs
    train_state_proj: bool = True            # False: so does the layer of the state
    gradient_checkpointing: bool = False     # compute layers again instead of keeping what is in them
    # the data: meta.json decides
    tasks: tuple = ()             # sentences; (): the data have none, the prompt is a line break
    cameras: tuple = ('top',)     # image.<camera>; their order counts
    features: tuple = ()          # (tokens, width) of features.<camera>, which are in its place; (): pictures
    height: int = 512             # px
    width: int = 512              # px
    action_dim: int = 6           # numbers in an action of the robot
    state_dim: int = 6            # numbers in its state

    n_action = property(lambda self: self.n_action_steps)            # the name that protocols/ know for it


SMALL = dict(vlm_model_name='32x64x4x2x8', num_vlm_layers=2, vision_variant='32x2x64x2x4x4', scale_factor=2,
             vocab_size=4096, image_resolution=(16, 16), height=16, width=16, action_dim=2, state_dim=2,
             max_action_dim=4, max_state_dim=4, tokenizer_max_length=8, chunk_size=8, n_action_steps=8,
             freeze_vision_encoder=False, train_expert_only=False, tasks=('go left', 'go right'))
PRESETS = {
    'tiny': Config(**SMALL),
    'cpu': Config(**SMALL | dict(vlm_model_name='64x128x4x2x16', num_vlm_layers=4, draws=4,
                                 vision_variant='64x3x128x4x2x8')),
    'full': Config()}


# same as pi0.py
def sizes(variant):
    """A name of SIZES, or numbers with x between them -> a tuple of numbers."""
    return SIZES.get(variant) or tuple(int(n) for n in variant.split('x') if n.isdigit())


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    for key, n in ('vlm_model_name', 5), ('vision_variant', 6):
        if len(found := sizes(getattr(cfg, key))) != n or min(found) < 1:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: want {n} numbers with x between them, or '
                             f'{", ".join(name for name in SIZES if len(SIZES[name]) == n)}')
    for key, value in vars(cfg).items():
        if type(value) is int and value < (key not in MAY_BE_0):
            raise ValueError(f'{key} = {value}: must be at least {int(key not in MAY_BE_0)}')
        if key in POSITIVE and not 0 < value < math.inf:
            raise ValueError(f'{key} = {value}: must be above 0, and finite')
    W, _, heads, kv, d = sizes(cfg.vlm_model_name)
    width, _, _, looks, patch, table = sizes(cfg.vision_variant)
    C = int(W * cfg.expert_width_multiplier)
    if heads % kv or d % 2 or C % 2 or C < 4:
        raise ValueError(f'vlm_model_name = {cfg.vlm_model_name!r}, expert_width_multiplier = '
                         f'{cfg.expert_width_multiplier}: want even widths, heads n times those of keys')
    if cfg.attention_mode not in ('cross_attn', 'self_attn'):
        raise ValueError(f'attention_mode = {cfg.attention_mode!r}: must be cross_attn or self_attn')
    for key, n, most in (('state_dim', cfg.state_dim, cfg.max_state_dim),
                         ('action_dim', cfg.action_dim, cfg.max_action_dim)):
        if n > most:
            raise ValueError(f'{key} = {n}: max_{key} = {most} have room; published weights know no more')
    if cfg.n_action_steps > cfg.chunk_size:
        raise ValueError(f'n_action_steps = {cfg.n_action_steps}: a chunk has chunk_size = {cfg.chunk_size}')
    R, block, most = cfg.image_resolution, patch * cfg.scale_factor, patch * table
    if width % looks or len(R) != 2 or R[0] != R[1] or R[0] % block or not block <= R[0] <= most:
        raise ValueError(f'image_resolution = {R}, vision_variant = {cfg.vision_variant!r}: want a square, '
                         f'n x {block} px, such as {most // 2} or {most}, and a width of whole heads')
    if cfg.features and not cfg.train_expert_only:
        raise ValueError(f'features = {cfg.features}, train_expert_only = False: stored image tokens are of '
                         'frozen weights; train on pictures, or the expert only')
    if cfg.features not in ((), tokens := ((R[0] // block) ** 2, W)):
        raise ValueError(f'features = {cfg.features}: image_resolution, vision_variant, scale_factor and '
                         f'vlm_model_name make {tokens} of a picture; set these, or store others')
    if len({*cfg.cameras}) < max(1, len(cfg.cameras)):
        raise ValueError(f'cameras = {cfg.cameras}: want one or more, each once')


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    kind = 'features' if cfg.features else 'image'
    keys = [*(f'{kind}.{camera}' for camera in cfg.cameras), 'state', *['task'] * bool(cfg.tasks)]
    return dict.fromkeys(keys, range(1)) | {'action': range(cfg.chunk_size)}


def example(cfg, batch_size):
    """A random batch, as train.py gives them."""
    batch = {'mask': torch.ones(batch_size, cfg.chunk_size, dtype=bool)}
    for key, offsets in windows(cfg).items():
        if key.startswith('image.'):
            shape = batch_size, 1, 3, cfg.height, cfg.width
            batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
        elif key.startswith('features.'):
            batch[key] = torch.randn(batch_size, 1, *cfg.features).half()
        elif key == 'task':
            batch[key] = torch.randint(len(cfg.tasks), (batch_size, 1), dtype=torch.int32)
        else:
            batch[key] = torch.rand(batch_size, len(offsets), getattr(cfg, f'{key}_dim'))
    return batch


# ---- pictures and time ----

def resize_with_pad(image, size):
    """(B, 3, H, W) in 0..1 -> (B, 3, size, size), undistorted, black above or to the left."""
    H, W = image.shape[2:]
    ratio = max(H / size, W / size)
    h, w = int(H / ratio), int(W / ratio)
    image = F.interpolate(image, (h, w), mode='bilinear', align_corners=False)
    return F.pad(image, (size - w, 0, size - h, 0))


def shuffled(x, s):
    """Patches (B, n n, C), row by row -> (B, n/s n/s, s s C): a square of s x s becomes one, row by row."""
    n = math.isqrt(x.shape[1])
    return x.unflatten(1, (n // s, s, n // s, s)).transpose(2, 3).flatten(3).flatten(1, 2)


# same as pi0.py
def waves(t, C, low, high):
    """Times (B,) -> (B, C): sines, then cosines, of periods from low to high, evenly apart in their logs."""
    # the fastest angle reaches 1570, where float32 errs by 1e-4; mps has nothing better
    exact = torch.float32 if t.device.type == 'mps' else torch.float64
    period = low * (high / low) ** torch.linspace(0, 1, C // 2, dtype=exact, device=t.device)
    angle = t[:, None].to(exact) * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).float()


# same as pi0.py
def rotation(place, d):
    """Places of tokens (B, N) -> cosines and sines (B, 1, N, d/2): RoPE, arXiv 2104.09864, of base 10,000."""
    speed = 1e4 ** (-torch.arange(0, d, 2, device=place.device) / d)
    angle = (place[..., None] * speed)[:, None]
    return angle.cos(), angle.sin()


# same as pi0.py
def rotate(x, turn):
    """x (B, heads, N, d): entry i turns with entry i + d/2."""
    a, b = x.float().chunk(2, -1)
    cos, sin = turn
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


# ---- layers ----

# same as pi0.py
def heads_of(x, d):
    """(B, N, heads d) -> (B, heads, N, d)"""
    return x.unflatten(2, (-1, d)).transpose(1, 2)


# same as pi0.py
def attend(q, k, v, mask):
    """
    q (B, n, N, d) asks k, v (B, m, M, d), a group of n / m heads each of them -> (B, N, n d). mask (B, 1, N
    or 1, M). The group is laid into the sequence: to repeat k and v would cost memory for nothing.
    """
    B, n, N, d = q.shape
    m = k.shape[1]
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, n // m, 1)
    y = F.scaled_dot_product_attention(q.reshape(B, m, n // m * N, d), k, v, mask)
    return y.reshape(B, n, N, d).transpose(1, 2).flatten(2)


# same as pi0.py
class VisionLayer(nn.Module):
    """Patches x (B, N, C) look at each other, then an MLP; norms come before."""

    def __init__(self, width, mlp, heads):
        super().__init__()
        self.d = width // heads
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x):
        y = self.layer_norm1(x)
        q, k, v = (heads_of(f(y), self.d) for f in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.out_proj(attend(q, k, v, None))
        return x + self.fc2(F.gelu(self.fc1(self.layer_norm2(x)), approximate='tanh'))


# same as pi0.py
class Vision(nn.Module):
    """SigLIP, arXiv 2303.15343: pictures (B, 3, R, R) in -1..1 -> (B, patches, C), row by row."""

    def __init__(self, size, resolution, recomputes):
        super().__init__()
        width, depth, mlp, heads, patch = size
        self.grid, self.recomputes = resolution // patch, recomputes
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Embedding(self.grid ** 2, width)
        self.layers = nn.ModuleList([VisionLayer(width, mlp, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patch(x)
        # a smaller picture takes places spread over the whole table
        at = torch.arange(x.shape[3], device=x.device) * self.grid // x.shape[3]
        x = x.flatten(2).transpose(1, 2) + self.position((at[:, None] * self.grid + at).flatten())
        for layer in self.layers:
            x = recompute(layer, x, use_reentrant=False) if self.recomputes and self.training else layer(x)
        return self.norm(x)


class Layer(nn.Module):
    """
    Tokens x (B, N, C) look at past keys and values and at each other, as mask allows; then an MLP. -> x, and
    all keys and values, past ones first. last: of the VLM, whose answer nobody wants, so it ends with these.
    cross: of the expert, where x looks at past ones alone and makes none; `across` made them of the VLM's.
    """

    def __init__(self, size, last=False, cross=False):
        super().__init__()
        width, mlp, heads, kv, self.d = size
        self.cross = cross
        def linear(n, m): return nn.Linear(n, m, bias=False)
        self.input_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.k_proj, self.v_proj = (linear(kv * self.d if cross else width, kv * self.d) for _ in range(2))
        if last:
            return
        self.q_proj, self.o_proj = linear(width, heads * self.d), linear(heads * self.d, width)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.gate_proj, self.up_proj = linear(width, mlp), linear(width, mlp)
        self.down_proj = linear(mlp, width)

    def across(self, kv):
        """Keys and values of the VLM -> those of this layer; `encode` asks once for all steps."""
        k, v = (x.transpose(1, 2).flatten(2) for x in kv)
        return heads_of(self.k_proj(k), self.d), heads_of(self.v_proj(v), self.d)

    def forward(self, x, turn, past, mask, answer):
        y = self.input_layernorm(x)
        if self.cross:
            k, v = past
        else:
            k, v = rotate(heads_of(self.k_proj(y), self.d), turn), heads_of(self.v_proj(y), self.d)
            if past is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if not answer:
            return x, (k, v)
        x = x + self.o_proj(attend(rotate(heads_of(self.q_proj(y), self.d), turn), k, v, mask))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y)), (k, v)


class Stack(nn.Module):
    """
    The layers of Llama. Tokens x (B, N, C), real (B, N), behind a cache -> x and the cache with them. A
    cache: [(keys, values) of every layer, each (B, heads of keys, M, d)], and which of the M tokens are real
    (B, M). answer: else only the cache is wanted. causal: a token looks at those before it.
    """

    def __init__(self, size, depth, recomputes, cross=(), answers=True):
        super().__init__()
        self.layers = nn.ModuleList([Layer(size, not answers and i == depth - 1, i in cross)
                                     for i in range(depth)])
        self.recomputes = recomputes
        if answers:
            self.norm = nn.RMSNorm(size[0], eps=1e-5)

    def forward(self, x, real, cache=None, answer=True, causal=False):
        past, seen = cache or ([None] * len(self.layers), real[:, :0])
        place, kept, n = seen.sum(1, keepdim=True) + real.cumsum(1) - 1, [], x.shape[1]
        turns = [rotation(p, self.layers[0].d) for p in (place, place - place[:, :1])]
        own = real[:, None, None]                        # what is not real takes no place, and is not seen
        if causal:
            own = own & torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        # [0]: what is past and each other; [1], of cross layers: what is past alone
        masks = torch.cat([seen[:, None, None].expand(-1, -1, own.shape[2], -1), own], 3), seen[:, None, None]
        x = x.float()                                    # under autocast the sum of all layers stays exact
        for i, layer in enumerate(self.layers):
            args = x, turns[layer.cross], past[i], masks[layer.cross], answer or i < len(self.layers) - 1
            again = self.recomputes and self.training and torch.is_grad_enabled()
            x, kv = recompute(layer, *args, use_reentrant=False) if again else layer(*args)
            kept.append(kv)
        return (self.norm(x) if answer else None), (kept, torch.cat([seen, real], 1))


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg, depth, again = cfg, cfg.num_vlm_layers, cfg.gradient_checkpointing
        vlm, vision = sizes(cfg.vlm_model_name), sizes(cfg.vision_variant)
        W, C = vlm[0], int(vlm[0] * cfg.expert_width_multiplier)
        mlp = 256 * math.ceil(4 * int(2 * C / 3) / 256)  # as Llama: 8/3 of the width, rounded up
        every = cfg.self_attn_every_n_layers if cfg.attention_mode == 'cross_attn' else 1
        cross = [i for i in range(depth) if i % every]
        self.vision = Vision(vision[:5], vision[4] * vision[5], again)
        self.projector = nn.Linear(vision[0] * cfg.scale_factor ** 2, W, bias=False)
        self.embed_tokens = nn.Embedding(cfg.vocab_size, W)
        self.vlm = Stack(vlm, depth, again, answers=False)
        self.expert = Stack((C, mlp, *vlm[2:]), depth, again, cross)
        self.state_proj = nn.Linear(cfg.max_state_dim, W)
        self.action_in_proj = nn.Linear(cfg.max_action_dim, C)
        self.action_out_proj = nn.Linear(C, cfg.max_action_dim)
        self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * C, C), nn.Linear(C, C)
        self.start()
        frozen = [self.vision] * (cfg.freeze_vision_encoder or cfg.train_expert_only)
        frozen += [self.projector, self.embed_tokens, self.vlm] * cfg.train_expert_only
        for part in frozen + [self.state_proj] * (not cfg.train_state_proj):
            part.requires_grad_(False)
        for key in 'state', 'action':                    # of the training data, from meta.json
            for name, neutral in ('mean', 0.0), ('std', 1.0):
                self.register_buffer(f'{key}_{name}', torch.full((getattr(cfg, f'{key}_dim'),), neutral,
                                                                       device='cpu'))
        for name in OWN:
            self.register_buffer(name, torch.tensor(True, device='cpu'))     # `tell` fills them
        self.tell(cfg.tasks, cfg.tokenizer)
        self.register_load_state_dict_post_hook(lambda model, _: model.measure())

    # same as pi0.py
    @torch.no_grad()
    def start(self):
        """From scratch: weights of std 1 / sqrt(inputs), so that a network of any width starts near 1."""
        for name, p in self.named_parameters():
            if p.ndim > 1 and '.dense.' not in name:     # pi0.5's AdaRMS starts at 0: x passes
                p.normal_(std=(p.numel() / len(p)) ** -0.5)
            elif name.endswith('bias') or p.ndim > 1:
                p.zero_()

    # ---- units and text ----

    def normalise(self, x, key):
        return (x.float() - getattr(self, f'{key}_mean')) / (getattr(self, f'{key}_std') + 1e-8)

    def unnormalise(self, x, key):
        return x * getattr(self, f'{key}_std') + getattr(self, f'{key}_mean')

    def tell(self, tasks, tokenizer=''):
        """`task` numbers these sentences from now on. tokenizer: the file, where it was trained with one."""
        read = words.reader(tokenizer, self.cfg.vocab_size, FIRST, self.hashed, distinct=bool(tasks))
        rows = [read(task if task.endswith('\n') else task + '\n') for task in tasks or ('',)]
        self.text = words.table(rows, self.cfg.tokenizer_max_length, tasks).to(self.text.device)
        self.hashed.fill_(not tokenizer)
        self.measure()

    def measure(self):
        """The tokens of the longest prompt, as what is behind nobody sees; and if all sentences are there."""
        self.longest, self.told = words.longest(self.text), bool((self.text[:, 0] >= 0).all())

    def read(self, batch):
        """-> tokens (B, L), and which of them are real (B, L)."""
        text = self.text[batch['task'][:, -1].long()] if 'task' in batch else self.text[:1]
        text = text[:, :self.longest].expand(len(batch['state']), -1)
        return text.clamp(min=0), text >= 0

    def look(self, batch):
        """
        -> what the cameras give, each pictures (B, 3, R, R) in -1..1 or stored tokens (B, N, W), and for whom
        it is there [(B,)]; others change nothing.
        """
        views, there = [], []
        for camera in self.cfg.cameras:
            if (x := batch.get(f'features.{camera}')) is not None:
                views.append(x[:, -1].float())
            elif (x := batch.get(f'image.{camera}')) is not None:
                assert x.dtype == torch.uint8, f'image.{camera} is {x.dtype}, want uint8, 0 to 255'
                views.append(resize_with_pad(x[:, -1] / 255, self.cfg.image_resolution[0]) * 2 - 1)
            else:
                continue
            mask = batch.get(f'image_mask.{camera}')
            there.append(torch.ones(len(x), dtype=torch.bool, device=x.device) if mask is None else mask)
        if not views:
            raise ValueError(f'no picture: want image.{", image.".join(self.cfg.cameras)}, or some of them')
        return views, there

    # ---- the network ----

    def image_tokens(self, views):
        """What `look` gives -> tokens [(B, N, W)], before their scale; those that were stored stay."""
        pictures = [x for x in views if x.ndim == 4]     # what was stored has three dimensions
        if not pictures:
            return views
        with torch.no_grad() if self.cfg.freeze_vision_encoder else nullcontext():
            x = self.vision(torch.cat(pictures))         # all cameras at once
        x = [*self.projector(shuffled(x, self.cfg.scale_factor)).chunk(len(pictures))]
        return [x.pop(0) if view.ndim == 4 else view for view in views]

    def prefix(self, views, there, tokens, real):
        """Pictures and text -> tokens of the VLM (B, N, W), and which of them are real (B, N)."""
        parts = [*self.image_tokens(views), self.embed_tokens(tokens)]
        real = torch.cat([mask[:, None].expand(-1, parts[0].shape[1]) for mask in there] + [real], 1)
        return torch.cat([x * self.embed_tokens.embedding_dim ** 0.5 for x in parts], 1), real

    def encode(self, batch):
        """What all steps share: the cache of pictures and text, then of the state."""
        with torch.no_grad() if self.cfg.train_expert_only else nullcontext():
            cache = self.vlm(*self.prefix(*self.look(batch), *self.read(batch)), answer=False)[1]
        state = self.normalise(batch['state'][:, -1:], 'state')
        state = self.state_proj(F.pad(state, (0, self.cfg.max_state_dim - state.shape[2])))
        kv, seen = self.vlm(state, torch.ones_like(cache[1][:, :1]), cache, answer=False)[1]
        return [f.across(pair) if f.cross else pair for f, pair in zip(self.expert.layers, kv)], seen

    def suffix(self, x, t):
        """Noisy actions x (B, T, 32), times t (B,) -> their tokens (B, T, C)."""
        x = self.action_in_proj(x)
        time = waves(t, x.shape[2], self.cfg.min_period, self.cfg.max_period)
        both = torch.cat([x, time[:, None].expand_as(x)], 2)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))

    def velocity(self, x, t, cache):
        """Noisy actions x (B, T, 32), times t (B,), what `encode` gave -> its guess of e - a (B, T, 32)."""
        x = self.suffix(x, t)
        real = torch.ones_like(x[..., 0], dtype=torch.bool)
        return self.action_out_proj(self.expert(x, real, cache, causal=True)[0]).float()

    def times(self, B, device):
        """t (B,): Beta by two Gamma, which torch draws on any device."""
        a, b = (torch._standard_gamma(torch.full((B,), n, device=device)) for n in (1.5, 1.0))
        return a / (a + b) * 0.999 + 0.001

    # same as pi0.py
    def errors(self, batch):
        """Squared errors (draws B, T, 32) of all numbers, padded ones too."""
        cfg, D = self.cfg, self.cfg.draws
        kv, seen = self.encode(batch)                    # once, for all draws
        a = self.normalise(batch['action'], 'action').repeat(D, 1, 1)
        a = F.pad(a, (0, cfg.max_action_dim - cfg.action_dim))
        if D > 1:
            kv, seen = [[x.repeat(D, 1, 1, 1) for x in pair] for pair in kv], seen.repeat(D, 1)
        e = batch['noise'] if 'noise' in batch else torch.randn_like(a)
        t = batch['t'] if 't' in batch else self.times(len(a), a.device)
        x = t[:, None, None] * e + (1 - t[:, None, None]) * a
        return (self.velocity(x, t, (kv, seen)) - (e - a)).square()

    def forward(self, batch):
        """{'loss': scalar with grad}; noise (draws B, T, 32) and t (draws B,) are drawn, or the batch's."""
        real = batch['mask'].repeat(self.cfg.draws, 1)[..., None]
        error = self.errors(batch)[..., :self.cfg.action_dim] * real
        return {'loss': error.sum() / (real.sum().clamp(min=1) * error.shape[2])}

    # ---- acting ----

    @torch.no_grad()
    def sample(self, cache, x):
        """From noise x (B, T, 32) down the velocity -> actions, normalised."""
        n = self.calls = self.cfg.num_steps              # calls: for protocols/env.py
        for i in range(n):
            x = x - self.velocity(x, torch.full((len(x),), 1 - i / n, device=x.device), cache) / n
        return x

    # same as pi0.py
    @torch.no_grad()
    def act(self, obs, generators=None):
        """
        The actions that come next, (B, n_action_steps, A) in units of the data. obs: as in `windows`, cameras
        may be missing. generators: a torch.Generator per row, so that a row does not depend on the others.
        """
        cfg, device = self.cfg, self.action_in_proj.weight.device
        task = obs.get('task')
        if task is None and len(self.text) > 1:
            raise ValueError(f'task: which of the {len(self.text)} sentences? want (B, 1), its number')
        if task is not None and not 0 <= int(task.min()) <= int(task.max()) < len(self.text):
            raise ValueError(f'task: {int(task.min())}..{int(task.max())}, of {len(self.text)} sentences')
        seen = {key for key in obs if key.startswith(('image.', 'features.'))}
        if strange := {key for key in seen if key.partition('.')[2] not in cfg.cameras}:
            raise ValueError(f'{min(strange)}: none of its cameras, {", ".join(cfg.cameras)}')
        if not self.told:
            raise ValueError('its sentences are not there: give tasks and tokenizer, or tell(tasks, PATH)')
        cache = self.encode({key: x.to(device) for key, x in obs.items()})
        shape = cfg.chunk_size, cfg.max_action_dim
        x = torch.stack([torch.randn(shape, generator=g) for g in generators or [None] * len(cache[1])])
        x = self.sample(cache, x.to(device))
        return self.unnormalise(x[:, :cfg.n_action_steps, :cfg.action_dim], 'action')

    # ---- for train.py ----

    # same as pi0.py
    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW, decay for everything, as published; what is frozen has no state."""
        params = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample: 2 per weight and token, 4 per pair of tokens, head and number in a
        head; three times that where gradients are, once where weights are frozen, none for stored tokens.
        """
        cfg, (_, _, heads, _, d) = self.cfg, sizes(self.cfg.vlm_model_name)
        cells, T = (cfg.image_resolution[0] // sizes(cfg.vision_variant)[4]) ** 2, cfg.draws * cfg.chunk_size
        seen, depth = len(cfg.cameras) * cells, cfg.num_vlm_layers
        tokens = seen // cfg.scale_factor ** 2
        N = tokens + self.longest + 1                    # with the state
        looks = not cfg.features

        def cost(tokens, *parts):
            return 2 * tokens * sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1)
        vision = cost(looks * seen, self.vision.patch, self.vision.layers)
        vision += 4 * looks * seen * cells * len(self.vision.layers) * self.vision.norm.normalized_shape[0]
        vlm = cost(looks * tokens, self.projector) + cost(N, self.vlm) + 4 * (depth - 1) * N * N * heads * d
        across = [f for layer in self.expert.layers if layer.cross for f in (layer.k_proj, layer.v_proj)]
        expert = cost(T, self.expert, *(part for name, part in self.named_children() if 'action' in name))
        expert += cost(N - T, *across)                   # of what is seen, N tokens; above they counted as T
        expert += 4 * T * heads * d * (depth * N + (depth - len(across) // 2) * cfg.chunk_size)
        frozen = cfg.freeze_vision_encoder or cfg.train_expert_only
        return vision * (1 if frozen else 3) + vlm * (1 if cfg.train_expert_only else 3) + 3 * expert

    # ---- published weights ----

    @classmethod
    def from_pretrained(cls, src, stats='required', parts=('',), **over):
        """
        A folder that LeRobot saved of a smolvla -> the model in eval mode. over: Config fields, such as
        tokenizer, tasks. stats=None: weights alone, normalised by nothing. parts: the beginnings of the names
        of those that are wanted; others get no memory.
        """
        fixed = {'n_obs_steps': 1, 'adapt_to_pi_aloha': False, 'add_image_special_tokens': False}
        modes = {'VISUAL': 'IDENTITY', 'STATE': 'MEAN_STD', 'ACTION': 'MEAN_STD'}
        config, weights, facts = checkpoint.read_lerobot(src, 'smolvla', fixed, modes, stats)
        layers = config.get('num_expert_layers', -1)
        if layers > 0 and layers != config.get('num_vlm_layers', 16):
            sys.exit(f'{src}: num_expert_layers = {layers}: only as many as num_vlm_layers are possible here')
        size = config.get('resize_imgs_with_padding')    # null: as they are
        facts['image_resolution'] = size or (facts['height'], facts['width'])
        values = config | facts | over
        return checkpoint.lerobot_model(sys.modules[__name__], values, weights, src, parts)

    def sight(self):
        """A sha256 of what turns pictures into tokens."""
        digest = hashlib.sha256(repr(sizes(self.cfg.vision_variant)).encode())
        for name, p in sorted(self.named_parameters()):
            if name.startswith(EYES):
                digest.update(p.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()

    def suits(self, meta):
        """ValueError where the data hold other tokens than this model makes of their pictures."""
        check(self.cfg)                                  # again: contract.meet may have set features
        made = meta.get('features') or {}
        if self.cfg.features and made.get('sha256') != self.sight():
            raise ValueError(f'its features are image tokens of {made.get("weights")}, whose weights are not '
                             'those here: start from them, --init_from=FOLDER, or store others')


# ---- the names of published weights ----

BODY = 'vlm_with_expert.vlm.'
KEYS = (                                                 # ours, theirs; from top to bottom
    (r'^vision\.patch\.', f'{BODY}model.vision_model.embeddings.patch_embedding.'),
    (r'^vision\.position\.', f'{BODY}model.vision_model.embeddings.position_embedding.'),
    (r'^vision\.layers\.', f'{BODY}model.vision_model.encoder.layers.'),
    (r'^vision\.norm\.', f'{BODY}model.vision_model.post_layernorm.'),
    (r'^projector\.', f'{BODY}model.connector.modality_projection.proj.'),
    (r'^(?=embed_tokens)', f'{BODY}model.text_model.'),
    (r'^vlm\.', f'{BODY}model.text_model.'),
    (r'^expert\.', 'vlm_with_expert.lm_expert.'),
    (r'\.([qkvo]|out)_proj\.', r'.self_attn.\1_proj.'),
    (r'\.(gate_proj|up_proj|down_proj|fc1|fc2)\.', r'.mlp.\1.'))
HEAD = f'{BODY}lm_head.weight'


# same as pi0.py
def published(key):
    """Our name of a weight -> theirs, without the leading `model.`"""
    for ours, theirs in KEYS:
        key = re.sub(ours, theirs, key)
    return key


def dead(cfg):
    """{published name: shape} of weights that nothing reads, so that they are not built."""
    W, mlp, heads, _, d = sizes(cfg.vlm_model_name)
    body = f'{BODY}model.text_model.'
    last = f'{body}layers.{cfg.num_vlm_layers - 1}.'
    shapes = {f'{last}self_attn.q_proj': (heads * d, W), f'{last}self_attn.o_proj': (W, heads * d),
              f'{last}mlp.gate_proj': (mlp, W), f'{last}mlp.up_proj': (mlp, W),
              f'{last}mlp.down_proj': (W, mlp), f'{last}post_attention_layernorm': (W,), f'{body}norm': (W,)}
    return {f'{key}.weight': shape for key, shape in shapes.items()} | {HEAD: (cfg.vocab_size, W)}


if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    model = Model(Config(**SMALL))
    batch = example(model.cfg, batch_size=2)
    out = model(batch)
    out['loss'].backward()
    chunk = model.eval().act(batch)
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters | loss {out["loss"].item():.4f} | sees '
          f'{", ".join(windows(model.cfg))} -> actions {tuple(chunk.shape)}')
