"""
ACT: action chunking with a transformer. A policy looks once and says what to do for the next T steps, in one
pass of an encoder-decoder; trained by plain regression of what demonstrators did.

Zhao et al. 2023, arXiv 2304.13705, in the form, and with the parameter names, of Hugging Face's LeRobot.
Demonstrators differ, and what lies between two good ways may be a bad one. So in training a second encoder
sees the very actions that are to be guessed, and sums up their style in a few numbers z:

    mu, log_var = VAE encoder(state, a_1..T)   a Gaussian over z
    z    = mu + exp(log_var / 2) eps           eps ~ N(0, 1); in acting, and in validation, z = 0
    a^   = decoder(encoder(z, state, cameras))
    loss = mean |a^ - a| + kl_weight KL        KL = sum over z of (mu^2 + e^log_var - 1 - log_var) / 2

State and actions are normalised; the mean leaves out padded actions (`padding`). At the published weight of
10 the posterior collapses: in our runs KL falls to 0 within a few hundred steps, and what is left is a
regression.

Shapes: B chunks, T = chunk_size actions, C = dim_model, A = action_dim. A batch: state (B, 1, .),
image.<camera> (B, 1, 3, H, W) uint8 or env_state (B, 1, .) in their place, action (B, T, A), and mask (B, T),
False where the episode was over. The encoder sees S tokens (B, S, C): z, the state, env_state, then the cells
of each camera's ResNet-18 map, row by row: 15 x 20 of a picture of 480 x 640. The T tokens of the decoder
start as zeros; T learned vectors, its queries, serve as their positions. Positions are added to what asks and
what is asked in every layer, to values never; norms come after the sums. Read first `Model.net`, then
`forward`.

In acting n_action_steps of a chunk are carried out before it looks again. With temporal_ensemble it looks at
every step, and does the weighted mean of what all its chunks said about now (`ensemble`).

As in LeRobot:
    - one layer in the decoder: the authors' code had seven and used the first;
    - in that layer the values of self-attention are zeros, so when it acts it adds one learned vector to all
      tokens: they differ only by what their queries ask. With few tokens to ask there are few differences;
    - padding = skip divides by the real actions of a micro-batch, so the loss depends a little on how a batch
      is split over ranks and passes. zeros: LeRobot up to 0.5 counts padded actions as right.
Changed: validation is the L1 at z = 0, LeRobot has none; env_state is normalised like the state; without
pretrained_backbone_weights the ResNet starts at random, theirs from ImageNet.
51,613,582 parameters with 14 joints and a camera. To reach: success in 87.6 % of 500 episodes, published by
LeRobot for the simulated ALOHA cube.
"""
import math
import sys
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F

import checkpoint
import vision

EVAL = ('env', 'actions')     # protocols that understand it; the first that the data serve is the default
PAD = True                    # windows reach beyond the ends of an episode, whose edges repeat
SAMPLING = ('n_action_steps', 'temporal_ensemble', 'temporal_ensemble_coeff')
INITIAL = ('pretrained_backbone_weights',)               # where a training starts; not needed later


@dataclass
class Config:
    obs: str = 'image'            # image | keypoints (env_state, of a simulator) | state: nothing but that
    # the chunk
    chunk_size: int = 100         # actions, T
    drop_n_last_frames: int = 0   # at the end of an episode, where no chunk begins
    padding: str = 'skip'         # actions beyond the end: skip | zeros, as errors of 0 (LeRobot <= 0.5)
    # the network
    dim_model: int = 512          # token width
    n_heads: int = 8              # attention heads
    dim_feedforward: int = 3200   # width of the MLPs
    n_encoder_layers: int = 4     # over what is seen
    n_decoder_layers: int = 1     # over the chunk
    dropout: float = 0.1          # of attention weights, of what each part adds, and in the MLPs
    pretrained_backbone_weights: str = ''    # '' | file of ResNet-18 | ResNet18_Weights.IMAGENET1K_V1
    # style
    use_vae: bool = True          # False: z = 0 in training too
    n_vae_encoder_layers: int = 4            # over state and actions
    latent_dim: int = 32          # numbers in z
    kl_weight: float = 10.0       # of KL, against the L1
    # acting
    n_action_steps: int = 100     # actions carried out before it looks again
    temporal_ensemble: bool = False          # with n_action_steps = 1: mean over chunks
    temporal_ensemble_coeff: float = 0.01    # m: the i-th oldest chunk weighs exp(-m i)
    # training
    optimizer_lr_backbone: float = 1e-5      # peak learning rate of the ResNet; train.py's lr is the others'
    # the data: meta.json decides, here PushT's
    action_dim: int = 2           # numbers in an action
    state_dim: int = 2            # numbers in a state
    env_state_dim: int = 18       # numbers that obs = keypoints sees
    cameras: tuple = ('top',)     # image.<name>, of obs = image
    height: int = 96              # px; the network takes any
    width: int = 96               # px

    @property
    def n_action(self):
        """The name that protocols/ know for it."""
        return self.n_action_steps


