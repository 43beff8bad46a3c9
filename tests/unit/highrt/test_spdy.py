"""SPDY framing: both ends of a connection over a socket pair."""

import asyncio
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from strata.protocols import spdy
from strata.protocols.channels import SocketChannel


async def channel(end: socket.socket) -> SocketChannel:
    return SocketChannel(*await asyncio.open_connection(sock=end))


@asynccontextmanager
async def pair(on_stream: Callable[[spdy.Stream], None]) -> AsyncIterator[tuple[spdy.Connection, spdy.Connection]]:
    """A client and a server that are connected and run."""
    ours, theirs = socket.socketpair()
    client = spdy.Connection(await channel(ours), server=False)
    server = spdy.Connection(await channel(theirs), on_stream, server=True)
    running = [asyncio.create_task(client.run()), asyncio.create_task(server.run())]
    try:
        yield client, server
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.gather(client.close(), server.close(), return_exceptions=True)


def test_the_dictionary_is_the_specifications() -> None:
    # The Adler-32 sum is on the wire: zlib asks for the dictionary by it (RFC 1950).
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


async def test_streams_carry_headers_and_data_both_ways_and_half_close() -> None:
    arrived: asyncio.Queue[spdy.Stream] = asyncio.Queue()
    async with pair(arrived.put_nowait) as (client, _):
        for number in range(3):  # the compression's state goes on from stream to stream
            stream = await client.open({"streamType": "data", "requestID": str(number)})
            await stream.write(b"question")
            await stream.close()
            other = await arrived.get()
            assert other.headers == {"streamtype": "data", "requestid": str(number)}
            assert await other.read() == b"question"
            assert await other.read() == b""
            await other.write(b"answer")
            await other.close()
            assert await stream.read() == b"answer"
            assert await stream.read() == b""


async def test_a_stream_that_nobody_reads_holds_its_writer_up() -> None:
    arrived: asyncio.Queue[spdy.Stream] = asyncio.Queue()
    async with pair(arrived.put_nowait) as (client, _):
        stream = await client.open({})
        size = 8 * 1024 * 1024
        writing = asyncio.create_task(stream.write(bytes(size)))
        other = await arrived.get()
        await asyncio.wait([writing], timeout=0.3)
        assert not writing.done()
        received = 0
        while received < size:
            received += len(await other.read())
        await writing


async def test_a_reset_ends_both_sides() -> None:
    arrived: asyncio.Queue[spdy.Stream] = asyncio.Queue()
    async with pair(arrived.put_nowait) as (client, _):
        stream = await client.open({})
        other = await arrived.get()
        await other.reset()
        with pytest.raises(spdy.SpdyError, match="reset"):
            await stream.read()
        with pytest.raises(spdy.SpdyError, match="closed"):
            await stream.write(b"x")


async def test_the_end_of_the_connection_is_the_end_of_its_streams() -> None:
    arrived: asyncio.Queue[spdy.Stream] = asyncio.Queue()
    async with pair(arrived.put_nowait) as (client, server):
        stream = await client.open({})
        other = await arrived.get()
        await other.write(b"last")
        closing = asyncio.create_task(server.close())
        assert await stream.read() == b"last"
        assert await stream.read() == b""
        await client.close()
        await closing


async def raw_server() -> tuple[socket.socket, "asyncio.Task[None]"]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    server = spdy.Connection(await channel(theirs), lambda _: None, server=True)
    return ours, asyncio.create_task(server.run())


async def test_a_ping_comes_back() -> None:
    ours, running = await raw_server()
    ping = struct.pack(">III", 0x80030006, 4, 7)
    await asyncio.get_running_loop().sock_sendall(ours, ping)
    assert await asyncio.get_running_loop().sock_recv(ours, 100) == ping
    ours.close()
    await running


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (struct.pack(">II", 0x80020001, 0), "version 2"),
        (struct.pack(">II", 0x8003000B, 0), "unknown control frame 11"),
        (struct.pack(">II", 0x80030001, 0xFFFFFF), "longer than the limit"),
        (struct.pack(">II", 0x80030001, 14) + bytes(10) + b"junk", "cannot be read"),
        (struct.pack(">II", 0x80030001, 2) + b"xx", "cannot be read"),
    ],
)
async def test_a_broken_frame_ends_the_connection(frame: bytes, what: str) -> None:
    ours, running = await raw_server()
    await asyncio.get_running_loop().sock_sendall(ours, frame)
    with pytest.raises(spdy.SpdyError, match=what):
        await running
    ours.close()


async def test_headers_that_swell_are_refused() -> None:
    ours, running = await raw_server()
    packer = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = packer.compress(bytes(10_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    body = struct.pack(">IIH", 1, 0, 0) + block
    await asyncio.get_running_loop().sock_sendall(ours, struct.pack(">II", 0x80030001, len(body)) + body)
    with pytest.raises(spdy.SpdyError, match="more than"):
        await running
    ours.close()


async def test_data_for_a_stream_that_never_was_is_answered_by_a_reset() -> None:
    ours, running = await raw_server()
    await asyncio.get_running_loop().sock_sendall(ours, struct.pack(">II", 9, 1) + b"x")
    assert await asyncio.get_running_loop().sock_recv(ours, 100) == struct.pack(">IIII", 0x80030003, 8, 9, spdy.INVALID_STREAM)
    ours.close()
    await running
