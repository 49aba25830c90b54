"""data/minihack: the frames are NetHack's own, moves lead from frame to frame, seeds bring all back."""
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, script

from data.minihack import pixels as nethack
from data.minihack import prepare as minihack

MOVES = 30
PLAY = {'seed': 0, 'level': 'room', 'crop': 7, 'moves': MOVES}


@pytest.fixture(scope='module')
def episodes(): return [minihack.episode(i, **PLAY) for i in range(16)]


def actions(e): return e['action'][:-1].argmax(1)


@pytest.mark.parametrize('level', ['room', 'corridor'])
def test_frames_are_shrunken_pixel_crops(level):
    """Against MiniHack's own 16 px drawing, averaged over 4x4 blocks."""
    import gymnasium
    ours = nethack.make_env(level)
    theirs = gymnasium.make(nethack.LEVELS[level], observation_keys=('pixel_crop',),
                            obs_crop_h=7, obs_crop_w=7, obs_crop_pad=nethack.UNKNOWN, fix_moon_phase=True)
    a, b = nethack.start(ours, 5), nethack.start(theirs, 5)
    rng = np.random.default_rng(0)
    for _ in range(12):
        block = b['pixel_crop'].reshape(28, 4, 28, 4, 3).astype(float).mean((1, 3))
        assert np.array_equal(nethack.frame(a, nethack.tiles()), np.floor(block + 0.5))
        move = int(rng.integers(8))
        (a, _, over, _, _), (b, *_) = ours.step(move), theirs.step(move)
        if over: break
    ours.close()
    theirs.close()


def test_shapes(episodes):
    for e in episodes:
        T = len(e['video'])
        assert e['video'].shape == (T, 28, 28, 3) and e['video'].dtype == np.uint8
        assert e['action'].shape == (T, 8) and e['action'].dtype == np.float32
        assert (e['action'][:-1].sum(1) == 1).all() and e['action'].max() == 1 and not e['action'][-1].any()
        assert MOVES // 2 < T <= MOVES + 1                                 # long enough to cut windows from
    assert 0 < sum(len(e['video']) <= MOVES for e in episodes) < len(episodes)     # some found the staircase


def test_action_leads_to_the_next_frame(episodes):
    """In a lit room a move shifts the view by one tile or, at the edge, not at all, as frames alone show."""
    def explained(x, y, move):
        dy, dx = (4 * d for d in nethack.DELTAS[move])
        if np.array_equal(x, y): return True                               # ran into rock, or all is floor
        x, y = x.astype(int), y.astype(int)
        for f, v, u in (x, 12, 12), (y, 12 - dy, 12 - dx): f[v:v + 4, u:u + 4] = -1    # we hid the floor
        for f, v, u in (x, 12 + dy, 12 + dx), (y, 12, 12): f[v:v + 4, u:u + 4] = -2    # and stand here now
        return np.array_equal(x[max(dy, 0):28 + min(dy, 0), max(dx, 0):28 + min(dx, 0)],
                              y[max(-dy, 0):28 + min(-dy, 0), max(-dx, 0):28 + min(-dx, 0)])

    right, late = [], []
    for e in episodes:
        a, v = actions(e), e['video']
        right += [explained(v[t], v[t + 1], a[t]) for t in range(len(a))]
        late += [explained(v[t], v[t + 1], a[t - 1]) for t in range(1, len(a))]
    assert all(right) and np.mean(late) < 0.7                              # the second: the test can tell


@pytest.mark.parametrize('level', ['room', 'corridor'])
def test_recorded_actions_replay(level):
    """The same seed and actions bring back the same frames in a new game; no frame comes after its end."""
    env = nethack.make_env(level)
    for i in range(3):
        e = minihack.episode(i, **{**PLAY, 'level': level})
        obs = nethack.start(env, int(np.random.default_rng([0, i]).integers(2**31)))
        assert np.array_equal(nethack.frame(obs, nethack.tiles()), e['video'][0])
        for move, want in zip(actions(e), e['video'][1:]):
            obs, _, terminated, truncated, _ = env.step(int(move))
            assert not terminated and not truncated
            assert np.array_equal(nethack.frame(obs, nethack.tiles()), want)
    env.close()


def test_history_does_not_matter(episodes):
    """Whatever a worker played before: backwards, and in a new environment."""
    minihack.environment.cache_clear()
    for i in (7, 3, 0):
        e = minihack.episode(i, **PLAY)
        for key in e: assert np.array_equal(e[key], episodes[i][key])


def test_seed_matters(episodes):
    e = minihack.episode(0, **{**PLAY, 'seed': 1})
    assert not np.array_equal(e['action'], episodes[0]['action'])
    assert len({x['video'][9].tobytes() for x in episodes}) > len(episodes) // 2     # nor all one level


