"""
A training command of LeRobot 0.4.4, for ACT, Diffusion Policy, pi0, pi0.5 or SmolVLA -> a config of
train.py, on stdout.

    python data/lerobot/command.py lerobot_train.py --policy.type=act --dataset.root=... > config/my.py
    python data/lerobot/command.py - < command.sh                      or as it stands in a file

It says what became of each argument: a key of ours, our default, or nothing, and why. What the command
leaves open is as LeRobot has it, and printed where we would do otherwise. An argument that we do not know is
an error. Nothing of the data, the model or torch is loaded: whether values go together train.py says.
"""
import ast
import difflib
import json
import re
import shlex
import sys
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import fit, read_flag  # noqa: E402

# ---- the arguments ----

TRAIN = {                                                # argument: key of train.py
    'policy.type': 'model', 'dataset.root': 'dataset', 'output_dir': 'out_dir', 'resume': 'resume',
    'seed': 'seed', 'policy.device': 'device', 'wandb.enable': 'log', 'log_freq': 'log_every',
    'save_freq': 'save_every', 'steps': 'max_steps', 'batch_size': 'batch_size', 'policy.optimizer_lr': 'lr',
    'policy.optimizer_weight_decay': 'weight_decay'}
DIFFUSION = {                                            # the same, which ACT has not
    'policy.optimizer_betas': 'betas', 'policy.scheduler_name': 'lr_schedule',
    'policy.scheduler_warmup_steps': 'warmup_steps', 'policy.compile_model': 'compile'}
VLA = {key: DIFFUSION[key] for key in DIFFUSION if key != 'policy.scheduler_name'} | {
    'policy.path': 'init_from', 'policy.pretrained_path': 'init_from', 'policy.dtype': 'dtype',
    'policy.optimizer_grad_clip_norm': 'grad_clip', 'policy.scheduler_decay_steps': 'lr_decay_steps',
    'policy.scheduler_decay_lr': 'min_lr'}               # pi0, pi0.5, SmolVLA
FIELDS = {                                               # of Config: policy.<field>, by the same name
    'act': """
        chunk_size n_action_steps pretrained_backbone_weights dim_model n_heads dim_feedforward
        n_encoder_layers n_decoder_layers use_vae latent_dim n_vae_encoder_layers dropout kl_weight
        optimizer_lr_backbone""".split(),
    'diffusion': """
        n_obs_steps horizon n_action_steps vision_backbone pretrained_backbone_weights resize_shape crop_ratio
        crop_shape crop_is_random use_group_norm spatial_softmax_num_keypoints
        use_separate_rgb_encoder_per_camera down_dims kernel_size n_groups diffusion_step_embed_dim
        use_film_scale_modulation noise_scheduler_type num_train_timesteps beta_schedule beta_start beta_end
        prediction_type clip_sample clip_sample_range num_inference_steps do_mask_loss_for_padding""".split(),
    'pi0': """
        paligemma_variant action_expert_variant chunk_size n_action_steps max_state_dim max_action_dim
        num_inference_steps time_sampling_beta_alpha time_sampling_beta_beta time_sampling_scale
        time_sampling_offset min_period max_period image_resolution empty_cameras tokenizer_max_length
        gradient_checkpointing freeze_vision_encoder train_expert_only""".split(),
    'smolvla': """
        vlm_model_name num_vlm_layers expert_width_multiplier attention_mode self_attn_every_n_layers
        chunk_size n_action_steps max_state_dim max_action_dim num_steps min_period max_period empty_cameras
        tokenizer_max_length gradient_checkpointing freeze_vision_encoder train_expert_only
        train_state_proj""".split()}
FIELDS['pi05'] = FIELDS['pi0']
KEYS = {'act': TRAIN, 'diffusion': TRAIN | DIFFUSION, 'pi0': TRAIN | VLA, 'pi05': TRAIN | VLA,
        'smolvla': TRAIN | VLA | {'policy.resize_imgs_with_padding': 'image_resolution'}}
