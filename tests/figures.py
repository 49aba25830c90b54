"""
Every figure of a page against its source.

    python tests/figures.py README.md docs/nanowm.md    prints figures and sources, exits 1 if one is wrong

A row of a table and a paragraph name the sources of their figures in an HTML comment, in the order in which
the figures stand there; with F for records/run/D.seed*.json:rmse_h100

    | delta / delta | 0.0116 (0.0106 to 0.0126) | <!-- F; min F; max F -->

A source is one of these:

    FILES:KEY         a number of a JSON file; of several files (FILES may hold a star) the mean, or with a
                      word in front min, max, median; `100 * FILES:KEY`, `A / B` and `A - B` reckon with them
    range FILES:KEY   three figures: the mean, the least and the largest
    in FILE           the number stands in that file, a test or a config, as it is printed here
    published         not ours: the text says whose it is

`let F = records/run/D.seed*.json` in a comment of its own makes F:KEY short for the rest of the page.

Figures are all numbers in a table beside those in its first column, and numbers with a decimal point
elsewhere; code, addresses and versions are none.
"""
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = r'(?:Python|torch|mujoco|NetHack|LeRobot|v) ?\d+\.[\d.]*(?:(?: to |, )\d+\.\d+)*'
FIXED = re.compile(r'`[^`]*`|\]\([^)]*\)|https?://\S+|arXiv:? ?\d+\.\d+|' + VERSION)
NUMBER = re.compile(r'(?<![\w.,/-])[+-]?\d[\d,]*(?:\.\d+)?')
COMMENT = re.compile(r'<!--(.*?)-->', re.S)
FOLD = {'mean': statistics.fmean, 'min': min, 'max': max, 'median': statistics.median}


def blocks(text):
    """
    -> (text without comments, its sources, is it a table row), one per table row, list item or paragraph.
    """
    text = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    short = dict(re.findall(r'<!-- let (\w+) = (\S+) -->', text))
    text = re.sub(r'<!-- let .*? -->', '', text)
    for part in re.split(r'\n(?=\||[-*] |\d+\. )|\n\s*\n|(?<=\|)\n', text):
        if not part.strip() or re.fullmatch(r'[|\s:-]+', part):
            continue
        sources = [source.strip() for found in COMMENT.findall(part) for source in found.split(';')]
        sources = [part for source in sources for part in expanded(source, short)]
        yield COMMENT.sub('', part).strip(), sources, part.lstrip().startswith('|')


def expanded(source, short):
    """A source as written -> sources of one figure each, without abbreviations."""
    if not source:
        return []
    source = re.sub(r'(?<![\w/])(\w+):', lambda match: short.get(match[1], match[1]) + ':', source)
    if found := re.fullmatch(r'range ([\d.e+-]+ ?\* ?)?(.*)', source):
        return [f'{found[1] or ""}{fold} {found[2]}' for fold in ('mean', 'min', 'max')]
    return [source]


def figures(block, row):
    """The numbers of a block as printed."""
    if row:
        block = '|'.join(block.strip('|').split('|')[1:])
    found = [number.rstrip(',') for number in NUMBER.findall(FIXED.sub(' ', block.replace('−', '-')))]
    return [number for number in found if row or '.' in number]


def values(files, key, root):
    """[number] of KEY in each of the files."""
    paths = sorted(root.glob(files))
    if not paths:
        raise LookupError(f'no file {files}')
    found = []
    for path in paths:
        value = json.loads(path.read_text())
        for word in key.split('.'):
            value = value[int(word)] if isinstance(value, list) else value[word]
        found.append(float(value))
    return found


def value_of(term, root):
    """'100 * max records/run/*.json:key' -> number"""
    match = re.fullmatch(r'(?:([\d.e+-]+) ?\* ?)?(?:(mean|min|max|median) )?(\S+?):(\S+)', term.strip())
    if not match:
        raise LookupError(f'what is {term!r}?')
    factor, fold, files, key = match.groups()
    return float(factor or 1) * FOLD[fold or 'mean'](values(files, key, root))


def wrong(number, source, root=ROOT):
    """What is wrong with a figure and its source, or None."""
    if source.startswith('published'):
        return None
    if source.startswith('in '):
        text = (root / source[3:].strip()).read_text()
        plain = number.replace(',', '')
        forms = {number, plain, f'{int(plain):_}' if plain.isdigit() else plain}
        there = any(re.search(rf'(?<![\d.]){re.escape(form)}(?![\d]|\.\d)', text) for form in forms)
        return None if there else f'{number} does not stand {source}'
    try:
        parts = re.split(r' (/|-) ', source)
        value = value_of(parts[0], root)
        for sign, term in zip(parts[1::2], parts[2::2]):
            value = value / value_of(term, root) if sign == '/' else value - value_of(term, root)
    except (LookupError, ValueError, TypeError) as error:
        return f'{number}: {source}: {type(error).__name__} {error}'
    digits = len(number.partition('.')[2])
    if abs(value - float(number.replace(',', ''))) <= 0.5 * 10 ** -digits * (1 + 1e-6):
        return None
    return f'{number}: {source} is {value:.{digits + 2}f}'


def check(text, root=ROOT, header=True):
    """
    -> [(figure, source, what is wrong or None)] of a page; a block with too few or too many sources is wrong.
    """
    rows, previous = [], False
    for block, sources, row in blocks(text):
        first, previous = row and not previous, row
        if first:                                        # the header of a table
            continue
        printed = figures(block, row)
        if len(printed) != len(sources):
            rows.append((', '.join(printed), '; '.join(sources),
                         f'{len(printed)} figures, {len(sources)} sources in: {block[:70]!r}'))
            continue
        rows += [(number, source, wrong(number, source, root)) for number, source in zip(printed, sources)]
    return rows


if __name__ == '__main__':
    bad = 0
    for page in sys.argv[1:]:
        for number, source, problem in check(Path(page).read_text()):
            bad += problem is not None
            print(f'{page}: {number:>12}  {source}' + (f'   WRONG: {problem}' if problem else ''))
    sys.exit(bad > 0)
