"""
play.py: the same dream as one rollout, in a pseudo-terminal and without one; a terminal that is given back.
"""
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, one_line, script

import checkpoint
from data.loader import read_meta
from draw import terminal
from play import Game, noise_of, world_of

LEAVES = '\x1b[?1049l'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """-> folder with data/wall_pixels of six episodes and out/, a net after one step."""
    folder = tmp_path_factory.mktemp('play')
    script('data/wall/prepare.py', f'--out={folder}/data/wall_pixels', '--limit=6', '--val=0.34',
           '--workers=1')
    script('train.py', 'config/wall_cpu.py', f'--data_dir={folder}/data', f'--out_dir={folder}/out',
           '--max_steps=1', '--hidden=16', '--heads=2', '--depth=2', '--batch_size=2', '--val_batches=1')
    return folder


@pytest.fixture
def game(run):
    model, _ = checkpoint.load(f'{run}/out')
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.05 * torch.randn_like(p))
    meta = read_meta(f'{run}/data/wall_pixels')
    return Game(model, meta, *world_of(meta, f'{run}/data/wall_pixels'), 3)


def test_twenty_moves_are_one_rollout(game):
    """To 1e-5 of the range per frame, before rounding; and the truth is that of the world."""
    moves = 'llkkjjhhllkjhlkjhlkj'
    first = torch.as_tensor(game.true).float()[None, None]
    for key in moves: assert game.press(key)
    cfg, keys = game.model.cfg, game.meta['play_keys']
    action = torch.tensor([[[keys[key] * cfg.frame_skip for key in moves]]], dtype=torch.float32)
    noise = torch.stack([noise_of(cfg, 3, i) for i in range(21)])
    whole = game.model.rollout({'video': first, 'action': torch.zeros(1, 0, 8)}, action, noise[None, 1:, 0],
                               noise[None, :, 1])['video'][0, 0]
    assert (whole - game.model.decode(game.x[1:])).abs().max() <= 1e-5 * 255
    assert (whole[0] - whole[-1]).abs().max() > 1
    assert len(game.film) == 21 and game.film[0].shape == (32, 32 + 4 + 32, 3)
    assert np.array_equal(game.film[-1][:, :32], game.true)


def test_looking_steps_and_a_new_start(game):
    game.press('l')
    assert len(game.x) == 2 and not np.array_equal(game.dream().round(), game.true)
    game.press(' ')
    assert np.array_equal(game.dream().round(), game.true) and len(game.actions) == 0
    assert '0 moves since the last look, dream = truth, 1 step a frame' in game.status()
    game.press('l')
    assert '1 move since the last look, dream ' in game.status() and ' dB, ' in game.status()
    game.press(' ')
    steps = game.model.cfg.sample_steps
    game.press('+')
    assert game.model.cfg.sample_steps == steps + 1
    for _ in range(4): game.press('-')
    assert game.model.cfg.sample_steps == 1
    before = game.true
    game.press('r')
    assert not np.array_equal(game.true, before) and game.seed == 4
    assert not game.press('q')


def test_planning_walks_to_the_goal(game):
    """With the world in the model's place, p comes back to where g was pressed."""
    from data.wall.env import Simulator
    game.press('p')
    assert 'no goal yet' in game.status()
    game.press('g')
    goal = game.true

    def place(picture):                                      # the dot: the brightest pixels' centre
        y, x = np.nonzero(picture[..., 0] > 200)
        return np.array([x.mean(), y.mean()])
    game.press('p')
    assert game.said == 'this is the goal' and len(game.film) == 1   # nothing to plan
    for key in 'kkk': game.press(key)
    assert 'goal set' in game.status()
    far = np.hypot(*(place(game.true) - place(goal)))
    truth = Simulator()

    def rollout(context, action, **kw):
        state = torch.as_tensor(place(context['video'][0, -1].numpy()))[None, None].float()
        return {'video': truth.rollout({'state': state}, action)['video']}
    game.model.rollout, shown = rollout, []
    game.show = lambda: shown.append(1)
    game.press('p')
    near = np.hypot(*(place(game.true) - place(goal)))
    assert far > 3 and near < 2 and len(shown) == 1 + 5      # that it plans, and five moves
    assert re.fullmatch(r'5 moves made, \d+.\d dB to the goal; p plans on', game.said)
    game.stopped = lambda: True
    game.press('p')
    assert game.said == 'stopped after 0 moves'
    game.press('r')
    game.press('p')
    assert 'no goal yet' in game.said                        # it was a picture of what was before
    for _ in range(60): game.press('+')
    assert game.model.cfg.sample_steps == 50
    assert terminal.fitting(game.film[-1], 80, 3)[0] == 0


