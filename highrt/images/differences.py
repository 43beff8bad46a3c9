"""What an image has added (A), changed (C) and deleted (D), beside the layers below its topmost one or beside another image.

Both are mounted and walked, so that overlayfs says what whiteouts and opaque directories come to. Layers that both have are the
same inodes, which are not looked into.
"""

import asyncio
import os
import stat
from itertools import zip_longest

from highrt.images.model import Image
from highrt.images.service import ImageService, layers_of

ADDED, CHANGED, DELETED = "A", "C", "D"
_CHUNK = 1 << 18


async def differences(service: ImageService, image: Image, base: Image | None = None) -> list[tuple[str, bytes]]:
    """(kind, absolute path), sorted by path. base: None for the image's own lower layers.

    A directory in which something has changed is named too, as docker and podman do; of what was deleted, only the uppermost.
    Raises InvalidImage, StorageFailed.
    """
    layers = layers_of(service.content.document(image.manifest.digest), image.id)
    if base:
        below, below_ids = layers_of(service.content.document(base.manifest.digest), base.id), base.diff_ids
    else:
        below, below_ids = layers[:-1], image.diff_ids[:-1]
    async with service.mounted(below, below_ids) as (old, _), service.mounted(layers, image.diff_ids) as (new, _):
        return await asyncio.to_thread(compare, os.fsencode(old), os.fsencode(new))


def compare(old: bytes, new: bytes) -> list[tuple[str, bytes]]:
    """What has to happen to one tree to make it the other; both must stay as they are meanwhile. Raises OSError."""
    found: dict[bytes, str] = {}
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        was, now = _names(old + folder), _names(new + folder)
        for name in was | now:
            path = folder + b"/" + name
            if name not in now:
                found[path] = DELETED
                continue
            before = os.lstat(old + path) if name in was else None
            after = os.lstat(new + path)
            if before is None:
                found[path] = ADDED
            elif not _is_same(old + path, before, new + path, after):
                found[path] = CHANGED
            if stat.S_ISDIR(after.st_mode) or (before and stat.S_ISDIR(before.st_mode)):
                waiting.append(path)
    for path in [*found]:
        while (path := path.rpartition(b"/")[0]) and path not in found:
            found[path] = CHANGED
    return [(found[path], path) for path in sorted(found)]


def _names(folder: bytes) -> set[bytes]:
    """What is in a directory; nothing in what is none, or is not there."""
    try:
        return set(os.listdir(folder)) if not os.path.islink(folder) else set()
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _is_same(old: bytes, before: os.stat_result, new: bytes, after: os.stat_result) -> bool:
    kind = stat.S_IFMT(after.st_mode)
    if (before.st_mode, before.st_uid, before.st_gid) != (after.st_mode, after.st_uid, after.st_gid):
        return False
    if kind != stat.S_IFDIR:
        if before.st_ino == after.st_ino:
            return True
        if (before.st_size, before.st_mtime_ns, before.st_rdev) != (after.st_size, after.st_mtime_ns, after.st_rdev):
            return False
    if _attributes(old) != _attributes(new):
        return False
    if kind == stat.S_IFLNK:
        return os.readlink(old) == os.readlink(new)
    return kind != stat.S_IFREG or _has_same_content(old, new)


def _attributes(path: bytes) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def _has_same_content(old: bytes, new: bytes) -> bool:
    with open(old, "rb") as one, open(new, "rb") as other:
        pieces = zip_longest(iter(lambda: one.read(_CHUNK), b""), iter(lambda: other.read(_CHUNK), b""))
        return all(first == second for first, second in pieces)
