"""One path of a volume, bound where the runtime can mount it, without a way out of the volume.

A container that can write the volume may swap a directory for a symbolic link at any moment: so the path is resolved by
openat2(2), beneath the volume, once, and what the descriptor holds is bound. (CVE-2017-1002101, CVE-2021-25741.)
"""

import os
from contextlib import suppress
from pathlib import Path

from kubelet.volumes.errors import VolumeError
from strata.linux import mounts, syscalls

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS


def bind(volume: Path, sub_path: str, target: Path, *, make: bool) -> None:
    """Binds VOLUME/SUB_PATH at target. make: create missing directories. Raises VolumeError for a path that leaves the volume."""
    if os.path.ismount(target):
        return
    if sub_path.startswith("/") or ".." in sub_path.split("/"):
        raise VolumeError(f"subPath {sub_path!r}: must be relative and must not contain '..'")
    root = os.open(volume, os.O_PATH | os.O_DIRECTORY)
    try:
        descriptor = _open(root, sub_path, make=make)
    finally:
        os.close(root)
    try:
        is_dir = os.path.isdir(f"/proc/self/fd/{descriptor}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_dir:
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        mounts.mount(f"/proc/self/fd/{descriptor}", str(target), "", mounts.BIND | mounts.REC)
    finally:
        os.close(descriptor)


def _open(root: int, sub_path: str, *, make: bool) -> int:
    try:
        return syscalls.openat2(root, sub_path, os.O_PATH, _BENEATH)
    except FileNotFoundError:
        if not make:
            raise VolumeError(f"subPath {sub_path!r} does not exist in the volume") from None
    except OSError as error:
        raise VolumeError(f"subPath {sub_path!r} cannot be opened within the volume: {error.strerror}") from error
    at = os.dup(root)
    try:
        mode = os.fstat(root).st_mode & 0o777
        for part in [p for p in sub_path.split("/") if p not in ("", ".")]:
            with suppress(FileExistsError):
                os.mkdir(part, mode, dir_fd=at)
            below = syscalls.openat2(at, part, os.O_PATH, _BENEATH)
            os.close(at)
            at = below
    except OSError as error:
        os.close(at)
        raise VolumeError(f"subPath {sub_path!r} cannot be made within the volume: {error.strerror}") from error
    return at
