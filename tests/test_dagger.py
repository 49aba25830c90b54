"""
Models that make their own data: the store's added episodes, `refresh` in train.py, and remdm's DAgger with
it. What only a process of its own can show (a kill, two ranks) runs side by side; the rest calls the scripts
here.
"""
import json
import os
import signal
import sys
import time
from collections import deque

import numpy as np
import pytest
import torch
from conftest import finish, one_line, script, start, start_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train import curves, same_run

import checkpoint
import remdm
from data.loader import Store
from data.minihack import env as E

PLANNER = ['train.py', '--model=remdm', '--n_embd=32', '--n_layer=1', '--n_head=2', '--seq_len=16',
           '--replan_every=8', '--diffusion_steps_eval=3',
           "--envs=('MiniHack-Room-Random-5x5-v0', 'MiniHack-MazeWalk-9x9-v0')",
           '--refresh_every=2', '--episodes_per_iteration=5', '--seed_episodes=1', '--batch_size=4',
           '--ema_decay=0.9', '--device=cpu', '--log_every=1', '--val_every=0', '--save_every=2',
           '--max_steps=6', '--keep=0']
WINDOWS = {'glyphs': range(0, 1), 'local': range(0, 1), 'action': range(0, 4)}


def planner(tmp_path, *flags, name='out', **kw):
    return script(*PLANNER, f'--out_dir={tmp_path}/{name}', *flags, **kw)


def lesson(T, first=0):
    """An episode whose actions count."""
    return {'glyphs': np.full((T, 21, 79), first, np.int16), 'local': np.full((T, 9, 9), first, np.int16),
            'action': np.arange(first, first + T, dtype=np.uint8)[:, None]}


def online(capacity=0, **kw): return Store(None, 'train', WINDOWS, pad=True, capacity=capacity, **kw)


def games(*episodes, start=0): return [(start + i, (0, 1), episode) for i, episode in enumerate(episodes)]


# ---- the store ----

def test_windows_of_added_episodes():
    """T actions make T windows; behind the end of the episode the last repeats, and `mask` says so."""
    store = online()
    assert len(store) == 0
    store.add(games(lesson(5), lesson(2, first=50)))
    batch = store.windows_at(np.arange(7))
    assert len(store) == 7
    assert batch['action'][..., 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4],
                                                [4] * 4, [50, 51, 51, 51], [51] * 4]
    assert batch['mask'].sum(1).tolist() == [4, 4, 3, 2, 1, 2, 1]
    assert batch['glyphs'].shape == (7, 1, 21, 79) and batch['glyphs'][5, 0, 0, 0] == 50
    assert batch['glyphs'].dtype == torch.int16 and batch['action'].dtype == torch.uint8


@pytest.fixture
def folder(tmp_path):
    """Three games of a teacher on disk."""
    script('data/minihack/prepare.py', '--episodes_per_env=3', '--envs=MiniHack-Room-Random-5x5-v0',
           '--val=0-0', '--workers=1', f'--out={tmp_path}/minihack_oracle')
    return f'{tmp_path}/minihack_oracle'


