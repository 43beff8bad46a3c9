"""A monitor at work, and how much memory it holds: for the tests and for tests/bench/memory.py."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from highrt.pods.model import Stdio

from .conftest import Node, collect, ended, read_all

WRITES = ("sh", "-c", "while true; do echo a line that goes to the log; sleep 0.01; done")


def memory_bytes(pid: int, *fields: str) -> int:
    """The sum of fields of /proc/PID/smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(re.findall(rf"^{field}: +(\d+) kB", text, re.MULTILINE)[0]) * 1024 for field in fields)


def private_bytes(pid: int) -> int:
    """The pages that no other process shares."""
    return memory_bytes(pid, "Private_Clean", "Private_Dirty")


class Working:
    """A pod with a container that writes a line each 10 ms, and what may be asked of its monitor."""

    def __init__(self, node: Node, pod_id: str, container_id: str) -> None:
        self.node, self._pod_id, self._container_id = node, pod_id, container_id
        self._containers = 0

    @property
    def monitor(self) -> int:
        """Its PID."""
        return self.node.manager._monitors.client(self._pod_id).pid

    @property
    def spawner(self) -> int:
        return self.node.manager._monitors.spawner.pid

    async def execute(self) -> None:
        assert await self.node.manager.exec_sync(self._container_id, ["echo", "here"]) == (b"here\n", b"", 0)

    async def execute_with_terminal(self) -> None:
        output, stdout = os.pipe2(os.O_CLOEXEC)
        session = await self.node.manager.exec(self._container_id, ["echo", "here"], Stdio(stdout=stdout), terminal=True)
        assert await asyncio.wait_for(session.wait(), 30) == 0
        assert await asyncio.to_thread(read_all, output) == b"here\r\n"

    async def execute_and_kill(self) -> None:
        session = await self.node.manager.exec(self._container_id, ["sleep", "60"], Stdio())
        await session.kill()
        assert await asyncio.wait_for(session.wait(), 30) == 137

    async def attach(self) -> None:
        output, stdout = os.pipe2(os.O_CLOEXEC)
        session = await self.node.manager.attach(self._container_id, Stdio(stdout=stdout))
        await collect(output, b"a line", seconds=30)
        await session.detach()
        await asyncio.wait_for(session.wait(), 30)
        os.close(output)

    async def rotate_log(self) -> None:
        path = self.node.folder / "logs/c.log"
        path.rename(f"{path}.1")
        await self.node.manager.reopen_log(self._container_id)
        async with asyncio.timeout(30):
            while not path.stat().st_size:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def restart_another(self) -> None:
        """A second container of the pod comes and goes."""
        self._containers += 1
        config = self.node.container("sh", "-c", "echo bye; exit 3", name=f"other-{self._containers}")
        container = await self.node.manager.create_container(self._pod_id, config)
        await self.node.manager.start_container(container.id)
        await ended(self.node.manager, container.id, 30)
        assert container.exit_code == 3
        await self.node.manager.remove_container(container.id)

    async def everything(self, execs: int) -> None:
        """So many execs, and one in ten times as many of the others."""
        for number in range(execs):
            await self.execute()
            if number % 10 == 0:
                for ask in (
                    self.execute_with_terminal,
                    self.execute_and_kill,
                    self.attach,
                    self.rotate_log,
                    self.restart_another,
                ):
                    await ask()

    async def settled(self) -> int:
        """The monitor's private bytes, once what it forked for its work has ended."""
        async with asyncio.timeout(30):
            while Path(f"/proc/{self.monitor}/task/{self.monitor}/children").read_text().split()[1:]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # until the container is the only child
        return private_bytes(self.monitor)


@asynccontextmanager
async def working(node: Node) -> AsyncIterator[Working]:
    pod = await node.manager.run_pod(node.pod())
    container = await node.manager.create_container(pod.id, node.container(*WRITES))
    await node.manager.start_container(container.id)
    yield Working(node, pod.id, container.id)
