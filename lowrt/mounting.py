"""The entries of `mounts` in config.json (runtime-spec config.md, Mounts; config-linux): what each asks for, and making it.

A bind is made detached (open_tree(2)), gets its flags, and is then attached to the descriptor of its place: it is never looked
up again, so nothing can be swapped under it. A new file system that needs more than one call is staged on the root's own mount
point, which no container can reach, and moved from there; all others are mounted at their place at once.
"""

import errno
import os
import stat

from lowrt import documents, log, masks
from lowrt.errors import RuntimeFailure, reason
from strata.linux import beneath, cgroups, mounts, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowrt.rootfs import Rootfs

    Spec = dict[str, Any]

_CGROUP_FLAGS = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
# What may be mounted over in /proc: files that lxcfs and its like serve (runc has the same list).
_PROC_FILES = ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "sys/kernel/ns_last_pid",
               "sys/crypto/fips_enabled")  # fmt: skip


class Mount:
    """One entry, its options sorted by what they are for. Raises RuntimeFailure for one that cannot be honoured.

    flags are set, cleared ones were asked to be off; set_below and clear_below are attributes for the whole tree; data is the
    file system's own. identity: "", "idmap" or "ridmap".
    """

    def __init__(self, entry: "Spec", index: int, bundle: str, in_user_namespace: bool) -> None:
        self.entry, self.index = entry, index
        self.destination: str = entry["destination"]
        self.kind: str = entry.get("type") or ""
        self.source: str = entry.get("source") or ""
        self.flags = self.cleared = self.set_below = self.clear_below = 0
        self.propagations: list[int] = []
        self.data: list[str] = []
        self.copy_up, self.identity = False, ""
        for option in entry.get("options") or ():
            self._take(option)
        if entry.get("uidMappings") or entry.get("gidMappings"):
            self.identity = self.identity or "idmap"
        self.bind = self.kind == "bind" or bool(self.flags & mounts.BIND)
        if self.bind:
            self.kind = "bind"
            self.source = os.path.join(bundle, self.source)
        self._check(in_user_namespace)

    def _take(self, option: str) -> None:
        if option in mounts.OPTIONS:
            bits, on = mounts.OPTIONS[option]
            if on:
                self.flags, self.cleared = self.flags | bits, self.cleared & ~bits
            else:
                self.flags, self.cleared = self.flags & ~bits, self.cleared | bits
        elif option in mounts.PROPAGATIONS:
            self.propagations.append(mounts.PROPAGATIONS[option])
        elif option in mounts.RECURSIVE:
            bit, on = mounts.RECURSIVE[option]
            if bit in (0, 0x10, 0x20):  # the kinds of atime are one field: to set one, all are cleared
                self.set_below &= ~mounts.ATTRIBUTE_ATIME
                self.clear_below |= mounts.ATTRIBUTE_ATIME
                self.set_below |= bit if on else 0
            elif on:
                self.set_below, self.clear_below = self.set_below | bit, self.clear_below & ~bit
            else:
                self.set_below, self.clear_below = self.set_below & ~bit, self.clear_below | bit
        elif option == "tmpcopyup":
            self.copy_up = True
        elif option in ("idmap", "ridmap"):
            self.identity = option
        else:
            self.data.append(option)

    def _check(self, in_user_namespace: bool) -> None:
        wrong = ""
        if self.bind and self.data:
            # runc refuses them, crun does not say a word; they do no harm, because a bind has no use for them.
            log.warning(f"mount to {self.destination}: a bind has no options of a file system: {', '.join(self.data)} ignored")
        if self.identity and not self.bind:
            wrong = "id-mapped mounts are only supported for bind-mounts"
        elif self.identity and os.geteuid() != 0:
            wrong = "id-mapped mounts are not supported for rootless containers"
        elif self.identity:
            given = [bool(self.entry.get(name)) for name in ("uidMappings", "gidMappings")]
            if not all(given) and (any(given) or not in_user_namespace):
                wrong = "id-mapped mounts must have both uid and gid mappings specified"
        if wrong:
            raise RuntimeFailure(f"invalid mount to {documents.dumps(self.destination)}: {wrong}")

    @property
    def late_readonly(self) -> bool:
        """Whether it may become read-only only when all else is done: what is in it has yet to be made."""
        asked = self.flags & mounts.RDONLY and not self.flags & mounts.REMOUNT
        return bool(asked) and not self.bind and (self.kind == "tmpfs" or self.is_dev)

    @property
    def is_dev(self) -> bool:
        return beneath.clean(self.destination) == "/dev"


