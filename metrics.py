"""
Measurements as plain functions. Frames are (..., H, W, C) floats in [0, 1].

    psnr, ssim, lpips                       frame against frame -> a score per frame
    frechet, kid of inception_features      FID and KID: a set of frames against another -> a number
    frechet of i3d_features                 FVD: the same for clips
    spearman, bootstrap, wilson             how far to trust a number

Averages are the caller's: a mean of per-frame dB and a dB of the pooled error are different numbers (29.9998
against 22.967 for two frames with errors 0.01 and 0.1), so every function says what its number may be
compared with. Nothing is rounded to uint8, and nothing is computed below float32, autocast or not. Weights of
networks are fetched when first asked for, and cached.
"""
import functools
import os
import sys
import tempfile
import warnings
from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import checkpoint

# ---- image against image ----

def frames(pred, target):
    """
    Both as float32 or float64 of one shape, range checked: a factor of 255 would pass as a terrible score.
    """
    assert pred.shape == target.shape and pred.numel(), \
        f'pred {tuple(pred.shape)} and target {tuple(target.shape)}: want one shape, and not an empty one'
    assert pred.device == target.device, f'pred is on {pred.device}, target on {target.device}; move one'
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
    padded borders added 0.015 to a picture of 64 pixels, nor with scikit-image's default 7x7 box."""
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


# ---- as a network sees it ----

LPIPS_SIDE, FID_SIDE, FVD_SIDE = 64, 299, 224    # pixels; LPIPS takes larger frames, too
FVD_FRAMES = 10         # that a clip should have, as nano-world-model asks; the network itself needs 9
AT_ONCE = 2 ** 20       # pixels that a network sees in one call: under 2 GB of memory, even in vgg


def lpips(pred, target, net='alex'):
    """Perceptual distance LPIPS v0.1, 0 for equal frames. (..., H, W, 3) in [0, 1] -> (...), float32.

    Zhang, Isola, Efros, Shechtman, Wang 2018 (arXiv 1801.03924): two pictures are as far apart as what a
    classifier sees in them. net = 'alex' | 'vgg' | 'squeeze' gives three different numbers, those of the
    package lpips 0.1.4; compare only scores of one net (that of nano-world-model is vgg). Frames under 64
    pixels are enlarged, see `enlargement`; compare those only with frames of that size, enlarged alike."""
    assert net in ('alex', 'vgg', 'squeeze'), f'net = {net!r}: choose alex, vgg or squeeze'
    pred, target = frames(pred, target)
    colours(pred)
    judge = network(net, str(pred.device))
    *lead, H, W, _ = pred.shape
    k = enlargement(H, W)
    pred, target = (x.reshape(-1, H, W, 3) for x in (pred, target))
    return in_parts(lambda p, t: judge(p, t, k), k * H * k * W, pred, target).view(lead)


