"""
Latents from prepare.py to the scores: the same bytes however they are made, decoded by the codec that made
them, judged beside what the codec itself costs.
"""
import filecmp
import json
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import script
from safetensors.torch import save_file

import checkpoint
import nanowm
import vae
from data import latents
from data.loader import Store
from data.writer import write
from protocols import common, video

SIDE = 16


def walk(i):
    """Episode i: a bright square that goes where the action says, 24 px, 7 frames."""
    rng = np.random.default_rng(i)
    action = rng.integers(-3, 4, (7, 2)).astype(np.float32)
    action[-1] = 0
    place = (9 + np.cumsum(np.concatenate([[[0, 0]], action[:-1]]), 0)).clip(0, 17).astype(int)
    frames = np.full((7, 24, 24, 3), 30, np.uint8)
    for t, (x, y) in enumerate(place):
        frames[t, y:y + 6, x:x + 6] = 200, 120, 60
    return {'video': frames, 'action': action}


@pytest.fixture(scope='module')
def codec_file(tmp_path_factory):
    """A TAESD of 8 channels: random, but a picture leaves its trace in the latent and comes back from it."""
    torch.manual_seed(0)
    codec = vae.AutoencoderTiny(width=8)
    path = tmp_path_factory.mktemp('codec') / 'small.safetensors'
    save_file(codec.state_dict(), path)
    return str(path)


def make(out, codec, n=20, workers=1, **more):
    told = dict(seed=0, val='0.3', workers=workers, command='test', info={'fps': 5}, vae=codec, size=SIDE)
    write(out, walk, n, **told | more)
    with open(f'{out}/meta.json') as f:
        return json.load(f)


@pytest.fixture(scope='module')
def folder(codec_file, tmp_path_factory):
    out = str(tmp_path_factory.mktemp('data') / 'walk_small')
    make(out, codec_file)
    return out


@contextmanager
def stopped_at(number, monkeypatch):
    """Whoever makes episode `number` in here is interrupted."""
    real = latents.shaped

    def shaped(i, **kw):
        if i == number:
            raise KeyboardInterrupt
        return real(i, **kw)
    with monkeypatch.context() as m, pytest.raises(SystemExit, match='stopped'):
        m.setattr(latents, 'shaped', shaped)
        yield


def arrays(folder, split):
    return {name.removesuffix('.npy'): np.load(f'{folder}/{split}/{name}')
            for name in os.listdir(f'{folder}/{split}')}


def same_bytes(folder, out):
    for split in ('train', 'val'):
        for name in os.listdir(f'{folder}/{split}'):
            assert filecmp.cmp(f'{folder}/{split}/{name}', f'{out}/{split}/{name}', shallow=False), name


# ---- written ----

def test_what_is_written(folder, codec_file):
    """Train: latents alone. Val: latents and the pictures they were made of. All as the codec gives them."""
    train, val = arrays(folder, 'train'), arrays(folder, 'val')
    assert train.keys() == {'latent', 'action', 'episodes'} and val.keys() == train.keys() | {'video'}
    assert train['latent'].shape == (14 * 7, 4, 2, 2) and val['video'].shape == (6 * 7, SIDE, SIDE, 3)
    codec = vae.load(codec_file)
    with open(f'{folder}/meta.json') as f:
        meta = json.load(f)
    assert meta['latent'] == {'vae': 'small.safetensors', 'kind': 'AutoencoderTiny', 'sha256': codec.sha256,
                              'scale': 1.0, 'size': [SIDE, SIDE], 'resize': 'bilinear', 'posterior_std': None}
    assert meta['facts'] == meta['facts'] | {'input': 'latent', 'channels': 4, 'height': 2, 'width': 2}
    for start, end in val['episodes']:
        again = vae.encode(codec, torch.from_numpy(val['video'][start:end])).half().numpy()
        np.testing.assert_array_equal(val['latent'][start:end], again)
    # each episode is there once: the pictures of those to train on, encoded anew
    made = np.concatenate([train['latent'], val['latent']])
    for i in range(20):
        frames = latents.resize(walk(i)['video'], (SIDE, SIDE))
        z = vae.encode(codec, torch.from_numpy(frames)).half().numpy()
        assert (made.reshape(20, 7, 4, 2, 2) == z).all((1, 2, 3, 4)).sum() == 1


@pytest.mark.parametrize('break_at', [0, 12])
def test_the_bytes_are_the_same(folder, codec_file, tmp_path, monkeypatch, break_at):
    """Whether two workers make them or one that is stopped in between and goes on."""
    out = str(tmp_path / 'walk_small')
    if break_at:
        with stopped_at(break_at, monkeypatch):
            make(out, codec_file)
    make(out, codec_file, workers=1 if break_at else 2)
    same_bytes(folder, out)


