"""The back-off of restarts and image pulls: per key, doubling, forgotten after twice the longest pause without a failure."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Entry:
    seconds: float
    updated: float


class Backoff:
    """initial_seconds, longest_seconds: Kubernetes has 10 and 300 for restarts and for pulls.

    now: the clock, in seconds since the epoch.
    """

    def __init__(self, initial_seconds: float = 10, longest_seconds: float = 300, now: Callable[[], float] = time.time) -> None:
        self._initial, self._longest, self._now = initial_seconds, longest_seconds, now
        self._entries: dict[str, _Entry] = {}

    def remaining(self, key: str, since: float) -> float:
        """Seconds for which the key must still wait, counted from the failure at `since`; 0 when it may go on."""
        entry = self._entries.get(key)
        if entry is None or self._expired(entry):
            return 0
        return max(entry.seconds - (self._now() - since), 0)

    def pause(self, key: str) -> float:
        """The key's present pause, in seconds."""
        entry = self._entries.get(key)
        return entry.seconds if entry else 0

    def next(self, key: str) -> None:
        """Notes one more try: the next pause is the first one, or twice the last."""
        entry = self._entries.get(key)
        if entry is None or self._expired(entry):
            self._entries[key] = _Entry(self._initial, self._now())
        else:
            self._entries[key] = _Entry(min(entry.seconds * 2, self._longest), self._now())

    def forget(self, prefix: str) -> None:
        """Drops every key that starts with the prefix."""
        for key in [k for k in self._entries if k.startswith(prefix)]:
            del self._entries[key]

    def _expired(self, entry: _Entry) -> bool:
        return self._now() - entry.updated > 2 * self._longest


def duration(seconds: float) -> str:
    """A duration as Go prints it (`10s`, `2m40s`, `5m0s`), for messages that people search for."""
    whole = int(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
