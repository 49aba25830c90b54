"""data/wall: moves are what the actions say, walls are never entered, and pictures show where the dot is."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import script
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.wall import env as wall
from data.wall import prepare

FRAMES = 50


@pytest.fixture(scope='module')
def episodes(): return [prepare.episode(i, seed=0, frames=FRAMES) for i in range(30)]


def inside(p, slack=0.0):
    """Which of p (..., 2) lie in a wall, more than `slack` px deep. Written out, not taken from SOLID."""
    x, y = np.asarray(p, float)[..., 0], np.asarray(p, float)[..., 1]
    border = np.minimum.reduce([x - wall.LOW, wall.HIGH - x, y - wall.LOW, wall.HIGH - y]) < -slack
    middle = np.minimum(x - wall.LEFT, wall.RIGHT - x) > slack
    door = np.minimum(y - wall.TOP, wall.BOTTOM - y) >= -slack
    return border | (middle & ~door)


def test_dimensions():
    """65 px there are 32 here: border 5, wall 6 thick in the middle, door 8 high, 2 px per unit of action."""
    px = 65 / 32
    assert np.allclose([(wall.LOW + 0.5) * px, (wall.HIGH + 0.5) * px], [5, 60])
    assert np.allclose([(wall.LEFT + 0.5) * px, (wall.RIGHT + 0.5) * px], [32.5 - 3, 32.5 + 3])
    assert np.isclose((wall.BOTTOM - wall.TOP) * px, 8) and np.isclose(wall.STEP * px, 2)


coordinate = st.floats(wall.LOW, wall.HIGH)


@settings(deadline=None, max_examples=300)
@given(x=coordinate, y=coordinate, dx=st.integers(-160, 160), dy=st.integers(-160, 160))
def test_clip_stops_at_the_first_wall(x, y, dx, dy):
    p, dx, dy = np.array([x, y]), dx / 4, dy / 4
    assume(not inside(p) and (dx or dy))
    q = p + [dx, dy]
    end, hit = wall.clip(p, q)
    way = p + np.linspace(0, 1, 400)[:, None] * (end - p)
    assert not inside(way, 1e-9).any()                                     # nothing was walked through
    part = np.dot(end - p, q - p) / np.dot(q - p, q - p)
    assert -1e-9 <= part <= 1 + 1e-9
    assert np.allclose(p + part * (q - p), end, atol=1e-9)                 # on the way from p to q
    if not hit: assert np.array_equal(end, q)
    else:
        assert inside(end + 1e-4 * (q - p) / np.hypot(dx, dy))             # no earlier than needed
        assert end[0] in (wall.LOW, wall.LEFT, wall.RIGHT, wall.HIGH) or \
            end[1] in (wall.LOW, wall.TOP, wall.BOTTOM, wall.HIGH)         # to the last bit, or we are stuck


@pytest.mark.parametrize('p, d, end', [
    ((5, 20), (30, 0), (wall.LEFT, 20)), ((25, 20), (-30, 0), (wall.RIGHT, 20)),           # from both sides
    ((wall.LEFT, 20), (1, 0), (wall.LEFT, 20)), ((wall.LEFT, 20), (0, 1), (wall.LEFT, 21)),    # on its face
    ((wall.LEFT, 20), (-1, 0), (wall.LEFT - 1, 20)), ((5, 9), (20, 0), (25, 9)),      # away; through the door
    ((15.5, 9), (0, 5), (15.5, wall.BOTTOM)), ((5, 20), (-9, 0), (wall.LOW, 20)),
    ((5, 20), (0, 90), (5, wall.HIGH))])
def test_clip_by_hand(p, d, end):
    got, hit = wall.clip(np.array(p, float), np.add(p, d).astype(float))
    assert np.allclose(got, end, atol=1e-12) and hit == (not np.allclose(got, np.add(p, d)))


def test_action_leads_to_the_next_state(episodes):
    hits = 0
    for e in episodes:
        s, a = e['state'].astype(np.float64), e['action'].astype(np.float64)
        assert not inside(s, 1e-5).any()
        free = np.abs(s[1:] - (s[:-1] + wall.STEP * a[:-1])).max(1) < 1e-5
        for t in np.flatnonzero(~free):                             # who stopped short stands at a wall
            assert inside(s[t + 1] + 1e-3 * a[t] / np.hypot(*a[t]), -1e-5)
        hits += (~free).sum()
        length = np.hypot(*a[:-1].T)
        assert (length > 0.2 - 1e-6).all() and (length < 1.8 + 1e-6).all() and not e['action'][-1].any()
    assert 10 < hits < 0.2 * 30 * FRAMES                            # walls are met, nobody is stuck at one


def test_dots_cross_by_the_door(episodes):
    rooms = [e['state'][:, 0] > 15.5 for e in episodes]
    assert sum((r[1:] != r[:-1]).any() for r in rooms) >= 5
    within = np.concatenate([e['state'] for e in episodes])
    within = within[(within[:, 0] > wall.LEFT + 1e-4) & (within[:, 0] < wall.RIGHT - 1e-4)]
    y = within[:, 1]
    assert len(y) and (y >= wall.TOP - 1e-4).all() and (y <= wall.BOTTOM + 1e-4).all()


def test_pictures_show_the_state(episodes):
    e = episodes[0]
    assert e['video'].shape == (FRAMES, 32, 32, 3) and e['video'].dtype == np.uint8
    assert (e['video'] == e['video'][..., :1]).all()
    i = np.arange(32)
    for x, y in (7.0, 18.25), (24.5, 20.0):                             # clear of walls: centroid, spread
        dot = wall.picture(np.array([[x, y]]))[0, 6:-6, :, 0].astype(float)
        dot[:, 13:19] = 0
        dot[:, :3] = dot[:, 29:] = 0
        cx, cy = (dot.sum(0) * i).sum() / dot.sum(), (dot.sum(1) * i[6:-6]).sum() / dot.sum()
        assert abs(cx - x) < 0.1 and abs(cy - y) < 0.1
        assert abs(np.sqrt((dot.sum(1) * (i[6:-6] - cy)**2).sum() / dot.sum()) - 1.7) < 0.1
    empty = wall.picture(np.array([[7.0, 24.0]]))[0, :, :, 0]
    assert empty[0, 0] == empty[5, 15] == empty[31, 31] == wall.GREY      # border, wall
    assert empty[9, 15] == empty[9, 5] == empty[20, 24] == 0 and empty[24, 7] == 255      # door, floors, dot


def test_frames_move(episodes):
    moved = np.concatenate([(e['video'][1:] != e['video'][:-1]).any((1, 2, 3)) for e in episodes])
    assert moved.mean() > 0.95


@pytest.mark.parametrize('flag, says', [
    ('--frames=0', '--frames=0: want 2 or more'), ('--frames=1', '--frames=1: want 2 or more'),
    ('--frames=-1', '--frames=-1: want 2 or more'), ('--episodes=-3', '--episodes=-3: want 1 or more'),
    ('--episodes=0', '--episodes=0: want 1 or more'), ('--seed=-1', '--seed=-1: want a number from 0'),
    ('--workers=0', '--workers=0: want 1 or more'), ('--limit=-2', '--limit=-2: want 1 or more, or 0'),
    ('--val=some', '--val=some: want a share')])
def test_bad_flags_are_one_line(tmp_path, flag, says):
    out, err = script('data/wall/prepare.py', f'--out={tmp_path}/w', flag, code=1)
    assert err.startswith(says) and err.count('\n') == 1 and not out and not list(tmp_path.iterdir())


def test_the_folder_of_the_code_is_no_place_for_data():
    _, err = script('data/wall/prepare.py', '--out=data/wall', code=1)
    assert 'holds code (prepare.py)' in err and 'data/wall_<variant>' in err and 'delete' not in err


def test_command(tmp_path, episodes):
    command = [sys.executable, 'data/wall/prepare.py', f'--out={tmp_path}/w', '--limit=10', '--workers=1',
               '--val=8-9']
    subprocess.run(command, cwd=os.path.dirname(os.path.dirname(__file__)), check=True)
    meta = json.loads((tmp_path / 'w' / 'meta.json').read_text())
    assert (meta['facts']['height'], meta['facts']['action_dim'], meta['facts']['state_dim']) == (32, 2, 2)
    assert meta['action_arrows'] == [[1, 0], [0, 1]]
    assert meta['command'] == ('python data/wall/prepare.py --seed=0 --val=8-9 --limit=10 --episodes=600 '
                               '--frames=50')
    val = np.load(tmp_path / 'w' / 'val' / 'video.npy')
    assert np.array_equal(val, np.concatenate([episodes[8]['video'], episodes[9]['video']]))


# ---- the world as an environment, and as a simulator ----

def test_many_moves_are_each_move_alone():
    """clip of 3000 moves at once is clip of each, to the bit."""
    rng = np.random.default_rng(0)
    p = np.stack([wall.place(rng) for _ in range(3000)])
    q = p + rng.normal(0, 8, p.shape)
    ends, hits = wall.clip(p, q)
    each = [wall.clip(a, b) for a, b in zip(p, q)]
    assert np.array_equal(ends, [end for end, _ in each]) and np.array_equal(hits, [hit for _, hit in each])
    assert 500 < hits.sum() < 2500


def test_env_replays_the_data(episodes):
    """From a recorded state the recorded actions lead through the recorded states and pictures."""
    env = wall.make_env()
    e = episodes[3]
    obs, _ = env.reset(options={'state': e['state'][0]})
    for t in range(FRAMES - 1):
        assert np.allclose(obs['state'], e['state'][t], atol=1e-4)
        assert np.abs(obs['video'].astype(int) - e['video'][t]).max() <= 1           # the state was rounded
        assert env.observation_space.contains(obs)
        obs, reward, over, cut, _ = env.step(e['action'][t])
        assert (reward, over, cut) == (0, False, False)
    assert np.array_equal(env.render(), obs['video'])
    same = [wall.make_env().reset(seed=5)[0]['state'] for _ in range(2)]
    assert np.array_equal(*same) and not np.array_equal(same[0], wall.make_env().reset(seed=6)[0]['state'])


@pytest.mark.parametrize('skip', (1, 4))
def test_simulator_replays_the_data(episodes, skip):
    """Two clips, two futures: as recorded, and standing still; `skip` moves between frames."""
    first = np.stack([e['state'][:2] for e in episodes[:2]])
    K = 8
    action = np.stack([e['action'][1:1 + K * skip].reshape(K, 2 * skip) for e in episodes[:2]])
    both = torch.from_numpy(np.stack([action, 0 * action], 1))
    made = wall.Simulator().rollout({'state': torch.from_numpy(first)}, both)
    for b, e in enumerate(episodes[:2]):
        there = slice(1 + skip, 2 + K * skip, skip)
        assert np.allclose(made['state'][b, 0], e['state'][there], atol=1e-4)
        assert np.abs(made['video'][b, 0].numpy() - e['video'][there]).max() <= 1
        assert np.allclose(made['state'][b, 1], e['state'][1], atol=1e-5)
    assert made['video'].shape == (2, 2, K, 32, 32, 3) and made['video'].dtype == torch.float32


def test_a_place_that_was_rounded_into_a_wall_stands_on_its_face():
    """float32 puts four of the faces inside the wall: pushing on must not pass through."""
    for p, d in (((wall.LOW, 20), (-3, 1)), ((wall.HIGH, 20), (3, 1)), ((wall.LEFT, 24), (9, 0.5)),
                 ((wall.RIGHT, 24), (-9, 0.5)), ((7, wall.HIGH), (1, 3)), ((wall.LOW, wall.LOW), (-2, -2))):
        exact = wall.clip(np.array(p), np.add(p, d))[0]
        rounded = np.array(p, np.float32).astype(np.float64)
        end, hit = wall.clip(rounded, rounded + d)
        assert hit and np.allclose(end, exact, atol=1e-5) and not inside(end, 1e-5)
        back, hit = wall.clip(rounded, rounded - np.array(d) / 10)
        assert not hit and np.allclose(back, rounded - np.array(d) / 10)
