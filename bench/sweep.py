"""
A grid of runs of any model: train, judge, tabulate. Interrupted or extended, the same command goes on.

    python bench/sweep.py config/wall_cpu.py --grid lr=1e-3,4e-3 --grid depth=2,4 --seeds 3 --jobs 2 \\
        --metric gain_over_shuffled --metric psnr --mode max --max_steps=2000 --eval=horizon=8

A cell is one point of the grid and one seed, in ROOT/NAME/lr=1e-3,depth=2/seed1/: train.py writes there,
eval.py writes eval.json, both log to log.txt, and cell.json seals it: a hash of all settings that are not at
their default, of the data and of the flags of eval.py, and the sha256 of each file of code that trains or
judges. A cell is done when eval.json parses and the seal is still the one asked for.

Otherwise it goes on from its checkpoint, as long as an unbroken run would come to the same: train.py itself
would also go on with another lr, or find nothing left to do, and we would print old weights under a new name.
So a cell whose training settings or training code changed moves to seed1.old1 and starts anew; only a larger
max_steps goes on (not under a cosine). Where only eval.py, the protocol or what it imports changed, it is
judged again. A line says which and why; --keep_sealed accepts cells whose code changed, for edits that are
known to move no number.

Flags that are not listed below go to train.py. Cells without --jobs: --dry_run prints them as shell lines,
    python bench/sweep.py ... --dry_run | xargs -d '\\n' -P 4 -n 1 sh -c   (or a line per Slurm task)
Ctrl-C and SIGTERM stop all cells, which save. Exit status 1 unless every cell is done. Tables are in
ROOT/NAME.
"""
import argparse
import ast
import hashlib
import json
import math
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from glob import glob
from importlib import import_module
from itertools import count, product
from statistics import fmean, stdev

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configurator import Owner, configure, polite_exit

if __name__ == '__main__':
    polite_exit()                                        # importing torch takes seconds

from tqdm import tqdm

import checkpoint
import contract
from data.loader import identity, read_meta

TRAIN, EVAL = (os.path.relpath(os.path.join(ROOT, name)) for name in ('train.py', 'eval.py'))
TRAINS = 'train.py', 'data/loader.py'                 # and the model's file: code on which the weights depend
PARSING = threading.Lock()  # two threads in ast.parse at once disturb each other in CPython 3.11 (gh-106905)
JUDGES = 'metrics.py', 'cem.py', 'protocols/*.py'        # of these, what the protocol imports; and eval.py
OURS = 'seed', 'out_dir', 'resume', 'ckpt', 'out'        # flags that the sweep itself sets
FREE = {'out_dir', 'resume', 'data_dir', 'verify', 'log', 'log_every', 'save_every', 'keep', 'keep_every',
        'device', 'compile', 'ckpt', 'out'}              # may change: what is learned or judged is the same
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
       2.131, 2.120, 2.110, 2.101, 2.093, 2.086)      # Student's t, 95 % two-sided, for 1, 2, ... degrees
stop, children = threading.Event(), set()                # asked to stop? processes to pass that on to


@dataclass
class Cell:
    """One point of the grid and one seed: what is asked for, then what `look` finds on disk."""
    values: tuple                                        # of the axes, as typed
    seed: int
    folder: str
    commands: list                                       # argv of train.py, argv of eval.py
    config: dict                                         # all keys of the training
    data_sha: str
    protocol: str                                        # that judges it
    hash: str                                            # of all that is asked for
    code: dict = field(default_factory=dict)             # {'train' | 'judge': {file: sha256}}, as it is now
    result: dict = None                                  # eval.json
    done: bool = False
    anew: str = ''                                       # why its checkpoint is of no use
    again: str = ''                                   # why its scores are of no use, though the checkpoint is
    aside: str = ''                                      # where the folder moves when it starts anew

    @property
    def seal(self):
        return self.folder + '/cell.json'

    def seal_text(self):
        return json.dumps({'hash': self.hash, **self.code})


# ---- what is asked for ----

