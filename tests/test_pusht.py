"""The PushT policy from data to pictures, on a few episodes of our own; every mistake is one clear line."""
import json
import math
from functools import partial

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import one_line, script

pytest.importorskip('pymunk', reason="needs the extra 'pusht'")
import act as A  # noqa: E402
import checkpoint  # noqa: E402
import imf_policy  # noqa: E402
from data.loader import Store  # noqa: E402
from data.pusht import env as E  # noqa: E402
from data.rollout import rollout  # noqa: E402
from protocols import env as P  # noqa: E402
from protocols import imitation  # noqa: E402

SMALL = ['--n_embd=16', '--n_head=2', '--n_layer=1', '--batch_size=4', '--max_steps=2', '--log_every=1',
         '--val_batches=1', '--val_every=2', '--save_every=2', '--warmup_steps=1', '--device=cpu']


def pushing(i, seed, obs):
    """A disc that circles about the T."""
    board, rows = E.make_env(obs=obs), {}
    seen, _ = board.reset(seed=seed + i)
    for t in range(14):
        x, y = board.block.position
        action = np.clip([x + 80 * math.cos(t / 3), y + 80 * math.sin(t / 3)], 0, 512).astype(np.float32)
        for key, value in (seen | {'action': action, 'pose': np.array(board.pose(), np.float32)}).items():
            rows.setdefault(key, []).append(value)
        seen, *_ = board.step(action)
    return {key: np.stack(values) for key, values in rows.items()}


@pytest.fixture(scope='module')
def boards(tmp_path_factory):
    """A data_dir with pusht_image: six short episodes, all that prepare.py would write."""
    from data.writer import write

    root = tmp_path_factory.mktemp('boards')
    info = {'source': 'tests', 'revision': '1', 'fps': 10, 'units': {}, 'env': 'data.pusht.env',
            'q_index': [0, 1], 'facts': {'env_state_dim': 18, 'image_size': 96}}
    write(root / 'pusht_image', partial(both, seed=3), 6, seed=0, val='4-5', workers=1, command='tests',
          info=info, padded=())
    return root


def both(i, seed):
    image = pushing(i, seed, 'image')
    return image | {'env_state': pushing(i, seed, 'keypoints')['env_state']}


@pytest.fixture
def short(monkeypatch):
    """Episodes of 20 steps."""
    monkeypatch.setattr(E.PushT, 'cap', 20)


@pytest.fixture(scope='module')
def out_dir(boards, tmp_path_factory):
    out = tmp_path_factory.mktemp('run') / 'pusht_cpu'
    script('train.py', 'config/pusht_cpu.py', f'--data_dir={boards}', f'--out_dir={out}', *SMALL)
    return out


@pytest.mark.parametrize('config, flags', [('pusht_imf', ['--crop=64']), ('pusht_flow', ['--obs=keypoints']),
                                           ('pusht_ddpm', ['--obs=keypoints', '--dropout=0.3'])])
def test_configs_train_and_are_judged_on_the_way(config, flags, boards, tmp_path, short):
    out = tmp_path / 'out'
    script('train.py', f'config/{config}.py', f'--data_dir={boards}', f'--out_dir={out}', *SMALL, *flags,
           '--eval_every=2', '--steps=2')
    rows = [json.loads(line) for line in (out / 'logs.json.txt').read_text().splitlines()]
    keys = set().union(*rows)
    assert {'train/loss', 'val/loss', 'eval/test_mean_score', 'eval/sim_max_reward_100000',
            'eval/sim_max_reward_100049', 'eval/train_action_mse_error', 'eval/ms_per_action'} <= keys
    meta = checkpoint.read_meta(checkpoint.find(out))
    assert meta['best'] == next(row['eval/test_mean_score'] for row in rows if 'eval/test_mean_score' in row)


def test_score_and_its_interval(out_dir, tmp_path, short):
    judge = 'eval.py', f'--ckpt={out_dir}'
    said, err = script(*judge, '--episodes=3', f'--out={tmp_path}/e.json', '--timed=3')
    result = json.loads(said)
    assert json.loads((tmp_path / 'e.json').read_text()) == result
    row = result['envs']['pusht']
    scores = [result[f'sim_max_reward_{100000 + i}'] for i in range(3)]
    assert result['test_mean_score'] == row['score'] == pytest.approx(np.mean(scores))
    assert result['seed'] == 100000
    assert row['score_ci'][0] <= row['score'] <= row['score_ci'][1]
    assert row['score_median'] == pytest.approx(np.median(scores))
    assert row['rivals'].keys() == {'nothing', 'random', 'nearest', 'linear'}
    best = max(row['rivals'].values())
    assert row['minus_best'] == pytest.approx(row['score'] - best)
    assert result['calls_per_action'] == 1 / 8 and 0 < result['ms_per_action'] <= result['ms_per_action_p99']
    assert 'score' in err and 'nothing' in err and result['hold_rmse'] > 0
    assert result['nearest_rmse'] > 0 and result['linear_rmse'] > 0
    # the same starts, and the same noise, whoever else is played beside
    again = json.loads(script(*judge, '--episodes=3', '--at_once=1', '--timed=0')[0])
    assert again['test_mean_score'] == pytest.approx(result['test_mean_score'], abs=1e-3)
    assert 'ms_per_action' not in again
    more = json.loads(script(*judge, '--episodes=1', '--steps=4', '--seed=7')[0])
    assert more['calls_per_action'] == 0.5 and 'sim_max_reward_7' in more


