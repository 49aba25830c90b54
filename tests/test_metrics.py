"""metrics.py against frozen values, closed forms, naive loops and, where installed, scikit-image."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import bootstrap, psnr, spearman, ssim, wilson


def pair(H):
    """The two H x H pictures, float64, whose scores are frozen below."""
    i, j, c = np.meshgrid(np.arange(H), np.arange(H), np.arange(3), indexing='ij')
    wave = lambda a: np.sin(2 * np.pi * a)
    x = 0.5 + 0.45 * wave(i * (c + 1) / 37 + j / (11 + 3 * c)) * np.cos(2 * np.pi * i * j / 4096)
    y = np.clip(x + 0.10 * wave((7 * i + 13 * j + 29 * c) / 64) + 0.05 * np.cos(2 * np.pi * j / 5), 0, 1)
    return torch.from_numpy(x), torch.from_numpy(y)


def test_the_recipe_of_the_pair():
    x, y = pair(64)
    assert x[1, 2, 0].item() == pytest.approx(0.9350369129431455, abs=1e-14) and y[5, 7, 2] == 0
    assert x.mean().item() == pytest.approx(0.49969488427140724, abs=1e-13)
    assert y.mean().item() == pytest.approx(0.499393524378928, abs=1e-13)


# ---- PSNR ----

@pytest.mark.parametrize('H, dB', [(64, 22.159005964239043), (256, 22.124025323675347)])
def test_psnr_frozen(H, dB):
    x, y = pair(H)
    assert psnr(x, y).item() == pytest.approx(dB, abs=1e-10)
    assert psnr(x.float(), y.float()).item() == pytest.approx(dB, abs=1e-4)


def test_psnr_per_frame():
    """Equal frames give 80 dB and not inf; the mean of dB is not the dB of the mean."""
    target = torch.full((2, 3, 12, 10, 3), 0.5)
    assert psnr(target, target).tolist() == [[80.0] * 3] * 2
    off = psnr(target + torch.tensor([0.1, 0.01, 0.5]).view(3, 1, 1, 1), target)
    assert off.shape == (2, 3) and off[0].tolist() == pytest.approx([20, 40, 6.0206], abs=1e-3)
    assert off[0, :2].mean().item() == pytest.approx(29.9998, abs=1e-4)
    zero, one = torch.zeros(1, 4, 4, 1), torch.ones(1, 4, 4, 1)
    assert psnr(zero, one).item() == pytest.approx(0, abs=1e-6)


# ---- SSIM ----

@pytest.mark.parametrize('H, value', [(64, 0.8066167129110738), (256, 0.8672446744826651)])
def test_ssim_frozen(H, value):
    x, y = pair(H)
    assert ssim(x, y).item() == pytest.approx(value, abs=1e-12)
    assert ssim(x.float(), y.float()).item() == pytest.approx(value, abs=2e-6)


def test_ssim_of_constants():
    zero, one = torch.zeros(2, 11, 12, 3), torch.ones(2, 11, 12, 3)
    assert ssim(zero, one).tolist() == pytest.approx([1e-4 / (1 + 1e-4)] * 2, abs=1e-8)
    assert ssim(one, one).tolist() == pytest.approx([1.0] * 2, abs=1e-6)


def test_ssim_naive():
    """One window at a time, not square, one channel: the definition as a loop."""
    x, y = torch.rand(2, 14, 13, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = np.exp(-np.arange(-5, 6) ** 2 / 4.5)
    w = np.outer(g, g) / g.sum() ** 2
    values = []
    for i in range(4):
        for j in range(3):
            a, b = x[i:i + 11, j:j + 11, 0].numpy(), y[i:i + 11, j:j + 11, 0].numpy()
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
            vab = (w * (a - ma) * (b - mb)).sum()
            above = (2 * ma * mb + 1e-4) * (2 * vab + 9e-4)
            values.append(above / ((ma ** 2 + mb ** 2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x, y).item() == pytest.approx(np.mean(values), abs=1e-12)


def test_scikit_image_agrees():
    reference = pytest.importorskip('skimage.metrics', reason='scikit-image is not installed')
    rng = np.random.default_rng(0)
    for shape in ((11, 11, 1), (40, 23, 3)):
        x = rng.random(shape)
        y = np.clip(x + rng.normal(0, 0.1, shape), 0, 1)
        theirs = reference.structural_similarity(x, y, gaussian_weights=True, sigma=1.5, channel_axis=-1,
                                                 use_sample_covariance=False, data_range=1.0)
        assert ssim(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(theirs, abs=1e-12)
        theirs = reference.peak_signal_noise_ratio(x, y, data_range=1.0)        # without the 1e-8
        assert psnr(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(theirs, abs=1e-4)


# ---- both ----

@pytest.mark.parametrize('metric', [psnr, ssim])
def test_frames_are_independent_and_autocast_changes_nothing(metric):
    x, y = torch.rand(2, 4, 5, 16, 12, 3, generator=torch.Generator().manual_seed(1))
    together = metric(x, y)
    assert together.shape == (4, 5) and together.dtype == torch.float32
    assert torch.allclose(together[2, 3], metric(x[2, 3], y[2, 3]), atol=1e-6)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(metric(x, y), together)
    low = metric(x.bfloat16(), y.bfloat16())                    # rounded inputs, but no rounded arithmetic
    assert low.dtype == torch.float32
    assert torch.allclose(low, metric(x.bfloat16().float(), y.bfloat16().float()), atol=1e-6)


@pytest.mark.parametrize('metric', [psnr, ssim])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0.01, 0.3))
def test_invariants(metric, seed, noise):
    """
    Symmetric, blind to flips and to the order of channels, worse with more noise, best for the target itself.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(13, 16, 3, generator=g, dtype=torch.float64)
    e = torch.randn(13, 16, 3, generator=g, dtype=torch.float64)
    y, worse = (x + noise * e).clamp(0, 1), (x + 4 * noise * e).clamp(0, 1)
    score = metric(x, y)
    assert metric(y, x).item() == pytest.approx(score.item(), abs=1e-9)
    for axis in range(3):
        other = metric(x.flip(axis), y.flip(axis))
        assert other.item() == pytest.approx(score.item(), abs=1e-9)
    assert metric(x, worse) < score < metric(x, x)


