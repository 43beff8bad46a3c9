"""The portmap plugin: host ports, as elements of maps in one nftables table.

The rules are static; a pod's host ports are two or three elements, each with a comment that says whose it is. A pod without
host ports makes no nft call at all.
"""

import ipaddress
from dataclasses import dataclass
from typing import Any

from nodenet import nft, sysctls
from nodenet.cni.errors import CHECK_FAILED, INTERNAL, INVALID_CONFIG, CniError
from nodenet.cni.ranges import parse_address
from nodenet.cni.request import Request, flag, objects, valid_attachments
from nodenet.cni.results import Result

TABLE = "strata-hostports"
_PROTOCOLS = ("tcp", "udp")

_RULES = f"""
add table ip {TABLE}
add map ip {TABLE} any-address {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map ip {TABLE} one-address {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add set ip {TABLE} hairpin {{ type ipv4_addr . ipv4_addr; }}
add chain ip {TABLE} translate
add chain ip {TABLE} guard {{ type filter hook prerouting priority raw; policy accept; }}
add chain ip {TABLE} prerouting {{ type nat hook prerouting priority dstnat - 5; policy accept; }}
add chain ip {TABLE} output {{ type nat hook output priority -105; policy accept; }}
add chain ip {TABLE} postrouting {{ type nat hook postrouting priority srcnat - 5; policy accept; }}
flush chain ip {TABLE} translate
flush chain ip {TABLE} guard
flush chain ip {TABLE} prerouting
flush chain ip {TABLE} output
flush chain ip {TABLE} postrouting
add rule ip {TABLE} translate dnat ip addr . port to ip daddr . meta l4proto . th dport map @one-address
add rule ip {TABLE} translate dnat ip addr . port to meta l4proto . th dport map @any-address
add rule ip {TABLE} guard iifname != "lo" ip daddr 127.0.0.0/8 drop
add rule ip {TABLE} prerouting fib daddr type local jump translate
add rule ip {TABLE} output fib daddr type local jump translate
add rule ip {TABLE} postrouting ct status dnat ip saddr . ip daddr @hairpin masquerade
add rule ip {TABLE} postrouting ct status dnat ip saddr 127.0.0.0/8 oifname != "lo" masquerade
"""


@dataclass(frozen=True, slots=True)
class _Mapping:
    protocol: str
    host_ip: str
    host_port: int
    container_port: int

    def map(self) -> str:
        return "one-address" if self.host_ip else "any-address"

    def key(self) -> str:
        key = f"{self.protocol} . {self.host_port}"
        return f"{self.host_ip} . {key}" if self.host_ip else key


class Portmap:
    """The plugin as the spec calls it: it stands behind the plugin that made the interface, and passes on its result."""

    def add(self, request: Request) -> Result:
        previous = request.previous
        if previous is None:
            raise CniError(INVALID_CONFIG, "portmap needs prevResult: chain it behind the plugin that makes the interface")
        mappings = _mappings(request)
        if mappings:
            address = _container_address(previous)
            _allow_localhost(previous)
            # One transaction, so that a port that somebody has already leaves nothing behind.
            elements = "".join(
                f'create element ip {TABLE} {item.map()} {{ {item.key()} comment "{_owner(request)}" : '
                f"{address} . {item.container_port} }}\n"
                for item in mappings
            )
            _apply(_RULES + f"add element ip {TABLE} hairpin {{ {address} . {address} }}\n" + elements, mappings)
        return previous

    def delete(self, request: Request) -> None:
        if objects(request.runtime_config, "portMappings"):
            _remove(lambda owner: owner == _owner(request))

    def check(self, request: Request) -> None:
        mappings = _mappings(request)
        if not mappings:
            return
        present = {(name, key) for name, key, _, owner in _elements() if owner == _owner(request)}
        for item in mappings:
            if (item.map(), item.key()) not in present:
                raise CniError(CHECK_FAILED, f"host port {item.host_port}/{item.protocol} has no rule")

    def status(self, request: Request) -> None:
        flag(request.config, "snat", True)

    def collect(self, request: Request) -> None:
        valid = {f"{container_id}/{ifname}" for container_id, ifname in valid_attachments(request.config)}
        # The table is the node's: elements of other networks are theirs to collect.
        network = request.network + "/"
        _remove(lambda owner: owner.startswith(network) and owner.removeprefix(network) not in valid)


