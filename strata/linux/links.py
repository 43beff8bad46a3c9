"""Network devices by netlink (rtnetlink(7)): what it takes to move one to another network namespace with its addresses."""

import _socket
import os
from _struct import calcsize, pack, unpack_from

from strata.linux import namespaces, syscalls

_NETLINK, _ROUTE = 16, 0  # AF_NETLINK, NETLINK_ROUTE
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR = 16, 18, 20, 22
_REQUEST, _ACK, _DUMP, _CREATE_NEW = 0x1, 0x4, 0x300, 0x600
_ERROR, _DONE = 2, 3
_HEADER, _LINK, _ADDRESS, _ATTRIBUTE = "IHHII", "BxHiII", "BBBBI", "HH"
_IFNAME, _NET_NS_FD, _NEW_IFINDEX = 3, 28, 49
_ADDRESS_ATTRIBUTES = (1, 2, 4)  # IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST
_IFF_UP = 1
_PERMANENT, _SCOPE_UNIVERSE = 0x80, 0
_RECEIVE_BYTES = 1 << 16
_ENODEV = 19


class Links:
    """The devices of a network namespace, wherever this process goes later. The caller closes it."""

    def __init__(self, namespace: int = -1) -> None:
        """namespace: its descriptor, else that of this process. Raises OSError."""
        self.namespace = os.dup(namespace) if namespace >= 0 else _own_namespace()
        self._sequence = 0
        try:
            self._socket = _route_socket(namespace)
        except BaseException:
            os.close(self.namespace)
            raise

    def close(self) -> None:
        self._socket.close()
        os.close(self.namespace)

    def find(self, name: str) -> "tuple[int, bool]":
        """A device's number, and whether it is up. Raises OSError where there is none of that name."""
        message = self._ask(_GETLINK, _ACK, pack(_LINK, 0, 0, 0, 0, 0) + _attribute(_IFNAME, name.encode() + b"\0"))[0]
        _, _, index, flags, _ = unpack_from(_LINK, message)
        return index, bool(flags & _IFF_UP)

    def has(self, name: str) -> bool:
        try:
            self.find(name)
        except OSError as error:
            if error.errno != _ENODEV:
                raise
            return False
        return True

    def set_up(self, index: int) -> None:
        self._ask(_NEWLINK, _ACK, pack(_LINK, 0, 0, index, _IFF_UP, _IFF_UP), "set it up")

    def free_index(self, index: int) -> int:
        """The first number from this one on that no device has."""
        try:
            while True:
                self._ask(_GETLINK, _ACK, pack(_LINK, 0, 0, index, 0, 0))
                index += 1
        except OSError as error:
            if error.errno != _ENODEV:
                raise
        return index

    def move(self, index: int, name: str, target: "Links", index_there: int) -> None:
        """Moves a device to another namespace, under that name (with %d for a number that is free) and number there.

        The kernel takes it down on its way. It renames it before the move where the name it has is taken there, else after it: a
        failure may leave it there under the name that it has. The number counts since Linux 5.13.
        """
        attributes = _attribute(_IFNAME, name.encode() + b"\0") + _attribute(_NET_NS_FD, pack("I", target.namespace))
        attributes += _attribute(_NEW_IFINDEX, pack("i", index_there))
        self._ask(_NEWLINK, _ACK, pack(_LINK, 0, 0, index, 0, 0) + attributes)

    def addresses(self, index: int) -> list[bytes]:
        """The lasting addresses of global scope, for `add_address`: the others come from where the device is."""
        found = []
        for message in self._ask(_GETADDR, _DUMP, pack(_ADDRESS, 0, 0, 0, 0, 0), "read its addresses"):
            family, prefix, flags, scope, number = unpack_from(_ADDRESS, message)
            if number == index and flags & _PERMANENT and scope == _SCOPE_UNIVERSE:
                kept = b"".join(
                    _attribute(kind, content) for kind, content in _attributes(message[8:]) if kind in _ADDRESS_ATTRIBUTES
                )
                found.append(pack("BB", family, prefix) + kept)
        return found

    def add_address(self, index: int, address: bytes) -> None:
        family, prefix = address[0], address[1]
        self._ask(_NEWADDR, _ACK | _CREATE_NEW, pack(_ADDRESS, family, prefix, 0, 0, index) + address[2:], "add its address")

    def _ask(self, kind: int, flags: int, payload: bytes, what: str = "") -> list[bytes]:
        """Sends a request and returns what came in answer, without its acknowledgement. what: is asked for, for the error.

        Raises OSError.
        """
        self._sequence += 1
        self._socket.send(pack(_HEADER, calcsize(_HEADER) + len(payload), kind, flags | _REQUEST, self._sequence, 0) + payload)
        found: list[bytes] = []
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            while data:
                length, answer, _, sequence, _ = unpack_from(_HEADER, data)
                content, data = data[calcsize(_HEADER) : length], data[_aligned(length) :]
                if sequence != self._sequence:
                    continue
                if answer == _ERROR:
                    (code,) = unpack_from("i", content)
                    if code:
                        raise OSError(-code, os.strerror(-code), what or None)
                    return found
                if answer == _DONE:
                    return found
                found.append(content)


def is_name(name: str) -> bool:
    """Whether a device could have that name (the kernel's dev_valid_name), or one that %d stands for a number in."""
    well_formed = 0 < len(name.encode()) < 16 and name not in (".", "..") and not set(name) & set("/: \t\n\r\v\f\0")
    return well_formed and name.count("%") == name.count("%d") <= 1


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _route_socket(namespace: int) -> _socket.socket:
    """A socket belongs to the namespace that its process is in when it makes it: this one goes there and back."""
    if namespace < 0:
        return _socket.socket(_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _ROUTE)
    own = _own_namespace()
    try:
        syscalls.setns(namespace, namespaces.NEWNET)
        try:
            return _route_socket(-1)
        finally:
            syscalls.setns(own, namespaces.NEWNET)
    finally:
        os.close(own)


def _aligned(length: int) -> int:
    return length + 3 & ~3


def _attribute(kind: int, content: bytes) -> bytes:
    length = calcsize(_ATTRIBUTE) + len(content)
    return pack(_ATTRIBUTE, length, kind) + content + bytes(_aligned(length) - length)


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= calcsize(_ATTRIBUTE):
        length, kind = unpack_from(_ATTRIBUTE, data)
        found.append((kind, data[4:length]))
        data = data[_aligned(length) :]
    return found
