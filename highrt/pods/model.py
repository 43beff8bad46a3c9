"""The types of the pod manager: what a pod, a container, an exec session and an event are."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from strata.protocols.cri_pb2 import ContainerConfig, PodSandboxConfig


class Owner(enum.StrEnum):
    """Who asked for a pod. A kubelet never sees a person's: it would remove them."""

    KUBELET = "kubelet"
    PERSON = "person"


class ContainerState(enum.StrEnum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


@dataclass
class Pod:
    """A sandbox. netns: the path of its network namespace, None on the host's. handler: the runtime handler's name.

    freed: all that it held is known to be free; not written down, for it can be freed again at any time.
    """

    id: str
    owner: Owner
    config: PodSandboxConfig
    handler: str
    ready: bool
    created_at_ns: int
    netns: str | None = None
    ips: list[str] = field(default_factory=list)
    freed: bool = False


@dataclass(frozen=True)
class ContainerUser:
    """Who a container's first process is, inside the container. groups: the supplementary ones, sorted."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass
class Container:
    """reason and message are CRI's: Completed, Error, OOMKilled, StartError or Unknown, and a text for people.

    log_path: the whole path, "" where there is no log. pid: as the host sees it, 0 when it does not run.
    user: None where the daemon that made it did not write it down.
    """

    id: str
    pod_id: str
    owner: Owner
    config: ContainerConfig
    image_id: str
    image_ref: str
    state: ContainerState
    created_at_ns: int
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    pid: int = 0
    cgroup: str = ""
    stop_signal: int = 15
    user: ContainerUser | None = None


@dataclass(frozen=True)
class Stdio:
    """Descriptors for a process's streams, None where there is none. Who takes it owns the descriptors, also after an error."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class EventKind(enum.StrEnum):
    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True)
class ContainerEvent:
    """Something happened to a container; for a pod itself, container_id is the pod's ID, as in CRI's events.

    pod: as it is when the event is read, also after it was removed.
    """

    kind: EventKind
    container_id: str
    pod: Pod
    time_ns: int


@dataclass(frozen=True)
class Handler:
    """An OCI runtime. path and args: its command, for runs as a process. entry: the dotted name of a function that the
    monitors' workers call instead; it takes part only where it is the spawner's. root: the runtime's --root. sandbox: it puts a
    pod's containers into one sandbox, as runsc does, which is the pod's first container's."""

    name: str
    path: str
    root: str
    args: tuple[str, ...] = ()
    entry: str | None = None
    sandbox: bool = False


@dataclass(frozen=True)
class Pressure:
    """For how long some, or all, of a group's tasks waited for a resource (accounting/psi.rst). averages: over the last 10, 60
    and 300 s, in percent."""

    some_ns: int
    full_ns: int
    some_averages: tuple[float, float, float]
    full_averages: tuple[float, float, float]


@dataclass(frozen=True)
class ContainerStats:
    """What a container uses now, as its cgroup has it. Sizes in bytes, CPU in nanoseconds since the start.

    memory_available_bytes, swap_available_bytes: None without a limit. swap_usage_bytes: None where swap is not counted.
    pressure: by resource (cpu, memory, io), where the kernel tells it.
    """

    container_id: str
    time_ns: int
    cpu_usage_ns: int
    memory_usage_bytes: int
    memory_working_set_bytes: int
    memory_rss_bytes: int
    pids: int
    writable_layer_path: str
    writable_layer_bytes: int
    writable_layer_inodes: int
    memory_available_bytes: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0
    swap_usage_bytes: int | None = None
    swap_available_bytes: int | None = None
    pressure: Mapping[str, Pressure] = field(default_factory=dict)


@dataclass(frozen=True)
class InterfaceStats:
    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True)
class PodStats:
    """The sums over a pod's containers, and its interfaces; the first one that is not lo is the default. pressure: of the
    pod's cgroup."""

    pod_id: str
    time_ns: int
    containers: list[ContainerStats]
    interfaces: list[InterfaceStats]
    pressure: Mapping[str, Pressure] = field(default_factory=dict)

    @property
    def cpu_usage_ns(self) -> int:
        return sum(each.cpu_usage_ns for each in self.containers)

    @property
    def memory_usage_bytes(self) -> int:
        return sum(each.memory_usage_bytes for each in self.containers)

    @property
    def memory_working_set_bytes(self) -> int:
        return sum(each.memory_working_set_bytes for each in self.containers)

    @property
    def memory_rss_bytes(self) -> int:
        return sum(each.memory_rss_bytes for each in self.containers)

    @property
    def page_faults(self) -> int:
        return sum(each.page_faults for each in self.containers)

    @property
    def major_page_faults(self) -> int:
        return sum(each.major_page_faults for each in self.containers)

    @property
    def memory_available_bytes(self) -> int | None:
        """None where a container has no limit."""
        each = [container.memory_available_bytes for container in self.containers]
        return None if not each or None in each else sum(filter(None, each))

    @property
    def pids(self) -> int:
        return sum(each.pids for each in self.containers)
