"""NanoWM: published numbers, closed forms, what must never break: causality, use of actions, one forward."""
import glob
import math
import os
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, script
from golden import check as check_golden
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nanowm
from nanowm import INJECTIONS, PRESETS, Config, Model, noise_schedule, scheduling_matrix

SMALL = dict(height=8, width=12, channels=2, action_dim=3, depth=4, hidden=32, heads=2, num_frames=4)
GOLDEN = sorted(glob.glob(os.path.join(SHARED, 'reference', 'nanowm_*.safetensors')))


def tiny(**kw):
    """A small model whose output depends on everything: no weight is zero."""
    torch.manual_seed(0)
    model = Model(Config(**SMALL | kw))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def inputs(cfg, B=2, T=0):
    T = T or cfg.num_frames
    return (torch.randn(B, T, cfg.channels, cfg.height, cfg.width), torch.randint(1000, (B, T)),
            torch.randn(B, T, cfg.frame_skip * cfg.action_dim))


# ---- published numbers ----

@pytest.mark.parametrize('path', GOLDEN or [None], ids=lambda p: os.path.basename(p) if p else 'none')
def test_golden(path):
    if path is None:
        pytest.skip('no golden files beside the repository (../shared/reference)')
    rows = check_golden(path)
    assert len(rows) == 9
    for name, error, allowed in rows:
        assert error <= allowed, f'{name}: error {error:.2e}, allowed {allowed:.2e}'


def test_golden_script_fails_on_a_wrong_number(tmp_path):
    if not GOLDEN:
        pytest.skip('no golden files beside the repository (../shared/reference)')
    from safetensors import safe_open
    from safetensors.torch import save_file
    with safe_open(GOLDEN[0], 'pt') as f:
        tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    tensors['forward'][0, 0, 0, 0, 0] += 1e-2
    save_file(tensors, tmp_path / 'wrong.safetensors', meta)
    out, err = script('tests/golden.py', tmp_path / 'wrong.safetensors', code=1)
    assert 'FAILED' in out and '1 outputs beyond tolerance' in err


DIMS = (2, 4, 7, 10, 51)
COUNTS = {   # the authors' code on the meta device: 4 frames of 4x32x32 latents, patch 2, by action dimension
    ('S', 'additive'): (39_779_728, 39_780_496, 39_781_648, 39_782_800, 39_798_544),
    ('S', 'adaln'): (50_424_208, 50_424_976, 50_426_128, 50_427_280, 50_443_024),
    ('S', 'film'): (43_327_888, 43_328_656, 43_329_808, 43_330_960, 43_346_704),
    ('S', 'cross_attention'): (46_880_656, 46_881_424, 46_882_576, 46_883_728, 46_899_472),
    ('B', 'additive'): (158_594_320, 158_595_856, 158_598_160, 158_600_464, 158_631_952),
    ('B', 'adaln'): (201_116_944, 201_118_480, 201_120_784, 201_123_088, 201_154_576),
    ('B', 'film'): (172_768_528, 172_770_064, 172_772_368, 172_774_672, 172_806_160),
    ('B', 'cross_attention'): (186_951_952, 186_953_488, 186_955_792, 186_958_096, 186_989_584),
    ('L', 'additive'): (558_661_648, 558_663_696, 558_666_768, 558_669_840, 558_711_824),
    ('L', 'adaln'): (709_804_048, 709_806_096, 709_809_168, 709_812_240, 709_854_224),
    ('L', 'film'): (609_042_448, 609_044_496, 609_047_568, 609_050_640, 609_092_624),
    ('L', 'cross_attention'): (659_447_824, 659_449_872, 659_452_944, 659_456_016, 659_498_000)}


@pytest.mark.parametrize('size', 'SBL')
@pytest.mark.parametrize('injection', INJECTIONS)
def test_parameter_counts(size, injection):
    def count(**kw):
        with torch.device('meta'):
            model = Model(Config(**asdict(PRESETS[size]) | dict(injection=injection, **kw)))
        return sum(p.numel() for p in model.parameters())
    expected = COUNTS[size, injection.replace('adaln_fuse', 'additive')]
    assert tuple(count(action_dim=a) for a in DIMS) == expected
    assert count(action_dim=51, num_frames=16) == expected[-1] + 12 * PRESETS[size].hidden


def test_state_dict_keys():
    keys = set(tiny(injection='cross_attention').state_dict())
    both = ('weight', 'bias')
    block = {f'attn.{m}.{p}' for m in ('qkv', 'proj') for p in both} | {f'attn.{m}_norm.weight' for m in 'qk'}
    block |= {f'mlp.{m}.weight' for m in ('w1', 'w2', 'w3')} | {f'adaLN_modulation.1.{p}' for p in both}
    block |= {f'cross_attn.{m}.{p}' for m in ('q', 'kv', 'proj') for p in both} | {'cross_gate'}
    expected = {f'blocks.{i}.{name}' for i in range(4) for name in block}
    expected |= {f'{m}.mlp.{i}.{p}' for m in ('t_embedder', 'action_embedder') for i in (0, 2) for p in both}
    layers = ('x_embedder.proj', 'final_layer.linear', 'final_layer.adaLN_modulation.1')
    expected |= {f'{m}.{p}' for m in layers for p in both}
    assert keys == expected | {'pos_embed', 'temp_embed', 'action_mean', 'action_std'}
    with torch.device('meta'):
        sizes = {i: len(Model(Config(injection=i)).state_dict()) - 2 for i in INJECTIONS}   # - 2 of our own
    assert sizes == {'additive': 148, 'adaln_fuse': 148, 'adaln': 172, 'film': 172, 'cross_attention': 232}


