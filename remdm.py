"""
ReMDM: plan in NetHack by filling in a sequence of masked actions, and taking some of it back on the way.

A masked discrete diffusion model (MDLM, Sahoo et al. 2024, arXiv 2406.07524) whose sampler may mask again
what it has committed (ReMDM, Wang et al. 2025, arXiv 2503.00307), as a planner (github.com/mathisweil/
minihack-ReMDM-planner): it sees the map and what surrounds the player, and denoises the next L actions.

    noise     z_t[i] = MASK with probability 1 - alpha(t), else x[i]; PAD_ID, behind the end of a game, stays
    loss      cross-entropy of net(z_t, t, map) to x, mean over the masked positions; + 0.5 goal loss; as an
              option each plan counts w(t) = -alpha'(t) / (1 - alpha(t))
    greedy    pass k = 1..K commits the max(1, [L k/K]) surest of the open positions, to their argmax
    remdm     the same with sampled actions, at least L/10 a pass; then, with r = 1 - alpha(k/K), each
              committed position is masked again, with probability eta r (rescale), min(eta, r) (cap) or
              eta r (1 - confidence) (conf)
    posterior ReMDM's Algorithm 1, from t to s with sigma <= min(1, (1 - alpha_s) / alpha_t): a masked
              position is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), a
              committed one is masked with sigma

greedy and remdm are as published there, and are neither MaskGIT nor ReMDM to the letter: what a pass commits
comes on top of what the others did, so all is committed after half of the passes, and the others only repair;
and remasking grows towards the end, where ReMDM's goes to 0. Only `posterior` is the paper's chain.

Trained by DAgger (Ross et al. 2011, arXiv 1011.0686): `refresh` plays levels with the averaged weights, lets
a teacher that cannot see more (data/minihack/oracles.py) show what it would have done, and keeps that where
the student lost or dawdled. refresh_every = 0 and a dataset make it plain behaviour cloning.

Shapes: B windows, L = seq_len actions, C = n_embd; glyphs (B, 1, 21, 79) and local (B, 1, 9, 9), NetHack's
ids; action (B, L, 1) in 0..11; mask (B, L), where an action is real. Parameters have the published names:
5,241,935, or 4,956,012 with use_global = False. Read first `corrupt` and `loss_of`, then `remdm_sample`, then
`refresh`.

Ours, where the published planner differs. Its teacher solves 41 % of the small mazes, and games that the
teacher lost were learned from: here `explore` teaches, and keep_lost = False. Its teacher starts each level
anew: relabel = 'prefix' lets it take over somewhere on the student's way, which is nearer to DAgger (a label
is a whole plan, so one state per game gets one). Its input shows PAD, and so how many actions are left, which
no sampling ever shows: pad_input = 'mask'. Its map forgets where the player has been: memory = True. Its
physics_aware_sampling did not follow the plan. Its alpha' was a difference in float32, and its seeds did not
fix the levels. Published win rates, four training levels / three unseen ones: 66.2 / 8.4 % (DAgger), 69.3 /
8.2 % (cloning).
"""
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

EVAL = ('env',)               # protocols that understand this model; the first is the default
PAD = True                    # windows reach beyond the end of an episode; `mask` says where
SIMULATOR = 'minihack'        # data/<name>/env.py: where it acts
SAMPLING = ('sampler', 'diffusion_steps_eval', 'remask_strategy', 'eta', 'temperature', 'top_k',
            'replan_every', 'physics_aware_sampling', 'blind_global', 'alias_actions')
LEVELS = ('MiniHack-Room-Random-5x5-v0', 'MiniHack-Room-Random-15x15-v0', 'MiniHack-Corridor-R2-v0',
          'MiniHack-MazeWalk-9x9-v0')              # as published
N_ACTIONS, MASK_ID, PAD_ID = 12, 12, 13          # tokens 0..11 are actions
N_GLYPHS = 6000                                  # NetHack has 5976; marks of `memory` follow
ROCK, DOWN = 2359, 2383                          # what is blank, and the staircase down; as in env.py
HEIGHT, WIDTH, CROP = 21, 79, 9


