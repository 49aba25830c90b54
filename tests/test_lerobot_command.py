"""data/lerobot/command.py: commands of LeRobot become runs that mean the same, what is wrong a line."""
import io
import json
import os
import re
import shlex

import numpy as np
import pytest
from conftest import ROOT, SHARED, one_line, script

import contract
from configurator import configure, run_file
from data.lerobot import command as C
from data.writer import write

COMMAND = 'data/lerobot/command.py'
MINIMAL = r"""# Minimal training command
/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--dataset.video_backend=pyav \
--policy.type=act \
--output_dir=challenge2026_baseline/Part_Sorting/act \
--dataset.root=datasets/Part_Sorting/ \
--job_name=part_sorting_act \
--policy.device=cuda \
--wandb.enable=false \
--policy.repo_id=none \
--policy.push_to_hub=false
"""
ACT = r"""# Detailed training command (task1)
/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--dataset.root=datasets/Part_Sorting/ \
--dataset.video_backend=pyav \
--policy.type=act \
--policy.n_obs_steps=1 \
--policy.chunk_size=50 \
--policy.n_action_steps=50 \
--policy.vision_backbone=resnet18 \
--policy.pretrained_backbone_weights=ResNet18_Weights.IMAGENET1K_V1 \
--policy.dim_model=256 \
--policy.n_heads=4 \
--policy.dim_feedforward=1024 \
--policy.n_encoder_layers=4 \
--policy.n_decoder_layers=1 \
--policy.use_vae=true \
--policy.latent_dim=32 \
--policy.n_vae_encoder_layers=4 \
--policy.dropout=0.1 \
--policy.kl_weight=10.0 \
--policy.optimizer_lr=1e-5 \
--policy.optimizer_weight_decay=1e-4 \
--policy.optimizer_lr_backbone=1e-5 \
--policy.device=cuda \
--policy.use_amp=true \
--policy.push_to_hub=false \
--output_dir=challenge2026_baseline/Part_Sorting/act \
--job_name=part_sorting_act \
--resume=false \
--seed=1000 \
--num_workers=8 \
--batch_size=8 \
--steps=100000 \
--eval_freq=0 \
--log_freq=200 \
--save_checkpoint=true \
--save_freq=5000 \
--wandb.entity=your_wandb_entity
"""
DIFFUSION = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--dataset.root=datasets/Part_Sorting \
--dataset.video_backend=pyav \
--output_dir=challenge2026_baseline/Part_Sorting/diffusion \
--policy.repo_id=none \
--policy.type=diffusion \
--policy.n_obs_steps=2 \
--policy.horizon=16 \
--policy.n_action_steps=8 \
--policy.vision_backbone=resnet18 \
--policy.pretrained_backbone_weights=null \
--policy.resize_shape=null \
--policy.crop_ratio=1.0 \
--policy.crop_shape=null \
--policy.crop_is_random=true \
--policy.use_group_norm=true \
--policy.spatial_softmax_num_keypoints=32 \
--policy.use_separate_rgb_encoder_per_camera=false \
--policy.down_dims='[512,1024,2048]' \
--policy.kernel_size=5 \
--policy.n_groups=8 \
--policy.diffusion_step_embed_dim=128 \
--policy.use_film_scale_modulation=true \
--policy.noise_scheduler_type=DDPM \
--policy.num_train_timesteps=100 \
--policy.beta_schedule=squaredcos_cap_v2 \
--policy.beta_start=0.0001 \
--policy.beta_end=0.02 \
--policy.prediction_type=epsilon \
--policy.clip_sample=true \
--policy.clip_sample_range=1.0 \
--policy.num_inference_steps=null \
--policy.compile_model=false \
--policy.compile_mode=reduce-overhead \
--policy.do_mask_loss_for_padding=false \
--policy.optimizer_lr=1e-4 \
--policy.optimizer_betas='[0.95,0.999]' \
--policy.optimizer_eps=1e-8 \
--policy.optimizer_weight_decay=1e-6 \
--policy.scheduler_name=cosine \
--policy.scheduler_warmup_steps=500 \
--job_name=part_sorting_diffusion \
--resume=false \
--seed=1000 \
--num_workers=8 \
--batch_size=32 \
--steps=100000 \
--eval_freq=0 \
--log_freq=200 \
--save_checkpoint=true \
--save_freq=5000
"""
PI0_SHORT = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--policy.path=lerobot/pi0_base \
--dataset.repo_id=your_org/your_dataset \
--batch_size=64 \
--steps=20000 \
--output_dir=challenge2026_baseline/Part_Sorting/pi0 \
--job_name=part_sorting_pi0 \
--policy.device=cuda \
--wandb.enable=true
"""
PI0 = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--dataset.root=datasets/Part_Sorting \
--policy.type=pi0 \
--policy.paligemma_variant=gemma_2b \
--policy.action_expert_variant=gemma_300m \
--policy.dtype=float32 \
--policy.n_obs_steps=1 \
--policy.chunk_size=50 \
--policy.n_action_steps=50 \
--policy.max_state_dim=32 \
--policy.max_action_dim=32 \
--policy.num_inference_steps=10 \
--policy.time_sampling_beta_alpha=1.5 \
--policy.time_sampling_beta_beta=1.0 \
--policy.time_sampling_scale=0.999 \
--policy.time_sampling_offset=0.001 \
--policy.min_period=0.004 \
--policy.max_period=4.0 \
--policy.image_resolution='[224,224]' \
--policy.empty_cameras=0 \
--policy.gradient_checkpointing=false \
--policy.compile_model=false \
--policy.compile_mode=max-autotune \
--policy.freeze_vision_encoder=false \
--policy.train_expert_only=false \
--policy.optimizer_lr=2.5e-5 \
--policy.optimizer_betas='[0.9,0.95]' \
--policy.optimizer_eps=1e-8 \
--policy.optimizer_weight_decay=0.01 \
--policy.optimizer_grad_clip_norm=1.0 \
--policy.scheduler_warmup_steps=1000 \
--policy.scheduler_decay_steps=30000 \
--policy.scheduler_decay_lr=2.5e-6 \
--policy.tokenizer_max_length=48 \
--output_dir=challenge2026_baseline/Part_Sorting/pi0 \
--job_name=part_sorting_pi0 \
--resume=false \
--seed=1000 \
--num_workers=8 \
--batch_size=8 \
--steps=100000 \
--eval_freq=0 \
--log_freq=200 \
--save_checkpoint=true \
--save_freq=5000 \
--wandb.entity=your_wandb_entity
"""
PI05_SHORT = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--policy.type=pi05 \
--output_dir=challenge2026_baseline/Part_Sorting/pi05 \
--job_name=part_sorting_pi05 \
--policy.repo_id=your_repo_id \
--policy.pretrained_path=lerobot/pi05_base \
--policy.compile_model=true \
--policy.gradient_checkpointing=true \
--wandb.enable=true \
--policy.dtype=bfloat16 \
--policy.freeze_vision_encoder=false \
--policy.train_expert_only=false \
--steps=3000 \
--policy.device=cuda \
--batch_size=32
"""
PI05 = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--dataset.root=datasets/Part_Sorting/ \
--policy.type=pi05 \
--policy.paligemma_variant=gemma_2b \
--policy.action_expert_variant=gemma_300m \
--policy.dtype=float32 \
--policy.n_obs_steps=1 \
--policy.chunk_size=50 \
--policy.n_action_steps=50 \
--policy.max_state_dim=32 \
--policy.max_action_dim=32 \
--policy.num_inference_steps=10 \
--policy.time_sampling_beta_alpha=1.5 \
--policy.time_sampling_beta_beta=1.0 \
--policy.time_sampling_scale=0.999 \
--policy.time_sampling_offset=0.001 \
--policy.min_period=0.004 \
--policy.max_period=4.0 \
--policy.image_resolution='[224,224]' \
--policy.empty_cameras=0 \
--policy.gradient_checkpointing=false \
--policy.compile_model=false \
--policy.compile_mode=max-autotune \
--policy.freeze_vision_encoder=false \
--policy.train_expert_only=false \
--policy.optimizer_lr=2.5e-5 \
--policy.optimizer_betas='[0.9,0.95]' \
--policy.optimizer_eps=1e-8 \
--policy.optimizer_weight_decay=0.01 \
--policy.optimizer_grad_clip_norm=1.0 \
--policy.scheduler_warmup_steps=1000 \
--policy.scheduler_decay_steps=30000 \
--policy.scheduler_decay_lr=2.5e-6 \
--policy.tokenizer_max_length=200 \
--output_dir=challenge2026_baseline/Part_Sorting/pi05 \
--job_name=part_sorting_pi05 \
--resume=false \
--seed=1000 \
--num_workers=8 \
--batch_size=8 \
--steps=100000 \
--eval_freq=0 \
--log_freq=200 \
--save_checkpoint=true \
--save_freq=5000 \
--wandb.entity=your_wandb_entity
"""
SMOLVLA_SHORT = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--policy.path=lerobot/smolvla_base \
--dataset.repo_id=your_org/your_dataset \
--batch_size=64 \
--steps=20000 \
--output_dir=challenge2026_baseline/Part_Sorting/smolvla \
--job_name=part_sorting_smolvla \
--policy.device=cuda \
--wandb.enable=true
"""
SMOLVLA = r"""/isaac-sim/python.sh src/lerobot/scripts/lerobot_train.py \
--dataset.repo_id=your_org/your_dataset \
--dataset.root=datasets/Part_Sorting/ \
--policy.type=smolvla \
--policy.vlm_model_name=HuggingFaceTB/SmolVLM2-500M-Video-Instruct \
--policy.load_vlm_weights=true \
--policy.dtype=float32 \
--policy.n_obs_steps=1 \
--policy.chunk_size=50 \
--policy.n_action_steps=50 \
--policy.max_state_dim=32 \
--policy.max_action_dim=32 \
--policy.num_steps=10 \
--policy.tokenizer_max_length=48 \
--policy.image_resolution='[224,224]' \
--policy.empty_cameras=0 \
--policy.freeze_vision_encoder=true \
--policy.train_expert_only=true \
--policy.train_state_proj=true \
--policy.gradient_checkpointing=false \
--policy.compile_model=false \
--policy.compile_mode=max-autotune \
--policy.attention_mode=cross_attn \
--policy.num_vlm_layers=16 \
--policy.self_attn_every_n_layers=2 \
--policy.expert_width_multiplier=0.75 \
--policy.optimizer_lr=1e-4 \
--policy.optimizer_betas='[0.9,0.95]' \
--policy.optimizer_eps=1e-8 \
--policy.optimizer_weight_decay=1e-10 \
--policy.optimizer_grad_clip_norm=10.0 \
--policy.scheduler_warmup_steps=1000 \
--policy.scheduler_decay_steps=30000 \
--policy.scheduler_decay_lr=2.5e-6 \
--policy.min_period=0.004 \
--policy.max_period=4.0 \
--output_dir=challenge2026_baseline/Part_Sorting/smolvla \
--job_name=part_sorting_smolvla \
--resume=false \
--seed=1000 \
--num_workers=8 \
--batch_size=8 \
--steps=100000 \
--eval_freq=0 \
--log_freq=200 \
--save_checkpoint=true \
--save_freq=5000 \
--wandb.entity=your_wandb_entity
"""
FULL = {'minimal': MINIMAL, 'act': ACT, 'diffusion': DIFFUSION, 'pi0': PI0, 'pi05': PI05, 'smolvla': SMOLVLA}
SHORT = {'pi0': PI0_SHORT, 'pi05': PI05_SHORT, 'smolvla': SMOLVLA_SHORT}       # these name no folder of data
ALL = [*FULL.values(), *SHORT.values()]
BARE = '--policy.type=diffusion --dataset.root=datasets/Part_Sorting'      # all else is LeRobot's to decide
# where a value goes that has another name here
ELSEWHERE = {'output_dir': 'out_dir', 'log_freq': 'log_every', 'save_freq': 'save_every',
             'steps': 'max_steps', 'optimizer_lr': 'lr', 'optimizer_weight_decay': 'weight_decay',
             'optimizer_betas': 'betas', 'scheduler_name': 'lr_schedule',
             'scheduler_warmup_steps': 'warmup_steps', 'compile_model': 'compile',
             'optimizer_grad_clip_norm': 'grad_clip', 'scheduler_decay_steps': 'lr_decay_steps',
             'scheduler_decay_lr': 'min_lr'}
