"""The sockets of the cluster's DNS: UDP and TCP on each address that it has.

The ClusterIP of the Service kube-dns becomes an address of this node's loopback interface with host scope: pods, host-network
pods and the node itself reach it by plain routing, and nobody takes it for a source address.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
from typing import Any

from nodenet.dns.answers import Responder
from nodenet.network import DNS_SERVICE, cluster_ips, is_node_dns
from strata.kubeclient import resources
from strata.kubeclient.informer import Informers
from strata.telemetry import logs

PORT = 53
_IDLE_SECONDS = 10.0
_CONNECTIONS = 256
_PENDING = 4096
_HOST_SCOPE = 254
_LOOPBACK = 1
_IP_FREEBIND = (socket.IPPROTO_IP, 15)
_IPV6_FREEBIND = (socket.IPPROTO_IPV6, 78)
"""(level, option) of ip(7) and ipv6(7): binding to an address that is not there yet. The socket module does not have them."""
_log = logs.get("nodenet.dns")


class Listener:
    """One address and port, over UDP and TCP."""

    def __init__(self, responder: Responder, host: str, port: int) -> None:
        self._responder, self._host, self._port = responder, host, port
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Binds both sockets, whether or not the address is there yet; raises OSError with neither bound."""
        loop = asyncio.get_running_loop()
        datagrams = self._bound(socket.SOCK_DGRAM)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self._responder), sock=datagrams)
        try:
            self._server = await asyncio.start_server(self._serve, sock=self._bound(socket.SOCK_STREAM))
        except BaseException:
            self._transport.close()
            raise

    def _bound(self, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        bound = socket.socket(family, kind)
        try:
            bound.setblocking(False)
            bound.setsockopt(*(_IPV6_FREEBIND if family == socket.AF_INET6 else _IP_FREEBIND), 1)
            if kind == socket.SOCK_STREAM:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._host, self._port))
        except BaseException:
            bound.close()
            raise
        return bound

    def close(self) -> None:
        if self._transport:
            self._transport.close()
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._tasks) >= _CONNECTIONS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            while True:
                async with asyncio.timeout(_IDLE_SECONDS):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    query = await reader.readexactly(size)
                answer = await self._responder.respond(query, tcp=True)
                if answer is None:
                    return
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(_IDLE_SECONDS):
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            return  # the client left, or the server does
        finally:
            self._tasks.discard(task)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(self._tasks) >= _PENDING:
            return  # as a full receive buffer would do
        task = asyncio.ensure_future(self._answer(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, data: bytes, addr: Any) -> None:
        answer = await self._responder.respond(data, tcp=False)
        if answer is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)


class Server:
    """The cluster's DNS on this node; `run` until cancelled. extra: addresses to listen on besides the Service's."""

    def __init__(self, informers: Informers, responder: Responder, extra: list[tuple[str, int]]) -> None:
        self._services = informers.of(resources.SERVICES)
        self._services.add_handler(self._changed, lambda _, new: self._changed(new), self._changed)
        self._responder, self._extra = responder, extra
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._wake = asyncio.Event()

    def _changed(self, service: dict[str, Any]) -> None:
        metadata = service["metadata"]
        if (metadata.get("namespace"), metadata["name"]) == DNS_SERVICE:
            self._wake.set()

    def _wanted(self) -> set[str]:
        service = self._services.get(DNS_SERVICE[1], DNS_SERVICE[0])
        return set(cluster_ips(service)) if service is not None and is_node_dns(service) else set()

    async def run(self) -> None:
        await self._services.wait_synced()
        try:
            while True:
                self._wake.clear()
                complete = await self._reconcile()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), None if complete else 2.0)
        finally:
            while self._listeners:
                self._listeners.popitem()[1].close()

    async def _reconcile(self) -> bool:
        addresses = self._wanted()
        wanted = {(address, PORT) for address in addresses} | set(self._extra)
        for where in [where for where in self._listeners if where not in wanted]:
            self._listeners.pop(where).close()
            _log.info("stopped listening", address=where[0], port=where[1])
        complete = True
        opened = wanted - self._listeners.keys()
        for where in sorted(opened):
            listener = Listener(self._responder, *where)
            try:
                await listener.open()
            except OSError as error:
                complete = False
                opened.discard(where)
                _log.error("cannot listen", address=where[0], port=where[1], error=os.strerror(error.errno or 0))
                continue
            self._listeners[where] = listener
        # The sockets come first: after a restart the address is there, and queries need not wait for netlink's import.
        try:
            await asyncio.to_thread(set_addresses, addresses)
        except OSError as error:
            _log.error("cannot set the DNS Service's address on lo", error=error)
            return False
        for address, port in opened:
            _log.info("listening", address=address, port=port)
        return complete


def set_addresses(wanted: set[str]) -> None:
    """Gives lo exactly these addresses of ours (those with host scope outside 127.0.0.0/8). Raises OSError."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        _set_addresses(wanted)
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def _set_addresses(wanted: set[str]) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        present = set()
        for message in ipr.get_addr(index=_LOOPBACK):
            address = ipaddress.ip_address(message.get("address"))
            # IPv6 has no scope of our choice: there the length of a host's address tells ours from ::1.
            if not address.is_loopback and (address.version == 6 or message["scope"] == _HOST_SCOPE):
                present.add(str(address))
        for gone in present - wanted:
            ipr.addr("del", index=_LOOPBACK, address=gone, prefixlen=_length(gone))
        for new in wanted - present:
            scope = {} if ":" in new else {"scope": _HOST_SCOPE}
            ipr.addr("add", index=_LOOPBACK, address=new, prefixlen=_length(new), **scope)


def _length(address: str) -> int:
    return 128 if ":" in address else 32
