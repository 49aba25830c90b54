"""
configurator.py: the pitfalls of nanoGPT's configurator, one row each, then layers, owners, facts, places,
help.
"""
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, finish, one_line, script, start
from hypothesis import given
from hypothesis import strategies as st

import contract
from configurator import Owner, configure, fit, read_flag

SCRIPT = '''
model = 'stub_nanowm'       # which file to train
dataset = ''                # folder below data_dir
data_dir = 'data'           # where "# hash" is no comment
batch_size = 12             # samples per step
learning_rate = 6e-4        # peak
run_name = 'x # y'          # shown in curves
compile = True
betas = (0.9, 0.95)         # of AdamW
cams = ['front']
clip = None
device = 'auto'

import math
def helper():
    batch_size = 1          # a local name, not the key
_private = 3
'''
MODEL = '''
from dataclasses import dataclass
from torch import nn

PAD = False
EVAL = ()

@dataclass
class Config:
    width: int = 64         # pixels
    scale: float = 1.0
    act: str = 'gelu'       # 'gelu' | 'relu'

def windows(cfg): return {'state': range(1)}

class Model(nn.Module):
    def forward(self, batch): return {}
    def configure_optimizers(self, lr, weight_decay, betas): return None
    def flops_per_sample(self): return 1.0
'''


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """
    A folder with train.py and a model; stub(*argv) -> config, or SystemExit. stub.changed is what else it
    returned.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contract, 'HERE', str(tmp_path))
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.delitem(sys.modules, 'stub_nanowm', raising=False)
    (tmp_path / 'config').mkdir()
    (tmp_path / 'train.py').write_text(SCRIPT)
    (tmp_path / 'stub_nanowm.py').write_text(MODEL)
    (tmp_path / 'not_a_model.py').write_text('x = 1\n')

    def call(*argv, owners=contract.owners, **more):
        g = {'__name__': '__main__', '__file__': str(tmp_path / 'train.py')}
        exec(SCRIPT, g)
        g.update(more)
        call.globals = g
        config, call.changed = configure(g, owners, list(argv))
        return config
    return call


@pytest.fixture
def problems(stub, capsys):
    """problems(*argv) -> the lines on stderr of a run that must end with code 2 and nothing on stdout."""
    def call(*argv, **more):
        with pytest.raises(SystemExit) as stop:
            stub(*argv, **more)
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ''
        return err.splitlines()
    return call


def write(path, text):
    with open(path, 'w') as f:
        f.write(text)


def fake_data(monkeypatch, meta):
    """contract.py with a read_meta that knows only data/wall."""
    def read_meta(folder):
        if os.path.normpath(folder) != os.path.join('data', 'wall'):
            sys.exit(f'{folder}/meta.json not found; make it')
        return meta
    monkeypatch.setattr(contract, 'read_meta', read_meta)


# ---- the pitfall table: what a flag becomes ----

@pytest.mark.parametrize('flag, key, value', [
    ('--learning_rate=1', 'learning_rate', 1.0),
    ('--learning_rate=inf', 'learning_rate', math.inf),
    ('--learning_rate=-inf', 'learning_rate', -math.inf),
    ('--batch_size=1e2', 'batch_size', 100),
    ('--batch_size=1_000', 'batch_size', 1000),
    ('--batch_size=-1', 'batch_size', -1),
    *[(f'--compile={text}', 'compile', False) for text in ('false', 'False', '0', 'no')],
    *[(f'--compile={text}', 'compile', True) for text in ('true', 'TRUE', '1', 'yes')],
    ('--run_name=123', 'run_name', '123'),
    ('--run_name=True', 'run_name', 'True'),
    ('--run_name=a=b', 'run_name', 'a=b'),
    ('--run_name=', 'run_name', ''),
    ('--clip=1.0', 'clip', 1.0),
    ('--clip=1', 'clip', 1),
    ('--clip=gpt2-xl', 'clip', 'gpt2-xl'),
    ('--clip=no', 'clip', False),
    ('--clip=1,2', 'clip', (1, 2)),
    ('--clip=None', 'clip', None),
    ('--device=cuda:0', 'device', 'cuda:0'),
    ('--device=auto', 'device', 'auto'),
    ('--device=False', 'device', False),
    ('--device=3', 'device', 3),
    ('--betas=0.9,0.99', 'betas', (0.9, 0.99)),
    ('--betas=(0.9,0.99)', 'betas', (0.9, 0.99)),
    ('--betas=[0.9, 0.99]', 'betas', (0.9, 0.99)),
    ('--betas=0,1', 'betas', (0.0, 1.0)),
    ('--betas=0.5', 'betas', (0.5,)),
    ('--betas=', 'betas', ()),
    ('--betas=-inf,inf', 'betas', (-math.inf, math.inf)),
    ('--cams=front,wrist', 'cams', ['front', 'wrist']),
    ('--cams=1,2', 'cams', ['1', '2']),
    ('--width=32', 'width', 32),
    ('--scale=2', 'scale', 2.0),
    ('--act=relu', 'act', 'relu'),
])
def test_flag(stub, flag, key, value):
    config = stub(flag)
    assert config[key] == value and type(config[key]) is type(value)
    if isinstance(value, (tuple, list)):
        assert [type(v) for v in config[key]] == [type(v) for v in value]


@pytest.mark.parametrize('line, key, value', [
    ('learning_rate = 1', 'learning_rate', 1.0),
    ('batch_size = 1e2', 'batch_size', 100),
    ('betas = [0, 1]', 'betas', (0.0, 1.0)),
    ('clip = [1, None]', 'clip', [1, None]),
    ('device = False', 'device', False),
    ('_w = 4\nwidth = _w * 8', 'width', 32),
    ('import os\nfrom math import sqrt\ndef f(n): return n * 2\nwidth = f(int(sqrt(16)))', 'width', 8),
    ('width = sum(w for w in range(4))', 'width', 6),
    ('_n = 4\ndef f(): return _n\nwidth = f()', 'width', 4),
])
def test_file_value(stub, line, key, value):
    write('config/x.py', line)
    config = stub('config/x.py')
    assert config[key] == value and type(config[key]) is type(value)
    if isinstance(value, (tuple, list)):
        assert [type(v) for v in config[key]] == [type(v) for v in value]


# ---- the pitfall table: what is refused, and in which words ----

@pytest.mark.parametrize('line, message', [
    ('learning_rte = 1e-3', "unknown key 'learning_rte' (config/x.py:3); did you mean 'learning_rate'?"),
    ('zzz = 1', "unknown key 'zzz' (config/x.py:3)"),
    ('widht = 1', "unknown key 'widht' (config/x.py:3); did you mean 'width'?"),
    ("learning_rate = '1e-3'", "learning_rate wants float like 0.0006, got str '1e-3' (config/x.py:3)"),
    ("learning_rate = float('nan')", 'learning_rate wants float like 0.0006, got float nan (config/x.py:3)'),
    ('learning_rate = True', 'learning_rate wants float like 0.0006, got bool True (config/x.py:3)'),
    ('learning_rate = None', 'learning_rate wants float like 0.0006, got NoneType None (config/x.py:3)'),
    ('batch_size = 1.5', 'batch_size wants int like 12, got float 1.5 (config/x.py:3)'),
    ("batch_size = float('inf')", 'batch_size wants int like 12, got float inf (config/x.py:3)'),
    ('compile = 1', 'compile wants bool like True, got int 1 (config/x.py:3)'),
    ('run_name = 123', "run_name wants str like 'x # y', got int 123 (config/x.py:3)"),
    ('betas = 0.9', 'betas wants tuple like (0.9, 0.95), got float 0.9 (config/x.py:3)'),
    ("betas = (0.9, 'a')", "betas wants tuple like (0.9, 0.95), got tuple (0.9, 'a') (config/x.py:3)"),
    ('clip = {1: 2}', 'clip wants a plain value, got dict {1: 2} (config/x.py:3)'),
    ("device = (float('nan'),)", 'device wants a plain value, got tuple (nan,) (config/x.py:3)'),
    ('math = 3', "unknown key 'math' (config/x.py:3)"),                 # a module in train.py is no key
    ('helper = 3', "unknown key 'helper' (config/x.py:3)"),
    ('config_keys = []', "unknown key 'config_keys' (config/x.py:3)"),
])
def test_file_refused(problems, line, message):
    write('config/x.py', '# two lines\n\n' + line)
    assert problems('config/x.py') == [message]


def test_misspelt_file(problems):
    write('config/dagger.py', 'batch_size = 3')
    line, = problems('config/dager.py')
    assert line == 'config/dager.py: there is no such file; did you mean config/dagger.py?'


@pytest.mark.parametrize('argv, message', [
    (['--learning_rte=1'], "unknown key 'learning_rte' (--learning_rte); did you mean 'learning_rate'?"),
    (['--batch-size=3'], "unknown key 'batch-size' (--batch-size); did you mean 'batch_size'?"),
    (['--config_keys=[]'], "unknown key 'config_keys' (--config_keys)"),
    (['--_private=4'], "unknown key '_private' (--_private)"),
    (['--math=3'], "unknown key 'math' (--math)"),
    (['--__doc__=x'], "unknown key '__doc__' (--__doc__)"),
    (['--policy.dim_model=256'], "unknown key 'policy.dim_model' (--policy.dim_model); "
     'python data/lerobot/command.py translates commands of LeRobot'),
    (['--policy.type=act', '--dataset.root=x', '--wandb.enable=true'], "unknown key 'policy.type' "
     '(--policy.type), and 2 more; python data/lerobot/command.py translates commands of LeRobot'),
    (['--batch_size=abc'], "batch_size wants int like 12, got str 'abc' (--batch_size)"),
    (['--batch_size=1.5'], "batch_size wants int like 12, got str '1.5' (--batch_size)"),
    (['--batch_size=True'], "batch_size wants int like 12, got str 'True' (--batch_size)"),
    (['--learning_rate=nan'], "learning_rate wants float like 0.0006, got str 'nan' (--learning_rate)"),
    (['--learning_rate=1e-3x'], "learning_rate wants float like 0.0006, got str '1e-3x' (--learning_rate)"),
    (['--compile=2'], "compile wants bool like True, got str '2' (--compile)"),
    (['--compile='], "compile wants bool like True, got str '' (--compile)"),
    (['--betas=a,b'], "betas wants tuple like (0.9, 0.95), got str 'a,b' (--betas)"),
    (['--betas=(0.9,0.99'], "betas wants tuple like (0.9, 0.95), got str '(0.9,0.99' (--betas)"),
    (['--clip={1:2}'], "clip wants a plain value, got str '{1:2}' (--clip)"),
    (['--batch_size', '32'], '--batch_size 32: write --batch_size=32'),
    (['--learning_rate', '-1'], '--learning_rate -1: write --learning_rate=-1'),
    (['--compile'], '--compile: write --compile=VALUE'),
    (['--compile', '--clip=1'], '--compile: write --compile=VALUE'),
    (['-batch_size=32'], '-batch_size=32: write --batch_size=32'),
    (['batch_size=32'], 'batch_size=32: write --batch_size=32'),
    (['-h'], '-h: use --help'),
    (['config/none.py'], 'config/none.py: there is no such file'),
    (['--model=nope'], "no model 'nope'; files that define one: stub_nanowm.py"),
    (['--model=stub_nanowm.py'], "no model 'stub_nanowm.py'; files that define one: stub_nanowm.py"),
    (['--model='], "no model ''; files that define one: stub_nanowm.py"),
    (['--model=stub.nanowm'], "no model 'stub.nanowm'; files that define one: stub_nanowm.py"),
    (['--model=../stub_nanowm'], "no model '../stub_nanowm'; files that define one: stub_nanowm.py"),
    (['--model=os'], "no model 'os'; files that define one: stub_nanowm.py"),
    (['--model=not_a_model'],
     'not_a_model.py is no model yet: no @dataclass Config; no PAD = True or False; no windows(cfg); '
     'no EVAL = a tuple of names out of video, dynamics, plan, env, actions, or (); '
     'no class Model(nn.Module); see contract.py'),
])
def test_flag_refused(problems, argv, message):
    assert problems(*argv) == [message]


def test_a_flag_without_equals_does_not_swallow_a_config(problems):
    write('config/x.py', 'widht = 1')
    assert problems('--compile', 'config/x.py') == [
        '--compile: write --compile=VALUE', "unknown key 'widht' (config/x.py:1); did you mean 'width'?"]


def test_all_problems_at_once(problems):
    write('config/x.py', "learning_rte = 1\nbatch_size = 'a'")
    assert problems('config/x.py', '--widht=3', '-h', '--compile=7') == [
        '-h: use --help',
        "unknown key 'learning_rte' (config/x.py:1); did you mean 'learning_rate'?",
        "batch_size wants int like 12, got str 'a' (config/x.py:2)",
        "unknown key 'widht' (--widht); did you mean 'width'?",
        "compile wants bool like True, got str '7' (--compile)"]


def test_a_missing_model_hides_no_other_problem(problems):
    """
    Its Config is unknown, so a key that we do not know may be right; a bad value of a known key is still bad.
    """
    assert problems('--model=nope', '--width=3', '--batch_size=a') == [
        "no model 'nope'; files that define one: stub_nanowm.py",
        "batch_size wants int like 12, got str 'a' (--batch_size)"]


def test_other_ranks_stop_silently(stub, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(SystemExit) as stop:
        stub('--learning_rte=1')
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        stub('--help')
    assert stop.value.code == 0
    assert capsys.readouterr() == ('', '')


# ---- layers ----

def test_defaults(stub):
    config = stub()
    assert config == dict(model='stub_nanowm', dataset='', data_dir='data', batch_size=12, learning_rate=6e-4,
                          run_name='x # y', compile=True, betas=(0.9, 0.95), cams=['front'], clip=None,
                          device='auto', width=64, scale=1.0, act='gelu')
    assert stub.changed == {}


def test_layers(stub):
    write('config/a.py', 'batch_size = 1\nwidth = 1\nlearning_rate = 1.0')
    write('config/b.py', 'width = 2\nlearning_rate = 2.0\nrun_name = "x # y"')
    # flags stand anywhere
    config = stub('--learning_rate=3', 'config/a.py', '--scale=5', 'config/b.py', '--scale=6')
    keys = 'batch_size', 'width', 'learning_rate', 'scale'
    assert [config[key] for key in keys] == [1, 2, 3.0, 6.0]
    assert stub.changed == {'batch_size': 'config/a.py:1', 'width': 'config/b.py:1',
                            'learning_rate': '--learning_rate', 'scale': '--scale'}


def test_globals_are_written_back_and_only_the_scripts_own(stub):
    write('config/a.py', '_w = 3\nbatch_size = 5\nwidth = _w')
    stub('config/a.py', '--clip=2')
    g = stub.globals
    assert (g['batch_size'], g['clip'], g['_private'], g['math']) == (5, 2, 3, math)
    assert 'width' not in g and '_w' not in g and '__builtins__' in g


def test_nothing_is_written_back_on_a_problem(stub, capsys):
    with pytest.raises(SystemExit):
        stub('--batch_size=5', '--nope=1')
    assert stub.globals['batch_size'] == 12


def test_model_is_chosen_by_file_and_flag(stub, tmp_path, monkeypatch):
    for name, width in ('stub_a', 1), ('stub_b', 2):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f'{name}.py').write_text(MODEL.replace('64', str(width)))
    write('config/a.py', "model = 'stub_a'")
    assert stub('config/a.py')['width'] == 1
    assert stub('--model=stub_b', 'config/a.py')['width'] == 2


def test_a_model_with_a_broken_import_keeps_its_traceback(stub, tmp_path):
    (tmp_path / 'stub_broken.py').write_text('import no_such_package_here\n' + MODEL)
    with pytest.raises(ModuleNotFoundError, match='no_such_package_here'):
        stub('--model=stub_broken')


def test_a_key_with_two_owners_is_a_bug(problems):
    assert problems(width=3) == ['width is a key of train.py and of stub_nanowm.Config: rename the latter']


def test_script_without_owners(capsys):
    g = {'__file__': 'sample.py', 'seed': 1}
    assert configure(g, argv=['--seed=2']) == ({'seed': 2}, {'seed': '--seed'}) and g['seed'] == 2
    with pytest.raises(SystemExit):
        configure(g, argv=['--width=3'])
    assert capsys.readouterr().err == "unknown key 'width' (--width)\n"


# ---- owners: everybody else who has keys ----

def owner(wanted):
    """What a checkpoint would say: its keys are a fact of it, and which they are depends on other keys."""
    if wanted['dataset'] == 'broken':
        sys.exit('data/broken is damaged; make it again')
    yield Owner('protocol', {'horizon': 7, 'horizons': (1, 10)}, __file__)
    yield Owner('', {}, '', {'horizon': 9, 'nobody': 3}, 'ckpt/meta.json')


def test_owners_are_asked_with_what_is_wanted(stub):
    asked = []

    def owners(wanted):
        asked.append(dict(wanted))
        return owner(wanted)
    write('config/a.py', 'batch_size = 3')
    config = stub('config/a.py', '--run_name=x', '--horizons=5,6', '--horizon=9', owners=owners)
    assert (config['horizon'], config['horizons'], config['batch_size']) == (9, (5, 6), 3)
    assert 'nobody' not in config and 'width' not in config
    assert stub.changed == {'horizon': '--horizon', 'horizons': '--horizons', 'batch_size': 'config/a.py:1',
                            'run_name': '--run_name'}
    # texts of flags are not read yet: whose keys are they?
    wanted, = asked
    assert (wanted['batch_size'], wanted['horizon'], wanted['learning_rate']) == (3, '9', 6e-4)


def test_owners_may_refuse_and_facts_may_not_be_contradicted(problems):
    assert problems('--horizon=8', owners=owner) == [
        'horizon = 8 (--horizon) contradicts ckpt/meta.json: 9; delete it, the data decides']
    assert problems('--dataset=broken', '--horizn=3', '--batch_size=a', owners=owner) == [
        'data/broken is damaged; make it again', "batch_size wants int like 12, got str 'a' (--batch_size)"]


def test_owners_are_shown_by_help(stub, capsys):
    with pytest.raises(SystemExit) as stop:
        stub('--help', '--horizons=3', owners=owner)
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == '' and '\nprotocol\n' in out
    assert '  horizon              7 -> 9\n' in out and '  horizons             (1, 10) -> (3,)\n' in out


# ---- facts of the dataset ----

def test_facts_fill_config_fields_only(stub, monkeypatch):
    fake_data(monkeypatch, {'facts': {'width': 32, 'scale': 2, 'batch_size': 99, 'episodes': 7}})
    config = stub('--dataset=wall')
    assert (config['width'], config['scale'], config['batch_size']) == (32, 2.0, 12)
    assert type(config['scale']) is float
    assert 'episodes' not in config
    meta = os.path.join('data', 'wall', 'meta.json')
    assert stub.changed == {'width': meta, 'scale': meta, 'dataset': '--dataset'}


def test_a_contradicted_fact(problems, monkeypatch):
    fake_data(monkeypatch, {'facts': {'width': 32}})
    write('config/x.py', "dataset = 'wall'\n\n\nwidth = 64")
    meta = os.path.join('data', 'wall', 'meta.json')
    message = f'width = 64 (config/x.py:4) contradicts {meta}: 32; delete it, the data decides'
    assert problems('config/x.py') == [message]               # though 64 is the default: the user said it
    assert problems('config/x.py', '--width=1e1') == [
        message, message.replace('64 (config/x.py:4)', '10 (--width)')]


def test_an_agreeing_user_is_no_problem(stub, monkeypatch):
    fake_data(monkeypatch, {'facts': {'width': 32, 'scale': 2}})
    assert stub('--dataset=wall', '--width=32', '--scale=2.0')['width'] == 32


def test_a_fact_of_the_wrong_type(problems, monkeypatch):
    fake_data(monkeypatch, {'facts': {'width': 'wide'}})
    meta = os.path.join('data', 'wall', 'meta.json')
    assert problems('--dataset=wall') == [f"width wants int like 64, got str 'wide' ({meta})"]


def test_missing_dataset_is_one_problem_among_others(problems, monkeypatch):
    fake_data(monkeypatch, {})
    folder = os.path.join('data', 'nope')
    assert problems('--dataset=nope', '--widht=3') == [
        f'{folder}/meta.json not found; make it', "unknown key 'widht' (--widht); did you mean 'width'?"]


# ---- config files: inheritance, places, exceptions ----

INHERIT = "exec(open('config/base.py').read())", "inherit('base.py')"      # the old way, and ours


@pytest.mark.parametrize('inherit', INHERIT)
def test_inheritance(stub, inherit):
    write('config/base.py', '_w = 8\nwidth = _w * 2\nlearning_rate = 1.0')
    write('config/child.py', f'{inherit}\nlearning_rate *= 2')
    config = stub('config/child.py')
    assert (config['width'], config['learning_rate']) == (16, 2.0)
    assert stub.changed == {'width': 'config/child.py, inherited', 'learning_rate': 'config/child.py:2'}


def test_inherit_means_the_file_beside_this_one(stub, tmp_path, monkeypatch):
    """From any working folder, over any number of files, each naming the next from where it lies itself."""
    (tmp_path / 'config' / 'old').mkdir()
    write('config/old/oldest.py', '_w = 5\nwidth = _w\nbatch_size = 1\nscale = 1.5')
    write('config/old/older.py', "inherit('oldest.py')\nwidth = 2 * _w\nlearning_rate = 1.0")
    write('config/child.py', "inherit('old/older.py')\nlearning_rate *= 3")
    monkeypatch.chdir(tmp_path.parent)
    child = f'{tmp_path.name}/config/child.py'
    config = stub(child)
    assert [config[key] for key in ('width', 'batch_size', 'scale', 'learning_rate')] == [10, 1, 1.5, 3.0]
    inherited = dict.fromkeys(('width', 'batch_size', 'scale'), f'{child}, inherited')
    assert stub.changed == inherited | {'learning_rate': f'{child}:2'}
    assert stub(str(tmp_path / 'config' / 'child.py')) == config


@pytest.mark.parametrize('inherit', INHERIT)
def test_place_of_inherited_and_repeated_keys(problems, inherit):
    write('config/base.py', 'widht = 8\nbatch_size = 3')
    write('config/child.py', f"{inherit}\nbatch_size = 4\n"
                             "for act in ('a', 'b'):\n    if act:\n        batch_size = 'c'\n"
                             "def f():\n    batch_size = 2")
    assert problems('config/child.py') == [
        "unknown key 'widht' (config/child.py, inherited); did you mean 'width'?",
        "batch_size wants int like 12, got str 'c' (config/child.py:5)"]


@pytest.mark.parametrize('text, message', [
    ('x = 1\nwidth = (', "config/x.py:2: SyntaxError: '(' was never closed (x.py, line 2)"),
    ('\n_a = undefined', "config/x.py:2: NameError: name 'undefined' is not defined"),
    ('def f():\n    return 1 / 0\n\n\nf()', 'config/x.py:2: ZeroDivisionError: division by zero'),
    ("exec('1 +')", 'config/x.py:1: SyntaxError: invalid syntax (<string>, line 1)'),
    ("\nexec(open('config/none.py').read())",
     "config/x.py:2: FileNotFoundError: [Errno 2] No such file or directory: 'config/none.py'"),
    ("raise ValueError('a\\nb')", 'config/x.py:1: ValueError: a b'),
    ("\ninherit('none.py')",
     "config/x.py:2: FileNotFoundError: [Errno 2] No such file or directory: 'config/none.py'"),
    ('width = 3\nimport sys\nsys.exit(0)', 'config/x.py:3: SystemExit: 0'),          # would look like success
    ('exit()', 'config/x.py:1: SystemExit: None'),
])
def test_exception_in_a_file_is_one_line(problems, text, message):
    write('config/x.py', text)
    assert problems('config/x.py') == [message]


# ---- help ----

def test_help(stub, capsys):
    write('config/x.py', 'batch_size = 7         # small\nwidth = 3')
    with pytest.raises(SystemExit) as stop:
        stub('config/x.py', '--help', '--dataset=not_there')
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == ''
    script, model = out.split('\nstub_nanowm.Config\n')
    assert script.startswith('\ntrain.py\n')
    keys = [line.split(None, 1) for line in out.splitlines() if line.startswith('  ')]
    rows = {key: [cell.strip() for cell in row.split('  ') if cell.strip()] for key, row in keys}
    assert rows['batch_size'] == ['12 -> 7', 'samples per step']
    assert rows['run_name'] == ["'x # y'", 'shown in curves']
    assert rows['data_dir'] == ["'data'", 'where "# hash" is no comment']
    assert rows['compile'] == ['True']
    assert rows['width'] == ['64 -> 3', 'pixels'] and rows['act'] == ["'gelu'", "'gelu' | 'relu'"]
    assert 'width' in model and 'width' not in script and '_private' not in out and 'math' not in out


def test_help_still_reports_problems(stub, capsys):
    with pytest.raises(SystemExit) as stop:
        stub('--help', '--widht=3')
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and 'batch_size' in out and err.startswith("unknown key 'widht'")


def test_a_file_that_inherits_itself(problems):
    write('config/x.py', "\ninherit('x.py')")
    line, = problems('config/x.py')
    assert line.startswith('config/x.py:2: RecursionError: ')


def test_a_config_of_another_script_is_one_line(problems):
    """A config of another script would fill the screen; a few misspelt keys do not."""
    write('config/x.py', 'batch_size = 3\n' + '\n'.join(f'other_{i} = {i}' for i in range(6)))
    assert problems('config/x.py', '--widht=3') == [
        'config/x.py: most of its 7 keys are unknown to train.py; is it for another script?',
        "unknown key 'widht' (--widht); did you mean 'width'?"]
    write('config/x.py', 'other_0 = 1\nother_1 = 2\nother_2 = 3\nbatch_size = 3')
    assert problems('config/x.py') == [f"unknown key 'other_{i}' (config/x.py:{i + 1})" for i in range(3)]


def test_a_config_that_exits_does_not_end_the_run_as_done(tmp_path):
    write(tmp_path / 'x.py', 'import sys\nsys.exit(0)')
    assert one_line(script('train.py', tmp_path / 'x.py', code=2)[1]) == f'{tmp_path}/x.py:2: SystemExit: 0'


# ---- processes of their own ----

def test_from_another_folder_and_without_heavy_imports(stub, tmp_path):
    """Torch is not needed, nor is the dataset, nor a particular working folder."""
    look = "print(batch_size, [m for m in ('torch', 'numpy', 'data') if m in sys.modules])"
    write(tmp_path / 'run.py', f'import sys\nsys.path.append({ROOT!r})\nfrom configurator import configure\n'
          f'{SCRIPT}\nconfigure(globals())\n{look}\n')
    out = subprocess.run([sys.executable, str(tmp_path / 'run.py'), '--batch_size=5'], cwd=tmp_path.parent,
                         text=True, capture_output=True)
    assert (out.stdout, out.stderr) == ('5 []\n', '')


def test_a_stop_during_imports_is_one_line(tmp_path):
    """Importing torch takes seconds; here a module of that name, found first, says when it begins."""
    write(tmp_path / 'torch.py', "import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = start('train.py', PYTHONPATH=str(tmp_path))
    assert process.stdout.readline() == 'importing\n'
    process.send_signal(signal.SIGTERM)
    began = time.time()
    assert finish(process, 128 + signal.SIGTERM) == ('', '\nstopped\n') and time.time() - began < 2


# ---- invariants ----

scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(scalar | st.lists(scalar, max_size=3) | st.tuples(scalar, scalar, st.tuples(scalar)))
def test_every_plain_value_fits_itself(value):
    assert fit(value, value) == value and type(fit(value, value)) is type(value)
    assert fit(value, None) == value and fit(value, 'auto') == value


@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.tuples(st.floats(-10, 10))
       | st.lists(st.integers(), max_size=3))
def test_a_default_printed_by_help_can_be_given_back_as_a_flag(value):
    back = fit(read_flag(repr(value), value), value)
    assert back == value and type(back) is type(value)


@given(st.text(), st.sampled_from([True, 1, 1.0, 'x', 'auto', None, (1.0,), ['a']]))
def test_any_text_is_accepted_or_refused_never_anything_else(text, default):
    try:
        value = fit(read_flag(text, default), default)
    except (TypeError, ValueError, OverflowError):
        return
    assert default in (None, 'auto') or type(value) is type(default)