@pytest.mark.parametrize('schedule, ztsnr, values', [
    ('cosine', True, (0.999959, 0.998114, 0.845881, 0.492265, 0.143155, 2.27781e-06, 0)),
    ('cosine', False, (0.999959, 0.998114, 0.845888, 0.492285, 0.143179, 2.42877e-06, 2.42877e-09)),
    ('linear', False, (0.9999, 0.993735, 0.521423, 0.0777967, 0.00330016, 4.11819e-05, 4.03583e-05))])
def test_alpha_bar(schedule, ztsnr, values):
    alpha, sigma = noise_schedule('v', schedule, ztsnr, 1000)
    t = torch.tensor([0, 20, 250, 500, 750, 998, 999])
    assert alpha[t + 1].pow(2).tolist() == pytest.approx(values, rel=2e-5, abs=1e-12)
    assert (alpha ** 2 + sigma ** 2 - 1).abs().max() < 1e-6
    assert alpha[0] == 1 and sigma[0] == 0                                    # t = -1 is the clean frame


def test_published_snr_weight():
    alpha, sigma = noise_schedule('v', 'cosine', True, 1000)
    t = torch.tensor([0, 20, 100, 200, 250, 260, 261, 600, 999])
    w = nanowm.snr_weight('published', 'v', alpha[t + 1], sigma[t + 1], 5.0)
    expected = [2.0643e-4, 9.4471e-3, 0.146287, 0.569430, 0.910999, 0.991931, 1, 1, 1]
    assert w.tolist() == pytest.approx(expected, rel=1e-4)


def test_paper_snr_weight():
    """Hang et al.: min(SNR, gamma) for x, over SNR + 1 for v, over SNR for eps."""
    alpha, sigma = noise_schedule('v', 'cosine', True, 1000)
    a, s = alpha[1:-1].double(), sigma[1:-1].double()
    snr = (a / s) ** 2
    clamped = snr.clamp(max=5)
    for pred, expected in (('x', clamped), ('v', clamped / (snr + 1)), ('eps', clamped / snr)):
        w = nanowm.snr_weight('paper', pred, alpha[1:-1], sigma[1:-1], 5.0)
        assert torch.allclose(w.double(), expected, rtol=1e-5)


@pytest.mark.parametrize('injection', INJECTIONS)
def test_flops_against_torch(injection):
    model = tiny(injection=injection)
    x, t, action = inputs(model.cfg, B=1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):   # fused ones hide
        model.net(x, t, action)
    counted = 3 * counter.get_total_flops()
    assert model.flops_per_sample() == pytest.approx(counted, rel=0.005)      # the last action is not used


# ---- the network ----

@pytest.mark.parametrize('injection', INJECTIONS)
def test_causal(injection):
    """A frame does not change, by one bit, when later frames, levels or actions change."""
    model = tiny(injection=injection)
    x, t, action = inputs(model.cfg)
    out = model.net(x, t, action)
    for f in range(model.cfg.num_frames - 1):
        x2, t2, action2 = x.clone(), t.clone(), action.clone()
        x2[:, f + 1:], t2[:, f + 1:] = torch.randn_like(x[:, f + 1:]), 7
        action2[:, f:] = torch.randn_like(action[:, f:])
        out2 = model.net(x2, t2, action2)
        assert torch.equal(out[:, :f + 1], out2[:, :f + 1])
        assert (out[:, f + 1] - out2[:, f + 1]).abs().max() > 1e-3   # and the mask does not block everything


@pytest.mark.parametrize('injection', INJECTIONS)
def test_previous_action_reaches_its_frame(injection):
    """a_{f-1} leads to frame f: it changes frame f, not frame f - 1."""
    model = tiny(injection=injection)
    x, t, action = inputs(model.cfg)
    other = action.clone()
    other[:, 1] += 1
    changed = (model.net(x, t, action) - model.net(x, t, other)).abs().amax((0, 2, 3, 4))
    assert changed[:2].max() == 0 and changed[2] > 1e-3 and changed[3] > 1e-3


@pytest.mark.parametrize('injection', INJECTIONS)
def test_fewer_frames_are_a_prefix(injection):
    model = tiny(injection=injection)
    x, t, action = inputs(model.cfg)
    whole = model.net(x, t, action)
    for n in range(1, model.cfg.num_frames + 1):
        assert torch.allclose(model.net(x[:, :n], t[:, :n], action[:, :n]), whole[:, :n], atol=1e-5)


@pytest.mark.parametrize('injection', INJECTIONS)
def test_keys_and_values_continue_a_window(injection):
    """Frames 2.. with the temporal keys and values of frames 0..1 equal the whole window."""
    model = tiny(injection=injection)
    x, t, action = inputs(model.cfg)
    whole = model.net(x, t, action)
    head, kv = model.net(x[:, :2], t[:, :2], action, kv=[])
    tail, new = model.net(x[:, 2:], t[:, 2:], action, start=2, kv=kv)
    assert len(kv) == len(new) == model.cfg.depth // 2
    assert torch.allclose(torch.cat([head, tail], 1), whole, atol=1e-5)


