"""Calls of the OCI runtime: in this process where the spawner brought its entry point, else as a program of its own."""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import os

from highrt.monitor import wire
from highrt.monitor.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Entry = Callable[[Sequence[str], tuple[int, int, int], Mapping[str, str]], int]
    Done = Callable[[str | None], None]


class Runtime:
    """One pod's runtime handler."""

    def __init__(self, loop: Loop, entry: "Entry | None", command: "list[str]", options: "list[str]") -> None:
        """entry: called in this process; where it is None, `command` is executed. options: go before the subcommand."""
        self._loop, self._entry, self._command, self._options = loop, entry, command, options
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def call(self, arguments: "list[str]", log: str, environ: "dict[str, str]", done: "Done",
             fds: "tuple[int, int, int] | None" = None) -> None:  # fmt: skip
        """Runs a subcommand and calls done(None), or done(text of the error).

        log: a file for the runtime's log, where it leaves its error. fds: stdin, stdout and stderr of the container's process.
        """
        _remove(log)
        argv = [*self._options, "--log", log, "--log-format", "json", *arguments]
        stdio = fds or (self._null, self._null, self._null)
        self._loop.runtime_starts()

        def ended(status: int) -> None:
            # What the call's callers ask for now (a PID's end) may have happened during the call.
            done(None if status == 0 else _error(log) or f"{self._command[0]} {arguments[0]} failed with status {status}")
            _remove(log)
            self._loop.runtime_ended()

        if self._entry:
            try:
                status = self._entry(argv, stdio, environ)
            except Exception as error:  # a fault of the runtime's must not take the pod's other containers along
                self._loop.runtime_ended()
                done(f"the runtime failed: {type(error).__name__}: {error}")
                return
            ended(status)
            return
        try:
            pid = _spawn([*self._command, *argv], stdio, environ)
        except OSError as error:
            self._loop.runtime_ended()
            done(f"cannot run {self._command[0]}: {error.strerror}")
            return
        self._loop.on_exit(pid, lambda status: ended(status >> 8 or status))


def _spawn(argv: "list[str]", fds: tuple[int, int, int], environ: "dict[str, str]") -> int:
    actions: list[Any] = [(os.POSIX_SPAWN_DUP2, descriptor, number + 10) for number, descriptor in enumerate(fds)]
    actions += [(os.POSIX_SPAWN_DUP2, number + 10, number) for number in range(3)]
    actions += [(os.POSIX_SPAWN_CLOSE, number + 10) for number in range(3)]
    return os.posix_spawn(
        argv[0], argv, environ, file_actions=actions, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD], setsigmask=[]
    )


def _error(log: str) -> str:
    """The last error in a runtime's JSON log."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
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


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
