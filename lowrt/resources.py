"""update's flags as resources of the OCI runtime spec."""

import os

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLACES = {
    "blkio-weight": ("blockIO", "weight"), "cpu-period": ("cpu", "period"), "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"), "cpu-share": ("cpu", "shares"), "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"), "cpu-idle": ("cpu", "idle"), "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"), "memory": ("memory", "limit"), "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"), "pids-limit": ("pids", "limit"),
}  # fmt: skip
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def from_flags(values: "dict[str, Any]", stdin: int) -> "dict[str, Any]":
    """The resources that --resources names (`-` is standard input), or that the single flags give."""
    if path := values.get("resources"):
        descriptor = stdin if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b""
            while chunk := os.read(descriptor, 65536):
                text += chunk
            found = documents.loads(text.decode())
        except (OSError, ValueError) as error:
            raise RuntimeFailure(f"read the resources from {path}: {reason(error)}") from None
        if not isinstance(found, dict):
            raise RuntimeFailure(f"read the resources from {path}: must be an object")
        return found
    resources: dict[str, Any] = {}
    for flag, (group, name) in _PLACES.items():
        if (given := values.get(flag)) is not None:
            resources.setdefault(group, {})[name] = given if name in ("cpus", "mems") else _size(flag, given)
    return resources


def _size(flag: str, text: str) -> int:
    number, unit = text.strip().lower().removesuffix("b") or "?", 1
    if number[-1] in _UNITS:
        number, unit = number[:-1], _UNITS[number[-1]]
    try:
        return int(number) * unit
    except ValueError:
        raise RuntimeFailure(f"--{flag} {text}: must be a number (bytes may end in k, m, g)") from None