def _owner(request: Request) -> str:
    # nft cuts comments at 128 characters; a longer owner would never be found again.
    owner = f"{request.network}/{request.container_id}/{request.ifname}"
    if '"' in owner or "\\" in owner:
        raise CniError(
            INVALID_CONFIG, f"interface name {request.ifname!r} has a quote or a backslash: host ports need another one"
        )
    if len(owner) > 127:
        raise CniError(INVALID_CONFIG, "network name and container ID are too long together (127 characters at most)")
    return owner


def _mappings(request: Request) -> list[_Mapping]:
    mappings = []
    for item in objects(request.runtime_config, "portMappings"):
        host_port: Any = item.get("hostPort")
        container_port: Any = item.get("containerPort")
        if not host_port:  # a port that is only announced
            continue
        protocol = str(item.get("protocol") or "tcp").lower()
        if protocol not in _PROTOCOLS:
            raise CniError(INVALID_CONFIG, f"portMappings: protocol {protocol!r} is not tcp or udp")
        for value in (host_port, container_port):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
                raise CniError(INVALID_CONFIG, f"portMappings: {value!r} is no port (1 to 65535)")
        host_ip = item.get("hostIP") or ""
        if host_ip:
            parsed = parse_address(host_ip, "portMappings: hostIP")
            if parsed.is_unspecified:
                host_ip = ""
            elif parsed.version == 6:
                raise CniError(INVALID_CONFIG, f"portMappings: hostIP {host_ip}: host ports are IPv4 only")
            else:
                host_ip = str(parsed)
        mappings.append(_Mapping(protocol, host_ip, host_port, container_port))
    return mappings


def _container_address(previous: dict[str, Any]) -> str:
    interfaces = objects(previous, "interfaces")
    for item in objects(previous, "ips"):
        index = item.get("interface")
        if isinstance(index, int) and 0 <= index < len(interfaces) and not interfaces[index].get("sandbox"):
            continue
        interface = ipaddress.ip_interface(item["address"])
        if interface.version == 4:
            return str(interface.ip)
    raise CniError(INVALID_CONFIG, "host ports need an IPv4 address in prevResult, and it has none")


def _allow_localhost(previous: dict[str, Any]) -> None:
    """Lets 127.0.0.1:HOSTPORT be routed to the pod; the `guard` chain keeps others from using it to reach the node's own."""
    for item in objects(previous, "interfaces"):
        if not item.get("sandbox"):
            try:
                sysctls.write(f"net.ipv4.conf.{str(item.get('name')).replace('.', '/')}.route_localnet", "1")
            except OSError:
                continue  # an interface of the result that is not here (any more)


def _elements() -> list[tuple[str, str, str, str]]:
    """(map, key, address, owner) of every element."""
    found = []
    for entry in nft.list_table("ip", TABLE) or []:
        table_map = entry.get("map")
        if not table_map:
            continue
        for key, value in table_map.get("elem", []):
            if isinstance(key, dict) and "elem" in key:
                element = key["elem"]
                parts = element["val"]["concat"]
                found.append(
                    (table_map["name"], " . ".join(map(str, parts)), str(value["concat"][0]), element.get("comment", ""))
                )
    return found


def _remove(chosen: Any) -> None:
    try:
        elements = _elements()
        gone = [element for element in elements if chosen(element[3])]
        if not gone:
            return
        kept = {address for _, _, address, owner in elements if not chosen(owner)}
        script = "".join(f"delete element ip {TABLE} {name} {{ {key} }}\n" for name, key, _, _ in gone)
        for address in {address for _, _, address, _ in gone} - kept:
            script += f"delete element ip {TABLE} hairpin {{ {address} . {address} }}\n"
        nft.apply(script)
    except nft.NftError as error:
        raise CniError(INTERNAL, "failed to remove host ports", str(error)) from error


def _apply(script: str, mappings: list[_Mapping]) -> None:
    try:
        nft.apply(script)
    except nft.NftError as error:
        if "File exists" in str(error):
            ports = ", ".join(f"{item.host_port}/{item.protocol}" for item in mappings)
            raise CniError(INTERNAL, f"host port {ports} is in use by another container", str(error)) from error
        raise CniError(INTERNAL, "failed to set up host ports", str(error)) from error
