"""
act.py and diffusion_policy.py as a student uses them: train.py on recordings of two cameras, resumed, in
bfloat16, compiled, from LeRobot's weights. On two ranks: test_train.py; in a simulator: test_pusht.py.
"""
import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import one_line, script
from safetensors.torch import load_file, save_file
from test_pretrained_act import publish, source

import act as A
import checkpoint
import contract
import diffusion_policy as D
import vision
from data.loader import Store, read_meta
from data.writer import write

COMMON = ['--dataset=arm', '--device=cpu', '--batch_size=4', '--val_batches=1', '--log_every=1', '--keep=0',
          '--ema_decay=0.9', '--lr=1e-3', '--lr_schedule=cosine', '--warmup_steps=2']
ACT = ['--model=act', '--chunk_size=6', '--n_action_steps=3', '--dim_model=16', '--n_heads=2',
       '--dim_feedforward=24', '--n_encoder_layers=1', '--n_vae_encoder_layers=1', '--latent_dim=4']
DP = ['--model=diffusion_policy', '--horizon=8', '--n_action_steps=4', '--drop_n_last_frames=4',
      '--down_dims=8,16', '--n_groups=4', '--diffusion_step_embed_dim=8', '--spatial_softmax_num_keypoints=4',
      '--crop_shape=36,40', '--use_group_norm=False', '--use_separate_rgb_encoder_per_camera=True',
      '--num_train_timesteps=10']
BOTH = pytest.mark.parametrize('policy', [ACT, DP], ids=['act', 'diffusion_policy'])


def recording(i):
    """An arm of three joints before two cameras; its last action was recorded too."""
    rng = np.random.default_rng([5, i])
    T = 9 + i % 4
    action = rng.normal(size=(T, 3)).cumsum(0).astype(np.float32)
    state = np.concatenate([action[:1] * 0, action[:-1]]) + 0.1
    rows = {'state': state.astype(np.float32), 'action': action}
    for camera in 'left', 'right':
        rows[f'image.{camera}'] = rng.integers(0, 256, (T, 3, 40, 48), dtype=np.uint8)
    return rows


def make_recordings(root):
    """root/arm, a dataset of six of them -> root"""
    write(root / 'arm', recording, 6, seed=0, val='0.34', workers=1, command='tests', padded=(),
          info={'source': 'tests', 'revision': '1', 'fps': 10, 'units': {},
                'facts': {'cameras': ['left', 'right'], 'height': 40, 'width': 48}})
    return root


@pytest.fixture(scope='module')
def recordings(tmp_path_factory): return make_recordings(tmp_path_factory.mktemp('arms'))


@pytest.fixture
def train(recordings, tmp_path):
    """train(policy, *flags) runs train.py on them into tmp_path/out; later flags win."""
    def call(policy, *flags, **kw):
        return script('train.py', *policy, *COMMON, f'--data_dir={recordings}', f'--out_dir={tmp_path}/out',
                      *flags, **kw)
    return call


# ---- windows and micro-batches ----

@pytest.mark.parametrize('drop', (0, 3))
def test_chunks_at_both_ends_of_an_episode(recordings, drop):
    """ACT: one begins at every frame but the last `drop`; behind the end the last action repeats, masked."""
    cfg = replace(A.PRESETS['tiny'], obs='state', state_dim=3, chunk_size=6, drop_n_last_frames=drop)
    edges = contract.edges(A, cfg)
    assert edges == {'pad': True, 'drop': drop}
    store = Store(recordings / 'arm', 'train', A.windows(cfg), **edges)
    action, state, spans = (np.load(recordings / 'arm' / 'train' / f'{key}.npy')
                            for key in ('action', 'state', 'episodes'))
    assert len(store) == (spans[:, 1] - spans[:, 0] - drop).sum()
    ends = (spans[:, 1] - spans[:, 0] - drop).cumsum()
    for (start, end), first in zip(spans, [0, *ends]):
        last = first + end - start - drop - 1
        batch = store.windows_at(np.array([first, last]))
        assert batch['state'][:, 0].tolist() == state[[start, end - drop - 1]].tolist()
        rows = np.array([np.arange(6) + start, np.arange(6) + end - drop - 1])
        assert batch['mask'].tolist() == (rows < end).tolist() and batch['mask'][1].sum() == drop + 1
        assert batch['action'].tolist() == action[rows.clip(max=end - 1)].tolist()


