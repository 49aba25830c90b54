"""
The speedrun of records/SPEEDRUN.md: how fast can a model learn to walk and push boulders?

    python bench/speedrun.py config/minihack_wm_cpu.py               run an entry, check it, three seeds
    python bench/speedrun.py config/minihack_wm_cpu.py --ranks=2 --threads=1     two processes, not threads
    python bench/speedrun.py config/minihack_wm_cpu.py --runs=1                  a try

Makes the data if they are not there, and compares the sha256 in meta.json. Per seed: train.py under the
clock, from the start of its process to its end, then eval.py: a dream of 16 frames on clips that are the same
for all. An entry counts if in every run the agent is on its tile in 90 % of the dreams at step 8. Flags that
are not listed go to train.py, so a try needs no file: --hidden=64.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from statistics import mean

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import checkpoint
from configurator import polite_exit
from data.layout import identity, read_meta
from protocols.common import try_output

DATA = 'data/minihack_boulders'
MAKE = ['data/minihack/prepare.py', '--level=boulders', f'--out={DATA}']
SHA = '9deaf30de7541bdddc897718316be5c0070bcb4925fb76a60f0193e638a4bc5d'      # of what MAKE makes
SEEDS = 1, 2, 3
STEP, WANTED = 8, 0.9                                    # of the dream; share of agents on their tile
JUDGE = ['--protocol=video', '--n_context=1', '--horizon=16', '--n_clips=256', '--seed=42',
         '--dataset=minihack_boulders']


def call(arguments, threads, quiet=False):
    """A script of ours in a process of its own -> seconds it took; exits if it failed."""
    start = time.perf_counter()
    env = os.environ | {'OMP_NUM_THREADS': str(threads)}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env,
                          stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode:
        sys.exit(f'{" ".join(arguments)} ended with {done.returncode}: no entry')
    return time.perf_counter() - start


def check_data():
    """The data of the rules, made if need be."""
    if not os.path.exists(os.path.join(ROOT, DATA, 'meta.json')):
        call(MAKE, 1)
    found = identity(read_meta(os.path.join(ROOT, DATA)))
    if found != SHA:
        sys.exit(f'{DATA}: sha256 {found[:12]}, the rules name {SHA[:12]}; delete it, or install the '
                 'versions of nle and minihack that SPEEDRUN.md names')


def run(config, seed, ranks, threads, folder, more):
    """Train and judge once -> {seed, seconds, passed, and of the dream, per step: tile_agent, ...}."""
    out = os.path.join(folder, f'seed{seed}')
    shutil.rmtree(out, ignore_errors=True)
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}'] * (ranks > 1)
    seconds = call([*torchrun, 'train.py', config, f'--seed={seed}', f'--out_dir={out}', *more], threads)
    judged = os.path.join(out, 'eval.json')
    call(['eval.py', f'--ckpt={out}', *JUDGE, f'--out={judged}'], threads, quiet=True)
    with open(judged) as f:
        result = json.load(f)
    trained = checkpoint.read(checkpoint.find(out), 'meta.json')
    if trained['data_sha'] != SHA[:len(trained['data_sha'])] or trained['config'].get('init_from'):
        sys.exit(f'{out}: trained on other data, or from other weights: no entry')
    curve = result['curve']
    return {'seed': seed, 'seconds': round(seconds, 1), 'passed': curve['tile_agent'][STEP - 1] >= WANTED,
            'tile_agent': curve['tile_agent'], 'tile_changed': curve['tile_changed'],
            'tile_agent_shuffled': curve['tile_agent_shuffled'], 'psnr_moving': result['psnr_moving']}


def table(runs):
    """For people, and for records/SPEEDRUN.md."""
    lines = ['| seed | seconds | agent at step 8 | at step 16 | shuffled at 16 | changed tiles at 16 |',
             '|---|---|---|---|---|---|']
    for r in runs:
        at = [r['tile_agent'][STEP - 1], r['tile_agent'][15], r['tile_agent_shuffled'][15],
              r['tile_changed'][15]]
        cells = [str(r['seed']), f'{r["seconds"]:.0f}', *(f'{100 * x:.1f} %' for x in at)]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('config', help='a config of train.py; more flags of train.py may follow')
    p.add_argument('--runs', type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    p.add_argument('--ranks', type=int, default=1, help='processes that train together (default 1)')
    p.add_argument('--threads', type=int, default=2, help='CPU threads of each (default 2)')
    p.add_argument('--out', default='', help='JSON (default out/speedrun/NAME/result.json)')
    args, more = p.parse_known_args()
    polite_exit()
    for name in ('threads', 'ranks'):
        if getattr(args, name) < 1:
            p.error(f'--{name}={getattr(args, name)}: want 1 or more')
    if not os.path.exists(os.path.join(ROOT, args.config)):
        p.error(f'{args.config}: no such config')
    ours = '--seed', '--out_dir'
    wrong = [flag for flag in more if not flag.startswith('--') or flag.split('=')[0] in ours]
    if wrong:
        p.error(f'{wrong[0]}: flags of train.py but seed and out_dir may follow, as --key=value')
    if args.out:
        try_output('out', args.out)      # asked now, because three runs should not end in a missing folder
    check_data()
    name = os.path.splitext(os.path.basename(args.config))[0]
    name += '_try' * bool(more or args.runs < len(SEEDS))
    folder = os.path.join(ROOT, 'out', 'speedrun', name)     # absolute, because train.py runs in ROOT
    runs = [run(args.config, seed, args.ranks, args.threads, folder, more) for seed in SEEDS[:args.runs]]
    whole = args.runs == len(SEEDS) and not more         # because an entry is a config, not a line of flags
    result = {'config': args.config, 'flags': more, 'ranks': args.ranks, 'threads': args.threads,
              'data_sha': SHA, 'seconds': mean(r['seconds'] for r in runs), 'runs': runs,
              'counts': whole and all(r['passed'] for r in runs)}
    path = args.out or os.path.join(folder, 'result.json')
    with open(path + '.tmp', 'w') as f:
        json.dump(result, f, indent=1)
    os.replace(path + '.tmp', path)
    print(table(runs))
    a_try = 'a try: an entry is three runs, no flags'
    said = 'an entry' if result['counts'] else 'no entry' if whole else a_try
    print(f'{result["seconds"]:.0f} s, mean of {len(runs)}: {said}; {path}')


if __name__ == '__main__':
    main()
