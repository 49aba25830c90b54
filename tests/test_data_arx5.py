"""data/arx5: the arm sags as it must, commands keep their limits, bytes follow from bytes, goals count."""
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT

mujoco = pytest.importorskip('mujoco', reason="needs: pip install -e '.[arx5]'")
from data.arx5 import commands, env as arx5, draw as pictures, prepare  # noqa: E402, I001
from data.writer import write  # noqa: E402

FRAMES = 150
KP = np.array([80, 80, 80, 40, 10, 10, 40])


@pytest.fixture(scope='module')
def episodes(): return [prepare.episode(i, seed=0, frames=FRAMES, contact=False) for i in range(12)]


def at_home(gravcomp, seconds):
    """Where the arm is after holding its home pose, (14,)."""
    start = np.r_[arx5.HOME, np.zeros(7)][None]
    hold = np.tile(arx5.HOME, (1, seconds * arx5.FPS, 1))
    return arx5.simulate(start, hold, gravcomp=gravcomp)[0, -1]


# ---- the arm ----

def test_sizes():
    net = arx5.model()
    assert (net.nq, net.nv, net.nu, net.opt.timestep) == (8, 8, 7, 0.002)
    assert np.isclose(net.body_mass.sum(), 3.467, atol=5e-4)              # of what moves: the base has none
    assert np.allclose(net.actuator_gainprm[:, 0], KP) and np.allclose(net.key_qpos[0], [*arx5.HOME, -0.044])
    assert np.allclose(net.actuator_forcerange[:, 1], [30, 40, 30, 15, 10, 10, 10])
    assert np.array_equal(net.actuator_ctrlrange, net.jnt_range[:7])
    assert (arx5.SAFE[0] >= net.jnt_range[:7, 0]).all() and (arx5.SAFE[1] <= net.jnt_range[:7, 1]).all()


def test_inertia_is_long_along_the_links():
    """Links 2 and 3 are rods along x: little moment about x, much about y and z."""
    net = arx5.model()
    data = mujoco.MjData(net)
    mujoco.mj_forward(net, data)
    for name in 'link2', 'link3':
        b = net.body(name).id
        R = data.ximat[b].reshape(3, 3).T @ data.xmat[b].reshape(3, 3)    # body axes in principal axes
        I = R.T @ np.diag(net.body_inertia[b]) @ R
        assert I[0, 0] < 0.1 * I[1, 1] and I[0, 0] < 0.1 * I[2, 2]


