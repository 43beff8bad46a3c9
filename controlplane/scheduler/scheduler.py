"""The scheduler's loop: one pod's turn after the other, bindings written meanwhile."""

import asyncio
from typing import Any

from controlplane.scheduler import filters, scores
from controlplane.scheduler.affinity import Neighbours
from controlplane.scheduler.cache import Cache, PodInfo
from controlplane.scheduler.queue import Key, SchedulingQueue
from strata.kubeclient import times
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.kubeclient.events import EventRecorder
from strata.kubeclient.informer import Informers, key_of
from strata.kubeclient.resources import NODES, PODS
from strata.kubeclient.workqueue import Closed
from strata.telemetry import logs
from strata.telemetry.spans import ANNOTATION, span

Object = dict[str, Any]
NAME = "default-scheduler"
_log = logs.get("scheduler")


class Unschedulable(Exception):
    """No node fits; the text says why."""


class Scheduler:
    """Schedules the pods whose schedulerName is `name`."""

    def __init__(self, client: Client, informers: Informers, events: EventRecorder, *, name: str = NAME) -> None:
        self._client, self._events, self._name = client, events, name
        self._cache, self._queue = Cache(), SchedulingQueue()
        self._turns: set[asyncio.Task[None]] = set()
        self._pods, self._nodes = informers.of(PODS), informers.of(NODES)
        self._pods.add_handler(self._pod_set, self._pod_changed, self._pod_gone)
        self._nodes.add_handler(self._node_set, self._node_changed, self._node_gone)

    async def run(self) -> None:
        """Schedules until it is cancelled. The informers are in sync when this is called."""
        try:
            while True:
                key = await self._queue.get()
                # Tasks begin in the order they are made, and choose before they wait for anything.
                task = asyncio.create_task(self._turn(key), name=f"schedule {key[0]}/{key[1]}")
                self._turns.add(task)
                task.add_done_callback(self._turns.discard)
        except Closed:
            return
        finally:
            self._queue.close()
            for task in self._turns:
                task.cancel()

    # --- what the informers tell

    def _is_ours(self, pod: Object) -> bool:
        spec = pod["spec"]
        return (
            not spec.get("nodeName")
            and not pod["metadata"].get("deletionTimestamp")
            and (pod.get("status") or {}).get("phase", "Pending") == "Pending"
            and spec.get("schedulerName", NAME) == self._name
            and not spec.get("schedulingGates")
        )

    def _pod_set(self, pod: Object) -> None:
        if self._is_ours(pod):
            if not self._cache.is_assumed(pod["metadata"]["uid"]):
                self._queue.add(key_of(pod), _priority(pod))
            return
        self._queue.remove(key_of(pod))
        self._cache.set_pod(pod)

    def _pod_changed(self, old: Object, new: Object) -> None:
        was, is_ = self._is_ours(old), self._is_ours(new)
        if was and is_ and old["spec"] == new["spec"] and old["metadata"].get("labels") == new["metadata"].get("labels"):
            return  # only what is said about the pod is new, by the scheduler itself as a rule: no reason for another turn
        self._pod_set(new)
        if new["spec"].get("nodeName") and (not old["spec"].get("nodeName") or (_ended(new) and not _ended(old))):
            # One that ended gives room; one that was placed may be the neighbour that another waits for.
            self._queue.move_all()

    def _pod_gone(self, pod: Object) -> None:
        self._queue.remove(key_of(pod))
        self._cache.remove_pod(pod["metadata"]["uid"])
        if pod["spec"].get("nodeName"):
            self._queue.move_all()

    def _node_set(self, node: Object) -> None:
        self._cache.set_node(node)
        self._queue.move_all()

    def _node_changed(self, old: Object, new: Object) -> None:
        self._cache.set_node(new)
        if _placement(old) != _placement(new):
            self._queue.move_all()

    def _node_gone(self, node: Object) -> None:
        self._cache.remove_node(node["metadata"]["name"])

    # --- a pod's turn

    async def _turn(self, key: Key) -> None:
        pod = self._pods.get(key[1], key[0])
        if pod is None or not self._is_ours(pod):
            return
        uid, moves = pod["metadata"]["uid"], self._queue.moves
        parent = (pod["metadata"].get("annotations") or {}).get(ANNOTATION)
        with span("schedule", parent, pod=uid, object=f"{key[0]}/{key[1]}") as timed:
            try:
                node = self._choose(pod)
                timed.set(node=node)
                await self._bind(pod, node)
            except Unschedulable as why:
                timed.set(unschedulable=str(why))
                self._queue.wait(key, _priority(pod), moves)
                await self._tell_unschedulable(pod, str(why))
            except ApiError as error:
                self._cache.forget(uid)
                if not error.is_not_found:
                    _log.warning("binding failed", pod=uid, error=error)
                    # What it failed for may be over at once: the back-off holds, no change has to come.
                    self._queue.wait(key, _priority(pod), moves - 1)
            except Exception:
                self._cache.forget(uid)
                _log.exception("scheduling failed", pod=uid)
                self._queue.wait(key, _priority(pod), moves - 1)

    def _choose(self, pod: Object) -> str:
        """The node for the pod, which counts there from now on. Raises Unschedulable."""
        info, nodes = PodInfo.of(pod), self._cache.nodes()
        neighbours = Neighbours(pod, nodes)
        fit, refused = filters.fitting(info, nodes, neighbours)
        if not fit:
            raise Unschedulable(filters.summary(len(nodes), refused))
        node = scores.best(info, fit, neighbours).name
        self._cache.assume(info, node)
        return node

    async def _bind(self, pod: Object, node: str) -> None:
        metadata = pod["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": metadata["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await self._client.create(PODS, binding, namespace, name=name, subresource="binding")
        _log.info("scheduled", pod=metadata["uid"], name=f"{namespace}/{name}", node=node)
        text = f"Successfully assigned {namespace}/{name} to {node}"
        self._events.event(pod, "Normal", "Scheduled", text, action="Binding")

    async def _tell_unschedulable(self, pod: Object, why: str) -> None:
        metadata = pod["metadata"]
        _log.info("unschedulable", pod=metadata["uid"], name=f"{metadata['namespace']}/{metadata['name']}", why=why)
        self._events.event(pod, "Warning", "FailedScheduling", why, action="Scheduling")
        listed = (pod.get("status") or {}).get("conditions") or ()
        known = next((c for c in listed if c["type"] == "PodScheduled"), None)
        if known and known["status"] == "False" and known.get("message") == why:
            return
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": why,
            "lastProbeTime": None,
            "lastTransitionTime": (known or {}).get("lastTransitionTime") or times.now(),
        }
        try:
            patch = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
            await self._client.patch(PODS, metadata["name"], patch, metadata["namespace"], subresource="status")
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                _log.warning("condition not written", pod=metadata["uid"], error=error)


def _ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _priority(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def _placement(node: Object) -> tuple[Any, ...]:
    """What of a node says which pods fit on it."""
    spec = node.get("spec") or {}
    allocatable = (node.get("status") or {}).get("allocatable")
    return spec.get("taints"), spec.get("unschedulable"), node["metadata"].get("labels"), allocatable
