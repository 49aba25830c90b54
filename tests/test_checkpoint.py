"""checkpoint.py inside this process: every way to fail while saving, what reading says of damage, pruning, the lock."""
import json
import os
import shutil
from functools import partial

import pytest
import torch
from conftest import ROOT

import checkpoint
import nanowm

SMALL = dict(input='video', height=4, width=4, channels=3, action_dim=2, depth=2, hidden=16, heads=2, num_frames=2)


def build(value, **over):
    """A NanoWM whose every parameter is `value`."""
    model = nanowm.Model(nanowm.Config(**SMALL | over))
    with torch.no_grad():
        for p in model.parameters(): p.fill_(value)
    return model


def save(out_dir, step, ema=None, **kw):
    """A checkpoint of step `step`, full of the number `step`; averages full of `ema`."""
    model = build(step)
    meta = dict(step=step, model='nanowm', model_config=vars(model.cfg))
    averaged = None if ema is None else build(ema).state_dict()
    checkpoint.save(str(out_dir), step, model.state_dict(), averaged, {'n': torch.tensor(step)}, meta, **kw)


def value_of(model):
    """The number it is full of; all tensors must agree, or files of two checkpoints were mixed."""
    values = {p.min().item() for p in model.parameters()} | {p.max().item() for p in model.parameters()}
    assert len(values) == 1
    return values.pop()


def says(*words, call):
    with pytest.raises(SystemExit) as stop: call()
    text = str(stop.value)
    assert '\n' not in text
    for word in words: assert word in text, text


# ---- save and load ----

def test_round_trip(tmp_path):
    save(tmp_path, 3, ema=7)
    for ema, value in (True, 7), (False, 3):
        model, meta = checkpoint.load(tmp_path, ema=ema)
        assert value_of(model) == value and meta['step'] == 3 and not model.training
    save(tmp_path, 4)                                        # without averages the raw weights are what there is
    assert value_of(checkpoint.load(tmp_path)[0]) == 4
    assert value_of(checkpoint.load(tmp_path / 'step_0000003')[0]) == 7     # a step folder may be named itself
    state = torch.load(tmp_path / 'step_0000003' / 'state.pt', weights_only=True)
    assert state['n'] == 3


def test_views_and_other_dtypes_are_saved_as_they_are(tmp_path):
    weights = {'t': torch.arange(6.).view(2, 3).t(), 'b': torch.full((2,), 0.1, dtype=torch.bfloat16),
               'g': torch.ones(1, requires_grad=True)}
    checkpoint.save(str(tmp_path), 1, weights, None, {}, {})
    back = checkpoint.read(checkpoint.find(tmp_path), 'model.safetensors')
    for key, value in weights.items(): assert torch.equal(back[key], value) and back[key].dtype == value.dtype


def test_a_step_that_is_trained_again_replaces_the_old_one(tmp_path):
    """A run was killed between the folder and `latest`, and has come back to that step."""
    save(tmp_path, 1)
    save(tmp_path, 2, ema=9)
    checkpoint.write_text(f'{tmp_path}/latest', 'step_0000001')
    save(tmp_path, 2)
    assert value_of(checkpoint.load(tmp_path)[0]) == 2 and not (tmp_path / 'step_0000002' / 'ema.safetensors').exists()


class Kill(BaseException):
    """Passes every `except` of the code, as a kill -9 would: nothing is cleaned up."""


CALLS = {'replace': os, 'fsync': os, 'makedirs': os, 'save': torch, 'save_file': checkpoint, 'rmtree': shutil}


@pytest.mark.parametrize('kill', (False, True))
def test_a_save_that_fails_at_any_call_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, kill):
    """The n-th call that touches the disk fails, for every n there is."""
    failed, n, seen = 0, 0, 0

    def breaking(name, real, *args, **kw):
        nonlocal seen
        seen += 1
        if seen == n and kill: raise Kill
        if seen == n and name == 'save': raise RuntimeError('PytorchStreamWriter failed')
        if seen == n and name != 'rmtree': raise OSError(28, 'No space left on device')      # it swallows its own
        return real(*args, **kw)

    while seen >= n:
        out, n, seen = tmp_path / str(n), n + 1, 0
        save(out, 1, best=True)
        with monkeypatch.context() as patched:
            for name, module in CALLS.items():
                patched.setattr(module, name, partial(breaking, name, getattr(module, name)))
            try: save(out, 2, ema=3, best=True, keep=1)
            except SystemExit as stop:
                failed += 1
                assert str(stop).startswith(f'could not save {out}/step_0000002: ') and 'make room' in str(stop)
                assert not list(out.glob('tmp.*'))
            except Kill: failed += 1
        for which in ('latest', 'best'):
            model, meta = checkpoint.load(out, which=which)
            assert (meta['step'], value_of(model)) in ((1, 1), (2, 3))
        if seen >= n:
            save(out, 2, ema=3)                              # the next try works
            assert value_of(checkpoint.load(out)[0]) == 3
    assert failed > 10 and meta['step'] == 2                 # in the last round nothing was left to fail


def test_latest_is_written_last(tmp_path, monkeypatch):
    """Nothing may name a folder that is not there yet."""
    order, real = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda a, b: (order.append(os.path.basename(b)), real(a, b)))
    save(tmp_path, 5, best=True)
    assert order == ['meta.json', 'step_0000005', 'best', 'latest']


