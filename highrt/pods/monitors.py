"""The monitors of all pods: starting one, finding it again, hearing its events, and noticing its death."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from highrt.monitor.client import MonitorClient, MonitorError, MonitorGone
from highrt.pods.errors import PodError
from highrt.pods.model import Handler
from highrt.spawner.client import Spawner
from strata.linux import cgroups
from strata.telemetry import logs, spans

log = logs.get("highrt.monitors")

_ADDRESS_BYTES = 107
_STOP_SECONDS = 30.0
RUNTIME_SECONDS = 120.0
"""How long a command of a runtime may take."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Monitors:
    """pod ID → connection. on_event(pod_id, event); on_death(pod_id) when a monitor has died by itself."""

    def __init__(
        self, state: Path, cgroup_root: str, entry: str, on_event: Callable[[str, dict[str, Any]], None],
        on_death: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._folder, self._cgroup_root = state / "m", cgroup_root
        self._on_event, self._on_death = on_event, on_death
        self._entry = entry
        self._clients: dict[str, MonitorClient] = {}
        self._reconnecting: set[asyncio.Task[None]] = set()
        self.spawner = Spawner(entry)

    def prepare(self) -> None:
        """Before all else, also before the spawner is opened.

        Raises PodError where the state folder's path is too long for sockets below it.
        """
        if len(os.fsencode(str(self._folder))) + 1 + 16 + 9 > _ADDRESS_BYTES:
            raise PodError(f"the state folder {self._folder.parent} has too long a path for sockets: choose a shorter one")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def close(self) -> None:
        """Leaves the monitors running."""
        for task in self._reconnecting:
            task.cancel()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        await self.spawner.close()

    def client(self, pod_id: str) -> MonitorClient:
        """Raises PodError where the pod's monitor is dead."""
        client = self._clients.get(pod_id)
        if client is None:
            raise PodError(f"the monitor of pod {pod_id} is not there")
        return client

    def has(self, pod_id: str) -> bool:
        return pod_id in self._clients

    def console_path(self, exec_or_container_id: str) -> str:
        """Where a runtime hands over a terminal."""
        return str(self._folder / f"{exec_or_container_id[:16]}.console")

    def cgroup(self, pod_id: str) -> str:
        return f"{self._cgroup_root}/monitors/{pod_id}"

    def want_of_memory(self, pod_id: str) -> str:
        """What is to be added to an error of a monitor's, or to the news of its death: that memory was why, or nothing."""
        if not cgroups.open_cgroup(self.cgroup(pod_id)).oom_kill_count():
            return ""
        return f": the kernel killed for want of memory in the cgroup {self.cgroup(pod_id)} of the monitor"

    async def start(self, pod_id: str, handler: Handler, options: Sequence[str] = ()) -> MonitorClient:
        """A new monitor for a pod. options: further ones for the runtime. Raises PodError."""
        environ = {"PATH": _PATH}
        if folder := os.environ.get(spans.FOLDER_VARIABLE):
            environ[spans.FOLDER_VARIABLE] = folder
        settings = {
            "pod": pod_id,
            "socket": str(self._socket(pod_id)),
            "cgroup": self.cgroup(pod_id),
            "environ": environ,
            "command": [handler.path],
            "options": [*handler.args, "--root", handler.root, *options],
            "in_process": handler.entry == self._entry,
            "sandbox": handler.sandbox,
            "runtime_seconds": RUNTIME_SECONDS,
        }
        try:
            sock = await self.spawner.spawn(settings)
            client = await MonitorClient.adopt(sock, lambda event: self._on_event(pod_id, event), lambda: self._lost(pod_id))
        except (OSError, MonitorError, MonitorGone) as error:
            raise PodError(f"cannot start a monitor: {error}") from None
        self._clients[pod_id] = client
        await client.request("events")
        return client

    async def find(self, pod_id: str) -> dict[str, Any] | None:
        """Connects to a monitor that is there already: what it knows of its containers; None where it is dead."""
        try:
            client = await MonitorClient.connect(
                str(self._socket(pod_id)), lambda event: self._on_event(pod_id, event), lambda: self._lost(pod_id)
            )
            self._clients[pod_id] = client
            return await client.request("events")
        except (OSError, MonitorError, MonitorGone) as error:
            log.warning("a pod's monitor is not there", pod=pod_id, error=str(error))
            self._forget(pod_id)
            return None

    async def stop(self, pod_id: str) -> None:
        """Ends a monitor with all that it holds, and what it leaves. Nothing happens where there is none."""
        client = self._clients.pop(pod_id, None)
        if client is None:
            with contextlib.suppress(OSError, MonitorError, MonitorGone):
                client = await MonitorClient.connect(str(self._socket(pod_id)), lambda event: None, lambda: None)
        if client:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await client.request("stop")
            except (MonitorGone, MonitorError):
                pass
            except TimeoutError:
                log.error("a monitor does not end: killing it", pod=pod_id, pid=client.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(client.pid, signal.SIGKILL)
            client.close()
        await asyncio.to_thread(self._clean, pod_id)

    def strangers(self, known: set[str]) -> list[str]:
        """The first 16 characters of pods that have a monitor's socket here and are not among the known."""
        names = {pod_id[:16] for pod_id in known}
        return [path.name for path in self._folder.iterdir() if len(path.name) == 16 and path.name not in names]

    def _clean(self, pod_id: str) -> None:
        """What is left of a monitor: its socket and its cgroup, with itself in it where it does not end."""
        self._socket(pod_id).unlink(missing_ok=True)
        group = cgroups.open_cgroup(self.cgroup(pod_id))
        try:
            group.remove()
        except OSError:
            group.kill()
            with contextlib.suppress(OSError):
                group.remove()

    def _socket(self, pod_id: str) -> Path:
        return self._folder / pod_id[:16]

    def _forget(self, pod_id: str) -> None:
        client = self._clients.pop(pod_id, None)
        if client:
            client.close()

    def _lost(self, pod_id: str) -> None:
        """The connection ended: the monitor died, or threw this one out."""
        if pod_id not in self._clients:
            return
        self._forget(pod_id)
        task = asyncio.create_task(self._reconnect(pod_id))
        self._reconnecting.add(task)
        task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self, pod_id: str) -> None:
        known = await self.find(pod_id)
        if known is None:
            self._on_death(pod_id)
            return
        for event in known["events"]:
            self._on_event(pod_id, event)
