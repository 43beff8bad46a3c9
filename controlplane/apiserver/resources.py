"""The resources that are served. A new one is a declaration here, and (where it differs from the others) a strategy."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Getter = Callable[[Object], str]

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """A resource of one group and version.

    status: whether it has the status subresource. subresources: the others, by name, with the kind that they take.
    fields: the selectable fields beside metadata.name and metadata.namespace. storage: the resource ("group/plural") whose
    objects these are, where two groups serve the same ones. ttl_seconds: how long objects live.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    subresources: Mapping[str, tuple[str, str, str]] = field(default_factory=dict, hash=False)
    fields: Mapping[str, Getter] = field(default_factory=dict, hash=False)
    verbs: tuple[str, ...] = ALL_VERBS
    storage: str = ""
    ttl_seconds: int = 0

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def gvk(self) -> tuple[str, str, str]:
        return self.group, self.version, self.kind

    @property
    def qualified(self) -> str:
        """plural.group, as error messages name a resource."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def prefix(self) -> str:
        """Where its objects are in the store; a namespaced object's key goes on with NAMESPACE/NAME."""
        return f"/{self.storage or (self.group or 'core') + '/' + self.plural}/"

    def key(self, namespace: str, name: str) -> str:
        return f"{self.prefix}{namespace}/{name}" if self.namespaced else f"{self.prefix}{name}"


def path_getter(path: str, default: str = "") -> Getter:
    """Reads a field by its dotted path; booleans as true and false, nothing as default."""
    steps = path.split(".")

    def get(obj: Object) -> str:
        value: Any = obj
        for step in steps:
            value = value.get(step) if isinstance(value, dict) else None
            if value is None:
                return default
        return str(value).lower() if isinstance(value, bool) else str(value)

    return get


def _fields(*paths: str) -> dict[str, Getter]:
    return {path: path_getter(path) for path in paths}


