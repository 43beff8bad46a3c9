"""Admission plugins: what a write must fulfil, or is given, beyond its schema. Each is a class of one concern.

https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/
"""

import secrets
from typing import Any

from controlplane.apiserver.auth.nodes import node_of, references
from controlplane.apiserver.auth.rbac import GROUP as RBAC_GROUP
from controlplane.apiserver.auth.rbac import Rbac, covers
from controlplane.apiserver.request import Admission, AdmissionRequest, Attributes, Authorizer, Reader, StatusError

IMMORTAL_NAMESPACES = ("default", "kube-system", "kube-public")
PRIORITY_CLASSES = {"system-node-critical": 2000001000, "system-cluster-critical": 2000000000}
_TOKEN_SECONDS = 3607
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def plugins(reader: Reader, authorizer: Authorizer, rbac: Rbac) -> list[Admission]:
    """All plugins, in the order in which they run."""
    return [
        NamespaceLifecycle(reader),
        NodeRestriction(reader),
        ServiceAccount(reader),
        Priority(reader),
        DefaultTolerationSeconds(),
        TaintNewNodes(),
        Escalation(authorizer, rbac, reader),
    ]


def forbidden(request: AdmissionRequest, why: str) -> StatusError:
    plural, name = request.resource, request.name
    details = {"name": name, "kind": plural, **({"group": request.group} if request.group else {})}
    qualified = f"{plural}.{request.group}" if request.group else plural
    return StatusError(403, "Forbidden", f'{qualified} "{name}" is forbidden: {why}', details)


class NamespaceLifecycle:
    """Nothing is made in a namespace that is not there or is going; the namespaces that the system needs stay."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def admit(self, request: AdmissionRequest) -> None:
        if request.operation == "DELETE" and (request.group, request.resource) == ("", "namespaces"):
            if request.name in IMMORTAL_NAMESPACES:
                raise forbidden(request, "this namespace may not be deleted")
            return
        if request.operation != "CREATE" or not request.namespace or request.subresource:
            return
        namespace = self._reader.get("", "namespaces", request.namespace)
        if namespace is None:
            name = request.namespace
            raise StatusError(404, "NotFound", f'namespaces "{name}" not found', {"name": name, "kind": "namespaces"})
        if namespace["metadata"].get("deletionTimestamp"):
            error = forbidden(
                request, f"unable to create new content in namespace {request.namespace} because it is being terminated"
            )
            cause = {"reason": "NamespaceTerminating", "field": "metadata.namespace",
                     "message": f"namespace {request.namespace} is being terminated"}  # fmt: skip
            error.details = {**(error.details or {}), "causes": [cause]}
            raise error


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
                self._check_own_node(request)
            case "", "serviceaccounts" if request.subresource == "token":
                return
            case "coordination.k8s.io", "leases":
                if request.namespace != "kube-node-lease" or request.name != node:
                    raise forbidden(request, f'can only access node lease with the same name as the requesting node ("{node}")')

    def _check_pod(self, request: AdmissionRequest, node: str) -> None:
        if request.subresource == "eviction":
            pod = self._reader.get("", "pods", request.name, request.namespace)
        elif request.operation == "CREATE":
            pod = request.object
            mirror = "kubernetes.io/config.mirror" in ((pod or {}).get("metadata", {}).get("annotations") or {})
            if not mirror:
                raise forbidden(request, f'pod does not have "kubernetes.io/config.mirror" annotation, node "{node}" can only'
                                " create mirror pods")  # fmt: skip
            if pod and (references(pod, "secrets") or references(pod, "configmaps") - {"kube-root-ca.crt"}):
                raise forbidden(request, f'node "{node}" can not create pods that reference secrets or configmaps')
        else:
            pod = request.old
        if pod is not None and pod["spec"].get("nodeName") != node:
            raise forbidden(request, f'node "{node}" can only {request.operation.lower()} pods with spec.nodeName set to itself')

    def _check_own_node(self, request: AdmissionRequest) -> None:
        """A node may not take itself out of what keeps pods off it."""
        if request.operation != "UPDATE" or request.subresource or not request.object or not request.old:
            return
        if (request.object.get("spec") or {}).get("taints") != (request.old.get("spec") or {}).get("taints"):
            raise forbidden(request, "node is not allowed to modify taints")


class ServiceAccount:
    """Every pod runs as a service account, whose token it gets by a projected volume."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def admit(self, request: AdmissionRequest) -> None:
        if (request.operation, request.group, request.resource, request.subresource) != ("CREATE", "", "pods", ""):
            return
        pod = request.object or {}
        spec, annotations = pod.get("spec") or {}, (pod.get("metadata") or {}).get("annotations") or {}
        if "kubernetes.io/config.mirror" in annotations:
            return
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = self._reader.get("", "serviceaccounts", name, request.namespace)
        if account is None:
            raise forbidden(request, f"error looking up service account {request.namespace}/{name}: serviceaccount"
                            f' "{name}" not found')  # fmt: skip
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = account["imagePullSecrets"]
        wanted = spec.get("automountServiceAccountToken")
        if wanted is None:
            wanted = account.get("automountServiceAccountToken", True)
        if wanted:
            _mount_token(spec)


