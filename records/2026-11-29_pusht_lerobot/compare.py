"""
ACT and Diffusion Policy beside each other, and beside what was measured on the same starts before: the
evaluations of this folder and of ../2026-11-28_pusht -> compare.json and a table.

    python records/2026-11-29_pusht_lerobot/compare.py

`CELL.seedS.json` are what eval.py wrote: the best reward of each of the same 50 starts (`fresh`: of the 50
after them, on which nothing was chosen). A score is the mean over seeds and starts. Its 95 % interval, and
that of a difference, is a bootstrap that draws starts and training seeds at once: both sides of a difference
get the same starts, and each its own seeds.
"""
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
BEFORE = HERE.parent / '2026-11-28_pusht'
DRAWS = 10_000
CELLS = {
    'act': HERE.glob('act.seed?.json'), 'act_ensemble': HERE.glob('act.seed?.ensemble.json'),
    'dp_ddim10': HERE.glob('dp.seed?.ddim10.json'), 'dp_ddpm100': HERE.glob('dp.seed?.ddpm100.json'),
    'imf_1': BEFORE.glob('imf.seed?.calls1.json'), 'imf_10': BEFORE.glob('imf.seed?.calls10.json'),
    'ddpm_100': BEFORE.glob('ddpm_time.seed?.calls100.json')}
FRESH = {
    'act': HERE.glob('act.seed?.fresh.json'), 'dp_ddim10': HERE.glob('dp.seed?.fresh.json'),
    'imf_1': BEFORE.glob('imf.seed?.fresh1.json')}
PAIRS = [('act', 'dp_ddim10'), ('dp_ddim10', 'dp_ddpm100'), ('act_ensemble', 'act'), ('act', 'imf_1'),
         ('act', 'imf_10'), ('dp_ddim10', 'imf_10'), ('dp_ddim10', 'ddpm_100')]
RIVALS = 'nearest', 'linear', 'random', 'nothing'


def table(cells, first):
    """{cell: best rewards (seeds, starts)} on the 50 starts from seed `first`, and what judged each cell."""
    results = {name: [json.loads(path.read_text()) for path in sorted(paths)]
               for name, paths in cells.items()}
    scores = {name: np.array([[row[f'sim_max_reward_{first + i}'] for i in range(50)] for row in rows])
              for name, rows in results.items()}
    return scores, results


def drawn(scores, starts, rng):
    """The mean over drawn starts and drawn seeds, one per draw. scores (seeds, starts); starts (draws, n)."""
    seeds = rng.integers(len(scores), size=(len(starts), len(scores)))
    return scores[seeds[:, :, None], starts[:, None, :]].mean((1, 2))


def interval(values):
    return [float(x) for x in np.percentile(values, [2.5, 97.5])]


def judged(cells, first, rng):
    """The scores on one set of starts, and the differences of PAIRS, with their intervals."""
    scores, results = table(cells, first)
    starts = rng.integers(50, size=(DRAWS, 50))
    means = {name: drawn(rows, starts, rng) for name, rows in scores.items()}
    found, gaps = {}, {}
    for name, rows in scores.items():
        found[name] = {'score': float(rows.mean()), 'ci': interval(means[name]),
                       'won': float((rows >= 1).mean()), 'seeds': [float(x) for x in rows.mean(1)],
                       'median': float(np.median(rows)),
                       'rivals': {who: results[name][0]['envs']['pusht']['rivals'][who] for who in RIVALS}}
    for ours, theirs in PAIRS:
        if ours in means and theirs in means:
            gaps[f'{ours}_minus_{theirs}'] = {'gap': found[ours]['score'] - found[theirs]['score'],
                                              'ci': interval(means[ours] - means[theirs])}
    return {'scores': found, 'differences': gaps} | against_rivals(scores, results, first, starts, means)


def against_rivals(scores, results, first, starts, means):
    """The cells minus `nearest`, start by start where the best reward of each start is on record."""
    if first != 100_000:
        return {}
    known = json.loads((BEFORE / 'rivals.json').read_text())
    gaps = {}
    for name in scores:
        for who in ('nearest', 'random'):
            theirs = np.array(known[who])
            gaps[f'{name}_minus_{who}'] = {'gap': float(scores[name].mean() - theirs.mean()),
                                           'ci': interval(means[name] - theirs[starts].mean(1))}
    return {'against': gaps}


def main():
    rng = np.random.default_rng(0)
    result = {'published_starts': judged(CELLS, 100_000, rng), 'fresh_starts': judged(FRESH, 100_050, rng)}
    (HERE / 'compare.json').write_text(json.dumps(result, indent=1) + '\n')
    for kind, part in result.items():
        print(kind)
        for name, row in part['scores'].items():
            print(f'{name:>12} {row["score"]:.3f} ({row["ci"][0]:.3f} to {row["ci"][1]:.3f})  won '
                  f'{100 * row["won"]:.0f} %  by seed ' + ' '.join(f'{x:.3f}' for x in row['seeds']))
        for name, row in (part['differences'] | part.get('against', {})).items():
            print(f'{name:>30} {row["gap"]:+.3f} ({row["ci"][0]:+.3f} to {row["ci"][1]:+.3f})')


if __name__ == '__main__':
    main()
