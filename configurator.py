"""
All keys of a run in one flat dict; the script's own globals are the keys and their defaults:
    lr = 1e-4                        # peak learning rate
    config = configure(globals())    # once, right after the keys were assigned; the script's own are written back
Layers, later wins: script globals < the model's Config < facts of the dataset < config files, left to right < flags.
Keys are plain values without a leading '_'. Config files are exec'd Python in a namespace of their own; to inherit, one
starts with `exec(open('config/base.py').read())`. All problems are reported at once, each with its place; exit code 2.
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

def read_flag(text, default):
    """A flag's text -> what it means where `default` stands; whether that is acceptable is fit()'s business."""
    if type(default) is str and default != 'auto': return text              # --name=123 is a name
    if type(default) is bool and text in ('0', '1'): return text == '1'
    if type(default) in (tuple, list) and text[:1] not in ('(', '['):       # --betas=0.9,0.99
        return [read_flag(part.strip(), (*default, None)[0]) for part in text.split(',') if part.strip()]
    try: return WORDS[text.lower()] if text.lower() in WORDS else ast.literal_eval(text)
    except Exception: return text       # literal_eval has five exceptions for 'not a literal'; all of them mean text

def fit(value, default):
    """value in the type of default (1 -> 1.0, 100.0 -> 100, [1] -> (1,)) or an exception: text is no number, 1 no bool,
    and nan, which is not even itself, is nothing. Elements of a sequence follow the default's where those are alike."""
    free = default is None or default == 'auto'         # these defaults take any plain value
    if type(value) in (tuple, list) and (free or type(default) in (tuple, list)):
        like = default[0] if not free and len({type(d) for d in default}) == 1 else None
        return (type(value) if free else type(default))(fit(v, like) for v in value)
    if {type(value), type(default)} <= {int, float} and type(default)(value) == value: return type(default)(value)
    if type(value) in PLAIN and value == value and (free or type(value) is type(default)): return value
    raise TypeError

def run_file(path, problems):
    """Exec a config file -> [(key, value, place)]. An exception in it becomes one line of problems."""
    names, place = {'__file__': path}, {}
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
        place = {n.id: f'{path}:{n.lineno}' for statement in tree.body if not isinstance(statement, ast.FunctionDef)
                 for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        exec(compile(tree, path, 'exec'), names)
    except Exception as e:
        lines = [getattr(e, 'lineno', '?')]             # a SyntaxError knows its line, a missing file has none
        lines += [s.lineno for s in traceback.extract_tb(e.__traceback__) if s.filename == path]
        problems.append(f"{path}:{lines[-1]}: {type(e).__name__}: {' '.join(str(e).split())}")
    return [(k, v, place.get(k, f'{path}, inherited')) for k, v in names.items() if k[0] != '_']

def read_argv(argv, problems):
    """-> [(key, value, place)], files first. What is neither becomes a problem that says how to write it."""
    files, flags, argv = [], [], [arg for arg in argv if arg != '--help']
    while argv:
        arg = argv.pop(0)
        key, equals, text = arg.partition('=')
        if arg[:2] == '--' and equals: flags.append((key[2:], text, key))
        elif arg[:1] != '-' and (arg[-3:] == '.py' or not equals): files += run_file(arg, problems)
        elif arg == '-h': problems.append('-h: use --help')
        else:                                           # --key value, --key, -key=value, key=value
            if not equals and argv and argv[0][:2] != '--' and argv[0][-3:] != '.py': arg += ' ' + (text := argv.pop(0))
            problems.append(f"{arg}: write --{key.strip('-')}={text or 'VALUE'}")
    return files + flags

def show_help(title, defaults, config, source):
    """Three columns: key, default (-> what files and flags make of it), the comment that trails the key in source."""
    tokens = list(tokenize.generate_tokens(iter(source.splitlines(True)).__next__))      # a '#' in a string is safe
    notes = {t.line.partition('=')[0].partition(':')[0].strip(): t.string[1:].strip()
             for t in reversed(tokens) if t.type == tokenize.COMMENT}                    # the first of a name counts
    print(f'\n{title}')
    for key, value in defaults.items():
        shown = repr(value) + f' -> {config[key]!r}' * (config[key] != value)
        print(f'  {key:<20} {shown:<20} {notes.get(key, "")}'.rstrip())

def configure(g, argv=None, script=None):
    """globals() of a script -> all keys; afterwards configure.changed is {key: place} of what is not at its default."""
    argv, script, problems = sys.argv[1:] if argv is None else argv, Path(script or g.get('__file__', sys.argv[0])), []
    own, theirs, meta = {k: v for k, v in g.items() if k[0] != '_' and type(v) in PLAIN}, {}, None
    layers = read_argv(argv, problems)
    final = {'dataset': '', **own, **{key: value for key, value, _ in layers}}      # unchecked: what to import and read
    if 'model' in own:                                  # train.py; sample.py and eval.py ask the checkpoint
        model = str(final['model'])
        M = model.isidentifier() and (model in sys.modules or util.find_spec(model)) and import_module(model)
        theirs = dict(vars(M.Config())) if hasattr(M, 'Config') else {}
        assert not own.keys() & theirs, f'{own.keys() & theirs} is both in {script.name} and in {model}.Config; rename'
        if not theirs:
            there = [p.name for p in sorted(script.absolute().parent.glob('*.py')) if '\nclass Model(' in p.read_text()]
            problems.append(f"no model '{model}'; files that define one: {', '.join(there)}")
    if theirs and final['dataset'] and '--help' not in argv:
        from data.loader import read_meta  # not at the top: --help, and scripts without a dataset, do without
        meta = os.path.join(folder := os.path.join(str(final['data_dir']), str(final['dataset'])), 'meta.json')
        try: layers = [(key, fact, meta) for key, fact in read_meta(folder)['facts'].items() if key in theirs] + layers
        except SystemExit as e: problems.append(str(e.code))
    config, where = dict(defaults := {**own, **theirs}), {}
    for key, value, place in layers:
        if key in defaults:
            like = defaults[key]
            try: value = fit(read_flag(value, like) if place[:2] == '--' else value, like)
            except (TypeError, ValueError, OverflowError):
                wants = 'a plain value' if like in (None, 'auto') else f'{type(like).__name__} like {like!r}'
                problems.append(f'{key} wants {wants}, got {type(value).__name__} {value!r} ({place})')
            else:
                if where.get(key, '') != meta: config[key], where[key] = value, place
                elif value != config[key]: problems.append(f'{key} = {value!r} ({place}) contradicts {meta}: '
                                                           f'{config[key]!r}; delete it, the data decides')
        elif type(value) in PLAIN and (theirs or 'model' not in own):   # not: imports, functions, keys of no model
            close = difflib.get_close_matches(key, defaults, 1, 0.6)
            problems.append(f"unknown key '{key}' ({place})" + (f"; did you mean '{close[0]}'?" if close else ''))
    if os.environ.get('RANK', '0') == '0':              # once, not once per GPU
        if '--help' in argv: show_help(script.name, own, config, script.read_text())
        if '--help' in argv and theirs: show_help(f'{model}.Config', theirs, config, Path(M.__file__).read_text())
        if problems: print('\n'.join(problems), file=sys.stderr)
    if problems or '--help' in argv: sys.exit(2 if problems else 0)
    g.update({key: config[key] for key in own})
    configure.changed = {key: place for key, place in where.items() if config[key] != defaults[key]}
    return config
