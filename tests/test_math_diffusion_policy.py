"""diffusion_policy.py against LeRobot's numbers, a reference package, and forms written by hand."""
import json
import math
import os
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import SHARED, one_line, script
from safetensors.torch import save_file
from test_eval_dynamics import make_robot

import contract
import diffusion_policy as P
import vision
from data.loader import Store

T64 = torch.float64
LEROBOT = os.path.join(SHARED, 'reference', 'lerobot')


def tiny(**over):
    return replace(P.PRESETS['tiny'], **over)


def small(**over):
    """Sees small pictures."""
    return tiny(**{'obs': 'image', 'height': 48, 'width': 64, 'spatial_softmax_num_keypoints': 4} | over)


def model_of(cfg, seed=0):
    torch.manual_seed(seed)
    return P.Model(cfg)


def batch_of(cfg, n=4, seed=1):
    torch.manual_seed(seed)
    return P.example(cfg, n)


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


# ---- LeRobot's numbers ----

@pytest.fixture
def golden_file():
    path = os.path.join(LEROBOT, 'dp_A.safetensors')
    if not os.path.exists(path):
        pytest.skip('no golden files beside the repository (../shared/reference/lerobot)')
    return path


def test_golden(golden_file):
    """Every mid.* and out.* to 5e-5 of the largest number; the chains end within 1e-5."""
    rows = golden.check(golden_file)
    wrong = [row for row in rows if not row[1] <= row[2]]
    assert not wrong and len(rows) == 30
    assert {allowed / 5e-5 for *_, allowed in rows} != {1.0}


