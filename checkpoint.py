"""
Checkpoints: save, find, load, lock, fetch. train, sample, eval, bench and the tests all go through here.

    out_dir/step_0050000/model.safetensors   weights and statistics
                         ema.safetensors     the same, averaged (only with EMA); preferred by load
                         store.safetensors   episodes that the training made (only with a refresh)
                         state.pt            optimizer, names and shapes of its parameters (weights_only=True)
                         meta.json           step, model, model_config, config, metrics, params, git, torch,
                                             model_sha (of the model file), data_sha, run_id (for trackers)
    out_dir/latest, out_dir/best             text files naming a step folder
    out_dir/lock                             held by the running process

A folder is written as tmp.<name>, synced, renamed; `latest` is renamed into place last. So a kill -9 at any
moment leaves a readable `latest` and loses at most the steps since that save. No pickle is ever trusted.
"""
import dataclasses
import fcntl
import hashlib
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import urllib.request
from http.client import HTTPException

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

import contract

STEP = re.compile(r'step_\d+')  # a backup called step_0000003_old is not ours to prune
FEATURES = {                                             # LeRobot's names; all others are cameras
    'observation.state': 'state', 'observation.environment_state': 'env_state', 'action': 'action'}
MODES = {'MEAN_STD': ('mean', 'std'), 'MIN_MAX': ('min', 'max'), 'QUANTILES': ('q01', 'q99'), 'IDENTITY': ()}
NEUTRAL = {'mean': 0.0, 'std': 1.0, 'min': -1.0, 'max': 1.0, 'q01': -1.0, 'q99': 1.0}    # change nothing
HUB = 'https://huggingface.co'  # or what $NANOWORLD_HUB says


def step_name(step):
    return f'step_{step:07d}'


def sync(path):
    """Flush a file or a folder entry to disk: a rename must never outlive the bytes it points to."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_text(path, text):
    """Whole or not at all; a link or a device of that name stays what it is."""
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        sys.exit(f'{path} is there and is no regular file; choose another name')
    with open(path + '.tmp', 'w') as f:
        f.write(text)
    sync(path + '.tmp')
    os.replace(path + '.tmp', path)
    sync(os.path.dirname(path) or '.')


def save(out_dir, step, weights, ema, state, meta, best=False, keep=3, keep_every=0, store=None):
    """
    weights, ema and store (or None): {key: tensor}; state: what torch.save takes; meta: for meta.json. A full
    disk or a lost folder ends the run with one line; the last good checkpoint stays as it was.
    """
    name = step_name(step)
    tmp, final = os.path.join(out_dir, 'tmp.' + name), os.path.join(out_dir, name)
    files = {'model': weights} | ({'ema': ema} if ema else {}) | ({'store': store} if store else {})
    try:
        os.makedirs(out_dir, exist_ok=True)
        for left in os.listdir(out_dir):  # left behind by a kill, ours or an earlier one
            if left.startswith('tmp.step_'):
                shutil.rmtree(os.path.join(out_dir, left), ignore_errors=True)
        os.makedirs(tmp)
        for file, tensors in files.items():
            path = os.path.join(tmp, file + '.safetensors')
            save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, path)
            os.chmod(path, 0o666 & ~umask())  # safetensors makes them unreadable for others
        torch.save(state, os.path.join(tmp, 'state.pt'))
        write_text(os.path.join(tmp, 'meta.json'), json.dumps(meta, indent=1))
        for file in os.listdir(tmp):
            sync(os.path.join(tmp, file))
        if os.path.exists(final):                                    # saved before and trained again
            os.replace(final, tmp + '.old')
        os.replace(tmp, final)
        shutil.rmtree(tmp + '.old', ignore_errors=True)
        sync(out_dir)
        if best:
            write_text(os.path.join(out_dir, 'best'), name)
        write_text(os.path.join(out_dir, 'latest'), name)
    # torch.save reports a full disk as RuntimeError
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(tmp, ignore_errors=True)
        sys.exit(f'could not save {final}: {reason_of(error)}; '
                 'make room or choose another --out_dir, then --resume=True')
    prune(out_dir, keep, keep_every)


def umask():
    """The process's mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def steps(out_dir):
    """Names of the step folders, oldest first."""
    names = [name for name in os.listdir(out_dir) if STEP.fullmatch(name)] if os.path.isdir(out_dir) else []
    return sorted(names, key=lambda name: int(name[5:]))


