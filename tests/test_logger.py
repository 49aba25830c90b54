"""logger.py: the file survives a kill and a resume; tensorboard and swanlab get the same scalars."""
import json
import math
import resource
import sys

import numpy as np
import pytest
import torch
from conftest import run
from hypothesis import given
from hypothesis import strategies as st

from logger import make_logger, peak_of, read_logs


def lines(out_dir):
    return (out_dir / 'logs.json.txt').read_text().splitlines()


def test_one_strict_json_object_per_line_at_once(tmp_path):
    logger = make_logger('', tmp_path / 'new' / 'folder', 'toy', {})
    logger.log({'train/loss': 0.5, 'n': 3}, 10)
    # flushed, not closed
    assert lines(tmp_path / 'new' / 'folder') == ['{"step": 10, "train/loss": 0.5, "n": 3}']
    tensor = torch.tensor(2.0, requires_grad=True)
    logger.log({'tensor': tensor, 'numpy': np.float32(0.5), 'long': np.int64(4)}, 11)
    logger.log({'nan': float('nan'), 'inf': torch.tensor(float('inf')), 'minus': -np.inf}, 12)
    logger.close()
    def refuse(word):
        raise AssertionError(f'{word} is not JSON')
    rows = [json.loads(line, parse_constant=refuse) for line in lines(tmp_path / 'new' / 'folder')]
    assert rows[1:] == [{'step': 11, 'tensor': 2.0, 'numpy': 0.5, 'long': 4},
                        {'step': 12, 'nan': None, 'inf': None, 'minus': None}]


@pytest.mark.parametrize('value', ['0.5', None, [1.0], {'a': 1}])
def test_only_scalars(tmp_path, value):
    logger = make_logger('', tmp_path, 'toy', {})
    with pytest.raises(AssertionError, match='takes scalars'):
        logger.log({'x': value}, 0)
    with pytest.raises((ValueError, RuntimeError)):
        logger.log({'x': torch.zeros(2)}, 0)
    logger.close()
    assert lines(tmp_path) == []                            # a refused row leaves nothing behind


def test_resume_appends_and_the_later_row_of_a_step_wins(tmp_path):
    for steps, loss in (range(0, 4), 1.0), (range(2, 5), 2.0):
        logger = make_logger('', tmp_path, 'toy', {})
        for step in steps:
            logger.log({'loss': loss}, step)
        logger.close()
    assert len(lines(tmp_path)) == 7
    assert [row['loss'] for row in read_logs(tmp_path / 'logs.json.txt')] == [1.0, 1.0, 2.0, 2.0, 2.0]


def test_train_and_validation_rows_of_a_step_are_one(tmp_path):
    logger = make_logger('', tmp_path, 'toy', {})
    logger.log({'train/loss': 1}, 5)
    logger.log({'val/loss': 2}, 5)
    assert read_logs(tmp_path / 'logs.json.txt') == [{'step': 5, 'train/loss': 1, 'val/loss': 2}]
    logger.close()


@given(cut=st.integers(0, 60))
def test_a_file_cut_anywhere_loses_at_most_the_cut_line(tmp_path_factory, cut):
    """
    What a kill -9 leaves: any number of bytes. Whole lines stay, the next row starts on a line of its own.
    """
    folder = tmp_path_factory.mktemp('cut')
    rows = [{'step': step, 'loss': 0.5} for step in range(2)]
    whole = b''.join(json.dumps(row).encode() + b'\n' for row in rows)              # 50 bytes
    (folder / 'logs.json.txt').write_bytes(whole[:cut])
    logger = make_logger('', folder, 'toy', {})
    logger.log({'loss': 7}, 9)
    logger.close()
    *left, last = read_logs(folder / 'logs.json.txt')
    assert last == {'step': 9, 'loss': 7}
    # a lost newline loses no row
    assert [row['step'] for row in left] == list(range(whole[:cut + 1].count(b'\n')))
    assert b'\n\n' not in (folder / 'logs.json.txt').read_bytes()


