"""Container logs, read from the files that the runtime writes in CRI's log format.

A line is `TIME STREAM TAG TEXT` (TAG F: a whole line, P: a part of one).
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 64 * 1024
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class LogOptions:
    """As PodLogOptions has them. since: seconds since the epoch, lines before it are left out. stream: stdout, stderr or ""."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: float | None = None
    stream: str = ""


async def read(path: Path, options: LogOptions, running: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """Pieces of the log. running: whether the container still writes; asked only when following.

    Raises OSError where there is no log.
    """
    left = options.limit_bytes
    # A runtime makes the file at the container's start: a follower may come a moment before it.
    file = await _open(path, wait=options.follow)
    try:
        file.seek(_tail_offset(file, options.tail_lines))
        pending = b""
        while True:
            alive = options.follow and await running()
            block = await asyncio.to_thread(file.read, CHUNK_BYTES)
            if not block:
                if not alive:
                    return
                file, turned = _reopened(file, path)
                if not turned:
                    await asyncio.sleep(POLL_SECONDS)
                continue
            *lines, pending = (pending + block).split(b"\n")
            piece = b"".join(shown for line in lines if (shown := _shown(line, options)))
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            if piece:
                yield piece
            if left == 0:
                return
    finally:
        file.close()


async def _open(path: Path, *, wait: bool) -> BinaryIO:
    deadline = time.monotonic() + (2.0 if wait else 0.5)
    while True:
        try:
            return path.open("rb")
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_SECONDS)


def _reopened(file: BinaryIO, path: Path) -> tuple[BinaryIO, bool]:
    """The file that is at the path now, where it is another one (the log was rotated)."""
    try:
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file, False
        fresh = path.open("rb")
    except OSError:
        return file, False
    rest = file.read(1)
    if rest:  # something was written between the last read and the rotation
        file.seek(-1, os.SEEK_CUR)
        fresh.close()
        return file, True
    file.close()
    return fresh, True


def _tail_offset(file: BinaryIO, lines: int | None) -> int:
    """Where the last so many lines begin."""
    if lines is None:
        return 0
    position = file.seek(0, os.SEEK_END)
    if lines == 0:
        return position
    wanted, ends = lines, 0
    # The last line's own end does not count.
    ends = -1
    while position > 0:
        size = min(CHUNK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        index = len(block)
        while (index := block.rfind(b"\n", 0, index)) >= 0:
            ends += 1
            if ends == wanted:
                return position + index + 1
    return 0


def _shown(line: bytes, options: LogOptions) -> bytes:
    """A line as the client sees it; empty where it is left out."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return b""
    stamp, stream, tag, text = parts
    if options.stream and stream.decode() != options.stream:
        return b""
    if options.since is not None and _seconds(stamp) < options.since:
        return b""
    end = b"" if tag.startswith(b"P") else b"\n"
    return (stamp + b" " if options.timestamps else b"") + text + end


def _seconds(stamp: bytes) -> float:
    """Nanoseconds are more than datetime can read."""
    text = stamp.decode(errors="replace")
    head, dot, rest = text.partition(".")
    digits = "".join(c for c in rest if c.isdigit())[:6] if dot else ""
    zone = rest.lstrip("0123456789") if dot else ""
    try:
        return datetime.fromisoformat((f"{head}.{digits:0<6}{zone}" if dot else text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
