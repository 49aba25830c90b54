"""
bench/sweep.py. Two tests train real cells (a kill -9 in the middle; a stop and a failing cell); the others
look at what lies on disk: cells made inside this process by the lines of --dry_run, or eval.json files
written by hand.
"""
import argparse
import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from glob import glob

import pytest
from conftest import ROOT, TINY, finish, script, start

import checkpoint

GRID = ['--grid=lr=1e-3,1e-2', '--grid=depth=2,4']
ASK = ['--metric=psnr', '--metric=gain_over_copy', '--mode=max', '--eval=n_clips=8']


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')           # sums in another order would differ
    spec = importlib.util.spec_from_file_location('bench_sweep', 'bench/sweep.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    yield module
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


@pytest.fixture
def config(data_dir, tmp_path):
    """CONFIG and --root of a sweep of the tiny model."""
    lines = [flag[2:] for flag in TINY if not flag.startswith('--device')]
    path = tmp_path / "a config's.py"                    # nothing goes unquoted
    lines += ["device = 'cpu'", "dataset = 'tiny_pixels'", f'data_dir = {data_dir!r}', 'max_steps = 3']
    path.write_text('\n'.join(lines))
    return [str(path), f'--root={tmp_path}/sweep', f'--name={path.stem}']


def by_hand(line, shell=False):
    """Do what a line of --dry_run says: python inside this process, seconds cheaper, or all in a shell."""
    for part in [line] if shell else line.split(' && '):
        words = shlex.split(part)
        if words[0] == sys.executable:
            script(*words[1:])                           # script checks the exit status
        else:
            subprocess.run(['sh', '-c', part], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def wait_until(condition, process, seconds=200):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_killed_and_started_again(sweep, config, tmp_path):
    """kill -9 of everything when two cells are done: only the others run; the table is that of no kill."""
    folder, command = f'{tmp_path}/sweep/{config[-1][7:]}', [*config, *GRID, *ASK]
    lines = script('bench/sweep.py', *command, '--dry_run')[0].splitlines()
    assert len(lines) == 4 and not os.path.exists(f'{tmp_path}/sweep')
    by_hand(lines[0], shell=True)                                        # one cell came from another machine
    first = subprocess.Popen([sys.executable, 'bench/sweep.py', *command], start_new_session=True, cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: len(glob(f'{folder}/*/*/cell.json')) == 2, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = [os.path.dirname(path) for path in glob(f'{folder}/*/*/cell.json')]
    files = [f'{cell}/{name}' for cell in done for name in ('eval.json', 'cell.json')]
    before = {path: (os.stat(path).st_mtime_ns, open(path, 'rb').read()) for path in files}
    assert len(done) == 2 and not os.path.exists(f'{folder}/table.csv')

    said, _ = script('bench/sweep.py', *command, '--jobs=2')
    assert said.count(' | eta ') == 2 and len(glob(f'{folder}/*/*/cell.json')) == 4
    assert {path: (os.stat(path).st_mtime_ns, open(path, 'rb').read()) for path in files} == before
    assert not any(cell in said for cell in done)

    other = [command[0], f'--root={tmp_path}/lines', *command[2:]]       # the unbroken one
    for line in script('bench/sweep.py', *other, '--dry_run')[0].splitlines():
        by_hand(line)
    script('bench/sweep.py', *other, '--table')
    assert script('bench/sweep.py', *other, '--dry_run')[0] == ''
    for name in ('table.md', 'table.csv'):
        tables = [open(path, 'rb').read() for path in glob(f'{tmp_path}/*/*/{name}')]
        assert len(tables) == 2 and tables[0] == tables[1]
    scores = {line.split(',')[2] for line in tables[0].decode().splitlines()[1:]}
    assert len(scores) == 4                                              # so they were different cells


def test_stop_and_failure(sweep, config, tmp_path):
    """A cell that fails does not stop the next one; SIGTERM does, gently: saved, not counted as trained."""
    command = ['--grid=depth=3,2', *ASK, '--save_every=1000000']
    cell = f'{tmp_path}/sweep/{config[-1][7:]}/depth=2/seed1'
    process = start('bench/sweep.py', *config, *command, '--max_steps=1000000')
    log = f'{cell}/logs.json.txt'
    wait_until(lambda: os.path.exists(log) and os.path.getsize(log) > 500, process)
    process.send_signal(signal.SIGTERM)
    said, errors = finish(process, code=1)
    failed = 'seed1 | failed: nanowm.Config: depth = 3: blocks come in space/time pairs, make it even'
    assert failed in said and 'depth=2' not in said and '|---' not in said
    assert errors == 'stopped; 0 of 2 cells are done; the same command goes on with the others\n'
    step = checkpoint.read(checkpoint.find(cell), 'meta.json')['step']
    assert step > 0 and not glob(f'{cell}/*eval*') and not glob(f'{cell}/cell.json')

    said, errors = script('bench/sweep.py', *config, *command, '--max_steps=1000001', '--dry_run')
    assert said.count('\n') == 2 and 'mv ' not in said                   # a larger max_steps only goes on
    checkpoint.write_text(f'{cell}/eval.json', '{"psnr": 1}\n')          # nor does a seal make it trained
    more = [*config, *command, '--max_steps=1000000']
    unfinished = sweep.make_cells(*sweep.parse(more))[1]
    checkpoint.write_text(unfinished.seal, unfinished.seal_text())
    assert not sweep.look(unfinished) and not unfinished.anew and not unfinished.again

    said, _ = script('bench/sweep.py', *config, '--grid=depth=2', *command[1:], f'--max_steps={step + 2}')
    assert checkpoint.read(checkpoint.find(cell), 'meta.json')['step'] == step + 2 and '(best) | - | ' in said
    assert f'step {step + 1}/' in open(f'{cell}/log.txt').read().split('stopped at step')[1]      # it went on


def test_what_makes_a_cell_start_anew(sweep, config, data_dir, tmp_path):
    def look(*flags):
        argv = [*config, *ASK, '--grid=lr_schedule=constant', *flags]
        return sweep.make_cells(*sweep.parse(argv))[0]
    by_hand(sweep.shell(look()))
    cell = look()
    assert cell.done and not cell.anew
    for flags in (['--log_every=2'], ['--lr=0.0001'], ['--keep=7', '--seeds=2']):        # 1e-4 is the default
        assert look(*flags).done, flags
    for flags, why in ((['--lr=1e-2'], 'lr = 0.0001, now 0.01'), (['--max_steps=2'], 'max_steps = 3, now 2'),
                       (['--hidden=64', '--lr=1e-2'], 'lr = 0.0001, now 0.01, hidden = 32, now 64'),
                       (['--max_steps=9'], ''), (['--eval=horizon=1'], ''), (['--eval=seed=3'], '')):
        other = look(*flags)
        assert not other.done and other.anew == why, flags
        assert sweep.shell(other).startswith('mv ' if why else 'rm -f '), flags
    shutil.copytree(f'{data_dir}/tiny_pixels', tmp_path / 'tiny_pixels')
    assert look(f'--data_dir={tmp_path}').done                           # the same bytes elsewhere
    meta = tmp_path / 'tiny_pixels' / 'meta.json'
    meta.write_text(meta.read_text().replace('"command": "tests"', '"command": "another"'))
    assert look(f'--data_dir={tmp_path}').done                         # nor does it matter how they were made
    meta.write_text(meta.read_text().replace('"sha256": "', '"sha256": "0', 1))
    assert look(f'--data_dir={tmp_path}').anew.startswith('data_sha = ')
    cosine = [*config, *ASK, '--grid=lr_schedule=cosine']
    by_hand(sweep.shell(sweep.make_cells(*sweep.parse(cosine))[0]))
    longer = sweep.make_cells(*sweep.parse([*cosine, '--max_steps=9']))[0]
    assert longer.anew == 'max_steps = 3, now 9'                         # its cosine would have been another

    changed = look('--lr=1e-2')                                          # nothing is deleted
    changed.commands = []
    slots = sweep.queue.SimpleQueue()
    slots.put({})
    assert sweep.run_cell(changed, slots).endswith('eval.json holds no JSON object')
    assert checkpoint.find(changed.folder + '.old1') and not os.path.exists(changed.folder + '/latest')
    shutil.rmtree(changed.folder)
    os.rename(changed.folder + '.old1', changed.folder)
    assert look().done
    held = checkpoint.lock(cell.folder)                              # e.g. a train.py that outlived its sweep
    assert 'is in use by another run' in sweep.run_cell(look('--lr=1e-2'), slots)
    assert os.path.exists(cell.seal)
    held.close()
    step = checkpoint.find(cell.folder)
    os.rename(step, f'{tmp_path}/away')
    assert look().done and not look('--lr=1e-2').done                    # numbers outlive deleted checkpoints
    os.rename(f'{tmp_path}/away', step)
    with open(f'{cell.folder}/eval.json', 'r+') as f:
        f.truncate(20)
    assert not look().done


def fake(sweep, config, axes, scores, *flags):
    """Cells with results written by hand, None = not done; then --table."""
    argv = [*config, *(f'--grid={axis}' for axis in axes), '--metric=a.b', '--metric=c', *flags]
    for cell, score in zip(sweep.make_cells(*sweep.parse(argv)), scores, strict=True):
        os.makedirs(cell.folder, exist_ok=True)
        if score is None:
            continue
        result = {'a': {'b': score, 'd': 'x'}, 'c': 1, 'e': [2]}
        checkpoint.write_text(f'{cell.folder}/eval.json', json.dumps(result))
        checkpoint.write_text(cell.seal, cell.seal_text())
    try:
        sweep.main([*argv, '--table'])
    except SystemExit as stop:
        return str(stop.code)
    return ''


def test_table_by_hand(sweep, config, tmp_path, capsys, monkeypatch):
    folder = f'{tmp_path}/sweep/{config[-1][7:]}'
    axes = ['lr=1e-3,1e-2', 'depth=2,4']
    scores = [1, 2, 4, 5, 5, 8, 3, math.nan, None, None, None, None]     # 3 seeds of each cell
    ended = fake(sweep, config, axes, scores, '--mode=min', '--seeds=3')
    assert ended == '8 of 12 cells are done; the same command goes on with the others'
    lines = [line.split(',') for line in open(f'{folder}/table.csv').read().splitlines()]
    assert lines[0] == ['lr', 'depth', *(m + e for m in ('a.b', 'c') for e in
                                         ('', '_low', '_high', '_min', '_max', '_n')), 'best']
    assert [line[:2] for line in lines[1:]] == [['1e-3', '2'], ['1e-3', '4'], ['1e-2', '2'], ['1e-2', '4']]
    half = [4.303 * math.sqrt(7 / 3) / math.sqrt(3), 4.303 * math.sqrt(3) / math.sqrt(3)]
    expected = [[7 / 3, 7 / 3 - half[0], 7 / 3 + half[0], 1, 4, 3], [6, 6 - half[1], 6 + half[1], 5, 8, 3]]
    for line, numbers in zip(lines[1:], expected):
        assert [float(x) for x in line[2:8]] == pytest.approx(numbers, rel=1e-12)
    assert lines[3][2:8] == ['3', '', '', '3', '3', '1']                 # nan: out
    assert lines[4][2:8] == ['', '', '', '', '', '0']
    assert lines[3][8:14] == ['1.0', '1.0', '1.0', '1', '1', '2']
    assert [line[-1] for line in lines[1:]] == list('1000')
    text = open(f'{folder}/table.md').read()
    assert '| 1e-3 | 2 | **2.333** (best) | -1.462 .. 6.128 | 1 .. 4 | 3 | 1 | 1 .. 1 |' in text
    assert text.count('**') == 2
    assert text in capsys.readouterr().out
    if importlib.util.find_spec('matplotlib'):
        assert open(f'{folder}/table.png', 'rb').read(4) == b'\x89PNG'
        os.remove(f'{folder}/table.png')
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)          # not installed
    fake(sweep, config, axes, scores, '--mode=max', '--seeds=3')
    assert "the heat map needs: pip install -e '.[plot]'\n" in capsys.readouterr().out
    lines = open(f'{folder}/table.csv').read().splitlines()
    assert [line[-1] for line in lines[1:]] == list('0100') and not glob(f'{folder}/*.png')
    assert not glob(f'{folder}/*tmp*')
    assert fake(sweep, config, axes, scores, '--mode=max', '--seeds=3', '--metric=a.d') == \
        "no metric 'a.d' in eval.json; there is: a.b, c"
    assert fake(sweep, config, [], [7], '--mode=max') == '' and '| **7** (best) | - | 7 .. 7 | 1 |' in \
        capsys.readouterr().out                                          # no axes: one point, called `config`


def test_quantiles_and_heat_map_orientation(sweep, tmp_path):
    """95 % of Student's density lies between -t and t (Simpson's rule): table, and the series after it."""
    for n in (*range(1, 25), 40, 200):
        values = [0.0] * n + [1.0]                                       # half = t * stdev / sqrt(n + 1)
        mean, low, *_ = sweep.over_seeds(values)
        t, m = (mean - low) / (sweep.stdev(values) / math.sqrt(n + 1)), 2000
        weights = [1, *[4, 2] * (m // 2 - 1), 4, 1]
        area = sum(w * (1 + (i * t / m) ** 2 / n) ** (-(n + 1) / 2) for i, w in enumerate(weights))
        area *= t / m / 3
        area *= 2 * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
        assert area == pytest.approx(0.95, abs=5e-5), n
    figure = pytest.importorskip('matplotlib.figure')
    seen, real = [], figure.Figure.savefig
    figure.Figure.savefig = lambda self, *a, **k: seen.append(self.axes[0]) or real(self, *a, **k)
    try:
        axes = {'lr': ['a', 'b'], 'depth': ['1', '2', '3']}
        args = argparse.Namespace(axes=axes, metric=['psnr'], mode='max')
        sweep.heat_map(f'{tmp_path}/x.png', args, [1, 2, None, 4, 5, 6], 5)
    finally:
        figure.Figure.savefig = real
    image = seen[0].images[0].get_array().filled(-1)
    assert image.tolist() == [[1, 2, -1], [4, 5, 6]]
    assert (seen[0].get_xlabel(), seen[0].get_ylabel()) == ('depth', 'lr')


@pytest.mark.parametrize('flags, line', [
    (['--grid=lr=1e-3,0.001'], '--grid: lr=1e-3 and lr=0.001 are one point; leave one out'),
    (['--root={tmp}/file'], '--root={tmp}/file: {tmp}/file/'),
    (['--root=/proc/nowhere'], '--root=/proc/nowhere: ')])
def test_what_cannot_be_run_gets_one_line(config, tmp_path, flags, line):
    (tmp_path / 'file').write_text('a file')
    flags = [flag.replace('{tmp}', str(tmp_path)) for flag in flags]
    _, errors = script('bench/sweep.py', *config, *ASK, *flags, code=1)
    assert errors.startswith(line.replace('{tmp}', str(tmp_path))) and errors.count('\n') == 1
    assert not os.path.exists(tmp_path / 'sweep')


def test_an_unknown_metric_ends_the_sweep_after_one_cell(config, tmp_path):
    """One line with the names that there are; the other cells do not train. Next time it is known before."""
    command = ['bench/sweep.py', *config, '--grid=lr=1e-3,1e-2', '--seeds=2', '--metric=psnrr', '--mode=max',
               '--eval=n_clips=4', '--eval=sample_steps=2']
    said, errors = script(*command, code=1)
    assert errors.startswith("no metric 'psnrr' in eval.json; there is: ") and errors.count('\n') == 1
    assert ' psnr, ' in errors and len(glob(f'{tmp_path}/sweep/*/*/*/eval.json')) == 1
    assert len(glob(f'{tmp_path}/sweep/*/*/*/latest')) == 1
    result = json.load(open(glob(f'{tmp_path}/sweep/*/*/*/eval.json')[0]))
    assert result['sampling_keys'] == {'sample_steps': 2}
    assert script(*command, code=1) == ('', errors)
    assert len(glob(f'{tmp_path}/sweep/*/*/*/latest')) == 1


def test_other_code_unseals_a_cell(sweep, config, tmp_path, capsys):
    """Code that trains: anew. Code that judges: judged again. A line says why; --keep_sealed accepts both."""
    argv = [*config, *ASK]

    def look(*flags):
        return sweep.make_cells(*sweep.parse([*argv, *flags]))[0]
    by_hand(sweep.shell(look()))
    cell = look()
    assert cell.done and {'train.py', 'data/loader.py', 'nanowm.py'} == set(cell.code['train'])
    assert {'eval.py', 'metrics.py', 'protocols/video.py', 'protocols/common.py'} <= set(cell.code['judge'])
    assert 'protocols/plan.py' not in cell.code['judge']     # another protocol does not judge this cell
    assert {'cem.py', 'protocols/plan.py'} <= set(sweep.code_now('arx5_gpt', 'plan')['judge'])
    for name in {**cell.code['train'], **cell.code['judge']}:
        assert os.path.isfile(os.path.join(ROOT, name)), name
    whole = open(cell.seal).read()
    for part, name, key in (('train', 'nanowm.py', 'anew'), ('judge', 'protocols/video.py', 'again')):
        seal = json.loads(whole)
        seal[part][name] = '0' * 16
        checkpoint.write_text(cell.seal, json.dumps(seal))
        other = look()
        assert not other.done and getattr(other, key) == f'{name} changed since'
        assert sweep.shell(other).startswith('mv ' if key == 'anew' else 'rm -f ')
        assert look('--keep_sealed').done and not look('--keep_sealed', '--lr=1e-2').done
    shutil.rmtree(cell.aside, ignore_errors=True)
    args, passed = sweep.parse(argv)
    assert not sweep.run_cells(sweep.make_cells(args, passed), args)     # judged again, not trained again
    said = capsys.readouterr().out
    assert f'{cell.folder}: protocols/video.py changed since: is judged again' in said and look().done
    assert 'nothing to do' in open(f'{cell.folder}/log.txt').read() and not os.path.exists(cell.aside)

    step = checkpoint.find(cell.folder)                  # stopped half-way: no seal, but the checkpoint knows
    os.remove(cell.seal)
    meta = checkpoint.read(step, 'meta.json')
    checkpoint.write_text(f'{step}/meta.json', json.dumps(meta | {'model_sha': 'another'}))
    assert look().anew == 'nanowm.py changed since' and not look('--keep_sealed').anew


@pytest.mark.parametrize('flags, words', [
    (['--max_stepz=3'], "unknown key 'max_stepz' (--max_stepz); did you mean 'max_steps'?"),
    (['--grid=hiden=8,16'], "unknown key 'hiden' (--hiden); did you mean 'hidden'?"),
    (['--grid=lr=1e-3,fast'], "lr wants float like 0.0001, got str 'fast' (--lr)"),
    (['--eval=horizn=3'], "unknown key 'horizn' (--horizn); did you mean 'horizon'?"),
    (['--seed=3'], '--seed=3: the sweep sets seed'), (['--grid=seed=3,4'], 'seed=3,4: the sweep sets seed'),
    (['--eval=out=x'], 'out=x: the sweep sets out'),
    (['--grid=lr=1,2', '--lr=3'], '--lr=3: is an axis of the grid'),
    (['--grid=lr=1,1'], '--grid lr=1,1: want KEY=A,B'),
    (['--grid=lr=1,2', '--grid=lr=3'], '--grid lr=3: want KEY'),
    (['--grid=lr'], '--grid lr: want KEY=A,B'), (['--jobs=0'], '--jobs 0: at least 1'),
    (['--eval=protocol=env'], "protocol = 'env': nanowm understands video, plan, loss"),
    (['--eval=n_samples=3'], "unknown key 'n_samples' (--n_samples)"),           # a key of another protocol
    (['--dataset=nosuch'], 'nosuch/meta.json not found')])
def test_a_typo_starts_nothing(config, tmp_path, flags, words):
    _, errors = script('bench/sweep.py', *config, *ASK, *flags, code=2)
    assert words in errors and 'Traceback' not in errors and not os.path.exists(tmp_path / 'sweep')


def test_cells_share_cores_and_take_gpus_in_turn(sweep, config, monkeypatch, tmp_path):
    """Four at a time on 8 cores and 2 GPUs; a second sweep there gets one line; --help names every flag."""
    seen = []
    def run_cell(cell, slots):
        seen.append(slots.get())
        return 'not today'
    monkeypatch.setattr(sweep, 'run_cell', run_cell)
    monkeypatch.setattr(sweep.signal, 'signal', lambda *_: None)
    monkeypatch.setenv('OMP_NUM_THREADS', '8')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    args, passed = sweep.parse([*config, *GRID, *ASK, '--jobs=4'])
    failed = sweep.run_cells(sweep.make_cells(args, passed), args)
    assert list(failed.values()) == ['not today'] * 4 and {slot['OMP_NUM_THREADS'] for slot in seen} == {'2'}
    assert sorted(slot['CUDA_VISIBLE_DEVICES'] for slot in seen) == ['3', '3', '5', '5']
    held = checkpoint.lock(f'{tmp_path}/sweep/{args.name}')
    _, errors = script('bench/sweep.py', *config, *GRID, *ASK, code=1)
    line = ' is in use by another sweep; wait for it, or choose another --name'
    assert errors.strip() == held.name[:-5] + line
    said, _ = script('bench/sweep.py', '--help')
    assert all(f'--{key}' in said for key in vars(args) if key not in ('config', 'axes', 'folder'))
