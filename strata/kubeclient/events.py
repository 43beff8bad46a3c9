"""Events: what a component tells people about an object (core/v1 Event).

`event` only queues; a task of the recorder writes. The same event again raises the count of the first one; many events of
one kind about one object that differ only in their text are combined; an object about which there is ever more to tell is cut
off. The limits are Kubernetes' own (client-go's event correlator): 10 similar events in 10 minutes before combining, and 25 at
once per object, with one more every 5 minutes.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from strata.kubeclient.backoff import Backoff
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.resources import EVENTS
from strata.telemetry import logs

_REMEMBERED = 4096
_SIMILAR_LIMIT, _SIMILAR_SECONDS = 10, 600.0
_BURST, _REFILL_SECONDS = 25, 300.0
_QUEUE_LIMIT = 1000
_MESSAGE_LIMIT = 1024
_ATTEMPTS = 12
_log = logs.get("kubeclient.events")
V = TypeVar("V")


def reference(obj: Mapping[str, Any], field_path: str = "") -> dict[str, Any]:
    """The ObjectReference to an object (or to what is one already)."""
    if "metadata" not in obj:
        return {**obj, **({"fieldPath": field_path} if field_path else {})}
    metadata = obj["metadata"]
    found = {
        "kind": obj.get("kind"),
        "apiVersion": obj.get("apiVersion"),
        "namespace": metadata.get("namespace"),
        "name": metadata.get("name"),
        "uid": metadata.get("uid"),
        "resourceVersion": metadata.get("resourceVersion"),
        "fieldPath": field_path,
    }
    return {name: value for name, value in found.items() if value}


@dataclass
class _Written:
    """An event that is in the API, to be counted up."""

    namespace: str
    name: str
    count: int


@dataclass
class _Similar:
    since: float
    messages: set[str] = field(default_factory=set)


class _Recent(Generic[V]):
    """The values of the keys that were used last."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > _REMEMBERED:
            self._values.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        self._values.pop(key, None)


class EventRecorder:
    """component: who tells (`kubelet`, `default-scheduler`). host: the node it tells from, where it is one's."""

    def __init__(self, client: Client, component: str, *, host: str = "") -> None:
        self._client, self._component, self._host = client, component, host
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_QUEUE_LIMIT)
        self._task: asyncio.Task[None] | None = None
        self._written: _Recent[_Written] = _Recent()
        self._similar: _Recent[_Similar] = _Recent()
        self._buckets: _Recent[tuple[float, float]] = _Recent()

    def event(
        self, obj: Mapping[str, Any], type: str, reason: str, message: str, *, action: str = "", field_path: str = ""
    ) -> None:
        """Tells something about an object. Never waits and never fails; where too much is told it is dropped.

        obj: the object, or an ObjectReference. type: Normal or Warning. reason: a CamelCase word.
        field_path: the part of the object it is about (`spec.containers{web}`).
        """
        about = reference(obj, field_path)
        if not self._allowed(about):
            return
        if len(message) > _MESSAGE_LIMIT:
            message = message[: _MESSAGE_LIMIT - 3] + "..."
        told = {"about": about, "type": type, "reason": reason, "message": message, "action": action, "time": datetime.now(UTC)}
        try:
            self._queue.put_nowait(told)
        except asyncio.QueueFull:
            _log.warning("event dropped, too many wait", reason=reason, object=about.get("name"))
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"events of {self._component}")

    async def flush(self) -> None:
        """Waits until all that was told is written."""
        await self._queue.join()

    async def close(self, *, seconds: float = 2.0) -> None:
        """Writes what is left, for at most some seconds, and ends."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.flush()
        except TimeoutError:
            _log.warning("events not written at the end", count=self._queue.qsize())
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            told = await self._queue.get()
            try:
                await self._write(told)
            except ApiError as error:
                # Of a namespace that goes nothing can be told any more.
                if not error.is_forbidden and not error.is_not_found:
                    _log.warning("event not written", reason=told["reason"], object=told["about"].get("name"), error=error)
            finally:
                self._queue.task_done()

    async def _write(self, told: dict[str, Any]) -> None:
        about, message = told["about"], told["message"]
        group = (_identity(about), told["type"], told["reason"])
        combined = self._combine(group, message)
        key = group if combined else (*group, message)
        backoff = Backoff(0.2, 10.0)
        for _ in range(_ATTEMPTS):
            try:
                known = self._written.get(key)
                if known and await self._count_up(known, told):
                    return
                text = f"(combined from similar events): {message}" if combined else message
                obj = await self._client.create(EVENTS, self._new(told, text))
                self._written.put(key, _Written(obj["metadata"]["namespace"], obj["metadata"]["name"], 1))
                return
            except Unreachable:
                await backoff.sleep()

    async def _count_up(self, known: _Written, told: dict[str, Any]) -> bool:
        """Raises the count of an event; False where it is gone (events live an hour)."""
        patch = {"count": known.count + 1, "lastTimestamp": _seconds(told["time"])}
        try:
            await self._client.patch(EVENTS, known.name, patch, known.namespace, kind="merge")
        except ApiError as error:
            if error.is_not_found:
                return False
            raise
        known.count += 1
        return True

    def _new(self, told: dict[str, Any], message: str) -> dict[str, Any]:
        about = told["about"]
        source = {"component": self._component, **({"host": self._host} if self._host else {})}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{about.get('name', '')[:230]}.{time.time_ns():x}{os.urandom(1).hex()}",
                "namespace": about.get("namespace") or "default",
            },
            "involvedObject": about,
            "type": told["type"],
            "reason": told["reason"],
            "message": message,
            "source": source,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
            "firstTimestamp": _seconds(told["time"]),
            "lastTimestamp": _seconds(told["time"]),
            "count": 1,
            **({"action": told["action"]} if told["action"] else {}),
        }

    def _combine(self, group: Hashable, message: str) -> bool:
        now = time.monotonic()
        similar = self._similar.get(group)
        if similar is None or now - similar.since > _SIMILAR_SECONDS:
            similar = _Similar(now)
            self._similar.put(group, similar)
        similar.messages.add(message)
        return len(similar.messages) > _SIMILAR_LIMIT

    def _allowed(self, about: Mapping[str, Any]) -> bool:
        """A bucket of _BURST events for each object, with one more every _REFILL_SECONDS."""
        now, key = time.monotonic(), _identity(about)
        left, since = self._buckets.get(key) or (float(_BURST), now)
        left = min(_BURST, left + (now - since) / _REFILL_SECONDS)
        self._buckets.put(key, (left - 1 if left >= 1 else left, now))
        return left >= 1


def _identity(about: Mapping[str, Any]) -> Hashable:
    return tuple(about.get(name) for name in ("kind", "namespace", "name", "uid", "fieldPath"))


def _seconds(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
