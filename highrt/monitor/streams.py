"""Bytes between a container and those who listen or type: outputs, sinks and attached clients.

A container that writes faster than an attached client reads is held back, as on a terminal; a client that takes nothing
for STALLED_SECONDS is let go.
"""

import os

from highrt.monitor.loop import IN, OUT, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK_BYTES = 16384
"""What is read at once. Written pages stay the monitor's for good, and lines take several times their length on their way."""
HIGH_WATER_BYTES = 1 << 20
STALLED_SECONDS = 30.0


class Sink:
    """Writes to a descriptor that it owns without ever blocking; what does not fit waits here."""

    def __init__(self, loop: Loop, descriptor: int, on_gone: "Callable[[], None]") -> None:
        """on_gone: called once when the reader has gone or stalled."""
        self._loop, self.descriptor, self._on_gone = loop, descriptor, on_gone
        self._pending = bytearray()
        self._closing = False
        self._stalled = None
        self._on_drained: list[Callable[[], None]] = []
        os.set_blocking(descriptor, False)

    def write(self, data: bytes) -> None:
        if self.descriptor < 0 or self._closing:
            return
        if not self._pending:
            data = data[self._write(data) :]
            if not data or self.descriptor < 0:
                return
            self._loop.watch(self.descriptor, OUT, lambda events: self._flush())
            self._stalled = self._loop.after(STALLED_SECONDS, self._give_up)  # type: ignore[assignment]
        self._pending += data

    @property
    def full(self) -> bool:
        return len(self._pending) > HIGH_WATER_BYTES

    def when_drained(self, call: "Callable[[], None]") -> None:
        """Calls once nothing waits any more, also when that is because the reader has gone."""
        if self._pending:
            self._on_drained.append(call)
        else:
            call()

    def close(self) -> None:
        """Closes after what waits has been written."""
        self._closing = True
        if not self._pending:
            self._shut()

    def abort(self) -> None:
        """Closes now."""
        self._shut()

    def _write(self, data: "bytes | bytearray") -> int:
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE, ECONNRESET, EIO: nobody reads any more
            self._shut()
            self._on_gone()
            return len(data)

    def _flush(self) -> None:
        written = self._write(self._pending[:HIGH_WATER_BYTES])
        del self._pending[:written]
        if self.descriptor < 0:
            return
        self._loop.cancel(self._stalled)
        if self._pending:
            self._stalled = self._loop.after(STALLED_SECONDS, self._give_up)  # type: ignore[assignment]
            return
        self._loop.unwatch(self.descriptor)
        if self._closing:
            self._shut()
        self._drained()

    def _give_up(self) -> None:
        self._shut()
        self._on_gone()

    def _shut(self) -> None:
        if self.descriptor >= 0:
            self._loop.cancel(self._stalled)
            self._loop.unwatch(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1
            self._pending.clear()
            self._drained()

    def _drained(self) -> None:
        waiting, self._on_drained = self._on_drained, []
        for call in waiting:
            call()


class Source:
    """Reads a descriptor that it owns until its end, and hands on what comes."""

    def __init__(self, loop: Loop, descriptor: int, on_data: "Callable[[bytes], None]", on_end: "Callable[[], None]") -> None:
        self._loop, self.descriptor, self._on_data, self._on_end = loop, descriptor, on_data, on_end
        self._paused = False
        os.set_blocking(descriptor, False)
        loop.watch(descriptor, IN, lambda events: self._read())

    def pause(self) -> None:
        if self.descriptor >= 0 and not self._paused:
            self._paused = True
            self._loop.unwatch(self.descriptor)

    def resume(self) -> None:
        if self.descriptor >= 0 and self._paused:
            self._paused = False
            self._loop.watch(self.descriptor, IN, lambda events: self._read())

    def rest(self) -> bytes:
        """What is there now, read without waiting; then it is closed, without on_end.

        A source may be paused when its container ends, because a client is slow: the log must not lose the last lines.
        """
        found = b""
        while self.descriptor >= 0 and len(found) < HIGH_WATER_BYTES:
            try:
                data = os.read(self.descriptor, CHUNK_BYTES)
            except OSError:  # EAGAIN, or EIO of a terminal
                break
            if not data:
                break
            found += data
        self.close()
        return found

    def close(self) -> None:
        """Stops reading, without on_end."""
        if self.descriptor >= 0:
            if not self._paused:
                self._loop.unwatch(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1

    def _read(self) -> None:
        try:
            data = os.read(self.descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: all of a terminal's other side has been closed
            data = b""
        if data:
            self._on_data(data)
            return
        self.close()
        self._on_end()


def feed(source: Source, sinks: "list[Sink]", data: bytes) -> None:
    """Gives data to all sinks, and holds the source back while one is full."""
    for sink in sinks:
        sink.write(data)
    full = [sink for sink in sinks if sink.full]
    if not full:
        return
    source.pause()
    waiting = len(full)

    def drained() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            source.resume()

    for sink in full:
        sink.when_drained(drained)
