"""
How do predicted frames look beside true ones? The scores that the video protocol offers, `--scores=`.

    psnr, ssim                              of a frame, without a network
    lpips_alex, lpips_vgg, lpips_squeeze    of a frame, as a network sees it; the mean is told, like all means
                                            with an interval. lpips_enlarged: how often each pixel of frames
                                            under 64 pixels was repeated
    fid, kid                                of the set of all predicted frames against that of the true ones
    fvd                                     the same of clips, which takes 10 predicted frames

What is said of sets beside the number: *_n, the rows of features it was made of, because FID and FVD are too
large where rows are few, so that two of them compare at one n only; *_halves, the mean of the scores of two
halves of the clips. Where that is much larger, the score itself is too large by about as much. There are no
intervals: a clip that is drawn twice would count as one. `weights` has the sha256 of each file of the
networks, and `skipped` says of each score that is None why it could not be computed.
"""
import sys
from functools import partial
from itertools import product

import numpy as np

from checkpoint import reason_of
from metrics import digests, enlargement, frechet, i3d_features, inception_features, kid, lpips, psnr, ssim

LPIPS = {f'lpips_{net}': net for net in ('alex', 'vgg', 'squeeze')}      # name: network
# name: (pred, target), both (B, K, H, W, C) in [0, 1] -> (B, K)
FRAME_SCORES = {'psnr': psnr, 'ssim': ssim} | {name: partial(lpips, net=net) for name, net in LPIPS.items()}
# network: frames (B, K, H, W, C) -> (rows, D) numpy, as many rows for each clip
FEATURES = {'inception': inception_features, 'i3d': i3d_features}
# name: network, (features of the predictions, of the truth) -> number
SET_SCORES = {'fid': ('inception', frechet), 'kid': ('inception', kid), 'fvd': ('i3d', frechet)}
# rows that a Frechet distance should at least be made of: as many as a row has entries
WANTED_ROWS = {'fid': 2048, 'fvd': 400}


# ---- before the work ----

def check(scores):
    """Refuse names that are none."""
    known = (*FRAME_SCORES, *SET_SCORES)
    unknown = [str(name) for name in scores if name not in known]
    if unknown:
        sys.exit(f'video protocol: scores = {", ".join(unknown)}: choose from {", ".join(known)}')


def attempt(f, *args):
    """-> f(*args), '' | nan, why it cannot be computed: one score should not cost the others."""
    try:
        return f(*args), ''
    except (AssertionError, SystemExit, OSError, RuntimeError, MemoryError, np.linalg.LinAlgError) as error:
        return np.nan, reason_of(error)


def rehearse(scores, black):
    """
    Each score once, of black frames (1, K, H, W, C): then its network is there, or it is known why not.
    -> {name: {file: sha256} of its network}, {name: why it cannot be computed}
    """
    weights, skipped = {}, {}
    for name in scores:
        network, _ = SET_SCORES.get(name, (LPIPS.get(name), None))
        frame = black[:, :1]                                 # one will do, but a clip has a least length
        if name in SET_SCORES:
            _, why = attempt(FEATURES[network], black if network == 'i3d' else frame)
        else:
            _, why = attempt(FRAME_SCORES[name], frame, frame)
        if network and not why:
            weights[name], why = attempt(digests, network)
        if why:
            skipped[name] = why
    return weights, skipped


# ---- the scores ----

def columns(guesses, truth, scores):
    """Of frames. guesses: {suffix: (B, K, H, W, C)} -> {name + suffix: (B, K)}"""
    return {name + who: FRAME_SCORES[name](guess, truth)
            for who, guess in guesses.items() for name in scores if name in FRAME_SCORES}


def features(guesses, truth, scores):
    """
    What the scores of sets keep of a batch: {network: {suffix or 'truth': (B, rows of a clip, D)}}. Not the
    frames; float32, as networks compute. FID and KID share theirs.
    """
    everybody = guesses | {'truth': truth}
    networks = dict.fromkeys(SET_SCORES[name][0] for name in scores if name in SET_SCORES)

    def seen(network, frames):
        rows = FEATURES[network](frames).astype(np.float32)
        return rows.reshape(len(frames), -1, rows.shape[-1])
    return {network: {who: seen(network, frames) for who, frames in everybody.items()}
            for network in networks}


def set_scores(scores, batches, seed):
    """
    batches: what `features` made of each. -> {name: number}, {name + suffix: why it is nan}. The halves are
    of equal size, because that decides how much is too large: of an odd number of clips one is in neither.
    """
    result, failed = {}, {}
    for name in scores:
        if name not in SET_SCORES:
            continue
        network, score = SET_SCORES[name]
        sets = {who: np.concatenate([batch[network][who] for batch in batches])  # (clips, rows of a clip, D)
                for who in batches[0][network]}
        truth = sets.pop('truth')
        order, half = np.random.default_rng([seed, 1]).permutation(len(truth)), len(truth) // 2

        def measure(rows, clips, truth=truth, score=score):
            """Both sets cut alike, because clips are paired: each prediction has its truth."""
            return attempt(score, *(x[clips].reshape(-1, x.shape[-1]) for x in (rows, truth)))
        for who, rows in sets.items():
            result[name + who], why = measure(rows, slice(None))
            halves = [measure(rows, clips)[0] for clips in (order[:half], order[half:2 * half])]
            result[f'{name}{who}_halves'] = np.mean(halves)
            if why:
                failed[name + who] = why
        result[f'{name}_n'] = truth.shape[0] * truth.shape[1]
    return result, failed


# ---- for people ----

def facts(scores, weights, skipped, H, W):
    """What the JSON says beside the numbers; nothing where PSNR and SSIM are all that was asked for."""
    told = {'skipped': skipped, 'weights': {file: sha for name in scores if name in weights
                                            for file, sha in weights[name].items()}}
    if any(name in LPIPS for name in scores):
        told['lpips_enlarged'] = enlargement(H, W)       # 1: not at all
    return {key: value for key, value in told.items() if value}


def tell(skipped, quiet):
    for name, why in skipped.items():
        if not quiet:
            print(f'{name} is skipped: {why}', file=sys.stderr)


def show(result, suffixes):
    """A line for each score beyond PSNR and SSIM, another for the halves. suffixes: {title: suffix}."""
    for name, end in product((*LPIPS, *SET_SCORES), ('', '_halves')):
        keys = {title: name + who + end for title, who in suffixes.items() if name + who + end in result}
        cells = [f'{title} -' if result[key] is None else f'{title} {result[key]:.4g}'
                 for title, key in keys.items()]
        if cells:
            print(f'{name + end:>20} {"  ".join(cells)}', file=sys.stderr)
    enlarged = result.get('lpips_enlarged', 1)
    if enlarged > 1:
        print(f'LPIPS is of frames enlarged {enlarged} times; compare it only with such', file=sys.stderr)
    for name, wanted in WANTED_ROWS.items():
        rows = result.get(f'{name}_n', wanted)
        if rows < wanted:
            print(f'{name} is of {rows} rows of features and wants {wanted} or more, else it is much too '
                  f'large; compare it only with one of {rows} rows', file=sys.stderr)
