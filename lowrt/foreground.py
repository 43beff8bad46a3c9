"""A run or exec that stays with its process: passes signals on, relays its terminal, and ends as it ends."""

import _signal  # type: ignore[import-not-found]
import os

from lowrt import terminal
from strata.linux import pidfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowrt.notify import Notifier


# What the kernel sends for a fault of this process, what cannot be caught, and what means this process alone.
_NOT_PASSED_ON = frozenset((
    _signal.SIGILL, _signal.SIGTRAP, _signal.SIGABRT, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGKILL, _signal.SIGSEGV,
    _signal.SIGPIPE, _signal.SIGCHLD, _signal.SIGSTOP, _signal.SIGURG, _signal.SIGXCPU, _signal.SIGXFSZ, _signal.SIGWINCH,
    _signal.SIGSYS,
))  # fmt: skip


def wait_for_end(
    pid: int, pidfd: int, master: int, fds: tuple[int, int, int], notifier: "Notifier | None" = None
) -> int:  # fmt: skip
    """Stays with a child until it ends, passing signals on and relaying its terminal; its exit status, 128 + N for a signal.

    notifier: takes the container's word that it is ready meanwhile.
    """
    kept = {}

    def forward(number: int, _: object) -> None:
        pidfds.send_signal(pidfd, number)

    for number in _signal.valid_signals() - _NOT_PASSED_ON:
        kept[number] = _signal.signal(number, forward)
    try:
        if master >= 0:
            terminal.Relay(master, fds, notifier).wait(pidfd)
        elif notifier:
            notifier.wait(pidfd, os.getpid())
        _, status = os.waitpid(pid, 0)
    finally:
        for number, handler in kept.items():
            _signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
