"""The streaming server's connections: http that is upgraded to a WebSocket (v5/v4.channel.k8s.io;
SPDY/3.1+portforward.k8s.io) or to SPDY/3.1. Kubelet and API server only pass its bytes on.
"""

import asyncio
import socket
import ssl
from http import HTTPStatus

from aiohttp import web

from highrt.pods.errors import PodError
from highrt.streaming.relay import ClientGone, relay
from highrt.streaming.server import Command, Forward, Waiting
from strata.protocols import portforward, remotecommand
from strata.protocols.channels import MESSAGE_LIMIT_BYTES, WebSocketChannel, upgrade
from strata.protocols.remotecommand_peers import SpdyPeer, WebSocketPeer
from strata.telemetry import logs

log = logs.get("highrt.streaming")


class Connections:
    """All connections to the streaming server's socket, from `serve` to `close`."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        app = web.Application()
        app.router.add_route("*", "/{kind:exec|attach|portforward}/{token}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    async def serve(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Takes the socket over, with the clients that wait there."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=tls).start()

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        kind, token = request.match_info["kind"], request.match_info["token"]
        work = self._waiting.find(kind, token)
        if work is None:
            raise web.HTTPNotFound(text=f"no such {kind} request, or it was used or expired: ask the runtime for a new URL\n")
        kind_of_upgrade = request.headers.get("Upgrade", "").lower()
        if kind_of_upgrade not in ("websocket", "spdy/3.1"):
            raise web.HTTPBadRequest(text=f"{kind} needs a connection that is upgraded to WebSocket or SPDY/3.1\n")
        self._waiting.remove(token)
        if isinstance(work, Forward):
            return await self._forward(request, work, websocket=kind_of_upgrade == "websocket")
        if kind_of_upgrade == "websocket":
            ws = await _websocket(request, remotecommand.WEBSOCKET_PROTOCOLS)
            await self._run(work, WebSocketPeer(ws))
            return ws
        protocol = _spdy_protocol(request, remotecommand.SPDY_PROTOCOLS)
        channel = await upgrade(request, _switching(protocol))
        peer = SpdyPeer(channel, protocol)
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
