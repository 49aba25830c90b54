"""
protocols/looks.py: scores on demand. By hand from the frames that were judged, for every predictor; and what
cannot be computed costs nothing else.
"""
import hashlib
import json
import os
import urllib.error
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, episode, one_line, script
from safetensors.torch import save_file
from test_eval import build, judge, last_frame, numbers
from test_latents import build as build_latent
from test_latents import make as make_latents
from test_metrics_nets import WEIGHTS, scripted

import checkpoint
import metrics
import vae
from data.writer import write
from metrics import frechet, kid
from protocols import common, looks, video

THREE = ['', '_copy', '_shuffled']
EVERY = ('psnr', 'ssim', 'lpips_alex', 'lpips_vgg', 'lpips_squeeze', 'fid', 'kid', 'fvd')


@pytest.fixture
def folder(data_dir): return os.path.join(data_dir, 'tiny_pixels')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache without a network; no network is left from another test."""
    def unreachable(*args): raise urllib.error.URLError(OSError(101, 'Network is unreachable'))
    metrics.network.cache_clear()
    metrics.i3d.cache_clear()
    monkeypatch.setenv('NANOWORLD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(checkpoint, 'download', unreachable)
    (tmp_path / 'cache').mkdir()
    return tmp_path / 'cache'


@pytest.fixture
def real(cache):
    """The cache with the weights that lie in ../shared."""
    if not os.path.isdir(WEIGHTS): pytest.skip('no weights beside the repository (../shared/weights)')
    for file in os.listdir(WEIGHTS): (cache / file).symlink_to(os.path.join(WEIGHTS, file))
    return cache


@pytest.fixture
def judged(monkeypatch):
    """judged() -> {suffix: all frames predicted since the last call, clip by clip}, the truth."""
    seen, imagine = [], video.imagine

    def watched(*args):
        seen.append(imagine(*args))
        return seen[-1]

    def collect():
        whole = {who: torch.cat([guesses[who] for _, guesses, _ in seen]) for who in seen[0][1]}
        truth = torch.cat([truth for *_, truth in seen])
        seen.clear()
        return whole, truth
    monkeypatch.setattr(video, 'imagine', watched)
    return collect


def coarse(calls, name, frames):
    """In place of Inception: twelve pixels of each frame."""
    calls.append(name)
    return frames[..., 1::6, 2::8, :].flatten(2).flatten(0, 1).double().numpy()


def coarse_clips(calls, name, frames):
    """In place of I3D: the same of the first and the last frame of each clip."""
    calls.append(name)
    return frames[:, [0, -1], 1::6, 2::8].flatten(1).double().numpy()


@pytest.fixture
def standins(cache, monkeypatch):
    """Functions for networks, and files for their weights -> the names of the networks, call by call."""
    calls = []
    monkeypatch.setitem(looks.FEATURES, 'inception', partial(coarse, calls, 'inception'))
    monkeypatch.setitem(looks.FEATURES, 'i3d', partial(coarse_clips, calls, 'i3d'))
    (cache / 'inception_fid.safetensors').write_bytes(b'inception')
    (cache / 'i3d_torchscript.pt').write_bytes(b'i3d')
    return calls


def sha(content): return hashlib.sha256(content).hexdigest()


def check_sets(result, frames, truth, seed=42):
    """FID, KID and FVD of the stand-ins, of all and of halves, from the frames."""
    n = len(truth)
    order = np.random.default_rng([seed, 1]).permutation(n)
    halves = order[:n // 2], order[n // 2:n // 2 + n // 2]
    assert len(halves[0]) == len(halves[1]) and not set(halves[0]) & set(halves[1])
    for who, guess in frames.items():
        for name, extract, score in (('fid', coarse, frechet), ('kid', coarse, kid),
                                     ('fvd', coarse_clips, frechet)):
            whole, *parts = (score(extract([], '', guess[clips]), extract([], '', truth[clips]))
                             for clips in (np.arange(n), *halves))
            # features travel as float32, whose last digit is 6e-8 of a number up to 1
            assert result[name + who] == pytest.approx(whole, rel=1e-4, abs=1e-5), name + who
            assert result[f'{name}{who}_halves'] == pytest.approx(np.mean(parts), rel=1e-4, abs=1e-5)
            assert f'{name}{who}_ci' not in result
    K = truth.shape[1]
    assert (result['fid_n'], result['kid_n'], result['fvd_n']) == (n * K, n * K, n)


# ---- by hand ----

@pytest.mark.parametrize('net', ('alex', 'squeeze'))
def test_lpips(real, folder, judged, capsys, net):
    name = f'lpips_{net}'
    result = judge(build(), folder, n_clips=6, batch_size=4, horizon=2, scores=('psnr', name))
    frames, truth = judged()
    assert list(frames) == THREE
    for who, guess in frames.items():
        each = metrics.lpips(guess, truth, net)              # (6, 2)
        assert result[name + who] == pytest.approx(each.double().mean().item(), rel=1e-5, abs=1e-7)
        low, high = result[f'{name}{who}_ci']
        assert low <= result[name + who] <= high
    assert result[name] > result[f'{name}_copy'] > 0 and 'ssim' not in result and 'skipped' not in result
    assert result['lpips_enlarged'] == 6                     # 12 rows of pixels, and 64 are wanted
    files = {'alex': 'alexnet_features', 'squeeze': 'squeezenet1_1_features'}[net], f'lpips_heads_{net}_v0.1'
    files = [f'{file}.safetensors' for file in files]
    assert result['weights'] == {file: sha((real / file).read_bytes()) for file in files}
    video.show(result)
    said = capsys.readouterr().err
    assert f'{name} model {result[name]:.4g}  copy {result[name + "_copy"]:.4g}  shuffled' in said
    assert said.count('LPIPS is of frames enlarged 6 times') == 1


@pytest.mark.parametrize('n_clips', (8, 7))
def test_sets(standins, folder, judged, capsys, n_clips):
    scores = ('psnr', 'ssim', 'fid', 'kid', 'fvd')
    result = judge(build(), folder, n_clips=n_clips, batch_size=3, horizon=3, scores=scores)
    check_sets(result, *judged())
    assert result['fid'] > result['fid_copy'] and result['fid_halves'] != result['fid']
    assert result['weights'] == {'inception_fid.safetensors': sha(b'inception'),
                                 'i3d_torchscript.pt': sha(b'i3d')}
    # before the work each score once; then of three batches the truth and three predictors: FID and KID share
    assert (standins.count('inception'), standins.count('i3d')) == (2 + 3 * 4, 1 + 3 * 4)
    video.show(result)
    said = capsys.readouterr().err
    assert f'fid model {result["fid"]:.4g}  copy {result["fid_copy"]:.4g}  shuffled' in said
    assert f'fid_halves model {result["fid_halves"]:.4g}' in said
    assert f'fid is of {3 * n_clips} rows of features and wants 2048' in said
    assert f'fvd is of {n_clips} rows of features and wants 400' in said and 'kid is of' not in said
    plain = judge(build(), folder, n_clips=n_clips, batch_size=3, horizon=3)
    assert plain == {key: result[key] for key in plain}      # what else is asked for changes nothing
    other = judge(build(), folder, n_clips=n_clips, batch_size=3, horizon=3, scores=scores, seed=1)
    judged()
    assert other['fid_halves'] != result['fid_halves']


def test_latents(standins, judged, tmp_path):
    """The codec's own two rows, too."""
    torch.manual_seed(0)
    codec = str(tmp_path / 'small.safetensors')
    save_file(vae.AutoencoderTiny(width=8).state_dict(), codec)
    make_latents(str(tmp_path / 'walk'), codec)
    result = judge(build_latent(''), str(tmp_path / 'walk'), n_clips=9, batch_size=5, vae=codec,
                   scores=('ssim', 'fid', 'kid', 'fvd'))
    frames, truth = judged()
    assert list(frames) == [*THREE, '_ceiling', '_copy_codec']
    check_sets(result, frames, truth)
    assert result['ssim_ceiling'] and 'psnr' not in result and 'psnr_moving_ceiling' in result


