"""
A function or class under the line `# same as FILE.py` equals the one of that name in FILE.py, comments aside.
"""
import ast
import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def definitions(path):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


def differences(path, root=ROOT):
    """Lines that say how marked copies differ from their originals; [] when they agree."""
    lines, found = path.read_text().splitlines(), []
    marks = {i: m[1] for i, line in enumerate(lines, 1) if (m := re.match(r'\s*# same as (\S+\.py)', line))}
    for node in definitions(path):
        source = marks.pop(min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, None)
        if not source: continue
        originals = [ast.unparse(n) for n in definitions(root / source) if n.name == node.name]
        originals = originals or ['(not there)']
        copy = ast.unparse(node)                            # drops comments, keeps docstrings
        if copy not in originals:
            found += difflib.unified_diff(originals[0].split('\n'), copy.split('\n'), source, path.name)
    return found + [f'{path.name}:{i}: no def or class follows the mark' for i in marks]


@pytest.mark.parametrize('path', sorted(ROOT.glob('*.py')), ids=lambda p: p.name)
def test_marked_copies_are_the_same(path): assert differences(path) == []


HEADS = 'def f(x)', '@g\ndef f(x)', 'def f(x, y)', 'def h(x)'
COPIES = [(f'{head}: return x + {n}', head == 'def f(x)' and n == 1) for n in (1, 2) for head in HEADS]
COPIES += [('def f(x):\n    return x + 1   # other words', True), ('\nf = 1', False)]


@pytest.mark.parametrize('copy, same', COPIES)
def test_a_copy_that_differs_is_found(tmp_path, copy, same):
    (tmp_path / 'a.py').write_text('def f(x):  # why\n    return x + 1\n')
    (tmp_path / 'b.py').write_text(f'def unmarked(): pass\n# same as a.py\n{copy}\n')
    assert (differences(tmp_path / 'b.py', tmp_path) == []) is same
