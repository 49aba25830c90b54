"""
pi0 and pi0.5: a vision-language model that looks and reads once, and a small transformer beside it, the
action expert, that turns noise into a chunk of actions in ten steps.

Black et al. 2024, arXiv 2410.24164; pi05 = True: Physical Intelligence 2025, arXiv 2504.16054. As LeRobot and
openpi build them; published weights go in key by key (`KEYS`). a is a chunk of actions, e Gaussian noise, and
t = 1 is noise, t = 0 data:

    training    x_t = t e + (1 - t) a,   t = 0.999 Beta(1.5, 1) + 0.001, so more often near the noise
                loss: mean of |velocity(x_t, t, cache) - (e - a)|^2 over the numbers of the robot
    sampling    x = e;  for t = 1, 0.9, ... 0.1:  x <- x - 0.1 velocity(x, t, cache)

    pictures    SigLIP -> projector: 256 tokens each      text     PaliGemma's embeddings, times sqrt(width)
    state       a linear layer: 1 token (pi05: no token, its numbers are words of the text)
    actions     a linear layer of x_t, an MLP with t (pi05: instead t scales, shifts and gates every norm)
    units       mean 0, std 1 (pi05: 98 % of the numbers in -1..1); prompts of up to 48 tokens (pi05: 200)

    who sees     pictures   text   state   actions
    pictures        x        x       .        .        the VLM: 18 layers of Gemma 2B
    text            x        x       .        .
    state           x        x       x        .        the expert: 18 layers of width 1024; layer i reads the
    actions         x        x       x        x        keys and values of layer i of all that it sees
A row looks at the columns with an x, both ways within a block: nothing is causal.

Nothing sees what follows, so nothing of it needs to be there: `Model.encode` runs pictures and text through
the VLM, then the state through the expert, and keeps their keys and values. `Model.velocity` runs the actions
over these, once per step; training is one such step. The VLM's answers are never read, so its last layer
ends with keys and values (`dead`).

Shapes: B samples, N tokens, T = chunk_size actions, 32 = max_action_dim numbers in each, zeros behind those
of the robot. image.<camera> (B, 1, 3, H, W) uint8, state (B, 1, S), task (B, 1) the number of a sentence,
action (B, T, A). Read first `Layer`, `Stack`, then `encode`, `velocity`, `forward`.

Paper says                                      code does (openpi, LeRobot, here)
    time runs from noise 0 to data 1                the other way round, as above
    pads actions to 18 numbers                      to 32
    pi0.5 plans in words, has FAST tokens           the open weights have the flow alone
Nobody masks actions beyond the end of an episode: they repeat the last one and teach to hold still.
openpi draws crops, turns and colours in training; LeRobot and we do not.

Parameters, millions: vision 412, projector 2, VLM 2,399 (words 527), expert 311, the rest 3 (pi05: 428, 2):
3,128,992,528 (pi05: 3,244,377,872). With three cameras and the longest prompts pi0 takes 4.2 TFLOP to act
(vision 0.7, VLM 3.2, ten steps 0.4) and 11.5 to train on a sample; pi0.5 4.8 and 13.4.
"""
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
SAMPLING = ('n_action_steps', 'num_inference_steps')
META, ENTERED = True, ('act',)           # built without memory, for a file's weights; methods for fsdp
INITIAL = {'tokenizer': words.SAVED}     # a checkpoint has its sentences in tokens
OWN = ('text', 'numbers', 'after', 'hashed')             # buffers that stay with weights from elsewhere
AGREE = {'hashed': words.KINDS}          # of these, what weights from elsewhere must have likewise
MAY_BE_0 = 'empty_cameras', 'drop_n_last_frames', 'tokenizer_max_length'
POSITIVE = 'time_sampling_beta_alpha', 'time_sampling_beta_beta', 'min_period', 'max_period'
BOS = 2                       # PaliGemma's first token of every text
SIZES = {                     # width, layers, width of the MLP, heads, heads of keys, numbers in a head
    'gemma_2b': (2048, 18, 16384, 8, 1, 256), 'gemma_300m': (1024, 18, 4096, 8, 1, 256),
    'so400m': (1152, 27, 4304, 16, 14)}                  # width, layers, MLP, heads, px of a patch


