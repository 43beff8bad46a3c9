"""Joins a client of exec or attach with a command in a container, and ends both together."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Protocol

from highrt.pods.model import Stdio
from highrt.streaming import pipes
from strata.protocols.remotecommand import STDERR, STDOUT, Peer, Resize, Stdin, StdinClosed

_IDLE_SECONDS = 0.5


class Running(Protocol):
    """A command that runs, or a container that is attached to."""

    async def resize(self, width: int, height: int) -> None: ...

    async def wait(self) -> int | None:
        """Waits for its end; the exit code, or None where there is none (attach)."""

    async def end(self) -> None:
        """The client is gone: kills the command, or detaches from the container."""


class ClientGone(Exception):
    """The client left before the command's end."""


async def relay(
    peer: Peer,
    start: Callable[[Stdio], Awaitable[Running]],
    *,
    stdin: bool,
    stdout: bool = True,
    stderr: bool = True,
    started: Callable[[], Awaitable[None]] | None = None,
) -> int | None:
    """Runs the command with its streams at the client's, and returns its exit code (None for attach).

    start: gets the container's ends of the pipes and owns them from then on. stdin, stdout, stderr: which streams the
    client has. started: called once the command runs. Raises what `start` raises, and ClientGone.
    """
    async with AsyncExitStack() as owned:
        theirs: list[int | None] = [None, None, None]
        writer: asyncio.StreamWriter | None = None
        readers: dict[int, asyncio.StreamReader] = {}
        try:
            if stdin:
                theirs[0], ours = os.pipe2(os.O_CLOEXEC)
                writer = await pipes.writer(ours, owned)
            for channel, wanted in ((STDOUT, stdout), (STDERR, stderr)):
                if wanted:
                    ours, theirs[channel] = os.pipe2(os.O_CLOEXEC)
                    readers[channel] = await pipes.reader(ours, owned)
        except BaseException:
            for descriptor in theirs:
                if descriptor is not None:
                    os.close(descriptor)
            raise
        running = await start(Stdio(theirs[0], theirs[1], theirs[2]))
        tasks: list[asyncio.Task[None]] = []
        try:
            if started:
                await started()
            pumps = [_Pump(peer, channel, reader) for channel, reader in readers.items()]
            gone = asyncio.create_task(_inputs(peer, running, writer))
            outputs = [asyncio.create_task(pump.run()) for pump in pumps]
            tasks += [gone, *outputs]
            finished = asyncio.ensure_future(running.wait())
            try:
                await asyncio.wait([gone, finished], return_when=asyncio.FIRST_COMPLETED)
                if not finished.done():
                    raise ClientGone
                code = finished.result()
            finally:
                finished.cancel()
            await _drain(pumps, outputs, gone)
            return code
        except BaseException:
            with suppress(Exception):
                await running.end()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Pump:
    """One output stream, from its pipe to the client."""

    def __init__(self, peer: Peer, channel: int, reader: asyncio.StreamReader) -> None:
        self._peer, self._channel, self._reader = peer, channel, reader
        self.sending = False
        self.chunks = 0

    async def run(self) -> None:
        with suppress(OSError):
            while data := await self._reader.read(pipes.READ_LIMIT_BYTES):
                self.chunks += 1
                self.sending = True
                await self._peer.send(self._channel, data)
                self.sending = False


async def _drain(pumps: list[_Pump], outputs: list[asyncio.Task[None]], gone: "asyncio.Task[None]") -> None:
    """Sends what the command wrote before its end.

    A process that it left behind may hold the pipes open for ever: reading stops when nothing comes for a while.
    """
    pending = set(outputs)
    while pending and not gone.done():
        before = sum(pump.chunks for pump in pumps)
        _, pending = await asyncio.wait(pending, timeout=_IDLE_SECONDS)
        if pending and before == sum(pump.chunks for pump in pumps) and not any(pump.sending for pump in pumps):
            return


async def _inputs(peer: Peer, running: Running, writer: asyncio.StreamWriter | None) -> None:
    """From the client to the command; returns when the client is gone."""
    while (message := await peer.receive()) is not None:
        if isinstance(message, Resize):
            with suppress(Exception):  # it may just have ended
                await running.resize(message.width, message.height)
        elif writer is None:
            continue
        elif isinstance(message, Stdin):
            try:
                writer.write(message.data)
                await writer.drain()
            except OSError:  # nobody reads it any more: the rest is thrown away, as a shell's pipe does
                writer = None
        elif isinstance(message, StdinClosed):
            writer.close()
            writer = None
