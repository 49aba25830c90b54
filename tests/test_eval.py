"""eval.video with models whose score is known: one knows the truth, one copies, one is blind to actions."""
import os

import numpy as np
import pytest
import torch
from conftest import simulate

import eval as evaluation
import nanowm

KEYS = [name + who for who in ('', '_copy', '_shuffled') for name in ('psnr', 'ssim', 'psnr_moving')]
KEYS += ['gain_over_copy', 'gain_over_shuffled']


@pytest.fixture
def folder(data_dir): return os.path.join(data_dir, 'tiny_pixels')


def build(rollout=None, **over):
    """A tiny NanoWM; rollout(context, action, **kw) -> video replaces its own; model.calls keeps what it got."""
    torch.manual_seed(0)
    cfg = dict(input='video', height=12, width=16, channels=3, action_dim=2, depth=2, hidden=32, heads=2, patch=4,
               num_frames=2, sample_steps=2)
    model = nanowm.Model(nanowm.Config(**cfg | over))
    with torch.no_grad():                                    # off the zero start, or actions would not matter
        for p in model.parameters(): p.add_(torch.randn_like(p) * 0.2)
    model.calls = []
    if rollout:
        def call(context, action, **kw):
            model.calls.append((context, action, kw))
            return {'video': rollout(context, action, **kw)}
        model.rollout = call
    return model


def truth(context, action, **kw):
    """(B, N, K, H, W, C): what really happens, by the rule of the data. Checks that the context obeys it, too."""
    video, past = context['video'].numpy(), context['action'].numpy()
    B, N, K, kA = action.shape
    for b in range(B):
        for t in range(video.shape[1] - 1):
            assert np.array_equal(simulate(video[b, t], past[b, t].reshape(-1, 2))[-1], video[b, t + 1])
    k = kA // 2
    frames = [[simulate(video[b, -1], action[b, n].reshape(-1, 2).numpy())[k - 1::k] for n in range(N)]
              for b in range(B)]
    return torch.from_numpy(np.array(frames)).float()


def last_frame(context, action, **kw):
    last = context['video'][:, -1].float()[:, None, None]
    return last.expand(-1, action.shape[1], action.shape[2], -1, -1, -1)


def blind(context, action, generator=None, **kw):
    """Random pictures, the same for all futures."""
    B, N, K, _ = action.shape
    return (torch.rand(B, 1, K, 12, 16, 3, generator=generator) * 255).expand(-1, N, -1, -1, -1, -1)


# ---- known scores ----

@pytest.mark.parametrize('over, asked', [
    (dict(), dict()), (dict(), dict(horizon=5)), (dict(num_frames=4, n_context=2), dict()),
    (dict(frame_skip=2), dict(horizon=3)), (dict(num_frames=3, frame_skip=3), dict(n_context=2)),
    (dict(num_frames=4), dict(n_context=3, horizon=4))])
def test_a_perfect_model(folder, over, asked):
    """Only one that gets every action at its frame: 80 dB, on moving frames as on all; wrong actions cost it much."""
    model = build(truth, **over)
    result = evaluation.video(model, folder, **asked)
    assert result['psnr'] == result['psnr_moving'] == pytest.approx(80) and result['ssim'] == pytest.approx(1)
    assert result['psnr_moving_ci'] == pytest.approx([80, 80])
    assert result['psnr_moving_shuffled'] < 25 and result['psnr_moving_copy'] < 25
    assert result['gain_over_shuffled'] == pytest.approx(80 - result['psnr_moving_shuffled'])
    assert result['gain_over_copy'] == pytest.approx(80 - result['psnr_moving_copy'])
    assert result['curve']['model'] == pytest.approx([80] * result['horizon'])
    n_context = asked.get('n_context') or over.get('n_context', 1)
    horizon = asked.get('horizon') or over.get('num_frames', 2) - n_context
    assert (result['n_context'], result['horizon']) == (n_context, horizon)
    for context, action, kw in model.calls:                  # as in training if the window holds it, else sliding
        assert context['video'].shape[1] == n_context and action.shape[1:3] == (2, horizon)
        assert kw['stride'] == (horizon if n_context + horizon <= over.get('num_frames', 2) else 1)


def test_a_model_that_copies_gains_nothing(folder):
    result = evaluation.video(build(last_frame), folder, horizon=3)
    assert result['gain_over_copy'] == result['gain_over_shuffled'] == 0
    assert result['gain_over_copy_ci'] == result['gain_over_shuffled_ci'] == [0, 0]
    assert result['psnr'] == result['psnr_copy'] > result['psnr_moving'] == result['psnr_moving_copy']
    assert result['curve']['model'] == result['curve']['copy'] == result['curve']['shuffled']


def test_a_model_blind_to_actions_gains_nothing_over_shuffled(folder):
    result = evaluation.video(build(blind), folder)
    assert result['gain_over_shuffled'] == 0 and result['gain_over_shuffled_ci'] == [0, 0]
    assert result['gain_over_copy'] < -1


# ---- the definitions, recomputed one frame at a time ----

