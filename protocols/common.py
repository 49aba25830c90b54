"""
What the protocols share: which clips are judged, by which rank, against whom, and how sure we are.

A protocol is a file of this folder; contract.protocol_for says which one eval.py and train.py call:

    Keys        a dataclass: each field a key of eval.py, with its default and a trailing comment
    HINT        the keys that help when a clip is longer than the episodes
    EDGES       optional: True if its clips may leave the episode, as training windows may
    QUICK       optional: {key: value} of Keys, other than by default, for train.py, which judges often
    windows     (cfg, keys, M) -> {key: range of frames} of one clip; M is the model's file. It also refuses
                keys that make no sense, because train.py asks for it before step 0
    evaluate    (model, folder, keys, rank=0, world=1, quiet=True) -> a dict that JSON can hold. Every rank is
                called and returns the same
    show        (result), optional: a table for people, on stderr
"""
import inspect
import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from contract import edges
from data.loader import Store
from metrics import bootstrap

# ---- before the work: whatever cannot go well is said in one line ----

def at_least(protocol, keys, **least):
    """Refuse keys below their least value; every entry of a tuple counts."""
    wrong = []
    for name, low in least.items():
        value = getattr(keys, name)
        entries = value if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(entry, int) and entry >= low for entry in entries):
            wrong.append(f'{name} = {value}: want whole numbers from {low} on')
    if wrong:
        sys.exit(f'{protocol} protocol: ' + '; '.join(wrong))


def try_output(key, path):
    """Can `path` be written? Asked before the work: an hour of it should not end in a missing folder."""
    if os.path.islink(path) or os.path.exists(path) and not os.path.isfile(path):
        sys.exit(f'--{key}={path}: exists and is no regular file, we would replace it; choose another name')
    folder, made = os.path.dirname(os.path.abspath(path)), []
    while not os.path.exists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path + '.tmp', 'w'):
            pass
        os.remove(path + '.tmp')
        for folder in made:                              # a refusal after this one leaves nothing behind
            os.rmdir(folder)
    except OSError as error:
        sys.exit(f'--{key}={path}: {error.strerror}; choose a place that can be written')


def judged_on(P, folder, cfg, keys, M):
    """The clips that a protocol would look at; None where it plays in a simulator."""
    windows = P.windows(cfg, keys, M)
    if windows and not folder:
        sys.exit(f'the {P.__name__.rpartition(".")[2]} protocol judges on a dataset, and the training had '
                 'none: --dataset=...')
    pad = edges(M, cfg) if getattr(P, 'EDGES', False) else {}
    return Store(folder, 'val', windows, hint=P.HINT, **pad) if windows else None


def fits(cfg, store):
    """Model and data must agree about shapes, where both of them name one; of pictures, if it sees any."""
    sees = any(key in ('video', 'latent') or key.startswith('image.') for key in store.windows)
    for key in ('state_dim', 'action_dim', *('input', 'height', 'width', 'channels') * sees):
        fact, own = store.meta['facts'].get(key), getattr(cfg, key, None)
        if None not in (fact, own) and fact != own:
            sys.exit(f'{store.folder} has {key} = {fact}, the model was trained with {own}: they do not '
                     'belong together')
    here, own = store.meta.get('tasks') or [], getattr(cfg, 'tasks', None)
    if 'task' in store.windows and own is not None and here != [*own]:
        sys.exit(f'{store.folder} has other sentences than the training, or in another order ({len(here)}, '
                 f'there {len(own)}): `task` would name wrong ones')


