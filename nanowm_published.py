"""
The authors' checkpoints of NanoWM: find the files, read what stands beside the weights, make a run of ours.

    user/name                            a repository on the hub: model.safetensors and config.yaml
    a folder, or a .safetensors file     the same two files on disk
    RUN/checkpoints/<any>/*.ckpt         what Lightning saved; config.yaml lies in RUN, or beside it

    python nanowm.py import SRC OUT_DIR DATASET          for eval.py, sample.py and train.py --init_from
    nanowm.Model.from_pretrained(SRC, stats)             the model itself

Keys and shapes of the weights are ours. The sizes follow from the shapes, the rest from config.yaml; where
both speak they must agree. By which numbers actions were normalised is told by neither. Nothing is guessed:
what is missing or unknown ends in one line. No published file was at hand: the
names are those of the authors' source, and the tests write both layouts.
"""
import math
import os
import re
import sys
from dataclasses import asdict

import torch

import checkpoint
import nanowm
from data.layout import identity, read_meta

# where config.yaml has a field of our Config; those that are not here are ours, and off by default
KEYS = {
    'pred': 'experiment.diffusion.pred_name',
    'schedule': 'experiment.diffusion.noise_schedule',
    'ztsnr': 'experiment.diffusion.zero_terminal_snr',
    'timesteps': 'experiment.diffusion.diffusion_steps',
    't_sampling': 'experiment.diffusion.timestep_sampling',
    'snr_gamma': 'experiment.diffusion.snr_gamma',
    'history_level': 'experiment.diffusion.history_stabilization_level',
    'injection': 'model.action_injection.type',
    'n_context': 'model.n_context_frames',
    'sampling': 'model.scheduling_mode',
    'sample_steps': 'model.num_sampling_steps',
    'num_frames': 'model.num_frames',
    'height': 'model.latent_size',
    'channels': 'model.latent_channels',
    'frame_skip': 'dataset.frame_interval',
    'action_dim': 'dataset.spec.action_dim'}
WORDS = {'squaredcos_cap_v2': 'cosine', 'epsilon': 'eps'}            # theirs: ours
ABSENT = {                                                           # what it means if the key is not there
    'model.latent_channels': '4', 'latent_codec.kind': 'sd_vae', 'dataset.loader.action_scale': '1'}
FIXED = {                                                            # nanowm.py knows nothing else
    'model.causal': 'true', 'model.use_action': 'true', 'model.extras': '1', 'latent_codec.kind': 'sd_vae'}
SIZES = {                                                # tensors that tell sizes: how many axes they have
    'x_embedder.proj.weight': 4, 'pos_embed': 3, 'temp_embed': 3, 'action_embedder.mlp.0.weight': 2,
    'blocks.0.attn.q_norm.weight': 1}
EXTRAS = {'adaln': 'action_adaLN_modulation.1.weight', 'film': 'film_modulation.1.weight',
          'cross_attention': 'cross_gate'}                           # weights that only this injection has

ID = re.compile(r'\w[\w.-]*/\w[\w.-]*')                  # ./x and ../x are paths
LINE = re.compile(r"""( *)(['"]?)([^\s'"#-][^'"]*?)\2:(?: +(.*))?""")        # `key: text`; a list has `- `


def load(cls, src, stats, over):
    """nanowm.Model.from_pretrained says what the arguments are -> the model in eval mode, its step or 0."""
    weights, said, step = read(src)
    try:
        model = cls(config_of(weights, said, over))
        mean, std = action_statistics(said, stats, model.cfg.action_dim)
    except ValueError as error:
        sys.exit(f'{src}: {error}')
    checkpoint.fill(model, weights, src, may_lack=('action_mean', 'action_std'))
    model.action_mean.copy_(mean)
    model.action_std.copy_(std)
    return model.eval(), step


# ---- files ----

def read(src):
    """-> weights {key: tensor}, the entries of config.yaml {'a.b.key': text}, the step or 0."""
    file, config = find(src)
    said = ABSENT | read_yaml(config)
    advice = 'fetch or copy it again'
    if file.endswith('.ckpt'):                           # Lightning may save objects beside the tensors
        advice += ', or save {state_dict, global_step} of it alone, where you trust it'
    weights, step = checkpoint.read(*os.path.split(file), advice), 0
    if file.endswith('.ckpt'):
        state, step = weights.get('state_dict'), weights.get('global_step')
        if not isinstance(state, dict) or not isinstance(step, int):
            sys.exit(f'{file} has no state_dict or no global_step: Lightning did not save it')
        # those of the model, perhaps compiled; there are also those of the codec
        weights = {key.removeprefix('model.').removeprefix('_orig_mod.'): x for key, x in state.items()
                   if key.startswith('model.') and isinstance(x, torch.Tensor)}
    return weights, said, step


