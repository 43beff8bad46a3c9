"""start: lets a created container's program go."""

import _socket
import os

from lowrt import hooks, log, state
from lowrt.errors import RuntimeFailure, received_failure, step
from strata.linux import descriptors, pidfds


def start(container: state.Container, notify_socket: str = "") -> None:
    """Lets the program of a created container, locked, go, and returns when it runs, unlocked. Raises RuntimeFailure.

    notify_socket: who waits until it has said that it is ready (`notify`).
    """
    notifier, pidfd = None, -1
    if notify_socket:
        from lowrt import notify

        notifier, pidfd = notify.of_start(container, notify_socket), pidfds.open_pidfd(container.pid)
    path = f"{container.folder}/{state.START_SOCKET}"
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        try:
            _connect(container, connection)
        except FileNotFoundError:
            raise _gone_on(container) from None
        except ConnectionRefusedError:
            # Started already by a command that was killed before it could take the socket away.
            os.unlink(path)
            raise _gone_on(container) from None
        try:
            try:
                connection.send(b"s")
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has died, as will be told
            wait_until_it_runs(container, connection)
        finally:
            os.unlink(path)
    finally:
        connection.close()
    container.unlock()  # it runs: what hooks take their time for, nobody else has to wait for
    run_poststart_hooks(container)
    if notifier:
        notifier.wait(pidfd, container.pid)
        os.close(pidfd)


def ask_for_namespaces(container: state.Container) -> dict[str, int]:
    """The namespaces of a container that waits for its start and whose first process hands them out, by kind: descriptors that
    the caller owns."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        _connect(container, connection)
        connection.send(b"n")
        names, found = descriptors.receive(connection)
        return dict(zip(names.decode().split(), found, strict=True))
    finally:
        connection.close()


def _connect(container: state.Container, connection: descriptors.Socket) -> None:
    """To the first process of a container that waits for its start. Raises OSError."""
    # By a descriptor of its folder: the whole path may be longer than an address can be.
    step("connect to the container's first process")
    folder = os.open(container.folder, os.O_PATH | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{state.START_SOCKET}")
    finally:
        os.close(folder)


def wait_until_it_runs(container: state.Container, connection: descriptors.Socket) -> None:
    """Until the container's first process has become its program. Raises RuntimeFailure."""
    step("wait for the container's program")
    # The program does not run yet: to an agent for seccomp, as with other runtimes, the container is on its way.
    if not wait_for_exec(container, connection, container.pid, "creating"):
        raise RuntimeFailure("container process died before it could be started")
    log.debug(f"container {container.id}: its program runs")


def wait_for_exec(container: state.Container, connection: descriptors.Socket, pid: int, status: str) -> bool:
    """Reads what a process says before it becomes a program: `x`, and then the end, because exec closes its side. The listener
    of its seccomp filter goes to the container's agent, with the container's status.

    False where it died before. Raises RuntimeFailure with what it says has failed.
    """
    ready = False
    while (received := descriptors.receive(connection))[0]:
        message, passed = received
        if passed:
            from lowrt import notification

            told = hooks.state_of(container, status, container.pid)
            notification.deliver(container.values["seccomp"], told, pid, connection, passed[0])
        if message[:1] == b"e":
            raise received_failure(message)
        ready = ready or message == b"x"
    return ready


def run_poststart_hooks(container: state.Container) -> None:
    """Those that the configuration has; where one fails, the container is stopped and removed (runtime.md, Lifecycle)."""
    hook_values = container.values.get("hooks")
    if hook_values:
        running = hooks.state_of(container, "running", container.pid)
        try:
            hooks.run_all({"hooks": hook_values}, "poststart", running, container.values["bundle"])
        except RuntimeFailure:
            from lowrt import lifecycle

            lifecycle.delete(os.path.dirname(container.folder), container.id, force=True)
            raise


def _gone_on(container: state.Container) -> RuntimeFailure:
    """Why a container that is not waiting for its start cannot be started, in runc's words."""
    status = container.status()
    if status == "stopped":
        return RuntimeFailure("cannot start a container that has stopped")
    if status == "running":
        return RuntimeFailure("cannot start an already running container")
    return RuntimeFailure(f"cannot start a container in the {status} state")