@pytest.mark.parametrize('injection', INJECTIONS)
def test_actions_matter_after_20_steps(injection):
    """The published cross attention stays dead for ever (gate 0 x projection 0); ours learn, all of them."""
    torch.manual_seed(0)
    model = Model(Config(height=8, width=8, action_dim=3, depth=4, hidden=32, heads=2, injection=injection))
    optimizer = model.configure_optimizers(1e-3, 0.01, (0.9, 0.999))
    for _ in range(20):
        action = torch.randn(8, 4, 3)
        shown = torch.cat([torch.zeros(8, 1, 3), action[:, :-1]], 1)     # a frame shows the action before it
        channels = torch.nn.functional.pad(shown, (0, 1))                # 3 action entries -> 4 channels
        latent = channels[..., None, None].expand(-1, -1, -1, 8, 8)
        loss = model({'latent': latent, 'action': action})['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grad = max(p.grad.abs().max().item() for p in model.action_embedder.parameters())
    x, t, action = inputs(model.cfg)
    change = (model.net(x, t, action) - model.net(x, t, action + 1)).abs().max().item()
    assert grad > 1e-6 and change > 1e-4


def test_published_cross_attention_is_dead():
    """The original's start, gate = projection = 0, gives both a zero gradient: shown, and avoided."""
    def gradients(gate):
        torch.manual_seed(0)
        model = Model(Config(height=8, width=8, action_dim=3, depth=2, hidden=32, heads=2,
                             injection='cross_attention'))
        with torch.no_grad():
            for block in model.blocks:
                block.cross_gate.fill_(gate)
            for p in (model.final_layer.linear.weight, model.blocks[0].adaLN_modulation[1].weight):
                p.normal_(std=0.02)
        model({'latent': torch.randn(4, 4, 4, 8, 8), 'action': torch.randn(4, 4, 3)})['loss'].backward()
        proj = max(block.cross_attn.proj.weight.grad.abs().max().item() for block in model.blocks)
        return proj, max(block.cross_gate.grad.abs().max().item() for block in model.blocks)
    assert gradients(gate=0.0) == (0.0, 0.0)
    assert gradients(gate=1.0)[0] > 0


def test_patches_are_where_they_belong():
    """With a network that copies its tokens, unpatchify undoes the patch embedding: row-major, (p, q, c)."""
    cfg = Config(height=4, width=6, channels=3, patch=2, hidden=16, heads=2, depth=2)
    model, x = Model(cfg), torch.randn(1, 2, 3, 4, 6)
    tokens = x.view(1, 2, 3, 2, 2, 3, 2).permute(0, 1, 3, 5, 4, 6, 2).reshape(1, 2, 6, 12)
    assert torch.equal(model.unpatchify(tokens), x)
    proj = model.x_embedder.proj
    naive = torch.nn.functional.conv2d(x[0], proj.weight, proj.bias, stride=2)
    assert torch.allclose(model.x_embedder(x)[0, :, 4], naive[:, :, 1, 1], atol=1e-6)   # row 1, column 1


def test_rope_turns_by_the_difference_of_positions():
    angles = nanowm.rope_angles(torch.arange(9), 8)
    table = torch.stack([angles.cos(), angles.sin()])
    q, k = torch.randn(16), torch.randn(16)
    Q, K = (nanowm.apply_rope(v.expand(9, 16), table) for v in (q, k))
    dots = Q @ K.T
    for d in range(9):
        diagonal = dots.diagonal(-d)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)


def test_starts_as_zero():
    model = Model(Config(height=8, width=8, depth=4, hidden=32, heads=2))
    x, t, action = inputs(model.cfg)
    assert model.net(x, t, action).abs().max() == 0


@pytest.mark.parametrize('heads', [4, 6])
def test_heads_start_by_looking_at_neighbours(heads):
    """Before training, heads of space blocks look mostly where they should; all else stays as it was."""
    keys = dict(height=9, width=9, patch=1, hidden=32 * heads, heads=heads, depth=4)
    torch.manual_seed(0)
    model = Model(Config(neighbours=2.0, **keys))
    torch.manual_seed(0)
    plain = Model(Config(**keys))
    same = [name for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values())
            if torch.equal(a, b)]
    told = {'attn.qkv.bias', 'attn.q_norm.weight', 'attn.k_norm.weight'}
    assert {name for name in model.state_dict() if name not in same} == {
        f'blocks.{i}.{name}' for i in (0, 2) for name in told}
    x = torch.nn.functional.layer_norm(torch.randn(1, 81, 32 * heads), (32 * heads,))
    attn = model.blocks[0].attn
    q, k, _ = attn.qkv(x).view(1, 81, 3, heads, 32).permute(2, 0, 3, 1, 4)
    q, k = (nanowm.apply_rope(norm(y), model.rope_space) for norm, y in ((attn.q_norm, q), (attn.k_norm, k)))
    look = (q @ k.transpose(-1, -2) / 32 ** 0.5).softmax(-1)[0].view(heads, 9, 9, 9, 9)
    for h in range(heads):
        dy, dx = [(-1, 0), (0, 1), (1, 0), (0, -1)][h % 4]
        inside = [(y, x) for y in range(1, 8) for x in range(1, 8)]
        there = np.mean([look[h, y, x, y + dy, x + dx].item() for y, x in inside])
        others = [np.mean([look[h, y, x, y + v, x + u].item() for y, x in inside])
                  for v in (-1, 0, 1) for u in (-1, 0, 1) if (v, u) != (dy, dx)]
        assert there > 0.2 and there > 2 * max(others), (h, there, others)


# ---- training options ----

def test_training_levels():
    torch.manual_seed(0)
    t = tiny(p_noise=0.7, context_t=39, t_sampling='uniform').draw_t(20_000, 4)
    assert t[:, 0].min() == 0 and t[:, 0].max() == 39
    assert t[:, 0].float().mean().item() == pytest.approx(19.5, abs=0.5)
    assert (t[:, 1:] == 999).float().mean().item() == pytest.approx(0.7 + 0.3 / 1000, abs=0.01)
    published = tiny().draw_t(50_000, 4).float()
    z = torch.randn(50_000).sigmoid() * 1000
    assert published.mean().item() == pytest.approx(499.5, abs=3)
    assert published.std().item() == pytest.approx(z.std().item(), rel=0.02)


def test_context_loss():
    model = tiny(context_loss=False, snr_gamma=0.0)
    x, t, action = inputs(model.cfg)
    eps = torch.randn_like(x)
    mse = model.loss(x, action, t, eps)[1]
    alpha, sigma = model.levels(t)
    error = (model.net(model.q_sample(x, t, eps), t, action) - (alpha * eps - sigma * x)).pow(2)
    assert torch.allclose(mse, error[:, 1:].mean((1, 2, 3, 4)), rtol=1e-5)


