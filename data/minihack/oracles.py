"""
Teachers: players that find the staircase down, for a planner to imitate.

    oracle = ORACLES['explore'](env)       one per episode, on an env (env.py) that was just reset
    action = oracle.act()                  what it would do now; it looks at the env's screen itself
    oracle.follow(action)                  somebody else decides: keep the memory right, return nothing

bfs5 is the published teacher, exactly: no memory, four directions, characters of the terminal. In a maze or
in the dark it walks to and fro until the cap, because a cell beside solid rock is "unexplored" for ever.

explore sees the same map and no more, but it remembers where it was. It walks to the staircase if a way is
in view, else to the nearest cell that it never stood on and that borders on the unknown, in eight directions.
Doors that stay shut are kicked. Where nothing is left to explore it searches for hidden doors and corridors:
dead ends first, then corridors, then along the walls of rooms, everywhere again and again but less and less.
What a level has no key for (kick, search) it does without. Read `Explore.choose` first.
"""
import numpy as np

from data.minihack.env import ASKS_KEY, CMAP, DOWN, HEIGHT, KICK, SEARCH, WIDTH

W = WIDTH + 2                            # the map with a border: a cell is a number, (y + 1) * W + x + 1
STEPS = (-W, 1, W, -1, 1 - W, 1 + W, W - 1, -W - 1)      # of actions 0..7: N E S W NE SE SW NW

# What glyphs are to a walker.
# In this order, because what is below CLOSED cannot be entered, and what is below FLOOR not diagonally.
WALL, UNKNOWN, CLOSED, OPENED, FLOOR, CORRIDOR, GOAL = range(7)
KIND = np.full(6000, FLOOR, np.uint8)                    # things lie on the floor, monsters stand on it
KIND[CMAP:CMAP + 87] = WALL                              # and fountains, altars, traps: better not stepped on
KIND[CMAP] = UNKNOWN
KIND[[CMAP + 12, CMAP + 19, CMAP + 20, CMAP + 23]] = FLOOR           # empty doorway, floor lit and dark, '<'
KIND[[CMAP + 13, CMAP + 14]] = OPENED
KIND[[CMAP + 15, CMAP + 16]] = CLOSED
KIND[[CMAP + 21, CMAP + 22]] = CORRIDOR
KIND[DOWN] = GOAL

TRIES = 3      # a door that did not open in so many tries is locked; any other step is given up
KICKS = 40     # tries, those first ones too, after which a locked door is given up
BATCH = 5      # searches that we do at a place before we think of another
AGAIN = 10     # what a batch costs the next one at the same place, in steps
PLACES = {'dead end': 0, 'corridor': 12, 'wall': 25}     # what searching there costs more, in steps


