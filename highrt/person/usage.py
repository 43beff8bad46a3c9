"""What a container uses, as `stats` shows it."""

from typing import Any

from highrt.pods.manager import PodManager
from highrt.pods.model import Container
from strata.protocols import highrt_pb2 as api


async def of(pods: PodManager, container: Container) -> api.ContainerStats:
    """The figures of a running container. Raises PodError."""
    used = await pods.container_details(container.id)
    faces = [face for face in await pods.pod_interfaces(container.pod_id) if face.name != "lo"]
    return api.ContainerStats(
        id=container.id,
        name=container.config.metadata.name,
        cpu_nanoseconds=used.stats.cpu_usage_ns,
        time_ns=used.stats.time_ns,
        memory_bytes=used.stats.memory_working_set_bytes,
        memory_limit_bytes=container.config.linux.resources.memory_limit_in_bytes,
        rx_bytes=sum(face.rx_bytes for face in faces),
        tx_bytes=sum(face.tx_bytes for face in faces),
        read_bytes=_moved(used.cgroup, "Read"),
        write_bytes=_moved(used.cgroup, "Write"),
        pids=used.stats.pids,
    )


def _moved(used: dict[str, Any], way: str) -> int:
    """Bytes from ("Read") or to ("Write") all block devices; what a cgroup tells, see strata.linux.cgroups.usage."""
    tables = (used.get("blkio") or {}).get("ioServiceBytesRecursive") or ()
    return sum(entry.get("value", 0) for entry in tables if entry.get("op") == way)
