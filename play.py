"""
Walk through a dream: the real world on the left, what the model imagines on the right.

    python play.py --ckpt=out/minihack_wm_cpu                 in a terminal of at least 80 x 24, with colours
    python play.py --ckpt=out/minihack_wm_cpu --keys=llkkjj   without one; writes the same GIF

    arrows, or h j k l     left, down, up, right     space   look again: the dream gets the true picture
    g                      the true picture is the goal      p       plan in the dream, and walk there
    + -                    denoising steps of a frame        r       another start
    q                      save a GIF and leave              Ctrl-C  leave

The dream sees the true picture at the start and when you look, and your moves; all else is imagined. Under
the pictures: moves since the last look, how near the dream is to the truth (PSNR in dB), denoising steps,
pictures per second. A plan goes a few moves far; in the rooms the planner looks again after each of them. Any
key stops it. Where nothing can be played live, as with recorded video, there is the dream alone.
"""
from configurator import configure, polite_exit

polite_exit()

import os
import shutil
import signal
import sys
import time

import numpy as np
import torch

import checkpoint
import contract
from data.loader import Store, read_meta, simulator
from draw.common import blank, blow_up, check_out, gif, words
from draw.terminal import Terminal, fitting
from protocols.common import fits
from protocols.goals import moves_to

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
dataset = ''                  # data folder that says which world it is; '' = the checkpoint's
data_dir = ''                 # where data folders lie; '' = the checkpoint's
keys = ''                     # play these instead of asking a terminal
seed = 0                      # of the start, of noise and of plans
fps = 4                       # of the GIF
device = 'auto'               # auto = cuda if there is one, else cpu
out = ''                      # .gif; '' = samples/played.gif in the run's folder

OTHER = ' +-rgpq'
NAMES = 'world', 'dream'
PLAN = {'horizon': 5, 'n_samples': 64, 'n_iters': 6}     # where the world does not say how to plan in it
GAP, GREY = 4, 96                                        # px between the two worlds, and their colour
MOST_STEPS = 50                                          # of denoising: more looks like a program that hangs
PACE = 0.25                                              # s: moves of a plan are to be seen


