"""Files from a container and into it (`cp`), as tar archives, on both sides: the daemon's and the command's.

A container's processes may swap folders and links meanwhile, and an image may be made for this (CVE-2018-15664, CVE-2019-14271).
So nothing of the container's is executed or loaded; a path is resolved by the kernel with the container's root as its root
(openat2(2), RESOLVE_IN_ROOT); and below that everything goes from a folder's descriptor to the next, without following links.
"""

import os
import stat
import tarfile
from typing import BinaryIO

from highrt.pods.errors import FailedPrecondition, InvalidArgument, NotFound
from strata.linux import beneath, syscalls

_INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def pack(root: int, path: str, out: BinaryIO) -> None:
    """Writes what is at a path, with all below it, under its own name. root: the folder that the path begins in, a descriptor.
    The path's last name is followed where the path ends in a slash. Raises NotFound, OSError."""
    inside = beneath.clean(path)
    folder = _open(root, os.path.dirname(inside), os.O_RDONLY | os.O_DIRECTORY)
    name = os.path.basename(inside)
    try:
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=64 * 1024) as archive:
            if not name:
                _pack_folder(folder, ".", archive)
            elif path.endswith(("/", "/.")):
                inner = _open(root, inside, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _pack_folder(inner, name, archive)
                finally:
                    os.close(inner)
            else:
                if not _pack(folder, name, name, archive):
                    raise NotFound(f"no such file or directory: {inside}")
    except RecursionError:
        raise FailedPrecondition(f"{inside} has folders within folders, more than can be followed") from None
    finally:
        os.close(folder)


def _pack(folder: int, name: str, stored: str, archive: tarfile.TarFile) -> bool:
    """Whether it was there; in a folder that is read it may have gone meanwhile. What is no file, folder or link is left out."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                _pack_folder(inner, stored, archive)
            finally:
                os.close(inner)
        elif stat.S_ISREG(status.st_mode):
            _pack_file(folder, name, stored, archive)
        elif stat.S_ISLNK(status.st_mode):
            entry = _entry(stored, status)
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
            archive.addfile(entry)
    except FileNotFoundError:
        return False
    return True


def _pack_folder(folder: int, stored: str, archive: tarfile.TarFile) -> None:
    entry = _entry(stored, os.fstat(folder))
    entry.type = tarfile.DIRTYPE
    archive.addfile(entry)
    for name in sorted(os.listdir(folder)):
        _pack(folder, name, f"{stored}/{name}", archive)


def _pack_file(folder: int, name: str, stored: str, archive: tarfile.TarFile) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return  # it was exchanged for something else, a pipe that nobody writes to perhaps
        entry = _entry(stored, status)
        entry.size = status.st_size
        archive.addfile(entry, _Exactly(file, entry.size))


def _entry(stored: str, status: os.stat_result) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(stored)
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    return entry


class _Exactly:
    """So many bytes of a file, which may become shorter or longer while it is read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1, /) -> bytes:
        size = min(size, self._left)
        data = self._file.read(size).ljust(size, b"\0")
        self._left -= size
        return data


def unpack(root: int, path: str, source: BinaryIO, *, owner: tuple[int, int] | None = None) -> None:
    """Puts an archive at a path: into the folder that is there, else under that name into the folder above, which must be there.

    owner: who files are given to, None for whom the archive names. Raises NotFound, FailedPrecondition (a folder where a file is,
    or the other way round), InvalidArgument (no archive), OSError.
    """
    inside = beneath.clean(path)
    into, name = _destination(root, inside, wants_folder=path.endswith(("/", "/.")))
    try:
        with tarfile.open(fileobj=source, mode="r|*", bufsize=64 * 1024) as archive:
            for entry in archive:
                _unpack(into, name, entry, archive, owner)
    except tarfile.TarError as error:
        raise InvalidArgument(f"cp: what came is no tar archive: {error}") from None
    finally:
        os.close(into)


def _destination(root: int, inside: str, *, wants_folder: bool) -> tuple[int, str]:
    """The folder to put it into, and what the archive's first name is to be there ("" for itself)."""
    try:
        return _open(root, inside, os.O_RDONLY | os.O_DIRECTORY), ""
    except (NotFound, FailedPrecondition):
        if wants_folder:
            raise
    return _open(root, os.path.dirname(inside), os.O_RDONLY | os.O_DIRECTORY), os.path.basename(inside)


def _unpack(into: int, name: str, entry: tarfile.TarInfo, archive: tarfile.TarFile, owner: tuple[int, int] | None) -> None:
    parts = _parts(entry.name, name)
    folder = os.dup(into)
    try:
        uid, gid = owner or (entry.uid, entry.gid)
        for part in parts[:-1]:  # an archive need not name its folders
            folder = _replace(folder, _folder(folder, part, uid, gid))
        last = parts[-1] if parts else "."
        if entry.isdir():
            if last != ".":
                _make_folder(folder, last)
                folder = _replace(folder, os.open(last, _FOLDER, dir_fd=folder))
                os.fchmod(folder, entry.mode & 0o7777)
                os.fchown(folder, uid, gid)
        elif entry.issym():
            _remove(folder, last)
            os.symlink(entry.linkname, last, dir_fd=folder)
            os.chown(last, uid, gid, dir_fd=folder, follow_symlinks=False)
        elif entry.isreg():
            _unpack_file(folder, last, entry, archive, uid, gid)
        elif entry.islnk():
            _link(into, _parts(entry.linkname, name), folder, last)
    finally:
        os.close(folder)


def _parts(stored: str, name: str) -> list[str]:
    """The names from the destination on to an entry. name: what the first is to be, "" for what it is. Raises InvalidArgument."""
    parts = [part for part in stored.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"cp: {stored!r} leads out of the archive")
    return [name, *parts[1:]] if name else parts


def _folder(folder: int, name: str, uid: int, gid: int) -> int:
    """The descriptor of a folder in a folder, which is made where it is missing."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=folder)
        os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
        return os.open(name, _FOLDER, dir_fd=folder)


def _link(into: int, target: list[str], folder: int, name: str) -> None:
    """One more name for a file that the archive had before."""
    above = os.dup(into)
    try:
        for part in target[:-1]:
            above = _replace(above, os.open(part, _FOLDER, dir_fd=above))
        _remove(folder, name)
        os.link(target[-1], name, src_dir_fd=above, dst_dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(above)


def _unpack_file(folder: int, name: str, entry: tarfile.TarInfo, archive: tarfile.TarFile, uid: int, gid: int) -> None:
    content = archive.extractfile(entry)
    _remove(folder, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
        while content and (data := content.read(_CHUNK)):
            file.write(data)
        file.flush()
        os.fchown(file.fileno(), uid, gid)
        os.fchmod(file.fileno(), entry.mode & 0o7777)
        os.utime(file.fileno(), (entry.mtime, entry.mtime))


def _make_folder(folder: int, name: str) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise FailedPrecondition(f"cp: cannot put the folder {name!r} where there is something else") from None


def _remove(folder: int, name: str) -> None:
    """Takes a file away for another one: a link there is replaced, and never written through."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise FailedPrecondition(f"cp: cannot put a file where the folder {name!r} is") from None


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _open(root: int, inside: str, flags: int) -> int:
    try:
        return syscalls.openat2(root, inside.lstrip("/") or ".", flags | os.O_CLOEXEC, _INSIDE)
    except FileNotFoundError:
        raise NotFound(f"no such file or directory: {inside}") from None
    except NotADirectoryError:
        raise FailedPrecondition(f"{inside} is no directory") from None
