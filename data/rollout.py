"""
Closed loop: a plain list of live environments, one policy batched over them.

No vector environment: Gymnasium's start the next episode by themselves and swallow an action doing so. Here
an episode that is over leaves the batch. What is random in acting comes from one generator per episode, so an
episode does not depend on who else was played, nor on who has finished.
"""
import numpy as np
import torch


def rollout(envs, seeds, act):
    """
    One episode on each environment. act(obs, generators) -> (B, n, A): obs {key: (B, 1, ...)}, and the n
    actions are carried out before it is asked again.
    -> per episode {'actions': list, 'reward': the sum, 'won'}
    """
    obs = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    games = [{'actions': [], 'reward': 0.0, 'won': False} for _ in envs]
    live = list(range(len(envs)))
    while live:
        batch = {key: torch.from_numpy(np.stack([obs[i][key] for i in live]))[:, None]
                 for key in obs[live[0]]}
        chunks = act(batch, [generators[i] for i in live]).cpu().numpy()
        over = set()
        for i, chunk in zip(live, chunks):
            for action in chunk:
                action = int(action[0]) if hasattr(envs[i].action_space, 'n') else action
                obs[i], reward, terminated, truncated, info = envs[i].step(action)
                game = games[i]
                game['actions'].append(action)
                game['reward'] += reward
                if terminated or truncated:
                    game['won'] = bool(info['won'])
                    over.add(i)
                    break
        live = [i for i in live if i not in over]
    return games
