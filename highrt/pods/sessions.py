"""Processes in containers that a client talks to: exec and attach sessions, and exec with its output collected."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Sequence

from highrt.monitor.client import MonitorClient, MonitorError, MonitorGone
from highrt.pods.errors import FailedPrecondition, PodError
from highrt.pods.model import Stdio
from strata.linux import pidfds
from strata.linux.cgroups import Cgroup

OUTPUT_LIMIT_BYTES = 16 << 20
_READ_BYTES = 65536
_SIGKILL = 9
_KILL_ROUNDS, _GONE_SECONDS = 20, 1.0


class ExecSession:
    """A further process in a container."""

    def __init__(self, client: MonitorClient, container_id: str, exec_id: str, ended: "asyncio.Future[int]") -> None:
        self._client, self._container, self.id, self._ended = client, container_id, exec_id, ended
        self.pid = 0

    async def resize(self, width: int, height: int) -> None:
        """Sets the terminal's size, in characters. Raises FailedPrecondition where there is none."""
        await _told(self._client.request("resize", container=self._container, exec=self.id, width=width, height=height))

    async def wait(self) -> int:
        """The exit code, 128 and the signal's number where one ended it. Raises PodError when the monitor dies."""
        try:
            return await asyncio.shield(self._ended)
        except MonitorGone as error:
            raise PodError(f"the process is lost: {error}") from None

    async def kill(self) -> None:
        """Sends SIGKILL; nothing where it has ended."""
        if not self._ended.done():
            await _told(self._client.request("signal", container=self._container, exec=self.id, signal=_SIGKILL))


class AttachSession:
    """A client at a container's own streams."""

    def __init__(self, client: MonitorClient, container_id: str, attach_id: str, ended: "asyncio.Future[None]") -> None:
        self._client, self._container, self.id, self._ended = client, container_id, attach_id, ended

    async def resize(self, width: int, height: int) -> None:
        """Sets the container's terminal's size. Raises FailedPrecondition where it has none."""
        await _told(self._client.request("resize", container=self._container, width=width, height=height))

    async def wait(self) -> None:
        """Until the container has ended, or the client's reader has gone."""
        await asyncio.shield(self._ended)

    async def detach(self) -> None:
        """Lets go; the container runs on."""
        if not self._ended.done():
            await _told(self._client.request("detach", container=self._container, attach=self.id))


async def _told(request: "asyncio.Future[object] | object") -> None:
    try:
        await request  # type: ignore[misc]
    except MonitorError as error:
        raise FailedPrecondition(str(error)) from None
    except MonitorGone:
        return  # whoever waits for the session hears of it there


class Collector:
    """The reading side of a process's output, as pipes: what comes is kept up to a limit, the rest is read and dropped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipes = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(2)]
        self._found = [bytearray(), bytearray()]
        self._open = {0, 1}
        for number, (read, write) in enumerate(self._pipes):
            os.set_blocking(write, True)
            self._loop.add_reader(read, self._read, number)

    @property
    def stdio(self) -> Stdio:
        """The writing ends; who gets them owns them."""
        return Stdio(None, self._pipes[0][1], self._pipes[1][1])

    def output(self) -> tuple[bytes, bytes]:
        """All that was written until now. When the process has ended that is all of its own: what it left behind may hold its
        pipes for ever, and is not waited for."""
        for number in list(self._open):
            # not more than the pipe holds: what was left behind may write without end
            most = fcntl.fcntl(self._pipes[number][0], fcntl.F_GETPIPE_SZ)
            for _ in range(most // _READ_BYTES + 1):
                if number not in self._open or not self._read(number):
                    break
        return bytes(self._found[0]), bytes(self._found[1])

    def close(self) -> None:
        for number in list(self._open):
            self._shut(number)

    def _read(self, number: int) -> bool:
        """Whether there was something, be it the end."""
        try:
            data = os.read(self._pipes[number][0], _READ_BYTES)
        except BlockingIOError:
            return False
        found = self._found[number]
        if len(found) < OUTPUT_LIMIT_BYTES:
            found += data[: OUTPUT_LIMIT_BYTES - len(found)]
        if not data:
            self._shut(number)
        return True

    def _shut(self, number: int) -> None:
        self._open.discard(number)
        self._loop.remove_reader(self._pipes[number][0])
        os.close(self._pipes[number][0])


def kill_session(group: Cgroup, leader: int) -> None:
    """Kills what an exec has started: the processes of its session that are in the container's group (setsid(2): an exec begins
    a session). Those that began one of their own are not found. Raises OSError where the group cannot be read."""
    for _ in range(_KILL_ROUNDS):  # some may be forking
        found = [pid for pid in group.pids(recursive=True) if pidfds.session(pid) == leader]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                pidfd = pidfds.open_pidfd(pid)
                try:
                    if pidfds.session(pid) == leader:  # else the number has come to mean another
                        pidfds.send_signal(pidfd, _SIGKILL)
                        pidfds.wait_gone(pidfd, _GONE_SECONDS)
                finally:
                    os.close(pidfd)


def placed(stdio: Stdio) -> tuple[list[int], list[int]]:
    """The descriptors that are there, and the places (0, 1, 2) they are for."""
    fds: Sequence[int | None] = (stdio.stdin, stdio.stdout, stdio.stderr)
    there = [(place, fd) for place, fd in enumerate(fds) if fd is not None]
    return [fd for _, fd in there], [place for place, _ in there]


def close_stdio(stdio: Stdio) -> None:
    for descriptor in placed(stdio)[0]:
        os.close(descriptor)
