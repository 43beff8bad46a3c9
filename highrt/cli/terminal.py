"""The person's terminal while a container has it: raw mode, window sizes, input, and the keys that detach."""

import asyncio
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHUNK = 32 * 1024
_WAITING_CHUNKS = 8
DETACH_KEYS = b"\x10\x11"
"""ctrl-p ctrl-q"""


def is_terminal() -> bool:
    return os.isatty(0)


@contextmanager
def raw_mode() -> Iterator[None]:
    """Every key goes to the container, ctrl-c too; the old mode comes back at the end."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def window_size() -> tuple[int, int] | None:
    """Width and height in characters; None where no terminal tells one."""
    for descriptor in (0, 1, 2):
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if size.columns and size.lines:
            return size.columns, size.lines
    return None


@contextmanager
def on_resize(call: Callable[[], None]) -> Iterator[None]:
    """Calls it, in the event loop, whenever the window changes its size."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


class Input:
    """Standard input, whatever it is (a terminal, a pipe, a file), read by a thread: not all of these can be polled.

    The thread reads a little ahead only, and ends with the process.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(_WAITING_CHUNKS)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            self._room.acquire()
            try:
                data = os.read(0, _CHUNK)
            except OSError:
                data = b""
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, data)
            except RuntimeError:  # the loop is closed: nobody wants it any more
                return

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        data = await self._queue.get()
        self._room.release()
        return data


class DetachKeys:
    """Looks for ctrl-p ctrl-q in what is typed. A ctrl-p waits for the next key, and is passed on when that is another."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the keys were typed."""
        data, self._held = self._held + data, b""
        at = data.find(DETACH_KEYS)
        if at >= 0:
            return data[:at], True
        if data.endswith(DETACH_KEYS[:1]):
            self._held, data = data[-1:], data[:-1]
        return data, False


def write_all(descriptor: int, data: bytes) -> None:
    """Writes to stdout or stderr without a buffer between."""
    sys.stdout.flush()
    while data:
        data = data[os.write(descriptor, data) :]