@dataclass
class Config:
    # the network
    n_embd: int = 256             # token width
    n_head: int = 4               # attention heads
    n_layer: int = 4              # transformer blocks
    seq_len: int = 64             # actions of a plan
    dropout: float = 0.0          # in the blocks; masking regularises already
    use_global: bool = True       # False: sees nothing but the 9x9 cells around the player
    global_gate_init: float = -3.0  # the map's tokens start at sigmoid(-3) = 0.05 of their size
    channels_last: bool = False   # memory format of the maps: faster on a CPU
    # what it sees
    pad_input: str = 'pad'        # behind the end of an episode: pad (as published) | mask
    memory: bool = False          # the map shows where the player has been and searched
    # diffusion
    noise_schedule: str = 'linear'       # alpha: linear 1 - t | cosine cos^2(pi t / 2)
    num_diffusion_steps: int = 100       # rows of the table of times
    label_smoothing: float = 0.0         # of the cross-entropy
    use_importance_weighting: bool = False   # weigh samples by w(t) instead of all masked positions alike
    loss_weight_clip: float = 1000.0     # largest w(t)
    aux_loss_weight: float = 0.5         # of the goal loss: where is the staircase, if in view?
    # sampling
    sampler: str = 'remdm'        # greedy | remdm | posterior
    diffusion_steps_eval: int = 10       # passes of a plan
    diffusion_steps_collect: int = 5     # the same when data are collected, greedily
    remask_strategy: str = 'conf'        # rescale | cap | conf
    eta: float = 0.15             # strength of remasking
    temperature: float = 0.5      # of sampled actions
    top_k: int = 4                # actions to sample from
    replan_every: int = 16        # actions carried out of each plan
    physics_aware_sampling: bool = False  # remdm: of the first 8 actions, commit last what would collide
    blind_global: bool = False    # ablation: all glyphs of the map 0, as published (no map looks like that)
    alias_actions: bool = False   # ids that a level lacks mean id % n, as published; False: nothing
    # DAgger
    envs: tuple = LEVELS          # to train on
    refresh_every: int = 100      # optimizer steps between collections; 0 = never, learn from the dataset
    episodes_per_iteration: int = 30     # of one collection, all ranks together
    total_timesteps: int = 5_650_000     # steps of student, teacher and replay after which the run ends
    buffer_capacity: int = 10_000        # windows that are kept; the oldest are forgotten
    seed_episodes: int = 3        # the teacher's, of each level, before the first step
    oracle: str = 'explore'       # explore | bfs5 (as published)
    relabel: str = 'prefix'       # the teacher takes over on the student's way | start: plays anew
    keep_lost: bool = False       # learn from games that the teacher lost, too
    efficiency_multiplier: float = 1.5   # a game that was won is kept if the student took so much longer
    curriculum_preseed: bool = True      # every level starts with a queue half won, half lost
    curriculum_queue_size: int = 100     # games that a level's win rate is taken over


PRESETS = {
    'tiny': Config(n_embd=32, n_head=4, n_layer=2, seq_len=16, replan_every=4, diffusion_steps_eval=4),
    'cpu': Config(n_embd=64, n_layer=2, seq_len=32, replan_every=8, channels_last=True, pad_input='mask'),
    'full': Config()}


def check(cfg):
    """Stop before an impossible model is built: ValueError with one line, the number and the way out."""
    choices = {'noise_schedule': tuple(SCHEDULES), 'pad_input': ('pad', 'mask'),
               'relabel': ('start', 'prefix'), 'sampler': ('greedy', 'remdm', 'posterior'),
               'remask_strategy': ('rescale', 'cap', 'conf'),
               'oracle': ('explore', 'bfs5')}
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            raise ValueError(f'{key} = {getattr(cfg, key)!r}: must be one of {", ".join(allowed)}')
    for key in ('n_embd', 'n_head', 'n_layer', 'seq_len', 'num_diffusion_steps', 'diffusion_steps_eval',
                'diffusion_steps_collect', 'top_k', 'replan_every', 'episodes_per_iteration',
                'total_timesteps', 'buffer_capacity', 'curriculum_queue_size'):
        if getattr(cfg, key) < 1:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be at least 1')
    for key in ('refresh_every', 'seed_episodes', 'efficiency_multiplier', 'aux_loss_weight',
                'loss_weight_clip'):
        if not 0 <= getattr(cfg, key) < math.inf:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be 0 or more')
    if not cfg.envs:
        raise ValueError('envs = (): name a level to train on')
    for key in ('dropout', 'label_smoothing', 'eta'):
        if not 0 <= getattr(cfg, key) <= 1:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must lie in 0..1')
    if not 0 < cfg.temperature < math.inf:
        raise ValueError(f'temperature = {cfg.temperature}: must be above 0; sampler = greedy takes the best')
    if cfg.n_embd % cfg.n_head:
        raise ValueError(f'n_embd = {cfg.n_embd}: must be a multiple of n_head = {cfg.n_head}')
    if cfg.replan_every > cfg.seq_len:
        raise ValueError(f'replan_every = {cfg.replan_every}: a plan has seq_len = {cfg.seq_len} actions')