PRESETS = {
    'tiny': Config(obs='keypoints', chunk_size=8, dim_model=32, n_heads=4, dim_feedforward=64, dropout=0.0,
                   n_encoder_layers=2, n_vae_encoder_layers=2, n_action_steps=4),
    'cpu': Config(obs='keypoints', chunk_size=16, dim_model=128, n_heads=4, dim_feedforward=512, dropout=0.0,
                  n_vae_encoder_layers=2, n_action_steps=8),
    'full': Config()}


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    for key, allowed in (('obs', ('image', 'keypoints', 'state')), ('padding', ('skip', 'zeros'))):
        if getattr(cfg, key) not in allowed:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: must be one of {", ".join(allowed)}')
    for key in ('chunk_size', 'dim_model', 'n_heads', 'dim_feedforward', 'n_encoder_layers', 'latent_dim',
                'n_decoder_layers', 'n_vae_encoder_layers', 'n_action_steps', 'action_dim', 'state_dim',
                'env_state_dim', 'height', 'width'):
        if getattr(cfg, key) < 1:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be at least 1')
    for key in ('drop_n_last_frames', 'kl_weight', 'optimizer_lr_backbone'):
        if not 0 <= getattr(cfg, key) < math.inf:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be 0 or more, and finite')
    if not 0 <= cfg.dropout < 1:
        raise ValueError(f'dropout = {cfg.dropout}: must lie in 0..1, below 1')
    if cfg.dim_model % cfg.n_heads or cfg.dim_model % 4:             # 4: sine and cosine, of row and column
        raise ValueError(f'dim_model = {cfg.dim_model}: must be a multiple of 4 and of n_heads = '
                         f'{cfg.n_heads}')
    if cfg.n_action_steps > cfg.chunk_size:
        raise ValueError(f'n_action_steps = {cfg.n_action_steps}: a chunk has chunk_size = {cfg.chunk_size}')
    if cfg.temporal_ensemble and cfg.n_action_steps > 1:
        raise ValueError(f'n_action_steps = {cfg.n_action_steps}: temporal_ensemble looks again at every '
                         'step, so n_action_steps = 1')
    if not math.isfinite(cfg.temporal_ensemble_coeff):
        raise ValueError(f'temporal_ensemble_coeff = {cfg.temporal_ensemble_coeff}: must be finite')
    if cfg.obs == 'image' and len({*cfg.cameras}) < max(1, len(cfg.cameras)):
        raise ValueError(f'cameras = {cfg.cameras}: want one or more, each once; without: obs = state')


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    seen = {'image': [f'image.{name}' for name in cfg.cameras], 'keypoints': ['env_state'], 'state': []}
    keys = [*seen.get(cfg.obs, []), 'state']             # `check` has the words for an obs that is none
    return dict.fromkeys(keys, range(1)) | {'action': range(cfg.chunk_size)}


def example(cfg, batch_size):
    """A random batch with all that forward wants."""
    B = batch_size
    batch = {'mask': torch.ones(B, cfg.chunk_size, dtype=bool)}
    for key, offsets in windows(cfg).items():
        if key.startswith('image.'):
            shape = B, 1, 3, cfg.height, cfg.width
            batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
        else:
            batch[key] = torch.rand(B, len(offsets), getattr(cfg, f'{key}_dim'))
    return batch


# ---- the math ----

