"""Questions about the rest of the world go to the node's own DNS servers (resolv.conf(5))."""

import asyncio
import ipaddress
import random
import time
from collections.abc import Collection
from pathlib import Path

from strata.telemetry import logs

_TIMEOUT_SECONDS = 1.5
_REST_SECONDS = 5.0
"""A server that did not answer is left alone for this long: clients get SERVFAIL at once and not after a timeout each."""
_PORT = 53
_log = logs.get("nodenet.dns")


def upstreams(resolv_conf: Path, own: Collection[str]) -> list[str]:
    """The servers of a resolv.conf but for our own addresses, which would be a loop."""
    try:
        text = resolv_conf.read_text()
    except OSError:
        return []
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            if words[1] not in own:
                servers.append(words[1])
    return servers


class Forwarder:
    """Asks servers in turn, given as addresses or ADDRESS#PORT, until one answers."""

    def __init__(self, servers: list[str]) -> None:
        self._servers = [(host, int(port or _PORT)) for host, _, port in (server.partition("#") for server in servers)]
        self._resting: dict[tuple[str, int], float] = {}

    async def ask(self, query: bytes, tcp: bool) -> bytes | None:
        """The first answer, with the query's ID; None where none came."""
        for server in self._servers:
            if self._resting.get(server, 0.0) > time.monotonic():
                continue
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    answer = await (_over_tcp(server, query) if tcp else _over_udp(server, query))
            except (OSError, TimeoutError, EOFError) as error:
                self._resting[server] = time.monotonic() + _REST_SECONDS
                _log.debug("no answer from the node's DNS server", server=server[0], error=error or "timeout")
                continue
            return query[:2] + answer[2:]
        return None


class _Question(asyncio.DatagramProtocol):
    def __init__(self, identity: bytes) -> None:
        self._identity = identity
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[:2] == self._identity and len(data) >= 12 and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _over_udp(server: tuple[str, int], query: bytes) -> bytes:
    # A random ID and a fresh port each time: the client's own ID is no secret to its neighbours.
    identity = random.SystemRandom().randbytes(2)
    loop = asyncio.get_running_loop()
    transport, question = await loop.create_datagram_endpoint(lambda: _Question(identity), remote_addr=server)
    try:
        transport.sendto(identity + query[2:])
        return await question.answer
    finally:
        transport.close()


async def _over_tcp(server: tuple[str, int], query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    if len(answer) < 12:
        raise EOFError("an answer without a header")
    return answer
