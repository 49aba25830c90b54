"""
checkpoint.py inside this process: every way to fail while saving, what reading says of damage, pruning, the
optimizer's state by name, weights to start from, the lock.
"""
import json
import os
import pickle
import shutil
import subprocess
from functools import partial

import pytest
import torch
from conftest import ROOT, run

import checkpoint
import nanowm

SMALL = dict(input='video', height=4, width=4, channels=3, action_dim=2, depth=2, hidden=16, heads=2,
             num_frames=2)


def build(value, **over):
    """A NanoWM whose every parameter is `value`."""
    model = nanowm.Model(nanowm.Config(**SMALL | over))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    return model


def save(out_dir, step, ema=None, told={}, **kw):                       # noqa: B006, it is only read
    """A checkpoint of step `step`, full of the number `step`; averages full of `ema`; meta.json as told."""
    model = build(step)
    meta = dict(step=step, model='nanowm', model_config=vars(model.cfg), config={}, data_sha='', **told)
    averaged = None if ema is None else build(ema).state_dict()
    checkpoint.save(str(out_dir), step, model.state_dict(), averaged, {'n': torch.tensor(step)}, meta, **kw)


def value_of(model):
    """The number it is full of; all tensors must agree, or files of two checkpoints were mixed."""
    values = {p.min().item() for p in model.parameters()} | {p.max().item() for p in model.parameters()}
    assert len(values) == 1
    return values.pop()


def says(*words, call):
    with pytest.raises(SystemExit) as stop:
        call()
    text = str(stop.value)
    assert '\n' not in text
    for word in words:
        assert word in text, text


# ---- save and load ----

def test_round_trip(tmp_path):
    save(tmp_path, 3, ema=7)
    for ema, value in (True, 7), (False, 3):
        model, meta = checkpoint.load(tmp_path, ema=ema)
        assert value_of(model) == value and meta['step'] == 3 and not model.training
    save(tmp_path, 4)                                        # without averages: the raw weights
    assert value_of(checkpoint.load(tmp_path)[0]) == 4
    # a step folder may be named itself
    assert value_of(checkpoint.load(tmp_path / 'step_0000003')[0]) == 7
    state = torch.load(tmp_path / 'step_0000003' / 'state.pt', weights_only=True)
    assert state['n'] == 3


def test_views_and_other_dtypes_are_saved_as_they_are(tmp_path):
    weights = {'t': torch.arange(6.).view(2, 3).t(), 'b': torch.full((2,), 0.1, dtype=torch.bfloat16),
               'g': torch.ones(1, requires_grad=True)}
    checkpoint.save(str(tmp_path), 1, weights, None, {}, {})
    back = checkpoint.read(checkpoint.find(tmp_path), 'model.safetensors')
    for key, value in weights.items():
        assert torch.equal(back[key], value) and back[key].dtype == value.dtype


def test_a_step_that_is_trained_again_replaces_the_old_one(tmp_path):
    """A run was killed between the folder and `latest`, and has come back to that step."""
    save(tmp_path, 1)
    save(tmp_path, 2, ema=9)
    checkpoint.write_text(f'{tmp_path}/latest', 'step_0000001')
    save(tmp_path, 2)
    assert value_of(checkpoint.load(tmp_path)[0]) == 2
    assert not (tmp_path / 'step_0000002' / 'ema.safetensors').exists()


def test_a_kill_between_the_two_renames(tmp_path):
    """
    A step that `latest` names was trained again; the old folder has gone aside, the new one is not there yet.
    """
    save(tmp_path, 1)
    save(tmp_path, 2, ema=9)
    os.rename(tmp_path / 'step_0000002', tmp_path / 'tmp.step_0000002.old')
    assert value_of(checkpoint.load(tmp_path)[0]) == 9
    assert checkpoint.steps(tmp_path) == ['step_0000001', 'step_0000002']


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
        if seen == n and kill:
            raise Kill
        if seen == n and name == 'save':
            raise RuntimeError('PytorchStreamWriter failed')
        if seen == n and name != 'rmtree':
            raise OSError(28, 'No space left on device')      # it swallows its own
        return real(*args, **kw)

    while seen >= n:
        out, n, seen = tmp_path / str(n), n + 1, 0
        save(out, 1, best=True)
        with monkeypatch.context() as patched:
            for name, module in CALLS.items():
                patched.setattr(module, name, partial(breaking, name, getattr(module, name)))
            try:
                save(out, 2, ema=3, best=True, keep=1)
            except SystemExit as stop:
                failed += 1
                assert str(stop).startswith(f'could not save {out}/step_0000002: ')
                assert 'make room' in str(stop)
                assert not list(out.glob('tmp.*'))
            except Kill:
                failed += 1
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
    (3, 0, {1, 4, 5, 6}), (1, 0, {1, 6}), (0, 0, {1, 2, 3, 4, 5, 6}), (1, 2, {1, 2, 4, 6}),
    (2, 3, {1, 3, 5, 6})])
