"""The spawner's main: imports, freezes, and forks a monitor for each message.

A message on the socket (SOCK_SEQPACKET, inherited from highrt) is one byte, the version, and one descriptor: the new
monitor's connection, on which the child reads its request itself. The answer is the version and the child's PID (4 bytes,
big endian). At the end of the stream highrt has gone, and the spawner goes too; monitors stay.
"""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import gc
import os
import sys

from highrt.spawner import loading
from strata.linux import descriptors, pages, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
_PR_SET_NAME = 15


def run(entry_name: str, monitor_name: str, socket: int) -> None:
    """Serves until highrt closes the socket. Raises ImportError where a dotted name is wrong."""
    os.setsid()  # ctrl-c in highrt's terminal is not for this process
    syscalls.prctl(_PR_SET_NAME, b"strata-spawner")
    entry = loading.entry_point(entry_name, with_package=True)
    monitor = loading.entry_point(monitor_name, with_package=False)
    for module, does in ((entry.__module__, "practise"), (monitor.__module__, "prepare")):
        if early := getattr(sys.modules[module], does, None):
            early()
    # The kernel reaps the monitors; each of them wants to wait for its own children again.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = descriptors.Socket(fileno=socket)
    # What is there now is shared with every monitor: it must never be touched by a collection.
    gc.collect()
    gc.freeze()
    pages.drop_code()  # serving needs little of what importing and preparing needed
    try:
        sock.send(bytes([VERSION]))
        while _serve(sock, entry, monitor):
            pass
    except OSError:  # highrt was killed with messages unread
        return


def _serve(sock: descriptors.Socket, entry: "Any", monitor: "Any") -> bool:
    """Answers one message; False at the end of the stream."""
    message, found = descriptors.receive(sock)
    if not message:
        return False
    pid = 0
    if message[0] == VERSION and len(found) == 1:
        pid = os.fork()
        if pid == 0:
            _become_monitor(entry, monitor, found[0])
    for descriptor in found:
        os.close(descriptor)
    sock.send(bytes([VERSION]) + pid.to_bytes(4, "big"))
    return True


def _become_monitor(entry: "Any", monitor: "Any", connection: int) -> None:
    """In the child. Never returns."""
    status = 1
    try:
        descriptors.close_all_above((0, 1, 2, connection))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = monitor(entry, connection)
    finally:
        os._exit(status)