KEYS = {kind: KEYS[kind] | {f'policy.{field}': field for field in FIELDS[kind]} for kind in KEYS}
ONE, EPS = {'save_checkpoint': True, 'policy.n_obs_steps': 1}, {'policy.optimizer_eps': 1e-8}
FIXED = {                                                # argument: its only possible value
    'act': ONE | {'policy.vision_backbone': 'resnet18'}, 'diffusion': {'save_checkpoint': True} | EPS,
    'pi0': ONE | EPS, 'pi05': ONE | EPS,
    'smolvla': ONE | EPS | {'policy.use_cache': True, 'policy.add_image_special_tokens': False}}
IDLE = {                                                 # argument: why it has no effect
    'dataset.repo_id': 'the folder says which data',
    'dataset.video_backend': 'prepare.py reads the films, once, by PyAV',
    'job_name': 'a run bears the name of its out_dir; trackers may be told another, as WANDB_NAME',
    'num_workers': 'batches come out of a memory map, for which one thread is enough',
    'eval_freq': 'LeRobot, too, evaluates only in a simulator, and the command names none',
    'wandb.entity': "with log = 'wandb' it is WANDB_ENTITY in the environment",
    'policy.use_amp': "nor has it in LeRobot's training, where accelerate decides; here it is dtype",
    'policy.repo_id': 'nothing is uploaded', 'policy.push_to_hub': 'nothing is uploaded'}
MODE = {'policy.compile_mode': "with compile = True it is torch's default"}
IDLE = {kind: IDLE | MODE if kind != 'act' else IDLE for kind in KEYS}
IDLE['smolvla'] |= {
    'policy.load_vlm_weights': 'here --init_from says it: of a policy, or of SmolVLM2, whose VLM alone it is',
    'policy.image_resolution': "no SmolVLA of LeRobot's has it: pictures become 512 x 512, or what "
                               'policy.resize_imgs_with_padding says, 256 or 512; 224 is impossible'}
KNOWN = {kind: KEYS[kind] | FIXED[kind] | IDLE[kind] for kind in KEYS}

# ---- the values ----

WORDS = {                                                # key: {their word: ours}
    'model': {'act': 'act', 'diffusion': 'diffusion_policy', 'pi0': 'pi0', 'pi05': 'pi0',
              'smolvla': 'smolvla'}, 'log': {'true': 'wandb', 'false': ''},
    'dtype': {'float32': 'float32', 'bfloat16': 'bfloat16'}, 'compile': {'true': True, 'false': False},
    'lr_schedule': {'cosine': 'cosine', 'constant_with_warmup': 'constant'}}
OPEN = {                                                 # what LeRobot does where a command says nothing
    'seed': 1000, 'log_every': 200, 'save_every': 20_000, 'keep': 0, 'max_steps': 100_000, 'batch_size': 8,
    'dtype': 'float32'}
PRESET = {
    'act': {'lr': 1e-5, 'weight_decay': 1e-4, 'betas': (0.9, 0.999), 'lr_schedule': 'constant',
            'grad_clip': 10.0, 'pretrained_backbone_weights': 'ResNet18_Weights.IMAGENET1K_V1'},
    'diffusion': {'lr': 1e-4, 'weight_decay': 1e-6, 'betas': (0.95, 0.999), 'lr_schedule': 'cosine',
                  'warmup_steps': 500, 'grad_clip': 10.0, 'compile': False},
    'pi0': {'lr': 2.5e-5, 'weight_decay': 0.01, 'betas': (0.9, 0.95), 'lr_schedule': 'cosine',
            'warmup_steps': 1000, 'lr_decay_steps': 30_000, 'min_lr': 2.5e-6, 'grad_clip': 1.0,
            'compile': False}}
PRESET['pi05'] = PRESET['pi0']
PRESET['smolvla'] = PRESET['pi0'] | {'lr': 1e-4, 'weight_decay': 1e-10, 'grad_clip': 10.0}
NOTES = {'batch_size': 'over all GPUs, in LeRobot on each', 'keep': 'all checkpoints',
         'dtype': 'unless accelerate is told otherwise', 'lr_decay_steps': 'at min_lr from there on',
         'init_from': 'a folder; one of the hub is downloaded first'}


