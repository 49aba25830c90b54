"""Small enough to be read: line budgets, width, comments in proportion, short functions. Raise one with a reason."""
import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUDGET = {              # lines, comments and blanks included
    'README.md': 260,
    'nanowm.py': 610,           # five injections, four targets and a check of the Config with its messages
    'imf_policy.py': 450, 'remdm.py': 560,
    'arx5_gpt.py': 475,         # the published layout, to and from it, with a line for everything that does not fit
    'act.py': 380,
    'diffusion_policy.py': 440, 'pi0.py': 620, 'smolvla.py': 540, 'cem.py': 160, 'vae.py': 300, 'vision.py': 180,
    'metrics.py': 400, 'sample.py': 280,
    'eval.py': 460,             # three protocols, and the predictors beside which their scores mean something

    'train.py': 370,            # every mistake gets its line before the run, not after it
    'configurator.py': 170,     # opened up: squeezed to 120 it read like a puzzle
    'checkpoint.py': 180,       # save, resume and every damage in one line each
    'logger.py': 70, 'data/loader.py': 180,
    'data/writer.py': 220,      # statistics of what robots are modelled by: s' - s, a - q, a - a_prev
    'data/*/prepare.py': 180, 'data/*/env.py': 380,
    'data/*/readme.md': 25,
    'config/*.py': 30,          # the CPU demo departs from the published recipe in many keys
    'tests/test_same.py': 40,
}
OTHERS = {'venv', 'build', 'dist', 'out', 'shared'}                     # not ours to judge, like all hidden folders
CODE = [p for p in ROOT.rglob('*.py')
        if not any(part in OTHERS or part.startswith('.') for part in p.relative_to(ROOT).parts)]
MODELS = [p for p in ROOT.glob('*.py') if '\nclass Model(' in p.read_text()]
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def each(paths):
    return pytest.mark.parametrize('path', sorted(paths), ids=lambda p: str(p.relative_to(ROOT)))


def teach_ratio(source):
    """(comment lines + trailing comments + docstring lines) / lines that hold anything else."""
    owners = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = [n.body[0] for n in owners if ast.get_docstring(n) is not None]
    docs = {row for d in docs for row in range(d.lineno, d.end_lineno + 1)}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    code = {row for t in tokens if t.type not in SILENT for row in range(t.start[0], t.end[0] + 1)} - docs
    return (sum(t.type == tokenize.COMMENT for t in tokens) + len(docs)) / len(code)


def long_functions(source, limit=60):
    """Names of the functions that take more lines than a screen has."""
    return [n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)
            and n.end_lineno - n.lineno >= limit]


@pytest.mark.parametrize('path, budget', [(p, b) for pattern, b in BUDGET.items() for p in sorted(ROOT.glob(pattern))],
                         ids=lambda x: str(x.relative_to(ROOT)) if isinstance(x, Path) else str(x))
def test_budget(path, budget):
    lines = len(path.read_text().splitlines())
    assert lines <= budget, f'{path.name} has {lines} lines, its budget is {budget}'


@each(CODE)
def test_line_width(path):
    wide = [i for i, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert not wide, f'{path.name}: lines {wide} are wider than 120'


@each(MODELS)
def test_models_teach(path):
    assert 0.30 <= teach_ratio(path.read_text()) <= 0.90


@each(MODELS)
def test_functions_of_models_fit_a_screen(path): assert not long_functions(path.read_text())


def test_the_rulers():
    source = '"""doc\n\nstring"""\n# line\nx = """no\ndoc"""     # trailing\n\ndef f():\n    """doc"""\n    return x\n'
    assert teach_ratio(source) == 6 / 4         # lines 1-3, 4, 5 (trailing), 9 over lines 5, 6, 8, 10
    assert long_functions('def f():\n' + '    pass\n' * 60) == ['f']
    assert long_functions('def f():\n' + '    pass\n' * 59) == []
