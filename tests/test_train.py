"""The training loop as a program: exact resume, ranks, faults. Every subprocess costs seconds, so each does several things."""
import json
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
import torch
from conftest import TINY, run, start
from safetensors.torch import load_file

import checkpoint

RESUMABLE = ['--ema_decay=0.99', '--lr_schedule=cosine', '--save_every=3', '--val_every=3', '--max_steps=6']


def same(a, b, *files):
    for file in files:
        with open(os.path.join(a, file), 'rb') as f, open(os.path.join(b, file), 'rb') as g:
            assert f.read() == g.read(), f'{file} of {a} and {b} differ'


def step_lines(text): return re.findall(r'step (\d+)/\d+ \| loss ([\d.]+)', text)


@pytest.mark.parametrize('ranks', (1, 2))
def test_resume_is_exact(train, tmp_path, ranks):
    """6 steps at once = 3 steps, stop, 3 steps: weights, averaged weights and optimizer, to the byte."""
    whole, _ = train(f'--out_dir={tmp_path}/whole', '--micro_batch=1', *RESUMABLE, ranks=ranks)
    train(f'--out_dir={tmp_path}/parts', '--micro_batch=1', *RESUMABLE, '--max_steps=3', '--lr_decay_steps=6', ranks=ranks)
    second, _ = train(f'--out_dir={tmp_path}/parts', '--micro_batch=1', *RESUMABLE, '--resume=True', ranks=ranks)
    a, b = (f'{tmp_path}/{name}/step_0000006' for name in ('whole', 'parts'))
    same(a, b, 'model.safetensors', 'ema.safetensors')
    assert step_lines(whole)[3:] == step_lines(second)
    x, y = (torch.load(f'{d}/state.pt', weights_only=True)['state'] for d in (a, b))
    assert all(torch.equal(x[i][k], y[i][k]) for i in x for k in x[i])
    logs = {}
    for name in ('whole', 'parts'):
        with open(tmp_path / name / 'logs.json.txt') as f: rows = [json.loads(line) for line in f]
        logs[name] = {(r['step'], k): v for r in rows for k, v in r.items() if k in ('train/loss', 'val/loss')}
    assert logs['whole'] == logs['parts']


def test_one_and_two_ranks_see_the_same_data(train, tmp_path, data_dir):
    """Gradients of one step, with t and noise given, agree to 1e-6; so do the sample ids."""
    script = tmp_path / 'gradient.py'
    script.write_text(GRADIENT)
    for ranks in (1, 2):
        run(script, data_dir, tmp_path / f'{ranks}.pt', ranks=ranks, PYTHONPATH=os.path.dirname(os.path.abspath('train.py')))
    one, two = (torch.load(tmp_path / f'{ranks}.pt') for ranks in (1, 2))
    assert sorted(one['index']) == sorted(two['index'])
    for key in one['grad']:
        assert (one['grad'][key] - two['grad'][key]).abs().max() <= 1e-6 * max(1, one['grad'][key].abs().max())


GRADIENT = '''
import os, sys, torch, torch.distributed as dist
from contextlib import nullcontext
from torch.nn.parallel import DistributedDataParallel as DDP
import nanowm
from data.loader import Store
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1: dist.init_process_group("gloo")
cfg = nanowm.Config(input="video", height=12, width=16, channels=3, action_dim=2, hidden=32, heads=2, depth=2, patch=4)
torch.manual_seed(0)
raw = nanowm.Model(cfg)
with torch.no_grad():
    for p in raw.parameters(): p.add_(torch.randn_like(p) * 0.05)
net = DDP(raw) if world > 1 else raw
store, B, accum = Store(sys.argv[1] + "/tiny_pixels", "train", nanowm.windows(cfg)), 8, 2
g = torch.Generator().manual_seed(1)
t, noise = torch.randint(1000, (B, 4), generator=g), torch.randn(B, 4, 3, 12, 16, generator=g)
batch = store.batch(5, B, 0, rank, world) | {"t": t[rank::world], "noise": noise[rank::world]}
for i in range(accum):
    with net.no_sync() if world > 1 and i < accum - 1 else nullcontext():
        (net({k: v[i::accum] for k, v in batch.items()})["loss"] / accum).backward()
index = [None] * world
if world > 1: dist.all_gather_object(index, batch["index"].tolist())
else: index = [batch["index"].tolist()]
if rank == 0: torch.save({"grad": {k: p.grad for k, p in raw.named_parameters()}, "index": sum(index, [])}, sys.argv[2])
if world > 1: dist.destroy_process_group()
'''


