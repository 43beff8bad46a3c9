"""The core of the daemon: pods and containers, and all that can be done with them (docs/architecture.md, "highrt: pods").

`PodManager` takes CRI's messages as its vocabulary, and has the pods' monitors do the work. Behind it are `sandboxes` (the
life of pods), `containers` (of containers), `streams` (exec and attach) and `recovery`, over one `registry`. Everything that is
made is named in the metadata first, so that a daemon that is killed at any moment finds it again and finishes or undoes it.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from highrt.cni.network import Network
from highrt.pods import cdi, groups, netns, usage
from highrt.pods.attachments import Attachments
from highrt.pods.containers import Containers, Images
from highrt.pods.errors import FailedPrecondition, InvalidArgument
from highrt.pods.features import Features, Known
from highrt.pods.metadata import Metadata
from highrt.pods.model import (
    Container,
    ContainerEvent,
    ContainerState,
    ContainerStats,
    Handler,
    InterfaceStats,
    Owner,
    Pod,
    PodStats,
    Stdio,
)
from highrt.pods.monitors import Monitors
from highrt.pods.recovery import Recovery
from highrt.pods.registry import Registry
from highrt.pods.sandboxes import Sandboxes
from highrt.pods.sessions import AttachSession, ExecSession
from highrt.pods.streams import Streams
from strata.linux import cgroups
from strata.protocols.cri_pb2 import ContainerConfig, LinuxContainerResources, PodSandboxConfig
from strata.telemetry import logs

log = logs.get("highrt.pods")

_RECOVERY_SECONDS = 3.0
_LAUNCHER = Path(__file__).parents[2] / "lowrt" / "launcher"


def default_handlers() -> dict[str, Handler]:
    """lowrt, in the monitors' forked workers. Its root is the one that the `lowrt` command has: `lowrt list` shows all."""
    return {"lowrt": Handler("lowrt", str(_LAUNCHER), "/run/lowrt", entry="lowrt.main:run")}