def test_sag_under_gravity():
    """
    Without compensation each joint gives way until its spring carries the load: sag = bias / kp, to 1e-5 rad.
    A wrong mass, centre of mass or gain changes the figures; with compensation, whatever the masses, nothing
    moves.
    """
    end, net = at_home(gravcomp=False, seconds=30), arx5.model(False, False)
    data = mujoco.MjData(net)
    mujoco.mj_setState(net, data, arx5.full(end[None])[0], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(net, data)
    sag = arx5.HOME - end[:7]
    assert np.abs(end[7:]).max() < 1e-6                                    # it has settled
    assert np.abs(sag - data.qfrc_bias[:7] / KP)[:6].max() < 1e-5, (sag, data.qfrc_bias[:7] / KP)
    assert np.allclose(sag[1:4], [0.0132, 0.0737, 0.0341], atol=1e-4), sag
    assert np.abs(at_home(gravcomp=True, seconds=2) - np.r_[arx5.HOME, np.zeros(7)]).max() < 1e-9


def test_limits_hold_for_commands_under_the_cap():
    """All joints from limit to limit at 0.6 of their top speed: limits are soft, and 0.05 rad is how soft."""
    low, high = arx5.model().jnt_range[:7].T
    x = np.tile((low + high) / 2, (600, 1))
    for t in range(1, 600):
        to = high if t // 150 % 2 == 0 else low
        x[t] = x[t - 1] + np.clip(to - x[t - 1], -arx5.CAP / arx5.FPS, arx5.CAP / arx5.FPS)
    state = arx5.simulate(np.r_[x[0], np.zeros(7)][None], x[None])[0]
    over = np.maximum(state[:, :7] - high, low - state[:, :7]).max(0)
    assert over.min() > -0.01, over                                        # all limits are reached
    assert 0.005 < over[:6].max() <= 0.05 and over[6] < 0.003, over


def test_forward_kinematics_is_mujocos():
    net, rng = arx5.model(), np.random.default_rng(0)
    q, data = rng.uniform(*net.jnt_range[:7].T, (20, 7)), mujoco.MjData(net)
    ours = pictures.forward_kinematics(q)
    assert ours.shape == (20, len(arx5.POINTS), 3) and np.ptp(ours[:, -1], axis=0).min() > 0.3
    for row, points in zip(q, ours):
        data.qpos[:] = *row, -row[6]
        mujoco.mj_kinematics(net, data)
        for (name, (link, offset)), p in zip(arx5.POINTS.items(), points):
            assert np.abs(p - data.site(name).xpos).max() < 1e-9, name
            if not any(offset): assert np.abs(p - data.body(link).xpos).max() < 1e-9, name
    full = np.concatenate([q, q], 1)
    # whole states, and any leading shape
    assert np.array_equal(pictures.forward_kinematics(full[:, None]), ours[:, None])


# ---- commands ----

def test_references_keep_their_limits():
    for family in commands.FAMILIES:
        spread = []
        for seed in range(20):
            x = commands.references(np.random.default_rng(seed), 300, family).astype(np.float32)
            low, high = arx5.SAFE.astype(np.float32)
            assert x.shape == (300, 7) and (x >= low).all() and (x <= high).all()
            speed = np.abs(np.diff(x.astype(np.float64), axis=0)).max(0) * arx5.FPS
            assert (speed <= arx5.CAP + 1e-4).all(), (family, speed)
            spread.append(np.ptp(x, axis=0))
        assert (np.mean(spread, 0) > 0.2 * (arx5.SAFE[1] - arx5.SAFE[0])).all(), (family, np.mean(spread, 0))
    assert np.allclose(arx5.CAP, [3, 3, 3.3, 3.3, 3, 3, 0.09])


def test_the_rate_limit_is_used():
    """Noise would be faster than the cap; the limiter holds it there, and only there."""
    x = commands.references(np.random.default_rng(0), 3000, 'wander')
    raw = commands.wander(np.random.default_rng(0), 3000).clip(*arx5.SAFE)
    fast = np.abs(np.diff(raw, axis=0)) > arx5.CAP / arx5.FPS
    assert 0 < fast.mean() < 0.5 and np.abs(np.diff(x, axis=0)).max() * arx5.FPS <= arx5.CAP.max() + 1e-9
    assert (x == raw).mean() > 0.3


def test_every_family_occurs_in_its_share():
    share = {k: 0 for k in commands.FAMILIES}
    for seed in range(400):  # the draw of the family is the first number
        x = commands.references(np.random.default_rng(seed), 3)
        for family in commands.FAMILIES:
            rng = np.random.default_rng(seed)
            rng.integers(4)
            share[family] += np.array_equal(x, commands.references(rng, 3, family)) / 400
    assert np.isclose(sum(share.values()), 1)
    assert abs(share['minjerk'] - 0.5) < 0.1 and abs(share['sines'] - 0.25) < 0.1


def test_decay_is_the_recurrence():
    x, y = np.random.default_rng(0).normal(size=(301, 2)), np.zeros(2)
    for row, got in zip(x, commands.decay(x, 0.9)):
        y = 0.9 * y + row
        assert np.allclose(got, y, atol=1e-12)


# ---- simulation ----

def test_states_follow_from_the_stored_bytes(episodes):
    for i, e in enumerate(episodes[:4]):
        told = commands.references(np.random.default_rng([0, i]), FRAMES).astype(np.float32)
        assert np.array_equal(np.r_[e['state'][:1, :7], e['action'][:-1]], told)  # it starts where they do
        assert e['state'].shape == (FRAMES, 14) and e['action'].shape == (FRAMES, 7)
        assert e['state'].dtype == e['action'].dtype == np.float32 and not e['action'][-1].any()
        assert not e['state'][0, 7:].any()
        again = arx5.simulate(e['state'][None, 0], e['action'][None, :-1])[0]
        assert np.array_equal(again.astype(np.float32), e['state'][1:])
        # one step from every state: float32 rounding and what the second finger did are all that is lost
        step = partial(arx5.simulate, e['state'][1:-2])
        error, late = (np.abs(step(e['action'][k:FRAMES - 3 + k, None])[:, 0] - e['state'][2:-1])
                       for k in (1, 2))
        assert error[:, :7].max() < 1e-4 and error[:, 7:].max() < 5e-3, error.max(0)
        assert late[:, :6].max() > 1e-3  # an action one frame late is another film


@pytest.mark.parametrize('contact', [False, True])
def test_neither_threads_nor_chunks_change_a_bit(contact):
    E = [prepare.episode(i, seed=3, frames=FRAMES, contact=contact) for i in range(5)]
    start, action = np.stack([e['state'][0] for e in E]), np.stack([e['action'][:-1] for e in E])
    run = partial(arx5.simulate, start, action, contact)
    whole = run()
    for kw in {'chunk': 50}, {'chunk': 130}, {'threads': 2}, {'threads': 2, 'chunk': 7}:
        assert np.array_equal(whole, run(**kw)), kw
    alone = arx5.simulate(start[2:3], action[2:3], contact)
    assert np.array_equal(whole[2], alone[0])                              # nor do the other arms


def test_a_step_depends_on_state_and_action_alone():
    """No warm start, no clock: the full state in the middle of a run makes the rest of it again."""
    net, e = arx5.model(contact=True), prepare.episode(1, seed=0, frames=60, contact=True)
    control = np.repeat(e['action'][None, :-1].astype(np.float64), 10, 1)
    start = arx5.full(e['state'][:1].astype(np.float64))
    rows = mujoco.rollout.rollout(net, mujoco.MjData(net), start, control)[0][0]
    middle = rows[299].copy()
    middle[0] = 0
    again = mujoco.rollout.rollout(net, mujoco.MjData(net), middle[None], control[:, 300:])[0][0]
    assert np.array_equal(again[:, 1:], rows[300:, 1:])


def test_contact_is_another_world():
    assert arx5.touching(arx5.HOME) == 0
    assert arx5.touching([0, 2.6, 0.2, 0, 0, 0, 0.02]) > 0                 # the floor is there
    seeds = range(12)
    free = [prepare.episode(i, seed=0, frames=FRAMES, contact=False)['state'] for i in seeds]
    hard = [prepare.episode(i, seed=0, frames=FRAMES, contact=True)['state'] for i in seeds]
    # the same start, unless the first touched something
    same = [np.array_equal(a[0], b[0]) for a, b in zip(free, hard)]
    moved = [np.abs(a - b).max() > 0.1 for a, b in zip(free, hard)]
    assert sum(same) >= 6 and any(s and m for s, m in zip(same, moved)) and not all(moved)
    assert all(np.isfinite(x).all() and arx5.touching(x[0, :7]) == 0 for x in hard)


def test_simulator_is_a_world_model(episodes):
    context = {'state': torch.from_numpy(np.stack([e['state'][:3] for e in episodes[:2]])),
               'action': torch.zeros(2, 2, 7)}
    action = torch.from_numpy(np.stack([[e['action'][2:12] for e in episodes[k:k + 3]] for k in (0, 3)]))
    state = arx5.Simulator().rollout(context, action)['state']
    assert state.shape == (2, 3, 10, 14) and state.dtype == torch.float32
    for b in range(2):
        for n in range(3):
            want = arx5.simulate(context['state'][b, -1:].numpy(), action[b, n][None].numpy())[0]
            assert np.array_equal(state[b, n].numpy(), want.astype(np.float32))
    assert not torch.equal(state[0, 0], state[0, 1])
    hard = arx5.Simulator(contact=True).rollout(context, action)['state']
    assert hard.shape == state.shape and torch.isfinite(hard).all()


@pytest.mark.parametrize('contact', [False, True])
def test_env_is_simulate(episodes, contact):
    e, env = episodes[0], arx5.make_env(contact)
    obs, _ = env.reset(options={'state': e['state'][0]})
    assert np.array_equal(obs['state'], e['state'][0]) and obs['state'].dtype == np.float32
    want = arx5.simulate(e['state'][None, 0], e['action'][None, :20], contact)[0].astype(np.float32)
    for a, s in zip(e['action'], want):
        assert env.action_space.contains(a)
        obs, _, terminated, truncated, _ = env.step(a)
        assert np.array_equal(obs['state'], s) and not terminated and not truncated
    first, again, other = (env.reset(seed=k)[0]['state'] for k in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert env.observation_space.contains(obs)
    if contact:
        assert not any(arx5.touching(env.reset(seed=k)[0]['state'][:7]) for k in range(60))
    state = env.reset(seed=7)[0]['state']
    assert np.array_equal(env.render(), pictures.draw(state[None])[0])
    assert np.array_equal(arx5.draw(state[None], side=64), pictures.draw(state[None], side=64))


# ---- the task ----

H, K, LAST = 5, 30, 4                                                      # context, horizon, its last frame


@pytest.fixture
def meta(episodes):
    """What a task reads of meta.json, for these episodes."""
    action = np.stack([e['action'][:-1] for e in episodes])
    ranges = {key: {'min': x.min((0, 1)).tolist(), 'max': x.max((0, 1)).tolist()}
              for key, x in (('action', action), ('delta_prev', np.diff(action, axis=1)))}
    return {'q_index': [*range(7)], 'groups': prepare.GROUPS, 'contact': False, 'stats': ranges}


def task_of(meta, episodes, knots=2):
    """Three goals, each K frames after the context of an episode."""
    state, action = (torch.from_numpy(np.stack([e[key] for e in episodes[:3]]))
                     for key in ('state', 'action'))
    start = {'state': state[:, :H], 'action': action[:, :LAST]}
    return arx5.Task(meta, start, state[:, LAST + K], horizon=K, knots=knots), state, action


def test_recorded_commands_reach_the_recorded_pose(meta, episodes):
    """A way-point per frame, those of the episode: the plan is what was done; the truth reaches the goal."""
    task, state, action = task_of(meta, episodes, knots=K)
    done = action[:, None, LAST:LAST + K]
    assert torch.allclose(task.commands(done), done, atol=1e-5)
    future = task.simulator.rollout({'state': state[:, :H]}, task.commands(done))
    error = task.score(future)
    assert isinstance(error, np.ndarray) and error.shape == (3,) and error.max() < 2e-3
    assert task.success(error).all() and task.cost(future).max() < 1e-5
    still = task.commands(task.rivals['hold'][:, None])
    hold = task.score(task.simulator.rollout({'state': state[:, :H]}, still))
    assert hold.min() > 0.05 and not task.success(hold).any()


def test_commands_by_hand(meta, episodes):
    """Straight lines from the last command through the way-points, no step beyond those of the data."""
    task, _, action = task_of(meta, episodes, knots=3)
    low, high = np.array(meta['stats']['action']['min']), np.array(meta['stats']['action']['max'])
    slow, fast = (np.array(meta['stats']['delta_prev'][key]) for key in ('min', 'max'))
    assert np.allclose(task.low, low) and np.allclose(task.high, high)
    knots = torch.from_numpy(np.random.default_rng(0).uniform(low, high, (3, 4, 3, 7))).float()
    got = task.commands(knots)
    assert got.shape == (3, 4, K, 7)
    limited = 0
    for b in range(3):
        for n in range(4):
            corners = np.stack([action[b, LAST - 1].numpy(), *knots[b, n].numpy()])
            now = corners[0]
            for k in range(K):
                wanted = [np.interp((k + 1) * 3 / K, range(4), corners[:, d]) for d in range(7)]
                step = np.clip(wanted - now, slow, fast)
                limited += (step != wanted - now).mean() / (3 * 4 * K)
                now = now + step
                assert np.allclose(got[b, n, k], now, atol=1e-5)
    assert 0.1 < limited < 0.9                                             # both kinds of step were seen


def test_cost_and_score_by_hand(meta, episodes):
    """Squares, and the largest error, of six joints at the last frame; gripper and rates do not count."""
    task, state, _ = task_of(meta, episodes)
    future = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, K, 14))).float()
    goal = state[:, LAST + K].numpy()
    for b in range(3):
        for n in range(4):
            off = future[b, n, -1, :6].numpy() - goal[b, :6]
            assert task.cost({'state': future})[b, n].item() == pytest.approx((off**2).mean(), rel=1e-5)
        one = task.score({'state': future[:, 2:3]})[b]
        assert one == pytest.approx(np.abs(future[b, 2, -1, :6].numpy() - goal[b, :6]).max(), rel=1e-5)
    same = future.clone()
    same[..., 6:] += 1
    same[:, :, :-1] += 1
    assert torch.equal(task.cost({'state': same}), task.cost({'state': future}))
    assert task.success(np.array([0.0, 0.049, 0.051, np.nan])).tolist() == [True, True, False, False]


