"""Seccomp's user notification (seccomp_unotify(2)): the listener's way from the filtered process to the agent that decides.

A process that has put such a filter on itself holds the listener, and can do nothing more that the filter notifies of: nobody
answers yet. So before, it makes a courier: a process that shares its table of descriptors, but not its filter. One write(2),
which no profile may notify of, tells the courier the listener's number; the courier passes it to the command that starts the
container (or its exec), and that one sends it with the process's state to the agent's socket (config-linux, Seccomp,
listenerPath). Other runtimes take the descriptor with pidfd_getfd(2), which without root would need a process that others may
look into.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import os
import stat

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason
from strata.linux import descriptors, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_CLONE_FILES = 0x400
_PR_SET_PDEATHSIG = 1


class Courier:
    """In the process that is to be filtered: made while it may still make processes, as who it is now."""

    def __init__(self, report: descriptors.Socket) -> None:
        """report: the connection to the command that waits for this process."""
        number, self._number = os.pipe2(os.O_CLOEXEC)
        self._pid, _ = syscalls.clone3(_CLONE_FILES)
        if self._pid == 0:
            _carry(number, report)

    def load(self, filter_: "seccomp.Filter") -> None:
        """Loads the filter and returns when the agent has its listener. Ends this process where it will have none."""
        try:
            os.write(self._number, b"%d" % filter_.load())
            _, status = os.waitpid(self._pid, 0)
        except BaseException:
            os.kill(self._pid, _signal.SIGKILL)
            raise
        if status:
            os._exit(1)  # who asked for the start has told why


def _carry(number: int, report: descriptors.Socket) -> None:
    """The courier's life. Its descriptors are the other's too, so what it closes at the end is the other's copy of the listener:
    with that the other would wait for ever for an agent that has gone."""
    try:
        syscalls.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)
        listener = int(os.read(number, 16))
        descriptors.send(report, b"n", (listener,))
        if descriptors.receive(report)[0] == b"k":
            os.close(listener)
            os._exit(0)
    finally:
        os._exit(1)


def check_listener(profile: "Spec") -> None:
    """Raises RuntimeFailure where there can be no agent: better before the container is made than after."""
    path = profile["listenerPath"]
    try:
        if path.startswith("@") or stat.S_ISSOCK(os.stat(path).st_mode):
            return
        why = "not a socket"
    except OSError as error:
        why = reason(OSError(error.errno, error.strerror))  # without the path, which is named already
    raise _no_agent(path, why)


def deliver(profile: "Spec", state: "Spec", pid: int, connection: descriptors.Socket, listener: int) -> None:
    """Sends the listener and the container process's state to the agent, and tells the process to go on.

    state: the container's (runtime.md, State). Raises RuntimeFailure where no agent listens; the listener is closed.
    """
    path = profile["listenerPath"]
    values: Spec = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid, "state": state}
    if metadata := profile.get("listenerMetadata"):
        values["metadata"] = metadata
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        agent.connect("\0" + path[1:] if path.startswith("@") else path)
        descriptors.send_all(agent, documents.dumps(values).encode(), (listener,))
    except OSError as error:
        raise _no_agent(path, reason(error)) from None
    finally:
        agent.close()
        os.close(listener)
    connection.send(b"k")


def _no_agent(path: str, why: str) -> RuntimeFailure:
    return RuntimeFailure(
        f"failed to connect with seccomp agent specified in the seccomp profile: dial unix {path}: connect: {why}"
    )
