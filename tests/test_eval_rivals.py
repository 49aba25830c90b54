"""
A fair comparison: rivals with products and with a penalty, paired intervals, members alone; each by a naive
loop.
"""
import numpy as np
import pytest
import torch
from test_eval_dynamics import GROUPS, HISTORY, Truth, build, episode, judge, law, make_robot

from data.loader import Store, read_meta
from protocols import common, least_squares, predictors


def normal_equations(x, y, penalty=0.0):
    """Ridge by its definition: features in std, without means; the intercept is free. -> predict(x)"""
    mean, std = x.mean(0), x.std(0)
    z = (x - mean) / std
    W = np.linalg.solve(z.T @ z / len(z) + penalty * np.eye(z.shape[1]), z.T @ (y - y.mean(0)) / len(z))
    return lambda new: (new - mean) / std @ W + y.mean(0)


def rows_of(folder, split, lags, episodes=None):
    """
    Naive: every window of `lags` frames -> state (N, lags, S), action (N, lags, A), next state (N, S),
    float64.
    """
    state, action, spans = (np.load(f'{folder}/{split}/{key}.npy') for key in ('state', 'action', 'episodes'))
    starts = [t for e, (a, b) in enumerate(spans) if episodes is None or e in episodes
              for t in range(a, b - lags)]
    return (np.stack([state[t:t + lags] for t in starts]).astype(float),
            np.stack([action[t:t + lags] for t in starts]).astype(float),
            np.stack([state[t + lags] for t in starts]).astype(float))


def curved(i):
    """The same robot with a term that no linear function has, and a little noise that no function has."""
    e = episode(i)
    state, rng = e['state'].astype(float), np.random.default_rng(i)
    for t in range(len(state) - 1):
        new = law(state[t], e['action'][t].astype(float))
        new[2] += 0.3 * np.tanh(state[t, 3]) * state[t, 1]
        state[t + 1] = new + 0.01 * rng.normal(size=5)
    return e | {'state': state.astype(np.float32)}


@pytest.fixture(scope='module')
def bent(tmp_path_factory): return make_robot(tmp_path_factory.mktemp('bent'), n=12, make=curved)


