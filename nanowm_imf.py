"""
A world model that dreams in one step: nanowm.py with improved MeanFlow in place of denoising. A first try.

"Improved Mean Flows" (Geng et al. 2025, arXiv 2512.02012). imf_policy.py explains it; here x is the next
frame, and the network is asked for a frame, not for a velocity, because then it can predict the change:

    z_t = (1 - t) x + t e              e is noise, t = 1 all noise; v(z, t) = E[e - x | z_t]
    u(z_t, r, t) = (z_t - f) / t       f(z_t, r, t) is what the network says; u the mean velocity from r to t
    v = u + (t - r) du/dt              the MeanFlow identity; times t, and with e - x = (z_t - x) / t:
    loss = |f - x - t (t - r) sg(du/dt)|^2
    sampler: z_r = z_t - (t - r) u     one step from t = 1 to r = 0 gives f itself

With r = t it is the loss of nanowm.py with pred = 'x'. Where the next frame is certain, f = x at all r and t,
so du/dt has nothing to add; it would where several futures are possible. Read `Model.forward` and `du_dt`.

Shapes as in nanowm.py; r, t (B,) in 0..1. Context is always clean, and a window has one new frame: with more,
each on its own way from noise, du/dt of one would need the others to stand still. change_weight is nanowm's,
and exact only where the next frame is certain; p_noise, t_sampling, schedule, sampling and eta mean nothing.
What was measured, so far to the disadvantage of this file: docs/plan_and_play.md.
"""
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import nanowm
from imf_policy import along
from nanowm import EVAL, PAD, Config, change_map, example, timestep_embedding  # noqa: F401

SAMPLING = ('sample_steps',)
STILL, JUMP = 0.25, 0.5       # shares of a batch: r = t; t = 1 and r = 0, which is what one step asks for
LEAST_T = 0.02                # no t is smaller, because u divides by it
RADIANS = 4.0                 # per unit of t: with the 1000 of nanowm.py du/dt explodes
WANTED = {'pred': 'x', 'context_t': -1, 'context_loss': False, 'history_level': -1.0, 'snr_gamma': 0.0}

PRESETS = {name: replace(cfg, num_frames=2, n_context=1, **WANTED) for name, cfg in nanowm.PRESETS.items()}


def windows(cfg):
    """As in nanowm.py, and refuses what this file does not know."""
    for key, value in (WANTED | {'num_frames': cfg.n_context + 1}).items():
        if getattr(cfg, key) != value:
            raise ValueError(f'{key} = {getattr(cfg, key)}: must be {value} in nanowm_imf.py')
    return nanowm.windows(cfg)


def draw_times(B, device):
    """r <= t, (B,) each, the smaller and larger of two draws; first those with r = t, last whole jumps."""
    draws = torch.rand(2, B, device=device)
    r, t = draws.min(0).values, draws.max(0).values
    row = torch.arange(B, device=device)
    jump = row >= B - round(JUMP * B)
    t = torch.where(jump, 1.0, t).clamp(min=LEAST_T)
    r = torch.where(row < still(B), t, torch.where(jump, 0.0, r))
    return r, t


def still(B):
    """How many rows have r = t: the first ones."""
    return round(STILL * B)


