"""
Bad input, as users and their disks give it: each gets exactly one clear line on stderr, exit code 1 or 2, no
traceback, and leaves every folder as it was. One table a command; what a process of its own has to show
(signals, kills, ranks, full disks) is in test_train.py.
"""
import glob
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, finish, one_line, script, start
from safetensors.torch import load_file, save_file
from test_eval_dynamics import episode as robot_episode
from test_eval_dynamics import make_robot

TRAIN = ['train.py', '--dataset=tiny_pixels', '--data_dir={data}', '--out_dir={new}', *TINY, '--max_steps=3']
RESUME = [*TRAIN, '--out_dir={nano}', '--max_steps=5', '--resume=True', '--ema_decay=0.9']
ARM = ['train.py', '--model=arx5_gpt', '--dataset=robot', '--data_dir={data}', '--out_dir={new}',
       '--device=cpu', '--depth=1', '--heads=2', '--hidden=16', '--history=8', '--chunk=4', '--batch_size=4',
       '--val_batches=1', '--max_steps=2']
EVAL = ['eval.py', '--ckpt={nano}', '--n_clips=4', '--device=cpu']
JUDGE_ARM = ['eval.py', '--ckpt={arm}', '--n_clips=4', '--horizons=1,5', '--device=cpu',
             '--every_frame=False']
SAMPLE = ['sample.py', '--ckpt={nano}', '--n_clips=1', '--length=3', '--device=cpu']
DRAW_ARM = ['sample.py', '--ckpt={arm}', '--length=5', '--device=cpu']


@pytest.fixture(scope='module')
def whole(data_dir, tmp_path_factory):
    """
    -> {name: path} of data/{tiny_pixels,robot,short}, a run on each of the first two, nano (with averages)
    and arm, and of what nobody wants: {new} is not there, {loop} cannot be read, {file}, {link}, {fifo}.
    """
    root = tmp_path_factory.mktemp('whole')
    shutil.copytree(f'{data_dir}/tiny_pixels', root / 'data' / 'tiny_pixels')
    make_robot(root / 'data', n=4, val='0.5')
    make_robot(root / 'data', n=4, val='0.5', name='short', make=lambda i: robot_episode(i, length=40))
    places = {name: f'{root}/{name}' for name in ('data', 'nano', 'arm', 'new')}
    for args, out in (TRAIN, 'nano'), (ARM, 'arm'):
        more = ['--ema_decay=0.9', '--save_every=1', '--keep=2'] if out == 'nano' else []
        script(*[arg.format(**places) for arg in args], f'--out_dir={root}/{out}', *more)
    (root / 'file').write_text('a file\n')
    os.symlink('loop', root / 'loop')
    os.symlink('file', root / 'link')
    os.symlink('file', root / 'link.gif')
    os.mkfifo(root / 'fifo')
    (root / 'exits.py').write_text('import sys\nsys.exit(0)\n')
    return places | {path.name.split('.')[0]: str(path) for path in root.iterdir()} | {'root': str(root)}


@pytest.fixture
def copy(whole, tmp_path):
    """The same, to be damaged; the metas of the runs, which name the folder in which they were made, too."""
    old, root = whole['root'], f'{tmp_path}/w'
    os.mkdir(root)
    for name in ('data', 'nano', 'arm'):
        shutil.copytree(whole[name], f'{root}/{name}')
    for path in glob.glob(f'{root}/*/step_*/meta.json'):
        with open(path) as f:
            text = f.read()
        with open(path, 'w') as f:
            f.write(text.replace(f'{old}/', f'{root}/'))
    yield {name: path.replace(old, root) for name, path in whole.items()}
    shutil.rmtree(root)


def listing(root):
    """{path: content or kind} of all below, except the lock, which only says that somebody was there."""
    found = {}
    for folder, _, files in os.walk(root):
        found[folder] = 'folder'
        for name in files:
            path = os.path.join(folder, name)
            plain = os.path.isfile(path) and not os.path.islink(path)
            if name != 'lock':
                found[path] = open(path, 'rb').read() if plain else 'no file'
    return found


def refused(args, code, words, places):
    """It says one line with these words, exits with this code, and leaves everything as it was."""
    before = listing(places['root'])
    said, errors = script(*[str(arg).format(**places) for arg in args], code=code)
    line = one_line(errors)
    for word in [words] if isinstance(words, str) else words:
        assert word.format(**places) in line, line
    after = listing(places['root'])
    left = sorted(after.keys() - before.keys(), reverse=True)
    for path in left:                                        # or other tests would stumble over it
        if after[path] == 'folder':
            os.rmdir(path)
        else:
            os.remove(path)
    assert not left and before == {path: content for path, content in after.items() if path not in left}
    return said


