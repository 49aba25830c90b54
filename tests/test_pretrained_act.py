"""
Policy folders of LeRobot, read by act.py. Folders are written here in both layouts, statistics beside the
weights (LeRobot >= 0.4) and among them; the one that LeRobot itself saved gives its own actions.
"""
import json
import os
import re
import shutil

import pytest
import torch
from conftest import SHARED
from golden import formula_weights
from safetensors.torch import load_file, save_file

import act as A
import checkpoint

LEROBOT = os.path.join(SHARED, 'reference', 'lerobot')
THEIRS = os.path.join(LEROBOT, 'folders', 'act_044')
theirs = pytest.mark.skipif(not os.path.isdir(THEIRS),
                            reason='no folder of LeRobot beside the repository (../shared/reference/lerobot)')
MAP = {'VISUAL': 'MEAN_STD', 'STATE': 'MEAN_STD', 'ACTION': 'MEAN_STD'}
SMALL = dict(chunk_size=6, dim_model=16, n_heads=2, dim_feedforward=24, n_encoder_layers=1,
             n_vae_encoder_layers=1, latent_dim=8, n_action_steps=4, dropout=0.0, kl_weight=3.0)


def settings(cfg, **changes):
    """config.json, with all that its reader has no use for; changes of None take a field away."""
    def feature(type_, *shape): return {'type': type_, 'shape': list(shape)}
    seen = {f'observation.images.{name}': feature('VISUAL', 3, cfg.height, cfg.width) for name in cfg.cameras}
    if cfg.obs == 'keypoints':
        seen = {'observation.environment_state': feature('ENV', cfg.env_state_dim)}
    said = {'type': 'act', 'n_obs_steps': 1, 'device': 'cuda', 'use_amp': False, 'pre_norm': False,
            'input_features': seen | {'observation.state': feature('STATE', cfg.state_dim)},
            'output_features': {'action': feature('ACTION', cfg.action_dim)},
            'normalization_mapping': MAP, 'vision_backbone': 'resnet18', 'feedforward_activation': 'relu',
            'pretrained_backbone_weights': 'ResNet18_Weights.IMAGENET1K_V1', 'temporal_ensemble_coeff': None,
            'replace_final_stride_with_dilation': False, 'n_decoder_layers': 1, 'use_vae': cfg.use_vae,
            'optimizer_lr': 1e-5, 'optimizer_lr_backbone': 3e-5, **SMALL} | changes
    return {key: value for key, value in said.items() if value is not None or key.startswith('temporal')}


def source(**over):
    """A model with statistics of its own."""
    torch.manual_seed(0)
    cameras = dict(obs='image', cameras=('top', 'left_wrist'), height=40, width=48)
    model = A.Model(A.Config(**SMALL | cameras | dict(state_dim=5, action_dim=3) | over)).eval()
    for name, x in model.named_buffers():
        if name.endswith(('_mean', '_std')) and '.' not in name:
            x.uniform_(0.5, 2.0)
    return model


def theirs_of(model):
    """-> weights under LeRobot's keys, statistics under its names."""
    weights, stats = {}, {}
    own = {'state': 'observation.state', 'env_state': 'observation.environment_state', 'action': 'action'}
    for key, x in model.state_dict().items():
        ours, _, name = key.rpartition('_')
        if '.' in key or name not in ('mean', 'std'):
            weights[f'model.{key}'] = x.clone()
        elif ours == 'image':
            for camera, row in zip(model.cfg.cameras, x):
                stats[f'observation.images.{camera}.{name}'] = row.clone().view(3, 1, 1)
        else:
            stats[f'{own[ours]}.{name}'] = x.clone()
    # what is there and not used
    return weights, stats | {'action.max': torch.ones(model.cfg.action_dim) * 9}


def legacy(weights, stats):
    """The layout before 0.4: statistics as buffers, their names without dots."""
    old = dict(weights)
    for key, x in stats.items():
        feature, _, name = key.rpartition('.')
        sides = ('normalize_targets', 'unnormalize_outputs') if feature == 'action' else ('normalize_inputs',)
        for side in sides:
            old[f'{side}.buffer_{feature.replace(".", "_")}.{name}'] = x.clone()
    return old