def test_prune(tmp_path, keep, keep_every, left):
    """1 is the best: it stays whatever keep says."""
    for step in range(1, 7):
        save(tmp_path, step, best=step == 1, keep=keep, keep_every=keep_every)
    assert {int(p.name[5:]) for p in tmp_path.glob('step_*')} == left
    named = [checkpoint.pointer(tmp_path, which) for which in ('latest', 'best')]
    assert named == ['step_0000006', 'step_0000001']


def test_prune_keeps_what_latest_names(tmp_path):
    """Later folders can be left over from before a kill; the one that latest names is not the newest then."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoint.write_text(f'{tmp_path}/latest', 'step_0000001')
    checkpoint.prune(str(tmp_path), 1, 0)
    assert {p.name for p in tmp_path.glob('step_*')} == {'step_0000001', 'step_0000003'}


def test_prune_leaves_other_folders_alone(tmp_path):
    """A backup that somebody made is not ours; what a kill left behind is."""
    save(tmp_path, 3)
    shutil.copytree(tmp_path / 'step_0000003', tmp_path / 'step_0000003_backup')
    for name in ('tmp.step_0000002', 'tmp.step_0000009.old', 'tmp_step_1', 'step_x'):
        (tmp_path / name).mkdir()
    for step in (4, 5):
        save(tmp_path, step, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        'step_0000003_backup', 'tmp_step_1', 'step_x', 'step_0000005', 'latest'}
    assert checkpoint.steps(tmp_path) == ['step_0000005'] and checkpoint.steps(tmp_path / 'nowhere') == []


def test_find(tmp_path):
    assert checkpoint.pointer(tmp_path, 'latest') is None
    says('no checkpoint in', "(no file 'latest')", '--ckpt=OUT_DIR',
         call=lambda: checkpoint.load(tmp_path / 'nowhere'))
    save(tmp_path, 1)
    says("(no file 'best')", call=lambda: checkpoint.load(tmp_path, which='best'))
    save(tmp_path, 2, best=True)
    save(tmp_path, 3)
    assert [os.path.basename(checkpoint.find(tmp_path, which)) for which in ('latest', 'best')] == \
        ['step_0000003', 'step_0000002']
    assert checkpoint.find(tmp_path / 'step_0000001', 'best') == str(tmp_path / 'step_0000001')


# ---- damage: one line that names the file ----

@pytest.mark.parametrize('size', (0, 5, 200, -1))
@pytest.mark.parametrize('file', ('model.safetensors', 'ema.safetensors', 'meta.json'))
def test_truncated_files(tmp_path, file, size):
    save(tmp_path, 1, ema=2)
    path = tmp_path / 'step_0000001' / file
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    says(f'cannot read {path}: ', 'take another checkpoint',
         call=lambda: checkpoint.load(tmp_path, ema='ema' in file))


def test_missing_files(tmp_path):
    save(tmp_path, 1)
    os.remove(tmp_path / 'step_0000001' / 'model.safetensors')
    says('cannot read', 'model.safetensors', call=lambda: checkpoint.load(tmp_path))
    shutil.rmtree(tmp_path / 'step_0000001')                 # latest names what is not there
    says(f"{tmp_path}/latest names 'step_0000001', which is not there", 'step folders: none',
         call=lambda: checkpoint.load(tmp_path))


@pytest.mark.parametrize('text, words', [
    ('[]', 'it holds a list'), ('null', 'it holds a NoneType'), ('{', 'cannot read'),
    ('\xff\xfe\x00', 'cannot read'), ('{}', 'has no model, model_config, config, step, data_sha'),
    ('{"step": "3"}', 'has no model, model_config, config, step, data_sha')])
def test_a_meta_json_that_train_py_did_not_write(tmp_path, text, words):
    save(tmp_path, 1)
    path = tmp_path / 'step_0000001' / 'meta.json'
    path.write_bytes(text.encode('latin-1'))
    says(str(path), words, 'take another checkpoint', call=lambda: checkpoint.load(tmp_path))


@pytest.mark.parametrize('name', ('out.evil.evil', '../evil', 'os', '', 'evil.py'))
def test_a_checkpoint_cannot_name_code_that_is_then_run(tmp_path, name, monkeypatch):
    """Neither below the working folder nor anywhere on the path, only a model file of this repository."""
    (tmp_path / 'out' / 'evil').mkdir(parents=True)
    for path in ('out/evil/evil.py', 'evil.py'):
        (tmp_path / path).write_text('raise AssertionError("it ran")')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path, 1)
    path = tmp_path / 'step_0000001' / 'meta.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'model': name}))
    says(f'no model {name!r}; files that define one: ', 'nanowm.py', call=lambda: checkpoint.load(tmp_path))


class Evil:
    """Its pickle runs code where it is trusted."""

    def __reduce__(self):
        return os.mkdir, ('it_ran',)


@pytest.mark.parametrize('damage', ('garbage', 'text', 'evil', 'empty', 'list', 'torn'))
def test_a_damaged_state(tmp_path, damage, monkeypatch):
    """One line, and nothing of torch's advice, which is to trust the file."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 1)
    path = tmp_path / 'step_0000001' / 'state.pt'
    whole = path.read_bytes()
    content = {'garbage': os.urandom(500), 'text': b'hello\n', 'evil': pickle.dumps(Evil(), 2), 'empty': b'',
               'list': b'', 'torn': whole[:len(whole) // 2]}[damage]
    path.write_bytes(content)
    if damage == 'list':
        torch.save([1], path)
    with pytest.raises(SystemExit) as stop:
        checkpoint.read(str(path.parent), 'state.pt')
    said = str(stop.value)
    assert said.startswith(f'cannot read {path}: ') and said.endswith('; take another checkpoint of this run')
    assert 'weights_only' not in said and '\n' not in said and not os.path.exists('it_ran')


def test_files_that_are_none(tmp_path):
    (tmp_path / 'file').write_text('x')
    says('is a file; give the OUT_DIR', call=lambda: checkpoint.load(tmp_path / 'file'))
    (tmp_path / 'latest').mkdir()
    says(f'cannot read {tmp_path}/latest: Is a directory', call=lambda: checkpoint.load(tmp_path))
    os.rmdir(tmp_path / 'latest')
    (tmp_path / 'latest').write_text('\n')
    says('no checkpoint in', call=lambda: checkpoint.load(tmp_path))


def test_a_model_file_that_changed_since(tmp_path, capsys):
    """A note, because edits may well be harmless; without the entry, as in older checkpoints, none."""
    for sha, noted in ((checkpoint.sha256(nanowm.__file__), False), ('', False), ('0' * 64, True)):
        save(tmp_path, 1, told=dict(model_sha=sha))
        checkpoint.load(tmp_path)
        note = f'note: nanowm.py has changed since {tmp_path}/step_0000001 was saved\n'
        assert capsys.readouterr().err == (note if noted else '')
    save(tmp_path, 1)
    checkpoint.load(tmp_path)
    assert capsys.readouterr().err == ''


def test_keys_of_sampling_can_be_replaced(tmp_path):
    save(tmp_path, 1)
    model, meta = checkpoint.load(tmp_path, sample_steps=7, eta=0.5)
    assert (model.cfg.sample_steps, model.cfg.eta) == (7, 0.5)
    assert meta['model_config']['sample_steps'] == nanowm.Config().sample_steps
    with pytest.raises(AssertionError, match='hidden'):
        checkpoint.load(tmp_path, hidden=32)


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
    more = weights | {'x': torch.ones(1)}
    says('has unknown x: it belongs', call=lambda: checkpoint.fill(model, more, 'there'))
    first, *_ = weights
    says(f'lacks {first}: it belongs', call=lambda: checkpoint.fill(
        model, {key: value for key, value in weights.items() if key != first}, 'there'))
    assert value_of(model) == 0                              # nothing was copied
    checkpoint.fill(model, weights, 'there')
    assert value_of(model) == 1


# ---- the optimizer's state, by name ----

class Two(torch.nn.Module):
    """Two parameters that differ in name only, or a third one; in the order of their names as given."""

    def __init__(self, *names, size=3):
        super().__init__()
        for name in names:
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(size)))