def rows(*table):
    """(name, ...) of each row becomes the id of its test."""
    return pytest.mark.parametrize('row', [row[1:] for row in table], ids=[row[0] for row in table])


# ---- train.py: keys ----

def impossible(*texts):
    """A row for each `key=value: words`."""
    table = []
    for text in texts:
        flag, _, words = text.partition(': ')
        table.append((flag, [f'--{flag}'], 1, words or flag.replace('=', ' = ')))
    return table


@rows(*impossible(
    'grad_clip=-1', 'keep=-1', 'keep_every=-1', 'ema_power=-1', 'ema_decay=1.5', 'ema_decay=-0.1',
    'max_steps=-1', 'log_every=0', 'log_every=-1', 'val_every=-1', 'val_batches=0', 'save_every=-1',
    'eval_every=-1', 'warmup_steps=-1', 'lr_decay_steps=-1', 'min_lr=-1', 'lr=-1', 'lr=inf',
    'weight_decay=-1', 'weight_decay=inf', 'batch_size=0', 'batch_size=-4',
    'batch_size=1e10: batch_size = 10000000000: must', 'micro_batch=-1', 'seed=-1',
    'seed=18446744073709551616', 'seed=9223372036854775808',
    'betas=0.9: betas = ', 'betas=0.9,1: betas = ', 'betas=0.9,-0.1: betas = ', 'betas=0.9,0.9,0.9: betas = ',
    'dtype=float16: dtype = ', 'lr_schedule=linear: lr_schedule = ', 'log=mlflow: log = ',
    'best_metric=loss: best_metric = ', 'best_metric=eval/psnr: best_metric = ',
    'best_mode=most: best_mode = ', 'compile=maybe: compile = ', 'data_on_device=maybe: data_on_device = ',
    # of the model
    'depth=0', 'depth=-2', 'depth=3', 'heads=0', 'heads=3: a multiple of 4 * heads = 12', 'heads=-2',
    'patch=0', 'patch=5', 'patch=-4', 'hidden=0', 'hidden=33', 'hidden=-32', 'num_frames=0', 'num_frames=-1',
    'frame_skip=0', 'frame_skip=-1', 'snr_gamma=-1', 'num_frames=13: a window spans 13 frames',
    'injection=film2: injection = ', 'p_noise=2',
    # devices
    "device=cuda: device = 'cuda", 'device=cuda:9: device = ', 'device=mps: device = ',
    "device=0: device = '0'", "device=: device = ''",
    # places
    "out_dir=: out_dir = ''", 'out_dir={file}: out_dir = {file}: File exists',
    'out_dir={file}/x: out_dir = {file}/x: Not a directory', 'out_dir={loop}: out_dir = {loop}: ',
    'out_dir=/proc/x: out_dir = /proc/x: ', 'out_dir={nano}: already holds a run: --resume=True',
    'init_from={new}: no checkpoint in ', 'init_from={file}: is a file',
    'init_from={arm}: it holds a arx5_gpt'))
def test_keys_of_train(row, whole):
    flags, code, words = row
    if flags == ['--device=cuda'] and torch.cuda.is_available():
        pytest.skip('there is one')
    refused([*TRAIN, *flags], code, words, whole)


@rows(*impossible(
    'history=0', 'history=-1', 'chunk=0', 'members=0', 'members=-1', 'unroll=0', 'unroll=9', 'noise=-1',
    'noise_steps=-1', 'action_repr=dleta: action_repr = ', 'state_pred=x: state_pred = ', 'depth=-2',
    'hidden=15', 'heads=3',
    'batch_size=3: 3 samples per GPU and pass are no multiple of members = 2',
    'dataset=short --eval_every=1: eval_every = 1, the dynamics protocol: '))
def test_keys_of_train_for_the_arm(row, whole):
    flags, code, words = row
    refused([*ARM, *flags[0].split()], code, words, whole)


