"""Layers: an image-spec tar applied to an overlayfs folder.

Whiteouts change form on the way (image-spec, layer.md): `.wh.NAME` is overlay's character device 0/0, `.wh..wh..opq` its
attribute trusted.overlay.opaque. The layer is written straight into its own folder, without those below it mounted or even there:
what it takes from them, the attributes of directories that it does not describe, is added at last by `inherit`.

One thread decompresses and hashes, in C and without the interpreter's lock; the other one reads headers and makes files.
"""

import errno
import hashlib
import io
import os
import queue
import select
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from highrt.images.decompress import broken, decompressed
from highrt.images.errors import DigestMismatch, InvalidImage
from highrt.images.model import Applied
from highrt.images.rooted import OPAQUE, RootedTree
from highrt.images.tarstream import Entry, Readable, TarError, TarStream
from strata.linux import syscalls

WHITEOUT, OPAQUE_MARK = ".wh.", ".wh..wh..opq"
XATTR = "SCHILY.xattr."
_RESERVED = ("trusted.overlay.", "user.overlay.")
"""Extended attributes that overlayfs obeys: a layer cannot set them."""
_CHUNK = 1 << 20
_AHEAD = 3
_IN_MODIFY = 2
_LOOK_MILLISECONDS = 200
_FILE_SYSTEM_FAILS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS})


@dataclass(frozen=True)
class Limits:
    """What one layer may come to, against those that are made to fill a disk or the memory.

    size: bytes of the tar. entries: how many. ratio: of the tar to its blob, once the tar is larger than `ratio_from` bytes:
    zeros become a thousand times smaller with gzip, and as small as one likes with zstd.
    """

    size: int = 1 << 38
    entries: int = 4_000_000
    ratio: int = 200
    ratio_from: int = 1 << 30


@dataclass(frozen=True)
class Blob:
    """A layer's blob. partial: where it is while it is downloaded; size: that of the whole, to tell when it is all there."""

    path: str
    partial: str = ""
    size: int = -1

    def is_whole(self) -> bool:
        """Whether all of it has arrived."""
        try:
            return not self.partial or os.stat(self.partial).st_size >= self.size
        except FileNotFoundError:  # it is in its place now
            return True


def unpack(blob: Blob, folder: str, *, diff_id: str, limits: Limits = Limits()) -> Applied:
    """Unpacks a layer's blob into an empty folder, as fast as it arrives. `inherit` completes it.

    Raises DigestMismatch where the tar is not the one that diff_id names, InvalidImage where it is no tar, is more than the
    limits allow or holds what a layer must not. Neither waits for the rest of a blob that is still arriving.
    """
    with ExitStack() as stack:
        os.chmod(folder, 0o755)
        stream = _Decompressing(blob, stack, hashlib.new(diff_id.partition(":")[0]), limits)
        try:
            with RootedTree(folder) as tree:
                made = _Maker(tree, "", whiteouts=True, limits=limits)
                made.all(TarStream(stream))
                stream.drain()
                root, implied = made.root, [*tree.implied]
            _note_implied(folder, implied)
        except TarError as error:
            if blob.is_whole() and stream.drain() != diff_id:
                raise DigestMismatch(f"layer {diff_id} was refused: its content has the digest {stream.digest}") from None
            raise InvalidImage(f"layer {diff_id} is not a whole tar archive: {error}") from None
        except broken() as error:
            raise InvalidImage(f"layer {diff_id} cannot be decompressed: {error}") from None
        if stream.digest != diff_id:
            raise DigestMismatch(f"layer {diff_id} was refused: its content has the digest {stream.digest}")
        return Applied(diff_id, made.bytes, made.inodes, complete=root and not implied)


def _implied_file(folder: str) -> Path:
    return Path(folder).with_name("implied")


def _note_implied(folder: str, paths: Sequence[str]) -> None:
    """Keeps the directories that no entry described, for `inherit`: there may be very many."""
    if paths:
        _implied_file(folder).write_bytes(b"\0".join(os.fsencode(path) for path in paths))


