"""maskedPaths and readonlyPaths (runtime-spec config-linux): what a container may not see, and what it may not change.

All are found beneath the root before pivot_root, and what covers them is the host's: its null device, checked by its numbers
(CVE-2025-31133), and one empty read-only tmpfs for all folders. A path that does not exist is none of ours.
"""

import os
import stat

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason
from strata.linux import beneath, mounts, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrt.rootfs import Rootfs


def make_readonly(root: "Rootfs", paths: "Iterable[str]") -> None:
    """Binds each path onto itself, read-only; what is mounted below it stays as it is. Raises RuntimeFailure."""
    for path in map(beneath.clean, paths):
        place = _find(root, path)
        if place < 0:
            continue
        try:
            tree = mounts.copy_tree(place, "", recursive=True)
            syscalls.mount_setattr(tree, recursive=False, set_=mounts.ATTRIBUTE_RDONLY)
            mounts.move(tree, place)
        except OSError as error:
            raise RuntimeFailure(f"can't make {documents.dumps(path)} read-only: {reason(error)}") from None
        os.close(tree)
        os.close(place)


def mask(root: "Rootfs", paths: "Iterable[str]") -> None:
    """Covers each path: a file with the null device, a folder with an empty read-only one. Raises RuntimeFailure."""
    null = folder = -1
    for path in dict.fromkeys(map(beneath.clean, paths)):
        place = _find(root, path)
        if place < 0:
            continue
        try:
            if stat.S_ISDIR(os.fstat(place).st_mode):
                if folder < 0:
                    folder = _empty_folder(root)
                    mounts.move(folder, place)
                else:
                    mounts.mount(f"/proc/self/fd/{folder}", f"/proc/self/fd/{place}", "", mounts.BIND)
            else:
                if null < 0:
                    null = _readonly_null()
                    mounts.move(null, place)
                else:
                    mounts.mount(f"/proc/self/fd/{null}", f"/proc/self/fd/{place}", "", mounts.BIND)
        except OSError as error:
            raise RuntimeFailure(f"can't mask path {documents.dumps(path)}: {reason(error)}") from None
        os.close(place)
    for descriptor in (null, folder):
        if descriptor >= 0:
            os.close(descriptor)


def _readonly_null() -> int:
    """The host's null device as a mount, not yet at its place. Its mode and owner, which are the host's, cannot be changed there;
    it is written to all the same."""
    null = open_null()
    tree = mounts.copy_tree(null, "", recursive=False)
    os.close(null)
    syscalls.mount_setattr(tree, recursive=False, set_=mounts.ATTRIBUTE_RDONLY)
    return tree


def open_null() -> int:
    """The host's null device (O_PATH), by its numbers. Raises RuntimeFailure if it is something else."""
    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    if not is_null(os.fstat(null)):
        raise RuntimeFailure("can't mask paths: the host's /dev/null is not the null device")
    return null


def is_null(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def _empty_folder(root: "Rootfs") -> int:
    """A read-only tmpfs without room for anything, not yet at its place."""
    top = os.open(root.path, os.O_PATH | os.O_CLOEXEC)
    mounts.mount("tmpfs", f"/proc/self/fd/{top}", "tmpfs", mounts.RDONLY, "nr_blocks=1,nr_inodes=1")
    os.close(top)
    return os.open(root.path, os.O_PATH | os.O_CLOEXEC)


def _find(root: "Rootfs", path: str) -> int:
    """The descriptor of a path beneath the root, -1 where there is nothing."""
    try:
        return root.find(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        raise RuntimeFailure(f"can't mask path {documents.dumps(path)}: {reason(error)}") from None
