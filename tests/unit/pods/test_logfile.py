"""The kubelet's log format."""

import os
import re
from pathlib import Path

import pytest

from highrt.monitor.logfile import MAX_LINE_BYTES, LogFile

_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ")


def lines(path: Path) -> list[bytes]:
    found = path.read_bytes().split(b"\n")
    assert found.pop() == b""
    assert all(_TIME.match(line) for line in found)
    return [line.partition(b" ")[2] for line in found]


def test_streams_keep_their_own_unfinished_lines(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    log.write(b"stdout", b"on")
    log.write(b"stderr", b"err\nrest")
    log.write(b"stdout", b"e\n\ntwo\n")
    log.end(b"stdout")
    log.end(b"stderr")
    log.close()
    assert lines(tmp_path / "log") == [b"stderr F err", b"stdout F one", b"stdout F ", b"stdout F two", b"stderr P rest"]


def test_a_long_line_comes_in_parts_however_it_arrives(tmp_path: Path) -> None:
    text = bytes(range(48, 58)) * 4000
    for number, size in enumerate((1000, len(text))):
        log = LogFile(str(tmp_path / str(number)))
        for start in range(0, len(text), size):
            log.write(b"stdout", text[start : start + size])
        log.write(b"stdout", b"\n")
        log.close()
        found = [line.split(b" ", 2) for line in lines(tmp_path / str(number))]
        assert [(tag, len(part)) for _, tag, part in found] == [
            (b"P", MAX_LINE_BYTES), (b"P", MAX_LINE_BYTES), (b"F", len(text) - 2 * MAX_LINE_BYTES),
        ]  # fmt: skip
        assert b"".join(part for _, _, part in found) == text


def test_reopening_follows_a_file_that_was_moved(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path))
    log.write(b"stdout", b"old\nhalf")
    path.rename(tmp_path / "log.1")
    log.reopen()
    log.write(b"stdout", b" and half\n")
    log.close()
    assert lines(tmp_path / "log.1") == [b"stdout F old"]
    assert lines(path) == [b"stdout F half and half"]


def test_without_a_path_nothing_is_written() -> None:
    log = LogFile("")
    log.write(b"stdout", b"x\n")
    log.end(b"stdout")
    log.close()


def test_a_log_is_a_regular_file_and_nothing_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("kept")
    log = LogFile(str(tmp_path / "log"))
    log.write(b"stdout", b"one\n")
    for make in (lambda path: path.symlink_to(tmp_path / "secret"), lambda path: os.mkfifo(path), lambda path: path.mkdir()):
        (tmp_path / "log").rename(tmp_path / "moved")
        make(tmp_path / "log")
        with pytest.raises(OSError, match=str(tmp_path / "log")):
            log.reopen()
        log.write(b"stdout", b"more\n")  # it goes on with the old one
        (tmp_path / "log").rename(tmp_path / f"odd-{(tmp_path / 'log').lstat().st_mode}")
        (tmp_path / "moved").rename(tmp_path / "log")
    log.close()
    assert lines(tmp_path / "log") == [b"stdout F one", *[b"stdout F more"] * 3]
    assert (tmp_path / "secret").read_text() == "kept"
