"""
NetHack levels as MiniHack makes them, played close to the engine: the planner's world.

    env = make_env('MiniHack-MazeWalk-9x9-v0')      a gymnasium.Env; a .des file is a level, too
    obs, info = env.reset(seed=7)                    the same seed: the same level and dice, always
    obs, reward, terminated, truncated, info = env.step(action)

    obs         glyphs (21, 79) int16, the map seen so far; local (9, 9) int16, what surrounds the player
    action      0..11, see ACTIONS; ids that a level does not have cost a step and press no key
    reward      MiniHack's: +1 for the staircase down, -0.01 where no time passed; shaped=True adds more
    terminated  the staircase was reached (info['won']), or the player died
    truncated   the cap is reached: min(500, the level's own)

info['won'] says whether the staircase was reached, info['illegal'] that no key was pressed. After a death the
map is blank.

MiniHack's step spends most of its time on observations that nobody asked for. Here NetHack writes into five
small buffers, and the map is copied: env.step costs less than twice the engine's own step (bench/levels.py).
An environment compiles its level when it is built (20 ms), so keep it and reset it.
"""
import difflib
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, deque

import gymnasium
import numpy as np

ID = ('MiniHack-Room-Random-5x5-v0', 'MiniHack-Room-Random-15x15-v0', 'MiniHack-Corridor-R2-v0',
      'MiniHack-MazeWalk-9x9-v0')                        # the planner trains on these
OOD = ('MiniHack-Room-Dark-15x15-v0', 'MiniHack-Corridor-R5-v0',
       'MiniHack-MazeWalk-45x19-v0')                     # and never on these
ACTIONS = ('N', 'E', 'S', 'W', 'NE', 'SE', 'SW', 'NW',               # every level
           'OPEN', 'KICK', 'SEARCH',  # corridors; the first two ask for a direction
           'NONE')                                                   # no level has a twelfth
DELTAS = ((-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1))       # (dy, dx) of 0..7
OPEN, KICK, SEARCH = 8, 9, 10
HEIGHT, WIDTH, CROP = 21, 79, 9

# Glyphs: what NetHack draws, one id per thing. The map's own begin at CMAP.
CMAP = 2359                              # solid rock, and all that was never seen
DOORWAY, FLOOR, UP, DOWN = CMAP + 12, CMAP + 19, CMAP + 23, CMAP + 24
DOORS = {CMAP + k for k in (13, 14, 15, 16)}             # open and closed; never passed diagonally
EDGE = 13                                # beyond the map, as published (a fox has this id, too)
MARK = 5976                              # memory: a cell we stood on; + n: where we searched n times, up to 5
MARKABLE = np.zeros(6000, bool)          # what a mark may hide: rock, doorway, floor, corridor
MARKABLE[[CMAP, DOORWAY, FLOOR, CMAP + 20, CMAP + 21, CMAP + 22]] = True

SUITES = {'id': ID, 'ood': OOD, 'all': ID + OOD}         # what eval.py calls them

CODES = (107, 108, 106, 104, 117, 110, 98, 121, 111, 4, 115)         # keys of ACTIONS: k l j h u n b y o ^D s
SPACE, ESC = 32, 27
# What the engine's `internal` says: it asks for one key, for a line, for SPACE; the player is on '>'.
ASKS_KEY, ASKS_LINE, ASKS_SPACE, ON_STAIRS = 1, 2, 3, 4
IN_GAME, TIME = 3, 20                    # of `program_state` and `blstats`
QUESTIONS = (b'eat', b'attack', b'direction?', b'pray')  # NLE lets the player answer these, and no other


def make_env(name, **keys):
    """A level by MiniHack's id or by the path of a .des file; keys as in Level."""
    return Level(name, **keys)


def live(meta):
    """What play.py walks in, of data whose meta.json names a level: see boulders.Live."""
    from data.minihack.boulders import Live  # here, because it imports this file
    return Live(**meta['level'])


