"""Layers: an image-spec tar applied to an overlayfs folder, and an overlayfs folder packed as such a tar.

Whiteouts change form on the way (image-spec, layer.md): `.wh.NAME` is overlay's character device 0/0, `.wh..wh..opq` its
attribute trusted.overlay.opaque. The layer is written straight into its own folder, without those below it mounted.
"""

import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from highrt.images.errors import DigestMismatch, InvalidImage
from highrt.images.rooted import OPAQUE, RootedTree

BROKEN: tuple[type[Exception], ...] = (
    EOFError,
    zlib.error,
    cast(type[Exception], isal_zlib.IsalError),  # whose stub calls it a value
    gzip.BadGzipFile,
    zstandard.ZstdError,
)
"""What reading a compressed stream that is none, or is not whole, raises."""
_BUFFER = 1 << 18
_WHITEOUT, _OPAQUE_MARK = ".wh.", ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_RESERVED = "trusted.overlay."
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Applied:
    """What unpacking a layer came to."""

    diff_id: str
    bytes: int
    inodes: int


@dataclass(frozen=True)
class Packed:
    """A layer's blob: of the file itself (digest, size), and of the tar inside (diff_id). entries 0: an empty layer."""

    digest: str
    size: int
    diff_id: str
    entries: int


def decompressed(blob: io.BufferedReader, stack: ExitStack) -> Readable:
    """The tar stream of a layer's blob. Its first bytes tell what it is packed with: media types are not to be trusted."""
    magic = blob.peek(4)[:4]
    if magic[:2] == _GZIP:
        unzipped: Readable = stack.enter_context(igzip.GzipFile(fileobj=blob, mode="rb"))
        return unzipped
    if magic == _ZSTD:
        return stack.enter_context(zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True))
    return blob


