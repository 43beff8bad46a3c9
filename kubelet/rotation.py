"""Rotates container logs: the current file is renamed and the runtime told to open a new one; old ones are removed.

https://kubernetes.io/docs/concepts/cluster-administration/logging/#log-rotation
"""

import asyncio
import os
import time
from pathlib import Path

from kubelet.config import Config
from kubelet.runtime import Runtime, RuntimeCallError
from strata.protocols import cri_pb2 as cri
from strata.telemetry import logs

log = logs.get("kubelet.rotation")

LOOK_SECONDS = 10.0


class LogRotation:
    """config: sizes and number of files. Rotates what running containers write."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self._limit, self._files, self._runtime = config.log_max_bytes, config.log_max_files, runtime

    async def run(self) -> None:
        """Looks every ten seconds until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except RuntimeCallError as error:
                log.warning("logs could not be rotated, again soon", error=error.message)

    async def look(self) -> None:
        """Rotates every log that is over the limit. Raises RuntimeCallError."""
        running = cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)
        answer = await self._runtime.call("ListContainers", cri.ListContainersRequest(filter=cri.ContainerFilter(state=running)))
        for container in answer.containers:
            status = (await self._runtime.call("ContainerStatus", cri.ContainerStatusRequest(container_id=container.id))).status
            path = Path(status.log_path)
            try:
                if status.log_path and path.stat().st_size > self._limit:
                    await self._rotate(path, container.id)
            except OSError as error:
                log.warning("a log could not be rotated", path=path, error=error)

    async def _rotate(self, path: Path, container_id: str) -> None:
        old = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        os.rename(path, old)
        try:
            await self._runtime.call("ReopenContainerLog", cri.ReopenContainerLogRequest(container_id=container_id))
        except RuntimeCallError:
            os.rename(old, path)  # the runtime still writes to it
            raise
        for extra in sorted(path.parent.glob(f"{path.name}.*"))[: -(self._files - 1) or None]:
            extra.unlink(missing_ok=True)
        log.info("rotated a log", path=path, container=container_id)