# what LeRobot 0.4.4 does where a command says nothing, by our names
OPEN = dict(seed=1000, batch_size=8, max_steps=100_000, log_every=200, save_every=20_000, keep=0,
            resume=False, init_from='', log='', grad_clip=10.0, dtype='float32', device='auto', ema_decay=0.0,
            min_lr=0.0, lr_decay_steps=0)
OF_ACT = dict(
    OPEN, model='act', chunk_size=100, n_action_steps=100, dim_model=512, n_heads=8, dim_feedforward=3200,
    pretrained_backbone_weights='ResNet18_Weights.IMAGENET1K_V1', n_encoder_layers=4, n_decoder_layers=1,
    use_vae=True, latent_dim=32, n_vae_encoder_layers=4, dropout=0.1, kl_weight=10.0, drop_n_last_frames=0,
    temporal_ensemble=False, lr=1e-5, optimizer_lr_backbone=1e-5, weight_decay=1e-4, betas=(0.9, 0.999),
    lr_schedule='constant', warmup_steps=0)
OF_DIFFUSION = dict(
    OPEN, model='diffusion_policy', n_obs_steps=2, horizon=16, n_action_steps=8, drop_n_last_frames=7,
    vision_backbone='resnet18', pretrained_backbone_weights='', resize_shape=(), crop_ratio=1.0,
    crop_shape=(), crop_is_random=True, use_group_norm=True, spatial_softmax_num_keypoints=32,
    use_separate_rgb_encoder_per_camera=False, down_dims=(512, 1024, 2048), kernel_size=5, n_groups=8,
    diffusion_step_embed_dim=128, use_film_scale_modulation=True, num_train_timesteps=100,
    beta_schedule='squaredcos_cap_v2', beta_start=1e-4, beta_end=0.02, prediction_type='epsilon',
    noise_scheduler_type='DDPM', num_inference_steps=0, clip_sample=True, clip_sample_range=1.0,
    do_mask_loss_for_padding=False, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, lr_schedule='cosine',
    warmup_steps=500, compile=False)