def test_play_is_worth_watching(episodes):
    moved = np.concatenate([(e['video'][1:] != e['video'][:-1]).any((1, 2, 3)) for e in episodes])
    assert moved.mean() > 0.7
    assert (np.concatenate([e['action'] for e in episodes]).mean(0) > 0.05).all()          # all moves are in


def test_moves_go_where_the_arrows_say():
    env = nethack.make_env('room')
    for move, (dy, dx) in enumerate(nethack.DELTAS):
        for seed in range(9):                                              # until there is room to move
            obs = nethack.start(env, seed)
            y, x = nethack.position(obs)
            if (y + dy, x + dx) in nethack.world(obs): break
        obs, _, over, _, _ = env.step(move)
        assert over or nethack.position(obs) == (y + dy, x + dx)
    env.close()


@pytest.mark.parametrize('level', ['mazewalk', 'corridor'])
def test_other_levels(level):
    episodes = [minihack.episode(i, **{**PLAY, 'level': level}) for i in range(3)]
    moved = np.concatenate([(e['video'][1:] != e['video'][:-1]).any((1, 2, 3)) for e in episodes])
    assert moved.mean() > 0.7 and min(len(e['video']) for e in episodes) > MOVES // 2


def test_crop():
    assert minihack.episode(0, **{**PLAY, 'crop': 9, 'moves': 3})['video'].shape == (4, 36, 36, 3)
    with pytest.raises(AssertionError, match='no middle'): nethack.make_env(crop=8)


def ascii_world(*rows):
    """Cells of a drawing: '.' floor, '+' door, '>' staircase, ' ' rock."""
    glyph = {'.': nethack.FLOOR, '+': min(nethack.DOORS), '>': nethack.DOWN}
    return {(y, x): glyph[c] for y, row in enumerate(rows) for x, c in enumerate(row) if c != ' '}


def walk(cells, first, here):
    """The moves that `routes` sends us, as text."""
    names, text = list(nethack.MOVES), []
    while first[here] is not None:
        text.append(names[first[here]])
        here = here[0] + nethack.DELTAS[first[here]][0], here[1] + nethack.DELTAS[first[here]][1]
        assert here in cells
    return ' '.join(text), here


def test_routes():
    cells = ascii_world('...',
                        '  +',
                        '>..')
    first = nethack.routes(cells, (2, 1))
    assert walk(cells, first, (0, 0)) == ('E E S S W', (2, 1))     # straight through the door, no corner cut
    cells[1, 2] = nethack.FLOOR
    assert walk(cells, nethack.routes(cells, (2, 1)), (0, 0)) == ('E SE SW', (2, 1))
    blocked = ascii_world('.>.')
    assert (0, 0) not in nethack.routes(blocked, (0, 2), avoid={(0, 1)})  # not over the staircase
    assert nethack.routes(blocked, (0, 1), avoid={(0, 1)})[0, 0] == 1     # but to it
    assert nethack.routes(ascii_world('. .'), (0, 0)).keys() == {(0, 0)}  # and not through rock


@pytest.mark.parametrize('flag, says', [
    ('--moves=0', '--moves=0: want 1 or more'), ('--moves=-1', '--moves=-1: want 1 or more'),
    ('--crop=0', '--crop=0: want 1 or more'), ('--crop=-7', '--crop=-7: want 1 or more'),
    ('--crop=8', '--crop=8: the agent is in the middle tile; use an odd number'),
    ('--episodes=-3', '--episodes=-3: want 1 or more'), ('--seed=-1', '--seed=-1: want a number from 0')])
def test_bad_flags_are_one_line(tmp_path, flag, says):
    out, err = script('data/minihack/prepare.py', f'--out={tmp_path}/m', flag, code=1)
    assert err.startswith(says) and err.count('\n') == 1 and not out and not list(tmp_path.iterdir())


def test_command(tmp_path, episodes):
    """Two workers in their own processes make what we make here."""
    command = [sys.executable, 'data/minihack/prepare.py', f'--out={tmp_path}/m', '--limit=16', '--workers=2',
               '--val=0-2', f'--moves={MOVES}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr
    for split, want in ('val', episodes[:3]), ('train', episodes[3:]):
        for key in ('video', 'action'):
            got = np.load(tmp_path / 'm' / split / f'{key}.npy')
            assert np.array_equal(got, np.concatenate([e[key] for e in want]))
    meta = json.loads((tmp_path / 'm' / 'meta.json').read_text())
    assert meta['facts'] == {'input': 'video', 'height': 28, 'width': 28, 'channels': 3, 'action_dim': 8,
                             'fps': 6}
    assert meta['stats']['action']['mean'] == [0] * 8 and meta['stats']['action']['std'] == [1] * 8
    assert meta['action_names'][:4] == ['N', 'E', 'S', 'W']
    assert meta['action_arrows'][:3] == [[0, -1], [1, 0], [0, 1]]