ACT = ['config/pusht_act_cpu.py', '--chunk_size=6', '--n_action_steps=4', '--dim_model=16', '--n_heads=2',
       '--dim_feedforward=16', '--n_encoder_layers=1', '--n_vae_encoder_layers=1', *SMALL[3:]]


@pytest.fixture(scope='module')
def act_dir(boards, tmp_path_factory):
    out = tmp_path_factory.mktemp('run') / 'pusht_act'
    script('train.py', *ACT, f'--data_dir={boards}', f'--out_dir={out}')
    return out


def test_policies_of_lerobot_are_played(boards, act_dir, tmp_path, short):
    """Where the dataset names its simulator; with the keys that only sampling reads."""
    out = tmp_path / 'out'
    script('train.py', 'config/pusht_diffusion_cpu.py', '--down_dims=8,16', '--n_groups=4', *SMALL[3:],
           f'--data_dir={boards}', f'--out_dir={out}', '--drop_n_last_frames=1')
    for run, flags, calls in ((out, ['--num_inference_steps=3'], 3 / 8), (act_dir, [], 1 / 4)):
        result = json.loads(script('eval.py', f'--ckpt={run}', '--episodes=2', *flags, '--timed=1')[0])
        assert 'sim_max_reward_100001' in result and result['calls_per_action'] == calls
        assert result['hold_rmse'] > 0 and math.isfinite(result['val_action_rmse'])
    draw = 'sample.py', f'--ckpt={act_dir}', f'--versus={out}', f'--out={tmp_path}/a.gif', '--length=4'
    said, _ = script(*draw)
    assert said.startswith(f'{tmp_path}/a.gif: best reward 0.') and ' and 0.' in said
    _, err = script('eval.py', f'--ckpt={act_dir}', '--temporal_ensemble=True', code=1)
    assert one_line(err) == ('act.Config: n_action_steps = 4: temporal_ensemble looks again at every step, '
                             'so n_action_steps = 1')


def test_ensembles_of_episodes_do_not_meet(boards, act_dir, monkeypatch, short):
    """
    Temporal ensembling, episodes played at once, one of which ends early: each does what it does alone, acted
    by hand. A second evaluation of the same model finds nothing of the first.
    """
    over = {'temporal_ensemble': True, 'n_action_steps': 1, 'temporal_ensemble_coeff': 0.1}
    model, _ = checkpoint.load(act_dir, **over)
    monkeypatch.setattr(E.PushT, 'cap', property(lambda board: 6 if board.seed == 100001 else 12))
    reset, played = E.PushT.reset, []

    def watched(board, seed=None, options=None):
        board.seed = seed
        return reset(board, seed, options)
    monkeypatch.setattr(E.PushT, 'reset', watched)
    monkeypatch.setattr(P, 'rollout', lambda *args: played.append(rollout(*args)) or played[-1])
    monkeypatch.setattr(P.imitation, 'players', lambda *args: {})
    monkeypatch.setattr(P, 'rivals_of', lambda name: {})
    keys = P.Keys(episodes=3, timed=2)
    first, again = (P.evaluate(model, boards / 'pusht_image', keys) for _ in range(2))
    told = {key for key in first if not key.startswith('ms_per_action')}
    assert {key: first[key] for key in told} == {key: again[key] for key in told}
    assert first['calls_per_action'] == 1
    assert [len(game['actions']) for game in played[0]] == [12, 6, 12]
    for games in played:
        for seed, game in zip(range(100000, 100003), games):
            board, past = E.make_env(obs='keypoints'), None
            obs, _ = board.reset(seed=seed)
            for action in game['actions']:
                seen = model.look({key: torch.from_numpy(x)[None, None] for key, x in obs.items()})
                with torch.no_grad():
                    chunk = model.net(torch.zeros(1, model.cfg.latent_dim), *seen)
                want, past = A.ensemble(past, (chunk * model.action_std + model.action_mean)[0], 0.1)
                assert np.allclose(action, want, atol=1e-3)
                obs, *_ = board.step(action)


