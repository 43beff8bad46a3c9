"""The columns of `kubectl get`, as the server prints them (metav1.Table)."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from controlplane.apiserver.resources import Object

Cell = str | int | bool | None
Row = Callable[[Object], list[Cell]]

_tables: dict[tuple[str, str], tuple[tuple[str, ...], Row]] = {}
"""Column names ('Name' alone, or '+Name' for those of -o wide) and the function that makes a row's cells."""


def table_columns(group: str, plural: str) -> list[dict[str, Any]]:
    """The column definitions of a resource."""
    names, _ = _tables.get((group, plural), _DEFAULT)
    return [
        {
            "name": name.lstrip("+"),
            "type": "string",
            "format": "name" if name == "Name" else "",
            "description": "",
            "priority": 1 if name.startswith("+") else 0,
        }
        for name in names
    ]


def table_row(group: str, plural: str, obj: Object) -> list[Cell]:
    """An object's cells."""
    _, row = _tables.get((group, plural), _DEFAULT)
    return row(obj)


def human_duration(seconds: float) -> str:
    """A duration as kubectl shows it: 42s, 3m10s, 5m, 2h3m, 7h, 3d4h, 200d, 2y (apimachinery's duration.HumanDuration)."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    s = max(s, 0)
    if s < 120:
        return f"{s}s"
    minutes, hours, days, years = s // 60, s // 3600, s // 86400, s // (86400 * 365)
    if minutes < 10:
        return f"{minutes}m{s % 60}s" if s % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    return f"{years}y{days % 365}d" if years < 8 and days % 365 else f"{years}y"


def _age_of(timestamp: str | None) -> str:
    if not timestamp:
        return "<unknown>"
    then = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    return human_duration((datetime.now(UTC) - then).total_seconds())


def _age(obj: Object) -> str:
    return _age_of(obj["metadata"].get("creationTimestamp"))


def _name(obj: Object) -> str:
    name: str = obj["metadata"]["name"]
    return name


_DEFAULT: tuple[tuple[str, ...], Row] = (("Name", "Age"), lambda obj: [_name(obj), _age(obj)])


def _for(group: str, plural: str, *columns: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        _tables[group, plural] = (columns, function)
        return function

    return register


def _pairs(labels: dict[str, str] | None) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((labels or {}).items())) or "<none>"


def _selector(selector: dict[str, Any] | None) -> str:
    if not selector:
        return "<none>"
    terms = [f"{k}={v}" for k, v in sorted((selector.get("matchLabels") or {}).items())]
    words = {"In": "in", "NotIn": "notin"}
    for e in selector.get("matchExpressions") or ():
        if e["operator"] in words:
            terms.append(f"{e['key']} {words[e['operator']]} ({','.join(e.get('values') or ())})")
        else:
            terms.append(e["key"] if e["operator"] == "Exists" else f"!{e['key']}")
    return ",".join(terms) or "<none>"


def _templates(obj: Object) -> tuple[str, str]:
    """Names and images of a workload's containers."""
    containers = ((obj.get("spec") or {}).get("template") or {}).get("spec", {}).get("containers") or []
    return ",".join(c["name"] for c in containers), ",".join(c.get("image", "") for c in containers)


@_for("", "pods", "Name", "Ready", "Status", "Restarts", "Age", "+IP", "+Node", "+Nominated Node", "+Readiness Gates")
def _pod(obj: Object) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    ready, restarts, last_restart = 0, 0, ""
    for one in [
        *(status.get("containerStatuses") or ()),
        *(s for s in status.get("initContainerStatuses") or () if s.get("ready")),
    ]:
        restarts += one.get("restartCount", 0)
        last_restart = max(last_restart, (one.get("lastState", {}).get("terminated") or {}).get("finishedAt") or "")
    ready = sum(1 for s in status.get("containerStatuses") or () if s.get("ready") and "running" in (s.get("state") or {}))
    total = len(spec.get("containers") or ())
    shown = f"{restarts} ({_age_of(last_restart)} ago)" if restarts and last_restart else str(restarts)
    gates = spec.get("readinessGates")
    return [
        _name(obj), f"{ready}/{total}", _pod_reason(obj), shown, _age(obj), status.get("podIP") or "<none>",
        spec.get("nodeName") or "<none>", status.get("nominatedNodeName") or "<none>",
        f"0/{len(gates)}" if gates else "<none>",
    ]  # fmt: skip


