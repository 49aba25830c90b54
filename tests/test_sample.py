"""sample.py and draw/: what a picture says is true, it plays at the right speed; bad wishes get one line."""
import os
import shutil
import sys
from types import ModuleType, SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import TINY, script, simulate
from PIL import Image
from safetensors.torch import load_file, save_file

import arx5_gpt
import nanowm
import sample
from data.loader import Store, read_meta
from data.writer import write
from draw import actions as beside
from draw import common, states, video

COMPASS = {'N': (0, -1), 'E': (1, 0), 'S': (0, 1), 'W': (-1, 0), 'NE': (1, -1), 'SE': (1, 1), 'SW': (-1, 1),
           'NW': (-1, -1)}
RIGHT_DOWN = np.eye(2)
ONES = np.ones(9)


# ---- arrows and bars ----

def ink(canvas):
    """(n, 2): right and down of the drawn pixels, from the middle."""
    height, width, _ = canvas.shape
    y, x = np.nonzero((canvas == common.INK).all(2))
    assert ((canvas == common.INK) | (canvas == common.PAPER)).all()
    return np.stack([x - (width - 1) / 2, y - (height - 1) / 2], 1)


def points_to(canvas, direction):
    """Does the arrow point there? Its head, all that is far from the middle line, lies in front."""
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
    for action, arrows in ((direction, RIGHT_DOWN), (direction * 0.01, RIGHT_DOWN), (one_hot, table),
                           (folded, RIGHT_DOWN)):            # length is no matter
        canvas = video.draw_action(action, arrows, ONES, height, width)
        assert canvas.shape == (height, width, 3)
        assert [other for other in COMPASS if points_to(canvas, COMPASS[other])] == [name]


def test_no_move_is_a_dot():
    for action in (np.zeros(2), np.array([1.0, 2.0, -1.0, -2.0])):             # the second: there and back
        p = ink(video.draw_action(action, RIGHT_DOWN, ONES, 28, 28))
        assert len(p) > 10 and np.hypot(*p.T).max() < 28 * 0.42 / 3


def test_bars():
    """Without directions: a column per number, up from the middle if positive, else down, cut at the edge."""
    values = [1.0, -1.0, 0.5, 0.0, -7.0]
    drawn = (common.bars(np.array(values), 20, 50) == common.INK).all(2)
    for i, value in enumerate(values):
        column = drawn[:, i * 10:(i + 1) * 10]
        assert not column[:, [0, 9]].any()                   # gaps between them
        assert (column[:, 1:9] == column[:, 1:2]).all()
        rows = np.nonzero(column[:, 5])[0]
        above, below = (rows < 10).sum(), (rows > 10).sum()
        height = round(min(abs(value), 1) * 10)
        assert abs((above if value > 0 else below) - height) <= 1, value
        assert (below if value > 0 else above) == 0 and len(rows) >= 1


def test_bars_count_in_what_the_data_show():
    """A robot that moves by hundredths is seen; a key fills its bar; what never moves is a line."""
    stats = {'std': [0.01, 1.0, 0.0], 'min': [-0.2, 0.0, 0.0], 'max': [0.3, 1.0, 0.0]}
    full = video.full_scale(stats)
    assert np.allclose(full, [0.03, 1, 1])
    raw, folded = [0.015, 1.0, 0.0], [0.015, 1.0, 0.0, 0.03, 0.0, 0.0]         # k = 2
    for action, want in ((raw, [15, 30, 1]), (folded, [15, 30, 1, 30, 1, 1])):
        canvas = video.draw_action(np.array(action), None, full, 60, 10 * len(action))
        heights = (canvas == common.INK).all(2).sum(0)[5::10]
        assert np.abs(heights - want).max() <= 1


# ---- recorded clips ----

@pytest.mark.parametrize('channels', (1, 3))
def test_strip_layout(channels):
    """Per frame: truth, action, dream, a margin of 4 around them; green edges where the frame was given."""
    rng = np.random.default_rng(0)
    real, dream = (rng.integers(100, 200, (4, 12, 16, channels), dtype=np.uint8) for _ in range(2))
    action = np.array([[1, 0], [0, 1], [-1, 0]], float)
    frames = video.strip(real, dream, action, RIGHT_DOWN, ONES, n_context=2, scale=7)
    bar = 12 * 7 // 4
    assert frames.shape == (4, 2 * 84 + bar + 8, 112 + 8, 3) and frames.dtype == np.uint8
    for t, frame in enumerate(frames):
        margin = (frame[:4], frame[-4:], frame[:, :4], frame[:, -4:])
        assert all((side == common.PAPER[0]).all() for side in margin)
        frame = frame[:, 4:-4]
        for top, want in (4, real[t]), (4 + 84 + bar, dream[t]):
            shown = frame[top:top + 84]
            assert np.array_equal(shown[3::7, 3::7], np.broadcast_to(want, (12, 16, 3)))
            edges = [(edge == common.GREEN).all() for edge in (shown[:2], shown[:, -2:])]
            assert edges == [t < 2, t < 2]
        arrow = frame[88:88 + bar]
        if t == 0:
            assert (arrow == common.PAPER).all()             # nothing led to the first frame
        else:
            assert np.array_equal(arrow, video.draw_action(action[t - 1], RIGHT_DOWN, ONES, bar, 112))