OF_PI0 = dict(
    OPEN, model='pi0', pi05=False, paligemma_variant='gemma_2b', action_expert_variant='gemma_300m',
    chunk_size=50, n_action_steps=50, drop_n_last_frames=0, max_state_dim=32, max_action_dim=32,
    num_inference_steps=10, time_sampling_beta_alpha=1.5, time_sampling_beta_beta=1.0,
    time_sampling_scale=0.999, time_sampling_offset=0.001, min_period=0.004, max_period=4.0, draws=1,
    image_resolution=(224, 224), empty_cameras=0, gradient_checkpointing=False, freeze_vision_encoder=False,
    train_expert_only=False, lr=2.5e-5, betas=(0.9, 0.95), weight_decay=0.01, grad_clip=1.0,
    lr_schedule='cosine', warmup_steps=1000, lr_decay_steps=30_000, min_lr=2.5e-6, compile=False)
OF_SMOLVLA = dict(
    OPEN, model='smolvla', vlm_model_name='HuggingFaceTB/SmolVLM2-500M-Video-Instruct', num_vlm_layers=16,
    expert_width_multiplier=0.75, attention_mode='cross_attn', self_attn_every_n_layers=2, chunk_size=50,
    n_action_steps=50, drop_n_last_frames=0, max_state_dim=32, max_action_dim=32, num_steps=10,
    min_period=0.004, max_period=4.0, draws=1, image_resolution=(512, 512), empty_cameras=0,
    tokenizer_max_length=48, gradient_checkpointing=False, freeze_vision_encoder=True, train_expert_only=True,
    train_state_proj=True, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-10, grad_clip=10.0,
    lr_schedule='cosine', warmup_steps=1000, lr_decay_steps=30_000, min_lr=2.5e-6, compile=False)
