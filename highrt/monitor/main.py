"""The monitor's main: from a descriptor and a request to the event loop. Forked from the spawner, or started cold."""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import gc
import os
import select
import sys

from highrt.monitor import files, record, rehearsal, wire
from highrt.monitor.loop import Loop
from highrt.monitor.runtime import Runtime
from highrt.monitor.server import Server
from highrt.monitor.worker import WORK_SECONDS, Workers
from strata.linux import descriptors, syscalls
from strata.telemetry import spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from highrt.monitor.worker import Entry

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def run(entry: "Entry", connection: int) -> int:
    """Serves one pod until it is stopped; the exit status.

    entry: the runtime's entry point, for handlers that name it. connection: a stream socket on which highrt sends the settings
    as one frame, and then speaks the monitor's wire: {pod, socket, cgroup, environ, command, options, in_process, sandbox,
    runtime_seconds}. They may come much later: until then as much is done as can be done for any pod. If they are there at once
    somebody waits, and nothing is. The end of the stream says that there will be none.
    """
    _detach()
    loop = Loop(lambda error: server.note_fault(error))
    sock = descriptors.Socket(fileno=connection)
    workers = Workers(loop, entry, ahead=not _is_readable(sock))
    settings = _settings(sock)
    if settings is None:
        return 0
    workers.let_go_soon()
    environ: dict[str, str] = settings.get("environ") or {}
    if folder := environ.get(spans.FOLDER_VARIABLE):
        spans.configure("monitor", folder)
    options = settings.get("options") or []
    runtime = Runtime(
        loop, workers, settings["command"], options, in_process=bool(settings.get("in_process")),
        limit=float(settings.get("runtime_seconds") or WORK_SECONDS),
    )  # fmt: skip
    server = Server(loop, workers, runtime, settings, record.boot_id())
    server.listen()
    server.adopt(sock)
    loop.run()
    return 0


def prepare(*, rehearsed: bool = True) -> None:
    """Does what all monitors have in common, in the process that they are forked from: it costs none of them a page there.

    rehearsed: with a rehearsal, which pays only there.
    """
    # An upgrade may replace the files under a monitor that runs: what is imported late would be of another version.
    sys.path.clear()
    # What lies between a cycle of objects and its end is new pages: cycles are looked for early, among the few young objects.
    gc.set_threshold(100, 2, 2)
    os.umask(0o022)
    os.chdir("/")
    # Ended by highrt's request only: a stray signal to a service's processes must not take pods along.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    if rehearsed:
        try:
            place = syscalls.new_filesystem("tmpfs")  # nobody sees it, and it goes with this process
        except OSError:
            return  # nowhere to play it: monitors are larger then
        os.fchdir(place)
        rehearsal.play(".")
        os.chdir("/")
        os.close(place)


def _detach() -> None:
    """A session of its own, nothing of who started it."""
    os.setsid()
    syscalls.prctl(_PR_SET_NAME, b"strata-monitor")
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        files.write("/proc/self/oom_score_adj", "-998")
    except OSError:
        pass  # without CAP_SYS_RESOURCE the kernel refuses; then it is as likely a victim as highrt


def _is_readable(sock: "descriptors.Socket") -> bool:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _settings(sock: "descriptors.Socket") -> "dict[str, Any] | None":
    """The first frame, None where none comes; what follows it belongs to the connection, so not a byte more is read."""
    head = _exactly(sock, 4)
    body = _exactly(sock, int.from_bytes(head, "big")) if head else b""
    found = list(wire.Decoder().feed(head + body))
    return found[0] if found else None


def _exactly(sock: "descriptors.Socket", count: int) -> bytes:
    """As many bytes, or none if the stream ends before."""
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            return b""
        data += piece
    return data
