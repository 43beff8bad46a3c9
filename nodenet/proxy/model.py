"""Services as the proxy sees them: one entry a port and address family, with the endpoints that it may use now."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nodenet.network import cluster_ips

PROTOCOLS = {"TCP": "tcp", "UDP": "udp"}
_NOT_OURS = {"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"}
"""Labels of Services that another proxy serves, or none (well-known labels)."""
_DEFAULT_AFFINITY_SECONDS = 10800


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    address: str
    port: int
    local: bool


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service in one address family (4 or 6). affinity: seconds, 0 for none."""

    name: str
    family: int
    protocol: str
    port: int
    cluster_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    node_port: int
    affinity: int
    internal_local: bool
    external_local: bool
    endpoints: tuple[Endpoint, ...]
    local_endpoints: tuple[Endpoint, ...]


def service_ports(service: dict[str, Any], slices: Iterable[dict[str, Any]], node: str) -> list[ServicePort]:
    """The entries of a Service with its EndpointSlices, as node sees them; none for a headless one and an ExternalName."""
    metadata = service["metadata"]
    spec = service.get("spec") or {}
    if (metadata.get("labels") or {}).keys() & _NOT_OURS:
        return []
    addresses = cluster_ips(service)
    slices = list(slices)
    ports = []
    for family in (4, 6):
        own = tuple(address for address in addresses if _version(address) == family)
        if not own:
            continue
        for port in spec.get("ports") or ():
            protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
            if protocol is None:
                continue
            endpoints, local = _endpoints(slices, family, port.get("name") or "", port.get("protocol") or "TCP", node)
            ports.append(
                ServicePort(
                    name=f"{metadata['namespace']}/{metadata['name']}/{port.get('name') or ''}/{protocol}/{port['port']}",
                    family=family,
                    protocol=protocol,
                    port=int(port["port"]),
                    cluster_ips=own,
                    external_ips=tuple(ip for ip in spec.get("externalIPs") or () if _version(ip) == family),
                    node_port=int(port.get("nodePort") or 0) if spec.get("type") in ("NodePort", "LoadBalancer") else 0,
                    affinity=_affinity(spec),
                    internal_local=spec.get("internalTrafficPolicy") == "Local",
                    external_local=spec.get("externalTrafficPolicy") == "Local",
                    endpoints=endpoints,
                    local_endpoints=local,
                )
            )
    return ports


def _affinity(spec: dict[str, Any]) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    client = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return int(client.get("timeoutSeconds") or _DEFAULT_AFFINITY_SECONDS)


def _endpoints(
    slices: list[dict[str, Any]], family: int, port_name: str, protocol: str, node: str
) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """Those to use for everybody, and those of this node.

    Where none is ready, those that end but still serve are used (KEP-1669), in each of the two groups by itself.
    """
    ready: set[Endpoint] = set()
    ending: set[Endpoint] = set()
    for piece in slices:
        if piece.get("addressType") != f"IPv{family}":
            continue
        number = next(
            (
                port.get("port")
                for port in piece.get("ports") or ()
                if (port.get("name") or "") == port_name and (port.get("protocol") or "TCP") == protocol
            ),
            None,
        )
        if number is None:
            continue
        for item in piece.get("endpoints") or ():
            conditions = item.get("conditions") or {}
            is_ready = conditions.get("ready") is not False
            serving = conditions.get("serving") if conditions.get("serving") is not None else is_ready
            group = ready if is_ready else ending if serving and conditions.get("terminating") else None
            # An endpoint counts by its first address (EndpointSlice API); a bad one would make the whole table fail.
            address = next(iter(item.get("addresses") or ()), "")
            if group is not None and _version(address) == family:
                group.add(Endpoint(address, int(number), item.get("nodeName") == node))
    return (
        tuple(sorted(ready or ending)),
        tuple(sorted([e for e in ready if e.local] or [e for e in ending if e.local])),
    )


def _version(address: str) -> int:
    """4 or 6; 0 for what is no address that may stand in a rule."""
    if "%" in address:  # behind it `ipaddress` takes any text as a zone
        return 0
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return 0
