"""
Videos and pictures as arrays, the same for data/clips and data/lerobot. Videos need PyAV: one seek, then
straight on.

Which frame is this? Where the rate is known, its time says so: round((pts - start) * time_base * fps). Else
we count. We never ask a file for its average rate: that is a guess, and in some recordings a wild one.
What is wrong with a file is ValueError, one line that begins with its path.
"""
import re
import sys
from contextlib import contextmanager
from itertools import islice

import numpy as np
from PIL import Image, UnidentifiedImageError


@contextmanager
def opened(path):
    """The container and its first video stream; whatever FFmpeg says of the file becomes ValueError."""
    try:
        import av
    except ImportError:
        sys.exit("videos need: pip install -e '.[video]'")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f'{path} holds no video')
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1      # our workers are processes, one per core already
            yield container, stream
    except av.error.FFmpegError as e:
        raise ValueError(f'{path} cannot be decoded ({e.strerror}); copy or download it again') from None


def sides(text):
    """--size: '32' -> (32, 32), '24x32' -> (24, 32), which is (height, width); nothing -> None."""
    if text and not re.fullmatch(r'[1-9]\d{0,3}(x[1-9]\d{0,3})?', text):
        sys.exit(f'--size={text}: want 32, or 24x32 for height x width')
    return (int(text.split('x')[0]), int(text.split('x')[-1])) if text else None


def told(shape):
    """(48, 64, 3) -> '48x64', as --size takes it."""
    return f'{shape[0]}x{shape[1]}'


def probe(path):
    """Nothing decoded: frames (0: it does not say), fps (None: it has but one frame), (height, width)."""
    with opened(path) as (container, stream):
        steps = np.diff(sorted(p.pts for p in islice(container.demux(stream), 200) if p.pts is not None))
        step = np.median(steps) if len(steps) else 0
        if step:       # the median, because of pauses; then the mean within a tick of it: webm rounds to ms
            step = steps[abs(steps - step) <= 1].mean()
        fps = round(1 / float(step * stream.time_base), 2) if step else None
        return stream.frames, fps, (stream.height, stream.width)


def resize(picture, size):
    """(H, W, 3) uint8 -> (*size, 3), all of it. A pixel is the mean of those it covers, so nothing rings."""
    if size is None or picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX))


def picture(file, name=''):
    """A PNG or JPEG, a path or an open file called `name`, as (H, W, 3) uint8."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(('I', 'F')):
                raise ValueError(f'{name or file} has more than 8 bits per colour; write it as 8 bits')
            return np.asarray(image.convert('RGB'))
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        why = 'no PNG or JPEG' if isinstance(e, UnidentifiedImageError) else e
        raise ValueError(f'{name or file} cannot be read ({why})') from None


def decoded(path, size=None, first=0, count=0, fps=None):
    """
    `count` frames from `first` on (0: all) as they are decoded, resized: (H, W, 3) uint8 each. first > 0
    needs fps.
    """
    due = first
    with opened(path) as (container, stream):
        start, promised = stream.start_time or 0, count or max(stream.frames - first, 0)
        if first:      # a second early: files seek by the time of decoding, which precedes that of showing
            container.seek(start + int(max(first / fps - 1, 0) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            passed = ((frame.pts or 0) - start) * stream.time_base                 # seconds, a Fraction
            number = round(float(passed) * fps) if fps else due
            if 0 <= number < first:
                continue
            if number != due or frame.is_corrupt:
                raise ValueError(f'{path}: frame {due} is damaged, missing or there twice')
            yield resize(frame.to_ndarray(format='rgb24'), size)
            due += 1
            if due - first == count:
                break
    if due - first < max(promised, 1):
        raise ValueError(f'{path} ends after {due} frames, want {first + promised}; was it cut short?')


def frames(*args, **kw):
    """What `decoded` gives, all of it: (T, H, W, 3) uint8."""
    return np.stack([*decoded(*args, **kw)])
