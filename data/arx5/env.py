"""
ARX5: a six-joint arm with a gripper, simulated by MuJoCo; every number of it stands once, in LINKS.

    state   (14,)  q1..q6 rad, gripper m of one finger's travel; then their rates, rad/s and m/s
    action  (7,)   commanded q1..q6 and gripper, held for DECIMATION steps of DT: 50 frames per second

    mjcf()                     our model as a string: the arm's published dimensions, our primitive shapes
    references(rng, frames)    commands worth recording: min-jerk moves, sines or Ornstein-Uhlenbeck noise, speed capped
    simulate(start, action)    what the arm does, many at once; Simulator is that as a world model, make_env as an Env
    forward_kinematics(q)      where its points are, without MuJoCo; draw(state) makes pictures of that

What the published facts leave open, and what we took. Inertia: moments about the axes of the body, links 2 and 3 with
their small moment about x, the others in listed order. Ranges of the joints: Menagerie's (the SDK's are narrower);
torque limits: the SDK's. What can touch: see EXCLUDE; amplitudes of commands: see `sines`. Joint limits and friction
loss are soft constraints: a fast arm passes the former a little, and the latter never holds it still against a load.
The second finger follows the first by a spring as stiff as the step allows: its own place and speed are not in the
state, and with MuJoCo's default they were most of what one could not predict. Warm starts of the solver are off, so
that a step depends on the simulator's state and the action alone, to the last bit.
mujoco is imported inside the functions: a test that only looks at the tables should not pay for it.
"""
import os
import sys
from collections import namedtuple
from functools import cache

import numpy as np

DT, DECIMATION, FPS = 0.002, 10, 50      # s per step; steps per frame; frames per s
JOINTS = tuple(f'joint{i}' for i in range(1, 7)) + ('gripper',)
SAFE = np.array([[-2.6, 0.3, 0.2, -1.4, -1.4, -1.9, 0], [2.6, 2.6, 2.8, 1.4, 1.4, 1.9, 0.044]])   # commands: low, high
VEL_MAX = np.array([5, 5, 5.5, 5.5, 5, 5, 0.09])       # rad/s, the SDK's; m/s of one finger
CAP = VEL_MAX * np.array([0.6] * 6 + [1])              # commands keep to it; the gripper's is not scaled
HOME = (0, 0.251, 0.314, 0, 0, 0, 0.044)
Link = namedtuple('Link', 'name parent pos flip mass com inertia kind axis range kp kv force')   # flip: 180 deg about x
LINKS = [   #     m                              kg      m                          kg m^2
    Link('link1', 'base',  (0, 0, 0.0565),          0, 0.0968, (0.0050, -0.0077, 0.0209), (1.19e-4, 9.40e-5, 4.70e-5),
         'hinge', (0, 0, 1), (-3.14, 3.14), 80, 5, 30),
    Link('link2', 'link1', (0.02, 0, 0.047),        0, 1.1988, (-0.1299, -0.0012, 0),     (6.50e-4, 1.647e-2, 1.646e-2),
         'hinge', (0, 1, 0), (0, 3.14), 80, 5, 40),
    Link('link3', 'link2', (-0.264, 0, 0),          1, 0.8408, (0.1618, 0.0012, -0.0546), (7.47e-4, 8.49e-3, 8.41e-3),
         'hinge', (0, 1, 0), (0, 3.14), 80, 5, 30),
    Link('link4', 'link3', (0.245, 0, -0.06),       0, 0.1243, (0.0418, 0.0054, -0.0334), (3.03e-4, 2.35e-4, 1.01e-4),
         'hinge', (0, 1, 0), (-1.7, 1.7), 40, 5, 15),
    Link('link5', 'link4', (0.0739, 0, -0.0834),    0, 0.6360, (0, 0, 0.0522),            (8.48e-4, 8.20e-4, 2.52e-4),
         'hinge', (0, 0, 1), (-1.7, 1.7), 10, 1.5, 10),
    Link('link6', 'link5', (0.0253, 0, 0.0834),     1, 0.4409, (0.0417, 0, 0),            (5.0e-4, 3.8e-4, 2.8e-4),
         'hinge', (1, 0, 0), (-3.14, 3.14), 10, 1.5, 10),
    Link('link7', 'link6', (0.0866, 0.0249, 0),     0, 0.0648, (0, -0.0078, -0.0030),     (3e-5, 3e-5, 2e-5),
         'slide', (0, 1, 0), (0, 0.044), 40, 5, 10),
    Link('link8', 'link6', (0.0866, -0.0249, 0),    0, 0.0648, (0, 0.0078, 0.0024),       (3e-5, 3e-5, 2e-5),
         'slide', (0, 1, 0), (-0.044, 0), None, None, None)]       # follows link7, mirrored: nobody drives it
