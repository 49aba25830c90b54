"""protocols/dynamics.py on a robot whose law is a matrix: known scores, every rival written as a loop."""
import json
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import one_line, script
from scipy.stats import spearmanr

import arx5_gpt
from data.loader import Store, read_meta
from data.writer import write
from metrics import bootstrap
from protocols import common, dynamics, plan, predictors

Q, FPS, HISTORY = [3, 1], 20, 8           # the commanded positions are entries 3 and 1, in this order
GROUPS = {'joint': {'dims': [3, 1], 'unit': 'rad'},
          'joint_velocity': {'dims': [0, 2], 'unit': 'rad/s', 'rate_of': 'joint'},
          'motor': {'dims': [4], 'unit': 'K'}}
UNITS = np.array([1, 1, 1, 1, 5.0])


def law(state, action):
    """
    A damped spring pulls each joint to its command; entry 4 warms with the first command. (..., 5), (..., 2).
    """
    new, q, v = np.empty_like(state), state[..., [3, 1]], state[..., [0, 2]]
    new[..., [3, 1]] = 0.9 * q + 0.04 * v + 0.1 * action
    new[..., [0, 2]] = 0.8 * v - 2 * q + 2 * action
    new[..., 4] = 0.95 * state[..., 4] + 0.5 * action[..., 0] + 0.1
    return new


def episode(i, seed=3, length=140, spoilt=()):
    """Commands wander; episodes in `spoilt` are a thousand times too large."""
    rng = np.random.default_rng([seed, i])
    action = 0.1 * rng.normal(size=(length, 2)).cumsum(0) + rng.normal(size=2) * 0.3
    state = np.zeros((length, 5))
    state[0] = rng.normal(size=5) * UNITS
    for t in range(length - 1): state[t + 1] = law(state[t], action[t])
    action[-1] = 0
    scale = 1000 if i in spoilt else 1
    return {'state': (state * scale).astype(np.float32), 'action': (action * scale).astype(np.float32)}


def make_robot(root, n=10, val='0.3', seed=1, make=episode, name='robot', **info):
    """
    root/robot, a dataset of n episodes; info replaces entries of meta.json, None deletes one. -> its folder
    """
    told = {'source': 'tests', 'revision': '1', 'fps': FPS, 'q_index': Q, 'groups': GROUPS} | info
    write(os.path.join(root, name), make, n, seed=seed, val=val, workers=1, command='tests',
          info={key: value for key, value in told.items() if value is not None})
    return os.path.join(root, name)


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return make_robot(tmp_path_factory.mktemp('robots'))


@pytest.fixture(scope='module')
def truth(folder): return Truth(folder)


class Truth:
    """
    A rollout that looks the future up in the val files, and checks that context and actions stand where they
    did.
    """

    def __init__(self, folder):
        self.state, self.action, self.spans = (np.load(f'{folder}/val/{key}.npy') for key in
                                               ('state', 'action', 'episodes'))
        self.row = {row.tobytes(): i for i, row in enumerate(self.state)}

    def rows(self, context):
        """Row of the last frame of each context."""
        return np.array([self.row[s[-1].numpy().tobytes()] for s in context['state']])

    def __call__(self, context, action):
        rows, H, K = self.rows(context), context['state'].shape[1], action.shape[2]
        assert action.shape[1] == 1 and context['action'].shape[1] == H - 1
        for i, r in enumerate(rows):
            assert np.array_equal(context['state'][i], self.state[r - H + 1:r + 1])
            assert np.array_equal(context['action'][i], self.action[r - H + 1:r])
            assert np.array_equal(action[i, 0], self.action[r:r + K])
        return torch.from_numpy(np.stack([self.state[r + 1:r + K + 1] for r in rows]))


