"""Paths beneath a folder, as a process would see them whose root it is: nothing leads out, whatever links say.

The kernel resolves a path in one go (openat2(2), RESOLVE_IN_ROOT), and what is made is made by name in a folder that is held by
a descriptor, without following links. So whoever swaps folders and symbolic links meanwhile can make a call fail; no call ever
reaches outside.
"""

import os

from strata.linux import syscalls

IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_PLAIN = IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
_FOLDER = os.O_PATH | os.O_DIRECTORY
_MOST_LINKS = 40  # as the kernel counts them (MAXSYMLINKS)
_ELOOP = 40


def clean(path: str) -> str:
    """A path from the root on, without `.`, `..` and doubled slashes; relative ones begin at the root too."""
    return os.path.normpath(f"/{path.lstrip('/')}")


class Beneath:
    """The folder is given as a descriptor, and stays the caller's. Paths may begin with a slash or not."""

    def __init__(self, folder: int) -> None:
        self.folder = folder

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """The descriptor of what is there. Raises OSError."""
        return syscalls.openat2(self.folder, path.lstrip("/") or ".", flags, IN_ROOT)

    def make_folder(self, path: str) -> int:
        """A folder's descriptor. What is missing is made, with mode 0755 less the umask, also where links point to nowhere."""
        try:
            return self.open(path, _FOLDER)
        except FileNotFoundError:
            folder, name = self.parent(path)
        try:
            return _enter(folder, name, make=True)
        except NotADirectoryError:
            folder_of_target, name = self._walk(path)
        finally:
            os.close(folder)
        try:
            return _enter(folder_of_target, name, make=True)
        finally:
            os.close(folder_of_target)

    def make_plain_folder(self, path: str) -> int:
        """The same where the last name is no link. Raises NotADirectoryError for one."""
        try:
            return self.open(path, _FOLDER | os.O_NOFOLLOW)
        except FileNotFoundError:
            folder, name = self.parent(path)
        try:
            return _enter(folder, name, make=True)
        finally:
            os.close(folder)

    def make_file(self, path: str) -> int:
        """The descriptor of what is there; of an empty file, mode 0644 less the umask, where nothing is."""
        try:
            return self.open(path)
        except FileNotFoundError:
            folder, name = self.parent(path)
        try:
            return _create(folder, name)
        except FileExistsError:
            folder_of_target, name = self._walk(path)
        finally:
            os.close(folder)
        try:
            return _create(folder_of_target, name)
        finally:
            os.close(folder_of_target)

    def parent(self, path: str) -> tuple[int, str]:
        """The folder, made where it is missing, that holds a path's last name; and that name, which may be a link."""
        path = path.rstrip("/")
        above, _, name = path.rpartition("/")
        try:
            return self.open(above, _FOLDER), name
        except FileNotFoundError:
            return self._walk(f"{above}/.")[0], name

    def _walk(self, path: str) -> tuple[int, str]:
        """Follows a path name by name and makes the folders that it lacks. The folder of the last name, and that name.

        A link to nowhere counts as what it points to: the next folder or file is made there, as runc does it. (For a path that
        ends in `.` the folder itself.)
        """
        here = os.dup(self.folder)
        done: list[str] = []
        ahead = [part for part in reversed(path.split("/")) if part]
        links = 0
        try:
            while True:
                name = ahead.pop()
                if name == ".":
                    if not ahead:
                        return here, name
                    continue
                if name == "..":
                    del done[-1:]
                    here = _replace(here, syscalls.openat2(self.folder, "/".join(done) or ".", _FOLDER, _PLAIN))
                    if not ahead:
                        ahead.append(".")
                    continue
                target = _link(here, name)
                if target is None:
                    if not ahead:
                        return here, name
                    here = _replace(here, _enter(here, name, make=True))
                    done.append(name)
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(_ELOOP, os.strerror(_ELOOP), path)
                if target.startswith("/"):
                    done.clear()
                    here = _replace(here, os.dup(self.folder))
                ahead += [part for part in reversed(target.split("/")) if part]
                if not ahead:
                    ahead.append(".")
        except BaseException:
            os.close(here)
            raise


def _enter(folder: int, name: str, *, make: bool) -> int:
    """A folder in a folder, made if it is missing. Raises NotADirectoryError for a link."""
    if make and name != ".":
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            pass
    return os.open(name, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def _create(folder: int, name: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o644, dir_fd=folder)


def _link(folder: int, name: str) -> str | None:
    """Where a link points; None for what is no link, and for nothing."""
    try:
        return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == 22:  # EINVAL: no link
            return None
        raise


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
