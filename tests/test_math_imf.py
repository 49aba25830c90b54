"""imf_policy.py and vision.py against closed forms, a reference package and what a chunk may depend on."""
import math

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import ROOT  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

import imf_policy as P
import vision
from bench.versus_imf_policy import Naive

T64 = torch.float64


def batch_of(cfg, n=4):
    torch.manual_seed(1)
    return P.example(cfg, n)


def tiny(**over): return P.Config(obs='keypoints', n_embd=32, n_layer=2, **over)


# ---- the MeanFlow identity ----

def gaussian(s0):
    """u and v of data N(0, s0^2), exactly: z_t is N(0, S(t)^2), and the flow only stretches it."""
    def S(t): return ((1 - t) ** 2 * s0 ** 2 + t ** 2).sqrt()
    def v(z, t): return z * (t - (1 - t) * s0 ** 2) / S(t) ** 2
    def u(z, r, t): return z * (1 - S(r) / S(t)) / (t - r)
    return u, v


def test_identity_of_a_gaussian():
    torch.manual_seed(0)
    u, v = gaussian(0.5)
    z, (r, t) = torch.randn(1000, dtype=T64), torch.rand(2, 1000, dtype=T64).sort(0).values
    t = t + 1e-3
    change = P.along(u, z, r, t, v(z, t))
    assert (u(z, r, t) + (t - r) * change - v(z, t)).abs().max() < 1e-12