def test_shards_of_another_codec_are_not_used(codec_file, tmp_path, monkeypatch):
    """Stopped, then other weights under the same name: nothing that the first ones encoded is mixed in."""
    torch.manual_seed(1)
    file, out = tmp_path / 'codec.safetensors', str(tmp_path / 'walk_small')
    save_file(vae.load(codec_file).state_dict(), file)
    with stopped_at(12, monkeypatch):
        make(out, str(file))
    other = vae.AutoencoderTiny(width=8)
    save_file(other.state_dict(), file)
    latents.codec.cache_clear()                              # as in a new process
    assert make(out, str(file))['latent']['sha256'] == vae.load(str(file)).sha256
    frames = latents.resize(walk(0)['video'], (SIDE, SIDE))
    z = vae.encode(other, torch.from_numpy(frames)).half().numpy()
    made = np.concatenate([arrays(out, split)['latent'] for split in ('train', 'val')])
    assert (made.reshape(20, 7, 4, 2, 2) == z).all((1, 2, 3, 4)).sum() == 1


def test_a_posterior_leaves_its_std(tmp_path):
    torch.manual_seed(0)
    kl = vae.AutoencoderKL(widths=(32, 32, 32, 32), blocks=1)
    save_file(kl.state_dict(), tmp_path / 'kl.safetensors')
    meta = make(str(tmp_path / 'walk_kl'), str(tmp_path / 'kl.safetensors'), n=3)
    frames = torch.from_numpy(latents.resize(walk(0)['video'], (SIDE, SIDE)))
    assert meta['latent']['posterior_std'] == pytest.approx(vae.encode(kl, frames, with_std=True)[1])
    assert meta['latent']['kind'] == 'AutoencoderKL' and meta['latent']['scale'] == 0.18215


def test_size_alone(tmp_path):
    """Pictures of another size: what only fits the world's own is left out."""
    info = {'fps': 5, 'env': 'data.wall.env', 'tiles': {'px': 4}}
    out = str(tmp_path / 'walk_pixels')
    meta = make(out, '', info=info)
    assert meta['facts'] == meta['facts'] | {'input': 'video', 'height': SIDE, 'width': SIDE}
    assert not {'env', 'tiles', 'latent'} & meta.keys() and (arrays(out, 'train')['video'] > 150).any()
    large = latents.resize(walk(1)['video'], (48, 48))
    assert np.abs(large.astype(float).mean() - walk(1)['video'].mean()) < 1


def test_size_as_it_is(tmp_path, codec_file):
    meta = make(str(tmp_path / 'x'), codec_file, n=3, size=0)
    assert meta['latent']['size'] == [24, 24] and meta['latent']['resize'] == ''
    assert meta['facts']['height'] == 3


@pytest.mark.parametrize('more, line', [
    (dict(size=20), 'pictures of 20x20: both sides must be multiples of 8'),
    (dict(val='0'), '--val=0 with --vae: hold out an episode')])
def test_what_is_refused(tmp_path, codec_file, more, line):
    with pytest.raises(SystemExit, match=line):
        make(str(tmp_path / 'x'), codec_file, n=3, **more)
    assert not (tmp_path / 'x').exists()


def states(i):
    return {'state': np.zeros((3, 2), np.float32), 'action': np.zeros((3, 1), np.float32)}


def test_pictures_that_are_none(tmp_path, codec_file):
    """Grey or float ones: one line, before anything is resized."""
    for change in (lambda x: x[..., :1], lambda x: x / 255):
        def spoilt(i, change=change):
            return walk(i) | {'video': change(walk(i)['video'])}
        with pytest.raises(SystemExit, match=r'--vae: episode 0: video is .*want uint8 \(T, H, W, 3\)'):
            write(str(tmp_path / 'x'), spoilt, 3, seed=0, val='0.3', workers=1, command='test',
                  info={'fps': 5}, vae=codec_file, size=SIDE)


@pytest.mark.parametrize('first', [dict(val='0.5'), dict(size=24)])
def test_a_stopped_run_with_other_flags_is_not_gone_on_with(folder, codec_file, tmp_path, monkeypatch, first):
    """The shards of the first hold other pictures."""
    out = str(tmp_path / 'walk_small')
    with stopped_at(12, monkeypatch):
        make(out, codec_file, **first)
    make(out, codec_file)
    same_bytes(folder, out)


def test_without_pictures(tmp_path, codec_file):
    with pytest.raises(SystemExit, match='--vae: these data hold state, action, but no video'):
        write(str(tmp_path / 'x'), states, 3, seed=0, val='0.3', workers=1, command='test', info={'fps': 5},
              vae=codec_file)


# ---- judged ----

def build(folder, rollout=None):
    torch.manual_seed(0)
    cfg = nanowm.Config(height=2, width=2, action_dim=2, num_frames=3, depth=2, hidden=16, heads=2, patch=1,
                        sample_steps=1)
    model = nanowm.Model(cfg).eval()
    if rollout:
        model.rollout = rollout
    return model


