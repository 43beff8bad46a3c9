"""A container as its monitor sees it: created, running, exited; its streams, its log, who is attached, its exit record."""

import os
import time

from highrt.monitor import files, record, terminals
from highrt.monitor.logfile import LogFile
from highrt.monitor.loop import Loop, exit_code
from highrt.monitor.runtime import Runtime
from highrt.monitor.streams import Sink, Source, feed
from highrt.monitor.worker import Workers
from strata.linux import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Request = dict[str, Any]
    Done = Callable[[str | None], None]
    Emit = Callable[[dict[str, Any]], None]

DRAIN_SECONDS = 2.0
"""How long after a container's end its log may still be fed by processes that hold its pipes elsewhere."""


class Attached:
    """A client at a container's streams: it owns the three descriptors, -1 for what it does not want."""

    def __init__(self, container: "Container", attach_id: str, fds: tuple[int, int, int]) -> None:
        self.id, self._container = attach_id, container
        loop = container.loop
        stdin, stdout, stderr = fds
        self.sinks: dict[bytes, Sink] = {}
        for name, descriptor in ((b"stdout", stdout), (b"stderr", stderr)):
            if descriptor >= 0:
                self.sinks[name] = Sink(loop, descriptor, lambda: container.detach(self.id))
        self._stdin: Source | None = None
        if stdin >= 0:
            if container.stdin:
                self._stdin = Source(loop, stdin, self._typed, self._stdin_ended)
            else:
                os.close(stdin)

    def _typed(self, data: bytes) -> None:
        if self._stdin and self._container.stdin:
            feed(self._stdin, [self._container.stdin], data)

    def _stdin_ended(self) -> None:
        self._stdin = None
        self._container.stdin_ended()
        if not self.sinks:
            self._container.detach(self.id)

    def close(self) -> None:
        """What was written for the client still goes to it."""
        if self._stdin:
            self._stdin.close()
            self._stdin = None
            self._container.stdin_ended()
        for sink in self.sinks.values():
            sink.close()