def takes(function, name):
    """Has the function such a keyword? What only some models have is asked for, never assumed."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind == p.VAR_KEYWORD for p in parameters)


def file_of(model):
    """The module that defines the model: its windows, its PAD."""
    return sys.modules[type(model).__module__]


def device_of(model):
    return next(model.parameters()).device


# ---- models of latents ----

def codec_of(meta, folder, vae, device):
    """
    The codec that made the latents of these data, in eval mode. vae: its weights; '' = what meta.json names.
    """
    from vae import SOURCES, load  # here, because models of pixels and states should not pay for it
    told = meta.get('latent')
    if told is None:
        sys.exit(f'{folder}/meta.json does not say which codec made its latents; make it anew: --vae=..')
    if not vae and told['vae'] not in SOURCES:
        sys.exit(f'{folder} was encoded with weights given by a path, called {told["vae"]}: say where they '
                 'are, --vae=PATH')
    codec = load(vae or told['vae'])
    for what, own in (('sha256', codec.sha256), ('scale', codec.scale)):
        if told.get(what, own) != own:
            sys.exit(f'vae = {vae or told["vae"]}: {folder} was encoded with other weights ({what} = '
                     f'{told[what]}, of these {own}); --vae=PATH names those')
    return codec.to(device)


class Decoded:
    """A model of latents whose dreams come with their pictures, for whoever compares or draws those."""

    def __init__(self, model, codec):
        self.model, self.cfg, self.codec = model, model.cfg, codec

    def rollout(self, context, action, **options):
        from vae import decode
        new = self.model.rollout(context, action, **options)
        return new | {'video': decode(self.codec, new['latent'])}


# ---- clips ----

def draw(store, n, rng):
    """Ids of n windows (or all, if there are fewer), in the order in which they lie on disk."""
    return np.sort(rng.choice(len(store), min(n, len(store)), replace=False))


def share(ids, batch_size, rank, world, title, quiet):
    """This rank's batches of the ids -> (place of the first among all ids, ids)."""
    starts = range(0, len(ids), batch_size)
    for i in tqdm(starts[rank::world], desc=title, disable=quiet or rank > 0 or None, leave=False):
        yield i, ids[i:i + batch_size]


def gather(rows, world):
    """The lists of all ranks as one."""
    if world == 1:
        return rows
    parts = [None] * world
    dist.all_gather_object(parts, rows)
    return sum(parts, [])


def cut(store, ids, n_context, device):
    """Windows -> context, action (B, 1, K, A), true states after the context (B, K, S) float64."""
    clips = {key: value.to(device) for key, value in finite(store, ids).items()}
    context = {'state': clips['state'][:, :n_context], 'action': clips['action'][:, :n_context - 1]}
    return context, clips['action'][:, None, n_context - 1:], clips['state'][:, n_context:].double()


def finite(store, ids):
    """The windows, or one line about a number in them that is none."""
    clips = store.windows_at(ids)
    for key in clips.keys() & {'env_state', 'state', 'action'}:
        bad = ~torch.isfinite(clips[key].flatten(1)).all(1)
        if bad.any():
            episode, row = (int(x[bad.nonzero()[0, 0]]) for x in store.locate(ids))
            path = f'{store.folder}/{store.split}/{key}.npy'
            sys.exit(f'{path}: a value soon after row {row}, in episode {episode}, is not finite; make the '
                     'data again')
    return clips


# ---- numbers ----

def minus_best(score, rivals, names, episode, seed):
    """
    The model minus the best of its rivals, each on the same rows, so that what makes a row hard cancels.
    score(who, rows) -> one number per name on these rows, less is better; episode (rows,): what the bootstrap
    draws. -> {minus_best_<name>: the difference, minus_best_<name>_ci: its 95 % interval, best_<name>: who
    that rival is}
    """
    rivals, every = list(rivals), np.arange(len(episode))
    scores = np.stack([score(who, every) for who in rivals])         # (rivals, names)
    # one that blew up is never the best
    best = np.where(np.isfinite(scores), scores, np.inf).argmin(0)   # (names,)

    def difference(rows):
        gap = score('model', rows)
        for i in np.unique(best):
            gap = gap - np.where(best == i, score(rivals[i], rows), 0)
        return gap
    gap = difference(every)
    low, high = bootstrap(every, episode, difference, seed=seed)
    result = {}
    for i, name in enumerate(names):
        result[f'minus_best_{name}'] = gap[i]
        result[f'minus_best_{name}_ci'] = [low[i], high[i]]
        result[f'best_{name}'] = rivals[best[i]]
    return result


def plain(x):
    """Numpy numbers -> Python's, and None for nan, which JSON does not know."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, int | str):
        return x
    return float(x) if np.isfinite(x) else None