def trained(*names, steps=2):
    """The model and an AdamW that has seen a gradient of 1 for `a`, of 2 for `b`, ..."""
    model = Two(*names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        for name, p in model.named_parameters():
            p.grad = torch.full_like(p, 1.0 + 'abc'.index(name))
        optimizer.step()
    return model, optimizer


def moments(model, optimizer):
    return {name: optimizer.state[p]['exp_avg'][0].item() for name, p in model.named_parameters()}


def state_of(model, optimizer):
    return optimizer.state_dict() | {'params': checkpoint.named_parameters(model, optimizer)}


def test_moments_follow_the_names(tmp_path):
    """Torch goes by position: were two lines of the model file swapped, b would get the moments of a."""
    saved = trained('a', 'b')
    torch.save(state_of(*saved), tmp_path / 'state.pt')
    state = checkpoint.read(str(tmp_path), 'state.pt')
    swapped = Two('b', 'a')
    optimizer = torch.optim.AdamW(swapped.parameters(), lr=0.5)
    checkpoint.load_optimizer(swapped, optimizer, state, 'there')
    assert moments(swapped, optimizer) == moments(*saved) and len(set(moments(*saved).values())) == 2
    assert optimizer.param_groups[0]['lr'] == 0.5            # what is set now


@pytest.mark.parametrize('names, size, first', [(('a', 'c'), 3, 'c'), (('a', 'b'), 4, 'a'), (('a',), 3, 'b'),
                                                (('a', 'b', 'c'), 3, 'c')])
def test_moments_of_another_model(names, size, first):
    model = Two(*names, size=size)
    optimizer = torch.optim.AdamW(model.parameters())
    says(f'there/state.pt and the model differ in {first}; ', '--init_from',
         call=lambda: checkpoint.load_optimizer(model, optimizer, state_of(*trained('a', 'b')), 'there'))


@pytest.mark.parametrize('damage', [
    lambda state: {}, lambda state: {'params': state['params']}, lambda state: state | {'params': 3},
    lambda state: state | {'state': []}, lambda state: state | {'params': [['a']]},
    lambda state: state | {'state': {0: 3, 1: 4}}, lambda state: state | {'state': {0: {'step': None}}},
    lambda state: {key: value for key, value in state.items() if key != 'params'}])
def test_a_state_that_is_none(damage):
    model, optimizer = trained('a', 'b')
    state = damage(state_of(model, optimizer))
    says('there/state.pt is damaged (', 'take another checkpoint of this run',
         call=lambda: checkpoint.load_optimizer(model, optimizer, state, 'there'))


# ---- weights to start from ----

def test_start_from(tmp_path):
    """Averaged weights, if there are any; buffers in `keep` stay as the new data have filled them."""
    save(tmp_path / 'raw', 3)
    save(tmp_path / 'averaged', 3, ema=7)
    for name, value in ('raw', 3), ('averaged', 7):
        model = build(0)
        model.action_mean.fill_(5)
        checkpoint.start_from(model, nanowm, str(tmp_path / name), keep={'action_mean'})
        assert value_of(model) == value and model.action_mean.tolist() == [5, 5]
        checkpoint.start_from(model, nanowm, str(tmp_path / name), keep=())
        assert model.action_mean.tolist() == [0, 0]


def test_start_from_what_does_not_fit(tmp_path):
    save(tmp_path, 3)
    says(f'{tmp_path}/step_0000003/model.safetensors has another shape: ', 'it belongs to another model or',
         call=lambda: checkpoint.start_from(build(0, hidden=32), nanowm, str(tmp_path), keep=()))
    path = tmp_path / 'step_0000003' / 'meta.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'model': 'arx5_gpt'}))
    says(f'init_from = {tmp_path}: it holds a arx5_gpt, not a nanowm',
         call=lambda: checkpoint.start_from(build(0), nanowm, str(tmp_path), keep=()))
    says('no checkpoint in',
         call=lambda: checkpoint.start_from(build(0), nanowm, str(tmp_path / 'no'), keep=()))


# ---- lock, permissions, devices, hashes ----

def test_lock(tmp_path):
    held = checkpoint.lock(tmp_path / 'new' / 'out')
    says('new/out is in use by another run', call=lambda: checkpoint.lock(tmp_path / 'new' / 'out'))
    held.close()
    checkpoint.lock(tmp_path / 'new' / 'out').close()


def test_lock_of_a_place_that_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('x')
    says("out_dir = '': name a folder", call=lambda: checkpoint.lock(''))
    says(f'out_dir = {tmp_path}/file: File exists', call=lambda: checkpoint.lock(tmp_path / 'file'))
    below = tmp_path / 'file' / 'x'
    says(f'out_dir = {below}: Not a directory', call=lambda: checkpoint.lock(below))
    (tmp_path / 'out' / 'lock').mkdir(parents=True)
    says('Is a directory', call=lambda: checkpoint.lock(tmp_path / 'out'))


def test_others_may_read_what_the_mask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        save(tmp_path, 1, ema=2)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / 'step_0000001').iterdir()}
    assert set(modes.values()) == {0o644} and len(modes) == 4