_SCALE = {"scale": ("autoscaling", "v1", "Scale")}
_EVENT_FIELDS = _fields(
    *(f"involvedObject.{part}" for part in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")),
    "reason", "reportingComponent", "source", "type",
)  # fmt: skip
_POD_FIELDS = {
    **_fields("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"),
    **_fields("status.phase", "status.podIP", "status.nominatedNodeName"),
    "spec.hostNetwork": path_getter("spec.hostNetwork", "false"),
}
_EVENT_TTL_SECONDS = 3600

_CORE = [
    Resource("", "v1", "Namespace", "namespaces", False, ("ns",), status=True, fields=_fields("status.phase"),
             subresources={"finalize": ("", "v1", "Namespace")},
             verbs=tuple(v for v in ALL_VERBS if v != "deletecollection")),
    Resource("", "v1", "Node", "nodes", False, ("no",), status=True,
             fields={"spec.unschedulable": path_getter("spec.unschedulable", "false")},
             subresources={"proxy": ("", "v1", "NodeProxyOptions")}),
    Resource("", "v1", "Pod", "pods", True, ("po",), ("all",), status=True, fields=_POD_FIELDS,
             subresources={
                 "binding": ("", "v1", "Binding"), "eviction": ("policy", "v1", "Eviction"),
                 "log": ("", "v1", "Pod"), "exec": ("", "v1", "PodExecOptions"), "attach": ("", "v1", "PodAttachOptions"),
                 "portforward": ("", "v1", "PodPortForwardOptions"), "proxy": ("", "v1", "PodProxyOptions"),
                 "ephemeralcontainers": ("", "v1", "Pod"), "resize": ("", "v1", "Pod"),
             }),
    Resource("", "v1", "Service", "services", True, ("svc",), ("all",), status=True,
             fields=_fields("spec.clusterIP", "spec.type"), subresources={"proxy": ("", "v1", "ServiceProxyOptions")}),
    Resource("", "v1", "Endpoints", "endpoints", True, ("ep",)),
    Resource("", "v1", "ConfigMap", "configmaps", True, ("cm",)),
    Resource("", "v1", "Secret", "secrets", True, fields=_fields("type")),
    Resource("", "v1", "ServiceAccount", "serviceaccounts", True, ("sa",),
             subresources={"token": ("authentication.k8s.io", "v1", "TokenRequest")}),
    Resource("", "v1", "Event", "events", True, ("ev",), fields=_EVENT_FIELDS, ttl_seconds=_EVENT_TTL_SECONDS),
    Resource("", "v1", "ReplicationController", "replicationcontrollers", True, ("rc",), ("all",), status=True,
             subresources=_SCALE),
    Resource("", "v1", "PersistentVolume", "persistentvolumes", False, ("pv",), status=True),
    Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", True, ("pvc",), status=True),
    Resource("", "v1", "LimitRange", "limitranges", True, ("limits",)),
    Resource("", "v1", "ResourceQuota", "resourcequotas", True, ("quota",), status=True),
    Resource("", "v1", "PodTemplate", "podtemplates", True),
]  # fmt: skip

_APPS = [
    Resource("apps", "v1", "Deployment", "deployments", True, ("deploy",), ("all",), status=True, subresources=_SCALE),
    Resource("apps", "v1", "ReplicaSet", "replicasets", True, ("rs",), ("all",), status=True, subresources=_SCALE,
             fields=_fields("status.replicas")),
    Resource("apps", "v1", "StatefulSet", "statefulsets", True, ("sts",), ("all",), status=True, subresources=_SCALE),
    Resource("apps", "v1", "DaemonSet", "daemonsets", True, ("ds",), ("all",), status=True),
    Resource("apps", "v1", "ControllerRevision", "controllerrevisions", True),
    Resource("batch", "v1", "Job", "jobs", True, (), ("all",), status=True, fields=_fields("status.successful")),
    Resource("batch", "v1", "CronJob", "cronjobs", True, ("cj",), ("all",), status=True),
    Resource("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", True, ("hpa",), ("all",), status=True),
    Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", True, ("pdb",), status=True),
]  # fmt: skip

_CLUSTER = [
    Resource("rbac.authorization.k8s.io", "v1", "Role", "roles", True),
    Resource("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", True),
    Resource("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", False),
    Resource("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", False),
    Resource("coordination.k8s.io", "v1", "Lease", "leases", True),
    Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", True),
    Resource("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", False, ("csr",),
             status=True, fields=_fields("spec.signerName"),
             subresources={"approval": ("certificates.k8s.io", "v1", "CertificateSigningRequest")}),
    Resource("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", False, ("pc",)),
    Resource("events.k8s.io", "v1", "Event", "events", True, ("ev",), storage="core/events", ttl_seconds=_EVENT_TTL_SECONDS),
    Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", True, ("netpol",)),
    Resource("networking.k8s.io", "v1", "Ingress", "ingresses", True, ("ing",), status=True),
    Resource("networking.k8s.io", "v1", "IngressClass", "ingressclasses", False),
    Resource("storage.k8s.io", "v1", "StorageClass", "storageclasses", False, ("sc",)),
    Resource("storage.k8s.io", "v1", "CSIDriver", "csidrivers", False),
    Resource("storage.k8s.io", "v1", "CSINode", "csinodes", False),
    Resource("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", True),
    Resource("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", False, status=True),
    Resource("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", False),
]  # fmt: skip

_REVIEWS = [
    Resource("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", False, verbs=("create",)),
    Resource("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", False, verbs=("create",)),
    Resource("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", False, verbs=("create",)),
    Resource("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", True, verbs=("create",)),
    Resource("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", False, verbs=("create",)),
    Resource("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", False, verbs=("create",)),
]  # fmt: skip
"""Questions that are answered and not stored."""

BUILT_IN: tuple[Resource, ...] = (*_CORE, *_APPS, *_CLUSTER, *_REVIEWS)


class Registry:
    """The served resources, by group, version and plural."""

    def __init__(self, resources: Iterable[Resource] = BUILT_IN) -> None:
        self.resources = tuple(resources)
        self._by_path = {(r.group, r.version, r.plural): r for r in self.resources}
        self._by_group_resource = {(r.group, r.plural): r for r in self.resources}

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def preferred(self, group: str, plural: str) -> Resource | None:
        return self._by_group_resource.get((group, plural))

    def groups(self) -> dict[str, list[str]]:
        """Versions by group, in the order of declaration; the core group is ''."""
        found: dict[str, list[str]] = {}
        for resource in self.resources:
            versions = found.setdefault(resource.group, [])
            if resource.version not in versions:
                versions.append(resource.version)
        return found
