"""What the machine is and has, for Node.status."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True)
class Machine:
    """Identity (as systemd and the kernel give it), and capacity: CPUs in thousandths, sizes in bytes."""

    machine_id: str
    system_uuid: str
    boot_id: str
    kernel: str
    os_image: str
    architecture: str
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int


def look(folder: Path) -> Machine:
    """Reads it all. folder: the kubelet's, whose file system counts as ephemeral storage."""
    disk = os.statvfs(folder)
    return Machine(
        machine_id=_read("/etc/machine-id"),
        system_uuid=_read("/sys/class/dmi/id/product_uuid") or _read("/etc/machine-id"),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        kernel=platform.release(),
        os_image=_os_image(),
        architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
        cpu_milli=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=memory()["MemTotal"],
        disk_bytes=disk.f_blocks * disk.f_frsize,
    )


def memory() -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        found[name] = int(words[0]) * (1024 if len(words) > 1 else 1)
    return found


def free_fraction(folder: Path) -> tuple[float, float]:
    """The part of a file system's blocks and inodes that is free, 0 to 1."""
    disk = os.statvfs(folder)
    return (disk.f_bavail / disk.f_blocks if disk.f_blocks else 1.0, disk.f_favail / disk.f_files if disk.f_files else 1.0)


def processes() -> tuple[int, int]:
    """How many threads there are on the machine, and how many there may be."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return running, int(Path("/proc/sys/kernel/pid_max").read_text())


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _os_image() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Linux"
