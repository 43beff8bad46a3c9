"""Where a cluster's state is kept: keys with opaque values, one revision over all of them.

`Store` is the whole interface that the API server needs; `sqlite` serves it from one file, with writes of many clients
grouped into one commit. A key is what etcd's would be (`/core/pods/NAMESPACE/NAME`), a value is the JSON of the storage
version. Nothing here knows what a pod is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Item:
    """A key's current value. `revision` is that of its last write, `created` that of its first one."""

    key: str
    value: bytes
    revision: int
    created: int


@dataclass(frozen=True, slots=True)
class Event:
    """One write. `value` is None for a deletion; `previous` is what was there before (None for a new key)."""

    revision: int
    key: str
    value: bytes | None
    previous: bytes | None
    previous_revision: int


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Items in the order of their keys, the revision that they were read at, and how many more there are."""

    items: list[Item]
    revision: int
    remaining: int


class Conflict(Exception):
    """The key is not at the revision that a transaction expected. `current` is what is there (None: nothing)."""

    def __init__(self, key: str, current: Item | None) -> None:
        super().__init__(f"{key} is at revision {current.revision if current else 0}")
        self.current = current


class Compacted(Exception):
    """The events from this revision on are no longer kept. `oldest` is the first one that still is."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"revisions before {oldest} were compacted")
        self.oldest = oldest


class Store(Protocol):
    """One event loop calls all methods."""

    @property
    def revision(self) -> int:
        """The revision of the last write that `subscribe`d callbacks have seen."""

    async def txn(self, key: str, expected_revision: int | None, value: bytes | None, *, ttl_seconds: int = 0) -> int:
        """Writes (or with value None deletes) the key, and returns the write's revision.

        expected_revision: 0 if the key must not exist, None if it does not matter; raises Conflict otherwise, and for
        the deletion of a key that is not there. ttl_seconds: the key is deleted after that time; 0 means never.
        When this returns, the subscribers have seen the event, and the write is on the disk.
        """

    async def range(self, prefix: str, *, limit: int = 0, after: str = "") -> RangeResult:
        """The current items whose keys begin with prefix, and come after the key `after`; all of them for limit 0."""

    async def history(self, from_revision: int) -> list[Event]:
        """The events from that revision on. Raises Compacted."""

    def subscribe(self, callback: Callable[[Sequence[Event]], None]) -> None:
        """Calls back on the event loop with each commit's events, in order, before the writers get their answers."""

    async def compact(self, revision: int) -> None:
        """Forgets the values that were replaced or deleted at or before this revision."""

    async def close(self) -> None: ...
