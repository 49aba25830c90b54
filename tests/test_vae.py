"""
The two codecs: against diffusers with the same random weights, on real pictures with the real TAESD, and what
is said of files that are none.
"""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vae

SHARED = Path(__file__).parents[2] / 'shared'
WEIGHTS = SHARED / 'weights'
TINY = dict(widths=(32, 64, 64, 64), blocks=1)
real = pytest.mark.skipif(not WEIGHTS.exists(), reason='the real weights are not here (../shared/weights)')


def count(model):
    return sum(p.numel() for p in model.parameters())


def seeded(build, seed=0):
    """A codec with weights large enough to tell a wrong one: torch's own start fades within 30 layers."""
    torch.manual_seed(seed)
    codec = build()
    with torch.no_grad():
        for p in codec.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return codec.eval()


def close(ours, theirs, tol):
    assert ours.shape == theirs.shape
    limit = tol * max(1, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() <= limit


# ---- against diffusers ----

def of_diffusers(codec, widths, blocks):
    diffusers = pytest.importorskip('diffusers')
    theirs = diffusers.AutoencoderKL(
        block_out_channels=widths, layers_per_block=blocks, latent_channels=4, norm_num_groups=32,
        down_block_types=['DownEncoderBlock2D'] * 4, up_block_types=['UpDecoderBlock2D'] * 4)
    theirs.load_state_dict(codec.state_dict())               # strict: the names are the published ones
    return theirs.eval()


def test_tiny_kl_is_that_of_diffusers():
    codec = seeded(lambda: vae.AutoencoderKL(**TINY)).double()
    theirs = of_diffusers(codec, *TINY.values()).double()
    x = torch.rand(2, 3, 32, 48, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        mean, std = codec.posterior(x)
        close(mean, posterior.mean, 1e-12)
        close(std, posterior.std, 1e-12)
        close(codec.pixels(mean * codec.scale), theirs.decode(mean).sample, 1e-12)


def test_full_kl_is_that_of_diffusers():
    codec = seeded(vae.AutoencoderKL)
    assert count(codec) == 83_653_863 and len(codec.state_dict()) == 248
    theirs = of_diffusers(codec, (128, 256, 512, 512), 2)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        mean, _ = codec.posterior(x)
        close(mean, theirs.encode(x).latent_dist.mean, 1e-4)
        close(codec.pixels(mean * codec.scale), theirs.decode(mean).sample, 1e-4)


def test_tiny_autoencoder_is_that_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    codec = seeded(vae.AutoencoderTiny)
    assert count(codec.encoder) == 1_222_532 and count(codec.decoder) == 1_222_531
    theirs = diffusers.AutoencoderTiny().eval()
    theirs.load_state_dict(codec.state_dict())
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        z = codec.latents(x)[0]
        close(z, theirs.encode(x).latents, 1e-6)
        close(codec.pixels(z), theirs.decode(z).sample, 1e-6)


def test_the_posterior_is_clamped():
    codec = seeded(lambda: vae.AutoencoderKL(**TINY))
    with torch.no_grad():
        codec.quant_conv.bias[4:] = 1e4
    assert codec.posterior(torch.zeros(1, 3, 16, 16))[1].max().item() == pytest.approx(np.exp(10))


# ---- layouts of files ----

def old_names(weights):
    """As the official file has them."""
    words = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    return {re.sub(r'to_(q|k|v|out\.0)', lambda m: words[m[0]], key): x for key, x in weights.items()}


def compvis_names(weights):
    """Written out by hand from the published list of names, not by turning our table around."""
    out = {}
    for key, x in weights.items():
        side = key.split('.')[0]
        key = key.replace('conv_norm_out', 'norm_out').replace('conv_shortcut', 'nin_shortcut')
        key = key.replace('mid_block.resnets.0', 'mid.block_1').replace('mid_block.resnets.1', 'mid.block_2')
        key = key.replace('mid_block.attentions.0.group_norm', 'mid.attn_1.norm')
        for word in 'qkv':
            key = key.replace(f'mid_block.attentions.0.to_{word}', f'mid.attn_1.{word}')
        key = key.replace('mid_block.attentions.0.to_out.0', 'mid.attn_1.proj_out')
        for i in range(4):
            there = i if side == 'encoder' else 3 - i
            word = 'down' if side == 'encoder' else 'up'
            key = key.replace(f'{word}_blocks.{i}.resnets', f'{word}.{there}.block')
            key = key.replace(f'{word}_blocks.{i}.{word}samplers.0', f'{word}.{there}.{word}sample')
        if 'attn_1' in key and x.ndim == 2:
            x = x[:, :, None, None]
        out[f'first_stage_model.{key}'] = x.contiguous()
    return out | {'model.diffusion_model.out.2.weight': torch.zeros(3)}


@pytest.mark.parametrize('layout', [dict, old_names, compvis_names])
def test_layouts_of_kl(tmp_path, layout):
    codec = seeded(lambda: vae.AutoencoderKL(**TINY))
    save_file(layout(codec.state_dict()), tmp_path / 'x.safetensors')
    loaded = vae.load(str(tmp_path / 'x.safetensors'))
    assert loaded.kind == 'AutoencoderKL' and loaded.scale == 0.18215 and not loaded.training
    for key, x in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], x), key
    save_file(codec.state_dict(), tmp_path / 'same.safetensors')
    assert loaded.sha256 == vae.load(str(tmp_path / 'same.safetensors')).sha256
    save_file(seeded(lambda: vae.AutoencoderKL(**TINY), 1).state_dict(), tmp_path / 'other.safetensors')
    assert loaded.sha256 != vae.load(str(tmp_path / 'other.safetensors')).sha256


