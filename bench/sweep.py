"""
A grid of runs of any model: train, judge, tabulate. Interrupted or extended, the same command goes on.

    python bench/sweep.py config/wall_cpu.py --grid lr=1e-3,4e-3 --grid depth=2,4 --seeds 3 --jobs 2 \\
        --metric gain_over_shuffled --metric psnr --mode max --max_steps=2000 --eval=horizon=8

A cell is one point of the grid and one seed, in ROOT/NAME/lr=1e-3,depth=2/seed1/: train.py writes there, eval.py writes
eval.json, both log to log.txt, and cell.json seals it with a hash of all settings that are not at their default, the
data and the flags of eval.py. A cell is done when eval.json parses and the hash is still the one asked for.

Otherwise it goes on from its checkpoint, as long as an unbroken run would come to the same: train.py itself would also
go on with another lr, or find nothing left to do, and we would print old weights under a new name. So a cell whose
training settings changed moves to seed1.old1 and starts anew; only a larger max_steps goes on (not under a cosine).

Flags that are not listed below go to train.py. Cells without --jobs: --dry_run prints them as shell lines,
    python bench/sweep.py ... --dry_run | xargs -d '\\n' -P 4 -n 1 sh -c        (or a line per task of a Slurm array)
Exit status 1 unless every cell is done. table.csv, table.md and, for two axes, table.png are in ROOT/NAME.
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
from itertools import count, product
from statistics import fmean, stdev
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tqdm import tqdm

import checkpoint
from configurator import configure

TRAIN, EVAL = (os.path.relpath(os.path.join(ROOT, name)) for name in ('train.py', 'eval.py'))
OURS = 'seed', 'out_dir', 'resume', 'ckpt', 'out'                # flags that the sweep itself sets
FREE = {'out_dir', 'resume', 'data_dir', 'log', 'log_every', 'save_every', 'keep', 'keep_every', 'device', 'compile',
        'ckpt', 'out'}                                           # may change without touching what is learned or judged
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086)              # Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom
stop, children = threading.Event(), set()


def parse(argv=None):
    """-> our arguments, those of train.py."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False, usage='%(prog)s CONFIG [flags] [flags of train.py]')
    p.add_argument('config', metavar='CONFIG', help='config file of train.py')
    p.add_argument('--grid', action='append', default=[], metavar='KEY=A,B', help='one axis; commas only separate')
    p.add_argument('--seeds', type=int, default=1, metavar='N', help='seeds 1 to N of every grid point (default 1)')
    p.add_argument('--jobs', type=int, default=1, metavar='N', help='cells at a time (default 1); they share the cores '
                   '(or OMP_NUM_THREADS, if set), and take the visible GPUs in turn')
    p.add_argument('--metric', action='append', required=True, metavar='NAME', help='a number of eval.json, nested '
                   'ones as a.b; repeat for more columns: the first ranks and colours')
    p.add_argument('--mode', choices=('min', 'max'), required=True, help='which is best')
    p.add_argument('--eval', action='append', default=[], metavar='KEY=VALUE', help='a flag for eval.py; repeat')
    p.add_argument('--name', default='', help="folder of this sweep (default: CONFIG's name)")
    p.add_argument('--root', default='out/sweep', help='folder of all sweeps (default %(default)s)')
    p.add_argument('--dry_run', action='store_true', help='print a shell line per missing cell, run nothing')
    p.add_argument('--table', action='store_true', help='only rebuild the table from the cells that are done')
    args, passed = p.parse_known_args(argv)
    args.name = args.name or os.path.splitext(os.path.basename(args.config))[0]
    args.axes = {key: values.split(',') for key, _, values in (axis.partition('=') for axis in args.grid)}
    if args.seeds < 1 or args.jobs < 1: p.error(f'--seeds {args.seeds}, --jobs {args.jobs}: at least 1')
    for axis in args.grid:
        values = axis.partition('=')[2].split(',')
        if '=' not in axis or len(set(values)) < len(values) or '/' in axis or len(args.axes) < len(args.grid):
            p.error(f"--grid {axis}: want KEY=A,B with a key per --grid, values that differ and hold no '/'")
    for flag in [*args.grid, *passed, *args.eval]:
        key = flag.lstrip('-').partition('=')[0]
        if key in OURS and (key != 'seed' or flag not in args.eval): p.error(f'{flag}: the sweep sets {key}')
        if key in args.axes and flag in passed: p.error(f'{flag}: is an axis of the grid, too')
    return args, passed


