"""README.md against the repository: its commands name what exists, its numbers are found in the records."""
import re
import shlex
from pathlib import Path

import pytest
from conftest import script

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
GUIDES = {path: path.read_text() for path in sorted([ROOT / 'README.md', *ROOT.glob('data/*/readme.md')])}


def commands(text):
    """The shell commands in fenced blocks, `&&` and line ends apart, as lists of words."""
    blocks = re.findall(r'^```(?:bash|sh)\n(.*?)^```', text, re.M | re.S)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [shlex.split(part, comments=True) for line in lines for part in line.split('&&') if part.strip()]


def of_python(text):
    """(script, arguments) of those that start a script of ours, by python or by torchrun."""
    for words in commands(text):
        scripts = [i for i, word in enumerate(words) if word.endswith('.py')]
        if words[0] in ('python', 'torchrun', 'python3') and scripts: yield words[scripts[0]], words[scripts[0] + 1:]


CALLS = sorted({(name, tuple(args)) for text in GUIDES.values() for name, args in of_python(text)})
HELP = {}


@pytest.mark.parametrize('name, args', CALLS, ids=lambda x: x if isinstance(x, str) else ' '.join(x))
def test_commands_name_files_and_flags_that_exist(name, args):
    assert (ROOT / name).is_file()
    if name not in HELP: HELP[name] = script(name, '--help')[0]
    for arg in args:
        flag = re.fullmatch(r'--(\w+)(=.*)?', arg)
        if flag: assert re.search(rf'^ +(--)?{flag[1]}\b', HELP[name], re.M), f'{name} has no flag {arg}'
        else: assert (ROOT / arg).is_file() or arg == 'FILE...', f'{arg} does not exist'


def test_the_ruler_for_commands():
    text = '```bash\npip install x && python train.py config/a.py \\\n  --lr=1   # fast\n```\n```\npython no.py\n```\n'
    assert list(of_python(text)) == [('train.py', ['config/a.py', '--lr=1'])]
    assert len(CALLS) >= 4 and ('train.py', ('config/minihack_wm_cpu.py',)) in CALLS


def test_files_in_backticks_exist():
    """`path/to/file.py`, also with a star; what a run writes (out/, data/x_y) is not there yet."""
    for name in set(re.findall(r'`([\w*./-]+\.(?:py|md|json|toml|txt))`', README)):
        found = [*ROOT.glob(name), *ROOT.glob(f'data/*/{name}')]                 # every `prepare.py`
        assert found, f'README.md names {name}, which does not exist'
    for name in re.findall(r'\]\(((?!http)[^)#]+)\)', README): assert (ROOT / name).exists(), name


def test_ci_runs_the_test_command_as_printed():
    command, = [line for line in README.splitlines() if line.endswith('python -m pytest')]
    assert command in (ROOT / '.ci' / 'run').read_text()


# ---- numbers ----

def section(text, title):
    """What stands under '## title'."""
    found = re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', text, re.M | re.S)
    assert found, f'README.md has no section ## {title}'
    return found[1]


def tables(text):
    """-> per table: header cells, rows of cells."""
    for block in re.findall(r'(?:^\|.*\n?)+', text, re.M):
        lines = [line.strip().strip('|').split('|') for line in block.splitlines()]
        header, _, *rows = [[cell.strip() for cell in line] for line in lines]
        yield header, rows


def unfounded(text, records):
    """Numbers in table cells, as printed, that no record holds. The first column is names; published is not ours."""
    numbers = r'(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?'
    for header, rows in tables(text):
        for row in rows:
            for title, cell in list(zip(header, row))[1:]:
                if 'published' in title.lower(): continue
                for number in re.findall(numbers, cell.replace('−', '-')):
                    if not re.search(rf'(?<![\d.]){re.escape(number.strip(","))}(?![\d]|\.\d)', records):
                        yield f'{row[0]} | {title}: {number}'


def test_numbers_of_the_results_are_in_the_records():
    files = [path for folder in ('records', 'bench/results') for path in sorted((ROOT / folder).rglob('*'))
             if path.suffix in ('.md', '.json', '.txt')]
    records = '\n'.join(path.read_text().replace('−', '-') for path in files)
    for title in 'Results', 'arx5_gpt.py: absolute or delta\\?':
        text = section(README, title)
        assert list(tables(text)), f'no table under ## {title}'
        assert not list(unfounded(text, records))


def test_the_ruler_for_numbers():
    text = '## Results\n\n| run 7 | dB | published |\n|---|---|---|\n| a 5 | 23.07 [22.9, −1.5] | 99 |\n' \
        '| b | **8,100** M | - |\n' \
        '\n## Next\n\n| x | y |\n|---|---|\n| a | 77 |\n'
    ours = section(text, 'Results')
    assert list(unfounded(ours, '23.07 22.9 -1.5 8,100')) == []
    assert list(unfounded(ours, '23.071 122.9 -1.5 8,100.5')) == ['a 5 | dB: 23.07', 'a 5 | dB: 22.9', 'b | dB: 8,100']
    assert list(unfounded(ours, '23.07 22.9 1.5, 8,100.')) == ['a 5 | dB: -1.5']
