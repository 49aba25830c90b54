"""
PushT: push a T onto its mark with a disc. Pymunk moves things, Pillow draws them.

    env = make_env('pusht', obs='image'); obs, info = env.reset(seed=100000)
    obs, reward, terminated, truncated, info = env.step(target)          # (2,) px: where the disc should go
    env.advance(target)                    # the same without looking: no picture is drawn, no obs returned

As published with Diffusion Policy (arXiv 2303.04137): a square of 512 px, y down; 10 actions a second, each a
target for the disc, which a critically damped spring pulls there in 10 substeps. The T loses all speed in
every substep, so it slides only while it is pushed. reward = min(covered share of the mark / 0.95, 1); an
episode is won and over beyond 0.95, or ends after 300 steps. Its score is the best reward on the way.

reset(seed) is the published one ("legacy"): the T is put somewhere, then turned about its centre of gravity,
so that its origin moves once more: seed 100000 draws (335, 128) and gets (299.6, 145.2). The demonstrations
start from seeds 0 to 205 like this, the tests are 100000 to 100049. Read `PushT.advance` first.
"""
import difflib
import math
import sys

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

WORLD, SIZE = 512, 96                     # px: of the world, of the picture that a policy sees
CAP, FPS, SUBSTEPS = 300, 10, 10
RADIUS, STIFFNESS, DAMPING = 15, 100, 20  # px; of the spring, per s^2 and per s
BAR = (-60, 30), (60, 30), (60, 0), (-60, 0)             # the T in its own frame, px
STEM = (-15, 30), (-15, 120), (15, 120), (15, 30)        # in this order: contacts depend on it
CENTRE = 0, 45                            # of gravity
MOMENT = 3000                             # of inertia; mass 1
AREA = 120 * 30 + 30 * 90
MARK = 256, 256, math.pi / 4              # x, y, angle of the mark
ENOUGH = 0.95                             # covered: won
KEYPOINTS = np.array([(9.27, 90.04), (-60.98, -1.19), (60.91, -1.39), (-0.27, 25.54), (-14.06, 122.82),
                      (39.00, 32.86), (-39.97, 32.73), (-16.82, 62.86), (23.54, -1.70)])
WALLS = ((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506))

NAME = 'pusht'
SUITES = {'all': (NAME,)}                 # what eval.py calls them
SEED = 100_000                            # of the first published test
SCORE = 'best'                            # of an episode: the best reward; see data/rollout.py

WHITE, GREEN, GREY = (255, 255, 255), (144, 238, 144), (211, 211, 211)
SLATE, SLATE_LIGHT = (119, 136, 153), (142, 163, 183)
BLUE, BLUE_LIGHT = (65, 105, 225), (78, 126, 255)


def make_env(name=NAME, **keys):
    """The board; keys as in PushT."""
    check_name(name)
    return PushT(**keys)


def options(cfg, shaped=False):
    """What a policy of this Config sees. There is one reward only, so `shaped` changes nothing."""
    return {'obs': cfg.obs}


def environments(names, **keys):
    """A board for each name. They cost nothing to make."""
    return [make_env(name, **keys) for name in names]


def check_name(name):
    """Exit with one line unless `name` can be played."""
    if name != NAME:
        close = difflib.get_close_matches(name, [NAME, *SUITES], 1, 0.5)
        sys.exit(f'no environment {name!r}; ' + (f'did you mean {close[0]!r}?' if close else 'want "pusht"'))


def seed_of(name, episode, seed):
    """The seed of test number `episode`: as published they are counted up."""
    return seed + episode


# ---- geometry ----

def placed(points, x, y, angle):
    """Points (n, 2) of the T's frame -> px of the world."""
    c, s = math.cos(angle), math.sin(angle)
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in points]