def test_clean_context():
    """context_t = -1: no noise, level -1, in training and in sampling."""
    model = tiny(context_t=-1, history_level=-1.0, p_noise=0.5, context_loss=False)
    t = model.draw_t(1000, 4)
    assert (t[:, 0] == -1).all() and t[:, 1:].min() >= 0
    x, _, _ = inputs(model.cfg)
    t = torch.full(x.shape[:2], -1)
    assert torch.equal(model.q_sample(x, t, torch.randn_like(x)), x)
    seen, net = [], model.net
    model.net = lambda x, t, *rest, **kw: (seen.append((x.clone(), t.clone())), net(x, t, *rest, **kw))[1]
    context = {'latent': x[:, :1], 'action': torch.zeros(len(x), 0, model.cfg.action_dim)}
    model.rollout(context, torch.zeros(len(x), 1, 1, model.cfg.action_dim))
    shown, t = seen[0]                                               # later calls know it by keys and values
    assert torch.equal(shown[:, 0], x[:, 0]) and (t[:, 0] == -1).all() and t.shape[1] == 2


@pytest.mark.parametrize('context_t, history_level', [(-1, -1.0), (0, 0.3)])
def test_skip_adds_the_newest_clean_frame(context_t, history_level):
    """A network that says 0 predicts that nothing changes, in loss and dream, whatever the noise."""
    keys = dict(pred='x', skip=True, context_t=context_t, history_level=history_level, snr_gamma=0.0,
                context_loss=False, n_context=2, sample_steps=3)
    model = Model(Config(height=8, width=8, depth=4, hidden=32, heads=2, num_frames=4, **keys))
    x, t, action = inputs(model.cfg)
    loss, mse = model.loss(x, action, t, torch.randn_like(x))
    assert torch.allclose(mse, (x[:, 2:] - x[:, 1:2]).pow(2).mean((1, 2, 3, 4)), rtol=1e-5)
    assert torch.equal(loss, mse)
    context = {'latent': x[:, :3], 'action': action[:, :2]}
    new = model.rollout(context, torch.zeros(len(x), 2, 5, model.cfg.action_dim))['latent']
    assert torch.allclose(new, x[:, None, 2:3].expand_as(new), atol=1e-5)
    with pytest.raises(ValueError, match='history = 1: must be n_context = 2 with skip'):
        model.rollout(context, torch.zeros(len(x), 1, 5, model.cfg.action_dim), history=1)


def test_change_weight():
    """What differs from the newest context frame, or is thought to, counts more; `mse` is the plain one."""
    model = tiny(change_weight=3.0, context_loss=False, snr_gamma=0.0)
    x, t, action = inputs(model.cfg)
    x[:, 1:, :, :4] = x[:, :1, :, :4]                                # the upper half stands still
    eps = torch.randn_like(x)
    loss, mse = model.loss(x, action, t, eps)
    alpha, sigma = model.levels(t)
    noised = model.q_sample(x, t, eps)
    out = model.net(noised, t, action)
    square = (out - (alpha * eps - sigma * x)).pow(2)[:, 1:]
    guess = (alpha * noised - sigma * out)[:, 1:]                    # of x, by the definition of v
    true, thought = ((y - x[:, :1]).abs().amax(2, keepdim=True) for y in (x[:, 1:], guess))
    assert (true[..., :4, :] == 0).all() and (true[..., 4:, :] > 0).all() and (thought > true).any()
    counts = 1 + 3 * (torch.maximum(true, thought) / 0.3).clamp(max=1)
    assert torch.allclose(mse, square.mean((1, 2, 3, 4)), rtol=1e-5)
    assert torch.allclose(loss, (square * counts).mean((1, 2, 3, 4)), rtol=1e-5)


def test_weight_meets_its_frame_in_the_paper_form():
    x, t, action = inputs(tiny().cfg)
    eps = torch.randn_like(x)
    for form in ('published', 'paper'):
        model = tiny(snr_form=form)
        loss, mse = model.loss(x, action, t, eps)
        alpha, sigma = model.levels(t)
        out = model.net(model.q_sample(x, t, eps), t, action)
        per_frame = (out - (alpha * eps - sigma * x)).pow(2).mean((2, 3, 4))
        w = nanowm.snr_weight(form, 'v', model.alpha[t + 1], model.sigma[t + 1], 5.0)
        expected = per_frame.mean(1) * w.mean(1) if form == 'published' else (per_frame * w).mean(1)
        assert torch.allclose(loss, expected, rtol=1e-5) and torch.allclose(mse, per_frame.mean(1), rtol=1e-5)


def test_actions_are_normalised_and_folded_in_time():
    model = tiny(frame_skip=2)
    model.action_mean.copy_(torch.tensor([1., 2., 3.]))
    model.action_std.copy_(torch.tensor([1., 2., 4.]))
    raw = torch.arange(24.).view(1, 8, 3)
    folded = model.fold_action(raw)
    assert folded.shape == (1, 4, 6)
    assert torch.equal(folded[0, 1], torch.cat([(raw[0, 2] - model.action_mean) / model.action_std,
                                                (raw[0, 3] - model.action_mean) / model.action_std]))
    assert torch.equal(model.fold_action(raw.view(1, 4, 6)), folded)


def test_pixels_round_trip():
    model = tiny(input='video', channels=3)
    video = torch.randint(256, (2, 3, 8, 12, 3), dtype=torch.uint8)
    x = model.encode({'video': video})
    assert x.shape == (2, 3, 3, 8, 12) and x.min() >= -1 and x.max() <= 1
    assert torch.equal(model.decode(x).round().to(torch.uint8), video)
    assert model.decode(x * 3).max() == 255 and model.decode(x * 3).min() == 0


# ---- sampling ----