def enlargement(H, W):
    """By which whole factor `lpips` enlarges frames, each pixel repeated. eval.py says so where it is not 1.

    Up to 64 pixels, the side of the examples in the package lpips; under 31 alex cannot look at all."""
    return max(1, -(-LPIPS_SIDE // min(H, W)))


def inception_features(video):
    """What FID and KID compare: (..., H, W, 3) in [0, 1] -> numpy (N, 2048) float64, a row per frame.

    Network, weights (2015-12-05) and preparation, bilinear to 299 x 299 without antialiasing, are those of
    pytorch-fid 0.3.0. Compare with its scores, and not with those of clean-fid, which resizes otherwise."""
    colours(video)
    x, _ = frames(video, video)
    judge = network('inception', str(x.device))
    x = x.reshape(-1, *x.shape[-3:])
    return in_parts(lambda part: judge(resize(part, FID_SIDE)), FID_SIDE ** 2, x).cpu().double().numpy()


def i3d_features(video, path=''):
    """What FVD compares: (B, T, H, W, 3) in [0, 1], T >= 10 -> numpy (B, 400) float64, a row per clip.

    Give it predicted frames only, without the context. The logits of I3D (Carreira, Zisserman 2017, arXiv
    1705.07750) on Kinetics-400, in the TorchScript of StyleGAN-V, fed with [-1, 1] at 224 x 224, bilinear;
    what is not square is squeezed. Compare FVDs by that file, fed alike, of as many clips of as many frames;
    not those of nano-world-model, which feeds [0, 1], nor of the checkpoint rgb_imagenet. path: another such
    file, code that will be run."""
    assert video.ndim == 5, f'FVD wants clips (B, T, H, W, 3), got {tuple(video.shape)}'
    B, T = video.shape[:2]
    assert T >= FVD_FRAMES, f'FVD wants clips of {FVD_FRAMES} predicted frames or more, got {T}; --horizon'
    colours(video)
    x, _ = frames(video, video)
    judge = i3d(path, str(x.device))

    def logits(clips):                                               # (n, T, 3, H, W)
        x = resize(clips.flatten(0, 1), FVD_SIDE).unflatten(0, clips.shape[:2])
        return judge(x.transpose(1, 2), rescale=False, resize=False, return_features=True)
    features = in_parts(logits, T * FVD_SIDE ** 2, x)
    assert features.shape == (B, 400), f'I3D gives 400 numbers a clip, this network {tuple(features.shape)}'
    return features.cpu().double().numpy()


def frechet(pred, true):
    """Distance of two sets of features (N, d), each taken for a Gaussian: FID, or FVD. -> float

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2), unbiased covariances, in float64; Heusel et al. 2017
    (arXiv 1706.08500). Equal to pytorch-fid's. Small sets make it too large, by about c / N once N > d: say
    N, and compare at the same N only. FID wants 10,000 frames or more; FVD is often of 2,048 clips of 16."""
    pred, true = (np.asarray(x, np.float64) for x in (pred, true))
    (n1, d), (n2, _) = pred.shape, true.shape
    assert min(n1, n2) > 1, f'{n1} and {n2} rows of features: want two or more'
    m1, m2 = pred.mean(0), true.mean(0)
    A, B = (pred - m1) / np.sqrt(n1 - 1), (true - m2) / np.sqrt(n2 - 1)      # C1 = A^T A, C2 = B^T B
    if n1 * n2 <= d * d:                                 # few rows: the same trace without d x d matrices
        root = np.linalg.svd(A @ B.T, compute_uv=False).sum()
    else:
        values, vectors = np.linalg.eigh(A.T @ A)
        half = vectors * np.sqrt(values.clip(0)) @ vectors.T         # C1^(1/2)
        root = np.sqrt(np.linalg.eigvalsh(half @ (B.T @ B) @ half).clip(0)).sum()
    return float(((m1 - m2) ** 2).sum() + (A * A).sum() + (B * B).sum() - 2 * root)


def kid(pred, true):
    """Kernel distance of two sets of features (N, d): squared MMD under (x.y / d + 1)^3. -> float

    Binkowski et al. 2018 (arXiv 1801.01401), unbiased: small sets make it less sure and not larger, and
    it may fall below 0. Published values are often means over subsets of 1,000 rows, and some tables list
    them times 1,000; this is of all rows at once."""
    pred, true = (np.asarray(x, np.float64) for x in (pred, true))
    assert min(len(pred), len(true)) > 1, f'{len(pred)} and {len(true)} rows of features: want two or more'

    def total(x, y):
        """Of the kernel over all pairs, in blocks: of 50,000 rows the whole matrix would be 20 GB."""
        blocks = np.array_split(x, 1 + len(x) // 1000)
        return sum(((block @ y.T / y.shape[1] + 1) ** 3).sum() for block in blocks)
    distance = -2 * total(pred, true) / (len(pred) * len(true))
    for x in pred, true:
        alike = ((x * x).sum(1) / x.shape[1] + 1) ** 3               # each row with itself does not count
        distance += (total(x, x) - alike.sum()) / (len(x) * (len(x) - 1))
    return float(distance)


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
    and FVD, which see a smaller N. One group: nan. Draws whose statistic is nan are left out."""
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
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)      # where all draws are nan, so is the interval
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return low, high


def wilson(wins, n, z=1.959964):
    """
    95 % interval of a probability after `wins` of n trials (Wilson 1927): also where all or none were won.
    """
    assert 0 <= wins <= n and n > 0, f'{wins} wins of {n} trials: want some trials, and no more wins'
    p = wins / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


# ---- the networks ----

def colours(x):
    assert x.ndim >= 3 and x.shape[-1] == 3, f'want frames (..., H, W, 3), got {tuple(x.shape)}'


def resize(x, side):
    """(N, C, H, W) -> (N, C, side, side), without antialiasing, as whoever publishes FID and FVD does."""
    return F.interpolate(x, (side, side), mode='bilinear', align_corners=False)


def in_parts(f, pixels, *sets):
    """
    f over the rows of the sets, (..., H, W, 3) in [0, 1] of `pixels` each, a few at a time, because memory is
    finite: f gets them as these networks want them, (..., 3, H, W) in [-1, 1]. No gradients, and float32 even
    inside autocast or where TF32 is on.
    """
    parts = zip(*(x.split(max(1, AT_ONCE // pixels)) for x in sets))
    with (torch.no_grad(), torch.autocast(sets[0].device.type, enabled=False),
          torch.backends.cudnn.flags(enabled=True, allow_tf32=False)):
        return torch.cat([f(*(2 * x.float().movedim(-1, -3) - 1 for x in part)) for part in parts])


class Lpips(nn.Module):
    """
    Sum over some layers of the mean over places of w . (a - b)^2: a, b is what the layer makes of the two
    pictures, scaled to length 1 at each place; w >= 0, fitted to what people find alike, weighs its channels.
    taps: {layer that is compared: its channels}.
    """

    def __init__(self, features, taps):
        super().__init__()
        self.features, self.taps = features, list(taps)
        self.heads = [nn.Conv2d(channels, 1, 1, bias=False) for channels in taps.values()]
        for k, head in enumerate(self.heads):            # under the names of the published files
            self.add_module(f'lin{k}', nn.ModuleDict({'model': nn.Sequential(nn.Dropout(), head)}))

    def forward(self, pred, target, k):                  # (N, 3, H, W) in [-1, 1], made k times larger
        x = torch.cat([pred, target]).repeat_interleave(k, 2).repeat_interleave(k, 3)
        shift, scale = x.new_tensor([[-.030, -.088, -.188], [.458, .448, .450]])[:, :, None, None]
        x, score = (x - shift) / scale, 0                # the mean and the std of ImageNet
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                length = x.square().sum(1, keepdim=True).sqrt()
                a, b = (x / (length + 1e-10)).chunk(2)
                head = self.heads[self.taps.index(i)]
                score = score + head((a - b).square()).mean((1, 2, 3))
        return score


def alexnet():
    """Krizhevsky 2014 (arXiv 1404.5997), as in torchvision, without what follows on the convolutions."""
    return Lpips(nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()), {1: 64, 4: 192, 7: 384, 9: 256, 11: 256})


def vgg16():
    """Simonyan, Zisserman 2014 (arXiv 1409.1556), in the same way."""
    layers, channels = [], 3
    for out, n in (64, 2), (128, 2), (256, 3), (512, 3), (512, 3):
        for _ in range(n):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return Lpips(nn.Sequential(*layers[:-1]), {3: 64, 8: 128, 15: 256, 22: 512, 29: 512})


class Fire(nn.Module):
    """SqueezeNet's block: few channels, then 1x1 and 3x3 convolutions of them side by side."""

    def __init__(self, channels, few, out):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, few, 1)
        self.expand1x1 = nn.Conv2d(few, out // 2, 1)
        self.expand3x3 = nn.Conv2d(few, out // 2, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


def squeezenet():
    """SqueezeNet 1.1, Iandola et al. 2016 (arXiv 1602.07360), in the same way."""
    return Lpips(nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True), Fire(64, 16, 128), Fire(128, 16, 128),
        nn.MaxPool2d(3, 2, ceil_mode=True), Fire(128, 32, 256), Fire(256, 32, 256),
        nn.MaxPool2d(3, 2, ceil_mode=True), Fire(256, 48, 384), Fire(384, 48, 384),
        Fire(384, 64, 512), Fire(512, 64, 512)), {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512})


def convolution(channels, out, kernel, stride=1, padding='same'):
    """Inception's: with the batch statistics of its training."""
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(channels, out, kernel, stride, padding, bias=False),
        bn=nn.BatchNorm2d(out, eps=0.001),
        relu=nn.ReLU()))