def test_half_blocks_hold_the_picture():
    """Decoded again, colours and all, odd height included; a colour is said once while it lasts."""
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture[:, 3] = picture[:, 2]
    text = terminal.half_blocks(picture)
    rows = []
    for line in text.split('\r\n')[:-1]:
        row, colour = [], None
        for code, block in re.findall(r'\x1b\[([0-9;]*)[mK]|(\u2580)', line):
            if code.startswith('38'): colour = [int(x) for x in code.split(';')]
            if block: row.append((colour[2:5], colour[7:10]))
        rows.append(row)
    decoded = np.array(rows).transpose(0, 2, 1, 3).reshape(6, 7, 3)
    assert np.array_equal(decoded[:5], picture) and not decoded[5].any()
    assert text.count('38;2') == 3 * 6


class Pseudo:
    """play.py in a pseudo-terminal."""

    def __init__(self, run, *flags, columns=80, rows=40, code=None, **more):
        master, slave = pty.openpty()
        env = os.environ | {'COLUMNS': str(columns), 'LINES': str(rows), 'OMP_NUM_THREADS': '1',
                            'TERM': 'xterm-256color'} | more
        command = [sys.executable, *(['-c', code] if code else ['play.py', f'--ckpt={run}/out', *flags])]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=slave, stdout=slave,
                                        stderr=subprocess.STDOUT, close_fds=True, start_new_session=True)
        os.close(slave)
        self.master, self.said = master, ''

    def until(self, words, seconds=60):
        """Read until `words` were said, or the end."""
        end = time.time() + seconds
        while words not in self.said and time.time() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                try: self.said += os.read(self.master, 65536).decode('utf-8', 'replace')
                except OSError: break                        # the other end is closed
            elif self.process.poll() is not None: break
        assert words in self.said, self.said[-2000:]

    def send(self, keys): os.write(self.master, keys.encode())


def test_in_a_terminal(run, tmp_path):
    """Arrows of both kinds, a key that means nothing, looking, leaving; the screen is given back."""
    screen = Pseudo(run, f'--out={tmp_path}/x.gif')
    screen.until('0 moves since the last look')
    began = time.time()
    for i, key in enumerate(('\x1b[C', '\x1bOA', 'h', '\x1b[1;5C', '\x1b[3~', 'zl'), 1):
        screen.send(key)                                     # Ctrl-right is an arrow, Delete is nothing
        count = i - (i > 4)
        screen.until(f'{count} move{"s" * (count > 1)} since')
    assert time.time() - began < 10
    screen.send(' ')
    screen.send('q')
    screen.until('x.gif: 7 pictures')
    assert screen.process.wait(30) == 0 and LEAVES in screen.said and '\x1b[?25h' in screen.said
    assert len(imageio.imread(tmp_path / 'x.gif')) == 7


def test_ten_frames_a_second_of_the_demo(tmp_path):
    """
    The demo's network at its default steps beside the real game, 152 x 39 cells, one thread: from a key to
    its picture on the screen. The best of four tens, because the tests may not be alone on the machine.
    """
    script('data/minihack/prepare.py', '--level=boulders', f'--out={tmp_path}/data/minihack_boulders',
           '--episodes=4', '--moves=8', '--val=0.5', '--workers=1')
    script('train.py', 'config/minihack_wm_cpu.py', f'--data_dir={tmp_path}/data',
           f'--out_dir={tmp_path}/out', '--max_steps=1', '--batch_size=2', '--val_batches=1')
    screen, rates = Pseudo(tmp_path, columns=160, rows=50), []
    screen.until('0 moves since the last look')
    for ten in range(4):
        began = time.time()
        for i in range(10 * ten + 1, 10 * ten + 11):
            screen.send('hjkl'[i % 4])
            screen.until(f'{i} move{"s" * (i > 1)} since')
        rates.append(10 / (time.time() - began))
    screen.send('q')
    screen.until('pictures')
    print('frames per second', [round(rate, 1) for rate in rates])
    assert max(rates) >= 10, rates


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_gives_the_screen_back(run, number, code):
    screen = Pseudo(run)
    screen.until('0 moves since the last look')
    screen.process.send_signal(number)
    assert screen.process.wait(30) == code
    screen.until(LEAVES)


def test_a_signal_just_before_the_wait_ends_it():
    """
    Between Python's last look at its signals and the wait for a key lies a gap: a handler whose signal comes
    in there would wait for a key, too. A byte in a pipe ends that wait.
    """
    screen = Pseudo('', code='import os, select, signal\n'
                             'from draw.terminal import Terminal\n'
                             'with Terminal() as terminal:\n'
                             '    signal.signal(signal.SIGUSR1, lambda *_: None)\n'
                             '    os.kill(os.getpid(), signal.SIGUSR1)\n'
                             '    ready = select.select([terminal.fd, terminal.woken], [], [], 20)[0]\n'
                             '    print("woken", ready == [terminal.woken], terminal.read(0.1))\n'
                             '    signal.set_wakeup_fd(-1)\n'
                             '    os.kill(os.getpid(), signal.SIGUSR1)\n'
                             '    print("without", select.select([terminal.woken], [], [], 0.1)[0])\n')
    screen.until('without []')
    assert 'woken True False' in screen.said
    assert screen.process.wait(30) == 0


