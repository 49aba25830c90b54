"""
All keys of a run in one flat dict; a script's own globals are its keys and their defaults:

    lr = 1e-4                                 # peak learning rate
    config, changed = configure(globals())    # once, right after the keys; writes the script's own ones back

Layers, later wins: script globals < keys of others (Owner: the model's Config, say) < facts of the data <
config files, left to right < flags. Keys are plain values with a lower-case name that does not start with
'_'. Config files are exec'd Python, each in a namespace of its own; in them `inherit('base.py')` runs the
file of that name in the same folder first. All problems are reported at once, with their places; exit code 2.
"""
import ast
import difflib
import os
import re
import signal
import sys
import tokenize
import traceback
from collections import Counter, namedtuple
from pathlib import Path

PLAIN = (bool, int, float, str, tuple, list, type(None))
WORDS = {'true': True, 'yes': True, 'false': False, 'no': False, 'inf': float('inf'), '-inf': -float('inf')}

# Keys that are not the script's: their defaults, and the file in which their comments stand, for --help.
# facts are values that the data decide; place is where they stand, for whoever sets them otherwise.
Owner = namedtuple('Owner', 'title defaults file facts place', defaults=({}, ''))


def polite_exit():
    """Ctrl-C or SIGTERM end this process at once with one line, whatever it is doing."""
    def leave(number, frame):
        os.write(2, b'\nstopped\n')                      # not print: we may be in the middle of one
        os._exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def configure(g, owners=None, argv=None, script=None):
    """
    globals() of a script -> (dict of all keys, {key: place} of those that are not at their default).
    owners(wanted) yields an Owner for everybody else who has keys. It is given the values of all layers as
    they stand, unchecked, because which model is meant has to be known first; it may sys.exit('one line').
    """
    argv = sys.argv[1:] if argv is None else argv
    script, asked = Path(script or g.get('__file__', sys.argv[0])), '--help' in argv
    problems, layers, others = [], [], []
    for kind, what in read_argv(argv, problems):         # files first, so that flags win wherever they stand
        layers += run_file(what, problems) if kind == 'file' else [what]
    own = {key: value for key, value in g.items() if is_key(key) and type(value) in PLAIN}
    wanted = own | {key: value for key, value, _ in layers}
    try:
        for owner in owners(wanted) if owners else ():
            others.append(owner)
    except SystemExit as stop:
        if not (asked and others):                       # who asks for help need not have the data yet
            problems.append(str(stop.code))
    defaults, owner_of = dict(own), dict.fromkeys(own, script.name)
    for owner in others:
        for key, value in owner.defaults.items():
            if key in owner_of:
                problems.append(f'{key} is a key of {owner_of[key]} and of {owner.title}: rename the latter')
            defaults[key], owner_of[key] = value, owner.title
        facts = [(key, value, owner.place) for key, value in owner.facts.items() if key in defaults]
        layers = facts + layers
    complete = bool(others) or not owners                # else half of the keys would seem unknown
    decided = {owner.place for owner in others if owner.facts}
    config, places = merge(layers, defaults, decided, complete, problems)

    if os.environ.get('RANK', '0') == '0':               # once, not once per GPU
        if asked:
            try:
                show_help(script.name, own, config, script)
                for owner in others:
                    if owner.defaults:
                        show_help(owner.title, owner.defaults, config, Path(owner.file))
                sys.stdout.flush()
            except BrokenPipeError:                      # `--help | head` has read enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if problems:
            print('\n'.join(gathered(problems, layers, script)), file=sys.stderr)
    if problems or asked:
        sys.exit(2 if problems else 0)
    g.update({key: config[key] for key in own})
    return config, {key: place for key, place in places.items() if config[key] != defaults[key]}


def merge(layers, defaults, decided, complete, problems):
    """
    [(key, value, place)] over the defaults -> config, {key: place}. Values from places in `decided` stay.
    """
    config, places, fixed = dict(defaults), {}, {}
    for key, value, place in layers:
        if key not in defaults:
            if complete:
                problems.append(unknown(key, place, defaults))
            continue
        try:
            read = read_flag(value, defaults[key]) if place.startswith('--') else value
            fitting = fit(read, defaults[key])
        except (TypeError, ValueError, OverflowError):
            like = f'{type(defaults[key]).__name__} like {defaults[key]!r}'
            problems.append(f'{key} wants {"a plain value" if is_free(defaults[key]) else like}, '
                            f'got {type(value).__name__} {value!r} ({place})')
            continue
        if key in fixed and fitting != config[key]:
            problems.append(f'{key} = {fitting!r} ({place}) contradicts {fixed[key]}: {config[key]!r}; '
                            'delete it, the data decides')
            continue
        config[key], places[key] = fitting, place
        if place in decided:
            fixed[key] = place
    return config, places


def gathered(problems, layers, script):
    """A config file of another script would fill the screen with unknown keys: one line for such a file."""
    def file_of(place):                                  # 'config/a.py:3' and 'config/a.py, inherited'
        return re.split(':|,', place)[0]
    total = Counter(file_of(place) for _, _, place in layers)
    strange = {p: file_of(re.search(r'\((.*?)\)', p)[1]) for p in problems if p.startswith('unknown key')}
    many = {file for file, n in Counter(strange.values()).items() if n > 3 and 2 * n > total[file]}
    many = sorted(file for file in many if file.endswith('.py'))
    lines = [f'{file}: most of its {total[file]} keys are unknown to {script.name}; is it for another script?'
             for file in many]
    return lines + [p for p in problems if strange.get(p) not in many]


