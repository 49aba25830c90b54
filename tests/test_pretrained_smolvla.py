"""Folders of SmolVLA as LeRobot saves them, read by smolvla.py; its sentences; a run of train.py."""
from dataclasses import replace

import pytest
import torch
from conftest import one_line, script
from safetensors.torch import load_file, save_file
from test_pretrained_pi0 import TASKS, bpe, data_dir, folder_of, generators  # noqa: F401

import checkpoint
import smolvla as S


def source(**over):
    """A model with statistics of its own."""
    torch.manual_seed(0)
    over = dict(cameras=('top', 'wrist'), tokenizer_max_length=12, tasks=TASKS) | over
    model = S.Model(replace(S.PRESETS['tiny'], **over)).eval()
    for name, x in model.named_buffers():
        if name.endswith(('_mean', '_std')):
            x.uniform_(0.5, 1.0)
    return model


def published(path, model, config=(), **damage):
    config = {'resize_imgs_with_padding': [16, 16], 'num_expert_layers': -1, 'num_steps': 7,
              'add_image_special_tokens': False} | dict(config)
    return folder_of(path, model, M=S, tied=False, config=config, **damage)


@pytest.mark.parametrize('prefix', ('model.', ''))
def test_a_folder_of_lerobot(prefix, tmp_path, bpe, monkeypatch):  # noqa: F811
    """Its weights, in 16 bit too, and its statistics: the same actions."""
    monkeypatch.setattr(S, 'FIRST', ('<bos>', 2))
    _, file, n = bpe
    model = source(tokenizer=file, vocab_size=n)
    path = published(tmp_path / 'policy', model, prefix=prefix)
    there = S.Model.from_pretrained(path, tasks=TASKS, tokenizer=file, num_steps=10)
    assert there.cfg == replace(model.cfg, empty_cameras=1)
    for key, x in model.state_dict().items():
        assert torch.equal(x, there.state_dict()[key]), key
    batch = S.example(model.cfg, 2)
    assert torch.equal(there.act(batch, generators()), model.act(batch, generators()))
    weights = load_file(path / 'model.safetensors')
    save_file({key: x.bfloat16() for key, x in weights.items()}, path / 'model.safetensors')
    there = S.Model.from_pretrained(path)
    assert there.cfg.num_steps == 7
    for (name, p), q in zip(model.named_parameters(), there.parameters()):
        assert q.dtype == torch.float32 and torch.equal(p.bfloat16().float(), q), name
    with pytest.raises(ValueError, match='its words are those of a tokenizer'):
        there.tell(('go',))


def test_pictures_as_they_are(tmp_path):
    path = published(tmp_path / 'policy', source(), config={'resize_imgs_with_padding': None})
    assert S.Model.from_pretrained(path).cfg.image_resolution == (16, 16)


@pytest.mark.parametrize('damage, told', [
    (dict(config={'type': 'pi0'}), "type = 'pi0', want 'smolvla'"),
    (dict(config={'adapt_to_pi_aloha': True}), 'adapt_to_pi_aloha = True: only False is possible here'),
    (dict(config={'num_expert_layers': 1}), 'num_expert_layers = 1: only as many as num_vlm_layers'),
    (dict(config={'resize_imgs_with_padding': [12, 12]}), 'image_resolution = (12, 12)'),
    (dict(drop=(S.HEAD, S.published('embed_tokens.weight'))), f'nor {S.HEAD}'),
    (dict(drop=('state_proj.weight',)), 'lacks state_proj.weight: it belongs to another model'),
    (dict(add={'model.novel': torch.zeros(2)}), 'has unknown novel'),
    (dict(add={'model.state_proj.bias': torch.zeros(2)}), 'another shape: state_proj.bias is [2]')])
def test_damaged_folders(damage, told, tmp_path):
    """Never a model left random: one line."""
    path = published(tmp_path / 'policy', source(), **damage)
    with pytest.raises(SystemExit) as stop:
        S.Model.from_pretrained(path)
    assert told in one_line(stop.value.code)


def test_weights_alone(tmp_path):
    """init_from: statistics and sentences are those of the new data."""
    model = source()
    path = published(tmp_path / 'policy', model)
    (path / 'policy_preprocessor.json').unlink()
    new = S.Model(replace(model.cfg, tasks=('one sentence',), cameras=('left',)))
    stats = {key for key, _ in new.named_buffers() if key not in S.OWN}
    with pytest.raises(SystemExit) as stop:
        checkpoint.start_from(new, S, str(path), keep=stats)
    assert "its words are a VLM's: tokenizer = its tokenizer.json" in one_line(stop.value.code)
    new.hashed.fill_(False)
    kept = {key: x.clone() for key, x in new.named_buffers()}
    checkpoint.start_from(new, S, str(path), keep=stats)
    assert all(torch.equal(x, kept[key]) for key, x in new.named_buffers())
    assert all(torch.equal(p, q) for p, q in zip(new.parameters(), model.parameters()))


def test_prompts(bpe, monkeypatch):  # noqa: F811
    """The sentence and a line break, nothing before, where the tokenizer is that of the VLM."""
    tokenizer, path, n = bpe
    over = dict(tokenizer=path, vocab_size=n, tokenizer_max_length=40, tasks=('pick', 'pick\n', 'a_b'))
    with pytest.raises(ValueError, match=r'<\|im_start\|> is number None; .* it belongs to another one'):
        source(**over)
    monkeypatch.setattr(S, 'FIRST', ('<bos>', 2))
    tokens, real = source(**over).read({'state': torch.zeros(3, 1, 2), 'task': torch.tensor([[0], [1], [2]])})
    for row, mask, text in zip(tokens, real, ('pick\n', 'pick\n', 'a_b\n')):
        assert row[mask].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_run_on_sentences(data_dir, tmp_path):  # noqa: F811
    """train.py takes the sentences from the data; frozen parts stay, and the checkpoint acts alone."""
    decided = 'tasks', 'height', 'width', 'action_dim', 'state_dim'              # by the data
    small = {key: value for key, value in S.SMALL.items() if key not in decided} | {'train_expert_only': True}
    script('train.py', '--model=smolvla', '--dataset=told', f'--data_dir={data_dir}', '--device=cpu',
           '--batch_size=4', '--val_batches=1', f'--out_dir={tmp_path}/a', '--max_steps=3', '--ema_decay=0.9',
           *[f'--{key}={value}' for key, value in small.items()])
    model, _ = checkpoint.load(tmp_path / 'a')
    assert model.cfg.tasks == ('go left', 'go right') and model.cfg.train_expert_only
    assert model.act(S.example(model.cfg, 2)).shape == (2, 8, 2)
    state = torch.load(f'{checkpoint.find(tmp_path / "a")}/state.pt', weights_only=True)
    assert all(name.startswith(('expert', 'action', 'state')) for name, _ in state['params'])
    torch.manual_seed(1)                                 # the seed of train.py
    fresh = dict(S.Model(model.cfg).named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p, fresh[name]) != p.requires_grad, name
