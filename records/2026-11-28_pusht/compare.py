"""
Who is better, and how sure are we: the evaluations of this folder -> compare.json and a table.

    python records/2026-11-28_pusht/compare.py

`CELL.seedS.callsK.json` are what eval.py wrote: the best reward of each of the same 50 starts (`freshK`: of
the 50 after them). A score is the mean over seeds and starts. Its 95 % interval, and that of a difference, is
a bootstrap that draws starts and training seeds at once: both sides of a difference get the same starts, and
each its own seeds.
"""
import json
import re
from itertools import product
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DRAWS = 10_000
PAIRS = [
    # at equal steps, then at equal time
    ('imf_1', 'flow_1'), ('imf_2', 'flow_2'), ('imf_10', 'flow_10'),
    ('imf_1', 'flow_time_1'), ('imf_2', 'flow_time_2'), ('imf_10', 'flow_time_10'),
    # few calls against the many that they want to replace
    ('imf_1', 'ddpm_10'), ('imf_1', 'ddpm_100'), ('imf_2', 'ddpm_100'),
    ('imf_1', 'ddpm_time_100'), ('imf_2', 'ddpm_time_100'),
    ('imf_1', 'flow_10'), ('imf_2', 'flow_10'), ('imf_1', 'imf_2'),
    ('flow_10', 'ddpm_100'), ('flow_time_10', 'ddpm_time_100'),
    ('ddpm_10', 'ddpm_100'),
    # is it the derivative, or the weights and times?
    ('imf_1', 'flow_weighted_1'), ('imf_10', 'flow_weighted_10'),
    ('flow_weighted_1', 'flow_1'), ('flow_weighted_10', 'flow_10'),
    ('flow_weighted_1', 'flow_time_1'), ('flow_weighted_1', 'ddpm_100'),
    ('flow_weighted_1', 'ddpm_time_100'), ('flow_weighted_1', 'flow_10')]
RIVALS = 'nothing', 'random', 'nearest', 'linear'


def table(kind='calls', first=100_000):
    """{CELL_K: scores (seeds, starts)} on the 50 starts from seed `first`."""
    found = {}
    for path in sorted(HERE.glob(f'*.seed*.{kind}*.json')):
        cell, calls = re.fullmatch(rf'(\w+)\.seed\d\.{kind}(\d+)\.json', path.name).groups()
        result = json.loads(path.read_text())
        starts = [result[f'sim_max_reward_{first + i}'] for i in range(50)]
        found.setdefault(f'{cell}_{calls}', []).append(starts)
    return {name: np.array(rows) for name, rows in found.items()}


def drawn(scores, starts, rng):
    """The mean over drawn starts and drawn seeds, one per draw. scores (seeds, starts); starts (draws, n)."""
    seeds = rng.integers(len(scores), size=(len(starts), len(scores)))
    return scores[seeds[:, :, None], starts[:, None, :]].mean((1, 2))


def interval(values):
    return [float(x) for x in np.percentile(values, [2.5, 97.5])]


def fresh(starts, rng):
    """The same on 50 starts on which nothing was chosen."""
    scores = table('fresh', 100_050)
    means = {name: drawn(rows, starts, rng) for name, rows in scores.items()}
    found = {name: {'score': float(rows.mean()), 'ci': interval(means[name])}
             for name, rows in scores.items()}
    for ours, theirs in ('imf_1', 'flow_1'), ('imf_1', 'flow_weighted_1'):
        gap = found[ours]['score'] - found[theirs]['score']
        found[f'{ours}_minus_{theirs}'] = {'gap': gap, 'ci': interval(means[ours] - means[theirs])}
    one = json.loads((HERE / 'imf.seed1.fresh1.json').read_text())
    return found | {'nearest': one['envs']['pusht']['rivals']['nearest']}


def main():
    scores, rng = table(), np.random.default_rng(0)
    rivals = json.loads((HERE / 'rivals.json').read_text())
    recorded = np.array(rivals['demonstrations'])
    scores |= {who: np.array([rivals[who]]) for who in RIVALS}
    starts = rng.integers(50, size=(DRAWS, 50))
    means = {name: drawn(rows, starts, rng) for name, rows in scores.items()}
    cells = {name: {'score': float(rows.mean()), 'ci': interval(means[name]),
                    'won': float((rows >= 1).mean()), 'seeds': [float(x) for x in rows.mean(1)]}
             for name, rows in scores.items()}
    pairs = PAIRS + list(product([name for name in scores if name not in RIVALS], ('random', 'nearest')))
    gaps = {}
    for ours, theirs in pairs:
        gaps[f'{ours}_minus_{theirs}'] = {'gap': cells[ours]['score'] - cells[theirs]['score'],
                                          'ci': interval(means[ours] - means[theirs])}
    people = {'score': float(recorded.mean()), 'won': float((recorded >= 1).mean())}     # other starts
    result = {'scores': cells, 'differences': gaps, 'demonstrations': people,
              'fresh': fresh(starts, rng)}
    (HERE / 'compare.json').write_text(json.dumps(result, indent=1) + '\n')
    for name, row in cells.items():
        print(f'{name:>22} {row["score"]:.3f} ({row["ci"][0]:.3f} to {row["ci"][1]:.3f})  by seed '
              + ' '.join(f'{x:.3f}' for x in row['seeds']))
    print(json.dumps(result['fresh'], indent=1))
    for name, row in gaps.items():
        print(f'{name:>44} {row["gap"]:+.3f} ({row["ci"][0]:+.3f} to {row["ci"][1]:+.3f})')


if __name__ == '__main__':
    main()
