"""
Checkpoints: save, find, load, lock. train, sample, eval, bench and the tests all go through here.

    out_dir/step_0050000/model.safetensors   weights and statistics
                         ema.safetensors     the same, averaged (only with EMA); preferred by load
                         state.pt            optimizer (read with weights_only=True; no pickle is ever trusted)
                         meta.json           step, model, model_config, config, metrics, params, git, torch, data_sha
    out_dir/latest, out_dir/best             text files naming a step folder
    out_dir/lock                             held by the running process

A folder is written as tmp.<name>, synced, renamed; `latest` is renamed into place last. So a kill -9 at any moment
leaves a readable `latest` and loses at most the steps since that save.
"""
import fcntl
import hashlib
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def step_name(step):
    return f'step_{step:07d}'


def sync(path):
    """Flush a file or a folder entry to disk: a rename must never outlive the bytes it points to."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_text(path, text):
    with open(path + '.tmp', 'w') as f:
        f.write(text)
    sync(path + '.tmp')
    os.replace(path + '.tmp', path)
    sync(os.path.dirname(path) or '.')


def save(out_dir, step, weights, ema, state, meta, best=False, keep=3, keep_every=0):
    """
    weights and ema (or None): {key: tensor}; state: what torch.save takes; meta: for meta.json. A full disk or a lost
    folder ends the run with one line; the last good checkpoint stays as it was.
    """
    name = step_name(step)
    tmp, final = os.path.join(out_dir, 'tmp.' + name), os.path.join(out_dir, name)
    files = {'model': weights} | ({'ema': ema} if ema else {})
    files = {k: {key: t.detach().cpu().contiguous() for key, t in tensors.items()} for k, tensors in files.items()}
    try:
        for left in (tmp, tmp + '.old'): shutil.rmtree(left, ignore_errors=True)        # left behind by a kill
        os.makedirs(tmp)
        for file, tensors in files.items(): save_file(tensors, os.path.join(tmp, file + '.safetensors'))
        torch.save(state, os.path.join(tmp, 'state.pt'))
        write_text(os.path.join(tmp, 'meta.json'), json.dumps(meta, indent=1))
        for file in os.listdir(tmp): sync(os.path.join(tmp, file))
        if os.path.exists(final): os.replace(final, tmp + '.old')    # saved before and trained again
        os.replace(tmp, final)
        shutil.rmtree(tmp + '.old', ignore_errors=True)
        sync(out_dir)
        if best: write_text(os.path.join(out_dir, 'best'), name)
        write_text(os.path.join(out_dir, 'latest'), name)
    except (OSError, RuntimeError, SafetensorError) as error:        # torch.save reports a full disk as RuntimeError
        shutil.rmtree(tmp, ignore_errors=True)
        sys.exit(f'could not save {final}: {error}; make room or choose another --out_dir, then --resume=True')
    prune(out_dir, keep, keep_every)


def prune(out_dir, keep, keep_every):
    """Keep the newest `keep` folders, every keep_every-th step, and what `latest` and `best` name."""
    steps = sorted((name for name in os.listdir(out_dir) if name.startswith('step_')), key=lambda name: int(name[5:]))
    named = {pointer(out_dir, 'latest'), pointer(out_dir, 'best')}
    for name in steps[:-keep] if keep else []:
        if name not in named and not (keep_every and int(name[5:]) % keep_every == 0):
            shutil.rmtree(os.path.join(out_dir, name), ignore_errors=True)


def pointer(out_dir, which):
    """The step folder that `latest` or `best` names, or None."""
    try:
        with open(os.path.join(out_dir, which)) as f: return f.read().strip()
    except FileNotFoundError:
        return None


def find(path, which='latest'):
    """A run's out_dir, or one of its step folders -> the step folder."""
    if os.path.exists(os.path.join(path, 'meta.json')):
        return path
    name = pointer(path, which)
    if name is None:
        sys.exit(f'no checkpoint in {path!r} (no file {which!r}); give --ckpt=OUT_DIR of a run, or train one first')
    return os.path.join(path, name)


def read(folder, file):
    """One file of a step folder, tensors on the CPU, or exit with one line."""
    path = os.path.join(folder, file)
    try:
        if file.endswith('.json'):
            with open(path) as f: return json.load(f)
        return torch.load(path, map_location='cpu', weights_only=True) if file.endswith('.pt') else load_file(path)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        sys.exit(f'cannot read {path}: {error}; take another checkpoint of this run')


def load(path, ema=True, which='latest', device='cpu'):
    """The whole loader: build the model that meta.json describes, fill it. -> (model in eval mode, meta)"""
    folder = find(path, which)
    meta = read(folder, 'meta.json')
    module = importlib.import_module(meta['model'])
    try:
        model = module.Model(module.Config(**meta['model_config']))
    except TypeError as error:                                       # a Config field that came or went since
        sys.exit(f'{folder}/meta.json does not fit {meta["model"]}.py: {error}')
    file = 'ema.safetensors' if ema and os.path.exists(os.path.join(folder, 'ema.safetensors')) else 'model.safetensors'
    fill(model, read(folder, file), os.path.join(folder, file))
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        return model.to(device).eval(), meta
    except (AssertionError, RuntimeError) as error:                  # no such device: torch says so at length
        sys.exit(f'device = {device}: {str(error).splitlines()[0]}')


def fill(model, weights, source):
    """Strict load; one line instead of torch's page when keys or shapes differ."""
    own = model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [f'{key} is {list(weights[key].shape)}, the model has {list(own[key].shape)}'
              for key in own if key in weights and weights[key].shape != own[key].shape]
    for problem, keys in (('lacks', missing), ('has unknown', extra), ('has another shape:', shapes)):
        if keys:
            more = f' and {len(keys) - 1} more' if len(keys) > 1 else ''
            sys.exit(f'{source} {problem} {keys[0]}{more}: it belongs to another model or Config')
    model.load_state_dict(weights)


def lock(out_dir):
    """Hold out_dir until this process ends, however it ends. Keep the returned file."""
    os.makedirs(out_dir, exist_ok=True)
    f = open(os.path.join(out_dir, 'lock'), 'w')
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f'{out_dir} is in use by another run; wait for it, or choose another --out_dir')
    return f


def sha256(path):
    with open(path, 'rb') as f: return hashlib.sha256(f.read()).hexdigest()


def git_hash():
    """Commit of this source tree, '+' when files differ from it, '' outside a repository."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*args):
        return subprocess.run(['git', '-C', here, *args], capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
    except (OSError, subprocess.CalledProcessError):
        return ''