@pytest.mark.parametrize('make', [lambda path: path.symlink_to('elsewhere'), os.mkfifo, os.mkdir])
def test_a_text_file_replaces_no_link_no_device_no_folder(tmp_path, make):
    make(tmp_path / 'x')
    says(f'{tmp_path}/x is there and is no regular file',
         call=lambda: checkpoint.write_text(f'{tmp_path}/x', 'a'))
    assert os.listdir(tmp_path) == ['x'] and not (tmp_path / 'x').is_file()


@pytest.mark.parametrize('device', ('cuda:99', 'mps', '', 'gpu', '0', 'meta', 'cuda:x', 'cpu:x'))
def test_devices_that_are_not_there(device):
    says(f'device = {device!r}: ', '--device=cpu works everywhere',
         call=lambda: checkpoint.pick_device(device))


def test_hashes(tmp_path, monkeypatch):
    (tmp_path / 'x').write_text('abc')
    sha = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert checkpoint.sha256(tmp_path / 'x') == sha
    if os.path.exists(os.path.join(ROOT, '.git')):
        assert checkpoint.git_hash().rstrip('+').isalnum()
    monkeypatch.setattr(checkpoint, '__file__', str(tmp_path / 'checkpoint.py'))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert checkpoint.git_hash() == ''                       # no repository there
    monkeypatch.setenv('PATH', str(tmp_path))
    assert checkpoint.git_hash() == ''                       # no git at all