@rows(
    ('no data', [*TRAIN, '--dataset='], 1, "dataset = '': name a folder"),
    ('no such data', [*TRAIN, '--dataset=nope'], 2, '{data}/nope/meta.json not found; '),
    ('data are a file', [*TRAIN, '--data_dir={root}', '--dataset=file'], 2,
     '{file} is a file, no data folder; '),
    ('data cannot be read', [*TRAIN, '--data_dir={root}', '--dataset=loop'], 2,
     '{loop}/meta.json: Too many levels'),
    ('no such model', [*TRAIN, '--model=nanovm'], 2, "no model 'nanovm'; files that define one: "),
    ('other code as a model', [*TRAIN, '--model=tests.conftest'], 2, "no model 'tests.conftest'; files that"),
    ('no model', [*TRAIN, '--model=metrics'], 2, 'metrics.py is no model yet: no @dataclass Config; no PAD'),
    ('a fact contradicted', [*TRAIN, '--width=17'], 2,
     'width = 17 (--width) contradicts {data}/tiny_pixels/meta.json'),
    ('wrong type', [*TRAIN, '--lr=fast'], 2, "lr wants float like 0.0001, got str 'fast' (--lr)"),
    ('unknown key', [*TRAIN, '--learning_rate=1'], 2, "unknown key 'learning_rate' (--learning_rate)"),
    ('key value', [*TRAIN, '--lr', '1'], 2, '--lr 1: write --lr=1'),
    ('no such config', ['train.py', 'config/nosuch.py'], 2, 'config/nosuch.py: there is no such file'),
    ('a config that exits', ['train.py', '{exits}'], 2, '{exits}:2: SystemExit: 0'),
    ('half a metric', [*ARM, '--eval_every=1', '--best_metric=eval'], 1, "best_metric = 'eval': choose "))
def test_what_train_is_given(row, whole):
    args, code, words = row
    refused(args, code, words, whole)


# ---- damaged checkpoints ----

def rewrite(path, change):
    """change(content) -> the new content of a JSON file."""
    with open(path) as f:
        content = json.load(f)
    with open(path, 'w') as f:
        json.dump(change(content), f)


def put(content, file):
    """Damage: these bytes instead of a file of the last step of nano."""
    def damage(places):
        with open(f'{places["nano"]}/step_0000003/{file}', 'wb') as f:
            f.write(content)
    return damage


def tensors(file, change):
    """Damage: change({key: tensor}) -> what a safetensors file of nano then holds."""
    def damage(places):
        path = f'{places["nano"]}/step_0000003/{file}'
        save_file(change(load_file(path)), path)
    return damage


def state(change):
    def damage(places):
        path = f'{places["nano"]}/step_0000003/state.pt'
        torch.save(change(torch.load(path, weights_only=True)), path)
    return damage


def meta(**entries):
    """Damage: entries of meta.json; None deletes one."""
    def damage(places):
        def change(content):
            return {key: value for key, value in (content | entries).items() if value is not None}
        rewrite(f'{places["nano"]}/step_0000003/meta.json', change)
    return damage


def pointer(which, text):
    """Damage: the file `latest` or `best`; None deletes it."""
    def damage(places):
        path = f'{places["nano"]}/{which}'
        os.remove(path)
        if text is not None:
            with open(path, 'w') as f:
                f.write(text)
    return damage


def gone(*names):
    def damage(places):
        for name in names:
            os.remove(f'{places["nano"]}/step_0000003/{name}')
    return damage


def without(weights, key):
    return {name: value for name, value in weights.items() if name != key}


def nans(weights):
    return {key: torch.full_like(value, torch.nan) if value.is_floating_point() else value
            for key, value in weights.items()}


LAST = '{nano}/step_0000003'
TAKE = 'take another checkpoint'
FIRST = 'x_embedder.proj.weight'
GONE = {'config': None}


