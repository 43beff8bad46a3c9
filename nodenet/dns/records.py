"""Names of the cluster's domain and what they stand for, looked up in the informers' memory.

https://github.com/kubernetes/dns/blob/master/docs/specification.md (1.1.0). A name that exists, or has names below it, answers
"no data" for types it has not; others do not exist at all.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nodenet.network import cluster_ips
from nodenet.proxy.proxy import SERVICE_LABEL, slice_owner
from strata.kubeclient import resources
from strata.kubeclient.informer import Informers

VERSION = "1.1.0"
_PROTOCOLS = ("_tcp", "_udp", "_sctp")


@dataclass(frozen=True, slots=True)
class Record:
    """One record's data. type: A, AAAA, SRV, PTR, CNAME, TXT; value: an address, a name or a text; priority 0 always."""

    type: str
    value: str
    port: int = 0
    weight: int = 0


class Zone:
    """The cluster's domain, as the API has it now."""

    def __init__(self, informers: Informers, domain: str) -> None:
        self.domain = tuple(domain.lower().split("."))
        self._services = informers.of(resources.SERVICES)
        self._slices = informers.of(resources.ENDPOINTSLICES)
        self._namespaces = informers.of(resources.NAMESPACES)
        if not self._slices.has_index("service"):
            self._slices.add_index("service", slice_owner)
        if not self._services.has_index("address"):
            self._services.add_index("address", cluster_ips)
        if not self._slices.has_index("address"):
            self._slices.add_index("address", _slice_addresses)

    @property
    def synced(self) -> bool:
        """Whether the names are known: before, "does not exist" would be a lie."""
        return self._services.synced and self._slices.synced and self._namespaces.synced

    def holds(self, name: tuple[str, ...]) -> bool:
        return name[-len(self.domain) :] == self.domain

    def lookup(self, name: tuple[str, ...]) -> list[Record] | None:
        """All records of a lower-case name of the domain; [] for one that only has names below it, None for one that is not."""
        match name[: -len(self.domain)][::-1]:
            case () | ("svc",) | ("pod",):
                return []
            case ("dns-version",):
                return [Record("TXT", VERSION)]
            case ("svc", namespace) | ("pod", namespace):
                return [] if self._namespaces.get(namespace) else None
            case ("pod", namespace, address):
                return self._pod(namespace, address)
            case ("svc", namespace, service):
                return self._service(namespace, service)
            case ("svc", namespace, service, protocol) if protocol in _PROTOCOLS:
                return [] if self._ports(namespace, service, protocol, None) else None
            case ("svc", namespace, service, protocol, port) if protocol in _PROTOCOLS and port.startswith("_"):
                return self._ports(namespace, service, protocol, port[1:]) or None
            case ("svc", namespace, service, hostname):
                return self._hostname(namespace, service, hostname)
        return None

    def reverse(self, address: str) -> list[Record]:
        """The PTR records of an address: Services by ClusterIP, endpoints of headless Services by their own."""
        names = [self._name(service) for service in self._services.by_index("address", address)]
        for piece in self._slices.by_index("address", address):
            service = self._owner(piece)
            if service is not None and _headless(service):
                names += [
                    f"{_hostname_of(endpoint)}.{self._name(service)}"
                    for endpoint in _ready(piece)
                    if address in endpoint["addresses"]
                ]
        return [Record("PTR", name) for name in dict.fromkeys(names)]

    # --- kinds of names

    def _service(self, namespace: str, name: str) -> list[Record] | None:
        service = self._services.get(name, namespace)
        if service is None:
            return None
        spec = service.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return [Record("CNAME", str(spec.get("externalName") or "").rstrip("."))]
        if not _headless(service):
            return [_address(ip) for ip in cluster_ips(service)] + self._all_ports(service)
        addresses = [address for _, endpoint in self._endpoints(service) for address in endpoint["addresses"]]
        if not addresses:
            return None  # 2.4.1: without a ready endpoint the name does not exist
        return [_address(ip) for ip in dict.fromkeys(addresses)] + self._all_ports(service)

    def _hostname(self, namespace: str, name: str, hostname: str) -> list[Record] | None:
        service = self._services.get(name, namespace)
        if service is None or not _headless(service):
            return None
        addresses = [
            address
            for _, endpoint in self._endpoints(service)
            if _hostname_of(endpoint) == hostname
            for address in endpoint["addresses"]
        ]
        return [_address(ip) for ip in dict.fromkeys(addresses)] or None

    def _pod(self, namespace: str, dashed: str) -> list[Record] | None:
        # The address is in the name, so the name is right for any address; only its namespace has to exist.
        if self._namespaces.get(namespace) is None:
            return None
        for text in (dashed.replace("-", "."), dashed.replace("-", ":")):
            try:
                return [_address(str(ipaddress.ip_address(text)))]
            except ValueError:
                continue
        return None

    def _ports(self, namespace: str, name: str, protocol: str, port: str | None) -> list[Record]:
        """SRV records of a named port; of all ports of the protocol where port is None."""
        service = self._services.get(name, namespace)
        if service is None or (service.get("spec") or {}).get("type") == "ExternalName":
            return []
        wanted = protocol[1:].upper()
        return [
            record
            for port_name, port_protocol, record in self._port_records(service)
            if port_protocol == wanted and port_name and port in (None, port_name)
        ]

    def _all_ports(self, service: dict[str, Any]) -> list[Record]:
        return list(dict.fromkeys(record for _, _, record in self._port_records(service)))

    def _port_records(self, service: dict[str, Any]) -> Iterable[tuple[str, str, Record]]:
        name = self._name(service)
        if not _headless(service):
            ports = (service.get("spec") or {}).get("ports") or ()
            for port in ports:
                yield port.get("name") or "", port.get("protocol") or "TCP", Record("SRV", name, int(port["port"]), 100)
            return
        for piece, endpoint in self._endpoints(service):
            for port in piece.get("ports") or ():
                if port.get("port"):
                    record = Record("SRV", f"{_hostname_of(endpoint)}.{name}", int(port["port"]), 100)
                    yield port.get("name") or "", port.get("protocol") or "TCP", record

    # --- objects

    def _name(self, service: dict[str, Any]) -> str:
        metadata = service["metadata"]
        return ".".join((metadata["name"], metadata["namespace"], "svc", *self.domain))

    def _owner(self, piece: dict[str, Any]) -> dict[str, Any] | None:
        metadata = piece["metadata"]
        return self._services.get((metadata.get("labels") or {}).get(SERVICE_LABEL, ""), metadata["namespace"])

    def _endpoints(self, service: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        metadata = service["metadata"]
        pieces = self._slices.by_index("service", f"{metadata['namespace']}/{metadata['name']}")
        return [(piece, endpoint) for piece in pieces for endpoint in _ready(piece)]


def _headless(service: dict[str, Any]) -> bool:
    return (service.get("spec") or {}).get("clusterIP") == "None"


def _ready(piece: dict[str, Any]) -> list[dict[str, Any]]:
    if piece.get("addressType") not in ("IPv4", "IPv6"):
        return []
    return [
        endpoint
        for endpoint in piece.get("endpoints") or ()
        if endpoint.get("addresses") and (endpoint.get("conditions") or {}).get("ready") is not False
    ]


def _slice_addresses(piece: dict[str, Any]) -> list[str]:
    return [address for endpoint in _ready(piece) for address in endpoint["addresses"]]


def _hostname_of(endpoint: dict[str, Any]) -> str:
    """An endpoint's own name; out of its address where it has none."""
    hostname = endpoint.get("hostname")
    return str(hostname or endpoint["addresses"][0].replace(".", "-").replace(":", "-")).lower()


def _address(address: str) -> Record:
    return Record("AAAA" if ":" in address else "A", address)
