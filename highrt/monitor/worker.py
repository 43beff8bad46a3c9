"""Processes forked from the monitor, in which everything is done that uses much code: calls of the runtime above all.

Python writes to whatever it uses (reference counts, at least), so what the monitor itself would use of the modules that it
shares with the spawner and all other monitors would be its own for as long as the pod lives. In a child those copies go with
the work. What a worker makes is its child: when it ends that comes to the monitor, which is a subreaper, as if the runtime
were a program.
"""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import gc
import os
import sys
import time

from highrt.monitor import wire
from highrt.monitor.loop import IN, Loop, Timer, exit_code
from strata.linux import cgroups, descriptors, namespaces, pages, syscalls
from strata.telemetry import spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Entry = Callable[..., int]
    """(argv, fds, environ) → exit status, see lowrt.main.run; with for_parent=True what it starts is its parent's child."""
    Done = Callable[[int, str], None]

WORK_SECONDS = 120.0
"""Work that takes longer is ended: the kubelet waits as long for an answer (runtimeRequestTimeout)."""

LATE = "it did not end in time, and was killed"
_KEPT_SECONDS = 2.0
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_SHUT_WR = 1


class Workers:
    """Has things done: by the worker that waits, where there is one, else by a new one."""

    def __init__(self, loop: Loop, entry: "Entry", limit: float = WORK_SECONDS, *, ahead: bool = False) -> None:
        """entry: the runtime's. limit: seconds that something may take. ahead: a worker is forked at once, which prepares itself
        for what a pod starts with; that saves time for who comes later, and costs more of the CPUs' in all."""
        self._loop, self._entry, self._limit = loop, entry, limit
        self._kept: Worker | None = None
        if ahead:
            try:
                self._kept = Worker(loop, entry, rehearsed=True)
            except OSError:
                pass  # the work that comes will tell, if it is so still
        self._unwanted: Timer | None = None
        self._on_the_way = 0
        self._here = False
        self._when_idle: Callable[[], None] | None = None

    def do(self, what: str, arguments: "list[Any]", done: "Done", fds: tuple[int, ...] = (), *, keep: bool = False) -> None:
        """Has `what`, one of _WORKS, done, and calls done(exit status, what is told: the error, if it is not 0).

        keep: the next work comes soon, and needs what this has touched. Not otherwise: what a kept worker has made is its
        child, and its end is not seen here.
        """
        self._loop.cancel(self._unwanted)
        if self._here and not self._kept:
            self._do_here([what, *arguments], done, fds)
            return
        worker = self._ask(self._take(), [what, *arguments], done, fds)
        if worker and keep:
            self._keep(worker)
        elif worker:
            worker.no_more()

    def do_alone(self, what: str, arguments: "list[Any]", done: "Done", fds: tuple[int, ...] = ()) -> None:
        """As `do`, by a worker that does nothing else meanwhile, so that nobody waits for what may take long. It is kept for the
        next for a while: what is done must leave it no children."""

        def ended(status: int, trouble: str) -> None:
            if worker and self._kept is None and worker.is_young:
                self._keep(worker)
            elif worker:
                worker.no_more()
            done(status, trouble)

        worker = self._ask(self._take() if self._kept and self._kept.is_idle else None, [what, *arguments], ended, fds)

    def stay_here(self) -> None:
        """From now on this process does the work itself. It ends soon, and so does what it will have copied for that; to fork one
        more would cost as much again."""
        self._here = True

    def _do_here(self, request: "list[Any]", done: "Done", fds: tuple[int, ...]) -> None:
        answer = _perform(self._entry, request, fds)
        self._on_the_way += 1
        self._loop.after(0, lambda: self._finish(done, answer[0], answer[1:].decode()))

    def _take(self) -> "Worker | None":
        worker, self._kept = self._kept, None
        return worker

    def _ask(self, worker: "Worker | None", request: "list[Any]", done: "Done", fds: tuple[int, ...]) -> "Worker | None":
        """Has it done by this worker, or by a new one: the one that does it, None where none can be forked (`done` is told, once
        this has returned)."""
        self._on_the_way += 1

        def ended(status: int, trouble: str) -> None:
            self._finish(done, status, trouble)

        if worker and worker.ask(request, fds, ended, self._limit):
            return worker
        try:  # there is none, or it was killed while it waited
            worker = Worker(self._loop, self._entry)
        except OSError as error:
            trouble = f"no process can be forked: {error.strerror}"
            self._loop.after(0, lambda: ended(-1, trouble))
            return None
        worker.ask(request, fds, ended, self._limit)
        return worker

    def _finish(self, done: "Done", status: int, trouble: str) -> None:
        self._on_the_way -= 1
        done(status, trouble)
        if self._when_idle and not self._on_the_way:
            idle, self._when_idle = self._when_idle, None
            idle()

    def _keep(self, worker: "Worker") -> None:
        self._kept = worker
        self.let_go_soon()

    def when_idle(self, done: "Callable[[], None]") -> None:
        """Calls it once nothing is being done any more: what is on its way would be made after all was taken away."""
        if self._on_the_way:
            self._when_idle = done
        else:
            done()

    def let_go_soon(self) -> None:
        """The worker that waits ends unless something is to be done soon."""
        self._loop.cancel(self._unwanted)
        self._unwanted = self._loop.after(_KEPT_SECONDS, self.let_go)

    def let_go(self) -> None:
        """The worker that waits ends."""
        if self._kept:
            self._kept.no_more()
            self._kept = None