def windows(cfg):
    """Which frames of which key one training sample needs: {key: range of frame offsets}."""
    return {'glyphs': range(0, 1), 'local': range(0, 1), 'action': range(0, cfg.seq_len)}


def example(cfg, batch_size):
    """A random batch with all that forward wants; plans end anywhere."""
    glyphs = torch.randint(2359, 2384, (batch_size, 1, HEIGHT, WIDTH), dtype=torch.int16)
    ends = torch.randint(1, cfg.seq_len + 1, (batch_size, 1))
    return {'glyphs': glyphs, 'local': glyphs[..., :CROP, :CROP].clone(),
            'action': torch.randint(0, N_ACTIONS, (batch_size, cfg.seq_len, 1), dtype=torch.uint8),
            'mask': torch.arange(cfg.seq_len) < ends}


# ---- the noise: alpha(t) of the tokens are still there ----

SCHEDULES = {                 # name: alpha(t), -alpha'(t)
    'linear': (lambda t: 1 - t, lambda t: torch.ones_like(t)),
    'cosine': (lambda t: torch.cos(t * math.pi / 2) ** 2, lambda t: torch.sin(t * math.pi) * math.pi / 2)}


def alpha_at(t, schedule):
    """alpha as a float, t a float: for the samplers."""
    return SCHEDULES[schedule][0](torch.tensor(t, dtype=torch.float64)).item()


def corrupt(x, t, u, schedule):
    """Mask each action of x (B, L) where u (B, L), uniform, is below 1 - alpha(t), t (B,). PAD stays."""
    alpha = SCHEDULES[schedule][0](t)[:, None]
    return torch.where((u < 1 - alpha) & (x != PAD_ID), MASK_ID, x)


def loss_of(logits, x, z, t, cfg):
    """
    logits (B, L, 12) for the actions x (B, L) behind z. Flat: the mean over all masked positions of these
    rows, so plans count by how much of them is masked. Weighted, as published: each plan's mean over its
    masked positions times w(t). That is not MDLM's ELBO, which divides by the plan's length: small t counts 1
    / (1 - alpha) times too much.
    """
    hidden = (z == MASK_ID) & (x != PAD_ID)
    ce = F.cross_entropy(logits.transpose(1, 2).float(), x.clamp(max=N_ACTIONS - 1), reduction='none',
                         label_smoothing=cfg.label_smoothing) * hidden           # (B, L)
    if not cfg.use_importance_weighting:
        return ce.sum() / hidden.sum().clamp(min=1)
    alpha, slope = (f(t) for f in SCHEDULES[cfg.noise_schedule])
    w = (slope / (1 - alpha + 1e-8)).clamp(0, cfg.loss_weight_clip)
    return (w * ce.sum(1) / hidden.sum(1).clamp(min=1)).mean()