def test_fvd(cache, folder, judged, monkeypatch):
    """From a TorchScript in the cache, of the right sha256."""
    path = cache / 'i3d_torchscript.pt'
    scripted(str(path))
    digest = sha(path.read_bytes())
    monkeypatch.setitem(metrics.SOURCES, 'i3d', (metrics.SOURCES['i3d'][0], digest))
    result = judge(build(last_frame), folder, n_clips=5, batch_size=4, horizon=10, scores=('fvd',))
    frames, truth = judged()
    real = metrics.i3d_features(truth)
    for who, guess in frames.items():
        assert result[f'fvd{who}'] == pytest.approx(frechet(metrics.i3d_features(guess), real), rel=1e-4)
    assert result['fvd'] == result['fvd_copy'] > 0 and result['fvd_n'] == 5 < result['n_clips'] * 10
    assert result['weights'] == {'i3d_torchscript.pt': digest}


def test_ranks_share_the_features(standins, folder, monkeypatch):
    """Two ranks, called one after the other; what the first gathers is what one alone finds."""
    asked, parts = dict(n_clips=11, batch_size=3, horizon=2, scores=('psnr', 'fid', 'fvd')), []
    alone = judge(build(), folder, **asked)

    def gather(rows, world):
        if isinstance(rows[0], dict): return rows * world    # what cannot be computed
        parts.append(rows)
        if len(parts) == 1: raise InterruptedError           # a real rank 1 would wait here for rank 0
        return sum(parts, [])
    monkeypatch.setattr(common, 'gather', gather)
    with pytest.raises(InterruptedError): judge(build(), folder, rank=1, world=2, **asked)
    assert numbers(judge(build(), folder, rank=0, world=2, **asked)) == numbers(alone)
    assert [[row[0] for row in rows] for rows in parts] == [[3, 9], [0, 6]]


