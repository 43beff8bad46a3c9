"""CRI's metrics: cAdvisor's, by its names and labels, which a kubelet passes on to Prometheus as they are.

Values are whole numbers on this wire, those of seconds too. A limit that is not set is 0, as cAdvisor has it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from highrt.pods.model import Container, InterfaceStats, Pod
from highrt.pods.usage import Details
from strata.protocols import cri_pb2 as cri

_LABELS = ("container", "id", "image", "name", "namespace", "pod")
_UNLIMITED = 1 << 62
_SECOND_NS = 1_000_000_000

# What a metric gives: the values of its further labels, and the number.
Samples = Iterator[tuple[tuple[str, ...], int]]


@dataclass(frozen=True)
class _Metric:
    name: str
    help: str
    kind: "cri.MetricType"
    labels: tuple[str, ...]
    samples: Callable[[Any], Iterable[tuple[tuple[str, ...], int]]]


def descriptors() -> list[cri.MetricDescriptor]:
    """All metrics that there are."""
    return [
        cri.MetricDescriptor(name=metric.name, help=metric.help, label_keys=[*_LABELS, *metric.labels])
        for metric in (*_OF_CONTAINERS, *_OF_INTERFACES)
    ]


def pod(found: Pod, interfaces: list[InterfaceStats]) -> cri.PodSandboxMetrics:
    """A pod's own: its network's."""
    meta = found.config.metadata
    labels = ("", found.config.linux.cgroup_parent, "", found.id, meta.namespace, meta.name)
    return cri.PodSandboxMetrics(pod_sandbox_id=found.id, metrics=_samples(_OF_INTERFACES, labels, interfaces))


def container(of_pod: Pod, found: Container, used: Details) -> cri.ContainerMetrics:
    meta = of_pod.config.metadata
    image = found.config.image.user_specified_image or found.config.image.image
    labels = (found.config.metadata.name, found.cgroup, image, found.id, meta.namespace, meta.name)
    return cri.ContainerMetrics(container_id=found.id, metrics=_samples(_OF_CONTAINERS, labels, (found, used)))


def _samples(of: Iterable[_Metric], labels: tuple[str, ...], source: Any) -> Iterator[cri.Metric]:
    """Without time stamps, which on this wire mean that figures are older than the question."""
    for metric in of:
        for values, number in metric.samples(source):
            value = cri.UInt64Value(value=max(0, int(number)))
            yield cri.Metric(name=metric.name, metric_type=metric.kind, label_values=[*labels, *values], value=value)


def _at(used: Details, *path: str) -> Any:
    value: Any = used.cgroup
    for key in path:
        value = (value or {}).get(key)
    return value or 0


def _plain(name: str, help_: str, kind: "cri.MetricType", number: Callable[[Container, Details], int], *labels: str) -> _Metric:
    """A metric with one number. labels: pairs `key=value` that are always the same."""
    keys, values = tuple(each.partition("=")[0] for each in labels), tuple(each.partition("=")[2] for each in labels)
    return _Metric(name, help_, kind, keys, lambda source: [(values, number(*source))])


def _counter(name: str, help_: str, number: Callable[[Container, Details], int], *labels: str) -> _Metric:
    return _plain(name, help_, cri.COUNTER, number, *labels)


def _gauge(name: str, help_: str, number: Callable[[Container, Details], int], *labels: str) -> _Metric:
    return _plain(name, help_, cri.GAUGE, number, *labels)


def _limit(number: int) -> int:
    return number if 0 < number < _UNLIMITED else 0


def _raw(used: Details, *names: str) -> int:
    """The first of some counters of memory.stat that is there: v1's name, v2's name."""
    raw = _at(used, "memory", "raw") or {}
    return next((raw[name] for name in names if name in raw), 0)


def _failures(source: tuple[Container, Details]) -> Samples:
    used = source[1]
    for kind, name in (("pgfault", "pgfault"), ("pgmajfault", "pgmajfault")):
        yield (kind, "container"), _raw(used, name)
        yield (kind, "hierarchy"), _raw(used, f"total_{name}", name)


def _devices(source: tuple[Container, Details]) -> Samples:
    for entry in _at(source[1], "blkio", "ioServiceBytesRecursive") or ():
        major, minor = str(entry.get("major", 0)), str(entry.get("minor", 0))
        yield ("", major, minor, entry.get("op", "")), entry.get("value", 0)


def _blocks(table: str, operation: str) -> Callable[[tuple[Container, Details]], Samples]:
    def samples(source: tuple[Container, Details]) -> Samples:
        sums: dict[str, int] = {}
        for entry in _at(source[1], "blkio", table) or ():
            if entry.get("op") == operation:
                device = f"{entry.get('major', 0)}:{entry.get('minor', 0)}"
                sums[device] = sums.get(device, 0) + entry.get("value", 0)
        yield from (((device,), number) for device, number in sums.items())

    return samples


def _filesystem(number: Callable[[Details], int]) -> Callable[[tuple[Container, Details]], Samples]:
    def samples(source: tuple[Container, Details]) -> Samples:
        yield (source[1].filesystem.device,), number(source[1])

    return samples


def _pages(key: str) -> Callable[[tuple[Container, Details]], Samples]:
    def samples(source: tuple[Container, Details]) -> Samples:
        for size, entry in (_at(source[1], "hugetlb") or {}).items():
            yield (size,), entry.get(key, 0)

    return samples


def _pressure(kind: str, which: str) -> Callable[[tuple[Container, Details]], Samples]:
    def samples(source: tuple[Container, Details]) -> Samples:
        if found := source[1].stats.pressure.get(kind):
            yield (), (found.some_ns if which == "some" else found.full_ns) // _SECOND_NS

    return samples


def _interfaces(number: Callable[[InterfaceStats], int]) -> Callable[[list[InterfaceStats]], Samples]:
    def samples(source: list[InterfaceStats]) -> Samples:
        yield from (((item.name,), number(item)) for item in source)

    return samples


_COUNT, _LEVEL = cri.COUNTER, cri.GAUGE
_OF_CONTAINERS: list[_Metric] = [
    _counter(
        "container_cpu_usage_seconds_total",
        "CPU time used, in seconds",
        lambda c, u: u.stats.cpu_usage_ns // _SECOND_NS,
        "cpu=total",
    ),
    _counter(
        "container_cpu_user_seconds_total",
        "CPU time used in user mode, in seconds",
        lambda c, u: _at(u, "cpu", "usage", "user") // _SECOND_NS,
    ),
    _counter(
        "container_cpu_system_seconds_total",
        "CPU time used in the kernel, in seconds",
        lambda c, u: _at(u, "cpu", "usage", "kernel") // _SECOND_NS,
    ),
    _counter(
        "container_cpu_cfs_periods_total",
        "Periods of the CPU quota that have passed",
        lambda c, u: _at(u, "cpu", "throttling", "periods"),
    ),
    _counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the container was throttled",
        lambda c, u: _at(u, "cpu", "throttling", "throttledPeriods"),
    ),
    _counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which the container was throttled, in seconds",
        lambda c, u: _at(u, "cpu", "throttling", "throttledTime") // _SECOND_NS,
    ),
    _gauge("container_memory_usage_bytes", "Memory used, with the file cache", lambda c, u: u.stats.memory_usage_bytes),
    _gauge(
        "container_memory_working_set_bytes",
        "Memory used, less the inactive file cache",
        lambda c, u: u.stats.memory_working_set_bytes,
    ),
    _gauge("container_memory_rss", "Anonymous memory", lambda c, u: u.stats.memory_rss_bytes),
    _gauge("container_memory_cache", "File cache", lambda c, u: _at(u, "memory", "cache")),
    _gauge(
        "container_memory_mapped_file",
        "Files mapped into memory",
        lambda c, u: _raw(u, "total_mapped_file", "mapped_file", "file_mapped"),
    ),
    _gauge(
        "container_memory_kernel_usage",
        "Memory that the kernel uses for the container",
        lambda c, u: _at(u, "memory", "kernel", "usage") or _raw(u, "kernel"),
    ),
    _gauge(
        "container_memory_max_usage_bytes", "The most memory that was ever used", lambda c, u: _at(u, "memory", "usage", "max")
    ),
    _gauge("container_memory_swap", "Swap used", lambda c, u: u.stats.swap_usage_bytes or 0),
    _counter("container_memory_failcnt", "How often the memory limit was hit", lambda c, u: _at(u, "memory", "usage", "failcnt")),
    _Metric("container_memory_failures_total", "Page faults", _COUNT, ("failure_type", "scope"), _failures),
    _counter("container_oom_events_total", "Processes killed for want of memory", lambda c, u: u.oom_kills),
    _Metric(
        "container_blkio_device_usage_total",
        "Bytes read from and written to block devices",
        _COUNT,
        ("device", "major", "minor", "operation"),
        _devices,
    ),
    _Metric(
        "container_fs_reads_bytes_total",
        "Bytes read from block devices",
        _COUNT,
        ("device",),
        _blocks("ioServiceBytesRecursive", "Read"),
    ),
    _Metric(
        "container_fs_writes_bytes_total",
        "Bytes written to block devices",
        _COUNT,
        ("device",),
        _blocks("ioServiceBytesRecursive", "Write"),
    ),
    _Metric("container_fs_reads_total", "Reads from block devices", _COUNT, ("device",), _blocks("ioServicedRecursive", "Read")),
    _Metric("container_fs_writes_total", "Writes to block devices", _COUNT, ("device",), _blocks("ioServicedRecursive", "Write")),
    _Metric(
        "container_fs_usage_bytes",
        "Bytes in the writable layer",
        _LEVEL,
        ("device",),
        _filesystem(lambda u: u.stats.writable_layer_bytes),
    ),
    _Metric(
        "container_fs_limit_bytes",
        "The size of the writable layer's file system",
        _LEVEL,
        ("device",),
        _filesystem(lambda u: u.filesystem.limit_bytes),
    ),
    _Metric(
        "container_fs_inodes_total",
        "Inodes of the writable layer's file system",
        _LEVEL,
        ("device",),
        _filesystem(lambda u: u.filesystem.inodes),
    ),
    _Metric(
        "container_fs_inodes_free",
        "Free inodes of the writable layer's file system",
        _LEVEL,
        ("device",),
        _filesystem(lambda u: u.filesystem.inodes_free),
    ),
    _Metric("container_hugetlb_usage_bytes", "Huge pages used", _LEVEL, ("pagesize",), _pages("usage")),
    _Metric("container_hugetlb_max_usage_bytes", "The most huge pages that were ever used", _LEVEL, ("pagesize",), _pages("max")),
    _gauge("container_processes", "Processes", lambda c, u: u.processes.count),
    _gauge("container_threads", "Threads", lambda c, u: _at(u, "pids", "current") or u.processes.threads),
    _gauge("container_threads_max", "The most threads allowed; 0 is no limit", lambda c, u: _limit(_at(u, "pids", "limit"))),
    _gauge("container_file_descriptors", "Open file descriptors", lambda c, u: u.processes.descriptors),
    _gauge("container_sockets", "Open sockets", lambda c, u: u.processes.sockets),
    _gauge(
        "container_ulimits_soft",
        "Soft limits of the first process",
        lambda c, u: u.processes.open_files_limit,
        "ulimit=max_open_files",
    ),
    _gauge(
        "container_start_time_seconds", "When it was started, in seconds since 1970", lambda c, u: c.started_at_ns // _SECOND_NS
    ),
    _gauge(
        "container_last_seen", "When these figures were taken, in seconds since 1970", lambda c, u: u.stats.time_ns // _SECOND_NS
    ),
    _gauge(
        "container_spec_cpu_period",
        "The period of the CPU quota, in microseconds",
        lambda c, u: c.config.linux.resources.cpu_period,
    ),
    _gauge(
        "container_spec_cpu_quota",
        "CPU time allowed in each period, in microseconds; 0 is no limit",
        lambda c, u: c.config.linux.resources.cpu_quota,
    ),
    _gauge("container_spec_cpu_shares", "The share of the CPU", lambda c, u: c.config.linux.resources.cpu_shares),
    _gauge(
        "container_spec_memory_limit_bytes",
        "The memory limit; 0 is none",
        lambda c, u: _limit(_at(u, "memory", "usage", "limit")),
    ),
    _gauge("container_spec_memory_reservation_limit_bytes", "The memory reservation; 0 is none", lambda c, u: 0),
    _gauge(
        "container_spec_memory_swap_limit_bytes",
        "The limit of memory and swap together; 0 is none",
        lambda c, u: _limit(c.config.linux.resources.memory_swap_limit_in_bytes),
    ),
    *(
        _Metric(
            f"container_pressure_{kind}_{word}_seconds_total",
            f"Time for which {whose} tasks waited for {kind}",
            _COUNT,
            (),
            _pressure(kind, which),
        )
        for kind in ("cpu", "memory", "io")
        for which, word, whose in (("some", "waiting", "some"), ("full", "stalled", "all"))
    ),
]

_OF_INTERFACES: list[_Metric] = [
    _Metric("container_network_receive_bytes_total", "Bytes received", _COUNT, ("interface",), _interfaces(lambda i: i.rx_bytes)),
    _Metric(
        "container_network_receive_packets_total", "Packets received", _COUNT, ("interface",), _interfaces(lambda i: i.rx_packets)
    ),
    _Metric(
        "container_network_receive_packets_dropped_total",
        "Received packets that were dropped",
        _COUNT,
        ("interface",),
        _interfaces(lambda i: i.rx_dropped),
    ),
    _Metric(
        "container_network_receive_errors_total",
        "Errors while receiving",
        _COUNT,
        ("interface",),
        _interfaces(lambda i: i.rx_errors),
    ),
    _Metric("container_network_transmit_bytes_total", "Bytes sent", _COUNT, ("interface",), _interfaces(lambda i: i.tx_bytes)),
    _Metric(
        "container_network_transmit_packets_total", "Packets sent", _COUNT, ("interface",), _interfaces(lambda i: i.tx_packets)
    ),
    _Metric(
        "container_network_transmit_packets_dropped_total",
        "Packets to be sent that were dropped",
        _COUNT,
        ("interface",),
        _interfaces(lambda i: i.tx_dropped),
    ),
    _Metric(
        "container_network_transmit_errors_total",
        "Errors while sending",
        _COUNT,
        ("interface",),
        _interfaces(lambda i: i.tx_errors),
    ),
]
