"""
Discs: a hand goes straight to the disc that a sentence names (env.py). numpy only, seconds.
    python data/discs/prepare.py --out=data/discs_pixels
"""
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.discs import env as E  # noqa: E402
from data.writer import at_least, common, flags, write  # noqa: E402

STILL = 4         # frames at the end in which the hand stays, because who is judged there must also stay


def episode(i, seed):
    """
    Episode i of T frames: image.top (T, 3, 16, 16) uint8; state, the hand, and action, its next move, (T, 2)
    float32; task (T,) int32, a row of E.SENTENCES, the same throughout.
    """
    rng = np.random.default_rng([seed, i])
    hand, places, colours = E.board(rng)
    task = E.sentence(int(colours[0]), rng)
    hands, moves = [hand], []
    while E.length(way := places[0] - hand) > 1e-6:                  # farther than float32 is off
        moves.append((way * min(1, E.STEP / E.length(way))).astype(np.float32))
        hand = E.moved(hand, moves[-1])
        hands.append(hand)
    moves += [np.zeros(2, np.float32)] * STILL
    hands = np.array(hands + [hand] * (STILL - 1))
    return {'image.top': E.picture(hands, places, colours), 'state': hands.astype(np.float32),
            'action': np.array(moves), 'task': np.full(len(hands), task, np.int32)}


def main():
    p = flags(__doc__, out='data/discs_pixels')
    p.add_argument('--episodes', type=int, default=4000, help='how many (default 4000)')
    args = p.parse_args()
    at_least(args, episodes=1)
    units = {'image.top': '0-255', 'state': 'widths of the board; x right, y down',
             'action': f'the same, at most {E.STEP}', 'task': 'a number of tasks'}
    info = {'source': 'straight ways of a hand to one of two discs, drawn here', 'revision': '1',
            'fps': E.FPS, 'units': units, 'env': 'data.discs.env', 'state_names': ['x', 'y'],
            'action_names': ['right', 'down'], 'action_arrows': [[1, 0], [0, 1]],
            'tasks': E.SENTENCES, 'held_out': E.HELD_OUT,
            'facts': {'cameras': ['top'], 'height': E.SIZE, 'width': E.SIZE}}
    write(args.out, partial(episode, seed=args.seed), args.episodes, info=info, padded=(),
          **common(args, __file__))


if __name__ == '__main__':
    main()
