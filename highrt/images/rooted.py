"""File operations beneath a root folder that nothing can lead out of.

Every path is resolved by the kernel with openat2(2) and RESOLVE_IN_ROOT: `..` and symbolic links, absolute ones too, stay
inside, as they would for a process that has the folder as its root. The last component is never followed. The layer
unpacker and the builder's COPY work through this, since both write into trees that others have filled with links.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence

from strata.linux import syscalls

OPAQUE = "trusted.overlay.opaque"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED_PARENTS = 64


class RootedTree:
    """A tree below `root`. implied: the directories that had to be made on the way to a file, in that order."""

    def __init__(self, root: str) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parents: dict[str, int] = {}
        self.implied: dict[str, None] = {}

    def close(self) -> None:
        self._forget_parents()
        os.close(self._root)

    def __enter__(self) -> "RootedTree":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # looking

    def stat(self, path: str, *, follow: bool = False) -> os.stat_result | None:
        """The status of what is there, or None (also for links in a circle). follow: through the last component's link too."""
        try:
            descriptor = self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def read_link(self, path: str) -> str | None:
        """Where a symbolic link points to; None where there is none."""
        found = self.stat(path)
        if found is None or not stat.S_ISLNK(found.st_mode):
            return None
        descriptor = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what is at the path. Raises OSError."""
        return syscalls.openat2(self._root, path.lstrip("/") or ".", flags, _INSIDE)

    # making

    def directory(self, path: str, mode: int | None = None) -> bool:
        """Makes a directory, replacing whatever is there and is none. mode None keeps that of one that is there.

        Returns whether it is new.
        """
        parent, name = self._place(path)
        if not name:
            return False
        covered = False
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            covered = self._clear(parent, name, keep_directory=True)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError:
                return False
        if covered:
            # What the whiteout hid of the layers below must not shine through the directory that takes its place.
            self._with(path, lambda where: os.setxattr(where, OPAQUE, b"y"))
        if mode is not None:
            os.chmod(name, mode, dir_fd=parent)
        return True

    def file(self, path: str) -> int:
        """A new, empty regular file in the place of whatever is there: its descriptor, open for writing."""
        parent, name = self._place(path)
        try:
            return os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            parent, name = self._clean(path)
            return os.open(name, _NEW_FILE, 0o600, dir_fd=parent)

    def symlink(self, path: str, target: str) -> None:
        parent, name = self._place(path)
        try:
            os.symlink(target, name, dir_fd=parent)
        except FileExistsError:
            parent, name = self._clean(path)
            os.symlink(target, name, dir_fd=parent)

    def link(self, path: str, existing: str) -> None:
        """A hard link to a file of this tree. Raises FileNotFoundError."""
        source, source_name = self._place(existing, make=False)
        source = os.dup(source)  # the cache may drop it while the new link's place is made
        try:
            parent, name = self._place(path)
            if os.path.samestat(os.fstat(source), os.fstat(parent)) and source_name == name:
                return
            os.stat(source_name, dir_fd=source, follow_symlinks=False)
            self._clear(parent, name)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def node(self, path: str, mode: int, device: int = 0) -> None:
        """A device, FIFO or whiteout. mode: with the file type."""
        parent, name = self._clean(path)
        os.mknod(name, mode, device, dir_fd=parent)

    def remove(self, path: str) -> None:
        """Takes away a file or a whole directory; nothing there is fine."""
        try:
            parent, name = self._place(path, make=False)
        except FileNotFoundError:
            return
        if name:
            self._clear(parent, name)

    def remove_stub(self, path: str) -> None:
        """Takes away an empty directory or an empty file; whatever else is there stays."""
        try:
            parent, name = self._place(path, make=False)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        self._forget_parents(keep=parent)
        if stat.S_ISDIR(found.st_mode):
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            os.unlink(name, dir_fd=parent)

    # attributes

    def own(self, path: str, uid: int, gid: int) -> None:
        parent, name = self._place(path, make=False)
        os.chown(name or ".", uid, gid, dir_fd=parent, follow_symlinks=False)

    def chmod(self, path: str, mode: int) -> None:
        """Not for symbolic links, which have none."""
        parent, name = self._place(path, make=False)
        os.chmod(name or ".", mode, dir_fd=parent)

    def touch(self, path: str, mtime_ns: int) -> None:
        parent, name = self._place(path, make=False)
        os.utime(name or ".", ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def set_xattrs(self, path: str, values: Mapping[str, bytes]) -> None:
        """Those that the file system does not have are left out, as other runtimes do (a security.selinux, say)."""

        def apply(where: str) -> None:
            for name, value in values.items():
                try:
                    os.setxattr(where, name, value, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in (errno.ENOTSUP, errno.EPERM) or name == "security.capability":
                        raise

        if values:
            self._with(path, apply)

    def be_like(self, folder: str, others: Sequence["RootedTree"]) -> None:
        """Gives a directory the attributes that it has in the first of some other trees that has it. A whiteout or a file there
        hides those further on."""
        here = self.stat(folder)
        if here is None or not stat.S_ISDIR(here.st_mode):
            return
        for other in others:
            try:
                source = other.open(folder, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                like = os.fstat(source)
                if not stat.S_ISDIR(like.st_mode):
                    return
                where = f"/proc/self/fd/{source}"
                attributes = {name: os.getxattr(where, name) for name in os.listxattr(where)}
            finally:
                os.close(source)
            self.own(folder, like.st_uid, like.st_gid)
            self.chmod(folder, stat.S_IMODE(like.st_mode))
            self.set_xattrs(folder, {k: v for k, v in attributes.items() if not k.startswith("trusted.overlay.")})
            self.touch(folder, like.st_mtime_ns)
            return

    def _with(self, path: str, act: Callable[[str], None]) -> None:
        """Calls with a path that means just this file: setxattr has no form with a directory's descriptor."""
        parent, name = self._place(path, make=False)
        act(f"/proc/self/fd/{parent}/{name or '.'}")

    # the way to a place

    def _place(self, path: str, *, make: bool = True) -> tuple[int, str]:
        """A descriptor of the parent directory, made where it is missing, and the last name ("" for the root itself)."""
        folder, _, name = path.rpartition("/")
        if name not in ("", ".", "..") and (known := self._parents.get(folder)) is not None:
            return known, name
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if parts and parts[-1] == "..":
            raise OSError(errno.EINVAL, "a path must not end in '..'", path)
        if not parts:
            return self._root, ""
        folder = "/".join(parts[:-1])
        if folder not in self._parents:
            if len(self._parents) >= _CACHED_PARENTS:
                self._forget_parents()
            try:
                self._parents[folder] = self.open(folder, _DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                if not make:
                    raise
                self._make_parents(parts[:-1])
                self._parents[folder] = self.open(folder, _DIRECTORY)
        return self._parents[folder], parts[-1]

    def _make_parents(self, parts: list[str]) -> None:
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if (found := self.stat(folder, follow=True)) and stat.S_ISDIR(found.st_mode):
                continue
            if self.directory(folder, 0o755):
                self.implied[folder] = None

    def _clean(self, path: str) -> tuple[int, str]:
        parent, name = self._place(path)
        if not name:
            raise OSError(errno.EISDIR, "the root must stay a directory", path)
        self._clear(parent, name)
        return parent, name

    def _clear(self, parent: int, name: str, *, keep_directory: bool = False) -> bool:
        """Takes away what has the name. Returns whether it was a whiteout (character device 0/0)."""
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(found.st_mode):
            if not keep_directory:
                self._forget_parents(keep=parent)
                shutil.rmtree(name, dir_fd=parent)
            return False
        if stat.S_ISLNK(found.st_mode):
            self._forget_parents(keep=parent)
        os.unlink(name, dir_fd=parent)
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0

    def _forget_parents(self, keep: int = -1) -> None:
        kept = {path: descriptor for path, descriptor in self._parents.items() if descriptor == keep}
        for descriptor in self._parents.values():
            if descriptor != keep:
                os.close(descriptor)
        self._parents = kept
