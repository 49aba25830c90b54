"""
LeRobot 0.4.4 beside us, for bench/versus_lerobot.py and bench/versus_vla.py: is it there, its policies called
like our models, and one of its data sets in both formats.

Its requirements hold torch back below 2.11, so it gets an environment of its own, without them; it works with
a later torch all the same:
    pip install torch==2.13.0 tqdm imageio pyarrow av accelerate deepdiff dill einops httpx jsonlines
        mergedeep multiprocess pandas pyserial requests typing-inspect xxhash
    pip install --no-deps lerobot==0.4.4 torchvision==0.28.0 draccus==0.10.0 diffusers==0.35.2 datasets==4.8.5
        huggingface-hub==0.35.3
SmolVLA wants these, too:
    pip install --no-deps transformers==4.57.3 tokenizers==0.22.2 regex
"""
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

import act
import smolvla
from data.lerobot.reader import cameras, films, layout, records
from data.loader import Store

VERSION = '0.4.4'
# a torchvision that was built for another torch looks for its operators, which nobody calls here
OPERATORS = '''import torch
for name in 'nms', 'qnms':
    torch.library.define('torchvision::' + name, '(Tensor dets, Tensor scores, float threshold) -> Tensor')
'''


@cache
def prelude():
    """Code that must run in a process before LeRobot is imported there; mostly ''."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        return OPERATORS
    return ''


@cache
def lacking():
    """Why LeRobot cannot be used here, in words, or ''."""
    os.environ['HF_HUB_OFFLINE'] = '1'                   # read while it is imported
    try:
        there = version('lerobot')
        if there != VERSION:
            return f'version {there} is installed'
        exec(prelude())
        import lerobot.datasets.v30.convert_dataset_v21_to_v30
        import lerobot.policies.act.modeling_act
        import lerobot.policies.diffusion.modeling_diffusion  # noqa: F401
    except Exception as error:                           # of fifty packages, each fails in its own way
        return str(error).partition('\n')[0] or type(error).__name__
    return ''


@cache
def lacking_vla():
    """The same for its SmolVLA."""
    try:
        if not lacking():
            import lerobot.policies.smolvla.modeling_smolvla  # noqa: F401
    except Exception as error:
        return str(error).partition('\n')[0] or type(error).__name__
    return lacking()


# ---- policies ----

class Theirs(torch.nn.Module):
    """LeRobot's policy of the same name as `ours`, with its sizes and weights; batch -> {'loss': scalar}."""

    def __init__(self, ours, arguments):
        super().__init__()
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.act.modeling_act import ACTConfig, ACTPolicy
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionConfig, DiffusionPolicy
        cfg, is_act = ours.cfg, isinstance(ours, act.Model)
        self.camera = f'observation.images.{cfg.cameras[0]}'
        seen = {self.camera: PolicyFeature(FeatureType.VISUAL, (3, cfg.height, cfg.width)),
                'observation.state': PolicyFeature(FeatureType.STATE, (cfg.state_dim,))}
        done = {'action': PolicyFeature(FeatureType.ACTION, (cfg.action_dim,))}
        config = (ACTConfig if is_act else DiffusionConfig)(
            input_features=seen, output_features=done, device='cpu', pretrained_backbone_weights=None,
            **arguments)
        self.policy = (ACTPolicy if is_act else DiffusionPolicy)(config)
        self.inner, weights = self.policy.model if is_act else self.policy.diffusion, ours.state_dict()
        self.inner.load_state_dict({key: weights[key] for key in self.inner.state_dict()})

    def forward(self, batch):
        return {'loss': self.policy(batch)[0]}

    def optimizer(self):
        """As lerobot_train.py makes it."""
        return self.policy.config.get_optimizer_preset().build(self.policy.get_optim_params())

    def renamed(self, ours, batch):
        """A batch of ours as the policy wants it: normalised, by our statistics, and under its names."""
        if isinstance(ours, act.Model):
            state, _, (image,) = ours.look(batch)
        else:
            state, image = ours.normalise(batch, 'state'), ours.picture(batch, 0)
        return {'observation.state': state, self.camera: image, 'action': ours.normalise(batch, 'action'),
                'action_is_pad': ~batch['mask']}