def test_a_new_score_is_a_line(folder, monkeypatch):
    """One of frames and one of sets: every predictor gets its number."""
    monkeypatch.setitem(looks.FRAME_SCORES, 'darkest', lambda pred, target: pred.flatten(-3).amin(-1))
    grey = lambda frames: frames.mean(-1).flatten(2).flatten(0, 1).numpy()
    monkeypatch.setitem(looks.FEATURES, 'grey', grey)
    monkeypatch.setitem(metrics.NETWORKS, 'grey', (None,))
    sizes = []
    apart = lambda a, b: sizes.append((a.shape, b.shape)) or 0
    monkeypatch.setitem(looks.SET_SCORES, 'apart', ('grey', apart))
    result = judge(build(last_frame), folder, n_clips=9, batch_size=4, horizon=3, scores=('darkest', 'apart'))
    assert result['darkest'] == result['darkest_copy'] == 0 and result['darkest_ci'] == [0, 0]
    assert result['apart'] == result['apart_copy'] == result['apart_shuffled'] == 0
    whole, half = ((27, 12 * 16),) * 2, ((12, 12 * 16),) * 2     # 9 clips of 3 frames, and twice 4 of them
    assert sizes == [whole, half, half] * 3


# ---- what cannot be computed ----

def nothing_else_is_lost(result, folder, **asked):
    """All of the default evaluation is there, unchanged."""
    plain = judge(build(), folder, **asked)
    assert {'psnr', 'ssim', 'psnr_moving', 'curve'} <= plain.keys()
    assert not {'skipped', 'weights', 'lpips_enlarged'} & plain.keys()
    assert plain == {key: result[key] for key in plain}


def test_without_a_network(folder, capsys):
    """One line each, before the work; null, which JSON knows."""
    asked = dict(n_clips=5, batch_size=4, horizon=2)
    keys = video.Keys(**asked, scores=EVERY)
    result = json.loads(json.dumps(video.evaluate(build(), folder, keys, quiet=False), allow_nan=False))
    said = capsys.readouterr().err
    assert set(result['skipped']) == set(EVERY) - {'psnr', 'ssim'}
    for name, why in result['skipped'].items():
        assert why and '\n' not in why and said.count(f'{name} is skipped: {why}\n') == 1
        assert [result[name + who] for who in THREE] == [None] * 3
        if name != 'fvd': assert why.startswith('cannot fetch https://') and 'Network is unreachable' in why
    assert result['skipped']['fvd'] == 'FVD wants clips of 10 predicted frames or more, got 2; --horizon'
    assert 'weights' not in result and 'lpips_enlarged' not in result
    nothing_else_is_lost(result, folder, **asked)
    video.show(result)
    assert 'fid model -  copy -  shuffled -' in capsys.readouterr().err


