"""
What was done in each clip: the rows of a CSV or NPY file, as float32 numbers that have a name.

    walk.csv     with a header, or without one if all its columns are numbers; these are then called 0, 1, ...
    walk.npy     (T, A) or (T,) numbers; the columns are called 0, 1, ...
    one table    a CSV of all clips, with a header, where one column says which clip the row belongs to

All of it is read before a frame is decoded, and what is wrong is one line that names the clip. Read `read`
first.
"""
import csv
import sys
from pathlib import Path

import numpy as np

VALUES = 256           # a column with more different ones than that is not discrete


def number(cell):
    """A cell as a float; nan if it is none."""
    try:
        return float(cell)
    except ValueError:
        return float('nan')


def word(cell):
    """A cell as the name of a discrete value: 1, 1.0 and '1' are one and the same."""
    x = number(cell)
    return str(int(x)) if x.is_integer() else str(cell)


def table(path):
    """A file -> the names of its columns, and its rows: an array (R, C) of numbers or of texts."""
    try:
        if path.suffix == '.npy':
            x = np.load(path, allow_pickle=False)
            if x.ndim not in (1, 2) or x.dtype.kind not in 'buif' or x.size == 0:
                sys.exit(f'{path} holds {x.dtype} {list(x.shape)}; want numbers, (frames, columns)')
            x = x.reshape(len(x), -1).astype(np.float64)
            return [str(k) for k in range(x.shape[1])], x
        text = path.read_text(encoding='utf-8-sig')
        delimiter = max(',;\t', key=text.split('\n', 1)[0].count)
        found = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except (OSError, ValueError, EOFError, csv.Error) as e:
        sys.exit(f'{path} cannot be read ({e}); want a CSV or NPY file')
    found = [row for row in found if any(row)]
    if not found:
        sys.exit(f'{path} is empty; want a row per frame')
    header = any(np.isnan(number(cell)) for cell in found[0])
    if not header and [number(cell) for cell in found[0]] == [*range(len(found[0]))] and len(found[0]) > 1:
        sys.exit(f'{path}: is its first row, {", ".join(found[0])}, a header or an action? Write names above')
    names = found.pop(0) if header else [str(k) for k in range(len(found[0]))]
    if len(set(names)) < len(names):
        sys.exit(f'{path}: two columns have one name, {", ".join(names)}')
    for k, row in enumerate(found, 1):
        if len(row) != len(names):
            sys.exit(f'{path}: row {k} has {len(row)} entries, want {len(names)}: {", ".join(names)}')
    return names, np.array(found).reshape(-1, len(names))


def by_clip(path, src, clips, column):
    """One table of all clips -> {clip: (names, rows)}; the column that names the clip is left out."""
    names, x = table(path)
    if column not in names:
        sys.exit(f'{path} has no column {column}; there are {", ".join(names)}; --clip_column says which one '
                 'names the clip')
    at, there = names.index(column), set(clips)
    owner = [cell if cell in there else Path(cell).stem for cell in x[:, at]]           # walk.mp4 is walk
    lost = sorted(set(owner) - there)
    if lost:
        print(f'{path} tells of {len(lost)} clips that are not among those read, like {lost[0]}: left out')
    rows = {clip: [] for clip in clips}
    for clip, row in zip(owner, np.delete(x, at, axis=1)):
        if clip in rows:
            rows[clip].append(row)
    for clip in clips:
        if not rows[clip]:
            sys.exit(f'{clip}: {path} has no row of this clip')
    return {clip: (names[:at] + names[at + 1:], np.stack(rows[clip])) for clip in clips}


def beside(place, clips, must):
    """walk.csv or walk.npy of each clip -> {clip: (names, rows)}; {} if no clip has any, unless it must."""
    files = {clip: [place / f'{clip}{end}' for end in ('.csv', '.npy')] for clip in clips}
    files = {clip: [path for path in paths if path.exists()] for clip, paths in files.items()}
    if not must and not any(files.values()):
        return {}
    for clip, paths in files.items():
        if len(paths) != 1:
            sys.exit(f'{clip}: want its actions in {place / clip}.csv or .npy, there are '
                     f'{"both" if paths else "neither"}')
    return {clip: table(paths[0]) for clip, paths in files.items()}


def columns_of(clip, column, names, x):
    """One column of a clip, (R,)."""
    if column not in names:
        sys.exit(f'{clip}: its actions have no column {column}; there are {", ".join(names)}')
    return x[:, names.index(column)]


def numbers(clip, column, cells):
    """Cells (R,) as floats (R, 1), all finite, also as float32."""
    x = np.array([number(cell) for cell in cells])
    bad = np.flatnonzero(~(abs(x) < 3e38))             # nan is not below anything
    if len(bad):
        sys.exit(f'{clip}: {column} is {str(cells[bad[0]])!r} in row {bad[0] + 1} of its actions, no number; '
                 f'--onehot={column} takes words, --columns leaves columns out')
    return x[:, None]


def read(src, clips, actions=None, clip_column='clip', columns=(), onehot=()):
    """
    {clip: (R, A) float32}, the names of the A columns, and which of them are one-hot; {}, [], [] if there are
    no actions at all. actions: where they are, if not in src; columns: which to take, none for all of them.
    """
    place = Path(actions or src)
    if actions and not place.exists():
        sys.exit(f'--actions={actions}: not there; want a folder, or a CSV with a column that names the clip')
    one = place.is_file()
    tables = by_clip(place, src, clips, clip_column) if one else beside(place, clips, must=actions)
    if not tables:
        if columns or onehot:
            sys.exit(f'--columns, --onehot: there are no actions in {src}; --actions says where they are')
        return {}, [], []
    first = tables[clips[0]][0]
    for clip, (names, _) in tables.items():
        if not columns and names != first:
            sys.exit(f'{clip}: its actions have the columns {", ".join(names)}, those of {clips[0]} '
                     f'{", ".join(first)}; --columns=a,b says which to take')
    taken = list(columns or first)
    for column in onehot:
        if column not in taken:
            sys.exit(f'--onehot={column}: no such column; there are {", ".join(taken)}')
    parts, told, binary = {clip: [] for clip in clips}, [], []
    for column in taken:
        cells = {clip: columns_of(clip, column, *tables[clip]) for clip in clips}
        if column not in onehot:
            told.append(column)
            for clip in clips:
                parts[clip].append(numbers(clip, column, cells[clip]))
            continue
        values = sorted({word(cell) for x in cells.values() for cell in x})
        if all(value.lstrip('-').isdecimal() for value in values):
            values.sort(key=int)
        odd = [value for value in values if value.lower() in ('', 'nan') or number(value) % 1 > 0]
        if odd or len(values) > VALUES:
            sys.exit(f'--onehot={column}: {len(values)} different entries, like {(odd or values)[0]!r}; want '
                     f'at most {VALUES}, words or whole numbers, none of them empty')
        binary += range(len(told), len(told) + len(values))
        told += [f'{column}={value}' for value in values]
        for clip in clips:
            parts[clip].append(np.array([[word(cell) == value for value in values] for cell in cells[clip]]))
    return {clip: np.concatenate(parts[clip], 1).astype(np.float32) for clip in clips}, told, binary
