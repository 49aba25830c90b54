"""
What train.py, eval.py, sample.py and bench/ ask of a model file, and the message that says what it lacks.

    Config         dataclass of plain values, every field with a default
    Model(cfg)     nn.Module with forward, configure_optimizers, flops_per_sample; world models add rollout,
                   policies act; optional: clip_grad(max_norm), and `lr_scale` in the optimizer's groups
    windows(cfg)   {key: range of frame offsets} of one training sample
    PAD            True: windows may leave the episode, its edges repeat; with Config.drop_n_last_frames none
                   begins in so many frames at the end
    EVAL           names of protocols that judge it, the first that the data can serve by default; () = by
                   its loss alone
    SIMULATOR      optional: data/<name>/env.py in which it acts; else that which the dataset names.
                   That file has SUITES, check_name, options(cfg, shaped), environments(names, **options), and
                   may have rivals(); its environments have cap, steps, info['won'] and render()
    refresh        optional, with Config.refresh_every: (net, store, step, seed, rank, world) -> scalars.
                   Called with averaged weights, in eval mode, before step 0 and every refresh_every-th
                   step, to play and `store.add` episodes (0: never). Its random numbers come from (seed,
                   step, number of the episode) alone. 'progress', 0 to 1: how far it is; 'done' ends the
                   run. Config.buffer_capacity: how many windows are kept
    n_action       optional, of a policy's Config: how many actions act gives; else those of a training window
                   from now on
    SAMPLING       optional: Config fields that only sampling reads
    INITIAL        optional: those, of type str, that say where a training starts; a checkpoint is loaded and
                   gone on from with '' instead, or with the values of a dict {name: value}
    UNNORMALISED   optional: keys that the model reads as they are
    OWN            optional: buffers that follow from the Config, such as its sentences in tokens, and stay
                   where weights come from another run or file (init_from)
    AGREE          optional: {buffer that is true or false: (what to say where weights from elsewhere have
                   False, where True)}, where it must be the same
    tasks          optional, of Config: the sentences of meta.json, which `task` numbers
    FORM           optional: Config fields that say in which form data hold what it sees, such as pictures or
                   what was made of them. Those of meta.json win when a trained model meets other data
    suits(meta)    optional, of Model: ValueError where its weights do not go with what was made of pictures
    META           optional: True: the model may be built on torch's meta device, for weights from a file;
                   its buffers then are on the CPU all the same
    ENTERED        optional, for fsdp: methods besides forward in which the model, or a layer (an entry of a
                   ModuleList), is entered

PRESETS and example(cfg, batch_size) are for tests and bench/: a run does without them. Only files of this
folder are models: a checkpoint names its model, and must not name other code that would then be run.
"""
import dataclasses
import difflib
import importlib.util
import os
import sys
from contextlib import nullcontext

import torch

from configurator import PLAIN, Owner, fit
from data.loader import read_meta

HERE = os.path.dirname(os.path.abspath(__file__))
PROTOCOLS = ('video', 'dynamics', 'plan', 'env', 'actions')          # files of protocols/
NEEDS = {'video': 'rollout', 'dynamics': 'rollout', 'plan': 'rollout', 'env': 'act', 'actions': 'act'}


def load(name):
    """The module of a model, whole or not; one line where no file of this folder has that name."""
    path = os.path.join(HERE, f'{name}.py')
    if not str(name).isidentifier() or not os.path.isfile(path):
        sys.exit(f'no model {name!r}; files that define one: {", ".join(model_files())}')
    there = sys.modules.get(name)
    if there is not None and getattr(there, '__file__', None) == path:
        return there
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)                      # a mistake inside the file keeps its traceback
    return module


def model_files():
    """Names of the files in this folder that define a class Model."""
    names = []
    for file in sorted(os.listdir(HERE)):
        if file.endswith('.py'):
            with open(os.path.join(HERE, file)) as f:
                if '\nclass Model(' in f.read():
                    names.append(file)
    return names


def sampling(M):
    """Names of the Config fields that only sampling reads: eval.py, sample.py and a resume may set them."""
    return tuple(getattr(M, 'SAMPLING', ()))


def initial(M):
    """{name: value} of those that say where a training starts, for a model that gets its weights."""
    given = getattr(M, 'INITIAL', ())
    return given if isinstance(given, dict) else dict.fromkeys(given, '')