def keys_of(file):
    """{key: default} of train.py, or of the Config in a model file: read, for train.py would train."""
    body, found = ast.parse((ROOT / file).read_text()).body, {}
    config = [node.body for node in body if isinstance(node, ast.ClassDef) and node.name == 'Config']
    for node in config[0] if config else body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            key = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            try:
                found[ast.unparse(key)] = ast.literal_eval(node.value)
            except ValueError:                           # computed, so it is no key
                continue
    return found


def arguments(words):
    """The words of a command, with or without those that start it -> {argument: text}, [problems]."""
    starts = [i for i, word in enumerate(words) if re.fullmatch(r'(?!--).*lerobot[-_]train(\.py)?', word)]
    given, problems = {}, []
    for word in words[starts[-1] + 1:] if starts else words:
        name, equals, text = word.partition('=')
        if not (name.startswith('--') and equals):
            problems.append(f'{word}: want --NAME=VALUE')
        elif name[2:] in given:
            problems.append(f'{name} is there twice: {given[name[2:]]}, {text}')
        else:
            given[name[2:]] = text
    return given, problems


def value_of(key, text, default):
    """A text of theirs -> a value of ours; ValueError says what we want."""
    if key in WORDS:
        if text.lower() not in WORDS[key]:
            raise ValueError(f'want {" or ".join(WORDS[key])}')
        return WORDS[key][text.lower()]
    if key == 'dataset':
        if not Path(text).name:
            raise ValueError('want the folder of a data set; one of the hub is downloaded first')
        return 'lerobot_' + re.sub(r'\W+', '_', Path(text).name.lower())
    if text.lower() in ('null', 'none') and not default:             # none is '', () or 0 here
        return default
    try:
        return fit(read_flag(text, default), default)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'want {type(default).__name__} like {default!r}') from None


def translate(kind, name, text, ours):
    """An argument -> (our key, its value), or (None, why it has no effect); ValueError says what is wrong."""
    if name in IDLE[kind]:
        return None, IDLE[kind][name]
    if name in FIXED[kind]:
        only = FIXED[kind][name]
        if read_flag(text, only) != only:
            raise ValueError(f'only {str(only).lower()} is possible here')
        return None, 'always so here'
    if name in KEYS[kind]:
        key = KEYS[kind][name]
        return key, value_of(key, text, ours[key])
    for other in KNOWN:
        if name in KNOWN[other]:
            raise ValueError(f'an argument of {other}, not of {kind}')
    close = difflib.get_close_matches(name, KNOWN[kind], 1)
    raise ValueError('no argument that we know' + (f'; did you mean --{close[0]}?' if close else ''))


def kind_of(given):
    """The policy's type: as the command says, or the config.json of the folder that it starts from."""
    path = given.get('policy.path', '')
    if 'policy.type' in given or not path:
        return given.get('policy.type', '')
    try:
        return str(json.loads((Path(path) / 'config.json').read_text())['type'])
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f'--policy.path={path}: no folder whose config.json says a type; download it, or give '
                 '--policy.type, too')


def shortened(found, kind):
    """-> {key: (value, why)}: LeRobot lets no decay outlast the run, and shortens the warm-up as much."""
    told = OPEN | PRESET[kind] | {key: value for key, (value, _) in found.items()}
    steps, warmup, decay = told['max_steps'], told.get('warmup_steps'), told.get('lr_decay_steps', 0)
    if not 0 < steps < decay:
        return {}
    return {'warmup_steps': (int(warmup * (steps / decay)), f'{warmup} x {steps} / {decay}, as in LeRobot'),
            'lr_decay_steps': (steps, f'as long as the run, not {decay}, as in LeRobot')}


# ---- the config ----

def comment(text, margin='# '):
    return fill(text, 110, initial_indent=margin, subsequent_indent=margin, break_long_words=False,
                break_on_hyphens=False)