@rows(
    ('state garbage', put(os.urandom(300), 'state.pt'), RESUME, [f'cannot read {LAST}/state.pt: ', TAKE]),
    ('state text', put(b'hello\n', 'state.pt'), RESUME, [f'cannot read {LAST}/state.pt: ', TAKE]),
    ('state empty', put(b'', 'state.pt'), RESUME, [f'cannot read {LAST}/state.pt: ', TAKE]),
    ('state {}', state(lambda s: {}), RESUME, [f'{LAST}/state.pt is damaged', TAKE]),
    ('state of other parameters', state(lambda s: s | {'params': [['x', [1]]] + s['params'][1:]}), RESUME,
     [f'{LAST}/state.pt and the model differ in ', '--init_from']),
    ('state of other shapes', state(lambda s: s | {'params': [[n, [7]] for n, _ in s['params']]}), RESUME,
     [f'{LAST}/state.pt and the model differ in ', '--init_from']),
    ('state gone', gone('state.pt'), RESUME, f'cannot read {LAST}/state.pt: No such file'),
    ('weights torn', put(b'\x08\0\0\0\0\0\0\0{"a":', 'model.safetensors'), RESUME,
     [f'cannot read {LAST}/model.safetensors: ', TAKE]),
    ('weights gone', gone('model.safetensors'), RESUME, f'cannot read {LAST}/model.safetensors: No such'),
    ('ema lacks a key', tensors('ema.safetensors', lambda w: without(w, FIRST)), RESUME,
     [FIRST, 'ema.safetensors']),
    ('ema of another shape', tensors('ema.safetensors', lambda w: w | {FIRST: torch.zeros(3)}), RESUME,
     [FIRST, 'ema.safetensors']),
    ('meta binary', put(b'\xff\xfe\0\x81', 'meta.json'), RESUME, [f'cannot read {LAST}/meta.json: ', TAKE]),
    ('meta a list', put(b'[]', 'meta.json'), RESUME, [f'cannot read {LAST}/meta.json: it holds a lis', TAKE]),
    ('meta null', put(b'null', 'meta.json'), RESUME, [f'cannot read {LAST}/meta.json: it holds a No', TAKE]),
    ('meta {}', put(b'{}', 'meta.json'), RESUME, [f'{LAST}/meta.json has no model, model_config, con', TAKE]),
    ('meta without step', meta(step=None), RESUME, [f'{LAST}/meta.json has no step', TAKE]),
    ('meta of another model', meta(model='arx5_gpt'), RESUME, f'{LAST} holds a arx5_gpt, not a nanowm'),
    ('meta of another size', meta(model_config={'hidden': 3}), RESUME, f'{LAST} was trained with hidden = 3'),
    ('latest gone', pointer('latest', None), RESUME, '{nano} holds step_0000002, step_0000003 but no file'),
    ('latest empty', pointer('latest', ''), RESUME, '{nano} holds step_0000002, step_0000003 but no file'),
    ('latest names nothing', pointer('latest', 'step_0000009'), RESUME,
     ["{nano}/latest names 'step_0000009', which is not there; step folders: step_0000002, step_0000003"]),
    ('another model', lambda places: None, [*ARM, '--out_dir={nano}', '--resume=True'],
     f'{LAST} holds a nanowm, not a arx5_gpt'),
    ('other data', lambda places: facts('tiny_pixels', facts__more=1)(places), RESUME,
     f'{LAST} was trained on other data than '),
    ('no averages', gone('ema.safetensors'), RESUME, f'cannot read {LAST}/ema.safetensors: No such file'))
def test_damaged_checkpoints_are_not_gone_on_from(row, copy):
    damage, args, words = row
    damage(copy)
    refused(args, 1, words, copy)


@rows(
    ('no checkpoint', None, ['--ckpt='], 'which checkpoint? --ckpt=OUT_DIR of a run'),
    ('nowhere', None, ['--ckpt={new}'], "no checkpoint in '{new}'"),
    ('a file', None, ['--ckpt={file}'], '--ckpt={file} is a file; give the OUT_DIR'),
    ('unreadable', None, ['--ckpt={loop}'], '{loop}'),
    ('no such pointer', None, ['--which=newest'], "(no file 'newest')"),
    ('best names nothing', pointer('best', 'step_0000009'), ['--which=best'], "best names 'step_0000009'"),
    ('latest gone', pointer('latest', None), [], "no checkpoint in '{nano}' (no file 'latest')"),
    ('latest empty', pointer('latest', '\n'), [], "no checkpoint in '{nano}' (no file 'latest')"),
    ('other code', meta(model='out.evil.evil'), [], "no model 'out.evil.evil'; files that define one: "),
    ('a model that went', meta(model='nanovm'), [], "no model 'nanovm'; files that define one: "),
    ('a field that went', meta(model_config={'heat': 3}), [], 'does not fit nanowm.py'),
    ('an impossible field', meta(model_config={'depth': 3, 'input': 'video'}), [], 'depth = 3'),
    ('meta torn', put(b'{"model": ', 'meta.json'), [], [f'cannot read {LAST}/meta.json: ', TAKE]),
    ('meta a list', put(b'[]', 'meta.json'), [], [f'cannot read {LAST}/meta.json: ', TAKE]),
    ('meta without config', meta(config=None), [], [f'{LAST}/meta.json has no config', TAKE]),
    ('weights torn', put(b'\x08\0', 'ema.safetensors'), [], [f'cannot read {LAST}/ema.safetensors: ', TAKE]),
    ('weights gone', gone('ema.safetensors', 'model.safetensors'), [],
     f'cannot read {LAST}/model.safetensors'),
    ('weights lack a key', tensors('ema.safetensors', lambda w: without(w, FIRST)), [], f'lacks {FIRST}'),
    ('weights with another key', tensors('ema.safetensors', lambda w: w | {'x': torch.ones(1)}), [],
     'has unknown x'),
    ('no such data', None, ['--dataset=nope'], '{data}/nope/meta.json not found'),
    ('data a file', None, ['--data_dir={root}', '--dataset=file'], '{file} is a file, no data folder'),
    ('data of another kind', None, ['--dataset=robot'], '{data}/robot'),
    ('a config of train.py', None, ['config/minihack_wm_cpu.py'],
     ['config/minihack_wm_cpu.py: most of its ', 'is it for another script?']),
    ('key value', None, ['--which', 'best'], '--which best: write --which=best'),
    ('a key of the network', None, ['--hidden=64'], "unknown key 'hidden' (--hidden)"),
    ('an impossible key of sampling', None, ['--sample_steps=0'], 'sample_steps = 0'),
    ('no such way of sampling', None, ['--sampling=parallel'], 'sampling = '),
    ('no such device', None, ['--device=cuda:9'], "device = 'cuda:9': "),
    ('no device', None, ['--device='], "device = '': "))
