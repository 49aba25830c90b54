"""
Image tokens in place of pictures: what --features does to an episode, for a smolvla whose VLM stays frozen.

    features.<camera>    (T, N, W) float16: what its ViT and its connector make of image.<camera>

At full size that is 64 x 960, a sixth of the bytes of 512 x 512 pixels. An episode is encoded in chunks from
its first frame on. meta.json says, under `features`, whose weights these were: smolvla.py takes no others.
"""
import math
import sys
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import latents

CHUNK = 8                        # pictures at a time


@cache
def eyes(src):
    """
    The folder of a smolvla, or of SmolVLM2 itself -> a smolvla.Model, read once by each process. ViT and
    connector are on its device, the rest has no memory. torch comes here, because data of pixels need none.
    """
    import checkpoint
    import smolvla
    if checkpoint.is_vlm(smolvla, src):
        values, weights = of_vlm(smolvla, src, *checkpoint.read_vlm(smolvla, src, 1))
        net = checkpoint.lerobot_model(smolvla, values, weights, src, smolvla.EYES)
    else:
        net = smolvla.Model.from_pretrained(src, stats=None, parts=smolvla.EYES)
    for part in net.vision, net.projector:
        part.to(latents.place())
    return net


def of_vlm(M, src, config, weights):
    """-> (values of M.Config, weights). Sizes are the weights'; of heads only config.json tells."""
    heads = (config.get('vision_config') or {}).get('num_attention_heads')
    if type(heads) is not int:
        sys.exit(f'{src}/config.json: vision_config: num_attention_heads = {heads!r}: want a number')
    keys = 'vision.patch.weight', 'vision.position.weight', 'vision.layers.0.fc1.weight', 'projector.weight'
    lost = [M.published(key) for key in keys if M.published(key) not in weights]
    if lost:
        sys.exit(f'{src}/model.safetensors lacks {lost[0].removeprefix(M.BODY)}; take the whole file')
    (width, _, patch, _), (places, _), (mlp, _), (W, joined) = (
        weights[M.published(key)].shape for key in keys)
    depth, table = sum('.mlp.fc1.weight' in key for key in weights), math.isqrt(places)
    # of the VLM only the width counts here; pictures have the full resolution
    return {'vision_variant': f'{width}x{depth}x{mlp}x{heads}x{patch}x{table}', 'num_vlm_layers': 1,
            'vlm_model_name': f'{W}x1x1x1x2', 'scale_factor': math.isqrt(joined // width),
            'expert_width_multiplier': 1.0, 'image_resolution': (patch * table, patch * table)}, weights


def stored(net, pictures, bar=None):
    """(T, 3, H, W) uint8 -> (T, N, W) float16."""
    import torch
    key, found = f'image.{net.cfg.cameras[0]}', []      # any of its cameras: `look` takes no others
    device = net.projector.weight.device
    for i in range(0, len(pictures), CHUNK):
        x = torch.from_numpy(pictures[i:i + CHUNK].copy()).to(device)    # a copy: torch wants to write
        with torch.no_grad():
            found += [y.half().cpu().numpy() for y in net.image_tokens(net.look({key: x[:, None]})[0])]
        if bar:
            bar.update(len(x))
    return np.concatenate(found)


def encoded(i, episode, src):
    """Episode i with features.<camera> where it has image.<camera>. For a partial."""
    arrays = dict(episode(i))
    cameras = [key for key in arrays if key.startswith('image.')]
    total = sum(len(arrays[key]) for key in cameras)
    # an episode may take minutes: a line for each worker, below that of all episodes
    with tqdm(total=total, desc=f'episode {i}, pictures', position=1 + latents.WORKER[0], leave=False,
              disable=None) as bar:
        for key in cameras:
            arrays[key.replace('image.', 'features.', 1)] = stored(eyes(src), arrays.pop(key), bar)
    return arrays


def about(src):
    """-> meta.json's `features`, and (N, W), what becomes of one picture."""
    net = eyes(src)
    shape = stored(net, np.zeros((1, 3, 8, 8), np.uint8)).shape[1:]      # of a black picture
    return {'weights': Path(src).resolve().name, 'sha256': net.sight()}, list(shape)