def defects(M, whole=False):
    """All that a model file lacks or misnames, a phrase each. whole: also what tests and bench/ want."""
    found = []

    def lacks(owner, name, what):
        close = difflib.get_close_matches(name, [n for n in vars(owner) if n[0] != '_'], 1, 0.75)
        found.append(f'no {what}' + (f' (is {close[0]} meant?)' if close and close[0] != name else ''))

    fields = {}
    if not dataclasses.is_dataclass(getattr(M, 'Config', None)):
        lacks(M, 'Config', '@dataclass Config')
    else:
        fields = {f.name: f.default for f in dataclasses.fields(M.Config)}
        plain = [name for name, default in fields.items() if type(default) not in PLAIN]
        found += [f'Config.{name} has no plain default' for name in plain]
    if not isinstance(getattr(M, 'PAD', None), bool):
        lacks(M, 'PAD', 'PAD = True or False')
    if not callable(getattr(M, 'windows', None)):
        lacks(M, 'windows', 'windows(cfg)')
    judged = getattr(M, 'EVAL', None)
    if not isinstance(judged, tuple) or set(judged) - set(PROTOCOLS):
        lacks(M, 'EVAL', f'EVAL = a tuple of names out of {", ".join(PROTOCOLS)}, or ()')
        judged = ()
    Model = getattr(M, 'Model', None)
    if not (isinstance(Model, type) and issubclass(Model, torch.nn.Module)):
        lacks(M, 'Model', 'class Model(nn.Module)')
    else:
        wanted = ['forward', 'configure_optimizers', 'flops_per_sample', *{NEEDS[name] for name in judged}]
        inherited = set(dir(torch.nn.Module)) - {'forward'}          # nn.Module's own forward only raises
        for name in wanted:
            there = getattr(Model, name, None)
            if name in inherited or not callable(there) or there is torch.nn.Module.forward:
                lacks(Model, name, f'Model.{name}')
    if hasattr(M, 'refresh') and 'refresh_every' not in fields:
        found.append('no Config.refresh_every, which its refresh needs')
    for listed in 'SAMPLING', 'INITIAL':
        unknown = [name for name in getattr(M, listed, ()) if name not in fields]
        found += [f'{listed} names {name}, which is no field of Config' for name in unknown]
    if whole:
        presets = getattr(M, 'PRESETS', None)
        if not isinstance(presets, dict) or not {'tiny', 'cpu', 'full'} <= presets.keys():
            lacks(M, 'PRESETS', "PRESETS with 'tiny', 'cpu' and 'full'")
        if not callable(getattr(M, 'example', None)):
            lacks(M, 'example', 'example(cfg, batch_size)')
    return found


def check(M):
    """One line with all defects of a model file, or nothing."""
    if found := defects(M):
        sys.exit(f'{os.path.basename(M.__file__)} is no model yet: {"; ".join(found)}; see contract.py')


def owners(wanted):
    """For configure(): the keys of the model's Config, then what the data decide of them."""
    M = load(wanted['model'])
    check(M)
    defaults = vars(M.Config())
    yield Owner(f'{M.__name__}.Config', defaults, M.__file__)
    if wanted.get('dataset'):
        folder = os.path.join(str(wanted['data_dir']), str(wanted['dataset']))
        meta = read_meta(folder)
        facts = meta['facts'] | {'tasks': meta.get('tasks') or []}
        facts = {key: fact for key, fact in facts.items() if key in defaults}
        yield Owner('', {}, '', facts, os.path.join(folder, 'meta.json'))


def understood(M):
    """The protocols that can judge this model."""
    return (*M.EVAL, *('loss',) * ('loss' not in M.EVAL))


def protocol_for(M, folder):
    """
    The first of them that the data can serve: env wants a simulator, which the model's file or meta.json
    names. Where the data are not at hand env will say so.
    """
    played = hasattr(M, 'SIMULATOR') or not folder or not os.path.exists(os.path.join(folder, 'meta.json'))
    wanted = [name for name in understood(M) if name != 'env' or played or read_meta(folder).get('env')]
    return wanted[0]


def edges(M, cfg):
    """What a Store does at the edges of an episode, for this model: its arguments pad and drop."""
    return {'pad': M.PAD, 'drop': getattr(cfg, 'drop_n_last_frames', 0)}


