"""
nanowm_imf.py: the identity where the flow is known in closed form, no gradient through du/dt, and a network
that is nanowm's until it has learned what a span of time is.
"""
import runpy
from dataclasses import replace

import pytest
import torch

import nanowm_imf
from imf_policy import along_difference

CFG = nanowm_imf.PRESETS['tiny']
STD = 0.7                     # of the frames below, around a mean of 0


def build(cfg=CFG, live=True):
    torch.manual_seed(0)
    model = nanowm_imf.Model(cfg)
    if live:                                                 # at first the network answers 0
        for p in model.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return model.eval()


def spread(t):
    """Std of z_t, if frames have STD and the mean 0."""
    return ((1 - t) ** 2 * STD ** 2 + t ** 2).sqrt()[:, None, None, None, None]


def exact(z, r, t, context, action):
    """f for Gaussian frames: the flow keeps z / spread, so z_r = z spread(r) / spread(t)."""
    wide, span = t[:, None, None, None, None], (t - r)[:, None, None, None, None]
    v = z * (wide - (1 - wide) * STD ** 2) / spread(t) ** 2          # the limit of u where r = t
    u = torch.where(span > 0, (z - z * spread(r) / spread(t)) / span.clamp(min=1e-12), v)
    return z - wide * u


def draws(n=6):
    torch.manual_seed(1)
    r, t = torch.rand(2, n, dtype=torch.float64).sort(0).values
    return torch.randn(n, 1, 4, 8, 8, dtype=torch.float64), r, t + 0.02


def test_identity_where_the_flow_is_known(monkeypatch):
    """E[x | z] + t (t - r) du/dt is what the network should say, so the loss has its minimum at the truth."""
    model = build()
    monkeypatch.setattr(model, 'frame', exact)
    z, r, t = draws()
    change = model.du_dt(z, r, t, None, None)
    wide, span = t[:, None, None, None, None], (t - r)[:, None, None, None, None]
    mean = z * (1 - wide) * STD ** 2 / spread(t) ** 2                # E[x | z_t]
    assert torch.allclose(mean + wide * span * change, exact(z, r, t, None, None), atol=1e-9)
    assert (change.abs() > 0.1).any()


def test_du_dt_is_the_networks_own_derivative():
    """Against a central difference, whose error in float32 is about 1 %."""
    model = build()
    z, r, t = (y.float() for y in draws())
    context, action = torch.randn(6, 1, 4, 8, 8), torch.randn(6, 1, CFG.action_dim)

    def u(z, r, t):
        rows = len(z) // 6
        seen = context.repeat(rows, 1, 1, 1, 1), action.repeat(rows, 1, 1)
        return (z - model.frame(z, r, t, *seen)) / t[:, None, None, None, None]
    with torch.no_grad():
        expected = along_difference(u, z, r, t, u(z, t, t), delta=3e-3)
    got = model.du_dt(z, r, t, context, action)
    assert (got - expected).abs().max() <= 0.02 * expected.abs().max()


def test_loss_by_hand_and_no_gradient_through_the_target():
    model = build().train()
    batch = nanowm_imf.example(CFG, 4)
    batch |= {'t': torch.tensor([0.5, 0.6, 0.9, 1.0]), 'r': torch.tensor([0.5, 0.2, 0.1, 0.0]),
              'noise': torch.randn(4, 1, 4, 8, 8)}
    out = model(batch)
    x, context = batch['latent'][:, 1:], batch['latent'][:, :1]
    t, r = batch['t'], batch['r']
    wide = t[:, None, None, None, None]
    z, action = (1 - wide) * x + wide * batch['noise'], batch['action']
    change = model.du_dt(z, r, t, context, action)
    assert not change.requires_grad
    target = x + wide * (t - r)[:, None, None, None, None] * change
    guess = model.frame(z, r, t, context, action)
    assert torch.allclose(out['loss'], (guess - target).square().mean(), rtol=1e-5)
    plain = (guess - x).square().mean()
    assert not torch.allclose(out['loss'], plain, rtol=1e-3)
    ours = torch.autograd.grad(out['loss'], model.final_layer.linear.weight)[0]
    hand = torch.autograd.grad((guess - target).square().mean(), model.final_layer.linear.weight)[0]
    assert torch.allclose(ours, hand, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('steps', (1, 3))
def test_sampler_ends_on_the_flow(monkeypatch, steps):
    """With the exact u any number of steps ends where the flow does: at noise * STD."""
    model = build(replace(CFG, sample_steps=steps))

    def net(x, times, action, start, kv):
        t, span = times[:, -1].unbind(-1)
        return exact(x[:, -1:], (t - span).clamp(min=0), t, None, None), []
    monkeypatch.setattr(model, 'net', net)
    x = torch.randn(3, 2, 4, 8, 8)
    dream = model.denoise(x, torch.zeros(3, 1, CFG.action_dim), None, 1)
    assert torch.equal(dream[:, 0], x[:, 0])
    assert torch.allclose(dream[:, 1], STD * x[:, 1], atol=1e-5)


@pytest.mark.parametrize('skip', (False, True))
def test_rollout_shares_a_context(skip):
    """What many futures keep of their context changes nothing: 1e-5."""
    model = build(replace(CFG, skip=skip, sample_steps=2))
    batch = nanowm_imf.example(CFG, 2)
    context = {'latent': batch['latent'][:, :1], 'action': batch['action'][:, :0]}
    action, noise = torch.randn(2, 3, 4, CFG.action_dim), torch.randn(2, 4, 4, 8, 8)
    dream = model.rollout(context, action, noise=noise)['latent']
    alone = [model.rollout(context, action[:, i:i + 1], noise=noise)['latent'] for i in range(3)]
    assert dream.shape == (2, 3, 4, 4, 8, 8) and torch.allclose(dream, torch.cat(alone, 1), atol=1e-5)
    assert not torch.allclose(dream[:, 0], dream[:, 1])


def test_at_first_all_spans_are_the_same():
    model = build(live=False)
    t = torch.tensor([[[0.7, 0.7], [0.7, 0.1]]])
    assert torch.equal(*model.embed_level(t)[0])
    assert torch.equal(model.embed_level(torch.tensor([[-1]])), model.embed_level(torch.zeros(1, 1, 2)))


def test_times():
    torch.manual_seed(0)
    r, t = nanowm_imf.draw_times(400, torch.device('cpu'))
    assert (r[:100] == t[:100]).all() and (t[200:] == 1).all() and (r[200:] == 0).all()
    assert (r[100:200] <= t[100:200]).all() and (r[100:200] < t[100:200]).float().mean() > 0.9
    assert t.min() >= nanowm_imf.LEAST_T


@pytest.mark.parametrize('key, value', [('num_frames', 3), ('pred', 'v'), ('context_t', 5),
                                        ('snr_gamma', 5.0)])
def test_what_it_does_not_know(key, value):
    with pytest.raises(ValueError, match=f'{key} = {value}: must be .* in nanowm_imf.py'):
        nanowm_imf.Model(replace(CFG, **{key: value}))


def test_lesson_zero(capsys):
    runpy.run_path(nanowm_imf.__file__, run_name='__main__')
    assert '6 dreamed frames of 5 futures for 4 clips (4, 5, 6, 4, 8, 8)' in capsys.readouterr().out
