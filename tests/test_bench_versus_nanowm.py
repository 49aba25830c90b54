"""bench/versus_nanowm.py: its variant per patch is the same function as ours; only the time differs."""
import json

import pytest
import torch
from conftest import script

import nanowm
from bench import timing
from bench import versus_nanowm as bench


def clock():
    return timing.Clock('cpu', 'float32', reps=3)


@pytest.mark.parametrize('injection', nanowm.INJECTIONS)
def test_per_patch_is_the_same_function(injection):
    """Outputs, losses and gradients; and its modulation really runs on all patches of the temporal blocks."""
    torch.manual_seed(0)
    cfg = nanowm.Config(height=8, width=12, depth=4, hidden=32, heads=2, num_frames=3, injection=injection)
    ours = timing.randomise(nanowm.Model(cfg))
    theirs, data, seen = bench.per_patch(ours), bench.latents(cfg, 2, 'cpu'), {}
    for name, model in (('ours', ours), ('theirs', theirs)):
        for i, block in enumerate(model.blocks):
            block.adaLN_modulation.register_forward_hook(
                lambda module, args, out, key=(name, i): seen.update({key: out.shape[2]}))
    out = [model.net(data['latent'], data['t'], data['action']) for model in (ours, theirs)]
    assert out[0].std() > 0.01 and (out[0] - out[1]).abs().max() < 1e-5
    assert [seen['ours', i] for i in range(4)] == [1, 1, 1, 1]
    assert [seen['theirs', i] for i in range(4)] == [1, 24, 1, 24]
    for model in (ours, theirs):
        bench.backward(model, data, clock())()
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * max(1, p.grad.abs().max()), key
    assert any(p.grad.abs().max() > 1e-3 for p in ours.parameters())


def test_rows(monkeypatch):
    """Both ways are timed, in turn, and the ratio is taken within a repetition."""
    timed, real = [], bench.backward
    monkeypatch.setattr(bench, 'backward', lambda model, data, c: timed.append(type(model.blocks[1])) or
                        real(model, data, c))
    c = clock()
    seconds = {'frame': [2.0, 6.0, 1.0], 'patch': [1.0, 4.0, 1.0]}
    monkeypatch.setattr(c, 'times', lambda steps: [step() for step in steps.values()] and seconds)
    cfg = nanowm.Config(height=4, width=4, depth=2, hidden=16, heads=2, num_frames=2, injection='film')
    row = bench.modulation_row(cfg, c, 2)
    assert timed == [nanowm.Block, bench.PerPatchBlock] and row['difference'] < 1e-5
    assert (row['per_frame_ms'], row['per_patch_ms'], row['ratio']) == (2000, 1000, 1.5)
    assert (row['frames'], row['injection'], row['batch']) == (2, 'film', 2)


def test_another_function_is_not_timed(monkeypatch):
    def other(model):
        copy = bench.nanowm.Model(model.cfg)
        copy.load_state_dict(model.state_dict())
        with torch.no_grad():
            copy.blocks[0].mlp.w3.weight.mul_(1.5)
        return copy
    monkeypatch.setattr(bench, 'per_patch', other)
    cfg = nanowm.Config(height=4, width=4, depth=2, hidden=16, heads=2, num_frames=2)
    with pytest.raises(SystemExit, match='are not the same function'):
        bench.modulation_row(cfg, clock(), 2)


def test_command_line(tmp_path):
    flags = '--preset=tiny', '--injections=adaln,film', '--num_frames=2', '--reps=1', '--device=cpu', \
        f'--out={tmp_path}/x.json'
    said, _ = script('bench/versus_nanowm.py', *flags)
    saved = json.loads((tmp_path / 'x.json').read_text())
    assert saved['command'] == 'python bench/versus_nanowm.py ' + ' '.join(flags)
    assert [(row['injection'], row['frames']) for row in saved['rows']] == [('adaln', 2), ('film', 2)]
    assert said.splitlines()[0].split() == [key for key in saved['rows'][0] if key != 'ratios']
    for wrong, line, code in (
            (['--injections=add'], 'injections = add: choose from additive, ', 1),
            (['--injection=film'], "unknown key 'injection' (--injection); did you mean", 2),
            (['--preset=XL'], "preset = 'XL': nanowm has tiny, ", 2),
            (['--batch=0'], 'batch = 0, threads = 1: must be at least 1', 1)):
        errors = script('bench/versus_nanowm.py', '--preset=tiny', *wrong, code=code)[1]
        assert errors.startswith(line) and errors.count('\n') == 1
