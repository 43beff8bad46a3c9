"""Connections that were upgraded: a plain socket after an HTTP 101, or the messages of a WebSocket, as streams of bytes."""

import asyncio
from contextlib import suppress

from aiohttp import WSCloseCode, WSMsgType, web

MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024
_LINGER_SECONDS = 10


class SocketChannel:
    """The connection of an aiohttp request after `upgrade`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._reading = asyncio.Lock()

    async def read(self) -> bytes:
        async with self._reading:
            return await self._reader.read(64 * 1024)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """Ends our side, then waits a while for the peer's end: closing with unread bytes would cut off the last answer."""
        with suppress(OSError):
            await self._writer.drain()
            if self._writer.can_write_eof():  # TLS has no half-closed connections
                self._writer.write_eof()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_SECONDS):
                        while await self.read():
                            pass
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def upgrade(request: web.Request, head: bytes) -> SocketChannel:
    """Answers the request with `head` (a whole HTTP response head) and takes its connection over from aiohttp.

    The handler must end the channel before it returns. Raises ConnectionResetError where the client is gone.
    """
    transport = request.transport
    if transport is None or not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("the client closed the connection")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    transport.resume_reading()
    channel = SocketChannel(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
    await channel.write(head)
    return channel


class WebSocketChannel:
    """The binary messages of a WebSocket, one after another, as bytes (how SPDY is tunneled)."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                if message.data:
                    return bytes(message.data)
            elif message.type is not WSMsgType.TEXT:
                return b""

    async def write(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def close(self) -> None:
        await self._socket.close(code=WSCloseCode.OK)
