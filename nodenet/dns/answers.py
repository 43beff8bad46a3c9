"""Answers to DNS messages: bytes in, bytes out.

What is inside the cluster's domain, or the reverse of an address that it has, is answered here with authority (RFC 1035, 2308,
6891); other questions go to `forward`. A message that cannot be understood gets FORMERR, and nothing is ever raised.
"""

import ipaddress
import random
import struct
from collections.abc import Awaitable, Callable

from dnslib import AAAA, CNAME, EDNS0, PTR, QTYPE, RCODE, RR, SOA, SRV, TXT, A, DNSHeader, DNSRecord

from nodenet.dns.records import Record, Zone
from strata.telemetry import logs

TTL = 5
_UDP_SIZE = 512
_EDNS_SIZE = 1232
"""The largest answer over UDP that is sure not to be fragmented (DNS flag day 2020)."""
_HEADER = 12
_CHAIN = 8
_log = logs.get("nodenet.dns")

Forward = Callable[[bytes, bool], Awaitable[bytes | None]]
_TYPES = {name: getattr(QTYPE, name) for name in ("A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "SOA", "NS", "ANY", "OPT")}


class Responder:
    """Answers queries from a zone. forward(query, over TCP) gives another server's answer, or None; None: no forwarding."""

    def __init__(self, zone: Zone, forward: Forward | None) -> None:
        self._zone, self._forward = zone, forward

    async def respond(self, query: bytes, *, tcp: bool) -> bytes | None:
        """The answer to a message; None for one that must get none (too short, or an answer itself)."""
        if len(query) < _HEADER or query[2] & 0x80:
            return None
        try:
            return await self._answer(query, tcp)
        except Exception as error:
            # Whatever a stranger's packet does to the parser: it gets FORMERR, and the server goes on.
            _log.debug("a query that cannot be read", error=f"{type(error).__name__}: {error}")
            return _bare(query, RCODE.FORMERR)

    async def _answer(self, query: bytes, tcp: bool) -> bytes:
        if opcode := (query[2] >> 3) & 0xF:
            _log.debug("opcode not implemented", opcode=opcode)
            return _bare(query, RCODE.NOTIMP)
        if struct.unpack_from("!H", query, 4)[0] != 1:
            return _bare(query, RCODE.FORMERR)
        request = DNSRecord.parse(query)
        edns = next((record for record in request.ar if record.rtype == _TYPES["OPT"]), None)
        limit = 65535 if tcp else _UDP_SIZE if edns is None else max(_UDP_SIZE, min(edns.rclass, _EDNS_SIZE))
        reply = DNSRecord(DNSHeader(id=request.header.id, qr=1, aa=1, ra=int(self._forward is not None), rd=request.header.rd),
                          q=request.q)  # fmt: skip
        if edns is not None:
            version = (edns.ttl >> 16) & 0xFF
            # The upper bits of an extended code stand in the OPT record: BADVERS is 16.
            reply.add_ar(EDNS0(udp_len=_EDNS_SIZE, ext_rcode=1 if version else 0))
            if version:
                return self._pack(reply, limit)
        if request.q.qclass != 1:
            reply.header.rcode, reply.header.aa = RCODE.REFUSED, 0
            return self._pack(reply, limit)
        name = _labels(request.q.qname)
        reverse = _reverse_address(name)
        if self._zone.holds(name):
            if not self._zone.synced:
                return _bare(query, RCODE.SERVFAIL)
            await self._inside(reply, name, tcp)
            return self._pack(reply, limit)
        if reverse and self._zone.synced and (records := self._zone.reverse(reverse)):
            self._add(reply, str(request.q.qname), records)
            return self._pack(reply, limit)
        if self._forward is None or not request.header.rd:
            return _bare(query, RCODE.REFUSED)
        return await self._forward(query, tcp) or _bare(query, RCODE.SERVFAIL)

    async def _inside(self, reply: DNSRecord, name: tuple[str, ...], tcp: bool) -> None:
        records = self._zone.lookup(name)
        owner = str(reply.q.qname)
        if name == self._zone.domain and reply.q.qtype in (_TYPES["SOA"], _TYPES["ANY"]):
            reply.add_answer(self._soa())
            return
        if name == self._zone.domain and reply.q.qtype == _TYPES["NS"]:
            reply.add_answer(RR(owner, _TYPES["NS"], ttl=TTL, rdata=CNAME("ns.dns." + ".".join(self._zone.domain))))
            return
        hops = 0
        while records and records[0].type == "CNAME" and reply.q.qtype != _TYPES["CNAME"] and hops < _CHAIN:
            hops += 1
            target = records[0].value
            reply.add_answer(RR(owner, _TYPES["CNAME"], ttl=TTL, rdata=CNAME(target)))
            owner, name = target, tuple(target.lower().split("."))
            if not self._zone.holds(name):
                await self._outside(reply, target, tcp)
                return
            records = self._zone.lookup(name)
        if records is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif self._add(reply, owner, records):
            return
        reply.add_auth(self._soa())

    async def _outside(self, reply: DNSRecord, target: str, tcp: bool) -> None:
        """Adds what the node's servers know of an ExternalName's target; the alias alone is an answer too."""
        if self._forward is None:
            return
        question = DNSRecord.question(target, QTYPE.get(reply.q.qtype))
        question.header.id = random.getrandbits(16)
        packet = await self._forward(question.pack(), tcp)
        if packet is not None:
            found = DNSRecord.parse(packet)
            reply.header.rcode = found.header.rcode
            for record in found.rr:
                reply.add_answer(record)

    def _add(self, reply: DNSRecord, owner: str, records: list[Record]) -> bool:
        """Adds the records of the type that was asked for; whether there were any."""
        chosen = [item for item in records if reply.q.qtype in (_TYPES[item.type], _TYPES["ANY"])]
        if len(chosen) > 1:
            # Clients take the first: this spreads them over the endpoints of a headless Service.
            random.shuffle(chosen)
        for item in chosen:
            reply.add_answer(_resource(owner, item))
        for target in dict.fromkeys(item.value for item in chosen if item.type == "SRV"):
            for item in self._zone.lookup(tuple(target.split("."))) or ():
                if item.type in ("A", "AAAA"):
                    reply.add_ar(_resource(target, item))
        return bool(chosen)

    def _soa(self) -> RR:
        domain = ".".join(self._zone.domain)
        times = (1, 7200, 1800, 86400, TTL)
        return RR(domain, _TYPES["SOA"], ttl=TTL, rdata=SOA(f"ns.dns.{domain}", f"hostmaster.{domain}", times))

    def _pack(self, reply: DNSRecord, limit: int) -> bytes:
        packet: bytes = reply.pack()
        if len(packet) <= limit:
            return packet
        # First without what is only helpful, then truncated: the client asks again over TCP.
        options = [record for record in reply.ar if record.rtype == _TYPES["OPT"]]
        reply.ar = options
        packet = reply.pack()
        if len(packet) > limit:
            reply.rr, reply.auth, reply.header.tc = [], [], 1
            packet = reply.pack()
        return packet


def _resource(owner: str, record: Record) -> RR:
    match record.type:
        case "A":
            data = A(record.value)
        case "AAAA":
            data = AAAA(record.value)
        case "SRV":
            data = SRV(0, record.weight, record.port, record.value)
        case "PTR":
            data = PTR(record.value)
        case "CNAME":
            data = CNAME(record.value)
        case _:
            data = TXT(record.value)
    return RR(owner, _TYPES[record.type], ttl=TTL, rdata=data)


def _labels(qname: object) -> tuple[str, ...]:
    return tuple(str(qname).rstrip(".").lower().split("."))


def _reverse_address(name: tuple[str, ...]) -> str | None:
    """The address of a name below in-addr.arpa or ip6.arpa."""
    try:
        if name[-2:] == ("in-addr", "arpa") and len(name) == 6:
            return str(ipaddress.IPv4Address(".".join(name[3::-1])))
        if name[-2:] == ("ip6", "arpa") and len(name) == 34:
            digits = "".join(name[31::-1])
            return str(ipaddress.IPv6Address(":".join(digits[i : i + 4] for i in range(0, 32, 4))))
    except ValueError:
        return None
    return None


def _bare(query: bytes, code: int) -> bytes:
    """A header with a code: the same ID, opcode and RD; no question, which may be what is wrong."""
    return query[:2] + bytes((0x80 | (query[2] & 0x79), 0x80 | (code & 0xF))) + bytes(8)
