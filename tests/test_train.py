"""
The training loop as a program: exact resume, ranks, faults. What a process of its own can show (signals, kills, ranks,
limits) costs seconds each and runs side by side where it can; the rest calls train.py inside this process.
"""
import json
import math
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, finish, run, script, start
from safetensors.torch import load_file
from test_eval_dynamics import make_robot

import checkpoint
import nanowm
from data.loader import Store
from logger import read_logs

RESUMABLE = ['--micro_batch=1', '--ema_decay=0.99', '--lr_schedule=cosine', '--save_every=3', '--val_every=3',
             '--max_steps=6', '--eval_every=3', '--best_metric=eval/psnr_moving', '--best_mode=min', '--keep=0']


def same(a, b, *files):
    for file in files:
        with open(os.path.join(a, file), 'rb') as f, open(os.path.join(b, file), 'rb') as g:
            assert f.read() == g.read(), f'{file} of {a} and {b} differ'


def step_lines(text): return re.findall(r'step (\d+)/\d+ \| loss ([\d.]+)', text)


def wait_for(process, pattern, seconds=120):
    """Read stdout until a line matches."""
    lines, end = [], time.time() + seconds
    while time.time() < end:
        line = process.stdout.readline()
        lines.append(line)
        if re.search(pattern, line): return lines
        if not line and process.poll() is not None: break
    raise AssertionError('never printed ' + pattern + '\n' + ''.join(lines) + process.stderr.read())


# ---- exact ----

