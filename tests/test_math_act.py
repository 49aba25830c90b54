"""act.py against closed forms, loops, torch's own layers and LeRobot's numbers; vision.Backbone."""
import glob
import json
import math
import os
import re
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import SHARED, script
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import act as A
import checkpoint
import vision

LEROBOT = os.path.join(SHARED, 'reference', 'lerobot')
GOLDEN = sorted(glob.glob(os.path.join(LEROBOT, 'act_*.safetensors')))
NO_FILES = 'no golden files of LeRobot beside the repository (../shared/reference/lerobot)'


def tiny(**over):
    return replace(A.PRESETS['tiny'], **over)


def model_of(seed=0, **over):
    torch.manual_seed(seed)
    return A.Model(tiny(**over)).eval()


def obs_of(batch):
    return {key: x for key, x in batch.items() if key not in ('action', 'mask')}


# ---- LeRobot's numbers ----

@pytest.mark.parametrize('path', GOLDEN or [None], ids=lambda p: os.path.basename(p) if p else 'none')
def test_golden(path):
    if path is None:
        pytest.skip(NO_FILES)
    rows = golden.check(path)
    assert len(rows) >= 15
    for name, error, allowed in rows:
        assert error <= allowed, f'{name}: error {error:.2e}, allowed {allowed:.2e}'


def written(path, over, cameras, words, seed=77):
    """
    Write a golden file of other sizes, its list of keys beside it, with three outputs of a model that is
    built here -> its tensors, its metadata.
    """
    said = dict(chunk_size=10, dim_model=16, n_heads=2, dim_feedforward=20, n_encoder_layers=1,
                n_vae_encoder_layers=1, latent_dim=4, action_dim=2, state_dim=3, kl_weight=10.0) | over
    sees = dict(obs='image', cameras=cameras, height=40, width=70) if cameras else dict(obs='keypoints')
    model = A.Model(A.Config(**said | sees, env_state_dim=6, dropout=0.0, n_action_steps=1))
    own = model.state_dict()
    listed = {f'model.{key}': [list(x.shape), 'float32', 'fixed' if key.endswith('pos_enc') else 'formula']
              for key, x in own.items() if not golden.STATISTICS.fullmatch(key)}
    path.with_suffix('.keys.json').write_text(json.dumps(listed))
    weights = golden.formula_weights(listed, seed)
    model.load_state_dict(own | {key.removeprefix('model.'): x for key, x in weights.items()})
    for name in ('image_mean', 'image_std') if cameras else ():
        getattr(model, name).fill_(name == 'image_std')

    torch.manual_seed(0)
    T, n, steps = said['chunk_size'], said['action_dim'], 12
    seen = {f'image.{name}': torch.randint(0, 256, (3, 3, 40, 70), dtype=torch.uint8) for name in cameras}
    seen |= {'state': torch.randn(3, 3)} | ({} if cameras else {'env_state': torch.randn(3, 6)})
    g = {f'in.{key}': x for key, x in seen.items()} | {
        'in.action': torch.randn(3, T, n), 'in.latent_eps': torch.randn(3, said['latent_dim']),
        'in.action_is_pad': torch.arange(T) >= torch.tensor([[T], [5], [1]]),
        'in.ensemble.chunks': torch.randn(steps, 3, T, n)}
    batch = {key: x[:, None] for key, x in seen.items()} | {
        'action': g['in.action'], 'mask': ~g['in.action_is_pad'], 'noise': g['in.latent_eps']}
    with torch.no_grad():
        g['out.train.loss'] = model.train()(batch)['loss']
        g['out.eval.actions'] = model.eval().net(torch.zeros_like(batch['noise']), *model.look(batch))
    m = float(re.search(r'-?[\d.]*\d', words)[0])
    g['out.ensemble.actions'] = torch.stack([offline(g['in.ensemble.chunks'], t, m) for t in range(steps)])
    config = said | {'cams': dict.fromkeys(cameras, [40, 70])}
    theirs = {'pretrained_backbone_weights': vision.IMAGENET, 'temporal_ensemble_coeff': None}
    meta = {'policy': 'act', 'SEED': str(seed), 'notes': json.dumps({'ensemble': words}),
            'config': json.dumps(config), 'lerobot_config': json.dumps(theirs)}
    save_file(g, path, meta)
    return g, meta


