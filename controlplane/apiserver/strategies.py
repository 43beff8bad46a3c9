"""What is particular to a resource: the fields that the server itself sets or guards when an object is written.

A strategy is a plain function registered for a resource; most resources have none. Defaults and validation are elsewhere
(`defaults`, `validation`): this is what needs the server's state or the old object.
"""

import base64
import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from controlplane.apiserver import fields
from controlplane.apiserver.errors import invalid
from controlplane.apiserver.request import Reader
from controlplane.apiserver.resources import Object
from strata.kubeclient.quantity import parse_quantity
from strata.telemetry import spans


@dataclass
class Context:
    """What strategies may use: read access to the cache, and the ranges that the server hands out from."""

    reader: Reader
    service_cidr: ipaddress.IPv4Network = field(default_factory=lambda: ipaddress.IPv4Network("10.96.0.0/16"))
    node_ports: range = range(30000, 32768)


class Strategy(Protocol):
    """Changes the object in place; returns what is wrong. old is None for a create."""

    def __call__(self, obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]: ...


_strategies: dict[tuple[str, str], Strategy] = {}


def _strategy(group: str, plural: str) -> Callable[[Strategy], Strategy]:
    def register(function: Strategy) -> Strategy:
        _strategies[group, plural] = function
        return function

    return register


