"""Links, addresses and routes of a network namespace (rtnetlink(7)), as far as pods need them.

pyroute2, which knows all of rtnetlink, is 14 MB in the process that has it, and its event loop takes half a millisecond for each
request: most of what a pod's network took. Here are a socket and the few requests that a pod needs.
"""

import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

UP, PROMISCUOUS = 0x1, 0x100
"""Flags of a link (netdevice(7))."""

_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 16, 17, 18, 19, 20, 22, 24, 26
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_LINK, _ADDR, _ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=8BI")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO = 1, 3, 4, 10, 12, 18
_IFLA_NET_NS_FD, _IFLA_EXT_MASK = 28, 29
_INFO_KIND, _INFO_DATA, _VETH_PEER, _BRPORT_MODE = 1, 2, 1, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _NODAD = 1, 2, 8, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_AF_BRIDGE = 7
_NESTED, _SKIP_STATISTICS = 0x8000, 8
_MAIN_TABLE, _BY_ADMINISTRATOR, _UNIVERSE, _ON_LINK, _UNICAST = 254, 4, 0, 253, 1
_ANSWER_BYTES, _ANSWER_SECONDS = 1 << 18, 30
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _LINK_GROUP = 270, 1, 2, 1


@dataclass(frozen=True)
class Link:
    """A network interface. kind: bridge, veth and so on, "" for a device. master: the bridge's index, 0 for none."""

    index: int
    name: str
    flags: int
    mac: str
    mtu: int
    master: int
    kind: str


@dataclass(frozen=True)
class Route:
    """A route of the main table."""

    destination: Network
    gateway: Address | None
    index: int


