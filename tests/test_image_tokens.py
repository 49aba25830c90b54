"""
Image tokens in place of pictures, and SmolVLM2's own weights: what smolvla.py learns and does on stored
tokens is what it does on pixels; prepare.py --features stores them; what does not go together is one line.
"""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import one_line, script
from safetensors.torch import save_file
from test_data_lerobot import TASKS, TOP, arrays, equipped, npy, prepare
from test_math_pi0 import drawn
from test_pretrained_pi0 import bpe, generators  # noqa: F401
from test_pretrained_smolvla import published, source
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
import smolvla as S
from data import writer
from data.layout import check_meta, read_meta

CAMERAS = 'top', 'left.wrist'
FROZEN = dict(freeze_vision_encoder=True, train_expert_only=True, cameras=CAMERAS)
TOKENS = 4, 32                   # of the tiny network: 4 x 4 patches, 2 x 2 in one, width 32


def model_of(**over):
    torch.manual_seed(0)
    return S.Model(replace(S.PRESETS['tiny'], **FROZEN | over)).eval()


def both(model, **over):
    """The same network for stored tokens; a batch of pictures, one of tokens as prepare.py keeps them."""
    other = S.Model(replace(model.cfg, features=TOKENS, **over)).eval()
    other.load_state_dict(model.state_dict())
    batch = drawn(model, S)
    with torch.no_grad():
        tokens = model.image_tokens(model.look(batch)[0])
    stored = {f'features.{name}': x[:, None].half() for name, x in zip(CAMERAS, tokens)}
    return other, batch, stored | {key: x for key, x in batch.items() if not key.startswith('image.')}


def blinded(model):
    """It must not look: its ViT and connector raise."""
    def closed(x): raise RuntimeError('it looked')
    model.vision.forward = model.projector.forward = closed
    return model


# ---- what they change: nothing ----

@pytest.mark.parametrize('draws', (1, 3))
def test_training_on_them_is_training_on_pictures(draws):
    """16 bit keep 11 digits: loss and gradients agree to 1e-3 of their size, and to 1e-5 in 32 bit."""
    model = model_of(draws=draws)
    other, batch, stored = both(model)
    with torch.no_grad():
        tokens = model.image_tokens(model.look(batch)[0])
    wide = stored | {f'features.{name}': x[:, None] for name, x in zip(CAMERAS, tokens)}
    model(batch)['loss'].backward()
    want = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(want) > 20
    for tokens, allowed in (stored, 1e-3), (wide, 1e-5):
        loss = blinded(other)(tokens)['loss']
        other.zero_grad()
        loss.backward()
        assert loss.item() == pytest.approx(model(batch)['loss'].item(), rel=allowed)
        for name, p in other.named_parameters():
            assert p.requires_grad == (name in want), name
            if p.requires_grad:
                assert (p.grad - want[name]).norm() <= 10 * allowed * want[name].norm(), name


@torch.no_grad()
def test_acting_takes_either():
    """Whatever it was trained on, a robot has pictures; one camera may give tokens, the other pixels."""
    model = model_of()
    other, batch, stored = both(model)
    wrist = {key: x for key, x in stored.items() if key != 'features.top'} | {'image.top': batch['image.top']}
    want = model.act(batch, generators(3))
    assert torch.equal(other.act(batch, generators(3)), want)
    for seen in stored, wrist:
        got = other.act(seen, generators(3))
        assert 0 < (got - want).abs().max() < 1e-3 * want.std()
    no = {'image_mask.left.wrist': torch.zeros(3, dtype=torch.bool)}
    alone = {key: x for key, x in stored.items() if key != 'features.left.wrist'}
    masked = blinded(other).act(stored | no, generators(3))
    assert (masked - other.act(alone, generators(3))).abs().max() < 1e-5
    assert (masked - other.act(stored, generators(3))).abs().max() > 1e-4
    # the VLM's scale comes on top, for which 16 bit have no room
    loud = {key: x / x.abs().max() * 6e4 if key.startswith('features.') else x for key, x in stored.items()}
    assert loud['features.top'].isfinite().all() and other.act(loud, generators(3)).isfinite().all()
    with pytest.raises(ValueError, match='no picture: want image.top'):
        other.act({'state': batch['state'], 'task': batch['task']})
    with pytest.raises(ValueError, match='features.tpo: none of its cameras, top'):
        other.act(stored | {'features.tpo': stored['features.top']})


