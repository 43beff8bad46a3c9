"""The bridge plugin: a veth pair between the pod and a bridge of the node's.

The host's end has a name that follows from network, container and interface, so a DEL finds it when the pod's namespace is gone
already, and a second ADD finds the rest of a first one. All the work is netlink; see `netlink` for how a pod's namespace
is reached.
"""

import errno
import hashlib
import ipaddress
from typing import Any

from nodenet import sysctls
from nodenet.cni import exclusive, masquerade, netlink
from nodenet.cni.delegate import Ipam
from nodenet.cni.errors import CHECK_FAILED, INVALID_CONFIG, CniError
from nodenet.cni.request import Request, flag, number, valid_attachments
from nodenet.cni.results import Result
from strata.linux import rtnetlink
from strata.linux.rtnetlink import Link, Netlink

DEFAULT_BRIDGE = "cni0"


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
        self.exclusive = flag(config, "exclusive")
        self.internal = flag(config, "internal")
        self.mtu = number(config, "mtu")
        if self.exclusive:
            exclusive.check_name(self.bridge)
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

    def _attach(
        self, request: Request, settings: _Settings, leased: Result, namespace: int, host: Netlink, pod: Netlink
    ) -> Result:
        addresses = leased.get("ips") or []
        if settings.gateway and not addresses:
            raise CniError(INVALID_CONFIG, "isGateway needs addresses: give an ipam")
        bridge = _bridge(host, settings, addresses)
        host_end = host_name(request)
        with netlink.explained(f"make the interface {request.ifname} (is it there already?)"):
            _add_veth(host, host_end, request.ifname, namespace, bridge.index, settings.mtu)
        inner = netlink.existing_link(pod, request.ifname)
        outer = netlink.existing_link(host, host_end)
        if settings.hairpin:
            with netlink.explained("set the port's hairpin mode"):
                host.set_hairpin(outer.index)
        _configure_pod(pod, namespace, inner, leased, settings)
        interfaces = [
            {"name": settings.bridge, "mac": bridge.mac, "mtu": bridge.mtu},
            {"name": host_end, "mac": outer.mac, "mtu": outer.mtu},
            {"name": request.ifname, "mac": inner.mac, "mtu": inner.mtu, "sandbox": request.netns},
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
            bridge = host.link(settings.bridge)
            if bridge is None:
                raise CniError(CHECK_FAILED, f"bridge {settings.bridge} is missing")
            names = [item.get("name") for item in previous.get("interfaces") or [] if not item.get("sandbox")]
            outer = next((found for name in names[1:] if (found := host.link(str(name)))), None)
            if outer is None or outer.master != bridge.index:
                raise CniError(CHECK_FAILED, f"the host's end of {request.ifname} is not on bridge {settings.bridge}")
            inner = pod.link(request.ifname)
            if inner is None:
                raise CniError(CHECK_FAILED, f"interface {request.ifname} is missing in the container")
            present = {str(address) for address in pod.addresses(inner.index)}
            for address in previous.get("ips") or []:
                if address.get("address") not in present:
                    raise CniError(CHECK_FAILED, f"address {address.get('address')} is missing on {request.ifname}")
            _check_routes(pod, previous.get("routes") or [])

    def status(self, request: Request) -> None:
        _Settings(request)
        Ipam(request).status()

    def collect(self, request: Request) -> None:
        settings = _Settings(request)
        Ipam(request).collect()
        if settings.exclusive and not valid_attachments(request.config):
            _remove_bridge(settings.bridge)


def _bridge(host: Netlink, settings: _Settings, addresses: list[dict[str, Any]]) -> Link:
    """The bridge, made if it is missing, up, and with the gateways' addresses where it is to be the gateway."""
    found = host.link(settings.bridge)
    if found is None:
        try:
            host.add_bridge(settings.bridge, settings.mtu)
        except OSError as error:
            if error.errno != errno.EEXIST:  # another ADD was quicker
                raise CniError(INVALID_CONFIG, f"failed to make bridge {settings.bridge}: {error}") from error
        found = netlink.existing_link(host, settings.bridge)
        # A bridge takes the lowest address of its ports, so its own would change with each pod; one that is set stays.
        host.set_mac(found.index, found.mac)
    elif found.kind != "bridge":
        raise CniError(INVALID_CONFIG, f"{settings.bridge} exists and is a {found.kind or 'device'}, not a bridge")
    if not found.flags & rtnetlink.UP:
        host.set_flags(found.index, rtnetlink.UP)
    if settings.promiscuous:
        host.set_flags(found.index, rtnetlink.PROMISCUOUS)
    subnets = [ipaddress.ip_interface(item["address"]).network for item in addresses]
    if not settings.gateway:
        if settings.masquerade:
            masquerade.ensure(subnets)
        return found
    present = {address.ip for address in host.addresses(found.index)}
    for item, subnet in zip(addresses, subnets, strict=True):
        gateway = ipaddress.ip_address(item.get("gateway") or subnet[1])
        if gateway in present:
            continue
        # The address comes last: where the bridge has it, all that goes with it is there too, and no ADD has to look again.
        if settings.masquerade:
            masquerade.ensure([subnet], exclusive=settings.exclusive)
        if settings.exclusive:
            exclusive.ensure(settings.bridge, [subnet], internal=settings.internal)
        sysctls.write("net.ipv4.ip_forward" if subnet.version == 4 else "net.ipv6.conf.all.forwarding", "1")
        try:
            host.add_address(found.index, ipaddress.ip_interface((gateway, subnet.prefixlen)))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
    return found


def _remove_bridge(name: str) -> None:
    """A bridge that nobody else uses, with what was made for its subnets."""
    with netlink.connect() as host:
        found = host.link(name)
        if found is None:
            return
        subnets = [address.network for address in host.addresses(found.index) if not address.ip.is_link_local]
        exclusive.forget(name, subnets)
        masquerade.forget(subnets)
        # Last: its addresses say what else there is.
        _remove_link(host, name)


def _add_veth(host: Netlink, name: str, peer: str, namespace: int, master: int, mtu: int) -> None:
    try:
        host.add_veth(name, peer, namespace, master=master, mtu=mtu)
    except OSError as error:
        if error.errno != errno.EEXIST or host.link(name) is None:
            raise
        _remove_link(host, name)  # what is left of an attachment that died half-way
        host.add_veth(name, peer, namespace, master=master, mtu=mtu)


def _configure_pod(pod: Netlink, namespace: int, link: Link, leased: Result, settings: _Settings) -> None:
    addresses = leased.get("ips") or []
    interfaces = [ipaddress.ip_interface(item["address"]) for item in addresses]
    if any(interface.version == 6 for interface in interfaces):
        with netlink.inside(namespace):
            # Nobody else can have an address that our own store gave: no second of waiting for duplicates.
            sysctls.write(f"net.ipv6.conf.{link.name.replace('.', '/')}.accept_dad", "0")
    with netlink.explained(f"configure {link.name}"):
        pod.set_flags(link.index, rtnetlink.UP)
        for interface in interfaces:
            pod.add_address(link.index, interface)
    gateways = {interface.version: item.get("gateway") for interface, item in zip(interfaces, addresses, strict=True)}
    for route in _routes(leased, settings):
        destination = ipaddress.ip_network(route["dst"])
        gateway = route.get("gw") or gateways.get(destination.version)
        with netlink.explained(f"add the route to {destination} by {gateway}"):
            pod.replace_route(destination, link.index, ipaddress.ip_address(gateway) if gateway else None)


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


def _check_routes(pod: Netlink, routes: list[dict[str, Any]]) -> None:
    present = {str(route.destination) for route in pod.routes()}
    for route in routes:
        if str(route.get("dst")) not in present:
            raise CniError(CHECK_FAILED, f"route to {route.get('dst')} is missing in the container")


def _remove_link(socket: Netlink, name: str) -> None:
    try:
        socket.remove_link(name)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ESRCH):
            raise
