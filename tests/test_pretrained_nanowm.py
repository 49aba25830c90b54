"""
Published NanoWM checkpoints. The files are written here, in both layouts, as OmegaConf.save and Lightning
would; with the weights of the golden files they give the outputs of the authors' code.
"""
import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line, script
from golden import load as load_golden
from safetensors.torch import save_file
from test_fetch import cache, linked, server  # noqa: F401
from test_math_nanowm import GOLDEN

import checkpoint
import nanowm_published
import vae
from data.writer import write
from nanowm import INJECTIONS, Config, Model

SMALL = dict(height=8, width=8, channels=4, action_dim=2, frame_skip=2, num_frames=4, depth=4, hidden=32,
             heads=2, sample_steps=3, sampling='pyramid')
MEAN, STD, SCALE = [0.5, -0.25], [0.2, 0.4], 100.0       # the authors' numbers: of actions divided by SCALE
THEIRS = {'eps': 'epsilon', 'cosine': 'squaredcos_cap_v2'}


def source(**kw):
    """A model whose output depends on everything: no weight is zero."""
    torch.manual_seed(0)
    model = Model(Config(**SMALL | kw)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def weights_of(model):
    """What a published file holds: no statistics."""
    return {key: x for key, x in model.state_dict().items() if key not in ('action_mean', 'action_std')}


def settings(cfg):
    """The whole of a config.yaml: nested, with all that its reader has no use for. The leaves are texts."""
    def said(value):
        return str(value).lower() if isinstance(value, bool) else THEIRS.get(value, str(value))
    diffusion = {
        'pred_name': said(cfg.pred), 'noise_schedule': said(cfg.schedule),
        'zero_terminal_snr': said(cfg.ztsnr), 'snr_gamma': said(cfg.snr_gamma),
        'diffusion_steps': said(cfg.timesteps), 'timestep_sampling': said(cfg.t_sampling),
        'logit_normal_mean': '0.0', 'history_stabilization_level': said(cfg.history_level)}
    training = {
        'lr': '1.0e-05', 'max_steps': '-1', 'batch_size': '${oc.env:BATCH,8}',
        'checkpointing': {'filename': "'{epoch}-{step}'", 'every_n_train_steps': '1000'}}
    model = {
        'name': 'NanoWM-S/2', 'causal': 'true', 'use_action': 'true', 'extras': '1', 'eta': '0.0',
        'num_frames': said(cfg.num_frames), 'latent_size': said(cfg.height),
        'latent_channels': said(cfg.channels), 'n_context_frames': said(cfg.n_context),
        'action_injection': {'type': said(cfg.injection)}, 'scheduling_mode': said(cfg.sampling),
        'num_sampling_steps': said(cfg.sample_steps)}
    dataset = {
        'name': 'pusht', 'frame_interval': said(cfg.frame_skip),
        'spec': {'action_dim': said(cfg.action_dim), 'image_size': '${image_size}'},
        'loader': {'normalize_action': 'true', 'action_scale': '100.0', 'keys': ['rel_actions'],
                   'with': 'null'}}
    return {
        'experiment': {
            'name': 'dino_wm_pusht', 'tasks': ['training', 'validation'], 'resume_from_checkpoint': 'null',
            'diffusion': diffusion, 'training': training},
        'model': model, 'dataset': dataset,
        'latent_codec': {'kind': 'sd_vae', 'path': 'stabilityai/sd-vae-ft-mse', 'scale': '0.18215'},
        'callbacks': ['_target_: early', "name: 'a: b'"], 'image_size': '256', 'note': '""'}


def change(tree, changes):
    """{'a.b': text} put in place; None takes away."""
    tree = copy.deepcopy(tree)
    for key, text in changes.items():
        *above, last = key.split('.')
        branch = tree
        for name in above:
            branch = branch[name]
        branch.pop(last, None)
        if text is not None:
            branch[last] = text
    return tree


def lines(tree, indent=''):
    """As OmegaConf.save writes it: two spaces, lists at the indentation of their key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from (f'{indent}{key}:', *lines(value, indent + '  '))
        elif isinstance(value, list):
            yield from (f'{indent}{key}:', *(f'{indent}- {entry}' for entry in value))
        else:
            yield f'{indent}{key}: {value}'


def publish(folder, model, layout='folder', **changes):
    """-> what to give from_pretrained. changes: 'a.b' of config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    text = '\n'.join(lines(change(settings(model.cfg), changes))) + '\n'
    (folder / 'config.yaml').write_text(text)
    if layout in ('folder', 'safetensors'):
        save_file({key: x.contiguous() for key, x in weights_of(model).items()}, folder / 'model.safetensors')
        return str(folder if layout == 'folder' else folder / 'model.safetensors')
    place = folder if layout == 'ckpt beside' else folder / 'checkpoints' / 'latest'
    place.mkdir(parents=True, exist_ok=True)
    prefix = 'model._orig_mod.' if layout == 'ckpt compiled' else 'model.'
    state = {prefix + key: x for key, x in weights_of(model).items()} | {'vae.encoder.weight': torch.ones(3)}
    torch.save({'state_dict': state, 'global_step': 1234, 'epoch': 3, 'pytorch-lightning_version': '1.9.5',
                'optimizer_states': [{'state': {}}], 'hyper_parameters': {'lr': 1e-4}}, place / 'latest.ckpt')
    return str(place / 'latest.ckpt')


def same(ours, theirs):
    """Largest difference of their outputs; the raw network's, so that statistics play no part."""
    torch.manual_seed(1)
    cfg = theirs.cfg
    x, action = torch.randn(2, cfg.num_frames, cfg.channels, cfg.height, cfg.width), torch.randn(2, 4, 4)
    t = torch.randint(1000, (2, cfg.num_frames))
    with torch.no_grad():
        a, b = ours.net(x, t, action), theirs.net(x, t, action)
    assert b.abs().max() > 0.1
    return (a - b).abs().max().item()


def says(*words, call):
    with pytest.raises(SystemExit) as stop:
        call()
    said = str(stop.value)
    assert '\n' not in said and 'weights_only' not in said
    for word in words:
        assert word in said, said


@pytest.fixture(scope='module')
def small():
    return source()


@pytest.fixture(scope='module')
def latents(tmp_path_factory):
    """
    A data folder `latents` with what SMALL reads, encoded by the codec beside it; its actions have a mean and
    a std of their own.
    """
    root = tmp_path_factory.mktemp('data')
    torch.manual_seed(0)
    save_file(vae.AutoencoderTiny(width=8).state_dict(), root / 'codec.safetensors')

    def episode(i):
        rng = np.random.default_rng(i)
        action = rng.normal([50, -20], [30, 10], (16, 2)).astype(np.float32)
        action[-1] = 0
        return {'video': rng.integers(0, 256, (16, 64, 64, 3), np.uint8), 'action': action}
    info = {'source': 'tests', 'revision': '1', 'fps': 10, 'units': {}}
    write(root / 'latents', episode, 8, seed=1, val='0.25', workers=1, command='tests', info=info,
          vae=str(root / 'codec.safetensors'))
    return root


# ---- weights ----

LAYOUTS = 'folder', 'safetensors', 'ckpt', 'ckpt compiled', 'ckpt beside'


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('injection', INJECTIONS)
def test_outputs_are_those_of_the_weights(tmp_path, injection, layout):
    theirs = source(injection=injection)
    ours = Model.from_pretrained(publish(tmp_path / 'x', theirs, layout), stats=None)
    assert same(ours, theirs) <= 1e-6 and not ours.training
    assert asdict(ours.cfg) == asdict(theirs.cfg)


@pytest.mark.parametrize('path', GOLDEN or [None], ids=lambda p: os.path.basename(p) if p else 'none')
def test_outputs_of_the_authors_code(tmp_path, path):
    if path is None:
        pytest.skip('no golden files beside the repository (../shared/reference)')
    theirs, tensors, _ = load_golden(path)
    ours = Model.from_pretrained(publish(tmp_path, theirs), stats=None)
    assert asdict(ours.cfg) == asdict(theirs.cfg)
    with torch.no_grad():
        out = ours.net(tensors['x'], tensors['t'], tensors['action'])
        loss, _ = ours.loss(tensors['x'], tensors['action'], tensors['t'], tensors['noise'])
    assert (out - tensors['forward']).abs().max() <= 2e-5 * max(1, tensors['forward'].abs().max())
    assert (loss - tensors['loss']).abs().max() <= 1e-5


@pytest.mark.parametrize('kw', (
    dict(pred='eps', schedule='linear', ztsnr=False, snr_gamma=0.0), dict(pred='flow', t_sampling='uniform'),
    dict(pred='x', timesteps=50, n_context=2, history_level=0.1, sampling='full_sequence', sample_steps=7),
    dict(num_frames=3, frame_skip=1, patch=4, channels=3, heads=4)))
def test_settings_are_read(tmp_path, kw):
    theirs = source(**kw)
    ours = Model.from_pretrained(publish(tmp_path, theirs), stats=None)
    assert asdict(ours.cfg) == asdict(theirs.cfg)


@pytest.mark.parametrize('changes', (
    {'model.latent_channels': None}, {'latent_codec': None}, {'latent_codec.kind': 'null'},
    # what the tensors tell need not stand there; ${...} names another key
    {'model.num_frames': None, 'model.latent_size': '${eval:2 * 4}'}, {'model.num_frames': '${my.frames}'},
    {'my': {'frames': '${model.num_frames}', 'kind': '${my.word}', 'word': 'v'},
     'experiment.diffusion.pred_name': '${my.kind}'},
    {'model.causal': "'true'", 'dataset.spec.action_dim': '2  # two joysticks'}))
def test_what_need_not_be_there(tmp_path, small, changes):
    assert same(Model.from_pretrained(publish(tmp_path, small, **changes), stats=None), small) <= 1e-6


def test_an_injection_with_weights_of_its_own_need_not_be_named(tmp_path):
    theirs = source(injection='film')
    src = publish(tmp_path, theirs, **{'model.action_injection': None})
    assert same(Model.from_pretrained(src, stats=None), theirs) <= 1e-6


DIFFUSION = 'experiment.diffusion'


@pytest.mark.parametrize('changes, words', [
    # missing, or of no use
    ({f'{DIFFUSION}.pred_name': None}, f'config.yaml gives no {DIFFUSION}.pred_name'),
    ({f'{DIFFUSION}.snr_gamma': 'null'}, f'config.yaml gives no {DIFFUSION}.snr_gamma'),
    ({'model.n_context_frames': ''}, 'config.yaml gives no model.n_context_frames'),
    ({'model.causal': None}, 'config.yaml gives no model.causal'),
    ({'model.action_injection': None}, 'config.yaml gives no model.action_injection.type'),
    ({f'{DIFFUSION}.pred_name': '${pred}'}, f'{DIFFUSION}.pred_name = ${{pred}}, which stands for nothing'),
    ({'model.num_sampling_steps': '${oc.env:STEPS,9}'}, '${oc.env:STEPS,9}, which stands for nothing'),
    ({'dataset.frame_interval': '${a}', 'a': '${b}', 'b': '${a}'}, 'frame_interval = ${a}, which stands for'),
    # unknown
    ({f'{DIFFUSION}.pred_name': 'score'}, "pred = 'score': choose one of v, x, eps, flow"),
    ({f'{DIFFUSION}.noise_schedule': 'sigmoid'}, "schedule = 'sigmoid': choose one of"),
    ({f'{DIFFUSION}.timestep_sampling': 'cosmap'}, "t_sampling = 'cosmap': choose one of"),
    ({'model.action_injection.type': 'concat'}, "injection = 'concat': choose one of"),
    ({'model.scheduling_mode': 'autoregressive'}, "sampling = 'autoregressive': choose one of"),
    ({f'{DIFFUSION}.zero_terminal_snr': 'perhaps'}, 'zero_terminal_snr = perhaps; want a bool'),
    ({f'{DIFFUSION}.diffusion_steps': '1e3'}, 'diffusion_steps = 1e3; want a int'),
    ({f'{DIFFUSION}.snr_gamma': '.nan'}, 'snr_gamma = .nan; want a float'),
    ({f'{DIFFUSION}.snr_gamma': 'nan'}, 'snr_gamma = nan: must lie in'),
    # other models
    ({'model.causal': 'false'}, 'model.causal = false, but nanowm.py has only true'),
    ({'model.use_action': 'false'}, 'model.use_action = false, but'),
    ({'model.extras': '2'}, 'model.extras = 2, but nanowm.py has only 1'),
    ({'latent_codec.kind': 'webdino'}, 'latent_codec.kind = webdino, but nanowm.py has only sd_vae'),
    # contradictions
    ({'model.num_frames': '16'}, 'model.num_frames = 16, but the weights are of 4'),
    ({'model.latent_size': '32'}, 'model.latent_size = 32, but the weights are of 8'),
    ({'model.latent_channels': '16'}, 'model.latent_channels = 16, but the weights are of 4'),
    ({'model.action_injection.type': 'film'}, 'lacks blocks.0.film_modulation.1.bias and 7 more'),
    ({'dataset.spec.action_dim': '7'}, '2 x 7, but the weights take 4 numbers for an action'),
    ({'dataset.frame_interval': '5'}, '5 x 2, but the weights take 4 numbers for an action')])
def test_settings_that_will_not_do(tmp_path, small, changes, words):
    src = publish(tmp_path, small, **changes)
    says(src, words, call=lambda: Model.from_pretrained(src, stats=None))


def test_weights_and_name_of_the_injection_that_differ(tmp_path):
    src = publish(tmp_path, source(injection='film'), **{'model.action_injection.type': 'adaln'})
    says('model.action_injection.type = adaln, but the weights are of film',
         call=lambda: Model.from_pretrained(src, stats=None))


def test_channels_that_an_old_file_does_not_name_are_four(tmp_path):
    src = publish(tmp_path, source(channels=3), **{'model.latent_channels': None})
    says('model.latent_channels = 4, but the weights are of 3',
         call=lambda: Model.from_pretrained(src, stats=None))


@pytest.mark.parametrize('key, value, words', [
    ('pos_embed', None, 'no weights of a NanoWM: pos_embed is missing'),
    ('x_embedder.proj.weight', torch.ones(3), 'x_embedder.proj.weight is missing or has not 4 axes'),
    ('blocks.0.attn.q_norm.weight', torch.ones(0), 'q_norm.weight is missing or has not 1 axes'),
    ('pos_embed', torch.ones(1, 15, 32), 'pos_embed has 15 places, which fill no square'),
    ('blocks.1.attn.proj.bias', None, 'lacks blocks.1.attn.proj.bias: it belongs to another model'),
    ('blocks.1.attn.proj.bias', torch.ones(5), 'has another shape: blocks.1.attn.proj.bias is [5]'),
    ('blocks.4.attn.proj.bias', torch.ones(5), 'depth = 5: blocks come in space/time pairs'),
    ('y_embedder.weight', torch.ones(5), 'has unknown y_embedder.weight')])
def test_weights_that_will_not_do(tmp_path, small, key, value, words):
    src = publish(tmp_path, small)
    weights = {name: x for name, x in (weights_of(small) | {key: value}).items() if x is not None}
    save_file(weights, tmp_path / 'model.safetensors')
    says(src, words, call=lambda: Model.from_pretrained(src, stats=None))


# ---- files ----

class Evil:
    """Its pickle runs code where it is trusted."""

    def __reduce__(self):
        return os.mkdir, ('it_ran',)


@pytest.mark.parametrize('damage', ('truncated', 'empty', 'evil', 'list', 'no weights', 'no step'))
def test_damaged_files(tmp_path, small, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    src = publish(tmp_path / 'run', small, 'folder' if damage in ('truncated', 'empty') else 'ckpt')
    file = f'{src}/model.safetensors' if os.path.isdir(src) else src
    words = [f'cannot read {file}: ', '; fetch or copy it again']
    if damage in ('truncated', 'empty'):
        os.truncate(file, os.path.getsize(file) // 2 if damage == 'truncated' else 0)
    elif damage == 'evil':
        with open(file, 'wb') as f:
            pickle.dump({'state_dict': Evil()}, f, 2)
    else:
        content = {'list': [1], 'no weights': {'global_step': 3}, 'no step': {'state_dict': {}}}[damage]
        torch.save(content, file)
        words = words if damage == 'list' else [f'{file} has no state_dict or no global_step']
    says(*words, call=lambda: Model.from_pretrained(src, stats=None))
    assert not os.path.exists('it_ran')


def test_a_lightning_file_of_another_model(tmp_path, small):
    src = publish(tmp_path, small, 'ckpt')
    torch.save({'state_dict': {'net.w': torch.ones(1), 'model.n': 3}, 'global_step': 3}, src)
    says(src, 'no weights of a NanoWM: ', call=lambda: Model.from_pretrained(src, stats=None))


@pytest.mark.parametrize('layout', ('folder', 'safetensors', 'ckpt'))
def test_without_config_yaml(tmp_path, small, layout):
    src = publish(tmp_path, small, layout)
    os.remove(tmp_path / 'config.yaml')
    says(f'no {tmp_path}/config.yaml', 'it belongs beside the weights',
         call=lambda: Model.from_pretrained(src, stats=None))
    (tmp_path / 'config.yaml').write_bytes(b'\xff\xfe\x00')
    says(f'cannot read {tmp_path}/config.yaml: ', call=lambda: Model.from_pretrained(src, stats=None))


def test_places_that_hold_no_checkpoint(tmp_path):
    (tmp_path / 'notes.txt').write_text('x')
    says('notes.txt is a file, but none of weights',
         call=lambda: Model.from_pretrained(tmp_path / 'notes.txt'))
    for src in (tmp_path, tmp_path / 'nowhere', './nowhere', '../nowhere'):
        says(f'no checkpoint in {str(src)!r}; want ', call=lambda src=src: Model.from_pretrained(src))


def test_reader_of_settings(tmp_path, small):
    """Equal to PyYAML in all that it reads, which is all but lists."""
    yaml = pytest.importorskip('yaml')
    publish(tmp_path, small, 'folder', **{'model.empty': '{}', 'model.quoted': "'a # b'", 'x-y': '3 # three'})
    found = nanowm_published.read_yaml(tmp_path / 'config.yaml')
    with open(tmp_path / 'config.yaml') as f:
        tree = yaml.load(f, yaml.BaseLoader)             # its scalars stay texts

    def leaves(tree, above=''):
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f'{above}{key}.')
            elif isinstance(value, str) and value != 'null':
                yield f'{above}{key}', value
    expected = dict(leaves(tree)) | {'model.empty': '{}'}
    assert found == expected and len(found) > 30


def test_reader_of_settings_without_a_parser(tmp_path):
    (tmp_path / 'c').write_text("# top\na: 1\nb:\n  c: 'x: y'\n  list:\n  - z: 1\n    c: 2\n  d:\n"
                                "    e: null\n  f: http://g\ng: ''\n'h i': 2.0\n---\nnonsense\n")
    assert nanowm_published.read_yaml(tmp_path / 'c') == {
        'a': '1', 'b.c': 'x: y', 'b.list.c': '2', 'b.f': 'http://g', 'g': '', 'h i': '2.0'}


# ---- a hub ----

@pytest.fixture
def hub(server, monkeypatch, tmp_path, small):           # noqa: F811
    """A small NanoWM as the repository me/it."""
    monkeypatch.setenv('NANOWORLD_HUB', server.url)
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / 'made', small)
    for file in ('config.yaml', 'model.safetensors'):
        body = (tmp_path / 'made' / file).read_bytes()
        server.files[f'/blobs/{file}'] = body
        server.redirects[f'/me/it/resolve/main/{file}'] = f'/blobs/{file}', linked(body)
    return server


def test_a_repository_on_a_hub(hub, cache, small):       # noqa: F811
    assert same(Model.from_pretrained('me/it', stats=None), small) <= 1e-6
    asked = len(hub.seen)
    assert same(Model.from_pretrained('me/it', stats=None), small) <= 1e-6
    assert len(hub.seen) == asked == 4
    assert sorted(os.listdir(cache / 'me' / 'it')) == ['config.yaml', 'model.safetensors']


def test_a_folder_of_that_name_comes_first(hub, tmp_path):
    theirs = source(injection='film')
    publish(tmp_path / 'me' / 'it', theirs)
    assert Model.from_pretrained('me/it', stats=None).cfg.injection == 'film' and hub.seen == []


def test_no_such_repository(hub, cache):                 # noqa: F811
    says('no folder me/that here, and as a repository: cannot fetch ', '/me/that/resolve/main/config.yaml',
         f'put the file at {cache}/me/that/config.yaml by hand',
         call=lambda: Model.from_pretrained('me/that'))
    hub.files['/blobs/model.safetensors'] += b'x'
    says('cannot fetch ', 'bytes, not ', call=lambda: Model.from_pretrained('me/it'))
    assert not os.path.exists(cache / 'me' / 'it' / 'model.safetensors')


# ---- statistics of actions ----

def theirs_pt(path, **more):
    torch.save({'mean': torch.tensor(MEAN), 'std': torch.tensor(STD)} | more, path)
    return str(path)


def test_their_statistics_are_of_divided_actions(tmp_path, small):
    raw = torch.tensor([[[120., 30.], [-40., 8.], [0., 0.], [5., 6.]]])      # (1, 4, 2) as recorded
    ours = Model.from_pretrained(publish(tmp_path, small), theirs_pt(tmp_path / 'a.pt'))
    wanted = (raw / SCALE - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(ours.fold_action(raw), wanted.reshape(1, 2, 4), rtol=1e-6, atol=1e-6)
    src = publish(tmp_path, small, **{'dataset.loader.action_scale': None})             # then by nothing
    ours = Model.from_pretrained(src, tmp_path / 'a.pt')
    assert ours.action_mean.tolist() == pytest.approx(MEAN) and ours.action_std.tolist() == pytest.approx(STD)


@pytest.mark.parametrize('file', ('', 'meta.json'))
def test_our_statistics_are_of_actions_as_recorded(tmp_path, small, latents, file):
    """So what they were divided by plays no part."""
    with open(latents / 'latents' / 'meta.json') as f:
        stats = json.load(f)['stats']['action']
    ours = Model.from_pretrained(publish(tmp_path, small), latents / 'latents' / file)
    assert ours.action_mean.tolist() == pytest.approx(stats['mean'], rel=1e-6)
    assert ours.action_std.tolist() == pytest.approx(stats['std'], rel=1e-6)


@pytest.mark.parametrize('stats', ('', 'a.pt'))
def test_actions_that_were_not_normalised(tmp_path, small, stats, capsys):
    """They were divided all the same. Statistics that are given are not asked, and that is said."""
    src = publish(tmp_path, small, **{'dataset.loader.normalize_action': 'false'})
    ours = Model.from_pretrained(src, stats)
    assert ours.action_mean.tolist() == [0, 0] and ours.action_std.tolist() == [100, 100]
    note = 'note: trained on actions as recorded, so a.pt is not asked\n'
    assert capsys.readouterr().err == (note if stats else '')


def test_statistics_that_will_not_do(tmp_path, small, latents):
    src = publish(tmp_path, small)

    def given(*words, stats):
        says(*words, call=lambda: Model.from_pretrained(src, str(stats)))
    given(src, 'holds no statistics', 'give stats: a data folder of ours, or', stats='')
    given(f'{tmp_path}/no/meta.json not found', stats=tmp_path / 'no')
    given('cannot read', 'a.pt', stats=tmp_path / 'a.pt')
    for more, words in (({'mean': torch.ones(3)}, '2 numbers'), ({'mean': 3.0}, '2 numbers'),
                        ({'mean': 'x'}, 'no mean and std'), ({'std': torch.tensor([1., 0.])}, 'std above 0'),
                        ({'std': torch.tensor([1., float('nan')])}, '2 numbers')):
        given(src, 'a.pt', words, stats=theirs_pt(tmp_path / 'a.pt', **more))
    torch.save({'mean': Evil()}, tmp_path / 'evil.pt')
    given('cannot read', 'evil.pt', stats=tmp_path / 'evil.pt')
    assert not os.path.exists('it_ran')
    for changes, words in (({'normalize_action': None}, 'gives no dataset.loader.normalize_action'),
                           ({'action_scale': 'x'}, 'dataset.loader.action_scale = x; want a float'),
                           ({'action_scale': '0'}, 'std above 0')):
        publish(tmp_path, small, **{f'dataset.loader.{key}': value for key, value in changes.items()})
        given(src, words, stats=theirs_pt(tmp_path / 'a.pt'))


def test_keys_of_sampling(tmp_path, small):
    """Given, they need not be in config.yaml; no others can be given."""
    src = publish(tmp_path, small, **{'model.num_sampling_steps': None})
    cfg = Model.from_pretrained(src, None, sample_steps=9, eta=0.5).cfg
    assert (cfg.sample_steps, cfg.eta, cfg.sampling) == (9, 0.5, 'pyramid')
    with pytest.raises(AssertionError, match='only .* can change'):
        Model.from_pretrained(src, None, hidden=64)


# ---- a run of ours ----

def imported(tmp_path, latents, src, *flags, code=0):
    return script('nanowm.py', 'import', src, tmp_path / 'out', 'latents', f'--data_dir={latents}', *flags,
                  code=code)


@pytest.mark.parametrize('layout, step', (('folder', 0), ('ckpt compiled', 1234)))
def test_import(tmp_path, small, latents, layout, step):
    said, _ = imported(tmp_path, latents, publish(tmp_path / 'x', small, layout))
    count = sum(p.numel() for p in small.parameters())
    assert said == f'{tmp_path}/out/{checkpoint.step_name(step)}: {count:,} parameters, step {step}\n'
    ours, meta = checkpoint.load(tmp_path / 'out')
    straight = Model.from_pretrained(tmp_path / 'out')       # takes ours, too
    again = Model.from_pretrained(tmp_path / 'out', sample_steps=2)
    assert same(ours, small) <= 1e-6 and same(straight, small) <= 1e-6 and again.cfg.sample_steps == 2
    assert asdict(ours.cfg) == asdict(small.cfg) and meta['step'] == step
    assert meta['config']['dataset'] == 'latents' and meta['params'] == count
    assert ours.action_std.tolist() == pytest.approx([30, 10], rel=0.2)
    out, errors = script('eval.py', f'--ckpt={tmp_path}/out', '--device=cpu', '--n_clips=2',
                         f'--vae={latents}/codec.safetensors')
    judged = json.loads(out)
    assert judged['step'] == step and np.isfinite([judged['psnr'], judged['psnr_ceiling']]).all()
    assert 'other data' not in errors and 'has changed' not in errors


def test_import_with_their_statistics(tmp_path, small, latents):
    imported(tmp_path, latents, publish(tmp_path / 'x', small), f'--stats={theirs_pt(tmp_path / "a.pt")}')
    ours, meta = checkpoint.load(tmp_path / 'out')
    assert ours.action_mean.tolist() == pytest.approx([50, -25]) and meta['config']['stats'].endswith('a.pt')


def test_import_that_will_not_do(tmp_path, small, latents, hub, cache):      # noqa: F811
    """One line, and no OUT_DIR."""
    src, out = publish(tmp_path / 'x', small), tmp_path / 'out'
    wide = publish(tmp_path / 'wide', source(height=12, width=12))

    def refused(words, *args):
        _, errors = script('nanowm.py', *args, code=1)
        assert words in one_line(errors) and not out.exists()
    data = f'--data_dir={latents}'
    usage = 'python nanowm.py import SRC OUT_DIR DATASET [--stats=FILE] [--data_dir=data]'
    for args in (['imprt', src, out, 'latents'], ['import', src, out],
                 ['import', src, out, 'latents', '--lr=1'], ['import', src, out, 'latents', '--stats']):
        refused(usage, *args)
    assert usage in script('nanowm.py', 'import', '--help')[0]
    refused('nope/meta.json not found', 'import', src, out, 'nope', data)
    refused('no checkpoint in ', 'import', tmp_path / 'nope', out, 'latents', data)
    refused('no folder me/no here', 'import', 'me/no', out, 'latents', data)
    refused(f'{latents}/latents has ', 'import', wide, out, 'latents', data)
    refused('cannot read ', 'import', src, out, 'latents', data, f'--stats={tmp_path}/no.pt')
    imported(tmp_path, latents, src)
    _, errors = imported(tmp_path, latents, src, code=1)
    assert f'{out} already holds a run; choose another OUT_DIR' in one_line(errors)
    _, errors = script('nanowm.py', 'import', out, tmp_path / 'new', 'latents', data, code=1)
    assert f'{out} is a run of ours already' in one_line(errors) and not (tmp_path / 'new').exists()


FLAGS = ['--model=nanowm', '--dataset=latents', '--frame_skip=2', '--num_frames=4', '--depth=4',
         '--hidden=32', '--heads=2', '--batch_size=2', '--val_batches=1', '--device=cpu', '--lr=0',
         '--max_steps=1']


def test_training_starts_from_it(tmp_path, small, latents):
    """From the run that import made, or from the published files; both with statistics of the new data."""
    src = publish(tmp_path / 'x', small)
    imported(tmp_path, latents, src, f'--stats={theirs_pt(tmp_path / "a.pt")}')
    for name, start in (('one', tmp_path / 'out'), ('two', src)):
        script('train.py', *FLAGS, f'--data_dir={latents}', f'--init_from={start}',
               f'--out_dir={tmp_path}/{name}')
        ours, _ = checkpoint.load(tmp_path / name)
        assert same(ours, small) <= 1e-6 and ours.action_mean.tolist() == pytest.approx([50, -20], abs=10)
    script('train.py', *FLAGS, f'--data_dir={latents}', f'--init_from={tmp_path}/out', '--keep_stats=True',
           f'--out_dir={tmp_path}/three')
    assert checkpoint.load(tmp_path / 'three')[0].action_mean.tolist() == pytest.approx([50, -25])
    _, errors = script('train.py', *FLAGS, f'--data_dir={latents}', f'--init_from={src}', '--keep_stats=True',
                       f'--out_dir={tmp_path}/four', code=1)
    assert 'holds no statistics' in one_line(errors) and not (tmp_path / 'four').exists()


def test_training_goes_on_from_it(tmp_path, small, latents):
    """With an optimizer that has seen nothing."""
    imported(tmp_path, latents, publish(tmp_path / 'x', small, 'ckpt'))
    sampling = [f'--{key}={getattr(small.cfg, key)}' for key in ('sampling', 'sample_steps')]
    said, _ = script('train.py', *FLAGS, *sampling, f'--data_dir={latents}', f'--out_dir={tmp_path}/out',
                     '--resume=True', '--max_steps=1236')
    assert 'step 1235/1236' in said
    ours, meta = checkpoint.load(tmp_path / 'out')
    assert meta['step'] == 1236 and same(ours, small) <= 1e-6


def test_a_lesson_loads_no_more_than_it_needs():
    code = ('import sys, nanowm; print([name for name in ("torch._dynamo", "wandb", "swanlab", "vae", '
            '"tensorboard", "metrics", "nanowm_published") if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'
