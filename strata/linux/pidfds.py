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
    return _state_and_start(pid)[1]


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and waits to be reaped; also True when it is gone."""
    try:
        return _state_and_start(pid)[0] in "ZX"
    except ProcessLookupError:
        return True


def runs_since(pid: int, start: int) -> bool:
    """Whether the process with this start time still runs: it is neither gone nor a zombie."""
    try:
        state, started = _state_and_start(pid)
    except ProcessLookupError:
        return False
    return started == start and state not in "ZX"


def _state_and_start(pid: int) -> tuple[str, int]:
    """The letter of the process's state, and its start time (proc_pid_stat(5))."""
    path = f"/proc/{pid}/stat"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(3, f"no process {pid}") from None
    except OSError as error:
        error.filename = path
        raise
    return fields[0].decode(), int(fields[19])