def publish(folder, model, old=False, norm_map=MAP, **changes):
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(settings(model.cfg, **changes)))
    weights, stats = theirs_of(model)
    save_file(legacy(weights, stats) if old else weights, folder / 'model.safetensors')
    if not old:
        for i, pipeline, kind in (3, 'pre', 'normalizer'), (0, 'post', 'unnormalizer'):
            file = f'policy_{pipeline}processor_step_{i}_{kind}_processor.safetensors'
            save_file(stats, folder / file)
            step = {'registry_name': f'{kind}_processor', 'state_file': file,
                    'config': {'eps': 1e-8, 'features': {}, 'norm_map': norm_map}}
            steps = [{'registry_name': 'device_processor', 'config': {'device': 'cpu'}}] * i + [step]
            (folder / f'policy_{pipeline}processor.json').write_text(json.dumps({'steps': steps}))
    return str(folder)


def same(model, other):
    assert model.state_dict().keys() == other.state_dict().keys()
    for key, x in model.state_dict().items():
        assert torch.equal(x, other.state_dict()[key]), key


# ---- what LeRobot saved ----

@pytest.fixture
def folder(tmp_path):
    """A copy of the folder that LeRobot 0.4.4 saved, with its weights, which follow from a formula."""
    shutil.copytree(THEIRS, tmp_path / 'act_044', copy_function=shutil.copyfile)
    os.chmod(tmp_path / 'act_044', 0o755)
    with open(os.path.join(LEROBOT, 'act_A.keys.json')) as f:
        keys = json.load(f)
    weights = formula_weights(keys, 1001)
    table = A.waves(torch.arange(12, dtype=torch.float64), 32).float()[None]
    save_file(weights | {'model.vae_encoder_pos_enc': table}, tmp_path / 'act_044' / 'model.safetensors')
    return tmp_path / 'act_044'


@theirs
def test_actions_of_lerobot(folder):
    """uint8 images and raw state -> actions in data units: 1e-4 of their size."""
    model, there = A.Model.from_pretrained(str(folder)), load_file(folder / 'expected.safetensors')
    assert not model.training and model.cfg.cameras == ('top', 'wrist') and model.cfg.n_action_steps == 7
    obs = {key: x[:, None] for key, x in there.items() if key.startswith(('image.', 'state'))}
    actions = model.act(obs)
    want = there['actions'][:, :7]
    assert (actions - want).abs().max() < 1e-4 * max(1, want.abs().max())
    whole = A.Model.from_pretrained(str(folder), n_action_steps=10).act(obs)
    assert (whole - there['actions']).abs().max() < 1e-4 * max(1, there['actions'].abs().max())


@theirs
def test_older_form_of_that_folder(folder, tmp_path):
    new = A.Model.from_pretrained(str(folder))
    stats = load_file(folder / 'policy_preprocessor_step_3_normalizer_processor.safetensors')
    old = tmp_path / 'old'
    old.mkdir()
    shutil.copy(folder / 'config.json', old / 'config.json')
    save_file(legacy(load_file(folder / 'model.safetensors'), stats), old / 'model.safetensors')
    same(new, A.Model.from_pretrained(str(old)))


# ---- folders of our own ----

@pytest.mark.parametrize('old', (False, True))
@pytest.mark.parametrize('over', ({}, dict(cameras=('a_b', 'c')), dict(use_vae=False), dict(obs='keypoints')))
def test_there_and_back(tmp_path, old, over):
    model = source(**over)
    norm_map = MAP | ({'ENV': 'MEAN_STD'} if model.cfg.obs == 'keypoints' else {})
    path = publish(tmp_path / 'policy', model, old, norm_map, normalization_mapping=norm_map)
    loaded = A.Model.from_pretrained(path)
    same(model, loaded)
    assert loaded.cfg.kl_weight == 3.0 and loaded.cfg.optimizer_lr_backbone == 3e-5
    assert loaded.cfg.pretrained_backbone_weights == '' and not loaded.cfg.temporal_ensemble
    batch = A.example(model.cfg, 2)
    assert torch.equal(loaded.act(batch), model.act(batch))


def test_what_is_not_in_the_map_is_not_normalised(tmp_path):
    """LeRobot saves statistics of ENV, and uses them only if the map says so."""
    loaded = A.Model.from_pretrained(publish(tmp_path / 'policy', source(obs='keypoints')))
    assert not loaded.env_state_mean.any() and (loaded.env_state_std == 1).all()
    assert loaded.state_mean.all()
    raw = publish(tmp_path / 'raw', source(), norm_map=MAP | {'VISUAL': 'IDENTITY'})
    loaded = A.Model.from_pretrained(raw)
    assert not loaded.image_mean.any() and (loaded.image_std == 1).all()


