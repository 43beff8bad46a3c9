"""The container's view of the file system, made by its first process in its new mount namespace, before pivot_root.

Everything below the root is reached through descriptors that openat2(2) resolved inside it (RESOLVE_IN_ROOT): a symlink in
an image, or one put there meanwhile, never leads out. Mounts are attached to descriptors: directly, or by /proc/self/fd/N of
the host's /proc, which no container can replace. So masks, read-only paths and sysctls too are done before pivot_root, not
through the container's /proc.

Here is the order of things; `mounting`, `devices` and `masks` know how each is done.
"""

import os
import stat

from lowrt import config, devices, masks, mounting, terminal
from lowrt.errors import RuntimeFailure, reason
from strata.linux import beneath, mounts, procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Spec = dict[str, Any]


class Rootfs(beneath.Beneath):
    """The root on its way: `folder` is its descriptor once `prepare` has bound it. Made before the clone: raises
    RuntimeFailure for mounts that cannot be honoured.

    path: the root's own, without links. cgroup_folders: the container's cgroup in each hierarchy. bundle: where
    relative sources begin. ask_parent: gets a request for a detached tree, and returns that: `m` and the number of a mount
    (`sources`) or `n` and that of a device (`devices`).
    """

    ask_parent: "Callable[[bytes], int]"

    def __init__(self, spec: "Spec", path: str, cgroup_folders: list[str], bundle: str = "") -> None:
        super().__init__(-1)
        self.spec, self.path, self.cgroup_folders = spec, path, cgroup_folders
        self.linux: Spec = spec.get("linux") or {}
        self.in_user_namespace = self.has_namespace("user")
        self.parent_makes_nodes = self.in_user_namespace and os.geteuid() == 0
        self.mounts = [
            mounting.Mount(entry, index, bundle, self.in_user_namespace)
            for index, entry in enumerate(spec.get("mounts") or ())
        ]  # fmt: skip
        self.devices = devices.wanted(self.linux)
        self.readonly_later: list[int] = []
        self._on_host = not self.has_namespace("mount")
        self._kept: dict[str, int] = {}
        propagation = self.linux.get("rootfsPropagation")
        self._propagation = mounts.PROPAGATIONS[propagation] if propagation else 0

    def prepare(self) -> None:
        """Cuts the namespace off the host's, binds the root, and makes mounts, devices and links in it.

        Without a mount namespace the host's is left as it is, and the root's bind holds all of them together (`hostroot`).
        """
        proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        procfs.check_root(proc)  # /proc/self/fd is the way to mount points
        os.close(proc)
        if not self._on_host:
            self._cut_off()
        mounts.mount(self.path, self.path, "", mounts.BIND | mounts.REC)
        if not self._propagation:
            mounts.mount("", self.path, "", mounts.PRIVATE)
        self.folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mask = os.umask(0)
        own_dev = True
        for mount in self.mounts:
            if mount.kind == "cgroup":
                continue  # see mount_cgroups
            mounting.make(self, mount)
            if mount.is_dev and mount.bind:
                own_dev = False  # the host's /dev, or somebody's: nothing is made in it
        if own_dev:
            devices.make_all(self)
        if cwd := (self.spec.get("process") or {}).get("cwd"):
            self._make_working_directory(cwd)
        os.umask(mask)

    def mount_cgroups(self) -> None:
        """Makes the mounts that show cgroups: only once this process is in its own."""
        for mount in self.mounts:
            if mount.kind == "cgroup":
                mounting.make(self, mount)

    def open_multiplexer(self) -> int:
        """The multiplexer of the container's own devpts. Raises OSError."""
        place = self.open("/dev/pts/ptmx", os.O_PATH | os.O_NOFOLLOW)
        try:
            terminal.check_multiplexer(place)  # before it is opened: that alone could do something to another device
            return os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(place)

    def bind_console(self, slave: int) -> None:
        """Makes a terminal the container's /dev/console. Raises OSError, also where that is a link or in /proc: whatever is
        written there would go to the terminal."""
        folder, name = self.parent("/dev/console")
        if mounts.filesystem(folder) == mounts.PROC_MAGIC:
            raise OSError(1, "must not be in /proc", "/dev/console")
        try:
            place = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
        except FileExistsError:
            place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            if stat.S_ISLNK(os.fstat(place).st_mode):
                raise OSError(40, os.strerror(40), "/dev/console") from None
        tree = mounts.copy_tree(slave, "", recursive=False)
        mounts.move(tree, place)
        for descriptor in (tree, place, folder):
            os.close(descriptor)

    def restrict(self) -> None:
        """What may not be written, and what may not be seen: last, because hooks may still have written."""
        for mounted in self.readonly_later:
            syscalls.mount_setattr(mounted, recursive=False, set_=mounts.ATTRIBUTE_RDONLY)
            os.close(mounted)
        masks.make_readonly(self, self.linux.get("readonlyPaths") or ())
        masks.mask(self, self.linux.get("maskedPaths") or ())
        self._forget()
        if (self.spec.get("root") or {}).get("readonly"):
            syscalls.mount_setattr(self.folder, recursive=False, set_=mounts.ATTRIBUTE_RDONLY)

    def enter(self, *, pivot: bool) -> None:
        """Makes it this process's root: pivot_root, or chroot where the root is on a ramfs, or the host's mounts stay."""
        if self._on_host:
            os.fchdir(self.folder)
            os.chroot(".")
        elif pivot:
            old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fchdir(self.folder)
            syscalls.pivot_root(".", ".")
            # The old root lies on top of the new one now. The host's mounts must not be told when it goes; and only the old root
            # is meant: the container's mounts may pass theirs on (mount(2), unlike umount(2), does not climb from "." to it).
            os.fchdir(old)
            mounts.mount("", ".", "", mounts.SLAVE | mounts.REC)
            mounts.umount(".", mounts.DETACH)
            os.close(old)
        else:
            os.fchdir(self.folder)
            self._hide_other_proc()
            mounts.mount(".", "/", "", mounts.MOVE)
            os.chroot(".")
        os.chdir("/")
        os.close(self.folder)
        if self._propagation and not self._propagation & (mounts.SLAVE | mounts.PRIVATE):
            mounts.mount("", "/", "", self._propagation)

    # --- what `mounting`, `devices` and `masks` ask for

    def has_namespace(self, kind: str) -> bool:
        return config.has_namespace(self.linux, kind)

    def inside(self, destination: str) -> str:
        """A destination as a clean path from the root on. One that begins with the root's own path on the host is meant
        inside, as runc takes it."""
        path = beneath.clean(destination)
        own = self.path.rstrip("/")
        return path[len(own) :] or "/" if path == own or path.startswith(own + "/") else path

    def where(self, descriptor: int) -> str:
        """Where a descriptor is below the root: "" for the root itself. Raises RuntimeFailure for what is not below it."""
        path, own = os.readlink(f"/proc/self/fd/{descriptor}"), self.path.rstrip("/")
        if path == self.path:
            return ""
        if not path.startswith(own + "/"):
            raise RuntimeFailure(f"mountpoint {path!r} is outside of rootfs {self.path!r}")
        return path[len(own) :]

    def stand_on(self, descriptor: int) -> None:
        """Takes what was mounted over the root for the root."""
        os.close(self.folder)
        self.folder = descriptor
        self._forget()  # they are below it now

    def keep(self, place: str, descriptor: int) -> None:
        """Remembers what was mounted on /proc or /sys for `find`."""
        if place in self._kept:
            os.close(self._kept[place])
        self._kept[place] = descriptor

    def find(self, path: str) -> int:
        """The descriptor of a clean path (O_PATH). What is in /proc and /sys is found in the very file systems that were mounted
        there: whoever can rename the folders below the root cannot lead masks astray (CVE-2023-27561)."""
        for place, mounted in self._kept.items():
            if path.startswith(place + "/"):
                return syscalls.openat2(mounted, path[len(place) + 1 :], os.O_PATH, beneath.IN_ROOT)
        return self.open(path)

    # --- steps

    def _cut_off(self) -> None:
        mounts.stand_on_the_namespaces_root()
        at_first = self._propagation or mounts.SLAVE | mounts.REC
        if at_first & mounts.UNBINDABLE:  # that comes last: there is much to be bound yet
            at_first ^= mounts.UNBINDABLE | mounts.PRIVATE
        mounts.mount("", "/", "", at_first)
        if self._propagation not in (0, mounts.SLAVE | mounts.REC, mounts.PRIVATE | mounts.REC):
            self._cut_off_parent()

    def _forget(self) -> None:
        for mounted in self._kept.values():
            os.close(mounted)
        self._kept.clear()

    def _cut_off_parent(self) -> None:
        """Makes the mount that the root lies on private (or a slave): pivot_root wants it so, and a shared one would show the
        container's mounts to the host."""
        flags = mounts.SLAVE if self._propagation & mounts.SLAVE else mounts.PRIVATE
        path = self.path
        while True:
            try:
                mounts.mount("", path, "", flags)
                return
            except OSError as error:
                if error.errno != 22 or path == "/":  # EINVAL: no mount point, so it lies on one above
                    raise
            path = os.path.dirname(path)

    def _make_working_directory(self, path: str) -> None:
        try:
            os.close(self.make_folder(self.inside(path)))
        except OSError as error:
            raise RuntimeFailure(f"mkdir {path}: {reason(OSError(error.errno, error.strerror))}") from None

    def _hide_other_proc(self) -> None:
        """Without pivot_root the host's mounts stay in the namespace, and a whole procfs or sysfs among them would let a user
        namespace in the container mount one without our masks."""
        for mounted in mounts.mountinfo():
            inside = mounted.target == self.path or mounted.target.startswith(self.path.rstrip("/") + "/")
            if mounted.fstype not in ("proc", "sysfs") or mounted.root != "/" or inside:
                continue
            try:
                mounts.mount("", mounted.target, "", mounts.SLAVE | mounts.REC)
                mounts.umount(mounted.target, mounts.DETACH)
            except FileNotFoundError:
                continue  # it went with one above it
            except OSError:  # not ours to unmount
                mounts.mount("tmpfs", mounted.target, "tmpfs", 0)