KINDS = {'act': OF_ACT, 'diffusion': OF_DIFFUSION, 'pi0': OF_PI0, 'pi05': OF_PI0 | {'pi05': True},
         'smolvla': OF_SMOLVLA}
MODEL = {'act': 'act', 'diffusion': 'diffusion_policy', 'pi0': 'pi0', 'pi05': 'pi0', 'smolvla': 'smolvla'}
SMALL = {'act': ['--chunk_size=4', '--n_action_steps=2', '--dim_model=16', '--n_heads=2',
                 '--dim_feedforward=8', '--n_encoder_layers=1', '--n_vae_encoder_layers=1',
                 '--pretrained_backbone_weights='],
         'diffusion_policy': ['--down_dims=8,16', '--n_groups=4', '--horizon=8', '--n_action_steps=4',
                              '--drop_n_last_frames=0', '--spatial_softmax_num_keypoints=4',
                              '--diffusion_step_embed_dim=8'],
         'pi0': ['--paligemma_variant=8x2x8x2x1x4', '--action_expert_variant=8x2x8x2x1x4', '--vocab_size=64',
                 '--vision_variant=8x1x8x2x8', '--image_resolution=16,16'],
         'smolvla': ['--vlm_model_name=8x8x2x1x4', '--num_vlm_layers=2', '--vision_variant=8x1x8x2x4x4',
                     '--vocab_size=64', '--scale_factor=2', '--image_resolution=16,16']}


def words(text):
    return shlex.split(text.replace('\\\n', ' '), comments=True)


def said(text):
    """{argument: text} of a command."""
    return dict(word[2:].split('=', 1) for word in words(text) if word.startswith('--'))


def with_data(text):
    """A short command names its data by the hub alone, and its kind by the weights."""
    kind, = (kind for kind, short in SHORT.items() if short == text)
    more = '' if '--policy.type=' in text else f' --policy.type={kind}'
    return text.rstrip() + f' --dataset.root=datasets/Part_Sorting{more}'


def printed(text):
    return script(COMMAND, *words(text))[0]


