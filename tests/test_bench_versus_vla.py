"""bench/versus_vla.py at sizes of nothing: what it compares is the same, and its rulers measure."""
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import one_line, script

import pi0
import smolvla
from bench import timing, upstream, vla_files, vla_gpu
from bench import versus_vla as bench
from bench.vla_gpu import drawn

QUICK = '--preset=tiny', '--reps=2', '--device=cpu'


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, 'preset', 'tiny')
    torch.manual_seed(0)


def clock(reps=2):
    c = timing.Clock('cpu', 'float32', reps)
    c.now = time.process_time
    return c


def fine_tuned(**over): return smolvla.Model(bench.fine_tuned(**over))


# ---- the command line ----

def measured(tmp_path, *flags):
    said, _ = script('bench/versus_vla.py', *QUICK, *flags, f'--out={tmp_path}/x.json')
    saved = json.loads((tmp_path / 'x.json').read_text())
    assert said.splitlines()[0].split() == [key for key in saved['rows'][0] if key != 'ratios']
    for row in saved['rows']:
        assert 0 < row['low'] <= row['ratio'] <= row['high'] and row['ours'] > 0 and row['other'] > 0
        missed = f'missed: {row["part"]}, {row["case"]}, ' in said
        assert missed == bool(row['most'] and row['ratio'] > row['most'])
    return saved


def test_on_a_cpu(tmp_path):
    saved = measured(tmp_path, '--what=act,step,checkpointing')
    rows = {(row['part'], row['case']): row for row in saved['rows']}
    want = [('act', 'cached'), *(('step', f'state apart, {phase}') for phase in timing.PHASES),
            *(('step', f'stored image tokens, {phase}') for phase in timing.PHASES),
            *(('checkpointing', phase) for phase in timing.PHASES), ('checkpointing', 'saved for backward')]
    assert list(rows) == want
    asked = {key: row['most'] for key, row in rows.items() if row['most']}
    assert asked == {('act', 'cached'): 0.2, ('step', 'state apart, backward'): 0.6,
                     ('step', 'stored image tokens, step'): 0.4, ('checkpointing', 'fwd+bwd'): 1.5,
                     ('checkpointing', 'saved for backward'): 0.1}
    for (part, case), row in rows.items():
        exact = part in ('act', 'checkpointing')
        assert row['difference'] <= (0 if exact else 1e-2 if 'stored' in case else 1e-5), (part, case)
    ours, other = (rows['step', f'{case}, step'] for case in ('state apart', 'stored image tokens'))
    assert ours['ours'] == other['other']                # the same steps
    assert saved['preset'] == 'tiny' and rows['checkpointing', 'saved for backward']['ratio'] < 0.3


def test_on_a_gpu_but_without(tmp_path):
    """The same way through on a CPU, of which somebody says how fast it is."""
    flags = '--what=gpu', '--peak_flops=1e11', '--bandwidth=1e10'
    saved = measured(tmp_path, *flags, '--dtype=bfloat16')
    cases = [f'step, eager, {how}, batch 1' for how in ('all kept', 'recomputed')]
    assert [row['case'] for row in saved['rows'] if 'LeRobot' not in row['case'] + row['against']] == [
        f'{name} {case}' for name in ('pi0', 'pi05', 'smolvla')
        for case in ('act, eager, weights bfloat16', *cases)]
    assert saved['rows'][0]['other'] == pytest.approx(sum(
        max(work / 1e11, read / 1e10) for work, read in vla_gpu.least(pi0, bench.three_cameras())))
    said, err = script('bench/versus_vla.py', *QUICK, '--what=gpu', code=1)
    assert 'say --peak_flops=FLOP/s and --bandwidth=bytes/s' in one_line(err)


@pytest.mark.parametrize('flags, line', [
    (['--what=dance'], 'what = dance: choose from act, step, lerobot, checkpointing, load, import, gpu'),
    (['--what=act,gpu'], 'gpu: only alone, the rest is timed on the CPU'),
    (['--preset=huge'], 'preset = huge, batch = 1, threads = 1: want one of tiny, cpu, full, at least 1, and '
                        'at least 1')])