def inherit(folder: str, below: Sequence[str], *, root: bool = True) -> None:
    """Gives the directories that a layer only implies the attributes that they have in the layers below it.

    below: their folders, topmost first, whole. root: the layer does not describe its root either.
    """
    if below and root:
        like = os.stat(below[0])
        os.chown(folder, like.st_uid, like.st_gid)
        os.chmod(folder, stat.S_IMODE(like.st_mode))
    noted = _implied_file(folder)
    if noted.exists():
        if below:
            with RootedTree(folder) as tree, ExitStack() as stack:
                trees = [stack.enter_context(RootedTree(lower)) for lower in below]
                for path in noted.read_bytes().split(b"\0"):
                    tree.be_like(os.fsdecode(path), trees)
        noted.unlink()


class _Decompressing:
    """The tar inside a blob, read ahead by a thread of its own, hashed and counted."""

    def __init__(self, blob: Blob, stack: ExitStack, digest: "hashlib._Hash", limits: Limits) -> None:
        self._blob, self._hash, self._limits = blob, digest, limits
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._end, self._stopped = False, threading.Event()
        self.size = 0
        thread = threading.Thread(target=self._run, name="decompress", daemon=True)
        thread.start()
        stack.callback(self._stop, thread)

    def read(self, size: int = -1, /) -> bytes:
        """The next part, of any size; b"" at the end. Raises what decompressing raises."""
        if self._end:
            return b""
        found = self._queue.get()
        if isinstance(found, BaseException):
            self._end = True
            raise found
        self._end = not found
        return found

    def drain(self) -> str:
        """Reads the rest (a tar may be padded after its end), and returns the digest of all."""
        while self.read():
            pass
        return self.digest

    @property
    def digest(self) -> str:
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def _stop(self, thread: threading.Thread) -> None:
        self._stopped.set()
        while thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                raw = stack.enter_context(_Arriving(self._blob, self._stopped))
                source = decompressed(io.BufferedReader(raw, _CHUNK), stack)
                while data := source.read(_CHUNK):
                    self._hash.update(data)
                    self.size += len(data)
                    self._check(raw.read_bytes)
                    self._queue.put(data)
                    if self._stopped.is_set():
                        return
            self._queue.put(b"")
        except BaseException as error:
            self._queue.put(error)

    def _check(self, packed: int) -> None:
        limits = self._limits
        if self.size > limits.size:
            raise InvalidImage(f"a layer has more than {limits.size} bytes unpacked: no such layer is taken")
        if self.size > limits.ratio_from and self.size > limits.ratio * packed:
            raise InvalidImage(
                f"a layer unpacks to more than {limits.ratio} times its size, {self.size} bytes so far: no such layer is taken"
            )