def meant(text, like):
    """A text as YAML reads it; null is what is empty."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:                                     # a word
        return text
    return type(like)() if value is None else tuple(value) if isinstance(value, list) else value


def keys(text):
    """What a config file sets."""
    names = {}
    exec(text, names)
    return {key: value for key, value in names.items() if key != '__builtins__'}


def keys_of_file(path):
    """The same, of a file that may inherit from another."""
    problems = []
    found = {key: value for key, value, _ in run_file(path, problems)}
    assert not problems
    return found


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """data/lerobot_part_sorting: eight episodes of twenty frames of two cameras of 32 x 40 px."""
    root = tmp_path_factory.mktemp('part_sorting')

    def episode(i):
        rng = np.random.default_rng(i)
        pictures = {f'image.{name}': rng.integers(0, 256, (20, 3, 32, 40), np.uint8)
                    for name in ('head', 'hand')}
        return pictures | {key: rng.normal(size=(20, n)).astype(np.float32)
                           for key, n in (('state', 5), ('action', 3))}
    write(root / 'lerobot_part_sorting', episode, 8, seed=1, val='0.25', workers=1, command='tests',
          padded=(), info={'source': 'tests', 'revision': '1', 'fps': 30, 'units': {'action': 'rad'},
                           'facts': {'cameras': ['head', 'hand'], 'height': 32, 'width': 40}})
    return str(root)


@pytest.fixture
def run_of(data_dir, tmp_path):
    """run_of(config) -> all keys of the run that train.py would make of it; nothing is trained."""
    def call(text):
        path = tmp_path / 'my.py'
        path.write_text(text)
        g = C.keys_of('train.py') | {'__file__': os.path.join(ROOT, 'train.py')}
        return configure(g, contract.owners, [str(path), f'--data_dir={data_dir}'])[0]
    return call


# ---- all names ----

# of the tables, or of LeRobot, but of no command
BESIDE = {'policy.use_cache', 'policy.add_image_special_tokens', 'policy.resize_imgs_with_padding'}


def test_all_names():
    first, others = ({name for text in texts for name in said(text)}
                     for texts in ((MINIMAL, ACT, DIFFUSION), (PI0, PI05, SMOLVLA, *SHORT.values())))
    known = {name for kind in C.KNOWN for name in C.KNOWN[kind]}
    assert (len(first), len(others)) == (68, 59) and known == first | others | BESIDE
    for text in FULL.values():
        assert not said(text).keys() - C.KNOWN[said(text)['policy.type']].keys()
    for kind, text in SHORT.items():
        assert not said(text).keys() - C.KNOWN[kind].keys()
    ours = C.keys_of('train.py').keys()
    assert C.WORDS['model'] == MODEL and C.KNOWN.keys() == MODEL.keys()
    for kind, name in MODEL.items():
        fields = C.keys_of(f'{name}.py').keys()
        assert {*C.FIELDS[kind]} <= fields                           # verbatim
        assert {*C.KEYS[kind].values()} - {*C.FIELDS[kind]} <= ours | {'image_resolution'} & fields
        assert not {*C.KEYS[kind]} & {*C.FIXED[kind], *C.IDLE[kind]}
        assert not {*C.FIXED[kind]} & {*C.IDLE[kind]}


def test_defaults_are_read_as_they_are():
    for name in {*MODEL.values()}:
        assert C.keys_of(f'{name}.py') == vars(contract.load(name).Config())


REQUEST = os.path.join(SHARED, 'seeds', 'lerobot_policies.md')
requested = pytest.mark.skipif(not os.path.isfile(REQUEST),
                               reason='no ../shared/seeds/lerobot_policies.md beside the repository')


@requested
def test_the_commands_are_those_of_the_request():
    with open(REQUEST) as f:
        policies = f.read()
    blocks = re.findall(r'^/isaac-sim/python\.sh(?:.*\\\n)+.*\n', policies, re.M)
    texts = MINIMAL, ACT, DIFFUSION, PI0_SHORT, PI0, PI05_SHORT, PI05, SMOLVLA_SHORT, SMOLVLA
    assert [words(block) for block in blocks] == [words(text) for text in texts]
    # a row of a table: the name, and at once the description, which begins with a capital
    tables = policies.partition('Dataset & output arguments')[2]
    rows = re.findall(r'^([a-z][a-z_.0-9]+)(?=[A-Z])', tables, re.M)
    assert len(rows) > 120 and not {*rows} - {name for kind in C.KNOWN for name in C.KNOWN[kind]}


@pytest.mark.skipif(not os.path.isdir(os.path.join(SHARED, 'reference', 'lerobot', 'folders')),
                    reason='no folders of LeRobot beside the repository (../shared/reference/lerobot)')
@pytest.mark.parametrize('kind, folder', [('act', 'act_044'), ('diffusion', 'dp_044')])
def test_the_names_and_the_preset_are_those_of_lerobot(kind, folder):
    """In the config.json that 0.4.4 saved; the optimizer's part of it was left at the defaults."""
    with open(os.path.join(SHARED, 'reference', 'lerobot', 'folders', folder, 'config.json')) as f:
        theirs = json.load(f)
    names = {name.partition('.')[2] for name in C.KNOWN[kind] if name.startswith('policy.')}
    assert names <= theirs.keys()
    for name, key in ELSEWHERE.items():
        if name in theirs:
            value = theirs[name]
            assert C.PRESET[kind][key] == (tuple(value) if isinstance(value, list) else value), name


# ---- what becomes of them ----

@pytest.mark.parametrize('text', [*FULL.values(), BARE, with_data(PI05_SHORT)],
                         ids=[*FULL, 'bare', 'pi05_short'])
