"""What only a GPU can show, for every model of the contract: python -m pytest -m gpu"""
import copy
import functools
from dataclasses import replace

import pytest
import torch
from conftest import run, script
from safetensors.torch import load_file

import checkpoint
import contract
import nanowm
from bench import step as bench
from bench import timing, versus_vla, vla_gpu

no_gpu = not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(no_gpu, reason='needs a CUDA device')]
DEVICE = 'cuda'
MODELS = [name[:-3] for name in contract.model_files()]
CASES = [(name, {}) for name in MODELS] + [('nanowm', {'injection': name}) for name in nanowm.INJECTIONS[1:]]
CASES += [(name, {'obs': 'image'}) for name in ('act', 'diffusion_policy')]
CASES += [('pi0', {'pi05': True, 'tokenizer_max_length': 32})]
every_case = pytest.mark.parametrize('name, over', CASES, ids=[''.join([n, *map(str, o.values())])
                                                               for n, o in CASES])


def build(name, over):
    """A tiny model off its start, in eval mode, and a batch, both on the GPU."""
    torch.manual_seed(0)
    M = contract.load(name)
    cfg = replace(M.PRESETS['tiny'], **over)
    model = timing.randomise(M.Model(cfg)).eval()
    return model.to(DEVICE), timing.to(M.example(cfg, 4), DEVICE)


@pytest.fixture
def same_draws(monkeypatch):
    """Random numbers are drawn on the CPU and copied, so that every device and precision draws the same."""
    for name in ('rand', 'randn', 'randint', 'randperm', 'rand_like', 'randn_like', 'randint_like',
                 '_standard_gamma'):
        real = getattr(torch, name)

        @functools.wraps(real)
        def draw(*args, real=real, device=None, generator=None, **kw):
            like = args[0] if isinstance(args[0], torch.Tensor) else None
            if like is None:
                return real(*args, device='cpu', **kw).to(device or 'cpu')
            return real(like.float().cpu(), *args[1:], **kw).to(device or like.device, like.dtype)
        monkeypatch.setattr(torch, name, draw)


def outputs(model, batch, half=False):
    """What .net, or of a vision-language-action model .velocity, returned in a forward pass; the loss."""
    seen, name = [], 'net' if hasattr(model, 'net') else 'velocity'
    real = getattr(model, name)

    def net(*args, **kw):
        out = real(*args, **kw)
        seen.append(out[0] if isinstance(out, tuple) else out)
        return out
    setattr(model, name, net)
    torch.manual_seed(1)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        loss = model(batch)['loss'].item()
    delattr(model, name)
    return torch.cat([out.float().flatten().cpu() for out in seen]), loss


