"""
Scalars of a run: one JSON object per line in out_dir/logs.json.txt, and a tracker if asked.

    logger = make_logger('wandb', out_dir, run='toy', config=config, run_id=run_id)      # rank 0 only
    logger.log({'train/loss': 0.1}, step=10)        # {"step": 10, "train/loss": 0.1}
    logger.close()

    python logger.py loss.png out/a out/b           # draws train and validation loss of runs (extra: plot)

Every line is written at once. A resumed run appends: of a step that occurs twice read_logs keeps the later.
"""
import json
import math
import os
import sys
from types import SimpleNamespace

# Dense bf16 FLOP/s from the data sheets, for the MFU of train.py and bench/; the first name that occurs wins.
PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L40S': 362e12, 'RTX 4090': 165e12}


def peak_of(device_name):
    """Peak FLOP/s of a device by its name, e.g. torch.cuda.get_device_name(); 0.0 where we do not know it."""
    return next((peak for name, peak in PEAK.items() if name in device_name), 0.0)


def scalar(value):
    """int or float of a number, a numpy scalar or a one-element tensor; anything else is the caller's bug."""
    value = value.item() if hasattr(value, 'item') else value
    assert isinstance(value, (int, float)), f'the logger takes scalars, got {type(value).__name__} {value!r}'
    return value


def make_tensorboard(out_dir, run, config, step, run_id):
    """The folder is the identity of a run: a resumed one continues its curves."""
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=step)
    writer.add_text(run, '\n'.join(f'    {key} = {value!r}' for key, value in config.items()))

    def send(row, step):
        for name, value in row.items():
            writer.add_scalar(name, value, step)
    return send, writer.close


def make_swanlab(out_dir, run, config, step, run_id):
    """
    The environment decides where it goes: SWANLAB_MODE = online (default) | offline | local | disabled,
    SWANLAB_API_KEY and others; it also wins for names. Of a step that is sent twice the service keeps the
    earlier point.
    """
    import swanlab
    ours = {'project': ('SWANLAB_PROJ_NAME', 'nanoworld'), 'name': ('SWANLAB_EXP_NAME', run),
            'log_dir': ('SWANLAB_LOG_DIR', os.path.join(out_dir, 'swanlog'))}
    asked = {key: os.environ.get(variable, default) for key, (variable, default) in ours.items()}
    swanlab.init(config=config, id=run_id, resume='allow', **asked)

    def send(row, step):
        swanlab.log({name: value for name, value in row.items() if math.isfinite(value)}, step=step)
    return send, swanlab.finish


def make_wandb(out_dir, run, config, step, run_id):
    """
    The environment decides where it goes: WANDB_MODE = online (default) | offline | disabled, WANDB_API_KEY
    and others; it also wins for names. Its own counter never goes back, and what is below it is dropped; so
    our step is a value like the others, and the axis of all curves. A kill -9 costs them up to 15 s.
    """
    import wandb
    ours = {'project': ('WANDB_PROJECT', 'nanoworld'), 'name': ('WANDB_NAME', run),
            'dir': ('WANDB_DIR', out_dir)}
    asked = {key: os.environ.get(variable, default) for key, (variable, default) in ours.items()}
    # the terminal and the code stay here
    settings = wandb.Settings(console='off', disable_code=True, disable_git=True)
    tracked = wandb.init(id=run_id, resume='allow', settings=settings, **asked)
    tracked.config.update(config, allow_val_change=True)     # what was changed for the resume
    tracked.define_metric('*', step_metric='step')

    def send(row, step):
        tracked.log({'step': step} | {name: value for name, value in row.items() if math.isfinite(value)})
    return send, tracked.finish


# Each takes (out_dir, run, config, step, run_id) and gives send(row, step) and finish(). Only scalars are
# sent, never a picture. A package is imported inside: nobody waits for one that was not asked for.
TRACKERS = {'tensorboard': make_tensorboard, 'wandb': make_wandb, 'swanlab': make_swanlab}


def reason_of(error):
    """What a package complains about, as one line; some have many, some none."""
    return ' '.join(str(error).split())[:160].rstrip('.') or type(error).__name__


