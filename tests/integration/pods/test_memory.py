"""How much memory the processes hold that are there for every node and every pod (docs/performance.md has the figures)."""

import time
from pathlib import Path

import pytest

from .conftest import Node
from .working import memory_bytes, working

MEGABYTE = 1 << 20


async def test_a_spawner_and_a_monitor_that_has_worked_are_small(node: Node) -> None:
    """The monitor's own pages are what a pod costs; it has the work that writes to many done in processes that end with it."""
    async with working(node) as work:
        assert await work.settled() < 2 * MEGABYTE
        await work.everything(execs=300)
        assert await work.settled() < 2 * MEGABYTE
        assert Path(f"/proc/{work.spawner}/comm").read_text() == "strata-spawner\n"
        assert memory_bytes(work.spawner, "Rss") < 12 * MEGABYTE


@pytest.mark.long
@pytest.mark.timeout(4200)
async def test_a_monitor_stays_small_through_an_hour_of_work(node: Node) -> None:
    async with working(node) as work:
        descriptors: list[int] = []
        end = time.monotonic() + 3600
        while time.monotonic() < end:
            await work.everything(execs=100)
            assert await work.settled() < 2 * MEGABYTE
            descriptors.append(len(list(Path(f"/proc/{work.monitor}/fd").iterdir())))
        assert len(set(descriptors)) == 1
