"""Validation of services and configuration (core/v1)."""

from typing import Any

from controlplane.apiserver import fields
from controlplane.apiserver.fields import FieldError
from controlplane.apiserver.resources import Object
from controlplane.apiserver.validation.base import (
    CONFIG_KEY,
    CONFIG_KEY_TEXT,
    Errors,
    dns_label,
    label_set,
    one_of,
    port_number,
    validates,
)


@validates("", "v1", "Service")
def _service(obj: Object, old: Object | None) -> Errors:
    spec = obj.get("spec") or {}
    errors = one_of(spec, "type", ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort"), "spec")
    errors += one_of(spec, "sessionAffinity", ("ClientIP", "None"), "spec")
    ports = spec.get("ports") or []
    if spec.get("type") == "ExternalName":
        if not spec.get("externalName"):
            errors.append(fields.required("spec.externalName"))
    elif not ports and spec.get("clusterIP") != "None":
        errors.append(fields.required("spec.ports"))
    names: set[str] = set()
    seen: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        at, name = f"spec.ports[{index}]", port.get("name")
        errors += port_number(port.get("port"), f"{at}.port")
        errors += port_number(port.get("targetPort"), f"{at}.targetPort")
        errors += one_of(port, "protocol", ("SCTP", "TCP", "UDP"), at)
        if not name and len(ports) > 1:
            errors.append(fields.required(f"{at}.name"))
        elif name:
            errors += dns_label(f"{at}.name", name)
            if name in names:
                errors.append(fields.duplicate(f"{at}.name", name))
            names.add(name)
        if (port.get("port"), port.get("protocol")) in seen:
            errors.append(fields.duplicate(at, {"port": port.get("port"), "protocol": port.get("protocol")}))
        seen.add((port.get("port"), port.get("protocol")))
    return errors + label_set("spec.selector", spec.get("selector") or {})


@validates("", "v1", "ConfigMap", "Secret")
def _config(obj: Object, old: Object | None) -> Errors:
    errors: Errors = []
    size = 0
    for name in ("data", "binaryData"):
        for key, value in (obj.get(name) or {}).items():
            size += len(value)
            if not CONFIG_KEY.fullmatch(key) or key in (".", ".."):
                errors.append(fields.invalid(f"{name}[{key}]", key, CONFIG_KEY_TEXT))
    if size > 1024 * 1024 * (1 if obj["kind"] == "ConfigMap" else 2):
        errors.append(FieldError("" if obj["kind"] == "ConfigMap" else "data", "Too long", "may not be more than 1048576 bytes"))
    return errors + (_secret_of_type(obj) if obj["kind"] == "Secret" else [])


_SECRET_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def _secret_of_type(obj: Object) -> Errors:
    """The keys that a secret of a known type must have."""
    data = obj.get("data") or {}
    kind = obj.get("type") or ""
    errors = [fields.required(f"data[{key}]") for key in _SECRET_KEYS.get(kind, ()) if not data.get(key)]
    if kind == "kubernetes.io/basic-auth" and not data.keys() & {"username", "password"}:
        errors += [fields.required("data[username]"), fields.required("data[password]")]
    annotations = obj["metadata"].get("annotations") or {}
    if kind == "kubernetes.io/service-account-token" and not annotations.get("kubernetes.io/service-account.name"):
        errors.append(fields.required("metadata.annotations[kubernetes.io/service-account.name]"))
    return errors
