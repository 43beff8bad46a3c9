"""Reads a container's log file in CRI's format, from where it is asked for, and on as it grows."""

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

_POLL_SECONDS = 0.1
_LINE = re.compile(rb"(\S+) (stdout|stderr) ([FP])\S* ?(.*)", re.DOTALL)
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Line:
    """One line of output, or a part of a long one: data has its line feed where the line ends."""

    time_ns: int
    stream: int
    data: bytes


def parse(raw: bytes) -> Line | None:
    """A line of the file without its line feed; None for one that is not in CRI's format (a torn one)."""
    if not (match := _LINE.fullmatch(raw)):
        return None
    stamp, stream, tag, data = match.groups()
    try:
        time_ns = nanoseconds(stamp.decode())
    except ValueError:
        return None
    return Line(time_ns, 1 if stream == b"stdout" else 2, data + (b"\n" if tag == b"F" else b""))


def nanoseconds(stamp: str) -> int:
    """A time of RFC 3339 with up to nine digits after the second, which datetime cuts at six. Raises ValueError."""
    match = re.fullmatch(r"(.*T\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", stamp)
    if not match:
        raise ValueError(f"{stamp!r} is not an RFC 3339 time")
    whole, fraction, zone = match.groups()
    seconds = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone)).astimezone(UTC).timestamp()
    return int(seconds) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


async def read(
    path: Path, *, follow: Callable[[], bool] | None = None, tail: int | None = None, since_ns: int = 0
) -> AsyncGenerator[Line, None]:
    """The lines of a log.

    follow: while it returns true the log is waited for to grow (also across a rotation); None ends at the file's end.
    tail: only the last so many lines. since_ns: only lines from this time on.
    """
    files = await asyncio.to_thread(_files, path)
    offset = 0
    if tail is not None:
        files, offset = await asyncio.to_thread(_last, files, tail)
    for older in files[:-1]:
        async for found in _whole(older, offset, since_ns):
            yield found
        offset = 0
    file = _open(path)
    try:
        if file is not None:
            file.seek(offset)
        rest = b""
        replaced = False
        while True:
            # Asked before reading: what is written before the container's end is read after it.
            more = follow is not None and follow()
            chunk = file.read(_CHUNK) if file is not None else b""
            *lines, rest = (rest + chunk).split(b"\n")
            for raw in lines:
                if (line := parse(raw)) and line.time_ns >= since_ns:
                    yield line
            if chunk:
                continue
            if replaced:  # and read to its end
                if file is not None:
                    file.close()
                file, rest, replaced = _open(path), b"", False
                continue
            if not more and not _replaced(file, path):
                return
            if more:
                await asyncio.sleep(_POLL_SECONDS)
            replaced = _replaced(file, path)
    finally:
        if file is not None:
            file.close()


async def before(lines: AsyncGenerator[Line, None], until_ns: int, tail: int | None) -> AsyncGenerator[Line, None]:
    """Those of the lines that are not later than a time; tail: only the last so many of them."""
    last: deque[Line] = deque(maxlen=tail)
    async for line in lines:
        if line.time_ns > until_ns:
            break
        if tail is None:
            yield line
        else:
            last.append(line)
    for line in last:
        yield line


async def _whole(path: Path, offset: int, since_ns: int) -> AsyncGenerator[Line, None]:
    """The lines of a file that does not grow any more."""
    with path.open("rb") as file:
        file.seek(offset)
        for number, raw in enumerate(file):
            if number % 1000 == 0:
                await asyncio.sleep(0)
            found = parse(raw.rstrip(b"\n"))
            if found and found.time_ns >= since_ns:
                yield found


def _files(path: Path) -> list[Path]:
    """The log's files, those that were moved away first: PATH.N, …, PATH.1, PATH."""
    moved = sorted((int(other.suffix[1:]), other) for other in path.parent.glob(f"{path.name}.*") if other.suffix[1:].isdigit())
    return [other for _, other in reversed(moved)] + [path]


def _last(files: list[Path], lines: int) -> tuple[list[Path], int]:
    """Those of the files that have the last so many lines, and where they begin in the first of them."""
    for number in range(len(files) - 1, -1, -1):
        if not files[number].exists():
            continue
        offset, found = _tail_offset(files[number], lines)
        if found >= lines or number == 0:
            return files[number:], offset
        lines -= found
    return files[-1:], 0


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _replaced(file: BinaryIO | None, path: Path) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    if file is None:
        return True
    then = os.fstat(file.fileno())
    return (then.st_dev, then.st_ino) != (now.st_dev, now.st_ino)


def _tail_offset(path: Path, lines: int) -> tuple[int, int]:
    """Where the last so many lines begin, and how many there are from there on. Parts of a line count as one with its end."""
    with path.open("rb") as file:
        end = position = file.seek(0, os.SEEK_END)
        if lines == 0:
            return end, 0
        data = b""
        while position > 0:
            step = min(_CHUNK, position)
            position -= step
            file.seek(position)
            data = file.read(step) + data
            starts = _line_starts(data, complete=position == 0)
            if len(starts) >= lines:
                return position + starts[-lines], lines
        starts = _line_starts(data, complete=True)
        return (position + starts[-lines], lines) if len(starts) >= lines else (0, len(starts))


def _line_starts(data: bytes, *, complete: bool) -> list[int]:
    """Where lines of output begin in this end of a file; what is before the first line feed counts only when complete."""
    starts, at, partial = [], 0, False
    if not complete:
        at = data.find(b"\n") + 1
        # what is cut off there may be a part of a line that goes on here
        partial = True
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        if not partial:
            starts.append(at)
        match = _LINE.match(data[at:end])
        partial = bool(match and match.group(3) == b"P")
        at = end + 1
    return starts