def test_rivals_need_no_planning(meta, episodes):
    task, state, action = task_of(meta, episodes, knots=2)
    assert task.rivals.keys() == {'hold', 'straight'}
    assert torch.equal(task.init, task.rivals['hold'])
    assert torch.equal(task.init, action[:, LAST - 1:LAST].expand(-1, 2, -1))
    assert torch.equal(task.rivals['straight'], state[:, LAST + K, None, :7].expand(-1, 2, -1))
    held = task.commands(task.rivals['hold'][:, None])
    assert torch.allclose(held, action[:, None, LAST - 1:LAST].expand(-1, 1, K, -1), atol=1e-6)


def test_the_truth_of_a_task_has_the_contacts_of_its_data(meta, episodes):
    assert task_of(meta, episodes)[0].simulator.how['contact'] is False
    assert task_of(meta | {'contact': True}, episodes)[0].simulator.how['contact'] is True


@pytest.mark.parametrize('key, value, words', [
    ('q_index', None, 'meta.json has no q_index'), ('groups', None, 'meta.json has no groups'),
    ('stats', {'action': {}}, 'meta.json has no stats of delta_prev'),
    ('groups', {'joint': {'dims': [*range(6)], 'unit': 'm'}}, 'no commanded entry .* of unit rad'),
    ('groups', {'speed': {'dims': [*range(7, 13)], 'unit': 'rad'}}, 'no commanded entry .* of unit rad')])