def test_bad_input_is_one_line(flags, line):
    assert one_line(script('bench/versus_vla.py', *flags, code=1)[1]) == line


def test_without_lerobot(monkeypatch):
    monkeypatch.setattr(upstream, 'lacking_vla', lambda: "No module named 'lerobot'")
    assert one_line(script('bench/versus_vla.py', *QUICK, '--what=lerobot', code=1)[1]) == (
        "lerobot: LeRobot 0.4.4 cannot be imported (No module named 'lerobot'); the top of bench/upstream.py "
        'says how to install it')
    assert 'transformers==4.57.3' in upstream.__doc__


# ---- the same model in other ways ----

def test_uncached_looks_in_every_step():
    model = fine_tuned().eval()
    other, data, looks = timing.like(model, bench.Uncached).eval(), drawn(smolvla, model.cfg, 2), []
    for x in model, other:
        x.vision.register_forward_hook(lambda *_, x=x: looks.append(type(x)))
    chunks = [x.act(data, [torch.Generator().manual_seed(i) for i in range(2)]) for x in (model, other)]
    assert looks == [smolvla.Model] + [bench.Uncached] * model.cfg.num_steps
    assert torch.equal(*chunks)


def test_nobody_but_the_state_sees_the_state_inside():
    """Keys of pictures and text stay, its own do not; and they are those of the cache."""
    model = fine_tuned(num_vlm_layers=3).eval()
    inside, data = timing.like(model, bench.Inside).eval(), drawn(smolvla, model.cfg, 2)
    caches = [inside.encode(data | {'state': data['state'] + more}) for more in (0, 1)]
    for (k, v), (other_k, other_v), (want_k, want_v) in zip(*(kv for kv, _ in caches), model.encode(data)[0]):
        assert torch.equal(k[:, :, :-1], other_k[:, :, :-1]) and torch.equal(v[:, :, :-1], other_v[:, :, :-1])
        assert (k[:, :, -1] - other_k[:, :, -1]).abs().max() > 1e-3
        assert (k - want_k).abs().max() < 1e-5 and (v - want_v).abs().max() < 1e-5
    assert torch.equal(caches[0][1], model.encode(data)[1])


def test_inside_all_of_the_vlm_is_remembered():
    model = fine_tuned(num_vlm_layers=4, tokenizer_max_length=40).train()
    model.tell((' '.join('abcdefghijklmnopqrstuvwxyz0123456789'),))
    inside, data = timing.like(model, bench.Inside).train(), drawn(smolvla, model.cfg, 1)
    apart, all_ = (bench.saved_bytes(x, data) for x in (model, inside))
    assert all_ > 1.8 * apart


def test_stored_tokens_are_enough():
    model = fine_tuned(cameras=('a', 'b'))
    data = drawn(smolvla, model.cfg, 2)
    tokens, want = bench.stored(model, data), model(data)['loss']
    assert {key: (x.dtype, x.shape) for key, x in tokens.items() if 'features' in key or 'image' in key} == (
        dict.fromkeys(('features.a', 'features.b'), (torch.float16, (2, 1, 4, 32))))
    model.vision = model.projector = None
    assert 0 < (model(tokens)['loss'] - want).abs() < 1e-2 * want
    tokens['features.b'] = torch.zeros_like(tokens['features.b'])
    assert (model(tokens)['loss'] - want).abs() > 1e-3 * want


def test_a_model_in_the_same_memory():
    model = fine_tuned()
    other = timing.like(model, smolvla.Model, replace(model.cfg, num_steps=3))
    pairs = [*zip(model.parameters(), other.parameters())]
    assert other.cfg.num_steps == 3 and all(p.data_ptr() == q.data_ptr() and p is not q for p, q in pairs)
    assert [p.requires_grad for p, _ in pairs] == [q.requires_grad for _, q in pairs]


@pytest.mark.parametrize('key, factor, told', [
    ('state_proj.bias', 1.01, 'gradient of state_proj.bias: .* 0.01'), ('', 1.001, 'loss: .* 0.001')])
