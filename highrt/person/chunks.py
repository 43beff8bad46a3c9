"""Streams of a call: a file that is a client's messages, or is read in chunks, and work that goes on without its caller."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, BinaryIO, TypeVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.streaming import pipes
from strata.protocols import highrt_pb2 as api

T = TypeVar("T")

_CHUNK = 256 * 1024

_working: set["asyncio.Task[Any]"] = set()


def whole(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Has it done to its end, whatever becomes of the call. What a thread uses must not be closed before the thread ends: a
    file's close would wait for it, and with it everybody."""
    task = asyncio.create_task(work)
    _working.add(task)
    task.add_done_callback(_working.discard)
    return task


async def written(write: Callable[[BinaryIO], Awaitable[None]]) -> AsyncGenerator[api.Chunk, None]:
    """What is written to a file, in chunks. A client that goes breaks the file."""
    async with AsyncExitStack() as owned:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        source = await pipes.reader(reading, owned)

        async def work() -> None:
            with os.fdopen(writing, "wb") as target:
                await write(target)

        task = whole(work())
        try:
            while data := await source.read(_CHUNK):
                yield api.Chunk(data=data)
        except BaseException:
            task.add_done_callback(asyncio.Task.exception)  # nobody hears of it
            raise
        await asyncio.shield(task)


async def fed(stream: Any, read: Callable[[BinaryIO], Awaitable[T]]) -> T:
    """What comes of reading a file that is the data of a client's messages. A client that goes ends the file."""
    async with AsyncExitStack() as owned:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        feeding = asyncio.create_task(_feed(stream, await pipes.writer(writing, owned)))
        owned.callback(feeding.cancel)

        async def work() -> T:
            with os.fdopen(reading, "rb") as source:
                return await read(source)

        task = whole(work())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(asyncio.Task.exception)  # nobody hears of it
            raise


async def _feed(stream: Any, pipe: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while (message := await stream.recv_message()) is not None:
            pipe.write(message.data)
            await pipe.drain()
        pipe.close()


async def first(stream: Any) -> Any:
    message = await stream.recv_message()
    if message is None or message.WhichOneof("message") != "start":
        raise GRPCError(Status.INVALID_ARGUMENT, "the first message must be `start`")
    return message.start