def read_argv(argv, problems):
    """-> [('file', path)], then [('flag', (key, text, '--key'))]; what is neither becomes a problem."""
    files, flags, dotted, rest = [], [], [], [arg for arg in argv if arg != '--help']
    while rest:
        arg = rest.pop(0)
        key, equals, text = arg.partition('=')
        if arg.startswith('--') and equals and '.' in key:
            dotted.append(f"unknown key '{key[2:]}' ({key})")
        elif arg.startswith('--') and equals:
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
    if dotted:                                           # a whole command, pasted, is one line
        more = f', and {len(dotted) - 1} more' if len(dotted) > 1 else ''
        problems.append(f'{dotted[0]}{more}; python data/lerobot/command.py translates commands of LeRobot')
    return files + flags


def run_file(path, problems):
    """Exec a config file -> [(key, value, 'path:line')]. An exception in it becomes one line of problems."""
    lines, folders = {}, [Path(path).parent]             # the last one: where the file that runs now lies

    def inherit(name):
        """Run the file `name`, which lies beside this one, for its keys: as if they were written here."""
        base = folders[-1] / name
        folders.append(base.parent)
        exec(compile(base.read_bytes(), str(base), 'exec'), names)
        folders.pop()

    names = {'__file__': path, 'inherit': inherit}
    if not os.path.isfile(path):
        there = sorted(map(str, Path(path).parent.glob('*.py')))
        close = difflib.get_close_matches(path, there, 1)
        problems.append(f'{path}: there is no such file' + (f'; did you mean {close[0]}?' if close else ''))
        return []
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
        for statement in tree.body:
            if isinstance(statement, ast.FunctionDef):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    lines[node.id] = node.lineno
        exec(compile(tree, path, 'exec'), names)
    except (Exception, SystemExit) as e:  # a config that exits would end the run as if it were done
        line = [s.lineno for s in traceback.extract_tb(e.__traceback__) if s.filename == path]
        line = line[-1] if line else getattr(e, 'lineno', '?')  # a SyntaxError knows it, a missing file not
        problems.append(f"{path}:{line}: {type(e).__name__}: {' '.join(str(e).split())}")
    places = {key: f'{path}:{line}' for key, line in lines.items()}
    keys = [key for key, value in names.items()          # imports and functions are no keys
            if is_key(key) and (type(value) in PLAIN or key in places)]
    return [(key, names[key], places.get(key, f'{path}, inherited')) for key in keys]


def read_flag(text, default):
    """A flag's text -> what it means where `default` stands; whether that is acceptable is fit's business."""
    if type(default) is str and default != 'auto':
        return text                                      # --name=123 is a name
    if type(default) is bool and text in ('0', '1'):
        return text == '1'
    if type(default) in (tuple, list) and text[:1] not in ('(', '['):            # --betas=0.9,0.99
        like = default[0] if default else None
        return [read_flag(part.strip(), like) for part in text.split(',') if part.strip()]
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except Exception:  # it has five exceptions for 'not a literal'; all mean text
        return text


def is_key(name):
    return name[0] != '_' and name == name.lower()       # CAPITALS are constants


def is_free(default):
    return default is None or default == 'auto'          # these defaults take any plain value


def fit(value, default):
    """
    value in the type of default: 1 -> 1.0, 100.0 -> 100, [1] -> (1,). Raises where that would guess: text is
    no number, 1 is no bool, nan is nothing. Elements of a sequence are taken like those of the default.
    """
    if type(value) in (tuple, list) and (is_free(default) or type(default) in (tuple, list)):
        like = default[0] if not is_free(default) and len({type(d) for d in default}) == 1 else None
        return (type(value) if is_free(default) else type(default))(fit(v, like) for v in value)
    if {type(value), type(default)} <= {int, float} and type(default)(value) == value:
        return type(default)(value)
    if type(value) in PLAIN and value == value and (is_free(default) or type(value) is type(default)):
        return value
    raise TypeError


def unknown(key, place, defaults):
    close = difflib.get_close_matches(key, defaults, 1, 0.6)
    return f"unknown key '{key}' ({place})" + (f"; did you mean '{close[0]}'?" if close else '')


def show_help(title, defaults, config, path):
    """Three columns: key, default (-> what files and flags make of it), the comment that trails the key."""
    lines = iter(path.read_text().splitlines(True))
    comments = [t for t in tokenize.generate_tokens(lines.__next__) if t.type == tokenize.COMMENT]
    notes = {}
    for token in reversed(comments):  # the first line that starts with the key has its comment
        notes[token.line.partition('=')[0].partition(':')[0].strip()] = token.string[1:].strip()
    print(f'\n{title}')
    for key, value in defaults.items():
        shown = repr(value) if config[key] == value else f'{value!r} -> {config[key]!r}'
        print(f'  {key:<20} {shown:<20} {notes.get(key, "")}'.rstrip())