def build(folder, rollout=None, **over):
    """A tiny model with the set's statistics; rollout(context, action) -> (B, K, S) [, disagreement (B, K)]
    replaces its own; model.calls keeps what it was asked."""
    torch.manual_seed(0)
    cfg = dict(state_dim=5, action_dim=2, q_index=tuple(Q), depth=1, heads=2, hidden=16, history=HISTORY,
               chunk=4)
    model, model_calls = arx5_gpt.Model(arx5_gpt.Config(**cfg | over)).eval(), []
    for key, stats in read_meta(folder)['stats'].items():
        for name in ('mean', 'std'): getattr(model, f'{key}_{name}').copy_(torch.tensor(stats[name]))
    if rollout:
        def call(context, action, chunk=0, **kw):
            model_calls.append((context, action, chunk))
            state = rollout(context, action)
            state, doubt = state if isinstance(state, tuple) else (state, state.new_zeros(state.shape[:2]))
            return {'state': state[:, None], 'disagreement': doubt[:, None]}
        model.rollout = call
    model.calls = model_calls
    return model


def judge(model, folder, rank=0, world=1, protocol=dynamics, **asked):
    """protocol.evaluate with these keys."""
    return protocol.evaluate(model, folder, protocol.Keys(**asked), rank, world)


def scores(table, word): return {key: value for key, value in table.items() if key.startswith(word)}


# ---- known scores ----

def test_a_perfect_model_scores_nothing(folder, truth):
    """Zero to the last bit, so every action met its frame; 33 windows in each of three episodes."""
    model = build(folder, truth)
    result = judge(model, folder)
    words = 'rmse', 'median', 'p95', 'one_step'
    errors = {key: value for key, value in result.items() if key.startswith(words)}
    assert len(errors) == 3 * 12 + 12 + 2 * 5 and not any(np.any(value) for value in errors.values())
    assert result['diverged'] == 0 and result['chunked']['distance_h100'] == 0
    assert (result['n_clips'], result['n_episodes'], result['n_context']) == (99, 3, HISTORY)
    assert result['units'] == {'joint': 'rad', 'joint_velocity': 'rad/s', 'motor': 'K'}
    assert {chunk for *_, chunk in model.calls} == {0, 1}    # exact, and for `chunked` the model's own


def test_least_squares_find_the_law(folder, truth):
    """
    One lag is the law itself; four lags have it too. Rounding of the files is all that is left, h = 100 too.
    """
    result = judge(build(folder, truth), folder)
    for n in (1, 4):
        table = result['baselines'][f'least_squares_{n}']
        assert max(scores(table, 'rmse').values()) < 2e-5 and max(scores(table, 'p95').values()) < 2e-5
    assert result['baselines']['least_squares_1']['one_step_sigma'] < 1e-12
    assert result['baselines']['persistence']['rmse_joint_h10'] > 0.05
    other = judge(build(folder, truth), folder, lags=(2,), every_frame=False)
    assert 'least_squares_2' in other['baselines'] and 'least_squares_1' not in other['baselines']


def test_a_model_that_repeats_is_persistence(folder):
    def repeat(context, action): return context['state'][:, -1:].repeat(1, action.shape[2], 1)
    result = judge(build(folder, repeat), folder)
    for key, value in result['baselines']['persistence'].items(): assert result[key] == value, key
    assert result['rmse_joint_h1'] < result['rmse_joint_h10'] and result['one_step_sigma'] > 0


def test_horizons_hit_their_frames(folder, truth):
    """An error of 1 mm (or mrad) more in each frame is n of them at h<n>."""
    def drift(context, action):
        return truth(context, action) + 0.001 * torch.arange(1, action.shape[2] + 1)[:, None]
    result = judge(build(folder, drift), folder)
    for h in (1, 10, 50, 100):
        for group in GROUPS:
            for word in 'rmse', 'median', 'p95':
                assert result[f'{word}_{group}_h{h}'] == pytest.approx(0.001 * h, rel=1e-3, abs=1e-6)
    for word in ('', '_motor', '_joint'):
        assert result['one_step_mse' + word] == pytest.approx(1e-6, rel=0.01)
    sigma = np.array(read_meta(folder)['stats']['state']['std'])
    assert result['one_step_sigma'] == pytest.approx((1e-6 / sigma ** 2).mean(), rel=0.01)