@dataclass
class Config:
    pi05: bool = False            # pi0.5
    # the network: names of SIZES, or numbers like 64x3x128x4x1x16
    paligemma_variant: str = 'gemma_2b'      # the VLM
    action_expert_variant: str = 'gemma_300m'            # its layers, heads as those of the VLM
    vision_variant: str = 'so400m'           # SigLIP
    vocab_size: int = 257152      # tokens that the VLM knows
    # what is seen
    image_resolution: tuple = (224, 224)     # px, what pictures are scaled to; a square
    empty_cameras: int = 0        # LeRobot's masked pictures: they change nothing, so here none is computed
    tokenizer: str = ''           # tokenizer.json of PaliGemma; '': words by a hash, to train from scratch
    tokenizer_max_length: int = 0            # tokens in a prompt; 0: 48, pi05 200
    max_state_dim: int = 32       # room for the state, filled up with zeros
    # the chunk
    chunk_size: int = 50          # actions, T
    n_action_steps: int = 50      # actions carried out before it looks again
    max_action_dim: int = 32      # room for an action, filled up with zeros
    drop_n_last_frames: int = 0   # at the end of an episode, where no chunk begins
    # time
    num_inference_steps: int = 10            # calls of the expert per chunk
    time_sampling_beta_alpha: float = 1.5    # t = offset + scale Beta(alpha, beta)
    time_sampling_beta_beta: float = 1.0     # 1: the density grows up to t = 1
    time_sampling_scale: float = 0.999       # so that t stays ...
    time_sampling_offset: float = 0.001      # ... above 0
    min_period: float = 0.004     # of the sinusoids of t
    max_period: float = 4.0       # of the slowest
    # training
    draws: int = 1                # of noise and time per observation, which is encoded once; published: 1
    freeze_vision_encoder: bool = False      # SigLIP keeps its weights
    train_expert_only: bool = False          # SigLIP, projector, embeddings and VLM keep theirs
    gradient_checkpointing: bool = False     # compute layers again instead of keeping what is in them
    # the data: meta.json decides
    tasks: tuple = ()             # sentences; (): the data have none, the prompt is a line break
    cameras: tuple = ('top',)     # image.<camera>; their order counts
    height: int = 224             # px
    width: int = 224              # px
    action_dim: int = 7           # numbers in an action of the robot
    state_dim: int = 7            # numbers in its state

    n_action = property(lambda self: self.n_action_steps)            # the name that protocols/ know for it


SMALL = dict(paligemma_variant='32x2x64x4x1x8', action_expert_variant='32x2x64x4x1x8', vocab_size=4096,
             vision_variant='32x2x64x2x8', image_resolution=(16, 16), height=16, width=16, action_dim=2,
             state_dim=2, max_action_dim=4, max_state_dim=4, tokenizer_max_length=8, chunk_size=8,
             n_action_steps=8, tasks=('go left', 'go right'))
PRESETS = {
    'tiny': Config(**SMALL),
    'cpu': Config(**SMALL | dict(paligemma_variant='64x3x128x4x1x16', action_expert_variant='64x3x128x4x1x16',
                                 vision_variant='64x3x128x4x4', draws=4)),
    'full': Config()}