def test_a_mistake_gives_the_screen_back():
    """Then its traceback can be read, on a terminal that echoes and waits for whole lines again."""
    screen = Pseudo('', code='from draw.terminal import Terminal\n'
                             'with Terminal() as terminal:\n'
                             '    terminal.draw("", None, ["taken"])\n'
                             '    raise ValueError("a mistake")\n')
    screen.until('ValueError: a mistake')
    assert screen.said.index('taken') < screen.said.index(LEAVES) < screen.said.index('Traceback')
    assert screen.process.wait(30) == 1
    flags = termios.tcgetattr(screen.master)[3]
    assert flags & termios.ECHO and flags & termios.ICANON


def test_a_terminal_that_is_too_small(run):
    screen = Pseudo(run, columns=60, rows=20)
    screen.until('want 68 x 20 cells, or --keys=...; the terminal has 60 x 20')
    assert screen.process.wait(30) == 1


def test_a_terminal_without_pictures(run):
    screen = Pseudo(run, TERM='dumb')
    screen.until("TERM = 'dumb': this terminal shows no pictures; want one with colours, or --keys=...")
    assert screen.process.wait(30) == 1 and '\x1b[' not in screen.said


def test_a_window_that_changes_its_size(run, tmp_path):
    """It is drawn anew at once; while it is too small keys move nothing, and q still leaves."""
    code = ('import os, sys\nfor key in ("COLUMNS", "LINES"): os.environ.pop(key)\n'
            f'sys.argv = ["play.py", "--ckpt={run}/out", "--out={tmp_path}/x.gif"]\n'
            'import runpy\nrunpy.run_path("play.py", run_name="__main__")\n')
    screen = Pseudo(run, code=code)
    def size(rows, columns):
        fcntl.ioctl(screen.master, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
        screen.process.send_signal(signal.SIGWINCH)          # it is not this terminal's own group
    size(40, 80)
    screen.until('0 moves since the last look')
    screen.send('l')
    screen.until('1 move since')
    size(20, 60)
    screen.until('the terminal has 60 x 20')
    screen.send('lll')
    time.sleep(1)                                            # nothing tells that they were taken
    screen.said = ''
    size(50, 100)
    screen.until('1 move since')
    assert '\x1b[2J' in screen.said and 'moves since' not in screen.said
    screen.send('q')
    screen.until('2 pictures')


def test_keys_write_the_gif(run):
    out, _ = script('play.py', f'--ckpt={run}/out', '--keys=llk jz'.replace('z', 'j'))
    path = out.split(':')[0]
    again, _ = script('play.py', f'--ckpt={run}/out', '--keys=q')        # a film of one picture, beside it
    assert again == f'{run}/out/samples/played_2.gif: 1 picture\n' and Path(again.split(':')[0]).is_file()
    assert path == f'{run}/out/samples/played.gif' and out.endswith(': 7 pictures\n')
    assert len(imageio.imread(path)) == 7


@pytest.mark.parametrize('flags, line', [
    ([], 'this is no terminal; --keys=llkk plays without one'),
    (['--keys=lxlz'], "--keys: xz means nothing here; want hjkl or ' +-rgpq'"),
    (['--keys=l', '--fps=0'], 'fps = 0'), (['--keys=l', '--seed=-1'], 'seed = -1'),
    (['--keys=l', '--out=x.png'], 'x.png')])
def test_bad_input_is_one_line(run, flags, line):
    _, err = script('play.py', f'--ckpt={run}/out', *flags, code=1)
    assert line in one_line(err)


def test_a_model_of_latents(run, tmp_path):
    """There is nothing to show without the codec that made them."""
    shutil.copytree(run / 'out', tmp_path / 'out')
    path, = Path(tmp_path, 'out').glob('step_*/meta.json')
    meta = json.loads(path.read_text())
    meta['model_config']['input'] = 'latent'
    path.write_text(json.dumps(meta))
    _, err = script('play.py', f'--ckpt={tmp_path}/out', '--keys=l', code=1)
    assert 'this model reads latent, action; play.py wants one that dreams pixels' in one_line(err)


def test_data_made_before_there_were_keys(run, tmp_path):
    """One line; without a live world the dream alone is shown."""
    shutil.copytree(run / 'data' / 'wall_pixels', tmp_path / 'wall_pixels')
    path = Path(tmp_path, 'wall_pixels', 'meta.json')
    meta = json.loads(path.read_text())
    del meta['env']
    path.write_text(json.dumps(meta))
    play = 'play.py', f'--ckpt={run}/out', f'--data_dir={tmp_path}', f'--out={tmp_path}/x.gif', '--keys=ll'
    _, err = script(*play)
    assert 'names no world that can be played: the dream alone' in err
    assert imageio.imread(tmp_path / 'x.gif').shape[1:3] == (18 + 320, 320)         # words above
    del meta['play_keys']
    path.write_text(json.dumps(meta))
    _, err = script(*play, code=1)
    assert 'has no play_keys or no action_kind; make the data anew' in one_line(err)
