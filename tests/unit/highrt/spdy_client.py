"""A client's side of SPDY for tests: inside a WebSocket's messages, and port-forward's pairs of streams."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from strata.protocols import spdy


class Tunnel:
    """The client's end of SPDY inside WebSocket messages."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws

    async def read(self) -> bytes:
        message = await self._ws.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else b""

    async def write(self, data: bytes) -> None:
        await self._ws.send_bytes(data)

    async def close(self) -> None:
        await self._ws.close()

    @staticmethod
    @asynccontextmanager
    async def connection(ws: aiohttp.ClientWebSocketResponse) -> AsyncIterator[spdy.Connection]:
        connection = spdy.Connection(Tunnel(ws), server=False)
        running = asyncio.create_task(connection.run())
        try:
            yield connection
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await connection.close()


async def rest(stream: spdy.Stream) -> bytes:
    """All that the peer sends until it closes its side."""
    found = b""
    while data := await stream.read():
        found += data
    return found


async def forward(connection: spdy.Connection, number: int, port: int, data: bytes) -> tuple[bytes, bytes]:
    """Sends the data to a port, and returns the answer and what the error stream said."""
    headers = {"port": str(port), "requestID": str(number)}
    error = await connection.open({"streamType": "error", **headers})
    await error.close()
    stream = await connection.open({"streamType": "data", **headers})
    await stream.write(data)
    await stream.close()
    return await rest(stream), await rest(error)
