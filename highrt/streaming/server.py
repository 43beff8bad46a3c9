"""The streaming server: what stands behind the URLs of CRI's Exec, Attach and PortForward.

It listens on loopback, in plain http, unless it is told otherwise. A URL has a token of 128 random bits, is good for one
connection, and expires after a minute. The connection is upgraded to a WebSocket (v5/v4.channel.k8s.io;
SPDY/3.1+portforward.k8s.io) or to SPDY/3.1; kubelet and API server only pass its bytes on.
"""

import asyncio
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from highrt.pods.errors import PodError
from highrt.pods.model import Stdio
from highrt.streaming.relay import ClientGone, Running, relay
from strata.protocols import portforward, remotecommand
from strata.protocols.channels import MESSAGE_LIMIT_BYTES, WebSocketChannel, upgrade
from strata.telemetry import logs

log = logs.get("highrt.streaming")

_EXPIRY_SECONDS = 60
_OUTSTANDING_LIMIT = 1000


@dataclass(frozen=True)
class Command:
    """An exec or attach that waits for its client."""

    start: Callable[[Stdio], Awaitable[Running]]
    container_id: str
    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool


@dataclass(frozen=True)
class Forward:
    """A port-forward that waits for its client. dial: a socket connected to that port inside the pod."""

    dial: Callable[[int], Awaitable[socket.socket]]
    pod_id: str


class TooManyWaiting(Exception):
    """More clients asked for URLs than came for them."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server listens. port: 0 is a free one. certificate and key: files (PEM) for TLS; without them it is plain http,
    which is for loopback alone. client_authorities: a file of the CAs whose certificates clients must have."""

    address: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_authorities: Path | None = None

    def tls(self) -> ssl.SSLContext | None:
        """Raises OSError, also where a file is no certificate or key."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        if self.client_authorities:
            context.load_verify_locations(self.client_authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class StreamingServer:
    """`start` listens, `close` ends all connections."""

    def __init__(self, endpoint: Endpoint | None = None) -> None:
        self._endpoint = endpoint or Endpoint()
        self._waiting: dict[str, tuple[float, str, Command | Forward]] = {}
        self._runner: web.AppRunner | None = None
        self._base = ""

    async def start(self) -> None:
        """Raises OSError where it cannot listen, or the files of TLS cannot be used."""
        app = web.Application()
        app.router.add_route("*", "/{kind:exec|attach|portforward}/{token}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        tls, address = self._endpoint.tls(), self._endpoint.address
        site = web.TCPSite(self._runner, address, self._endpoint.port, ssl_context=tls)
        await site.start()
        host = f"[{address}]" if ":" in address else address
        self._base = f"{'https' if tls else 'http'}://{host}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def url(self, kind: str, work: Command | Forward) -> str:
        """A URL for one connection within a minute. kind: exec, attach or portforward. Raises TooManyWaiting."""
        now = time.monotonic()
        for token in [token for token, (expires, _, _) in self._waiting.items() if expires < now]:
            del self._waiting[token]
        if len(self._waiting) >= _OUTSTANDING_LIMIT:
            raise TooManyWaiting(f"{len(self._waiting)} streaming URLs wait for their clients: try again in a minute")
        token = secrets.token_urlsafe(16)
        self._waiting[token] = (now + _EXPIRY_SECONDS, kind, work)
        return f"{self._base}/{kind}/{token}"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        kind, token = request.match_info["kind"], request.match_info["token"]
        expires, wanted, work = self._waiting.get(token, (0.0, "", None))
        if work is None or wanted != kind or expires < time.monotonic():
            raise web.HTTPNotFound(text=f"no such {kind} request, or it was used or expired: ask the runtime for a new URL\n")
        kind_of_upgrade = request.headers.get("Upgrade", "").lower()
        if kind_of_upgrade not in ("websocket", "spdy/3.1"):
            raise web.HTTPBadRequest(text=f"{kind} needs a connection that is upgraded to WebSocket or SPDY/3.1\n")
        del self._waiting[token]
        if isinstance(work, Forward):
            return await self._forward(request, work, websocket=kind_of_upgrade == "websocket")
        if kind_of_upgrade == "websocket":
            ws = await _websocket(request, remotecommand.WEBSOCKET_PROTOCOLS)
            await self._run(work, remotecommand.WebSocketPeer(ws))
            return ws
        protocol = _spdy_protocol(request, remotecommand.SPDY_PROTOCOLS)
        channel = await upgrade(request, _switching(protocol))
        peer = remotecommand.SpdyPeer(channel, protocol)
        try:
            streams = {"stdin": work.stdin, "stdout": work.stdout, "stderr": work.stderr and not work.terminal}
            await peer.accept(["error", *(name for name, there in streams.items() if there)])
            await self._run(work, peer)
        except (TimeoutError, OSError) as error:
            log.info("a streaming client did not come through", container=work.container_id, error=str(error))
        finally:
            await peer.close()
        return web.Response()

    async def _run(self, work: Command, peer: remotecommand.Peer) -> None:
        try:
            code = await relay(peer, work.start, stdin=work.stdin, stdout=work.stdout, stderr=work.stderr and not work.terminal)
            status = remotecommand.exited(code or 0)
        except ClientGone:
            log.info("the client left before the command's end", container=work.container_id)
            return
        except (PodError, OSError) as error:
            status = remotecommand.failed(str(error))
        await peer.finish(status)

    async def _forward(self, request: web.Request, work: Forward, *, websocket: bool) -> web.StreamResponse:
        async def dial(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            try:
                return await asyncio.open_connection(sock=await work.dial(port))
            except PodError as error:
                raise ConnectionError(str(error)) from error

        if websocket:
            ws = await _websocket(request, (portforward.WEBSOCKET_PROTOCOL,))
            await portforward.Forwarder(WebSocketChannel(ws), dial).run()
            return ws
        protocol = _spdy_protocol(request, (portforward.SPDY_PROTOCOL,))
        await portforward.Forwarder(await upgrade(request, _switching(protocol)), dial).run()
        return web.Response()


async def _websocket(request: web.Request, protocols: tuple[str, ...]) -> web.WebSocketResponse:
    """Upgrades to a WebSocket that speaks the first of the protocols that the client offers, too."""
    offered = [item.strip() for item in ",".join(request.headers.getall("Sec-WebSocket-Protocol", [])).split(",")]
    chosen = [protocol for protocol in protocols if protocol in offered]
    if not chosen:
        raise web.HTTPBadRequest(text=f"none of the WebSocket protocols {offered} is spoken here: use {', '.join(protocols)}\n")
    ws = web.WebSocketResponse(protocols=chosen[:1], compress=False, max_msg_size=MESSAGE_LIMIT_BYTES, timeout=10)
    await ws.prepare(request)
    return ws


def _spdy_protocol(request: web.Request, protocols: tuple[str, ...]) -> str:
    offered = [item.strip() for header in request.headers.getall("X-Stream-Protocol-Version", []) for item in header.split(",")]
    for protocol in protocols:
        if protocol in offered or (not offered and protocol == protocols[-1]):
            return protocol
    raise web.HTTPForbidden(
        text=f"none of the stream protocols {offered} is spoken here: use {', '.join(protocols)}\n",
        headers=[("X-Accepted-Stream-Protocol-Versions", protocol) for protocol in protocols],
    )


def _switching(protocol: str) -> bytes:
    status = HTTPStatus.SWITCHING_PROTOCOLS
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        f"X-Stream-Protocol-Version: {protocol}\r\n\r\n"
    ).encode()