def wait_for(process, pattern, seconds=120):
    """Read stdout until a line matches."""
    lines, end = [], time.time() + seconds
    while time.time() < end:
        line = process.stdout.readline()
        lines.append(line)
        if re.search(pattern, line): return lines
        if not line and process.poll() is not None: break
    raise AssertionError('never printed ' + pattern + '\n' + ''.join(lines) + process.stderr.read())


@pytest.mark.parametrize('ranks, sig', ((1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)))
def test_stop_signals_save_and_resume(data_dir, tmp_path, ranks, sig):
    args = ['train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', *TINY,
            '--save_every=100000', '--val_every=100000', '--max_steps=100000']
    process = start(*args, ranks=ranks)
    wait_for(process, r'step 5/')
    process.send_signal(sig)
    rest, errors = process.communicate(timeout=120)
    assert ranks > 1 or process.returncode == 0, errors        # torchrun itself exits as killed; its workers have saved
    stopped = int(re.search(r'stopped at step (\d+); --resume=True', rest)[1])
    assert checkpoint.pointer(tmp_path / 'out', 'latest') == checkpoint.step_name(stopped)
    if ranks == 1 and sig == signal.SIGTERM:
        resumed, _ = run(*args, f'--max_steps={stopped + 2}', '--resume=True')
        unbroken, _ = run(*args, f'--max_steps={stopped + 2}', f'--out_dir={tmp_path}/unbroken')
        assert step_lines(resumed) == step_lines(unbroken)[-2:]
        same(*(tmp_path / d / checkpoint.step_name(stopped + 2) for d in ('out', 'unbroken')), 'model.safetensors')


def test_loss_that_is_not_finite_names_its_samples(train, data_dir, tmp_path):
    _, errors = train('--lr=1e30', '--grad_clip=0', '--max_steps=5', '--val_every=1000', '--seed=3', code=1)
    step, ids = re.search(r'loss is not finite at step (\d+), rank 0, sample ids (\[.*?\])', errors).groups()
    import nanowm
    from data.loader import Store
    store = Store(f'{data_dir}/tiny_pixels', 'train', nanowm.windows(nanowm.Config(input='video', num_frames=2)))
    assert json.loads(ids) == store.ids(int(step), 4, 3).tolist() and 'Traceback' not in errors
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def test_two_runs_in_one_out_dir(data_dir, tmp_path, train):
    """The second is refused while the first lives; a killed one frees the folder; a finished one wants --resume."""
    args = ['--save_every=2', '--val_every=100000']
    first = start('train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', *TINY, *args,
                  '--max_steps=100000')
    wait_for(first, r'step 5/')
    _, errors = train(*args, '--max_steps=10', code=1)
    assert errors.strip().endswith('is in use by another run; wait for it, or choose another --out_dir')
    first.kill()
    first.communicate()
    _, errors = train(*args, '--max_steps=10', code=1)
    assert 'already holds a run: --resume=True goes on with it' in errors
    done = int(checkpoint.pointer(tmp_path / 'out', 'latest')[5:])
    out, _ = train(*args, f'--max_steps={done + 2}', '--resume=True')
    assert [int(n) for n, _ in step_lines(out)] == [done + 1, done + 2]
    for flags, words in ((['--hidden=64'], 'was trained with hidden = 32, now 64'),
                         (['--num_frames=3', '--depth=4'], 'depth = 2, now 4')):
        _, errors = train(*args, *flags, '--resume=True', '--max_steps=1000', code=1)
        assert words in errors and 'Traceback' not in errors
    assert 'nothing to do' in train(*args, '--max_steps=2', '--resume=True')[0]


def test_user_mistakes_are_one_line(train, tmp_path):
    for flags, code, words in (
            (['--dataset='], 1, "dataset = '': name a folder"),
            (['--batch_size=5', '--micro_batch=2'], 1, 'batch_size = 5 is not micro_batch 2'),
            (['--depth=3'], 1, 'nanowm.Config: depth = 3: blocks come in space/time pairs'),
            (['--width=17'], 2, 'width = 17 (--width) contradicts')):
        _, errors = train(*flags, code=code)
        assert words in errors and 'Traceback' not in errors and len(errors.strip().splitlines()) == 1
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def test_full_disk_while_saving(data_dir, tmp_path):
    """A file size limit stands for the full disk: the run ends with one line, the checkpoint before it stays whole."""
    args = ['--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', *TINY, '--val_every=100000']
    run('train.py', *args, '--max_steps=2')
    limited = 'import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); ' \
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.argv = sys.argv[1:]; runpy.run_path("train.py")'
    _, errors = run('-c', limited, 'train.py', *args, '--max_steps=4', '--resume=True', code=1)
    assert 'could not save' in errors and 'make room' in errors and 'Traceback' not in errors
    assert sorted(p.name for p in (tmp_path / 'out').glob('*step*')) == ['step_0000002']
    model, meta = checkpoint.load(tmp_path / 'out')
    assert meta['step'] == 2
    run('train.py', *args, '--max_steps=4', '--resume=True')
    run('train.py', *args, '--max_steps=4', f'--out_dir={tmp_path}/unbroken')
    same(*(tmp_path / d / 'step_0000004' for d in ('out', 'unbroken')), 'model.safetensors')


