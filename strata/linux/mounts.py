"""Mounts: flags by the names that /etc/fstab and the OCI spec use, mounting, and what is mounted (mount(2), proc(5))."""

import os

from strata.linux import syscalls

RDONLY, NOSUID, NODEV, NOEXEC, SYNCHRONOUS, REMOUNT = 1, 2, 4, 8, 16, 32
MANDLOCK, DIRSYNC, NOSYMFOLLOW, NOATIME, NODIRATIME, BIND, MOVE, REC, SILENT = 64, 128, 256, 1024, 2048, 4096, 8192, 16384, 32768
UNBINDABLE, PRIVATE, SLAVE, SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
RELATIME, I_VERSION, STRICTATIME, LAZYTIME = 1 << 21, 1 << 23, 1 << 24, 1 << 25
DETACH = 2

# Option → (flag, whether it sets the flag or clears it). config.md, Mounts, options.
OPTIONS: dict[str, tuple[int, bool]] = {
    "ro": (RDONLY, True), "rw": (RDONLY, False),
    "nosuid": (NOSUID, True), "suid": (NOSUID, False),
    "nodev": (NODEV, True), "dev": (NODEV, False),
    "noexec": (NOEXEC, True), "exec": (NOEXEC, False),
    "sync": (SYNCHRONOUS, True), "async": (SYNCHRONOUS, False),
    "dirsync": (DIRSYNC, True), "remount": (REMOUNT, True),
    "mand": (MANDLOCK, True), "nomand": (MANDLOCK, False),
    "noatime": (NOATIME, True), "atime": (NOATIME, False),
    "nodiratime": (NODIRATIME, True), "diratime": (NODIRATIME, False),
    "bind": (BIND, True), "rbind": (BIND | REC, True),
    "relatime": (RELATIME, True), "norelatime": (RELATIME, False),
    "strictatime": (STRICTATIME, True), "nostrictatime": (STRICTATIME, False),
    "lazytime": (LAZYTIME, True), "nolazytime": (LAZYTIME, False),
    "iversion": (I_VERSION, True), "noiversion": (I_VERSION, False),
    "silent": (SILENT, True), "loud": (SILENT, False),
    "nosymfollow": (NOSYMFOLLOW, True), "symfollow": (NOSYMFOLLOW, False),
    "defaults": (0, True),
}  # fmt: skip

PROPAGATIONS: dict[str, int] = {
    "private": PRIVATE, "shared": SHARED, "slave": SLAVE, "unbindable": UNBINDABLE,
    "rprivate": PRIVATE | REC, "rshared": SHARED | REC, "rslave": SLAVE | REC, "runbindable": UNBINDABLE | REC,
}  # fmt: skip

# Recursive attributes (rro, rnosuid, …): MOUNT_ATTR_* of mount_setattr(2), and whether it is set or cleared.
RECURSIVE: dict[str, tuple[int, bool]] = {
    "rro": (1, True), "rrw": (1, False), "rnosuid": (2, True), "rsuid": (2, False), "rnodev": (4, True), "rdev": (4, False),
    "rnoexec": (8, True), "rexec": (8, False), "rnodiratime": (0x80, True), "rdiratime": (0x80, False),
    "rrelatime": (0, True), "rnorelatime": (0, False), "rnoatime": (0x10, True), "ratime": (0x10, False),
    "rstrictatime": (0x20, True), "rnostrictatime": (0x20, False),
    "rnosymfollow": (0x200000, True), "rsymfollow": (0x200000, False),
}  # fmt: skip

ATTRIBUTE_RDONLY, ATTRIBUTE_ATIME, ATTRIBUTE_IDMAP = 1, 0x70, 0x100000
"""ATTRIBUTE_ATIME: the three kinds of atime are one field; to set one, the field must be cleared as a whole."""

_ATTRIBUTES = {
    RDONLY: 1, NOSUID: 2, NODEV: 4, NOEXEC: 8, NODIRATIME: 0x80, NOSYMFOLLOW: 0x200000, NOATIME: 0x10, STRICTATIME: 0x20,
}  # fmt: skip
_NAMES = (
    ("MS_RDONLY", RDONLY), ("MS_NOSUID", NOSUID), ("MS_NODEV", NODEV), ("MS_NOEXEC", NOEXEC),
    ("MS_SYNCHRONOUS", SYNCHRONOUS), ("MS_REMOUNT", REMOUNT), ("MS_MANDLOCK", MANDLOCK), ("MS_DIRSYNC", DIRSYNC),
    ("MS_NOSYMFOLLOW", NOSYMFOLLOW), ("MS_NOATIME", NOATIME), ("MS_NODIRATIME", NODIRATIME), ("MS_BIND", BIND),
    ("MS_MOVE", MOVE), ("MS_REC", REC), ("MS_SILENT", SILENT), ("MS_UNBINDABLE", UNBINDABLE), ("MS_PRIVATE", PRIVATE),
    ("MS_SLAVE", SLAVE), ("MS_SHARED", SHARED), ("MS_RELATIME", RELATIME), ("MS_I_VERSION", I_VERSION),
    ("MS_STRICTATIME", STRICTATIME), ("MS_LAZYTIME", LAZYTIME),
)  # fmt: skip