class TheirVLA(Theirs):
    """LeRobot's SmolVLA; it pads a text to the longest of the batch, as we do."""

    def __init__(self, ours):
        torch.nn.Module.__init__(self)
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.smolvla import modeling_smolvla, smolvlm_with_expert
        from transformers import SmolVLMConfig
        cfg = self.cfg = ours.cfg
        width, mlp, heads, kv, d = smolvla.sizes(cfg.vlm_model_name)
        look, depth, look_mlp, look_heads, patch_, table = smolvla.sizes(cfg.vision_variant)
        vlm = SmolVLMConfig(
            scale_factor=cfg.scale_factor, tie_word_embeddings=False,
            text_config=dict(model_type='llama', hidden_size=width, intermediate_size=mlp, head_dim=d,
                             num_attention_heads=heads, num_key_value_heads=kv, rms_norm_eps=1e-5,
                             num_hidden_layers=cfg.num_vlm_layers, vocab_size=cfg.vocab_size, pad_token_id=0),
            vision_config=dict(hidden_size=look, num_hidden_layers=depth, intermediate_size=look_mlp,
                               num_attention_heads=look_heads, patch_size=patch_, image_size=patch_ * table))
        tokens = SimpleNamespace(fake_image_token_id=0, global_image_token_id=0)
        seen = {f'observation.images.{name}': PolicyFeature(FeatureType.VISUAL, (3, cfg.height, cfg.width))
                for name in cfg.cameras}
        seen |= {'observation.state': PolicyFeature(FeatureType.STATE, (cfg.state_dim,))}
        own = ('num_vlm_layers expert_width_multiplier attention_mode self_attn_every_n_layers chunk_size '
               'n_action_steps max_state_dim max_action_dim num_steps min_period max_period '
               'freeze_vision_encoder train_expert_only train_state_proj tokenizer_max_length').split()
        config = modeling_smolvla.SmolVLAConfig(
            input_features=seen, output_features={'action': PolicyFeature(FeatureType.ACTION,
                                                                          (cfg.action_dim,))},
            device='cpu', resize_imgs_with_padding=cfg.image_resolution, load_vlm_weights=False,
            **{key: getattr(cfg, key) for key in own})
        # these two would ask the hub, for sizes and for the numbers of two tokens that are not used
        with patch.multiple(smolvlm_with_expert, AutoConfig=SimpleNamespace(from_pretrained=lambda _: vlm),
                            AutoProcessor=SimpleNamespace(from_pretrained=lambda _: SimpleNamespace(
                                tokenizer=tokens))), redirect_stdout(io.StringIO()):
            self.policy = modeling_smolvla.SmolVLAPolicy(config)
        self.inner = self.policy.model
        weights = {smolvla.published(key): x for key, x in ours.named_parameters()}
        missing, unknown = self.inner.load_state_dict(weights, strict=False)
        assert not unknown and {*missing} == {*smolvla.dead(cfg)}, (missing, unknown)

    def forward(self, batch):
        return {'loss': self.policy(batch, batch['noise'], batch['t'])[0]}

    def act(self, batch):
        return self.policy.predict_action_chunk(batch, batch['noise'])

    def renamed(self, ours, batch):
        tokens, real = ours.read(batch)
        rows = {'observation.state': ours.normalise(batch['state'][:, -1], 'state'),
                'action': ours.normalise(batch['action'], 'action'), 'noise': batch['noise'], 't': batch['t'],
                'observation.language.tokens': tokens,
                'observation.language.attention_mask': real}
        return rows | {f'observation.images.{name}': batch[f'image.{name}'][:, -1] / 255
                       for name in self.cfg.cameras}


# ---- data ----

class VideoReader:
    """What LeRobot asks of torchvision's class of this name, by PyAV; torchvision 0.28 has it no more."""

    def __init__(self, path, kind):
        import av
        self.container = av.open(path)
        self.stream = self.container.streams.video[0]

    def seek(self, seconds, keyframes_only):
        self.container.seek(round(seconds / self.stream.time_base), stream=self.stream)

    def __iter__(self):
        for frame in self.container.decode(self.stream):
            picture = torch.from_numpy(frame.to_rgb().to_ndarray()).permute(2, 0, 1)
            yield {'data': picture, 'pts': float(frame.pts * frame.time_base)}