def goals(glyphs):
    """
    glyphs (B, 21, 79) -> (y / 20, x / 78) of the first staircase down, (B, 2), and whether there is one.
    """
    there = (glyphs == DOWN).flatten(1)
    at = there.int().argmax(1)
    return torch.stack([at // WIDTH / (HEIGHT - 1), at % WIDTH / (WIDTH - 1)], 1), there.any(1)


def goal_loss(guess, glyphs):
    """Mean squared error of the guess (B, 2), over the samples that show a staircase; 0 if none does."""
    goal, seen = goals(glyphs)
    error = torch.where(seen[:, None], guess.float() - goal, 0).square()
    return error.sum() / (2 * seen.sum().clamp(min=1))


# ---- samplers: denoise(z (B, L), time in percent) -> logits (B, L, 12) ----

def commit(z, choice, confidence, n):
    """The n surest of the masked positions of z (B, L) become their choice; ties go to the earlier one."""
    order = torch.where(z == MASK_ID, confidence, -1).argsort(dim=1, descending=True, stable=True)
    surest = torch.zeros_like(z, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return torch.where(surest & (z == MASK_ID), choice, z)


def greedy_sample(denoise, z, K):
    """
    Argmax, surest first. n is a share of all L positions, not of those that are left, so with K = 5 all are
    committed after three passes; the others would change nothing, and are left out.
    """
    yield z
    for k in range(1, K + 1):
        share = k / K
        confidence, choice = denoise(z, int(100 * (1 - share))).float().softmax(-1).max(-1)
        z = commit(z, choice, confidence, max(1, int(z.shape[1] * share)))
        yield z
        if not (z == MASK_ID).any():
            return


def remdm_sample(denoise, z, K, u, cfg, doubt=None):
    """
    As published. u (K, 2, B, L) uniform: u[k, 0] draws the actions, u[k, 1] decides what is masked again.
    `confidence` is this pass's, of the action sampled just now, not of the one that stands there.
    doubt(z, choice) -> (B, L) bool, see `collisions`.
    """
    L = z.shape[1]
    yield z
    for k in range(1, K + 1):
        share = k / K
        choice, confidence = sample_actions(denoise(z, int(100 * (1 - share))), u[k - 1, 0], cfg)
        if doubt is not None:
            confidence = torch.where(doubt(z, choice), 0.001, confidence)
        if k == K:
            yield torch.where(z == MASK_ID, choice, z)
            return
        z = commit(z, choice, confidence, max(1, int(0.1 * L), int(L * share)))
        p = remask_probability(confidence, 1 - alpha_at(share, cfg.noise_schedule), cfg)
        z = torch.where((z != MASK_ID) & (u[k - 1, 1] < p), MASK_ID, z)
        yield z


def sample_actions(logits, u, cfg):
    """Sampled actions (B, L) and their probabilities, from the top_k at the temperature. u (B, L) uniform."""
    logits = logits.float() / cfg.temperature
    kth = logits.topk(min(cfg.top_k, N_ACTIONS), -1).values[..., -1:]
    p = logits.masked_fill(logits < kth, -math.inf).softmax(-1)
    choice = (p.cumsum(-1) < u[..., None]).sum(-1).clamp(max=N_ACTIONS - 1)
    # a u of 0, or rounded to 1, may point at an action that was filtered out
    choice = torch.where(p.gather(-1, choice[..., None])[..., 0] > 0, choice, p.argmax(-1))
    return choice, p.gather(-1, choice[..., None])[..., 0]


def remask_probability(confidence, level, cfg):
    """
    How likely a committed action (B, L) is masked again, by strategy; level: r in `remdm`, sigma_max in
    `posterior`.
    """
    if cfg.remask_strategy == 'cap':
        return torch.full_like(confidence, min(cfg.eta, level))
    p = torch.full_like(confidence, cfg.eta * level)
    return p * (1 - confidence) if cfg.remask_strategy == 'conf' else p


def posterior_sample(denoise, z, K, u, cfg):
    """
    ReMDM's Algorithm 1. u (K, 2, B, L) uniform: u[i, 0] draws the actions, u[i, 1] reveals and masks. conf:
    the share of eta sigma_max that falls on a committed position is a softmax of -psi, its raw probability
    when it was revealed.
    """
    psi = torch.full(z.shape, math.inf, device=z.device)             # of masked positions: inf
    yield z
    for i in range(K):
        t, s = (K - i) / K, (K - i - 1) / K
        alpha_t, alpha_s = (alpha_at(x, cfg.noise_schedule) for x in (t, s))
        logits = denoise(z, min(int(100 * t), 99))
        choice, _ = sample_actions(logits, u[i, 0], cfg)
        raw = logits.float().softmax(-1).gather(-1, choice[..., None])[..., 0]
        sigma_max = min(1.0, (1 - alpha_s) / max(alpha_t, 1e-8))
        hidden = z == MASK_ID
        if cfg.remask_strategy == 'conf':
            sigma = torch.softmax(-psi, -1).nan_to_num() * cfg.eta * sigma_max
        else:
            sigma = remask_probability(psi, sigma_max, cfg)
        stay = torch.where(hidden & (cfg.remask_strategy == 'conf'), 0, sigma)
        reveal = ((alpha_s - (1 - stay) * alpha_t) / max(1 - alpha_t, 1e-8)).clamp(0, 1)
        shown, again = hidden & (u[i, 1] < reveal), ~hidden & (u[i, 1] < sigma)
        if i == K - 1:                                   # reveal is 1, but for rounding; and sigma is 0
            shown = hidden
        z = torch.where(shown, choice, torch.where(again, MASK_ID, z))
        psi = torch.where(shown, raw, torch.where(again, math.inf, psi))
        yield z


WALLS = torch.zeros(N_GLYPHS, dtype=torch.bool)  # walls, bars, trees, water, lava; rock is asked for below
WALLS[[ROCK + k for k in (*range(1, 12), 17, 18, 32, 34, 41)]] = True
DELTAS = torch.tensor([(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)]
                      + [(0, 0)] * 4)            # (dy, dx) of an action; the last four stay where they are


def collisions(z, choice, local, steps=8):
    """
    Which of the first planned moves run into something, (B, L) bool: follow the plan, committed or just
    chosen, over local (B, 9, 9). What is blank (rock, or never seen) only counts beside the player, who would
    see it.
    """
    plan, hit = torch.where(z == MASK_ID, choice, z), torch.zeros_like(z, dtype=torch.bool)
    at, rows = torch.full((len(z), 2), CROP // 2, device=z.device), torch.arange(len(z), device=z.device)
    walls, deltas = WALLS.to(z.device), DELTAS.to(z.device)
    for i in range(min(steps, z.shape[1])):
        to = at + deltas[plan[:, i]]
        inside = ((to >= 0) & (to < CROP)).all(1)
        y, x = to.clamp(0, CROP - 1).unbind(1)
        glyph = local[rows, y, x]
        beside = (to - CROP // 2).abs().amax(1) == 1
        hit[:, i] = inside & (walls[glyph] | (beside & (glyph == ROCK)))
        at = torch.where(hit[:, i, None] | ~inside[:, None], at, to)
    return hit


# ---- layers; names are those of the published checkpoints ----

class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C = cfg.n_embd
        self.n_head, self.dropout = cfg.n_head, cfg.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * C, C))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * C))
        self.out_proj = nn.Linear(C, C)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x):
        B, T, C = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # (B, heads, T, C/h)
        q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2) for y in qkv.split(C, -1))
        # all see all; by hand, because to act, forward only, a CPU takes twice as long for the fused kernel
        p = (q @ k.transpose(2, 3) * (C // self.n_head) ** -0.5).softmax(-1)     # (B, heads, T, T)
        y = F.dropout(p, self.dropout, self.training) @ v
        return self.out_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.self_attn = Attention(cfg)
        self.linear1 = nn.Linear(cfg.n_embd, 4 * cfg.n_embd)
        self.linear2 = nn.Linear(4 * cfg.n_embd, cfg.n_embd)
        self.norm1, self.norm2 = nn.LayerNorm(cfg.n_embd), nn.LayerNorm(cfg.n_embd)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x):
        x = x + self.drop(self.self_attn(self.norm1(x)))
        return x + self.drop(self.linear2(self.drop(F.gelu(self.linear1(self.norm2(x))))))


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        check(cfg)
        self.cfg, C = cfg, cfg.n_embd
        self.embedding = nn.Embedding(N_GLYPHS, 64)
        self.cnn = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3, padding=1),
                                 nn.GELU(), nn.Flatten(), nn.Linear(64 * CROP * CROP, C))
        if cfg.use_global:
            self.global_embedding = nn.Embedding(N_GLYPHS, 32)
            self.global_cnn = nn.Sequential(nn.Conv2d(32, 32, 5, 2, 2), nn.GELU(),
                                            nn.Conv2d(32, 64, 3, 2, 1), nn.GELU())
            self.global_proj = nn.Linear(64, C)
            self.goal_head = nn.Sequential(nn.Linear(C, 128), nn.GELU(), nn.Linear(128, 2))
            self.global_gate = nn.Parameter(torch.tensor(cfg.global_gate_init))
        self.action_emb = nn.Embedding(N_ACTIONS + 2, C)
        self.timestep_emb = nn.Embedding(cfg.num_diffusion_steps, C)
        self.pos_emb = nn.Embedding(cfg.seq_len, C)
        self.transformer = nn.ModuleDict({'layers': nn.ModuleList([Block(cfg) for _ in range(cfg.n_layer)])})
        self.head = nn.Linear(C, N_ACTIONS)

    def encode(self, local, glyphs):
        """
        Ids (B, 9, 9) and (B, 21, 79) -> tokens (B, 1 + 8, C) of what is seen, guess of the goal (B, 2);
        without the map (B, 1, C) and None.
        """
        def picture(table, ids):                         # (B, h, w) -> (B, channels, h, w)
            x = table(ids.long()).permute(0, 3, 1, 2)    # is channels last already
            return x if self.cfg.channels_last else x.contiguous()
        tokens = self.cnn(picture(self.embedding, local))[:, None]
        if not self.cfg.use_global:
            return tokens, None
        x = self.global_cnn(picture(self.global_embedding, glyphs))
        x = F.adaptive_avg_pool2d(x, (2, 4)).flatten(2).transpose(1, 2)          # (B, 8, 64), row by row
        x = self.global_proj(x)
        return torch.cat([tokens, x * self.global_gate.sigmoid()], 1), self.goal_head(x.mean(1))

    def denoise(self, seen, z, row):
        """
        Tokens (B, S, C) of what is seen, actions z (B, L), row (B,) of the table of times -> logits (B, L,
        12).
        """
        x = self.action_emb(z) + self.timestep_emb(row)[:, None] + self.pos_emb.weight
        x = torch.cat([seen, x], 1)
        for layer in self.transformer['layers']:
            x = layer(x)
        return self.head(x[:, -z.shape[1]:])

    def net(self, local, glyphs, z, row):
        """
        The network alone: (B, 9, 9), (B, 21, 79), (B, L), (B,) -> logits (B, L, 12), goal (B, 2) or None.
        """
        seen, goal = self.encode(local, glyphs)
        return self.denoise(seen, z, row), goal

    def forward(self, batch):
        """
        {'loss', 'diffusion', 'aux'}. Uniform t (B,) and noise (B, L) are drawn unless the batch brings them.
        """
        cfg, glyphs, local = self.cfg, batch['glyphs'][:, 0], batch['local'][:, 0]
        x = torch.where(batch['mask'], batch['action'][..., 0].long(), PAD_ID)
        t = batch['t'] if 't' in batch else torch.rand(len(x), device=x.device)
        u = batch['noise'] if 'noise' in batch else torch.rand(x.shape, device=x.device)
        t = t.clamp(1e-5, 1 - 1e-5)
        z = corrupt(x, t, u, cfg.noise_schedule)
        row = (t * cfg.num_diffusion_steps).long().clamp(max=cfg.num_diffusion_steps - 1)
        shown = torch.where(x == PAD_ID, MASK_ID, z) if cfg.pad_input == 'mask' else z
        logits, goal = self.net(local, glyphs, shown, row)
        loss = diffusion = loss_of(logits, x, z, t, cfg)
        out = {'diffusion': diffusion.detach()}
        if goal is not None:
            aux = goal_loss(goal, glyphs)
            loss = diffusion + cfg.aux_loss_weight * aux
            out['aux'] = aux.detach()
        return {'loss': loss} | out

    # ---- acting ----

    @torch.no_grad()
    def plans(self, obs, sampler, K, generators=None):
        """
        obs: glyphs (B, 1, 21, 79), local (B, 1, 9, 9). Yields the plan (B, L) after each pass, MASK_ID where
        it is open; the last is whole. generators: one torch.Generator per row, so that a row's plan does not
        depend on the others'; None draws from torch's own.
        """
        cfg, device = self.cfg, self.head.weight.device
        glyphs, local = (obs[key][:, -1].to(device) for key in ('glyphs', 'local'))
        if cfg.blind_global:
            glyphs = torch.zeros_like(glyphs)
        seen, _ = self.encode(local, glyphs)             # once, because it does not change from pass to pass
        z = torch.full((len(local), cfg.seq_len), MASK_ID, device=device)

        @torch.no_grad()                                 # the passes are run by who asks for them, later
        def logits_of(z, percent):                       # of the time
            row = percent * cfg.num_diffusion_steps // 100
            return self.denoise(seen, z, torch.full((len(z),), row, device=device))
        if sampler == 'greedy':
            return greedy_sample(logits_of, z, K)
        shape = (K, 2, cfg.seq_len)
        u = torch.stack([torch.rand(shape, generator=g) for g in generators or [None] * len(z)], 2).to(device)
        if sampler == 'posterior':
            return posterior_sample(logits_of, z, K, u, cfg)

        def doubt(z, choice):
            return collisions(z, choice, local.long())
        return remdm_sample(logits_of, z, K, u, cfg, doubt if cfg.physics_aware_sampling else None)

    @torch.no_grad()
    def act(self, obs, n=None, sampler=None, steps=None, generators=None):
        """The first n (replan_every) actions of a fresh plan: obs as in `plans` -> (B, n, 1) int64."""
        cfg = self.cfg
        *_, z = self.plans(obs, sampler or cfg.sampler, steps or cfg.diffusion_steps_eval, generators)
        return z[:, :n or cfg.replan_every, None]

    # ---- for train.py ----

    def configure_optimizers(self, lr, weight_decay, betas):
        """AdamW over all tensors, as published."""
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def flops_per_sample(self):
        """
        Matmul FLOPs of a training sample, 3 x forward. Per token and block 24 C^2 of weights and 4 C per
        attended token; the crop's convolutions and projection; the map's two, at 11x40 and 6x20 outputs.
        """
        cfg, C = self.cfg, self.cfg.n_embd
        T = cfg.seq_len + 1 + 8 * cfg.use_global
        blocks = cfg.n_layer * T * (24 * C * C + 4 * C * T) + 2 * cfg.seq_len * C * N_ACTIONS
        crop = 2 * CROP * CROP * (2 * 9 * 64 * 32 + 64 * C)
        maps = 2 * (11 * 40 * 25 * 32 * 32 + 6 * 20 * 9 * 32 * 64 + 8 * 64 * C + C * 128 + 256)
        return 3 * (blocks + crop + maps * cfg.use_global)

    @classmethod
    def from_pretrained(cls, path, n_head=4, ema=True, **over):
        """
        A published .pth: sizes are read off the shapes, all but n_head. Averaged weights if it has them; they
        lack buffers, and this model has none. The pickle is not trusted.
        """
        core = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
        safe = [core._reconstruct, np.ndarray, np.dtype, type(np.dtype('uint32'))]       # of its rng_states
        try:
            with torch.serialization.safe_globals(safe):
                file = torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:                       # a pickle raises whatever it likes
            sys.exit(f'cannot read {path}: {str(error).splitlines()[0]}')
        weights = file.get('ema_state_dict') if ema else None
        weights = weights or file.get('model_state_dict') or file
        if 'action_emb.weight' not in weights:
            sys.exit(f'{path} holds no planner: it lacks action_emb.weight')
        layers = {key.split('.')[2] for key in weights if key.startswith('transformer.layers.')}
        cfg = Config(n_embd=weights['action_emb.weight'].shape[1], n_head=n_head, n_layer=len(layers),
                     seq_len=weights['pos_emb.weight'].shape[0], use_global='global_gate' in weights,
                     num_diffusion_steps=weights['timestep_emb.weight'].shape[0],
                     **{'alias_actions': True} | over)
        model = cls(cfg)
        model.load_state_dict(weights)
        return model.eval()


