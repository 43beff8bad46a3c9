"""ReplicaSets (and ReplicationControllers, their elders): as many pods of a template as are asked for."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from controlplane.controllers import conditions, pods
from controlplane.controllers.expectations import Expectations
from controlplane.controllers.frame import Context, Controller, Key
from controlplane.controllers.owners import claim, controller_of, index_by_controller
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import key_of
from strata.kubeclient.resources import PODS, REPLICASETS, REPLICATIONCONTROLLERS
from strata.kubeclient.selectors import Selector, parse_label_selector

Object = dict[str, Any]
_BURST = 500


class ReplicaSetController(Controller[Key]):
    name = "replicaset"
    component = "replicaset-controller"
    resource = REPLICASETS
    workers = 5

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events = context.recorder(self.component)
        self.expectations = Expectations()
        self.sets = self.enqueue(self.resource)
        self.pods = self.informer(PODS)
        index_by_controller(self.pods)
        self.pods.add_handler(self._pod_added, self._pod_changed, self._pod_deleted)

    def selector(self, owner: Object) -> Selector:
        return parse_label_selector(owner["spec"].get("selector"))

    async def sync(self, key: Key) -> None:
        namespace, name = key
        owner = self.sets.get(name, namespace)
        if owner is None:
            self.expectations.forget(key)
            return
        satisfied = self.expectations.satisfied(key)
        owned = await claim(self.client, owner, self.selector(owner), PODS, self.pods)
        active = [pod for pod in owned if pods.is_active(pod)]
        problem: ApiError | None = None
        if satisfied and not owner["metadata"].get("deletionTimestamp"):
            try:
                await self._scale(key, owner, active)
            except ApiError as error:
                problem = error
        await self._write_status(key, owner, active, problem)
        if problem and not problem.is_namespace_terminating:
            raise problem

    # --- pods that come and go

    def _owner_key(self, pod: Object) -> Key | None:
        reference = controller_of(pod)
        if reference is None or reference["kind"] != self.resource.kind or reference["apiVersion"] != self.resource.api_version:
            return None
        return pod["metadata"]["namespace"], reference["name"]

    def _pod_added(self, pod: Object) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            self._pod_deleted(pod)
        elif key := self._owner_key(pod):
            self.expectations.created(key)
            self.queue.add(key)
        else:
            self._orphan(pod)

    def _pod_changed(self, old: Object, new: Object) -> None:
        before, after = self._owner_key(old), self._owner_key(new)
        if before and before != after:
            self.queue.add(before)
        if after:
            if new["metadata"].get("deletionTimestamp"):
                self.expectations.deleted(after, new["metadata"]["uid"])
            self.queue.add(after)
        else:
            self._orphan(new)

    def _pod_deleted(self, pod: Object) -> None:
        if key := self._owner_key(pod):
            self.expectations.deleted(key, pod["metadata"]["uid"])
            self.queue.add(key)

    def _orphan(self, pod: Object) -> None:
        if controller_of(pod) is None and pod["metadata"].get("labels"):
            for owner in self.sets.list(pod["metadata"]["namespace"]):
                if self.selector(owner).matches(pod["metadata"]["labels"]):
                    self.queue.add(key_of(owner))

    # --- how many

    async def _scale(self, key: Key, owner: Object, active: list[Object]) -> None:
        missing = owner["spec"].get("replicas", 1) - len(active)
        if missing > 0:
            count = min(missing, _BURST)
            self.expectations.expect(key, creations=count)
            await self._slow_start(key, owner, count)
        elif missing < 0:
            per_node = Counter(pod["spec"].get("nodeName") or "" for pod in active)
            chosen = sorted(active, key=lambda pod: pods.deletion_rank(pod, per_node))[: min(-missing, _BURST)]
            self.expectations.expect(key, deletions=[pod["metadata"]["uid"] for pod in chosen])
            await _all(self._delete(key, owner, pod) for pod in chosen)

    async def _slow_start(self, key: Key, owner: Object, count: int) -> None:
        """Creates pods in batches of 1, 2, 4, …, so that what is refused for all of them is asked for only once.

        Raises the first error, having waited for its whole batch.
        """
        left, batch = count, 1
        while left:
            size = min(batch, left)
            left -= size
            try:
                await _all(self._create(key, owner) for _ in range(size))
            except ApiError:
                for _ in range(left):
                    self.expectations.created(key)
                raise
            batch *= 2

    async def _create(self, key: Key, owner: Object) -> None:
        try:
            pod = await self.client.create(PODS, pods.from_template(owner["spec"]["template"], owner))
        except ApiError as error:
            self.expectations.created(key)
            if not error.is_namespace_terminating:
                self.events.event(owner, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self.events.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    async def _delete(self, key: Key, owner: Object, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            self.expectations.deleted(key, metadata["uid"])
            if error.is_not_found:
                return
            self.events.event(owner, "Warning", "FailedDelete", f"Error deleting: {error}")
            raise
        self.events.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    # --- status

    async def _write_status(self, key: Key, owner: Object, active: Sequence[Object], problem: ApiError | None) -> None:
        spec, old = owner["spec"], owner.get("status") or {}
        labels = Selector(parse_label_selector({"matchLabels": spec["template"]["metadata"].get("labels")}).requirements)
        waits = [pods.available_in(pod, spec.get("minReadySeconds") or 0) for pod in active]
        listed = list(old.get("conditions") or ())
        if problem:
            reason = "FailedCreate" if len(active) < spec.get("replicas", 1) else "FailedDelete"
            listed = conditions.with_condition(listed, "ReplicaFailure", "True", reason, str(problem))
        else:
            listed = conditions.without(listed, "ReplicaFailure")
        counts = {
            "replicas": len(active),
            "fullyLabeledReplicas": sum(labels.matches(pod["metadata"].get("labels")) for pod in active),
            "readyReplicas": sum(wait is not None for wait in waits),
            "availableReplicas": sum(wait == 0 for wait in waits),
        }
        new = {name: count for name, count in counts.items() if count or name == "replicas"}
        new["observedGeneration"] = owner["metadata"].get("generation", 0)
        if listed:
            new["conditions"] = listed  # type: ignore[assignment]
        if pending := [wait for wait in waits if wait]:
            self.queue.add_after(key, min(pending) + 0.05)
        if new == old:
            return
        try:
            await self.client.update(self.resource, {**owner, "status": new}, subresource="status")
        except ApiError as error:
            if not error.is_not_found:
                raise


class ReplicationControllerController(ReplicaSetController):
    name = "replicationcontroller"
    component = "replication-controller"
    resource = REPLICATIONCONTROLLERS
    workers = 1

    def selector(self, owner: Object) -> Selector:
        return parse_label_selector({"matchLabels": owner["spec"]["selector"]})


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Waits for all, then raises the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
