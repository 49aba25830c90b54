"""bench/step.py on every model of the contract, and what all benchmarks share (bench/timing.py)."""
import json
import os
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass
from glob import glob
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, script

import contract
import nanowm
from bench import step as bench
from bench import timing
from logger import PEAK, peak_of

MODELS = [name[:-3] for name in contract.model_files()]
QUICK = ['--preset=tiny', '--device=cpu', '--reps=2', '--loader_steps=2', '--rollout_frames=3']


def clock(**over):
    return timing.Clock(**dict(device='cpu', dtype='float32', reps=2) | over)


@dataclass
class Config:
    hidden: int = 8


def policy(pad=True):
    """A policy as small as the contract allows: two frames of state in, three actions out; it queues them."""
    class Model(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.cfg, self.queue = cfg, []
            self.fc = torch.nn.Sequential(
                torch.nn.Linear(2 * 5, cfg.hidden), torch.nn.Linear(cfg.hidden, 3 * 2))
            self.inferences = 0

        def net(self, state):
            return self.fc(state.flatten(1)).view(-1, 3, 2)

        def forward(self, batch):
            error = (self.net(batch['state']) - batch['action']).square().mean(2)
            return {'loss': (error * batch['mask']).mean() if 'mask' in batch else error.mean()}

        def reset(self):
            self.queue.clear()

        def act(self, obs):
            assert 'action' not in obs
            if not self.queue:
                self.inferences += 1
                self.queue = list(self.net(obs['state']).unbind(1))
            return self.queue.pop(0)[:, None]

        def configure_optimizers(self, lr, weight_decay, betas):
            return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay, betas=betas)

        def flops_per_sample(self):
            return 3 * 2 * 16 * self.cfg.hidden

    def example(cfg, n):
        return {'state': torch.randn(n, 2, 5), 'action': torch.randn(n, 3, 2),
                'mask': torch.ones(n, 3).bool()}

    return SimpleNamespace(__name__='policy', Model=Model, Config=Config, PAD=pad, example=example,
                           windows=lambda cfg: {'state': range(-1, 1), 'action': range(3)})


# ---- every model, by its command line ----

@pytest.mark.parametrize('what', ('step', 'rollout', 'loader'))
@pytest.mark.parametrize('name', MODELS)
def test_every_model(name, what, tmp_path):
    flags = f'--model={name}', f'--what={what}', *QUICK, f'--out={tmp_path}/x.json'
    said, _ = script('bench/step.py', *flags)
    saved = json.loads((tmp_path / 'x.json').read_text())
    assert saved['command'] == 'python bench/step.py ' + ' '.join(flags)
    assert saved.keys() >= {'device', 'threads', 'torch', 'reps'} and saved['model'] == name
    preset = contract.load(name).PRESETS['tiny']
    assert saved['model_config'] == json.loads(json.dumps(asdict(preset)))
    rows = saved['rows']
    assert said.splitlines()[0].split() == list(rows[0]) and len(said.splitlines()) == 1 + len(rows)
    for row in rows:
        assert row['mode'] == 'eager' and row['batch'] == 4 and row['ms'] > 0
        if what == 'step':
            assert row['samples_per_s'] == pytest.approx(4 / (row['ms'] / 1e3)) and row['mfu'] is None
            flops = 4 * contract.load(name).Model(preset).flops_per_sample()
            assert row['tflops'] == pytest.approx(flops / (row['ms'] / 1e3) / 1e12)
        if what == 'rollout':
            unit = 'frames' if hasattr(contract.load(name).Model, 'rollout') else 'answers'
            assert row[unit] == (4 * 3 if unit == 'frames' else 4)
            assert row[f'{unit}_per_s'] == pytest.approx(row[unit] / (row['ms'] / 1e3))
            assert row.get('ratio', 1) == pytest.approx(row['ms'] / rows[0]['ms'])
        if what == 'loader':
            assert 0 < row['waited_ms'] < row['ms']
            assert row['waited'] == pytest.approx(row['waited_ms'] / row['ms'])
    if what == 'loader':
        assert [row['data_on_device'] for row in rows] == [False, True]


