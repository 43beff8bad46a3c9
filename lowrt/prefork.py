"""A container's first process, forked before anybody asks for a container.

A fork copies the tables of all pages, and after it both processes copy each page that they write to first. For a container
that is a third of the time that its caller waits. A process that knows it will make a container (`main.rehearse`: a monitor of
highrt's) forks this one ahead and lets it copy everything while nobody waits. When it is told of the container it makes the
first process with clone(CLONE_VM | CLONE_VFORK): no copy at all, the new process goes on with this one's memory, and this one
waits in the kernel until the program is executed, and ends.

It is told in four messages, so that both are busy at once: that a container is wanted, since a CPU that idles takes a while to
come; of the namespaces, which it makes while the other one still checks the configuration; of what the first process is made of;
and, once the container's ID is its own and its cgroup is there, to go.

Only for a process in a PID namespace of its own: whoever could trace it would have this one, which stays on the host.
"""

import os
from marshal import dumps, loads

from lowrt import init, log, process
from lowrt.errors import send_failure
from strata.linux import descriptors, namespaces, pages, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PR_SET_NAME = 15
_MOST_BYTES, _MOST_DESCRIPTORS = 150_000, 16
_EARLY = namespaces.NEWNET | namespaces.NEWIPC | namespaces.NEWUTS
"""What can be entered before the first process is made: it is in the namespaces of the one that makes it."""

_socket: descriptors.Socket | None = None
"""To the process that waits, if there is one."""
_owner = _inode = _pid = 0


def prepare() -> None:
    """Forks the process that waits. It ends with this one."""
    global _socket, _owner, _inode, _pid
    if not syscalls.SHARES_MEMORY:
        return
    _socket, theirs = descriptors.pair()
    _owner, _inode = os.getpid(), os.fstat(_socket.fileno()).st_ino
    _pid = os.fork()
    if _pid == 0:
        _wait(theirs)
    theirs.close()


def take() -> "Forked | None":
    """The process that waits, if there is one. It wakes up meanwhile."""
    global _socket
    if not _is_there():
        return None
    sock, _socket = _socket, None
    assert sock
    return Forked(sock)


def _is_there() -> bool:
    global _socket
    if _socket is None or _owner != os.getpid():
        return False
    try:
        same = os.fstat(_socket.fileno()).st_ino == _inode
    except OSError:
        same = False
    if not same:  # somebody has closed all descriptors since; the number may be another file's by now
        _socket.detach()
        _socket = None
    return same


class Forked:
    """The process that waits, as the one that has forked it sees it. Where it cannot make a first process, `go` says so."""

    def __init__(self, sock: descriptors.Socket) -> None:
        self._socket = sock
        self._is_there = True
        self._cpus: set[int] = set()
        self._separate()
        self._tell(())

    def begin(self, flags: int) -> None:
        """Has it make what it can of the container's new namespaces. It can do nothing for one in a user namespace: that comes
        before all others."""
        if flags & (namespaces.NEWPID | namespaces.NEWUSER) != namespaces.NEWPID:
            self._is_there = False
        self._tell((flags,))

    def tell(self, plan: init.Plan) -> None:
        """Of what the first process is made."""
        if plan.preserve_fds or (plan.filter_flags is not None and seccomp.notifies(plan.filter_flags)):
            self._is_there = False  # it has none of the descriptors that its parent has
        self._tell(plan.values())

    def go(self, sync: descriptors.Socket, named: dict[str, int], into: int) -> bool:
        """Has it make the first process, which says `p` and its PID to the other end of `sync`. False where it is gone, or has
        no room for the plan. named: as Init's. into: the descriptor of a cgroup, or -1."""
        self._tell(list(named), (into,) if into >= 0 else ())
        self._tell(None, (sync.fileno(), *named.values()))
        return self._is_there

    def close(self) -> None:
        """It ends, unless it has been told to go, and this process may use all of its CPUs again. Once is enough."""
        self._socket.close()
        cpus, self._cpus = self._cpus, set()
        if cpus:
            os.sched_setaffinity(0, cpus)

    def _separate(self) -> None:
        """Has this process stay where it is, until `close`, and that one on other CPUs, until it is the container's. The two work
        at the same time, and wake each other: the kernel would think one CPU enough for both."""
        cpus, here = os.sched_getaffinity(0), syscalls.getcpu()
        try:
            if others := cpus - {here}:
                os.sched_setaffinity(_pid, others)
                os.sched_setaffinity(0, {here})
                self._cpus = cpus
        except OSError:
            pass  # it has died; or one may not choose, and it takes a little longer

    def _tell(self, values: "Any", fds: tuple[int, ...] = ()) -> None:
        content = dumps(values)
        try:
            if self._is_there and len(content) <= _MOST_BYTES:
                descriptors.send(self._socket, content, fds)
                return
        except OSError:
            pass
        self._is_there = False


# --- in the process that waits


def _wait(sock: descriptors.Socket) -> None:
    """Never returns."""
    try:
        _shed_everything(sock)
        pages.copy_now()
        _heard(sock)
        (flags,) = _heard(sock)
        early = flags & _EARLY
        failure = _enter(early)
        child = init.Init(init.Plan(*_heard(sock)))
        child.entered = early
        _make(sock, child, flags & ~early, failure)
    finally:
        os._exit(0)


def _shed_everything(sock: descriptors.Socket) -> None:
    """What its parent works with is none of the container's."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null, number)
    descriptors.close_all_above((0, 1, 2, sock.fileno()))
    log.start(1)  # what a constructor warns of, the other process has said
    syscalls.prctl(_PR_SET_NAME, b"lowrt")


def _heard(sock: descriptors.Socket) -> "tuple[Any, ...]":
    """The values of the next message. Ends this process where none comes any more."""
    content, _ = descriptors.receive(sock, _MOST_BYTES)
    if not content:
        os._exit(0)
    values: tuple[Any, ...] = loads(content)
    return values


def _enter(flags: int) -> OSError | None:
    """Makes namespaces, and is in them from then on."""
    try:
        syscalls.unshare(flags)
        if flags & namespaces.NEWNET:
            namespaces.loopback_up()
    except OSError as error:
        return error
    return None


def _make(sock: descriptors.Socket, child: init.Init, flags: int, failure: OSError | None) -> None:
    """Makes the first process, and goes on as it. It takes its descriptors itself: who waits for their last owner to close one
    does not wait for this process too."""
    content, found = descriptors.receive(sock, _MOST_BYTES)
    if not content:
        return
    names: list[str] = loads(content)
    pid = 0
    try:
        if failure:
            raise failure
        pid = syscalls.clone_and_end(flags | syscalls.CLONE_PARENT, cgroup=found[0] if found else -1)
        process.hide()
    except OSError as error:
        failure = error
    _, found = descriptors.receive(sock, max_descriptors=_MOST_DESCRIPTORS)
    report = descriptors.Socket(fileno=found.pop(0))
    try:
        if failure:
            raise failure
        child.take(report, dict(zip(names, found, strict=True)))
        report.send(b"p%d" % pid)
        child.main()
    except BaseException as error:
        send_failure(report, error)