def _pod_reason(obj: Object) -> str:
    """The STATUS column: the phase, or what its containers say beyond it (printPod of kubectl's printers)."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    reason = status.get("reason") or status.get("phase") or "Unknown"
    if any(c.get("type") == "PodScheduled" and c.get("reason") == "SchedulingGated" for c in status.get("conditions") or ()):
        reason = "SchedulingGated"
    initializing = False
    inits = status.get("initContainerStatuses") or []
    for index, one in enumerate(inits):
        state = one.get("state") or {}
        ended = state.get("terminated")
        if ended and ended.get("exitCode") == 0:
            continue
        restartable = (
            index < len(spec.get("initContainers") or ()) and spec["initContainers"][index].get("restartPolicy") == "Always"
        )
        if restartable and one.get("started"):
            continue
        if ended:
            reason = f"Init:{ended.get('reason') or _signal_or_code(ended)}"
        elif (waiting := (state.get("waiting") or {}).get("reason")) and waiting != "PodInitializing":
            reason = f"Init:{waiting}"
        else:
            reason = f"Init:{index}/{len(spec.get('initContainers') or ())}"
        initializing = True
        break
    if not initializing:
        running = False
        for one in reversed(status.get("containerStatuses") or []):
            state = one.get("state") or {}
            if waiting := (state.get("waiting") or {}).get("reason"):
                reason = waiting
            elif ended := state.get("terminated"):
                reason = ended.get("reason") or _signal_or_code(ended)
            elif one.get("ready") and "running" in state:
                running = True
        if reason == "Completed" and running:
            is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
            reason = "Running" if is_ready else "NotReady"
    if obj["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if status.get("phase") not in ("Succeeded", "Failed"):
            return "Terminating"
    return str(reason)


def _signal_or_code(ended: dict[str, Any]) -> str:
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"


@_for("", "nodes", "Name", "Status", "Roles", "Age", "Version", "+Internal-IP", "+External-IP", "+OS-Image", "+Kernel-Version",
      "+Container-Runtime")  # fmt: skip
def _node(obj: Object) -> list[Cell]:
    status = obj.get("status") or {}
    ready = next((c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"), None)
    shown = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    if (obj.get("spec") or {}).get("unschedulable"):
        shown += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = sorted(k.removeprefix(prefix) for k in obj["metadata"].get("labels") or {} if k.startswith(prefix))
    info = status.get("nodeInfo") or {}
    addresses = {a["type"]: a["address"] for a in reversed(status.get("addresses") or [])}
    return [
        _name(obj), shown, ",".join(roles) or "<none>", _age(obj), info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"), addresses.get("ExternalIP", "<none>"), info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>", info.get("containerRuntimeVersion") or "<unknown>",
    ]  # fmt: skip


@_for("", "services", "Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age", "+Selector")
def _service(obj: Object) -> list[Cell]:
    spec = obj.get("spec") or {}
    kind = spec.get("type", "ClusterIP")
    ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    external = list(spec.get("externalIPs") or ())
    if kind == "ExternalName":
        external = [spec.get("externalName", "")]
    elif kind == "LoadBalancer":
        external += [i.get("ip") or i.get("hostname", "") for i in ingress] or ["<pending>"]
    ports = ",".join(
        f"{p['port']}:{p['nodePort']}/{p.get('protocol', 'TCP')}"
        if p.get("nodePort")
        else f"{p['port']}/{p.get('protocol', 'TCP')}"
        for p in spec.get("ports") or ()
    )
    address = spec.get("clusterIP") or "<none>"
    return [_name(obj), kind, address, ",".join(external) or "<none>", ports or "<none>", _age(obj), _pairs(spec.get("selector"))]


@_for("apps", "deployments", "Name", "Ready", "Up-to-date", "Available", "Age", "+Containers", "+Images", "+Selector")
def _deployment(obj: Object) -> list[Cell]:
    spec, status = obj["spec"], obj.get("status") or {}
    names, images = _templates(obj)
    return [
        _name(obj), f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}", status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0), _age(obj), names, images, _selector(spec.get("selector")),
    ]  # fmt: skip


@_for("apps", "replicasets", "Name", "Desired", "Current", "Ready", "Age", "+Containers", "+Images", "+Selector")
@_for("", "replicationcontrollers", "Name", "Desired", "Current", "Ready", "Age", "+Containers", "+Images", "+Selector")
def _replica_set(obj: Object) -> list[Cell]:
    spec, status = obj["spec"], obj.get("status") or {}
    names, images = _templates(obj)
    selector = spec.get("selector") or {}
    shown = _selector(selector) if obj["kind"] == "ReplicaSet" else _pairs(selector)
    counts: list[Cell] = [spec.get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [_name(obj), *counts, _age(obj), names, images, shown]


@_for("apps", "statefulsets", "Name", "Ready", "Age", "+Containers", "+Images")
def _stateful_set(obj: Object) -> list[Cell]:
    ready = f"{(obj.get('status') or {}).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"
    return [_name(obj), ready, _age(obj), *_templates(obj)]


@_for("apps", "daemonsets", "Name", "Desired", "Current", "Ready", "Up-to-date", "Available", "Node Selector", "Age",
      "+Containers", "+Images", "+Selector")  # fmt: skip
def _daemon_set(obj: Object) -> list[Cell]:
    spec, status = obj["spec"], obj.get("status") or {}
    names = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable")
    nodes = _pairs((spec.get("template", {}).get("spec") or {}).get("nodeSelector"))
    return [_name(obj), *(status.get(n, 0) for n in names), nodes, _age(obj), *_templates(obj), _selector(spec.get("selector"))]


@_for("batch", "jobs", "Name", "Status", "Completions", "Duration", "Age", "+Containers", "+Images", "+Selector")
def _job(obj: Object) -> list[Cell]:
    spec, status = obj["spec"], obj.get("status") or {}
    held = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    state = next((name for name in ("Complete", "Failed", "Suspended", "FailureTarget") if name in held), "Running")
    if spec.get("completions") is not None:
        completions = f"{status.get('succeeded', 0)}/{spec['completions']}"
    else:
        completions = f"{status.get('succeeded', 0)}/1 of {spec.get('parallelism', 1)}"
    duration = ""
    if started := status.get("startTime"):
        begin = datetime.fromisoformat(started.replace("Z", "+00:00"))
        done = status.get("completionTime")
        end = datetime.fromisoformat(done.replace("Z", "+00:00")) if done else datetime.now(UTC)
        duration = human_duration((end - begin).total_seconds())
    return [_name(obj), state, completions, duration, _age(obj), *_templates(obj), _selector(spec.get("selector"))]


@_for("batch", "cronjobs", "Name", "Schedule", "Timezone", "Suspend", "Active", "Last Schedule", "Age")
def _cron_job(obj: Object) -> list[Cell]:
    spec, status = obj["spec"], obj.get("status") or {}
    last = status.get("lastScheduleTime")
    suspended = str(bool(spec.get("suspend"))).title()
    active = len(status.get("active") or ())
    return [
        _name(obj),
        spec["schedule"],
        spec.get("timeZone") or "<none>",
        suspended,
        active,
        _age_of(last) if last else "<none>",
        _age(obj),
    ]


@_for("", "configmaps", "Name", "Data", "Age")
def _config_map(obj: Object) -> list[Cell]:
    return [_name(obj), len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), _age(obj)]


@_for("", "secrets", "Name", "Type", "Data", "Age")
def _secret(obj: Object) -> list[Cell]:
    return [_name(obj), obj.get("type", ""), len(obj.get("data") or ()), _age(obj)]


@_for("", "namespaces", "Name", "Status", "Age")
def _namespace(obj: Object) -> list[Cell]:
    return [_name(obj), (obj.get("status") or {}).get("phase", ""), _age(obj)]


@_for("", "serviceaccounts", "Name", "Age")
def _service_account(obj: Object) -> list[Cell]:
    return [_name(obj), _age(obj)]


@_for("", "endpoints", "Name", "Endpoints", "Age")
def _endpoints(obj: Object) -> list[Cell]:
    found = [
        f"{address['ip']}:{port['port']}"
        for subset in obj.get("subsets") or ()
        for port in subset.get("ports") or ()
        for address in subset.get("addresses") or ()
    ]
    return [_name(obj), _shortened(found), _age(obj)]


def _shortened(values: list[str]) -> str:
    more = f" + {len(values) - 3} more..." if len(values) > 3 else ""
    return (",".join(values[:3]) + more) or "<none>"


@_for("discovery.k8s.io", "endpointslices", "Name", "AddressType", "Ports", "Endpoints", "Age")
def _endpoint_slice(obj: Object) -> list[Cell]:
    ports = [str(p.get("port", "*")) for p in obj.get("ports") or ()]
    addresses = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return [_name(obj), obj.get("addressType", ""), _shortened(ports).replace("<none>", "<unset>"),
            _shortened(addresses).replace("<none>", "<unset>"), _age(obj)]  # fmt: skip


@_for("", "events", "Last Seen", "Type", "Reason", "Object", "+Subobject", "+Source", "Message", "+First Seen", "+Count", "+Name")
@_for("events.k8s.io", "events", "Last Seen", "Type", "Reason", "Object", "+Subobject", "+Source", "Message", "+First Seen",
      "+Count", "+Name")  # fmt: skip
def _event(obj: Object) -> list[Cell]:
    about, source = obj.get("involvedObject") or {}, obj.get("source") or {}
    first = obj.get("firstTimestamp") or obj.get("eventTime") or obj["metadata"].get("creationTimestamp")
    last = obj.get("lastTimestamp") or (obj.get("series") or {}).get("lastObservedTime") or first
    subject = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
    component = source.get("component") or obj.get("reportingComponent") or ""
    shown = f"{component}, {source['host']}" if source.get("host") else component
    count = obj.get("count") or (obj.get("series") or {}).get("count") or 1
    return [
        _age_of(last), obj.get("type", ""), obj.get("reason", ""), subject, about.get("fieldPath", ""), shown,
        (obj.get("message") or "").strip(), _age_of(first), count, _name(obj),
    ]  # fmt: skip


@_for("coordination.k8s.io", "leases", "Name", "Holder", "Age")
def _lease(obj: Object) -> list[Cell]:
    return [_name(obj), (obj.get("spec") or {}).get("holderIdentity") or "", _age(obj)]


@_for(
    "certificates.k8s.io",
    "certificatesigningrequests",
    "Name",
    "Age",
    "SignerName",
    "Requestor",
    "RequestedDuration",
    "Condition",
)
def _csr(obj: Object) -> list[Cell]:
    spec, status = obj["spec"], obj.get("status") or {}
    conditions = [c["type"] for c in status.get("conditions") or ()]
    state = next((c for c in ("Denied", "Failed", "Approved") if c in conditions), "Pending")
    if status.get("certificate"):
        state += ",Issued"
    seconds = spec.get("expirationSeconds")
    duration = human_duration(seconds) if seconds else "<none>"
    return [_name(obj), _age(obj), spec.get("signerName", ""), spec.get("username") or "<none>", duration, state]


@_for("rbac.authorization.k8s.io", "roles", "Name", "Created At")
@_for("rbac.authorization.k8s.io", "clusterroles", "Name", "Created At")
def _role(obj: Object) -> list[Cell]:
    return [_name(obj), obj["metadata"].get("creationTimestamp", "")]


@_for("rbac.authorization.k8s.io", "rolebindings", "Name", "Role", "Age", "+Users", "+Groups", "+ServiceAccounts")
@_for("rbac.authorization.k8s.io", "clusterrolebindings", "Name", "Role", "Age", "+Users", "+Groups", "+ServiceAccounts")
def _role_binding(obj: Object) -> list[Cell]:
    subjects = obj.get("subjects") or []

    def named(kind: str) -> str:
        names = [
            f"{s['namespace']}/{s['name']}" if kind == "ServiceAccount" else s["name"] for s in subjects if s["kind"] == kind
        ]
        return ", ".join(names)

    role = f"{obj['roleRef']['kind']}/{obj['roleRef']['name']}"
    return [_name(obj), role, _age(obj), named("User"), named("Group"), named("ServiceAccount")]


@_for("scheduling.k8s.io", "priorityclasses", "Name", "Value", "Global-Default", "Age", "PreemptionPolicy")
def _priority_class(obj: Object) -> list[Cell]:
    shown = str(bool(obj.get("globalDefault"))).lower()
    return [_name(obj), obj.get("value", 0), shown, _age(obj), obj.get("preemptionPolicy", "")]


@_for("policy", "poddisruptionbudgets", "Name", "Min Available", "Max Unavailable", "Allowed Disruptions", "Age")
def _pdb(obj: Object) -> list[Cell]:
    spec = obj["spec"]
    least, most = str(spec.get("minAvailable", "N/A")), str(spec.get("maxUnavailable", "N/A"))
    return [_name(obj), least, most, (obj.get("status") or {}).get("disruptionsAllowed", 0), _age(obj)]


@_for("networking.k8s.io", "networkpolicies", "Name", "Pod-Selector", "Age")
def _network_policy(obj: Object) -> list[Cell]:
    return [_name(obj), _selector((obj.get("spec") or {}).get("podSelector")), _age(obj)]


@_for("networking.k8s.io", "ingresses", "Name", "Class", "Hosts", "Address", "Ports", "Age")
def _ingress(obj: Object) -> list[Cell]:
    spec = obj.get("spec") or {}
    hosts = [rule.get("host") or "*" for rule in spec.get("rules") or ()]
    ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    addresses = ",".join(i.get("ip") or i.get("hostname", "") for i in ingress)
    ports = "80, 443" if spec.get("tls") else "80"
    return [_name(obj), spec.get("ingressClassName") or "<none>", ",".join(hosts) or "*", addresses, ports, _age(obj)]


@_for("", "persistentvolumeclaims", "Name", "Status", "Volume", "Capacity", "Access Modes", "StorageClass", "Age", "+VolumeMode")
def _claim(obj: Object) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    modes = _access_modes(status.get("accessModes"))
    capacity = (status.get("capacity") or {}).get("storage", "")
    return [
        _name(obj),
        status.get("phase", ""),
        spec.get("volumeName", ""),
        capacity,
        modes,
        spec.get("storageClassName", ""),
        _age(obj),
        spec.get("volumeMode"),
    ]


@_for(
    "",
    "persistentvolumes",
    "Name",
    "Capacity",
    "Access Modes",
    "Reclaim Policy",
    "Status",
    "Claim",
    "StorageClass",
    "Reason",
    "Age",
    "+VolumeMode",
)
def _volume(obj: Object) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef") or {}
    shown = f"{claim['namespace']}/{claim['name']}" if claim else ""
    return [
        _name(obj), (spec.get("capacity") or {}).get("storage", ""), _access_modes(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""), status.get("phase", ""), shown, spec.get("storageClassName", ""),
        status.get("reason", ""), _age(obj), spec.get("volumeMode"),
    ]  # fmt: skip


def _access_modes(modes: list[str] | None) -> str:
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    return ",".join(short.get(mode, mode) for mode in modes or ())


@_for(
    "storage.k8s.io", "storageclasses", "Name", "Provisioner", "ReclaimPolicy", "VolumeBindingMode", "AllowVolumeExpansion", "Age"
)
def _storage_class(obj: Object) -> list[Cell]:
    default = (obj["metadata"].get("annotations") or {}).get("storageclass.kubernetes.io/is-default-class") == "true"
    name = f"{_name(obj)} (default)" if default else _name(obj)
    expands = str(bool(obj.get("allowVolumeExpansion"))).lower()
    return [name, obj.get("provisioner", ""), obj.get("reclaimPolicy", ""), obj.get("volumeBindingMode", ""), expands, _age(obj)]


@_for("node.k8s.io", "runtimeclasses", "Name", "Handler", "Age")
def _runtime_class(obj: Object) -> list[Cell]:
    return [_name(obj), obj.get("handler", ""), _age(obj)]