def test_keys_of_the_config_are_flags(tmp_path):
    """The longer window reaches the model, is in the JSON and costs what the formula says."""
    sizes = {}
    for frames in (2, 3):
        script('bench/step.py', '--model=nanowm', *QUICK, f'--num_frames={frames}', '--injection=film',
               f'--out={tmp_path}/x.json')
        saved = json.loads((tmp_path / 'x.json').read_text())
        assert (saved['model_config']['num_frames'], saved['model_config']['injection']) == (frames, 'film')
        sizes[frames] = saved['rows'][0]['tflops'] * saved['rows'][0]['ms']
    assert sizes[3] / sizes[2] > 1.4
    said, _ = script('bench/step.py', '--model=arx5_gpt', '--preset=cpu', '--help')
    assert 'arx5_gpt.Config, preset cpu' in said and re.search(r'hidden +64 +token width', said)


@pytest.mark.parametrize('flags, line, code', [
    (['--what=speed'], "what = 'speed': choose from step, rollout, loader, gpu", 1),
    (['--what=gpu'], '--what=gpu wants a CUDA device, not device = cpu', 1),
    (['--preset=huge'], "preset = 'huge': nanowm has tiny, cpu, full, S, B, L", 2),
    (['--modes=fast'], 'modes = fast: choose from eager, compiled, graph', 1),
    (['--modes=graph'], 'modes = graph: wants a CUDA device, not device = cpu', 1),
    (['--dtype=float16'], 'dtype = float16: choose from float32, bfloat16', 1),
    (['--reps=0'], 'reps = 0: must be at least 1', 1), (['--batch=0'], 'batch = 0: must be at least 1', 1),
    (['--num_frame=4'], "unknown key 'num_frame' (--num_frame); did you mean 'num_frames'?", 2),
    (['--heads=3'], 'nanowm.Config: hidden = 32: must be a multiple of 4 * heads', 1),
    (['--model=nosuch'], "no model 'nosuch'; files that define one: ", 2),
    (['--model=data.loader'], "no model 'data.loader'; files that define one: ", 2),
    (['--model=arx5_gpt', '--batch=3'], 'arx5_gpt with 3 samples: 3 windows for 2 members', 1),
    (['--model=arx5_gpt', '--what=rollout', '--rollout_stride=2'], 'rollout_stride = 2: the rollout of', 1),
    (['--what=rollout', '--rollout_context=9'], 'rollout_context = 9: a window of nanowm has 1..3 frames', 1),
    (['--what=rollout', '--rollout_history=9'], 'nanowm: history = 9', 1),
    (['--device=cuda:99'], 'device = cuda:99: ', 1), (['--out={tmp}/a/b.json'], '--out={tmp}/a/b.json: ', 1),
    (['--out=/dev/null'], '--out=/dev/null: ', 1)])
def test_mistakes_get_one_line(flags, line, code, tmp_path):
    (tmp_path / 'a').write_text('a file, no folder')
    flags = [flag.replace('{tmp}', str(tmp_path)) for flag in flags]
    out = [] if any(flag.startswith('--out') for flag in flags) else [f'--out={tmp_path}/x.json']
    said, errors = script('bench/step.py', *QUICK, *out, *flags, code=code)
    assert errors.startswith(line.replace('{tmp}', str(tmp_path))) and errors.count('\n') == 1
    assert not said and os.listdir(tmp_path) == ['a']        # nothing was timed, nothing is left


@pytest.mark.parametrize('name', ('step', 'versus_nanowm', 'versus_arx5_gpt'))
def test_every_key_is_commented(name):
    with open(os.path.join(ROOT, 'bench', f'{name}.py')) as f:
        keys = re.findall(r'^[a-z]\w* = .*', f.read().partition('\ndef ')[0], re.M)
    assert len(keys) > 8
    for line in keys:
        assert re.search(r'  # \S', line), line


def test_walks_of_a_sampler(tmp_path):
    """The demo's dream three ways: the same to rounding, from fewer and fewer passes; see bench/plain.py."""
    script('bench/step.py', '--model=nanowm', '--what=rollout', *QUICK, '--candidates=3',
           '--rollout_context=2',
           '--rollout_stride=1', '--rollout_history=1', '--sample_steps=4', '--batch=2',
           f'--out={tmp_path}/x.json')
    rows = {row['walk']: row for row in json.loads((tmp_path / 'x.json').read_text())['rows']}
    # 3 windows of 6 futures: one frame of context, shared in the first window, and one that takes 4 steps
    assert rows['cached']['frame_forwards'] == 2 + 6 * 4 + 2 * 6 * (1 + 4)
    assert rows['plain']['frame_forwards'] == 3 * 6 * 4 * 2
    assert rows['original']['frame_forwards'] == 3 * 6 * 4 * 3
    assert rows['cached']['differs'] == 0 and 0 < max(row['differs'] for row in rows.values()) < 1e-4