def test_their_cost():
    model = model_of()
    other, batch, stored = both(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.image_tokens([x[:1] for x in model.look(batch)[0]])
    saved = model.flops_per_sample() - other.flops_per_sample()
    assert saved == pytest.approx(counter.get_total_flops(), rel=0.02) and saved > 0
    assert S.example(other.cfg, 2)['features.top'].shape == (2, 1, *TOKENS)
    assert other(S.example(other.cfg, 2))['loss'].isfinite()
    assert [*S.windows(other.cfg)] == ['features.top', 'features.left.wrist', 'state', 'task', 'action']


def test_a_sixth_of_the_bytes():
    with torch.device('meta'):
        model = S.Model(S.Config())
        pixels = torch.empty(1, 1, 3, 512, 512, dtype=torch.uint8)
        tokens = model.image_tokens(model.look({'image.top': pixels})[0])[0].half()
        S.Model(S.Config(features=tuple(tokens.shape[1:])))
    assert tokens.shape == (1, 64, 960) and 6 < pixels.nbytes / tokens.nbytes < 7


@pytest.mark.slow
def test_compiles_in_one_piece():
    other, _, stored = both(model_of())
    want = other(stored)['loss']
    torch._dynamo.reset()
    got = torch.compile(other, fullgraph=True, backend='aot_eager')(stored)['loss']
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize('over, words', [
    (dict(train_expert_only=False), 'train_expert_only = False: stored image tokens are of frozen weights'),
    (dict(train_expert_only=False, freeze_vision_encoder=False), 'stored image tokens are of frozen weights'),
    (dict(features=(16, 32)), r'features = \(16, 32\): image_resolution, .* make \(4, 32\) of a picture')])
def test_impossible_values(over, words):
    with pytest.raises(ValueError, match=words) as error:
        model_of(**dict(features=TOKENS) | over)
    assert '\n' not in str(error.value)


# ---- folders ----

def vlm(path, model, dtype=torch.float32, layers=4, drop=(), add=(), config=()):
    """What the makers of SmolVLM2 publish: the VLM alone, all of its layers, another first word."""
    weights = {S.published(key): x.detach().clone() for key, x in model.named_parameters()}
    weights |= {key: torch.zeros(shape) for key, shape in S.dead(model.cfg).items()}
    weights = {key.removeprefix(S.BODY): x for key, x in weights.items() if key.startswith(S.BODY)}
    deeper = {key: x for key, x in weights.items() if '.text_model.layers.0.' in key}
    for i in range(model.cfg.num_vlm_layers, layers):
        weights |= {key.replace('.0.', f'.{i}.'): torch.randn(x.shape) for key, x in deeper.items()}
    path.mkdir()
    weights = {key: x.to(dtype) for key, x in weights.items() if key not in drop} | dict(add)
    save_file(weights, path / 'model.safetensors')
    said = {'model_type': 'smolvlm', 'vision_config': {'num_attention_heads': 2}} | dict(config)
    (path / 'config.json').write_text(json.dumps(said))
    return path


def started(model, src, keep=()):
    """init_from."""
    model.hashed.fill_(False)                            # its words are a tokenizer's, as it were
    checkpoint.start_from(model, S, str(src), keep=keep)
    return model


@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16))
def test_the_vlm_alone(dtype, tmp_path):
    """All of it comes from the file, and nothing else does: expert, statistics and sentences stay."""
    there = source()
    for p in there.parameters():                         # biases and norms, too
        p.detach().normal_()
    src = vlm(tmp_path / 'vlm', there, dtype)
    model = S.Model(replace(there.cfg, cameras=('left',), tasks=('one',), expert_width_multiplier=0.5))
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(SystemExit) as stop:
        checkpoint.start_from(model, S, str(src), keep=())
    assert "its words are a VLM's: tokenizer = its tokenizer.json" in one_line(stop.value.code)
    started(model, src)
    ours = 'vision.', 'projector.', 'embed_tokens.', 'vlm.'
    now = {key: x for key, x in model.state_dict().items() if key != 'hashed'}
    filled = [key for key, x in now.items() if not torch.equal(x, before[key])]
    for key, x in now.items():
        assert x.dtype == before[key].dtype and (key in filled) == key.startswith(ours), key
        if key in filled:
            assert torch.equal(x, there.state_dict()[key].to(dtype).float()), key
    assert len(filled) > 40


