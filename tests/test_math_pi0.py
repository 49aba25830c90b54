"""pi0.py against LeRobot's numbers, a pass without a cache, perturbed tokens, and its own words."""
import glob
import json
import os
import re
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
from conftest import SHARED, script
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pi0 as P

LEROBOT = os.path.join(SHARED, 'reference', 'lerobot')
GOLDEN = sorted(glob.glob(os.path.join(LEROBOT, 'pi0*.safetensors')))
NO_FILES = 'no golden files of LeRobot beside the repository (../shared/reference/lerobot)'
BOTH = pytest.mark.parametrize('pi05', (False, True), ids=('pi0', 'pi05'))


def tiny(pi05=False, **over):
    over = dict(cameras=('top', 'wrist'), tokenizer_max_length=24 if pi05 else 8) | over
    return replace(P.PRESETS['tiny'], pi05=pi05, **over)


def model_of(pi05=False, seed=0, **over):
    """A model that has left its start, where AdaRMS lets nothing through."""
    torch.manual_seed(seed)
    model = P.Model(tiny(pi05, **over))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def drawn(model, M=P, B=3):
    """A batch of a model file, with noise and times."""
    torch.manual_seed(1)
    cfg, batch = model.cfg, M.example(model.cfg, B)
    noise = torch.randn(B * cfg.draws, cfg.chunk_size, cfg.max_action_dim)
    return batch | {'noise': noise, 't': torch.linspace(0.1, 1, B * cfg.draws)}


# ---- LeRobot's numbers ----

@pytest.mark.parametrize('path', GOLDEN or [None], ids=lambda p: os.path.basename(p) if p else 'none')
def test_golden(path):
    if path is None:
        pytest.skip(NO_FILES)
    rows = golden.check(path)
    assert len(rows) >= 21 and ('pi05' not in path or sum(row[0].startswith('prompt') for row in rows) == 3)
    for name, error, allowed in rows:
        assert error <= allowed, f'{name}: error {error:.2e}, allowed {allowed:.2e}'


@BOTH
def test_golden_reads_other_files(pi05, tmp_path):
    """
    Sizes, cameras, and one that is missing come from the file; a spoilt number, an output that is not ours
    and a wrong prompt fail.
    """
    gemma = dict(depth=2, num_heads=4, num_kv_heads=2, head_dim=8)
    said = dict(cams={'a': [20, 30], 'b': [40, 24], 'c': [16, 16]}, missing=['b'], image_resolution=[16, 16],
                state_dim=3, action_dim=2, max_state_dim=6, max_action_dim=5, chunk_size=3, vocab_size=40,
                num_inference_steps=4, vlm=gemma | dict(width=24, mlp_dim=20),
                expert=gemma | dict(width=16, mlp_dim=12),
                vision=dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8,
                            patch_size=4))
    cfg = P.Config(pi05=pi05, paligemma_variant='24x2x20x4x2x8', action_expert_variant='16x2x12x4x2x8',
                   vision_variant='12x1x8x3x4', vocab_size=40, image_resolution=(16, 16), max_state_dim=6,
                   max_action_dim=5, state_dim=3, action_dim=2)
    torch.manual_seed(0)
    keys = {f'model.{P.published(key)}': [list(x.shape), 'float32', 'formula']
            for key, x in P.Model(cfg).named_parameters()}
    keys |= {f'model.{key}': [list(shape), 'float32', 'formula'] for key, shape in P.dead(cfg).items()}
    keys[f'model.{P.HEAD}'] = [[40, 24], 'float32', 'formula']
    path = tmp_path / 'B.safetensors'
    path.with_suffix('.keys.json').write_text(json.dumps(keys))
    example = {'state': [0.0, 1.0], 'task': 'a_b', 'prompt': 'Task: a b, State: 128 255;\nAction: '}
    meta = {'policy': 'pi05' if pi05 else 'pi0', 'SEED': '5', 'lerobot_config': '{}',
            'config': json.dumps(said), 'prompt_examples': json.dumps([example])}
    g = {'in.action': torch.randn(2, 3, 2), 'in.state': torch.randn(2, 3),
         'in.train_noise': torch.randn(2, 3, 5), 'in.sample_noise': torch.randn(2, 3, 5),
         'in.train_time': torch.tensor([0.2, 0.7]), 'in.tokens': torch.randint(40, (2, 4)),
         'in.token_mask': torch.tensor([[True] * 4, [True] + [False] * 3])}
    g |= {f'in.image.{name}': torch.randint(0, 256, (2, 3, *said['cams'][name]), dtype=torch.uint8)
          for name in 'ac'}
    save_file(g, path, meta)
    model, g, _ = golden.load(path)
    assert model.cfg.cameras == ('a', 'c', 'b') and model.cfg.num_inference_steps == 4
    ours = golden.outputs(model, g)
    assert ours['mid.prefix_embs'].shape == (2, 3 * 16 + 4, 24)
    assert not ours['mid.prefix_valid'][:, 32:48].any()
    g |= {key: x.contiguous().clone() for key, x in ours.items()}
    save_file(g, path, meta)
    assert all(error <= allowed for _, error, allowed in golden.check(path))
    g |= {'out.train.loss': g['out.train.loss'] * 1.01, 'mid.other': torch.zeros(2)}
    save_file(g, path, meta | {'prompt_examples': json.dumps([example | {'task': 'ab'}])})
    said, _ = script('tests/golden.py', path, code=1)
    failed = [line.split()[0] for line in said.splitlines() if 'FAILED' in line]
    assert failed == ['prompt.0', 'mid.other', 'out.train.loss']


