"""
ARX5: a six-joint arm with a gripper, simulated by MuJoCo; every number of it stands once, in LINKS.

    state   (14,)  q1..q6 rad, gripper m of one finger's travel; then their rates, rad/s and m/s
    action  (7,)   commanded q1..q6 and gripper, held for DECIMATION steps of DT: 50 frames per second

    mjcf()                     our model as a string: the arm's published dimensions, our primitive shapes
    simulate(start, action)    what the arm does, many at once; Simulator is that as a world model, make_env
    as an Env Task                       reach a recorded pose: what protocols/plan.py wants of a world
    draw(state)                pictures of it (draw.py); the commands of the data set are in commands.py

What the published facts leave open, and what we took. Inertia: moments about the axes of the body, links 2
and 3 with their small moment about x, the others in listed order. Ranges of the joints: Menagerie's (the
SDK's are narrower); torque limits: the SDK's. What can touch: see EXCLUDE; amplitudes of commands: see
commands.py. Joint limits and friction loss are soft constraints: a fast arm passes the former a little, and
the latter never holds it still against a load. The second finger follows the first by a spring as stiff as
the step allows: its own place and speed are not in the state, and with MuJoCo's default they were most of
what one could not predict. Warm starts of the solver are off, so that a step depends on the simulator's state
and the action alone, to the last bit.

mujoco and torch are imported inside the functions: a test that only looks at the tables should not pay for
them.
"""
import os
import sys
from collections import namedtuple
from functools import cache

import numpy as np

DT, DECIMATION, FPS = 0.002, 10, 50      # s per step; steps per frame; frames per s
JOINTS = tuple(f'joint{i}' for i in range(1, 7)) + ('gripper',)
SAFE = np.array([[-2.6, 0.3, 0.2, -1.4, -1.4, -1.9, 0],        # commands: lowest
                 [2.6, 2.6, 2.8, 1.4, 1.4, 1.9, 0.044]])       # highest
VEL_MAX = np.array([5, 5, 5.5, 5.5, 5, 5, 0.09])               # rad/s, the SDK's; m/s of one finger
CAP = VEL_MAX * np.array([0.6] * 6 + [1])                      # commands keep to it; the gripper all of it
HOME = (0, 0.251, 0.314, 0, 0, 0, 0.044)

# flip: the frame stands half a turn about x from its parent's; kp, kv: gains of its motor, force: its limit
Link = namedtuple('Link', 'name parent pos flip mass com inertia kind axis range kp kv force')
LINKS = [
    Link('link1', 'base', pos=(0, 0, 0.0565), flip=0,                                            # m
         mass=0.0968, com=(0.0050, -0.0077, 0.0209), inertia=(1.19e-4, 9.40e-5, 4.70e-5),      # kg, m, kg m^2
         kind='hinge', axis=(0, 0, 1), range=(-3.14, 3.14), kp=80, kv=5, force=30),
    Link('link2', 'link1', pos=(0.02, 0, 0.047), flip=0,
         mass=1.1988, com=(-0.1299, -0.0012, 0), inertia=(6.50e-4, 1.647e-2, 1.646e-2),
         kind='hinge', axis=(0, 1, 0), range=(0, 3.14), kp=80, kv=5, force=40),
    Link('link3', 'link2', pos=(-0.264, 0, 0), flip=1,
         mass=0.8408, com=(0.1618, 0.0012, -0.0546), inertia=(7.47e-4, 8.49e-3, 8.41e-3),
         kind='hinge', axis=(0, 1, 0), range=(0, 3.14), kp=80, kv=5, force=30),
    Link('link4', 'link3', pos=(0.245, 0, -0.06), flip=0,
         mass=0.1243, com=(0.0418, 0.0054, -0.0334), inertia=(3.03e-4, 2.35e-4, 1.01e-4),
         kind='hinge', axis=(0, 1, 0), range=(-1.7, 1.7), kp=40, kv=5, force=15),
    Link('link5', 'link4', pos=(0.0739, 0, -0.0834), flip=0,
         mass=0.6360, com=(0, 0, 0.0522), inertia=(8.48e-4, 8.20e-4, 2.52e-4),
         kind='hinge', axis=(0, 0, 1), range=(-1.7, 1.7), kp=10, kv=1.5, force=10),
    Link('link6', 'link5', pos=(0.0253, 0, 0.0834), flip=1,
         mass=0.4409, com=(0.0417, 0, 0), inertia=(5.0e-4, 3.8e-4, 2.8e-4),
         kind='hinge', axis=(1, 0, 0), range=(-3.14, 3.14), kp=10, kv=1.5, force=10),
    Link('link7', 'link6', pos=(0.0866, 0.0249, 0), flip=0,
         mass=0.0648, com=(0, -0.0078, -0.0030), inertia=(3e-5, 3e-5, 2e-5),
         kind='slide', axis=(0, 1, 0), range=(0, 0.044), kp=40, kv=5, force=10),
    Link('link8', 'link6', pos=(0.0866, -0.0249, 0), flip=0,       # follows link7, mirrored: nobody drives it
         mass=0.0648, com=(0, 0.0078, 0.0024), inertia=(3e-5, 3e-5, 2e-5),
         kind='slide', axis=(0, 1, 0), range=(-0.044, 0), kp=None, kv=None, force=None)]