def test_options(tmp_path):
    """A folder above it will do; over wins; a coefficient switches the ensemble on."""
    publish(tmp_path / 'run' / 'checkpoints' / 'last' / 'pretrained_model', source(), n_action_steps=1,
            temporal_ensemble_coeff=0.02)
    loaded = A.Model.from_pretrained(str(tmp_path / 'run'))
    assert loaded.cfg.temporal_ensemble and loaded.cfg.temporal_ensemble_coeff == 0.02
    last = tmp_path / 'run' / 'checkpoints' / 'last'
    loaded = A.Model.from_pretrained(str(last), temporal_ensemble=False, n_action_steps=3, dropout=0.2)
    assert loaded.cfg.n_action_steps == 3 and loaded.encoder.layers[0].drop.p == 0.2
    with pytest.raises(SystemExit, match='n_action_steps = 7: a chunk has chunk_size = 6$'):
        A.Model.from_pretrained(str(last), n_action_steps=7)


def test_a_training_starts_from_it(tmp_path):
    """init_from: its weights, and by default the statistics of the new data."""
    model = source()
    path = publish(tmp_path / 'policy', model)
    for keep in ((), ('state_mean', 'state_std', 'action_mean', 'action_std')):
        fresh = A.Model(model.cfg)
        checkpoint.start_from(fresh, A, path, keep)
        for key, x in model.state_dict().items():
            assert torch.equal(fresh.state_dict()[key], x) == (key not in keep), key


# ---- one line each ----

@pytest.mark.parametrize('changes, words', [
    (dict(type='diffusion'), "config.json: type = 'diffusion', want 'act'"),
    (dict(pre_norm=True), 'config.json: pre_norm = True: only False is possible here'),
    (dict(feedforward_activation='gelu'), "feedforward_activation = 'gelu': only 'relu' is possible here"),
    (dict(vision_backbone='resnet34'), "vision_backbone = 'resnet34': only 'resnet18' is possible here"),
    (dict(replace_final_stride_with_dilation=True), 'replace_final_stride_with_dilation = True: only False'),
    (dict(n_obs_steps=2), 'n_obs_steps = 2: only 1 is possible here'),
    (dict(norm_map=MAP | {'STATE': 'MIN_MAX'}), 'normalization_mapping, observation.state is STATE, MIN_MAX'),
    (dict(norm_map=MAP | {'ACTION': 'QUANTILES'}), 'normalization_mapping, action is ACTION, QUANTILES'),
    (dict(output_features=None), 'input_features, output_features = observation.images.top, '),
    (dict(input_features={'observation.state': {'type': 'STATE', 'shape': [5]}}),
     'input_features, output_features = observation.state, action; want action, observation.state, and cam'),
    (dict(dim_feedforward=32), 'has another shape: vae_encoder.layers.0.linear1.weight is [24, 16]'),
    (dict(n_encoder_layers=2), 'lacks encoder.layers.1.linear1.bias and'),
    (dict(n_heads=3), 'dim_model = 16: must be a multiple of 4 and of n_heads = 3')])
def test_what_it_cannot_be(tmp_path, changes, words):
    path = publish(tmp_path / 'policy', source(), **changes)
    with pytest.raises(SystemExit, match=re.escape(words)) as stop:
        A.Model.from_pretrained(path)
    assert '\n' not in stop.value.code


@pytest.mark.parametrize('old', (False, True))
def test_without_statistics(tmp_path, old):
    path = publish(tmp_path / 'policy', source(), old)
    if old:
        weights = load_file(f'{path}/model.safetensors')
        del weights['unnormalize_outputs.buffer_action.std'], weights['normalize_targets.buffer_action.std']
        save_file(weights, f'{path}/model.safetensors')
    else:
        os.remove(f'{path}/policy_postprocessor.json')
        os.remove(f'{path}/policy_preprocessor.json')
    with pytest.raises(SystemExit) as stop:
        A.Model.from_pretrained(path)
    lacking = 'std of action' if old else 'mean of observation.images.top'
    assert stop.value.code.startswith(f'{path} has no {lacking}, beside the weights or among them: ')


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(SystemExit, match='none/config.json: No such file or directory; want a policy folder'):
        A.Model.from_pretrained(str(tmp_path / 'none'))
    path = publish(tmp_path / 'policy', source())
    os.remove(f'{path}/policy_postprocessor_step_0_unnormalizer_processor.safetensors')
    with pytest.raises(SystemExit, match='^cannot read .*unnormalizer_processor.safetensors: '):
        A.Model.from_pretrained(path)
    with open(f'{path}/model.safetensors', 'r+b') as f:
        f.truncate(1000)
    with pytest.raises(SystemExit, match='^cannot read .*model.safetensors: .*; want a policy folder of LeR'):
        A.Model.from_pretrained(path)
