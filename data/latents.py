"""
Videos at another size, and as latents: what data/writer.py does with episodes under --size and --vae.

    --size=N      N x N pixels, squeezed and not cropped; bilinear, when made smaller over all that it covers
    --vae=taesd   beside it `latent` (T, 4, H/8, W/8) float16 in the codec's stored scale: the posterior's
                  mean. The raw `video` stays in the validation split only, because scores compare with it

An episode is encoded in chunks that begin at its first frame, so on a CPU the bytes do not depend on the
number of workers. meta.json then says, under `latent`, which codec to decode with.
"""
import sys
from functools import cache

import numpy as np
from PIL import Image

WORKER = [0]                     # number of this process among the workers; they take the GPUs in turn


def resize(video, size):
    """(T, H, W, 3) uint8 -> (T, *size, 3)."""
    if video.shape[1:3] == tuple(size):
        return video
    return np.stack([np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR))
                     for frame in video])


@cache
def codec(weights):
    """The codec on this process's device. torch comes here, because data of pixels alone need none."""
    import vae
    return vae.load(weights).to(place())


def place():
    """The device of this process."""
    import torch
    gpus = torch.cuda.device_count()
    return f'cuda:{WORKER[0] % gpus}' if gpus else 'cpu'


def most_workers(workers):
    """Two for each GPU, because each holds a network of its own there; on a CPU as many as were asked for."""
    import torch
    gpus = torch.cuda.device_count()
    return min(workers, 2 * gpus) if gpus else workers


def shaped(i, episode, size, weights):
    """
    Episode i, its video resized (size > 0) and with its latents beside it (weights: what vae.load takes, or
    ''). For a partial.
    """
    arrays = dict(episode(i))
    flag = '--vae' if weights else '--size'
    if 'video' not in arrays:
        sys.exit(f'{flag}: these data hold {", ".join(arrays)}, but no video')
    video = np.ascontiguousarray(arrays['video'])
    if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8:
        sys.exit(f'{flag}: episode {i}: video is {video.dtype} {video.shape}; want uint8 (T, H, W, 3)')
    if size:
        video = arrays['video'] = resize(video, (size, size))
    if weights:
        import torch

        from vae import check_sides, encode
        try:
            check_sides(*video.shape[1:3])
        except ValueError as error:
            sys.exit(f'--vae: {error}, like --size=64')
        z = encode(codec(weights), torch.from_numpy(video.copy()))   # a copy, because torch wants to write
        arrays['latent'] = z.half().cpu().numpy()
    return arrays


def about(weights, name, size, video):
    """
    meta.json's `latent`: which codec, by what name, and what it was given. `posterior_std` is of the first
    frames, in the stored scale; None for a codec without a posterior.
    """
    import torch

    from vae import CHUNK, encode
    net = codec(weights)
    std = encode(net, torch.from_numpy(video[:CHUNK]), with_std=True)[1]
    return {'vae': name, 'kind': net.kind, 'sha256': net.sha256, 'scale': net.scale,
            'size': list(video.shape[1:3]), 'resize': 'bilinear' if size else '', 'posterior_std': std}