def l1_loss(guess, action, real, padding):
    """Mean |error| of chunks (B, T, A); real (B, T): False where the episode was over."""
    error = (guess - action).abs() * real[..., None]
    if padding == 'zeros':
        return error.mean()
    return error.sum() / (real.sum().clamp(min=1) * action.shape[2])


def kl_loss(mu, log_var):
    """KL(N(mu, e^log_var) | N(0, 1)) of (B, latent_dim): summed over z, mean over the batch."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1).mean()


def waves(position, C):
    """Positions (...) -> (..., C): sine and cosine in turn, of frequencies from 1 down to 1e-4 or so."""
    pair = torch.arange(C, device=position.device) // 2
    angle = position[..., None] / 1e4 ** (2 * pair / C)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def waves_2d(h, w, C, device):
    """Positions of the cells of a map -> (h w, C): row, then column, each from 2 pi / n to 2 pi."""
    # 1e-6 is LeRobot's, against a division by 0 that cannot happen here
    rows, columns = (waves(torch.arange(1, n + 1, device=device) / (n + 1e-6) * 2 * math.pi, C // 2)
                     for n in (h, w))
    both = torch.cat([rows[:, None].expand(h, w, -1), columns.expand(h, w, -1)], -1)
    return both.flatten(0, 1)


def ensemble(past, chunk, m):
    """
    Temporal ensembling, online. chunk (..., T, A) was made now; past is what this function returned at the
    step before, or None. Returns the action of now (..., A), the mean of all that was said about it, and the
    past for the next step. Guess i, the oldest is 0, weighs exp(-m i): m > 0 trusts the oldest most.
    """
    T = chunk.shape[-2]
    weight = torch.exp(-m * torch.arange(T, device=chunk.device))
    total = weight.cumsum(0)                             # total[n - 1]: of n guesses
    if past is None:
        mean, count = chunk, torch.ones(T, dtype=torch.long, device=chunk.device)
    else:
        mean, count = past                               # (..., T - 1, A), (T - 1,)
        before = (total[count - 1] / total[count])[:, None]          # the share of the guesses so far
        mean = mean * before + chunk[..., :-1, :] * (1 - before)
        mean, count = torch.cat([mean, chunk[..., -1:, :]], -2), F.pad(count + 1, (0, 1), value=1)
    return mean[..., 0, :], (mean[..., 1:, :], count[1:])


# ---- layers, with the names of torch's own ----

class Attention(nn.Module):
    """nn.MultiheadAttention written out, with its parameters: queries (B, T, C) look at S keys and values."""

    def __init__(self, cfg):
        super().__init__()
        C = cfg.dim_model
        self.n_heads, self.dropout = cfg.n_heads, cfg.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * C, C))    # of queries, keys, values
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * C))
        self.out_proj = nn.Linear(C, C)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query, key, value, real=None):
        """real (B, S) bool: tokens that may be looked at."""
        B, T, C = query.shape
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b).view(B, -1, self.n_heads, C // self.n_heads).transpose(1, 2)
                   for x, w, b in zip((query, key, value), weights, biases))     # (B, heads, ., C / heads)
        mask = None if real is None else real[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).reshape(B, T, C))


class EncoderLayer(nn.Module):
    """Tokens x (B, S, C) look at each other, then an MLP; both are added, and the sums normed."""

    def __init__(self, cfg):
        super().__init__()
        C = cfg.dim_model
        self.self_attn = Attention(cfg)
        self.linear1, self.linear2 = nn.Linear(C, cfg.dim_feedforward), nn.Linear(cfg.dim_feedforward, C)
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x, places, real=None):
        x = self.norm1(x + self.drop(self.self_attn(x + places, x + places, x, real)))
        return self.norm2(x + self.drop(self.linear2(self.drop(F.relu(self.linear1(x))))))


class DecoderLayer(nn.Module):
    """x (B, T, C) looks at itself, then at memory (B, S, C), then an MLP."""

    def __init__(self, cfg):
        super().__init__()
        C = cfg.dim_model
        self.self_attn, self.multihead_attn = Attention(cfg), Attention(cfg)
        self.linear1, self.linear2 = nn.Linear(C, cfg.dim_feedforward), nn.Linear(cfg.dim_feedforward, C)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(C), nn.LayerNorm(C), nn.LayerNorm(C)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x, queries, memory, places):
        x = self.norm1(x + self.drop(self.self_attn(x + queries, x + queries, x)))
        x = self.norm2(x + self.drop(self.multihead_attn(x + queries, memory + places, memory)))
        return self.norm3(x + self.drop(self.linear2(self.drop(F.relu(self.linear1(x))))))


class Encoder(nn.Module):
    """Tokens x (B, S, C) at places (S, C) look at each other; no norm at the end."""

    def __init__(self, cfg, n_layers):
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(cfg) for _ in range(n_layers)])

    def forward(self, x, places, real=None):
        for layer in self.layers:
            x = layer(x, places, real)
        return x


class Decoder(nn.Module):
    """Queries (T, C) ask memory (B, S, C) at places (S, C) -> (B, T, C)."""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(cfg) for _ in range(cfg.n_decoder_layers)])
        self.norm = nn.LayerNorm(cfg.dim_model)

    def forward(self, queries, memory, places):
        x = torch.zeros_like(queries).expand(len(memory), -1, -1)
        for layer in self.layers:
            x = layer(x, queries, memory, places)
        return self.norm(x)


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg, C, T = cfg, cfg.dim_model, cfg.chunk_size
        if cfg.use_vae:
            self.vae_encoder = Encoder(cfg, cfg.n_vae_encoder_layers)
            self.vae_encoder_cls_embed = nn.Embedding(1, C)
            self.vae_encoder_robot_state_input_proj = nn.Linear(cfg.state_dim, C)
            self.vae_encoder_action_input_proj = nn.Linear(cfg.action_dim, C)
            self.vae_encoder_latent_output_proj = nn.Linear(C, 2 * cfg.latent_dim)
            table = waves(torch.arange(T + 2, dtype=torch.float64), C).float()
            self.register_buffer('vae_encoder_pos_enc', table[None])
        # as published: these two start by Xavier, the VAE encoder as torch's layers do
        self.encoder, self.decoder = Encoder(cfg, cfg.n_encoder_layers), Decoder(cfg)
        for p in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)
        self.encoder_latent_input_proj = nn.Linear(cfg.latent_dim, C)
        self.encoder_robot_state_input_proj = nn.Linear(cfg.state_dim, C)
        if cfg.obs == 'keypoints':
            self.encoder_env_state_input_proj = nn.Linear(cfg.env_state_dim, C)
        if cfg.obs == 'image':
            self.backbone = vision.Backbone()            # its norms are frozen
            if cfg.pretrained_backbone_weights:
                vision.imagenet(self.backbone, cfg.pretrained_backbone_weights)
            self.encoder_img_feat_input_proj = nn.Conv2d(512, C, 1)
            # a row per camera; ImageNet's, whatever the pictures: what its weights are used to
            for name, rgb in ('mean', (0.485, 0.456, 0.406)), ('std', (0.229, 0.224, 0.225)):
                self.register_buffer(f'image_{name}', torch.tensor(rgb).repeat(len(cfg.cameras), 1))
        self.encoder_1d_feature_pos_embed = nn.Embedding(2 + (cfg.obs == 'keypoints'), C)
        self.decoder_pos_embed = nn.Embedding(T, C)
        self.action_head = nn.Linear(C, cfg.action_dim)
        for key in [key for key in windows(cfg) if not key.startswith('image.')]:
            n = getattr(cfg, f'{key}_dim')
            self.register_buffer(f'{key}_mean', torch.zeros(n))      # of the training data, from meta.json
            self.register_buffer(f'{key}_std', torch.ones(n))
        self.reset()

    # ---- units ----

    def normalise(self, batch, key):
        return (batch[key].float() - getattr(self, f'{key}_mean')) / (getattr(self, f'{key}_std') + 1e-8)

    def look(self, batch):
        """A batch in data units -> state (B, .), env_state or None, [pictures (B, 3, H, W)], normalised."""
        cfg, images = self.cfg, []
        for i, name in enumerate(cfg.cameras if cfg.obs == 'image' else ()):
            image = batch[f'image.{name}'][:, -1]
            assert image.dtype == torch.uint8, f'image.{name} is {image.dtype}, want uint8, 0 to 255'
            mean, std = self.image_mean[i, :, None, None], self.image_std[i, :, None, None]
            images.append((image / 255 - mean) / (std + 1e-8))
        env_state = self.normalise(batch, 'env_state')[:, -1] if cfg.obs == 'keypoints' else None
        return self.normalise(batch, 'state')[:, -1], env_state, images

    # ---- the network ----

    def style(self, state, action, real):
        """The VAE encoder: state (B, .), actions (B, T, A), real (B, T) -> mu, log_var (B, latent_dim)."""
        token = self.vae_encoder_cls_embed.weight.expand(len(state), 1, -1)      # where the answer appears
        x = torch.cat([token, self.vae_encoder_robot_state_input_proj(state)[:, None],
                       self.vae_encoder_action_input_proj(action)], 1)           # (B, T + 2, C)
        x = self.vae_encoder(x, self.vae_encoder_pos_enc, F.pad(real, (2, 0), value=True))
        return self.vae_encoder_latent_output_proj(x[:, 0]).float().chunk(2, 1)

    def net(self, z, state, env_state=None, images=()):
        """z (B, latent_dim), what `look` returns, pictures of any size -> chunk (B, T, A), normalised."""
        x = [self.encoder_latent_input_proj(z), self.encoder_robot_state_input_proj(state)]
        if env_state is not None:
            x.append(self.encoder_env_state_input_proj(env_state))
        tokens, places = [torch.stack(x, 1)], [self.encoder_1d_feature_pos_embed.weight]
        for image in images:
            y = self.encoder_img_feat_input_proj(self.backbone(image))           # (B, C, h, w)
            tokens.append(y.flatten(2).transpose(1, 2))
            places.append(waves_2d(*y.shape[2:], self.cfg.dim_model, y.device))
        places = torch.cat(places)
        memory = self.encoder(torch.cat(tokens, 1), places)
        return self.action_head(self.decoder(self.decoder_pos_embed.weight, memory, places))

    def forward(self, batch):
        """
        {'loss': scalar with grad}, and where the VAE is at work l1 and kl to log. eps (B, latent_dim) is
        drawn here, or brought as batch['noise']. In eval mode the loss is the L1 at z = 0: as it acts.
        """
        cfg, seen, action = self.cfg, self.look(batch), self.normalise(batch, 'action')
        z = action.new_zeros(len(action), cfg.latent_dim)
        styled = cfg.use_vae and self.training
        if styled:
            mu, log_var = self.style(seen[0], action, batch['mask'])
            eps = batch['noise'] if 'noise' in batch else torch.randn_like(mu)
            z = mu + (log_var / 2).exp() * eps
        l1 = l1_loss(self.net(z, *seen).float(), action, batch['mask'], cfg.padding)
        if not styled:
            return {'loss': l1}
        kl = kl_loss(mu, log_var)
        return {'loss': l1 + cfg.kl_weight * kl, 'l1': l1.detach(), 'kl': kl.detach()}

    # ---- acting ----

    def reset(self):
        """Forget what earlier chunks said: temporal_ensemble, at the start of an episode."""
        self.past = {}

    @torch.no_grad()
    def act(self, obs, generators=None):
        """
        The actions that come next, (B, n_action_steps, A) in data units; call .eval() first, or dropout is
        at work. obs: {key: (B, 1, ...)}, as in `windows`. Nothing is drawn. temporal_ensemble must know which
        row goes on with which episode: generators, an object of its own for each row, are its names, and a
        new one begins anew; without them row i is episode i until `reset`. A row that is missing in one call
        loses its past.
        """
        cfg, device = self.cfg, self.action_mean.device
        seen = self.look({key: obs[key].to(device) for key in windows(cfg) if key != 'action'})
        chunk = self.net(seen[0].new_zeros(len(seen[0]), cfg.latent_dim), *seen).float()
        chunk = chunk * self.action_std + self.action_mean
        self.calls = 1                                   # of the network, for protocols/env.py
        if not cfg.temporal_ensemble:
            return chunk[:, :cfg.n_action_steps]
        rows = generators or range(len(chunk))
        if 0 in self.past and generators is None and len(self.past) != len(chunk):
            raise ValueError(f'{len(chunk)} rows after {len(self.past)}: which episodes? give generators, or '
                             'call reset() first')
        if len(set(rows)) < len(chunk):
            raise ValueError('generators: want an object of its own for each row')
        told = {row: ensemble(self.past.get(row), guess, cfg.temporal_ensemble_coeff)
                for row, guess in zip(rows, chunk)}
        self.past = {row: past for row, (_, past) in told.items()}
        return torch.stack([action for action, _ in told.values()])[:, None]

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW, decay for everything, as published; train.py multiplies its lr by a group's lr_scale."""
        named = [(name.startswith('backbone.'), p) for name, p in self.named_parameters()]
        groups = [{'params': [p for resnet, p in named if not resnet]}]
        if self.cfg.obs == 'image':
            resnet = [p for resnet, p in named if resnet]
            groups.append({'params': resnet, 'lr_scale': self.cfg.optimizer_lr_backbone / lr if lr else 1.0})
        return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample, three times those of a pass. N tokens that ask M: 4 (N + M) C^2
        and 4 N M C; an MLP: 4 N C dim_feedforward; the ResNet's convolutions.
        """
        cfg, C, T = self.cfg, self.cfg.dim_model, self.cfg.chunk_size
        S, picture = 2 + (cfg.obs == 'keypoints'), 0
        if cfg.obs == 'image':
            cells = math.ceil(cfg.height / 32) * math.ceil(cfg.width / 32)
            picture = len(cfg.cameras) * (vision.flops(cfg.height, cfg.width) + 2 * cells * 512 * C)
            S += len(cfg.cameras) * cells

        def attention(n, m): return 4 * (n + m) * C * C + 4 * n * m * C
        def mlp(n): return 4 * n * C * cfg.dim_feedforward
        whole = picture + cfg.n_encoder_layers * (attention(S, S) + mlp(S))
        whole += cfg.n_decoder_layers * (attention(T, T) + attention(T, S) + mlp(T))
        if cfg.use_vae:
            whole += cfg.n_vae_encoder_layers * (attention(T + 2, T + 2) + mlp(T + 2))
        return 3 * whole

    # ---- LeRobot's policies ----

    @classmethod
    def from_pretrained(cls, src, **over):
        """
        A run of ours, or a folder that LeRobot saved, of any version (checkpoint.read_lerobot) -> the model
        in eval mode, with its weights and statistics. A camera observation.images.NAME is image.NAME here.
        over: Config fields.
        What this file cannot do ends in one line that names the field.
        """
        if checkpoint.is_run(src):
            return checkpoint.load(src, **over)[0]
        fixed = {'n_obs_steps': 1, 'vision_backbone': 'resnet18', 'replace_final_stride_with_dilation': False,
                 'pre_norm': False, 'feedforward_activation': 'relu'}
        modes = dict.fromkeys(('VISUAL', 'STATE', 'ENV', 'ACTION'), 'MEAN_STD')
        # fixed, modes: what its config must say; facts: Config fields that follow from its features
        config, weights, facts = checkpoint.read_lerobot(src, 'act', fixed, modes)
        coeff = config.pop('temporal_ensemble_coeff', None)          # there None switches it off
        if coeff is not None:
            facts |= {'temporal_ensemble': True, 'temporal_ensemble_coeff': coeff}
        shared = {f.name for f in fields(Config)} & config.keys() - {*INITIAL}
        try:
            model = cls(Config(**{key: config[key] for key in shared} | facts | over))
        except ValueError as error:
            sys.exit(f'{src}: {error}')
        checkpoint.fill(model, weights, src)
        return model.eval()


if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    cfg = Config(chunk_size=8, dim_model=32, n_heads=4, dim_feedforward=64, n_encoder_layers=1,
                 n_vae_encoder_layers=1, n_action_steps=4)
    model = Model(cfg)
    batch = example(cfg, batch_size=2)
    out = model(batch)
    out['loss'].backward()
    chunk = model.eval().act(batch)
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters | '
          f"loss {out['loss'].item():.4f}: l1 {out['l1']:.4f}, kl {out['kl']:.4f} | "
          f'sees {", ".join(windows(cfg))} -> actions {tuple(chunk.shape)}')
