"""bench/versus_lerobot.py without LeRobot: what is compared, in which direction, and what it says without."""
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import one_line, script
from test_data_lerobot import LENGTHS, TOP, filmed

import act
import diffusion_policy
from bench import timing, upstream
from bench import versus_lerobot as bench
from data.lerobot import reader
from data.video import frames

pytest.importorskip('av')
pq = pytest.importorskip('pyarrow.parquet')


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks and pictures of nothing."""
    monkeypatch.setattr(bench, 'ACT', bench.ACT | dict(
        chunk_size=6, n_action_steps=6, dim_model=16, n_heads=2, dim_feedforward=16, n_encoder_layers=1,
        n_vae_encoder_layers=1))
    for key, value in dict(down_dims=(8, 16), act_sizes=('32x40',), dp_sizes=('32x32',), batch=2,
                           modes=('eager',)).items():
        monkeypatch.setattr(bench, key, value)


def clock(reps=2):
    c = timing.Clock('cpu', 'float32', reps)
    c.now = time.process_time
    return c


class Twin(torch.nn.Module):
    """Stands for LeRobot's: our own network under another name; off: how much it differs from it."""
    off = 0.0

    def __init__(self, ours, arguments):
        super().__init__()
        self.inner = type(ours)(ours.cfg)
        self.inner.load_state_dict(ours.state_dict())
        self.policy = SimpleNamespace(predict_action_chunk=lambda seen: self.inner.act(seen) + self.off)

    def renamed(self, ours, batch):
        return batch

    def forward(self, batch):
        return {'loss': self.inner(batch)['loss'] * (1 + self.off)}

    def optimizer(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize('rows, part, cases', [
    (bench.step_rows, 'step', [f'{name}, eager, {phase}' for name in ('act 32x40', 'diffusion_policy 32x32')
                               for phase in ('fwd+bwd', 'clip+optimizer', 'step')]),
    (bench.chunk_rows, 'chunk', ['act 32x40'])])
def test_rows(monkeypatch, rows, part, cases):
    monkeypatch.setattr(upstream, 'Theirs', Twin)
    got = rows(clock())
    assert [(row['part'], row['case']) for row in got] == [(part, case) for case in cases]
    assert {row['against'] for row in got} == {'LeRobot'}
    for row in got:
        assert row['difference'] < 1e-6 and len(row['ratios']) == 2 and 0 < row['low'] <= row['ratio']
        assert row['ratio'] <= row['high'] and row['ours_ms'] > 0 and row['other_ms'] > 0
    for parts in zip(*[iter(got)] * 3):                  # the phases are those of the same steps
        assert parts[2]['ours_ms'] == pytest.approx(parts[0]['ours_ms'] + parts[1]['ours_ms'], rel=1e-6)
    monkeypatch.setattr(Twin, 'off', 0.1)
    with pytest.raises(SystemExit, match='^act 32x40, .*ours and the other are not the same, they differ by'):
        rows(clock())


def test_a_gradient_that_differs_is_found():
    ours, theirs, data, their_data = pair(act, '32x40')
    assert bench.same_step('act', ours, theirs, data, their_data) < 1e-6
    theirs.inner.action_head.weight.register_hook(lambda grad: grad * 1.01)
    ours.zero_grad()
    theirs.zero_grad()
    with pytest.raises(SystemExit, match='act, gradient of action_head.weight: .* differ by 0.01'):
        bench.same_step('act', ours, theirs, data, their_data)


def pair(M, size):
    """bench.pair with a Twin, without dropout."""
    real, upstream.Theirs = upstream.Theirs, Twin
    try:
        return bench.pair(M, size, 2, dropout=0.0)
    finally:
        upstream.Theirs = real


@pytest.mark.parametrize('M', (act, diffusion_policy))
def test_a_batch_under_their_names(M):
    """Normalised by our statistics; the padding of the first sample is told the other way round."""
    ours, _, data, _ = pair(M, '32x32')
    if M is act:
        ours.action_mean.fill_(0.5)
    else:
        ours.action_min.fill_(-1)
    got = upstream.Theirs.renamed(SimpleNamespace(camera='observation.images.top'), ours, data)
    assert got.keys() == {'observation.state', 'observation.images.top', 'action', 'action_is_pad'}
    steps = () if M is act else (2,)
    assert got['observation.images.top'].shape == (2, *steps, 3, 32, 32)
    assert got['observation.state'].shape == (2, *steps, 26)
    assert torch.equal(got['action'], ours.normalise(data, 'action'))
    assert not torch.equal(got['action'], data['action'])
    half = data['mask'].shape[1] // 2
    assert got['action_is_pad'][0].tolist() == [False] * half + [True] * (data['mask'].shape[1] - half)
    assert not got['action_is_pad'][1].any()


def test_imports_are_timed_in_fresh_processes(monkeypatch):
    """torch / act, because the ratio is that of the other to ours; LeRobot's line only where it is."""
    cost, ran, total = {'torch': 2.0, 'act': 2.5, 'diffusion_policy': 4.0, 'modeling_act': 5.0}, [], [0.0]

    def run(command, cwd, env, check):
        assert command[:2] == [sys.executable, '-c'] and env['OMP_NUM_THREADS'] == '1' and check
        ran.append(command[2])
        total[0] += cost[command[2].rpartition('import ')[2].rpartition('.')[2]]
    monkeypatch.setattr(bench, 'spent', lambda: total[0])
    monkeypatch.setattr(bench, 'subprocess', SimpleNamespace(run=run))
    monkeypatch.setattr(upstream, 'lacking', lambda: 'not there')
    rows = bench.import_rows(clock())
    assert ran == ['import torch', 'import act', 'import diffusion_policy'] * 3          # the first warms up
    assert [(row['case'], row['against'], row['ratio']) for row in rows] == [
        ('act', 'torch', 2.0 / 2.5), ('diffusion_policy', 'torch', 2.0 / 4.0)]
    monkeypatch.setattr(upstream, 'lacking', lambda: '')
    monkeypatch.setattr(upstream, 'prelude', lambda: 'x = 1\n')
    rows = bench.import_rows(clock())
    assert ran[-1] == 'x = 1\nimport lerobot.policies.act.modeling_act'
    assert (rows[2]['case'], rows[2]['against'], rows[2]['ratio']) == ('act', 'LeRobot', 2.0)


def test_seconds_of_processes_that_ended():
    before = bench.spent()
    subprocess.run([sys.executable, '-S', '-c', 'sum(range(10 ** 6))'], check=True)
    assert 0 < bench.spent() - before < 60


def test_without_lerobot(tmp_path, monkeypatch):
    """What needs it not is measured and saved; then one line says what is missing, why, and where to look."""
    monkeypatch.setattr(upstream, 'lacking', lambda: "No module named 'lerobot'")
    flags = '--reps=2', '--device=cpu', f'--out={tmp_path}/x.json'
    said, err = script('bench/versus_lerobot.py', '--parts=step,sampler', *flags, code=1)
    line = ("no step: LeRobot 0.4.4 cannot be imported (No module named 'lerobot'); the top of "
            'bench/upstream.py says how to install it, in two commands')
    assert one_line(err) == line
    assert 'pip install --no-deps lerobot==0.4.4' in upstream.__doc__
    saved = json.loads((tmp_path / 'x.json').read_text())
    row, = saved['rows']
    assert (row['case'], row['against']) == ('diffusion_policy, DDIM, 10 calls', 'DDPM, 100')
    assert 5 < row['ratio'] < 20 and saved['packages'] == {} and saved['dtype'] == 'float32'
    assert said.splitlines()[0].split() == [key for key in row if key != 'ratios']
    (tmp_path / 'x.json').unlink()
    said, err = script('bench/versus_lerobot.py', '--parts=step', *flags, code=1)
    assert (said, one_line(err)) == ('', line) and not (tmp_path / 'x.json').exists()


def test_which_lerobot_is_there(monkeypatch):
    real = upstream.lacking.__wrapped__                  # it remembers its answer
    monkeypatch.setattr(upstream, 'version', lambda name: '0.6.1')
    assert real() == 'version 0.6.1 is installed'
    monkeypatch.setattr(upstream, 'version', lambda name: '0.4.4')
    monkeypatch.setattr(upstream, 'prelude', lambda: '')
    monkeypatch.setitem(sys.modules, 'lerobot', None)
    assert 'lerobot' in real()


@pytest.mark.parametrize('flags, line', [
    (['--parts=dance'], 'parts = dance: choose from step, chunk, loader, import, sampler'),
    (['--modes=fast'], 'modes = fast: choose from auto, eager, compiled'),
    (['--batch=0'], 'batch = 0, threads = 1, episodes = 6: must be at least 1'),
    ([], 'loader: --src=PATH says where a LeRobot set, v2.1, with videos lies; or leave it out: '
         '--parts=step,chunk,import,sampler')])
def test_bad_input_is_one_line(flags, line):
    assert one_line(script('bench/versus_lerobot.py', *flags, code=1)[1]) == line


# ---- a set for both loaders ----

@pytest.fixture
def src(tmp_path):
    """A v2.1 set with all that LeRobot's have; the videos of episodes 0 and 3 were not fetched."""
    root, first = filmed(tmp_path / 'src'), 0
    for i, T in enumerate(LENGTHS):
        path, = root.glob(f'data/*/episode_{i:06d}.parquet')
        table = pq.read_table(path)
        pq.write_table(table.append_column('index', [list(range(first, first + T))]), path)
        first += T
    stats = [{'episode_index': i, 'stats': {'action': {'mean': [i]}, 'observation.images.left': {}}}
             for i in range(len(LENGTHS))]
    (root / 'meta' / 'episodes_stats.jsonl').write_text('\n'.join(map(json.dumps, stats)) + '\n')
    (root / 'meta' / 'tasks.jsonl').write_text('{"task_index": 0, "task": "x"}\n')
    for i in 0, 3:
        next(root.glob(f'videos/*/*/episode_{i:06d}.mp4')).unlink()
    for remembers in reader.layout, reader.films:
        remembers.cache_clear()
    return root


def test_a_set_of_some_episodes(src, tmp_path):
    assert upstream.with_films(src, 3) == (TOP, 'top', [1, 2, 4])
    upstream.alone(src, [1, 4], TOP, tmp_path / 'some')
    info, files = reader.layout(tmp_path / 'some')
    assert [T for _, T in files] == [LENGTHS[1], LENGTHS[4]]
    assert info['total_frames'] == LENGTHS[1] + LENGTHS[4]
    index = [x for path, _ in files for x in pq.read_table(path)['index'].to_pylist()]
    assert index == list(range(info['total_frames']))
    for k, i in enumerate((1, 4)):
        assert set(pq.read_table(files[k][0])['episode_index'].to_pylist()) == {k}
        film, _ = reader.films(tmp_path / 'some', TOP)[k]
        assert film.read_bytes() == reader.films(src, TOP)[i][0].read_bytes()
        table, want = (pq.read_table(files[at][0]) for files, at in ((files, k), (reader.layout(src)[1], i)))
        assert table.drop(['episode_index', 'index']) == want.drop(['episode_index', 'index'])
    stats = reader.records(tmp_path / 'some' / 'meta' / 'episodes_stats.jsonl')
    assert stats == [{'episode_index': k, 'stats': {'action': {'mean': [i]}}} for k, i in enumerate((1, 4))]


def test_sets_without_videos(src, tmp_path):
    for film in Path(src).glob('videos/*/*/*.mp4'):
        film.unlink()
    with pytest.raises(SystemExit, match=f'it has no video of {TOP}; fetch some'):
        upstream.with_films(src, 3)


def test_video_reader(src):
    """After a seek it begins at a key frame before that time, or there; time and picture belong together."""
    film = reader.films(src, TOP)[2][0]
    want = frames(film)
    video = upstream.VideoReader(str(film), 'video')
    for seconds in (6 / 20, 0.0):
        video.seek(seconds, keyframes_only=True)
        got = list(video)
        assert got[0]['pts'] <= seconds + 1e-6 and got[-1]['pts'] == pytest.approx((LENGTHS[2] - 1) / 20)
        for frame in got:
            assert np.array_equal(frame['data'].permute(1, 2, 0).numpy(), want[round(frame['pts'] * 20)])


def test_batches_that_differ_are_found():
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 2, 2)
    rows = {'image.top': pixels, 'state': torch.rand(2, 1, 4),
            'action': torch.rand(2, 3, 4), 'mask': torch.tensor([[True, True, False]] * 2)}
    theirs = {TOP: rows['image.top'][:, 0] / 255, 'observation.state': rows['state'][:, 0].clone(),
              'action': rows['action'].clone(), 'action_is_pad': ~rows['mask']}
    bench.same_batch(rows, theirs, 'image.top', TOP)
    theirs['action'][1, 2, 3] += 1e-3
    theirs[TOP][0, 0, 0, 0] += 1 / 255
    with pytest.raises(SystemExit, match='loader: .* they differ in image.top, action; nothing was timed'):
        bench.same_batch(rows, theirs, 'image.top', TOP)


@pytest.mark.skipif(bool(upstream.lacking()), reason='LeRobot 0.4.4 is not installed')
@pytest.mark.parametrize('M', (act, diffusion_policy))
def test_beside_lerobot(M, monkeypatch):
    monkeypatch.setattr(bench, 'down_dims', (32, 64))    # 8 groups of one channel each would cancel biases
    assert bench.same_step('', *bench.pair(M, '32x32', 2, dropout=0.0)) < bench.GRADIENT
