"""What a layer or an archive is packed with, told by its first bytes: media types and names are not to be trusted."""

import io
import zlib
from contextlib import ExitStack
from typing import Protocol, cast

from isal import igzip, isal_zlib

_GZIP, _ZSTD, _XZ, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_LARGEST_WINDOW = 1 << 27
"""What a zstd stream may ask for, in bytes: as much as zstd's own command gives without being asked."""


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def broken() -> tuple[type[Exception], ...]:
    """What reading a compressed stream that is none, or is not whole, raises; of the kinds that have been read so far."""
    return (EOFError, zlib.error, cast(type[Exception], isal_zlib.IsalError), igzip.BadGzipFile, *_BROKEN)


_BROKEN: set[type[Exception]] = set()


def decompressed(blob: io.BufferedReader, stack: ExitStack) -> Readable:
    """The stream inside; the blob itself where it is not compressed.

    stack: closes it. The rarer kinds are imported when they are met. Raises InvalidImage for what is built without one of them.
    """
    magic = blob.peek(6)[:6]
    if magic[:2] == _GZIP:
        unzipped: Readable = stack.enter_context(igzip.GzipFile(fileobj=blob, mode="rb"))
        return unzipped
    if magic[:4] == _ZSTD or int.from_bytes(magic[:4], "little") in _SKIPPABLE:
        import zstandard

        _BROKEN.add(zstandard.ZstdError)
        reader = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return stack.enter_context(reader.stream_reader(blob, read_across_frames=True))
    if magic[:5] == _XZ:
        import lzma

        _BROKEN.add(lzma.LZMAError)
        return stack.enter_context(lzma.LZMAFile(blob))
    if magic[:3] == _BZIP2:
        import bz2

        _BROKEN.add(OSError)  # what bz2 says to a stream that is none
        return stack.enter_context(bz2.BZ2File(blob))
    return blob
