"""bench/ensemble.py: the plain way is the same function as the stacked one, so that only the time differs."""
import json

import pytest
import torch
from conftest import ROOT, script

import arx5_gpt
from bench import ensemble as bench


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A network of a few thousand weights, and what the command line resolves 'auto' to."""
    monkeypatch.setitem(bench.SIZES, 'tiny', (4, dict(depth=2, heads=2, hidden=16, history=8, chunk=4)))
    for key, value in dict(device='cpu', dtypes=['float32'], sizes=('tiny',), reps=3, loader_steps=3, frames=12,
                           candidates=5).items(): monkeypatch.setattr(bench, key, value)
    for key in ('device', 'dtype', 'reps', 'loader_steps'):          # measure sets these in bench/step.py
        monkeypatch.setattr(bench.timing, key, getattr(bench.timing, key))
    bench.timing.device, bench.timing.dtype = 'cpu', 'float32'
    torch.manual_seed(0)


def both(size='tiny'):
    """A model off its start, a batch, its members as plain networks, and both ways to step."""
    model, data = bench.build(size)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.1)
    nets = [bench.Member(model, i) for i in range(model.cfg.members)]
    return model, nets, data, {'stacked': bench.stacked_step(model, data), 'loop': bench.loop_step(model, nets, data)}


@pytest.mark.parametrize('members', (1, 2, 3))
@pytest.mark.parametrize('clip', (1.0, 1e-3))
def test_both_ways_are_the_same_step(monkeypatch, members, clip):
    """Outputs, losses, and the weights after several steps, where the clip binds and where it differs per member."""
    monkeypatch.setattr(bench, 'members', members)
    monkeypatch.setattr(bench, 'batch', 2 * members)
    monkeypatch.setattr(bench, 'CLIP', clip)
    model, nets, data, ways = both()
    data['state'][:2] *= 3                                           # the first member has the larger gradient
    before = model.member(0)['head.weight'].clone()
    apart = bench.equal(model, nets, data, ways)
    assert set(apart) == {'outputs_differ', 'losses_differ', 'weights_differ'} and max(apart.values()) < 1e-6
    for step in (*ways.values(), *ways.values()): step()
    assert bench.weights_differ(model, nets) < 1e-5
    assert (model.member(0)['head.weight'] - before).abs().max() > bench.LR / 2
    assert all(p.grad is None for p in model.parameters())


def test_the_loop_sees_the_model_s_loss():
    model, nets, data, _ = both()
    parts = [bench.member_loss(model, net, s, a) for net, s, a in
             zip(nets, model.deal(data['state']), model.deal(data['action']))]
    out = model(data)
    assert out['loss'].item() == pytest.approx(sum(parts).item(), rel=1e-6)
    assert out['loss_member'].item() == pytest.approx(sum(parts).item() / 2, rel=1e-6)
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)               # two networks, two data


@pytest.mark.parametrize('what', ('weight', 'clip', 'decay', 'windows'))
def test_a_difference_is_noticed(monkeypatch, what):
    """A weight, a clip for all members together, another weight decay, or swapped windows: nothing is timed."""
    model, nets, data, ways = both()
    if what == 'weight':
        with torch.no_grad(): nets[1].transformer.h[0].mlp.c_fc.bias[3] += 1e-3
    if what == 'clip':                                               # Adam forgets a factor, but not from step to step
        monkeypatch.setattr(bench, 'CLIP', 1e-9)
        ways['loop'] = lambda step=ways['loop']: (setattr(bench, 'CLIP', 1e9), step())
    if what == 'decay':
        monkeypatch.setattr(bench, 'DECAY', 1.0)
        ways['loop'] = bench.loop_step(model, nets, data)
    if what == 'windows':
        ways['loop'] = bench.loop_step(model, nets, {k: v.flip(0) for k, v in data.items()})
    with pytest.raises(SystemExit, match='not the same function'): bench.equal(model, nets, data, ways)


def test_a_key_s_bias_may_drift():
    """Its gradient is rounding; that of its neighbours is not, and counts."""
    model, nets, _, _ = both()
    bias = nets[0].transformer.h[0].attn.c_attn.bias
    with torch.no_grad(): bias[16:32] += 1
    assert bench.weights_differ(model, nets) == 0
    with torch.no_grad(): bias[32] += 1e-3
    assert bench.weights_differ(model, nets) == pytest.approx(1e-3, rel=1e-3)


def test_step_rows(monkeypatch):
    """Ratios are taken within a repetition; the floor follows from flops_per_sample."""
    monkeypatch.setattr(bench, 'what', 'step')
    seconds = {'stacked': [2.0, 6.0, 1.0], 'loop': [1.0, 4.0, 1.0], 'matmul': [0.5, 0.5, 0.5]}
    monkeypatch.setattr(bench.timing, 'times', lambda steps: {name: seconds[name] for name in steps})
    monkeypatch.setattr(bench, 'dtypes', ['float32', 'bfloat16'])
    rows = bench.measure()
    assert [row['dtype'] for row in rows] == ['float32', 'bfloat16'] and rows[0]['outputs_differ'] < 1e-6
    assert rows[0]['ratios'] == [2, 1.5, 1] and rows[0]['ratio'] == 1.5
    assert (rows[0]['stacked_ms'], rows[0]['loop_ms'], rows[0]['windows']) == (2000, 1000, 4)
    model, _ = bench.build('tiny')
    assert rows[0]['gflops'] == pytest.approx(4 * model.flops_per_sample() / 2 / 1e9)
    assert rows[0]['matmul_gflops'] == pytest.approx(2 * (2 * 8) * 16 * 64 / 0.5 / 1e9)


def test_rollout_rows(monkeypatch, capsys):
    """As many frames whatever the way; within one window cached is exact; without MuJoCo its rows are left out."""
    from data.arx5 import env
    def none(): raise SystemExit('ARX5 needs: ...')
    monkeypatch.setattr(bench, 'what', 'rollout')
    monkeypatch.setattr(env, 'mujoco', none)
    shape = dict(depth=2, heads=2, hidden=16, history=8, chunk=4)
    monkeypatch.setitem(bench.SIZES, 'tiny', (4, shape))
    rows = bench.measure()
    assert capsys.readouterr().out == 'rows of MuJoCo left out: ARX5 needs: ...\n'
    assert [(row['way'], row['trajectories'], row['frames']) for row in rows] == [('exact', 5, 12), ('cached', 5, 12)]
    for row in rows: assert row['frames_per_s'] == pytest.approx(60 / row['seconds'])
    assert rows[0]['from_exact'] == 0 < rows[1]['from_exact'] and rows[0]['from_data'] is None
    monkeypatch.setitem(bench.SIZES, 'tiny', (4, shape | dict(chunk=1)))
    assert bench.measure()[1]['from_exact'] == 0


def test_rows_of_mujoco():
    pytest.importorskip('mujoco')
    ways = bench.mujoco_ways(3)
    assert ('mujoco', 1) in ways and all(way().shape == (3, 12, 14) for way in ways.values())


def test_rollout_of_a_trained_run(monkeypatch, tmp_path):
    """--ckpt: its weights; context and commands are real, so that the distance to the data is known too."""
    from dataclasses import asdict

    import checkpoint
    from data.writer import write
    monkeypatch.setattr(bench, 'what', 'rollout')
    monkeypatch.setattr(bench, 'ckpt', str(tmp_path / 'run'))
    monkeypatch.setattr(bench, 'mujoco_ways', lambda n: {})
    write(tmp_path / 'set', bench.random_episode, 2, seed=0, val='0.5', workers=1, command='tests',
          info={'source': 'noise', 'revision': '', 'fps': 50, 'units': {}})
    model, _ = bench.build('tiny')
    model.state_std.fill_(2.0)
    meta = dict(step=1, model='arx5_gpt', model_config=asdict(model.cfg), metrics={},
                config={'data_dir': str(tmp_path), 'dataset': 'set'})
    checkpoint.save(str(tmp_path / 'run'), 1, model.state_dict(), None, {}, meta)
    loaded, state, action = bench.trained()
    assert loaded.state_std[0] == 2 and state.shape == (5, 20, 14) and action.shape == (5, 19, 7)
    exact, cached = bench.measure()
    assert (exact['size'], exact['trajectories'], exact['from_exact']) == ('ckpt', 5, 0) and exact['from_data'] > 0
    truth = state[:, 8:]
    context = {'state': state[:, :8], 'action': action[:, :7]}
    guess = loaded.rollout(context, action[:, None, 7:], chunk=1)['state'][:, 0]
    assert exact['from_data'] == pytest.approx(((guess - truth) / 2).square().mean().sqrt().item(), rel=1e-4)


def test_loader_rows(monkeypatch):
    """A folder of the real shape, read from the disk and from memory."""
    monkeypatch.setattr(bench, 'what', 'loader')
    disk, memory = bench.measure()
    assert (disk['data_on_device'], memory['data_on_device']) == (False, True)
    for row in (disk, memory):
        assert row['windows'] == 4 and 0 < row['waited_ms'] < row['ms']
        assert row['waited'] == pytest.approx(row['waited_ms'] / row['ms'])


def test_command_line(tmp_path):
    """JSON with what one must know to repeat it; mistakes get one line."""
    flags = '--sizes=cpu', '--batch=2', '--reps=1', f'--out={tmp_path}/step.json', '--dtypes=float32'
    said, _ = script('bench/ensemble.py', *flags)
    saved = json.loads((tmp_path / 'step.json').read_text())
    assert saved['command'] == 'python bench/ensemble.py ' + ' '.join(flags)
    assert saved.keys() >= {'device', 'threads', 'torch', 'reps'} and len(saved['rows'][0]['ratios']) == 1
    header = said.splitlines()[0].split()
    assert header == [key for key in saved['rows'][0] if key != 'ratios'] and len(said.splitlines()) == 2
    for wrong, line in ((('--what=speed',), 'what = speed: choose from step, rollout, loader, gpu'),
                        (('--sizes=huge',), 'sizes = huge: choose from full, cpu'),
                        (('--dtypes=float16',), 'dtypes = float16: choose from float32, bfloat16'),
                        (('--batch=3', '--sizes=cpu'), 'batch = 3: make it a multiple of members = 2'),
                        (('--ckpt=out/run',), "ckpt = 'out/run' is for --what=rollout, not for step"),
                        (('--what=gpu', '--device=cpu'), '--what=gpu wants a CUDA device, not device = cpu')):
        assert script('bench/ensemble.py', *wrong, code=1)[1] == line + '\n'


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu_rows(monkeypatch):
    """Four ways, the same weights after the same number of steps, and a graph is one launch."""
    monkeypatch.setattr(bench, 'device', 'cuda')
    monkeypatch.setattr(bench, 'what', 'gpu')
    monkeypatch.setattr(bench, 'dtypes', ['bfloat16'])
    rows = {row['way']: row for row in bench.measure()}
    assert list(rows) == ['loop', 'eager', 'compiled', 'graph']
    assert rows['loop']['launches'] > rows['eager']['launches'] > rows['compiled']['launches'] > 1
    assert rows['graph']['launches'] == 1
    bench.timing.dtype = 'float32'
    model, data = bench.build('tiny')
    other = arx5_gpt.Model(model.cfg).cuda().train()
    other.load_state_dict(model.state_dict())
    replay, step = bench.graphed(model, data), bench.stacked_step(other, data)
    for _ in range(4): step()                                        # the graph was captured after three steps
    replay()
    torch.cuda.synchronize()
    for p, q in zip(model.parameters(), other.parameters()): assert (p - q).abs().max() < 1e-4


def test_it_imports_from_the_repository():
    assert bench.__file__.startswith(ROOT) and bench.timing.__file__.startswith(ROOT)
