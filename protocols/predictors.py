"""
Predictors that anybody could have written, beside which the score of a dynamics model means something. Each
is a function (context, action (B, 1, K, A)) -> states (B, K, S), in data units like a model's rollout.

    persistence         the last state stays
    constant_velocity   positions go on as they move, velocities stay
    hold, servo         perfect obedience: to the last command before, or to each command, one frame later
    least_squares_n     s' = W [s, a of the last n frames; 1], rolled out on its own predictions
    ..._products        the same, and all products of pairs of numbers of the newest frame
    ..._ridge           like least_squares_n, with a penalty that is chosen inside the train split

The last three are in least_squares.py: closed forms over the train split; the val split is never read.
"""
import torch

from protocols.least_squares import PRODUCT_LAGS, least_squares, least_squares_products, least_squares_ridge


def rivals(folder, meta, lags, products, ridge):
    """All that the keys ask for: {name: predictor}. products: only where q_index is known."""
    found = simple(meta)
    for n in lags:
        found[f'least_squares_{n}'] = least_squares(folder, n)
    if products and meta.get('q_index'):
        found[f'least_squares_{PRODUCT_LAGS}_products'] = least_squares_products(folder, PRODUCT_LAGS)
    for n in ridge:
        found[f'least_squares_{n}_ridge'] = least_squares_ridge(folder, n)
    return found


def simple(meta):
    """Those that need no data: {name: predictor}."""
    groups, q, fps = meta.get('groups') or {}, meta.get('q_index'), meta['fps']
    rates = [(g['dims'], groups[g['rate_of']]['dims']) for g in groups.values() if 'rate_of' in g]

    def persistence(context, action):
        return context['state'][:, -1:].repeat(1, action.shape[2], 1)

    def constant_velocity(context, action):
        last = context['state'][:, -1:]
        step = last - context['state'][:, -2:-1]                     # where no velocity is measured
        for velocity, position in rates:
            step[..., position] = last[..., velocity] / fps
            step[..., velocity] = 0
        return last + step * torch.arange(1, action.shape[2] + 1, device=step.device)[:, None]

    def obey(context, commands):                             # commands (B, K+1, A), from the one before on
        state = context['state'][:, -1:].repeat(1, commands.shape[1] - 1, 1)
        state[..., q] = commands[:, 1:]
        for velocity, position in rates:
            for v, p in zip(velocity, position):
                if p in q:                                           # what nobody commands keeps its velocity
                    state[..., v] = commands.diff(dim=1)[..., q.index(p)] * fps
        return state

    def servo(context, action):
        return obey(context, torch.cat([context['action'][:, -1:], action[:, 0]], 1))

    def hold(context, action):
        return obey(context, context['action'][:, -1:].repeat(1, action.shape[2] + 1, 1))

    found = {'persistence': persistence, 'constant_velocity': constant_velocity}
    return found | {'hold': hold, 'servo': servo} if q else found
