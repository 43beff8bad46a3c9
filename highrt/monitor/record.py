"""The exit record: how a container ended, on disk before anybody is told.

`STATE/pods/POD/CONTAINER/exit` holds {code, signal, oom, time (nanoseconds since 1970), boot_id} as JSON.
"""

import os

from highrt.monitor import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "exit"


def boot_id() -> str:
    """Names this boot of the machine (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def write(folder: str, values: "dict[str, Any]") -> None:
    """Writes the record whole or not at all. Raises OSError."""
    temporary = f"{folder}/.{NAME}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, wire.dumps(values).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, f"{folder}/{NAME}")


def read(folder: str) -> "dict[str, Any] | None":
    """The record; None where the container has not ended, or its monitor was killed first. Raises ValueError."""
    try:
        with open(f"{folder}/{NAME}", encoding="ascii") as file:
            values: dict[str, Any] = wire.loads(file.read())
            return values
    except FileNotFoundError:
        return None
