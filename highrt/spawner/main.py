"""The spawner's main: imports, freezes, and forks a monitor for each message.

A message on the socket (SOCK_SEQPACKET, inherited from highrt) is one byte, the version, and one descriptor: the new
monitor's connection, on which the child reads its request itself. The answer is the version and the child's PID (4 bytes,
big endian). At the end of the stream highrt has gone, and the spawner goes too; monitors stay.
"""

import gc
import os
import signal

from highrt.spawner import loading
from strata.linux import descriptors, syscalls

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
    # The kernel reaps the monitors; each of them wants to wait for its own children again.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = descriptors.Socket(fileno=socket)
    # What is there now is shared with every monitor: it must never be touched by a collection.
    gc.collect()
    gc.freeze()
    try:
        sock.send(bytes([VERSION]))
        while _serve(sock, entry, monitor):
            continue
    except OSError:  # highrt was killed with messages unread
        return


def _serve(sock: descriptors.Socket, entry: "Any", monitor: "Any") -> bool:
    """Answers one message; False at the end of the stream."""
    message, found = descriptors.receive(sock)
    if not message:
        return False
    if message[0] != VERSION or len(found) != 1:
        for descriptor in found:
            os.close(descriptor)
        sock.send(bytes([VERSION]) + bytes(4))
        return True
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status = monitor(entry, found[0])
        finally:
            os._exit(status)
    os.close(found[0])
    sock.send(bytes([VERSION]) + pid.to_bytes(4, "big"))
    return True