@pytest.mark.parametrize('M', [A, D], ids=['act', 'diffusion_policy'])
def test_a_masked_mean_belongs_to_its_micro_batch(M):
    """As the files say: two halves and a whole agree to 1e-6 with full masks, or with errors of 0."""
    torch.manual_seed(0)
    over = {} if M is A else {'do_mask_loss_for_padding': True}
    model = M.Model(replace(M.PRESETS['tiny'], **over)).eval()
    batch = M.example(model.cfg, 4) | {'t': torch.tensor([3, 20, 50, 90])}
    batch['noise'] = torch.randn(batch['action'].shape)      # ACT draws none in eval mode

    def apart(padding):
        model.cfg = replace(model.cfg, padding=padding)
        halves = [model({key: x[i::2] for key, x in batch.items()})['loss'] for i in range(2)]
        return abs(model(batch)['loss'] - sum(halves) / 2).item()
    assert apart('skip') < 1e-6
    batch['mask'][1, 1:] = False
    assert apart('zeros') < 1e-6 and apart('skip') > 1e-3


# ---- training ----

@BOTH
def test_resume_is_exact(train, tmp_path, policy):
    """Dropout, random crops and statistics of a BatchNorm included: weights and averages to the byte."""
    flags = ['--batch_size=2', '--micro_batch=1', '--lr_decay_steps=4']
    train(policy, *flags, f'--out_dir={tmp_path}/whole', '--max_steps=4')
    train(policy, *flags, f'--out_dir={tmp_path}/parts', '--max_steps=2')
    train(policy, *flags, f'--out_dir={tmp_path}/parts', '--max_steps=4', '--resume=True')
    for file in 'model.safetensors', 'ema.safetensors':
        whole, parts = (tmp_path / run / 'step_0000004' / file for run in ('whole', 'parts'))
        assert whole.read_bytes() == parts.read_bytes(), file


def test_a_resume_needs_no_imagenet_weights(train, tmp_path, monkeypatch):
    """
    They are where a training starts: gone on from, it reads the checkpoint alone, whatever it is told. Frozen
    norms stay as they came, without decay; the ResNet has its share of the rate in every step.
    """
    torch.manual_seed(0)
    source = {key: x + 0.01 * torch.rand_like(x) for key, x in vision.Backbone().state_dict().items()}
    file, rates, real = tmp_path / 'resnet18.safetensors', [], A.Model.configure_optimizers
    save_file(source, file)

    def watched(*args):
        optimizer = real(*args)
        optimizer.register_step_pre_hook(lambda *_: rates.append([g['lr'] for g in optimizer.param_groups]))
        return optimizer
    monkeypatch.setattr(A.Model, 'configure_optimizers', watched)
    flags = ['--optimizer_lr_backbone=2e-4', '--weight_decay=0.5', '--lr_decay_steps=4', '--batch_size=2']
    given = f'--pretrained_backbone_weights={file}'
    train(ACT, *flags, given, '--max_steps=4', f'--out_dir={tmp_path}/whole')
    train(ACT, *flags, given, '--max_steps=2')
    file.unlink()
    train(ACT, *flags, given, '--max_steps=3', '--resume=True')
    said, _ = train(ACT, *flags, '--max_steps=4', '--resume=True')
    assert "pretrained_backbone_weights = ''" in said
    whole, parts = (load_file(tmp_path / run / 'step_0000004' / 'model.safetensors')
                    for run in ('whole', 'out'))
    assert all(torch.equal(x, parts[key]) for key, x in whole.items())
    frozen = [key for key in source if '.bn' in key or key.startswith('bn') or '.downsample.1' in key]
    assert len(frozen) == 80 and all(torch.equal(parts[f'backbone.{key}'], source[key]) for key in frozen)
    assert not torch.equal(parts['backbone.conv1.weight'], source['conv1.weight'])
    assert rates[:4] == rates[4:] and len({rate for rate, _ in rates}) == 2
    assert all(resnet == pytest.approx(0.2 * others) for others, resnet in rates)
    _, errors = train(ACT, *flags, given, f'--out_dir={tmp_path}/new', code=1)
    assert one_line(errors).startswith(f'cannot read {file}: No such file or directory; ')


@BOTH
def test_bfloat16(train, tmp_path, policy):
    """Autocast on a CPU: finite losses near those of float32, and weights that are still float32."""
    losses = {}
    for dtype in 'float32', 'bfloat16':
        said, _ = train(policy, f'--dtype={dtype}', f'--out_dir={tmp_path}/{dtype}', '--max_steps=2')
        assert f'threads, {dtype}; ' in said
        losses[dtype] = [float(loss) for loss in re.findall(r'loss (-?[\d.]+|nan|inf)', said)]
    assert len(losses['bfloat16']) == 4                      # two steps, validated before and behind them
    assert losses['bfloat16'] == pytest.approx(losses['float32'], rel=0.05)
    assert losses['bfloat16'] != losses['float32']
    model, _ = checkpoint.load(tmp_path / 'bfloat16')
    assert all(p.dtype == torch.float32 for p in model.parameters())


