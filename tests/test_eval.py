"""
eval.py and protocols/video.py, loss.py. Models of known score: one knows the truth, one copies, one is blind.
"""
import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, episode, one_line, script, simulate, start

import checkpoint
import nanowm
from data.loader import Store
from data.writer import write
from protocols import common, loss, video

KEYS = [name + who for who in ('', '_copy', '_shuffled') for name in ('psnr', 'ssim', 'psnr_moving')]
KEYS += ['gain_over_copy', 'gain_over_shuffled']


@pytest.fixture
def folder(data_dir): return os.path.join(data_dir, 'tiny_pixels')


def judge(model, folder, rank=0, world=1, protocol=video, **asked):
    """protocol.evaluate with these keys."""
    return protocol.evaluate(model, folder, protocol.Keys(**asked), rank, world)


def build(rollout=None, **over):
    """
    A tiny NanoWM; rollout(context, action, **kw) -> video replaces its own; model.calls keeps what it got.
    """
    torch.manual_seed(0)
    cfg = dict(input='video', height=12, width=16, channels=3, action_dim=2, depth=2, hidden=32, heads=2,
               patch=4, num_frames=2, sample_steps=2)
    model = nanowm.Model(nanowm.Config(**cfg | over))
    with torch.no_grad():                                    # off the zero start, or actions would not matter
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.2)
    model.calls = []
    if rollout:
        def call(context, action, **kw):
            model.calls.append((context, action, kw))
            return {'video': rollout(context, action, **kw)}
        model.rollout = call
    return model


def truth(context, action, **kw):
    """
    (B, N, K, H, W, C): what really happens, by the rule of the data. Checks that the context obeys it, too.
    """
    video, past = context['video'].numpy(), context['action'].numpy()
    B, N, K, kA = action.shape
    for b in range(B):
        for t in range(video.shape[1] - 1):
            assert np.array_equal(simulate(video[b, t], past[b, t].reshape(-1, 2))[-1], video[b, t + 1])
    k = kA // 2
    frames = [[simulate(video[b, -1], action[b, n].reshape(-1, 2).numpy())[k - 1::k] for n in range(N)]
              for b in range(B)]
    return torch.from_numpy(np.array(frames)).float()


def last_frame(context, action, **kw):
    last = context['video'][:, -1].float()[:, None, None]
    return last.expand(-1, action.shape[1], action.shape[2], -1, -1, -1)


def blind(context, action, generator=None, **kw):
    """Random pictures, the same for all futures."""
    B, N, K, _ = action.shape
    return (torch.rand(B, 1, K, 12, 16, 3, generator=generator) * 255).expand(-1, N, -1, -1, -1, -1)


# ---- known scores ----

@pytest.mark.parametrize('over, asked', [
    (dict(), dict()), (dict(), dict(horizon=5)), (dict(num_frames=4, n_context=2), dict()),
    (dict(frame_skip=2), dict(horizon=3)), (dict(num_frames=3, frame_skip=3), dict(n_context=2)),
    (dict(num_frames=4), dict(n_context=3, horizon=4))])
def test_a_perfect_model(folder, over, asked):
    """
    Only one that gets every action at its frame: 80 dB, on moving frames as on all; wrong actions cost it
    much.
    """
    model = build(truth, **over)
    result = judge(model, folder, **asked)
    assert result['psnr'] == result['psnr_moving'] == pytest.approx(80) and result['ssim'] == pytest.approx(1)
    assert result['psnr_moving_ci'] == pytest.approx([80, 80])
    assert result['psnr_moving_shuffled'] < 25 and result['psnr_moving_copy'] < 25
    assert result['gain_over_shuffled'] == pytest.approx(80 - result['psnr_moving_shuffled'])
    assert result['gain_over_copy'] == pytest.approx(80 - result['psnr_moving_copy'])
    assert result['curve']['model'] == pytest.approx([80] * result['horizon'])
    n_context = asked.get('n_context') or over.get('n_context', 1)
    horizon = asked.get('horizon') or over.get('num_frames', 2) - n_context
    assert (result['n_context'], result['horizon']) == (n_context, horizon)
    for context, action, kw in model.calls:                  # as in training where that fits, else sliding
        assert context['video'].shape[1] == n_context and action.shape[1:3] == (2, horizon)
        assert kw['stride'] == (horizon if n_context + horizon <= over.get('num_frames', 2) else 1)


