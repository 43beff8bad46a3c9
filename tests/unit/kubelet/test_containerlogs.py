"""Reading CRI log files."""

import asyncio
from pathlib import Path

import pytest

from kubelet.containerlogs import LogOptions, read
from kubelet.termination import message


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


async def collect(path: Path, running: bool = False, **options: object) -> bytes:
    async def alive() -> bool:
        return running

    return b"".join([piece async for piece in read(path, LogOptions(**options), alive)])  # type: ignore[arg-type]


LINES = tuple(f"2026-01-02T03:04:0{n}.123456789Z stdout F line {n}" for n in range(5))


async def test_lines_tail_streams_and_times(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *LINES, "2026-01-02T03:04:09.1Z stderr P half", "2026-01-02T03:04:09.2Z stderr F done")
    assert (await collect(path)).splitlines()[-1] == b"halfdone"
    assert await collect(path, tail_lines=1, stream="stderr") == b"done\n"
    assert await collect(path, tail_lines=0) == b""
    assert (await collect(path, tail_lines=99)).startswith(b"line 0")
    assert (await collect(path, timestamps=True)).startswith(b"2026-01-02T03:04:00.123456789Z line 0\n")
    assert await collect(path, limit_bytes=9) == b"line 0\nli"
    since = 1767323044.0  # 2026-01-02T03:04:04Z
    assert (await collect(path, since=since)).startswith(b"line 4\n")


async def test_a_long_log_is_tailed_exactly(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *(f"2026-01-02T03:04:05Z stdout F {'x' * 100} {n}" for n in range(5000)))
    assert [line.split()[-1] for line in (await collect(path, tail_lines=3)).splitlines()] == [b"4997", b"4998", b"4999"]


async def test_following_sees_a_rotation_through(tmp_path: Path) -> None:
    path = write(tmp_path / "log", LINES[0])
    alive = True

    async def running() -> bool:
        return alive

    found: list[bytes] = []
    more = asyncio.Event()

    async def follow() -> None:
        async for piece in read(path, LogOptions(follow=True), running):
            found.append(piece)
            more.set()

    task = asyncio.create_task(follow())

    async def until(count: int) -> None:
        async with asyncio.timeout(5):
            while b"".join(found).count(b"\n") < count:
                await more.wait()
                more.clear()

    await until(1)
    path.rename(tmp_path / "log.old")
    write(path, LINES[1])
    await until(2)
    alive = False
    await asyncio.wait_for(task, 5)
    assert b"".join(found) == b"line 0\nline 1\n"


async def test_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await collect(tmp_path / "none")


def test_a_termination_message_or_the_end_of_the_log(tmp_path: Path) -> None:
    log = write(tmp_path / "log", *LINES)
    assert message(tmp_path / "none", "File", 1, str(log)) == ""
    assert message(tmp_path / "none", "FallbackToLogsOnError", 1, str(log)).endswith("line 4\n")
    assert message(tmp_path / "none", "FallbackToLogsOnError", 0, str(log)) == ""
    (tmp_path / "own").write_text("x" * 5000)
    assert message(tmp_path / "own", "File", 0, "") == "x" * 4096
