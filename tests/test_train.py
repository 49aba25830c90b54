"""
The training loop as a program: exact resume, ranks, faults. What only a process of its own can show (kills,
ranks, a closed pipe) costs seconds each and runs side by side where it can; the rest calls train.py inside
this process.
"""
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, finish, one_line, run, script, start, start_ranks
from conftest import episode as pixels
from safetensors.torch import load_file
from test_eval_dynamics import episode as robot_episode
from test_eval_dynamics import make_robot
from test_lerobot_policies import make_recordings

import checkpoint
import contract
import logger
import nanowm
from data.loader import Store
from data.writer import write
from logger import read_logs

RESUMABLE = ['--micro_batch=1', '--ema_decay=0.99', '--lr_schedule=cosine', '--save_every=3', '--val_every=3',
             '--max_steps=6', '--eval_every=3', '--best_metric=eval/psnr_moving', '--best_mode=min',
             '--keep=0']
CAMERAS = {'cameras': ('left', 'right'), 'height': 40, 'width': 48, 'state_dim': 3, 'action_dim': 3}
ALWAYS = ['--save_every=100000', '--val_every=100000', '--max_steps=100000']


def same(a, b, *files):
    for file in files:
        with open(os.path.join(a, file), 'rb') as f, open(os.path.join(b, file), 'rb') as g:
            assert f.read() == g.read(), f'{file} of {a} and {b} differ'


def same_run(a, b, step, after=0):
    """Weights, averaged weights, optimizer, best and logs of two out_dirs, to the byte."""
    folders = [os.path.join(out_dir, checkpoint.step_name(step)) for out_dir in (a, b)]
    same(*folders, *[f for f in os.listdir(folders[0]) if f.endswith('.safetensors')])
    x, y = (torch.load(os.path.join(folder, 'state.pt'), weights_only=True)['state'] for folder in folders)
    assert x and all(torch.equal(x[i][k], y[i][k]) for i in x for k in x[i])
    x, y = (checkpoint.read(folder, 'meta.json') for folder in folders)
    assert x['metrics'] == y['metrics'] and x['best'] == y['best']
    x, y = (curves(out_dir, after) for out_dir in (a, b))
    assert x == y


def curves(out_dir, after=0):
    """{(step, name): number} of the logs after a step, without the times."""
    rows = read_logs(os.path.join(out_dir, 'logs.json.txt'))
    return {(row['step'], name): value for row in rows for name, value in row.items()
            if row['step'] > after and name not in ('step', 'train/ms', 'train/waited')}


def step_lines(text):
    return re.findall(r'step (\d+)/\d+ \| loss ([\d.]+)', text)


def wait_for(process, pattern, seconds=120):
    """Read stdout until a line matches."""
    lines, end = [], time.time() + seconds
    while time.time() < end:
        line = process.stdout.readline()
        lines.append(line)
        if re.search(pattern, line):
            return lines
        if not line and process.poll() is not None:
            break
    raise AssertionError('never printed ' + pattern + '\n' + ''.join(lines) + process.stderr.read())


# ---- exact ----

def either(*args, ranks, **kw):
    """In this process where one rank will do."""
    return run(*args, ranks=ranks, **kw) if ranks > 1 else script(*args, **kw)


# In a process of its own: rank r stops itself when it reads the (limit + r)-th batch of the val split, and
# prints what it took from there to its end, in seconds of the CPU, because other processes may be about.
STOPPED_IN_VALIDATION = '''
import atexit, os, runpy, signal, sys, time
from data.loader import Store
limit, seen, real = int(sys.argv[1]) + int(os.environ.get("RANK", 0)), [], Store.windows_at
def windows_at(store, ids):
    if store.split == "val":
        seen.append(time.process_time())
        if len(seen) == limit: os.kill(os.getpid(), signal.SIGTERM)
    return real(store, ids)
Store.windows_at = windows_at
leave = os._exit
def goodbye(code):
    print("took", time.process_time() - seen[limit - 1], flush=True)
    leave(code)
os._exit = goodbye
sys.argv = sys.argv[2:]
runpy.run_path("train.py", run_name="__main__")
goodbye(0)
'''


@pytest.mark.parametrize('ranks', (1, 2))
def test_resume_is_exact(tiny, tmp_path, ranks):
    """
    6 steps at once = 3 steps, a stop, 3 steps: weights, averaged weights, optimizer, best and logs, to the
    byte. One rank is killed after step 3; two are stopped in the middle of its validation, each at another
    batch, and make up for it.
    """
    whole, parts, args = tmp_path / 'whole', tmp_path / 'parts', [*tiny, *RESUMABLE, '--val_batches=4']
    text, _ = either(*args, f'--out_dir={whole}', ranks=ranks)
    if ranks == 1:
        shutil.copytree(whole / 'step_0000003', parts / 'step_0000003')      # what a kill would have left
        for pointer in ('latest', 'best'):
            checkpoint.write_text(f'{parts}/{pointer}', 'step_0000003')
    else:                                                    # 4 batches at step 0, then two or three
        said, errors = run('-c', STOPPED_IN_VALIDATION, 6, *args, f'--out_dir={parts}', ranks=2,
                           PYTHONPATH=ROOT)
        assert 'stopped at step 3; --resume=True goes on' in said and errors == ''
        assert float(re.search(r'took ([\d.]+)', said)[1]) < 2
        assert checkpoint.read(checkpoint.find(parts), 'meta.json')['judged'] is False
        assert not [name for step, name in curves(parts) if step == 3 and not name.startswith('train/')]
    resumed, _ = either(*args, f'--out_dir={parts}', '--resume=True', ranks=ranks)
    assert step_lines(text)[3:] == step_lines(resumed) and len(step_lines(resumed)) == 3
    same_run(whole, parts, 6, after=3 if ranks == 1 else 0)
    logged = {name for _, name in curves(parts)}
    assert logged >= {'train/loss', 'val/loss', 'train/lr', 'eval/psnr', 'eval/gain_over_shuffled'}
    for folder in (whole, parts):
        assert checkpoint.pointer(folder, 'best') == 'step_0000003'    # it is remembered


