"""
Every model file keeps the contract of this repository; found by glob, so a new model is tested from day one.
So are two forks as a student would write them, tests/fixtures: a policy and a world model, both plain MLPs.
"""
import ast
import glob
import importlib
import inspect
import json
import os
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT, one_line, script
from test_eval_dynamics import make_robot

import checkpoint
import contract
from data.loader import Store, read_meta


def models_of(folder):
    return sorted(os.path.basename(path)[:-3] for path in glob.glob(os.path.join(folder, '*.py'))
                  if re.search(r'^class Model\(', open(path).read(), re.M))


FORKS = models_of(FIXTURES)
MODELS = models_of(ROOT) + FORKS
EVERY = pytest.mark.parametrize('name', MODELS)


@pytest.fixture
def M(name, request):
    """The module of a model, of this repository or of the fixtures."""
    if name in FORKS:
        request.getfixturevalue('fixtures')
    return contract.load(name)


def build(M):
    torch.manual_seed(0)
    return M.Model(M.PRESETS['tiny'])


def test_all_models_are_known():
    assert {'nanowm', 'arx5_gpt', 'bc_mlp', 'mlp_dynamics'} <= set(MODELS)


# ---- every model ----

@EVERY
def test_contract(M, name):
    assert contract.defects(M, whole=True) == []
    model = build(M)
    assert all(isinstance(offsets, range) for offsets in M.windows(model.cfg).values())
    assert isinstance(model.configure_optimizers(1e-4, 0.01, (0.9, 0.999)), torch.optim.Optimizer)
    assert model.flops_per_sample() > 0
    for cfg in M.PRESETS.values():
        with torch.device('meta'):
            assert M.Model(cfg).cfg == cfg


@EVERY
def test_example_has_what_windows_name(M, name):
    cfg = M.PRESETS['tiny']
    batch, windows = M.example(cfg, 4), M.windows(cfg)
    assert batch.keys() == windows.keys() | ({'mask'} if M.PAD else set())
    for key, offsets in windows.items():
        assert batch[key].shape[:2] == (4, len(offsets)), key
    if M.PAD:
        assert batch['mask'].shape == (4, len(windows['action'])) and batch['mask'].dtype == torch.bool


@EVERY
def test_forward_and_gradients(M, name):
    model = build(M)
    with torch.no_grad():                        # leave the zero start, where many gradients are rightly zero
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    out = model(M.example(model.cfg, 4))
    contract.check_output(M, out)
    assert out['loss'].ndim == 0 and torch.isfinite(out['loss'])
    assert all(not value.requires_grad and value.ndim == 0 for key, value in out.items() if key != 'loss')
    out['loss'].backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), key


@EVERY
def test_state_dict_round_trip(M, name):
    model = build(M)
    torch.manual_seed(1)
    other = M.Model(M.PRESETS['tiny'])
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    other.load_state_dict(model.state_dict())
    batch = M.example(model.cfg, 4)
    losses = []
    for m in (model, other):
        torch.manual_seed(2)
        losses.append(m(batch)['loss'].item())
    assert losses[0] == losses[1]
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages), 'tie weights in forward, safetensors refuses shared ones'


@EVERY
def test_every_field_is_plain_and_commented(M, name):
    source = inspect.getsource(M.Config)
    for f in fields(M.Config):
        assert isinstance(f.default, (bool, int, float, str, tuple)), f'{f.name} has no plain default'
        assert re.search(rf'^    {f.name}: .*  # \S', source, re.M), f'{f.name} has no comment'


@EVERY
def test_no_key_has_two_owners(M, name):
    with open(os.path.join(ROOT, 'train.py')) as f:
        keys = set(re.findall(r'^([a-z]\w*) = ', f.read().split('config, changed = configure')[0], re.M))
    assert len(keys) > 20 and not keys & {f.name for f in fields(M.Config)}
    for path in PROTOCOLS:
        protocol = importlib.import_module(f'protocols.{os.path.basename(path)[:-3]}')
        if hasattr(protocol, 'Keys'):                        # eval.py takes both
            both = {f.name for f in fields(protocol.Keys)} & set(contract.sampling(M))
            assert not both, f'{both} of {path}'


