"""
Wall: a dot in two rooms with one door between them, after the smallest world of DINO-WM. numpy only, seconds.
    python data/wall/prepare.py --out=data/wall_pixels

    next = clip(loc + 2 * SCALE * action)     px; a move that meets a wall ends at its face

DINO-WM's square is 65 px wide and ours 32, so every length is theirs times 32 / 65; only the dot keeps its
std of 1.7 px, or one could hardly see it. x is right, y is down, pixel i covers [i - 0.5, i + 0.5]. Read
`clip` first.
"""
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.writer import at_least, common, flags, write  # noqa: E402

SIZE = 32                                               # px, of the picture
SCALE = SIZE / 65                                       # our px per px of DINO-WM
LOW, HIGH = 5 * SCALE - 0.5, SIZE - 5 * SCALE - 0.5     # the border is 5 thick
LEFT, RIGHT = 15.5 - 3 * SCALE, 15.5 + 3 * SCALE        # faces of the wall, 6 thick, in the middle
TOP, BOTTOM = 9 - 4 * SCALE, 9 + 4 * SCALE              # the door, 8 high; off the middle, so up is not down
STD = 1.7                                               # px, of the dot
STEP = 2 * SCALE                                        # px per unit of action
GREY = 110                                              # of the walls; the floor is 0, the dot 255
INF = float('inf')
SOLID = [                                               # ((x0, x1), (y0, y1)), without their faces
    ((-INF, LOW), (-INF, INF)), ((HIGH, INF), (-INF, INF)),
    ((-INF, INF), (-INF, LOW)), ((-INF, INF), (HIGH, INF)),
    ((LEFT, RIGHT), (-INF, TOP)), ((LEFT, RIGHT), (BOTTOM, INF))]


def clip(p, q):
    """Where the move p -> q ends, and whether a wall ended it. p outside all walls (on a face is outside)."""
    first, stop = 1.0, None
    for box in SOLID:
        enter, leave, at = -INF, INF, None           # in parts of the move; inside a box: inside both slabs
        for k, (lo, hi) in enumerate(box):
            d = q[k] - p[k]
            if d == 0:
                if not lo < p[k] < hi:
                    enter = INF
                continue
            a, b = ((lo - p[k]) / d, (hi - p[k]) / d)[::1 if d > 0 else -1]
            if a > enter:
                enter, at = a, (k, lo if d > 0 else hi)
            leave = min(leave, b)
        if 0 <= enter < min(leave, first):
            first, stop = enter, at
    end = p + first * (q - p)
    if stop:
        end[stop[0]] = stop[1]                       # exactly: rounding must not put us into the wall
    return end, stop is not None


def picture(state):
    """state (T, 2) px -> (T, 32, 32, 3) uint8. A pixel is as grey as the share of it that wall covers."""
    i = np.arange(SIZE)
    def cover(lo, hi): return (np.minimum(i + 0.5, hi) - np.maximum(i - 0.5, lo)).clip(0, 1)     # (32,)
    wall = np.maximum.reduce([np.outer(cover(*y), cover(*x)) for x, y in SOLID])     # (H, W)
    near = np.exp(-(i - state[:, :, None])**2 / (2 * STD**2))                        # (T, 2, 32)
    dot = near[:, 1, :, None] * near[:, 0, None, :]                                  # (T, H, W)
    image = GREY * wall + (255 - GREY * wall) * dot
    return np.repeat(np.rint(image).astype(np.uint8)[..., None], 3, axis=-1)


def turn(loc, rng):
    """A new heading, rad: anywhere, or one time in two through the door; never straight into a wall."""
    while True:
        # the far end of the door
        to = (RIGHT, LEFT)[int(loc[0] > 15.5)] - loc[0], (TOP + BOTTOM) / 2 - loc[1]
        heading = np.arctan2(to[1], to[0]) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
        if not clip(loc, loc + STEP * np.array([np.cos(heading), np.sin(heading)]))[1]:
            return heading


def episode(i, seed, frames):
    """Episode i: {'video': (T, 32, 32, 3) uint8, 'action': (T, 2), 'state': (T, 2) float32}, T = frames."""
    rng = np.random.default_rng([seed, i])
    room = (LOW, LEFT) if rng.random() < 0.5 else (RIGHT, HIGH)
    state = np.array([[rng.uniform(*room), rng.uniform(LOW, HIGH)]] * frames)
    action = np.zeros((frames, 2), np.float32)
    hit = True
    for t in range(frames - 1):
        if hit or rng.random() < 0.05:
            heading = turn(state[t], rng)
        length = -1
        while not 0.2 <= length <= 1.8:
            length = rng.normal(1.0, 0.4)            # a truncated normal
        angle = heading + rng.normal(0, 0.2)
        action[t] = length * np.cos(angle), length * np.sin(angle)
        state[t + 1], hit = clip(state[t], state[t] + STEP * action[t].astype(np.float64))
    return {'video': picture(state), 'action': action, 'state': state.astype(np.float32)}


def main():
    p = flags(__doc__, out='data/wall_pixels')
    p.add_argument('--episodes', type=int, default=600, help='how many (default 600)')
    p.add_argument('--frames', type=int, default=50, help='of an episode (default 50)')
    args = p.parse_args()
    at_least(args, episodes=1, frames=2)             # a single frame has no action
    units = {'video': '0-255', 'action': f'{STEP:.4f} px; x right, y down', 'state': 'px; x right, y down'}
    source = 'a re-implementation of the Wall world of DINO-WM (arXiv 2411.04983), fixed wall and door'
    info = {'source': source, 'revision': '1', 'fps': 10, 'units': units,
            'action_names': ['right', 'down'], 'action_arrows': [[1, 0], [0, 1]]}
    play = partial(episode, seed=args.seed, frames=args.frames)
    write(args.out, play, args.episodes, info=info, **common(args, __file__))


if __name__ == '__main__':
    main()