def test_a_model_that_copies_gains_nothing(folder):
    result = judge(build(last_frame), folder, horizon=3)
    assert result['gain_over_copy'] == result['gain_over_shuffled'] == 0
    assert result['gain_over_copy_ci'] == result['gain_over_shuffled_ci'] == [0, 0]
    assert result['psnr'] == result['psnr_copy'] > result['psnr_moving'] == result['psnr_moving_copy']
    assert result['curve']['model'] == result['curve']['copy'] == result['curve']['shuffled']


def test_a_model_blind_to_actions_gains_nothing_over_shuffled(folder):
    result = judge(build(blind), folder)
    assert result['gain_over_shuffled'] == 0 and result['gain_over_shuffled_ci'] == [0, 0]
    assert result['gain_over_copy'] < -1


# ---- the definitions, recomputed one frame at a time ----

@pytest.mark.parametrize('horizon', (1, 4))
def test_scores_against_a_naive_loop(folder, horizon):
    """
    Moving frames are those that differ from the last context frame; their error is pooled before the
    logarithm.
    """
    model = build(blind)
    result = judge(model, folder, horizon=horizon, batch_size=7)
    pooled, pixels, per_frame, moving, curve = [], [], [], [], [[] for _ in range(horizon)]
    for context, action, kw in model.calls:
        real = truth(context, action[:, :1])[:, 0].numpy()
        generator = kw['generator'].manual_seed(kw['generator'].initial_seed())
        dream = blind(context, action, generator)[:, 0].numpy()
        for b in range(len(real)):
            for h in range(horizon):
                error = float(np.mean((dream[b, h] / 255 - real[b, h] / 255) ** 2))
                moved = not np.array_equal(real[b, h], context['video'][b, -1].numpy())
                moving.append(moved)
                for y, x in np.argwhere((real[b, h] != context['video'][b, -1].numpy()).any(-1)):
                    pixels.append(np.mean((dream[b, h, y, x] / 255 - real[b, h, y, x] / 255) ** 2))
                per_frame.append(10 * np.log10(1 / (error + 1e-8)))
                if moved:
                    pooled.append(error)
                    curve[h].append(error)
    assert result['psnr'] == pytest.approx(np.mean(per_frame), abs=1e-5)
    assert result['psnr_moving'] == pytest.approx(10 * np.log10(1 / np.mean(pooled)), abs=1e-5)
    assert result['psnr_moving_pixels'] == pytest.approx(10 * np.log10(1 / np.mean(pixels)), abs=1e-4)
    assert result['curve']['model'] == pytest.approx([10 * np.log10(1 / np.mean(e)) for e in curve], abs=1e-5)
    assert result['n_moving'] == sum(moving) < len(moving) == result['n_clips'] * horizon
    assert np.mean(result['curve']['moving']) == pytest.approx(np.mean(moving))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n_clips', (2, 3, 17, 44, 999))
def test_every_clip_gets_the_actions_of_another(folder, monkeypatch, seed, n_clips):
    """A permutation without a fixed point; the clips are distinct windows."""
    asked = []

    class Watched(Store):
        def windows_at(self, ids):
            asked.append(ids.tolist())
            return super().windows_at(ids)
    monkeypatch.setattr(video, 'Store', Watched)
    monkeypatch.setattr(video, 'summary', lambda frames, episode, seed: {'rows': len(frames['mse'])})
    result = judge(build(last_frame), folder, n_clips=n_clips, seed=seed, batch_size=8)
    own, donor = sum(asked[::2], []), sum(asked[1::2], [])
    assert len(set(own)) == len(own) == result['n_clips'] == result['rows'] == min(n_clips, 44)
    assert sorted(donor) == sorted(own) and not any(a == b for a, b in zip(own, donor))


def test_donors_give_actions_and_nothing_else(folder):
    """
    The second future differs from the first in its actions after the context alone, and shares the noise.
    """
    model = build(last_frame, num_frames=4, n_context=2)
    judge(model, folder)
    (context, action, kw), = model.calls
    assert context['action'].shape == (len(action), 1, 2)
    assert not torch.equal(action[:, 0], action[:, 1]) and isinstance(kw['generator'], torch.Generator)


# ---- a real model: seeds, ranks, intervals ----

def numbers(result): return {k: v for k, v in result.items() if k != 'seconds'}