class Container:
    """Made by `create`; ends in state exited, after its exit record is on disk and the runtime has deleted it."""

    takes_streams_at_start = False
    """Whether the runtime wants the container's stdin, stdout and stderr at its start, not at its create."""

    def __init__(
        self, loop: Loop, workers: Workers, runtime: Runtime, request: "Request", emit: "Emit", boot: str
    ) -> None:  # fmt: skip
        """request: the fields of the wire's `create`. emit: sends events. Raises OSError where the log cannot be opened."""
        self.loop, self._workers, self._runtime, self._emit, self._boot = loop, workers, runtime, emit, boot
        self.id: str = request["container"]
        self._bundle: str = request["bundle"]
        self._cgroup_path: str = request["cgroup"]
        self._terminal, self._stdin_once = bool(request.get("terminal")), bool(request.get("stdin_once"))
        self._wants_stdin = bool(request.get("stdin"))
        # Without a PID namespace of its own, its processes outlive the first one, unless they are killed by cgroup.
        self._own_pid_namespace = bool(request.get("own_pid_namespace", True))
        self._console_path: str = request.get("console_socket", "")
        self.state, self.pid = "creating", 0
        self.exit: dict[str, Any] | None = None
        self.stdin: Sink | None = None
        self._master = -1
        self._given: list[int] = []  # the ends of the pipes that the container gets
        self._sources: dict[bytes, Source] = {}
        self._attached: dict[str, Attached] = {}
        self._draining: Any = None
        self._asking = self._loses_lines = False
        self._on_deleted: list[Callable[[], None]] = []
        self._log = LogFile(request.get("log") or "", request.get("log_bytes") or 0, request.get("log_files") or 1)

    # --- life

    def create(self, environ: "dict[str, str]", done: "Done") -> None:
        """Has the runtime make it. After an error nothing of it is left."""
        console: terminals.ConsoleSocket | None = None
        try:
            arguments = ["create", "--bundle", self._bundle, "--pid-file", self._pid_file]
            if self._terminal:
                console = terminals.ConsoleSocket(self._console_path)
                arguments += ["--console-socket", console.path]
                fds = None
            else:
                fds = self._make_pipes()
        except OSError as error:
            self._discard()
            done(f"cannot make the container's streams: {error}")
            return

        def created(failure: str | None) -> None:
            if failure is not None or not self.takes_streams_at_start:
                self._close_given()
            try:
                if failure is None:
                    if console:
                        self._take_terminal(console.take())
                    self.pid = int(files.read(self._pid_file))
                    self.state = "created"
                    self._await_end()
            except (OSError, ValueError) as error:
                failure = f"the runtime's create succeeded, but left no usable terminal or PID: {error}"
            finally:
                if console:
                    console.close()
            if failure is None:
                done(None)
                if self._on_deleted:  # asked for meanwhile
                    self._end()
                return
            reason = failure

            def undone(_: str | None) -> None:
                self._discard()
                done(reason)
                self._tell_deleted()

            self._runtime.call(["delete", "--force", self.id], self._runtime_log, environ, undone)

        self._runtime.call([*arguments, self.id], self._runtime_log, environ, created, fds, more=True)  # the start

    def start(self, environ: "dict[str, str]", done: "Done", *, more: bool) -> None:
        """more: another container's create comes right after it."""
        if self.state != "created":
            done(f"the container is {self.state}, not created")
            return

        def started(failure: str | None) -> None:
            self._close_given()
            if failure is None and self.state == "created":
                self.state = "running"
                self._emit({"event": "started", "container": self.id, "time": time.time_ns()})
            done(failure)

        fds = (self._given[0], self._given[1], self._given[2]) if self._given else None
        self._runtime.call(["start", self.id], self._runtime_log, environ, started, fds, more=more)

    def signal(self, number: int, *, everybody: bool) -> None:
        """Sends a signal to its first process, or to all of its cgroup; nothing where it has ended."""
        if self.state in ("created", "running"):
            self._signal(number, everybody=everybody)

    def _signal(self, number: int, *, everybody: bool) -> None:
        if everybody and number == 9:
            self._cgroup.kill()
        elif everybody:
            for pid in self._cgroup.pids(recursive=True):
                _kill(pid, number)
        # The first process is this one's child and not reaped yet: its PID cannot have come to mean another.
        _kill(self.pid, number)
        if number == 9:  # who is frozen does not die
            self._workers.do("thaw", [self._cgroup_path], lambda status, trouble: None, keep=True)

    def delete(self, done: "Callable[[], None]") -> None:
        """Ends it if it runs, and calls when nothing of it is left with the runtime."""
        if self.state == "deleted":
            done()
            return
        self._on_deleted.append(done)
        self._end()

    def _end(self) -> None:
        if self.state in ("created", "running"):
            self._runtime.expect_no_start()
            self.signal(9, everybody=not self._own_pid_namespace)

    def _await_end(self) -> None:
        self.loop.on_exit(self.pid, self._ended)

    def _ended(self, status: int) -> None:
        """status: as of waitpid(2)."""
        code, number = exit_code(status)
        if not self._own_pid_namespace:
            self._cgroup.kill()
        self.exit = {"code": code, "signal": number, "oom": False, "time": time.time_ns(), "boot_id": self._boot}
        self.state = "stopping"
        if code == 0:
            self._drain()
        else:
            self._asking = True
            self._workers.do("oom", [self._cgroup_path], self._learn_why, keep=True)

    def _learn_why(self, status: int, kills: str) -> None:
        """kills: how many of its processes the kernel killed for want of memory, if that could be found out."""
        self._asking = False
        self.exit = {**(self.exit or {}), "oom": status == 0 and int(kills) > 0}
        self._drain()

    def _drain(self) -> None:
        if self._sources:
            self._draining = self.loop.after(DRAIN_SECONDS, self._drained)
        else:
            self._drained()

    def _drained(self) -> None:
        """The streams have ended, or their time is up: the end is written down and told."""
        self.loop.cancel(self._draining)
        for name in list(self._sources):
            if data := self._sources.pop(name).rest():
                self._keep(name, data)
                for sink in self._sinks(name):
                    sink.write(data)
            self._log_end(name)
        self.state = "exited"
        self._log.close()
        try:
            record.write(os.path.dirname(self._pid_file), self.exit or {})
        except OSError as error:  # of a full disk; as long as this monitor lives, it can tell
            self._emit({"event": "trouble", "container": self.id, "text": f"its exit record cannot be written: {error}"})
        for attached in list(self._attached):
            self.detach(attached)
        if self.stdin:
            self.stdin.abort()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        self._emit({"event": "exited", "container": self.id, **(self.exit or {})})
        self._runtime.call(["delete", "--force", self.id], self._runtime_log, dict(ENVIRON), self._deleted)

    def _deleted(self, failure: str | None) -> None:
        self.state = "deleted"
        if failure:
            self._emit({"event": "trouble", "container": self.id, "text": f"the runtime cannot delete it: {failure}"})
        self._tell_deleted()

    def _tell_deleted(self) -> None:
        waiting, self._on_deleted = self._on_deleted, []
        for call in waiting:
            call()

    def _discard(self) -> None:
        """After a create that failed."""
        self.state = "deleted"
        self._close_given()
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        if self.stdin:
            self.stdin.abort()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        self._log.close()

    # --- streams

    def attach(self, attach_id: str, fds: tuple[int, int, int]) -> None:
        self._attached[attach_id] = Attached(self, attach_id, fds)

    def detach(self, attach_id: str) -> None:
        attached = self._attached.pop(attach_id, None)
        if attached:
            attached.close()
            self._emit({"event": "detached", "container": self.id, "attach": attach_id})

    def stdin_ended(self) -> None:
        """An attached client's stdin has ended: the container sees that when it was promised one session only."""
        if self._stdin_once and not self._terminal and self.stdin:
            self.stdin.close()
            self.stdin = None

    def resize(self, width: int, height: int) -> None:
        if self._master < 0:
            raise OSError(25, "the container has no terminal")
        terminals.resize(self._master, width, height)

    def reopen_log(self) -> None:
        self._log.reopen()

    def _make_pipes(self) -> tuple[int, int, int]:
        theirs = self._given
        if self._wants_stdin:
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(read)
            self.stdin = Sink(self.loop, write, self._stdin_gone)
        else:
            theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for name in (b"stdout", b"stderr"):
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(write)
            self._listen(name, read)
        return theirs[0], theirs[1], theirs[2]

    def _close_given(self) -> None:
        while self._given:
            os.close(self._given.pop())

    def _take_terminal(self, master: int) -> None:
        self._master = master
        self._listen(b"stdout", os.dup(master))
        if self._wants_stdin:
            self.stdin = Sink(self.loop, os.dup(master), self._stdin_gone)

    def _stdin_gone(self) -> None:
        self.stdin = None

    def _listen(self, name: bytes, descriptor: int) -> None:
        def ended() -> None:
            self._stream_ended(name)

        self._sources[name] = Source(self.loop, descriptor, lambda data: self._wrote(name, data), ended)

    def _wrote(self, name: bytes, data: bytes) -> None:
        self._keep(name, data)
        feed(self._sources[name], self._sinks(name), data)

    def _keep(self, name: bytes, data: bytes) -> None:
        try:
            self._log.write(name, data)
            self._loses_lines = False
        except OSError as error:
            self._log_failed(error)

    def _sinks(self, name: bytes) -> list[Sink]:
        return [attached.sinks[name] for attached in self._attached.values() if name in attached.sinks]

    def _stream_ended(self, name: bytes) -> None:
        self._sources.pop(name, None)
        self._log_end(name)
        if self.state == "stopping" and not self._sources and not self._asking:
            self._drained()

    def _log_end(self, name: bytes) -> None:
        try:
            self._log.end(name)
        except OSError as error:
            self._log_failed(error)

    def _log_failed(self, error: OSError) -> None:
        """A full disk loses lines, not containers. It is told once, until there is room again."""
        if not self._loses_lines:
            self._loses_lines = True
            self._emit({"event": "trouble", "container": self.id, "text": f"log lines are lost: {error}"})

    @property
    def _cgroup(self) -> cgroups.Cgroup:
        return cgroups.open_cgroup(self._cgroup_path)

    @property
    def _pid_file(self) -> str:
        return f"{self._bundle}/pid"

    @property
    def _runtime_log(self) -> str:
        return f"{self._bundle}/runtime.log"


ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
