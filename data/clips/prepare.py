"""
Your own clips: videos (mp4, webm, gif, ...) or folders of pictures, and what was done in them.
    python data/clips/prepare.py --src=DIR --size=32 --out=data/clips_mine

    DIR/walk.mp4, DIR/walk.csv       a clip, and its actions: a row per frame, taken at this frame
    DIR/run/1.png ..., DIR/run.npy   pictures are in the order of the numbers in their names: 2 before 10

Each clip is an episode. A clip of T frames takes T rows, or T - 1, because its last frame leads nowhere; what
is in the last of T rows is not used. reader.py reads clips, actions.py reads actions; here they meet.
"""
import hashlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.clips.actions import read  # noqa: E402
from data.clips.reader import film, find, look, pictures  # noqa: E402
from data.video import sides, told  # noqa: E402
from data.writer import at_least, common, flags, write  # noqa: E402

FPS = 10               # of pictures, which do not say


def check_length(T, rows, skip):
    """ValueError if a clip of T frames does not go with so many rows of actions (None: it has none)."""
    if rows not in (None, T, T - 1):
        raise ValueError(f'{T} frames and {rows} rows of actions; want {T} rows, or {T - 1}, because the '
                         'last frame leads nowhere')
    if T <= skip:
        raise ValueError(f'{T} frames; want {skip + 1} or more, or there is no action to learn from')


def episode(i, clips, actions, size, skip):
    """Clip i: {'video': (T, H, W, 3) uint8, 'action': (T, skip * A) float32}; T counts the frames kept."""
    name = list(clips)[i]
    try:
        video, action = film(clips[name], size), actions.get(name)
        check_length(len(video), None if action is None else len(action), skip)
    except ValueError as e:
        sys.exit(f'{name}: {e}')
    video = video[::skip]
    if action is None:
        return {'video': video, 'action': np.zeros((len(video), 1), np.float32)}
    # what was done from one kept frame to the next, side by side: nothing is lost
    steps = action[:(len(video) - 1) * skip].reshape(len(video) - 1, -1)
    return {'video': video, 'action': np.concatenate([steps, np.zeros_like(steps[:1])])}


# ---- all of them, before the work ----

def check(clips, actions, size, skip, fps):
    """Exit with one line that names the clip, or -> the clips' frames per second, of which fps was told."""
    first = {}                                             # what -> the first clip that has it, and its value
    for name, path in tqdm(clips.items(), desc='check', unit=' clips', disable=None, leave=False):
        try:
            T, rate, shape = look(path)
            if T:
                check_length(T, len(actions[name]) if name in actions else None, skip)
        except ValueError as e:
            sys.exit(f'{name}: {e}')
        other, known = first.setdefault('size', (name, shape))
        if size is None and shape != known:
            sys.exit(f'{name}: its frames are {told(shape)}, those of {other} {told(known)}; --size=32 or '
                     '--size=24x32 makes them alike')
        other, known = first.setdefault('rate', (name, rate)) if rate else (name, rate)
        if not fps and rate and not 0.98 < rate / known < 1.02:
            sys.exit(f'{name}: it runs at {rate:g} frames per second, {other} at {known:g}; if their steps '
                     'are equally long nevertheless, --fps=10 says so')
    own = first.get('rate', (None, None))[1]
    if fps and own and fps != own:
        print(f'--fps={fps:g}: the clips run at {own:g}, and no frame is dropped for it; --skip=2 keeps '
              'every second one')
    return fps or own or FPS


def main():
    p = flags(__doc__, out='data/clips_own', size=False)
    p.add_argument('--src', required=True, help='folder of videos, or of folders of pictures')
    p.add_argument('--actions', default=False,
                   help='folder of CSV or NPY, one per clip, or one CSV of all (default: beside the clips)')
    p.add_argument('--clip_column', default='clip', help='of one CSV of all: names the clip (default clip)')
    p.add_argument('--columns', default=False, help='which columns are actions: a,b (default: all)')
    p.add_argument('--onehot', default=False, help='which of them are discrete: a,b (words or whole numbers)')
    p.add_argument('--size', default=False, help='32, or 24x32: height x width (default: as it is)')
    p.add_argument('--fps', type=float, default=False, help=f"(default: the clips' own; pictures {FPS})")
    p.add_argument('--skip', type=int, default=1, help='keep every so many-th frame (default 1: all)')
    args = p.parse_args()
    at_least(args, skip=1, limit=0)
    if args.fps is not False and not 0 < args.fps < 1e6:
        sys.exit(f'--fps={args.fps}: want frames per second, above 0')
    size, src, clips = sides(args.size), Path(args.src), find(args.src)
    if args.limit:
        clips = dict(list(clips.items())[:args.limit])
    columns, onehot = (text.split(',') if text else () for text in (args.columns, args.onehot))
    actions, names, binary = read(src, list(clips), args.actions, args.clip_column, columns, onehot)
    fps = check(clips, actions, size, args.skip, args.fps)
    if actions:
        print(f'actions: {", ".join(names)}')
    else:
        names = ['none']
        print('actions: there are none, so action is one zero per frame; with shuffled actions a model then '
              'scores as it does with its own')
    k = range(args.skip)
    binary = [len(names) * i + column for i in k for column in binary]
    if args.skip > 1 and actions:
        names = [f'{name}+{i}' for i in k for name in names]
    if args.actions:
        args.actions = Path(args.actions).resolve().name       # where it lies is nobody's business
    files = [file for path in clips.values() for file in (pictures(path) if path.is_dir() else [path])]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    sha = hashlib.sha256(b''.join(x.tobytes() for x in actions.values())).hexdigest()
    info = {'source': f'{src.resolve().name}: {len(clips)} clips of our own',
            'revision': f'actions with sha256 {sha}', 'fps': fps / args.skip, 'units': {'video': '0-255'},
            'action_names': names, 'clips': list(clips)}
    write(args.out, partial(episode, clips=clips, actions=actions, size=size, skip=args.skip), len(clips),
          info=info, binary={'action': binary} if binary else None, sources=stats, **common(args, __file__))


if __name__ == '__main__':
    main()
