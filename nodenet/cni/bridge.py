"""The bridge plugin: a veth pair between the pod and a bridge of the node's.

The host's end has a name that follows from network, container and interface, so a DEL finds it when the pod's namespace is gone
already, and a second ADD finds the rest of a first one. All the work is netlink; see `netlink` for how a pod's namespace
is reached.
"""

import hashlib
import ipaddress
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from nodenet import sysctls
from nodenet.cni import masquerade, netlink
from nodenet.cni.delegate import Ipam
from nodenet.cni.errors import CHECK_FAILED, INVALID_CONFIG, CniError
from nodenet.cni.request import Request, flag, number
from nodenet.cni.results import Result

DEFAULT_BRIDGE = "cni0"
_ENODEV, _EEXIST, _ESRCH = 19, 17, 3
_IFF_PROMISC = 0x100


def host_name(request: Request) -> str:
    """The host's end of the pair: 15 characters at most, the same for the same attachment."""
    identity = f"{request.network}\0{request.container_id}\0{request.ifname}".encode()
    return "veth" + hashlib.sha256(identity).hexdigest()[:11]


class _Settings:
    """The bridge's own part of the configuration, checked before anything is changed."""

    def __init__(self, request: Request) -> None:
        config = request.config
        self.bridge = config.get("bridge") or DEFAULT_BRIDGE
        if not isinstance(self.bridge, str) or not 0 < len(self.bridge) <= 15 or "/" in self.bridge:
            raise CniError(INVALID_CONFIG, f"bridge {self.bridge!r} is no valid interface name")
        self.default_gateway = flag(config, "isDefaultGateway")
        self.gateway = flag(config, "isGateway") or self.default_gateway
        self.masquerade = flag(config, "ipMasq")
        self.hairpin = flag(config, "hairpinMode")
        self.promiscuous = flag(config, "promiscMode")
        self.mtu = number(config, "mtu")
        if self.hairpin and self.promiscuous:
            raise CniError(INVALID_CONFIG, "hairpinMode and promiscMode cannot both be true")
        if flag(config, "vlanFiltering") or number(config, "vlan"):
            raise CniError(INVALID_CONFIG, "vlan: this bridge plugin has no VLANs; leave vlan out")


class Bridge:
    """The plugin as the spec calls it."""

    def add(self, request: Request) -> Result:
        settings = _Settings(request)
        with netlink.namespace_of(request.netns) as namespace, netlink.connect() as host, netlink.connect(namespace) as pod:
            ipam = Ipam(request)
            leased = ipam.add()
            try:
                return self._attach(request, settings, leased, namespace, host, pod)
            except BaseException:
                _remove_link(host, host_name(request))
                ipam.delete()
                raise

    def _attach(self, request: Request, settings: _Settings, leased: Result, namespace: int, host: Any, pod: Any) -> Result:
        addresses = leased.get("ips") or []
        if settings.gateway and not addresses:
            raise CniError(INVALID_CONFIG, "isGateway needs addresses: give an ipam")
        bridge = _bridge(host, settings, addresses)
        host_end = host_name(request)
        # What is left of an attachment that died half-way.
        _remove_link(host, host_end)
        sizes = {"mtu": settings.mtu} if settings.mtu else {}
        with netlink.explained(f"make the interface {request.ifname} (is it there already?)"):
            peer = {"ifname": request.ifname, "net_ns_fd": namespace, **sizes}
            host.link("add", ifname=host_end, kind="veth", peer=peer, master=bridge["index"], state="up", **sizes)
        inner = netlink.existing_link(pod, request.ifname)
        outer = netlink.existing_link(host, host_end)
        if settings.hairpin:
            with netlink.explained("set the port's hairpin mode"):
                host.brport("set", index=outer["index"], mode=1)
        _configure_pod(pod, namespace, request.ifname, inner["index"], leased, settings)
        interfaces = [
            {"name": settings.bridge, "mac": bridge.get("address"), "mtu": bridge.get("mtu")},
            {"name": host_end, "mac": outer.get("address"), "mtu": outer.get("mtu")},
            {"name": request.ifname, "mac": inner.get("address"), "mtu": inner.get("mtu"), "sandbox": request.netns},
        ]
        return {
            "interfaces": interfaces,
            "ips": [{**address, "interface": 2} for address in addresses],
            "routes": _routes(leased, settings),
            "dns": request.config.get("dns") or leased.get("dns") or {},
        }

    def delete(self, request: Request) -> None:
        # The address is given back first: a failure after it is repaired by the next DEL, which finds the link by its name.
        Ipam(request).delete()
        with netlink.connect() as host:
            _remove_link(host, host_name(request))
        # A pair that another bridge plugin made has another name outside: its inner end takes it along.
        if request.netns:
            try:
                with netlink.namespace_of(request.netns) as namespace, netlink.connect(namespace) as pod:
                    _remove_link(pod, request.ifname)
            except CniError:
                return

    def check(self, request: Request) -> None:
        settings = _Settings(request)
        Ipam(request).check()
        previous = request.previous
        if previous is None:
            raise CniError(INVALID_CONFIG, "CHECK needs prevResult")
        with netlink.namespace_of(request.netns) as namespace, netlink.connect() as host, netlink.connect(namespace) as pod:
            bridge = netlink.link(host, settings.bridge)
            if bridge is None:
                raise CniError(CHECK_FAILED, f"bridge {settings.bridge} is missing")
            names = [item.get("name") for item in previous.get("interfaces") or [] if not item.get("sandbox")]
            outer = next((found for name in names[1:] if (found := netlink.link(host, str(name)))), None)
            if outer is None or outer.get("master") != bridge["index"]:
                raise CniError(CHECK_FAILED, f"the host's end of {request.ifname} is not on bridge {settings.bridge}")
            inner = netlink.link(pod, request.ifname)
            if inner is None:
                raise CniError(CHECK_FAILED, f"interface {request.ifname} is missing in the container")
            present = {f"{item.get('address')}/{item['prefixlen']}" for item in pod.get_addr(index=inner["index"])}
            for address in previous.get("ips") or []:
                if address.get("address") not in present:
                    raise CniError(CHECK_FAILED, f"address {address.get('address')} is missing on {request.ifname}")
            _check_routes(pod, previous.get("routes") or [])

    def status(self, request: Request) -> None:
        _Settings(request)
        Ipam(request).status()

    def collect(self, request: Request) -> None:
        Ipam(request).collect()


