"""fsdp = True: two ranks that share weights, gradients and optimizer are one process, and half of it each."""
import json
import shutil

import pytest
import torch
from conftest import FIXTURES, ROOT, one_line, run, script
from test_train import same_run, step_lines

import checkpoint

# At the end of a run, while the ranks still are together: what each of them holds, and how it acts.
TOLD = '''
import inspect, json, os, sys, runpy
import torch, torch.distributed as dist
import contract, protocols.env as env
contract.HERE = sys.argv.pop(1)
sys.path.insert(0, contract.HERE)
few = dict(zip(env.Keys.__match_args__, env.Keys.__init__.__defaults__)) | {"episodes": 4, "timed": 1}
env.Keys.__init__.__defaults__ = tuple(few.values())
def local(x): return x.to_local() if hasattr(x, "to_local") else x
def tell(there):
    raw, optimizer, batch = there["raw"], there["optimizer"], there["val_data"].batch(0, 4, 0)
    holds = {"weights": sum(local(p).nbytes for p in raw.parameters()),
             "averages": sum(local(x).nbytes for x in there["averages"]),
             "moments": sum(local(x).nbytes for s in optimizer.state.values() for x in s.values() if x.ndim)}
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    raw.eval()
    holds["act"] = raw.act(batch, generators).tolist()
    with open(f"{there['out_dir']}/rank{there['rank']}.json", "w") as f: json.dump(holds, f)
if "RANK" in os.environ:
    leave = dist.destroy_process_group
    def destroy():
        tell(inspect.currentframe().f_back.f_globals)
        leave()
    dist.destroy_process_group = destroy
    runpy.run_path("train.py", run_name="__main__")
else:
    tell(runpy.run_path("train.py", run_name="__main__"))
'''
FLAGS = ['--log_every=1', '--save_every=3', '--val_every=3', '--val_batches=2', '--batch_size=8', '--lr=1e-3',
         '--weight_decay=0.1', '--draws=1', '--ema_decay=0.9', '--grad_clip=0.5', '--keep=0']


@pytest.fixture(scope='module')
def discs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fsdp')
    script('data/discs/prepare.py', f'--out={folder}/discs_pixels', '--limit=40', '--workers=1')
    return folder


def train(discs, out, config, *flags, ranks, code=0):
    models = FIXTURES if '--model=pi0_still' in flags else ROOT
    flags = [f'--data_dir={discs}', f'--out_dir={out}', *FLAGS, *flags]
    return run('-c', TOLD, models, f'config/{config}.py', *flags, ranks=ranks, code=code, PYTHONPATH=ROOT)


def test_two_ranks_are_one_process(discs, tmp_path):
    """
    Weights, averages and moments after 3 steps to 1e-6, clipped gradients and decay included; losses; scores
    of the env protocol; actions on both ranks. Frozen parts have no state.
    """
    flags = ['--model=pi0_still', '--max_steps=3', '--eval_every=3', '--freeze_vision_encoder=True']
    texts = [train(discs, tmp_path / str(n), 'discs_pi0_cpu', *flags, f'--fsdp={n > 1}', ranks=n)[0]
             for n in (1, 2)]
    one, two = (tmp_path / f'{ranks}/step_0000003' for ranks in (1, 2))
    for file in 'model.safetensors', 'ema.safetensors':
        x, y = checkpoint.read(one, file), checkpoint.read(two, file)
        assert x.keys() == y.keys()
        for key in x:
            assert (x[key].float() - y[key].float()).abs().max() <= 1e-6, (file, key)
    x, y = (checkpoint.read(folder, 'state.pt') for folder in (one, two))
    assert x['params'] == y['params']
    assert not [name for name, _ in x['params'] if name.startswith('vision.')]
    for i, state in x['state'].items():
        for key in state:
            assert (state[key] - y['state'][i][key]).abs().max() <= 1e-6, (i, key)
    metrics = [checkpoint.read_meta(folder)['metrics'] for folder in (one, two)]
    assert metrics[0]['val/loss'] == pytest.approx(metrics[1]['val/loss'], abs=1e-6)
    assert metrics[0]['eval/win_told'] == metrics[1]['eval/win_told']
    assert step_lines(texts[0]) == step_lines(texts[1]) and len(step_lines(texts[0])) == 3

    whole = json.loads((tmp_path / '1/rank0.json').read_text())
    ranks = [json.loads((tmp_path / f'2/rank{i}.json').read_text()) for i in (0, 1)]
    for holds in 'weights', 'averages', 'moments':
        assert sum(rank[holds] for rank in ranks) == whole[holds]
        for rank in ranks: assert rank[holds] <= 0.51 * whole[holds]
    for rank in ranks:
        assert torch.tensor(rank['act']).sub(torch.tensor(whole['act'])).abs().max() <= 1e-5


@pytest.mark.parametrize('config, flags', [
    ('discs_pi05_cpu', ['--gradient_checkpointing=True', '--draws=4', '--dtype=bfloat16']),
    ('discs_smolvla_cpu', ['--freeze_vision_encoder=True', '--train_expert_only=True', '--batch_size=16',
                           '--micro_batch=4'])])
def test_a_resumed_run_is_an_unbroken_one(discs, tmp_path, config, flags):
    """
    6 steps at once = 3 steps, a kill, 3 more, to the byte: weights, averages, moments, best and logs. What
    was saved is whole: one process resumes it, and acts as the two ranks do.
    """
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    flags = [*flags, '--fsdp=True', '--lr_decay_steps=9', '--max_steps=6']
    train(discs, whole, config, *flags, ranks=2)
    shutil.copytree(whole / 'step_0000003', parts / 'step_0000003')          # what a kill would have left
    for pointer in 'latest', 'best': checkpoint.write_text(f'{parts}/{pointer}', 'step_0000003')
    train(discs, parts, config, *flags, '--resume=True', ranks=2)
    same_run(whole, parts, 6, after=3)
    ranks = [json.loads((whole / f'rank{i}.json').read_text())['act'] for i in (0, 1)]
    assert ranks[0] == ranks[1]
    train(discs, parts, config, *flags, '--fsdp=False', '--resume=True', ranks=1)
    assert torch.tensor(json.loads((parts / 'rank0.json').read_text())['act']).sub(
        torch.tensor(ranks[0])).abs().max() <= (2e-2 if 'bfloat16' in str(flags) else 1e-5)


def test_what_cannot_be_shared_is_said(discs, tmp_path):
    _, errors = train(discs, tmp_path / 'a', 'discs_pi0_cpu', '--fsdp=True', ranks=1, code=1)
    assert one_line(errors) == 'fsdp = True: there is nobody to share with; start it with torchrun'
