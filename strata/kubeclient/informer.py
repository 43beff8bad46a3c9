"""A collection kept in memory: listed once, then followed by watch, with indexes and handlers.

The objects are shared by all who read them, so they are read-only: `copy` what is to be changed. Handlers are plain
functions that run on the event loop between two changes; they should only note what is to be done (add a key to a work
queue). They see every object's last state at its deletion.

Lists come in pages, and where the watch's version has become too old (410 Gone) the list is read anew and compared: handlers
hear of what has changed in between and of nothing else.
"""

import asyncio
import copy as copying
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from strata.kubeclient.backoff import Backoff
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.resources import Resource
from strata.kubeclient.selectors import Selector
from strata.telemetry import logs

Object = dict[str, Any]
Key = tuple[str, str]
Index = Callable[[Object], Iterable[str]]
_PAGE = 500
_log = logs.get("kubeclient.informer")


def key_of(obj: Object) -> Key:
    """(namespace, name); the namespace is "" for what has none."""
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def copy(obj: Object) -> Object:
    """A deep copy of a read-only object, to be changed."""
    return copying.deepcopy(obj)


class Informer:
    """The objects of one resource (in one namespace, or of one selection), as last seen.

    metadata_only: nothing of them but their metadata. A task runs `run`; `wait_synced` returns when the first list is in, and
    its handlers have been called.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        *,
        metadata_only: bool = False,
    ) -> None:
        self.resource = resource
        self._client, self._namespace = client, namespace
        self._labels, self._fields, self._metadata_only = label_selector, field_selector, metadata_only
        self._objects: dict[Key, Object] = {}
        self._indexes: dict[str, tuple[Index, dict[str, set[Key]]]] = {}
        self._handlers: list[tuple[Callable[[Object], Any] | None, Callable[[Object, Object], Any] | None,
                                   Callable[[Object], Any] | None]] = []  # fmt: skip
        self._synced = asyncio.Event()
        self._version = ""

    # --- setting up

    def add_handler(
        self,
        on_add: Callable[[Object], Any] | None = None,
        on_update: Callable[[Object, Object], Any] | None = None,
        on_delete: Callable[[Object], Any] | None = None,
    ) -> None:
        """Functions to call with what is added, (old, new) of what changes, and the last state of what is deleted.

        A handler that comes late hears of all that is there already as added.
        """
        self._handlers.append((on_add, on_update, on_delete))
        if on_add:
            for obj in list(self._objects.values()):
                self._call(on_add, obj)

    def add_index(self, name: str, function: Index) -> None:
        """Lets `by_index(name, value)` find the objects for which function gives value. Raises ValueError for a name twice."""
        if name in self._indexes:
            raise ValueError(f"{self.resource.plural}: index {name!r} is there already")
        table: dict[str, set[Key]] = defaultdict(set)
        self._indexes[name] = (function, table)
        for key, obj in self._objects.items():
            for value in function(obj):
                table[value].add(key)

    def has_index(self, name: str) -> bool:
        return name in self._indexes

    # --- reading

    @property
    def synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self._objects.get((namespace or "", name))

    def list(self, namespace: str | None = None, selector: Selector | None = None) -> list[Object]:
        """The objects, of one namespace or of all, whose labels match."""
        return [
            obj
            for (where, _), obj in self._objects.items()
            if (namespace is None or where == namespace) and (selector is None or selector.matches(obj["metadata"].get("labels")))
        ]

    def by_index(self, name: str, value: str) -> Sequence[Object]:
        return [self._objects[key] for key in sorted(self._indexes[name][1].get(value, ()))]

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    # --- following

    async def run(self) -> None:
        """Lists and watches until it is cancelled; whatever fails is tried again with a back-off."""
        # A server that is away may be back at any moment; one that refuses has its reasons.
        backoff, patience = Backoff(0.1, 1.0), Backoff(0.2, 10.0)
        while True:
            try:
                if not self._version:
                    await self._relist()
                await self._follow(backoff)
                backoff.reset()
                patience.reset()
            except Unreachable as error:
                _log.debug("API server not reachable", resource=self.resource.plural, error=error)
                await backoff.sleep()
            except ApiError as error:
                if error.is_gone:
                    self._version = ""
                    await backoff.sleep()
                    continue
                _log.warning("list or watch refused", resource=self.resource.plural, error=error)
                # 504 is "too large resource version": a server whose state was set back.
                if error.code in (400, 504):
                    self._version = ""
                await patience.sleep()

    async def _relist(self) -> None:
        token, seen = "", set()
        listed: list[Object] = []
        while True:
            page = await self._client.list(
                self.resource,
                self._namespace,
                label_selector=self._labels,
                field_selector=self._fields,
                limit=_PAGE,
                continue_token=token,
                metadata_only=self._metadata_only,
            )
            listed += page["items"]
            metadata = page.get("metadata") or {}
            if not (token := metadata.get("continue") or ""):
                break
        for obj in listed:
            seen.add(key_of(obj))
            self._store(obj)
        for key in [key for key in self._objects if key not in seen]:
            self._remove(self._objects[key])
        self._version = metadata.get("resourceVersion") or "0"
        self._synced.set()

    async def _follow(self, backoff: Backoff) -> None:
        watching = self._client.watch(
            self.resource,
            self._namespace,
            label_selector=self._labels,
            field_selector=self._fields,
            resource_version=self._version,
            metadata_only=self._metadata_only,
        )
        async with aclosing(watching) as events:
            async for event in events:
                backoff.reset()
                self._version = event.object["metadata"]["resourceVersion"]
                if event.type == "DELETED":
                    self._remove(self.resource.typed(event.object))
                elif event.type != "BOOKMARK":
                    self._store(self.resource.typed(event.object))

    def _store(self, obj: Object) -> None:
        metadata = obj["metadata"]
        metadata.pop("managedFields", None)
        key = key_of(obj)
        old = self._objects.get(key)
        if old is not None:
            before = old["metadata"]
            if before["resourceVersion"] == metadata["resourceVersion"]:
                return
            if before.get("uid") != metadata.get("uid"):
                self._remove(old)  # deleted and made anew while nobody watched
                old = None
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = obj
        for function, table in self._indexes.values():
            for value in function(obj):
                table[value].add(key)
        for on_add, on_update, _ in self._handlers:
            if old is None:
                self._call(on_add, obj)
            else:
                self._call(on_update, old, obj)

    def _remove(self, obj: Object) -> None:
        key = key_of(obj)
        old = self._objects.pop(key, None)
        if old is None:
            return
        self._unindex(key, old)
        for _, _, on_delete in self._handlers:
            self._call(on_delete, obj)

    def _unindex(self, key: Key, obj: Object) -> None:
        for function, table in self._indexes.values():
            for value in function(obj):
                table[value].discard(key)
                if not table[value]:
                    del table[value]

    def _call(self, handler: Callable[..., Any] | None, *arguments: Object) -> None:
        if handler is None:
            return
        try:
            handler(*arguments)
        except Exception:
            # One handler's fault must not end the informer that all the others live from.
            _log.exception("a handler failed", resource=self.resource.plural, object="/".join(key_of(arguments[-1])))


class Informers:
    """One informer a selection for all who ask (`of`), each followed by a task of its own.

    `start` makes the tasks and waits for the first lists; `stop` ends them.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._informers: dict[tuple[Resource, str | None, str], Informer] = {}
        self._tasks: dict[Informer, asyncio.Task[None]] = {}
        self._started = False

    def of(self, resource: Resource, namespace: str | None = None, field_selector: str = "") -> Informer:
        key = (resource, namespace, field_selector)
        informer = self._informers.get(key)
        if informer is None:
            informer = self._informers[key] = Informer(self.client, resource, namespace, field_selector=field_selector)
            if self._started:
                self._run(informer)
        return informer

    def known(self, resource: Resource) -> Informer | None:
        """The informer of all of a resource, if somebody has asked for it."""
        return self._informers.get((resource, None, ""))

    async def start(self) -> None:
        self._started = True
        for informer in self._informers.values():
            if informer not in self._tasks:
                self._run(informer)
        await asyncio.gather(*(informer.wait_synced() for informer in self._informers.values()))

    async def stop(self) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, informer: Informer) -> None:
        self._tasks[informer] = asyncio.create_task(informer.run(), name=f"informer {informer.resource.plural}")
