"""protocols/actions.py, recorded.py: a policy beside recordings; every number again by a loop over frames."""
import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import one_line, script
from test_eval_rivals import normal_equations

import act
import contract
import diffusion_policy
import imf_policy
import pi0
import remdm
from data.loader import read_meta
from data.writer import write
from protocols import actions, common, recorded

Q, FPS = [2, 0], 10                       # action 0 commands entry 2 of the state, action 1 entry 0
GROUPS = {'hand': {'dims': [0, 1], 'unit': '1'}, 'arm': {'dims': [2], 'unit': 'rad'}}


def episode(i, follow=0.0):
    """Actions wander, the commanded states lag behind; follow = 1: action and state are one."""
    rng = np.random.default_rng([7, i])
    length = 17 + 3 * (i % 4)
    action = rng.normal(size=2) + 0.2 * rng.normal(size=(length, 2)).cumsum(0)
    state = rng.normal(size=(length, 3))
    state[1:, Q] = action[:-1] + 0.1 * rng.normal(size=(length - 1, 2))
    state[:, Q] = follow * action + (1 - follow) * state[:, Q]
    return {'state': state.astype(np.float32), 'action': action.astype(np.float32)}


TASKS = ['lift', 'push', 'hold', 'fly']              # nobody flies


def told(i):
    """An episode under a sentence that says where it goes; its pictures tell episode and frame."""
    e = episode(i)
    T, task = len(e['action']), i % 3
    code = np.stack([np.full(T, i), np.arange(T), np.zeros(T)], 1).astype(np.uint8)
    e['image.top'] = np.tile(code[:, :, None, None], (1, 1, 8, 8))
    e['image.hand'] = 255 - e['image.top']
    return e | {'task': np.full(T, task, np.int32), 'action': e['action'] + np.float32(5 * task)}


def make(root, name, episode=episode, n=10, val='6-9', padded=(), **info):
    told = {'source': 'tests', 'revision': '1', 'fps': FPS, 'q_index': Q, 'groups': GROUPS,
            'units': {'action': 'm'}, 'action_names': ['lift', 'grip']} | info
    write(root / name, episode, n, seed=1, val=val, workers=1, command='tests', padded=padded,
          info={key: value for key, value in told.items() if value is not None})
    return str(root / name)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """data_dir: `clips_walk` and, with sentences, `clips_told`; six episodes to train on, four to judge."""
    root = tmp_path_factory.mktemp('walks')
    make(root, 'clips_walk')
    make(root, 'clips_told', told, tasks=TASKS,
         facts={'cameras': ['top', 'hand'], 'height': 8, 'width': 8})
    return root


@pytest.fixture
def walk(root): return str(root / 'clips_walk')


def arrays(folder, split='val'):
    """[(state, action)] of each episode."""
    state, action, spans = (np.load(f'{folder}/{split}/{key}.npy') for key in ('state', 'action', 'episodes'))
    return [(state[a:b], action[a:b].astype(float)) for a, b in spans]


@pytest.fixture
def policy(monkeypatch):
    """policy(act, n, **attributes of its file) -> a model whose act(obs) is this; .asked keeps obs."""
    def make(act, n=4, seen=range(1), **file):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.cfg, self.asked = SimpleNamespace(n_action=n), []
                self.weight = torch.nn.Parameter(torch.zeros(1))

            def act(self, obs):
                self.asked.append(obs)
                return act(obs)
        Model.__module__ = 'stub'
        windows = {'state': seen, 'action': range(n + 3)}        # it was trained on longer chunks
        defaults = dict(__name__='stub', PAD=True, EVAL=('actions',), windows=lambda cfg: windows)
        monkeypatch.setitem(sys.modules, 'stub', SimpleNamespace(**defaults | file))
        return Model()
    return make