def test_scheduling_matrices():
    assert scheduling_matrix('pyramid', 3, 4, 1000).tolist() == [
        [999, 999, 999], [749, 999, 999], [499, 749, 999], [249, 499, 749],
        [-1, 249, 499], [-1, -1, 249], [-1, -1, -1]]
    assert scheduling_matrix('full_sequence', 2, 2, 1000).tolist() == [[999, 999], [499, 499], [-1, -1]]
    assert scheduling_matrix('sequential', 2, 2, 1000).tolist() == [
        [999, 999], [499, 999], [-1, 999], [-1, 499], [-1, -1]]
    assert len(scheduling_matrix('sequential', 3, 250, 1000)) == 751
    assert len(scheduling_matrix('sequential', 12, 50, 1000)) == 601
    fifty = scheduling_matrix('full_sequence', 1, 50, 1000)[:, 0]
    assert fifty.tolist() == [50 * 20 - 1 - 20 * i for i in range(51)]
    for steps in (4, 7, 50, 250, 999, 1000):                                   # the original's float grid
        grid = np.trunc(np.linspace(-1, 999, steps + 1)).astype(int)
        assert scheduling_matrix('full_sequence', 1, steps, 1000)[:, 0].tolist() == grid[::-1].tolist()


def test_one_new_frame_has_one_matrix():
    """With one new frame per window the three modes do the same; with two they do not."""
    modes = ('full_sequence', 'pyramid', 'sequential')
    one, two = ([scheduling_matrix(mode, T, 5, 1000).tolist() for mode in modes] for T in (1, 2))
    assert one[0] == one[1] == one[2] and two[0] != two[1] != two[2] != two[0]


@pytest.mark.parametrize('pred, ztsnr', [('v', True), ('x', True), ('eps', False), ('flow', False)])
def test_estimates_invert_the_target(pred, ztsnr):
    alpha, sigma = (s[1:, None] for s in noise_schedule(pred, 'cosine', ztsnr, 1000))
    x0, eps = torch.randn(1000, 8), torch.randn(1000, 8)
    out = nanowm.target_of(pred, x0, eps, alpha, sigma)
    x0_hat, eps_hat = nanowm.estimates(pred, out, alpha * x0 + sigma * eps, alpha, sigma)
    mild = ((alpha > 0.01) & (sigma > 0.01)).expand_as(x0)           # elsewhere one of the two is unknowable
    assert (x0_hat - x0)[mild].abs().max() < 1e-3 and (eps_hat - eps)[mild].abs().max() < 1e-3


@pytest.mark.parametrize('pred, ztsnr', [('v', True), ('x', True), ('eps', False), ('flow', False)])
@pytest.mark.parametrize('eta', (0.0, 1.0))
def test_sampler_recovers_a_gaussian(pred, ztsnr, eta):
    """With the exact posterior mean of N(2, 0.5^2) as network, samples have that mean and deviation."""
    if pred == 'flow' and eta:
        pytest.skip('Euler on the straight path has no eta')
    model = tiny(pred=pred, ztsnr=ztsnr, schedule='cosine', height=4, width=4, channels=1, num_frames=2,
                 snr_gamma=0.0)
    mean, var = 2.0, 0.25

    def exact(x, t, action, start, kv):
        alpha, sigma = model.levels(t)
        x0 = mean + alpha * var / (alpha ** 2 * var + sigma ** 2) * (x - alpha * mean)
        eps = torch.where(sigma > 1e-6, (x - alpha * x0) / sigma.clamp(min=1e-6), 0)
        return nanowm.target_of(pred, x0, eps, alpha, sigma), []
    model.net = exact
    x = torch.cat([torch.zeros(4000, 1, 1, 4, 4), torch.randn(4000, 1, 1, 4, 4)], 1)
    rows = scheduling_matrix('full_sequence', 1, 200, 1000)
    new = model.denoise(x, torch.zeros(4000, 1, 3), rows, 1, eta=eta)[:, 1]
    assert new.mean().item() == pytest.approx(mean, abs=0.01)
    assert new.std().item() == pytest.approx(0.5, abs=0.012)


def test_ddim_variance_is_kept():
    """eta moves noise from the old eps to the fresh one; what is added up stays sigma'^2."""
    alpha, sigma = noise_schedule('v', 'cosine', True, 1000)
    a, s, a2, s2 = alpha[500], sigma[500], alpha[300], sigma[300]
    x0, eps, z = torch.zeros(200_000), torch.randn(200_000), torch.randn(200_000)
    for eta in (0.0, 0.5, 1.0):
        stepped = nanowm.ddim_step(x0, eps, a, s, a2, s2, eta, z)
        assert stepped.std().item() == pytest.approx(s2.item(), rel=0.01)


def test_context_is_kept_and_waiting_frames_wait():
    model = tiny()
    x, _, action = inputs(model.cfg)
    rows = scheduling_matrix('sequential', 3, 4, 1000)
    half = model.denoise(x, action, rows[:5], 1)                     # only the first new frame is done
    assert torch.equal(half[:, 0], x[:, 0]) and torch.equal(half[:, 2:], x[:, 2:])
    assert not torch.equal(half[:, 1], x[:, 1])


def test_one_frame_models_step_by_hand():
    """denoise equals the formulas written out as a loop over frames and steps."""
    model = tiny(sample_steps=5)
    x, _, action = inputs(model.cfg)
    rows = scheduling_matrix('pyramid', 3, 5, 1000)
    expected = x.clone()
    for r in range(len(rows) - 1):
        t = torch.cat([torch.tensor([20]), rows[r].clamp(min=0)]).expand(2, -1)
        with torch.no_grad():
            out = model.net(expected, t, action)
        for f in range(3):
            now, then = rows[r, f].item(), rows[r + 1, f].item()
            if now == then:
                continue
            a, s = model.alpha[now + 1].item(), model.sigma[now + 1].item()
            a2, s2 = model.alpha[then + 1].item(), model.sigma[then + 1].item()
            x0 = a * expected[:, f + 1] - s * out[:, f + 1]
            eps = (expected[:, f + 1] - max(a, 1e-4) * x0) / s
            expected[:, f + 1] = a2 * x0 + s2 * eps
    assert torch.allclose(model.denoise(x, action, rows, 1, t_context=20), expected, atol=1e-4)


