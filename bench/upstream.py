"""
LeRobot 0.4.4 beside us, for bench/versus_lerobot.py: is it there, its policies called like our models, and
one of its data sets in both formats.

Its requirements hold torch back below 2.11, so it gets an environment of its own, without them; it works with
a later torch all the same:
    pip install torch==2.13.0 tqdm imageio pyarrow av accelerate deepdiff dill einops httpx jsonlines
        mergedeep multiprocess pandas pyserial requests typing-inspect xxhash
    pip install --no-deps lerobot==0.4.4 torchvision==0.28.0 draccus==0.10.0 diffusers==0.35.2 datasets==4.8.5
        huggingface-hub==0.35.3
"""
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

import act
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