# ---- DAgger: the data that it makes for itself ----

# What is remembered of a game: cfg.envs's number, whether the student won, steps taken, whether it was kept.
COLUMNS = ('level', 'won', 'student_steps', 'oracle_steps', 'replayed_steps', 'kept')


def win_rates(games, cfg):
    """
    The student's, of each level, over the last games on it: (levels,). games (N, 6): rows of COLUMNS so far.
    """
    half, rates = cfg.curriculum_queue_size // 2, []
    for level in range(len(cfg.envs)):
        won = games[games[:, 0] == level, 1].tolist()
        if cfg.curriculum_preseed:
            won = [1] * half + [0] * half + won          # the wins first: they are forgotten first
        won = won[-cfg.curriculum_queue_size:]
        rates.append(sum(won) / len(won) if won else 0.5)
    return rates


def curriculum(games, cfg):
    """
    How likely each level is played next, (levels,): what is neither hopeless (won below 0.15 of the games:
    0.2) nor mastered (above 0.85: 0.1) weighs 1.
    """
    weights = [0.2 if rate < 0.15 else 0.1 if rate > 0.85 else 1.0 for rate in win_rates(games, cfg)]
    return np.array(weights) / sum(weights)


def worth_keeping(won, student, oracle, multiplier):
    """Is there something to learn from the teacher's game? Where the student lost, or dawdled."""
    return not won or student > multiplier * oracle


