"""Every model file keeps the contract of this repository; found by glob, so a new model is tested from day one."""
import glob
import importlib
import inspect
import os
import re
from dataclasses import fields

import pytest
import torch
from conftest import ROOT

TINY = {   # a small Config of each model
    'nanowm': dict(height=8, width=8, depth=4, hidden=32, heads=2, num_frames=3, action_dim=3, sample_steps=2),
    'arx5_gpt': dict(state_dim=5, action_dim=3, q_index=(4, 0, 2), depth=2, hidden=32, heads=2, history=6, chunk=3)}
MODELS = sorted(os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, '*.py'))
                if re.search(r'^class Model\(', open(path).read(), re.M))


def build(name):
    torch.manual_seed(0)
    M = importlib.import_module(name)
    return M, M.Model(M.Config(**TINY[name]))


def batch_of(M, cfg, B=4):
    frames = {key: len(offsets) for key, offsets in M.windows(cfg).items()}
    dims = {'latent': ('channels', 'height', 'width'), 'action': ('action_dim',), 'state': ('state_dim',)}
    return {key: torch.randn(B, n, *(getattr(cfg, dim) for dim in dims[key])) for key, n in frames.items()}


def test_all_models_are_known():
    assert MODELS and set(MODELS) == set(TINY), 'give the new model a tiny Config in TINY'


@pytest.mark.parametrize('name', MODELS)
def test_forward_and_gradients(name):
    M, model = build(name)
    with torch.no_grad():                                  # leave the zero start, where many gradients are rightly zero
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.02)
    out = model(batch_of(M, model.cfg))
    assert out['loss'].ndim == 0 and torch.isfinite(out['loss'])
    assert all(not value.requires_grad and value.ndim == 0 for key, value in out.items() if key != 'loss')
    out['loss'].backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), key


@pytest.mark.parametrize('name', MODELS)
def test_state_dict_round_trip(name):
    M, model = build(name)
    torch.manual_seed(1)
    other = M.Model(M.Config(**TINY[name]))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    other.load_state_dict(model.state_dict())
    batch = batch_of(M, model.cfg)
    losses = []
    for m in (model, other):
        torch.manual_seed(2)
        losses.append(m(batch)['loss'].item())
    assert losses[0] == losses[1]
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages), 'tie weights in forward, safetensors refuses shared ones'


@pytest.mark.parametrize('name', MODELS)
def test_contract_names(name):
    M, model = build(name)
    assert isinstance(M.PAD, bool) and isinstance(M.EVAL, tuple) and set(M.EVAL) <= {'video', 'plan', 'env', 'dynamics'}
    assert all(isinstance(offsets, range) for offsets in M.windows(model.cfg).values())
    assert isinstance(model.configure_optimizers(1e-4, 0.01, (0.9, 0.999)), torch.optim.Optimizer)
    assert model.flops_per_sample() > 0
    with torch.device('meta'): M.Model(M.Config(**TINY[name]))


@pytest.mark.parametrize('name', MODELS)
def test_every_field_is_plain_and_commented(name):
    M = importlib.import_module(name)
    source = inspect.getsource(M.Config)
    for f in fields(M.Config):
        assert isinstance(f.default, (bool, int, float, str, tuple)), f'{f.name} has no plain default'
        assert re.search(rf'^    {f.name}: .*  # \S', source, re.M), f'{f.name} has no comment'


@pytest.mark.parametrize('script', ('train.py', 'sample.py', 'eval.py', 'bench/step.py', 'bench/ensemble.py'))
def test_every_key_is_commented(script):
    with open(os.path.join(ROOT, script)) as f:
        keys = re.findall(r'^[a-z]\w* = .*', re.split(r'^(?:config = |if __name__)', f.read(), flags=re.M)[0], re.M)
    assert len(keys) > 5
    for line in keys: assert re.search(r'  # \S', line), f'{script}: {line!r} has no comment'


@pytest.mark.parametrize('name', MODELS)
def test_no_key_has_two_owners(name):
    M = importlib.import_module(name)
    with open(os.path.join(ROOT, 'train.py')) as f:
        keys = set(re.findall(r'^([a-z]\w*) = ', f.read().split('config = configure')[0], re.M))
    assert not keys & {f.name for f in fields(M.Config)}


@pytest.mark.parametrize('name', MODELS)
def test_overfits_one_batch(name):
    """The loss of one batch with fixed noise falls to a tenth."""
    M, model = build(name)
    batch = batch_of(M, model.cfg, B=2)
    if 'latent' in batch:
        batch |= {'t': torch.tensor([[300, 600, 900], [100, 500, 999]]), 'noise': torch.randn_like(batch['latent'])}
    optimizer = model.configure_optimizers(3e-3, 0.0, (0.9, 0.99))
    first = model(batch)['loss'].item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(batch)['loss']
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


@pytest.mark.parametrize('name', MODELS)
def test_rollout_keeps_the_contract(name):
    """context (B, H, ...), action (B, N, K, A) -> (B, N, K, ...) of the same key, the new frames only, no gradient."""
    M, model = build(name)
    B, H, N, K, cfg = 2, 2, 3, 4, model.eval().cfg
    key = 'state' if hasattr(cfg, 'state_dim') else 'latent'
    frames = {k: v[:, :1].expand(B, H, *v.shape[2:]) for k, v in batch_of(M, cfg, B).items() if k == key}
    context = frames | {'action': torch.randn(B, H - 1, cfg.action_dim)}
    future = model.rollout(context, torch.randn(B, N, K, cfg.action_dim))
    assert future[key].shape == (B, N, K, *frames[key].shape[2:]) and torch.isfinite(future[key]).all()
    assert not any(value.requires_grad for value in future.values())
    if getattr(cfg, 'members', 1) > 1:
        assert future['state_std'].shape == future['state'].shape and future['disagreement'].shape == (B, N, K)
