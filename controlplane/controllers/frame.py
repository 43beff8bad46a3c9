"""What all controllers share: a queue of keys, workers that bring one object after the other to what it should be, and a
back-off for what failed.

A controller's handlers only add keys to its queue; `sync` reads the present state from the informers and makes the difference
go away. It may be called at any time, any number of times, for objects that are gone too.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.events import EventRecorder
from strata.kubeclient.informer import Informer, Informers, key_of
from strata.kubeclient.resources import Resource
from strata.kubeclient.workqueue import Closed, WorkQueue
from strata.telemetry import logs

Object = dict[str, Any]
Key = tuple[str, str]
K = TypeVar("K", bound=Hashable)
_UNREACHABLE_SECONDS = 0.5


@dataclass(frozen=True)
class Settings:
    """What the operator of the cluster says. Paths of keys and certificates are read anew for each use.

    node_grace_seconds: how long a node may be silent before its state is unknown.
    """

    root_ca: Path | None = None
    signing_certificate: Path | None = None
    signing_key: Path | None = None
    pod_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    node_mask: int = 24
    node_grace_seconds: float = 40.0
    orphan_quarantine_seconds: float = 40.0


@dataclass
class Context:
    """What a controller works with."""

    client: Client
    informers: Informers
    settings: Settings = field(default_factory=Settings)
    recorders: dict[str, EventRecorder] = field(default_factory=dict)

    def recorder(self, component: str) -> EventRecorder:
        return self.recorders.setdefault(component, EventRecorder(self.client, component))

    async def close(self) -> None:
        await self.informers.stop()
        for recorder in self.recorders.values():
            await recorder.close()


class Controller(Generic[K]):
    """A controller with keys of type K. Subclasses name themselves, add handlers in `__init__`, and have `sync`."""

    name: ClassVar[str]
    workers: ClassVar[int] = 2

    def __init__(self, context: Context) -> None:
        self.context, self.client, self.settings = context, context.client, context.settings
        self.queue: WorkQueue[K] = WorkQueue()
        self.log = logs.get(f"controllers.{self.name}")

    async def sync(self, key: K) -> None:
        """Brings what the key names to what it should be. What it raises is tried again with a back-off."""
        raise NotImplementedError

    def informer(self, resource: Resource) -> Informer:
        return self.context.informers.of(resource)

    def enqueue(self, resource: Resource, *, deletions: bool = True) -> Informer:
        """Adds (namespace, name) of each object of a resource that changes to the queue; for controllers with such keys."""
        informer = self.informer(resource)
        self.on_change(informer, lambda obj: self.queue.add(key_of(obj)), deletions=deletions)  # type: ignore[arg-type]
        return informer

    @staticmethod
    def on_change(informer: Informer, handler: Callable[[Object], Any], *, deletions: bool = True) -> None:
        """Calls handler with each object that is added, changed or (its last state) deleted."""
        informer.add_handler(handler, lambda _, new: handler(new), handler if deletions else None)

    async def run(self) -> None:
        """Works until it is cancelled. The informers are in sync when this is called."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.workers):
                    group.create_task(self._work())
        finally:
            self.queue.close()

    async def _work(self) -> None:
        while True:
            try:
                key = await self.queue.get()
            except Closed:
                return
            try:
                await self.sync(key)
            except Unreachable as error:
                # Not the key's fault: it must not wait for long when the server is back.
                self.log.debug("API server not reachable", key=_readable(key), error=error)
                self.queue.add_after(key, _UNREACHABLE_SECONDS)
            except ApiError as error:
                if not error.is_conflict:  # a conflict only says that our copy is behind
                    self.log.warning("sync refused", key=_readable(key), error=error)
                self.queue.add_rate_limited(key)
            except Exception:
                self.log.exception("sync failed", key=_readable(key))
                self.queue.add_rate_limited(key)
            else:
                self.queue.forget(key)
            finally:
                self.queue.done(key)


def _readable(key: Hashable) -> str:
    return "/".join(str(part) for part in key if part) if isinstance(key, tuple) else str(key)