def find(src):
    """The files of weights and of settings."""
    named = src.endswith(('.ckpt', '.safetensors'))
    if ID.fullmatch(src) and not named and not os.path.exists(src):
        try:
            config = checkpoint.hub(src, 'config.yaml')  # first: it is soon here, or not there
            return checkpoint.hub(src, 'model.safetensors'), config
        except SystemExit as problem:                    # who mistyped a folder did not mean the hub
            sys.exit(f'no folder {src} here, and as a repository: {problem.code}')
    file = os.path.join(src, 'model.safetensors') if os.path.isdir(src) else src
    kinds = 'an OUT_DIR of ours, user/name on the hub, a folder with model.safetensors, or a .ckpt'
    if not os.path.exists(file):
        there = os.listdir(src) if os.path.isdir(src) else []
        other = [name for name in there if name.endswith(('.safetensors', '.ckpt'))]
        more = f'; or do you mean {", ".join(sorted(other))}?' if other else ''
        sys.exit(f'no checkpoint in {src!r}; want {kinds}{more}')
    if not file.endswith(('.safetensors', '.ckpt')):
        sys.exit(f'{src} is a file, but none of weights; want {kinds}')
    here = os.path.dirname(file)
    places = [os.path.join(here, 'config.yaml')]
    if file.endswith('.ckpt'):
        places.insert(0, os.path.normpath(os.path.join(here, '..', '..', 'config.yaml')))
    config = next((place for place in places if os.path.exists(place)), None)
    if config is None:
        sys.exit(f'{file}: no {" and no ".join(places)}; it belongs beside the weights and says what their '
                 'shapes do not')
    return file, config


def read_yaml(path):
    """
    The `key: text` lines of a file as OmegaConf.save writes it, nested by their indentation. Lists are left
    out, and null, which says nothing. Numbers stay texts, and so does ${...}. {a: b} and texts of several
    lines are not understood; a key that is needed and lies in one is missing, then.
    """
    found, above = {}, []                                # above: (indentation, key) of the lines we are in
    try:
        with open(path, encoding='utf-8') as f:
            lines = f.read().splitlines()
    except (OSError, ValueError) as error:
        sys.exit(f'cannot read {path}: {checkpoint.reason_of(error)}; fetch or copy it again')
    for line in lines:
        match = LINE.fullmatch(line.rstrip())
        if not match:
            continue
        indent, _, key, value = match.groups(default='')
        above = [(there, name) for there, name in above if there < len(indent)] + [(len(indent), key)]
        quoted = re.fullmatch(r"""(['"])(.*)\1""", value)
        value = quoted[2] if quoted else re.sub(r'(^|\s+)#.*', '', value)    # a comment
        if quoted or value not in ('', 'null', '~'):
            found['.'.join(name for _, name in above)] = value
    return found


def text(said, key):
    """What stands under a key, or under the one that ${...} names in its place; '' where that is nothing."""
    value = said.get(key, '')
    for _ in range(9):                                   # more would be a circle
        if reference := re.fullmatch(r'\$\{([\w.]+)\}', value):
            value = said.get(reference[1], '')
    return '' if '${' in value else value