@pytest.mark.parametrize('where', ('validation', 'evaluation'))
def test_a_stop_while_measuring(tiny, tmp_path, monkeypatch, where):
    """
    A signal in the middle of a validation or of an evaluation is not kept waiting: saved, exit 0. `judged`
    tells the resumed run to make up for it, and then nobody sees that there was a stop.
    """
    args, last = [*tiny, *RESUMABLE, '--val_batches=8'], 8 + 2 if where == 'validation' else 1
    script(*args, f'--out_dir={tmp_path}/whole')
    seen, stopped = [], []
    owner, name = (Store, 'windows_at') if where == 'validation' else (nanowm.Model, 'rollout')
    real = getattr(owner, name)

    def stopping(self, *args, **kw):
        if getattr(self, 'split', 'val') == 'val':
            seen.append(1)
            # at step 3: the second batch after those of step 0; the first rollout of the evaluation
            if len(seen) == last:
                stopped.append(time.process_time())
                os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kw)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, stopping)
        said, errors = script(*args, f'--out_dir={tmp_path}/broken')
        assert time.process_time() - stopped[0] < 2 and len(seen) == last        # nothing more was read
    assert said.endswith('stopped at step 3; --resume=True goes on\n') and errors == ''
    meta = checkpoint.read(checkpoint.find(tmp_path / 'broken'), 'meta.json')
    assert (meta['step'], meta['judged'], meta['metrics']) == (3, False, {})
    script(*args, f'--out_dir={tmp_path}/broken', '--resume=True')
    same_run(tmp_path / 'whole', tmp_path / 'broken', 6)
    assert checkpoint.read(checkpoint.find(tmp_path / 'broken'), 'meta.json')['judged'] is True
    assert checkpoint.pointer(tmp_path / 'broken', 'best') == 'step_0000003'


def test_a_stop_in_the_last_validation_is_made_up_for(tiny, tmp_path, monkeypatch):
    """All steps are done then, and still there is something to resume."""
    args = [*tiny, '--max_steps=2', '--val_every=0', '--val_batches=3']
    script(*args, f'--out_dir={tmp_path}/whole')
    real, seen = Store.windows_at, []

    def stopping(self, ids):
        if self.split == 'val':
            seen.append(1)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
        return real(self, ids)
    with monkeypatch.context() as patched:
        patched.setattr(Store, 'windows_at', stopping)
        said, _ = script(*args, f'--out_dir={tmp_path}/broken')
    assert said.endswith('stopped at step 2; --resume=True goes on\n')
    assert 'nothing to do' not in script(*args, f'--out_dir={tmp_path}/broken', '--resume=True')[0]
    same_run(tmp_path / 'whole', tmp_path / 'broken', 2)
    assert 'nothing to do' in script(*args, f'--out_dir={tmp_path}/broken', '--resume=True')[0]


def test_resume_goes_by_names(tiny, tmp_path, fork):
    """
    Two parameters' lines are swapped in the model file between save and resume, so that torch would give each
    the moments of the other. grad_clip is off because the norm, a sum, would be rounded in another order.
    """
    path = fork('nanowm', 'mynano')
    args = [*tiny, '--model=mynano', '--max_steps=4', '--grad_clip=0', '--ema_decay=0.9', '--lr=1e-2']
    script(*args, f'--out_dir={tmp_path}/whole')
    script(*args, '--max_steps=2', f'--out_dir={tmp_path}/parts')
    text = path.read_text()
    q, k = (re.search(rf'^        self.{name}_norm = .*\n', text, re.M)[0] for name in 'qk')
    path.write_text(text.replace(q + k, k + q))
    assert path.read_text() != text
    del sys.modules['mynano']                                # a process of its own would not know it yet
    said, _ = script(*args, f'--out_dir={tmp_path}/parts', '--resume=True')
    assert f'note: mynano.py has changed since {tmp_path}/parts/step_0000002 was saved\n' in said
    whole, parts = tmp_path / 'whole' / 'step_0000004', tmp_path / 'parts' / 'step_0000004'
    for file in ('model.safetensors', 'ema.safetensors'):
        x, y = load_file(whole / file), load_file(parts / file)
        assert x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)
    x, y = ({name: state['state'][i] for i, (name, _) in enumerate(state['params'])}
            for state in (torch.load(folder / 'state.pt', weights_only=True) for folder in (whole, parts)))
    assert list(x) != list(y) and x.keys() == y.keys()
    assert all(torch.equal(x[name][key], y[name][key]) for name in x for key in x[name])


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """fork('nanowm', 'my') copies a model file into a folder from which models then come."""
    folder = tmp_path / 'models'
    folder.mkdir()
    monkeypatch.setattr(contract, 'HERE', str(folder))
    made = []

    def copy(name, new):
        made.append(new)
        return shutil.copy(os.path.join(ROOT, f'{name}.py'), folder / f'{new}.py')
    yield copy
    for name in made:
        sys.modules.pop(name, None)


