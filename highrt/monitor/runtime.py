"""Calls of the OCI runtime: in a worker where the spawner brought its entry point, else as a program of its own."""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import os

from highrt.monitor import files, wire
from highrt.monitor.loop import Loop
from highrt.monitor.worker import LATE, WORK_SECONDS, Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Done = Callable[[str | None], None]


class Runtime:
    """One pod's runtime handler."""

    def __init__(
        self, loop: Loop, workers: Workers, command: "list[str]", options: "list[str]", *, in_process: bool,
        limit: float = WORK_SECONDS,
    ) -> None:  # fmt: skip
        """in_process: the workers' entry point is called; else `command` is executed. options: go before the subcommand. limit:
        how long a command may take, in seconds."""
        self._limit = limit
        self._loop, self._workers, self._command, self._options = loop, workers, command, options
        self._in_process = in_process
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._null)

    def call(self, arguments: "list[str]", log: str, environ: "dict[str, str]", done: "Done",
             fds: "tuple[int, int, int] | None" = None, *, more: bool = False) -> None:  # fmt: skip
        """Runs a subcommand and calls done(None), or done(text of the error).

        log: a file for the runtime's log, where it leaves its error. fds: stdin, stdout and stderr of the container's process.
        more: another call comes right after this.
        """
        files.remove(log)
        argv = [*self._options, "--log", log, "--log-format", "json", *arguments]
        stdio = fds or (self._null, self._null, self._null)
        name = f"{self._command[0]} {arguments[0]}"
        self._loop.runtime_starts()

        def ended(status: int, trouble: str) -> None:
            # What the call's callers ask for now (a PID's end) may have happened during the call.
            error = f"{name}: {trouble}" if trouble else _error(log) or f"{name} failed with status {status}"
            done(None if status == 0 else error)
            files.remove(log)
            self._loop.runtime_ended()

        if self._in_process and arguments[0] == "exec":
            self._workers.do_alone("exec", [argv, environ], ended, stdio)
            return
        if self._in_process:
            self._workers.do("runtime", [argv, environ], ended, stdio, keep=more)
            return
        try:
            self._run_program(argv, stdio, environ, ended)
        except OSError as error:
            ended(-1, error.strerror or "")

    def wait(self, container: str, environ: "dict[str, str]", done: "Callable[[int | None], None]") -> None:
        """Calls with the exit code of a container's first process when that has ended; None where it cannot be known.

        Only for runtimes that have `wait`, as runsc.
        """
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = _spawn([*self._command, *self._options, "wait", container], (self._null, write, self._null), environ)
        except OSError:
            os.close(read)
            done(None)
            return
        finally:
            os.close(write)

        def gone(status: int) -> None:
            try:
                told = wire.loads(os.read(read, 4096).decode()) if status == 0 else {}
                code = int(told["exitStatus"]) & 0xFF
            except (ValueError, KeyError, TypeError):
                done(None)
            else:
                done(code)
            finally:
                os.close(read)

        self._loop.on_exit(pid, gone)

    def expect_no_start(self) -> None:
        """After a create: the worker is not kept for the start. The end of what it has made is not seen here before its own."""
        self._workers.let_go()

    def _run_program(
        self, argv: "list[str]", stdio: tuple[int, int, int], environ: "dict[str, str]", ended: "Callable[[int, str], None]"
    ) -> None:  # fmt: skip
        pid = _spawn([*self._command, *argv], stdio, environ)
        late = False

        def kill() -> None:
            nonlocal late
            late = True
            os.kill(pid, signal.SIGKILL)

        def gone(status: int) -> None:
            self._loop.cancel(timer)
            ended(status, LATE if late else "")

        timer = self._loop.after(self._limit, kill)
        self._loop.on_exit(pid, gone)


def _spawn(argv: "list[str]", fds: tuple[int, int, int], environ: "dict[str, str]") -> int:
    free = max(*fds, 2) + 1  # by numbers that none of them has, else one could be overwritten before it is copied
    actions: list[Any] = [(os.POSIX_SPAWN_DUP2, descriptor, free + number) for number, descriptor in enumerate(fds)]
    actions += [(os.POSIX_SPAWN_DUP2, free + number, number) for number in range(3)]
    actions += [(os.POSIX_SPAWN_CLOSE, free + number) for number in range(3)]
    return os.posix_spawn(
        argv[0], argv, environ, file_actions=actions, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD], setsigmask=[]
    )


def _error(log: str) -> str:
    """The last error in a runtime's JSON log."""
    try:
        lines = files.read(log).splitlines()
    except FileNotFoundError:
        return ""
    found = ""
    for line in lines:
        try:
            entry = wire.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            found = str(entry.get("msg") or "")
    return found
