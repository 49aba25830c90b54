"""remdm.py against closed forms, the published planner's numbers, and what golden files cannot see."""
import glob
import math
import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, script
from golden import check as check_golden

import remdm
from remdm import MASK_ID, PAD_ID, Config, Model, corrupt, loss_of

TINY = remdm.PRESETS['tiny']
PLANNERS = sorted(glob.glob(os.path.join(SHARED, 'reference', 'remdm_*.safetensors')))


def tiny(**keys):
    torch.manual_seed(0)
    return Model(replace(TINY, **keys)).eval()


# ---- the original ----

@pytest.mark.parametrize('path', PLANNERS or [None], ids=lambda p: os.path.basename(p or 'none'))
def test_golden(path):
    if path is None:
        pytest.skip('no golden file of the planner beside the repository (../shared/reference)')
    rows = check_golden(path)
    assert len(rows) >= 10
    for name, error, allowed in rows:
        assert error <= allowed, f'{name}: {error} > {allowed}'


def test_parameter_counts():
    assert sum(p.numel() for p in Model(Config()).parameters()) == 5_241_935
    assert sum(p.numel() for p in Model(Config(use_global=False)).parameters()) == 4_956_012
    assert len(Model(Config()).state_dict()) == 72 and len(Model(Config(use_global=False)).state_dict()) == 60
    big = Config(n_embd=384, n_head=6)
    assert sum(p.numel() for p in Model(big).parameters()) == 9_893_455


def test_against_torchs_encoder():
    """The published network is torch's own encoder, pre-norm, exact GELU, without a final norm."""
    model = tiny(n_embd=48, n_layer=3)
    layer = torch.nn.TransformerEncoderLayer(48, 4, 192, 0.0, 'gelu', batch_first=True, norm_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    theirs.load_state_dict({key[12:]: value for key, value in model.state_dict().items()
                            if key.startswith('transformer.')})
    x = torch.randn(2, 25, 48)
    ours = x
    for block in model.transformer['layers']:
        ours = block(ours)
    assert (ours - theirs(x)).abs().max() < 1e-5


def test_pictures_use_the_exact_gelu():
    assert all(m.approximate == 'none' for m in tiny().modules() if isinstance(m, torch.nn.GELU))


def test_from_pretrained(tmp_path):
    """A published file holds numpy's random state; it is read without trusting the pickle."""
    model = tiny(seq_len=24, n_embd=32)
    average = {key: value + 1 for key, value in model.named_parameters()}
    torch.save({'model_state_dict': model.state_dict(), 'ema_state_dict': average, 'iteration': 3,
                'rng_states': {'numpy': np.random.RandomState(0).get_state(), 'python': (3, (1, 2), None)}},
               tmp_path / 'iter3.pth')
    there = Model.from_pretrained(tmp_path / 'iter3.pth', n_head=4)
    assert there.cfg.seq_len == 24 and there.cfg.n_layer == 2 and there.cfg.alias_actions
    for key, value in there.named_parameters():
        assert torch.equal(value, average[key])
    raw = Model.from_pretrained(tmp_path / 'iter3.pth', ema=False)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in raw.state_dict().items())
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    assert Model.from_pretrained(tmp_path / 'bare.pth').cfg.n_embd == 32
    local = tiny(use_global=False)
    torch.save({'model_state_dict': local.state_dict(), 'ema_state_dict': None}, tmp_path / 'local.pth')
    assert not Model.from_pretrained(tmp_path / 'local.pth').cfg.use_global


@pytest.mark.parametrize('content, says', [(None, 'cannot read'), ({'x': 1}, 'holds no planner'),
                                           ({'ema_state_dict': {'a': torch.ones(1)}}, 'holds no planner')])
def test_from_pretrained_of_something_else(tmp_path, content, says):
    path = tmp_path / 'x.pth'
    if content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit, match=says) as stop:
        Model.from_pretrained(path)
    assert '\n' not in stop.value.code and 'x.pth' in stop.value.code


# ---- noise and loss ----

