"""smolvla.py against LeRobot's numbers, a pass without a cache, and perturbed tokens."""
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
from test_math_pi0 import NO_FILES, drawing, drawn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import smolvla as S

LEROBOT = os.path.join(SHARED, 'reference', 'lerobot')
GOLDEN = sorted(glob.glob(os.path.join(LEROBOT, 'smolvla*.safetensors')))


def tiny(**over):
    return replace(S.PRESETS['tiny'], **dict(cameras=('top', 'wrist'), num_vlm_layers=4) | over)


def model_of(seed=0, **over):
    torch.manual_seed(seed)
    return S.Model(tiny(**over)).eval()


# ---- LeRobot's numbers ----

@pytest.mark.parametrize('path', GOLDEN or [None], ids=lambda p: os.path.basename(p) if p else 'none')
def test_golden(path):
    if path is None:
        pytest.skip(NO_FILES)
    rows = golden.check(path)
    assert len(rows) >= 20
    for name, error, allowed in rows:
        assert error <= allowed, f'{name}: error {error:.2e}, allowed {allowed:.2e}'


def test_golden_reads_other_files(tmp_path):
    """Sizes, cameras, one that is missing, and smaller pictures come from it; a spoilt number fails."""
    said = dict(cams={'a': [20, 30], 'b': [40, 24], 'c': [24, 24]}, missing=['b'], image_size=32, num_steps=4,
                state_dim=3, action_dim=2, max_state_dim=6, max_action_dim=5, chunk_size=3, num_vlm_layers=3,
                resize_imgs_with_padding=[24, 24], scale_factor=3, expert_width_multiplier=0.5,
                text=dict(hidden_size=24, intermediate_size=20, num_attention_heads=6, num_key_value_heads=2,
                          head_dim=8, vocab_size=40),
                vision=dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8,
                            patch_size=4))
    cfg = tiny(vlm_model_name='24x20x6x2x8', vision_variant='12x1x8x3x4x8', vocab_size=40, num_vlm_layers=3,
               scale_factor=3, image_resolution=(24, 24), expert_width_multiplier=0.5, max_state_dim=6,
               max_action_dim=5, state_dim=3, tasks=())
    keys = {f'model.{S.published(key)}': [list(x.shape), 'float32', 'formula']
            for key, x in S.Model(cfg).named_parameters()}
    keys |= {f'model.{key}': [list(shape), 'float32', 'formula'] for key, shape in S.dead(cfg).items()}
    path = tmp_path / 'B.safetensors'
    path.with_suffix('.keys.json').write_text(json.dumps(keys))
    meta = {'policy': 'smolvla', 'SEED': '5', 'lerobot_config': '{}', 'config': json.dumps(said)}
    g = {'in.action': torch.randn(2, 3, 2), 'in.state': torch.randn(2, 3),
         'in.train_noise': torch.randn(2, 3, 5), 'in.sample_noise': torch.randn(2, 3, 5),
         'in.train_time': torch.tensor([0.2, 0.7]), 'in.tokens': torch.randint(40, (2, 4)),
         'in.token_mask': torch.tensor([[True] * 4, [True] + [False] * 3])}
    g |= {f'in.image.{name}': torch.randint(0, 256, (2, 3, *said['cams'][name]), dtype=torch.uint8)
          for name in 'ac'}
    save_file(g, path, meta)
    model, g, _ = golden.load(path)
    assert model.cfg.cameras == ('a', 'c', 'b') and model.cfg.num_steps == 4
    ours = golden.outputs(model, g)
    assert ours['mid.prefix_embs'].shape == (2, 3 * 4 + 4 + 1, 24)       # 6 x 6 patches, 9 in a token
    assert not ours['mid.prefix_valid'][:, 8:12].any()
    g |= {key: x.contiguous().clone() for key, x in ours.items()}
    save_file(g, path, meta)
    assert all(error <= allowed for _, error, allowed in golden.check(path))
    save_file(g | {'out.train.loss': g['out.train.loss'] * 1.01}, path, meta)
    said, _ = script('tests/golden.py', path, code=1)
    assert [line.split()[0] for line in said.splitlines() if 'FAILED' in line] == ['out.train.loss']