def test_data_on_the_device_are_the_same_data(train, tmp_path):
    """Weights, logs and validation to the byte, wherever the batches are gathered."""
    flags = ['--max_steps=3', '--val_every=2', '--micro_batch=2', '--lr=1e-2']
    texts = [train(*flags, f'--data_on_device={where}', f'--out_dir={tmp_path}/{where}')[0]
             for where in (True, False)]
    assert step_lines(texts[0]) == step_lines(texts[1]) and len(step_lines(texts[0])) == 3
    folders = [tmp_path / str(where) / 'step_0000003' for where in (True, False)]
    same(*folders, 'model.safetensors', 'state.pt')
    _, errors = train('--data_on_device=maybe', code=1)
    assert "data_on_device = 'maybe': choose one of ('auto', True, False)" in errors


# model, its dataset, its Config, and what it would draw: shape, and the end of whole numbers or 0
SEEN_BY_RANKS = [
    ('nanowm', 'tiny_pixels', dict(input='video', height=12, width=16, channels=3, action_dim=2, hidden=32,
                                   heads=2, depth=2, patch=4),
     dict(t=((8, 4), 1000), noise=((8, 4, 3, 12, 16), 0))),
    ('act', 'arm', dict(**CAMERAS, chunk_size=6, n_action_steps=3, dim_model=16, n_heads=2, latent_dim=4,
                        dim_feedforward=24, dropout=0.0),
     dict(noise=((8, 4), 0))),
    ('diffusion_policy', 'arm', dict(**CAMERAS, horizon=8, n_action_steps=4, down_dims=(16, 32), n_groups=2,
                                     diffusion_step_embed_dim=8, do_mask_loss_for_padding=True),
     dict(t=((8,), 100), noise=((8, 8, 3), 0)))]


def test_one_and_two_ranks_see_the_same_data(tmp_path, data_dir):
    """
    Gradients of one step, of models of every kind, with t and noise given, agree to 1e-6; so do the sample
    ids. Full masks, and no BatchNorm: a mean over real actions, and statistics, are of a micro-batch.
    """
    script, data = tmp_path / 'gradient.py', make_recordings(tmp_path)
    script.write_text(GRADIENT)
    os.symlink(f'{data_dir}/tiny_pixels', data / 'tiny_pixels')
    cases = json.dumps([(name, str(data / dataset), *rest) for name, dataset, *rest in SEEN_BY_RANKS])
    one = start(script, cases, tmp_path / '1.pt', PYTHONPATH=ROOT)
    run(script, cases, tmp_path / '2.pt', PYTHONPATH=ROOT, ranks=2)
    finish(one)
    one, two = (torch.load(tmp_path / f'{ranks}.pt') for ranks in (1, 2))
    assert one.keys() == two.keys() == {name for name, *_ in SEEN_BY_RANKS}
    for name in one:
        assert sorted(one[name]['index']) == sorted(two[name]['index']) and len(set(one[name]['index'])) > 4
        for key, grad in one[name]['grad'].items():
            error = (grad - two[name]['grad'][key]).abs().max()
            assert error <= 1e-6 * max(1, grad.abs().max()), (name, key)


GRADIENT = '''
import json, os, sys, torch, torch.distributed as dist
from contextlib import nullcontext
from torch.nn.parallel import DistributedDataParallel as DDP
import checkpoint, contract
from data.loader import Store
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1: dist.init_process_group("gloo")
found, B, accum = {}, 8, 2
for name, folder, config, drawn in json.loads(sys.argv[1]):
    M = contract.load(name)
    cfg = M.Config(**checkpoint.plain_config(config, M))
    torch.manual_seed(0)
    raw = M.Model(cfg)
    with torch.no_grad():
        for p in raw.parameters():
            if not p.any(): p.add_(torch.randn_like(p) * 0.05)
    net = DDP(raw) if world > 1 else raw
    store = Store(folder, "train", M.windows(cfg), **contract.edges(M, cfg))
    g = torch.Generator().manual_seed(1)
    given = {k: torch.randint(high, shape, generator=g) if high else torch.randn(shape, generator=g)
             for k, (shape, high) in drawn.items()}
    batch = store.batch(5, B, 0, rank, world) | {k: x[rank::world] for k, x in given.items()}
    if "mask" in batch: batch["mask"].fill_(True)
    for i in range(accum):
        with net.no_sync() if world > 1 and i < accum - 1 else nullcontext():
            (net({k: v[i::accum] for k, v in batch.items()})["loss"] / accum).backward()
    index = [None] * world
    if world > 1:
        dist.all_gather_object(index, batch["index"].tolist())
    else:
        index = [batch["index"].tolist()]
    found[name] = {"grad": {k: p.grad for k, p in raw.named_parameters()}, "index": sum(index, [])}
if rank == 0: torch.save(found, sys.argv[2])
if world > 1: dist.barrier()
os._exit(0)                                     # gradients are the matter here, not how gloo ends
'''


# ---- stop, kill, break ----

def test_stop_signals_and_two_runs_in_one_out_dir(tiny, tmp_path, train):
    """
    SIGTERM, SIGINT and a closed pipe (`train.py | head`) save and exit 0, and it goes on exactly. While a run
    lives nobody else gets its folder.
    """
    folders = [tmp_path / name for name in ('out', 'other', 'pipe')]
    term, interrupt, pipe = processes = [start(*tiny, *ALWAYS, f'--out_dir={folder}') for folder in folders]
    wait_for(term, r'step 3/')
    _, errors = train(*ALWAYS, code=1)
    assert one_line(errors) == (f'{tmp_path}/out is in use by another run; wait for it, '
                                'or choose another --out_dir')
    wait_for(pipe, r'step 3/')
    pipe.stdout.close()
    wait_for(interrupt, r'step 3/')
    term.send_signal(signal.SIGTERM)
    interrupt.send_signal(signal.SIGINT)
    for process in (term, interrupt):
        rest, errors = finish(process)
        assert re.search(r'stopped at step \d+; --resume=True', rest) and errors == ''
    assert (pipe.wait(timeout=120), pipe.stderr.read()) == (0, '')
    assert len(processes) == 3
    stopped = [int(checkpoint.pointer(folder, 'latest')[5:]) for folder in folders]
    assert min(stopped) >= 3
    end = stopped[0] + 2
    resumed, _ = train(*ALWAYS, f'--max_steps={end}', '--resume=True')
    unbroken, _ = train(*ALWAYS, f'--max_steps={end}', f'--out_dir={tmp_path}/unbroken')
    assert step_lines(resumed) == step_lines(unbroken)[-2:]
    same(*(tmp_path / d / checkpoint.step_name(end) for d in ('out', 'unbroken')), 'model.safetensors')