class Mixed(nn.Module):
    """
    Branches of convolutions, NAME=(channels, kernel[, stride, padding]). NAME_2 follows on NAME_1, or NAME_2a
    and NAME_2b do, side by side; branch_pool follows on the pooling. The ends of all are concatenated.
    """

    def __init__(self, channels, pooling, **convolutions):
        super().__init__()
        self.pooling = pooling
        self.before = {name: before(name) for name in convolutions}
        for name, (out, *form) in convolutions.items():
            width, *_ = convolutions.get(before(name), [channels])
            self.add_module(name, convolution(width, out, *form))

    def forward(self, x):
        made = {'input': x, 'pooling': self.pooling(x)}
        for name, earlier in self.before.items():
            made[name] = self.get_submodule(name)(made[earlier])
        ends = [name for name in (*self.before, 'pooling') if name not in self.before.values()]
        return torch.cat([made[name] for name in ends], 1)


def before(name):
    """What a convolution follows on: branch3x3_2a -> branch3x3_1, branch3x3_1 -> input."""
    branch, _, place = name.partition('_')
    if place in ('', '1'):
        return 'input'
    return 'pooling' if place == 'pool' else f'{branch}_{int(place[0]) - 1}'


def inception():
    """
    (N, 3, 299, 299) in [-1, 1] -> (N, 2048). Inception v3 (Szegedy et al. 2015, arXiv 1512.00567) as FID has
    it: means do not count the padding, and the last block takes the largest where the others take means.
    """
    mean, largest = nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.MaxPool2d(3, 1, 1)
    halve = nn.MaxPool2d(3, 2)
    row, column = (1, 7), (7, 1)

    def mixed_5(channels, pooled):
        return Mixed(channels, mean, branch1x1=(64, 1), branch5x5_1=(48, 1), branch5x5_2=(64, 5),
                     branch3x3dbl_1=(64, 1), branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3),
                     branch_pool=(pooled, 1))

    def mixed_6(c):
        return Mixed(768, mean, branch1x1=(192, 1),
                     branch7x7_1=(c, 1), branch7x7_2=(c, row), branch7x7_3=(192, column),
                     branch7x7dbl_1=(c, 1), branch7x7dbl_2=(c, column), branch7x7dbl_3=(c, row),
                     branch7x7dbl_4=(c, column), branch7x7dbl_5=(192, row), branch_pool=(192, 1))

    def mixed_7(channels, pooling):
        return Mixed(channels, pooling, branch1x1=(320, 1),
                     branch3x3_1=(384, 1), branch3x3_2a=(384, (1, 3)), branch3x3_2b=(384, (3, 1)),
                     branch3x3dbl_1=(448, 1), branch3x3dbl_2=(384, 3),
                     branch3x3dbl_3a=(384, (1, 3)), branch3x3dbl_3b=(384, (3, 1)), branch_pool=(192, 1))
    return nn.Sequential(OrderedDict(
        Conv2d_1a_3x3=convolution(3, 32, 3, stride=2, padding=0),
        Conv2d_2a_3x3=convolution(32, 32, 3, padding=0),
        Conv2d_2b_3x3=convolution(32, 64, 3),
        halve_2=halve,
        Conv2d_3b_1x1=convolution(64, 80, 1),
        Conv2d_4a_3x3=convolution(80, 192, 3, padding=0),
        halve_4=halve,
        Mixed_5b=mixed_5(192, 32), Mixed_5c=mixed_5(256, 64), Mixed_5d=mixed_5(288, 64),
        Mixed_6a=Mixed(288, halve, branch3x3=(384, 3, 2, 0),
                       branch3x3dbl_1=(64, 1), branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3, 2, 0)),
        Mixed_6b=mixed_6(128), Mixed_6c=mixed_6(160), Mixed_6d=mixed_6(160), Mixed_6e=mixed_6(192),
        Mixed_7a=Mixed(768, halve, branch3x3_1=(192, 1), branch3x3_2=(320, 3, 2, 0),
                       branch7x7x3_1=(192, 1), branch7x7x3_2=(192, row), branch7x7x3_3=(192, column),
                       branch7x7x3_4=(192, 3, 2, 0)),
        Mixed_7b=mixed_7(1280, mean), Mixed_7c=mixed_7(2048, largest),
        mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))