def prune(out_dir, keep, keep_every):
    """Keep the newest `keep` folders, every keep_every-th step, and what `latest` and `best` name."""
    named = {pointer(out_dir, 'latest'), pointer(out_dir, 'best')}
    for name in steps(out_dir)[:-keep] if keep else []:
        if name not in named and not (keep_every and int(name[5:]) % keep_every == 0):
            shutil.rmtree(os.path.join(out_dir, name), ignore_errors=True)


def pointer(out_dir, which):
    """The step folder that `latest` or `best` names, or None."""
    path = os.path.join(out_dir, which)
    try:
        with open(path) as f:
            return f.read().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        sys.exit(f'cannot read {path}: {reason_of(error)}; it should hold the name of a step folder')


def find(path, which='latest'):
    """A run's out_dir, or one of its step folders -> the step folder."""
    path = str(path)
    if os.path.isfile(path):
        sys.exit(f'--ckpt={path} is a file; give the OUT_DIR of a run or one of its step folders')
    if os.path.exists(os.path.join(path, 'meta.json')):
        return path
    name = pointer(path, which)
    if name is None:
        sys.exit(f'no checkpoint in {path!r} (no file {which!r}); '
                 'give --ckpt=OUT_DIR of a run, or train one first')
    replaced = os.path.join(path, f'tmp.{name}.old')     # a kill between the two renames of `save`
    if os.path.isdir(replaced) and not os.path.isdir(os.path.join(path, name)):
        os.replace(replaced, os.path.join(path, name))
    if not os.path.isdir(os.path.join(path, name)):
        there = ', '.join(steps(path)) or 'none'
        sys.exit(f'{path}/{which} names {name!r}, which is not there; '
                 f'step folders: {there}; write one of them into it')
    return os.path.join(path, name)


def reason_of(error):
    """An exception in few words; of torch's unpickling advice, which is to trust the file, nothing."""
    if isinstance(error, FileNotFoundError):             # that of safetensors says the path once more
        return 'No such file or directory'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, pickle.UnpicklingError):
        return 'no file that torch.save wrote, or one that wants code to be run'
    return next((line for line in str(error).splitlines() if line), type(error).__name__).rstrip('.')


def read(folder, file, advice='take another checkpoint of this run'):
    """One file of a step folder, or of others, tensors on the CPU; or exit with one line."""
    path = os.path.join(folder, file)
    try:
        if file.endswith('.json'):
            with open(path) as f:
                content = json.load(f)
        elif file.endswith(('.pt', '.pth', '.ckpt')):
            ours = file == 'state.pt'                    # older formats cannot be mapped
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=ours)
        else:
            content = mapped(path)
    except Exception as error:                           # garbage that is unpickled raises whatever it likes
        sys.exit(f'cannot read {path}: {reason_of(error)}; {advice}')
    if not isinstance(content, dict):
        sys.exit(f'cannot read {path}: it holds a {type(content).__name__}; {advice}')
    return content


def mapped(path):
    """
    {key: tensor} of a safetensors file. Their bytes come when they are asked for, and go with them: each
    has a mapping of its own, so that a large file is never in memory twice.
    """
    def one(key):
        with safe_open(path, 'pt') as f:
            return f.get_tensor(key)
    with safe_open(path, 'pt') as f:
        return {key: one(key) for key in f.keys()}


