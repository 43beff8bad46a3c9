"""Jobs: pods that run until enough of them have succeeded.

No finished pod is counted twice or lost: each has a finalizer until it is counted. First its UID goes into the status
(uncountedTerminatedPods), then its finalizer goes, then the UID becomes part of the sums: whenever this process dies in
between, the next look finds where it was.
https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

from controlplane.controllers import conditions, indexes
from controlplane.controllers import pods as podstate
from controlplane.controllers.expectations import Expectations
from controlplane.controllers.frame import Context, Controller, Key
from controlplane.controllers.owners import claim, controller_of, index_by_controller
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import JOBS, PODS
from strata.kubeclient.selectors import parse_label_selector

Object = dict[str, Any]
FINALIZER = "batch.kubernetes.io/job-tracking"
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 10.0, 600.0


class JobController(Controller[Key]):
    name = "job"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events = context.recorder("job-controller")
        self.expectations = Expectations()
        self.written: dict[Key, int] = {}
        self.jobs, self.pods = self.enqueue(JOBS), self.informer(PODS)
        index_by_controller(self.pods)
        self.pods.add_handler(self._pod_added, self._pod_changed, self._pod_deleted)

    def _owner_key(self, pod: Object) -> Key | None:
        reference = controller_of(pod)
        return (pod["metadata"]["namespace"], reference["name"]) if reference and reference["kind"] == "Job" else None

    def _pod_added(self, pod: Object) -> None:
        if key := self._owner_key(pod):
            self.expectations.created(key)
            self.queue.add(key)

    def _pod_changed(self, _: Object, pod: Object) -> None:
        if key := self._owner_key(pod):
            if pod["metadata"].get("deletionTimestamp"):
                self.expectations.deleted(key, pod["metadata"]["uid"])
            self.queue.add(key)

    def _pod_deleted(self, pod: Object) -> None:
        if key := self._owner_key(pod):
            self.expectations.deleted(key, pod["metadata"]["uid"])
            self.queue.add(key)

    async def sync(self, key: Key) -> None:
        job = self.jobs.get(key[1], key[0])
        await self._release_strays(key, job)
        if job is None:
            self.expectations.forget(key)
            self.written.pop(key, None)
            return
        if int(job["metadata"]["resourceVersion"]) < self.written.get(key, 0):
            self.queue.add_after(key, 0.02)  # our own last write has not come back yet
            return
        selector = parse_label_selector(job["spec"].get("selector"))
        pods = await claim(self.client, job, selector, PODS, self.pods)
        if job["metadata"].get("deletionTimestamp"):
            await self.release(pods)
            return
        if is_finished(job):
            await self.release(pods)
            await self._expire(key, job)
            return
        await _Look(self, key, job, pods).run()

    async def _release_strays(self, key: Key, job: Object | None) -> None:
        """Pods of a job that is gone are nobody's to count."""
        uid = job["metadata"]["uid"] if job else None
        pods = [pod for pod in self.pods.list(key[0]) if self._owner_key(pod) == key]
        await self.release(pod for pod in pods if (controller_of(pod) or {}).get("uid") != uid)

    async def release(self, pods: Iterable[Object]) -> None:
        """Takes the finalizer off pods that have it."""
        await asyncio.gather(*(self._release(pod) for pod in pods if is_tracked(pod)))

    async def _release(self, pod: Object) -> None:
        metadata = pod["metadata"]
        kept = [finalizer for finalizer in metadata["finalizers"] if finalizer != FINALIZER]
        change = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], "finalizers": kept or None}
        try:
            await self.client.patch(PODS, metadata["name"], {"metadata": change}, metadata["namespace"], kind="merge")
        except ApiError as error:
            if not error.is_not_found:
                raise

    async def _expire(self, key: Key, job: Object) -> None:
        """Deletes a finished job after ttlSecondsAfterFinished."""
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None:
            return
        ended = conditions.find(job, "Complete") or conditions.find(job, "Failed") or {}
        left = times.seconds(ended.get("lastTransitionTime")) + ttl - time.time()
        if left > 0:
            self.queue.add_after(key, left)
            return
        await self.client.delete(JOBS, key[1], key[0], uid=job["metadata"]["uid"], propagation_policy="Foreground")


