"""
A run of arx5_gpt.py -> the layout in which the ARX5 checkpoints were published, and back.

    python arx5_export.py OUT_DIR checkpoints/cfgD       prints the sha256
    arx5_export.load('checkpoints/cfgD')                 the model again; Model.from_pretrained does the same

    checkpoints/cfgD/params/params.pt                    weights `members.<e>.<nanoGPT's key>`, their making
                            normalization_stats.json     statistics of the train split, named like the buffers

Names of files and of the entries in them are as published. The keys of the weights are ours: no weights came
with the card, so nobody can say whether theirs load here. What does not fit ends in one line that says why.
"""
import hashlib
import json
import os
import shutil
import sys

import torch

import arx5_gpt
import checkpoint

LABELS = {                        # (action_repr, state_pred) of the published runs
    ('absolute', 'absolute'): 'cfgA',
    ('absolute', 'delta'): 'cfgB',
    ('delta', 'absolute'): 'cfgC',
    ('delta', 'delta'): 'cfgD'}


def export(run, out):
    """The best checkpoint of a run, else the latest, into the new folder `out` -> its sha256."""
    if os.path.lexists(out):
        sys.exit(f'{out} is there already; delete it, or choose another folder')
    model, meta = checkpoint.load(run, which='best' if checkpoint.pointer(run, 'best') else 'latest')
    if meta['model'] != 'arx5_gpt':
        sys.exit(f'{run} holds a {meta["model"]}; only arx5_gpt has this layout')
    tmp = out.rstrip('/') + '.tmp'
    try:
        shutil.rmtree(tmp, ignore_errors=True)           # left behind by a kill
        os.makedirs(os.path.join(tmp, 'params'))
        torch.save(params(model, meta), os.path.join(tmp, 'params', 'params.pt'))
        text = json.dumps(statistics(model), indent=1) + '\n'
        checkpoint.write_text(os.path.join(tmp, 'params', 'normalization_stats.json'), text)
        os.replace(tmp, out)         # the folder, because torch.save writes a file's own name into the file
    except (OSError, RuntimeError) as error:             # torch.save reports a full disk as RuntimeError
        shutil.rmtree(tmp, ignore_errors=True)
        sys.exit(f'could not write {out}: {str(error).splitlines()[0]}; make room, or choose another folder')
    return published_sha256(out)


def params(model, meta):
    """What params.pt holds."""
    cfg = model.cfg
    weights = {}
    for e in range(cfg.members):
        for key, value in model.member(e).items():
            weights[f'members.{e}.{key}'] = value.contiguous()
    # As saved, not as the Config is today, because the hash of a run is to stay. Interned, because pickle
    # writes a key that `config` shares as a reference, and the reader of meta.json decides what is shared.
    arguments = {sys.intern(key): value for key, value in meta['model_config'].items()}
    loss = meta['metrics'].get('val/loss')               # summed over members; published per member
    return labels(cfg) | {
        'model_state_dict': weights,
        'best_val_loss': loss and loss / cfg.members,
        'best_step': meta['step'],
        'global_step': meta['step'],
        'config_label': LABELS.get((cfg.action_repr, cfg.state_pred), f'{cfg.action_repr}_{cfg.state_pred}'),
        'model_args': arguments,
        'config': meta['config']}


def statistics(model):
    """What normalization_stats.json holds."""
    cfg = model.cfg
    stats = {name: buffer.tolist() for name, buffer in model.named_buffers() if name != 'q_index'}
    return stats | labels(cfg) | {'dt': 1 / cfg.fps, 'history': cfg.history}


def labels(cfg):
    """Both files say this, so that a pair from different checkpoints is noticed."""
    return {'action_representation': cfg.action_repr, 'state_prediction_mode': cfg.state_pred}


def published_sha256(folder):
    """cd folder && find params -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"""
    names = []
    for top, _, files in os.walk(os.path.join(folder, 'params')):
        names += [os.path.relpath(os.path.join(top, file), folder) for file in files]
    names.sort(key=os.fsencode)                          # LC_ALL=C sorts bytes, not letters
    lines = [f'{checkpoint.sha256(os.path.join(folder, name))}  {name}\n' for name in names]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


def load(src, **over):
    """A folder in the published layout -> the model in eval mode. over: fields of the Config to set."""
    file = f'{src}/params/params.pt'
    saved, stats = read(src, 'params.pt'), read(src, 'normalization_stats.json')
    said = 'action_representation', 'state_prediction_mode'
    missing = {'model_state_dict', 'model_args', *said} - saved.keys()
    if missing:
        sys.exit(f'{file} lacks {", ".join(sorted(missing))}: not written by arx5_export.py')
    for key in said:
        if stats.get(key) != saved[key]:
            sys.exit(f'{src}: normalization_stats.json says {key} = {stats.get(key)}, params.pt says '
                     f'{saved[key]}; they belong to different checkpoints')
    try:
        model_args = checkpoint.plain_config(saved['model_args'], arx5_gpt)      # lists -> tuples
        model = arx5_gpt.Model(arx5_gpt.Config(**model_args | over))
    except (TypeError, ValueError, AttributeError) as error:     # a field that came or went, a wrong value
        sys.exit(f'{file} does not fit arx5_gpt.py: {error}')
    fill_statistics(model, stats, f'{src}/params/normalization_stats.json')
    for e in range(model.cfg.members):
        own = f'members.{e}.'
        weights = saved['model_state_dict'].items()
        load_member(model, e, {key[len(own):]: value for key, value in weights if key.startswith(own)})
    return model.eval()


def read(src, name):
    """One of the two files, a dict."""
    content = checkpoint.read(src, f'params/{name}')
    if not isinstance(content, dict):
        sys.exit(f'{src}/params/{name} is a {type(content).__name__}, no dict: not written by arx5_export.py')
    return content


def fill_statistics(model, stats, file):
    """The lists of the file -> buffers of the same names."""
    for name, buffer in model.named_buffers():
        if name == 'q_index':                            # the Config's
            continue
        values = stats.get(name, [])
        if not isinstance(values, list) or len(values) != len(buffer):
            count = len(values) if isinstance(values, list) else 'no list of'
            sys.exit(f'{file}: {name} has {count} numbers, the checkpoint wants {len(buffer)}; take the file '
                     'that was exported with it')
        try:
            buffer.copy_(torch.tensor(values, dtype=buffer.dtype))
        except (TypeError, ValueError) as error:
            sys.exit(f'{file}: {name}: {error}; take the file that was exported with the checkpoint')


def load_member(model, e, weights):
    """The inverse of model.member(e): a plain nanoGPT's weights, (out, in), into place e."""
    own = model.member(e)
    wrong = []
    for key in sorted({*own, *weights}):
        if key not in own or key not in weights or own[key].shape != weights[key].shape:
            wrong.append(key)
    if wrong:
        sys.exit(f'member {e}: {wrong[0]} is missing, unknown or of another shape ({len(wrong)} such keys); '
                 'the weights belong to another Config')
    for key, p in model.named_parameters():
        value = weights[key].to(p)
        p.data[e] = (value.T if arx5_gpt.is_matrix(key) else value).view(p.data[e].shape)


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('python arx5_export.py OUT_DIR checkpoints/cfgD')
    print(f'{sys.argv[2]}: sha256 {export(*sys.argv[1:])}')
