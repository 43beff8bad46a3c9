"""COPY and ADD: what a pattern means in a context, the digest of it, and writing it into a root file system.

A context is a folder, another stage's root or an image's: its symbolic links are resolved inside it, as are those of the
root that is written to.
"""

import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from highrt.images.decompress import broken, decompressed
from highrt.images.errors import BuildError
from highrt.images.ignore import Ignore, translate
from highrt.images.layers import extract
from highrt.images.rooted import RootedTree
from highrt.images.tarstream import TarError, TarStream

_CHUNK = 1 << 20
_MAGIC = set("*?[")
_LINKS = 40


@dataclass(frozen=True)
class Entry:
    """One file of a context. path: in the context; name: below the source that a person named ("" for itself)."""

    path: str
    name: str
    status: os.stat_result


@dataclass(frozen=True)
class Source:
    """Something that COPY names: a file, or a directory with all that is in it."""

    path: str
    entries: tuple[Entry, ...]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.entries[0].status.st_mode)


@dataclass(frozen=True)
class Ownership:
    """Of all that is copied. mode None keeps each file's own."""

    uid: int = 0
    gid: int = 0
    mode: int | None = None


def find(context: RootedTree, pattern: str, ignore: Ignore) -> list[Source]:
    """What a pattern names. Raises BuildError where it names nothing."""
    # `..` cannot lead out of a context: the kernel stops it at the root, as for a process there.
    paths = [pattern.strip("/")]
    if _MAGIC & set(pattern):
        paths = sorted(_glob(context, pattern.strip("/")))
    sources = []
    for path in paths:
        status = context.stat(path, follow=True)
        if status is None or (path and ignore.matches(path)):
            continue
        entries = [Entry(path, "", status)]
        if stat.S_ISDIR(status.st_mode):
            entries += _below(context, path, "", ignore)
        sources.append(Source(path, tuple(entries)))
    if not sources:
        raise BuildError(f"{pattern!r} is not in the context, or its ignore file leaves it out")
    return sources


def _glob(context: RootedTree, pattern: str) -> list[str]:
    found = [""]
    for part in pattern.split("/"):
        if not _MAGIC & set(part):
            found = [f"{path}/{part}".strip("/") for path in found]
            continue
        expression = re.compile(translate(part))
        found = [f"{path}/{name}".strip("/") for path in found for name in _names(context, path) if expression.fullmatch(name)]
    return [path for path in found if context.stat(path) is not None]


def _names(context: RootedTree, path: str) -> list[str]:
    try:
        descriptor = context.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def _below(context: RootedTree, path: str, name: str, ignore: Ignore) -> Iterator[Entry]:
    for child in _names(context, path):
        inner, inner_name = f"{path}/{child}".lstrip("/"), f"{name}/{child}".lstrip("/")
        status = context.stat(inner)
        if status is None or stat.S_ISSOCK(status.st_mode):
            continue
        ignored = ignore.matches(inner)
        if stat.S_ISDIR(status.st_mode):
            if ignored and not ignore.has_exceptions:
                continue
            inside = [*_below(context, inner, inner_name, ignore)]
            if not ignored or inside:
                yield Entry(inner, inner_name, status)
                yield from inside
        elif not ignored:
            yield Entry(inner, inner_name, status)


def digest(context: RootedTree, sources: Sequence[Source]) -> str:
    """What the build cache knows a copy by: names, kinds, modes and contents; not times."""
    whole = hashlib.sha256()
    for source in sources:
        for entry in source.entries:
            mode = entry.status.st_mode
            whole.update(f"{os.path.basename(source.path)}\0{entry.name}\0{mode:o}\0".encode("utf-8", "surrogateescape"))
            if stat.S_ISLNK(mode):
                whole.update(os.fsencode(context.read_link(entry.path) or ""))
            elif stat.S_ISREG(mode):
                for chunk in _content(context, entry):
                    whole.update(chunk)
            elif not stat.S_ISDIR(mode):
                whole.update(b"%d" % entry.status.st_rdev)
            whole.update(b"\0")
    return whole.hexdigest()