def test_schedules():
    t = torch.tensor([0, 1 / 3, 1 / 2, 2 / 3, 1], dtype=torch.float64)
    for name, want in (('linear', [1, 2 / 3, 1 / 2, 1 / 3, 0]), ('cosine', [1, .75, .5, .25, 0])):
        alpha, slope = remdm.SCHEDULES[name]
        assert (alpha(t) - torch.tensor(want)).abs().max() < 1e-6
        x = t.clone().requires_grad_()
        assert (torch.autograd.grad(alpha(x).sum(), x)[0] + slope(t)).abs().max() < 1e-6


def test_corrupt():
    x = torch.randint(0, 12, (200, 64))
    x[:, 50:] = PAD_ID
    u = torch.rand(200, 64)
    assert torch.equal(corrupt(x, torch.zeros(200), u, 'linear'), x)
    all_masked = corrupt(x, torch.ones(200), u, 'linear')
    assert (all_masked[:, :50] == MASK_ID).all() and (all_masked[:, 50:] == PAD_ID).all()
    half = corrupt(x, torch.full((200,), 0.5), u, 'linear')[:, :50]
    assert abs((half == MASK_ID).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(200 * 50)


def flat(masked, real, t=1.0, L=8, **keys):
    """Loss of uniform logits with so many masked of so many real positions."""
    x = torch.full((1, L), PAD_ID)
    x[:, :real] = 3
    z = x.clone()
    z[:, :masked] = MASK_ID
    return loss_of(torch.zeros(1, L, 12, requires_grad=True), x, z, torch.tensor([t]), Config(**keys))


def test_loss():
    assert flat(8, 8).item() == pytest.approx(math.log(12), abs=1e-6)
    assert flat(4, 8).item() == pytest.approx(math.log(12), abs=1e-6)
    assert flat(6, 6).item() == pytest.approx(math.log(12), abs=1e-6)        # PAD does not count
    nothing = flat(0, 8)
    nothing.backward()
    assert nothing.item() == 0
    weighted = flat(4, 8, 0.5, use_importance_weighting=True)                # linear: w = 1 / t
    assert weighted.item() == pytest.approx(2 * math.log(12), rel=1e-6)
    assert flat(4, 8, 1e-6, use_importance_weighting=True).item() == pytest.approx(1000 * math.log(12))


def test_flat_means_over_the_batch_weighted_over_plans():
    x = torch.full((2, 4), 2)
    z = torch.tensor([[MASK_ID] * 4, [MASK_ID, 2, 2, 2]])
    logits = torch.zeros(2, 4, 12)
    logits[1, :, 2] = 5.0
    a, b = math.log(12), math.log(11 + math.exp(5)) - 5
    t = torch.tensor([1.0, 0.25])
    assert loss_of(logits, x, z, t, Config()).item() == pytest.approx((4 * a + b) / 5, rel=1e-6)
    weighted = loss_of(logits, x, z, t, Config(use_importance_weighting=True)).item()
    assert weighted == pytest.approx((a + 4 * b) / 2, rel=1e-5)


def test_label_smoothing():
    logits = torch.log(torch.tensor([.7, .1, .1, .1])).view(1, 1, 4)
    x, z = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), MASK_ID)
    got = loss_of(logits, x, z, torch.ones(1), Config(label_smoothing=0.3)).item()
    assert got == pytest.approx(-.775 * math.log(.7) - .225 * math.log(.1), abs=1e-5)


def test_goal_loss():
    glyphs = torch.full((3, 21, 79), 2378)
    glyphs[0, 0, 0] = glyphs[1, 20, 78] = remdm.DOWN
    for other in (62, 2310, 2368):                       # the published set: a monster, an object, a wall
        glyphs[2, 5, 5] = other
    guess = torch.tensor([[0, .5], [.5, 1], [math.nan, math.nan]], requires_grad=True)
    loss = remdm.goal_loss(guess, glyphs)
    assert loss.item() == pytest.approx(0.125)
    loss.backward()
    assert (guess.grad[2] == 0).all() and torch.isfinite(guess.grad).all()
    assert remdm.goal_loss(guess[2:], glyphs[2:]).item() == 0


