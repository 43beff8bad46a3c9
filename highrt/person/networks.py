"""A person's networks: a bridge each, made from a CNI configuration of their own, and the names of those who are on it.

ROOT/networks/NAME.conflist is a network, whole or not there. CNI makes the bridge with the first attachment; `remove` has it
taken away (GC). Names are lines in the members' /etc/hosts, which are written again when somebody comes or goes: they resolve
also while no daemon runs, and nothing listens on any bridge.
"""

import asyncio
import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from highrt.cni.errors import CniError
from highrt.person.flags import NAME, NETWORK
from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.extras import NetworkChoice
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, Owner, Pod
from highrt.pods.sandboxes import networks_of
from strata.linux.rtnetlink import Netlink
from strata.telemetry import logs

log = logs.get("highrt.person")

BUILT_IN = {"bridge": "bridge", "host": "host", "none": "null"}
"""The node's own, by the names that people know, and their drivers. They are no configurations here."""

_POOLS = (ipaddress.ip_network("10.89.0.0/16"), ipaddress.ip_network("10.90.0.0/15"), ipaddress.ip_network("10.92.0.0/14"))
_PREFIX = 24
_POOL6 = ipaddress.ip_network("fd89:89::/32")
_MTU = "com.docker.network.driver.mtu"

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class NetworkRecord:
    """What is kept of a network beside its plugins. subnets, gateways: in the same order."""

    name: str
    bridge: str
    subnets: Sequence[str]
    gateways: Sequence[str]
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    created_at_ns: int = 0


@dataclass(frozen=True)
class Wish:
    """What `network create` asks for. ranges: where addresses are taken from, each within one of the subnets."""

    name: str
    subnets: Sequence[str] = ()
    gateways: Sequence[str] = ()
    ranges: Sequence[str] = ()
    internal: bool = False
    ipv6: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