def is_finished(job: Object) -> bool:
    return conditions.is_true(job, "Complete") or conditions.is_true(job, "Failed")


def is_tracked(pod: Object) -> bool:
    return FINALIZER in (pod["metadata"].get("finalizers") or ())


class _Look:
    """One look at a job that has not finished, with its pods."""

    def __init__(self, controller: JobController, key: Key, job: Object, pods: Sequence[Object]) -> None:
        self.controller, self.client, self.events = controller, controller.client, controller.events
        self.key, self.job, self.spec, self.pods = key, job, job["spec"], pods
        self.status: Object = dict(job.get("status") or {})
        self.conditions = list(self.status.get("conditions") or ())
        self.is_indexed = self.spec.get("completionMode") == "Indexed"
        self.completions: int | None = self.spec.get("completions")
        self.active = [pod for pod in pods if podstate.is_active(pod)]

    async def run(self) -> None:
        await self._count()
        ending = self._why_failed()
        done = not ending and self._is_done()
        if ending:
            await self._end("FailureTarget", "Failed", *ending)
        elif done:
            await self._end("SuccessCriteriaMet", "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        elif self.spec.get("suspend"):
            await self._suspend()
        else:
            await self._resume()
            if self.controller.expectations.satisfied(self.key):
                await self._manage()
        await self._write()

    # --- counting

    async def _count(self) -> None:
        uncounted = self.status.get("uncountedTerminatedPods") or {}
        lists = {name: list(uncounted.get(name) or ()) for name in ("succeeded", "failed")}
        tracked = {pod["metadata"]["uid"]: pod for pod in self.pods if is_tracked(pod)}
        self._fold(lists, tracked.keys())
        done = self._completed()
        for uid, pod in tracked.items():
            outcome = self._outcome(pod)
            if outcome and uid not in lists[outcome]:
                lists[outcome].append(uid)
                if outcome == "succeeded" and self.is_indexed and (index := _index(pod)) is not None:
                    done.add(index)
        if self.is_indexed and done:
            self.status["completedIndexes"] = indexes.render(done)
        counted = [tracked[uid] for uids in lists.values() for uid in uids if uid in tracked]
        self.status["uncountedTerminatedPods"] = {name: uids for name, uids in lists.items() if uids}
        if counted:
            await self._write()
            await self.controller.release(counted)
            self._fold(lists, ())
            self.status["uncountedTerminatedPods"] = {}

    def _fold(self, lists: dict[str, list[str]], tracked: Iterable[str]) -> None:
        """Adds to the sums the pods that have lost their finalizer."""
        for name, uids in lists.items():
            free = [uid for uid in uids if uid not in tracked]
            if free:
                lists[name] = [uid for uid in uids if uid not in free]
                self.status[name] = (self.status.get(name) or 0) + len(free)
        if self.is_indexed and (done := self._completed()):
            self.status["succeeded"] = len(done)

    def _completed(self) -> set[int]:
        return indexes.parse(self.status.get("completedIndexes") or "")

    def _outcome(self, pod: Object) -> str | None:
        phase = podstate.phase(pod)
        if phase == "Succeeded":
            is_wanted = not self.is_indexed or (_index(pod) is not None and _index(pod) < (self.completions or 0))  # type: ignore[operator]
            return "succeeded" if is_wanted else "failed"
        if phase == "Failed":
            return "failed"
        # A pod that somebody deletes will not succeed; one that the suspension takes away has not failed.
        if pod["metadata"].get("deletionTimestamp") and not self.spec.get("suspend"):
            return "failed" if self.spec.get("podReplacementPolicy") != "Failed" else None
        return None

    @property
    def succeeded(self) -> int:
        return self.status.get("succeeded") or 0

    @property
    def failed(self) -> int:
        return self.status.get("failed") or 0

    # --- the end

    def _why_failed(self) -> tuple[str, str] | None:
        """(reason, message) where the job has failed."""
        target = next((c for c in self.conditions if c["type"] == "FailureTarget" and c["status"] == "True"), None)
        if target:
            return target["reason"], target["message"]
        limit = self.spec.get("backoffLimit", 6)
        restarts = 0
        if self.spec["template"]["spec"].get("restartPolicy") == "OnFailure":
            restarts = sum(_restarts(pod) for pod in self.active)
        if self.failed > limit or (restarts >= limit and restarts):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        deadline = self.spec.get("activeDeadlineSeconds")
        if deadline is not None and self.status.get("startTime") and not self.spec.get("suspend"):
            left = times.seconds(self.status["startTime"]) + deadline - time.time()
            if left <= 0:
                return "DeadlineExceeded", "Job was active longer than specified deadline"
            self.controller.queue.add_after(self.key, left + 0.05)
        return None

    def _is_done(self) -> bool:
        if self.completions is None:
            return self.succeeded > 0 and not self.active
        return self.succeeded >= self.completions

    async def _end(self, first: str, then: str, reason: str, message: str) -> None:
        """Ends what still runs; the job is at its end when nothing does."""
        await self._delete(self.active)
        self.conditions = conditions.with_condition(self.conditions, first, "True", reason, message)
        self.active = []
        if any(not podstate.is_finished(pod) for pod in self.pods):
            return
        self.conditions = conditions.with_condition(self.conditions, then, "True", reason, message)
        if then == "Complete":
            self.status["completionTime"] = times.now()
            self.events.event(self.job, "Normal", "Completed", "Job completed")
        else:
            self.events.event(self.job, "Warning", reason, message)

    # --- running

    async def _suspend(self) -> None:
        await self._delete(self.active)
        self.active = []
        self.status.pop("startTime", None)
        if not any(c["type"] == "Suspended" and c["status"] == "True" for c in self.conditions):
            self.conditions = conditions.with_condition(self.conditions, "Suspended", "True", "JobSuspended", "Job suspended")
            self.events.event(self.job, "Normal", "Suspended", "Job suspended")

    async def _resume(self) -> None:
        if any(c["type"] == "Suspended" and c["status"] == "True" for c in self.conditions):
            self.conditions = conditions.with_condition(self.conditions, "Suspended", "False", "JobResumed", "Job resumed")
            self.events.event(self.job, "Normal", "Resumed", "Job resumed")
        self.status.setdefault("startTime", times.now())

    async def _manage(self) -> None:
        """Makes pods that are missing, deletes those that are too many."""
        parallelism = self.spec.get("parallelism", 1)
        if self.completions is None:
            wanted = parallelism if not self.succeeded else min(parallelism, len(self.active))
        else:
            wanted = min(parallelism, self.completions - self.succeeded)
        terminating = sum(bool(p["metadata"].get("deletionTimestamp")) and not podstate.is_finished(p) for p in self.pods)
        room = terminating if self.spec.get("podReplacementPolicy") == "Failed" else 0
        missing = wanted - len(self.active) - room
        if missing < 0 and wanted < len(self.active):
            ranked = sorted(self.active, key=lambda pod: podstate.deletion_rank(pod, {}))
            await self._delete(ranked[: len(self.active) - wanted])
            return
        if missing <= 0:
            return
        wait = self._delay()
        if wait > 0:
            self.controller.queue.add_after(self.key, wait)
            return
        await self._create(missing)

    def _delay(self) -> float:
        """Seconds to wait before a pod that failed is replaced: 10 s, doubled with each failure, up to 10 minutes."""
        since = max((_ended(pod) for pod in self.pods if podstate.phase(pod) == "Succeeded"), default=0.0)
        recent = sorted(at for pod in self.pods if podstate.phase(pod) == "Failed" and (at := _ended(pod)) > since)
        if not recent:
            return 0.0
        delay = min(_FIRST_DELAY_SECONDS * 2 ** min(len(recent) - 1, 10), _LONGEST_DELAY_SECONDS)
        return float(recent[-1] + delay - time.time())

    async def _create(self, count: int) -> None:
        taken = self._completed() | {index for pod in self.active if (index := _index(pod)) is not None}
        chosen: list[int | None] = [None] * count
        if self.is_indexed:
            chosen = [index for index in range(self.completions or 0) if index not in taken][:count]  # type: ignore[assignment]
        self.controller.expectations.expect(self.key, creations=len(chosen))
        results = await asyncio.gather(*(self._create_one(index) for index in chosen), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
            if result:
                self.active.append(result)

    async def _create_one(self, index: int | None) -> Object | None:
        pod = podstate.from_template(self.spec["template"], self.job)
        metadata = pod["metadata"]
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), FINALIZER]
        if index is not None:
            _set_index(pod, self.key[1], index)
        try:
            made = await self.client.create(PODS, pod)
        except ApiError as error:
            self.controller.expectations.created(self.key)
            if error.is_namespace_terminating:
                return None
            self.events.event(self.job, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self.events.event(self.job, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")
        return made

    async def _delete(self, pods: Sequence[Object]) -> None:
        if pods:
            self.controller.expectations.expect(self.key, deletions=[pod["metadata"]["uid"] for pod in pods])
        results = await asyncio.gather(*(self._delete_one(pod) for pod in pods), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _delete_one(self, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            self.controller.expectations.deleted(self.key, metadata["uid"])
            if error.is_not_found:
                return
            raise
        self.events.event(self.job, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    # --- status

    async def _write(self) -> None:
        terminating = sum(bool(p["metadata"].get("deletionTimestamp")) and not podstate.is_finished(p) for p in self.pods)
        self.status |= {"active": len(self.active), "ready": sum(map(podstate.is_ready, self.active)), "terminating": terminating}
        if not self.status["active"]:
            del self.status["active"]
        if self.conditions:
            self.status["conditions"] = self.conditions
        if self.status == (self.job.get("status") or {}):
            return
        try:
            self.job = await self.client.update(JOBS, {**self.job, "status": dict(self.status)}, subresource="status")
        except ApiError as error:
            if not error.is_not_found:
                raise
            return
        self.controller.written[self.key] = int(self.job["metadata"]["resourceVersion"])


def _index(pod: Object) -> int | None:
    text = (pod["metadata"].get("annotations") or {}).get(indexes.ANNOTATION) or ""
    return int(text) if text.isdigit() else None


def _set_index(pod: Object, job: str, index: int) -> None:
    """Tells the pod its index: annotation, label, name, host name, and the variable JOB_COMPLETION_INDEX."""
    metadata, spec = pod["metadata"], pod["spec"]
    metadata["generateName"] = f"{job}-{index}-"
    for name in ("annotations", "labels"):
        metadata[name] = {**(metadata.get(name) or {}), indexes.ANNOTATION: str(index)}
    path = f"metadata.annotations['{indexes.ANNOTATION}']"
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def told(container: Object) -> Object:
        listed = container.get("env") or []
        return container if any(v["name"] == variable["name"] for v in listed) else {**container, "env": [*listed, variable]}

    spec = {**spec, "hostname": spec.get("hostname") or f"{job}-{index}"}
    for name in ("containers", "initContainers"):
        if spec.get(name):
            spec[name] = [told(container) for container in spec[name]]
    pod["spec"] = spec


def _restarts(pod: Object) -> int:
    status = pod.get("status") or {}
    listed = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return sum(container.get("restartCount") or 0 for container in listed)


def _ended(pod: Object) -> float:
    """When the pod's last container ended, or the pod was made (seconds since the epoch)."""
    listed = (pod.get("status") or {}).get("containerStatuses") or ()
    ends = [times.seconds(((c.get("state") or {}).get("terminated") or {}).get("finishedAt")) for c in listed]
    return max(ends, default=0.0) or times.seconds(pod["metadata"]["creationTimestamp"])