def test_pad_input():
    """Published: the input shows how many steps are left. 'mask' hides that; real positions see the same."""
    model = tiny(pad_input='pad')
    batch = remdm.example(model.cfg, 4) | {'t': torch.full((4,), 0.5), 'noise': torch.rand(4, 16)}
    batch['mask'][:] = torch.arange(16) < 5
    seen = []
    model.denoise = lambda s, z, t: seen.append(z) or torch.zeros(*z.shape, 12, requires_grad=True)
    losses = [model(batch)['loss'].item()]
    model.cfg = replace(model.cfg, pad_input='mask')
    losses.append(model(batch)['loss'].item())
    assert losses[0] == losses[1]                        # the loss never counted PAD
    assert (seen[0][:, 5:] == PAD_ID).all() and (seen[1][:, 5:] == MASK_ID).all()
    assert torch.equal(seen[0][:, :5], seen[1][:, :5])


def test_everybody_sees_everybody():
    model = tiny()
    batch = remdm.example(model.cfg, 1)
    local, glyphs, z = batch['local'][:, 0], batch['glyphs'][:, 0], torch.full((1, 16), MASK_ID)
    t = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        logits, _ = model.net(local, glyphs, z, t)
        z[0, 7] = 3
        assert ((model.net(local, glyphs, z, t)[0] - logits).abs().amax(-1) > 0).all()
        other = glyphs.clone()
        other[0, 20, 78] = 5
        assert (model.net(local, other, z, t)[0] != model.net(local, glyphs, z, t)[0]).any()
    blind = Model(replace(TINY, use_global=False)).eval()
    with torch.no_grad():
        assert torch.equal(blind.net(local, other, z, t)[0], blind.net(local, glyphs, z, t)[0])


# ---- samplers ----

class Stub:
    """
    A denoiser whose logits are random but the same for every call, and which notes the time it is asked.
    """

    def __init__(self, B, L, seed=0):
        self.logits = torch.randn(B, L, 12, generator=torch.Generator().manual_seed(seed))
        self.rows = []

    def __call__(self, z, row):
        self.rows.append(row)
        return self.logits


def open_positions(steps):
    return [(z == MASK_ID).double().sum(1).mean().item() for z in steps]


def start(B, L): return torch.full((B, L), MASK_ID)


def uniform(K, B, L, seed=0): return torch.rand(K, 2, B, L, generator=torch.Generator().manual_seed(seed))


def test_times_and_counts_of_remdm():
    """Published: n is what is committed per pass, not in all, so K = 10 passes are done after five."""
    stub = Stub(3, 64)
    steps = list(remdm.remdm_sample(stub, start(3, 64), 10, uniform(10, 3, 64), Config(eta=0.0)))
    assert stub.rows == [90, 80, 70, 60, 50, 40, 30, 19, 9, 0]
    assert open_positions(steps) == [64, 58, 46, 27, 2, 0, 0, 0, 0, 0, 0]
    stub = Stub(3, 64)
    steps = list(remdm.remdm_sample(stub, start(3, 64), 5, uniform(5, 3, 64), Config(eta=0.0)))
    assert stub.rows == [80, 60, 40, 19, 0] and open_positions(steps) == [64, 52, 27, 0, 0, 0]


@pytest.mark.parametrize('strategy', ['rescale', 'cap', 'conf'])
def test_remasking_takes_back_as_much_as_it_should(strategy):
    """Open positions per pass against a count that knows no tokens; four equal actions: confidence 1/4."""
    cfg, rng, counts = Config(eta=.5, remask_strategy=strategy), np.random.default_rng(0), []
    for _ in range(2000):
        m, line = 64, []
        for k in range(1, 11):
            s = k / 10
            p = {'rescale': .5 * s, 'cap': min(.5, s), 'conf': .5 * s * .75}[strategy]
            m = max(0, m - max(6, int(64 * s)))
            m = 0 if k == 10 else m + rng.binomial(64 - m, p)
            line.append(m)
        counts.append(line)
    stub = Stub(400, 64)
    stub.logits = torch.tensor([9.0] * 4 + [0.0] * 8).expand(400, 64, 12)
    got = open_positions(list(remdm.remdm_sample(stub, start(400, 64), 10, uniform(10, 400, 64), cfg)))
    assert np.abs(np.mean(counts, 0) - got[1:]).max() < 0.7          # 5 sigma of 400 plans


