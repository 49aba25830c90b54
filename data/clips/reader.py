"""
What a folder of clips holds: videos, or folders of pictures, in the order of the numbers in their names.

A clip is a file or a folder; `look` asks what it is like without decoding it, `film` reads all of it. What is
wrong with a clip is ValueError with one line.
"""
import re
import sys
from pathlib import Path

import numpy as np

from data.video import frames, picture, probe, resize, told

VIDEOS = '.mp4', '.webm', '.gif', '.mkv', '.mov', '.avi', '.m4v'
PICTURES = '.png', '.jpg', '.jpeg'


def natural(path):
    """A key to sort by: frame_2 comes before frame_10."""
    parts = re.split(r'(\d+)', path.name)
    parts[1::2] = map(int, parts[1::2])
    return parts, path.name


def pictures(folder):
    """The pictures of a folder, in order."""
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES), key=natural)


def find(src):
    """{name: file or folder} of all clips, in order."""
    src = Path(src)
    if not src.is_dir():
        sys.exit(f'--src={src}: want a folder of videos, or of folders of pictures')
    clips = {}
    for path in sorted((p for p in src.iterdir() if not p.name.startswith('.')), key=natural):
        if path.suffix.lower() not in VIDEOS and not (path.is_dir() and pictures(path)):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in clips:
            sys.exit(f'{src}: {clips[name].name} and {path.name} have one name; rename one of them')
        clips[name] = path
    if not clips:
        hint = '; one clip is a folder of them, so --src wants the folder above' if pictures(src) else ''
        sys.exit(f'--src={src}: no clip ({", ".join(VIDEOS)}) and no folder of PNG or JPEG in it{hint}')
    return clips


def look(path):
    """How many frames (0: the file does not say), frames per second (None: nobody says), (height, width)."""
    if not path.is_dir():
        return probe(path)
    found = pictures(path)
    return len(found), None, picture(found[0]).shape[:2]


def film(path, size):
    """All frames of a clip, (T, H, W, 3) uint8."""
    if not path.is_dir():
        return frames(path, size)
    video, shape = [], None
    for file in pictures(path):
        x = picture(file)
        shape = shape or x.shape
        if x.shape != shape:
            raise ValueError(f'{file.name} is {told(x.shape)}, the pictures before are {told(shape)}')
        video.append(resize(x, size))
    return np.stack(video)
