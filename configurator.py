"""
All keys of a run in one flat dict; a script's own globals are its keys and their defaults:

    lr = 1e-4                        # peak learning rate
    config = configure(globals())    # once, right after the keys; writes the script's own ones back

Layers, later wins: script globals < the model's Config < facts of the dataset < config files, left to right < flags.
Keys are plain values with a lower-case name that does not start with '_'. Config files are exec'd Python in a namespace
of their own; to inherit, one starts with `exec(open('config/base.py').read())`. All problems are reported at once, each
with its place; exit code 2.
"""
import ast
import difflib
import os
import sys
import tokenize
import traceback
from importlib import import_module, util
from pathlib import Path

PLAIN = (bool, int, float, str, tuple, list, type(None))
WORDS = {'true': True, 'yes': True, 'false': False, 'no': False, 'inf': float('inf'), '-inf': -float('inf')}


def configure(g, argv=None, script=None):
    """globals() of a script -> dict of all keys; configure.changed is {key: place} of what is not at its default."""
    argv = sys.argv[1:] if argv is None else argv
    script, asked = Path(script or g.get('__file__', sys.argv[0])), '--help' in argv
    problems, layers, meta, M, theirs = [], [], '', None, {}
    for kind, what in read_argv(argv, problems):         # files first, so that flags win wherever they stand
        layers += run_file(what, problems) if kind == 'file' else [what]
    own = {key: value for key, value in g.items() if is_key(key) and type(value) in PLAIN}
    wanted = own | {key: value for key, value, _ in layers}          # unchecked: which model to import, which data

    if 'model' in own:                                   # train.py; sample.py and eval.py ask the checkpoint
        M = import_model(str(wanted['model']), script, problems)
        theirs = dict(vars(M.Config())) if M else {}
        assert not own.keys() & theirs, f'{own.keys() & theirs} is both in {script.name} and in Config; rename one'
    if theirs and wanted.get('dataset') and not asked:
        from data.loader import read_meta  # not at the top: scripts without a dataset do without
        folder = os.path.join(str(wanted['data_dir']), str(wanted['dataset']))
        meta = os.path.join(folder, 'meta.json')
        try: layers = [(key, fact, meta) for key, fact in read_meta(folder)['facts'].items() if key in theirs] + layers
        except SystemExit as missing: problems.append(str(missing.code))

    defaults = own | theirs
    config, places, fixed = dict(defaults), {}, set()
    for key, value, place in layers:
        if key not in defaults:
            if M or 'model' not in own: problems.append(unknown(key, place, defaults))     # else all keys would be
            continue
        try:
            value = fit(read_flag(value, defaults[key]) if place.startswith('--') else value, defaults[key])
        except (TypeError, ValueError, OverflowError):
            like = f'{type(defaults[key]).__name__} like {defaults[key]!r}'
            problems.append(f'{key} wants {"a plain value" if is_free(defaults[key]) else like}, '
                            f'got {type(value).__name__} {value!r} ({place})')
            continue
        if key in fixed and value != config[key]:
            problems.append(f'{key} = {value!r} ({place}) contradicts {meta}: {config[key]!r}; '
                            'delete it, the data decides')
            continue
        config[key], places[key] = value, place
        if place == meta: fixed.add(key)

    if os.environ.get('RANK', '0') == '0':               # once, not once per GPU
        if asked: show_help(script.name, own, config, script)
        if asked and M: show_help(f'{M.__name__}.Config', theirs, config, Path(M.__file__))
        if problems: print('\n'.join(problems), file=sys.stderr)
    if problems or asked: sys.exit(2 if problems else 0)
    g.update({key: config[key] for key in own})
    configure.changed = {key: place for key, place in places.items() if config[key] != defaults[key]}
    return config


def read_argv(argv, problems):
    """-> [('file', path)], then [('flag', (key, text, '--key'))]. What is neither becomes a problem that says how."""
    files, flags, rest = [], [], [arg for arg in argv if arg != '--help']
    while rest:
        arg = rest.pop(0)
        key, equals, text = arg.partition('=')
        if arg.startswith('--') and equals:
            flags.append(('flag', (key[2:], text, key)))
        elif not arg.startswith('-') and (arg.endswith('.py') or not equals):
            files.append(('file', arg))
        elif arg == '-h':
            problems.append('-h: use --help')
        else:                                            # --key value, --key, -key=value, key=value
            if not equals and rest and not rest[0].startswith('--') and not rest[0].endswith('.py'):
                text = rest.pop(0)
                arg += ' ' + text
            problems.append(f"{arg}: write --{key.strip('-')}={text or 'VALUE'}")
    return files + flags