def test_remask_probabilities():
    confidence = torch.tensor([[0.0, 0.25, 1.0]])
    for k in range(1, 10):
        s = k / 10
        p = {name: remdm.remask_probability(confidence, s, Config(remask_strategy=name, eta=.15))
             for name in ('rescale', 'cap', 'conf')}
        assert torch.allclose(p['rescale'], torch.full((1, 3), .15 * s))
        assert torch.allclose(p['cap'], torch.full((1, 3), min(.15, s)))
        assert torch.allclose(p['conf'], .15 * s * (1 - confidence))


def test_temperature_and_top_k():
    logits = torch.tensor([0.0, 1.0] + [-40.0] * 10).expand(20_000, 1, 12)
    choice, p = remdm.sample_actions(logits, torch.rand(20_000, 1), Config(temperature=.5))
    assert abs((choice == 1).double().mean() - .8808) < .0143
    assert torch.allclose(p[choice == 1], torch.tensor(.8808), atol=1e-4)
    logits = torch.tensor([5., 4, 3, 2, 1] + [0.0] * 7).expand(2000, 1, 12)
    drawn, _ = remdm.sample_actions(logits, torch.rand(2000, 1), Config(temperature=9.0))
    assert set(drawn.flatten().tolist()) == {0, 1, 2, 3}
    edge = torch.tensor([[1.0], [0.0]])                  # rounding must not choose what was filtered out
    assert remdm.sample_actions(logits[:2], edge, Config())[0].max() <= 3


def test_greedy():
    stub = Stub(2, 64)
    steps = list(remdm.greedy_sample(stub, start(2, 64), 5))
    assert open_positions(steps) == [64, 52, 27, 0] and stub.rows == [80, 60, 40]  # two passes are left out
    assert torch.equal(steps[-1], stub.logits.argmax(-1))
    surest = stub.logits.softmax(-1).amax(-1).argsort(1, descending=True)
    for row in range(2):
        assert set((steps[1][row] != MASK_ID).nonzero().flatten().tolist()) == set(surest[row, :12].tolist())


def test_what_greedy_leaves_out_changes_nothing():
    model = tiny(seq_len=32)
    obs = remdm.example(model.cfg, 3)
    *_, early = model.plans(obs, 'greedy', 5)
    seen, _ = model.encode(obs['local'][:, 0], obs['glyphs'][:, 0])
    z = start(3, 32)
    for k in range(1, 6):                                # all five, without looking whether it is done
        row = torch.full((3,), int(100 * (1 - k / 5)))
        confidence, choice = model.denoise(seen, z, row).softmax(-1).max(-1)
        z = remdm.commit(z, choice, confidence, max(1, int(32 * k / 5)))
    assert torch.equal(early, z)


def test_ties_go_to_the_earlier_position():
    z = remdm.commit(start(1, 6), torch.arange(6)[None], torch.full((1, 6), .5), 2)
    assert z.tolist() == [[0, 1] + [MASK_ID] * 4]


def timed(row_to_token):
    """A denoiser that is sure of one token, which depends on the time."""
    def denoise(z, row):
        logits = torch.full((*z.shape, 12), -30.0)
        logits[..., row_to_token(row)] = 30.0
        return logits
    return denoise


@pytest.mark.parametrize('eta', [0.0, 0.5])
def test_posterior_is_the_chain_of_algorithm_1(eta):
    """K = 3, rescale: what was revealed when, in closed form."""
    denoise, B, L = timed(lambda row: 0 if row > 90 else 1 if row > 50 else 2), 512, 32
    cfg = Config(eta=eta, remask_strategy='rescale')
    *_, z = remdm.posterior_sample(denoise, start(B, L), 3, uniform(3, B, L), cfg)
    got = [(z == token).double().mean().item() for token in range(3)]
    assert np.allclose(got, [(1 - eta) / 3, (1 + eta) / 3, 1 / 3], atol=.02)