def __getattr__(name):
    """Tasks and Simulator, for protocols/goals.py: there, because that file imports this one."""
    if name in ('Tasks', 'Simulator'):
        from data.minihack import tasks
        return getattr(tasks, name)
    raise AttributeError(name)


def options(cfg, shaped=False):
    """How levels behave for a planner of this Config. bfs5 needs its twelfth action to be a key."""
    alias = cfg.alias_actions or cfg.oracle == 'bfs5'
    return {'memory': cfg.memory, 'alias_actions': alias, 'shaped': shaped}


def rivals():
    """{who: (name, seed) -> was it won?}: players that learned nothing, for eval.py to put beside a model."""
    from data.minihack.play import RIVALS  # here, because play.py imports this file
    return RIVALS


MANY = 150
built = {}                    # {(name, options): [Level, ...]}


def environments(names, **keys):
    """
    An environment for each name, no two the same. They are kept and handed out again by the next call, unless
    there are MANY: each has files open and some 10 MB.
    """
    used, found = Counter(), []
    if sum(map(len, built.values())) > MANY:
        for key in [key for key in built if key[0] not in names]:
            for env in built.pop(key):
                env.close()
    for name in names:
        there = built.setdefault((name, *sorted(keys.items())), [])
        if used[name] == len(there):
            there.append(make_env(name, **keys))
        found.append(there[used[name]])
        used[name] += 1
    return found


def check_name(name):
    """Exit with one line unless `name` can be played: one of MiniHack's ids, or a .des file that compiles."""
    if name.endswith('.des'):
        return check_des(name)
    register()
    known = [key for key in gymnasium.registry if key.startswith('MiniHack-')]
    if name not in known:
        close = difflib.get_close_matches(name, [*known, *SUITES], 1, 0.5)
        sys.exit(f'no level {name!r}; ' + (f'did you mean {close[0]!r}?' if close else
                                           "want one of MiniHack's ids, or a file that ends in .des"))
    Level(name).close()                                  # it says what else is wrong