def test_published_sizes():
    def count(model): return sum(p.numel() for p in model.parameters() if p.requires_grad)
    cfg = S.Config(train_expert_only=False, freeze_vision_encoder=False)
    with torch.device('meta'):
        model = S.Model(cfg)
        assert count(S.Model(S.Config())) == 99_880_992
        assert count(S.Model(S.Config(train_state_proj=False))) == 99_880_992 - 31_680
        assert count(S.Model(replace(cfg, freeze_vision_encoder=True))) == 393_519_456 - 86_433_024
    assert count(model) == 393_519_456
    told = re.search(r'vision (\d+), connector (\d+), VLM (\d+) \(words (\d+)\), expert (\d+), the rest '
                     r'(\d+): 393,519,456, of\nwhich 99,880,992 learn', S.__doc__).groups()
    vision, connector, vlm, words, expert = (count(part) / 1e6 for part in (
        model.vision, model.projector, model.vlm, model.embed_tokens, model.expert))
    parts = vision, connector, vlm + words, words, expert
    assert [round(n) for n in (*parts, 393.519456 - sum(parts) + words)] == [*map(int, told)]
    unread = S.dead(cfg)
    assert sum(int(np.prod(shape)) for shape in unread.values()) == 56_526_720
    path = os.path.join(LEROBOT, 'fullsize_smolvla.keys.json')
    if not os.path.exists(path):
        pytest.skip(NO_FILES)
    with open(path) as f:
        keys = {key.removeprefix('model.'): tuple(entry[0]) for key, entry in json.load(f).items()}
    ours = {S.published(key): tuple(x.shape) for key, x in model.named_parameters()}
    assert len(ours) + len(unread) == len(keys) and ours | unread == keys


# ---- who sees whom ----

def joint(model, batch, x, t):
    """All tokens at once, nothing cached, the whole mask: the velocity of x."""
    cfg, vlm, expert = model.cfg, model.vlm.layers, model.expert.layers
    prefix, real = model.prefix(*model.look(batch), *model.read(batch))
    state = torch.zeros(len(x), 1, cfg.max_state_dim)
    state[..., :cfg.state_dim] = model.normalise(batch['state'], 'state')
    a, b = torch.cat([prefix, model.state_proj(state)], 1), model.suffix(x, t)
    N, T, d = a.shape[1], b.shape[1], vlm[0].d
    block = torch.tensor([0] * (N - 1) + [*range(1, T + 2)])
    real = torch.cat([real, torch.ones(len(x), 1 + T, dtype=torch.bool)], 1)
    sees = (block[:, None] >= block) & real[:, None]
    place = real.cumsum(1) - 1

    def split(y): return y.unflatten(2, (-1, d)).transpose(1, 2)

    def look(q, k, v, sees):
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        weight = (q @ k.transpose(2, 3) / d ** 0.5).masked_fill(~sees[:, None], -torch.inf).softmax(-1)
        return (weight @ v).transpose(1, 2).flatten(2)
    for f, g in zip(vlm, expert):
        y, z = f.input_layernorm(a), g.input_layernorm(b)
        turn, own = S.rotation(place[:, :N], d), S.rotation(place[:, N:], d)
        k, v = S.rotate(split(f.k_proj(y)), turn), split(f.v_proj(y))
        if g.cross:
            other = [split(p(x.transpose(1, 2).flatten(2))) for p, x in ((g.k_proj, k), (g.v_proj, v))]
            q = S.rotate(split(g.q_proj(z)), S.rotation(torch.arange(T).expand(len(x), T), d))
            seen = look(q, *other, sees[:, N:, :N])
        else:
            mine = S.rotate(split(g.k_proj(z)), own), split(g.v_proj(z))
            both = [torch.cat(pair, 2) for pair in zip((k, v), mine)]
            seen = look(S.rotate(split(g.q_proj(z)), own), *both, sees[:, N:])
        b = b + g.o_proj(seen)
        z = g.post_attention_layernorm(b)
        b = b + g.down_proj(torch.nn.functional.silu(g.gate_proj(z)) * g.up_proj(z))
        if hasattr(f, 'q_proj'):
            a = a + f.o_proj(look(S.rotate(split(f.q_proj(y)), turn), k, v, sees[:, :N, :N]))
            y = f.post_attention_layernorm(a)
            a = a + f.down_proj(torch.nn.functional.silu(f.gate_proj(y)) * f.up_proj(y))
    return model.action_out_proj(model.expert.norm(b))