def windows_of(M, cfg):
    """M.windows(cfg), or one line where the Config is impossible or they are no ranges."""
    windows = attempt(M, M.windows, cfg)
    if not isinstance(windows, dict) or not windows:
        sys.exit(f'{M.__name__}.windows: want {{key: range of frame offsets}}, got {windows!r}')
    wrong = [f'{key}: {offsets!r}' for key, offsets in windows.items() if not isinstance(offsets, range)]
    empty = [key for key, offsets in windows.items() if len(offsets) == 0]
    if empty:                                            # the model itself may say which value is impossible
        attempt(M, M.Model, cfg)
    if wrong or empty:
        sys.exit(f'{M.__name__}.windows: want a range of frame offsets for every key, got '
                 f'{", ".join(wrong or empty)}{"" if wrong else " without any"}')
    return windows


def build(M, cfg, empty=False):
    """The model. empty: for weights that come from a file, so without memory where the model can be that."""
    with torch.device('meta') if empty and getattr(M, 'META', False) else nullcontext():
        return attempt(M, M.Model, cfg)


def attempt(M, make, cfg):
    """make(cfg), or the model's own line about the value of its Config that is impossible."""
    try:
        return make(cfg)
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        sys.exit(f'{M.__name__}.Config: {error}')


def fill_statistics(model, M, windows, meta, folder):
    """
    meta.json's stats[key][name] -> the buffer <key>_<name>, for all that the model has. One line for a key
    that its windows read but for which it has no buffer, or a buffer that finds no number: that would train
    un-normalised.
    """
    stats, problems, filled = meta['stats'], [], set()
    # buffers that are not saved would be missing in the checkpoint, and parameters are learned
    kept = dict(model.named_buffers()).keys() & model.state_dict().keys()
    for key, table in stats.items():
        for name, values in table.items():
            buffer = getattr(model, f'{key}_{name}', None)
            if not isinstance(buffer, torch.Tensor) or f'{key}_{name}' not in kept:
                continue
            if len(values) != buffer.numel():
                problems.append(f'{key}_{name} holds {buffer.numel()} numbers, meta.json has {len(values)}')
                continue
            buffer.copy_(torch.tensor(values).view_as(buffer))
            filled.add(f'{key}_{name}')
    names = {name for table in stats.values() for name in table}
    raw = set(getattr(M, 'UNNORMALISED', ()))
    for key in windows:
        if key not in stats or key in raw:
            continue
        pairs = [[name for name in pair if name in stats[key]]       # an origin without a unit is half of it
                 for pair in (('mean', 'std'), ('min', 'max'), ('q01', 'q99'))]
        if not any(pair and all(f'{key}_{name}' in filled for name in pair) for pair in pairs):
            problems.append(f'the statistics of {key} find no buffer like {key}_mean '
                            f'(if that is meant: UNNORMALISED = ({key!r},))')
    lonely = [name for name in dict(model.named_buffers()) if name.rpartition('_')[0] in windows
              and name.rpartition('_')[2] in names and name not in filled]
    problems += [f'the buffer {name} finds no statistics' for name in lonely]
    if problems:
        sys.exit(f'{M.__name__} on {folder}/meta.json: {"; ".join(problems)}; it would train un-normalised')


def statistics(model, meta):
    """Names of the model's buffers that meta.json's statistics fill."""
    there = {f'{key}_{name}' for key, table in meta['stats'].items() for name in table}
    return there & dict(model.named_buffers()).keys()


def suited(model, M, meta, folder):
    """One line where data were made by other weights than the model has; see `suits`."""
    try:
        getattr(model, 'suits', lambda meta: None)(meta)
    except ValueError as error:
        sys.exit(f'{M.__name__} on {folder}: {error}')


def meet(model, M, folder):
    """A trained model reads data in the form in which they lie there: its Config follows (FORM)."""
    if folder and getattr(M, 'FORM', ()) and os.path.exists(os.path.join(folder, 'meta.json')):
        meta, defaults = read_meta(folder), M.Config()
        for name in M.FORM:
            default = getattr(defaults, name)
            setattr(model.cfg, name, fit(meta['facts'].get(name, default), default))
        suited(model, M, meta, folder)


def check_output(M, out, grad=True):
    """What forward returned: one line unless it can be trained on (grad) and logged."""
    loss = out.get('loss') if isinstance(out, dict) else None
    if not isinstance(loss, torch.Tensor) or loss.ndim or (grad and not loss.requires_grad):
        got = sorted(out) if isinstance(out, dict) else type(out).__name__
        sys.exit(f"{M.__name__}.Model.forward returned {got}; "
                 "want a dict with 'loss', a scalar tensor with grad")
    wrong = [key for key, value in out.items() if not isinstance(value, torch.Tensor) or value.numel() != 1]
    if wrong:
        sys.exit(f'{M.__name__}.Model.forward: {", ".join(wrong)} is no scalar tensor: it cannot be logged')
