"""
Policy folders of LeRobot, read by diffusion_policy.py: the one that LeRobot itself saved gives its own
actions, in both layouts; what this file cannot do is one line. More of the reader: test_pretrained_act.py.
"""
import json
import os
import shutil

import pytest
import torch
from conftest import SHARED
from golden import formula_weights
from safetensors.torch import load_file, save_file
from test_pretrained_act import legacy, same

import checkpoint
import diffusion_policy as P
import vision

LEROBOT = os.path.join(SHARED, 'reference', 'lerobot')
THEIRS = os.path.join(LEROBOT, 'folders', 'dp_044')
theirs = pytest.mark.skipif(not os.path.isdir(THEIRS),
                            reason='no folder of LeRobot beside the repository (../shared/reference/lerobot)')


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder that LeRobot 0.4.4 saved, with its weights, which follow from a formula."""
    shutil.copytree(THEIRS, tmp_path / 'dp_044', copy_function=shutil.copyfile)
    os.chmod(tmp_path / 'dp_044', 0o755)
    with open(os.path.join(LEROBOT, 'dp_A.keys.json')) as f:
        keys = json.load(f)
    grid = vision.GridSoftmax(512, 32, 3, 3).pos_grid
    save_file(formula_weights(keys, 1002) | {'diffusion.rgb_encoder.pool.pos_grid': grid},
              tmp_path / 'dp_044' / 'model.safetensors')
    return tmp_path / 'dp_044'


def settings(folder, **changes):
    said = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(said | changes))


@theirs
def test_actions_of_lerobot(folder, monkeypatch):
    """uint8 images, raw state and its noise -> actions in data units: 1e-4 of their size."""
    model, there = P.Model.from_pretrained(str(folder)), load_file(folder / 'expected.safetensors')
    cfg = model.cfg
    assert not model.training and cfg.cameras == ('image',) and cfg.down_dims == (16, 32, 64)
    assert (cfg.noise_scheduler_type, cfg.num_inference_steps) == ('DDIM', 10) and cfg.crop_shape == ()
    draws = iter(there['noise'])
    monkeypatch.setattr(torch, 'randn', lambda shape, generator: next(draws))
    actions = model.act({key: there[key] for key in ('image.image', 'state')})
    assert (actions - there['actions']).abs().max() < 1e-4 * max(1, there['actions'].abs().max())


@theirs
def test_older_form_of_that_folder(folder, tmp_path):
    """Before 0.4 the statistics lay among the weights."""
    stats = load_file(folder / 'policy_preprocessor_step_3_normalizer_processor.safetensors')
    old = tmp_path / 'old'
    old.mkdir()
    shutil.copy(folder / 'config.json', old / 'config.json')
    save_file(legacy(load_file(folder / 'model.safetensors'), stats), old / 'model.safetensors')
    same(P.Model.from_pretrained(str(folder)), P.Model.from_pretrained(str(old)))


@theirs
def test_options(folder):
    """Fields of the Config win; the camera of PushT has another name here."""
    model = P.Model.from_pretrained(str(folder), cameras=('top',), noise_scheduler_type='DDPM')
    assert [*P.windows(model.cfg)] == ['image.top', 'state', 'action']
    assert model.cfg.noise_scheduler_type == 'DDPM' and torch.isfinite(model(P.example(model.cfg, 2))['loss'])


@theirs
def test_a_training_starts_from_it(folder):
    """init_from: its weights, and the statistics of the new data."""
    there = P.Model.from_pretrained(str(folder))
    fresh, keep = P.Model(there.cfg), ('state_min', 'state_max', 'action_min', 'action_max')
    checkpoint.start_from(fresh, P, str(folder), keep)
    for key, x in there.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], x) == (key not in keep), key


@theirs
@pytest.mark.parametrize('changes, words', [
    ({'type': 'act'}, "/config.json: type = 'act', want 'diffusion'"),
    ({'vision_backbone': 'resnet34'}, ": vision_backbone = 'resnet34': must be one of resnet18"),
    ({'beta_schedule': 'sigmoid'}, ": beta_schedule = 'sigmoid': must be one of squaredcos_cap_v2, linear"),
    ({'horizon': 12}, ': horizon = 12: must be a multiple of 2^stages = 8, a stage for each of down_dims = '
                      '(16, 32, 64)'),
    ({'crop_shape': [97, 80]}, ': crop_shape = (97, 80): larger than the pictures, 96 x 96'),
    ({'kernel_size': 3}, ' has another shape: unet.')])
def test_what_it_cannot_be(folder, changes, words):
    settings(folder, **changes)
    with pytest.raises(SystemExit) as stop:
        P.Model.from_pretrained(str(folder))
    assert stop.value.code.startswith(f'{folder}{words}') and '\n' not in stop.value.code


def test_imagenet_weights_are_for_batch_norm(tmp_path):
    """Where a training starts; a checkpoint has its own."""
    torch.manual_seed(0)
    file = {key: torch.rand_like(x) for key, x in vision.Backbone(torch.nn.BatchNorm2d).state_dict().items()
            if not key.endswith('num_batches_tracked')}
    save_file(file | {'fc.weight': torch.zeros(2, 3)}, tmp_path / 'resnet18.safetensors')
    model = P.Model(P.Config(down_dims=(8, 16), use_group_norm=False,
                             pretrained_backbone_weights=str(tmp_path / 'resnet18.safetensors')))
    backbone = model.rgb_encoder.backbone
    assert torch.equal(backbone[0].weight, file['conv1.weight'])
    assert torch.equal(backbone[7][1].bn2.running_var, file['layer4.1.bn2.running_var'])
    assert P.INITIAL == ('pretrained_backbone_weights',)