@pytest.mark.parametrize('over, cameras, words', [
    (dict(chunk_size=7, n_encoder_layers=3, kl_weight=2.0), ('left', 'right'), 'coefficient 0.25: chunk n'),
    (dict(use_vae=False, n_decoder_layers=2, dim_model=24, action_dim=3), ('top',), 'coefficient -0.5, '),
    (dict(latent_dim=5), (), 'coefficient 0')])
def test_golden_reads_other_files(tmp_path, over, cameras, words):
    """
    Sizes, cameras, the seed of the weights and the ensembler's coefficient come from the file. What it lists
    and we do not know fails, and so does a spoilt number.
    """
    path = tmp_path / 'act_B.safetensors'
    g, meta = written(path, over, cameras, words)
    said, _ = script('tests/golden.py', path)
    assert len(re.findall('allowed .* ok\n', said)) == 3
    ours = golden.outputs(*golden.load(path)[:2])            # and all that it would recompute
    assert len(ours) == 11 + 3 * over.get('use_vae', True) + len(cameras)
    g |= {key: x.contiguous().clone() for key, x in ours.items()}
    g['out.train.l1_loss'] = g['out.train.l1_loss'] * 1.01
    save_file(g | {'mid.other': torch.zeros(3)}, path, meta)
    said, _ = script('tests/golden.py', path, code=1)
    failed = [line.split()[0] for line in said.splitlines() if 'FAILED' in line]
    assert failed == ['mid.other', 'out.train.l1_loss']


FULL = dict(obs='image', action_dim=14, state_dim=14)


@pytest.mark.parametrize('name, over, parameters', [
    ('default', {}, 51_613_582),
    ('seed', dict(chunk_size=50, n_action_steps=50, dim_model=256, n_heads=4, dim_feedforward=1024),
     18_723_854)])
def test_published_sizes(name, over, parameters):
    with torch.device('meta'):
        model = A.Model(A.Config(**FULL | over))
    assert sum(p.numel() for p in model.parameters()) == parameters
    path = os.path.join(LEROBOT, f'fullsize_act_{name}.keys.json')
    if not os.path.exists(path):
        pytest.skip(NO_FILES)
    with open(path) as f:
        keys = {key: entry[0] for key, entry in json.load(f).items()}
    ours = {f'model.{key}': list(x.shape) for key, x in model.state_dict().items()}
    extra = {f'model.{key}_{name}' for key in ('image', 'state', 'action') for name in ('mean', 'std')}
    assert ours.keys() - keys.keys() == extra
    assert {key: shape for key, shape in ours.items() if key not in extra} == keys


# ---- the math, by hand ----

def test_losses_by_hand():
    guess, action = torch.zeros(2, 3, 2), torch.tensor([[[1., 2], [3, 4], [5, 6]], [[1, 1], [9, 9], [9, 9]]])
    real = torch.tensor([[True, True, True], [True, False, False]])
    assert A.l1_loss(guess, action, real, 'skip').item() == pytest.approx((21 + 2) / 8)
    assert A.l1_loss(guess, action, real, 'zeros').item() == pytest.approx((21 + 2) / 12)
    assert A.l1_loss(guess, action, ~real & real, 'skip').item() == 0         # nothing real: no nan
    mu, log_var = torch.tensor([[0., 2.], [0, 0]]), torch.tensor([[0., 0.], [math.log(4), 0]])
    by_hand = (2.0 + (4 - 1 - math.log(4)) / 2) / 2
    assert A.kl_loss(mu, log_var).item() == pytest.approx(by_hand)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mu, (log_var / 2).exp()), normal(0, 1)).sum(1).mean()
    assert A.kl_loss(mu, log_var).item() == pytest.approx(theirs.item())


