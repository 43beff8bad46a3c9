"""Forgets UDP flows that lead to endpoints which are gone.

Address translation is decided at a flow's first packet. A TCP connection to a dead endpoint ends by itself; a UDP client that
goes on sending from the same port would reach nobody for ever.
"""

import socket
from collections.abc import Collection

from pyroute2.conntrack import Conntrack, NFCTAttrTuple
from pyroute2.netlink.exceptions import NetlinkError

_ENOENT = 2


def forget_udp(endpoints: Collection[tuple[str, int]], family: int) -> int:
    """Deletes the flows whose answers come from one of the endpoints (address, port). Returns how many. Raises NetlinkError."""
    number = socket.AF_INET if family == 4 else socket.AF_INET6
    udp = NFCTAttrTuple(family=number, proto=socket.IPPROTO_UDP)
    forgotten = 0
    with Conntrack(nfgen_family=number) as conntrack:
        for flow in list(conntrack.dump_entries(tuple_orig=udp)):
            original, reply = flow.tuple_orig, flow.tuple_reply
            # A flow that was not translated has its answer's source as its destination: not ours to end.
            if (reply.saddr, reply.sport) not in endpoints or original.daddr == reply.saddr:
                continue
            try:
                conntrack.entry("del", tuple_orig=original)
                forgotten += 1
            except NetlinkError as error:
                if error.code != _ENOENT:  # it ended by itself
                    raise
    return forgotten
