"""What the store holds, in memory: the current objects of each resource as the bytes that go out, and the last events.

The store calls `Cache.apply` with each commit before it answers the writers, so that whoever wrote finds its write here.
A value is stored without its resourceVersion, which is known only at the commit: objects are encoded with a placeholder
in a fixed place (`encode`), and the revision is written over it when the bytes come in.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from controlplane.apiserver.resources import Object, Registry, Resource
from controlplane.store import Event as StoreEvent
from strata.kubeclient.selectors import Selector

Objects = list[Object]  # inside a class with a method of that name, `list` is the method
_PLACEHOLDER = b'"resourceVersion":"@"'
HISTORY = 4096
"""Events kept for each resource: a watcher that was away for longer starts with a new list."""

WATCH_BACKLOG = 10_000
"""Events a watcher may be behind; then it is cut off, and starts again."""


def encode(obj: Object) -> bytes:
    """An object's bytes for the store.

    metadata comes first and its resourceVersion first in it, so that the placeholder's first occurrence is the right one
    whatever the object's own fields say.
    """
    metadata = {"resourceVersion": "@", **{k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}
    ordered = {"metadata": metadata, "kind": obj["kind"], "apiVersion": obj["apiVersion"]}
    return orjson.dumps({**ordered, **{k: v for k, v in obj.items() if k not in ordered}})


def with_revision(value: bytes, revision: int) -> bytes:
    """The bytes of the store with their revision."""
    return value.replace(_PLACEHOLDER, b'"resourceVersion":"%d"' % revision, 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it goes out, with what selectors ask for."""

    key: str
    revision: int
    data: bytes
    labels: dict[str, str]
    fields: dict[str, str]

    def decode(self) -> Object:
        """A fresh copy of the object."""
        obj: Object = orjson.loads(self.data)
        return obj

    def matches(self, prefix: str, labels: Selector, fields: Selector) -> bool:
        return self.key.startswith(prefix) and labels.matches(self.labels) and fields.matches(self.fields)


@dataclass(frozen=True, slots=True)
class Change:
    """A write to one object. `new` is None for a deletion; `deleted` is then the last state, at the deletion's revision."""

    revision: int
    old: Entry | None
    new: Entry | None
    deleted: Entry | None = None

    @property
    def key(self) -> str:
        entry = self.new or self.old
        assert entry is not None  # a change is from something or to something
        return entry.key


@dataclass(eq=False)
class Subscription:
    """A watcher's queue. None in it says that the watcher was too slow and is cut off."""

    prefix: str
    queue: "asyncio.Queue[Change | None]" = field(default_factory=asyncio.Queue)
    behind: bool = False


class Expired(Exception):
    """The events from a revision on are no longer here."""


