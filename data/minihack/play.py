"""
Games: of a student, many at once, and of a teacher that may take over where the student went.

    games([(name, seed), ...], act)             as data/rollout.py, on levels of data/minihack/env.py
    RIVALS[who](name, seed)                     was it won? By players that learned nothing
    lesson(name, seed, 'explore', rng, prefix)  what the teacher saw and did, after the actions of `prefix`
"""
import numpy as np

from data.minihack.env import environments, options
from data.minihack.oracles import ORACLES
from data.rollout import rollout

__all__ = ['RIVALS', 'games', 'lesson', 'options']
AT_ONCE = 64                  # games; each is a NetHack of its own, of some 10 MB


def games(levels, act, **keys):
    """levels [(name, seed)] -> what rollout returns, in that order."""
    played = []
    for i in range(0, len(levels), AT_ONCE):
        names, seeds = zip(*levels[i:i + AT_ONCE])
        played += rollout(environments(names, **keys), seeds, act)
    return played


def lesson(name, seed, teacher, rng, prefix=(), **keys):
    """
    -> (episode, won). episode: glyphs (T, 21, 79) and local (T, 9, 9) before each action (T, 1) of the
    teacher, who watched the actions of `prefix`. The last action is real, the screen after it is not kept.
    """
    player = ORACLES[teacher]
    env, = environments([name], **keys | player.NEEDS)
    obs, _ = env.reset(seed=seed)
    oracle, actions = player(env, rng), []
    for action in prefix:
        oracle.follow(action)
        obs, _, over, cut, _ = env.step(action)
        assert not (over or cut), 'the prefix ends the game: no action is left for the teacher'
    seen = {'glyphs': [], 'local': []}
    over = cut = False
    while not (over or cut):
        action = oracle.act()
        for key, frames in seen.items():
            frames.append(obs[key])
        actions.append(action)
        obs, _, over, cut, info = env.step(action)
    episode = {key: np.stack(frames) for key, frames in seen.items()}
    return episode | {'action': np.array(actions, np.uint8)[:, None]}, info['won']


def taught(teacher):
    """A rival that plays as a teacher does."""
    return lambda name, seed: lesson(name, seed, teacher, np.random.default_rng(seed))[1]


def random_walk(name, seed):
    """A compass move, drawn evenly, until the end."""
    env, = environments([name])
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    while True:
        *_, over, cut, info = env.step(int(rng.integers(8)))
        if over or cut:
            return info['won']


RIVALS = {'explore': taught('explore'), 'bfs5': taught('bfs5'), 'random': random_walk}
