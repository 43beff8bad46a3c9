"""Processes by descriptors, which never come to mean another process (pidfd_open(2))."""

import _signal  # type: ignore[import-not-found]  # the signal module costs 6 ms of a cold start
import os
import select


def open_pidfd(pid: int) -> int:
    """A descriptor of a process. Raises ProcessLookupError when it is gone."""
    return os.pidfd_open(pid)


def send_signal(pidfd: int, number: int) -> bool:
    """Sends a signal; False when the process is gone."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pidfd: int, seconds: float) -> bool:
    """Waits until the process has ended (somebody may still have to reap it); False when the time is up."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def start_time(pid: int) -> int:
    """When the process was started, in clock ticks since boot: with the PID it names a process for ever.

    Raises ProcessLookupError when it is gone.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        raise ProcessLookupError(3, f"no process {pid}") from None


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and waits to be reaped; also True when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
