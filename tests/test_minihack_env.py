"""data/minihack/env.py against MiniHack itself; the teachers against published fixtures and win rates."""
import os

import gymnasium
import numpy as np
import pytest

from data.minihack import env as E
from data.minihack import oracles, play
from data.rollout import rollout

LEVELS = ('MiniHack-Room-Random-5x5-v0', 'MiniHack-Corridor-R2-v0', 'MiniHack-MazeWalk-9x9-v0',
          'MiniHack-Room-Dark-15x15-v0')
KEYS = dict(disable_env_checker=True, fix_moon_phase=True)


def original(name):
    E.register()
    return gymnasium.make(name, observation_keys=('glyphs', 'glyphs_crop', 'chars', 'blstats'),
                          obs_crop_pad=E.EDGE, **KEYS)


def original_start(env, seed):
    env.unwrapped.seed(core=seed, disp=seed, reseed=False)
    return env.reset()[0]


# ---- the fast path plays the same game ----

@pytest.mark.parametrize('name', LEVELS)
def test_same_game_as_minihack(name):
    """Screens, rewards and ends over random play, kicks and searches with it; every id that the level has."""
    ours, theirs, rng = E.make_env(name, cap=10**6), original(name), np.random.default_rng(0)
    n, met = len(theirs.unwrapped.actions), 0
    assert n == ours.n_actions and ours.cap == theirs.unwrapped._max_episode_steps
    for seed in range(4):
        a, b = ours.reset(seed=seed)[0], original_start(theirs, seed)
        for _ in range(60):
            assert np.array_equal(a['glyphs'], b['glyphs']) and np.array_equal(a['local'], b['glyphs_crop'])
            assert a['glyphs'].dtype == a['local'].dtype == np.int16
            action = int(rng.integers(n))
            a, reward, over, cut, info = ours.step(action)
            b, want, ended, *_ = theirs.step(action)
            assert (reward, over) == (want, ended) and info['won'] == (over and want > 0) and not cut
            met += 1
            if over: break
    assert met > 60
    ours.close()
    theirs.close()


def test_levels_are_reproduced():
    """By the seed alone: whatever was played before, and in another instance."""
    for name in LEVELS:
        one, two = E.make_env(name), E.make_env(name)
        rng = np.random.default_rng(1)
        screens = []
        for seed in (3, 9, 3):
            frames = [one.reset(seed=seed)[0]['glyphs']]
            actions = rng.integers(8, size=20).tolist() if seed == 9 else list(range(8)) * 2
            for action in actions:
                if one.over: break
                frames.append(one.step(action)[0]['glyphs'])
            screens.append(np.stack(frames))
        assert np.array_equal(screens[0], screens[2])
        assert np.array_equal(two.reset(seed=3)[0]['glyphs'], screens[0][0])
        assert not np.array_equal(two.reset(seed=4)[0]['glyphs'], screens[0][0])
        one.close()
        two.close()


def test_ids_that_a_level_does_not_have():
    env = E.make_env(LEVELS[0])
    before = env.reset(seed=0)[0]
    for action in (8, 11):
        obs, reward, over, _, info = env.step(action)
        assert info['illegal'] and reward == -0.01 and not over
        assert np.array_equal(obs['glyphs'], before['glyphs'])
    assert env.steps == 2
    alias, plain = E.make_env(LEVELS[0], alias_actions=True), E.make_env(LEVELS[0])
    for action, means in ((8, 0), (9, 1), (10, 2), (11, 3)):
        a, b = alias.reset(seed=0), plain.reset(seed=0)
        (a, *_, info), (b, *_) = alias.step(action), plain.step(means)
        assert np.array_equal(a['glyphs'], b['glyphs']) and 'illegal' not in info
    corridor = E.make_env(LEVELS[1], alias_actions=True)
    assert corridor.means == [*range(11), 0]
    for e in (env, alias, plain, corridor): e.close()


