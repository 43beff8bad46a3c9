"""Probes of running containers: startup first, then liveness and readiness, each on a timer of its own.

A prober belongs to one container of one pod worker. It writes what it finds into the worker's `Health`, and wakes the
worker when that changes. https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

from kubelet.checks import Result, check
from kubelet.runtime import Runtime
from kubelet.status import Health
from strata.telemetry import logs

log = logs.get("kubelet.probes")

KINDS = ("startupProbe", "livenessProbe", "readinessProbe")
_TITLE = {"startupProbe": "Startup", "livenessProbe": "Liveness", "readinessProbe": "Readiness"}


class Prober:
    """The probes of one container.

    changed: called after health changed. failing: called with the reason when a liveness or startup probe gives the
    container up. tell: emits an event (type, reason, message).
    """

    def __init__(
        self,
        container: dict[str, Any],
        container_id: str,
        pod_ip: str,
        started_at: float,
        health: Health,
        runtime: Runtime,
        *,
        changed: Callable[[], None],
        failing: Callable[[str], None],
        tell: Callable[[str, str, str], None],
    ) -> None:
        self._container, self._id, self._pod_ip, self._started_at = container, container_id, pod_ip, started_at
        self._health, self._runtime = health, runtime
        self._changed, self._failing, self._tell = changed, failing, tell
        self._started = asyncio.Event()
        if health.started:
            self._started.set()
        self._tasks = {
            # A context of their own: what they do belongs to no trace of the pod's start.
            kind: asyncio.create_task(self._run(kind, container[kind]), context=Context())
            for kind in KINDS
            if container.get(kind)
        }

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def stop_giving_up(self) -> None:
        """Leaves only the readiness probe: a container that is being stopped is not restarted."""
        for kind in ("startupProbe", "livenessProbe"):
            if kind in self._tasks:
                self._tasks[kind].cancel()

    async def _run(self, kind: str, probe: dict[str, Any]) -> None:
        period, timeout = float(probe.get("periodSeconds") or 10), float(probe.get("timeoutSeconds") or 1)
        wanted = {True: int(probe.get("successThreshold") or 1), False: int(probe.get("failureThreshold") or 3)}
        if kind != "startupProbe":
            await self._started.wait()
        delay = float(probe.get("initialDelaySeconds") or 0) - (time.time() - self._started_at)
        if delay > 0:
            await asyncio.sleep(delay)
        elif time.time() - self._started_at > 5:
            # After the kubelet's own restart the probes of all pods would otherwise come at the same moment.
            await asyncio.sleep(random.random() * min(period, 2.0))
        last, count = None, 0
        while True:
            at = time.monotonic()
            result = await check(probe, self._container, self._id, self._pod_ip, self._runtime, timeout)
            self._tell_failure(kind, result)
            if result.ok is not None:
                count = count + 1 if result.ok == last else 1
                last = result.ok
                if count >= wanted[result.ok] and self._settle(kind, result.ok):
                    return
            await asyncio.sleep(max(period - (time.monotonic() - at), 0.01))

    def _settle(self, kind: str, ok: bool) -> bool:
        """Takes a result that its threshold confirmed; True when the probe has nothing more to do."""
        if kind == "readinessProbe":
            if self._health.ready != ok:
                self._health.ready = ok
                self._changed()
            return False
        if kind == "startupProbe" and ok:
            self._health.started = True
            self._started.set()
            if not self._container.get("readinessProbe"):
                self._health.ready = True
            self._changed()
            return True
        if not ok:
            self._failing(f"Container {self._container['name']} failed {_TITLE[kind].lower()} probe, will be restarted")
            return True
        return False

    def _tell_failure(self, kind: str, result: Result) -> None:
        if result.ok is False:
            self._tell("Warning", "Unhealthy", f"{_TITLE[kind]} probe failed: {result.text}")
        elif result.ok is None:
            self._tell("Warning", "Unhealthy", f"{_TITLE[kind]} probe errored: {result.text}")