ATIMES = NOATIME | NODIRATIME | RELATIME | STRICTATIME
LOCKABLE = RDONLY | NOSUID | NODEV | NOEXEC | ATIMES
"""What a mount that came from a more privileged user namespace keeps for good (MNT_LOCK_* in the kernel)."""
PER_MOUNT = RDONLY | NOSUID | NODEV | NOEXEC | NOATIME | NODIRATIME | RELATIME | STRICTATIME | NOSYMFOLLOW
"""The flags that a bind mount can have of its own."""

PROC_MAGIC, DEVPTS_MAGIC = 0x9FA0, 0x1CD1
"""What `filesystem` answers (statfs(2))."""

mount = syscalls.mount
umount = syscalls.umount


def flag_names(flags: int) -> str:
    """Flags as messages name them: MS_RDONLY|MS_BIND."""
    known = [name for name, bit in _NAMES if flags & bit]
    rest = flags & ~sum(bit for _, bit in _NAMES)
    return "|".join([*known, f"{rest:#x}"] if rest else known)


def attributes(flags: int) -> tuple[int, int]:
    """What mount_setattr(2) must set and clear for a mount to have exactly these flags of its own, as a remounting bind has it.

    The kind of atime stays as it is where no flag speaks of it.
    """
    wanted = 0
    for flag, attribute in _ATTRIBUTES.items():
        if flags & flag:
            wanted |= attribute
    clear = 1 | 2 | 4 | 8 | 0x200000
    if flags & ATIMES:
        clear |= ATTRIBUTE_ATIME | 0x80
        if wanted & 0x20:
            wanted &= ~0x10  # strictatime is the stronger one (do_mount in the kernel)
    return wanted, clear & ~wanted | (clear & ATTRIBUTE_ATIME)


def flags_of(descriptor: int) -> int:
    """The flags of the mount that a descriptor is on (statvfs(3))."""
    found = os.fstatvfs(descriptor).f_flag
    flags = found & (RDONLY | NOSUID | NODEV | NOEXEC | SYNCHRONOUS | MANDLOCK)
    for theirs, ours in ((0x400, NOATIME), (0x800, NODIRATIME), (0x1000, RELATIME), (0x2000, NOSYMFOLLOW)):
        if found & theirs:
            flags |= ours
    return flags if flags & (NOATIME | RELATIME) else flags | STRICTATIME


def filesystem(descriptor: int) -> int:
    """The kind of file system that a descriptor is on, by its magic number (fstatfs(2))."""
    return int.from_bytes(syscalls.fstatfs(descriptor)[:8], "little")


def copy_tree(directory: int, path: str, *, recursive: bool) -> int:
    """The descriptor of a detached copy of a mount, or of the tree of mounts there, to be attached with `move`. A path of ""
    means the descriptor itself."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | (0 if path else syscalls.AT_EMPTY_PATH)
    return syscalls.open_tree(directory, path, flags | (syscalls.AT_RECURSIVE if recursive else 0))


move = syscalls.move_mount


def set_propagation(descriptor: int, bits: int) -> None:
    """Gives the mount that a descriptor is the root of another propagation; with REC, also those below it."""
    syscalls.mount_setattr(descriptor, recursive=bool(bits & REC), set_=0, propagation=bits & ~REC)


class Mount:
    """A line of /proc/PID/mountinfo. optional: the propagation fields (`shared:1`, `master:2`)."""

    __slots__ = ("fstype", "id", "optional", "options", "parent", "root", "source", "super_options", "target")

    def __init__(self, line: str) -> None:
        fields = line.split()
        dash = fields.index("-")
        self.id, self.parent = int(fields[0]), int(fields[1])
        self.root, self.target, self.options = _unescape(fields[3]), _unescape(fields[4]), fields[5]
        self.optional = tuple(fields[6:dash])
        self.fstype, self.source, self.super_options = fields[dash + 1], _unescape(fields[dash + 2]), fields[-1]


def mountinfo(pid: int | str = "self") -> list[Mount]:
    """What is mounted, as a process sees it, in the order of mounting."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [Mount(line) for line in file]


def umount_below(folder: str) -> None:
    """Detaches every mount at or below a folder, the last one first."""
    prefix = folder.rstrip("/")
    for mounted in reversed(mountinfo()):
        if mounted.target == prefix or mounted.target.startswith(prefix + "/"):
            umount(mounted.target, DETACH)


def stand_on_the_namespaces_root() -> None:
    """In a chroot: makes what is this process's root the root of its mount namespace, which must be its own.

    pivot_root changes the mount that the root lies on. In a chroot that is not the namespace's: whoever joins the namespace
    later would stand in the file system around the chroot. Elsewhere nothing changes.
    """
    before = os.open("/", os.O_PATH | os.O_CLOEXEC)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(own, 0x00020000)  # joining (CLONE_NEWNS) goes to the namespace's root
    if not os.path.samestat(os.stat("/"), os.fstat(before)):
        copy = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH
        tree = syscalls.open_tree(before, "", copy)
        syscalls.mount_setattr(tree, recursive=True, set_=0, propagation=SLAVE)
        mount("", "/", "", SLAVE | REC)
        below = os.open("/", os.O_PATH | os.O_CLOEXEC)
        syscalls.move_mount(tree, below)
        os.fchdir(tree)
        os.chroot(".")
        os.close(below)
        os.close(tree)
    os.close(own)
    os.close(before)


def _unescape(text: str) -> str:
    if "\\" not in text:  # nearly all, and there may be thousands
        return text
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
