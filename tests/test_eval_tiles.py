"""protocols/tiles.py: tiles are named by their nearest, and only the right place counts."""
import numpy as np
import pytest
import torch
from test_eval import build, judge, last_frame

from data.writer import write
from protocols import tiles

rng = np.random.default_rng(0)
TILES = {'px': 2, 'names': ['floor', 'me', 'stone'], 'agent': 'me',
         'pixels': rng.integers(0, 256, (3, 2, 2, 3)).tolist()}
FLOOR, ME, STONE = range(3)
MOVES = [(0, 1), (0, -1)]                                    # of the agent: right, left


def drawn(names):
    """(..., rows, cols) of tile numbers -> (..., H, W, C) uint8."""
    picture = np.array(TILES['pixels'], np.uint8)[names]                         # (..., rows, cols, 2, 2, 3)
    *lead, rows, cols = names.shape
    return np.moveaxis(picture, -3, -4).reshape(*lead, rows * 2, cols * 2, 3)


def frames(names): return torch.from_numpy(drawn(np.array(names))).float() / 255


def test_names():
    names = rng.integers(3, size=(2, 5, 6, 8))
    pixels, agent = tiles.table(TILES, 3)
    noisy = (frames(names) + 0.05 * torch.randn(2, 5, 12, 16, 3)).clamp(0, 1)
    assert np.array_equal(tiles.named(noisy, pixels).numpy(), names) and agent == ME


def test_against_a_naive_loop():
    last, true, guess = (rng.integers(3, size=(4, k, 3, 5)) for k in (1, 6, 6))
    guess[:2] = np.where(rng.random(guess[:2].shape) < 0.1, guess[:2], true[:2])          # mostly right
    guess[0] = true[0]
    table = tiles.columns(frames(last), {'': frames(guess)}, frames(true), TILES)
    for b in range(4):
        for k in range(6):
            changed, right, agent = 0, 0, True
            for y in range(3):
                for x in range(5):
                    t, g = true[b, k, y, x], guess[b, k, y, x]
                    changed += t != last[b, 0, y, x]
                    right += t != last[b, 0, y, x] and t == g
                    agent &= (t == ME) == (g == ME)
            assert (table['tiles_changed'][b, k], table['tiles_right'][b, k]) == (changed, right)
            assert table['agent'][b, k] == agent
    result = tiles.scores({key: x.double().numpy() for key, x in table.items()}, '', np.arange(4))
    assert result['tile_changed'] == pytest.approx(table['tiles_right'].sum() / table['tiles_changed'].sum())
    assert result['tile_agent'] == pytest.approx(table['agent'].float().mean())
    assert 0.25 <= result['tile_agent'] < 1


def test_a_second_agent_is_wrong():
    true = np.array([[[[ME, FLOOR], [FLOOR, FLOOR]]]])
    twice = np.array([[[[ME, FLOOR], [FLOOR, ME]]]])
    table = tiles.columns(frames(true), {'': frames(twice), '_copy': frames(true)}, frames(true), TILES)
    assert (table['agent'].item(), table['agent_copy'].item()) == (False, True)


def walk(i):
    """An agent walks right and left in a corridor of 6 x 8 tiles."""
    rng = np.random.default_rng([1, i])
    action = np.eye(2, dtype=np.float32)[rng.integers(2, size=6)]
    action[-1] = 0
    at = (3 + np.cumsum(action @ [1, -1])).round().astype(int).clip(0, 7)
    at = np.concatenate([[3], at[:-1]])
    names = np.zeros((6, 6, 8), int)
    names[:, 0], names[np.arange(6), 2, at] = STONE, ME
    return {'video': drawn(names), 'action': action}


def test_evaluate(tmp_path):
    write(str(tmp_path / 'd'), walk, 8, info={'source': 's', 'revision': '1', 'fps': 4, 'tiles': TILES},
          seed=0, val='0.5', workers=1, limit=0, command='c', binary={'action': slice(None)})
    result = judge(build(last_frame, width=16), str(tmp_path / 'd'), horizon=4)
    episodes = [walk(i)['video'] for i in range(8)]
    assert result['tile_agent'] == result['tile_agent_copy'] == result['tile_agent_shuffled'] < 1
    assert result['tile_changed'] == 0 and len(episodes) == 8
    curve = result['curve']
    assert curve['tile_agent'][0] == 0 and curve['tile_agent'][1] > 0       # a step and back again
    assert np.mean(curve['tile_agent']) == pytest.approx(result['tile_agent'])
    assert result['tile_agent_ci'][0] <= result['tile_agent'] <= result['tile_agent_ci'][1]


def test_bad_tiles_are_refused(tmp_path):
    bad = [({'px': 0}, 'px'), ({'agent': 'you'}, 'agent'), ({'pixels': [[1]]}, 'pixels'),
           ({'px': 5}, 'pixels')]
    for change, says in bad:
        with pytest.raises(SystemExit, match=f'tiles.*{says}'):
            write(str(tmp_path / 'd'), walk, 8, seed=0, val='0.5', workers=1, limit=0, command='c',
                  info={'source': 's', 'revision': '1', 'fps': 4, 'tiles': TILES | change})