def setting(said, key, kind):
    """The same as bool, int, float or str."""
    if key not in said:
        raise ValueError(f'config.yaml gives no {key}')
    value = text(said, key)
    if not value:
        raise ValueError(f'config.yaml: {key} = {said[key]}, which stands for nothing in there')
    try:
        return {'true': True, 'false': False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        raise ValueError(f'config.yaml: {key} = {said[key]}; want a {kind.__name__}') from None


# ---- what they say ----

def config_of(weights, said, over):
    """nanowm.Config: sizes from shapes, over, and the rest from config.yaml."""
    for key, wanted in FIXED.items():
        if (value := setting(said, key, str).lower()) != wanted:
            raise ValueError(f'config.yaml: {key} = {value}, but nanowm.py has only {wanted}')
    told = sizes(weights) | over
    for field, key in KEYS.items():
        if field in over or (field in told and not text(said, key)):
            continue
        value = setting(said, key, type(getattr(nanowm.Config, field)))
        value = WORDS.get(value, value)
        if field in told and told[field] != value:
            raise ValueError(f'config.yaml: {key} = {value}, but the weights are of {told[field]}')
        told[field] = value
    folded = weights['action_embedder.mlp.0.weight'].shape[1]
    if told['frame_skip'] * told['action_dim'] != folded:
        raise ValueError(f'config.yaml: {KEYS["frame_skip"]} x {KEYS["action_dim"]} = {told["frame_skip"]} x '
                         f'{told["action_dim"]}, but the weights take {folded} numbers for an action')
    return nanowm.Config(**told)


def sizes(weights):
    """Fields of the Config that the shapes tell, and the injection where it has weights of its own."""
    for key, axes in SIZES.items():
        if key not in weights or weights[key].ndim != axes or not weights[key].numel():
            raise ValueError(f'no weights of a NanoWM: {key} is missing or has not {axes} axes')
    D, C, patch, _ = weights['x_embedder.proj.weight'].shape
    P, T = weights['pos_embed'].shape[1], weights['temp_embed'].shape[1]
    side = math.isqrt(P)
    if side * side != P:
        raise ValueError(f'pos_embed has {P} places, which fill no square; theirs do')
    depth = len({key.split('.')[1] for key in weights if key.startswith('blocks.')})
    told = dict(hidden=D, channels=C, patch=patch, height=side * patch, width=side * patch, num_frames=T,
                depth=depth, heads=D // len(weights['blocks.0.attn.q_norm.weight']))
    for name, key in EXTRAS.items():
        if f'blocks.0.{key}' in weights:
            told['injection'] = name
    return told


def action_statistics(said, stats, A):
    """
    Mean and std (A,) of actions as recorded. The authors divided these by action_scale and then, unless
    normalize_action is false, normalised. The statistics of our data are of actions as recorded, those of the
    authors' .pt of divided ones.
    """
    if stats is None:
        return torch.zeros(A), torch.ones(A)
    scale = setting(said, 'dataset.loader.action_scale', float)
    if not setting(said, 'dataset.loader.normalize_action', bool):
        if stats:
            print(f'note: trained on actions as recorded, so {stats} is not asked', file=sys.stderr)
        return torch.zeros(A), torch.full((A,), scale)
    if not stats:
        raise ValueError('it wants normalised actions and holds no statistics of them; give stats: a data '
                         "folder of ours, or the authors' {mean, std} .pt (train.py: without keep_stats)")
    stats = str(stats)
    if stats.endswith('.pt'):
        table = checkpoint.read(*os.path.split(stats), 'want {mean, std} of actions, or a data folder')
    else:
        folder = os.path.dirname(stats) if os.path.basename(stats) == 'meta.json' else stats
        table, scale = read_meta(folder)['stats'].get('action', {}), 1.0
    try:
        mean, std = (torch.as_tensor(table[name], dtype=torch.float32) * scale for name in ('mean', 'std'))
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise ValueError(f'{stats} has no mean and std of actions') from None
    numbers = torch.cat([mean.flatten(), std.flatten()])
    if mean.shape != (A,) or std.shape != (A,) or not numbers.isfinite().all() or std.min() <= 0:
        raise ValueError(f'{stats}: mean {mean.tolist()}, std {std.tolist()}; want {A} numbers, std above 0')
    return mean, std


# ---- a run of ours ----

def command(argv):
    """python nanowm.py import SRC OUT_DIR DATASET [--stats=FILE] [--data_dir=data]"""
    if {'--help', '-h'} & {*argv}:
        return print(command.__doc__)
    flags, words = {'stats': '', 'data_dir': 'data'}, []
    for word in argv:
        key, given, value = word.removeprefix('--').partition('=')
        if word.startswith('--') and given and key in flags:
            flags[key] = value
        else:
            words.append(word)
    if words[:1] != ['import'] or len(words) != 4 or any(word.startswith('-') for word in words):
        sys.exit(command.__doc__)
    import_run(*words[1:], **flags)


def import_run(src, out_dir, dataset, stats, data_dir):
    """Write the step folder that train.py would have written, had it trained these weights on the dataset."""
    if checkpoint.is_run(src):
        sys.exit(f'{src} is a run of ours already: eval.py and sample.py take it as it is')
    if checkpoint.pointer(out_dir, 'latest'):
        sys.exit(f'{out_dir} already holds a run; choose another OUT_DIR')
    folder = os.path.join(data_dir, dataset)
    data = read_meta(folder)
    stats = stats or folder
    model, step = load(nanowm.Model, src, stats, {})
    own = asdict(model.cfg)
    differ = [f'{key} = {fact}, the checkpoint {own[key]}' for key, fact in data['facts'].items()
              if own.get(key, fact) != fact]
    if differ:
        sys.exit(f'{folder} has {"; ".join(differ)}: they do not belong together')
    codec = data.get('latent') or {}
    if codec.get('kind', 'AutoencoderKL') != 'AutoencoderKL':
        print(f'note: {folder} holds latents of {codec["vae"]}; the checkpoint saw those of SD-VAE',
              file=sys.stderr)
    held = checkpoint.lock(out_dir)
    config = {'model': 'nanowm', 'dataset': dataset, 'data_dir': data_dir, 'out_dir': out_dir,
              'imported': src, 'stats': stats}
    count = sum(p.numel() for p in model.parameters())
    meta = dict(step=step, model='nanowm', model_config=own, config=config, metrics={}, best=None,
                judged=True, params=count, git=checkpoint.git_hash(nanowm.__file__),
                torch=torch.__version__, data_sha=identity(data),
                model_sha=checkpoint.sha256(nanowm.__file__))
    # of an optimizer that has seen nothing: with --resume=True the training goes on with fresh moments
    state = {'state': {}, 'params': [[key, list(p.shape)] for key, p in model.named_parameters()]}
    checkpoint.save(out_dir, step, model.state_dict(), None, state, meta)
    held.close()
    print(f'{checkpoint.find(out_dir)}: {count:,} parameters, step {step}')
