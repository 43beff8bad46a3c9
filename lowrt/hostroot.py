"""A container without a mount namespace: what is mounted for it, is mounted on the host, on a bind of its root to itself.

So the bind is noted before it is made, and taken away with the container, whoever does that: a create that fails, delete, or
delete --force after a create that was killed. runc leaves it there.
"""

import os

from lowrt import state
from strata.linux import mounts

_NOTE = "root"


def note(container: state.Container, path: str) -> None:
    """Notes what the root lies on now."""
    container.note(_NOTE, f"{_mount_id(path)} {path}")


def take_away(container: state.Container) -> None:
    """Unmounts the bind, and all that is mounted on it; nothing happens where there is none."""
    number, _, path = container.noted(_NOTE).partition(" ")
    while path and os.path.isdir(path) and _mount_id(path) != int(number):
        mounts.umount(path, mounts.DETACH)


def _mount_id(path: str) -> int:
    """The number of the mount that a folder is on (proc_pid_fdinfo(5))."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(descriptor)