MISTAKES = {
    'FiLM by 1 + scale': ('cond_encoder', lambda y: y + (torch.arange(y.shape[1]) < y.shape[1] // 2)),
    'cosines before sines': ('diffusion_step_encoder.0', lambda y: y.roll(y.shape[1] // 2, 1)),
    'y before x': ('pool', lambda y: y.flip(-1))}


@pytest.mark.parametrize('place, change', MISTAKES.values(), ids=MISTAKES)
def test_golden_notices(golden_file, place, change):
    """What is easily done wrong; in the shortest chain."""
    model, g, _ = golden.load(golden_file)
    g = {key: x for key, x in g.items() if not key.startswith(('out.ddpm', 'mid.ddpm'))}
    for name, module in model.named_modules():
        if name.endswith(place):
            module.register_forward_hook(lambda module, given, result: change(result))
    ours = golden.outputs(model, g)
    assert (ours['out.ddim10.actions'] - g['out.ddim10.actions']).abs().max() > 0.05


@pytest.mark.parametrize('over, cameras', [
    ({'use_group_norm': False, 'use_separate_rgb_encoder_per_camera': True, 'crop_shape': [40, 50]}, 2),
    ({'n_obs_steps': 3, 'horizon': 8, 'n_action_steps': 2, 'down_dims': [8, 16], 'use_group_norm': True}, 1),
    ({'resize_shape': [40, 40], 'crop_ratio': 0.9, 'use_group_norm': True, 'num_train_timesteps': 20}, 3)])
def test_golden_reads_other_files(tmp_path, over, cameras):
    """
    Sizes, cameras, norms and crops come from the file; its numbers are ours, so a second reading gives zeros.
    What it lists and we do not know fails, and so does a spoilt number.
    """
    said = {'n_obs_steps': 2, 'horizon': 16, 'n_action_steps': 8, 'down_dims': [8, 16], 'n_groups': 4,
            'diffusion_step_embed_dim': 16, 'crop_shape': None, 'state_dim': 3, 'action_dim': 2} | over
    said['cams'] = {name: [48, 64] for name in 'abc'[:cameras]}
    meta = {'policy': 'dp', 'SEED': '5', 'config': json.dumps(said), 'lerobot_config': json.dumps(said)}
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()
             if key != 'cams'}
    cfg = P.Config(cameras=tuple(said['cams']), height=48, width=64, **sizes | {'crop_shape': tuple(
        said['crop_shape'] or ())})
    listed = {f'diffusion.{key}': [list(x.shape), str(x.dtype)[6:],
                                   'fixed' if key.endswith(('pos_grid', 'tracked')) else 'formula']
              for key, x in P.Model(cfg).state_dict().items() if not golden.STATISTICS.fullmatch(key)}
    (tmp_path / 'dp_B.keys.json').write_text(json.dumps(listed))
    T, n, K = cfg.horizon, cfg.n_obs_steps, cfg.num_train_timesteps
    torch.manual_seed(0)
    g = {'in.state': torch.rand(2, n, 3), 'in.action': torch.rand(2, T, 2),
         'in.train_eps': torch.randn(2, T, 2), 'in.train_timesteps': torch.tensor([1, K - 2]),
         'in.action_is_pad': torch.arange(T).expand(2, T) > 5,
         'in.sample_noise': torch.randn(2, T, 2), 'in.ddpm_step_noise': torch.randn(K, 2, T, 2)}
    for name in said['cams']:
        g[f'in.image.{name}'] = torch.randint(0, 256, (2, n, 3, 48, 64), dtype=torch.uint8)
    for name in 'ddim5', 'ddpm10_predict_sample':
        g |= {f'out.{name}.full_horizon': torch.zeros(1), f'mid.{name}.timesteps_stored': torch.tensor([0])}
    path = str(tmp_path / 'dp_B.safetensors')
    save_file(g, path, meta)
    model, read, _ = golden.load(path)
    assert model.cfg == replace(cfg, obs='image')
    g |= {key: x.contiguous().clone() for key, x in golden.outputs(model, read).items()}
    assert g['mid.keypoints.0'].shape[0] == 2 * n * (1 if model.cfg.use_separate_rgb_encoder_per_camera
                                                     else cameras)
    save_file(g, path, meta)
    assert all(error == 0 for _, error, _ in golden.check(path))
    g['out.train.loss'] = g['out.train.loss'] * 1.01
    g['out.other'] = torch.zeros(3)
    save_file(g, path, meta)
    wrong = [name for name, error, allowed in golden.check(path) if not error <= allowed]
    assert sorted(wrong) == ['out.other', 'out.train.loss']


SEPARATE = {'use_group_norm': False, 'use_separate_rgb_encoder_per_camera': True}


@pytest.mark.parametrize('over, parameters, name', [
    ({}, 262_709_026, 'seed_pusht96'), (SEPARATE, 262_709_026, 'default_v06'),
    (SEPARATE | {'cameras': ('a', 'b')}, 277_576_130, '')])
def test_names_and_shapes_are_published(over, parameters, name):
    """At full size, without memory. LeRobot has `diffusion.` before its names; statistics are only ours."""
    with torch.device('meta'):
        model = P.Model(P.Config(**over))
    assert sum(p.numel() for p in model.parameters()) == parameters
    path = os.path.join(LEROBOT, f'fullsize_dp_{name}.keys.json')
    if not os.path.exists(path):
        return
    with open(path) as f:
        listed = json.load(f)
    own = {f'diffusion.{key}': list(x.shape) for key, x in model.state_dict().items()
           if not golden.STATISTICS.fullmatch(key)}
    assert own == {key: shape_of(entry) for key, entry in listed.items()}


def shape_of(entry):
    """A list of names has a shape behind each, or a row that begins with it."""
    return entry[0] if entry and isinstance(entry[0], list) else entry


# ---- diffusion ----

@pytest.mark.parametrize('over', [
    {}, {'prediction_type': 'sample'}, {'clip_sample': False}, {'clip_sample_range': 0.5},
    {'beta_schedule': 'linear'}], ids=str)
@pytest.mark.parametrize('calls', [100, 10, 7])
@pytest.mark.parametrize('sampler', ['DDPM', 'DDIM'])
def test_diffusion_is_diffusers(sampler, calls, over):
    """
    Schedule and every step, to 1e-6 of the largest number; DDPM has fixed_small variance, both leading
    levels. Its schedule is float32; its steps are given our float64.
    """
    diffusers = pytest.importorskip('diffusers')
    cfg = tiny(noise_scheduler_type=sampler, num_inference_steps=calls, **over)
    same = ('num_train_timesteps', 'beta_schedule', 'beta_start', 'beta_end', 'clip_sample',
            'clip_sample_range', 'prediction_type')
    theirs = getattr(diffusers, f'{sampler}Scheduler')(**{key: getattr(cfg, key) for key in same})
    theirs.set_timesteps(calls)
    bars = P.alpha_bars(cfg)
    assert (bars - theirs.alphas_cumprod.double()).abs().max() < 1e-6
    theirs.alphas_cumprod = bars
    levels, stride = P.levels_of(cfg)
    assert levels == theirs.timesteps.tolist()
    torch.manual_seed(0)
    for t in levels:
        z, guess = torch.randn(2, 5, 16, 2, dtype=T64)
        noisy, cleaner = bars[t].item(), bars[t - stride].item() if t else 1.0
        x, e = P.cleaned(z, guess, noisy, cfg)
        if sampler == 'DDPM':
            want = theirs.step(guess, t, z, generator=torch.Generator().manual_seed(t)).prev_sample
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(t), dtype=T64)
            got = P.ddpm_step(z, x, noisy, cleaner, noise if t else 0.0)
        else:
            want, got = theirs.step(guess, t, z, eta=0.0).prev_sample, P.ddim_step(x, e, cleaner)
        assert (want - got).abs().max() < 1e-6 * max(1, want.abs().max()), t
        level = torch.full((5,), t)
        assert (theirs.add_noise(z, guess, level) - P.add_noise(z, guess, bars[level])).abs().max() < 1e-6


@pytest.mark.parametrize('prediction_type', ['epsilon', 'sample'])
@pytest.mark.parametrize('sampler, calls', [('DDPM', 0), ('DDPM', 20), ('DDIM', 10), ('DDIM', 1)])
def test_an_oracle_is_sampled_exactly(sampler, calls, prediction_type):
    """A network that knows the one chunk of the data: every sampler ends at it."""
    cfg = tiny(noise_scheduler_type=sampler, num_inference_steps=calls, prediction_type=prediction_type)
    model, c = model_of(cfg), torch.rand(cfg.horizon, 2) * 1.8 - 0.9

    def oracle(z, t, seen):
        a = model.alpha_bar[t][:, None, None]
        return c.expand_as(z) if prediction_type == 'sample' else (z - a.sqrt() * c) / (1 - a).sqrt()
    model.net = oracle
    x = model.sample(torch.zeros(3, model.G), torch.randn(3, cfg.horizon, 2),
                     lambda t: torch.randn(3, cfg.horizon, 2))
    assert (x - c).abs().max() < 1e-3


def test_ddim_takes_a_tenth_of_the_calls():
    """Counted where they happen: the figure is what a chunk costs, but for the picture and the simulator."""
    model = model_of(tiny()).eval()
    obs, calls = batch_of(model.cfg, 2), []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    counts = {}
    for sampler, steps in ('DDPM', 0), ('DDIM', 10):
        model.cfg = replace(model.cfg, noise_scheduler_type=sampler, num_inference_steps=steps)
        calls.clear()
        assert model.act(obs).shape == (2, 8, 2)
        counts[sampler] = len(calls)
        assert model.calls == len(calls)
    assert counts == {'DDPM': 100, 'DDIM': 10} and counts['DDPM'] >= 8 * counts['DDIM']


def test_ddpm_draws_noise_and_ddim_none():
    for sampler, draws in ('DDPM', 19), ('DDIM', 0):
        cfg, drawn = tiny(noise_scheduler_type=sampler, num_train_timesteps=20), []
        model = model_of(cfg)
        noise = lambda t, drawn=drawn: drawn.append(t) or torch.randn(3, 16, 2)
        model.sample(torch.zeros(3, model.G), torch.randn(3, 16, 2), noise)
        assert drawn == [*range(19, 0, -1)][:draws]


# ---- units and losses, by hand ----

def test_normalisers():
    """[min, max] -> [-1, 1], what never changed -> -1; pictures by the mean and std of each camera."""
    model = model_of(small(cameras=('a', 'b'), state_dim=3))
    model.state_min.copy_(torch.tensor([-2.0, 10.0, 5.0]))
    model.state_max.copy_(torch.tensor([2.0, 30.0, 5.0]))
    state = torch.tensor([[[-2.0, 15.0, 5.0], [1.0, 40.0, 5.001]]])
    want = torch.tensor([[[-1.0, -0.5, -1.0], [0.5, 2.0, -1.0]]])
    assert torch.allclose(model.normalise({'state': state}, 'state'), want, atol=1e-6)
    model.action_min.copy_(torch.tensor([-4.0, 3.0]))
    model.action_max.copy_(torch.tensor([4.0, 3.0]))
    want = torch.tensor([[-4.0, 3.0], [2.0, 3.0], [8.0, 3.0]])
    assert torch.allclose(model.unnormalise(torch.tensor([[-1.0, -1.0], [0.5, 0.3], [2.0, 1.0]])), want)
    assert torch.allclose(model.image_mean, torch.tensor([[0.485, 0.456, 0.406]] * 2))
    model.image_mean[1], model.image_std[1] = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.5, 0.25, 2.0])
    picture = model.eval().picture({'image.b': torch.full((1, 2, 3, 48, 64), 51, dtype=torch.uint8)}, 1)
    want = torch.tensor([0.0, -0.8, -0.2])[:, None, None].expand(1, 2, 3, 48, 64)
    assert torch.allclose(picture, want, atol=1e-6)


