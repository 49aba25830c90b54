"""
A terminal as a screen: pictures in half-blocks and true colour, keys one by one.

    with Terminal() as terminal:            takes the screen, and gives it back however the program ends
        terminal.draw(title, picture, lines)
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
        if os.environ.get('TERM', '') in ('', 'dumb'):
            sys.exit(f'TERM = {os.environ.get("TERM", "")!r}: this terminal shows no pictures; want one with '
                     'colours, or --keys=...')
        self.fd, self.rest = sys.stdin.fileno(), b''
        sys.stdout.reconfigure(encoding='utf-8')
        self.before = termios.tcgetattr(self.fd)
        self.woken, self.wakes = os.pipe()               # a signal that comes just before a wait ends it too
        os.set_blocking(self.woken, False)
        os.set_blocking(self.wakes, False)
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))      # through __exit__
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)    # Ctrl-Z would leave the screen as it is
        try:
            tty.setcbreak(self.fd)
            self.write('\x1b[?1049h\x1b[?25l')            # another screen, no cursor
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *problem):
        import termios
        try:
            self.write('\x1b[0m\x1b[?25h\x1b[?1049l')
            termios.tcsetattr(self.fd, termios.TCSAFLUSH, self.before)   # keys still held down are forgotten
        except (OSError, termios.error):                 # the terminal is gone: nothing to give back
            pass
        signal.set_wakeup_fd(-1)
        os.close(self.woken)
        os.close(self.wakes)

    def write(self, text):
        sys.stdout.write(text)
        sys.stdout.flush()

    def read(self, seconds=None):
        """Is there a byte in `rest`, or does one come in time?"""
        while not self.rest:
            ready = select.select([self.fd, self.woken], [], [], seconds)[0]
            if self.woken in ready:
                os.read(self.woken, 64)                  # its handler has run by now, and has not left
                continue
            if not ready:
                return False
            try:
                self.rest = os.read(self.fd, 64) or b'q'
            except OSError:
                self.rest = b'q'                         # the terminal is gone
        return True

    def take(self):
        byte, self.rest = self.rest[:1].decode('ascii', 'replace'), self.rest[1:]
        return byte

    def key(self):
        """The next key; arrows are h j k l, other keys that send a sequence are ''. Waits."""
        self.read()
        byte = self.take()
        if byte != '\x1b' or not self.read(0.05):        # a sequence follows at once, a finger does not
            return byte
        if self.take() not in '[O':
            return ''
        while self.read(0.05):
            byte = self.take()
            if '@' <= byte <= '~':                       # numbers may stand before it: a modifier
                return ARROWS.get(byte, '')
        return ''

    def waiting(self):
        """Has a key been pressed that nobody asked for yet?"""
        return self.read(0)

    def forget(self):
        """Keys that were pressed in the meantime count for nothing."""
        import termios
        self.rest = b''
        termios.tcflush(self.fd, termios.TCIFLUSH)

    def draw(self, title, picture, lines, clear=False):
        """picture may be None; clear: first wipe out what a window of another size has left."""
        columns = os.get_terminal_size(self.fd).columns or 80        # 0: a pseudo-terminal that was not told

        def row(line): return f'\x1b[0m{line[:columns - 1]}\x1b[K\r\n'
        shown = '' if picture is None else row(title) + half_blocks(picture)
        self.write('\x1b[2J' * clear + '\x1b[H' + shown + ''.join(map(row, lines)) + '\x1b[J')


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
    """How many cells wide a pixel may be; 0 where not even one fits, and what would."""
    H, W, _ = picture.shape
    wanted = f'want {W} x {(H + 1) // 2 + 4} cells, or --keys=...; the terminal has {columns} x {rows}'
    return max(0, min(columns // W, 2 * (rows - 4) // H)), wanted
