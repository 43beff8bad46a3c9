"""highrt's side of the spawner: keeps one alive, has it fork monitors, and starts them cold while there is none.

A fork, and the copying of the pages that the child then writes to, is half of what a pod's start would wait for. So a monitor
waits, forked and prepared, for the next pod; the one after it is forked once that pod is on its way.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from highrt.monitor import wire
from highrt.spawner.main import VERSION
from strata.linux import syscalls
from strata.telemetry import logs

log = logs.get("highrt.spawner")

ANSWER_SECONDS = 1.0
_QUIET_SECONDS = 0.02
"""For so long no pod and no container was being started when the next monitor is forked: it takes as much of the CPUs as one of
them, and they have somebody who waits."""
_MOUNT_ATTR_RDONLY = 1
_PACKAGE = Path(__file__).parents[1]


class Spawner:
    """Starts monitors. Owns the spawner process, which ends with this one."""

    def __init__(self, entry: str, monitor: str = "highrt.monitor.main:run") -> None:
        """entry: the dotted name of the runtime that monitors' workers call."""
        self._entry, self._monitor = entry, monitor
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._one_at_a_time = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._spare: socket.socket | None = None
        self._forking: asyncio.Task[None] | None = None
        self._starts, self._quiet_since = 0, 0.0
        self._pidfd = -1
        self._cold: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int:
        """The spawner's process; 0 while there is none."""
        return self._process.pid if self._process else 0

    async def open(self) -> None:
        """Starts it, and waits until it is ready."""
        await self._start()
        await self._fork_spare()

    async def close(self) -> None:
        for task in (self._forking, self._starting):
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._spare:
            self._spare.close()
        await self._end()
        for task in self._cold:
            task.cancel()

    async def spawn(self, settings: dict[str, Any]) -> socket.socket:
        """A new monitor: the connection to it. settings: the first frame of the monitor's wire. Raises OSError."""
        spare, self._spare = self._spare, None
        if self._forking is None or self._forking.done():
            self._forking = asyncio.create_task(self._fork_spare_soon())
        if spare:
            try:
                spare.sendall(wire.frame(settings))
                return spare
            except OSError:  # it has died
                spare.close()
        for start in (self._fork, self._start_cold):
            # A new pair for the second try: a spawner that died before its answer may have forked nevertheless.
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                ours.sendall(wire.frame(settings))
                if await start(theirs):
                    return ours
                ours.close()
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        raise OSError("a monitor can be started neither by the spawner nor cold")

    @contextlib.contextmanager
    def starting_something(self) -> Iterator[None]:
        """While a pod or a container is being started, the next monitor is not forked ahead."""
        self._starts += 1
        try:
            yield
        finally:
            self._starts -= 1
            self._quiet_since = time.monotonic()

    async def _fork_spare_soon(self) -> None:
        while self._starts or time.monotonic() - self._quiet_since < _QUIET_SECONDS:  # noqa: ASYNC110  # a quiet time is no event
            await asyncio.sleep(_QUIET_SECONDS)
        await self._fork_spare()

    async def _fork_spare(self) -> None:
        """Has the next monitor forked; it ends with the connection if there is no pod for it."""
        ours: socket.socket | None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                if await self._fork(theirs):
                    self._spare, ours = ours, None
        finally:
            if ours:
                ours.close()

    async def _fork(self, connection: socket.socket) -> bool:
        """Whether the spawner has made a monitor. If it does not answer in time it is replaced."""
        async with self._one_at_a_time:
            sock = self._socket
            if sock is None:
                return False
            start = time.monotonic()
            try:
                socket.send_fds(sock, [bytes([VERSION])], [connection.fileno()])
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await asyncio.get_running_loop().sock_recv(sock, 16)
            except (OSError, TimeoutError):
                answer = b""
            if len(answer) == 5 and answer[0] == VERSION and any(answer[1:]):
                return True
            log.warning("the spawner does not answer: replacing it", seconds=round(time.monotonic() - start, 3))
            await self._end()
            self._starting = asyncio.create_task(self._replace())
            return False

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = ["--entry", self._entry, "--monitor", self._monitor, "--socket", str(theirs.fileno())]
        try:
            self._process = _python(_PACKAGE / "spawner" / "__main__.py", arguments, theirs)
        finally:
            theirs.close()
        ours.setblocking(False)
        try:
            async with asyncio.timeout(10):
                ready = await asyncio.get_running_loop().sock_recv(ours, 16)
        except (OSError, TimeoutError):
            ready = b""
        except BaseException:
            ours.close()
            raise
        if ready != bytes([VERSION]):
            ours.close()
            await self._end()
            log.error("the spawner does not start: monitors are started cold", entry=self._entry)
            return
        self._socket = ours
        # One that dies is replaced at once, not when the next pod needs it.
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_died)
        log.info("spawner ready", pid=self.pid, entry=self._entry)

    def _has_died(self) -> None:
        self._forget_pidfd()
        log.warning("the spawner has died: replacing it", pid=self.pid)
        if self._socket:
            self._socket.close()
            self._socket = None
        self._starting = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        async with self._one_at_a_time:
            if self._socket is None:  # else somebody was quicker
                await self._end()
                await self._start()

    def _forget_pidfd(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _end(self) -> None:
        self._forget_pidfd()
        if self._socket:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process:
            try:
                await asyncio.to_thread(process.wait, 0.2)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(process.wait)

    async def _start_cold(self, connection: socket.socket) -> bool:
        log.warning("no spawner: starting a monitor cold")
        arguments = ["--entry", self._entry, "--connection", str(connection.fileno())]
        process = _python(_PACKAGE / "monitor" / "__main__.py", arguments, connection)
        task = asyncio.create_task(_reap(process))
        self._cold.add(task)
        task.add_done_callback(self._cold.discard)
        return True


def _python(script: Path, arguments: list[str], passed: socket.socket) -> "subprocess.Popen[bytes]":
    # -I and -S: nothing of the environment and no site-packages; what runs here needs the standard library only. UTF-8 whatever
    # the locale is: no character set has to be looked for, above all not in a container's root.
    interpreter = os.path.realpath(sys.executable)
    view = _read_only(interpreter)
    try:
        return subprocess.Popen(
            [interpreter, "-ISXutf8", str(script), *arguments],
            executable=interpreter if view is None else f"/proc/{os.getpid()}/fd/{view}",
            pass_fds=[passed.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    finally:
        if view is not None:
            os.close(view)


def _read_only(path: str) -> int | None:
    """A descriptor of a file through a read-only mount that is nowhere in the tree; None where the kernel has no such thing.

    What is forked from here becomes containers: by /proc/self/exe one could otherwise write to the host's interpreter
    (CVE-2019-5736).
    """
    try:
        view = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
    except OSError as error:
        log.warning("no read-only view of the interpreter: containers of root might overwrite it", error=str(error))
        return None
    try:
        syscalls.mount_setattr(view, recursive=False, set_=_MOUNT_ATTR_RDONLY)
    except OSError as error:
        os.close(view)
        log.warning("no read-only view of the interpreter: containers of root might overwrite it", error=str(error))
        return None
    return view


async def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Waits for a monitor that is this process's own child."""
    while process.poll() is None:  # noqa: ASYNC110  # nothing but the process can set an event
        await asyncio.sleep(1)