def copy(
    context: RootedTree,
    sources: Sequence[Source],
    root: RootedTree,
    destination: str,
    owner: Ownership,
    *,
    unpack_archives: bool,
    several: bool = False,
) -> list[str]:
    """Writes sources to a destination, by the rules of COPY: into it where it ends with a slash or is a directory there.

    unpack_archives: as ADD does with a local tar archive. several: these are not all that is written there. Returns the
    directories that had to be made on the way. Raises BuildError.
    """
    made: list[str] = []
    there = root.stat(destination, follow=True)
    into = destination.endswith("/") or (there is not None and stat.S_ISDIR(there.st_mode))
    if (several or len(sources) > 1) and not into:
        raise BuildError(f"several files are copied to {destination!r}: end it with a slash to make it a directory")
    for source in sources:
        if source.is_directory:
            if there is not None and not stat.S_ISDIR(there.st_mode):
                raise BuildError(f"{destination!r} is a file in the image, a directory cannot be copied to it")
            made += _make_directories(root, destination, owner)
            for entry in source.entries[1:]:
                _write(context, entry, root, f"{destination}/{entry.name}", owner)
        elif unpack_archives and _unpack(context, source.entries[0], root, destination):
            continue
        else:
            target = f"{destination}/{os.path.basename(source.path)}" if into else destination
            made += _make_directories(root, os.path.dirname(target.rstrip("/")), owner)
            _write(context, source.entries[0], root, target, owner)
    return made


def make_directory(root: RootedTree, path: str) -> bool:
    """WORKDIR: makes it and those on the way to it. Returns whether it was not there."""
    found = root.stat(path, follow=True)
    if found is not None:
        if not stat.S_ISDIR(found.st_mode):
            raise BuildError(f"{path!r} is a file in the image")
        return False
    _make_directories(root, path, Ownership())
    return True


def _make_directories(root: RootedTree, path: str, owner: Ownership, links: int = _LINKS) -> list[str]:
    """Returns those that were not there."""
    made = []
    parts = [part for part in path.split("/") if part]
    for depth in range(1, len(parts) + 1):
        folder = "/".join(parts[:depth])
        found = root.stat(folder, follow=True)
        if found is None and (link := root.read_link(folder)) is not None:
            # a link to what is not there: that is made, inside the root
            if not links:
                raise BuildError(f"/{folder} leads through too many symbolic links")
            target = os.path.normpath(os.path.join("/", os.path.dirname(folder), link))
            made += _make_directories(root, target, owner, links - 1)
        elif found is None:
            root.directory(folder, 0o755)
            root.own(folder, owner.uid, owner.gid)
            made.append(folder)
        elif not stat.S_ISDIR(found.st_mode):
            raise BuildError(f"/{folder} is a file in the image, and no directory")
    return made


def _write(context: RootedTree, entry: Entry, root: RootedTree, target: str, owner: Ownership) -> None:
    kind = entry.status.st_mode
    mode = stat.S_IMODE(kind) if owner.mode is None else owner.mode
    if stat.S_ISDIR(kind):
        found = root.stat(target, follow=True)
        if found is not None and stat.S_ISDIR(found.st_mode):
            return  # what is there keeps its attributes
        root.directory(target)
    elif stat.S_ISLNK(kind):
        root.symlink(target, context.read_link(entry.path) or "")
        root.own(target, owner.uid, owner.gid)
        root.touch(target, entry.status.st_mtime_ns)
        return
    elif stat.S_ISREG(kind):
        descriptor = root.file(target)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in _content(context, entry):
                file.write(chunk)
    elif stat.S_ISSOCK(kind):
        raise BuildError(f"{entry.path!r} is a socket, which cannot be copied")
    else:
        root.node(target, kind, entry.status.st_rdev)
    root.own(target, owner.uid, owner.gid)
    root.chmod(target, mode)
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):  # others have none, and to open one might wait, or do something
        root.set_xattrs(target, _attributes(context, entry))
    root.touch(target, entry.status.st_mtime_ns)


def _content(context: RootedTree, entry: Entry) -> Iterator[bytes]:
    with os.fdopen(context.open(entry.path, os.O_RDONLY), "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _attributes(context: RootedTree, entry: Entry) -> dict[str, bytes]:
    """A file's extended attributes that mean something in another place."""
    descriptor = context.open(entry.path, os.O_RDONLY)
    try:
        names = [name for name in os.listxattr(descriptor) if name == "security.capability" or name.startswith("user.")]
        return {name: os.getxattr(descriptor, name) for name in names}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    finally:
        os.close(descriptor)


def _unpack(context: RootedTree, entry: Entry, root: RootedTree, destination: str) -> bool:
    """Unpacks a local archive into a directory, where the file is one."""
    with ExitStack() as stack:
        file = stack.enter_context(os.fdopen(context.open(entry.path, os.O_RDONLY), "rb"))
        if not _is_archive(file):
            return False
        file.seek(0)
        _make_directories(root, destination, Ownership())
        extract(decompressed(file, stack), root, destination)
    return True


def _is_archive(file: io.BufferedReader) -> bool:
    with ExitStack() as stack:
        try:
            return next(iter(TarStream(decompressed(file, stack))), None) is not None
        except TarError:
            return False
        except broken():
            return False