def make(root: "Rootfs", mount: Mount) -> None:
    """Makes one mount below the root. Raises RuntimeFailure, worded as runc words it."""
    try:
        if mount.kind == "cgroup":
            _mount_cgroup(root, mount)
        elif mount.bind:
            _bind(root, mount, _source_tree(root, mount))
        else:
            _new_filesystem(root, mount)
    except (OSError, RuntimeFailure) as error:
        source, destination = documents.dumps(mount.source), documents.dumps(mount.destination)
        why = str(error) if isinstance(error, RuntimeFailure) else _bare(error)
        raise RuntimeFailure(f"error mounting {source} to rootfs at {destination}: {why}") from None


# --- binds


def _source_tree(root: "Rootfs", mount: Mount) -> int:
    """A detached copy of what shall be bound. Where this process may not see or map it, its parent makes it."""
    if not mount.identity:
        try:
            return mounts.copy_tree(syscalls.AT_FDCWD, mount.source, recursive=bool(mount.flags & mounts.REC))
        except PermissionError as error:
            if not root.in_user_namespace:
                raise RuntimeFailure(f"open {mount.source}: {_bare(error)}") from None
        except OSError as error:
            raise RuntimeFailure(f"open {mount.source}: {_bare(error)}") from None
    return root.ask_parent(b"m%d" % mount.index)


def _bind(root: "Rootfs", mount: Mount, tree: int) -> None:
    """Attaches a detached tree, with the flags and the propagation that are asked for."""
    is_folder = stat.S_ISDIR(os.fstat(tree).st_mode)
    place = _place(root, mount, root.make_folder if is_folder else root.make_file)
    _check_place(root, place, mount, tree)
    if (mount.flags | mount.cleared) & ~(mounts.BIND | mounts.REC | mounts.REMOUNT):
        _set_flags(tree, mount)
    _finish(root, mount, tree, place)


def _set_flags(tree: int, mount: Mount) -> None:
    """Gives a bind the flags that were asked for, and no others.

    In a user namespace a mount keeps some flags that it came with. As runc does it: they are kept where nobody spoke of them,
    and a request that they be off, or for another kind of atime, fails.
    """
    set_, clear = mounts.attributes(mount.flags)
    try:
        syscalls.mount_setattr(tree, recursive=False, set_=set_, clear=clear)
    except PermissionError as error:
        problem = "failed to set user-requested vfs flags on bind-mount"
        why = f"{_call(mount, mount.flags | mounts.BIND | mounts.REMOUNT)}: {_bare(error)}"
        there = mounts.flags_of(tree)
        if locked := there & mount.cleared & mounts.LOCKABLE:
            raise RuntimeFailure(f"{problem}: cannot clear locked flags {mounts.flag_names(locked)}: {why}") from None
        if mount.flags & mounts.ATIMES and mount.flags & mounts.ATIMES != there & mounts.ATIMES:
            locked = there & mounts.ATIMES
            raise RuntimeFailure(f"{problem}: cannot change locked atime flags {mounts.flag_names(locked)}: {why}") from None
        set_, clear = mounts.attributes(mount.flags | there & mounts.LOCKABLE)
        syscalls.mount_setattr(tree, recursive=False, set_=set_, clear=clear)


