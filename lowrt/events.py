"""events: what a container uses, now and then, and each kill for want of memory; an event is a line of JSON, as with runc."""

import os
import select
import time

from lowrt import documents, state
from lowrt.errors import RuntimeFailure, reason
from strata.linux import pidfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from strata.linux.cgroups.watch import Watch

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A duration above 0 as Go writes it: 5s, 100ms, 1m30s. Raises RuntimeFailure."""
    total, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("nuµμmsh"))]
        rest = rest[len(unit) :]
        try:
            total += float(number) * _UNITS[unit]
        except (ValueError, KeyError):
            raise RuntimeFailure(f"--interval {text}: must be a duration like 5s, 100ms or 1m30s") from None
    if total <= 0:
        raise RuntimeFailure("duration interval must be greater than 0")
    return total


def report(
    container: state.Container, say: "Callable[[str], None]", warn: "Callable[[str], None]", interval: float, *, once: bool
) -> None:
    """Says the events until the container ends, or with `once` its use now. interval: seconds between two reports of use."""
    if container.status() == "stopped":
        raise RuntimeFailure(f"container with id {container.id} is not running")
    if once:
        say(_line("stats", container.id, container.cgroup().usage()))
        return
    pidfd = pidfds.open_pidfd(container.pid)
    watch: Watch | None = None
    try:
        try:
            watch = container.cgroup().watch()
        except OSError as error:
            warn(f"kills for want of memory cannot be told: {reason(error)}")
        if container.is_alive():  # it is still that process which the descriptor is of
            _follow(container, say, warn, interval, pidfd, watch)
    finally:
        os.close(pidfd)
        if watch:
            watch.close()


def _follow(
    container: state.Container, say: "Callable[[str], None]", warn: "Callable[[str], None]", interval: float, pidfd: int,
    watch: "Watch | None",
) -> None:  # fmt: skip
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if watch:
        poll.register(watch.descriptor, select.POLLIN)
    group, due, ended = container.cgroup(), time.monotonic() + interval, False
    while not ended:
        ready = [descriptor for descriptor, _ in poll.poll(max(due - time.monotonic(), 0) * 1000)]
        ended = pidfd in ready
        if watch and ready:  # also at the end: its last process may be the one that was killed
            killed, gone = watch.read()
            ended = ended or gone
            if killed:
                say(_line("oom", container.id, None))
        if not ended and time.monotonic() >= due:
            due += interval
            try:
                say(_line("stats", container.id, group.usage()))
            except OSError as error:
                warn(f"stats: {reason(error)}")


def _line(kind: str, container_id: str, data: "dict[str, Any] | None") -> str:
    return documents.dumps({"type": kind, "id": container_id, **({"data": data} if data is not None else {})}) + "\n"
