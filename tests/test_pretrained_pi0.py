"""
Folders of pi0 and pi0.5 as LeRobot saves them, read by pi0.py; sentences by a tokenizer and without; a run of
train.py on sentences.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line, script
from safetensors.torch import load_file, save_file

import checkpoint
import pi0 as P
import smolvla as S
import words
from data.writer import write

BOTH = pytest.mark.parametrize('pi05', (False, True), ids=('pi0', 'pi05'))
TASKS = 'pick up the cube', 'open_the drawer', 'stack A on B'


def source(pi05=False, **over):
    """A model with statistics of its own."""
    torch.manual_seed(0)
    over = dict(cameras=('top', 'wrist'), tokenizer_max_length=64 if pi05 else 12, tasks=TASKS) | over
    model = P.Model(replace(P.PRESETS['tiny'], pi05=pi05, **over)).eval()
    for name, x in model.named_buffers():
        if name.endswith(('_mean', '_std', '_q01')):
            x.uniform_(0.5, 1.0)
        if name.endswith('_q99'):
            x.uniform_(2.0, 3.0)
    return model


def folder_of(path, model, prefix='model.', tied=True, drop=(), config=(), add=(), M=P):
    """What LeRobot saves of it, with weights that nothing reads. tied: the embedding under its other name."""
    cfg = model.cfg
    path.mkdir()
    kind = M.__name__ if M is not P else 'pi05' if cfg.pi05 else 'pi0'
    mode = 'QUANTILES' if kind == 'pi05' else 'MEAN_STD'
    norm = {'VISUAL': 'IDENTITY', 'STATE': mode, 'ACTION': mode}

    def feature(type_, *shape): return {'type': type_, 'shape': list(shape)}
    seen = {f'observation.images.{name}': feature('VISUAL', 3, cfg.height, cfg.width)
            for name in (*cfg.cameras, 'empty_camera_0')}
    ours = 'pi05', 'tasks', 'cameras', 'tokenizer'
    said = {key: getattr(cfg, key) for key in vars(cfg) if key not in ours}
    said |= {'type': kind, 'empty_cameras': 1, 'n_obs_steps': 1, 'dtype': 'float32',
             'input_features': seen | {'observation.state': feature('STATE', cfg.state_dim)},
             'output_features': {'action': feature('ACTION', cfg.action_dim)}, 'normalization_mapping': norm,
             'use_relative_actions': False, 'compile_mode': 'max-autotune'} | dict(config)
    (path / 'config.json').write_text(json.dumps(said))
    weights = {M.published(key): x.detach().clone() for key, x in model.named_parameters()}
    weights |= {key: torch.zeros(shape) for key, shape in M.dead(cfg).items()}
    word = M.published('embed_tokens.weight')
    if tied:
        weights[M.HEAD] = weights.pop(word)
    weights = {prefix + key: x for key, x in weights.items() if key not in drop} | dict(add)
    save_file(weights, path / 'model.safetensors')
    stats = {f'{long}.{name}': getattr(model, f'{short}_{name}')
             for name in (('q01', 'q99') if kind == 'pi05' else ('mean', 'std'))
             for short, long in (('state', 'observation.state'), ('action', 'action'))}
    for pipeline, step_ in ('pre', 'normalizer'), ('post', 'unnormalizer'):
        save_file(stats, path / f'{step_}.safetensors')
        step = {'registry_name': f'{step_}_processor', 'state_file': f'{step_}.safetensors',
                'config': {'norm_map': norm}}
        (path / f'policy_{pipeline}processor.json').write_text(json.dumps({'steps': [step]}))
    return path


def generators(n=2): return [torch.Generator().manual_seed(i) for i in range(n)]


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    """A small tokenizer.json like PaliGemma's: a space belongs to the word behind it, digits stand alone."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE(unk_token='<unk>'))
    tokenizer.normalizer = normalizers.Replace(' ', '\u2581')
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'\d|\n|\u2581?[^\u2581\d\n;,:]+|[;,:]'), 'isolated')
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=['<pad>', '<eos>', '<bos>', '<unk>'])
    corpus = [P.prompt(task, range(i, i + 9)) for task in TASKS for i in range(-1, 250, 5)]
    tokenizer.train_from_iterator([*corpus, '\n', ' -1'], trainer)
    path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
    tokenizer.save(str(path))
    return tokenizer, str(path), tokenizer.get_vocab_size()


# ---- published folders ----