def test_ranks_share_the_work_and_change_nothing(folder, monkeypatch):
    """Two ranks, called one after the other; what the first gathers is what one alone finds."""
    model, gathered = build(), {}
    asked = dict(batch_size=5, n_clips=23, horizon=2)
    alone = judge(model, folder, **asked)

    def gather(parts, rows):
        if isinstance(rows[0], dict):                        # what cannot be computed: nothing
            parts[:] = [rows, rows]
            return
        gathered[rank] = rows
        if rank == 1: raise InterruptedError                 # a real rank 1 would wait here for rank 0
        parts[:] = [gathered[0], gathered[1]]
    monkeypatch.setattr(common.dist, 'all_gather_object', gather)
    rank = 1
    with pytest.raises(InterruptedError): judge(model, folder, rank=1, world=2, **asked)
    rank = 0
    shared = judge(model, folder, rank=0, world=2, **asked)
    assert numbers(shared) == numbers(alone)
    assert [[row[0] for row in gathered[r]] for r in (0, 1)] == [[0, 10, 20], [5, 15]]    # none did it twice


def test_seeds(folder):
    model = build()
    a, b, c = (judge(model, folder, n_clips=20, seed=seed) for seed in (1, 1, 2))
    assert numbers(a) == numbers(b) and a['psnr'] != c['psnr']


def test_intervals_contain_their_estimates(folder):
    result = judge(build(), folder, horizon=2)
    for key in KEYS:
        low, high = result[key + '_ci']
        assert low <= result[key] <= high and (low < high), key
    assert result['n_episodes'] == 4
    assert set(result) >= {'n_clips', 'sample_steps', 'sampling', 'seed', 'curve'}


# ---- little is asked of a model ----

def test_a_model_with_nothing_but_a_rollout(folder, monkeypatch):
    """No stride, no generator, no sampling keys: they are asked for, not assumed."""
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cfg = SimpleNamespace(num_frames=2)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def rollout(self, context, action): return {'video': truth(context, action)}
    Plain.__module__, windows = 'plain', {'video': range(2), 'action': range(1)}
    monkeypatch.setitem(sys.modules, 'plain', SimpleNamespace(windows=lambda cfg: windows))
    assert judge(Plain(), folder, horizon=4)['psnr_moving'] == pytest.approx(80)


# ---- loss ----

def test_loss_is_the_mean_over_windows(folder):
    """
    Of all scalars; the last batch is smaller. The same draws for the same seed; the global noise stays as it
    was.
    """
    model = build().eval()
    before = torch.get_rng_state()
    result = judge(model, folder, protocol=loss, batch_size=8, n_clips=21)
    assert torch.equal(torch.get_rng_state(), before)
    store = Store(folder, 'val', nanowm.windows(model.cfg))
    ids = common.draw(store, 21, np.random.default_rng(42))
    sums = {}
    for i in range(0, 21, 8):
        torch.manual_seed(42 * 1_000_003 + i)
        with torch.no_grad(): out = model(store.windows_at(ids[i:i + 8]))
        for key, value in out.items():
            sums[key] = sums.get(key, 0) + value.item() * len(ids[i:i + 8])
    assert {key: result[key] for key in sums} == pytest.approx({key: x / 21 for key, x in sums.items()})
    assert result == judge(model, folder, protocol=loss, batch_size=8, n_clips=21)
    assert result['loss'] != judge(model, folder, protocol=loss, batch_size=8, n_clips=21, seed=1)['loss']
    assert judge(model, folder, protocol=loss, n_clips=0)['n_clips'] == len(store)


def test_ranks_share_the_loss(folder, monkeypatch):
    model, parts = build().eval(), {}
    asked = dict(protocol=loss, batch_size=5, n_clips=23)
    alone = judge(model, folder, **asked)

    def gather(rows, world):
        parts[len(parts)] = rows
        return sum(parts.values(), [])
    monkeypatch.setattr(common, 'gather', gather)
    judge(model, folder, rank=0, world=2, **asked)
    assert judge(model, folder, rank=1, world=2, **asked) == alone
    assert [[row[0] for row in rows] for rows in parts.values()] == [[0, 10, 20], [5, 15]]


# ---- one line for what the user can mend ----

@pytest.mark.parametrize('over, asked, words', [
    (dict(), dict(n_clips=1), 'n_clips = 1: want whole numbers from 2 on'),
    (dict(), dict(horizon=-3, seed=-1), 'horizon = -3: want whole numbers from 0 on; seed = -1'),
    (dict(), dict(batch_size=0), 'batch_size = 0'),
    (dict(width=12), dict(), 'has width = 16, the model was trained with 12'),
    (dict(), dict(n_context=2), 'n_context = 2 leaves none of num_frames = 2 to predict; set --horizon'),
    (dict(), dict(horizon=12), 'the longest of 4 episodes has 12; use fewer frames (horizon, n_context)'),
    (dict(input='latent', channels=4), dict(), 'knows no val/latent.npy')])