def sizes(variant):
    """A name of SIZES, or numbers with x between them -> a tuple of numbers."""
    return SIZES.get(variant) or tuple(int(n) for n in variant.split('x') if n.isdigit())


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    for key, n in ('paligemma_variant', 6), ('action_expert_variant', 6), ('vision_variant', 5):
        if len(found := sizes(getattr(cfg, key))) != n or min(found) < 1:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: want {n} numbers with x between them, or '
                             f'{", ".join(name for name in SIZES if len(SIZES[name]) == n)}')
    vlm, expert = sizes(cfg.paligemma_variant), sizes(cfg.action_expert_variant)
    width, _, _, heads, patch = sizes(cfg.vision_variant)
    if (vlm[1], *vlm[3:]) != (expert[1], *expert[3:]) or vlm[3] % vlm[4] or vlm[5] % 2 or expert[0] % 2:
        raise ValueError(f'paligemma_variant = {cfg.paligemma_variant!r}, action_expert_variant = '
                         f'{cfg.action_expert_variant!r}: want as many layers and heads in both, heads a '
                         'multiple of those of keys, and even widths')
    for key, value in vars(cfg).items():
        if type(value) is int and value < (key not in MAY_BE_0):
            raise ValueError(f'{key} = {value}: must be at least {int(key not in MAY_BE_0)}')
        if key in POSITIVE and not 0 < value < math.inf:
            raise ValueError(f'{key} = {value}: must be above 0, and finite')
    low, high = cfg.time_sampling_offset, cfg.time_sampling_offset + cfg.time_sampling_scale
    if not 0 <= low <= high <= 1 + 1e-9:
        raise ValueError(f'time_sampling_offset = {low}, time_sampling_scale = {cfg.time_sampling_scale}: t '
                         f'would lie in {low}..{high:g}; it must stay in 0..1')
    for key, n, most in (('state_dim', cfg.state_dim, cfg.max_state_dim),
                         ('action_dim', cfg.action_dim, cfg.max_action_dim)):
        if n > most:
            raise ValueError(f'{key} = {n}: max_{key} = {most} have room; published weights know no more')
    if cfg.n_action_steps > cfg.chunk_size:
        raise ValueError(f'n_action_steps = {cfg.n_action_steps}: a chunk has chunk_size = {cfg.chunk_size}')
    R = cfg.image_resolution
    if width % heads or len(R) != 2 or R[0] != R[1] or R[0] < patch or R[0] % patch:
        raise ValueError(f'image_resolution = {R}, vision_variant = {cfg.vision_variant!r}: want a square of '
                         f'patches of {patch} px, and a width that is a multiple of {heads} heads')
    if len({*cfg.cameras}) < max(1, len(cfg.cameras)):
        raise ValueError(f'cameras = {cfg.cameras}: want one or more, each once')


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    keys = [*(f'image.{camera}' for camera in cfg.cameras), 'state', *['task'] * bool(cfg.tasks)]
    return dict.fromkeys(keys, range(1)) | {'action': range(cfg.chunk_size)}


def example(cfg, batch_size):
    """A random batch, as train.py gives them."""
    batch = {'mask': torch.ones(batch_size, cfg.chunk_size, dtype=bool)}
    for key, offsets in windows(cfg).items():
        if key.startswith('image.'):
            shape = batch_size, 1, 3, cfg.height, cfg.width
            batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
        elif key == 'task':
            batch[key] = torch.randint(len(cfg.tasks), (batch_size, 1), dtype=torch.int32)
        else:
            batch[key] = torch.rand(batch_size, len(offsets), getattr(cfg, f'{key}_dim'))
    return batch


# ---- text ----

def prompt(task, bins=None):
    """What the VLM reads. bins: numbers of the state, for pi05."""
    if bins is None:
        return task if task.endswith('\n') else task + '\n'
    task = task.strip().replace('_', ' ').replace('\n', ' ')
    return f'Task: {task}, State: {" ".join(map(str, bins))};\nAction: '


def bins_of(state):
    """A state in -1..1 -> its numbers in the prompt of pi05: 0..255, and -1 for what is below -1."""
    edges = torch.linspace(-1, 1, 257, device=state.device)[:-1]
    return torch.bucketize(state, edges, right=True) - 1


# ---- pictures and time ----