def test_wrong_files(cache, folder, capsys):
    asked = dict(n_clips=3, horizon=10)
    scripted(str(cache / 'i3d_torchscript.pt'))              # code, but not that of the published sha256
    for file in 'inception_fid', 'alexnet_features':
        (cache / f'{file}.safetensors').write_bytes(b'<html>')
    result = judge(build(), folder, **asked, scores=('psnr', 'fvd', 'fid', 'ssim', 'lpips_alex'))
    why = result['skipped']
    assert list(why) == ['fvd', 'fid', 'lpips_alex'] and capsys.readouterr().err == ''       # quiet
    assert f'{cache}/i3d_torchscript.pt is not https://' in why['fvd'] and 'its sha256 is' in why['fvd']
    assert why['fid'].startswith(f'cannot read {cache}/inception_fid.safetensors')
    assert why['lpips_alex'].startswith(f'cannot read {cache}/alexnet_features.safetensors')
    nothing_else_is_lost(result, folder, **asked)


def test_small_frames(tmp_path):
    """SSIM looks through 11 x 11 pixels; its absence is no reason not to judge at all."""
    def low(i):
        clip = episode(i, seed=1)
        return clip | {'video': np.ascontiguousarray(clip['video'][:, :8])}
    write(tmp_path / 'low', low, 8, seed=1, val='0.5', workers=1, command='tests',
          info={'source': 'tests', 'revision': '1', 'fps': 4, 'units': {}})
    result = judge(build(height=8), str(tmp_path / 'low'))
    assert result['ssim'] is result['ssim_copy'] is None and 'ssim_ci' not in result
    assert 'the frames are 8x16' in result['skipped']['ssim'] and list(result['skipped']) == ['ssim']
    assert np.isfinite([result['psnr'], *result['psnr_ci'], result['psnr_moving']]).all()


def test_a_number_that_fails_late(standins, folder, monkeypatch, capsys):
    """Of one row, after the work: the others stay."""
    made = []

    def frail(a, b):
        made.append(len(a))
        if len(made) == 4: raise np.linalg.LinAlgError('SVD did not converge')   # all of the second row, copy
        return frechet(a, b)
    monkeypatch.setitem(looks.SET_SCORES, 'fid', ('inception', frail))
    keys = video.Keys(n_clips=6, horizon=2, scores=('psnr', 'fid'))
    result = video.evaluate(build(), folder, keys, quiet=False)
    assert result['skipped'] == {'fid_copy': 'SVD did not converge'} and result['fid_copy'] is None
    assert result['fid'] > 0 and result['fid_copy_halves'] > 0 and result['fid_shuffled'] > 0
    assert 'fid_copy is skipped: SVD did not converge' in capsys.readouterr().err


def test_halves_of_one_row(standins, folder):
    """Two clips: their set has a spread, that of one does not."""
    result = judge(build(), folder, n_clips=2, horizon=2, scores=('fid', 'fvd'))
    assert result['fvd'] > 0 and result['fvd_halves'] is None and 'skipped' not in result
    assert result['fid_halves'] > 0 and result['fvd_n'] == 2


@pytest.mark.parametrize('scores', (('lpips',), ('psnr', 'FID', 'mse'), (1,)))
def test_unknown_scores(folder, scores):
    with pytest.raises(SystemExit) as stop: judge(build(), folder, scores=scores)
    unknown = ', '.join(str(name) for name in scores if name != 'psnr')
    assert str(stop.value) == f'video protocol: scores = {unknown}: choose from {", ".join(EVERY)}'


# ---- the script ----

def test_the_script(real, data_dir, tmp_path):
    out = str(tmp_path / 'out')
    script('train.py', '--dataset=tiny_pixels', f'--data_dir={data_dir}', f'--out_dir={out}', *TINY,
           '--max_steps=1')
    asked = ['eval.py', f'--ckpt={out}', '--n_clips=4', '--device=cpu']
    said, errors = script(*asked, '--scores=psnr,lpips_alex,fid')
    result = json.loads(said)
    assert result['lpips_alex'] > 0 and result['fid'] is None and 'ssim' not in result
    assert 'fid is skipped: cannot fetch' in errors
    assert f'lpips_alex model {result["lpips_alex"]:.4g}' in errors
    _, errors = script(*asked, '--scores=psnr,fdi', code=1)
    assert one_line(errors).startswith('video protocol: scores = fdi: choose from psnr, ssim, lpips_alex')