class Game:
    """Both worlds, and what has been played. start_of(seed) -> picture; step(action) -> picture or None."""

    def __init__(self, model, meta, start_of, step, seed):
        self.model, self.meta, self.start_of, self.step, self.seed = model, meta, start_of, step, seed
        self.film, self.goal, self.said = [], None, ''
        self.most = max(MOST_STEPS, model.cfg.sample_steps)
        self.show, self.wait, self.stopped = lambda: None, lambda: None, lambda: False
        self.took, self.drawing = 0.0, 0.0                                           # s
        self.restart()

    def restart(self):
        self.true, self.goal = self.start_of(self.seed), None        # the goal was a picture of another room
        self.look()

    def look(self):
        """From here on all is imagined. x (T, C, H, W) stays in model units, because decoding clamps."""
        device = next(self.model.parameters()).device
        self.x = self.model.encode({'video': torch.as_tensor(self.true, device=device)[None, None]})[0]
        self.actions = torch.zeros(0, self.model.cfg.frame_skip * self.model.cfg.action_dim, device=device)
        self.shoot()

    def move(self, action):
        """One frame of the model: the action is held for frame_skip moves."""
        began, k = time.perf_counter(), self.model.cfg.frame_skip
        if self.step:
            for _ in range(k):
                self.true = self.step(np.asarray(action, np.float32))
        self.actions = torch.cat([self.actions, self.x.new_tensor(action).repeat(k)[None]])
        self.x = torch.cat([self.x, self.imagine()])
        self.shoot()
        self.took = time.perf_counter() - began

    @torch.no_grad()
    def imagine(self):
        """The next frame (1, C, H, W). Each frame has its own noise, so that this equals one long rollout."""
        cfg, T = self.model.cfg, len(self.x)
        fixed = cfg.skip or cfg.context_t < 0                        # as in Model.rollout
        H = cfg.n_context if fixed else min(T, cfg.num_frames - 1)
        noise = torch.stack([noise_of(cfg, self.seed, i) for i in range(T - H, T + 1)]).to(self.x.device)
        action = self.model.fold_action(self.actions[None, T - H:])
        fresh = torch.Generator(self.x.device).manual_seed(self.seed * 1_000_003 + T)      # what eta adds
        return self.model.next_frames(self.x[None, None, -H:], noise[None, :-1, 1], noise[None, -1:, 0],
                                      action[None], False, 1, fresh)[0, 0]

    def dream(self):
        """The last frame (H, W, C), 0..255, not rounded."""
        return self.model.decode(self.x[-1])

    def press(self, key):
        """False: the player wants to leave."""
        self.said = ''
        if key in self.meta['play_keys']:                # '' is no key: a sequence that means nothing
            self.move(self.meta['play_keys'][key])
        elif key == ' ':
            self.look()
        elif key and key in '+-':
            steps = self.model.cfg.sample_steps + (1 if key == '+' else -1)
            self.model.cfg.sample_steps = min(max(1, steps), self.most, self.model.cfg.timesteps)
        elif key == 'r':
            self.seed += 1
            self.restart()
        elif key == 'g':
            self.goal, self.said = self.now().copy(), 'this picture is the goal; walk away, then p'
        elif key == 'p':
            self.said = self.travel()
        return key != 'q'

    def now(self):
        """The true picture, or the dreamed one where that is all there is."""
        return self.true if self.step else self.dream().round().byte().cpu().numpy()

    def travel(self):
        """Plan and walk, as often as this world's planner may look -> what came of it."""
        if self.goal is None:
            return 'no goal yet: g makes the present picture the goal'
        own = getattr(simulator(self.meta), 'Tasks', None)
        looks, pace = (own.looks, own.pace) if own and self.step else (1, None)
        budget = {key: own.OWN[key] if own else value for key, value in PLAN.items()}
        goal, made = self.x.new_tensor(self.goal)[None], 0
        for look in range(looks):
            if np.array_equal(self.now(), self.goal):
                break
            self.said = f'planning ...   {made} moves made, any key stops'
            self.show()
            if self.step:
                self.look()
            start = {'video': self.dream()[None, None], 'action': self.actions[None, :0]}
            plan = moves_to(self.model, self.meta, start, goal, self.seed + look, **budget)[:pace]
            self.said = ''
            for action in plan:
                if self.stopped():
                    return f'stopped after {made} moves'
                if np.array_equal(self.now(), self.goal):
                    break
                self.move(action)
                made += 1
                self.show()
                self.wait()
        if np.array_equal(self.now(), self.goal):
            return f'the goal is reached, after {made} moves' if made else 'this is the goal'
        return f'{made} moves made, {psnr(self.now(), self.goal):.1f} dB to the goal; p plans on'

    def shoot(self):
        self.film.append(self.picture())

    def picture(self):
        """(H, W, 3) uint8: truth, gap, dream; the dream alone where nothing is live."""
        dream = self.dream().round().byte().cpu().numpy()
        sides = [self.true, dream] if self.step else [dream]
        sides = [np.broadcast_to(side, (*side.shape[:2], 3)) for side in sides]
        between = np.full((len(dream), GAP, 3), GREY, np.uint8)
        return np.concatenate([sides[0], *(x for side in sides[1:] for x in (between, side))], 1)

    def status(self):
        n, steps = len(self.actions), self.model.cfg.sample_steps
        told = [f'{n} move{"s" * (n != 1)} since the last look', f'{steps} step{"s" * (steps != 1)} a frame']
        if self.step:
            near = psnr(self.dream().cpu().numpy(), self.true)
            told.insert(1, f'dream {near:.1f} dB' if n else 'dream = truth')
        if self.took:
            told.append(f'{1 / (self.took + self.drawing):.0f} fps')
        told += ['goal set'] * (self.goal is not None)
        return self.said or ', '.join(told)


def psnr(a, b):
    """Of pictures, dB; no more than 78, an error of 1e-3."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean()
    return 10 * np.log10(255 ** 2 / max(error, 1e-3))


def noise_of(cfg, seed, index):
    """What frame `index` of a dream starts from, and what is added to it as context: (2, C, H, W)."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return torch.randn(2, cfg.channels, cfg.height, cfg.width, generator=draw)


