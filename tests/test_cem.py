"""
cem.plan against a closed form and against its own update written as loops; bounds, nan, seeds, refusals.
"""
import numpy as np
import pytest
import torch

import cem


def seeded(seed=0): return torch.Generator().manual_seed(seed)


class Linear:
    """
    s' = F s + G a; cost |s_K - goal|^2 + 0.1 sum |a|^2. Keeps the futures that it was asked for, and their
    cost.
    """

    def __init__(self, B=2, K=3):
        g = seeded(1)
        self.F, self.G = torch.eye(3) + 0.2 * torch.randn(3, 3, generator=g), torch.randn(3, 2, generator=g)
        self.context, self.goal = {'state': torch.randn(B, 4, 3, generator=g)}, torch.randn(B, 3, generator=g)
        self.K, self.asked, self.paid = K, [], []

    def rollout(self, context, action):
        self.asked.append(action)
        s, states = context['state'][:, None, -1], []
        for k in range(action.shape[2]):
            s = s @ self.F.T + action[:, :, k] @ self.G.T
            states.append(s)
        return {'state': torch.stack(states, 2), 'action': action}

    def cost(self, future):
        away = future['state'][:, :, -1] - self.goal[:, None]
        self.paid.append(away.square().sum(-1) + 0.1 * future['action'].square().sum((2, 3)))
        return self.paid[-1]

    def optimum(self):
        """The quadratic's minimum, by solving for all K actions at once."""
        M = torch.cat([torch.linalg.matrix_power(self.F, self.K - 1 - k) @ self.G for k in range(self.K)], 1)
        free = self.context['state'][:, -1] @ torch.linalg.matrix_power(self.F, self.K).T
        H = M.T @ M + 0.1 * torch.eye(2 * self.K)
        return torch.linalg.solve(H, M.T @ (self.goal - free).T).T.view(-1, self.K, 2)


def test_finds_the_optimum_of_a_quadratic():
    """To 0.02 of actions of size ~1, each context its own."""
    world = Linear()
    best = world.optimum()
    assert best.abs().max() < 3.5 and (best[0] - best[1]).abs().max() > 0.5 and best.abs().max() > 0.5
    found = cem.plan(world.rollout, world.context, world.cost, 3, [-4, -4], [4, 4], n_samples=600, n_iters=25,
                     n_elites=40, generator=seeded())
    assert found.shape == (2, 3, 2) and (found - best).abs().max() < 0.02


@pytest.mark.parametrize('smoothing', (0.0, 0.3))
@pytest.mark.parametrize('given', (False, True))
def test_every_round_by_hand(smoothing, given):
    """
    Mean and std of the cheapest, mixed with the old ones; the first future is the mean; start = init or
    middle.
    """
    world, low, high = Linear(), np.array([-3.0, -1.0]), np.array([5.0, 1.5])
    init = torch.tensor([[[1.0, 0.2]] * 3, [[-1.0, 0.4]] * 3]) if given else None
    found = cem.plan(world.rollout, world.context, world.cost, 3, low, high, n_samples=20, n_iters=3,
                     n_elites=5, smoothing=smoothing, init=init, generator=seeded(7))
    g = seeded(7)
    mean = init.numpy() if given else np.tile((low + high) / 2, (2, 3, 1))
    std = np.tile((high - low) / 4, (2, 3, 1))
    assert len(world.asked) == 3
    for action, price in zip(world.asked, world.paid):
        assert np.allclose(action[:, 0], mean, atol=1e-5)
        z = torch.randn(2, 20, 3, 2, generator=g).numpy()
        z[:, 0] = 0
        assert np.allclose(action, np.clip(mean[:, None] + std[:, None] * z, low, high), atol=1e-5)
        for b in range(2):
            elites = action[b].numpy()[np.argsort(price[b].numpy())[:5]]
            mean[b] = smoothing * mean[b] + (1 - smoothing) * elites.mean(0)
            std[b] = smoothing * std[b] + (1 - smoothing) * elites.std(0, ddof=1)
    assert np.allclose(found, mean, atol=1e-5)               # the last mean, not the cheapest future