def test_windows_that_ran_away(folder, truth):
    """
    Off by more than half a radian at any time, in any joint; other units do not count; the median forgives
    it.
    """
    def run(*spoilt):
        def away(context, action):
            state = truth(context, action)
            for dim, size, step in spoilt if action.shape[2] > 1 else ():
                state[truth.rows(context) % 4 == 0, step, dim] += size
            return state
        return judge(build(folder, away), folder, lags=(), every_frame=False)
    store = Store(folder, 'val', {'state': range(HISTORY + 100)})
    share = ((store.locate(np.arange(99))[1] + HISTORY - 1) % 4 == 0).mean()
    assert 0 < share < 0.5
    for dim, step in ((1, 0), (3, 49), (3, 99)):
        far = run((dim, -0.51, step))
        assert far['diverged'] == pytest.approx(share)
    assert far['rmse_joint_h100'] == pytest.approx(0.51 * np.sqrt(share / 2), rel=1e-4)
    assert far['median_joint_h100'] == 0
    assert far['p95_joint_h100'] == pytest.approx(0.51 / np.sqrt(2), rel=1e-4)
    assert run((1, 0.49, 3), (3, -0.49, 3), (0, 9.0, 5), (2, 9.0, 0), (4, -9.0, 99))['diverged'] == 0


def test_disagreement_against_error(folder, truth):
    """Frame 50 of both, the error in std of the state; nothing to say about one member."""
    rng = np.random.default_rng(0)
    size = torch.from_numpy(rng.lognormal(size=(len(truth.state), 100, 5)).astype(np.float32))
    doubt = torch.from_numpy(rng.lognormal(size=(len(truth.state), 100)).astype(np.float32))

    def noisy(context, action):
        rows, K = truth.rows(context), action.shape[2]
        return truth(context, action) + size[rows, :K], doubt[rows, :K] + 0.1 * size[rows, :K, 4]
    model = build(folder, noisy)
    result = judge(model, folder, batch_size=10)
    rows = np.concatenate([truth.rows(c) for c, a, chunk in model.calls if a.shape[2] == 100 and chunk == 1])
    sigma = model.state_std.numpy()
    error = np.sqrt(((size[rows, 49].numpy() / sigma) ** 2).mean(-1))
    expected = spearmanr((doubt + 0.1 * size[:, :, 4])[rows, 49], error).statistic
    assert result['spearman_h50'] == pytest.approx(expected, abs=1e-5) and abs(expected) > 0.01
    assert 'spearman_h50' not in judge(build(folder, truth, members=1), folder, every_frame=False)


def test_intervals_are_over_episodes(folder, truth):
    """What bootstrap makes of the clips' squared errors, whole episodes at a time."""
    factor = torch.linspace(0.01, 1, len(truth.state))[:, None, None]
    model = build(folder, lambda context, action: truth(context, action) + factor[truth.rows(context)])
    result = judge(model, folder, every_frame=False)
    rows = np.concatenate([truth.rows(context) for context, _, chunk in model.calls if chunk == 1])
    episode = np.searchsorted(truth.spans[:, 1], rows, side='right')
    errors = factor[rows].numpy().ravel()
    own = bootstrap(errors, episode, lambda e: np.sqrt((e ** 2).mean()), n=1000, seed=42)
    assert result['rmse_motor_h50_ci'] == pytest.approx(own, rel=1e-4)
    assert own[0] < result['rmse_motor_h50'] < own[1]


# ---- the other predictors, by hand ----

def by_hand(name, state, past, action, t):
    """State t + 1 frames after the context. state (H, 5), past (H-1, 2), action (K, 2), all float64."""
    now = state[-1].copy()
    if name == 'persistence': return now
    if name == 'constant_velocity':
        q, v = now[[3, 1]] + now[[0, 2]] * (t + 1) / FPS, now[[0, 2]]
        now[4] += (state[-1, 4] - state[-2, 4]) * (t + 1)            # nothing measures its rate
    if name == 'hold': q, v = past[-1], np.zeros(2)
    if name == 'servo': q, v = action[t], (action[t] - (action[t - 1] if t else past[-1])) * FPS
    now[[3, 1]], now[[0, 2]] = q, v
    return now


