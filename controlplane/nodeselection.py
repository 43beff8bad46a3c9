"""Whether a node is one that a pod names: nodeSelector and node affinity.

https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/
"""

from collections.abc import Mapping
from typing import Any

from strata.kubeclient.selectors import parse_label_selector


def matches(spec: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    """Whether the pod's nodeSelector and its required node affinity take the node with these labels and this name."""
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    # The terms are alternatives; a required affinity without any takes no node.
    return required is None or any(_term(term, labels, name) for term in required.get("nodeSelectorTerms") or ())


def preference(spec: Mapping[str, Any], labels: Mapping[str, str], name: str) -> int:
    """The sum of the weights of the preferred terms that take the node."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(term["weight"] for term in preferred if _term(term.get("preference") or {}, labels, name))


def _term(term: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    by_labels = parse_label_selector({"matchExpressions": expressions})
    by_fields = parse_label_selector({"matchExpressions": fields})
    return by_labels.matches(labels) and by_fields.matches({"metadata.name": name})
