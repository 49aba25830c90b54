"""
Discs: two coloured discs, a hand, and a sentence that says which disc to go to. numpy draws and moves.

    env = make_env('told'); obs, info = env.reset(seed=100000)
    obs, reward, terminated, truncated, info = env.step(move)            # (2,): how far, at most STEP
    env.advance(move)                      # the same without looking: no picture is drawn, no obs returned

    next = hand + move, at the edge of the board at most. The board is 1 wide; x is right, y is down.
    obs: image.top (3, 16, 16) uint8; state (2,) float32, the hand; task () int32, a row of SENTENCES

Picture and hand leave open which disc it shall be, so a policy that wins has read. Twelve sentences, three
colours in four wordings; of each colour one wording is HELD_OUT of all demonstrations, another for each, so
that every word of it is known but not the sentence. An episode is won where the hand is near the disc after
40 steps: to sweep over both does not help. What a policy is told, and where it wins, is the environment's:

    told        a trained sentence about the disc that counts
    held_out    the sentence about it that was never trained
    other       a trained sentence about the other disc; who obeys it loses
    constant    always the same sentence, whatever disc counts; even if no disc has its colour
    <sentence>  one of the twelve; the disc of its colour counts, and without such a disc nobody wins

A seed is the same board in each of them. Read `Discs.reset` first.
"""
import difflib
import sys
from functools import partial

import gymnasium
import numpy as np

SIZE, ZOOM = 16, 256                      # px: of the picture that a policy sees, of that for people
RADIUS, HAND = 2 / 16, 1 / 16             # of a disc and of the hand; all lengths are shares of the board
APART, FAR = 0.3, 0.25                    # at first: disc to disc, hand to disc, at least; nothing overlaps
STEP, NEAR = 0.06, 0.08                   # the longest move; near enough to the middle of a disc
CAP, FPS = 40, 10                         # steps of an episode
COLOURS = {'red': (230, 70, 60), 'green': (70, 200, 80), 'blue': (70, 110, 240)}
BOARD, WHITE = (40, 40, 40), (255, 255, 255)
WORDINGS = 'go to the {} disc', 'move the hand to {}', 'touch the {} one', '{} is where you belong'
SENTENCES = [wording.format(colour) for colour in COLOURS for wording in WORDINGS]
HELD_OUT = [len(WORDINGS) * i + i for i in range(len(COLOURS))]          # rows of SENTENCES
CONSTANT = 1                              # another row

NAMES = 'told', 'held_out', 'other', 'constant'
SUITES = {'all': NAMES}                   # what eval.py calls them
SEED = 100_000                            # of the first test; demonstrations come from (seed, number)


def make_env(name='told'):
    """The board under one of NAMES, or under one of SENTENCES."""
    check_name(name)
    return Discs(name)


def options(cfg, shaped=False):
    """What a policy of this Config sees: all see the same, and there is one reward only."""
    return {}


def environments(names):
    """A board for each name. They cost nothing to make."""
    return [make_env(name) for name in names]


def check_name(name):
    """Exit with one line unless `name` can be played."""
    known = [*NAMES, *SENTENCES]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        sys.exit(f'no environment {name!r}; ' + (f'did you mean {close[0]!r}?' if close else
                 f'want one of {", ".join(NAMES)}, or a sentence like {SENTENCES[0]!r}'))


def seed_of(name, episode, seed):
    """The seed of test number `episode`: they are counted up, the same for every name."""
    return seed + episode


# ---- the world ----

def board(rng):
    """hand (2,), places (2, 2) of the discs, colours (2,), rows of COLOURS. Disc 0 is the one that counts."""
    colours = rng.permutation(len(COLOURS))[:2]
    while True:
        hand, *places = rng.uniform(RADIUS, 1 - RADIUS, (3, 2))
        if length(places[0] - places[1]) >= APART and min(length(hand - place) for place in places) >= FAR:
            return hand, np.array(places), colours


def sentence(colour, rng):
    """A row of SENTENCES that is trained, about this row of COLOURS."""
    return int(rng.choice(trained(colour)))


def trained(colour):
    """Rows of SENTENCES that demonstrations show, about this row of COLOURS."""
    rows = range(len(WORDINGS) * colour, len(WORDINGS) * (colour + 1))
    return [row for row in rows if row not in HELD_OUT]


def askable(seed):
    """{sentence: is it of those that were never trained}: two about each of the discs on this board."""
    _, _, colours = make_env().deal(seed)
    rows = [row for colour in colours for row in (trained(colour)[0], HELD_OUT[colour])]
    return {SENTENCES[row]: row in HELD_OUT for row in rows}


def way(env, moves):
    """Where the hand of this board would be after each of the moves (n, 2): px of `render`."""
    places, hand = [], env.hand
    for move in moves:
        hand = moved(hand, move)
        places.append(hand * ZOOM)
    return places


def length(way):
    return float(np.hypot(*way))


def moved(hand, move):
    """Where the hand (2,) is after a move (2,): a longer one than STEP is cut, and the board has an edge."""
    move = np.asarray(move, np.float64)
    return np.clip(hand + move * min(1, STEP / max(length(move), 1e-12)), 0, 1)


