"""The exit record: how a container ended, on disk before anybody is told.

`STATE/pods/POD/CONTAINER/exit` holds {code, signal, oom, time (nanoseconds since 1970), boot_id} as JSON.
"""

import os

from highrt.monitor import files, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "exit"


def boot_id() -> str:
    """Names this boot of the machine (random(4))."""
    return files.read("/proc/sys/kernel/random/boot_id").strip()


def write(folder: str, values: "dict[str, Any]") -> None:
    """Writes the record whole or not at all. Raises OSError."""
    temporary = f"{folder}/.{NAME}"
    files.write(temporary, wire.dumps(values), os.O_TRUNC, sync=True)
    os.rename(temporary, f"{folder}/{NAME}")


def read(folder: str) -> "dict[str, Any] | None":
    """The record; None where the container has not ended, or its monitor was killed first. Raises ValueError."""
    try:
        values: dict[str, Any] = wire.loads(files.read(f"{folder}/{NAME}"))
        return values
    except FileNotFoundError:
        return None