def test_difference_is_the_jvp():
    torch.manual_seed(0)
    model = P.Model(tiny()).double()
    z, seen = torch.randn(8, 10, 2, dtype=T64), torch.randn(8, 2, 20, dtype=T64)
    r, t = torch.rand(2, 8, dtype=T64).sort(0).values
    v = torch.randn_like(z)
    u = lambda z, r, t: model.uv(z, r, t, seen.repeat(len(z) // 8, 1, 1))[0]
    exact = P.along(u, z, r, t, v)
    scale = exact.abs().max()
    assert (P.along_difference(u, z, r, t, v, 1e-5) - exact).abs().max() < 1e-6 * max(1, scale)
    assert (P.along_difference(u, z, r, t, v) - exact).abs().max() < 1e-2 * scale


def test_difference_under_autocast():
    """bfloat16 has no digits left for a difference, so its two passes run in float32."""
    torch.manual_seed(0)
    model = P.Model(tiny(init_std=0.0))
    z, seen = torch.randn(8, 10, 2), torch.randn(8, 2, 20)
    r, t = torch.rand(2, 8).sort(0).values
    uv = lambda z, r, t, rows: model.uv(z, r, t, seen[rows])
    rows = torch.arange(8)
    exact = P.du_dt(uv, z, r, t, rows, 'jvp')
    with torch.autocast('cpu', torch.bfloat16):
        rounded = P.du_dt(uv, z, r, t, rows, 'difference')
    # what is left is the tangent v, still in bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_exact_average_velocity_is_a_one_step_map():
    """x = z_1 - u(z_1, 0, 1) of a Gaussian: the noise times s0; the sampler, in any number of steps."""
    u, _ = gaussian(0.5)
    model = P.Model(tiny()).double()
    model.uv = lambda z, r, t, seen: (u(z, r[:, None, None], t[:, None, None]), None)
    torch.manual_seed(0)
    e = torch.randn(64, 10, 2, dtype=T64)
    for steps in (1, 2, 7):
        x = model.sample(torch.zeros(64, 2, 20, dtype=T64), steps, lambda k: e)
        assert (x - 0.5 * e).abs().max() < 1e-6, steps
        assert model.calls == steps


def test_point_mass():
    """Data at c: u = (z - c) / t for every r; du/dt along v is 0, and one step returns c."""
    c, z = 0.3, torch.randn(50, dtype=T64)
    r, t = torch.rand(2, 50, dtype=T64).sort(0).values
    u = lambda z, r, t: (z - c) / t
    assert P.along(u, z, r, t, u(z, r, t)).abs().max() < 1e-9
    assert (z - u(z, 0, 1) - c).abs().max() < 1e-12


def test_equal_times_are_flow_matching():
    torch.manual_seed(0)
    cfg = tiny(r_equals_t=1.0)
    model = P.Model(cfg)
    batch = batch_of(cfg) | {'noise': torch.randn(4, 10, 2), 't': torch.rand(4)}
    batch['r'] = batch['t'].clone()
    out = model(batch)
    x, e, t = model.normalise(batch, 'action'), batch['noise'], batch['t']
    z = (1 - t[:, None, None]) * x + t[:, None, None] * e
    u, v = model.uv(z, t, t, model.encode(batch))
    errors = [(guess - (e - x)).square().sum((1, 2)) for guess in (u, v)]
    want = sum((error / (error.detach() + 0.01)).mean() for error in errors)
    assert torch.equal(out['loss'], want)
    assert torch.allclose(out['mse_u'], (u - (e - x)).square().mean())


def test_taught_velocities_only_it_takes_euler_steps():
    torch.manual_seed(0)
    model, seen, e = P.Model(tiny(r_equals_t=1.0)), torch.randn(4, 2, 20), torch.randn(4, 10, 2)
    z = e
    for t in (1.0, 0.75, 0.5, 0.25):
        now = torch.full((4,), t)
        z = z - 0.25 * model.uv(z, now, now, seen)[0]
    assert torch.allclose(model.sample(seen, 4, lambda k: e), z, atol=1e-6)


@pytest.mark.parametrize('how', ['jvp', 'difference'])
def test_gradient_is_that_of_the_naive_form(how):
    """v, u and du/dt of the whole batch in one jvp with its graph: same loss, same gradients."""
    torch.manual_seed(0)
    cfg = tiny(derivative=how)
    model = P.Model(cfg)
    batch = batch_of(cfg, 6) | {'noise': torch.randn(6, 10, 2)}
    batch['r'], batch['t'] = torch.tensor([[.2, .6, .4, .1, .0, .3], [.2, .6, .4, .5, .9, .8]])
    loss = model(batch)['loss']
    loss.backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.__class__ = Naive
    naive = model(batch)['loss']
    naive.backward()
    tolerance = 1e-6 if how == 'jvp' else 1e-4
    assert abs(naive.item() - loss.item()) < tolerance
    for (name, p), own in zip(model.named_parameters(), ours):
        assert (p.grad - own).abs().max() < tolerance * max(1, p.grad.abs().max()), name


def test_sign_of_time():
    """t = 1 is noise: z_1 is the noise, z_0 the data, and dz/dt = e - x."""
    x, e = torch.randn(2, 3, 10, 2, dtype=T64)
    t = torch.rand(3, dtype=T64)
    assert torch.equal(P.interpolate(x, e, torch.zeros(3, dtype=T64)), x)
    assert torch.equal(P.interpolate(x, e, torch.ones(3, dtype=T64)), e)
    slope = (P.interpolate(x, e, t + 1e-6) - P.interpolate(x, e, t)) / 1e-6
    assert (slope - (e - x)).abs().max() < 1e-8


def test_times_are_as_published():
    torch.manual_seed(0)
    cfg = tiny()
    r, t = P.draw_times(100_000, cfg, 'cpu')
    assert (r <= t).all() and torch.equal(r[:50_000], t[:50_000]) and (r[50_000:] < t[50_000:]).all()
    # the larger of two draws of sigmoid(n - 0.4): its median has both below with probability 1/2
    middle = 1 / (1 + math.exp(-(torch.special.ndtri(torch.tensor(0.5 ** 0.5)).item() - 0.4)))
    assert abs(t.median().item() - middle) < 5e-3
    r, t = P.draw_times(7, tiny(r_equals_t=0.0), 'cpu')
    assert (r < t).all()


class Toy(nn.Module):
    """A chunk of one action with one number."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU()]
        self.body, self.heads = nn.Sequential(*layers), nn.Linear(64, 2)

    def forward(self, z, r, t, rows=None):
        x = torch.stack([z[:, 0, 0], t, t - r], 1)
        u, v = self.heads(self.body(x)).chunk(2, -1)
        return u[:, None], v[:, None]


def test_learns_two_modes_in_one_step():
    """1-D data at +-0.7: after 1500 steps the one-step samples are within W1 < 0.1 of it."""
    torch.manual_seed(0)
    toy, cfg = Toy(), tiny()
    steps = 1500
    optimizer = torch.optim.AdamW(toy.parameters(), lr=2e-3, weight_decay=0)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = 2e-3 * (1 - step / steps)
        x = 0.7 * torch.randn(256, 1, 1).sign() + 0.05 * torch.randn(256, 1, 1)
        r, t = P.draw_times(256, cfg, 'cpu')
        loss, *_ = P.imf_loss(toy, x, torch.randn_like(x), r, t, cfg, torch.ones_like(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = torch.randn(10_000, 1, 1)
        one, zero = torch.ones(10_000), torch.zeros(10_000)
        x = (z - toy(z, zero, one)[0]).flatten().sort().values
    data = (0.7 * torch.randn(10_000).sign() + 0.05 * torch.randn(10_000)).sort().values
    assert (x - data).abs().mean() < 0.1


# ---- diffusion ----

@pytest.mark.parametrize('steps', [1, 7, 10, 50, 100])
def test_diffusion_is_diffusers(steps):
    """
    Schedule, DDPM and DDIM against diffusers: squaredcos_cap_v2, epsilon, fixed_small, clip_sample 1; DDIM
    with leading spacing, set_alpha_to_one, eta 0. Its schedule is float32; its steps are given our float64.
    """
    diffusers = pytest.importorskip('diffusers')
    common = dict(num_train_timesteps=100, beta_schedule='squaredcos_cap_v2', clip_sample=True,
                  prediction_type='epsilon')
    if steps == 100:
        theirs = diffusers.DDPMScheduler(variance_type='fixed_small', **common)
    else:
        theirs = diffusers.DDIMScheduler(set_alpha_to_one=True, timestep_spacing='leading', **common)
    theirs.set_timesteps(steps)
    bars = P.alpha_bars(100)
    assert (bars - theirs.alphas_cumprod.double()).abs().max() < 1e-6
    theirs.alphas_cumprod, stride = bars, 100 // steps
    ours = [*reversed(range(0, stride * steps, stride))]
    assert ours == theirs.timesteps.tolist()
    torch.manual_seed(0)
    for t in ours:
        z, eps = torch.randn(2, 5, 10, 2, dtype=T64)
        now, before = bars[t].item(), bars[t - stride].item() if t >= stride else 1.0
        if steps == 100:
            want = theirs.step(eps, t, z, generator=torch.Generator().manual_seed(t)).prev_sample
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(t), dtype=T64)
            got = P.ddpm_step(z, eps, now, before, noise if t else 0.0)
        else:
            want, got = theirs.step(eps, t, z, eta=0.0).prev_sample, P.ddim_step(z, eps, now, before)
        assert (want - got).abs().max() < 1e-6 * max(1, want.abs().max()), t
        x, level = torch.randn(5, 10, 2, dtype=T64), torch.full((5,), t)
        assert (theirs.add_noise(x, eps, level) - P.add_noise(x, eps, bars[level])).abs().max() < 1e-6


def test_calls_by_objective():
    """0 is what the objective is meant for."""
    for objective, calls in ('imf', 1), ('flow', 10), ('ddpm', 100):
        cfg = tiny(objective=objective)
        model = P.Model(cfg).eval()
        model.act(batch_of(cfg))
        assert model.calls == P.calls_of(cfg, 0) == calls
        model.act(batch_of(cfg), steps=2)
        assert model.calls == 2
    with pytest.raises(ValueError, match='steps = 3: ddpm wants a divisor'):
        model.act(batch_of(cfg), steps=3)
    with pytest.raises(ValueError, match='steps = -1: must be 0 or more'):
        model.act(batch_of(cfg), steps=-1)


def test_pictures_of_another_kind_are_refused():
    model = P.Model(P.Config(n_embd=32, n_layer=1)).eval()
    batch = batch_of(model.cfg, 1)
    for image in batch['image.top'].float() / 255, batch['image.top'][..., :48, :48]:
        with pytest.raises(AssertionError, match='want uint8 .3, 96, 96.'):
            model.act(batch | {'image.top': image})


def test_loss_of_a_validation_is_the_plain_error():
    """That of training is divided by itself, and hardly moves."""
    torch.manual_seed(0)
    model, batch = P.Model(tiny()), batch_of(tiny()) | {'noise': torch.randn(4, 10, 2)}
    batch['r'], batch['t'] = torch.tensor([[.1, .3, .2, .4], [.1, .3, .5, .9]])
    trained, judged = model(batch), model.eval()(batch)
    assert torch.allclose(judged['loss'], trained['mse_u']) and trained['loss'] > 1.9


def test_steps_of_ddpm():
    """All steps are DDPM, which draws noise; fewer are DDIM, which does not."""
    torch.manual_seed(0)
    model, seen = P.Model(tiny(objective='ddpm', num_train_steps=20)), torch.zeros(3, 2, 20)
    for steps, draws in (20, 20), (5, 1), (1, 1):
        noise = iter([torch.randn(3, 10, 2) for _ in range(draws)])
        model.sample(seen, steps, lambda k, noise=noise: next(noise))
        assert next(noise, None) is None and model.calls == steps


# ---- the network ----

@pytest.mark.parametrize('over, trunk', [
    ({'objective': 'ddpm'}, 6_868_482), ({'objective': 'imf'}, 6_869_252), ({'objective': 'flow'}, 6_868_482),
    ({'objective': 'ddpm', 'n_layer': 8}, 8_975_362)])
def test_parameter_counts(over, trunk):
    with torch.device('meta'):
        model = P.Model(P.Config(**over))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert encoder == 11_197_088 and sum(p.numel() for p in model.parameters()) - encoder == trunk
    assert sum(p.numel() for p in model.encoder.resnet.parameters()) == 11_176_512


def test_weights_at_the_start():
    """Normal with init_std; with 0 the spread of a layer's output is that of its input, in every width."""
    torch.manual_seed(0)
    for n_embd in (64, 256):
        for init_std, want in (0.02, 0.02), (0.0, n_embd ** -0.5):
            layer = P.Model(P.Config(obs='keypoints', n_embd=n_embd, init_std=init_std)).blocks[0].linear1
            assert layer.weight.std().item() == pytest.approx(want, rel=0.05)
            assert not layer.bias.any()


def test_who_sees_whom():
    """Actions those before them; the first one only the first observation, the others both; all the time."""
    torch.manual_seed(0)
    for objective, n_times in ('imf', 2), ('ddpm', 1):
        model = P.Model(tiny(objective=objective)).double()
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)          # a fresh model hardly looks at anything
        z, seen = torch.randn(1, 10, 2, dtype=T64), torch.randn(1, 2, 20, dtype=T64)
        times = torch.rand(1, n_times, dtype=T64)
        jacobian = torch.autograd.functional.jacobian(lambda *args, net=model.net: net(*args)[0][0].sum(1),
                                                      (z, times, seen))
        of_z, of_times, of_seen = (j[:, 0].flatten(2).abs().sum(-1) if j.ndim > 3 else j[:, 0].abs()
                                   for j in jacobian)
        assert torch.equal(of_z > 0, torch.ones(10, 10, dtype=bool).tril())
        assert (of_times > 0).all()
        want = torch.ones(10, 2, dtype=bool)
        want[0, 1] = False
        assert torch.equal(of_seen > 0, want)


def test_rows_do_not_depend_on_each_other():
    torch.manual_seed(0)
    for objective, steps in ('imf', 1), ('flow', 3), ('ddpm', 100):
        cfg = tiny(objective=objective)
        model, obs = P.Model(cfg).eval(), batch_of(cfg, 3)
        seeds = lambda *numbers: [torch.Generator().manual_seed(n) for n in numbers]
        together = model.act(obs, steps, seeds(5, 6, 7))
        alone = model.act({key: x[1:2] for key, x in obs.items()}, steps, seeds(6))
        assert together.shape == (3, 8, 2) and torch.allclose(together[1:2], alone, atol=1e-5)


def test_reads_nothing_but_its_windows():
    """The pose, which holds the T, and the actions are no observation."""
    cfg = tiny()
    model, obs = P.Model(cfg).eval(), batch_of(cfg)
    seeds = lambda: [torch.Generator().manual_seed(n) for n in range(4)]
    whole = model.act(obs | {'pose': torch.randn(4, 2, 5)}, generators=seeds())
    less = model.act({key: obs[key] for key in ('state', 'env_state')}, generators=seeds())
    assert torch.equal(whole, less)
    assert 'pose' not in P.windows(cfg) and 'env_state' not in P.windows(P.Config())
    assert [*P.windows(P.Config())['action']] == [*range(-1, 9)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=2),
       st.integers(0, 99))
