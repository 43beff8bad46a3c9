"""The spawner's main: imports, freezes, and forks a monitor for each message, one ahead of need.

A message on the socket (SOCK_SEQPACKET, inherited from highrt) is one byte, the version, and one descriptor: the new
monitor's connection, on which the child reads its request itself. The answer is the version and the child's PID (4 bytes,
big endian). At the end of the stream highrt has gone, and the spawner goes too; monitors stay.

A fork, and the copying of the pages that the child then writes to, is half of what a container's start would wait for. So a
spare waits, forked and rehearsed, for the next message; the one after it is forked once the answer is out.
"""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import gc
import os
import select
import sys

from highrt.spawner import loading
from strata.linux import descriptors, pages, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
_BUSY_MILLISECONDS = 20
_PR_SET_NAME = 15


def run(entry_name: str, monitor_name: str, socket: int) -> None:
    """Serves until highrt closes the socket. Raises ImportError where a dotted name is wrong."""
    os.setsid()  # ctrl-c in highrt's terminal is not for this process
    syscalls.prctl(_PR_SET_NAME, b"strata-spawner")
    entry = loading.entry_point(entry_name, with_package=True)
    monitor = loading.entry_point(monitor_name, with_package=False)
    if prepare := getattr(sys.modules[monitor.__module__], "prepare", None):
        prepare()
    # The kernel reaps the monitors; each of them wants to wait for its own children again.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = descriptors.Socket(fileno=socket)
    # What is there now is shared with every monitor: it must never be touched by a collection.
    gc.collect()
    gc.freeze()
    pages.drop_code()  # serving needs little of what importing and preparing needed
    try:
        sock.send(bytes([VERSION]))
        spare = Spare(entry, monitor)
        while _serve(sock, spare):
            if not spare.waits:
                _leave_the_container_alone(sock)
                spare = Spare(entry, monitor)
    except OSError:  # highrt was killed with messages unread
        return


class Spare:
    """A process that becomes the next monitor; it ends with the spawner where it is never needed."""

    def __init__(self, entry: "Any", monitor: "Any") -> None:
        self.waits = True
        self._socket, theirs = descriptors.pair()
        self.pid = os.fork()
        if self.pid == 0:
            _become_spare(entry, monitor, theirs)
        theirs.close()

    def become_monitor(self, connection: int) -> None:
        """Hands it the monitor's connection. Raises OSError when it has died."""
        self.waits = False
        try:
            descriptors.send(self._socket, bytes([VERSION]), (connection,))
        finally:
            self._socket.close()


def _become_spare(entry: "Any", monitor: "Any", sock: descriptors.Socket) -> None:
    """In the child. Never returns."""
    status = 1

    def wait() -> int:
        message, found = descriptors.receive(sock)
        sock.close()
        return found[0] if message else -1

    try:
        descriptors.close_all_above((0, 1, 2, sock.fileno()))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = monitor(entry, wait)
    finally:
        os._exit(status)


def _leave_the_container_alone(sock: descriptors.Socket) -> None:
    """Lets the container that is on its way have the CPUs, unless somebody asks for the next one."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    poll.poll(_BUSY_MILLISECONDS)


def _serve(sock: descriptors.Socket, spare: Spare) -> bool:
    """Answers one message; False at the end of the stream."""
    message, found = descriptors.receive(sock)
    if not message:
        return False
    pid = 0
    if message[0] == VERSION and len(found) == 1:
        try:
            spare.become_monitor(found[0])
            pid = spare.pid
        except OSError:
            pass  # the answer says that there is none; highrt asks for another
    for descriptor in found:
        os.close(descriptor)
    sock.send(bytes([VERSION]) + pid.to_bytes(4, "big"))
    return True