def _mount_token(spec: dict[str, Any]) -> None:
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    lacking = [
        container
        for container in containers
        if not any(mount.get("mountPath") == _TOKEN_PATH for mount in container.get("volumeMounts") or ())
    ]
    if not lacking:
        return
    name = "kube-api-access-" + "".join(secrets.choice(_LETTERS) for _ in range(5))
    for container in lacking:
        mount = {"name": name, "readOnly": True, "mountPath": _TOKEN_PATH}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    volume = {"name": name, "projected": {"sources": sources, "defaultMode": 0o644}}
    spec["volumes"] = [*(spec.get("volumes") or ()), volume]


class Priority:
    """Writes a pod's priority from its class, or from the class that is the default."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def admit(self, request: AdmissionRequest) -> None:
        if (request.operation, request.group, request.resource, request.subresource) != ("CREATE", "", "pods", ""):
            return
        spec = (request.object or {}).get("spec") or {}
        name = spec.get("priorityClassName") or ""
        found = self._reader.get("scheduling.k8s.io", "priorityclasses", name) if name else self._default()
        if name and found is None:
            raise forbidden(request, f"no PriorityClass with name {name} was found")
        if found and not name:
            spec["priorityClassName"] = found["metadata"]["name"]
        value = found["value"] if found else 0
        if spec.get("priority") not in (None, value):
            raise forbidden(request, f"the integer value of priority ({spec['priority']}) must not be provided in pod spec;"
                            f" priority admission controller computed {value} from the given PriorityClass name")  # fmt: skip
        spec["priority"] = value
        spec.setdefault("preemptionPolicy", (found or {}).get("preemptionPolicy") or "PreemptLowerPriority")

    def _default(self) -> dict[str, Any] | None:
        classes = self._reader.list("scheduling.k8s.io", "priorityclasses")
        return min((c for c in classes if c.get("globalDefault")), key=lambda c: int(c["value"]), default=None)


class DefaultTolerationSeconds:
    """A pod stays for five minutes on a node that is not ready or cannot be reached, unless it says otherwise."""

    async def admit(self, request: AdmissionRequest) -> None:
        if (request.operation, request.group, request.resource, request.subresource) != ("CREATE", "", "pods", ""):
            return
        spec = (request.object or {}).get("spec") or {}
        tolerations = list(spec.get("tolerations") or ())
        for key in _NODE_TAINTS:
            covered = any(
                t.get("key") in (key, None, "") and t.get("effect") in ("NoExecute", None, "") for t in tolerations
            )  # fmt: skip
            if not covered:
                tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
        spec["tolerations"] = tolerations


class TaintNewNodes:
    """A new node takes no pods before it has said that it is ready (TaintNodesByCondition)."""

    async def admit(self, request: AdmissionRequest) -> None:
        if (request.operation, request.group, request.resource, request.subresource) != ("CREATE", "", "nodes", ""):
            return
        spec = (request.object or {}).setdefault("spec", {})
        taints = list(spec.get("taints") or ())
        if not any(taint.get("key") == _NODE_TAINTS[0] for taint in taints):
            taints.append({"key": _NODE_TAINTS[0], "effect": "NoSchedule"})
        spec["taints"] = taints


class Escalation:
    """Nobody writes a role, or binds one, that grants more than they have, unless they may `escalate` or `bind`."""

    def __init__(self, authorizer: Authorizer, rbac: Rbac, reader: Reader) -> None:
        self._authorizer, self._rbac, self._reader = authorizer, rbac, reader

    async def admit(self, request: AdmissionRequest) -> None:
        if request.group != RBAC_GROUP or request.operation not in ("CREATE", "UPDATE") or request.object is None:
            return
        if "system:masters" in request.user.groups:
            return
        if request.resource in ("roles", "clusterroles"):
            verb, rules = "escalate", request.object.get("rules") or []
            plural, name = request.resource, request.name
        else:
            verb, reference = "bind", request.object.get("roleRef") or {}
            plural, name = ("clusterroles" if reference.get("kind") == "ClusterRole" else "roles"), reference.get("name", "")
            role = self._reader.get(RBAC_GROUP, plural, name, "" if plural == "clusterroles" else request.namespace)
            rules = (role or {}).get("rules") or []
        attributes = Attributes(request.user, verb, RBAC_GROUP, "v1", plural, "", request.namespace, name)
        if self._authorizer.authorize(attributes).allowed:
            return
        own = self._rbac.rules_for(request.user, request.namespace)
        missing = [rule for rule in rules if not covers(own, rule, request.namespace, request.user)]
        if missing:
            raise forbidden(request, f'user "{request.user.name}" (groups={list(request.user.groups)}) is attempting to grant'
                            f" RBAC permissions not currently held: {missing}")  # fmt: skip