def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False, usage='%(prog)s CONFIG [flags] [flags of train.py]')
    p.add_argument('config', metavar='CONFIG', help='config file of train.py')
    p.add_argument('--grid', action='append', default=[], metavar='KEY=A,B', help='an axis; commas separate')
    p.add_argument('--seeds', type=int, default=1, metavar='N', help='seeds 1 to N of each point (default 1)')
    p.add_argument('--jobs', type=int, default=1, metavar='N', help='cells at a time (default 1); they share '
                   'the cores (or OMP_NUM_THREADS, if set), and take the visible GPUs in turn')
    p.add_argument('--metric', action='append', required=True, metavar='NAME', help='a number of eval.json, '
                   'nested ones as a.b; repeat for more columns: the first ranks and colours')
    p.add_argument('--mode', choices=('min', 'max'), required=True, help='which is best')
    p.add_argument('--eval', action='append', default=[], metavar='KEY=VALUE', help='a flag of eval.py')
    p.add_argument('--name', default='', help="folder of this sweep (default: CONFIG's name)")
    p.add_argument('--root', default='out/sweep', help='folder of all sweeps (default %(default)s)')
    p.add_argument('--keep_sealed', action='store_true', help='accept cells that were made by other code')
    p.add_argument('--dry_run', action='store_true', help='print a shell line per missing cell, run nothing')
    p.add_argument('--table', action='store_true', help='only rebuild the table from the cells that are done')
    return p


def parse(argv=None):
    """-> our arguments, those of train.py."""
    p = parser()
    args, passed = p.parse_known_args(argv)
    args.name = args.name or os.path.splitext(os.path.basename(args.config))[0]
    args.folder = os.path.join(args.root, args.name)
    args.axes = {}
    for axis in args.grid:
        key, equals, text = axis.partition('=')
        values = text.split(',')
        if not equals or '/' in axis or key in args.axes or len(set(values)) < len(values):
            p.error(f"--grid {axis}: want KEY=A,B with a key per --grid, values that differ and hold no '/'")
        args.axes[key] = values
    if args.seeds < 1 or args.jobs < 1:
        p.error(f'--seeds {args.seeds}, --jobs {args.jobs}: at least 1')
    for flag in [*args.grid, *passed, *args.eval]:
        key = flag.lstrip('-').partition('=')[0]
        if key in OURS and (key != 'seed' or flag not in args.eval):           # eval.py has a seed of its own
            p.error(f'{flag}: the sweep sets {key}')
        if key in args.axes and flag in passed:
            p.error(f'{flag}: is an axis of the grid, too')
    return args, passed


