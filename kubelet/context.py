"""What every part of one node agent shares."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kubelet.fields import Facts
from kubelet.images import Images
from kubelet.network import ClusterDns
from kubelet.objects import Objects
from kubelet.resources import PodCgroups
from kubelet.runtime import Runtime
from kubelet.statuswriter import StatusWriter
from kubelet.volumes.manager import VolumeManager
from strata.kubeclient.client import Client


class Tell(Protocol):
    """Emits an event on an object, or on the field of it that field_path names."""

    def __call__(self, obj: dict[str, Any], type: str, reason: str, message: str, *, field_path: str = "") -> None: ...


@dataclass
class Context:
    """What the parts share. node_ip: the address that hostNetwork pods have. pod_logs: the folder of container logs.

    services: all Services, for environment variables. network_ready: why the runtime cannot give pods a network, empty when
    it can. forget_tokens: drops a pod's. admit: reason and message why the node must refuse a pod, or None.
    """

    node_name: str
    node_ip: str
    root: Path
    pod_logs: Path
    client: Client
    runtime: Runtime
    images: Images
    volumes: VolumeManager
    objects: Objects
    cgroups: PodCgroups
    statuses: StatusWriter
    tell: Tell
    services: Callable[[], Iterable[dict[str, Any]]]
    network_ready: Callable[[], str]
    forget_tokens: Callable[[str], None]
    node_labels: Callable[[], dict[str, str]]
    admit: Callable[[dict[str, Any]], tuple[str, str] | None]
    dns: ClusterDns = field(default_factory=ClusterDns)
    cpu_milli: int = 0
    memory_bytes: int = 0
    ephemeral_bytes: int = 0

    def facts(self, pod_ips: tuple[str, ...]) -> Facts:
        return Facts(self.node_name, self.node_ip, pod_ips, self.cpu_milli, self.memory_bytes, self.ephemeral_bytes)

    def log_folder(self, pod: dict[str, Any]) -> Path:
        meta = pod["metadata"]
        return self.pod_logs / f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