@pytest.mark.parametrize('name, built, trained', [('pi0', 3_128_992_528, 314_713_120),
                                                  ('pi05', 3_244_377_872, 430_098_464)])
def test_published_sizes(name, built, trained):
    def count(model): return sum(p.numel() for p in model.parameters() if p.requires_grad)
    cfg = P.Config(pi05=name == 'pi05')
    with torch.device('meta'):
        model = P.Model(cfg)
        assert count(P.Model(replace(cfg, train_expert_only=True))) == trained
        assert count(P.Model(replace(cfg, freeze_vision_encoder=True))) == built - 412_442_352
    assert count(model) == built and f'{built:,}' in P.__doc__
    told = re.search(r'vision (\S+), projector (\S+), VLM (\S+) \(words (\S+)\), expert (\S+), the rest '
                     r'(\S+) \(pi05: (\S+), (\S+)\)', P.__doc__).groups()
    told = [int(number.replace(',', '')) for number in told]
    parts = [count(part) / 1e6 for part in (model.vision, model.projector, model.vlm, model.embed_tokens,
                                            model.expert)]
    parts[2] += parts[3]
    rest = built / 1e6 - sum(parts) + parts[3]
    assert [round(n) for n in parts[:4]] == told[:4]
    assert [round(parts[4]), round(rest)] == (told[6:] if cfg.pi05 else told[4:6])
    unread = P.dead(cfg)
    assert sum(int(np.prod(shape)) for shape in unread.values()) == 372_379_648
    path = os.path.join(LEROBOT, f'fullsize_{name}.keys.json')
    if not os.path.exists(path):
        pytest.skip(NO_FILES)
    with open(path) as f:
        keys = {key.removeprefix('model.'): tuple(entry[0]) for key, entry in json.load(f).items()}
    ours = {P.published(key): tuple(x.shape) for key, x in model.named_parameters()}
    assert len(ours) + len(unread) + 1 == len(keys)
    assert ours | unread | {P.HEAD: (257152, 2048)} == keys


# ---- who sees whom ----

