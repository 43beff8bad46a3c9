"""System calls that Python 3.11 has no function for. Each raises OSError with the kernel's errno.

Numbers are those of x86_64 and aarch64; the calls since Linux 5.1 have the same number on both. `_kernel` (C, built by
scripts/setup) makes the call itself: structures go as bytes, and as a bytearray where the kernel writes to them.
"""

import os
from _struct import pack, unpack

from strata.linux import _kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

address_of = _kernel.address
memory = bytearray
"""A block of memory that a system call may write to."""

_X86 = os.uname().machine == "x86_64"
_MOUNT, _UMOUNT2, _PIVOT_ROOT = (165, 166, 155) if _X86 else (40, 39, 41)
_SETNS, _UNSHARE, _PRCTL = (308, 272, 157) if _X86 else (268, 97, 167)
_CAPSET, _CAPGET, _KEYCTL = (126, 125, 250) if _X86 else (91, 90, 219)
_SETHOSTNAME, _SETDOMAINNAME, _PERSONALITY = (170, 171, 135) if _X86 else (161, 162, 92)
_SECCOMP, _BPF, _MEMFD = (317, 321, 319) if _X86 else (277, 280, 279)
_FSTATFS = 138 if _X86 else 44
_SETRESUID, _SETRESGID, _SETGROUPS = (117, 119, 116) if _X86 else (147, 149, 159)
_SETFSUID, _SETFSGID = (122, 123) if _X86 else (151, 152)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_OPEN_TREE, _MOVE_MOUNT, _CLONE3, _OPENAT2, _MOUNT_SETATTR = 428, 429, 435, 437, 442
_SCHED_SETAFFINITY = 203 if _X86 else 122
_GETCWD = 79 if _X86 else 17
_CLOSE_RANGE = 436
_EXIT_GROUP = 231 if _X86 else 94
_GETCPU = 309 if _X86 else 168
_MADVISE = 28 if _X86 else 233
_INOTIFY_INIT1, _INOTIFY_ADD_WATCH = (294, 254) if _X86 else (26, 27)

_CLONE_VM, _CLONE_PIDFD, _CLONE_VFORK, CLONE_PARENT, _CLONE_PARENT_SETTID = 0x100, 0x1000, 0x4000, 0x8000, 0x100000
_CLONE_INTO_CGROUP, _SIGCHLD = 0x200000000, 17
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
SHARES_MEMORY = hasattr(_kernel, "play")
"""Whether `clone_and_end` and `play` are there: they are written for each processor, and so far for x86-64."""

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16

OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_RECURSIVE = 1, os.O_CLOEXEC, 0x8000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100


def call(number: int, *arguments: "int | bytes | bytearray | None", what: str = "") -> int:
    """One system call. what: the path or thing it is about, for the error."""
    try:
        return _kernel.call(number, *arguments)
    except OSError as error:
        raise OSError(error.errno, error.strerror, what or None) from None


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    call(_MOUNT, os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data) or None, what=target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    call(_UMOUNT2, os.fsencode(target), flags, what=target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    call(_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old), what=new_root)


def setns(descriptor: int, flags: int = 0) -> None:
    """setns(2): joins the namespace(s) of a namespace's descriptor, or of a pidfd's process."""
    call(_SETNS, descriptor, flags)


def unshare(flags: int) -> None:
    """unshare(2). CLONE_NEWPID sticks to the caller: its later children are in the namespace, itself is not."""
    call(_UNSHARE, flags)


def clone3(flags: int, *, cgroup: int = -1) -> tuple[int, int]:
    """clone3(2), like fork: returns (PID, pidfd) in the parent and (0, -1) in the child.

    cgroup: a descriptor of a cgroup v2 folder that the child starts in. It skips Python's fork handlers, so there must be
    no second thread, and the child must end in `os._exit` or exec.
    """
    pidfd = memory(4)
    arguments = _clone_arguments(flags | _CLONE_PIDFD, pidfd, None, cgroup)
    pid = call(_CLONE3, arguments, len(arguments))
    return (pid, unpack("i", pidfd)[0]) if pid else (0, -1)


