"""What a pull, push or build reports from inside, as a stream of messages to its client."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from highrt.images.model import Progress
from strata.protocols import highrt_pb2 as api

_INTERVAL_SECONDS = 0.1

T = TypeVar("T")


async def transfer(work: Callable[[Callable[[Progress], None]], Awaitable[str]]) -> AsyncGenerator[api.Progress, None]:
    """Runs a pull or push, and yields each layer's latest state some times a second; at last its result.

    The work is cancelled where the client goes. Raises what the work raises.
    """
    latest: dict[str, Progress] = {}

    def report(progress: Progress) -> None:
        latest[progress.layer] = progress

    task = asyncio.ensure_future(work(report))
    try:
        while True:
            await asyncio.wait([task], timeout=_INTERVAL_SECONDS)
            changed = [*latest.values()]
            latest.clear()
            for item in changed:
                yield api.Progress(layer=item.layer, done_bytes=item.done_bytes, total_bytes=item.total_bytes, phase=item.phase)
            if task.done():
                yield api.Progress(phase="done", result=task.result())
                return
    finally:
        await _end(task)


async def lines(work: Callable[[Callable[[str], None]], Awaitable[str]]) -> AsyncGenerator[api.BuildEvent, None]:
    """Runs a build and yields its lines, at last the image's ID. Cancels and raises as `transfer` does."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def say(line: str) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, line)  # a build may report from a worker thread

    task = asyncio.ensure_future(work(say))
    task.add_done_callback(lambda _: loop.call_soon(queue.put_nowait, None))
    try:
        while (line := await queue.get()) is not None:
            yield api.BuildEvent(line=line)
        yield api.BuildEvent(image_id=task.result())
    finally:
        await _end(task)


async def _end(task: "asyncio.Future[T]") -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
