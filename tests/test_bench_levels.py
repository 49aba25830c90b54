"""bench/levels.py and bench/versus_remdm.py: both ways do the same, and what is written can be read."""
import json

import numpy as np
import pytest
import torch
from conftest import one_line, script

import remdm
from bench import levels, timing, versus_remdm
from data.minihack import oracles


@pytest.mark.parametrize('what, flags, columns', [
    ('step', ['--games=2', '--moves=5', '--reps=1'], {'ours/engine', 'gym/ours'}),
    ('collect', ['--games=1', '--reps=1'], {'published/bfs5', 'explore_games_per_s'}),
    ('teachers', ['--seeds=1'], {'win', 'lo', 'hi', 'steps', 'cap'})])
def test_tables(tmp_path, what, flags, columns):
    out, _ = script('bench/levels.py', f'--what={what}', *flags, f'--out={tmp_path}/b.json')
    result = json.loads((tmp_path / 'b.json').read_text())
    assert columns <= result['rows'][0].keys() and out.count('\n') == 1 + len(result['rows'])
    if what == 'teachers':
        assert len(result['rows']) == 16 and result['rows'][0]['win'] == 1


def test_unknown_kind(tmp_path):
    _, err = script('bench/levels.py', '--what=dance', f'--out={tmp_path}/b.json', code=1)
    assert one_line(err) == "what = 'dance': choose from step, collect, rollout, teachers"


def test_the_published_search_decides_the_same():
    """On random maps: walls, doors, blanks, a player, a staircase now and then."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        chars = rng.choice(np.frombuffer(b'   ....#|-+>', np.uint8), size=(21, 79)).astype(np.uint8)
        if rng.random() < 0.7:
            chars[chars == ord('>')] = ord('.')
        chars[rng.integers(21), rng.integers(79)] = ord('@')
        a, b = (search(chars, np.random.default_rng(1)) for search in (oracles.bfs5, levels.published_bfs5))
        assert a == b


def test_the_reference_is_the_same_function():
    torch.manual_seed(0)
    cfg = remdm.PRESETS['tiny']
    row = versus_remdm.row(cfg, timing.Clock('cpu', 'float32', 1), 2)
    assert row['difference'] < 1e-6 and row['ratio'] > 0
    ours, theirs = remdm.Model(cfg), versus_remdm.Reference(cfg)
    theirs.load_state_dict(ours.state_dict())
    batch = remdm.example(cfg, 2) | {'t': torch.rand(2), 'noise': torch.rand(2, cfg.seq_len)}
    for model in (ours, theirs):
        model(batch)['loss'].backward()
    theirs = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        assert (p.grad - theirs[key].grad).abs().max() < 1e-5, key
