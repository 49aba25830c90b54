"""data/lerobot/command.py: three commands of LeRobot become runs that mean the same, what is wrong a line."""
import io
import json
import os
import re
import shlex

import numpy as np
import pytest
from conftest import ROOT, SHARED, one_line, script

import contract
from configurator import configure
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
BARE = '--policy.type=diffusion --dataset.root=datasets/Part_Sorting'      # all else is LeRobot's to decide
# where a value goes that has another name here
ELSEWHERE = {'output_dir': 'out_dir', 'log_freq': 'log_every', 'save_freq': 'save_every',
             'steps': 'max_steps', 'optimizer_lr': 'lr', 'optimizer_weight_decay': 'weight_decay',
             'optimizer_betas': 'betas', 'scheduler_name': 'lr_schedule',
             'scheduler_warmup_steps': 'warmup_steps', 'compile_model': 'compile'}
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
KINDS = {'act': OF_ACT, 'diffusion': OF_DIFFUSION}
SMALL = {'act': ['--chunk_size=4', '--n_action_steps=2', '--dim_model=16', '--n_heads=2',
                 '--dim_feedforward=8', '--n_encoder_layers=1', '--n_vae_encoder_layers=1',
                 '--pretrained_backbone_weights='],
         'diffusion_policy': ['--down_dims=8,16', '--n_groups=4', '--horizon=8', '--n_action_steps=4',
                              '--drop_n_last_frames=0', '--spatial_softmax_num_keypoints=4',
                              '--diffusion_step_embed_dim=8']}


def words(text):
    return shlex.split(text.replace('\\\n', ' '), comments=True)


def said(text):
    """{argument: text} of a command."""
    return dict(word[2:].split('=', 1) for word in words(text) if word.startswith('--'))


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

def test_sixty_eight_names():
    names = {name for text in (MINIMAL, ACT, DIFFUSION) for name in said(text)}
    assert len(names) == 68 and names == {*C.KNOWN['act'], *C.KNOWN['diffusion']}
    for text in MINIMAL, ACT, DIFFUSION:
        assert not said(text).keys() - C.KNOWN[said(text)['policy.type']].keys()
    ours = C.keys_of('train.py').keys()
    for kind, file in ('act', 'act.py'), ('diffusion', 'diffusion_policy.py'):
        assert {*C.FIELDS[kind]} <= C.keys_of(file).keys()           # verbatim
        assert {*C.KEYS[kind].values()} - {*C.FIELDS[kind]} <= ours
        assert not {*C.KEYS[kind]} & {*C.FIXED[kind], *C.IDLE}


def test_defaults_are_read_as_they_are():
    for name in 'act', 'diffusion_policy':
        assert C.keys_of(f'{name}.py') == vars(contract.load(name).Config())


REQUEST = os.path.join(SHARED, 'seeds', 'lerobot_policies.md')
requested = pytest.mark.skipif(not os.path.isfile(REQUEST),
                               reason='no ../shared/seeds/lerobot_policies.md beside the repository')


@requested
def test_the_commands_are_those_of_the_request():
    with open(REQUEST) as f:
        policies = f.read().partition('\n3. ')[0]                   # what follows are other policies
    blocks = re.findall(r'^/isaac-sim/python\.sh(?:.*\\\n)+.*\n', policies, re.M)
    assert [words(block) for block in blocks] == [words(text) for text in (MINIMAL, ACT, DIFFUSION)]
    # a row of a table: the name, and at once the description, which begins with a capital
    tables = policies.partition('Dataset & output arguments')[2]
    rows = re.findall(r'^([a-z][a-z_.0-9]+)(?=[A-Z])', tables, re.M)
    assert len(rows) > 50 and not {*rows} - {*C.KNOWN['act'], *C.KNOWN['diffusion']}


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

@pytest.mark.parametrize('text', [MINIMAL, ACT, DIFFUSION, BARE], ids=['minimal', 'act', 'diffusion', 'bare'])
def test_the_run_means_what_the_command_says(text, run_of):
    """Each argument with effect arrives; what is not said is as in LeRobot; each is accounted for once."""
    given, config = said(text), printed(text)
    run, kind = run_of(config), given['policy.type']
    expected = dict(KINDS[kind], dataset='lerobot_part_sorting')
    settings, _, without = config.partition('\n# Without effect:\n')
    for name, value in given.items():
        reasons = re.findall(rf'^#     {re.escape(name)}={re.escape(value)}: .+', without, re.M)
        assert len(reasons) == (name in C.IDLE or name in C.FIXED[kind]), name
        if reasons:
            continue
        key = name.removeprefix('policy.')
        key = ELSEWHERE.get(key, key)
        if name in ('policy.type', 'dataset.root', 'wandb.enable'):  # said above
            key = {'policy.type': 'model', 'dataset.root': 'dataset', 'wandb.enable': 'log'}[name]
        else:
            expected[key] = meant(value, expected.get(key, ''))
        assert len(re.findall(rf'\b{key}\s=\s', settings.replace('\n# ', ' '))) == 1, name
    assert {key: run[key] for key in expected} == expected
    assert re.search(r'^# python data/lerobot/prepare.py --src=datasets/Part_Sorting/? '
                     r'--out=data/lerobot_part_sorting --cameras=all --size=HxW$', config, re.M)
    assert ('padding stays' in config) == (kind == 'act')


@pytest.mark.parametrize('name, text', [('act', ACT), ('diffusion', DIFFUSION)])
def test_the_configs_of_part_sorting_are_what_is_printed(name, text):
    with open(os.path.join(ROOT, 'config', f'part_sorting_{name}.py')) as f:
        ours = f.read()
    assert keys(ours) == keys(printed(text))
    asked = 'python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting '
    assert asked in ours.replace(' \\\n#     ', ' ')


@pytest.mark.parametrize('text', [MINIMAL, ACT, DIFFUSION], ids=['minimal', 'act', 'diffusion'])
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

OF = {'act': '--policy.type=act --dataset.root=x', 'diffusion': '--policy.type=diffusion --dataset.root=x'}


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
    ('act', 'seed=1', 'seed=1: want --NAME=VALUE')])
def test_refused(kind, change, message):
    out, errors = script(COMMAND, *OF[kind].split(), *change.split(), code=1)
    assert out == '' and one_line(errors) == message


FOLDER = 'want the folder of a data set; one of the hub is downloaded first'


@pytest.mark.parametrize('text, message', [
    ('', '--policy.type=: the command must name act or diffusion; others are not here'),
    ('--dataset.root=x', '--policy.type=: the command must name act or diffusion; others are not here'),
    ('--policy.type=pi0 --dataset.root=x',
     '--policy.type=pi0: the command must name act or diffusion; others are not here'),
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