def _finish(root: "Rootfs", mount: Mount, made: int, place: int) -> None:
    """Attaches a mount that is not at its place yet. The descriptors end here, or are kept by the root."""
    # What was mounted as /proc is /proc to us, whatever somebody has renamed its folder to by now.
    where = root.inside(mount.destination) if mount.kind in ("proc", "sysfs") else root.where(place)
    if mount.set_below or mount.clear_below:
        syscalls.mount_setattr(made, recursive=True, set_=mount.set_below, clear=mount.clear_below)
    try:
        if mount.bind or where:  # what was staged on the root is there already
            mounts.move(made, place)
    except OSError as error:
        if error.errno == 22 and not stat.S_ISDIR(os.fstat(made).st_mode) and stat.S_ISDIR(os.fstat(place).st_mode):
            error = NotADirectoryError(20, os.strerror(20))  # as mount(2) says it, and callers look for it
        raise RuntimeFailure(f"{_call(mount, mount.flags)}: {_bare(error)}") from None
    os.close(place)
    for bits in mount.propagations:
        mounts.set_propagation(made, bits)
    if mount.late_readonly:
        root.readonly_later.append(os.dup(made))
    if where == "":
        root.stand_on(made)
    elif where in ("/proc", "/sys"):
        root.keep(where, made)
    else:
        os.close(made)


# --- new file systems


def _new_filesystem(root: "Rootfs", mount: Mount) -> None:
    flags, data = mount.flags & ~mounts.REC, mount.data
    if mount.late_readonly:
        flags &= ~mounts.RDONLY
    if mount.kind in ("proc", "sysfs"):
        place = _place(root, mount, root.make_plain_folder)
    elif mount.kind == "tmpfs" and not any(option.startswith("mode=") for option in data):
        place, data = _tmpfs_like_its_folder(root, mount)
    else:
        place = _place(root, mount, root.make_folder)
    where = _check_place(root, place, mount, -1)
    more = mount.propagations or mount.set_below or mount.clear_below or mount.copy_up or mount.late_readonly
    if flags & mounts.REMOUNT or not (more or where == "" or mount.kind in ("proc", "sysfs")):
        _mount(mount, place, flags, data)
        os.close(place)
        return
    made = _stage(root, mount, flags, data)
    if mount.copy_up and mount.kind == "tmpfs":
        from lowrt import copyup

        named = any(option.startswith(("uid=", "gid=")) for option in mount.data)
        copyup.copy(place, made, with_owner=not named)
    _finish(root, mount, made, place)


def _tmpfs_like_its_folder(root: "Rootfs", mount: Mount) -> "tuple[int, list[str]]":
    """The place of a tmpfs and its options: with the mode of the folder that it covers, if that was not made for it."""
    try:
        place = root.open(root.inside(mount.destination))
    except OSError:  # there is nothing, or what cannot be
        return _place(root, mount, root.make_folder), mount.data
    return place, [f"mode={stat.S_IMODE(os.fstat(place).st_mode):04o}", *mount.data]


def _stage(root: "Rootfs", mount: Mount, flags: int, data: "list[str]") -> int:
    """Mounts a new file system on top of the root's mount point, whence `_finish` moves it; its descriptor."""
    top = os.open(root.path, os.O_PATH | os.O_CLOEXEC)
    _mount(mount, top, flags, data)
    os.close(top)
    return os.open(root.path, os.O_PATH | os.O_CLOEXEC)


def _mount(mount: Mount, place: int, flags: int, data: "list[str]") -> None:
    try:
        mounts.mount(mount.source, f"/proc/self/fd/{place}", mount.kind, flags, ",".join(data))
    except OSError as error:
        failure = RuntimeFailure(f"{_call(mount, flags, data)}: {_bare(error)}")
        failure.number = error.errno or 0
        raise failure from None


# --- places


def _place(root: "Rootfs", mount: Mount, make: "Any") -> int:
    """The descriptor of a mount's destination, made where it is missing."""
    path: str = root.inside(mount.destination)
    try:
        descriptor: int = make(path)
    except NotADirectoryError:
        if mount.kind in ("proc", "sysfs"):
            raise RuntimeFailure(f'filesystem "{mount.kind}" must be mounted on ordinary directory') from None
        raise RuntimeFailure(f"{_call(mount, mount.flags)}: not a directory") from None
    except OSError as error:
        raise RuntimeFailure(
            f"create mountpoint for {mount.destination} mount: make mountpoint {documents.dumps(path)}: {_bare(error)}"
        ) from None
    return descriptor


