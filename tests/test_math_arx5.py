"""ARX5-GPT: a member is a nanoGPT, representations lose nothing, noise hides, rollouts are naive loops."""
import json
import os
import re
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import ROOT, script
from test_eval_dynamics import episode, make_robot

import arx5_export
import arx5_gpt
import checkpoint
from arx5_gpt import Config, Model
from data.writer import differences, split
from data.writer import statistics as stats_of

ACTIONS, STATES = ('absolute', 'delta', 'delta_prev'), ('absolute', 'delta', 'residual')
Q = (4, 0, 2)                                                # not 0..A-1: a mixed up index must show


def tiny(**kw):
    """A small model whose output depends on everything, with statistics that are far from 0 and 1."""
    torch.manual_seed(0)
    cfg = dict(state_dim=5, action_dim=3, q_index=Q, depth=2, heads=2, hidden=16, history=6, chunk=3) | kw
    model = Model(Config(**cfg))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith('mean'):
                buffer.copy_(torch.randn(len(buffer)))
            if name.endswith('std'):
                buffer.copy_(torch.rand(len(buffer)) * 1.5 + 0.5)
    return model


def batch_of(model, B=4):
    g = torch.Generator().manual_seed(1)
    T = model.cfg.history
    return {'state': torch.randn(B, T + 1, 5, generator=g),
            'action': torch.randn(B, T + (model.cfg.action_repr == 'delta_prev'), 3, generator=g)}


def by_hand(model, state, action, previous):
    """Tokens by the definitions, (..., T, 8); with `velocity` 13, the last 5 what changed since the last."""
    m, change = model, []
    if model.cfg.velocity:
        steps = torch.cat([state[..., :1, :] * 0, state[..., 1:, :] - state[..., :-1, :]], -2)
        change = [steps / m.delta_state_std]
    told = {'absolute': (action - m.action_mean) / m.action_std,
            'delta': (action - state[..., list(Q)] - m.delta_action_mean) / m.delta_action_std}
    if previous is not None:
        told['delta_prev'] = (action - previous - m.delta_prev_mean) / m.delta_prev_std
    return torch.cat([(state - m.state_mean) / m.state_std, told[m.cfg.action_repr], *change], -1)


def decoded(model, state, out):
    """The next state by the definitions."""
    m = model
    return {'absolute': m.state_mean + m.state_std * out, 'residual': state + m.state_std * out,
            'delta': state + m.delta_state_mean + m.delta_state_std * out}[m.cfg.state_pred]


def target(model, state, then):
    """What the network should say at `state`, by the definitions."""
    m = model
    return {'absolute': (then - m.state_mean) / m.state_std, 'residual': (then - state) / m.state_std,
            'delta': (then - state - m.delta_state_mean) / m.delta_state_std}[m.cfg.state_pred]


# ---- a member is a nanoGPT ----

