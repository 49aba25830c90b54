"""Shared by the tests: a data folder of a few kilobytes, and the ways to start the scripts."""
import gc
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# golden values of the originals, where somebody has them
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')
FIXTURES = os.path.join(ROOT, 'tests', 'fixtures')         # model files as a student would fork them
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP     # those that scripts handle
sys.path.insert(0, ROOT)

import contract  # noqa: E402
from data.loader import Prefetch  # noqa: E402

# our tensors are tiny: a second thread only waits, for minutes on a busy machine
torch.set_num_threads(1)
# a NanoWM that trains in milliseconds on tiny_pixels
TINY = ['--hidden=32', '--heads=2', '--depth=2', '--patch=4', '--num_frames=2', '--batch_size=4',
        '--sample_steps=3', '--device=cpu', '--val_batches=1', '--log_every=1', '--warmup_steps=2']


def episode(i, seed, length=12):
    """A white 2x2 block on 12x16 black pixels moves by the action, in whole pixels, and stops at the edge."""
    rng = np.random.default_rng([seed, i])
    video, action = np.zeros((length, 12, 16, 3), np.uint8), np.zeros((length, 2), np.float32)
    y, x = rng.integers(11), rng.integers(15)
    for t in range(length):
        video[t, y:y + 2, x:x + 2] = 255
        if t < length - 1:
            action[t] = rng.integers(-2, 3, 2)
            x, y = np.clip(x + int(action[t, 0]), 0, 14), np.clip(y + int(action[t, 1]), 0, 10)
    return {'video': video, 'action': action}


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """A folder with the dataset `tiny_pixels`: 20 episodes of 12 frames, 4 of them for validation."""
    from data.writer import write
    root = tmp_path_factory.mktemp('data')
    write(root / 'tiny_pixels', partial(episode, seed=1), 20, seed=1, val='0.2', workers=1, command='tests',
          info={'source': 'tests/conftest.py', 'revision': '1', 'fps': 4, 'units': {'action': 'pixels'},
                'action_arrows': [[1, 0], [0, 1]]})
    return str(root)


def simulate(frame, actions):
    """Frames (K, 12, 16, 3) uint8: what the episode's rule makes of `actions` (K, A) after `frame`."""
    y, x = np.argwhere(np.asarray(frame)[..., 0] == 255)[0]
    video = np.zeros((len(actions), 12, 16, 3), np.uint8)
    for t, (right, down) in enumerate(np.asarray(actions)):
        x, y = np.clip(x + int(right), 0, 14), np.clip(y + int(down), 0, 10)
        video[t, y:y + 2, x:x + 2] = 255
    return video


def script(name, *flags, code=0):
    """
    Run a script inside this process, seconds cheaper than a process of its own -> stdout, stderr. code: its
    exit status, or a tuple of those that will do.
    """
    out, err, ended = io.StringIO(), io.StringIO(), 0
    before = sys.argv, os.getcwd(), [signal.getsignal(s) for s in SIGNALS]
    sys.argv = [name, *map(str, flags)]
    os.chdir(ROOT)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(os.path.join(ROOT, name), run_name='__main__')
    except SystemExit as stop:
        ended = stop.code or 0
    finally:
        sys.argv, folder, handlers = before
        os.chdir(folder)
        torch.set_num_threads(1)                           # as in `start`: sums in another order would differ
        torch.set_flush_denormal(False)                    # hypothesis wants to see small numbers
        for s, handler in zip(SIGNALS, handlers):
            signal.signal(s, handler)
        close_prefetch()
        gc.collect()                                       # the script's globals hold the lock of out_dir
        gc.freeze()                                        # what is left need not be looked at every time
    if isinstance(ended, str):
        ended = print(ended, file=err) or 1
    wanted = code if isinstance(code, tuple) else (code,)
    assert ended in wanted, f'exit {ended}, wanted {code}\n{out.getvalue()}\n{err.getvalue()}'
    return out.getvalue(), err.getvalue()


def close_prefetch():
    """A script that failed half way leaves its thread to the end of the process, which is not near here."""
    for thread in threading.enumerate():
        owner = getattr(getattr(thread, '_target', None), '__self__', None)
        if isinstance(owner, Prefetch):
            owner.close()


def start(*args, ranks=1, **env):
    """Start a script of the repository: Popen with its output piped. ranks > 1: under torchrun."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={ranks}', '--master_port=0',
                '--standalone'] if ranks > 1 else [sys.executable]
    return subprocess.Popen([*launcher, *map(str, args)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {'OMP_NUM_THREADS': '1'} | env)


def finish(process, code=0):
    """Wait for the end, check the exit status -> stdout, stderr."""
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == code, f'exit {process.returncode}, wanted {code}\n{stdout}\n{stderr}'
    return stdout, stderr


def run(*args, ranks=1, code=0, **env):
    """
    Start and finish it -> stdout, stderr, of rank 0. ranks > 1: what torchrun does, without the seconds of
    torchrun itself.
    """
    if ranks == 1:
        return finish(start(*args, **env), code)
    return [finish(process, code) for process in start_ranks(*args, ranks=ranks, **env)][0]


def start_ranks(*args, ranks, **env):
    """A process per rank, as torchrun would start them."""
    with socket.socket() as s:
        s.bind(('localhost', 0))
        env |= {'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(s.getsockname()[1]), 'WORLD_SIZE': str(ranks)}
    return [start(*args, RANK=str(i), LOCAL_RANK=str(i), **env) for i in range(ranks)]


def one_line(errors):
    """The only line of stderr, or a failure: what a user can mend is said once, without a traceback."""
    said = errors.strip().splitlines()
    assert len(said) == 1 and 'Traceback' not in errors, errors
    return said[0]


@pytest.fixture
def tiny(data_dir, tmp_path):
    """The arguments of train.py for the tiny model on the tiny data into tmp_path/out; later flags win."""
    return ['train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', *TINY]


@pytest.fixture
def train(tiny):
    """train(*flags) runs that inside this process."""
    return lambda *flags, **kw: script(*tiny, *flags, **kw)


@pytest.fixture
def fixtures(monkeypatch):
    """The model files of tests/fixtures stand where those of the repository do."""
    monkeypatch.setattr(contract, 'HERE', FIXTURES)
    monkeypatch.syspath_prepend(FIXTURES)
    yield FIXTURES
    for name in contract.model_files():
        sys.modules.pop(name[:-3], None)