def rollout_inputs(cfg, B=2, given=1, N=3, K=5):
    """-> context of `given` frames, the actions of N futures of K frames."""
    folded = cfg.frame_skip * cfg.action_dim
    context = {'latent': torch.randn(B, given, cfg.channels, cfg.height, cfg.width),
               'action': torch.randn(B, given - 1, folded)}
    return context, torch.randn(B, N, K, folded)


def test_rollout_shapes_and_shared_noise():
    model = tiny(sample_steps=2)
    context, action = rollout_inputs(model.cfg)
    action[:, 2] = action[:, 0]
    new = model.rollout(context, action)['latent']
    assert new.shape == (2, 3, 5, 2, 8, 12)
    assert torch.allclose(new[:, 0], new[:, 2], atol=1e-5)           # same action, same noise: same future
    assert (new[:, 0] - new[:, 1]).abs().max() > 1e-3


def test_rollout_is_causal_in_the_actions():
    model = tiny(sample_steps=2)
    context, action = rollout_inputs(model.cfg, N=1)
    noise, other = torch.randn(2, 5, 2, 8, 12), action.clone()
    other[:, :, 3:] += 1
    a, b = (model.rollout(context, x, noise, generator=torch.Generator().manual_seed(0))['latent']
            for x in (action, other))
    assert torch.equal(a[:, :, :3], b[:, :, :3]) and not torch.equal(a[:, :, 3], b[:, :, 3])


def test_rollout_in_one_window_is_denoise():
    model = tiny(sample_steps=3, history_level=0.02)
    context, action = rollout_inputs(model.cfg, N=1, K=3)
    noise, g = torch.randn(2, 3, 2, 8, 12), torch.Generator().manual_seed(1)
    new = model.rollout(context, action, noise, stride=3, generator=g)['latent'][:, 0]
    ctx_noise = torch.randn(2, 4, 2, 8, 12, generator=torch.Generator().manual_seed(1))[:, :1]
    window = torch.cat([model.q_sample(context['latent'], torch.full((2, 1), 20), ctx_noise), noise], 1)
    rows = scheduling_matrix('sequential', 3, 3, 1000)
    expected = model.denoise(window, model.fold_action(action[:, 0]), rows, 1, 20)
    assert torch.equal(new, expected[:, 1:])


def test_history_shortens_what_the_model_sees():
    """With history 1 the frames before the last one cannot matter."""
    model = tiny(sample_steps=2)
    context, action = rollout_inputs(model.cfg, given=3, N=1)
    other = {'latent': context['latent'].clone(), 'action': context['action'] + 1}
    other['latent'][:, :2] = 0
    noise = torch.randn(2, 5, 2, 8, 12)

    def future(c, history):
        generator = torch.Generator().manual_seed(0)
        return model.rollout(c, action, noise, history=history, generator=generator)['latent']
    assert torch.equal(future(context, 1), future(other, 1))
    assert not torch.equal(future(context, 2), future(other, 2))


def test_equal_futures_are_equal_also_with_eta():
    """Only their actions shall tell the futures of a clip apart; its neighbour in the batch has its own."""
    model = tiny(sample_steps=3, eta=1.0)
    context, action = rollout_inputs(model.cfg, given=2, N=1, K=2)
    new = model.rollout(context, action.expand(-1, 2, -1, -1))['latent']
    assert torch.equal(new[:, 0], new[:, 1]) and not torch.equal(new[0], new[1])


def test_a_context_needs_the_actions_between_its_frames():
    model = tiny()
    context, action = rollout_inputs(model.cfg, given=2, N=1, K=1)
    context = context | {'action': torch.cat([context['action']] * 2, 1)}
    with pytest.raises(ValueError, match='2 actions for a context of 2 frames; give the 1 between them'):
        model.rollout(context, action)


def test_context_levels():
    assert tiny().context_level() == 20 and tiny(history_level=0.0).context_level() == 0
    assert tiny(context_t=39, history_level=-1.0).context_level() == 19
    assert tiny().context_level(0.1) == 100


def dream(frames=3, **kw):
    """What the tiny model dreams with these sampling keys, its random draws always the same."""
    model = tiny(sample_steps=3)
    torch.manual_seed(2)
    context, action = rollout_inputs(model.cfg, N=1, K=frames)
    noise = torch.randn(2, frames, 2, 8, 12)
    for key, value in kw.pop('keys', {}).items():
        setattr(model.cfg, key, value)
    return model.rollout(context, action, noise, generator=torch.Generator().manual_seed(3), **kw)['latent']


@pytest.mark.parametrize('key, value', [
    ('history_level', 0.5), ('sampling', 'pyramid'), ('sample_steps', 4), ('eta', 1.0)])
def test_rollout_reads_the_sampling_keys(key, value):
    assert key in nanowm.SAMPLING and len(nanowm.SAMPLING) == 4
    assert torch.equal(dream(stride=3), dream(stride=3))
    assert not torch.equal(dream(stride=3), dream(stride=3, keys={key: value}))


def test_one_new_frame_per_window_makes_sampling_a_no_op():
    """What the comment of Config.sampling says."""
    modes = [dream(stride=1, keys={'sampling': mode}) for mode in ('full_sequence', 'pyramid', 'sequential')]
    assert torch.equal(modes[0], modes[1]) and torch.equal(modes[0], modes[2])


# ---- the reasons that the comments give, in numbers ----

