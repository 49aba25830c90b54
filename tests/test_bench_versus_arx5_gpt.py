"""bench/versus_arx5_gpt.py: the plain way is the same function as the stacked one; only the time differs."""
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import script

import arx5_gpt
import checkpoint
from bench import timing
from bench import versus_arx5_gpt as bench

TINY = arx5_gpt.Config(q_index=tuple(range(7)), depth=2, heads=2, hidden=16, history=8, chunk=4)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def clock(dtype='float32'):
    return timing.Clock('cpu', dtype, reps=3)


def both(cfg=TINY, n=4):
    """A model off its start, a batch, its members as plain networks, and both ways to step."""
    model, data = bench.build(cfg, clock(), n)
    timing.randomise(model, 0.1)
    nets = [bench.Member(model, i) for i in range(cfg.members)]
    ways = {'stacked': timing.train_step(model, data, clock()),
            'loop': bench.loop_step(model, nets, data, clock())}
    return model, nets, data, ways


@pytest.mark.parametrize('members', (1, 2, 3))
@pytest.mark.parametrize('clip', (1.0, 1e-3))
@pytest.mark.parametrize('velocity', (False, True))
def test_both_ways_are_the_same_step(monkeypatch, members, clip, velocity):
    """Outputs, losses, and the weights after several steps, where the clip binds and differs per member."""
    monkeypatch.setattr(timing, 'CLIP', clip)
    model, nets, data, ways = both(replace(TINY, members=members, velocity=velocity), 2 * members)
    data['state'][:2] *= 3                                          # the first member has the larger gradient
    before = model.member(0)['head.weight'].clone()
    apart = bench.equal(model, nets, data, ways, clock())
    assert set(apart) == {'outputs_differ', 'losses_differ', 'weights_differ'} and max(apart.values()) < 1e-6
    for step in (*ways.values(), *ways.values()):
        step()
    assert bench.weights_differ(model, nets) < 1e-5
    assert (model.member(0)['head.weight'] - before).abs().max() > timing.LR / 2
    assert all(p.grad is None for p in model.parameters())


def test_the_loop_sees_the_model_s_loss():
    model, nets, data, _ = both()
    parts = [bench.member_loss(model, net, s, a) for net, s, a in
             zip(nets, model.deal(data['state']), model.deal(data['action']))]
    out = model(data)
    assert out['loss'].item() == pytest.approx(sum(parts).item(), rel=1e-6)
    assert out['loss_per_member'].item() == pytest.approx(sum(parts).item() / 2, rel=1e-6)
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)               # two networks, two data


@pytest.mark.parametrize('what', ('weight', 'clip', 'decay', 'windows'))
def test_a_difference_is_noticed(monkeypatch, what):
    """A weight, one clip for all members, another weight decay, or swapped windows: nothing is timed."""
    model, nets, data, ways = both()
    if what == 'weight':
        with torch.no_grad():
            nets[1].transformer.h[0].mlp.c_fc.bias[3] += 1e-3
    if what == 'clip':                                      # Adam forgets a factor, but not from step to step
        monkeypatch.setattr(timing, 'CLIP', 1e-9)
        ways['loop'] = lambda step=ways['loop']: (setattr(timing, 'CLIP', 1e9), step())
    if what == 'decay':
        monkeypatch.setattr(timing, 'DECAY', 1.0)
        ways['loop'] = bench.loop_step(model, nets, data, clock())
    if what == 'windows':
        ways['loop'] = bench.loop_step(model, nets, {k: v.flip(0) for k, v in data.items()}, clock())
    with pytest.raises(SystemExit, match='not the same function'):
        bench.equal(model, nets, data, ways, clock())


def test_a_key_s_bias_may_drift():
    """Its gradient is rounding; that of its neighbours is not, and counts."""
    model, nets, _, _ = both()
    bias = nets[0].transformer.h[0].attn.c_attn.bias
    with torch.no_grad():
        bias[16:32] += 1
    assert bench.weights_differ(model, nets) == 0
    with torch.no_grad():
        bias[32] += 1e-3
    assert bench.weights_differ(model, nets) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_step_rows(monkeypatch, dtype):
    """Ratios are taken within a repetition; the floor follows from flops_per_sample."""
    seconds = {'stacked': [2.0, 6.0, 1.0], 'loop': [1.0, 4.0, 1.0], 'matmul': [0.5, 0.5, 0.5]}
    c = clock(dtype)
    monkeypatch.setattr(c, 'times', lambda steps: {name: seconds[name] for name in steps})
    row, = bench.step_rows(TINY, c, 4)
    assert row['dtype'] == dtype and row['outputs_differ'] < (1e-6 if dtype == 'float32' else 0.1)
    assert row['ratios'] == [2, 1.5, 1] and row['ratio'] == 1.5
    assert (row['stacked_ms'], row['loop_ms'], row['windows']) == (2000, 1000, 4)
    assert row['gflops'] == pytest.approx(4 * arx5_gpt.Model(TINY).flops_per_sample() / 2 / 1e9)
    assert row['matmul_gflops'] == pytest.approx(2 * (2 * 8) * 16 * 64 / 0.5 / 1e9)