@pytest.mark.parametrize('ignored', (False, True))
def test_hang_up(train, tmp_path, monkeypatch, ignored):
    """The terminal closes: saved, exit 0. Under nohup, which ignores the signal, it goes on to its end."""
    real = Store.batch

    def hang_up(self, step, *args):
        if self.split == 'train' and step == 8:              # fetched some steps before it is used
            os.kill(os.getpid(), signal.SIGHUP)
        return real(self, step, *args)
    monkeypatch.setattr(Store, 'batch', hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        said, errors = train('--max_steps=20', '--save_every=100', '--val_every=100')
    finally:
        signal.signal(signal.SIGHUP, before)
    last = int(checkpoint.pointer(tmp_path / 'out', 'latest')[5:])
    assert errors == '' and (last == 20) is ignored
    end = f'done: {tmp_path}/out' if ignored else f'stopped at step {last}; --resume=True goes on'
    assert said.endswith(end + '\n')


def test_ranks_do_not_outlive_torchrun(tiny, tmp_path):
    """kill -9 of the parent, which is the shell here: they save and end by themselves."""
    rank = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='localhost', MASTER_PORT='0',
                OMP_NUM_THREADS='1')
    command = ' '.join([sys.executable, *tiny, *ALWAYS, '; true'])         # more than one command: it stays
    shell = subprocess.Popen(['bash', '-c', command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=os.environ | rank)
    wait_for(shell, r'step 3/')
    shell.kill()
    rest, errors = shell.communicate(timeout=120)            # until the rank, too, has closed its output
    stopped = int(re.search(r'stopped at step (\d+); --resume=True', rest)[1])
    assert checkpoint.pointer(tmp_path / 'out', 'latest') == checkpoint.step_name(stopped) and errors == ''


def test_stop_signal_under_torchrun(tiny, tmp_path):
    """Both ranks stop at the same step. torchrun itself exits as killed; its workers have saved."""
    process = start(*tiny, *ALWAYS, ranks=2)
    wait_for(process, r'step 5/')
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=120)
    stopped = int(re.search(r'stopped at step (\d+); --resume=True', rest)[1])
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == stopped
    assert 'train.py", line' not in errors, errors         # torchrun's own traceback is not ours


KILLED_IN_A_SAVE = '''
import os, signal, runpy, sys, torch
sys.argv = sys.argv[1:]
n, real = [0], torch.save
def save(state, path):
    n[0] += 1
    real(state, path)
    if n[0] == 2:
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
runpy.run_path("train.py", run_name="__main__")
'''


def test_kill_in_the_middle_of_a_save(tiny, train, tmp_path):
    """
    kill -9 while the files of a checkpoint are half written: latest still reads, the resumed run is exact.
    """
    args = ['--save_every=3', '--val_every=100000', '--max_steps=9']
    run('-c', KILLED_IN_A_SAVE, *tiny, *args, code=-signal.SIGKILL)
    left = sorted(p.name for p in (tmp_path / 'out').glob('*step*'))
    assert left == ['step_0000003', 'tmp.step_0000006']
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 3
    train(*args, '--resume=True')                            # the dead owner's lock is gone, too
    train(*args, f'--out_dir={tmp_path}/unbroken')
    same(*(tmp_path / d / 'step_0000009' for d in ('out', 'unbroken')), 'model.safetensors', 'state.pt')
    assert not list((tmp_path / 'out').glob('tmp.*'))


