"""Nodes: what a kubelet may write, and what a new node starts with.

https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction
"""

from typing import Any

from controlplane.apiserver.admission.refusal import forbidden
from controlplane.apiserver.auth.nodes import node_of, references
from controlplane.apiserver.request import AdmissionRequest, Reader

_NOT_READY = "node.kubernetes.io/not-ready"
_OWN_LABELS = (
    "kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
)  # fmt: skip
_OWN_LABEL_DOMAINS = ("kubelet.kubernetes.io", "node.kubernetes.io")


class NodeRestriction:
    """A kubelet changes its own Node and the pods that are bound to it, nothing else (with the Node authorizer)."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def admit(self, request: AdmissionRequest) -> None:
        node = node_of(request.user)
        if not node:
            return
        match request.group, request.resource:
            case "", "pods":
                self._check_pod(request, node)
            case "", "nodes":
                if request.name != node:
                    raise forbidden(request, f'node "{node}" is not allowed to modify node "{request.name}"')
                _check_own_node(request, node)
            case "", "serviceaccounts" if request.subresource == "token":
                self._check_token(request, node)
            case "storage.k8s.io", "csinodes":
                if request.name != node:
                    raise forbidden(request, f"can only access CSINode with the same name as the requesting node ({node!r})")
            case "coordination.k8s.io", "leases":
                if request.namespace != "kube-node-lease" or request.name != node:
                    raise forbidden(request, f'can only access node lease with the same name as the requesting node ("{node}")')

    def _check_pod(self, request: AdmissionRequest, node: str) -> None:
        if request.operation == "CREATE" and request.subresource == "eviction":
            pod = self._reader.get("", "pods", request.name, request.namespace)
        elif request.operation == "CREATE":
            pod = request.object
            _check_mirror(request, node, pod or {})
        else:
            pod = request.old
            new, old = ((obj or {}).get("metadata", {}).get("labels") for obj in (request.object, request.old))
            if request.operation == "UPDATE" and (new or {}) != (old or {}):
                raise forbidden(request, f'node "{node}" cannot update labels through pod status')
        if pod is not None and (pod.get("spec") or {}).get("nodeName") != node:
            verb = "evict" if request.subresource == "eviction" else request.operation.lower()
            raise forbidden(request, f'node "{node}" can only {verb} pods with spec.nodeName set to itself')

    def _check_token(self, request: AdmissionRequest, node: str) -> None:
        """A kubelet gets tokens for its pods only: those of any other pod could do what that pod may."""
        reference = ((request.object or {}).get("spec") or {}).get("boundObjectRef") or {}
        if reference.get("kind") != "Pod" or reference.get("apiVersion") != "v1" or not reference.get("name"):
            raise forbidden(request, "node requested token not bound to a pod")
        if not reference.get("uid"):
            raise forbidden(request, "node requested token with a pod binding without a uid")
        pod = self._reader.get("", "pods", reference["name"], request.namespace)
        if pod is None or pod["metadata"]["uid"] != reference["uid"]:
            raise forbidden(request, "node requested token bound to a pod that is not there")
        if pod["spec"].get("nodeName") != node:
            raise forbidden(request, "node requested token bound to a pod scheduled on a different node")


def _check_mirror(request: AdmissionRequest, node: str, pod: dict[str, Any]) -> None:
    """A mirror pod shows what the node runs on its own; it must not be a way to what belongs to others."""
    if "kubernetes.io/config.mirror" not in (pod.get("metadata", {}).get("annotations") or {}):
        annotation = '"kubernetes.io/config.mirror" annotation'
        raise forbidden(request, f'pod does not have {annotation}, node "{node}" can only create mirror pods')
    spec = pod.get("spec") or {}
    if spec.get("serviceAccountName"):
        raise forbidden(request, f'node "{node}" can not create pods that reference a service account')
    for kind in ("secrets", "configmaps"):
        if references(pod, kind):
            raise forbidden(request, f'node "{node}" can not create pods that reference {kind}')
    for volume in spec.get("volumes") or ():
        if "persistentVolumeClaim" in volume or "ephemeral" in volume:
            raise forbidden(request, f'node "{node}" can not create pods that reference persistentvolumeclaims')
        if any("serviceAccountToken" in source for source in (volume.get("projected") or {}).get("sources") or ()):
            raise forbidden(request, f'node "{node}" can not create pods that reference a service account')
    owners = pod["metadata"].get("ownerReferences") or ()
    if any(owner.get("kind") != "Node" or owner.get("name") != node for owner in owners):
        raise forbidden(request, f'node "{node}" can only create pods with an owner reference set to itself')


def _check_own_node(request: AdmissionRequest, node: str) -> None:
    """A node may not take itself out of what keeps pods off it, nor draw pods to it by labels that others rely on."""
    new, old = request.object or {}, request.old or {}
    if request.operation == "UPDATE" and (new.get("spec") or {}).get("taints") != (old.get("spec") or {}).get("taints"):
        raise forbidden(request, f'node "{node}" is not allowed to modify taints')
    if new.get("metadata", {}).get("ownerReferences") != old.get("metadata", {}).get("ownerReferences"):
        raise forbidden(request, f'node "{node}" is not allowed to modify ownerReferences')
    labels, before = ((obj.get("metadata") or {}).get("labels") or {} for obj in (new, old))
    changed = {key for key in labels.keys() | before.keys() if labels.get(key) != before.get(key)}
    if refused := sorted(key for key in changed if not _is_own_label(key)):
        verb = "set the following labels" if request.operation == "CREATE" else "modify labels"
        raise forbidden(request, f'node "{node}" is not allowed to {verb}: {", ".join(refused)}')


def _is_own_label(key: str) -> bool:
    domain = key.partition("/")[0] if "/" in key else ""
    if _within(domain, "node-restriction.kubernetes.io"):
        return False
    if not _within(domain, "kubernetes.io") and not _within(domain, "k8s.io"):
        return True
    return key in _OWN_LABELS or any(_within(domain, own) for own in _OWN_LABEL_DOMAINS)


def _within(domain: str, parent: str) -> bool:
    return domain == parent or domain.endswith(f".{parent}")


class TaintNewNodes:
    """A new node takes no pods before it has said that it is ready (TaintNodesByCondition)."""

    async def admit(self, request: AdmissionRequest) -> None:
        if (request.operation, request.group, request.resource, request.subresource) != ("CREATE", "", "nodes", ""):
            return
        spec = (request.object or {}).setdefault("spec", {})
        taints = list(spec.get("taints") or ())
        if not any(taint.get("key") == _NOT_READY for taint in taints):
            taints.append({"key": _NOT_READY, "effect": "NoSchedule"})
        spec["taints"] = taints
