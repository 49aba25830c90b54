"""
Wall: a dot in two rooms with one door between them, after the smallest world of DINO-WM. numpy only.

    next = clip(loc + STEP * action)     px; a move that meets a wall ends at its face

    clip(p, q)         the physics, any number of moves at once
    picture(state)     what it looks like
    make_env()         one dot as a gymnasium.Env; Simulator: many, with the interface of a world model
    Tasks              goals given as a picture, for protocols/goals.py

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
REACHED, FAR = 4.5 * SCALE, 19 * SCALE                  # px: near enough to a goal; far from it
ROUNDED = 1e-5                                          # px, more than float32 is off
GREY = 110                                              # of the walls; the floor is 0, the dot 255
INF = float('inf')
SOLID = np.array([                                      # ((x0, x1), (y0, y1)), without their faces
    ((-INF, LOW), (-INF, INF)), ((HIGH, INF), (-INF, INF)),
    ((-INF, INF), (-INF, LOW)), ((-INF, INF), (HIGH, INF)),
    ((LEFT, RIGHT), (-INF, TOP)), ((LEFT, RIGHT), (BOTTOM, INF))])


def clip(p, q):
    """
    Where the moves p -> q end, (..., 2), and whether a wall ended them, (...). p is outside all walls, give
    or take ROUNDED; on a face is outside. A move is inside a box while inside both slabs, x0..x1 and y0..y1.
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
    with np.errstate(invalid='ignore'):                              # rounded into a wall is on its face
        ahead = enter * np.where(axis, abs(d[..., 1]), abs(d[..., 0])) >= -ROUNDED
    met = ahead & (enter < leave) & (enter < 1)
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


class Tasks:
    """
    Bring the dot to where a picture shows it: what protocols/goals.py wants of a world. For another world
    write a Tasks with these names into data/<name>/env.py. B tasks, a plan of K commands of A numbers.

        Tasks(store, family, n, horizon, skip, seed, device)
            store: the val split, which also says where it lies; skip: moves that a frame of the model takes
        .OWN           what the keys of protocols/plan.py are where they are not given
        .family        near: from the start of a recorded window to its end, unless it starts there already
                       far: two places of one room, at least FAR apart; door: one place in each room
        .start         what is seen at first: video (B, 1, H, W, C), action (B, 0, skip A), and anything that
                       the simulator wants to know
        .goal          (B, H, W, C) picture; .where (B, S) its true state
        .looks, .pace  how often one looks and plans; how many commands of each plan are then made
        .nothing       (B, 0, A), no command made; .after(commands (B, m, A)) -> what is seen after them
        .low, .high    (A,) what a search may propose; None where actions are one-hot
        .commands(plan (B, N, K, A))           -> actions (B, N, K, skip A) for model and simulator
        .proposals(P)                          -> (P, K, A) plans out of windows of the train split
        .distance(state (B, ...), where)       how far from the goal a simulated future is (B, ...)
        .error(seen) (B,), .success(error)     how wrong it is where one stands, in numpy; near enough?
        .away (B,)     how far the goal is at the start
        .rivals        {name: commands (B, looks * pace, A)} that need no planning
        .simulator     the truth, with .rollout(seen, actions) -> video (B, N, K, H, W, C), state (B, N, K, S)
    """
    OWN = {'n_clips': 50, 'horizon': 5, 'n_samples': 64, 'n_iters': 8, 'n_keep': 3, 'n_proposals': 32,
           'frame': 'last'}
    FAMILIES = 'near', 'far', 'door'
    looks, pace = 1, OWN['horizon']      # a plan is carried out to its end; another horizon, another pace

    def __init__(self, store, family, n, horizon, skip, seed, device):
        import torch

        from data.loader import Store
        self.family, self.skip, rng = family or self.FAMILIES[0], skip, np.random.default_rng(seed)
        if self.family not in self.FAMILIES:
            raise ValueError(f'family = {family!r}: Wall has {", ".join(self.FAMILIES)}')
        span = horizon * skip + 1
        store = Store(store.folder, 'val', {'state': range(span), 'action': range(span - 1)}, hint='horizon')
        windows = store.windows_at(rng.permutation(len(store))[:4 * n + 64])
        starts, goals = windows['state'][:, 0].numpy(), windows['state'][:, -1].numpy()
        if self.family != 'near':
            starts, goals = pairs(self.family, len(starts), rng)
        apart = np.hypot(*(goals - starts).T)
        kept = np.flatnonzero(apart > REACHED)[:n]
        if len(kept) < 2:
            raise ValueError(f'{len(kept)} tasks in {store.folder}: want 2 or more; make more episodes')
        starts, goals, self.away = (x[kept].astype(np.float64) for x in (starts, goals, apart))

        def there(x):
            return torch.as_tensor(x, dtype=torch.float32, device=device)
        B = len(starts)
        self.pace, self.seed, self.nothing = horizon, seed, there(np.zeros((B, 0, 2)))
        self.train = Store(store.folder, 'train', {'action': range(span - 1)})
        self.start = {'video': there(picture(starts))[:, None], 'state': there(starts)[:, None],
                      'action': there(np.zeros((B, 0, 2 * skip)))}
        self.goal, self.where = there(picture(goals)), there(goals)
        self.high = there([LONGEST, LONGEST])
        self.low = -self.high
        self.simulator = Simulator()
        straight = np.repeat((goals - starts)[:, None] / (STEP * skip * horizon), horizon, 1)
        self.rivals = {'no_move': there(np.zeros((B, horizon, 2))),
                       'recorded': self.recorded(windows['action'][np.roll(kept, 1)]),       # another task's
                       'straight': there(straight)}

    def recorded(self, moves):
        """Moves (M, K skip, 2) of windows -> plans (M, K, 2): the mean of the moves of each frame."""
        return moves.to(self.goal).unflatten(1, (-1, self.skip)).mean(2)

    def proposals(self, P):
        if P > len(self.train):
            raise ValueError(f'n_proposals = {P}: the train split has {len(self.train)} windows')
        some = np.random.default_rng([self.seed, 1]).permutation(len(self.train))[:P]
        return self.recorded(self.train.windows_at(some)['action'])

    def commands(self, plan):
        """A command that is longer than any move of the data is cut: in a box of two numbers corners are."""
        length = plan.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return (plan * (LONGEST / length).clamp(max=1)).repeat(1, 1, 1, self.skip)

    def after(self, made):
        end = self.simulator.rollout(self.start, self.commands(made[:, None]))
        return self.start | {key: end[key][:, 0, -1:] for key in ('video', 'state')}

    def distance(self, state, where):
        return (state - where.view(len(where), *[1] * (state.dim() - 2), 2)).norm(dim=-1)

    def error(self, seen):
        return self.distance(seen['state'][:, -1], self.where).cpu().numpy()

    def success(self, error):
        return error < REACHED


def pairs(family, n, rng):
    """Starts and goals (n, 2): in one room and far apart, or in one room each."""
    starts, goals = [], []
    while len(starts) < n:
        a, b = place(rng), place(rng)
        same = (a[0] > 15.5) == (b[0] > 15.5)
        far = same and np.hypot(*(a - b)) >= FAR
        if far if family == 'far' else not same:
            starts.append(a)
            goals.append(b)
    return np.array(starts), np.array(goals)


def live(meta):
    """What play.py walks in: .reset(seed) and .step(action) -> (H, W, C) uint8, the picture."""
    env = make_env()

    class Live:
        def reset(self, seed): return env.reset(seed=seed)[0]['video']
        def step(self, action): return env.step(action)[0]['video']
    return Live()


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