@pytest.mark.parametrize('name', ('persistence', 'constant_velocity', 'hold', 'servo'))
def test_simple_predictors_by_hand(folder, truth, name):
    """Window by window, frame by frame: where each predictor is, what its errors come to, one step too."""
    model = build(folder, truth)
    result = judge(model, folder, n_clips=20)
    errors, one_step = [], []
    for context, action, chunk in model.calls:
        if chunk != 1: continue
        for row, state, past, acts in zip(truth.rows(context), context['state'].double().numpy(),
                                          context['action'].double().numpy(), action[:, 0].double().numpy()):
            guess = np.stack([by_hand(name, state, past, acts, t) for t in range(len(acts))])
            error = guess - truth.state[row + 1:row + 1 + len(acts)]
            (errors if len(acts) == 100 else one_step).append(error)
    table, errors, one_step = result['baselines'][name], np.stack(errors), np.stack(one_step)
    assert len(errors) == result['n_clips'] == 20 and len(one_step) == result['n_targets']
    for group, dims in ((key, g['dims']) for key, g in GROUPS.items()):
        own = np.sqrt((errors[:, :, dims] ** 2).mean(-1))
        for h in (1, 10, 50, 100):
            at_h = own[:, h - 1]
            assert table[f'rmse_{group}_h{h}'] == pytest.approx(np.sqrt((at_h ** 2).mean()), rel=1e-4)
            assert table[f'median_{group}_h{h}'] == pytest.approx(np.median(at_h), rel=1e-4)
            assert table[f'p95_{group}_h{h}'] == pytest.approx(np.quantile(at_h, 0.95), rel=1e-4)
        assert table[f'one_step_mse_{group}'] == pytest.approx((one_step[:, 0, dims] ** 2).mean(), rel=1e-4)
    sigma = model.state_std.numpy()
    assert table['one_step_sigma'] == pytest.approx(((one_step[:, 0] / sigma) ** 2).mean(), rel=1e-4)
    assert table['one_step_mse'] == pytest.approx((one_step ** 2).mean(), rel=1e-4)
    assert table['diverged'] == pytest.approx((np.abs(errors[:, :, [1, 3]]) > 0.5).any((1, 2)).mean())


def test_one_step_takes_every_frame_once(folder, truth):
    """
    From the third frame on, each frame of each val episode is a target once, with all the context it can
    have.
    """
    model = build(folder, truth)
    result = judge(model, folder, batch_size=7)
    seen = {}
    for context, *_ in (call for call in model.calls if call[1].shape[2] == 1):
        for row in truth.rows(context):
            assert row not in seen
            seen[row] = context['state'].shape[1]
    wanted = {a + n - 1: min(n, HISTORY) for a, b in truth.spans for n in range(2, b - a)}
    assert seen == wanted and result['n_targets'] == sum(b - a - 2 for a, b in truth.spans)


def test_one_step_on_the_clips_only(folder, truth):
    """every_frame=False: the first frame of the clips' own rollouts, no more calls."""
    def off(context, action): return truth(context, action) + 0.01
    model = build(folder, off)
    result = judge(model, folder, n_clips=11, every_frame=False)
    assert len(model.calls) == 2 and result['n_targets'] == 11
    assert result['one_step_mse'] == pytest.approx(1e-4, rel=1e-3)


def test_own_loss_is_the_val_loss_per_member(folder):
    """Mean over all val windows and both members, though the last batch is smaller."""
    model = build(folder, members=2)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.1)
    store = Store(folder, 'val', arx5_gpt.windows(model.cfg))
    with torch.no_grad(): whole = model(store.windows_at(np.arange(len(store))))['loss'].item() / 2
    result = judge(model, folder, lags=(), every_frame=False, batch_size=50)
    assert len(store) == 396 and result['own_loss'] == pytest.approx(whole, rel=1e-4)


# ---- a real model: seeds, batches, ranks, intervals, a picture ----

def test_result_is_json_and_blind_to_batches(folder):
    model = build(folder)
    results = [judge(model, folder, n_clips=23, batch_size=n, lags=(1,)) for n in (4, 64)]
    assert json.loads(json.dumps(results[0], allow_nan=False)) == results[0]

    def compare(a, b):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], dict):
                compare(a[key], b[key])
            else:
                near = b[key] if isinstance(b[key], str) else pytest.approx(b[key], rel=1e-3, abs=1e-5)
                assert a[key] == near, key
    compare(*results)
    names = scores(results[0], 'rmse')
    assert len(names) == 12 + 12 + 2 * 12                            # intervals; single members, and each
    for key in (key for key in names if key + '_ci' in names):
        low, high = names[key + '_ci']
        assert low <= names[key] <= high and low < high, key
    other = judge(model, folder, n_clips=23, lags=(1,), seed=1)
    assert other['rmse_joint_h10'] != results[0]['rmse_joint_h10'] and other['one_step_mse'] == pytest.approx(
        results[0]['one_step_mse'], rel=1e-3)                        # every frame: no clips to draw