def keys_of(script):
    """The keys of a script and their defaults, without running it: its plain assignments up to configure()."""
    keys = {'__file__': script}
    with open(script) as f: tree = ast.parse(f.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == 'config': break
            try: keys[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError: pass                              # not a plain value, so not a key
    return keys


def resolve(script, argv):
    """-> all keys, and those not at their default; a typo ends here, before any cell starts."""
    config = json.loads(json.dumps(configure(keys_of(script), argv, script)))     # tuples as meta.json has them
    return config, {key: config[key] for key in configure.changed if key not in FREE}


def make_cells(args, passed):
    """The grid, in its order, seeds innermost."""
    judge = [f'--{flag}' for flag in args.eval]
    _, judged, cells = *resolve(EVAL, judge), []
    for values in product(*args.axes.values()):
        flags = [f'{key}={value}' for key, value in zip(args.axes, values)]
        for seed in range(1, args.seeds + 1):
            folder = os.path.join(args.root, args.name, ','.join(flags) or 'config', f'seed{seed}')
            train = [args.config, *passed, *(f'--{flag}' for flag in flags), f'--seed={seed}']
            config, changed = resolve(TRAIN, train)
            data = os.path.join(config['data_dir'], config['dataset'], 'meta.json')
            sha = checkpoint.sha256(data) if config['dataset'] else ''
            text = json.dumps([changed, seed, sha, judged], sort_keys=True)
            commands = [[sys.executable, TRAIN, *train, f'--out_dir={folder}', '--resume=True'],
                        [sys.executable, EVAL, f'--ckpt={folder}', *judge, f'--out={folder}/eval.json']]
            cells.append(SimpleNamespace(
                values=values, seed=seed, folder=folder, commands=commands, config=config, data_sha=sha, anew='',
                seal=folder + '/cell.json', hash=hashlib.sha256(text.encode()).hexdigest()[:16]))
            cells[-1].done = look(cells[-1])
    return cells


def read_json(path):
    try:
        with open(path) as f: return json.load(f)
    except (OSError, ValueError): return None


def trained(cell):
    """meta.json of the cell's latest checkpoint, or None; if it is damaged, train.py will say so."""
    try: return checkpoint.read(checkpoint.find(cell.folder), 'meta.json')
    except SystemExit: return None


def changes(cell, meta):
    """One line: what the checkpoint was trained with where we want something else. Keys newer than it are fine."""
    ours, theirs = cell.config | {'data_sha': cell.data_sha}, meta['config'] | {'data_sha': meta['data_sha']}
    differ = [key for key in ours if key not in FREE and theirs.get(key, ours[key]) != ours[key]]
    constant = ours['lr_schedule'] == 'constant' or ours['lr_decay_steps']
    if differ == ['max_steps'] and meta['step'] <= ours['max_steps'] and constant: return ''
    return ', '.join(f'{key} = {theirs[key]!r}, now {ours[key]!r}' for key in differ)


def complete(cell, meta):
    """Trained to the end? train.py also exits 0 when it was stopped; models with refresh may end early."""
    return meta['step'] >= cell.config['max_steps'] or 'refresh_every' in cell.config


def look(cell):
    """Is the cell done? Else cell.anew says why its checkpoint is of no use, if so."""
    meta = trained(cell)
    cell.anew = changes(cell, meta) if meta else ''
    cell.aside = next(path for i in count(1) if not os.path.exists(path := f'{cell.folder}.old{i}'))
    cell.result = read_json(cell.folder + '/eval.json')
    return isinstance(cell.result, dict) and read_json(cell.seal) == {'hash': cell.hash} and not cell.anew and (
        meta is None or complete(cell, meta))                    # numbers outlive deleted checkpoints


def shell(cell):
    """run_cell as one line. The seal is broken first and set last, so a kill never leaves one on other numbers."""
    first = ['mv', cell.folder, cell.aside] if cell.anew else ['rm', '-f', cell.seal]
    last = shlex.join(['echo', json.dumps({'hash': cell.hash})]) + ' > ' + shlex.quote(cell.seal)
    return ' && '.join([*map(shlex.join, [first, *cell.commands]), last])


def run_cell(cell, slots):
    """-> '' or what went wrong, in one line."""
    if stop.is_set(): return 'stopped'
    slot, log = slots.get(), cell.folder + '/log.txt'
    try:
        checkpoint.lock(cell.folder).close()                     # nobody else is at work there?
        if cell.anew: os.rename(cell.folder, cell.aside)
        os.makedirs(cell.folder, exist_ok=True)
        if os.path.exists(cell.seal): os.remove(cell.seal)
        for command in cell.commands:
            with open(log, 'a') as f:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=f, stderr=f, env=os.environ | slot)
            children.add(process)
            if stop.is_set(): process.terminate()                # asked between the two lines above
            code = process.wait()
            children.discard(process)
            if stop.is_set() and code: return 'stopped'
            with open(log, errors='replace') as f: last = [line.strip() for line in f.read().splitlines()]
            last = next((line for line in reversed(last) if line), 'nothing in its log')
            if code: return last if code > 0 else f'killed by signal {-code}, after: {last}'
            meta = trained(cell)
            if not meta or not complete(cell, meta): return 'stopped' if stop.is_set() else last
            if wrong := changes(cell, meta): return f'{wrong}: was {cell.commands[0][2]} edited while the sweep ran?'
        checkpoint.write_text(cell.seal, json.dumps({'hash': cell.hash}) + '\n')
        cell.done = look(cell)
        return '' if cell.done else f'{cell.folder}/eval.json holds no JSON object'
    except (OSError, SystemExit) as error:
        return str(error)
    finally:
        slots.put(slot)


def run_cells(cells, args):
    """All cells that are not done, --jobs at a time -> {cell folder: what went wrong}."""
    import torch
    gpus = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(torch.cuda.device_count()))))
    cores = int(os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0)))
    todo, failed, slots, began = [cell for cell in cells if not cell.done], {}, queue.SimpleQueue(), time.time()
    for i in range(args.jobs):
        gpu = {'CUDA_VISIBLE_DEVICES': gpus.split(',')[i % len(gpus.split(','))]} if gpus else {}
        slots.put(gpu | {'OMP_NUM_THREADS': str(max(1, cores // args.jobs))})
    for cell in todo:
        if cell.anew: print(f'{cell.folder}: {cell.anew}: starts anew; what was there moves to {cell.aside}')

    def on_signal(*_):                                           # train.py saves and exits 0, eval.py just ends
        stop.set()
        for process in list(children): process.terminate()
    for sig in (signal.SIGTERM, signal.SIGINT): signal.signal(sig, on_signal)
    bar = tqdm(total=len(cells), initial=len(cells) - len(todo), smoothing=0, unit='cell',
               disable=not sys.stderr.isatty())
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_cell, cell, slots): cell for cell in todo}
        for n, future in enumerate(as_completed(futures), 1):
            cell, problem = futures[future], future.result()
            if stop.is_set() and problem: continue
            if problem: failed[cell.folder] = problem
            value = flatten(cell.result).get(args.metric[0]) if cell.done else None
            eta = (time.time() - began) / n * (len(todo) - n) / 3600
            bar.update()
            tqdm.write(f'{len(cells) - len(todo) + n}/{len(cells)} | {cell.folder} | {problem and "failed: "}'
                       f'{problem or f"{args.metric[0]} {shown(value)}"} | eta {eta:.2f} h', file=sys.stdout)
            sys.stdout.flush()
    bar.close()
    return failed


# ---- the table ----

def flatten(result, prefix=''):
    """{'a': {'b': 1.5}, 'c': 'text'} -> {'a.b': 1.5}: the numbers that --metric can name."""
    flat = {}
    for key, value in result.items():
        if isinstance(value, dict): flat |= flatten(value, f'{prefix}{key}.')
        elif type(value) in (int, float) and math.isfinite(value): flat[prefix + key] = value
    return flat


def over_seeds(values):
    """-> mean, both ends of the 95 % t-interval, min, max, n; None for what n values cannot tell."""
    n = len(values)
    if n < 2: return (*values, None, None, *values * 2, n) if n else (None,) * 5 + (0,)
    t = T95[n - 2] if n < len(T95) + 2 else 1.96 + 2.372 / (n - 1) + 2.823 / (n - 1) ** 2
    mean, half = fmean(values), t * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half, min(values), max(values), n


def shown(value): return '-' if value is None else f'{value:.4g}'
def between(low, high): return '-' if low is None else f'{shown(low)} .. {shown(high)}'


def tables(cells, args):
    """table.csv, table.md, table.png from the cells that are done."""
    folder, points = os.path.join(args.root, args.name), list(product(*args.axes.values()))
    results = [(cell, flatten(cell.result)) for cell in cells if cell.done]
    if not results: return print(f'no cell of {folder} is done: no table')
    known = sorted({name for _, result in results for name in result})
    for metric in args.metric:
        if metric not in known: sys.exit(f"no metric '{metric}' in eval.json; there is: {', '.join(known)}")
    rows = [[over_seeds([result[metric] for cell, result in results if cell.values == point and metric in result])
             for metric in args.metric] for point in points]
    means = [row[0][0] for row in rows]
    best = means.index((min if args.mode == 'min' else max)(mean for mean in means if mean is not None))

    ends, heads = ('', '_low', '_high', '_min', '_max', '_n'), ('', ' 95 % interval', ' min .. max', ' n')
    sheet = [[*args.axes, *(metric + end for metric in args.metric for end in ends), 'best']]
    lines = [[*args.axes, *(metric + head for metric in args.metric for head in heads)]]
    lines.append(['---'] * len(lines[0]))
    for i, (point, row) in enumerate(zip(points, rows)):
        sheet.append([*point, *('' if x is None else x for x in sum(row, ())), int(i == best)])
        lines.append([*point])
        for mean, low, high, least, most, n in row:
            lines[-1] += [shown(mean), between(low, high), between(least, most), str(n)]
        if i == best: lines[-1][len(point)] = f'**{lines[-1][len(point)]}** (best)'
    lines = [f'| {" | ".join(line)} |' for line in lines]
    checkpoint.write_text(folder + '/table.csv', ''.join(','.join(map(str, line)) + '\n' for line in sheet))
    checkpoint.write_text(folder + '/table.md', '\n'.join(lines) + '\n')
    print('\n'.join(lines))
    if len(args.axes) == 2: heat_map(folder + '/table.png', args, means, best)


def heat_map(path, args, means, best):
    """Means of the first metric over the two axes, the best one framed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("the heat map needs: pip install -e '.[plot]'")
    (down, rows), (right, columns) = args.axes.items()
    grid = [[math.nan if mean is None else mean for mean in means[i:i + len(columns)]]
            for i in range(0, len(means), len(columns))]
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
    cells, failed, folder = make_cells(args, passed), {}, os.path.join(args.root, args.name)
    if args.dry_run:
        for cell in cells:
            if not cell.done: print(shell(cell))
        return
    if not args.table:
        try: held = checkpoint.lock(folder)
        except SystemExit: sys.exit(f'{folder} is in use by another sweep; wait for it, or choose another --name')
        failed = run_cells(cells, args)
        held.close()
    for path, problem in failed.items(): print(f'failed: {path}: {problem}', file=sys.stderr)
    tables(cells, args)
    done = sum(cell.done for cell in cells)
    if done < len(cells): sys.exit(f'{done} of {len(cells)} cells are done; the same command goes on with the others')


if __name__ == '__main__':
    main()