def resize_with_pad(image, size):
    """(B, 3, H, W) in 0..1 -> (B, 3, size, size), undistorted, in the middle of black."""
    H, W = image.shape[2:]
    if H == W == size:
        return image
    ratio = max(H / size, W / size)
    h, w = int(H / ratio), int(W / ratio)
    image = F.interpolate(image, (h, w), mode='bilinear', align_corners=False).clamp(0, 1)
    top, left = (size - h) // 2, (size - w) // 2
    return F.pad(image, (left, size - w - left, top, size - h - top))


def waves(t, C, low, high):
    """Times (B,) -> (B, C): sines, then cosines, of periods from low to high, evenly apart in their logs."""
    # the fastest angle reaches 1570, where float32 errs by 1e-4; mps has nothing better
    exact = torch.float32 if t.device.type == 'mps' else torch.float64
    period = low * (high / low) ** torch.linspace(0, 1, C // 2, dtype=exact, device=t.device)
    angle = t[:, None].to(exact) * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).float()


def rotation(place, d):
    """Places of tokens (B, N) -> cosines and sines (B, 1, N, d/2): RoPE, arXiv 2104.09864, of base 10,000."""
    speed = 1e4 ** (-torch.arange(0, d, 2, device=place.device) / d)
    angle = (place[..., None] * speed)[:, None]
    return angle.cos(), angle.sin()


def rotate(x, turn):
    """x (B, heads, N, d): entry i turns with entry i + d/2."""
    a, b = x.float().chunk(2, -1)
    cos, sin = turn
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


# ---- layers ----

def heads_of(x, d):
    """(B, N, heads d) -> (B, heads, N, d)"""
    return x.unflatten(2, (-1, d)).transpose(1, 2)


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


class Norm(nn.Module):
    """RMSNorm (1 + weight), and a gate of 1; AdaRMS: a condition (B, cond) scales, shifts and gates."""

    def __init__(self, width, cond):
        super().__init__()
        if cond:
            self.dense = nn.Linear(cond, 3 * width)
        else:
            self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x, cond):
        x = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
        if cond is None:
            return x * (1 + self.weight), 1.0
        scale, shift, gate = self.dense(cond)[:, None].chunk(3, -1)
        return x * (1 + scale) + shift, gate


class Layer(nn.Module):
    """
    Tokens x (B, N, C) look at past keys and values and at each other, as mask allows; then an MLP. -> x, and
    all keys and values, past ones first. last: of the VLM, whose answer nobody wants.
    """

    def __init__(self, size, cond, last):
        super().__init__()
        width, _, mlp, heads, kv, self.d = size
        def linear(n, m): return nn.Linear(n, m, bias=False)
        self.input_layernorm = Norm(width, cond)
        self.k_proj, self.v_proj = linear(width, kv * self.d), linear(width, kv * self.d)
        if last:
            return
        self.q_proj, self.o_proj = linear(width, heads * self.d), linear(heads * self.d, width)
        self.post_attention_layernorm = Norm(width, cond)
        self.gate_proj, self.up_proj = linear(width, mlp), linear(width, mlp)
        self.down_proj = linear(mlp, width)

    def forward(self, x, turn, past, mask, cond, answer):
        y, gate = self.input_layernorm(x, cond)
        k, v = rotate(heads_of(self.k_proj(y), self.d), turn), heads_of(self.v_proj(y), self.d)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if not answer:
            return x, (k, v)
        q = rotate(heads_of(self.q_proj(y), self.d), turn)
        x = x + gate * self.o_proj(attend(q, k, v, mask))
        y, gate = self.post_attention_layernorm(x, cond)
        y = self.down_proj(F.gelu(self.gate_proj(y), approximate='tanh') * self.up_proj(y))
        return x + gate * y, (k, v)