@pytest.mark.parametrize('ranks', (1, 2))
def test_resume_is_exact(tiny, tmp_path, ranks):
    """6 steps at once = 3 steps, a stop, 3 steps: weights, averaged weights, optimizer, best and logs, to the byte."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    text, _ = run(*tiny, *RESUMABLE, f'--out_dir={whole}', ranks=ranks)
    shutil.copytree(whole / 'step_0000003', parts / 'step_0000003')        # what a kill after step 3 would have left
    for pointer in ('latest', 'best'): checkpoint.write_text(f'{parts}/{pointer}', 'step_0000003')
    resumed, _ = run(*tiny, *RESUMABLE, f'--out_dir={parts}', '--resume=True', ranks=ranks)
    assert step_lines(text)[3:] == step_lines(resumed) and len(step_lines(resumed)) == 3
    a, b = (folder / 'step_0000006' for folder in (whole, parts))
    same(a, b, 'model.safetensors', 'ema.safetensors')
    x, y = (torch.load(folder / 'state.pt', weights_only=True)['state'] for folder in (a, b))
    assert x and all(torch.equal(x[i][k], y[i][k]) for i in x for k in x[i])
    a, b = (checkpoint.read(folder, 'meta.json') for folder in (a, b))
    assert a['metrics'] == b['metrics'] and a['best'] == b['best'] and 'eval/gain_over_shuffled' in a['metrics']
    for folder in (whole, parts): assert checkpoint.pointer(folder, 'best') == 'step_0000003'    # it is remembered
    logs = [{(row['step'], k): v for row in read_logs(folder / 'logs.json.txt') for k, v in row.items()
             if row['step'] > 3 and k not in ('train/ms', 'train/waited')} for folder in (whole, parts)]
    assert logs[0] == logs[1] and {k for _, k in logs[0]} >= {'train/loss', 'val/loss', 'train/lr', 'eval/psnr'}


def test_data_on_the_device_are_the_same_data(train, tmp_path):
    """Weights, logs and validation to the byte, wherever the batches are gathered."""
    flags = ['--max_steps=3', '--val_every=2', '--micro_batch=2', '--lr=1e-2']
    texts = [train(*flags, f'--data_on_device={where}', f'--out_dir={tmp_path}/{where}')[0] for where in (True, False)]
    assert step_lines(texts[0]) == step_lines(texts[1]) and len(step_lines(texts[0])) == 3
    same(*(tmp_path / str(where) / 'step_0000003' for where in (True, False)), 'model.safetensors', 'state.pt')
    _, errors = train('--data_on_device=maybe', code=1)
    assert "data_on_device = 'maybe': choose one of ('auto', True, False)" in errors


def test_one_and_two_ranks_see_the_same_data(tmp_path, data_dir):
    """Gradients of one step, with t and noise given, agree to 1e-6; so do the sample ids."""
    script = tmp_path / 'gradient.py'
    script.write_text(GRADIENT)
    one = start(script, data_dir, tmp_path / '1.pt', PYTHONPATH=ROOT)
    run(script, data_dir, tmp_path / '2.pt', PYTHONPATH=ROOT, ranks=2)
    finish(one)
    one, two = (torch.load(tmp_path / f'{ranks}.pt') for ranks in (1, 2))
    assert sorted(one['index']) == sorted(two['index']) and len(set(one['index'])) > 4
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
if world > 1: dist.barrier()
os._exit(0)                                                  # gradients are the matter here, not how gloo ends
'''


# ---- stop, kill, break ----

def test_stop_signals_and_two_runs_in_one_out_dir(tiny, tmp_path, train):
    """SIGTERM and SIGINT save and exit 0, and it goes on exactly. While a run lives nobody else gets its folder."""
    args = ['--save_every=100000', '--val_every=100000', '--max_steps=100000']
    term = start(*tiny, *args)
    interrupt = start(*tiny, *args, f'--out_dir={tmp_path}/other')
    wait_for(term, r'step 3/')
    _, errors = train(*args, code=1)
    assert errors.strip() == f'{tmp_path}/out is in use by another run; wait for it, or choose another --out_dir'
    wait_for(interrupt, r'step 3/')
    term.send_signal(signal.SIGTERM)
    interrupt.send_signal(signal.SIGINT)
    stopped = []
    for process, out_dir in (term, tmp_path / 'out'), (interrupt, tmp_path / 'other'):
        rest, _ = finish(process)
        stopped.append(int(re.search(r'stopped at step (\d+); --resume=True', rest)[1]))
        assert checkpoint.pointer(out_dir, 'latest') == checkpoint.step_name(stopped[-1])
    end = stopped[0] + 2
    resumed, _ = train(*args, f'--max_steps={end}', '--resume=True')
    unbroken, _ = train(*args, f'--max_steps={end}', f'--out_dir={tmp_path}/unbroken')
    assert step_lines(resumed) == step_lines(unbroken)[-2:]
    same(*(tmp_path / d / checkpoint.step_name(end) for d in ('out', 'unbroken')), 'model.safetensors')


def test_stop_signal_under_torchrun(tiny, tmp_path):
    """Both ranks stop at the same step. torchrun itself exits as killed; its workers have saved."""
    process = start(*tiny, '--save_every=100000', '--val_every=100000', '--max_steps=100000', ranks=2)
    wait_for(process, r'step 5/')
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=120)
    stopped = int(re.search(r'stopped at step (\d+); --resume=True', rest)[1])
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == stopped
    assert 'train.py", line' not in errors, errors         # torchrun's own traceback is not ours


def test_kill_in_the_middle_of_a_save(tiny, train, tmp_path):
    """kill -9 while the files of a checkpoint are half written: latest still reads, and the resumed run is exact."""
    args = ['--save_every=3', '--val_every=100000', '--max_steps=9']
    kill = '\n'.join(['import os, signal, runpy, sys, torch', 'sys.argv = sys.argv[1:]', 'n, real = [0], torch.save',
                      'def save(state, path):', '    n[0] += 1', '    real(state, path)',
                      '    if n[0] == 2: os.truncate(path, 100); os.kill(os.getpid(), signal.SIGKILL)',
                      'torch.save = save', 'runpy.run_path("train.py", run_name="__main__")'])
    run('-c', kill, *tiny, *args, code=-signal.SIGKILL)
    assert sorted(p.name for p in (tmp_path / 'out').glob('*step*')) == ['step_0000003', 'tmp.step_0000006']
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 3
    train(*args, '--resume=True')                            # the dead owner's lock is gone, too
    train(*args, f'--out_dir={tmp_path}/unbroken')
    same(*(tmp_path / d / 'step_0000009' for d in ('out', 'unbroken')), 'model.safetensors', 'state.pt')
    assert not list((tmp_path / 'out').glob('tmp.*'))


def test_full_disk_while_saving(tiny, train, tmp_path):
    """A file size limit stands for the full disk: the run ends with one line, the checkpoint before it stays whole."""
    train('--val_every=100000', '--max_steps=2')
    limited = '\n'.join(['import resource, runpy, signal, sys', 'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)',
                         'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))', 'sys.argv = sys.argv[1:]',
                         'runpy.run_path("train.py", run_name="__main__")'])
    _, errors = run('-c', limited, *tiny, '--val_every=100000', '--max_steps=4', '--resume=True', code=1)
    assert 'could not save' in errors and 'make room' in errors and 'Traceback' not in errors
    assert sorted(p.name for p in (tmp_path / 'out').glob('*step*')) == ['step_0000002']
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 2
    train('--val_every=100000', '--max_steps=4', '--resume=True')
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 4


def test_loss_that_is_not_finite_names_its_samples(tiny, data_dir, tmp_path):
    _, errors = run(*tiny, '--lr=1e30', '--grad_clip=0', '--max_steps=5', '--val_every=1000', '--seed=3', code=1)
    step, ids = re.search(r'is not finite at step (\d+), rank 0, sample ids (\[.*?\])', errors).groups()
    store = Store(f'{data_dir}/tiny_pixels', 'train', nanowm.windows(nanowm.Config(input='video', num_frames=2)))
    assert json.loads(ids) == store.ids(int(step), 4, 3).tolist() and 'Traceback' not in errors
    assert not os.path.exists(tmp_path / 'out' / 'latest')


# ---- one line for what the user can mend ----

@pytest.mark.parametrize('flags, code, words', [
    (['--dataset='], 1, "dataset = '': name a folder"),
    (['--batch_size=5', '--micro_batch=2'], 1, 'batch_size = 5 is not micro_batch 2 x accumulation x 1 processes'),
    (['--depth=3'], 1, 'nanowm.Config: depth = 3: blocks come in space/time pairs'),
    (['--width=17'], 2, 'width = 17 (--width) contradicts'),
    (['--lr_schedule=linear'], 1, "lr_schedule = 'linear': choose one of ('constant', 'cosine')"),
    (['--best_mode=most'], 1, "best_mode = 'most': choose one of ('min', 'max')"),
    (['--dtype=float16'], 1, "dtype = 'float16': choose one of ('float32', 'bfloat16')"),
    (['--num_frames=13'], 1, 'a window spans 13 frames'),
    (['--val_batches=0'], 1, 'val_batches = 0: must be at least 1'),
    (['--log=wandb'], 1, "log = 'wandb': choose one of ('', 'tensorboard')")])
def test_user_mistakes_are_one_line(train, tmp_path, flags, code, words):
    _, errors = train(*flags, code=code)
    assert words in errors and len(errors.strip().splitlines()) == 1
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def test_an_out_dir_that_holds_another_run(train, tmp_path, data_dir):
    """It wants --resume; and then the same model, trained on the same bytes."""
    assert 'nothing to resume' in train('--max_steps=1', '--resume=True')[0]
    _, errors = train('--max_steps=1', code=1)
    assert errors == f'{tmp_path}/out already holds a run: --resume=True goes on with it, --out_dir=... starts anew\n'
    for flags, words in ((['--hidden=64'], 'was trained with hidden = 32, now 64: set it back'),
                         (['--num_frames=3', '--depth=4'], 'num_frames = 2, now 3; depth = 2, now 4')):
        _, errors = train(*flags, '--resume=True', code=1)
        assert words in errors and len(errors.strip().splitlines()) == 1
    shutil.copytree(f'{data_dir}/tiny_pixels', tmp_path / 'tiny_pixels')
    meta = tmp_path / 'tiny_pixels' / 'meta.json'
    meta.write_text(meta.read_text().replace('"command": "tests"', '"command": "another"'))
    _, errors = train('--resume=True', f'--data_dir={tmp_path}', code=1)
    assert f'was trained on other data than {tmp_path}/tiny_pixels; choose another --out_dir' in errors
    state = tmp_path / 'out' / 'step_0000001' / 'state.pt'
    whole = state.read_bytes()
    state.write_bytes(whole[:100])
    _, errors = train('--max_steps=2', '--resume=True', code=1)
    assert f'cannot read {state}: ' in errors and len(errors.strip().splitlines()) == 1
    state.write_bytes(whole)
    before = (tmp_path / 'out' / 'logs.json.txt').read_bytes()
    assert 'nothing to do' in train('--max_steps=1', '--resume=True')[0]
    assert (tmp_path / 'out' / 'logs.json.txt').read_bytes() == before


def test_statistics_of_another_length(tmp_path, train, data_dir):
    """Statistics that do not fit the model's buffers: one line with both lengths, and nothing is trained."""
    shutil.copytree(f'{data_dir}/tiny_pixels', tmp_path / 'tiny_pixels')
    path = tmp_path / 'tiny_pixels' / 'meta.json'
    for wrong in ([0.0], [0.0] * 3):                         # one number would be broadcast without a word
        meta = json.loads(path.read_text())
        meta['stats']['action']['mean'] = wrong
        path.write_text(json.dumps(meta))
        _, errors = train('--max_steps=1', f'--data_dir={tmp_path}', code=1)
        assert errors == f'{tmp_path}/tiny_pixels/meta.json has {len(wrong)} numbers of mean for action, nanowm ' \
            'wants 2; make the data again\n'
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def test_members_share_a_batch_that_can_be_shared(tmp_path):
    """An ensemble of two and three windows per pass: one line that names the way out."""
    make_robot(tmp_path, n=3)
    for i, flags in enumerate((['--batch_size=3'], ['--batch_size=6', '--micro_batch=3'])):
        _, errors = script('train.py', '--model=arx5_gpt', '--dataset=robot', f'--data_dir={tmp_path}', '--depth=1',
                           '--heads=2', '--hidden=16', '--history=8', '--chunk=4', f'--out_dir={tmp_path}/{i}', *flags,
                           '--device=cpu', '--val_batches=1', '--max_steps=2', code=1)
        assert errors == '3 samples per GPU and pass are no multiple of members\n'


