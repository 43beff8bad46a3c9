"""Routes to the pods of the other nodes, by way of the nodes' own addresses (all nodes on one link).

The routes carry a protocol number of their own, so what is ours and no longer wanted is known after a restart too. What pods send
to somewhere outside the cluster leaves with the node's address.
"""

import asyncio
import contextlib
import ipaddress
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any

from nodenet import nft, sysctls
from nodenet.network import ClusterNetwork
from strata.kubeclient import resources
from strata.kubeclient.informer import Informers
from strata.telemetry import logs

PROTOCOL = 83
"""Our number among routing protocols (rtnetlink(7)); 83 is given to nobody."""
TABLE = "strata-masquerade"
_RETRY_SECONDS = 10.0
_CHECK_SECONDS = 30.0
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_log = logs.get("nodenet.routes")

Routes = dict[str, str]


def pod_cidrs(node: dict[str, Any]) -> list[str]:
    """A node's ranges of pod addresses, checked; what is no CIDR is left out."""
    spec = node.get("spec") or {}
    cidrs = []
    for text in spec.get("podCIDRs") or [spec.get("podCIDR")]:
        with contextlib.suppress(ValueError):
            cidrs.append(str(ipaddress.ip_network(text or "none")))
    return [cidr for cidr in cidrs if "%" not in cidr]


def internal_ips(node: dict[str, Any]) -> list[str]:
    """A node's addresses inside the cluster; a kubelet may write any text there, so what is no address is left out."""
    found = []
    for item in (node.get("status") or {}).get("addresses") or ():
        if item.get("type") == "InternalIP":
            with contextlib.suppress(ValueError):
                found.append(str(ipaddress.ip_address(item.get("address"))))
    return [address for address in found if "%" not in address]


def wanted(nodes: list[dict[str, Any]], own: str) -> Routes:
    """Destination to gateway, for every node but our own that has both in the same family."""
    routes = {}
    for node in nodes:
        if node["metadata"]["name"] == own:
            continue
        for cidr in pod_cidrs(node):
            version = ipaddress.ip_network(cidr).version
            gateway = next((ip for ip in internal_ips(node) if ipaddress.ip_address(ip).version == version), None)
            if gateway:
                routes[cidr] = gateway
    return routes


@dataclass
class Router:
    """Reconciles routes, forwarding and the masquerade rule of one node; `run` until cancelled."""

    informers: Informers
    network: ClusterNetwork
    node: str
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _masquerading: str = ""

    async def run(self) -> None:
        nodes = self.informers.of(resources.NODES)
        nodes.add_handler(self._changed, self._updated, self._changed)
        await nodes.wait_synced()
        await asyncio.to_thread(prepare_kernel)
        while True:
            self._wake.clear()
            done = await asyncio.to_thread(self._reconcile, nodes.list())
            # A gateway that is not on our link yet, or what somebody removed: looked at again now and then.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _CHECK_SECONDS if done else _RETRY_SECONDS)

    def _changed(self, _: dict[str, Any]) -> None:
        self._wake.set()

    def _updated(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        # Node status changes every few seconds; routes follow from two fields of it.
        if (pod_cidrs(old), internal_ips(old)) != (pod_cidrs(new), internal_ips(new)):
            self._wake.set()

    def _reconcile(self, nodes: list[dict[str, Any]]) -> bool:
        done = reconcile(wanted(nodes, self.node))
        try:
            # The first time it is replaced: it may be that of another range.
            if not self._masquerading or not nft.has_table(self._masquerading, TABLE):
                nft.apply(masquerade_script(self.network))
                self._masquerading = "ip" if self.network.cluster[0].version == 4 else "ip6"
        except nft.NftError as error:
            _log.error("nft refused the masquerade rule", error=error)
            return False
        return done


def reconcile(routes: Routes) -> bool:
    """Makes the routes of our protocol exactly these. Returns False where the kernel refused one, which is logged."""
    # Imported late, also below and in `dns`: it takes longer than all the rest of the daemon's start.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    complete = True
    with IPRoute() as ipr:
        present = _present(ipr)
        for destination, gateway in present.items():
            if destination not in routes:
                with contextlib.suppress(NetlinkError):
                    ipr.route("del", dst=destination, gateway=gateway, proto=PROTOCOL)
                _log.info("removed route", destination=destination, gateway=gateway)
        for destination, gateway in routes.items():
            if present.get(destination) == gateway:
                continue
            try:
                ipr.route("replace", dst=destination, gateway=gateway, proto=PROTOCOL)
                _log.info("added route", destination=destination, gateway=gateway)
            except NetlinkError as error:
                complete = False
                _log.warning("cannot add route: is the node on the same link?", destination=destination, gateway=gateway,
                             error=os.strerror(error.code))  # fmt: skip
    return complete


def _present(ipr: Any) -> Routes:
    routes = {}
    for message in ipr.get_routes(proto=PROTOCOL, table=254):
        if message["proto"] == PROTOCOL and (gateway := message.get("gateway")):
            routes[f"{message.get('dst')}/{message['dst_len']}"] = gateway
    return routes


def prepare_kernel() -> None:
    """Forwarding, and packets between two pods of one bridge shown to nftables: else the answer to a translated connection
    would go from pod to pod directly, and come from an address that the client does not know."""
    sysctls.write("net.ipv4.ip_forward", "1")
    with contextlib.suppress(OSError):  # a kernel without IPv6
        sysctls.write("net.ipv6.conf.all.forwarding", "1")
    try:
        sysctls.write("net.bridge.bridge-nf-call-iptables", "1")
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["modprobe", "br_netfilter"], check=False, capture_output=True, timeout=30)
        try:
            sysctls.write("net.bridge.bridge-nf-call-iptables", "1")
        except FileNotFoundError:
            _log.error("no bridge netfilter in this kernel: a pod will not reach Services whose endpoints are on its own node; "
                       "load the module br_netfilter")  # fmt: skip
            return
    with contextlib.suppress(OSError):
        sysctls.write("net.bridge.bridge-nf-call-ip6tables", "1")


def masquerade_script(network: ClusterNetwork) -> str:
    """The script of the rule for pods' packets that leave the cluster."""
    script = ""
    for family in (4, 6):
        cidrs = ", ".join(str(item) for item in network.cluster if item.version == family)
        if not cidrs:
            continue
        ip = "ip" if family == 4 else "ip6"
        script += (
            f"add table {ip} {TABLE}\ndelete table {ip} {TABLE}\ntable {ip} {TABLE} {{\n"
            f"  chain postrouting {{\n    type nat hook postrouting priority srcnat + 5\n"
            f"    {ip} saddr {{ {cidrs} }} {ip} daddr != {{ {cidrs}, {_MULTICAST[family]} }} masquerade\n  }}\n}}\n"
        )
    return script


def cleanup() -> None:
    """Removes our routes and the masquerade rule from this network namespace. Raises NftError."""
    reconcile({})
    for ip in ("ip", "ip6"):
        nft.delete_table(ip, TABLE)