POINTS = {  # name: (link, m in its frame); those of the links themselves are the joints' origins
    'base': ('base', (0, 0, 0)), **{link.name: (link.name, (0, 0, 0)) for link in LINKS[:6]},
    'hand': ('link5', (0, 0, 0.0834)), 'wrist': ('link6', (0.0866, 0, 0)),
    'root7': ('link7', (0, -0.023, 0)), 'tip7': ('link7', (0.065, -0.023, 0)),
    'root8': ('link8', (0, 0.023, 0)), 'tip8': ('link8', (0.065, 0.023, 0))}
GEOMS = {   # for contact and to the eye only, because inertia is explicit above; links 1 and 4 have none
    'base': 'type="cylinder" size="0.05 0.029" pos="0 0 0.029"',
    'link2': 'type="capsule" size="0.028" fromto="0 0 0 -0.264 0 0"',
    'link3': 'type="capsule" size="0.025" fromto="0.06 0 -0.055 0.22 0 -0.06"',
    'link5': 'type="capsule" size="0.022" fromto="0 0 0.022 0 0 0.0834"',
    'link6': 'type="capsule" size="0.025" fromto="0.055 -0.035 0 0.055 0.035 0"',
    'link7': 'type="box" size="0.035 0.002 0.012" pos="0.03 -0.023 0"',
    'link8': 'type="box" size="0.035 0.002 0.012" pos="0.03 0.023 0"'}
SKIN = {    # to the eye only, so that the arm is in one piece
    'link1': 'class="skin" size="0.032" fromto="0 0 0 0.02 0 0.047"',
    'link3': 'class="skin" size="0.025" fromto="0 0 0 0.06 0 -0.055"',
    'link4': 'class="skin" size="0.021" fromto="-0.025 0 0 0.0739 0 0"',
    'link6': 'class="skin" size="0.021" fromto="0 0 0 0.0866 0 0"'}
# Never in contact: base and link1, as published; the closed fingers, which would push each other open;
# fingers and link5, two bodies apart. Parent and child are excluded by MuJoCo. All else can touch, and the
# floor.
EXCLUDE = [('base', 'link1'), ('link7', 'link8'), ('link5', 'link7'), ('link5', 'link8')]


def mujoco():
    """The module, or one line about how to get it."""
    try:
        import mujoco
        import mujoco.rollout
    except ImportError:
        sys.exit("ARX5 needs: pip install -e '.[arx5]'")
    return mujoco


