"""Which nodes a pod fits on, and why not on the others."""

from collections.abc import Sequence
from typing import Any

from controlplane import nodeselection, taints
from controlplane.scheduler.affinity import Neighbours
from controlplane.scheduler.cache import NodeInfo, PodInfo

_UNSCHEDULABLE = {"key": taints.UNSCHEDULABLE, "effect": "NoSchedule"}


def fitting(info: PodInfo, nodes: Sequence[NodeInfo], neighbours: Neighbours) -> tuple[list[NodeInfo], dict[str, list[str]]]:
    """The nodes that the pod fits on, and for each other node (by name) the reasons why not."""
    fit, refused = [], {}
    for node in nodes:
        if reasons := problems(info, node, neighbours):
            refused[node.name] = reasons
        else:
            fit.append(node)
    return fit, refused


def problems(info: PodInfo, node: NodeInfo, neighbours: Neighbours) -> list[str]:
    """Why the pod does not fit on the node; [] where it does. The reasons have the words of Kubernetes' scheduler."""
    spec: dict[str, Any] = info.pod["spec"]
    tolerations = spec.get("tolerations") or ()
    if ((node.node or {}).get("spec") or {}).get("unschedulable") and not taints.is_tolerated(_UNSCHEDULABLE, tolerations):
        return ["node(s) were unschedulable"]
    if taint := taints.untolerated(node.taints, tolerations, ("NoSchedule", "NoExecute")):
        return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}"]
    if not nodeselection.matches(spec, node.labels, node.name):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if _ports_taken(info, node):
        return ["node(s) didn't have free ports for the requested pod ports"]
    if reasons := _resources_missing(info, node):
        return reasons
    problem = neighbours.problem(node)
    return [problem] if problem else []


def _resources_missing(info: PodInfo, node: NodeInfo) -> list[str]:
    reasons = []
    if len(node.pods) + 1 > node.allocatable.get("pods", 0):
        reasons.append("Too many pods")
    for name, amount in info.requests.items():
        if amount and amount > node.allocatable.get(name, 0) - node.requested[name]:
            reasons.append(f"Insufficient {name}")
    return reasons


def _ports_taken(info: PodInfo, node: NodeInfo) -> bool:
    taken = [port for other in node.pods.values() for port in other.ports] if info.ports else []
    return any(
        protocol == other_protocol and port == other_port and (address == other_address or "0.0.0.0" in (address, other_address))
        for address, protocol, port in info.ports
        for other_address, other_protocol, other_port in taken
    )


def summary(total: int, refused: dict[str, list[str]]) -> str:
    """The sentence that the pod's events and condition have: how many nodes are refused for which reason."""
    if not total:
        return "no nodes available to schedule pods"
    counts: dict[str, int] = {}
    for reasons in refused.values():
        for reason in reasons:
            counts[reason] = counts.get(reason, 0) + 1
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
    return f"0/{total} nodes are available: {listed}."