class Netlink:
    """A socket of the network namespace that its thread is in when it is made. Its methods raise OSError with the kernel's errno;
    a name or an index that is none of a link's is ENODEV."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", _ANSWER_SECONDS, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def link(self, name: str) -> Link | None:
        """The link of that name, if there is one."""
        wanted = _text(_IFLA_IFNAME, name) + _number(_IFLA_EXT_MASK, _SKIP_STATISTICS)
        try:
            (found,) = self._ask(_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + wanted)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(found)

    def add_bridge(self, name: str, mtu: int = 0) -> None:
        """A bridge that is up. mtu: 0 for the kernel's choice."""
        self._add(name, UP, _mtu(mtu) + _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge")))

    def add_veth(self, name: str, peer: str, peer_namespace: int, *, master: int, mtu: int = 0) -> None:
        """A pair of links: one here, up and a port of the bridge `master`, and one, down, in the namespace of that descriptor."""
        other = _LINK.pack(0, 0, 0, 0, 0)
        other += _text(_IFLA_IFNAME, peer) + _number(_IFLA_NET_NS_FD, peer_namespace) + _mtu(mtu)
        data = _nested(_INFO_DATA, _attribute(_VETH_PEER | _NESTED, other))
        kind = _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "veth") + data)
        self._add(name, UP, _number(_IFLA_MASTER, master) + _mtu(mtu) + kind)

    def _add(self, name: str, flags: int, attributes: bytes) -> None:
        body = _LINK.pack(0, 0, 0, flags, flags) + _text(_IFLA_IFNAME, name) + attributes
        self._ask(_NEWLINK, _CREATE | _EXCL, body)

    def set_flags(self, index: int, flags: int) -> None:
        """Sets these of a link's flags."""
        self._ask(_NEWLINK, 0, _LINK.pack(0, 0, index, flags, flags))

    def set_mac(self, index: int, mac: str) -> None:
        """mac: in hexadecimal with colons."""
        body = _LINK.pack(0, 0, index, 0, 0) + _attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        self._ask(_NEWLINK, 0, body)

    def set_hairpin(self, index: int) -> None:
        """Lets a bridge send a frame back to the port that it came from."""
        body = _LINK.pack(_AF_BRIDGE, 0, index, 0, 0)
        self._ask(_SETLINK, 0, body + _nested(_IFLA_PROTINFO, _attribute(_BRPORT_MODE, b"\1")))

    def remove_link(self, name: str) -> None:
        """Removes a link, and the other end of a pair, and returns as soon as nobody finds it any more.

        The kernel ends the request only when no CPU can use the link's memory any more, tens of milliseconds later. That is left
        to a thread: before, the kernel has told everybody that the link is gone.
        """
        link = self.link(name)
        if link is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        self._sequence += 1
        body = _LINK.pack(0, 0, link.index, 0, 0)
        request = _HEADER.pack(_HEADER.size + len(body), _DELLINK, _REQUEST | _ACK, self._sequence, 0) + body
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _LINK_GROUP)
        try:
            threading.Thread(target=self._socket.dup().send, args=(request,), daemon=True).start()
            while True:
                for kind, sequence, answer in _messages(self._socket.recv(_ANSWER_BYTES)):
                    if kind == _ERROR and sequence == self._sequence:
                        _check(answer)
                        return
                    if kind == _DELLINK and _LINK.unpack_from(answer)[:3:2] == (0, link.index):  # not as a bridge's port
                        return
        finally:
            self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, _LINK_GROUP)

    def addresses(self, index: int) -> list[Interface]:
        """A link's addresses."""
        found = []
        for body in self._ask(_GETADDR, _DUMP, _ADDR.pack(0, 0, 0, 0, 0)):
            _, length, _, _, owner = _ADDR.unpack_from(body)
            attributes = dict(_attributes(body[_ADDR.size :]))
            if owner == index and (address := attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)):
                found.append(ipaddress.ip_interface((address, length)))
        return found

    def add_address(self, index: int, address: Interface) -> None:
        """An IPv6 address is used at once, without a search for others that have it."""
        flags = _number(_IFA_FLAGS, _NODAD) if address.version == 6 else b""
        body = _ADDR.pack(_family(address), address.network.prefixlen, 0, 0, index)
        body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed) + flags
        self._ask(_NEWADDR, _CREATE | _EXCL, body)

    def replace_route(self, destination: Network, index: int, gateway: Address | None) -> None:
        """A route by a link, in the place of one to the same destination."""
        scope = _UNIVERSE if gateway or destination.version == 6 else _ON_LINK
        body = _ROUTE.pack(
            _family(destination), destination.prefixlen, 0, 0, _MAIN_TABLE, _BY_ADMINISTRATOR, scope, _UNICAST, 0
        )  # fmt: skip
        if destination.prefixlen:
            body += _attribute(_RTA_DST, destination.network_address.packed)
        if gateway:
            body += _attribute(_RTA_GATEWAY, gateway.packed)
        self._ask(_NEWROUTE, _CREATE | _REPLACE, body + _number(_RTA_OIF, index))

    def routes(self) -> list[Route]:
        """Those of the main table."""
        found = []
        for body in self._ask(_GETROUTE, _DUMP, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            family, length, _, _, table, *_ = _ROUTE.unpack_from(body)
            if table != _MAIN_TABLE or family not in (socket.AF_INET, socket.AF_INET6):
                continue
            attributes = dict(_attributes(body[_ROUTE.size :]))
            nowhere = bytes(4 if family == socket.AF_INET else 16)
            gateway = attributes.get(_RTA_GATEWAY)
            found.append(
                Route(
                    ipaddress.ip_network((attributes.get(_RTA_DST, nowhere), length)),
                    ipaddress.ip_address(gateway) if gateway else None,
                    int.from_bytes(attributes.get(_RTA_OIF, b""), "little"),
                )
            )
        return found

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """The bodies of the answers to a request. Raises OSError."""
        self._sequence += 1
        ack = 0 if flags & _DUMP == _DUMP else _ACK
        head = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | ack | flags, self._sequence, 0)
        self._socket.send(head + body)
        found: list[bytes] = []
        while True:
            for kind, sequence, answer in _messages(self._socket.recv(_ANSWER_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind == _ERROR:
                    _check(answer)
                    return found
                if kind == _DONE:
                    return found
                found.append(answer)


def _check(answer: bytes) -> None:
    """Raises OSError for an answer that is an error."""
    code = -int.from_bytes(answer[:4], "little", signed=True)
    if code:
        raise OSError(code, os.strerror(code))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The kind, sequence number and body of each message."""
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        yield kind, sequence, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(_attributes(body[_LINK.size :]))
    info = dict(_attributes(attributes.get(_IFLA_LINKINFO, b"")))

    def number(kind: int) -> int:
        return int.from_bytes(attributes.get(kind, b""), "little")

    return Link(
        index, attributes[_IFLA_IFNAME].rstrip(b"\0").decode(), flags, attributes.get(_IFLA_ADDRESS, b"").hex(":"),
        number(_IFLA_MTU), number(_IFLA_MASTER), info.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
    )  # fmt: skip


def _aligned(length: int) -> int:
    return length + 3 & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    whole = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return whole.ljust(_aligned(len(whole)), b"\0")


def _nested(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, attributes)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, number.to_bytes(4, "little"))


def _mtu(mtu: int) -> bytes:
    return _number(_IFLA_MTU, mtu) if mtu else b""


def _family(of: Interface | Network) -> int:
    return socket.AF_INET if of.version == 4 else socket.AF_INET6