class PlainBlock(nn.Module):
    def __init__(self, C, heads, bias):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.attn = nn.ModuleDict({'c_attn': nn.Linear(C, 3 * C, bias), 'c_proj': nn.Linear(C, C, bias)})
        self.mlp = nn.ModuleDict({'c_fc': nn.Linear(C, 4 * C, bias), 'c_proj': nn.Linear(4 * C, C, bias)})

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2)
                   for y in self.attn['c_attn'](self.ln_1(x)).split(C, dim=2))
        weights = (q @ k.transpose(-2, -1) / (C // self.heads) ** 0.5).masked_fill(
            torch.ones(T, T).tril() == 0, float('-inf')).softmax(-1)
        x = x + self.attn['c_proj']((weights @ v).transpose(1, 2).reshape(B, T, C))
        return x + self.mlp['c_proj'](nn.functional.gelu(self.mlp['c_fc'](self.ln_2(x))))


class Plain(nn.Module):
    """nanoGPT with numbers at both ends, one network, torch's own layers."""

    def __init__(self, cfg):
        super().__init__()
        self.in_proj = nn.Linear(cfg.state_dim * (2 if cfg.velocity else 1) + cfg.action_dim, cfg.hidden)
        self.transformer = nn.ModuleDict({
            'wpe': nn.Embedding(cfg.history, cfg.hidden),
            'h': nn.ModuleList(PlainBlock(cfg.hidden, cfg.heads, cfg.bias) for _ in range(cfg.depth)),
            'ln_f': nn.LayerNorm(cfg.hidden, bias=cfg.bias)})
        self.head = nn.Linear(cfg.hidden, cfg.state_dim)

    def forward(self, x):
        x = self.in_proj(x) + self.transformer.wpe(torch.arange(x.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.head(self.transformer.ln_f(x))


def plain(model, i):
    alone = Plain(model.cfg)
    alone.load_state_dict(model.member(i))                   # strict: same keys, same shapes
    return alone


@pytest.mark.parametrize('bias', (True, False))
def test_a_member_is_a_nanogpt(bias):
    """Outputs, the training loss and its gradients, each member on its own tokens, to 1e-5."""
    model = tiny(bias=bias, members=3, velocity=not bias)
    x = torch.randn(3, 4, 6, 8 if bias else 13)
    out = model.net(x)
    for i in range(3):
        assert torch.allclose(out[i], plain(model, i)(x[i]), atol=1e-5)
        assert torch.allclose(model.net(x[:, :, :2])[i], plain(model, i)(x[i, :, :2]), atol=1e-5)
    batch = batch_of(model, 6)
    model(batch)['loss'].backward()
    for i in range(3):
        alone, state, action = plain(model, i), *(batch[key][2 * i:2 * i + 2] for key in ('state', 'action'))
        tokens = by_hand(model, state[:, :-1], action, None)
        (alone(tokens) - target(model, state[:, :-1], state[:, 1:])).square().mean().backward()
        for key, q in alone.named_parameters():
            grad = q.grad.T if q.ndim == 2 and 'wpe' not in key else q.grad
            own = model.get_parameter(key).grad[i]
            assert torch.allclose(own.view(grad.shape), grad, atol=1e-5), key


@pytest.mark.parametrize('bias', (True, False))
def test_load_member_undoes_member(bias):
    """Member 0's weights into place 1 of another model, nothing else changes."""
    model, other = tiny(bias=bias), tiny(bias=bias)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    kept = other.member(0)
    arx5_export.load_member(other, 1, model.member(0))
    for key, value in model.member(0).items():
        assert torch.equal(other.member(1)[key], value) and torch.equal(other.member(0)[key], kept[key]), key
    for i in range(2):
        arx5_export.load_member(other, i, model.member(i))
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize('change, words', [
    (lambda w: w.pop('head.bias'), 'member 1: head.bias is missing, unknown or of another shape (1 such'),
    (lambda w: w.update(extra=torch.zeros(1)), 'member 1: extra is missing, unknown'),
    (lambda w: w.update({'head.weight': w['head.weight'].T}), 'head.weight is missing, unknown or of')])
def test_wrong_weights_for_a_member(change, words):
    """One line names the first key that does not fit, and how many there are; nothing is loaded."""
    model = tiny()
    before = [p.clone() for p in model.parameters()]
    weights = model.member(0)
    change(weights)
    with pytest.raises(SystemExit) as stop:
        arx5_export.load_member(model, 1, weights)
    assert words in str(stop.value) and '\n' not in str(stop.value)
    with pytest.raises(SystemExit, match=r'\(3\d such keys\)'):
        arx5_export.load_member(model, 0, tiny(hidden=8).member(0))
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize('bias, count', ((True, 10_673_678), (False, 10_647_950)))
def test_parameters(bias, count):
    """The published count per member; without biases in_proj and head keep theirs."""
    with torch.device('meta'):
        model = Model(Config(bias=bias, q_index=tuple(range(7))))
    assert sum(p.numel() for p in model.parameters()) == 2 * count
    biased = {key for key, _ in model.named_parameters() if key.endswith('bias')}
    assert biased >= {'in_proj.bias', 'head.bias'} and (len(biased) > 2) == bias


def test_start_as_nanogpt():
    """std 0.02, projections into the residual stream 0.02 / sqrt(2 depth), biases 0, gains 1, none alike."""
    torch.manual_seed(0)
    model = Model(Config(depth=3, heads=2, hidden=128, q_index=tuple(range(7))))
    for key, p in model.named_parameters():
        if key.endswith('bias'):
            assert not p.any()
        elif 'ln_' in key: assert (p == 1).all()
        else:
            std = 0.02 / 6 ** 0.5 if 'c_proj' in key else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05) and abs(p.mean()) < 0.002, key
            assert not torch.equal(p[0], p[1])


@pytest.mark.parametrize('velocity', (False, True))
def test_flops(velocity):
    """The formula against torch's own count of a forward pass, attention apart from its causal half."""
    from torch.utils.flop_counter import FlopCounterMode
    model, width = tiny(members=1, unroll=2, velocity=velocity), 13 if velocity else 8
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.net(torch.randn(1, 1, 6, width))
    C, T, cfg = 16, 6, model.cfg
    known = 2 * T * (cfg.depth * 12 * C * C + (width + 5) * C)
    attention = 2 * T * cfg.depth * 2 * C * T
    assert counted.get_total_flops() in (known, known + attention)
    assert model.flops_per_sample() == 2 * 3 * (known + attention)
    assert model.flops_per_sample() == tiny(members=4, unroll=2, velocity=velocity).flops_per_sample()


# ---- representations ----

@pytest.mark.parametrize('state_pred', STATES)
@pytest.mark.parametrize('action_repr', ACTIONS)
def test_representations_are_lossless(action_repr, state_pred):
    """Tokens and predictions are what the definitions say, and both can be undone, to 1e-6 of a std."""
    model = tiny(action_repr=action_repr, state_pred=state_pred)
    state, then, action, previous = (torch.randn(7, 9, n) * 3 for n in (5, 5, 3, 3))
    tokens = model.tokens(state, action, previous)
    assert torch.allclose(tokens, by_hand(model, state, action, previous), atol=1e-5)
    origin, scale = model.action_frame(state, previous)
    assert torch.allclose(tokens[..., :5] * model.state_std + model.state_mean, state, atol=1e-5)
    assert (((origin + scale * tokens[..., 5:]) - action) / model.action_std).abs().max() < 3e-6
    origin, scale = model.state_frame(state)
    out = (then - origin) / scale
    assert torch.allclose(out, target(model, state, then), atol=1e-5)
    assert ((model.predict(state, out) - then) / model.state_std).abs().max() < 3e-6
    assert torch.allclose(model.predict(state, out), decoded(model, state, out), atol=1e-5)
    double = model.double()                                  # and exactly, but for rounding
    state, then = state.double(), then.double()
    origin, scale = double.state_frame(state)
    assert (double.predict(state, (then - origin) / scale) - then).abs().max() < 1e-12


def test_a_dimension_that_never_moves_divides_by_no_zero():
    for state_pred in STATES:
        model = tiny(state_pred=state_pred)
        for name, buffer in model.named_buffers():
            if name.endswith('std'):
                buffer[0] = 0
        assert torch.isfinite(model(batch_of(model))['loss'])
        future = model.eval().rollout({'state': torch.randn(1, 3, 5), 'action': torch.randn(1, 2, 3)},
                                      torch.randn(1, 1, 2, 3))
        assert all(torch.isfinite(value).all() for value in future.values())


def listen(model, answer=None):
    """Replace the network: keep the tokens it gets, answer with fixed numbers. -> [tokens, ...]"""
    heard = []

    def net(x, past=None):
        heard.append(x)
        return torch.zeros(*x.shape[:-1], 5) if answer is None else answer[len(heard) - 1]
    model.net = net
    return heard


@pytest.mark.parametrize('action_repr', ACTIONS)
def test_training_tokens_meet_their_frames(action_repr):
    """Frame t: state t, action t; delta_prev subtracts the row before, which the batch has in front."""
    model = tiny(action_repr=action_repr, members=2)
    batch, heard = batch_of(model), listen(model)
    model(batch)
    first = action_repr == 'delta_prev'
    assert heard[0].shape == (2, 2, 6, 8)
    for b in range(4):
        for t in range(6):
            state, action = batch['state'][b, t], batch['action'][b, t + first]
            expected = by_hand(model, state, action, batch['action'][b, t] if first else None)
            assert torch.allclose(heard[0][b // 2, b % 2, t], expected, atol=1e-5)
    windows = arx5_gpt.windows(model.cfg)
    assert windows == {'state': range(7), 'action': range(-first, 6)}


# ---- targets and noise ----

@pytest.mark.parametrize('noise_target', ('clean', 'corrective'))
@pytest.mark.parametrize('state_pred', STATES)
def test_targets_by_hand(state_pred, noise_target):
    """clean: changes from the true state; corrective: from the one that the network saw. Mean square."""
    model = tiny(state_pred=state_pred, noise_target=noise_target, noise=0.3)
    batch, answer, hidden = batch_of(model), torch.randn(2, 2, 6, 5), torch.randn(2, 2, 6, 5) * 0.1
    model.add_noise = lambda state, step: state + hidden
    listen(model, [answer])
    out = model(batch)
    state = batch['state'].view(2, 2, 7, 5)
    now, then = state[:, :, :-1], state[:, :, 1:]
    wanted = target(model, now + hidden if noise_target == 'corrective' else now, then)
    expected = (answer - wanted).square().mean((1, 2, 3))
    assert out['loss'].item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert out['loss_per_member'].item() == pytest.approx(expected.mean().item(), rel=1e-5)
    if state_pred != 'absolute':
        other = (answer - target(model, now, then)).square().mean((1, 2, 3)).sum().item()
        assert (abs(out['loss'].item() - other) > 1e-3) == (noise_target == 'corrective')


@pytest.mark.parametrize('noise_target', ('clean', 'corrective'))
@pytest.mark.parametrize('action_repr, velocity', [*((a, False) for a in ACTIONS), ('delta', True)])
def test_noise_hides_the_clean_state(action_repr, velocity, noise_target):
    """Two clean states, one noised state, same commands: the same tokens. Delta actions count from noise."""
    model = tiny(action_repr=action_repr, velocity=velocity, noise=0.05, noise_target=noise_target)
    batch, seen = batch_of(model), torch.randn(2, 2, 6, 5)
    model.add_noise = lambda state, step: seen
    heard = listen(model)
    model(batch)
    model(batch | {'state': batch['state'] + torch.randn(4, 7, 5)})
    assert torch.equal(*heard)
    action = batch['action'].view(2, 2, -1, 3)
    previous = None
    if action_repr == 'delta_prev':
        previous, action = action[:, :, :-1], action[:, :, 1:]
    assert torch.allclose(heard[0], by_hand(model, seen, action, previous), atol=1e-5)


def test_noise_has_its_size_and_its_ramp():
    """noise x std of each dimension; linear in the step up to noise_steps, full without one; none in eval."""
    model = tiny(noise=0.05, noise_steps=100)
    state = torch.randn(2, 500, 20, 5)

    def noise(*step):
        torch.manual_seed(3)
        return model.add_noise(state, *step) - state
    full = noise()
    assert torch.allclose(full.std((0, 1, 2)), 0.05 * model.state_std, rtol=0.03)
    assert full.mean((0, 1, 2)).abs().max() < 0.002
    for step, share in ((0, 0), (25, 0.25), (100, 1), (10_000, 1)):
        assert torch.allclose(noise(torch.tensor(step)), share * full, atol=1e-6)
    assert not noise(torch.tensor(0)).any() and noise(None).equal(full)
    model.eval()
    assert not noise().any()
    model.train()
    model.cfg.noise = 0.0
    assert model.add_noise(state) is state


def test_the_step_reaches_the_noise():
    model = tiny(noise=0.5, noise_steps=100)
    batch = batch_of(model)

    def loss(**kw):
        torch.manual_seed(0)
        return model(batch | kw)['loss'].item()
    clean = model.cfg.noise, setattr(model.cfg, 'noise', 0.0), loss()
    model.cfg.noise = clean[0]
    assert loss(step=torch.tensor(0)) == pytest.approx(clean[2], rel=1e-6)
    assert loss() == loss(step=torch.tensor(100)) != pytest.approx(clean[2], rel=1e-3)
    assert loss(step=torch.tensor(50)) not in (loss(), clean[2])
    model.eval()
    assert loss() == loss(step=torch.tensor(100))


# ---- the future does not reach the past ----

def test_causality():
    model = tiny().eval()
    x = torch.randn(2, 3, 6, 8)
    before = model.net(x)
    for t in range(6):
        other = x.clone()
        other[:, :, t] += 1
        after = model.net(other)
        assert torch.equal(after[:, :, :t], before[:, :, :t])
        assert ((after - before)[:, :, t:].abs().amax((1, 3)) > 1e-5).all()     # it and all after it
    with pytest.raises(AssertionError, match='7 frames in a window of history = 6'):
        model.net(torch.randn(2, 3, 7, 8))


def test_keys_and_values_are_the_whole_past():
    model, x = tiny().eval(), torch.randn(2, 3, 6, 8)
    for cuts in ((2, 6), (1, 2, 3, 6), (5, 6)):
        parts, cache, a = [], [], 0
        for b in cuts:
            out, cache = model.net(x[:, :, a:b], cache)
            parts.append(out)
            a = b
        assert torch.allclose(torch.cat(parts, 2), model.net(x), atol=1e-5)


@pytest.mark.parametrize('state_pred', STATES)
@pytest.mark.parametrize('action_repr', ('absolute', 'delta'))
def test_unroll_by_hand(action_repr, state_pred):
    """
    The second pass sees frame 0, then what the first pass predicted; its targets count from there; the loss
    is the mean of both; no gradient goes through the prediction.
    """
    model = tiny(action_repr=action_repr, state_pred=state_pred, unroll=2)
    batch = batch_of(model)
    out = model(batch)
    out['loss'].backward()
    total = 0
    for i in range(2):
        alone = plain(model, i)
        state, action = batch['state'][2 * i:2 * i + 2], batch['action'][2 * i:2 * i + 2]
        now, then = state[:, :-1], state[:, 1:]
        one = alone(by_hand(model, now, action, None))
        guess = now.clone()
        for t in range(5):
            guess[:, t + 1] = decoded(model, now[:, t], one[:, t]).detach()
        two = alone(by_hand(model, guess, action, None))
        first = (one - target(model, now, then)).square().mean()
        second = (two - target(model, guess, then)).square().mean()
        loss = (first + second) / 2
        loss.backward()
        total += loss.item()
        grad = alone.head.weight.grad, alone.in_proj.weight.grad
        assert torch.allclose(model.head.weight.grad[i].T, grad[0], atol=1e-5)
        assert torch.allclose(model.in_proj.weight.grad[i].T, grad[1], atol=1e-5)
    assert out['loss'].item() == pytest.approx(total, rel=1e-5)
    assert out['loss_per_member'].item() == pytest.approx(total / 2, rel=1e-5)


# ---- an ensemble is so many lone models ----

def lone(model, i):
    """Member i as a model of its own, in the same mode."""
    cfg = Config(**vars(model.cfg) | {'members': 1})
    alone = Model(cfg)
    for (_, a), (_, b) in zip(alone.named_buffers(), model.named_buffers()):
        a.copy_(b)
    arx5_export.load_member(alone, 0, model.member(i))
    return alone.train(model.training)


def grads(model): return {key: p.grad.clone() for key, p in model.named_parameters()}


def test_training_deals_the_batch_out():
    """Member e learns from the e-th part of the batch as it would alone; other windows do not matter."""
    model = tiny(members=3)
    batch = batch_of(model, 6)
    out = model(batch)
    out['loss'].backward()
    whole, losses = grads(model), []
    for e in range(3):
        alone = lone(model, e)
        loss = alone({key: value[2 * e:2 * e + 2] for key, value in batch.items()})['loss']
        loss.backward()
        losses.append(loss.item())
        for key, grad in grads(alone).items():
            assert torch.allclose(whole[key][e], grad[0], atol=1e-6), key
    assert out['loss'].item() == pytest.approx(sum(losses), rel=1e-5)
    assert out['loss_per_member'].item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.ptp(losses) > 1e-2
    model.zero_grad()
    model({key: torch.cat([value[:2] + 1, value[2:]]) for key, value in batch.items()})['loss'].backward()
    for key, grad in grads(model).items():
        assert torch.equal(grad[1:], whole[key][1:]) and not torch.equal(grad[0], whole[key][0]), key


def test_eval_mode_shows_everything_to_everybody():
    model = tiny(members=3).eval()
    batch = batch_of(model, 5)                               # no multiple of 3: nothing is dealt out
    losses = [lone(model, e)(batch)['loss'].item() for e in range(3)]
    out = model(batch)
    assert out['loss'].item() == pytest.approx(sum(losses), rel=1e-5)
    assert out['loss_per_member'].item() == pytest.approx(np.mean(losses), rel=1e-5)
    with pytest.raises(AssertionError, match='5 windows for 3 members: make the batch'): model.train()(batch)


def test_clip_grad_is_per_member():
    """As clip_grad_norm_ on each member alone; a small gradient stays as it is; 0 only measures."""
    model = tiny()
    batch = batch_of(model)
    batch['state'][:2] *= 9                                  # member 0's gradient is the larger one
    model(batch)['loss'].backward()
    before, alone = grads(model), [lone(model, e) for e in range(2)]
    norms = []
    for e in range(2):
        alone[e]({key: value[2 * e:2 * e + 2] for key, value in batch.items()})['loss'].backward()
        norms.append(nn.utils.clip_grad_norm_(alone[e].parameters(), float('inf')).item())
    assert norms[0] > 1.5 * norms[1]
    assert model.clip_grad(0)['norm'].item() == pytest.approx(np.mean(norms), rel=1e-5)
    for key, grad in grads(model).items():
        assert torch.equal(grad, before[key])
    for most in (sum(norms) / 2, norms[1] / 3, norms[0] * 2):
        for p, grad in zip(model.parameters(), before.values()):
            p.grad.copy_(grad)
        assert model.clip_grad(most)['norm'].item() == pytest.approx(np.mean(norms), rel=1e-5)
        for e in range(2):
            own = {key: grad[e].clone() for key, grad in before.items()}
            params = [nn.Parameter(grad) for grad in own.values()]
            for p in params:
                p.grad = p.detach().clone()
            nn.utils.clip_grad_norm_(params, most)
            for (key, grad), p in zip(grads(model).items(), params):
                assert torch.allclose(grad[e], p.grad, rtol=1e-4, atol=1e-7), key
            unchanged = all(torch.equal(grad[e], own[key]) for key, grad in grads(model).items())
            assert (most < norms[e]) != unchanged


def test_weight_decay_is_for_matrices_and_positions():
    model = tiny()
    names = {id(p): key for key, p in model.named_parameters()}
    groups = model.configure_optimizers(1e-3, 0.1, (0.9, 0.95)).param_groups
    decay = {names[id(p)]: group['weight_decay'] for group in groups for p in group['params']}
    block = [f'transformer.h.{i}.{part}.weight' for i in range(2)
             for part in ('attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj')]
    assert {key for key, value in decay.items() if value == 0.1} == {
        'in_proj.weight', 'head.weight', 'transformer.wpe.weight', *block}
    assert decay.keys() == set(names.values()) and set(decay.values()) == {0.1, 0.0}
    assert all(group['lr'] == 1e-3 and group['betas'] == (0.9, 0.95) for group in groups)


# ---- rollout ----

def naive(model, context, action, starts=None):
    """
    (E, B, N, K, S): every member, window and future on its own; each step runs the plain network on the last
    `history` frames, or on those from starts[k] on.
    """
    E, (B, N, K, _), history = model.cfg.members, action.shape, model.cfg.history
    first = model.cfg.action_repr == 'delta_prev'
    new = torch.empty(E, B, N, K, 5)
    for e in range(E):
        net = plain(model, e)
        for b in range(B):
            for n in range(N):
                states = list(context['state'][b, first:])
                acts = [*context['action'][b], *action[b, n]]
                for k in range(K):
                    frames = range(starts[k] if starts else max(0, len(states) - history), len(states))
                    rows = [(states[t], acts[t + first], acts[t]) for t in frames]
                    tokens = by_hand(model, *(torch.stack(x) for x in zip(*rows)))
                    with torch.no_grad():
                        out = net(tokens[None])[0, -1]
                    states.append(decoded(model, states[-1], out))
                    new[e, b, n, k] = states[-1]
    return new


def futures(H, K, B=2, N=3, seed=5):
    g = torch.Generator().manual_seed(seed)
    return {'state': torch.randn(B, H, 5, generator=g), 'action': torch.randn(B, H - 1, 3, generator=g)}, \
        torch.randn(B, N, K, 3, generator=g)


@pytest.mark.parametrize('H', (2, 4, 9))
@pytest.mark.parametrize('action_repr, state_pred, velocity', [
    ('absolute', 'absolute', False), ('absolute', 'residual', False), ('delta', 'delta', False),
    ('delta_prev', 'delta', False), ('delta', 'delta', True)])
def test_exact_rollout_is_the_naive_loop(action_repr, state_pred, velocity, H):
    """Contexts shorter and longer than the window; members go on from their own predictions; mean, std."""
    model = tiny(action_repr=action_repr, state_pred=state_pred, velocity=velocity).eval()
    context, action = futures(H, 6)
    got, members = model.rollout(context, action, chunk=1), naive(model, context, action)
    assert {key: tuple(value.shape) for key, value in got.items()} == {
        'state': (2, 3, 6, 5), 'state_std': (2, 3, 6, 5), 'disagreement': (2, 3, 6)}
    size = members.abs().max()
    own = model.rollout(context, action, chunk=1, each=True)
    assert own.keys() - got.keys() == {'state_each'} and all(torch.equal(own[key], got[key]) for key in got)
    assert own['state_each'].shape == members.shape
    assert (own['state_each'] - members).abs().max() < 1e-5 * size
    assert (got['state'] - members.mean(0)).abs().max() < 1e-5 * size
    std = members.std(0, unbiased=True)
    assert (got['state_std'] - std).abs().max() < 1e-5 * size and std.min() > 0
    doubt = ((std / model.state_std) ** 2).mean(-1).sqrt()
    assert (got['disagreement'] - doubt).abs().max() < 1e-5 * size
    assert (got['state'][:, 0] - got['state'][:, 1]).abs().max() > 1e-3 and not got['state'].requires_grad


@pytest.mark.parametrize('members', (1, 3))
def test_members_and_doubt(members):
    """Unbiased std over three; one alone has no doubts; `each` is what each would dream alone."""
    model = tiny(members=members).eval()
    context, action = futures(3, 4)
    got = model.rollout(context, action, each=True)
    each = torch.stack([lone(model, e).rollout(context, action)['state'] for e in range(members)])
    assert torch.allclose(got['state_each'], each, atol=1e-5)
    assert torch.allclose(got['state'], each.mean(0), atol=1e-5)
    if members == 1:
        assert not got['state_std'].any() and not got['disagreement'].any()
    else:
        assert torch.allclose(got['state_std'], each.std(0, correction=1), atol=1e-5)


def test_chunks():
    """Cached: exact while context and steps fit the window; later close to the sliding one, yet another."""
    model = tiny(action_repr='delta', state_pred='delta').eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    for H, K in ((1, 5), (2, 4), (4, 2), (5, 1)):
        context, action = futures(H, K)
        exact = model.rollout(context, action, chunk=1)['state']
        for chunk in (2, 3, 6):
            assert torch.allclose(model.rollout(context, action, chunk=chunk)['state'], exact, atol=1e-5)
    context, action = futures(9, 12)
    exact = model.rollout(context, action, chunk=1)['state']
    chunked = {n: model.rollout(context, action, chunk=n)['state'] for n in (0, 2, 3, 6)}
    assert torch.equal(chunked[0], chunked[3])               # the default is the Config's
    moved = (exact[:, :, -1] - context['state'][:, None, -1]).abs().mean()
    for n in (2, 3, 6):
        assert 1e-5 < (chunked[n] - exact).abs().mean() < 0.1 * moved, n
    for wrong in (7, -1):
        with pytest.raises(AssertionError, match=rf'chunk = {wrong}: must lie in 1..history = 6'):
            model.rollout(context, action, chunk=wrong)


@pytest.mark.parametrize('action_repr, velocity', [('delta', False), ('delta_prev', False), ('delta', True)])
def test_chunked_windows_by_hand(action_repr, velocity):
    """
    chunk = 3: windows begin at the last 6 - 3 + 1 = 4 frames, grow to 6, begin anew; the last one, with a
    single step to go, starts from all 6.
    """
    model = tiny(action_repr=action_repr, velocity=velocity).eval()
    context, action = futures(9 + (action_repr == 'delta_prev'), 7)
    starts = [5, 5, 5, 8, 8, 8, 9]                           # frames 5..8, ..9, ..10; 8..11, ...; 9..14
    members = naive(model, context, action, starts)
    got = model.rollout(context, action, chunk=3)['state']
    assert (got - members.mean(0)).abs().max() < 1e-5 * members.abs().max()


def test_delta_prev_spends_the_first_frame():
    """Its state is of no use; with one frame there is nothing left to start from. Others need but one."""
    model = tiny(action_repr='delta_prev').eval()
    context, action = futures(3, 4)
    other = context | {'state': context['state'].clone()}
    other['state'][:, 0] += 9
    assert torch.equal(model.rollout(context, action)['state'], model.rollout(other, action)['state'])
    alone = {key: value[:, -1:] if key == 'state' else value[:, :0] for key, value in context.items()}
    with pytest.raises(AssertionError, match='delta_prev needs two frames of context'):
        model.rollout(alone, action)
    assert tiny().eval().rollout(alone, action)['state'].shape == (2, 3, 4, 5)


def test_rollout_is_causal_in_the_actions():
    """Action k, taken at the last known frame, is the first to matter in new frame k."""
    for action_repr in ACTIONS:
        model = tiny(action_repr=action_repr).eval()
        context, action = futures(4, 6, N=1)
        other = action.clone()
        other[:, :, 2] += 1
        a, b = (model.rollout(context, x, chunk=1)['state'] for x in (action, other))
        assert torch.equal(a[:, :, :2], b[:, :, :2])
        assert ((a - b)[:, :, 2:].abs().amax((0, 1, 3)) > 1e-5).all()


@pytest.mark.parametrize('state_pred', STATES)
@pytest.mark.parametrize('action_repr', ('absolute', 'delta'))
def test_a_perfect_network(action_repr, state_pred):
    """One that answers, from its last token alone, with the normalised truth of s' = F s + G a: no error."""
    model = tiny(action_repr=action_repr, state_pred=state_pred).eval()
    F, G = torch.eye(5) * 0.9, torch.randn(5, 3) * 0.3

    def net(x, past):
        state = x[..., :5] * model.state_std + model.state_mean
        origin, scale = model.action_mean, model.action_std
        if action_repr == 'delta':
            origin, scale = state[..., list(Q)] + model.delta_action_mean, model.delta_action_std
        then = state @ F.T + (origin + scale * x[..., 5:]) @ G.T
        n = x.shape[2] + (past[0][0].shape[2] if past else 0)
        return target(model, state, then), [(torch.zeros(1, 1, n, 1),) * 2]
    model.net = net
    context, action = futures(4, 20)
    for chunk in (1, 3):
        new, s = model.rollout(context, action, chunk=chunk), context['state'][:, None, -1]
        for k in range(20):
            s = s @ F.T + action[:, :, k] @ G.T
            assert torch.allclose(new['state'][:, :, k], s, atol=2e-5)
        assert new['disagreement'].max() < 1e-6


def test_a_silent_network():
    """Output zero means: the mean (absolute), no change (residual), the mean change (delta)."""
    context, action = futures(3, 4)
    last = context['state'][:, None, -1:]
    for state_pred in STATES:
        model = tiny(state_pred=state_pred).eval()
        with torch.no_grad():
            for p in model.head.parameters():
                p.zero_()
        expected = {'absolute': model.state_mean, 'residual': last,
                    'delta': last + torch.arange(1, 5)[:, None] * model.delta_state_mean}[state_pred]
        assert torch.allclose(model.rollout(context, action)['state'], expected.expand(2, 3, 4, 5), atol=1e-5)


# ---- impossible configs ----

COUNTS = ('state_dim', 'action_dim', 'depth', 'heads', 'hidden', 'history', 'members', 'noise_steps',
          'unroll', 'chunk')


@pytest.mark.parametrize('wrong, words', [
    (dict(action_repr='velocity'), "action_repr = 'velocity': must be one of absolute, delta, delta_prev"),
    (dict(state_pred='x'), "state_pred = 'x': must be one of absolute, delta, residual"),
    (dict(noise_target='y'), "noise_target = 'y': must be one of clean, corrective"),
    (dict(q_index=()), "q_index = (): must name the state entry of each action if action_repr = 'delta'; "
                       'make the data with q_index, or use --action_repr=absolute'),
    *((dict(q_index=x), f'q_index = {x}: must have 3 entries, one per action, each below state_dim = 5')
      for x in ((0, 1), (0, 1, 5), (0, 1, -1))),
    (dict(hidden=17), 'hidden = 17: must be a multiple of heads = 2'),
    (dict(heads=32), 'hidden = 16: must be a multiple of heads = 32'),
    (dict(unroll=7), 'unroll = 7: must be at most history = 6'),
    *((dict(noise=x), f'noise = {x}: must be 0 (off) or a positive number') for x in
      (-0.1, float('nan'), float('inf'))),
    *((dict(fps=x), f'fps = {x}: must be a positive number') for x in
      (0.0, -50.0, float('nan'), float('inf'))),
    *((dict([(key, x)]), f'{key} = {x}: must be at least 1') for key in COUNTS for x in (0, -2))])
def test_impossible_configs_name_the_way_out(wrong, words):
    with pytest.raises(ValueError) as stop:
        tiny(**wrong)
    assert str(stop.value) == words


def test_every_number_of_the_config_has_its_range():
    """A field that comes later must be checked too: negative or nan, none is accepted."""
    for key, value in vars(Config()).items():
        if isinstance(value, (bool, str, tuple)):
            continue
        for wrong in (-1, float('nan')) if isinstance(value, float) else (-1,):
            with pytest.raises(ValueError, match=f'^{key} = {wrong}: must'):
                tiny(**{key: wrong})


def test_the_edge_of_what_is_possible():
    """The smallest of everything, and unroll as long as the window, train."""
    for smallest in (dict(depth=1, heads=1, hidden=1, history=1, members=1, noise_steps=1, unroll=1, chunk=1),
                     dict(unroll=6, chunk=99)):
        model = tiny(**smallest)
        assert torch.isfinite(model(batch_of(model))['loss'])
        future = model.eval().rollout(*futures(3, 4))
        assert torch.isfinite(future['state']).all()


@pytest.mark.parametrize('action_repr', ('absolute', 'delta_prev'))
def test_without_q_index(action_repr):
    """Robots that do not say which state an action commands can be modelled all the same."""
    model = tiny(q_index=(), action_repr=action_repr)
    assert torch.isfinite(model(batch_of(model))['loss'])
    context, action = futures(3, 4)
    assert model.eval().rollout(context, action)['state'].shape == (2, 3, 4, 5)


@pytest.mark.parametrize('action_repr', ACTIONS)
def test_example_is_a_batch(action_repr):
    model = tiny(action_repr=action_repr)
    batch = arx5_gpt.example(model.cfg, 4)
    assert {key: x.shape for key, x in batch.items()} == {key: x.shape for key, x in batch_of(model).items()}
    assert torch.isfinite(model(batch)['loss'])


def test_presets():
    """full is the published size; cpu is what config/arx5_cpu.py trains."""
    assert set(arx5_gpt.PRESETS) == {'tiny', 'cpu', 'full'}
    with torch.device('meta'):
        full = Model(arx5_gpt.PRESETS['full'])
    assert sum(p.numel() for p in full.parameters()) == 2 * 10_673_678
    with open(os.path.join(ROOT, 'config', 'arx5_cpu.py')) as f:
        told = dict(re.findall(r'^(\w+) = (\S+)', f.read(), re.M))
    for key in ('depth', 'heads', 'hidden', 'action_repr', 'state_pred'):
        assert told[key] == repr(getattr(arx5_gpt.PRESETS['cpu'], key)), key


# ---- statistics ----

def test_statistics_are_of_the_train_split(tmp_path):
    """Val episodes a thousand times larger change none of the numbers; train episodes would."""
    mask = split(10, '0.3', 1)
    val, one = tuple(np.flatnonzero(mask)), (int(np.flatnonzero(~mask)[0]),)
    folders = [make_robot(tmp_path, name=f'robot_{i}', make=partial(episode, spoilt=spoilt))
               for i, spoilt in enumerate(((), val, one))]
    clean, poisoned, other = (json.load(open(f'{folder}/meta.json'))['stats'] for folder in folders)
    assert set(clean) == {'state', 'action', 'delta_state', 'delta_prev', 'delta_action'}
    assert clean == poisoned and all(clean[key] != other[key] for key in clean)
    assert np.abs(np.load(f'{folders[1]}/val/state.npy')).max() > 100


@pytest.mark.parametrize('padded', (True, False))
def test_differences_against_a_loop(padded):
    """Episode by episode: nothing crosses a border, and the padding action of the last row is never used."""
    rng = np.random.default_rng(0)
    spans, q = np.array([[0, 4], [4, 5], [5, 11]]), [2, 0]   # one of a single frame
    state, action = rng.normal(size=(11, 3)).astype(np.float32), rng.normal(size=(11, 2)).astype(np.float32)
    if padded:
        action[spans[:, 1] - 1] = 1e6
    got, loop = differences(state, action, spans, q, padded), {}
    for a, b in spans:
        for t in range(a, b):
            real = not padded or t < b - 1
            if t + 1 < b:
                loop.setdefault('delta_state', []).append(state[t + 1].astype(float) - state[t])
            if real:
                loop.setdefault('delta_action', []).append(action[t].astype(float) - state[t, q])
            if real and t > a:
                loop.setdefault('delta_prev', []).append(action[t].astype(float) - action[t - 1])
    assert got.keys() == loop.keys()
    for key, rows in loop.items():
        assert np.allclose(got[key], rows, atol=1e-12)
    assert 'delta_action' not in differences(state, action, spans, None, padded)


def test_statistics_of_differences_reach_the_model(run):
    """meta.json -> buffers -> checkpoint; delta_action is a - q of the training rows."""
    folder, out = run
    model = checkpoint.load(out)[0]
    state, action, spans = (np.load(f'{folder}/train/{key}.npy') for key in ('state', 'action', 'episodes'))
    for key, rows in differences(state, action, spans, [3, 1], True).items():
        own = stats_of(rows)
        for word in ('mean', 'std'):
            assert getattr(model, f'{key}_{word}').tolist() == pytest.approx(own[word], rel=1e-5, abs=1e-6)
    assert model.q_index.tolist() == [3, 1] and model.cfg.fps == 20.0


# ---- export ----

FLAGS = ['--model=arx5_gpt', '--dataset=robot', '--depth=1', '--heads=2', '--hidden=16', '--history=8',
         '--chunk=4', '--batch_size=8', '--device=cpu', '--val_batches=1', '--log_every=1', '--max_steps=2']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A trained tiny model: (data folder, out_dir)."""
    root = tmp_path_factory.mktemp('export')
    folder = make_robot(root)
    script('train.py', *FLAGS, f'--data_dir={root}', f'--out_dir={root}/out')
    return folder, f'{root}/out'


@pytest.fixture
def exported(run, tmp_path):
    sha = arx5_export.export(run[1], f'{tmp_path}/checkpoints/cfgD')
    return f'{tmp_path}/checkpoints/cfgD', sha


def test_export_and_back(run, exported):
    """The published files and keys; plain nanoGPT weights per member; the same model again."""
    folder, sha = exported
    found = [os.path.relpath(os.path.join(top, f), folder) for top, _, fs in os.walk(folder) for f in fs]
    assert sorted(found) == ['params/normalization_stats.json', 'params/params.pt']
    params = torch.load(f'{folder}/params/params.pt', weights_only=True)
    model, meta = checkpoint.load(run[1], which='best')
    assert set(params) == {'model_state_dict', 'best_val_loss', 'best_step', 'global_step', 'config_label',
                           'action_representation', 'state_prediction_mode', 'model_args', 'config'}
    assert (params['config_label'], params['action_representation'], params['state_prediction_mode']) == (
        'cfgD', 'delta', 'delta')
    assert params['best_val_loss'] == pytest.approx(meta['metrics']['val/loss'] / 2)
    assert params['best_step'] == params['global_step'] == meta['step']
    assert params['model_args'] == meta['model_config'] and params['model_args']['history'] == 8
    for i in range(2):
        weights = {k[10:]: v for k, v in params['model_state_dict'].items() if k.startswith(f'members.{i}.')}
        Plain(model.cfg).load_state_dict(weights)
    assert len(params['model_state_dict']) == 2 * len(weights)
    stats = json.load(open(f'{folder}/params/normalization_stats.json'))
    assert stats['dt'] == 0.05 and stats['history'] == 8 and stats['state_mean'] == model.state_mean.tolist()
    again = Model.from_pretrained(folder)
    assert not again.training and again.cfg == model.cfg
    x = torch.randn(2, 2, 8, 7)
    assert torch.equal(again.net(x), model.net(x))
    context, action = {'state': torch.randn(1, 5, 5), 'action': torch.randn(1, 4, 2)}, torch.randn(1, 2, 9, 2)
    a, b = (m.rollout(context, action) for m in (again, model))
    assert all(torch.equal(a[key], b[key]) for key in a)
    ours = Model.from_pretrained(run[1])                     # our own folders, too
    assert torch.equal(ours.net(x), model.net(x))
    assert Model.from_pretrained(folder, chunk=2).cfg.chunk == 2
    assert Model.from_pretrained(run[1], chunk=2).cfg.chunk == 2
    with pytest.raises(AssertionError, match='chunk.* can change after the training'):
        Model.from_pretrained(run[1], history=4)


@pytest.mark.parametrize('state_pred', STATES)
@pytest.mark.parametrize('action_repr', ACTIONS)
def test_labels_of_the_published_runs(action_repr, state_pred):
    """Each of the four published runs is labelled as its config says; all others by what they are."""
    meta = {'metrics': {}, 'step': 1, 'config': {}, 'model_config': {}}
    label = arx5_export.params(tiny(action_repr=action_repr, state_pred=state_pred), meta)['config_label']
    published = {}
    for letter in 'ABCD':
        with open(os.path.join(ROOT, 'config', f'arx5_cfg{letter}.py')) as f:
            told = dict(re.findall(r"^(action_repr|state_pred) = '(\w+)'", f.read(), re.M))
        published[told['action_repr'], told['state_pred']] = f'cfg{letter}'
    assert len(published) == 4
    assert label == published.get((action_repr, state_pred), f'{action_repr}_{state_pred}')


def test_hash_is_the_recipe_of_the_shell(run, exported, tmp_path):
    """find | sort | sha256sum, also with more files and folders inside; the same bytes each time."""
    folder, sha = exported

    def shell():
        recipe = 'cd "$1" && find params -type f | LC_ALL=C sort | xargs sha256sum | sha256sum'
        return subprocess.run(['sh', '-c', recipe, '-', folder], capture_output=True, text=True,
                              check=True).stdout.split()[0]
    assert sha == arx5_export.published_sha256(folder) == shell()
    assert sha == arx5_export.published_sha256(folder + '/')
    text, _ = script('arx5_export.py', run[1], tmp_path / 'again')
    assert text == f'{tmp_path}/again: sha256 {sha}\n'
    os.makedirs(f'{folder}/params/b')                        # '/' sorts between '-' and 'A'
    for name in ('b/x', 'b-1', 'Z', 'bb', '\u00e9'):
        open(f'{folder}/params/{name}', 'w').write(name)
    assert arx5_export.published_sha256(folder) == shell() != sha


def test_export_refuses(run, exported, tmp_path):
    _, errors = script('arx5_export.py', run[1], exported[0], code=1)
    assert errors == f'{exported[0]} is there already; delete it, or choose another folder\n'
    for wrong in ([], [run[1]], [run[1], 'a', 'b']):
        _, errors = script('arx5_export.py', *wrong, code=1)
        assert errors == 'python arx5_export.py OUT_DIR checkpoints/cfgD\n'
    _, errors = script('arx5_export.py', tmp_path / 'nothing', tmp_path / 'x', code=1)
    assert 'no checkpoint in' in errors and not (tmp_path / 'x').exists()
    _, errors = script('arx5_gpt.py', 'export', run[1], tmp_path / 'x', code=1)
    assert errors == 'python arx5_gpt.py takes no flags: train.py trains, arx5_export.py exports\n'


def test_export_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    """Under a file, and on a disk that fills up: one line, no folder."""
    (tmp_path / 'file').write_text('')
    _, errors = script('arx5_export.py', run[1], tmp_path / 'file' / 'x', code=1)
    assert errors.startswith(f'could not write {tmp_path}/file/x: ') and len(errors.splitlines()) == 1

    def full(*args):
        raise RuntimeError('no space left on device\nand more')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(SystemExit, match='could not write .*: no space left on device; make room'):
        arx5_export.export(run[1], str(tmp_path / 'x'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


@pytest.mark.parametrize('change, words', [
    (lambda p, s: s.update(state_std=[1.0] * 4), 'state_std has 4 numbers, the checkpoint wants 5'),
    (lambda p, s: s.pop('action_mean'), 'action_mean has 0 numbers, the checkpoint wants 2'),
    (lambda p, s: s.update(action_representation='absolute'),
     'says action_representation = absolute, params.pt says delta; they belong to different checkpoints'),
    (lambda p, s: s.pop('state_prediction_mode'), 'says state_prediction_mode = None, params.pt says delta'),
    (lambda p, s: p.pop('model_args'), 'params.pt lacks model_args: not written by arx5_export.py'),
    (lambda p, s: p.update(model_args=[1, 2]), 'params.pt does not fit arx5_gpt.py'),
    (lambda p, s: p['model_state_dict'].pop('members.1.head.bias'), 'member 1: head.bias is missing'),
    (lambda p, s: p['model_args'].update(hidden=8), 'the weights belong to another Config'),
    (lambda p, s: p['model_args'].update(heads=3), 'does not fit arx5_gpt.py: hidden = 16: must be a'),
    (lambda p, s: s.update(action_std='wide'), 'action_std has no list of numbers, the checkpoint wants 2'),
    (lambda p, s: s.update(action_std=['1', '2']), 'normalization_stats.json: action_std: ')])
def test_import_refuses(exported, change, words):
    folder, _ = exported
    params = torch.load(f'{folder}/params/params.pt', weights_only=True)
    with open(f'{folder}/params/normalization_stats.json') as f:
        stats = json.load(f)
    change(params, stats)
    torch.save(params, f'{folder}/params/params.pt')
    with open(f'{folder}/params/normalization_stats.json', 'w') as f:
        json.dump(stats, f)
    with pytest.raises(SystemExit) as stop:
        Model.from_pretrained(folder)
    assert words in str(stop.value) and '\n' not in str(stop.value)


def test_import_from_another_version(exported):
    """A Config field that came or went since: one line, as checkpoint.load gives."""
    folder, _ = exported
    params = torch.load(f'{folder}/params/params.pt', weights_only=True)
    params['model_args']['rotary'] = True
    torch.save(params, f'{folder}/params/params.pt')
    with pytest.raises(SystemExit, match='rotary'): Model.from_pretrained(folder)


def test_import_of_damaged_files(exported):
    folder, _ = exported
    with open(f'{folder}/params/params.pt', 'r+b') as f:
        f.truncate(100)
    with pytest.raises(SystemExit, match='cannot read .*params.pt'): Model.from_pretrained(folder)
    os.remove(f'{folder}/params/params.pt')
    with pytest.raises(SystemExit, match='cannot read .*params.pt'): Model.from_pretrained(folder)


# ---- bad data through train.py: one line, no traceback ----

def one_line(tmp_path, words, *flags, code=1):
    where = [f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/out']
    text, errors = script('train.py', *FLAGS, *where, *flags, code=code)
    assert words in errors and len(errors.strip().splitlines()) == 1, errors
    assert not os.path.exists(f'{tmp_path}/out/latest')
    return text


def test_data_without_q_index(tmp_path):
    make_robot(tmp_path, q_index=None, n=3)
    one_line(tmp_path, 'q_index = (): must name the state entry of each action')
    where = [f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/out']
    script('train.py', *FLAGS, *where, '--action_repr=absolute')


def test_q_index_of_wrong_length(tmp_path):
    folder = make_robot(tmp_path, n=3)
    with open(f'{folder}/meta.json') as f:
        meta = json.load(f)
    for wrong in ([3], [3, 1, 0], [3, 5]):
        meta['facts']['q_index'] = wrong
        with open(f'{folder}/meta.json', 'w') as f:
            json.dump(meta, f)
        one_line(tmp_path, f'q_index = {wrong}: want 2 entries (one per action) below state_dim = 5', code=2)


def test_episodes_that_are_too_short(tmp_path):
    make_robot(tmp_path, n=3, make=partial(episode, length=32))
    one_line(tmp_path, 'a window spans 33 frames, the longest of 2 episodes has 32; use fewer frames',
             '--history=32')


def test_states_that_are_not_finite(tmp_path):
    """The run stops at the step that met one, and names its windows."""
    folder = make_robot(tmp_path, n=3)
    path = f'{folder}/train/state.npy'
    rows = np.load(path)
    rows[::9] = np.nan                                       # one in every window
    np.save(path, rows)
    one_line(tmp_path, 'loss or gradient is not finite at step 0, rank 0, sample ids [')


def test_a_file_cut_short(tmp_path):
    folder = make_robot(tmp_path, n=3)
    with open(f'{folder}/train/action.npy', 'r+b') as f:
        f.truncate(500)
    one_line(tmp_path, 'train/action.npy is truncated or damaged')


def test_a_checkpoint_and_another_robot(run, tmp_path):
    """eval.py on data that were replaced by those of a robot with fewer states."""
    copy = tmp_path / 'other'
    shutil.copytree(os.path.dirname(run[0]), copy)
    shutil.rmtree(copy / 'robot')
    make_robot(copy, n=3, make=narrow, q_index=[0, 1], groups=None)
    meta = json.load(open(copy / 'out' / 'step_0000002' / 'meta.json'))
    meta['config']['data_dir'] = str(copy)
    (copy / 'out' / 'step_0000002' / 'meta.json').write_text(json.dumps(meta))
    _, errors = script('eval.py', f'--ckpt={copy}/out', '--device=cpu', code=1)
    words = f'{copy}/robot has state_dim = 4, the model was trained with 5: they do not belong together\n'
    assert errors.endswith(words)    # after a note about the data
    asked = f'--ckpt={copy}/out', '--device=cpu', '--protocol=plan', '--horizon=3'
    _, errors = script('eval.py', *asked, code=1)
    assert errors.endswith(words)


def narrow(i):
    e = episode(i)
    return e | {'state': e['state'][:, :4].copy()}


def test_lesson_zero_runs():
    text, _ = script('arx5_gpt.py')
    assert "5 futures of 6 steps {'state': (4, 5, 6, 14)" in text and 'MFLOP per window' in text
