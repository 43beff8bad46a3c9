"""Exponential back-off: how long to wait before something that failed is tried again."""

import asyncio
import random


class Backoff:
    """Delays that grow from `base` by `factor` up to `maximum` seconds.

    jitter: each delay is drawn from [delay, delay * (1 + jitter)], so that many clients do not come back at once.
    """

    def __init__(self, base: float = 0.2, maximum: float = 30.0, *, factor: float = 2.0, jitter: float = 0.2) -> None:
        if base <= 0 or maximum < base or factor < 1 or jitter < 0:
            raise ValueError(f"back-off from {base} s to {maximum} s by {factor}: must be positive and growing")
        self._base, self._maximum, self._factor, self._jitter = base, maximum, factor, jitter
        self._next = base

    def next(self) -> float:
        """The delay to wait now, in seconds; the following one is longer."""
        delay, self._next = self._next, min(self._next * self._factor, self._maximum)
        return delay * (1 + random.random() * self._jitter)

    def reset(self) -> None:
        """After a success: the next delay is the shortest again."""
        self._next = self._base

    async def sleep(self) -> None:
        await asyncio.sleep(self.next())
