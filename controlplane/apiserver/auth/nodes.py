"""The Node authorizer: a kubelet may see what the pods on its node use, and no other node's.

https://kubernetes.io/docs/reference/access-authn-authz/node/
"""

from typing import Any

from controlplane.apiserver.auth.rbac import Rbac, allows
from controlplane.apiserver.cache import Cache
from controlplane.apiserver.request import Attributes, Decision, UserInfo

NODES = "system:nodes"
_PREFIX = "system:node:"


def _rule(verbs: str, group: str, *resources: str) -> dict[str, Any]:
    return {"verbs": verbs.split(), "apiGroups": [group], "resources": list(resources)}


# What every node may, whatever runs on it. The admission plugin NodeRestriction keeps its writes to what is its own.
_RULES = [
    _rule("create get list watch", "", "nodes"),
    _rule("update patch", "", "nodes", "nodes/status"),
    _rule("get list watch", "", "services"),
    _rule("get list watch", "", "pods"),
    _rule("create delete", "", "pods"),
    _rule("update patch", "", "pods/status"),
    _rule("create", "", "pods/eviction"),
    _rule("create update patch", "", "events"),
    _rule("create update patch", "events.k8s.io", "events"),
    _rule("create", "authentication.k8s.io", "tokenreviews"),
    _rule("create", "authorization.k8s.io", "subjectaccessreviews", "localsubjectaccessreviews"),
    _rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    _rule("create get update patch delete", "coordination.k8s.io", "leases"),
    _rule("create get update patch delete", "storage.k8s.io", "csinodes"),
    _rule("get list watch", "storage.k8s.io", "csidrivers", "volumeattachments"),
    _rule("get list watch", "node.k8s.io", "runtimeclasses"),
]
_READ = ("get", "list", "watch")


class NodeAuthorizer:
    """Decides for the group system:nodes, and leaves everybody else to RBAC."""

    def __init__(self, cache: Cache, rbac: Rbac) -> None:
        self._cache, self._rbac = cache, rbac

    def authorize(self, attributes: Attributes) -> Decision:
        node = node_of(attributes.user)
        if node and attributes.is_resource and self._allows(attributes, node):
            return Decision(True)
        return self._rbac.authorize(attributes)

    def rules_for(self, user: UserInfo, namespace: str) -> list[dict[str, Any]]:
        own = _RULES if node_of(user) else []
        return own + self._rbac.rules_for(user, namespace)

    def _allows(self, attributes: Attributes, node: str) -> bool:
        if attributes.group == "" and attributes.resource in ("secrets", "configmaps") and not attributes.subresource:
            # A list or watch of one object by its name (a field selector) carries the name too.
            return attributes.verb in _READ and bool(attributes.name) and self._uses(node, attributes)
        if attributes.group == "" and attributes.resource == "serviceaccounts" and attributes.subresource == "token":
            return attributes.verb == "create" and any(
                pod["spec"].get("serviceAccountName") == attributes.name for pod in self._pods(node, attributes.namespace)
            )
        if attributes.group == "" and attributes.resource in ("persistentvolumeclaims", "persistentvolumes"):
            return attributes.verb == "get" and not attributes.subresource and self._mounts(node, attributes)
        if attributes.resource == "leases" and (
            attributes.namespace != "kube-node-lease" or (attributes.verb != "create" and attributes.name != node)
        ):
            return False
        return any(allows(rule, attributes) for rule in _RULES)

    def _uses(self, node: str, attributes: Attributes) -> bool:
        kind = attributes.resource
        return any(attributes.name in references(pod, kind) for pod in self._pods(node, attributes.namespace))

    def _mounts(self, node: str, attributes: Attributes) -> bool:
        """Whether a pod of the node mounts a claim, or the volume that is bound to one."""
        if attributes.resource == "persistentvolumes":
            volume = self._cache.get("", "persistentvolumes", attributes.name)
            claim = ((volume or {}).get("spec") or {}).get("claimRef") or {}
            namespace, name = claim.get("namespace", ""), claim.get("name", "")
        else:
            namespace, name = attributes.namespace, attributes.name
        return bool(name) and any(name in claims(pod) for pod in self._pods(node, namespace))

    def _pods(self, node: str, namespace: str) -> list[dict[str, Any]]:
        return self._cache.select("", "pods", namespace, "spec.nodeName", node)


def node_of(user: UserInfo) -> str:
    """The node that a user is the kubelet of; "" for everybody else."""
    return user.name.removeprefix(_PREFIX) if NODES in user.groups and user.name.startswith(_PREFIX) else ""


def references(pod: dict[str, Any], kind: str) -> set[str]:
    """The names of the secrets or configmaps that a pod's spec mentions."""
    secret = kind == "secrets"
    spec = pod["spec"]
    found = {s.get("name", "") for s in spec.get("imagePullSecrets") or ()} if secret else set()
    for volume in spec.get("volumes") or ():
        sources = [volume, *((volume.get("projected") or {}).get("sources") or ())]
        for source in sources:
            entry = source.get("secret" if secret else "configMap")
            if entry:
                found.add(entry.get("secretName") or entry.get("name") or "")
    for container in [
        *(spec.get("initContainers") or ()),
        *(spec.get("containers") or ()),
        *(spec.get("ephemeralContainers") or ()),
    ]:
        for variable in container.get("env") or ():
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef" if secret else "configMapKeyRef")
            if reference:
                found.add(reference.get("name", ""))
        for source in container.get("envFrom") or ():
            reference = source.get("secretRef" if secret else "configMapRef")
            if reference:
                found.add(reference.get("name", ""))
    found.discard("")
    return found


def claims(pod: dict[str, Any]) -> set[str]:
    """The names of the persistent volume claims that a pod mounts, its ephemeral ones included."""
    found = set()
    for volume in pod["spec"].get("volumes") or ():
        if claim := volume.get("persistentVolumeClaim"):
            found.add(claim.get("claimName", ""))
        elif "ephemeral" in volume:
            found.add(f"{pod['metadata']['name']}-{volume['name']}")
    return found - {""}