@pytest.mark.parametrize('command', (EVAL, SAMPLE), ids=lambda args: args[0])
def test_what_eval_and_sample_are_given(command, row, request):
    damage, flags, words = row
    places = request.getfixturevalue('copy' if damage else 'whole')
    if damage:
        damage(places)
    assert refused([*command, *flags], (1, 2), words, places) == ''


@rows(
    ('out below nothing that can be made', ['--out={file}/x.json'], '--out={file}/x.json: '),
    ('out a folder', ['--out={data}'], '--out={data}'),
    ('out a link', ['--out={link}'], '--out={link}'),
    ('out a pipe', ['--out={fifo}'], '--out={fifo}'),
    ('out unreadable', ['--out={loop}'], '--out={loop}'),
    ('refused later', ['--out={new}/x/y.json', '--horizon=12'], 'a window spans 13 frames'),
    ('no such protocol', ['--protocol=vidoe'], '--protocol=vidoe'),
    ('not understood', ['--protocol=dynamics'], '--protocol=dynamics: nanowm is judged by video'),
    ('other code as a protocol', ['--protocol=..train'], '--protocol=..train'),
    ('too long', ['--horizon=12'], 'a window spans 13 frames, the longest of 4 episodes has 12'),
    ('no clips', ['--n_clips=0'], 'n_clips = 0'), ('horizon', ['--horizon=-1'], 'horizon = -1'),
    ('context', ['--n_context=-1'], 'n_context = -1'), ('batch', ['--batch_size=0'], 'batch_size = 0'),
    ('seed', ['--seed=-1'], 'seed = -1'))
def test_what_eval_alone_is_given(row, whole):
    flags, words = row
    assert refused([*EVAL, *flags], (1, 2), words, whole) == ''


@rows(
    ('horizons', ['--horizons='], 'horizons = ()'),
    ('a horizon of 0', ['--horizons=0,5'], 'horizons = (0, 5)'),
    ('beyond the episodes', ['--horizons=200'], 'the longest of 2 episodes has 140'),
    ('lags', ['--lags=0'], 'lags = (0,)'),
    ('more lags than context', ['--n_context=4', '--lags=8'],
     'lags = (8,): least squares over 8 frames, but n_context = 4'),
    ('one frame', ['--n_context=1'], 'n_context = 1: velocities and past commands take two frames'),
    ('png below a file', ['--png={file}/x.png'], '--png={file}/x.png'),
    ('png a link', ['--png={link}'], '{link}'),
    ('png a gif', ['--png={new}.gif'], '--png={new}.gif'),
    ('short episodes', ['--dataset=short', '--horizons=100'], 'the longest of 2 episodes has 40'),
    ('no simulator', ['--protocol=plan'], 'plan protocol: {data}/robot/meta.json names no simulator'))
def test_what_dynamics_is_given(row, whole):
    flags, words = row
    args = JUDGE_ARM if '--protocol=plan' not in flags else ['eval.py', '--ckpt={arm}', '--device=cpu']
    assert refused([*args, *flags], 1, words, whole) == ''