def test_kill_in_the_middle_of_a_save(data_dir, tmp_path):
    """kill -9 while the files of a checkpoint are half written: latest still reads, and the resumed run is exact."""
    args = ['--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', *TINY, '--save_every=3',
            '--val_every=100000', '--max_steps=9']
    kill = 'import os, signal, runpy, sys, torch; sys.argv = sys.argv[1:]; n = [0]; real = torch.save\n' \
        'def save(state, path):\n n[0] += 1; real(state, path)\n if n[0] == 2: os.truncate(path, 100); os.kill(os.getpid(), signal.SIGKILL)\n' \
        'torch.save = save; runpy.run_path("train.py")'
    run('-c', kill, 'train.py', *args, code=-signal.SIGKILL)
    assert sorted(p.name for p in (tmp_path / 'out').glob('*step*')) == ['step_0000003', 'tmp.step_0000006']
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 3
    run('train.py', *args, '--resume=True')
    run('train.py', *args, f'--out_dir={tmp_path}/unbroken')
    same(*(tmp_path / d / 'step_0000009' for d in ('out', 'unbroken')), 'model.safetensors', 'state.pt')
    assert not list((tmp_path / 'out').glob('tmp.*'))


def test_best_keep_and_power_ema(train, tmp_path):
    """keep prunes, but never what best names; the power schedule averages as its formula says."""
    out, _ = train('--save_every=1', '--val_every=2', '--keep=1', '--keep_every=4', '--max_steps=6', '--lr=1e-3',
                   '--ema_decay=0.9', '--ema_power=0.75', '--log=tensorboard')
    folder = tmp_path / 'out'
    steps = {int(p.name[5:]) for p in folder.glob('step_*')}
    best = int(checkpoint.pointer(folder, 'best')[5:])
    assert {4, 6, best} <= steps <= {4, 6, best}
    meta = checkpoint.read(checkpoint.find(folder), 'meta.json')
    assert meta['best'] == min(float(v) for v in [checkpoint.read(str(folder / checkpoint.step_name(best)), 'meta.json')['best']])
    assert list((folder / 'tensorboard').iterdir())
    final, averaged = (load_file(folder / 'step_0000006' / f) for f in ('model.safetensors', 'ema.safetensors'))
    assert not torch.equal(final['final_layer.linear.weight'], averaged['final_layer.linear.weight'])
    assert torch.equal(final['action_mean'], averaged['action_mean'])


def test_statistics_reach_the_checkpoint(train, tmp_path, data_dir):
    train('--max_steps=1')
    with open(f'{data_dir}/tiny_pixels/meta.json') as f: stats = json.load(f)['stats']['action']
    model, _ = checkpoint.load(tmp_path / 'out')
    assert model.action_mean.tolist() == pytest.approx(stats['mean'], rel=1e-6)
    assert model.action_std.tolist() == pytest.approx(stats['std'], rel=1e-6)


def test_imports_stay_light():
    """--help and `import nanowm` start no compiler, no environment, no image or tracker package."""
    heavy = ('torch._dynamo', 'minihack', 'nle', 'gymnasium', 'imageio', 'PIL', 'tensorboard', 'matplotlib', 'wandb')
    code = 'import sys\nsys.argv = ["train.py", "--help"]\n{}\nbad = [m for m in %r if m in sys.modules]\n' \
        'print("heavy:", bad, file=sys.stderr); sys.exit(0)' % (heavy,)
    for action in ('import nanowm', 'import runpy\ntry: runpy.run_path("train.py")\nexcept SystemExit as e: assert not e.code'):
        _, errors = run('-c', code.format(action))
        assert errors.strip() == 'heavy: []', errors


def test_lr_schedule_closed_form(train):
    out, _ = train('--max_steps=6', '--warmup_steps=2', '--lr_schedule=cosine', '--lr=1e-2', '--min_lr=1e-3', '--val_every=100')
    got = [float(v) for v in re.findall(r'lr ([\d.e-]+)', out)]
    expected = [5e-3, 1e-2] + [1e-3 + 9e-3 * 0.5 * (1 + np.cos(np.pi * i / 4)) for i in range(4)]
    assert got == pytest.approx(expected, rel=0.06)            # printed with two digits


