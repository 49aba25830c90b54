"""data/discs: who reads the sentence wins, who does not is at chance; what is held out is never shown."""
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import one_line, run, script

from data.discs import env as E
from data.discs import prepare as P
from data.loader import Store, read_meta
from protocols import env as protocol


@pytest.fixture(scope='module')
def episodes(): return [P.episode(i, seed=0) for i in range(600)]


@pytest.fixture(scope='module')
def boards():
    """The same boards as `episodes`: hand, places, colours."""
    return [E.board(np.random.default_rng([0, i])) for i in range(600)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('discs') / 'discs_pixels'
    script('data/discs/prepare.py', f'--out={root}', '--limit=80', '--workers=1')
    return root


# ---- the demonstrations ----

def test_the_demonstrator_wins(episodes, boards):
    """All of them, played again by the simulator; and states are where the actions lead."""
    env = E.make_env()
    for e, (hand, places, colours) in zip(episodes, boards):
        env.reset(seed=0)
        env.hand, env.places, env.colours, env.goal = hand, places, colours, places[0]
        for t in range(E.CAP):
            if t < len(e['state']):
                assert np.allclose(env.hand, e['state'][t], atol=1e-6)
            *_, over, info = env.advance(e['action'][min(t, len(e['action']) - 1)])
        assert over and info['won'] and len(e['action']) < E.CAP
        away = np.hypot(*(e['state'] - places[0]).T)
        assert (away[-P.STILL:] < 1e-5).all() and not e['action'][-P.STILL:].any()
        steps = np.hypot(*e['action'][:-P.STILL].T)
        assert np.allclose(steps[:-1], E.STEP) and 0 < steps[-1] < E.STEP + 1e-6
        line = np.hypot(*(e['state'][0] - places[0]).T)
        assert np.isclose(steps.sum(), line, atol=1e-5)                    # straight


def test_sentences(episodes, boards):
    """Twelve, one of each colour held out; a demonstration speaks of the disc that it goes to."""
    assert len(set(E.SENTENCES)) == 12 and E.CONSTANT not in E.HELD_OUT
    assert [E.SENTENCES[row] for row in E.HELD_OUT] == [
        'go to the red disc', 'move the hand to green', 'touch the blue one']
    told = Counter()
    for e, (_, _, colours) in zip(episodes, boards):
        row, = set(e['task'].tolist())
        assert [*E.COLOURS][colours[0]] in E.SENTENCES[row].split()
        told[row] += 1
    assert set(told) == set(range(12)) - set(E.HELD_OUT)
    assert min(told.values()) > 35                                         # of 600 / 9
    trained = {word for row in told for word in E.SENTENCES[row].split()}
    assert {word for sentence in E.SENTENCES for word in sentence.split()} == trained


def test_without_the_sentence_it_is_open(episodes, boards):
    """
    No rule of place or colour tells which disc it will be, nor does a linear view of the first picture. With
    the colour that is spoken of the same view finds it.
    """
    hands, places, colours = (np.array(x) for x in zip(*boards))
    n, chance = len(boards), 4 * 0.5 / np.sqrt(len(boards))                # four standard deviations
    near = np.hypot(*(places - hands[:, None]).transpose(2, 0, 1))         # (n, 2)
    for rule in near, places[..., 0], places[..., 1], colours:
        assert abs((rule[:, 0] < rule[:, 1]).mean() - 0.5) < chance
    left = places[:, 0, 0] < places[:, 1, 0]                               # is it the left disc?
    seen = np.array([np.append(e['image.top'][0].ravel() / 255, e['state'][0]) for e in episodes])
    spots = [E.spots(e['image.top'][0]) for e in episodes]
    heard = np.array([[spots[i][[*E.COLOURS][colours[i, 0]]][0] - 0.5] for i in range(n)])

    def found(x):
        """The share of 200 new boards on which ridge regression of 400 others finds the side."""
        x = np.append(x - x[:400].mean(0), np.ones((n, 1)), 1)
        a = x[:400]
        w = np.linalg.solve(a.T @ a + 3 * np.eye(a.shape[1]), a.T @ np.where(left[:400], 1.0, -1.0))
        return ((x[400:] @ w > 0) == left[400:]).mean()
    assert abs(found(seen) - 0.5) < 4 * 0.5 / np.sqrt(200)
    assert found(np.append(seen, 20 * heard, 1)) > 0.75


def test_pictures_show_discs_and_hand(episodes, boards):
    for e, (hand, places, colours) in zip(episodes[:100], boards):
        image = e['image.top']
        assert image.shape == (len(e['state']), 3, 16, 16) and image.dtype == np.uint8
        spots = E.spots(image[0])
        assert [*spots] == [name for i, name in enumerate(E.COLOURS) if i in colours]
        for colour, place in zip(colours, places):
            assert np.abs(spots[[*E.COLOURS][colour]] - place).max() < 0.1 / 16      # a tenth of a pixel
        white = (image[0].min(0) - 40.0).clip(0) * (np.ptp(image[0], axis=0) == 0)   # discs are not grey
        i = (np.arange(16) + 0.5) / 16
        assert np.allclose([white.sum(0) @ i / white.sum(), white.sum(1) @ i / white.sum()], hand,
                           atol=0.1 / 16)
        x, y = (e['state'][-1] * 16).astype(int)
        assert image[-1, :, y, x].min() > 150                                        # the hand is on top


def test_a_large_picture_is_the_small_one():
    hand, places, colours = E.board(np.random.default_rng(5))
    small, large = (E.picture(hand[None], places, colours, size)[0].astype(float) for size in (16, 256))
    assert np.abs(large.reshape(3, 16, 16, 16, 16).mean((2, 4)) - small).mean() < 2


# ---- the folder ----

def test_same_bytes_with_any_workers(tmp_path):
    metas = []
    for workers in 1, 2:
        run('data/discs/prepare.py', f'--out={tmp_path}/{workers}', '--limit=20', f'--workers={workers}')
        metas.append(json.loads((tmp_path / str(workers) / 'meta.json').read_text()))
    assert metas[0] == metas[1]
    assert metas[0]['command'] == 'python data/discs/prepare.py --seed=0 --val=0.1 --limit=20 --episodes=4000'
    first, again, other = (P.episode(3, seed)['state'][0] for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).all()               # another seed, another set


def test_the_folder_tells_its_sentences(folder):
    meta = read_meta(folder)
    assert meta['tasks'] == E.SENTENCES and meta['env'] == 'data.discs.env' and meta['padded'] == []
    facts = {'action_dim': 2, 'state_dim': 2, 'fps': 10, 'cameras': ['top'], 'height': 16, 'width': 16}
    assert meta['facts'] == facts
    shown = {int(row) for split in ('train', 'val') for row in np.load(folder / split / 'task.npy')}
    assert shown and not shown & set(meta['held_out']) and len(meta['held_out']) == 3


def test_windows(folder):
    """Chunks of eight, as a policy reads them: they lead on from the state, and repeat `stay` at the end."""
    windows = {'image.top': range(1), 'state': range(1), 'task': range(1), 'action': range(8)}
    store = Store(folder, 'train', windows, pad=True)
    batch = store.windows_at(np.arange(len(store)))
    assert len(store) == len(np.load(folder / 'train' / 'state.npy'))      # every frame begins a chunk
    assert batch['image.top'].shape[1:] == (1, 3, 16, 16) and batch['task'].shape[1:] == (1,)
    assert batch['image.top'].dtype == torch.uint8 and batch['task'].dtype == torch.int32
    ends = np.cumsum(np.diff(store.episodes)[:, 0]) - 1
    assert not batch['mask'][ends, 1:].any() and not batch['action'][ends].any()
    way, hands, checked = batch['action'].sum(1).numpy(), batch['state'][:, 0].numpy(), 0
    for i in range(0, len(store), 3):
        spots, words = E.spots(batch['image.top'][i, 0].numpy()), E.SENTENCES[batch['task'][i, 0]].split()
        left = [place for name, place in spots.items() if name in words][0] - hands[i]
        if E.length(left) > 0.3:                                           # the hand hides nothing there
            assert way[i] @ left > 0.999 * E.length(way[i]) * E.length(left)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize('flag, says', [
    ('--episodes=0', '--episodes=0: want 1 or more'), ('--workers=0', '--workers=0: want 1 or more'),
    ('--size=32', '--size: these data hold image.top, state, action, task, but no video'),
    ('--out=data/discs', '--out=data/discs: this folder holds code (prepare.py)')])
def test_bad_flags_are_one_line(tmp_path, flag, says):
    _, err = script('data/discs/prepare.py', f'--out={tmp_path}/d', flag, code=1)
    assert one_line(err).startswith(says) and not (tmp_path / 'd').exists()


# ---- the simulator ----

def test_a_seed_is_one_board_under_every_name():
    for seed in range(E.SEED, E.SEED + 40):
        seen = {}
        for name in E.NAMES:
            env = E.make_env(name)
            obs, info = env.reset(seed=seed)
            assert env.observation_space.contains(obs)
            assert info['sentence'] == E.SENTENCES[obs['task']] and not info['won']
            seen[name] = obs, env
        (first, env), mine = seen['told'], int(seen['told'][1].colours[0])
        for obs, other in seen.values():
            assert np.array_equal(obs['image.top'], first['image.top']) and obs['state'].tolist() == \
                first['state'].tolist() and np.array_equal(other.goal, env.places[0])
        about = {name: int(obs['task']) // 4 for name, (obs, _) in seen.items()}
        assert about['told'] == about['held_out'] == mine and about['other'] == env.colours[1] != mine
        assert seen['held_out'][0]['task'] in E.HELD_OUT and seen['constant'][0]['task'] == E.CONSTANT
        assert not {int(seen[name][0]['task']) for name in ('told', 'other', 'constant')} & set(E.HELD_OUT)


def test_a_sentence_is_a_name():
    """It is what is told, and the disc of its colour counts; where there is none nobody wins."""
    env, missing = E.make_env('touch the red one'), 0
    for seed in range(30):
        obs, info = env.reset(seed=seed)
        assert info['sentence'] == 'touch the red one'
        if 0 in env.colours:
            assert np.abs(E.spots(obs['image.top'])['red'] - env.goal).max() < 0.01
        else:
            missing += 1
            assert not any(E.played(lambda *_, place=place: place, env.name, seed) for place in env.places)
    assert 0 < missing < 30


def test_tests_are_no_demonstrations(episodes):
    """Not one board of the 192 first tests."""
    shown = {e['state'][0].tobytes() for e in episodes}
    env = E.make_env()
    tests = {env.reset(seed=E.seed_of('told', i, E.SEED))[0]['state'].tobytes() for i in range(192)}
    assert len(tests) == 192 and not tests & shown


def test_won_is_where_one_ends():
    env, passed = E.make_env(), 0
    env.reset(seed=E.SEED)
    for t in range(E.CAP):                                                 # there, and away again
        place = env.goal if t < 25 else env.places[1]
        reward, terminated, truncated, info = env.advance(place - env.hand)
        passed += info['won']
        assert not terminated and truncated == (t == E.CAP - 1) and not reward
    assert passed > 5 and not info['won']
    with pytest.raises(AssertionError, match='reset first'):
        env.advance([0, 0])


def test_moves():
    """Steps and looks are one thing; long moves are cut, edges hold."""
    boards = [E.make_env(), E.make_env()]
    for env in boards: env.reset(seed=7)
    rng = np.random.default_rng(0)
    for _ in range(20):
        move = rng.normal(0, 0.1, 2)
        before = boards[0].hand
        obs, *stepped = boards[0].step(move)
        assert [*boards[1].advance(move)] == stepped and np.array_equal(boards[0].hand, boards[1].hand)
        assert np.array_equal(obs['image.top'], boards[1].observation()['image.top'])
        assert np.hypot(*(boards[0].hand - before)) <= E.STEP + 1e-9
    assert np.allclose(E.moved(np.array([0.5, 0.5]), [0.3, 0.4]), [0.536, 0.548])
    assert np.allclose(E.moved(np.array([0.5, 0.5]), [0.01, 0]), [0.51, 0.5])
    assert E.moved(np.array([0.01, 0.99]), [-0.05, 0.03]).tolist() == [0, 1]
    picture = boards[0].render()
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8


def test_what_can_be_said_of_a_board():
    """Two sentences about each disc, one of them never trained, and the way of the hand over the picture."""
    for seed in range(50):
        env = E.make_env('told')
        env.reset(seed=seed)
        told = E.askable(seed)
        colours = [[*E.COLOURS][colour] for colour in env.colours]
        assert list(told.values()) == [False, True, False, True]
        assert all(colour in sentence.split() for sentence, colour in zip(told, np.repeat(colours, 2)))
        assert all((E.SENTENCES.index(sentence) in E.HELD_OUT) == new for sentence, new in told.items())
    places = E.way(env, np.array([[0.05, 0.0], [0.0, 0.9]]))
    first = np.clip(env.hand + [0.05, 0], 0, 1)
    assert np.allclose(places, [first * E.ZOOM, np.clip(first + [0, E.STEP], 0, 1) * E.ZOOM])


def test_rivals():
    """192 boards: reading wins all, chance half; obeying the wrong sentence loses all."""
    players, boards = E.rivals(), range(E.SEED, E.SEED + 192)
    wins = {(name, who): np.mean([play(name, seed) for seed in boards])
            for name in E.NAMES for who, play in players.items()}
    assert wins['told', 'listens'] == wins['held_out', 'listens'] == 1
    assert wins['other', 'listens'] == 0
    assert abs(wins['constant', 'listens'] - 0.5) < 4 * 0.5 / np.sqrt(192)
    for name in E.NAMES:
        assert abs(wins[name, 'random'] - 0.5) < 4 * 0.5 / np.sqrt(192) and wins[name, 'still'] == 0


@pytest.mark.parametrize('name, says', [
    ('tolt', "no environment 'tolt'; did you mean 'told'?"),
    ('touch the red', "no environment 'touch the red'; did you mean 'touch the red one'?"),
    ('zzz', "no environment 'zzz'; want one of told, held_out, other, constant, or a sentence")])
def test_unknown_names_are_one_line(name, says):
    with pytest.raises(SystemExit) as stop: E.make_env(name)
    assert str(stop.value).startswith(says) and '\n' not in str(stop.value)


# ---- the protocol ----

class Reader(torch.nn.Module):
    """Looks and reads anew for each chunk, in the observations that protocols/env.py gives to a policy."""
    SIMULATOR, n_action, cfg = 'discs', 8, None

    def __init__(self, deaf=False):
        super().__init__()
        self.deaf, self.anything = deaf, torch.nn.Parameter(torch.zeros(1))

    def act(self, obs, generators=None):
        moves = []
        for image, hand, task in zip(obs['image.top'], obs['state'], obs['task']):
            seen = {'image.top': image[-1].numpy(), 'task': 1 if self.deaf else int(task[-1])}
            left = E.called(seen, np.random.default_rng(0)) - hand[-1].numpy()
            chunk = []
            for _ in range(self.n_action):
                chunk.append(left * min(1, E.STEP / max(E.length(left), 1e-9)))
                left = left - chunk[-1]
            moves.append(chunk)
        return torch.tensor(np.array(moves), dtype=torch.float32)


@pytest.mark.parametrize('deaf', [False, True])
def test_the_protocol_plays_the_four_suites(monkeypatch, deaf):
    model = Reader(deaf)
    monkeypatch.setattr(protocol.common, 'file_of', lambda _: model)
    result = protocol.evaluate(model, None, protocol.Keys(episodes=40, timed=2))
    assert result['seed'] == E.SEED and {*result['envs']} == {*E.NAMES}
    wins = {name: result[f'win_{name}'] for name in E.NAMES}
    if deaf:
        assert len(set(wins.values())) == 1 and 0.25 < wins['told'] < 0.75  # the same boards: the same play
    else:
        assert (wins['told'], wins['held_out'], wins['other']) == (1, 1, 0) and wins['constant'] < 0.8
    row = result['envs']['told']
    assert row['cap'] == row['steps'] == 40 and row['rivals'].keys() == {'listens', 'random', 'still'}
    assert row['rivals']['listens'] == 1 and row['minus_best'] == pytest.approx(wins['told'] - 1)


@pytest.mark.parametrize('config', ['pi0', 'pi05', 'smolvla'])
def test_models_that_read_train_and_play(folder, tmp_path, config):
    """A step of each config on sentences of the data, then all four questions in the simulator."""
    out = tmp_path / 'out'
    script('train.py', f'config/discs_{config}_cpu.py', f'--data_dir={folder.parent}', f'--out_dir={out}',
           '--max_steps=1', '--batch_size=4', '--val_batches=1', '--device=cpu')
    result = json.loads(script('eval.py', f'--ckpt={out}', '--episodes=2', '--timed=1')[0])
    assert {*result['envs']} == {'told', 'held_out', 'other', 'constant'}
    assert result['calls_per_action'] == 10 / 8
    said, _ = script('sample.py', f'--ckpt={out}', '--length=9', f'--out={tmp_path}/a.gif')
    assert re.fullmatch(r'.*a\.gif: there at the end, after \d of 4 sentences\n', said)