def test_floors_are_those_of_the_players(short):
    """Nothing and chance, played by hand on a start of the tests."""
    players = P.rivals_of('data.pusht.env')
    for who, choose in {'nothing': lambda env, rng: env.pose()[:2],
                        'random': lambda env, rng: rng.uniform(0, 512, 2)}.items():
        env, rng, best = E.make_env(), np.random.default_rng(100003), 0.0
        env.reset(seed=100003)
        for _ in range(20):
            best = max(best, env.step(choose(env, rng))[1])
        assert players[who]('pusht', 100003) == best


class Oracle(torch.nn.Module):
    """Wants what a table says, or to stay, or a fixed offset from it."""

    def __init__(self, offset):
        super().__init__()
        self.cfg, self.offset = imf_policy.PRESETS['tiny'], offset
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def act(self, obs, generators=None):
        return obs['state'][:, -1:].expand(-1, 8, -1) + self.offset


def test_imitation_errors_by_hand(boards, monkeypatch):
    """Of a policy that stays: hold_rmse, from the arrays; of one that is 3 px and 4 px further: more."""
    monkeypatch.setattr(imitation.common, 'file_of', lambda model: imf_policy)
    errors = {offset: imitation.errors(Oracle(torch.tensor(offset)), boards / 'pusht_image')
              for offset in ((0.0, 0.0), (300.0, 400.0))}
    state, action, spans = (np.load(boards / 'pusht_image' / 'val' / f'{key}.npy')
                            for key in ('state', 'action', 'episodes'))
    squares = [(action[row] - state[t]) ** 2 for start, end in spans for t in range(start, end - 1)
               for row in range(t, min(t + 8, end))]
    still = errors[0.0, 0.0]
    assert still['val_action_rmse'] == still['hold_rmse'] == pytest.approx(np.mean(squares) ** 0.5)
    assert errors[300.0, 400.0]['hold_rmse'] == still['hold_rmse'] < errors[300.0, 400.0]['val_action_rmse']


def test_players_that_learned_from_demonstrations(boards, monkeypatch, short):
    """Shown a training window, nearest does what was done there; linear is ridge regression."""
    monkeypatch.setattr(imitation.common, 'file_of', lambda model: imf_policy)
    model, folder = Oracle(torch.zeros(2)), boards / 'pusht_image'
    players = imitation.players(model, folder)
    seen, edges = range(-1, 1), {'pad': True, 'drop': 1}
    store = Store(folder, 'train', {'env_state': seen, 'state': seen, 'action': range(8)}, **edges)
    rows = store.windows_at(np.arange(len(store)))
    assert torch.equal(players['nearest'](rows), rows['action'])
    moved = {key: rows[key] + 1e-3 for key in ('env_state', 'state')}
    assert torch.equal(players['nearest'](moved), rows['action'])
    X = torch.cat([rows['env_state'].flatten(1), rows['state'].flatten(1)], 1).double().numpy()
    Y = (rows['action'] - rows['state'][:, -1:]).flatten(1).double().numpy()
    X = (X - X.mean(0)) / X.std(0)
    weights = np.linalg.solve(X.T @ X / len(X) + 1e-4 * np.eye(40), X.T @ (Y - Y.mean(0)) / len(X))
    want = (X @ weights + Y.mean(0)).reshape(-1, 8, 2) + rows['state'][:, -1:].numpy()
    assert np.abs(players['linear'](rows).numpy() - want).max() < 1e-3
    # and they play: the score of an episode by hand
    board, past, best = E.make_env(), [], 0.0
    past = [board.reset(seed=100001)[0]] * 2
    while not board.over:
        obs = {key: torch.from_numpy(np.stack([past[-2][key], past[-1][key]]))[None] for key in past[-1]}
        for action in players['nearest'](obs)[0].numpy():
            seen, reward, *_ = board.step(action)
            past, best = [*past, seen], max(best, reward)
            if board.over:
                break
    assert P.imitator(players['nearest'], E.__name__, 2, 'best')('pusht', 100001) == best


def test_no_numbers_in_the_data_no_players(boards, monkeypatch, tmp_path):
    monkeypatch.setattr(imitation.common, 'file_of', lambda model: imf_policy)
    meta = json.loads((boards / 'pusht_image' / 'meta.json').read_text())
    del meta['files']['train/env_state.npy']
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    assert imitation.players(Oracle(torch.zeros(2)), tmp_path) == {}
    assert imitation.players(Oracle(torch.zeros(2)), tmp_path / 'gone') == {}


def test_actions_off_the_board_are_counted(short):
    act = lambda obs, generators: torch.full((len(obs['state']), 8, 2), 600.0)
    envs = E.environments(['pusht'] * 2)
    rollout(envs, [1, 2], act, history=2)
    assert [env.clipped for env in envs] == [20, 20]