HEAD = S.HEAD.removeprefix(S.BODY)
WORD = 'model.text_model.embed_tokens.weight'
DAMAGED = {      # name: (what becomes of the file, what the line says)
    'vision': (dict(drop=('model.vision_model.post_layernorm.bias',)), 'safetensors lacks vision.norm.bias'),
    'connector': (dict(drop=('model.connector.modality_projection.proj.weight',)), 'lacks projector.weight'),
    'layer': (dict(drop=('model.text_model.layers.1.self_attn.k_proj.weight',)), 'lacks vlm.layers.1.k_proj'),
    'words': (dict(drop=(HEAD, WORD)), f'has neither {S.BODY}{WORD} nor {S.HEAD}'),
    'shape': (dict(add={'model.vision_model.post_layernorm.bias': torch.zeros(3)}),
              'model.safetensors has another shape: vision.norm.bias is [3], the model has [32]'),
    'deeper': (dict(add={'model.vision_model.encoder.layers.2.mlp.fc1.bias': torch.zeros(64)}),
               'has unknown vlm_with_expert.vlm.model.vision_model.encoder.layers.2.mlp.fc1.bias'),
    'kind': (dict(config={'model_type': 'idefics3'}), "config.json: type = None, want 'smolvla'")}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_folders(name, tmp_path):
    """Never a part left random: one line, which names the file and the key."""
    model, (damage, told) = source(), DAMAGED[name]
    src = vlm(tmp_path / 'vlm', model, **damage)
    with pytest.raises(SystemExit) as stop:
        started(model, src)
    assert told in one_line(stop.value.code) and str(src) in stop.value.code


def test_a_file_that_was_cut_and_one_of_fewer_layers(tmp_path):
    src = vlm(tmp_path / 'vlm', source())
    path = src / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SystemExit) as stop:
        started(source(), src)
    assert f'cannot read {path}' in one_line(stop.value.code) and 'want the whole folder' in stop.value.code
    src = vlm(tmp_path / 'shallow', source(num_vlm_layers=1), layers=1)
    with pytest.raises(SystemExit) as stop:
        started(source(), src)
    assert 'lacks vlm.layers.1.input_layernorm.weight and 2 more' in one_line(stop.value.code)


def test_the_word_embedding_may_have_its_other_name(tmp_path):
    there = source()
    weights = there.embed_tokens.weight.detach().clone()
    src = vlm(tmp_path / 'vlm', there, drop=(WORD,), add={HEAD: weights})
    assert torch.equal(started(source(), src).embed_tokens.weight, weights)


# ---- prepare.py, train.py, eval.py ----

def eyes(bpe, **over):  # noqa: F811
    """A policy with the words of the tokenizer and the cameras of `equipped`, whose pictures are 24 x 32."""
    over = dict(cameras=CAMERAS, height=24, width=32, tasks=TASKS) | over
    return source(tokenizer=bpe[1], vocab_size=bpe[2], **over)


def flags(model, folder, *more):
    """train.py on data of this folder, with the sizes of the model."""
    decided = 'cameras', 'tasks', 'height', 'width', 'action_dim', 'state_dim', 'features'
    told = {key: x for key, x in vars(model.cfg).items() if x != getattr(S.Config(), key)}
    told = {key: x for key, x in told.items() if key not in decided}
    told |= {'train_expert_only': True, 'freeze_vision_encoder': True}
    return ['train.py', '--model=smolvla', f'--data_dir={folder}', '--dataset=tokens', '--device=cpu',
            f'--out_dir={folder}/run', '--batch_size=4', '--val_batches=1', '--max_steps=2',
            *(f'--{key}={x}' for key, x in told.items()), *more]


