"""README.md and docs/ against the repository: commands name what exists, every figure equals its record."""
import importlib
import json
import math
import re
import shlex
from pathlib import Path

import figures
import pytest
from conftest import script

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
PAGES = {path: path.read_text() for path in sorted([ROOT / 'README.md', *ROOT.glob('docs/*.md')])}
GUIDES = PAGES | {path: path.read_text() for path in sorted(ROOT.glob('data/*/readme.md'))}


def each(pages):
    return pytest.mark.parametrize('path', pages, ids=lambda path: str(path.relative_to(ROOT)))


# ---- commands ----

def commands(text):
    """Shell commands of fenced blocks and inline code, `&&` and line ends apart, as lists of words."""
    blocks = re.findall(r'^ *```(?:bash|sh)\n(.*?)^ *```', text, re.M | re.S)
    rest = re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)
    inline = [code for code in re.findall(r'`([^`]+)`', rest) if re.match(r'(python3?|torchrun) ', code)]
    text = '\n'.join([*blocks, *(' '.join(code.split()) for code in inline)]).replace('\\\n', ' ')
    parts = [part for line in text.splitlines() for part in line.split('&&') if part.strip()]
    return [words for words in (shlex.split(part, comments=True) for part in parts) if words]


def of_python(text):
    """(script, arguments) of those that start a script of ours, by python or by torchrun."""
    for words in commands(text):
        scripts = [i for i, word in enumerate(words) if word.endswith('.py')]
        if words[0] in ('python', 'torchrun', 'python3') and scripts:
            yield words[scripts[0]], words[scripts[0] + 1:]


CALLS = sorted({(name, tuple(args)) for text in GUIDES.values() for name, args in of_python(text)})
# these take no flags
WITHOUT_HELP = {'nanowm.py', 'arx5_gpt.py', 'remdm.py', 'imf_policy.py', 'act.py', 'diffusion_policy.py',
                'pi0.py', 'smolvla.py', 'arx5_export.py', 'logger.py', 'tests/golden.py', 'tests/figures.py'}
HELP = {}


def help_of(name, args):
    """What --help of a script says; of eval.py and sample.py also the keys of protocols and of sampling."""
    if name not in HELP:
        HELP[name] = '' if name in WITHOUT_HELP else script(name, '--help')[0] + more_keys(name)
    return HELP[name]


def more_keys(name):
    """Keys that --help shows only beside a config, a checkpoint or a protocol."""
    models = [importlib.import_module(model) for model in
              ('nanowm', 'arx5_gpt', 'remdm', 'imf_policy', 'act', 'diffusion_policy', 'pi0', 'smolvla')]
    if name == 'train.py':
        return '\n' + '\n'.join(f'  {key}' for M in models for key in vars(M.Config()))
    if name not in ('eval.py', 'sample.py'):
        return ''
    keys = []
    for path in ROOT.glob('protocols/*.py') if name == 'eval.py' else ():
        module = importlib.import_module(f'protocols.{path.stem}')
        keys += vars(module.Keys()) if hasattr(module, 'Keys') else ()
    for M in models:
        keys += M.SAMPLING
    return '\n' + '\n'.join(f'  {key}' for key in keys)


@pytest.mark.parametrize('name, args', CALLS, ids=lambda x: x if isinstance(x, str) else ' '.join(x))
def test_commands_name_files_and_flags_that_exist(name, args):
    assert (ROOT / name).is_file(), f'{name} does not exist'
    told = help_of(name, args)
    for arg in args:
        flag = re.fullmatch(r'--(\w+)(=.*)?', arg)
        if arg == '--help':
            continue
        if flag:
            assert re.search(rf'^ +(--)?{flag[1]}\b', told, re.M), f'{name} has no flag {arg}'
        elif arg.endswith('.py'):
            assert (ROOT / arg).is_file() or arg == 'config/my.py', f'{arg} does not exist'


def test_the_ruler_for_commands():
    text = ('```bash\npip install x && python train.py config/a.py \\\n  --lr=1   # fast\n```\n'
            '```\npython no.py\n```\nsay `python eval.py --x=1` or `data/x.py`\n')
    assert list(of_python(text)) == [('train.py', ['config/a.py', '--lr=1']), ('eval.py', ['--x=1'])]
    assert len(CALLS) >= 8 and ('train.py', ('config/minihack_wm_cpu.py',)) in CALLS


@each(PAGES)
def test_files_that_are_named_exist(path):
    """In backticks, also with a star, and in links; what a run writes (out/, data/x_y) is not there yet."""
    text = PAGES[path]
    for name in set(re.findall(r'`([\w*./-]+\.(?:py|md|json|toml|txt))`', text)):
        found = [*ROOT.glob(name), *ROOT.glob(f'data/*/{name}')]                 # every `prepare.py`
        assert found or name.startswith('my'), f'{path.name} names {name}, which does not exist'
    for name in re.findall(r'\]\(((?!http)[^)#]+)\)', text):
        assert (path.parent / name).exists(), f'{path.name} links to {name}, which does not exist'


def test_ci_runs_the_test_command_as_printed():
    command, = [line for line in README.splitlines() if line.endswith('python -m pytest')]
    assert command in (ROOT / '.ci' / 'run').read_text()


# ---- figures ----

@each(PAGES)
def test_every_figure_equals_its_record(path):
    problems = [problem for *_, problem in figures.check(PAGES[path]) if problem]
    assert not problems, '\n'.join(problems)


@each(PAGES)
def test_another_figure_would_be_noticed(path):
    """Each figure that has a record, a tenth larger: the page must fail."""
    for number, source, _ in figures.check(PAGES[path]):
        if not source.startswith(('published', 'in ')) and float(number.replace(',', '')):
            digits, value = len(number.partition('.')[2]), float(number.replace(',', ''))
            other = f'{value * 1.1 + math.copysign(10 ** -digits, value):.{digits}f}'
            assert figures.wrong(other, source), f'{other} would pass for {number}'


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r'\d+\.\d+', figures.COMMENT.sub('', README))) <= 60


def test_the_ruler_for_figures(tmp_path):
    for i, x in enumerate((1.0, 2.0, 6.0)):
        (tmp_path / f's{i}.json').write_text(json.dumps({'a': {'b': [x, 7]}}))
    (tmp_path / 'test.py').write_text('assert count == 158_598_160')

    def problems(text):
        return [problem for *_, problem in figures.check(text, tmp_path) if problem]
    table = '| x | dB |\n|---|---|\n'
    source = '<!-- s*.json:a.b.0; min s*.json:a.b.0; max s*.json:a.b.0 -->'
    good = table + f'| run 7 | **3.00** (1.0 to 6.0) | {source}\n'
    assert problems(good) == [] and len(figures.check(good, tmp_path)) == 3
    assert len(problems(good.replace('3.00', '3.01'))) == 1
    assert len(problems(good.replace('; max s*.json:a.b.0', ''))) == 1  # a figure without a source
    assert problems('Ran 4 times, 50.0 % and 0.5 <!-- 100 * s0.json:a.b.0 / s1.json:a.b.0; '
                    's0.json:a.b.0 / s1.json:a.b.0 --> of it.') == []
    assert len(problems('It took 1.5 s.')) == 1
    assert problems('It took 15 s, `x = 1.5`, arXiv 2605.23993.') == []
    assert problems(table + '| B | 158,598,160 | <!-- in test.py -->') == []
    assert len(problems(table + '| B | 158,598,161 | <!-- in test.py -->')) == 1
    assert problems(table + '| theirs | 23.07 | <!-- published -->') == []
