"""
Who is better, and how sure are we: the evaluations of this folder -> compare.json and a table.

    python records/2026-11-28_pusht/compare.py

`CELL.seedS.callsK.json` are what eval.py wrote: the best reward of each of the same 50 starts. A score is the
mean over seeds and starts. Its 95 % interval, and that of a difference, is a bootstrap that draws starts and
training seeds at once: both sides of a difference get the same starts, and each its own seeds.
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
    ('imf_1', 'flow_time_1'), ('imf_2', 'flow_time_2'),
    ('imf_10', 'flow_time_10'),
    # few calls against the many that they want to replace
    ('imf_1', 'ddpm_10'), ('imf_1', 'ddpm_100'), ('imf_2', 'ddpm_100'),
    ('imf_1', 'ddpm_time_100'), ('imf_2', 'ddpm_time_100'),
    ('imf_1', 'flow_10'), ('imf_2', 'flow_10'), ('imf_1', 'imf_2'),
    ('flow_10', 'ddpm_100'), ('flow_time_10', 'ddpm_time_100'),
    ('ddpm_10', 'ddpm_100')]
RIVALS = 'nothing', 'random', 'nearest', 'linear'


def table():
    """{CELL_K: scores (seeds, starts)}"""
    found = {}
    for path in sorted(HERE.glob('*.seed*.calls*.json')):
        cell, calls = re.fullmatch(r'(\w+)\.seed\d\.calls(\d+)\.json', path.name).groups()
        result = json.loads(path.read_text())
        starts = [result[f'sim_max_reward_{100000 + i}'] for i in range(50)]
        found.setdefault(f'{cell}_{calls}', []).append(starts)
    return {name: np.array(rows) for name, rows in found.items()}


def drawn(scores, starts, rng):
    """The mean over drawn starts and drawn seeds, one per draw. scores (seeds, starts); starts (draws, n)."""
    seeds = rng.integers(len(scores), size=(len(starts), len(scores)))
    return scores[seeds[:, :, None], starts[:, None, :]].mean((1, 2))


def interval(values):
    return [float(x) for x in np.percentile(values, [2.5, 97.5])]


def main():
    scores, rng = table(), np.random.default_rng(0)
    rivals = json.loads((HERE / 'rivals.json').read_text())
    scores |= {who: np.array([rivals[who]]) for who in RIVALS}
    starts = rng.integers(50, size=(DRAWS, 50))
    means = {name: drawn(rows, starts, rng) for name, rows in scores.items()}
    cells = {name: {'score': float(rows.mean()), 'ci': interval(means[name]),
                    'median': float(np.median(rows.mean(0))),
                    'seeds': [float(x) for x in rows.mean(1)]} for name, rows in scores.items()}
    pairs = PAIRS + list(product([name for name in scores if name not in RIVALS], ('random', 'nearest')))
    gaps = {}
    for ours, theirs in pairs:
        if ours in scores and theirs in scores:
            gaps[f'{ours}_minus_{theirs}'] = {
                'gap': cells[ours]['score'] - cells[theirs]['score'],
                'ci': interval(means[ours] - means[theirs])}
    (HERE / 'compare.json').write_text(json.dumps({'scores': cells, 'differences': gaps}, indent=1) + '\n')
    for name, row in cells.items():
        print(f'{name:>22} {row["score"]:.3f} ({row["ci"][0]:.3f} to {row["ci"][1]:.3f})  by seed '
              + ' '.join(f'{x:.3f}' for x in row['seeds']))
    for name, row in gaps.items():
        print(f'{name:>44} {row["gap"]:+.3f} ({row["ci"][0]:+.3f} to {row["ci"][1]:+.3f})')


if __name__ == '__main__':
    main()