@pytest.mark.parametrize('prediction_type', ['epsilon', 'sample'])
def test_loss_by_hand(prediction_type):
    """The noised chunk goes in; the error of what comes out counts, of all actions or of real ones only."""
    cfg = tiny(prediction_type=prediction_type)
    model, batch = model_of(cfg), batch_of(cfg, 2)
    batch |= {'noise': torch.randn(2, 16, 2), 't': torch.tensor([3, 70])}
    batch['mask'][0, 5:], batch['mask'][1, 12:] = False, False
    x = 2 * batch['action'] - 1                          # fresh statistics: 0 and 1
    a = model.alpha_bar[batch['t']][:, None, None]
    seen = torch.cat([2 * batch['state'] - 1, 2 * batch['env_state'] - 1], -1).flatten(1)
    guess = model.net(a.sqrt() * x + (1 - a).sqrt() * batch['noise'], batch['t'], seen)
    error = (guess - (batch['noise'] if prediction_type == 'epsilon' else x)) ** 2
    real = sum(error[i, t].sum() for i, n in ((0, 5), (1, 12)) for t in range(n))
    for masked, padding, want in ((False, 'skip', error.mean()), (False, 'zeros', error.mean()),
                                  (True, 'skip', real / (17 * 2)), (True, 'zeros', real / (2 * 16 * 2))):
        model.cfg = replace(cfg, do_mask_loss_for_padding=masked, padding=padding)
        assert torch.allclose(model(batch)['loss'], want, rtol=1e-5), (masked, padding)


