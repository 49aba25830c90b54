"""
What it costs to encode in every step what prepare.py could have encoded once: bench/step.py --vae=taesd.

    from the disk    latents are read from a memmap, as train.py does
    in the loop      uint8 frames are encoded, then the same step
    prepare          the codec alone, in the chunks of prepare.py: frames a second

Pictures are random, because speed does not depend on them, and 8 times as large as the model's latents.
"""
import os
import sys
import tempfile
from statistics import median

import torch

from bench import timing
from data.loader import Store
from vae import CHUNK, SIDE, encode, load


def rows(M, cfg, clock, mode, n, vae, build, seed):
    """A row per way, from turns that they take; `ratio` is of the step with latents from the disk."""
    if getattr(cfg, 'input', None) != 'latent':
        sys.exit(f'vae = {vae}: this preset of {M.__name__} reads no latents; --preset=S, or --input=latent '
                 'with the sizes of latents')
    codec, keys = load(vae).to(clock.device), M.windows(cfg)
    size = cfg.height * SIDE, cfg.width * SIDE, 3
    video = torch.randint(256, (n, len(keys['latent']), *size), dtype=torch.uint8)
    chunk = torch.randint(256, (CHUNK, *size), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        timing.write_folder(os.path.join(folder, 'set'), M, cfg)
        store = Store(os.path.join(folder, 'set'), 'train', keys)
        steps = iter(range(10**9))

        def read():
            return timing.to(store.batch(next(steps), n, seed), clock.device)

        def read_and_encode():
            return read() | {'latent': encode(codec, video)}
        ways = {'from the disk': timing.train_step(build(M, cfg, clock, mode), read, clock),
                'in the loop': timing.train_step(build(M, cfg, clock, mode), read_and_encode, clock),
                'prepare': lambda: encode(codec, chunk)}
        took = clock.times(ways)
    table = []
    for way, seconds in took.items():
        frames = CHUNK if way == 'prepare' else n * len(keys['latent'])
        ratio = None if way == 'prepare' else median(timing.ratios(seconds, took['from the disk']))
        table.append(dict(way=way, mode=mode, dtype=clock.dtype, batch=n, picture=size[0], frames=frames,
                          ms=median(seconds) * 1e3, frames_per_s=frames / median(seconds), ratio=ratio))
    return table