def test_the_run_means_what_the_command_says(text, run_of):
    """Each argument with effect arrives; what is not said is as in LeRobot; each is accounted for once."""
    given, config = said(text), printed(text)
    run, kind = run_of(config), given['policy.type']
    expected = dict(KINDS[kind], dataset='lerobot_part_sorting', model=MODEL[kind])
    settings, _, without = config.partition('\n# Without effect:\n')
    for name, value in given.items():
        reasons = re.findall(rf'^#     {re.escape(name)}={re.escape(value)}: .+', without, re.M)
        assert len(reasons) == (name in C.IDLE[kind] or name in C.FIXED[kind]), name
        if reasons:
            continue
        key = name.removeprefix('policy.')
        key = ELSEWHERE.get(key, key)
        if name in ('policy.type', 'dataset.root'):      # said above
            key = {'policy.type': 'model', 'dataset.root': 'dataset'}[name]
        elif name == 'wandb.enable':
            key, expected['log'] = 'log', {'true': 'wandb', 'false': ''}[value]
        elif name == 'policy.pretrained_path':
            key, expected['init_from'] = 'init_from', value
        else:
            expected[key] = meant(value, expected.get(key, ''))
        assert len(re.findall(rf'\b{key}\s=\s', settings.replace('\n# ', ' '))) == 1, name
    if expected['max_steps'] < expected['lr_decay_steps']:           # 3,000 of 30,000
        expected |= {'lr_decay_steps': expected['max_steps'], 'warmup_steps': 100}
    assert {key: run[key] for key in expected} == expected
    assert re.search(r'^# python data/lerobot/prepare.py --src=datasets/Part_Sorting/? '
                     r'--out=data/lerobot_part_sorting --cameras=all --size=HxW$', config, re.M)
    assert ('padding stays' in config) == (kind == 'act')


@pytest.mark.parametrize('name', [name for name in FULL if name != 'minimal'])
def test_the_configs_of_part_sorting_are_what_is_printed(name):
    path = os.path.join(ROOT, 'config', f'part_sorting_{name}.py')
    assert keys_of_file(path) == keys(printed(FULL[name]))
    with open(path) as f:
        ours = f.read()
    asked = 'python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting '
    assert asked in ours.replace(' \\\n#     ', ' ')


@pytest.mark.parametrize('text', FULL.values(), ids=FULL)
def test_what_is_printed_trains(text, data_dir, tmp_path):
    """Two steps of a small network; all other keys are as printed."""
    config = printed(text)
    (tmp_path / 'my.py').write_text(config)
    out, _ = script('train.py', tmp_path / 'my.py', f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out',
                    '--device=cpu', '--max_steps=2', '--val_batches=1', '--batch_size=2',
                    *SMALL[keys(config)['model']])
    assert re.search(r'^step 2/2 \| loss \d', out, re.M)


@pytest.mark.parametrize('change, expected', [
    ('--wandb.enable=true', {'log': 'wandb'}),
    ('--policy.scheduler_name=constant_with_warmup', {'lr_schedule': 'constant', 'warmup_steps': 500}),
    ('--policy.compile_model=True', {'compile': True}),
    ('--policy.down_dims=[64,128]', {'down_dims': (64, 128)}),
    ('--policy.down_dims=64,128', {'down_dims': (64, 128)}),
    ('--policy.resize_shape=[120,160]', {'resize_shape': (120, 160)}),
    ('--policy.num_inference_steps=10', {'num_inference_steps': 10}),
    ('--policy.num_inference_steps=none', {'num_inference_steps': 0}),
    ('--policy.optimizer_lr=3e-4', {'lr': 3e-4}),
    ('--steps=2e5', {'max_steps': 200_000}),
    ('--resume=true', {'resume': True}),
    ('--policy.device=cuda:1', {'device': 'cuda:1'}),
    ('--policy.do_mask_loss_for_padding=true', {'do_mask_loss_for_padding': True, 'padding': 'skip'})])
def test_other_values(change, expected, run_of):
    config = script(COMMAND, '--policy.type=diffusion', '--dataset.root=/x/lerobot_part_sorting', change)[0]
    assert "dataset = 'lerobot_lerobot_part_sorting'" in config
    run = run_of(config.replace('lerobot_lerobot', 'lerobot'))
    assert {key: run[key] for key in expected} == expected
    assert ('padding stays' in config) == ('mask' in change)


