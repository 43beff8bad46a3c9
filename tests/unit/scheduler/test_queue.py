"""The queue of pods that wait for a node."""

import asyncio

import pytest

from controlplane.scheduler import queue as module
from controlplane.scheduler.queue import SchedulingQueue


async def test_higher_priority_first_then_the_order_of_arrival() -> None:
    queue = SchedulingQueue()
    for name, priority in (("a", 0), ("b", 10), ("c", 0), ("d", 10)):
        queue.add(("", name), priority)
    assert [(await queue.get())[1] for _ in range(4)] == ["b", "d", "a", "c"]


async def test_a_removed_pod_has_no_turn() -> None:
    queue = SchedulingQueue()
    queue.add(("", "a"))
    queue.add(("", "b"))
    queue.remove(("", "a"))
    assert await queue.get() == ("", "b")


async def test_what_fitted_nowhere_waits_for_a_change_and_its_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.05)
    queue, loop = SchedulingQueue(), asyncio.get_running_loop()
    queue.wait(("", "a"), 0, queue.moves)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0.1)
    assert not waiting.done(), "nothing has changed"
    queue.move_all()
    assert await asyncio.wait_for(waiting, 5) == ("", "a")
    began = loop.time()
    queue.wait(("", "a"), 0, queue.moves)
    queue.move_all()
    await asyncio.wait_for(queue.get(), 5)
    assert loop.time() - began >= 0.09, "the second back-off is twice the first"


async def test_a_change_during_the_turn_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.01)
    queue = SchedulingQueue()
    since = queue.moves
    queue.move_all()
    queue.wait(("", "a"), 0, since)
    assert await asyncio.wait_for(queue.get(), 5) == ("", "a")
