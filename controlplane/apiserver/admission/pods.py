"""What a new pod is given: its account with a token, its priority, and its patience with nodes that fail."""

import asyncio
import secrets
from typing import Any

from controlplane.apiserver.admission.refusal import forbidden
from controlplane.apiserver.request import AdmissionRequest, Reader

PRIORITY_CLASSES = {"system-node-critical": 2000001000, "system-cluster-critical": 2000000000}
_ACCOUNT_TRIES, _ACCOUNT_PAUSE_SECONDS = 10, 0.1
_TOKEN_SECONDS = 3607
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_FAILING = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


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
        account = await self._account(name, request.namespace)
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

    async def _account(self, name: str, namespace: str) -> dict[str, Any] | None:
        """The account; that of a new namespace is made by a controller, a moment after the namespace."""
        for _ in range(_ACCOUNT_TRIES if name == "default" else 0):
            if found := self._reader.get("", "serviceaccounts", name, namespace):
                return found
            await asyncio.sleep(_ACCOUNT_PAUSE_SECONDS)
        return self._reader.get("", "serviceaccounts", name, namespace)


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
        for key in _FAILING:
            covered = any(
                t.get("key") in (key, None, "") and t.get("effect") in ("NoExecute", None, "") for t in tolerations
            )  # fmt: skip
            if not covered:
                tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
        spec["tolerations"] = tolerations