def part(x, like):
    """A tensor that every rank has -> what this one keeps of it, if ranks share (train.py's fsdp) `like`."""
    if not hasattr(like, 'device_mesh'):
        return x
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def read_meta(folder):
    """meta.json of a step folder, checked for what everybody reads of it."""
    meta = read(folder, 'meta.json')
    kinds = {'model': str, 'model_config': dict, 'config': dict, 'step': int, 'data_sha': str}
    wrong = [key for key, kind in kinds.items() if not isinstance(meta.get(key), kind)]
    if wrong:
        sys.exit(f'{folder}/meta.json has no {", ".join(wrong)}: not written by train.py; '
                 'take another checkpoint')
    return meta


def load(path, ema=True, which='latest', device='cpu', **over):
    """
    The whole loader: build the model that meta.json describes, fill it. -> (model in eval mode, meta)
    over: fields of its Config to replace, of those that only sampling reads (SAMPLING of the model file).
    Those that say where a training starts (INITIAL) are set aside: the checkpoint has what came of them.
    """
    folder = find(path, which)
    meta = read_meta(folder)
    M = contract.load(meta['model'])
    if meta.get('model_sha', '') not in ('', sha256(M.__file__)):
        print(f'note: {meta["model"]}.py has changed since {folder} was saved', file=sys.stderr)
    foreign = over.keys() - set(contract.sampling(M))
    assert not foreign, f'{foreign}: only {contract.sampling(M)} can change after the training'
    over |= contract.initial(M)
    try:
        cfg = M.Config(**plain_config(meta['model_config'], M) | over)
    except TypeError as error:                                       # a Config field that came or went since
        sys.exit(f'{folder}/meta.json does not fit {meta["model"]}.py: {error}')
    model = contract.build(M, cfg, empty=True)
    file = weights_file(folder, ema)
    fill(model, read(folder, file), os.path.join(folder, file))
    return model.to(pick_device(device)).eval(), meta


def plain_config(saved, M):
    """JSON has lists where the Config has tuples; a field of the model that is a tuple gets one."""
    defaults = vars(M.Config())
    return {key: tuple(value) if isinstance(defaults.get(key), tuple) and isinstance(value, list) else value
            for key, value in saved.items()}


def weights_file(folder, ema=True):
    averaged = ema and os.path.exists(os.path.join(folder, 'ema.safetensors'))
    return 'ema.safetensors' if averaged else 'model.safetensors'