@BOTH
@pytest.mark.parametrize('prefix', ('model.', ''))
def test_a_folder_of_lerobot(pi05, prefix, tmp_path, bpe):
    """Its weights, also without their first word, and its statistics: the same actions."""
    _, file, n = bpe
    model = source(pi05, tokenizer=file, vocab_size=n)
    path = folder_of(tmp_path / 'policy', model, prefix)
    there = P.Model.from_pretrained(path, tasks=TASKS, tokenizer=file)
    assert there.cfg == replace(model.cfg, empty_cameras=1)
    for key, x in model.state_dict().items():
        assert torch.equal(x, there.state_dict()[key]), key
    batch = P.example(model.cfg, 2)
    assert torch.equal(there.act(batch, generators()), model.act(batch, generators()))
    assert all(p.device.type == 'cpu' and p.dtype == torch.float32 for p in there.parameters())


@BOTH
def test_other_ways_to_save_the_same(pi05, tmp_path):
    """16 bit; the embedding beside a head that differs; pi0's names of the time's layers in a pi05."""
    model = source(pi05)
    both = folder_of(tmp_path / 'both', model, tied=False,
                     add={f'model.{P.HEAD}': torch.zeros(model.embed_tokens.weight.shape)})
    assert torch.equal(P.Model.from_pretrained(both).embed_tokens.weight, model.embed_tokens.weight)
    half = folder_of(tmp_path / 'half', model)
    weights = load_file(half / 'model.safetensors')
    save_file({key.replace('time_mlp', 'action_time_mlp') if pi05 else key: x.bfloat16()
               for key, x in weights.items()}, half / 'model.safetensors')
    there = P.Model.from_pretrained(half)
    for (name, p), q in zip(model.named_parameters(), there.parameters()):
        assert q.dtype == torch.float32 and torch.equal(p.bfloat16().float(), q), name


def test_sentences_of_a_published_model(tmp_path):
    """Without its tokenizer nobody knows its words: it acts on none that came later."""
    there = P.Model.from_pretrained(folder_of(tmp_path / 'policy', source()))
    with pytest.raises(ValueError, match='its words are those of a tokenizer'):
        there.tell(('go',))
    with pytest.raises(ValueError, match='its sentences are not there: give tasks and tokenizer, or tell'):
        there.act(P.example(there.cfg, 1))


@BOTH
def test_weights_alone(pi05, tmp_path):
    """init_from: statistics and sentences are those of the new data, which the folder may lack."""
    model = source(pi05)
    path = folder_of(tmp_path / 'policy', model)
    (path / 'policy_preprocessor.json').unlink()
    (path / 'policy_postprocessor.json').unlink()
    with pytest.raises(SystemExit) as stop:
        P.Model.from_pretrained(path)
    assert 'without statistics its numbers mean nothing' in stop.value.code
    new = P.Model(replace(model.cfg, tasks=('one sentence',), cameras=('left',)))
    kept = {key: x.clone() for key, x in new.named_buffers()}
    stats = {key for key in kept if key not in P.OWN}
    with pytest.raises(SystemExit) as stop:              # its embeddings are of PaliGemma's words
        checkpoint.start_from(new, P, str(path), keep=stats)
    assert "its words are a VLM's: tokenizer = its tokenizer.json" in one_line(stop.value.code)
    new.hashed.fill_(False)
    kept['hashed'] = new.hashed.clone()
    checkpoint.start_from(new, P, str(path), keep=stats)
    assert all(torch.equal(x, kept[key]) for key, x in new.named_buffers())
    assert all(torch.equal(p, q) for p, q in zip(new.parameters(), model.parameters()))
    other = P.Model(replace(new.cfg, pi05=not pi05, tokenizer_max_length=64))
    other.hashed.fill_(False)
    with pytest.raises(SystemExit) as stop:
        checkpoint.start_from(other, P, str(path), keep=stats)
    assert 'it belongs to another model or Config' in one_line(stop.value.code)


