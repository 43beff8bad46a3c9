"""A command of a container with the person's own streams: the client's side of Exec and Attach."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Any

from grpclib.exceptions import GRPCError, StreamTerminatedError

from highrt.cli import terminal
from strata.protocols import highrt_pb2 as api

_PROXIED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Detached(Exception):
    """The person typed the detach keys."""


async def converse(
    call: Any,
    message: type[api.ExecInput] | type[api.AttachInput],
    start: Any,
    *,
    stdin: bool,
    tty: bool,
    on_signal: Callable[[int], Awaitable[None]] | None = None,
) -> int:
    """Opens the call, joins it with this process's streams, and returns the exit code.

    message: the call's input message. start: its first one. stdin: whether input is passed on. tty: whether the container has
    a terminal; the person's is in raw mode then. on_signal: called with signals that this process gets. Raises Detached, and
    GRPCError with the daemon's words.
    """
    loop = asyncio.get_running_loop()
    async with call.open() as stream:
        await stream.send_message(message(start=start))
        sending = asyncio.Lock()

        async def send(**content: Any) -> None:
            async with sending:
                with suppress(StreamTerminatedError, ConnectionError):
                    await stream.send_message(message(**content))

        with ExitStack() as stack:
            tasks: set[asyncio.Task[Any]] = set()

            def spawn(work: Awaitable[None]) -> None:
                task = asyncio.ensure_future(work)
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            def tell_size() -> None:
                if size := terminal.window_size():
                    spawn(send(resize=api.WindowSize(width=size[0], height=size[1])))

            outcome: asyncio.Future[int] = loop.create_future()
            receiving = asyncio.ensure_future(_receive(stream, outcome, lambda: _begin()))

            def _begin() -> None:
                """The command runs: from here on the terminal is its."""
                if tty and terminal.is_terminal():
                    stack.enter_context(terminal.raw_mode())
                if tty:
                    tell_size()
                    stack.enter_context(terminal.on_resize(tell_size))
                if stdin:
                    spawn(_send_input(send, outcome, detachable=tty and terminal.is_terminal()))

            if on_signal:
                for number in _PROXIED_SIGNALS:
                    loop.add_signal_handler(number, lambda number=number: spawn(on_signal(number)))  # type: ignore[misc]
                    stack.callback(loop.remove_signal_handler, number)
            try:
                code = await outcome
            finally:
                receiving.cancel()
                for task in [*tasks]:
                    task.cancel()
                await asyncio.gather(receiving, *tasks, return_exceptions=True)
        await stream.cancel()
        return code


async def _receive(stream: Any, outcome: "asyncio.Future[int]", begin: Callable[[], None]) -> None:
    try:
        while (output := await stream.recv_message()) is not None:
            match output.WhichOneof("message"):
                case "stdout":
                    await asyncio.to_thread(terminal.write_all, 1, output.stdout)
                case "stderr":
                    await asyncio.to_thread(terminal.write_all, 2, output.stderr)
                case "started":
                    begin()
                case "exit_code":
                    outcome.set_result(output.exit_code)
                    return
        await stream.recv_trailing_metadata()
        raise ConnectionError("the daemon ended the stream without an exit code")
    except (GRPCError, StreamTerminatedError, OSError) as error:
        if not outcome.done():
            outcome.set_exception(error)


async def _send_input(send: Callable[..., Awaitable[None]], outcome: "asyncio.Future[int]", *, detachable: bool) -> None:
    source, keys = terminal.Input(), terminal.DetachKeys()
    while data := await source.read():
        detach = False
        if detachable:
            data, detach = keys.feed(data)
        if data:
            await send(stdin=data)
        if detach:
            if not outcome.done():
                outcome.set_exception(Detached())
            return
    await send(stdin_closed=True)
