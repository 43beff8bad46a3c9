"""Passes a connection that is to be upgraded on to another server, bytes both ways.

Exec, attach and port-forward are spoken between the client and the runtime (WebSocket or SPDY). The API server and the
kubelet, which lie between, send the client's own request head on and understand nothing of what passes from then on.
"""

import asyncio
import ssl
from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import web

_HOP = {"host", "authorization", "content-length", "transfer-encoding"}
CONNECT_SECONDS = 10.0


class _Pipe(asyncio.Protocol):
    """Writes all that it receives to the other side; each side stops reading while the other is full."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Pipe | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def join(self, other: "_Pipe") -> None:
        self.other = other
        for data in self._early:
            self._forward(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        else:
            self._forward(data)

    def _forward(self, data: bytes) -> None:
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        return False  # the streams inside have their own ends

    def pause_writing(self) -> None:
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        if self.other and self.other.transport:
            self.other.transport.close()


async def splice(request: web.BaseRequest, url: str, *, tls: ssl.SSLContext | None = None) -> web.StreamResponse:
    """Connects the request's connection with the URL's server until either side ends.

    tls: how to reach an https URL, with the certificate that says who we are. The answer (101 and what follows it) is the
    server's own. Raises OSError where the server cannot be reached.
    """
    target = urlsplit(url)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        _, upstream = await loop.create_connection(
            _Pipe, target.hostname or "127.0.0.1", target.port or (443 if tls else 80), ssl=tls
        )
    client = _Pipe()
    transport = cast(asyncio.Transport, request.transport)
    if transport is None or transport.is_closing():
        if upstream.transport:
            upstream.transport.close()
        raise ConnectionResetError("the client is gone")
    handler: Any = request.protocol
    client.transport = transport
    transport.set_protocol(client)
    client.join(upstream)
    upstream.join(client)
    assert upstream.transport is not None
    upstream.transport.write(_head(request, target.netloc, f"{target.path}?{target.query}" if target.query else target.path))
    try:
        await asyncio.wait({client.lost, upstream.lost}, return_when=asyncio.ALL_COMPLETED)
    finally:
        upstream.transport.close()
        transport.close()
        # aiohttp's own protocol did not see the end of the connection that it began with.
        handler.connection_lost(None)
    return web.Response()


def _head(request: web.BaseRequest, host: str, path: str) -> bytes:
    lines = [f"{request.method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() not in _HOP]
    if request.method == "POST":
        lines.append("Content-Length: 0")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
