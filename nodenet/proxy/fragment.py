"""The rules of one Service: chains, sets and the elements that lead to them.

service-ips, node-ports   address and port → verdict: where a packet for a Service goes
no-endpoints, no-endpoint-ports   the same keys, for what is to be refused
svc-ID    chooses among all endpoints
loc-ID    chooses among this node's endpoints
ext-ID    for what comes from outside: marks it for masquerading, or keeps its source and uses local endpoints only
ep-ID     one endpoint, only where clients stick to one (sessionAffinity), with its set aff-ID of client addresses
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from nodenet.proxy.model import Endpoint, ServicePort

MARK = "0x4000"


@dataclass(slots=True)
class Fragment:
    """Chains with their rules, sets with their declaration, and elements of maps and sets (value "" for a set)."""

    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)
    elements: dict[str, dict[str, str]] = field(default_factory=dict)

    def element(self, name: str, key: str, value: str = "") -> None:
        self.elements.setdefault(name, {})[key] = value

    def merge(self, other: "Fragment") -> None:
        self.chains.update(other.chains)
        self.sets.update(other.sets)
        for name, elements in other.elements.items():
            self.elements.setdefault(name, {}).update(elements)


def build(port: ServicePort) -> Fragment:
    """The rules of one port of a Service, in its address family."""
    fragment = Fragment()
    ip = "ip" if port.family == 4 else "ip6"
    identity = _identity(port.name, port.family)
    for address in port.cluster_ips:
        fragment.element("cluster-ips", address)
    if not port.endpoints:
        for address in (*port.cluster_ips, *port.external_ips):
            fragment.element("no-endpoints", f"{address} . {port.protocol} . {port.port}", "goto refuse")
        if port.node_port:
            fragment.element("no-endpoint-ports", f"{port.protocol} . {port.node_port}", "goto refuse")
        return fragment
    every, local, outside = f"svc-{identity}", f"loc-{identity}", f"ext-{identity}"
    _choose(fragment, every, ip, port, port.endpoints)
    if port.local_endpoints and (port.internal_local or port.external_local):
        _choose(fragment, local, ip, port, port.local_endpoints)
    to_local = f"goto {local}" if port.local_endpoints else "drop"
    for address in port.cluster_ips:
        fragment.element(
            "service-ips", f"{address} . {port.protocol} . {port.port}", to_local if port.internal_local else f"goto {every}"
        )
    if port.external_ips or port.node_port:
        fragment.chains[outside] = _outside(ip, every, to_local, port.external_local)
        for address in port.external_ips:
            fragment.element("service-ips", f"{address} . {port.protocol} . {port.port}", f"goto {outside}")
        if port.node_port:
            fragment.element("node-ports", f"{port.protocol} . {port.node_port}", f"goto {outside}")
    for endpoint in port.local_endpoints:
        fragment.element("hairpin", f"{endpoint.address} . {endpoint.address}")
    return fragment


def _outside(ip: str, every: str, to_local: str, local_only: bool) -> tuple[str, ...]:
    mark = f"meta mark set meta mark or {MARK}"
    if not local_only:
        return (mark, f"goto {every}")
    # What starts inside the cluster is not "external", whatever address it used (KEP-2086 leaves this as it was).
    return (f"{ip} saddr @cluster-cidrs goto {every}", f"fib saddr type local {mark} goto {every}", to_local)


def _choose(fragment: Fragment, chain: str, ip: str, port: ServicePort, endpoints: Iterable[Endpoint]) -> None:
    endpoints = list(endpoints)
    if not port.affinity:
        fragment.chains[chain] = (_translate(ip, port.protocol, endpoints),)
        return
    names = [f"ep-{_identity(port.name, port.family, endpoint.address, str(endpoint.port))}" for endpoint in endpoints]
    kind = "ipv4_addr" if port.family == 4 else "ipv6_addr"
    for name, endpoint in zip(names, endpoints, strict=True):
        clients = "aff" + name.removeprefix("ep")
        fragment.sets[clients] = f"type {kind}; flags dynamic,timeout; timeout {port.affinity}s;"
        fragment.chains[name] = (f"update @{clients} {{ {ip} saddr }}", _translate(ip, port.protocol, [endpoint]))
    known = [f"{ip} saddr @aff{name.removeprefix('ep')} goto {name}" for name in names]
    fragment.chains[chain] = (*known, f"numgen random mod {len(names)} vmap {{ {_numbered(f'goto {name}' for name in names)} }}")


def _translate(ip: str, protocol: str, endpoints: list[Endpoint]) -> str:
    if len(endpoints) == 1:
        return f"meta l4proto {protocol} dnat {ip} to {_socket(endpoints[0])}"
    choices = _numbered(f"{endpoint.address} . {endpoint.port}" for endpoint in endpoints)
    return f"meta l4proto {protocol} dnat {ip} addr . port to numgen random mod {len(endpoints)} map {{ {choices} }}"


def _numbered(items: Iterable[str]) -> str:
    return ", ".join(f"{index} : {item}" for index, item in enumerate(items))


def _socket(endpoint: Endpoint) -> str:
    return f"[{endpoint.address}]:{endpoint.port}" if ":" in endpoint.address else f"{endpoint.address}:{endpoint.port}"


def _identity(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