class Stack(nn.Module):
    """
    The layers of Gemma, arXiv 2403.08295. Tokens x (B, N, C), real (B, N), behind a cache -> x and the cache
    with them. A cache: [(keys, values) of every layer, each (B, heads of keys, M, d)], and which of the M
    tokens are real (B, M). answer: else only the cache is wanted.
    """

    def __init__(self, size, recomputes, cond=0, answers=True):
        super().__init__()
        width, depth = size[:2]
        self.layers = nn.ModuleList([Layer(size, cond, not answers and i == depth - 1) for i in range(depth)])
        self.recomputes = recomputes
        if answers:
            self.norm = Norm(width, cond)

    def forward(self, x, real, cache=None, cond=None, answer=True):
        past, seen = cache or ([None] * len(self.layers), real[:, :0])
        place = seen.sum(1, keepdim=True) + real.cumsum(1) - 1       # what is not real takes no place
        kept = []
        seen = torch.cat([seen, real], 1)
        turn, mask = rotation(place, self.layers[0].d), seen[:, None, None]
        x = x.float()                                    # under autocast the sum of all layers stays exact
        for i, layer in enumerate(self.layers):
            args = x, turn, past[i], mask, cond, answer or i < len(self.layers) - 1
            again = self.recomputes and self.training and torch.is_grad_enabled()
            x, kv = recompute(layer, *args, use_reentrant=False) if again else layer(*args)
            kept.append(kv)
        return (self.norm(x, cond)[0] if answer else None), (kept, seen)


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg = cfg
        vlm, expert, vision = (sizes(v) for v in (cfg.paligemma_variant, cfg.action_expert_variant,
                                                  cfg.vision_variant))
        (W, C), again = (vlm[0], expert[0]), cfg.gradient_checkpointing
        self.vision = Vision(vision, cfg.image_resolution[0], again)
        self.projector = nn.Linear(vision[0], W)
        self.embed_tokens = nn.Embedding(cfg.vocab_size, W)
        self.vlm = Stack(vlm, again, answers=False)
        self.expert = Stack(expert, again, cond=C * cfg.pi05)
        self.action_in_proj = nn.Linear(cfg.max_action_dim, C)
        self.action_out_proj = nn.Linear(C, cfg.max_action_dim)
        if cfg.pi05:
            self.time_mlp_in, self.time_mlp_out = nn.Linear(C, C), nn.Linear(C, C)
        else:
            self.state_proj = nn.Linear(cfg.max_state_dim, C)
            self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * C, C), nn.Linear(C, C)
        self.statistics = (('q01', -1.0), ('q99', 1.0)) if cfg.pi05 else (('mean', 0.0), ('std', 1.0))
        self.start()
        frozen = [self.vision] * (cfg.freeze_vision_encoder or cfg.train_expert_only)
        frozen += [self.projector, self.embed_tokens, self.vlm] * cfg.train_expert_only
        for part in frozen:
            part.requires_grad_(False)
        for key in 'state', 'action':                    # of the training data, from meta.json
            for name, neutral in self.statistics:
                self.register_buffer(f'{key}_{name}', torch.full((getattr(cfg, f'{key}_dim'),), neutral,
                                                                       device='cpu'))
        for name in OWN if cfg.pi05 else ('text', 'hashed'):
            self.register_buffer(name, torch.tensor(True, device='cpu'))
        self.tell(cfg.tasks, cfg.tokenizer)
        self.register_load_state_dict_post_hook(lambda model, _: model.measure())

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
        """Numbers in units of the data -> mean 0, std 1; pi05: 98 % of them in -1..1."""
        a, b = (getattr(self, f'{key}_{name}') for name, _ in self.statistics)
        if self.cfg.pi05:
            return 2 * (x.float() - a) / (b - a).masked_fill(a == b, 1e-8) - 1
        return (x.float() - a) / (b + 1e-8)

    def unnormalise(self, x, key):
        a, b = (getattr(self, f'{key}_{name}') for name, _ in self.statistics)
        return (x + 1) * (b - a) / 2 + a if self.cfg.pi05 else x * b + a

    def tell(self, tasks, tokenizer=''):
        """`task` numbers these sentences from now on. tokenizer: the file, where it was trained with one."""
        cfg, L = self.cfg, self.cfg.tokenizer_max_length or (200 if self.cfg.pi05 else 48)
        read = words.reader(tokenizer, cfg.vocab_size, ('<bos>', BOS), self.hashed, distinct=bool(tasks))
        tasks, state = tasks or ('',), 0
        rows = [read(prompt(task, () if cfg.pi05 else None).removesuffix(' ;\nAction: ')) for task in tasks]
        if cfg.pi05:
            numbers, after = [read(f' {i}') for i in (*range(256), -1)], read(';\nAction: ')
            bins = [(37 * i + 255) % 257 - 1 for i in range(cfg.state_dim)]
            for task, row in zip(tasks, rows):           # no token may reach over the edge of a piece
                if sum([numbers[i] for i in bins], row) + after != read(prompt(task, bins)):
                    raise ValueError(f'tokenizer = {tokenizer}: {prompt(task, bins)!r} has other tokens than '
                                     'its pieces; want the tokenizer.json of PaliGemma')
            state = cfg.state_dim * max(map(len, numbers)) + len(after)
            self.numbers = words.table(numbers, 8, range(257)).to(self.text.device)
            self.after = words.table([after], 16, ['Action']).to(self.text.device)
        rows = [[BOS, *row] if row else [] for row in rows]
        self.text = words.table(rows, L, tasks, state).to(self.text.device)
        self.hashed.fill_(not tokenizer)
        self.measure()

    def measure(self):
        """The tokens of the longest prompt, as what is behind nobody sees; and if all sentences are there."""
        self.longest, self.told = words.longest(self.text), bool((self.text[:, 0] >= 0).all())
        if self.cfg.pi05:
            self.longest += self.cfg.state_dim * words.longest(self.numbers) + words.longest(self.after)

    def read(self, batch):
        """-> tokens (B, L), and which of them are real (B, L)."""
        state = batch['state'][:, -1]
        text = self.text[batch['task'][:, -1].long()] if 'task' in batch else self.text[:1]
        text = text[:, :self.longest].expand(len(state), -1)
        if self.cfg.pi05:
            numbers = self.numbers[bins_of(self.normalise(state, 'state')) % 257]    # -1 is row 256
            pieces = torch.cat([text, numbers.flatten(1), self.after.expand(len(state), -1)], 1)
            text = words.joined(pieces, self.longest)
        return text.clamp(min=0), text >= 0

    def look(self, batch):
        """-> pictures [(B, 3, R, R) in -1..1], and for whom they are there [(B,)]; others change nothing."""
        pictures, there = [], []
        for key in [f'image.{camera}' for camera in self.cfg.cameras if f'image.{camera}' in batch]:
            image = batch[key][:, -1]
            assert image.dtype == torch.uint8, f'{key} is {image.dtype}, want uint8, 0 to 255'
            pictures.append(resize_with_pad(image / 255, self.cfg.image_resolution[0]) * 2 - 1)
            mask = batch.get(key.replace('image.', 'image_mask.'))
            there.append(torch.ones_like(image[:, 0, 0, 0], dtype=torch.bool) if mask is None else mask)
        if not pictures:
            raise ValueError(f'no picture: want image.{", image.".join(self.cfg.cameras)}, or some of them')
        return pictures, there

    # ---- the network ----

    def prefix(self, pictures, there, tokens, real):
        """Pictures and text -> tokens of the VLM (B, N, W), and which of them are real (B, N)."""
        with torch.no_grad() if self.cfg.freeze_vision_encoder else nullcontext():
            seen = self.vision(torch.cat(pictures))      # all cameras at once
        seen = self.projector(seen).chunk(len(pictures))
        real = torch.cat([mask[:, None].expand(-1, seen[0].shape[1]) for mask in there] + [real], 1)
        text = self.embed_tokens(tokens) * self.embed_tokens.embedding_dim ** 0.5
        return torch.cat([*seen, text], 1), real

    def encode(self, batch):
        """What all steps share: the cache of pictures and text, then of the state."""
        with torch.no_grad() if self.cfg.train_expert_only else nullcontext():
            cache = self.vlm(*self.prefix(*self.look(batch), *self.read(batch)), answer=False)[1]
        if self.cfg.pi05:
            return cache
        state = self.normalise(batch['state'][:, -1:], 'state')
        state = self.state_proj(F.pad(state, (0, self.cfg.max_state_dim - state.shape[2])))
        return self.expert(state, torch.ones_like(cache[1][:, :1]), cache, answer=False)[1]

    def suffix(self, x, t):
        """Noisy actions x (B, T, 32), times t (B,) -> their tokens (B, T, C), and pi05's condition (B, C)."""
        cfg, x = self.cfg, self.action_in_proj(x)
        time = waves(t, x.shape[2], cfg.min_period, cfg.max_period)
        if cfg.pi05:
            return x, F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))
        both = torch.cat([x, time[:, None].expand_as(x)], 2)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both))), None

    def velocity(self, x, t, cache):
        """Noisy actions x (B, T, 32), times t (B,), what `encode` gave -> its guess of e - a (B, T, 32)."""
        x, cond = self.suffix(x, t)
        real = torch.ones_like(x[..., 0], dtype=torch.bool)
        return self.action_out_proj(self.expert(x, real, cache, cond)[0]).float()

    def times(self, B, device):
        """t (B,): Beta by two Gamma, which torch draws on any device."""
        cfg = self.cfg
        a, b = (torch._standard_gamma(torch.full((B,), n, device=device))
                for n in (cfg.time_sampling_beta_alpha, cfg.time_sampling_beta_beta))
        return a / (a + b) * cfg.time_sampling_scale + cfg.time_sampling_offset

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
        return {'loss': self.errors(batch)[..., :self.cfg.action_dim].mean()}

    # ---- acting ----

    @torch.no_grad()
    def sample(self, cache, x):
        """From noise x (B, T, 32) down the velocity -> actions, normalised."""
        n = self.calls = self.cfg.num_inference_steps    # calls: for protocols/env.py
        for i in range(n):
            x = x - self.velocity(x, torch.full((len(x),), 1 - i / n, device=x.device), cache) / n
        return x

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

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW, decay for everything, as published; what is frozen has no state."""
        params = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample: 2 per weight and token, 4 per pair of tokens, head and number in a
        head; three times that where gradients are, once where weights are frozen.
        """
        cfg, (_, depth, _, heads, _, d) = self.cfg, sizes(self.cfg.paligemma_variant)
        cells, D, T = self.vision.grid ** 2, cfg.draws, cfg.draws * cfg.chunk_size
        seen = len(cfg.cameras) * cells
        N = seen + self.longest

        def cost(tokens, *parts):
            return 2 * tokens * sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1)
        vision = cost(seen, self.vision.patch, self.vision.layers)
        vision += 4 * seen * cells * len(self.vision.layers) * self.projector.in_features
        vlm = cost(seen, self.projector) + cost(N, self.vlm) + 4 * (depth - 1) * N * N * heads * d
        dense = [part.dense for part in self.expert.modules() if hasattr(part, 'dense')]     # once per draw
        expert = cost(T, self.expert, self.action_in_proj, self.action_out_proj) - cost(T - D, *dense)
        expert += 4 * depth * T * (N + 1 - cfg.pi05 + cfg.chunk_size) * heads * d
        if cfg.pi05:
            expert += cost(D, self.time_mlp_in, self.time_mlp_out)
        else:
            expert += cost(T, self.action_time_mlp_in, self.action_time_mlp_out)
            expert += cost(1, self.state_proj, self.expert) + 4 * depth * (N + 1) * heads * d
        frozen = cfg.freeze_vision_encoder or cfg.train_expert_only
        return vision * (1 if frozen else 3) + vlm * (1 if cfg.train_expert_only else 3) + 3 * expert

    # ---- published weights ----

    @classmethod
    def from_pretrained(cls, src, stats='required', **over):
        """
        A folder that LeRobot saved since October 2025, of a pi0 or a pi05 -> the model in eval mode. over:
        Config fields, such as tokenizer, tasks. stats=None: weights alone, normalised by nothing.
        """
        fixed = {'n_obs_steps': 1, 'rtc_training_max_delay': 0, **dict.fromkeys(
            ('use_relative_actions', 'use_visual_memory', 'use_proprioceptive_memory'), False)}
        modes = {kind: {'VISUAL': 'IDENTITY', 'STATE': mode, 'ACTION': mode}
                 for kind, mode in (('pi0', 'MEAN_STD'), ('pi05', 'QUANTILES'))}
        config, weights, facts = checkpoint.read_lerobot(src, modes, fixed, stats=stats)
        values = config | facts | {'pi05': config['type'] == 'pi05'} | over
        if any('.paligemma.vision_tower.' in f'.{key}' for key in weights):
            sys.exit(f'{src}: names of before October 2025; load and save it once with LeRobot 0.4 or later')
        if values['pi05']:                               # some files use pi0's names
            weights = {key.replace('action_time_mlp', 'time_mlp'): x for key, x in weights.items()}
        return checkpoint.lerobot_model(sys.modules[__name__], values, weights, src)