class Explore:
    """Frontier search with memory; see the top of this file."""
    NEEDS = {}                                           # options of the level

    def __init__(self, env, rng=None):                   # rng: what teachers that draw would draw from
        self.env = env
        self.kinds = np.full((HEIGHT + 2, W), WALL, np.uint8)
        self.been, self.searched = bytearray((HEIGHT + 2) * W), bytearray((HEIGHT + 2) * W)
        self.grid, self.failed = self.kinds.tobytes(), {}            # as last seen; {see `edge`: how often}
        self.last = None                                 # (cell, move) just before, if it was a move
        self.kick = None                                 # the direction of a kick that was begun
        self.todo, self.known = [], None                 # the rest of a search, and what was known then

    def act(self):
        self.look()
        action = self.choose()
        self.note(action)
        return action

    def follow(self, action):
        self.look()
        self.note(action)
        self.todo = []                                   # our own plan began somewhere else

    def look(self):
        """The screen as a grid of kinds, and what it says about the last action."""
        y, x = self.env.position()
        here = self.here = (y + 1) * W + x + 1
        under = self.grid[here]  # what is under our feet is not drawn, we saw it before
        self.kinds[1:-1, 1:-1] = KIND[self.env.screen]
        self.grid = bytearray(self.kinds.tobytes())
        self.grid[here] = under if under in (OPENED, CORRIDOR) else FLOOR
        self.been[here] = 1
        if self.last and self.last[0] == here:
            self.fail(self.last[1])
            self.todo = []

    def fail(self, move):
        self.failed[self.edge(self.here, move)] = self.failed.get(self.edge(self.here, move), 0) + 1

    def edge(self, at, move):
        """A step, and what it leads to: a door that was kicked in is another one."""
        return at, move, self.grid[at + STEPS[move]]

    def note(self, action):
        action, self.last = self.env.means[action], None
        if action is None or self.asks():                # no key is pressed, or it is an answer
            return
        if action < 8:
            self.last = self.here, action
        if action == SEARCH:
            for step in (0, *STEPS):                     # neighbours looked at nearly the same walls
                self.searched[self.here + step] = min(255, self.searched[self.here + step] + 1)

    def asks(self):
        """Does NetHack wait for a direction?"""
        return self.env.internal[ASKS_KEY] > 0

    def choose(self):
        if self.asks():                                  # if it was not we who kicked: any direction will do
            return self.kick or 0
        self.kick = None
        known = self.grid.count(UNKNOWN), self.grid.count(WALL)
        if self.todo and known == self.known:            # nothing was found: no need to think again
            return self.todo.pop()
        self.known = known
        if self.grid.find(GOAL) >= 0:
            move = self.way(lambda at: self.grid[at] == GOAL)
            if move is not None:
                return self.through(move)
        move = self.way(self.frontier)
        if move is not None:
            return self.through(move)
        self.todo = self.search()[::-1]
        return self.todo.pop()

    def frontier(self, at):
        """Never stood on, and bordering on what was never seen; or a door, which hides what is behind it."""
        if self.been[at]:
            return False
        grid = self.grid
        return (grid[at] in (CLOSED, OPENED) or UNKNOWN in grid[at - W - 1:at - W + 2]
                or UNKNOWN in grid[at - 1:at + 2] or UNKNOWN in grid[at + W - 1:at + W + 2])

    def way(self, wanted):
        """The first move of a shortest way to a cell that is wanted, or None."""
        first, queue = {self.here: None}, [self.here]
        for at in queue:
            for move, to in self.steps(at):
                if to in first:
                    continue
                first[to] = move if at == self.here else first[at]
                if wanted(to):
                    return first[to]
                queue.append(to)
        return None

    def steps(self, at):
        """[(move, cell)] that can be tried from a cell; doors are not passed diagonally."""
        grid, found = self.grid, []
        for move in range(4 if grid[at] == OPENED else 8):
            to = at + STEPS[move]
            least = CLOSED if move < 4 else FLOOR
            if grid[to] >= least and not (self.failed and self.given_up(at, move, to)):
                found.append((move, to))
        return found

    def given_up(self, at, move, to):
        tries = self.failed.get(self.edge(at, move), 0)
        can_kick = self.env.n_actions > KICK and self.grid[to] == CLOSED
        return tries >= (KICKS if can_kick else TRIES)

    def through(self, move):
        """That move, or a kick where it leads into a door that is locked."""
        to, tries = self.here + STEPS[move], self.failed.get(self.edge(self.here, move), 0)
        if self.grid[to] == CLOSED and tries >= TRIES and self.env.n_actions > KICK:
            self.kick = move
            self.fail(move)
            return KICK
        return move

    def search(self):
        """
        Nothing is left to explore: the actions that lead to where a search costs least, walking included, and
        a batch of searches there. On a level without that key: to the cell where we were least.
        """
        can_search = self.env.n_actions > SEARCH
        came, steps, best, goal = {self.here: None}, {self.here: 0}, None, self.here
        queue = [self.here]
        for at in queue:
            if can_search:
                cost = steps[at] + self.promise(at) + AGAIN * (self.searched[at] // BATCH)
            else:
                cost = steps[at] + 100 * self.been[at]
            if best is None or cost < best:
                best, goal = cost, at
            for move, to in self.steps(at):
                if to not in came:
                    came[to], steps[to] = (at, move), steps[at] + 1
                    queue.append(to)
        path = []
        while came[goal]:
            goal, move = came[goal]
            path.append(move)
        if path and self.through(path[-1]) == KICK:
            return [KICK]
        return path[::-1] + ([SEARCH] * BATCH if can_search else [] if path else [self.env.steps % 8])

    def promise(self, at):
        """How unlikely a hidden way is here, in steps that we would walk to a likelier place."""
        grid = self.grid
        if grid[at] in (CORRIDOR, OPENED):
            ways = sum(grid[at + step] >= CLOSED for step in STEPS)
            return PLACES['dead end'] if ways < 2 else PLACES['corridor']
        return PLACES['wall'] if any(grid[at + step] == WALL for step in STEPS[:4]) else 1000


class Bfs5:
    """The published teacher, without memory. Its 'kick', action 11, is a key that no level has."""
    NEEDS = {'chars': True, 'alias_actions': True}

    def __init__(self, env, rng=None):
        self.env, self.rng = env, rng or np.random.default_rng(0)

    def act(self):
        return bfs5(self.env.chars, self.rng)

    def follow(self, action):
        pass


def bfs5(chars, rng):
    """
    chars (21, 79) uint8 -> 0..3 or 11. 11 beside a closed door, else the first step to the staircase, else to
    the nearest cell beside something blank, else to the farthest, else a random one.
    """
    FRAME[1:-1, 1:-1] = chars
    screen = FRAME.tobytes()
    start = screen.find(b'@')
    if start < 0:
        return int(rng.integers(4))
    if any(screen[start + step] == ord('+') for step in STEPS[:4]):
        return 11
    free, first = bytearray(screen.translate(FREE)), bytearray(len(screen))
    goal, farthest = screen.find(b'>') >= 0, None
    free[start], queue, end = 0, [start], 1              # cells in order of distance; end of those as far

    def edge(at):
        return at != start and b' ' in screen[at - 1:at + 2:2] + screen[at - W:at + W + 1:2 * W]
    for i, at in enumerate(queue):
        if i == end:
            farthest, end = at, len(queue)
        if screen[at] == STAIRS:
            return first[at]
        if not goal and edge(at):                        # nothing that is farther away could be wanted
            return first[at]
        for move, step in FOUR:
            to = at + step
            if free[to]:
                free[to] = 0
                first[to] = first[at] if i else move
                queue.append(to)
    if goal:                                             # it is in view, but there is no way
        farthest = next((at for at in queue if edge(at)), farthest)
    if farthest is not None:
        return first[farthest]                           # the first of the farthest
    return int(rng.integers(4))


STAIRS, FOUR = ord('>'), tuple(enumerate(STEPS[:4]))
FRAME = np.full((HEIGHT + 2, W), ord('-'), np.uint8)     # a map within a wall
FREE = bytes(chr(c) not in ' -|}+' for c in range(256))  # what bfs5 walks over, monsters and boulders too


ORACLES = {'explore': Explore, 'bfs5': Bfs5}