def clone_and_end(flags: int, *, cgroup: int = -1) -> int:
    """clone3(2) for a child that goes on with this process's memory and in its place: returns in the child only, what its PID is
    for this process, which ends once the child has executed a program or has ended. For the rest as `clone3`."""
    pid = memory(4)
    _kernel.clone_and_end(_clone_arguments(flags | _CLONE_VM | _CLONE_VFORK | _CLONE_PARENT_SETTID, None, pid, cgroup))
    found: int = unpack("i", pid)[0]
    return found


def play(flags: int, function: "Callable[[], None]", *, cgroup: int = -1) -> bool:
    """Calls a function in a child that shares this process's memory, and so all that the interpreter learns; this process waits.

    flags, cgroup: as for `clone3`. What the function does to its process (namespaces, user, descriptors) is the child's; what it
    does to objects is this one's too. Whether it has returned, and not raised. If the child is killed this process ends. Raises
    OSError.
    """
    readable = prctl(_PR_GET_DUMPABLE) == 1
    try:
        return bool(_kernel.play(_clone_arguments(flags | _CLONE_VM | _CLONE_VFORK, None, None, cgroup), function) == 0)
    finally:
        if readable:  # the memory's, not the process's: it may have been hidden, also by a change of user
            prctl(_PR_SET_DUMPABLE, 1)


def _clone_arguments(flags: int, pidfd: bytearray | None, parent_tid: bytearray | None, cgroup: int) -> bytes:
    """A struct clone_args."""
    exit_signal = 0 if flags & CLONE_PARENT else _SIGCHLD  # with CLONE_PARENT the kernel takes the caller's own
    if cgroup >= 0:
        flags |= _CLONE_INTO_CGROUP
    written = [address_of(memory_) if memory_ else 0 for memory_ in (pidfd, parent_tid)]
    return pack("11Q", flags, written[0], 0, written[1], exit_signal, 0, 0, 0, 0, 0, max(cgroup, 0))