@pytest.mark.parametrize('over', ({}, dict(attention_mode='self_attn'), dict(self_attn_every_n_layers=3)))
@torch.no_grad()
def test_cached_is_uncached(over):
    model = model_of(**over)
    crosses = [layer.cross for layer in model.expert.layers]
    want = {'attention_mode': [False] * 4, 'self_attn_every_n_layers': [False, True, True, False]}
    assert crosses == want.get(next(iter(over), ''), [False, True, False, True])
    batch = drawn(model, S)
    batch['image_mask.wrist'] = torch.tensor([True, False, True])
    cached = model.velocity(batch['noise'], batch['t'], model.encode(batch))
    plain = joint(model, batch, batch['noise'], batch['t'])
    assert plain.std() > 0.1 and (cached - plain).abs().max() < 1e-5 * max(1, plain.abs().max())


@torch.no_grad()
def test_who_sees_whom():
    """One token of each kind is perturbed; who else changes?"""
    model = model_of()
    batch = drawn(model, S, B=1)
    tokens, real = model.prefix(*model.look(batch), *model.read(batch))
    n = tokens.shape[1] - model.longest
    of = {'pictures': (0, 1), 'text': (n, n + 1)}        # perturbed, looked at
    layer = model.expert.layers[-1]                      # of whose cache the VLM's keys went through a layer

    def run(whom):
        x, state, noisy = tokens.clone(), batch['state'].clone(), batch['noise'].clone()
        if whom in of:
            x[:, of[whom][0]] += 1
        if whom == 'state':
            state += 1
        if whom == 'actions':
            noisy[:, 3] += 1
        model.prefix = lambda *args: (x, real)
        cache = model.encode(batch | {'state': state})
        keys, v = cache[0][-1][0], model.velocity(noisy, batch['t'], cache)
        seen = {name: keys[:, :, at] for name, (_, at) in of.items()}
        return seen | {'state': keys[:, :, tokens.shape[1]:], 'actions': v[:, 4:], 'earlier': v[:, :3]}
    assert layer.cross
    before, drawn_so = run(None), drawing(S.__doc__)
    kinds = *of, 'state', 'actions'
    assert drawn_so == {(a, b): 'x' if kinds.index(b) <= max(kinds.index(a), a == 'pictures') else '.'
                        for a in kinds for b in kinds} | {('actions', 'actions'): 'past'}
    for whom in kinds:
        after = run(whom)
        moved = {who: (after[who] - before[who]).abs().max().item() for who in after}
        for who in kinds:
            sees = drawn_so[who, whom] != '.'
            assert (moved[who] > 1e-4) if sees else (moved[who] == 0), (who, whom, moved[who])
        assert (moved['earlier'] == 0) == (whom == 'actions'), whom


@torch.no_grad()
def test_what_is_masked_changes_nothing():
    model = model_of(tasks=('go left', 'now go right'))
    batch = drawn(model, S) | {'task': torch.tensor([[0], [1], [0]])}

    def velocity(**over):
        return model.velocity(batch['noise'], batch['t'], model.encode(batch | over))
    no = torch.zeros(3, dtype=torch.bool)
    other = torch.randint(0, 256, batch['image.wrist'].shape, dtype=torch.uint8)
    masked = velocity(**{'image_mask.wrist': no})
    assert torch.equal(masked, velocity(**{'image_mask.wrist': no, 'image.wrist': other}))
    assert (velocity() - velocity(**{'image.wrist': other})).abs().max() > 1e-3
    without = {key: x for key, x in batch.items() if key != 'image.wrist'}
    gone = model.velocity(batch['noise'], batch['t'], model.encode(without))
    assert (gone - masked).abs().max() < 1e-5 and (gone - velocity()).abs().max() > 1e-3
    whole, (tokens, real) = velocity(), model.read(batch)
    model.read = lambda batch: (torch.where(real, tokens, 77), real)
    assert (~real).any() and torch.equal(velocity(), whole)
    pad = torch.nn.functional.pad
    model.read = lambda batch: (pad(tokens, (0, 3)), pad(real, (0, 3)))
    assert (velocity() - whole).abs().max() < 1e-5
    model.read = lambda batch: (torch.where(real, 77, tokens), real)
    assert (velocity() - whole).abs().max() > 1e-3


# ---- the parts ----