@pytest.fixture(autouse=True)
def exact_matmuls():
    """train.py allows TF32 in this process; here float32 means float32."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = False
    yield
    for flag, value in zip(flags, before):
        flag.allow_tf32 = value


@pytest.fixture
def on_cuda(tiny):
    """Arguments of train.py: the tiny run, on the GPU, float32, not compiled."""
    return [*tiny, '--device=auto', '--dtype=float32', '--compile=False', '--ema_decay=0.99',
            '--save_every=3', '--val_every=3', '--max_steps=6', '--keep=0']


@every_case
def test_bf16_is_close_to_float32(same_draws, name, over):
    model, batch = build(name, over)
    (full, loss), (half, half_loss) = outputs(model, batch), outputs(model, batch, half=True)
    error = (half - full).norm() / full.norm()
    assert 0 < error < 2e-2                                  # not 0: autocast was really on
    assert abs(half_loss - loss) < 5e-2 * max(1, abs(loss))


@every_case
def test_cuda_and_cpu_agree(same_draws, name, over):
    model, batch = build(name, over)
    ours, loss = outputs(model, batch)
    theirs, their_loss = outputs(copy.deepcopy(model).cpu(), timing.to(batch, 'cpu'))
    assert (ours - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max())
    assert abs(loss - their_loss) < 1e-4 * max(1, abs(loss))


@every_case
def test_compiles_without_graph_breaks(monkeypatch, name, over):
    """fullgraph=True raises at a break; loss and gradients are the eager ones, under the same draws."""
    import torch._inductor.config
    monkeypatch.setattr(torch._inductor.config, 'fallback_random', True)
    torch._dynamo.reset()
    eager, batch = build(name, over)
    compiled = copy.deepcopy(eager)
    compiled.compile(fullgraph=True)
    losses = []
    for model in (eager, compiled):
        model.train()
        torch.manual_seed(1)
        loss = model(batch)['loss']
        loss.backward()
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) < 1e-4 * max(1, abs(losses[0]))
    for (key, p), (other, q) in zip(eager.named_parameters(), compiled.named_parameters()):
        assert key == other and not key.startswith('_orig_mod')
        if p.grad is not None:
            assert (p.grad - q.grad).abs().max() <= 1e-3 * max(1, p.grad.abs().max()), key


@pytest.mark.parametrize('name', MODELS)
def test_ways_to_step(name):
    """bench/step.py --what=gpu: a graph is one launch, and fewer are left the more is compiled."""
    M = contract.load(name)
    clock = timing.Clock('cuda', 'bfloat16', reps=2)
    rows = {row['mode']: row for row in bench.gpu_rows(M, M.PRESETS['tiny'], clock, bench.MODES, 4)}
    assert rows['eager']['launches'] > rows['compiled']['launches'] > 1
    assert all(row['memory_gib'] > 0 for row in rows.values())
    if 'graph' in rows:                                      # a model whose step waits for the GPU has none
        assert rows['graph']['launches'] == 1


@pytest.mark.parametrize('name', ('pi0', 'pi05', 'smolvla'))
def test_ways_to_act(monkeypatch, name):
    """bench/versus_vla.py --what=gpu: encode and sample are captured; the chunk is that of an eager call."""
    monkeypatch.setattr(versus_vla, 'preset', 'tiny')
    monkeypatch.setattr(vla_gpu, 'rows', lambda models, *_: models)
    clock = timing.Clock('cuda', 'float32', reps=2)
    M, cfg = versus_vla.gpu_rows(clock)[name]
    rows = vla_gpu.act_rows(name, M, cfg, clock, ('eager', 'compiled'), 1e12, 1e12)
    assert [row['case'].split(', weights')[0] for row in rows if row['against'] != 'LeRobot'][:4] == [
        f'{name} act, {way}' for way in ('eager', 'eager, graph', 'compiled', 'compiled, graph')]
    assert all(row['difference'] < 1e-3 for row in rows)


def test_a_replayed_step_is_a_step():
    """The weights of arx5_gpt after a captured step are those of eager steps."""
    M = contract.load('arx5_gpt')
    clock = timing.Clock('cuda', 'float32')
    torch.manual_seed(0)
    model = M.Model(M.PRESETS['tiny']).cuda().train()
    other = copy.deepcopy(model)
    data = bench.example(M, model.cfg, clock, 4)
    optimizer = model.configure_optimizers(timing.LR, timing.DECAY, timing.BETAS)
    replay = bench.graphed(timing.train_step(model, data, clock, optimizer), optimizer)
    step = timing.train_step(other, data, clock)
    for _ in range(4):                                       # the graph was captured after three steps
        step()
    replay()
    torch.cuda.synchronize()
    for p, q in zip(model.parameters(), other.parameters()):
        assert (p - q).abs().max() < 1e-4


def test_resume_is_exact(on_cuda, tmp_path):
    """deterministic=True and float32: the resumed run ends with the weights of the unbroken one."""
    args = [*on_cuda, '--deterministic=True']
    env = {'CUBLAS_WORKSPACE_CONFIG': ':4096:8'}
    said, _ = run(*args, f'--out_dir={tmp_path}/whole', **env)
    assert 'float32' in said and torch.cuda.get_device_name() in said
    run(*args, f'--out_dir={tmp_path}/parts', '--max_steps=3', **env)
    run(*args, f'--out_dir={tmp_path}/parts', '--resume=True', **env)
    for file in ('model.safetensors', 'ema.safetensors'):
        a, b = (load_file(tmp_path / name / 'step_0000006' / file) for name in ('whole', 'parts'))
        assert a and all(torch.equal(a[key], b[key]) for key in a)


def test_default_run_is_compiled_bfloat16(on_cuda, tmp_path):
    """What 'auto' means here; the checkpoint has plain keys and loads on a CPU."""
    said, _ = run(*on_cuda, '--dtype=auto', '--compile=auto')
    assert 'bfloat16, compiled' in said
    model, _ = checkpoint.load(tmp_path / 'out')
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())
    script('eval.py', f'--ckpt={tmp_path}/out', '--n_clips=4')


def test_one_rank_of_ddp_is_a_plain_run(on_cuda, tmp_path):
    """nccl with one process: the loss lines are those of the run without it."""
    args = [*on_cuda, '--deterministic=True']
    env = {'CUBLAS_WORKSPACE_CONFIG': ':4096:8'}
    run(*args, **env)
    run(*args, f'--out_dir={tmp_path}/ddp', RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='localhost',
        MASTER_PORT='29517', **env)
    a, b = (load_file(tmp_path / name / 'step_0000006' / 'model.safetensors') for name in ('out', 'ddp'))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)
