"""The work queue: each key once, one worker a key, delays."""

import asyncio

import pytest

from strata.kubeclient.backoff import Backoff
from strata.kubeclient.workqueue import Closed, WorkQueue


async def test_a_key_is_in_the_queue_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_it_is_worked_on_comes_back_when_it_is_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_the_shortest_of_several_delays_holds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 30)
    assert await asyncio.wait_for(queue.get(), 5) == "a"


async def test_failures_wait_longer_each_time_until_forgotten() -> None:
    queue: WorkQueue[str] = WorkQueue(base=0.001, maximum=0.004)
    loop = asyncio.get_running_loop()
    for failures in range(1, 5):
        began = loop.time()
        queue.add_rate_limited("a")
        assert queue.failures("a") == failures
        await asyncio.wait_for(queue.get(), 5)
        queue.done("a")
        assert loop.time() - began >= min(0.001 * 2 ** (failures - 1), 0.004) * 0.9
    queue.forget("a")
    assert queue.failures("a") == 0


async def test_closing_ends_those_that_wait() -> None:
    queue: WorkQueue[str] = WorkQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Closed] * 3


async def test_a_key_is_not_lost_with_a_cancelled_waiter() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 5) == "a"


def test_a_back_off_grows_to_its_maximum_and_starts_anew() -> None:
    backoff = Backoff(1, 5, jitter=0)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next() == 1
    with pytest.raises(ValueError, match="back-off"):
        Backoff(5, 1)
