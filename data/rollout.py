"""
Closed loop: a plain list of live environments, one policy batched over them.

No vector environment: Gymnasium's start the next episode by themselves and swallow an action doing so. Here
an episode that is over leaves the batch. What is random in acting comes from one generator per episode, so,
but for rounding, an episode does not depend on who else was played, nor on who has finished.
"""
from collections import deque

import numpy as np
import torch


def rollout(envs, seeds, act, history=1):
    """
    One episode on each environment. act(obs, generators) -> (B, n, A): obs {key: (B, history, ...)}, the last
    is now and before the first step it is repeated; the n actions are carried out before it is asked again.
    An environment may have `advance`, a step that returns no observation: what nobody will see is not drawn.
    -> per episode {'actions': list, 'reward': the sum, 'best': the highest, 'won'}
    """
    seen = [deque([env.reset(seed=seed)[0]] * history, history) for env, seed in zip(envs, seeds)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    games = [{'actions': [], 'reward': 0.0, 'best': -np.inf, 'won': False} for _ in envs]
    live = list(range(len(envs)))
    while live:
        chunks = act(stacked([seen[i] for i in live]), [generators[i] for i in live]).cpu().numpy()
        over = set()
        for i, chunk in zip(live, chunks):
            # left: how many of the chunk are still to come
            for left, action in zip(reversed(range(len(chunk))), chunk):
                action = int(action[0]) if hasattr(envs[i].action_space, 'n') else action
                game = games[i]
                if left >= history and hasattr(envs[i], 'advance'):
                    reward, terminated, truncated, info = envs[i].advance(action)
                else:
                    obs, reward, terminated, truncated, info = envs[i].step(action)
                    seen[i].append(obs)
                game['actions'].append(action)
                game['reward'] += reward
                game['best'] = max(game['best'], reward)
                if terminated or truncated:
                    game['won'] = bool(info['won'])
                    over.add(i)
                    break
        live = [i for i in live if i not in over]
    return games


def stacked(seen):
    """B lists of observations -> {key: (B, how many of them, ...)}."""
    return {key: torch.from_numpy(np.stack([[obs[key] for obs in past] for past in seen]))
            for key in seen[0][-1]}
