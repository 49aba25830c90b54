"""
Pictures of the ARX5: where its points are, a stick view that needs numpy alone, and MuJoCo's own renderer.

    forward_kinematics(q)      (..., 7) -> (..., P, 3) m: where POINTS of env.py are, without MuJoCo
    draw(state)                (T, 14) -> (T, side, side, 3): sticks and their shadow; a ghost for a model's
    dream render(state)              the same by MuJoCo's renderer, or None where there is no OpenGL

The stick view is the one for tests and dreams: it draws the same bytes on every machine, and any state at
all.
"""
import os
import sys
from functools import cache

import numpy as np

from data.arx5.env import LINKS, POINTS, full, model, mujoco


def forward_kinematics(q):
    """q (..., 7), or whole states -> (..., P, 3) m: where POINTS are."""
    q = np.asarray(q, np.float64)[..., :7]
    ground = np.zeros(q.shape[:-1] + (3,)), np.broadcast_to(np.eye(3), q.shape[:-1] + (3, 3))
    frame = {'base': ground}                                             # link: (origin, rotation)
    joints = np.concatenate([q, -q[..., 6:]], -1)                        # the second finger mirrors the first
    for link, x in zip(LINKS, np.moveaxis(joints, -1, 0)):
        p, R = frame[link.parent]
        p, axis = p + R @ link.pos, np.array(link.axis, float)
        if link.flip:
            R = R * [1, -1, -1]                                          # half a turn negates columns y and z
        if link.kind == 'slide':
            p = p + x[..., None] * (R @ axis)
        else:                                                            # Rodrigues' formula
            K = np.cross(axis, np.eye(3)).T                              # K v = axis x v
            s, c = np.sin(x)[..., None, None], np.cos(x)[..., None, None]
            R = R @ (np.eye(3) + s * K + (1 - c) * K @ K)
        frame[link.name] = p, R
    points = [frame[link][0] + frame[link][1] @ np.array(offset, float) for link, offset in POINTS.values()]
    return np.stack(points, -2)


# ---- the stick view: parallel, from the front right and above, on a floor with lines every 0.2 m ----

AZIMUTH, ELEVATION = np.radians(-58), np.radians(24)
LOOK = np.array([                                                        # rows: right, up, towards us
    [-np.sin(AZIMUTH), np.cos(AZIMUTH), 0],
    [-np.sin(ELEVATION) * np.cos(AZIMUTH), -np.sin(ELEVATION) * np.sin(AZIMUTH), np.cos(ELEVATION)],
    [np.cos(ELEVATION) * np.cos(AZIMUTH), np.cos(ELEVATION) * np.sin(AZIMUTH), np.sin(ELEVATION)]])
ZOOM = 0.70                                                              # pictures per m
CENTRE = 0.66                                                            # of the base, from the upper edge


def colour(red, green, blue):
    return np.array((red, green, blue), np.float32)


PAPER, LINE = colour(247, 245, 240), colour(208, 203, 192)
ARM, DARK, FINGER = colour(88, 112, 148), colour(44, 54, 72), colour(34, 40, 52)
GHOST, COMMAND = colour(240, 120, 50), colour(16, 150, 130)
STROKES = [                                                              # from, to, radius in m, colour
    ('base', 'link1', 0.055, DARK), ('link1', 'link2', 0.046, DARK), ('link2', 'link3', 0.035, ARM),
    ('link3', 'link4', 0.031, ARM), ('link4', 'hand', 0.027, ARM), ('hand', 'wrist', 0.025, ARM),
    ('root7', 'root8', 0.015, DARK), ('root7', 'tip7', 0.011, FINGER), ('root8', 'tip8', 0.011, FINGER),
    ('link2', 'link2', 0.044, DARK), ('link3', 'link3', 0.040, DARK), ('link4', 'link4', 0.034, DARK),
    ('wrist', 'wrist', 0.027, DARK)]
LIMBS = STROKES[2:6]                                                     # what a command is drawn along


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
    off = np.minimum(*(np.abs((v / 0.2 + 0.5) % 1 - 0.5) * 0.2 for v in (x, y)))         # m to the next line
    ink = (1.1 - off * side * ZOOM).clip(0, 1) * (1.2 - np.hypot(x, y)).clip(0, 1)
    return (PAPER + ink[..., None] * (LINE - PAPER)).astype(np.float32)


