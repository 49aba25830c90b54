"""
An ARX5 arm follows random commands in MuJoCo; we keep what it did. No picture: joint angles, rates and commands.
    python data/arx5/prepare.py                  144 episodes of 20 s -> data/arx5_default, under a minute
    python data/arx5/prepare.py --full           1056 of 68 s, 3.6 M frames -> data/arx5_full, minutes
    python data/arx5/prepare.py --contact        floor and self-collision count -> data/arx5_contact, the harder set

action[t] is the command held from frame t to t + 1, so (state[t], action[t]) leads to state[t + 1] with no noise in it;
only the second finger, which is not in the state, may lag behind the first. `--render` also films episode 0. The arm
and its commands are in env.py; read `episode` first.
"""
import hashlib
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.arx5 import env as arx5  # noqa: E402
from data.writer import common, flags, write  # noqa: E402

SIZES = {False: (128 + 16, 1000, '0.111'), True: (1024 + 32, 3418, '0.0303')}     # --full: episodes, frames, --val
GROUPS = {'joint': {'dims': [*range(6)], 'unit': 'rad'}, 'gripper': {'dims': [6], 'unit': 'm'},
          'joint_velocity': {'dims': [*range(7, 13)], 'unit': 'rad/s', 'rate_of': 'joint'},
          'gripper_velocity': {'dims': [13], 'unit': 'm/s', 'rate_of': 'gripper'}}


def episode(i, seed, frames, contact):
    """Episode i: {'state': (T, 14), 'action': (T, 7)} float32, T = frames. It starts at rest at the first reference."""
    rng = np.random.default_rng([seed, i])
    while True:
        ref = arx5.references(rng, frames).astype(np.float32)
        if not contact or not arx5.touching(ref[0]): break                 # a start inside the floor is an explosion
    state, action = np.zeros((frames, 14)), np.zeros((frames, 7), np.float32)
    state[0, :7], action[:-1] = ref[0], ref[1:]                            # the stored bytes are what we simulate
    state[1:] = arx5.simulate(state[:1], action[None, :-1], contact)[0]
    return {'state': state.astype(np.float32), 'action': action}


def film(path, state, action, side=240):
    """A GIF at 25 fps: by MuJoCo where it can draw, else the stick view, with the command as a thin line."""
    import imageio.v3 as imageio
    frames, how = arx5.render(state[::2], side), "MuJoCo's renderer"
    if frames is None: frames, how = arx5.draw(state[::2], command=action[::2], side=side), 'the stick view (no OpenGL)'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, frames, extension='.gif', duration=40, loop=0)
    print(f'{path}: {len(frames)} frames by {how}')


def main():
    p = flags(__doc__, out=None, val=None)
    p.add_argument('--full', action='store_true', help='1024 + 32 episodes of 3418 frames, not 128 + 16 of 1000')
    p.add_argument('--contact', action='store_true', help='the arm can hit the floor and itself')
    p.add_argument('--render', nargs='?', const='out/arx5.gif', metavar='GIF', help='also film 6 s of episode 0')
    args = p.parse_args()
    n, frames, val = SIZES[args.full]
    args.val = args.val or val
    args.out = args.out or 'data/arx5_' + ('_'.join(k for k in ('contact', 'full') if getattr(args, k)) or 'default')
    mj, picture = arx5.mujoco(), vars(args).pop('render')
    if picture:
        e = episode(0, args.seed, frames, args.contact)
        film(picture, e['state'][:6 * arx5.FPS], e['action'][:6 * arx5.FPS])
    info = {'source': "our model of the ARX5 arm (dimensions as in MuJoCo Menagerie's arx_l5), random commands",
            'revision': f'mujoco {mj.__version__}', 'env': 'data.arx5.env', 'fps': arx5.FPS, 'dt': arx5.DT,
            'decimation': arx5.DECIMATION, 'contact': args.contact, 'joint_names': arx5.JOINTS,
            'units': {'state': 'rad, of the gripper m of one finger; then rad/s, m/s', 'action': 'rad, gripper m'},
            'q_index': [*range(7)], 'groups': GROUPS,
            'mjcf_sha256': hashlib.sha256(arx5.mjcf(args.contact).encode()).hexdigest()}
    play = partial(episode, seed=args.seed, frames=frames, contact=args.contact)
    write(args.out, play, n, info=info, **common(args, __file__))


if __name__ == '__main__':
    main()