def test_user_mistakes_are_one_line(folder, over, asked, words):
    with pytest.raises(SystemExit) as stop: judge(build(last_frame, **over), folder, **asked)
    assert words in str(stop.value) and '\n' not in str(stop.value)


# ---- the script ----

@pytest.fixture(scope='module')
def run_dir(data_dir, tmp_path_factory):
    """A checkpoint of three steps."""
    out = str(tmp_path_factory.mktemp('run') / 'out')
    script('train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={out}', *TINY,
           '--max_steps=3')
    return out


ASKED = '--n_clips=4', '--device=cpu'


def test_the_line_and_the_file(run_dir, tmp_path):
    """One JSON line, the same in --out, in a folder that had to be made; a table for people on stderr."""
    out = tmp_path / 'new' / 'eval.json'
    said, errors = script('eval.py', f'--ckpt={run_dir}', *ASKED, f'--out={out}')
    assert out.read_text() == said and said.count('\n') == 1 and os.listdir(out.parent) == ['eval.json']
    result = json.loads(said)
    assert result['protocol'] == 'video' and result['sample_steps'] == 3 and 'sampling_keys' not in result
    assert 'gain over shuffled' in errors and f'{result["psnr_moving"]:.2f}' in errors


def test_keys_of_sampling_are_taken_and_told(run_dir):
    """What training does not read may differ; it is another score, and the JSON says why."""
    first, second = (json.loads(script('eval.py', f'--ckpt={run_dir}', *ASKED, *more)[0])
                     for more in ([], ['--sample_steps=1', '--history_level=0.5']))
    assert second['sampling_keys'] == {'sample_steps': 1, 'history_level': 0.5}
    assert second['sample_steps'] == 1
    assert second['psnr'] != first['psnr'] and second['psnr_copy'] == first['psnr_copy']
    again = json.loads(script('eval.py', f'--ckpt={run_dir}', *ASKED, '--sample_steps=3')[0])
    assert 'sampling_keys' not in again and again['psnr'] == first['psnr']       # as it was trained


def test_another_folder(run_dir, data_dir, tmp_path):
    """Judged on a copy it is the same data; on other data there is a note, and the JSON names them."""
    write(tmp_path / 'other', partial(episode, seed=5), 8, seed=1, val='0.5', workers=1, command='tests',
          info={'source': 'tests', 'revision': '1', 'fps': 4, 'units': {}})
    os.symlink(os.path.join(data_dir, 'tiny_pixels'), tmp_path / 'twin')
    for name, note in ('other', True), ('twin', False):
        said, errors = script('eval.py', f'--ckpt={run_dir}', *ASKED, f'--data_dir={tmp_path}',
                              f'--dataset={name}')
        assert ('holds other data than the training had' in errors) == note
        assert json.loads(said)['dataset'] == name
    _, errors = script('eval.py', f'--ckpt={run_dir}', *ASKED, '--dataset=nowhere', code=1)
    assert 'nowhere/meta.json' in one_line(errors)


def test_verify(run_dir, data_dir, tmp_path):
    """A changed byte is found when asked for; sizes and ranges still fit, so nobody else would notice."""
    shutil.copytree(os.path.join(data_dir, 'tiny_pixels'), tmp_path / 'tiny_pixels')
    path = tmp_path / 'tiny_pixels' / 'train' / 'video.npy'
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    asked = ['eval.py', f'--ckpt={run_dir}', *ASKED, f'--data_dir={tmp_path}']
    script(*asked)
    _, errors = script(*asked, '--verify=True', code=1)
    assert f'{path} is not what was written' in one_line(errors)


def test_loss_judges_any_model(run_dir):
    result = json.loads(script('eval.py', f'--ckpt={run_dir}', *ASKED, '--protocol=loss')[0])
    assert result['protocol'] == 'loss' and result['loss'] > 0 and result['n_clips'] == 4


def test_help_shows_just_the_keys_of_a_protocol(run_dir):
    """
    Without a checkpoint those of the protocol; with one also those of its model that only sampling reads.
    """
    said, _ = script('eval.py', '--protocol=plan', '--help')
    assert 'protocols/plan.py' in said and 'n_iters' in said and 'rounds' in said
    assert 'horizons' not in said and 'sample_steps' not in said
    said, _ = script('eval.py', f'--ckpt={run_dir}', '--help')
    assert 'protocols/video.py' in said and 'sample_steps' in said
    assert 'knots' not in said and 'hidden' not in said
    said, _ = script('eval.py', '--help')
    assert 'ckpt' in said and 'protocols/' not in said


