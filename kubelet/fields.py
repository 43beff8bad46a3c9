"""What the downward API tells a container: fields of its pod (fieldRef) and its resources (resourceFieldRef)."""

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import Any

from strata.kubeclient.quantity import parse_quantity

_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['(.+)'\]$")


class FieldError(ValueError):
    """A reference that names nothing the downward API has."""


@dataclass(frozen=True)
class Facts:
    """What is known of the node, and of the pod only at run time."""

    node_name: str = ""
    host_ip: str = ""
    pod_ips: tuple[str, ...] = ()
    cpu_milli: int = 0
    memory_bytes: int = 0
    ephemeral_bytes: int = 0


def field_value(pod: dict[str, Any], path: str, facts: Facts) -> str:
    """The value of a fieldRef. Raises FieldError for a path that the downward API does not have."""
    meta = pod["metadata"]
    if match := _SUBSCRIPT.match(path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        values = meta.get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{_quoted(values[key])}"' for key in sorted(values))
    spec = pod["spec"]
    simple = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta.get("namespace", ""),
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName") or facts.node_name,
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
        "status.podIP": facts.pod_ips[0] if facts.pod_ips else "",
        "status.podIPs": ",".join(facts.pod_ips),
    }
    if path not in simple:
        raise FieldError(f"unsupported fieldPath: {path}")
    return str(simple[path])


def resource_value(container: dict[str, Any], reference: dict[str, Any], facts: Facts) -> str:
    """The value of a resourceFieldRef: an unset limit is what the node has. Raises FieldError."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    values = limits if kind == "limits" else {**limits, **requests} if kind == "requests" else None
    if values is None or not name:
        raise FieldError(f"unsupported container resource: {reference['resource']}")
    if name in values:
        amount = parse_quantity(values[name])
    elif kind == "limits" and name in ("cpu", "memory", "ephemeral-storage"):
        capacity = {"cpu": facts.cpu_milli, "memory": facts.memory_bytes, "ephemeral-storage": facts.ephemeral_bytes}[name]
        amount = parse_quantity(f"{capacity}m" if name == "cpu" else capacity)
    else:
        amount = parse_quantity(0)
    divisor = parse_quantity(reference.get("divisor") or 1) or parse_quantity(1)
    return str(int((amount / divisor).to_integral_value(ROUND_CEILING)))


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