# ---- schedules, averages, statistics ----

def test_best_keep_and_tensorboard(train, tmp_path):
    """keep prunes, but never what best names, nor what keep_every keeps."""
    train('--save_every=1', '--val_every=2', '--keep=1', '--keep_every=4', '--max_steps=6', '--lr=1e-3',
          '--log=tensorboard')
    folder = tmp_path / 'out'
    losses = {row['step']: row['val/loss'] for row in read_logs(folder / 'logs.json.txt') if 'val/loss' in row}
    assert losses.keys() == {0, 2, 4, 6}
    best = min((2, 4, 6), key=losses.get)                    # an untrained model is no candidate
    assert checkpoint.pointer(folder, 'best') == checkpoint.step_name(best)
    assert {int(p.name[5:]) for p in folder.glob('step_*')} == {4, 6, best}
    assert checkpoint.read(checkpoint.find(folder), 'meta.json')['best'] == losses[best]
    assert list((folder / 'tensorboard').iterdir())


@pytest.mark.parametrize('flags, decays', [
    (['--ema_decay=0.25'], [1 / 10, 2 / 11, 3 / 12, 0.25]),
    (['--ema_decay=0.6', '--ema_power=0.75'], [0, 1 - 2 ** -0.75, 1 - 3 ** -0.75, 0.6])])
