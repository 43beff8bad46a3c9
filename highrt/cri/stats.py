"""What pods and containers use, as messages of CRI."""

from collections.abc import Collection

from highrt.pods.model import Container, ContainerStats, InterfaceStats, Pod, PodStats, Pressure
from strata.protocols import cri_pb2 as cri

_SHORTEST_NS = 100_000_000


class Rates:
    """How much CPU is used at present: the growth since the question before, by ID of pod or container."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int, int]] = {}

    def of(self, identifier: str, time_ns: int, used_ns: int) -> int:
        """Nanoseconds of CPU a second; 0 at the first question. Questions in the same tenth of a second get the same answer."""
        then, used_then, rate = self._last.get(identifier, (0, 0, 0))
        if then and time_ns - then < _SHORTEST_NS:
            return rate
        rate = max(0, used_ns - used_then) * 1_000_000_000 // (time_ns - then) if then else 0
        self._last[identifier] = (time_ns, used_ns, rate)
        return rate

    def keep(self, identifiers: Collection[str]) -> None:
        """Forgets all others."""
        for gone in self._last.keys() - set(identifiers):
            del self._last[gone]


def container(found: Container, used: ContainerStats, rates: Rates) -> cri.ContainerStats:
    message = cri.ContainerStats(
        attributes=cri.ContainerAttributes(
            id=found.id,
            metadata=found.config.metadata,
            labels=found.config.labels,
            annotations=found.config.annotations,
        ),
        cpu=_cpu(found.id, used, rates),
        memory=_memory(used),
        writable_layer=cri.FilesystemUsage(
            timestamp=used.time_ns,
            fs_id=cri.FilesystemIdentifier(mountpoint=used.writable_layer_path),
            used_bytes=_number(used.writable_layer_bytes),
            inodes_used=_number(used.writable_layer_inodes),
        ),
    )
    if used.swap_usage_bytes is not None:
        message.swap.timestamp = used.time_ns
        message.swap.swap_usage_bytes.value = used.swap_usage_bytes
        if used.swap_available_bytes is not None:
            message.swap.swap_available_bytes.value = used.swap_available_bytes
    _io(message, used)
    return message


def pod(found: Pod, used: PodStats, containers: dict[str, Container], rates: Rates) -> cri.PodSandboxStats:
    """containers: the pod's, by ID."""
    message = cri.PodSandboxStats(
        attributes=cri.PodSandboxAttributes(
            id=found.id, metadata=found.config.metadata, labels=found.config.labels, annotations=found.config.annotations
        )
    )
    message.linux.CopyFrom(
        cri.LinuxPodSandboxStats(
            cpu=_cpu(found.id, used, rates),
            memory=_memory(used),
            process=cri.ProcessUsage(timestamp=used.time_ns, process_count=_number(used.pids)),
            containers=[
                container(containers[item.container_id], item, rates)
                for item in used.containers
                if item.container_id in containers
            ],
        )
    )
    _io(message.linux, used)
    interfaces = [_interface(item) for item in used.interfaces]
    outward = [item for item in interfaces if item.name != "lo"]
    if outward:
        message.linux.network.CopyFrom(
            cri.NetworkUsage(timestamp=used.time_ns, default_interface=outward[0], interfaces=interfaces)
        )
    return message


def _cpu(identifier: str, used: ContainerStats | PodStats, rates: Rates) -> cri.CpuUsage:
    return cri.CpuUsage(
        timestamp=used.time_ns,
        usage_core_nano_seconds=_number(used.cpu_usage_ns),
        usage_nano_cores=_number(rates.of(identifier, used.time_ns, used.cpu_usage_ns)),
        psi=_psi(used.pressure.get("cpu")),
    )


def _memory(used: ContainerStats | PodStats) -> cri.MemoryUsage:
    available = used.memory_available_bytes
    return cri.MemoryUsage(
        timestamp=used.time_ns,
        working_set_bytes=_number(used.memory_working_set_bytes),
        available_bytes=None if available is None else _number(available),
        usage_bytes=_number(used.memory_usage_bytes),
        rss_bytes=_number(used.memory_rss_bytes),
        page_faults=_number(used.page_faults),
        major_page_faults=_number(used.major_page_faults),
        psi=_psi(used.pressure.get("memory")),
    )


def _io(message: cri.ContainerStats | cri.LinuxPodSandboxStats, used: ContainerStats | PodStats) -> None:
    if psi := _psi(used.pressure.get("io")):
        message.io.CopyFrom(cri.IoUsage(timestamp=used.time_ns, psi=psi))


def _psi(found: Pressure | None) -> cri.PsiStats | None:
    if found is None:
        return None
    some, full = found.some_averages, found.full_averages
    return cri.PsiStats(
        Some=cri.PsiData(Total=found.some_ns, Avg10=some[0], Avg60=some[1], Avg300=some[2]),
        Full=cri.PsiData(Total=found.full_ns, Avg10=full[0], Avg60=full[1], Avg300=full[2]),
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
