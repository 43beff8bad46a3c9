"""The monitor's event loop: descriptors, timers and children, on poll(2) and one thread."""

import _signal as signal  # type: ignore[import-not-found]  # the signal module brings enum and more: 1 MB in every monitor
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IN, OUT, GONE = select.POLLIN, select.POLLOUT, select.POLLHUP | select.POLLERR | select.POLLNVAL


class Timer:
    __slots__ = ("call", "due")

    def __init__(self, due: float, call: "Callable[[], None]") -> None:
        self.due, self.call = due, call


class Loop:
    """One process has one. Callbacks must not block; what they raise goes to `on_error`, and the loop goes on."""

    def __init__(self, on_error: "Callable[[BaseException], None]") -> None:
        # poll, not epoll: the stdin of an attached client may be a regular file
        self._poll = select.poll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._children: dict[int, Callable[[int], None]] = {}
        self._orphans: dict[int, int] = {}
        self._runtimes_at_work = 0
        self._on_error = on_error
        self._running = False
        self._wake, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, stack: None)
        self.watch(self._wake, IN, self._woken)

    def watch(self, descriptor: int, events: int, call: "Callable[[int], None]") -> None:
        """Calls `call(events)` whenever the descriptor is ready; replaces an earlier watch."""
        self._watched[descriptor] = call
        self._poll.register(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def after(self, seconds: float, call: "Callable[[], None]") -> Timer:
        timer = Timer(time.monotonic() + seconds, call)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        if timer in self._timers:
            self._timers.remove(timer)

    def on_exit(self, pid: int, call: "Callable[[int], None]") -> None:
        """Calls `call(wait status)` once the child has ended, also when it has already."""
        if pid in self._orphans:
            status = self._orphans.pop(pid)
            self.after(0, lambda: call(status))
        else:
            self._children[pid] = call

    def runtime_starts(self) -> None:
        """From now on children may appear whose PIDs come later: how they end is remembered."""
        self._runtimes_at_work += 1

    def runtime_ended(self) -> None:
        self._runtimes_at_work -= 1
        if not self._runtimes_at_work:
            self._orphans.clear()

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        """After the last run: the process is as before, but for the handling of SIGCHLD."""
        signal.set_wakeup_fd(-1)
        for descriptor in (self._wake, self._wake_write):
            os.close(descriptor)

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        while self._running:
            found = self._poll.poll(self._timeout_ms())
            for descriptor, events, call in [(number, events, self._watched.get(number)) for number, events in found]:
                # Not where a call before it has closed the descriptor: its number may already be another's, with nothing to read.
                if call and self._watched.get(descriptor) is call:
                    self._guard(lambda call=call, events=events: call(events))  # type: ignore[misc]
            now = time.monotonic()
            for timer in [timer for timer in self._timers if timer.due <= now]:
                if timer in self._timers:  # not cancelled by the one before
                    self._timers.remove(timer)
                    self._guard(timer.call)

    def _timeout_ms(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(timer.due for timer in self._timers) - time.monotonic()) * 1000 + 0.5

    def _guard(self, call: "Callable[[], None]") -> None:
        try:
            call()
        except Exception as error:
            self._on_error(error)

    def _woken(self, events: int) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        # SIGCHLD coalesces: all that have ended are taken. As subreaper, this also gets children of containers' processes.
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if found is None:
                return
            status = found.si_status << 8 if found.si_code == os.CLD_EXITED else found.si_status
            call = self._children.pop(found.si_pid, None)
            if call:
                self._guard(lambda call=call, status=status: call(status))  # type: ignore[misc]
            elif self._runtimes_at_work:
                self._orphans[found.si_pid] = status


def exit_code(status: int) -> tuple[int, int]:
    """A wait status as (exit code as a shell has it, signal or 0)."""
    number = status & 0x7F
    return (128 + number, number) if number else (status >> 8, 0)
