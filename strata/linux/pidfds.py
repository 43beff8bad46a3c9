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


def wait_gone(pidfd: int, seconds: float | None) -> bool:
    """Waits until the process has ended (somebody may still have to reap it); False when the time is up. None: for ever."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


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


def is_ending(pid: int, start: int) -> bool:
    """Whether the process with this start time is on its way out, or gone: it has no namespaces to join any more then."""
    exiting = 0x4  # PF_EXITING
    try:
        fields = _fields(pid)
    except ProcessLookupError:
        return True
    return int(fields[19]) != start or bool(int(fields[6]) & exiting)


def has_fatal_signal(pid: int) -> bool:
    """Whether SIGKILL waits for the process, as for one that is frozen (proc_pid_status(5)); False when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    bit = 1 << _signal.SIGKILL - 1
    return any(int(line.split()[1], 16) & bit for line in lines if line.startswith(("SigPnd:", "ShdPnd:")))


def session(pid: int) -> int:
    """The session (setsid(2)) of a process that still runs; 0 for others."""
    try:
        fields = _fields(pid)
    except ProcessLookupError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[3])


def _state_and_start(pid: int) -> tuple[str, int]:
    """The letter of the process's state, and its start time."""
    fields = _fields(pid)
    return fields[0].decode(), int(fields[19])


def _fields(pid: int) -> list[bytes]:
    """What /proc/PID/stat says of the process, from its third field on (proc_pid_stat(5)). Raises ProcessLookupError."""
    path = f"/proc/{pid}/stat"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 4096).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(3, f"no process {pid}") from None
    except OSError as error:
        error.filename = path
        raise