def test_averaged_weights_follow_their_formula(train, tmp_path, flags, decays):
    """The average starts at the initial weights (seeded), then ema <- d ema + (1 - d) weights after each step."""
    train('--max_steps=4', '--save_every=1', '--keep=0', '--lr=1e-2', '--seed=5', '--val_every=2', *flags)
    raw, _ = checkpoint.load(tmp_path / 'out')
    torch.manual_seed(5)
    expected = dict(nanowm.Model(raw.cfg).named_parameters())
    for step, decay in enumerate(decays, 1):
        weights, averaged = (load_file(tmp_path / 'out' / checkpoint.step_name(step) / f'{name}.safetensors')
                             for name in ('model', 'ema'))
        expected = {key: decay * value + (1 - decay) * weights[key] for key, value in expected.items()}
        for key, value in expected.items(): assert torch.allclose(averaged[key], value, atol=1e-6), (step, key)
        assert averaged.keys() == weights.keys() and torch.equal(averaged['action_mean'], weights['action_mean'])
    assert not torch.allclose(averaged['final_layer.linear.weight'], weights['final_layer.linear.weight'], atol=1e-4)


def test_validation_uses_the_averaged_weights(train, tmp_path, data_dir):
    """val/loss is that of the checkpoint as load() gives it back, on the batches and the noise that it documents."""
    train('--max_steps=3', '--lr=1e-2', '--ema_decay=0.9', '--val_batches=2')
    logged = read_logs(tmp_path / 'out' / 'logs.json.txt')[-1]['val/loss']
    values = []
    for ema in (True, False):
        model, meta = checkpoint.load(tmp_path / 'out', ema=ema)
        store, total = Store(f'{data_dir}/tiny_pixels', 'val', nanowm.windows(model.cfg)), 0
        for i in range(2):
            torch.manual_seed(int(np.random.SeedSequence((0, i, 0)).generate_state(1, np.uint64)[0] >> np.uint64(1)))
            with torch.no_grad(): total += model(store.batch(i, 4, 0))['loss'].item() / 2
        values.append(total)
    assert logged == pytest.approx(values[0], abs=1e-6) and abs(values[0] - values[1]) > 1e-5


