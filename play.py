"""
Walk through a dream: the real world on the left, what the model imagines on the right.

    python play.py --ckpt=out/minihack_wm_cpu                 in a terminal of at least 80 x 24, with colours
    python play.py --ckpt=out/minihack_wm_cpu --keys=llkkjj   without one; writes the same GIF

    arrows, or h j k l       move both          space     look again: the dream gets the true picture
    + -                      denoising steps    r         another start
    g                        this picture is the goal     p     plan in the dream, and walk there
    q                        save a GIF and leave

The dream sees the true picture at the start and when you look, and your moves; all else is imagined. Under
the pictures: moves since the last look, how near the dream is to the truth in dB, pictures per second. Where
nothing can be played live, as with recorded video, there is the dream alone.
"""
from configurator import configure, polite_exit

polite_exit()

import os
import shutil
import sys
import time

import numpy as np
import torch

import checkpoint
import contract
from data.loader import Store, read_meta, simulator
from draw.common import blow_up, check_out, gif
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
GAP = 4                                                  # px between the two worlds


class Game:
    """Both worlds, and what has been played. start_of(seed) -> picture; step(action) -> picture or None."""

    def __init__(self, model, meta, start_of, step, seed):
        self.model, self.meta, self.start_of, self.step, self.seed = model, meta, start_of, step, seed
        self.film, self.goal, self.steps, self.said = [], None, model.cfg.sample_steps, ''
        self.show, self.took, self.drawing = lambda: None, 0.0, 0.0                  # s
        self.restart()

    def restart(self):
        self.true = self.start_of(self.seed)
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
        H = cfg.n_context if cfg.skip else min(T, cfg.num_frames - 1)
        noise = torch.stack([noise_of(cfg, self.seed, i) for i in range(T - H, T + 1)]).to(self.x.device)
        action = self.model.fold_action(self.actions[None, T - H:])
        return self.model.next_frames(self.x[None, None, -H:], noise[None, :-1, 1], noise[None, -1:, 0],
                                      action[None], False, 1, None)[0, 0]

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
            self.steps = min(max(1, self.steps + (1 if key == '+' else -1)), self.model.cfg.timesteps)
            self.model.cfg.sample_steps = self.steps
        elif key == 'r':
            self.seed += 1
            self.restart()
        elif key == 'g':
            shown = self.true if self.step else self.dream().round().byte().cpu().numpy()
            self.goal, self.said = shown.copy(), 'this picture is the goal'
        elif key == 'p' and self.goal is None:
            self.said = 'no goal yet: g makes the present picture the goal'
        elif key == 'p':
            self.said = 'planning ...'
            self.show()
            self.said = ''
            if self.step:
                self.look()
            start = {'video': self.dream()[None, None], 'action': self.actions[None]}
            goal = self.x.new_tensor(self.goal)[None]
            for action in moves_to(self.model, self.meta, start, goal, self.seed):
                if self.step and np.array_equal(self.true, self.goal):
                    break
                self.move(action)
                self.show()
        return key != 'q'

    def shoot(self):
        self.film.append(self.picture())

    def picture(self):
        """(H, W, 3) uint8: truth, gap, dream; the dream alone where nothing is live."""
        dream = self.dream().round().byte().cpu().numpy()
        sides = [self.true, dream] if self.step else [dream]
        sides = [np.broadcast_to(side, (*side.shape[:2], 3)) for side in sides]
        between = np.zeros((len(dream), GAP, 3), np.uint8)
        return np.concatenate([sides[0], *(x for side in sides[1:] for x in (between, side))], 1)

    def status(self):
        rate = 1 / max(1e-3, self.took + self.drawing)
        words = [f'{len(self.actions)} moves since the last look', f'{self.steps} steps', f'{rate:.0f} fps']
        if self.step:
            error = (self.dream().cpu().numpy() - self.true.astype(np.float32)) ** 2
            words.insert(1, f'{10 * np.log10(255 ** 2 / max(error.mean(), 1e-3)):.1f} dB')
        return self.said or ', '.join(words)


def noise_of(cfg, seed, index):
    """What frame `index` of a dream starts from, and what is added to it as context: (2, C, H, W)."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return torch.randn(2, cfg.channels, cfg.height, cfg.width, generator=draw)


def walk(game):
    """In the terminal, until q."""
    scale, wanted = fitting(game.film[-1], *shutil.get_terminal_size())
    if scale < 1:
        sys.exit(wanted)
    moves = ''.join(game.meta['play_keys'])
    menu = f'arrows or {moves} move  space look  + - steps  g goal  p plan  r new  q save'
    with Terminal() as terminal:
        def show():
            began = time.perf_counter()
            scale, wanted = fitting(game.film[-1], *shutil.get_terminal_size())      # it may have changed
            picture = blow_up(game.film[-1], scale, False) if scale else None
            terminal.draw(picture, [game.status(), menu] if scale else [wanted])
            game.drawing = time.perf_counter() - began
        game.show = show
        show()
        while game.press(terminal.key()):
            show()


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


def main():
    config, _ = configure(globals())
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    if not keys and not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.exit('this is no terminal; --keys=llkk plays without one')
    if not 0 <= seed < 2**31 or not 1 <= fps <= 50:
        sys.exit(f'seed = {seed}, fps = {fps}: want a seed from 0 on, fps from 1 to 50')
    model, run = checkpoint.load(ckpt, True, which, device)
    reads = contract.load(run['model']).windows(model.cfg)
    if 'video' not in reads or not hasattr(model, 'rollout'):
        sys.exit(f'{ckpt}: this model reads {", ".join(reads)}; play.py wants one that dreams pixels')
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
    path = out or os.path.join(os.path.dirname(os.path.normpath(checkpoint.find(ckpt, which))), 'samples',
                               'played.gif')
    check_out(path, ('.gif',))
    game = Game(model, meta, *world_of(meta, folder), seed)
    for key in keys:
        if not game.press(key):
            break
    if not keys:
        walk(game)
    scale = max(1, 320 // game.film[0].shape[1])
    gif(path, np.stack([blow_up(picture, scale, False) for picture in game.film]), 1 / fps)
    print(f'{path}: {len(game.film)} pictures')


if __name__ == '__main__':
    main()