@pytest.mark.parametrize('n_context, k', ((1, 1), (3, 2)))
def test_each_action_meets_its_frame(data_dir, n_context, k):
    """A model that knows the rule of the data dreams the truth."""
    class Oracle:
        cfg = SimpleNamespace(width=16)

        def rollout(self, context, action, stride, generator):
            assert action.shape == (3, 1, 3, 2 * k) and context['action'].shape == (3, n_context - 1, 2 * k)
            clips = []
            for v, before, after in zip(context['video'], context['action'].numpy(), action[:, 0].numpy()):
                for t in range(n_context - 1):
                    assert np.array_equal(simulate(v[t], before[t].reshape(-1, 2))[-1], v[t + 1])
                clips.append(simulate(v[-1], after.reshape(-1, 2))[k - 1::k])
            return {'video': torch.from_numpy(np.array(clips))[:, None].float() + 0.3}         # it is rounded
    T = n_context + 3
    store = Store(os.path.join(data_dir, 'tiny_pixels'), 'val',
                  {'video': range(0, T * k, k), 'action': range((T - 1) * k)})
    clip = common.cut(store, sample.choose(store, 3, seed=0), n_context, k, 'cpu')
    frames = video.pictures(Oracle(), *clip, store.meta, seed=0, stride=1, scale=3)
    assert len(frames) == 3
    for strip in frames:
        truth, dreamed = strip[:, 4:40, 4:-4], strip[:, -40:-4, 4:-4]
        assert np.array_equal(truth, dreamed) and truth.max() == 255 and len(strip) == T


def test_choose_says_why_there_are_fewer(data_dir, capsys):
    store = Store(os.path.join(data_dir, 'tiny_pixels'), 'val', {'video': range(8)})
    ids = sample.choose(store, 4, seed=3)
    assert sorted(store.locate(ids)[0]) == [0, 1, 2, 3] and not capsys.readouterr().err
    assert np.array_equal(ids, sample.choose(store, 4, seed=3))
    assert any(ids != sample.choose(store, 4, seed=4))
    assert len(sample.choose(store, 6, seed=3)) == 4
    assert '4 of 6 clips: of 4 episodes' in capsys.readouterr().err


# ---- held-down commands ----

def facts(mean, std, low, high, **info):
    return {'stats': {'action': {'mean': mean, 'std': std, 'min': low, 'max': high}}} | info


def test_held_commands_of_a_keyboard():
    keys = facts([0] * 8, [1] * 8, [0] * 8, [1] * 8)
    actions, arrows, labels = video.held_commands(keys | {'action_arrows': list(COMPASS.values())}, 4)
    assert np.array_equal(actions, np.eye(8)[:4]) and np.array_equal(arrows, list(COMPASS.values())[:4])
    assert labels == ['hold up', 'hold right', 'hold down', 'hold left']
    twice = [(1, 0), (2, 0), (0, 0), (0, 1), (0, 0), (0, 0), (0, 0), (-1, -1)]
    actions, _, labels = video.held_commands(keys | {'action_arrows': twice}, 4)
    assert labels == ['hold right', 'stand still', 'hold down', 'hold up left']
    assert list(actions.argmax(1)) == [0, 2, 3, 7]           # the second points where the first does
    assert video.held_commands(keys, 2)[1:] == (None, ['action 0', 'action 1'])
    assert video.held_commands(keys | {'action_names': list('abcdefgh')}, 2)[2] == ['hold a', 'hold b']
    with pytest.raises(SystemExit, match='--futures=9: these data know 8 commands'):
        video.held_commands(keys, 9)


def test_held_commands_of_a_box():
    """To and fro along each axis by 1.5 std, no further than the data go, in the data's own unit."""
    box = facts([0.1, -0.2], [0.02, 2.0], [-1, -2.5], [1, 9])
    actions, arrows, labels = video.held_commands(box | {'action_arrows': [[1, 0], [0, 1]]}, 4)
    assert np.allclose(actions, [[0.03, 0], [-0.03, 0], [0, 3], [0, -2.5]])
    assert labels == ['hold right', 'hold left', 'hold down', 'hold up'] and np.allclose(arrows, actions)
    assert video.held_commands(box, 3)[2] == ['hold +action 0', 'hold -action 0', 'hold +action 1']
    assert video.held_commands(box | {'action_names': ['x', 'y']}, 2)[2] == ['hold +x', 'hold -x']


