"""The pods and containers that there are, where their things lie, and who is told of changes."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from highrt.images.locks import KeyedLocks
from highrt.monitor import record
from highrt.pods import pidspace
from highrt.pods.errors import FailedPrecondition, InvalidArgument, NotFound, TooSlow
from highrt.pods.metadata import Metadata
from highrt.pods.model import (
    Container,
    ContainerEvent,
    ContainerState,
    EventKind,
    Pod,
)
from highrt.pods.sandbox import Sandbox
from strata.linux import cgroups
from strata.protocols.cri_pb2 import (
    NamespaceMode,
)
from strata.telemetry import logs

log = logs.get("highrt.pods")


_EVENTS_WAITING = 10_000


class Registry:
    """What all parts of the manager share. The metadata are set once they are open."""

    metadata: Metadata

    def __init__(self, state: Path, name: str) -> None:
        """name: of the stack, for cgroups."""
        self.state, self.cgroup_root, self.boot = state, f"/strata/{name}", record.boot_id()
        self.pods: dict[str, Pod] = {}
        self.containers: dict[str, Container] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._names = KeyedLocks()
        self.making: set[str] = set()
        """IDs of pods that are being made, or undone after that failed: they are not among the pods yet."""
        self._subscribers: set[asyncio.Queue[ContainerEvent]] = set()

    def pod(self, pod_id: str) -> Pod:
        """By ID, or by a beginning of one that is clear. Raises NotFound, InvalidArgument."""
        return self.pods[_find(pod_id, self.pods, "pod")]

    def container(self, container_id: str) -> Container:
        """By ID, or by a beginning of one that is clear. Raises NotFound, InvalidArgument."""
        return self.containers[_find(container_id, self.containers, "container")]

    def members(self, pod: Pod) -> list[Container]:
        """The containers of a pod."""
        return [container for container in self.containers.values() if container.pod_id == pod.id]

    def sandbox(self, pod_id: str) -> Sandbox:
        return Sandbox(self.state, pod_id)

    def lock(self, key: str) -> asyncio.Lock:
        """One life-cycle call at a time for a pod or container."""
        return self._locks.setdefault(key, asyncio.Lock())

    def forget_lock(self, key: str) -> None:
        self._locks.pop(key, None)

    def name(self, name: str) -> contextlib.AbstractAsyncContextManager[None]:
        """One at a time makes something of a name; who comes meanwhile waits."""
        return self._names.hold(name)

    def publish(self, kind: EventKind, container_id: str, pod: Pod) -> None:
        event = ContainerEvent(kind, container_id, pod, time.time_ns())
        for queue in [*self._subscribers]:
            if queue.qsize() < _EVENTS_WAITING:
                queue.put_nowait(event)
            else:
                self._subscribers.discard(queue)

    async def events(self) -> AsyncIterator[ContainerEvent]:
        """What happens from the first iteration on. Raises TooSlow where a reader is so late that events would be lost."""
        queue: asyncio.Queue[ContainerEvent] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while queue in self._subscribers or not queue.empty():
                yield await queue.get()
        finally:
            self._subscribers.discard(queue)
        raise TooSlow(f"more than {_EVENTS_WAITING} events were not read: ask for all that there is, and for events again")

    def cgroup_parent(self, pod: Pod) -> str:
        """What containers' groups are made in: a folder, or a slice of systemd's (see `groups`)."""
        return (pod.config.linux.cgroup_parent or f"{self.cgroup_root}/pods/{pod.id}").rstrip("/")

    def remove_cgroup(self, pod: Pod) -> None:
        """The pod's group, where it is this daemon's; a kubelet removes those that it made."""
        if not pod.config.linux.cgroup_parent:
            with contextlib.suppress(OSError):
                cgroups.open_cgroup(self.cgroup_parent(pod)).remove()

    def pid_path(self, pod: Pod, container: Container) -> str | None:
        """The PID namespace: "" for one of its own, None for the host's, or the path of another container's."""
        options = container.config.linux.security_context.namespace_options
        if options.pid == NamespaceMode.NODE:
            return None
        if options.pid == NamespaceMode.TARGET:
            target = self.container(options.target_id)
            if target.pod_id != pod.id or target.state != ContainerState.RUNNING:
                raise FailedPrecondition(f"the target container {target.id} does not run in pod {pod.id}")
            return f"/proc/{target.pid}/ns/pid"
        if options.pid == NamespaceMode.POD and pidspace.shared(pod.config):
            return self.sandbox(pod.id).namespace("pid")
        return ""

    def folder(self, container: Container) -> Path:
        return self.sandbox(container.pod_id).container(container.id)


def new_id() -> str:
    """An ID for a pod or container."""
    return os.urandom(32).hex()


def _find(prefix: str, known: Mapping[str, object], what: str) -> str:
    if prefix in known:
        return prefix
    found = [key for key in known if key.startswith(prefix)] if prefix else []
    if len(found) > 1:
        raise InvalidArgument(f"{what} {prefix!r} is ambiguous: {len(found)} begin with it")
    if not found:
        raise NotFound(f"there is no {what} {prefix!r}")
    return found[0]
