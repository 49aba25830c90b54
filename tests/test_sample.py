"""sample.py: arrows point where the action leads, bars stand where the numbers are, clips show what they should."""
import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import script, simulate
from test_eval_dynamics import Truth, build, make_robot

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


# ---- robot states ----

def painter():
    """A robot's env.py: pictures whose pixels are the commanded entries of the state, or of the ghost beside it."""
    env = ModuleType('tests_painter')

    def draw(state, ghost=None):
        image = np.zeros((len(state), 8, 8, 3), np.uint8)
        image[..., 0] = (100 + 20 * state[:, 3]).clip(0, 255).astype(np.uint8)[:, None, None]
        if ghost is not None: image[..., 1] = (100 + 20 * ghost[:, 3]).clip(0, 255).astype(np.uint8)[:, None, None]
        return image
    env.draw = draw
    return env


@pytest.mark.parametrize('fps, every', ((0, 1), (10, 2), (5, 4)))
def test_arms_show_truth_and_dream(tmp_path, monkeypatch, fps, every):
    """Truth above, dream over truth below, every n-th frame; the context with a green edge, in which both are equal."""
    monkeypatch.setitem(sys.modules, 'tests_painter', painter())
    folder = make_robot(tmp_path, n=4, val='0.5', env='tests_painter')
    truth, asked = Truth(folder), []

    def late(context, action):                               # a dream that is off by one unit of entry 3
        asked.append(context)
        state = truth(context, action)
        state[..., 3] += 1
        return state
    model = build(folder, late)
    for key, value in (('fps', fps), ('length', 21), ('n_clips', 2)): monkeypatch.setattr(sample, key, value)
    clips = sample.arms(model, folder, 'cpu')
    assert len(clips) == 2 and model.calls[0][2] == 1        # the exact sliding window
    rows = truth.rows(asked[0])
    assert (rows < 140).sum() == 1                           # one window of each of two episodes
    for clip, row in zip(clips, rows):
        state = truth.state[row - 7:row + 22:every, 3]       # 8 frames given, 21 dreamed
        assert clip.shape == (len(state), 16, 8, 3)
        for t, (frame, value) in enumerate(zip(clip, state)):
            given, red = t * every < 8, int(np.float32(100 + 20 * value).clip(0, 255))
            assert (frame[:2] == sample.GREEN).all() == (frame[:, -2:] == sample.GREEN).all() == given
            assert (frame[4, 4] == [red, 0, 0]).all()
            green = red if given else int(np.float32(100 + 20 * (value + 1)).clip(0, 255))
            assert (abs(frame[11, 4].astype(int) - [red, green, 0]) <= 1).all()


def test_curves_plot_what_they_say(tmp_path, monkeypatch):
    """Per commanded entry: the truth all along, the prediction from second 0 on, two std around, the command dotted."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    folder, saved = make_robot(tmp_path, n=4, joint_names=['elbow']), []
    model = build(folder)
    monkeypatch.setattr(sample, 'length', 30)
    monkeypatch.setattr(sample, 'write', lambda path, save: saved.append(
        next(c.cell_contents for c in save.__closure__ if hasattr(c.cell_contents, 'axes'))))
    context, action, truth, meta = sample.recorded(model, folder, 1, 'cpu')
    sample.curves('arm.png', model, context, action, truth, meta)
    new = {key: value[0, 0].numpy() for key, value in model.rollout(context, action, chunk=1).items()}
    true = torch.cat([context['state'], truth], 1)[0]
    for panel, (i, d) in zip(saved[0].axes, enumerate((3, 1))):
        lines = {line.get_label().split(',')[0]: line for line in panel.get_lines()}
        assert np.allclose(lines['true'].get_xdata(), np.arange(-8, 30) / 20)
        assert np.allclose(lines['true'].get_ydata(), true[:, d])
        assert np.allclose(lines['predicted'].get_xdata(), np.arange(30) / 20)
        assert np.allclose(lines['predicted'].get_ydata(), new['state'][:, d])
        assert np.allclose(lines['command'].get_ydata(), action[0, 0, :, i])
        band = np.concatenate([path.vertices for path in panel.collections[0].get_paths()])
        for edge in (-2, 2):
            y = new['state'][-1, d] + edge * new['state_std'][-1, d]
            assert np.abs(band - [29 / 20, y]).max(1).min() < 1e-5
        assert panel.get_ylabel() == f'state {d} [rad]'


def test_a_robot_by_script(tmp_path, monkeypatch):
    """train, then a GIF where the robot knows its looks, else a PNG of curves; a GIF without looks is refused."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    import imageio.v3 as imageio
    monkeypatch.setitem(sys.modules, 'tests_painter', painter())
    folder = make_robot(tmp_path, n=4, val='0.5', env='tests_painter')
    script('train.py', '--model=arx5_gpt', '--dataset=robot', f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/out',
           '--depth=1', '--heads=2', '--hidden=16', '--history=8', '--chunk=4', '--batch_size=8', '--max_steps=1',
           '--device=cpu', '--val_batches=1')
    text, _ = script('sample.py', f'--ckpt={tmp_path}/out', '--length=12', '--n_clips=2', '--device=cpu')
    gif = tmp_path / 'out' / 'samples' / 'step_0000001.gif'
    assert f'{gif}: 2 clips, 8 true frames, 12 dreamed' in text
    assert imageio.imread(gif, index=None).shape == (20, 16, 16, 3)            # both clips, side by side
    assert imageio.immeta(gif, index=0)['duration'] == 40                      # 25 per second
    script('sample.py', f'--ckpt={tmp_path}/out', '--length=12', f'--out={tmp_path}/arm.png', '--device=cpu')
    picture = imageio.imread(tmp_path / 'arm.png')
    assert picture.shape[1] == 12 * 110 and picture.std() > 5
    assert not list(tmp_path.rglob('*.part*'))
    os.rename(folder, tmp_path / 'old')
    make_robot(tmp_path, n=4, val='0.5')                     # the same without `env`
    _, errors = script('sample.py', f'--ckpt={tmp_path}/out', f'--out={tmp_path}/x.gif', '--device=cpu', code=1)
    assert errors.strip() == f'--out={tmp_path}/x.gif: write a .png (film strip, curves)'
    text, _ = script('sample.py', f'--ckpt={tmp_path}/out', '--length=12', '--device=cpu')
    assert 'samples/step_0000001.png: one clip, true and predicted' in text