def test_those_of_the_folder_are_pinned(folder):
    """Published fixture: capacity 3 more than the folder has; of two added games of 3 the second stays."""
    fixed = Store(folder, 'train', WINDOWS, pad=True)
    n = len(fixed)
    store = Store(folder, 'train', WINDOWS, pad=True, capacity=n + 3)
    store.add(games(lesson(3, 0)))
    store.add(games(lesson(3, 3), start=1))
    assert len(store) == n + 3
    assert store.windows_at(np.arange(n, n + 3))['action'][:, 0, 0].tolist() == [3, 4, 5]
    ids = np.array([n + 1, 0, n + 2, n - 1])             # mixed in one batch
    batch, old = store.windows_at(ids), fixed.windows_at(ids[[1, 3]])
    assert all(torch.equal(batch[key][[1, 3]], old[key]) for key in (*WINDOWS, 'mask'))
    assert batch['action'][[0, 2], 0, 0].tolist() == [4, 5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_forgetting_is_window_by_window(lengths, capacity):
    """Whole episodes are stored, but windows are forgotten one by one, as from a queue of windows."""
    store, queue, first = online(capacity), deque(maxlen=capacity), 0
    for T in lengths:
        store.add(games(lesson(T, first)))
        queue += [(first + i, min(4, T - i)) for i in range(T)]
        first += T
        batch = store.windows_at(np.arange(len(store)))
        assert list(zip(batch['action'][:, 0, 0].tolist(), batch['mask'].sum(1).tolist())) == list(queue)
    assert len(store.added['action']) <= len(store) + 8          # what is forgotten whole is not kept


def test_a_store_comes_back():
    store, other = online(10), online(10)
    for i, T in enumerate((4, 7, 3)):
        store.add(games(lesson(T, 10 * i), None, start=2 * i))
    other.restore(store.state(), 'x')
    assert len(other) == len(store) == 10
    assert np.array_equal(other.table(('a', 'b')), store.table(('a', 'b'))) and len(store.games) == 6
    for step in range(3):
        a, b = store.batch(step, 8, 1), other.batch(step, 8, 1)
        assert all(torch.equal(a[key], b[key]) for key in a)
    for s in (store, other): s.add(games(lesson(5, 90), start=9))
    a, b = store.batch(7, 8, 1), other.batch(7, 8, 1)
    assert all(torch.equal(a[key], b[key]) for key in a)
    broken = store.state()
    broken['episodes'][0, 1] += 3
    with pytest.raises(SystemExit, match='store.safetensors is damaged'):
        online(10).restore(broken, 'store.safetensors')
    del broken['rows.local']
    with pytest.raises(SystemExit, match='store.safetensors is damaged'):
        online(10).restore(broken, 'store.safetensors')


@pytest.mark.parametrize('spoil, says', [
    (lambda e: e.pop('local'), 'want rows of'), (lambda e: e.update(local=e['local'][:2]), 'want rows of'),
    (lambda e: e.update(glyphs=e['glyphs'].astype(float)), 'glyphs is float64'),
    (lambda e: e.update({key: x[:0] for key, x in e.items()}), 'want rows of')])
def test_episodes_that_do_not_fit(spoil, says):
    store, other = online(), lesson(5)
    store.add(games(lesson(3)))
    spoil(other)
    with pytest.raises(ValueError, match=says):
        store.add(games(other, start=1))


# ---- refresh ----

def played(step=0, seed=1, games_before=None, **keys):
    """One refresh of a random student -> its store, its scalars."""
    torch.manual_seed(0)
    cfg = remdm.Config(n_embd=32, n_head=2, n_layer=1, seq_len=16, replan_every=8, episodes_per_iteration=6,
                       seed_episodes=1, **{'envs': (E.ID[0], E.ID[3])} | keys)
    model = remdm.Model(cfg).eval()
    store = Store(None, 'train', remdm.windows(cfg), pad=True, capacity=cfg.buffer_capacity)
    if games_before is not None:
        store.games = games_before
    with torch.no_grad():
        return store, remdm.refresh(model, store, step, seed, 0, 1)


def test_refresh_is_a_function_of_seed_and_number():
    a, b, other = played(), played(step=70), played(seed=2)
    assert np.array_equal(a[0].games, b[0].games) and a[1] == b[1]
    assert not np.array_equal(a[0].games, other[0].games)
    state = a[0].state(), b[0].state()
    assert all(torch.equal(state[0][key], state[1][key]) for key in state[0])


def test_what_refresh_counts():
    store, scalars = played()
    table = store.table(remdm.COLUMNS)
    assert len(table) == 6 and scalars['env_steps'] == table[:, 2:5].sum() > 0
    assert scalars['progress'] == pytest.approx(scalars['env_steps'] / 5_650_000)
    assert scalars['windows'] == len(store) and 0 <= scalars['won'] <= 1
    kept = int(table[:, 5].sum())
    assert len(store.episodes) == kept + 2               # and one lesson per level, which is not counted
    at_start, _ = played(relabel='start')
    assert (at_start.table(remdm.COLUMNS)[:, 4] == 0).all() and (table[:, 4] > 0).any()
    assert (table[:, 4] < table[:, 2]).all()  # the teacher takes over while the student still plays


def test_the_teacher_labels_where_the_student_was():
    """
    relabel = 'prefix': kept games begin on screens that the student saw, most of them not the first one.
    """
    from data.minihack import play
    store, _ = played()
    starts = store.added['glyphs'][store.episodes[2:, 0]]
    first = set()
    for _, level, seed in replayed_jobs(store):
        env, = E.environments([(E.ID[0], E.ID[3])[level]])
        first.add(env.reset(seed=seed)[0]['glyphs'].tobytes())
    assert sum(x.tobytes() not in first for x in starts) >= 1 and callable(play.lesson)


def replayed_jobs(store):
    """(number, level, seed of the level) of the games, drawn as refresh draws them."""
    for number, row in enumerate(store.games):
        rng = np.random.default_rng([1, number])
        rng.choice(2, p=[.5, .5])
        yield number, int(row[0]), int(rng.integers(2**31))


def test_lost_games_are_not_learned_from():
    """bfs5 loses most mazes: kept_lost decides whether its 200 steps to and fro become data."""
    keys = dict(oracle='bfs5', relabel='start', envs=(E.ID[0], E.ID[3]), curriculum_preseed=False)
    hopeless = np.array([(0, 1, 0, 0, 0, 0)] * 20, np.int64)  # so that it is mostly mazes that are played
    without, with_lost = (played(games_before=hopeless, keep_lost=keep, **keys)[0] for keep in (False, True))
    table, both = (store.table(remdm.COLUMNS)[20:] for store in (without, with_lost))
    assert np.array_equal(table[:, :5], both[:, :5]) and both[:, 5].sum() > table[:, 5].sum()
    assert len(with_lost) > len(without) + 150


def test_the_budget_ends_it():
    before = np.array([[0, 1, 60, 30, 10, 1]] * 3, np.int64)
    _, scalars = played(games_before=before, total_timesteps=300)
    assert scalars == {'done': 1.0, 'progress': 1.0, 'env_steps': 300.0}
    _, scalars = played(games_before=before, total_timesteps=301)
    assert 'done' not in scalars


# ---- train.py ----

def test_dagger_from_end_to_end(tmp_path):
    out, _ = planner(tmp_path, '--best_metric=refresh/won', '--best_mode=max')
    assert 'more are made every 2 steps' in out and out.count('| refresh |') == 3
    source = checkpoint.find(f'{tmp_path}/out')
    meta = checkpoint.read_meta(source)
    assert meta['step'] == 6 and meta['data_sha'] == '' and meta['refreshed'] == 4
    assert checkpoint.pointer(f'{tmp_path}/out', 'best')
    store = load_file(f'{source}/store.safetensors')
    assert len(store['games']) == 15 and store['rows.glyphs'].dtype == torch.int16
    logged = curves(f'{tmp_path}/out')
    assert {(2, 'refresh/won'), (2, f'refresh/won/{E.ID[3]}'), (4, 'refresh/env_steps'),
            (6, 'train/loss')} <= logged.keys()

    out, err = script('eval.py', f'--ckpt={tmp_path}/out', '--episodes=3', '--envs=id', '--at_once=2',
                      f'--out={tmp_path}/e.json')
    result = json.loads(out)
    row = result['envs'][E.ID[0]]
    assert set(result['envs']) == set(E.ID) and row['n'] == 3
    assert 0 <= row['lo'] <= row['win'] <= row['hi'] <= 1
    assert row['cap'] == 100 and row['steps'] <= 100 and '95 % interval' in err
    assert row['rivals']['explore'] == row['rivals']['bfs5'] == 1 and -1 <= row['minus_best'] <= 0
    (tmp_path / 'my.des').write_text('LEVEL: "mylevel"\nROOM: "ordinary", lit, random, random, (3,3) {\n'
                                     'STAIR: random, up\nSTAIR: random, down\n}\n')
    out, _ = script('eval.py', f'--ckpt={tmp_path}/out', '--episodes=2', f'--des={tmp_path}/my.des',
                    '--blind_global=True', '--ema=False')
    result = json.loads(out)
    assert list(result['envs']) == ['my'] and result['sampling_keys'] == {'blind_global': True}
    assert result['ema'] is False and result['envs']['my']['cap'] == 500

    out, _ = script('sample.py', f'--ckpt={tmp_path}/out', '--length=12', f'--env={E.ID[3]}',
                    f'--out={tmp_path}/e.gif')
    import imageio.v3 as imageio
    frames = imageio.imread(tmp_path / 'e.gif')
    assert frames.ndim == 4 and len(frames) >= 16 and E.ID[3] in out


def test_seeds_of_evaluation_are_the_published_ones():
    from zlib import crc32

    from protocols.env import seed_of
    assert seed_of(E.ID[0], 7, 42) == 42 + crc32(f'{E.ID[0]}:7'.encode()) % 2**31


def test_a_kill_during_dagger_loses_nothing(tmp_path):
    """Killed while it plays or trains, at a random moment, and resumed: the same run to the byte."""
    slow = [*PLANNER, '--max_steps=8']
    script(*slow, f'--out_dir={tmp_path}/whole')
    parts = f'{tmp_path}/parts'
    process = start(*slow, f'--out_dir={parts}')
    while checkpoint.pointer(parts, 'latest') is None:   # something is saved
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    time.sleep(0.4 * np.random.default_rng().random())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    step = checkpoint.read_meta(checkpoint.find(parts))['step']
    script(*slow, f'--out_dir={parts}', '--resume=True')
    same_run(f'{tmp_path}/whole', parts, 8, after=step)


def test_two_ranks_hold_equal_stores(tmp_path):
    """Ranks play disjoint games; together they hold what one rank would, if the students are the same."""
    flags = ['--max_steps=2', '--lr=0.0', '--weight_decay=0.0']       # weights that stay: equal students
    alone = start(*PLANNER, *flags, f'--out_dir={tmp_path}/one')
    for process in [*start_ranks(*PLANNER, *flags, f'--out_dir={tmp_path}/two', ranks=2), alone]:
        finish(process)
    stores = [load_file(os.path.join(checkpoint.find(f'{tmp_path}/{name}'), 'store.safetensors'))
              for name in ('one', 'two')]
    assert stores[0].keys() == stores[1].keys()
    assert all(torch.equal(stores[0][key], stores[1][key]) for key in stores[0])
    assert len(stores[0]['games']) == 5


def test_a_refresh_that_fails_loses_no_step(tmp_path, monkeypatch):
    real = remdm.refresh

    def refresh(net, store, step, *rest):
        if step == 4:
            sys.exit('no more NetHacks')
        return real(net, store, step, *rest)
    monkeypatch.setattr(remdm, 'refresh', refresh)
    _, err = planner(tmp_path, '--save_every=0', code=1)
    assert one_line(err) == 'no more NetHacks'
    meta = checkpoint.read_meta(checkpoint.find(f'{tmp_path}/out'))
    assert meta['step'] == 4 and meta['refreshed'] == 2
    monkeypatch.setattr(remdm, 'refresh', real)
    planner(tmp_path, '--save_every=0', '--resume=True')
    planner(tmp_path, '--save_every=0', name='whole')
    same_run(f'{tmp_path}/whole', f'{tmp_path}/out', 6, after=4)


def test_the_budget_ends_the_run(tmp_path):
    out, _ = planner(tmp_path, '--total_timesteps=300', '--max_steps=100', '--best_metric=refresh/won')
    meta = checkpoint.read_meta(checkpoint.find(f'{tmp_path}/out'))
    assert meta['step'] < 100 and meta['made']['refresh/done'] == 1 and 'done: ' in out
    out, _ = planner(tmp_path, '--total_timesteps=300', '--max_steps=100', '--resume=True',
                     '--best_metric=refresh/won')
    assert checkpoint.read_meta(checkpoint.find(f'{tmp_path}/out'))['step'] == meta['step']


def test_cloning_from_a_folder(tmp_path, folder):
    """refresh_every = 0: the folder decides levels and teacher, and nothing is played."""
    flags = [f for f in PLANNER if not f.startswith(('--envs', '--refresh_every'))]
    flags += [f'--data_dir={tmp_path}', '--dataset=minihack_oracle', '--refresh_every=0', '--val_batches=1']
    out, _ = script(*flags, f'--out_dir={tmp_path}/bc')
    meta = checkpoint.read_meta(checkpoint.find(f'{tmp_path}/bc'))
    assert meta['model_config']['envs'] == [E.ID[0]] and meta['model_config']['oracle'] == 'explore'
    assert 'val/loss' in meta['metrics'] and '| refresh |' not in out
    assert not os.path.exists(os.path.join(checkpoint.find(f'{tmp_path}/bc'), 'store.safetensors'))
    _, err = script(*flags, f'--out_dir={tmp_path}/other', f"--envs=('{E.ID[3]}',)", code=2)
    assert E.ID[3] in one_line(err) and 'minihack_oracle/meta.json' in err           # lacks that level
    out, _ = script(*flags, f'--out_dir={tmp_path}/both', '--refresh_every=3', '--buffer_capacity=500')
    store = load_file(os.path.join(checkpoint.find(f'{tmp_path}/both'), 'store.safetensors'))
    assert len(store['games']) == 10                     # DAgger on top of a folder
    _, err = script(*flags, f'--out_dir={tmp_path}/full', '--refresh_every=3', '--buffer_capacity=2', code=1)
    assert one_line(err).startswith('buffer_capacity = 2: the ') and 'fill it already' in err


@pytest.mark.parametrize('flags, says', [
    (["--envs=('MiniHack-Maze-v0',)"], "no level 'MiniHack-Maze-v0'; did you mean"),
    (['--seed_episodes=0', '--oracle=bfs5', "--envs=('MiniHack-MazeWalk-45x19-v0',)",
      '--episodes_per_iteration=1'],
     'step 0: remdm.refresh has kept no episode yet, so there is nothing to learn from'),
    (['--refresh_every=0'], "dataset = '': name a folder of data/"),
    (['--best_metric=refresh/wins'], 'best_metric = refresh/wins: no such number; there are refresh/'),
    (['--data_on_device=True'], 'data_on_device = True: episodes that are made during the training stay'),
    (["--envs=()"], 'remdm.Config: envs = (): name a level to train on'),
    (['--n_embd=33'], 'remdm.Config: n_embd = 33: must be a multiple of n_head = 2')])
def test_mistakes_are_one_line(tmp_path, flags, says):
    _, err = planner(tmp_path, *flags, code=1)
    assert one_line(err).startswith(says)


def test_a_checkpoint_of_another_width(tmp_path):
    planner(tmp_path, '--max_steps=2')
    _, err = planner(tmp_path, '--n_embd=16', f'--init_from={tmp_path}/out', name='other', code=1)
    line = one_line(err)
    assert 'has another shape: ' in line and '[16' in line and '[32' in line


@pytest.fixture(scope='module')
def run_of_one_step(tmp_path_factory):
    folder = tmp_path_factory.mktemp('judged')
    planner(folder, '--max_steps=1', '--episodes_per_iteration=1')
    return f'{folder}/out'


@pytest.mark.parametrize('flags, says, code', [
    (['--envs=MiniHack-Maze-v0'], "no level 'MiniHack-Maze-v0'; did you mean", 1),
    (['--des=nowhere.des'], 'nowhere.des: No such file or directory', 1),
    ([f'--envs={E.ID[0]},{E.ID[0]}'], f'env protocol: {E.ID[0]} is there twice', 1),
    (['--envs=MiniHack-KeyRoom-S5-v0'], 'MiniHack-KeyRoom-S5-v0 has other actions than', 1),
    (['--episodes=0'], 'env protocol: episodes = 0: want whole numbers from 1 on', 1),
    (['--protocol=video'], '--protocol=video: remdm is judged by env, loss', 2)])
def test_mistakes_in_judging(run_of_one_step, flags, says, code):
    _, err = script('eval.py', f'--ckpt={run_of_one_step}', *flags, code=code)
    assert one_line(err).startswith(says)


# ---- what is written to disk ----

def test_another_seed_is_another_set(tmp_path):
    for seed in (0, 1):
        script('data/minihack/prepare.py', '--oracle', '--episodes_per_env=6', '--workers=1', '--val=0',
               f'--seed={seed}', f'--out={tmp_path}/{seed}')
    a, b = (np.load(tmp_path / str(seed) / 'train' / 'glyphs.npy') for seed in (0, 1))
    first = {x.tobytes() for x in a}
    assert np.mean([x.tobytes() in first for x in b]) < 0.1          # small rooms may be alike


def test_collection_does_not_depend_on_the_workers(tmp_path):
    flags = ['--episodes_per_env=6', '--oracle=bfs5',
             '--envs=MiniHack-Room-Random-5x5-v0,MiniHack-MazeWalk-9x9-v0']
    script('data/minihack/prepare.py', *flags, '--workers=1', f'--out={tmp_path}/a')
    script('data/minihack/prepare.py', *flags, '--workers=2', f'--out={tmp_path}/b')
    a, b = (json.loads((tmp_path / name / 'meta.json').read_text()) for name in 'ab')
    assert a['files'] == b['files'] and a['facts']['oracle'] == 'bfs5' and a['padded'] == []
    assert a['counts']['train']['episodes'] + a['counts']['val']['episodes'] == 12
    task = np.load(tmp_path / 'a' / 'train' / 'task.npy')
    assert set(task.tolist()) == {0, 1} and a['facts']['action_dim'] == 1


@pytest.mark.parametrize('flags, says, code', [
    (['--episodes_per_env=0'], '--episodes_per_env=0: want 1 or more', 1),
    (['--episodes_per_env=2', '--oracle=dfs'], '--oracle=dfs: choose one of explore, bfs5', 1),
    (['--oracle', '--envs=MiniHack-Maze-v0'], "no level 'MiniHack-Maze-v0'", 1)])
def test_mistakes_in_collecting(tmp_path, flags, says, code):
    _, err = script('data/minihack/prepare.py', *flags, f'--out={tmp_path}/a', code=code)
    assert one_line(err).startswith(says) and not os.listdir(tmp_path)


def test_flags_of_the_other_data(tmp_path):
    _, err = script('data/minihack/prepare.py', '--episodes_per_env=2', '--moves=3', f'--out={tmp_path}/a',
                    code=2)
    assert '--moves makes no sense with --episodes_per_env' in err


def test_smoke_config(tmp_path):
    """config/minihack_smoke.py: every part of DAgger once, and a run that can be judged."""
    began = time.time()
    out, _ = script('train.py', 'config/minihack_smoke.py', f'--out_dir={tmp_path}/out')
    assert 'step 60/60' in out and out.count('| refresh |') == 3 and time.time() - began < 120
    result, _ = script('eval.py', f'--ckpt={tmp_path}/out', '--episodes=2', f'--envs={E.ID[0]}')
    assert json.loads(result)['envs'][E.ID[0]]['n'] == 2
