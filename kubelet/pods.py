"""All pods of the node: one worker each, for those that the API assigned to it and those that only the runtime has."""

import asyncio
import time
from typing import Any

from kubelet.context import Context
from kubelet.pleg import Pleg
from kubelet.worker import PodWorker
from strata.kubeclient.informer import Informer
from strata.telemetry import logs

log = logs.get("kubelet.pods")

ORPHAN_SECONDS = 2.0
"""A pod in the runtime that the API does not know gets this long: its deletion may be on the way."""


class Pods:
    """informer: the API's pods of this node. Call `run` once, inside the event loop."""

    def __init__(self, context: Context, informer: Informer) -> None:
        self._context, self._informer = context, informer
        self._workers: dict[str, PodWorker] = {}
        self._unknown: dict[str, float] = {}
        self._pleg = Pleg(context.runtime, self._changed, self._listed)
        informer.add_handler(on_add=self._added, on_update=self._updated, on_delete=self._deleted)

    async def run(self) -> None:
        """Drives the pods until it is cancelled; the pods run on after that."""
        await self._informer.wait_synced()
        try:
            await self._pleg.run()
        finally:
            await asyncio.gather(*(worker.close() for worker in self._workers.values()))

    def all(self) -> list[dict[str, Any]]:
        """The pods as the API has them."""
        return [worker.pod for worker in self._workers.values() if worker.pod is not None]

    def find(self, namespace: str, name: str, uid: str = "") -> dict[str, Any] | None:
        for worker in self._workers.values():
            meta = worker.pod["metadata"] if worker.pod else {}
            if meta.get("namespace") == namespace and meta.get("name") == name and (not uid or worker.uid == uid):
                return worker.pod
        return None

    def active(self) -> list[dict[str, Any]]:
        """Those that have not ended: they take part of the node's resources."""
        return [w.pod for w in self._workers.values() if w.pod is not None and not w.ended and not _over(w.pod)]

    def _added(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid].update(pod)
        else:
            self._workers[uid] = PodWorker(self._context, uid, pod, self._gone)

    def _updated(self, old: dict[str, Any], pod: dict[str, Any]) -> None:
        if old["metadata"]["uid"] != pod["metadata"]["uid"]:
            self._deleted(old)
        self._context.statuses.observe(pod)
        self._added(pod)

    def _deleted(self, pod: dict[str, Any]) -> None:
        worker = self._workers.get(pod["metadata"]["uid"])
        if worker:
            worker.removed(pod)

    def _gone(self, uid: str) -> None:
        self._workers.pop(uid, None)

    def _changed(self, uid: str) -> None:
        if uid in self._workers:
            self._workers[uid].wake()

    def _listed(self, uids: set[str]) -> None:
        """Ends what the runtime or the disk has of pods that nobody knows."""
        found = uids | self._context.volumes.uids() | self._context.cgroups.uids()
        now = time.monotonic()
        for uid in [u for u in self._unknown if u not in found or u in self._workers]:
            del self._unknown[uid]
        for uid in found - self._workers.keys():
            if now - self._unknown.setdefault(uid, now) >= ORPHAN_SECONDS:
                log.info("ending a pod that the API does not know", pod=uid)
                self._workers[uid] = PodWorker(self._context, uid, None, self._gone)


def _over(pod: dict[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