def test_a_folder_with_a_factor_of_its_own(tmp_path):
    save_file(seeded(lambda: vae.AutoencoderKL(**TINY)).state_dict(),
              tmp_path / 'diffusion_pytorch_model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({'scaling_factor': 0.13025}))
    assert vae.load(str(tmp_path)).scale == 0.13025


def two_files(folder, codec):
    """TAESD as its author publishes it: numbers alone, and in the decoder all are one higher."""
    for half, more in (('encoder', 0), ('decoder', 1)):
        weights = {}
        for key, x in codec.state_dict().items():
            if key.startswith(f'{half}.layers.'):
                number, rest = key.removeprefix(f'{half}.layers.').split('.', 1)
                weights[f'{int(number) + more}.{rest}'] = x
        save_file(weights, folder / f'taesd_{half}.safetensors')


def test_layouts_of_taesd(tmp_path):
    codec = seeded(vae.AutoencoderTiny)
    two_files(tmp_path, codec)
    save_file(codec.state_dict(), tmp_path / 'one.safetensors')
    sources = ['', 'taesd_encoder.safetensors', 'taesd_decoder.safetensors', 'one.safetensors']
    for source in sources:
        loaded = vae.load(str(tmp_path / source))
        assert loaded.kind == 'AutoencoderTiny'
        for key, x in codec.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], x), key


# ---- frames ----

def test_frames_in_and_out():
    """Leading axes are kept, chunks do not show, autocast does not matter, the result is clamped."""
    codec = seeded(vae.AutoencoderTiny)
    frames = torch.randint(256, (2, 9, 16, 24, 3), dtype=torch.uint8)
    z = vae.encode(codec, frames)
    assert z.shape == (2, 9, 4, 2, 3) and z.dtype == torch.float32
    close(vae.encode(codec, frames[1, 3]), z[1, 3], 1e-5)
    pictures = vae.decode(codec, z)
    assert pictures.shape == frames.shape and pictures.dtype == torch.float32
    assert pictures.min() >= 0 and pictures.max() <= 255
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(vae.encode(codec, frames), z) and torch.equal(vae.decode(codec, z), pictures)
    with torch.no_grad():
        codec.decoder.layers[-1].bias += 3
    assert vae.decode(codec, z).min() == 255                         # without the clamp it would be far above
    z, std = vae.encode(codec, frames, with_std=True)
    assert std is None
    kl = seeded(lambda: vae.AutoencoderKL(**TINY))
    z, std = vae.encode(kl, frames, with_std=True)
    x = frames.flatten(0, 1).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        assert std == pytest.approx((kl.posterior(x)[1] * 0.18215).mean().item(), rel=1e-4)


@pytest.mark.parametrize('frames, line', [
    (torch.zeros(60, 100, 3, dtype=torch.uint8), r'60x100: both sides must be multiples of 8'),
    (torch.zeros(64, 64, 3), r'float32 \(64, 64, 3\): want uint8'),
    (torch.zeros(3, 64, 64, dtype=torch.uint8), r'want uint8 \(..., H, W, 3\)')])
def test_frames_that_are_refused(frames, line):
    with pytest.raises(ValueError, match=line):
        vae.encode(seeded(vae.AutoencoderTiny), frames)


# ---- the real TAESD on real pictures ----

@pytest.fixture(scope='module')
def taesd():
    return vae.load(str(WEIGHTS))


def check_picture(taesd, picture, psnr, ssim):
    from metrics import psnr as psnr_of
    from metrics import ssim as ssim_of
    truth = torch.from_numpy(picture)
    again = vae.decode(taesd, vae.encode(taesd, truth)) / 255
    assert psnr_of(again, truth / 255).item() == pytest.approx(psnr, abs=0.01)
    assert ssim_of(again, truth / 255).item() == pytest.approx(ssim, abs=1e-4)