@pytest.mark.parametrize('damage, words', [
    (dict(config={'type': 'act'}), "type = 'act', want 'pi0' or 'pi05'"),
    (dict(config={'use_relative_actions': True}), 'use_relative_actions = True: only False is possible here'),
    (dict(config={'n_action_steps': 9}), 'n_action_steps = 9: a chunk has chunk_size = 8'),
    (dict(drop=(P.HEAD,)), f'has neither {P.published("embed_tokens.weight")} nor {P.HEAD}'),
    (dict(drop=('action_in_proj.weight',)), 'lacks action_in_proj.weight: it belongs to another model'),
    (dict(drop=(P.published('vision.norm.bias'),)), 'lacks vision.norm.bias'),
    (dict(add={'model.novel': torch.zeros(2)}), 'has unknown novel'),
    (dict(add={'model.action_in_proj.bias': torch.zeros(2)}), 'another shape: action_in_proj.bias is [2]'),
    (dict(add={'model.paligemma_with_expert.paligemma.vision_tower.x': torch.zeros(2)}),
     'names of before October 2025')])
def test_damaged_folders(damage, words, tmp_path):
    """Never a model left random: one line."""
    path = folder_of(tmp_path / 'policy', source(), **damage)
    with pytest.raises(SystemExit) as stop:
        P.Model.from_pretrained(path)
    assert words in one_line(stop.value.code)


def test_a_file_that_was_cut(tmp_path):
    path = folder_of(tmp_path / 'policy', source())
    whole = (path / 'model.safetensors').read_bytes()
    (path / 'model.safetensors').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SystemExit) as stop:
        P.Model.from_pretrained(path)
    assert f'cannot read {path}/model.safetensors: ' in one_line(stop.value.code)


# ---- sentences ----

@pytest.mark.parametrize('told', ('tokenizer', 'hashes'))
def test_pieces_are_the_whole_prompt(told, bpe):
    """pi05 joins the pieces on the device: all tokens are those of the whole text, in its order."""
    tokenizer, path, n = bpe
    over = dict(tokenizer=path, vocab_size=n) if told == 'tokenizer' else {}
    model = source(True, state_dim=4, tokenizer_max_length=64, **over)
    read = words.reader(over.get('tokenizer'), model.cfg.vocab_size, ('<bos>', 2))
    batch = P.example(model.cfg, 200)
    batch['state'] = torch.randn(200, 1, 4) * 2 + 1.5
    tokens, real = model.read(batch)
    bins = P.bins_of(model.normalise(batch['state'][:, 0], 'state')).tolist()
    found = {b for row in bins for b in row}
    assert {-1, 255} <= found and {len(str(b)) for b in found} == {1, 2, 3}
    for row, mask, task, b in zip(tokens, real, batch['task'][:, 0].tolist(), bins):
        want = [2, *read(P.prompt(TASKS[task], b))]
        assert row[mask].tolist() == want and not mask[len(want):].any()
        assert len(row) == model.longest <= 64
        if told == 'tokenizer':
            text = tokenizer.decode(want[1:]).replace(' ', '').replace('\u2581', ' ')
            assert text == P.prompt(TASKS[task], b)


def test_prompts_of_pi0(bpe):
    tokenizer, path, n = bpe
    model = source(tokenizer=path, vocab_size=n, tokenizer_max_length=40, tasks=('pick', 'pick\n', 'a_b'))
    tokens, real = model.read({'state': torch.zeros(3, 1, 2), 'task': torch.tensor([[0], [1], [2]])})
    assert torch.equal(tokens[0], tokens[1]) and tokens[0, 0] == 2
    for row, mask, text in zip(tokens, real, ('pick\n', 'pick\n', 'a_b\n')):
        assert row[mask].tolist() == [2, *tokenizer.encode(text, add_special_tokens=False).ids]


def test_wrong_tokenizers(bpe, tmp_path, monkeypatch):
    tokenizer, path, n = bpe
    (tmp_path / 'not.json').write_text('{}')
    for over, told in (
            (dict(tokenizer=path, vocab_size=n + 65), f'{n} tokens, <bos> is number 2; the VLM has'),
            (dict(tokenizer=str(tmp_path / 'not.json')), 'want the tokenizer.json of the VLM'),
            (dict(tokenizer=path, vocab_size=n, tokenizer_max_length=3), 'tokenizer_max_length = 3: ')):
        with pytest.raises(ValueError, match=re.escape(told)) as error:
            source(**over)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='<end> is number None; the VLM has'):
        words.reader(path, n, ('<end>', 1))
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ValueError, match=r"needs the package tokenizers: pip install -e '.\[vla\]'"):
        source(tokenizer=path, vocab_size=n)


