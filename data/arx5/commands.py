"""
Commands worth recording for the ARX5: the reference that the arm follows in an episode.

    references(rng, frames)    (frames, 7) at 50 Hz, inside SAFE and never faster than CAP; three families:
    minjerk                    half of all episodes: moves from pose to pose, smooth as a hand's
    sines                      a quarter: three sines per joint, where one sees delays and resonance
    wander                     a quarter: filtered noise, which visits what nobody thought of
"""
import numpy as np

from data.arx5.env import CAP, FPS, SAFE


def minjerk(rng, frames):
    """Moves between random poses, 10 s^3 - 15 s^4 + 6 s^5, top speed 1.875 / duration, and short rests."""
    at, rows, known = rng.uniform(*SAFE), [], 0
    while known < frames:
        to = np.where(rng.random(7) < 0.7, rng.uniform(*SAFE), at)       # three joints in ten stay
        shortest = (1.875 * np.abs(to - at) / CAP).max()                 # s, or a joint would be too fast
        duration = max(rng.uniform(0.4, 2.5), shortest)
        steps = np.ceil(duration * FPS)
        s = (np.arange(steps) + 1)[:, None] / steps
        move = at + (to - at) * s**3 * (10 - 15 * s + 6 * s**2)
        rest = np.tile(to, (int(rng.uniform(0, 0.6) * FPS), 1))
        rows += [move, rest]
        known += len(move) + len(rest)
        at = to
    return np.concatenate(rows)[:frames]


def sines(rng, frames):
    """
    Three sines per joint. Each one's amplitude: at most a third of half the range, and of what the speed cap
    allows, times U(0.2, 1). Their centre lies wherever the sum then stays inside.
    """
    hertz = np.exp(rng.uniform(np.log(0.05), np.log(1.2), (3, 7)))
    room = (SAFE[1] - SAFE[0]) / 2 / 3
    speed = CAP / (2 * np.pi * hertz * 3)                                # top speed is 2 pi f amplitude
    amplitude = np.minimum(room, speed) * rng.uniform(0.2, 1, (3, 7))
    centre = rng.uniform(SAFE[0] + amplitude.sum(0), SAFE[1] - amplitude.sum(0))
    phase = rng.uniform(0, 2 * np.pi, (3, 7))
    t = np.arange(frames)[:, None, None] / FPS
    return centre + (amplitude * np.sin(2 * np.pi * hertz * t + phase)).sum(1)


def decay(x, a):
    """y[t] = a y[t-1] + x[t] along the first axis, by doubling: log2(frames) passes, no loop over frames."""
    y, k = x.copy(), 1
    while k < len(y) and a**k > 1e-20:                                   # y[t] sums a^i x[t-i] over i < k
        y[k:] += a**k * y[:-k].copy()
        k *= 2
    return y


def wander(rng, frames):
    """Ornstein-Uhlenbeck noise, tau 0.6 s and sigma a quarter of the range, through a low-pass of 0.15 s."""
    a, b = np.exp(-1 / (0.6 * FPS)), np.exp(-1 / (0.15 * FPS))
    x = rng.normal(size=(frames, 7)) * np.sqrt(1 - a**2)
    x[0] /= np.sqrt(1 - a**2)                                            # the first row has the spread of all
    x = decay(x, a)
    x[1:] *= 1 - b                                                       # the filter begins where noise does
    return SAFE.mean(0) + 0.25 * (SAFE[1] - SAFE[0]) * decay(x, b)


FAMILIES = {'minjerk': minjerk, 'sines': sines, 'wander': wander}


def references(rng, frames, family=None):
    """(frames, 7) commands. family: a key of FAMILIES; None draws one, minjerk as often as the other two."""
    family = family or ('minjerk', 'minjerk', 'sines', 'wander')[rng.integers(4)]
    x = FAMILIES[family](rng, frames).clip(*SAFE)
    step = CAP / FPS
    for t in range(1, frames):                                           # the SDK's limit on their rate
        x[t] = np.minimum(np.maximum(x[t], x[t - 1] - step), x[t - 1] + step)
    return x