def joint(model, batch, x, t):
    """Both streams at once, nothing cached, the whole mask, as openpi trains: the velocity of x."""
    cfg, vlm, expert = model.cfg, model.vlm.layers, model.expert.layers
    prefix, real = model.prefix(*model.look(batch), *model.read(batch))
    suffix, cond = model.suffix(x, t)
    blocks = [0] * prefix.shape[1] + [1] * (not cfg.pi05) + [2] * cfg.chunk_size
    if not cfg.pi05:
        state = torch.zeros(len(x), cfg.max_state_dim)
        state[:, :cfg.state_dim] = model.normalise(batch['state'][:, 0], 'state')
        suffix = torch.cat([model.state_proj(state)[:, None], suffix], 1)
    streams, block = [prefix, suffix], torch.tensor(blocks)
    real = torch.cat([real, torch.ones(len(x), suffix.shape[1], dtype=torch.bool)], 1)
    sees = (block[:, None] >= block) & real[:, None]
    turn, d = P.rotation(real.cumsum(1) - 1, vlm[0].d), vlm[0].d
    for layers in zip(vlm, expert):
        normed = [layer.input_layernorm(x, c) for layer, x, c in zip(layers, streams, (None, cond))]
        last = not hasattr(layers[0], 'q_proj')          # there the VLM has no answer
        q = [layers[1].q_proj(normed[1][0])]
        q = [torch.zeros(*prefix.shape[:2], q[0].shape[2]) if last else layers[0].q_proj(normed[0][0]), *q]
        k, v = (torch.cat([getattr(layer, f'{name}_proj')(y) for layer, (y, _) in zip(layers, normed)], 1)
                for name in 'kv')
        q, k, v = (y.unflatten(2, (-1, d)).transpose(1, 2) for y in (torch.cat(q, 1), k, v))
        q, k = P.rotate(q, turn), P.rotate(k, turn)
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        weight = (q @ k.transpose(2, 3) / d ** 0.5).masked_fill(~sees[:, None], -torch.inf).softmax(-1)
        y = (weight @ v).transpose(1, 2).flatten(2).split([prefix.shape[1], suffix.shape[1]], 1)
        for i, layer in enumerate(layers):
            if i or not last:
                x = streams[i] + normed[i][1] * layer.o_proj(y[i])
                z, gate = layer.post_attention_layernorm(x, (None, cond)[i])
                gated = torch.nn.functional.gelu(layer.gate_proj(z), approximate='tanh') * layer.up_proj(z)
                streams[i] = x + gate * layer.down_proj(gated)
    return model.action_out_proj(model.expert.norm(streams[1], cond)[0][:, -cfg.chunk_size:])


@BOTH
@torch.no_grad()
def test_cached_is_uncached(pi05):
    model = model_of(pi05, paligemma_variant='32x3x64x4x2x8', action_expert_variant='24x3x48x4x2x8')
    batch = drawn(model)
    batch['image_mask.wrist'] = torch.tensor([True, False, True])
    cached = model.velocity(batch['noise'], batch['t'], model.encode(batch))
    plain = joint(model, batch, batch['noise'], batch['t'])
    assert plain.std() > 0.1 and (cached - plain).abs().max() < 1e-5 * max(1, plain.abs().max())


def drawing(doc):
    """The picture in the docstring -> {(who, whom): mark}, which is . for who does not see."""
    lines = doc[doc.index('who sees'):].splitlines()
    names, found = lines[0].split()[2:], {}
    for line in lines[1:1 + len(names)]:
        who, *marks = line.split()[:1 + len(names)]
        found |= {(who, whom): mark for whom, mark in zip(names, marks)}
    return found


@BOTH
@torch.no_grad()
def test_who_sees_whom(pi05):
    """One token of each kind is perturbed; who else changes? Beside it, another token of the same kind."""
    model = model_of(pi05)
    batch, cells = drawn(model, B=1), model.vision.grid ** 2
    tokens, real = model.prefix(*model.look(batch), *model.read(batch))
    of = {'pictures': (0, cells + 1), 'text': (2 * cells + 1, 2 * cells + 2)}    # perturbed, looked at

    def run(whom):
        x, state, noisy = tokens.clone(), batch['state'].clone(), batch['noise'].clone()
        if whom in of:
            x[:, of[whom][0]] += 1
        if whom == 'state':
            state += 1
        if whom == 'actions':
            noisy[:, 0] += 1
        model.prefix = lambda *args: (x, real)
        cache = model.encode(batch | {'state': state})
        keys = cache[0][-1][0]                           # of the last layer (1, heads, M, d)
        seen = {name: keys[:, :, at] for name, (_, at) in of.items()}
        return seen | {'state': keys[:, :, tokens.shape[1]:],
                       'actions': model.velocity(noisy, batch['t'], cache)[:, 1:]}
    before, drawn_so = run(None), drawing(P.__doc__)
    kinds = ['pictures', 'text', *['state'] * (not pi05), 'actions']
    assert set(drawn_so) == {(a, b) for a in (*of, 'state', 'actions') for b in (*of, 'state', 'actions')}
    for whom in kinds:
        after = run(whom)
        for who in kinds:
            moved = (after[who] - before[who]).abs().max().item()
            sees = drawn_so[who, whom] == 'x'
            assert (moved > 1e-4) if sees else (moved == 0), (who, whom, moved)