# ---- their weights ----

NETWORKS = {            # name: how it is built, files of its weights in the cache
    'alex': (alexnet, 'alexnet_features', 'lpips_heads_alex_v0.1'),
    'vgg': (vgg16, 'vgg16_features', 'lpips_heads_vgg_v0.1'),
    'squeeze': (squeezenet, 'squeezenet1_1_features', 'lpips_heads_squeeze_v0.1'),
    'inception': (inception, 'inception_fid'),
}
TORCHVISION = 'https://download.pytorch.org/models/'
HEADS = 'https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/'
SOURCES = {             # file in the cache: the published file that holds its weights, and the sha256 of that
    'alexnet_features': (TORCHVISION + 'alexnet-owt-7be5be79.pth',
                         '7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02'),
    'squeezenet1_1_features': (TORCHVISION + 'squeezenet1_1-b8a52dc0.pth',
                               'b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b'),
    'vgg16_features': (TORCHVISION + 'vgg16-397923af.pth',
                       '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0'),
    'lpips_heads_alex_v0.1': (HEADS + 'alex.pth',
                              'df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0'),
    'lpips_heads_squeeze_v0.1': (HEADS + 'squeeze.pth',
                                 '4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76'),
    'lpips_heads_vgg_v0.1': (HEADS + 'vgg.pth',
                             'a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868'),
    'inception_fid': ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
                      'pt_inception-2015-12-05-6726825d.pth',
                      '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'),
    'i3d': ('https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/'
            '1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt',
            'bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2'),
}


