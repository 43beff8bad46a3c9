"""What every cluster has from its first minute on: namespaces, default roles, priority classes, and what nodes need to join."""

import base64
import ipaddress
from dataclasses import dataclass
from typing import Any

import yaml

from controlplane.apiserver.admission.pods import PRIORITY_CLASSES
from controlplane.apiserver.auth import policy
from controlplane.apiserver.request import StatusError
from controlplane.apiserver.server import ApiServer

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
CLUSTER_DOMAIN = "cluster.local"
_DNS_PORTS = [
    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
]


@dataclass(frozen=True)
class Cluster:
    """What a cluster's own objects say of it. address and port: where the API server is reached."""

    address: str
    port: int
    service_cidr: ipaddress.IPv4Network
    pod_cidr: ipaddress.IPv4Network
    ca_pem: bytes

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def service_address(self) -> str:
        """The Service `kubernetes`: the first address of the range."""
        return str(self.service_cidr[1])

    @property
    def dns_address(self) -> str:
        """The Service `kube-dns`: the tenth address of the range, as kubeadm has it."""
        return str(self.service_cidr[10])


async def bootstrap(api: ApiServer, cluster: Cluster) -> None:
    """Makes what is missing, and brings what the server owns up to date. Safe to run at every start."""
    for name in NAMESPACES:
        await ensure(api, "/api/v1/namespaces", {"metadata": {"name": name}}, update=False)
    for path, obj in policy.objects():
        await ensure(api, path, obj)
    for name, value in PRIORITY_CLASSES.items():
        description = "Used for system critical pods that must not be moved from their current node."
        if name == "system-cluster-critical":
            description = "Used for system critical pods that must run in the cluster, but can be moved to another node."
        obj = {"metadata": {"name": name}, "value": value, "description": description}
        await ensure(api, "/apis/scheduling.k8s.io/v1/priorityclasses", obj, update=False)
    await _services(api, cluster)
    await _config_maps(api, cluster)


async def ensure(api: ApiServer, path: str, obj: dict[str, Any], *, update: bool = True) -> None:
    """Creates an object, or merges it into the one that is there."""
    name = obj["metadata"]["name"]
    try:
        found = await api.call("GET", f"{path}/{name}")
    except StatusError as error:
        if error.code != 404:
            raise
        await api.call("POST", path, obj)
        return
    if update and any(found.get(key) != value for key, value in obj.items() if key != "metadata"):
        await api.call("PATCH", f"{path}/{name}", {key: value for key, value in obj.items() if key != "metadata"})


async def _services(api: ApiServer, cluster: Cluster) -> None:
    """`kubernetes` leads to the API server, `kube-dns` to the DNS that nodenet answers on every node."""
    services = "/api/v1/namespaces/{}/services"
    api_ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": cluster.port}]
    labels = {"component": "apiserver", "provider": "kubernetes"}
    metadata = {"name": "kubernetes", "labels": labels}
    spec = {"clusterIP": cluster.service_address, "ports": api_ports, "type": "ClusterIP", "sessionAffinity": "None"}
    await ensure(api, services.format("default"), {"metadata": metadata, "spec": spec}, update=False)
    endpoint_ports = [{"name": "https", "port": cluster.port, "protocol": "TCP"}]
    endpoint_slice = {
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [cluster.address], "conditions": {"ready": True}}],
        "ports": endpoint_ports,
    }
    await ensure(api, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", endpoint_slice)
    subsets = [{"addresses": [{"ip": cluster.address}], "ports": endpoint_ports}]
    mirrored = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    endpoints = {"metadata": {"name": "kubernetes", "labels": mirrored}, "subsets": subsets}
    await ensure(api, "/api/v1/namespaces/default/endpoints", endpoints)
    dns = {
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"clusterIP": cluster.dns_address, "ports": _DNS_PORTS, "type": "ClusterIP"},
    }
    await ensure(api, services.format("kube-system"), dns, update=False)


async def _config_maps(api: ApiServer, cluster: Cluster) -> None:
    maps = "/api/v1/namespaces/{}/configmaps"
    info: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "",
                "cluster": {
                    "server": cluster.server,
                    "certificate-authority-data": base64.b64encode(cluster.ca_pem).decode(),
                },
            }
        ],
        "contexts": None,
        "users": None,
        "current-context": "",
        "preferences": {},
    }
    text = yaml.safe_dump(info, sort_keys=False)
    path = maps.format("kube-public")
    await ensure(api, path, {"metadata": {"name": "cluster-info"}}, update=False)
    # The controllers add the signatures of the tokens to it, and make them anew when the text changes.
    await api.call("PATCH", f"{path}/cluster-info", {"data": {"kubeconfig": text}})
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "clusterDNS": [cluster.dns_address],
        "clusterDomain": CLUSTER_DOMAIN,
        "cgroupDriver": "cgroupfs",
        "rotateCertificates": True,
        "serverTLSBootstrap": True,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
    }
    document = yaml.safe_dump(kubelet, sort_keys=False)
    await ensure(api, maps.format("kube-system"), {"metadata": {"name": "kubelet-config"}, "data": {"kubelet": document}})
    network = {
        "clusterCIDR": str(cluster.pod_cidr),
        "serviceCIDR": str(cluster.service_cidr),
        "clusterDNS": cluster.dns_address,
        "clusterDomain": CLUSTER_DOMAIN,
    }
    await ensure(api, maps.format("kube-system"), {"metadata": {"name": "strata-network"}, "data": network})
    authentication = {"client-ca-file": cluster.ca_pem.decode()}
    name = {"name": "extension-apiserver-authentication"}
    await ensure(api, maps.format("kube-system"), {"metadata": name, "data": authentication})