class ResourceCache:
    """The objects of one stored resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._complete_from = 0  # every event from this revision on is in the history
        self._subscriptions: set[Subscription] = set()
        self.version = 0  # counts the changes

    def load(self, items: Iterable[tuple[str, bytes, int]], revision: int) -> None:
        self._entries = {key: self._entry(key, value, at) for key, value, at in items}
        self._keys = sorted(self._entries)
        self._complete_from = revision + 1
        self.version += 1

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def range(self, prefix: str, after: str = "") -> list[Entry]:
        """The entries below a prefix in the order of keys, those after the key `after`."""
        start = bisect_right(self._keys, after) if after else bisect_left(self._keys, prefix)
        end = bisect_left(self._keys, prefix[:-1] + chr(ord(prefix[-1]) + 1))
        return [self._entries[key] for key in self._keys[start:end]]

    def range_at(self, prefix: str, after: str, revision: int) -> list[Entry]:
        """As `range`, but as it was at a revision. Raises Expired where the changes since then are no longer here."""
        if revision + 1 < self._complete_from:
            raise Expired
        then: dict[str, Entry | None] = {}
        for change in reversed(self._history):
            if change.revision <= revision:
                break
            then[change.key] = change.old
        found = [entry for entry in self.range(prefix, after) if entry.key not in then]
        found += [old for key, old in then.items() if old is not None and key.startswith(prefix) and key > after]
        return sorted(found, key=lambda entry: entry.key) if then else found

    def apply(self, event: StoreEvent) -> None:
        old = self._entries.get(event.key)
        if event.value is None:
            if old is None:
                return
            del self._entries[event.key]
            del self._keys[bisect_left(self._keys, event.key)]
            data = with_revision(event.previous or b"{}", event.revision)
            change = Change(event.revision, old, None, self._entry_of(event.key, data, event.revision))
        else:
            new = self._entry(event.key, event.value, event.revision)
            if old is None:
                self._keys.insert(bisect_left(self._keys, event.key), event.key)
            self._entries[event.key] = new
            change = Change(event.revision, old, new)
        if len(self._history) == HISTORY:
            self._complete_from = self._history[0].revision + 1
        self._history.append(change)
        self.version += 1
        for subscription in self._subscriptions:
            if event.key.startswith(subscription.prefix) and not subscription.behind:
                subscription.behind = subscription.queue.qsize() >= WATCH_BACKLOG
                subscription.queue.put_nowait(None if subscription.behind else change)

    def subscribe(self, prefix: str, after_revision: int) -> tuple[list[Change], Subscription]:
        """The changes after a revision that are already here, and a queue with all that follow. Raises Expired."""
        if after_revision + 1 < self._complete_from:
            raise Expired
        subscription = Subscription(prefix)
        self._subscriptions.add(subscription)
        return [c for c in self._history if c.revision > after_revision], subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def __len__(self) -> int:
        return len(self._entries)

    def _entry(self, key: str, value: bytes, revision: int) -> Entry:
        return self._entry_of(key, with_revision(value, revision), revision)

    def _entry_of(self, key: str, data: bytes, revision: int) -> Entry:
        obj: dict[str, Any] = orjson.loads(data)
        metadata = obj["metadata"]
        fields = {"metadata.name": metadata["name"]}
        if self._resource.namespaced:
            fields["metadata.namespace"] = metadata.get("namespace", "")
        for name, getter in self._resource.fields.items():
            fields[name] = getter(obj)
        return Entry(key, revision, data, metadata.get("labels") or {}, fields)


class Cache:
    """The caches of all resources; also the `Reader` of authorizers and admission."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._by_prefix: dict[str, ResourceCache] = {}
        for resource in registry.resources:
            if "get" in resource.verbs:
                self._by_prefix.setdefault(resource.prefix, ResourceCache(resource))
        self.revision = 0
        self.compacted = 0
        """What was before this revision is no longer told, though it may still be here."""

    def of(self, resource: Resource) -> ResourceCache:
        return self._by_prefix[resource.prefix]

    def load(self, items: Iterable[tuple[str, bytes, int]], revision: int) -> None:
        """Takes in all that the store holds at a revision."""
        by_prefix: dict[str, list[tuple[str, bytes, int]]] = {prefix: [] for prefix in self._by_prefix}
        for item in items:
            prefix = _prefix(item[0])
            if prefix in by_prefix:
                by_prefix[prefix].append(item)
        for prefix, found in by_prefix.items():
            self._by_prefix[prefix].load(found, revision)
        self.revision = revision

    def apply(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            self.revision = event.revision
            cache = self._by_prefix.get(_prefix(event.key))
            if cache is not None:
                cache.apply(event)

    def get(self, group: str, resource: str, name: str, namespace: str = "") -> Object | None:
        declared = self._registry.preferred(group, resource)
        entry = self.of(declared).get(declared.key(namespace, name)) if declared else None
        return entry.decode() if entry else None

    def list(self, group: str, resource: str, namespace: str = "") -> list[Object]:
        declared = self._registry.preferred(group, resource)
        if declared is None:
            return []
        prefix = f"{declared.prefix}{namespace}/" if namespace else declared.prefix
        return [entry.decode() for entry in self.of(declared).range(prefix)]

    def select(self, group: str, resource: str, namespace: str, field: str, value: str) -> Objects:
        """The objects of a namespace (of all, when it is empty) that have a value in one of their selectable fields."""
        declared = self._registry.preferred(group, resource)
        if declared is None:
            return []
        prefix = f"{declared.prefix}{namespace}/" if namespace else declared.prefix
        return [entry.decode() for entry in self.of(declared).range(prefix) if entry.fields.get(field) == value]

    def version(self, group: str, resource: str) -> int:
        """A number that grows with every change to the objects of a resource."""
        declared = self._registry.preferred(group, resource)
        return self.of(declared).version if declared else 0


def _prefix(key: str) -> str:
    _, group, plural, _ = key.split("/", 3)
    return f"/{group}/{plural}/"
