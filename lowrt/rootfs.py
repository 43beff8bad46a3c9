"""The container's view of the file system, made by its first process in its new mount namespace, before pivot_root.

Everything below the root is reached through descriptors that openat2(2) resolved inside it (RESOLVE_IN_ROOT): a symlink in
an image, or one put there meanwhile, never leads out. Mounts are attached to /proc/self/fd/N of the host's /proc, which no
container can replace. So masks, read-only paths and sysctls too are done before pivot_root, not through the container's /proc.
"""

import os
import stat

from lowrt import config
from lowrt.errors import RuntimeFailure, reason
from strata.linux import cgroups, mounts, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
# What may be mounted over in /proc: files that lxcfs and its like serve (runc has the same list).
_PROC_FILES = ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
               "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled")  # fmt: skip

_ATTRIBUTES = {
    mounts.RDONLY: 1, mounts.NOSUID: 2, mounts.NODEV: 4, mounts.NOEXEC: 8, mounts.NOATIME: 0x10, mounts.STRICTATIME: 0x20,
    mounts.NODIRATIME: 0x80, mounts.NOSYMFOLLOW: 0x200000,
}  # fmt: skip
_ATTRIBUTE_ATIME = 0x70  # the three kinds of atime are one field, and to set it, it must be cleared as a whole