@pytest.mark.parametrize('metric', [psnr, ssim])
@pytest.mark.parametrize('pred, message', [
    (torch.zeros(12, 12, 1), r'\(12, 12, 1\) and target \(12, 12, 3\)'),
    (torch.zeros(12, 12, 3, dtype=torch.uint8), 'got torch.uint8; divide by 255'),
    (torch.full((12, 12, 3), 255.0), r'lie in \[0, 1\], got 255 to 255'),
    (torch.full((12, 12, 3), -0.5), 'got -0.5 to -0.5; scale or clamp'),
    (torch.full((12, 12, 3), float('nan')), 'got nan'),
])
def test_what_is_no_frame_is_refused(metric, pred, message):
    with pytest.raises(AssertionError, match=message): metric(pred, torch.zeros(12, 12, 3))


def test_ssim_needs_11_pixels():
    with pytest.raises(AssertionError, match='11x11 window, the frames are 40x10'):
        ssim(*torch.zeros(2, 40, 10, 3))


# ---- spearman ----

@pytest.mark.parametrize('ties', (0, 3, 10))
def test_spearman_is_that_of_scipy(ties):
    """
    With ties in one or in both, too: rounding to `ties` values; also for integers and negative correlation.
    """
    stats = pytest.importorskip('scipy.stats', reason='scipy is not installed')
    rng = np.random.default_rng(ties)
    for n in (3, 10, 257):
        for slope in (-2, 0, 0.5):
            x = rng.normal(size=n)
            y = slope * x + rng.normal(size=n)
            for a, b in (x, y), (np.round(x * ties), y), (np.round(x * ties), np.round(y * ties)):
                expected = stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else float('nan')
                assert spearman(a, b) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_spearman_closed_forms():
    """1 and -1 for any monotone pair; ties by hand; nan for a constant; vectors of one length."""
    x = np.array([3.0, -1.0, 7.0, 2.5])
    assert spearman(x, np.exp(x)) == pytest.approx(1) and spearman(x, -x ** 3) == pytest.approx(-1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(3 ** 0.5 / 2)       # ranks 1.5, 1.5, 3 and 1, 2, 3
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3])) and isinstance(spearman([1, 2], [2, 1]), float)
    with pytest.raises(AssertionError, match=r'x \(3,\) and y \(2,\)'): spearman([1, 2, 3], [1, 2])


# ---- bootstrap ----

def mean(rows): return rows.mean()


def test_bootstrap_covers_what_it_claims():
    """95 % intervals of the mean of 60 normals: 200 of them hold the truth about 188 times."""
    rng = np.random.default_rng(0)
    hits, widths = 0, []
    for seed in range(200):
        low, high = bootstrap(rng.normal(3, 2, 60), np.arange(60), mean, n=200, seed=seed)
        hits += low <= 3 <= high
        widths.append(high - low)
    assert 176 <= hits <= 198
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / 60 ** 0.5, rel=0.1)


