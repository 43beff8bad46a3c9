"""Which of the nodes that fit is best: each view gives 0 to 100, and the views have weights.

The weights are those of Kubernetes' default profile, where it has the view.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlplane import nodeselection, taints
from controlplane.scheduler.affinity import Neighbours
from controlplane.scheduler.cache import NodeInfo, PodInfo

_BEST = 100.0
_TAINTS, _NODE_AFFINITY, _NEIGHBOURS, _SPREAD, _LEAST, _BALANCED = 3, 2, 2, 2, 1, 1


def best(info: PodInfo, nodes: Sequence[NodeInfo], neighbours: Neighbours) -> NodeInfo:
    """The best of the nodes (one at least); one of the best by chance."""
    if len(nodes) == 1:
        return nodes[0]
    spec = info.pod["spec"]
    views: list[tuple[int, list[float]]] = [
        (_TAINTS, _normalized([-_soft_taints(spec, node) for node in nodes])),
        (_NODE_AFFINITY, _normalized([nodeselection.preference(spec, node.labels, node.name) for node in nodes])),
        (_NEIGHBOURS, _normalized([neighbours.wish(node) for node in nodes])),
        (_SPREAD, _normalized([-_siblings(info.pod, node) for node in nodes])),
        (_LEAST, [_least_allocated(info, node) for node in nodes]),
        (_BALANCED, [_balanced(info, node) for node in nodes]),
    ]
    totals = [sum(weight * view[i] for weight, view in views) for i in range(len(nodes))]
    top = max(totals)
    return random.choice([node for node, total in zip(nodes, totals, strict=True) if total >= top - 1e-9])


def _normalized(values: Sequence[float]) -> list[float]:
    """Stretched to 0..100; where all are alike, no node is better."""
    low, high = min(values), max(values)
    return [_BEST * (value - low) / (high - low) if high > low else 0.0 for value in values]


def _soft_taints(spec: Mapping[str, Any], node: NodeInfo) -> int:
    tolerations = spec.get("tolerations") or ()
    return sum(t.get("effect") == "PreferNoSchedule" and not taints.is_tolerated(t, tolerations) for t in node.taints)


def _siblings(pod: Mapping[str, Any], node: NodeInfo) -> int:
    """How many pods of the same owner the node has."""
    owner = _owner(pod)
    return sum(_owner(info.pod) == owner for info in node.pods.values()) if owner else 0


def _owner(pod: Mapping[str, Any]) -> str:
    references = pod["metadata"].get("ownerReferences") or ()
    return next((reference["uid"] for reference in references if reference.get("controller")), "")


def _shares(info: PodInfo, node: NodeInfo) -> list[float]:
    """The part of the node's cpu and memory that would be taken, 0 to 1."""
    taken: Callable[[str], int] = lambda name: node.nonzero[name] + info.nonzero.get(name, 0)  # noqa: E731
    return [min(1.0, taken(name) / node.allocatable[name]) for name in ("cpu", "memory") if node.allocatable.get(name)]


def _least_allocated(info: PodInfo, node: NodeInfo) -> float:
    shares = _shares(info, node)
    return _BEST * (1 - sum(shares) / len(shares)) if shares else 0.0


def _balanced(info: PodInfo, node: NodeInfo) -> float:
    shares = _shares(info, node)
    return _BEST * (1 - (max(shares) - min(shares)) / 2) if shares else 0.0
