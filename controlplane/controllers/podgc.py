"""Pods that nobody will ever end: those of nodes that are gone, those deleted before they got a node, and too many that
have finished."""

import asyncio
import time
from typing import Any

from controlplane.controllers import pods as podstate
from controlplane.controllers.conditions import with_condition
from controlplane.controllers.frame import Context, Controller
from controlplane.controllers.nodelifecycle import index_by_node
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import NODES, PODS

Object = dict[str, Any]
_ROUND_SECONDS = 20.0
_FINISHED_LIMIT = 12500
"""kube-controller-manager's --terminated-pod-gc-threshold."""


class PodGarbageCollector(Controller[str]):
    """The queue's keys are the names of nodes that seem to be gone, and "" for a round over all pods."""

    name = "podgc"
    workers = 1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.pods, self.nodes = self.informer(PODS), self.informer(NODES)
        index_by_node(self.pods)
        self.gone_since: dict[str, float] = {}
        self.nodes.add_handler(on_delete=lambda node: self._missing(node["metadata"]["name"]))

    async def run(self) -> None:
        self.queue.add("")
        await super().run()

    async def sync(self, key: str) -> None:
        if key:
            await self._clear(key)
            return
        self.queue.add_after("", _ROUND_SECONDS)
        for pod in self.pods:
            node = pod["spec"].get("nodeName")
            if node and self.nodes.get(node) is None:
                self._missing(node)
            elif not node and pod["metadata"].get("deletionTimestamp"):
                await self._remove(pod)
        finished = sorted((p for p in self.pods if podstate.is_finished(p)), key=lambda p: p["metadata"]["creationTimestamp"])
        for pod in finished[: max(0, len(finished) - _FINISHED_LIMIT)]:
            await self._remove(pod)

    def _missing(self, node: str) -> None:
        since = self.gone_since.setdefault(node, time.monotonic())
        self.queue.add_after(node, max(0.01, since + self.settings.orphan_quarantine_seconds - time.monotonic()))

    async def _clear(self, node: str) -> None:
        """Removes the pods of a node that has been gone for the quarantine, asking the API itself once more."""
        since = self.gone_since.get(node)
        if self.nodes.get(node) is not None or since is None:
            self.gone_since.pop(node, None)
            return
        if time.monotonic() - since < self.settings.orphan_quarantine_seconds:
            self._missing(node)
            return
        try:
            await self.client.get(NODES, node)
        except ApiError as error:
            if not error.is_not_found:
                raise
        else:
            return
        del self.gone_since[node]
        await asyncio.gather(*(self._remove_orphan(pod) for pod in self.pods.by_index("node", node)))

    async def _remove_orphan(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if not podstate.is_finished(pod):
            listed = with_condition([], "DisruptionTarget", "True", "DeletionByPodGC", "PodGC: node no longer exists")
            status = {"phase": "Failed", "conditions": listed}
            patch = {"metadata": {"uid": metadata["uid"]}, "status": status}
            try:
                await self.client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
            except ApiError as error:
                if not error.is_not_found and not error.is_conflict:
                    raise
        await self._remove(pod)

    async def _remove(self, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], grace_period_seconds=0, uid=metadata["uid"])
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise
            return
        age = round(time.time() - times.seconds(metadata["creationTimestamp"]))
        self.log.info("removed", pod=metadata["uid"], name=f"{metadata['namespace']}/{metadata['name']}", age_seconds=age)