SHALLOW = {'n_encoder_layers': 1, 'n_vae_encoder_layers': 1}


@pytest.mark.parametrize('M, over', [
    (A, SHALLOW | {'obs': 'image', 'cameras': ('a', 'b')}),
    (D, {'obs': 'image', 'crop_shape': (36, 40), 'do_mask_loss_for_padding': True}),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (A, {}), (A, {'obs': 'state', 'use_vae': False}), (D, {}),
        (D, {'obs': 'image', 'use_group_norm': False, 'use_separate_rgb_encoder_per_camera': True})))])
def test_compiles_without_graph_breaks(M, over):
    """
    fullgraph=True raises at a break: forward as it trains and as it validates, with the loss and gradients of
    the plain one, under the same draws.
    """
    torch.manual_seed(0)
    cfg = replace(M.PRESETS['tiny'], height=40, width=48, **over)
    plain, batch = M.Model(cfg), M.example(cfg, 2)
    compiled = copy.deepcopy(plain)
    torch._dynamo.reset()
    compiled.compile(backend='eager', dynamic=False, fullgraph=True)
    for training in True, False:
        losses = []
        for model in plain, compiled:
            torch.manual_seed(1)
            loss = model.train(training)(batch)['loss']
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for (key, p), q in zip(plain.named_parameters(), compiled.parameters()):
            assert (p.grad - q.grad).abs().max() <= 1e-4 * max(1, p.grad.abs().max()), key
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.parametrize('keep', (False, True))
def test_fine_tuning_from_a_folder_of_lerobot(train, tmp_path, recordings, keep):
    """
    init_from: its weights, and the statistics of the new data, or with keep_stats its own; those of pictures,
    of which a dataset says nothing, always. lr = 0 shows what it began with.
    """
    there = source(cameras=('left', 'right'), state_dim=3, action_dim=3)
    folder = publish(tmp_path / 'policy', there)
    sizes = [f'--{key}={getattr(there.cfg, key)}' for key in ('dim_feedforward', 'latent_dim')]
    flags = [*sizes, f'--init_from={folder}', f'--keep_stats={keep}', '--max_steps=2']
    train(ACT, *flags, '--lr=0')
    begun, stats = checkpoint.load(tmp_path / 'out')[0].state_dict(), read_meta(recordings / 'arm')['stats']
    want = there.state_dict()
    if not keep:
        want |= {f'{key}_{name}': torch.tensor(stats[key][name])
                 for key in ('state', 'action') for name in ('mean', 'std')}
    assert begun.keys() == want.keys()
    assert all(torch.allclose(begun[key], x, rtol=1e-6) for key, x in want.items())
    train(ACT, *flags, f'--out_dir={tmp_path}/on', '--batch_size=2')
    assert not torch.equal(checkpoint.load(tmp_path / 'on')[0].action_head.weight, there.action_head.weight)
    _, errors = train(ACT, f'--init_from={folder}', f'--out_dir={tmp_path}/x', '--dim_model=32', code=1)
    assert one_line(errors).startswith(f'{folder} has another shape: ')


@BOTH
def test_impossible_obs_is_one_line(train, policy):
    """Although which keys are read depends on it."""
    _, errors = train(policy, '--obs=video', code=1)
    name = policy[0].removeprefix('--model=')
    assert one_line(errors) == f"{name}.Config: obs = 'video': must be one of image, keypoints, state"


def test_recordings_name_no_simulator(train, tmp_path, recordings):
    """Then the recorded actions judge, during training and after it; to act in a simulator is refused."""
    line = (f'neither {recordings}/arm/meta.json (env) nor act.SIMULATOR names a simulator to act in; '
            'eval.py --protocol=actions needs none')
    train(ACT, '--eval_every=1', '--max_steps=1', '--batch_size=1')
    logged = [json.loads(row) for row in (tmp_path / 'out' / 'logs.json.txt').read_text().splitlines()]
    assert any('eval/l1_sigma' in row for row in logged)
    assert one_line(script('eval.py', f'--ckpt={tmp_path}/out', '--protocol=env', code=1)[1]) == line
    said, _ = script('eval.py', f'--ckpt={tmp_path}/out', '--protocol=loss')
    assert json.loads(said)['loss'] > 0
