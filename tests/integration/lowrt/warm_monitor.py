"""What the spawner forks in tests, in the monitor's place: one call of the runtime (`warm` is the other side)."""

from lowrt import main
from strata.linux import descriptors, pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Entry = Callable[[Sequence[str], tuple[int, int, int], Mapping[str, str]], int]


def run(entry: "Entry", connection: int) -> int:
    """Reads the arguments and the three descriptors, calls the runtime, and answers."""
    main.rehearse()  # as a monitor's worker that is forked ahead of need
    pages.copy_now()
    sock = descriptors.Socket(fileno=connection)
    message, found = descriptors.receive(sock)
    if not message:
        return 0
    stdin, stdout, stderr = found
    status = entry(message.decode().split("\0"), (stdin, stdout, stderr), {"PATH": "/usr/bin:/bin"})
    sock.send(str(status).encode())
    descriptors.receive(sock)  # its end: who asked goes on first
    return 0