@pytest.mark.parametrize('kind, change, expected', [
    ('pi0', '--policy.path=pretrained/pi0_base', {'init_from': 'pretrained/pi0_base'}),
    ('pi0', '--policy.dtype=bfloat16', {'dtype': 'bfloat16'}),
    ('pi0', '--steps=20000', {'max_steps': 20_000, 'lr_decay_steps': 20_000, 'warmup_steps': 666}),
    ('pi0', '--steps=30000', {'max_steps': 30_000, 'lr_decay_steps': 30_000, 'warmup_steps': 1000}),
    ('smolvla', '--policy.scheduler_decay_steps=200000 --policy.scheduler_warmup_steps=10',
     {'lr_decay_steps': 100_000, 'warmup_steps': 5}),
    ('pi0', '--policy.image_resolution=[448,448]', {'image_resolution': (448, 448)}),
    ('smolvla', '--policy.image_resolution=[256,256]', {'image_resolution': (512, 512)}),
    ('smolvla', '--policy.resize_imgs_with_padding=[256,256]', {'image_resolution': (256, 256)}),
    ('smolvla', '--policy.use_cache=true --policy.add_image_special_tokens=false', {'num_steps': 10}),
    ('smolvla', '--policy.attention_mode=self_attn', {'attention_mode': 'self_attn'}),
    ('pi05', '--policy.compile_model=true --policy.gradient_checkpointing=true',
     {'compile': True, 'gradient_checkpointing': True, 'pi05': True, 'tokenizer_max_length': 0})])
def test_other_values_of_those_that_read(kind, change, expected, run_of):
    config = script(COMMAND, f'--policy.type={kind}', '--dataset.root=Part_Sorting', *change.split())[0]
    run = run_of(config)
    assert {key: run[key] for key in expected} == expected
    assert ('start at random' in config) == ('path' not in change)
    assert ('the weights stay float32' in config) == ('bfloat16' in change)
    vlm = 'SmolVLM2' if kind == 'smolvla' else 'PaliGemma'
    assert re.search(rf'tokenizer.json( of {vlm})?', config) and vlm in config


def test_the_kind_may_be_that_of_the_weights(tmp_path):
    """A short command names weights; their config.json says of which policy, once they are there."""
    for kind, text in SHORT.items():
        _, errors = script(COMMAND, *words(text), code=1)
        problem = one_line(errors)
        assert problem.startswith('--dataset.root=: ' if kind == 'pi05' else '--policy.path=lerobot/'), kind
        if kind == 'pi05':
            continue
        weights = tmp_path / kind
        weights.mkdir()
        local = text.replace(f'lerobot/{kind}_base', str(weights)).rstrip() + ' --dataset.root=Part_Sorting'
        for broken in '{', '[]', '{}', '{"type": []}':
            (weights / 'config.json').write_text(broken)
            assert one_line(script(COMMAND, *words(local), code=1)[1]).startswith('--policy.')
        (weights / 'config.json').write_text(json.dumps({'type': kind}))
        found = keys(printed(local))
        assert (found['model'], found['init_from']) == (MODEL[kind], str(weights))
        assert (found['warmup_steps'], found['lr_decay_steps'], found['max_steps']) == (666, 20_000, 20_000)


@pytest.mark.parametrize('root, dataset', [
    ('datasets/Part_Sorting/', 'lerobot_part_sorting'), ('My set-2.1', 'lerobot_my_set_2_1'),
    ("it's\nhere", 'lerobot_it_s_here')])
def test_the_name_of_the_dataset(root, dataset):
    config = script(COMMAND, '--policy.type=act', f'--dataset.root={root}')[0]
    assert keys(config)['dataset'] == dataset
    line, = re.findall('^# (python .*)', config, re.M)
    assert f'--out=data/{dataset}' in shlex.split(line)


def test_a_command_may_come_by_stdin_and_begin_in_any_way(monkeypatch):
    for text in ACT, DIFFUSION:
        monkeypatch.setattr('sys.stdin', io.StringIO(text))
        assert script(COMMAND, '-')[0] == printed(text)
    arguments = '--policy.type=act', '--dataset.root=x', '--job_name=lerobot_train.py'
    same = {script(COMMAND, *before, *arguments)[0]
            for before in ([], ['lerobot_train.py'], ['python', 'x/lerobot_train.py'], ['lerobot-train'],
                           ['python', '-m', 'lerobot.scripts.lerobot_train'],
                           ['accelerate', 'launch', '--num_processes=2', '/bin/lerobot-train'])}
    assert len(same) == 1 and 'job_name=lerobot_train.py' in same.pop()


# ---- what is refused ----

OF = {kind: f'--policy.type={kind} --dataset.root=x' for kind in KINDS}


