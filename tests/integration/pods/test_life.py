"""The life of pods and containers, as the CRI services and the person's API see it."""

import asyncio
import os

from highrt.pods.manager import PodManager
from highrt.pods.model import ContainerState

from .conftest import Node


async def ended(manager: PodManager, container_id: str, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while manager.container(container_id).state != ContainerState.EXITED:
            await asyncio.sleep(0.01)


async def test_a_whole_life(node: Node) -> None:
    manager = node.manager
    pod = await manager.run_pod(node.pod())
    container = await manager.create_container(pod.id, node.container("sh", "-c", "echo out; echo err >&2; exit 3"))
    assert container.state == ContainerState.CREATED
    await manager.start_container(container.id)
    await ended(manager, container.id)
    assert (container.exit_code, container.reason, container.pid) == (3, "Error", 0)
    assert sorted(node.log()) == ["stderr F err", "stdout F out"]
    await manager.remove_pod(pod.id)
    assert manager.pods() == manager.containers() == []
    assert node.images.left() == []
    assert os.listdir(node.folder / "s" / "pods") == []
    await manager.remove_pod(pod.id)
    await manager.remove_container(container.id)