def test_data_without_a_pose_to_reach(meta, episodes, key, value, words):
    with pytest.raises(SystemExit, match=words) as stop:
        task_of(meta | {key: value}, episodes)
    assert '\n' not in str(stop.value)


def test_data_of_another_robot(meta):
    start = {'state': torch.zeros(2, H, 5), 'action': torch.zeros(2, H - 1, 3)}
    with pytest.raises(SystemExit, match='^this arm has 14 states and 7 actions, the data have 5 and 3; '):
        arx5.Task(meta, start, torch.zeros(2, 5), horizon=K, knots=2)


# ---- pictures ----

def test_pictures_show_the_pose(episodes):
    s = episodes[0]['state'][::30]
    video = pictures.draw(s, side=96)
    assert video.shape == (len(s), 96, 96, 3) and video.dtype == np.uint8
    assert np.array_equal(video, pictures.draw(s[:, :7], side=96))             # velocities are not seen
    assert all((a != b).any(-1).sum() > 50 for a, b in zip(video, video[1:]))
    home, open_, shut = (np.array([[*arx5.HOME[:6], g]]) for g in (0.02, 0.044, 0))
    assert (pictures.draw(open_) != pictures.draw(shut)).any()                     # the fingers are
    tip = pictures.project(pictures.forward_kinematics(home), 96)[0]['tip7']       # dark where the finger is
    image = pictures.draw(home, side=96)[0]
    assert image[int(tip[1]), int(tip[0])].max() < 120 < image[4, 4].min()