def test_pictures(out_dir, boards, tmp_path, short):
    pytest.importorskip('matplotlib', reason="needs the extra 'plot'")
    said, _ = script('sample.py', f'--ckpt={out_dir}', f'--out={tmp_path}/a.gif', '--length=12')
    frames = imageio.imread(tmp_path / 'a.gif')
    assert frames.shape == (12, 280, 512, 3) and said.startswith(f'{tmp_path}/a.gif: best reward 0.')
    assert (frames[0, 24:] != frames[-1, 24:]).any()
    script('sample.py', f'--ckpt={out_dir}', f'--versus={out_dir}', f'--out={tmp_path}/b.gif', '--length=4')
    twins = imageio.imread(tmp_path / 'b.gif')
    assert twins.shape == (4, 280, 512, 3) and (twins[:, 24:, :256] == twins[:, 24:, 256:]).all()
    script('sample.py', f'--ckpt={out_dir}', f'--out={tmp_path}/c.png')
    assert imageio.imread(tmp_path / 'c.png').ndim == 3


@pytest.mark.parametrize('flags, words', [
    (['--envs=pushT'], "no environment 'pushT'; did you mean 'pusht'?"),
    (['--steps=-1'], 'steps = -1: must be 0 or more'),
    (['--episodes=0'], 'episodes = 0'), (['--timed=-1'], 'timed = -1')])
def test_mistakes_are_one_line(flags, words, out_dir):
    _, err = script('eval.py', f'--ckpt={out_dir}', *flags, code=(1, 2))
    assert words in one_line(err)


def test_missing_data_says_the_command(tmp_path):
    _, err = script('train.py', 'config/pusht_cpu.py', f'--data_dir={tmp_path}', code=2)
    line = one_line(err)
    assert line == (f'{tmp_path}/pusht_image/meta.json not found; make it: python data/pusht/prepare.py '
                    f'--out={tmp_path}/pusht_image')


def test_nan_in_a_batch_is_named(boards, tmp_path):
    """A damaged recording: the loss is not finite, and the run says where."""
    import shutil
    shutil.copytree(boards / 'pusht_image', tmp_path / 'pusht_image')
    path = tmp_path / 'pusht_image' / 'train' / 'env_state.npy'
    rows = np.load(path)
    rows[:] = np.nan
    np.save(path, rows)
    _, err = script('train.py', 'config/pusht_cpu.py', f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/out',
                    *SMALL, code=1)
    assert 'is not finite at step 0' in one_line(err) and 'sample ids' in err


def test_compiled_step_is_the_same_step():
    """torch.compile cannot trace the jvp and leaves it out; the difference it traces whole."""
    for how in ('jvp', 'difference'):
        torch.manual_seed(0)
        cfg = imf_policy.Config(obs='keypoints', n_embd=16, n_head=2, n_layer=1, derivative=how)
        model, batch = imf_policy.Model(cfg), imf_policy.example(cfg, 4)
        batch |= {'noise': torch.randn(4, 10, 2), 't': torch.tensor([.5, .6, .7, .8]),
                  'r': torch.tensor([.5, .6, .1, .0])}
        plain = model(batch)['loss']
        plain.backward()
        want = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model.compile(backend='aot_eager', dynamic=False)
        loss = model(batch)['loss']
        loss.backward()
        assert torch.allclose(loss, plain, atol=1e-5)
        for p, grad in zip(model.parameters(), want):
            assert torch.allclose(p.grad, grad, atol=1e-4)


def test_bench(tmp_path):
    from bench import timing
    from bench import versus_imf_policy as V
    clock, cfg = timing.Clock('cpu', 'float32', 1), imf_policy.PRESETS['tiny']
    V.batch = 4
    rows = {row['variant']: row for row in V.step_rows(cfg, clock)}
    assert rows.keys() == {'ddpm', 'flow', 'naive', 'jvp', 'difference'} and rows['ddpm']['ratio'] == 1
    assert rows['jvp']['difference'] < 1e-5 and rows['difference']['difference'] < 1e-3
    rows = {row['variant']: row for row in V.act_rows(cfg, clock)}
    assert rows['ddpm, 100']['ms'] > rows['ddim, 10']['ms'] > rows['imf, 1 call']['ms'] > 0
    assert len(V.env_rows(cfg, clock)) == 2
    script('bench/versus_imf_policy.py', '--what=act', '--preset=tiny', '--reps=1',
           f'--out={tmp_path}/b.json')
    assert len(json.loads((tmp_path / 'b.json').read_text())['rows']) == 5
    _, err = script('bench/versus_imf_policy.py', '--what=dance', code=1)
    assert "what = 'dance'" in one_line(err)
