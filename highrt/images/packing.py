"""A folder that overlayfs has written to, packed as a layer: the way back from `layers`."""

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Sequence
from typing import IO, cast

from isal import isal_zlib

from highrt.images.layers import OPAQUE_MARK, WHITEOUT, XATTR
from highrt.images.model import Packed
from highrt.images.rooted import OPAQUE

_BUFFER = 1 << 18
_RESERVED = "trusted.overlay."


class _Counting:
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Gzip(io.RawIOBase):
    """Gzip without a name and a time in its header, so that the same tar gives the same blob."""

    def __init__(self, below: _Counting) -> None:
        self._below = below
        self._compress = isal_zlib.compressobj(level=isal_zlib.ISAL_BEST_COMPRESSION, wbits=31)
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        self._hash.update(data)
        self._below.write(self._compress.compress(data))
        return len(data)

    def finish(self) -> str:
        """Ends the stream, and returns the digest of what went in."""
        self._below.write(self._compress.flush())
        return f"sha256:{self._hash.hexdigest()}"


class _Tail:
    """A file that is only written to, and knows where it is: all that tarfile needs to write."""

    def __init__(self, packer: _Gzip) -> None:
        self._stream, self._at = io.BufferedWriter(cast(io.RawIOBase, packer), _BUFFER), 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self._stream.flush()


def pack(folder: str, blob: str, *, latest_mtime: int | None = None, without: Sequence[str] = ()) -> Packed:
    """Packs what an overlay's upper folder holds as a gzip layer, to a new file.

    The same content gives the same bytes: entries are sorted, and user names, gzip's time and the times of directories are
    left out. latest_mtime: no file is younger than that (seconds since the epoch; SOURCE_DATE_EPOCH).
    without: directories that get no entry of their own, so that they stay as they are in the layers below.
    """
    entries, left_out = 0, {*without}
    with open(blob, "xb") as file:
        out = _Counting(file)
        packer = _Gzip(out)
        tail = _Tail(packer)
        with tarfile.open(fileobj=cast(IO[bytes], tail), mode="w", format=tarfile.PAX_FORMAT) as tar:
            seen: dict[tuple[int, int], str] = {}
            for path in _walk(folder):
                if path in left_out:
                    continue
                entries += _pack_entry(tar, folder, path, seen, latest_mtime)
        tail.flush()
        diff_id = packer.finish()
    return Packed(out.digest, out.size, diff_id, entries)


def _walk(folder: str) -> list[str]:
    """The paths of everything under a folder, however deep, sorted, parents first."""
    paths, waiting = [], [("", True)]
    while waiting:
        path, is_folder = waiting.pop()
        paths.append(path)
        if is_folder:
            entries = sorted(os.scandir(os.path.join(folder, path)), key=lambda entry: entry.name, reverse=True)
            waiting += [(os.path.join(path, entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    return paths[1:]


def _pack_entry(tar: tarfile.TarFile, folder: str, path: str, seen: dict[tuple[int, int], str], latest_mtime: int | None) -> int:
    """Writes the entry, or the two, of one file. Returns how many."""
    full = os.path.join(folder, path)
    status = os.lstat(full)
    if stat.S_ISSOCK(status.st_mode):
        return 0  # no one listens on it any more
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        parent, _, name = path.rpartition("/")
        mark = tarfile.TarInfo(os.path.join(parent, WHITEOUT + name))
        mark.mode = 0
        tar.addfile(mark)
        return 1
    entry = tarfile.TarInfo(path)
    entry.mode, entry.uid, entry.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    entry.mtime = min(int(status.st_mtime), latest_mtime if latest_mtime is not None else int(status.st_mtime))
    attributes = {name: os.getxattr(full, name, follow_symlinks=False) for name in os.listxattr(full, follow_symlinks=False)}
    entry.pax_headers = {
        XATTR + name: value.decode("utf-8", "surrogateescape")
        for name, value in sorted(attributes.items())
        if not name.startswith((_RESERVED, "security.selinux"))
    }
    if stat.S_ISDIR(status.st_mode):
        entry.type, entry.mtime = tarfile.DIRTYPE, 0
        tar.addfile(entry)
        if attributes.get(OPAQUE) == b"y":
            mark = tarfile.TarInfo(os.path.join(path, OPAQUE_MARK))
            mark.mode = 0
            tar.addfile(mark)
            return 2
        return 1
    if (first := seen.setdefault((status.st_dev, status.st_ino), path)) != path:
        entry.type, entry.linkname = tarfile.LNKTYPE, first
        tar.addfile(entry)
    elif stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(full)
        tar.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        entry.size = status.st_size
        with open(full, "rb") as content:
            tar.addfile(entry, content)
    else:
        entry.type = {stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}.get(
            stat.S_IFMT(status.st_mode), tarfile.FIFOTYPE
        )
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        tar.addfile(entry)
    return 1
