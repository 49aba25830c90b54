"""
An ARX5 arm follows random commands in MuJoCo; we keep what it did. No picture: joint angles, rates, commands.

    python data/arx5/prepare.py                  144 episodes of 20 s -> data/arx5_default, under a minute
    python data/arx5/prepare.py --full           1056 of 68 s, 3.6 M frames -> data/arx5_full, minutes
    python data/arx5/prepare.py --contact        floor and self-collision count -> data/arx5_contact, harder

action[t] is the command held from frame t to t + 1, so (state[t], action[t]) leads to state[t + 1], no noise;
only the second finger, which is not in the state, may lag behind the first. `--render` also films episode 0.
Read `episode` first; the arm is in env.py, its commands are in commands.py.
"""
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.arx5 import draw as pictures  # noqa: E402
from data.arx5 import env as arx5  # noqa: E402
from data.arx5.commands import references  # noqa: E402
from data.writer import at_least, common, flags, write  # noqa: E402

SIZES = {                                        # --full: episodes, frames of each, --val
    False: (128 + 16, 1000, '0.111'),
    True: (1024 + 32, 3418, '0.0303')}
GROUPS = {
    'joint': {'dims': [*range(6)], 'unit': 'rad'},
    'gripper': {'dims': [6], 'unit': 'm'},
    'joint_velocity': {'dims': [*range(7, 13)], 'unit': 'rad/s', 'rate_of': 'joint'},
    'gripper_velocity': {'dims': [13], 'unit': 'm/s', 'rate_of': 'gripper'}}


def episode(i, seed, frames, contact):
    """Episode i: {'state': (T, 14), 'action': (T, 7)} float32, T = frames. It starts at rest."""
    rng = np.random.default_rng([seed, i])
    while True:
        ref = references(rng, frames).astype(np.float32)
        if not contact or not arx5.touching(ref[0]):           # a start inside the floor is an explosion
            break
    state, action = np.zeros((frames, 14)), np.zeros((frames, 7), np.float32)
    state[0, :7] = ref[0]
    action[:-1] = ref[1:]                                  # float32 from the start: we simulate what we store
    state[1:] = arx5.simulate(state[:1], action[None, :-1], contact)[0]
    return {'state': state.astype(np.float32), 'action': action}


def film(path, state, action, side=240):
    """A GIF at 25 fps: by MuJoCo where it can draw, else the stick view, with the command as a thin line."""
    import imageio.v3 as imageio
    path = Path(path)
    if os.path.lexists(path) and not path.is_file():
        sys.exit(f'--render={path}: there is something that is no file; want a name like out/arx5.gif')
    frames, how = pictures.render(state[::2], side), "MuJoCo's renderer"
    if frames is None:
        frames, how = pictures.draw(state[::2], command=action[::2], side=side), 'the stick view (no OpenGL)'
    gif = imageio.imwrite('<bytes>', frames, extension='.gif', duration=40, loop=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gif)
    except OSError as error:
        sys.exit(f'--render={path}: {error.strerror}; choose another name')
    print(f'{path}: {len(frames)} frames by {how}')


def main():
    p = flags(__doc__, out=None, val=None)
    p.add_argument('--full', action='store_true', help='1056 episodes of 3418 frames, not 144 of 1000')
    p.add_argument('--contact', action='store_true', help='the arm can hit the floor and itself')
    p.add_argument('--render', nargs='?', const='out/arx5.gif', metavar='GIF', help='film episode 0, too')
    args = p.parse_args()
    n, frames, val = SIZES[args.full]
    args.val = args.val or val
    variant = '_'.join(key for key in ('contact', 'full') if getattr(args, key))
    args.out = args.out or f'data/arx5_{variant or "default"}'
    mj = arx5.mujoco()
    picture = vars(args).pop('render')                         # not of the command: it changes no byte
    if picture:
        at_least(args, seed=0)                                 # `write` asks too, but later than this
        first = episode(0, args.seed, frames, args.contact)
        film(picture, first['state'][:6 * arx5.FPS], first['action'][:6 * arx5.FPS])
    source = "our model of the ARX5 arm (dimensions as in MuJoCo Menagerie's arx_l5), random commands"
    units = {'state': 'rad, of the gripper m of one finger; then rad/s, m/s', 'action': 'rad, gripper m'}
    info = {'source': source, 'revision': f'mujoco {mj.__version__}', 'env': 'data.arx5.env',
            'fps': arx5.FPS, 'dt': arx5.DT, 'decimation': arx5.DECIMATION, 'contact': args.contact,
            'joint_names': arx5.JOINTS, 'units': units, 'q_index': [*range(7)], 'groups': GROUPS,
            'mjcf_sha256': hashlib.sha256(arx5.mjcf(args.contact).encode()).hexdigest()}
    play = partial(episode, seed=args.seed, frames=frames, contact=args.contact)
    write(args.out, play, n, info=info, **common(args, __file__))


if __name__ == '__main__':
    main()