class Oracle:
    """act(obs): the recorded actions from the frame of the last state on, and a constant; ends repeat."""

    def __init__(self, folder, n=4, plus=(0.0, 0.0)):
        self.places = {row.tobytes(): (action, t) for state, action in arrays(folder)
                       for t, row in enumerate(state)}
        self.n, self.plus, self.looks = n, np.array(plus), []

    def __call__(self, obs):
        chunks = []
        for row in obs['state'][:, -1].numpy():
            action, t = self.places[row.tobytes()]
            self.looks.append((len(action), t))
            chunks.append(action[np.minimum(np.arange(t, t + self.n), len(action) - 1)] + self.plus)
        return torch.tensor(np.stack(chunks), dtype=torch.float32)


def judge(model, folder, rank=0, world=1, **asked):
    return actions.evaluate(model, folder, actions.Keys(**asked), rank, world)


def looped(folder, guess, n, stride=10, drop=0):
    """
    The definitions, a frame at a time. guess(state, action, t, k): what is wanted at frame t for k frames on.
    -> l1_sigma, rmse of action 0 and of action 1, how many there are, l1 per k
    """
    sigma = np.array(read_meta(folder)['stats']['action']['std'])
    passes, errors, at = max(1, round(n / stride)), [], []
    for state, action in arrays(folder):
        for offset in [i * n // passes for i in range(passes)]:
            for t in range(offset, len(action) - drop, n):
                for k in range(min(n, len(action) - t)):
                    errors.append(guess(state, action, t, k) - action[t + k])
                    at.append(k)
    errors, at = np.array(errors), np.array(at)
    l1 = np.abs(errors / sigma).mean(1)
    return l1.mean(), *np.sqrt((errors ** 2).mean(0)), len(errors), [l1[at == k].mean() for k in range(n)]


# ---- known errors ----

@pytest.mark.parametrize('n, stride', [(4, 10), (4, 2), (5, 1), (30, 10), (1, 10)])
def test_a_policy_that_knows(walk, policy, n, stride):
    """No error; it looks where its answers end, at every offset, and sees no action."""
    oracle = Oracle(walk, n)
    model = policy(oracle, n)
    result = judge(model, walk, stride=stride, at_once=3)
    assert result['l1_sigma'] == pytest.approx(0, abs=1e-7) == result['rmse_arm'] == result['rmse_hand']
    assert all(set(obs) == {'state'} for obs in model.asked)
    passes = max(1, round(n / stride))
    lengths = [len(action) for _, action in arrays(walk)]
    looks = [(length, t) for length in lengths for i in range(passes)
             for t in range(i * n // passes, length, n)]
    assert sorted(oracle.looks) == sorted(looks)
    assert result['n_targets'] == sum(length - i * n // passes for length in lengths for i in range(passes)
                                      if length > i * n // passes)
    assert (result['n_episodes'], result['n_action']) == (4, n)
    assert result['units'] == {'hand': '1', 'arm': 'rad'}


def test_a_policy_that_is_off_by_a_constant(walk, policy):
    """0.3 rad of the arm and 0.4 of the hand: at every frame, so the interval is a point."""
    result = judge(policy(Oracle(walk, plus=(0.3, -0.4))), walk)
    s0, s1 = read_meta(walk)['stats']['action']['std']
    want = {'l1_sigma': (0.3 / s0 + 0.4 / s1) / 2, 'rmse_arm': 0.3, 'rmse_hand': 0.4}
    for name, value in want.items():
        assert result[name] == pytest.approx(value, rel=1e-5)
        assert result[f'{name}_ci'] == pytest.approx([value] * 2, rel=1e-5)
        best = result['baselines'][result[f'best_{name}']][name]
        assert result[f'minus_best_{name}'] == pytest.approx(value - best, rel=1e-5)
    assert result['curve']['model'] == pytest.approx([want['l1_sigma']] * 4, rel=1e-5)


@pytest.mark.parametrize('n, drop', [(4, 0), (4, 5), (22, 0)])
def test_rivals_by_a_loop(walk, policy, n, drop):
    """Ends of episodes and unfinished chunks included; n = 22 is longer than some episodes, in two passes."""
    model = policy(Oracle(walk, n), n)
    model.cfg.drop_n_last_frames = drop
    result, mean = judge(model, walk), np.array(read_meta(walk)['stats']['action']['mean'])

    def hold(state, action, t, k): return state[t, Q]
    def last(state, action, t, k): return action[t - 1] if t else state[t, Q]
    for who, guess in ('hold', hold), ('mean', lambda *_: mean), ('last_action', last):
        l1, arm, hand, count, curve = looped(walk, guess, n, drop=drop)
        row = result['baselines'][who]
        assert [row['l1_sigma'], row['rmse_arm'], row['rmse_hand']] == pytest.approx([l1, arm, hand])
        assert result['curve'][who] == pytest.approx(curve) and result['n_targets'] == count
        low, high = row['l1_sigma_ci']
        assert low < l1 < high


def test_hold_is_right_where_action_and_state_are_one(tmp_path, policy):
    """At n = 1; and the best rival of such data is not last_action, whatever that knows."""
    folder = make(tmp_path, 'clips_one', partial(episode, follow=1.0))
    result = judge(policy(Oracle(folder, 1), 1), folder)
    assert result['baselines']['hold']['l1_sigma'] == result['baselines']['hold']['rmse_arm'] == 0
    assert result['best_rmse_arm'] == 'hold' and result['baselines']['last_action']['l1_sigma'] > 0.01
    slow = make(tmp_path, 'clips_slow', lagging)
    result = judge(policy(Oracle(slow, 1), 1), slow)
    rows = result['baselines']
    assert rows['last_action']['l1_sigma'] < min(rows[who]['l1_sigma'] for who in ('hold', 'mean', 'ridge'))
    assert result['best_l1_sigma'] != 'last_action'


def lagging(i):
    """Smooth actions that the state does not tell."""
    e = episode(i)
    t = np.arange(len(e['action']))[:, None]
    e['action'] = np.sin(0.05 * t + [i, 2 * i]).astype(np.float32)
    return e


def test_ridge_by_a_loop(walk, policy):
    """One fit per action of the chunk, on rows where that action is real; the fifth episode chooses."""
    result, n = judge(policy(Oracle(walk, 4), 4, seen=range(-1, 1)), walk), 4
    train, fits = arrays(walk, 'train'), []

    def rows(episodes, k):
        pairs = [(np.concatenate([state[max(t - 1, 0)], state[t]]), action[t + k] - state[t, Q])
                 for state, action in episodes for t in range(len(action) - k)]
        return [np.array(part, float) for part in zip(*pairs)]
    for k in range(n):
        x, y = rows(train[4:5], k)
        judged = [((normal_equations(*rows(train[:4] + train[5:], k), penalty)(x) - y) ** 2).mean(0)
                  for penalty in np.logspace(-8, 1, 19)]
        best = np.argmin([(errors / y.var(0)).mean() for errors in judged])
        fits.append(normal_equations(*rows(train, k), np.logspace(-8, 1, 19)[best]))

    def ridge(state, action, t, k):
        return fits[k](np.concatenate([state[max(t - 1, 0)], state[t]]).astype(float)) + state[t, Q]
    l1, arm, hand, *_ = looped(walk, ridge, n)
    row = result['baselines']['ridge']
    assert [row['l1_sigma'], row['rmse_arm'], row['rmse_hand']] == pytest.approx([l1, arm, hand], rel=1e-5)


def test_a_padded_action_is_nobody_s_error(tmp_path, policy):
    """The last row of an episode is no data here, and zero; nobody looks there, nobody is charged for it."""
    def ended(i):
        e = episode(i)
        e['action'][-1] = 0
        return e
    folder, oracle = make(tmp_path, 'clips_padded', ended, padded=('action',)), None
    oracle = Oracle(folder, 4)
    result = judge(policy(oracle, 4), folder)
    lengths = [len(action) for _, action in arrays(folder)]
    assert result['n_targets'] == sum(lengths) - 4 and max(t - n for n, t in oracle.looks) < -1
    assert result['rmse_arm'] < 1e-6


# ---- what data may lack ----

def test_without_q_index(tmp_path, policy):
    """Nobody can hold; one group, with the unit of the action; last_action starts with the mean."""
    folder = make(tmp_path, 'clips_free', q_index=None)
    result, mean = judge(policy(Oracle(folder)), folder), read_meta(folder)['stats']['action']['mean']
    assert result['units'] == {'action': 'm'} and set(result['baselines']) == {'mean', 'ridge', 'last_action'}
    l1, *_ = looped(folder, lambda state, action, t, k: action[t - 1] if t else np.array(mean), 4)
    assert result['baselines']['last_action']['l1_sigma'] == pytest.approx(l1)
    assert result['baselines']['ridge']['l1_sigma'] < result['baselines']['mean']['l1_sigma']


def test_groups():
    """Those that actions command; the rest; one is as good as none."""
    def told(groups, q=(2, 0, 1)): return {'facts': {'action_dim': 3, 'q_index': q}, 'groups': groups}
    hand, arm = {'dims': [0], 'unit': '1'}, {'dims': [2, 5], 'unit': 'rad'}
    assert actions.groups_of(told({'hand': hand, 'arm': arm, 'speed': {'dims': [4], 'unit': 'm/s'}})) == {
        'hand': {'dims': [1], 'unit': '1'}, 'arm': {'dims': [0], 'unit': 'rad'},
        'other': {'dims': [2], 'unit': ''}}
    assert actions.groups_of(told({'arm': arm})) == {'arm': {'dims': [0], 'unit': 'rad'},
                                                     'other': {'dims': [1, 2], 'unit': ''}}
    every = {'dims': [0, 1, 2], 'unit': 'rad'}
    for one, unit in (told({'all': every}), 'rad'), (told(None), ''), (told({'all': every}, None), ''):
        assert actions.groups_of(one) == {'action': every | {'unit': unit}}


def test_few_episodes_have_no_ridge(tmp_path, policy):
    folder = make(tmp_path, 'clips_few', n=6, val='4-5')
    assert set(judge(policy(Oracle(folder)), folder)['baselines']) == {'hold', 'mean', 'last_action'}


def test_an_entry_that_never_changes_is_left_out(tmp_path, policy):
    """Its std is 1 in meta.json, or rounding; in std of the action either would count for nothing, or all."""
    def stiff(i, noise):
        e = episode(i)
        e['action'][:, 1] = 3 + noise * (np.arange(len(e['action'])) % 2)
        return e
    for name, noise in ('clips_fixed', 0), ('clips_rounded', 5e-7):
        folder = make(tmp_path, name, partial(stiff, noise=noise))
        s0 = read_meta(folder)['stats']['action']['std'][0]
        result = judge(policy(Oracle(folder, plus=(0.3, 0.4))), folder)
        assert result['l1_sigma'] == pytest.approx(0.3 / s0, rel=1e-4)
        assert result['rmse_hand'] == pytest.approx(0.4, rel=1e-4)


# ---- real policies ----

ACT = dict(obs='state', chunk_size=6, dim_model=16, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
           use_vae=False, action_dim=2, state_dim=3)


def real(file, folder, **over):
    """A policy with random weights and the statistics of the data."""
    torch.manual_seed(0)
    model = file.Model(file.Config(**over)).eval()
    contract.fill_statistics(model, file, file.windows(model.cfg), read_meta(folder), folder)
    return model


def test_the_ensemble_is_asked_in_order(walk):
    """At every frame, each episode with a past of its own, as one would play it alone."""
    model = real(act, walk, **ACT, n_action_steps=1, temporal_ensemble=True, temporal_ensemble_coeff=0.1)
    result = judge(model, walk, at_once=3)

    def guess(state, action, t, k):
        if t == 0: model.reset()
        return model.act({'state': torch.tensor(state[t])[None, None]})[0, 0].numpy()
    l1, arm, hand, count, _ = looped(walk, guess, 1)
    assert result['n_targets'] == count
    found = [result['l1_sigma'], result['rmse_arm'], result['rmse_hand']]
    assert found == pytest.approx([l1, arm, hand], rel=1e-4)
    plain = real(act, walk, **ACT, n_action_steps=1)
    assert abs(judge(plain, walk)['l1_sigma'] - l1) > 1e-4


DP = dict(obs='state', down_dims=(8, 16), n_groups=2, diffusion_step_embed_dim=8, num_train_timesteps=4,
          horizon=8, n_action_steps=3, action_dim=2, state_dim=3)


def test_noise_comes_from_the_seed(walk):
    """And from episode and offset: whoever else is in the batch. The global noise stays as it was."""
    model = real(diffusion_policy, walk, **DP)
    before = torch.get_rng_state()
    one, again, other = (judge(model, walk, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == again and one['l1_sigma'] != other['l1_sigma']
    assert one['baselines'] != other['baselines']            # the draws of the bootstrap alone
    assert judge(model, walk, at_once=1, seed=1)['l1_sigma'] == pytest.approx(one['l1_sigma'], rel=1e-5)


PI0 = pi0.SMALL | dict(cameras=('top', 'hand'), height=8, width=8, state_dim=3, n_action_steps=3,
                       tasks=tuple(TASKS))


@pytest.mark.parametrize('file, over, name', [(act, ACT | dict(n_action_steps=6), 'clips_walk'),
                                              (diffusion_policy, DP, 'clips_walk'), (pi0, PI0, 'clips_told')])
def test_ranks_share_the_work_and_change_nothing(root, monkeypatch, file, over, name):
    """Two ranks, called one after the other; what the first gathers is what one alone finds."""
    walk = str(root / name)
    model, asked, parts = real(file, walk, **over), dict(at_once=2, stride=1), []
    alone = judge(model, walk, **asked)

    def gather(rows, world):
        parts.append(rows)
        if len(parts) == 1: raise InterruptedError           # a real rank 1 would wait here for rank 0
        return sum(parts, [])
    monkeypatch.setattr(common, 'gather', gather)
    with pytest.raises(InterruptedError): judge(model, walk, rank=1, world=2, **asked)
    assert judge(model, walk, rank=0, world=2, **asked) == alone
    one, zero = ([row[0] for row in rows] for rows in parts)
    passes = 4 * model.cfg.n_action
    assert zero == [*range(0, passes, 4)] and one == [*range(2, passes, 4)]      # none did it twice


# ---- misled ----

def watched(act, cameras=('top',), back=0):
    """What a file says whose policy sees pictures and reads; act(obs) is then asked."""
    keys = ['state', 'task', *(f'image.{camera}' for camera in cameras)]
    windows = {key: range(-back, 1) if key.startswith('image') else range(1) for key in keys}
    return dict(act=act, windows=lambda cfg: windows | {'action': range(4)})


def frame(obs, key='image.top'): return obs[key][..., :2, 0, 0].tolist()


def test_who_listens_is_misled(root, policy):
    """The same wrong sentence throughout an episode, one that was trained; the cost by a loop, paired."""
    folder, asked = str(root / 'clips_told'), {}

    def listens(obs):
        for row, state in zip(obs['task'][:, 0].tolist(), obs['state'][:, 0].numpy()):
            asked.setdefault(state.tobytes(), []).append(row)
        return 5.0 * obs['task'][..., None].expand(-1, 4, 2)
    model = policy(**watched(listens))
    model.cfg.tasks = TASKS
    result, shown, costs = judge(model, folder), [], []
    sigma = np.array(read_meta(folder)['stats']['action']['std'])
    for i, (state, action) in zip(range(6, 10), arrays(folder)):
        looks = [asked[state[t].tobytes()] for t in range(0, len(state), 4)]
        own, wrong, blind = np.array(looks).T
        assert {*own} == {*blind} == {i % 3} and len({*wrong}) == 1 and wrong[0] not in (i % 3, 3)
        shown.append(wrong[0])
        costs.append([np.abs((5 * x - action) / sigma).mean(1) for x in (i % 3, wrong[0])])
    right, wrong = (np.concatenate(part) for part in zip(*costs))
    row = result['misled']['wrong_sentence']
    assert [result['l1_sigma'], row['l1_sigma']] == pytest.approx([right.mean(), wrong.mean()])
    cost, (low, high) = (result[f'wrong_sentence_minus_model_l1_sigma{end}'] for end in ('', '_ci'))
    assert cost == pytest.approx(wrong.mean() - right.mean()) and 0 < low < cost < high
    assert row['rmse_arm'] > 3 * result['rmse_arm'] and row.keys() == result['baselines']['mean'].keys()
    assert result['misled']['blind'] == {key: result[key] for key in row}
    assert result['best_l1_sigma'] in ('hold', 'mean', 'ridge')          # who is misled is no rival
    assert len({judge(model, folder, seed=seed)['misled']['wrong_sentence']['l1_sigma']
                for seed in range(6)}) > 1 and len(set(shown)) > 1


def test_who_looks_is_misled(root, policy):
    """Frames of the train split, one moment for all cameras and their pasts, another for each look."""
    folder, seen = str(root / 'clips_told'), []
    oracle = Oracle(folder)

    def looks(obs):
        top, hand = frame(obs), frame(obs, 'image.hand')
        seen.extend(zip(top, hand, obs['task'][:, 0].tolist()))
        times = [oracle.places[row.tobytes()][1] for row in obs['state'][:, 0].numpy()]
        off = [t != now[-1][1] for t, now in zip(times, top)]
        return oracle(obs) + torch.tensor(off)[:, None, None]
    model = policy(**watched(looks, ('top', 'hand'), back=1))
    model.cfg.tasks = TASKS
    result = judge(model, folder)
    assert result['l1_sigma'] == pytest.approx(0, abs=1e-6) == result['misled']['wrong_sentence']['l1_sigma']
    assert result['misled']['wrong_sentence'] == {key: result[key] for key in result['misled']['blind']}
    assert result['wrong_sentence_minus_model_l1_sigma_ci'] == [0, 0]
    assert result['blind_minus_model_l1_sigma_ci'][0] > 0.02
    trained = [(top, hand, task) for top, hand, task in seen if top[0][0] < 6]
    assert len(trained) == len(seen) / 3 and len({str(top) for top, *_ in trained}) > 10
    for (before, now), hand, _ in seen:
        assert before[0] == now[0] and before[1] == max(now[1] - 1, 0)
        assert hand == [[255 - x for x in row] for row in (before, now)]
    assert {task for _, _, task in trained} == {0, 1, 2}                 # the sentence is still its own
    again = [*seen]
    seen.clear()
    assert judge(model, folder, at_once=1) == result and sorted(map(str, seen)) == sorted(map(str, again))


def test_the_noise_is_the_same_for_who_is_misled(root):
    """pi0 with one sentence under all numbers, and a projector that lets nothing through: to the bit."""
    folder = str(root / 'clips_told')
    model = real(pi0, folder, **PI0)
    result = judge(model, folder)
    assert all(abs(result[f'{who}_minus_model_l1_sigma']) > 1e-4 for who in ('wrong_sentence', 'blind'))
    model.tell(('lift',) * 4)
    torch.nn.init.zeros_(model.projector.weight)
    result = judge(model, folder)
    for who, row in result['misled'].items():
        assert row == {key: result[key] for key in row} and result['curve'][who] == result['curve']['model']
        assert result[f'{who}_minus_model_l1_sigma'] == 0


def test_who_cannot_be_misled(root, walk, policy, tmp_path):
    """Who neither reads nor sees; one sentence; not asked for: no rows, and nothing is asked twice."""
    def calm(obs): return torch.zeros(len(obs['state']), 4, 2)
    model, folder = policy(**watched(calm)), str(root / 'clips_told')
    model.cfg.tasks = TASKS
    assert not {'misled', 'blind_minus_model_l1_sigma'} & judge(model, folder, misled=False).keys()
    once = len(model.asked)
    judge(model, folder)
    assert len(model.asked) == 4 * once
    one = make(tmp_path, 'clips_one', lambda i: told(3 * i), tasks=TASKS)
    assert judge(model, one)['misled'].keys() == {'blind'}
    model.cfg.tasks = TASKS[::-1]
    with pytest.raises(SystemExit) as stop: judge(model, folder)
    assert 'has other sentences than the training, or in another order' in one_line(stop.value.code)
    assert 'misled' not in judge(policy(Oracle(walk)), walk)


def test_episodes_are_drawn(walk, policy):
    two, again = (judge(policy(Oracle(walk)), walk, episodes=2, seed=3) for _ in range(2))
    assert two['n_episodes'] == 2 and two == again
    drawn = {judge(policy(Oracle(walk)), walk, episodes=1, seed=seed)['n_targets'] for seed in range(8)}
    assert 1 < len(drawn) and drawn <= {len(action) for _, action in arrays(walk)}
    one = judge(policy(Oracle(walk, 22), 22), walk, episodes=1)
    assert one['n_targets'] > max(drawn)                     # two passes over it
    assert one['baselines']['mean']['l1_sigma_ci'] == [None, None]       # one episode has no spread


def test_a_policy_forgets_before_each_batch(walk, policy):
    """One that queues what it wanted would otherwise begin with another episode's."""
    model, resets = policy(Oracle(walk)), []
    model.reset = lambda: resets.append(len(model.asked))
    judge(model, walk, at_once=1)
    looks = [-(-len(action) // 4) for _, action in arrays(walk)]
    assert resets == [0, *np.cumsum(looks)[:-1]]


# ---- who is judged how ----

def test_the_data_choose_the_protocol(walk, tmp_path):
    """env where the data or the model's file name a simulator, else actions; one place decides."""
    simulated = make(tmp_path, 'clips_simulated', env='data.pusht.env')
    for file in (act, diffusion_policy):
        assert contract.protocol_for(file, walk) == 'actions'
        assert contract.protocol_for(file, simulated) == 'env'
        for nothing in str(tmp_path / 'gone'), None:
            assert contract.protocol_for(file, nothing) == 'env'
    assert contract.protocol_for(imf_policy, walk) == contract.protocol_for(remdm, None) == 'env'
    assert 'actions' in contract.understood(imf_policy)
    for judged, chosen in ((), 'loss'), (('env',), 'loss'), (('actions', 'env'), 'actions'):
        assert contract.protocol_for(SimpleNamespace(EVAL=judged), walk) == chosen


FLAGS = ['--model=act', '--dataset=clips_walk', '--chunk_size=6', '--n_action_steps=6', '--dim_model=16',
         '--n_heads=2', '--dim_feedforward=32', '--n_encoder_layers=1', '--use_vae=False', '--obs=state',
         '--batch_size=8', '--max_steps=2', '--val_batches=1', '--device=cpu', '--eval_every=1',
         '--best_metric=eval/l1_sigma']


@pytest.fixture(scope='module')
def run_dir(root):
    """ACT after two steps, judged on the way."""
    said, _ = script('train.py', *FLAGS, f'--data_dir={root}', f'--out_dir={root}/out')
    assert 'eval/l1_sigma' in said and 'eval/minus_best_l1_sigma' in said
    return root / 'out'


def test_the_script(run_dir):
    """The same numbers as on the way; a table with units; the rival that knows too much is marked."""
    said, errors = script('eval.py', f'--ckpt={run_dir}')
    result = json.loads(said)
    logged = [json.loads(line) for line in open(run_dir / 'logs.json.txt')]
    on_the_way = [row['eval/l1_sigma'] for row in logged if 'eval/l1_sigma' in row]
    assert result['protocol'] == 'actions' and result['l1_sigma'] == pytest.approx(on_the_way[-1], rel=1e-5)
    table = {line.split()[0]: line.split()[1:] for line in errors.splitlines()[2:]}
    assert table['model'][0] == f'{result["l1_sigma"]:.4g}' and 'hand [1]' in errors and 'arm [rad]' in errors
    row = result['baselines']['last_action']
    assert 'last_action' not in table and table['last_action*'][4:6] == \
        [f'{row[name]:.4g}' for name in ('rmse_hand', 'rmse_arm')]
    assert f'minus that of {result["best_l1_sigma"]}' in errors.splitlines()[-1]
    said, _ = script('eval.py', f'--ckpt={run_dir}', '--help')
    assert 'protocols/actions.py' in said and 'stride' in said and 'n_action_steps' in said
    assert json.loads(script('eval.py', f'--ckpt={run_dir}', '--protocol=loss')[0])['protocol'] == 'loss'
    said, _ = script('eval.py', f'--ckpt={run_dir}', '--n_action_steps=1', '--temporal_ensemble=True')
    assert json.loads(said)['n_action'] == 1


def test_a_picture_by_default(run_dir, root):
    """A PNG, of two episodes; a stretch of them if asked."""
    pytest.importorskip('matplotlib', reason="needs: pip install -e '.[plot]'")
    said, _ = script('sample.py', f'--ckpt={run_dir}', '--device=cpu')
    assert said.strip() == f'{run_dir}/samples/step_0000002.png: what was done, and what the policy wants'
    whole = imageio.imread(run_dir / 'samples' / 'step_0000002.png')
    short = '--device=cpu', '--n_clips=1', '--length=5'
    script('sample.py', f'--ckpt={run_dir}', *short, f'--out={root}/a.png')
    part = imageio.imread(root / 'a.png')
    assert whole.shape[1] == 2 * part.shape[1] and whole.shape[0] == part.shape[0] and part.std() > 10


@pytest.mark.parametrize('flags, words', [
    (['--protocol=env'], 'SIMULATOR names a simulator to act in; eval.py --protocol=actions needs none'),
    (['--protocol=video'], '--protocol=video: act is judged by env, actions, loss'),
    (['--stride=0'], 'actions protocol: stride = 0: want whole numbers from 1 on'),
    (['--at_once=0', '--episodes=-1'], 'episodes = -1: want whole numbers from 0 on; at_once = 0'),
    (['--n_action_steps=9'], 'n_action_steps = 9: a chunk has chunk_size = 6'),
    (['--dataset=nowhere'], 'nowhere/meta.json'),
    (['--dataset=clips_odd'], 'has state_dim = 4, the model was trained with 3'),
    (['--dataset=clips_train'], 'clips_train has no val split'),
    (['--dataset=clips_stiff'], 'clips_stiff/train is a number that changes; --protocol=loss judges without'),
    (['--dataset=clips_nan'], 'val/action.npy: a value soon after row 0, in episode 0, is not finite')])
def test_user_mistakes_are_one_line(run_dir, root, flags, words):
    def stiff(i): return episode(i) | {'action': np.ones((17 + 3 * (i % 4), 2), np.float32)}
    def odd(i): return episode(i) | {'state': np.zeros((17 + 3 * (i % 4), 4), np.float32)}
    if not (root / 'clips_nan').exists():
        make(root, 'clips_train', val='0')
        make(root, 'clips_stiff', stiff)
        make(root, 'clips_odd', odd)
        shutil.copytree(root / 'clips_walk', root / 'clips_nan')
        rows = np.lib.format.open_memmap(root / 'clips_nan' / 'val' / 'action.npy', mode='r+')
        rows[2] = np.nan
    said, errors = script('eval.py', f'--ckpt={run_dir}', *flags, code=(1, 2))
    lines = [line for line in errors.splitlines() if not line.startswith('note: ')]
    assert words in one_line('\n'.join(lines)) and said == ''


def test_a_policy_of_another_kind_is_one_line(walk, policy, monkeypatch):
    with pytest.raises(SystemExit) as stop: judge(policy(Oracle(walk), PAD=False), walk)
    assert str(stop.value).startswith('actions protocol: stub.PAD = False') and '\n' not in str(stop.value)
    with pytest.raises(ValueError, match=r'stub.Model.act gave \(4, 3, 2\), want \(4, 4, 2\)'):
        judge(policy(Oracle(walk, 3), 4), walk)
    lost = policy(lambda obs: torch.full((len(obs['state']), 4, 2), torch.nan))
    assert judge(lost, walk)['l1_sigma'] is None


def test_n_action_is_asked_or_counted(walk, policy):
    """A policy without Config.n_action gives all of a training window from now on."""
    model = policy(Oracle(walk, 7), 4)
    del model.cfg.n_action
    assert recorded.n_action(sys.modules['stub'], model.cfg) == 7 == judge(model, walk)['n_action']
    assert recorded.n_action(diffusion_policy, diffusion_policy.Config()) == 8