def some_contexts(folder, H, K, n=6):
    store = Store(folder, 'val', {'state': range(H + K), 'action': range(H + K - 1)})
    return common.cut(store, np.arange(0, len(store), len(store) // n), H, 'cpu')


@pytest.mark.parametrize('H', (3, 8))
def test_products_against_a_naive_loop(bent, H):
    """
    Features one by one, all pairs by two loops, least squares by numpy; a context of 3 frames has 3 lags.
    """
    lags = min(H, 4)
    context, action, _ = some_contexts(bent, H, 5)
    guess = least_squares.least_squares_products(bent, 4)(context, action).numpy()

    def naive(state, act):
        z = [*state[-1], act[-1][0] - state[-1][3], act[-1][1] - state[-1][1]]           # q_index = [3, 1]
        pairs = [z[i] * z[j] for i in range(7) for j in range(i, 7)]
        return np.array([*state[-lags:].ravel(), *act[-lags:].ravel(), *pairs])
    state, act, new = rows_of(bent, 'train', 4)              # all fits know these windows only
    x = np.stack([naive(s, a) for s, a in zip(state, act)])
    assert x.shape[1] == lags * 7 + 28
    predict = normal_equations(x, new)
    for b in range(len(guess)):
        state = context['state'][b].double().numpy()
        act = np.concatenate([context['action'][b], action[b, 0]]).astype(float)
        for _ in range(5):
            state = np.concatenate([state, predict(naive(state, act[:len(state)])[None])])
        if H == 3:                                           # from the second step on, four frames are known
            assert np.allclose(guess[b, 0], state[3], atol=1e-5)
        else:
            assert np.allclose(guess[b], state[H:], atol=1e-5)


def test_products_see_what_lines_do_not(bent):
    """Where the law has a product in it, the rival with products wins; on the linear law it is no worse."""
    result = judge(build(bent, Truth(bent)), bent, n_clips=50)['baselines']
    line, pairs = result['least_squares_4'], result['least_squares_4_products']
    assert pairs['one_step_mse_joint_velocity'] < 0.8 * line['one_step_mse_joint_velocity']


def test_the_ridge_by_its_definition(bent):
    """Every fifth train episode chooses among the strengths; then all of them are fitted."""
    state, act, new = rows_of(bent, 'train', 6)
    episodes = len(np.load(f'{bent}/train/episodes.npy'))
    assert episodes == 8                                     # so one is held out, the fifth
    x = np.concatenate([state.reshape(len(state), -1), act.reshape(len(act), -1)], 1)
    inside, outside = ([*rows_of(bent, 'train', 6, chosen)] for chosen in ({0, 1, 2, 3, 5, 6, 7}, {4}))

    def flat(rows):
        return np.concatenate([part.reshape(len(part), -1) for part in rows[:2]], 1)
    scale, errors = outside[2].std(0), []
    for strength in least_squares.STRENGTHS:
        predict = normal_equations(flat(inside), inside[2], strength)
        errors.append((((predict(flat(outside)) - outside[2]) / scale) ** 2).mean())
    best = least_squares.STRENGTHS[int(np.argmin(errors))]
    assert best not in least_squares.STRENGTHS[[0, -1]]      # else the choice would say nothing
    predict = normal_equations(x, new, best)
    context, action, _ = some_contexts(bent, 8, 1)
    guess = least_squares.least_squares_ridge(bent, 6)(context, action)[:, 0].numpy()
    now = np.concatenate([context['action'].numpy(), action[:, 0].numpy()], 1)[:, -6:]
    seen = np.concatenate([context['state'][:, -6:].flatten(1).numpy(), now.reshape(len(now), -1)], 1)
    assert np.allclose(guess, predict(seen.astype(float)), atol=1e-5)


@pytest.mark.parametrize('fit', (least_squares.least_squares, least_squares.least_squares_products,
                                 least_squares.least_squares_ridge))
def test_fits_never_see_val(tmp_path, fit):
    """With every number of the val split gone, the predictors are what they were."""
    whole, blank = (make_robot(tmp_path, name=name, n=12, make=curved) for name in ('whole', 'blank'))
    context, action, _ = some_contexts(whole, 8, 3)
    for key in ('state', 'action'):
        rows = np.load(f'{blank}/val/{key}.npy')
        np.save(f'{blank}/val/{key}.npy', np.full_like(rows, np.nan))
    assert torch.equal(fit(whole, 4)(context, action), fit(blank, 4)(context, action))


def test_a_ridge_needs_episodes_to_choose_by(tmp_path):
    few = make_robot(tmp_path, n=5, val='0.4')
    with pytest.raises(SystemExit, match='holds fewer than 5 episodes of 5 frames'):
        judge(build(few, Truth(few)), few, ridge=(4,), every_frame=False)


def test_features_that_never_change(tmp_path):
    """A state that stands still, and a command that repeats another: fits stay finite, as good as without."""
    def frozen(i):
        e = episode(i)
        e['action'][:, 1] = e['action'][:, 0]
        e['state'][:, 4] = 3.0
        return e
    folder = make_robot(tmp_path, n=12, make=frozen)
    context, action, truth_ = some_contexts(folder, 8, 4)
    for fit in (least_squares.least_squares_products, least_squares.least_squares_ridge):
        guess = fit(folder, 4)(context, action)
        assert torch.isfinite(guess).all() and (guess[..., 4] - 3).abs().max() < 1e-4


def naive_paired(ours, theirs, episode, statistic, seed=42, n=1000):
    """The model minus a rival, episode by episode drawn with replacement, both always the same."""
    rng, members = np.random.default_rng(seed), [np.flatnonzero(episode == e) for e in np.unique(episode)]
    gaps = []
    for _ in range(n):
        rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        gaps.append(statistic(ours[rows]) - statistic(theirs[rows]))
    return np.percentile(gaps, [2.5, 97.5])


def test_paired_intervals_against_a_naive_bootstrap(bent):
    """
    Of RMSE and median, against whichever rival is best at each; narrower than the two intervals together.
    """
    truth = Truth(bent)

    def drift(context, action):
        rows = truth.rows(context)
        wrong = 0.002 + 0.001 * torch.from_numpy(np.sin(rows)).float()
        return truth(context, action) + wrong[:, None, None]
    model = build(bent, drift)
    result = judge(model, bent, n_clips=60, batch_size=100, every_frame=False)
    (context, action, _), *_ = (call for call in model.calls if call[2] == 1)
    rows = truth.rows(context)
    episode = np.searchsorted(truth.spans[:, 1], rows, side='right')
    assert len(rows) == 60 and len(set(episode)) == 4
    others = predictors.rivals(bent, read_meta(bent), (1, 4), True, ())
    guesses = {who: predict(context, action).double() for who, predict in others.items()}
    guesses['model'] = drift(context, action).double()
    true = truth(context, action).double()
    for name, group in GROUPS.items():
        for h in (1, 100):
            own = {who: (guess - true)[:, h - 1, group['dims']].square().mean(-1).sqrt().numpy()
                   for who, guess in guesses.items()}
            for word, statistic in (('', lambda e: np.sqrt((e ** 2).mean())), ('median_', np.median)):
                best = min(others, key=lambda who: statistic(own[who]))
                key = f'{word}{name}_h{h}'
                assert result[f'best_{key}'] == best
                assert result[f'minus_best_{key}'] == pytest.approx(
                    statistic(own['model']) - statistic(own[best]), rel=1e-4, abs=1e-8)
                wanted = naive_paired(own['model'], own[best], episode, statistic)
                assert result[f'minus_best_{key}_ci'] == pytest.approx(wanted, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize('every_frame', (True, False))
def test_one_step_intervals_draw_whole_episodes(bent, every_frame):
    """
    Sums over an episode's frames, episodes drawn with replacement, the same for the model and its best rival.
    """
    truth = Truth(bent)
    size = np.random.default_rng(0).lognormal(-4, 1, len(truth.state)).astype(np.float32)

    def off(context, action):
        return truth(context, action) + torch.from_numpy(size[truth.rows(context)])[:, None, None]
    model = build(bent, off)
    result = judge(model, bent, n_clips=40, every_frame=every_frame)
    steps = 1 if every_frame else 100
    wanted = [call for call in model.calls if call[2] == 1 and call[1].shape[2] == steps]
    rows = np.concatenate([truth.rows(context) for context, *_ in wanted])
    episode = np.searchsorted(truth.spans[:, 1], rows, side='right')
    others = predictors.rivals(bent, read_meta(bent), (1, 4), True, ())
    square = {who: np.concatenate([((predict(c, a)[:, 0].double() - truth(c, a)[:, 0]) ** 2).numpy()
                                   for c, a, _ in wanted]) for who, predict in others.items()}
    square['model'] = np.repeat(size[rows, None].astype(float) ** 2, 5, 1)
    assert result['n_targets'] == len(rows)
    for name, dims in (('one_step_mse', slice(None)), ('one_step_mse_joint', [3, 1]),
                       ('one_step_mse_motor', [4])):
        own = {who: x[:, dims].mean(1) for who, x in square.items()}
        best = min(others, key=lambda who: own[who].mean())
        assert result[f'best_{name}'] == best
        assert result[name] == pytest.approx(own['model'].mean(), rel=1e-3)
        assert result[f'minus_best_{name}'] == pytest.approx(own['model'].mean() - own[best].mean(), rel=1e-3)
        low, high = naive_paired(own['model'], own[best], episode, np.mean)
        assert result[f'minus_best_{name}_ci'] == pytest.approx([low, high], rel=1e-3)
        alone = naive_paired(own['model'], 0 * own['model'], episode, np.mean)
        assert result[f'{name}_ci'] == pytest.approx(alone, rel=1e-3)


def test_members_alone(bent):
    """
    Each member's own RMSE and their mean, beside that of the mean prediction, which is never worse than both.
    """
    model = build(bent, members=3)
    result = judge(model, bent, n_clips=20, every_frame=False)
    store = Store(bent, 'val', {'state': range(HISTORY + 100), 'action': range(HISTORY + 99)})
    ids = common.draw(store, 20, np.random.default_rng(42))
    context, action, true = common.cut(store, ids, HISTORY, 'cpu')
    each = model.rollout(context, action, chunk=1, each=True)['state_each'][:, :, 0] - true
    for h in (1, 100):
        members = each[:, :, h - 1][..., [3, 1]].square().mean((1, 2)).sqrt().tolist()
        assert result[f'rmse_joint_h{h}_members'] == pytest.approx(members, rel=1e-5)
        assert result[f'rmse_joint_h{h}_single'] == pytest.approx(np.mean(members), rel=1e-5)
        assert result[f'rmse_joint_h{h}'] <= max(members)
    assert 'rmse_joint_h1_single' not in judge(build(bent, members=1), bent, n_clips=5, every_frame=False)
