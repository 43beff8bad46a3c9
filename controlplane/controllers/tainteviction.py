"""Pods that do not tolerate a NoExecute taint of their node go; those that tolerate it for a time go after that.

https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions
"""

import time
from typing import Any

from controlplane import taints
from controlplane.controllers import pods as podstate
from controlplane.controllers.conditions import with_condition
from controlplane.controllers.frame import Context, Controller, Key
from controlplane.controllers.nodelifecycle import index_by_node
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import key_of
from strata.kubeclient.resources import NODES, PODS

Object = dict[str, Any]


class TaintEvictionController(Controller[Key]):
    name = "tainteviction"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events = context.recorder("taint-eviction-controller")
        self.first_seen: dict[tuple[str, str, str], float] = {}
        self.pods, self.nodes = self.enqueue(PODS, deletions=False), self.informer(NODES)
        index_by_node(self.pods)
        self.nodes.add_handler(self._node_changed, lambda _, new: self._node_changed(new), self._node_gone)

    def _node_changed(self, node: Object) -> None:
        name = node["metadata"]["name"]
        present = {(name, t["key"], t["effect"]) for t in node["spec"].get("taints") or () if t["effect"] == "NoExecute"}
        known = {key for key in self.first_seen if key[0] == name}
        for gone in known - present:
            del self.first_seen[gone]
        for new in present - known:
            self.first_seen[new] = time.time()
        if present != known:
            for pod in self.pods.by_index("node", name):
                self.queue.add(key_of(pod))

    def _node_gone(self, node: Object) -> None:
        for key in [key for key in self.first_seen if key[0] == node["metadata"]["name"]]:
            del self.first_seen[key]

    async def sync(self, key: Key) -> None:
        pod = self.pods.get(key[1], key[0])
        if pod is None or not podstate.is_active(pod) or not pod["spec"].get("nodeName"):
            return
        node = self.nodes.get(pod["spec"]["nodeName"])
        due = self._due(pod, node) if node else None
        if due is None:
            return
        if due > time.time():
            self.queue.add_after(key, due - time.time())
            return
        await self._evict(pod)

    def _due(self, pod: Object, node: Object) -> float | None:
        """When the pod has to go (seconds since the epoch); None where it may stay."""
        moments = []
        for taint in node["spec"].get("taints") or ():
            if taint["effect"] != "NoExecute":
                continue
            tolerations = [t for t in pod["spec"].get("tolerations") or () if taints.tolerates(t, taint)]
            if not tolerations:
                return 0.0
            limits = [t["tolerationSeconds"] for t in tolerations if t.get("tolerationSeconds") is not None]
            if limits:
                seen = self.first_seen.get((node["metadata"]["name"], taint["key"], taint["effect"]), time.time())
                moments.append((times.seconds(taint.get("timeAdded")) or seen) + max(min(limits), 0))
        return min(moments, default=None)

    async def _evict(self, pod: Object) -> None:
        metadata = pod["metadata"]
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        self.events.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {namespace}/{name}")
        listed = with_condition(
            [], "DisruptionTarget", "True", "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"
        )
        try:
            patch = {"metadata": {"uid": uid}, "status": {"conditions": listed}}
            await self.client.patch(PODS, name, patch, namespace, subresource="status")
            await self.client.delete(PODS, name, namespace, uid=uid)
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise
        self.log.info("evicted", pod=uid, name=f"{namespace}/{name}", node=pod["spec"]["nodeName"])