def fill(model, weights, source, may_lack=()):
    """
    Strict load, but for buffers in may_lack; one line instead of torch's page when keys or shapes differ. A
    model without memory, on the meta device, takes the tensors themselves.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys() - set(may_lack))
    extra = sorted(weights.keys() - own.keys())
    shapes = [f'{key} is {list(weights[key].shape)}, the model has {list(own[key].shape)}'
              for key in own if key in weights and weights[key].shape != own[key].shape]
    for problem, keys in (('lacks', missing), ('has unknown', extra), ('has another shape:', shapes)):
        if keys:
            more = f' and {len(keys) - 1} more' if len(keys) > 1 else ''
            sys.exit(f'{source} {problem} {keys[0]}{more}: it belongs to another model or Config')
    model.load_state_dict(weights, strict=not may_lack, assign=any(x.is_meta for x in own.values()))


def is_run(src):
    """Is it the out_dir of a run of ours, or a step folder?"""
    return os.path.exists(os.path.join(src, 'meta.json')) or pointer(src, 'latest') is not None


def start_from(model, M, src, keep):
    """
    init_from: fill the model with the weights of another run (averaged ones, if it has them), or of a
    published checkpoint where the model file can read such; of a VLM alone, with those that it has. keep:
    names of buffers that stay, the statistics of the new data; its sentences (OWN) stay anyway.
    """
    own = {*keep, *getattr(M, 'OWN', ())}
    if is_run(src) or not hasattr(M.Model, 'from_pretrained'):
        folder = find(src)
        saved = read_meta(folder)['model']
        if saved != M.__name__:
            sys.exit(f'init_from = {src}: it holds a {saved}, not a {M.__name__}')
        source = os.path.join(folder, weights_file(folder))
        weights = read(folder, weights_file(folder))
    elif is_vlm(M, src):
        source = os.path.join(src, 'model.safetensors')
        weights = lerobot_weights(M, model, read_vlm(M, src, model.cfg.num_vlm_layers)[1], source)
        own |= {key for key in model.state_dict() if not M.published(key).startswith(M.BODY)}
        weights['hashed'] = torch.tensor(False)          # its words are a tokenizer's
    else:
        # who asks for statistics needs none where those of the new data stay
        asks = keep and 'stats' in inspect.signature(M.Model.from_pretrained).parameters
        there = M.Model.from_pretrained(src, **({'stats': None} if asks else {}))
        source, weights = src, there.state_dict()
    for name, told in getattr(M, 'AGREE', {}).items():
        if name in weights and bool(weights[name]) != bool(getattr(model, name)):
            sys.exit(f'init_from = {src}: {told[bool(weights[name])]}')
    fill(model, {key: value for key, value in weights.items() if key not in own}, source, may_lack=own)


# ---- policy folders of LeRobot ----

def read_lerobot(src, kind, fixed, modes=None, stats='required'):
    """
    What LeRobot saved of a policy -> its config.json, {key of state_dict: tensor}, {fact of the data: value}.
    Keys lose a first word that all have. Of each feature the weights get buffers with our names: state_mean,
    ..., and image_mean (cameras, 3). The facts are obs, cameras, height, width, state_dim, ...

    src: a folder with config.json, or one above its pretrained_model. kind: the policy's type, or {type: its
    modes}. fixed {field: value}: what the caller knows nothing else of. modes {STATE: MEAN_STD, ...}: how it
    normalises; a feature that is not normalised, with stats=None each, gets statistics that change nothing.
    LeRobot keeps them beside the weights (from 0.4 on), or among them. Exits with one line that names the
    file, or the field.
    """
    inner = [os.path.join(src, part, 'pretrained_model') for part in ('', 'checkpoints/last')]
    folder = next((path for path in inner if os.path.isdir(path)), src)
    advice = 'want a policy folder of LeRobot: config.json, model.safetensors'
    config, here = read(folder, 'config.json', advice), f'{folder}/config.json'
    kinds = kind if isinstance(kind, dict) else {kind: modes}
    if config.get('type') not in kinds:
        sys.exit(f'{here}: type = {config.get("type")!r}, want {" or ".join(map(repr, kinds))}')
    modes = kinds[config['type']]
    for field, value in fixed.items():                   # what an older LeRobot did not know, it did not do
        if config.get(field, value) != value:
            sys.exit(f'{here}: {field} = {config[field]!r}: only {value!r} is possible here')
    features = (config.get('input_features') or {}) | (config.get('output_features') or {})
    features = {key: x for key, x in features.items() if 'empty_camera' not in key}      # masked, never read
    cameras = [key for key in features if key not in FEATURES]
    seen = bool(cameras) + ('observation.environment_state' in features)
    if seen != 1 or not {'observation.state', 'action'} <= features.keys():
        sys.exit(f'{here}: input_features, output_features = {", ".join(features) or "none"}; want action, '
                 'observation.state, and cameras or observation.environment_state')
    weights = read(folder, 'model.safetensors', advice)
    theirs, found = lerobot_statistics(folder, weights, features)
    theirs, rows = theirs or config.get('normalization_mapping') or {}, {}
    for key, feature in features.items():
        type_, size = feature['type'], feature['shape'][0]
        mode = theirs.get(type_, 'IDENTITY')
        if type_ not in modes or mode not in (modes[type_], 'IDENTITY'):
            sys.exit(f'{here}: normalization_mapping, {key} is {type_}, {mode}; possible here: {modes}')
        for name in MODES[modes[type_]]:
            neutral = mode == 'IDENTITY' or stats is None
            x = torch.full((size,), NEUTRAL[name]) if neutral else found[key].get(name)
            if x is None or x.numel() != size:
                sys.exit(f'{folder} has no {name} of {key}, beside the weights or among them: without '
                         'statistics its numbers mean nothing; take the whole folder')
            rows.setdefault(f'{FEATURES.get(key, "image")}_{name}', []).append(x.flatten())
    if len({key.partition('.')[0] for key in weights}) == 1:
        weights = {key.partition('.')[2]: x for key, x in weights.items()}
    weights |= {key: torch.stack(x) if key.startswith('image_') else x[0] for key, x in rows.items()}
    facts = {f'{ours}_dim': features[key]['shape'][0] for key, ours in FEATURES.items() if key in features}
    if cameras:
        names = tuple(re.sub(r'observation\.(images\.)?', '', key) for key in cameras)
        facts |= {'cameras': names} | dict(zip(('height', 'width'), features[cameras[0]]['shape'][1:]))
    return config, weights, facts | {'obs': 'image' if cameras else 'keypoints'}


def is_vlm(M, src):
    """Is it the own folder of the VLM in M's policies, as its makers published it?"""
    there = hasattr(M, 'VLM') and os.path.exists(os.path.join(src, 'config.json'))
    return there and read(src, 'config.json').get('model_type') == M.VLM


