"""
Scalars of a run: one JSON object per line in out_dir/logs.json.txt, and a tracker if asked.

    logger = make_logger('tensorboard', out_dir, run='toy', config=config)      # rank 0 only
    logger.log({'train/loss': 0.1}, step=10)        # {"step": 10, "train/loss": 0.1}
    logger.close()

    python logger.py loss.png out/a out/b           # draws train and validation loss of runs (extra: plot)

Every line is written at once. A resumed run appends: of a step that occurs twice read_logs keeps the later.
"""
import json
import math
import os
import secrets
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


def make_tensorboard(out_dir, run, config, step):
    """
    -> send(row, step), finish(). The folder is the identity of a run: a resumed one continues its curves.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("log = 'tensorboard' needs: pip install -e '.[log]'", file=sys.stderr)
        sys.exit(2)
    writer = SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=step)
    writer.add_text(run, '\n'.join(f'    {key} = {value!r}' for key, value in config.items()))

    def send(row, step):
        for name, value in row.items():
            writer.add_scalar(name, value, step)
    return send, writer.close


def make_swanlab(out_dir, run, config, step):
    """
    -> send(row, step), finish(). The environment decides where it goes: SWANLAB_MODE = online (default) |
    offline | local | disabled, SWANLAB_API_KEY and others; it also wins for names. A resumed run continues
    the curves of the run whose id lies in out_dir/swanlab_id. Only scalars are sent, never a picture.
    """
    try:
        import swanlab
    except ImportError:
        print("log = 'swanlab' needs: pip install -e '.[log]'", file=sys.stderr)
        sys.exit(2)
    path, asked = os.path.join(out_dir, 'swanlab_id'), {}
    if step is None or not os.path.exists(path):
        with open(path, 'w') as f:
            f.write(secrets.token_hex(8))
    with open(path) as f:
        asked['id'] = f.read().strip()
    ours = {'project': ('SWANLAB_PROJ_NAME', 'nanoworld'), 'name': ('SWANLAB_EXP_NAME', run),
            'log_dir': ('SWANLAB_LOG_DIR', os.path.join(out_dir, 'swanlog'))}
    asked |= {key: os.environ.get(variable, default) for key, (variable, default) in ours.items()}
    try:
        swanlab.init(config=config, resume='allow', **asked)
    except Exception as error:                        # no key, no network: it has many words for them
        sys.exit(f"log = 'swanlab': {str(error).splitlines()[0]} Set SWANLAB_API_KEY, or "
                 'SWANLAB_MODE=offline')

    def send(row, step):
        swanlab.log({name: value for name, value in row.items() if math.isfinite(value)}, step=step)
    return send, swanlab.finish


TRACKERS = {'tensorboard': make_tensorboard, 'swanlab': make_swanlab}


def make_logger(kind, out_dir, run, config, step=None):
    """
    kind '' | 'tensorboard' | 'swanlab'; run is its name for people. step: where a resumed run goes on; what
    the earlier process drew from there on disappears. -> .log({name: scalar}, step), .close(). Missing
    package: one line, exit code 2. A file that cannot be written, a full disk say, is one line too: sys.exit
    from .log.
    """
    if kind and kind not in TRACKERS:
        print(f"log = {kind!r}: choose '', {' or '.join(map(repr, TRACKERS))}", file=sys.stderr)
        sys.exit(2)
    send, finish = (lambda row, step: None), (lambda: None)

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
    if kind:
        send, finish = TRACKERS[kind](out_dir, run, config, step)

    def log(row, step):
        row = {name: scalar(value) for name, value in row.items()}
        # JSON has no NaN
        safe = {name: value if math.isfinite(value) else None for name, value in row.items()}
        try:
            file.write(json.dumps({'step': step, **safe}).encode() + b'\n')
            send(row, step)
        except OSError as error:
            sys.exit(f'{path}: {error.strerror}; make room, then --resume=True')

    def close():
        file.close()
        finish()

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
