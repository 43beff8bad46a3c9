"""Pods that want to be near others, or away from them: pod affinity, anti-affinity and topology spread.

Near is: on a node with the same value of a label (the topology key).
https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane import nodeselection
from controlplane.scheduler.cache import NodeInfo
from strata.kubeclient.selectors import Selector, parse_label_selector

Object = dict[str, Any]
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True)
class _Term:
    """Which pods are meant, and what near them is. namespaces None: all."""

    selector: Selector
    namespaces: frozenset[str] | None
    topology: str
    weight: int = 0

    @classmethod
    def of(cls, term: Mapping[str, Any], owner: Object, weight: int = 0) -> "_Term":
        named = frozenset(term.get("namespaces") or ())
        everywhere = term.get("namespaceSelector") == {}
        if not named and not everywhere:
            named = frozenset((owner["metadata"]["namespace"],))
        selector = parse_label_selector(term.get("labelSelector"))
        return cls(selector, None if everywhere else named, term["topologyKey"], weight)

    def matches(self, pod: Object) -> bool:
        metadata = pod["metadata"]
        if self.namespaces is not None and metadata["namespace"] not in self.namespaces:
            return False
        return self.selector.matches(metadata.get("labels"))


def _terms(pod: Object, kind: str) -> list[_Term]:
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    return [_Term.of(term, pod) for term in affinity.get(_REQUIRED) or ()]


def _preferred(pod: Object, kind: str) -> list[_Term]:
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    return [_Term.of(term["podAffinityTerm"], pod, term["weight"]) for term in affinity.get(_PREFERRED) or ()]


class Neighbours:
    """The pods on all nodes, as one pod that is to be placed sees them."""

    def __init__(self, pod: Object, nodes: Sequence[NodeInfo]) -> None:
        self._pod = pod
        self._near = [(term, _count(nodes, term)) for term in _terms(pod, "podAffinity")]
        self._away = [(term, _count(nodes, term)) for term in _terms(pod, "podAntiAffinity")]
        self._kept_off = set(_kept_off(pod, nodes))
        self._wishes = [(term.weight, term, _count(nodes, term)) for term in _preferred(pod, "podAffinity")]
        self._wishes += [(-term.weight, term, _count(nodes, term)) for term in _preferred(pod, "podAntiAffinity")]
        self._spread = list(_spread(pod, nodes))

    def problem(self, node: NodeInfo) -> str | None:
        """Why the pod may not be on the node, in the words that users search for; None if it may."""
        labels = node.labels
        if any((key, value) in self._kept_off for key, value in labels.items()):
            return "node(s) didn't satisfy existing pods anti-affinity rules"
        if any(counts.get(labels.get(term.topology, "")) for term, counts in self._away):
            return "node(s) didn't match pod anti-affinity rules"
        for term, counts in self._near:
            # The first of a group that wants to be together has nobody to join: it may go anywhere.
            alone = not counts and term.matches(self._pod)
            if term.topology not in labels or not (counts.get(labels[term.topology]) or alone):
                return "node(s) didn't match pod affinity rules"
        for constraint, counts in self._spread:
            value = labels.get(constraint["topologyKey"])
            if value is None:
                return "node(s) didn't match pod topology spread constraints (missing required label)"
            if counts[value] + 1 - min(counts.values(), default=0) > constraint.get("maxSkew", 1):
                return "node(s) didn't match pod topology spread constraints"
        return None

    def wish(self, node: NodeInfo) -> int:
        """The sum of the weights of what the pod prefers about its neighbours."""
        return sum(
            weight * counts[node.labels[term.topology]] for weight, term, counts in self._wishes if term.topology in node.labels
        )


def _count(nodes: Iterable[NodeInfo], term: _Term) -> Counter[str]:
    """How many pods the term means, by value of its topology key."""
    counts: Counter[str] = Counter()
    for node in nodes:
        if (value := node.labels.get(term.topology)) is not None:
            found = sum(term.matches(info.pod) for info in node.pods.values())
            if found:
                counts[value] += found
    return counts


def _kept_off(pod: Object, nodes: Iterable[NodeInfo]) -> Iterator[tuple[str, str]]:
    """The topologies that pods which are there keep this pod away from."""
    for node in nodes:
        for info in node.pods.values():
            if (info.pod["spec"].get("affinity") or {}).get("podAntiAffinity"):
                for term in _terms(info.pod, "podAntiAffinity"):
                    if term.topology in node.labels and term.matches(pod):
                        yield term.topology, node.labels[term.topology]


def _spread(pod: Object, nodes: Iterable[NodeInfo]) -> Iterator[tuple[Mapping[str, Any], Counter[str]]]:
    """Each hard topology spread constraint, with the number of matching pods in every eligible topology."""
    for constraint in pod["spec"].get("topologySpreadConstraints") or ():
        if constraint.get("whenUnsatisfiable") == "ScheduleAnyway":
            continue
        term = _Term.of(constraint, pod)
        counts: Counter[str] = Counter()
        for node in nodes:
            value = node.labels.get(constraint["topologyKey"])
            if value is not None and nodeselection.matches(pod["spec"], node.labels, node.name):
                counts[value] += sum(
                    term.matches(info.pod) for info in node.pods.values() if not info.pod["metadata"].get("deletionTimestamp")
                )
        yield constraint, counts