@rows(
    *[(flag, [f'--{flag}'], flag.replace('=', ' = ')) for flag in (
        'horizon=-1', 'knots=0', 'n_samples=1', 'n_iters=-1', 'n_elites=1', 'n_elites=-1', 'n_clips=-1',
        'seed=-1', 'n_keep=-2', 'n_proposals=-2', 'futures_at_once=-1')],
    *[(flag, [f'--{flag}'], f'{flag.split("=")[0]}: only where goals are pictures') for flag in (
        'n_keep=2', 'n_proposals=8', 'frame=last', 'family=near', 'gif={new}.gif')],
    ('more elites than samples', ['--n_samples=4', '--n_elites=5'], 'n_elites = 5'))
def test_what_plan_is_given(row, whole):
    flags, words = row
    refused(['eval.py', '--ckpt={arm}', '--protocol=plan', '--device=cpu', *flags], 1, words, whole)


@rows(
    ('out of an unknown kind', ['--out={new}.mp4'], '--out={new}.mp4'),
    ('out without a name', ['--out=.gif'], '.gif'), ('out a folder', ['--out={data}'], '{data}'),
    ('out a link', ['--out={root}/link.gif'], '{root}/link.gif'),
    ('out below a file', ['--out={file}/x.gif'], '{file}/x.gif'),
    ('too long', ['--length=12'], 'a window spans 13 frames, the longest of 4 episodes has 12'),
    ('no such split', ['--split=test'], 'knows no test/'), ('scale', ['--scale=-1'], 'scale = -1: want 0'),
    ('a huge scale', ['--scale=100000'], 'scale = 100000: want 0'), ('fps', ['--fps=-1'], 'fps = -1: want'),
    ('half a picture', ['--fps=0.5'], 'fps wants int'), ('clips', ['--n_clips=-1'], 'n_clips = -1: want'),
    ('length', ['--length=-1'], 'length = -1'), ('stride', ['--stride=0'], 'stride = 0'),
    ('seed', ['--seed=-1'], 'seed = -1'), ('context', ['--n_context=-1'], 'n_context = -1'),
    ('futures', ['--futures=-1'], 'futures = -1'), ('versus', ['--versus={arm}'], 'versus='))
def test_what_sample_alone_is_given(row, whole):
    flags, words = row
    assert refused([*SAMPLE, *flags], (1, 2), words, whole) == ''


@rows(('stride of an arm', ['--stride=2'], '--stride=2 means nothing to '),
      ('futures of an arm', ['--futures=4'], '--futures=4 means nothing to '),
      ('no room', ['--length=10000'], 'a window spans '),
      ('other data', ['--dataset=tiny_pixels'], 'tiny_pixels'))
def test_what_sample_of_an_arm_is_given(row, whole):
    flags, words = row
    refused([*DRAW_ARM, *flags], 1, words, whole)


@pytest.mark.parametrize('out', ('x.gif', 'x.png'))
def test_no_picture_of_numbers_that_are_none(copy, out):
    tensors('ema.safetensors', nans)(copy)
    refused([*SAMPLE, f'--out={{root}}/{out}'], 1, 'not finite', copy)


# ---- damaged data ----

def facts(name, **entries):
    """Damage: entries of meta.json of a dataset, `part__key` is part's; None deletes one."""
    def damage(places):
        def change(content):
            for key, value in entries.items():
                owner = content
                *parts, last = key.split('__')
                for part in parts:
                    owner = owner[part]
                owner.pop(last) if value is None else owner.update({last: value})
            return content
        rewrite(f'{places["data"]}/{name}/meta.json', change)
    return damage


def text_of(name, content):
    def damage(places):
        with open(f'{places["data"]}/{name}/meta.json', 'wb') as f:
            f.write(content)
    return damage


def episodes(change):
    """Damage: change(episodes) -> the new episodes.npy of the train split; meta.json knows its size."""
    def damage(places):
        path = f'{places["data"]}/tiny_pixels/train/episodes.npy'
        new = np.array(change(np.load(path)))
        np.save(path, new)

        def told(content):
            entry = content['files']['train/episodes.npy']
            entry |= {'shape': list(new.shape), 'dtype': str(new.dtype), 'bytes': os.path.getsize(path)}
            return content
        rewrite(f'{places["data"]}/tiny_pixels/meta.json', told)
    return damage


def cut_short(places):
    os.truncate(f'{places["data"]}/tiny_pixels/train/video.npy', 500)


def no_video(places):
    os.remove(f'{places["data"]}/tiny_pixels/train/video.npy')


def set_rows(rows, value):
    """Damage: episodes[rows] = value"""
    def change(spans):
        spans[rows] = value
        return spans
    return episodes(change)