def test_errors_of_the_targets_are_those_of_x0_scaled():
    """The squared error of v is SNR + 1 times that of x0, that of eps SNR times: why min-SNR divides."""
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    x0, eps, off = torch.randn(3, 1000, dtype=torch.float64)
    x, snr = alpha * x0 + sigma * eps, (alpha / sigma) ** 2
    for pred, factor in (('x', 1), ('v', snr + 1), ('eps', snr)):
        out = nanowm.target_of(pred, x0, eps, alpha, sigma) + off
        x0_hat, _ = nanowm.estimates(pred, out, x, alpha, sigma)
        assert torch.allclose(off ** 2, factor * (x0_hat - x0) ** 2)


@pytest.mark.parametrize('pred', ('v', 'x'))
def test_pure_noise_counts_in_the_published_form_only(pred):
    """1 against 1e-8: why check() refuses p_noise with snr_form = paper."""
    alpha, sigma = noise_schedule(pred, 'cosine', True, 1000)
    for form, weight in ('published', 1), ('paper', 1e-8):
        assert nanowm.snr_weight(form, pred, alpha[-1:], sigma[-1:], 5.0).item() == pytest.approx(weight)


def test_logit_normal_never_draws_the_last_level():
    """P(sigmoid(z) >= 0.999), z normal, is 2.5e-12: why there is p_noise."""
    assert math.erfc(math.log(0.999 / 0.001) / math.sqrt(2)) / 2 == pytest.approx(2.5e-12, rel=0.02)
    torch.manual_seed(0)
    assert tiny().draw_t(100_000, 4).max() < 999
    t = tiny(p_noise=0.5).draw_t(1000, 4)[:, 1:]
    assert (t == 999).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_action_before_the_window_is_not_seen():
    """e_0 = 0: in rollout, too, the action that led to the first frame of a window changes nothing."""
    model = tiny(sample_steps=2)
    context, action = rollout_inputs(model.cfg, given=3, N=1, K=1)
    other = context | {'action': context['action'].clone()}
    other['action'][:, 0] += 1                 # leads to frame 1, where a history of 2 begins
    noise = torch.randn(2, 1, 2, 8, 12)

    def future(c, history):
        generator = torch.Generator().manual_seed(0)
        return model.rollout(c, action, noise, history=history, generator=generator)['latent']
    assert torch.equal(future(context, 2), future(other, 2))
    assert not torch.equal(future(context, 3), future(other, 3))


# ---- presets, and what is refused ----

def test_presets():
    assert {'tiny', 'cpu', 'full', 'S', 'B', 'L'} == set(PRESETS)
    assert PRESETS['full'] == PRESETS['B'] == Config()
    with torch.device('meta'):
        assert all(Model(cfg).cfg is cfg for cfg in PRESETS.values())


def test_the_cpu_preset_is_the_demo():
    """What config/minihack_wm_cpu.py sets of the model's keys, on data of 36x36 pixels and 4 actions."""
    keys = {}
    with open(os.path.join(ROOT, 'config', 'minihack_wm_cpu.py')) as f:
        exec(f.read(), keys)
    keys = {field.name: keys[field.name] for field in fields(Config) if field.name in keys}
    assert len(keys) > 10
    assert PRESETS['cpu'] == Config(input='video', height=36, width=36, channels=3, action_dim=4, **keys)


@pytest.mark.parametrize('name', ('tiny', 'cpu'))
@pytest.mark.parametrize('skip', (1, 2))
def test_example_is_a_batch(name, skip):
    """The keys and lengths of windows(cfg), in data units, and forward takes it."""
    cfg = Config(**asdict(PRESETS[name]) | dict(frame_skip=skip))
    batch = nanowm.example(cfg, 3)
    lengths = {key: len(offsets) for key, offsets in nanowm.windows(cfg).items()}
    assert {key: value.shape[1] for key, value in batch.items()} == lengths
    assert batch['action'].shape == (3, cfg.num_frames * skip, cfg.action_dim)
    if cfg.input == 'video':
        assert batch['video'].shape == (3, 2, 36, 36, 3) and batch['video'].dtype == torch.uint8
    else:
        assert batch['latent'].shape == (3, 3, 4, 8, 8) and batch['latent'].dtype == torch.float32
    assert torch.isfinite(Model(cfg)(batch)['loss'])


def test_a_checkpoint_without_eta_still_builds():
    """Older checkpoints do not know the key."""
    old = asdict(PRESETS['cpu'])
    del old['eta']
    assert Model(Config(**old)).cfg.eta == 0.0


