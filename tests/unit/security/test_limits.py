"""More requests at a time than there is room for are told to come back; streams take no room."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web

from controlplane.apiserver.limits import Limits


class Slow:
    """A handler whose requests end when they are let."""

    def __init__(self) -> None:
        self.inside, self.go = 0, asyncio.Event()
        self.entered = asyncio.Condition()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self.entered:
            self.inside += 1
            self.entered.notify_all()
        await self.go.wait()
        return web.Response(text="done")

    async def until(self, count: int) -> None:
        async with self.entered:
            await self.entered.wait_for(lambda: self.inside >= count)


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def url(slow: Slow) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(Limits(slow.handle, reading=1, writing=1).handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    slow.go.set()
    await runner.cleanup()


async def test_there_is_room_for_so_many(slow: Slow, url: str) -> None:
    async with ClientSession() as client:
        first = asyncio.create_task(client.get(f"{url}/api/v1/pods"))
        await slow.until(1)
        async with client.get(f"{url}/api/v1/pods") as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
            assert (await refused.json())["reason"] == "TooManyRequests"
        # A pod's name is not a subresource.
        assert (await client.get(f"{url}/api/v1/namespaces/a/pods/log")).status == 429
        streams = ("/api/v1/pods?watch=true", "/api/v1/namespaces/a/pods/b/log", "/api/v1/nodes/n/proxy/x")
        tasks = [asyncio.create_task(client.get(url + path)) for path in streams]
        writing = asyncio.create_task(client.post(f"{url}/api/v1/nodes"))
        await slow.until(5)
        slow.go.set()
        answers = await asyncio.gather(first, writing, *tasks)
        assert [answer.status for answer in answers] == [200] * 5
        assert (await client.get(f"{url}/api/v1/pods")).status == 200, "the room is free again"