def test_units_round_trip(limits, seed):
    model = P.Model(tiny())
    low = torch.tensor([a for a, _ in limits])
    model.action_min.copy_(low)
    model.action_max.copy_(low + torch.tensor([b for _, b in limits]))
    x = torch.rand(3, 10, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    ends = torch.stack([model.action_min, model.action_max])
    # float32 knows a place of some size to 1e-7 of it, which is more of a small span
    near = 1e-5 + 1e-6 * ends.abs().max(0).values / (ends[1] - ends[0])
    assert ((model.normalise({'action': model.unnormalise(x)}, 'action') - x).abs() <= near).all()
    assert ((model.normalise({'action': ends}, 'action') - torch.tensor([[-1.], [1.]])).abs() <= near).all()


def test_constant_columns():
    model = P.Model(tiny())
    model.state_min.fill_(7.0)
    model.state_max.fill_(7.0)
    assert (model.normalise({'state': torch.full((1, 2, 2), 7.0)}, 'state') == 0).all()


def test_padding_as_a_target_or_not():
    torch.manual_seed(0)
    for objective in ('imf', 'flow', 'ddpm'):
        for wanted in (True, False):
            cfg = tiny(objective=objective, loss_on_pad=wanted)
            torch.manual_seed(0)
            model, batch = P.Model(cfg), batch_of(cfg)
            batch['mask'][:, 7:] = False
            batch |= {'noise': torch.randn(4, 10, 2), 't': torch.full((4,), 0.5), 'r': torch.full((4,), 0.5)}
            if objective == 'ddpm':
                batch['t'] = torch.full((4,), 50)
            loss = model(batch)['loss'].item()
            batch['action'][:, 9:] += 1                  # causal: no real action sees it
            assert (model(batch)['loss'].item() != loss) == wanted, (objective, wanted)


def test_groups_of_the_optimizer():
    model = P.Model(P.Config(n_embd=32, n_layer=1))
    groups = model.configure_optimizers(1e-4, 1e-3, (0.9, 0.95)).param_groups
    by = {group['weight_decay']: group['params'] for group in groups}
    assert by.keys() == {1e-3, 0.0, 1e-6}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split('.')[0] for p in by[1e-6]} == {'encoder'}
    assert all(p.ndim == 2 for p in by[1e-3]) and all(p.ndim != 2 for p in by[0.0])
    assert {'pos_emb', 'cond_pos_emb', 'ln_f.weight'} <= {names[id(p)] for p in by[0.0]}
    assert sum(len(group['params']) for group in groups) == len(names)