@pytest.mark.parametrize('kind, change, message', [
    ('act', '--policy.dim_modle=3', '--policy.dim_modle=3: no argument that we know; did you mean '
                                    '--policy.dim_model?'),
    ('act', '--zzz=1', '--zzz=1: no argument that we know'),
    ('act', '--policy.down_dims=[1]', '--policy.down_dims=[1]: an argument of diffusion, not of act'),
    ('act', '--policy.compile_mode=x', '--policy.compile_mode=x: an argument of diffusion, not of act'),
    ('act', '--policy.optimizer_eps=1', '--policy.optimizer_eps=1: an argument of diffusion, not of act'),
    ('diffusion', '--policy.chunk_size=3', '--policy.chunk_size=3: an argument of act, not of diffusion'),
    ('diffusion', '--policy.optimizer_eps=1e-6', '--policy.optimizer_eps=1e-6: only 1e-08 is possible here'),
    ('diffusion', '--policy.scheduler_name=linear',
     '--policy.scheduler_name=linear: want cosine or constant_with_warmup'),
    ('diffusion', '--policy.compile_model=maybe', '--policy.compile_model=maybe: want true or false'),
    ('diffusion', '--policy.down_dims=a,b', '--policy.down_dims=a,b: want tuple like (512, 1024, 2048)'),
    ('act', '--policy.n_obs_steps=2', '--policy.n_obs_steps=2: only 1 is possible here'),
    ('act', '--policy.vision_backbone=resnet34',
     '--policy.vision_backbone=resnet34: only resnet18 is possible here'),
    ('act', '--save_checkpoint=false', '--save_checkpoint=false: only true is possible here'),
    ('act', '--wandb.enable=maybe', '--wandb.enable=maybe: want true or false'),
    ('act', '--steps=1.5', '--steps=1.5: want int like 100000'),
    ('act', '--policy.dropout=null', '--policy.dropout=null: want float like 0.1'),
    ('act', '--policy.use_vae=maybe', '--policy.use_vae=maybe: want bool like True'),
    ('act', '--seed=1 --seed=2', '--seed is there twice: 1, 2'),
    ('act', '--policy.type=diffusion', '--policy.type is there twice: act, diffusion'),
    ('act', '--policy.use_amp', '--policy.use_amp: want --NAME=VALUE'),
    ('act', 'seed=1', 'seed=1: want --NAME=VALUE'),
    ('act', '--policy.dtype=float32', '--policy.dtype=float32: an argument of pi0, not of act'),
    ('pi0', '--policy.num_steps=5', '--policy.num_steps=5: an argument of smolvla, not of pi0'),
    ('smolvla', '--policy.paligemma_variant=x',
     '--policy.paligemma_variant=x: an argument of pi0, not of smolvla'),
    ('pi0', '--policy.path=a --policy.pretrained_path=b',
     '--policy.pretrained_path=b: --policy.path says already what init_from is'),
    ('pi0', '--policy.n_obs_steps=2', '--policy.n_obs_steps=2: only 1 is possible here'),
    ('pi05', '--policy.optimizer_eps=1e-6', '--policy.optimizer_eps=1e-6: only 1e-08 is possible here'),
    ('pi0', '--policy.dtype=float16', '--policy.dtype=float16: want float32 or bfloat16'),
    ('smolvla', '--policy.use_cache=false', '--policy.use_cache=false: only true is possible here'),
    ('smolvla', '--policy.add_image_special_tokens=true',
     '--policy.add_image_special_tokens=true: only false is possible here'),
    ('pi05', '--policy.image_resolution=big',
     '--policy.image_resolution=big: want tuple like (224, 224)')])
def test_refused(kind, change, message):
    out, errors = script(COMMAND, *OF[kind].split(), *change.split(), code=1)
    assert out == '' and one_line(errors) == message


FOLDER = 'want the folder of a data set; one of the hub is downloaded first'
ONE_OF = 'the command must name one of act, diffusion, pi0, pi05, smolvla'


@pytest.mark.parametrize('text, message', [
    ('', f'--policy.type=: {ONE_OF}'), ('--dataset.root=x', f'--policy.type=: {ONE_OF}'),
    ('--policy.type=tdmpc --dataset.root=x', f'--policy.type=tdmpc: {ONE_OF}'),
    ('--policy.path=x/y --dataset.root=x', '--policy.path=x/y: no folder whose config.json says a type; '
                                           'download it, or give --policy.type, too'),
    ('--policy.type=act', f'--dataset.root=: {FOLDER}'),
    ('--policy.type=act --dataset.root=/', f'--dataset.root=/: {FOLDER}')])
def test_what_must_be_said(text, message):
    out, errors = script(COMMAND, *text.split(), code=1)
    assert out == '' and one_line(errors) == message


def test_all_problems_at_once_and_a_quote_that_never_ends(monkeypatch):
    out, errors = script(COMMAND, *OF['act'].split(), '--zzz=1', '--seed=x', 'y', code=1)
    assert out == '' and errors.splitlines() == [
        'y: want --NAME=VALUE', '--zzz=1: no argument that we know', '--seed=x: want int like 1']
    _, errors = script(COMMAND, '--policy.type', 'act', code=1)
    assert errors.splitlines() == ['--policy.type: want --NAME=VALUE', 'act: want --NAME=VALUE']
    monkeypatch.setattr('sys.stdin', io.StringIO("--policy.down_dims='[1"))
    assert one_line(script(COMMAND, '-', code=1)[1]) == 'stdin: No closing quotation'
    assert 'python data/lerobot/command.py' in script(COMMAND, '--help')[0]
