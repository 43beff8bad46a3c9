"""Port-forward over SPDY: pairs of streams, one pair a forwarded connection.

A client opens for each connection a stream with the header `streamtype: error` and one with `streamtype: data`, both with
the same `requestid` and `port` (portforward.k8s.io). Over WebSocket the same SPDY bytes travel in messages (KEP-4006).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from strata.protocols import spdy

SPDY_PROTOCOL = "portforward.k8s.io"
WEBSOCKET_PROTOCOL = "SPDY/3.1+portforward.k8s.io"

_PAIR_TIMEOUT_SECONDS = 30
_CHUNK = 64 * 1024

Dial = Callable[[int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Forwarder:
    """Serves one client's port-forward.

    dial: connects to a port of the pod; what it raises (OSError or ValueError) is told to the client in its error stream.
    """

    def __init__(self, channel: spdy.Channel, dial: Dial) -> None:
        self._connection = spdy.Connection(channel, self._opened)
        self._dial = dial
        self._half: dict[str, spdy.Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Forwards until the client leaves, then ends all its connections."""
        try:
            with suppress(OSError, spdy.SpdyError):
                await self._connection.run()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with suppress(OSError, spdy.SpdyError):
                await self._connection.close()

    def _start(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _opened(self, stream: spdy.Stream) -> None:
        kind, port = stream.headers.get("streamtype", ""), stream.headers.get("port", "")
        # Clients older than Kubernetes 1.3 send no request number: the pair is the port's then.
        key = stream.headers.get("requestid") or f"port {port}"
        other = self._half.pop(key, None)
        if kind not in ("error", "data") or (other is not None and other.headers.get("streamtype") == kind):
            self._start(stream.reset(spdy.PROTOCOL_ERROR))
        elif other is None:
            self._half[key] = stream
            self._start(self._expire(key, stream))
        else:
            data, error = (stream, other) if kind == "data" else (other, stream)
            self._start(self._forward(data, error))

    async def _expire(self, key: str, stream: spdy.Stream) -> None:
        await asyncio.sleep(_PAIR_TIMEOUT_SECONDS)
        if self._half.get(key) is stream:
            del self._half[key]
            await stream.reset()

    async def _forward(self, data: spdy.Stream, error: spdy.Stream) -> None:
        text = data.headers.get("port", "")
        try:
            if not text.isdigit() or not 0 < int(text) < 65536:
                raise ValueError(f"{text!r} is not a port number")
            reader, writer = await self._dial(int(text))
        except (OSError, ValueError) as problem:
            with suppress(OSError, spdy.SpdyError):
                await error.write(f"error forwarding port {text}: {problem}".encode())
                await error.close()
                await data.close()
            return
        try:
            inward = asyncio.create_task(_inward(data, writer))
            with suppress(OSError, spdy.SpdyError):
                while chunk := await reader.read(_CHUNK):
                    await data.write(chunk)
            with suppress(OSError, spdy.SpdyError):
                await data.close()
                await error.close()
            # A server that has ended its side may still be sent to.
            await inward
        finally:
            inward.cancel()
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def _inward(data: spdy.Stream, writer: asyncio.StreamWriter) -> None:
    """From the client to the pod; the client's end is passed on as a half-close."""
    with suppress(OSError, spdy.SpdyError):
        while chunk := await data.read():
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