def test_flops_are_those_of_the_matmuls():
    """Against torch's own counter; it knows no forward derivative, so imf is counted with the difference."""
    from torch.utils.flop_counter import FlopCounterMode
    for cfg in (tiny(objective='ddpm'), tiny(r_equals_t=0.5, derivative='difference'),
                P.Config(objective='ddpm', n_embd=32, n_layer=1)):
        model = P.Model(cfg)
        with FlopCounterMode(display=False) as counter:
            model(batch_of(cfg))['loss'].backward()
        assert model.flops_per_sample() == pytest.approx(counter.get_total_flops() / 4, rel=0.03)


@pytest.mark.parametrize('over, word', [
    ({'objective': 'gan'}, 'objective'), ({'obs': 'pose'}, 'obs'), ({'derivative': 'guess'}, 'derivative'),
    ({'n_embd': 30}, 'n_embd'), ({'horizon': 8}, 'horizon'), ({'crop': 97, 'obs': 'image'}, 'crop'),
    ({'steps': -1}, 'steps'), ({'objective': 'ddpm', 'steps': 101}, 'steps'), ({'dropout': 1.0}, 'dropout'),
    ({'objective': 'ddpm', 'steps': 60}, 'steps'), ({'dropout': 0.1, 'derivative': 'difference'}, 'dropout'),
    ({'crop': 32, 'obs': 'image'}, 'crop'), ({'p_mean': math.inf}, 'p_mean'), ({'n_embd': 10}, 'n_embd'),
    ({'norm_eps': 0.0}, 'norm_eps'), ({'time_scale': math.inf}, 'time_scale'),
    ({'init_std': -0.1}, 'init_std'), ({'drop_n_last_frames': -1}, 'drop_n_last_frames')])