def prepare(group: str, plural: str, obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    """Runs the resource's strategy, if it has one."""
    strategy = _strategies.get((group, plural))
    return strategy(obj, old, context) if strategy else []


SPEC_SUBRESOURCES = ("ephemeralcontainers", "resize")
"""Subresources through which a part of the spec is written that cannot be written otherwise."""


def through_subresource(subresource: str, new: Object, old: Object) -> Object:
    """The old object with what a write to the subresource may change of it. Raises StatusError for what it may not."""
    metadata = {k: new["metadata"][k] for k in _STATUS_METADATA if k in new["metadata"]}
    changed = {**old, "metadata": {**{k: v for k, v in old["metadata"].items() if k not in _STATUS_METADATA}, **metadata}}
    match subresource:
        case "status":
            if "status" in new:
                changed["status"] = new["status"]
        case "approval":
            conditions = (new.get("status") or {}).get("conditions")
            changed["status"] = {**(old.get("status") or {}), **({"conditions": conditions} if conditions else {})}
        case "ephemeralcontainers":
            before = old["spec"].get("ephemeralContainers") or []
            after = (new.get("spec") or {}).get("ephemeralContainers") or []
            names = {container.get("name"): container for container in after}
            for container in before:
                kept = names.get(container["name"])
                if kept is None or any(container.get(key) != value for key, value in kept.items()):
                    text = f'existing ephemeral containers "{container["name"]}" may not be changed'
                    problem = fields.forbidden("spec.ephemeralContainers", text)
                    raise invalid("Pod", "", old["metadata"]["name"], [problem])
            changed["spec"] = {**old["spec"], "ephemeralContainers": after}
        case "resize":
            changed["spec"] = {**old["spec"], **_resized(new.get("spec") or {}, old["spec"])}
    return changed


_STATUS_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")
_RESIZABLE = ("resources", "resizePolicy")


def _resized(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The containers of a pod with new resources."""
    found = {}
    for kind in ("containers", "initContainers"):
        wanted = {container.get("name"): container for container in new.get(kind) or ()}
        found[kind] = [
            {**container, **{k: v for k, v in wanted.get(container["name"], {}).items() if k in _RESIZABLE}}
            for container in old.get(kind) or ()
        ]
    return {kind: containers for kind, containers in found.items() if containers}


@_strategy("", "namespaces")
def _namespace(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    if old is None:
        obj.setdefault("spec", {})["finalizers"] = ["kubernetes"]
        obj["status"] = {"phase": "Active"}
        labels = obj["metadata"].setdefault("labels", {}) or {}
        labels["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")
        obj["metadata"]["labels"] = labels
    else:
        obj["spec"] = old.get("spec", {})
    return []


@_strategy("", "pods")
def _pod(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    if old is None:
        obj["status"] = {"phase": "Pending", "qosClass": qos_class(obj["spec"])}
        if spans.enabled():
            annotations = obj["metadata"].setdefault("annotations", {})
            annotations.setdefault(spans.ANNOTATION, spans.current())
    return []


@_strategy("", "nodes")
def _node(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    obj.setdefault("spec", {})
    if old and old["spec"].get("podCIDR") and obj["spec"].get("podCIDR") != old["spec"]["podCIDR"]:
        return [fields.forbidden("spec.podCIDR", 'node updates may not change podCIDR except from "" to valid')]
    return []


@_strategy("", "secrets")
def _secret(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    given = obj.pop("stringData", None) or {}
    if given:
        data = obj.setdefault("data", {})
        data.update({key: base64.b64encode(value.encode()).decode() for key, value in given.items()})
    obj.setdefault("type", "Opaque")
    errors = []
    if old and old.get("type") != obj["type"]:
        errors.append(fields.invalid("type", obj["type"], "field is immutable"))
    return errors + _immutable(obj, old, ("data",))


@_strategy("", "configmaps")
def _config_map(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    return _immutable(obj, old, ("data", "binaryData"))


def _immutable(obj: Object, old: Object | None, guarded: tuple[str, ...]) -> list[fields.FieldError]:
    if not old or not old.get("immutable"):
        return []
    errors = [
        fields.forbidden(name, "field is immutable when `immutable` is set") for name in guarded if obj.get(name) != old.get(name)
    ]
    if not obj.get("immutable"):
        errors.append(fields.forbidden("immutable", "field is immutable when `immutable` is set"))
    return errors


@_strategy("", "services")
def _service(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    """Hands out the cluster IP and the node ports; both stay as they are while the service lives."""
    spec = obj["spec"]
    obj.setdefault("status", {"loadBalancer": {}})
    if old and spec.get("type") not in ("NodePort", "LoadBalancer") and not spec.get("externalIPs"):
        # What a former type has left behind.
        for name in ("externalTrafficPolicy", "allocateLoadBalancerNodePorts", "healthCheckNodePort"):
            if spec.get(name) == old["spec"].get(name):
                spec.pop(name, None)
    if spec.get("type") == "ExternalName":
        if old and spec.get("clusterIP") == old["spec"].get("clusterIP"):
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
                spec.pop(name, None)
        return []
    errors = _cluster_ip(spec, old, context)
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        errors += _node_ports(spec, old, context)
    else:
        for port in spec.get("ports") or ():
            port.pop("nodePort", None)
    return errors


def _cluster_ip(spec: dict[str, Any], old: Object | None, context: Context) -> list[fields.FieldError]:
    before = (old or {}).get("spec", {}).get("clusterIP")
    address = spec.get("clusterIP") or before
    if before and before != "None" and address != before:
        return [fields.invalid("spec.clusterIPs[0]", [address], "may not change once set")]
    if address and address != "None" and not before:
        try:
            if ipaddress.ip_address(address) not in context.service_cidr:
                raise ValueError
        except ValueError:
            text = "failed to allocate IP %s: the provided IP is not in the valid range. The range of valid IPs is %s"
            return [fields.invalid("spec.clusterIPs", [address], text % (address, context.service_cidr))]
        if address in _used_addresses(context):
            text = f"failed to allocate IP {address}: provided IP is already allocated"
            return [fields.invalid("spec.clusterIPs", [address], text)]
    if not address:
        address = _free_address(context)
        if address is None:
            return [FULL_RANGE]
    spec["clusterIP"], spec["clusterIPs"] = address, [address]
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    return []


FULL_RANGE = fields.FieldError("spec.clusterIPs", "Internal error", "failed to allocate a serviceIP: range is full")


def _used_addresses(context: Context) -> set[str]:
    return {service.get("spec", {}).get("clusterIP", "") for service in context.reader.list("", "services")}


def _free_address(context: Context) -> str | None:
    used, network = _used_addresses(context), context.service_cidr
    # As Kubernetes does, the lowest part of the range is left to addresses that people choose.
    reserved = min(max(16, network.num_addresses // 16), 256)
    for _ in range(64):
        candidate = str(network[random.randrange(min(reserved, network.num_addresses - 2), network.num_addresses - 1)])
        if candidate not in used:
            return candidate
    return next((str(host) for host in network.hosts() if str(host) not in used and host != network[10]), None)


def _node_ports(spec: dict[str, Any], old: Object | None, context: Context) -> list[fields.FieldError]:
    kept = {
        (p.get("name"), p["port"], p.get("protocol")): p.get("nodePort") for p in (old or {}).get("spec", {}).get("ports") or ()
    }
    own = {port for port in kept.values() if port}
    used = {
        port["nodePort"]
        for service in context.reader.list("", "services")
        for port in service.get("spec", {}).get("ports") or ()
        if port.get("nodePort")
    } - own
    errors = []
    for index, port in enumerate(spec.get("ports") or ()):
        where = f"spec.ports[{index}].nodePort"
        if not port.get("nodePort"):
            port["nodePort"] = kept.get((port.get("name"), port["port"], port.get("protocol"))) or 0
        if not port["nodePort"]:
            free = [p for p in random.sample(context.node_ports, 64) if p not in used]
            if not free:
                errors.append(fields.FieldError(where, "Internal error", "failed to allocate a nodePort: range is full"))
                continue
            port["nodePort"] = free[0]
        elif port["nodePort"] not in context.node_ports:
            low, high = context.node_ports[0], context.node_ports[-1]
            text = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
            errors.append(fields.invalid(where, port["nodePort"], text))
        elif port["nodePort"] in used:
            errors.append(fields.invalid(where, port["nodePort"], "provided port is already allocated"))
        used.add(port["nodePort"])
    return errors


@_strategy("certificates.k8s.io", "certificatesigningrequests")
def _csr(obj: Object, old: Object | None, context: Context) -> list[fields.FieldError]:
    if old is None:
        obj["status"] = {}
    else:
        obj["spec"] = old["spec"]
    return []


def qos_class(spec: dict[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort (https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/)."""
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    given = [container.get("resources") or {} for container in containers]
    watched = ("cpu", "memory")
    if not any((r.get(kind) or {}).get(name) for r in given for kind in ("requests", "limits") for name in watched):
        return "BestEffort"
    for resources in given:
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        if any(name not in limits or not _equal(requests.get(name, limits[name]), limits[name]) for name in watched):
            return "Burstable"
    return "Guaranteed"


def _equal(one: Any, other: Any) -> bool:
    try:
        return parse_quantity(one) == parse_quantity(other)
    except ValueError:  # validation tells it
        return bool(one == other)