# ---- the names of published weights ----

BODY = 'paligemma_with_expert.paligemma.'
KEYS = (                                                 # ours, theirs; from top to bottom
    (r'^vision\.patch\.', f'{BODY}model.vision_tower.vision_model.embeddings.patch_embedding.'),
    (r'^vision\.position\.', f'{BODY}model.vision_tower.vision_model.embeddings.position_embedding.'),
    (r'^vision\.layers\.', f'{BODY}model.vision_tower.vision_model.encoder.layers.'),
    (r'^vision\.norm\.', f'{BODY}model.vision_tower.vision_model.post_layernorm.'),
    (r'^projector\.', f'{BODY}model.multi_modal_projector.linear.'),
    (r'^(?=embed_tokens)', f'{BODY}model.language_model.'),
    (r'^vlm\.', f'{BODY}model.language_model.'),
    (r'^expert\.', 'paligemma_with_expert.gemma_expert.model.'),
    (r'\.([qkvo]|out)_proj\.', r'.self_attn.\1_proj.'),
    (r'\.(gate_proj|up_proj|down_proj|fc1|fc2)\.', r'.mlp.\1.'))
HEAD = f'{BODY}lm_head.weight'                           # the embedding's name in base files


def published(key):
    """Our name of a weight -> theirs, without the leading `model.`"""
    for ours, theirs in KEYS:
        key = re.sub(ours, theirs, key)
    return key


