"""A container's first process, forked before anybody asks for a container.

A fork copies the tables of all pages, and after it both processes copy each page that they write to first. For a container
that is a third of the time that its caller waits. A process that knows it will make a container (`main.rehearse`: a monitor of
highrt's) forks this one ahead and lets it copy everything while nobody waits. When it is told of the container it makes the
first process with clone(CLONE_VM | CLONE_VFORK): no copy at all, the new process goes on with this one's memory, and this one
waits in the kernel until the program is executed, and ends.

Only for a process in a PID namespace of its own: whoever could trace it would have this one, which stays on the host.
"""

import os
from marshal import dumps, loads

from lowrt import init, log, process
from lowrt.errors import send_failure
from strata.linux import descriptors, namespaces, pages, seccomp, syscalls

_PR_SET_NAME = 15
_MOST_BYTES, _MOST_DESCRIPTORS = 150_000, 16
_socket: descriptors.Socket | None = None
"""To the process that waits, if there is one."""
_owner = _inode = 0


def prepare() -> None:
    """Forks the process that waits. It ends with this one."""
    global _socket, _owner, _inode
    if not syscalls.CLONES_AND_ENDS:
        return
    _socket, theirs = descriptors.pair()
    _owner, _inode = os.getpid(), os.fstat(_socket.fileno()).st_ino
    if os.fork() == 0:
        _wait(theirs)
    theirs.close()


def can(plan: init.Plan, flags: int) -> bool:
    """Whether there is one that can make this first process. flags: its new namespaces."""
    return (
        _is_there()
        and flags & (namespaces.NEWPID | namespaces.NEWUSER) == namespaces.NEWPID
        and plan.preserve_fds == 0
        and not (plan.filter and seccomp.Filter(*plan.filter).notifies)
    )


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


def become(child: init.Init, flags: int, into: int) -> bool:
    """Has it make the first process, which says `p` and its PID to the other end of its `sync`. False where it is gone, or has
    no room for the plan. into: the descriptor of a cgroup, or -1."""
    global _socket
    sock, _socket = _socket, None
    assert sock
    given = child.named_descriptors()
    content = dumps((child.plan.values(), flags, list(given)))
    try:
        if len(content) <= _MOST_BYTES:
            descriptors.send(sock, content, (into,) if into >= 0 else ())
            descriptors.send(sock, b"d", (child.sync.fileno(), *given.values()))
            return True
    except OSError:
        pass
    finally:
        sock.close()
    return False


# --- in the process that waits


def _wait(sock: descriptors.Socket) -> None:
    """Never returns."""
    try:
        _shed_everything(sock)
        pages.copy_now()
        content, found = descriptors.receive(sock, _MOST_BYTES)
        if content:
            values, flags, names = loads(content)
            _make(sock, init.Plan(*values), flags, names, found[0] if found else -1)
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


def _make(sock: descriptors.Socket, plan: init.Plan, flags: int, names: list[str], into: int) -> None:
    """Makes the first process, and goes on as it. It takes its descriptors itself: who waits for their last owner to close one
    does not wait for this process too."""
    failure: OSError | None = None
    pid = 0
    try:
        pid = syscalls.clone_and_end(flags | syscalls.CLONE_PARENT, cgroup=into)
        process.hide()
    except OSError as error:
        failure = error
    _, found = descriptors.receive(sock, max_descriptors=_MOST_DESCRIPTORS)
    report = descriptors.Socket(fileno=found.pop(0))
    try:
        if failure:
            raise failure
        child = init.Init.with_named(plan, report, dict(zip(names, found, strict=True)))
        report.send(b"p%d" % pid)
        child.main()
    except BaseException as error:
        send_failure(report, error)