class PodManager:
    """All pods of one root folder. `open` before the first call, `close` at the end; pods run on in between.

    IDs may be given by a beginning that is clear; NotFound is raised where there is none, InvalidArgument where there are
    several. Stopping and removing what does not exist does nothing, as CRI wants it.
    """

    def __init__(
        self,
        root: Path,
        state: Path,
        images: Images,
        *,
        name: str = "default",
        handlers: Mapping[str, Handler] | None = None,
        default_handler: str = "lowrt",
        cni_conf_dir: Path = Path("/etc/cni/net.d"),
        cni_bin_dirs: Sequence[Path] = (),
        cni_entry: Mapping[str, str] | None = None,
        cni_template: Path | None = None,
        cdi_folders: Sequence[Path] = cdi.FOLDERS,
    ) -> None:
        """root: what survives a reboot. state: sockets, namespaces, exit records (its path short: sockets lie below it).

        name: of the stack, for cgroups. handlers: by the name that RunPodSandbox gives; `default_handler` is the one for "".
        cni_entry: plugin type → dotted name of the function that takes the executable's place. cni_template: of a configuration
        that is made when a kubelet tells the pod CIDRs. cdi_folders: where devices are
        defined, the later ones before the earlier.
        Raises InvalidArgument where the default handler is not among the handlers.
        """
        self._root, self._state = root, state
        self._handlers = dict(handlers or default_handlers())
        if default_handler not in self._handlers:
            raise InvalidArgument(f"runtime handler {default_handler!r} is not among those of the configuration")
        self._default_handler = default_handler
        entry = next((handler.entry for handler in self._handlers.values() if handler.entry), "lowrt.main:run")
        self.network = Network(cni_conf_dir, cni_bin_dirs, cni_entry or {}, root / "cni", cni_template, root / "networks")
        registry = self._registry = Registry(state, name)
        monitors = self._monitors = Monitors(state, registry.cgroup_root, entry, self._on_event, self._on_death)
        self._streams = Streams(registry, monitors)
        self._containers = Containers(registry, monitors, images, self._streams, cdi_folders)
        self._features = Known()
        self.attachments = Attachments(registry, self.network)
        self._sandboxes = Sandboxes(
            registry, monitors, self.attachments, self._handlers, default_handler, self._features, self._containers
        )
        self._recovery = Recovery(registry, monitors, self.network, self._containers, self._sandboxes)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the manager itself

    async def open(self) -> None:
        """Finds all pods again: connects to their monitors, reads how containers ended meanwhile, undoes what is half-made.

        Raises PodError, OSError.
        """
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._state.mkdir(parents=True, exist_ok=True, mode=0o711)
        (self._state / "pods").mkdir(exist_ok=True, mode=0o711)
        registry = self._registry
        registry.metadata = Metadata(self._root / "pods.db")
        self._monitors.prepare()
        # Both are interpreters that start, which nothing here has to wait for.
        warming = asyncio.gather(self._monitors.spawner.open(), self.network.plugins.warm())
        try:
            await self._find()
        finally:
            await warming
        await self.network.collect()
        self._keep(asyncio.create_task(self._recovery.detach_later()))
        log.info("pods found", pods=len(registry.pods), containers=len(registry.containers))

    async def _find(self) -> None:
        registry = self._registry
        registry.containers.update((container.id, container) for container in registry.metadata.containers())
        found = registry.metadata.pods()
        registry.pods.update((pod.id, pod) for pod, complete, _ in found if complete)
        late = await self._recover(found)
        await self._remove_strangers(late)

    async def _recover(self, found: list[tuple[Pod, bool, str]]) -> set[str]:
        """Recovers all pods. Who hangs holds nobody up: the IDs of those that are still to be recovered."""
        recovering = {asyncio.create_task(self._recovery.recover(*row)): row[0].id for row in found}
        if not recovering:
            return set()
        done, late = await asyncio.wait(recovering, timeout=_RECOVERY_SECONDS)
        for task in done:
            task.result()
        for task in late:
            log.warning("a monitor does not answer: its pod is as it was written down", sandbox=recovering[task])
            self._keep(task)
        return {recovering[task] for task in late}

    async def _remove_strangers(self, late: set[str]) -> None:
        """The same for what belongs to no pod."""
        removing = asyncio.create_task(self._recovery.remove_strangers(late))
        done, _ = await asyncio.wait([removing], timeout=_RECOVERY_SECONDS)
        if done:
            removing.result()
        else:
            log.warning("what belongs to no pod is not away yet: a monitor or a network plugin does not answer")
            self._keep(removing)

    async def close(self) -> None:
        """Lets go of everything and leaves the pods running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._monitors.close()
        await self.network.close()
        self._registry.metadata.close()

    async def handlers(self) -> dict[str, Features]:
        """The runtime handlers by name, the default one first, and what they can do. The runtimes are asked once."""
        names = sorted(self._handlers, key=lambda name: (name != self._default_handler, name))
        found = await asyncio.gather(*(self._features.of(self._handlers[name]) for name in names))
        return dict(zip(names, found, strict=True))

    @property
    def state(self) -> Path:
        """The folder of what does not survive a reboot."""
        return self._state

    async def network_ready(self) -> tuple[bool, str]:
        """Whether pods can get a network, and why not."""
        return await self.network.status()

    def events(self) -> AsyncIterator[ContainerEvent]:
        """What happens from the first iteration on."""
        return self._registry.events()

    # --- finding

    def pods(self, owner: Owner | None = None) -> list[Pod]:
        return [pod for pod in self._registry.pods.values() if owner in (None, pod.owner)]

    def containers(self, owner: Owner | None = None) -> list[Container]:
        return [container for container in self._registry.containers.values() if owner in (None, container.owner)]

    def pod(self, pod_id: str) -> Pod:
        return self._registry.pod(pod_id)

    def container(self, container_id: str) -> Container:
        return self._registry.container(container_id)

    def container_spec(self, container_id: str) -> dict[str, Any] | None:
        """A container's config.json; None where it is gone, as after a reboot. Raises NotFound."""
        file = self._registry.folder(self.container(container_id)) / "config.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        return found

    def pod_namespaces(self, pod_id: str) -> dict[str, str]:
        """Kind → path, of the namespaces that a pod has of its own. Raises NotFound."""
        pod = self.pod(pod_id)
        return self._registry.sandbox(pod.id).namespaces(pod.config)

    # --- pods and containers

    async def run_pod(self, config: PodSandboxConfig, *, handler: str = "", owner: Owner = Owner.KUBELET) -> Pod:
        """See `Sandboxes.run`."""
        return await self._sandboxes.run(config, handler=handler, owner=owner)

    async def renew_pod(self, pod_id: str) -> Pod:
        """See `Sandboxes.renew`."""
        return await self._sandboxes.renew(pod_id)

    def root_of(self, container_id: str) -> str:
        """Where a container's root is mounted, while it is. Raises NotFound."""
        return str(self._registry.folder(self.container(container_id)) / "rootfs")

    def rename_pod(self, pod_id: str, name: str) -> None:
        """Gives a pod another name. It is the caller's to see that it is free. Raises NotFound."""
        pod = self._registry.pod(pod_id)
        pod.config.metadata.name = name
        self._registry.metadata.save_pod(pod)

    def rename_container(self, container_id: str, name: str) -> None:
        """Gives a container another name. It is the caller's to see that it is free. Raises NotFound."""
        container = self._registry.container(container_id)
        container.config.metadata.name = name
        self._registry.metadata.rename_container(container, f"{name}/{container.config.metadata.attempt}")

    async def update_pod_resources(
        self, pod_id: str, overhead: LinuxContainerResources | None, resources: LinuxContainerResources | None
    ) -> None:
        """See `Sandboxes.update_resources`."""
        await self._sandboxes.update_resources(pod_id, overhead, resources)

    async def stop_pod(self, pod_id: str) -> None:
        """See `Sandboxes.stop`."""
        await self._sandboxes.stop(pod_id)

    async def remove_pod(self, pod_id: str) -> None:
        """See `Sandboxes.remove`."""
        await self._sandboxes.remove(pod_id)

    async def create_container(
        self, pod_id: str, config: ContainerConfig, sandbox_config: PodSandboxConfig | None = None
    ) -> Container:
        """See `Containers.create`."""
        return await self._containers.create(pod_id, config, sandbox_config)

    async def renew_container(self, container_id: str) -> None:
        """See `Containers.renew`."""
        await self._containers.renew(container_id)

    async def start_container(self, container_id: str) -> None:
        """See `Containers.start`."""
        await self._containers.start(container_id)

    async def stop_container(self, container_id: str, timeout_seconds: float) -> None:
        """See `Containers.stop`."""
        await self._containers.stop(container_id, timeout_seconds)

    async def signal_container(self, container_id: str, number: int) -> None:
        """See `Containers.signal`."""
        await self._containers.signal(container_id, number)

    async def remove_container(self, container_id: str) -> None:
        """See `Containers.remove`."""
        await self._containers.remove(container_id)

    async def update_resources(self, container_id: str, resources: LinuxContainerResources, *, pids_limit: int = 0) -> None:
        """See `Containers.update_resources`."""
        await self._containers.update_resources(container_id, resources, pids_limit=pids_limit)

    async def reopen_log(self, container_id: str) -> None:
        """See `Containers.reopen_log`."""
        await self._containers.reopen_log(container_id)

    # --- processes and streams

    async def exec(
        self,
        container_id: str,
        argv: Sequence[str],
        stdio: Stdio,
        *,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> ExecSession:
        """See `Streams.exec`."""
        return await self._streams.exec(container_id, argv, stdio, terminal=terminal, env=env, cwd=cwd, user=user)

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_seconds: float = 0.0) -> tuple[bytes, bytes, int]:
        """See `Streams.exec_sync`."""
        return await self._streams.exec_sync(container_id, argv, timeout_seconds)

    async def attach(self, container_id: str, stdio: Stdio) -> AttachSession:
        """See `Streams.attach`."""
        return await self._streams.attach(container_id, stdio)

    async def dial(self, pod_id: str, port: int) -> socket.socket:
        """A connection to a port of the pod's localhost. Raises NotFound, FailedPrecondition, OSError (refused)."""
        pod = self.pod(pod_id)
        if not pod.ready:
            raise FailedPrecondition(f"pod {pod.id} is not ready")
        return await netns.dial(pod.netns, port)

    # --- figures

    async def container_stats(self, container_id: str) -> ContainerStats:
        """See `Containers.stats`."""
        return await self._containers.stats(container_id)

    async def pod_stats(self, pod_id: str) -> PodStats:
        """What a pod's running containers use, and its interfaces' counters. Raises NotFound."""
        pod = self.pod(pod_id)
        running = [c for c in self._registry.members(pod) if c.state == ContainerState.RUNNING]
        stats = [await self._containers.stats(container.id) for container in running]
        found = await self.pod_interfaces(pod.id)
        group = cgroups.open_cgroup(groups.folder(self._registry.cgroup_parent(pod)))
        return PodStats(pod.id, time.time_ns(), stats, found, usage.pressure(group))

    async def pod_interfaces(self, pod_id: str) -> list[InterfaceStats]:
        """The counters of the pod's own interfaces; none where it is on the host's network. Raises NotFound."""
        pod = self.pod(pod_id)
        if pod.ready and pod.netns:
            with contextlib.suppress(OSError):
                return await netns.interfaces(pod.netns)
        return []

    async def container_details(self, container_id: str) -> usage.Details:
        """See `Containers.details`."""
        return await self._containers.details(container_id)

    # --- what monitors tell

    def _on_event(self, pod_id: str, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "exec-exited":
            self._streams.exec_ended(event["exec"], int(event["code"]))
        elif kind == "detached":
            self._streams.detached(event["attach"])
        elif kind == "trouble":
            log.warning("from a monitor", sandbox=pod_id, container=event.get("container"), text=event.get("text"))
        elif kind == "exited" and event["container"] == pod_id:
            self._sandboxes.lose_first(self._registry.pods.get(pod_id))
        elif container := self._registry.containers.get(event.get("container", "")):
            if kind == "started":
                self._containers.note_start(container, int(event["time"]))
            elif kind == "exited" and container.state != ContainerState.EXITED:
                self._containers.apply_exit(container, event)

    def _on_death(self, pod_id: str) -> None:
        """A monitor has died by itself: its pod is ended by cgroup and reported dead."""
        self._streams.monitor_died(pod_id)
        pod = self._registry.pods.get(pod_id)
        if pod:
            self._keep(asyncio.create_task(self._sandboxes.bury(pod)))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
