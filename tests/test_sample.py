"""sample.py: arrows point where the action leads, bars stand where the numbers are, clips show what they should."""
import numpy as np
import pytest
import torch
from conftest import simulate

import sample

COMPASS = {'N': (0, -1), 'NE': (1, -1), 'E': (1, 0), 'SE': (1, 1), 'S': (0, 1), 'SW': (-1, 1), 'W': (-1, 0),
           'NW': (-1, -1)}
RIGHT_DOWN = np.eye(2)


def ink(canvas):
    """(n, 2): right and down of the drawn pixels, from the middle."""
    height, width, _ = canvas.shape
    y, x = np.nonzero((canvas == sample.INK).all(2))
    assert ((canvas == sample.INK) | (canvas == sample.PAPER)).all()
    return np.stack([x - (width - 1) / 2, y - (height - 1) / 2], 1)


def points_to(canvas, direction):
    """Does the arrow point there? Its head, all that is far from the line through the middle, lies in front."""
    d = np.array(direction) / np.hypot(*direction)
    p, r = ink(canvas), canvas.shape[0] * 0.42
    along, aside = p @ d / r, p @ [-d[1], d[0]] / r
    head = np.abs(aside) > 0.25
    return along.max() > 0.85 and along.min() < -0.85 and head.sum() > 10 and along[head].min() > 0 \
        and abs(aside.mean()) < 0.1 and np.abs(aside).max() < 0.7


@pytest.mark.parametrize('name', COMPASS)
@pytest.mark.parametrize('height, width', ((28, 28), (40, 112)))
def test_arrows_point_where_the_action_leads(name, height, width):
    direction = np.array(COMPASS[name], float)
    one_hot, table = np.eye(8)[list(COMPASS).index(name)], np.array(list(COMPASS.values()))
    folded = np.concatenate([direction * 3, -direction])     # two raw actions, k = 2
    for canvas in (sample.draw_action(direction, RIGHT_DOWN, height, width),
                   sample.draw_action(direction * 0.01, RIGHT_DOWN, height, width),     # length is no matter
                   sample.draw_action(one_hot, table, height, width),
                   sample.draw_action(folded, RIGHT_DOWN, height, width)):
        assert canvas.shape == (height, width, 3)
        assert [other for other in COMPASS if points_to(canvas, COMPASS[other])] == [name]


def test_no_move_is_a_dot():
    for action in (np.zeros(2), np.array([1.0, 2.0, -1.0, -2.0])):             # the second: there and back
        p = ink(sample.draw_action(action, RIGHT_DOWN, 28, 28))
        assert len(p) > 10 and np.hypot(*p.T).max() < 28 * 0.42 / 3


def test_bars():
    """Without directions: a column per number, up from the middle if positive, down if negative, cut at 1."""
    values = [1.0, -1.0, 0.5, 0.0, -7.0]
    drawn = (sample.draw_action(np.array(values), None, 20, 50) == sample.INK).all(2)
    for i, value in enumerate(values):
        column = drawn[:, i * 10:(i + 1) * 10]
        assert not column[:, [0, 9]].any() and (column[:, 1:9] == column[:, 1:2]).all()           # gaps between them
        rows = np.nonzero(column[:, 5])[0]
        above, below = (rows < 10).sum(), (rows > 10).sum()
        height = round(min(abs(value), 1) * 10)
        assert abs((above if value > 0 else below) - height) <= 1, value
        assert (below if value > 0 else above) == 0 and len(rows) >= 1


@pytest.mark.parametrize('channels', (1, 3))
def test_picture_layout(channels):
    """Per frame: truth, action, dream, a margin of 4 around them; green edges where the frame was given."""
    rng = np.random.default_rng(0)
    real, dream = (rng.integers(100, 200, (4, 12, 16, channels), dtype=np.uint8) for _ in range(2))
    action = np.array([[1, 0], [0, 1], [-1, 0]], float)
    frames = sample.picture(real, dream, action, RIGHT_DOWN, n_context=2, scale=7)
    bar = 12 * 7 // 4
    assert frames.shape == (4, 2 * 84 + bar + 8, 112 + 8, 3) and frames.dtype == np.uint8
    for t, frame in enumerate(frames):
        margin = (frame[:4], frame[-4:], frame[:, :4], frame[:, -4:])
        assert all((side == sample.PAPER[0]).all() for side in margin)
        frame = frame[:, 4:-4]
        for top, want in (4, real[t]), (4 + 84 + bar, dream[t]):
            shown = frame[top:top + 84]
            assert np.array_equal(shown[3::7, 3::7], np.broadcast_to(want, (12, 16, 3)))
            assert (shown[:2] == sample.GREEN).all() == (shown[:, -2:] == sample.GREEN).all() == (t < 2)
        arrow = frame[88:88 + bar]
        if t == 0: assert (arrow == sample.PAPER).all()      # nothing led to the first frame
        else: assert np.array_equal(arrow, sample.draw_action(action[t - 1], RIGHT_DOWN, bar, 112))


@pytest.mark.parametrize('n_context, k', ((1, 1), (3, 2)))
def test_dream_hands_each_action_to_its_frame(n_context, k):
    """A model that knows the rule of the data dreams the truth."""
    class Oracle:
        def rollout(self, context, action, **kw):
            assert action.shape == (2, 1, 5, 2 * k) and context['action'].shape == (2, n_context - 1, 2 * k)
            for v, a in zip(context['video'], context['action'].numpy()):
                for t in range(n_context - 1): assert np.array_equal(simulate(v[t], a[t].reshape(-1, 2))[-1], v[t + 1])
            video = [simulate(v[-1], a[0].reshape(-1, 2).numpy())[k - 1::k] for v, a in zip(context['video'], action)]
            return {'video': torch.from_numpy(np.array(video))[:, None].float() + 0.3}          # rounded by dream
    T = n_context + 5
    rng = np.random.default_rng(0)
    action = rng.integers(-2, 3, (2, (T - 1) * k, 2)).astype(np.float32)
    first = np.zeros((2, 12, 16, 3), np.uint8)
    first[:, 5:7, 7:9] = 255
    video = np.stack([np.concatenate([f[None], simulate(f, a)[k - 1::k]]) for f, a in zip(first, action)])
    batch = {'video': torch.from_numpy(video), 'action': torch.from_numpy(action)}
    dreamed = sample.dream(Oracle(), batch, n_context, 1, 0, '', None)
    assert dreamed.dtype == torch.uint8
    assert torch.equal(dreamed.int().clamp(0, 255), batch['video'].int())