def test_ranks_share_the_work(folder, monkeypatch):
    """Two ranks as two threads; both end up with what one alone finds, and no batch is rolled out twice."""
    model, parts, barrier, results = build(folder), {}, threading.Barrier(2, timeout=60), {}
    asked = dict(n_clips=23, batch_size=5, lags=(1,))
    alone = judge(model, folder, **asked)

    def gather(rows, world):
        rank, turn = int(threading.current_thread().name), len(parts) // 2
        barrier.wait()
        parts[rank, turn] = rows
        barrier.wait()
        return parts[0, turn] + parts[1, turn]
    monkeypatch.setattr(common, 'gather', gather)

    def work(rank): results[rank] = judge(model, folder, rank=rank, world=2, **asked)
    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [[row[0] for row in parts[rank, 0]] for rank in (0, 1)] == [[0, 10, 20], [5, 15]]
    counts = [parts[rank, 1][0][1].sum() for rank in (0, 1)]
    assert sum(counts) == alone['n_targets'] and min(counts) > 100
    assert results[0].keys() == alone.keys() and results[0] == results[1]
    for key, value in alone.items():
        if isinstance(value, float | int | list):
            assert results[0][key] == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_a_chunked_rollout_is_reported(folder):
    model = build(folder)
    result = judge(model, folder, n_clips=9, every_frame=False)
    chunked = result['chunked']
    assert chunked['chunk'] == 4 and 0 < chunked['distance_h100'] and 'rmse_joint_h100' in chunked
    # the cache starts from history - chunk + 1 = 5 frames of the 8
    assert chunked['rmse_joint_h1'] != result['rmse_joint_h1']


def test_data_without_groups_and_commands(tmp_path):
    """One group, `state`; nothing to obey; constant velocity by differences."""
    plain = make_robot(tmp_path, q_index=None, groups=None)
    result = judge(build(plain, Truth(plain), action_repr='absolute', q_index=()), plain)
    assert set(result['baselines']) == {'persistence', 'constant_velocity', 'least_squares_1',
                                        'least_squares_4'}
    assert result['rmse_state_h100'] == 0 and result['units'] == {'state': ''} and result['diverged'] is None
    rows = np.load(f'{plain}/val/state.npy')
    context = {'state': torch.from_numpy(rows[None, :4]), 'action': torch.zeros(1, 3, 2)}
    guess = predictors.simple(read_meta(plain))['constant_velocity'](context, torch.zeros(1, 1, 3, 2))[0, 2]
    assert np.allclose(guess, rows[3] + 3 * (rows[3] - rows[2]), atol=1e-5)


def test_the_script(folder, tmp_path):
    """
    train.py, then eval.py by hand: one JSON line, the picture beside it, keys of other protocols refused.
    """
    root, name = os.path.split(folder)
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    script('train.py', '--model=arx5_gpt', f'--dataset={name}', f'--data_dir={root}',
           f'--out_dir={tmp_path}/out', '--depth=1', '--heads=2', '--hidden=16', f'--history={HISTORY}',
           '--chunk=4', '--batch_size=8',
           '--max_steps=3', '--device=cpu', '--val_batches=1', '--eval_every=3',
           '--best_metric=eval/rmse_joint_h100')
    meta = json.load(open(tmp_path / 'out' / 'step_0000003' / 'meta.json'))
    text, _ = script('eval.py', f'--ckpt={tmp_path}/out', '--n_clips=6', f'--png={tmp_path}/arm.png',
                     '--device=cpu')
    line, = text.strip().splitlines()
    result = json.loads(line)
    assert result['protocol'] == 'dynamics' and result['n_clips'] == 6 and result['dataset'] == 'robot'
    assert meta['metrics']['eval/one_step_mse'] == pytest.approx(result['one_step_mse'], rel=1e-4)
    assert (tmp_path / 'arm.png').read_bytes().startswith(b'\x89PNG') and not list(tmp_path.glob('*.part*'))
    for flags, code, words in (
            (['--protocol=video'], 2, 'arx5_gpt is judged by dynamics, plan, loss'),
            (['--knots=3'], 2, "unknown key 'knots'"),
            (['--lags=16'], 1, 'lags = (16,): least squares over 16 frames, but n_context = 8'),
            ([f'--png={tmp_path}/arm.gif'], 1, 'want a name that ends in .png'),
            ([f'--png={tmp_path}/arm.png/x.png'], 1, 'cannot write there'),
            (['--protocol=plan'], 1, 'names no simulator (env) that has a Task; plan on arx5_default')):
        said, errors = script('eval.py', f'--ckpt={tmp_path}/out', '--device=cpu', *flags, code=code)
        assert words in one_line(errors) and said == ''


