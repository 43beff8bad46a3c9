"""A pod's life as its monitor sees it, played in the spawner, before that forks any.

CPython fills the caches of its types when functions run first, resolves names, and replaces the instructions of those that run
often by special ones (PEP 659): all of that are writes to pages, which monitors share as long as they do not write to them.
"""

import _socket
import os

from highrt.monitor import files, wire
from highrt.monitor.loop import IN, Loop
from highrt.monitor.runtime import Runtime
from highrt.monitor.server import Server
from strata.linux import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from highrt.monitor.worker import Done

_ROUNDS = 6
"""Ten would let the interpreter replace the instructions of all functions; of what that gains, six have nearly all."""

_LIMIT_SECONDS = 2.0

_CONTAINER = {"container": "c"}
_EXEC = {"exec": "e", "process": {"args": ["true"], "env": ["A=b"]}, "stdio": [0, 1, 2]}
_LIFE: "list[dict[str, Any]]" = [
    {"do": "events", "since": 0},
    {"do": "namespaces", "targets": {}},
    {"do": "create", "cgroup": "/c", "stdin": True, **_CONTAINER},
    {"do": "start", **_CONTAINER},
    {"do": "exec", **_EXEC, **_CONTAINER},
    {"do": "exec", **_EXEC, "exec": "t", "process": {"args": ["true"], "terminal": True}, **_CONTAINER},
    {"do": "attach", "attach": "a", "stdio": [0, 1, 2], **_CONTAINER},
    {"do": "reopen-log", **_CONTAINER},
    {"do": "signal", "signal": 0, **_CONTAINER},
    {"do": "detach", "attach": "a", **_CONTAINER},
    {"do": "delete", **_CONTAINER},
]


class _Workers:
    """They make processes that say a line and wait for their end, and of everything else they say that it is done."""

    def do(self, what: str, arguments: "list[Any]", done: "Done", fds: tuple[int, ...] = (), *, keep: bool = False) -> None:
        wire.dumps([what, *arguments])
        if what == "oom":
            done(0, "0")
            return
        argv: list[str] = arguments[0] if what in ("runtime", "exec") else []
        if "--pid-file" in argv:
            pid = os.fork()
            if pid == 0:
                try:
                    os.write(fds[1], b"a line\n")
                    if "create" in argv:
                        os.read(fds[0], 1)
                finally:
                    os._exit(0)
            files.write(argv[argv.index("--pid-file") + 1], str(pid), os.O_TRUNC)
        if "--console-socket" in argv:
            _hand_over_terminal(argv[argv.index("--console-socket") + 1])
        done(0, "")

    def do_alone(self, what: str, arguments: "list[Any]", done: "Done", fds: tuple[int, ...] = ()) -> None:
        self.do(what, arguments, done, fds)

    def let_go(self) -> None:
        pass


def _hand_over_terminal(path: str) -> None:
    master, slave = os.openpty()
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    connection.connect(path)
    descriptors.send(connection, b"/dev/ptmx", (master,))
    connection.close()
    os.close(master)
    os.close(slave)


def play(folder: str) -> "list[str]":
    """What went otherwise than it should: nothing. folder: for some files, which stay there. Raises OSError."""
    troubles: list[str] = []
    loop = Loop(lambda error: troubles.append(repr(error)))
    try:
        for _ in range(_ROUNDS):
            _live(loop, folder, troubles)
    finally:
        loop.close()
    return troubles


def _live(loop: Loop, folder: str, troubles: "list[str]") -> None:
    workers: Any = _Workers()
    runtime = Runtime(loop, workers, ["runtime"], [], in_process=True)
    server = Server(loop, workers, runtime, {"pod": "p", "cgroup": "/p", "socket": ""}, "")
    ours, theirs = descriptors.pair()
    server.adopt(theirs)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    left = list(enumerate(_LIFE))
    decoder = wire.Decoder()
    paths = {"bundle": folder, "folder": folder, "log": f"{folder}/log", "console_socket": f"{folder}/console"}

    awaited = 1 + len(_LIFE) + sum(request["do"] == "exec" for request in _LIFE)

    def heard(events: int) -> None:
        """The hello, the answers, and the ends of execs; after the hello and each answer comes the next request."""
        nonlocal awaited
        for message in decoder.feed(ours.recv(65536)):
            if message.get("event") not in (None, "exec-exited"):
                continue
            awaited -= 1
            if not awaited:
                loop.stop()
            if "error" in message:
                troubles.append(message["error"])
            if left and "event" not in message:
                number, request = left.pop(0)
                places = request.get("stdio") or ()
                frame = wire.frame({**paths, **request, "id": f"r-{number}", "fds": len(places)})
                descriptors.send(ours, frame, (null,) * len(places))

    def late() -> None:
        troubles.append("it does not end")
        loop.stop()

    limit = loop.after(_LIMIT_SECONDS, late)
    loop.watch(ours.fileno(), IN, heard)
    loop.run()
    loop.cancel(limit)
    loop.unwatch(ours.fileno())
    for connection in list(server.connections):
        connection.close()
    ours.close()
    os.close(null)
    runtime.close()