@pytest.mark.parametrize('name, peak', [
    ('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H200', 989e12), ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA GeForce RTX 4090', 165e12), ('NVIDIA L40S', 362e12), ('some CPU', 0)])
def test_peak_of_a_device(name, peak):
    assert peak_of(name) == peak


def test_a_full_disk_is_one_line(tmp_path):
    """A file size limit stands for it. The row is lost, and so is the run, but with a way out."""
    logger = make_logger('', tmp_path, 'toy', {})
    logger.log({'loss': 1.0}, 3)
    path = tmp_path / 'logs.json.txt'
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            logger.log({'loss': 1.0}, 4)
        logger.close()                                       # nothing is left over for it to write
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == f'{path}: File too large; make room, then --resume=True'
    assert path.read_bytes() == before


def test_a_log_file_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / 'logs.json.txt').mkdir()
    with pytest.raises(SystemExit) as stop:
        make_logger('', tmp_path, 'toy', {})
    assert stop.value.code == f'{tmp_path}/logs.json.txt: Is a directory; choose another --out_dir'


@pytest.mark.parametrize('kind', ['wandb', 'tensorbord'])
def test_unknown_kind_is_one_line(tmp_path, capsys, kind):
    with pytest.raises(SystemExit) as stop:
        make_logger(kind, tmp_path, 'toy', {})
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"log = '{kind}': choose '', 'tensorboard' or 'swanlab'\n"


@pytest.mark.parametrize('kind, package', [('tensorboard', 'torch.utils.tensorboard'),
                                           ('swanlab', 'swanlab')])
def test_missing_package_is_one_line(tmp_path, capsys, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)                         # import finds None: ImportError
    with pytest.raises(SystemExit) as stop:
        make_logger(kind, tmp_path, 'toy', {})
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"log = '{kind}' needs: pip install -e '.[log]'\n"


class Swanlab:
    """What logger.py asks of the package; the real one is started once, below."""

    def __init__(self): self.runs, self.rows = [], []

    def init(self, **asked): self.runs.append(asked)

    def log(self, row, step): self.rows.append((step, row))

    def finish(self): self.runs[-1]['finished'] = True


def test_swanlab_gets_the_scalars_and_goes_on(tmp_path, monkeypatch):
    fake = Swanlab()
    monkeypatch.setitem(sys.modules, 'swanlab', fake)
    monkeypatch.setenv('SWANLAB_PROJ_NAME', 'mine')
    for step, out in (None, 'a'), (5, 'a'), (None, 'b'):
        logger = make_logger('swanlab', tmp_path / out, 'toy', {'lr': 1e-4}, step=step)
        logger.log({'train/loss': 0.5, 'eval/test_mean_score': math.nan}, step or 0)
        logger.close()
    assert fake.rows == [(0, {'train/loss': 0.5}), (5, {'train/loss': 0.5}), (0, {'train/loss': 0.5})]
    ids = [run['id'] for run in fake.runs]
    assert ids[0] == ids[1] != ids[2]
    assert all(run['finished'] and run['resume'] == 'allow' for run in fake.runs)
    first = fake.runs[0]
    assert first['project'] == 'mine' and first['name'] == 'toy' and first['config'] == {'lr': 1e-4}
    assert first['log_dir'] == str(tmp_path / 'a' / 'swanlog')


def test_swanlab_without_a_key_is_one_line(tmp_path, monkeypatch):
    fake = Swanlab()
    fake.init = lambda **asked: exec('raise RuntimeError("no key.\\nAnd more")')
    monkeypatch.setitem(sys.modules, 'swanlab', fake)
    with pytest.raises(SystemExit) as stop:
        make_logger('swanlab', tmp_path, 'toy', {})
    assert stop.value.code == "log = 'swanlab': no key. Set SWANLAB_API_KEY, or SWANLAB_MODE=offline"


@pytest.mark.parametrize('mode', ['offline', 'disabled'])
def test_swanlab_itself(tmp_path, mode):
    """The real package, in a process of its own: offline, curves lie on the disk; disabled, nothing does."""
    pytest.importorskip('swanlab', reason='needs the extra [log]')
    code = ("import sys; sys.path.insert(0, '.'); from logger import make_logger\n"
            "logger = make_logger('swanlab', sys.argv[1], 'toy', {'lr': 1e-4})\n"
            "logger.log({'train/loss': 0.5}, 3); logger.close()")
    run('-c', code, tmp_path, SWANLAB_MODE=mode, SWANLAB_SAVE_DIR=str(tmp_path / 'home'))
    assert lines(tmp_path) == ['{"step": 3, "train/loss": 0.5}']
    assert len([*(tmp_path / 'swanlog').glob('run-*/*.swanlab')]) == (mode == 'offline')


def test_tensorboard_curves_go_on_after_a_resume(tmp_path):
    pytest.importorskip('tensorboard', reason='needs the extra [log]')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for start, loss in (0, 1.0), (2, 2.0):                      # the first process got further than its save
        logger = make_logger('tensorboard', tmp_path, 'toy', {'lr': 1e-4, 'name': 'x'}, step=start or None)
        for step in range(start, start + 4):
            logger.log({'train/loss': loss}, step)
        logger.close()
    curves = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    points = [(event.step, event.value) for event in curves.Scalars('train/loss')]
    assert points == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert len(lines(tmp_path)) == 8