def test_tokens_that_reach_over_edges_are_refused(tmp_path):
    from tokenizers import Tokenizer, models
    letters = dict.fromkeys(['<pad>', '<eos>', '<bos>', *' 0123456789-;:,.\nTaskSteAcionb', ': '])
    vocab = {word: i for i, word in enumerate(letters)}
    path = str(tmp_path / 'tokenizer.json')
    Tokenizer(models.BPE(vocab, [(':', ' ')])).save(path)
    with pytest.raises(ValueError, match='other tokens than its pieces; want the tokenizer.json'):
        source(True, tokenizer=path, vocab_size=len(vocab), tasks=('a b',))


def test_hashes():
    read = words.reader('', 1000, None)
    one, other = read('Push the RED disc to 12.'), read('push the red disc to 12.')
    assert one == other and len(one) == 8 and one[-3:-1] == [4, 5] and min(one) > 2 and max(one) < 1000
    assert read('a\n')[-1] == read('b\n')[-1] != read('a')[0]
    with pytest.raises(ValueError, match=r"vocab_size = 16: .* would be one word; want more, or a few less"):
        words.reader('', 16, None)('many words do not fit')
    assert max(words.reader('', 16, None, distinct=False)('many words do not fit')) < 16


def test_tell():
    model = source()
    seen = P.example(model.cfg, 2) | {'task': torch.tensor([[0], [1]])}
    first = model.act(seen, generators())
    model.tell(TASKS[::-1])
    assert torch.equal(model.text[2], source().text[0])
    model.tell((TASKS[1], TASKS[1]))
    assert (model.act(seen, generators())[0] - first[0]).abs().max() > 1e-4
    assert (model.act(seen, generators())[1] - first[1]).abs().max() < 1e-5      # no longer as long
    with pytest.raises(ValueError, match='tokenizer_max_length = 12: '):
        model.tell(('a b c d e f g h i j k l',))


# ---- the corridor ----

def frames(i, tasks):
    """An episode of 12 frames: the sentence says to which side the dot goes."""
    rng = np.random.default_rng(i)
    task = i % len(tasks)
    state = rng.random((12, 2)).astype(np.float32)
    picture = np.zeros((12, 3, 16, 16), np.uint8)
    picture[:, :, 4:8, 4:8] = 255
    action = state + (1 if task else -1)
    return {'image.top': picture, 'state': state, 'action': action.astype(np.float32),
            'task': np.full(12, task, np.int32)}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    tasks = ['go left', 'go right']
    write(root / 'told', partial(frames, tasks=tasks), 8, seed=1, val='0.25', workers=1, command='tests',
          padded=(), info={'source': 'tests', 'revision': '1', 'fps': 4, 'tasks': tasks,
                           'facts': {'cameras': ['top'], 'height': 16, 'width': 16},
                           'units': {'action': 'px', 'state': 'px'}})
    return root


@BOTH
def test_a_run_on_sentences(pi05, data_dir, tmp_path, bpe):
    """
    train.py takes the sentences from the data; its checkpoint acts without the tokenizer, goes on without it,
    and is where another run begins. Their tokens: of pi0 by hashes, of pi05 by a tokenizer.
    """
    decided = 'tasks', 'height', 'width', 'action_dim', 'state_dim'              # by the data
    small = {key: value for key, value in P.SMALL.items() if key not in decided}
    file = shutil.copyfile(bpe[1], tmp_path / 'tokenizer.json')
    if pi05:
        small |= {'tokenizer': file, 'vocab_size': bpe[2]}
    flags = [f'--{key}={value}' for key, value in (small | {'tokenizer_max_length': 64}).items()]
    common = ['train.py', '--model=pi0', '--dataset=told', f'--data_dir={data_dir}', '--device=cpu',
              '--batch_size=4', '--val_batches=1', f'--pi05={pi05}', *flags]
    script(*common, f'--out_dir={tmp_path}/a', '--max_steps=2', '--ema_decay=0.9', '--eval_every=2')
    script(*common, f'--out_dir={tmp_path}/b', '--max_steps=1', '--lr=0', f'--init_from={tmp_path}/a')
    other = '--tokenizer=' if pi05 else f'--tokenizer={file}'
    _, errors = script(*common, f'--out_dir={tmp_path}/c', f'--vocab_size={4096 if pi05 else bpe[2]}', other,
                       f'--init_from={tmp_path}/a', code=1)
    assert f'{tmp_path}/a: {words.KINDS[not pi05]}' in one_line(errors)
    _, errors = script(*common, f'--pi05={not pi05}', f'--out_dir={tmp_path}/c', f'--init_from={tmp_path}/a',
                       code=1)
    assert 'it belongs to another model or Config' in one_line(errors)
    file.unlink()
    script(*common, f'--out_dir={tmp_path}/a', '--max_steps=3', '--ema_decay=0.9', '--resume=True')
    model, meta = checkpoint.load(tmp_path / 'a')
    assert model.cfg.tasks == ('go left', 'go right') and model.cfg.cameras == ('top',)
    name = 'action_q99' if pi05 else 'action_mean'
    assert getattr(model, name).abs().sum() > 0
    batch = P.example(model.cfg, 2)
    assert model.act(batch).shape == (2, 8, 2)
    said, table = script('eval.py', f'--ckpt={tmp_path}/a', '--protocol=actions', '--stride=8')
    result = json.loads(said)
    assert 0 < result['l1_sigma'] < 10 and {*result['misled']} == {'wrong_sentence', 'blind'}
    assert 'wrong_sentence, told another sentence: L1 minus that' in table and '\n         blind  ' in table
    logged = (tmp_path / 'a' / 'logs.json.txt').read_text()              # not while it trains: it takes long
    assert 'eval/l1_sigma' in logged and 'wrong_sentence' not in logged
    ids = (bpe[0].encode('Task: go left, State:') if pi05 else None)
    want = ids.ids if ids else words.hashed('go left\n', 4096, {})
    assert model.text[0][:len(want) + 2].tolist() == [2, *want, -1]
    assert meta['step'] == 3 and model.hashed == (not pi05)
    other, _ = checkpoint.load(tmp_path / 'b')
    first, _ = checkpoint.load(f'{tmp_path}/a/step_0000002')
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters()))
    assert meta['params'] == sum(p.numel() for p in model.parameters())


