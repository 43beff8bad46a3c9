"""Which pods something happened to: the runtime's stream of events, and a look at everything from time to time.

A runtime without a stream (GetContainerEvents is younger than CRI v1) is looked at every second.
"""

import asyncio
from collections.abc import Callable

from kubelet.runtime import POD_UID, Runtime, RuntimeCallError, RuntimeUnavailable
from strata.telemetry import logs

log = logs.get("kubelet.pleg")

RELIST_SECONDS, RELIST_WITHOUT_STREAM_SECONDS = 10.0, 1.0


class Pleg:
    """changed: called with the UID of each pod whose sandboxes or containers changed. listed: called with the UIDs of all pods
    that the runtime has, after each look."""

    def __init__(self, runtime: Runtime, changed: Callable[[str], None], listed: Callable[[set[str]], None]) -> None:
        self._runtime, self._changed, self._listed = runtime, changed, listed
        self._known: dict[str, dict[str, int]] = {}
        self._streaming = False
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relist())
            group.create_task(self._stream())

    async def _relist(self) -> None:
        while True:
            try:
                found = await self._runtime.pod_uids()
                for uid in found.keys() | self._known.keys():
                    if found.get(uid) != self._known.get(uid):
                        self._changed(uid)
                self._known = found
                self._listed(set(found))
            except RuntimeCallError as error:
                log.warning("the runtime's containers could not be listed", error=error.message)
            self._look.clear()
            try:
                async with asyncio.timeout(RELIST_SECONDS if self._streaming else RELIST_WITHOUT_STREAM_SECONDS):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _stream(self) -> None:
        while True:
            try:
                async for event in self._runtime.events():
                    if not self._streaming:
                        self._streaming = True
                        log.info("the runtime tells its events")
                    uid = event.pod_sandbox_status.metadata.uid
                    if not uid and event.containers_statuses:
                        uid = event.containers_statuses[0].labels.get(POD_UID, "")
                    if uid:
                        self._changed(uid)
                    else:
                        self._look.set()
            except RuntimeUnavailable:
                pass
            except RuntimeCallError as error:
                if self._streaming:
                    log.warning("the runtime's stream of events ended", error=error.message)
                elif error.unimplemented or "unknown" in error.message.lower():
                    log.info("the runtime has no stream of events: it is looked at every second")
                    return
            self._streaming = False
            self._look.set()
            await asyncio.sleep(1.0)