def test_ghost_and_command_are_seen_in_their_colours(episodes):
    s, g = episodes[0]['state'][[0]], episodes[1]['state'][[0]]
    plain, ghost, wish = pictures.draw(s), pictures.draw(s, ghost=g), pictures.draw(s, command=g[:, :7])

    def share(x, rgb):
        return (np.abs(x.astype(int) - rgb).max(-1) < 60).mean()
    assert share(ghost, pictures.GHOST) > share(plain, pictures.GHOST) + 0.003
    assert share(wish, pictures.COMMAND) > share(plain, pictures.COMMAND) + 0.001
    wild = np.full((1, 14), 9.0)                                           # a dream may go anywhere: no crash
    assert pictures.draw(s, ghost=wild, command=wild[:, :7], side=64).shape == (1, 64, 64, 3)


def test_film(tmp_path, episodes, capsys, monkeypatch):
    e = episodes[0]
    for name in 'gl', 'stick':  # whatever this machine has, then without
        prepare.film(tmp_path / name / 'x.gif', e['state'][:20], e['action'][:20], side=64)
        gif = imageio.imread(tmp_path / name / 'x.gif')
        assert gif.shape == (10, 64, 64, 3) and (gif[0] != gif[-1]).any()
        monkeypatch.setattr(pictures, 'render', lambda *a: None)
    assert 'stick view (no OpenGL)' in capsys.readouterr().out


# ---- the folder ----

def make(out, monkeypatch, *flags, frames=40):
    """prepare.py in this process, with short episodes -> meta.json."""
    monkeypatch.setattr(prepare, 'SIZES', {k: (n, frames, v) for k, (n, _, v) in prepare.SIZES.items()})
    monkeypatch.setattr(sys, 'argv', ['prepare.py', f'--out={out}', *flags])
    with redirect_stdout(io.StringIO()): prepare.main()
    return json.loads((out / 'meta.json').read_text())