def test_impossible_values(over, word):
    with pytest.raises(ValueError, match=f'^{word} = '):
        P.Model(P.Config(**{'obs': 'keypoints', 'n_embd': 32, 'n_layer': 1} | over))


# ---- vision.py ----

def test_spatial_softmax_finds_the_spot():
    layer = vision.SpatialSoftmax(1, 1)
    with torch.no_grad():
        layer.maps.weight.fill_(1.0)
        layer.maps.bias.zero_()
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 1, 6] = 100.0
    assert torch.allclose(layer(x), torch.tensor([[[0.5, -0.5]]]), atol=1e-5)
    assert torch.allclose(layer(torch.zeros(1, 1, 5, 9)), torch.zeros(1, 1, 2), atol=1e-6)


@pytest.mark.parametrize('side, cells', [(76, 3), (84, 3), (96, 3), (64, 2)])
def test_resnet_shapes(side, cells):
    with torch.device('meta'):
        assert vision.ResNet18()(torch.empty(2, 3, side, side)).shape == (2, 512, cells, cells)


def test_resnet_is_that_of_transformers():
    """The same weights in Hugging Face's ResNet-18, its BatchNorms made GroupNorms: 1e-5."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    cfg = transformers.ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
                                    layer_type='basic', hidden_act='relu')
    theirs, ours = transformers.ResNetModel(cfg), vision.ResNet18()

    def group_norms(module):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(child.num_features // 16, child.num_features))
            else:
                group_norms(child)
    group_norms(theirs)
    order = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.GroupNorm)]
    # theirs lists a shortcut before the convolutions of its block, ours after them
    ours_order = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.GroupNorm)]
    blocks, i = [ours_order[:2]], 2
    while i < len(ours_order):
        short = i + 4 < len(ours_order) and getattr(ours_order[i + 4], 'kernel_size', 0) == (1, 1)
        block = ours_order[i:i + 4]
        blocks.append((ours_order[i + 4:i + 6] if short else []) + block)
        i += 6 if short else 4
    for theirs_one, ours_one in zip(order, sum(blocks, [])):
        theirs_one.load_state_dict(ours_one.state_dict())
    x = torch.randn(2, 3, 76, 76)
    with torch.no_grad():
        want, got = theirs.eval()(x).last_hidden_state, ours(x)
    assert (want - got).abs().max() < 1e-5 * max(1, want.abs().max())


def test_crops():
    torch.manual_seed(0)
    images = torch.arange(2 * 3 * 12 * 12).view(2, 3, 12, 12)
    assert torch.equal(vision.crop(images, 8, random=False), images[:, :, 2:10, 2:10])
    seen = set()
    for _ in range(300):
        for image, cut in zip(images, vision.crop(images, 8, random=True)):
            at = cut[0, 0, 0].item() - image[0, 0, 0].item()
            y, x = at // 12, at % 12
            assert torch.equal(cut, image[:, y:y + 8, x:x + 8])
            seen.add((y, x))
    assert seen == {(y, x) for y in range(5) for x in range(5)}
    with pytest.raises(ValueError, match='crop = 13'):
        vision.crop(images, 13, random=False)


def test_crops_only_in_training():
    """In eval mode the middle, so that a validation says the same twice."""
    cfg = P.Config(n_embd=32, n_layer=1, objective='flow')
    torch.manual_seed(0)
    model, batch = P.Model(cfg), batch_of(cfg, 1)
    model.eval()
    assert torch.equal(model.encode(batch), model.encode(batch))
    model.train()
    assert not torch.equal(model.encode(batch), model.encode(batch))
    assert np.isfinite(model(batch)['loss'].item())