def stroke(side, a, b, r, soft=1.0):
    """The thick segment a-b, px -> slices around it; coverage, its edge soft px wide; (distance / r)^2."""
    low = np.floor(np.minimum(a, b)[:2] - r - soft).clip(0, side).astype(int)
    high = np.ceil(np.maximum(a, b)[:2] + r + soft).clip(0, side).astype(int)
    x, y = (np.arange(low[k], high[k], dtype=np.float32) + (0.5 - a[k]) for k in (0, 1))
    y = y[:, None]
    dx, dy = (b - a)[:2]
    s = ((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-9)).clip(0, 1)    # a + s (b - a) is the nearest point
    d2 = (x - s * dx)**2 + (y - s * dy)**2
    cover = ((r - np.sqrt(d2)) / soft + 0.5).clip(0, 1)
    return np.s_[low[1]:high[1], low[0]:high[0]], cover, (d2 / r**2).clip(0, 1)


def paint(image, points, tint=None):
    """Draw the arm onto image, far strokes first. tint: of a ghost, in one colour, on the same foot."""
    side = len(image)

    def depth(s):                                      # joints go over the limbs that meet in them
        return points[s[0]][2] + points[s[1]][2] + 0.05 * (s[0] == s[1])
    for a, b, r, own in sorted(STROKES, key=depth):
        if tint is not None and a in ('base', 'link1'):
            continue
        box, cover, rim = stroke(side, points[a], points[b], r * ZOOM * side)
        shade = (own if tint is None else tint) * (1.12 - 0.38 * rim[..., None])     # darker at the rim
        image[box] += cover[..., None] * (shade - image[box])


def draw(state, ghost=None, command=None, side=160):
    """
    state (T, 14) or (T, 7) -> (T, side, side, 3) uint8, a stick view with its shadow. ghost: another
    trajectory, seen through, such as a model's dream. command: targets (T, 7), as a thin line.
    """
    world = forward_kinematics(state)
    fallen = world * [1, 1, 0] + world[..., 2:].clip(0) * [0.18, 0.10, 0]    # a shadow, light from behind
    arm, dark = project(world, side), project(fallen, side)
    other = [] if ghost is None else project(forward_kinematics(ghost), side)
    wish = [] if command is None else project(forward_kinematics(command), side)
    video = np.empty((len(state), side, side, 3), np.uint8)
    for t in range(len(state)):
        image, shadow = floor(side).copy(), np.zeros((side, side), np.float32)
        for a, b, r, _ in STROKES:
            box, cover, _ = stroke(side, dark[t][a], dark[t][b], r * ZOOM * side, soft=0.05 * ZOOM * side)
            shadow[box] = np.maximum(shadow[box], cover)
        image *= 1 - 0.17 * shadow[..., None]
        paint(image, arm[t])
        if other:                                                        # as a whole: overlaps add up
            layer = image.copy()
            paint(layer, other[t], GHOST)
            image += 0.6 * (layer - image)
        if wish:
            for a, b, *_ in LIMBS:
                box, cover, _ = stroke(side, wish[t][a], wish[t][b], max(0.8, side / 200))
                image[box] += cover[..., None] * (COMMAND - image[box])
        video[t] = (image + 0.5).clip(0, 255)
    return video


# ---- MuJoCo's renderer ----

def render(state, side=240):
    """state (T, 14) -> (T, side, side, 3) uint8 by MuJoCo's renderer; None where there is no OpenGL."""
    mj, net = mujoco(), model()
    try:
        context = mj.GLContext
        if sys.platform == 'linux' and 'MUJOCO_GL' not in os.environ:    # the default there wants a screen
            from mujoco.egl import GLContext as context
        gl = context(side, side)
        gl.make_current()
        context = mj.MjrContext(net, mj.mjtFontScale.mjFONTSCALE_100)
    except Exception:                                                    # every driver raises something else
        return None
    mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN, context)
    data, scene, option = mj.MjData(net), mj.MjvScene(net, 100), mj.MjvOption()
    camera, box = mj.MjvCamera(), mj.MjrRect(0, 0, side, side)
    camera.type, camera.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, 0
    video = np.empty((len(state), side, side, 3), np.uint8)
    for row, image in zip(full(np.asarray(state, np.float64)), video):
        mj.mj_setState(net, data, row, mj.mjtState.mjSTATE_FULLPHYSICS)
        mj.mj_forward(net, data)
        mj.mjv_updateScene(net, data, option, None, camera, mj.mjtCatBit.mjCAT_ALL, scene)
        mj.mjr_render(box, scene, context)
        mj.mjr_readPixels(image, None, box, context)
    context.free()
    gl.free()
    return video[:, ::-1]                                                # OpenGL counts rows from below
