"""
A terminal as a screen: pictures in half-blocks and true colour, keys one by one.

    with Terminal() as terminal:            takes the screen, and gives it back however the program ends
        terminal.draw(picture, lines)
        terminal.key()
"""
import os
import select
import signal
import sys

import numpy as np

ARROWS = {'A': 'k', 'B': 'j', 'C': 'l', 'D': 'h'}        # ESC [ A, or ESC O A


class Terminal:
    """Takes the screen and gives it back, however the program ends."""

    def __enter__(self):
        import termios
        import tty
        self.fd, self.rest = sys.stdin.fileno(), b''
        self.before = termios.tcgetattr(self.fd)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))      # through __exit__
        tty.setcbreak(self.fd)
        self.write('\x1b[?1049h\x1b[?25l')                # another screen, no cursor
        return self

    def __exit__(self, *problem):
        import termios
        self.write('\x1b[0m\x1b[?25h\x1b[?1049l')
        termios.tcsetattr(self.fd, termios.TCSADRAIN, self.before)

    def write(self, text):
        os.write(sys.stdout.fileno(), text.encode())

    def key(self):
        """The next key; arrows are h j k l. Waits."""
        while True:
            if not self.rest:
                select.select([self.fd], [], [])
                self.rest = os.read(self.fd, 64)
                if not self.rest:
                    return 'q'                           # the terminal is gone
            if self.rest[:2] in (b'\x1b[', b'\x1bO') and len(self.rest) > 2:
                found, self.rest = self.rest[2:3].decode('ascii', 'replace'), self.rest[3:]
                if found in ARROWS:
                    return ARROWS[found]
            else:
                found, self.rest = self.rest[:1].decode('ascii', 'replace'), self.rest[1:]
                return found

    def draw(self, picture, lines):
        self.write('\x1b[H' + half_blocks(picture) + ''.join(f'\x1b[0m{line}\x1b[K\r\n' for line in lines))


def half_blocks(picture):
    """(H, W, 3) -> text: two pixels in a cell, the upper in front; colours only where they change."""
    H, W, _ = picture.shape
    picture = np.pad(picture, ((0, H % 2), (0, 0), (0, 0)))
    lines = []
    for y in range(0, len(picture), 2):
        line, last = [], None
        for top, bottom in zip(picture[y].tolist(), picture[y + 1].tolist()):
            if (top, bottom) != last:
                line.append('\x1b[38;2;{};{};{};48;2;{};{};{}m'.format(*top, *bottom))
                last = top, bottom
            line.append('\u2580')
        lines.append(''.join(line) + '\x1b[0m\x1b[K')
    return '\r\n'.join(lines) + '\r\n'


def fitting(picture, columns, rows):
    """How many cells wide a pixel may be; one line where not even one fits."""
    H, W, _ = picture.shape
    scale = min(columns // W, 2 * (rows - 3) // H)
    if scale < 1:
        sys.exit(f'the terminal has {columns} x {rows} cells; want {W} x {(H + 1) // 2 + 3}, or --keys=...')
    return scale
