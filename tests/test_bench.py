"""bench/step.py: its variant per patch is the same function as ours, so that only the time differs."""
import importlib.util
import os
import sys

import pytest
import torch
from conftest import ROOT

import nanowm


@pytest.fixture(scope='module')
def bench():
    spec = importlib.util.spec_from_file_location('bench_step', os.path.join(ROOT, 'bench', 'step.py'))
    module = importlib.util.module_from_spec(spec)
    sys.modules['bench_step'] = module                       # data/writer.py looks up who makes its episodes
    spec.loader.exec_module(module)
    module.device, module.dtype = 'cpu', 'float32'           # what its command line resolves 'auto' to
    return module


@pytest.mark.parametrize('injection', ('additive', 'adaln_fuse', 'adaln', 'film', 'cross_attention'))
def test_per_patch_is_the_same_function(bench, injection):
    """Outputs, losses and gradients; and its modulation really runs on all patches of the temporal blocks."""
    torch.manual_seed(0)
    cfg = nanowm.Config(height=8, width=12, depth=4, hidden=32, heads=2, num_frames=3, injection=injection)
    ours = bench.randomise(nanowm.Model(cfg))
    theirs, data, seen = bench.per_patch(ours), bench.make_batch(cfg, 2, 'cpu'), {}
    for name, model in (('ours', ours), ('theirs', theirs)):
        for i, block in enumerate(model.blocks):
            block.adaLN_modulation.register_forward_hook(
                lambda module, args, out, key=(name, i): seen.update({key: out.shape[2]}))
    out = [model.net(data['latent'], data['t'], data['action']) for model in (ours, theirs)]
    assert out[0].std() > 0.01 and (out[0] - out[1]).abs().max() < 1e-5
    assert [seen['ours', i] for i in range(4)] == [1, 1, 1, 1]
    assert [seen['theirs', i] for i in range(4)] == [1, 24, 1, 24]
    for model in (ours, theirs): bench.backward(model, data)()
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * max(1, p.grad.abs().max()), key
    assert any(p.grad.abs().max() > 1e-3 for p in ours.parameters())


def test_train_step_learns_and_takes_a_source_of_batches(bench):
    cfg = nanowm.Config(height=4, width=4, depth=2, hidden=16, heads=2, num_frames=2)
    model, given = nanowm.Model(cfg), []
    before = [p.clone() for p in model.parameters()]
    step = bench.train_step(model, lambda: given.append(bench.make_batch(cfg, 1, 'cpu')) or given[-1])
    step()
    step()
    assert len(given) == 2 and all(p.grad is None for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))


def test_variants_take_turns(bench, monkeypatch):
    """One untimed call each, then a b a b; medians, so that one slow call does not count."""
    calls, clock = [], iter([1, 1, 5, 2, 1, 2, 100, 2, 3, 2])                 # seconds of each call
    def timed(step):
        step()
        return next(clock)
    monkeypatch.setattr(bench, 'timed', timed)
    monkeypatch.setattr(bench, 'reps', 4)
    result = bench.interleaved({name: lambda name=name: calls.append(name) for name in 'ab'})
    assert calls == list('ab' * 5) and result == {'a': 4, 'b': 2}             # a: 5 1 100 3


def test_table(bench):
    text = bench.table([{'name': 'a', 'ms': 1234.567, 'mfu': None}, {'name': 'longer', 'ms': 0.5, 'mfu': 0.25}])
    assert text.splitlines() == ['  name    ms   mfu', '     a  1235     -', 'longer   0.5  0.25']


def test_rows_of_a_tiny_size(bench, monkeypatch):
    """What the command line does for each size: a comparison, and steps fed by Store and Prefetch."""
    monkeypatch.setitem(bench.SIZES, 'XS', dict(depth=2, hidden=16, heads=2))
    monkeypatch.setattr(bench, 'reps', 2)
    timed, real = [], bench.backward
    monkeypatch.setattr(bench, 'backward', lambda model, data: timed.append(type(model.blocks[1])) or real(model, data))
    row = bench.compare_modulation('XS', 2, 'film')
    assert timed == [nanowm.Block, bench.PerPatchBlock]
    assert row['difference'] < 1e-5 and row['ratio'] == pytest.approx(row['per_frame_ms'] / row['per_patch_ms'])
    assert (row['size'], row['frames'], row['injection']) == ('XS', 2, 'film')
    row = bench.waiting_for_data('XS', 2)
    assert 0 < row['waited_ms'] < row['ms'] and row['in_model'] == pytest.approx(1 - row['waited_ms'] / row['ms'])
