"""Terminals: the console socket on which a runtime hands over a terminal's master, and its size."""

import _socket
import fcntl
import os
import struct

from highrt.monitor import files
from strata.linux import descriptors

_TIOCSWINSZ = 0x5414


class ConsoleSocket:
    """Listens while the runtime makes a process with a terminal (runc's --console-socket)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.bind(path)
        os.chmod(path, 0o600)
        self._socket.listen(1)
        self._socket.setblocking(False)

    def take(self) -> int:
        """The master, which the runtime has sent before it returned. Raises OSError where it did not."""
        # SOCK_NONBLOCK is not handed on by accept: the message is there already
        descriptor, _ = self._socket._accept()  # type: ignore[attr-defined]
        connection = _socket.socket(fileno=descriptor)
        try:
            os.set_inheritable(descriptor, False)
            connection.setblocking(False)
            _, found = descriptors.receive(connection)
        finally:
            connection.close()
        if len(found) != 1:
            for other in found:
                os.close(other)
            raise OSError(71, "the runtime sent no terminal over the console socket")
        return found[0]

    def close(self) -> None:
        self._socket.close()
        files.remove(self.path)


def resize(master: int, width: int, height: int) -> None:
    """Sets a terminal's size, in characters; its foreground processes get SIGWINCH."""
    fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