# ---- the pieces ----

def test_a_policy_answers_anew_each_time():
    """What is timed is an inference: 2 repetitions, their untimed call, the warm-up; no queue is emptied."""
    M, seen = policy(), []
    real = M.Model.act
    M.Model.act = lambda self, obs: seen.append(self) or real(self, obs)
    row, = bench.rollout_rows(M, Config(), clock(), ['eager'], 6)
    assert seen[0].inferences == len(seen) == 2 + 1 + timing.WARM_UP
    assert row['answers'] == 6 and row['answers_per_s'] == pytest.approx(6 / (row['ms'] / 1e3))
    del M.Model.act
    with pytest.raises(SystemExit, match='neither rollout nor act'):
        bench.rollout_rows(M, Config(), clock(), ['eager'], 6)


def test_a_policy_s_windows_leave_the_episode(monkeypatch):
    """PAD = True: the loader gives a mask, and the step uses it."""
    M, masks = policy(), []
    monkeypatch.setattr(bench, 'loader_steps', 2)
    real = M.Model.forward
    M.Model.forward = lambda self, batch: masks.append(batch['mask']) or real(self, batch)
    rows = bench.loader_rows(M, Config(), clock(), ['eager'], 64)
    assert len(rows) == 2 and masks[0].shape == (64, 3) and masks[0].dtype == torch.bool
    assert not torch.cat(masks).all() and torch.cat(masks).any(1).all()


def test_rollout_input_folds_actions():
    cfg = nanowm.Config(height=4, width=4, hidden=16, heads=2, depth=2, num_frames=4, frame_skip=3,
                        action_dim=2)
    context, action = bench.rollout_input(nanowm, cfg, 2, futures=5, frames=7)
    assert context['latent'].shape == (2, 3, 4, 4, 4) and context['action'].shape == (2, 2, 6)
    assert action.shape == (2, 5, 7, 6) and action.flatten(0, 1).std(0).min() > 0        # futures differ
    context, _ = bench.rollout_input(nanowm, cfg, 2, futures=1, frames=1, given=1)
    assert context['latent'].shape[1] == 1 and context['action'].shape == (2, 0, 6)
    future = nanowm.Model(cfg).rollout(*bench.rollout_input(nanowm, cfg, 1, 2, 1))
    assert future['latent'].shape[:3] == (1, 2, 1)


def test_random_episodes():
    """The shape and dtype of a folder, the same for the same number; the last action leads nowhere."""
    cfg = nanowm.Config(height=4, width=4, hidden=16, heads=2, depth=2, num_frames=3)
    a, b, c = (timing.random_episode(nanowm, cfg, 10, i) for i in (1, 1, 2))
    assert a['latent'].shape == (10, 4, 4, 4) and a['latent'].dtype == np.float16
    assert a['action'].shape == (10, 7)
    assert not a['action'][-1].any() and a['action'][:-1].any(1).all()
    assert all(np.array_equal(a[key], b[key]) and not np.array_equal(a[key], c[key]) for key in a)
    before = torch.random.get_rng_state()
    timing.random_episode(nanowm, cfg, 10, 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_step_is_that_of_training(monkeypatch):
    """Weights after two steps by hand, with a clip that binds; a source of batches is asked once per step."""
    monkeypatch.setattr(timing, 'CLIP', 0.1)
    cfg = nanowm.Config(height=4, width=4, depth=2, hidden=16, heads=2, num_frames=2)
    torch.manual_seed(0)
    model = timing.randomise(nanowm.Model(cfg))
    other = nanowm.Model(cfg)
    other.load_state_dict(model.state_dict())
    data = {'latent': torch.randn(3, 2, 4, 4, 4), 'noise': torch.randn(3, 2, 4, 4, 4),
            'action': torch.randn(3, 2, 7), 't': torch.randint(1000, (3, 2))}
    given = []
    step = timing.train_step(model, lambda: given.append(1) or data, clock())
    optimizer = other.configure_optimizers(timing.LR, timing.DECAY, timing.BETAS)
    for _ in range(2):
        step()
        other(data)['loss'].backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), timing.CLIP)
        optimizer.step()
        optimizer.zero_grad()
    assert norm > timing.CLIP and len(given) == 2 and all(p.grad is None for p in model.parameters())
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(p, q)
    clipped = []
    model.clip_grad = clipped.append                         # a model that clips by itself
    step()
    assert clipped == [timing.CLIP]


