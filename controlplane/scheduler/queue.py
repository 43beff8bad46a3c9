"""The pods that wait for a node: those whose turn may come, by priority, and those that fitted nowhere.

A pod that fitted nowhere is tried again when something changes, but not more often than its back-off (1 s, doubled up to
10 s) allows, and in any case after some minutes, should a change have been missed.
"""

import asyncio
import heapq
import itertools
from dataclasses import dataclass

from strata.kubeclient.workqueue import Closed

Key = tuple[str, str]
_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 10.0
_FORGOTTEN_SECONDS = 300.0


@dataclass
class _Waiting:
    priority: int
    not_before: float
    timer: asyncio.TimerHandle


class SchedulingQueue:
    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Key]] = []
        self._active: set[Key] = set()
        self._waiting: dict[Key, _Waiting] = {}
        self._attempts: dict[Key, int] = {}
        self._order = itertools.count()
        self._changed = asyncio.Event()
        self._closed = False
        self._moves = 0

    def add(self, key: Key, priority: int = 0) -> None:
        """The pod may have its turn now."""
        self._leave_waiting(key)
        if key not in self._active:
            self._active.add(key)
            heapq.heappush(self._heap, (-priority, next(self._order), key))
            self._changed.set()

    def remove(self, key: Key) -> None:
        """The pod is gone, or has its node."""
        self._leave_waiting(key)
        self._active.discard(key)  # its entry in the heap is passed over
        self._attempts.pop(key, None)

    @property
    def moves(self) -> int:
        """How often something changed: to see whether something did while a pod had its turn."""
        return self._moves

    def wait(self, key: Key, priority: int, since: int) -> None:
        """The pod fitted nowhere. since: `moves` as its turn began."""
        if key in self._active:
            return
        attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
        delay = min(_FIRST_SECONDS * 2 ** min(attempts - 1, 10), _LONGEST_SECONDS)
        loop = asyncio.get_running_loop()
        self._leave_waiting(key)
        due = delay if self._moves != since else _FORGOTTEN_SECONDS
        self._waiting[key] = _Waiting(priority, loop.time() + delay, loop.call_later(due, self.add, key, priority))

    def move_all(self) -> None:
        """Something has changed that may let a pod fit: each has its turn as soon as its back-off is over."""
        self._moves += 1
        loop = asyncio.get_running_loop()
        for key, waiting in list(self._waiting.items()):
            if waiting.not_before <= loop.time():
                self.add(key, waiting.priority)
            elif waiting.timer.when() > waiting.not_before:
                waiting.timer.cancel()
                waiting.timer = loop.call_at(waiting.not_before, self.add, key, waiting.priority)

    async def get(self) -> Key:
        """The next pod. Raises Closed when the queue is closed."""
        while True:
            while self._heap:
                _, _, key = heapq.heappop(self._heap)
                if key in self._active:
                    self._active.discard(key)
                    return key
            if self._closed:
                raise Closed
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        self._closed = True
        for key in list(self._waiting):
            self._leave_waiting(key)
        self._changed.set()

    def _leave_waiting(self, key: Key) -> None:
        if waiting := self._waiting.pop(key, None):
            waiting.timer.cancel()