def _check_place(root: "Rootfs", place: int, mount: Mount, source: int) -> str:
    """Refuses mounts in and on /proc: they would hide from the runtime what it relies on (CVE-2019-16884, CVE-2023-28642).

    On /proc itself a procfs may be mounted. source: the tree to be bound there, or -1. Returns where it is.
    """
    where: str = root.where(place)
    if where == "/proc":
        if mount.kind == "proc" or (source >= 0 and mounts.filesystem(source) == mounts.PROC_MAGIC):
            return where
        raise RuntimeFailure(f"{documents.dumps(root.path + where)} cannot be mounted because it is not of type proc")
    if where.startswith("/proc/") and where[6:] not in _PROC_FILES:
        raise RuntimeFailure(f"{documents.dumps(root.path + where)} cannot be mounted because it is inside /proc")
    return where


# --- cgroups


def _mount_cgroup(root: "Rootfs", mount: Mount) -> None:
    """The cgroups: v2's tree where that is all there is, else a tmpfs with the container's own folder of each hierarchy."""
    if cgroups.mode() == "v2":
        _mount_cgroup_v2(root, mount)
        return
    place = _place(root, mount, root.make_folder)
    _check_place(root, place, mount, -1)
    base = Mount({"destination": mount.destination, "source": "tmpfs", "type": "tmpfs"}, mount.index, "", False)
    made = _stage(root, base, _CGROUP_FLAGS, ["mode=755"])
    mounts.move(made, place)
    os.close(place)
    with os.scandir(cgroups.ROOT) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), entry.name, dir_fd=made)  # cpu → cpu,cpuacct
                continue
            own = [_or_its_parent(folder) for folder in root.cgroup_folders if folder.startswith(f"{entry.path}/")]
            if own and os.path.isdir(own[0]):  # else it is no hierarchy, or one that the container has no group in
                os.mkdir(entry.name, 0o755, dir_fd=made)
                # By name in the new tmpfs, which nobody else can have changed.
                mounts.mount(own[0], f"/proc/self/fd/{made}/{entry.name}", "", mounts.BIND)
    set_, _ = mounts.attributes(mount.flags & mounts.PER_MOUNT & ~mounts.ATIMES)
    if set_:
        syscalls.mount_setattr(made, recursive=True, set_=set_)
    for bits in mount.propagations:
        mounts.set_propagation(made, bits)
    os.close(made)


def _or_its_parent(folder: str) -> str:
    """A container's cgroup; where a user could make none, the one that the container's processes are in: the caller's."""
    return folder if os.path.isdir(folder) else os.path.dirname(folder)


def _mount_cgroup_v2(root: "Rootfs", mount: Mount) -> None:
    """A new mount of the tree; a bind where the kernel grants none: in a user namespace without a cgroup namespace, or on the
    host's own, which /sys has brought along. Where a user could make no group there is nothing to bind: the place is masked, as
    runc does it."""
    mount.kind = "cgroup2"
    try:
        _new_filesystem(root, mount)
        return
    except RuntimeFailure as error:
        if error.number not in (errno.EPERM, errno.EBUSY):
            raise
        failed = error
    source = root.cgroup_folders[0] if root.cgroup_folders and root.has_namespace("cgroup") else cgroups.ROOT
    try:
        tree = mounts.copy_tree(syscalls.AT_FDCWD, source, recursive=False)
    except FileNotFoundError:
        masks.mask(root, (mount.destination,))
        return
    except OSError:
        raise failed from None
    mount.flags |= mounts.BIND
    _bind(root, mount, tree)


# --- words


def _call(mount: Mount, flags: int, data: "list[str] | None" = None) -> str:
    """The call that failed, as runc writes it."""
    parts = [f"mount src={mount.source}", f"dst={mount.destination}"]
    if flags:
        parts.append(f"flags={mounts.flag_names(flags)}")
    if data:
        parts.append(f"data={','.join(data)}")
    return ", ".join(parts)


def _bare(error: OSError) -> str:
    """Why, without the path of a descriptor."""
    return reason(OSError(error.errno, os.strerror(error.errno or 5)))
