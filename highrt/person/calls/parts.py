"""What all calls work with."""

import asyncio
from pathlib import Path
from typing import Any

from highrt.cri.calls import require
from highrt.images.errors import ImageNotFound
from highrt.images.model import Image
from highrt.images.service import ImageService
from highrt.person.containers import PersonContainers
from highrt.person.volumes import Volumes, size
from highrt.pods.errors import FailedPrecondition
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerState


class Parts:
    """about: what `system` says of the daemon (name, root, state, handlers)."""

    def __init__(self, pods: PodManager, images: ImageService, containers: PersonContainers, about: dict[str, Any]) -> None:
        self._pods = pods
        self._images = images
        self._containers = containers
        self._events = containers.events
        self._about = about
        self._volumes = Volumes(Path(about["root"]) / "volumes")

    def _image(self, reference: str) -> Image:
        require(reference, "no image is named")
        image = self._images.resolve(reference)
        if image is None:
            raise ImageNotFound(f"no such image here: {reference} (highrt images lists them, highrt pull gets it)")
        return image

    def _running(self, reference: str) -> Container:
        container = self._containers.find(reference)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {reference} is not running ({container.state.value})")
        return container

    async def _written_bytes(self, container_id: str) -> int:
        rootfs = await self._images.rootfs(container_id)
        return await asyncio.to_thread(size, rootfs.upper) if rootfs else 0
