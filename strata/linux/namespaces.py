"""Namespaces (namespaces(7)): their flags and files, pinning them to paths, and running code inside them."""

import os

from strata.linux import mounts, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# By the names of the OCI runtime spec (config-linux, Namespaces): the clone flag and the file in /proc/PID/ns.
KINDS = {
    "user": (0x10000000, "user"),
    "mount": (0x00020000, "mnt"),
    "uts": (0x04000000, "uts"),
    "ipc": (0x08000000, "ipc"),
    "network": (0x40000000, "net"),
    "pid": (0x20000000, "pid"),
    "cgroup": (0x02000000, "cgroup"),
    "time": (0x00000080, "time"),
}
NEWUSER, NEWNS, NEWUTS, NEWIPC, NEWNET, NEWPID, NEWCGROUP, NEWTIME = (KINDS[k][0] for k in KINDS)


def path_of(pid: int | str, kind: str) -> str:
    """The file of a process's namespace; kind as the OCI spec names it."""
    return f"/proc/{pid}/ns/{KINDS[kind][1]}"


def in_first_user_namespace() -> bool:
    """Whether this process's user namespace is the machine's own, where every ID means itself (user_namespaces(7)). As far as can
    be told from inside: one that maps all of them to themselves looks the same."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def pin_new(
    targets: dict[str, str], sysctls: dict[str, str] | None = None, hostname: str = "", *, uid_map: str = "", gid_map: str = ""
) -> None:
    """Makes new namespaces and keeps each alive by a bind mount at a path: {kind: path}.

    The paths are made as empty files. sysctls are written and the hostname is set inside. A user namespace gets the maps, which
    must have an ID 0, and the others belong to it (user_namespaces(7)). This process must have one thread. Raises OSError; what
    was pinned before the failure is undone.
    """
    if "user" in targets:
        _pin_by_child(targets, sysctls or {}, hostname, uid_map, gid_map)
        return
    homes = {kind: os.open(path_of("self", kind), os.O_RDONLY | os.O_CLOEXEC) for kind in targets}
    try:
        _enter_new(_flags(targets), sysctls or {}, hostname)
        _pin("self", targets)
    finally:
        for kind, home in homes.items():
            syscalls.setns(home, KINDS[kind][0])
            os.close(home)


def _flags(kinds: "Iterable[str]") -> int:
    return sum(KINDS[kind][0] for kind in kinds)


def _pin(pid: int | str, targets: dict[str, str]) -> None:
    """Keeps a process's namespaces at paths, all or none."""
    pinned: list[str] = []
    try:
        for kind, target in targets.items():
            os.close(os.open(target, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o444))
            mounts.mount(path_of(pid, kind), target, "", mounts.BIND)
            pinned.append(target)
    except OSError:
        for target in pinned:
            unpin(target)
        raise


def _pin_by_child(targets: dict[str, str], sysctls: dict[str, str], hostname: str, uid_map: str, gid_map: str) -> None:
    """For a user namespace, from which there is no way back."""
    done_read, done_write = os.pipe2(os.O_CLOEXEC)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done_read)
            os.close(go_write)
            answer = _enter_new_user(done_write, go_read)
            try:
                if answer == b"ok":
                    _enter_new(_flags(targets) & ~NEWUSER, sysctls, hostname)
            except OSError as error:
                answer = f"{error.errno} {error.filename}".encode()
            os.write(done_write, answer)
            os.read(go_read, 1)  # until the parent has pinned what this process holds
        finally:
            os._exit(0)
    try:
        os.close(done_write)
        answer = os.read(done_read, 4096)
        if answer == b"map":
            for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
                _write(f"/proc/{pid}/{name}", text)
            os.write(go_write, b"x")
            answer = os.read(done_read, 4096)
        if answer != b"ok":
            code, _, what = answer.decode(errors="replace").partition(" ")
            raise OSError(int(code or 5), f"{os.strerror(int(code or 5))}", what or "new namespaces")
        _pin(pid, targets)
    finally:
        for descriptor in (done_read, go_read, go_write):
            os.close(descriptor)
        os.waitpid(pid, 0)


def _enter_new_user(done: int, go: int) -> bytes:
    """In the child: becomes root of a new user namespace, once the parent has written its maps. Answers as `_enter_new`."""
    what = "unshare"
    try:
        syscalls.unshare(NEWUSER)
        os.write(done, b"map")
        what = "the user namespace's maps"
        if not os.read(go, 1):
            return b"5 the user namespace's maps"
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        return f"{error.errno} {what}".encode()
    return b"ok"


def _enter_new(flags: int, sysctls: dict[str, str], hostname: str) -> None:
    """Makes this process's own namespaces. Raises OSError; its filename says what it was about."""
    what = "unshare"
    try:
        syscalls.unshare(flags)
        if flags & NEWNET:
            what = "bring up lo"
            loopback_up()
        if hostname and flags & NEWUTS:
            what = "hostname"
            syscalls.sethostname(hostname)
        for name, value in sysctls.items():
            what = f"sysctl {name}"
            _write("/proc/sys/" + name.replace(".", "/"), value)
    except OSError as error:
        raise OSError(error.errno, error.strerror, what) from None


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def new_user_namespace(uid_map: str, gid_map: str) -> int:
    """The descriptor of a new user namespace that nobody is in, with these maps (user_namespaces(7)). Raises OSError."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = syscalls.clone3(NEWUSER)
    if pid == 0:
        try:
            os.close(write)
            os.read(read, 1)  # until the namespace is held by its descriptor
        finally:
            os._exit(0)
    try:
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            _write(f"/proc/{pid}/{name}", text)
        return os.open(path_of(pid, "user"), os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in (read, write, pidfd):
            os.close(descriptor)
        os.waitpid(pid, 0)


def loopback_up() -> None:
    """Sets lo up (netdevice(7), SIOCSIFFLAGS), as every container expects it."""
    import _socket
    import fcntl
    from _struct import pack

    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    siocsifflags, iff_up = 0x8914, 1
    fcntl.ioctl(sock.fileno(), siocsifflags, pack("16sH14s", b"lo", iff_up, b""))
    sock.close()


def unpin(target: str) -> None:
    """Lets a pinned namespace go; nothing happens where there is none."""
    try:
        mounts.umount(target, mounts.DETACH)
    except OSError as error:
        if error.errno not in (2, 22):  # ENOENT, EINVAL: no file, no mount
            raise
    try:
        os.unlink(target)
    except FileNotFoundError:
        pass
