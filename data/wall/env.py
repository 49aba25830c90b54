"""
Wall: a dot in two rooms with one door between them, after the smallest world of DINO-WM. numpy only.

    next = clip(loc + STEP * action)     px; a move that meets a wall ends at its face

    clip(p, q)         the physics, any number of moves at once
    picture(state)     what it looks like
    make_env()         one dot as a gymnasium.Env; Simulator: many, with the interface of a world model

DINO-WM's square is 65 px wide and ours 32, so every length is theirs times 32 / 65; only the dot keeps its
std of 1.7 px, or one could hardly see it. x is right, y is down, pixel i covers [i - 0.5, i + 0.5].
"""
import numpy as np

SIZE = 32                                               # px, of the picture
SCALE = SIZE / 65                                       # our px per px of DINO-WM
LOW, HIGH = 5 * SCALE - 0.5, SIZE - 5 * SCALE - 0.5     # the border is 5 thick
LEFT, RIGHT = 15.5 - 3 * SCALE, 15.5 + 3 * SCALE        # faces of the wall, 6 thick, in the middle
TOP, BOTTOM = 9 - 4 * SCALE, 9 + 4 * SCALE              # the door, 8 high; off the middle, so up is not down
STD = 1.7                                               # px, of the dot
STEP = 2 * SCALE                                        # px per unit of action
LONGEST = 1.8                                           # units: no move of the data is longer
GREY = 110                                              # of the walls; the floor is 0, the dot 255
INF = float('inf')
SOLID = np.array([                                      # ((x0, x1), (y0, y1)), without their faces
    ((-INF, LOW), (-INF, INF)), ((HIGH, INF), (-INF, INF)),
    ((-INF, INF), (-INF, LOW)), ((-INF, INF), (HIGH, INF)),
    ((LEFT, RIGHT), (-INF, TOP)), ((LEFT, RIGHT), (BOTTOM, INF))])


def clip(p, q):
    """
    Where the moves p -> q end, (..., 2), and whether a wall ended them, (...). p is outside all walls; on a
    face is outside. A move is inside a box while it is inside both slabs, x0..x1 and y0..y1.
    """
    p, q = np.asarray(p, np.float64)[..., None, :], np.asarray(q, np.float64)[..., None, :]      # (..., 1, 2)
    d, (low, high) = q - p, np.moveaxis(SOLID, -1, 0)                # low, high (6, 2)
    with np.errstate(divide='ignore', invalid='ignore'):
        a, b = (low - p) / d, (high - p) / d                         # when faces are met, in moves
    never = np.where((low < p) & (p < high), -INF, INF)              # who stands still is in, or never
    enter = np.where(d == 0, never, np.where(d > 0, a, b))           # (..., 6, 2)
    leave = np.where(d == 0, INF, np.where(d > 0, b, a)).min(-1)
    axis = enter.argmax(-1)                                          # entered last: that face is met
    enter = enter.max(-1)                                            # (..., 6)
    met = (0 <= enter) & (enter < leave) & (enter < 1)
    part = np.where(met, enter, 1.0)
    box = part.argmin(-1)[..., None]                                 # the first of all that are met
    part, axis = (np.take_along_axis(x, box, -1) for x in (part, axis))              # (..., 1)
    p, d = p[..., 0, :], d[..., 0, :]
    face = np.where(d > 0, low[box[..., 0]], high[box[..., 0]])
    hit = part < 1
    # exactly: rounding must not put us into the wall
    end = np.where(hit & (axis == [0, 1]), face, p + part * d)
    return end, hit[..., 0]


def picture(state):
    """state (T, 2) px -> (T, 32, 32, 3) uint8. A pixel is as grey as the share of it that wall covers."""
    i = np.arange(SIZE)
    def cover(lo, hi): return (np.minimum(i + 0.5, hi) - np.maximum(i - 0.5, lo)).clip(0, 1)     # (32,)
    wall = np.maximum.reduce([np.outer(cover(*y), cover(*x)) for x, y in SOLID])     # (H, W)
    near = np.exp(-(i - state[:, :, None])**2 / (2 * STD**2))                        # (T, 2, 32)
    dot = near[:, 1, :, None] * near[:, 0, None, :]                                  # (T, H, W)
    image = GREY * wall + (255 - GREY * wall) * dot
    return np.repeat(np.rint(image).astype(np.uint8)[..., None], 3, axis=-1)


def place(rng):
    """A place (2,) in one of the two rooms."""
    room = (LOW, LEFT) if rng.random() < 0.5 else (RIGHT, HIGH)
    return np.array([rng.uniform(*room), rng.uniform(LOW, HIGH)])


class Simulator:
    """The world itself with the interface of a learned world model: for a planner, or beside a dream."""

    def rollout(self, context, action, noise=None, **kw):
        """
        context['state'] (B, H, 2), the last frame counts; action (B, N, K, 2k), k moves of two numbers
        between frames -> state (B, N, K, 2), video (B, N, K, 32, 32, 3) float32, 0..255.
        """
        import torch
        B, N, K, width = action.shape
        at = context['state'][:, -1].double().cpu().numpy().repeat(N, 0)             # (B N, 2)
        moves = action.double().cpu().numpy().reshape(B * N, K, width // 2, 2)
        state = np.empty((B * N, K, 2))
        for f in range(K):
            for k in range(width // 2):
                at, _ = clip(at, at + STEP * moves[:, f, k])
            state[:, f] = at
        video = picture(state.reshape(-1, 2)).reshape(B, N, K, SIZE, SIZE, 3)
        made = {'state': torch.from_numpy(state).view(B, N, K, 2), 'video': torch.from_numpy(video)}
        return {key: value.float().to(action.device) for key, value in made.items()}


def make_env():
    """One dot as a gymnasium.Env. It starts anywhere by seed, or at options['state']; nothing ends it."""
    import gymnasium
    box = gymnasium.spaces.Box

    class Wall(gymnasium.Env):
        metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}
        render_mode = 'rgb_array'
        action_space = box(-LONGEST, LONGEST, (2,), np.float32)
        observation_space = gymnasium.spaces.Dict({
            'video': box(0, 255, (SIZE, SIZE, 3), np.uint8), 'state': box(0, SIZE, (2,), np.float32)})

        def observe(self):
            return {'video': self.render(), 'state': self.at.astype(np.float32)}

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.at = np.array(options['state'], np.float64) if options else place(self.np_random)
            return self.observe(), {}

        def step(self, action):
            self.at, _ = clip(self.at, self.at + STEP * np.asarray(action, np.float64))
            return self.observe(), 0.0, False, False, {}

        def render(self):
            return picture(self.at[None])[0]
    return Wall()
