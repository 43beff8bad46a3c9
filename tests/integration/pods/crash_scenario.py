"""A daemon with eight clients, which make pods and do all kinds of things with them, until it is killed.

usage: python -m tests.integration.pods.crash_scenario FOLDER NAME SEED. On stdout it says what it has brought about (`Said` in
test_crash.py), and first the spawner's PID.
"""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from highrt.pods.errors import PodError
from highrt.pods.model import Container, Pod, Stdio
from strata.protocols.cri_pb2 import LinuxContainerResources, NamespaceMode

from .conftest import Node

CLIENTS = 8
TICKS = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done")


def say(*words: object) -> None:
    print(*words, flush=True)


class Client:
    def __init__(self, node: Node, chance: random.Random, number: str) -> None:
        self._node, self._manager, self._chance, self._number = node, node.manager, chance, number
        self._count = 0

    async def work(self) -> None:
        while True:
            self._count += 1
            await self._life(f"{self._number}-{self._count}")

    async def _life(self, name: str) -> None:
        chance = self._chance
        config = self._node.pod(name)
        shared = chance.random() < 0.2
        config.linux.security_context.namespace_options.pid = NamespaceMode.POD if shared else NamespaceMode.CONTAINER
        try:
            pod = await self._manager.run_pod(config)
            code = chance.choice((0, 3, 77))
            argv = chance.choice((("sleep", "600"), TICKS, ("sh", "-c", f"sleep 0.0{chance.randrange(9)}; exit {code}")))
            asked = self._node.container(*argv, name=name)
            asked.linux.security_context.namespace_options.pid = NamespaceMode.POD if shared else NamespaceMode.CONTAINER
            container = await self._manager.create_container(pod.id, asked)
            await self._manager.start_container(container.id)
        except PodError:
            return  # the spawner was killed; nothing is left then
        if argv[-1].startswith("sleep") and "exit" in argv[-1]:
            say("exits", pod.id, container.id, code)
        else:
            say("runs", pod.id, container.id, name if argv is TICKS else "-")
        for _ in range(chance.randrange(4)):
            with contextlib.suppress(PodError, LookupError, TimeoutError):
                await self._something(pod, container)
        if chance.random() < 0.8:
            await self._end(pod, container)

    async def _something(self, pod: Pod, container: Container) -> None:
        manager = self._manager
        kinds: list[Callable[[], Awaitable[object]]] = [
            lambda: manager.exec_sync(container.id, ["true"]),
            lambda: manager.exec_sync(container.id, ["sh", "-c", "echo out; exit 4"], 5),
            lambda: manager.container_stats(container.id),
            lambda: manager.pod_stats(pod.id),
            lambda: manager.container_details(container.id),
            lambda: manager.pod_interfaces(pod.id),
            lambda: manager.reopen_log(container.id),
            lambda: manager.update_resources(container.id, LinuxContainerResources(cpu_shares=512)),
            lambda: manager.update_pod_resources(pod.id, LinuxContainerResources(cpu_shares=2), None),
            lambda: manager.signal_container(container.id, 18),
            manager.handlers,
            manager.network_ready,
            lambda: self._attach(container),
        ]
        await self._chance.choice(kinds)()

    async def _attach(self, container: Container) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            session = await self._manager.attach(container.id, Stdio(None, write, None))
            await session.detach()
        finally:
            os.close(read)

    async def _end(self, pod: Pod, container: Container) -> None:
        manager = self._manager
        say("ending", pod.id)
        with contextlib.suppress(PodError):
            match self._chance.randrange(4):
                case 0:
                    await manager.stop_container(container.id, 0)
                case 1:
                    await manager.remove_container(container.id)
                case 2:
                    await manager.stop_pod(pod.id)
            await manager.remove_pod(pod.id)
            say("removed", pod.id)


async def main(folder: Path, name: str, seed: str) -> None:
    node = Node(folder, name)
    await node.manager.open()
    say("spawner", node.manager._monitors.spawner.pid)
    chance = random.Random(seed)
    clients = [Client(node, random.Random(chance.random()), f"{seed}-{number}") for number in range(CLIENTS)]
    await asyncio.gather(*(client.work() for client in clients))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