def config_of(kind, found, ours):
    """{key: (value, argument)} -> lines: first what differs from our defaults, then what does not."""
    told = {key: (value, "LeRobot's default") for key, value in OPEN.items()}
    told |= {key: (value, f"LeRobot's preset of {kind}") for key, value in PRESET[kind].items()} | found
    lines, same = [], []
    for key in sorted(told, key=['model', 'pi05', *KEYS[kind].values(), *told].index):
        value, why = told[key]
        line, why = f'{key} = {value!r}', '' if why in (key, f'policy.{key}') else why
        if value == ours[key]:
            same.append(f'{line} ({why})' if why else line)
            continue
        why = '; '.join(filter(None, (why, NOTES.get(key))))
        lines.append(f'{line:<29}  # {why}' if why else line)
    return [*lines, '', comment(f'As by default here: {", ".join(same)}.')]


def remarks(kind, found):
    """Where the same values mean something else there."""
    said = {key: value for key, (value, _) in found.items()}
    if kind == 'act' or said.get('do_mask_loss_for_padding'):
        yield ("padding stays 'skip', as in LeRobot from 0.6 on; 0.4.4 counts padded actions as errors of 0, "
               "which is 'zeros' here.")
    if kind == 'smolvla':
        yield ('Padded actions and the zeros behind an action do not count, as in LeRobot from 0.6 on; in '
               '0.4.4 they do. There SmolVLA has no policy.dtype or .gradient_checkpointing, here it has.')
    if kind == 'pi05':
        yield 'The prompt has the numbers of the state, as in LeRobot from 0.5 on; 0.4.4 pads them to 32.'
    if said.get('dtype') == 'bfloat16':
        yield ('bfloat16 is that of the computation: the weights stay float32, because in bfloat16, as in '
               'LeRobot, most steps of AdamW are too small to move them.')
    vlm = {'smolvla': 'SmolVLM2'}.get(kind, 'PaliGemma')
    if said.get('init_from'):
        yield (f'Its words are those of {vlm}: --tokenizer=its tokenizer.json. What the command leaves open '
               "LeRobot takes from the policy's config.json; it is not read here.")
    elif kind not in ('act', 'diffusion'):
        alone = ' FOLDER: a policy, or SmolVLM2 itself, as policy.load_vlm_weights has it.'
        yield ('No policy.path: all weights start at random, those that stay frozen, too, and words are '
               f'hashed. For published ones: --init_from=FOLDER and --tokenizer=tokenizer.json of {vlm}.'
               + alone * (kind == 'smolvla'))


def main():
    words = sys.argv[1:]
    if '--help' in words:
        return print(__doc__)
    if words == ['-']:
        try:
            words = shlex.split(sys.stdin.read().replace('\\\n', ' '), comments=True)
        except ValueError as error:
            sys.exit(f'stdin: {error}')
    (given, problems), found, without = arguments(words), {}, []
    if given.get('policy.type') not in KEYS and problems:            # --policy.type act, without the sign
        sys.exit('\n'.join(problems))
    kind = kind_of(given)
    if kind not in KEYS:
        sys.exit(f'--policy.type={kind}: the command must name one of {", ".join(KEYS)}')
    ours = keys_of('train.py') | keys_of(f'{WORDS["model"][kind]}.py')
    for name, text in ({'policy.type': kind, 'dataset.root': ''} | given).items():
        try:
            key, value = translate(kind, name, text, ours)
        except ValueError as error:
            problems.append(f'--{name}={text}: {error}')
            continue
        if key in found:
            problems.append(f'--{name}={text}: --{found[key][1]} says already what {key} is')
        elif key:
            found[key] = value, name
        else:
            without.append(comment(f'{name}={text}: {value}', '#     '))
    if problems:
        sys.exit('\n'.join(problems))
    found |= {'pi05': (True, 'policy.type')} if kind == 'pi05' else {}
    found |= shortened(found, kind)
    prepare = (f'python data/lerobot/prepare.py --src={shlex.quote(given["dataset.root"])} '
               f'--out=data/{found["dataset"][0]} --cameras=all --size=HxW')
    print(comment('A command of LeRobot, translated by data/lerobot/command.py. The data first; LeRobot '
                  'takes pictures as they were recorded, H x W, and keeps no episodes to validate on; here a '
                  'tenth is kept:'))
    print('#', *prepare.split())
    print(*config_of(kind, found, ours), sep='\n')
    for remark in remarks(kind, found):
        print(comment(remark))
    print('# Without effect:', *without, sep='\n')


if __name__ == '__main__':
    main()
