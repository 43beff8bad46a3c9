"""Reading log files in CRI's format."""

import asyncio
from pathlib import Path

import pytest

from highrt.person import loglines
from highrt.person.loglines import Line


def entry(number: int, text: str, tag: str = "F", stream: str = "stdout") -> str:
    return f"2026-01-31T12:00:00.{number:09d}Z {stream} {tag} {text}\n"


async def texts(path: Path, **options: object) -> list[bytes]:
    return [line.data async for line in loglines.read(path, **options)]  # type: ignore[arg-type]


def test_an_entry() -> None:
    raw = b"2026-01-31T13:00:00.000000005+01:00 stderr P half"
    assert loglines.parse(raw) == Line(1769860800_000_000_005, 2, b"half")
    assert loglines.parse(b"2026-01-31T12:00:00Z stdout F ") == Line(1769860800_000_000_000, 1, b"\n")


@pytest.mark.parametrize("raw", [b"", b"torn", b"yesterday stdout F x", b"2026-01-31T12:00:00Z stdin F x"])
def test_what_is_no_entry_is_passed_over(raw: bytes) -> None:
    assert loglines.parse(raw) is None


async def test_tail_counts_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    long = "x" * 16_000
    parts = "".join(entry(2, long, "P") for _ in range(10)) + entry(2, "end")
    path.write_text(entry(1, "first") + parts + entry(3, "last"))
    assert await texts(path, tail=1) == [b"last\n"]
    assert b"".join(await texts(path, tail=2)) == long.encode() * 10 + b"end\nlast\n"
    assert (await texts(path, tail=3))[0] == b"first\n"
    assert (await texts(path, tail=99))[0] == b"first\n"
    assert await texts(path, tail=0) == []


async def test_since(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(entry(1, "a") + entry(2, "b"))
    assert await texts(path, since_ns=1769860800_000_000_002) == [b"b\n"]


async def test_following_goes_on_across_a_rotation_and_stops_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    running = True
    lines = loglines.read(path, follow=lambda: running)
    async with asyncio.timeout(10):
        first = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0.05)  # there is no file yet
        path.write_text(entry(1, "one"))
        assert (await first).data == b"one\n"
        path.rename(tmp_path / "log.1")
        path.write_text(entry(2, "two"))
        assert (await anext(lines)).data == b"two\n"
        with path.open("a") as file:
            file.write(entry(3, "three"))
        running = False
        assert [line.data async for line in lines] == [b"three\n"]


async def test_no_file_is_no_output(tmp_path: Path) -> None:
    assert await texts(tmp_path / "none") == []
