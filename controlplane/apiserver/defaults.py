"""What the API fills in where a client says nothing, as Kubernetes' versioned defaults do (pkg/apis/*/v1/defaults)."""

from collections.abc import Callable
from typing import Any

from controlplane.apiserver.resources import Object

GVK = tuple[str, str, str]
_defaulters: dict[GVK, Callable[[Object], None]] = {}


def apply(gvk: GVK, obj: Object) -> None:
    """Fills the object's defaults in, in place. Fields of a wrong type are left for validation to name."""
    defaulter = _defaulters.get(gvk)
    if defaulter and isinstance(obj.get("spec", {}), dict):
        defaulter(obj)


def _for(group: str, version: str, kind: str) -> Callable[[Callable[[Object], None]], Callable[[Object], None]]:
    def register(function: Callable[[Object], None]) -> Callable[[Object], None]:
        _defaulters[group, version, kind] = function
        return function

    return register


# --- pods


@_for("", "v1", "Pod")
def _pod(obj: Object) -> None:
    _pod_spec(obj.setdefault("spec", {}))
    obj["spec"].setdefault("enableServiceLinks", True)


def _pod_spec(spec: dict[str, Any]) -> None:
    for name, value in (
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("securityContext", {}),
    ):
        _fill(spec, name, value)
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    for volume in _dicts(spec.get("volumes")):
        _volume(volume)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in _dicts(spec.get(kind)):
            _container(container, host_network=bool(spec.get("hostNetwork")))


def _container(container: dict[str, Any], *, host_network: bool) -> None:
    container.setdefault("resources", {})
    _fill(container, "terminationMessagePath", "/dev/termination-log")
    _fill(container, "terminationMessagePolicy", "File")
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = _pull_policy(container.get("image") or "")
    for port in _dicts(container.get("ports")):
        _fill(port, "protocol", "TCP")
        if host_network and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])
    for variable in _dicts(container.get("env")):
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if isinstance(reference, dict):
            _fill(reference, "apiVersion", "v1")
        resource = (variable.get("valueFrom") or {}).get("resourceFieldRef")
        if isinstance(resource, dict):
            _fill(resource, "divisor", "0")
    resources = container["resources"]
    if isinstance(resources, dict) and isinstance(resources.get("limits"), dict):
        requests = resources.setdefault("requests", {})
        for name, limit in resources["limits"].items():
            requests.setdefault(name, limit)
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(name), dict):
            _probe(container[name])
    for handler in _dicts(list((container.get("lifecycle") or {}).values())):
        _http_get(handler)


def _probe(probe: dict[str, Any]) -> None:
    for name, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(name):
            probe[name] = value
    _http_get(probe)
    if isinstance(probe.get("grpc"), dict):
        probe["grpc"].setdefault("service", "")


def _http_get(handler: dict[str, Any]) -> None:
    if isinstance(handler.get("httpGet"), dict):
        _fill(handler["httpGet"], "path", "/")
        _fill(handler["httpGet"], "scheme", "HTTP")


