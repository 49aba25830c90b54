"""
Planning by the cross-entropy method over any world model: imagine many futures, keep the best, draw nearer.

Rubinstein 1999; for learned models as in PETS (Chua et al. 2018, arXiv 1805.12114). For i in range(n_iters):

    a^n ~ N(mean, std), clamped to [low, high]       n = 1..N futures of K actions, each number on its own
    J^n = cost(rollout(context, a^n))
    mean, std <- smoothing * old + (1 - smoothing) * (mean, std of the n_elites cheapest)

The first future of each round is the mean itself. What comes back is the last mean, not the cheapest future
ever seen: among thousands of futures the cheapest is the one that the model is most mistaken about.

Every world model of this repository has the `rollout` that is wanted here, and a simulator can have it too.
"""
import torch


@torch.no_grad()
def plan(rollout, context, cost, horizon, low, high, *, n_samples=128, n_iters=8, n_elites=16, smoothing=0.1,
         init=None, generator=None):
    """
    context: batch dict (B, ...). rollout(context, action (B, N, K, A)) -> dict, for instance of (B, N, K,
    ...); cost(dict) -> (B, N). horizon K: how many actions are planned. A rollout may make more frames of
    them: where they are way-points, as in protocols/plan.py, K counts way-points. low, high (A,): bounds in
    raw units; init (B, K, A): the first mean, default the middle. The first std is a quarter of the range, so
    the whole of it is within two. smoothing: the share of the old mean and std that is kept. -> the planned
    actions (B, K, A).
    """
    low, high = (torch.as_tensor(x, dtype=torch.float32) for x in (low, high))
    assert low.shape == high.shape and (low <= high).all(), \
        f'{low.tolist()} to {high.tolist()}: want low <= high'
    assert horizon >= 1 and n_iters >= 1, f'horizon = {horizon}, n_iters = {n_iters}: want at least 1 of each'
    assert 1 < n_elites <= n_samples, f'n_elites = {n_elites}: must lie in 2..n_samples = {n_samples}'
    some = next(iter(context.values()))
    B, device = len(some), some.device
    low, high = low.to(device), high.to(device)
    if init is None:
        mean = ((low + high) / 2).expand(B, horizon, -1)
    else:
        mean = init.to(device).float().clamp(low, high)
    std = ((high - low) / 4).expand_as(mean)
    for _ in range(n_iters):
        z = torch.randn(B, n_samples, *mean.shape[1:], generator=generator, device=device)
        z[:, 0] = 0                                                  # the mean itself
        action = (mean[:, None] + std[:, None] * z).clamp(low, high)                     # (B, N, K, A)
        price = cost(rollout(context, action))                       # (B, N)
        assert price.shape == (B, n_samples), \
            f'cost gave {tuple(price.shape)}, want {B, n_samples}: one per future'
        price = price.nan_to_num(torch.inf)                          # a future that blew up is bad
        best = price.topk(n_elites, largest=False).indices
        elites = action.gather(1, best[:, :, None, None].expand(-1, -1, *mean.shape[1:]))
        mean = smoothing * mean + (1 - smoothing) * elites.mean(1)
        std = smoothing * std + (1 - smoothing) * elites.std(1)
    return mean
