"""
What all pictures share: words, arrows and bars, what models are asked, the speed of a GIF, and a file that is
either whole or not there.
"""
import inspect
import os
import sys
from functools import cache

import numpy as np
import torch
from tqdm import tqdm

GREEN, INK, PAPER = (60, 180, 75), (250, 250, 250), (24, 24, 28)
LARGEST, MEMORY = 8192, 4e9   # px a side, bytes in all: a typing error should not fill the machine


# ---- pieces of a picture: (height, width, 3) uint8 ----

def blank(height, width):
    return np.full((height, width, 3), PAPER, np.uint8)


def words(text, height, width, size=15):
    """One line of text in the middle; the letters shrink until it fits."""
    from PIL import Image, ImageDraw  # not at the top: curves do without; it comes with imageio
    while size > 6 and font(size).getlength(text) > width - 4:
        size -= 1
    canvas = Image.new('RGB', (width, height), PAPER)
    ImageDraw.Draw(canvas).text((width / 2, height / 2), text, INK, font(size), anchor='mm')
    return np.array(canvas)


@cache
def font(size):
    from PIL import ImageFont
    return ImageFont.load_default(size)


def arrow(right, down, height, width):
    """An arrow in the direction (right, down), always of the same length; no direction is a dot."""
    canvas = blank(height, width)
    y, x = np.mgrid[:height, :width]
    cy, cx, r = (height - 1) / 2, (width - 1) / 2, height * 0.42
    norm = np.hypot(right, down)
    if norm < 1e-6:
        canvas[np.hypot(y - cy, x - cx) < r / 4] = INK
        return canvas
    along = ((x - cx) * right + (y - cy) * down) / norm / r                    # -1 at the tail, 1 at the tip
    aside = np.abs((x - cx) * down - (y - cy) * right) / norm / r
    shaft = (along > -1) & (along < 0.3) & (aside < 0.15)
    head = (along >= 0.2) & (aside < (1 - along) * 0.7)
    canvas[shaft | head] = INK
    return canvas


def bars(values, height, width):
    """
    A bar for each number of -1..1 from the middle, up if positive, a line for 0. What is larger is cut off.
    """
    canvas = blank(height, width)
    y, x = np.mgrid[:height, :width]
    step, mid = width / len(values), height / 2
    for i, value in enumerate(np.clip(values, -1, 1)):
        inside = (x >= i * step + 1) & (x < (i + 1) * step - 1)
        top, bottom = min(0, -value) * mid, max(0.5, max(0, -value) * mid)
        canvas[inside & (y - mid >= top) & (y - mid <= bottom)] = INK
    return canvas


def blow_up(frame, scale, edge):
    """(H, W, C) -> (H*scale, W*scale, 3); a green edge if `edge`."""
    big = frame.repeat(scale, 0).repeat(scale, 1)
    big = np.broadcast_to(big, (*big.shape[:2], 3)).copy()
    if edge:
        big[:2], big[-2:], big[:, :2], big[:, -2:] = GREEN, GREEN, GREEN, GREEN
    return big


def check_size(tile, across, down, frames=1):
    """Before the dream: would frames of so many tiles, each about `tile` px wide, be too large to draw?"""
    height, width = round(down * tile), round(across * tile)
    if max(height, width) > LARGEST or height * width * frames * 3 > MEMORY:
        sys.exit(f'{frames} frames of {width} x {height} px: at most {LARGEST} px a side and '
                 f'{MEMORY / 1e9:.0f} GB; use a smaller --scale, --n_clips or --length')


# ---- what models are asked, and answer ----

def cut(store, ids, n_context, k, device):
    """
    Windows -> what a rollout wants and should give: context, what was done after it (B, 1, K, k*A), what came
    of that (B, K, ...), of the store's first key. k raw actions lead from one frame to the next.
    """
    batch = {key: value.to(device) for key, value in store.windows_at(ids).items()}
    action = batch['action'].flatten(1).unflatten(1, (-1, k * batch['action'].shape[-1]))
    keys = [key for key in store.windows if key != 'action']
    context = {key: batch[key][:, :n_context] for key in keys} | {'action': action[:, :n_context - 1]}
    return context, action[:, None, n_context - 1:], batch[keys[0]][:, n_context:]


