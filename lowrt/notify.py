"""Readiness (sd_notify(3)): who starts a container with NOTIFY_SOCKET waits for it to say that it is ready.

The container gets a socket of its own, in a folder that is mounted at /run/notify, and its NOTIFY_SOCKET names that. What it
says there is told to the caller, together with the process that the service's life hangs on: the container's first one, or
lowrt's where that stays with it. runc has the same.
"""

import _socket
import os
import select

from lowrt import log, state
from lowrt.errors import RuntimeFailure, reason
from strata.linux import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VARIABLE = "NOTIFY_SOCKET"
_FOLDER, _NAME, _INSIDE = "notify", "notify.sock", "/run/notify"
_BARRIER_SECONDS = 30.0

mount_options = ["bind", "nosuid", "noexec", "nodev", "ro"]
environment = f"{VARIABLE}={_INSIDE}/{_NAME}"


def mount(container: state.Container) -> "dict[str, Any]":
    """The mount of the socket's folder."""
    return {"destination": _INSIDE, "source": f"{container.folder}/{_FOLDER}", "options": mount_options}


def make_folder(container: state.Container) -> None:
    os.mkdir(f"{container.folder}/{_FOLDER}", 0o755)


class Notifier:
    """The container's socket, and where what is said there goes to. It ends with the first word of readiness."""

    def __init__(self, container: state.Container, target: str) -> None:
        """Listens. target: the caller's NOTIFY_SOCKET. Raises OSError, where the container was made without one too."""
        self._target = target
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        # By a descriptor: the whole path may be longer than an address can be.
        folder = os.open(f"{container.folder}/{_FOLDER}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{folder}/{_NAME}")
            os.chmod(_NAME, 0o777, dir_fd=folder)  # any user in the container may speak
        except OSError:
            self.close()
            raise
        finally:
            os.close(folder)

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        self._listener.close()

    def wait(self, pidfd: int, main_pid: int) -> None:
        """Until the container is ready, or its first process has ended."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.fileno() in ready and self.take(main_pid):
                return
            if self.fileno() not in ready:
                return

    def take(self, main_pid: int) -> bool:
        """Reads one message; True when it said that the container is ready, and the caller was told so."""
        message = self._listener.recv(4096)
        lines = [line for line in message.split(b"\n") if line.startswith(b"READY=")]
        if not lines:
            return False
        try:
            self._tell(lines[0], main_pid)
        except OSError as error:
            log.warning(f"cannot notify {self._target}: {reason(error)}")
        return True

    def _tell(self, line: bytes, main_pid: int) -> None:
        name = self._target
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            sock.connect("\0" + name[1:] if name.startswith("@") else name)
            sock.send(line + b"\n")
            sock.send(b"MAINPID=%d\n" % main_pid)
            self._wait_for_barrier(sock)
        finally:
            sock.close()

    @staticmethod
    def _wait_for_barrier(sock: descriptors.Socket) -> None:
        """Until all that was sent has been read: the reader closes what it got (sd_notify_barrier(3))."""
        mine, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                descriptors.send(sock, b"BARRIER=1", (theirs,))
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(mine, select.POLLIN)
            if not poll.poll(_BARRIER_SECONDS * 1000):
                log.warning(f"no answer to the barrier of {VARIABLE} for {_BARRIER_SECONDS:.0f} s")
        finally:
            os.close(mine)


def of_start(container: state.Container, target: str) -> Notifier:
    """For a container that was created before. Raises RuntimeFailure."""
    try:
        return Notifier(container, target)
    except OSError as error:
        raise RuntimeFailure(f"{VARIABLE} was not set when the container was created: {reason(error)}") from None
