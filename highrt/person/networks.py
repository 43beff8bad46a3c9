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
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from highrt.cni.errors import CniError
from highrt.person import documents
from highrt.person.flags import NAME, NETWORK
from highrt.person.hosts import Names
from highrt.pods.attachments import networks_of
from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.extras import NetworkChoice
from highrt.pods.manager import PodManager
from highrt.pods.model import Owner, Pod
from strata.linux.rtnetlink import Netlink
from strata.protocols import highrt_pb2 as api
from strata.telemetry import logs

log = logs.get("highrt.person")

BUILT_IN = {"bridge": "bridge", "host": "host", "none": "null"}
"""The node's own, by the names that people know, and their drivers. They are no configurations here."""

STAND_IN = "highrt"
"""Of `bridge`, where the node has no CNI configuration: a network like any that a person makes."""

_POOLS = (ipaddress.ip_network("10.89.0.0/16"), ipaddress.ip_network("10.90.0.0/15"), ipaddress.ip_network("10.92.0.0/14"))
_PREFIX = 24
_POOL6 = ipaddress.ip_network("fd89:89::/32")
_FEWEST_ADDRESSES = 4
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
        self._joining: Counter[str] = Counter()
        self.names = Names(pods)

    async def open(self) -> None:
        """Brings containers' interfaces and names in line with what is written down; what a daemon that was killed had begun to
        write is removed."""
        for file in self._folder.glob("*.new"):
            file.unlink()
        for pod in self._pods.pods(Owner.PERSON):
            await self._pods.attachments.finish(pod)
        self.names.open()

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
            for version in (4, 6):
                if sum(subnet.version == version for subnet in subnets) > 1:
                    raise InvalidArgument(f"--subnet: one of IPv{version} is enough for a network")
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

    async def stand_in(self, why: str, told: Callable[[str], None]) -> str:
        """The network for containers that ask for none where the node has none of its own, which is made when it is first needed.
        told: takes a word about that, with `why` there is none."""
        if not self._file(STAND_IN).exists():
            with suppress(AlreadyExists):  # another container's, at the same time
                await self.create(Wish(STAND_IN))
                told(f"the network {STAND_IN} is made, which containers are on unless you say otherwise ({why})")
        return STAND_IN

    async def remove(self, reference: str) -> str:
        """With its bridge; returns its name. Raises NotFound, FailedPrecondition where a container is on it or it is built in,
        PodError."""
        async with self._changing:
            name = self.name_of(reference)
            if name in BUILT_IN:
                raise FailedPrecondition(f"the network {name} is built in and cannot be removed")
            record = self.find(name)
            if users := self.members(name):
                names = ", ".join(sorted(pod.config.metadata.name for pod, _ in users))
                raise FailedPrecondition(f"network {name} is used by {names}: disconnect or remove them first")
            if self._joining[name] or self._pods.network.uses(name):
                raise FailedPrecondition(f"network {name}: a container is just being put on it or taken off")
            try:
                await self._pods.network.collect_named(name)
            except CniError as error:
                raise PodError(f"network {name}: its bridge {record.bridge} cannot be removed: {error}") from error
            await asyncio.to_thread(shutil.rmtree, self._leases / record.bridge, ignore_errors=True)
            self._file(name).unlink()
            return name

    def identity(self, name: str) -> str:
        """A network's ID. It is known by its name; people's scripts expect an ID, too."""
        return hashlib.sha256(f"{self._folder}/{name}".encode()).hexdigest()

    def name_of(self, reference: str) -> str:
        """The name of a network that is called by it, by its ID, or by the ID's unique beginning. Raises NotFound,
        InvalidArgument."""
        known = {name: self.identity(name) for name in (*BUILT_IN, *(record.name for record in self.all()))}
        if reference == "default":
            return "bridge"
        if reference in known:
            return reference
        found = [name for name, identity in known.items() if reference and identity.startswith(reference)]
        if len(found) > 1:
            raise InvalidArgument(f"network {reference!r} is ambiguous: the IDs of {', '.join(found)} begin with it")
        if not found:
            raise NotFound(f"there is no network {reference} (highrt network ls lists them)")
        return found[0]

    def members(self, name: str) -> list[tuple[Pod, NetworkChoice]]:
        """The person's pods that are on a network, or will be when they start."""
        wanted = _inner(name)
        pods = self._pods.pods(Owner.PERSON)
        return [(pod, choice) for pod in pods for choice in networks_of(pod) if choice.name == wanted]

    def names_of(self, pod: Pod) -> list[str]:
        """What a person's pod is on, by the names that people know."""
        if pod.owner is Owner.PERSON and has_networks(pod):
            return [choice.name or "bridge" for choice in networks_of(pod)]
        return [pod.config.annotations[NETWORK]] if NETWORK in pod.config.annotations else []

    async def wanted(self, request: api.CreateRequest) -> tuple[str, Sequence[NetworkChoice], list[str]]:
        """What is asked for: host, none, or the name of the first network; all networks; and warnings for people. Raises
        NotFound, InvalidArgument, FailedPrecondition."""
        wishes = [*request.endpoints] or [api.Endpoint(network=request.network or "bridge")]
        names = [self.name_of(wish.network) for wish in wishes]
        if names in (["host"], ["none"]):
            if wishes[0].ip or wishes[0].ip6 or wishes[0].aliases:
                raise InvalidArgument("addresses and aliases are for networks that you made (highrt network create)")
            if request.ports:
                raise InvalidArgument(f"-p needs a bridge network: with --network {names[0]} there is no port to map")
            return names[0], [], []
        warnings: list[str] = []
        if "bridge" in names:
            ready, message = await self._pods.network_ready()
            if not ready and len(names) > 1:
                raise FailedPrecondition(f"there is no CNI network bridge for the container: {message}")
            if not ready:
                names[0] = wishes[0].network = await self.stand_in(message, warnings.append)
        return names[0], self.choose(wishes, ports=bool(request.ports)), warnings

    def choose(self, wishes: Sequence[api.Endpoint], *, ports: bool) -> list[NetworkChoice]:
        """What a new container is attached to. ports: whether it publishes some. Raises NotFound, InvalidArgument."""
        chosen: list[NetworkChoice] = []
        for wish in wishes:
            chosen.append(self._choice(wish, chosen))
        if ports and chosen[0].name and self.find(chosen[0].name).internal:
            raise InvalidArgument(f"-p: the first network, {chosen[0].name}, is internal: name one first that leads out")
        return chosen

    def _choice(self, wish: api.Endpoint, others: Sequence[NetworkChoice]) -> NetworkChoice:
        """A further network of a container. others: those that it has."""
        name = self.name_of(wish.network)
        addresses = tuple(address for address in (wish.ip, wish.ip6) if address)
        if name in ("host", "none"):
            raise InvalidArgument(f"network {name} cannot be one of several")
        if name == "bridge" and (addresses or wish.aliases):
            raise InvalidArgument("addresses and aliases are for networks that you made (highrt network create)")
        for alias in wish.aliases:
            if not NAME.fullmatch(alias):
                raise InvalidArgument(f"alias {alias!r}: not a host's name")
        if any(choice.name == _inner(name) for choice in others):
            raise InvalidArgument(f"network {name} is named twice")
        if name != "bridge":
            for address in addresses:
                self._check_address(name, address)
        taken = {choice.interface for choice in others}
        interface = next(each for number in range(len(taken) + 1) if (each := f"eth{number}") not in taken)
        return NetworkChoice(_inner(name), interface, addresses, tuple(wish.aliases))

    def _check_address(self, name: str, address: str) -> None:
        subnets = self.find(name).subnets
        if not any(_within(address, subnet) for subnet in subnets):
            raise InvalidArgument(f"address {address}: not within network {name}, {', '.join(subnets)}")
        for pod, choice in self.members(name):
            if any(face.name == choice.interface and address in face.plain() for face in self._pods.network.interfaces(pod.id)):
                raise FailedPrecondition(f"address {address} is in use by container {pod.config.metadata.name}")

    async def connect(self, pod: Pod, wish: api.Endpoint) -> None:
        """Raises NotFound, InvalidArgument, AlreadyExists, FailedPrecondition, PodError."""
        self._check_changeable(pod)
        name = self.name_of(wish.network)
        async with self._changing:
            if any(choice.name == _inner(name) for choice in networks_of(pod)):
                raise AlreadyExists(f"container {pod.config.metadata.name} is on network {name} already")
            choice = self._choice(wish, networks_of(pod))
            await self._pods.attachments.change(pod, lambda before: [*before, choice])
        self.names.refresh(pod)

    async def disconnect(self, pod: Pod, reference: str) -> None:
        """Raises NotFound, FailedPrecondition, PodError."""
        self._check_changeable(pod)
        name = self.name_of(reference)
        gone = _inner(name)
        async with self._changing:
            if name in ("host", "none") or not any(choice.name == gone for choice in networks_of(pod)):
                raise NotFound(f"container {pod.config.metadata.name} is not on network {name}")
            await self._pods.attachments.change(pod, lambda before: [choice for choice in before if choice.name != gone])
        self.names.refresh(pod, [gone])

    def _check_changeable(self, pod: Pod) -> None:
        if pod.owner is not Owner.PERSON or not has_networks(pod):
            raise FailedPrecondition(f"container {pod.config.metadata.name} has no networks that can be changed")

    def settings(self, pod: Pod, owner_id: str) -> dict[str, Any]:
        """The `NetworkSettings` of a container, or a pod of several: the addresses, by network, and those of its first
        interface. owner_id: its ID."""
        faces = {face.name: face for face in self._pods.network.interfaces(pod.id)}
        found: dict[str, Any] = {}
        for choice in networks_of(pod):
            name, face = choice.name or "bridge", faces.get(choice.interface)
            found[name] = {
                "Aliases": [*choice.aliases],
                "NetworkID": self.identity(name),
                "EndpointID": endpoint_id(self.identity(name), owner_id) if face else "",
                **documents.interface(face),
                "Interface": choice.interface,
            }
        mode = pod.config.annotations.get(NETWORK, "")
        return {
            **documents.interface(next(iter(faces.values()), None)),
            "IPAddresses": [address for face in faces.values() for address in face.plain()],
            "Ports": documents.ports(pod),
            "Networks": found or {name: {} for name in [mode] if name in ("host", "none")},
        }

    @contextmanager
    def joining(self, choices: Sequence[NetworkChoice]) -> Iterator[None]:
        """Keeps the networks of a container that is being made from being removed."""
        names = [choice.name for choice in choices]
        self._joining.update(names)
        try:
            yield
        finally:
            self._joining.subtract(names)

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
        parts = [_parsed(text) for text in ranges]
        sets = []
        for subnet, gateway in zip(map(ipaddress.ip_network, record.subnets), record.gateways, strict=True):
            entry = {"subnet": str(subnet), "gateway": gateway}
            for part in parts:
                if _inside(part, subnet):
                    entry |= _limits(part, subnet)
            sets.append([entry])
        if lost := [part for part in parts if not any(_inside(part, _network(subnet)) for subnet in record.subnets)]:
            raise InvalidArgument(f"--ip-range {lost[0]}: not within the network's subnets, {', '.join(record.subnets)}")
        bridge: dict[str, Any] = {
            "type": "bridge", "bridge": record.bridge, "isGateway": True, "exclusive": True, "hairpinMode": True,
            "isDefaultGateway": not record.internal, "ipMasq": not record.internal, "internal": record.internal,
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


def endpoint_id(network: str, container: str) -> str:
    """What names a container's end of a network. Both by their IDs."""
    return hashlib.sha256(f"{network}\0{container}".encode()).hexdigest()


def _inner(name: str) -> str:
    """A network's name as attachments have it: the node's own has none."""
    return "" if name == "bridge" else name


def has_networks(pod: Pod) -> bool:
    """Whether it can be on networks: not where it is on the host's, or has loopback alone."""
    return pod.config.annotations.get(NETWORK, "none") not in ("host", "none")


def _network(text: str) -> IPNetwork:
    subnet = _parsed(text)
    if subnet.num_addresses < _FEWEST_ADDRESSES:
        raise InvalidArgument(f"subnet {text}: too small for a gateway and a container")
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local:
        raise InvalidArgument(f"subnet {text}: no container can have such an address; take a private range, like 10.89.7.0/24")
    return subnet


def _parsed(text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"subnet {text!r}: {error}; write one like 10.89.7.0/24") from None


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _inside(part: IPNetwork, whole: IPNetwork) -> bool:
    return part.version == whole.version and part[0] in whole and part[-1] in whole


def _limits(part: IPNetwork, subnet: IPNetwork) -> dict[str, str]:
    """The addresses of a part that containers can have, as the plugin host-local takes them."""
    first = part[0] + 1 if part[0] == subnet[0] else part[0]
    last = part[-1] - 1 if part[-1] == subnet[-1] and part.version == 4 else part[-1]
    return {"rangeStart": str(first), "rangeEnd": str(last)}


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
    found = next((address for address in wished if _within(address, str(subnet))), str(subnet[1]))
    if ipaddress.ip_address(found) == subnet[0] or (subnet.version == 4 and ipaddress.ip_address(found) == subnet[-1]):
        raise InvalidArgument(f"gateway {found}: no host can have this address of {subnet}")
    return found