def run_file(path, problems):
    """Exec a config file -> [(key, value, 'path:line')]. An exception in it becomes one line of problems."""
    names, lines = {'__file__': path}, {}
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
        for statement in tree.body:
            for node in ast.walk(statement) if not isinstance(statement, ast.FunctionDef) else ():
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): lines[node.id] = node.lineno
        exec(compile(tree, path, 'exec'), names)
    except Exception as e:
        line = [s.lineno for s in traceback.extract_tb(e.__traceback__) if s.filename == path]
        line = line[-1] if line else getattr(e, 'lineno', '?')       # a SyntaxError knows it, a missing file has none
        problems.append(f"{path}:{line}: {type(e).__name__}: {' '.join(str(e).split())}")
    places = {key: f'{path}:{line}' for key, line in lines.items()}
    return [(key, value, places.get(key, f'{path}, inherited')) for key, value in names.items()
            if is_key(key) and (type(value) in PLAIN or key in places)]          # imports and functions are no keys


def read_flag(text, default):
    """A flag's text -> what it means where `default` stands; whether that is acceptable is fit's business."""
    if type(default) is str and default != 'auto': return text       # --name=123 is a name
    if type(default) is bool and text in ('0', '1'): return text == '1'
    if type(default) in (tuple, list) and text[:1] not in ('(', '['):            # --betas=0.9,0.99
        return [read_flag(part.strip(), (*default, None)[0]) for part in text.split(',') if part.strip()]
    if text.lower() in WORDS: return WORDS[text.lower()]
    try: return ast.literal_eval(text)
    except Exception: return text        # it has five exceptions for 'not a literal'; all of them mean text


def is_key(name): return name[0] != '_' and name == name.lower()     # CAPITALS are constants


def is_free(default): return default is None or default == 'auto'    # these defaults take any plain value


def fit(value, default):
    """
    value in the type of default: 1 -> 1.0, 100.0 -> 100, [1] -> (1,). Raises where that would guess: text is no number,
    1 is no bool, nan is nothing. Elements of a sequence follow the default's where those are alike.
    """
    if type(value) in (tuple, list) and (is_free(default) or type(default) in (tuple, list)):
        like = default[0] if not is_free(default) and len({type(d) for d in default}) == 1 else None
        return (type(value) if is_free(default) else type(default))(fit(v, like) for v in value)
    if {type(value), type(default)} <= {int, float} and type(default)(value) == value:
        return type(default)(value)
    if type(value) in PLAIN and value == value and (is_free(default) or type(value) is type(default)):
        return value
    raise TypeError


def import_model(name, script, problems):
    """The module `name` with its Config; a mistake inside it keeps its traceback."""
    if name.isidentifier() and util.find_spec(name) and hasattr(M := import_module(name), 'Config'):
        return M
    there = [p.name for p in sorted(script.absolute().parent.glob('*.py')) if '\nclass Model(' in p.read_text()]
    problems.append(f"no model '{name}'; files that define one: {', '.join(there)}")


def unknown(key, place, defaults):
    close = difflib.get_close_matches(key, defaults, 1, 0.6)
    return f"unknown key '{key}' ({place})" + (f"; did you mean '{close[0]}'?" if close else '')


def show_help(title, defaults, config, path):
    """Three columns: key, default (-> what files and flags make of it), the comment that trails the key."""
    lines = iter(path.read_text().splitlines(True))
    comments = [t for t in tokenize.generate_tokens(lines.__next__) if t.type == tokenize.COMMENT]
    notes = {t.line.partition('=')[0].partition(':')[0].strip(): t.string[1:].strip() for t in reversed(comments)}
    print(f'\n{title}')
    for key, value in defaults.items():
        shown = repr(value) if config[key] == value else f'{value!r} -> {config[key]!r}'
        print(f'  {key:<20} {shown:<20} {notes.get(key, "")}'.rstrip())