def _bridge(host: Any, settings: _Settings, addresses: list[dict[str, Any]]) -> Any:
    """The bridge, made if it is missing, up, and with the gateways' addresses where it is to be the gateway."""
    found = netlink.link(host, settings.bridge)
    if found is None:
        sizes = {"mtu": settings.mtu} if settings.mtu else {}
        try:
            host.link("add", ifname=settings.bridge, kind="bridge", state="up", **sizes)
        except NetlinkError as error:
            if error.code != _EEXIST:  # another ADD was quicker
                raise CniError(INVALID_CONFIG, f"failed to make bridge {settings.bridge}: {error}") from error
        found = netlink.existing_link(host, settings.bridge)
        # A bridge takes the lowest address of its ports, so its own would change with each pod; one that is set stays.
        host.link("set", index=found["index"], address=found.get("address"))
    elif (kind := (found.get("linkinfo") or {}).get("kind")) != "bridge":
        raise CniError(INVALID_CONFIG, f"{settings.bridge} exists and is a {kind or 'device'}, not a bridge")
    if not found["flags"] & 1:
        host.link("set", index=found["index"], state="up")
    if settings.promiscuous:
        host.link("set", index=found["index"], flags=_IFF_PROMISC, change=_IFF_PROMISC)
    subnets = [ipaddress.ip_interface(item["address"]).network for item in addresses]
    if not settings.gateway:
        if settings.masquerade:
            masquerade.ensure(subnets)
        return found
    present = {str(item.get("address")) for item in host.get_addr(index=found["index"])}
    for item, subnet in zip(addresses, subnets, strict=True):
        gateway = item.get("gateway") or str(subnet[1])
        if gateway in present:
            continue
        # The address comes last: where the bridge has it, all that goes with it is there too, and no ADD has to look again.
        if settings.masquerade:
            masquerade.ensure([subnet])
        sysctls.write("net.ipv4.ip_forward" if subnet.version == 4 else "net.ipv6.conf.all.forwarding", "1")
        try:
            flags = {"flags": 2} if subnet.version == 6 else {}  # IFA_F_NODAD
            host.addr("add", index=found["index"], address=gateway, prefixlen=subnet.prefixlen, **flags)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
    return found


def _configure_pod(pod: Any, namespace: int, ifname: str, index: int, leased: Result, settings: _Settings) -> None:
    addresses = leased.get("ips") or []
    if any(ipaddress.ip_interface(item["address"]).version == 6 for item in addresses):
        with netlink.inside(namespace):
            # Nobody else can have an address that our own store gave: no second of waiting for duplicates.
            sysctls.write(f"net.ipv6.conf.{ifname.replace('.', '/')}.accept_dad", "0")
    with netlink.explained(f"configure {ifname}"):
        pod.link("set", index=index, state="up")
        for item in addresses:
            interface = ipaddress.ip_interface(item["address"])
            flags = {"flags": 2} if interface.version == 6 else {}
            pod.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags)
    gateways = {ipaddress.ip_interface(item["address"]).version: item.get("gateway") for item in addresses}
    for route in _routes(leased, settings):
        destination = ipaddress.ip_network(route["dst"])
        gateway = route.get("gw") or gateways.get(destination.version)
        with netlink.explained(f"add the route to {destination} by {gateway}"):
            fields = {"gateway": gateway} if gateway else {}
            pod.route("replace", dst=str(destination), oif=index, **fields)


def _routes(leased: Result, settings: _Settings) -> list[dict[str, Any]]:
    """The pod's routes: those of the address management, and default routes where they are wanted and missing."""
    routes = list(leased.get("routes") or [])
    if not settings.default_gateway:
        return routes
    known = {route["dst"] for route in routes}
    for item in leased.get("ips") or []:
        interface = ipaddress.ip_interface(item["address"])
        default = "0.0.0.0/0" if interface.version == 4 else "::/0"
        if default not in known:
            routes.append({"dst": default, "gw": item.get("gateway") or str(interface.network[1])})
    return routes


def _check_routes(pod: Any, routes: list[dict[str, Any]]) -> None:
    present = set()
    for item in pod.get_routes(table=254):
        default = "0.0.0.0" if item["family"] == 2 else "::"
        present.add(f"{item.get('dst') or default}/{item['dst_len']}")
    for route in routes:
        if str(route.get("dst")) not in present:
            raise CniError(CHECK_FAILED, f"route to {route.get('dst')} is missing in the container")


def _remove_link(socket: Any, name: str) -> None:
    try:
        socket.link("del", ifname=name)
    except NetlinkError as error:
        if error.code not in (_ENODEV, _ESRCH):
            raise
