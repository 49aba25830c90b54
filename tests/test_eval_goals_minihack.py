"""
protocols/goals.py in the rooms of boulders.py: tasks that can be done, a simulator that is the game, and a
planner that looks again after each move.
"""
import json
import sys

import numpy as np
import pytest
import torch

import nanowm
from data.loader import Store
from data.minihack import boulders, env, tasks
from protocols import goals, plan

N = 6


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    from data.minihack import prepare
    out, argv = str(tmp_path_factory.mktemp('rooms') / 'minihack_boulders'), sys.argv
    sys.argv = ['prepare.py', '--level=boulders', f'--out={out}', '--episodes=4', '--moves=8', '--val=0.5',
                '--workers=1']
    try: prepare.main()
    finally: sys.argv = argv
    return out


def build(rollout=None, **keys):
    torch.manual_seed(0)
    model = nanowm.Model(nanowm.Config(**dict(
        input='video', height=36, width=36, channels=3, action_dim=4, num_frames=2, depth=2, hidden=16,
        heads=2, patch=12, pred='x', skip=True, snr_gamma=0.0, sample_steps=1, context_loss=False,
        context_t=-1, history_level=-1.0) | keys)).eval()
    if rollout:
        model.rollout = rollout
    return model


def tasks_of(folder, family='walk', n=N, seed=0, skip=1):
    return env.Tasks(Store(folder, 'val', goals.windows(build().cfg)), family, n, 4, skip, seed,
                     torch.device('cpu'))


@pytest.fixture(scope='module')
def walks(folder):
    return tasks_of(folder)


@pytest.mark.parametrize('family', tasks.Tasks.FAMILIES)
def test_families(folder, family):
    made, same, other = (tasks_of(folder, family, seed=seed) for seed in (0, 0, 1))
    start = made.start['state'][:, 0]
    assert torch.equal(same.goal, made.goal) and not torch.equal(other.goal, made.goal)
    assert not made.success(made.error(made.start)).any() and set(made.away) <= {2, 3, 4}
    assert torch.equal(made.start['video'][:, 0].byte(), shown(start)) and torch.equal(made.goal.byte(),
                                                                                        shown(made.where))
    pushed = ((start == boulders.BOULDER) != (made.where == boulders.BOULDER)).any(1)
    assert pushed.all() if family == 'push' else not pushed.any()
    for maps in (start, made.where):
        assert ((maps == boulders.PLAYER).sum(1) == 1).all()
    if family == 'walk':                                             # nobody gets there in fewer moves
        assert (made.distance(start[:, None], made.where)[:, 0].numpy() <= made.away).all()


def shown(state):
    return torch.from_numpy(boulders.picture(state.view(-1, 9, 9).long().numpy()))


def test_the_simulator_is_the_game(folder, walks):
    """One game played move by move, and all its beginnings out of the memory of the search."""
    rng = np.random.default_rng(3)
    moves = rng.integers(4, size=(N, 5))
    action = torch.eye(4)[torch.from_numpy(moves)][:, None]
    future = walks.simulator.rollout(walks.start, action)
    assert future['video'].shape == (N, 1, 5, 36, 36, 3)
    meta = json.loads(open(f'{folder}/meta.json').read())
    level = boulders.watch(boulders.level_file(meta['level']['name']), False)
    for i, (seed, before) in enumerate(walks.simulator.levels):
        level.start(seed)
        for move in before:
            level.env.step(move)
        assert np.array_equal(level.frame(), walks.start['video'][i, 0].numpy())
        for k, move in enumerate(moves[i]):
            level.env.step(int(move))
            assert np.array_equal(level.frame(), future['video'][i, 0, k].numpy())
            assert np.array_equal(level.glyphs(), future['state'][i, 0, k].view(9, 9).numpy())
    # from a later look on the same moves lead to the same end
    later = walks.after(action[:, 0, :2])
    again = walks.simulator.rollout(later, action[:, :, 2:])
    still = later['made'].flatten(1).sum(1) == 2                     # who did not meet its goal by chance
    assert still.any() and torch.equal(again['video'][still], future['video'][still, :, 2:])


