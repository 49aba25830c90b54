"""data/minihack/boulders.py: pictures are NetHack's map, rules explain them, seeds bring all back."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, script

from data.minihack import boulders, env
from data.minihack.pixels import tiles

PATH = boulders.level_file('boulders')
PLAY = {'seed': 0, 'path': PATH, 'moves': 30, 'shadows': False, 'diagonal': False}
PREPARE = 'data/minihack/prepare.py'


@pytest.fixture(scope='module')
def episodes(): return [boulders.episode(i, **PLAY) for i in range(16)]


def names(video):
    """(T, 36, 36, 3) -> (T, 9, 9) of glyphs, which every tile must be exactly."""
    blocks = video.reshape(len(video), 9, 4, 9, 4, 3).transpose(0, 1, 3, 2, 4, 5)    # (T, 9, 9, 4, 4, 3)
    found = np.full(blocks.shape[:3], -1)
    for glyph in boulders.NAMES:
        found[(blocks == tiles()[glyph]).all((3, 4, 5))] = glyph
    assert (found >= 0).all()
    return found


def push(room, move):
    """What a move does to a room (9, 9), by the rules of the game as we know them."""
    room, (dy, dx) = room.copy(), env.DELTAS[move]
    (y, x), = np.argwhere(room == boulders.PLAYER)
    ahead, beyond = (boulders.look(room, (y, x), dy, dx, steps) for steps in (1, 2))
    if ahead == boulders.BOULDER and beyond == env.FLOOR:
        room[y + 2 * dy, x + 2 * dx] = boulders.BOULDER
    elif ahead != env.FLOOR:
        return room
    room[y + dy, x + dx], room[y, x] = boulders.PLAYER, env.FLOOR
    return room


def test_the_next_frame_follows_from_this_one_and_the_move(episodes):
    """Nothing hidden decides."""
    right = []
    for e in episodes:
        rooms, moves = names(e['video']), e['action'][:-1].argmax(1)
        right += [np.array_equal(push(rooms[t], move), rooms[t + 1]) for t, move in enumerate(moves)]
    assert all(right) and len(right) == 16 * 30


def test_rooms(episodes):
    rooms = [names(e['video'])[0] for e in episodes]
    for room in rooms:
        assert (room == boulders.PLAYER).sum() == 1 and (room == boulders.BOULDER).sum() <= 9
    assert len({room.tobytes() for room in rooms}) == 16
    assert 0.05 < np.mean([(room == boulders.TREE).mean() for room in rooms]) < 0.2
    moved = np.concatenate([(e['video'][1:] != e['video'][:-1]).any((1, 2, 3)) for e in episodes])
    boulder = np.stack([names(e['video']) == boulders.BOULDER for e in episodes])     # (16, 31, 9, 9)
    pushed = (boulder[:, 1:] != boulder[:, :-1]).any((2, 3))
    assert moved.mean() > 0.5 and pushed.mean() > 0.05
    assert (np.concatenate([e['action'] for e in episodes]).mean(0) > 0.05).all()          # all moves are in


def test_shapes(episodes):
    for e in episodes:
        assert e['video'].shape == (31, 36, 36, 3) and e['video'].dtype == np.uint8
        assert e['action'].shape == (31, 4) and e['action'].dtype == np.float32
        assert (e['action'][:-1].sum(1) == 1).all() and not e['action'][-1].any()


def test_seeds(episodes):
    again = boulders.episode(3, **PLAY)
    assert all(np.array_equal(again[key], episodes[3][key]) for key in again)
    other = boulders.episode(3, **{**PLAY, 'seed': 1})
    assert not np.array_equal(other['video'][0], episodes[3]['video'][0])


def test_diagonal_moves():
    e = boulders.episode(0, **{**PLAY, 'diagonal': True})
    assert e['action'].shape == (31, 8) and e['action'][:, 4:].any()
    rooms, moves = names(e['video']), e['action'][:-1].argmax(1)
    right = [np.array_equal(push(rooms[t], move), rooms[t + 1]) for t, move in enumerate(moves)]
    assert np.mean(right) > 0.9


def test_shadows_are_the_same_game(episodes):
    dark = boulders.episode(0, **{**PLAY, 'shadows': True})
    assert np.array_equal(dark['action'], episodes[0]['action'])
    seen, lit = names(dark['video']), names(episodes[0]['video'])
    assert (seen == boulders.DARK).any() and not (lit == boulders.DARK).any()
    assert np.array_equal(np.where(seen == boulders.DARK, env.FLOOR, seen), lit)


def test_water_swallows_boulders_but_not_the_player():
    path = boulders.level_file('boulders', water=True)
    rooms = [names(boulders.episode(i, **{**PLAY, 'path': path})['video']) for i in range(24)]
    assert all(len(r) == 31 for r in rooms)
    assert np.mean([(r[0] == boulders.WATER).mean() for r in rooms]) > 0.02
    assert any((r[-1] == boulders.BOULDER).sum() < (r[0] == boulders.BOULDER).sum() for r in rooms)


def test_command(tmp_path, episodes):
    """Two workers in their own processes make what we make here."""
    command = [sys.executable, PREPARE, '--level=boulders', f'--out={tmp_path}/m', '--limit=16',
               '--workers=2', '--val=0-2', '--moves=30']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for split, want in ('val', episodes[:3]), ('train', episodes[3:]):
        for key in ('video', 'action'):
            got = np.load(tmp_path / 'm' / split / f'{key}.npy')
            assert np.array_equal(got, np.concatenate([e[key] for e in want]))
    meta = json.loads((tmp_path / 'm' / 'meta.json').read_text())
    assert meta['tiles']['names'] == ['player', 'floor', 'tree', 'boulder'] and meta['tiles']['px'] == 4
    assert np.shape(meta['tiles']['pixels']) == (4, 4, 4, 3)


OWN = '''MAZE:"mylevel",' '
FLAGS:noteleport,hardfloor,premapped
GEOMETRY:center,center
MAP
-------
|.....|
|..T..|
|.....|
-------
ENDMAP
REGION:(0,0,6,4),lit,"ordinary"
OBJECT:('`',"boulder"),(2,2)
'''


def test_a_level_of_your_own(tmp_path):
    (tmp_path / 'own.des').write_text(OWN)
    e = boulders.episode(0, **{**PLAY, 'path': str(tmp_path / 'own.des')})
    assert e['video'].shape == (31, 12, 20, 3)


NO_WALLS = '''MAZE:"mylevel",' '
GEOMETRY:center,center
MAP
...
...
ENDMAP
REGION:(0,0,2,1),lit,"ordinary"
'''
BAD = {     # name: (text of the level or None, what the line says)
    'no file': (None, 'No such file'),
    'broken': (Path(PATH).read_text().replace('ENDMAP', 'END'), 'does not compile'),
    'empty': ('', 'does not compile: it defines no level'),
    'other name': (Path(PATH).read_text().replace('mylevel', 'yours'), 'defines yours; want one level'),
    'no walls': (NO_WALLS, 'no walls around one rectangle; want a premapped')}


@pytest.mark.parametrize('name', BAD)
def test_bad_levels_are_one_line(tmp_path, name):
    text, says = BAD[name]
    level = tmp_path / 'level.des'
    if text is not None: level.write_text(text)
    _, err = script(PREPARE, f'--level={level}', f'--out={tmp_path}/m', '--episodes=2', '--val=0',
                    '--workers=1', code=1)
    lines = [line for line in err.splitlines() if 'level.des' in line]
    assert len(lines) == 1 and says in lines[0] and 'Traceback' not in err, err
    assert not (tmp_path / 'm').exists()


@pytest.mark.parametrize('flag', ['--moves=0', '--episodes=-3'])
def test_too_few(tmp_path, flag):
    _, err = script(PREPARE, '--level=boulders', f'--out={tmp_path}/m', flag, code=1)
    assert err == f'{flag}: want 1 or more\n' and not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags, says', [
    (['--level=rom'], '--level=rom: choose room, mazewalk, corridor, boulders or a .des file'),
    (['--level=boulders', '--crop=7'], '--crop makes no sense with --level=boulders'),
    (['--level=boulders', '--oracle'], '--oracle makes no sense with --level=boulders'),
    (['--water'], '--water makes no sense with --level=room'),
    (['--oracle', '--shadows'], '--shadows makes no sense with --oracle')])
def test_flags_of_another_kind(tmp_path, flags, says):
    _, err = script(PREPARE, f'--out={tmp_path}/m', *flags, code=2)
    assert err.strip().endswith(says), err


def test_water_needs_our_own_level(tmp_path):
    _, err = script(PREPARE, f'--out={tmp_path}/m', f'--level={PATH}', '--water', code=1)
    assert err.startswith('--water') and err.count('\n') == 1
