"""The monitor's main: from a descriptor and a request to the event loop. Forked from the spawner, or started cold."""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import os
import sys

from highrt.monitor import record, wire
from highrt.monitor.loop import Loop
from highrt.monitor.runtime import Runtime
from highrt.monitor.server import Server
from strata.linux import descriptors, syscalls
from strata.telemetry import spans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from highrt.monitor.runtime import Entry

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def run(entry: "Entry | None", connection: int) -> int:
    """Serves one pod until it is stopped; the exit status.

    entry: the runtime's entry point, for handlers that name it. connection: a stream socket on which highrt has sent the
    settings as one frame, and then speaks the monitor's wire: {pod, socket, cgroup, environ, command, options, in_process}.
    """
    _detach(connection)
    sock = descriptors.Socket(fileno=connection)
    # An upgrade may replace the files under a monitor that runs: what is imported late would be of another version.
    sys.path.clear()
    settings = _settings(sock)
    boot = record.boot_id()
    environ: dict[str, str] = settings.get("environ") or {}
    spans.configure("monitor", environ.get(spans.FOLDER_VARIABLE))
    loop = Loop(lambda error: server.note_fault(error))
    runtime = Runtime(loop, entry if settings.get("in_process") else None, settings["command"], settings.get("options") or [])
    server = Server(loop, runtime, settings, boot)
    server.adopt(sock)
    loop.run()
    return 0


def _detach(connection: int) -> None:
    """A session of its own, nothing of who started it but the connection."""
    os.setsid()
    os.umask(0o022)
    os.chdir("/")
    syscalls.prctl(_PR_SET_NAME, b"strata-monitor")
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Ended by highrt's request only: a stray signal to a service's processes must not take pods along.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        if number != connection:
            os.dup2(null, number)
    descriptors.close_all_above((0, 1, 2, connection))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-998")
    except OSError:
        pass  # without CAP_SYS_RESOURCE the kernel refuses; then it is as likely a victim as highrt


def _settings(sock: "descriptors.Socket") -> "dict[str, Any]":
    """The first frame; what follows it belongs to the connection, so not a byte more is read."""
    head = _exactly(sock, 4)
    decoder = wire.Decoder()
    decoder.feed(head)
    (settings,) = decoder.feed(_exactly(sock, int.from_bytes(head, "big")))
    return settings


def _exactly(sock: "descriptors.Socket", count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise wire.WireError("highrt went before it had sent the settings")
        data += piece
    return data