POINTS = {  # name: (link, m in its frame); those of the links themselves are the joints' origins
    'base': ('base', (0, 0, 0)), **{link.name: (link.name, (0, 0, 0)) for link in LINKS[:6]},
    'hand': ('link5', (0, 0, 0.0834)), 'wrist': ('link6', (0.0866, 0, 0)),
    'root7': ('link7', (0, -0.023, 0)), 'tip7': ('link7', (0.065, -0.023, 0)),
    'root8': ('link8', (0, 0.023, 0)), 'tip8': ('link8', (0.065, 0.023, 0))}
GEOMS = {   # explicit inertia above, so that shapes matter for contact and to the eye only; links 1 and 4 have none
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
# Never in contact: base and link1, as published; the closed fingers, which would push each other open; fingers and
# link5, two bodies apart. Parent and child are excluded by MuJoCo. All else can touch, and the floor.
EXCLUDE = [('base', 'link1'), ('link7', 'link8'), ('link5', 'link7'), ('link5', 'link8')]


def mujoco():
    """The module, or one line about how to get it."""
    try:
        import mujoco
        import mujoco.rollout
    except ImportError: sys.exit("ARX5 needs: pip install -e '.[arx5]'")
    return mujoco


def mjcf(contact=False, gravcomp=True):
    """Our model, MJCF. gravcomp stands in for the torque that the SDK adds against gravity, fingers too."""
    def text(*x): return ' '.join(f'{v:.10g}' for v in x)
    def sites(body): return ''.join(f'<site name="{n}" pos="{text(*p)}"/>' for n, (b, p) in POINTS.items() if b == body)
    def shape(body): return ''.join(f'<geom {d[body]}/>' for d in (GEOMS, SKIN) if body in d)
    def tree(parent): return ''.join(
        f'<body name="{l.name}" pos="{text(*l.pos)}" quat="{1 - l.flip} {l.flip} 0 0" gravcomp="{int(gravcomp)}">'
        f'<inertial mass="{l.mass}" pos="{text(*l.com)}" diaginertia="{text(*l.inertia)}"/>'
        f'<joint name="joint{l.name[-1]}" type="{l.kind}" axis="{text(*l.axis)}" range="{text(*l.range)}" '
        f'frictionloss="{0.3 if l.kind == "hinge" else 0}"/>{shape(l.name)}{sites(l.name)}{tree(l.name)}</body>\n'
        for l in LINKS if l.parent == parent)
    motors = ''.join(f'<position joint="joint{l.name[-1]}" kp="{l.kp}" kv="{l.kv}" inheritrange="1" '
                     f'forcerange="{-l.force} {l.force}"/>\n' for l in LINKS if l.kp)
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
<body name="base">{shape('base')}{sites('base')}
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
    """start (N, 14), action (N, K, 7) -> (N, K, 14) float64: the state after each action.
    chunk: frames at a time, by default as many as keep MuJoCo's output, one row per step, under 64 MB. Neither it nor
    threads change a bit. A new call puts the second finger, which is not in the state, into its mirror place."""
    mj, net = mujoco(), model(contact, gravcomp)
    now, action = full(np.asarray(start, np.float64)), np.asarray(action, np.float64)
    N, K = action.shape[:2]
    assert np.shape(start) == (N, 14) and action.shape == (N, K, 7), f'start {np.shape(start)}, action {action.shape}'
    chunk, threads = chunk or max(1, 2**26 // (N * DECIMATION * 17 * 8)), min(threads, N)
    state, data = np.empty((N, K, 14)), [mj.MjData(net) for _ in range(threads)]
    with mj.rollout.Rollout(nthread=threads if threads > 1 else 0) as pool:
        for t in range(0, K, chunk):
            rows, _ = pool.rollout(net, data, now, np.repeat(action[:, t:t + chunk], DECIMATION, 1))   # (N, steps, 17)
            state[:, t:t + chunk] = rows[:, DECIMATION - 1::DECIMATION, VISIBLE]
            now = rows[:, -1]
    return state


class Simulator:
    """MuJoCo with the interface of a learned world model, for a planner or as the truth beside a dream."""
    def __init__(self, contact=False, gravcomp=True): self.how = {'contact': contact, 'gravcomp': gravcomp}

    def rollout(self, context, action, noise=None, **kw):
        """context['state'] (B, H, 14), its last frame counts; action (B, N, K, 7) -> {'state': (B, N, K, 14)}."""
        import torch
        B, N, K, _ = action.shape
        start = context['state'][:, -1].double().cpu().numpy().repeat(N, 0)
        state = simulate(start, action.double().cpu().numpy().reshape(B * N, K, 7), threads=os.cpu_count(), **self.how)
        return {'state': torch.from_numpy(state).float().view(B, N, K, 14).to(action.device)}


def touching(pose):
    """How many contacts the arm has in the pose (7,), floor and self."""
    mj, net = mujoco(), model(contact=True)
    data = mj.MjData(net)
    data.qpos[:] = *pose, -pose[6]
    mj.mj_forward(net, data)
    return data.ncon


def make_env(contact=False, gravcomp=True):
    """The arm as a gymnasium.Env at 50 Hz. It starts at rest, in a safe pose drawn with the seed; nothing ends it."""
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
            while not options and (not state.any() or contact and touching(state[:7])):
                state[:7] = self.np_random.uniform(*SAFE)
            state = np.asarray(options['state'], np.float64) if options else state
            self.data = mj.MjData(net)
            mj.mj_setState(net, self.data, full(state[None])[0], mj.mjtState.mjSTATE_FULLPHYSICS)
            return self.observe(), {}

        def step(self, action):
            self.data.ctrl[:] = action
            mj.mj_step(net, self.data, DECIMATION)
            return self.observe(), 0.0, False, False, {}

        def render(self): return draw(self.observe()['state'][None])[0]
    return Arm()


def minjerk(rng, frames):
    """Moves between random poses, 10 s^3 - 15 s^4 + 6 s^5 with a top speed of 1.875 / T, and short rests."""
    at, rows, n = rng.uniform(*SAFE), [], 0
    while n < frames:
        to = np.where(rng.random(7) < 0.7, rng.uniform(*SAFE), at)         # three joints in ten stay
        T = max(rng.uniform(0.4, 2.5), (1.875 * np.abs(to - at) / CAP).max())
        s = (np.arange(np.ceil(T * FPS)) + 1)[:, None] / np.ceil(T * FPS)
        rows += [at + (to - at) * s**3 * (10 - 15 * s + 6 * s**2), np.tile(to, (int(rng.uniform(0, 0.6) * FPS), 1))]
        n, at = n + len(rows[-2]) + len(rows[-1]), to
    return np.concatenate(rows)[:frames]


def sines(rng, frames):
    """Three sines per joint. Each one's amplitude: at most a third of half the range, and of what the speed cap allows,
    times U(0.2, 1). Their centre lies wherever the sum then stays inside."""
    f = np.exp(rng.uniform(np.log(0.05), np.log(1.2), (3, 7)))             # Hz
    A = np.minimum((SAFE[1] - SAFE[0]) / 2 / 3, CAP / (2 * np.pi * f * 3)) * rng.uniform(0.2, 1, (3, 7))
    centre, phase = rng.uniform(SAFE[0] + A.sum(0), SAFE[1] - A.sum(0)), rng.uniform(0, 2 * np.pi, (3, 7))
    t = np.arange(frames)[:, None, None] / FPS
    return centre + (A * np.sin(2 * np.pi * f * t + phase)).sum(1)


def decay(x, a):
    """y[t] = a y[t-1] + x[t] along the first axis, by doubling: log2(T) passes instead of T."""
    y, k = x.copy(), 1
    while k < len(y) and a**k > 1e-20:
        y[k:] += a**k * y[:-k].copy()
        k *= 2
    return y


def wander(rng, frames):
    """Ornstein-Uhlenbeck noise, tau 0.6 s and sigma a quarter of the range, through a low-pass of 0.15 s."""
    a, b = np.exp(-1 / (0.6 * FPS)), np.exp(-1 / (0.15 * FPS))
    x = rng.normal(size=(frames, 7)) * np.sqrt(1 - a**2)
    x[0] /= np.sqrt(1 - a**2)                                              # the first row has the spread of all
    x = decay(x, a)
    x[1:] *= 1 - b                                                         # the filter begins where the noise does
    return SAFE.mean(0) + 0.25 * (SAFE[1] - SAFE[0]) * decay(x, b)


FAMILIES = {'minjerk': minjerk, 'sines': sines, 'wander': wander}


def references(rng, frames, family=None):
    """(frames, 7) commands at 50 Hz, inside SAFE and never faster than CAP. family: by default half of all episodes
    are minjerk, a quarter sines, a quarter wander."""
    family = family or ('minjerk', 'minjerk', 'sines', 'wander')[rng.integers(4)]
    x, step = FAMILIES[family](rng, frames).clip(*SAFE), CAP / FPS
    for t in range(1, frames):                                             # the SDK's limit on the rate of commands
        x[t] = np.minimum(np.maximum(x[t], x[t - 1] - step), x[t - 1] + step)
    return x


def forward_kinematics(q):
    """q (..., 7), or whole states -> (..., P, 3) m: where POINTS are."""
    q = np.asarray(q, np.float64)[..., :7]
    frame = {'base': (np.zeros(q.shape[:-1] + (3,)), np.broadcast_to(np.eye(3), q.shape[:-1] + (3, 3)))}
    for link, x in zip(LINKS, np.moveaxis(np.concatenate([q, -q[..., 6:]], -1), -1, 0)):
        p, R = frame[link.parent]
        p, axis = p + R @ link.pos, np.array(link.axis, float)
        if link.flip: R = R * [1, -1, -1]                                  # half a turn about x negates columns y and z
        if link.kind == 'slide': p = p + x[..., None] * (R @ axis)
        else:                                                              # Rodrigues
            K = np.cross(axis, np.eye(3)).T                                # K v = axis x v
            s, c = np.sin(x)[..., None, None], np.cos(x)[..., None, None]
            R = R @ (np.eye(3) + s * K + (1 - c) * K @ K)
        frame[link.name] = p, R
    return np.stack([frame[b][0] + frame[b][1] @ np.array(o, float) for b, o in POINTS.values()], -2)


# The picture: a parallel view from the front right and above, on a floor with lines every 0.2 m.
AZIMUTH, ELEVATION = np.radians(-58), np.radians(24)
LOOK = np.array([[-np.sin(AZIMUTH), np.cos(AZIMUTH), 0],               # rows: right, up and towards us, in the world
                 [-np.sin(ELEVATION) * np.cos(AZIMUTH), -np.sin(ELEVATION) * np.sin(AZIMUTH), np.cos(ELEVATION)],
                 [np.cos(ELEVATION) * np.cos(AZIMUTH), np.cos(ELEVATION) * np.sin(AZIMUTH), np.sin(ELEVATION)]])
ZOOM, CENTRE = 0.70, 0.66                                              # pictures per m; the base, from the upper edge
PAPER, LINE, ARM, DARK, PAD, GHOST, COMMAND = (np.array(c, np.float32) for c in (
    (247, 245, 240), (208, 203, 192), (88, 112, 148), (44, 54, 72), (34, 40, 52), (240, 120, 50), (16, 150, 130)))
STROKES = [('base', 'link1', 0.055, DARK), ('link1', 'link2', 0.046, DARK), ('link2', 'link3', 0.035, ARM),  # radius, m
           ('link3', 'link4', 0.031, ARM), ('link4', 'hand', 0.027, ARM), ('hand', 'wrist', 0.025, ARM),
           ('root7', 'root8', 0.015, DARK), ('root7', 'tip7', 0.011, PAD), ('root8', 'tip8', 0.011, PAD),
           *((p, p, r, DARK) for p, r in (('link2', 0.044), ('link3', 0.040), ('link4', 0.034), ('wrist', 0.027)))]


def project(points, side):
    """points (..., P, 3) m -> [{name: (x right px, y down px, towards us m)}], one per row."""
    p = points @ LOOK.T
    p = np.stack([side * (0.5 + ZOOM * p[..., 0]), side * (CENTRE - ZOOM * p[..., 1]), p[..., 2]], -1)
    return [dict(zip(POINTS, row)) for row in p]


@cache
def floor(side):
    """(side, side, 3) float32: paper, and grid lines that fade with the distance from the arm."""
    i = (np.arange(side) + 0.5) / side
    right, up = np.meshgrid((i - 0.5) / ZOOM, (CENTRE - i) / ZOOM)
    x, y = np.linalg.solve(LOOK[:2, :2], np.stack([right.ravel(), up.ravel()])).reshape(2, side, side)
    off = np.minimum(*(np.abs((v / 0.2 + 0.5) % 1 - 0.5) * 0.2 for v in (x, y)))          # m to the next line
    ink = (1.1 - off * side * ZOOM).clip(0, 1) * (1.2 - np.hypot(x, y)).clip(0, 1)
    return (PAPER + ink[..., None] * (LINE - PAPER)).astype(np.float32)


def stroke(side, a, b, r, soft=1.0):
    """The thick segment a-b, px -> slices of the picture around it; coverage, its edge soft px wide; (d / r)^2."""
    lo = np.floor(np.minimum(a, b)[:2] - r - soft).clip(0, side).astype(int)
    hi = np.ceil(np.maximum(a, b)[:2] + r + soft).clip(0, side).astype(int)
    x, y = (np.arange(lo[k], hi[k], dtype=np.float32) + (0.5 - a[k]) for k in (0, 1))
    y, (dx, dy) = y[:, None], (b - a)[:2]
    s = ((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-9)).clip(0, 1)                 # a + s (b - a) is nearest
    d2 = (x - s * dx)**2 + (y - s * dy)**2
    return np.s_[lo[1]:hi[1], lo[0]:hi[0]], ((r - np.sqrt(d2)) / soft + 0.5).clip(0, 1), (d2 / r**2).clip(0, 1)


def paint(image, points, colour=None):
    """Draw the arm onto image, far strokes first. colour: of a ghost, all in one, which stands on the same foot."""
    for a, b, r, own in sorted(STROKES, key=lambda s: points[s[0]][2] + points[s[1]][2] + 0.05 * (s[0] == s[1])):
        if colour is not None and a in ('base', 'link1'): continue
        box, cover, rim = stroke(len(image), points[a], points[b], r * ZOOM * len(image))
        tint = (own if colour is None else colour) * (1.12 - 0.38 * rim[..., None])       # round: darker at the rim
        image[box] += cover[..., None] * (tint - image[box])


def draw(state, ghost=None, command=None, side=160):
    """state (T, 14) or (T, 7) -> (T, side, side, 3) uint8, a stick view with its shadow. ghost: another trajectory,
    seen through, such as a model's dream. command: targets (T, 7), as a thin line."""
    world, video = forward_kinematics(state), np.empty((len(state), side, side, 3), np.uint8)
    arm, dark = project(world, side), project(world * [1, 1, 0] + world[..., 2:].clip(0) * [0.18, 0.10, 0], side)
    other, wish = ([] if x is None else project(forward_kinematics(x), side) for x in (ghost, command))
    for t in range(len(state)):
        image, shadow = floor(side).copy(), np.zeros((side, side), np.float32)
        for a, b, r, _ in STROKES:
            box, cover, _ = stroke(side, dark[t][a], dark[t][b], r * ZOOM * side, soft=0.05 * ZOOM * side)
            shadow[box] = np.maximum(shadow[box], cover)
        image *= 1 - 0.17 * shadow[..., None]
        paint(image, arm[t])
        if other:                                                            # as a whole: overlaps must not add up
            layer = image.copy()
            paint(layer, other[t], GHOST)
            image += 0.6 * (layer - image)
        for a, b, *_ in STROKES[2:6] if wish else []:
            box, cover, _ = stroke(side, wish[t][a], wish[t][b], max(0.8, side / 200))
            image[box] += cover[..., None] * (COMMAND - image[box])
        video[t] = (image + 0.5).clip(0, 255)
    return video


def render(state, side=240):
    """state (T, 14) -> (T, side, side, 3) uint8 by MuJoCo's renderer; None where there is no OpenGL to draw with."""
    mj, net = mujoco(), model()
    try:
        context = mj.GLContext
        if sys.platform == 'linux' and 'MUJOCO_GL' not in os.environ:        # MuJoCo's default there wants a screen
            from mujoco.egl import GLContext as context
        gl = context(side, side)
        gl.make_current()
        context = mj.MjrContext(net, mj.mjtFontScale.mjFONTSCALE_100)
    except Exception: return None                                            # every driver raises something else
    mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN, context)
    data, scene, option, box = mj.MjData(net), mj.MjvScene(net, 100), mj.MjvOption(), mj.MjrRect(0, 0, side, side)
    camera, video = mj.MjvCamera(), np.empty((len(state), side, side, 3), np.uint8)
    camera.type, camera.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, 0
    for row, image in zip(full(np.asarray(state, np.float64)), video):
        mj.mj_setState(net, data, row, mj.mjtState.mjSTATE_FULLPHYSICS)
        mj.mj_forward(net, data)
        mj.mjv_updateScene(net, data, option, None, camera, mj.mjtCatBit.mjCAT_ALL, scene)
        mj.mjr_render(box, scene, context)
        mj.mjr_readPixels(image, None, box, context)
    context.free()
    gl.free()
    return video[:, ::-1]                                                    # OpenGL counts rows from below