def test_shuffled_against_loops():
    x = torch.arange(2 * 36 * 3).view(2, 36, 3)
    y = S.shuffled(x, 3)
    assert y.shape == (2, 4, 27)
    for row in range(2):
        for column in range(2):
            for i in range(3):
                for j in range(3):
                    patch = x[:, 6 * (3 * row + i) + 3 * column + j]
                    assert torch.equal(y[:, 2 * row + column, 9 * i + 3 * j:9 * i + 3 * j + 3], patch)


def test_resize_with_pad():
    image = torch.rand(1, 3, 20, 30)
    y = S.resize_with_pad(image, 15)
    assert y.shape == (1, 3, 15, 15) and (y[:, :, :5] == 0).all()
    assert torch.equal(y[:, :, 5:], torch.nn.functional.interpolate(image, (10, 15), mode='bilinear'))
    assert torch.equal(S.resize_with_pad(image.mT, 15)[..., :5], torch.zeros(1, 3, 15, 5))


def test_small_pictures_take_every_other_place():
    """The table of places is that of the largest picture; n x n patches use id table k / n."""
    torch.manual_seed(0)
    whole = S.Vision((8, 0, 4, 2, 4), 32, False)
    image = torch.rand(1, 3, 16, 16)
    got = whole.norm(whole.patch(image).flatten(2).transpose(1, 2)
                     + whole.position.weight.view(8, 8, 8)[::2, ::2].reshape(16, 8))
    assert torch.equal(whole(image), got)


def test_loss_is_over_real_actions():
    model, short = model_of(draws=2), model_of(draws=2, chunk_size=5, n_action_steps=5)
    batch = drawn(model, S)
    batch['mask'][:, 5:] = False
    cut = {key: x[:, :5] if key in ('action', 'mask', 'noise') else x for key, x in batch.items()}
    assert model(batch)['loss'].item() == pytest.approx(short(cut)['loss'].item(), rel=1e-5)     # causal, too
    errors = model.errors(batch)[..., :2]
    batch['mask'][0, 1:] = False
    real = batch['mask'].repeat(2, 1)
    assert model(batch)['loss'].item() == pytest.approx(errors[real].mean().item(), rel=1e-5)
    batch['mask'][:] = False
    assert model(batch)['loss'] == 0


def test_gradient_checkpointing_keeps_loss_and_gradients():
    for over in {}, dict(train_expert_only=True):
        plain, again = model_of(**over).train(), model_of(gradient_checkpointing=True, **over).train()
        batch, kept = drawn(plain, S), []
        for model in plain, again:
            size = [0]

            def pack(x, size=size):
                size[0] += x.nbytes
                return x
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                loss = model(batch)['loss']
            loss.backward()
            kept.append(size[0])
        assert again(batch)['loss'] == plain(batch)['loss'] and kept[1] < 0.5 * kept[0]
        for (name, p), q in zip(plain.named_parameters(), again.parameters()):
            if p.requires_grad:
                assert (p.grad - q.grad).abs().max() <= 1e-6 * p.grad.abs().max(), name


def test_frozen_parts():
    """Gradients of what learns are those of the whole training; the rest has none."""
    whole = model_of()
    batch = drawn(whole, S)
    whole(batch)['loss'].backward()
    expert = 'expert', 'action', 'state'
    for over, learn in ((dict(train_expert_only=True), expert),
                        (dict(train_expert_only=True, train_state_proj=False), expert[:2]),
                        (dict(freeze_vision_encoder=True), (*expert, 'vlm', 'embed', 'projector'))):
        model = model_of(**over)
        model(batch)['loss'].backward()
        optimizer = model.configure_optimizers(1e-3, 0.01, (0.9, 0.95))
        inside = {id(p) for group in optimizer.param_groups for p in group['params']}
        for (name, p), q in zip(model.named_parameters(), whole.parameters()):
            learns = name.startswith(learn)
            assert (id(p) in inside) == p.requires_grad == (p.grad is not None) == learns, name
            if learns:
                assert (p.grad - q.grad).abs().max() <= 1e-5 * q.grad.abs().max().clamp(min=1e-3), name


