"""What a controller has asked for and not yet seen in its informer.

A controller that has created three pods must not look at its informer and create them again because the first has not come
back yet. It notes what it expects before it asks; what comes back, or fails, is taken off; until nothing is left, the state
in the informer is not to be acted on. What never comes back is forgotten after five minutes.
"""

import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

_FORGOTTEN_SECONDS = 300.0


@dataclass
class _Expected:
    creations: int = 0
    deletions: set[str] = field(default_factory=set)
    since: float = field(default_factory=time.monotonic)


class Expectations:
    def __init__(self) -> None:
        self._by_key: dict[Hashable, _Expected] = {}

    def expect(self, key: Hashable, *, creations: int = 0, deletions: Iterable[str] = ()) -> None:
        """deletions: the UIDs that are about to be deleted."""
        self._by_key[key] = _Expected(creations, set(deletions))

    def created(self, key: Hashable) -> None:
        """One creation was seen, or has failed."""
        if expected := self._by_key.get(key):
            expected.creations -= 1

    def deleted(self, key: Hashable, uid: str) -> None:
        """A deletion (or its beginning) was seen, or has failed."""
        if expected := self._by_key.get(key):
            expected.deletions.discard(uid)

    def forget(self, key: Hashable) -> None:
        self._by_key.pop(key, None)

    def satisfied(self, key: Hashable) -> bool:
        expected = self._by_key.get(key)
        if expected is None or (expected.creations <= 0 and not expected.deletions):
            return True
        return time.monotonic() - expected.since > _FORGOTTEN_SECONDS