def test_bf16_is_autocast():
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 2))

        def forward(self, batch):
            y = self.weight @ self.weight
            seen.append(y.dtype)
            return {'loss': y.float().sum()}

    for dtype in ('float32', 'bfloat16'):
        model = Model()
        timing.train_step(model, {}, clock(dtype=dtype), torch.optim.SGD(model.parameters(), 0.1))()
    assert seen == [torch.float32, torch.bfloat16]


def test_variants_take_turns(monkeypatch):
    """One untimed call each, then a b a b; medians, so that one slow call does not count."""
    calls, seconds = [], iter([1, 1, 5, 2, 1, 2, 100, 2, 3, 2])
    c = clock(reps=4)
    monkeypatch.setattr(c, 'timed', lambda step: (step(), next(seconds))[1])
    result = c.medians({name: lambda name=name: calls.append(name) for name in 'ab'})
    assert calls == list('ab' * 5) and result == {'a': 4, 'b': 2}             # a: 5 1 100 3
    assert timing.ratios([2, 6, 1], [1, 4, 1]) == [2, 1.5, 1]


def test_time_spent_waiting_is_seen():
    """Batches that take longer than the step: nearly all is waiting. What was fetched ahead is not timed."""
    def fetch(i):
        time.sleep(0.03)
        return {'x': torch.tensor(i)}
    got = []
    took, waited = clock().fed(fetch, lambda next_batch: lambda: got.append(int(next_batch()['x'])), 5)
    assert got == list(range(4 + timing.WARM_UP + 5)) and 0.015 < waited <= took and waited / took > 0.8
    took, waited = clock().fed(lambda i: {'x': torch.tensor(i)}, lambda n: lambda: (n(), time.sleep(0.03)), 5)
    assert waited / took < 0.2


def test_table():
    rows = [{'name': 'a', 'ms': 1234.567, 'mfu': None}, {'name': 'longer', 'ms': 0.5, 'mfu': 0.25}]
    text = timing.table(rows)
    assert text.splitlines() == ['  name    ms   mfu', '     a  1235     -', 'longer   0.5  0.25']


def test_one_table_of_peaks(monkeypatch):
    """logger.py has it; mfu is FLOPs per second over it, and nothing on a device that it does not know."""
    files = [path for folder in ('', 'bench') for path in glob(os.path.join(ROOT, folder, '*.py'))]
    found = [os.path.basename(path) for path in files if re.search(r'\d{3}e12', open(path).read())]
    assert found == ['logger.py']
    c = clock()
    assert c.rates(0.5, samples=4, flops=1e12) == {'ms': 500, 'samples_per_s': 8, 'tflops': 2, 'mfu': None}
    c.on_cuda = True
    monkeypatch.setattr(c, 'name', lambda: 'NVIDIA H100 80GB HBM3')
    assert c.rates(0.5, samples=4, flops=1e12)['mfu'] == 2e12 / PEAK['H100'] == 2e12 / peak_of('H100')


def test_result_files_have_a_name_per_device(monkeypatch):
    c = clock()
    assert timing.result_path('', 'step_x', c) == os.path.join(ROOT, 'bench', 'results', 'step_x_cpu.json')
    monkeypatch.setattr(c, 'name', lambda: 'NVIDIA H200')
    assert timing.result_path('', 'step_x', c).endswith('results/step_x_h200.json')
    assert not glob(os.path.join(ROOT, 'bench', 'results', 'step_x*'))


@pytest.mark.parametrize('number', (signal.SIGINT, signal.SIGTERM))
def test_a_stop_cleans_up_in_one_line(number):
    before, cleaned = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], []

    def main():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    try:
        with pytest.raises(SystemExit, match='stopped; nothing was saved'):
            timing.stoppable(main)
    finally:
        for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(s, handler)
    assert cleaned


def test_it_imports_from_the_repository():
    assert bench.__file__.startswith(ROOT) and timing.__file__.startswith(ROOT) and ROOT in sys.path
