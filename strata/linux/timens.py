"""Time namespaces (time_namespaces(7)): monotonic and boot time with an offset."""

import os

from strata.linux import namespaces, syscalls


def enter_new(offsets: "dict[str, tuple[int, int]]") -> None:
    """Puts this process into a new time namespace. offsets: by clock (monotonic, boottime), seconds and nanoseconds.

    A new one is for children only (unshare(2)), and takes offsets until somebody is in it; then this process joins it. /proc must
    be one that knows this process.
    """
    syscalls.unshare(namespaces.NEWTIME)
    if offsets:
        lines = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, (seconds, nanoseconds) in offsets.items())
        descriptor = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
    descriptor = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(descriptor, namespaces.NEWTIME)
    finally:
        os.close(descriptor)
