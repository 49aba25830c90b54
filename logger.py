"""
Scalars of a run (pictures stay on disk): one JSON object per line in out_dir/logs.json.txt, and a tracker if asked for.

    logger = make_logger('tensorboard', out_dir, run='toy', config=config)      # rank 0 only
    logger.log({'train/loss': 0.1}, step=10)        # {"step": 10, "train/loss": 0.1}
    logger.close()

The file is flushed per line and appended to on resume, so a step may occur twice; read_logs keeps the later one.
"""
import json
import math
import os
import sys
from types import SimpleNamespace


def scalar(value):
    """int or float of a number, a numpy scalar or a one-element tensor; anything else is the caller's bug."""
    value = value.item() if hasattr(value, 'item') else value
    assert isinstance(value, (int, float)), f'the logger takes scalars, got {type(value).__name__} {value!r}'
    return value


def make_logger(kind, out_dir, run, config, step=None):
    """kind '' | 'tensorboard'; run is its name for people. step: where a resumed run goes on; what the earlier process
    drew from there on disappears. -> .log({name: scalar}, step), .close(). Missing package: one line, exit code 2."""
    send, finish = (lambda row, step: None), (lambda: None)
    if kind not in ('', 'tensorboard'):
        print(f"log = {kind!r}: this release knows '' and 'tensorboard'", file=sys.stderr)
        sys.exit(2)
    if kind == 'tensorboard':
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("log = 'tensorboard' needs: pip install -e '.[log]'", file=sys.stderr)
            sys.exit(2)
        writer = SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=step)    # its folder is the identity
        writer.add_text(run, '\n'.join(f'    {key} = {value!r}' for key, value in config.items()))
        send = lambda row, step: [writer.add_scalar(name, value, step) for name, value in row.items()]
        finish = writer.close

    os.makedirs(out_dir, exist_ok=True)
    file = open(os.path.join(out_dir, 'logs.json.txt'), 'ab+')
    file.seek(max(0, file.tell() - 1))
    if file.read() not in (b'', b'\n'): file.write(b'\n')      # a kill -9 cut the last line; ours starts a new one

    def log(row, step):
        row = {name: scalar(value) for name, value in row.items()}
        safe = {name: value if math.isfinite(value) else None for name, value in row.items()}      # JSON has no NaN
        file.write(json.dumps({'step': step, **safe}).encode() + b'\n')
        file.flush()
        send(row, step)

    def close():
        file.close()
        finish()

    return SimpleNamespace(log=log, close=close)


def read_logs(path):
    """logs.json.txt -> [{'step': ..., name: number or None}] by step; what a resumed run logged again wins."""
    rows = {}
    with open(path) as f:
        for line in f:
            try: row = json.loads(line)
            except ValueError: continue         # the line that a kill -9 cut short
            rows.setdefault(row['step'], {}).update(row)
    return [rows[step] for step in sorted(rows)]