def test_who_knows_the_latents_scores_as_the_codec(folder, codec_file):
    """The next latents, told by whoever wrote them, decode to the ceiling; copied ones to copy_codec."""
    store = Store(folder, 'val', {'latent': range(3), 'action': range(2)})
    every = store.windows_at(np.arange(len(store)))['latent']

    def known(context, action, **kw):
        first = context['latent'][:, 0]
        rows = [int((every[:, 0] == z).all((1, 2, 3)).nonzero()[0]) for z in first]
        return {'latent': every[rows, 1:].float()[:, None].expand(-1, action.shape[1], -1, -1, -1, -1)}

    def copied(context, action, **kw):
        z = context['latent'][:, -1:].float()
        return {'latent': z[:, None].expand(-1, action.shape[1], action.shape[2], -1, -1, -1)}
    keys = video.Keys(n_clips=12, vae=codec_file)
    best, still = (video.evaluate(build(folder, rollout), folder, keys) for rollout in (known, copied))
    for name in ('psnr', 'ssim', 'psnr_moving', 'psnr_moving_pixels'):
        assert best[name] == pytest.approx(best[f'{name}_ceiling'], rel=1e-6)
        assert still[name] == pytest.approx(still[f'{name}_copy_codec'], rel=1e-6)
        assert still[f'{name}_ceiling'] == best[f'{name}_ceiling'] != best[name + '_copy_codec']
    assert best['gain_over_ceiling'] == pytest.approx(0, abs=1e-6)
    assert best['psnr_copy'] > best['psnr_copy_codec']       # of the raw pictures, not of decoded ones
    assert set(best['curve']) >= {'model', 'copy', 'shuffled', 'ceiling', 'copy_codec'}
    video.show(best)


def test_a_latent_model_is_judged(folder, codec_file):
    """nanowm itself, end to end; what it dreams of latents decodes to what is scored."""
    model = build(folder)
    result = video.evaluate(model, folder, video.Keys(n_clips=6, vae=codec_file))
    assert np.isfinite([result[f'psnr{who}'] for who in ('', '_copy', '_shuffled', '_ceiling')]).all()


@pytest.mark.parametrize('spoil, key, line', [
    (lambda meta: meta['latent'].update(sha256='0' * 64), 'vae', 'encoded with other weights'),
    (lambda meta: meta.pop('latent'), 'vae', 'does not say which codec'),
    (lambda meta: meta['latent'].update(scale=0.5), 'vae', 'other weights .scale = 0.5, of these 1.0'),
    (lambda meta: None, '', 'given by a path, called small.safetensors: say where')])
def test_codecs_that_do_not_fit(folder, codec_file, spoil, key, line):
    meta = Store(folder, 'val', {'latent': range(1)}).meta
    meta = json.loads(json.dumps(meta))
    spoil(meta)
    with pytest.raises(SystemExit, match=line):
        common.codec_of(meta, folder, codec_file if key else '', 'cpu')


def test_pixels_need_no_codec():
    cfg = nanowm.Config(input='video', height=16, width=16, channels=3)
    with pytest.raises(SystemExit, match='vae = sd: this model dreams pixels'):
        video.windows(cfg, video.Keys(vae='sd'), nanowm)


def test_a_run_is_drawn(folder, codec_file, tmp_path):
    """sample.py as one types it: pictures of the size that was encoded, not of latents."""
    import imageio.v3 as iio
    model = build(folder)
    data, name = os.path.split(folder)
    meta = dict(step=1, model='nanowm', model_config=vars(model.cfg), data_sha='', model_sha='',
                config={'dataset': name, 'data_dir': data})
    checkpoint.save(str(tmp_path / 'run'), 1, model.state_dict(), None, {}, meta)
    gif = str(tmp_path / 'x.gif')
    script('sample.py', f'--ckpt={tmp_path}/run', f'--vae={codec_file}', '--n_clips=2', '--length=2',
           f'--out={gif}', '--scale=2')
    frames = iio.imread(gif, index=None)
    assert len(frames) == 3 and frames.shape[2] == 2 * (2 * SIDE + 8)
    sys.modules.pop('sample', None)


def test_workers_take_the_gpus_in_turn(monkeypatch):
    """The rule alone: which device a worker of this number would ask for."""
    asked = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(vae, 'load', lambda name: torch.nn.Identity())
    assert [latents.most_workers(n) for n in (1, 4, 64)] == [1, 4, 4]
    monkeypatch.setattr(torch.nn.Module, 'to', lambda self, device: asked.append(device))
    for worker in range(3):
        monkeypatch.setattr(latents, 'WORKER', [worker])
        latents.codec.__wrapped__('taesd')
    assert asked == ['cuda:0', 'cuda:1', 'cuda:0']
