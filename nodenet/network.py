"""What a node has to know about its cluster's network, and which Service this node answers by itself.

It comes from flags, or from the ConfigMap kube-system/strata-network that the control plane makes.
"""

import ipaddress
from dataclasses import dataclass
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
CONFIGMAP = ("kube-system", "strata-network")
DNS_SERVICE = ("kube-system", "kube-dns")


class NetworkError(Exception):
    """The cluster's network is described wrongly; the text says where and how."""


@dataclass(frozen=True, slots=True)
class ClusterNetwork:
    """cluster: where all pods' addresses are. service: where the ClusterIPs are. domain: without a dot at its end."""

    cluster: tuple[Network, ...]
    service: tuple[Network, ...]
    domain: str = "cluster.local"

    @classmethod
    def parse(cls, cluster: str, service: str, domain: str) -> "ClusterNetwork":
        """From comma-separated CIDRs. Raises NetworkError."""
        domain = domain.strip().strip(".").lower()
        if not domain:
            raise NetworkError("the cluster's domain is empty: give one such as cluster.local")
        return cls(_networks(cluster, "clusterCIDR"), _networks(service, "serviceCIDR"), domain)

    @classmethod
    def from_configmap(
        cls, configmap: dict[str, Any], cluster: str = "", service: str = "", domain: str = ""
    ) -> "ClusterNetwork":
        """From the ConfigMap's clusterCIDR, serviceCIDR and clusterDomain, but for what flags say. Raises NetworkError."""
        data = configmap.get("data") or {}
        return cls.parse(
            cluster or data.get("clusterCIDR", ""),
            service or data.get("serviceCIDR", ""),
            domain or data.get("clusterDomain") or "cluster.local",
        )


def _networks(text: str, what: str) -> tuple[Network, ...]:
    try:
        networks = tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise NetworkError(f"{what} {text!r}: {error}") from None
    if any("%" in str(network) for network in networks):
        raise NetworkError(f"{what} {text!r}: a range has no zone")
    if not networks:
        raise NetworkError(f"{what} is empty: give it as a flag, or in the ConfigMap {'/'.join(CONFIGMAP)}")
    return networks


def is_node_dns(service: dict[str, Any]) -> bool:
    """Whether this node's own DNS server answers for a Service: kube-dns without a selector.

    With a selector somebody runs a DNS server in pods, and the Service is like any other.
    """
    metadata = service["metadata"]
    return (metadata.get("namespace"), metadata["name"]) == DNS_SERVICE and not (service.get("spec") or {}).get("selector")


def cluster_ips(service: dict[str, Any]) -> list[str]:
    """The ClusterIPs of a Service; none for a headless one and for an ExternalName."""
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return []
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or "None"]
    return [address for address in addresses if address and address != "None"]