DAMAGED = '{data}/tiny_pixels/meta.json is damaged ('
BROKEN_META = [
    ('binary', text_of('tiny_pixels', b'\xff\xfe\0\x81'), DAMAGED),
    ('empty', text_of('tiny_pixels', b''), DAMAGED),
    ('torn', text_of('tiny_pixels', b'{"facts": {'), DAMAGED),
    ('a list', text_of('tiny_pixels', b'[]'), DAMAGED),
    ('null', text_of('tiny_pixels', b'null'), DAMAGED),
    *[(f'without {part}', facts('tiny_pixels', **{part: None}), DAMAGED)
      for part in ('facts', 'files', 'stats', 'fps')],
    ('files are a list', facts('tiny_pixels', files=[]), DAMAGED),
    ('a file without a size', facts('tiny_pixels', **{'files__train/action.npy': {}}), DAMAGED),
    ('facts against arrays', facts('tiny_pixels', facts__width=17), DAMAGED),
    ('a fact that went', facts('tiny_pixels', facts__action_dim=None), DAMAGED),
    ('fps of 0', facts('tiny_pixels', fps=0), DAMAGED),
    ('fps a word', facts('tiny_pixels', fps='fast'), DAMAGED),
    ('arrows', facts('tiny_pixels', action_arrows=[[1, 0]]), DAMAGED),
    ('arrows of words', facts('tiny_pixels', action_arrows='up'), DAMAGED),
    ('sentences of numbers', facts('tiny_pixels', tasks=[1, 2]), DAMAGED),
    ('no std', facts('tiny_pixels', stats__action__std=None), DAMAGED),
    ('std 0', facts('tiny_pixels', stats__action__std=[0.0, 1.0]), DAMAGED),
    ('a mean that is none', facts('tiny_pixels', stats__action__mean=[float('nan'), 1.0]), DAMAGED),
    ('no statistics', facts('tiny_pixels', stats__action=None), DAMAGED)]
BROKEN_ARRAYS = [
    ('truncated', cut_short, 'train/video.npy is truncated or damaged (500 bytes'),
    ('missing', no_video, 'train/video.npy is missing'),
    ('negative', set_rows(0, [-3, 5]), 'episodes.npy: want 0 <= start < end'),
    ('backwards', set_rows(0, [12, 0]), 'episodes.npy: want 0 <= start < end'),
    ('beyond the end', set_rows(-1, [180, 1000]), 'episodes.npy: want 0 <= start < end'),
    ('overlapping', set_rows(1, [6, 24]), 'episodes.npy: row [6] belongs to two episodes'),
    ('twice', set_rows(1, [0, 12]), 'episodes.npy: row [0] belongs to two episodes'),
    ('1-d', episodes(lambda e: e[:, 0]), 'episodes.npy: it is int64 [16]; want int64 [E, 2]'),
    ('float', episodes(lambda e: e * 1.0), 'episodes.npy: it is float64 [16, 2]; want int64'),
    ('three columns', episodes(lambda e: e[:, [0, 1, 1]]), 'episodes.npy: it is int64 [16, 3]; want'),
    ('none', episodes(lambda e: e[:0]), 'episodes.npy: it is int64 [0, 2]; want')]


@rows(*BROKEN_META, *BROKEN_ARRAYS)
def test_damaged_data_are_not_trained_on(row, copy):
    damage, words = row
    damage(copy)
    refused(TRAIN, 2 if words == DAMAGED else 1, words, copy)


def flip(places):
    array = np.load(f'{places["data"]}/tiny_pixels/train/video.npy', mmap_mode='r+')
    array[3, 0, 0] ^= 1
    array.flush()


@pytest.mark.parametrize('args, written', [(TRAIN, True), (EVAL, False)], ids=('train', 'eval'))
def test_flipped_bits_are_seen_when_asked(copy, args, written):
    flip(copy)
    refused([*args, '--verify=True'], 1, 'train/video.npy is not what was written: sha256 ', copy)


@rows(
    ('groups a list', facts('robot', groups=[1]), 2, 'groups'),
    ('a group without unit', facts('robot', groups={'joint': {'dims': [0]}}), 2, 'groups: joint has no unit'),
    ('dims beyond', facts('robot', groups={'joint': {'dims': [7], 'unit': ''}}), 2,
     'groups: dims of joint = [7]'),
    ('rate of nothing', facts('robot', groups={'v': {'dims': [0], 'unit': '', 'rate_of': 'q'}}), 2,
     "rate_of 'q'"),
    ('q_index beyond', facts('robot', q_index=[3, 9]), 2, 'q_index = [3, 9]: want 2 entries'),
    ('q_index too short', facts('robot', q_index=[3]), 2, 'q_index = [3]: want 2 entries'),
    ('q_index a word', facts('robot', q_index='all'), 2, "q_index = 'all': want 2 entries"))