def dream(model, context, action, key, **wishes):
    """
    rollout(context, action) -> {key: (B, N, K, ...)} as numpy. Of the wishes it is told those that it knows:
    only an ensemble has chunks, only a slow model a progress bar. What is not possible ends in one line.
    """
    if not hasattr(model, 'rollout'):
        sys.exit(f'cannot dream: {type(model).__module__}.py has no .rollout')
    parameters = inspect.signature(model.rollout).parameters.values()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        known = {p.name for p in parameters}
        wishes = {name: value for name, value in wishes.items() if name in known}
    try:
        new = model.rollout(context, action, **wishes)
    except (AssertionError, ValueError) as error:        # an impossible key; the model says which and why
        sys.exit(f'cannot dream: {error}')
    finite(new[key])
    return {name: value.cpu().numpy() for name, value in new.items()}


def progress(steps):
    return tqdm(steps, desc='dream', leave=False, disable=None)      # None: only on a terminal


def finite(x):
    """What is not finite must not become a picture that looks like one."""
    if not torch.isfinite(x).all():
        sys.exit('the checkpoint dreams numbers that are not finite; take another one '
                 '(--which=best, --ema=False)')


# ---- files ----

def part(path):
    """The name of the unfinished file, with the same ending: what writes it chooses the format by that."""
    return '.part'.join(os.path.splitext(path))


def check_out(path, endings, key='out'):
    """
    Can a picture be written there? To be asked before the work, which takes minutes. endings: ('.gif',), say.
    What exists and is no regular file stays: a rename would replace a device or a link that others use.
    """
    if os.path.splitext(path)[1] not in endings:
        sys.exit(f'--{key}={path}: want a name that ends in {" or ".join(endings)}')
    for name in (path, part(path)):
        if os.path.islink(name) or (os.path.exists(name) and not os.path.isfile(name)):
            sys.exit(f'--{key}={path}: {name} exists and is no regular file; choose another name')
    folder, made = os.path.dirname(os.path.abspath(path)), []
    while not os.path.exists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        open(part(path), 'wb').close()
        os.remove(part(path))
        for folder in made:                              # a refusal after this one leaves nothing behind
            os.rmdir(folder)
    except (OSError, ValueError) as error:               # ValueError: a name with a zero byte
        sys.exit(f'--{key}={path}: cannot write there ({error}); choose another name')


def write(path, save):
    """save(temporary name), renamed when whole; nothing is left behind when that fails."""
    check_out(path, (os.path.splitext(path)[1],))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        save(part(path))
        os.replace(part(path), path)
    except OSError as error:                             # a full disk
        sys.exit(f'could not write {path}: {error}')
    finally:
        if os.path.exists(part(path)):
            os.remove(part(path))


def delays(n, seconds):
    """
    How long each of n frames is shown, ms, if a frame should take `seconds`. GIFs count in 10 ms: one frame
    is off by up to 5 ms, their sum is not, because every frame ends at the tick nearest to where it should.
    """
    return [int(ms) for ms in np.diff(np.round(np.arange(n + 1) * seconds * 100)) * 10]


def gif(path, frames, seconds):
    """frames (T, height, width, 3), each shown for `seconds`, over and over."""
    import imageio.v3 as imageio
    shown = delays(len(frames), seconds)
    shown = shown if len(frames) > 1 else shown[0]       # of a single picture the writer wants no list
    write(path, lambda name: imageio.imwrite(name, frames, duration=shown, loop=0))


def png(path, picture):
    import imageio.v3 as imageio
    write(path, lambda name: imageio.imwrite(name, picture))
