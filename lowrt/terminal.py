"""A container's terminal: made inside, handed out over the console socket, or relayed by a `run` or `exec` that waits."""

import _socket
import fcntl
import os
from _struct import pack

from lowrt.errors import RuntimeFailure, reason
from strata.linux import descriptors, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowrt.notify import Notifier

_PTMX_INODE = 2  # of every devpts (mknod_ptmx in the kernel)
_TIOCSPTLCK, _TIOCGPTPEER, _TIOCSCTTY, _TIOCSWINSZ = 0x40045431, 0x5441, 0x540E, 0x5414


class Console:
    """A new pseudo-terminal of the devpts instance that `ptmx` (an open descriptor of its multiplexer) belongs to.

    Raises OSError if that is something else.
    """

    def __init__(self, ptmx: int, size: "dict[str, int] | None") -> None:
        check_multiplexer(ptmx)
        self.master = ptmx
        fcntl.ioctl(ptmx, _TIOCSPTLCK, pack("i", 0))
        # By ioctl, not by the name under /dev/pts, which the container could have replaced (TIOCGPTPEER).
        self.slave = fcntl.ioctl(ptmx, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if size:
            set_size(ptmx, size.get("width", 0), size.get("height", 0))

    def become_stdio(self, uid: int) -> None:
        """Makes it stdin, stdout and stderr, and the user's."""
        os.fchown(self.slave, uid, -1)
        for number in (0, 1, 2):
            os.dup2(self.slave, number)
        os.close(self.slave)


def take_control(slave: int) -> None:
    """Makes a terminal the controlling one of this process's session, which it leads."""
    fcntl.ioctl(slave, _TIOCSCTTY, 0)


def check_multiplexer(descriptor: int) -> None:
    """Raises OSError (ENODEV) for what is not the multiplexer of a devpts: an image or a container may have put anything at its
    path (CVE-2025-52565)."""
    status = os.fstat(descriptor)
    genuine = status.st_rdev == os.makedev(5, 2) and status.st_ino == _PTMX_INODE
    if not genuine or mounts.filesystem(descriptor) != mounts.DEVPTS_MAGIC:
        raise OSError(19, "not the multiplexer of a devpts", "/dev/pts/ptmx")


def set_size(descriptor: int, columns: int, rows: int) -> None:
    """Sets a terminal's size, in characters."""
    fcntl.ioctl(descriptor, _TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))


def leave_line_ends(master: int) -> None:
    """Lets a terminal pass on line ends as they are, before its program starts, as runc has it for one that it relays: what is
    printed may as well go to a file or a pipe."""
    import termios

    mode = termios.tcgetattr(master)
    mode[1] &= ~termios.ONLCR
    termios.tcsetattr(master, termios.TCSANOW, mode)


def check_socket(wanted: bool, socket: str, *, detach: bool) -> None:
    """Raises RuntimeFailure where a terminal has no place to go to, or the console socket no terminal to get."""
    if wanted and detach and not socket:
        raise RuntimeFailure("cannot allocate tty if lowrt will detach without setting console socket")
    if socket and not (wanted and detach):
        raise RuntimeFailure("cannot use console socket if lowrt will not detach or allocate tty")


def hand_over(path: str, text: bytes, descriptor: int) -> None:
    """Sends a descriptor, with a text, to the caller's unix socket. Raises RuntimeFailure where nobody listens."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
        descriptors.send(sock, text, (descriptor,))
    except OSError as error:
        raise RuntimeFailure(f"connect to the socket {path}: {reason(error)}") from None
    finally:
        sock.close()


class Relay:
    """Copies bytes between the caller's terminal (or pipes) and a container's, while `wait` lasts."""

    def __init__(self, master: int, fds: tuple[int, int, int], notifier: "Notifier | None" = None) -> None:
        """notifier: takes the container's word that it is ready meanwhile."""
        self.master, self._stdin, self._stdout, self._notifier = master, fds[0], fds[1], notifier
        self._before: Any = None

    def wait(self, pidfd: int) -> None:
        """Until the process has ended and all that it printed is copied."""
        import select
        import signal
        import termios
        import tty

        if os.isatty(self._stdin):
            self._before = termios.tcgetattr(self._stdin)
            tty.setraw(self._stdin, termios.TCSADRAIN)
            mode = termios.tcgetattr(self._stdin)
            mode[1] |= termios.OPOST  # line ends are made here; see `leave_line_ends`
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, mode)
            self._resize()
            signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        try:
            poll = select.poll()
            poll.register(self._stdin, select.POLLIN)
            poll.register(self.master, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            if self._notifier:
                poll.register(self._notifier.fileno(), select.POLLIN)
            ended = False
            while True:
                ready = dict(poll.poll(0 if ended else None))
                if self.master in ready and not self._copy(self.master, self._stdout):
                    return
                if self._stdin in ready and not self._copy(self._stdin, self.master):
                    poll.unregister(self._stdin)
                if self._notifier and self._notifier.fileno() in ready and self._notifier.take(os.getpid()):
                    poll.unregister(self._notifier.fileno())
                if ended and self.master not in ready:
                    return
                ended = ended or pidfd in ready
        finally:
            if self._before is not None:
                termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._before)
                signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            os.close(self.master)

    def _resize(self) -> None:
        size = os.get_terminal_size(self._stdin)
        set_size(self.master, size.columns, size.lines)

    @staticmethod
    def _copy(source: int, target: int) -> bool:
        """One chunk; False at the end (a terminal whose last slave was closed fails with EIO)."""
        try:
            chunk = os.read(source, 65536)
        except OSError:
            return False
        data = chunk
        while data:
            data = data[os.write(target, data) :]
        return bool(chunk)
