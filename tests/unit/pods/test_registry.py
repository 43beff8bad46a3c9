"""The pods and containers that there are, and who is told of changes."""

import asyncio
from pathlib import Path

import pytest

from highrt.pods.errors import TooSlow
from highrt.pods.model import ContainerEvent, EventKind, Owner, Pod
from highrt.pods.registry import _EVENTS_WAITING, Registry
from strata.protocols.cri_pb2 import PodSandboxConfig


async def test_a_slow_reader_of_events_gets_all_in_order_or_is_told(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "test")
    pod = Pod("p1", Owner.KUBELET, PodSandboxConfig(), "lowrt", True, 1)
    seen: list[ContainerEvent] = []
    go_on = asyncio.Event()

    async def read_slowly() -> None:
        async for event in registry.events():
            seen.append(event)
            await go_on.wait()

    reader = asyncio.create_task(read_slowly())
    await asyncio.sleep(0)
    for number in range(_EVENTS_WAITING):
        registry.publish(EventKind.STARTED, f"c{number}", pod)
    await asyncio.sleep(0)  # the reader has taken the first
    go_on.set()
    while len(seen) < _EVENTS_WAITING:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert [event.container_id for event in seen] == [f"c{number}" for number in range(_EVENTS_WAITING)]

    go_on.clear()
    for number in range(_EVENTS_WAITING + 2):
        registry.publish(EventKind.STOPPED, f"d{number}", pod)
    go_on.set()
    with pytest.raises(TooSlow, match="ask for all that there is"):
        await reader
    assert seen[-1].container_id == f"d{_EVENTS_WAITING - 1}"  # what came before the loss is not lost
