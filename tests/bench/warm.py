"""What the spawner forks in `tests.bench.lowrt`, in the monitor's place: one call of the runtime, and its exit status."""

import os

from strata.linux import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Entry = Callable[[Sequence[str], tuple[int, int, int], Mapping[str, str]], int]


def run(entry: "Entry", connection: int) -> int:
    """Reads the arguments and the program's stdout, calls the runtime, and answers."""
    sock = descriptors.Socket(fileno=connection)
    message, (stdout,) = descriptors.receive(sock)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    status = entry(message.decode().split("\0"), (null, stdout, 2), {"PATH": "/usr/bin:/bin"})
    sock.send(str(status).encode())
    return 0
