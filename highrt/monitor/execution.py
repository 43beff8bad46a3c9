"""A further process in a container (exec), with the caller's pipes or with a terminal that is relayed here."""

import os

from highrt.monitor import files, terminals, wire
from highrt.monitor.container import ENVIRON, Container
from highrt.monitor.loop import Loop, Timer, exit_code
from highrt.monitor.runtime import Runtime
from highrt.monitor.sandboxed import SandboxedContainer
from highrt.monitor.streams import Sink, Source, feed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Done = Callable[[str | None], None]

_DRAIN_SECONDS = 1.0


class Execution:
    """Owns the caller's descriptors from the start on."""

    def __init__(
        self, loop: Loop, runtime: Runtime, container: Container, request: "dict[str, Any]", fds: tuple[int, int, int],
        ended: "Callable[[int], None]",
    ) -> None:  # fmt: skip
        """request: the fields of the wire's `exec`. fds: -1 where there is none. ended: gets the exit code, once."""
        self.id: str = request["exec"]
        self._loop, self._runtime, self._container, self._fds, self._on_end = loop, runtime, container, fds, ended
        self._process: dict[str, Any] = request["process"]
        self._terminal = bool(self._process.get("terminal"))
        self._console_path: str = request.get("console_socket", "")
        self._stem = f"{request['folder']}/exec-{self.id}"
        self.pid, self._code = 0, 0
        self._sandboxed = isinstance(container, SandboxedContainer)
        self._inner_pid = 0
        self._master = -1
        self._source: Source | None = None
        self._stdin: Source | None = None
        self._sinks: list[Sink] = []
        self._draining: Timer | None = None

    def start(self, environ: "dict[str, str]", done: "Done") -> None:
        console: terminals.ConsoleSocket | None = None
        arguments = ["exec", "--detach", "--process", f"{self._stem}.json", "--pid-file", f"{self._stem}.pid"]
        if self._sandboxed:
            arguments += ["--internal-pid-file", f"{self._stem}.inner"]
        try:
            files.write(f"{self._stem}.json", wire.dumps(self._process), os.O_EXCL)
            if self._terminal:
                console = terminals.ConsoleSocket(self._console_path)
                arguments += ["--console-socket", console.path]
            stdio = self._stdio()
        except OSError as error:
            self._forget_files()
            self._close_fds()
            done(f"cannot prepare the process: {error}")
            return

        def started(failure: str | None) -> None:
            try:
                if failure is None:
                    if console:
                        self._relay(console.take())
                    self.pid = int(files.read(f"{self._stem}.pid"))
                    if self._sandboxed:
                        self._inner_pid = int(files.read(f"{self._stem}.inner"))
            except (OSError, ValueError) as error:
                failure = f"the runtime's exec succeeded, but left no usable terminal or PID: {error}"
            finally:
                if console:
                    console.close()
                self._forget_files()
            if failure is not None or not self._terminal:
                self._close_fds()  # the process has its own copies
            done(failure)
            if failure is None:
                self._loop.on_exit(self.pid, self._ended)

        self._runtime.call([*arguments, self._container.id], f"{self._stem}.log", environ, started, stdio)

    def resize(self, width: int, height: int) -> None:
        if self._master < 0:
            raise OSError(25, "the process has no terminal")
        terminals.resize(self._master, width, height)

    def signal(self, number: int) -> None:
        if self.pid and self._sandboxed:  # its PID is that of the runtime's exec, which waits for it
            arguments = ["kill", "--pid", str(self._inner_pid), self._container.id, str(number)]
            self._runtime.call(arguments, f"{self._stem}.log", dict(ENVIRON), lambda failure: None)
        elif self.pid:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def _stdio(self) -> "tuple[int, int, int] | None":
        if self._terminal:
            return None
        filled = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if fd < 0 else fd for fd in self._fds]
        self._fds = (filled[0], filled[1], filled[2])
        return self._fds

    def _relay(self, master: int) -> None:
        self._master = master
        stdin, stdout, stderr = self._fds
        self._fds = (-1, -1, -1)
        if stderr >= 0:
            os.close(stderr)
        if stdout >= 0:
            self._sinks.append(Sink(self._loop, stdout, self._sinks.clear))
        self._source = Source(self._loop, os.dup(master), self._wrote, self._output_ended)
        if stdin >= 0:
            typed = Sink(self._loop, os.dup(master), lambda: None)
            self._stdin = Source(self._loop, stdin, lambda data: self._type(typed, data), lambda: None)
            self._typed = typed

    def _type(self, sink: Sink, data: bytes) -> None:
        if self._stdin:
            feed(self._stdin, [sink], data)

    def _wrote(self, data: bytes) -> None:
        if self._source:
            feed(self._source, self._sinks, data)

    def _output_ended(self) -> None:
        self._source = None
        if self._draining:
            self._finish()

    def _ended(self, status: int) -> None:
        self._code, _ = exit_code(status)
        self.pid = 0
        if self._source:
            self._draining = self._loop.after(_DRAIN_SECONDS, self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        self._loop.cancel(self._draining)
        if self._source and (data := self._source.rest()):
            for sink in self._sinks:
                sink.write(data)
        if self._stdin:
            self._stdin.close()
            self._typed.abort()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        for sink in list(self._sinks):
            sink.close()
        # Nothing refers to this any more, and so this must not refer to what refers to it.
        ended, self._on_end = self._on_end, _forget
        ended(self._code)

    def _close_fds(self) -> None:
        for descriptor in self._fds:
            if descriptor >= 0:
                os.close(descriptor)
        self._fds = (-1, -1, -1)

    def _forget_files(self) -> None:
        files.remove(f"{self._stem}.json")
        files.remove(f"{self._stem}.pid")
        files.remove(f"{self._stem}.inner")


def _forget(code: int) -> None:
    pass
