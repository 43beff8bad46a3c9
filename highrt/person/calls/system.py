"""The calls about the daemon itself, what it keeps, and what happens."""

import asyncio
import os
from collections.abc import AsyncGenerator
from importlib.metadata import version

from highrt.cri.calls import streaming, unary
from highrt.person.calls.parts import Parts
from highrt.person.volumes import size
from highrt.pods.model import ContainerState
from strata.protocols import highrt_pb2 as api


class SystemCalls(Parts):
    """A part of PersonService."""

    @unary
    async def System(self, request: api.SystemRequest) -> api.SystemResponse:
        ready, message = await self._pods.network_ready()
        containers = self._pods.containers()
        return api.SystemResponse(
            version=version("strata"),
            network_ready=ready,
            network_message=message,
            images=len(self._images.list()),
            containers=len(containers),
            running=sum(item.state is ContainerState.RUNNING for item in containers),
            image_bytes=self._images.usage().bytes,
            pid=os.getpid(),
            **self._about,
        )

    @unary
    async def DiskUsage(self, request: api.SystemRequest) -> api.DiskUsageResponse:
        containers = self._pods.containers()
        used = {item.image_id for item in containers}
        images = self._images.list()
        response = api.DiskUsageResponse()
        response.kinds.add(
            kind="Images",
            total=len(images),
            active=sum(image.id in used for image in images),
            bytes=self._images.usage().bytes,
            reclaimable_bytes=sum(image.size_bytes for image in images if image.id not in used),
        )
        sizes = {item.id: await self._written_bytes(item.id) for item in containers}
        running = {item.id for item in containers if item.state is ContainerState.RUNNING}
        response.kinds.add(
            kind="Containers",
            total=len(containers),
            active=len(running),
            bytes=sum(sizes.values()),
            reclaimable_bytes=sum(found for key, found in sizes.items() if key not in running),
        )
        volumes = {path: await asyncio.to_thread(size, path) for path in self._volumes.all()}
        free = [path for path in volumes if not self._volumes.users(path, containers)]
        response.kinds.add(
            kind="Local Volumes",
            total=len(volumes),
            active=len(volumes) - len(free),
            bytes=sum(volumes.values()),
            reclaimable_bytes=sum(volumes[path] for path in free),
        )
        return response

    @streaming
    async def Events(self, request: api.EventsRequest) -> AsyncGenerator[api.Event, None]:
        filters: dict[str, list[str]] = {}
        for item in request.filters:
            filters.setdefault(item.key, []).append(item.value)
        async for event in self._events.read(request.since_ns, request.until_ns, filters):
            yield api.Event(
                type=event.kind, action=event.action, actor=event.actor, attributes=event.attributes, time_ns=event.time_ns
            )
