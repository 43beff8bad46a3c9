"""Address ranges of the host-local plugin (https://www.cni.dev/plugins/current/ipam/host-local/)."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nodenet.cni.errors import INVALID_CONFIG, CniError
from nodenet.cni.leases import IP

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses first to last of a subnet, of which the gateway is never given."""

    subnet: Network
    first: IP
    last: IP
    gateway: IP

    @classmethod
    def parse(cls, spec: dict[str, Any]) -> "Range":
        """subnet, and rangeStart, rangeEnd, gateway where they differ from the subnet's first, last and first address.

        Raises CniError for addresses that do not fit together.
        """
        subnet = parse_network(spec.get("subnet"), "subnet")
        if subnet.num_addresses < 4:
            raise CniError(INVALID_CONFIG, f"subnet {subnet} is too small to give addresses from")
        # The last address of an IPv4 subnet is its broadcast address; the first is the network in both families.
        highest = subnet[-2] if subnet.version == 4 else subnet[-1]
        first = _address(spec, "rangeStart", subnet[1], subnet)
        last = _address(spec, "rangeEnd", highest, subnet)
        gateway = _address(spec, "gateway", subnet[1], subnet)
        if int(first) > int(last):
            raise CniError(INVALID_CONFIG, f"rangeStart {first} comes after rangeEnd {last}")
        return cls(subnet, first, last, gateway)

    def __contains__(self, address: IP) -> bool:
        return address.version == self.subnet.version and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_network(value: Any, what: str) -> Network:
    try:
        network = ipaddress.ip_network(value, strict=False)
        # Behind "%" any text is a zone, and a network goes into nft's rules.
        if "%" in str(network):
            raise ValueError
        return network
    except (ValueError, TypeError):
        raise CniError(INVALID_CONFIG, f"{what} {value!r} is no subnet in CIDR form") from None


def parse_address(value: Any, what: str) -> IP:
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        return ipaddress.ip_address(value)
    except ValueError:
        raise CniError(INVALID_CONFIG, f"{what} {value!r} is no IP address") from None


def _address(spec: dict[str, Any], key: str, default: IP, subnet: Network) -> IP:
    if not spec.get(key):
        return default
    address = parse_address(spec[key], key)
    if address not in subnet:
        raise CniError(INVALID_CONFIG, f"{key} {address} is not in subnet {subnet}")
    return address


def candidates(ranges: list[Range], last: IP | None) -> Iterator[tuple[IP, Range]]:
    """Every address once, beginning behind the one given last: a released address stays unused for as long as can be."""
    start = next((index for index, span in enumerate(ranges) if last is not None and last in span), None)
    if start is None or last is None:
        for span in ranges:
            yield from _span(span, int(span.first), int(span.last))
        return
    yield from _span(ranges[start], int(last) + 1, int(ranges[start].last))
    for span in ranges[start + 1 :] + ranges[:start]:
        yield from _span(span, int(span.first), int(span.last))
    yield from _span(ranges[start], int(ranges[start].first), int(last))


def _span(span: Range, first: int, last: int) -> Iterator[tuple[IP, Range]]:
    kind = type(span.first)
    for value in range(first, last + 1):
        if value != int(span.gateway):
            yield kind(value), span