def test_bounds_are_kept_and_reached():
    world, low, high = Linear(), torch.tensor([-0.2, -0.1]), torch.tensor([0.1, 0.3])
    found = cem.plan(world.rollout, world.context, world.cost, 3, low, high, generator=seeded())
    for action in world.asked: assert (action >= low).all() and (action <= high).all()
    assert (found >= low).all() and (found <= high).all()
    outside = (world.optimum() < low) | (world.optimum() > high)
    assert outside.any() and (torch.minimum(found - low, high - found)[outside] < 0.02).float().mean() > 0.5


def test_a_dimension_without_room_stays():
    world = Linear()
    found = cem.plan(world.rollout, world.context, world.cost, 3, [0.5, -1], [0.5, 1], generator=seeded())
    assert torch.equal(found[..., 0], torch.full((2, 3), 0.5))


@pytest.mark.parametrize('blown', (float('nan'), float('inf')))
def test_futures_that_blow_up_are_never_elites(blown):
    """Three in four cost nan; all elites are of the fourth."""
    world = Linear()

    def cost(future):
        good = (future['action'][:, :, 0] > 0).all(-1)
        return torch.where(good, 1.0, blown)
    found = cem.plan(world.rollout, world.context, cost, 3, [-1, -1], [1, 1], n_samples=200, n_iters=1,
                     n_elites=20, smoothing=0.0, generator=seeded())
    elites = [a[(a[:, 0] > 0).all(-1)] for a in world.asked[0]]
    assert all(20 < len(e) < 100 for e in elites)
    assert (found[:, 0] > 0.05).all()                        # the mean of all would be about 0


def test_seeds():
    def found(seed):
        world = Linear()
        return cem.plan(world.rollout, world.context, world.cost, 3, [-4, -4], [4, 4], n_iters=2,
                        generator=seeded(seed))
    assert torch.equal(found(0), found(0)) and not torch.equal(found(0), found(1))
    before = torch.get_rng_state()
    found(0)
    assert torch.equal(torch.get_rng_state(), before)        # nothing drawn from the global generator


def test_no_gradient_is_kept():
    world = Linear()
    world.G.requires_grad_()
    found = cem.plan(world.rollout, world.context, world.cost, 3, [-1, -1], [1, 1], n_iters=1)
    assert not found.requires_grad


@pytest.mark.parametrize('wrong, words', [
    (dict(low=[1, -1], high=[-1, 1]), r'\[1.0, -1.0\] to \[-1.0, 1.0\]: want low <= high'),
    (dict(low=[-1], high=[1, 1]), 'want low <= high'),
    (dict(n_iters=-1), 'horizon = 3, n_iters = -1: want at least 1 of each'),
    (dict(horizon=0), 'horizon = 0, n_iters = 8: want at least 1 of each'),
    (dict(n_elites=1), 'n_elites = 1: must lie in 2..n_samples = 128'),
    (dict(n_elites=9, n_samples=8), 'n_elites = 9: must lie in 2..n_samples = 8'),
    (dict(cost=lambda f: f['state'].sum(-1)), r'cost gave \(2, 128, 3\), want \(2, 128\): one per future')])
def test_refusals(wrong, words):
    world = Linear()
    asked = dict(cost=world.cost, horizon=3, low=[-1, -1], high=[1, 1]) | wrong
    with pytest.raises(AssertionError, match=words):
        cem.plan(world.rollout, world.context, **asked)


def test_proposals_and_kept_elites_are_tried():
    """Proposals in the first round, the cheapest of a round in the next, cut to the bounds like all."""
    world = Linear()
    proposals = torch.full((2, 2, 3, 2), 0.5)
    proposals[:, 1] = 9.0
    cem.plan(world.rollout, world.context, world.cost, 3, [-4, -4], [4, 4], n_samples=20, n_iters=3,
             n_elites=5, n_keep=2, proposals=proposals, generator=seeded())
    first, *later = world.asked
    assert torch.equal(first[:, 1:3], proposals.clamp(max=4)) and (first[:, 3:] != first[:, 1:2]).any()
    for before, price, action in zip(world.asked, world.paid, later):
        for b in range(2):
            assert torch.equal(action[b, 1:3], before[b, price[b].argsort()[:2]])