def test_who_is_there_stops(walks):
    """After the goal no more moves are made, whatever is asked for; zeros are no move at all."""
    made, seconds, _ = goals.act(walks, walks.simulator.rollout, 'distance', walks.goal,
                                 goals.filled(plan.Keys(), walks.OWN), goals.Eyes())
    end = walks.after(made)
    there = walks.success(walks.error(end))
    assert there.mean() >= 0.8 and seconds > 0
    more = torch.cat([made, torch.eye(4)[torch.zeros(N, 3, dtype=torch.long)]], 1)
    assert torch.equal(walks.after(more)['video'][there], walks.goal[there, None])
    assert torch.equal(walks.after(made[:, :0])['video'], walks.start['video'])
    count = end['made'].flatten(1).sum(1)[there].numpy()
    assert (count >= walks.away[there]).all() and (count <= walks.looks).all()


def test_with_the_game_in_the_models_place(folder):
    """The model's rows are then the simulator's own, and above random moves."""
    truth, known = tasks_of(folder, n=4, seed=1), {}

    def rollout(context, action, **kw):                      # a model gets no number of a task: look it up
        seen = [known[picture.numpy().tobytes()] for picture in context['video']]
        task, made = zip(*seen)
        return truth.simulator.rollout({'task': torch.tensor(task), 'made': made}, action)

    class Known(tasks.Tasks):
        def seen(self, maps, task, made):
            what = super().seen(maps, task, made)
            for i in range(len(made)):
                known[what['video'][i].numpy().tobytes()] = int(task[i]), made[i]
            return what
    keys = plan.Keys(n_clips=4, n_samples=12, n_elites=4, n_iters=2, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, 'Tasks', Known)
        result = plan.evaluate(build(rollout), folder, keys)
    json.dumps(result, allow_nan=False)
    assert result['success_scales'] == result['success_simulator_scales'] >= 0.75
    assert result['success_random'] < result['success_scales'] and result['success_other'] < 0.5
    assert [result[key] for key in ('family', 'looks', 'horizon', 'frame')] == ['walk', 8, 4, 'cheapest']


@pytest.mark.parametrize('asked, line', [
    (dict(n_keep=1), 'n_keep, n_proposals: this world has one-hot actions'),
    (dict(n_proposals=3), 'n_keep, n_proposals: this world has one-hot actions')])
def test_keys_of_the_other_planner(folder, asked, line):
    with pytest.raises(SystemExit, match=line):
        plan.evaluate(build(), folder, plan.Keys(**asked, n_clips=2))


def test_what_cannot_be(folder, tmp_path):
    with pytest.raises(ValueError, match="family = 'far': these rooms have walk, push"):
        plan.evaluate(build(), folder, plan.Keys(family='far'))
    with pytest.raises(ValueError, match='n_clips = 1: want 2 or more'):
        plan.evaluate(build(), folder, plan.Keys(n_clips=1))
    none = pytest.raises(ValueError, match="'push': 0 tasks in 200 rooms of")
    with pytest.MonkeyPatch.context() as patch, none:
        patch.setattr(tasks, 'task', lambda *_: None)
        tasks_of(folder, 'push', n=2)
    with pytest.raises(ValueError, match='frame_skip = 2: here each move is looked at'):
        plan.evaluate(build(frame_skip=2), folder, plan.Keys())
    with pytest.raises(SystemExit, match='knows no val/latent.npy'):
        plan.evaluate(build(input='latent'), folder, plan.Keys())
    with pytest.raises(SystemExit, match='want a name that ends in .gif'):
        plan.evaluate(build(), folder, plan.Keys(gif=str(tmp_path / 'plan.png')))
