"""What pods and containers use, as messages of CRI."""

from highrt.pods.model import Container, ContainerStats, InterfaceStats, Pod, PodStats
from strata.protocols import cri_pb2 as cri


def container(found: Container, used: ContainerStats) -> cri.ContainerStats:
    return cri.ContainerStats(
        attributes=cri.ContainerAttributes(
            id=found.id,
            metadata=found.config.metadata,
            labels=found.config.labels,
            annotations=found.config.annotations,
        ),
        cpu=_cpu(used),
        memory=_memory(used),
        writable_layer=cri.FilesystemUsage(
            timestamp=used.time_ns,
            fs_id=cri.FilesystemIdentifier(mountpoint=used.writable_layer_path),
            used_bytes=_number(used.writable_layer_bytes),
            inodes_used=_number(used.writable_layer_inodes),
        ),
    )


def pod(found: Pod, used: PodStats, containers: dict[str, Container]) -> cri.PodSandboxStats:
    """containers: the pod's, by ID."""
    message = cri.PodSandboxStats(
        attributes=cri.PodSandboxAttributes(
            id=found.id, metadata=found.config.metadata, labels=found.config.labels, annotations=found.config.annotations
        )
    )
    message.linux.CopyFrom(
        cri.LinuxPodSandboxStats(
            cpu=_cpu(used),
            memory=_memory(used),
            process=cri.ProcessUsage(timestamp=used.time_ns, process_count=_number(used.pids)),
            containers=[
                container(containers[item.container_id], item) for item in used.containers if item.container_id in containers
            ],
        )
    )
    interfaces = [_interface(item) for item in used.interfaces]
    outward = [item for item in interfaces if item.name != "lo"]
    if outward:
        message.linux.network.CopyFrom(
            cri.NetworkUsage(timestamp=used.time_ns, default_interface=outward[0], interfaces=interfaces)
        )
    return message


def _cpu(used: ContainerStats | PodStats) -> cri.CpuUsage:
    return cri.CpuUsage(timestamp=used.time_ns, usage_core_nano_seconds=_number(used.cpu_usage_ns))


def _memory(used: ContainerStats | PodStats) -> cri.MemoryUsage:
    return cri.MemoryUsage(
        timestamp=used.time_ns,
        working_set_bytes=_number(used.memory_working_set_bytes),
        usage_bytes=_number(used.memory_usage_bytes),
        rss_bytes=_number(used.memory_rss_bytes),
    )


def _interface(item: InterfaceStats) -> cri.NetworkInterfaceUsage:
    return cri.NetworkInterfaceUsage(
        name=item.name,
        rx_bytes=_number(item.rx_bytes),
        rx_errors=_number(item.rx_errors),
        tx_bytes=_number(item.tx_bytes),
        tx_errors=_number(item.tx_errors),
    )


def _number(value: int) -> cri.UInt64Value:
    return cri.UInt64Value(value=max(0, value))
