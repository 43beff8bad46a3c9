"""A container's log file in the kubelet's format (CRI logging): `TIME STREAM TAG LINE`, one line a line.

TAG is F for a full line and P for a part of one: a line is cut every 16 KiB, and what has no newline at the end of the
stream is a part.
"""

import os
import time

from strata.linux import syscalls

MAX_LINE_BYTES = 16384
# A container may have the folder as a volume: no link of its making leads elsewhere, no FIFO of its making holds the monitor up.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
_KIND, _REGULAR = 0o170000, 0o100000


class LogFile:
    """Both streams of a container write here. Without a path it swallows all."""

    def __init__(self, path: str, most_bytes: int = 0, files: int = 1) -> None:
        """path: without links. most_bytes: when it has grown to that (0: never) it is moved to PATH.1, and so on: so many files
        are kept in all."""
        self._path, self._most_bytes, self._files = path, most_bytes, files
        self._size = 0
        self._descriptor = -1
        self._pending = {b"stdout": b"", b"stderr": b""}
        self._second, self._clock = 0, b""
        if path:
            self.reopen()

    def reopen(self) -> None:
        """Opens the path anew, after the kubelet has moved the file away. Raises OSError, and goes on with the old one."""
        if not self._path:
            return
        descriptor = syscalls.openat2(syscalls.AT_FDCWD, self._path, _FLAGS, syscalls.RESOLVE_NO_SYMLINKS, 0o640)
        if os.fstat(descriptor).st_mode & _KIND != _REGULAR:
            os.close(descriptor)
            raise OSError(22, "not a regular file", self._path)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._size = descriptor, os.lseek(descriptor, 0, os.SEEK_END)

    def write(self, stream: bytes, data: bytes) -> None:
        """Adds what a container wrote. Raises OSError where the disk does not take it."""
        if self._descriptor < 0:
            return
        head = self._stamp() + b" " + stream
        full, part = head + b" F ", head + b" P "
        out = bytearray()
        lines = (self._pending[stream] + data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            while len(line) > MAX_LINE_BYTES:
                out += part + line[:MAX_LINE_BYTES] + b"\n"
                line = line[MAX_LINE_BYTES:]
            out += full + line + b"\n"
        while len(rest) > MAX_LINE_BYTES:
            out += part + rest[:MAX_LINE_BYTES] + b"\n"
            rest = rest[MAX_LINE_BYTES:]
        self._pending[stream] = rest
        self._put(out)

    def end(self, stream: bytes) -> None:
        """The stream has ended: what is left of it is written as a part."""
        rest, self._pending[stream] = self._pending[stream], b""
        if rest and self._descriptor >= 0:
            self._put(bytearray(self._stamp() + b" " + stream + b" P " + rest + b"\n"))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _put(self, data: bytearray) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, memoryview(data)[done:])
        except OSError:
            # A line of which the disk has taken a part would run into the next one.
            torn = done - (data.rfind(b"\n", 0, done) + 1)
            os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_END) - torn)
            raise
        finally:
            self._size += done
        if 0 < self._most_bytes <= self._size:
            self._rotate()

    def _rotate(self) -> None:
        if self._files == 1:
            os.ftruncate(self._descriptor, 0)
            self._size = 0
            return
        for number in range(self._files - 1, 0, -1):
            try:
                os.rename(f"{self._path}.{number - 1}" if number > 1 else self._path, f"{self._path}.{number}")
            except FileNotFoundError:
                pass
        self.reopen()

    def _stamp(self) -> bytes:
        second, fraction = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%s.%09dZ" % (self._clock, fraction)