def read_vlm(M, src, depth):
    """Such a folder -> config.json, {key in a policy: tensor}; `depth` of the layers behind the pictures."""
    weights = read(src, 'model.safetensors', 'want the whole folder, as published')
    layers = {key: re.search(r'\.text_model\.layers\.(\d+)\.', key) for key in weights}
    return read(src, 'config.json'), {M.BODY + key: x for key, x in weights.items()
                                      if not layers[key] or int(layers[key][1]) < depth}


def lerobot_model(M, values, weights, src, parts=('',)):
    """
    A vision-language-action model with a file's weights, in eval mode. values: of its Config, among others.
    parts: beginnings of our names; the others stay on the meta device. One line where they are impossible.
    """
    values = contract.initial(M) | values
    values = {f.name: values[f.name] for f in dataclasses.fields(M.Config) if f.name in values}
    try:
        with torch.device('meta'):                       # nothing is drawn that the file replaces
            model = M.Model(M.Config(**plain_config(values, M)))
    except ValueError as error:
        sys.exit(f'{src}: {error}')
    others = {key for key in model.state_dict() if not key.startswith(parts)}
    fill(model, lerobot_weights(M, model, weights, src, parts), src, {*M.OWN, *others})
    return model.eval()


def lerobot_weights(M, model, weights, src, parts=('',)):
    """
    A file's tensors under our names (M.published), in float32, without those that nothing reads (M.dead), or
    that do not begin with one of `parts`. M.HEAD: what else the embeddings of words may be called.
    """
    word = M.published('embed_tokens.weight')
    if word not in weights and M.HEAD not in weights:
        sys.exit(f'{src} has neither {word} nor {M.HEAD}: the VLM would read noise; take the whole file')
    head = weights.pop(M.HEAD, None)
    weights.setdefault(word, head)                       # fine-tunes may hold both, the embedding is right
    names, dead = {M.published(key): key for key in model.state_dict()}, {*M.dead(model.cfg)}
    dead |= {theirs for theirs, ours in names.items() if not ours.startswith(parts)}
    # each is let go before the next comes: no two copies of all of them are ever there
    return {names.get(key, key): weights.pop(key).float() for key in [*weights] if key not in dead}


def lerobot_statistics(folder, weights, features):
    """
    -> {type of feature: mode} or {}, {feature: {name: tensor}}; those of old files are taken out of weights.
    """
    modes, found = {}, {key: {} for key in features}
    for pipeline, kind in ('pre', 'normalizer'), ('post', 'unnormalizer'):
        file = f'policy_{pipeline}processor.json'
        steps_ = read(folder, file).get('steps', []) if os.path.exists(os.path.join(folder, file)) else []
        for step in steps_:
            if step.get('registry_name') == f'{kind}_processor' and 'state_file' in step:
                modes |= step['config'].get('norm_map', {})
                for key, x in read(folder, step['state_file']).items():
                    feature, _, name = key.rpartition('.')
                    found.setdefault(feature, {})[name] = x
    # older names have underscores where features have dots, so we look for those that are known
    buffers = {'buffer_' + key.replace('.', '_'): key for key in features}
    for key in [key for key in weights if '.buffer_' in key]:
        _, buffer, name = key.split('.')
        x = weights.pop(key)
        if buffer in buffers:
            found[buffers[buffer]][name] = x
    return modes, found


