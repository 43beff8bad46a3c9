"""tmpcopyup: what a folder of the image has in it, copied into the tmpfs that will cover it.

It runs before the tmpfs is at its place, from descriptor to descriptor and without following links.
"""

import os
import stat

_CHUNK_BYTES = 1 << 20
_EINVAL = 22


def copy(source: int, target: int, *, with_owner: bool) -> None:
    """Copies a folder's content, with owners, modes, times and extended attributes; both are descriptors of folders.

    with_owner: the folder's own owner too. Raises OSError.
    """
    below = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    above = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if with_owner:
            _own(above, os.fstat(below))
        _copy_content(below, above)
    finally:
        os.close(below)
        os.close(above)


def _copy_content(source: int, target: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            _copy_folder(source, target, name)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(source, target, name)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            _own(name, status, target)
        elif not stat.S_ISSOCK(status.st_mode):  # a device or a FIFO
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=target)
            _own(name, status, target)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)


def _copy_folder(source: int, target: int, name: str) -> None:
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        os.mkdir(name, 0o700, dir_fd=target)
        above = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
        try:
            _copy_content(below, above)
            _copy_attributes(below, above)
        finally:
            os.close(above)
    finally:
        os.close(below)


def _copy_file(source: int, target: int, name: str) -> None:
    below = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        above = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while os.sendfile(above, below, None, _CHUNK_BYTES):
                pass
            _copy_attributes(below, above)
        finally:
            os.close(above)
    finally:
        os.close(below)


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    _own(target, status)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError:
            continue  # tmpfs has no user.* before Linux 6.6, and a user namespace may not set security.*
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _own(what: "int | str", status: os.stat_result, folder: int | None = None) -> None:
    """Gives it the owner of what it was copied from, if the user namespace knows that one."""
    try:
        os.chown(what, status.st_uid, status.st_gid, dir_fd=folder, follow_symlinks=isinstance(what, int))
    except OSError as error:
        if error.errno != _EINVAL:
            raise