@pytest.fixture
def largest_file():
    """largest_file(n): files of this process cannot grow beyond n bytes, which stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_while_saving(train, tmp_path, largest_file):
    """The run ends with one line, the checkpoint before it stays whole."""
    train('--val_every=100000', '--max_steps=2')
    largest_file(100_000)
    _, errors = train('--val_every=100000', '--max_steps=4', '--resume=True', code=1)
    largest_file(resource.RLIM_INFINITY)
    said = one_line(errors)
    assert said.startswith(f'could not save {tmp_path}/out/step_0000004: ') and 'make room' in said
    assert sorted(p.name for p in (tmp_path / 'out').glob('*step*')) == ['step_0000002']
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 2
    train('--val_every=100000', '--max_steps=4', '--resume=True')
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 4


def test_full_disk_while_logging(train, tmp_path, largest_file):
    """A line of logs.json.txt that does not fit: one line, and the last checkpoint is still there."""
    train('--val_every=100000', '--max_steps=2')
    path = tmp_path / 'out' / 'logs.json.txt'
    largest_file(path.stat().st_size)
    _, errors = train('--val_every=100000', '--max_steps=4', '--resume=True', code=1)
    largest_file(resource.RLIM_INFINITY)
    assert one_line(errors) == f'{path}: File too large; make room, then --resume=True'
    train('--val_every=100000', '--max_steps=4', '--resume=True')
    assert [row['step'] for row in read_logs(path) if 'train/loss' in row] == [1, 2, 3, 4]


def test_loss_that_is_not_finite_names_its_samples(train, data_dir, tmp_path):
    _, errors = train('--lr=1e30', '--grad_clip=0', '--max_steps=5', '--val_every=1000', '--seed=3', code=1)
    pattern = r'is not finite at step (\d+), rank 0, sample ids (\[.*?\])'
    step, ids = re.search(pattern, one_line(errors)).groups()
    windows = nanowm.windows(nanowm.Config(input='video', num_frames=2))
    store = Store(f'{data_dir}/tiny_pixels', 'train', windows)
    assert json.loads(ids) == store.ids(int(step), 4, 3).tolist()
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def spoil(folder, split, key, row):
    """nan (or 255) in one row of a data file, behind the back of meta.json."""
    array = np.load(f'{folder}/{split}/{key}.npy', mmap_mode='r+')
    array[row] = 255 if array.dtype == np.uint8 else np.nan
    array.flush()


def test_a_sample_that_is_not_finite_is_named_with_its_rank(tiny, data_dir, tmp_path):
    """The norm of all ranks is spoilt then; only the rank whose loss it was has something to show."""
    shutil.copytree(f'{data_dir}/tiny_pixels', tmp_path / 'tiny_pixels')
    windows = nanowm.windows(nanowm.Config(input='video', num_frames=2))
    store = Store(tmp_path / 'tiny_pixels', 'train', windows)
    mine = store.ids(1, 4, 1, 1, 2)                          # step 1, seed 1: of rank 1
    others = np.concatenate([store.ids(0, 4, 1), store.ids(1, 4, 1, 0, 2)])
    bad = next(i for i in mine if i not in others)
    spoil(tmp_path / 'tiny_pixels', 'train', 'action', store.locate(np.array([bad]))[1][0])
    processes = start_ranks(*tiny, f'--data_dir={tmp_path}', '--max_steps=5', '--val_every=1000', ranks=2)
    (_, said), (_, nothing) = [finish(process, 1) for process in processes]
    assert f'is not finite at step 1, rank 1, sample ids {mine.tolist()}; nothing was saved' in one_line(said)
    assert nothing == '' and not os.path.exists(tmp_path / 'out' / 'latest')


def test_validation_data_that_are_not_finite(train, data_dir, tmp_path):
    """Said at once; `best` would never be written. What was trained is saved."""
    shutil.copytree(f'{data_dir}/tiny_pixels', tmp_path / 'tiny_pixels')
    spoil(tmp_path / 'tiny_pixels', 'val', 'action', slice(None))
    _, errors = train(f'--data_dir={tmp_path}', '--max_steps=3', code=1)
    assert one_line(errors) == ('validation loss is not finite at step 0: '
                                f'look at {tmp_path}/tiny_pixels/val for numbers that are none')


def test_a_locked_folder_under_two_ranks(tiny, tmp_path):
    """One line of rank 0; rank 1 ends as well, and says nothing."""
    held = checkpoint.lock(tmp_path / 'out')
    (_, said), (_, nothing) = [finish(process, 1) for process in start_ranks(*tiny, ranks=2)]
    held.close()
    assert f'{tmp_path}/out is in use by another run' in one_line(said) and nothing == ''


# ---- one line for what the user can mend ----

@pytest.mark.parametrize('flags, code, words', [
    (['--dataset='], 1, "dataset = '': name a folder"),
    (['--batch_size=5', '--micro_batch=2'], 1,
     'batch_size = 5 is not micro_batch 2 x accumulation x 1 processes'),
    (['--depth=3'], 1, 'nanowm.Config: depth = 3: blocks come in space/time pairs'),
    (['--width=17'], 2, 'width = 17 (--width) contradicts'),
    (['--lr_schedule=linear'], 1, "lr_schedule = 'linear': choose one of ('constant', 'cosine')"),
    (['--best_mode=most'], 1, "best_mode = 'most': choose one of ('min', 'max')"),
    (['--dtype=float16'], 1, "dtype = 'float16': choose one of ('auto', 'float32', 'bfloat16')"),
    (['--num_frames=13'], 1, 'a window spans 13 frames'),
    (['--val_batches=0'], 1, 'val_batches = 0: must lie in 1..1e+09'),
    (['--log=wand'], 1, "log = 'wand': choose one of ('', 'tensorboard', 'wandb', 'swanlab')")])
def test_user_mistakes_are_one_line(train, tmp_path, flags, code, words):
    _, errors = train(*flags, code=code)
    assert words in errors and len(errors.strip().splitlines()) == 1
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def test_an_out_dir_that_holds_another_run(train, tmp_path):
    """It wants --resume; and then the same model."""
    out = tmp_path / 'out'
    assert 'nothing to resume' in train('--max_steps=1', '--resume=True')[0]
    _, errors = train('--max_steps=1', code=1)
    assert one_line(errors) == (f'{out} already holds a run: --resume=True goes on with it, '
                                '--out_dir=... starts anew')
    for flags, words in ((['--hidden=64'], 'was trained with hidden = 32, now 64: set it back'),
                         (['--num_frames=3', '--depth=4'], 'num_frames = 2, now 3; depth = 2, now 4')):
        _, errors = train(*flags, '--resume=True', code=1)
        assert words in one_line(errors)
    state = out / 'step_0000001' / 'state.pt'
    whole = state.read_bytes()
    for damage in (whole[:100], b'hello\n', b'{}', b''):
        state.write_bytes(damage)
        _, errors = train('--max_steps=2', '--resume=True', code=1)
        assert one_line(errors).startswith(f'cannot read {state}: ')
    torch.save({}, state)
    _, errors = train('--max_steps=2', '--resume=True', code=1)
    assert one_line(errors).startswith(f'{out}/step_0000001/state.pt is damaged (')
    state.write_bytes(whole)
    before = (out / 'logs.json.txt').read_bytes()
    assert 'nothing to do' in train('--max_steps=1', '--resume=True')[0]
    assert (out / 'logs.json.txt').read_bytes() == before
    os.rename(out / 'latest', out / 'last')                  # step 0 in the same folder would bury the run
    _, errors = train('--max_steps=1', '--resume=True', code=1)
    assert one_line(errors).startswith(f'{out} holds step_0000001 but no file `latest`: write the name')
    (out / 'latest').write_text('')
    _, errors = train('--max_steps=1', '--resume=True', code=1)
    assert one_line(errors).startswith(f'{out} holds step_0000001')


def test_keys_that_only_sampling_reads_may_change(train, tmp_path):
    train('--max_steps=1')
    said, _ = train('--max_steps=2', '--resume=True', '--sample_steps=8', '--eta=0.5')
    assert 'other than before the resume: ' in said and 'sample_steps = 8' in said
    assert checkpoint.load(tmp_path / 'out')[0].cfg.sample_steps == 8


def test_the_same_data_are_known_by_their_bytes(train, tmp_path, data_dir):
    """Under another path, through a link, made by a command typed otherwise; other bytes are other data."""
    other = tmp_path / 'elsewhere'
    shutil.copytree(f'{data_dir}/tiny_pixels', other / 'tiny_pixels')
    os.symlink(other / 'tiny_pixels', other / 'link')
    train('--max_steps=1')
    meta = other / 'tiny_pixels' / 'meta.json'
    meta.write_text(meta.read_text().replace('"command": "tests"', '"command": "another"'))
    train('--resume=True', '--max_steps=2', f'--data_dir={other}', '--verify=True')
    train('--resume=True', '--max_steps=3', f'--data_dir={other}', '--dataset=link')

    video = other / 'tiny_pixels' / 'train' / 'video.npy'
    spoil(other / 'tiny_pixels', 'train', 'video', 5)        # behind the back of meta.json: seen when asked
    _, errors = train('--resume=True', '--max_steps=4', f'--data_dir={other}', '--verify=True', code=1)
    assert one_line(errors).startswith(f'{video} is not what was written: sha256 ')
    told = json.loads(meta.read_text())
    told['files']['train/video.npy']['sha256'] = checkpoint.sha256(video)
    meta.write_text(json.dumps(told))
    _, errors = train('--resume=True', '--max_steps=4', f'--data_dir={other}', '--verify=True', code=1)
    assert one_line(errors) == (f'{tmp_path}/out/step_0000003 was trained on other data than '
                                f'{other}/tiny_pixels; choose another --out_dir')


def test_statistics_of_another_length(tmp_path, train, data_dir):
    """Statistics that do not fit the data: one line with both lengths, and nothing is trained."""
    shutil.copytree(f'{data_dir}/tiny_pixels', tmp_path / 'tiny_pixels')
    path = tmp_path / 'tiny_pixels' / 'meta.json'
    for wrong in ([0.0], [0.0] * 3):                         # one number would be broadcast without a word
        meta = json.loads(path.read_text())
        meta['stats']['action']['mean'] = wrong
        path.write_text(json.dumps(meta))
        _, errors = train('--max_steps=1', f'--data_dir={tmp_path}', code=2)
        said = one_line(errors)
        assert said.startswith(f'{path} is damaged (stats: action has {len(wrong)} numbers of mean; want 2)')
    assert not os.path.exists(tmp_path / 'out' / 'latest')


ROBOT = ['--model=arx5_gpt', '--dataset=robot', '--depth=1', '--heads=2', '--hidden=16', '--history=8',
         '--chunk=4', '--device=cpu', '--val_batches=1', '--max_steps=2']


def test_members_share_a_batch_that_can_be_shared(tmp_path):
    """An ensemble of two and three windows per pass: one line that names the way out."""
    make_robot(tmp_path, n=3)
    for i, flags in enumerate((['--batch_size=3'], ['--batch_size=6', '--micro_batch=3'])):
        _, errors = script('train.py', *ROBOT, f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/{i}', *flags,
                           code=1)
        assert one_line(errors) == '3 samples per GPU and pass are no multiple of members = 2'


def test_what_cannot_be_judged_later_is_said_before_step_0(tmp_path, train):
    """Episodes too short for the protocol of eval_every; a best_metric that nothing will ever give."""
    make_robot(tmp_path, n=3, make=lambda i: robot_episode(i, length=60))
    flags = [*ROBOT, f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/run', '--batch_size=4']
    _, errors = script('train.py', *flags, '--eval_every=1', code=1)
    said = one_line(errors)
    assert said.startswith('eval_every = 1, the dynamics protocol: ') and said.endswith('or --eval_every=0')
    assert 'the longest of 1 episodes has 60' in said and not os.path.exists(tmp_path / 'run')
    script('train.py', *flags)                               # training itself needs no more than they have
    for flags in (['--best_metric=val_loss'], ['--best_metric=eval/psnr'],
                  ['--best_metric=train/loss', '--eval_every=2']):
        assert 'best_metric = ' in one_line(train('--max_steps=1', *flags, code=1)[1])


def test_a_best_metric_that_the_protocol_does_not_give(train, tmp_path):
    """Its names are known after the first evaluation: one line with them, and what was trained is saved."""
    _, errors = train('--max_steps=4', '--eval_every=2', '--best_metric=eval/psnr_movng', code=1)
    said = one_line(errors)
    assert said.startswith('best_metric = eval/psnr_movng: no such number; ') and 'eval/psnr' in said
    assert checkpoint.load(tmp_path / 'out')[1]['step'] == 2


def test_best_of_another_metric_starts_anew(train, tmp_path):
    """A loss is no threshold for a score: resumed with another best_metric, the old best counts no more."""
    train('--max_steps=2', '--val_every=2')
    train('--max_steps=4', '--val_every=2', '--eval_every=2', '--best_metric=eval/psnr_moving',
          '--best_mode=min', '--resume=True')
    meta = checkpoint.read(checkpoint.find(tmp_path / 'out', 'best'), 'meta.json')
    assert meta['step'] == 4 and meta['best'] == meta['metrics']['eval/psnr_moving'] > 1


def test_judging_that_fails_loses_no_step(train, tmp_path, monkeypatch):
    """Whatever goes wrong in there, what was trained is saved first, and the resumed run judges it."""
    def broken(self, *args, **kw):
        raise SystemExit('the val split cannot be judged')
    with monkeypatch.context() as patched:
        patched.setattr(nanowm.Model, 'rollout', broken)
        _, errors = train('--max_steps=4', '--eval_every=2', code=1)
    assert one_line(errors) == 'the val split cannot be judged'
    assert checkpoint.read(checkpoint.find(tmp_path / 'out'), 'meta.json')['judged'] is False
    train('--max_steps=4', '--eval_every=2', '--resume=True')
    assert {(2, 'eval/psnr'), (4, 'eval/psnr')} <= curves(tmp_path / 'out').keys()


# ---- weights of another run ----

@pytest.fixture
def other_data(data_dir, tmp_path):
    """Flags for another dataset with the same keys and other statistics, `other_pixels`."""
    def faster(i):
        made = pixels(i, seed=9)
        return made | {'action': made['action'] * 3}
    write(tmp_path / 'other_pixels', faster, 8, seed=1, val='0.5', workers=1, command='tests',
          info={'source': 'tests', 'revision': '1', 'fps': 4, 'units': {}})
    return [f'--data_dir={tmp_path}', '--dataset=other_pixels']


@pytest.mark.parametrize('keep', (False, True))
def test_init_from(train, tmp_path, data_dir, other_data, keep):
    """
    Averaged weights, where there are some; statistics of the new data, or with keep_stats of the old ones. A
    new run otherwise: from step 0, with an optimizer that knows nothing. lr = 0 shows what it began with.
    """
    train('--max_steps=3', '--lr=1e-2', '--ema_decay=0.9')
    flags = [*other_data, f'--init_from={tmp_path}/out', f'--keep_stats={keep}', f'--out_dir={tmp_path}/new',
             '--lr=0']
    said, _ = train('--max_steps=2', *flags)
    assert [step for step, _ in step_lines(said)] == ['1', '2']
    old, new = (checkpoint.load(tmp_path / name)[0] for name in ('out', 'new'))
    for (key, x), y in zip(old.named_parameters(), new.parameters()):
        assert torch.equal(x, y), key
    folder = f'{data_dir}/tiny_pixels' if keep else f'{tmp_path}/other_pixels'
    with open(f'{folder}/meta.json') as f:
        stats = json.load(f)['stats']['action']
    assert new.action_std.tolist() == pytest.approx(stats['std'], rel=1e-6)
    assert (new.action_std == old.action_std).all() == keep
    shas = {checkpoint.load(tmp_path / name)[1]['data_sha'] for name in ('out', 'new')}
    assert len(shas) == 2
    said, _ = train('--max_steps=3', *flags, '--lr=1e-2', '--resume=True')       # its own weights by then
    assert [step for step, _ in step_lines(said)] == ['3']
    moved = checkpoint.load(tmp_path / 'new', ema=False)[0].state_dict()
    assert not all(torch.equal(x, moved[key]) for key, x in new.state_dict().items())


def test_init_from_what_does_not_fit(train, tmp_path):
    train('--max_steps=1')
    for flags, words in ((['--hidden=64'], 'has another shape: '), (['--depth=4'], 'lacks blocks.2.'),
                         ([f'--init_from={tmp_path}/nowhere'], f"no checkpoint in '{tmp_path}/nowhere'")):
        _, errors = train(f'--init_from={tmp_path}/out', f'--out_dir={tmp_path}/new', *flags, code=1)
        assert words in one_line(errors) and not os.path.exists(tmp_path / 'new')


# ---- noise ----

@pytest.mark.parametrize('seed', (0, 1))
def test_training_never_sees_the_noise_of_validation(train, monkeypatch, seed):
    """Keys are (seed, step, rank, pass) and (0, batch, rank): with seed 0 these would be the same."""
    real, seeds = nanowm.Model.forward, {True: [], False: []}

    def forward(self, batch):
        seeds[self.training].append(torch.initial_seed())
        return real(self, batch)
    monkeypatch.setattr(nanowm.Model, 'forward', forward)
    train(f'--seed={seed}', '--max_steps=4', '--val_batches=4')
    assert len(set(seeds[True])) == 4 and len(set(seeds[False])) == 4 and len(seeds[False]) == 8
    assert not set(seeds[True]) & set(seeds[False])


# ---- schedules, averages, statistics ----

def test_best_keep_and_tensorboard(train, tmp_path):
    """keep prunes, but never what best names, nor what keep_every keeps."""
    train('--save_every=1', '--val_every=2', '--keep=1', '--keep_every=4', '--max_steps=6', '--lr=1e-3',
          '--log=tensorboard')
    folder = tmp_path / 'out'
    rows = read_logs(folder / 'logs.json.txt')
    losses = {row['step']: row['val/loss'] for row in rows if 'val/loss' in row}
    assert losses.keys() == {0, 2, 4, 6}
    best = min((2, 4, 6), key=losses.get)                    # an untrained model is no candidate
    assert checkpoint.pointer(folder, 'best') == checkpoint.step_name(best)
    assert {int(p.name[5:]) for p in folder.glob('step_*')} == {4, 6, best}
    assert checkpoint.read(checkpoint.find(folder), 'meta.json')['best'] == losses[best]
    assert list((folder / 'tensorboard').iterdir())


def test_the_id_of_a_run_goes_through_its_checkpoints(train, tmp_path, monkeypatch):
    """
    Through other trackers and none, and a checkpoint of an older train.py gets one; another run has its own.
    """
    asked = []
    for kind in 'wandb', 'swanlab':
        def tracker(out_dir, run, config, step, run_id, kind=kind):
            asked.append((kind, step, run_id))
            return (lambda row, step: None), (lambda: None)
        monkeypatch.setitem(logger.TRACKERS, kind, tracker)
    for steps, kind in enumerate(('wandb', 'swanlab', '', 'wandb'), 1):
        train(f'--max_steps={steps}', '--resume=True', f'--log={kind}')
    one = asked[0][2]
    assert asked == [('wandb', 1, one), ('swanlab', 2, one), ('wandb', 4, one)]
    assert re.fullmatch('[0-9a-f]{16}', one)
    path = tmp_path / 'out' / checkpoint.step_name(4) / 'meta.json'
    meta = json.loads(path.read_text())
    assert meta.pop('run_id') == one
    path.write_text(json.dumps(meta))
    train('--max_steps=5', '--resume=True', '--log=wandb')
    train('--max_steps=6', '--resume=True', '--log=wandb')
    train('--max_steps=1', f'--out_dir={tmp_path}/other', '--log=wandb')
    fresh, same, other = [run_id for _, _, run_id in asked[3:]]
    assert fresh == same and len({one, fresh, other}) == 3


@pytest.mark.parametrize('flags, decays', [
    (['--ema_decay=0.25'], [1 / 10, 2 / 11, 3 / 12, 0.25]),
    (['--ema_decay=0.6', '--ema_power=0.75'], [0, 1 - 2 ** -0.75, 1 - 3 ** -0.75, 0.6])])
def test_averaged_weights_follow_their_formula(train, tmp_path, flags, decays):
    """
    The average starts at the initial weights (seeded), then ema <- d ema + (1 - d) weights after each step.
    """
    train('--max_steps=4', '--save_every=1', '--keep=0', '--lr=1e-2', '--seed=5', '--val_every=2', *flags)
    raw, _ = checkpoint.load(tmp_path / 'out')
    torch.manual_seed(5)
    expected = dict(nanowm.Model(raw.cfg).named_parameters())
    for step, decay in enumerate(decays, 1):
        weights, averaged = (load_file(tmp_path / 'out' / checkpoint.step_name(step) / f'{name}.safetensors')
                             for name in ('model', 'ema'))
        expected = {key: decay * value + (1 - decay) * weights[key] for key, value in expected.items()}
        for key, value in expected.items():
            assert torch.allclose(averaged[key], value, atol=1e-6), (step, key)
        assert averaged.keys() == weights.keys()
        assert torch.equal(averaged['action_mean'], weights['action_mean'])
    last = 'final_layer.linear.weight'
    assert not torch.allclose(averaged[last], weights[last], atol=1e-4)


def test_validation_uses_the_averaged_weights(train, tmp_path, data_dir):
    """
    val/loss is that of the checkpoint as load() gives it back, on the batches and noise that are documented.
    """
    train('--max_steps=3', '--lr=1e-2', '--ema_decay=0.9', '--val_batches=2')
    logged = read_logs(tmp_path / 'out' / 'logs.json.txt')[-1]['val/loss']
    values = []
    for ema in (True, False):
        model, meta = checkpoint.load(tmp_path / 'out', ema=ema)
        store, total = Store(f'{data_dir}/tiny_pixels', 'val', nanowm.windows(model.cfg)), 0
        for i in range(2):
            noise = np.random.SeedSequence((0, i, 0)).generate_state(1, np.uint64)[0] >> np.uint64(1)
            torch.manual_seed(int(noise))
            with torch.no_grad():
                total += model(store.batch(i, 4, 0))['loss'].item() / 2
        values.append(total)
    assert logged == pytest.approx(values[0], abs=1e-6) and abs(values[0] - values[1]) > 1e-5


def test_statistics_reach_the_checkpoint(train, tmp_path, data_dir):
    train('--max_steps=1')
    with open(f'{data_dir}/tiny_pixels/meta.json') as f:
        stats = json.load(f)['stats']['action']
    model, _ = checkpoint.load(tmp_path / 'out')
    assert model.action_mean.tolist() == pytest.approx(stats['mean'], rel=1e-6)
    assert model.action_std.tolist() == pytest.approx(stats['std'], rel=1e-6)


def test_lr_schedule_closed_form(train, tmp_path):
    train('--max_steps=6', '--warmup_steps=2', '--lr_schedule=cosine', '--lr=1e-2', '--min_lr=1e-3',
          '--val_every=100')
    got = [row['train/lr'] for row in read_logs(tmp_path / 'out' / 'logs.json.txt') if 'train/lr' in row]
    cosine = [1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert got == pytest.approx([5e-3, 1e-2, *cosine])


def test_imports_stay_light():
    """--help and `import nanowm` start no compiler, no environment, no image or tracker package."""
    heavy = ('torch._dynamo', 'minihack', 'nle', 'gymnasium', 'imageio', 'PIL', 'tensorboard', 'matplotlib',
             'wandb', 'swanlab')
    look = f'\nprint("heavy:", [m for m in {heavy} if m in sys.modules], file=sys.stderr)'
    ask = 'import runpy\nsys.argv = ["train.py", "--help"]\n' \
        'try: runpy.run_path("train.py")\nexcept SystemExit as e: assert not e.code'
    for process in [start('-c', 'import sys\n' + code + look) for code in ('import nanowm', ask)]:
        assert finish(process)[1].strip() == 'heavy: []'