# ---- what the user can mend ----

@pytest.mark.parametrize('key', ('state', 'action'))
def test_rows_that_are_not_finite(tmp_path, key):
    """One line names file, row and episode."""
    folder = make_robot(tmp_path)
    model, path = build(folder), f'{folder}/val/{key}.npy'
    rows, spans = np.load(path), np.load(f'{folder}/val/episodes.npy')
    rows[spans[1, 0] + 60, 1] = np.nan
    np.save(path, rows)
    with pytest.raises(SystemExit) as stop: judge(model, folder)
    text = str(stop.value)
    assert f'{path}: a value soon after row' in text
    assert 'in episode 1, is not finite' in text and '\n' not in text
    row = int(text.split('row ')[1].split(',')[0])
    assert row <= spans[1, 0] + 60 < row + HISTORY + 100


@pytest.mark.parametrize('protocol', (dynamics, plan))
@pytest.mark.parametrize('over, words', [
    (dict(state_dim=6), 'has state_dim = 5, the model was trained with 6'),
    (dict(action_dim=3, q_index=(0, 1, 2)), 'has action_dim = 2, the model was trained with 3')])
def test_a_model_of_another_robot(folder, protocol, over, words):
    cfg = dict(state_dim=5, action_dim=2, q_index=(0, 1), history=HISTORY, depth=1, heads=1, hidden=8)
    model = arx5_gpt.Model(arx5_gpt.Config(**cfg | over))
    with pytest.raises(SystemExit, match=words): judge(model, folder, protocol=protocol)


def test_too_short_to_judge(folder, truth):
    with pytest.raises(SystemExit, match='a window spans 141 frames, the longest of 3 episodes has 140'):
        judge(build(folder, truth), folder, n_context=41)
    with pytest.raises(SystemExit, match='names no simulator'): judge(build(folder), folder, protocol=plan)


def test_train_rows_that_are_not_finite(tmp_path):
    """The least squares read the train split: as for val, one line should name the file."""
    folder = make_robot(tmp_path)
    model, path = build(folder), f'{folder}/train/state.npy'
    rows = np.load(path)
    rows[5] = np.nan
    np.save(path, rows)
    with pytest.raises(SystemExit, match='train/state.npy'): judge(model, folder, every_frame=False)


def test_a_model_of_one_frame(folder, truth):
    """history = 1 is a legal Config. It is shown four frames, which its rivals want and it may ignore."""
    result = judge(build(folder, truth, history=1, chunk=1), folder)
    assert result['n_context'] == 4 and result['rmse_joint_h100'] == 0
    with pytest.raises(SystemExit, match='velocities and past commands take two frames, set --n_context=2'):
        judge(build(folder, truth), folder, n_context=1)


def test_a_rate_whose_position_nobody_commands(tmp_path):
    """A robot with a passive joint: position and velocity measured, no action for it."""
    groups = {'joint': {'dims': [3, 1], 'unit': 'rad'}, 'motor': {'dims': [4], 'unit': 'K'},
              'rate': {'dims': [2], 'unit': 'K/s', 'rate_of': 'motor'}}
    passive = make_robot(tmp_path, groups=groups)
    result = judge(build(passive, Truth(passive)), passive, n_clips=4, lags=(), every_frame=False)
    still = scores(result['baselines']['persistence'], 'rmse_rate')
    assert len(still) == 4 and still['rmse_rate_h10'] > 0
    for name in ('servo', 'hold'):                                   # the rate of what nobody commands stays
        assert scores(result['baselines'][name], 'rmse_rate') == still