def refresh(net, store, step, seed, rank, world):
    """
    Play, relabel, store: called by train.py before step 0 and every `refresh_every` steps, with averaged
    weights. Random numbers come from (seed, number of the game); the games are dealt out to the ranks, and
    `store.add` gives all of them to every rank. -> scalars
    """
    from data.minihack import play  # nobody else here needs a NetHack
    cfg, games = net.cfg, store.table(COLUMNS)
    if len(games) == 0:
        store.add(lessons(cfg, rank, world))
    spent = int(games[:, 2:5].sum())
    if spent >= cfg.total_timesteps:
        return {'done': 1.0, 'progress': 1.0, 'env_steps': float(spent)}
    chances, jobs = curriculum(games, cfg), []
    for number in range(len(games), len(games) + cfg.episodes_per_iteration):
        rng = np.random.default_rng([seed, number])
        jobs.append((number, int(rng.choice(len(cfg.envs), p=chances)), int(rng.integers(2**31)), rng))
    jobs = jobs[rank::world]

    def act(obs, generators):
        return net.act(obs, sampler='greedy', steps=cfg.diffusion_steps_collect)
    student = play.games([(cfg.envs[level], level_seed) for _, level, level_seed, _ in jobs], act,
                         **play.options(cfg))
    new = store.add([relabel(job, game, cfg) for job, game in zip(jobs, student)])       # those of all ranks
    spent += int(new[:, 2:5].sum())
    scalars = {'env_steps': spent, 'progress': min(1.0, spent / cfg.total_timesteps), 'windows': len(store)}
    scalars |= dict(zip(COLUMNS[1:], new[:, 1:].mean(0)))
    scalars |= {f'won/{name}': rate for name, rate in zip(cfg.envs, win_rates(store.table(COLUMNS), cfg))}
    return {name: float(value) for name, value in scalars.items()}