def dead(cfg):
    """{published name: shape} of weights that nothing reads, so that they are not built."""
    (W, depth, mlp, heads, _, d), C = sizes(cfg.paligemma_variant), sizes(cfg.action_expert_variant)[0]
    body, last = f'{BODY}model.language_model.', f'{BODY}model.language_model.layers.{depth - 1}.'
    shapes = {f'{last}self_attn.q_proj': (heads * d, W), f'{last}self_attn.o_proj': (W, heads * d),
              f'{last}mlp.gate_proj': (mlp, W), f'{last}mlp.up_proj': (mlp, W),
              f'{last}mlp.down_proj': (W, mlp), f'{last}post_attention_layernorm': (W,), f'{body}norm': (W,),
              'paligemma_with_expert.gemma_expert.lm_head': (cfg.vocab_size, C)}
    return {f'{key}.weight': shape for key, shape in shapes.items()}


if __name__ == '__main__':   # lesson zero: the whole life of both models in seconds on a CPU
    for cfg in Config(**SMALL), Config(**SMALL | {'pi05': True, 'tokenizer_max_length': 32}):
        torch.manual_seed(0)
        model = Model(cfg)
        batch = example(cfg, batch_size=2)
        out = model(batch)
        out['loss'].backward()
        chunk = model.eval().act(batch)
        print(f"pi{0.5 * cfg.pi05:g}: {sum(p.numel() for p in model.parameters()):,} parameters | loss "
              f"{out['loss'].item():.4f} | sees {', '.join(windows(cfg))} -> actions {tuple(chunk.shape)}")