def keys_of(script):
    """Keys of a script and their defaults, without running it: its plain assignments up to configure()."""
    keys = {'__file__': script}
    with open(script) as f:
        tree = ast.parse(f.read())
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        if isinstance(node.value, ast.Call) and getattr(node.value.func, 'id', '') == 'configure':
            break
        if isinstance(node.targets[0], ast.Name):
            try:
                keys[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:                           # not a plain value, so not a key
                pass
    return keys


def resolve(script, argv, owners):
    """-> all keys, and those not at their default; a typo ends here, before any cell starts."""
    config, changed = configure(keys_of(script), owners, argv, script)
    config = json.loads(json.dumps(config))              # tuples as meta.json has them
    return config, {key: config[key] for key in changed if key not in FREE}


def judge_owners(config):
    """Owners of the keys of eval.py that are not its own: the protocol's, and the model's for sampling."""
    M = contract.load(config['model'])

    def owners(wanted):
        known = contract.understood(M)
        name = wanted['protocol'] or contract.protocol_for(M, judged_in(config, wanted))
        if name not in known:
            sys.exit(f'protocol = {name!r}: {M.__name__} understands {", ".join(known)}')
        protocol = import_module(f'protocols.{name}')
        yield Owner(f'protocol {name}', vars(protocol.Keys()), protocol.__file__)
        yield Owner(f'{M.__name__}.Config', {key: config[key] for key in contract.sampling(M)}, M.__file__)
    return owners


def make_cells(args, passed):
    """The grid, in its order, seeds innermost."""
    judge = [f'--{flag}' for flag in args.eval]
    cells, points = [], {}
    for values in product(*args.axes.values()):
        flags = [f'{key}={value}' for key, value in zip(args.axes, values)]
        for seed in range(1, args.seeds + 1):
            folder = os.path.join(args.folder, ','.join(flags) or 'config', f'seed{seed}')
            train = [args.config, *passed, *(f'--{flag}' for flag in flags), f'--seed={seed}']
            config, changed = resolve(TRAIN, train, contract.owners)
            same = points.setdefault(json.dumps([config[key] for key in args.axes]), flags)
            if same is not flags:
                sys.exit(f'--grid: {",".join(same)} and {",".join(flags)} are one point; leave one out')
            how, judged = resolve(EVAL, judge, judge_owners(config))
            sha = data_sha(config['data_dir'], config['dataset'])
            if how.get('dataset'):                       # judged on other data than it trains on
                judged['data_sha'] = data_sha(how.get('data_dir') or config['data_dir'], how['dataset'])
            text = json.dumps([changed, seed, sha, judged], sort_keys=True)
            commands = [[sys.executable, TRAIN, *train, f'--out_dir={folder}', '--resume=True'],
                        [sys.executable, EVAL, f'--ckpt={folder}', *judge, f'--out={folder}/eval.json']]
            M = contract.load(config['model'])
            protocol = how['protocol'] or contract.protocol_for(M, judged_in(config, how))
            cell = Cell(values, seed, folder, commands, config, sha, protocol,
                        hashlib.sha256(text.encode()).hexdigest()[:16])
            look(cell, args.keep_sealed)
            cells.append(cell)
    return cells


def judged_in(config, how):
    """The folder of the data that eval.py judges on; None for a training without any."""
    dataset = how['dataset'] or config['dataset']
    return os.path.join(how['data_dir'] or config['data_dir'], dataset) if dataset else None


def data_sha(data_dir, dataset):
    """What identifies the data, wherever they lie; '' for a training without any."""
    return identity(read_meta(os.path.join(data_dir, dataset))) if dataset else ''


def code_now(model, protocol):
    """{'train' | 'judge': {file: sha256}} of the code on which a cell depends."""
    judges = {os.path.relpath(path, ROOT) for pattern in JUDGES for path in glob(os.path.join(ROOT, pattern))}
    parts = {'train': [*TRAINS, f'{model}.py'],
             'judge': ['eval.py', *reached(f'protocols/{protocol}.py', judges)]}
    return {part: {file: checkpoint.sha256(os.path.join(ROOT, file))[:16] for file in files}
            for part, files in parts.items()}


def reached(file, among):
    """The file, and those of `among` that it imports, itself or through another of them."""
    found, todo = [], [file]
    while todo:
        file = todo.pop()
        found.append(file)
        with open(os.path.join(ROOT, file)) as f, PARSING:
            tree = ast.parse(f.read())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):         # from a import b: a.py, or b.py in the folder a
                names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
            paths = {name.replace('.', '/') + '.py' for name in names}
            todo += sorted(paths & among - {*found, *todo})
    return sorted(found)


# ---- what lies on disk ----

def read_object(path):
    """A JSON object, or None if there is none or it is damaged."""
    try:
        with open(path) as f:
            value = json.load(f)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def trained(cell):
    """meta.json of the cell's latest checkpoint, or None; if it is damaged, train.py will say so."""
    try:
        return checkpoint.read(checkpoint.find(cell.folder), 'meta.json')
    except SystemExit:
        return None


def changes(cell, meta):
    """One line: what the checkpoint was trained with where we want something else. Newer keys are fine."""
    ours = cell.config | {'data_sha': cell.data_sha}
    theirs = meta['config'] | {'data_sha': meta['data_sha']}
    differ = [key for key in ours if key not in FREE and theirs.get(key, ours[key]) != ours[key]]
    constant = ours['lr_schedule'] == 'constant' or ours['lr_decay_steps']
    if differ == ['max_steps'] and meta['step'] <= ours['max_steps'] and constant:
        return ''
    return ', '.join(f'{key} = {theirs[key]!r}, now {ours[key]!r}' for key in differ)