# ---- bad input, as train.py is given it: one line, nothing is written, no model is left random ----

KINDS = pytest.mark.parametrize('kind', ('pi0', 'pi05', 'smolvla'))


@pytest.fixture
def refused(data_dir, tmp_path, bpe):
    """refused(kind, *flags) -> the line that train.py says of a small model; {bpe}: a tokenizer's file."""
    def ask(kind, *flags, dataset='told', code=(1, 2)):
        M = S if kind == 'smolvla' else P
        decided = 'tasks', 'height', 'width', 'action_dim', 'state_dim'
        small = {key: value for key, value in M.SMALL.items() if key not in decided}
        small |= {'tokenizer_max_length': 32, 'pi05': kind == 'pi05'}
        small |= {key: value.format(bpe=bpe[1], n=bpe[2], tmp=tmp_path)
                  for key, value in (flag[2:].split('=') for flag in flags)}
        if M is S: small.pop('pi05')
        _, errors = script('train.py', f'--model={M.__name__}', f'--dataset={dataset}', '--device=cpu',
                           f'--data_dir={data_dir}', f'--out_dir={tmp_path}/out', '--batch_size=2',
                           *[f'--{key}={value}' for key, value in small.items()], code=code)
        assert not (tmp_path / 'out').exists()
        return one_line(errors)
    return ask


@KINDS
@pytest.mark.parametrize('flags, told', [
    (['--max_state_dim=1'], 'state_dim = 2: max_state_dim = 1 have room'),
    (['--max_action_dim=1'], 'action_dim = 2: max_action_dim = 1 have room'),
    (['--tokenizer=/nowhere/it.json'], 'tokenizer = /nowhere/it.json: No such file or directory (os error '),
    (['--tokenizer={bpe}'], 'the VLM has 4,096, '),
    (['--tokenizer_max_length=2'], "tokenizer_max_length = 2: 'go left' takes up to "),
    (['--cameras=top,nose'], "cameras = ('top', 'nose') (--cameras) contradicts "),
    (['--init_from=lerobot/pi0_base'], 'cannot read lerobot/pi0_base/config.json: No such file or directo')])
def test_keys_of_those_that_read(kind, flags, told, refused): assert told in refused(kind, *flags)