def named_parameters(model, optimizer):
    """
    [name, shape] of each parameter in the order in which the optimizer counts them: its state is by number.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)], list(p.shape)] for group in optimizer.param_groups for p in group['params']]


def load_optimizer(model, optimizer, state, source):
    """
    Fill the optimizer from state.pt. By name, because torch goes by position: were two lines of the model
    file swapped since the save, the moments of one tensor would silently become those of another.
    """
    try:
        there = {name: (i, shape) for i, (name, shape) in enumerate(state['params'])}
        moments = dict(state['state'].items())
        ours = named_parameters(model, optimizer)
        differ = [name for name, shape in ours if there.get(name, (0, None))[1] != shape]
        if differ or len(there) != len(ours):
            first = differ[0] if differ else sorted(there.keys() - {name for name, _ in ours})[0]
            sys.exit(f'{source}/state.pt and the model differ in {first}; was {model.__module__}.py edited? '
                     'Undo that, or start a new run from these weights with --init_from')
        params = [p for group in optimizer.param_groups for p in group['params']]
        moved = {i: moments[there[name][0]] for i, (name, _) in enumerate(ours) if there[name][0] in moments}
        moved = {i: {key: part(x, params[i]) if getattr(x, 'shape', ()) == params[i].shape else x
                     for key, x in state.items()} for i, state in moved.items()}
        # lr, weight_decay and betas are those that are set now
        optimizer.load_state_dict({'state': moved, 'param_groups': optimizer.state_dict()['param_groups']})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        sys.exit(f'{source}/state.pt is damaged ({reason_of(error)}); take another checkpoint of this run')


def pick_device(device, local=0):
    """auto | cpu | cuda | cuda:1 | mps -> a device that is there, or one line. cuda: the process's own."""
    device = str(device)                                 # --device=0 is a number by now
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda':
        device = f'cuda:{local}'
    try:
        if torch.device(device).type not in ('cpu', 'cuda', 'mps'):
            raise ValueError('want auto, cpu, cuda, cuda:N or mps')
        torch.zeros(1, device=device)
        return device
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:       # torch says so at length
        sys.exit(f'device = {device!r}: {reason_of(error)}; --device=cpu works everywhere')


def lock(out_dir):
    """Hold out_dir until this process ends, however it ends. Keep the returned file."""
    if not out_dir:
        sys.exit("out_dir = '': name a folder for the checkpoints")
    try:
        os.makedirs(out_dir, exist_ok=True)
        f = open(os.path.join(out_dir, 'lock'), 'w')
    except OSError as error:
        sys.exit(f'out_dir = {out_dir}: {error.strerror}; choose another --out_dir')
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f'{out_dir} is in use by another run; wait for it, or choose another --out_dir')
    except OSError as error:                             # some network file systems know no locks
        sys.exit(f'{out_dir} cannot be locked ({error.strerror}); choose an --out_dir on another file system')
    return f