@pytest.mark.parametrize('protocol', ('video', 'dynamics', 'plan', 'actions', 'loss'))
def test_every_key_of_a_protocol_is_commented(protocol):
    said, _ = script('eval.py', f'--protocol={protocol}', '--help')
    lines = said.split(f'protocols/{protocol}.py')[1].strip().splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert len(line.split(None, 2)) == 3, line           # key, default, comment


@pytest.mark.parametrize('flags, code, words', [
    ([], 1, 'which checkpoint? --ckpt=OUT_DIR of a run'),
    (['--ckpt=nowhere'], 2, "no checkpoint in 'nowhere'"),
    (['--ckpt={run}', '--protocol=dynamics'], 2,
     '--protocol=dynamics: nanowm is judged by video, plan, loss'),
    (['--protocol=os'], 2,
     '--protocol=os: there is no such protocol, only actions, dynamics, env, loss, plan, video'),
    (['--protocol=common'], 2, 'there is no such protocol'),
    (['--ckpt={run}', '--horizn=3'], 2, "unknown key 'horizn' (--horizn); did you mean 'horizon'?"),
    (['--ckpt={run}', '--hidden=64'], 2, "unknown key 'hidden' (--hidden)"),
    (['--ckpt={run}', '--sample_steps=x'], 2, 'sample_steps wants int'),
    (['--ckpt={run}', 'config/minihack_wm_cpu.py'], 2, 'config/minihack_wm_cpu.py: most of its'),
    (['--ckpt={run}', '--n_clips=1'], 1, 'n_clips = 1: want whole numbers from 2 on'),
    (['--ckpt={run}', '--horizon=12'], 1, 'use fewer frames (horizon, n_context)'),
    (['--ckpt={run}', '--out=/dev/null'], 1, '--out=/dev/null: exists and is no regular file'),
    (['--ckpt={run}', '--out={tmp}/link'], 1, 'link: exists and is no regular file'),
    (['--ckpt={run}', '--out={tmp}'], 1, 'exists and is no regular file'),
    (['--ckpt={run}', '--out={tmp}/file/x.json'], 1, 'file/x.json: '),
    (['--ckpt={tmp}/file'], 2, 'file')])
def test_user_mistakes_of_the_script(run_dir, tmp_path, flags, code, words):
    """One line, nothing on stdout, and nothing on disk is touched."""
    (tmp_path / 'file').write_text('kept')
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    said, errors = script('eval.py', *[flag.format(run=run_dir, tmp=tmp_path) for flag in flags], code=code)
    assert words in one_line(errors) and said == ''
    assert (tmp_path / 'file').read_text() == 'kept' and (tmp_path / 'link').is_symlink()
    assert sorted(os.listdir(tmp_path)) == ['file', 'link']


def test_the_line_comes_before_the_file(run_dir, tmp_path, monkeypatch):
    """A disk that fills up during the work costs the file, not the result."""
    def full(path, text): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpoint, 'write_text', full)
    said, errors = script('eval.py', f'--ckpt={run_dir}', *ASKED, f'--out={tmp_path}/x.json', code=1)
    assert json.loads(said)['n_clips'] == 4
    assert 'No space left on device; the line above is the result' in errors


@pytest.mark.parametrize('sig, wait', [(signal.SIGINT, 0), (signal.SIGTERM, 6)])
def test_a_signal_ends_it_at_once(run_dir, sig, wait):
    """
    While torch is being imported, and seconds later: one word, within two seconds. No Python runs while a
    library is being loaded, which takes longer the more others want the machine.
    """
    process = start('eval.py', f'--ckpt={run_dir}', '--n_clips=44', '--horizon=11', '--batch_size=2',
                    '--sample_steps=400')
    maps, until = Path(f'/proc/{process.pid}/maps'), time.time() + 60
    while maps.exists() and 'libtorch' not in maps.read_text() and time.time() < until:
        time.sleep(0.02)
    time.sleep(wait)
    assert process.poll() is None
    asked = time.time()
    process.send_signal(sig)
    _, errors = process.communicate(timeout=20)
    busy = max(1, os.getloadavg()[0] / os.cpu_count())
    assert time.time() - asked < 2 * busy and process.returncode == 128 + sig
    assert errors.strip().endswith('stopped') and 'Traceback' not in errors