def test_damaged_robots_are_not_trained_on(row, copy):
    damage, code, words = row
    damage(copy)
    refused(ARM, code, ['{data}/robot/meta.json is damaged (', words], copy)


@pytest.mark.parametrize('env', ('data.evilset.evil', 'data.evilset.env', 'os', 'data.arx5.env.x', '../x', 3))
@pytest.mark.parametrize('args', (DRAW_ARM, ['eval.py', '--ckpt={arm}', '--protocol=plan', '--device=cpu']),
                         ids=lambda args: args[0])
def test_data_cannot_name_code_that_is_then_run(copy, env, args):
    facts('robot', env=env)(copy)
    refused(args, 1, f'env = {env!r}; want \'data.<name>.env\'', copy)


@rows(('nan in val', np.nan, 'is not finite'), ('inf in val', np.inf, 'is not finite'))
def test_numbers_that_are_none_in_val(row, copy):
    value, words = row
    for key in ('state', 'action'):
        array = np.load(f'{copy["data"]}/robot/val/{key}.npy', mmap_mode='r+')
        array[:] = value
        array.flush()
    refused(JUDGE_ARM, 1, words, copy)


# ---- making data ----

@rows(
    *[(flag, [f'--{flag}'], flag) for flag in (
        'seed=-1', 'workers=0', 'workers=-2', 'episodes=-3', 'episodes=0', 'limit=-1', 'val=1.5', 'val=x',
        'val=5-99')],
    ('out of code', ['--out=data/wall'], '--out=data/wall: this folder holds code'),
    ('out a file', ['--out={file}'], '{file}'), ('out below a file', ['--out={file}/x'], '{file}'),
    ('out cannot be written', ['--out=/proc/x'], '/proc/x'), ('out nothing', ['--out='], '--out='),
    ('out something else', ['--out={nano}'], '--out={nano} is there already, and no data set'))
@pytest.mark.parametrize('name', ('wall', 'minihack'))
def test_what_prepare_is_given(name, row, whole):
    flags, words = row
    flags = ['--out={new}', '--episodes=4', '--workers=1', *flags]
    refused([f'data/{name}/prepare.py', *flags], 1, words, whole)


@rows(*[(flag, name, flag) for name, flag in (
    ('wall', '--frames=0'), ('wall', '--frames=1'), ('wall', '--frames=-1'), ('minihack', '--moves=0'),
    ('minihack', '--moves=-1'), ('minihack', '--crop=4'), ('minihack', '--crop=-1'))])
def test_sizes_that_prepare_is_given(row, whole):
    name, flag = row
    refused([f'data/{name}/prepare.py', '--out={new}', '--limit=4', '--workers=1', flag], 1, flag, whole)


@pytest.mark.parametrize('path', ('{file}/x.gif', '{data}', '{loop}'))
def test_a_film_of_the_arm_that_cannot_be_written(whole, path):
    pytest.importorskip('mujoco', reason="needs: pip install -e '.[arx5]'")
    prepare = ['data/arx5/prepare.py', '--out={new}', '--limit=2']
    refused([*prepare, f'--render={path}'], 1, f'--render={path}', whole)


@rows(('of another model', ['{nano}', '{new}'], '{nano} holds a nanowm; only arx5_gpt'),
      ('of nothing', ['{new}', '{root}/x'], "no checkpoint in '{new}'"),
      ('into a folder', ['{arm}', '{data}'], '{data} is there already'),
      ('below a file', ['{arm}', '{file}/x'], '{file}/x'), ('without words', [], 'arx5_export.py OUT_DIR'))
def test_what_export_is_given(row, whole):
    args, words = row
    refused(['arx5_export.py', *args], 1, words, whole)


# ---- Ctrl-C while dreaming ----

INTERRUPTED = '''
import os, runpy, signal, sys
from data.loader import Store
real = Store.windows_at
def windows_at(store, ids):
    os.kill(os.getpid(), signal.SIGINT)
    return real(store, ids)
Store.windows_at = windows_at
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
'''


def test_ctrl_c_while_dreaming(whole):
    """One line, nothing written."""
    before = listing(whole['root'])
    process = start('-c', INTERRUPTED, *[arg.format(**whole) for arg in SAMPLE], PYTHONPATH=ROOT)
    assert finish(process, 128 + signal.SIGINT) == ('', '\nstopped\n')
    assert listing(whole['root']) == before
