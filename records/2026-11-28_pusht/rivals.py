"""
The players without a network on the 50 published starts -> rivals.json, the best reward of each episode.

    python records/2026-11-28_pusht/rivals.py        from the root of the repository, half a minute

eval.py plays the same and tells their means. The demonstrations are replayed as well, each from its own
start: `demonstrations`, 206 episodes of the people themselves.
"""
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from data.pusht import env as board_file
from protocols import env as protocol
from protocols import imitation

FOLDER = 'data/pusht_image'


def demonstrations():
    """The best reward of each recorded episode, its actions carried out from its first pose."""
    numbers = [None] * 206
    held_out = 18, 90, 134, 157
    order = {'val': held_out, 'train': [i for i in range(206) if i not in held_out]}
    for split, episodes in order.items():
        actions = np.load(f'{FOLDER}/{split}/action.npy')
        for i, (start, end) in zip(episodes, np.load(f'{FOLDER}/{split}/episodes.npy')):
            board, best = board_file.make_env(), 0.0
            board.reset(seed=i)
            for action in actions[start:end]:
                if not board.over:
                    best = max(best, board.advance(action)[0])
            numbers[i] = best
    return numbers


def main():
    acts = imitation.fitted(FOLDER, (0, 1), range(-1, 1), 8, (('pad', True), ('drop', 1)))
    players = protocol.rivals_of(board_file.__name__) | {
        who: protocol.imitator(act, board_file.__name__, 2, 'best') for who, act in acts.items()}
    scores = {who: [play('pusht', 100_000 + i) for i in range(50)] for who, play in players.items()}
    scores['demonstrations'] = demonstrations()
    (HERE / 'rivals.json').write_text(json.dumps(scores, indent=1) + '\n')
    for who, best in scores.items():
        print(f'{who:>14} {np.mean(best):.3f} +- {np.std(best, ddof=1) / len(best) ** 0.5:.3f} (s.e.), won '
              f'{np.mean(np.array(best) >= 1):.1%}')


if __name__ == '__main__':
    main()