def walk(game):
    """In the terminal, until q."""
    def fit(): return fitting(game.film[-1], *shutil.get_terminal_size())            # it may change

    scale, wanted = fit()
    if scale < 1:
        sys.exit(wanted)
    moves = ''.join(sorted(game.meta['play_keys']))
    menu = f'arrows or {moves} move  space look  + - steps  g goal  p plan  r new  q save'
    with Terminal() as terminal:
        def show(clear=False):
            began = time.perf_counter()
            scale, wanted = fit()
            if scale:
                picture = blow_up(game.film[-1], scale, False)
                terminal.draw(title(game, scale), picture, [game.status(), menu], clear)
            else:
                terminal.draw('', None, [wanted], clear)
            game.drawing = time.perf_counter() - began
        signal.signal(signal.SIGWINCH, lambda *_: show(True))
        game.show, game.stopped, game.wait = show, terminal.waiting, lambda: time.sleep(PACE)
        show()
        while True:
            key = terminal.key()
            if fit()[0] < 1 and key != 'q':              # what is not seen is not played
                continue
            if not game.press(key):
                break
            if key == 'p':
                terminal.forget()
            show()


def title(game, scale=1):
    """Which side is which, above the pictures."""
    width = game.dream().shape[1] * scale
    sides = [NAMES[0].center(width), ' ' * GAP * scale] if game.step else []
    return ''.join([*sides, NAMES[1].center(width)])


def world_of(meta, folder):
    """start_of(seed), step of the live world; or a recorded first frame and None where nothing is live."""
    live = simulator(meta)
    if hasattr(live, 'live'):
        world = live.live(meta)
        return world.reset, world.step
    store = Store(folder, 'val', {'video': range(1)})
    print(f'{folder}/meta.json names no world that can be played: the dream alone, from recorded frames',
          file=sys.stderr)
    return lambda seed: store.windows_at([seed * 7919 % len(store)])['video'][0, 0].numpy(), None


def unused(folder):
    """played.gif, played_2.gif, ...: what was played before stays."""
    path, n = os.path.join(folder, 'played.gif'), 1
    while os.path.exists(path):
        n += 1
        path = os.path.join(folder, f'played_{n}.gif')
    return path


def main():
    config, _ = configure(globals())
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    if not 0 <= seed < 2**31 or not 1 <= fps <= 50:
        sys.exit(f'seed = {seed}, fps = {fps}: want a seed from 0 on, fps from 1 to 50')
    model, run = checkpoint.load(ckpt, True, which, device)
    reads = contract.load(run['model']).windows(model.cfg)
    if 'video' not in reads or not hasattr(model, 'rollout'):
        sys.exit(f'{ckpt}: this model reads {", ".join(reads)}; play.py wants one that dreams pixels')
    if not keys and not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.exit('this is no terminal; --keys=llkk plays without one')
    if model.cfg.n_context > 1:
        sys.exit(f'{ckpt}: n_context = {model.cfg.n_context}; play.py shows one true picture, and wants 1')
    folder = os.path.join(data_dir or run['config']['data_dir'], dataset or run['config']['dataset'])
    meta = read_meta(folder)
    fits(model.cfg, Store(folder, 'val', reads))
    if not meta.get('play_keys') or not meta.get('action_kind'):
        sys.exit(f'{folder}/meta.json has no play_keys or no action_kind; make the data anew')
    unknown = sorted(set(keys) - set(meta['play_keys']) - set(OTHER))
    if unknown:
        known = ''.join(meta['play_keys'])
        sys.exit(f'--keys: {"".join(unknown)} means nothing here; want {known} or {OTHER!r}')
    run_dir = os.path.dirname(os.path.normpath(checkpoint.find(ckpt, which)))
    path = out or unused(os.path.join(run_dir, 'samples'))
    check_out(path, ('.gif',))
    game = Game(model, meta, *world_of(meta, folder), seed)
    for key in keys:
        if not game.press(key):
            break
    if not keys:
        walk(game)
    scale = max(1, 320 // game.film[0].shape[1])
    width = game.dream().shape[1] * scale
    head = [words(name, 18, width) for name in (NAMES if game.step else NAMES[1:])]
    head = np.concatenate([head[0], *(x for side in head[1:] for x in (blank(18, GAP * scale), side))], 1)
    film = [np.concatenate([head, blow_up(picture, scale, False)]) for picture in game.film]
    gif(path, np.stack(film), 1 / fps)
    print(f'{path}: {len(game.film)} picture{"s" * (len(game.film) > 1)}')


if __name__ == '__main__':
    main()