def test_statistics_reach_the_checkpoint(train, tmp_path, data_dir):
    train('--max_steps=1')
    with open(f'{data_dir}/tiny_pixels/meta.json') as f: stats = json.load(f)['stats']['action']
    model, _ = checkpoint.load(tmp_path / 'out')
    assert model.action_mean.tolist() == pytest.approx(stats['mean'], rel=1e-6)
    assert model.action_std.tolist() == pytest.approx(stats['std'], rel=1e-6)


def test_lr_schedule_closed_form(train, tmp_path):
    train('--max_steps=6', '--warmup_steps=2', '--lr_schedule=cosine', '--lr=1e-2', '--min_lr=1e-3', '--val_every=100')
    got = [row['train/lr'] for row in read_logs(tmp_path / 'out' / 'logs.json.txt') if 'train/lr' in row]
    cosine = [1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert got == pytest.approx([5e-3, 1e-2, *cosine])


def test_imports_stay_light():
    """--help and `import nanowm` start no compiler, no environment, no image or tracker package."""
    heavy = ('torch._dynamo', 'minihack', 'nle', 'gymnasium', 'imageio', 'PIL', 'tensorboard', 'matplotlib', 'wandb')
    look = f'\nprint("heavy:", [m for m in {heavy} if m in sys.modules], file=sys.stderr)'
    ask = 'import runpy\nsys.argv = ["train.py", "--help"]\n' \
        'try: runpy.run_path("train.py")\nexcept SystemExit as e: assert not e.code'
    for process in [start('-c', 'import sys\n' + code + look) for code in ('import nanowm', ask)]:
        assert finish(process)[1].strip() == 'heavy: []'