def test_bootstrap_draws_groups_whole():
    """
    Ten equal clips per episode are one observation: ignoring the groups would narrow the interval by
    sqrt(10).
    """
    values = np.repeat(np.random.default_rng(0).normal(size=30), 10)
    low, high = bootstrap(values, np.repeat(np.arange(30), 10), mean)
    wide, naive = high - low, np.diff(bootstrap(values, np.arange(300), mean)).item()
    assert 2.5 < wide / naive < 4
    per_episode = bootstrap(values[::10], np.arange(30), mean)
    assert (low, high) == pytest.approx(per_episode, abs=1e-12)         # the same draws, ten copies of each


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), groups=st.lists(st.integers(0, 5), min_size=2, max_size=20),
       shift=st.floats(-9, 9))
def test_bootstrap_invariants(seed, groups, shift):
    """Repeatable; blind to the order of rows and to the names of groups; moves with the values."""
    values, groups = np.random.default_rng(seed).normal(size=len(groups)), np.array(groups)
    low, high = bootstrap(values, groups, mean, n=50, seed=seed)
    order = np.random.default_rng(seed).permutation(len(groups))
    for again in (bootstrap(values[order], groups[order], mean, n=50, seed=seed),
                  bootstrap(values, [f'episode {g}' for g in groups], mean, n=50, seed=seed),
                  np.subtract(bootstrap(values + shift, groups, mean, n=50, seed=seed), shift)):
        assert again == pytest.approx((low, high), abs=1e-9, nan_ok=True)
    if len(set(groups)) == 1: assert np.isnan(low) and np.isnan(high)
    else: assert low <= high and values.min() - 1e-9 <= low and high <= values.max() + 1e-9


def test_bootstrap_seed_matters():
    values = np.random.default_rng(0).normal(size=20)
    first, second = (bootstrap(values, np.arange(20), mean, n=50, seed=seed) for seed in (0, 1))
    assert first != second


def test_bootstrap_of_pooled_errors_and_paired_differences():
    """Statistics see whole rows: a dB curve of pooled errors, and two models on the same clips."""
    rng = np.random.default_rng(0)
    difficulty = rng.lognormal(sigma=1, size=(80, 1))
    errors = difficulty * rng.uniform(0.9, 1.1, (80, 4)) * [0.01, 0.02, 0.04, 0.08]         # (clips, steps)
    dB = lambda rows: -10 * np.log10(rows.mean(0))
    low, high = bootstrap(errors, np.arange(80), dB, n=300)
    assert low.shape == high.shape == (4,) and (low < dB(errors)).all() and (dB(errors) < high).all()
    both = np.stack([errors[:, 0], 1.05 * errors[:, 0]], 1)                      # model B: 5 % more error
    alone = bootstrap(both, np.arange(80), dB, n=300)
    gain = bootstrap(both, np.arange(80), lambda rows: -np.diff(dB(rows)).item(), n=300)
    # the pair cancels the clips
    assert gain[0] == pytest.approx(10 * np.log10(1.05)) and gain[1] - gain[0] < 1e-9
    assert (alone[1] - alone[0] > 1).all()


def test_bootstrap_wants_a_group_per_row():
    with pytest.raises(AssertionError, match='3 rows of values, 2 of groups'):
        bootstrap(np.zeros(3), [0, 1], mean)


def test_wilson():
    """By hand: p = 0.41, n = 100; and at the ends, where a normal approximation would say 'certain'."""
    low, high = wilson(41, 100)
    assert abs(low - 0.3187) < 1e-4 and abs(high - 0.5080) < 1e-4
    assert wilson(0, 50)[0] == 0 and 0.07 < wilson(0, 50)[1] < 0.072
    assert wilson(50, 50) == pytest.approx((1 - wilson(0, 50)[1], 1))


def test_draws_without_a_number_are_left_out():
    """Of two episodes one has nothing to score: a quarter of the draws is nan, and the interval is not."""
    values = np.array([[1.0, 1], [0, 0]])                    # sum, count

    def mean(rows):
        total, count = rows.sum(0)
        return total / count if count else np.nan
    assert bootstrap(values, [0, 1], mean) == (1, 1)
    assert np.isnan(bootstrap(0 * values, [0, 1], mean)).all()


def test_inputs_that_are_none():
    with pytest.raises(AssertionError, match='not an empty one'):
        psnr(torch.zeros(0, 12, 12, 3), torch.zeros(0, 12, 12, 3))
    with pytest.raises(AssertionError, match='want some trials'):
        wilson(0, 0)
