"""A pod's life as its monitor sees it, played in the spawner, before that forks any.

CPython rewrites the instructions of a function that has run some times (PEP 659), fills the caches of its types, resolves
names: all of that are writes to pages, which monitors share as long as they do not write to them.
"""

import os

from highrt.monitor import files, wire
from highrt.monitor.loop import Loop
from highrt.monitor.runtime import Runtime
from highrt.monitor.server import Server
from strata.linux import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from highrt.monitor.worker import Done

_ROUNDS = 12
"""After 8 calls a function's instructions are rewritten, and then each as it is found to be used."""

_CONTAINER = {"container": "c"}
_EXEC = {"exec": "e", "process": {"args": ["true"], "env": ["A=b"]}, "stdio": [0, 1, 2]}
_LIFE: "list[dict[str, Any]]" = [
    {"do": "events", "since": 0},
    {"do": "namespaces", "targets": {}},
    {"do": "create", "bundle": "", "cgroup": "/c", "log": os.devnull, "stdin": True, **_CONTAINER},
    {"do": "start", **_CONTAINER},
    {"do": "exec", "folder": "", **_EXEC, **_CONTAINER},
    {"do": "attach", "attach": "a", "stdio": [0, 1, 2], **_CONTAINER},
    {"do": "reopen-log", **_CONTAINER},
    {"do": "signal", "signal": 0, **_CONTAINER},
    {"do": "detach", "attach": "a", **_CONTAINER},
    {"do": "delete", **_CONTAINER},
]


class _Workers:
    """They make processes that say a line and wait for their end, and of everything else they say that it is done."""

    waiting = ()

    def do(self, what: str, arguments: "list[Any]", done: "Done", fds: tuple[int, ...] = (), *, keep: bool = False) -> None:
        wire.dumps([what, *arguments])
        argv: list[str] = arguments[0] if what == "runtime" else []
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
        done(0, "")

    def let_go(self) -> None:
        pass


def play(folder: str) -> None:
    """folder: one that is not there, for some files. Raises OSError."""
    os.mkdir(folder, 0o700)
    loop = Loop(lambda error: loop.stop())
    try:
        for _ in range(_ROUNDS):
            _live(loop, folder)
    finally:
        loop.close()
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)


def _live(loop: Loop, folder: str) -> None:
    workers: Any = _Workers()
    runtime = Runtime(loop, workers, ["runtime"], [], in_process=True)
    server = Server(loop, workers, runtime, {"pod": "p", "cgroup": "/p", "socket": ""}, "")
    ours, theirs = descriptors.pair()
    server.adopt(theirs)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    left = list(enumerate(_LIFE))
    decoder = wire.Decoder()

    def next_request() -> None:
        number, request = left.pop(0)
        places = request.get("stdio") or ()
        message = {**request, "id": f"r-{number}", "fds": len(places), "bundle": folder, "folder": folder}
        descriptors.send(ours, wire.frame(message), (null,) * len(places))

    def heard(events: int) -> None:
        for message in decoder.feed(ours.recv(65536)):
            if "event" in message:
                continue
            if left:
                next_request()
            else:
                loop.stop()

    loop.watch(ours.fileno(), 1, heard)
    loop.run()
    loop.unwatch(ours.fileno())
    for connection in list(server.connections):
        connection.close()
    ours.close()
    os.close(null)
    runtime.close()