def _pull_policy(image: str) -> str:
    """Always for the tag latest (or none), IfNotPresent for others and for digests."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


_MODES = {"configMap": "defaultMode", "secret": "defaultMode", "downwardAPI": "defaultMode", "projected": "defaultMode"}


def _volume(volume: dict[str, Any]) -> None:
    if set(volume) <= {"name"}:
        volume["emptyDir"] = {}
    for kind, mode in _MODES.items():
        if isinstance(volume.get(kind), dict):
            volume[kind].setdefault(mode, 0o644)
    if isinstance(volume.get("hostPath"), dict):
        volume["hostPath"].setdefault("type", "")
    items = list(_dicts((volume.get("downwardAPI") or {}).get("items")))
    for source in _dicts((volume.get("projected") or {}).get("sources")):
        if isinstance(source.get("serviceAccountToken"), dict):
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
        items += _dicts((source.get("downwardAPI") or {}).get("items"))
    for item in items:
        if isinstance(item.get("fieldRef"), dict):
            _fill(item["fieldRef"], "apiVersion", "v1")


def _template(obj: Object) -> None:
    template = obj.get("spec", {}).get("template")
    if isinstance(template, dict):
        _pod_spec(template.setdefault("spec", {}))


# --- workloads


@_for("apps", "v1", "Deployment")
def _deployment(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("replicas", 1)
    strategy = spec.setdefault("strategy", {})
    _fill(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        _fill(rolling, "maxUnavailable", "25%")
        _fill(rolling, "maxSurge", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    _template(obj)


@_for("", "v1", "ReplicationController")
def _replication_controller(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("replicas", 1)
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        if not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(labels)
    _template(obj)


@_for("apps", "v1", "ReplicaSet")
def _replica_set(obj: Object) -> None:
    obj.setdefault("spec", {}).setdefault("replicas", 1)
    _template(obj)


@_for("apps", "v1", "StatefulSet")
def _stateful_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("replicas", 1)
    _fill(spec, "podManagementPolicy", "OrderedReady")
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    _fill(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
    _fill(retention, "whenDeleted", "Retain")
    _fill(retention, "whenScaled", "Retain")
    _template(obj)


@_for("apps", "v1", "DaemonSet")
def _daemon_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    _fill(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)
    _template(obj)


@_for("batch", "v1", "Job")
def _job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _job_spec(spec)
    uid = obj["metadata"].get("uid")
    if uid and not spec.get("manualSelector") and not spec.get("selector"):
        labels = {"batch.kubernetes.io/controller-uid": uid, "controller-uid": uid}
        name = obj["metadata"].get("name", "")
        names = {"batch.kubernetes.io/job-name": name, "job-name": name}
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
        metadata = spec.setdefault("template", {}).setdefault("metadata", {})
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels, **names}
    _template(obj)


def _job_spec(spec: dict[str, Any]) -> None:
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    _fill(spec, "completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    _fill(spec, "podReplacementPolicy", "TerminatingOrFailed")


@_for("batch", "v1", "CronJob")
def _cron_job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, "concurrencyPolicy", "Allow")
    spec.setdefault("suspend", False)
    spec.setdefault("successfulJobsHistoryLimit", 3)
    spec.setdefault("failedJobsHistoryLimit", 1)
    job = (spec.get("jobTemplate") or {}).get("spec")
    if isinstance(job, dict):
        _template({"spec": job})


# --- services and the rest


@_for("", "v1", "Service")
def _service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, "type", "ClusterIP")
    _fill(spec, "sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    for port in _dicts(spec.get("ports")):
        _fill(port, "protocol", "TCP")
        if not port.get("targetPort") and "port" in port:
            port["targetPort"] = port["port"]
    if spec["type"] != "ExternalName":
        _fill(spec, "internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        _fill(spec, "externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


@_for("discovery.k8s.io", "v1", "EndpointSlice")
def _endpoint_slice(obj: Object) -> None:
    for port in _dicts(obj.get("ports")):
        _fill(port, "protocol", "TCP")
        port.setdefault("name", "")


@_for("", "v1", "Namespace")
def _namespace(obj: Object) -> None:
    obj.setdefault("spec", {})


@_for("", "v1", "PersistentVolumeClaim")
def _claim(obj: Object) -> None:
    obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")


@_for("", "v1", "PersistentVolume")
def _volume_resource(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, "persistentVolumeReclaimPolicy", "Retain")
    _fill(spec, "volumeMode", "Filesystem")


@_for("storage.k8s.io", "v1", "StorageClass")
def _storage_class(obj: Object) -> None:
    _fill(obj, "reclaimPolicy", "Delete")
    _fill(obj, "volumeBindingMode", "Immediate")


@_for("scheduling.k8s.io", "v1", "PriorityClass")
def _priority_class(obj: Object) -> None:
    _fill(obj, "preemptionPolicy", "PreemptLowerPriority")


@_for("rbac.authorization.k8s.io", "v1", "RoleBinding")
@_for("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding")
def _binding(obj: Object) -> None:
    rbac = "rbac.authorization.k8s.io"
    if isinstance(obj.get("roleRef"), dict):
        obj["roleRef"].setdefault("apiGroup", rbac)
    for subject in _dicts(obj.get("subjects")):
        if subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", rbac)
        elif subject.get("kind") == "ServiceAccount" and "namespace" in obj["metadata"]:
            subject.setdefault("namespace", obj["metadata"]["namespace"])


@_for("networking.k8s.io", "v1", "NetworkPolicy")
def _network_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if "policyTypes" not in spec:
        spec["policyTypes"] = ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]
    for rule in [*_dicts(spec.get("ingress")), *_dicts(spec.get("egress"))]:
        for port in _dicts(rule.get("ports")):
            _fill(port, "protocol", "TCP")


def _fill(obj: dict[str, Any], name: str, value: Any) -> None:
    """Sets a field that is not there; an empty text counts as such."""
    if obj.get(name) in (None, ""):
        obj[name] = value


def _dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, where it is one."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
