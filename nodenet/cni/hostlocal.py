"""The host-local plugin: addresses out of ranges, remembered in files of this machine.

It runs as a plugin of its own, and inside the bridge plugin, which calls `allocate` and `release` without a second process.
"""

import ipaddress
from pathlib import Path
from typing import Any

from nodenet.cni.errors import CHECK_FAILED, INVALID_CONFIG, NO_ADDRESSES, CniError
from nodenet.cni.leases import IP, Leases
from nodenet.cni.ranges import Range, candidates, parse_address, parse_network
from nodenet.cni.request import Request, objects, section, valid_attachments
from nodenet.cni.results import Result

DATA_DIR = "/var/lib/cni/networks"


def allocate(request: Request) -> Result:
    """Addresses, gateways and routes for an attachment; one address of each range set.

    The same attachment that asks again gets an error, as the spec wants: ADD without a DEL in between is the caller's fault.
    Raises CniError (code NO_ADDRESSES where a range set is exhausted); what was reserved before is released.
    """
    ipam, sets = _configuration(request)
    wanted = _wanted(request)
    # Read before anything is reserved: what is wrong in here must not cost an address.
    rest: Result = {"routes": _routes(ipam)}
    if resolv := ipam.get("resolvConf"):
        rest["dns"] = _resolv(Path(str(resolv)))
    ips: list[dict[str, Any]] = []
    with _leases(request, ipam) as leases:
        if leases.of(request.container_id, request.ifname):
            raise CniError(
                INVALID_CONFIG,
                f"{request.container_id}/{request.ifname} has addresses in network {request.network} already",
                "DEL it first",
            )
        taken = leases.taken()
        try:
            for index, ranges in enumerate(sets):
                address, span = _pick(leases, request, index, ranges, wanted, taken)
                ips.append({"address": f"{address}/{span.subnet.prefixlen}", "gateway": str(span.gateway)})
            if wanted:
                raise CniError(INVALID_CONFIG, f"requested addresses {', '.join(map(str, wanted))} are in none of the ranges")
        except BaseException:
            leases.release(request.container_id, request.ifname)
            raise
    return {"ips": ips, **rest}


def release(request: Request) -> None:
    """Frees an attachment's addresses; nothing happens where it has none."""
    ipam = section(request.config, "ipam")
    with _leases(request, ipam) as leases:
        leases.release(request.container_id, request.ifname)


def check(request: Request) -> None:
    """Raises CniError where the attachment has no address here."""
    with _leases(request, section(request.config, "ipam")) as leases:
        if not leases.of(request.container_id, request.ifname):
            raise CniError(CHECK_FAILED, f"host-local: no address is reserved for {request.container_id}/{request.ifname}")


def collect(request: Request) -> None:
    """Frees what belongs to none of the attachments that `cni.dev/valid-attachments` lists."""
    valid = valid_attachments(request.config)
    with _leases(request, section(request.config, "ipam")) as leases:
        leases.keep_only(valid)


class HostLocal:
    """The plugin as the spec calls it."""

    def add(self, request: Request) -> Result:
        return allocate(request)

    def delete(self, request: Request) -> None:
        release(request)

    def check(self, request: Request) -> None:
        check(request)

    def status(self, request: Request) -> None:
        _configuration(request)

    def collect(self, request: Request) -> None:
        collect(request)


def _leases(request: Request, ipam: dict[str, Any]) -> Leases:
    return Leases(Path(str(ipam.get("dataDir") or DATA_DIR)), request.network)


def _configuration(request: Request) -> tuple[dict[str, Any], list[list[Range]]]:
    ipam = section(request.config, "ipam")
    if not ipam:
        raise CniError(INVALID_CONFIG, "ipam is missing: host-local needs {type, ranges}")
    sets: list[list[Range]] = []
    if ipam.get("subnet"):
        sets.append([Range.parse(ipam)])
    for source in (ipam.get("ranges"), request.runtime_config.get("ipRanges")):
        if source is None:
            continue
        if not isinstance(source, list) or not all(isinstance(item, list) and item for item in source):
            raise CniError(INVALID_CONFIG, "ranges must be a list of lists of {subnet, rangeStart, rangeEnd, gateway}")
        for item in source:
            sets.append([Range.parse(spec if isinstance(spec, dict) else {}) for spec in item])
    if not sets:
        raise CniError(INVALID_CONFIG, "ipam has no ranges: give `ranges` (a list of lists) or `subnet`")
    for ranges in sets:
        if len({span.subnet.version for span in ranges}) > 1:
            raise CniError(INVALID_CONFIG, "a range set has IPv4 and IPv6 addresses: give each family a set of its own")
    flat = [span for ranges in sets for span in ranges]
    for index, one in enumerate(flat):
        if any(other.first in one or one.first in other for other in flat[index + 1 :]):
            raise CniError(INVALID_CONFIG, f"range {one} overlaps another one")
    return ipam, sets


def _wanted(request: Request) -> list[IP]:
    """Addresses that the caller chose: capability `ips`, or `IP` in CNI_ARGS."""
    values = request.runtime_config.get("ips") or []
    if not isinstance(values, list):
        raise CniError(INVALID_CONFIG, "runtimeConfig.ips must be a list")
    if request.arguments.get("IP"):
        values = [*values, *request.arguments["IP"].split(",")]
    return [parse_address(str(value).split("/")[0], "requested address") for value in values]


def _pick(
    leases: Leases, request: Request, index: int, ranges: list[Range], wanted: list[IP], taken: set[IP]
) -> tuple[IP, Range]:
    for address in wanted:
        span = next((span for span in ranges if address in span), None)
        if span is None:
            continue
        wanted.remove(address)
        if address == span.gateway or not leases.reserve(address, request.container_id, request.ifname):
            raise CniError(NO_ADDRESSES, f"requested IP address {address} is not available in range set {_text(ranges)}")
        return address, span
    for address, span in candidates(ranges, leases.last(index)):
        if address not in taken and leases.reserve(address, request.container_id, request.ifname):
            leases.remember(index, address)
            return address, span
    raise CniError(NO_ADDRESSES, f"failed to allocate for range {index}: no IP addresses available in range set: {_text(ranges)}")


def _text(ranges: list[Range]) -> str:
    return ",".join(map(str, ranges))


def _routes(ipam: dict[str, Any]) -> list[dict[str, Any]]:
    routes = []
    for route in objects(ipam, "routes"):
        checked: dict[str, Any] = {"dst": str(parse_network(route.get("dst"), "route's dst"))}
        if route.get("gw"):
            checked["gw"] = str(parse_address(route["gw"], "route's gw"))
        routes.append(checked)
    return routes


def _resolv(path: Path) -> dict[str, Any]:
    dns: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        words = line.split("#")[0].split(";")[0].split()
        match words:
            case ["nameserver", address]:
                dns.setdefault("nameservers", []).append(str(ipaddress.ip_address(address)))
            case ["domain", name]:
                dns["domain"] = name
            case ["search", *names]:
                dns["search"] = names
            case ["options", *names]:
                dns["options"] = names
    return dns
