"""
Videos at another size, and as latents: what data/writer.py does with episodes under --size and --vae.

    --size=N      square pictures, bilinear; when made smaller, a pixel is a mean of all that it covers
    --vae=taesd   beside it `latent` (T, 4, H/8, W/8) float16 in the codec's stored scale: the posterior's
                  mean. The raw `video` stays in the validation split only, because scores compare with it

An episode is encoded in chunks that begin at its first frame, so the bytes do not depend on the number of
workers. meta.json then says, under `latent`, which codec to decode with.
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
def codec(vae):
    """The codec on this process's device. torch comes here, because data of pixels alone need none."""
    import torch

    import vae as codecs
    gpus = torch.cuda.device_count()
    return codecs.load(vae).to(f'cuda:{WORKER[0] % gpus}' if gpus else 'cpu')


def shaped(i, episode, size, vae):
    """
    Episode i, its video resized (size > 0) and with its latents beside it (vae is not ''). For a partial.
    """
    arrays = dict(episode(i))
    if 'video' not in arrays:
        sys.exit(f'{"--vae" if vae else "--size"}: these data hold {", ".join(arrays)}, but no video')
    video = np.asarray(arrays['video'])
    if size:
        video = arrays['video'] = resize(video, (size, size))
    if vae:
        import torch

        from vae import encode
        try:
            arrays['latent'] = encode(codec(vae), torch.from_numpy(video)).half().cpu().numpy()
        except ValueError as error:
            sys.exit(f'--vae: {error}, like --size=64')
    return arrays


def about(vae, name, size, video):
    """
    meta.json's `latent`: which codec, by what name, and what it was given. `posterior_std` is of the first
    frames, in the stored scale; None for a codec without a posterior.
    """
    import torch

    from vae import CHUNK, encode
    net = codec(vae)
    std = encode(net, torch.from_numpy(video[:CHUNK]), with_std=True)[1]
    return {'vae': name, 'kind': net.kind, 'sha256': net.sha256, 'scale': net.scale,
            'size': list(video.shape[1:3]), 'resize': 'bilinear' if size else '', 'posterior_std': std}
