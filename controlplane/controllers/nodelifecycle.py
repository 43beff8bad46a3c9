"""Nodes that are silent or not ready: their conditions, their taints, and the readiness of their pods.

A kubelet renews its node's Lease (kube-node-lease) every 10 s or so. When neither the lease nor the status has changed for
the grace period, by this process's own clock, nobody knows how the node is: its conditions become Unknown. Taints follow from
conditions; what they evict is `tainteviction`'s.
https://kubernetes.io/docs/concepts/architecture/nodes/#condition
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from controlplane import taints
from controlplane.controllers import conditions
from controlplane.controllers.frame import Context, Controller
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import LEASES, NODES, PODS

Object = dict[str, Any]
_LEASE_NAMESPACE = "kube-node-lease"
_PROBE_SECONDS = 5.0
_WATCHED = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
_PRESSURES = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
_OURS = {taints.NOT_READY, taints.UNREACHABLE, taints.UNSCHEDULABLE, *_PRESSURES.values()}


@dataclass
class _Sign:
    """A node's last sign of life: what it was, and when it was seen (monotonic seconds)."""

    what: tuple[Any, ...]
    seen: float


class NodeLifecycleController(Controller[str]):
    name = "nodelifecycle"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events = context.recorder("node-controller")
        self.signs: dict[str, _Sign] = {}
        self.nodes, self.pods = self.informer(NODES), self.informer(PODS)
        index_by_node(self.pods)
        self.leases = context.informers.of(LEASES, _LEASE_NAMESPACE)
        self.on_change(self.nodes, lambda node: self.queue.add(node["metadata"]["name"]))
        self.on_change(self.leases, lambda lease: self.queue.add(lease["metadata"]["name"]))

    async def run(self) -> None:
        probing = asyncio.create_task(self._probe(), name="nodelifecycle probe")
        try:
            await super().run()
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    async def _probe(self) -> None:
        """While the API server is away no node can be heard: after that, each has the whole grace period again."""
        was_away = False
        while True:
            try:
                await self.client.request("GET", "/livez", timeout=_PROBE_SECONDS)
            except ApiError:
                was_away = True
            else:
                if was_away:
                    self._hear_all()
                was_away = False
            await asyncio.sleep(_PROBE_SECONDS)

    def _hear_all(self) -> None:
        now = time.monotonic()
        for sign in self.signs.values():
            sign.seen = now

    async def sync(self, key: str) -> None:
        node = self.nodes.get(key)
        if node is None:
            self.signs.pop(key, None)
            return
        silent = self._silent_seconds(node)
        ready = conditions.find(node, "Ready")
        if silent < self.settings.node_grace_seconds:
            self.queue.add_after(key, self.settings.node_grace_seconds - silent + 0.01)
        elif ready is None or ready["status"] != "Unknown":
            try:
                node = await self._mark_unknown(node)
            except Unreachable:
                self._hear_all()
                raise
            ready = conditions.find(node, "Ready")
        await self._set_taints(node)
        if ready is not None and ready["status"] != "True":
            await self._mark_pods(key)

    def _silent_seconds(self, node: Object) -> float:
        name, now = node["metadata"]["name"], time.monotonic()
        lease = self.leases.get(name, _LEASE_NAMESPACE)
        ready = conditions.find(node, "Ready") or {}
        heard = ((lease or {}).get("spec", {}).get("renewTime"), ready.get("lastHeartbeatTime"), ready.get("status") != "Unknown")
        sign = self.signs.get(name)
        if sign is None or sign.what != heard:
            # That we have ourselves made it Unknown is no sign of life.
            was_ours = sign is not None and sign.what[:2] == heard[:2]
            self.signs[name] = sign = _Sign(heard, sign.seen if sign and was_ours else now)
        return now - sign.seen

    async def _mark_unknown(self, node: Object) -> Object:
        name, moment = node["metadata"]["name"], times.now()
        changed = []
        for type_ in _WATCHED:
            old = conditions.find(node, type_)
            if old is None:
                condition = {"type": type_, "lastHeartbeatTime": node["metadata"]["creationTimestamp"]}
                reason, message = "NodeStatusNeverUpdated", "Kubelet never posted node status."
                changed.append(
                    {**condition, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": moment}
                )
            elif old["status"] != "Unknown":
                reason, message = "NodeStatusUnknown", "Kubelet stopped posting node status."
                changed.append({**old, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": moment})
        patch = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "status": {"conditions": changed}}
        node = await self.client.patch(NODES, name, patch, subresource="status")
        self.log.warning("node is silent", node=name)
        self.events.event(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        return node

    async def _set_taints(self, node: Object) -> None:
        """Gives the node the taints of its state, and takes away those of a state that is over."""
        current = node["spec"].get("taints") or []
        wanted = _taints_of(node)
        kept = [t for t in current if t["key"] not in _OURS or (t["key"], t["effect"]) in wanted]
        known = {(t["key"], t["effect"]) for t in kept}
        moment = times.now()
        added = [{"key": key, "effect": effect, "timeAdded": moment} for key, effect in sorted(wanted - known)]
        if not added and len(kept) == len(current):
            return
        patch = {
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"taints": [*kept, *added] or None},
        }
        await self.client.patch(NODES, node["metadata"]["name"], patch, kind="merge")

    async def _mark_pods(self, node: str) -> None:
        """Pods of a node that is not ready are not ready: services leave them out."""
        for pod in self.pods.by_index("node", node):
            ready = conditions.find(pod, "Ready")
            if ready is None or ready["status"] != "True" or ready.get("reason") == "NodeNotReady":
                continue
            metadata = pod["metadata"]
            changed = {**ready, "status": "False", "reason": "NodeNotReady", "lastTransitionTime": times.now()}
            patch = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [changed]}}
            try:
                await self.client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
            except ApiError as error:
                if not error.is_not_found and not error.is_conflict:
                    raise
            self.events.event(pod, "Warning", "NodeNotReady", "Node is not ready")


def index_by_node(pods: Informer) -> None:
    """Adds the index `node`: by spec.nodeName."""
    if not pods.has_index("node"):
        pods.add_index("node", lambda pod: [pod["spec"]["nodeName"]] if pod["spec"].get("nodeName") else [])


def _taints_of(node: Object) -> set[tuple[str, str]]:
    """The taints, as (key, effect), that the node's conditions and spec call for."""
    wanted: set[tuple[str, str]] = set()
    ready = (conditions.find(node, "Ready") or {}).get("status")
    if ready != "True":
        # A node that has not said anything yet counts as not ready.
        key = taints.UNREACHABLE if ready == "Unknown" else taints.NOT_READY
        wanted |= {(key, "NoSchedule"), (key, "NoExecute")}
    wanted |= {(key, "NoSchedule") for type_, key in _PRESSURES.items() if conditions.is_true(node, type_)}
    if node["spec"].get("unschedulable"):
        wanted.add((taints.UNSCHEDULABLE, "NoSchedule"))
    return wanted