def mjcf(contact=False, gravcomp=True):
    """Our model, MJCF. gravcomp stands in for the torque that the SDK adds against gravity, fingers too."""
    def text(*x):
        return ' '.join(f'{v:.10g}' for v in x)

    def sites(body):
        return ''.join(f'<site name="{n}" pos="{text(*p)}"/>' for n, (b, p) in POINTS.items() if b == body)

    def shapes(body):
        return ''.join(f'<geom {table[body]}/>' for table in (GEOMS, SKIN) if body in table)

    def tree(parent):                                          # the bodies that hang on it, each with its own
        return ''.join(
            f'<body name="{link.name}" pos="{text(*link.pos)}" quat="{1 - link.flip} {link.flip} 0 0" '
            f'gravcomp="{int(gravcomp)}">'
            f'<inertial mass="{link.mass}" pos="{text(*link.com)}" diaginertia="{text(*link.inertia)}"/>'
            f'<joint name="joint{link.name[-1]}" type="{link.kind}" axis="{text(*link.axis)}" '
            f'range="{text(*link.range)}" frictionloss="{0.3 if link.kind == "hinge" else 0}"/>'
            f'{shapes(link.name)}{sites(link.name)}{tree(link.name)}</body>\n'
            for link in LINKS if link.parent == parent)

    motors = ''.join(
        f'<position joint="joint{link.name[-1]}" kp="{link.kp}" kv="{link.kv}" inheritrange="1" '
        f'forcerange="{-link.force} {link.force}"/>\n' for link in LINKS if link.kp)
    return f"""<mujoco model="arx5">
<compiler angle="radian"/>
<option timestep="{DT}" integrator="implicitfast" cone="elliptic" impratio="10">
<flag warmstart="disable" contact="{'enable' if contact else 'disable'}"/></option>
<default><joint armature="0.005"/><geom mass="0" rgba="0.25 0.3 0.38 1"/><site size="0.002" rgba="0 0 0 0"/>
<default class="skin"><geom type="capsule" contype="0" conaffinity="0"/></default></default>
<asset><texture type="skybox" builtin="flat" rgb1="0.97 0.96 0.94" width="8" height="48"/></asset>
<visual><headlight ambient="0.5 0.5 0.5" diffuse="0.2 0.2 0.2"/>
<global offwidth="480" offheight="480"/><quality shadowsize="1024"/></visual>
<worldbody><light pos="0.5 -1 2.5" dir="-0.2 0.4 -1" diffuse="0.4 0.4 0.4"/>
<camera name="view" pos="0.83 -1.32 0.93" xyaxes="0.848 0.53 0 -0.212 0.339 0.916"/>
<geom name="floor" type="plane" size="4 4 0.1" rgba="0.97 0.96 0.94 1"/>
<body name="base">{shapes('base')}{sites('base')}
{tree('base')}</body></worldbody>
<contact>{''.join(f'<exclude body1="{a}" body2="{b}"/>' for a, b in EXCLUDE)}</contact>
<equality><joint joint1="joint8" joint2="joint7" polycoef="0 -1 0 0 0" solref="{2 * DT} 1"/></equality>
<actuator>
{motors}</actuator>
<keyframe><key name="home" qpos="{text(*HOME, -HOME[6])}" ctrl="{text(*HOME)}"/></keyframe>
</mujoco>
"""


@cache
def model(contact=False, gravcomp=True):
    """The compiled model; it is only read, so threads share it."""
    return mujoco().MjModel.from_xml_string(mjcf(contact, gravcomp))


def full(state):
    """state (N, 14) -> (N, 17) [time, qpos 8, qvel 8]: the second finger mirrors the first."""
    q, v = state[:, :7], state[:, 7:]
    return np.concatenate([np.zeros((len(state), 1)), q, -q[:, 6:], v, -v[:, 6:]], 1)


VISIBLE = [*range(1, 8), *range(9, 16)]       # the 14 of the 17 that are the state


