"""One pod's worker: it makes what runs be what the pod asks, and in the end takes everything of it away.

A pod goes through three states, never back: *syncing* (start, restart, report), *ending* (stop the containers, report, free
volumes and cgroup), *ended* (wait until the API forgets the pod, then remove containers, sandboxes and logs). All state but
back-offs and waiting reasons is read from the runtime each time, so a worker can start at any point of a pod's life: after
the kubelet's own restart it finds the containers running and leaves them alone.
"""

import asyncio
import glob
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from kubelet import actions, containers, termination
from kubelet.backoff import Backoff, duration
from kubelet.containers import StartError
from kubelet.context import Context
from kubelet.hooks import run_hook
from kubelet.probes import KINDS, Prober
from kubelet.resources import is_sidecar
from kubelet.runtime import TERMINATION_POLICY, ContainerState, PodState, RuntimeCallError, RuntimeUnavailable
from kubelet.status import CONDITIONS, Health, Inputs, container_statuses, pod_ips, pod_status
from kubelet.volumes.errors import VolumeError
from strata.kubeclient import resources
from strata.kubeclient.errors import ApiError
from strata.protocols import cri_pb2 as cri
from strata.telemetry import logs, spans
from strata.telemetry.spans import span

log = logs.get("kubelet.pods")
T = TypeVar("T")

RETRY_SECONDS = 10.0
"""After an error that time may heal (a missing ConfigMap key, a refused create)."""
RUNTIME_RETRY_SECONDS = 0.5
REFRESH_SECONDS = 50.0
"""How often volumes are brought up to date: a changed ConfigMap is seen within a minute."""
SHORTEST_GRACE_SECONDS = 2
LOST_GRACE_SECONDS = 1


class _Interrupted(Exception):
    """The pod is to end: what was being waited for does not matter any more."""


