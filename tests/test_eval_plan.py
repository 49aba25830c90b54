"""
protocols/plan.py with the simulated arm: the planner whose model is the truth, a hopeless one, one that
obeys.
"""
import json
import sys

import numpy as np
import pytest
import torch
from test_eval_dynamics import build

from data.loader import read_meta
from protocols import plan


def judge(model, folder, **asked):
    return plan.evaluate(model, folder, plan.Keys(**asked))


@pytest.fixture(scope='module')
def arm(tmp_path_factory):
    """Twelve episodes of the simulated arm, one of them to plan on."""
    pytest.importorskip('mujoco', reason="needs: pip install -e '.[arx5]'")
    from data.arx5 import prepare
    folder, argv = str(tmp_path_factory.mktemp('arm') / 'arx5_default'), sys.argv
    sys.argv = ['prepare.py', f'--out={folder}', '--limit=12', '--workers=1']
    try: prepare.main()
    finally: sys.argv = argv
    return folder


def test_plan_with_the_simulator_in_the_models_place(arm, monkeypatch):
    """
    The planner reaches most goals when its model is the truth; the model's row is then the simulator's own.
    """
    from data.arx5 import env as arx5
    known = {}

    class Simulator(arx5.Simulator):
        def rollout(self, context, action):                  # both plan with the same futures: simulate once
            key = action.numpy().tobytes()
            if key not in known: known[key] = super().rollout(context, action)
            return known[key]
    monkeypatch.setattr(arx5, 'Simulator', Simulator)
    model = build(arm, state_dim=14, action_dim=7, q_index=tuple(range(7)))
    model.rollout = Simulator().rollout
    result = judge(model, arm, n_clips=3, horizon=20, knots=1, n_samples=60, n_iters=9)
    json.dumps(result, allow_nan=False)
    assert result['success_simulator'] >= 0.6 and result['error_simulator'] < 0.1
    assert (result['success'], result['error']) == (result['success_simulator'], result['error_simulator'])
    assert result['error_simulator'] < 0.5 * min(result['error_hold'], result['error_straight'])
    assert (result['n_clips'], result['horizon'], result['knots']) == (3, 20, 1)
    assert len(known) == 2 + 9 + 1                           # hold, straight, nine rounds, the plan itself


def test_plan_through_a_model(arm):
    """An untrained model that says `nothing moves`: planning finishes, and reaches little."""
    model = build(arm, state_dim=14, action_dim=7, q_index=tuple(range(7)), state_pred='residual')
    result = judge(model, arm, n_clips=3, horizon=20, knots=2, n_samples=16, n_iters=2)
    for key in ('error', 'error_simulator', 'error_hold', 'error_straight'): assert np.isfinite(result[key])
    assert result['error'] > result['error_simulator'] and 0 <= result['success'] <= 1
    again = judge(model, arm, n_clips=3, horizon=20, knots=2, n_samples=16, n_iters=2)
    assert {k: v for k, v in again.items() if 'seconds' not in k} == {
        k: v for k, v in result.items() if 'seconds' not in k}


def test_planned_commands_keep_the_speed_of_the_data(arm, monkeypatch):
    """No command is further from the one before than any in the data; the first follows the last of the
    context; the goal is where the recorded arm was `horizon` frames later; costs are of joints in rad, the
    gripper left out."""
    from data.arx5 import env as arx5
    asked, stats = [], read_meta(arm)['stats']

    class Watched:
        def __init__(self, contact): assert contact is False

        def rollout(self, context, action):
            asked.append((context, action))
            B, N, K, _ = action.shape
            state = context['state'][:, None, -1:].repeat(1, N, K, 1)
            state[..., :7] = action                                  # an arm that obeys
            return {'state': state}
    monkeypatch.setattr(arx5, 'Simulator', Watched)
    model = build(arm, state_dim=14, action_dim=7, q_index=tuple(range(7)))
    model.rollout = Watched(False).rollout
    result = judge(model, arm, n_clips=4, horizon=20, knots=2, n_samples=16, n_iters=2)
    slow, fast = (torch.tensor(stats['delta_prev'][k]) for k in ('min', 'max'))
    for context, action in asked:
        last = context['action'][:, None, -1:].expand(-1, action.shape[1], -1, -1)
        path = torch.cat([last, action], 2)
        assert (path.diff(dim=2) <= fast + 1e-5).all() and (path.diff(dim=2) >= slow - 1e-5).all()
    val = np.load(f'{arm}/val/state.npy')
    (context, hold), (_, straight) = asked[:2]
    row = {state.tobytes(): i for i, state in enumerate(val)}
    goal = np.stack([val[row[s[-1].numpy().tobytes()] + 20, :7] for s in context['state']])
    errors = {}
    for name, action in ('hold', hold), ('straight', straight):
        error = np.abs(action[:, 0, -1].numpy() - goal)[:, :6].max(1)
        assert result[f'error_{name}'] == pytest.approx(error.mean(), rel=1e-4)
        assert result[f'success_{name}'] == (error < 0.05).mean()
        errors[name] = error
    last = context['action'][:, -1].numpy()
    assert np.allclose(hold[:, 0].numpy(), last[:, None], atol=1e-6)
    free = torch.isclose(straight[:, 0, 1:-1].diff(dim=1), straight[:, 0, 2:].diff(dim=1), atol=1e-4)
    assert errors['straight'].mean() < errors['hold'].mean()
    assert free.float().mean() > 0.5                                 # straight lines