class Rootfs:
    """The root on its way: `root` is its descriptor once `prepare` has bound it."""

    def __init__(self, spec: "Spec", path: str, cgroup_path: str) -> None:
        self.spec, self.path, self._cgroup_path = spec, path, cgroup_path
        self.linux: Spec = spec.get("linux") or {}
        self.root = -1
        self._null = -1

    def prepare(self) -> None:
        """Cuts the namespace off the host's, binds the root, and makes mounts, devices and links in it."""
        propagation = self.linux.get("rootfsPropagation") or "rslave"
        if propagation not in mounts.PROPAGATIONS:
            raise RuntimeFailure(f"rootfsPropagation {propagation!r}: unknown")
        flags = mounts.PROPAGATIONS[propagation]
        mounts.stand_on_the_namespaces_root()
        mounts.mount("", "/", "", flags)
        if not flags & (mounts.SLAVE | mounts.PRIVATE):
            # Binds of shared mounts shall reach the host (that is what it was asked for), the root itself must not.
            mounts.mount("", _mount_above(self.path), "", mounts.PRIVATE)
        self._null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
        if not _is_device(os.fstat(self._null), 1, 3):
            raise RuntimeFailure("/dev/null of the host is not the null device")
        mounts.mount(self.path, self.path, "", mounts.BIND | mounts.REC)
        mounts.mount("", self.path, "", mounts.PRIVATE)
        self.root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        own_dev = True
        for mount in self.spec.get("mounts") or ():
            if mount.get("type") == "cgroup":
                continue  # see mount_cgroups
            self._mount(mount)
            if mount["destination"].rstrip("/") == "/dev" and _wants_bind(mount):
                own_dev = False  # the host's /dev, or somebody's: nothing is made in it
        if own_dev:
            self._make_devices()
        if cwd := (self.spec.get("process") or {}).get("cwd"):
            os.close(self.make_folder(cwd))

    def mount_cgroups(self) -> None:
        """Makes the mounts that show cgroups: only once this process is in its own."""
        for mount in self.spec.get("mounts") or ():
            if mount.get("type") == "cgroup":
                self._mount(mount)

    def restrict(self) -> None:
        """Masks and read-only paths, then the read-only root: last, because hooks may still have written."""
        for path in self.linux.get("readonlyPaths") or ():
            self._make_readonly(path)
        for path in self.linux.get("maskedPaths") or ():
            self._mask(path)
        if (self.spec.get("root") or {}).get("readonly"):
            syscalls.mount_setattr(self.root, recursive=False, set_=1)

    def enter(self, *, pivot: bool) -> None:
        """Makes it this process's root: pivot_root, or chroot where the root is on a ramfs."""
        if pivot:
            old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fchdir(self.root)
            syscalls.pivot_root(".", ".")
            # The old root lies on top of the new one now. The host's mounts must not be told when it goes; and only the old root
            # is meant: the container's mounts may pass theirs on (mount(2), unlike umount(2), does not climb from "." to it).
            os.fchdir(old)
            mounts.mount("", ".", "", mounts.SLAVE | mounts.REC)
            mounts.umount(".", mounts.DETACH)
            os.close(old)
        else:
            os.fchdir(self.root)
            for mounted in mounts.mountinfo():  # chroot alone would leave these within reach of a second chroot
                if mounted.fstype in ("proc", "sysfs") and not mounted.target.startswith(self.path + "/"):
                    try:
                        mounts.umount(mounted.target, mounts.DETACH)
                    except OSError:
                        pass
            mounts.mount(".", "/", "", mounts.MOVE)
            os.chroot(".")
        os.chdir("/")
        os.close(self.root)
        os.close(self._null)
        if propagation := self.linux.get("rootfsPropagation"):
            mounts.mount("", "/", "", mounts.PROPAGATIONS[propagation])

    # --- paths beneath the root

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        return syscalls.openat2(self.root, path.lstrip("/") or ".", flags, _IN_ROOT)

    def make_folder(self, path: str) -> int:
        """A folder's descriptor, made with its parents where it is missing."""
        try:
            return self.open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            parent = self.make_folder(os.path.dirname(path.rstrip("/")))
        try:
            os.mkdir(os.path.basename(path.rstrip("/")), 0o755, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
        return self.open(path, os.O_PATH | os.O_DIRECTORY)

    def make_file(self, path: str) -> int:
        """A file's descriptor, made empty where it is missing."""
        try:
            return self.open(path)
        except FileNotFoundError:
            parent = self.make_folder(os.path.dirname(path))
        try:
            name = os.path.basename(path)
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644, dir_fd=parent))
        finally:
            os.close(parent)
        return self.open(path)

    # --- mounts

    def _mount(self, mount: "Spec") -> None:
        destination = mount["destination"]
        try:
            if mount.get("type") == "cgroup":
                self._mount_cgroup(mount)
            else:
                self._mount_one(mount)
        except OSError as error:
            what = mount.get("source") or mount.get("type") or "?"
            raise RuntimeFailure(f"error mounting {what!r} to rootfs at {destination!r}: {reason(error)}") from None

    def _mount_one(self, mount: "Spec") -> None:
        flags, clear, propagations, recursive, data = _parse_options(mount.get("options") or ())
        if mount.get("uidMappings") or "idmap" in data or "ridmap" in data:
            raise RuntimeFailure(f"mount to {mount['destination']}: ID-mapped mounts are not supported by this runtime yet")
        source, bind = mount.get("source") or "", _wants_bind(mount)
        if bind:
            at_source = os.open(source, os.O_PATH | os.O_CLOEXEC)
            is_folder = stat.S_ISDIR(os.fstat(at_source).st_mode)
            make = self.make_folder if is_folder else self.make_file
        else:
            make = self.make_folder
        target = make(mount["destination"])
        try:
            self._check_not_in_proc(target, mount)
            if bind:
                mounts.mount(f"/proc/self/fd/{at_source}", f"/proc/self/fd/{target}", "", mounts.BIND | flags & mounts.REC)
                os.close(at_source)
            else:
                mounts.mount(source, f"/proc/self/fd/{target}", mount.get("type") or "", flags & ~mounts.REC, ",".join(data))
        finally:
            os.close(target)
        if not (propagations or recursive or bind):
            return
        mounted = self.open(mount["destination"])  # the old descriptor is below the mount
        try:
            if bind and (flags | clear) & ~(mounts.BIND | mounts.REC):
                syscalls.mount_setattr(
                    mounted, recursive=False, set_=_attributes(flags), clear=_attributes(clear) | _atime(flags)
                )
            for bits in propagations:
                mounts.mount("", f"/proc/self/fd/{mounted}", "", bits)
            for bit, on in recursive:
                syscalls.mount_setattr(mounted, recursive=True, set_=bit if on else 0, clear=0 if on else bit)
        finally:
            os.close(mounted)

    def _check_not_in_proc(self, target: int, mount: "Spec") -> None:
        """Refuses mounts inside /proc: they would hide from the runtime what it relies on."""
        place = os.readlink(f"/proc/self/fd/{target}").removeprefix(self.path)
        if place == "/proc":
            if mount.get("type") not in ("proc", "bind") and not _wants_bind(mount):
                raise RuntimeFailure(f"{mount['destination']!r} cannot be mounted because it is not of type proc")
        elif place.startswith("/proc/") and place[6:] not in _PROC_FILES:
            raise RuntimeFailure(f"{mount['destination']!r} cannot be mounted because it is inside /proc")

    def _mount_cgroup(self, mount: "Spec") -> None:
        """cgroup2 where that is all there is; else a tmpfs with the container's folder of each v1 hierarchy."""
        destination = mount["destination"].rstrip("/")
        flags, _, _, _, _ = _parse_options(mount.get("options") or ())
        target = self.make_folder(destination)
        at = f"/proc/self/fd/{target}"
        kind = cgroups.mode()
        try:
            if kind == "v2":
                if config.has_namespace(self.linux, "cgroup"):
                    mounts.mount("cgroup", at, "cgroup2", flags & ~mounts.BIND)
                else:
                    self._bind_folder(cgroups.ROOT + self._cgroup_path, target, destination, flags)
                return
            mounts.mount("tmpfs", at, "tmpfs", mounts.NOEXEC | mounts.NOSUID | mounts.NODEV, "mode=755")
        finally:
            os.close(target)
        for name in sorted(os.listdir(cgroups.ROOT)):
            source = f"{cgroups.ROOT}/{name}"
            if os.path.islink(source):
                folder = self.open(destination)
                os.symlink(os.readlink(source), name, dir_fd=folder)
                os.close(folder)
            elif os.path.isdir(source + self._cgroup_path):
                inner = self.make_folder(f"{destination}/{name}")
                self._bind_folder(source + self._cgroup_path, inner, f"{destination}/{name}", flags)
                os.close(inner)
        if flags & mounts.RDONLY:
            mounted = self.open(destination)
            syscalls.mount_setattr(mounted, recursive=False, set_=1)
            os.close(mounted)

    def _bind_folder(self, source: str, target: int, destination: str, flags: int) -> None:
        mounts.mount(source, f"/proc/self/fd/{target}", "", mounts.BIND)
        mounted = self.open(destination)
        syscalls.mount_setattr(mounted, recursive=False, set_=_attributes(flags))
        os.close(mounted)

    # --- devices

    def _make_devices(self) -> None:
        folder = self.make_folder("/dev")
        mask = os.umask(0)
        in_user_namespace = config.has_namespace(self.linux, "user")
        try:
            for name, (major, minor) in _DEVICES.items():
                self._make_device(f"/dev/{name}", stat.S_IFCHR, major, minor, 0o666, 0, 0, in_user_namespace)
            for device in self.linux.get("devices") or ():
                kind = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[device["type"]]
                self._make_device(
                    device["path"], kind, device.get("major", 0), device.get("minor", 0), device.get("fileMode", 0o666),
                    device.get("uid", 0), device.get("gid", 0), in_user_namespace,
                )  # fmt: skip
            for name, target in _LINKS.items():
                _link(folder, name, target)
            if os.path.exists("/proc/kcore"):
                _link(folder, "core", "/proc/kcore")
            # A devpts instance has its own ptmx: the one of /dev must be that.
            try:
                os.unlink("ptmx", dir_fd=folder)
            except FileNotFoundError:
                pass
            os.symlink("pts/ptmx", "ptmx", dir_fd=folder)
        finally:
            os.umask(mask)
            os.close(folder)

    def _make_device(
        self, path: str, kind: int, major: int, minor: int, mode: int, uid: int, gid: int, bind: bool
    ) -> None:  # fmt: skip
        parent = self.make_folder(os.path.dirname(path))
        name = os.path.basename(path)
        try:
            if bind:
                target = self.make_file(path)
                mounts.mount(path, f"/proc/self/fd/{target}", "", mounts.BIND)
                os.close(target)
                return
            try:
                os.mknod(name, kind | mode, os.makedev(major, minor), dir_fd=parent)
            except FileExistsError:
                there = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_IFMT(there.st_mode) != kind or (kind != stat.S_IFIFO and there.st_rdev != os.makedev(major, minor)):
                    raise
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            raise RuntimeFailure(f"error creating device node {path}: {reason(error)}") from None
        finally:
            os.close(parent)

    # --- masks

    def _make_readonly(self, path: str) -> None:
        try:
            target = self.open(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        mounts.mount(f"/proc/self/fd/{target}", f"/proc/self/fd/{target}", "", mounts.BIND | mounts.REC)
        os.close(target)
        mounted = self.open(path)
        syscalls.mount_setattr(mounted, recursive=False, set_=1)
        os.close(mounted)

    def _mask(self, path: str) -> None:
        """A file becomes /dev/null, a folder an empty read-only tmpfs."""
        try:
            target = self.open(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if stat.S_ISDIR(os.fstat(target).st_mode):
                mounts.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", mounts.RDONLY, "nr_blocks=1,nr_inodes=1")
            else:
                mounts.mount(f"/proc/self/fd/{self._null}", f"/proc/self/fd/{target}", "", mounts.BIND)
        except OSError as error:
            raise RuntimeFailure(f"can't mask path {path!r}: {reason(error)}") from None
        finally:
            os.close(target)


def set_sysctls(given: "dict[str, str]") -> None:
    """Writes sysctls of this process's namespaces, through the host's /proc."""
    for name, value in given.items():
        path = f"/proc/sys/{config.sysctl_path(name)}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(descriptor, value.encode())
            os.close(descriptor)
        except OSError as error:
            raise RuntimeFailure(f"sysctl {name}={value}: {reason(error)}") from None


def _wants_bind(mount: "Spec") -> bool:
    return mount.get("type") == "bind" or any(option in ("bind", "rbind") for option in mount.get("options") or ())


def _parse_options(options: "Any") -> "tuple[int, int, list[int], list[tuple[int, bool]], list[str]]":
    """(flags to set, flags to clear, propagations, recursive attributes, what is the file system's own)."""
    flags = clear = 0
    propagations: list[int] = []
    recursive: list[tuple[int, bool]] = []
    data: list[str] = []
    for option in options:
        if option in mounts.OPTIONS:
            bits, on = mounts.OPTIONS[option]
            flags, clear = (flags | bits, clear & ~bits) if on else (flags & ~bits, clear | bits)
        elif option in mounts.PROPAGATIONS:
            propagations.append(mounts.PROPAGATIONS[option])
        elif option in mounts.RECURSIVE:
            recursive.append(mounts.RECURSIVE[option])
        else:
            data.append(option)
    return flags, clear, propagations, recursive, data


def _attributes(flags: int) -> int:
    bits = 0
    for flag, attribute in _ATTRIBUTES.items():
        if flags & flag:
            bits |= attribute
    return bits


def _atime(flags: int) -> int:
    return _ATTRIBUTE_ATIME if flags & (mounts.NOATIME | mounts.STRICTATIME | mounts.RELATIME) else 0


def _is_device(status: os.stat_result, major: int, minor: int) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(major, minor)


def _mount_above(path: str) -> str:
    """The mount point that a path lies on."""
    above = [m.target for m in mounts.mountinfo() if path == m.target or path.startswith(m.target.rstrip("/") + "/")]
    return max(above, key=len)


def _link(folder: int, name: str, target: str) -> None:
    try:
        os.symlink(target, name, dir_fd=folder)
    except FileExistsError:
        pass