def edited(before, now):
    """Which files of code are not those of before, in words; '' if all are."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f'{", ".join(names)} changed since' if names else ''


def complete(cell, meta):
    """Trained to the end? train.py also exits 0 when it was stopped."""
    return meta['step'] >= cell.config['max_steps']


def look(cell, keep_sealed=False):
    """Is the cell done? Else cell.anew or cell.again say why what lies there is of no use, if so."""
    meta, seal = trained(cell), read_object(cell.seal) or {}
    cell.result = read_object(cell.folder + '/eval.json')
    cell.code = code_now(cell.config['model'], cell.protocol)
    cell.anew = changes(cell, meta) if meta else ''
    cell.again = ''
    sealed = cell.result is not None and seal.get('hash') == cell.hash
    if sealed and not keep_sealed:
        cell.anew = cell.anew or edited(seal.get('train', {}), cell.code['train'])
        cell.again = edited(seal.get('judge', {}), cell.code['judge'])
    elif meta and not keep_sealed:                   # stopped half-way: its checkpoint knows the model's file
        file = f'{cell.config["model"]}.py'
        whole = checkpoint.sha256(os.path.join(ROOT, file))
        if meta.get('model_sha', whole) != whole:
            cell.anew = cell.anew or f'{file} changed since'
    cell.aside = next(path for i in count(1) if not os.path.exists(path := f'{cell.folder}.old{i}'))
    there = meta is None or complete(cell, meta)         # numbers outlive deleted checkpoints
    cell.done = sealed and there and not cell.anew and not cell.again
    return cell.done


def shell(cell):
    """run_cell as a line. The seal is broken first and set last, so no kill leaves one on other numbers."""
    first = ['mv', cell.folder, cell.aside] if cell.anew else ['rm', '-f', cell.seal]
    last = shlex.join(['echo', cell.seal_text()]) + ' > ' + shlex.quote(cell.seal)
    return ' && '.join([*map(shlex.join, [first, *cell.commands]), last])


# ---- running ----

def run_command(command, log, slot):
    """One of a cell's two scripts, with its output in the log -> '' or what went wrong, in one line."""
    with open(log, 'a') as f:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                                   env=os.environ | slot)
    children.add(process)
    if stop.is_set():                                    # asked between the two lines above
        process.terminate()
    code = process.wait()
    children.discard(process)
    if stop.is_set() and code:
        return 'stopped'
    if code < 0:
        return f'killed by signal {-code}, after: {last_line(log)}'
    return last_line(log) if code else ''


def last_line(log):
    """What a script said last; its traceback, if any, stays in the log."""
    with open(log, errors='replace') as f:
        return ([line.strip() for line in f if line.strip()] or ['nothing in its log'])[-1]


def run_cell(cell, slots):
    """-> '' or what went wrong, in one line."""
    if stop.is_set():
        return 'stopped'
    slot = slots.get()
    try:
        checkpoint.lock(cell.folder).close()             # nobody else is at work there?
        if cell.anew:
            os.rename(cell.folder, cell.aside)
        os.makedirs(cell.folder, exist_ok=True)
        if os.path.exists(cell.seal):
            os.remove(cell.seal)
        cell.code = code_now(cell.config['model'], cell.protocol)    # what runs now, though it may be edited
        for command in cell.commands:
            if problem := run_command(command, cell.folder + '/log.txt', slot):
                return problem
            meta = trained(cell)
            if not meta or not complete(cell, meta):
                return 'stopped' if stop.is_set() else last_line(cell.folder + '/log.txt')
            if wrong := changes(cell, meta):
                return f'{wrong}: was {command[2]} edited while the sweep ran?'
        cell.result = read_object(cell.folder + '/eval.json')
        if cell.result is None:
            return f'{cell.folder}/eval.json holds no JSON object'
        checkpoint.write_text(cell.seal, cell.seal_text() + '\n')
        cell.done = True
        return ''
    except (OSError, SystemExit) as error:
        return str(error)
    finally:
        slots.put(slot)


