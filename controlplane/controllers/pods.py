"""What controllers ask of a pod, and how they make one from a template."""

import time
from collections.abc import Mapping
from typing import Any

from controlplane.controllers import conditions
from controlplane.controllers.owners import reference_to
from strata.kubeclient import times

Object = dict[str, Any]
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


def phase(pod: Mapping[str, Any]) -> str:
    return (pod.get("status") or {}).get("phase") or "Pending"


def is_finished(pod: Mapping[str, Any]) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Mapping[str, Any]) -> bool:
    """Neither finished nor about to go."""
    return not is_finished(pod) and not pod["metadata"].get("deletionTimestamp")


def is_ready(pod: Mapping[str, Any]) -> bool:
    return conditions.is_true(pod, "Ready")


def available_in(pod: Mapping[str, Any], min_ready_seconds: int) -> float | None:
    """The seconds until the pod is available: ready for that long. None where it is not ready."""
    ready = conditions.find(pod, "Ready")
    if ready is None or ready["status"] != "True":
        return None
    if not min_ready_seconds:
        return 0.0
    return max(0.0, times.seconds(ready.get("lastTransitionTime")) + min_ready_seconds - time.time())


def from_template(template: Mapping[str, Any], owner: Object) -> Object:
    """A pod of its owner, named after it by the server."""
    metadata = template.get("metadata") or {}
    kept = {name: dict(metadata[name]) for name in ("labels", "annotations") if metadata.get(name)}
    if metadata.get("finalizers"):
        kept["finalizers"] = metadata["finalizers"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "namespace": owner["metadata"]["namespace"],
            **kept,
            "ownerReferences": [reference_to(owner)],
        },
        "spec": template["spec"],
    }


def deletion_rank(pod: Mapping[str, Any], related_on_node: Mapping[str, int]) -> tuple[Any, ...]:
    """Sorts the pods that are best to delete to the front: those that serve least, and then the younger.

    related_on_node: how many pods of the same kind each node has; where there are more, one can be spared.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    node = pod["spec"].get("nodeName") or ""
    ready = conditions.find(pod, "Ready") or {}
    is_up = ready.get("status") == "True"
    restarts = sum(c.get("restartCount") or 0 for c in status.get("containerStatuses") or ())
    return (
        bool(node),
        {"Pending": 0, "Unknown": 1}.get(phase(pod), 2),
        is_up,
        _cost(metadata),
        -related_on_node.get(node, 0),
        -times.seconds(ready.get("lastTransitionTime")) if is_up else 0,
        -restarts,
        -times.seconds(metadata.get("creationTimestamp")),
    )


def _cost(metadata: Mapping[str, Any]) -> int:
    try:
        return int((metadata.get("annotations") or {}).get(DELETION_COST, "0"))
    except ValueError:
        return 0
