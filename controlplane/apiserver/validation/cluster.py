"""Validation of what is no workload: RBAC, policies, storage, certificates, nodes, leases."""

import ipaddress
import re
from typing import Any

from cryptography import x509

from controlplane.apiserver import fields
from controlplane.apiserver.fields import FieldError
from controlplane.apiserver.resources import Object
from controlplane.apiserver.validation.base import IMMUTABLE, Errors, one_of, quantity, required, validates
from strata.kubeclient.quantity import parse_quantity

_RBAC = "rbac.authorization.k8s.io"
_SYSTEM_CLASSES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_HIGHEST_USER_PRIORITY = 1_000_000_000


def _fixed(obj: Object, old: Object | None, name: str, text: str = "updates to %s are forbidden.") -> Errors:
    """A field of the top that must stay as it was."""
    if old is None or old.get(name) == obj.get(name):
        return []
    return [fields.forbidden(name, text.replace("%s", name))]


# --- access


@validates(_RBAC, "v1", "Role", "ClusterRole")
def _role(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    for index, rule in enumerate(obj.get("rules") or ()):
        at = f"rules[{index}]"
        if not rule.get("verbs"):
            errors.append(fields.required(f"{at}.verbs", "verbs must contain at least one value"))
        if urls := rule.get("nonResourceURLs"):
            if obj["kind"] == "Role":
                errors.append(fields.invalid(f"{at}.nonResourceURLs", urls, "namespaced rules cannot apply to non-resource URLs"))
            if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                text = "rules cannot apply to both regular resources and non-resource URLs"
                errors.append(fields.invalid(f"{at}.nonResourceURLs", urls, text))
            continue
        if not rule.get("apiGroups"):
            errors.append(fields.required(f"{at}.apiGroups", "resource rules must supply at least one api group"))
        if not rule.get("resources"):
            errors.append(fields.required(f"{at}.resources", "resource rules must supply at least one resource"))
    return errors


@validates("certificates.k8s.io", "v1", "CertificateSigningRequest")
def _csr(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if old is None:
        errors += required(spec, ("request", "signerName"), "spec")
        if not spec.get("usages"):
            errors.append(fields.required("spec.usages", "usages must be specified"))
        if (name := spec.get("signerName")) and not re.fullmatch(r"[a-z0-9.-]+/[^\s/]+(/[^\s/]+)*", name):
            text = "must be a fully qualified domain and path of the form 'example.com/signer-name'"
            errors.append(fields.invalid("spec.signerName", name, text))
        seconds = spec.get("expirationSeconds")
        if seconds is not None and seconds < 600:
            text = "may not specify a duration less than 600 seconds (10 minutes)"
            errors.append(fields.invalid("spec.expirationSeconds", seconds, text))
        if spec.get("request"):
            errors += _certificate_request(spec["request"])
    return errors


def _certificate_request(request: str) -> Errors:
    from base64 import b64decode

    try:
        x509.load_pem_x509_csr(b64decode(request))
    except ValueError as error:
        return [fields.invalid("spec.request", request, f"PEM block type must be CERTIFICATE REQUEST: {error}")]
    return []


# --- policies


@validates("scheduling.k8s.io", "v1", "PriorityClass")
def _priority_class(obj: Object, old: Object | None) -> Errors:
    name, value = obj["metadata"].get("name") or "", obj.get("value") or 0
    errors = one_of(obj, "preemptionPolicy", ("Never", "PreemptLowerPriority"), "")
    if name.startswith("system-"):
        if _SYSTEM_CLASSES.get(name) != value:
            text = "priority class names with 'system-' prefix are reserved for system use only"
            errors.append(fields.forbidden("metadata.name", text))
    elif value > _HIGHEST_USER_PRIORITY:
        text = f"maximum allowed value of a user defined priority is {_HIGHEST_USER_PRIORITY}"
        errors.append(fields.forbidden("value", text))
    if old is not None:
        errors += [
            fields.invalid(one, obj.get(one), "may not be changed in an update.")
            for one in ("value", "preemptionPolicy")
            if old.get(one) != obj.get(one)
        ]
    return errors


@validates("policy", "v1", "PodDisruptionBudget")
def _disruption_budget(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        errors.append(FieldError("spec", "Invalid value", "minAvailable and maxUnavailable cannot be both set", {}))
    for name in ("minAvailable", "maxUnavailable"):
        errors += _count_or_percent(spec.get(name), f"spec.{name}")
    return errors


def _count_or_percent(value: Any, where: str) -> Errors:
    if isinstance(value, int) and value < 0:
        return [fields.invalid(where, value, "must be greater than or equal to 0")]
    if isinstance(value, str):
        if not re.fullmatch(r"\d+%", value):
            text = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%')"
            return [fields.invalid(where, value, text)]
        if int(value[:-1]) > 100:
            return [fields.invalid(where, value, "must not be greater than 100%")]
    return []


@validates("autoscaling", "v2", "HorizontalPodAutoscaler")
def _autoscaler(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    least, most = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    errors = required(spec.get("scaleTargetRef") or {}, ("kind", "name"), "spec.scaleTargetRef")
    if least is not None and least < 1:
        errors.append(fields.invalid("spec.minReplicas", least, "must be greater than or equal to 1"))
    if most < 1:
        errors.append(fields.invalid("spec.maxReplicas", most, "must be greater than 0"))
    if least is not None and most < least:
        errors.append(fields.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`"))
    return errors


@validates("", "v1", "ResourceQuota")
def _quota(obj: Object, old: Object | None) -> Errors:
    hard = (obj.get("spec") or {}).get("hard") or {}
    return [error for name, value in hard.items() for error in quantity(value, f"spec.hard[{name}]")]


@validates("", "v1", "LimitRange")
def _limit_range(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    for index, limit in enumerate((obj.get("spec") or {}).get("limits") or ()):
        at = f"spec.limits[{index}]"
        errors += required(limit, ("type",), at)
        for kind in ("min", "max", "default", "defaultRequest"):
            for name, value in (limit.get(kind) or {}).items():
                errors += quantity(value, f"{at}.{kind}[{name}]")
    return errors


# --- networking


@validates("networking.k8s.io", "v1", "NetworkPolicy")
def _network_policy(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    for index, kind in enumerate(spec.get("policyTypes") or ()):
        if kind not in ("Egress", "Ingress"):
            errors.append(fields.unsupported(f"spec.policyTypes[{index}]", kind, ("Egress", "Ingress")))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            for number, peer in enumerate(rule.get(peers) or ()):
                at = f"spec.{direction}[{index}].{peers}[{number}]"
                if not peer:
                    errors.append(fields.required(at, "must specify a peer"))
                elif "ipBlock" in peer:
                    errors += _ip_block(peer["ipBlock"], f"{at}.ipBlock")
                    if len(peer) > 1:
                        text = "may not specify both ipBlock and another peer"
                        errors.append(fields.forbidden(at, text))
    return errors


def _ip_block(block: dict[str, Any], where: str) -> Errors:
    if not block.get("cidr"):
        return [fields.required(f"{where}.cidr")]
    for name, cidr in [("cidr", block["cidr"]), *((f"except[{n}]", one) for n, one in enumerate(block.get("except") or ()))]:
        try:
            ipaddress.ip_network(cidr, strict=False)
        except ValueError:
            text = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            return [fields.invalid(f"{where}.{name}", cidr, text)]
    return []


@validates("networking.k8s.io", "v1", "Ingress")
def _ingress(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("rules") and not spec.get("defaultBackend"):
        errors.append(fields.invalid("spec", [], "either `defaultBackend` or `rules` must be specified"))
    for index, rule in enumerate(spec.get("rules") or ()):
        for number, path in enumerate((rule.get("http") or {}).get("paths") or ()):
            at = f"spec.rules[{index}].http.paths[{number}]"
            kind, value = path.get("pathType"), path.get("path") or ""
            if not kind:
                errors.append(fields.required(f"{at}.pathType", "pathType must be specified"))
            errors += one_of(path, "pathType", ("Exact", "ImplementationSpecific", "Prefix"), at)
            if kind in ("Exact", "Prefix") and not value.startswith("/"):
                errors.append(fields.invalid(f"{at}.path", value, "must be an absolute path"))
    return errors


@validates("discovery.k8s.io", "v1", "EndpointSlice")
def _endpoint_slice(obj: Object, old: Object | None) -> Errors:
    family = obj.get("addressType")
    errors = required(obj, ("addressType",), "") + one_of(obj, "addressType", ("FQDN", "IPv4", "IPv6"), "")
    if old is not None and old.get("addressType") != family:
        errors.append(fields.invalid("addressType", family, IMMUTABLE))
    endpoints = obj.get("endpoints") or ()
    if len(endpoints) > 1000:
        return [*errors, FieldError("endpoints", "Too many", "must have at most 1000 items", len(endpoints))]
    for index, endpoint in enumerate(endpoints):
        at, addresses = f"endpoints[{index}].addresses", endpoint.get("addresses") or []
        if not addresses:
            errors.append(fields.required(at, "must contain at least 1 address"))
        for number, address in enumerate(addresses):
            if family != "FQDN" and not _is_address(address, family):
                errors.append(fields.invalid(f"{at}[{number}]", address, f"must be a valid {family} address"))
    return errors


def _is_address(text: str, family: str | None) -> bool:
    try:
        return f"IPv{ipaddress.ip_address(text).version}" == family
    except ValueError:
        return False


# --- storage


@validates("", "v1", "PersistentVolumeClaim")
def _claim(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("accessModes"):
        errors.append(fields.required("spec.accessModes", "at least 1 access mode is required"))
    errors += _access_modes(spec, "spec")
    requested = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if requested is None:
        errors.append(fields.required("spec.resources[storage]"))
    else:
        errors += quantity(requested, "spec.resources[storage]", positive=True)
    if old is not None and not errors:
        before = old.get("spec") or {}
        free = ("resources", "volumeName", "volumeAttributesClassName", "storageClassName")
        changed = {k: v for k, v in spec.items() if k not in free} != {k: v for k, v in before.items() if k not in free}
        moved = any(before.get(name) and before[name] != spec.get(name) for name in ("volumeName", "storageClassName"))
        if changed or moved:
            text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
            errors.append(fields.forbidden("spec", text))
        elif requested is not None and parse_quantity(requested) < parse_quantity(before["resources"]["requests"]["storage"]):
            errors.append(fields.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity"))
    return errors


def _access_modes(spec: dict[str, Any], where: str) -> Errors:
    allowed = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
    modes = spec.get("accessModes") or []
    errors = [fields.unsupported(f"{where}.accessModes", mode, allowed) for mode in modes if mode not in allowed]
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        text = "may not use ReadWriteOncePod with other access modes"
        errors.append(fields.forbidden(f"{where}.accessModes", text))
    return errors


_NO_SOURCES = {
    "capacity", "accessModes", "claimRef", "persistentVolumeReclaimPolicy", "storageClassName", "mountOptions", "volumeMode",
    "nodeAffinity", "volumeAttributesClassName",
}  # fmt: skip


@validates("", "v1", "PersistentVolume")
def _volume(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    if not spec.get("accessModes"):
        errors.append(fields.required("spec.accessModes"))
    errors += _access_modes(spec, "spec")
    if not spec.get("capacity"):
        errors.append(fields.required("spec.capacity"))
    for name, value in (spec.get("capacity") or {}).items():
        errors += quantity(value, f"spec.capacity[{name}]", positive=True)
    errors += one_of(spec, "persistentVolumeReclaimPolicy", ("Delete", "Recycle", "Retain"), "spec")
    sources = {name for name in spec if name not in _NO_SOURCES}
    if not sources:
        errors.append(fields.required("spec", "must specify a volume type"))
    if len(sources) > 1:
        errors.append(fields.forbidden(f"spec.{max(sources)}", "may not specify more than 1 volume type"))
    if old is not None:
        before = {name: value for name, value in (old.get("spec") or {}).items() if name not in _NO_SOURCES}
        if before != {name: spec[name] for name in sources}:
            text = "spec.persistentvolumesource is immutable after creation"
            errors.append(fields.forbidden("spec.persistentvolumesource", text))
    return errors


@validates("storage.k8s.io", "v1", "StorageClass")
def _storage_class(obj: Object, old: Object | None) -> Errors:
    errors = [fields.required("provisioner")] if not obj.get("provisioner") else []
    errors += one_of(obj, "reclaimPolicy", ("Delete", "Retain"), "")
    errors += one_of(obj, "volumeBindingMode", ("Immediate", "WaitForFirstConsumer"), "")
    for name in ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"):
        errors += _fixed(obj, old, name)
    return errors


# --- nodes and what goes on in them


@validates("", "v1", "Node")
def _node(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate((obj.get("spec") or {}).get("taints") or ()):
        at = f"spec.taints[{index}]"
        errors += required(taint, ("key", "effect"), at)
        errors += one_of(taint, "effect", ("NoExecute", "NoSchedule", "PreferNoSchedule"), at)
        key = (taint.get("key", ""), taint.get("effect", ""))
        if key in seen:
            text = "taints must be unique by key and effect pair"
            errors.append(FieldError(at, "Duplicate value", text, taint))
        seen.add(key)
    return errors


@validates("node.k8s.io", "v1", "RuntimeClass")
def _runtime_class(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", obj.get("handler") or ""):
        errors.append(fields.invalid("handler", obj.get("handler", ""), "must be a lowercase RFC 1123 label"))
    if old is not None and old.get("handler") != obj.get("handler"):
        errors.append(fields.invalid("handler", obj.get("handler"), IMMUTABLE))
    return errors


@validates("coordination.k8s.io", "v1", "Lease")
def _lease(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    errors: Errors = []
    if seconds is not None and seconds <= 0:
        errors.append(fields.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
    if transitions is not None and transitions < 0:
        errors.append(fields.invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    return errors


@validates("", "v1", "Event")
def _event(obj: Object, old: Object | None) -> Errors:
    about, namespace = (obj.get("involvedObject") or {}).get("namespace", ""), obj["metadata"].get("namespace")
    if about == namespace or (not about and namespace in ("default", "kube-system")):
        return []
    return [fields.invalid("involvedObject.namespace", about, "does not match event.namespace")]


@validates(_RBAC, "v1", "RoleBinding", "ClusterRoleBinding")
def _binding(obj: Object, old: Object | None) -> Errors:
    errors = required(obj.get("roleRef") or {}, ("kind", "name"), "roleRef")
    if old is not None and old.get("roleRef") != obj.get("roleRef"):
        errors.append(fields.invalid("roleRef", obj.get("roleRef"), "cannot change roleRef"))
    for index, subject in enumerate(obj.get("subjects") or ()):
        at = f"subjects[{index}]"
        errors += required(subject, ("kind", "name"), at) + one_of(subject, "kind", ("Group", "ServiceAccount", "User"), at)
    return errors
