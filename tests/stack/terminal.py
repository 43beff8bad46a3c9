"""A person's terminal: a program on a pseudo-terminal, what is typed into it and what it shows."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time


class Terminal:
    """Runs argv on a pseudo-terminal of its own; `with` ends it."""

    def __init__(self, argv: list[str], *, rows: int, columns: int) -> None:
        self.shown = ""
        self.status: int | None = None
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            try:
                self._set_size(0, rows, columns)
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)

    @staticmethod
    def _set_size(descriptor: int, rows: int, columns: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, *, rows: int, columns: int) -> None:
        self._set_size(self._master, rows, columns)  # the kernel sends SIGWINCH to the foreground group

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, *, seconds: float = 15) -> str:
        """Waits until the pattern stands in what was shown since the last match, and returns it."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.shown)):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"waited for {pattern!r}; shown: {self.shown!r}")
        self.shown = self.shown[match.end() :]
        return match[0]

    def ask(self, text: str, pattern: str, *, seconds: float = 1) -> bool:
        """Types, and tells whether the pattern was shown within the time."""
        self.send(text)
        try:
            self.expect(pattern, seconds=seconds)
        except AssertionError:
            return False
        return True

    def wait(self, *, seconds: float = 15) -> int:
        """The exit status of the program, once it ends."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        if self.status is None:
            _, status = os.waitpid(self._pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def _read(self, seconds: float) -> bool:
        """Reads what comes next; False at the end of the program or of the time."""
        if not select.select([self._master], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._master)
