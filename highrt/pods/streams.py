"""Exec and attach: processes and clients at the streams of a container."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from highrt.monitor.client import MonitorError, MonitorGone
from highrt.pods import identity
from highrt.pods.errors import FailedPrecondition, InvalidArgument, PodError
from highrt.pods.model import (
    Container,
    ContainerState,
    Stdio,
)
from highrt.pods.monitors import Monitors
from highrt.pods.registry import Registry
from highrt.pods.sessions import AttachSession, Collector, ExecSession, close_stdio, kill_session, placed
from strata.linux import cgroups
from strata.protocols.cri_pb2 import (
    LinuxContainerSecurityContext,
)
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("highrt.pods")

_KILL_SECONDS = 10.0


class Streams:
    """All exec and attach sessions."""

    def __init__(self, registry: Registry, monitors: Monitors) -> None:
        self._registry, self._monitors = registry, monitors
        self._execs: dict[str, tuple[str, asyncio.Future[int]]] = {}
        self._attaches: dict[str, tuple[str, asyncio.Future[None]]] = {}
        self._waiting_attaches: dict[str, list[tuple[str, Stdio]]] = {}

    async def exec(
        self, container_id: str, argv: Sequence[str], stdio: Stdio, *, terminal: bool = False,
        env: Mapping[str, str] | None = None, cwd: str | None = None, user: str | None = None,
    ) -> ExecSession:  # fmt: skip
        """Starts a process in a running container. The descriptors pass to the manager, also after an error.

        With a terminal, stdin and stdout are relayed; without one they become the process's own. user: as in an image's
        `User`. Raises NotFound, FailedPrecondition, InvalidArgument, PodError with the runtime's text.
        """
        exec_id = uuid.uuid4().hex
        try:
            container = self._registry.container(container_id)
            if container.state != ContainerState.RUNNING:
                raise FailedPrecondition(f"container {container.id} is {container.state}, not running")
            if not argv:
                raise InvalidArgument("exec needs a command")
            process = self._process(container, argv, terminal=terminal, env=env, cwd=cwd, user=user)
            client = self._monitors.client(container.pod_id)
            fds, places = placed(stdio)
            ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._execs[exec_id] = (container.pod_id, ended)
            try:
                with span("exec", container=container.id):
                    answer = await client.request(
                        "exec", fds, container=container.id, exec=exec_id, process=process, stdio=places,
                        folder=str(self._registry.folder(container)), console_socket=self._monitors.console_path(exec_id),
                    )  # fmt: skip
            except BaseException as error:
                self._execs.pop(exec_id, None)
                if isinstance(error, MonitorError | MonitorGone):
                    raise PodError(f"cannot exec in container {container.id}: {error}") from None
                raise
        finally:
            close_stdio(stdio)
        session = ExecSession(client, container.id, exec_id, ended)
        session.pid = int(answer["pid"])
        return session

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_seconds: float = 0.0) -> tuple[bytes, bytes, int]:
        """Runs a process to its end: stdout and stderr (16 MiB of each at most) and the exit code.

        timeout_seconds: 0 is no limit; after it the process is killed with what it started, and TimeoutError raised. Raises as
        `exec` does.
        """
        collector = Collector()
        try:
            session = await self.exec(container_id, argv, collector.stdio)
            try:
                async with asyncio.timeout(timeout_seconds or None):
                    code = await session.wait()
            except BaseException as error:
                with contextlib.suppress(PodError, TimeoutError):
                    await asyncio.shield(session.kill())
                    await asyncio.wait_for(session.wait(), _KILL_SECONDS)
                with contextlib.suppress(OSError):  # the container has ended too
                    group = cgroups.open_cgroup(self._registry.container(container_id).cgroup)
                    await asyncio.shield(asyncio.to_thread(kill_session, group, session.pid))
                if isinstance(error, TimeoutError):
                    raise TimeoutError(f"{argv[0]} did not end within {timeout_seconds:g} s, and was killed") from None
                raise
            stdout, stderr = collector.output()
            return stdout, stderr, code
        finally:
            collector.close()

    async def attach(self, container_id: str, stdio: Stdio) -> AttachSession:
        """Joins a client to a container's streams; before its start, from its first byte on. The descriptors pass to the
        manager. Raises NotFound, FailedPrecondition where it has ended, PodError."""
        attach_id = uuid.uuid4().hex
        try:
            container = self._registry.container(container_id)
            client = self._monitors.client(container.pod_id)
        except BaseException:
            close_stdio(stdio)
            raise
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attaches[attach_id] = (container.id, ended)
        if container.state == ContainerState.CREATED and not container.pid:
            self._waiting_attaches.setdefault(container.id, []).append((attach_id, stdio))
        else:
            try:
                await self._send_attach(container, attach_id, stdio)
            except (MonitorError, MonitorGone) as error:
                self._attaches.pop(attach_id, None)
                raise FailedPrecondition(f"cannot attach to container {container.id}: {error}") from None
        return AttachSession(client, container.id, attach_id, ended)

    async def _send_attach(self, container: Container, attach_id: str, stdio: Stdio) -> None:
        fds, places = placed(stdio)
        try:
            client = self._monitors.client(container.pod_id)
            await client.request("attach", fds, container=container.id, attach=attach_id, stdio=places)
        finally:
            close_stdio(stdio)

    async def send_waiting(self, container: Container) -> None:
        """Joins those who attached before the container was there."""
        for attach_id, stdio in self._waiting_attaches.pop(container.id, []):
            await self._send_attach(container, attach_id, stdio)

    def exec_ended(self, exec_id: str, code: int) -> None:
        _, ended = self._execs.pop(exec_id, (None, None))
        if ended and not ended.done():
            ended.set_result(code)

    def detached(self, attach_id: str) -> None:
        _, gone = self._attaches.pop(attach_id, (None, None))
        if gone and not gone.done():
            gone.set_result(None)

    def drop_waiting(self, container_id: str) -> None:
        """The container has ended without ever having streams."""
        for attach_id, stdio in self._waiting_attaches.pop(container_id, []):
            close_stdio(stdio)
            self.detached(attach_id)

    def monitor_died(self, pod_id: str) -> None:
        """Nobody will tell how its sessions end."""
        for exec_id, (of_pod, ended) in list(self._execs.items()):
            if of_pod == pod_id and not ended.done():
                self._execs.pop(exec_id)
                ended.set_exception(MonitorGone("the pod's monitor died"))
                ended.exception()  # perhaps nobody waits
        for attach_id, (container_id, _) in list(self._attaches.items()):
            container = self._registry.containers.get(container_id)
            if container and container.pod_id == pod_id:
                self.detached(attach_id)

    def _process(
        self, container: Container, argv: Sequence[str], *, terminal: bool, env: Mapping[str, str] | None, cwd: str | None,
        user: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        """The OCI `process` of an exec: the container's own, changed."""
        folder = self._registry.folder(container)
        process: dict[str, Any] = json.loads((folder / "config.json").read_text())["process"]
        process |= {"args": list(argv), "terminal": terminal}
        variables = dict(env or {})
        if terminal and not any(pair.startswith("TERM=") for pair in process["env"]):
            variables.setdefault("TERM", "xterm")
        process["env"] += [f"{key}={value}" for key, value in variables.items()]
        if cwd:
            process["cwd"] = cwd
        if user:
            who = identity.resolve(str(folder / "rootfs"), LinuxContainerSecurityContext(), user)
            process["user"] = {"uid": who.uid, "gid": who.gid, "additionalGids": who.groups}
        return process
