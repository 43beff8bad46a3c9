"""What a build says on its way, in the form that BuildKit's plain progress has: `#N [stage 2/4] RUN …`, its output, `#N DONE`."""

import time
from collections.abc import Callable


class BuildLog:
    """The lines of one build. Steps of several stages may be under way at once: each line has its step's number."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._count = say, 0

    def step(self, title: str) -> "StepLog":
        self._count += 1
        self._say(f"#{self._count} {title}")
        return StepLog(self._say, self._count)

    def warn(self, text: str) -> None:
        self._say(f"WARNING: {text}")

    def say(self, text: str) -> None:
        self._say(text)


class StepLog:
    """The lines of one step."""

    def __init__(self, say: Callable[[str], None], number: int) -> None:
        self._say, self._number, self._start = say, number, time.monotonic()
        self._cached = False

    def line(self, text: str) -> None:
        """Something that the step printed."""
        self._say(f"#{self._number} {self._seconds:.3f} {text}")

    def cached(self) -> None:
        self._cached = True

    def done(self) -> None:
        self._say(f"#{self._number} CACHED" if self._cached else f"#{self._number} DONE {self._seconds:.1f}s")

    def failed(self, why: str) -> None:
        self._say(f"#{self._number} ERROR: {why}")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start
