"""The core of the daemon: pods and containers, and all that can be done with them (docs/architecture.md, "highrt: pods").

It takes CRI's messages as its vocabulary, keeps the metadata, and has the pods' monitors do the work. Everything it makes is
named in the metadata first, so that a daemon that is killed at any moment finds it again (`open`) and finishes or undoes it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from highrt.cni.errors import CniError
from highrt.cni.network import Attachment, Network, PortMapping
from highrt.images.errors import ImageError
from highrt.images.model import Image
from highrt.images.snapshots import Rootfs
from highrt.monitor import record
from highrt.monitor.client import MonitorError, MonitorGone
from highrt.pods import identity, netns, pidspace, sandbox, spec
from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.metadata import Metadata, NameTaken
from highrt.pods.model import (
    Container,
    ContainerEvent,
    ContainerState,
    ContainerStats,
    EventKind,
    Handler,
    Owner,
    Pod,
    PodStats,
    Stdio,
)
from highrt.pods.monitors import Monitors
from highrt.pods.sandbox import Sandbox
from highrt.pods.sessions import AttachSession, Collector, ExecSession, close_stdio, placed
from highrt.pods.signals import stop_signal
from strata.linux import cgroups, mounts
from strata.protocols.cri_pb2 import (
    ContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    NamespaceMode,
    PodSandboxConfig,
)
from strata.protocols.cri_pb2 import (
    Protocol as PortProtocol,
)
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("highrt.pods")

_SIGKILL = 9
_START_ERROR_CODE, _UNKNOWN_CODE = 128, 255
_KILL_SECONDS = 10.0
_LAUNCHER = Path(__file__).parents[2] / "lowrt" / "launcher"


class Images(Protocol):
    """What of the image service the manager needs."""

    def resolve(self, reference_or_id: str) -> Image | None: ...
    async def prepare(self, image: Image, key: str) -> Rootfs: ...
    async def rootfs(self, key: str) -> Rootfs | None: ...
    async def release(self, key: str) -> None: ...


def default_handlers() -> dict[str, Handler]:
    """lowrt, in the monitors' own process. Its root is the one that the `lowrt` command has: `lowrt list` shows all."""
    return {"lowrt": Handler("lowrt", str(_LAUNCHER), "/run/lowrt", entry="lowrt.main:run")}