@EVERY
def test_overfits_one_batch(M, name):
    """
    The loss of one batch with fixed noise falls to a tenth; where it is divided by itself, its error does.
    """
    model = build(M)
    batch = M.example(model.cfg, 2)
    noised = {'latent', 'video'} & batch.keys()
    if noised:
        shape = batch[noised.pop()].shape[:2]
        batch['t'] = torch.randint(100, 1000, shape, generator=torch.Generator().manual_seed(0))
    optimizer = model.configure_optimizers(3e-3, 0.0, (0.9, 0.99))
    first = None
    for _ in range(150):
        torch.manual_seed(3)                                 # the same noise every time
        out = model(batch)
        error = out.get('mse_u', out['loss']).item()
        first = first or error
        optimizer.zero_grad()
        out['loss'].backward()
        optimizer.step()
    assert error < 0.1 * first


@EVERY
def test_rollout_or_act_keeps_the_contract(M, name):
    """
    rollout: context (B, H, ...), action (B, N, K, A) -> (B, N, K, ...) of the same key, the new frames only.
    act: the keys of windows other than action -> (B, n, A). Neither leaves a gradient.
    """
    model, B, H, N, K = build(M).eval(), 2, 2, 3, 4
    assert hasattr(model, 'rollout') or hasattr(model, 'act')
    cfg, batch = model.cfg, M.example(M.PRESETS['tiny'], 2)
    if hasattr(model, 'act'):
        wanted = model.act({key: batch[key] for key in M.windows(cfg) if key != 'action'})
        assert wanted.ndim == 3 and wanted.shape[0] == B and wanted.shape[2] == batch['action'].shape[2]
        assert torch.isfinite(wanted).all() and not wanted.requires_grad
    if hasattr(model, 'rollout'):
        key = next(key for key in ('state', 'latent', 'video') if key in batch)
        frames = batch[key][:, :1].expand(B, H, *batch[key].shape[2:])
        k = getattr(cfg, 'frame_skip', 1)
        context = {key: frames, 'action': torch.randn(B, H - 1, k * cfg.action_dim)}
        future = model.rollout(context, torch.randn(B, N, K, k * cfg.action_dim))
        assert future[key].shape == (B, N, K, *frames.shape[2:]) and torch.isfinite(future[key]).all()
        assert not any(value.requires_grad for value in future.values())
        if getattr(cfg, 'members', 1) > 1:
            assert future['state_std'].shape == future['state'].shape
            assert future['disagreement'].shape == (B, N, K)


@EVERY
def test_statistics_find_their_buffers(M, name):
    """Renamed to act_*, a model would train un-normalised, in silence."""
    model = build(M)
    windows, cfg = M.windows(model.cfg), model.cfg
    if not M.example(cfg, 1)['action'].is_floating_point():
        pytest.skip('its actions are tokens: there is nothing to normalise')
    sizes = {'state': 'state_dim', 'action': 'action_dim', 'delta_state': 'state_dim',
             'delta_action': 'action_dim', 'delta_prev': 'action_dim', 'env_state': 'env_state_dim'}
    sizes = {key: getattr(cfg, field) for key, field in sizes.items() if hasattr(cfg, field)}
    origin, unit = ('mean', 'std') if hasattr(model, 'action_mean') else ('min', 'max')
    stats = {key: {origin: [0.5] * n, unit: [2.0] * n, 'q99': [9.0] * n} for key, n in sizes.items()}
    contract.fill_statistics(model, M, windows, {'stats': stats}, 'data/x')
    found = contract.statistics(model, {'stats': stats})
    assert {f'action_{origin}', f'action_{unit}'} <= found
    for buffer in found:
        value = 0.5 if buffer.endswith(origin) else 2.0
        assert (getattr(model, buffer) == value).all(), buffer
    std = model._buffers.pop(f'action_{unit}')               # an origin alone is no unit
    with pytest.raises(SystemExit) as stop:
        contract.fill_statistics(model, M, windows, {'stats': stats}, 'data/x')
    assert 'the statistics of action find no buffer like action_mean' in stop.value.code
    assert stop.value.code.endswith('it would train un-normalised')
    model.register_buffer(f'action_{unit}', std, persistent=False)   # would be filled, and missing later
    with pytest.raises(SystemExit) as stop:
        contract.fill_statistics(model, M, windows, {'stats': stats}, 'data/x')
    assert f'the buffer action_{unit} finds no statistics' in stop.value.code


def keys_of_script(name):
    """Its lines `key = default   # comment`, up to where it configures itself."""
    with open(os.path.join(ROOT, name)) as f:
        head = re.split(r'^(?:config, changed = |def )', f.read(), flags=re.M)[0]
    return re.findall(r'^[a-z]\w* = .*', head, re.M)