def alone(src, chosen, camera, folder):
    """
    A v2.1 set in `folder` of these episodes of src, numbered anew, and of one camera: LeRobot reads nothing
    but v3.0, and its converter wants a video for every episode.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    (info, files), first, meta = layout(src), 0, Path(folder, 'meta')
    columns = {key: x for key, x in info['features'].items() if x['dtype'] != 'video' or key == camera}
    told = {name: records(Path(src, 'meta', name)) for name in ('episodes.jsonl', 'episodes_stats.jsonl')}
    meta.mkdir(parents=True)
    shutil.copy(Path(src, 'meta', 'tasks.jsonl'), meta)
    for k, i in enumerate(chosen):
        table, T = pq.read_table(files[i][0]), files[i][1]
        for name, values in ('episode_index', [k] * T), ('index', range(first, first + T)):
            at = table.schema.get_field_index(name)
            field = table.schema.field(at)
            table = table.set_column(at, field, pa.array(values, field.type))
        first += T
        hole = {'episode_chunk': 0, 'episode_index': k, 'video_key': camera}
        rows, film = (Path(folder, info[key].format(**hole)) for key in ('data_path', 'video_path'))
        for path in rows, film:
            path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, rows)
        shutil.copy(films(src, camera)[i][0], film)
        for name, lines in told.items():
            line = next(line for line in lines if line['episode_index'] == i) | {'episode_index': k}
            if 'stats' in line:
                line['stats'] = {key: x for key, x in line['stats'].items() if key in columns}
            with open(meta / name, 'a') as f:
                f.write(json.dumps(line) + '\n')
    n = len(chosen)
    info = info | {'features': columns, 'total_episodes': n, 'total_videos': n, 'total_frames': first,
                   'total_chunks': 1, 'splits': {'train': f'0:{n}'}}
    (meta / 'info.json').write_text(json.dumps(info))


def with_films(src, most):
    """A camera of the v2.1 set src, our name of it, and the first `most` episodes with a video, or exit."""
    info, _ = layout(src)
    names = {key: name for name, key in cameras(info).items() if info['features'][key]['dtype'] == 'video'}
    if info['codebase_version'] != 'v2.1' or not names:
        sys.exit(f'src = {src}: want a set of version v2.1 with videos; it is {info["codebase_version"]}, '
                 f'its cameras are {", ".join(names) or "none"}')
    camera, name = next(iter(names.items()))
    chosen = [i for i, (film, _) in enumerate(films(src, camera)) if film.exists()][:most]
    if not chosen:
        sys.exit(f'src = {src}: it has no video of {camera}; fetch some')
    return camera, name, chosen


def both_sets(src, most, chunk_size, folder):
    """
    The same windows of ACT twice, of at most `most` episodes of src, below `folder`: our Store with the name
    of its camera, their LeRobotDataset with its name.
    """
    import torchvision
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset
    if not hasattr(torchvision.io, 'VideoReader'):
        torchvision.io.VideoReader = VideoReader
    camera, name, chosen = with_films(src, most)
    run = [sys.executable, Path(__file__).parents[1] / 'data/lerobot/prepare.py', f'--src={src}', '--val=0',
           f'--out={folder}/ours', f'--cameras={name}', f'--episodes={",".join(map(str, chosen))}']
    if subprocess.run(run, stdout=subprocess.DEVNULL).returncode:
        sys.exit(1)                                      # it has said why
    windows, fps = act.windows(act.Config(chunk_size=chunk_size, cameras=(name,))), layout(src)[0]['fps']
    store = Store(f'{folder}/ours', 'train', windows, pad=act.PAD)
    alone(src, chosen, camera, f'{folder}/theirs')
    convert_dataset('theirs', root=folder, push_to_hub=False)
    dataset = LeRobotDataset('theirs', root=f'{folder}/theirs', video_backend='pyav',
                             delta_timestamps={'action': [t / fps for t in windows['action']]})
    return store, f'image.{name}', dataset, camera
