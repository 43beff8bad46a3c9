"""The node's last word on a pod: what does not fit is refused, with the reason that Kubernetes gives.

The scheduler does not send such pods; a person who sets spec.nodeName, or a race, may.
"""

from collections.abc import Iterable
from typing import Any

from kubelet.machine import Machine
from kubelet.resources import pod_total
from strata.kubeclient.quantity import to_bytes, to_milli


def refuse(pod: dict[str, Any], others: Iterable[dict[str, Any]], machine: Machine, max_pods: int) -> tuple[str, str] | None:
    """Reason and message why the node cannot take a pod beside the others; None where it can."""
    others = [o for o in others if o["metadata"]["uid"] != pod["metadata"]["uid"]]
    if len(others) >= max_pods:
        return "OutOfpods", f"Node didn't have enough resource: pods, requested: 1, used: {len(others)}, capacity: {max_pods}"
    for name, unit, capacity in (("cpu", to_milli, machine.cpu_milli), ("memory", to_bytes, machine.memory_bytes)):
        wanted = pod_total(pod, "requests", name, unit)
        used = sum(pod_total(o, "requests", name, unit) for o in others)
        if wanted and wanted + used > capacity:
            return (
                f"OutOf{name}",
                f"Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}",
            )
    taken = {port for other in others for port in _host_ports(other)}
    for port in _host_ports(pod):
        if any(_clash(port, other) for other in taken):
            return "NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    return None


def _host_ports(pod: dict[str, Any]) -> set[tuple[str, str, int]]:
    return {
        (port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP", port["hostPort"])
        for container in pod["spec"].get("containers", [])
        for port in container.get("ports") or []
        if port.get("hostPort")
    }


def _clash(one: tuple[str, str, int], other: tuple[str, str, int]) -> bool:
    return one[1:] == other[1:] and (one[0] == other[0] or "0.0.0.0" in (one[0], other[0]))