@KINDS
def test_without_the_package_of_tokenizers(kind, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    assert "needs the package tokenizers: pip install -e '.[vla]'; " in refused(kind, '--tokenizer={bpe}')


def test_224_px_are_not_for_smolvla(refused):
    flags = '--image_resolution=224,224', '--vision_variant=32x2x64x2x16x32', '--scale_factor=4'
    assert 'want a square, n x 64 px, such as 256 or 512' in refused('smolvla', *flags)


OURS = '--tokenizer={bpe}', '--vocab_size={n}', '--tokenizer_max_length=64', '--init_from={tmp}/policy'


@pytest.mark.parametrize('kind, flags, damage, told', [
    ('pi0', ['--tokenizer='], {}, "its words are a VLM's: tokenizer = its tokenizer.json"),
    ('pi05', [], {}, 'it belongs to another model or Config'),
    ('smolvla', [], {}, "config.json: type = 'pi0', want 'smolvla'"),
    ('pi0', [], dict(drop=(P.HEAD,)), f'has neither {P.published("embed_tokens.weight")} nor {P.HEAD}'),
    ('pi0', [], dict(drop=(P.published('vlm.layers.0.k_proj.weight'),)), 'policy lacks vlm.layers.0.k_proj'),
    ('pi0', [], dict(add={'model.paligemma_with_expert.paligemma.vision_tower.x': torch.zeros(2)}),
     'names of before October 2025; load and save it once with LeRobot'),
    ('pi0', [], 'cut', 'policy/model.safetensors: ')])
def test_folders_to_start_from(kind, flags, damage, told, refused, tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(S, 'FIRST', ('<bos>', 2))
    whole = damage if isinstance(damage, dict) else {}
    path = folder_of(tmp_path / 'policy', source(tokenizer=bpe[1], vocab_size=bpe[2]), **whole)
    if damage == 'cut':
        os.truncate(path / 'model.safetensors', 5000)
    assert told in refused(kind, *OURS, *flags)


@pytest.mark.parametrize('pi05', (True, False))
def test_a_pi05_is_no_pi0(pi05, refused, tmp_path, bpe):
    """What LeRobot saved; a run of ours: test_a_run_on_sentences."""
    folder_of(tmp_path / 'policy', source(pi05, tokenizer=bpe[1], vocab_size=bpe[2]))
    assert 'it belongs to another model or Config' in refused('pi0' if pi05 else 'pi05', *OURS)


@pytest.mark.parametrize('number', (2, -1))
@pytest.mark.parametrize('split', ('train', 'val'))
def test_numbers_that_no_sentence_has(number, split, data_dir, refused):
    shutil.copytree(data_dir / 'told', data_dir / 'odd')
    try:
        task = np.lib.format.open_memmap(data_dir / 'odd' / split / 'task.npy', mode='r+')
        task[3] = number
        said = refused('pi0', dataset='odd')
        assert f'odd/{split}/task.npy: it holds ' in said and 'has the sentences 0 to 1; delete' in said
    finally:
        shutil.rmtree(data_dir / 'odd')


@BOTH
def test_cameras_and_numbers_that_are_not_known(pi05):
    model = source(pi05)
    seen = P.example(model.cfg, 1)
    for strange, told in (({'image.wirst': seen['image.top']}, 'image.wirst: none of its cameras, top, wr'),
                          ({'task': torch.tensor([[3]])}, 'task: 3..3, of 3 sentences'),
                          ({'task': torch.tensor([[-1]])}, 'task: -1..-1, of 3 sentences')):
        with pytest.raises(ValueError, match=re.escape(told)):
            model.act(seen | strange)


def test_quantiles_that_the_data_lack(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / 'data')
    path = tmp_path / 'data' / 'told' / 'meta.json'
    meta = json.loads(path.read_text())
    for table in meta['stats'].values():
        table.pop('q01')
        table.pop('q99')
    path.write_text(json.dumps(meta))
    _, errors = script('train.py', '--model=pi0', '--dataset=told', f'--data_dir={tmp_path}/data',
                       '--pi05=True', f'--out_dir={tmp_path}/out', '--device=cpu', code=2)
    assert 'is damaged (stats: state has no q01)' in one_line(errors)


def test_quantiles_that_a_folder_lacks(tmp_path):
    """Mean and std of a set from before LeRobot had quantiles are no replacement."""
    path = folder_of(tmp_path / 'policy', source(True))
    for file in 'normalizer.safetensors', 'unnormalizer.safetensors':
        stats = load_file(path / file)
        stats = {key.replace('q01', 'mean').replace('q99', 'std'): x for key, x in stats.items()}
        save_file(stats, path / file)
    with pytest.raises(SystemExit) as stop:
        P.Model.from_pretrained(path)
    assert 'policy has no q01 of observation.state, beside the weights or among' in one_line(stop.value.code)


def test_importing_is_cheap():
    """Neither of the packages that could read words is loaded before it is asked for."""
    code = 'import sys, pi0, smolvla; print({"tokenizers", "transformers"} & {*sys.modules})'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'