# ---- prune, pointers, find ----

@pytest.mark.parametrize('keep, keep_every, left', [
    (3, 0, {1, 4, 5, 6}), (1, 0, {1, 6}), (0, 0, {1, 2, 3, 4, 5, 6}), (1, 2, {1, 2, 4, 6}), (2, 3, {1, 3, 5, 6})])
def test_prune(tmp_path, keep, keep_every, left):
    """1 is the best: it stays whatever keep says."""
    for step in range(1, 7): save(tmp_path, step, best=step == 1, keep=keep, keep_every=keep_every)
    assert {int(p.name[5:]) for p in tmp_path.glob('step_*')} == left
    assert [checkpoint.pointer(tmp_path, which) for which in ('latest', 'best')] == ['step_0000006', 'step_0000001']


def test_prune_keeps_what_latest_names(tmp_path):
    """Later folders can be left over from before a kill; the one that latest names is not the newest then."""
    for step in (1, 2, 3): save(tmp_path, step)
    checkpoint.write_text(f'{tmp_path}/latest', 'step_0000001')
    checkpoint.prune(str(tmp_path), 1, 0)
    assert {p.name for p in tmp_path.glob('step_*')} == {'step_0000001', 'step_0000003'}


def test_find(tmp_path):
    assert checkpoint.pointer(tmp_path, 'latest') is None
    says('no checkpoint in', "(no file 'latest')", '--ckpt=OUT_DIR', call=lambda: checkpoint.load(tmp_path / 'nowhere'))
    save(tmp_path, 1)
    says("(no file 'best')", call=lambda: checkpoint.load(tmp_path, which='best'))
    save(tmp_path, 2, best=True)
    save(tmp_path, 3)
    assert [os.path.basename(checkpoint.find(tmp_path, which)) for which in ('latest', 'best')] == \
        ['step_0000003', 'step_0000002']
    assert checkpoint.find(tmp_path / 'step_0000001', 'best') == tmp_path / 'step_0000001'


# ---- damage: one line that names the file ----

@pytest.mark.parametrize('size', (0, 5, 200, -1))
@pytest.mark.parametrize('file', ('model.safetensors', 'ema.safetensors', 'meta.json'))
def test_truncated_files(tmp_path, file, size):
    save(tmp_path, 1, ema=2)
    path = tmp_path / 'step_0000001' / file
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    says(f'cannot read {path}: ', 'take another checkpoint', call=lambda: checkpoint.load(tmp_path, ema='ema' in file))


def test_missing_files(tmp_path):
    save(tmp_path, 1)
    os.remove(tmp_path / 'step_0000001' / 'model.safetensors')
    says('cannot read', 'model.safetensors', call=lambda: checkpoint.load(tmp_path))
    shutil.rmtree(tmp_path / 'step_0000001')                 # latest names what is not there
    says('cannot read', 'meta.json', call=lambda: checkpoint.load(tmp_path))


def test_a_config_field_that_went(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / 'step_0000001' / 'meta.json'
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {'model_config': meta['model_config'] | {'heat': 3}}))
    says('does not fit nanowm.py', "'heat'", call=lambda: checkpoint.load(tmp_path))


@pytest.mark.parametrize('over, words', [
    (dict(hidden=32), ('has another shape: pos_embed is [1, 4, 16], the model has [1, 4, 32] and')),
    (dict(depth=4), ('lacks blocks.2.adaLN_modulation.1.bias', ' more')),
    (dict(injection='film'), ('lacks blocks.0.film_modulation.1.bias and 3 more',))])
def test_fill_of_another_model(over, words):
    says('there', *words, 'another model or Config',
         call=lambda: checkpoint.fill(build(0, **over), build(1).state_dict(), 'there'))


def test_fill_is_strict_both_ways_and_all_or_nothing():
    model, weights = build(0), build(1).state_dict()
    says('has unknown x: it belongs', call=lambda: checkpoint.fill(model, weights | {'x': torch.ones(1)}, 'there'))
    first, *_ = weights
    says(f'lacks {first}: it belongs', call=lambda: checkpoint.fill(
        model, {key: value for key, value in weights.items() if key != first}, 'there'))
    assert value_of(model) == 0                              # nothing was copied
    checkpoint.fill(model, weights, 'there')
    assert value_of(model) == 1


# ---- lock, hashes ----

def test_lock(tmp_path):
    held = checkpoint.lock(tmp_path / 'new' / 'out')
    says('new/out is in use by another run', call=lambda: checkpoint.lock(tmp_path / 'new' / 'out'))
    held.close()
    checkpoint.lock(tmp_path / 'new' / 'out').close()


def test_hashes(tmp_path, monkeypatch):
    (tmp_path / 'x').write_text('abc')
    assert checkpoint.sha256(tmp_path / 'x') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    if os.path.exists(os.path.join(ROOT, '.git')): assert checkpoint.git_hash().rstrip('+').isalnum()
    monkeypatch.setattr(checkpoint, '__file__', str(tmp_path / 'checkpoint.py'))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert checkpoint.git_hash() == ''                       # no repository there
    monkeypatch.setenv('PATH', str(tmp_path))
    assert checkpoint.git_hash() == ''                       # no git at all
