"""Health checks of a person's containers (`HEALTHCHECK`, `--health-cmd`), as docker has them: run inside, by exec, in intervals.

What they said is in the container's folder too, from where the next daemon takes it while the container runs.
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from highrt.person.events import Events
from highrt.pods.errors import InvalidArgument, PodError
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerState
from strata.telemetry import logs

log = logs.get("highrt.person")

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
_KEPT, _OUTPUT_BYTES = 5, 4096
_SHELL = ("/bin/sh", "-c")
_TIMED_OUT = -1
_NS = 10**9
_LEAST_SECONDS = 0.1
"""Between two checks, whatever an image says: it must not keep the machine busy."""


@dataclass(frozen=True)
class Check:
    """What is run, and when: in nanoseconds, as the image's configuration has it. retries: so many failures are unhealthy."""

    argv: Sequence[str]
    interval_ns: int = 30 * _NS
    timeout_ns: int = 30 * _NS
    start_period_ns: int = 0
    retries: int = 3

    @staticmethod
    def of(configured: Mapping[str, Any]) -> "Check | None":
        """From `Healthcheck` of an image's configuration, which may be anything; None where there is none. Raises
        InvalidArgument."""
        test = configured.get("Test") or []
        if not isinstance(test, list) or not all(isinstance(word, str) for word in test):
            raise InvalidArgument(f"health check {test!r}: not a list of words")
        if not test or test[0] == "NONE":
            return None
        if test[0] not in ("CMD", "CMD-SHELL") or len(test) < 2:
            raise InvalidArgument(f"health check {test}: it must begin with CMD or CMD-SHELL, and name a command")
        argv = [*_SHELL, test[1]] if test[0] == "CMD-SHELL" else test[1:]
        names = {"interval_ns": "Interval", "timeout_ns": "Timeout", "start_period_ns": "StartPeriod", "retries": "Retries"}
        numbers = {name: configured[key] for name, key in names.items() if configured.get(key)}
        if bad := [number for number in numbers.values() if not isinstance(number, int) or number < 0]:
            raise InvalidArgument(f"health check: {bad[0]!r} is no number of nanoseconds, or of tries")
        return Check(argv, **numbers)


@dataclass
class Health:
    """How a container is. failing: checks in a row that have failed. results: the last ones: when each began and ended, in
    nanoseconds, its exit code and its output."""

    status: str = STARTING
    failing: int = 0
    results: deque[tuple[int, int, int, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def save(self, file: Path, started_at_ns: int) -> None:
        """started_at_ns: when the container that it is about was started."""
        kept = {"started": started_at_ns, "status": self.status, "failing": self.failing, "results": [*self.results]}
        fresh = file.with_name(f".{file.name}")
        fresh.write_text(json.dumps(kept))
        fresh.rename(file)

    @staticmethod
    def load(file: Path, started_at_ns: int) -> "Health":
        """What was saved about this run of the container; a new one where that was nothing."""
        try:
            kept = json.loads(file.read_text())
        except (OSError, ValueError):
            return Health()
        if kept["started"] != started_at_ns:
            return Health()
        return Health(kept["status"], kept["failing"], deque(map(tuple, kept["results"]), _KEPT))


class HealthChecks:
    """Looks after containers that run: a task each, which ends with its container."""

    def __init__(self, pods: PodManager, events: Events, file_of: Callable[[Container], Path]) -> None:
        """file_of: where a container's results are kept."""
        self._pods, self._events, self._file_of = pods, events, file_of
        self._health: dict[str, Health] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def of(self, container_id: str) -> Health | None:
        """None where nobody looks."""
        return self._health.get(container_id)

    def begin(self, found: Container, check: Check | None) -> None:
        """From a container's start on."""
        self.end(found.id)
        if check:
            self._health[found.id] = Health.load(self._file_of(found), found.started_at_ns or 0)
            self._tasks[found.id] = asyncio.create_task(self._look_after(found, check))

    def end(self, container_id: str) -> None:
        """Nobody looks any more, and what is known is forgotten."""
        self._health.pop(container_id, None)
        if task := self._tasks.pop(container_id, None):
            task.cancel()

    async def close(self) -> None:
        tasks = [*self._tasks.values()]
        for container_id in [*self._tasks]:
            self.end(container_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_after(self, found: Container, check: Check) -> None:
        while True:
            await asyncio.sleep(max(check.interval_ns / _NS, _LEAST_SECONDS))
            with contextlib.suppress(PodError):  # it is ending, or paused: its end is told elsewhere
                await self.run(found, check)

    async def run(self, found: Container, check: Check) -> str:
        """One check; the status after it. Raises PodError where it cannot be run."""
        began = time.time_ns()
        try:
            output, trouble, code = await self._pods.exec_sync(found.id, check.argv, check.timeout_ns / _NS)
            said = (output + trouble)[-_OUTPUT_BYTES:].decode(errors="replace")
        except TimeoutError:
            code, said = _TIMED_OUT, f"Health check exceeded timeout ({check.timeout_ns / _NS:g}s)"
        except PodError as error:
            if found.state is not ContainerState.RUNNING:
                raise
            code, said = _TIMED_OUT, str(error)
        health = self._health.setdefault(found.id, Health())
        health.results.append((began, time.time_ns(), code, said))
        before = health.status
        if code == 0:
            health.failing, health.status = 0, HEALTHY
        elif before != STARTING or began >= found.started_at_ns + check.start_period_ns:
            health.failing += 1
            if health.failing >= check.retries:
                health.status = UNHEALTHY
        try:
            health.save(self._file_of(found), found.started_at_ns or 0)
        except OSError as error:
            log.warning("the result of a health check cannot be kept", container=found.id, error=str(error))
        if health.status != before:
            self._events.note_container(found, f"health_status: {health.status}")
        return health.status