@pytest.mark.parametrize('wrong, words', [
    (dict(pred='eps'), 'ztsnr'), (dict(depth=3), 'even'), (dict(height=9), 'height = 9'),
    (dict(width=9), 'width = 9: must be a multiple of patch = 2'), (dict(pred='y'), 'v, x, eps, flow'),
    (dict(hidden=36), '2-D RoPE'), (dict(n_context=4), 'n_context = 4: must lie in 1..3'),
    (dict(injection='add'), 'cross_attention'), (dict(input='pixels'), 'latent, video'),
    (dict(schedule='sine'), 'cosine, linear'), (dict(t_sampling='normal'), 'logit_normal, uniform'),
    (dict(snr_form='mine'), 'published, paper'), (dict(sampling='all'), 'full_sequence, pyramid, sequential'),
    *[({key: 0}, f'{key} = 0: must lie in 1..') for key in (
        'height', 'width', 'channels', 'action_dim', 'frame_skip', 'n_context', 'hidden', 'heads', 'patch',
        'sample_steps')],
    *[({key: -2}, f'{key} = -2: must lie in') for key in ('depth', 'hidden', 'heads', 'patch', 'num_frames')],
    (dict(depth=0), 'depth = 0: must lie in 2..'), (dict(num_frames=1), 'num_frames = 1: must lie in 2..'),
    (dict(timesteps=1), 'timesteps = 1: must lie in 2..'), (dict(sample_steps=1001), 'must lie in 1..1000'),
    (dict(context_t=-1), 'history_level = 0.02: must be -1 with context_t = -1'),
    (dict(context_t=-1, history_level=-1.0), 'context_loss = True: must be False with context_t = -1'),
    (dict(skip=True), 'skip = True: must be False with pred = v'),
    (dict(change_weight=-1.0), 'change_weight = -1.0: must lie in 0..'),
    (dict(context_t=1000), 'must lie in -1..999'), (dict(context_t=-2), 'must lie in -1..999'),
    (dict(p_noise=1.5), 'p_noise = 1.5'), (dict(p_noise=-0.1), 'p_noise = -0.1'),
    (dict(snr_gamma=-1.0), 'snr_gamma = -1.0: must lie in 0'), (dict(snr_gamma=math.nan), 'snr_gamma = nan'),
    (dict(snr_gamma=math.inf), 'snr_gamma = inf'), (dict(history_level=1.1), 'history_level = 1.1'),
    (dict(history_level=-0.5), 'history_level = -0.5: must lie in 0..1 or be -1'),
    (dict(eta=-0.1), 'eta = -0.1: must lie in 0..1'), (dict(eta=1.1), 'eta = 1.1: must lie in 0..1'),
    (dict(eta=math.nan), 'eta = nan'), (dict(eta=0.5, pred='flow'), 'eta = 0.5: must be 0 with pred = flow'),
    (dict(p_noise=0.7, snr_form='paper'), 'p_noise = 0.7: must be 0 with snr_form = paper'),
    (dict(p_noise=0.7, snr_form='paper', pred='x'), 'silences p_noise'),
    (dict(depth='4'), "depth = '4': must be of type int"), (dict(ztsnr=1), 'ztsnr = 1: must be of type bool'),
    (dict(eta=None), 'eta = None: must be of type float'), (dict(depth=4.0), 'depth = 4.0: must be of')])
def test_impossible_configs_name_the_way_out(wrong, words):
    """In one line, as ValueError: train.py shows it to the user, and python -O keeps it."""
    for ask in nanowm.windows, Model:                                # train.py needs the windows first
        with pytest.raises(ValueError) as stop:
            ask(Config(**SMALL | wrong))
        assert words in str(stop.value) and '\n' not in str(stop.value)


@pytest.mark.parametrize('allowed', [
    dict(p_noise=0.7, snr_form='paper', snr_gamma=0.0), dict(snr_form='paper'), dict(eta=1),
    dict(p_noise=0.7, snr_form='paper', pred='eps', ztsnr=False), dict(history_level=-1),
    dict(p_noise=1.0, context_t=999, n_context=3), dict(pred='flow', eta=0.0), dict(num_frames=2),
    dict(timesteps=2, sample_steps=2)])
def test_what_stands_beside_a_refusal_is_allowed(allowed):
    model = tiny(**allowed)
    assert torch.isfinite(model(nanowm.example(model.cfg, 2))['loss'])


def test_configs_are_refused_under_python_O():
    """python -O drops asserts; what a user can get wrong must not be one."""
    with open(nanowm.__file__) as f:
        code = compile(f.read(), 'nanowm.py', 'exec', optimize=1)
    names = {'__name__': 'nanowm'}
    exec(code, names)
    with pytest.raises(ValueError, match='snr_gamma = -1.0: must lie in 0..1000000.0'):
        names['Model'](names['Config'](snr_gamma=-1.0))


def test_an_injection_without_code_fails_loudly(monkeypatch):
    """A name added to the tuple alone passes check(); without this it would train blind to the actions."""
    monkeypatch.setattr(nanowm, 'INJECTIONS', (*INJECTIONS, 'telepathy'))
    with pytest.raises(ValueError, match="'telepathy': in INJECTIONS, but Block has no code for it"):
        tiny(injection='telepathy')


@pytest.mark.parametrize('key', ('pred', 'schedule', 't_sampling', 'snr_form', 'sampling'))
def test_a_choice_without_code_fails_loudly(monkeypatch, key):
    """Likewise for the other lists, once check() lets the name through."""
    monkeypatch.setattr(nanowm, 'check', lambda cfg: None)
    with pytest.raises((ValueError, KeyError), match='telepathy'):
        model = tiny(**{key: 'telepathy', 'sample_steps': 2})
        model(nanowm.example(model.cfg, 2))
        model.rollout(*rollout_inputs(model.cfg))


def test_too_long_windows_and_too_few_actions():
    model = tiny()
    x, t, action = inputs(model.cfg, T=5)
    with pytest.raises(AssertionError, match='num_frames = 4'):
        model.net(x, t, action)
    with pytest.raises(AssertionError, match='2 actions for 4 frames'):
        model.net(x[:, :4], t[:, :4], action[:, :2])
    with pytest.raises(AssertionError, match='actions of 2 numbers; give 3'):
        model.fold_action(torch.zeros(1, 4, 2))
    with pytest.raises(AssertionError, match='sample_steps = 0'):
        scheduling_matrix('pyramid', 2, 0, 1000)
    context, action = rollout_inputs(model.cfg)
    for history in (4, -1):
        with pytest.raises(ValueError, match=f'history = {history}: must lie in 1..3'):
            model.rollout(context, action, history=history)
    with pytest.raises(ValueError, match='history = 3: must lie in 1..2'):
        model.rollout(context, action, history=3, stride=2)
    for stride in (0, 4):
        with pytest.raises(ValueError, match=f'stride = {stride}: must lie in 1..3'):
            model.rollout(context, action, stride=stride)


def test_lesson_zero_runs():
    said, _ = script('nanowm.py')
    assert 'parameters' in said and math.isfinite(float(said.split('loss ')[1].split()[0]))
