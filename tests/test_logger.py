"""logger.py: the file survives a kill and a resume; the trackers get the same scalars."""
import json
import math
import resource
import sys
from importlib.util import find_spec

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


@pytest.mark.parametrize('kind', ['wand', 'tensorbord'])
def test_unknown_kind_is_one_line(tmp_path, capsys, kind):
    with pytest.raises(SystemExit) as stop:
        make_logger(kind, tmp_path, 'toy', {})
    assert stop.value.code == 2
    assert capsys.readouterr().err == (f"log = '{kind}': choose one of "
                                       "('', 'tensorboard', 'wandb', 'swanlab')\n")


@pytest.mark.parametrize('kind, package', [('tensorboard', 'torch.utils.tensorboard'),
                                           ('wandb', 'wandb'), ('swanlab', 'swanlab')])
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


class Wandb:
    """
    Likewise. As the service does, it keeps one history for each id, drops what is below its own last step,
    gives a resumed run the old config back, and refuses to change a value of that unasked.
    """

    def __init__(self): self.runs, self.histories, self.configs, self.axes = [], {}, {}, []

    def Settings(self, **settings): return settings

    def init(self, id, resume, **asked):
        assert resume == 'allow'
        self.id, self.config = id, self
        self.runs.append({'id': id, **asked})
        self.configs.setdefault(id, {})
        return self

    def update(self, config, allow_val_change=False):
        known = self.configs[self.id]
        assert allow_val_change or all(known.get(key, value) == value for key, value in config.items())
        known.update(config)

    def define_metric(self, name, step_metric): self.axes.append((name, step_metric))

    def log(self, row, step=None):
        history = self.histories.setdefault(self.id, [])
        if step is None or not history or step >= history[-1][0]:
            history.append((len(history) if step is None else step, row))

    def finish(self): self.runs[-1]['finished'] = True


def test_swanlab_gets_the_scalars_and_goes_on(tmp_path, monkeypatch):
    fake = Swanlab()
    monkeypatch.setitem(sys.modules, 'swanlab', fake)
    monkeypatch.setenv('SWANLAB_PROJ_NAME', 'mine')
    for step, run_id in (None, 'a' * 16), (5, 'a' * 16), (None, 'b' * 16):
        logger = make_logger('swanlab', tmp_path, 'toy', {'lr': 1e-4}, step, run_id)
        logger.log({'train/loss': 0.5, 'eval/test_mean_score': math.nan}, step or 0)
        logger.close()
    assert fake.rows == [(0, {'train/loss': 0.5}), (5, {'train/loss': 0.5}), (0, {'train/loss': 0.5})]
    assert [run['id'] for run in fake.runs] == ['a' * 16, 'a' * 16, 'b' * 16]
    assert all(run['finished'] and run['resume'] == 'allow' for run in fake.runs)
    first = fake.runs[0]
    assert first['project'] == 'mine' and first['name'] == 'toy' and first['config'] == {'lr': 1e-4}
    assert first['log_dir'] == str(tmp_path / 'swanlog')


def test_wandb_loses_no_step_that_is_repeated(tmp_path, monkeypatch):
    """The first process logged steps 0 to 3 and was killed; the second goes on from the save at step 2."""
    fake = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setenv('WANDB_PROJECT', 'mine')
    for start, loss, config in (0, 1.0, {'max_steps': 4}), (2, 2.0, {'max_steps': 6, 'resume': True}):
        logger = make_logger('wandb', tmp_path, 'toy', config, start or None, 'a' * 16)
        for step in range(start, start + 4):
            logger.log({'train/loss': loss, 'val/loss': math.nan}, step)
        if start:
            logger.close()
    points = [(row['step'], row['train/loss']) for _, row in fake.histories['a' * 16]]
    assert points == [(0, 1), (1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
    assert all(row.keys() == {'step', 'train/loss'} for _, row in fake.histories['a' * 16])
    assert fake.axes == [('*', 'step')] * 2                  # so the second 2 is drawn at 2, not at 4
    assert fake.configs == {'a' * 16: {'max_steps': 6, 'resume': True}}
    first, last = fake.runs
    assert first['project'] == 'mine' and first['name'] == 'toy' and first['dir'] == tmp_path
    assert 'finished' not in first and last['finished']


@pytest.mark.parametrize('kind', ['wandb', 'swanlab'])
def test_no_key_is_one_line(tmp_path, monkeypatch, kind):
    """Both raise where there is no terminal to ask at, each a class of its own."""
    fake = Wandb()
    fake.init = lambda **asked: exec('raise RuntimeError("no key.\\nSay login.")')
    monkeypatch.setitem(sys.modules, kind, fake)
    with pytest.raises(SystemExit) as stop:
        make_logger(kind, tmp_path, 'toy', {}, run_id='a' * 16)
    name = kind.upper()
    assert stop.value.code == f"log = '{kind}': no key. Say login; set {name}_API_KEY, or {name}_MODE=offline"


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, capsys, monkeypatch):
    """Its process was killed, say: one line, then the file alone."""
    fake = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    logger = make_logger('wandb', tmp_path, 'toy', {}, run_id='a' * 16)
    logger.log({'loss': 1.0}, 0)
    fake.log = fake.finish = lambda *row: exec('raise ConnectionResetError("lost")')
    for step in 1, 2:
        logger.log({'loss': 1.0}, step)
    logger.close()
    assert capsys.readouterr().err == ("log = 'wandb': lost; the run goes on without it, "
                                       f'{tmp_path}/logs.json.txt has every row\n')
    assert len(lines(tmp_path)) == 3 and len(fake.histories['a' * 16]) == 1


def test_a_tensorboard_folder_that_cannot_be_is_one_line(tmp_path):
    pytest.importorskip('tensorboard', reason='needs the extra [log]')
    (tmp_path / 'tensorboard').write_text('')
    with pytest.raises(SystemExit) as stop:
        make_logger('tensorboard', tmp_path, 'toy', {})
    assert stop.value.code == (f"log = 'tensorboard': [Errno 17] File exists: '{tmp_path}/tensorboard'; "
                               'choose another --out_dir')


@pytest.mark.parametrize('mode', ['offline', 'disabled'])
@pytest.mark.parametrize('kind, files', [('wandb', 'wandb/offline-run-*-{id}/run-{id}.wandb'),
                                         ('swanlab', 'swanlog/run-*{id}/*.swanlab')])
def test_the_packages_themselves(tmp_path, kind, files, mode):
    """The real one, in a process of its own: offline, curves lie on the disk; disabled, nothing does."""
    if find_spec(kind) is None:
        pytest.skip('needs the extra [log]')
    code = ("import sys; sys.path.insert(0, '.'); from logger import make_logger\n"
            "logger = make_logger(sys.argv[1], sys.argv[2], 'toy', {'lr': 1e-4}, None, 'a' * 16)\n"
            "logger.log({'train/loss': 0.5}, 3); logger.close()")
    _, errors = run('-c', code, kind, tmp_path, WANDB_MODE=mode, SWANLAB_MODE=mode,
                    SWANLAB_SAVE_DIR=str(tmp_path / 'home'))
    assert lines(tmp_path) == ['{"step": 3, "train/loss": 0.5}']
    assert 'goes on without it' not in errors
    assert len([*tmp_path.glob(files.format(id='a' * 16))]) == (mode == 'offline')


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
