"""Passing descriptors between processes over unix sockets (unix(7), SCM_RIGHTS).

Sockets are taken by their descriptors, so that callers need not import `socket` (11 ms of a cold start): the C module
underneath is enough.
"""

import _socket
import os
from _struct import pack, unpack

_SOL_SOCKET, _SCM_RIGHTS = _socket.SOL_SOCKET, _socket.SCM_RIGHTS
Socket = _socket.socket


def pair() -> tuple[Socket, Socket]:
    """A connected pair of sockets that keep message borders (SOCK_SEQPACKET), closed on exec."""
    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return one, other


def send(sock: Socket, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
    """Sends data, at least one byte, with descriptors; the receiver gets copies."""
    ancillary = [(_SOL_SOCKET, _SCM_RIGHTS, pack(f"{len(descriptors)}i", *descriptors))] if descriptors else []
    sock.sendmsg([data], ancillary)


def send_all(sock: Socket, data: bytes, descriptors: tuple[int, ...]) -> None:
    """Sends all of the data over a stream, the descriptors with its first part."""
    ancillary = [(_SOL_SOCKET, _SCM_RIGHTS, pack(f"{len(descriptors)}i", *descriptors))]
    if rest := data[sock.sendmsg([data], ancillary) :]:  # who has read all may have closed: not even nothing can be sent then
        sock.sendall(rest)


def receive(sock: Socket, max_bytes: int = 65536, max_descriptors: int = 16) -> tuple[bytes, list[int]]:
    """Receives one message and its descriptors, which the caller owns from then on; b"" at the end of the stream.

    Raises OSError (EMSGSIZE) for a message that is longer or has more descriptors; those that came are closed.
    """
    room = _socket.CMSG_SPACE(4 * max_descriptors)
    try:
        data, ancillary, flags, _ = sock.recvmsg(max_bytes, room, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The other side has ended without reading all that it was sent. That is told once, and before its own last words.
        data, ancillary, flags, _ = sock.recvmsg(max_bytes, room, _socket.MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (_SOL_SOCKET, _SCM_RIGHTS):
            found += unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        for descriptor in found:
            os.close(descriptor)
        raise OSError(90, "message too long for its receiver")
    return data, found


def close_all_above(keep: tuple[int, ...]) -> None:
    """Closes every descriptor but these."""
    low = 0
    for descriptor in sorted(set(keep)):
        if low < descriptor:  # an empty range that ends at 0 would mean all of them
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 20)