def picture(hands, places, colours, size=SIZE):
    """
    hands (T, 2), places (2, 2), colours (2,) -> (T, 3, size, size) uint8. Edges are soft: a pixel takes the
    colour as far as it is covered, so that even 16 px show where a disc is to a part of a pixel.
    """
    def cover(places, radius):                                       # (..., 2) -> (..., 1, size, size)
        y, x = np.mgrid[:size, :size] + 0.5                          # px, of the middles of the pixels
        at = np.asarray(places)[..., None, None, :] * size
        away = np.hypot(x - at[..., 0], y - at[..., 1])
        return (radius * size + 0.5 - away).clip(0, 1)[..., None, :, :]
    palette = np.array([*COLOURS.values()], float)
    layers = [*zip(cover(places, RADIUS), palette[colours]), (cover(hands, HAND), np.array(WHITE))]
    image = np.array(BOARD, float)[:, None, None]
    for share, colour in layers:                                     # the hand is on top
        image = image * (1 - share) + colour[:, None, None] * share
    return np.rint(image).astype(np.uint8)


class Discs(gymnasium.Env):
    metadata = {'render_modes': ['rgb_array'], 'render_fps': FPS}
    render_mode = 'rgb_array'
    cap = CAP

    def __init__(self, name):
        self.name, self.over = name, True
        box = gymnasium.spaces.Box
        self.action_space = box(-STEP, STEP, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({
            'image.top': box(0, 255, (3, SIZE, SIZE), np.uint8), 'state': box(0, 1, (2,), np.float32),
            'task': gymnasium.spaces.Discrete(len(SENTENCES))})

    def reset(self, seed=None, options=None):
        self.hand, self.places, self.colours = self.deal(seed)
        rng = self.np_random
        mine, other = (int(colour) for colour in self.colours)
        self.goal = self.places[0]
        if self.name == 'constant':
            self.task = CONSTANT
        elif self.name == 'held_out':
            self.task = HELD_OUT[mine]
        elif self.name in SENTENCES:
            self.task = SENTENCES.index(self.name)
            there = self.places[self.colours == self.task // len(WORDINGS)]
            self.goal = there[0] if len(there) else np.full(2, np.inf)
        else:
            self.task = sentence(other if self.name == 'other' else mine, rng)
        self.steps, self.over = 0, False
        return self.observation(), self.info()

    def deal(self, seed=None):
        """hand, places, colours of this seed, or of the next board."""
        super().reset(seed=seed)
        return board(self.np_random)

    def observation(self):
        image = picture(self.hand[None], self.places, self.colours)[0]
        return {'image.top': image, 'state': self.hand.astype(np.float32),
                'task': np.array(self.task, np.int32)}

    def info(self):
        away = length(self.hand - self.goal)
        return {'won': away < NEAR, 'away': away, 'sentence': SENTENCES[self.task]}

    def step(self, action):
        reward, terminated, truncated, info = self.advance(action)
        return self.observation(), reward, terminated, truncated, info

    def advance(self, action):
        """-> reward, terminated, truncated, info. Only the last of 40 steps is rewarded."""
        assert not self.over, 'no episode yet, or it is over: reset first'
        assert np.isfinite(action).all(), f'action {action} is not finite'
        self.hand = moved(self.hand, action)
        self.steps += 1
        self.over = self.steps >= self.cap
        info = self.info()
        return float(self.over and info['won']), False, self.over, info

    def render(self):
        """(256, 256, 3) uint8."""
        return picture(self.hand[None], self.places, self.colours, ZOOM)[0].transpose(1, 2, 0)


# ---- players that learned nothing ----

def spots(image):
    """{colour: place (2,)} of the discs in a picture (3, H, W): where one channel is above the others."""
    image = image.astype(float)
    i = (np.arange(image.shape[1]) + 0.5) / image.shape[1]
    found = {}
    for channel, colour in enumerate(COLOURS):                       # red, green, blue, as channels are
        weight = (image[channel] - np.delete(image, channel, 0).max(0)).clip(0)
        if weight.any():
            found[colour] = np.array([weight.sum(0) @ i, weight.sum(1) @ i]) / weight.sum()
    return found


def called(obs, rng):
    """The place of the disc whose colour is in the sentence; of any disc if none has it."""
    words, seen = SENTENCES[obs['task']].split(), spots(obs['image.top'])
    return next((place for colour, place in seen.items() if colour in words), anywhere(obs, rng))


def anywhere(obs, rng):
    """The place of any disc."""
    return rng.choice([*spots(obs['image.top']).values()])


def rivals():
    """
    {who: (name, seed) -> 1 if won}: who looks for the colour of the sentence, who ignores it, who does
    nothing. Each chooses a place at first and goes there.
    """
    players = {'listens': called, 'random': anywhere, 'still': lambda obs, rng: obs['state']}
    return {who: partial(played, choose) for who, choose in players.items()}


def played(choose, name, seed):
    """One episode of a player that goes to choose(obs, rng), where obs is what it saw at first."""
    # a stream of its own, because the board is drawn from the seed itself
    env, rng, over = make_env(name), np.random.default_rng([seed, 1]), False
    place = choose(env.reset(seed=seed)[0], rng)
    while not over:
        _, _, over, info = env.advance(place - env.hand)
    return float(info['won'])