class _Arriving(io.RawIOBase):
    """A blob that may still be downloaded: at the end of what is there, reading waits for more (inotify(7))."""

    def __init__(self, blob: Blob, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._left, self.read_bytes = blob.size, 0
        self._watch = -1
        try:
            self._file = os.open(blob.partial or blob.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._file = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
        if blob.partial:
            self._watch = syscalls.inotify_init()
            self._events = select.poll()
            self._events.register(self._watch, select.POLLIN)
            syscalls.inotify_add_watch(self._watch, f"/proc/self/fd/{self._file}", _IN_MODIFY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            count = os.readv(self._file, [buffer])
            self._left -= count
            self.read_bytes += count
            if count or self._watch < 0 or self._left <= 0:
                return count
            while not self._events.poll(_LOOK_MILLISECONDS):
                if self._stopped.is_set():
                    return 0
            os.read(self._watch, 4096)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
            if self._watch >= 0:
                os.close(self._watch)
        super().close()


def extract(source: Readable, tree: RootedTree, folder: str) -> None:
    """Makes the entries of a tar archive below a folder of a tree, as ADD does.

    Raises InvalidImage where it is no archive or an entry cannot be made, OSError where the file system fails.
    """
    try:
        _Maker(tree, folder.strip("/"), whiteouts=False, limits=Limits()).all(TarStream(source))
    except TarError as error:
        raise InvalidImage(f"it is not a whole tar archive: {error}") from None


class _Maker:
    """Makes the files of an archive. whiteouts: it is a layer, whose `.wh.` entries hide files of the layers below."""

    def __init__(self, tree: RootedTree, prefix: str, *, whiteouts: bool, limits: Limits) -> None:
        self._tree, self._prefix, self._whiteouts, self._limits = tree, prefix, whiteouts, limits
        self.bytes = self.inodes = 0
        self.root = False
        self._times: dict[str, int] = {}

    def all(self, tar: TarStream) -> None:
        """Raises InvalidImage, TarError, and OSError where the file system fails."""
        tree, count = self._tree, 0
        for entry in tar:
            count += 1
            if count > self._limits.entries:
                raise InvalidImage(f"the layer has more than {self._limits.entries} entries: no such layer is taken")
            path = _plain(entry.name)
            if self._prefix:
                path = f"{self._prefix}/{path}"
            name = path[path.rfind("/") + 1 :]
            try:
                if self._whiteouts and name.startswith(WHITEOUT):
                    self._whiteout(path, name)
                    continue
                if entry.kind == "0":
                    self._file(entry, path, tar)
                else:
                    self._place(entry, path)
            except OSError as error:
                if error.errno in _FILE_SYSTEM_FAILS:
                    raise
                raise InvalidImage(f"the archive's entry {entry.name!r} cannot be unpacked: {error}") from None
            except ValueError as error:  # a NUL in a name
                raise InvalidImage(f"the archive's entry {entry.name!r} cannot be unpacked: {error}") from None
            self.inodes += 1
            if entry.kind == "5":
                self._times[path] = entry.mtime_ns
                tree.implied.pop(path, None)
                self.root = self.root or not path
            elif path in self._times:
                del self._times[path]
        # Last, because each file that is made in a directory changes its time.
        for path, mtime in reversed(self._times.items()):
            found = tree.stat(path)
            if found is not None and stat.S_ISDIR(found.st_mode):
                tree.touch(path, max(mtime, 0))

    def _whiteout(self, path: str, name: str) -> None:
        tree, parent = self._tree, path[: -len(name)]
        if name == OPAQUE_MARK:
            if tree.stat(parent) is None:
                tree.directory(parent.rstrip("/"), 0o755)
            tree.set_xattrs(parent, {OPAQUE: b"y"})
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise OSError(errno.EINVAL, "a whiteout must name a file")
        # A whiteout hides what is in the layers below, never what its own layer has.
        if tree.stat(parent + hidden) is None:
            tree.node(parent + hidden, stat.S_IFCHR)

    def _file(self, entry: Entry, path: str, tar: TarStream) -> None:
        descriptor = self._tree.file(path)
        try:
            if entry.extents is not None:
                _write_extents(descriptor, entry, tar.content())
            else:
                for data in tar.content():
                    if os.write(descriptor, data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode & 0o7777)
            if entry.xattrs:
                # After the owner: a chown takes security.capability away.
                self._tree.set_xattrs(path, _allowed(entry.xattrs))
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns) if entry.mtime_ns > 0 else (0, 0))
        finally:
            os.close(descriptor)
        self.bytes += entry.size

    def _place(self, entry: Entry, path: str) -> None:
        tree, kind = self._tree, entry.kind
        if kind == "5":
            tree.directory(path)
        elif kind == "2":
            tree.symlink(path, entry.link)
        elif kind == "1":
            tree.link(path, os.path.join(self._prefix, entry.link.lstrip("/")))
            return
        elif kind in "34":
            tree.node(path, (stat.S_IFCHR if kind == "3" else stat.S_IFBLK) | 0o600, os.makedev(*entry.device))
        elif kind == "6":
            tree.node(path, stat.S_IFIFO | 0o600)
        else:
            raise InvalidImage(f"the archive's entry {entry.name!r} has the unknown type {kind!r}")
        tree.own(path, entry.uid, entry.gid)
        if kind != "2":
            tree.chmod(path, entry.mode & 0o7777)
        if entry.xattrs:
            tree.set_xattrs(path, _allowed(entry.xattrs))
        if kind != "5":
            tree.touch(path, max(entry.mtime_ns, 0))


def _plain(name: str) -> str:
    """A name of an archive without the parts of it that say nothing; `..` stays for the kernel to look at."""
    path = name.strip("/")
    if path[:2] == "./":
        path = path[2:]
    if path[:1] == "." or "/." in path or "//" in path:
        path = "/".join(part for part in path.split("/") if part not in ("", "."))
    return path


def _allowed(attributes: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value for name, value in attributes.items() if not name.startswith(_RESERVED)}


def _write_extents(descriptor: int, entry: Entry, content: Iterator[bytes]) -> None:
    """A sparse file's parts, with holes between them."""
    data = b""
    for offset, length in entry.extents or ():
        while length:
            data = data or next(content)
            part, data = data[:length], data[length:]
            if os.pwrite(descriptor, part, offset) != len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset += len(part)
            length -= len(part)
    os.ftruncate(descriptor, entry.sparse_size)