@BOTH
@torch.no_grad()
def test_what_is_masked_changes_nothing(pi05):
    model = model_of(pi05, tasks=('go left', 'now go right'))
    batch = drawn(model) | {'task': torch.tensor([[0], [1], [0]])}

    def velocity(**over):
        told = batch | over
        return model.velocity(batch['noise'], batch['t'], model.encode(told))
    no = torch.zeros(3, dtype=torch.bool)
    other = torch.randint(0, 256, batch['image.wrist'].shape, dtype=torch.uint8)
    masked = velocity(**{'image_mask.wrist': no})
    assert torch.equal(masked, velocity(**{'image_mask.wrist': no, 'image.wrist': other}))
    assert (velocity() - velocity(**{'image.wrist': other})).abs().max() > 1e-3
    without = {key: x for key, x in batch.items() if key != 'image.wrist'}
    gone = model.velocity(batch['noise'], batch['t'], model.encode(without))
    assert (gone - masked).abs().max() < 1e-5 and (gone - velocity()).abs().max() > 1e-3
    whole, read = velocity(), model.read
    tokens, real = read(batch)
    assert 0 < (~real).sum() and real[:, 0].all()
    model.read = lambda batch: (torch.where(real, tokens, 77), real)
    assert torch.equal(velocity(), whole)
    pad = torch.nn.functional.pad
    model.read = lambda batch: (pad(tokens, (0, 3)), pad(real, (0, 3)))
    assert (velocity() - whole).abs().max() < 1e-5
    model.read = lambda batch: (torch.where(real, 77, tokens), real)
    assert (velocity() - whole).abs().max() > 1e-3
    with pytest.raises(ValueError, match='no picture: want image.top, image.wrist, or some of them'):
        model.encode({'state': batch['state'], 'task': batch['task']})


# ---- the parts ----

@torch.no_grad()
def test_gate_0_is_the_identity():
    torch.manual_seed(0)
    layer = P.Layer((32, 1, 64, 4, 1, 8), cond=16, last=False)
    x, cond = torch.randn(2, 5, 32), torch.randn(2, 16)
    turn, mask = P.rotation(torch.arange(5).expand(2, 5), 8), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    args = turn, None, mask, cond, True
    for part in layer.input_layernorm, layer.post_attention_layernorm:
        part.dense.weight[64:] = 0
        part.dense.bias[64:] = 0
    assert torch.equal(layer(x, *args)[0], x)
    layer.input_layernorm.dense.bias[64:] = 1e-3
    assert 0 < (layer(x, *args)[0] - x).abs().max() < 0.1


def test_norms_by_hand():
    torch.manual_seed(0)
    x, cond = torch.randn(2, 3, 8), torch.randn(2, 4)
    plain, ada = P.Norm(8, 0), P.Norm(8, 4)
    plain.weight.data.normal_()
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (plain(x, None)[0] - unit * (1 + plain.weight)).abs().max() < 1e-6 and plain(x, None)[1] == 1
    scale, shift, gate = ada.dense(cond).unflatten(1, (3, 1, 8)).unbind(1)
    y, told = ada(x, cond)
    assert (y - (unit * (1 + scale) + shift)).abs().max() < 1e-6 and torch.equal(told, gate)


