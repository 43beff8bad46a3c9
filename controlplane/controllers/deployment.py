"""Deployments: a ReplicaSet for each template, and the pods moved from the old ones to the new one.

A Deployment's revisions are its ReplicaSets, numbered in the annotation deployment.kubernetes.io/revision; going back to an
old template takes up its ReplicaSet under a new number. How many pods each may have now is in `rollout`.
https://kubernetes.io/docs/concepts/workloads/controllers/deployment/
"""

import time
from collections.abc import Sequence
from typing import Any

from controlplane.controllers import conditions, rollout, templates
from controlplane.controllers import pods as podstate
from controlplane.controllers.frame import Context, Controller, Key
from controlplane.controllers.owners import claim, controller_of, index_by_controller, reference_to
from controlplane.controllers.rollout import Limits
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import key_of
from strata.kubeclient.resources import DEPLOYMENTS, PODS, REPLICASETS
from strata.kubeclient.selectors import parse_label_selector

Object = dict[str, Any]
REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MOST = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration", "deprecated.deployment.rollback.to",
    REVISION, HISTORY, DESIRED, MOST,
}  # fmt: skip


class DeploymentController(Controller[Key]):
    name = "deployment"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events = context.recorder("deployment-controller")
        self.deployments = self.enqueue(DEPLOYMENTS)
        self.sets, self.pods = self.informer(REPLICASETS), self.informer(PODS)
        index_by_controller(self.sets)
        index_by_controller(self.pods)
        self.sets.add_handler(self._set_changed, self._set_updated, self._set_changed)
        self.pods.add_handler(on_delete=self._pod_gone)

    def _set_updated(self, old: Object, new: Object) -> None:
        self._set_changed(old)
        self._set_changed(new)

    def _set_changed(self, replica_set: Object) -> None:
        reference = controller_of(replica_set)
        if reference:
            if reference["kind"] == "Deployment":
                self.queue.add((replica_set["metadata"]["namespace"], reference["name"]))
            return
        for deployment in self.deployments.list(replica_set["metadata"]["namespace"]):
            if parse_label_selector(deployment["spec"]["selector"]).matches(replica_set["metadata"].get("labels")):
                self.queue.add(key_of(deployment))

    def _pod_gone(self, pod: Object) -> None:
        """Recreate waits for the last old pod to be really gone."""
        reference = controller_of(pod)
        if reference and reference["kind"] == "ReplicaSet":
            replica_set = self.sets.get(reference["name"], pod["metadata"]["namespace"])
            if replica_set:
                self._set_changed(replica_set)

    async def sync(self, key: Key) -> None:
        deployment = self.deployments.get(key[1], key[0])
        if deployment is None:
            return
        spec = deployment["spec"]
        selector = parse_label_selector(spec["selector"])
        sets = await claim(self.client, deployment, selector, REPLICASETS, self.sets)
        await _Rollout(self, key, deployment, sets).run()