@pytest.fixture(scope='module')
def made(tmp_path_factory, bpe):  # noqa: F811
    """A folder with a policy, its VLM, and a set of LeRobot, as pictures and as the policy's tokens."""
    root = tmp_path_factory.mktemp('made')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S, 'FIRST', ('<bos>', 2))
        model = eyes(bpe)
    policy, src = published(root / 'policy', model), equipped(root / 'src')
    vlm(root / 'vlm', model)
    prepare(src, root / 'pixels', '--cameras=all', '--val=2')
    prepare(src, root / 'tokens', '--cameras=all', '--val=2', f'--features={policy}')
    return root, model


def test_prepare_stores_what_the_model_would_see(made):
    root, model = made
    meta, pixels = read_meta(root / 'tokens'), read_meta(root / 'pixels')
    assert meta['facts'] == pixels['facts'] | {'features': [*TOKENS]}
    assert meta['facts']['cameras'] == [*CAMERAS]
    assert meta['features'] == {'weights': 'policy', 'sha256': model.sight()} and meta['tasks'] == TASKS
    assert '--features=policy' in meta['command']        # where it lay is nobody's business
    for split in 'train', 'val':
        there = {path.name for path in (root / 'tokens' / split).iterdir()}
        assert there == {path.name.replace('image.', 'features.')
                         for path in (root / 'pixels' / split).iterdir()}
        for name in CAMERAS:
            pictures = torch.from_numpy(npy(root / 'pixels', f'image.{name}', split))
            with torch.no_grad():
                want = model.image_tokens(model.look({f'image.{name}': pictures[:, None]})[0])[0]
            got = npy(root / 'tokens', f'features.{name}', split)
            assert got.dtype == np.float16 and got.shape == (len(pictures), *TOKENS) and want.std() > 0.1
            assert np.abs(got - want.numpy()).max() < 1e-3 * want.abs().max()
        for key in 'state', 'action', 'task', 'episodes':
            assert np.array_equal(npy(root / 'tokens', key, split), npy(root / 'pixels', key, split))


def test_the_folder_of_the_vlm_makes_the_same(made, monkeypatch):
    """Sizes and heads come from there; and workers, each with a network of its own, make the same bytes."""
    root, _ = made
    monkeypatch.setattr(writer, 'SHARD', 2)
    prepare(root / 'src', root / 'again', '--cameras=all', '--val=2', f'--features={root}/vlm', '--workers=2')
    assert arrays(root / 'again') == arrays(root / 'tokens')
    one, two = read_meta(root / 'again')['features'], read_meta(root / 'tokens')['features']
    assert one == two | {'weights': 'vlm'}


@pytest.mark.parametrize('start', ('policy', 'vlm'))
def test_a_run_on_tokens(start, made, tmp_path, monkeypatch):
    """It starts from either folder, goes on, and is judged on tokens and on pictures alike."""
    root, model = made
    monkeypatch.setattr(S, 'FIRST', ('<bos>', 2))
    train = [*flags(model, root, f'--init_from={root}/{start}'), f'--out_dir={tmp_path}/run']
    script(*train)
    said, _ = script(*train, '--max_steps=3', '--resume=True', '--init_from=gone')
    assert 'step 3/3' in said
    there, meta = checkpoint.load(tmp_path / 'run')
    assert there.cfg.features == TOKENS and there.sight() == model.sight()
    assert S.windows(there.cfg).keys() >= {'features.top', 'features.left.wrist'}
    found = {}
    for dataset in 'tokens', 'pixels':
        for protocol in 'actions', 'loss':
            said, err = script('eval.py', f'--ckpt={tmp_path}/run', f'--protocol={protocol}', '--device=cpu',
                               f'--dataset={dataset}')
            number = json.loads(said)['l1_sigma' if protocol == 'actions' else 'loss']
            assert number == pytest.approx(found.setdefault(protocol, number), rel=1e-3) and number > 0.1
        assert ('holds other data' in err) == (dataset == 'pixels')
        drawn_to = tmp_path / f'{dataset}.png'
        script('sample.py', f'--ckpt={tmp_path}/run', f'--dataset={dataset}', f'--out={drawn_to}')
        assert drawn_to.stat().st_size > 1000
    obs = {'image.top': torch.from_numpy(npy(root / 'pixels', 'image.top', 'val'))[:2, None]}
    obs |= {'state': torch.zeros(2, 1, 4), 'task': torch.zeros(2, 1)}
    assert there.act(obs).isfinite().all()


