"""Reads tar archives as they stream by: ustar, PAX and GNU headers (POSIX.1-2001 pax; GNU tar's manual, "Tar Internals").

`tarfile` of the standard library takes 50 µs for a header, several times what making a small file takes, stops silently at a
broken header, and keeps everything that it has seen. This reads forward only, and what it cannot make sense of is an error.
Nothing here decides what a name may be: that is for whoever makes the files.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Protocol

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""The largest extended header or long name that is read, in bytes."""
_MAX_EXTENTS = 1 << 20
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_XATTR = "SCHILY.xattr."
_SUM_MODULUS = 65521


class TarError(Exception):
    """It is no tar archive, or not a whole one."""


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Entry:
    """One header. name and link: as in the archive, bytes that are no UTF-8 as surrogates. kind: the type flag, "0" for a file.

    size: of the content that follows in the archive; mtime_ns: since the epoch. extents: None, or of a sparse file the parts that
    the archive has, as (offset, length), with `sparse_size` as the file's size.
    """

    __slots__ = ("device", "extents", "gid", "kind", "link", "mode", "mtime_ns", "name", "size", "sparse_size", "uid", "xattrs")

    name: str
    link: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    extents: list[tuple[int, int]] | None
    sparse_size: int

    @property
    def is_directory(self) -> bool:
        return self.kind == "5"

    @property
    def is_file(self) -> bool:
        return self.kind == "0"


