"""Shared by the tests: a data folder of a few kilobytes, and one way to start the scripts."""
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')     # golden values of the originals, where somebody has them
sys.path.insert(0, ROOT)
# a NanoWM that trains in milliseconds on tiny_pixels
TINY = ['--hidden=32', '--heads=2', '--depth=2', '--patch=4', '--num_frames=2', '--batch_size=4', '--sample_steps=3',
        '--device=cpu', '--val_batches=1', '--log_every=1', '--warmup_steps=2']


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


def start(*args, ranks=1, **env):
    """Start a script of the repository: Popen with its output piped. ranks > 1: under torchrun."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={ranks}', '--master_port=0',
                '--standalone'] if ranks > 1 else [sys.executable]
    return subprocess.Popen([*launcher, *map(str, args)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {'OMP_NUM_THREADS': '1'} | env)


def run(*args, code=0, **kw):
    """Run it to the end, check the exit status -> stdout, stderr."""
    process = start(*args, **kw)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == code, f'exit {process.returncode}, wanted {code}\n{stdout}\n{stderr}'
    return stdout, stderr


@pytest.fixture
def train(data_dir, tmp_path):
    """train(*flags) runs train.py with the tiny model on the tiny data into tmp_path/out."""
    def call(*flags, **kw):
        return run('train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', *TINY,
                   *flags, **kw)
    return call
