"""
Wall: somebody walks a dot through two rooms with one door between them (env.py). numpy only, seconds.
    python data/wall/prepare.py --out=data/wall_pixels
"""
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.wall.env import BOTTOM, LEFT, LONGEST, RIGHT, STEP, TOP, clip, picture, place  # noqa: E402
from data.writer import at_least, common, flags, write  # noqa: E402


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
    state = np.array([place(rng)] * frames)
    action = np.zeros((frames, 2), np.float32)
    hit = True
    for t in range(frames - 1):
        if hit or rng.random() < 0.05:
            heading = turn(state[t], rng)
        length = -1
        while not 0.2 <= length <= LONGEST:
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
            'action_names': ['right', 'down'], 'action_arrows': [[1, 0], [0, 1]],
            'env': 'data.wall.env', 'action_kind': 'box',
            'play_keys': {'h': [-1, 0], 'j': [0, 1], 'k': [0, -1], 'l': [1, 0]}}
    play = partial(episode, seed=args.seed, frames=args.frames)
    write(args.out, play, args.episodes, info=info, **common(args, __file__))


if __name__ == '__main__':
    main()
