"""
nanowm.py samples with a cache: the same numbers as the plain walk of bench/plain.py, from fewer passes.

Tolerance: 1e-5 of max(1, largest number), per window, fp32, random weights that are not zero. A dream that is
fed back amplifies rounding, so long rollouts are compared loosely.
"""
import itertools

import pytest
import torch

import nanowm
from bench.plain import plain
from nanowm import Config, Model, scheduling_matrix
from tests.test_math_nanowm import rollout_inputs

MATRICES = 'full_sequence', 'pyramid', 'sequential'
PREDS = 'v', 'x', 'eps', 'flow'


def build(seed=0, **keys):
    """A small net on a rectangle, every weight random, because zero gates would hide what attention does."""
    torch.manual_seed(seed)
    base = dict(height=8, width=12, channels=2, patch=2, hidden=32, heads=2, depth=4, num_frames=5,
                action_dim=3, sample_steps=3, ztsnr=keys.get('pred') != 'eps')
    model = Model(Config(**(base | keys)))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def counted(model):
    """-> the list that grows by the frames of each call of the network."""
    calls, net = [], model.net

    def count(x, *rest, **more):
        calls.append(x.shape[0] * x.shape[1])
        return net(x, *rest, **more)
    model.net = count
    return calls


def near(a, b, tolerance=1e-5):
    return (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


@pytest.mark.parametrize('pred', PREDS)
@pytest.mark.parametrize('injection', nanowm.INJECTIONS)
def test_cached_is_plain(injection, pred):
    """Three matrices, 1 and 3 frames of context, at levels 0 and 20, eta 0 and 1."""
    model = build(injection=injection, pred=pred)
    for mode, given, level, eta in itertools.product(MATRICES, (1, 3), (0, 20), (0.0, 1.0)):
        if eta and pred == 'flow':
            continue
        x, action = torch.randn(2, 5, 2, 8, 12), torch.randn(2, 4, 3)
        matrix = scheduling_matrix(mode, 5 - given, 3, 1000)
        a, b = (walk(x, action, matrix, given, level, eta, torch.Generator().manual_seed(1))
                for walk in (model.denoise, lambda *rest: plain(model, *rest)))
        assert near(a, b), (mode, given, level, eta)
        assert torch.equal(a[:, :given], x[:, :given])


@pytest.mark.parametrize('keys', [
    dict(pred='x', skip=True, n_context=2), dict(context_t=-1, history_level=-1.0, context_loss=False)])
def test_cached_is_plain_with_our_switches(keys):
    model = build(**keys)
    x, action = torch.randn(2, 5, 2, 8, 12), torch.randn(2, 4, 3)
    for mode in MATRICES:
        matrix = scheduling_matrix(mode, 3, 3, 1000)
        assert near(model.denoise(x, action, matrix, 2, -1), plain(model, x, action, matrix, 2, -1))


def test_the_cache_matters_and_the_level_it_was_made_at():
    """Shown at a wrong level, context and finished frames would show in the result: this can fail."""
    model = build(pred='x')
    x, action = torch.randn(2, 3, 2, 8, 12), torch.randn(2, 2, 3)
    matrix = scheduling_matrix('sequential', 2, 3, 1000)
    right, net = model.denoise(x, action, matrix, 1), model.net

    def early(x, t, action, start=0, kv=None):
        return net(x, torch.where(t == 0, 333, t), action, start, kv)
    model.net = early
    assert not near(model.denoise(x, action, matrix, 1), right)


@pytest.mark.parametrize('given, frames, steps, mode, cached, walked, original', [
    (1, 4, 250, 'sequential', 753, 3000, 3000),
    (4, 5, 50, 'sequential', 54, 250, 800),
    (1, 4, 4, 'full_sequence', 13, 16, 16),
    (1, 4, 4, 'pyramid', 15, 24, 24),
    (4, 16, 4, 'sequential', 63, 768, 768)])
def test_frame_forwards(given, frames, steps, mode, cached, walked, original):
    """How many frames pass through the network: here, in the plain walk, in the authors' code."""
    whole = 16 if frames > 4 else frames
    model = build(num_frames=whole, height=4, width=4, depth=2, hidden=16)
    x, action = torch.randn(1, frames, 2, 4, 4), torch.randn(1, frames - 1, 3)
    matrix = scheduling_matrix(mode, frames - given, steps, 1000)
    calls = counted(model)
    a = model.denoise(x, action, matrix, given)
    assert sum(calls) == cached
    calls.clear()
    b = plain(model, x, action, matrix, given)
    assert sum(calls) == walked and near(a, b)
    calls.clear()
    c = plain(model, x, action, matrix, given, whole=True)
    assert sum(calls) == original and near(a, c)


@pytest.mark.parametrize('given', (1, 3))
def test_futures_share_their_context(given):
    """Seven futures: their first window equals seven rollouts of one; the context passes once a clip."""
    model = build(history_level=0.02)
    context, action = rollout_inputs(model.cfg, given=given, N=7, K=2)
    noise, renoise = torch.randn(2, 2, 2, 8, 12), torch.randn(2, given + 2, 2, 8, 12)
    calls = counted(model)
    new = model.rollout(context, action, noise, renoise, history=given, stride=2)['latent']
    assert calls[0] == 2 * given and all(call % 14 == 0 for call in calls[1:])
    assert sum(calls) == 2 * given + 14 * (2 * 3 + 1)                # two frames, three steps, one settles
    for n in range(7):
        alone = model.rollout(context, action[:, n:n + 1], noise, renoise, history=given, stride=2)['latent']
        assert near(new[:, n:n + 1], alone)


@pytest.mark.parametrize('eta', (0.0, 1.0))
@pytest.mark.parametrize('chunk', (1, 2, 7, 9))
def test_chunk_changes_nothing(chunk, eta):
    """In one window to rounding, eta's noise included; longer dreams amplify that rounding."""
    model = build(eta=eta)
    context, action = rollout_inputs(model.cfg, given=2, N=7, K=6)
    a, b = (model.rollout(context, action, history=2, stride=2, chunk=n,
                          generator=torch.Generator().manual_seed(3))['latent'] for n in (0, chunk))
    assert a.shape == b.shape and near(b[:, :, :2], a[:, :, :2]) and near(b, a, 1e-3)


def test_frame_by_frame_is_one_rollout():
    """With noise and renoise given, a dream played move by move is the dream as a whole, to the bit."""
    model = build(history_level=0.02)
    context, action = rollout_inputs(model.cfg, given=1, N=1, K=5)
    noise, renoise = torch.randn(2, 5, 2, 8, 12), torch.randn(2, 6, 2, 8, 12)
    whole = model.rollout(context, action, noise, renoise, history=2)['latent']
    frames, actions = context['latent'], context['action']
    for k in range(5):
        seen = {'latent': frames[:, -2:], 'action': actions[:, -(min(2, k + 1) - 1):] if k else actions}
        start = frames.shape[1] - seen['latent'].shape[1]
        one = model.rollout(seen, action[:, :, k:k + 1], noise[:, k:k + 1], renoise[:, start:k + 2],
                            history=min(2, k + 1))['latent']
        frames, actions = torch.cat([frames, one[:, 0]], 1), torch.cat([actions, action[:, 0, k:k + 1]], 1)
    assert torch.equal(frames[:, 1:], whole[:, 0])


@pytest.mark.parametrize('message, keys', [
    ('chunk = -1: must be at least 1', dict(chunk=-1)),
    (r'noise of shape \(2, 4, 2, 8, 12\): want \(2, 5, 2, 8, 12\)', dict(noise=torch.zeros(2, 4, 2, 8, 12))),
    (r'renoise of shape \(2, 5, 2, 8, 12\): want \(2, 6, ', dict(renoise=torch.zeros(2, 5, 2, 8, 12)))])
def test_what_cannot_be(message, keys):
    model = build()
    context, action = rollout_inputs(model.cfg)
    with pytest.raises(ValueError, match=message):
        model.rollout(context, action, **keys)


def test_a_matrix_that_does_not_fit():
    model, matrix = build(), scheduling_matrix('pyramid', 3, 2, 1000)
    with pytest.raises(ValueError, match='3 frames: want 1 of context \\+ one for each of 3 columns'):
        model.denoise(torch.zeros(1, 3, 2, 8, 12), torch.zeros(1, 2, 3), matrix, 1)


def test_a_matrix_may_stand_still():
    """Rows that repeat cost nothing and change nothing."""
    model = build()
    x, action = torch.randn(2, 4, 2, 8, 12), torch.randn(2, 3, 3)
    matrix = scheduling_matrix('pyramid', 3, 3, 1000)
    assert torch.equal(model.denoise(x, action, matrix, 1),
                       model.denoise(x, action, matrix.repeat_interleave(2, 0), 1))