class TarStream:
    """The entries of an archive, one after the other; `content` is that of the entry that came last."""

    def __init__(self, stream: Readable, chunk: int = 1 << 20) -> None:
        """chunk: how much is asked of the stream at once. It may give less, and nothing at its end."""
        self._read, self._chunk = stream.read, chunk
        self._buffer, self._at = b"", 0
        self._left = self._padding = 0
        self._global: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Raises TarError."""
        extended: dict[str, bytes] = {}
        extents: list[tuple[int, int]] = []
        long_name = long_link = None
        while True:
            self._skip()
            block = self._header()
            if block is None:
                return
            entry, magic, prefix = self._parse(block)
            kind = entry.kind
            if kind in "xgXLK":
                data = self._extension(entry)
                if kind == "L":
                    long_name = _text(data.partition(b"\0")[0])
                elif kind == "K":
                    long_link = _text(data.partition(b"\0")[0])
                elif kind == "g":
                    self._global.update(_records(data, []))
                else:
                    extended = _records(data, extents)
                continue
            if prefix and magic == b"ustar\0":
                entry.name = f"{prefix}/{entry.name}"
            if long_name is not None:
                entry.name = long_name
            if long_link is not None:
                entry.link = long_link
            if extended or self._global:
                _extend(entry, {**self._global, **extended} if self._global else extended)
            if kind not in "01234567SDVMN\0":
                raise TarError(f"the entry {entry.name!r} has the unknown type {kind!r}")
            if kind in ("\0", "7"):
                entry.kind = "5" if kind == "\0" and entry.name.endswith("/") else "0"
            self._left = entry.size if entry.kind in "0S" else 0
            self._padding = -self._left % BLOCK
            if kind == "S":
                self._old_sparse(entry, block)
            elif "GNU.sparse.major" in extended or "GNU.sparse.map" in extended or extents:
                self._pax_sparse(entry, extended, extents)
            yield entry
            extended, extents, long_name, long_link = {}, [], None, None

    def content(self) -> Iterator[bytes]:
        """The rest of the entry's content, in parts. Raises TarError where the archive ends within it."""
        while self._left:
            if self._at == len(self._buffer):
                self._fill()
            part = self._buffer[self._at : self._at + self._left]
            self._at += len(part)
            self._left -= len(part)
            yield part

    def _fill(self) -> None:
        self._buffer, self._at = self._read(self._chunk), 0
        if not self._buffer:
            raise TarError("it ends in the middle of a file")

    def _take(self, size: int) -> bytes:
        """Exactly so many bytes."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        parts = [self._buffer[self._at :]]
        missing = size - len(parts[0])
        while missing:
            self._fill()
            part = self._buffer[:missing]
            self._at = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self) -> None:
        """Winds forward to the next header."""
        for _ in self.content():
            pass
        # Some tools leave the padding after the last file out, and Go's tar reader, which most runtimes use, does not mind.
        while self._padding:
            if self._at == len(self._buffer):
                self._buffer, self._at = self._read(self._chunk), 0
                if not self._buffer:
                    break
            step = min(self._padding, len(self._buffer) - self._at)
            self._at += step
            self._padding -= step
        self._padding = 0

    def _header(self) -> bytes | None:
        """The next header's block; None at the archive's end, which may be just the end of the stream."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._read(self._chunk), 0
            if not self._buffer:
                return None
        block = self._take(BLOCK)
        return None if block.count(0) == BLOCK else block

    def _parse(self, block: bytes) -> tuple[Entry, bytes, str]:
        """A header, its magic and the first part of its name."""
        (
            name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, _, major, minor, prefix,
        ) = _FIELDS.unpack(block)  # fmt: skip
        # The sum of all bytes, with blanks where it is itself: the low half of Adler-32 is 1 and that sum.
        if ((zlib.adler32(block) & 0xFFFF) - 1 - sum(checksum) + 256 - _octal(checksum)) % _SUM_MODULUS:
            raise TarError("a header is broken: its checksum is wrong")
        entry = Entry()
        entry.name, entry.link = _text(name.partition(b"\0")[0]), _text(link.partition(b"\0")[0])
        entry.kind = kind.decode("latin-1")
        entry.mode, entry.uid, entry.gid, entry.size = _octal(mode), _octal(uid), _octal(gid), _octal(size)
        entry.mtime_ns = _octal(mtime) * 1_000_000_000
        entry.device = (_octal(major), _octal(minor)) if kind in b"34" else (0, 0)
        entry.xattrs, entry.extents, entry.sparse_size = _NONE, None, 0
        if entry.size < 0:
            raise TarError(f"the entry {entry.name!r} has a negative size")
        return entry, magic, _text(prefix.partition(b"\0")[0]) if prefix[0] else ""

    def _extension(self, entry: Entry) -> bytes:
        if entry.size > MAX_EXTENSION:
            raise TarError(f"an extended header has {entry.size} bytes, more than {MAX_EXTENSION}")
        data = self._take(entry.size)
        self._padding = -entry.size % BLOCK
        return data

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        """GNU's old form: the map is in the header and in blocks after it, which are no part of the size."""
        entry.kind, entry.sparse_size, extents = "0", _octal(block[483:495]), []
        maps, extended = block[386:482], block[482]
        while True:
            for at in range(0, len(maps), 24):
                if maps[at]:
                    extents.append((_octal(maps[at : at + 12]), _octal(maps[at + 12 : at + 24])))
            if not extended:
                break
            if len(extents) > _MAX_EXTENTS:
                raise TarError(f"the sparse file {entry.name!r} has more than {_MAX_EXTENTS} parts")
            block = self._take(BLOCK)
            maps, extended = block[:504], block[504]
        entry.extents = extents
        self._check_extents(entry)

    def _pax_sparse(self, entry: Entry, extended: dict[str, bytes], extents: list[tuple[int, int]]) -> None:
        """The forms 0.0 (each number a record), 0.1 (one record) and 1.0 (before the content) of PAX."""
        try:
            entry.sparse_size = int(extended.get("GNU.sparse.realsize") or extended.get("GNU.sparse.size") or b"0")
            if extended.get("GNU.sparse.major") == b"1":
                extents = self._map()
            elif listed := extended.get("GNU.sparse.map"):
                numbers = [int(number) for number in listed.split(b",")]
                extents = list(zip(numbers[::2], numbers[1::2], strict=True))
        except ValueError:
            raise TarError(f"the sparse file {entry.name!r} has a map that makes no sense") from None
        if "GNU.sparse.name" in extended:
            entry.name = _text(extended["GNU.sparse.name"])
        entry.extents = extents
        self._check_extents(entry)

    def _map(self) -> list[tuple[int, int]]:
        """A count and as many offsets and lengths, decimal, a line each, in whole blocks of the content."""
        data, lines = bytearray(), 0  # which grow without being copied or counted again: a map may have 30,000 blocks
        count = -1
        while True:
            if self._left < BLOCK:
                raise ValueError
            block = self._take(BLOCK)
            self._left -= BLOCK
            data += block
            lines += block.count(b"\n")
            if count < 0 and lines:
                count = int(data.partition(b"\n")[0])
                if not 0 <= count <= _MAX_EXTENTS:
                    raise ValueError
            if count >= 0 and lines >= 2 * count + 1:
                numbers = [int(line) for line in bytes(data).split(b"\n", 2 * count + 1)[1 : 2 * count + 1]]
                return list(zip(numbers[::2], numbers[1::2], strict=True))
            if count < 0 and len(data) > BLOCK:
                raise ValueError

    def _check_extents(self, entry: Entry) -> None:
        end = 0
        for offset, length in entry.extents or ():
            if offset < end or length < 0:
                raise TarError(f"the sparse file {entry.name!r} has a map that makes no sense")
            end = offset + length
        if end > entry.sparse_size or sum(length for _, length in entry.extents or ()) != self._left:
            raise TarError(f"the sparse file {entry.name!r} has a map that makes no sense")