def test_tokens_of_other_weights_are_refused(made, tmp_path, monkeypatch):
    root, model = made
    monkeypatch.setattr(S, 'FIRST', ('<bos>', 2))
    says = 'its features are image tokens of policy, whose weights are not those here: start from them'
    _, err = script(*flags(model, root), code=1)         # the VLM at random
    assert one_line(err).startswith(f'smolvla on {root}/tokens: {says}') and not (root / 'run').exists()
    with torch.no_grad():
        other = source(tokenizer=model.cfg.tokenizer, vocab_size=model.cfg.vocab_size)
        other.projector.weight[0, 0] += 0.1
    vlm(tmp_path / 'other', other)
    _, err = script(*flags(model, root, f'--init_from={tmp_path}/other'), code=1)
    assert says in one_line(err)
    for flag, told in (('--train_expert_only=False', 'stored image tokens are of frozen weights'),
                       ('--image_resolution=8,8', 'make (1, 32) of a picture'),
                       ('--dataset=pixels --features=4,32', '/meta.json knows no train/features.top.npy')):
        _, err = script(*flags(model, root, f'--init_from={root}/policy', *flag.split()), code=1)
        assert told in one_line(err)
    # a run on pictures, its ViT another one
    more = '--dataset=pixels', f'--init_from={tmp_path}/other', f'--out_dir={tmp_path}/run'
    script(*flags(model, root, *more))
    _, err = script('eval.py', f'--ckpt={tmp_path}/run', '--protocol=loss', '--dataset=tokens', code=1)
    assert says in one_line(err)
    # the same ViT, but smaller pictures
    more = '--dataset=pixels', f'--init_from={root}/policy', f'--out_dir={tmp_path}/small'
    script(*flags(model, root, *more, '--image_resolution=8,8'))
    _, err = script('eval.py', f'--ckpt={tmp_path}/small', '--protocol=loss', '--dataset=tokens', code=1)
    assert 'features = (4, 32): image_resolution' in one_line(err) and 'make (1, 32) of a picture' in err


@pytest.mark.parametrize('name', ('pi0', 'nothing', 'heads', 'lacks', 'cut', 'video', 'alone'))
def test_prepare_refuses(name, made, tmp_path):
    root, model = made
    folder, given = tmp_path / 'it', ('--cameras=all',)
    damage = {'heads': dict(config={'vision_config': {}}),
              'lacks': dict(drop=('model.vision_model.embeddings.patch_embedding.weight',))}
    if name == 'pi0':
        published(folder, model, config={'type': 'pi0'})
        told = f"{folder}/config.json: type = 'pi0', want 'smolvla'"
    elif name == 'nothing':
        told = f'cannot read {folder}/config.json: No such file or directory; want'
    elif name == 'cut':
        path = vlm(folder, model) / 'model.safetensors'
        path.write_bytes(path.read_bytes()[:-40])
        told = f'cannot read {path}: '
    else:
        vlm(folder, model, **damage.get(name, {}))
        given = {'video': (f'--video={TOP}',), 'alone': ()}.get(name, given)
        told = {'heads': f'{folder}/config.json: vision_config: num_attention_heads = None: want a number',
                'lacks': f'{folder}/model.safetensors lacks model.vision_model.embeddings.patch_embedding.w'}
        told = told.get(name, f'--features={folder}: of what? --cameras=all says which pictures to read')
    _, err = prepare(root / 'src', tmp_path / 'out', *given, f'--features={folder}', code=1)
    assert told in one_line(err) and not (tmp_path / 'out').exists()


def test_meta_json_that_contradicts_itself(made):
    root, _ = made
    for change, told in (({'features': {'sha256': 'x'}}, 'want {weights, sha256, ..}, what made them'),
                         ({'facts': {'features': [4, 30]}}, 'features = [4, 30], but train/features.'),
                         ({'facts': {'cameras': ['front']}}, 'want the <name> of each train/features.')):
        meta = read_meta(root / 'tokens')
        for key, value in change.items():
            meta[key] = meta[key] | value if key == 'facts' else value
        with pytest.raises(ValueError) as error:
            check_meta(meta)
        assert told in str(error.value)