def clip(polygon, window):
    """The part of a convex polygon within a convex window; corners in the same sense (Sutherland-Hodgman)."""
    for (ax, ay), (bx, by) in zip(window, window[1:] + window[:1]):
        ux, uy = bx - ax, by - ay
        inside = [uy * (x - ax) - ux * (y - ay) for x, y in polygon]       # >= 0: on the inner side
        kept = []
        for i, (p, d) in enumerate(zip(polygon, inside)):
            before, q = inside[i - 1], polygon[i - 1]
            if (d >= 0) != (before >= 0):
                share = before / (before - d)
                kept.append((q[0] + share * (p[0] - q[0]), q[1] + share * (p[1] - q[1])))
            if d >= 0:
                kept.append(p)
        polygon = kept
        if not polygon:
            break
    return polygon


def area(polygon):
    """Of a polygon, in px^2 (the shoelace formula)."""
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1]))) / 2


TARGET = [placed(part, *MARK) for part in (BAR, STEM)]


def covered(x, y, angle):
    """The share of the mark that a T at this pose covers, 0 to 1."""
    ours = [placed(part, x, y, angle) for part in (BAR, STEM)]
    return sum(area(clip(part, goal)) for part in ours for goal in TARGET) / AREA


# ---- the picture ----

def picture(pose):
    """The world at pose (x, y of the disc; x, y, angle of the T): (512, 512, 3) uint8."""
    image = Image.new('RGB', (WORLD, WORLD), WHITE)
    draw = ImageDraw.Draw(image)
    for part in TARGET:
        draw.polygon(rounded(part), fill=GREEN)
    for a, b in WALLS:
        draw.line([a, b], GREY, 5)
    x, y = round(pose[0]), round(pose[1])
    for radius, colour in (RADIUS, BLUE), (RADIUS - 4, BLUE_LIGHT):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    for part in (BAR, STEM):
        corners = rounded(placed(part, *pose[2:]))
        draw.polygon(corners, fill=SLATE_LIGHT)
        for a, b in zip(corners, corners[1:] + corners[:1]):
            draw.line([a, b], SLATE, 3)
        for x, y in corners:
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=SLATE)
    return np.asarray(image)


def rounded(points):
    return [(round(x), round(y)) for x, y in points]


def taps(n, size):
    """Two-tap bilinear from n to `size` pixels: the left pixel (size,), and the share of its neighbour."""
    at = (np.arange(size) + 0.5) * n / size - 0.5
    left = np.floor(at).astype(int)
    return left, (at - left).astype(np.float32)


LEFT, SHARE = taps(WORLD, SIZE)


def shrink(image):
    """(512, 512, 3) uint8 -> (96, 96, 3) uint8, without smoothing first: as demonstrations were stored."""
    right = SHARE[:, None]
    lines = [image[LEFT + i] for i in (0, 1)]
    rows = [line[:, LEFT] * (1 - right) + line[:, LEFT + 1] * right for line in lines]
    down = SHARE[:, None, None]
    return np.rint(rows[0] * (1 - down) + rows[1] * down).astype(np.uint8)


# ---- the world ----