@pytest.mark.parametrize('asked, words', [
    (dict(n_clips=0), 'n_clips = 0: want whole numbers from 1 on'),
    (dict(lags=(4, 0)), r'lags = \(4, 0\): want whole numbers from 1 on'),
    (dict(ridge=('many',)), r"ridge = \('many',\): want whole numbers"),
    (dict(horizons=(0, 10)), r'horizons = \(0, 10\): want whole numbers from 1 on'),
    (dict(horizons=()), r'horizons = \(\): name at least one'),
    (dict(batch_size=0, seed=-1), 'batch_size = 0: want whole numbers from 1 on; seed = -1'),
    (dict(lags=(1, 9)), r'lags = \(1, 9\): least squares over 9 frames, but n_context = 8; set --n_conte'),
    (dict(ridge=(9,)), r'ridge = \(9,\): least squares over 9 frames'),
    (dict(n_context=2, lags=(1, 2)), 'products = True: least squares over 4 frames, but n_context = 2'),
    (dict(png='arm.jpg'), 'want a name that ends in .png')])
def test_keys_out_of_range(folder, truth, asked, words):
    """One line, before the work."""
    model = build(folder, truth)
    with pytest.raises(SystemExit, match=words) as stop: judge(model, folder, **asked)
    assert '\n' not in str(stop.value) and not model.calls


def test_horizons_are_a_key(folder, truth):
    """All that is reported follows them, and so do the frames that a clip needs."""
    asked = dict(horizons=(3, 7), every_frame=False, lags=(1,), products=False)
    model = build(folder, truth)
    result = judge(model, folder, **asked)
    found = {key.split('_h')[-1].split('_')[0] for key in result if '_h' in key}
    assert found == {'3', '7'} and 'spearman_h7' in result and result['chunked']['distance_h7'] == 0
    assert result['horizons'] == [3, 7] and {action.shape[2] for _, action, _ in model.calls} == {7}
    keys = dynamics.Keys(**asked)
    assert dynamics.windows(model.cfg, keys, arx5_gpt) == {'state': range(15), 'action': range(14)}
    with pytest.raises(SystemExit, match=r'use fewer frames \(horizons, n_context\)'):
        judge(model, folder, horizons=(200,))


# ---- a model with nothing but a rollout ----

class Plain(torch.nn.Module):
    """No history, members, chunk, spread or statistics. It looks at one frame."""

    def __init__(self):
        super().__init__()
        self.cfg, self.weight, self.seen = SimpleNamespace(), torch.nn.Parameter(torch.zeros(1)), []

    def rollout(self, context, action):
        self.seen.append(context['state'].shape[1])
        return {'state': context['state'][:, None, -1:].repeat(1, 1, action.shape[2], 1)}

    def forward(self, batch): return {'loss': batch['state'].square().mean()}


def test_a_plain_model(folder, monkeypatch):
    """It is judged by the same numbers, less those of ensembles and caches; sigma comes from meta.json."""
    monkeypatch.setitem(sys.modules, 'plain',
                        SimpleNamespace(windows=lambda cfg: {'state': range(2), 'action': range(1)}))
    monkeypatch.setattr(Plain, '__module__', 'plain')
    model = Plain()
    result = judge(model, folder)
    assert result['n_context'] == 4 and set(model.seen) == {2, 3, 4}
    for key, value in result['baselines']['persistence'].items():
        assert result[key] == pytest.approx(value, rel=1e-6), key
    absent = [key for key in result if 'spearman' in key or 'single' in key or key == 'chunked']
    assert not absent and result['own_loss'] > 0
    dynamics.show(result)


def test_the_table_for_people(folder, capsys):
    """RMSE and median of the first group for everybody, and how sure we are; a None is a dash."""
    result = judge(build(folder), folder, n_clips=9, every_frame=False)
    result['baselines']['servo']['rmse_joint_h10'] = None
    dynamics.show(result)
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said[2:11]] == ['model', 'model,', *result['baselines']]
    assert f'{result["rmse_joint_h100"]:.4g} ({result["median_joint_h100"]:.2g})' in said[2]
    servo = next(line for line in said if line.strip().startswith('servo'))
    assert ' - (' in servo and len(said) == 16 and result['best_joint_h100'] in said[-1]