def test_padding_without_any_real_action_is_no_nan():
    error, real = torch.rand(2, 4, 3), torch.zeros(2, 4, dtype=bool)
    assert P.real_mean(error, real, 'skip') == P.real_mean(error, real, 'zeros') == 0


def test_draws_are_in_lerobots_order():
    """Noise of all actions, then levels: with the same seed the losses are the same to the last digit."""
    model, batch = model_of(tiny()), batch_of(tiny())
    torch.manual_seed(7)
    noise, t = torch.randn(4, 16, 2), torch.randint(0, 100, (4,))
    given = model(batch | {'noise': noise, 't': t})['loss']
    torch.manual_seed(7)
    assert torch.equal(model(batch)['loss'], given)


# ---- the network ----

def naive(model, z, t, seen):
    """The U-Net written out for two stages, with torch's functions alone."""
    w, groups = dict(model.unet.named_parameters()), model.cfg.n_groups

    def conv(x, name, groups):
        weight = w[f'{name}.0.weight']
        x = F.conv1d(x, weight, w[f'{name}.0.bias'], padding=weight.shape[2] // 2)
        return F.mish(F.group_norm(x, groups, w[f'{name}.1.weight'], w[f'{name}.1.bias']))

    def block(x, name):
        weight, bias = w[f'{name}.cond_encoder.1.weight'], w[f'{name}.cond_encoder.1.bias']
        film = F.linear(F.mish(condition), weight, bias)
        scale, shift = film[:, :film.shape[1] // 2, None], film[:, film.shape[1] // 2:, None]
        y = conv(scale * conv(x, f'{name}.conv1.block', groups) + shift, f'{name}.conv2.block', groups)
        if f'{name}.residual_conv.weight' in w:
            x = F.conv1d(x, w[f'{name}.residual_conv.weight'], w[f'{name}.residual_conv.bias'])
        return x + y
    k = torch.arange(model.cfg.diffusion_step_embed_dim // 2)
    angle = t[:, None] * 10_000.0 ** (-k / (len(k) - 1))
    time = torch.cat([angle.sin(), angle.cos()], 1)
    for i, after in (1, F.mish), (3, lambda x: x):
        name = f'diffusion_step_encoder.{i}'
        time = after(F.linear(time, w[f'{name}.weight'], w[f'{name}.bias']))
    condition, x = torch.cat([time, seen], 1), z.transpose(1, 2)
    x = block(block(x, 'down_modules.0.0'), 'down_modules.0.1')
    x = F.conv1d(x, w['down_modules.0.2.weight'], w['down_modules.0.2.bias'], stride=2, padding=1)
    skip = x = block(block(x, 'down_modules.1.0'), 'down_modules.1.1')
    x = torch.cat([block(block(x, 'mid_modules.0'), 'mid_modules.1'), skip], 1)
    x = block(block(x, 'up_modules.0.0'), 'up_modules.0.1')
    x = F.conv_transpose1d(x, w['up_modules.0.2.weight'], w['up_modules.0.2.bias'], stride=2, padding=1)
    x = conv(x, 'final_conv.0.block', 8)
    return F.conv1d(x, w['final_conv.1.weight'], w['final_conv.1.bias']).transpose(1, 2)


@pytest.mark.parametrize('over', [{}, {'kernel_size': 3, 'horizon': 8, 'n_action_steps': 5, 'action_dim': 7}])
def test_network_by_hand(over):
    model = model_of(tiny(**over))
    z, seen = torch.randn(3, model.cfg.horizon, model.cfg.action_dim), torch.randn(3, model.G)
    t = torch.tensor([0, 50, 99])
    assert torch.allclose(model.net(z, t, seen), naive(model, z, t, seen), atol=1e-5)


def test_shift_alone():
    """use_film_scale_modulation = False: half the numbers, which are added."""
    model = model_of(tiny(use_film_scale_modulation=False))
    block, x, condition = model.unet.mid_modules[0], torch.randn(2, 32, 4), torch.randn(2, 32 + model.G)
    shift = block.cond_encoder(condition)
    assert shift.shape == (2, 32)
    assert torch.allclose(block(x, condition), block.conv2(block.conv1(x) + shift[..., None]) + x)


def test_flops_are_those_of_the_matmuls():
    """Against torch's own counter, which knows that the first layers have no way back: within 3 %."""
    from torch.utils.flop_counter import FlopCounterMode
    for cfg in (tiny(), small(cameras=('a', 'b'), resize_shape=(70, 90), crop_ratio=0.9),
                small(cameras=('a', 'b'), use_separate_rgb_encoder_per_camera=True, crop_shape=(33, 50))):
        model = model_of(cfg)
        with FlopCounterMode(display=False) as counter:
            model(batch_of(cfg))['loss'].backward()
        assert model.flops_per_sample() == pytest.approx(counter.get_total_flops() / 4, rel=0.03)


def test_optimizer_is_adam_with_decay_in_the_gradient():
    model = model_of(tiny())
    optimizer = model.configure_optimizers(1e-4, 1e-6, (0.95, 0.999))
    assert type(optimizer) is torch.optim.Adam and optimizer.defaults['betas'] == (0.95, 0.999)
    group, = optimizer.param_groups
    assert group['weight_decay'] == 1e-6 and not group['decoupled_weight_decay']
    assert len(group['params']) == len([*model.parameters()])


def test_overfits_pictures():
    """
    Two samples of the same state and different pictures, want different chunks: the loss falls to a tenth
    only by looking.
    """
    cfg = small(prediction_type='sample', height=40, width=40)
    model, batch = model_of(cfg), batch_of(cfg, 2)
    batch['state'][1] = batch['state'][0]
    batch['action'] = torch.tensor([0.2, 0.8])[:, None, None].expand(2, 16, 2)
    batch |= {'noise': torch.randn(2, 16, 2), 't': torch.tensor([99, 99])}
    optimizer, losses = model.configure_optimizers(1e-3, 0.0, (0.9, 0.99)), []
    for _ in range(30):
        loss = model(batch)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ---- what is seen ----

@pytest.mark.parametrize('norm', [True, False], ids=['group', 'batch'])
def test_a_chunk_does_not_depend_on_its_batch(norm):
    """In eval mode, with a generator per row, also beside BatchNorm; of DDPM and of DDIM."""
    cfg = small(use_group_norm=norm, num_train_timesteps=10, crop_shape=(40, 50))
    model, obs = model_of(cfg), batch_of(cfg, 3)
    model(obs)                                           # BatchNorm sees some pictures
    model.eval()
    for sampler in 'DDPM', 'DDIM':
        model.cfg = replace(cfg, noise_scheduler_type=sampler)
        together = model.act(obs, seeds(5, 6, 7))
        alone = model.act({key: x[1:2] for key, x in obs.items()}, seeds(6))
        assert together.shape == (3, 8, 2) and torch.allclose(together[1:2], alone, atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_executed_slice_and_units():
    """From the action of the last observation on, in units of the data."""
    cfg = tiny(n_obs_steps=3, n_action_steps=4)
    model = model_of(cfg).eval()
    model.action_min.fill_(100.0)
    model.action_max.fill_(300.0)
    model.sample = lambda seen, z, noise: torch.linspace(-1, 1, 16)[:, None].expand(2, 16, 2)
    want = 200 + 100 * torch.linspace(-1, 1, 16)[2:6]
    assert torch.allclose(model.act(batch_of(cfg, 2))[1, :, 0], want)


def test_reads_nothing_but_its_windows():
    for obs, others in ('keypoints', {'env_state'}), ('state', set()), ('image', {'image.top'}):
        cfg, keys = small(obs=obs, noise_scheduler_type='DDIM', num_inference_steps=3), others | {'state'}
        model, batch = model_of(cfg).eval(), batch_of(small(), 2) | batch_of(tiny(), 2)
        batch |= {'pose': torch.randn(2, 2, 5)}
        whole = model.act(batch, seeds(1, 2))
        assert torch.equal(whole, model.act({key: batch[key] for key in keys}, seeds(1, 2)))
        assert P.windows(cfg).keys() == keys | {'action'}
        assert P.windows(cfg)['state'] == range(-1, 1) and P.windows(cfg)['action'] == range(-1, 15)


@pytest.mark.parametrize('separate', [False, True])
def test_cameras_keep_their_order(separate):
    """Per observation: state, the first camera, the second. A picture changes its own part alone."""
    cfg = small(cameras=('b', 'a'), use_separate_rgb_encoder_per_camera=separate)
    model, batch = model_of(cfg).eval(), batch_of(cfg, 1)
    other = batch | {'image.a': 255 - batch['image.a']}
    other['image.a'][:, 0] = batch['image.a'][:, 0]      # only the last observation
    changed = (model.encode(batch) != model.encode(other))[0].view(2, 2 + 8 + 8)
    assert not changed[0].any() and not changed[1, :10].any() and changed[1, 10:].any()


def test_crop_in_training_and_in_eval():
    """In training anywhere, each picture at its own place, unless it is told not to; else from the middle."""
    cfg = small(crop_shape=(40, 50))
    model, batch = model_of(cfg), {'image.top': torch.randint(0, 256, (64, 2, 3, 48, 64), dtype=torch.uint8)}
    whole = replace(cfg, crop_shape=())
    middle = model.eval().picture(batch, 0)
    model.cfg = whole
    full = model.picture(batch, 0)
    assert torch.equal(middle, full[..., 4:44, 7:57])
    model.train().cfg = cfg
    places = set()
    for cut, picture in zip(model.picture(batch, 0).flatten(0, 1), full.flatten(0, 1)):
        found = [(y, x) for y in range(9) for x in range(15)
                 if torch.equal(cut[:, :2, :2], picture[:, y:y + 2, x:x + 2])]
        assert len(found) == 1 and torch.equal(cut, picture[:, found[0][0]:, found[0][1]:][:, :40, :50])
        places.add(found[0])
    assert len(places) > 40 and {y for y, _ in places} == {*range(9)}
    model.cfg = replace(cfg, crop_is_random=False)
    assert torch.equal(model.picture(batch, 0), middle)
    model.cfg, drawn = whole, torch.get_rng_state()
    assert torch.equal(model.picture(batch, 0), full) and torch.equal(torch.get_rng_state(), drawn)


def test_the_middle_is_that_of_torchvision():
    """Which rounds half a pixel to the even one: of 1, 3, 5 px that are too much 0, 2, 2 are before."""
    image = torch.arange(60.0).view(1, 1, 6, 10)
    assert vision.crop(image, (3, 7), False)[0, 0, 0, 0] == 22
    assert vision.crop(image, (5, 5), False)[0, 0, 0, 0] == 2


@pytest.mark.parametrize('over, resized, cropped', [
    ({}, (48, 64), (48, 64)), ({'crop_shape': (40, 50)}, (48, 64), (40, 50)),
    ({'resize_shape': (33, 70), 'crop_ratio': 0.5}, (33, 70), (16, 35)),
    # as in LeRobot: the ratio where there is a resize, else the shape
    ({'resize_shape': (40, 40), 'crop_shape': (30, 30)}, (40, 40), (40, 40)),
    ({'crop_ratio': 0.9}, (48, 64), (48, 64))])
def test_sizes_of_pictures(over, resized, cropped):
    cfg = small(**over)
    assert P.views(cfg) == (resized, cropped)
    model, batch = model_of(cfg).eval(), batch_of(cfg, 1)
    assert model.picture(batch, 0).shape == (1, 2, 3, *cropped)
    cells = math.ceil(cropped[0] / 32) * math.ceil(cropped[1] / 32)
    assert model.rgb_encoder.pool.pos_grid.shape == (cells, 2)
    assert torch.isfinite(model(batch)['loss'])


def test_places_are_x_then_y():
    pool = vision.GridSoftmax(1, 1, 5, 9)
    nn.init.ones_(pool.nets.weight)
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 1, 6] = 100.0
    assert torch.allclose(pool(x), torch.tensor([[[0.5, -0.5]]]), atol=1e-5)


def test_pictures_of_another_kind_are_refused():
    model = model_of(small()).eval()
    batch = batch_of(model.cfg, 1)
    for image in batch['image.top'].float() / 255, batch['image.top'][..., :32]:
        with pytest.raises(AssertionError, match='want uint8 .3, 48, 64.'):
            model.act(batch | {'image.top': image})


# ---- one line each ----

@pytest.mark.parametrize('over, line', [
    ({'horizon': 10},
     'horizon = 10: must be a multiple of 2^stages = 4, a stage for each of down_dims = (16, 32)'),
    ({'crop_shape': (49, 40), 'obs': 'image', 'height': 48},
     'crop_shape = (49, 40): larger than the pictures, 48 x 96'),
    ({'pretrained_backbone_weights': 'ResNet18_Weights.IMAGENET1K_V1', 'obs': 'image'},
     'pretrained_backbone_weights = ResNet18_Weights.IMAGENET1K_V1: they go with BatchNorm, not with '
     'GroupNorm'),
    ({'obs': 'pose'}, "obs = 'pose': must be one of image, keypoints, state"),
    ({'vision_backbone': 'resnet34'}, "vision_backbone = 'resnet34': must be one of resnet18"),
    ({'noise_scheduler_type': 'Euler'}, "noise_scheduler_type = 'Euler': must be one of DDPM, DDIM"),
    ({'prediction_type': 'v'}, "prediction_type = 'v': must be one of epsilon, sample"),
    ({'padding': 'mean'}, "padding = 'mean': must be one of skip, zeros"),
    ({'beta_schedule': 'cosine'}, "beta_schedule = 'cosine': must be one of squaredcos_cap_v2, linear"),
    ({'beta_start': 0.5}, 'beta_start = 0.5: must be above 0, and at most 0.02'),
    ({'clip_sample_range': 0.0}, 'clip_sample_range = 0.0: must be above 0, and at most inf'),
    ({'num_inference_steps': 101}, 'num_inference_steps = 101: must be at most num_train_timesteps = 100'),
    ({'num_inference_steps': -1}, 'num_inference_steps = -1: must be at least 0'),
    ({'n_action_steps': 16}, 'n_action_steps = 16: with n_obs_steps - 1 past actions they do not fit into '
                             'horizon = 16'),
    ({'n_obs_steps': 0}, 'n_obs_steps = 0: must be at least 1'),
    ({'drop_n_last_frames': -1}, 'drop_n_last_frames = -1: must be at least 0'),
    ({'down_dims': (16, 30)},
     'down_dims = (16, 30): want widths that are multiples of n_groups = 4, the first one of 8 too'),
    ({'down_dims': ()},
     'down_dims = (): want widths that are multiples of n_groups = 4, the first one of 8 too'),
    ({'kernel_size': 4}, 'kernel_size = 4: must be odd, or a chunk would change its length'),
    ({'diffusion_step_embed_dim': 33}, 'diffusion_step_embed_dim = 33: want 4, 6, ...'),
    ({'cameras': (), 'obs': 'image'}, 'cameras = (): want one or more, each once; without: obs = state'),
    ({'crop_ratio': 1.1, 'resize_shape': (64, 64), 'obs': 'image'},
     'crop_ratio = 1.1: must be above 0, and at most 1'),
    ({'crop_ratio': 0.05, 'resize_shape': (10, 30), 'obs': 'image'},
     'crop_ratio = 0.05: of 10 x 30 px nothing is left'),
    ({'resize_shape': (64,), 'obs': 'image'}, 'resize_shape = (64,): want (height, width) in px, or ()')])
def test_impossible_values(over, line):
    with pytest.raises(ValueError) as stop:
        P.Model(tiny(**over))
    assert str(stop.value) == line


# ---- data, training ----

@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    """data_dir with the dataset `robot`: 5 numbers of state, 2 of action."""
    root = tmp_path_factory.mktemp('robots')
    make_robot(root, n=4)
    return root


def test_where_windows_begin(robot):
    """
    At every frame with a real action but for the last drop_n_last_frames; the first has the action before the
    episode as padding, the last n_action_steps - 1 = 7 of 16 behind it.
    """
    cfg = tiny(obs='state', state_dim=5)
    edges = contract.edges(P, cfg)
    assert edges == {'pad': True, 'drop': 7}
    store = Store(robot / 'robot', 'train', P.windows(cfg), **edges)
    spans = np.load(robot / 'robot' / 'train' / 'episodes.npy')
    actions = spans[:, 1] - spans[:, 0] - 1              # of this robot the last row is no action
    assert len(store) == (actions - 7).sum()
    first, last = (store.windows_at(np.array([i])) for i in (0, actions[0] - 8))
    assert first['mask'].tolist() == [[False] + 15 * [True]]
    assert last['mask'].tolist() == [9 * [True] + 7 * [False]]
    assert torch.equal(first['state'][0, 0], first['state'][0, 1])
    assert torch.equal(first['action'][0, 0], first['action'][0, 1])
    assert torch.equal(last['action'][0, 8:], last['action'][0, 8].expand(8, 2))


def test_training_goes_on_where_it_stopped(robot, tmp_path):
    """Four steps, or two and two more: the same weights. What the config cannot be is one line."""
    flags = ['train.py', '--model=diffusion_policy', '--dataset=robot', f'--data_dir={robot}', '--device=cpu',
             '--obs=state', '--down_dims=16,32', '--n_groups=4', '--diffusion_step_embed_dim=16',
             '--batch_size=4', '--val_batches=1', '--warmup_steps=2', '--lr_schedule=constant',
             '--save_every=2']
    script(*flags, f'--out_dir={tmp_path}/whole', '--max_steps=4')
    script(*flags, f'--out_dir={tmp_path}/parts', '--max_steps=2')
    script(*flags, f'--out_dir={tmp_path}/parts', '--max_steps=4', '--resume=True')
    name = 'step_0000004/model.safetensors'
    whole, parts = ((tmp_path / run / name).read_bytes() for run in ('whole', 'parts'))
    assert whole == parts
    _, said = script(*flags, f'--out_dir={tmp_path}/x', '--horizon=12', '--down_dims=16,32,64', code=1)
    assert one_line(said) == ('diffusion_policy.Config: horizon = 12: must be a multiple of 2^stages = 8, a '
                              'stage for each of down_dims = (16, 32, 64)')
