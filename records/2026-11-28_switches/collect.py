"""
Twelve runs of each world, each judged with 1, 2, 4 and 6 sampling steps -> runs.json, table.json and a table.

    python records/2026-11-28_switches/collect.py FOLDER      of WORLD.VARIANT.seedS.stepsN.json by eval.py
    python records/2026-11-28_switches/collect.py             the table again, from runs.json

table.json: {world: {variant: {steps: {score: mean over seeds, score_min, score_max}}}}; worst_*: the lowest
lower end, over seeds, of the 95 % interval of a gain.
"""
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCORES = ('psnr_moving', 'psnr_moving_copy', 'psnr_moving_shuffled', 'gain_over_copy', 'gain_over_shuffled',
          'psnr_moving_pixels', 'gain_pixels_over_copy', 'gain_pixels_over_shuffled', 'psnr')
GAINS = [score for score in SCORES if score.startswith('gain')]
WORLDS, VARIANTS = ('nethack', 'wall', 'g1'), ('none', 'skip', 'clean', 'both')


def read(folder):
    """What eval.py wrote -> a row per evaluation, with what the table needs."""
    rows = []
    for path in sorted(Path(folder).glob('*.steps*.json')):
        name = re.fullmatch(r'(\w+)\.(\w+)\.seed(\d)\.steps(\d)\.json', path.name)
        world, variant, seed, steps = name.groups()
        result = json.loads(path.read_text())
        row = {'world': world, 'variant': variant, 'seed': int(seed), 'steps': int(steps)}
        row |= {score: round(result[score], 4) for score in SCORES}
        row |= {f'{gain}_ci': [round(x, 4) for x in result[f'{gain}_ci']] for gain in GAINS}
        rows.append(row | {key: result[key] for key in ('n_clips', 'n_episodes', 'by')})
    return rows


def cell(rows):
    """The seeds of one cell as one."""
    made = {'seeds': len(rows)}
    for score in SCORES:
        x = [row[score] for row in rows]
        made |= {score: sum(x) / len(x), f'{score}_min': min(x), f'{score}_max': max(x)}
    return made | {f'worst_{gain}': min(row[f'{gain}_ci'][0] for row in rows) for gain in GAINS}


def main():
    if sys.argv[1:]:
        rows = read(sys.argv[1])
        lines = ',\n'.join(json.dumps(row) for row in rows)
        (HERE / 'runs.json').write_text(f'[\n{lines}\n]\n')
    rows = json.loads((HERE / 'runs.json').read_text())
    table = {}
    print('| world | variant | steps | psnr_moving | over copy | over shuffled | pixels | seeds |')
    for world in WORLDS:
        for variant in VARIANTS:
            for steps in (1, 2, 4, 6):
                these = [row for row in rows if (row['world'], row['variant'], row['steps'])
                         == (world, variant, steps)]
                if these:
                    c = table.setdefault(world, {}).setdefault(variant, {})[f'steps{steps}'] = cell(these)
                    spread = f'({c["gain_over_copy_min"]:+.2f} to {c["gain_over_copy_max"]:+.2f})'
                    print(f'| {world} | {variant} | {steps} | {c["psnr_moving"]:.2f} | '
                          f'{c["gain_over_copy"]:+.2f} {spread} | {c["gain_over_shuffled"]:+.2f} | '
                          f'{c["psnr_moving_pixels"]:.2f} | {c["seeds"]} |')
    (HERE / 'table.json').write_text(json.dumps(table, indent=1) + '\n')


if __name__ == '__main__':
    main()
