"""
Measurements as plain functions. Frames are (..., H, W, C) floats in [0, 1]; a score comes back per frame.

Averages are the caller's: a mean of per-frame dB and a dB of the pooled error are different numbers (29.9998
against 22.967 for two frames with errors 0.01 and 0.1), so every function says what its number may be
compared with. Nothing is rounded to uint8, and nothing is computed below float32, autocast or not.
"""
import numpy as np
import torch

# ---- image against image ----

def frames(pred, target):
    """
    Both as float32 or float64 of one shape, range checked: a factor of 255 would pass as a terrible score.
    """
    assert pred.shape == target.shape, \
        f'pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape'
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    for x in (pred, target):
        low, high = x.to(dtype).aminmax()
        assert x.is_floating_point(), f'frames are floats in [0, 1], got {x.dtype}; divide by 255'
        assert low > -1e-3 and high < 1 + 1e-3, \
            f'frames lie in [0, 1], got {low:.4g} to {high:.4g}; scale or clamp'
    return pred.to(dtype), target.to(dtype)


def psnr(pred, target):
    """Peak signal-to-noise ratio, dB. (..., H, W, C) in [0, 1] -> (...).

    10 log10(1 / (MSE + 1e-8)), MSE over H, W, C of one frame. The 1e-8 is piqa's (PSNR of piqa 1.3): two
    equal frames give 80 dB instead of inf. Compare a mean over frames with other means of per-frame dB, never
    with the dB of a pooled MSE (torchmetrics' default), which is lower by Jensen, nor with scores of frames
    rounded to uint8."""
    pred, target = frames(pred, target)
    mse = (pred - target).square().mean((-3, -2, -1))
    return -10 * torch.log10(mse + 1e-8)


def gaussian_blur(x, taps):
    """Separable, valid: (..., H, W, C) -> (..., H-10, W-10, C). Sums of shifted copies and not a convolution,
    because conv2d would turn to bf16 under autocast and to TF32 on CUDA, and SSIM subtracts nearly equal
    numbers."""
    H, W = x.shape[-3] - len(taps) + 1, x.shape[-2] - len(taps) + 1
    x = sum(w * x[..., i:i + H, :, :] for i, w in enumerate(taps))
    return sum(w * x[..., i:i + W, :] for i, w in enumerate(taps))


def ssim(pred, target):
    """Structural similarity, at most 1. (..., H, W, C) in [0, 1] -> (...), the mean over positions and
    channels.

    Wang, Bovik, Sheikh, Simoncelli 2004: 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, no
    padding, population covariance; per RGB channel, not on luma. Compare with piqa, pytorch-msssim and
    scikit-image (gaussian_weights=True, sigma=1.5, use_sample_covariance=False); not with torchmetrics, whose
    padded borders add 0.015 at 64 pixels, nor with scikit-image's default 7x7 box."""
    x, y = frames(pred, target)
    H, W = x.shape[-3:-1]
    assert min(H, W) >= 11, f'SSIM looks through an 11x11 window, the frames are {H}x{W}; make them larger'
    taps = [np.exp(-(i - 5) ** 2 / (2 * 1.5 ** 2)) for i in range(11)]
    taps = [float(w / sum(taps)) for w in taps]
    mu_x, mu_y, xx, yy, xy = (gaussian_blur(z, taps) for z in (x, y, x * x, y * y, x * y))
    C1, C2 = 0.01 ** 2, 0.03 ** 2                           # (K L)^2 with the range L = 1
    luminance = (2 * mu_x * mu_y + C1) / (mu_x ** 2 + mu_y ** 2 + C1)
    contrast_and_structure = (2 * (xy - mu_x * mu_y) + C2) / (xx - mu_x ** 2 + yy - mu_y ** 2 + C2)
    return (luminance * contrast_and_structure).mean((-3, -2, -1))


# ---- how sure we are ----

def spearman(x, y):
    """
    Rank correlation of x (N,) and y (N,), Spearman 1904; ties get their mean rank. nan where one is constant.
    """
    x, y = np.asarray(x), np.asarray(y)
    assert x.shape == y.shape and x.ndim == 1, f'x {x.shape} and y {y.shape}: want two vectors of one length'
    ranks = []
    for values in (x, y):
        _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (counts.cumsum() - (counts - 1) / 2)[which]   # the mean of the places that equal values share
        ranks.append(rank - rank.mean())
    norm = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm else float('nan')


def bootstrap(values, groups, statistic, n=1000, seed=0):
    """95 % percentile interval of statistic(values) -> (low, high), each of the statistic's shape.

    values (N, ...): one row per clip. groups (N,): the episode of each clip; we draw whole episodes with
    replacement, since clips of one episode repeat one another and would make the interval too narrow.
    statistic gets the drawn rows (M, ...): `lambda e: -10 * np.log10(e.mean(0))` pools squared errors per
    step, columns of two models give a paired difference. For means over clips only: doubled clips bias FID
    and FVD, which see a smaller N. One group: nan."""
    values, groups = np.asarray(values), np.asarray(groups)
    assert len(values) == len(groups), \
        f'{len(values)} rows of values, {len(groups)} of groups; one group per row'
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    if len(members) == 1:                                    # only one draw exists: no spread
        return (np.asarray(statistic(values)) * np.nan,) * 2
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        drawn = rng.integers(len(members), size=len(members))
        draws.append(statistic(values[np.concatenate([members[g] for g in drawn])]))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return low, high


def wilson(wins, n, z=1.959964):
    """
    95 % interval of a probability after `wins` of n trials (Wilson 1927): also where all or none were won.
    """
    p = wins / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