def test_caps():
    """A run that ends by its cap is truncated, not terminated; the level's own cap binds before ours."""
    env = E.make_env(LEVELS[0], cap=5)
    env.reset(seed=0)
    ends = [env.step(8)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert E.make_env(LEVELS[0]).cap == 100 and E.make_env(LEVELS[1]).cap == 500
    with pytest.raises(AssertionError, match='reset first'):
        env.over = True
        env.step(0)


def screen(*rows):
    chars = np.full((21, 79), 32, np.uint8)
    for y, row in enumerate(rows):
        for x, c in enumerate(row):
            chars[5 + y, 10 + x] = ord(c)
    return chars


def room(*rows):
    """Rows between walls above and below, as the fixtures of the published teacher are drawn."""
    width = max(len(row) for row in rows)
    return screen('-' * width, *rows, '-' * width)


FIXTURES = [                  # rows, what the published teacher does (None: any of 0..3), shaping distance
    (['|@.>|'], 1, 2), (['|..>|', '|@..|'], 0, 3), (['|>..@>|'], 1, 3), (['|@.+.>|'], 1, 4),
    (['|@.|.>|'], 1, None), (['|@}>.|'], None, None), (['|@.{>|'], 1, 3), (['|@.<>|'], 1, 3),
    (['|@.0>|'], 1, 3), (['|@.d>|'], 1, 3), (['|@...|', '|....|'], 1, None),
    (['|...|', '|.@.|', '|...|'], 0, None)]


@pytest.mark.parametrize('rows, action, steps', FIXTURES, ids=lambda x: ''.join(x) if type(x) is list else '')
def test_bfs5_fixtures(rows, action, steps):
    got = {oracles.bfs5(room(*rows), np.random.default_rng(i)) for i in range(40)}
    assert got == ({0, 1, 2, 3} if action is None else {action})
    assert E.distance(room(*rows)) == steps


def test_bfs5_doors_and_no_player():
    rng = np.random.default_rng(0)
    assert oracles.bfs5(screen('--+--', '|.@.>|', '-----'), rng) == 11  # a door beside it, before all else
    assert oracles.bfs5(screen('-+---', '|.@.>|', '-----'), rng) == 1        # not a diagonal one
    assert oracles.bfs5(screen('-----', '|..@ ', '-----'), rng) == 3         # its own cell is no frontier
    assert oracles.bfs5(screen(' @##'), rng) == 1
    assert {oracles.bfs5(screen('...'), np.random.default_rng(i)) for i in range(40)} == {0, 1, 2, 3}
    goal = screen('|@|', '|.|', '|>|')
    goal[4, 10:13] = ord('-')
    assert oracles.bfs5(goal, rng) == 2


def test_local_at_the_edge():
    env = E.make_env(LEVELS[0])
    env.reset(seed=0)
    env.blstats[0] = env.blstats[1] = 0
    env.screen[0, 0] = 337
    local = env.observation()['local']
    assert local[4, 4] == 337 and local[0, 0] == E.EDGE == local[3, 4] and local[4, 5] == env.screen[0, 1]
    env.close()


def test_shaped_reward_changes_nothing_but_the_reward():
    plain, shaped = E.make_env(LEVELS[0]), E.make_env(LEVELS[0], shaped=True)
    total, far = 0.0, []
    for seed in range(10):
        a, b = plain.reset(seed=seed)[0], shaped.reset(seed=seed)[0]
        before, been = E.distance(shaped.chars), {shaped.position()}
        teacher = oracles.Explore(plain)
        over = False
        while not over:
            action = teacher.act()
            (a, raw, over, *_), (b, reward, over2, _, info) = plain.step(action), shaped.step(action)
            assert over == over2 and np.array_equal(a['glyphs'], b['glyphs'])
            now = E.distance(shaped.chars)
            nearer = 0.5 * (before - now) if None not in (before, now) else 0.0
            before = now if None not in (before, now) else before
            new = shaped.position() not in been
            been.add(shaped.position())
            assert reward == pytest.approx(raw + 20 * info['won'] + nearer + 0.05 * new - 0.01)
            total += reward
        far.append(total)
    assert 20 < total / 10 < 25                          # published: 22.2 to 22.5 for a typical game


def test_memory():
    env = E.make_env('MiniHack-Corridor-R2-v0', memory=True)
    obs, _ = env.reset(seed=0)
    y, x = env.position()
    assert obs['local'][4, 4] == E.MARK and obs['glyphs'][y, x] == 337
    for n in range(1, 8):
        obs = env.step(E.SEARCH)[0]
        assert obs['local'][4, 4] == E.MARK + min(n, 5)
    for action in range(8):
        obs = env.step(action)[0]
        if env.position() != (y, x): break
    at = obs['glyphs'][y, x]
    assert at in (E.MARK + 5, E.UP)                      # stairs, doors and things stay what they are
    assert obs['glyphs'].max() < 6000 and (obs['glyphs'] == 337).sum() == 1
    plain = E.make_env('MiniHack-Corridor-R2-v0')
    assert np.array_equal(np.where(obs['glyphs'] >= E.MARK, 0, obs['glyphs']) != 0,
                          obs['glyphs'] < E.MARK) and plain.memory is False
    assert env.reset(seed=0)[0]['glyphs'].max() < E.MARK         # forgotten
    env.close()


# ---- the teachers ----

def win_rate(teacher, name, seeds, cap=500):
    bfs5 = teacher == 'bfs5'
    env, won, steps = E.make_env(name, cap=cap, chars=bfs5, alias_actions=bfs5), 0, []
    for seed in seeds:
        env.reset(seed=seed)
        oracle = oracles.ORACLES[teacher](env, np.random.default_rng(seed))
        over = cut = False
        while not (over or cut):
            _, _, over, cut, info = env.step(oracle.act())
        won += info['won']
        steps.append(env.steps)
    env.close()
    return won / len(seeds), np.mean(steps)


@pytest.mark.parametrize('name, least', [('Room-Random-5x5', 1), ('Room-Random-15x15', 1),
                                         ('Room-Dark-15x15', 1), ('MazeWalk-9x9', 1), ('Corridor-R2', .9),
                                         ('Corridor-R5', .85)])
def test_explore_wins(name, least):
    """30 of the levels of docs/remdm.md's table, which has 100 of each."""
    assert win_rate('explore', f'MiniHack-{name}-v0', range(30))[0] >= least


def test_explore_wins_the_large_maze():
    assert win_rate('explore', 'MiniHack-MazeWalk-45x19-v0', range(10), cap=1000)[0] == 1


@pytest.mark.parametrize('name, won, steps', [('Room-Random-5x5', 1, 3.2), ('Room-Random-15x15', 1, 9.1),
                                              ('Corridor-R2', .58, 212.8), ('MazeWalk-9x9', .41, 119.8),
                                              ('Room-Dark-15x15', .21, 238.6)])
def test_bfs5_is_the_published_teacher(name, won, steps):
    """Seeds 0 to 99, cap 500: games won and mean steps of the original, to its last digit."""
    got = win_rate('bfs5', f'MiniHack-{name}-v0', range(100))
    assert got[0] == pytest.approx(won) and round(got[1], 1) == steps


def test_a_teacher_goes_on_where_a_student_went():
    """
    Levels replay exactly, so the student's first actions bring back its state; then the teacher finishes.
    """
    won = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        env, = E.environments(['MiniHack-Corridor-R5-v0'])
        env.reset(seed=seed)
        prefix, frames = rng.integers(0, 12, size=40).tolist(), []
        for action in prefix:
            obs, _, over, cut, _ = env.step(action)
            frames.append(obs)
            if over or cut: break
        else:
            lesson, wins = play.lesson('MiniHack-Corridor-R5-v0', seed, 'explore', rng, prefix)
            for key in ('glyphs', 'local'):
                assert np.array_equal(lesson[key][0], frames[-1][key])
            assert len(lesson['action']) == len(lesson['glyphs']) == len(lesson['local'])
            won += wins
    assert won >= 9


def test_rollout_does_not_depend_on_the_company():
    """A game alone is the same game among others, though these end sooner and leave the batch."""
    import torch

    def act(obs, generators):
        return torch.stack([torch.randint(0, 8, (3, 1), generator=g) for g in generators])
    names = [LEVELS[0], LEVELS[2], LEVELS[0], LEVELS[3]]
    together = rollout(E.environments(names), [5, 6, 7, 8], act)
    for i in range(4):
        alone, = rollout(E.environments([names[i]]), [5 + i], act)
        assert alone == together[i]
    assert len({len(game['actions']) for game in together}) > 1


# ---- level files ----

GOOD = ('LEVEL: "mylevel"\nROOM: "ordinary", lit, random, random, (5,5) {\nSTAIR: random, up\n'
        'STAIR: random, down\n}\n')


def test_des_files(tmp_path):
    (tmp_path / 'my levels').mkdir()                     # MiniHack itself cannot copy such a path
    path = tmp_path / 'my levels' / 'mine.des'
    path.write_text(GOOD)
    env = E.make_env(str(path), cap=300)
    obs, _ = env.reset(seed=0)
    assert env.n_actions == 8 and env.cap == 300 and (obs['glyphs'] == E.FLOOR).sum() > 10
    lesson, won = play.lesson(str(path), 3, 'explore', np.random.default_rng(0))
    assert won and len(lesson['action']) < 20
    env.close()


@pytest.mark.parametrize('text, says', [
    (GOOD.replace('ROOM:', 'RUUM:'), 'does not compile: level.des: line 2'),
    (GOOD.replace('"mylevel"', '"other"'), 'defines other; want one level, called "mylevel", because'),
    (GOOD + GOOD.replace('"mylevel"', '"other"'), 'defines mylevel and other; want one level, called'),
    ('', 'does not compile: it defines no level'),
    (None, 'No such file or directory; want a NetHack level file')])
def test_broken_level_files(tmp_path, text, says):
    path = str(tmp_path / 'mine.des')
    if text is not None:
        with open(path, 'w') as f: f.write(text)
    with pytest.raises(SystemExit) as error: E.make_env(path)
    line = str(error.value)
    assert line.startswith(path) and says in line and '\n' not in line
    assert os.listdir(tmp_path) == ([] if text is None else ['mine.des'])


@pytest.mark.parametrize('name, close', [('MiniHack-MazeWalk-9x9', 'MiniHack-MazeWalk-9x9-v0'),
                                         ('Corridor-R2', 'MiniHack-Corridor-R2-v0'), ('idd', 'id'),
                                         ('minihack-room-dark-15x15-v0', 'MiniHack-Room-Dark-15x15-v0')])
def test_unknown_levels(name, close):
    with pytest.raises(SystemExit, match=f'no level {name!r}; did you mean {close!r}'): E.check_name(name)




@pytest.mark.parametrize('name, says', [
    ('MiniHack-KeyRoom-S5-v0', 'has other actions than N, E, S'),
    ('nothing at all', 'or a file that ends in .des'),
    ('MiniHack-Memento-Short-F2-v0', 'is won by something else than the staircase down')])
def test_levels_that_cannot_be_judged(name, says):
    with pytest.raises(SystemExit, match=says): E.check_name(name)


def test_an_answer_is_no_search():
    """SEARCH is also a key: pressed where NetHack asks for a direction, it makes no mark."""
    env = E.make_env('MiniHack-Corridor-R2-v0', memory=True)
    env.reset(seed=0)
    env.step(E.KICK)
    assert env.internal[E.ASKS_KEY]
    assert env.step(E.SEARCH)[0]['local'][4, 4] == E.MARK
    assert env.step(E.SEARCH)[0]['local'][4, 4] == E.MARK + 1
    oracle = oracles.Explore(env)
    env.step(E.KICK)                                     # somebody else's kick: any direction ends it
    assert oracle.act() in range(8)
    env.close()
