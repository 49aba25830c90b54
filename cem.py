"""
Planning by the cross-entropy method over any world model: imagine many futures, keep the best, draw nearer.

Rubinstein 1999; for learned models as in PETS (Chua et al. 2018, arXiv 1805.12114). For i in range(n_iters):

    a^n ~ N(mean, std), clamped to [low, high]       n = 1..N futures of K actions, each number on its own
    J^n = cost(rollout(context, a^n))
    mean, std <- smoothing * old + (1 - smoothing) * (mean, std of the n_elites cheapest)

The first future of each round is the mean itself. What comes back is the last mean, not the cheapest future
ever seen: among thousands of futures the cheapest is the one that the model is most mistaken about.

Actions that are one of A ways, one-hot, have probabilities in place of mean and std: see `choose`.

Every world model of this repository has the `rollout` that is wanted here, and a simulator can have it too.
"""
import torch
import torch.nn.functional as F


@torch.no_grad()
def plan(rollout, context, cost, horizon, low, high, *, n_samples=128, n_iters=8, n_elites=16, smoothing=0.1,
         init=None, n_keep=0, proposals=None, generator=None):
    """
    context: batch dict (B, ...). rollout(context, action (B, N, K, A)) -> dict, for instance of (B, N, K,
    ...); cost(dict) -> (B, N). horizon K: how many actions are planned. A rollout may make more frames of
    them: where they are way-points, as in protocols/plan.py, K counts way-points. low, high (A,): bounds in
    raw units; init (B, K, A): the first mean, default the middle. The first std is a quarter of the range, so
    the whole of it is within two. smoothing: the share of the old mean and std that is kept. n_keep: so many
    of the cheapest futures take part in the next round, too. proposals (B, P, K, A): futures of the first
    round, for instance recorded ones. -> the planned actions (B, K, A).
    """
    low, high = (torch.as_tensor(x, dtype=torch.float32) for x in (low, high))
    assert low.shape == high.shape and (low <= high).all(), \
        f'{low.tolist()} to {high.tolist()}: want low <= high'
    check(horizon, n_iters, n_elites, n_samples)
    given = 0 if proposals is None else proposals.shape[1]
    assert 0 <= n_keep <= n_elites and n_keep < n_samples, \
        f'n_keep = {n_keep}: must lie in 0..n_elites = {n_elites}, below n_samples = {n_samples}'
    assert given < n_samples, f'{given} proposals: want fewer than n_samples = {n_samples}'
    some = next(iter(context.values()))
    B, device = len(some), some.device
    low, high = low.to(device), high.to(device)
    if init is None:
        mean = ((low + high) / 2).expand(B, horizon, -1)
    else:
        mean = init.to(device).float().clamp(low, high)
    std = ((high - low) / 4).expand_as(mean)
    kept = proposals                                                 # futures that are tried in any case
    for _ in range(n_iters):
        z = torch.randn(B, n_samples, *mean.shape[1:], generator=generator, device=device)
        z[:, 0] = 0                                                  # the mean itself
        action = mean[:, None] + std[:, None] * z                    # (B, N, K, A)
        if kept is not None:
            action[:, 1:1 + kept.shape[1]] = kept
        action = action.clamp(low, high)
        best = cheapest(rollout, context, cost, action, n_elites)[:, :, None, None]
        elites = action.gather(1, best.expand(-1, -1, *mean.shape[1:]))
        kept = elites[:, :n_keep]
        mean = smoothing * mean + (1 - smoothing) * elites.mean(1)
        std = smoothing * std + (1 - smoothing) * elites.std(1)
    return mean


@torch.no_grad()
def choose(rollout, context, cost, horizon, ways, *, n_samples=128, n_iters=4, n_elites=16, smoothing=0.1,
           generator=None):
    """
    The same for actions that are one of `ways`, one-hot: a^n ~ p, (K, ways) probabilities that start equal,
    then p <- smoothing * p + (1 - smoothing) * how often the elites chose each. -> (B, K, ways) one-hot, the
    cheapest future of the last round: the likeliest choices of each step need not fit together.
    """
    check(horizon, n_iters, n_elites, n_samples)
    assert ways > 1, f'ways = {ways}: with fewer than 2 there is nothing to choose'
    some = next(iter(context.values()))
    B, device = len(some), some.device
    p = torch.full((B, horizon, ways), 1 / ways, device=device)
    best = None
    for _ in range(n_iters):
        drawn = torch.multinomial(p.flatten(0, 1), n_samples, replacement=True, generator=generator)
        action = F.one_hot(drawn, ways).float().view(B, horizon, n_samples, ways).transpose(1, 2)
        if best is not None:
            action[:, 0] = best                                      # (B, N, K, ways)
        order = cheapest(rollout, context, cost, action, n_elites)[:, :, None, None]
        elites = action.gather(1, order.expand(-1, -1, horizon, ways))
        best = elites[:, 0]
        p = smoothing * p + (1 - smoothing) * elites.mean(1)
    return best


def cheapest(rollout, context, cost, action, n):
    """Which n of the futures (B, N, K, A) cost least, (B, n), the cheapest first."""
    price = cost(rollout(context, action))                           # (B, N)
    assert price.shape == action.shape[:2], \
        f'cost gave {tuple(price.shape)}, want {tuple(action.shape[:2])}: one per future'
    price = price.nan_to_num(torch.inf)                              # a future that blew up is bad
    return price.topk(n, largest=False).indices


def check(horizon, n_iters, n_elites, n_samples):
    assert horizon >= 1 and n_iters >= 1, f'horizon = {horizon}, n_iters = {n_iters}: want at least 1 of each'
    assert 1 < n_elites <= n_samples, f'n_elites = {n_elites}: must lie in 2..n_samples = {n_samples}'
