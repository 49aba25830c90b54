"""What only a GPU can show: python -m pytest -m gpu"""
import copy

import pytest
import torch
from conftest import run, script
from safetensors.torch import load_file

import checkpoint
import nanowm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]
INJECTIONS = ('additive', 'adaln_fuse', 'adaln', 'film', 'cross_attention')


def build(**over):
    """A small NanoWM off its zero start, and a batch with t and noise, both on the GPU."""
    torch.manual_seed(0)
    model = nanowm.Model(nanowm.Config(**dict(height=16, width=16, depth=4, hidden=128, heads=4) | over))
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.02)
    batch = {'latent': torch.randn(4, 4, 4, 16, 16), 'noise': torch.randn(4, 4, 4, 16, 16),
             'action': torch.randn(4, 4, 7), 't': torch.randint(1000, (4, 4))}
    return model.cuda(), {key: value.cuda() for key, value in batch.items()}


@pytest.fixture(autouse=True)
def exact_matmuls():
    """train.py allows TF32 in this process; here float32 means float32."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags: flag.allow_tf32 = False
    yield
    for flag, value in zip(flags, before): flag.allow_tf32 = value


@pytest.fixture
def on_cuda(tiny):
    """Arguments of train.py: the tiny run, on the GPU, float32, not compiled."""
    return [*tiny, '--device=auto', '--dtype=float32', '--compile=False', '--ema_decay=0.99', '--save_every=3',
            '--val_every=3', '--max_steps=6', '--keep=0']


@pytest.mark.parametrize('injection', INJECTIONS)
def test_bf16_is_close_to_float32(injection):
    model, batch = build(injection=injection)
    with torch.no_grad():
        full = model.net(batch['latent'], batch['t'], batch['action'])
        with torch.autocast('cuda', torch.bfloat16): half = model.net(batch['latent'], batch['t'], batch['action'])
    error = (half.float() - full).norm() / full.norm()
    assert 0 < error < 2e-2                                  # not 0: autocast was really on


def test_cuda_and_cpu_agree():
    model, batch = build()
    out = model.net(batch['latent'], batch['t'], batch['action'])
    cpu = copy.deepcopy(model).cpu()
    theirs = cpu.net(*(batch[key].cpu() for key in ('latent', 't', 'action')))
    assert (out.cpu() - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max())


@pytest.mark.parametrize('injection', INJECTIONS)
def test_compiles_without_graph_breaks(injection):
    """fullgraph=True raises at a break; loss and gradients are the eager ones."""
    torch._dynamo.reset()
    eager, batch = build(injection=injection)
    compiled = copy.deepcopy(eager)
    compiled.compile(fullgraph=True)
    a, b = eager(batch)['loss'], compiled(batch)['loss']
    assert abs(a.item() - b.item()) < 1e-4 * max(1, abs(a.item()))
    a.backward()
    b.backward()
    for (key, p), q in zip(eager.named_parameters(), compiled.named_parameters()):
        assert not key.startswith('_orig_mod') and q[0] == key
        assert (p.grad - q[1].grad).abs().max() <= 1e-3 * max(1, p.grad.abs().max()), key


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
