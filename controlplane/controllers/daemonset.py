"""DaemonSets: one pod on each node that takes it.

Which nodes do is decided here; the pod then names its node in its affinity and the scheduler places it like any other. The
pod tolerates what befalls a node in its life, so that it stays through it.
https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/
"""

import asyncio
from collections import defaultdict
from typing import Any

from controlplane import nodeselection, taints
from controlplane.controllers import pods as podstate
from controlplane.controllers.expectations import Expectations
from controlplane.controllers.frame import Context, Controller, Key
from controlplane.controllers.owners import claim, controller_of, index_by_controller
from controlplane.controllers.revisions import HASH_LABEL, History
from controlplane.controllers.rollout import scaled
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import key_of
from strata.kubeclient.resources import CONTROLLERREVISIONS, DAEMONSETS, NODES, PODS
from strata.kubeclient.selectors import parse_label_selector

Object = dict[str, Any]
_STAYS_THROUGH = (
    (taints.NOT_READY, "NoExecute"),
    (taints.UNREACHABLE, "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    (taints.UNSCHEDULABLE, "NoSchedule"),
)
_NETWORK_UNAVAILABLE = ("node.kubernetes.io/network-unavailable", "NoSchedule")
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class DaemonSetController(Controller[Key]):
    name = "daemonset"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events = context.recorder("daemonset-controller")
        self.expectations = Expectations()
        self.sets, self.pods, self.nodes = self.enqueue(DAEMONSETS), self.informer(PODS), self.informer(NODES)
        index_by_controller(self.pods)
        self.history = History(self.client, self.informer(CONTROLLERREVISIONS))
        self.pods.add_handler(self._pod_added, self._pod_changed, self._pod_deleted)
        self.nodes.add_handler(self._node, self._node_changed, self._node)

    def _node_changed(self, old: Object, new: Object) -> None:
        if (old["metadata"].get("labels"), old["spec"]) != (new["metadata"].get("labels"), new["spec"]):
            self._node(new)

    def _node(self, _: Object) -> None:
        for daemon_set in self.sets:
            self.queue.add(key_of(daemon_set))

    def _owner_key(self, pod: Object) -> Key | None:
        reference = controller_of(pod)
        return (pod["metadata"]["namespace"], reference["name"]) if reference and reference["kind"] == "DaemonSet" else None

    def _pod_added(self, pod: Object) -> None:
        if key := self._owner_key(pod):
            self.expectations.created(key)
            self.queue.add(key)

    def _pod_changed(self, old: Object, new: Object) -> None:
        for pod in (old, new):
            if key := self._owner_key(pod):
                if pod["metadata"].get("deletionTimestamp"):
                    self.expectations.deleted(key, pod["metadata"]["uid"])
                self.queue.add(key)

    def _pod_deleted(self, pod: Object) -> None:
        if key := self._owner_key(pod):
            self.expectations.deleted(key, pod["metadata"]["uid"])
            self.queue.add(key)

    async def sync(self, key: Key) -> None:
        daemon_set = self.sets.get(key[1], key[0])
        if daemon_set is None:
            self.expectations.forget(key)
            return
        selector = parse_label_selector(daemon_set["spec"]["selector"])
        pods = await claim(self.client, daemon_set, selector, PODS, self.pods)
        if daemon_set["metadata"].get("deletionTimestamp"):
            return
        digest, olds = await self.history.current(daemon_set)
        by_node: dict[str, list[Object]] = defaultdict(list)
        for pod in pods:
            by_node[_node_of(pod)].append(pod)
        wanted = {node["metadata"]["name"] for node in self.nodes if self._takes(node, daemon_set, by_node)}
        if self.expectations.satisfied(key):
            await self._act(key, daemon_set, by_node, wanted, digest)
            used = {(pod["metadata"].get("labels") or {}).get(HASH_LABEL, "") for pod in pods}
            await self.history.trim(olds, used, daemon_set["spec"].get("revisionHistoryLimit", 10))
        await self._write_status(key, daemon_set, by_node, wanted, digest)

    def _takes(self, node: Object, daemon_set: Object, by_node: dict[str, list[Object]]) -> bool:
        """Whether the node is to have a pod. One that has it keeps it until a NoExecute taint."""
        spec, name = daemon_set["spec"]["template"]["spec"], node["metadata"]["name"]
        if not nodeselection.matches(spec, node["metadata"].get("labels") or {}, name):
            return False
        effects = ("NoExecute",) if by_node.get(name) else ("NoSchedule", "NoExecute")
        return taints.untolerated(node["spec"].get("taints") or (), _tolerations(spec), effects) is None

    async def _act(self, key: Key, daemon_set: Object, by_node: dict[str, list[Object]], wanted: set[str], digest: str) -> None:
        """Makes the pods that are missing, and deletes those that are too many, failed, or (as far as may be) outdated."""
        missing, excess = [], []
        for name in wanted | by_node.keys():
            here = by_node.get(name, [])
            ended = [pod for pod in here if podstate.is_finished(pod) and not pod["metadata"].get("deletionTimestamp")]
            living = [pod for pod in here if not podstate.is_finished(pod)]
            excess += ended
            if name not in wanted:
                excess += [pod for pod in living if not pod["metadata"].get("deletionTimestamp")]
            elif not here:
                missing.append(name)
            elif len(living) > 1:
                living.sort(key=lambda pod: (not podstate.is_ready(pod), pod["metadata"]["creationTimestamp"]))
                excess += [pod for pod in living[1:] if not pod["metadata"].get("deletionTimestamp")]
        for pod in excess:
            if podstate.phase(pod) == "Failed":
                text = f"Found failed daemon pod {'/'.join(key_of(pod))} on node {_node_of(pod)}, will try to kill it"
                self.events.event(daemon_set, "Warning", "FailedDaemonPod", text)
        if not missing and not excess:
            excess = self._outdated(daemon_set, by_node, wanted, digest)
        if not missing and not excess:
            return
        self.expectations.expect(key, creations=len(missing), deletions=[pod["metadata"]["uid"] for pod in excess])
        work = [self._create(key, daemon_set, name, digest) for name in missing]
        work += [self._delete(key, daemon_set, pod) for pod in excess]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _outdated(self, daemon_set: Object, by_node: dict[str, list[Object]], wanted: set[str], digest: str) -> list[Object]:
        """The pods of older templates that may go now: those that are not available, and as many others as maxUnavailable
        leaves room for."""
        strategy = daemon_set["spec"].get("updateStrategy") or {}
        if strategy.get("type") == "OnDelete":
            return []
        limit = scaled((strategy.get("rollingUpdate") or {}).get("maxUnavailable", 1), len(wanted), up=True) or 1
        seconds = daemon_set["spec"].get("minReadySeconds") or 0
        going: list[Object] = []
        candidates: list[Object] = []
        unavailable = 0
        for name in wanted:
            pods = [pod for pod in by_node.get(name, ()) if podstate.is_active(pod)]
            is_available = any(podstate.available_in(pod, seconds) == 0 for pod in pods)
            unavailable += not is_available
            old = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(HASH_LABEL) != digest]
            (candidates if is_available else going).extend(old)
        return [*going, *candidates[: max(0, limit - unavailable)]]

    async def _create(self, key: Key, daemon_set: Object, node: str, digest: str) -> None:
        pod = podstate.from_template(daemon_set["spec"]["template"], daemon_set)
        labels = pod["metadata"].setdefault("labels", {})
        labels[HASH_LABEL] = digest
        pod["spec"] = {**pod["spec"], "affinity": _affinity(pod["spec"], node), "tolerations": _tolerations(pod["spec"])}
        try:
            made = await self.client.create(PODS, pod)
        except ApiError as error:
            self.expectations.created(key)
            if error.is_namespace_terminating:
                return
            self.events.event(daemon_set, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self.events.event(daemon_set, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")

    async def _delete(self, key: Key, daemon_set: Object, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            self.expectations.deleted(key, metadata["uid"])
            if error.is_not_found:
                return
            raise
        self.events.event(daemon_set, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    async def _write_status(
        self, key: Key, daemon_set: Object, by_node: dict[str, list[Object]], wanted: set[str], digest: str
    ) -> None:
        seconds = daemon_set["spec"].get("minReadySeconds") or 0
        scheduled = updated = ready = available = 0
        for name in wanted:
            pods = sorted(by_node.get(name, ()), key=lambda pod: pod["metadata"]["creationTimestamp"])
            if not pods:
                continue
            pod, scheduled = pods[0], scheduled + 1
            updated += (pod["metadata"].get("labels") or {}).get(HASH_LABEL) == digest
            wait = podstate.available_in(pod, seconds)
            ready += wait is not None
            available += wait == 0
            if wait:
                self.queue.add_after(key, wait + 0.05)
        status: Object = {
            "currentNumberScheduled": scheduled,
            "numberMisscheduled": sum(
                1 for name, pods in by_node.items() if name not in wanted and any(map(podstate.is_active, pods))
            ),
            "desiredNumberScheduled": len(wanted),
            "numberReady": ready,
            "observedGeneration": daemon_set["metadata"].get("generation", 0),
        }
        rest = {"updatedNumberScheduled": updated, "numberAvailable": available, "numberUnavailable": len(wanted) - available}
        status |= {name: count for name, count in rest.items() if count}
        old = daemon_set.get("status") or {}
        status |= {name: old[name] for name in ("collisionCount", "conditions") if name in old}
        if status == old:
            return
        try:
            await self.client.update(DAEMONSETS, {**daemon_set, "status": status}, subresource="status")
        except ApiError as error:
            if not error.is_not_found:
                raise


def _node_of(pod: Object) -> str:
    """The node that the pod is on, or is meant for."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    required = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED) or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field["key"] == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def _affinity(spec: Object, node: str) -> Object:
    """The template's affinity, with this node as the only one."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    affinity = spec.get("affinity") or {}
    node_affinity = {**(affinity.get("nodeAffinity") or {}), _REQUIRED: {"nodeSelectorTerms": [{"matchFields": [field]}]}}
    return {**affinity, "nodeAffinity": node_affinity}


def _tolerations(spec: Object) -> list[Object]:
    listed = list(spec.get("tolerations") or ())
    through = (*_STAYS_THROUGH, *((_NETWORK_UNAVAILABLE,) if spec.get("hostNetwork") else ()))
    wanted = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in through]
    return [*listed, *(toleration for toleration in wanted if toleration not in listed)]