def simulate(start, action, contact=False, gravcomp=True, threads=1, chunk=0):
    """
    start (N, 14), action (N, K, 7) -> (N, K, 14) float64: the state after each action.
    chunk: frames at a time, by default as many as keep MuJoCo's output, one row per step, under 16 MB.
    Neither it nor threads change a bit. A new call puts the second finger, which is not in the state, into
    its mirror place.
    """
    mj, net = mujoco(), model(contact, gravcomp)
    now, action = full(np.asarray(start, np.float64)), np.asarray(action, np.float64)
    N, K = action.shape[:2]
    assert np.shape(start) == (N, 14), f'start {np.shape(start)}, want {N, 14}: one per row of action'
    assert action.shape == (N, K, 7), f'action {action.shape}, want {N, K, 7}'
    chunk = chunk or max(1, 2**24 // (N * DECIMATION * 17 * 8))
    threads = min(threads, N)
    state, data = np.empty((N, K, 14)), [mj.MjData(net) for _ in range(threads)]
    with mj.rollout.Rollout(nthread=threads if threads > 1 else 0) as pool:
        for t in range(0, K, chunk):
            held = np.repeat(action[:, t:t + chunk], DECIMATION, 1)
            rows, _ = pool.rollout(net, data, now, held)       # (N, steps, 17)
            state[:, t:t + chunk] = rows[:, DECIMATION - 1::DECIMATION, VISIBLE]
            now = rows[:, -1]
    return state


class Simulator:
    """MuJoCo with the interface of a learned world model, for a planner or as the truth beside a dream."""

    def __init__(self, contact=False, gravcomp=True):
        self.how = {'contact': contact, 'gravcomp': gravcomp}

    def rollout(self, context, action, noise=None, **kw):
        """context['state'] (B, H, 14), the last frame counts; action (B, N, K, 7) -> state (B, N, K, 14)."""
        import torch
        B, N, K, _ = action.shape
        start = context['state'][:, -1].double().cpu().numpy().repeat(N, 0)
        action_rows = action.double().cpu().numpy().reshape(B * N, K, 7)
        state = simulate(start, action_rows, threads=os.cpu_count(), **self.how)
        return {'state': torch.from_numpy(state).float().view(B, N, K, 14).to(action.device)}


class Task:
    """
    Bring the arm to a pose: what protocols/plan.py wants of a world. For another world write a Task with
    these names into data/<name>/env.py. B goals, N candidate plans each, K = horizon commands of A numbers.

        Task(meta, start, goal_state, horizon, knots)
            meta: meta.json of the data. start: context of a rollout, state (B, H, S) and action (B, H-1, A).
            goal_state (B, S): recorded `horizon` frames after the start, so it can be reached
        .init (B, knots, A)           where a search begins; .low, .high (A,): bounds of what it may propose
        .commands(knots)              plans (B, N, knots, A) -> actions (B, N, K, A) for the world to obey
        .cost(future) -> (B, N)       of imagined futures, state (B, N, K, S): what a search makes small
        .score(future) -> (B,)        of a true future, state (B, 1, K, S): the error, in numpy
        .success(error) -> (B,)       bool
        .rivals                       {name: (B, knots, A)}: plans that need no planning
        .simulator                    the truth, with .rollout(start, actions) -> future

    Here a plan is a few way-points in the unit of commands, with straight lines between them. Cost and error
    are of the commanded positions in rad, after the last command: a gripper's metres do not add up with them.
    """

    def __init__(self, meta, start, goal_state, horizon, knots):
        sizes = goal_state.shape[1], start['action'].shape[2]
        if sizes != (14, 7):
            sys.exit(f'this arm has 14 states and 7 actions, the data have {sizes[0]} and {sizes[1]}; the '
                     'env in their meta.json is not theirs')
        self.joints, self.in_rad = judged(meta)
        self.horizon = horizon
        self.goal = goal_state[:, self.joints].float()                               # (B, A)
        self.last = start['action'][:, -1]                                           # (B, A)
        stats = {key: {bound: self.goal.new_tensor(meta['stats'][key][bound]) for bound in ('min', 'max')}
                 for key in ('action', 'delta_prev')}
        self.low, self.high = stats['action']['min'], stats['action']['max']
        # no step is larger than any in the data, because the model has seen nothing faster
        self.slowest, self.fastest = stats['delta_prev']['min'], stats['delta_prev']['max']
        self.init = self.last[:, None].expand(-1, knots, -1)
        self.rivals = {'hold': self.init,                                            # the last command stays
                       'straight': self.goal[:, None].expand(-1, knots, -1)}         # the goal is the command
        self.simulator = Simulator(contact=meta.get('contact', False))

    def commands(self, knots):
        """Way-points (B, N, knots, A) -> actions (B, N, K, A): interpolated, then limited in their rate."""
        import torch
        B, N, n, _ = knots.shape
        now = self.last[:, None].expand(B, N, -1)
        path = torch.cat([now[:, :, None], knots], 2)            # from the last command on
        actions = []
        for t in (torch.arange(self.horizon, device=knots.device) + 1) / self.horizon * n:   # in way-points
            i = min(int(t.ceil()) - 1, n - 1)
            wanted = path[:, :, i] + (t - i) * (path[:, :, i + 1] - path[:, :, i])
            now = now + (wanted - now).clamp(self.slowest, self.fastest)
            actions.append(now)
        return torch.stack(actions, 2)

    def missed(self, future):
        """How far each judged joint of each plan ends from the goal, (B, N, joints in rad)."""
        final = future['state'][:, :, -1, self.joints].to(self.goal.device)
        return (final - self.goal[:, None])[..., self.in_rad]

    def cost(self, future):
        return self.missed(future).square().mean(-1)

    def score(self, future):
        """The largest error, rad: one joint that is off spoils a grasp."""
        return self.missed(future)[:, 0].abs().amax(-1).cpu().numpy()

    def success(self, error):
        return error < 0.05                                                          # rad, three degrees


def judged(meta):
    """meta.json -> the state entries that are commanded; the places in that list that are in rad."""
    missing = [key for key in ('q_index', 'groups') if not meta.get(key)]
    missing += [f'stats of {key}' for key in ('action', 'delta_prev') if key not in meta.get('stats', {})]
    if missing:
        sys.exit(f'meta.json has no {", no ".join(missing)}: a pose needs them; plan on arx5_default')
    in_rad = {dim for group in meta['groups'].values() if group['unit'] == 'rad' for dim in group['dims']}
    found = [i for i, dim in enumerate(meta['q_index']) if dim in in_rad]
    if not found:
        sys.exit('meta.json: no commanded entry (q_index) is in a group of unit rad, so no pose is judged; '
                 'plan on arx5_default')
    return meta['q_index'], found


def touching(pose):
    """How many contacts the arm has in the pose (7,), floor and self."""
    mj, net = mujoco(), model(contact=True)
    data = mj.MjData(net)
    data.qpos[:] = *pose, -pose[6]
    mj.mj_forward(net, data)
    return data.ncon


def make_env(contact=False, gravcomp=True):
    """The arm as a gymnasium.Env at 50 Hz. It starts at rest in a safe pose by seed; nothing ends it."""
    mj, net = mujoco(), model(contact, gravcomp)
    import gymnasium
    box = gymnasium.spaces.Box

    class Arm(gymnasium.Env):
        metadata = {'render_modes': ['rgb_array'], 'render_fps': FPS}
        render_mode = 'rgb_array'
        action_space = box(*np.array([l.range for l in LINKS[:7]], np.float32).T)
        observation_space = gymnasium.spaces.Dict({'state': box(-np.inf, np.inf, (14,), np.float32)})

        def observe(self):
            return {'state': np.concatenate([self.data.qpos[:7], self.data.qvel[:7]]).astype(np.float32)}

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            state = np.zeros(14)
            if options:
                state = np.asarray(options['state'], np.float64)
            while not options and (not state.any() or contact and touching(state[:7])):
                state[:7] = self.np_random.uniform(*SAFE)      # until nothing touches
            self.data = mj.MjData(net)
            mj.mj_setState(net, self.data, full(state[None])[0], mj.mjtState.mjSTATE_FULLPHYSICS)
            return self.observe(), {}

        def step(self, action):
            self.data.ctrl[:] = action
            mj.mj_step(net, self.data, DECIMATION)
            return self.observe(), 0.0, False, False, {}

        def render(self):
            return draw(self.observe()['state'][None])[0]
    return Arm()


def draw(state, **kw):
    """state (T, 14) -> (T, side, side, 3) uint8; ghost=, command=, side= as in draw.py."""
    from data.arx5 import draw as pictures  # here, because it imports this file
    return pictures.draw(state, **kw)