def test_steps_that_differ_are_found(key, factor, told):
    model = fine_tuned()
    other, data = timing.like(model, smolvla.Model), drawn(smolvla, model.cfg, 2)
    assert bench.same_step('x', (model, other), (data, data), most=0) == 0
    if key:
        dict(other.named_parameters())[key].register_hook(lambda grad: grad * factor)
    else:
        real = other.forward
        other.forward = lambda data: {'loss': real(data)['loss'] * factor}
    with pytest.raises(SystemExit, match=f'^x, {told}; nothing was timed'):
        bench.same_step('x', (model, other), (data, data))


def test_saved_bytes():
    """Results of sin and exp; neither weights nor what came in, and nothing twice."""
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(100))

        def forward(self, data):
            y = (self.weight * data['x']).exp()          # saved as the result of exp, and by both factors
            return {'loss': (y * y.view(-1)).sum()}
    assert bench.saved_bytes(Net(), {'x': torch.rand(100)}) == 400


# ---- beside LeRobot ----

class Twin(torch.nn.Module):
    """Stands for LeRobot's: our own network, whose parameters have published names; off: how it differs."""
    off = 0.0

    def __init__(self, ours):
        super().__init__()
        self.own = timing.like(ours, smolvla.Model)
        self.inner = SimpleNamespace(named_parameters=lambda: [
            (smolvla.published(key), p) for key, p in self.own.named_parameters()])

    def renamed(self, ours, batch, longest=False):
        return batch

    def forward(self, batch):
        return {'loss': self.own(batch)['loss']}

    def act(self, batch):
        with torch.no_grad():
            return self.own.sample(self.own.encode(batch), batch['noise']) + self.off

    def optimizer(self):
        return torch.optim.AdamW(self.parameters())


def test_rows_beside_lerobot(monkeypatch):
    monkeypatch.setattr(upstream, 'TheirVLA', Twin)
    rows = bench.lerobot_rows(clock())
    cases = [(row['case'], row['against']) for row in rows]
    assert cases == [(case, 'LeRobot') for case in ('act', *timing.PHASES)]
    assert all(row['difference'] < 1e-6 and (row['most'] == 0.85) == (row['case'] == 'step') for row in rows)
    monkeypatch.setattr(Twin, 'off', 0.1)
    with pytest.raises(SystemExit, match='^lerobot, act: ours and the other are not the same'):
        bench.lerobot_rows(clock())


def test_a_batch_under_their_names():
    """Normalised, pictures in 0..1; the prompt as long as ours."""
    model = fine_tuned(tokenizer_max_length=12)
    model.action_mean.fill_(0.5)
    data = drawn(smolvla, model.cfg, 2)
    them = SimpleNamespace(cfg=model.cfg)
    got = upstream.TheirVLA.renamed(them, model, data)
    real = got['observation.language.attention_mask']
    assert real.shape == got['observation.language.tokens'].shape == (2, 6) and real.all()
    assert torch.equal(got['action'], model.normalise(data['action'], 'action'))
    assert got['observation.images.top'].shape == (2, 3, 16, 16)
    assert 0.9 < got['observation.images.top'].max() <= 1 and got['observation.state'].shape == (2, 2)


@pytest.mark.skipif(bool(upstream.lacking_vla()), reason='LeRobot 0.4.4 with its SmolVLA is not installed')
def test_beside_lerobot():
    rows = bench.lerobot_rows(clock())
    assert all(row['difference'] < 1e-4 for row in rows)


# ---- memory, imports ----

def test_peaks_of_a_process():
    """40 MB of weights; with a copy while they are made, twice that."""
    one, two = (vla_files.peak(f'model = torch.nn.Linear(1, 5_000_000); {more}')
                for more in ('', 'copy = [x.detach().clone() for x in model.parameters()]; del copy'))
    assert one[1] == two[1] == 40_000_000
    assert 0.9 < one[0] / one[1] < 1.6 and 0.8 < (two[0] - one[0]) / 40e6 < 1.2