@pytest.mark.parametrize('horizon', (1, 4))
def test_scores_against_a_naive_loop(folder, horizon):
    """Moving frames are those that differ from the last context frame; their error is pooled before the logarithm."""
    model = build(blind)
    result = evaluation.video(model, folder, horizon=horizon, batch_size=7)
    pooled, per_frame, moving, curve = [], [], [], [[] for _ in range(horizon)]
    for context, action, kw in model.calls:
        real = truth(context, action[:, :1])[:, 0].numpy()
        generator = kw['generator'].manual_seed(kw['generator'].initial_seed())
        dream = blind(context, action, generator)[:, 0].numpy()
        for b in range(len(real)):
            for h in range(horizon):
                error = float(np.mean((dream[b, h] / 255 - real[b, h] / 255) ** 2))
                moved = not np.array_equal(real[b, h], context['video'][b, -1].numpy())
                moving.append(moved)
                per_frame.append(10 * np.log10(1 / (error + 1e-8)))
                if moved:
                    pooled.append(error)
                    curve[h].append(error)
    assert result['psnr'] == pytest.approx(np.mean(per_frame), abs=1e-5)
    assert result['psnr_moving'] == pytest.approx(10 * np.log10(1 / np.mean(pooled)), abs=1e-5)
    assert result['curve']['model'] == pytest.approx([10 * np.log10(1 / np.mean(e)) for e in curve], abs=1e-5)
    assert result['n_moving'] == sum(moving) < len(moving) == result['n_clips'] * horizon
    assert np.mean(result['curve']['moving']) == pytest.approx(np.mean(moving))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n_clips', (2, 3, 17, 44, 999))
def test_every_clip_gets_the_actions_of_another(folder, monkeypatch, seed, n_clips):
    """A permutation without a fixed point; the clips are distinct windows."""
    asked = []

    class Watched(evaluation.Store):
        def windows_at(self, ids):
            asked.append(ids.tolist())
            return super().windows_at(ids)
    monkeypatch.setattr(evaluation, 'Store', Watched)
    monkeypatch.setattr(evaluation, 'summary', lambda rows, episode, seed: {'rows': len(rows)})
    result = evaluation.video(build(last_frame), folder, n_clips=n_clips, seed=seed, batch_size=8)
    own, donor = sum(asked[::2], []), sum(asked[1::2], [])
    assert len(set(own)) == len(own) == result['n_clips'] == result['rows'] == min(n_clips, 44)
    assert sorted(donor) == sorted(own) and not any(a == b for a, b in zip(own, donor))


def test_donors_give_actions_and_nothing_else(folder):
    """The second future differs from the first in its actions after the context alone, and shares the noise."""
    model = build(last_frame, num_frames=4, n_context=2)
    evaluation.video(model, folder)
    (context, action, kw), = model.calls
    assert context['action'].shape == (len(action), 1, 2)
    assert not torch.equal(action[:, 0], action[:, 1]) and isinstance(kw['generator'], torch.Generator)


# ---- a real model: seeds, ranks, intervals ----

def numbers(result): return {k: v for k, v in result.items() if k != 'seconds'}


def test_ranks_share_the_work_and_change_nothing(folder, monkeypatch):
    """Two ranks, called one after the other; what the first gathers is what one alone finds."""
    model, gathered = build(), {}
    asked = dict(batch_size=5, n_clips=23, horizon=2)
    alone = evaluation.video(model, folder, **asked)

    def gather(parts, rows):
        gathered[rank] = rows
        if rank == 1: raise InterruptedError                 # a real rank 1 would wait here for rank 0
        parts[:] = [gathered[0], gathered[1]]
    monkeypatch.setattr(evaluation.dist, 'all_gather_object', gather)
    rank = 1
    with pytest.raises(InterruptedError): evaluation.video(model, folder, rank=1, world=2, **asked)
    rank = 0
    shared = evaluation.video(model, folder, rank=0, world=2, **asked)
    assert numbers(shared) == numbers(alone)
    assert [[i for i, _ in gathered[r]] for r in (0, 1)] == [[0, 10, 20], [5, 15]]      # nobody did it twice


def test_seeds(folder):
    model = build()
    a, b, c = (evaluation.video(model, folder, n_clips=20, seed=seed) for seed in (1, 1, 2))
    assert numbers(a) == numbers(b) and a['psnr'] != c['psnr']


def test_intervals_contain_their_estimates(folder):
    result = evaluation.video(build(), folder, horizon=2)
    for key in KEYS:
        low, high = result[key + '_ci']
        assert low <= result[key] <= high and (low < high), key
    assert result['n_episodes'] == 4 and set(result) >= {'n_clips', 'sample_steps', 'sampling', 'seed', 'curve'}


# ---- one line for what the user can mend ----

@pytest.mark.parametrize('over, asked, words', [
    (dict(), dict(n_clips=1), 'to shuffle actions takes two'),
    (dict(), dict(n_context=2), 'n_context = 2 leaves none of num_frames = 2 to predict; set --horizon'),
    (dict(), dict(horizon=12), 'a window spans 13 frames, the longest of 4 episodes has 12'),
    (dict(input='latent', channels=4), dict(), 'this model dreams latents')])
def test_user_mistakes_are_one_line(folder, over, asked, words):
    with pytest.raises(SystemExit) as stop: evaluation.video(build(last_frame, **over), folder, **asked)
    assert words in str(stop.value) and '\n' not in str(stop.value)
