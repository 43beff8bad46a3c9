"""A run or exec that stays with its process: passes signals on, relays its terminal, and ends as it ends."""

import _signal  # type: ignore[import-not-found]
import os

from lowrt import terminal
from strata.linux import pidfds


def wait_for_end(pid: int, pidfd: int, master: int, fds: tuple[int, int, int]) -> int:
    """Stays with a child until it ends, passing signals on and relaying its terminal; its exit status, 128 + N for a signal."""
    kept = {}

    def forward(number: int, _: object) -> None:
        pidfds.send_signal(pidfd, number)

    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGHUP, _signal.SIGUSR1, _signal.SIGUSR2):
        kept[number] = _signal.signal(number, forward)
    try:
        if master >= 0:
            terminal.Relay(master, fds).wait(pidfd)
        _, status = os.waitpid(pid, 0)
    finally:
        for number, handler in kept.items():
            _signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