class Networks:
    """All networks that a person has made. root: the daemon's."""

    def __init__(self, root: Path, pods: PodManager) -> None:
        self._folder, self._leases, self._pods = root / "networks", root / "networks" / "leases", pods
        self._changing = asyncio.Lock()

    def all(self) -> list[NetworkRecord]:
        """Sorted by name."""
        return [self._read(path) for path in sorted(self._folder.glob("*.conflist"))]

    def find(self, name: str) -> NetworkRecord:
        """Raises NotFound."""
        try:
            return self._read(self._file(name))
        except (FileNotFoundError, InvalidArgument):
            raise NotFound(f"there is no network {name} (highrt network ls lists them)") from None

    def _read(self, path: Path) -> NetworkRecord:
        return NetworkRecord(**json.loads(path.read_text())["strata"])

    async def create(self, wish: Wish) -> NetworkRecord:
        """Raises InvalidArgument, AlreadyExists, FailedPrecondition where no subnet is free."""
        async with self._changing:
            file = self._file(wish.name)
            if wish.name in BUILT_IN or file.exists():
                raise AlreadyExists(f"there is a network {wish.name} already")
            unknown = sorted(set(wish.options) - {_MTU})
            if unknown:
                raise InvalidArgument(f"network option {unknown[0]}: not known; there is {_MTU}")
            subnets = [_network(text) for text in wish.subnets]
            taken = self._taken()
            for subnet in subnets:
                if other := next((other for other in taken if _overlap(subnet, other)), None):
                    raise FailedPrecondition(f"subnet {subnet} overlaps {other}, which is in use: take another")
                taken.append(subnet)
            if not any(subnet.version == 4 for subnet in subnets):
                subnets.append(_free(_POOLS, _PREFIX, taken))
            if wish.ipv6 and not any(subnet.version == 6 for subnet in subnets):
                subnets.append(_free((_POOL6,), 64, taken))
            gateways = [_gateway(subnet, wish.gateways) for subnet in subnets]
            if lost := [text for text in wish.gateways if text not in gateways]:
                raise InvalidArgument(f"gateway {lost[0]}: an address within one of the subnets")
            record = NetworkRecord(
                wish.name, f"st-{self.identity(wish.name)[:12]}", [str(subnet) for subnet in subnets], gateways, wish.internal,
                dict(wish.labels), dict(wish.options), time.time_ns(),
            )  # fmt: skip
            self._write(file, self._conflist(record, wish.ranges))
            return record

    async def remove(self, name: str) -> None:
        """With its bridge. Raises NotFound, FailedPrecondition where a container is on it or it is built in, PodError."""
        if name in BUILT_IN:
            raise FailedPrecondition(f"the network {name} is built in and cannot be removed")
        async with self._changing:
            record = self.find(name)
            if users := self.members(name):
                names = ", ".join(sorted(pod.config.metadata.name for pod, _ in users))
                raise FailedPrecondition(f"network {name} is used by {names}: disconnect or remove them first")
            if self._pods.network.uses(name):
                raise FailedPrecondition(f"network {name}: a container is just being put on it or taken off")
            try:
                await self._pods.network.collect_named(name)
            except CniError as error:
                raise PodError(f"network {name}: its bridge {record.bridge} cannot be removed: {error}") from error
            self._file(name).unlink()

    def identity(self, name: str) -> str:
        """A network's ID. It is known by its name; people's scripts expect an ID, too."""
        return hashlib.sha256(f"{self._folder}/{name}".encode()).hexdigest()

    def members(self, name: str) -> list[tuple[Pod, NetworkChoice]]:
        """The person's pods that are on a network, or will be when they start."""
        wanted = _inner(name)
        return [(pod, choice) for pod, choice in self._choices() if choice.name == wanted]

    def _choices(self) -> Iterator[tuple[Pod, NetworkChoice]]:
        for pod in self._pods.pods(Owner.PERSON):
            if has_networks(pod):
                yield from ((pod, choice) for choice in networks_of(pod))

    def names(self, pod: Pod) -> list[str]:
        """What a person's pod is on, by the names that people know."""
        if pod.owner is Owner.PERSON and has_networks(pod):
            return [choice.name or "bridge" for choice in networks_of(pod)]
        return [pod.config.annotations[NETWORK]] if NETWORK in pod.config.annotations else []

    def choose(self, names: Sequence[str], address: str, aliases: Sequence[str]) -> list[NetworkChoice]:
        """What a new container is attached to. Raises NotFound, InvalidArgument."""
        if len(set(names)) < len(names):
            raise InvalidArgument("--network: a network is named twice")
        chosen = []
        for number, name in enumerate(names):
            asked = (address, tuple(aliases)) if number == 0 else ("", ())
            chosen.append(self._choice(name, f"eth{number}", *asked))
        return chosen

    def _choice(self, name: str, interface: str, address: str, aliases: tuple[str, ...]) -> NetworkChoice:
        if name in ("host", "none"):
            raise InvalidArgument(f"network {name} cannot be one of several")
        if name == "bridge" and (address or aliases):
            raise InvalidArgument("addresses and aliases are for networks that you made (highrt network create)")
        for alias in aliases:
            if not NAME.fullmatch(alias):
                raise InvalidArgument(f"alias {alias!r}: not a host's name")
        if name != "bridge":
            subnets = self.find(name).subnets
            if address and not any(_within(address, subnet) for subnet in subnets):
                raise InvalidArgument(f"address {address}: not within network {name}, {', '.join(subnets)}")
        return NetworkChoice(_inner(name), interface, address, aliases)

    async def connect(self, pod: Pod, name: str, address: str, aliases: Sequence[str]) -> None:
        """Raises NotFound, InvalidArgument, AlreadyExists, FailedPrecondition, PodError."""
        self._check_changeable(pod)
        async with self._changing:
            there = networks_of(pod)
            if any(choice.name == _inner(name) for choice in there):
                raise AlreadyExists(f"container {pod.config.metadata.name} is on network {name} already")
            used = {choice.interface for choice in there}
            interface = next(each for number in range(len(used) + 1) if (each := f"eth{number}") not in used)
            await self._pods.connect_pod(pod.id, self._choice(name, interface, address, tuple(aliases)))
        self.tell_names(name)

    async def disconnect(self, pod: Pod, name: str) -> None:
        """Raises NotFound, FailedPrecondition, PodError."""
        self._check_changeable(pod)
        async with self._changing:
            choice = next((choice for choice in networks_of(pod) if choice.name == _inner(name)), None)
            if choice is None:
                raise NotFound(f"container {pod.config.metadata.name} is not on network {name}")
            await self._pods.disconnect_pod(pod.id, choice)
        self.tell_names(name)
        self._tell(pod)

    def _check_changeable(self, pod: Pod) -> None:
        if pod.owner is not Owner.PERSON or not has_networks(pod):
            raise FailedPrecondition(f"container {pod.config.metadata.name} has no networks that can be changed")

    # names

    def tell_names(self, *names: str) -> None:
        """Writes the names of all who are on these networks into the files of each of them."""
        told = set()
        for name in names:
            for pod, _ in self.members(name) if name not in BUILT_IN else ():
                if pod.id not in told:
                    told.add(pod.id)
                    self._tell(pod)

    def tell_names_of(self, pod: Pod) -> None:
        """After a pod has come, gone or changed."""
        if has_networks(pod):
            self.tell_names(*(choice.name for choice in networks_of(pod) if choice.name))

    def _tell(self, pod: Pod) -> None:
        if not pod.ready:
            return
        lines = []
        for choice in networks_of(pod):
            for other, theirs in self.members(choice.name) if choice.name else ():
                if other.ready:
                    names = " ".join(self._names(other, theirs))
                    lines += [f"{address}\t{names}" for address in self._pods.network.addresses(other.id, theirs.interface)]
        try:
            self._pods.write_hosts(pod.id, lines)
        except (OSError, NotFound) as error:  # it is going just now
            log.info("names are not told", sandbox=pod.id, error=str(error))

    def _names(self, pod: Pod, choice: NetworkChoice) -> list[str]:
        ids = [item.id[:12] for item in self._pods.containers(pod.owner) if item.pod_id == pod.id]
        return list(dict.fromkeys([pod.config.metadata.name, *choice.aliases, pod.config.hostname, *ids]))

    def settings(self, pod: Pod, container: Container) -> dict[str, Any]:
        """A container's networks as `inspect` shows them."""
        found = {}
        for choice in networks_of(pod) if has_networks(pod) else ():
            result = self._pods.network.result(pod.id, choice.interface) if pod.ready else None
            address = ipaddress.ip_interface(result["ips"][0]["address"]) if result else None
            inside = [item for item in (result or {}).get("interfaces", ()) if item.get("sandbox")]
            found[choice.name or "bridge"] = {
                "Aliases": [*choice.aliases, container.id[:12]] if choice.name else [],
                "IPAddress": str(address.ip) if address else "",
                "IPPrefixLen": address.network.prefixlen if address else 0,
                "Gateway": result["ips"][0].get("gateway", "") if result else "",
                "MacAddress": inside[0].get("mac", "") if inside else "",
                "Interface": choice.interface,
            }
        return found

    # making

    def _file(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise InvalidArgument(f"network {name!r}: a name has letters, digits, '_', '.', '-', the first one a letter or digit")
        return self._folder / f"{name}.conflist"

    def _write(self, file: Path, conflist: dict[str, Any]) -> None:
        file.parent.mkdir(exist_ok=True, mode=0o700)
        fresh = file.with_suffix(".new")
        with open(fresh, "w") as out:
            out.write(json.dumps(conflist, indent=2) + "\n")
            out.flush()
            os.fsync(out.fileno())
        fresh.rename(file)

    def _conflist(self, record: NetworkRecord, ranges: Sequence[str]) -> dict[str, Any]:
        parts = [_network(text) for text in ranges]
        sets = []
        for subnet, gateway in zip(map(ipaddress.ip_network, record.subnets), record.gateways, strict=True):
            entry = {"subnet": str(subnet), "gateway": gateway}
            for part in parts:
                if _overlap(part, subnet):
                    entry |= {"rangeStart": str(part[1]), "rangeEnd": str(part[-2])}
            sets.append([entry])
        if lost := [part for part in parts if not any(_overlap(part, _network(subnet)) for subnet in record.subnets)]:
            raise InvalidArgument(f"--ip-range {lost[0]}: not within the network's subnets, {', '.join(record.subnets)}")
        bridge: dict[str, Any] = {
            "type": "bridge", "bridge": record.bridge, "isGateway": True, "exclusive": True, "hairpinMode": True,
            "isDefaultGateway": not record.internal, "ipMasq": not record.internal,
            "capabilities": {"ips": True},
            "ipam": {"type": "host-local", "dataDir": str(self._leases), "ranges": sets},
        }  # fmt: skip
        if mtu := record.options.get(_MTU):
            if not mtu.isdecimal() or not 68 <= int(mtu) <= 65535:
                raise InvalidArgument(f"network option {_MTU}={mtu}: a number of bytes from 68 to 65535")
            bridge["mtu"] = int(mtu)
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        # By its bridge's name to CNI: the node's own configuration may be called anything.
        return {"cniVersion": "1.1.0", "name": record.bridge, "plugins": [bridge, portmap], "strata": asdict(record)}

    def _taken(self) -> list[IPNetwork]:
        """What new subnets must not overlap: the machine's routes, and networks whose bridge is not there yet."""
        with Netlink() as netlink:
            routes = [route.destination for route in netlink.routes() if route.destination.prefixlen]
        named = [*self._pods.network.subnets(), *(subnet for record in self.all() for subnet in record.subnets)]
        return [*routes, *(ipaddress.ip_network(subnet, strict=False) for subnet in named)]


def _inner(name: str) -> str:
    """A network's name as attachments have it: the node's own has none."""
    return "" if name == "bridge" else name


def has_networks(pod: Pod) -> bool:
    """Whether it can be on networks: not where it is on the host's, or has loopback alone."""
    return pod.config.annotations.get(NETWORK, "none") not in ("host", "none")


def _network(text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"subnet {text!r}: {error}; write one like 10.89.7.0/24") from None


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _within(address: str, subnet: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(subnet)
    except ValueError:
        raise InvalidArgument(f"address {address!r}: not an IP address") from None


def _free(pools: Sequence[IPNetwork], prefix: int, taken: Sequence[IPNetwork]) -> IPNetwork:
    for pool in pools:
        for subnet in pool.subnets(new_prefix=prefix):
            if not any(_overlap(subnet, other) for other in taken):
                return subnet
    raise FailedPrecondition("no subnet is free for a network: remove one (highrt network prune), or give one (--subnet)")


def _gateway(subnet: IPNetwork, wished: Sequence[str]) -> str:
    return next((address for address in wished if _within(address, str(subnet))), str(subnet[1]))