class Model(nanowm.Model):
    def __init__(self, cfg):
        windows(cfg)
        super().__init__(cfg)
        self.span_embedder = nanowm.Embedder(256, cfg.hidden)        # of t - r; at first the same for all
        nn.init.normal_(self.span_embedder.mlp[0].weight, std=0.02)
        nn.init.zeros_(self.span_embedder.mlp[2].weight)

    def embed_level(self, t):
        """(B, T, 2), t and t - r of each frame, or (B, T) for clean context alone -> (B, T, D)."""
        if t.dim() == 2:
            t = t.new_zeros(*t.shape, 2)
        t, span = (t * RADIANS).unbind(-1)
        return self.t_embedder(timestep_embedding(t)) + self.span_embedder(timestep_embedding(span))

    def frame(self, z, r, t, context, action):
        """f(z, r, t) (B, 1, C, H, W) after context (B, n_context, C, H, W)."""
        times = F.pad(torch.stack([t, t - r], -1)[:, None], (0, 0, context.shape[1], 0))
        out = self.net(torch.cat([context, z], 1), times, action)[:, -1:].float()
        return out + context[:, -1:] if self.cfg.skip else out

    def forward(self, batch):
        """batch: video or latent, action (B, T*k, A); r, t (B,), noise (B, 1, C, H, W), or we draw them."""
        frames, action = self.encode(batch), self.fold_action(batch['action'])
        context, x = frames[:, :-1], frames[:, -1:]
        r, t = (batch['r'], batch['t']) if 'r' in batch else draw_times(len(x), x.device)
        e = batch['noise'] if 'noise' in batch else torch.randn_like(x)
        wide = t[:, None, None, None, None]
        z, span = (1 - wide) * x + wide * e, (t - r)[:, None, None, None, None]
        guess = self.frame(z, r, t, context, action)
        first = 0 if 'r' in batch else still(len(x))     # before it r = t, so du/dt would be multiplied by 0
        slope = torch.zeros_like(x)
        slope[first:] = self.du_dt(*(y[first:] for y in (z, r, t, context, action)))
        square = (guess - x - wide * span * slope).square()
        weight = 1.0
        if self.cfg.change_weight > 0:
            weight = 1 + self.cfg.change_weight * change_map(x, guess, context[:, -1:])
        return {'loss': (square * weight).mean(), 'mse': square.mean().detach()}

    @torch.no_grad()
    @torch.compiler.disable
    def du_dt(self, z, r, t, context, action):
        """sg(du/dt) along (v, 0, 1), v the network's own. Only the MATH kernel has forward derivatives."""
        def u(z, r, t):
            return (z - self.frame(z, r, t, context, action)) / t[:, None, None, None, None]
        with torch.autocast(z.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            return along(u, z, r, t, u(z, t, t))

    @torch.no_grad()
    def denoise(self, x, action, matrix, n_context, t_context=0, eta=0.0, generator=None, newest=None, N=1,
                kv=()):
        """For nanowm's rollout: x (B, n_context + 1, C, H, W), context and noise -> context and a frame."""
        x, known = x.clone(), n_context if kv else 0                 # known: context that is in kv
        grid = torch.linspace(1, 0, self.cfg.sample_steps + 1).tolist()
        for t, r in zip(grid[:-1], grid[1:]):
            times = torch.zeros(*x.shape[:2], 2, device=x.device)
            times[:, -1, 0], times[:, -1, 1] = t, t - r              # fills: nothing is copied to the device
            frame = self.net(x[:, known:], times[:, known:], action, known, list(kv))[0][:, -1].float()
            if self.cfg.skip:
                frame = frame + x[:, -2]
            x[:, -1] += (t - r) / t * (frame - x[:, -1])             # z - (t - r) u
        return x

    def flops_per_sample(self):
        """nanowm's: 3 forwards. Of the rows that move there are one more for v and two for the JVP."""
        moving = 1 - STILL
        return round(super().flops_per_sample() * (3 + moving * (1 + 2)) / 3)


if __name__ == '__main__':    # lesson zero: one step
    torch.manual_seed(0)
    model = Model(PRESETS['tiny'])
    batch = example(model.cfg, batch_size=4)
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters')
    print(f'loss {model(batch)["loss"].item():.4f}')
    context = {'latent': batch['latent'][:, :1], 'action': batch['action'][:, :0]}
    dream = model.rollout(context, action=torch.randn(4, 5, 6, model.cfg.action_dim))['latent']
    print('6 dreamed frames of 5 futures for 4 clips', tuple(dream.shape))