@pytest.mark.parametrize('K', [1, 7, 11, 13, 32])
@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_the_last_plan_is_whole(K, schedule):
    """Also where the last chance to be revealed is 1 less a rounding error, and the draw is almost 1."""
    cfg = Config(noise_schedule=schedule, remask_strategy='rescale')
    almost = torch.full((K, 2, 1, 8), 1 - 2 ** -24)
    for sample in (remdm.remdm_sample, remdm.posterior_sample):
        *_, z = sample(Stub(1, 8), start(1, 8), K, almost, cfg)
        assert (z != MASK_ID).all()


def test_posterior_counts():
    steps = list(remdm.posterior_sample(Stub(200, 64), start(200, 64), 10, uniform(10, 200, 64), Config()))
    want = [57.4, 51.6, 45.3, 39.1, 32.6, 26.4, 19.8, 13.2, 6.6, 0]          # measured on the original
    assert np.abs(np.subtract(open_positions(steps)[1:], want)).max() < 0.8
    stub = Stub(1, 8)
    none = list(remdm.posterior_sample(stub, start(1, 8), 10, uniform(10, 1, 8), Config(eta=0.0)))
    for before, after in pairwise(none):                 # eta = 0: what is committed stays
        assert torch.equal(after[before != MASK_ID], before[before != MASK_ID])
    assert stub.rows == [99, 90, 80, 70, 60, 50, 40, 30, 20, 10]


def test_plans_do_not_depend_on_the_others():
    model = tiny()
    obs = remdm.example(model.cfg, 4)
    for sampler in ('remdm', 'posterior'):
        def generators(rows): return [torch.Generator().manual_seed(7 + i) for i in rows]
        together = model.act(obs, 16, sampler, 6, generators(range(4)))
        some = model.act({key: x[1:3] for key, x in obs.items()}, 16, sampler, 6, generators((1, 2)))
        assert torch.equal(together[1:3], some)
        assert together.shape == (4, 16, 1) and together.dtype == torch.int64 and together.max() < 12


def test_blind_global():
    model = tiny(blind_global=True)
    obs = remdm.example(model.cfg, 2)
    other = obs | {'glyphs': obs['glyphs'] - 1}
    assert torch.equal(model.act(obs, sampler='greedy'), model.act(other, sampler='greedy'))


def test_collisions_follow_the_plan():
    local = torch.full((1, 9, 9), 2378)                  # floor all around
    local[0, :, 6] = 2360                                # a wall two to the right
    local[0, 2, 4] = 2359                                # blank two above: not known
    plan = torch.tensor([[1, 1, 1, 3, 0, 0]])            # E, E (wall), E (wall: still before it), W, N, N
    assert remdm.collisions(plan, plan, local).tolist() == [[False, True, True, False, False, False]]
    local[0, 3, 4] = 2359                                # blank beside the player is rock
    plan = torch.tensor([[0, 1]])
    assert remdm.collisions(plan, plan, local).tolist() == [[True, False]]
    open_plan = torch.tensor([[MASK_ID, 1]])             # an open position moves as it would be filled
    assert remdm.collisions(open_plan, torch.tensor([[1, 9]]), local).tolist() == [[False, True]]


def test_physics_aware_sampling_commits_collisions_last():
    obs = {'local': torch.full((1, 1, 9, 9), 2360), 'glyphs': torch.full((1, 1, 21, 79), 2359)}
    for aware in (False, True):
        model = tiny(physics_aware_sampling=aware, eta=0.0)
        model.denoise = lambda s, z, t: timed(lambda row: 1)(z, 0)           # always E, into the wall
        second = list(model.plans(obs, 'remdm', 10, [torch.Generator()]))[1]
        assert (second[0, 0] == MASK_ID) == aware


# ---- DAgger ----