@pytest.mark.parametrize('name', ('train.py', 'sample.py', 'eval.py', 'bench/step.py'))
def test_every_key_is_commented(name):
    keys = keys_of_script(name)
    assert len(keys) > 5
    for line in keys:
        assert re.search(r'  # \S', line), f'{name}: {line!r} has no comment'


PROTOCOLS = sorted(glob.glob(os.path.join(ROOT, 'protocols', '*.py')))


@pytest.mark.parametrize('path', PROTOCOLS, ids=os.path.basename)
def test_every_key_of_a_protocol_is_commented(path):
    with open(path) as f:
        source = f.read()
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    keys = [node for node in classes if node.name == 'Keys']
    for line in [source.splitlines()[field.lineno - 1] for node in keys for field in node.body]:
        assert re.search(r'^    \w+: \w+ = .*  # \S', line), f'{line!r} has no comment'
    assert bool(keys) == (os.path.basename(path)[:-3] in (*contract.PROTOCOLS, 'loss'))


# ---- what a file lacks or misnames, all in one line ----

WHOLE = open(os.path.join(FIXTURES, 'mlp_dynamics.py')).read()
BROKEN = [    # what is wrong: how it comes about (pattern, replacement), the words for it
    ('no Config', [('PRESETS = .*', ''), (r'@dataclass\nclass', 'class')], ['no @dataclass Config']),
    ('misnamed Config', [(r'\bConfig\b', 'Configs')], ['no @dataclass Config (is Configs meant?)']),
    ('a default that is not plain', [('hidden: int = 256 ', 'hidden: object = torch.float32 ')],
     ['Config.hidden has no plain default']),
    ('a field without default', [('PRESETS = .*', ''), ('state_dim: int = 14 ', 'state_dim: int ')],
     ['Config.state_dim has no plain default']),
    ('configure_optimizer', [('configure_optimizers', 'configure_optimizer')],
     ['no Model.configure_optimizers (is configure_optimizer meant?)']),
    ('no PAD', [('PAD = False', '')], ['no PAD = True or False']),
    ('PAD is a word', [('PAD = False', 'PAD = "no"')], ['no PAD = True or False']),
    ('EVAL unknown', [("EVAL = .*", "EVAL = ('dynamic',)")], ['no EVAL = a tuple of names out of video']),
    ('EVAL is a word', [("EVAL = .*", "EVAL = 'dynamics'")], ['no EVAL = a tuple of names out of video']),
    ('EVAL is a list', [("EVAL = .*", "EVAL = ['dynamics']")], ['no EVAL = a tuple of names out of video']),
    ('no rollout though dynamics judges it', [('def rollout', 'def roll_out')],
     ['no Model.rollout (is roll_out meant?)']),
    ('no act though env judges it', [("EVAL = .*", "EVAL = ('env',)")], ['no Model.act']),
    ('no forward', [('def forward', 'def backward')], ['no Model.forward']),
    ('no flops', [('def flops_per_sample', 'def flops')], ['no Model.flops_per_sample']),
    ('no windows', [('def windows', 'def window')], ['no windows(cfg) (is window meant?)']),
    ('Model is no module', [(r'class Model\(nn.Module\)', 'class Model(object)')],
     ['no class Model(nn.Module)']),
    ('SAMPLING', [("PAD = False", "PAD = False\nSAMPLING = ('hidden', 'steps')")],
     ['SAMPLING names steps, which is no field of Config']),
    ('INITIAL', [("PAD = False", "PAD = False\nINITIAL = ('weights', 'hidden')")],
     ['INITIAL names weights, which is no field of Config']),
    ('many at once', [('PAD = False', ''), ('def windows', 'def window'), ('def forward', 'def forwards'),
                      ("EVAL = .*", '')],
     ['no PAD = True or False', 'no windows(cfg) (is window meant?)', 'no EVAL = ',
      'no Model.forward (is forwards meant?)']),
]


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """damaged(replacements) writes mlp_dynamics.py with these as models/broken.py -> its module, loaded."""
    monkeypatch.setattr(contract, 'HERE', str(tmp_path / 'models'))
    (tmp_path / 'models').mkdir()

    def make(replacements):
        text = WHOLE
        for pattern, new in replacements:
            assert re.search(pattern, text), pattern
            text = re.sub(pattern, new, text)
        (tmp_path / 'models' / 'broken.py').write_text(text)
        sys.modules.pop('broken', None)
        return contract.load('broken')
    yield make
    sys.modules.pop('broken', None)


