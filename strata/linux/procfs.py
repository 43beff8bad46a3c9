"""Files of /proc that are what they say (proc(5)).

A write to a file of /proc that is not one can do anything (CVE-2019-19921, CVE-2025-52881), so the folder is checked to be the
root of a procfs, and the path below it is opened without crossing a mount or following a link.
"""

import os

from strata.linux import mounts, syscalls

_ROOT_INODE = 1  # PROC_ROOT_INO in the kernel: no other inode of a procfs has it
_PLAIN = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS
)  # fmt: skip


def open_root() -> int:
    """The descriptor of a procfs that nothing is mounted over: a new one; /proc, checked, where the kernel grants none."""
    try:
        return syscalls.new_filesystem("proc")
    except OSError:
        folder = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    check_root(folder)
    return folder


def check_root(folder: int) -> None:
    """Raises OSError (ENODEV) if a folder is not the root of a procfs."""
    if mounts.filesystem(folder) != mounts.PROC_MAGIC or os.fstat(folder).st_ino != _ROOT_INODE:
        raise OSError(19, "not a procfs", "/proc")


def open_beneath(root: int, path: str, flags: int) -> int:
    """Opens a file of the procfs itself. Raises OSError: EXDEV where something is mounted over it, ELOOP for a link."""
    return syscalls.openat2(root, path, flags, _PLAIN)


def write(root: int, path: str, text: str) -> None:
    """Writes a file of the procfs in one call. Raises OSError."""
    descriptor = open_beneath(root, path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