class Paints:
    """A model whose pictures say which future (red), which frame (green) and which clip (blue) they are."""
    cfg = SimpleNamespace(width=16, height=12)

    def rollout(self, context, action, stride=1, generator=None):
        self.action, self.stride = action, stride
        (B, N, K), new = action.shape[:3], torch.zeros(*action.shape[:3], 12, 16, 3)
        new[..., 0] = 10 * torch.arange(1, N + 1).view(1, N, 1, 1, 1)
        new[..., 1] = 10 * torch.arange(1, K + 1).view(1, 1, K, 1, 1)
        new[..., 2] = 10 * torch.arange(1, B + 1).view(B, 1, 1, 1, 1)
        return {'video': new}


def spy(function, heard):
    """The function, and its first arguments in a list."""
    def call(first, *rest):
        heard.append(first)
        return function(first, *rest)
    return call


@pytest.mark.parametrize('N, B, k', ((4, 1, 1), (3, 2, 2)))
def test_futures_layout(tmp_path, data_dir, monkeypatch, N, B, k):
    """Left the true frame, then N columns with their heads, a row for each clip; commands are held down."""
    meta, model, drawn, said = read_meta(os.path.join(data_dir, 'tiny_pixels')), Paints(), [], []
    monkeypatch.setattr(video, 'gif', lambda path, frames, seconds: drawn.append((frames, seconds)))
    monkeypatch.setattr(video, 'words', spy(common.words, said))
    given = torch.randint(100, 200, (B, 1, 12, 16, 3), dtype=torch.uint8)
    context = {'video': given, 'action': torch.zeros(B, 0, 2 * k)}
    clip = (context, torch.zeros(B, 1, 1, 2 * k), given)
    video.futures('x.gif', model, *clip, meta, futures=N, length=5, stride=2, fps=3, scale=6)
    assert model.action.shape == (B, N, 5, 2 * k) and model.stride == 2
    held = model.action.reshape(B, N, 5 * k, 2)
    assert (held == held[:1, :, :1]).all() and len(held[0, :, 0].unique(dim=0)) == N
    std = meta['stats']['action']['std'][0]
    assert held[0, 0, 0].tolist() == pytest.approx([min(1.5 * std, 2), 0])
    assert said[:N + 1] == ['one true frame', *['hold right', 'hold left', 'hold down', 'hold up'][:N]]
    assert said[N + 1:] == ['here all futures begin', *(f'imagined frame {t} of 5' for t in range(1, 6))]
    frames, seconds = drawn[0]
    top, h, w = video.HEADER, 72, 96
    lefts = [video.GAP] + [2 * video.GAP + w + i * (w + video.GAP // 2) for i in range(N)]
    assert seconds == 1 / 3 and frames.shape[:2] == (6, top + B * (h + 6) + video.FOOTER)
    assert frames.shape[2] == lefts[-1] + w + video.GAP // 2
    for t, frame in enumerate(frames):
        for b in range(B):
            for i, left in enumerate(lefts):
                cell = frame[top + b * (h + 6):, left:left + w][:h]
                true = i == 0 or t == 0
                assert (cell[:2] == common.GREEN).all() == true
                want = given[b, 0].numpy()
                if not true:
                    want = np.full((12, 16, 3), [10 * i, 10 * t, 10 * b + 10])
                assert np.array_equal(cell[3::6, 3::6], want)
        heads = [frame[:top, left:left + w] for left in lefts]
        assert all((head == common.INK).all(2).sum() > 30 for head in heads)
        assert len({head.tobytes() for head in heads}) == N + 1      # every column says another thing
        assert np.array_equal(heads[1][4:video.HEADER - video.FOOTER], common.arrow(1, 0, 20, w))
    feet = {frame[-video.FOOTER:].tobytes() for frame in frames}
    assert len(feet) == 6                                    # the counter moves


def test_labels_are_in_the_picture(tmp_path, data_dir):
    """The same dream under other names is another picture, and only in its head."""
    given, new = np.zeros((1, 12, 16, 3), np.uint8), np.zeros((1, 2, 1, 12, 16, 3), np.uint8)
    one, other = (video.fan(given, new, None, ['hold a', name], 6, 1) for name in ('hold b', 'hold c'))
    rows, columns = np.nonzero((one[1] != other[1]).any(2))
    assert len(rows) and rows.max() < video.HEADER and columns.min() > 2 * 96


def test_futures_share_their_noise():
    """Four futures under one command are one future; another seed is another."""
    torch.manual_seed(0)
    cfg = nanowm.Config(input='video', channels=3, action_dim=2, height=12, width=16, patch=4, hidden=32,
                        heads=2, depth=2, num_frames=2, sample_steps=3, ztsnr=False)
    model = nanowm.Model(cfg).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)                  # as it is built, its output is zero
    video_ = torch.randint(256, (1, 1, 12, 16, 3), dtype=torch.uint8)
    context = {'video': video_, 'action': torch.zeros(1, 0, 2)}
    held = torch.tensor([[1.0, 0], [1, 0], [-3, 2]])[None, :, None].expand(-1, -1, 4, -1)
    new = [video.imagine(model, context, held, seed, 1)[0].astype(int) for seed in (0, 0, 1)]
    assert np.abs(new[0][0] - new[0][1]).max() <= 1 and np.array_equal(new[0], new[1])
    assert np.abs(new[0][0] - new[0][2]).max() > 5 and np.abs(new[0] - new[2]).max() > 5


# ---- robots ----

FPS, Q = 20, [3, 1]


def robot(root, n=4, length=60, name='robot', **info):
    """root/robot: n episodes, half of them val, of 5 states and 2 actions; entry 3 of a state is its time."""
    def make(i):
        rng = np.random.default_rng(i)
        state, action = rng.normal(size=(length, 5)), rng.normal(size=(length, 2))
        state[:, 3] = np.arange(length) / 10
        action[-1] = 0
        return {'state': state.astype(np.float32), 'action': action.astype(np.float32)}
    told = {'source': 'tests', 'revision': '1', 'fps': FPS, 'q_index': Q,
            'groups': {'joint': {'dims': [3, 1], 'unit': 'rad'}}} | info
    write(os.path.join(root, name), make, n, seed=1, val='0.5', workers=1, command='tests',
          info={key: value for key, value in told.items() if value is not None})
    return os.path.join(root, name)


@pytest.fixture
def painter(monkeypatch):
    """A robot's env.py: pictures are as red as entry 3 of the state, and as green as that of the ghost."""
    env = ModuleType('painter')

    def draw(state, ghost=None, side=8):
        image = np.zeros((len(state), side, side, 3), np.uint8)
        image[..., 0] = (100 + 20 * state[:, 3]).clip(0, 255).round()[:, None, None]
        if ghost is not None:
            image[..., 1] = (100 + 20 * ghost[:, 3]).clip(0, 255).round()[:, None, None]
        return image
    env.draw = draw
    monkeypatch.setitem(sys.modules, 'data.arx5.env', env)
    return draw


def shade(value):
    return int((100 + 20 * np.float32(value)).clip(0, 255).round())


def test_arms_stand_beside_each_other(painter, monkeypatch):
    """Columns truth, rival, model; a row a clip; context green; the clock counts from the last true frame."""
    said = []
    monkeypatch.setattr(states, 'words', spy(common.words, said))
    H, K, every = 5, 12, 2
    rng = np.random.default_rng(0)
    given, truth = rng.normal(size=(2, H, 5)), rng.normal(size=(2, K, 5))
    dreams = [truth + 1, truth + 2]

    def looks(*a, **kw):
        return painter(*a, side=160, **kw)
    frames = states.stage(looks, given, truth, dreams, ['theirs', 'ours'], FPS, every)
    shown = [0, 2, 4, 6, 8, 10, 12, 14, 16]                  # 4 is the last true frame
    assert len(frames) == len(shown) and frames.shape[2] == 3 * (160 + states.GAP)
    assert said[:3] == ['truth', 'theirs', 'ours']
    assert said[3:] == 3 * ['the models are shown this'] + [
        f'{t:.2f} s after the last true frame' for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    for frame, t in zip(frames, shown):
        for b in range(2):
            true = np.concatenate([given[b], truth[b]])[t, 3]
            for column, off in enumerate((None, 1, 2)):
                top, left = states.HEADER + b * 164, column * 164
                cell = frame[top:top + 160, left:left + 160]
                edges = [(edge == common.GREEN).all() for edge in (cell[:2], cell[:, -2:])]
                assert edges == [t < H, t < H]
                ghost = 0 if off is None else shade(true if t < H else true + off)
                assert np.abs(cell[80, 80].astype(int) - [shade(true), ghost, 0]).max() <= 1
    clocks = {frame[-states.HEADER:].tobytes() for frame in frames}
    assert len(clocks) == 1 + 6


def test_arms_are_named_by_what_they_count():
    def model(**cfg):
        return SimpleNamespace(cfg=SimpleNamespace(**cfg))
    delta, absolute = (model(action_repr=name, state_pred=name) for name in ('delta', 'absolute'))
    assert states.titles([absolute, delta], ['x', 'y']) == ['absolute actions, absolute targets',
                                                            'delta actions, delta targets']
    for others in ([delta, delta], [model(), model()]):      # alike: the names of the runs then
        assert states.titles(others, ['x', 'y']) == ['x', 'y']


@pytest.mark.parametrize('fps', (1, 5, 7, 15, 24, 25, 29.97, 30, 50, 60, 100, 144, 500, 1000))
@pytest.mark.parametrize('wanted', (4, 25, 50))
def test_robots_move_at_their_true_speed(fps, wanted):
    every = states.every_nth(fps, wanted)
    shown = common.delays(60, every / fps)
    assert all(ms % 10 == 0 and ms >= 20 for ms in shown)    # browsers show less than 20 ms for 100
    assert sum(shown) / 1000 == pytest.approx(60 * every / fps, rel=0.02, abs=0.0051)
    assert every == 1 or fps / every == pytest.approx(min(wanted, fps), rel=0.5)


def test_a_gif_keeps_its_delays(tmp_path):
    frames = np.random.default_rng(0).integers(256, size=(9, 20, 30, 3), dtype=np.uint8)
    common.gif(f'{tmp_path}/x.gif', frames, 1 / 24)
    with Image.open(f'{tmp_path}/x.gif') as image:
        shown = [image.seek(i) or image.info['duration'] for i in range(image.n_frames)]
    assert shown == common.delays(9, 1 / 24) and sum(shown) == 380 and image.info['loop'] == 0


# ---- curves ----

class Plain:
    """A dynamics model with nothing but the contract: no ensemble, no chunks, no progress."""
    cfg = SimpleNamespace(state_dim=5, action_dim=2)

    def rollout(self, context, action):
        return {'state': context['state'][:, None, -1:] + action.cumsum(2).sum(-1, keepdim=True)}


def sheets(monkeypatch, module=states):
    """Figures instead of files."""
    made, figure = [], states.figure
    monkeypatch.setattr(module, 'figure', lambda *size: made.append(figure(*size)) or made[-1])
    monkeypatch.setattr(module, 'write', lambda path, save: None)
    return made


@pytest.mark.parametrize('kind', ('ensemble', 'plain'))
def test_curves_plot_what_they_say(tmp_path, monkeypatch, kind):
    """Per commanded entry: the truth, the prediction from second 0 on, two std around it, the command."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    folder, made = robot(tmp_path, joint_names=['elbow']), sheets(monkeypatch)
    torch.manual_seed(0)
    small = arx5_gpt.Config(state_dim=5, action_dim=2, q_index=(3, 1), depth=1, heads=2, hidden=16, history=8)
    model = arx5_gpt.Model(small).eval() if kind == 'ensemble' else Plain()
    store = Store(folder, 'val', {'state': range(38), 'action': range(37)})
    context, action, truth = common.cut(store, sample.choose(store, 1, seed=0), 8, 1, 'cpu')
    states.curves('arm.png', model, context, action, truth, store.meta)
    asked = {'chunk': 1} if kind == 'ensemble' else {}
    new = {key: value[0, 0].numpy() for key, value in model.rollout(context, action, **asked).items()}
    true = torch.cat([context['state'], truth], 1)[0]
    for panel, (i, d) in zip(made[0].axes, enumerate(Q)):
        lines = {line.get_label().split(',')[0]: line for line in panel.get_lines()}
        assert np.allclose(lines['true'].get_xdata(), np.arange(-8, 30) / FPS)
        assert np.allclose(lines['true'].get_ydata(), true[:, d])
        assert np.allclose(lines['predicted'].get_xdata(), np.arange(30) / FPS)
        assert np.allclose(lines['predicted'].get_ydata(), new['state'][:, d])
        assert np.allclose(lines['command'].get_ydata(), action[0, 0, :, i])
        assert panel.get_ylabel() == f'state {d} [rad]'
        assert len(panel.collections) == (kind == 'ensemble')
        for edge in (-2, 2) if kind == 'ensemble' else ():
            band = np.concatenate([path.vertices for path in panel.collections[0].get_paths()])
            y = new['state'][-1, d] + edge * new['state_std'][-1, d]
            assert np.abs(band - [29 / FPS, y]).max(1).min() < 1e-5
    labels = made[0].axes[0].get_legend_handles_labels()[1]
    assert ('predicted, 2 members' in labels) == (kind == 'ensemble')


class Policy(torch.nn.Linear):
    """Wants n actions: the first entries of the state, and one more each step."""

    def __init__(self, n=3):
        super().__init__(1, 1)
        self.n, self.asked = n, []

    def act(self, obs):
        self.asked.append(obs)
        return torch.stack([obs['state'][:, -1, :2] + k for k in range(self.n)], 1)


def points(panel):
    """{first word of a label: (x, y) of what is drawn there}, without the gaps between chunks."""
    return {line.get_label().split(':')[0]: np.array(line.get_data())[:, ~np.isnan(line.get_ydata())]
            for line in panel.get_lines() if len(line.get_xdata()) > 2}


@pytest.mark.parametrize('n', (3, 1))
def test_a_policy_beside_recordings(tmp_path, monkeypatch, n):
    """It looks where its answers end; each is drawn from there on. obs is all but the action."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    folder, made, policy = robot(tmp_path, length=30), sheets(monkeypatch, beside), Policy(n)
    store = Store(folder, 'val', {'state': range(-1, 1), 'action': range(1)}, pad=True)
    beside.actions('p.png', policy, store, np.array([40, 3]), length=20)             # of episodes 1 and 0
    looks = np.arange(0, 20, n)
    assert [set(obs) for obs in policy.asked] == [{'state'}] * 2 * len(looks)
    assert policy.asked[0]['state'].shape == (1, 2, 5)
    state, action = (np.load(f'{folder}/val/{key}.npy') for key in ('state', 'action'))
    panels = made[0].axes
    assert len(panels) == 4
    for i, panel in enumerate(panels):                       # a column an episode, a row an entry
        first, entry, lines = 30 * (i % 2 == 0), i // 2, points(panel)
        assert np.allclose(lines['recorded'], [np.arange(20) / FPS, action[first:first + 20, entry]])
        asked = np.repeat(looks, n)[:20]
        wanted = state[first + asked, entry] + (np.arange(20) - asked)
        assert np.allclose(lines['policy'], [np.arange(20) / FPS, wanted], atol=1e-6)
        dots = [line for line in panel.get_lines() if line.get_marker() == 'o']
        assert len(dots) == (n > 1) and all(np.allclose(dot.get_xdata(), looks / FPS) for dot in dots)
    assert [panel.get_ylabel() for panel in panels[::2]] == ['action 0\n[rad]', 'action 1\n[rad]']
    assert [panel.get_title() for panel in panels[:2]] == [f'val episode {e} of robot' for e in (1, 0)]
    assert panels[3].get_xlabel() == 'time [s]'
    legend = [text.get_text().split(':')[0] for text in made[0].legends[0].get_texts()]
    assert legend == ['policy', 'recorded']


@pytest.mark.parametrize('kind', ('image.left', 'image.right', 'video', 'grey'))
def test_frames_stand_above_the_actions(tmp_path, monkeypatch, kind):
    """Six of them, of the camera that the policy sees or else the first, each above its time."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")

    def filmed(i):
        rng = np.random.default_rng(i)
        frames = rng.integers(0, 256, (30, 8, 10, 1 if kind == 'grey' else 3), np.uint8)
        seen = {'image.left': frames.transpose(0, 3, 1, 2), 'image.right': 255 - frames.transpose(0, 3, 1, 2)}
        seen = seen if 'image' in kind else {'video': frames}
        return {'state': rng.normal(size=(30, 5)).astype(np.float32),
                'action': rng.normal(size=(30, 2)).astype(np.float32)} | seen
    write(tmp_path / 'filmed', filmed, 3, seed=1, val='1-2', workers=1, command='tests', padded=(),
          info={'source': 'tests', 'revision': '1', 'fps': FPS, 'q_index': [3, 1], 'action_names': ['a', 'b'],
                'groups': {'arm': {'dims': [3], 'unit': 'rad'}, 'hand': {'dims': [1], 'unit': '1'}}})
    reads = {'state': range(1), 'action': range(1)}
    reads |= {'image.right': range(1)} if kind == 'image.right' else {}
    made, store = sheets(monkeypatch, beside), Store(tmp_path / 'filmed', 'val', reads, pad=True)
    beside.actions('p.png', Policy(), store, np.array([2, 40]), length=24)
    top, curves = made[0].axes[:2], made[0].axes[2:6]
    rows = store.open('video' if kind in ('video', 'grey') else kind)
    rows = rows.transpose(0, 2, 3, 1) if 'image' in kind else rows
    for first, panel, curve in zip((0, 30), top, curves):
        insets = panel.child_axes
        for i, inset in enumerate(insets):
            when = 2 + 4 * i                                 # the middle of each sixth of 24 frames
            assert np.array_equal(np.squeeze(inset.images[0].get_array()), np.squeeze(rows[first + when]))
            assert inset.get_title().endswith(f'{when / FPS:.1f} s')
            assert when / FPS in [line.get_xdata()[0] for line in curve.get_lines()]
        assert len(insets) == 6 and curve.get_xlim() == (0, 24 / FPS)
    assert [panel.get_ylabel() for panel in curves[::2]] == ['a\n[rad]', 'b\n[1]']
    beside.actions('p.png', Policy(), store, np.array([2]), length=100)              # of an episode of 30
    assert made[1].axes[1].get_xlim() == (0, 30 / FPS)


def test_an_axis_is_never_narrower_than_two_std():
    """Noise would look like a mistake."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    panel = states.figure().subplots()
    panel.set_ylim(1, 1.5)
    beside.at_least(panel, 0.2)
    assert panel.get_ylim() == (1, 1.5)
    beside.at_least(panel, 2)
    assert panel.get_ylim() == (-0.75, 3.25)


# ---- the command ----

@pytest.fixture(scope='module')
def dreamer(data_dir, tmp_path_factory):
    """A run of the tiny video model."""
    out = tmp_path_factory.mktemp('dreamer') / 'run'
    script('train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={out}', *TINY,
           '--max_steps=1')
    return out


@pytest.fixture(scope='module')
def arm(tmp_path_factory):
    """A folder with the data `robot` and two runs on them, `a` and `b`."""
    root = tmp_path_factory.mktemp('arm')
    robot(root, env='data.arx5.env')
    for name, kind in (('a', 'absolute'), ('b', 'delta')):
        script('train.py', '--model=arx5_gpt', '--dataset=robot', f'--data_dir={root}',
               f'--out_dir={root}/{name}', '--depth=1', '--heads=2', '--hidden=16', '--history=8',
               '--chunk=4', '--batch_size=8', '--max_steps=1', '--device=cpu', '--val_batches=1',
               f'--action_repr={kind}', f'--state_pred={kind}')
    return root


def ask(ckpt, *flags, **kw):
    return script('sample.py', f'--ckpt={ckpt}', '--device=cpu', *flags, **kw)


def test_videos_by_command(dreamer, tmp_path):
    text, _ = ask(dreamer, '--length=4', '--n_clips=2', '--fps=5')
    gif = dreamer / 'samples' / 'step_0000001.gif'
    assert f'{gif}: 2 clips, 1 true frames, 4 dreamed' in text
    frames = imageio.imread(gif, index=None)
    assert frames.shape == (5, 2 * 84 + 21 + 8, 2 * 120, 3)  # 12 x 16 px, seven times as large
    assert imageio.immeta(gif, index=0)['duration'] == 200
    ask(dreamer, '--length=4', '--n_clips=2', f'--out={tmp_path}/film.png')
    assert imageio.imread(tmp_path / 'film.png').shape == (2 * 197, 5 * 120, 3)
    text, _ = ask(dreamer, '--length=3', '--futures=4', f'--out={tmp_path}/f.gif')
    assert '1 clips, 1 true frames, 3 dreamed' in text
    assert len(imageio.imread(tmp_path / 'f.gif', index=None)) == 4


def test_sampling_keys_reach_the_model(dreamer, tmp_path, monkeypatch):
    """Keys of SAMPLING are accepted and listed, with the run's own values, and replace the model's."""
    seen, rollout = [], nanowm.Model.rollout

    def count(self, *a, **kw):
        seen.append(self.cfg.sample_steps)
        return rollout(self, *a, **kw)
    monkeypatch.setattr(nanowm.Model, 'rollout', count)
    ask(dreamer, '--length=2', '--n_clips=1', f'--out={tmp_path}/x.gif')
    ask(dreamer, '--length=2', '--n_clips=1', f'--out={tmp_path}/x.gif', '--sample_steps=2')
    assert seen == [3, 2]                                    # TINY has 3
    text, _ = script('sample.py', f'--ckpt={dreamer}', '--help')
    assert 'nanowm.Config' in text and 'hidden' not in text
    assert any(line.split()[:2] == ['sample_steps', '3'] for line in text.splitlines())


def test_robots_by_command(arm, painter, tmp_path):
    text, _ = ask(arm / 'b', f'--versus={arm}/a', '--length=13', '--n_clips=2', '--scale=2')
    gif = arm / 'b' / 'samples' / 'step_0000001.gif'
    assert f'{gif}: 2 clips, 8 true frames, 13 dreamed' in text
    frames = imageio.imread(gif, index=None)
    assert frames.shape == (21, 2 * 26 + 2 * 164, 3 * 164, 3)
    assert imageio.immeta(gif, index=0)['duration'] == 50    # 20 frames per second
    ask(arm / 'b', '--length=13', f'--out={tmp_path}/x.gif', '--chunk=4')
    assert imageio.imread(tmp_path / 'x.gif', index=None).shape == (21, 26 + 244 + 26, 2 * 244, 3)
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    ask(arm / 'b', '--length=12', f'--out={tmp_path}/arm.png')
    assert imageio.imread(tmp_path / 'arm.png').shape[1] == 12 * 110
    robot(tmp_path, name='blind')                            # the same without `env`
    text, _ = ask(arm / 'b', '--length=12', '--dataset=blind', f'--data_dir={tmp_path}')
    assert 'samples/step_0000001.png: 1 clips' in text
    assert not list(arm.rglob('*.part*')) + list(tmp_path.rglob('*.part*'))


VIDEO = {
    '--stride=0': 'stride = 0', '--scale=-1': 'scale = -1', '--scale=100000': 'scale = 100000',
    '--n_clips=-1': 'n_clips', '--length=-3': 'length', '--futures=-1': 'futures', '--fps=51': 'fps = 51',
    '--seed=-1': 'seed', f'--seed={2**64}': 'seed', '--out=.gif': 'ends in .gif or .png',
    '--out=x.mp4': 'ends in .gif or .png', '--versus=x': '--versus=x means nothing',
    '--futures=5': 'know 4 commands', '--stride=5 --length=4 --n_clips=1': 'cannot dream: stride = 5',
    '--length=30': 'n_context',
    '--scale=64 --length=5000 --futures=4': 'use a smaller --scale', '--split=test': 'test',
    '--ckpt=': 'which', '--ckpt=nowhere': 'nowhere', '--which=worst': 'worst', '--dataset=nothing': 'nothing',
    '--futures=2 --out=x.png': 'ends in .gif', '--fps=3 --out=x.png': '--fps=3 means nothing',
    '--sample_steps=0': 'sample_steps', '--hidden=3': "unknown key 'hidden'", '--device=cuda:99': 'cuda'}
ROBOT = {
    '--stride=2': '--stride=2 means nothing to arms.gif', '--futures=4': '--futures=4 means nothing',
    '--sample_steps=3': "unknown key 'sample_steps'", '--length=100': 'a window spans',
    '--versus=nowhere --length=20': 'nowhere',
    '--chunk=99 --length=20': 'chunk = 99', '--n_clips=2 --out=x.png': '--n_clips=2 means',
    '--scale=60 --length=40': 'use a smaller --scale'}


@pytest.mark.parametrize('kind, flags', [*(('video', flags) for flags in VIDEO),
                                         *(('robot', flags) for flags in ROBOT)])
def test_refused_in_one_line(kind, flags, dreamer, arm, painter, tmp_path, monkeypatch):
    """Every bad key ends in one line that names it, and nothing is written."""
    home, want = (dreamer, VIDEO[flags]) if kind == 'video' else (arm / 'b', ROBOT[flags])
    files = sorted(str(p) for p in home.rglob('*'))
    out = [] if '--out' in flags else [f'--out={tmp_path}/x.gif']
    code = 2 if 'unknown' in want or '--ckpt=nowhere' in flags or '--which' in flags else 1
    _, errors = ask(home, *out, *flags.split(), code=code)
    assert len(errors.splitlines()) == 1 and want in errors, errors
    assert not list(tmp_path.iterdir()) and sorted(str(p) for p in home.rglob('*')) == files


def test_out_is_tried_before_the_dream(dreamer, tmp_path, monkeypatch):
    """What exists and is no regular file stays as it is, and nobody waits for a dream to learn that."""
    monkeypatch.setattr(nanowm.Model, 'rollout', lambda *a, **kw: pytest.fail('dreamed first'))
    (tmp_path / 'folder.gif').mkdir()
    (tmp_path / 'true.gif').write_bytes(b'precious')
    (tmp_path / 'link.gif').symlink_to(tmp_path / 'true.gif')
    (tmp_path / 'lost.gif').symlink_to(tmp_path / 'nowhere')
    os.mkfifo(tmp_path / 'pipe.gif')
    before = sorted(os.listdir(tmp_path))
    for name in ('folder.gif', 'link.gif', 'lost.gif', 'pipe.gif', 'true.gif/below.gif', 'n' * 300 + '.gif'):
        _, errors = ask(dreamer, f'--out={tmp_path}/{name}', code=1)
        assert errors.startswith(f'--out={tmp_path}/{name}: ') and len(errors.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / 'true.gif').read_bytes() == b'precious'


def test_a_failed_write_leaves_nothing(tmp_path):
    """A full disk: one line, the old picture stays, no unfinished one lies beside it."""
    (tmp_path / 'x.png').write_bytes(b'old')

    def full(name):
        with open(name, 'wb') as f:
            f.write(b'half')
        raise OSError(28, 'No space left on device')
    with pytest.raises(SystemExit, match='could not write .*x.png: .*No space'):
        common.write(f'{tmp_path}/x.png', full)
    assert os.listdir(tmp_path) == ['x.png'] and (tmp_path / 'x.png').read_bytes() == b'old'


def test_nan_weights_give_no_picture(dreamer, arm, painter, tmp_path):
    for home, flags in ((dreamer, []), (dreamer, ['--futures=2']), (arm / 'b', [])):
        spoilt = tmp_path / f'spoilt{len(list(tmp_path.iterdir()))}'
        shutil.copytree(home / 'step_0000001', spoilt)
        for file in spoilt.glob('*.safetensors'):
            weights = load_file(file)
            save_file({key: w * float('nan') for key, w in weights.items()}, file)
        _, errors = ask(spoilt, '--length=2', f'--out={tmp_path}/x.gif', *flags, code=1)
        assert 'the checkpoint dreams numbers that are not finite' in errors.splitlines()[-1]
        assert not (tmp_path / 'x.gif').exists()


def test_a_run_on_other_data_is_no_rival(dreamer, arm, painter, tmp_path):
    """The wrong world: what does not fit is named."""
    _, errors = ask(arm / 'b', f'--versus={dreamer}', '--length=20', f'--out={tmp_path}/x.gif', code=1)
    assert errors.strip() == f'--versus={dreamer} is a run of nanowm, which knows no state'