@real
def test_the_astronaut(taesd):
    data = pytest.importorskip('skimage.data')
    picture = np.ascontiguousarray(data.astronaut()[:256, 128:384])
    assert picture.sum() == 28_988_304
    check_picture(taesd, picture, 25.2521, 0.81724)
    z = vae.encode(taesd, torch.from_numpy(picture))
    close(z[:, 1, 2], torch.tensor([0.97313, 0.53976, -0.04478, -0.39661]), 2e-3)


@real
def test_the_pushed_t(taesd):
    with np.load(SHARED / 'data' / 'pusht' / 'derived' / 'pusht32.npz') as arrays:
        picture = arrays['img'][0]
    assert picture.sum() == 765_000
    check_picture(taesd, picture.repeat(8, 0).repeat(8, 1), 35.3487, 0.97706)


# ---- bad files ----

def test_files_that_are_no_codec(tmp_path):
    codec = seeded(vae.AutoencoderTiny)
    two_files(tmp_path, codec)
    (tmp_path / 'taesd_decoder.safetensors').unlink()
    with pytest.raises(SystemExit, match='taesd_decoder.safetensors is not there.*both encoder and decoder'):
        vae.load(str(tmp_path / 'taesd_encoder.safetensors'))
    with pytest.raises(SystemExit, match='nowhere is not there'):
        vae.load(str(tmp_path / 'nowhere'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit, match='holds neither'):
        vae.load(str(tmp_path / 'empty'))
    weights = codec.state_dict()
    weights.pop('decoder.layers.2.conv.0.bias')
    save_file(weights, tmp_path / 'lacks.safetensors')
    with pytest.raises(SystemExit, match=r'lacks decoder.layers.2.conv.0.bias'):
        vae.load(str(tmp_path / 'lacks.safetensors'))
    save_file({'a': torch.zeros(2)}, tmp_path / 'other.safetensors')
    with pytest.raises(SystemExit, match='its weights lack .*want those of SD-VAE or TAESD'):
        vae.load(str(tmp_path / 'other.safetensors'))
    whole = (tmp_path / 'lacks.safetensors').read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SystemExit, match='cannot read .*cut.safetensors'):
        vae.load(str(tmp_path / 'cut.safetensors'))


def test_of_the_real_file_only_one_half(tmp_path):
    if not WEIGHTS.exists():
        pytest.skip('the real weights are not here (../shared/weights)')
    weights = load_file(WEIGHTS / 'taesd_decoder.bf16.safetensors')
    save_file(weights, tmp_path / 'taesd_decoder.bf16.safetensors')
    with pytest.raises(SystemExit, match='taesd_encoder.bf16.safetensors is not there'):
        vae.load(str(tmp_path / 'taesd_decoder.bf16.safetensors'))


@pytest.mark.parametrize('config, line', [
    ('{oops', 'cannot read .*config.json'), ('[1]', 'cannot read'),
    ('{"scaling_factor": null}', 'cannot read'),
    ('{"scaling_factor": 1.5, "shift_factor": 0.06}', 'asks for shift_factor, which we do not have')])
def test_a_config_that_is_not_understood(tmp_path, config, line):
    save_file(seeded(lambda: vae.AutoencoderKL(**TINY)).state_dict(), tmp_path / vae.FILE)
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(SystemExit, match=line):
        vae.load(str(tmp_path))


@pytest.mark.parametrize('widths', [(32, 64, 64), (32, 32, 64, 64, 64)])
def test_another_number_of_stages(tmp_path, widths):
    """Such latents would stand for 4 or 16 px, and nothing here would say so."""
    save_file(vae.AutoencoderKL(widths, 1).state_dict(), tmp_path / 'x.safetensors')
    with pytest.raises(SystemExit, match='want four, multiples of 32, for 8 px to a latent'):
        vae.load(str(tmp_path / 'x.safetensors'))


def test_a_folder_with_two(tmp_path):
    two_files(tmp_path, seeded(vae.AutoencoderTiny))
    (tmp_path / 'taesd_encoder.bf16.safetensors').write_bytes(b'')
    with pytest.raises(SystemExit, match='which of taesd_encoder.bf16.safetensors, taesd_encoder.saf'):
        vae.load(str(tmp_path))


def test_large_pictures_come_fewer_at_a_time():
    assert [vae.at_once(side, side) for side in (64, 256, 512, 2048)] == [16, 16, 4, 1]


def test_float32_and_then_what_was_set():
    """TF32 is off for the codec alone; what train.py had set is set again, after an error too."""
    torch.set_float32_matmul_precision('high')
    try:
        with pytest.raises(KeyError), vae.in_float32(torch.device('cpu')):
            assert torch.get_float32_matmul_precision() == 'highest' and not torch.backends.cudnn.allow_tf32
            raise KeyError
        assert torch.get_float32_matmul_precision() == 'high' and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision('highest')