def test_positions_against_loops():
    C, T = 8, 7
    table = A.waves(torch.arange(T, dtype=torch.float64), C)
    for p in range(T):
        for j in range(C):
            angle = p / 10000 ** (2 * (j // 2) / C)
            want = math.cos(angle) if j % 2 else math.sin(angle)
            assert table[p, j].item() == pytest.approx(want, abs=1e-12)
    h, w = 3, 5
    cells = A.waves_2d(h, w, 2 * C, 'cpu').view(h, w, 2 * C)
    for y in range(h):
        for x in range(w):
            for j in range(C):
                for at, n, c in ((y, h, j), (x, w, C + j)):
                    angle = (at + 1) / n * 2 * math.pi / 10000 ** (2 * (j // 2) / C)
                    want = math.cos(angle) if j % 2 else math.sin(angle)
                    assert cells[y, x, c].item() == pytest.approx(want, abs=1e-5)


def offline(chunks, t, m):
    """The mean of all that chunks (steps, B, T, A) say about step t, the i-th oldest weighted exp(-m i)."""
    T = chunks.shape[2]
    guesses = [chunks[k][:, t - k] for k in range(max(0, t - T + 1), t + 1)]
    weights = np.exp(-m * np.arange(len(guesses)))
    return sum(w * guess for w, guess in zip(weights, guesses)) / weights.sum()


@pytest.mark.parametrize('m', (0.01, 0.0, 0.5, -0.2))
def test_ensemble_online_is_the_offline_mean(m):
    """Every guess about step t, from the oldest chunk on, weighted exp(-m i)."""
    T, steps = 5, 13
    torch.manual_seed(0)
    chunks, past = torch.randn(steps, 3, T, 2), None
    for t in range(steps):
        action, past = A.ensemble(past, chunks[t], m)
        assert (action - offline(chunks, t, m)).abs().max() < 1e-5, t


def test_attention_is_that_of_torch():
    cfg = tiny()
    torch.manual_seed(0)
    ours, theirs = A.Attention(cfg), nn.MultiheadAttention(cfg.dim_model, cfg.n_heads, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    q, k, v = torch.randn(2, 3, 32), torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    real = torch.tensor([[True] * 5, [True, True, False, True, False]])
    want = theirs(q, k, v, key_padding_mask=~real)[0]
    assert (ours(q, k, v, real) - want).abs().max() < 1e-5
    torch.manual_seed(1)
    fresh = A.Attention(cfg)
    bound = math.sqrt(6 / (3 * 32 + 32))                     # Xavier's, of the three as one matrix
    assert 0.9 * bound < fresh.in_proj_weight.abs().max() <= bound
    assert not fresh.in_proj_bias.any() and not fresh.out_proj.bias.any()


def test_layers_are_those_of_torch():
    """Without positions they are the layers of torch, of the same names; 1e-5."""
    cfg = tiny()
    C, heads, wide = cfg.dim_model, cfg.n_heads, cfg.dim_feedforward
    torch.manual_seed(0)
    x, memory, none = torch.randn(2, 4, C), torch.randn(2, 6, C), torch.zeros(C)
    theirs = nn.TransformerEncoderLayer(C, heads, wide, dropout=0.0, batch_first=True)
    ours = A.EncoderLayer(cfg)
    ours.load_state_dict(theirs.state_dict())
    assert (ours(x, none) - theirs(x)).abs().max() < 1e-5
    theirs = nn.TransformerDecoderLayer(C, heads, wide, dropout=0.0, batch_first=True)
    ours = A.DecoderLayer(cfg)
    ours.load_state_dict(theirs.state_dict())
    assert (ours(x, none, memory, none) - theirs(x, memory)).abs().max() < 1e-5


def test_positions_in_the_decoder():
    """The first of one layer cannot tell, its values are zeros: so here by hand, with torch's attention."""
    cfg = tiny()
    torch.manual_seed(0)
    layer = A.DecoderLayer(cfg)

    def theirs(ours, query, key, value):
        attention = nn.MultiheadAttention(cfg.dim_model, cfg.n_heads, batch_first=True)
        attention.load_state_dict(ours.state_dict())
        return attention(query, key, value)[0]
    x, memory, q, places = (torch.randn(2, n, 32) for n in (4, 6, 4, 6))
    y = layer.norm1(x + theirs(layer.self_attn, x + q, x + q, x))
    y = layer.norm2(y + theirs(layer.multihead_attn, y + q, memory + places, memory))
    want = layer.norm3(y + layer.linear2(layer.linear1(y).relu()))
    assert (layer(x, q, memory, places) - want).abs().max() < 1e-5


def test_positions_reach_queries_and_keys_only():
    """With equal values a softmax over any positions returns them: the attention cannot tell."""
    layer = A.EncoderLayer(tiny())
    torch.manual_seed(0)
    x = torch.randn(1, 1, 32).expand(2, 4, 32)
    assert (layer(x, torch.randn(4, 32)) - layer(x, torch.zeros(4, 32))).abs().max() < 1e-5
    x = torch.randn(2, 4, 32)
    assert (layer(x, torch.randn(4, 32)) - layer(x, torch.zeros(4, 32))).abs().max() > 1e-2


def test_start():
    """Xavier in encoder and decoder, not in the VAE encoder; embeddings are N(0, 1)."""
    model = model_of(dim_model=64, dim_feedforward=256)
    bound = math.sqrt(6 / (64 + 256))
    for part, low, high in (model.encoder, 0.95, 1.0), (model.decoder, 0.95, 1.0), \
            (model.vae_encoder, 0.0, 0.95):
        assert low * bound < part.layers[0].linear1.weight.abs().max() <= high * bound
    assert 0.8 < model.decoder_pos_embed.weight.std() < 1.2


# ---- the model ----

def test_units():
    """Pictures by the row of their camera; a state and actions by their statistics, there and back."""
    model = model_of(obs='image', cameras=('left', 'right'), height=33, width=40)
    batch = A.example(model.cfg, 2)
    model.image_mean.copy_(torch.arange(6.0).view(2, 3) / 10)
    model.image_std.copy_(torch.arange(1.0, 7.0).view(2, 3))
    model.state_mean.fill_(3.0)
    model.state_std.fill_(2.0)
    state, env_state, images = model.look(batch)
    assert env_state is None and torch.allclose(state, (batch['state'][:, 0] - 3) / 2)
    for i, name in enumerate(('left', 'right')):
        for c in range(3):
            pixels = batch[f'image.{name}'][:, 0, c].float() / 255
            assert torch.allclose(images[i][:, c], (pixels - (3 * i + c) / 10) / (1 + 3 * i + c), atol=1e-6)
    plain = model.act(obs_of(batch))
    model.action_mean.fill_(-5.0)
    model.action_std.fill_(4.0)
    assert torch.allclose(model.act(obs_of(batch)), plain * 4 - 5, atol=1e-5)
    chunk = torch.randn(2, 8, 2)
    assert torch.allclose(model.normalise({'action': chunk * 4 - 5}, 'action'), chunk, atol=1e-5)
    with pytest.raises(AssertionError, match='image.left is torch.float32, want uint8'):
        model.act(obs_of(batch) | {'image.left': batch['image.left'].float()})


def test_fresh_image_statistics_are_those_of_imagenet():
    model = model_of(obs='image', cameras=('a', 'b'))
    assert torch.allclose(model.image_mean, torch.tensor([[0.485, 0.456, 0.406]] * 2))
    assert torch.allclose(model.image_std, torch.tensor([[0.229, 0.224, 0.225]] * 2))


@pytest.mark.parametrize('obs', ('image', 'keypoints', 'state'))
def test_what_is_seen(obs):
    """All that windows names matters to a chunk, and nothing else is needed."""
    model = model_of(obs=obs, cameras=('top', 'side'), height=64, width=48)
    batch = A.example(model.cfg, 2)
    seen = obs_of(batch)
    chunk = model.act(seen)
    assert chunk.shape == (2, 4, 2)
    for key, x in seen.items():
        other = seen | {key: 255 - x if x.dtype == torch.uint8 else x + 1}
        assert (model.act(other) - chunk).abs().max() > 1e-4, key


def test_as_it_acts_nothing_is_drawn():
    """z = 0, no dropout, in act and in validation: the VAE encoder could be anything."""
    model = model_of(dropout=0.5)
    batch = A.example(model.cfg, 3)
    chunk, loss = model.act(obs_of(batch)), model(batch)
    assert loss.keys() == {'loss'}
    assert torch.equal(model.act(obs_of(batch)), chunk)
    seen = model.look(batch)
    z = torch.zeros(3, model.cfg.latent_dim)
    assert torch.equal(model.net(z, *seen)[:, :4], chunk)
    assert (model.net(z + 1, *seen)[:, :4] - chunk).abs().max() > 1e-3
    whole = model.net(z, *seen)
    assert loss['loss'].item() == pytest.approx((whole - batch['action']).abs().mean().item(), rel=1e-5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith('vae_encoder'):
                p.normal_()
    assert torch.equal(model.act(obs_of(batch)), chunk)
    assert model(batch | {'noise': torch.randn(3, model.cfg.latent_dim)})['loss'] == loss['loss']
    model.train()
    first, again = (model(batch)['l1'].item() for _ in range(2))
    assert first != again


def test_a_chunk_does_not_depend_on_its_batch():
    for obs in ('keypoints', 'image'):
        model = model_of(obs=obs, height=40, width=50)
        batch = obs_of(A.example(model.cfg, 5))
        together = model.act(batch)
        for i in range(5):
            alone = model.act({key: x[i:i + 1] for key, x in batch.items()})
            assert (alone[0] - together[i]).abs().max() < 1e-5


def test_training_step_by_hand():
    """loss = l1 + kl_weight kl of z = mu + exp(s / 2) eps, of the noise that the batch brings."""
    model = model_of(kl_weight=3.0).train()
    batch = A.example(model.cfg, 2)
    batch['mask'][1, 5:] = False
    batch['noise'] = torch.randn(2, model.cfg.latent_dim)
    out, seen = model(batch), model.look(batch)
    mu, log_var = model.style(seen[0], batch['action'], batch['mask'])
    guess = model.net(mu + (log_var / 2).exp() * batch['noise'], *seen)
    error = (guess - batch['action']).abs()
    l1 = (error[0].sum() + error[1, :5].sum()) / (2 * (8 + 5))
    assert out['l1'].item() == pytest.approx(l1.item(), rel=1e-5)
    assert out['loss'].item() == pytest.approx(out['l1'].item() + 3 * out['kl'].item(), rel=1e-5)
    model.cfg = replace(model.cfg, padding='zeros')
    assert model(batch)['l1'].item() == pytest.approx(l1.item() * 13 / 16, rel=1e-5)


@pytest.mark.parametrize('padding', ('skip', 'zeros'))
def test_padded_actions_count_for_nothing(padding):
    """Neither as targets nor in what the VAE encoder tells of them."""
    model = model_of(padding=padding).train()
    batch = A.example(model.cfg, 2) | {'noise': torch.randn(2, 32)}
    batch['mask'][:, 6:] = False
    before = model(batch)
    batch['action'] = batch['action'].clone()
    batch['action'][:, 6:] = 1e3
    after = model(batch)
    assert all(torch.equal(before[key], after[key]) for key in before)
    batch['action'][:, 5] += 1
    assert not torch.equal(model(batch)['kl'], before['kl'])


def test_without_a_vae():
    model = model_of(use_vae=False).train()
    assert not [key for key in model.state_dict() if key.startswith('vae')]
    assert model(A.example(model.cfg, 2)).keys() == {'loss'}


def test_overfits_a_batch_by_its_l1():
    """Not by the KL alone, which is most of the loss at the start."""
    model = model_of().train()
    torch.manual_seed(0)
    batch = A.example(model.cfg, 2)
    optimizer = model.configure_optimizers(3e-3, 0.0, (0.9, 0.99))
    first = None
    for _ in range(200):
        out = model(batch)
        first = first or out['l1'].item()
        optimizer.zero_grad()
        out['loss'].backward()
        optimizer.step()
    assert model.eval()(batch)['loss'] < 0.1 * first


def test_tells_pictures_apart():
    """Two samples that differ in their picture only: below what the best guess for both would reach."""
    torch.manual_seed(0)
    model = A.Model(tiny(obs='image', height=32, width=32, use_vae=False))
    batch = A.example(model.cfg, 2)
    batch['state'][1] = batch['state'][0]
    batch['image.top'][0] //= 8
    model(batch)['loss'].backward()
    assert all(p.grad.abs().max() > 0 for p in model.backbone.parameters())
    maps = model.backbone(model.look(batch)[2][0]).detach()          # once, because it takes most of the time
    model.backbone.forward = lambda image: maps
    optimizer = model.configure_optimizers(1e-3, 0.0, (0.9, 0.99))
    for _ in range(250):
        optimizer.zero_grad()
        loss = model(batch)['loss']
        loss.backward()
        optimizer.step()
    blind = (batch['action'][0] - batch['action'][1]).abs().mean() / 2
    assert loss < 0.5 * blind


# ---- temporal ensembling in acting ----

def test_acting_on_the_mean_of_chunks():
    """A row per generator, whoever else is still playing; a new one starts anew."""
    model = model_of(temporal_ensemble=True, n_action_steps=1, temporal_ensemble_coeff=0.1)
    plain = model_of(n_action_steps=8)
    plain.load_state_dict(model.state_dict())
    batches = [obs_of(A.example(model.cfg, 3)) for _ in range(4)]
    one, two, three = (torch.Generator() for _ in range(3))
    pasts, got = {}, {}
    for step, batch in enumerate(batches):
        rows = [one, two, three] if step < 2 else [three, one]       # the second is over
        obs = {key: x[:len(rows)] for key, x in batch.items()}
        acted, chunks = model.act(obs, generators=rows), plain.act(obs)
        assert acted.shape == (len(rows), 1, 2)
        for row, action, chunk in zip(rows, acted, chunks):
            want, pasts[row] = A.ensemble(pasts.get(row), chunk, 0.1)
            assert torch.allclose(action[0], want, atol=1e-6)
            got[row] = action
    assert torch.allclose(model.act(obs, generators=[two, one])[0, 0], plain.act(obs)[0, 0], atol=1e-6)


def test_reset_forgets():
    model = model_of(temporal_ensemble=True, n_action_steps=1, temporal_ensemble_coeff=0.0)
    first, second = (obs_of(A.example(model.cfg, 2)) for _ in range(2))
    model.act(first)
    mixed = model.act(second)
    model.reset()
    fresh = model.act(second)
    assert (mixed - fresh).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r'1 rows after 2: which episodes\?'):
        model.act({key: x[:1] for key, x in second.items()})
    model.reset()
    assert torch.allclose(model.act({key: x[:1] for key, x in second.items()}), fresh[:1], atol=1e-6)


# ---- for train.py ----

def test_the_resnet_has_a_learning_rate_of_its_own():
    model = model_of(obs='image', optimizer_lr_backbone=2e-5)
    others, resnet = model.configure_optimizers(1e-4, 0.01, (0.9, 0.999)).param_groups
    assert resnet['lr_scale'] == pytest.approx(0.2) and 'lr_scale' not in others
    assert sum(p.numel() for p in resnet['params']) == 11_166_912          # convolutions, no norm
    every = {id(p) for p in model.parameters()}
    assert {id(p) for group in (others, resnet) for p in group['params']} == every
    assert others['weight_decay'] == resnet['weight_decay'] == 0.01
    assert len(model_of().configure_optimizers(1e-4, 0.01, (0.9, 0.999)).param_groups) == 1
    assert model.configure_optimizers(0.0, 0.01, (0.9, 0.999)).param_groups[1]['lr_scale'] == 1.0


@pytest.mark.parametrize('over', (dict(obs='image', cameras=('a', 'b'), height=100, width=70), {},
                                  dict(obs='state', use_vae=False, n_decoder_layers=2)))
def test_flops(over):
    """torch's own count; 4 %: ours leaves out single tokens, and counts gradients of what has none."""
    model = model_of(**over).train()
    batch = A.example(model.cfg, 2)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):              # the fused one is not counted on a CPU
        model(batch)['loss'].backward()
    theirs = counter.get_total_flops() / 2
    assert abs(model.flops_per_sample() - theirs) < 0.04 * theirs


@pytest.mark.parametrize('over, word', [
    (dict(obs='video'), 'obs'), (dict(padding='half'), 'padding'), (dict(chunk_size=0), 'chunk_size'),
    (dict(n_decoder_layers=0), 'n_decoder_layers'), (dict(dim_model=30), 'dim_model'),
    (dict(dim_model=36, n_heads=8), 'dim_model'), (dict(dropout=1.0), 'dropout'),
    (dict(kl_weight=-1.0), 'kl_weight'), (dict(optimizer_lr_backbone=math.nan), 'optimizer_lr_backbone'),
    (dict(n_action_steps=9), 'n_action_steps'), (dict(temporal_ensemble=True), 'n_action_steps'),
    (dict(temporal_ensemble_coeff=math.inf), 'temporal_ensemble_coeff'),
    (dict(obs='image', cameras=()), 'cameras'), (dict(obs='image', cameras=('a', 'a')), 'cameras')])
def test_impossible_values(over, word):
    with pytest.raises(ValueError, match=f'^{word} = ') as error:
        A.Model(tiny(**over))
    assert '\n' not in str(error.value)


# ---- the Backbone ----

def test_frozen_norm_is_batchnorm_at_rest():
    torch.manual_seed(0)
    theirs, ours = nn.BatchNorm2d(5).eval(), vision.FrozenNorm(5)
    for x in theirs.state_dict().values():
        if x.ndim:
            x.uniform_(0.5, 2)
    ours.load_state_dict({key: x for key, x in theirs.state_dict().items() if x.ndim})
    x = torch.randn(2, 5, 4, 3)
    with torch.no_grad():
        assert (ours.train()(x) - theirs(x)).abs().max() < 1e-5
    assert not list(ours.parameters())


def test_backbone_is_resnet18_under_other_names():
    """The same weights, in the same order; and its children are all of it, for an nn.Sequential."""
    torch.manual_seed(0)
    plain, ours = vision.ResNet18(), vision.Backbone(vision.norm)
    ours.load_state_dict(dict(zip(ours.state_dict(), plain.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        want = plain(x)
        assert torch.equal(ours(x), want)
        assert torch.equal(nn.Sequential(*ours.children())(x), want)
    assert [*ours.state_dict()][0] == 'conv1.weight' and 'layer4.1.bn2.bias' in ours.state_dict()


def published(path, seed=0):
    """A file as torchvision publishes it: BatchNorms that count, and the classifier -> its Backbone."""
    torch.manual_seed(seed)
    source = vision.Backbone(nn.BatchNorm2d)
    weights = source.state_dict() | {'fc.weight': torch.zeros(1000, 512), 'fc.bias': torch.zeros(1000)}
    save_file(weights, path) if str(path).endswith('.safetensors') else torch.save(weights, path)
    return source


@pytest.mark.parametrize('file', ('resnet18.pth', 'resnet18.safetensors'))
@pytest.mark.parametrize('norm', (vision.FrozenNorm, nn.BatchNorm2d))
def test_imagenet_weights_by_path(tmp_path, file, norm):
    source, net = published(tmp_path / file), vision.Backbone(norm)
    vision.imagenet(net, str(tmp_path / file))
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), source.eval()(x), atol=1e-4)


def test_imagenet_weights_that_do_not_fit(tmp_path, monkeypatch):
    path = tmp_path / 'resnet18.pth'
    published(path)
    with pytest.raises(ValueError, match='^pretrained_backbone_weights = .*not with GroupNorm$'):
        vision.imagenet(vision.Backbone(vision.norm), str(path))
    with pytest.raises(SystemExit, match='No such file or directory; give a file of ResNet-18, or ResNet18_'):
        vision.imagenet(vision.Backbone(), str(tmp_path / 'none.pth'))
    torch.save({'conv1.weight': torch.zeros(64, 3, 7, 7)}, tmp_path / 'half.pth')
    with pytest.raises(SystemExit, match='half.pth lacks bn1.bias and'):
        vision.imagenet(vision.Backbone(), str(tmp_path / 'half.pth'))
    monkeypatch.setattr(checkpoint, 'fetch', lambda url: str(path))
    with pytest.raises(SystemExit, match='its sha256 does not begin with f37072fd; delete it, run again'):
        vision.imagenet(vision.Backbone(), vision.IMAGENET)
    monkeypatch.setattr(checkpoint, 'sha256', lambda path: 'f37072fd' + 56 * '0')
    vision.imagenet(vision.Backbone(), vision.IMAGENET)


def test_a_checkpoint_needs_no_imagenet_weights(tmp_path):
    """They are where a training starts: the file may be gone when its result is loaded."""
    path = tmp_path / 'resnet18.pth'
    source = published(path)
    cfg = tiny(obs='image', height=32, width=32, pretrained_backbone_weights=str(path))
    model = A.Model(cfg)
    assert torch.equal(model.backbone.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    meta = {'model': 'act', 'model_config': vars(cfg), 'config': {}, 'step': 1, 'data_sha': ''}
    checkpoint.save(tmp_path / 'out', 1, model.state_dict(), None, {}, meta)
    path.unlink()
    loaded, _ = checkpoint.load(tmp_path / 'out')
    assert all(torch.equal(x, loaded.state_dict()[key]) for key, x in model.state_dict().items())
    assert loaded.cfg.cameras == ('top',)


def test_lesson_zero():
    out, _ = script('act.py')
    assert 'parameters | loss' in out and 'actions (2, 4, 2)' in out