@pytest.mark.parametrize('replacements, words', [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_defects_are_named_in_one_line(damaged, replacements, words):
    M = damaged(replacements)
    found = contract.defects(M)
    assert len(found) == len(words)
    with pytest.raises(SystemExit) as stop:
        contract.check(M)
    assert stop.value.code.startswith('broken.py is no model yet: ') and '\n' not in stop.value.code
    for word in words:
        assert word in stop.value.code, stop.value.code


def test_what_only_tests_and_bench_want(damaged):
    M = damaged([('PRESETS', 'PRESET'), ('def example', 'def examples')])
    assert contract.defects(M) == []                         # a run does without
    assert contract.defects(M, whole=True) == [
        "no PRESETS with 'tiny', 'cpu' and 'full' (is PRESET meant?)",
        'no example(cfg, batch_size) (is examples meant?)']


def test_an_unknown_model_and_other_code(damaged, tmp_path):
    damaged([])
    (tmp_path / 'models' / 'no_model.py').write_text('x = 1\n')
    for name in ('nope', 'os', 'models.broken', '../broken', 'broken.py', '', 'tests.conftest'):
        with pytest.raises(SystemExit) as stop:
            contract.load(name)
        assert stop.value.code == f'no model {name!r}; files that define one: broken.py'


@pytest.mark.parametrize('replacements, words', [
    ([(r"'state': range\(2\)", "'state': [0, 1]")],
     'broken.windows: want a range of frame offsets for every key, got state: [0, 1]'),
    ([(r"'action': range\(1\)", "'action': range(0)")],
     'broken.windows: want a range of frame offsets for every key, got action without any'),
    ([("return {'loss': ", "return {'mse': ")],
     "broken.Model.forward returned ['mse']; want a dict with 'loss', a scalar tensor with grad"),
    ([("return {'loss': (.*)}", r"return \1")],
     "broken.Model.forward returned Tensor; want a dict with 'loss', a scalar tensor with grad"),
    ([(r"\.mean\(\)}", ".mean().item()}")],
     "broken.Model.forward returned ['loss']; want a dict with 'loss', a scalar tensor with grad"),
    ([(r"\.mean\(\)}", ".mean(), 'state': state}")],
     'broken.Model.forward: state is no scalar tensor: it cannot be logged'),
    ([(r"return {'state': range\(2\), 'action': range\(1\)}", 'return {}')],
     'broken.windows: want {{key: range of frame offsets}}, got {{}}'),
    ([(r'(        for key, size in)', r'        self.twin = self.net[0].weight\n\1')],
     'broken: two tensors share their memory, which cannot be saved; tie weights in forward instead'),
    ([(r'(        for key, size in)', r'        self.part = nn.Parameter(self.net[0].weight.data[1:])\n\1')],
     'broken: two tensors share their memory'),
    ([("'action', A", "'act', A"), ('self.action_', 'self.act_')],
     'broken on {data}/robot/meta.json: the statistics of action find no buffer like action_mean'),
    ([("'delta_state', S", "'delta_state', A")],
     'delta_state_mean holds 2 numbers, meta.json has 5'),
    ([('self.cfg, C', "assert cfg.hidden < 9, f'hidden = {cfg.hidden}: too wide'\n        self.cfg, C")],
     'broken.Config: hidden = 256: too wide')])
def test_what_shows_when_it_is_built_is_one_line(damaged, replacements, words, tmp_path):
    """By train.py, before step 0 or, what forward returns, in it."""
    damaged(replacements)
    data = tmp_path / 'data'
    make_robot(data, n=3)
    _, errors = script('train.py', '--model=broken', '--dataset=robot', f'--data_dir={data}',
                       f'--out_dir={tmp_path}/out', '--device=cpu', '--batch_size=4', '--max_steps=2',
                       '--val_every=0', code=1)
    assert words.format(data=data) in one_line(errors)
    assert not os.path.exists(tmp_path / 'out' / 'latest')


def test_what_is_read_raw_on_purpose(damaged):
    swaps = [("'action', A", "'act', A"), ('self.action_', 'self.act_')]
    stats = {'state': {'mean': [1.0] * 5, 'std': [2.0] * 5}, 'action': {'mean': [1.0] * 3, 'std': [2.0] * 3}}

    def fill(M):
        model = M.Model(M.PRESETS['tiny'])
        contract.fill_statistics(model, M, M.windows(model.cfg), {'stats': stats}, 'data/x')
        return model
    with pytest.raises(SystemExit) as stop:
        fill(damaged(swaps))
    assert "(if that is meant: UNNORMALISED = ('action',))" in stop.value.code
    model = fill(damaged([*swaps, ('PAD = False', "PAD = False\nUNNORMALISED = ('action',)")]))
    assert (model.act_std == 1).all() and (model.state_std == 2).all()


# ---- the two forks: trained, judged and sampled by the shipped commands ----

@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    """data_dir with the dataset `robot`."""
    data_dir = tmp_path_factory.mktemp('forks')
    make_robot(data_dir, n=6)
    return data_dir


@pytest.fixture
def fork(fixtures, robot, tmp_path):
    """fork(name, *flags) trains a fixture on the robot -> its out_dir."""
    def train(name, *flags, steps=60):
        out = f'{tmp_path}/{name}'
        script('train.py', f'--model={name}', '--dataset=robot', f'--data_dir={robot}', f'--out_dir={out}',
               '--device=cpu', '--hidden=32', '--batch_size=32', '--lr=1e-2', '--val_batches=4',
               '--log_every=20', f'--max_steps={steps}', *flags)
        return out
    return train


def judged(*args):
    said, _ = script('eval.py', *args)
    return json.loads(said)


def test_forks_are_short():
    for name, limit in ('bc_mlp', 60), ('mlp_dynamics', 70):
        with open(os.path.join(FIXTURES, f'{name}.py')) as f:
            assert len(f.readlines()) < limit


def test_a_plain_dynamics_model(fork, tmp_path):
    """It is judged beside the same rivals as an ensemble, without what only an ensemble has."""
    out = fork('mlp_dynamics', '--eval_every=40', '--best_metric=eval/one_step_sigma')
    result = judged(f'--ckpt={out}', '--n_clips=8', '--horizons=1,10')
    assert result['protocol'] == 'dynamics' and result['step'] == 60
    assert 0 < result['rmse_joint_h1'] < result['baselines']['persistence']['rmse_joint_h1']
    assert not {'spearman_h1', 'chunked', 'rmse_joint_h1_single'} & result.keys()
    assert judged(f'--ckpt={out}', '--protocol=loss')['loss'] < 0.5
    script('sample.py', f'--ckpt={out}', '--length=20', f'--out={tmp_path}/curves.png')
    assert os.path.getsize(tmp_path / 'curves.png') > 1000


def test_a_policy(fork, tmp_path, robot):
    """
    PAD: a window for every frame with a real action, up to the last; what lies behind it counts for nothing.
    Without a protocol of its own the loss judges it.
    """
    out = fork('bc_mlp')
    result = judged(f'--ckpt={out}', '--n_clips=0')
    model, meta = checkpoint.load(out)
    M = contract.load('bc_mlp')
    store = Store(robot / 'robot', 'val', M.windows(model.cfg), pad=True)
    frames = sum(end - start - 1 for start, end in np.load(robot / 'robot' / 'val' / 'episodes.npy'))
    assert result['protocol'] == 'loss' and result['n_clips'] == len(store) == frames
    assert 0 < result['loss'] < 1                            # 1 is the mean action, in std
    last = store.windows_at(np.array([store.ends[0] - 1]))
    assert last['mask'].tolist() == [[True] + [False] * (model.cfg.chunk - 1)]
    with torch.no_grad():
        before = model(last)['loss']
        last['action'][~last['mask']] = 1e6
        assert model(last)['loss'] == before
    stats = read_meta(robot / 'robot')['stats']['action']
    assert model.action_std.tolist() == pytest.approx(stats['std'], rel=1e-6)
    wanted = model.act({'state': last['state']})
    assert wanted.shape == (1, model.cfg.chunk, 2)
    script('sample.py', f'--ckpt={out}', f'--out={tmp_path}/actions.png')
    assert os.path.getsize(tmp_path / 'actions.png') > 1000
    said = one_line(script('eval.py', f'--ckpt={out}', '--protocol=dynamics', code=2)[1])
    assert said == '--protocol=dynamics: bc_mlp is judged by loss'
    _, errors = script('train.py', '--model=bc_mlp', '--dataset=robot', f'--data_dir={robot}',
                       '--eval_every=5', f'--out_dir={tmp_path}/new', code=1)
    assert one_line(errors) == 'eval_every = 5: bc_mlp.EVAL names no protocol; --eval_every=0'