def test_time_and_places_against_loops():
    table = P.waves(torch.tensor([0.001, 0.3, 1.0]), 6, 4e-3, 4.0)
    for row, t in zip(table, (0.001, 0.3, 1.0)):
        for k in range(3):
            angle = 2 * np.pi * float(np.float32(t)) / (4e-3 * 1000 ** (k / 2))
            assert row[k].item() == pytest.approx(np.sin(angle), abs=1e-6)
            assert row[3 + k].item() == pytest.approx(np.cos(angle), abs=1e-6)
    x = torch.randn(1, 1, 3, 4)
    y = P.rotate(x, P.rotation(torch.tensor([[0, 1, 5]]), 4))
    assert torch.equal(y[0, 0, 0], x[0, 0, 0])
    for i, speed in enumerate((1.0, 0.01)):
        turned = torch.view_as_complex(x[0, 0, 2, i::2].contiguous()) * np.exp(5j * speed)
        assert torch.view_as_complex(y[0, 0, 2, i::2].contiguous()).sub(turned).abs() < 1e-6


def test_attend_is_attention_with_repeated_keys():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    for rows in 1, 5:
        mask = torch.rand(2, 1, rows, 7) > 0.3
        mask[..., 0] = True
        want = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), mask)
        assert (P.attend(q, k, v, mask) - want.transpose(1, 2).flatten(2)).abs().max() < 1e-6


def test_resize_with_pad():
    image = torch.rand(1, 3, 20, 30)
    y = P.resize_with_pad(image, 16)
    assert y.shape == (1, 3, 16, 16) and (y[:, :, :3] == 0).all() and (y[:, :, 13:] == 0).all()
    inner = torch.nn.functional.interpolate(image, (10, 16), mode='bilinear', align_corners=False)
    assert torch.equal(y[:, :, 3:13], inner)
    assert P.resize_with_pad(y, 16) is y
    odd = P.resize_with_pad(torch.ones(1, 3, 15, 32), 32)[0, 0, :, 0]
    assert odd.nonzero().flatten().tolist() == list(range(8, 23))    # 8 above, 9 below


def test_losses_of_draws_are_those_of_single_ones():
    one, three = model_of(), model_of(draws=3)
    batch = drawn(three)
    errors = three.errors(batch)
    for i in range(3):
        part = {key: x[3 * i:3 * i + 3] if key in ('t', 'noise') else x for key, x in batch.items()}
        assert (one.errors(part) - errors[3 * i:3 * i + 3]).abs().max() < 1e-4
    assert three(batch)['loss'].item() == pytest.approx(errors[..., :2].mean().item())


def test_times_are_those_of_the_beta():
    model = model_of()
    torch.manual_seed(0)
    t = model.times(200_000, 'cpu')
    assert 0.001 <= t.min() and t.max() <= 1
    assert t.mean().item() == pytest.approx(0.6 * 0.999 + 0.001, abs=2e-3)
    assert (t < 0.5005).float().mean().item() == pytest.approx(0.5 ** 1.5, abs=5e-3)     # P(Beta < 1/2)


