"""What a container has written, as `diff` shows it: its writable layer beside the image's."""

import os
import stat
from collections.abc import Iterator

from highrt.images.snapshots import Rootfs

ADDED, CHANGED, DELETED = "A", "C", "D"


def of(rootfs: Rootfs) -> list[tuple[str, bytes]]:
    """(kind, absolute path), sorted by path."""
    lower = [os.fsencode(path) for path in rootfs.lower]
    return sorted(_below(os.fsencode(rootfs.upper), b"", lower), key=lambda change: change[1])


def _below(upper: bytes, path: bytes, lower: list[bytes]) -> Iterator[tuple[str, bytes]]:
    with os.scandir(upper + path) as entries:
        for entry in entries:
            place = path + b"/" + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # a whiteout (overlayfs.rst)
                yield DELETED, place
                continue
            below = _with(lower, place)
            yield CHANGED if below else ADDED, place
            if entry.is_dir(follow_symlinks=False):
                opaque = _is_opaque(upper + place)
                yield from _below(upper, place, [] if opaque else below)


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