def test_a_good_proposal_is_not_lost():
    """Too few futures to find the optimum from the middle: with it among the proposals they end near it."""
    ends = {}
    for known in (False, True):
        world = Linear()
        best = world.optimum()[:, None]
        found = cem.plan(world.rollout, world.context, world.cost, 3, [-4, -4], [4, 4], n_samples=12,
                         n_iters=6, n_elites=3, n_keep=1, proposals=best if known else None,
                         generator=seeded())
        ends[known] = (found - best[:, 0]).abs().max()
    assert ends[True] < 0.2 and ends[False] > 0.5


class Choices:
    """Four moves, each a step on a plane; cost: the distance to a goal at the end."""
    moves = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0.5]])

    def __init__(self, goals):
        self.goal, self.context = torch.tensor(goals), {'state': torch.zeros(len(goals), 1, 2)}
        self.asked, self.paid = [], []

    def rollout(self, context, action):
        self.asked.append(action)
        return {'state': (action @ self.moves).cumsum(2)}

    def cost(self, future):
        self.paid.append((future['state'][:, :, -1] - self.goal[:, None]).norm(dim=-1))
        return self.paid[-1]

    def find(self, **keys):
        return cem.choose(self.rollout, self.context, self.cost, 5, 4, generator=seeded(), **keys)


def test_choices_reach_what_can_be_reached():
    """Of the 1024 futures of five moves the cheapest, for three goals at once."""
    world = Choices([[2.0, 3.0], [-2.0, -1.0], [0.2, 0.1]])
    found = world.find(n_samples=150, n_iters=6)
    assert found.shape == (3, 5, 4) and ((found == 0) | (found == 1)).all() and (found.sum(-1) == 1).all()
    every = torch.cartesian_prod(*5 * [torch.arange(4)])
    all_ends = world.moves[every].sum(1)                     # (1024, 2)
    least = (all_ends - world.goal[:, None]).norm(dim=-1).amin(1)
    reached = (found @ world.moves).sum(1)
    assert torch.allclose((reached - world.goal).norm(dim=-1), least, atol=1e-5)


def test_choices_by_their_frequency():
    """The cheapest is tried again, so no round gets worse; smoothing keeps possible what no elite chose."""
    world = Choices([[2.0, 3.0], [-2.0, -1.0]])
    world.find(n_samples=40, n_iters=6, n_elites=8, smoothing=0.0)
    prices = torch.stack([p.amin(1) for p in world.paid])
    assert (prices[1:] <= prices[:-1]).all() and (prices[-1] < prices[0]).any()
    for b in range(2):
        elites = world.asked[0][b, world.paid[0][b].argsort(stable=True)[:8]]
        never = elites.sum(0) == 0                           # (5, 4)
        assert never.any() and not world.asked[1][b].sum(0)[never].any()
    world = Choices([[2.0, 3.0]])
    world.find(n_samples=400, n_iters=2, n_elites=8, smoothing=0.5)
    assert world.asked[1][0].sum(0).min() > 20               # a share of 1/8 of 400, or more


@pytest.mark.parametrize('wrong, words', [
    (dict(n_keep=3, n_elites=2), 'n_keep = 3: must lie in 0..n_elites = 2'),
    (dict(n_keep=-1), 'n_keep = -1: must lie in 0..n_elites = 16'),
    (dict(proposals=torch.zeros(2, 128, 3, 2)), '128 proposals: want fewer than n_samples = 128')])
def test_more_refusals(wrong, words):
    world = Linear()
    with pytest.raises(AssertionError, match=words):
        cem.plan(world.rollout, world.context, world.cost, 3, [-1, -1], [1, 1], **wrong)
    with pytest.raises(AssertionError, match='ways = 1: with fewer than 2 there is nothing to choose'):
        cem.choose(world.rollout, world.context, world.cost, 3, 1)
