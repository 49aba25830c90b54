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
    ('imf.calls1', 'flow.calls1'), ('imf.calls2', 'flow.calls2'), ('imf.calls10', 'flow.calls10'),
    ('imf.calls1', 'flow_time.calls1'), ('imf.calls2', 'flow_time.calls2'),
    ('imf.calls10', 'flow_time.calls10'),
    # few calls against the many that they want to replace
    ('imf.calls1', 'ddpm.calls10'), ('imf.calls1', 'ddpm.calls100'), ('imf.calls2', 'ddpm.calls100'),
    ('imf.calls1', 'ddpm_time.calls100'), ('imf.calls2', 'ddpm_time.calls100'),
    ('imf.calls1', 'flow.calls10'), ('imf.calls2', 'flow.calls10'), ('imf.calls1', 'imf.calls2'),
    ('flow.calls10', 'ddpm.calls100'), ('flow_time.calls10', 'ddpm_time.calls100'),
    ('ddpm.calls10', 'ddpm.calls100')]
RIVALS = 'nothing', 'random', 'nearest', 'linear'


def table():
    """{cell.callsK: scores (seeds, starts)}, and the scores (1, starts) of players without a network."""
    found, first = {}, None
    for path in sorted(HERE.glob('*.seed*.calls*.json')):
        cell, calls = re.fullmatch(r'(\w+)\.seed\d\.(calls\d+)\.json', path.name).groups()
        result = json.loads(path.read_text())
        first = first or result
        starts = [result[f'sim_max_reward_{100000 + i}'] for i in range(50)]
        found.setdefault(f'{cell}.{calls}', []).append(starts)
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
            gaps[f'{ours} minus {theirs}'.replace(' ', '_')] = {
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