class PodManager:
    """All pods of one root folder. `open` before the first call, `close` at the end; pods run on in between."""

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
        cni_bin_dir: Path = Path("/opt/cni/bin"),
        cni_entry: Mapping[str, str] | None = None,
    ) -> None:
        """root: what survives a reboot. state: sockets, namespaces, exit records (its path short: sockets lie below it).

        name: of the stack, for cgroups. handlers: by the name that RunPodSandbox gives; `default_handler` is the one for "".
        cni_entry: plugin type → dotted name of the function that takes the executable's place.
        Raises InvalidArgument where the default handler is not among the handlers.
        """
        self._root, self._state, self._images = root, state, images
        self._handlers = dict(handlers or default_handlers())
        if default_handler not in self._handlers:
            raise InvalidArgument(
                f"runtime handler {default_handler!r} is not configured: {', '.join(sorted(self._handlers))} are"
            )
        self._default_handler = default_handler
        self._cgroup_root = f"/strata/{name}"
        entry = next((h.entry for h in self._handlers.values() if h.entry), "lowrt.main:run")
        self._monitors = Monitors(state, self._cgroup_root, entry, self._on_event, self._on_death)
        self.network = Network(cni_conf_dir, cni_bin_dir, cni_entry or {}, root / "cni")
        self._pods: dict[str, Pod] = {}
        self._containers: dict[str, Container] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._exited: dict[str, asyncio.Event] = {}
        self._execs: dict[str, tuple[str, asyncio.Future[int]]] = {}
        self._attaches: dict[str, tuple[str, asyncio.Future[None]]] = {}
        self._waiting_attaches: dict[str, list[tuple[str, Stdio]]] = {}
        self._subscribers: set[asyncio.Queue[ContainerEvent]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._boot = record.boot_id()

    # --- the manager itself

    async def open(self) -> None:
        """Finds all pods again: connects to their monitors, reads how containers ended meanwhile, undoes what is half-made.

        Raises PodError, OSError.
        """
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._state.mkdir(parents=True, exist_ok=True, mode=0o711)
        (self._state / "pods").mkdir(exist_ok=True, mode=0o711)
        self._metadata = Metadata(self._root / "pods.db")
        await self._monitors.open()
        for container in self._metadata.containers():
            self._containers[container.id] = container
        found = self._metadata.pods()
        self._pods = {pod.id: pod for pod, complete, _ in found if complete}
        await asyncio.gather(*(self._recover(pod, complete, boot) for pod, complete, boot in found))
        await self._remove_strangers()
        await self.network.plugins.warm()
        log.info("pods found", pods=len(self._pods), containers=len(self._containers))

    async def close(self) -> None:
        """Lets go of everything and leaves the pods running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._monitors.close()
        await self.network.close()
        self._metadata.close()

    def handlers(self) -> list[str]:
        """The names of the runtime handlers, the default one first."""
        return sorted(self._handlers, key=lambda name: (name != self._default_handler, name))

    def network_ready(self) -> tuple[bool, str]:
        """Whether pods can get a network, and why not."""
        return self.network.status()

    async def events(self) -> AsyncIterator[ContainerEvent]:
        """What happens from the first iteration on."""
        queue: asyncio.Queue[ContainerEvent] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.discard(queue)

    # --- finding

    def pods(self, owner: Owner | None = None) -> list[Pod]:
        return [pod for pod in self._pods.values() if owner in (None, pod.owner)]

    def containers(self, owner: Owner | None = None) -> list[Container]:
        return [container for container in self._containers.values() if owner in (None, container.owner)]

    def pod(self, pod_id: str) -> Pod:
        """By ID, or by a beginning of one that is clear. Raises NotFound, InvalidArgument."""
        return self._pods[_find(pod_id, self._pods, "pod")]

    def container(self, container_id: str) -> Container:
        """By ID, or by a beginning of one that is clear. Raises NotFound, InvalidArgument."""
        return self._containers[_find(container_id, self._containers, "container")]

    # --- pods

    async def run_pod(self, config: PodSandboxConfig, *, handler: str = "", owner: Owner = Owner.KUBELET) -> Pod:
        """Makes a pod: its namespaces, its network, its monitor. After an error nothing is left.

        Raises InvalidArgument, AlreadyExists (the name is that of a pod that was not removed), PodError.
        """
        chosen = self._handlers.get(handler or self._default_handler)
        if chosen is None:
            raise InvalidArgument(f"runtime handler {handler!r} is not configured: {', '.join(sorted(self._handlers))} are")
        self._check_pod(config)
        pod_id = _new_id()
        box = Sandbox(self._state, pod_id)
        shared = box.namespaces(config)
        pod = Pod(pod_id, owner, config, chosen.name, False, time.time_ns(), shared.get("network"))
        meta = config.metadata
        name = f"{owner}/{meta.namespace}/{meta.name}/{meta.uid}/{meta.attempt}"
        try:
            self._metadata.reserve_pod(pod, name, self._boot)
        except NameTaken as taken:
            raise AlreadyExists(
                f"the pod {meta.namespace}/{meta.name} (uid {meta.uid}, attempt {meta.attempt}) exists already, as {taken}"
            ) from None
        with span("run pod", pod=meta.uid or pod_id, sandbox=pod_id):
            try:
                await self._make_pod(pod, box, chosen)
            except BaseException as error:
                await asyncio.shield(self._undo_pod(pod))
                if isinstance(error, OSError | CniError | MonitorError | MonitorGone):
                    raise PodError(f"cannot make the pod {meta.namespace}/{meta.name}: {error}") from error
                raise
        self._publish(EventKind.STARTED, pod.id, pod.id)
        log.info("pod runs", pod=meta.uid, sandbox=pod_id, name=meta.name, ips=",".join(pod.ips))
        return pod

    async def _make_pod(self, pod: Pod, box: Sandbox, handler: Handler) -> None:
        client = await self._monitors.start(pod.id, handler)
        box.make(pod.config)
        targets = box.namespaces(pod.config)
        await client.request(
            "namespaces",
            targets=targets,
            sysctls=dict(pod.config.linux.sysctls),
            hostname=sandbox.hostname(pod.config) if "uts" in targets else "",
        )
        # CONTAINER, a network of its own: loopback and nothing else (CRI leaves its meaning for pods open)
        if pod.netns and pod.config.linux.security_context.namespace_options.network != NamespaceMode.CONTAINER:
            pod.ips = await self.network.add(_attachment(pod))
            box.write_hosts(pod.config, pod.ips)
        if pidspace.shared(pod.config):
            bundle = pidspace.make_bundle(box, self._state, pod.config, self._init_cgroup(pod))
            created = await client.request("create", container=pod.id, bundle=str(bundle), cgroup=self._init_cgroup(pod))
            pidspace.pin(box, int(created["pid"]))
            await client.request("start", container=pod.id)
        pod.ready = True
        self._metadata.save_pod(pod)
        self._pods[pod.id] = pod

    async def _undo_pod(self, pod: Pod) -> None:
        """Takes away all of a pod that could not be made, or was half-made when a daemon died."""
        await self._monitors.stop(pod.id)
        try:
            await self.network.delete(_attachment(pod))
        except CniError as error:
            log.warning("the pod's network cannot be undone", sandbox=pod.id, error=str(error))
        await asyncio.to_thread(Sandbox(self._state, pod.id).remove)
        self._remove_cgroup(pod)
        self._pods.pop(pod.id, None)
        self._metadata.remove_pod(pod.id)

    async def stop_pod(self, pod_id: str) -> None:
        """Ends a pod's containers and frees its network, namespaces and monitor; its records stay. Idempotent.

        Nothing happens for a pod that does not exist. Raises PodError where something cannot be freed; call it again then.
        """
        try:
            pod = self.pod(pod_id)
        except NotFound:
            return
        async with self._lock(pod.id):
            with span("stop pod", pod=pod.config.metadata.uid, sandbox=pod.id):
                await self._stop_pod(pod)

    async def _stop_pod(self, pod: Pod) -> None:
        was_ready, pod.ready = pod.ready, False
        self._metadata.save_pod(pod)
        members = [c for c in self._containers.values() if c.pod_id == pod.id]
        await asyncio.gather(*(self._end(c, 0.0) for c in members if c.state == ContainerState.RUNNING))
        await self._monitors.stop(pod.id)
        try:
            await self.network.delete(_attachment(pod))
        except CniError as error:
            raise PodError(f"the network of pod {pod.id} cannot be freed: {error}") from error
        for container in members:
            self._unmount(container)
        try:
            await asyncio.to_thread(Sandbox(self._state, pod.id).release)
        except OSError as error:
            raise PodError(f"the namespaces of pod {pod.id} cannot be freed: {error}") from error
        self._remove_cgroup(pod)
        if was_ready:
            self._publish(EventKind.STOPPED, pod.id, pod.id)
            log.info("pod stopped", pod=pod.config.metadata.uid, sandbox=pod.id)

    async def remove_pod(self, pod_id: str) -> None:
        """Stops a pod and removes it with its containers. Nothing happens for a pod that does not exist."""
        try:
            pod = self.pod(pod_id)
        except NotFound:
            return
        async with self._lock(pod.id):
            await self._stop_pod(pod)
            for container in [c for c in self._containers.values() if c.pod_id == pod.id]:
                await self._remove_container(container)
            await asyncio.to_thread(Sandbox(self._state, pod.id).remove)
            self._metadata.remove_pod(pod.id)
            self._pods.pop(pod.id, None)
        self._locks.pop(pod.id, None)
        self._publish(EventKind.DELETED, pod.id, pod.id)

    # --- containers

    async def create_container(
        self, pod_id: str, config: ContainerConfig, sandbox_config: PodSandboxConfig | None = None, *, pids_limit: int = 0
    ) -> Container:
        """Makes a container's root and configuration; the runtime hears of it at its start.

        sandbox_config: CRI sends the pod's along; its log directory counts. The image must be there (an ID, tag or digest).
        pids_limit: the most processes that it may have, 0 for no limit (CRI has no field for it).
        Raises NotFound (pod, image), InvalidArgument, AlreadyExists, FailedPrecondition, PodError.
        """
        pod = self.pod(pod_id)
        if not pod.ready:
            raise FailedPrecondition(f"pod {pod.id} is not ready: it was stopped, or its monitor died")
        if not config.metadata.name:
            raise InvalidArgument("a container needs a name (metadata.name)")
        image = self._images.resolve(config.image.image)
        if image is None:
            raise NotFound(f"image {config.image.image!r} is not here: pull it first")
        container_id = _new_id()
        container = Container(
            container_id, pod.id, pod.owner, config, image.id, image.digests[0] if image.digests else image.id,
            ContainerState.CREATED, time.time_ns(), log_path=_log_path(pod, sandbox_config, config),
            cgroup=f"{self._cgroup_parent(pod)}/{container_id}",
            stop_signal=stop_signal(config.stop_signal, image.config.stop_signal),
        )  # fmt: skip
        name = f"{config.metadata.name}/{config.metadata.attempt}"
        try:
            self._metadata.add_container(container, name)
        except NameTaken as taken:
            raise AlreadyExists(f"the container {name} of pod {pod.id} exists already, as {taken}") from None
        with span("create container", pod=pod.config.metadata.uid, container=container_id):
            try:
                await self._make_container(pod, container, image, pids_limit)
            except BaseException as error:
                await asyncio.shield(self._remove_container(container))
                if isinstance(error, OSError | ImageError):
                    raise PodError(f"cannot make the container {config.metadata.name}: {error}") from error
                raise
        self._containers[container.id] = container
        self._publish(EventKind.CREATED, container.id, pod.id)
        return container

    async def _make_container(self, pod: Pod, container: Container, image: Image, pids_limit: int) -> None:
        box = Sandbox(self._state, pod.id)
        folder = box.container(container.id)
        mounted = folder / "rootfs"
        mounted.mkdir(parents=True)
        rootfs = await self._images.prepare(image, container.id)
        rootfs.mount(mounted)
        place = spec.Place(
            container.id, pod.id, box.folder, mounted, container.cgroup, self._shared_namespaces(pod),
            self._pid_path(pod, container), sandbox.hostname(pod.config),
        )  # fmt: skip
        built = spec.build(pod.config, container.config, image.config, place)
        if pids_limit > 0:
            built["linux"].setdefault("resources", {})["pids"] = {"limit": pids_limit}
        if container.log_path:
            os.makedirs(os.path.dirname(container.log_path), exist_ok=True)
        # Last, because a folder without it is what a killed daemon left half-made.
        (folder / "config.json").write_text(json.dumps(built))

    async def start_container(self, container_id: str) -> None:
        """Has the runtime create and start it. After an error it has exited, with code 128 and the reason StartError.

        Raises NotFound, FailedPrecondition where it is not in state created, PodError with the runtime's text.
        """
        container = self.container(container_id)
        async with self._lock(container.id):
            if container.state != ContainerState.CREATED:
                raise FailedPrecondition(f"container {container.id} is {container.state}, not created")
            pod = self._pods[container.pod_id]
            if not pod.ready:
                raise FailedPrecondition(f"pod {pod.id} is not ready")
            with span("start container", pod=pod.config.metadata.uid, container=container.id):
                try:
                    await self._start(pod, container)
                except (MonitorError, MonitorGone, PodError) as error:
                    self._note_exit(container, _START_ERROR_CODE, "StartError", str(error))
                    raise PodError(f"cannot start the container {container.config.metadata.name}: {error}") from error
        log.info("container runs", pod=pod.config.metadata.uid, container=container.id, name=container.config.metadata.name)

    async def _start(self, pod: Pod, container: Container) -> None:
        client, config = self._monitors.client(pod.id), container.config
        created = await client.request(
            "create", container=container.id, bundle=str(self._folder(container)), cgroup=container.cgroup,
            log=container.log_path, terminal=config.tty, stdin=config.stdin, stdin_once=config.stdin_once,
            own_pid_namespace=self._pid_path(pod, container) == "", console_socket=self._monitors.console_path(container.id),
        )  # fmt: skip
        container.pid = int(created["pid"])
        for attach_id, stdio in self._waiting_attaches.pop(container.id, []):
            await self._send_attach(container, attach_id, stdio)
        try:
            await client.request("start", container=container.id)
        except MonitorError:
            await client.request("delete", container=container.id)
            raise
        if container.state == ContainerState.CREATED:  # it may have ended before the answer came
            container.state, container.started_at_ns = ContainerState.RUNNING, time.time_ns()
            self._metadata.save_container(container)
            self._publish(EventKind.STARTED, container.id, pod.id)

    async def stop_container(self, container_id: str, timeout_seconds: float) -> None:
        """Sends the stop signal, and SIGKILL after the time-out. Nothing happens where it does not run or exist.

        Raises PodError where it does not die.
        """
        try:
            container = self.container(container_id)
        except NotFound:
            return
        with span("stop container", container=container.id):
            await self._end(container, timeout_seconds)

    async def _end(self, container: Container, timeout_seconds: float) -> None:
        ended = self._exited.setdefault(container.id, asyncio.Event())
        tries = [(container.stop_signal, timeout_seconds, False)] if timeout_seconds > 0 else []
        for number, seconds, everybody in [*tries, (_SIGKILL, _KILL_SECONDS, True)]:
            if container.state != ContainerState.RUNNING:
                return
            try:
                client = self._monitors.client(container.pod_id)
                await client.request("signal", container=container.id, signal=number, all=everybody)
            except (MonitorGone, PodError):
                await asyncio.sleep(0.1)  # its death is being handled, which ends the container too
            except MonitorError as error:
                log.warning("the monitor cannot signal", container=container.id, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ended.wait()
        if container.state == ContainerState.RUNNING:
            raise PodError(f"container {container.id} does not die of SIGKILL within {_KILL_SECONDS:.0f} s")

    async def signal_container(self, container_id: str, number: int) -> None:
        """Sends a signal to a container's first process. Raises NotFound, FailedPrecondition, PodError."""
        container = self.container(container_id)
        if container.state != ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.state}, not running")
        await self._ask(container, "signal", signal=number, all=False)

    async def remove_container(self, container_id: str) -> None:
        """Ends it where it runs and removes it with its writable layer. Nothing happens for one that does not exist."""
        try:
            container = self.container(container_id)
        except NotFound:
            return
        await self._end(container, 0.0)
        async with self._lock(container.id):
            await self._remove_container(container)
        self._locks.pop(container.id, None)

    async def _remove_container(self, container: Container) -> None:
        if self._monitors.has(container.pod_id):
            with contextlib.suppress(MonitorError, MonitorGone):
                await self._monitors.client(container.pod_id).request("delete", container=container.id)
        self._drop_sessions(container.id, "the container was removed")
        self._unmount(container)
        await self._images.release(container.id)
        await asyncio.to_thread(shutil.rmtree, self._folder(container), ignore_errors=True)
        self._metadata.remove_container(container.id)
        self._exited.pop(container.id, None)
        if self._containers.pop(container.id, None):
            self._publish(EventKind.DELETED, container.id, container.pod_id)

    async def update_resources(self, container_id: str, resources: LinuxContainerResources) -> None:
        """Changes limits; what is 0 or empty stays. Raises NotFound, FailedPrecondition, InvalidArgument, PodError."""
        container = self.container(container_id)
        async with self._lock(container.id):
            if container.state not in (ContainerState.CREATED, ContainerState.RUNNING):
                raise FailedPrecondition(f"container {container.id} is {container.state}")
            merged = LinuxContainerResources()
            merged.CopyFrom(container.config.linux.resources)
            merged.MergeFrom(resources)
            wanted = spec.oci_resources(merged)
            if container.state == ContainerState.RUNNING:
                await self._ask(container, "update", resources=wanted, folder=str(self._folder(container)))
            else:
                file = self._folder(container) / "config.json"
                built = json.loads(file.read_text())
                built["linux"]["resources"] |= wanted
                file.write_text(json.dumps(built))
            container.config.linux.resources.CopyFrom(merged)
            self._metadata.save_container(container)

    async def reopen_log(self, container_id: str) -> None:
        """After the log file was moved away. Raises NotFound, FailedPrecondition, PodError."""
        container = self.container(container_id)
        if container.state != ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.state}, not running")
        await self._ask(container, "reopen-log")

    # --- processes and streams

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
            container = self.container(container_id)
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
                        folder=str(self._folder(container)), console_socket=self._monitors.console_path(exec_id),
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

        timeout_seconds: 0 is no limit; after it the process is killed and TimeoutError raised. Raises as `exec` does.
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
                if isinstance(error, TimeoutError):
                    raise TimeoutError(f"{argv[0]} did not end within {timeout_seconds:g} s, and was killed") from None
                raise
            stdout, stderr = await collector.output()
            return stdout, stderr, code
        finally:
            collector.close()

    async def attach(self, container_id: str, stdio: Stdio) -> AttachSession:
        """Joins a client to a container's streams; before its start, from its first byte on. The descriptors pass to the
        manager. Raises NotFound, FailedPrecondition where it has ended, PodError."""
        attach_id = uuid.uuid4().hex
        try:
            container = self.container(container_id)
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

    async def dial(self, pod_id: str, port: int) -> socket.socket:
        """A connection to a port of the pod's localhost. Raises NotFound, FailedPrecondition, OSError (refused)."""
        pod = self.pod(pod_id)
        if not pod.ready:
            raise FailedPrecondition(f"pod {pod.id} is not ready")
        return await netns.dial(pod.netns, port)

    # --- figures

    async def container_stats(self, container_id: str) -> ContainerStats:
        """Raises NotFound."""
        container = self.container(container_id)
        used = cgroups.open_cgroup(container.cgroup).stats()
        rootfs = await self._images.rootfs(container.id)
        size, inodes, path = 0, 0, ""
        if rootfs:
            path = str(rootfs.upper)
            size, inodes = await asyncio.to_thread(_tree_size, path)
        return ContainerStats(
            container.id, time.time_ns(), used.cpu_usage_ns, used.memory_usage_bytes, used.memory_working_set_bytes,
            used.memory_rss_bytes, used.pids, path, size, inodes,
        )  # fmt: skip

    async def pod_stats(self, pod_id: str) -> PodStats:
        """Raises NotFound."""
        pod = self.pod(pod_id)
        running = [c for c in self._containers.values() if c.pod_id == pod.id and c.state == ContainerState.RUNNING]
        stats = [await self.container_stats(container.id) for container in running]
        found = []
        if pod.ready and pod.netns:
            with contextlib.suppress(OSError):
                found = await netns.interfaces(pod.netns)
        return PodStats(pod.id, time.time_ns(), stats, found)

    # --- what monitors tell

    def _on_event(self, pod_id: str, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "exec-exited":
            _, ended = self._execs.pop(event["exec"], (None, None))
            if ended and not ended.done():
                ended.set_result(int(event["code"]))
        elif kind == "detached":
            _, gone = self._attaches.pop(event["attach"], (None, None))
            if gone and not gone.done():
                gone.set_result(None)
        elif kind == "exited" and event["container"] == pod_id:
            self._lose_pid_namespace(self._pods.get(pod_id))
        elif kind == "exited":
            container = self._containers.get(event["container"])
            if container and container.state != ContainerState.EXITED:
                self._apply_exit(container, event)
        elif kind == "trouble":
            log.warning("from a monitor", sandbox=pod_id, container=event.get("container"), text=event.get("text"))

    def _apply_exit(self, container: Container, ended: dict[str, Any]) -> None:
        code, oom = int(ended["code"]), bool(ended["oom"])
        reason = "OOMKilled" if oom else "Completed" if code == 0 else "Error"
        container.started_at_ns = container.started_at_ns or int(ended["time"])
        self._note_exit(container, code, reason, "", int(ended["time"]))

    def _note_exit(self, container: Container, code: int, reason: str, message: str, time_ns: int = 0) -> None:
        """Writes down that a container has ended, frees its mount, and tells who waits."""
        container.state, container.exit_code, container.reason, container.message = ContainerState.EXITED, code, reason, message
        container.finished_at_ns, container.pid = time_ns or time.time_ns(), 0
        self._metadata.save_container(container)
        self._drop_sessions(container.id, "the container has ended")
        self._unmount(container)
        self._exited.setdefault(container.id, asyncio.Event()).set()
        self._publish(EventKind.STOPPED, container.id, container.pod_id)
        log.info("container ended", container=container.id, code=code, reason=reason, text=message or None)

    def _drop_sessions(self, container_id: str, why: str) -> None:
        for attach_id, stdio in self._waiting_attaches.pop(container_id, []):
            close_stdio(stdio)
            _, gone = self._attaches.pop(attach_id, (None, None))
            if gone and not gone.done():
                gone.set_result(None)
        log.debug("sessions dropped", container=container_id, why=why)

    def _lose_pid_namespace(self, pod: Pod | None) -> None:
        """The first process of a shared PID namespace has ended, and the kernel has killed all the others with it."""
        if pod and pod.ready:
            pod.ready = False
            self._metadata.save_pod(pod)
            log.error("the process that holds the pod's PID namespace has ended", sandbox=pod.id)
            self._publish(EventKind.STOPPED, pod.id, pod.id)

    def _on_death(self, pod_id: str) -> None:
        """A monitor has died by itself: its pod is ended by cgroup and reported dead."""
        for exec_id, (of_pod, ended) in list(self._execs.items()):
            if of_pod == pod_id and not ended.done():
                self._execs.pop(exec_id)
                ended.set_exception(MonitorGone("the pod's monitor died"))
                ended.exception()  # perhaps nobody waits
        pod = self._pods.get(pod_id)
        if pod:
            task = asyncio.create_task(self._bury(pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _bury(self, pod: Pod) -> None:
        log.error("the pod's monitor died: ending the pod", pod=pod.config.metadata.uid, sandbox=pod.id)
        was_ready, pod.ready = pod.ready, False
        self._metadata.save_pod(pod)
        if pidspace.shared(pod.config):
            await self._delete_from_runtime(pod, pod.id, self._init_cgroup(pod))
        for container in [c for c in self._containers.values() if c.pod_id == pod.id]:
            await self._delete_from_runtime(pod, container.id, container.cgroup)
            if container.state == ContainerState.RUNNING:
                ended = record.read(str(self._folder(container)))
                if ended and ended["boot_id"] == self._boot:
                    self._apply_exit(container, ended)
                else:
                    self._note_exit(container, 128 + _SIGKILL, "Error", "its pod's monitor died, and it was killed with it")
            for attach_id, (of_container, gone) in list(self._attaches.items()):
                if of_container == container.id and not gone.done():
                    self._attaches.pop(attach_id)
                    gone.set_result(None)
        await self._monitors.stop(pod.id)
        if was_ready:
            self._publish(EventKind.STOPPED, pod.id, pod.id)

    async def _delete_from_runtime(self, pod: Pod, container_id: str, cgroup: str) -> None:
        """Ends a container by its cgroup and the runtime's command, where there is no monitor to do it."""
        await asyncio.to_thread(cgroups.open_cgroup(cgroup).kill)
        handler = self._handlers.get(pod.handler)
        if handler is None:
            return
        process = await asyncio.create_subprocess_exec(
            handler.path, *handler.args, "--root", handler.root, "delete", "--force", container_id,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, trouble = await process.communicate()
        if process.returncode and b"does not exist" not in trouble:
            log.warning("the runtime cannot delete a container", container=container_id, error=trouble.decode(errors="replace"))

    # --- after a restart

    async def _recover(self, pod: Pod, complete: bool, boot: str) -> None:
        members = [c for c in self._containers.values() if c.pod_id == pod.id]
        if not complete:
            log.warning("undoing a pod that was half-made", sandbox=pod.id)
            for container in members:
                await self._remove_container(container)
            await self._undo_pod(pod)
            return
        if boot != self._boot:
            await self._after_reboot(pod, members)
            return
        known = await self._monitors.find(pod.id) if pod.ready else None
        if known:
            self._learn(pod, members, known)
        elif pod.ready:
            await self._bury(pod)
        for container in members:
            if container.state == ContainerState.CREATED and not (self._folder(container) / "config.json").exists():
                log.warning("removing a container that was half-made", container=container.id)
                await self._remove_container(container)

    def _learn(self, pod: Pod, members: list[Container], known: dict[str, Any]) -> None:
        """Takes over what happened while this daemon was not there."""
        states = {each["container"]: each for each in known["containers"]}
        if states.get(pod.id, {}).get("exit"):
            self._lose_pid_namespace(pod)
        for container in members:
            found = states.get(container.id)
            if container.state == ContainerState.EXITED:
                continue
            if found and found["state"] == "running" and container.state == ContainerState.CREATED:
                container.state, container.pid, container.started_at_ns = ContainerState.RUNNING, found["pid"], time.time_ns()
                self._metadata.save_container(container)
            ended = (found or {}).get("exit") or record.read(str(self._folder(container)))
            if ended:
                self._apply_exit(container, ended)
            elif container.state == ContainerState.RUNNING and not found:
                self._note_exit(container, _UNKNOWN_CODE, "Unknown", "its monitor does not know it")

    async def _after_reboot(self, pod: Pod, members: list[Container]) -> None:
        """Nothing runs any more: what did has exited, and the pod's addresses go back."""
        for container in members:
            if container.state == ContainerState.RUNNING:
                ended = record.read(str(self._folder(container)))
                if ended:
                    self._apply_exit(container, ended)
                else:
                    self._note_exit(container, _UNKNOWN_CODE, "Unknown", "the machine was started anew")
        pod.ready, pod.netns = False, None
        try:
            await self.network.delete(_attachment(pod))
        except CniError as error:
            log.warning("an address is not freed yet", sandbox=pod.id, error=str(error))
        self._metadata.save_pod(pod)

    async def _remove_strangers(self) -> None:
        """Folders, monitors and attachments that no row names any more."""
        known = set(self._pods)
        for name in self._monitors.strangers(known):
            log.warning("ending a monitor of a pod that is not known", sandbox=name)
            await self._monitors.stop(name)
        for folder in (self._state / "pods").iterdir():
            if folder.name not in known:
                await asyncio.to_thread(Sandbox(self._state, folder.name).remove)
        for pod_id in self.network.attached():
            if pod_id not in known:
                with contextlib.suppress(CniError):
                    await self.network.delete(Attachment(pod_id, ""))

    # --- small things

    def _check_pod(self, config: PodSandboxConfig) -> None:
        if not config.metadata.name:
            raise InvalidArgument("a pod needs a name (metadata.name)")
        if len(config.hostname) > 64:
            raise InvalidArgument(f"host name {config.hostname!r}: 64 characters at most")
        parent = config.linux.cgroup_parent
        if parent and (not parent.startswith("/") or ".." in parent.split("/")):
            raise InvalidArgument(
                f"cgroup_parent {parent!r}: must be an absolute path like /kubepods/pod1 (the cgroupfs driver's)"
            )
        sandbox.check_sysctls(config)

    def _cgroup_parent(self, pod: Pod) -> str:
        return (pod.config.linux.cgroup_parent or f"{self._cgroup_root}/pods/{pod.id}").rstrip("/")

    def _remove_cgroup(self, pod: Pod) -> None:
        """The pod's group, where it is this daemon's; a kubelet removes those that it made."""
        if not pod.config.linux.cgroup_parent:
            with contextlib.suppress(OSError):
                cgroups.open_cgroup(self._cgroup_parent(pod)).remove()

    def _init_cgroup(self, pod: Pod) -> str:
        """Of the process that holds a shared PID namespace."""
        return f"{self._cgroup_parent(pod)}/{pod.id}"

    def _shared_namespaces(self, pod: Pod) -> dict[str, str]:
        return Sandbox(self._state, pod.id).namespaces(pod.config)

    def _pid_path(self, pod: Pod, container: Container) -> str | None:
        """The PID namespace: "" for one of its own, None for the host's, or the path of another container's."""
        options = container.config.linux.security_context.namespace_options
        if options.pid == NamespaceMode.NODE:
            return None
        if options.pid == NamespaceMode.TARGET:
            target = self.container(options.target_id)
            if target.pod_id != pod.id or target.state != ContainerState.RUNNING:
                raise FailedPrecondition(f"the target container {target.id} does not run in pod {pod.id}")
            return f"/proc/{target.pid}/ns/pid"
        if options.pid == NamespaceMode.POD and pidspace.shared(pod.config):
            return Sandbox(self._state, pod.id).namespace("pid")
        return ""

    def _folder(self, container: Container) -> Path:
        return Sandbox(self._state, container.pod_id).container(container.id)

    def _unmount(self, container: Container) -> None:
        try:
            mounts.umount(str(self._folder(container) / "rootfs"), mounts.DETACH)
        except OSError as error:
            if error.errno not in (2, 22):  # ENOENT, EINVAL: no folder, no mount
                log.warning("a root file system cannot be unmounted", container=container.id, error=str(error))

    def _process(
        self, container: Container, argv: Sequence[str], *, terminal: bool, env: Mapping[str, str] | None, cwd: str | None,
        user: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        """The OCI `process` of an exec: the container's own, changed."""
        folder = self._folder(container)
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

    async def _ask(self, container: Container, do: str, **fields: Any) -> None:
        try:
            await self._monitors.client(container.pod_id).request(do, container=container.id, **fields)
        except (MonitorError, MonitorGone) as error:
            raise PodError(f"{do} of container {container.id}: {error}") from None

    def _lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    def _publish(self, kind: EventKind, container_id: str, pod_id: str) -> None:
        event = ContainerEvent(kind, container_id, pod_id, time.time_ns())
        for queue in self._subscribers:
            queue.put_nowait(event)


def _new_id() -> str:
    return os.urandom(32).hex()


def _find(prefix: str, known: Mapping[str, object], what: str) -> str:
    if prefix in known:
        return prefix
    found = [key for key in known if key.startswith(prefix)] if prefix else []
    if len(found) > 1:
        raise InvalidArgument(f"{what} {prefix!r} is ambiguous: {len(found)} begin with it")
    if not found:
        raise NotFound(f"there is no {what} {prefix!r}")
    return found[0]


def _attachment(pod: Pod) -> Attachment:
    meta, config = pod.config.metadata, pod.config
    names = {PortProtocol.TCP: "tcp", PortProtocol.UDP: "udp", PortProtocol.SCTP: "sctp"}
    ports = [
        PortMapping(m.host_port, m.container_port, names[m.protocol], m.host_ip) for m in config.port_mappings if m.host_port > 0
    ]
    dns = config.dns_config
    lists = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    arguments = {
        "K8S_POD_NAMESPACE": meta.namespace, "K8S_POD_NAME": meta.name, "K8S_POD_UID": meta.uid,
        "K8S_POD_INFRA_CONTAINER_ID": pod.id,
    }  # fmt: skip
    there = pod.netns if pod.netns and os.path.exists(pod.netns) else ""
    return Attachment(pod.id, there, arguments, ports, {key: value for key, value in lists.items() if value})


def _log_path(pod: Pod, sandbox_config: PodSandboxConfig | None, config: ContainerConfig) -> str:
    folder = (sandbox_config.log_directory if sandbox_config else "") or pod.config.log_directory
    if not folder or not config.log_path:
        return ""
    path = os.path.normpath(os.path.join(folder, config.log_path))
    if not path.startswith(os.path.normpath(folder) + "/"):
        raise InvalidArgument(f"log_path {config.log_path!r} leads out of the pod's log directory")
    return path


def _tree_size(folder: str) -> tuple[int, int]:
    """Bytes on disk and inodes below a folder."""
    size = inodes = 0
    for path, _, files in os.walk(folder):
        for name in (".", *files):
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(path, name)).st_blocks * 512
                inodes += 1
    return size, inodes