def test_git_hash_knows_edits_and_model_files_that_git_does_not(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', *args],
                       check=True, capture_output=True)
    monkeypatch.setattr(checkpoint, '__file__', str(tmp_path / 'checkpoint.py'))
    for name in ('checkpoint.py', 'known.py'):
        (tmp_path / name).write_text('x = 1\n')
    git('init')
    git('add', '.')
    git('commit', '-m', 'first')
    (tmp_path / 'new.py').write_text('x = 1\n')
    clean = checkpoint.git_hash(str(tmp_path / 'known.py'))
    assert clean.isalnum() and checkpoint.git_hash() == clean                # new.py is not what was trained
    assert checkpoint.git_hash(str(tmp_path / 'new.py')) == clean + '+'
    (tmp_path / 'known.py').write_text('x = 2\n')
    assert checkpoint.git_hash() == checkpoint.git_hash(str(tmp_path / 'known.py')) == clean + '+'


ONCE = '''
import dataclasses, json, sys, torch
import checkpoint, contract, smolvla
def peak():
    with open("/proc/self/status") as f: return int(f.read().partition("VmHWM:")[2].split()[0]) * 1024
def fresh():
    with open("/proc/self/clear_refs", "w") as f: f.write("5")       # the peak of what comes from now on
    return peak()
folder, what = sys.argv[1:]
cfg = smolvla.Config(**smolvla.SMALL | {"vlm_model_name": "256x512x4x2x64", "vocab_size": 100_000})
if what == "write":
    meta = dict(step=1, model="smolvla", model_config=dataclasses.asdict(cfg), config={}, data_sha="")
    checkpoint.save(folder, 1, smolvla.Model(cfg).state_dict(), None, {}, meta)
    sys.exit()
small = smolvla.Config(**smolvla.SMALL)
smolvla.Model(small).act(smolvla.example(small, 2))      # torch itself takes memory for its first product,
contract.build(smolvla, small, empty=True)               # and for its first model without any
before = fresh()
if what == "load":
    model, _ = checkpoint.load(folder)
else:
    model = contract.build(smolvla, cfg, empty=True)
    checkpoint.start_from(model, smolvla, folder, ())
weights = [*model.parameters()]
assert not any(p.is_meta for p in weights)
assert all(p.detach().sum() > -1e9 for p in weights)     # every byte is asked for
model.act(smolvla.example(cfg, 2))
print(json.dumps([peak() - before, sum(p.nbytes for p in weights)]))
'''


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='wants Linux, /proc')
def test_a_large_file_is_in_memory_once(tmp_path):
    """
    100 MB of weights: loading a run, and starting from one, takes at most 1.3 of them, where a model that is
    drawn first and filled then takes 2.
    """
    run('-c', ONCE, tmp_path, 'write', PYTHONPATH=ROOT)
    for what in 'load', 'start':
        peak, weights = json.loads(run('-c', ONCE, tmp_path, what, PYTHONPATH=ROOT)[0])
        assert weights > 1e8 and 0.9 < peak / weights <= 1.3, (what, peak / weights)