def make_slots(jobs):
    """What each of the jobs that run at a time gets: a share of the cores, and one GPU after the other."""
    import torch
    gpus = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(torch.cuda.device_count()))))
    cores = int(os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0)))
    slots = queue.SimpleQueue()
    for i in range(jobs):
        slot = {'OMP_NUM_THREADS': str(max(1, cores // jobs))}
        if gpus:
            slot['CUDA_VISIBLE_DEVICES'] = gpus.split(',')[i % len(gpus.split(','))]
        slots.put(slot)
    return slots


def stop_all(*_):
    """Ask all cells to end: train.py saves at the next step and exits 0, eval.py just ends."""
    if stop.is_set():                                    # asked twice: leave them behind
        os.write(2, b'\nstopped\n')
        os._exit(1)
    stop.set()
    for process in list(children):
        process.terminate()


def run_cells(cells, args):
    """All cells that are not done, --jobs at a time -> {cell folder: what went wrong}."""
    todo = [cell for cell in cells if not cell.done]
    for cell in todo:
        if cell.anew:
            print(f'{cell.folder}: {cell.anew}: starts anew; what was there moves to {cell.aside}')
        elif cell.again:
            print(f'{cell.folder}: {cell.again}: is judged again (--keep_sealed takes its numbers)')
    sys.stdout.flush()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_all)
    failed, slots, began, unknown = {}, make_slots(args.jobs), time.time(), ''
    bar = tqdm(total=len(cells), initial=len(cells) - len(todo), smoothing=0, unit='cell',
               disable=not sys.stderr.isatty())
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_cell, cell, slots): cell for cell in todo}
        for n, future in enumerate(as_completed(futures), 1):
            cell, problem = futures[future], future.result()
            if stop.is_set() and problem:
                continue
            if problem:
                failed[cell.folder] = problem
            elif not unknown and (unknown := unknown_metrics(cells, args)):
                stop_all()                               # no other cell will know it either
            bar.update()
            eta = (time.time() - began) / n * (len(todo) - n) / 3600
            ranked = args.metric[0]
            said = f'failed: {problem}' if problem else f'{ranked} {shown(score(cell, ranked))}'
            place = f'{len(cells) - len(todo) + n}/{len(cells)}'
            tqdm.write(f'{place} | {cell.folder} | {said} | eta {eta:.2f} h', file=sys.stdout)
            sys.stdout.flush()
    bar.close()
    if unknown:
        sys.exit(unknown)
    return failed


# ---- the table ----

def flatten(result, prefix=''):
    """{'a': {'b': 1.5, 'c': None}, 'd': 'text'} -> {'a.b': 1.5, 'a.c': nan}: what --metric can name."""
    flat = {}
    for key, value in result.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        elif type(value) in (int, float):
            flat[prefix + key] = value
        elif value is None:                              # what JSON makes of nan
            flat[prefix + key] = math.nan
    return flat


def score(cell, metric):
    """The number that the cell has for a metric, None if it has none or one that is not finite."""
    value = flatten(cell.result).get(metric) if cell.done else None
    return value if value is not None and math.isfinite(value) else None


def unknown_metrics(cells, args):
    """'', or one line for a --metric that no finished cell has, with the names that there are."""
    known = {name for cell in cells if cell.done for name in flatten(cell.result)}
    for metric in args.metric:
        if known and metric not in known:
            return f"no metric '{metric}' in eval.json; there is: {', '.join(sorted(known))}"
    return ''


def over_seeds(values):
    """-> mean, both ends of the 95 % t-interval, min, max, n; None for what n values cannot tell."""
    n = len(values)
    if n == 0:
        return None, None, None, None, None, 0
    if n == 1:
        return values[0], None, None, values[0], values[0], 1
    t = T95[n - 2] if n < len(T95) + 2 else 1.96 + 2.372 / (n - 1) + 2.823 / (n - 1) ** 2
    mean, half = fmean(values), t * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half, min(values), max(values), n


def shown(value, high=None):
    """A number of the table, or a range."""
    if high is not None:
        return f'{value:.4g} .. {high:.4g}'
    return '-' if value is None else f'{value:.4g}'