class _Hashing(io.RawIOBase):
    """Passes a tar stream on, and hashes all of it.

    A stream that lacks the padding after its last file, or the empty blocks that end a tar, gets them: some tools leave
    them out (umoci's insert), and Go's tar reader, which most runtimes use, does not mind.
    """

    def __init__(self, source: Readable) -> None:
        self._source, self._hash = source, hashlib.sha256()
        self._padding: bytes | None = None
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        if data:
            self._hash.update(data)
            self.size += len(data)
        else:
            if self._padding is None:
                self._padding = bytes(-self.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
            data, self._padding = self._padding[: len(buffer)], self._padding[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def drain(self) -> str:
        """Reads the rest (a tar may be padded after its end), and returns the digest of all."""
        while self.read(_BUFFER):
            pass
        return f"sha256:{self._hash.hexdigest()}"


class _Tape:
    """A stream as a file that can only be wound forward: all that tarfile needs to read headers one after the other.

    Its own stream mode copies the rest of its buffer at every read, which costs more than all the rest of unpacking.
    """

    def __init__(self, stream: _Hashing) -> None:
        self._stream, self._at = io.BufferedReader(stream, _BUFFER), 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            raise tarfile.ReadError(f"the archive refers back to position {position}")
        while self._at < position and self.read(min(position - self._at, _BUFFER)):
            pass
        return self._at


def unpack(blob: str, folder: str, *, diff_id: str, below: Sequence[str] = ()) -> Applied:
    """Unpacks a layer's blob into an empty folder.

    below: the folders of the layers underneath, topmost first. Raises DigestMismatch where the tar is not the one that
    diff_id names, InvalidImage where it is no tar or holds what a layer must not.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open(blob, "rb"))
            stream = _Hashing(decompressed(file, stack))
            try:
                size, inodes = _apply(stream, folder, below)
            except tarfile.TarError as error:
                found = stream.drain()
                if found != diff_id:
                    raise DigestMismatch(f"layer {diff_id} was refused: its content has the digest {found}") from None
                raise InvalidImage(f"layer {diff_id} is not a whole tar archive: {error}") from None
            found = stream.drain()
    except BROKEN as error:
        raise InvalidImage(f"layer {diff_id} cannot be decompressed: {error}") from None
    if found != diff_id:
        raise DigestMismatch(f"layer {diff_id} was refused: its content has the digest {found}")
    return Applied(found, size, inodes)


def _apply(stream: _Hashing, folder: str, below: Sequence[str]) -> tuple[int, int]:
    _root_like(folder, below)
    with (
        RootedTree(folder, below) as tree,
        tarfile.open(fileobj=cast(IO[bytes], _Tape(stream)), mode="r:") as tar,
    ):
        size, inodes, end = _extract(tar, tree, "", whiteouts=True)
    stream.drain()
    if end > stream.size:
        raise InvalidImage(f"the layer ends after {stream.size} bytes, in the middle of a file")
    return size, inodes


def extract(tar: tarfile.TarFile, tree: RootedTree, folder: str) -> None:
    """Makes the entries of an archive below a folder of a tree.

    Raises InvalidImage where an entry cannot be made, OSError where the file system fails.
    """
    _extract(tar, tree, folder, whiteouts=False)


def _extract(tar: tarfile.TarFile, tree: RootedTree, prefix: str, *, whiteouts: bool) -> tuple[int, int, int]:
    """Makes the entries. Returns bytes, inodes, and where in the stream the last content ends.

    whiteouts: it is a layer, whose `.wh.` entries hide files of the layers below.
    """
    size = inodes = end = 0
    directories: dict[str, int] = {}
    for entry in tar:
        cast(Any, tar).members.clear()  # tarfile keeps every header: a layer may have a million
        path = os.path.join(prefix, entry.name.strip("/"))
        name = path.rpartition("/")[2]
        try:
            if whiteouts and name.startswith(_WHITEOUT):
                _whiteout(tree, path, name)
                continue
            size += _place(tree, tar, entry, path, prefix)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE):
                raise
            raise InvalidImage(f"the archive's entry {entry.name!r} cannot be unpacked: {error}") from None
        inodes += 1
        if entry.isreg() and not entry.issparse():
            end = max(end, entry.offset_data + entry.size)
        if entry.isdir():
            directories[path] = _nanoseconds(entry)
        else:
            directories.pop(path, None)
    # Last, because each file that is made in a directory changes its time.
    for path, mtime in reversed(directories.items()):
        found = tree.stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            tree.touch(path, mtime)
    return size, inodes, end


def _root_like(folder: str, below: Sequence[str]) -> None:
    """The root directory is like that of the layer below, until an entry of its own says more."""
    os.chmod(folder, 0o755)
    if below:
        like = os.stat(below[0])
        os.chown(folder, like.st_uid, like.st_gid)
        os.chmod(folder, stat.S_IMODE(like.st_mode))


def _whiteout(tree: RootedTree, path: str, name: str) -> None:
    parent = path[: -len(name)]
    if name == _OPAQUE_MARK:
        if tree.stat(parent) is None:
            tree.directory(parent.rstrip("/"), 0o755)
        tree.set_xattrs(parent, {OPAQUE: b"y"})
        return
    hidden = name[len(_WHITEOUT) :]
    if hidden in ("", ".", ".."):
        raise OSError(errno.EINVAL, "a whiteout must name a file")
    # A whiteout hides what is in the layers below, never what its own layer has.
    if tree.stat(parent + hidden) is None:
        tree.node(parent + hidden, stat.S_IFCHR)


def _place(tree: RootedTree, tar: tarfile.TarFile, entry: tarfile.TarInfo, path: str, prefix: str) -> int:
    """Makes one entry. Returns the bytes of its content."""
    size = 0
    if entry.isdir():
        tree.directory(path)
    elif entry.isreg():
        size = entry.size
        source = tar.extractfile(entry)
        descriptor = tree.file(path)
        try:
            while source is not None and (data := source.read(_BUFFER)):
                _write_all(descriptor, data)
        finally:
            os.close(descriptor)
    elif entry.issym():
        tree.symlink(path, entry.linkname)
    elif entry.islnk():
        tree.link(path, os.path.join(prefix, entry.linkname.lstrip("/")))
        return 0
    elif entry.ischr() or entry.isblk():
        kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
        tree.node(path, kind | 0o600, os.makedev(entry.devmajor, entry.devminor))
    elif entry.isfifo():
        tree.node(path, stat.S_IFIFO | 0o600)
    else:
        raise InvalidImage(f"the layer's entry {entry.name!r} has the unknown type {entry.type!r}")
    tree.own(path, entry.uid, entry.gid)
    if not entry.issym():
        tree.chmod(path, stat.S_IMODE(entry.mode))
    # After the owner: a chown takes security.capability away.
    tree.set_xattrs(path, _xattrs(entry))
    if not entry.isdir():
        tree.touch(path, _nanoseconds(entry))
    return size


def _xattrs(entry: tarfile.TarInfo) -> dict[str, bytes]:
    """The extended attributes of a header. Overlay's own are not a layer's to set."""
    return {
        key[len(_XATTR) :]: value.encode("utf-8", "surrogateescape")
        for key, value in entry.pax_headers.items()
        if key.startswith(_XATTR) and not key.startswith(_XATTR + _RESERVED)
    }


def _nanoseconds(entry: tarfile.TarInfo) -> int:
    return max(int(entry.mtime * 1_000_000_000), 0)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


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
            for path in _walk(folder, ""):
                if path in left_out:
                    continue
                entries += _pack_entry(tar, folder, path, seen, latest_mtime)
        tail.flush()
        diff_id = packer.finish()
    return Packed(out.digest, out.size, diff_id, entries)


def _walk(folder: str, below: str) -> list[str]:
    """The paths of everything under a folder, sorted, parents first."""
    paths = []
    for entry in sorted(os.scandir(os.path.join(folder, below)), key=lambda entry: entry.name):
        path = os.path.join(below, entry.name)
        paths.append(path)
        if entry.is_dir(follow_symlinks=False):
            paths += _walk(folder, path)
    return paths


def _pack_entry(tar: tarfile.TarFile, folder: str, path: str, seen: dict[tuple[int, int], str], latest_mtime: int | None) -> int:
    """Writes the entry, or the two, of one file. Returns how many."""
    full = os.path.join(folder, path)
    status = os.lstat(full)
    if stat.S_ISSOCK(status.st_mode):
        return 0  # no one listens on it any more
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        parent, _, name = path.rpartition("/")
        mark = tarfile.TarInfo(os.path.join(parent, _WHITEOUT + name))
        mark.mode = 0
        tar.addfile(mark)
        return 1
    entry = tarfile.TarInfo(path)
    entry.mode, entry.uid, entry.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    entry.mtime = min(int(status.st_mtime), latest_mtime if latest_mtime is not None else int(status.st_mtime))
    attributes = {name: os.getxattr(full, name, follow_symlinks=False) for name in os.listxattr(full, follow_symlinks=False)}
    entry.pax_headers = {
        _XATTR + name: value.decode("utf-8", "surrogateescape")
        for name, value in sorted(attributes.items())
        if not name.startswith((_RESERVED, "security.selinux"))
    }
    if stat.S_ISDIR(status.st_mode):
        entry.type, entry.mtime = tarfile.DIRTYPE, 0
        tar.addfile(entry)
        if attributes.get(OPAQUE) == b"y":
            mark = tarfile.TarInfo(os.path.join(path, _OPAQUE_MARK))
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