def games(*rows): return np.array([(level, won, 10, 5, 0, 1) for level, won in rows], np.int64).reshape(-1, 6)


def test_curriculum():
    cfg = Config(envs=('a', 'b', 'c'), curriculum_preseed=False)
    rates = [(level, i < won) for level, won in enumerate((1, 5, 9)) for i in range(10)]
    assert np.allclose(remdm.curriculum(games(*rates), cfg), [.2 / 1.3, 1 / 1.3, .1 / 1.3])
    two = replace(cfg, envs=('a', 'b'))
    edge = [(0, i < 17) for i in range(20)] + [(1, i < 10) for i in range(20)]
    assert np.allclose(remdm.curriculum(games(*edge), two), [.5, .5])        # strictly above 0.85
    edge = [(0, i < 3) for i in range(20)] + [(1, i < 10) for i in range(20)]
    assert np.allclose(remdm.curriculum(games(*edge), two), [.5, .5])        # 0.15 is not hopeless
    assert np.allclose(remdm.curriculum(games(), cfg), 1 / 3)
    seeded = replace(two, curriculum_preseed=True)
    assert np.allclose(remdm.curriculum(games(), seeded), .5)
    wins = games(*[(0, True)] * 49)                      # they push out prior wins first: 50 of 100 are lost
    assert np.allclose(remdm.curriculum(wins, seeded), .5)
    wins = games(*[(0, True)] * 86)                      # 86 wins, 14 prior losses
    assert np.allclose(remdm.curriculum(wins, seeded), [.1 / 1.1, 1 / 1.1])


@pytest.mark.parametrize('won, student, oracle, kept', [(False, 1, 100, True), (True, 10, 10, False),
                                                        (True, 15, 10, False), (True, 16, 10, True)])
def test_what_is_worth_keeping(won, student, oracle, kept):
    assert remdm.worth_keeping(won, student, oracle, 1.5) == kept


# ---- keys ----

@pytest.mark.parametrize('keys, says', [
    (dict(n_embd=30), 'n_embd = 30: must be a multiple of n_head = 4'),
    (dict(sampler='beam'), "sampler = 'beam': must be one of greedy, remdm, posterior"),
    (dict(replan_every=65), 'replan_every = 65: a plan has seq_len = 64'),
    (dict(eta=2.0), 'eta = 2.0: must lie in 0..1'), (dict(temperature=0.0), 'temperature = 0.0'),
    (dict(seq_len=0), 'seq_len = 0: must be at least 1'), (dict(refresh_every=-1), 'refresh_every = -1'),
    (dict(label_smoothing=math.nan), 'label_smoothing = nan')])
def test_impossible_keys(keys, says):
    with pytest.raises(ValueError, match=says.replace('(', r'\(').replace('[', r'\[')):
        Model(Config(**keys))


def test_lesson_zero():
    out, _ = script('remdm.py')
    assert 'parameters' in out and out.count('\n') >= 6


def test_cross_entropy_by_hand():
    """An independent sum over masked positions."""
    torch.manual_seed(3)
    logits, x = torch.randn(3, 7, 12), torch.randint(0, 12, (3, 7))
    x[0, 5:] = PAD_ID
    z = corrupt(x, torch.full((3,), .6), torch.rand(3, 7), 'linear')
    want = [-F.log_softmax(logits[b, i], -1)[x[b, i]] for b in range(3) for i in range(7)
            if z[b, i] == MASK_ID and x[b, i] != PAD_ID]
    got = loss_of(logits, x, z, torch.full((3,), .6), Config())
    assert got.item() == pytest.approx(torch.stack(want).mean().item(), rel=1e-6)


@pytest.mark.parametrize('cfg', [TINY, remdm.PRESETS['cpu'], replace(TINY, use_global=False)])
def test_flops(cfg):
    """A third of the training's FLOPs is what PyTorch counts in a forward pass, to 1 %."""
    from torch.utils.flop_counter import FlopCounterMode
    model, batch = Model(cfg), remdm.example(cfg, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch)
    assert model.flops_per_sample() / 3 == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