def sha256(path):
    """Hex digest of a file, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Redirects(urllib.request.HTTPRedirectHandler):
    """A hub says size and sha256 of a large file where it sends us on to it, and not with the file itself."""

    size, sha256 = 0, ''

    def redirect_request(self, request, answer, code, message, headers, url):
        self.size = int(headers.get('X-Linked-Size') or self.size)
        tag = headers.get('X-Linked-ETag', '').strip('"')
        if re.fullmatch('[0-9a-f]{64}', tag):            # small files have git's, which is another hash
            self.sha256 = tag
        return super().redirect_request(request, answer, code, message, headers, url)


def hub(repo, file, revision='main', sha256='', size=0):
    """The path of `file` of the repository `repo` (user/name) on the hub, fetched if need be."""
    server = os.environ.get('NANOWORLD_HUB') or HUB
    return fetch(f'{server.rstrip("/")}/{repo}/resolve/{revision}/{file}', sha256, size, f'{repo}/{file}')


def cache():
    """The folder that holds what was fetched."""
    return os.environ.get('NANOWORLD_CACHE') or os.path.expanduser('~/.cache/nanoworld')


def fetch(url, sha256='', size=0, name=''):
    """
    A file from http(s):// or file:// -> its path in $NANOWORLD_CACHE (~/.cache/nanoworld), where it lies as
    `name`, by default the last part of the address. What is there, also by hand, needs no network; a file of
    another sha256 or size ('' and 0: not known) never gets there. One process downloads, others wait for it.
    """
    path = os.path.join(cache(), name or os.path.basename(urllib.parse.urlsplit(url).path))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        sys.exit(f'cannot make {os.path.dirname(path)}: {error.strerror}; set another $NANOWORLD_CACHE')
    try:
        if not os.path.exists(path):
            with open(path + '.lock', 'w') as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                if not os.path.exists(path):             # else the process that we waited for has fetched it
                    download(url, path, sha256, size)
                    os.remove(held.name)                 # whoever still waits on it will find the file
        elif wrong := defect(path, sha256, size):
            sys.exit(f'{path} is not {url}: {wrong}; delete it, or put the right file there')
    except (OSError, HTTPException, ValueError) as error:
        sys.exit(f'cannot fetch {url}: {reason_of(getattr(error, "reason", error))}; run again to go on with '
                 f'it, or put the file at {path} by hand')
    return path


def defect(path, sha, size):
    """What makes a file another one than was wanted, in words, or ''."""
    there = os.path.getsize(path)
    if size and there != size:
        return f'it has {there:,} bytes, not {size:,}'
    if sha and (digest := sha256(path)) != sha:
        return f'its sha256 is {digest}, not {sha}'
    return ''


def download(url, path, sha, size):
    """Into <path>.part, from where an earlier download was cut; `path` is its name once it is right."""
    part, redirects = path + '.part', Redirects()
    have = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        answer = urllib.request.build_opener(redirects).open(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        os.remove(part)                                  # nothing lies behind it: it is as long, or longer
        return download(url, path, sha, size)
    with answer:
        # 200 is an answer from the first byte on, to those who asked for a later one too; file:// has none
        resumed = answer.status == 206 and have > 0
        have = have if resumed else 0
        total = have + int(answer.headers.get('Content-Length') or 0)
        bar = tqdm(desc=os.path.basename(path), total=total or None, initial=have, unit='B', unit_scale=True,
                   disable=None)                         # None: where there is no terminal
        with bar, open(part, 'ab' if resumed else 'wb') as f:
            while piece := answer.read(1 << 20):         # of a cut connection it ends like a whole file
                f.write(piece)
                bar.update(len(piece))
    if (there := os.path.getsize(part)) < total:
        raise ConnectionError(f'the connection ended after {there:,} of {total:,} bytes')
    if wrong := defect(part, sha or redirects.sha256, size or redirects.size):
        os.remove(part)
        if resumed:                                      # what lay there before may be to blame
            return download(url, path, sha, size)
        raise ValueError(wrong)
    sync(part)
    os.replace(part, path)
    sync(os.path.dirname(path))


def git_hash(*files):
    """Commit of this source tree, '+' when it or one of `files` differs from it, '' outside a repository."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*args):
        done = subprocess.run(['git', '-C', here, *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    try:
        edited = git('status', '--porcelain', '-uno') or (files and git('status', '--porcelain', *files))
        return git('rev-parse', '--short', 'HEAD') + ('+' if edited else '')
    except (OSError, subprocess.CalledProcessError):
        return ''
