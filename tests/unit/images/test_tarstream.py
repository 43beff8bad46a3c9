"""The tar reader says what tarfile and GNU tar say, of whatever they write, however the stream is cut."""

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from highrt.images.tarstream import Entry, TarError, TarStream


class Pieces:
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file, self._step = io.BytesIO(data), step

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(self._step)


def read(data: bytes, step: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    stream = TarStream(Pieces(data, step))
    return [(entry, b"".join(stream.content())) for entry in stream]


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300).map(
    lambda name: name.strip("/") or "x"
)
KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]


@given(
    st.lists(
        st.tuples(
            NAMES,
            st.sampled_from(KINDS),
            NAMES,
            st.integers(0, 0o7777),
            st.integers(0, 1 << 40),
            st.integers(0, 1 << 40),
            st.binary(max_size=2000),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([1, 7, 512, 700, 1 << 20]),
)
def test_it_reads_what_tarfile_writes(entries: list[tuple[str, bytes, str, int, int, int, bytes]], form: int, step: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as tar:
        for name, kind, link, mode, owner, mtime, data in entries:
            header = tarfile.TarInfo(name)
            header.type, header.mode, header.uid, header.gid, header.mtime = kind, mode, owner, owner // 2, mtime
            header.linkname = link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            header.devmajor, header.devminor = (5, 6) if kind == tarfile.CHRTYPE else (0, 0)
            header.size = len(data) if header.isreg() else 0
            header.pax_headers = {"SCHILY.xattr.user.a": "\xe9"} if form == tarfile.PAX_FORMAT else {}
            tar.addfile(header, io.BytesIO(data))
    found = read(out.getvalue(), step)
    assert len(found) == len(entries)
    for (entry, content), (name, kind, link, mode, owner, mtime, data) in zip(found, entries, strict=True):
        assert entry.name.rstrip("/") == name.rstrip("/")
        assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (mode, owner, owner // 2, mtime * 10**9)
        assert content == (data if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else b"")
        if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            assert entry.link == link
        if kind == tarfile.CHRTYPE:
            assert entry.device == (5, 6)
        assert entry.xattrs == ({"user.a": "\xe9".encode()} if form == tarfile.PAX_FORMAT else {})


@given(st.binary(max_size=3000), st.integers(0, 40))
def test_nothing_else_than_its_own_error_comes_of_junk(data: bytes, at: int) -> None:
    whole = bytearray(sample())
    with contextlib.suppress(TarError):
        read(data)
    whole[at * 50 : at * 50 + len(data)] = data
    with contextlib.suppress(TarError):
        read(bytes(whole))


def sample() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a", "b" * 200):
            header = tarfile.TarInfo(name)
            header.size = 100
            tar.addfile(header, io.BytesIO(b"x" * 100))
    return out.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids=["old", "0.0", "0.1", "1.0"],
)
def test_sparse_files_of_gnu_tar_are_parts_with_holes(tmp_path: Path, options: list[str]) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for number in range(30):  # more parts than one header has room for
            os.pwrite(file.fileno(), bytes([65 + number]) * 4096, number * 1_000_000)
        file.truncate(50_000_000)
    (tmp_path / "after").write_text("after")
    argv = ["tar", "-C", tmp_path, "-S", *options, "-cf", tmp_path / "t.tar", "sparse", "after"]
    subprocess.run([str(item) for item in argv], check=True)
    (entry, content), (after, text) = read((tmp_path / "t.tar").read_bytes())
    assert (entry.name, entry.sparse_size, after.name, text) == ("sparse", 50_000_000, "after", b"after")
    assert entry.extents is not None
    rebuilt = bytearray(entry.sparse_size)
    for offset, length in entry.extents:
        rebuilt[offset : offset + length] = content[:length]
        content = content[length:]
    assert rebuilt == (tmp_path / "sparse").read_bytes()
    assert len(entry.extents) >= 30


def test_a_name_of_any_bytes_is_kept() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name in (b"\xff\xfe\n\t", b"long" * 60 + b"\xff"):
            tar.addfile(tarfile.TarInfo(os.fsdecode(name)))
    assert [os.fsencode(entry.name) for entry, _ in read(out.getvalue())] == [b"\xff\xfe\n\t", b"long" * 60 + b"\xff"]


def changed(at: int, data: bytes) -> bytes:
    whole = bytearray(sample())
    whole[at : at + len(data)] = data
    return bytes(whole)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (changed(0, b"z"), "its checksum is wrong"),
        (sample()[:600], "in the middle of a file"),
        (sample()[:300], "in the middle of a file"),
        (b"no tar" * 200, "where a number should be|checksum"),
    ],
)
def test_what_is_broken_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(TarError, match=reason):
        read(data)


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + tarfile.TarInfo("f").tobuf() + bytes(1024)


@pytest.mark.parametrize(
    "data",
    [b"99 path=x\n", b"x path=x\n", b"3 =\n", b"12 size=abc\n", b"11 uid=-15\n", b"9 path\nx=\n", b"-9 path=x\n", b" 9 path=x\n"],
)
def test_an_extended_header_that_makes_no_sense_is_told(data: bytes) -> None:
    with pytest.raises(TarError, match="extended header"):
        read(extended(data))


def test_an_extended_header_does_not_eat_the_memory() -> None:
    with pytest.raises(TarError, match="more than 1048576"):
        read(extended(b"x" * (2 << 20)))
    with pytest.raises(TarError, match="more than 1048576"):
        read(extended(b"x" * (2 << 20), tarfile.GNUTYPE_LONGNAME))


def test_global_records_hold_for_all_that_follow_and_own_ones_go_before_them() -> None:
    glob = extended(b"9 uid=77\n", tarfile.XGLTYPE)[:1024]
    ((one, _),) = read(glob + tarfile.TarInfo("f").tobuf())
    assert one.uid == 77
    ((two, _),) = read(glob + extended(b"8 uid=5\n"))
    assert two.uid == 5
