"""
The sampler of nanowm.py without its cache: what bench/step.py times it against, and tests compare it with.

    plain(model, ...)        every frame of the window passes through the network in every step
    plain(..., whole=True)   and so do the frames behind it, up to num_frames, as in the authors' code

Same arguments as Model.denoise.
"""
from functools import partial

import torch
import torch.nn.functional as F

from nanowm import ddim_step, estimates

WALKS = ('cached', 'plain', 'original')


@torch.no_grad()
def plain(model, x, action, matrix, n_context, t_context=0, eta=0.0, generator=None, newest=None, N=1, kv=(),
          whole=False):
    """-> like x. kv is not looked at."""
    cfg, T = model.cfg, x.shape[1]
    newest = x[:, n_context - 1:n_context] if newest is None else newest
    level = torch.full((n_context,), t_context, device=x.device)
    matrix = matrix.to(x.device)
    behind = cfg.num_frames - T if whole else 0
    for now, then in zip(matrix[:-1], matrix[1:]):
        t = torch.cat([level, now.clamp(min=0)]).expand(len(x), -1)
        shown = x
        if behind:
            t = F.pad(t, (0, behind), value=cfg.timesteps - 1)
            shown = F.pad(x, (0, 0, 0, 0, 0, 0, 0, behind))
            action = F.pad(action, (0, 0, 0, max(0, cfg.num_frames - 1 - action.shape[1])))
        out = model.net(shown, t, action)[:, n_context:T].float()
        new = x[:, n_context:]
        alpha, sigma = model.levels(now)
        if cfg.skip:
            out = out + newest
        x0, eps = estimates(cfg.pred, out, new, alpha, sigma)
        z = None
        if eta:
            z = torch.randn(len(new) // N, *new.shape[1:], generator=generator, device=x.device)
            z = z.repeat_interleave(N, 0)
        step = ddim_step(x0, eps, alpha, sigma, *model.levels(then), eta, z)
        moved = (now != then)[:, None, None, None]
        x = torch.cat([x[:, :n_context], torch.where(moved, step, new)], 1)
    return x


def by_hand(net, walk):
    """Let the model's rollout walk in one of WALKS."""
    if walk == 'cached':
        return
    inner = net.net
    # None, []: the context that futures share is not looked at in advance
    net.net = lambda x, t, action, start=0, kv=None: inner(x, t, action) if kv is None else (None, [])
    net.denoise = partial(plain, net, whole=walk == 'original')


def passes(net, dream, seed):
    """How many frames pass through the network in one dream, and that dream."""
    count, inner = [0], net.net

    def counted(x, *rest, **more):
        out = inner(x, *rest, **more)
        if torch.is_tensor(out) or out[0] is not None:   # None: by_hand has left this pass out
            count[0] += x.shape[0] * x.shape[1]
        return out
    net.net = counted
    torch.manual_seed(seed)                              # the noise is that of every other walk
    new = dream()
    net.net = inner
    return count[0], next(iter(new.values())).float()