def tables(cells, args):
    """table.csv, table.md, table.png from the cells that are done."""
    if not any(cell.done for cell in cells):
        print(f'no cell of {args.folder} is done: no table')
        return
    if unknown := unknown_metrics(cells, args):
        sys.exit(unknown)
    points, rows = list(product(*args.axes.values())), []
    for point in points:
        here = [cell for cell in cells if cell.values == point]
        scores = [[score(cell, metric) for cell in here] for metric in args.metric]
        rows.append([over_seeds([value for value in values if value is not None]) for values in scores])
    means = [row[0][0] for row in rows]                  # of the first metric
    known = [mean for mean in means if mean is not None]
    best = means.index(min(known) if args.mode == 'min' else max(known)) if known else None
    write_csv(args, points, rows, best)
    write_markdown(args, points, rows, best)
    if len(args.axes) == 2:
        heat_map(args.folder + '/table.png', args, means, best)


def write_csv(args, points, rows, best):
    ends = '', '_low', '_high', '_min', '_max', '_n'
    sheet = [[*args.axes, *(metric + end for metric in args.metric for end in ends), 'best']]
    for i, (point, row) in enumerate(zip(points, rows)):
        numbers = ['' if x is None else x for x in sum(row, ())]
        sheet.append([*point, *numbers, int(i == best)])
    text = ''.join(','.join(map(str, line)) + '\n' for line in sheet)
    checkpoint.write_text(args.folder + '/table.csv', text)


def write_markdown(args, points, rows, best):
    heads = '', ' 95 % interval', ' min .. max', ' n'
    lines = [[*args.axes, *(metric + head for metric in args.metric for head in heads)]]
    lines.append(['---'] * len(lines[0]))
    for i, (point, row) in enumerate(zip(points, rows)):
        line = [*point]
        for mean, low, high, least, most, n in row:
            line += [shown(mean), shown(low, high), shown(least, most), str(n)]
        if i == best:
            line[len(point)] = f'**{line[len(point)]}** (best)'
        lines.append(line)
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    checkpoint.write_text(args.folder + '/table.md', text + '\n')
    print(text)


def heat_map(path, args, means, best):
    """Means of the first metric over the two axes, the best one framed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("the heat map needs: pip install -e '.[plot]'")
    (down, rows), (right, columns) = args.axes.items()
    values = [math.nan if mean is None else mean for mean in means]
    grid = [values[first:first + len(columns)] for first in range(0, len(values), len(columns))]
    figure = Figure(figsize=(2 + len(columns), 1.5 + 0.7 * len(rows)), layout='constrained')
    ax = figure.add_subplot(xlabel=right, ylabel=down, title=f'{args.metric[0]} ({args.mode} framed)')
    image = ax.imshow(grid, cmap='viridis' if args.mode == 'max' else 'viridis_r', aspect='auto')
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    for i, mean in enumerate(means):
        ax.text(i % len(columns), i // len(columns), shown(mean), ha='center', va='center',
                bbox=dict(facecolor='white', edgecolor='red' if i == best else 'none', alpha=0.8))
    figure.colorbar(image)
    figure.savefig(path + '.tmp', format='png', dpi=120)
    os.replace(path + '.tmp', path)


def main(argv=None):
    args, passed = parse(argv)
    cells, failed = make_cells(args, passed), {}
    if unknown := unknown_metrics(cells, args):    # cells of an earlier sweep tell before anything is trained
        sys.exit(unknown)
    if args.dry_run:
        for cell in cells:
            if not cell.done:
                print(shell(cell))
        return
    if not args.table:
        held = hold(args)
        failed = run_cells(cells, args)
        held.close()
    done = sum(cell.done for cell in cells)
    left = f'{done} of {len(cells)} cells are done; the same command goes on with the others'
    if stop.is_set():
        sys.exit(f'stopped; {left}')
    for path, problem in failed.items():
        print(f'failed: {path}: {problem}', file=sys.stderr)
    tables(cells, args)
    if done < len(cells):
        sys.exit(left)


def hold(args):
    """The lock of the sweep's folder, which is made if need be; one line where that cannot be."""
    try:
        os.makedirs(args.folder, exist_ok=True)
        open(args.folder + '/lock', 'a').close()
    except OSError as error:
        sys.exit(f'--root={args.root}: {error.filename}: {error.strerror}; choose a place to write')
    try:
        return checkpoint.lock(args.folder)
    except SystemExit:
        sys.exit(f'{args.folder} is in use by another sweep; wait for it, or choose another --name')


if __name__ == '__main__':
    main()
