"""The peers of exec and attach: clients on a WebSocket, and on a SPDY connection. See `remotecommand`."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from strata.protocols import spdy
from strata.protocols.remotecommand import (
    CLOSE,
    ERROR,
    RESIZE,
    SPDY_PROTOCOLS,
    STDIN,
    STDOUT,
    Input,
    Stdin,
    StdinClosed,
    resize,
)

_STREAMS_TIMEOUT_SECONDS = 30
_RESIZE_LIMIT_BYTES = 4096


class WebSocketPeer:
    """A client on a WebSocket that speaks v4 or v5.channel.k8s.io."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def receive(self) -> Input | None:
        while True:
            message = await self._socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return None
            data = message.data if isinstance(message.data, bytes) else str(message.data).encode()
            if not data:
                continue
            channel, body = data[0], data[1:]
            if channel == STDIN and body:
                return Stdin(body)
            if channel == CLOSE and body[:1] == bytes([STDIN]) and self._socket.ws_protocol == "v5.channel.k8s.io":
                return StdinClosed()
            if channel == RESIZE and (size := resize(body)):
                return size

    async def send(self, channel: int, data: bytes) -> None:
        await self._socket.send_bytes(bytes([channel]) + data)

    async def finish(self, status: dict[str, Any]) -> None:
        with suppress(OSError):
            await self._socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())
        await self._socket.close(code=WSCloseCode.OK)


class SpdyPeer:
    """A client on a SPDY connection. `accept` waits for its streams; the owner calls `finish` or `close`."""

    def __init__(self, channel: spdy.Channel, protocol: str) -> None:
        self._connection = spdy.Connection(channel, self._opened)
        self._protocol = protocol
        self._streams: dict[str, spdy.Stream] = {}
        self._arrived = asyncio.Event()
        self._inputs: asyncio.Queue[Input | None] = asyncio.Queue(4)
        self._tasks: list[asyncio.Task[None]] = []

    def _opened(self, stream: spdy.Stream) -> None:
        name = stream.headers.get("streamtype", "")
        if name in self._streams:
            return  # each kind once
        self._streams[name] = stream
        self._arrived.set()
        # Pumped from when it comes: a client may open its resize stream after all that were waited for.
        if pump := {"stdin": self._pump_stdin, "resize": self._pump_resize}.get(name):
            self._tasks.append(asyncio.create_task(pump(stream)))

    async def accept(self, wanted: Sequence[str]) -> None:
        """Waits until the client has opened its streams: `error`, and of stdin, stdout, stderr, resize those it asked for.

        Raises TimeoutError when they do not come within half a minute, ConnectionError when the client goes.
        """
        serving = asyncio.create_task(self._serve())
        self._tasks.append(serving)
        async with asyncio.timeout(_STREAMS_TIMEOUT_SECONDS):
            while missing := [name for name in wanted if name not in self._streams]:
                if serving.done():
                    raise ConnectionResetError(f"the client left before it opened its streams {', '.join(missing)}")
                self._arrived.clear()
                await self._arrived.wait()

    async def _serve(self) -> None:
        try:
            with suppress(OSError, spdy.SpdyError):
                await self._connection.run()
        finally:
            self._arrived.set()
        await self._inputs.put(None)

    async def _pump_stdin(self, stream: spdy.Stream) -> None:
        with suppress(spdy.SpdyError):
            while data := await stream.read():
                await self._inputs.put(Stdin(data))
        await self._inputs.put(StdinClosed())

    async def _pump_resize(self, stream: spdy.Stream) -> None:
        """Sizes follow each other as JSON objects without a separator that could be relied on."""
        decoder, text = json.JSONDecoder(), ""
        with suppress(spdy.SpdyError):
            while data := await stream.read():
                text = (text + data.decode(errors="replace")).lstrip()
                while text:
                    try:
                        _, end = decoder.raw_decode(text)
                    except ValueError:
                        break
                    if size := resize(text[:end].encode()):
                        await self._inputs.put(size)
                    text = text[end:].lstrip()
                if len(text) > _RESIZE_LIMIT_BYTES:
                    return

    async def receive(self) -> Input | None:
        return await self._inputs.get()

    async def send(self, channel: int, data: bytes) -> None:
        if stream := self._streams.get("stdout" if channel == STDOUT else "stderr"):
            try:
                await stream.write(data)
            except spdy.SpdyError as error:
                raise ConnectionResetError(str(error)) from error

    async def finish(self, status: dict[str, Any]) -> None:
        with suppress(OSError, spdy.SpdyError):
            error = self._streams.get("error")
            for name, stream in self._streams.items():
                if name in ("stdout", "stderr"):
                    await stream.close()
            if error is not None:
                # Before v4 the error stream carried a text, and nothing after success.
                if self._protocol == SPDY_PROTOCOLS[0]:
                    await error.write(json.dumps(status).encode())
                elif status["status"] != "Success":
                    await error.write(str(status["message"]).encode())
                await error.close()
        await self.close()

    async def close(self) -> None:
        """Ends the connection and all that belongs to it."""
        # The reader goes before the channel is closed: closing reads the rest itself.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(OSError, spdy.SpdyError):
            await self._connection.close()