class PushT(gymnasium.Env):
    """
    obs   keypoints: env_state (18,) and state (2,), px | image: image.top (3, 96, 96) uint8 and state
    """
    cap = CAP

    def __init__(self, obs='keypoints'):
        if obs not in ('keypoints', 'image'):
            sys.exit(f'obs = {obs!r}: must be one of keypoints, image')
        self.obs, self.over = obs, True
        self.build()
        box = gymnasium.spaces.Box
        self.action_space = box(0, WORLD, (2,), np.float32)
        spaces = {'state': box(0, WORLD, (2,), np.float32)}
        if obs == 'image':
            spaces['image.top'] = box(0, 255, (3, SIZE, SIZE), np.uint8)
        else:
            spaces['env_state'] = box(-WORLD, 2 * WORLD, (18,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def build(self):
        """An empty world; anew for each episode, because an engine remembers who touched whom."""
        try:
            import pymunk
        except ImportError:
            sys.exit("PushT needs: pip install -e '.[pusht]'")
        self.space = pymunk.Space()
        self.space.damping = 0                           # what is dynamic, the T, loses all speed
        for a, b in WALLS:
            self.space.add(pymunk.Segment(self.space.static_body, a, b, 2))
        self.disc = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.disc.position = 256, 400                    # as published: the order of contacts depends on it
        self.space.add(self.disc, pymunk.Circle(self.disc, RADIUS))
        self.block = pymunk.Body(1, MOMENT)
        self.block.center_of_gravity = CENTRE
        self.block.position = 256, 300
        self.space.add(self.block, *[pymunk.Poly(self.block, part) for part in (BAR, STEM)])

    def reset(self, seed=None, options=None):
        """Start `seed`, below 2^32; None draws one."""
        if seed is not None and not 0 <= seed < 2**32:
            sys.exit(f'seed = {seed}: the starts of PushT are 0 to 2^32 - 1')
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**32))
        rng = np.random.RandomState(seed)  # noqa: NPY002 (the published starts come from it)
        disc = rng.randint(50, 450), rng.randint(50, 450)
        block = rng.randint(100, 400), rng.randint(100, 400)
        self.place(*disc, *block, rng.randn() * 2 * math.pi - math.pi)
        return self.observation(), {'won': False, 'coverage': self.coverage}

    def place(self, x, y, block_x, block_y, angle):
        """Put things there, as published: first the position of the T, then its angle, then a substep."""
        self.build()
        self.disc.position = float(x), float(y)
        self.block.position = float(block_x), float(block_y)
        self.block.angle = float(angle)
        self.space.step(1 / (FPS * SUBSTEPS))
        self.steps, self.over, self.clipped, self.target = 0, False, 0, None
        self.coverage = covered(*self.pose()[2:])

    def pose(self):
        """x, y of the disc; x, y, angle in [0, 2 pi) of the T."""
        return (*self.disc.position, *self.block.position, self.block.angle % (2 * math.pi))

    def observation(self):
        pose = self.pose()
        obs = {'state': np.array(pose[:2], np.float32)}
        if self.obs == 'image':
            obs['image.top'] = shrink(picture(pose)).transpose(2, 0, 1)
        else:
            obs['env_state'] = np.array(placed(KEYPOINTS, *pose[2:]), np.float32).reshape(-1)
        return obs

    def step(self, action):
        reward, terminated, truncated, info = self.advance(action)
        return self.observation(), reward, terminated, truncated, info

    def advance(self, action):
        """The disc goes towards `action` for 0.1 s. -> reward, terminated, truncated, info"""
        assert not self.over, 'no episode yet, or it is over: reset first'
        x, y = (float(value) for value in action)
        assert math.isfinite(x + y), f'action {action} is not finite'
        self.target = min(max(x, 0.0), WORLD), min(max(y, 0.0), WORLD)
        self.clipped += self.target != (x, y)
        dt, (tx, ty) = 1 / (FPS * SUBSTEPS), self.target
        for _ in range(SUBSTEPS):
            (px, py), (vx, vy) = self.disc.position, self.disc.velocity
            self.disc.velocity = (vx + (STIFFNESS * (tx - px) - DAMPING * vx) * dt,
                                  vy + (STIFFNESS * (ty - py) - DAMPING * vy) * dt)
            self.space.step(dt)
        self.steps += 1
        self.coverage = covered(*self.pose()[2:])
        won = self.coverage > ENOUGH
        self.over = won or self.steps >= self.cap
        info = {'won': won, 'coverage': self.coverage}
        return min(self.coverage / ENOUGH, 1.0), won, self.over and not won, info

    def render(self):
        """(512, 512, 3) uint8."""
        return picture(self.pose())


# ---- players that learned nothing ----

def rivals():
    """{who: (name, seed) -> the score}: floors, for eval.py to put beside a model."""
    return {'nothing': lambda name, seed: played(seed, lambda env, rng: env.disc.position),
            'random': lambda name, seed: played(seed, lambda env, rng: rng.uniform(0, WORLD, 2))}


def played(seed, choose):
    """The best reward of an episode in which choose(env, rng) acts."""
    env, rng, best, over = PushT(), np.random.default_rng(seed), 0.0, False
    env.reset(seed=seed)
    while not over:
        reward, terminated, truncated, _ = env.advance(choose(env, rng))
        best, over = max(best, reward), terminated or truncated
    return best
