"""Monitors that hang (SIGSTOP): nobody else waits for them, and their pods can be ended all the same."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import pytest

from highrt.pods import monitors
from highrt.pods.errors import PodError
from highrt.pods.model import ContainerState
from strata.linux import cgroups
from strata.protocols.cri_pb2 import NamespaceMode

from .conftest import Node

T = TypeVar("T")
HUNG = 10


def monitor(node: Node, container_id: str) -> int:
    return node.manager._monitors.client(node.manager.container(container_id).pod_id).pid


@asynccontextmanager
async def hung(node: Node, *containers: str) -> AsyncIterator[None]:
    pids = [monitor(node, container) for container in containers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def within(seconds: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


async def test_ten_monitors_that_hang_hold_nobody_up(node: Node) -> None:
    stuck = [await node.started("sleep", "300", name=f"stuck{number}") for number in range(HUNG)]
    well = await node.started("sleep", "300", name="well")
    async with hung(node, *stuck):
        start = time.monotonic()
        assert len(node.manager.pods()) == len(node.manager.containers()) == HUNG + 1
        for container in (*stuck, well):
            stats = await node.manager.container_stats(container)
            assert stats.pids == 1
            await node.manager.pod_stats(node.manager.container(container).pod_id)
        assert time.monotonic() - start < 1.0
        assert await within(5, node.manager.exec_sync(well, ["echo", "here"])) == (b"here\n", b"", 0)
        more = await within(5, node.started("sleep", "300", name="more"))
        await within(5, node.manager.stop_container(more, 0))
        with pytest.raises(TimeoutError):
            await within(0.5, node.manager.exec_sync(stuck[0], ["true"]))
    assert await within(5, node.manager.exec_sync(stuck[1], ["echo", "again"])) == (b"again\n", b"", 0)


async def test_a_pod_whose_monitor_hangs_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "_STOP_SECONDS", 0.5)
    container = await node.started("sleep", "300")
    found = node.manager.container(container)
    async with hung(node, container):
        await within(10, node.manager.stop_pod(found.pod_id))
    assert (found.state, found.exit_code) == (ContainerState.EXITED, 137)
    assert not cgroups.open_cgroup(found.cgroup).exists()
    await within(5, node.manager.remove_pod(found.pod_id))
    await within(5, node.started("true", name="next"))


async def test_a_daemon_that_starts_does_not_wait_long_for_one_that_hangs(node: Node) -> None:
    stuck, well = await node.started("sleep", "300", name="stuck"), await node.started("sleep", "300", name="well")
    async with hung(node, stuck):
        await within(6, node.reopen())
        assert await within(5, node.manager.exec_sync(well, ["echo", "here"])) == (b"here\n", b"", 0)
        assert len(node.manager.pods()) == 2


@pytest.mark.parametrize("pid_mode", [NamespaceMode.CONTAINER, NamespaceMode.POD])
async def test_an_exec_ends_with_its_pod(node: Node, pid_mode: "NamespaceMode.ValueType") -> None:
    config = node.pod()
    config.linux.security_context.namespace_options.pid = pid_mode
    pod = await node.manager.run_pod(config)
    asked = node.container("sleep", "300")
    asked.linux.security_context.namespace_options.pid = pid_mode
    container = await node.manager.create_container(pod.id, asked)
    await node.manager.start_container(container.id)
    execs = [asyncio.create_task(node.manager.exec_sync(container.id, ["sleep", "200"])) for _ in range(3)]
    await asyncio.sleep(0.3)
    await within(10, node.manager.stop_pod(pod.id))
    for outcome in await within(5, asyncio.gather(*execs, return_exceptions=True)):
        assert outcome == (b"", b"", 137) or isinstance(outcome, PodError), outcome


async def test_a_pod_is_stopped_in_the_moment_in_which_its_monitor_dies(node: Node) -> None:
    for number in range(3):
        container = await node.started("sleep", "300", name=f"c{number}")
        found = node.manager.container(container)
        os.kill(monitor(node, container), signal.SIGKILL)
        await within(10, node.manager.stop_pod(found.pod_id))
        assert found.state == ContainerState.EXITED
        assert not cgroups.open_cgroup(found.cgroup).exists()
        await within(5, node.manager.remove_pod(found.pod_id))