def madvise(address: int, length: int, advice: int) -> None:
    """madvise(2)."""
    call(_MADVISE, address, length, advice)


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): the descriptor of a path resolved beneath a directory, with RESOLVE_* restrictions."""
    how = pack("3Q", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        try:
            return call(_OPENAT2, directory, os.fsencode(path), how, len(how), what=path)
        except BlockingIOError:  # EAGAIN: something was renamed during the walk
            continue


def open_tree(directory: int, path: str, flags: int) -> int:
    """open_tree(2): with OPEN_TREE_CLONE, the descriptor of a detached copy of a mount."""
    return call(_OPEN_TREE, directory, os.fsencode(path), flags, what=path)


def move_mount(source: int, target: int) -> None:
    """move_mount(2): attaches the mount `source`, detached until now or moved from elsewhere, at what `target` refers to."""
    call(_MOVE_MOUNT, source, b"", target, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def new_filesystem(fstype: str, attributes: int = 0) -> int:
    """fsopen(2), fsconfig(2) and fsmount(2): the descriptor of a new, detached mount without options."""
    create = 6  # FSCONFIG_CMD_CREATE
    context = call(_FSOPEN, fstype.encode(), 1)
    try:
        call(_FSCONFIG, context, create, None, None, 0)
        return call(_FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def fstatfs(descriptor: int) -> bytes:
    """fstatfs(2): a struct statfs."""
    buffer = memory(120)
    call(_FSTATFS, descriptor, buffer)
    return bytes(buffer)


def mount_setattr(descriptor: int, *, recursive: bool, set_: int, clear: int = 0, propagation: int = 0, userns: int = 0) -> None:
    """mount_setattr(2) on a mount's descriptor. set_ and clear: MOUNT_ATTR_* flags."""
    attributes = pack("4Q", set_, clear, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    call(_MOUNT_SETATTR, descriptor, b"", flags, attributes, len(attributes))


def prctl(option: int, a: int | bytes = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2)."""
    return call(_PRCTL, option, a, b, c, d)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), with 64-bit masks (version 3 of the interface)."""
    header = pack("Ii", 0x20080522, 0)
    low = 0xFFFFFFFF
    words = [mask >> shift & low for shift in (0, 32) for mask in (effective, permitted, inheritable)]
    call(_CAPSET, header, pack("6I", *words))


def capget() -> tuple[int, int, int]:
    """capget(2): the effective, permitted and inheritable masks."""
    header, data = memory(pack("Ii", 0x20080522, 0)), memory(24)
    call(_CAPGET, header, data)
    e0, p0, i0, e1, p1, i1 = unpack("6I", data)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def getcwd() -> bytes:
    """getcwd(2): the path from this process's root, or one that begins with "(unreachable)".

    os.getcwd asks the C library, which for the latter goes up by `..` and looks for a folder that is the root's: it finds one
    through another mount of it too, from which `..` leads on.
    """
    path = memory(4096)
    return bytes(path[: call(_GETCWD, path, len(path)) - 1])


def setresuid(uid: int) -> None:
    """Sets all three user IDs of this thread: the raw call, without the C library's signalling of other threads."""
    call(_SETRESUID, uid, uid, uid)


def setresgid(gid: int) -> None:
    """Sets all three group IDs of this thread."""
    call(_SETRESGID, gid, gid, gid)


def setfsids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2): who this thread is to file systems. It keeps all its capabilities, of which the kernel takes
    some from who was root there. Raises PermissionError."""
    effective, permitted, inheritable = capget()
    for number, wanted in ((_SETFSGID, gid), (_SETFSUID, uid)):
        call(number, wanted)
        if call(number, 0xFFFFFFFF) != wanted:  # the only way to learn of a failure
            raise PermissionError(1, os.strerror(1), f"file system ID {wanted}")
    capset(effective, permitted, inheritable)


def setgroups(groups: list[int]) -> None:
    """setgroups(2)."""
    call(_SETGROUPS, len(groups), pack(f"{len(groups)}I", *groups))


def sethostname(name: str) -> None:
    """sethostname(2)."""
    call(_SETHOSTNAME, name.encode(), len(name.encode()), what="sethostname")


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    call(_SETDOMAINNAME, name.encode(), len(name.encode()), what="setdomainname")


def personality(persona: int) -> int:
    """personality(2)."""
    return call(_PERSONALITY, persona)


def keyctl(operation: int, a: "int | bytes" = 0, b: "int | bytes | bytearray" = 0, c: int = 0) -> int:
    """keyctl(2)."""
    return call(_KEYCTL, operation, a, b, c, 0)


def getcpu() -> int:
    """getcpu(2): the number of the CPU that this runs on, which may be another one by now."""
    cpu = memory(4)
    call(_GETCPU, cpu, None, None)
    found: int = unpack("I", cpu)[0]
    return found


def sched_setaffinity(mask: bytes) -> None:
    """sched_setaffinity(2) for this thread: a bit for each CPU that it may run on."""
    call(_SCHED_SETAFFINITY, 0, len(mask), mask)


def seccomp(operation: int, flags: int, program: bytes | None) -> int:
    """seccomp(2)."""
    return call(_SECCOMP, operation, flags, program)


def bpf(command: int, attributes: "bytes | bytearray") -> int:
    """bpf(2). attributes: a bytearray where the kernel answers in them."""
    return call(_BPF, command, attributes, len(attributes))


IN_MODIFY = 2


def inotify_init() -> int:
    """inotify_init1(2): a descriptor that does not block."""
    return call(_INOTIFY_INIT1, os.O_NONBLOCK | os.O_CLOEXEC)


def inotify_add_watch(descriptor: int, path: str, mask: int) -> int:
    """inotify_add_watch(2)."""
    return call(_INOTIFY_ADD_WATCH, descriptor, os.fsencode(path), mask, what=path)


def memfd_create(name: str, flags: int = 1) -> int:
    """memfd_create(2); flags 1 is MFD_CLOEXEC."""
    return call(_MEMFD, name.encode(), flags)


def close_on_exec_from(first: int) -> None:
    """Marks every descriptor from `first` on to be closed at exec (close_range(2), CLOSE_RANGE_CLOEXEC)."""
    call(_CLOSE_RANGE, first, 0xFFFFFFFF, 4)


def exit_group(status: int) -> None:
    """Ends the process at once, past everything of the interpreter."""
    call(_EXIT_GROUP, status)
