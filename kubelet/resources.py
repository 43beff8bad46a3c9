"""A pod's resources: quality of service, its cgroup, and what CRI and the kernel are told.

The numbers are Kubernetes': https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/ and the kubelet's
conversion of CPU to shares (1024 a core) and quota (of a period of 100 ms).
"""

import os
from collections.abc import Iterable
from typing import Any

from strata.kubeclient.quantity import to_bytes, to_milli
from strata.linux import cgroups
from strata.protocols import cri_pb2 as cri

PERIOD_US = 100_000
MIN_QUOTA_US = 1_000
MIN_SHARES = 2


def quantities(container: dict[str, Any], kind: str) -> dict[str, str]:
    """A container's `requests` or `limits`; a limit stands in for a request that is not given."""
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    return {**limits, **(resources.get("requests") or {})} if kind == "requests" else dict(limits)


def is_sidecar(container: dict[str, Any]) -> bool:
    """Whether an init container runs beside the others for the pod's whole life (KEP-753)."""
    return container.get("restartPolicy") == "Always"


def qos_class(pod: dict[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort."""
    spec = pod["spec"]
    containers = [*spec.get("containers", []), *spec.get("initContainers", [])]
    guaranteed, any_set = bool(containers), False
    for container in containers:
        limits, requests = quantities(container, "limits"), quantities(container, "requests")
        for name in ("cpu", "memory"):
            limit = to_milli(limits[name]) if name in limits else 0
            request = to_milli(requests[name]) if name in requests else 0
            any_set = any_set or bool(limit or request)
            guaranteed = guaranteed and limit > 0 and limit == request
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def shares(milli_cpu: int) -> int:
    return max(milli_cpu * 1024 // 1000, MIN_SHARES)


def quota(milli_cpu: int) -> int:
    return max(milli_cpu * PERIOD_US // 1000, MIN_QUOTA_US)


def oom_score_adj(pod: dict[str, Any], container: dict[str, Any], memory_capacity_bytes: int) -> int:
    """How early the kernel's OOM killer takes a container: -997 Guaranteed, 1000 BestEffort, by its share in between."""
    if pod["spec"].get("priorityClassName") == "system-node-critical":
        return -997
    quality = qos_class(pod)
    if quality != "Burstable":
        return -997 if quality == "Guaranteed" else 1000
    requested = to_bytes(quantities(container, "requests").get("memory", 0))
    return max(3, min(999, 1000 - 1000 * requested // max(memory_capacity_bytes, 1)))


def container_resources(
    pod: dict[str, Any], container: dict[str, Any], memory_capacity_bytes: int
) -> cri.LinuxContainerResources:
    """What CRI is told of a container's limits."""
    requests, limits = quantities(container, "requests"), quantities(container, "limits")
    told = cri.LinuxContainerResources(
        cpu_shares=shares(to_milli(requests.get("cpu", 0))),
        oom_score_adj=oom_score_adj(pod, container, memory_capacity_bytes),
        memory_limit_in_bytes=to_bytes(limits.get("memory", 0)),
        cpu_period=PERIOD_US,
    )
    if "cpu" in limits and to_milli(limits["cpu"]):
        told.cpu_quota = quota(to_milli(limits["cpu"]))
    if told.memory_limit_in_bytes:
        told.memory_swap_limit_in_bytes = told.memory_limit_in_bytes  # no swap
    return told


def pod_total(pod: dict[str, Any], kind: str, name: str, unit: Any) -> int:
    """What a pod needs of a resource: the larger of its containers' sum and any init container's step (KEP-753)."""
    spec = pod["spec"]
    total = sum(unit(quantities(c, kind).get(name, 0)) for c in spec.get("containers", []))
    sidecars = largest = 0
    for container in spec.get("initContainers", []):
        amount = unit(quantities(container, kind).get(name, 0))
        if is_sidecar(container):
            sidecars += amount
            largest = max(largest, sidecars)
        else:
            largest = max(largest, sidecars + amount)
    overhead = unit((spec.get("overhead") or {}).get(name, 0))
    return int(max(total + sidecars, largest) + overhead)


def pod_limits(pod: dict[str, Any]) -> dict[str, Any]:
    """The limits of a pod's own cgroup, as the OCI spec writes resources. Only what every container limits is limited."""
    containers = [*pod["spec"].get("containers", []), *pod["spec"].get("initContainers", [])]
    found: dict[str, Any] = {"cpu": {"shares": shares(pod_total(pod, "requests", "cpu", to_milli))}}
    if _all_limit(containers, "cpu"):
        found["cpu"] |= {"quota": quota(pod_total(pod, "limits", "cpu", to_milli)), "period": PERIOD_US}
    if _all_limit(containers, "memory"):
        found["memory"] = {"limit": pod_total(pod, "limits", "memory", to_bytes)}
    return found


def _all_limit(containers: Iterable[dict[str, Any]], name: str) -> bool:
    return all(to_milli(quantities(c, "limits").get(name, 0)) > 0 for c in containers)


class PodCgroups:
    """The cgroups of pods, below `ROOT/kubepods`: Guaranteed ones there, the others in a group of their class."""

    def __init__(self, root: str) -> None:
        self._base = f"{root.rstrip('/')}/kubepods"

    def parent(self, pod: dict[str, Any]) -> str:
        """The path that CRI gets as cgroup_parent."""
        quality, uid = qos_class(pod).lower(), pod["metadata"]["uid"]
        middle = "" if quality == "guaranteed" else f"/{quality}"
        return f"{self._base}{middle}/pod{uid}"

    def create(self, pod: dict[str, Any]) -> None:
        """Makes a pod's cgroup and sets its limits. Raises OSError."""
        if qos_class(pod) == "BestEffort":
            middle = cgroups.open_cgroup(f"{self._base}/besteffort")
            if not middle.exists():
                middle.create()
                middle.apply({"cpu": {"shares": MIN_SHARES}})
        group = cgroups.open_cgroup(self.parent(pod))
        group.create()
        group.apply(pod_limits(pod))

    def remove(self, uid: str) -> None:
        """Ends what still runs in a pod's cgroup, and removes it. Raises OSError."""
        for middle in ("", "/burstable", "/besteffort"):
            cgroups.open_cgroup(f"{self._base}{middle}/pod{uid}").destroy()

    def uids(self) -> set[str]:
        """The pods that have a cgroup."""
        found: set[str] = set()
        for middle in ("", "/burstable", "/besteffort"):
            for folder in cgroups.open_cgroup(self._base + middle).folders():
                found.update(name[3:] for name in _names(folder) if name.startswith("pod"))
        return found


def _names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []
