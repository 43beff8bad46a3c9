"""The calls about named volumes."""

import asyncio
import uuid
from pathlib import Path

from highrt.cri.calls import unary
from highrt.person.calls.parts import Parts
from strata.protocols import highrt_pb2 as api


class VolumeCalls(Parts):
    """A part of PersonService."""

    @unary
    async def Volumes(self, request: api.VolumesRequest) -> api.VolumesResponse:
        return api.VolumesResponse(volumes=[self._volume(path) for path in self._volumes.all()])

    @unary
    async def CreateVolume(self, request: api.VolumeName) -> api.Volume:
        made = self._volumes.create(request.name or uuid.uuid4().hex)
        self._events.note("volume", "create", made.name, driver="local")
        return self._volume(made)

    @unary
    async def RemoveVolume(self, request: api.VolumeName) -> api.RemoveVolumeResponse:
        await asyncio.to_thread(self._volumes.remove, request.name, self._pods.containers())
        self._events.note("volume", "destroy", request.name, driver="local")
        return api.RemoveVolumeResponse()

    def _volume(self, path: Path) -> api.Volume:
        users = [item.config.metadata.name for item in self._volumes.users(path, self._pods.containers())]
        return api.Volume(name=path.name, path=str(path), created_at_ns=path.stat().st_mtime_ns, users=users)
