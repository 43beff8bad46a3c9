"""What containers use, by their cgroups, processes and writable layers: the figures behind CRI's statistics and metrics."""

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from typing import Any

from highrt.pods.model import ContainerStats, Pressure
from strata.linux import cgroups
from strata.linux.cgroups import Cgroup

_UNLIMITED = 1 << 62  # v1 writes the largest multiple of a page, v2 "max"
_PRESSURE_NS = 1000  # PSI's totals are in microseconds


@dataclass(frozen=True)
class Processes:
    """Of all processes of a container together. open_files_limit: the first one's soft limit; -1 is unlimited."""

    count: int = 0
    threads: int = 0
    descriptors: int = 0
    sockets: int = 0
    open_files_limit: int = 0


@dataclass(frozen=True)
class Filesystem:
    """The file system that a writable layer lies on. device: as the kernel names it."""

    device: str = ""
    limit_bytes: int = 0
    inodes: int = 0
    inodes_free: int = 0


@dataclass(frozen=True)
class Details:
    """All that is known of a container's use. cgroup: as `strata.linux.cgroups.usage` has it."""

    stats: ContainerStats
    cgroup: dict[str, Any]
    oom_kills: int
    processes: Processes
    filesystem: Filesystem


def stats(container_id: str, group: Cgroup, layer: str) -> ContainerStats:
    """What a container uses. layer: the folder of its writable layer, "" where there is none. Walks through that folder."""
    return _stats(container_id, group, group.usage(), layer)


def details(container_id: str, group: Cgroup, layer: str, first_pid: int) -> Details:
    """The same and more, which takes a walk through its processes too. first_pid: of its first process, 0 where none runs."""
    used = group.usage()
    return Details(
        _stats(container_id, group, used, layer), used, group.oom_kill_count(), _processes(group, first_pid), _filesystem(layer)
    )


def pressure(group: Cgroup) -> dict[str, Pressure]:
    """Pressure stall information of a group (cpu, memory, io); nothing on v1, or where the kernel has it switched off."""
    return _pressure(group.usage()) if cgroups.mode() == "v2" else {}


def _stats(container_id: str, group: Cgroup, used: dict[str, Any], layer: str) -> ContainerStats:
    short, memory = group.stats(), used.get("memory") or {}
    raw = memory.get("raw") or {}
    plain, both = memory.get("usage") or {}, memory.get("swap") or {}
    size, inodes = _tree_size(layer) if layer else (0, 0)
    limit, limit_both = plain.get("limit", 0), both.get("limit", 0)
    swap = max(0, both.get("usage", 0) - plain.get("usage", 0)) if both else None
    return ContainerStats(
        container_id, time.time_ns(), short.cpu_usage_ns, short.memory_usage_bytes, short.memory_working_set_bytes,
        short.memory_rss_bytes, short.pids, layer, size, inodes,
        memory_available_bytes=max(0, limit - short.memory_working_set_bytes) if 0 < limit < _UNLIMITED else None,
        page_faults=raw.get("total_pgfault", raw.get("pgfault", 0)),
        major_page_faults=raw.get("total_pgmajfault", raw.get("pgmajfault", 0)),
        swap_usage_bytes=swap,
        swap_available_bytes=max(0, limit_both - limit - swap) if swap is not None and 0 < limit_both < _UNLIMITED else None,
        pressure=_pressure(used),
    )  # fmt: skip


def _pressure(used: dict[str, Any]) -> dict[str, Pressure]:
    found = {}
    for kind, part in (("cpu", "cpu"), ("memory", "memory"), ("io", "blkio")):
        if psi := (used.get(part) or {}).get("psi"):
            some, full = psi["some"], psi["full"]
            averages = [(line["avg10"], line["avg60"], line["avg300"]) for line in (some, full)]
            found[kind] = Pressure(some["total"] * _PRESSURE_NS, full["total"] * _PRESSURE_NS, averages[0], averages[1])
    return found


def _processes(group: Cgroup, first_pid: int) -> Processes:
    try:
        pids = group.pids(recursive=True)
    except OSError:  # it has no group any more
        pids = []
    count = threads = descriptors = sockets = 0
    for pid in pids:
        try:
            threads += len(os.listdir(f"/proc/{pid}/task"))
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # it has just ended
            continue
        count += 1
        descriptors += len(names)
        for name in names:
            with contextlib.suppress(OSError):
                sockets += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    limit = 0
    with contextlib.suppress(OSError):
        limit, _ = resource.prlimit(first_pid, resource.RLIMIT_NOFILE) if first_pid else (0, 0)
    return Processes(count, threads, descriptors, sockets, limit)


def _filesystem(layer: str) -> Filesystem:
    if not layer:
        return Filesystem()
    status, place = os.statvfs(layer), os.stat(layer).st_dev
    number = f"{os.major(place)}:{os.minor(place)}"
    try:
        device = f"/dev/{os.path.basename(os.readlink(f'/sys/dev/block/{number}'))}"
    except OSError:  # a file system without a device, like tmpfs
        device = number
    return Filesystem(device, status.f_blocks * status.f_frsize, status.f_files, status.f_ffree)


def _tree_size(folder: str) -> tuple[int, int]:
    """Bytes on disk and inodes below a folder."""
    size = inodes = 0
    for path, _, files in os.walk(folder):
        for name in (".", *files):
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(path, name)).st_blocks * 512
                inodes += 1
    return size, inodes