def test_folder(tmp_path, monkeypatch, episodes):
    meta = make(tmp_path / 'a', monkeypatch, '--workers=1')
    assert {k: v['episodes'] for k, v in meta['counts'].items()} == {'train': 128, 'val': 16}
    assert (meta['facts']['state_dim'], meta['facts']['action_dim'], meta['fps']) == (14, 7, 50)
    assert meta['q_index'] == list(range(7)) and meta['env'] == 'data.arx5.env' and meta['contact'] is False
    assert sorted(d for g in meta['groups'].values() for d in g['dims']) == list(range(14))
    assert all(meta['groups'][g['rate_of']] for g in meta['groups'].values() if 'rate_of' in g)
    assert meta['command'] == 'python data/arx5/prepare.py --seed=0 --val=0.111 --limit=0'
    train, val = (np.load(tmp_path / 'a' / k / 'state.npy').reshape(-1, 40, 14) for k in ('train', 'val'))
    starts = {s[0].tobytes() for s in train}  # split by episode: no start on both sides
    assert len(starts) == 128 and not starts & {s[0].tobytes() for s in val}
    assert prepare.episode(0, 0, 40, False)['state'][0].tobytes() in starts | {s[0].tobytes() for s in val}
    for key in 'delta_action', 'delta_prev', 'delta_state':
        assert np.isfinite(meta['stats'][key]['std']).all()


def test_full_and_contact(tmp_path, monkeypatch):
    assert prepare.SIZES[True][:2] == (1056, 3418) and prepare.SIZES[False][:2] == (144, 1000)
    from data.writer import split
    assert split(1056, prepare.SIZES[True][2], 0).sum() == 32
    assert split(144, prepare.SIZES[False][2], 0).sum() == 16
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(prepare, 'write', lambda out, play, n, **kw: seen.append((out, n, play.keywords, kw)))
    for flags in [], ['--full'], ['--contact'], ['--contact', '--full']:
        monkeypatch.setattr(sys, 'argv', ['prepare.py', *flags])
        prepare.main()
    assert [s[0] for s in seen] == [f'data/arx5_{k}' for k in ('default', 'full', 'contact', 'contact_full')]
    assert [s[1] for s in seen] == [144, 1056] * 2
    assert [s[2]['contact'] for s in seen] == [False, False, True, True]
    assert seen[0][3]['info']['mjcf_sha256'] != seen[2][3]['info']['mjcf_sha256']
    assert seen[3][3]['command'].endswith('--full --contact')


def test_bytes_do_not_depend_on_workers(tmp_path):
    play = partial(prepare.episode, seed=4, frames=30, contact=True)
    for workers in 1, 2:
        write(tmp_path / str(workers), play, 17, seed=4, val='0.2', workers=workers,
              command='x', info={'q_index': [*range(7)], 'fps': 50})
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / k / 'train').iterdir()} for k in '12')
    assert one == two and len(one) == 3
    other = prepare.episode(0, seed=5, frames=30, contact=True)
    assert not np.array_equal(play(0)['action'], other['action'])


@pytest.mark.parametrize('flags, words', [
    (['--render={}/file/x.gif'], '--render={}/file/x.gif: '),
    (['--render={}'], '--render={}: there is something that is no file'),
    (['--render={}/x.gif', '--seed=-1'], '--seed=-1: want 0 or more')])
def test_a_film_that_cannot_be(tmp_path, monkeypatch, flags, words):
    """One line before the work, nothing written."""
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit) as stop:
        make(tmp_path / 'a', monkeypatch, *(flag.format(tmp_path) for flag in flags))
    assert str(stop.value).startswith(words.format(tmp_path)) and '\n' not in str(stop.value)
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_command(tmp_path):
    """The script itself, with a picture; and the one line where mujoco is missing."""
    flags = [f'--out={tmp_path}/a', '--limit=2', '--workers=1', f'--render={tmp_path}/x.gif']
    told = [sys.executable, 'data/arx5/prepare.py', *flags]
    done = subprocess.run(told, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and 'frames by' in done.stdout, done.stderr
    assert imageio.imread(tmp_path / 'x.gif').shape == (150, 240, 240, 3)
    assert np.load(tmp_path / 'a' / 'val' / 'state.npy').shape == (1000, 14)


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mujoco', None)
    with pytest.raises(SystemExit, match=r"^ARX5 needs: pip install -e '\.\[arx5\]'$"): arx5.make_env()