@BOTH
def test_gradient_checkpointing_keeps_loss_and_gradients(pi05):
    plain, again = model_of(pi05), model_of(pi05, gradient_checkpointing=True)
    batch, kept = drawn(plain), []
    for model in plain, again:
        size = [0]

        def pack(x, size=size):
            size[0] += x.nbytes
            return x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.train()(batch)['loss']
        loss.backward()
        kept.append(size[0])
    assert again(batch)['loss'] == plain(batch)['loss']
    for (name, p), q in zip(plain.named_parameters(), again.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-6 * p.grad.abs().max(), name
    assert kept[1] < 0.5 * kept[0]


@BOTH
def test_frozen_parts(pi05):
    """No gradient, no optimizer state; and what learns has the gradients of the whole training."""
    whole = model_of(pi05)
    batch = drawn(whole)
    whole(batch)['loss'].backward()
    for over, learn in ((dict(train_expert_only=True), ('expert', 'action', 'state', 'time')),
                        (dict(freeze_vision_encoder=True), ('expert', 'action', 'state', 'time', 'vlm',
                                                            'embed', 'projector'))):
        model = model_of(pi05, **over)
        model(batch)['loss'].backward()
        optimizer = model.configure_optimizers(1e-3, 0.01, (0.9, 0.95))
        inside = {id(p) for group in optimizer.param_groups for p in group['params']}
        for (name, p), q in zip(model.named_parameters(), whole.parameters()):
            learns = name.startswith(learn)
            assert (id(p) in inside) == p.requires_grad == (p.grad is not None) == learns, name
            if p.requires_grad:
                assert (p.grad - q.grad).abs().max() <= 1e-6 * q.grad.abs().max().clamp(min=1e-3), name


@BOTH
@torch.no_grad()
def test_bfloat16(pi05):
    model = model_of(pi05)
    batch = drawn(model, B=8)
    cache = model.encode(batch)
    whole = model(batch)['loss'], model.sample(cache, batch['noise'])
    with torch.autocast('cpu', torch.bfloat16):
        half = model(batch)['loss'], model.sample(model.encode(batch), batch['noise'])
    assert abs(half[0] / whole[0] - 1) < 0.02
    error = (half[1] - whole[1]).square().mean().sqrt() / whole[1].square().mean().sqrt()
    assert 1e-5 < error < 0.02


@pytest.mark.slow
@BOTH
def test_compiles_in_one_piece(pi05):
    for over in {}, dict(gradient_checkpointing=True, draws=2), dict(train_expert_only=True):
        model = model_of(pi05, **over).train()
        batch = drawn(model)
        want = model(batch)['loss']
        want.backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        torch._dynamo.reset()
        whole = {'fullgraph': True, 'backend': 'aot_eager' if over else 'inductor'}
        loss = torch.compile(model, **whole)(batch)['loss']
        loss.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)
        for p, grad in zip((p for p in model.parameters() if p.requires_grad), grads):
            assert (p.grad - grad).abs().max() < 1e-4 * max(1, grad.abs().max())
        free = {key: x for key, x in batch.items() if key not in ('t', 'noise')}
        with torch.no_grad():                            # drawn inside
            assert torch.isfinite(torch.compile(model, fullgraph=True, backend='aot_eager')(free)['loss'])


@BOTH
def test_flops(pi05):
    """Against torch's counter: all but the last answer of the state."""
    for draws in 1, 3:
        model = model_of(pi05, draws=draws, chunk_size=20, paligemma_variant='64x4x128x4x1x16',
                         action_expert_variant='32x4x64x4x1x16')
        batch = drawn(model, B=1)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(batch)
        counted = counter.get_total_flops()
        assert model.flops_per_sample() == pytest.approx(3 * counted, rel=0.03 / draws)
    only = replace(model.cfg, train_expert_only=True)
    assert model.flops_per_sample() / 3 < P.Model(only).flops_per_sample() < model.flops_per_sample()


@pytest.mark.parametrize('pi05, whole, only', [(False, 11.5, 3.9), (True, 13.4, 4.6)])
def test_flops_of_the_published_size(pi05, whole, only):
    """TFLOP of three cameras, counted elsewhere: all is trained, or the expert alone."""
    for train_expert_only, want in (False, whole), (True, only):
        with torch.device('meta'):
            model = P.Model(P.Config(pi05=pi05, cameras=('a', 'b', 'c'), train_expert_only=train_expert_only))
        model.longest = 200 if pi05 else 48              # as published; ours are as long as the longest
        assert model.flops_per_sample() / 1e12 == pytest.approx(want, rel=0.02)


# ---- acting ----

def test_actions_in_units_of_the_data():
    for pi05, named in (False, {'mean': 5.0, 'std': 2.0}), (True, {'q01': 3.0, 'q99': 7.0}):
        model = model_of(pi05)
        seen = P.example(model.cfg, 2)
        calm = model.act(seen, [torch.Generator().manual_seed(i) for i in range(2)])
        for name, value in named.items():                # both: x -> 2 x + 5
            getattr(model, f'action_{name}').fill_(value)
        got = model.act(seen, [torch.Generator().manual_seed(i) for i in range(2)])
        assert (got - (2 * calm + 5)).abs().max() < 1e-4 and model.calls == 10
        x = torch.randn(3, 8, 2)
        assert (model.unnormalise(model.normalise(x, 'action'), 'action') - x).abs().max() < 1e-5


