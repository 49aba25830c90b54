"""
protocols/goals.py on Wall: the planner whose model is the truth, one whose dreams stand still, costs by hand.
NetHack's tasks are in test_eval_goals_minihack.py.
"""
import json
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nanowm
import vae
from data.latents import resize
from data.loader import Store
from data.wall import env as wall
from protocols import goals, plan

FEW = dict(n_clips=8, n_samples=40, n_iters=4, seed=1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Forty episodes, twenty of them to plan on."""
    from data.wall import prepare
    out, argv = str(tmp_path_factory.mktemp('wall') / 'wall_pixels'), sys.argv
    sys.argv = ['prepare.py', f'--out={out}', '--limit=40', '--val=0.5', '--workers=1']
    try: prepare.main()
    finally: sys.argv = argv
    return out


def build(rollout=None, **over):
    torch.manual_seed(0)
    cfg = dict(
        input='video', height=32, width=32, channels=3, action_dim=2, frame_skip=4, num_frames=2, depth=2,
        hidden=16, heads=2, patch=8, pred='x', skip=True, snr_gamma=0.0, sample_steps=1, context_loss=False,
        context_t=-1, history_level=-1.0)
    model = nanowm.Model(nanowm.Config(**cfg | over)).eval()
    if rollout:
        model.rollout = rollout
    return model


def tasks_of(folder, family='near', n=12, horizon=5, seed=0):
    store = Store(folder, 'val', goals.windows(build().cfg))
    return wall.Tasks(store, family, n, horizon, 4, seed, torch.device('cpu'))


def test_with_the_world_in_the_models_place(folder):
    """The model's rows are then the simulator's own; most near goals are reached, none by standing still."""
    truth, states = wall.Simulator(), {}

    def rollout(context, action, **kw):                      # a model gets no state: look it up
        start = states[context['video'].numpy().tobytes()]
        return {'video': truth.rollout({'state': start}, action)['video']}
    tasks = tasks_of(folder, n=8, seed=1)
    states[tasks.start['video'].numpy().tobytes()] = tasks.start['state']
    model = build(rollout)
    result = plan.evaluate(model, folder, plan.Keys(**FEW))
    json.dumps(result, allow_nan=False)
    for cost in goals.COSTS:
        assert result[f'success_{cost}'] == result[f'success_simulator_{cost}'] >= 0.6
        assert result[f'error_{cost}'] == result[f'error_simulator_{cost}']
    assert result['success_simulator_distance'] >= 0.6 and result['success_no_move'] == 0
    assert result['success_other'] < result['success_scales']
    assert result['error_other'] > result['error_scales']
    low, high = result['success_scales_ci']
    assert low < result['success_scales'] < high or high == 1
    assert (result['n_clips'], result['horizon'], result['n_elites'], result['family']) == (8, 5, 4, 'near')


# ---- in latents ----

@pytest.fixture(scope='module')
def encoded(tmp_path_factory):
    """The same world through a small codec of random weights -> its folder, its file."""
    from data.wall import prepare
    torch.manual_seed(0)
    home, argv = tmp_path_factory.mktemp('latents'), sys.argv
    save_file(vae.AutoencoderTiny(width=16).state_dict(), home / 'small.safetensors')
    sys.argv = ['prepare.py', f'--out={home}/wall_small', '--limit=12', '--val=0.5', '--workers=1',
                f'--vae={home}/small.safetensors', '--size=64']
    try: prepare.main()
    finally: sys.argv = argv
    return str(home / 'wall_small'), str(home / 'small.safetensors')


def test_planning_in_latents(encoded, tmp_path):
    """A model that knows the next latents reaches most goals by comparing latents, and sees no pixel."""
    folder, file = encoded
    codec, truth, states = vae.load(file), wall.Simulator(), {}

    def look(video):                                         # (..., 32, 32, 3) -> (..., 4, 8, 8)
        flat = resize(video.round().byte().numpy().reshape(-1, 32, 32, 3), (64, 64))
        return vae.encode(codec, torch.from_numpy(flat)).view(*video.shape[:-3], 4, 8, 8)

    def rollout(context, action, **kw):
        assert context.keys() == {'latent', 'action'}
        start = states[context['latent'].contiguous().numpy().tobytes()]
        return {'latent': look(truth.rollout({'state': start}, action)['video'])}
    model = build(rollout, input='latent', height=8, width=8, channels=4, patch=4)
    store = Store(folder, 'val', goals.windows(model.cfg))
    tasks = wall.Tasks(store, 'near', 4, 5, 4, 1, torch.device('cpu'))
    states[look(tasks.start['video']).numpy().tobytes()] = tasks.start['state']
    few = dict(n_clips=4, n_samples=16, n_iters=3, seed=1, vae=file, gif=str(tmp_path / 'plan.gif'))
    result = plan.evaluate(model, folder, plan.Keys(**few))
    assert result['error_scales'] < 0.5 * result['error_no_move']
    assert result['error_scales'] < result['error_other']
    assert len(iio.imread(tmp_path / 'plan.gif', index=None)) > 5


def test_what_eyes_see(encoded):
    """Latents, channels last, as they lie on the disk; shown again they are pictures of the world's size."""
    folder, file = encoded
    model = build(input='latent', height=8, width=8, channels=4, patch=4)
    store = Store(folder, 'val', {'latent': range(1), 'state': range(1), 'video': range(1)})
    tasks = wall.Tasks(store, 'near', 4, 5, 4, 1, torch.device('cpu'))
    eyes, rows = goals.Eyes(model, store, file, tasks), store.windows_at(np.arange(6))
    seen = eyes.see(torch.from_numpy(wall.picture(rows['state'][:, 0].double().numpy())).float())
    assert seen.shape == (6, 8, 8, 4) and eyes.unit == 0.25
    stored = rows['latent'][:, 0].float().movedim(-3, -1)
    torch.testing.assert_close(seen, stored, rtol=0, atol=2e-2 * stored.abs().max().item())
    shown = eyes.show(seen[:, None])
    assert shown.shape == (6, 1, 32, 32, 3)
    decoded = vae.decode(eyes.codec, seen.movedim(-1, -3))   # (6, 64, 64, 3)
    by_hand = decoded.unflatten(1, (32, 2)).unflatten(3, (32, 2)).mean((2, 4))
    torch.testing.assert_close(shown[:, 0], by_hand)


def test_a_model_that_sees_no_move(folder, tmp_path):
    """An untrained net with skip dreams that all stays: nothing to choose by, so little is reached."""
    drawn = tmp_path / 'plan.gif'
    result = plan.evaluate(build(), folder, plan.Keys(**FEW, family='far', frame='cheapest', n_keep=2,
                                                      n_proposals=4, futures_at_once=16, gif=str(drawn)))
    film = iio.imread(drawn)
    assert film.shape[0] >= 6 and film.shape[2] == 3 * 3 * 32        # start and five frames; three sides
    assert (film[1:] != film[:-1]).any()
    assert result['success_pixel'] <= 0.25 and result['success_simulator_distance'] > result['success_pixel']
    assert result['seconds_per_plan_pixel'] > 0 and result['n_proposals'] == 4


@pytest.mark.parametrize('family', wall.Tasks.FAMILIES)
def test_families(folder, family):
    tasks, same, other = (tasks_of(folder, family, seed=seed) for seed in (0, 0, 1))
    start, goal = tasks.start['state'][:, 0].numpy(), tasks.where.numpy()
    assert len(start) == 12
    assert np.array_equal(same.goal, tasks.goal) and not np.array_equal(other.goal, tasks.goal)
    apart = np.hypot(*(start - goal).T)
    assert np.allclose(apart, tasks.away, atol=1e-4) and (apart > wall.REACHED).all()
    rooms = (start[:, 0] > 15.5) == (goal[:, 0] > 15.5)
    if family == 'far': assert rooms.all() and (apart >= wall.FAR - 1e-4).all()
    if family == 'door': assert not rooms.any()
    assert np.array_equal(tasks.goal, wall.picture(goal.astype(np.float64)))
    assert not tasks.success(tasks.error(tasks.after(tasks.rivals['no_move']))).any()


def test_recorded_moves_reach_their_own_goal(folder):
    """A window's moves, averaged over each frame's four, end near its goal: goals can be reached."""
    tasks = tasks_of(folder)
    own = tasks.start['state'].new_tensor(np.roll(tasks.rivals['recorded'], -1, 0))
    reached = tasks.success(tasks.error(tasks.after(own)))
    others = tasks.success(tasks.error(tasks.after(tasks.rivals['recorded'])))
    assert reached.mean() > 0.7 > 0.4 > others.mean()


def test_commands_are_cut_to_the_longest_of_the_data(folder):
    tasks = tasks_of(folder)
    plan_ = torch.tensor([[1.8, 1.8], [0.3, 0.4], [0.0, 0.0]]).expand(12, 7, 3, 2)
    got = tasks.commands(plan_)
    assert got.shape == (12, 7, 3, 8) and torch.equal(got[..., :2], got[..., 6:])
    assert torch.allclose(got[0, 0, :, :2].norm(dim=-1), torch.tensor([wall.LONGEST, 0.5, 0.0]))


@pytest.mark.parametrize('sigma', (1.5, 3.0))
def test_blur_by_hand(sigma):
    """A point becomes the outer product of two bells whose weights add up to 1; sigma 0 changes nothing."""
    frames = torch.zeros(2, 1, 32, 32, 3)
    frames[0, 0, 14, 17, 1] = 5
    seen = goals.blur(frames, sigma)
    i = np.arange(32)
    bell = [np.where(abs(i - at) <= int(3 * sigma + 0.5), np.exp(-(i - at) ** 2 / (2 * sigma ** 2)), 0)
            for at in (14, 17)]
    expected = 5 * np.outer(bell[0] / bell[0].sum(), bell[1] / bell[1].sum())
    assert np.allclose(seen[0, 0, :, :, 1], expected, atol=1e-5)
    assert not seen[1].any() and not seen[..., 0].any() and torch.equal(goals.blur(frames, 0.0), frames)


def test_costs_by_hand(folder):
    """Standing still costs 1 per blur, the goal itself 0; pixels are flat where blurs still point the way."""
    tasks = tasks_of(folder, 'far')
    start, goal = tasks.start['state'][:, 0], tasks.where
    way = torch.stack([start + part * (goal - start) for part in (0.0, 0.3, 1.0, 0.6)], 1)[:, None]
    video = torch.from_numpy(wall.picture(way.reshape(-1, 2).double().numpy())).float()
    video = video.view(12, 1, 4, 32, 32, 3)
    future = {'video': video, 'state': way}

    def cost(name, frame='last', upto=4):
        cut = {key: value[:, :, :upto] for key, value in future.items()}
        return goals.price(name, frame, tasks.start, tasks.goal, tasks.where, tasks.distance)(cut)[:, 0]
    assert torch.allclose(cost('scales', upto=1), torch.full((12,), 4.0), atol=1e-3)
    assert cost('scales', upto=3).max() < 1e-2 and cost('pixel', upto=3).max() < 1
    assert torch.equal(cost('scales', 'cheapest'), cost('scales', upto=3))
    assert (cost('scales') < cost('scales', upto=2)).all()
    assert torch.allclose(cost('distance', upto=2), 0.7 * (goal - start).norm(dim=-1), atol=1e-4)
    by_hand = (video[:, 0, -1] - tasks.goal).square().mean((1, 2, 3))
    assert torch.allclose(cost('pixel'), by_hand)
    flat = (cost('pixel', upto=2) / cost('pixel', upto=1)).mean()
    seen = (cost('scales', upto=2) / cost('scales', upto=1)).mean()
    assert flat > 0.97 > seen                                # only blurred does it look nearer


@pytest.mark.parametrize('asked, line', [
    (dict(n_samples=1), 'n_samples = 1: must be at least 2'),
    (dict(n_keep=7), 'n_keep = 7: must lie in 0..6'),
    (dict(n_elites=65), 'n_elites = 65: must lie in 2..64'),
    (dict(n_proposals=64), 'n_proposals = 64: must lie in 0..63'),
    (dict(frame='best'), "frame = 'best': choose one of last, cheapest"),
    (dict(futures_at_once=-1), 'futures_at_once = -1'), (dict(knots=3), 'knots: only where goals are states'),
    (dict(horizon=13), 'a window spans 53 frames')])
def test_what_cannot_be(folder, asked, line):
    with pytest.raises(SystemExit, match=line):
        plan.evaluate(build(), folder, plan.Keys(**asked))


def test_what_nobody_asked_for_fits():
    """A small n_samples is no mistake: the world's own numbers of elites and proposals give way."""
    for n in (2, 16, 32):
        keys = goals.filled(plan.Keys(n_samples=n), wall.Tasks.OWN)
        assert keys.n_keep <= keys.n_elites <= n and keys.n_proposals < n
    keys = goals.filled(plan.Keys(n_keep=0, n_proposals=0, n_elites=9), wall.Tasks.OWN)
    assert (keys.n_samples, keys.n_elites, keys.n_keep, keys.n_proposals) == (64, 9, 0, 0)


def test_a_world_that_cannot_be_planned_in(folder, tmp_path):
    with pytest.raises(ValueError, match="family = 'maze': Wall has near, far, door"):
        plan.evaluate(build(), folder, plan.Keys(family='maze'))
    import shutil
    from pathlib import Path
    shutil.copytree(folder, tmp_path / 'old')
    meta = json.loads(Path(folder, 'meta.json').read_text())
    (tmp_path / 'old' / 'meta.json').write_text(json.dumps(meta | {'action_kind': 'onehot'}))
    with pytest.raises(SystemExit, match="action_kind = 'onehot', but the world data.wall.env has a box"):
        plan.evaluate(build(), str(tmp_path / 'old'), plan.Keys())
    del meta['env']
    (tmp_path / 'old' / 'meta.json').write_text(json.dumps(meta))
    with pytest.raises(SystemExit, match='old/meta.json names no world .env. that has Tasks'):
        plan.evaluate(build(), str(tmp_path / 'old'), plan.Keys())


def test_gains_are_paired():
    """Two rows that each reach half of the tasks: the same half leaves no doubt, another one leaves a lot."""
    half = np.arange(40) % 2 == 0
    won = {'scales': half, 'same': half, 'rest': ~half, 'none': np.zeros(40, bool)}
    found = goals.gains(won, seed=0)
    assert found['gain_over_same'] == 0 and found['gain_over_same_ci'] == [0, 0]
    assert found['gain_over_rest'] == 0
    low, high = found['gain_over_rest_ci']
    assert -0.5 < low < -0.15 and 0.15 < high < 0.5                  # 1.96 / sqrt(40) = 0.31
    assert found['gain_over_none'] == 0.5 and 'gain_over_scales' not in found