class PodWorker:
    """uid: the pod's; pod: its API object, None for one that only the runtime knows (it is ended at once).

    gone: called once nothing of the pod is left.
    """

    def __init__(self, context: Context, uid: str, pod: dict[str, Any] | None, gone: Callable[[str], None]) -> None:
        self.uid, self.pod = uid, pod
        self._context, self._gone = context, gone
        self._log = log.bind(pod=uid)
        self._wake, self._end = asyncio.Event(), asyncio.Event()
        self._in_api = pod is not None
        self._ending = pod is None
        self._ended = False
        self._deleted = False
        self._failed: tuple[str, str] | None = None
        self._backoff = Backoff()
        self._waiting: dict[str, tuple[str, str]] = {}
        self._health: dict[str, Health] = {}
        self._failing: dict[str, str] = {}
        self._messages: dict[str, str] = {}
        self._probers: dict[str, Prober] = {}
        self._status: dict[str, Any] | None = None
        self._refreshed = 0.0
        self._admitted = False
        self._mounted = False
        # Spans tell how a pod came to run; looks at it later would only fill them.
        self._settled = pod is None
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            self._begin_ending()
        self._task = asyncio.create_task(self._run(), name=f"pod {uid}")

    # --- what others tell it

    def update(self, pod: dict[str, Any]) -> None:
        """The pod's object changed in the API."""
        old, self.pod = self.pod, pod
        self._in_api = True
        if pod["metadata"].get("deletionTimestamp") and not self._ending:
            self._begin_ending()
        elif old is None or _matters(old) != _matters(pod):
            self._refreshed = 0.0
            self.wake()

    def removed(self, pod: dict[str, Any]) -> None:
        """The API forgot the pod."""
        self.pod, self._in_api = pod, False
        self._context.statuses.forget(self.uid)
        self._begin_ending()

    def fail(self, reason: str, message: str) -> None:
        """Ends the pod as Failed, for a reason of the node's."""
        self._failed = (reason, message)
        self._begin_ending()

    def wake(self) -> None:
        """Something happened to the pod's containers."""
        self._wake.set()

    async def close(self) -> None:
        """Ends the worker, not the pod."""
        self._task.cancel()
        for prober in self._probers.values():
            prober.stop()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def ended(self) -> bool:
        """Whether nothing of the pod runs any more."""
        return self._ended

    def _begin_ending(self) -> None:
        self._ending = True
        self._end.set()
        self.wake()

    # --- the loop

    async def _run(self) -> None:
        delay = 0.0
        while True:
            try:
                if delay:
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                if self._settled:
                    delay = await self._step()
                else:
                    with span("sync pod", parent=self._traceparent, pod=self.uid):
                        delay = await self._step()
            except _Interrupted:
                delay = 0.0
            except RuntimeUnavailable as error:
                self._log.warning("the runtime does not answer, again soon", error=error.message)
                delay = RUNTIME_RETRY_SECONDS
            except RuntimeCallError as error:
                self._log.warning("a call to the runtime failed, again soon", call=error.call, error=error.message)
                delay = 1.0
            except ApiError as error:
                self._log.warning("the API server does not answer, again soon", error=error.message)
                delay = 1.0
            except Exception:
                self._log.exception("a pod could not be brought up to date, again soon")
                delay = RETRY_SECONDS
            if delay < 0:
                self._gone(self.uid)
                return

    @property
    def _traceparent(self) -> str | None:
        """The trace that the pod's creation began."""
        annotations = self.pod["metadata"].get("annotations") if self.pod else None
        return (annotations or {}).get(spans.ANNOTATION)

    async def _step(self) -> float:
        """Does what is next; seconds until it is to be looked at again, negative when nothing is left of the pod."""
        if not self._ending:
            return await self._sync()
        if not self._ended:
            await self._stop()
        if self._in_api:
            return await self._delete_from_api()
        await self._clean_up()
        return -1.0

    # --- syncing

    async def _sync(self) -> float:
        assert self.pod is not None
        state = await self._context.runtime.pod_state(self.uid)
        if (self.pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self._begin_ending()
            return 0.001
        if not self._admitted and not state.containers and not self._admit():
            return 0.001
        self._admitted = True
        remaining = self._active_seconds_left()
        if remaining is not None and remaining <= 0:
            self.fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
            return 0.001
        await self._observe(state)
        todo = actions.compute(self.pod, state, self._health, self._failing)
        self._waiting = {c["name"]: self._waiting[c["name"]] for c in todo.start if c["name"] in self._waiting}
        self._post(state)
        delays = [REFRESH_SECONDS] if remaining is None else [REFRESH_SECONDS, remaining]
        if todo.done:
            self._begin_ending()
            return 0.001
        if todo.kill:
            grace = containers.grace_seconds(self.pod)
            await asyncio.gather(*(self._kill(c, self._grace_of(c.name, grace), reason) for c, reason in todo.kill))
            return 0.001
        if todo.start or todo.new_sandbox or time.monotonic() - self._refreshed > REFRESH_SECONDS - 1:
            delay = await self._prepare(state)
            if delay:
                return min([delay, *delays])
        if todo.new_sandbox:
            delay = await self._new_sandbox(state, todo.attempt)
            if delay:
                return min([delay, *delays])
            state = await self._context.runtime.pod_state(self.uid)
            self._post(state)
        for container in todo.start:
            delay = await self._start(state, container)
            if delay:
                delays.append(delay)
        self._settled = not todo.start and all(state.latest(c["name"]) for c in self.pod["spec"].get("containers", []))
        if todo.start:
            state = await self._context.runtime.pod_state(self.uid)
            await self._observe(state)
            self._post(state)
            if any(state.latest(c["name"]) and c["name"] not in self._waiting for c in todo.start):
                await self._collect(state)
            if self._more_to_start(state):
                delays.append(0.001)
        return min(delays)

    def _admit(self) -> bool:
        """Refuses a pod that the node must not run; the scheduler would not have sent it, a person may."""
        assert self.pod is not None
        selector = self.pod["spec"].get("nodeSelector") or {}
        labels = self._context.node_labels()
        wrong = [f"{k}={v}" for k, v in selector.items() if labels.get(k) != v]
        if labels and wrong:
            self.fail("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
            return False
        if reason := self._context.admit(self.pod):
            self._context.tell(self.pod, "Warning", reason[0], reason[1])
            self.fail(*reason)
            return False
        return True

    def _more_to_start(self, state: PodState) -> bool:
        """Whether a next init container, or those after the last sidecar, can start at once."""
        assert self.pod is not None
        following = actions.compute(self.pod, state, self._health, self._failing)
        return any(c["name"] not in self._waiting and state.latest(c["name"]) is None for c in following.start)

    def _active_seconds_left(self) -> float | None:
        assert self.pod is not None
        limit, start = self.pod["spec"].get("activeDeadlineSeconds"), (self.pod.get("status") or {}).get("startTime")
        if limit is None or not start:
            return None
        return float(datetime.fromisoformat(start.replace("Z", "+00:00")).timestamp() + limit - time.time())

    async def _prepare(self, state: PodState) -> float:
        """Cgroup, folder and volumes; seconds to wait where they cannot be made, else 0."""
        assert self.pod is not None
        try:
            if not self._mounted:
                await asyncio.to_thread(self._context.cgroups.create, self.pod)
            facts = self._context.facts(pod_ips(self.pod, state, self._context.node_ip))
            with span("mount volumes"):
                await self._interruptible(self._context.volumes.mount(self.pod, facts))
        except VolumeError as error:
            self._context.tell(self.pod, "Warning", "FailedMount", str(error))
            self._log.warning("a volume could not be made", error=error)
            if not self._mounted:
                return self._later("volumes")
            # It was made before and stays as it was: what uses it may run on, and be restarted.
        except OSError as error:
            self._context.tell(self.pod, "Warning", "FailedCreatePodContainer", f"unable to ensure pod container exists: {error}")
            self._log.warning("the pod's cgroup could not be made", error=error)
            return self._later("volumes")
        self._backoff.forget("volumes")
        self._mounted, self._refreshed = True, time.monotonic()
        return 0.0

    def _later(self, key: str) -> float:
        """A pause that grows from 1 s to 2 min, for what fails again and again."""
        self._backoff.next(key)
        return min(max(self._backoff.pause(key) / 10, 1.0), 120.0)

    async def _new_sandbox(self, state: PodState, attempt: int) -> float:
        assert self.pod is not None
        reason = self._context.network_ready()
        if reason and not self.pod["spec"].get("hostNetwork"):
            self._context.tell(self.pod, "Warning", "NetworkNotReady", f"network is not ready: {reason}")
            return 1.0
        grace = containers.grace_seconds(self.pod)
        for container in state.running:
            await self._kill(container, grace, "Pod sandbox changed, it will be killed and re-created.")
        for old in state.sandboxes:
            await self._context.runtime.stop_sandbox(old.id)
        if state.sandboxes:
            self._context.tell(self.pod, "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
        config = containers.sandbox_config(self._context, self.pod, attempt)
        self._context.log_folder(self.pod).mkdir(parents=True, exist_ok=True)
        try:
            handler = await self._handler()
            with span("run sandbox", pod=self.uid):
                await self._context.runtime.call(
                    "RunPodSandbox",
                    cri.RunPodSandboxRequest(config=config, runtime_handler=handler),
                    seconds=240,
                )
        except RuntimeUnavailable:
            raise
        except RuntimeCallError as error:
            self._context.tell(self.pod, "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error.message}")
            self._log.warning("the sandbox could not be made", error=error.message)
            return self._later("sandbox")
        self._backoff.forget("sandbox")
        return 0.0

    async def _handler(self) -> str:
        """The runtime handler that the pod's RuntimeClass names; empty for the default one. Raises RuntimeCallError."""
        assert self.pod is not None
        name = self.pod["spec"].get("runtimeClassName")
        if not name:
            return ""
        try:
            return str((await self._context.client.get(resources.RUNTIMECLASSES, name))["handler"])
        except ApiError as error:
            raise RuntimeCallError("RunPodSandbox", f'failed to get the RuntimeClass "{name}": {error.message}') from error

    async def _start(self, state: PodState, container: dict[str, Any]) -> float:
        """Starts a container, unless it must still wait; the seconds for that, else 0."""
        assert self.pod is not None
        context, name = self._context, container["name"]
        sandbox, latest = state.ready_sandbox, state.latest(name)
        if sandbox is None:
            return 0.001
        key = f"{self.uid}_{name}"
        if latest is not None:
            failed_at = latest.finished if latest.exited else latest.status.created_at / 1e9
            if left := self._backoff.remaining(key, failed_at):
                self._back_off(name, key)
                return left + 0.01
            if not (waiting := self._waiting.get(name)) or waiting[0] not in ("ErrImagePull", "ImagePullBackOff"):
                self._backoff.next(key)
        wait = context.images.wait_seconds(self.pod, container)
        if wait and self._waiting.get(name, ("",))[0] == "ImagePullBackOff":
            return wait + 0.01
        config = containers.sandbox_config(context, self.pod, sandbox.metadata.attempt)
        ips = pod_ips(self.pod, state, context.node_ip)
        try:
            with span("bring up container", parent=self._traceparent if self._settled else None, container=name):
                container_id = await self._interruptible(
                    containers.start(
                        context,
                        self.pod,
                        container,
                        attempt=_next_attempt(self.pod, latest, name),
                        sandbox_id=sandbox.id,
                        sandbox=config,
                        pod_ips=ips,
                        target_id=target.id if (target := state.latest(container.get("targetContainerName") or "")) else "",
                    )
                )
        except StartError as error:
            self._waiting[name] = (error.reason, error.message)
            self._log.warning("a container was not started", name=name, reason=error.reason, error=error.message)
            if error.reason == "ErrImagePull":
                # Shown as ErrImagePull until the first look after it, which says how long it will wait.
                return 1.0
            return (
                (context.images.wait_seconds(self.pod, container) + 0.01) if error.reason == "ImagePullBackOff" else RETRY_SECONDS
            )
        self._waiting.pop(name, None)
        await self._post_start(container, container_id, ips)
        return 0.0

    def _back_off(self, name: str, key: str) -> None:
        assert self.pod is not None
        meta = self.pod["metadata"]
        who = f"{meta['name']}_{meta['namespace']}({meta['uid']})"
        told = ("CrashLoopBackOff", f"back-off {duration(self._backoff.pause(key))} restarting failed container={name} pod={who}")
        if self._waiting.get(name) != told:
            self._waiting[name] = told
            self._tell_container(name, "Warning", "BackOff", f"Back-off restarting failed container {name} in pod {who}")

    async def _post_start(self, container: dict[str, Any], container_id: str, ips: tuple[str, ...]) -> None:
        assert self.pod is not None
        hook = (container.get("lifecycle") or {}).get("postStart")
        if not hook:
            return
        failure = await self._interruptible(
            run_hook(hook, container, container_id, ips[0] if ips else "", self._context.runtime, 3600)
        )
        if failure:
            name = container["name"]
            self._tell_container(name, "Warning", "FailedPostStartHook", failure)
            self._tell_container(name, "Normal", "Killing", "FailedPostStartHook")
            await self._context.runtime.stop_container(container_id, containers.grace_seconds(self.pod))
            self._waiting[name] = ("PostStartHookError", failure)

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result, unless the pod is to end first: then the work is cancelled and _Interrupted raised."""
        task, end = asyncio.ensure_future(work), asyncio.ensure_future(self._end.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Interrupted
        finally:
            end.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # --- what is seen

    async def _observe(self, state: PodState) -> None:
        """Takes note of what runs and what ended: probes, health and termination messages follow it."""
        assert self.pod is not None
        running = {c.id for c in state.running}
        for container_id in [i for i in self._probers if i not in running]:
            self._probers.pop(container_id).stop()
        for container_id in [i for i in self._health if i not in running]:
            self._health.pop(container_id)
            self._failing.pop(container_id, None)
        specs = {c["name"]: c for c in containers.all_containers(self.pod)}
        ips = pod_ips(self.pod, state, self._context.node_ip)
        for container in state.running:
            if container.id not in self._health and container.name in specs:
                self._watch(specs[container.name], container, ips)
        for container in state.containers:
            if container.exited and container.id not in self._messages:
                self._messages[container.id] = await asyncio.to_thread(self._message, container)
        for container_id in [i for i in self._messages if not any(c.id == i for c in state.containers)]:
            del self._messages[container_id]

    def _watch(self, spec: dict[str, Any], container: ContainerState, ips: tuple[str, ...]) -> None:
        """Begins to keep a running container's health."""
        health = Health(started=not spec.get("startupProbe"))
        health.ready = health.started and not spec.get("readinessProbe")
        known = _api_status(self.pod or {}, container.name)
        if str(known.get("containerID", "")).endswith(container.id):
            # The kubelet was started again: what it knew holds until a probe says otherwise.
            health = Health(health.started or bool(known.get("started")), health.ready or bool(known.get("ready")))
        self._health[container.id] = health
        if any(spec.get(kind) for kind in KINDS):
            container_id, name = container.id, container.name

            def failing(reason: str) -> None:
                self._failing[container_id] = reason
                self.wake()

            self._probers[container_id] = Prober(
                {**spec, "startupProbe": None} if health.started else spec,
                container_id,
                ips[0] if ips else "",
                container.started,
                health,
                self._context.runtime,
                changed=self.wake,
                failing=failing,
                tell=lambda kind, reason, message: self._tell_container(name, kind, reason, message),
            )

    def _message(self, container: ContainerState) -> str:
        path = termination.message_file(self._context.volumes.pod_folder(self.uid), container.name, container.restarts)
        policy = container.status.annotations.get(TERMINATION_POLICY, "File")
        return termination.message(path, policy, container.status.exit_code, container.status.log_path)

    def _post(self, state: PodState, *, ended: bool = False) -> None:
        """Tells the API what is so."""
        if self.pod is None or not self._in_api:
            return
        own = self._status or self.pod.get("status") or {}
        foreign = [c for c in (self.pod.get("status") or {}).get("conditions") or [] if c["type"] not in CONDITIONS]
        conditions = [*(c for c in own.get("conditions") or [] if c["type"] in CONDITIONS), *foreign]
        seen = {**self.pod, "status": {**own, "conditions": conditions}}
        inputs = Inputs(
            host_ip=self._context.node_ip,
            now=time.time(),
            runtime=self._context.runtime.name,
            waiting=self._waiting,
            health=self._health,
            messages=self._messages,
            failed=self._failed,
            ended=ended,
        )
        self._status = pod_status(seen, state, inputs)
        self._context.statuses.set(self.pod, self._status)

    def _tell_container(self, name: str, kind: str, reason: str, message: str) -> None:
        if self.pod is not None:
            self._context.tell(self.pod, kind, reason, message, field_path=containers.field_path(self.pod, name))

    async def _collect(self, state: PodState) -> None:
        """Removes dead containers but the last one of each name (for `logs --previous`), and sandboxes without any."""
        kept: set[str] = set()
        for name in {c.name for c in state.containers}:
            history = state.of(name)
            for container in history[:2]:
                kept.add(container.sandbox_id)
            for container in history[2:]:
                if not container.running:
                    await self._context.runtime.remove_container(container.id)
                    if container.status.log_path:
                        await asyncio.to_thread(_remove_log, container.status.log_path)
        for sandbox in state.sandboxes[1:]:
            if sandbox.id not in kept and sandbox.state != cri.SANDBOX_READY:
                await self._context.runtime.remove_sandbox(sandbox.id)

    # --- ending

    def _grace(self) -> int:
        if self.pod is None or not self._in_api:
            return LOST_GRACE_SECONDS  # deleted by force: nobody waits for it any more
        return containers.grace_seconds(self.pod)

    def _grace_of(self, name: str, grace: int) -> int:
        """A liveness or startup probe may set a grace period of its own."""
        spec = self._spec_of(name)
        for kind in ("livenessProbe", "startupProbe"):
            own = (spec.get(kind) or {}).get("terminationGracePeriodSeconds")
            if own is not None:
                return int(own)
        return grace

    def _spec_of(self, name: str) -> dict[str, Any]:
        for container in containers.all_containers(self.pod) if self.pod else ():
            if container["name"] == name:
                return dict(container)
        return {"name": name}

    async def _kill(self, container: ContainerState, grace: int, reason: str = "") -> None:
        """Stops a container: the preStop hook and the stop signal share the grace period."""
        spec, began = self._spec_of(container.name), time.monotonic()
        self._tell_container(container.name, "Normal", "Killing", reason or f"Stopping container {container.name}")
        hook = (spec.get("lifecycle") or {}).get("preStop")
        if hook and grace > 0 and self.pod is not None:
            state = await self._context.runtime.pod_state(self.uid)
            ips = pod_ips(self.pod, state, self._context.node_ip)
            failure = await run_hook(hook, spec, container.id, ips[0] if ips else "", self._context.runtime, grace)
            if failure:
                self._tell_container(container.name, "Warning", "FailedPreStopHook", failure)
        left = max(grace - int(time.monotonic() - began), SHORTEST_GRACE_SECONDS if grace > 1 else grace)
        self._log.info("stopping container", name=container.name, container=container.id, grace_seconds=left)
        await self._context.runtime.stop_container(container.id, left)

    async def _stop(self) -> None:
        """Stops all that runs, reports it, and frees volumes and cgroup."""
        runtime = self._context.runtime
        state = await runtime.pod_state(self.uid)
        for prober in self._probers.values():
            prober.stop_giving_up()
        was_over = (
            self._in_api and (self.pod or {}).get("status", {}).get("phase") in ("Succeeded", "Failed") and self._status is None
        )
        if self.pod is not None and self._in_api and not was_over:
            await self._observe(state)
            self._post(state)
        while state.running:
            grace = self._grace()
            stopping = asyncio.ensure_future(self._stop_all(state, grace))
            try:
                while not stopping.done():
                    self._wake.clear()
                    woken = asyncio.ensure_future(self._wake.wait())
                    await asyncio.wait({stopping, woken}, return_when=asyncio.FIRST_COMPLETED)
                    woken.cancel()
                    if self._grace() < grace:
                        break  # asked to be quicker
                    if not stopping.done():
                        await self._report(was_over)
                if stopping.done():
                    stopping.result()
            finally:
                if not stopping.done():
                    stopping.cancel()
                    await asyncio.gather(stopping, return_exceptions=True)
            state = await runtime.pod_state(self.uid)
        await asyncio.gather(*(runtime.stop_sandbox(s.id) for s in state.sandboxes))
        state = await runtime.pod_state(self.uid)
        for prober in self._probers.values():
            prober.stop()
        self._probers.clear()
        if self.pod is not None and not was_over:
            await self._observe(state)
            self._post(state, ended=True)
        await self._free()
        self._ended = True
        self._log.info("pod ended", name=(self.pod or {}).get("metadata", {}).get("name"))

    async def _report(self, was_over: bool) -> None:
        if self.pod is None or was_over or not self._in_api:
            return
        state = await self._context.runtime.pod_state(self.uid)
        await self._observe(state)
        self._post(state)

    async def _stop_all(self, state: PodState, grace: int) -> None:
        """Main containers together, then sidecars, the last one first (KEP-753); all within one grace period."""
        began = time.monotonic()
        sidecars = [c["name"] for c in ((self.pod or {}).get("spec") or {}).get("initContainers") or [] if is_sidecar(c)]
        await asyncio.gather(*(self._kill(c, grace) for c in state.running if c.name not in sidecars))
        for name in reversed(sidecars):
            left = max(grace - int(time.monotonic() - began), 0)
            await asyncio.gather(*(self._kill(c, left) for c in state.running if c.name == name))

    async def _free(self) -> None:
        await self._context.volumes.unmount(self.uid)
        await asyncio.to_thread(self._context.cgroups.remove, self.uid)
        self._context.forget_tokens(self.uid)

    async def _delete_from_api(self) -> float:
        """Lets the API forget a pod that was deleted and has ended; one that only ended waits for its deletion."""
        assert self.pod is not None
        meta = self.pod["metadata"]
        if not meta.get("deletionTimestamp") or self._deleted:
            return REFRESH_SECONDS
        await self._context.statuses.synced(self.uid)
        try:
            await self._context.client.delete(
                resources.PODS, meta["name"], meta["namespace"], grace_period_seconds=0, uid=self.uid
            )
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise
            self._in_api = False
            return 0.001
        # With finalizers left, the object stays until somebody removes them.
        self._deleted = True
        return REFRESH_SECONDS

    async def _clean_up(self) -> None:
        """Removes what the runtime and the disk still have of a pod that the API does not know any more."""
        runtime = self._context.runtime
        state = await runtime.pod_state(self.uid)
        for container in state.containers:
            await runtime.remove_container(container.id)
        for sandbox in state.sandboxes:
            await runtime.remove_sandbox(sandbox.id)
        await self._free()
        self._context.images.forget(self.uid)
        self._context.statuses.forget(self.uid)
        await asyncio.to_thread(_remove_logs, self._context, self.uid)


def _matters(pod: dict[str, Any]) -> tuple[Any, ...]:
    """What of an object asks for a look: not what the kubelet itself writes."""
    meta = pod["metadata"]
    gates = {g["conditionType"] for g in pod["spec"].get("readinessGates") or []}
    conditions = [c for c in (pod.get("status") or {}).get("conditions") or [] if c["type"] in gates]
    return (
        pod["spec"], meta.get("labels"), meta.get("annotations"), meta.get("deletionTimestamp"),
        meta.get("deletionGracePeriodSeconds"), conditions,
    )  # fmt: skip


def _api_status(pod: dict[str, Any], name: str) -> dict[str, Any]:
    for known in container_statuses(pod.get("status") or {}):
        if known["name"] == name:
            return dict(known)
    return {}


def _next_attempt(pod: dict[str, Any], latest: ContainerState | None, name: str) -> int:
    """One more than the last try; where the runtime lost it, than what the API knows of."""
    if latest is not None:
        return latest.restarts + 1
    known = _api_status(pod, name)
    ran = known.get("containerID") or (known.get("lastState") or {}).get("terminated")
    return int(known.get("restartCount") or 0) + 1 if ran else 0


def _remove_log(path: str) -> None:
    for file in glob.glob(glob.escape(path) + "*"):
        os.unlink(file)


def _remove_logs(context: Context, uid: str) -> None:
    for folder in context.pod_logs.glob(f"*_{uid}"):
        shutil.rmtree(folder, ignore_errors=True)