class _Rollout:
    """One look at one Deployment with its ReplicaSets."""

    def __init__(self, controller: DeploymentController, key: Key, deployment: Object, sets: Sequence[Object]) -> None:
        self.controller, self.client, self.events = controller, controller.client, controller.events
        self.key, self.deployment, self.spec = key, deployment, deployment["spec"]
        self.limits = Limits.of(self.spec)
        by_age = sorted(sets, key=lambda s: (s["metadata"]["creationTimestamp"], s["metadata"]["name"]))
        matching = [s for s in by_age if templates.equal(s["spec"]["template"], self.spec["template"])]
        self.new: Object | None = matching[0] if matching else None
        self.olds = [s for s in by_age if s is not self.new]
        self.conditions: list[Object] = list((deployment.get("status") or {}).get("conditions") or ())
        self.collisions = (deployment.get("status") or {}).get("collisionCount") or 0

    async def run(self) -> None:
        if self.deployment["metadata"].get("deletionTimestamp"):
            await self._write_status()
            return
        self._note_pause()
        if self.spec.get("paused"):
            await self._number(create=False)
            await self._resize_all()
            await self._clean_up()
        elif self._is_scaling():
            await self._number(create=False)
            await self._resize_all()
        elif (self.spec.get("strategy") or {}).get("type") == "Recreate":
            await self._recreate()
        else:
            await self._roll()
        await self._write_status()

    # --- strategies

    async def _roll(self) -> None:
        new = await self._number(create=True)
        if new is None:
            return
        size = rollout.new_size(self.limits, new, self.olds)
        if size != rollout.wanted(new):
            self.new = await self._resize(new, size)
            return  # what is old follows when this has shown
        sizes = rollout.old_sizes(self.limits, new, self.olds)
        for index, old in enumerate(self.olds):
            self.olds[index] = await self._resize(old, sizes[old["metadata"]["uid"]])
        if self._is_complete():
            await self._clean_up()

    async def _recreate(self) -> None:
        await self._number(create=False)
        if any(rollout.wanted(old) for old in self.olds):
            self.olds = [await self._resize(old, 0) for old in self.olds]
            return
        pods = self.controller.pods
        if any(not podstate.is_finished(pod) for old in self.olds for pod in pods.by_index("controller", old["metadata"]["uid"])):
            return
        new = await self._number(create=True)
        if new is not None:
            self.new = await self._resize(new, self.limits.replicas)
        if self._is_complete():
            await self._clean_up()

    def _is_scaling(self) -> bool:
        """Whether the number of replicas was changed since the ReplicaSets were last sized."""
        for replica_set in (*self.olds, *((self.new,) if self.new else ())):
            desired = (replica_set["metadata"].get("annotations") or {}).get(DESIRED)
            if rollout.wanted(replica_set) and desired is not None and desired != str(self.limits.replicas):
                return True
        return False

    async def _resize_all(self) -> None:
        """After a change of the number of replicas (or in a pause): the only set with pods takes it all, else each its share."""
        sets = [*self.olds, *((self.new,) if self.new else ())]
        active = [s for s in sets if rollout.wanted(s)]
        if len(active) <= 1:
            target = active[0] if active else self.new
            if target is not None:
                self._replace(await self._resize(target, self.limits.replicas))
            return
        if self.new is not None and rollout.available(self.new) >= self.limits.replicas == rollout.wanted(self.new):
            for old in list(self.olds):
                self._replace(await self._resize(old, 0))
            return
        if (self.spec.get("strategy") or {}).get("type") == "Recreate":
            for replica_set in active:  # no shares here: only note that the change was seen
                self._replace(await self._resize(replica_set, rollout.wanted(replica_set)))
            return
        growing = self.limits.most > sum(map(rollout.wanted, active))
        # The largest first; of those alike the newest grows and the eldest shrinks.
        active.sort(key=lambda s: s["metadata"]["creationTimestamp"], reverse=growing)
        active.sort(key=rollout.wanted, reverse=True)
        known = {s["metadata"]["uid"]: int((s["metadata"].get("annotations") or {}).get(MOST) or 0) for s in active}
        sizes = rollout.proportional_sizes(self.limits, active, known)
        for replica_set in active:
            self._replace(await self._resize(replica_set, sizes[replica_set["metadata"]["uid"]]))

    def _replace(self, replica_set: Object) -> None:
        uid = replica_set["metadata"]["uid"]
        if self.new is not None and self.new["metadata"]["uid"] == uid:
            self.new = replica_set
        self.olds = [replica_set if old["metadata"]["uid"] == uid else old for old in self.olds]

    # --- ReplicaSets

    async def _number(self, *, create: bool) -> Object | None:
        """The ReplicaSet of the present template, with the highest revision; made where it is not there and may be."""
        revision = max((_revision(old) for old in self.olds), default=0) + 1
        if self.new is not None:
            name = self.new["metadata"]["name"]
            await self._number_existing(self.new, revision)
            if conditions.find(self.deployment, "Progressing") is None and self._has_deadline():
                self._progress("True", "FoundNewReplicaSet", f'Found new replica set "{name}"')
        elif create:
            self.new = await self._create(revision)
        if self.new is not None:
            await self._number_deployment(self.new)
        return self.new

    async def _number_existing(self, new: Object, revision: int) -> None:
        old = new["metadata"].get("annotations") or {}
        annotations = {**old, **self._annotations()}
        if _revision(new) < revision:
            annotations[REVISION] = str(revision)
            if old.get(REVISION):
                annotations[HISTORY] = ",".join(filter(None, (old.get(HISTORY), old[REVISION])))
        if not rollout.wanted(new):
            annotations |= self._size_annotations()
        min_ready = self.spec.get("minReadySeconds") or 0
        if annotations == old and (new["spec"].get("minReadySeconds") or 0) == min_ready:
            return
        changed = {
            **new,
            "metadata": {**new["metadata"], "annotations": annotations},
            "spec": {**new["spec"], "minReadySeconds": min_ready},
        }
        self.new = await self.client.update(REPLICASETS, changed)

    async def _create(self, revision: int) -> Object | None:
        name, namespace = self.deployment["metadata"]["name"], self.key[0]
        template = self.spec["template"]
        digest = templates.template_hash(template, self.collisions)
        labels = {**((template.get("metadata") or {}).get("labels") or {}), templates.HASH_LABEL: digest}
        selector = self.spec["selector"]
        selector = {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), templates.HASH_LABEL: digest}}
        made = {
            "metadata": {
                "name": f"{name}-{digest}",
                "namespace": namespace,
                "labels": labels,
                "annotations": {**self._annotations(), **self._size_annotations(), REVISION: str(revision)},
                "ownerReferences": [reference_to(self.deployment)],
            },
            "spec": {
                "replicas": 0,
                "minReadySeconds": self.spec.get("minReadySeconds") or 0,
                "selector": selector,
                "template": {**template, "metadata": {**(template.get("metadata") or {}), "labels": labels}},
            },
        }
        size = rollout.new_size(self.limits, {**made, "metadata": {"uid": ""}}, self.olds)
        made["spec"]["replicas"] = size  # type: ignore[index]
        try:
            new = await self.client.create(REPLICASETS, made)
        except ApiError as error:
            if error.is_already_exists:
                return await self._taken(f"{name}-{digest}")
            if not error.is_namespace_terminating and self._has_deadline():
                why = f'Failed to create new replica set "{name}-{digest}": {error}'
                self._progress("False", "ReplicaSetCreateError", why)
                await self._write_status()
            raise
        if size:
            self._tell_size(new, 0, size)
        if self._has_deadline():
            self._progress("True", "NewReplicaSetCreated", f'Created new replica set "{new["metadata"]["name"]}"')
        return new

    async def _taken(self, name: str) -> Object | None:
        """The name is there already: it is ours, and only our informer is behind, or another template's (then the next hash)."""
        there = await self.client.get(REPLICASETS, name, self.key[0])
        reference = controller_of(there)
        if reference and reference["uid"] == self.deployment["metadata"]["uid"] and templates.equal(
            there["spec"]["template"], self.spec["template"]
        ):  # fmt: skip
            return there
        self.collisions += 1
        self.controller.queue.add_rate_limited(self.key)
        return None

    async def _number_deployment(self, new: Object) -> None:
        annotations = self.deployment["metadata"].get("annotations") or {}
        revision = (new["metadata"].get("annotations") or {}).get(REVISION)
        if revision and annotations.get(REVISION) != revision:
            patch = {"metadata": {"uid": self.deployment["metadata"]["uid"], "annotations": {REVISION: revision}}}
            self.deployment = await self.client.patch(DEPLOYMENTS, self.key[1], patch, self.key[0], kind="merge")

    async def _resize(self, replica_set: Object, size: int) -> Object:
        before = rollout.wanted(replica_set)
        annotations = {**(replica_set["metadata"].get("annotations") or {}), **self._size_annotations()}
        if size == before and (annotations == replica_set["metadata"].get("annotations") or not size):
            return replica_set
        metadata = {**replica_set["metadata"], "annotations": annotations}
        written = await self.client.update(
            REPLICASETS, {**replica_set, "metadata": metadata, "spec": {**replica_set["spec"], "replicas": size}}
        )
        if size != before:
            self._tell_size(written, before, size)
        return written

    def _tell_size(self, replica_set: Object, before: int, size: int) -> None:
        direction = "up" if size > before else "down"
        text = f"Scaled {direction} replica set {replica_set['metadata']['name']} from {before} to {size}"
        self.events.event(self.deployment, "Normal", "ScalingReplicaSet", text)

    def _annotations(self) -> dict[str, str]:
        """The Deployment's annotations that its ReplicaSets have too (kubernetes.io/change-cause is one)."""
        return {k: v for k, v in (self.deployment["metadata"].get("annotations") or {}).items() if k not in _NOT_COPIED}

    def _size_annotations(self) -> dict[str, str]:
        return {DESIRED: str(self.limits.replicas), MOST: str(self.limits.replicas + self.limits.surge)}

    async def _clean_up(self) -> None:
        """Deletes the eldest revisions without pods beyond revisionHistoryLimit."""
        idle = [
            old for old in self.olds
            if not rollout.wanted(old) and not (old.get("status") or {}).get("replicas")
            and not old["metadata"].get("deletionTimestamp")
            and (old.get("status") or {}).get("observedGeneration", 0) >= old["metadata"].get("generation", 0)
        ]  # fmt: skip
        excess = len(idle) - self.spec.get("revisionHistoryLimit", 10)
        for old in sorted(idle, key=_revision)[: max(0, excess)]:
            try:
                await self.client.delete(
                    REPLICASETS, old["metadata"]["name"], self.key[0], uid=old["metadata"]["uid"], propagation_policy="Background"
                )
            except ApiError as error:
                if not error.is_not_found:
                    raise
            self.olds.remove(old)

    # --- status

    def _counts(self) -> dict[str, int]:
        sets = [*self.olds, *((self.new,) if self.new else ())]

        def total(name: str, among: Sequence[Object] = sets) -> int:
            return sum((s.get("status") or {}).get(name) or 0 for s in among)

        return {
            "replicas": total("replicas"),
            "updatedReplicas": total("replicas", [self.new] if self.new else []),
            "readyReplicas": total("readyReplicas"),
            "availableReplicas": total("availableReplicas"),
            "unavailableReplicas": max(0, sum(map(rollout.wanted, sets)) - total("availableReplicas")),
        }

    def _is_complete(self) -> bool:
        counts, replicas = self._counts(), self.limits.replicas
        return all(counts[name] == replicas for name in ("updatedReplicas", "replicas", "availableReplicas"))

    async def _write_status(self) -> None:
        counts, old = self._counts(), self.deployment.get("status") or {}
        self._judge_availability(counts)
        self._judge_progress(counts, old)
        self._judge_failures()
        new: Object = {name: count for name, count in counts.items() if count}
        new["observedGeneration"] = self.deployment["metadata"].get("generation", 0)
        if self.collisions:
            new["collisionCount"] = self.collisions
        if self.conditions:
            new["conditions"] = self.conditions
        if new == {k: v for k, v in old.items() if k != "terminatingReplicas"}:
            return
        try:
            self.deployment = await self.client.update(DEPLOYMENTS, {**self.deployment, "status": new}, subresource="status")
        except ApiError as error:
            if not error.is_not_found:
                raise

    def _judge_availability(self, counts: dict[str, int]) -> None:
        if counts["availableReplicas"] >= self.limits.least_available:
            status, reason, text = "True", "MinimumReplicasAvailable", "Deployment has minimum availability."
        else:
            status, reason, text = "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."
        self._set("Available", status, reason, text)

    def _judge_progress(self, counts: dict[str, int], old: Object) -> None:
        if not self._has_deadline():
            self.conditions = conditions.without(self.conditions, "Progressing")
            return
        what = f'ReplicaSet "{self.new["metadata"]["name"]}"' if self.new else f'Deployment "{self.key[1]}"'
        current = self._find("Progressing")
        # A deployment that is done and whose status already says so has nothing to progress with.
        settled = (
            (old.get("replicas") or 0) == (old.get("updatedReplicas") or 0)
            and current is not None and current["reason"] == "NewReplicaSetAvailable"
        )  # fmt: skip
        if settled and self.new is not None and counts["updatedReplicas"] == counts["replicas"]:
            return
        if self._is_complete() and self.new is not None:
            self._progress("True", "NewReplicaSetAvailable", f"{what} has successfully progressed.")
        elif self._has_moved(counts, old):
            self.conditions = [c for c in self.conditions if c["type"] != "Progressing" or c["status"] == "True"]
            self._progress("True", "ReplicaSetUpdated", f"{what} is progressing.", moved=True)
        elif current is not None and self._is_late(current):
            self._progress("False", "ProgressDeadlineExceeded", f"{what} has timed out progressing.")

    def _has_moved(self, counts: dict[str, int], old: Object) -> bool:
        def before(name: str) -> int:
            return int(old.get(name) or 0)

        fewer_old = counts["replicas"] - counts["updatedReplicas"] < before("replicas") - before("updatedReplicas")
        more = any(counts[name] > before(name) for name in ("updatedReplicas", "readyReplicas", "availableReplicas"))
        return bool(fewer_old or more)

    def _is_late(self, current: Object) -> bool:
        """Whether nothing has moved for progressDeadlineSeconds; if that is still to come, it is looked at then."""
        if current["reason"] in ("NewReplicaSetAvailable", "DeploymentPaused") or self.spec.get("paused"):
            return False
        if current["reason"] == "ProgressDeadlineExceeded":
            return True
        left: float = times.seconds(current["lastUpdateTime"]) + self.spec["progressDeadlineSeconds"] - time.time()
        if left > 0:
            self.controller.queue.add_after(self.key, left + 1)
        return left <= 0

    def _judge_failures(self) -> None:
        sets = [*((self.new,) if self.new else ()), *self.olds]
        failure = next((c for s in sets if (c := conditions.find(s, "ReplicaFailure")) and c["status"] == "True"), None)
        if failure:
            self._set("ReplicaFailure", "True", failure["reason"], failure["message"])
        else:
            self.conditions = conditions.without(self.conditions, "ReplicaFailure")

    def _note_pause(self) -> None:
        if not self._has_deadline():
            return
        current = self._find("Progressing")
        if current is not None and current["reason"] == "ProgressDeadlineExceeded":
            return
        is_noted = current is not None and current["reason"] == "DeploymentPaused"
        if self.spec.get("paused") and not is_noted:
            self._progress("Unknown", "DeploymentPaused", "Deployment is paused")
        elif not self.spec.get("paused") and is_noted:
            self._progress("Unknown", "DeploymentResumed", "Deployment is resumed")

    def _has_deadline(self) -> bool:
        """Progress is watched over unless the deadline is switched off (the largest int32)."""
        return self.spec.get("progressDeadlineSeconds") not in (None, 2**31 - 1)

    def _find(self, type_: str) -> Object | None:
        return next((c for c in self.conditions if c["type"] == type_), None)

    def _set(self, type_: str, status: str, reason: str, message: str) -> None:
        current = self._find(type_)
        if current is None or (current["status"], current.get("reason")) != (status, reason):
            self.conditions = conditions.with_condition(self.conditions, type_, status, reason, message, update_time=True)

    def _progress(self, status: str, reason: str, message: str, *, moved: bool = False) -> None:
        self._set("Progressing", status, reason, message)
        current = self._find("Progressing")
        if current is not None and moved:
            moment = {"lastUpdateTime": times.now(), "message": message}
            self.conditions = [{**c, **moment} if c is current else c for c in self.conditions]


def _revision(replica_set: Object) -> int:
    text = (replica_set["metadata"].get("annotations") or {}).get(REVISION) or "0"
    return int(text) if text.isdigit() else 0