def check_des(path):
    """
    Exit with one line unless the level file compiles. MiniHack does not look: it then plays another level.
    """
    from nle.nethack.nethack import HACKDIR
    try:
        with open(path, 'rb') as f:
            text = f.read()
    except OSError as error:
        sys.exit(f'{path}: {error.strerror}; want a NetHack level file')
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, 'level.des'), 'wb') as f:
            f.write(text)
        done = subprocess.run([os.path.join(HACKDIR, 'lev_comp'), 'level.des'], cwd=folder, text=True,
                              errors='replace', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        made = [file for file in os.listdir(folder) if file.endswith('.lev')]
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if said or done.returncode or not made:
        sys.exit(f'{path} does not compile: {said[0] if said else "it defines no level"}')
    if made != ['mylevel.lev']:
        names = ' and '.join(sorted(file.removesuffix('.lev') for file in made))
        sys.exit(f'{path} defines {names}; want one level, called "mylevel", because MiniHack plays that')


def register():
    """MiniHack registers its levels when it is imported: a second, and warnings of its age."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import minihack  # noqa: F401


def build(name, character=''):
    """MiniHack's own environment: it compiles the level and knows its keys and cap."""
    register()
    keys = dict(disable_env_checker=True, observation_keys=('glyphs', 'blstats'),
                fix_moon_phase=True)     # a full moon tonight is luck, and luck is other dice
    if character:
        keys['character'] = character
    if name.endswith('.des'):
        check_des(name)
        with open(name) as f:            # as text, because MiniHack cannot copy a path with a space in it
            keys['des_file'] = f.read()
        name = 'MiniHack-Navigation-Custom-v0'
    elif name not in gymnasium.registry:
        check_name(name)
    return gymnasium.make(name, **keys).unwrapped


class Level(gymnasium.Env):
    """
    One level generator, running.

    cap             most steps of an episode; the level's own binds before (a .des file has none)
    crop, edge      side of `local`, and the glyph beyond the map
    shaped          add to the reward +20 for a win, 0.5 per step nearer to the staircase (4 neighbours, where
                    it is in view), 0.05 for a new cell, -0.01 a step; costs a search of the map
    memory          show where the player has been, and how often it searched there: MARK, MARK + 1, ...
    alias_actions   ids that the level does not have mean another key, id % n, as published
    chars           also fill self.chars (21, 79) uint8, what a terminal would show; bfs5 reads it
    character       who plays, as NetHack writes it: 'mon-hum-neu' is a human monk; '' is MiniHack's choice
    """

    def __init__(self, name, cap=500, crop=CROP, edge=EDGE, shaped=False, memory=False, alias_actions=False,
                 chars=False, character=''):
        assert crop % 2 == 1, f'crop {crop} has no middle cell for the player; use an odd number'
        self.inner = build(name, character)         # owns the folder that the engine plays in
        self.name, self.shaped, self.memory = name, shaped, memory
        of_level = cap if name.endswith('.des') else self.inner._max_episode_steps   # a file cannot tell one
        self.cap = min(cap, of_level)
        keys = [int(key) for key in self.inner.actions]
        if self.inner.reward_manager is not None:
            sys.exit(f'{name} is won by something else than the staircase down: it cannot be judged here')
        if tuple(keys) != CODES[:len(keys)]:
            sys.exit(f'{name} has other actions than {", ".join(ACTIONS[:11])}; '
                     'play a level of MiniHack where one walks, opens, kicks and searches')
        self.n_actions = len(keys)
        self.means = [a if a < len(keys) else a % len(keys) if alias_actions else None
                      for a in range(len(ACTIONS))]      # what an id does in this level; None: nothing
        self.keys = [None if a is None else keys[a] for a in self.means]
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict({
            'glyphs': box(0, 5999, (HEIGHT, WIDTH), np.int16), 'local': box(0, 5999, (crop, crop), np.int16)})

        from nle.nethack.nethack import OBSERVATION_DESC
        wanted = ['glyphs', 'blstats', 'internal', 'program_state', 'message']
        wanted += ['chars'] * (chars or shaped)
        buffers = {key: np.zeros(**OBSERVATION_DESC[key]) for key in wanted}
        self.engine = self.inner.nethack._pynethack
        self.engine.set_buffers(**buffers)               # before the first reset; later it refuses
        self.screen, self.message, self.chars = (buffers.get(key) for key in ('glyphs', 'message', 'chars'))
        # numbers of a memoryview are read three times as fast as those of an array
        self.blstats, self.internal, self.program = (memoryview(buffers[key]) for key in
                                                     ('blstats', 'internal', 'program_state'))
        self.half = crop // 2
        self.frame = np.full((HEIGHT + 2 * self.half, WIDTH + 2 * self.half), edge, np.int16)
        # the part of frame that is the map, a view into it
        self.middle = self.frame[self.half:self.half + HEIGHT, self.half:self.half + WIDTH]

    def reset(self, seed=None, options=None):
        """
        Level `seed`, below 2^63; None draws one, anew in every process. MiniHack's own reset(seed) would not
        do, because its seed does not reach NetHack's dice.
        """
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self.engine.set_initial_seeds(seed, seed, False, None)
        self.engine.reset()
        while not self.program[IN_GAME]:                 # introductory texts
            self.engine.step(SPACE)
        self.steps, self.over = 0, False
        self.time = self.blstats[TIME]
        self.marks = np.zeros((HEIGHT, WIDTH), np.int16)
        if self.shaped:
            self.been, self.distance = {self.position()}, distance(self.chars)
        return self.observation(), {'won': False}

    def position(self):
        """The player's cell (y, x). Asked of NetHack: '@' is also how other humans look."""
        return self.blstats[1], self.blstats[0]

    def observation(self):
        y, x = self.blstats[1], self.blstats[0]
        if self.memory:
            return self.remember(y, x)
        return {'glyphs': self.screen.copy(), 'local': self.around(self.screen, y, x)}

    def around(self, glyphs, y, x):
        """The part of the map around the player, (crop, crop); beyond the map is `edge`."""
        half = self.half
        if half <= y < HEIGHT - half and half <= x < WIDTH - half:
            return glyphs[y - half:y + half + 1, x - half:x + half + 1].copy()
        self.middle[...] = glyphs
        return self.frame[y:y + 2 * half + 1, x:x + 2 * half + 1].copy()

    def remember(self, y, x):
        """The observation with marks; in the middle of `local` the mark of the cell that the player hides."""
        if self.marks[y, x] == 0:
            self.marks[y, x] = MARK
        glyphs = np.where((self.marks > 0) & MARKABLE[self.screen], self.marks, self.screen)
        local = self.around(glyphs, y, x)
        local[self.half, self.half] = self.marks[y, x]
        return {'glyphs': glyphs, 'local': local}

    def step(self, action):
        assert not self.over, 'the episode is over: reset first'         # the engine would end the process
        key, asked = self.keys[action], self.internal[ASKS_KEY]      # asked: this is an answer, no action
        self.steps += 1
        info = {'won': False}
        if key is None:
            info['illegal'] = True
        else:
            self.engine.step(key)
        flags = self.internal
        if flags[ASKS_KEY] or flags[ASKS_LINE] or flags[ASKS_SPACE]:
            self.answer()
        won = info['won'] = flags[ON_STAIRS] > 0
        dead = self.engine.done()
        if self.memory and self.means[action] == SEARCH and not asked:
            y, x = self.position()
            self.marks[y, x] = min(max(self.marks[y, x], MARK) + 1, MARK + 5)
        time = self.blstats[TIME]
        reward = float(won) - 0.01 * (time == self.time)
        self.time = time
        if self.shaped and not (dead and not won):       # after a death there is nothing to see
            reward += self.shaping(won)
        self.over = won or dead
        truncated = not self.over and self.steps >= self.cap
        return self.observation(), reward, self.over, truncated, info

    def answer(self):
        """NetHack waits for a key: go on, decline to write text and all questions but those of the player."""
        while not self.engine.done():
            if self.internal[ASKS_SPACE]:
                self.engine.step(SPACE)
            elif self.internal[ASKS_LINE]:
                self.engine.step(ESC)
            else:
                if self.internal[ASKS_KEY] and not any(word in self.message.tobytes() for word in QUESTIONS):
                    self.engine.step(ESC)
                return

    def shaping(self, won):
        here, before, now = self.position(), self.distance, distance(self.chars)
        nearer = 0.0
        if before is not None and now is not None:       # as published: never counted where '>' starts unseen
            nearer, self.distance = before - now, now
        new = here not in self.been
        self.been.add(here)
        return 20.0 * won + 0.5 * nearer + 0.05 * new - 0.01

    def render(self):
        """The map in NetHack's tiles, (336, 1264, 3) uint8, 16 px each; what was never seen is black."""
        from data.minihack.pixels import tiles
        picture = tiles(16)[self.screen]                 # (21, 79, 16, 16, 3)
        return picture.transpose(0, 2, 1, 3, 4).reshape(HEIGHT * 16, WIDTH * 16, 3)

    def close(self):
        self.inner.close()


def distance(chars):
    """Steps from '@' to '>' over 4 neighbours, None where there is no way in view. chars (21, 79) uint8."""
    screen = chars.tobytes()
    start, goal = screen.find(b'@'), screen.find(b'>')
    if start < 0 or goal < 0:
        return None
    steps, queue = {start: 0}, deque([start])
    while queue:
        at = queue.popleft()
        if at == goal:
            return steps[at]
        for to in neighbours4(at):
            if to not in steps and screen[to] not in b' -|}':
                steps[to] = steps[at] + 1
                queue.append(to)
    return None


def neighbours4(at):
    """Cells y * WIDTH + x beside a cell of the map: N, E, S, W."""
    y, x = divmod(at, WIDTH)
    if y > 0:
        yield at - WIDTH
    if x < WIDTH - 1:
        yield at + 1
    if y < HEIGHT - 1:
        yield at + WIDTH
    if x > 0:
        yield at - 1