def test_rollout_rows(monkeypatch, capsys):
    """As many frames whatever the way; chunk = 1 makes cached exact; without MuJoCo its rows are left out."""
    from data.arx5 import env

    def none():
        raise SystemExit('ARX5 needs: ...')
    monkeypatch.setattr(env, 'mujoco', none)
    rows = bench.rollout_rows(*bench.untrained(TINY, clock(), 5, 12), clock(), 12, real=False)
    assert capsys.readouterr().out == 'rows of MuJoCo left out: ARX5 needs: ...\n'
    assert [(r['way'], r['trajectories'], r['frames']) for r in rows] == [('exact', 5, 12), ('cached', 5, 12)]
    for row in rows:
        assert row['frames_per_s'] == pytest.approx(60 / row['seconds'])
    assert rows[0]['from_exact'] == 0 < rows[1]['from_exact'] and rows[0]['from_data'] is None
    exact = replace(TINY, chunk=1)
    rows = bench.rollout_rows(*bench.untrained(exact, clock(), 5, 12), clock(), 12, real=False)
    assert rows[1]['from_exact'] == 0


def test_rows_of_mujoco():
    pytest.importorskip('mujoco')
    ways = bench.mujoco_ways(3, 12)
    assert ('mujoco', 1) in ways and all(way().shape == (3, 12, 14) for way in ways.values())


def episode(i):
    rng = np.random.default_rng(i)
    action = rng.standard_normal((100, 7), dtype=np.float32)
    action[-1] = 0
    return {'state': rng.standard_normal((100, 14), dtype=np.float32), 'action': action}


def test_rollout_of_a_trained_run(monkeypatch, tmp_path):
    """--ckpt: its weights; context and commands are real, so that the distance to the data is known too."""
    from data.writer import write
    monkeypatch.setattr(bench, 'mujoco_ways', lambda n, K: {})
    write(tmp_path / 'set', episode, 2, seed=0, val='0.5', workers=1, command='tests',
          info={'source': 'noise', 'revision': '', 'fps': 50, 'units': {}})
    model = arx5_gpt.Model(TINY)
    model.state_std.fill_(2.0)
    meta = dict(step=1, model='arx5_gpt', model_config=asdict(TINY), metrics={}, data_sha='',
                config={'data_dir': str(tmp_path), 'dataset': 'set'})
    run = tmp_path / 'run'
    run.mkdir()
    checkpoint.save(str(run), 1, model.state_dict(), None, {}, meta)
    loaded, state, action = bench.trained(str(run), clock(), 5, 12)
    assert loaded.state_std[0] == 2 and state.shape == (5, 20, 14) and action.shape == (5, 19, 7)
    exact, _ = bench.rollout_rows(loaded, state, action, clock(), 12, real=True)
    assert (exact['trajectories'], exact['from_exact']) == (5, 0) and exact['from_data'] > 0
    truth, context = state[:, 8:], {'state': state[:, :8], 'action': action[:, :7]}
    guess = loaded.rollout(context, action[:, None, 7:], chunk=1)['state'][:, 0]
    assert exact['from_data'] == pytest.approx(((guess - truth) / 2).square().mean().sqrt().item(), rel=1e-4)
    said, _ = script('bench/versus_arx5_gpt.py', '--what=rollout', f'--ckpt={run}', '--candidates=3',
                     '--frames=4', '--reps=1', '--device=cpu', f'--out={tmp_path}/x.json')
    rows = json.loads((tmp_path / 'x.json').read_text())['rows']
    assert [row['trajectories'] for row in rows[:2]] == [3, 3] and rows[0]['from_data'] > 0
    assert 'exact' in said


def test_command_line(tmp_path):
    """JSON with what one must know to repeat it; mistakes get one line."""
    flags = '--preset=cpu', '--batch=2', '--reps=1', f'--out={tmp_path}/step.json', '--dtypes=float32', \
        '--depth=1'
    said, _ = script('bench/versus_arx5_gpt.py', *flags)
    saved = json.loads((tmp_path / 'step.json').read_text())
    assert saved['command'] == 'python bench/versus_arx5_gpt.py ' + ' '.join(flags)
    assert saved.keys() >= {'device', 'threads', 'torch', 'reps'} and len(saved['rows'][0]['ratios']) == 1
    header = said.splitlines()[0].split()
    assert header == [key for key in saved['rows'][0] if key != 'ratios'] and len(said.splitlines()) == 2
    for wrong, line, code in (
            (['--what=speed'], "what = 'speed': choose from step, rollout", 1),
            (['--preset=huge'], "preset = 'huge': arx5_gpt has tiny, cpu, full", 2),
            (['--dtypes=float16'], 'dtype = float16: choose from float32, bfloat16', 1),
            (['--batch=3', '--preset=cpu'], 'batch = 3: make it a multiple of members = 2', 1),
            (['--unroll=2'], 'noise, unroll > 1 and action_repr = delta_prev: the loop of plain', 1),
            (['--ckpt=out/run'], "ckpt = 'out/run' is for --what=rollout, not for step", 1),
            (['--what=rollout', f'--ckpt={tmp_path}'], 'no checkpoint in', 1),
            (['--frames=0'], 'frames = 0: must be at least 1', 1)):
        errors = script('bench/versus_arx5_gpt.py', f'--out={tmp_path}/y.json', *wrong, code=code)[1]
        assert errors.startswith(line) and errors.count('\n') == 1, wrong