class Worker:
    """One of them, made by a fork. It does what it is asked for in turn, and ends after `no_more`."""

    def __init__(self, loop: Loop, entry: "Entry", *, rehearsed: bool = False) -> None:
        """rehearsed: it copies the pages that it will write to before anybody waits. Raises OSError where none can be forked."""
        self._loop = loop
        self._socket, theirs = descriptors.pair()
        self._asked: list[tuple[Done, Timer]] = []
        self._late = False
        self._forked = time.monotonic()
        monitor = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            self._socket.close()
            theirs.close()
            raise
        if self.pid == 0:
            _serve(entry, theirs, monitor, rehearsed=rehearsed)
        theirs.close()
        self._socket.setblocking(False)
        loop.on_exit(self.pid, self._gone)
        loop.watch(self._socket.fileno(), IN, self._answered)

    @property
    def is_idle(self) -> bool:
        return not self._asked

    @property
    def is_young(self) -> bool:
        """Whether it may go on: it collects no garbage."""
        return time.monotonic() - self._forked < _KEPT_SECONDS

    def ask(self, request: "list[Any]", fds: tuple[int, ...], done: "Done", limit: float) -> bool:
        """Whether it was there to take the request. limit: seconds, after which it is killed."""
        try:
            descriptors.send(self._socket, wire.dumps(request).encode(), fds)
        except OSError:
            return False

        def kill() -> None:
            self._late = True
            os.kill(self.pid, signal.SIGKILL)

        self._asked.append((done, self._loop.after(limit, kill)))
        return True

    def no_more(self) -> None:
        try:
            self._socket.shutdown(_SHUT_WR)
        except OSError:
            pass  # it has ended already

    def _answered(self, events: int) -> None:
        try:
            message, _ = descriptors.receive(self._socket)
        except OSError:
            message = b""
        if message:
            done, timer = self._asked.pop(0)
            self._loop.cancel(timer)
            done(message[0], message[1:].decode())
        else:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()

    def _gone(self, status: int) -> None:
        """It has ended; what it had made has come to this process."""
        while self._socket.fileno() >= 0:  # first what it said before, where both are found at once
            self._answered(IN)
        code, number = exit_code(status)
        how = f"its process was killed by signal {number}" if number else f"its process ended with status {code}"
        for done, timer in self._asked:
            self._loop.cancel(timer)
            done(-1, LATE if self._late else how)


# --- in the worker


def _serve(entry: "Entry", sock: descriptors.Socket, monitor: int, *, rehearsed: bool) -> None:
    """Does one work after the other until nobody can send any more. Never returns."""
    try:
        syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != monitor:
            return
        syscalls.prctl(_PR_SET_NAME, b"strata-worker")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.disable()  # it ends before that would pay
        # Also the other ends of containers' pipes, which are not to be held open from here.
        descriptors.close_all_above((0, 1, 2, sock.fileno(), *spans.descriptors()))
        if rehearsed:
            _rehearse(entry)
        while _do_next(entry, sock):
            pass
    finally:
        os._exit(0)


def _rehearse(entry: "Entry") -> None:
    if rehearse := getattr(sys.modules[entry.__module__], "rehearse", None):
        rehearse()
    pages.copy_now()


def _do_next(entry: "Entry", sock: descriptors.Socket) -> bool:
    message, found = descriptors.receive(sock)
    if not message:
        # The kernel looks for messages, and then whether any can come: one that came in between, with the end, is found now.
        message, found = descriptors.receive(sock)
    if not message:
        return False
    answer = _perform(entry, wire.loads(message.decode()), found)
    for descriptor in found:
        os.close(descriptor)
    sock.send(answer)
    return True


def _perform(entry: "Entry", request: "list[Any]", fds: "Sequence[int]") -> bytes:
    """The exit status, a byte, and what is told."""
    what, *arguments = request
    try:
        if what in ("runtime", "exec"):
            argv, environ = arguments
            for_parent = {"for_parent": True} if what == "exec" else {}
            return bytes([entry(argv, (fds[0], fds[1], fds[2]), environ, **for_parent)])
        return b"\0" + (_WORKS[what](*arguments) or "").encode()
    except OSError as error:
        return b"\1" + str(error).encode()
    except Exception as error:
        return b"\1" + f"{type(error).__name__}: {error}".encode()


def _pin_namespaces(
    targets: "dict[str, str]", sysctls: "dict[str, str]", hostname: str, maps: "dict[str, str]"
) -> None:  # fmt: skip
    namespaces.pin_new(targets, sysctls, hostname, **maps)


def _join_cgroup(path: str, monitor: int) -> str:
    """Makes a group and moves this process into it; the files by which the monitor moves itself, on v1, where being moved would
    wait (cgroups.join_opened). In which group of the v2 tree beside v1 they are is nothing to them."""
    group = cgroups.open_cgroup(path)
    group.create()
    if not group.joins_itself:
        for pid in (monitor, os.getpid()):
            group.add(pid)
        return ""
    opened = group.open_to_join()
    try:
        cgroups.join_opened(opened)
        return "\n".join(os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _thaw(path: str) -> None:
    group = cgroups.open_cgroup(path)
    if group.frozen():
        group.thaw()


def _count_oom_kills(path: str) -> str:
    return str(cgroups.open_cgroup(path).oom_kill_count())


_WORKS: "dict[str, Callable[..., str | None]]" = {
    "namespaces": _pin_namespaces, "cgroup": _join_cgroup, "thaw": _thaw, "oom": _count_oom_kills,
}  # fmt: skip
"""What can be done, besides `runtime`, a call of that: arguments and environment, with three descriptors. `exec` is one that
starts a process in a container, which becomes the monitor's child."""