def relabel(job, game, cfg):
    """
    The teacher on the same level, from the start, or from somewhere on the student's way: its actions are
    replayed, which the teacher watches, and then it goes on, until it wins or the cap is reached. Its whole
    way counts when the two are compared. -> (number, row of COLUMNS, episode or None)
    """
    from data.minihack import play
    number, level, level_seed, rng = job
    student, prefix = len(game['actions']), []
    if cfg.relabel == 'prefix':
        prefix = game['actions'][:rng.integers(student)]
    episode, teacher_won = play.lesson(cfg.envs[level], level_seed, cfg.oracle, rng, prefix,
                                       **play.options(cfg))
    oracle = len(episode['action'])
    kept = worth_keeping(game['won'], student, len(prefix) + oracle, cfg.efficiency_multiplier)
    kept = kept and (teacher_won or cfg.keep_lost)
    return number, (level, game['won'], student, oracle, len(prefix), kept), episode if kept else None


def lessons(cfg, rank, world):
    """
    Before the first step: a few games of the teacher on every level, as published on seeds 100 level + 0, 1,
    2. They are not counted. -> [(number, None, episode or None)]
    """
    from data.minihack import play
    jobs = [(level, 100 * level + i) for level in range(len(cfg.envs)) for i in range(cfg.seed_episodes)]
    found = []
    for number, (level, level_seed) in list(enumerate(jobs))[rank::world]:
        rng = np.random.default_rng(level_seed)
        episode, teacher_won = play.lesson(cfg.envs[level], level_seed, cfg.oracle, rng, **play.options(cfg))
        found.append((number, None, episode if teacher_won or cfg.keep_lost else None))
    return found


if __name__ == '__main__':   # lesson zero: the whole life of a model in seconds on a CPU
    torch.manual_seed(0)
    cfg = PRESETS['tiny']
    model = Model(cfg)
    count = sum(p.numel() for p in model.parameters())
    print(f'{count:,} parameters, {model.flops_per_sample() / 1e6:.1f} MFLOP per sample')
    batch = example(cfg, batch_size=2)
    out = model(batch)
    out['loss'].backward()
    print(f"loss {out['loss'].item():.4f} | gradient of the head {model.head.weight.grad.norm().item():.4f}")
    print('a plan after each pass: numbers are actions, dots are open')
    for k, plan in enumerate(model.eval().plans(batch, 'remdm', 4)):
        print(k, ' '.join('.' if a == MASK_ID else f'{a}' for a in plan[0].tolist()))
