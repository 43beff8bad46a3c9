"""The monitor's socket: connections of highrt, its requests, and the events that go back (docs/highrt.md has the wire)."""

import _socket
import os
import time
from _collections import deque  # type: ignore[import-not-found]  # half a megabyte less than collections

from highrt.monitor import files, wire
from highrt.monitor.container import Container
from highrt.monitor.execution import Execution
from highrt.monitor.loop import GONE, IN, OUT, Loop
from highrt.monitor.runtime import Runtime
from highrt.monitor.sandboxed import SandboxedContainer
from highrt.monitor.worker import Workers
from strata.linux import descriptors
from strata.telemetry import spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    Message = dict[str, Any]

    class Reply(Protocol):
        def __call__(self, error: str | None, values: Message | None = None) -> None: ...


_REMEMBERED_ANSWERS = 64
_UNWANTED_SECONDS = 10.0


class Connection:
    """One highrt, the present or the one before it."""

    def __init__(self, server: "Server", sock: "descriptors.Socket") -> None:
        self._server, self._socket = server, sock
        self._decoder, self._descriptors = wire.Decoder(), deque[int]()
        self._out = bytearray()
        self.subscribed = False
        sock.setblocking(False)
        server.loop.watch(sock.fileno(), IN, self._ready)

    def send(self, message: "Message") -> None:
        self.send_frame(wire.frame(message))

    def send_frame(self, frame: bytes) -> None:
        self._out += frame
        self._flush()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._server.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._server.connections.discard(self)
            while self._descriptors:
                os.close(self._descriptors.popleft())

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if events & (IN | GONE):
            self._read()

    def _read(self) -> None:
        try:
            data, found = descriptors.receive(self._socket, max_descriptors=wire.MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._descriptors.extend(found)
        if not data:
            self.close()
            return
        try:
            messages = self._decoder.feed(data)
        except wire.WireError:
            self.close()
            return
        for message in messages:
            fds = [self._descriptors.popleft() for _ in range(min(int(message.get("fds") or 0), len(self._descriptors)))]
            self._server.handle(self, message, fds)

    def _flush(self) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._server.loop.watch(self._socket.fileno(), IN | (OUT if self._out else 0), self._ready)


class Server:
    """Holds a pod's containers and does what is asked."""

    def __init__(self, loop: Loop, workers: Workers, runtime: Runtime, settings: "Message", boot: str) -> None:
        """settings: what highrt sent with the descriptor: pod, socket, cgroup, environ. boot: the machine's boot ID."""
        self.loop, self._workers, self._runtime, self._settings, self._boot = loop, workers, runtime, settings, boot
        self.connections: set[Connection] = set()
        self._containers: dict[str, Container] = {}
        self._executions: dict[str, Execution] = {}
        self._events: list[Message] = []
        self._next_event = 1
        # As they go over the wire: that is a tenth of what the objects would take. None: not ready yet.
        self._answers: dict[str, bytes | None] = {}
        self._waiting: dict[str, list[Connection]] = {}
        self._environ: dict[str, str] = settings.get("environ") or {}
        self._in_cgroup = False
        self._wanted = False

    def listen(self) -> None:
        """From now on highrt can connect. Raises OSError."""
        self._listener = self._listen(self._settings["socket"])
        self.loop.watch(self._listener.fileno(), IN, self._accept)
        self.loop.after(_UNWANTED_SECONDS, self._leave_if_unwanted)

    def adopt(self, sock: "descriptors.Socket") -> None:
        """Speaks on a connection that is there already. The hello goes first, from this side."""
        connection = Connection(self, sock)
        self.connections.add(connection)
        connection.send({"hello": list(wire.VERSIONS), "pod": self._settings["pod"], "pid": os.getpid()})

    def handle(self, connection: Connection, message: "Message", fds: list[int]) -> None:
        """One request. A request ID that came before gets the first answer, now or when it is ready."""
        request = str(message.get("id") or "")
        if request in self._answers:
            for descriptor in fds:
                os.close(descriptor)
            answer = self._answers[request]
            if answer is None:
                self._waiting[request].append(connection)
            else:
                connection.send_frame(answer)
            return
        self._answers[request] = None
        self._waiting[request] = [connection]
        operation = getattr(self, f"_do_{str(message.get('do')).replace('-', '_')}", None)
        replied = False

        def reply(error: str | None, values: "Message | None" = None) -> None:
            nonlocal replied
            replied = True
            answer = wire.frame({"id": request, "error": error} if error is not None else {"id": request, "ok": values or {}})
            self._answers[request] = answer
            for waiting in self._waiting.pop(request, ()):
                waiting.send_frame(answer)
            while len(self._answers) > _REMEMBERED_ANSWERS:
                del self._answers[next(iter(self._answers))]

        if operation is None:
            for descriptor in fds:
                os.close(descriptor)
            reply(f"this monitor knows no request {message.get('do')!r}: it speaks the versions {wire.VERSIONS}")
            return
        if message["do"] not in ("exec", "attach"):  # no other takes descriptors
            for descriptor in fds:
                os.close(descriptor)
        self._connection, self._wanted = connection, True
        try:
            with spans.span(f"monitor {message['do']}", parent=message.get("traceparent")):
                operation(message, fds, reply)
        except (KeyError, ValueError, TypeError) as error:
            if not replied:
                reply(f"bad request {message['do']}: {type(error).__name__} {error}")
        except OSError as error:
            if not replied:
                reply(f"{message['do']}: {error}")

    # --- requests

    def _do_namespaces(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        """Makes the pod's namespaces and pins them at paths."""

        def pinned(status: int, trouble: str) -> None:
            reply(None if status == 0 else f"namespaces: {trouble}")
            # To be moved into a cgroup takes milliseconds on v2, after a pause: they pass while highrt sets up the network.
            self._join_cgroup()

        # From here, because this process is small and has one thread, which highrt has not.
        arguments = [
            message["targets"], message.get("sysctls") or {}, message.get("hostname") or "", message.get("maps") or {},
        ]  # fmt: skip
        self._workers.do("namespaces", arguments, pinned, keep=True)

    def _do_create(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        known = self._containers.get(message["container"])
        if known:
            reply(None, {"pid": known.pid})
            return
        self._join_cgroup()
        is_in_sandbox = self._settings.get("sandbox") and message["container"] != self._settings["pod"]
        kind = SandboxedContainer if is_in_sandbox else Container
        container = kind(self.loop, self._workers, self._runtime, message, self.emit, self._boot)
        self._containers[container.id] = container

        def done(error: str | None) -> None:
            if error is not None:
                self._containers.pop(container.id, None)
            reply(error, {"pid": container.pid})

        container.create(self._runtime_environ(), done)

    def _do_start(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        # What a pod shares its PID namespace with is there for the sake of the next.
        is_pods_init = message["container"] == self._settings["pod"]
        self._container(message).start(self._runtime_environ(), reply_only(reply), more=is_pods_init)

    def _do_exec(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        stdio = _placed(message, fds)
        try:
            container = self._container(message)
            if container.state != "running":
                raise ValueError(f"the container is {container.state}")
        except (ValueError, KeyError):
            _close(stdio)
            raise
        connection = self._connection

        def ended(code: int) -> None:
            self._executions.pop(execution.id, None)
            for other in [c for c in self.connections if c.subscribed or c is connection]:
                other.send({"event": "exec-exited", "exec": execution.id, "code": code})

        execution = Execution(self.loop, self._runtime, container, message, stdio, ended)
        self._executions[execution.id] = execution

        def done(error: str | None) -> None:
            if error is not None:
                self._executions.pop(execution.id, None)
            reply(error, {"pid": execution.pid})

        execution.start(self._runtime_environ(), done)

    def _do_attach(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        stdio = _placed(message, fds)
        try:
            container = self._container(message)
            if container.state not in ("created", "running"):
                raise ValueError(f"the container is {container.state}")
        except (ValueError, KeyError):
            _close(stdio)
            raise
        container.attach(message["attach"], stdio)
        reply(None)

    def _do_detach(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        self._container(message).detach(message["attach"])
        reply(None)

    def _do_resize(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        target: Container | Execution | None = self._executions.get(message.get("exec") or "")
        if target is None and not message.get("exec"):
            target = self._container(message)
        if target:
            target.resize(int(message["width"]), int(message["height"]))
        reply(None)

    def _do_signal(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        if message.get("exec"):
            execution = self._executions.get(message["exec"])
            if execution:
                execution.signal(int(message["signal"]))
        else:
            self._container(message).signal(int(message["signal"]), everybody=bool(message.get("all")))
        reply(None)

    def _do_reopen_log(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        self._container(message).reopen_log()
        reply(None)

    def _do_update(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        """Changes limits. Through the runtime's own `update`, which may keep a state of them."""
        container = self._container(message)
        path = f"{message['folder']}/resources.json"
        files.write(path, wire.dumps(message["resources"]), os.O_TRUNC)
        arguments = ["update", "--resources", path, container.id]
        self._runtime.call(arguments, f"{message['folder']}/update.log", self._runtime_environ(), reply_only(reply))

    def _do_delete(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        """Ends a container where it runs, and forgets it and its events."""
        container = self._containers.get(message["container"])
        if container is None:
            reply(None)
            return

        def deleted() -> None:
            self._containers.pop(container.id, None)
            self._events = [event for event in self._events if event.get("container") != container.id]
            reply(None)

        container.delete(deleted)

    def _do_events(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        """The events since a number, and from now on all, on this connection."""
        since = int(message.get("since") or 0)
        self._connection.subscribed = True
        containers = [{"container": c.id, "pid": c.pid, "state": c.state, "exit": c.exit} for c in self._containers.values()]
        reply(None, {"events": [event for event in self._events if event["seq"] > since], "containers": containers})

    def _do_stop(self, message: "Message", fds: list[int], reply: "Reply") -> None:
        """Ends what still runs, and then the monitor."""
        self._workers.stay_here()
        left = list(self._containers.values())
        waiting = len(left)

        def end() -> None:
            self._unlink()
            reply(None)
            self.loop.after(0, self.loop.stop)

        def gone() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting <= 0:
                self._workers.when_idle(end)

        if not left:
            gone()
        for container in left:
            container.delete(gone)

    # ---

    def emit(self, event: "Message") -> None:
        """Keeps an event for those who come later, and sends it to those who listen."""
        event = {**event, "seq": self._next_event}
        self._next_event += 1
        if event["event"] in ("started", "exited"):
            self._events.append(event)
        for connection in [c for c in self.connections if c.subscribed]:
            connection.send(event)

    def _leave_if_unwanted(self) -> None:
        """A spawner that was killed right after its fork leaves a monitor that highrt does not know: another has its socket."""
        if not self._wanted and not self.connections:
            self._unlink()
            self.loop.stop()
        elif not self._wanted:
            self.loop.after(_UNWANTED_SECONDS, self._leave_if_unwanted)

    def _container(self, message: "Message") -> Container:
        container = self._containers.get(message["container"])
        if container is None:
            raise ValueError(f"there is no container {message['container']} here")
        return container

    def _runtime_environ(self) -> "dict[str, str]":
        traceparent = spans.current()
        return {**self._environ, spans.ENVIRONMENT_KEY: traceparent} if traceparent else self._environ

    def _join_cgroup(self) -> None:
        """Into a group of its own: never that of highrt's service, nor the pod's."""
        if not self._in_cgroup:
            self._in_cgroup = True

            def made(status: int, told: str) -> None:
                try:
                    if status != 0:
                        raise OSError(told)
                    for path in told.split():
                        files.write(path, "0")
                except OSError as error:
                    self.note_fault(error)

            self._workers.do("cgroup", [self._settings["cgroup"], os.getpid()], made, keep=True)

    def _listen(self, path: str) -> "descriptors.Socket":
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        files.remove(path)
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        self._inode = os.stat(path).st_ino
        sock.listen(16)
        sock.setblocking(False)
        return sock

    def _accept(self, events: int) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # accept() of the socket module, which is too big
        except OSError:
            return
        self.adopt(_socket.socket(fileno=descriptor))

    def _unlink(self) -> None:
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        path = self._settings["socket"]
        try:
            if os.stat(path).st_ino == self._inode:  # else it is another monitor's by now
                os.unlink(path)
        except FileNotFoundError:
            pass

    def note_fault(self, error: BaseException) -> None:
        """What should not have happened goes to highrt's log, through whoever listens."""
        text = f"a fault in the monitor: {type(error).__name__}: {error}"
        self.emit({"event": "trouble", "time": time.time_ns(), "text": text})


def reply_only(reply: "Reply") -> "Callable[[str | None], None]":
    """A reply without values, as the completion of a runtime call."""
    return lambda error: reply(error, None)


def _placed(message: "Message", fds: list[int]) -> tuple[int, int, int]:
    """The descriptors that came, at the places of stdin, stdout and stderr that `stdio` names; -1 where there is none."""
    stdio = [-1, -1, -1]
    for place, descriptor in zip(message.get("stdio") or (), fds, strict=False):
        stdio[int(place)] = descriptor
    return stdio[0], stdio[1], stdio[2]


def _close(fds: tuple[int, int, int]) -> None:
    for descriptor in fds:
        if descriptor >= 0:
            os.close(descriptor)