@functools.cache
def network(name, device):
    """One of NETWORKS with its weights, to look through and not to train; read once in a process."""
    build, *files = NETWORKS[name]
    with torch.device('meta'):                           # no random numbers are drawn: a training may be on
        net = build()
    net.to_empty(device='cpu')
    keys = net.state_dict().keys()
    weights = {key: w for file in files for key, w in cached(file, keys).items()}
    counters = [key for key in keys if key.endswith('num_batches_tracked')]      # of the training; not in use
    checkpoint.fill(net, weights, f'{" and ".join(files)} in {checkpoint.cache()}', may_lack=counters)
    return net.to(device).eval().requires_grad_(False)


def cached(file, keys):
    """{key: tensor}, fetched if need be; of a published file, up to 553 MB, only those of `keys` stay."""
    path = os.path.join(checkpoint.cache(), file + '.safetensors')
    if not os.path.exists(path):
        whole = checkpoint.fetch(*SOURCES[file])
        try:
            weights = torch.load(whole, map_location='cpu', weights_only=True)
            with tempfile.TemporaryDirectory(dir=checkpoint.cache()) as folder:
                part = os.path.join(folder, file)
                save_file({key: weights[key].detach().contiguous() for key in weights.keys() & keys}, part)
                os.chmod(part, 0o666 & ~checkpoint.umask())  # safetensors makes it unreadable for others
                os.replace(part, path)
            os.remove(whole)
        except Exception as error:                       # unpickling raises whatever it likes
            if not os.path.exists(path):                 # else another process was faster
                sys.exit(f'cannot make {path} of {whole}: {checkpoint.reason_of(error)}; make room there')
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        sys.exit(f'cannot read {path}: {checkpoint.reason_of(error)}; delete it, and it is fetched again')


def digests(name):
    """{file in the cache: sha256} of the weights of one of NETWORKS, or of 'i3d'; they were loaded before."""
    files = [file + '.safetensors' for file in NETWORKS[name][1:]] if name != 'i3d' else \
            [os.path.basename(SOURCES['i3d'][0])]
    return {file: checkpoint.sha256(os.path.join(checkpoint.cache(), file)) for file in files}


@functools.cache
def i3d(path, device):
    """TorchScript is code: we load only a file of the right digest, which `fetch` checks, or one you name."""
    path = path or checkpoint.fetch(*SOURCES['i3d'])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)      # torch means to give up TorchScript
            return torch.jit.load(path, map_location=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'cannot read {path}: {checkpoint.reason_of(error)}; it should be the TorchScript of I3D')