_NONE: dict[str, bytes] = {}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _octal(field: bytes) -> int:
    """A number field: octal digits, or GNU's binary form for what is too large. Raises TarError."""
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.partition(b"\0")[0] or b"0", 8)
    except ValueError:
        text = field.partition(b"\0")[0].strip()
        if not text:
            return 0
        raise TarError(f"a header has {text!r} where a number should be") from None


def _records(data: bytes, extents: list[tuple[int, int]]) -> dict[str, bytes]:
    """The records of an extended header, `LENGTH KEY=VALUE` and a line end each. extents: gets a sparse file's, of form 0.0."""
    found: dict[str, bytes] = {}
    at, offset = 0, b""
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            raise TarError("an extended header makes no sense")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or not equals or data[end - 1] != 0x0A:
            raise TarError("an extended header makes no sense")
        name = _text(key)
        if name == "GNU.sparse.offset":
            offset = value
        elif name == "GNU.sparse.numbytes":
            try:
                extents.append((int(offset), int(value)))
            except ValueError:
                raise TarError("an extended header makes no sense") from None
        else:
            found[name] = value
        at = end
    return found


def _extend(entry: Entry, records: dict[str, bytes]) -> None:
    """What extended headers say goes before what the header itself does."""
    try:
        for key, value in records.items():
            if key == "path":
                entry.name = _text(value)
            elif key == "linkpath":
                entry.link = _text(value)
            elif key in ("size", "uid", "gid"):
                number = int(value)
                if number < 0:
                    raise ValueError
                setattr(entry, key, number)
            elif key == "mtime":
                entry.mtime_ns = _nanoseconds(value)
            elif key.startswith(_XATTR):
                if entry.xattrs is _NONE:
                    entry.xattrs = {}
                entry.xattrs[key[len(_XATTR) :]] = value
    except ValueError:
        raise TarError(f"the extended header of {entry.name!r} has {key}={value!r}") from None


def _nanoseconds(value: bytes) -> int:
    whole, _, fraction = value.partition(b".")
    nanoseconds = int((fraction + b"000000000")[:9])
    seconds = int(whole or b"0")
    return seconds * 1_000_000_000 + (-nanoseconds if value.startswith(b"-") else nanoseconds)
