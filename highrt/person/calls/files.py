"""The calls about containers' files."""

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any, BinaryIO

from highrt.cri.calls import streaming, unary, worded
from highrt.person import changes, chunks, transfer
from highrt.person.calls.parts import Parts
from strata.protocols import highrt_pb2 as api


class FileCalls(Parts):
    """A part of PersonService."""

    @streaming
    async def CopyFrom(self, request: api.PathName) -> AsyncGenerator[api.Chunk, None]:
        container = self._containers.find(request.container)
        path = os.fsdecode(request.path)

        async def pack(target: BinaryIO) -> None:
            async with self._containers.root(container) as root:
                await asyncio.to_thread(transfer.pack, root, path, target)

        async for chunk in chunks.written(pack):
            yield chunk

    async def CopyInto(self, stream: Any) -> None:
        start = await chunks.first(stream)
        with worded():
            container = self._containers.find(start.to.container)
            path, owner = os.fsdecode(start.to.path), None if start.archive else (0, 0)

            async def unpack(source: BinaryIO) -> None:
                async with self._containers.root(container) as root:
                    await asyncio.to_thread(transfer.unpack, root, path, source, owner=owner)

            await chunks.fed(stream, unpack)
        await stream.send_message(api.CopyResponse())

    @unary
    async def Diff(self, request: api.ContainerName) -> api.DiffResponse:
        container = self._containers.find(request.container)
        rootfs = await self._images.rootfs(container.id)
        mounted = [mount.container_path for mount in container.config.mounts]
        found = await asyncio.to_thread(changes.of, rootfs, mounted) if rootfs else []
        return api.DiffResponse(changes=[api.Change(kind=kind, path=path) for kind, path in found])
