"""
Beside recordings: how a policy is led along them, and players without a network who are led along too. Each
is a function of windows -> actions (B, n or 1, A) float64.

    hold            tell the robot to stay where it is; where q_index is known
    mean            the mean action of the train split
    ridge           linear in the state that the policy sees, or would see: a fit for each action of the
                    chunk, relative to where the robot is if q_index is known. Every fifth train episode
                    chooses the penalties, so there must be five
    last_action     do again what was done just before; at the first frame like hold, or mean. No policy sees
                    that, and recordings are smooth

And how a policy is misled, to see what it goes by. All else stays as it was, the noise too:

    wrong_sentence  told another sentence of the train split, the same throughout an episode, drawn by seed.
                    Two sentences may mean one thing, or one nobody would do here: that is not looked at
    blind           shown the pictures of any frame of the train split, drawn anew for each look. They tell
                    nothing of what is here, and look like those it learned from: grey ones would not, and it
                    might only be startled
"""
import functools

import numpy as np
import torch

from data.loader import Store
from protocols import common
from protocols.least_squares import choose_strength, chosen, gram, solve

TOLD = 'last_action'          # the player that knows what no policy does
NUMBERS = 'action', 'state', 'env_state', 'pose', 'task'     # all else that a policy may look at are pictures
MOST = 50_000                 # train windows that the ridge is fitted to


def n_action(M, cfg):
    """How many actions .act gives: as Config.n_action says, or those of a training window from now on."""
    return getattr(cfg, 'n_action', M.windows(cfg)['action'].stop)


def replay(model, store, episodes, offsets, seed=0, length=None, change=None):
    """
    Lead a policy along recorded episodes (B,), all at once: it is asked at the frame offsets (B,) of each,
    and again where its answer ends. Yields per look how many frames later it is, which of the B are not over,
    their windows, the answers (., n, A). store: padded windows of all that it sees. length: frames at most.
    change: windows -> those that it is shown instead.
    """
    first, device = store.ends[episodes] - store.per_episode[episodes] + offsets, common.device_of(model)
    frames, start = np.minimum(store.per_episode[episodes] - offsets, length or np.inf), 0
    seeds = [np.random.SeedSequence(row).generate_state(1)[0]
             for row in zip([seed] * len(first), episodes.tolist(), offsets.tolist())]
    generators = [torch.Generator().manual_seed(int(number)) for number in seeds]
    options = {'generators'} if common.takes(model.act, 'generators') else {}
    if hasattr(model, 'reset'):                              # it may keep what it wanted before
        model.reset()
    while (live := np.flatnonzero(frames > start)).size:
        batch = common.finite(store, first[live] + start)
        shown = batch | change(batch) if change else batch
        obs = {key: shown[key].to(device) for key in store.windows if key != 'action'}
        wanted = model.act(obs, **{key: [generators[i] for i in live] for key in options})
        yield start, live, batch, wanted.cpu()
        start += wanted.shape[1]


# ---- misled ----

def misled_by(store, edges, seed):
    """{name: windows -> what is other in them}, for what the policy reads and sees; see the top."""
    looks = {key: offsets for key, offsets in store.windows.items() if key not in NUMBERS}
    reads = {'task': range(1)} if 'task' in store.windows else {}
    train, found = Store(store.folder, 'train', looks | reads | {'action': range(1)}, **edges), {}
    told = np.unique(train.open('task')) if reads else []

    def wrong_sentence(batch):
        episode, n = store.locate(batch['index'].numpy())[0], len(told)
        on = [np.random.default_rng([seed, e]).integers(1, n) for e in episode]      # n on would be its own
        return {'task': torch.from_numpy(told[(np.searchsorted(told, batch['task'].numpy()).T + on).T % n])}

    def blind(batch):
        drawn = [np.random.default_rng([seed, i]).integers(len(train)) for i in batch['index'].tolist()]
        there = train.windows_at(np.array(drawn))
        return {key: there[key] for key in looks}
    if len(told) > 1:
        found['wrong_sentence'] = wrong_sentence
    return found | ({'blind': blind} if looks else {})


# ---- players ----

def players(store, edges):
    """{who: act(windows)}. store: windows of `action` from the one before on, of `state` if data have it."""
    meta, seen, found = store.meta, store.windows.get('state'), {}
    q, mean = meta['facts'].get('q_index'), torch.tensor(meta['stats']['action']['mean'], dtype=torch.float64)
    if seen and q:
        found['hold'] = lambda batch: here(batch, q)
    found['mean'] = lambda batch: mean.expand(len(batch['action']), 1, -1)
    first = next(iter(found.values()))
    weights = ridge(store.folder, seen, tuple(q or ()), store.windows['action'].stop, edges) if seen else None
    if weights is not None:
        found['ridge'] = lambda batch: torch.einsum('bf,nfa->bna', known(batch), weights) + here(batch, q)

    def last_action(batch):
        return batch['action'][:, :1].double().where(batch['mask'][:, :1, None], first(batch))
    return found | {TOLD: last_action}


def here(batch, q):
    """(B, 1, A): the states that the actions command; 0 where nobody knows which."""
    return batch['state'][:, -1:, list(q)].double() if q else 0.0


def known(batch):
    """(B, features), a one at the end."""
    state = batch['state'].double().flatten(1)
    return torch.cat([state, torch.ones_like(state[:, :1])], 1)


@functools.cache                                             # train.py asks every time it evaluates
def ridge(folder, seen, q, n, edges):
    """-> (n, features, A) float64; None with too few episodes to choose a penalty."""
    store = Store(folder, 'train', {'state': seen, 'action': range(n)}, **dict(edges))
    ids = common.draw(store, MOST, np.random.default_rng(0))
    held_out = chosen(store.locate(ids)[0])
    if not held_out.any():
        return None
    A, weights = store.meta['facts']['action_dim'], []
    for fit, judge in zip(*(grams(store, part, q, n) for part in (ids[~held_out], ids[held_out]))):
        one = len(fit) - A - 1
        if min(fit[one, one], judge[one, one]) > 0:          # no episode is as long: as the action before
            W = solve(fit + judge, one, A, choose_strength(fit, judge, one, A))
        weights.append(W)
    return torch.stack(weights)


def grams(store, ids, q, n):
    """Per action of the chunk the Gram matrix of rows [features, 1, action], where that action is real."""
    total = [None] * n
    for part in np.array_split(ids, len(ids) // 1000 + 1):
        batch = common.finite(store, part)
        x, y = known(batch), batch['action'].double() - here(batch, q)
        for k in range(n):
            real = batch['mask'][:, k]
            total[k] = gram(total[k], torch.cat([x[real], y[real, k]], 1))
    return total