def start_tracker(kind, out_dir, run, config, step, run_id):
    """send and finish of a tracker, or one line: it is not installed, has no key, does not answer."""
    try:
        return TRACKERS[kind](out_dir, run, config, step, run_id)
    except ImportError:
        print(f"log = {kind!r} needs: pip install -e '.[log]'", file=sys.stderr)
        sys.exit(2)
    except Exception as error:                        # no key, no network: each has its own classes for them
        mend = f'set {kind.upper()}_API_KEY, or {kind.upper()}_MODE=offline'
        if kind == 'tensorboard':                     # it asks for nothing but the folder
            mend = 'choose another --out_dir'
        sys.exit(f'log = {kind!r}: {reason_of(error)}; {mend}')


def make_logger(kind, out_dir, run, config, step=None, run_id=None):
    """
    kind '' | 'tensorboard' | 'wandb' | 'swanlab'; run is its name for people, run_id (hex) the one by which
    wandb and swanlab know it again: with the id of an earlier process its curves go on. step: where a resumed
    run goes on; tensorboard drops what the earlier process drew from there on. -> .log({name: scalar}, step),
    .close(). Missing package: one line, exit code 2. No key, or a file that cannot be written, a full disk
    say, is one line too: sys.exit, from .log as well.
    """
    if kind and kind not in TRACKERS:
        print(f"log = {kind!r}: choose one of {('', *TRACKERS)}", file=sys.stderr)
        sys.exit(2)
    path = os.path.join(out_dir, 'logs.json.txt')
    try:
        os.makedirs(out_dir, exist_ok=True)
        # unbuffered: nothing is left to be written when the disk is full
        file = open(path, 'ab+', buffering=0)
        file.seek(max(0, file.tell() - 1))
        if file.read() not in (b'', b'\n'):
            file.write(b'\n')                         # a kill -9 cut the last line; ours starts a new one
    except OSError as error:
        sys.exit(f'{path}: {error.strerror}; choose another --out_dir')
    send, finish = start_tracker(kind, out_dir, run, config, step, run_id) if kind else (None, None)

    def track(act, *args):
        """A tracker that fails, its process killed say, is left alone: the run and our file go on."""
        nonlocal send, finish
        try:
            if act:
                act(*args)
        except Exception as error:
            send = finish = None
            print(f'log = {kind!r}: {reason_of(error)}; the run goes on without it, {path} has every row',
                  file=sys.stderr)

    def log(row, step):
        row = {name: scalar(value) for name, value in row.items()}
        # JSON has no NaN
        safe = {name: value if math.isfinite(value) else None for name, value in row.items()}
        try:
            file.write(json.dumps({'step': step, **safe}).encode() + b'\n')
        except OSError as error:
            sys.exit(f'{path}: {error.strerror}; make room, then --resume=True')
        track(send, row, step)

    def close():
        file.close()
        track(finish)

    return SimpleNamespace(log=log, close=close)


def read_logs(path):
    """
    logs.json.txt -> [{'step': ..., name: number or None}] by step; what a resumed run logged again wins.
    """
    rows = {}
    with open(path) as f:
        for line in f:
            try:
                row = json.loads(line)
            except ValueError:                  # the line that a kill -9 cut short
                continue
            rows.setdefault(row['step'], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def draw_losses(path, runs):
    """Training loss (thin) and validation loss (dots) of runs over the steps, logarithmic, as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("curves need: pip install -e '.[plot]'")
    figure = Figure(figsize=(7, 3), layout='constrained')
    axes = figure.subplots()
    for i, run in enumerate(runs):
        try:
            file = os.path.join(run, 'logs.json.txt') if os.path.isdir(run) else run
            rows = read_logs(file)
        except OSError as error:
            sys.exit(f'{run}: {error.strerror}; give the out_dir of a run, or its logs.json.txt')
        for key, style in ('train/loss', '-'), ('val/loss', 'o'):
            points = [(row['step'], row[key]) for row in rows if row.get(key)]
            label = f'{key}, {os.path.basename(os.path.normpath(run))}'
            axes.plot(*zip(*points), style, color=f'C{i}', lw=1, ms=4, label=label)
    axes.set(xlabel='step', yscale='log')
    axes.legend(fontsize='small', ncols=len(runs))
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    if len(sys.argv) < 3 or not sys.argv[1].endswith('.png'):
        sys.exit('python logger.py loss.png OUT_DIR...')
    draw_losses(sys.argv[1], sys.argv[2:])
