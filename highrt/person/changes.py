"""What a container has written, as `diff` shows it: its writable layer beside the image's."""

import os
import stat
from collections.abc import Iterable, Iterator

from highrt.images.differences import ADDED, CHANGED, DELETED
from highrt.images.snapshots import Rootfs

_PLACES = ("/dev", "/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
"""Where every container has a mount, for which the runtime makes a folder or file."""


def of(rootfs: Rootfs, mounted: Iterable[str]) -> list[tuple[str, bytes]]:
    """(kind, absolute path), sorted by path. mounted: where the container has mounts; what was made for those is not its work."""
    places = {os.fsencode(os.path.normpath(path)) for path in (*_PLACES, *mounted)}
    lower = [os.fsencode(path) for path in rootfs.lower]
    return sorted(_below(os.fsencode(rootfs.upper), b"", lower, places), key=lambda change: change[1])


def made_for_mounts(rootfs: Rootfs, mounted: Iterable[str]) -> list[str]:
    """What the runtime made in the writable layer to mount on: relative paths."""
    lower = [os.fsencode(path) for path in rootfs.lower]
    found = []
    for path in (*_PLACES, *map(os.path.normpath, mounted)):
        place = os.path.join(rootfs.upper, path.lstrip("/"))
        try:
            status = os.lstat(place)
            untouched = not os.listdir(place) if stat.S_ISDIR(status.st_mode) else status.st_size == 0
        except OSError:
            continue
        if untouched and not _with(lower, os.fsencode(path)):
            found.append(path.lstrip("/"))
    return found


def _below(upper: bytes, path: bytes, lower: list[bytes], places: set[bytes]) -> Iterator[tuple[str, bytes]]:
    with os.scandir(upper + path) as entries:
        for entry in entries:
            place = path + b"/" + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # a whiteout (overlayfs.rst)
                yield DELETED, place
                continue
            below = _with(lower, place)
            inside: list[tuple[str, bytes]] = []
            if entry.is_dir(follow_symlinks=False):
                inside = list(_below(upper, place, [] if _is_opaque(upper + place) else below, places))
            made_for_a_mount = place in places and (entry.is_dir(follow_symlinks=False) or status.st_size == 0)
            if not below and (inside or not made_for_a_mount):
                yield ADDED, place
            elif below and (inside or not _is_same_folder(status, below[0] + place)):
                yield CHANGED, place
            yield from inside


def _is_same_folder(status: os.stat_result, below: bytes) -> bool:
    """Whether it is a folder as it was, which overlayfs has copied for the sake of what was made in it."""
    before = os.lstat(below)
    return stat.S_ISDIR(status.st_mode) and (status.st_mode, status.st_uid, status.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip


def _with(lower: list[bytes], place: bytes) -> list[bytes]:
    """The layers that have something there, from the top as far as one that covers the others."""
    found = []
    for layer in lower:
        try:
            status = os.lstat(layer + place)
        except OSError:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            break
        found.append(layer)
        if not stat.S_ISDIR(status.st_mode) or _is_opaque(layer + place):
            break
    return found


def _is_opaque(folder: bytes) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False