def test_a_row_does_not_depend_on_the_others():
    model = model_of()
    seen = P.example(model.cfg, 3)
    whole = model.act(seen, [torch.Generator().manual_seed(i) for i in range(3)])
    alone = model.act({key: x[1:2] for key, x in seen.items()}, [torch.Generator().manual_seed(1)])
    assert (whole[1:2] - alone).abs().max() < 1e-5
    seen['task'][1] = 2
    with pytest.raises(ValueError, match=r'task: 0..2, of 2 sentences|task: 1..2, of 2 sentences'):
        model.act(seen)


def test_the_sentence_and_the_state_count():
    for pi05 in False, True:
        model = model_of(pi05)
        seen = P.example(model.cfg, 1)
        def act(over, model=model, seen=seen):
            return model.act(seen | over, [torch.Generator().manual_seed(0)])
        first = act({'task': torch.tensor([[0]])})
        assert (act({'task': torch.tensor([[1]])}) - first).abs().max() > 1e-3
        moved = act({'task': torch.tensor([[0]]), 'state': seen['state'] + 0.5})
        assert (moved - first).abs().max() > 1e-3
        silent = P.Model(tiny(pi05, tasks=()))
        assert 'task' not in P.windows(silent.cfg) and silent.act(P.example(silent.cfg, 2)).shape == (2, 8, 2)


def test_bins_are_those_of_numpy():
    state = torch.tensor([-1.3, -1, -0.999, -1 / 128, 0, 1 / 128, 0.999, 1, 1.2])
    state = torch.cat([state, torch.linspace(-1.1, 1.1, 999)])
    want = np.digitize(state.numpy(), np.linspace(-1, 1, 257)[:-1]) - 1
    assert P.bins_of(state).tolist() == want.tolist() and P.bins_of(state)[[0, 8]].tolist() == [-1, 255]


# ---- impossible values ----

@pytest.mark.parametrize('over, words', [
    (dict(state_dim=9), 'state_dim = 9: max_state_dim = 4 have room'),
    (dict(action_dim=5), 'action_dim = 5: max_action_dim = 4 have room'),
    (dict(image_resolution=(16, 24)), r'image_resolution = \(16, 24\), .*: want a square of patches of 8 px'),
    (dict(image_resolution=(20, 20)), 'want a square of patches of 8 px'),
    (dict(vision_variant='30x2x64x4x8'), 'a width that is a multiple of 4 heads'),
    (dict(paligemma_variant='gemma'), "= 'gemma': want 6 numbers with x between them, or gemma_2b, "),
    (dict(paligemma_variant='32x3x64x4x1x8'), 'want as many layers and heads in both'),
    (dict(vision_variant='1x2'), 'vision_variant = .1x2.: want 5 numbers with x between them, or so400m'),
    (dict(n_action_steps=9), 'n_action_steps = 9: a chunk has chunk_size = 8'),
    (dict(draws=0), 'draws = 0: must be at least 1'),
    (dict(min_period=0.0), 'min_period = 0.0: must be above 0'),
    (dict(time_sampling_offset=0.5), r't would lie in 0.5..1.499; it must stay in 0..1'),
    (dict(cameras=('top', 'top')), 'want one or more, each once'), (dict(cameras=()), 'want one or more'),
    (dict(tasks=('a', 'go there and then come back and then go again')),
     "tokenizer_max_length = 8: 'go there and then come back and then go again' takes up to 12 tokens"),
    (dict(tokenizer='/nowhere/it.json'), 'tokenizer = /nowhere/it.json: .*; want the tokenizer.json of the')])
def test_impossible_values(over, words):
    with pytest.raises(ValueError, match=words) as error:
        P.Model(tiny(**over))
    assert '\n' not in str(error.value)


def test_presets_build():
    for name in 'tiny', 'cpu':
        cfg = P.PRESETS[name]
        assert P.Model(cfg).act(P.example(cfg, 2)).shape == (2, cfg.n_action_steps, 2)
    said, _ = script('pi0.py')
    assert re.search(r'pi0: .*\npi0.5: ', said)