@torch.no_grad()
def test_bfloat16():
    model = model_of()
    batch = drawn(model, S, B=8)
    whole = model(batch)['loss'], model.sample(model.encode(batch), batch['noise'])
    with torch.autocast('cpu', torch.bfloat16):
        half = model(batch)['loss'], model.sample(model.encode(batch), batch['noise'])
    assert abs(half[0] / whole[0] - 1) < 0.02
    error = (half[1] - whole[1]).square().mean().sqrt() / whole[1].square().mean().sqrt()
    assert 1e-5 < error < 0.02


@pytest.mark.slow
def test_compiles_in_one_piece():
    for over in {}, dict(gradient_checkpointing=True, draws=2), dict(train_expert_only=True):
        model = model_of(**over).train()
        batch = drawn(model, S)
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


def test_flops():
    """Against torch's counter, but for the state's last answer, and what it has not to look at."""
    big = dict(num_vlm_layers=8, chunk_size=30, vlm_model_name='64x128x4x2x16', tokenizer_max_length=48)
    for draws in 1, 3:
        model = model_of(draws=draws, **big)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(drawn(model, S, B=1))
        assert model.flops_per_sample() == pytest.approx(3 * counter.get_total_flops(), rel=0.02)
    only = S.Model(replace(model.cfg, train_expert_only=True)).flops_per_sample()
    assert model.flops_per_sample() / 3 < only < model.flops_per_sample()
    with torch.device('meta'):                           # TFLOP, counted elsewhere: two cameras of 512 x 512
        full = S.Model(S.Config(cameras=('a', 'b')))
    full.longest = 48                                    # as published; ours are as long as the longest
    assert full.flops_per_sample() / 1e12 == pytest.approx(0.52, rel=0.02)


# ---- acting ----

def test_actions_in_units_of_the_data():
    model = model_of()
    seen = S.example(model.cfg, 2)
    def generators(): return [torch.Generator().manual_seed(i) for i in range(2)]
    calm = model.act(seen, generators())
    model.action_mean.fill_(5.0)
    model.action_std.fill_(2.0)
    got = model.act(seen, generators())
    assert got.shape == (2, 8, 2) and (got - (2 * calm + 5)).abs().max() < 1e-4 and model.calls == 10
    alone = model.act({key: x[1:] for key, x in seen.items()}, generators()[1:])
    assert (alone - got[1:]).abs().max() < 1e-5
    told = model.act(seen | {'task': 1 - seen['task']}, generators())
    assert (told - got).abs().max() > 1e-4
    silent = S.Model(tiny(tasks=()))
    assert 'task' not in S.windows(silent.cfg) and silent.act(S.example(silent.cfg, 2)).shape == (2, 8, 2)


# ---- impossible values ----

@pytest.mark.parametrize('over, words', [
    (dict(state_dim=9), 'state_dim = 9: max_state_dim = 4 have room'),
    (dict(action_dim=5), 'action_dim = 5: max_action_dim = 4 have room'),
    (dict(image_resolution=(16, 24)), r'image_resolution = \(16, 24\), .*: want a square'),
    (dict(image_resolution=(24, 24)), 'such as 8 or 16'),
    (dict(vlm_model_name='gemma'), "= 'gemma': want 5 numbers with x between them, or HuggingFaceTB"),
    (dict(vision_variant='1x2'), 'want 6 numbers with x between them, or smolvlm2'),
    (dict(vlm_model_name='32x64x5x2x8'), 'want even widths, heads n times those of keys'),
    (dict(expert_width_multiplier=0.1), 'want even widths'),
    (dict(attention_mode='both'), "attention_mode = 'both': must be cross_attn or self_attn"),
    (dict(n_action_steps=9), 'n_action_steps = 9: a chunk has chunk_size = 8'),
    (dict(num_steps=0), 'num_steps = 0: must be at least 1'),
    (dict(cameras=()), 'want one or more'),
    (dict(tasks=('a b c d e f g h i',)), "max_length = 8: 'a b c d e f g h i' takes up to 10 tokens"),
    (dict(tokenizer='/nowhere/it.json'), 'tokenizer = /nowhere/it.json: .*; want the tokenizer.json of the')])
def test_impossible_values(over, words):
    with pytest.raises(ValueError, match=words) as error:
        S.Model(tiny(**over))
    assert '\n' not in str(error.value)


def test_224_px_cannot_work():
    with pytest.raises(ValueError, match=r'= \(224, 224\), .* n x 64 px, such as 256 or 512'):
        S.Model(S.Config(image_resolution=(224, 224)))
