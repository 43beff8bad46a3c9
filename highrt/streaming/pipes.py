"""Pipes as asyncio streams. Each is closed by the exit stack that it is given to."""

import asyncio
import os
from contextlib import AsyncExitStack

READ_LIMIT_BYTES = 32 * 1024


async def reader(descriptor: int, owned: AsyncExitStack) -> asyncio.StreamReader:
    """Reads from a pipe's end, which it owns from now on."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader(limit=READ_LIMIT_BYTES)
    pipe = os.fdopen(descriptor, "rb", 0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    owned.callback(transport.close)
    return stream


async def writer(descriptor: int, owned: AsyncExitStack) -> asyncio.StreamWriter:
    """Writes to a pipe's end, which it owns from now on. What nobody has read at the end is thrown away."""
    loop = asyncio.get_running_loop()
    pipe = os.fdopen(descriptor, "wb", 0)
    transport, protocol = await loop.connect_write_pipe(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe)

    def end() -> None:
        # abort, not close: what nobody reads would hold the pipe open; but one that is closed already bears no abort
        if transport.get_write_buffer_size() or not transport.is_closing():
            transport.abort()

    owned.callback(end)
    return asyncio.StreamWriter(transport, protocol, None, loop)