def test_ways_to_load(tmp_path):
    """Each makes the model whose weights were written."""
    cfg = bench.fine_tuned()
    torch.manual_seed(0)
    want = smolvla.Model(cfg)
    torch.manual_seed(0)
    found = vla_files.ways(cfg, tmp_path)
    assert len(found) == 5
    for case, line in found.items():
        there = {}
        exec(f'import torch, checkpoint, contract, smolvla\n{line}', there)
        for (key, p), q in zip(want.named_parameters(), there['model'].parameters()):
            assert torch.equal(p.bfloat16().float() if 'bfloat16' in case else p, q), (case, key)


def test_rows_of_imports(monkeypatch):
    seconds = {'torch': [2.0, 2.0], 'pi0': [3.0, 2.0], 'smolvla': [4.0, 4.0]}
    monkeypatch.setattr(bench, 'import_times', lambda clock, names, policy: seconds | (
        {'LeRobot': [8.0, 8.0]} if policy else {}))
    monkeypatch.setattr(upstream, 'lacking_vla', lambda: 'not there')
    rows = [(row['case'], row['against'], row['ratio'], row['most']) for row in bench.import_rows(clock())]
    assert rows == [('pi0', 'torch', 1.25, 1.5), ('smolvla', 'torch', 2.0, 1.5)]
    monkeypatch.setattr(upstream, 'lacking_vla', lambda: '')
    assert bench.import_rows(clock())[2]['ratio'] == 0.5


# ---- a GPU ----

@pytest.mark.parametrize('name, work, read', [('pi0', 4.02, 10.87), ('pi05', 4.14, 13.18),
                                               ('smolvla', 0.58, 2.46)])
def test_the_least_that_a_chunk_costs(name, work, read, monkeypatch):
    """At full size: TFLOP, GB. With prompts padded to 48 and 200 tokens it were 4.19, 4.81 and 0.59 TFLOP."""
    monkeypatch.setattr(bench, 'preset', 'full')
    monkeypatch.setattr(vla_gpu, 'rows', lambda models, *_: models)
    parts = vla_gpu.least(*bench.gpu_rows(clock())[name])
    assert [round(sum(x), 2) for x in zip(*((a / 1e12, b / 1e9) for a, b in parts))] == [work, read]


@pytest.mark.parametrize('M', (pi0, smolvla))
def test_a_chunk_is_that_of_act(M):
    """What is captured, encode and sample, gives what act gives for the same noise."""
    model = M.Model(bench.three_cameras() if M is pi0 else bench.fine_tuned()).eval()
    model.action_mean.fill_(3.0)
    data = drawn(M, model.cfg, 1)
    data['noise'] = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))[None]
    ways = vla_gpu.ways(M, model, data, clock(), ('eager',))
    assert torch.equal(ways['eager'](), model.act(data, [torch.Generator().manual_seed(5)]))


def test_lerobot_on_a_gpu(monkeypatch):
    monkeypatch.setattr(upstream, 'lacking_vla', lambda: '')
    monkeypatch.setattr(upstream, 'TheirVLA', Twin)
    rows = vla_gpu.act_rows('x', smolvla, bench.fine_tuned(), clock(), ('eager',), 1e12, 1e12)
    assert [(row['case'], row['against'][:7]) for row in rows] == [
        (f'x act, {way}, weights float32', other)
        for way, other in (('eager', 'floor: '), ('LeRobot', 'floor: '), ('eager', 'LeRobot'))]
    assert rows[1]['difference'] == 0 and rows[2]['other'] == rows[1]['ours']


def test_no_room(monkeypatch, capsys):
    """A size that does not fit is a line, and the others are timed."""
    real = vla_gpu.fresh

    def fresh(M, cfg, clock):
        if not cfg.gradient_checkpointing:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return real(M, cfg, clock)
    monkeypatch.setattr(vla_gpu, 'fresh', fresh)
    cfg = bench.three_cameras()
    row, = vla_gpu.training_rows('pi0', pi0, cfg, clock(), ('eager',), 2, 1e12)
    assert row['case'] == 'pi0 step, eager, recomputed, batch 2'
    assert row['other'] == 2 * pi0.Model(cfg).flops_per_sample() / 1e12
    assert capsys.readouterr().out == 'pi0 step, eager, all kept, batch 2: the memory does not suffice\n'
